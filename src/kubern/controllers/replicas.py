"""How many replicas a metric asks for. Pure; values are in thousandths, as metrics.py reads them.

Pods that do not run yet or have no number are assumed to be where they change least. Upstream: pkg/controller/podautoscaler/replica_calculator.go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubern.controllers.metrics import NoMetric, Sample, Samples
from kubern.controllers.pods import phase, ready
from kubern.model.object import Object, condition, deleting, name
from kubern.model.quantity import milli
from kubern.model.time import seconds_of

TOLERANCE = 0.1
CPU_START_S, READINESS_DELAY_S = 300.0, 30.0
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far usage may be from its target, down and up, before anything changes."""

    down: float = TOLERANCE
    up: float = TOLERANCE

    def covers(self, ratio: float) -> bool:
        return 1.0 - self.down <= ratio <= 1.0 + self.up


def tolerance_of(behavior: dict[str, Any] | None) -> Tolerance:
    down, up = (((behavior or {}).get(k) or {}).get("tolerance") for k in ("scaleDown", "scaleUp"))
    return Tolerance(TOLERANCE if down is None else milli(str(down)) / 1000, TOLERANCE if up is None else milli(str(up)) / 1000)


@dataclass(frozen=True, slots=True)
class Now:
    """What all ways to a number have in common."""

    replicas: int                        # spec.replicas of the target
    tolerance: Tolerance
    pods: Callable[[], list[Object]]     # of the target; raises NoMetric if there are none
    now_s: float


def of_average(at: Now, samples: Samples, target: int, resource: str = "") -> tuple[int, int]:
    """(replicas, average now) for an average value a pod should have."""
    shown: list[int] = []

    def ratio(s: Samples) -> float:
        shown.append(sum(x.value for x in s.values()) // len(s))
        return shown[-1] / target
    count = _of_samples(at, samples, at.pods(), resource, lambda pod: target, ratio)
    return count, shown[0]


def of_utilization(at: Now, samples: Samples, percent: int, resource: str, container: str) -> tuple[int, int, int]:
    """(replicas, utilization now in percent of what pods request, average now)."""
    pods = at.pods()
    shown: list[tuple[int, int]] = []
    requests: dict[str, int] = {}

    def ratio(s: Samples) -> float:
        if not requests:
            requests.update({name(p): _request(p, resource, container) for p in pods})
        known = [n for n in s if n in requests]
        total = sum(requests[n] for n in known)
        if not total:
            raise NoMetric("no metrics returned matched known pods")
        used = sum(s[n].value for n in known)
        shown.append((used * 100 // total, used // len(known)))
        return shown[-1][0] / percent
    count = _of_samples(at, samples, pods, resource, lambda pod: requests.get(pod, 0) * max(100, percent) // 100, ratio)
    return count, *shown[0]


def of_value(at: Now, usage: int, target: int) -> int:
    """For a value all replicas answer for together."""
    ratio = usage / target
    if not at.replicas:
        return math.ceil(ratio)
    if at.tolerance.covers(ratio):
        return at.replicas
    try:
        running = sum(phase(p) == "Running" and ready(p) for p in at.pods())
    except NoMetric as e:
        raise NoMetric(f"unable to calculate ready pods: {e.message}") from None
    return _int32(ratio * running)


def of_share(at: Now, replicas: int, usage: int, target: int) -> tuple[int, int]:
    """(replicas, share of each now) for a value that is divided among the replicas there are (of the target's status)."""
    ratio = usage / (target * replicas) if replicas and target else math.inf
    return replicas if at.tolerance.covers(ratio) else _int32(usage / target), math.ceil(usage / replicas) if replicas else usage


def _int32(n: float) -> int:
    return min(INT32_MAX, math.ceil(n))


def _of_samples(at: Now, samples: Samples, pods: list[Object], resource: str, fallback: Callable[[str], int], ratio_of: Callable[[Samples], float]) -> int:
    """`ratio_of(samples)` is usage over target; `fallback(pod)` stands for a missing sample when it goes down."""
    counted, unready, missing = _group(samples, pods, resource, at.now_s)
    if not samples:
        raise NoMetric("did not receive metrics for targeted pods (pods might be unready)")
    ratio = ratio_of(samples)
    rising = bool(unready) and ratio > 1.0
    if not rising and not missing:
        return at.replicas if at.tolerance.covers(ratio) else _int32(ratio * counted)
    for pod in missing:
        if ratio < 1.0:
            samples[pod] = Sample(fallback(pod))
        elif ratio > 1.0:
            samples[pod] = Sample(0)
    if rising:
        samples |= dict.fromkeys(unready, Sample(0))
    new = ratio_of(samples)
    if at.tolerance.covers(new) or (ratio < 1.0 < new) or (new < 1.0 < ratio):
        return at.replicas
    count = _int32(new * len(samples))
    return at.replicas if (new < 1.0 and count > at.replicas) or (new > 1.0 and count < at.replicas) else count


def _group(samples: Samples, pods: list[Object], resource: str, now_s: float) -> tuple[int, set[str], set[str]]:
    """(how many ready pods, unready ones, ones without a metric); drops the samples of pods that do not count."""
    counted, unready, missing = 0, set[str](), set[str]()
    for p in pods:
        if deleting(p) or phase(p) == "Failed":
            samples.pop(name(p), None)
        elif phase(p) == "Pending":
            unready.add(name(p))
        elif name(p) not in samples:
            missing.add(name(p))
        elif resource == "cpu" and _starting(p, samples[name(p)], now_s):
            unready.add(name(p))
        else:
            counted += 1
    for pod in unready:
        samples.pop(pod, None)
    return counted, unready, missing


def _starting(pod: Object, sample: Sample, now_s: float) -> bool:
    c = condition(pod, "Ready")
    started = seconds_of((pod.get("status") or {}).get("startTime"))
    if c is None or not started:
        return True
    changed = seconds_of(c.get("lastTransitionTime"))
    if started + CPU_START_S > now_s:
        return c.get("status") == "False" or sample.at_s < changed + sample.window_s
    return c.get("status") == "False" and started + READINESS_DELAY_S > changed


def _request(pod: Object, resource: str, container: str) -> int:
    """What the pod, or one container of it, asks for. Raises NoMetric."""
    spec = pod.get("spec") or {}
    containers = [*(spec.get("containers") or ()), *(c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")]
    of_pod = (spec.get("resources") or {}).get("requests") or {}
    if of_pod and not container:
        each = [of_pod[resource]] if resource in of_pod else [r[resource] for c in containers if resource in (r := _requests(c))]
        if not each:
            raise NoMetric(f"missing pod-level request for {resource} in Pod {name(pod)}")
        return sum(milli(str(x)) for x in each)
    chosen = [c for c in containers if not container or c.get("name") == container]
    for c in chosen:
        if resource not in _requests(c):
            raise NoMetric(f"missing request for {resource} in container {c.get('name')} of Pod {name(pod)}")
    if container and not chosen:
        raise NoMetric(f"container {container} not found in Pod {name(pod)}")
    return sum(milli(str(_requests(c)[resource])) for c in chosen)


def _requests(container: dict[str, Any]) -> dict[str, Any]:
    return (container.get("resources") or {}).get("requests") or {}
