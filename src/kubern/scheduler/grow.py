"""grow: which node group to make larger so that pods without a node get one. Pure; upstream's cluster-autoscaler FAQ, "How does scale-up work?".

A node that does not exist is a template in the table; the scheduler's own filters say what it would hold. Pods are packed onto such
templates first-fit decreasing, group by group, and an expander chooses among the groups that help.
The table is changed while looking and restored before returning. Not who makes nodes: kubern.autoscaler.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kubern.model.object import Object, clone, controller_of, meta
from kubern.scheduler.pick import Decision, Extra, feasible, pick
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.table import CPU, MEMORY, NodeTable

NEW_NODES_MAX = 1000                   # upstream's --max-nodes-per-scaleup
PODS_MAX = 1000                        # looked at in one scan, most important first; the others in later ones
EXPENDABLE_BELOW = -10                 # pods of less priority make no nodes and may be evicted without a thought
MAX_SIZE = "max node group size reached"
BACKOFF = "in backoff after failed scale-up"
ExtraFor = Callable[[PodInfo], Extra]
Reserve = Callable[[PodInfo, int], Callable[[], None]]     # takes the pod's devices on a slot; the answer gives them back


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that are alike and can be made more or fewer. `capacity` is what a node of it has, where no real one tells."""

    name: str
    min: int = 0
    max: int = 10
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    capacity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Size:
    """A group as it stands. `target` counts nodes that exist and those on their way; `upcoming` those that are not ready yet."""

    group: Group
    target: int
    upcoming: int = 0
    template: Object = field(default_factory=dict)      # a Node object as the next one will be
    backoff: bool = False


@dataclass(frozen=True, slots=True)
class Growth:
    """The verdict: one group and its new size (or none), whom that helps, and per other pod how many groups refused it for what."""

    group: str = ""
    size: int = 0
    now: int = 0
    max: int = 0
    helped: tuple[PodInfo, ...] = ()
    refused: tuple[tuple[PodInfo, Mapping[str, int]], ...] = ()
    others: tuple[str, ...] = ()           # groups whose nodes would do for the same pods

    @property
    def nodes(self) -> int:
        return self.size - self.now


def template_node(group: Group, name: str, like: Object | None = None, room: Mapping[str, str] | None = None) -> Object:
    """The Node object of a node of this group that does not exist: after one that does, or from the group's own words."""
    if like is not None:
        node = {"metadata": {"name": name, "labels": {**(meta(like).get("labels") or {}), **group.labels}},
                "spec": {"taints": _kept_taints((like.get("spec") or {}).get("taints"))}, "status": clone(like.get("status") or {})}
        node["status"].pop("conditions", None)
    else:
        capacity = {"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi", **(room or {}), **group.capacity}
        labels = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", **group.labels}
        node = {"metadata": {"name": name, "labels": labels}, "spec": {"taints": [dict(t) for t in group.taints]},
                "status": {"capacity": capacity, "allocatable": capacity}}
    node["metadata"]["labels"]["kubernetes.io/hostname"] = name
    return node


def _kept_taints(taints: Any) -> list[Any]:
    """Taints that come with the group, not those a node's condition or the autoscaler gave it."""
    return [t for t in taints or () if not str(t.get("key")).startswith("node.kubernetes.io/") and "ClusterAutoscaler" not in str(t.get("key"))]


def daemon_pods(daemon_sets: Iterable[Object]) -> list[PodInfo]:
    """One pod of every DaemonSet: a new node carries them before anything else."""
    out = []
    for d in daemon_sets:
        template = (d.get("spec") or {}).get("template") or {}
        m = meta(d)
        out.append(pod_info({"metadata": {**(template.get("metadata") or {}), "name": m.get("name"), "namespace": m.get("namespace")},
                             "spec": template.get("spec") or {}}))
    return out


@contextmanager
def imagined(t: NodeTable, reserve: Reserve | None = None) -> Iterator[_Imagined]:
    """Nodes and placements that are taken back at the end."""
    it = _Imagined(t, reserve)
    try:
        yield it
    finally:
        it.undo()


