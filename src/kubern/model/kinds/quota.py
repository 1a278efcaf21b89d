"""LimitRange and ResourceQuota: what may be asked for in a namespace. Enforcing them is admission's work.

Upstream: pkg/registry/core/{limitrange,resourcequota}/strategy.go, pkg/apis/core/validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from uuid import uuid4

from kubern.model import names
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, required
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import IMMUTABLE, messages
from kubern.model.kinds.pod_defaults import default_resource_list
from kubern.model.kinds.pod_resources import is_overcommit_allowed
from kubern.model.kinds.resource_rules import (
    container_resource_name,
    is_standard_quota_name,
    quantity_value,
    quota_resource_name,
    resource_name,
)
from kubern.model.object import Object
from kubern.model.object import name as name_of
from kubern.model.quantity import parse

Errors = Iterator[FieldError]


# LimitRange --------------------------------------------------------------------------------------------------------------------

def default_limit_range(obj: Object) -> None:
    for item in (obj.setdefault("spec", {})).get("limits") or ():
        if item.get("type") == "Container":
            default, request = item.setdefault("default", {}), item.setdefault("defaultRequest", {})
            for source, target in ((item.get("max"), default), (default, request), (item.get("min"), request)):
                for name, amount in (source or {}).items():
                    target.setdefault(name, amount)
        for field in ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio"):
            default_resource_list(item.get(field))
        for field in ("default", "defaultRequest"):
            if item.get(field) == {}:
                del item[field]


def _name_it(obj: Object) -> None:
    if not name_of(obj):
        obj["metadata"]["name"] = str(uuid4())


def validate_limit_range(obj: Object) -> list[FieldError]:
    return list(_limit_range(obj))


def _limit_range(obj: Object) -> Errors:
    seen: set[str] = set()
    for i, item in enumerate((obj.get("spec") or {}).get("limits") or ()):
        path, kind = f"spec.limits[{i}]", item.get("type", "")
        if errors := names.is_qualified_name(kind):
            yield from messages(f"{path}.type", kind, errors)
        elif "/" not in kind and kind not in ("Pod", "Container", "PersistentVolumeClaim"):
            yield invalid(f"{path}.type", kind, "must be a standard limit type or fully qualified")
        if kind in seen:
            yield duplicate(f"{path}.type", kind)
        seen.add(kind)
        yield from _limits(item, kind, path)


def _limits(item: Object, kind: str, path: str) -> Errors:
    rule = container_resource_name if kind in ("Pod", "Container") else resource_name
    amounts: dict[str, dict[str, str]] = {}
    for field in ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio"):
        given = item.get(field) or {}
        if field in ("default", "defaultRequest") and kind == "Pod":
            if given:
                yield forbidden(f"{path}.{field}", "may not be specified when `type` is 'Pod'")
            amounts[field] = {}
            continue
        if field == "maxLimitRequestRatio" and kind == "PersistentVolumeClaim" and "storage" not in amounts["min"] | amounts["max"]:
            yield required(f"{path}.limits", "either minimum or maximum storage value is required, but neither was provided")
        for name in given:
            yield from rule(name, f"{path}.{field}[{name}]")
        amounts[field] = given
    for name in dict.fromkeys(n for given in amounts.values() for n in given):
        yield from _order(name, {f: parse(str(g[name])) for f, g in amounts.items() if name in g}, path)


# (smaller, larger, path of, value of, text): each pair must be in order
_ORDER = (
    ("min", "max", "min", "min", "min value {a} is greater than max value {b}"),
    ("min", "defaultRequest", "defaultRequest", "defaultRequest", "min value {a} is greater than default request value {b}"),
    ("defaultRequest", "max", "defaultRequest", "defaultRequest", "default request value {a} is greater than max value {b}"),
    ("defaultRequest", "default", "defaultRequest", "defaultRequest", "default request value {a} is greater than default limit value {b}"),
    ("min", "default", "default", "min", "min value {a} is greater than default value {b}"),
    ("default", "max", "default", "max", "default value {a} is greater than max value {b}"),
)


def _order(name: str, have: dict, path: str) -> Errors:  # type: ignore[type-arg]
    for small, large, where, shown, text in _ORDER:
        if small in have and large in have and have[small].amount > have[large].amount:
            yield invalid(f"{path}.{where}[{name}]", have[shown].text, text.format(a=have[small].text, b=have[large].text))
    ratio = have.get("maxLimitRequestRatio")
    here = f"{path}.maxLimitRequestRatio[{name}]"
    if ratio is not None and ratio.amount < 1:
        yield invalid(here, ratio.text, f"ratio {ratio.text} is less than 1")
    if ratio is not None and "min" in have and "max" in have:
        low, high = have["min"].amount, have["max"].amount
        most = high / low if low else None
        if most is not None and ratio.amount > most:
            yield invalid(here, ratio.text, f"ratio {ratio.text} is greater than max/min = {_six_digits(most)}")
    limit, request = have.get("default"), have.get("defaultRequest")
    if limit is not None and request is not None and limit.amount != request.amount and not is_overcommit_allowed(name):
        yield invalid(f"{path}.defaultRequest[{name}]", request.text,
                      f"default value {limit.text} must equal to defaultRequest value {request.text} in {name}")


def _six_digits(f: Fraction) -> str:
    return f"{float(f):f}"


# ResourceQuota -----------------------------------------------------------------------------------------------------------------

SCOPES = ("Terminating", "NotTerminating", "BestEffort", "NotBestEffort", "PriorityClass", "VolumeAttributesClass", "CrossNamespacePodAffinity")
_POD_COMPUTE = {"cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"}
_SCOPED = {**dict.fromkeys(SCOPES, {"pods"} | _POD_COMPUTE), "BestEffort": {"pods"},
           "VolumeAttributesClass": {"persistentvolumeclaims", "requests.storage"}}
_PAIRS = (("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating"))
_EXISTS_ONLY = ("must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, "
                "ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")


def default_quota(obj: Object) -> None:
    default_resource_list(obj.setdefault("spec", {}).get("hard"))
    for field in ("hard", "used"):
        default_resource_list((obj.setdefault("status", {})).get(field))


def _prepare_quota(obj: Object) -> None:
    obj["status"] = {}


def _keep_status(new: Object, old: Object) -> None:
    new["status"] = old.get("status") or {}


def _amounts(amounts: dict[str, str] | None, path: str) -> Errors:
    for name, amount in (amounts or {}).items():
        yield from quota_resource_name(name, f"{path}[{name}]")
        yield from quantity_value(name, amount, f"{path}[{name}]")


def _misfits(scope: str, hard: list[str]) -> int:
    return sum(is_standard_quota_name(n) and scope in _SCOPED and n not in _SCOPED[scope] for n in hard)


def _spec(spec: Object) -> Errors:
    yield from _amounts(spec.get("hard"), "spec.hard")
    hard, scopes = sorted(spec.get("hard") or ()), spec.get("scopes") or []
    for scope in scopes:
        if scope not in SCOPES:
            yield invalid("spec.scopes", scopes, "unsupported scope")
        for _ in range(_misfits(scope, hard)):
            yield invalid("spec.scopes", scopes, "unsupported scope applied to resource")
    for pair in _PAIRS:
        if set(pair) <= set(scopes):
            yield invalid("spec.scopes", scopes, "conflicting scopes")
    if (selector := spec.get("scopeSelector")) is not None:
        yield from _scope_selector(selector, hard, scopes)


def _scope_selector(selector: Object, hard: list[str], scopes: list[str]) -> Errors:
    path, seen = "spec.scopeSelector.matchExpressions", set()
    for e in selector.get("matchExpressions") or ():
        scope, operator, values = e.get("scopeName", ""), e.get("operator", ""), e.get("values") or []
        if scope not in SCOPES:
            yield invalid(f"{path}.scopeName", scope, "unsupported scope")
        for _ in range(_misfits(scope, hard)):
            yield invalid(path, struct("ScopeSelector", selector), "unsupported scope applied to resource")
        if scope in SCOPES and scope not in ("PriorityClass", "VolumeAttributesClass") and operator != "Exists":
            yield invalid(f"{path}.operator", operator, _EXISTS_ONLY)
        if operator in ("In", "NotIn"):
            if not values:
                yield required(f"{path}.values", "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                yield invalid(f"{path}.values", values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
        else:
            yield invalid(f"{path}.operator", operator, "not a valid selector operator")
        seen.add(scope)
    for pair in _PAIRS:
        if set(pair) <= seen:
            yield invalid(path, scopes or None, "conflicting scopes")


def _quota_status(obj: Object) -> Errors:
    for field in ("hard", "used"):
        yield from _amounts((obj.get("status") or {}).get(field), f"status.{field}")


def validate_quota(obj: Object) -> list[FieldError]:
    return [*_spec(obj.get("spec") or {}), *_quota_status(obj)]


def validate_quota_update(new: Object, old: Object) -> list[FieldError]:
    out, scopes = list(_spec(new.get("spec") or {})), (new.get("spec") or {}).get("scopes") or []
    if set(scopes) != set((old.get("spec") or {}).get("scopes") or ()):
        out.append(invalid("spec.scopes", scopes or None, IMMUTABLE))
    return out


def quota_warnings(obj: Object, old: Object | None) -> list[str]:
    if old is not None:
        return []
    hard, out = (obj.get("spec") or {}).get("hard") or {}, []
    for name in ("cpu", "memory", "storage", "ephemeral-storage"):
        request = f"requests.{name}"
        if request not in hard and name in ("cpu", "memory"):
            request = name
        limit = f"limits.{name}"
        if request in hard and limit in hard and parse(str(hard[request])).amount > parse(str(hard[limit])).amount:
            out.append(f"ResourceQuota {request} ({hard[request]}) should be less than {limit} ({hard[limit]})")
    return out


KINDS: KindTable = {
    ("", "LimitRange"): Kind(meta_again=1, meta_update=0, defaults=default_limit_range, prepare_create=_name_it, validate=validate_limit_range,
                             validate_update=lambda new, old: validate_limit_range(new), create_on_update=True),
    ("", "ResourceQuota"): Kind(defaults=default_quota, prepare_create=_prepare_quota, prepare_update=_keep_status, validate=validate_quota,
                                validate_update=validate_quota_update, validate_status=lambda new, old: list(_quota_status(new)),
                                warnings=quota_warnings, delete_returns_object=True),
}
