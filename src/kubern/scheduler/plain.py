"""plain: the pick for pods of which there are many of a kind. Pure but for what it remembers.

Pods of a kind (same requests, tolerations, node selection, images) see the same scores of nodes but where a pod came or went since. So these
scores are kept, and a pick works out anew only the slots the table was touched at; what speaks of other pods (affinity, spreading) is laid over
them. The answer is pick's, to the node: tests hold the two together. Ports, volumes and devices go the ordinary way (None). Model: KEP-5598.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from kubern.scheduler.nominated import Nominations
from kubern.scheduler.pick import FILTERS, Decision, Extra
from kubern.scheduler.plugins import node, resources, topology
from kubern.scheduler.plugins.verdict import Ints
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.profile import WEIGHTS
from kubern.scheduler.table import PODS, NodeTable

KINDS_MAX = 64
REDO_MAX = 200                   # slots touched since; from so many on all are worked out at once
_STATIC = tuple(f for name, f in FILTERS if name not in ("NodeResourcesFit", "NodePorts"))
_FIT, _BALANCE = WEIGHTS["NodeResourcesFit"], WEIGHTS["NodeResourcesBalancedAllocation"]


class Kind:
    """One kind's scores: -1 where it does not fit. `best` are the slots with the highest, in order."""

    __slots__ = ("base", "best", "fixed", "high", "scores", "seen", "version")

    def __init__(self, version: int, seen: int, base: np.ndarray, fixed: Ints, scores: Ints) -> None:
        self.version, self.seen, self.base, self.fixed, self.scores = version, seen, base, fixed, scores
        self.high, self.best = -1, list[int]()

    def top(self) -> list[int]:
        """Empty where no node fits."""
        if not self.best and len(self.scores):
            self.high = int(self.scores.max())
            self.best = np.flatnonzero(self.scores == self.high).tolist() if self.high >= 0 else []
        return self.best

    def set(self, slot: int, score: int) -> None:
        was, self.scores[slot] = int(self.scores[slot]), score
        if not self.best or score == was:
            return
        if score > self.high:
            self.high, self.best = score, [slot]
        elif score == self.high:
            insort(self.best, slot)
        elif was == self.high:
            del self.best[bisect_left(self.best, slot)]


