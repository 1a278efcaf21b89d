"""Node IPAM: every node gets a range of the cluster's pod network, of each family one. Upstream: pkg/controller/nodeipam (RangeAllocator)."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from kubern.controllers.context import Context
from kubern.model.addresses import Network, networks
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Emit, Failed, Patch
from kubern.model.object import Key, Object, name, uid
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


class _Ranges:
    """The ranges of one network and who has them, kept as nodes change: looking through all nodes for each would cost their square."""

    def __init__(self, network: Network, bits: int) -> None:
        self.network, self.bits, self.size = network, bits, 1 << (network.max_prefixlen - bits)
        self.taken: Counter[int] = Counter()           # number of a range -> nodes that have it, or part of it
        self.first = 0                                 # all before it are taken

    def count(self, cidrs: Iterable[str], by: int) -> None:
        for text in cidrs:
            for i in _slots(text, self.network, self.size):
                self.taken[i] += by
                if not self.taken[i]:
                    del self.taken[i]
                    self.first = min(self.first, i)

    def free(self) -> str | None:
        """The first range no node has."""
        most = self.network.num_addresses // self.size
        while self.first < most and self.first in self.taken:
            self.first += 1
        if self.first >= most:
            return None
        return f"{type(self.network.network_address)(int(self.network.network_address) + self.first * self.size)}/{self.bits}"


def _cidrs(node: Object) -> tuple[str, ...]:
    return tuple((node.get("spec") or {}).get("podCIDRs") or ())


def controller(context: Context) -> Controller:
    """One worker, and a range counts as taken when it is given: two nodes never take the same one."""
    ranges = [_Ranges(n, context.node_cidr_bits if n.version == 4 else context.node_cidr_bits6) for n in networks(context.pod_cidr)]
    held: dict[str, tuple[str, ...]] = {}
    started = False

    def hold(node: str, cidrs: tuple[str, ...]) -> None:
        before = held.pop(node, ())
        if cidrs:
            held[node] = cidrs
        if cidrs != before:
            for r in ranges:
                r.count(cidrs, 1)
                r.count(before, -1)

    def changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        if new is not None and (_cidrs(new) or old is None or _cidrs(old)):       # an older copy does not take away what was just given
            hold(name(new), _cidrs(new))
        elif new is None and old is not None:
            hold(name(old), ())
        return ()

    def reconcile(node: Object, view: View, now: float) -> Steps:
        nonlocal started
        if not started:
            started = True
            for n in view.list("nodes"):
                hold(name(n), _cidrs(n))
        if (node.get("spec") or {}).get("podCIDR") or not _alive(node):
            return
        cidrs = tuple(c for r in ranges if (c := r.free()))
        if len(cidrs) < len(ranges):
            ref = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name(node), "uid": uid(node)}}
            yield Emit(ref, "Normal", "CIDRNotAvailable", f"Node {name(node)} status is now: CIDRNotAvailable")
            return
        hold(name(node), cidrs)
        answer = yield Patch("v1", "Node", "", name(node), {"spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)}}, "strategic",
                             ignore_missing=True)
        if answer is None or isinstance(answer, Failed):
            hold(name(node), ())

    return Controller("node-controller", "nodes", reconcile, workers=1, component="cidrAllocator", triggers=(Trigger("nodes", changed),),
                      changed=lambda old, new: not (new.get("spec") or {}).get("podCIDR"))
