"""HorizontalPodAutoscaler v2: sizes a scale target by metrics, every 15 seconds.

A pass reads the target's scale and the metrics (metrics.py), asks each how many replicas it wants (replicas.py), lets the greatest number through as
fast as the behaviour allows (behavior.py), and writes scale and status. Upstream: pkg/controller/podautoscaler/horizontal.go.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from kubern.controllers import metrics, replicas
from kubern.controllers.behavior import Memory, limited
from kubern.controllers.context import Context
from kubern.controllers.metrics import NoMetric
from kubern.controllers.replicas import tolerance_of
from kubern.controllers.select import Overlaps, go_selector, selected
from kubern.model import rows
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Emit, Failed, Fetch, Requeue, Update
from kubern.model.object import Key, Object, key, labels, meta, namespace, uid
from kubern.model.quantity import milli, of_milli
from kubern.model.selector import Selector, parse_labels
from kubern.model.status import StatusError
from kubern.model.time import rfc3339
from kubern.model.view import View

HPAS = "horizontalpodautoscalers.autoscaling"
PERIOD_S = 15.0
CONFLICT_TRIES = 5
FAILED = {  # type of a metric: reason where it gives no number
    "Resource": "FailedGetResourceMetric", "ContainerResource": "FailedGetContainerResourceMetric", "Pods": "FailedGetPodsMetric",
    "Object": "FailedGetObjectMetric", "External": "FailedGetExternalMetric"}
Asked = Generator[Any, Any, tuple[int, str, dict[str, Any]]]       # (replicas, what the metric is called, its status); raises NoMetric


class _Pass:
    """One look at one autoscaler."""

    def __init__(self, hpa: Object, view: View, now: float, overlaps: Overlaps) -> None:
        self.hpa, self.view, self.now, self.overlaps = hpa, view, now, overlaps
        self.spec = hpa["spec"]
        self.old: dict[str, Any] = hpa.get("status") or {}
        self.conditions: list[dict[str, Any]] = [dict(c) for c in self.old.get("conditions") or ()]
        self.behavior: dict[str, Any] | None = self.spec.get("behavior")
        self.low: int = 1 if self.spec.get("minReplicas") is None else self.spec["minReplicas"]
        self.high: int = self.spec.get("maxReplicas") or 0

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

    def write(self, current: int | None, desired: int | None, statuses: list[dict[str, Any]] | None, scaled: bool) -> Steps:
        status: dict[str, Any] = {"currentMetrics": statuses, "conditions": self.conditions}
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

    # ---- the target

    def target(self) -> Generator[Any, Any, tuple[str, Object] | str]:
        """(path of the scale, the scale) or why there is none."""
        ref = self.spec.get("scaleTargetRef") or {}
        version, kind = ref.get("apiVersion") or "", ref.get("kind") or ""
        if version.count("/") > 1:
            return f"unexpected GroupVersion string: {version}"
        group = version.rpartition("/")[0]
        row = rows.of_kind(self.view, group, kind)
        if row is None:
            return f'no matches for kind "{kind}" in group "{group}"'
        path = rows.path(row, namespace(self.hpa), ref.get("name") or "") + "/scale"
        scale = yield Fetch(path)
        return scale.message if isinstance(scale, Failed) else (path, scale)

    def selector(self, text: str) -> Generator[Any, Any, Selector | str]:
        """Which pods are the target's, or why that cannot be told."""
        if not text:
            yield self.emit("Warning", "SelectorRequired", "selector is required")
            self.mark("ScalingActive", "False", "InvalidSelector", "the HPA target's scale is missing a selector")
            return "selector is required"
        try:
            selector = parse_labels(text)
        except StatusError as e:
            why, reason = f"couldn't convert selector into a corresponding internal selector object: {e.message}", "InvalidSelector"
        else:
            self.overlaps.put(key(self.hpa), selector)
            pods = selected(self.view, "pods", namespace(self.hpa), selector)
            several = self.overlaps.of(namespace(self.hpa), (labels(p) for p in pods))
            if len(several) < 2:
                return selector
            why, reason = f"pods by selector {text} are controlled by multiple HPAs: [{' '.join(f'{ns}/{n}' for ns, n in several)}]", "AmbiguousSelector"
        yield self.emit("Warning", reason, why)
        self.mark("ScalingActive", "False", reason, why)
        return why

    # ---- the metrics

    def compute(self, scale: Object) -> Generator[Any, Any, tuple[int, str, list[dict[str, Any]], str]]:
        """(replicas or -1, what the deciding metric is called, statuses, error)."""
        text = (scale.get("status") or {}).get("selector") or ""
        selector = yield from self.selector(text)
        if isinstance(selector, str):
            return -1, "", [], selector
        best, label, statuses = 0, "", list[dict[str, Any]]()
        specs = self.spec.get("metrics") or []
        failures: list[tuple[str, str, str]] = []                      # (reason, message, the same where all metrics are told of)
        for m in specs:
            try:
                count, metric_name, status = yield from self.metric(m, scale, selector, text)
            except NoMetric as e:
                reason = e.reason or FAILED.get(m.get("type") or "", "")
                yield self.emit("Warning", reason, e.message)
                failures.append((reason, e.message, _context(m) + e.outer + e.message))
                statuses.append({"type": ""})
                continue
            statuses.append(status)
            if not best or count > best:
                best, label = count, metric_name
        reason, message, told = failures[0] if failures else ("", "", "")
        error = f"invalid metrics ({len(failures)} invalid out of {len(specs)}), first error is: {told}" if failures else ""
        if len(failures) == len(specs) or (failures and best < ((scale.get("spec") or {}).get("replicas") or 0)):
            self.mark("ScalingActive", "False", reason, f"the HPA was unable to compute the replica count: {message}")
            return -1, "", statuses, error
        self.mark("ScalingActive", "True", "ValidMetricFound", f"the HPA was able to successfully calculate a replica count from {label}")
        return best, label, statuses, error

    def metric(self, m: dict[str, Any], scale: Object, selector: Selector, text: str) -> Asked:
        kind = m.get("type")
        asked = replicas.Now((scale.get("spec") or {}).get("replicas") or 0, tolerance_of(self.behavior), lambda: self.pods(selector), self.now)
        have = (scale.get("status") or {}).get("replicas") or 0
        if kind == "Resource":
            return (yield from self.resource(kind, "resource", m["resource"], asked, text))
        if kind == "ContainerResource":
            return (yield from self.resource(kind, "containerResource", m["containerResource"], asked, text))
        if kind == "Pods":
            return (yield from self.pods_metric(m["pods"], asked, text))
        if kind == "Object":
            return (yield from self.object_metric(m["object"], asked, have))
        if kind == "External":
            return (yield from self.external_metric(m["external"], asked, have))
        raise NoMetric(f'unknown metric source type "{kind}"', "InvalidMetricSourceType")

    def pods(self, selector: Selector) -> list[Object]:
        pods = selected(self.view, "pods", namespace(self.hpa), selector)
        if not pods:
            raise NoMetric("no pods returned by selector while calculating replica count")
        return pods

    def resource(self, kind: str, field: str, source: dict[str, Any], asked: replicas.Now, text: str) -> Asked:
        resource, container, target = source["name"], source.get("container") or "", source["target"]
        average, percent = target.get("averageValue"), target.get("averageUtilization")
        if average is None and percent is None:
            raise NoMetric("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set")
        current: dict[str, Any] = {}
        try:
            samples = yield from metrics.of_resource(namespace(self.hpa), resource, container, text)
            if average is not None:
                count, usage = replicas.of_average(asked, samples, milli(str(average)), resource)
                label = f"{resource} resource"
            else:
                count, current["averageUtilization"], usage = replicas.of_utilization(asked, samples, percent, resource, container)
                label = f"{resource} {'container ' if container else ''}resource utilization (percentage of request)"
        except NoMetric as e:
            raise NoMetric(f"failed to get {resource} {'usage' if average is not None else 'utilization'}: {e.message}") from None
        current["averageValue"] = of_milli(usage, "BinarySI" if resource == "memory" else "DecimalSI")
        return count, label, {"type": kind, field: {"name": resource, **({"container": container} if container else {}), "current": current}}

    def pods_metric(self, source: dict[str, Any], asked: replicas.Now, text: str) -> Asked:
        metric = source["metric"]
        samples = yield from metrics.of_pods(namespace(self.hpa), metric, text)
        count, usage = replicas.of_average(asked, samples, milli(str(source["target"]["averageValue"])))
        return count, f"pods metric {metric['name']}", {"type": "Pods", "pods": {"metric": metric, "current": {"averageValue": of_milli(usage)}}}

    def object_metric(self, source: dict[str, Any], asked: replicas.Now, have: int) -> Asked:
        metric, ref, target = source["metric"], source["describedObject"], source["target"]
        row = rows.find(self.view, ref.get("apiVersion") or "v1", ref.get("kind") or "")
        plural = rows.resource_name(row) if row is not None else (ref.get("kind") or "").lower() + "s"
        read = metrics.of_object(namespace(self.hpa), metric, ref, plural)
        if target.get("type") == "Value" and target.get("value") is not None:
            usage = yield from read
            count, label = replicas.of_value(asked, usage, milli(str(target["value"]))), f"{ref.get('kind')} metric {metric['name']}"
            shown = {"value": of_milli(usage)}
        elif target.get("averageValue") is not None:
            usage = yield from _from_outside(read, f"failed to get {metric['name']} object metric: ")
            count, usage = replicas.of_share(asked, have, usage, milli(str(target["averageValue"])))
            shown, label = {"averageValue": of_milli(usage)}, f"external metric {metric['name']}({go_selector(metric.get('selector'))})"
        else:
            raise NoMetric("invalid object metric source: neither a value target nor an average value target was set")
        return count, label, {"type": "Object", "object": {"metric": metric, "current": shown, "describedObject": ref}}

    def external_metric(self, source: dict[str, Any], asked: replicas.Now, have: int) -> Asked:
        metric, target = source["metric"], source["target"]
        read = metrics.of_outside(namespace(self.hpa), metric)
        if target.get("averageValue") is not None:
            usage = yield from _from_outside(read, f"failed to get {metric['name']} external metric: ")
            count, usage = replicas.of_share(asked, have, usage, milli(str(target["averageValue"])))
            shown = {"averageValue": of_milli(usage)}
        elif target.get("value") is not None:
            usage = yield from _from_outside(read, f"failed to get external metric {metric['name']}: ")
            count, shown = replicas.of_value(asked, usage, milli(str(target["value"]))), {"value": of_milli(usage)}
        else:
            raise NoMetric("invalid external metric source: neither a value target nor an average value target was set")
        return count, f"external metric {metric['name']}({go_selector(metric.get('selector'))})", {
            "type": "External", "external": {"metric": metric, "current": shown}}