def _signature(p: PodInfo) -> Any:
    """What identifies the kind; None for a pod that is not plain."""
    found = p.detail.get("plain", False)
    if found is False:
        spec = p.spec
        plain = not (p.ports or p.volumes or p.claims or spec.get("nodeName") or spec.get("schedulingGroup") or node.needed_features(p))
        nodes = (spec.get("affinity") or {}).get("nodeAffinity") or {}
        required = (nodes.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ()
        if nodes.get("preferredDuringSchedulingIgnoredDuringExecution") or any(x.get("matchFields") for x in required):
            plain = False
        found = p.detail["plain"] = (
            orjson.dumps(spec.get("tolerations")), p.placement_sig, tuple(p.requests.items()), p.nonzero_cpu, p.nonzero_memory,
            tuple(c.get("image") for field in ("initContainers", "containers") for c in spec.get(field) or ())) if plain else None
    return found


class Plain:
    """The kinds seen lately, over one table."""

    def __init__(self, table: NodeTable) -> None:
        self.table = table
        self._kinds: dict[Any, Kind] = {}

    def pick(self, p: PodInfo, extra: Extra, random: Callable[[int], int]) -> Decision | None:
        """The best node, or None: not a plain pod, or no node (pick then says why)."""
        t = self.table
        if extra.profile is not None or p.backed:
            return None
        if extra.filters or extra.prefilters or extra.late_filters:
            return None
        key = _signature(p)
        if key is None:
            return None
        kind = self._kinds.get(key)
        if kind is None or kind.version != t.version or not self._follow(kind, p):
            kind = self._learn(p)
            if kind is None:
                return None
            if len(self._kinds) >= KINDS_MAX:
                del self._kinds[next(iter(self._kinds))]
            self._kinds[key] = kind
        if not (extra.nominated or p.has_terms or p.spreads or extra.default_spreads or any(t.carried.values())):
            top = kind.top()
            if not top:
                return None
            slot = top[random(len(top))] if len(top) > 1 else top[0]
            return Decision(t.names[slot], slot)
        scores = kind.scores
        if extra.nominated:
            found = self._promised(p, scores, extra.nominated)
            if found is None:
                return None
            scores = found
        if p.has_terms or p.spreads or extra.default_spreads or any(t.carried.values()):
            found = self._among(p, scores, extra)
            if found is None:
                return None
            scores = found
        first = t.slots.get(extra.nominated.node_of(p.key), -1) if extra.nominated else -1
        if first >= 0 and scores[first] >= 0:
            return Decision(t.names[first], first)
        high = scores.max() if len(scores) else -1
        if high < 0:
            return None
        best = np.flatnonzero(scores == high)
        slot = int(best[random(len(best))] if len(best) > 1 else best[0])
        return Decision(t.names[slot], slot)

    def _among(self, p: PodInfo, scores: Ints, extra: Extra) -> Ints | None:
        """The scores with what other pods have to say; None where that leaves no node."""
        t = self.table
        ok = scores >= 0
        for run in (topology.spread, topology.pod_affinity):
            for v in run(p, t):
                ok &= ~v.bad
        if not ok.any():
            return None
        soft = tuple(c for c in p.spreads if not c.hard) or (() if p.spreads else extra.default_spreads)
        total = scores
        for weight, part in ((WEIGHTS["PodTopologySpread"], topology.score_spread(p, t, ok, soft, system=soft is extra.default_spreads)),
                             (WEIGHTS["InterPodAffinity"], topology.score_pod_affinity(p, t, ok))):
            if part is not None:
                total = total + weight * part
        return np.where(ok, total, -1)

    def _promised(self, p: PodInfo, scores: Ints, nominated: Nominations) -> Ints | None:
        """The scores without nodes whose room is promised to others; None where more than room is at stake."""
        t = self.table
        if nominated.meeting(p):
            return None
        asked = [(PODS, 1), *((t.resource_row(name), want) for name, want in p.requests.items() if want and name not in resources.IGNORED)]
        promised = nominated.sums(p)
        if promised is None:
            return scores
        slots = np.flatnonzero(promised[PODS, :t.size])
        at, wanted = np.ix_(np.array([row for row, _ in asked]), slots), np.array([want for _, want in asked])
        full = (t.used[at] + promised[at] + wanted[:, None] > t.allocatable[at]).any(axis=0)
        if not full.any():
            return scores
        out = scores.copy()
        out[slots[full]] = -1
        return out

    def _learn(self, p: PodInfo) -> Kind | None:
        t = self.table
        taints = node.score_taints(p, t)
        if taints is not None and taints.any():              # normalized over the nodes that fit: not a matter of one slot
            return None
        base = t.all().copy()
        for run in _STATIC:
            for v in run(p, t):
                base &= ~v.bad
        images = node.score_images(p, t)
        fixed = np.zeros(t.size, np.int64) if images is None else WEIGHTS["ImageLocality"] * images
        ok = base.copy()
        for v in resources.fit(p, t):
            ok &= ~v.bad
        total = fixed + _FIT * resources.least_allocated(p, t)
        balanced = resources.balanced(p, t)
        if balanced is not None:
            total += _BALANCE * balanced
        return Kind(t.version, t.touches, base, fixed, np.where(ok, total, -1))

    def _follow(self, kind: Kind, p: PodInfo) -> bool:
        """Brings the scores up to date; False where that is more work than learning them anew."""
        t = self.table
        behind = t.touches - kind.seen
        if not behind:
            return True
        if behind > min(REDO_MAX, len(t.touched)):
            return False
        for slot in set(t.touched[len(t.touched) - behind:]):
            kind.set(slot, self._score(kind, p, slot) if kind.base[slot] else -1)
        kind.seen = t.touches
        return True

    def _score(self, kind: Kind, p: PodInfo, slot: int) -> int:
        """fit, least_allocated and balanced for one slot."""
        t = self.table
        room, used = t.allocatable[:, slot].tolist(), t.used[:, slot].tolist()
        if used[PODS] + 1 > room[PODS]:
            return -1
        for name, want in p.requests.items():
            if want and name not in resources.IGNORED:
                row = t.resource_row(name)
                if used[row] + want > room[row]:
                    return -1
        free = weights = 0
        for i, want in ((0, p.nonzero_cpu), (1, p.nonzero_memory)):
            if room[i] > 0:
                weights += 1
                after = int(t.nonzero[i, slot]) + want
                if after <= room[i]:
                    free += (room[i] - after) * 100 // room[i]
        total = int(kind.fixed[slot]) + _FIT * (free // max(weights, 1))
        if p.requests.get("cpu") or p.requests.get("memory"):
            both = room[0] > 0 and room[1] > 0
            before = _balance(used[0] / max(room[0], 1), used[1] / max(room[1], 1), both)
            then = _balance((used[0] + p.requests.get("cpu", 0)) / max(room[0], 1), (used[1] + p.requests.get("memory", 0)) / max(room[1], 1), both)
            total += _BALANCE * (50 + (50 + then - before) // 2)
        return total


def _balance(a: float, b: float, both: bool) -> int:
    return int((1 - (abs(min(a, 1.0) - min(b, 1.0)) / 2 if both else 0.0)) * 100)
