"""NodeResourcesFit and NodeResourcesBalancedAllocation: does it fit, how well."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kubern.scheduler.plugins.verdict import Ints, Verdict
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.profile import Strategy
from kubern.scheduler.table import PODS, NodeTable

IGNORED = ("pods",)


def fits_at(p: PodInfo, t: NodeTable, slot: int) -> bool:
    """Whether one node has room for the pod now."""
    if slot < 0 or t.used[PODS, slot] + 1 > t.allocatable[PODS, slot]:
        return False
    for name, want in p.requests.items():
        row = t.resource_row(name)
        if want and name not in IGNORED and not p.args.ignores(name) and t.used[row, slot] + want > t.allocatable[row, slot] and name not in p.backed:
            return False
    return True


def fit(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    """Every resource the pod asks for, against what is left. `final` where the node could not hold it even when empty."""
    n = t.size
    bad = t.used[PODS, :n] + 1 > t.allocatable[PODS, :n]
    if bad.any():
        yield Verdict(bad, "Too many pods")
    for name, want in p.requests.items():
        if want == 0 or name in IGNORED or p.args.ignores(name):
            continue
        row = t.resource_row(name)
        room = t.allocatable[row, :n]
        bad = t.used[row, :n] + want > room
        if name in p.backed:                     # where the node does not offer it itself, devices are looked for
            bad &= room > 0
        if bad.any():
            yield Verdict(bad, f"Insufficient {name}", want > room)


def least_allocated(p: PodInfo, t: NodeTable) -> Ints:
    """Free share of cpu and memory after placing the pod, 0-100, averaged."""
    n = t.size
    total = np.zeros(n, np.int64)
    weights = np.zeros(n, np.int64)
    for i, want in ((0, p.nonzero_cpu), (1, p.nonzero_memory)):
        room = t.allocatable[i, :n]
        have = room > 0
        after = t.nonzero[i, :n] + want
        score = np.where(have & (after <= room), (room - after) * 100 // np.maximum(room, 1), 0)
        total += score
        weights += have
    return total // np.maximum(weights, 1)


def by_strategy(p: PodInfo, t: NodeTable, strategy: Strategy) -> Ints:
    """0-100 as NodeResourcesFitArgs.scoringStrategy says, averaged by the resources' weights where the node has the resource."""
    n = t.size
    total = np.zeros(n, np.int64)
    weights = np.zeros(n, np.int64)
    for name, weight in strategy.resources:
        i = t.resource_row(name)
        room = t.allocatable[i, :n]
        if i < 2:
            after = t.nonzero[i, :n] + (p.nonzero_cpu, p.nonzero_memory)[i]
        elif p.requests.get(name):
            after = t.used[i, :n] + p.requests[name]
        else:
            continue
        have = room > 0
        some = np.maximum(room, 1)
        if strategy.type == "LeastAllocated":
            score = np.where(have & (after <= room), (room - after) * 100 // some, 0)
        elif strategy.type == "MostAllocated":
            score = np.where(have, np.minimum(after, room) * 100 // some, 0)
        else:
            score = np.where(have, _along(strategy.shape)[np.where(after > room, 100, after * 100 // some)], 0)
            have = score > 0                       # what scores nothing does not lower the others
        total += weight * score
        weights += weight * have
    if strategy.type == "RequestedToCapacityRatio":
        return np.floor(total / np.maximum(weights, 1) + 0.5).astype(np.int64)
    return total // np.maximum(weights, 1)


def _along(shape: tuple[tuple[int, int], ...]) -> Ints:
    """The score of every utilization from 0 to 100 on straight lines between the points, in whole numbers as Go divides."""
    out = np.full(101, shape[-1][1], np.int64)
    for i in reversed(range(len(shape))):
        utilization, score = shape[i]
        out[:utilization + 1] = shape[0][1] if i == 0 else 0
        if i:
            u0, s0 = shape[i - 1]
            for u in range(u0 + 1, utilization + 1):
                out[u] = s0 + int((score - s0) * (u - u0) / (utilization - u0))
    return out


def _balance(fractions: list[np.ndarray], present: list[np.ndarray]) -> np.ndarray:
    """100 where the fractions are equal, less by their standard deviation; only resources that the node has count."""
    if len(fractions) == 2:                       # the usual case, and a form that is exact
        a, b = (np.minimum(f, 1.0) for f in fractions)
        return ((1 - np.where(present[0] & present[1], np.abs(a - b) / 2, 0.0)) * 100).astype(np.int64)
    have = np.array(present)
    shares = np.where(have, np.minimum(np.array(fractions), 1.0), 0.0)
    number = np.maximum(have.sum(axis=0), 1)
    mean = shares.sum(axis=0) / number
    deviation = np.sqrt((np.where(have, shares - mean, 0.0) ** 2).sum(axis=0) / number)
    return ((1 - deviation) * 100).astype(np.int64)


def balanced(p: PodInfo, t: NodeTable) -> Ints | None:
    """How much placing the pod improves the balance of use of cpu and memory; pods that ask for nothing of it are not scored."""
    names = p.args.balanced
    if not any(p.requests.get(name) for name in names):
        return None
    n = t.size
    rows = [t.resource_row(name) for name in names]
    rooms = [t.allocatable[row, :n] for row in rows]
    present = [r > 0 for r in rooms]
    before = [t.used[row, :n] / np.maximum(room, 1) for row, room in zip(rows, rooms, strict=True)]
    after = [(t.used[row, :n] + p.requests.get(name, 0)) / np.maximum(room, 1) for row, room, name in zip(rows, rooms, names, strict=True)]
    return 50 + (50 + _balance(after, present) - _balance(before, present)) // 2
