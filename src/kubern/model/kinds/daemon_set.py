"""apps/v1 DaemonSet. Upstream: pkg/apis/apps/{v1/defaults.go,v1/conversion.go,validation}, pkg/registry/apps/daemonset."""

from __future__ import annotations

import re

from kubern.model.invalid import invalid, not_supported, required
from kubern.model.kinds.checks import (
    Errors,
    form,
    int_or_percent_value,
    keep_spec,
    listed,
    nonnegative,
    nonnegative_int_or_percent,
    not_more_than_100_percent,
    same,
    selector_of,
)
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import validate_label_selector
from kubern.model.kinds.pod_defaults import default_pod_template
from kubern.model.kinds.templates import template_warnings, validate_template
from kubern.model.kinds.workload_rules import (
    TEMPLATE,
    always_running,
    collision_count,
    counts,
    create_with,
    default_rolling,
    fill,
    old_template,
    part,
    selector_immutable,
    spec_of,
    template_of,
    update_with_template,
)
from kubern.model.object import Object
from kubern.model.status import bad_request

TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"


def default_daemon_set(obj: Object) -> None:
    spec = spec_of(obj)
    strategy = part(spec, "updateStrategy")
    default_rolling(strategy, {"maxUnavailable": 1, "maxSurge": 0})
    if strategy["type"] != "RollingUpdate" and strategy.get("rollingUpdate") is not None:
        fill(strategy["rollingUpdate"], {"maxUnavailable": 0, "maxSurge": 0})
    fill(spec, {"revisionHistoryLimit": 10})
    default_pod_template(spec.setdefault("template", {}))
    value = _template_generation(obj)
    if value is not None and not re.fullmatch(r"[+-]?\d+", value):
        raise bad_request('DaemonSet in version "v1" cannot be handled as a DaemonSet: strconv.ParseInt: parsing '
                          f'"{value}": invalid syntax')


def _template_generation(obj: Object) -> str | None:
    return (obj["metadata"].get("annotations") or {}).get(TEMPLATE_GENERATION)


def _set_template_generation(obj: Object, value: int) -> None:
    obj["metadata"]["annotations"] = {**(obj["metadata"].get("annotations") or {}), TEMPLATE_GENERATION: str(value)}


_fresh_daemon_set = create_with({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0})


def _create_daemon_set(obj: Object) -> None:
    _fresh_daemon_set(obj)
    _set_template_generation(obj, max(1, int(_template_generation(obj) or 0)))


def _update_daemon_set(new: Object, old: Object) -> None:
    update_with_template(new, old)
    changed = not same((new.get("spec") or {}).get("template"), (old.get("spec") or {}).get("template"))
    _set_template_generation(new, int(_template_generation(old) or 0) + changed)


def _status_daemon_set(new: Object, old: Object) -> None:
    keep_spec(new, old)
    _set_template_generation(new, int(_template_generation(old) or 0))


def _rolling_daemon_set(rolling: Object, path: str) -> Errors:
    unavailable, surge = rolling.get("maxUnavailable", 0), rolling.get("maxSurge", 0)
    yield from nonnegative_int_or_percent(unavailable, f"{path}.maxUnavailable")
    yield from nonnegative_int_or_percent(surge, f"{path}.maxSurge")
    yield from not_more_than_100_percent(unavailable, f"{path}.maxUnavailable")
    yield from not_more_than_100_percent(surge, f"{path}.maxSurge")
    has_unavailable, has_surge = int_or_percent_value(unavailable) != 0, int_or_percent_value(surge) != 0
    if has_unavailable and has_surge:
        yield invalid(f"{path}.maxSurge", surge, "may not be set when maxUnavailable is non-zero")
    elif not has_unavailable and not has_surge:
        yield required(f"{path}.maxUnavailable", "cannot be 0 when maxSurge is 0")


def _daemon_strategy(strategy: Object, path: str) -> Errors:
    type_, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if type_ == "RollingUpdate":
        if rolling is None:
            yield required(f"{path}.rollingUpdate")
        else:
            yield from _rolling_daemon_set(rolling, f"{path}.rollingUpdate")
    elif type_ != "OnDelete":
        yield not_supported(path, form(strategy, "apps.DaemonSetUpdateStrategy"), ("RollingUpdate", "OnDelete"))


def validate_daemon_set(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    label_selector = spec.get("selector")
    yield from validate_label_selector(label_selector, "spec.selector")
    selector = selector_of(label_selector)
    labels = (template_of(spec).get("metadata") or {}).get("labels")
    if selector is not None and not selector.matches(labels):
        yield invalid(f"{TEMPLATE}.metadata.labels", labels, "`selector` does not match template `labels`")
    if label_selector is not None and not label_selector.get("matchLabels") and not label_selector.get("matchExpressions"):
        yield invalid("spec.selector", {}, "empty selector is invalid for daemonset")
    yield from validate_template(template_of(spec), TEMPLATE, old_template(old))
    yield from always_running(spec, "DaemonSet")
    yield from nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
    yield from nonnegative(int(_template_generation(obj) or 0), "spec.templateGeneration")
    yield from _daemon_strategy(spec.get("updateStrategy") or {}, "spec.updateStrategy")
    yield from nonnegative(spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")


def validate_daemon_set_update(new: Object, old: Object) -> Errors:
    yield from selector_immutable(new, old)
    yield from validate_daemon_set(new, old)


def validate_daemon_set_status(new: Object, old: Object) -> Errors:
    yield from counts(new.get("status") or {}, "currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady",
                       "observedGeneration", "updatedNumberScheduled", "numberAvailable", "numberUnavailable", "collisionCount")
    yield from collision_count(new, old)


def _daemon_set_warnings(new: Object, old: Object | None) -> list[str]:
    if old is not None and _template_generation(new) == _template_generation(old):
        return []
    return template_warnings(template_of(new.get("spec") or {}), TEMPLATE, old_template(old))


KINDS: KindTable = {
    ("apps", "DaemonSet"): Kind(
        defaults=default_daemon_set,
        prepare_create=_create_daemon_set, prepare_update=_update_daemon_set, prepare_status=_status_daemon_set,
        validate=listed(validate_daemon_set), validate_update=listed(validate_daemon_set_update),
        validate_status=listed(validate_daemon_set_status), warnings=_daemon_set_warnings, has_generation=True,
        field_annotations=(TEMPLATE_GENERATION,)),
}
