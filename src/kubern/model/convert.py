"""Convert: the few kinds that are served in another shape than they are stored in.

HorizontalPodAutoscaler v1 <-> v2 (stored), and Event of events.k8s.io <-> core (stored). What v1 of the autoscaler has no field for travels in
annotations, so that a client of the old version loses nothing. Every other row is stored as it is served.
In: an object with kind and apiVersion, and the row that reads or writes it. Out: a fresh object; parts may be shared.
Upstream: pkg/apis/autoscaling/v1/conversion.go, pkg/apis/events/v1/conversion.go.
"""

from __future__ import annotations

from typing import Any

import orjson

from kubern.model.object import Object
from kubern.model.patch_words import Marks, text
from kubern.model.resource import Resource
from kubern.model.schema import definition, schema_for
from kubern.model.strict import Fault, tidy

_PREFIX = "autoscaling.alpha.kubernetes.io/"
METRICS, CURRENT, CONDITIONS, BEHAVIOR = (_PREFIX + n for n in ("metrics", "current-metrics", "conditions", "behavior"))
_ROUND_TRIP = (METRICS, CURRENT, CONDITIONS, BEHAVIOR, _PREFIX + "scale-down-tolerance", _PREFIX + "scale-up-tolerance")
DEFAULT_CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
_V1 = "io.k8s.api.autoscaling.v1."
_SOURCES = ("object", "pods", "resource", "containerResource", "external")


def from_storage(obj: Object, row: Resource) -> Object:
    """A stored object as the row shows it."""
    if obj.get("apiVersion") == row.api_version:
        return obj
    if row.kind == "Event":
        return _fit(_event(obj, _TO_EVENTS), row.api_version, row.kind)
    if row.kind == "HorizontalPodAutoscaler" and row.version == "v1":
        return _fit(_to_v1(obj), row.api_version, row.kind)
    return {**obj, "apiVersion": row.api_version}


def to_storage(obj: Object, row: Resource) -> Object:
    """An object of the row as it is stored."""
    if row.kind == "Event" and row.group == "events.k8s.io":
        return _fit(_event(obj, _TO_CORE), "v1", "Event")
    if row.kind == "HorizontalPodAutoscaler":
        if row.version == "v1":
            return _fit(_from_v1(obj), "autoscaling/v2", row.kind)
        return _without_round_trip(obj)
    if row.storage_version and row.storage_version != row.version:
        group = row.storage[0]
        return {**obj, "apiVersion": f"{group}/{row.storage_version}" if group else row.storage_version}
    return obj


def default_served(obj: Object, row: Resource) -> None:
    """What a served version fills in by itself, before anything is made of it; owned by who wrote the object, as all that is defaulted."""
    if (row.group, row.version, row.kind) == ("autoscaling", "v1", "HorizontalPodAutoscaler"):
        spec = obj.setdefault("spec", {})
        if spec.get("minReplicas") is None:
            spec["minReplicas"] = 1


def _fit(obj: Object, api_version: str, kind: str) -> Object:
    obj["apiVersion"], obj["kind"] = api_version, kind
    try:
        return tidy(obj, schema_for(api_version, kind))
    except Fault:
        return obj


# ---------------------------------------------------------------- events

_TO_EVENTS = {"involvedObject": "regarding", "message": "note", "source": "deprecatedSource", "firstTimestamp": "deprecatedFirstTimestamp",
              "lastTimestamp": "deprecatedLastTimestamp", "count": "deprecatedCount", "reportingComponent": "reportingController"}
_TO_CORE = {v: k for k, v in _TO_EVENTS.items()}


def _event(obj: Object, names: dict[str, str]) -> Object:
    return {names.get(k, k): v for k, v in obj.items()}


# ---------------------------------------------------------------- autoscaling

def _without_round_trip(obj: Object) -> Object:
    annotations = (obj.get("metadata") or {}).get("annotations") or {}
    if not any(a in annotations for a in _ROUND_TRIP):
        return obj
    kept = {k: v for k, v in annotations.items() if k not in _ROUND_TRIP}
    meta = {k: v for k, v in obj["metadata"].items() if k != "annotations"}
    if kept:
        meta["annotations"] = kept
    return {**obj, "metadata": meta}


def _is_cpu(metric: Object) -> bool:
    resource = metric.get("resource") or {}
    return metric.get("type") == "Resource" and resource.get("name") == "cpu" and (resource.get("target") or {}).get("averageUtilization") is not None


