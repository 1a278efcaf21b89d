"""HorizontalPodAutoscaler v2: sizes a scale target by metrics, every 15 seconds.

Metrics are read live from metrics.k8s.io, custom.metrics.k8s.io and external.metrics.k8s.io; a cluster without them says so in conditions and
events. Numbers: 10 % tolerance, 5 minutes of stabilisation before going down, CPU of pods in their first 5 minutes counts when they are
ready. Upstream: pkg/controller/podautoscaler (horizontal.go, replica_calculator.go, metrics/).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from kubern.controllers.context import Context
from kubern.controllers.pods import phase, ready
from kubern.controllers.select import go_selector, selected
from kubern.model import rows
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Emit, Failed, Fetch, Requeue, Update
from kubern.model.object import Key, Object, condition, deleting, key, meta, name, namespace, uid
from kubern.model.quantity import milli, of_milli
from kubern.model.selector import Selector, from_label_selector, parse_labels
from kubern.model.status import StatusError
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

HPAS = "horizontalpodautoscalers.autoscaling"
PERIOD_S = 15.0
TOLERANCE = 0.1
DOWNSCALE_WINDOW_S = 300.0
CPU_START_S, READINESS_DELAY_S, WINDOW_S = 300.0, 30.0, 60.0
UP_FACTOR, UP_MINIMUM = 2.0, 4.0
SAMPLES_MAX = 512
INT32_MAX = 2**31 - 1


class _NoMetric(Exception):
    """Why a metric gives no number; `reason` is the condition's."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.message, self.reason = message, reason


@dataclass
class _Memory:
    """What upstream keeps of an autoscaler between passes."""

    recommendations: list[tuple[int, float]] = field(default_factory=list)
    ups: list[tuple[int, float]] = field(default_factory=list)
    downs: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Sample:
    value: int
    at: float = 0.0
    window_s: float = WINDOW_S


Live = Generator[Any, Any, Any]


