"""Fabric: the bridge that joins the node units of a cluster, in the machine's own network namespace.

One bridge, one subnet and one range of pod addresses per cluster, so several clusters run side by side. The machine has the subnet's first address (the API
server and the registry are reached there) and routes to every node's podCIDR. Pure L2 between nodes: the machine's ip_forward
is never touched. Where it is on already, pods also get out, masqueraded.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SUBNETS = tuple(f"172.30.{i}.0/24" for i in range(256))
POD_CIDR = "10.244.0.0/16"             # the default; another cluster on the machine gets the next free one
POD_CIDRS = (POD_CIDR, *(f"10.{i}.0.0/16" for i in (*range(245, 255), *range(128, 244))))
FIRST_NODE = 11                        # nodes get .11, .12, …
MTU = 1500
ROUTE_PROTOCOL = 75                    # marks our routes in the machine's table (rtnetlink: values from 64 up are free for programs)


@dataclass(frozen=True, slots=True)
class Fabric:
    cluster: str
    bridge: str
    subnet: str
    pod_cidr: str = ""                 # as asked for, unless that was the default and another cluster here has it
    mtu: int = MTU

    @property
    def gateway(self) -> str:
        return str(ipaddress.ip_network(self.subnet)[1])

    @property
    def prefix(self) -> int:
        return ipaddress.ip_network(self.subnet).prefixlen

    def address(self, index: int) -> str:
        return str(ipaddress.ip_network(self.subnet)[FIRST_NODE + index])


def cluster_id(home: Path | str) -> str:
    """Five letters that name a cluster on this machine, from its data directory."""
    return hashlib.sha256(str(Path(home).resolve()).encode()).hexdigest()[:5]


def bridge_name(cluster: str) -> str:
    return f"kn-{cluster}"[:15]


def veth_name(cluster: str, index: int) -> str:
    return f"kn-{cluster}-{index}"[:15]


def pick_subnet(taken: Iterable[str]) -> str:
    """The first subnet that overlaps none of these networks. Raises LookupError."""
    used = [ipaddress.ip_network(t, strict=False) for t in taken]
    for s in SUBNETS:
        net = ipaddress.ip_network(s)
        if not any(u.version == 4 and u.prefixlen and net.overlaps(u) for u in used):
            return s
    raise LookupError("no free subnet in 172.30.0.0/16 for the nodes' bridge")


def pick_pod_cidr(wanted: str, taken: Iterable[str]) -> str:
    """The pods' addresses: `wanted`, or if that is the default and in use here, the next free range. Raises LookupError."""
    if wanted != POD_CIDR:
        return wanted
    used = list(taken)
    for c in POD_CIDRS:
        if not _overlaps(c, used):
            return c
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