def _from_outside(read: Generator[Any, Any, int], outer: str) -> Generator[Any, Any, int]:
    try:
        return (yield from read)
    except NoMetric as e:
        raise NoMetric(e.message, e.reason, outer) from None


def _context(m: dict[str, Any]) -> str:
    """What upstream puts before the error of a metric."""
    kind = m.get("type")
    if kind == "Resource":
        return f"failed to get {m['resource']['name']} resource metric value: "
    if kind == "ContainerResource":
        return f"failed to get {m['containerResource']['container']} container metric value: "
    if kind == "External":
        return f"failed to get {m['external']['metric']['name']} external metric value: "
    return {"Pods": "failed to get pods metric value: ", "Object": "failed to get object metric value: "}.get(kind or "", "")


def _rescale(path: str, scale: Object, desired: int) -> Generator[Any, Any, Failed | None]:
    """Write the size; somebody else's write meanwhile does not stop it."""
    answer: Any = None
    for _ in range(CONFLICT_TRIES):
        answer = yield Fetch(path, method="PUT", body={**scale, "spec": {**(scale.get("spec") or {}), "replicas": desired}})
        if not isinstance(answer, Failed):
            return None
        if answer.code != 409:
            break
        latest = yield Fetch(path)
        scale = scale if isinstance(latest, Failed) else latest
    return answer if isinstance(answer, Failed) else None