class _Pass:
    """One look at one autoscaler."""

    def __init__(self, hpa: Object, view: View, now: float, memory: _Memory) -> None:
        self.hpa, self.view, self.now, self.memory = hpa, view, now, memory
        self.spec = hpa["spec"]
        self.old: dict[str, Any] = hpa.get("status") or {}
        self.conditions: list[dict[str, Any]] = [dict(c) for c in self.old.get("conditions") or ()]
        self.behavior: dict[str, Any] | None = self.spec.get("behavior")
        self.low: int = 1 if self.spec.get("minReplicas") is None else self.spec["minReplicas"]
        self.high: int = self.spec.get("maxReplicas") or 0

    # ---- conditions and status

    def mark(self, type_: str, status: str, reason: str, message: str) -> None:
        for c in self.conditions:
            if c.get("type") == type_:
                if c.get("status") != status:
                    c["lastTransitionTime"] = rfc3339(self.now)
                c |= {"status": status, "reason": reason, "message": message}
                return
        self.conditions.append({"type": type_, "status": status, "lastTransitionTime": rfc3339(self.now), "reason": reason, "message": message})

    def emit(self, type_: str, reason: str, message: str) -> Emit:
        return Emit(self.hpa, type_, reason, message)

    def write(self, current: int | None, desired: int | None, metrics: list[dict[str, Any]] | None, scaled: bool) -> Steps:
        status: dict[str, Any] = {"currentMetrics": metrics, "conditions": self.conditions}
        if current is None:
            status = {**self.old, "conditions": self.conditions}
        else:
            status["currentReplicas"] = current
            status["desiredReplicas"] = self.old.get("desiredReplicas", 0) if desired is None else desired
            if scaled:
                status["lastScaleTime"] = rfc3339(self.now)
            elif self.old.get("lastScaleTime"):
                status["lastScaleTime"] = self.old["lastScaleTime"]
        status.setdefault("desiredReplicas", 0)
        status.setdefault("currentMetrics", None)
        if status != {"currentMetrics": None, **self.old}:
            answer = yield Update({**self.hpa, "status": status}, "status")
            if isinstance(answer, Failed):
                yield self.emit("Warning", "FailedUpdateStatus", answer.message)

    # ---- reading metrics

    def _pod_metrics(self, resource: str, container: str, selector: str) -> Generator[Any, Any, dict[str, _Sample]]:
        live = yield Fetch(f"/apis/metrics.k8s.io/v1beta1/namespaces/{namespace(self.hpa)}/pods", {"labelSelector": [selector]})
        if isinstance(live, Failed):
            raise _NoMetric(f"unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: "
                            f"{_reach(live, 'pods.metrics.k8s.io')}")
        if not live.get("items"):
            raise _NoMetric(f"unable to get metrics for resource {resource}: no metrics returned from resource metrics API")
        out: dict[str, _Sample] = {}
        for m in live["items"]:
            containers = [c for c in m.get("containers") or () if not container or c.get("name") == container]
            usage = [(c.get("usage") or {}).get(resource) for c in containers]
            if usage and all(u is not None for u in usage):
                out[name(m)] = _Sample(sum(milli(str(u)) for u in usage), seconds_of(m.get("timestamp")), _duration(m.get("window")))
        return out

    def _custom(self, path: str, query: dict[str, list[str]]) -> Generator[Any, Any, list[dict[str, Any]]]:
        live = yield Fetch(f"/apis/custom.metrics.k8s.io/v1beta2/{path}", query)
        if isinstance(live, Failed) and live.code == 404:
            live = yield Fetch(f"/apis/custom.metrics.k8s.io/v1beta1/{path}", query)
        if isinstance(live, Failed):
            raise _NoMetric("unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"
                            if live.code == 404 else f"unable to fetch metrics from custom metrics API: {live.message}")
        return list(live.get("items") or ())

    def _external(self, metric: dict[str, Any]) -> Generator[Any, Any, int]:
        selector = str(from_label_selector(metric.get("selector") or {}))
        live = yield Fetch(f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace(self.hpa)}/{metric['name']}",
                           {"labelSelector": [selector]} if selector else {})
        head = f"unable to get external metric {namespace(self.hpa)}/{metric['name']}/{go_selector(metric.get('selector'))}: "
        if isinstance(live, Failed):
            why = "no external metrics API (external.metrics.k8s.io) registered" if live.code == 404 else live.message
            raise _NoMetric(f"{head}unable to fetch metrics from external metrics API: {why}")
        if not live.get("items"):
            raise _NoMetric(f"{head}no metrics returned from external metrics API")
        return sum(milli(str(i.get("value") or "0")) for i in live["items"])

    # ---- how many replicas

    def _within(self, ratio: float) -> bool:
        rules = self.behavior or {}
        down, up = ((rules.get(k) or {}).get("tolerance") for k in ("scaleDown", "scaleUp"))
        return 1.0 - (milli(str(down)) / 1000 if down is not None else TOLERANCE) <= ratio <= \
            1.0 + (milli(str(up)) / 1000 if up is not None else TOLERANCE)

    def _group(self, pods: list[Object], samples: dict[str, _Sample], resource: str) -> tuple[int, set[str], set[str]]:
        """(ready pods, unready ones, ones without a metric); drops the samples of pods that do not count."""
        counted, unready, missing = 0, set[str](), set[str]()
        for p in pods:
            if deleting(p) or phase(p) == "Failed":
                samples.pop(name(p), None)
            elif phase(p) == "Pending":
                unready.add(name(p))
            elif name(p) not in samples:
                missing.add(name(p))
            elif resource == "cpu" and self._starting(p, samples[name(p)]):
                unready.add(name(p))
            else:
                counted += 1
        for n in unready:
            samples.pop(n, None)
        return counted, unready, missing

    def _starting(self, pod: Object, sample: _Sample) -> bool:
        c = condition(pod, "Ready")
        started = seconds_of((pod.get("status") or {}).get("startTime"))
        if c is None or not started:
            return True
        changed = seconds_of(c.get("lastTransitionTime"))
        if started + CPU_START_S > self.now:
            return c.get("status") == "False" or sample.at < changed + sample.window_s
        return c.get("status") == "False" and started + READINESS_DELAY_S > changed

    def _pods(self, selector: Selector) -> list[Object]:
        pods = selected(self.view, "pods", namespace(self.hpa), selector)
        if not pods:
            raise _NoMetric("no pods returned by selector while calculating replica count")
        return pods

    def _propose(self, current: int, samples: dict[str, _Sample], pods: list[Object], resource: str, fallback: Any, ratio_of: Any) -> int:
        """The proposal of per-pod samples. `ratio_of(samples)` is usage over target; `fallback(pod)` stands for a missing sample."""
        counted, unready, missing = self._group(pods, samples, resource)
        if not samples:
            raise _NoMetric("did not receive metrics for targeted pods (pods might be unready)")
        ratio: float = ratio_of(samples)
        rising = bool(unready) and ratio > 1.0
        if not rising and not missing:
            return current if self._within(ratio) else min(INT32_MAX, math.ceil(ratio * counted))
        for n in missing:
            if ratio < 1.0:
                samples[n] = _Sample(fallback(n))
            elif ratio > 1.0:
                samples[n] = _Sample(0)
        if rising:
            for n in unready:
                samples[n] = _Sample(0)
        new: float = ratio_of(samples)
        if self._within(new) or (ratio < 1.0 < new) or (new < 1.0 < ratio):
            return current
        count = math.ceil(new * len(samples))
        return current if (new < 1.0 and count > current) or (new > 1.0 and count < current) else count

    def _resource(self, current: int, target: dict[str, Any], resource: str, container: str, selector: Selector, text: str
                  ) -> Generator[Any, Any, tuple[int, dict[str, Any]]]:
        def quantity(v: int) -> str:
            return of_milli(v, "BinarySI" if resource == "memory" else "DecimalSI")
        if target.get("averageValue") is not None:
            wanted = milli(str(target["averageValue"]))
            try:
                samples = yield from self._pod_metrics(resource, container, text)
                usage = [0]

                def plain(s: dict[str, _Sample]) -> float:
                    usage.append(sum(x.value for x in s.values()) // len(s))
                    return usage[-1] / wanted
                count = self._propose(current, samples, self._pods(selector), resource, lambda n: wanted, plain)
            except _NoMetric as e:
                raise _NoMetric(f"failed to get {resource} usage: {e.message}") from None
            return count, {"averageValue": quantity(usage[1])}
        if target.get("averageUtilization") is None:
            raise _NoMetric("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set")
        percent = target["averageUtilization"]
        try:
            samples = yield from self._pod_metrics(resource, container, text)
            pods = self._pods(selector)
            shown: list[tuple[int, int]] = []
            requests: dict[str, int] = {}

            def utilization(s: dict[str, _Sample]) -> float:
                if not requests:
                    requests.update({name(p): _request(p, resource, container) for p in pods})
                known = [n for n in s if n in requests]
                total = sum(requests[n] for n in known)
                if not total:
                    raise _NoMetric("no metrics returned matched known pods")
                used = sum(s[n].value for n in known)
                shown.append((used * 100 // total, used // len(known)))
                return shown[-1][0] / percent
            count = self._propose(current, samples, pods, resource, lambda n: requests.get(n, 0) * max(100, percent) // 100, utilization)
        except _NoMetric as e:
            raise _NoMetric(f"failed to get {resource} utilization: {e.message}") from None
        return count, {"averageUtilization": shown[0][0], "averageValue": quantity(shown[0][1])}

    def _by_ratio(self, current: int, ratio: float, selector: Selector) -> int:
        if not current:
            return math.ceil(ratio)
        if self._within(ratio):
            return current
        try:
            counted = sum(phase(p) == "Running" and ready(p) for p in self._pods(selector))
        except _NoMetric as e:
            raise _NoMetric(f"unable to calculate ready pods: {e.message}") from None
        return min(INT32_MAX, math.ceil(ratio * counted))

    def _per_pod(self, replicas: int, usage: int, target: int) -> tuple[int, int]:
        """(proposal, usage a pod)."""
        ratio = usage / (target * replicas) if replicas and target else math.inf
        count = replicas if self._within(ratio) else min(INT32_MAX, math.ceil(usage / target))
        return count, math.ceil(usage / replicas) if replicas else usage

    def metric(self, m: dict[str, Any], scale: Object, selector: Selector, text: str) -> Generator[Any, Any, tuple[int, str, dict[str, Any]]]:
        """(proposal, name of the metric, its status). Raises _NoMetric with the condition's reason."""
        spec_replicas, status_replicas = (scale.get("spec") or {}).get("replicas") or 0, (scale.get("status") or {}).get("replicas") or 0
        kind = m.get("type")
        if kind in ("Resource", "ContainerResource"):
            source = m["resource" if kind == "Resource" else "containerResource"]
            container = source.get("container") or ""
            count, shown = yield from self._resource(spec_replicas, source["target"], source["name"], container, selector, text)
            what = "container resource" if container else "resource"
            label = f"{source['name']} {what} utilization (percentage of request)" if "averageUtilization" in shown else f"{source['name']} resource"
            body = {"name": source["name"], **({"container": container} if container else {}), "current": shown}
            return count, label, {"type": kind, "resource" if kind == "Resource" else "containerResource": body}
        if kind == "Pods":
            return (yield from self._pods_metric(m["pods"], spec_replicas, selector, text))
        if kind == "Object":
            return (yield from self._object_metric(m["object"], spec_replicas, status_replicas, selector))
        if kind == "External":
            return (yield from self._external_metric(m["external"], spec_replicas, status_replicas, selector))
        raise _NoMetric(f'unknown metric source type "{kind}"', "InvalidMetricSourceType")

    def _pods_metric(self, source: dict[str, Any], current: int, selector: Selector, text: str) -> Live:
        metric, wanted = source["metric"], milli(str(source["target"]["averageValue"]))
        query = {"labelSelector": [text]}
        if metric.get("selector"):
            query["metricLabelSelector"] = [str(from_label_selector(metric["selector"]))]
        try:
            items = yield from self._custom(f"namespaces/{namespace(self.hpa)}/pods/*/{metric['name']}", query)
            if not items:
                raise _NoMetric("no metrics returned from custom metrics API")
        except _NoMetric as e:
            raise _NoMetric(f"unable to get metric {metric['name']}: {e.message}") from None
        samples = {(i.get("describedObject") or {}).get("name") or "": _Sample(milli(str(i.get("value") or "0")), seconds_of(i.get("timestamp")))
                   for i in items}
        usage: list[int] = []

        def plain(s: dict[str, _Sample]) -> float:
            usage.append(sum(x.value for x in s.values()) // len(s))
            return usage[-1] / wanted
        count = self._propose(current, samples, self._pods(selector), "", lambda n: wanted, plain)
        return count, f"pods metric {metric['name']}", {"type": "Pods", "pods": {"metric": metric, "current": {"averageValue": of_milli(usage[0])}}}

    def _object_metric(self, source: dict[str, Any], current: int, status_replicas: int, selector: Selector) -> Live:
        metric, ref, target = source["metric"], source["describedObject"], source["target"]
        row = rows.find(self.view, ref.get("apiVersion") or "v1", ref.get("kind") or "")
        plural = row.plural + (f".{row.group}" if row.group else "") if row is not None else (ref.get("kind") or "").lower() + "s"
        query = {"metricLabelSelector": [str(from_label_selector(metric["selector"]))]} if metric.get("selector") else {}
        space = namespace(self.hpa)
        path = f"namespaces/{space}/metrics/{metric['name']}" if ref.get("kind") == "Namespace" else \
            f"namespaces/{space}/{plural}/{ref.get('name')}/{metric['name']}"
        try:
            items = yield from self._custom(path, query)
            if not items:
                raise _NoMetric("unable to fetch metrics from custom metrics API: the custom metrics API returned nothing")
        except _NoMetric as e:
            raise _NoMetric(f"unable to get metric {metric['name']}: {ref.get('kind')} on {space} {ref.get('name')}/{e.message}") from None
        usage = milli(str(items[0].get("value") or "0"))
        if target.get("type") == "Value" and target.get("value") is not None:
            count = self._by_ratio(current, usage / milli(str(target["value"])), selector)
            shown, label = {"value": of_milli(usage)}, f"{ref.get('kind')} metric {metric['name']}"
        elif target.get("averageValue") is not None:
            count, usage = self._per_pod(status_replicas, usage, milli(str(target["averageValue"])))
            shown, label = {"averageValue": of_milli(usage)}, f"external metric {metric['name']}({go_selector(metric.get('selector'))})"
        else:
            raise _NoMetric("invalid object metric source: neither a value target nor an average value target was set")
        return count, label, {"type": "Object", "object": {"metric": metric, "current": shown, "describedObject": ref}}

    def _external_metric(self, source: dict[str, Any], current: int, status_replicas: int, selector: Selector) -> Live:
        metric, target = source["metric"], source["target"]
        average = target.get("averageValue")
        if average is None and target.get("value") is None:
            raise _NoMetric("invalid external metric source: neither a value target nor an average value target was set")
        try:
            usage = yield from self._external(metric)
        except _NoMetric as e:
            head = f"failed to get {metric['name']} external metric" if average is not None else f"failed to get external metric {metric['name']}"
            raise _NoMetric(f"{head}: {e.message}") from None
        if average is not None:
            count, usage = self._per_pod(status_replicas, usage, milli(str(average)))
            shown = {"averageValue": of_milli(usage)}
        else:
            count = self._by_ratio(current, usage / milli(str(target["value"])), selector)
            shown = {"value": of_milli(usage)}
        return count, f"external metric {metric['name']}({go_selector(metric.get('selector'))})", {
            "type": "External", "external": {"metric": metric, "current": shown}}

    # ---- limits

    def stabilize(self, current: int, wanted: int) -> int:
        """Recent recommendations, then the speed limits, then minReplicas and maxReplicas; sets AbleToScale and ScalingLimited."""
        if self.behavior is None:
            steady = max([wanted, *(r for r, at in self.memory.recommendations if at >= self.now - DOWNSCALE_WINDOW_S)])
            self._remember(wanted, DOWNSCALE_WINDOW_S)
            reason, message = "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation"
        else:
            up, down = self.behavior.get("scaleUp") or {}, self.behavior.get("scaleDown") or {}
            up_s, down_s = up.get("stabilizationWindowSeconds") or 0, down.get("stabilizationWindowSeconds")
            down_s = DOWNSCALE_WINDOW_S if down_s is None else down_s
            past = self.memory.recommendations
            least = min([wanted, *(r for r, at in past if at > self.now - up_s)])
            most = max([wanted, *(r for r, at in past if at > self.now - down_s)])
            steady = min(max(current, least), most)
            self._remember(wanted, max(up_s, down_s))
            if wanted >= current:
                reason, message = "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation"
            else:
                reason = "ScaleDownStabilized"
                message = "recent recommendations were higher than current one, applying the highest recent recommendation"
        if steady != wanted:
            self.mark("AbleToScale", "True", reason, message)
        else:
            self.mark("AbleToScale", "True", "ReadyForNewScale", "recommended size matches current size")
        result, reason, message = self._plain_limits(current, steady) if self.behavior is None else self._rate_limits(current, steady)
        self.mark("ScalingLimited", "False" if result == steady else "True", reason, message)
        return result

    def _remember(self, wanted: int, window_s: float) -> None:
        kept = [(r, at) for r, at in self.memory.recommendations if at >= self.now - window_s][-SAMPLES_MAX:]
        self.memory.recommendations = [*kept, (wanted, self.now)]

    def _plain_limits(self, current: int, wanted: int) -> tuple[int, str, str]:
        limit = int(max(UP_FACTOR * current, UP_MINIMUM))
        if wanted < self.low:
            return self.low, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
        if self.high > limit:
            if wanted > limit:
                return limit, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"
        elif wanted > self.high:
            return self.high, "TooManyReplicas", "the desired replica count is more than the maximum replica count"
        return wanted, "DesiredWithinRange", "the desired count is within the acceptable range"

    def _rate_limits(self, current: int, wanted: int) -> tuple[int, str, str]:
        assert self.behavior is not None
        if wanted > current:
            limit = max(current, self._rate(current, self.behavior.get("scaleUp") or {}, True))
            if self.high > limit and wanted > limit:
                return limit, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"
            if self.high <= limit and wanted > self.high:
                return self.high, "TooManyReplicas", "the desired replica count is more than the maximum replica count"
        elif wanted < current:
            limit = min(current, self._rate(current, self.behavior.get("scaleDown") or {}, False))
            if self.low < limit and wanted < limit:
                return limit, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"
            if self.low >= limit and wanted < self.low:
                return self.low, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
        return wanted, "DesiredWithinRange", "the desired count is within the acceptable range"

    def _rate(self, current: int, rules: dict[str, Any], up: bool) -> int:
        choice = rules.get("selectPolicy", "Max")
        if choice == "Disabled":
            return current
        proposals = []
        for p in rules.get("policies") or ():
            since = self.now - (p.get("periodSeconds") or 0)
            start = current - sum(n for n, at in self.memory.ups if at > since) + sum(n for n, at in self.memory.downs if at > since)
            if p.get("type") == "Pods":
                proposals.append(start + p["value"] if up else start - p["value"])
            else:
                proposals.append(math.ceil(start * (1 + p["value"] / 100)) if up else int(start * (1 - p["value"] / 100)))
        if not proposals:
            return current
        return max(proposals) if (choice != "Min") == up else min(proposals)

    def scaled(self, before: int, after: int) -> None:
        if self.behavior is None:
            return
        up = after > before
        rules = self.behavior.get("scaleUp" if up else "scaleDown") or {}
        longest = max((p.get("periodSeconds") or 0 for p in rules.get("policies") or ()), default=0)
        events = self.memory.ups if up else self.memory.downs
        events[:] = [*[e for e in events if e[1] >= self.now - longest][-SAMPLES_MAX:], (abs(after - before), self.now)]


def _reach(failed: Failed, resource: str) -> str:
    return f"the server could not find the requested resource (get {resource})" if failed.code == 404 else failed.message


def _duration(text: str | None) -> float:
    total, number = 0.0, ""
    for c in text or "":
        if c.isdigit() or c == ".":
            number += c
        elif number:
            total += float(number) * {"h": 3600, "m": 60, "s": 1}.get(c, 0)
            number = ""
    return total or WINDOW_S


def _request(pod: Object, resource: str, container: str) -> int:
    spec = pod.get("spec") or {}
    level = ((spec.get("resources") or {}).get("requests") or {}).get(resource)
    if level is not None and not container:
        return milli(str(level))
    total = 0
    found = False
    for c in [*(spec.get("containers") or ()), *(c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")]:
        if container and c.get("name") != container:
            continue
        found = True
        text = ((c.get("resources") or {}).get("requests") or {}).get(resource)
        if text is None:
            raise _NoMetric(f"missing request for {resource} in container {c.get('name')} of Pod {name(pod)}")
        total += milli(str(text))
    if container and not found:
        raise _NoMetric(f"container {container} not found in Pod {name(pod)}")
    return total


FAILED = {"Resource": "FailedGetResourceMetric", "ContainerResource": "FailedGetContainerResourceMetric", "Pods": "FailedGetPodsMetric",
          "Object": "FailedGetObjectMetric", "External": "FailedGetExternalMetric"}


def _context(m: dict[str, Any]) -> str:
    kind = m.get("type")
    if kind == "Resource":
        return f"failed to get {m['resource']['name']} resource metric value: "
    if kind == "ContainerResource":
        return f"failed to get {m['containerResource']['container']} container metric value: "
    if kind == "External":
        return f"failed to get {m['external']['metric']['name']} external metric value: "
    return {"Pods": "failed to get pods metric value: ", "Object": "failed to get object metric value: "}.get(kind or "", "")


def _compute(p: _Pass, scale: Object) -> Generator[Any, Any, tuple[int, str, list[dict[str, Any]], str]]:
    """(proposal or -1, metric's name, statuses, error)."""
    text = (scale.get("status") or {}).get("selector") or ""
    if not text:
        yield p.emit("Warning", "SelectorRequired", "selector is required")
        p.mark("ScalingActive", "False", "InvalidSelector", "the HPA target's scale is missing a selector")
        return -1, "", [], "selector is required"
    try:
        selector = parse_labels(text)
    except StatusError as e:
        why = f"couldn't convert selector into a corresponding internal selector object: {e.message}"
        yield p.emit("Warning", "InvalidSelector", why)
        p.mark("ScalingActive", "False", "InvalidSelector", why)
        return -1, "", [], why
    best, label, statuses = 0, "", list[dict[str, Any]]()
    specs = p.spec.get("metrics") or []
    current = (scale.get("spec") or {}).get("replicas") or 0
    bad = 0
    first: tuple[str, str, str] | None = None
    for m in specs:
        try:
            count, metric_name, status = yield from p.metric(m, scale, selector, text)
        except _NoMetric as e:
            reason = e.reason or FAILED.get(m.get("type") or "", "")
            yield p.emit("Warning", reason, e.message)
            if first is None:
                first = reason, f"the HPA was unable to compute the replica count: {e.message}", _context(m) + e.message
            bad += 1
            statuses.append({"type": ""})
            continue
        statuses.append(status)
        if not best or count > best:
            best, label = count, metric_name
    error = f"invalid metrics ({bad} invalid out of {len(specs)}), first error is: {first[2]}" if first else ""
    if bad >= len(specs) or (bad and best < current):
        if first is not None:
            p.mark("ScalingActive", "False", first[0], first[1])
        return -1, "", statuses, error
    p.mark("ScalingActive", "True", "ValidMetricFound", f"the HPA was able to successfully calculate a replica count from {label}")
    return best, label, statuses, error


def _target(p: _Pass) -> Generator[Any, Any, tuple[str, Object] | str]:
    """(path of the scale, the scale) or the error."""
    ref = p.spec.get("scaleTargetRef") or {}
    row = rows.find(p.view, ref.get("apiVersion") or "v1", ref.get("kind") or "")
    if row is None:
        group = (ref.get("apiVersion") or "").rpartition("/")[0]
        return f'no matches for kind "{ref.get("kind")}" in group "{group}"'
    path = rows.path(row, namespace(p.hpa), ref.get("name") or "") + "/scale"
    scale = yield Fetch(path)
    return scale.message if isinstance(scale, Failed) else (path, scale)


def controller(context: Context | None = None) -> Controller:
    memories: dict[Key, _Memory] = {}

    def reconcile(hpa: Object, view: View, now: float) -> Steps:
        yield Requeue(PERIOD_S)
        p = _Pass(hpa, view, now, memories.setdefault(key(hpa), _Memory()))
        found = yield from _target(p)
        if isinstance(found, str):
            yield p.emit("Warning", "FailedGetScale", found)
            p.mark("AbleToScale", "False", "FailedGetScale", f"the HPA controller was unable to get the target's current scale: {found}")
            yield from p.write(None, None, None, False)
            return
        path, scale = found
        p.mark("AbleToScale", "True", "SucceededGetScale", "the HPA controller was able to get the target's current scale")
        current = (scale.get("spec") or {}).get("replicas") or 0
        if not p.memory.recommendations:
            p.memory.recommendations.append((current, now))
        desired, why, metrics = current, "", list[dict[str, Any]]()
        if current == 0:
            p.mark("ScalingActive", "False", "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
        elif current > p.high:
            desired, why = p.high, "Current number of replicas above Spec.MaxReplicas"
        elif current < p.low:
            desired, why = p.low, "Current number of replicas below Spec.MinReplicas"
        else:
            desired, label, metrics, error = yield from _compute(p, scale)
            if desired == -1:
                yield from p.write(current, None, metrics or None, False)
                yield p.emit("Warning", "FailedComputeMetricsReplicas", error)
                return
            why = f"{label} above target" if desired > current else "All metrics below target" if desired < current else ""
            desired = p.stabilize(current, desired)
        if desired == current:
            yield from p.write(current, desired, metrics or None, False)
            return
        answer = yield Fetch(path, method="PUT", body={**scale, "spec": {**(scale.get("spec") or {}), "replicas": desired}})
        if isinstance(answer, Failed):
            yield p.emit("Warning", "FailedRescale", f"New size: {desired}; reason: {why}; error: {answer.message}")
            p.mark("AbleToScale", "False", "FailedUpdateScale", f"the HPA controller was unable to update the target scale: {answer.message}")
            yield from p.write(current, None, metrics or None, False)
            return
        p.mark("AbleToScale", "True", "SucceededRescale", f"the HPA controller was able to update the target scale to {desired}")
        yield p.emit("Normal", "SuccessfulRescale", f"New size: {desired}; reason: {why}")
        p.scaled(current, desired)
        yield from p.write(current, desired, metrics or None, True)

    def gone(k: Key, view: View, now: float) -> Steps:
        memories.pop(k, None)
        yield from ()

    def changed(old: Object, new: Object) -> bool:
        return old["spec"] != new["spec"] or uid(old) != uid(new) or meta(old).get("generation") != meta(new).get("generation")

    return Controller("horizontal-pod-autoscaler", HPAS, reconcile, reads=("pods",), gone=gone, changed=changed, after_s=PERIOD_S)
