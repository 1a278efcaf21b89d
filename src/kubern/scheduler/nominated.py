"""Nominations: who is promised room on which node without being placed there: those that made it by preemption, or will be bound there soon. No I/O.

What is promised counts, for pods of the same or a lower priority, as if it were taken. In memory a promise holds from the decision on; what the API shows in
status.nominatedNodeName follows later. Upstream: backend/queue/nominator.go, RunFilterPluginsWithNominatedPods.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kubern.scheduler.pod import PodInfo
from kubern.scheduler.table import PODS, Ints, NodeTable

Key = tuple[str, str]


class Nominations:
    """One node a pod. Sums by priority are kept as the table's arrays are shaped, and made anew when a node comes or goes."""

    def __init__(self, table: NodeTable) -> None:
        self.table = table
        self.nodes: dict[Key, str] = {}
        self._pods: dict[str, dict[Key, PodInfo]] = {}               # by node
        self._sums: dict[int, Ints] = {}                             # priority -> requests, a row a resource as in the table's `used`
        self._of: tuple[int, tuple[int, ...]] = (-1, ())             # what they are shaped after
        self._terms = 0                                              # how many of these pods care about other pods, or hold ports

    def __bool__(self) -> bool:
        return bool(self.nodes)

    def node_of(self, key: Key) -> str:
        return self.nodes.get(key, "")

    def on(self, node: str) -> Iterable[PodInfo]:
        return tuple(self._pods.get(node, {}).values())

    def set(self, p: PodInfo, node: str) -> None:
        self.drop(p.key)
        for r in p.requests:
            self.table.resource_row(r)                               # may change the arrays' shape: before anything is added up
        self.nodes[p.key] = node
        self._pods.setdefault(node, {})[p.key] = p
        self._count(p, node, 1)

    def drop(self, key: Key) -> str:
        """The node it was promised, "" if none."""
        node = self.nodes.pop(key, "")
        if node:
            there = self._pods[node]
            p = there.pop(key)
            if not there:
                del self._pods[node]
            self._count(p, node, -1)
        return node

    def _count(self, p: PodInfo, node: str, sign: int) -> None:
        self._terms += sign * bool(p.anti_affinity or p.ports)
        slot = self.table.slots.get(node, -1)
        if slot < 0:
            return
        self.table.stamp(slot)
        if self._of == self._shape():
            self._add(p, slot, sign)

    def _shape(self) -> tuple[int, tuple[int, ...]]:
        return self.table.version, self.table.used.shape

    def _add(self, p: PodInfo, slot: int, sign: int) -> None:
        sums = self._sums.get(p.priority)
        if sums is None:
            sums = self._sums[p.priority] = np.zeros_like(self.table.used)
        for r, v in p.requests.items():
            sums[self.table.resources[r], slot] += sign * v
        sums[PODS, slot] += sign

    def _current(self) -> dict[int, Ints]:
        if self._of != self._shape():
            self._of, self._sums = self._shape(), {}
            for node, there in self._pods.items():
                slot = self.table.slots.get(node, -1)
                for p in there.values() if slot >= 0 else ():
                    self._add(p, slot, 1)
        return self._sums

    def sums(self, p: PodInfo) -> Ints | None:
        """What others of at least this pod's priority are promised on each node; None where that is nothing. To be read only."""
        if not self.nodes:
            return None
        own = self.table.slots.get(self.nodes.get(p.key, ""), -1)
        found = [x for priority, x in self._current().items() if priority >= p.priority]
        if not found:
            return None
        if own < 0 and len(found) == 1:
            return found[0]
        total: Ints = found[0].copy() if len(found) == 1 else np.add.reduce(found)
        if own >= 0:
            me = self._pods[self.nodes[p.key]][p.key]
            if me.priority >= p.priority:
                for r, v in me.requests.items():
                    total[self.table.resources[r], own] -= v
                total[PODS, own] -= 1
        return total

    def meeting(self, p: PodInfo) -> list[tuple[int, list[PodInfo]]]:
        """Nodes where more than room is at stake between the pod and others of at least its priority: (slot, those others)."""
        if not self.nodes or not (self._terms or p.has_terms or p.spreads or p.ports or p.volumes):
            return []
        out = []
        for node, there in self._pods.items():
            slot = self.table.slots.get(node, -1)
            others = [q for q in there.values() if q.priority >= p.priority and q.key != p.key] if slot >= 0 else []
            if others:
                out.append((slot, others))
        return out
