"""Fabric: the bridge that joins the node units of a cluster, in the machine's own network namespace.

One bridge, one subnet and one range of pod addresses per cluster, so several clusters run side by side. The machine has the subnet's first address (the API
server and the registry are reached there) and routes to every node's podCIDR. Pure L2 between nodes: the machine's ip_forward
is never touched. Where it is on already, pods also get out, masqueraded. A dual-stack cluster has a second subnet, a unique local one (RFC 4193).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import logging
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SUBNETS = tuple(f"172.30.{i}.0/24" for i in range(256))
POD_CIDR = "10.244.0.0/16"             # the default; another cluster on the machine gets the next free one
POD_CIDRS = (POD_CIDR, *(f"10.{i}.0.0/16" for i in (*range(245, 255), *range(128, 244))))
FIRST_NODE = 11                        # nodes get .11, .12, …
LOAD_BALANCERS = 32                    # so many addresses at the end of the subnet are for load balancers
LOAD_BALANCERS_6 = 0xff00              # and from here on in the second one
MTU = 1500
LOCAL_PROTOCOL = 76                    # those of addresses that are announced (announce.py)
ROUTE_PROTOCOL = 75                    # marks our routes in the machine's table (rtnetlink: values from 64 up are free for programs)


@dataclass(frozen=True, slots=True)
class Fabric:
    cluster: str
    bridge: str
    subnet: str
    pod_cidr: str = ""                 # as asked for, unless that was the default and another cluster here has it
    mtu: int = MTU
    subnet6: str = ""                  # dual stack

    @property
    def gateway(self) -> str:
        return str(ipaddress.ip_network(self.subnet)[1])

    @property
    def gateway6(self) -> str:
        return str(ipaddress.ip_network(self.subnet6)[1]) if self.subnet6 else ""

    @property
    def prefix(self) -> int:
        return ipaddress.ip_network(self.subnet).prefixlen

    @property
    def subnets(self) -> tuple[str, ...]:
        return (self.subnet, self.subnet6) if self.subnet6 else (self.subnet,)

    @property
    def load_balancers(self) -> str:
        """The end of the subnet, and as many of the second one: addresses of Services of type LoadBalancer, unless others were asked for."""
        net = ipaddress.ip_network(self.subnet)
        pool = f"{net[-LOAD_BALANCERS]}-{net[-2]}"
        if self.subnet6:
            net6 = ipaddress.ip_network(self.subnet6)
            pool += f",{net6[LOAD_BALANCERS_6]}-{net6[LOAD_BALANCERS_6 + LOAD_BALANCERS - 1]}"
        return pool

    def address(self, index: int) -> str:
        return str(ipaddress.ip_network(self.subnet)[FIRST_NODE + index])

    def address6(self, index: int) -> str:
        """With the prefix length; "" where there is one family."""
        return f"{ipaddress.ip_network(self.subnet6)[FIRST_NODE + index]}/64" if self.subnet6 else ""


def cluster_id(home: Path | str) -> str:
    """Five letters that name a cluster on this machine, from its data directory."""
    return hashlib.sha256(str(Path(home).resolve()).encode()).hexdigest()[:5]


def bridge_name(cluster: str) -> str:
    return f"kn-{cluster}"[:15]


def veth_name(cluster: str, index: int) -> str:
    return f"kn-{cluster}-{index}"[:15]


def hardware_address(cluster: str, end: str) -> str:
    """Of the bridge, or of a node's interface: the same as long as the cluster lives. A bridge left to itself takes the least of its ports',
    another one whenever a node comes or goes, and the others would speak to the old one until they ask again, a minute later."""
    digits = hashlib.sha256(f"{cluster} {end}".encode()).hexdigest()
    return ":".join(("02", *(digits[i:i + 2] for i in range(0, 10, 2))))


def local_subnet(cluster: str) -> str:
    """The cluster's own /64 of unique local addresses: 40 bits made from its name."""
    digits = hashlib.sha256(cluster.encode()).hexdigest()[:10]
    return str(ipaddress.ip_network(f"fd{digits[:2]}:{digits[2:6]}:{digits[6:10]}::/64"))


def pick_subnet(taken: Iterable[str]) -> str:
    """The first subnet that overlaps none of these networks. Raises LookupError."""
    used = [ipaddress.ip_network(t, strict=False) for t in taken]
    for s in SUBNETS:
        net = ipaddress.ip_network(s)
        if not any(u.version == 4 and u.prefixlen and net.overlaps(u) for u in used):
            return s
    raise LookupError("no free subnet in 172.30.0.0/16 for the nodes' bridge")


def pick_pod_cidr(wanted: str, taken: Iterable[str]) -> str:
    """The pods' addresses: `wanted`, but where the default range of it is in use here, the next free one. Raises LookupError."""
    if POD_CIDR not in wanted.split(","):
        return wanted
    used = list(taken)
    for c in POD_CIDRS:
        if not _overlaps(c, used):
            return wanted.replace(POD_CIDR, c)
    raise LookupError("no free range of pod addresses in 10.0.0.0/8; choose one with --pod-cidr")