class _Imagined:
    """Owns what was put into a table for a thought."""

    def __init__(self, table: NodeTable, reserve: Reserve | None) -> None:
        self.table, self.reserve = table, reserve
        self.reserved: list[Callable[[], None]] = []
        self.pods: list[PodInfo] = []
        self.nodes: list[str] = []
        self._daemons = 0

    def add_node(self, template: Object, name: str, daemons: Iterable[PodInfo]) -> int:
        """The slot of a new node like the template, with the DaemonSets' pods that belong there on it."""
        m = template.get("metadata") or {}
        node = {**template, "metadata": {**m, "name": name, "labels": {**(m.get("labels") or {}), "kubernetes.io/hostname": name}}}
        self.table.set_node(node)
        self.nodes.append(name)
        slot = self.table.slots[name]
        for d in daemons:
            self._daemons += 1
            p = pod_info({**d.pod, "metadata": {**meta(d.pod), "name": f"{d.name}-imagined-{self._daemons}"}})
            if feasible(p, self.table, Extra())[0][slot]:
                self.place(p, name)
        return slot

    def place(self, p: PodInfo, node: str) -> None:
        if self.reserve is not None and (p.claims or p.backed):
            self.reserved.append(self.reserve(p, self.table.slots[node]))
        self.table.add_pod(p, node)
        self.pods.append(p)

    def undo(self) -> None:
        for give_back in self.reserved:
            give_back()
        for p in self.pods:
            self.table.remove_pod(p)
        for name in self.nodes:
            self.table.remove_node(name)
        self.pods, self.nodes = [], []


def grow(pods: Iterable[PodInfo], t: NodeTable, sizes: Iterable[Size], extra_for: ExtraFor, daemons: Iterable[PodInfo] = (),
         expand: Expander | None = None, reserve: Reserve | None = None) -> Growth:
    """What to make larger for these unschedulable pods. Pods that fit nodes that are on their way need nothing."""
    sizes, daemons = list(sizes), list(daemons)
    wanted = sorted((p for p in pods if p.priority >= EXPENDABLE_BELOW), key=lambda p: -p.priority)[:PODS_MAX]
    with imagined(t, reserve) as now:
        for s in sizes:
            for i in range(min(s.upcoming, NEW_NODES_MAX)):
                now.add_node(s.template, f"upcoming-{s.group.name}-{i}", daemons)
        left = []
        for p in wanted:
            nominated = (p.pod.get("status") or {}).get("nominatedNodeName") or ""
            if nominated in t.slots:                          # preemption makes room for it there
                now.place(p, nominated)
                continue
            found = pick(p, t, lambda n: 0, extra_for(p))
            if isinstance(found, Decision):
                now.place(p, found.node)
            else:
                left.append(p)
        return _choose(left, t, sizes, extra_for, daemons, expand or expander(), reserve) if left else Growth()


@dataclass(frozen=True, slots=True)
class Option:
    """A group that would help: by how many nodes, whom, and how much of them stays unused."""

    size: Size
    nodes: int
    helped: tuple[PodInfo, ...]
    waste: float


Expander = Callable[[list[Option]], Option]


def expander(names: str = "least-waste", priorities: Mapping[int, list[str]] | None = None, random: Callable[[int], int] = lambda n: 0) -> Expander:
    """Upstream's expanders, several joined by "+": each leaves its best, the last that is left over is decided by name (or at random).
    `priorities`: number -> regular expressions of group names, the highest number wins (ConfigMap cluster-autoscaler-priority-expander)."""
    def priority(o: Option) -> float:
        return -max((n for n, patterns in (priorities or {}).items() if any(re.search(p, o.size.group.name) for p in patterns)), default=-math.inf)
    keys: dict[str, Callable[[Option], float]] = {
        "least-waste": lambda o: o.waste, "most-pods": lambda o: -len(o.helped), "least-nodes": lambda o: o.nodes, "priority": priority}

    def choose(options: list[Option]) -> Option:
        for name in names.split("+"):
            if name == "random":
                return options[random(len(options))]
            key = keys[name]
            best = min(map(key, options))
            options = [o for o in options if key(o) == best]
        return min(options, key=lambda o: (o.waste, -len(o.helped), o.size.group.name))
    return choose


