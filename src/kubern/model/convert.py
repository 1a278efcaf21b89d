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
    others = [_metric_to_v1(m, "target") for m in metrics if not _is_cpu(m)]
    if others:
        notes[METRICS] = _encode(others, "MetricSpec")
    if current:
        notes[CURRENT] = _encode([_metric_to_v1(m, "current") for m in current], "MetricStatus")
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
        metrics += [_metric_from_v1(m, "target") for m in others if isinstance(m, dict)]
    if cpu is not None:
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": cpu}}})
    spec["metrics"] = metrics or [DEFAULT_CPU]
    behavior = _decode(annotations.get(BEHAVIOR))
    if isinstance(behavior, dict) and behavior:
        spec["behavior"] = _behavior_in(behavior)
    used = status.pop("currentCPUUtilizationPercentage", None)
    current = _decode(annotations.get(CURRENT))
    if isinstance(current, list):
        status["currentMetrics"] = [_metric_from_v1(m, "current") for m in current if isinstance(m, dict)]
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


# A metric of v1, by its source: (its name in v1, its path in v2, what stands in v1 where v2 has nothing: in a spec, in a status).
# * is "target" in a spec and "current" in a status.
_NAME = ("metricName", "metric.name", "", "")
_AMOUNTS = (("*AverageUtilization", "*.averageUtilization", None, None), ("*AverageValue", "*.averageValue", None, "0"))
_RESOURCE = (("name", "name", "", ""), ("container", "container", None, None), *_AMOUNTS)
_SOURCES: dict[str, tuple[tuple[str, str, Any, Any], ...]] = {
    "object": (("target", "describedObject", {}, {}), _NAME, ("selector", "metric.selector", None, None), ("*Value", "*.value", "0", "0"),
               ("averageValue", "*.averageValue", None, None)),
    "pods": (_NAME, ("selector", "metric.selector", None, None), ("*AverageValue", "*.averageValue", "0", "0")),
    "resource": _RESOURCE,
    "containerResource": _RESOURCE,
    "external": (_NAME, ("metricSelector", "metric.selector", None, None), ("*Value", "*.value", None, "0"), ("*AverageValue", "*.averageValue", None, None)),
}


def _metric_to_v1(m: Object, amount: str) -> Object:
    """A metric of a spec (`amount`: "target") or of a status ("current")."""
    out: Object = {"type": m.get("type", "")}
    for source, names in _SOURCES.items():
        if (s := m.get(source)) is None:
            continue
        out[source] = {}
        for name, path, in_spec, in_status in names:
            above, _, last = path.replace("*", amount).rpartition(".")
            value = ((s.get(above) or {}) if above else s).get(last)
            if value is None:
                value = in_spec if amount == "target" else in_status
            if value is not None:
                out[source][name.replace("*", amount)] = value
    return out


def _metric_from_v1(m: Object, amount: str) -> Object:
    out: Object = {"type": m.get("type", "")}
    for source, names in _SOURCES.items():
        if (s := m.get(source)) is None:
            continue
        made: Object = {amount: {}}
        out[source] = made
        for name, path, in_spec, _ in names:
            above, _, last = path.replace("*", amount).rpartition(".")
            value = s.get(name.replace("*", amount))
            if value is None:
                value = "" if last == "name" else in_spec if amount == "target" or not above else None
            if value is not None:
                (made.setdefault(above, {}) if above else made)[last] = value
        if amount == "target":
            made[amount] = _target(source, made[amount])
    return out


def _target(source: str, amounts: Object) -> Object:
    """The target of a v2 metric: its type is what v1 has no field for."""
    kind = "AverageValue"
    if amounts.get("averageUtilization") is not None:
        kind = "Utilization"
    elif source == "object" and "averageValue" in amounts:
        amounts = {k: v for k, v in amounts.items() if (k, v) != ("value", "0")}
    elif source in ("object", "external") and "value" in amounts:
        kind = "Value"
    return {"type": kind, **amounts}


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
    found = {"scaleUp": rules(behavior.get("ScaleUp")), "scaleDown": rules(behavior.get("ScaleDown"))}
    return {k: v for k, v in found.items() if v is not None}
