"""How fast an autoscaler may follow what its metrics ask for: stabilisation, speed limits, bounds. What it remembers for that between passes.

Upstream: pkg/controller/podautoscaler/horizontal.go (normalizeDesiredReplicas…), KEP-853.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

DOWNSCALE_WINDOW_S = 300.0
UP_FACTOR, UP_MINIMUM = 2.0, 4.0
SAMPLES_MAX = 512
STEADY = ("ReadyForNewScale", "recommended size matches current size")
UP_STABILIZED = ("ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation")
DOWN_STABILIZED = ("ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation")
TOO_FEW = ("TooFewReplicas", "the desired replica count is less than the minimum replica count")
TOO_MANY = ("TooManyReplicas", "the desired replica count is more than the maximum replica count")
TOO_FAST_UP = ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate")
TOO_FAST_DOWN = ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate")
WITHIN = ("DesiredWithinRange", "the desired count is within the acceptable range")
Why = tuple[str, str]                    # reason and message of a condition


@dataclass(slots=True)
class Memory:
    """(replicas, when): what was recommended, and by how much it went up and down."""

    recommendations: list[tuple[int, float]] = field(default_factory=list)
    ups: list[tuple[int, float]] = field(default_factory=list)
    downs: list[tuple[int, float]] = field(default_factory=list)

    def scaled(self, behavior: dict[str, Any] | None, before: int, after: int, now_s: float) -> None:
        if behavior is None:
            return
        up = after > before
        rules = behavior.get("scaleUp" if up else "scaleDown") or {}
        longest = max((p.get("periodSeconds") or 0 for p in rules.get("policies") or ()), default=0)
        events = self.ups if up else self.downs
        events[:] = [*[e for e in events if e[1] >= now_s - longest][-SAMPLES_MAX:], (abs(after - before), now_s)]

    def _recommend(self, wanted: int, window_s: float, now_s: float) -> None:
        kept = [(r, at) for r, at in self.recommendations if at >= now_s - window_s][-SAMPLES_MAX:]
        self.recommendations = [*kept, (wanted, now_s)]


def limited(memory: Memory, behavior: dict[str, Any] | None, bounds: tuple[int, int], current: int, wanted: int, now_s: float) -> tuple[int, Why, bool, Why]:
    """(replicas, why of AbleToScale, whether ScalingLimited, why of that); remembers the recommendation. `bounds`: least and most."""
    if behavior is None:
        steady = max([wanted, *(r for r, at in memory.recommendations if at >= now_s - DOWNSCALE_WINDOW_S)])
        memory._recommend(wanted, DOWNSCALE_WINDOW_S, now_s)
        stabilized = DOWN_STABILIZED
        result, why = _plain(bounds, current, steady)
    else:
        up_s = (behavior.get("scaleUp") or {}).get("stabilizationWindowSeconds") or 0
        down_s = (behavior.get("scaleDown") or {}).get("stabilizationWindowSeconds")
        down_s = DOWNSCALE_WINDOW_S if down_s is None else down_s
        least = min([wanted, *(r for r, at in memory.recommendations if at > now_s - up_s)])
        most = max([wanted, *(r for r, at in memory.recommendations if at > now_s - down_s)])
        steady = min(max(current, least), most)
        memory._recommend(wanted, max(up_s, down_s), now_s)
        stabilized = UP_STABILIZED if wanted >= current else DOWN_STABILIZED
        result, why = _by_rate(memory, behavior, bounds, current, steady, now_s)
    return result, STEADY if steady == wanted else stabilized, result != steady, why


def _plain(bounds: tuple[int, int], current: int, wanted: int) -> tuple[int, Why]:
    low, high = bounds
    limit = int(max(UP_FACTOR * current, UP_MINIMUM))
    if wanted < low:
        return low, TOO_FEW
    if wanted > min(limit, high):
        return (limit, TOO_FAST_UP) if high > limit else (high, TOO_MANY)
    return wanted, WITHIN


def _by_rate(memory: Memory, behavior: dict[str, Any], bounds: tuple[int, int], current: int, wanted: int, now_s: float) -> tuple[int, Why]:
    low, high = bounds
    if wanted > current:
        limit = max(current, _rate(memory, current, behavior.get("scaleUp") or {}, True, now_s))
        if wanted > min(limit, high):
            return (limit, TOO_FAST_UP) if high > limit else (high, TOO_MANY)
    elif wanted < current:
        limit = min(current, _rate(memory, current, behavior.get("scaleDown") or {}, False, now_s))
        if wanted < max(limit, low):
            return (limit, TOO_FAST_DOWN) if low < limit else (low, TOO_FEW)
    return wanted, WITHIN


def _rate(memory: Memory, current: int, rules: dict[str, Any], up: bool, now_s: float) -> int:
    """How far the policies let it go now."""
    choice = rules.get("selectPolicy", "Max")
    if choice == "Disabled":
        return current
    proposals = []
    for p in rules.get("policies") or ():
        since = now_s - (p.get("periodSeconds") or 0)
        start = current - sum(n for n, at in memory.ups if at > since) + sum(n for n, at in memory.downs if at > since)
        if p.get("type") == "Pods":
            proposals.append(start + p["value"] if up else start - p["value"])
        else:
            proposals.append(math.ceil(start * (1 + p["value"] / 100)) if up else int(start * (1 - p["value"] / 100)))
    if not proposals:
        return current
    return max(proposals) if (choice != "Min") == up else min(proposals)
