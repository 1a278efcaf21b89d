"""Render: Services and EndpointSlices to nftables content for one node. Pure: a service in, a Part out.

Flat maps, not a chain per service: a packet is looked up once by (address, protocol, port), gets a random number below the
count of endpoints as its mark, and is sent to what the map `endpoints` has under (address, protocol, port, mark). The mark's high
bits say which list: MASQUERADE (answer must come back through this node) and LOCAL (only endpoints of this node). There is one
chain per endpoint *count*. Only services with ClientIP affinity have chains of their own.
TCP is refused by a reset: a client in a pod would miss an ICMP error that comes back while connect() still holds its socket, and
try again only after a second.
Marks are spent on the first packet of a connection only and mean nothing after postrouting.
Sources: Service API; upstream's pkg/proxy/nftables/README.md for what must be observable; KEP-3866.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kubern.model.addresses import parse_cidr, parse_ip
from kubern.model.object import Object
from kubern.proxy.endpoints import Chosen, Endpoint, Node, choose, collect
from kubern.proxy.ruleset import EMPTY, Element, Name, Part

TABLE = "kubern-proxy"
MASQUERADE = 1 << 30
LOCAL = 1 << 29
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_LABEL = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Settings:
    node: Node
    pod_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    service_cidrs: tuple[str, ...] = ("10.96.0.0/16",)


def family_of(address: str) -> int:
    return 6 if ":" in address else 4


def table_of(family: int) -> str:
    return "ip6" if family == 6 else "ip"


# ---- what never changes ----------------------------------------------------------------------------------------------------------------

def _sets(family: int) -> dict[str, tuple[str, str]]:
    """name -> (set or map, its type)."""
    addr = "ipv6_addr" if family == 6 else "ipv4_addr"
    place, port = f"{addr} . inet_proto . inet_service", "inet_proto . inet_service"
    return {
        "services": ("map", f"type {place} : verdict;"), "nodeports": ("map", f"type {port} : verdict;"),
        "endpoints": ("map", f"type {place} . mark : {addr} . inet_service;"), "npendpoints": ("map", f"type {port} . mark : {addr} . inet_service;"),
        "refused": ("map", f"type {place} : verdict;"), "nprefused": ("map", f"type {port} : verdict;"), "firewall": ("map", f"type {place} : verdict;"),
        "cluster-ips": ("set", f"type {addr};"), "hairpin": ("set", f"type {addr} . {addr};")}


TYPES = {(table_of(f), name): type_ for f in (4, 6) for name, (_, type_) in _sets(f).items()}


def skeleton(s: Settings, family: int) -> str:
    """The table with its base chains, empty sets and maps: replaces whatever stood there."""
    ip = table_of(family)
    declared = "\n".join(f" {kind} {name} {{ {type_} }}" for name, (kind, type_) in _sets(family).items())
    pods = ", ".join(c for c in s.pod_cidrs if family_of(c) == family)
    services = ", ".join(c for c in s.service_cidrs if family_of(c) == family)
    loopback = "::1" if family == 6 else "127.0.0.0/8"
    outsiders = f"{ip} saddr != {{ {pods} }} " if pods else ""
    strays = f"ct state new {ip} daddr {{ {services} }} drop;" if services else ""
    return f"""table {ip} {TABLE}
