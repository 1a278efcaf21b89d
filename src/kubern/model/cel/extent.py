"""Extent: how large data that fits a schema may get; what the cost of a rule is estimated from.

In: a schema as its CRD gives it. Out: an Extent tree, bounds as declared (maxItems, maxProperties, maxLength, enum), else what fits into one request.
Upstream: apiserver pkg/cel/common/schemas.go (SchemaDeclType), pkg/cel/limits.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kubern.model.cel.types import escape

REQUEST_MAX_BYTES = 3 << 20
_KEY_PAIR = 6                          # quotes, colon, comma and a key of two bytes
_TEXTS = {"duration": (3, 32), "date": (12, 12), "date-time": (21, 32)}      # format -> (least, most) bytes in JSON


class Extent:
    """`elements`: the most members of a list or map, bytes of a string; `least`: the fewest bytes in JSON."""

    __slots__ = ("elements", "fields", "item", "keys", "least")

    def __init__(self, elements: int, least: int, *, item: Extent | None = None, keys: Extent | None = None,
                 fields: Mapping[str, Extent] | None = None) -> None:
        self.elements, self.least, self.item, self.keys, self.fields = elements, least, item, keys, fields or {}

    @property
    def cardinality(self) -> int:
        """How often data of this shape could stand in one object that sets no bounds."""
        return REQUEST_MAX_BYTES // (self.least + 1)

    def at(self, path: Sequence[str]) -> int | None:
        """The elements of what a path leads to: fields, "@items", "@values", "@keys"."""
        here: Extent | None = self
        for name in path:
            if here is None:
                return None
            if name in ("@items", "@values"):
                here = here.item
            elif name == "@keys":
                here = here.keys
            else:
                here = here.fields.get(name)
        return here.elements if here is not None else None


_NAME = Extent(REQUEST_MAX_BYTES - 2, 2)
_KEY = Extent(0, 2)
_SCALARS = {"boolean": Extent(0, 4), "number": Extent(0, 1), "integer": Extent(0, 1)}


def extent_of(s: Mapping[str, Any], root: bool = False) -> Extent | None:
    """None where expressions cannot see what the schema describes. `root`: has apiVersion, kind and metadata."""
    if s.get("x-kubernetes-int-or-string"):
        return Extent(_length(s, REQUEST_MAX_BYTES - 2), 1)
    kind = s.get("type")
    if kind == "array":
        item = _of_member(s.get("items"))
        return None if item is None else Extent(_bound(s.get("maxItems"), (REQUEST_MAX_BYTES - 2) // (item.least + 1)), 2, item=item)
    if kind == "object":
        return _object(s, root or bool(s.get("x-kubernetes-embedded-resource")))
    if kind == "string":
        return _string(s)
    return _SCALARS.get(kind or "")


def _of_member(s: Any) -> Extent | None:
    return extent_of(s, bool(s.get("x-kubernetes-embedded-resource"))) if isinstance(s, dict) else None


def _object(s: Mapping[str, Any], root: bool) -> Extent | None:
    more = s.get("additionalProperties")
    if isinstance(more, dict):
        value = _of_member(more)
        if value is None:
            return None
        return Extent(_bound(s.get("maxProperties"), (REQUEST_MAX_BYTES - 2) // (value.least + _KEY_PAIR)), 2, item=value, keys=_KEY)
    fields: dict[str, Extent] = {}
    least, required = 2, s.get("required") or ()
    for name, part in (s.get("properties") or {}).items():
        found = _of_member(part)
        if found is None:
            continue
        escaped = escape(name)
        if escaped is not None:
            fields[escaped] = found
        if name in required and part.get("default") is None:
            least += len(name.encode()) + found.least + 4
    if root:
        fields |= {"apiVersion": _NAME, "kind": _NAME, "metadata": Extent(0, 2, fields={"name": _NAME, "generateName": _NAME})}
    return Extent(0, least, fields=fields)


def _string(s: Mapping[str, Any]) -> Extent:
    format_ = s.get("format") or ""
    if format_ in _TEXTS:
        least, most = _TEXTS[format_]
        return Extent(most, least)
    if format_ == "byte":
        return Extent(_bound(s.get("maxLength"), REQUEST_MAX_BYTES - 2), 2)
    if s.get("maxLength") is None and s.get("enum"):
        return Extent(max((len(v.encode()) for v in s["enum"] if isinstance(v, str)), default=0), 2)
    return Extent(_length(s, REQUEST_MAX_BYTES - 2), 2)


def _bound(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else max(given, 0)


def _length(s: Mapping[str, Any], otherwise: int) -> int:
    """maxLength counts characters, of up to four bytes."""
    return otherwise if s.get("maxLength") is None else max(s["maxLength"], 0) * 4


def members_max(s: Mapping[str, Any]) -> int | None:
    """By how much a schema multiplies what stands below it; None: without bound."""
    if s.get("type") == "object" and s.get("additionalProperties"):
        given = s.get("maxProperties")
    elif s.get("type") == "array":
        given = s.get("maxItems")
    else:
        return 1
    return None if given is None else max(int(given), 0)