def _choose(left: list[PodInfo], t: NodeTable, sizes: list[Size], extra_for: ExtraFor, daemons: list[PodInfo], expand: Expander,
            reserve: Reserve | None) -> Growth:
    refused: dict[tuple[str, str], dict[str, int]] = {p.key: {} for p in left}
    options: list[Option] = []
    unsuited: dict[str, set[tuple[str, str]]] = {}        # group -> pods that no node of it would hold
    for s in sizes:
        skip = BACKOFF if s.backoff else MAX_SIZE if s.target >= s.group.max else ""
        if skip:
            for p in left:
                refused[p.key][skip] = refused[p.key].get(skip, 0) + 1
            continue
        option, reasons = _estimate(left, t, s, extra_for, daemons, reserve)
        for key, why in reasons.items():
            for r in why:
                refused[key][r] = refused[key].get(r, 0) + 1
        if option is not None:
            options.append(option)
            unsuited[s.group.name] = set(reasons)
    if not options:
        return Growth(refused=tuple((p, refused[p.key]) for p in left))
    best = expand(options)
    helped = {p.key for p in best.helped}
    return Growth(best.size.group.name, best.size.target + best.nodes, best.size.target, best.size.group.max, best.helped,
                  tuple((p, refused[p.key]) for p in left if p.key not in helped),
                  tuple(g for g, without in unsuited.items() if g != best.size.group.name and not helped & without))


def _estimate(left: list[PodInfo], t: NodeTable, s: Size, extra_for: ExtraFor,
              daemons: list[PodInfo], reserve: Reserve | None) -> tuple[Option | None, dict[tuple[str, str], list[str]]]:
    """How many nodes of one group the pods need, and why those that it cannot help are refused."""
    room_left = min(s.group.max - s.target, NEW_NODES_MAX)
    reasons: dict[tuple[str, str], list[str]] = {}
    with imagined(t, reserve) as it:
        fresh = it.add_node(s.template, f"template-{s.group.name}-0", daemons)
        suited = []
        for p in left:
            ok, rejection = feasible(p, t, extra_for(p), explain=True)
            if ok[fresh]:
                suited.append(p)
            else:
                reasons[p.key] = [r for _, r, mask in rejection.per_node if mask[fresh]] or [rejection.message or "node(s) didn't match"]
        if not suited:
            return None, reasons
        slots, helped = [fresh], []
        base = _used(t, fresh)
        for p in sorted(suited, key=lambda p: -_weight(p, t, fresh)):
            ok = feasible(p, t, extra_for(p))[0]
            slot = next((x for x in slots if ok[x]), -1)
            if slot < 0 and len(slots) < room_left and t.pods[slots[-1]]:
                slot = it.add_node(s.template, f"template-{s.group.name}-{len(slots)}", daemons)
                if feasible(p, t, extra_for(p))[0][slot]:
                    slots.append(slot)
                else:                                         # e.g. spreading that more nodes would not satisfy
                    t.remove_node(it.nodes.pop())
                    slot = -1
            if slot >= 0:
                it.place(p, t.names[slot])
                helped.append(p)
        waste = float(np.mean([_waste(t, x, base) for x in slots]))
    return (Option(s, len(slots), tuple(helped), waste) if helped else None), reasons


def _weight(p: PodInfo, t: NodeTable, slot: int) -> float:
    """How large a pod is in parts of a node."""
    cpu, memory = int(t.allocatable[CPU, slot]) or 1, int(t.allocatable[MEMORY, slot]) or 1
    return p.requests.get("cpu", 0) / cpu + p.requests.get("memory", 0) / memory


def _used(t: NodeTable, slot: int) -> tuple[int, int]:
    return int(t.used[CPU, slot]), int(t.used[MEMORY, slot])


def _waste(t: NodeTable, slot: int, base: tuple[int, int]) -> float:
    """The unused parts of cpu and memory, added; what DaemonSets take counts as unused."""
    out = 0.0
    for row, daemons in ((CPU, base[0]), (MEMORY, base[1])):
        room = int(t.allocatable[row, slot]) or 1
        out += (room - (int(t.used[row, slot]) - daemons)) / room
    return out


def is_daemon(pod: Object) -> bool:
    return (controller_of(pod) or {}).get("kind") == "DaemonSet"