delete table {ip} {TABLE}
table {ip} {TABLE} {{
{declared}
 chain refuse {{ meta l4proto tcp reject with tcp reset; reject; }}
 chain pick {{ dnat {ip} to {ip} daddr . meta l4proto . th dport . meta mark map @endpoints; }}
 chain nppick {{ dnat {ip} to meta l4proto . th dport . meta mark map @npendpoints; }}
 chain find {{
  {ip} daddr . meta l4proto . th dport vmap @services;
  fib daddr type local {ip} daddr != {loopback} meta l4proto . th dport vmap @nodeports;
 }}
 chain dead {{ {ip} daddr . meta l4proto . th dport vmap @refused; }}
 chain npdead {{ fib daddr type local {ip} daddr != {loopback} meta l4proto . th dport vmap @nprefused; }}
 chain unknown {{
  ct state new {ip} daddr @cluster-ips goto refuse;
  {strays}
 }}
 chain sources {{ {ip} daddr . meta l4proto . th dport vmap @firewall; }}
 chain sources-prerouting {{ type filter hook prerouting priority -110; ct state new jump sources; }}
 chain sources-output {{ type filter hook output priority -110; ct state new jump sources; }}
 chain filter-input {{ type filter hook input priority filter; ct state new jump dead; ct state new jump npdead; }}
 chain filter-forward {{ type filter hook forward priority filter; ct state new jump dead; jump unknown; }}
 chain filter-output {{ type filter hook output priority filter; ct state new jump dead; jump unknown; }}
 chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump find; }}
 chain nat-output {{ type nat hook output priority -100; jump find; }}
 chain nat-postrouting {{
  type nat hook postrouting priority srcnat;
  meta mark & {MASQUERADE} != 0 masquerade fully-random;
  ct status dnat {ip} saddr . {ip} daddr @hairpin masquerade fully-random;
  ct status dnat {outsiders}ct original {ip} daddr @cluster-ips masquerade fully-random;
 }}
}}
"""


# ---- one service -----------------------------------------------------------------------------------------------------------------------

def is_proxied(service: Object) -> bool:
    """Whether the proxy has anything to do for it: not headless, not an ExternalName, not another proxy's."""
    spec = service.get("spec") or {}
    return (spec.get("type") != "ExternalName" and (spec.get("clusterIP") or "None") != "None"
            and PROXY_NAME_LABEL not in (service["metadata"].get("labels") or {}))


def is_used(slice_: Object) -> bool:
    labels = slice_["metadata"].get("labels") or {}
    return HEADLESS_LABEL not in labels and PROXY_NAME_LABEL not in labels and SERVICE_LABEL in labels