def node_routes(nodes: Iterable[Mapping[str, Any]], me: str) -> dict[str, str]:
    """podCIDR -> the InternalIP of its node, for all nodes but `me` (pass "" from the machine itself). Families are matched."""
    out: dict[str, str] = {}
    for n in nodes:
        if n["metadata"]["name"] == me:
            continue
        spec = n.get("spec") or {}
        addresses = [a["address"] for a in (n.get("status") or {}).get("addresses") or () if a.get("type") == "InternalIP"]
        for cidr in spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else []):
            via = next((a for a in addresses if (":" in a) == (":" in cidr)), None)
            if via:
                out[cidr] = via
    return out


def by_way_of(routes: Mapping[str, str], near: Iterable[str], otherwise: str) -> dict[str, str]:
    """Routes whose next hop is on none of the networks `near` lead by way of `otherwise`, who knows them; "" leaves them to the default route."""
    networks = [ipaddress.ip_network(n, strict=False) for n in near]

    def hop(via: str) -> str:
        return via if any(ipaddress.ip_address(via) in n for n in networks) else otherwise if (":" in otherwise) == (":" in via) else ""
    return {dst: hop(via) for dst, via in routes.items() if hop(via)}


def route_changes(want: Mapping[str, str], have: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(to set, to delete) that turn one table into the other."""
    return {d: v for d, v in want.items() if have.get(d) != v}, [d for d in have if d not in want]


# ---- the shell: iproute2 -----------------------------------------------------------------------------------------------------------------
# `ip` by exec: 3 ms a call, against 25 MB of memory in every process for a netlink library

def _into_units(route: Mapping[str, Any]) -> bool:
    """Whether a route of the machine leads into a fabric of units, of whichever cluster: the control plane there keeps it."""
    return str(route.get("dev") or "").startswith(bridge_name(""))


def show(*what: str) -> list[dict[str, Any]]:
    """`ip -json …`; [] where it has nothing to show."""
    done = subprocess.run(["ip", "-json", *what], capture_output=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []


def batch(lines: Iterable[str], force: bool = False) -> str:
    """Runs `ip` commands; `force` goes on after a failure. Returns what it complained of. Raises OSError without `force`."""
    text = "\n".join(lines)
    if not text:
        return ""
    done = subprocess.run(["ip", *(["-force"] if force else []), "-batch", "-"], input=text, text=True, capture_output=True, check=False)
    if done.returncode and not force:
        raise OSError(f"ip: {done.stderr.strip()}")
    return done.stderr


def ensure(cluster: str, saved: Path, pod_cidr: str = "", service_cidr: str = "") -> Fabric:
    """The cluster's bridge, made if it is not there. `saved` remembers its addresses between runs. Blocking; needs CAP_NET_ADMIN."""
    bridge = bridge_name(cluster)
    before: dict[str, str] = {}
    if saved.exists():
        with contextlib.suppress(ValueError):
            before = json.loads(saved.read_text())
    taken = _networks(skip=bridge)
    subnet = before.get("subnet") or ""
    if not subnet or _overlaps(subnet, taken):
        subnet = pick_subnet(taken)
    if have := before.get("pod_cidr") or "":                   # nodes have their share of it already: it stays
        pods = pod_cidr.replace(POD_CIDR, next((c for c in have.split(",") if ":" not in c), POD_CIDR)) if pod_cidr else have
    else:
        pods = pick_pod_cidr(pod_cidr or POD_CIDR, taken)
    forwards = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    subnet6 = local_subnet(cluster) if ":" in pods else ""
    fabric = Fabric(cluster, bridge, subnet, pods, _way_out_mtu() if forwards else MTU, subnet6)
    mac = hardware_address(cluster, "bridge")
    lines = [f"link set {bridge} address {mac}" if show("link", "show", bridge) else f"link add {bridge} address {mac} type bridge forward_delay 0"]
    lines += [f"addr replace {fabric.gateway}/{fabric.prefix} dev {bridge}", f"link set {bridge} mtu {fabric.mtu} up"]
    if subnet6:
        lines.append(f"addr replace {fabric.gateway6}/64 dev {bridge} nodad")
    batch(lines)
    # shows other clusters that the pods' range is taken; and no pod address leaves by the default route
    batch((f"route add {c} dev {bridge} proto {ROUTE_PROTOCOL}" for c in pods.split(",")), force=True)
    saved.parent.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps(asdict(fabric)))
    if forwards:
        _masquerade(fabric, fabric.pod_cidr, service_cidr)
    return fabric


