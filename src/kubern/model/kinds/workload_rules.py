"""Rules that workloads with a pod template share: selectors, templates, counts of a status, warnings. Upstream: pkg/apis/apps/validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kubern.model import names
from kubern.model.invalid import forbidden, invalid, not_supported, required
from kubern.model.kinds.checks import (
    Errors,
    decremented,
    immutable,
    keep_status,
    nonnegative,
    selector_form,
    selector_of,
    zero_status,
)
from kubern.model.kinds.labels import validate_label_selector
from kubern.model.kinds.templates import prepare_template, template_warnings, validate_template
from kubern.model.object import Object

TEMPLATE = "spec.template"


def spec_of(obj: Object) -> Object:
    return obj.setdefault("spec", {})


def part(obj: Object, field: str) -> Object:
    """The object in a field, made where there is none."""
    found: Object | None = obj.get(field)
    if found is None:
        found = obj[field] = {}
    return found


def fill(obj: Object, defaults: Object) -> None:
    """Gives the fields that are not there these values."""
    for k, v in defaults.items():
        if obj.get(k) is None:
            obj[k] = v


def default_rolling(strategy: Object, limits: Object) -> None:
    """A rolling update unless something else is wanted, within these limits unless it has its own."""
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        fill(part(strategy, "rollingUpdate"), limits)


def selector_errors(spec: Object, empty_text: str) -> Errors:
    selector = spec.get("selector")
    if selector is None:
        yield required("spec.selector")
        return
    yield from validate_label_selector(selector, "spec.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield invalid("spec.selector", {}, f"empty selector is invalid for {empty_text}")


def selector_immutable(new: Object, old: Object) -> Errors:
    yield from immutable((new.get("spec") or {}).get("selector"), (old.get("spec") or {}).get("selector"), "spec.selector", "LabelSelector")


def create_with(status: Object) -> Callable[[Object], None]:
    """prepare_create of what has a template and starts with this status."""
    fresh = zero_status(status)

    def prepare(obj: Object) -> None:
        fresh(obj)
        prepare_template(obj["spec"].get("template"))

    return prepare


def update_with_template(new: Object, old: Object) -> None:
    keep_status(new, old)
    prepare_template((new.get("spec") or {}).get("template"), old_template(old))


def template_of(spec: Object) -> Object:
    return spec.get("template") or {}


def labels_match(spec: Object, selector: Any) -> Errors:
    labels = (template_of(spec).get("metadata") or {}).get("labels")
    if not selector.empty and not selector.matches(labels):
        yield invalid(f"{TEMPLATE}.metadata.labels", labels, "`selector` does not match template `labels`")


def always_running(spec: Object, kind: str) -> Errors:
    pod = template_of(spec).get("spec") or {}
    if pod.get("restartPolicy") != "Always":
        yield not_supported(f"{TEMPLATE}.spec.restartPolicy", pod.get("restartPolicy") or "", ("Always",))
    if pod.get("activeDeadlineSeconds") is not None:
        yield forbidden(f"{TEMPLATE}.spec.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not Supported")


def replica_template(spec: Object, old: Object | None) -> Errors:
    """The template under a Deployment or ReplicaSet."""
    selector = selector_of(spec.get("selector"))
    if selector is None:
        yield invalid("spec.selector", selector_form(spec["selector"]), "invalid label selector")
        return
    yield from labels_match(spec, selector)
    yield from validate_template(template_of(spec), TEMPLATE, old_template(old))
    yield from always_running(spec, "ReplicaSet")


def old_template(old: Object | None) -> Object | None:
    return None if old is None else (old.get("spec") or {}).get("template")


def counts(status: Object, *fields: str) -> Errors:
    for f in fields:
        yield from nonnegative(status.get(f), f"status.{f}")


def at_most(status: Object, total: str, text: str, *fields: str) -> Errors:
    for f in fields:
        if (status.get(f) or 0) > (status.get(total) or 0):
            yield invalid(f"status.{f}", status.get(f, 0), f"cannot be greater than {text}")


def collision_count(new: Object, old: Object) -> Errors:
    now, before = (new.get("status") or {}).get("collisionCount"), (old.get("status") or {}).get("collisionCount")
    if decremented(now, before):
        yield invalid("status.collisionCount", now or 0, "cannot be decremented")


def name_warning(obj: Object) -> list[str]:
    texts = names.is_dns1123_label(obj["metadata"].get("name") or "")
    return ["metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: "
            f"[{' '.join(texts)}]"] if texts else []


def workload_warnings(new: Object, old: Object | None) -> list[str]:
    """Templates are looked at when they are new or when something changed."""
    if old is not None and new["metadata"].get("generation") == old["metadata"].get("generation"):
        return []
    return template_warnings(template_of(new.get("spec") or {}), TEMPLATE, old_template(old))


def named_warnings(new: Object, old: Object | None) -> list[str]:
    return [*(name_warning(new) if old is None else ()), *workload_warnings(new, old)]
