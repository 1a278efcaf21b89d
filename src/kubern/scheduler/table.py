"""NodeTable: every node as a row of arrays, and incremental counts of the pods on them.

One slot a node; arrays grow by doubling and are read up to `size`. A resource is a row of `allocatable` and `used`, a node label that
somebody selects by is a column of interned value ids, a set of pods that somebody counts is an array of counts a node. So a filter
or a score is a few numpy operations over all nodes, and placing a pod touches one slot.

Not thread-safe, no I/O. Units: cpu in milli, everything else in its own unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubern.model import quantity
from kubern.model.object import Object, meta
from kubern.scheduler.pod import PodInfo, PodSet, Term

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
CPU, MEMORY, STORAGE, PODS = range(4)
NONE = -1                       # value id of a label that is absent
TOUCHED_MAX = 2000
BELOW_MAX = 32                  # priorities whose lesser pods are summed up
COUNTERS_MAX = 4000             # more sets than this and the counts start again from nothing


class Counter:
    """How many pods of a set each node has; or, for `carried`, how many pods that carry a term. `sums`: the same by the domains of a label."""

    __slots__ = ("counts", "sums", "total")

    def __init__(self, capacity: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self.total = 0
        self.sums: dict[str, tuple[Domains, NDArray[np.int64]]] = {}

    def bump(self, slot: int, sign: int) -> None:
        self.counts[slot] += sign
        self.total += sign
        for d, sums in self.sums.values():
            if slot < len(d.codes):                  # else they are of fewer nodes than there are: worked out anew when asked for
                sums[d.codes[slot]] += sign


@dataclass(frozen=True, slots=True, eq=False)
class Domains:
    """A label's values over the nodes: `codes` 0..number-1, `number` where the label is absent. `single`: no two nodes share a value."""

    codes: NDArray[np.int64]
    have: Mask
    everywhere: bool
    number: int
    single: bool

    def sums(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts by value, and 0 for nodes without the label."""
        out = np.bincount(self.codes, weights=counts, minlength=self.number + 1).astype(np.int64)
        out[self.number] = 0
        return out

    def within(self, nodes: Mask) -> NDArray[np.int64]:
        """The values that some of these nodes have."""
        if self.single:
            return self.codes[nodes & self.have]
        return np.nonzero(np.bincount(self.codes[nodes], minlength=self.number + 1)[:self.number])[0]


class NodeTable:
    """Owns the arrays. `version` changes with every node."""

    def __init__(self, capacity: int = 64) -> None:
        self.capacity, self.size, self.count = capacity, 0, 0
        self.names: list[str] = []
        self.slots: dict[str, int] = {}
        self.free: list[int] = []
        self.nodes: list[Object | None] = []
        self.pods: list[dict[tuple[str, str], PodInfo]] = []
        self.live: Mask = np.zeros(capacity, bool)
        self.unschedulable: Mask = np.zeros(capacity, bool)
        self.resources: dict[str, int] = {"cpu": CPU, "memory": MEMORY, "ephemeral-storage": STORAGE, "pods": PODS}
        self.allocatable: Ints = np.zeros((4, capacity), np.int64)
        self.used: Ints = np.zeros((4, capacity), np.int64)
        self.nonzero: Ints = np.zeros((2, capacity), np.int64)
        self.values: dict[str, int] = {}
        self.value_names: list[str] = []
        self.columns: dict[str, NDArray[np.int64]] = {}
        self.taint_sets: dict[tuple[tuple[str, str, str], ...], int] = {(): 0}
        self.taints: NDArray[np.int64] = np.zeros(capacity, np.int64)
        self.ports: list[set[tuple[str, str, int]]] = []
        self.images: dict[str, dict[int, int]] = {}                # image name -> {slot: size in bytes}
        self.namespaces: dict[str, Mapping[str, str]] = {}        # name -> labels
        self.placed: dict[tuple[str, str], PodInfo] = {}
        self.version = 0
        self.touches, self.touched = 0, list[int]()               # how often a pod came or went, and the slots of the newest times
        self.stamps: list[int] = []                               # by slot, when anything there last changed
        self._stamp = 0
        self._below: dict[int, Ints] = {}                         # priority -> what pods of a lower one use, as `used`
        self.masks: dict[Any, tuple[int, Any]] = {}               # what plugins remember of nodes, by their key, for one version
        # counters of pods in a set (by PodSet.sig), of pods carrying a term (by kind and Term.sig), and match results by label signature
        self._counters: dict[str, tuple[PodSet, Counter]] = {}
        self.carried: dict[str, dict[str, tuple[Term, Counter]]] = {"anti": {}, "affinity": {}, "preferred": {}, "anti_preferred": {}}
        self._matches: dict[tuple[str, tuple[Any, ...]], bool] = {}

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        old, self.capacity = self.capacity, self.capacity * 2
        pad = self.capacity - old
        for name in ("live", "unschedulable", "taints"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(pad, getattr(self, name).dtype)]))
        for name in ("allocatable", "used", "nonzero"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros((getattr(self, name).shape[0], pad), np.int64)], axis=1))
        for key, column in self.columns.items():
            self.columns[key] = np.concatenate([column, np.full(pad, NONE, np.int64)])
        self._below.clear()
        for c in self._all_counters():
            c.counts = np.concatenate([c.counts, np.zeros(pad, np.int64)])

    def _all_counters(self) -> Iterator[Counter]:
        yield from (c for _, c in self._counters.values())
        for kind in self.carried.values():
            yield from (c for _, c in kind.values())

    def resource_row(self, name: str) -> int:
        """The row of a resource, made when it is first heard of."""
        row = self.resources.get(name)
        if row is None:
            row = self.resources[name] = len(self.resources)
            extra = np.zeros((1, self.capacity), np.int64)
            self.allocatable = np.concatenate([self.allocatable, extra])
            self.used = np.concatenate([self.used, extra.copy()])
            self._below.clear()
        return row

    def value_id(self, text: str) -> int:
        found = self.values.get(text)
        if found is None:
            found = self.values[text] = len(self.value_names)
            self.value_names.append(text)
        return found

    def column(self, key: str) -> NDArray[np.int64]:
        """The value ids of a label over all slots (NONE where absent), up to `size`; tracked from the first call on."""
        col = self.columns.get(key)
        if col is None:
            col = self.columns[key] = np.full(self.capacity, NONE, np.int64)
            for slot, node in enumerate(self.nodes):
                if node is not None:
                    v = (meta(node).get("labels") or {}).get(key)
                    if v is not None:
                        col[slot] = self.value_id(v)
        return col[:self.size]

    def set_node(self, node: Object) -> None:
        """Add a node or take its new state."""
        name = meta(node).get("name") or ""
        slot = self.slots.get(name, -1)
        self.version += 1
        if slot < 0:
            if self.free:
                slot = self.free.pop()
            else:
                if self.size == self.capacity:
                    self._grow()
                slot, self.size = self.size, self.size + 1
                self.names.append("")
                self.nodes.append(None)
                self.stamps.append(0)
                self.pods.append({})
                self.ports.append(set())
            self.slots[name], self.names[slot], self.live[slot] = slot, name, True
            self.count += 1
        self.stamp(slot)
        self._forget_images(slot)
        self.nodes[slot] = node
        spec, status = node.get("spec") or {}, node.get("status") or {}
        self.unschedulable[slot] = bool(spec.get("unschedulable"))
        taints = tuple((t.get("key") or "", t.get("value") or "", t.get("effect") or "") for t in spec.get("taints") or ())
        self.taints[slot] = self.taint_sets.setdefault(taints, len(self.taint_sets))
        self.allocatable[:, slot] = 0
        for r, v in (status.get("allocatable") or {}).items():
            try:
                row = self.resource_row(r)                   # may grow the arrays: before they are looked up
                self.allocatable[row, slot] = quantity.milli(v) if r == "cpu" else quantity.value(v)
            except (ValueError, OverflowError):
                continue
        labels = meta(node).get("labels") or {}
        for key, col in self.columns.items():
            v = labels.get(key)
            col[slot] = NONE if v is None else self.value_id(v)
        for image in status.get("images") or ():
            for n in image.get("names") or ():
                self.images.setdefault(n, {})[slot] = int(image.get("sizeBytes") or 0)

    def _forget_images(self, slot: int) -> None:
        old = self.nodes[slot]
        for image in ((old or {}).get("status") or {}).get("images") or ():
            for n in image.get("names") or ():
                if n in self.images:
                    self.images[n].pop(slot, None)

    def remove_node(self, name: str) -> None:
        """Take a node out; its pods stay remembered by the caller's mirror, not here."""
        slot = self.slots.pop(name, -1)
        if slot < 0:
            return
        for p in list(self.pods[slot].values()):
            self.remove_pod(p)
        self._forget_images(slot)
        self.version += 1
        self.count -= 1
        self.nodes[slot], self.names[slot], self.live[slot] = None, "", False
        for col in self.columns.values():
            col[slot] = NONE
        self.free.append(slot)

    # --- pods -------------------------------------------------------------------------------------------------------

    def add_pod(self, p: PodInfo, node: str) -> bool:
        """Count a pod on a node; False if the node is unknown."""
        slot = self.slots.get(node, -1)
        if slot < 0:
            return False
        p.slot = slot
        self.pods[slot][p.key] = p
        self.placed[p.key] = p
        self._count(p, slot, 1)
        self.ports[slot].update(p.ports)
        return True

    def remove_pod(self, p: PodInfo) -> None:
        slot = p.slot
        if slot < 0 or self.pods[slot].pop(p.key, None) is None:
            return
        self.placed.pop(p.key, None)
        self._count(p, slot, -1)
        p.slot = -1
        if p.ports:
            self.ports[slot] = {port for q in self.pods[slot].values() for port in q.ports}

    def relabel(self, p: PodInfo, pod: Object) -> None:
        """A placed pod's labels changed and nothing else of it that counts here."""
        was = p.label_sig
        p.labels = meta(pod).get("labels") or {}
        p.label_sig = (p.namespace, *sorted(p.labels.items()))
        now = p.label_sig
        for pods, counter in self._counters.values():
            p.label_sig = was
            before = self.in_set(pods, p)
            p.label_sig = now
            if change := self.in_set(pods, p) - before:
                counter.bump(p.slot, change)
        self.stamp(p.slot)

    def _count(self, p: PodInfo, slot: int, sign: int) -> None:
        self.touches += 1
        self.touched.append(slot)
        self.stamp(slot)
        if len(self.touched) > TOUCHED_MAX:
            del self.touched[:TOUCHED_MAX // 2]
        for r, v in p.requests.items():
            row = self.resource_row(r)
            self.used[row, slot] += sign * v
        self.used[PODS, slot] += sign
        self.nonzero[0, slot] += sign * p.nonzero_cpu
        self.nonzero[1, slot] += sign * p.nonzero_memory
        for priority, sums in self._below.items():
            if p.priority < priority:
                self._sum(sums, p, slot, sign)
        for pods, counter in self._counters.values():
            if self.in_set(pods, p):
                counter.bump(slot, sign)
        if p.has_terms:
            for kind, terms in (("anti", p.anti_affinity), ("affinity", p.affinity), ("preferred", p.preferred),
                                ("anti_preferred", p.anti_preferred)):
                for t in terms:
                    entry = self.carried[kind].get(t.sig)
                    if entry is None:
                        entry = self.carried[kind][t.sig] = (t, Counter(self.capacity))
                    entry[1].bump(slot, sign)
                    if entry[1].total == 0:
                        del self.carried[kind][t.sig]

    def stamp(self, slot: int) -> None:
        """Notes that something about a node, its pods or who is promised room there is not what it was."""
        self._stamp += 1
        self.stamps[slot] = self._stamp

    def _sum(self, sums: Ints, p: PodInfo, slot: int, sign: int) -> None:
        for r, v in p.requests.items():
            sums[self.resources[r], slot] += sign * v
        sums[PODS, slot] += sign

    def below(self, priority: int) -> Ints:
        """What pods of a lower priority use on each node, as `used`; summed up once, then kept up to date."""
        sums = self._below.get(priority)
        if sums is None:
            if len(self._below) >= BELOW_MAX:
                del self._below[next(iter(self._below))]
            sums = self._below[priority] = np.zeros_like(self.used)
            for p in self.placed.values():
                if p.priority < priority:
                    self._sum(sums, p, p.slot, 1)
        return sums

    def in_set(self, pods: PodSet, p: PodInfo) -> bool:
        """Whether a pod belongs to a set; remembered by the pod's namespace and labels."""
        if p.deleting and pods.live_only:
            return False
        k = (pods.sig, p.label_sig)
        found = self._matches.get(k)
        if found is None:
            if len(self._matches) > 500_000:
                self._matches.clear()
            found = self._matches[k] = pods.matches(p.namespace, p.labels, self.namespaces)
        return found

    def counts(self, pods: PodSet) -> NDArray[np.int64]:
        """Pods of this set on each node, up to `size`."""
        return self.counter(pods).counts[:self.size]

    def counter(self, pods: PodSet) -> Counter:
        """Pods of this set, counted once, then kept up to date."""
        entry = self._counters.get(pods.sig)
        if entry is None:
            if len(self._counters) >= COUNTERS_MAX:
                self._counters.clear()
            counter = Counter(self.capacity)
            for p in self.placed.values():
                if self.in_set(pods, p):
                    counter.bump(p.slot, 1)
            entry = self._counters[pods.sig] = (pods, counter)
        return entry[1]

    def set_namespace(self, name: str, labels: Mapping[str, str] | None) -> None:
        """A namespace's labels changed (None: it is gone): sets with a namespace selector are counted anew."""
        if labels is None:
            self.namespaces.pop(name, None)
        elif self.namespaces.get(name) == labels:
            return
        else:
            self.namespaces[name] = labels
        if any(p.namespace_selector is not None for p, _ in self._counters.values()):
            self._counters = {s: e for s, e in self._counters.items() if e[0].namespace_selector is None}
        self._matches = {k: v for k, v in self._matches.items() if k[1][0] != name}

    # --- what plugins share -----------------------------------------------------------------------------------------

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """make()'s result, kept until a node changes."""
        found = self.masks.get(key)
        if found is not None and found[0] == self.version:
            return found[1]
        if len(self.masks) > 5000:
            self.masks.clear()
        value = make()
        self.masks[key] = (self.version, value)
        return value

    def domains(self, key: str) -> Domains:
        """How a label divides the nodes; kept until a node changes."""
        def make() -> Domains:
            col = self.column(key)
            have = col >= 0
            values, codes = np.unique(col[have], return_inverse=True)
            out = np.full(self.size, len(values), np.int64)
            out[have] = codes
            return Domains(out, have, bool(have.all()), len(values), len(values) == int(have.sum()))
        return self.remember(("domains", key), make)                           # type: ignore[no-any-return]

    def by_domain(self, key: str, counts: NDArray[np.int64], where: Mask | None = None) -> NDArray[np.int64]:
        """Sums of counts over nodes that share a label value (only those in `where`), given to every such node; 0 without the label."""
        d = self.domains(key)
        if d.single and where is None:
            return counts if d.everywhere else counts * d.have
        return d.sums(counts if where is None else counts * where)[d.codes]

    def around(self, key: str, counter: Counter) -> NDArray[np.int64]:
        """by_domain of a counter's counts, from sums that are kept up to date."""
        d = self.domains(key)
        if d.single:
            return self.by_domain(key, counter.counts[:self.size])
        entry = counter.sums.get(key)
        if entry is None or entry[0] is not d:
            entry = counter.sums[key] = (d, d.sums(counter.counts[:self.size]))
        out: NDArray[np.int64] = entry[1][d.codes]
        return out if d.everywhere else out * d.have

    def all(self) -> Mask:
        return self.live[:self.size]
