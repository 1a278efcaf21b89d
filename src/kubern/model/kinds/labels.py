"""Labels, annotations and label selectors as fields: checks that many kinds share.

All functions give errors in upstream's order; `path` is the path of the value. Upstream: apimachinery meta/v1/validation and
api/validation/objectmeta.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kubern.model import names
from kubern.model.invalid import FieldError, forbidden, invalid, required, too_long
from kubern.model.object import Object

Errors = Iterator[FieldError]
ANNOTATIONS_BYTES_MAX = 256 * 1024
IMMUTABLE = "field is immutable"


def messages(path: str, value: Any, texts: Iterable[str]) -> Errors:
    """One Invalid error a message."""
    for text in texts:
        yield invalid(path, value, text)


def validate_label_name(name: str, path: str) -> Errors:
    return messages(path, name, names.is_qualified_name(name))


def validate_labels(labels: dict[str, str] | None, path: str) -> Errors:
    for key, value in (labels or {}).items():
        yield from messages(path, key, names.is_qualified_name(key))
        yield from messages(path, value, names.is_label_value(value))


def validate_annotations(annotations: dict[str, str] | None, path: str) -> Errors:
    if not annotations:
        return
    total = 0
    for key, value in annotations.items():
        yield from messages(path, key, names.is_qualified_name(key.lower()))
        total += names.size(key) + names.size(value)
    if total > ANNOTATIONS_BYTES_MAX:
        yield too_long(path, ANNOTATIONS_BYTES_MAX)


def validate_label_selector(selector: Object | None, path: str, any_value: bool = False) -> Errors:
    """A LabelSelector; `any_value` lets values be that are no label values (stored long ago)."""
    if selector is None:
        return
    yield from validate_labels(selector.get("matchLabels"), f"{path}.matchLabels")
    for i, r in enumerate(selector.get("matchExpressions") or ()):
        yield from validate_requirement(r, f"{path}.matchExpressions[{i}]", any_value)


def validate_requirement(r: Object, path: str, any_value: bool = False, any_operator: bool = False) -> Errors:
    """`any_operator`: those of newer clients may be there, and ask for less."""
    operator, values = r.get("operator", ""), r.get("values") or ()
    if operator in ("In", "NotIn"):
        if not values:
            yield required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            yield forbidden(f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
    elif not any_operator:
        yield invalid(f"{path}.operator", operator, "not a valid selector operator")
    yield from validate_label_name(r.get("key", ""), f"{path}.key")
    if not any_value:
        for i, value in enumerate(values):
            yield from messages(f"{path}.values[{i}]", value, names.is_label_value(value))


def selector_is_valid(selector: Object | None) -> bool:
    return next(validate_label_selector(selector, ""), None) is None


def set_matches(selector: dict[str, str] | None, labels: dict[str, str] | None) -> bool:
    """A plain map selector (Service, ReplicationController) against labels."""
    have = labels or {}
    return all(have.get(k) == v for k, v in (selector or {}).items())


def annotations_of(obj: Object) -> dict[str, str]:
    return (obj.get("metadata") or {}).get("annotations") or {}
