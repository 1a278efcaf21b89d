"""autoscaling/v2: HorizontalPodAutoscaler (stored as v2; v1 is a view of it, model/convert.py), and the check of a Scale.

Upstream: pkg/apis/autoscaling/{v2/defaults.go,validation}, pkg/registry/autoscaling/horizontalpodautoscaler; KEP-853, KEP-4951.
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.invalid import forbidden, invalid, not_supported, required
from kubern.model.kinds.checks import Errors, keep_spec, keep_status, listed, messages, nonnegative, path_segment, zero_status
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.resource_rules import container_resource_name
from kubern.model.object import Object
from kubern.model.quantity import canonical, compare

PERIOD_S_MAX, WINDOW_S_MAX = 1800, 3600
SOURCES = {"Object": "object", "External": "external", "Pods": "pods", "Resource": "resource", "ContainerResource": "containerResource"}
SOURCE_TYPES = tuple(sorted(SOURCES))
SELECT_POLICIES = ("Disabled", "Max", "Min")
POLICY_TYPES = ("Percent", "Pods")
DEFAULT_CPU_PERCENT = 80


# --- defaults ---------------------------------------------------------------------------------------------------------------------------

def default_autoscaler(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if spec.get("minReplicas") is None:
        spec["minReplicas"] = 1
    if not spec.get("metrics"):
        spec["metrics"] = [{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": DEFAULT_CPU_PERCENT}}}]
    behavior = spec.get("behavior")
    if behavior is not None:
        percent = {"type": "Percent", "value": 100, "periodSeconds": 15}
        behavior["scaleUp"] = _rules(behavior.get("scaleUp"), 0, [{"type": "Pods", "value": 4, "periodSeconds": 15}, percent])
        behavior["scaleDown"] = _rules(behavior.get("scaleDown"), None, [percent])


def _rules(given: Object | None, window_s: int | None, policies: list[Object]) -> Object:
    out: Object = {"stabilizationWindowSeconds": window_s, "selectPolicy": "Max", "policies": policies}
    if window_s is None:
        del out["stabilizationWindowSeconds"]
    out.update({k: v for k, v in (given or {}).items() if v is not None})
    return out


# --- validation -------------------------------------------------------------------------------------------------------------------------

def _api_version_error(text: str, allow_core: bool) -> str:
    if text in ("", "/"):
        group = ""
    elif text.count("/") > 1:
        return f"unexpected GroupVersion string: {text}"
    else:
        group = text.rpartition("/")[0]
    return "" if group or allow_core else "apiVersion must specify API group"


def _reference(ref: Object, path: str, allow_core: bool, any_version: bool) -> Errors:
    yield from path_segment(ref.get("kind"), f"{path}.kind")
    yield from path_segment(ref.get("name"), f"{path}.name")
    version = ref.get("apiVersion") or ""
    if not any_version and (why := _api_version_error(version, allow_core)):
        yield invalid(f"{path}.apiVersion", version, why)


def _validate_spec(spec: Object, old: Object | None) -> Errors:
    low, high = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    bound = 0 if old is not None and old.get("minReplicas") == 0 else 1
    if low is not None and low < bound:
        yield invalid("spec.minReplicas", low, f"must be greater than or equal to {bound}")
    if high == 0:
        yield required("spec.maxReplicas", "must be set and greater than 0")
    elif high < 0:
        yield invalid("spec.maxReplicas", high, "must be greater than or equal to 1")
    if low is not None and high < low:
        yield invalid("spec.maxReplicas", high, "must be greater than or equal to `minReplicas`")
    target = spec.get("scaleTargetRef") or {}
    before = (old or {}).get("scaleTargetRef") or {}
    unchanged = old is not None and all((target.get(k) or "") == (before.get(k) or "") for k in ("apiVersion", "kind"))
    yield from _reference(target, "spec.scaleTargetRef", target.get("kind") == "ReplicationController" and not unchanged, unchanged)
    any_version = any(
        m.get("type") == "Object" and _api_version_error(((m.get("object") or {}).get("describedObject") or {}).get("apiVersion") or "", True)
        for m in (old or {}).get("metrics") or ())
    yield from _metrics(spec.get("metrics") or [], low, any_version)
    behavior = spec.get("behavior")
    if behavior is not None:
        for which in ("scaleUp", "scaleDown"):
            if behavior.get(which) is not None:
                yield from _scaling_rules(behavior[which], f"spec.behavior.{which}")


def _metrics(metrics: list[Object], low: int | None, any_version: bool) -> Errors:
    for i, m in enumerate(metrics):
        yield from _metric(m, f"spec.metrics[{i}]", any_version)
    if low == 0 and not any(m.get("type") in ("Object", "External") for m in metrics):
        yield forbidden("spec.metrics", "must specify at least one Object or External metric to support scaling to zero replicas")


def _metric(m: Object, path: str, any_version: bool) -> Errors:
    type_ = m.get("type") or ""
    if not type_:
        yield required(f"{path}.type", "must specify a metric source type")
    if type_ not in SOURCES:
        yield not_supported(f"{path}.type", type_, SOURCE_TYPES)
    present = [f for f in SOURCES.values() if m.get(f) is not None]
    if present:
        yield from _source(present[0], m[present[0]], f"{path}.{present[0]}", any_version)
    expected = SOURCES.get(type_)
    if expected is None:
        yield not_supported(f"{path}.type", type_, SOURCE_TYPES)
    elif m.get(expected) is None:
        yield required(f"{path}.{expected}", "must populate information for the given metric source")
    if len(present) != 1:
        for field in present:
            if field != expected:
                yield forbidden(f"{path}.{field}", "must populate the given metric source only")


def _source(field: str, source: Object, path: str, any_version: bool) -> Errors:
    target = source.get("target") or {}
    value, average, utilization = target.get("value"), target.get("averageValue"), target.get("averageUtilization")
    if field == "object":
        yield from _reference(source.get("describedObject") or {}, f"{path}.describedObject", True, any_version)
    if field in ("object", "external", "pods"):
        name = (source.get("metric") or {}).get("name") or ""
        if not name:
            yield required(f"{path}.metric.name", "must specify a metric name")
        else:
            yield from messages(name, names.is_path_segment_name(name), f"{path}.metric.name")
    else:
        name = source.get("name") or ""
        if not name:
            yield required(f"{path}.name", "must specify a resource name")
        elif field == "containerResource":
            yield from container_resource_name(name, f"{path}.name")
    if field == "containerResource":
        container = source.get("container") or ""
        if not container:
            yield required(f"{path}.container", "must specify a container")
        else:
            yield from messages(container, names.is_dns1123_label(container), f"{path}.container")
    yield from _target(target, f"{path}.target")
    if field == "object":
        if value is None and average is None:
            yield required(f"{path}.target.averageValue", "must set either a target value or averageValue")
    elif field == "external":
        if value is None and average is None:
            yield required(f"{path}.target.averageValue", "must set either a target value for metric or a per-pod target")
        if value is not None and average is not None:
            yield forbidden(f"{path}.target.value", "may not set both a target value for metric and a per-pod target")
    elif field == "pods":
        if average is None:
            yield required(f"{path}.target.averageValue", "must specify a positive target averageValue")
    else:
        if utilization is None and average is None:
            yield required(f"{path}.target.averageUtilization", "must set either a target raw value or a target utilization")
        if utilization is not None and average is not None:
            yield forbidden(f"{path}.target.averageValue", "may not set both a target raw value and a target utilization")


def _target(target: Object, path: str) -> Errors:
    type_ = target.get("type") or ""
    if not type_:
        yield required(f"{path}.type", "must specify a metric target type")
    if type_ not in ("Utilization", "Value", "AverageValue"):
        yield invalid(f"{path}.type", type_, "must be either Utilization, Value, or AverageValue")
    for field in ("value", "averageValue"):
        amount = target.get(field)
        if amount is not None and compare(str(amount), "0") <= 0:
            yield invalid(f"{path}.{field}", canonical(str(amount)), "must be positive")
    utilization = target.get("averageUtilization")
    if utilization is not None and utilization < 1:
        yield invalid(f"{path}.averageUtilization", utilization, "must be greater than 0")


def _scaling_rules(rules: Object, path: str) -> Errors:
    window, select = rules.get("stabilizationWindowSeconds"), rules.get("selectPolicy")
    if window is not None and window < 0:
        yield invalid(f"{path}.stabilizationWindowSeconds", window, "must be greater than or equal to zero")
    if window is not None and window > WINDOW_S_MAX:
        yield invalid(f"{path}.stabilizationWindowSeconds", window, f"must be less than or equal to {WINDOW_S_MAX}")
    if select is not None and select not in SELECT_POLICIES:
        yield not_supported(f"{path}.selectPolicy", select, SELECT_POLICIES)
    if not rules.get("policies"):
        yield required(f"{path}.policies", "must specify at least one Policy")
    for i, policy in enumerate(rules.get("policies") or ()):
        yield from _scaling_policy(policy, f"{path}.policies[{i}]")
    tolerance = rules.get("tolerance")
    if tolerance is not None and compare(str(tolerance), "0") < 0:
        yield invalid(f"{path}.tolerance", canonical(str(tolerance)), names.NEGATIVE)


def _scaling_policy(policy: Object, path: str) -> Errors:
    value, period = policy.get("value") or 0, policy.get("periodSeconds") or 0
    if policy.get("type") not in POLICY_TYPES:
        yield not_supported(f"{path}.type", policy.get("type") or "", POLICY_TYPES)
    if value <= 0:
        yield invalid(f"{path}.value", value, "must be greater than zero")
    if period <= 0:
        yield invalid(f"{path}.periodSeconds", period, "must be greater than zero")
    if period > PERIOD_S_MAX:
        yield invalid(f"{path}.periodSeconds", period, f"must be less than or equal to {PERIOD_S_MAX}")


def validate_autoscaler(obj: Object) -> Errors:
    return _validate_spec(obj.get("spec") or {}, None)


def validate_autoscaler_update(new: Object, old: Object) -> Errors:
    return _validate_spec(new.get("spec") or {}, old.get("spec") or {})


def validate_autoscaler_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from nonnegative(status.get("currentReplicas"), "status.currentReplicas")
    yield from nonnegative(status.get("desiredReplicas"), "status.desiredReplicas")


KINDS: KindTable = {
    ("autoscaling", "HorizontalPodAutoscaler"): Kind(
        defaults=default_autoscaler, prepare_create=zero_status({"desiredReplicas": 0, "currentMetrics": None}), prepare_update=keep_status,
        prepare_status=keep_spec, validate=listed(validate_autoscaler), validate_update=listed(validate_autoscaler_update),
        validate_status=listed(validate_autoscaler_status)),
}
