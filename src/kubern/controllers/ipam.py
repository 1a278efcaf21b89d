"""Node IPAM: every node gets a range of the cluster's pod network. Upstream: pkg/controller/nodeipam (RangeAllocator)."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from kubern.controllers.context import Context
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Emit, Patch
from kubern.model.object import Object, name, uid
from kubern.model.view import View


def _alive(node: Object) -> bool:
    """Has a kubelet spoken for it? A Node that is only an object needs no range."""
    return bool(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion"))


@lru_cache(maxsize=8192)
def _slots(text: str, network: ipaddress.IPv4Network, size: int) -> range:
    """Which ranges of the network, by number, these addresses take up."""
    try:
        other = ipaddress.ip_network(text)
    except ValueError:
        return range(0)
    if not isinstance(other, ipaddress.IPv4Network) or not other.overlaps(network):
        return range(0)
    first = max(0, int(other.network_address) - int(network.network_address)) // size
    return range(first, first + max(1, other.num_addresses // size))


def controller(context: Context) -> Controller:
    """One worker: two nodes never take the same range, because the mirror has seen the first when the second is looked at."""
    network = ipaddress.ip_network(context.pod_cidr)
    assert isinstance(network, ipaddress.IPv4Network)
    size = 1 << (32 - context.node_cidr_bits)
    count = network.num_addresses // size

    def reconcile(node: Object, view: View, now: float) -> Steps:
        if (node.get("spec") or {}).get("podCIDR") or not _alive(node):
            return
        taken: set[int] = set()
        for n in view.list("nodes"):
            for text in (n.get("spec") or {}).get("podCIDRs") or ():
                taken.update(_slots(text, network, size))
        free = next((i for i in range(count) if i not in taken), None)
        if free is None:
            ref = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name(node), "uid": uid(node)}}
            yield Emit(ref, "Normal", "CIDRNotAvailable", f"Node {name(node)} status is now: CIDRNotAvailable")
            return
        cidr = f"{ipaddress.ip_address(int(network.network_address) + free * size)}/{context.node_cidr_bits}"
        yield Patch("v1", "Node", "", name(node), {"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}, "strategic", ignore_missing=True)

    return Controller("node-controller", "nodes", reconcile, workers=1, component="cidrAllocator",
                      changed=lambda old, new: not (new.get("spec") or {}).get("podCIDR"))
