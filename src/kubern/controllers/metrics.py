"""What the metrics APIs say of pods, objects and things outside: live reads of metrics.k8s.io, custom.metrics.k8s.io and external.metrics.k8s.io.

Values are in thousandths. Not how many replicas follow from them (replicas.py). Upstream: pkg/controller/podautoscaler/metrics/client.go.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from kubern.controllers.select import go_selector
from kubern.model.intent import Failed, Fetch
from kubern.model.object import Object, name
from kubern.model.quantity import milli
from kubern.model.selector import from_label_selector
from kubern.model.time import duration_s, seconds_of

WINDOW_S = 60.0                          # of a custom metric that does not tell its own


class NoMetric(Exception):
    """Why a metric gives no number. `reason` is the condition's; `outer` stands before the message where all metrics are told of."""

    def __init__(self, message: str, reason: str = "", outer: str = "") -> None:
        super().__init__(message)
        self.message, self.reason, self.outer = message, reason, outer


@dataclass(frozen=True, slots=True)
class Sample:
    value: int
    at_s: float = 0.0
    window_s: float = WINDOW_S


Samples = dict[str, Sample]              # by the pod's name


def of_resource(space: str, resource: str, container: str, labels: str) -> Generator[Any, Any, Samples]:
    """What the pods (or one container of each) use of cpu or memory; pods that miss a number are left out."""
    head = f"unable to get metrics for resource {resource}:"
    live = yield Fetch(f"/apis/metrics.k8s.io/v1beta1/namespaces/{space}/pods", {"labelSelector": [labels]})
    if isinstance(live, Failed):
        why = "the server could not find the requested resource (get pods.metrics.k8s.io)" if live.code == 404 else live.message
        raise NoMetric(f"{head} unable to fetch metrics from resource metrics API: {why}")
    if not live.get("items"):
        raise NoMetric(f"{head} no metrics returned from resource metrics API")
    out: Samples = {}
    try:
        for m in live["items"]:
            containers = [c for c in m.get("containers") or () if not container or c.get("name") == container]
            usage = [(c.get("usage") or {}).get(resource) for c in containers]
            if usage and all(u is not None for u in usage):
                out[name(m)] = Sample(sum(milli(str(u)) for u in usage), seconds_of(m.get("timestamp")), duration_s(m.get("window") or "0"))
    except ValueError as e:
        raise NoMetric(f"{head} unable to fetch metrics from resource metrics API: {e}") from None
    return out


def of_pods(space: str, metric: dict[str, Any], labels: str) -> Generator[Any, Any, Samples]:
    """A custom metric of each pod."""
    try:
        items = yield from _custom(f"namespaces/{space}/pods/*/{metric['name']}", {"labelSelector": [labels], **_metric_selector(metric)})
        if not items:
            raise NoMetric("no metrics returned from custom metrics API")
    except NoMetric as e:
        raise NoMetric(f"unable to get metric {metric['name']}: {e.message}") from None
    return {(i.get("describedObject") or {}).get("name") or "":
            Sample(_value(i), seconds_of(i.get("timestamp")), WINDOW_S if i.get("windowSeconds") is None else i["windowSeconds"]) for i in items}


def of_object(space: str, metric: dict[str, Any], ref: dict[str, Any], plural: str) -> Generator[Any, Any, int]:
    """A custom metric of one object; of the namespace itself whatever name is given."""
    where = f"namespaces/{space}/metrics" if ref.get("kind") == "Namespace" else f"namespaces/{space}/{plural}/{ref.get('name')}"
    try:
        items = yield from _custom(f"{where}/{metric['name']}", _metric_selector(metric))
        if not items:
            raise NoMetric("unable to fetch metrics from custom metrics API: the custom metrics API returned nothing")
    except NoMetric as e:
        raise NoMetric(f"unable to get metric {metric['name']}: {ref.get('kind')} on {space} {ref.get('name')}/{e.message}") from None
    return _value(items[0])


def of_outside(space: str, metric: dict[str, Any]) -> Generator[Any, Any, int]:
    """The sum of an external metric's values."""
    selector = str(from_label_selector(metric.get("selector") or {}))
    live = yield Fetch(f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{space}/{metric['name']}", {"labelSelector": [selector]} if selector else {})
    head = f"unable to get external metric {space}/{metric['name']}/{go_selector(metric.get('selector'))}: "
    if isinstance(live, Failed):
        why = "no external metrics API (external.metrics.k8s.io) registered" if live.code == 404 else live.message
        raise NoMetric(f"{head}unable to fetch metrics from external metrics API: {why}")
    if not live.get("items"):
        raise NoMetric(f"{head}no metrics returned from external metrics API")
    return sum(_value(i) for i in live["items"])


def _custom(path: str, query: dict[str, list[str]]) -> Generator[Any, Any, list[Object]]:
    live = yield Fetch(f"/apis/custom.metrics.k8s.io/v1beta2/{path}", query)
    if isinstance(live, Failed) and live.code == 404:
        live = yield Fetch(f"/apis/custom.metrics.k8s.io/v1beta1/{path}", query)
    if isinstance(live, Failed):
        raise NoMetric("unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"
                       if live.code == 404 else f"unable to fetch metrics from custom metrics API: {live.message}")
    return list(live.get("items") or ())


def _metric_selector(metric: dict[str, Any]) -> dict[str, list[str]]:
    return {"metricLabelSelector": [str(from_label_selector(metric["selector"]))]} if metric.get("selector") else {}


def _value(item: Object) -> int:
    return milli(str(item.get("value") or "0"))
