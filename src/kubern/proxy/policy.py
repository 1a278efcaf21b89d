"""Policy: NetworkPolicies to nftables content for the pods of one node. Pure: objects in, a Part out.

A pod that some policy selects for a direction is isolated in it: only what a rule of such a policy allows comes through. Every pod
address leads by a map to the chain of its *combination* of policies, so pods of one workload share chains; the peers a selector
means are a set shared by all rules that name them. Checked where packets are forwarded: same-node traffic passes there too by
br_netfilter, after translation of service addresses and before masquerading, so rules see the real pods. Neighbour discovery between
pods of one node passes there as well and is no traffic of theirs.
Traffic between a pod and its own node (probes, node-local DNS) is never filtered, nor is a pod from itself.
Sources: NetworkPolicy API (networking/v1), KEP-2079 (endPort).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from kubern.model.addresses import parse_cidr
from kubern.model.object import Object
from kubern.model.selector import from_label_selector
from kubern.proxy.ruleset import Element, Name, Part

TABLE = "kubern-policy"
FAMILY = "inet"
_ENDED = ("Succeeded", "Failed")

SKELETON = f"""table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
 map egress4 {{ type ipv4_addr : verdict; }}
 map egress6 {{ type ipv6_addr : verdict; }}
 map ingress4 {{ type ipv4_addr : verdict; }}
 map ingress6 {{ type ipv6_addr : verdict; }}
 set self4 {{ type ipv4_addr . ipv4_addr; }}
 set self6 {{ type ipv6_addr . ipv6_addr; }}
 chain forward {{
  type filter hook forward priority filter - 5;
  ct state established,related accept;
  icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept;
  ip saddr . ip daddr @self4 accept;
  ip6 saddr . ip6 daddr @self6 accept;
  ip saddr vmap @egress4;
  ip6 saddr vmap @egress6;
  ip daddr vmap @ingress4;
  ip6 daddr vmap @ingress6;
 }}
}}
"""


TYPES = {(FAMILY, f"{name}{v}"): f"type {addr}{more};" for v, addr in ((4, "ipv4_addr"), (6, "ipv6_addr"))
         for name, more in (("egress", " : verdict"), ("ingress", " : verdict"), ("self", f" . {addr}"))}


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What policies see of a pod. Equal facts mean that nothing needs to be done."""

    namespace: str
    name: str
    labels: tuple[tuple[str, str], ...]
    ips: tuple[str, ...]
    node: str
    ports: tuple[tuple[str, str, int], ...]        # (name, protocol, number) of named container ports


