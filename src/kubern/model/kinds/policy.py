"""policy/v1: PodDisruptionBudget. Evictions are a subresource of pods. Upstream: pkg/apis/policy/validation, pkg/registry/policy."""

from __future__ import annotations

from kubern.model import names
from kubern.model.invalid import invalid, not_supported
from kubern.model.kinds.checks import (
    Errors,
    conditions,
    form,
    keep_spec,
    keep_status,
    listed,
    nonnegative,
    nonnegative_int_or_percent,
    not_more_than_100_percent,
    zero_status,
)
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import selector_is_valid, validate_label_selector
from kubern.model.object import Object

EVICTION_POLICIES = ("AlwaysAllow", "IfHealthyBudget")


def validate_budget(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    low, high = spec.get("minAvailable"), spec.get("maxUnavailable")
    if low is not None and high is not None:
        yield invalid("spec", form(spec, "policy.PodDisruptionBudgetSpec"), "minAvailable and maxUnavailable cannot be both set")
    for field, value in (("minAvailable", low), ("maxUnavailable", high)):
        if value is not None:
            yield from nonnegative_int_or_percent(value, f"spec.{field}")
            yield from not_more_than_100_percent(value, f"spec.{field}")
    any_value = old is not None and not selector_is_valid((old.get("spec") or {}).get("selector"))
    yield from validate_label_selector(spec.get("selector"), "spec.selector", any_value)
    eviction = spec.get("unhealthyPodEvictionPolicy")
    if eviction is not None and eviction not in EVICTION_POLICIES:
        yield not_supported("spec.unhealthyPodEvictionPolicy", eviction, EVICTION_POLICIES)


def validate_budget_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from conditions(status.get("conditions"), "status.conditions")
    for field in ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"):
        yield from nonnegative(status.get(field), f"status.{field}")


KINDS: KindTable = {
    ("policy", "PodDisruptionBudget"): Kind(
        prepare_create=zero_status({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
        prepare_update=keep_status, prepare_status=keep_spec,
        validate=listed(validate_budget), validate_update=listed(validate_budget), validate_status=listed(validate_budget_status),
        unconditional_update=False, has_generation=True, name_check=names.name_is_path_segment, qualified_finalizers=False, meta_update=0),
}
