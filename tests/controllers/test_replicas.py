"""From metrics to a number of replicas: what pods use, what follows from it, and how fast it may be followed."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.controllers import metrics, replicas
from kubern.controllers.behavior import Memory, limited
from kubern.controllers.metrics import NoMetric, Sample
from kubern.controllers.select import Overlaps
from kubern.model.intent import Failed
from kubern.model.selector import parse_labels
from tests.controllers.conftest import pod

NOW_S = 1893456600.0                     # ten minutes after the pods were made


def answered(steps: Any, *answers: Any) -> Any:
    """What a reader makes of these answers."""
    try:
        steps.send(None)
        for a in answers:
            steps.send(a)
    except StopIteration as e:
        return e.value
    raise AssertionError("asked more than it was answered")


def usage(*cpu: str, window: str = "15s") -> dict[str, Any]:
    return {"items": [{"metadata": {"name": f"p{i}"}, "timestamp": "2030-01-01T00:09:50Z", "window": window,
                       "containers": [{"name": "c", "usage": {"cpu": n}}]} for i, n in enumerate(cpu)]}


@pytest.mark.parametrize(("window", "seconds"), [("500ms", 0.5), ("15s", 15.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("0s", 0.0)])
def test_windows_are_durations(window: str, seconds: float) -> None:
    assert answered(metrics.of_resource("ns", "cpu", "", "app=a"), usage("1", window=window))["p0"].window_s == seconds


def test_what_cannot_be_read() -> None:
    for answer, why in ((usage("1", window="soon"), 'unable to fetch metrics from resource metrics API: time: invalid duration "soon"'),
                        ({"items": []}, "no metrics returned from resource metrics API"),
                        (Failed(None, 404, "NotFound", "x"), "unable to fetch metrics from resource metrics API: the server could not find the requested "
                                                             "resource (get pods.metrics.k8s.io)")):
        with pytest.raises(NoMetric, match=r"^unable to get metrics for resource cpu: ") as e:
            answered(metrics.of_resource("ns", "cpu", "", "app=a"), answer)
        assert e.value.message.endswith(why)


def at(pods: list[Any], count: int = 2) -> replicas.Now:
    return replicas.Now(count, replicas.Tolerance(), lambda: pods, NOW_S)


def started(name: str, ago_s: float = 590.0, **kw: Any) -> Any:
    p = pod(name, **kw)
    p["status"]["startTime"] = "2030-01-01T00:00:10Z" if ago_s == 590.0 else "2030-01-01T00:08:00Z"
    p["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "100m"}}
    return p


def test_utilization() -> None:
    both = [started("p0"), started("p1")]
    assert replicas.of_utilization(at(both), {"p0": Sample(200, NOW_S), "p1": Sample(100, NOW_S)}, 50, "cpu", "") == (6, 150, 150)
    assert replicas.of_utilization(at(both), {"p0": Sample(52, NOW_S), "p1": Sample(50, NOW_S)}, 50, "cpu", "")[0] == 2          # within a tenth
    missing = [*both, started("p2")]
    assert replicas.of_utilization(at(missing, 3), {"p0": Sample(20, NOW_S), "p1": Sample(20, NOW_S)}, 50, "cpu", "")[0] == 3  # the third may use all
    young = [*both, started("p2", ago_s=120.0, is_ready=False)]
    up = {"p0": Sample(100, NOW_S), "p1": Sample(100, NOW_S), "p2": Sample(900, NOW_S)}
    assert replicas.of_utilization(at(young, 3), up, 50, "cpu", "")[0] == 4                       # a pod that starts counts as idle
    whole = started("p0")
    whole["spec"]["resources"] = {"requests": {"memory": "1Gi"}}
    whole["spec"]["containers"][0]["resources"] = {}
    with pytest.raises(NoMetric, match="missing pod-level request for cpu in Pod p0"):
        replicas.of_utilization(at([whole]), {"p0": Sample(1)}, 50, "cpu", "")


def test_speed_limits() -> None:
    memory = Memory()
    rules: dict[str, Any] = {
        "scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]},
        "scaleDown": {"stabilizationWindowSeconds": 100, "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}]}}
    assert limited(memory, rules, (1, 100), 10, 30, 0.0)[:1] == (12,)
    memory.scaled(rules, 10, 12, 0.0)
    result, able, is_limited, why = limited(memory, rules, (1, 100), 12, 30, 30.0)
    assert (result, able[0], is_limited, why[0]) == (12, "ReadyForNewScale", True, "ScaleUpLimit")           # two a minute have been had
    result, able, _, why = limited(memory, rules, (1, 100), 12, 2, 60.0)
    assert (result, able[0], why[0]) == (12, "ScaleDownStabilized", "DesiredWithinRange")                  # 30 was wanted a moment ago
    assert limited(Memory(), rules, (1, 100), 12, 2, 200.0)[::3] == (6, ("ScaleDownLimit", "the desired replica count is decreasing faster than the "
                                                                                             "maximum scale rate"))
    assert limited(Memory(), None, (1, 100), 3, 50, 0.0)[0] == 6                                            # without rules: double, or four
    assert limited(Memory(), {"scaleDown": {"selectPolicy": "Disabled"}}, (1, 9), 5, 1, 0.0)[0] == 5


def test_overlaps() -> None:
    o = Overlaps()
    o.put(("ns", "a"), parse_labels("app=x"))
    o.put(("ns", "b"), parse_labels("app in (x,y),tier!=db"))
    o.put(("other", "c"), parse_labels("app=x"))
    assert o.of("ns", [{"app": "x"}]) == [("ns", "a"), ("ns", "b")]
    assert o.of("ns", [{"app": "x", "tier": "db"}, {"app": "z"}]) == [("ns", "a")]
    o.put(("ns", "a"), parse_labels("app=z"))
    o.drop(("ns", "b"))
    assert o.of("ns", [{"app": "x"}]) == [] and o.of("ns", [{"app": "z"}]) == [("ns", "a")]
