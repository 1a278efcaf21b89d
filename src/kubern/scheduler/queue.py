"""Queue: who is next, who backs off, who waits for what. Pure over time: `now_s` is an argument.

Three places for a pod: active (a heap by priority, then age), backing off (1 s doubling to 10 s), unschedulable (until an event that
could help, or five minutes). Gated pods wait outside. KEP-4247 (queueing hints), KEP-5142 (popping from back-off when
nothing else is active; never what met an error, or a refused binding would be tried again without a pause).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from kubern.scheduler.pod import PodInfo

INITIAL_BACKOFF_S, MAX_BACKOFF_S = 1.0, 10.0
UNSCHEDULABLE_MAX_S = 300.0
MEANWHILE_MAX = 1000                            # events remembered for a pod that is being refused; past them anything may have happened
EXTENDER = "Extender"                           # what an extender refused anything may cure

# Which plugins' refusals an event may cure; None: any. The event's name is what changed.
CURES: dict[str, frozenset[str] | None] = {
    "node-added": None,
    "node-allocatable": frozenset({"NodeResourcesFit"}),
    "node-labels": frozenset({"NodeAffinity", "PodTopologySpread", "InterPodAffinity", "VolumeBinding", "VolumeZone",
                              "DynamicResources"}),
    "node-taints": frozenset({"TaintToleration", "NodeUnschedulable", "PodTopologySpread"}),
    "node-removed": frozenset({"PodTopologySpread", "InterPodAffinity"}),
    "node-features": frozenset({"NodeDeclaredFeatures"}),
    "pod-placed": frozenset({"InterPodAffinity", "PodTopologySpread"}),
    "pod-removed": frozenset({"NodeResourcesFit", "NodePorts", "PodTopologySpread", "InterPodAffinity", "VolumeRestrictions", "NodeVolumeLimits",
                              "DynamicResources"}),
    "pod-leaving": frozenset({"PodTopologySpread"}),
    "pod-labels": frozenset({"InterPodAffinity", "PodTopologySpread"}),
    "storage": frozenset({"VolumeBinding", "VolumeZone", "VolumeRestrictions", "NodeVolumeLimits"}),
    "claims": frozenset({"DynamicResources"}),
}
Helps = Callable[[str, PodInfo], bool]          # (plugin, pod): whether this event may cure that plugin's refusal of that pod (hints.py)


@dataclass(slots=True, eq=False)
class Queued:
    info: PodInfo
    since_s: float                                   # when it first came
    attempts: int = 0
    until_s: float = 0.0                             # end of its back-off
    parked_s: float = 0.0                            # when it was found unschedulable
    plugins: set[str] = field(default_factory=set)   # who refused it
    place: str = ""                                  # active | backoff | parked | gated | "" (being scheduled)
    moved: bool = False                              # it changed itself while it was being scheduled
    meanwhile: list[tuple[str, Helps | None]] = field(default_factory=list)      # events in that time


class Queue:
    """Pods that want a node, by (namespace, name)."""

    def __init__(self, initial_backoff_s: float = INITIAL_BACKOFF_S, max_backoff_s: float = MAX_BACKOFF_S) -> None:
        self.initial_backoff_s, self.max_backoff_s = initial_backoff_s, max_backoff_s
        self.pods: dict[tuple[str, str], Queued] = {}
        self._active: list[tuple[int, float, int, Queued]] = []
        self._backoff: list[tuple[float, int, Queued]] = []
        self._errors: list[tuple[float, int, Queued]] = []               # backing off from an error: not to be taken early
        self._serial = 0
        self._parked: dict[str, dict[tuple[str, str], Queued]] = {}      # by the plugin that refused them
        self._flying: dict[tuple[str, str], Queued] = {}                 # being scheduled just now

    def _push(self, q: Queued) -> None:
        self._serial += 1
        q.place = "active"
        heapq.heappush(self._active, (-q.info.priority, q.since_s, self._serial, q))

    def add(self, info: PodInfo, now_s: float, gated: bool = False) -> None:
        """A pod without a node appeared or changed. A change lets an unschedulable one try again at once."""
        q = self.pods.get(info.key)
        if q is not None and q.info.uid != info.uid:
            self.remove(info.key)
            q = None
        if q is None:
            q = self.pods[info.key] = Queued(info, now_s)
            if gated:
                q.place = "gated"
            else:
                self._push(q)
            return
        q.info = info
        if gated:
            self._unpark(q)
            q.place = "gated"
        elif q.place == "gated":
            self._push(q)
        elif q.place == "parked":
            self._wake(q, now_s)
        elif q.place == "":
            q.moved = True

    def refresh(self, info: PodInfo) -> None:
        """The pod changed in a way that cannot help it; only remember its newest state."""
        q = self.pods.get(info.key)
        if q is not None and q.info.uid == info.uid:
            q.info = info

    def remove(self, key: tuple[str, str]) -> None:
        q = self.pods.pop(key, None)
        if q is not None:
            self._unpark(q)
            self._flying.pop(key, None)
            q.place = "gone"

    def _unpark(self, q: Queued) -> None:
        for plugin in q.plugins:
            there = self._parked.get(plugin)
            if there is not None and there.pop(q.info.key, None) is not None and not there:
                del self._parked[plugin]

    def _wake(self, q: Queued, now_s: float) -> None:
        self._unpark(q)
        if q.until_s > now_s:
            self._serial += 1
            q.place = "backoff"
            heapq.heappush(self._backoff, (q.until_s, self._serial, q))
        else:
            self._push(q)

    def pop(self, now_s: float) -> Queued | None:
        """The next pod to schedule; when none is active, the one whose back-off ends first."""
        self._flush(now_s)
        while self._active:
            q = heapq.heappop(self._active)[3]
            if q.place == "active" and self.pods.get(q.info.key) is q:
                return self._take(q)
        while self._backoff:
            q = heapq.heappop(self._backoff)[2]
            if q.place == "backoff" and self.pods.get(q.info.key) is q:
                return self._take(q)
        return None

    def _take(self, q: Queued) -> Queued:
        q.place, q.moved, q.meanwhile = "", False, []
        q.attempts += 1
        self._flying[q.info.key] = q
        return q

    def placed(self, q: Queued) -> None:
        """It got a node; nothing that happens now matters to it."""
        self._flying.pop(q.info.key, None)

    def _flush(self, now_s: float) -> None:
        for heap in (self._backoff, self._errors):
            while heap and heap[0][0] <= now_s:
                q = heapq.heappop(heap)[2]
                if q.place == "backoff" and self.pods.get(q.info.key) is q:
                    self._push(q)

    def park(self, q: Queued, plugins: set[str], now_s: float) -> None:
        """It could not be placed: wait for an event that may cure one of these plugins' refusals."""
        self._flying.pop(q.info.key, None)
        if self.pods.get(q.info.key) is not q:
            return
        q.plugins, q.parked_s = set(plugins), now_s
        for plugin in q.plugins:
            self._parked.setdefault(plugin, {})[q.info.key] = q
        q.until_s = now_s + min(self.initial_backoff_s * 2 ** min(q.attempts - 1, 10), self.max_backoff_s)
        q.place = "parked"
        if q.moved or len(q.meanwhile) >= MEANWHILE_MAX or any(self._cured(q, name, helps) for name, helps in q.meanwhile):
            self._wake(q, now_s)
        q.meanwhile = []

    def retry(self, q: Queued, now_s: float) -> None:
        """Something other than the cluster's state failed (a refused binding): try again after the back-off."""
        self._flying.pop(q.info.key, None)
        if self.pods.get(q.info.key) is q:
            q.until_s = now_s + min(self.initial_backoff_s * 2 ** min(q.attempts - 1, 10), self.max_backoff_s)
            self._serial += 1
            q.place = "backoff"
            heapq.heappush(self._errors, (q.until_s, self._serial, q))

    def event(self, name: str, now_s: float, helps: Helps | None = None) -> None:
        """Something changed: wake the unschedulable pods it may cure. Costs what it wakes and asks, not what waits. Without `helps` the name decides."""
        if not self._flying and not self._parked:
            return
        for q in self._flying.values():
            if len(q.meanwhile) < MEANWHILE_MAX:
                q.meanwhile.append((name, helps))
        cures = CURES[name]
        for plugin in tuple(self._parked) if cures is None else (*cures, EXTENDER):
            for q in tuple(self._parked.get(plugin, {}).values()):
                if q.place == "parked" and (helps is None or helps(plugin, q.info)):
                    self._wake(q, now_s)

    def _cured(self, q: Queued, name: str, helps: Helps | None) -> bool:
        cures = CURES[name]
        return any((cures is None or plugin in cures or plugin == EXTENDER) and (helps is None or helps(plugin, q.info)) for plugin in q.plugins)

    def leftovers(self, now_s: float) -> None:
        """Pods unschedulable for five minutes get another look whatever happened."""
        for q in self.pods.values():
            if q.place == "parked" and now_s - q.parked_s >= UNSCHEDULABLE_MAX_S:
                self._wake(q, now_s)

    def next_s(self) -> float | None:
        """When the first back-off from an error ends, for the shell's timer; the others are taken early."""
        while self._errors and not (self._errors[0][2].place == "backoff" and self.pods.get(self._errors[0][2].info.key) is self._errors[0][2]):
            heapq.heappop(self._errors)
        return self._errors[0][0] if self._errors else None

    @property
    def depth(self) -> dict[str, int]:
        out = {"active": 0, "backoff": 0, "parked": 0, "gated": 0, "": 0}
        for q in self.pods.values():
            out[q.place] = out.get(q.place, 0) + 1
        return out