def facts(pod: Object) -> PodFacts | None:
    """None: no policy concerns it (host network, ended, no address yet)."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    if spec.get("hostNetwork") or status.get("phase") in _ENDED:
        return None
    ips = tuple(i["ip"] for i in status.get("podIPs") or () if i.get("ip")) or ((status["podIP"],) if status.get("podIP") else ())
    if not ips:
        return None
    containers = (*(spec.get("initContainers") or ()), *spec["containers"])
    ports = tuple((p["name"], p.get("protocol") or "TCP", p["containerPort"]) for c in containers
                  for p in c.get("ports") or () if p.get("name"))
    meta = pod["metadata"]
    return PodFacts(meta.get("namespace") or "", meta["name"], tuple(sorted((meta.get("labels") or {}).items())), ips,
                    spec.get("nodeName") or "", ports)


@dataclass(slots=True)
class _World:
    pods: dict[str, list[PodFacts]]
    namespaces: Mapping[str, Mapping[str, str]]
    _peers: dict[bytes, list[PodFacts]] = field(default_factory=dict)

    def peers(self, namespace: str, peer: Mapping[str, Any]) -> list[PodFacts]:
        """The pods a `from`/`to` entry means, seen from a policy of this namespace."""
        key = orjson.dumps([namespace if "namespaceSelector" not in peer else "", peer], option=orjson.OPT_SORT_KEYS)
        found = self._peers.get(key)
        if found is None:
            spaces: Iterable[str] = (namespace,)
            if "namespaceSelector" in peer:
                wanted = from_label_selector(peer["namespaceSelector"] or {})
                spaces = [n for n, labels in self.namespaces.items() if wanted.matches(dict(labels))]
            pods = from_label_selector(peer.get("podSelector") or {})
            found = self._peers[key] = [p for n in spaces for p in self.pods.get(n, ()) if pods.matches(dict(p.labels))]
        return found


@dataclass(slots=True)
class _Out:
    elements: dict[Element, str] = field(default_factory=dict)
    chains: dict[Name, tuple[str, ...]] = field(default_factory=dict)
    sets: dict[Name, str] = field(default_factory=dict)

    def address_set(self, name: str, ips: Iterable[str], family: int) -> str:
        self.sets[FAMILY, name] = f"type {'ipv6_addr' if family == 6 else 'ipv4_addr'};"
        for ip in ips:
            self.elements[FAMILY, name, ip] = ""
        return name


def render_policies(policies: Iterable[Object], pods: Iterable[PodFacts], namespaces: Mapping[str, Mapping[str, str]], node: str) -> Part:
    """All filtering for the pods of this node. `namespaces`: labels by name."""
    world = _World({}, namespaces)
    local: list[PodFacts] = []
    for p in pods:
        world.pods.setdefault(p.namespace, []).append(p)
        if p.node == node:
            local.append(p)
    by_space: dict[str, list[tuple[Object, Any]]] = {}
    for o in sorted(policies, key=lambda o: o["metadata"]["name"]):
        by_space.setdefault(o["metadata"].get("namespace") or "", []).append((o, from_label_selector(o["spec"].get("podSelector") or {})))
    out = _Out()
    for pod in sorted(local, key=lambda p: (p.namespace, p.name)):
        labels = dict(pod.labels)
        mine = [o for o, selector in by_space.get(pod.namespace, ()) if selector.matches(labels)]
        for direction in ("Ingress", "Egress"):
            active = [o for o in mine if direction in policy_types(o["spec"])]
            if not active:
                continue
            chain = _chain(out, world, active, direction, pod)
            for ip in pod.ips:
                v = 6 if ":" in ip else 4
                out.elements[FAMILY, f"{direction.lower()}{v}", ip] = f"jump {chain}"
                out.elements[FAMILY, f"self{v}", f"{ip} . {ip}"] = ""
    return Part(out.elements, out.chains, out.sets)


def policy_types(spec: Mapping[str, Any]) -> list[str]:
    """As the API server defaults them, for objects that lack them."""
    given = spec.get("policyTypes")
    return list(given) if given else ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _chain(out: _Out, world: _World, policies: list[Object], direction: str, pod: PodFacts) -> str:
    ingress = direction == "Ingress"
    mentioned = {p.get("port") for o in policies for r in o["spec"].get("ingress") or () for p in r.get("ports") or ()}
    named = tuple(p for p in pod.ports if p[0] in mentioned) if ingress else ()
    identity = [direction, pod.namespace, named, [(o["metadata"]["name"], o["spec"]) for o in policies]]
    tag = hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
    name = f"{'in' if ingress else 'out'}-{tag}"
    if (FAMILY, name) in out.chains:
        return name
    rules: list[str] = []
    for o in policies:
        for rule in o["spec"].get(direction.lower()) or ():
            peers = rule.get("from" if ingress else "to") or []
            rules += _rules(out, world, pod.namespace, peers, rule.get("ports") or [], ingress, named)
    out.chains[FAMILY, name] = (*dict.fromkeys(rules), "drop")
    return name


def _rules(out: _Out, world: _World, namespace: str, peers: list[dict[str, Any]], ports: list[dict[str, Any]], ingress: bool,
           named: Iterable[tuple[str, str, int]]) -> list[str]:
    """The "return" rules of one rule of a policy; "return" goes on to the other direction's check."""
    side = "saddr" if ingress else "daddr"
    places = [m for p in peers for m in _places(out, world, namespace, p, side)] if peers else [""]
    numbers, names = _ports(ports, named if ingress else None)
    out_rules = [" ".join(x for x in (place, port, "return") if x) for place in places for port in numbers]
    if names:                                            # names mean another number on each target: pairs of address and port
        pods = [x for p in peers if "ipBlock" not in p for x in world.peers(namespace, p)] if peers else \
               [x for space in world.pods.values() for x in space]
        for port_name, protocol in names:
            out_rules += _pairs(out, pods, port_name, protocol)
    return out_rules


