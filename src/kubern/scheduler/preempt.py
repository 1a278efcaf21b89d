"""preempt: whom to evict so that a pod fits. Pure; KEP "default preemption", upstream's pickOneNodeForPreemption order.

Given a Rejection, look at nodes where evicting lower-priority pods may help, spare as many of them as possible (those under a
PodDisruptionBudget first), and choose the node that hurts least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from kubern.model.object import Object, deleting
from kubern.model.selector import from_label_selector
from kubern.scheduler.pick import Extra, Rejection, feasible
from kubern.scheduler.pod import PodInfo, start_time
from kubern.scheduler.table import PODS, NodeTable

NOT_HELPFUL = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"


@dataclass(frozen=True, slots=True)
class Victims:
    node: str
    slot: int
    pods: tuple[PodInfo, ...]                       # most important first
    violations: int                                 # of PodDisruptionBudgets


@dataclass(frozen=True, slots=True)
class NoHelp:
    """Nothing to evict; the words that follow "preemption: "."""

    message: str


def importance(p: PodInfo) -> tuple[int, str]:
    """Sort key: higher priority first, then the longer running one."""
    return -p.priority, start_time(p)


def preempt(p: PodInfo, t: NodeTable, rejection: Rejection, budgets: Iterable[Object], extra: Extra,
            random: Callable[[int], int]) -> list[Victims] | NoHelp:
    """Nodes with whom to evict there, the least harm first, or why there are none. The table is changed while looking and restored before
    returning."""
    if p.spec.get("preemptionPolicy") == "Never":
        return NoHelp("not eligible due to preemptionPolicy=Never.")
    candidates = rejection.candidates if rejection.candidates is not None else np.zeros(t.size, bool)
    nominated = (p.pod.get("status") or {}).get("nominatedNodeName") or ""
    slot = t.slots.get(nominated, -1)
    if slot >= 0 and candidates[slot] and any(q.priority < p.priority and _by_preemption(q.pod) for q in t.pods[slot].values()):
        return NoHelp("not eligible due to a terminating pod on the nominated node.")
    slots = np.nonzero(candidates)[0]
    reasons: dict[str, int] = {}
    found: list[Victims] = []
    wanted = max(p.args.candidates_min, int(len(slots) * p.args.candidates_share))
    offset = random(len(slots)) if len(slots) else 0
    limits = [(b, from_label_selector((b.get("spec") or {}).get("selector")), int((b.get("status") or {}).get("disruptionsAllowed") or 0),
               set((b.get("status") or {}).get("disruptedPods") or ())) for b in budgets]
    for i in range(len(slots)):
        result = _on_node(p, t, int(slots[(offset + i) % len(slots)]), rejection, limits, extra)
        if isinstance(result, Victims):
            found.append(result)
            if len(found) >= wanted:
                break
        else:
            for r in result:
                reasons[r] = reasons.get(r, 0) + 1
    if found:
        return sorted(found, key=hurt)
    rest = rejection.total - len(slots)
    if rest:
        reasons[NOT_HELPFUL] = rest
    return NoHelp(Rejection(rejection.total, reasons).text())


def _by_preemption(pod: Object) -> bool:
    return deleting(pod) and any(c.get("type") == "DisruptionTarget" and c.get("reason") == "PreemptionByScheduler"
                                 for c in (pod.get("status") or {}).get("conditions") or ())


def hurt(v: Victims) -> tuple[int, int, int, int, tuple[int, ...]]:
    """Smaller is better: violations, highest priority, sum of priorities, number; then the later start of the most important ones."""
    top = v.pods[0].priority
    earliest = min(start_time(q) for q in v.pods if q.priority == top)
    return v.violations, top, sum(q.priority + 2**31 for q in v.pods), len(v.pods), tuple(-ord(c) for c in earliest)


def _on_node(p: PodInfo, t: NodeTable, slot: int, rejection: Rejection, limits: list, extra: Extra) -> Victims | list[str]:
    """The fewest, least important pods of one node whose absence lets p in; else the reasons it still does not fit."""
    lower = sorted((q for q in t.pods[slot].values() if q.priority < p.priority), key=importance)
    if not lower:
        return [NO_VICTIMS]
    plain = rejection.only_resources is not None and rejection.only_resources[slot] and not (
        p.has_terms or p.spreads or p.ports or p.volumes or p.claims or t.carried["anti"])
    name = t.names[slot]
    fits = (lambda: _room(p, t, slot, extra)) if plain else (lambda: bool(feasible(p, t, extra)[0][slot]))
    for q in lower:
        t.remove_pod(q)
    victims: list[PodInfo] = []
    violations = 0
    try:
        if not fits():
            return _reasons(p, t, slot, extra)
        violating, others = _split(lower, limits)
        for q in (*violating, *others):
            t.add_pod(q, name)
            if not fits():
                t.remove_pod(q)
                victims.append(q)
                violations += any(q is x for x in violating)
    finally:
        for q in lower:
            if q.slot < 0:
                t.add_pod(q, name)
    if not victims:
        return [NO_VICTIMS]
    return Victims(name, slot, tuple(sorted(victims, key=importance)), violations)


def _room(p: PodInfo, t: NodeTable, slot: int, extra: Extra) -> bool:
    """Whether the node has room, nominated pods counted."""
    reserved = [q for s, q in extra.nominated if s == slot]
    if t.used[PODS, slot] + len(reserved) + 1 > t.allocatable[PODS, slot]:
        return False
    for r, v in p.requests.items():
        row = t.resource_row(r)
        if v and t.used[row, slot] + sum(q.requests.get(r, 0) for q in reserved) + v > t.allocatable[row, slot]:
            return False
    return True


def _reasons(p: PodInfo, t: NodeTable, slot: int, extra: Extra) -> list[str]:
    _, again = feasible(p, t, extra, explain=True)
    return [reason for _, reason, mask in again.per_node if mask[slot]] or [NO_VICTIMS]


def _split(pods: list[PodInfo], limits: list) -> tuple[list[PodInfo], list[PodInfo]]:
    """(those whose eviction would violate a PodDisruptionBudget, the others), each most important first."""
    left = {id(b): allowed for b, _, allowed, _ in limits}
    violating: list[PodInfo] = []
    fine: list[PodInfo] = []
    for q in pods:
        bad = False
        for b, selector, _, disrupted in limits:
            if b["metadata"].get("namespace") != q.namespace or not q.labels or not selector.matches(dict(q.labels)) or q.name in disrupted:
                continue
            left[id(b)] -= 1
            bad |= left[id(b)] < 0
        (violating if bad else fine).append(q)
    return violating, fine