def controller(context: Context | None = None) -> Controller:
    memories: dict[Key, Memory] = {}
    overlaps = Overlaps()

    def reconcile(hpa: Object, view: View, now: float) -> Steps:
        yield Requeue(PERIOD_S)
        memory = memories.setdefault(key(hpa), Memory())
        p = _Pass(hpa, view, now, overlaps)
        found = yield from p.target()
        if isinstance(found, str):
            yield p.emit("Warning", "FailedGetScale", found)
            p.mark("AbleToScale", "False", "FailedGetScale", f"the HPA controller was unable to get the target's current scale: {found}")
            yield from p.write(None, None, None, False)
            return
        path, scale = found
        p.mark("AbleToScale", "True", "SucceededGetScale", "the HPA controller was able to get the target's current scale")
        current = (scale.get("spec") or {}).get("replicas") or 0
        if not memory.recommendations:
            memory.recommendations.append((current, now))
        desired, why, statuses = current, "", list[dict[str, Any]]()
        if current == 0:
            p.mark("ScalingActive", "False", "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
        elif current > p.high:
            desired, why = p.high, "Current number of replicas above Spec.MaxReplicas"
        elif current < p.low:
            desired, why = p.low, "Current number of replicas below Spec.MinReplicas"
        else:
            desired, label, statuses, error = yield from p.compute(scale)
            if desired == -1:
                yield from p.write(current, None, statuses or None, False)
                yield p.emit("Warning", "FailedComputeMetricsReplicas", error)
                return
            why = f"{label} above target" if desired > current else "All metrics below target" if desired < current else ""
            desired, able, is_limited, limit = limited(memory, p.behavior, (p.low, p.high), current, desired, now)
            p.mark("AbleToScale", "True", *able)
            p.mark("ScalingLimited", "True" if is_limited else "False", *limit)
        if desired == current:
            yield from p.write(current, desired, statuses or None, False)
            return
        failed = yield from _rescale(path, scale, desired)
        if failed is not None:
            yield p.emit("Warning", "FailedRescale", f"New size: {desired}; reason: {why}; error: {failed.message}")
            p.mark("AbleToScale", "False", "FailedUpdateScale", f"the HPA controller was unable to update the target scale: {failed.message}")
            yield from p.write(current, None, statuses or None, False)
            return
        p.mark("AbleToScale", "True", "SucceededRescale", f"the HPA controller was able to update the target scale to {desired}")
        yield p.emit("Normal", "SuccessfulRescale", f"New size: {desired}; reason: {why}")
        memory.scaled(p.behavior, current, desired, now)
        yield from p.write(current, desired, statuses or None, True)

    def gone(k: Key, view: View, now: float) -> Steps:
        memories.pop(k, None)
        overlaps.drop(k)
        yield from ()

    def changed(old: Object, new: Object) -> bool:
        return old["spec"] != new["spec"] or uid(old) != uid(new) or meta(old).get("generation") != meta(new).get("generation")

    return Controller("horizontal-pod-autoscaler", HPAS, reconcile, reads=("pods",), gone=gone, changed=changed, after_s=PERIOD_S)