def _places(out: _Out, world: _World, namespace: str, peer: dict[str, Any], side: str) -> list[str]:
    """Matches for one `from`/`to` entry; one a family."""
    block = peer.get("ipBlock")
    if block:
        parsed = parse_cidr(block["cidr"])
        if parsed is None:
            return []
        net = parsed[1]
        ip = "ip6" if net.version == 6 else "ip"
        match = f"{ip} {side} {net}" if net.prefixlen else f"meta nfproto {'ipv6' if ip == 'ip6' else 'ipv4'}"
        excepted = [p[1] for p in map(parse_cidr, block.get("except") or ()) if p and p[1].version == net.version]
        merged = list(ipaddress.collapse_addresses(excepted))  # type: ignore[type-var]
        return [f"{match} {ip} {side} != {{ {', '.join(map(str, merged))} }}" if merged else match]
    key = [namespace if "namespaceSelector" not in peer else "", peer]
    tag = hashlib.sha256(orjson.dumps(key, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]
    addresses = [ip for p in world.peers(namespace, peer) for ip in p.ips]
    places = []
    for family, ip in ((4, "ip"), (6, "ip6")):
        mine = [a for a in addresses if (":" in a) == (family == 6)]
        if mine or family == 4:
            places.append(f"{ip} {side} @{out.address_set(f'peers{family}-{tag}', mine, family)}")
    return places


def _ports(ports: list[dict[str, Any]], named: Iterable[tuple[str, str, int]] | None) -> tuple[list[str], list[tuple[str, str]]]:
    """(matches for numbered ports, names still to be resolved). `named` resolves names; None: they are another pod's."""
    if not ports:
        return [""], []
    ranges: dict[str, list[tuple[int, int]]] = {}
    whole: list[str] = []
    names: list[tuple[str, str]] = []
    for p in ports:
        protocol = (p.get("protocol") or "TCP").lower()
        port = p.get("port")
        if port is None:
            whole.append(f"meta l4proto {protocol}")
        elif isinstance(port, str) and not port.isdigit():
            if named is None:
                names.append((port, protocol))
            else:
                ranges.setdefault(protocol, []).extend((n, n) for name, pr, n in named if name == port and pr.lower() == protocol)
        else:
            ranges.setdefault(protocol, []).append((int(port), int(p.get("endPort") or port)))
    out = [*whole]
    for protocol, rs in ranges.items():
        if rs:
            spans = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in _merge(rs))
            out.append(f"{protocol} dport {{ {spans} }}")
    return out, names


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without overlaps: nft refuses intervals that do."""
    out: list[tuple[int, int]] = []
    for a, b in sorted(ranges):
        if out and a <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def _pairs(out: _Out, pods: Iterable[PodFacts], port_name: str, protocol: str) -> list[str]:
    rules = []
    pairs = sorted({(ip, n) for p in pods for name, pr, n in p.ports if name == port_name and pr.lower() == protocol for ip in p.ips})
    for family, ip in ((4, "ip"), (6, "ip6")):
        mine = [(a, n) for a, n in pairs if (":" in a) == (family == 6)]
        if not mine:
            continue
        tag = hashlib.sha256(repr((family, protocol, mine)).encode()).hexdigest()[:12]
        out.sets[FAMILY, f"pairs-{tag}"] = f"type {'ipv6_addr' if family == 6 else 'ipv4_addr'} . inet_service;"
        for a, n in mine:
            out.elements[FAMILY, f"pairs-{tag}", f"{a} . {n}"] = ""
        rules.append(f"meta l4proto {protocol} {ip} daddr . th dport @pairs-{tag} return")
    return rules
