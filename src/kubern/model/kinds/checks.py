"""Checks that the kinds of several groups share: numbers, immutability, int-or-percent, conditions, enumerations, equality.

Generators of FieldErrors in upstream's order, `path` last but for options; `listed` makes a Kind's validator of one. Sources: the field
helpers of pkg/apis/core/validation and apimachinery meta/v1/validation; semantic equality is apimachinery api/equality.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from kubern.model import names
from kubern.model.invalid import FieldError, Struct, duplicate, invalid, not_supported, required, too_long
from kubern.model.kinds.internal_form import struct
from kubern.model.object import Object, clone
from kubern.model.selector import from_label_selector, requirement
from kubern.model.status import StatusError

Errors = Iterator[FieldError]
IMMUTABLE = "field is immutable"
NONNEGATIVE = names.NEGATIVE


def listed(check: Callable[..., Iterable[FieldError]]) -> Callable[..., list[FieldError]]:
    """A generator of errors as the list a Kind wants."""

    def run(*args: Object) -> list[FieldError]:
        return list(check(*args))

    return run


def nonnegative(value: int | None, path: str) -> Errors:
    if value is not None and value < 0:
        yield invalid(path, value, NONNEGATIVE)


def messages(value: Any, texts: Iterable[str], path: str) -> Errors:
    for text in texts:
        yield invalid(path, value, text)


def path_segment(value: str | None, path: str) -> Errors:
    """A required name that may stand in a URL's path."""
    if not value:
        yield required(path)
    else:
        yield from messages(value, names.is_path_segment_name(value), path)


def one_of(value: str | None, allowed: Collection[str], path: str) -> Errors:
    """An enumeration: a tuple prints in its order, a set sorted."""
    if (value or "") not in allowed:
        yield not_supported(path, value or "", allowed)


def required_one_of(value: str | None, allowed: Collection[str], path: str) -> Errors:
    if not value:
        yield required(path)
    elif value not in allowed:
        yield not_supported(path, value, allowed)


# --- equality ---------------------------------------------------------------------------------------------------------------------------

def same(a: Any, b: Any) -> bool:
    """Equal, where absent, null and [] are one. {} is not: what may be left out and is empty is a pointer, which upstream tells from none."""
    if a == b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return all(same(a.get(k), b.get(k)) for k in a.keys() | b.keys())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a in (None, []) and b in (None, [])


def immutable(new: Any, old: Any, path: str, type_: str = "", detail: str = IMMUTABLE) -> Errors:
    """type_: the internal type that a struct prints as ("LabelSelector" for one of those)."""
    if not same(new, old):
        yield invalid(path, form(new, type_), detail)


def form(value: Any, type_: str) -> Any:
    """A value for a message: structs in their internal form, label selectors in their order."""
    if type_ == "LabelSelector":
        return selector_form(value)
    if type_ and isinstance(value, dict):
        return struct(type_, value)
    if type_ and isinstance(value, list):
        return [struct(type_, v) for v in value]
    return value


def selector_form(selector: Object | None) -> Any:
    """A LabelSelector as its Go type prints it."""
    if selector is None:
        return None
    out = Struct()
    if selector.get("matchLabels"):
        out["matchLabels"] = selector["matchLabels"]
    if selector.get("matchExpressions"):
        out["matchExpressions"] = [Struct((k, e.get(k) or "") if k != "values" else (k, e[k]) for k in ("key", "operator", "values")
                                          if k != "values" or e.get(k)) for e in selector["matchExpressions"]]
    return out


def selector_of(selector: Object | None) -> Any:
    """The parsed selector, or None where it cannot be one."""
    try:
        for key, value in ((selector or {}).get("matchLabels") or {}).items():
            requirement(key, "=", (value,))
        return from_label_selector(selector)
    except (StatusError, ValueError):
        return None


# --- int or percent ---------------------------------------------------------------------------------------------------------------------

def nonnegative_int_or_percent(value: Any, path: str) -> Errors:
    if isinstance(value, str):
        yield from messages(value, names.is_percent(value), path)
    else:
        yield from nonnegative(value, path)


def percent(value: Any) -> int | None:
    """The number before "%", None where the value is no percentage."""
    return int(value[:-1]) if isinstance(value, str) and not names.is_percent(value) else None


def int_or_percent_value(value: Any) -> int:
    p = percent(value)
    if p is not None:
        return p
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[+-]?\d+", value) else 0
    return value or 0


def not_more_than_100_percent(value: Any, path: str) -> Errors:
    p = percent(value)
    if p is not None and p > 100:
        yield invalid(path, value, "must not be greater than 100%")


# --- conditions -------------------------------------------------------------------------------------------------------------------------

_REASON = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"
_match_reason = re.compile(_REASON).fullmatch
_REASON_TEXT = names.regex_error(
    "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and "
    "must end with an alphanumeric character or '_'", _REASON, "my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB")
REASON_MAX, MESSAGE_MAX = 1024, 32 * 1024
STATUSES = ("False", "True", "Unknown")


def conditions(values: list[Object] | None, path: str) -> Errors:
    """meta/v1 Conditions."""
    seen = set()
    for i, c in enumerate(values or ()):
        here = f"{path}[{i}]"
        type_ = c.get("type") or ""
        if type_ in seen:
            yield duplicate(f"{here}.type", type_)
        seen.add(type_)
        yield from condition(c, here)


def condition(c: Object, path: str) -> Errors:
    type_ = c.get("type") or ""
    yield from messages(type_, names.is_qualified_name(type_), f"{path}.type")
    if c.get("status") not in STATUSES:
        yield not_supported(f"{path}.status", c.get("status") or "", STATUSES)
    if (c.get("observedGeneration") or 0) < 0:
        yield invalid(f"{path}.observedGeneration", c["observedGeneration"], "must be greater than or equal to zero")
    if not c.get("lastTransitionTime"):
        yield required(f"{path}.lastTransitionTime")
    reason = c.get("reason") or ""
    if not reason:
        yield required(f"{path}.reason")
    else:
        if not _match_reason(reason):
            yield invalid(f"{path}.reason", reason, _REASON_TEXT)
        if len(reason) > REASON_MAX:
            yield too_long(f"{path}.reason", REASON_MAX)
    if len(c.get("message") or "") > MESSAGE_MAX:
        yield too_long(f"{path}.message", MESSAGE_MAX)


# --- strategy ---------------------------------------------------------------------------------------------------------------------------

def zero_status(status: Object) -> Callable[[Object], None]:
    """prepare_create that gives the status a new object has, whatever the client sent."""

    def prepare(obj: Object) -> None:
        obj["status"] = clone(status)

    return prepare


def keep_status(new: Object, old: Object) -> None:
    """prepare_update: the main resource cannot change status."""
    keep(new, old, "status")


def keep(new: Object, old: Object, *fields: str) -> None:
    for f in fields:
        if f in old:
            new[f] = old[f]
        else:
            new.pop(f, None)


def keep_spec(new: Object, old: Object) -> None:
    """prepare_status: /status cannot change the spec."""
    keep(new, old, "spec")


_STATUS_META = ("deletionTimestamp", "generation", "selfLink", "labels", "annotations", "finalizers", "ownerReferences")


def keep_spec_and_metadata(new: Object, old: Object) -> None:
    """prepare_status where /status cannot change metadata either."""
    keep(new, old, "spec")
    keep(new["metadata"], old["metadata"], *_STATUS_META)


def keep_labels(new: Object, old: Object) -> None:
    keep(new["metadata"], old["metadata"], "labels")


def decremented(new: int | None, old: int | None) -> bool:
    return old is not None and (new is None or new < old)


