"""Trace: says in words what the proxy of a node does with a connection, from the data it renders. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kubern.model.object import Object
from kubern.proxy.endpoints import choose, collect
from kubern.proxy.render import Settings, addresses, affinity_seconds, family_of, is_proxied, is_used, owner, policies


def trace(services: Iterable[Object], slices: Mapping[str, Iterable[Object]], s: Settings, target: str, port: int,
          protocol: str = "TCP") -> list[str]:
    """The steps for a connection from a pod of this node to target:port. `slices` by owner ("namespace/name")."""
    family = family_of(target)
    for service in services:
        if not is_proxied(service):
            continue
        spec = service["spec"]
        cluster, external, vips = addresses(service, family)
        for p in spec.get("ports") or ():
            if (p.get("protocol") or "TCP") != protocol:
                continue
            kind = ("cluster IP" if (target, port) == (cluster, p["port"]) else
                    "external address" if target in (*external, *vips) and port == p["port"] else
                    "node port" if target in s.node.addresses and port == p.get("nodePort") else "")
            if kind:
                return _steps(service, p, kind, slices.get(owner(service), ()), s, family)
    return [f"{target}:{port}/{protocol} is no address of a service; it is routed as it is"]


def _steps(service: Object, port: Mapping[str, object], kind: str, slices: Iterable[Object], s: Settings, family: int) -> list[str]:
    spec = service["spec"]
    external = addresses(service, family)[1]
    inside, outside = policies(spec, bool(external))
    endpoints = collect([x for x in slices if is_used(x)], port, family, s.node.name)
    chosen = choose(endpoints, s.node, True, True)
    out = [f"it is the {kind} of service {owner(service)}, port {port.get('name') or port['port']}"]
    local = inside if kind == "cluster IP" else outside
    used = chosen.local if local and kind == "cluster IP" else chosen.cluster
    ready, here = sum(e.ready for e in endpoints), sum(e.local for e in endpoints)
    out.append(f"{len(endpoints)} endpoints, {ready} ready, {here} on node {s.node.name}")
    if not chosen.anywhere:
        return [*out, "no endpoint is usable anywhere: refused at once"]
    if not used:
        return [*out, "the Local policy allows only endpoints of this node, and there is none: dropped"]
    if affinity_seconds(spec):
        out.append(f"ClientIP affinity: the same client goes to the same endpoint for {affinity_seconds(spec)} s")
    out.append("sent to one of " + ", ".join(f"{e.ip}:{e.port}" for e in used))
    if kind != "cluster IP" and not local:
        out.append("masqueraded with this node's address, since the endpoint may be on another node")
    return out
