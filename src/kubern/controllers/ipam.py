"""Node IPAM: every node gets a range of the cluster's pod network, of each family one. Upstream: pkg/controller/nodeipam (RangeAllocator)."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from kubern.controllers.context import Context
from kubern.model.addresses import Network, networks
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Emit, Patch
from kubern.model.object import Object, name, uid
from kubern.model.view import View


def _alive(node: Object) -> bool:
    """Has a kubelet spoken for it? A Node that is only an object needs no range."""
    return bool(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion"))


@lru_cache(maxsize=8192)
def _slots(text: str, network: Network, size: int) -> range:
    """Which ranges of the network, by number, these addresses take up."""
    try:
        other = ipaddress.ip_network(text)
    except ValueError:
        return range(0)
    if other.version != network.version or not other.overlaps(network):  # type: ignore[arg-type]
        return range(0)
    first = max(0, int(other.network_address) - int(network.network_address)) // size
    return range(first, first + max(1, other.num_addresses // size))


def _free(network: Network, bits: int, view: View) -> str | None:
    """The first range of so many prefix bits no node has."""
    size = 1 << (network.max_prefixlen - bits)
    taken: set[int] = set()
    for n in view.list("nodes"):
        for text in (n.get("spec") or {}).get("podCIDRs") or ():
            taken.update(_slots(text, network, size))
    free = next((i for i in range(network.num_addresses // size) if i not in taken), None)
    return None if free is None else f"{type(network.network_address)(int(network.network_address) + free * size)}/{bits}"


def controller(context: Context) -> Controller:
    """One worker: two nodes never take the same range, because the mirror has seen the first when the second is looked at."""
    ranges = [(n, context.node_cidr_bits if n.version == 4 else context.node_cidr_bits6) for n in networks(context.pod_cidr)]

    def reconcile(node: Object, view: View, now: float) -> Steps:
        if (node.get("spec") or {}).get("podCIDR") or not _alive(node):
            return
        cidrs = [_free(network, bits, view) for network, bits in ranges]
        if None in cidrs:
            ref = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name(node), "uid": uid(node)}}
            yield Emit(ref, "Normal", "CIDRNotAvailable", f"Node {name(node)} status is now: CIDRNotAvailable")
            return
        yield Patch("v1", "Node", "", name(node), {"spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}, "strategic", ignore_missing=True)

    return Controller("node-controller", "nodes", reconcile, workers=1, component="cidrAllocator",
                      changed=lambda old, new: not (new.get("spec") or {}).get("podCIDR"))
