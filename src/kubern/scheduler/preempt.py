"""preempt: whom to evict so that a pod fits. Pure but for what it remembers; upstream's defaultpreemption and pickOneNodeForPreemption.

Given a Rejection, look at nodes where evicting lower-priority pods may help, spare as many of them as possible (those under a
PodDisruptionBudget first), and choose the node that hurts least.

Most pods lack nothing but room. For these the arrays say at once where it helps to evict everything less important; whom to spare there is
counted in whole numbers, and known until something about that node changes (DryRuns). The others are tried out on the table, which is restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kubern.model.object import Object, deleting, namespace
from kubern.model.selector import Selector, from_label_selector
from kubern.scheduler.pick import Extra, Rejection, feasible
from kubern.scheduler.plugins.node import needed_features
from kubern.scheduler.plugins.resources import IGNORED
from kubern.scheduler.plugins.verdict import Ints, Mask
from kubern.scheduler.pod import PodInfo, start_time
from kubern.scheduler.table import PODS, NodeTable

NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"
KINDS_MAX = 16


@dataclass(frozen=True, slots=True)
class Victims:
    node: str
    slot: int
    pods: tuple[PodInfo, ...]                       # most important first
    violations: int                                 # of PodDisruptionBudgets


@dataclass(frozen=True, slots=True)
class NoHelp:
    """Nothing to evict; the words that follow "preemption: ". `waits`: what the pod was nominated to may still come true."""

    message: str
    waits: bool = False


class Budget(NamedTuple):
    namespace: str
    selector: Selector
    allowed: int
    disrupted: frozenset[str]                       # pods whose disruption is already counted


@dataclass(slots=True)
class DryRuns:
    """What evicting would do on each node, by kind of pod: {kind: {slot: (stamp, whom or None, how much it hurts)}}. Holds while stamps do."""

    of: Any = None                                  # the nodes' version and the budgets it was all found under
    kinds: dict[Any, dict[int, tuple[int, Victims | None, Any]]] = field(default_factory=dict)

    def kind(self, of: Any, key: Any) -> dict[int, tuple[int, Victims | None, Any]]:
        if of != self.of:
            self.of, self.kinds = of, {}
        found = self.kinds.get(key)
        if found is None:
            if len(self.kinds) >= KINDS_MAX:
                del self.kinds[next(iter(self.kinds))]
            found = self.kinds[key] = {}
        return found


def importance(p: PodInfo) -> tuple[int, str]:
    """Sort key: higher priority first, then the longer running one."""
    return -p.priority, start_time(p)


def preempt(p: PodInfo, t: NodeTable, rejection: Rejection, budgets: Iterable[Object], extra: Extra,
            random: Callable[[int], int], runs: DryRuns | None = None) -> list[Victims] | NoHelp:
    """Nodes with whom to evict there, the least harm first, or why there are none. The table is changed while looking and restored before
    returning."""
    if p.spec.get("preemptionPolicy") == "Never":
        return NoHelp("not eligible due to preemptionPolicy=Never.", waits=True)
    candidates = rejection.candidates if rejection.candidates is not None else np.zeros(t.size, bool)
    if _under_way(p, t, candidates, extra):
        return NoHelp("not eligible due to a terminating pod on the nominated node.", waits=True)
    number = int(np.count_nonzero(candidates))
    reasons: dict[str, int] = {}
    hopeful = candidates & (t.below(p.priority)[PODS, :t.size] > 0)
    if none := number - int(np.count_nonzero(hopeful)):
        reasons[NO_VICTIMS] = none
    simple = np.zeros(t.size, bool)
    if rejection.only_resources is not None and _needs_room_only(p, t):
        simple = hopeful & rejection.only_resources
        hopeful &= ~_too_small(p, t, simple, extra, reasons)
    found = _search(p, t, np.flatnonzero(hopeful), simple, number, tuple(budgets), extra, random, reasons, runs or DryRuns())
    if found:
        return found
    if rest := rejection.total - number:
        reasons[NOT_HELPFUL] = rest
    return NoHelp(Rejection(rejection.total, reasons).text())


def _under_way(p: PodInfo, t: NodeTable, candidates: Mask, extra: Extra) -> bool:
    """Whether victims of this pod are still on their way out, so that it need not look for others."""
    nominated = (extra.nominated.node_of(p.key) if extra.nominated else "") or (p.pod.get("status") or {}).get("nominatedNodeName") or ""
    slot = t.slots.get(nominated, -1)
    return slot >= 0 and bool(candidates[slot]) and any(q.priority < p.priority and _by_preemption(q.pod) for q in t.pods[slot].values())


def _by_preemption(pod: Object) -> bool:
    return deleting(pod) and any(c.get("type") == "DisruptionTarget" and c.get("status") == "True" and c.get("reason") == "PreemptionByScheduler"
                                 for c in (pod.get("status") or {}).get("conditions") or ())


def _needs_room_only(p: PodInfo, t: NodeTable) -> bool:
    """Whether nothing but resources can depend on who is on a node."""
    return not (p.affinity or p.anti_affinity or any(c.hard for c in p.spreads) or p.ports or p.volumes or p.claims or p.backed or needed_features(p)
                or any(t.in_set(term.pods, p) for term, _ in t.carried["anti"].values()))


def _asked(p: PodInfo, t: NodeTable) -> list[tuple[str, int, int]]:
    """(resource, its row, how much) of everything that is checked."""
    return [("pods", PODS, 1), *((r, t.resource_row(r), want) for r, want in p.requests.items()
                                 if want and r not in IGNORED and not p.args.ignores(r))]


def _too_small(p: PodInfo, t: NodeTable, nodes: Mask, extra: Extra, reasons: dict[str, int]) -> Mask:
    """Which of these nodes lack room even without any less important pod; why, is counted."""
    out = np.zeros(t.size, bool)
    asked = _asked(p, t)
    promised = extra.nominated.sums(p) if extra.nominated else None
    below = t.below(p.priority)
    for r, row, want in asked:
        left: Ints = t.used[row, :t.size] - below[row, :t.size] + want
        if promised is not None:
            left = left + promised[row, :t.size]
        bad = nodes & (left > t.allocatable[row, :t.size])
        if n := int(np.count_nonzero(bad)):
            reason = "Too many pods" if row == PODS else f"Insufficient {r}"
            reasons[reason] = reasons.get(reason, 0) + n
            out |= bad
    return out


def _search(p: PodInfo, t: NodeTable, slots: Ints, simple: Mask, number: int, budgets: Sequence[Object], extra: Extra,
            random: Callable[[int], int], reasons: dict[str, int], runs: DryRuns) -> list[Victims]:
    """Dry runs on nodes from a random one on, until there are enough to choose from and one at least violates no budget."""
    if not len(slots):
        return []
    limits = [_budget(b) for b in budgets if any(((b.get("spec") or {}).get("selector") or {}).values())]      # an empty selector matches nothing here
    asked = _asked(p, t)
    known = runs.kind((t.version, tuple((b["metadata"].get("uid"), b["metadata"].get("resourceVersion")) for b in budgets)),
                      (p.priority, tuple(asked)))
    promised = extra.nominated.sums(p) if extra.nominated else None
    wanted = min(number, max(p.args.candidates_min, int(number * p.args.candidates_share)))
    found: list[tuple[Any, Victims]] = []
    spotless, stamps, plain = False, t.stamps, simple.tolist()
    for slot in np.roll(slots, -random(len(slots))).tolist():
        result: Victims | list[str] | None
        if plain[slot]:
            was = known.get(slot)
            if was is None or was[0] != stamps[slot]:
                result = _by_numbers(p, t, slot, asked, promised, limits)
                was = known[slot] = (stamps[slot], result, None if result is None else hurt(result))
            result, harm = was[1], was[2]
            if result is None:
                result = [NO_VICTIMS]
        else:
            result = _tried(p, t, slot, limits, extra)
            harm = hurt(result) if isinstance(result, Victims) else None
        if isinstance(result, list):
            for r in result:
                reasons[r] = reasons.get(r, 0) + 1
            continue
        assert result is not None
        found.append((harm, result))
        spotless = spotless or not result.violations
        if spotless and len(found) >= wanted:
            break
    return [v for _, v in sorted(found, key=lambda f: f[0])]


def hurt(v: Victims) -> tuple[int, int, int, int, tuple[int, ...]]:
    """Smaller is better: violations, highest priority, sum of priorities, number; then the later start of the most important ones."""
    top = v.pods[0].priority
    earliest = min(start_time(q) for q in v.pods if q.priority == top)
    return v.violations, top, sum(q.priority + 2**31 for q in v.pods), len(v.pods), tuple(-ord(c) for c in earliest)


def _by_numbers(p: PodInfo, t: NodeTable, slot: int, asked: Sequence[tuple[str, int, int]], promised: Ints | None, limits: list[Budget]) -> Victims | None:
    """The fewest, least important pods of one node whose absence leaves room; that all of them leave enough is known. None: nobody is in the way."""
    lower = sorted((q for q in t.pods[slot].values() if q.priority < p.priority), key=importance)
    below, names = t.below(p.priority), [r for r, _, _ in asked]
    free = [int(t.allocatable[row, slot]) - int(t.used[row, slot]) + int(below[row, slot]) - want - (0 if promised is None else int(promised[row, slot]))
            for _, row, want in asked]
    violating, others = _split(lower, limits) if limits else ([], lower)
    victims: list[PodInfo] = []
    violations = 0
    for q in (*violating, *others):
        takes = [1, *(q.requests.get(r, 0) for r in names[1:])]
        if all(take <= room for take, room in zip(takes, free, strict=True)):
            free = [room - take for take, room in zip(takes, free, strict=True)]
        else:
            victims.append(q)
            violations += q in violating
    return Victims(t.names[slot], slot, tuple(sorted(victims, key=importance)), violations) if victims else None


def _tried(p: PodInfo, t: NodeTable, slot: int, limits: list[Budget], extra: Extra) -> Victims | list[str]:
    """The same by all filters, with the pods really taken out; else the reasons it still does not fit."""
    lower = sorted((q for q in t.pods[slot].values() if q.priority < p.priority), key=importance)
    node = t.names[slot]
    for q in lower:
        t.remove_pod(q)
    victims: list[PodInfo] = []
    violations = 0
    try:
        ok, why = feasible(p, t, extra, explain=True)
        if not ok[slot]:
            return [reason for _, reason, mask in why.per_node if mask[slot]] or [NO_VICTIMS]
        violating, others = _split(lower, limits)
        for q in (*violating, *others):
            t.add_pod(q, node)
            if not feasible(p, t, extra)[0][slot]:
                t.remove_pod(q)
                victims.append(q)
                violations += any(q is x for x in violating)
    finally:
        for q in lower:
            if q.slot < 0:
                t.add_pod(q, node)
    return Victims(node, slot, tuple(sorted(victims, key=importance)), violations) if victims else [NO_VICTIMS]


def _budget(b: Object) -> Budget:
    status = b.get("status") or {}
    return Budget(namespace(b), from_label_selector(b["spec"]["selector"]), int(status.get("disruptionsAllowed") or 0),
                  frozenset(status.get("disruptedPods") or ()))


def _split(pods: list[PodInfo], limits: list[Budget]) -> tuple[list[PodInfo], list[PodInfo]]:
    """(those whose eviction would violate a PodDisruptionBudget, the others), each most important first."""
    left = [b.allowed for b in limits]
    violating: list[PodInfo] = []
    fine: list[PodInfo] = []
    for q in pods:
        bad = False
        for i, b in enumerate(limits):
            if b.namespace != q.namespace or not q.labels or not b.selector.matches(dict(q.labels)) or q.name in b.disrupted:
                continue
            left[i] -= 1
            bad |= left[i] < 0
        (violating if bad else fine).append(q)
    return violating, fine