def _networks(skip: str) -> list[str]:
    """Every network that has an address or a route here, but for one interface's."""
    out = [f"{a['local']}/{a['prefixlen']}" for link in show("-4", "addr", "show") if link.get("ifname") != skip
           for a in link.get("addr_info") or () if "local" in a]
    return out + [r["dst"] for r in show("-4", "route", "show") if r.get("dev") != skip and r["dst"] != "default"]


def _overlaps(subnet: str, taken: Iterable[str]) -> bool:
    net = ipaddress.ip_network(subnet)
    return any(net.overlaps(ipaddress.ip_network(t, strict=False)) for t in taken if not t.endswith("/0"))


def _way_out_mtu() -> int:
    """The MTU of the default route's interface: packets that leave must fit."""
    for r in show("-4", "route", "show", "default"):
        for link in show("link", "show", r["dev"]):
            return min(MTU, int(link["mtu"]))
    return MTU


def _masquerade(f: Fabric, pod_cidr: str, service_cidr: str) -> None:
    sources = ", ".join([f.subnet, *(c for c in pod_cidr.split(",") if c and ":" not in c)])
    services = ", ".join(c for c in service_cidr.split(",") if c and ":" not in c)
    guard = ""
    if services:                                           # a service address no proxy translated must not leave the machine
        guard = f' chain forward {{ type filter hook forward priority -10; ip daddr {{ {services} }} iifname "{f.bridge}" drop; }}'
    table = f"kubern-{f.cluster}"
    text = (f"table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n"
            " chain postrouting { type nat hook postrouting priority srcnat; "
            f'ip saddr {{ {sources} }} oifname != "{f.bridge}" masquerade; }}\n{guard}\n}}\n')
    subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, check=True)


def attach(f: Fabric, index: int, pid: int) -> None:
    """A veth pair from the bridge into the network namespace of this process, as its eth0."""
    name = veth_name(f.cluster, index)
    batch([f"link del {name}"], force=True)
    batch([f"link add {name} mtu {f.mtu} type veth peer name eth0 mtu {f.mtu} address {hardware_address(f.cluster, str(index))} netns {pid}",
           f"link set {name} master {f.bridge} up"])


def sync_routes(want: Mapping[str, str], within: Iterable[str] = ()) -> tuple[int, int]:
    """Makes our routes (those of ROUTE_PROTOCOL) in this process's network namespace exactly these; (set, deleted).

    `within`: only routes by way of or into these networks are ours: in the machine's namespace other clusters have theirs. Without it those into
    fabrics of units are not. A destination somebody else has a route for is left to them.
    """
    ours = [ipaddress.ip_network(n) for n in within]
    have: dict[str, str] = {}
    for family in ("-4", "-6"):
        for r in show(family, "route", "show", "proto", str(ROUTE_PROTOCOL)):
            via = r.get("gateway")
            if via and (not (ours or _into_units(r)) or any(ipaddress.ip_address(via) in n or ipaddress.ip_network(r["dst"])[0] in n for n in ours)):
                have[r["dst"]] = via
    to_set, to_delete = route_changes(want, have)
    lines = [f"route del {d} via {have[d]} proto {ROUTE_PROTOCOL}" for d in (*to_delete, *(d for d in to_set if d in have))]
    lines += [f"route add {d} via {v} proto {ROUTE_PROTOCOL}" for d, v in to_set.items()]
    complaints = batch(lines, force=True)
    if complaints:
        log.info("routes: %s", complaints.strip())
    return len(to_set), len(to_delete)


def remove_host(device: str) -> None:
    """Takes away what a node without a namespace of its own has made of the machine's network: the pods' bridge, routes, rules, addresses."""
    lines = ["link del cni0"]
    for family in ("-4", "-6"):
        lines += [f"route del {r['dst']} proto {ROUTE_PROTOCOL}" for r in show(family, "route", "show", "proto", str(ROUTE_PROTOCOL))
                  if not _into_units(r)]
    lines += [f"route del local {r['dst']} dev lo" for r in show("-4", "route", "show", "table", "local", "proto", str(LOCAL_PROTOCOL))]
    if device:
        lines += [f"neigh del proxy {n['dst']} dev {device}" for n in show("-6", "neigh", "show", "proxy", "dev", device)]
    batch(lines, force=True)
    with contextlib.suppress(FileNotFoundError):
        for table in ("ip kubern-proxy", "ip6 kubern-proxy", "inet kubern-policy"):
            subprocess.run(["nft", "delete", "table", *table.split()], capture_output=True, check=False)


def remove(cluster: str) -> None:
    """Takes the bridge, its veths (hence its routes) and the nft table away; harmless if there are none."""
    prefix = bridge_name(cluster)
    names = [str(link["ifname"]) for link in show("link", "show")]
    batch((f"link del {n}" for n in names if n == prefix or n.startswith(prefix + "-")), force=True)
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["nft", "delete", "table", "ip", f"kubern-{cluster}"], capture_output=True, check=False)