def _to_v1(obj: Object) -> Object:
    obj = _without_round_trip(obj)
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    metrics, current, conditions = spec.get("metrics") or [], status.get("currentMetrics") or [], status.get("conditions") or []
    out_spec = {k: spec[k] for k in ("scaleTargetRef", "minReplicas", "maxReplicas") if k in spec}
    cpu = next((m for m in metrics if _is_cpu(m)), None)
    if cpu is not None:
        out_spec["targetCPUUtilizationPercentage"] = cpu["resource"]["target"]["averageUtilization"]
    out_status = {k: status[k] for k in ("observedGeneration", "lastScaleTime", "currentReplicas", "desiredReplicas") if k in status}
    for m in current:
        resource = m.get("resource") or {}
        used = (resource.get("current") or {}).get("averageUtilization")
        if m.get("type") == "Resource" and resource.get("name") == "cpu" and used is not None:
            out_status["currentCPUUtilizationPercentage"] = used
    notes: dict[str, str] = {}
    others = [_spec_to_v1(m) for m in metrics if not _is_cpu(m)]
    if others:
        notes[METRICS] = _encode(others, "MetricSpec")
    if current:
        notes[CURRENT] = _encode([_status_to_v1(m) for m in current], "MetricStatus")
    if spec.get("behavior") is not None:
        notes[BEHAVIOR] = orjson.dumps(_behavior_out(spec["behavior"])).decode()
    if conditions:
        notes[CONDITIONS] = _encode(conditions, "HorizontalPodAutoscalerCondition")
    meta = dict(obj.get("metadata") or {})
    if notes:
        meta["annotations"] = {**(meta.get("annotations") or {}), **notes}
    return {**obj, "metadata": meta, "spec": out_spec, "status": out_status}


def _encode(items: list[Object], type_: str) -> str:
    """JSON in the order of upstream's declaration; the types are no part of the published schema, only of the wire table."""
    declared = _V1 + type_
    return "[" + ",".join(_declared_json(i, declared) for i in items) + "]"


def _declared_json(value: Any, name: str) -> str:
    from kubern.model import wire

    if not isinstance(value, dict):
        return text(value, None, Marks())
    parts = []
    for f in wire.fields(name):
        if f.name in value:
            inner = value[f.name]
            if f.scalar or f.wrap or "Quantity" in f.type or f.type.endswith("LabelSelector"):
                schema = definition(f.type) if f.type.endswith("LabelSelector") else None
                parts.append(f'"{f.name}":{text(inner, schema, Marks())}')
            else:
                parts.append(f'"{f.name}":{_declared_json(inner, f.type)}')
    return "{" + ",".join(parts) + "}"


