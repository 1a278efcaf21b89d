"""Network: what a node does about pods' addresses once its Node has a podCIDR: the CNI configuration, and routes to the other nodes; and the load
balancers' addresses it answers for.

Runs in the agent, in the unit's network namespace. Also the API access that the agent's network roles (this, proxy, DNS) need: an
identity of its own, since the node's is confined to the node's pods. Not the fabric itself: that is fabric.py, outside of the unit.
"""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.kubelet import announce, cni, fabric, vips
from kubern.kubelet.unit import INTERFACE, UnitConfig
from kubern.model.object import Key, Object, key, labels, namespace
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

NODES, SERVICES, SLICES = "nodes", "services", "endpointslices.discovery.k8s.io"
GROUP = "kubern:node-network"
GATHER_S = 0.02
RETRY_S = 1.0


def pod_cidrs(node: Object) -> list[str]:
    spec = node.get("spec") or {}
    return list(spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else []))


async def run(mirrors: Mirrors, config: UnitConfig) -> None:
    """The role; runs until cancelled. Routes and configuration stay when it ends: pods go on."""
    nodes, services, slices = (mirrors.mirror(n) for n in (NODES, SERVICES, SLICES))
    changed = asyncio.Event()
    balanced: dict[Key, Object] = {}                     # Services of type LoadBalancer

    def service_changed(old: Object | None, new: Object | None) -> None:
        k = key(new or old)                              # type: ignore[arg-type]
        if new is not None and (new.get("spec") or {}).get("type") == "LoadBalancer":
            balanced[k] = new
            changed.set()
        elif balanced.pop(k, None) is not None:
            changed.set()

    def slice_changed(old: Object | None, new: Object | None) -> None:
        s = new or old
        assert s is not None
        if (namespace(s), labels(s).get(vips.SERVICE_LABEL)) in balanced:
            changed.set()
    nodes.handlers.append(lambda old, new: changed.set())
    services.handlers.append(service_changed)
    slices.handlers.append(slice_changed)
    await mirrors.synced((NODES, SERVICES, SLICES))
    for s in services.list():
        service_changed(None, s)
    addresses = [a for a in (config.address, config.address6.partition("/")[0]) if a]
    device = await asyncio.to_thread(announce.interface_of, config.address) if config.host else INTERFACE
    near = await asyncio.to_thread(networks_of, device)
    before: tuple[dict[str, str], set[str]] | None = None
    while True:
        changed.clear()
        try:
            everyone = list(nodes.list())
            me = nodes.get("", config.name)
            if me is not None and (mine := pod_cidrs(me)):
                text = cni.conflist(mine, config.run_dir, config.mtu)
                if cni.write(f"{config.run_dir}/cni", text):
                    log.info("pods of this node have addresses of %s", ", ".join(mine))
            way = urlsplit(config.server).hostname or "" if config.host else ""      # a unit's default route leads to the machine, who knows
            places = vips.routes(balanced.values(), slices.list() if balanced else (), everyone)
            want = fabric.by_way_of(fabric.node_routes(everyone, config.name), near, way), {vip for vip, via in places.items() if via in addresses}
            if want != before:                               # most news of nodes are heartbeats
                await asyncio.to_thread(fabric.sync_routes, want[0])
                await asyncio.to_thread(announce.sync, want[1], device)
                before = want
        except OSError as e:
            before = None
            log.warning("network: %s", e)
            await asyncio.sleep(RETRY_S)
            continue
        await changed.wait()
        await asyncio.sleep(GATHER_S)


def networks_of(device: str) -> list[str]:
    """The networks an interface is on."""
    return [f"{a['local']}/{a['prefixlen']}" for link in fabric.show("addr", "show", "dev", device) for a in link.get("addr_info") or ()
            if a.get("scope") == "global"]


def access() -> list[Object]:
    """The ClusterRole of the agents' network roles and its binding to their group."""
    def rule(group: str, resources: list[str], verbs: list[str], names: list[str] | None = None) -> dict[str, list[str]]:
        return {"apiGroups": [group], "resources": resources, "verbs": verbs, **({"resourceNames": names} if names else {})}
    read = ["get", "list", "watch"]
    rules = [rule("", ["services", "nodes", "namespaces", "pods"], read), rule("discovery.k8s.io", ["endpointslices"], read),
             rule("networking.k8s.io", ["networkpolicies", "servicecidrs"], read)]
    rbac = "rbac.authorization.k8s.io"
    write = [rule("", ["services"], ["create"]), rule("", ["configmaps"], read, ["kube-dns"]),
             rule("discovery.k8s.io", ["endpointslices"], ["create", "update", "patch"])]
    subject = [{"apiGroup": rbac, "kind": "Group", "name": GROUP}]
    return [
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": GROUP}, "rules": rules},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": GROUP}, "subjects": subject,
         "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": GROUP}},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": GROUP, "namespace": "kube-system"}, "rules": write},
        {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": GROUP, "namespace": "kube-system"}, "subjects": subject,
         "roleRef": {"apiGroup": rbac, "kind": "Role", "name": GROUP}}]


async def ensure_access(client: Client) -> None:
    """Makes those objects, with an administrator's client; roles that are there get the rules they lack, else they are left as they are."""
    for obj in access():
        try:
            await client.create(obj)
        except StatusError as e:
            if e.code != 409:
                raise
            m = obj["metadata"]
            have = await client.get(client.row(obj["apiVersion"], obj["kind"]), m.get("namespace") or "", m["name"])
            missing = [r for r in obj.get("rules") or () if r not in (have.get("rules") or ())]
            if missing:
                await client.update({**have, "apiVersion": obj["apiVersion"], "kind": obj["kind"], "rules": [*(have.get("rules") or ()), *missing]})