def route_changes(want: Mapping[str, str], have: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(to set, to delete) that turn one table into the other."""
    return {d: v for d, v in want.items() if have.get(d) != v}, [d for d in have if d not in want]


# ---- the shell: netlink ------------------------------------------------------------------------------------------------------------------

def ensure(cluster: str, saved: Path, pod_cidr: str = "", service_cidr: str = "") -> Fabric:
    """The cluster's bridge, made if it is not there. `saved` remembers its addresses between runs. Blocking; needs CAP_NET_ADMIN."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    bridge = bridge_name(cluster)
    with IPRoute() as ip:
        found = ip.link_lookup(ifname=bridge)
        before: dict[str, str] = {}
        if saved.exists():
            with contextlib.suppress(ValueError):
                before = json.loads(saved.read_text())
        taken = _networks(ip, skip=found[0] if found else 0)
        subnet = before.get("subnet") or ""
        if not subnet or _overlaps(subnet, taken):
            subnet = pick_subnet(taken)
        pods = before.get("pod_cidr") or ""                    # nodes have their share of it already: it stays
        if not pods or (pod_cidr and pod_cidr not in (POD_CIDR, pods)):
            pods = pick_pod_cidr(pod_cidr or POD_CIDR, taken)
        forwards = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
        fabric = Fabric(cluster, bridge, subnet, pods, _way_out_mtu(ip) if forwards else MTU)
        if not found:
            ip.link("add", ifname=bridge, kind="bridge", br_forward_delay=0)
            found = ip.link_lookup(ifname=bridge)
        ip.addr("replace", index=found[0], address=fabric.gateway, prefixlen=fabric.prefix)
        ip.link("set", index=found[0], state="up", mtu=fabric.mtu)
        for c in pods.split(","):                              # shows other clusters that it is taken; no pod address leaves by eth0
            with contextlib.suppress(NetlinkError):
                ip.route("add", dst=c, oif=found[0], proto=ROUTE_PROTOCOL, scope=253)
    saved.parent.mkdir(parents=True, exist_ok=True)
    saved.write_text(json.dumps(asdict(fabric)))
    if forwards:
        _masquerade(fabric, fabric.pod_cidr, service_cidr)
    return fabric


def _networks(ip: Any, skip: int) -> list[str]:
    """Every network that has an address or a route here, but for one interface's."""
    out = []
    for a in ip.get_addr(family=2):
        if a["index"] != skip:
            out.append(f"{a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}")
    for r in ip.get_routes(family=2):
        if r.get_attr("RTA_DST") and r.get_attr("RTA_OIF") != skip:
            out.append(f"{r.get_attr('RTA_DST')}/{r['dst_len']}")
    return out


def _overlaps(subnet: str, taken: Iterable[str]) -> bool:
    net = ipaddress.ip_network(subnet)
    return any(net.overlaps(ipaddress.ip_network(t, strict=False)) for t in taken if not t.endswith("/0"))


def _way_out_mtu(ip: Any) -> int:
    """The MTU of the default route's interface: packets that leave must fit."""
    for r in ip.get_default_routes(family=2):
        for link in ip.get_links(r.get_attr("RTA_OIF")):
            return min(MTU, int(link.get_attr("IFLA_MTU")))
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
    from pyroute2 import IPRoute

    name = veth_name(f.cluster, index)
    with IPRoute() as ip:
        for old in ip.link_lookup(ifname=name):
            ip.link("del", index=old)
        ip.link("add", ifname=name, kind="veth", mtu=f.mtu, peer={"ifname": "eth0", "net_ns_pid": pid})
        link = ip.link_lookup(ifname=name)[0]
        ip.link("set", index=link, master=ip.link_lookup(ifname=f.bridge)[0], state="up")


def sync_routes(want: Mapping[str, str], within: str = "") -> tuple[int, int]:
    """Makes our routes (those of ROUTE_PROTOCOL) in this thread's network namespace exactly these; (set, deleted).

    `within`: only routes by way of this subnet are ours: in the machine's namespace other clusters have theirs. A destination
    somebody else has a route for is left to them.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    ours = ipaddress.ip_network(within) if within else None
    with IPRoute() as ip:
        have: dict[str, str] = {}
        for family in (2, 10):
            for r in ip.get_routes(family=family, proto=ROUTE_PROTOCOL):
                via = r.get_attr("RTA_GATEWAY")
                if r.get_attr("RTA_DST") and via and (not ours or ipaddress.ip_address(via) in ours):
                    have[f"{r.get_attr('RTA_DST')}/{r['dst_len']}"] = r.get_attr("RTA_GATEWAY")
        to_set, to_delete = route_changes(want, have)
        for dst in to_delete:
            with contextlib.suppress(NetlinkError):
                ip.route("del", dst=dst, gateway=have[dst], proto=ROUTE_PROTOCOL)
        done = 0
        for dst, via in to_set.items():
            with contextlib.suppress(NetlinkError):
                if dst in have:
                    ip.route("del", dst=dst, gateway=have[dst], proto=ROUTE_PROTOCOL)
                ip.route("add", dst=dst, gateway=via, proto=ROUTE_PROTOCOL)
                done += 1
        return done, len(to_delete)


def remove(cluster: str) -> None:
    """Takes the bridge, its veths (hence its routes) and the nft table away; harmless if there are none."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        prefix = bridge_name(cluster)
        for link in ip.get_links():
            name = link.get_attr("IFLA_IFNAME")
            if name == prefix or name.startswith(prefix + "-"):
                with contextlib.suppress(Exception):           # the other end of a veth may be gone by now
                    ip.link("del", index=link["index"])
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["nft", "delete", "table", "ip", f"kubern-{cluster}"], capture_output=True, check=False)