def _from_v1(obj: Object) -> Object:
    annotations = (obj.get("metadata") or {}).get("annotations") or {}
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    cpu = spec.pop("targetCPUUtilizationPercentage", None)
    metrics = []
    others = _decode(annotations.get(METRICS))
    if isinstance(others, list):
        metrics += [_spec_from_v1(m) for m in others if isinstance(m, dict)]
    if cpu is not None:
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": cpu}}})
    spec["metrics"] = metrics or [DEFAULT_CPU]
    behavior = _decode(annotations.get(BEHAVIOR))
    if isinstance(behavior, dict) and behavior:
        spec["behavior"] = _behavior_in(behavior)
    used = status.pop("currentCPUUtilizationPercentage", None)
    current = _decode(annotations.get(CURRENT))
    if isinstance(current, list):
        status["currentMetrics"] = [_status_from_v1(m) for m in current if isinstance(m, dict)]
    elif used is not None:
        status["currentMetrics"] = [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": used}}}]
    conditions = _decode(annotations.get(CONDITIONS))
    if isinstance(conditions, list):
        status["conditions"] = conditions
    return _without_round_trip({**obj, "spec": spec, "status": status})


def _decode(text_: str | None) -> Any:
    if not text_:
        return None
    try:
        return orjson.loads(text_)
    except ValueError:
        return None


def _some(**values: Any) -> Object:
    return {k: v for k, v in values.items() if v is not None}


def _spec_to_v1(m: Object) -> Object:
    out: Object = {"type": m.get("type", "")}
    for source in _SOURCES:
        s = m.get(source)
        if s is None:
            continue
        target, metric = s.get("target") or {}, s.get("metric") or {}
        if source in ("resource", "containerResource"):
            out[source] = _some(name=s.get("name", ""), targetAverageUtilization=target.get("averageUtilization"),
                                targetAverageValue=target.get("averageValue"), container=s.get("container"))
        elif source == "pods":
            out[source] = _some(metricName=metric.get("name", ""), targetAverageValue=target.get("averageValue", "0"),
                                selector=metric.get("selector"))
        elif source == "object":
            out[source] = _some(target=s.get("describedObject") or {}, metricName=metric.get("name", ""), targetValue=target.get("value", "0"),
                                selector=metric.get("selector"), averageValue=target.get("averageValue"))
        else:
            out[source] = _some(metricName=metric.get("name", ""), metricSelector=metric.get("selector"), targetValue=target.get("value"),
                                targetAverageValue=target.get("averageValue"))
    return out


def _spec_from_v1(m: Object) -> Object:
    out: Object = {"type": m.get("type", "")}
    for source in _SOURCES:
        s = m.get(source)
        if s is None:
            continue
        if source in ("resource", "containerResource"):
            used = s.get("targetAverageUtilization")
            target = _some(type="AverageValue" if used is None else "Utilization", averageUtilization=used, averageValue=s.get("targetAverageValue"))
            out[source] = _some(name=s.get("name", ""), target=target, container=s.get("container"))
        elif source == "pods":
            out[source] = {"metric": _some(name=s.get("metricName", ""), selector=s.get("selector")),
                           "target": {"type": "AverageValue", "averageValue": s.get("targetAverageValue", "0")}}
        elif source == "object":
            average, value = s.get("averageValue"), s.get("targetValue", "0")
            target = _some(type="Value" if average is None else "AverageValue", averageValue=average,
                           value=value if average is None or value != "0" else None)
            out[source] = {"describedObject": s.get("target") or {}, "metric": _some(name=s.get("metricName", ""), selector=s.get("selector")),
                           "target": target}
        else:
            value = s.get("targetValue")
            out[source] = {"metric": _some(name=s.get("metricName", ""), selector=s.get("metricSelector")),
                           "target": _some(type="AverageValue" if value is None else "Value", value=value, averageValue=s.get("targetAverageValue"))}
    return out


def _status_to_v1(m: Object) -> Object:
    out: Object = {"type": m.get("type", "")}
    for source in _SOURCES:
        s = m.get(source)
        if s is None:
            continue
        current, metric = s.get("current") or {}, s.get("metric") or {}
        if source in ("resource", "containerResource"):
            out[source] = _some(name=s.get("name", ""), currentAverageUtilization=current.get("averageUtilization"),
                                currentAverageValue=current.get("averageValue", "0"), container=s.get("container"))
        elif source == "pods":
            out[source] = _some(metricName=metric.get("name", ""), currentAverageValue=current.get("averageValue", "0"),
                                selector=metric.get("selector"))
        elif source == "object":
            out[source] = _some(target=s.get("describedObject") or {}, metricName=metric.get("name", ""), currentValue=current.get("value", "0"),
                                selector=metric.get("selector"), averageValue=current.get("averageValue"))
        else:
            out[source] = _some(metricName=metric.get("name", ""), metricSelector=metric.get("selector"), currentValue=current.get("value", "0"),
                                currentAverageValue=current.get("averageValue"))
    return out


def _status_from_v1(m: Object) -> Object:
    out: Object = {"type": m.get("type", "")}
    for source in _SOURCES:
        s = m.get(source)
        if s is None:
            continue
        average = s.get("currentAverageValue")
        if source in ("resource", "containerResource"):
            out[source] = _some(name=s.get("name", ""), container=s.get("container"),
                                current=_some(averageUtilization=s.get("currentAverageUtilization"), averageValue=average))
        elif source == "pods":
            out[source] = {"metric": _some(name=s.get("metricName", ""), selector=s.get("selector")), "current": _some(averageValue=average)}
        elif source == "object":
            out[source] = {"describedObject": s.get("target") or {}, "metric": _some(name=s.get("metricName", ""), selector=s.get("selector")),
                           "current": _some(value=s.get("currentValue"), averageValue=s.get("averageValue"))}
        else:
            out[source] = {"metric": _some(name=s.get("metricName", ""), selector=s.get("metricSelector")),
                           "current": _some(value=s.get("currentValue"), averageValue=average)}
    return out


_RULES = (("stabilizationWindowSeconds", "StabilizationWindowSeconds"), ("selectPolicy", "SelectPolicy"), ("policies", "Policies"),
          ("tolerance", "Tolerance"))
_POLICY = (("type", "Type"), ("value", "Value"), ("periodSeconds", "PeriodSeconds"))


def _behavior_out(behavior: Object) -> Object:
    """behavior as the annotation holds it: upstream's internal type, with Go's names."""
    def rules(r: Object | None) -> Object | None:
        if r is None:
            return None
        out = {go: r.get(name) for name, go in _RULES}
        if r.get("policies") is not None:
            out["Policies"] = [{go: p.get(name, "" if name == "type" else 0) for name, go in _POLICY} for p in r["policies"]]
        return out
    return {"ScaleUp": rules(behavior.get("scaleUp")), "ScaleDown": rules(behavior.get("scaleDown"))}


def _behavior_in(behavior: Object) -> Object:
    def rules(r: Any) -> Object | None:
        if not isinstance(r, dict):
            return None
        out = {name: r[go] for name, go in _RULES if r.get(go) is not None}
        if isinstance(r.get("Policies"), list):
            out["policies"] = [{name: p[go] for name, go in _POLICY if go in p} for p in r["Policies"] if isinstance(p, dict)]
        return out
    return _some(scaleUp=rules(behavior.get("ScaleUp")), scaleDown=rules(behavior.get("ScaleDown")))