@dataclass(slots=True)
class _Builder:
    """One service port of one family while it is rendered."""

    ip: str                                            # nft family
    protocol: str
    identity: str
    chosen: Chosen
    affinity_s: int
    pods: str
    elements: dict[Element, str] = field(default_factory=dict)
    chains: dict[Name, tuple[str, ...]] = field(default_factory=dict)
    sets: dict[Name, str] = field(default_factory=dict)
    shared: dict[Name, tuple[str, ...]] = field(default_factory=dict)

    def count_chain(self, name: str, *rules: str) -> str:
        self.shared[self.ip, name] = rules
        return name

    def entries(self, map_: str, key: str, endpoints: Iterable[Endpoint], bits: int) -> None:
        for i, e in enumerate(endpoints):
            self.elements[self.ip, map_, f"{key} . {bits | i}"] = f"{e.ip} . {e.port}"

    def spread(self, map_: str, key: str, endpoints: tuple[Endpoint, ...], bits: int) -> str:
        """The chain that picks one of these at random for packets found under `key`; their entries are added."""
        self.entries(map_, key, endpoints, bits)
        pick = "pick" if map_ == "endpoints" else "nppick"
        n = len(endpoints)
        letters = ("n" if pick == "nppick" else "") + ("x" if bits & MASQUERADE else "") + ("l" if bits & LOCAL else "")
        offset = f" offset {bits}" if bits else ""
        return self.count_chain(f"{letters}mod-{n}", f"meta mark set numgen random mod {n}{offset}", f"goto {pick}")

    def sticky(self, endpoints: tuple[Endpoint, ...], local: bool) -> str:
        """The chain that sends a client where it was sent before, else anywhere; one set of clients an endpoint."""
        base = f"{'l' if local else 'c'}{self.identity}"
        seen, vmap = [], []
        for i, e in enumerate(endpoints):
            tag = _hash(f"{self.identity}/{e.ip}/{e.port}")
            self.sets[self.ip, f"clients-{tag}"] = (f"type {'ipv6_addr' if self.ip == 'ip6' else 'ipv4_addr'}; flags dynamic,timeout; "
                                                    f"timeout {self.affinity_s}s;")
            where = f"[{e.ip}]:{e.port}" if self.ip == "ip6" else f"{e.ip}:{e.port}"
            self.chains[self.ip, f"to-{tag}"] = (f"update @clients-{tag} {{ {self.ip} saddr }}",
                                                 f"meta l4proto {self.protocol} dnat to {where}")
            seen.append(f"{self.ip} saddr @clients-{tag} goto to-{tag}")
            vmap.append(f"{i} : goto to-{tag}")
        self.chains[self.ip, f"sticky-{base}"] = (*seen, f"numgen random mod {len(endpoints)} vmap {{ {', '.join(vmap)} }}")
        return f"sticky-{base}"

    def inside(self, key: str, endpoints: tuple[Endpoint, ...], local: bool) -> str:
        """Chain for the cluster IP."""
        return self.sticky(endpoints, local) if self.affinity_s else self.spread("endpoints", key, endpoints, LOCAL if local else 0)

    def outside(self, map_: str, key: str, is_local: bool) -> str:
        """Chain for node ports, load balancer and external addresses.

        Cluster policy: any endpoint, masqueraded since it may be on another node. Local: pods and this node itself get any
        endpoint (as if the traffic had gone out and come back), everybody else those of this node, the source kept.
        """
        cluster, local = self.chosen.cluster, self.chosen.local
        if self.affinity_s:
            name = f"{'out' if is_local else 'any'}-{self.identity}"
            rules: list[str] = []
            mark = f"meta mark set {MASQUERADE}"
            if not is_local:
                rules = [mark, f"goto {self.sticky(cluster, False)}"]
            else:
                if cluster:
                    anywhere = self.sticky(cluster, False)
                    if self.pods:
                        rules.append(f"{self.ip} saddr {{ {self.pods} }} goto {anywhere}")
                    rules += [f"fib saddr type local {mark}", f"fib saddr type local goto {anywhere}"]
                if local:
                    rules.append(f"goto {self.sticky(local, True)}")
            self.chains[self.ip, name] = tuple(rules)
            return name
        if not is_local:
            return self.spread(map_, key, cluster, MASQUERADE)
        rules = []
        if cluster:
            plain = self.spread(map_, key, cluster, 0)
            if self.pods:
                rules.append(f"{self.ip} saddr {{ {self.pods} }} goto {plain}")
            rules.append(f"fib saddr type local goto {self.spread(map_, key, cluster, MASQUERADE)}")
        if local:
            rules.append(f"goto {self.spread(map_, key, local, LOCAL)}")
        letter = "n" if map_ == "npendpoints" else ""
        return self.count_chain(f"{letter}out-{len(cluster)}-{len(local)}", *rules)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def affinity_seconds(spec: dict[str, Any]) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    return int(((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds") or 10800)


def addresses(service: Object, family: int) -> tuple[str, list[str], list[str]]:
    """(cluster IP or "", external IPs, load balancer VIPs) of one family."""
    spec = service["spec"]
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    cluster = _of_family(spec.get("clusterIPs") or [spec.get("clusterIP")], family)
    vips = _of_family((i.get("ip") for i in ingress if i.get("ipMode", "VIP") != "Proxy"), family)
    return (cluster[0] if cluster else ""), _of_family(spec.get("externalIPs") or (), family), vips


def _of_family(texts: Iterable[str | None], family: int) -> list[str]:
    """Those that are addresses of the family, spelled as nft takes them (old objects may have leading zeros)."""
    return [str(a) for a in (parse_ip(t) for t in texts if t) if a and a.version == family]


def policies(spec: dict[str, Any], external: bool) -> tuple[bool, bool]:
    """(internal is Local, external is Local). `external`: it has external addresses."""
    can = spec.get("type") in ("NodePort", "LoadBalancer") or external
    return spec.get("internalTrafficPolicy") == "Local", can and spec.get("externalTrafficPolicy") == "Local"


def render_service(service: Object, slices: Iterable[Object], s: Settings) -> Part:
    """All that a service puts into the tables of this node."""
    if not is_proxied(service):
        return EMPTY
    slices = [x for x in slices if is_used(x)]
    parts = [_render_port(service, p, family, slices, s) for family in (4, 6) if addresses(service, family)[0]
             for p in service["spec"].get("ports") or ()]
    if len(parts) == 1:
        b = parts[0]
        return Part(b.elements, b.chains, b.sets, b.shared)
    elements: dict[Element, str] = {}
    chains: dict[Name, tuple[str, ...]] = {}
    sets: dict[Name, str] = {}
    shared: dict[Name, tuple[str, ...]] = {}
    for b in parts:
        elements.update(b.elements)
        chains.update(b.chains)
        sets.update(b.sets)
        shared.update(b.shared)
    return Part(elements, chains, sets, shared)


def _render_port(service: Object, port: dict[str, Any], family: int, slices: list[Object], s: Settings) -> _Builder:
    spec = service["spec"]
    cluster_ip, external, vips = addresses(service, family)
    node_port = port.get("nodePort") or 0
    reachable = bool(node_port or external or vips)
    local_in, local_out = policies(spec, bool(external))
    endpoints = collect(slices, port, family, s.node.name)
    chosen = choose(endpoints, s.node, not local_in or reachable, local_in or (local_out and reachable))
    protocol = (port.get("protocol") or "TCP").lower()
    meta = service["metadata"]
    b = _Builder(table_of(family), protocol, _hash(f"{meta.get('namespace')}/{meta['name']}/{port.get('name') or ''}/{protocol}/{family}"),
                 chosen, affinity_seconds(spec), ", ".join(c for c in s.pod_cidrs if family_of(c) == family))
    ip, number = b.ip, port["port"]

    def key(address: str) -> str:
        return f"{address} . {protocol} . {number}"

    b.elements[ip, "cluster-ips", cluster_ip] = ""
    used_in = chosen.local if local_in else chosen.cluster
    if used_in:
        b.elements[ip, "services", key(cluster_ip)] = f"goto {b.inside(key(cluster_ip), used_in, local_in)}"
    else:
        b.elements[ip, "refused", key(cluster_ip)] = "drop" if chosen.anywhere else "goto refuse"
    used_out = chosen.local if local_out else chosen.cluster
    refusal = "drop" if chosen.anywhere else "goto refuse"
    for address in dict.fromkeys((*external, *vips)):
        if chosen.anywhere:
            b.elements[ip, "services", key(address)] = f"goto {b.outside('endpoints', key(address), local_out)}"
        if not used_out:
            b.elements[ip, "refused", key(address)] = refusal
    if node_port:
        where = f"{protocol} . {node_port}"
        if chosen.anywhere:
            b.elements[ip, "nodeports", where] = f"goto {b.outside('npendpoints', where, local_out)}"
        if not used_out:
            b.elements[ip, "nprefused", where] = refusal
    _source_ranges(b, spec, vips, key, s, family)
    for e in dict.fromkeys((*chosen.cluster, *chosen.local)):
        if e.local:
            b.elements[ip, "hairpin", f"{e.ip} . {e.ip}"] = ""
    return b


def _source_ranges(b: _Builder, spec: dict[str, Any], vips: list[str], key: Any, s: Settings, family: int) -> None:
    """loadBalancerSourceRanges: only the load balancer's addresses are guarded, not node ports or cluster IPs."""
    parsed = [parse_cidr(r.strip()) for r in spec.get("loadBalancerSourceRanges") or ()]
    nets = [p[1] for p in parsed if p and p[1].version == family]
    if not vips or not nets or any(n.prefixlen == 0 for n in nets):
        return
    allowed = [str(n) for n in ipaddress.collapse_addresses(nets)]  # type: ignore[type-var]
    if any(family_of(a) == family and ipaddress.ip_address(a) in n for a in s.node.addresses for n in nets):
        # a node that asks for a VIP of its own has that as its source
        allowed += [v for v in vips if not any(ipaddress.ip_address(v) in n for n in nets)]
    name = f"from-{b.identity}"
    b.chains[b.ip, name] = (f"{b.ip} saddr != {{ {', '.join(allowed)} }} drop",)
    for v in vips:
        b.elements[b.ip, "firewall", key(v)] = f"goto {name}"


def owner(service: Object) -> str:
    """The name a service's part goes by."""
    return f"{service['metadata'].get('namespace') or ''}/{service['metadata']['name']}"


def slice_owner(slice_: Object) -> str:
    return f"{slice_['metadata'].get('namespace') or ''}/{(slice_['metadata'].get('labels') or {}).get(SERVICE_LABEL) or ''}"
