"""FieldError: one thing wrong with one field, worded as upstream's field.Error (apimachinery util/validation/field).

A validator returns a list of these, in the order upstream finds them. `type` is the cause's reason on the wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import orjson

TYPES = {  # cause reason -> the words in the message
    "FieldValueNotFound": "Not found",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueNotSupported": "Unsupported value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueTooLong": "Too long",
    "FieldValueTooMany": "Too many",
    "InternalError": "Internal error",
    "FieldValueTypeInvalid": "Invalid value",
}
_OMIT = object()


@dataclass(frozen=True, slots=True)
class FieldError:
    type: str
    field: str
    value: Any = None
    detail: str = ""

    def body(self) -> str:
        """The message of the cause: without the field."""
        head = TYPES[self.type]
        if self.type not in ("FieldValueRequired", "FieldValueForbidden", "FieldValueTooLong", "InternalError") and self.value is not _OMIT:
            head += f": {render(self.value)}"
        return f"{head}: {self.detail}" if self.detail else head

    def text(self) -> str:
        return f"{self.field}: {self.body()}"


class Struct(dict[str, Any]):
    """A value whose keys print in the order they stand in: a Go struct, where a plain dict is a Go map and prints sorted."""


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _ordered(value[k]) for k in (value if isinstance(value, Struct) else sorted(value))}
    return [_ordered(v) for v in value] if isinstance(value, (list, tuple)) else value


_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def render(value: Any) -> str:
    """A value as upstream prints it: strings quoted as Go's %q, numbers and booleans bare, the rest as Go's JSON."""
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    return orjson.dumps(_ordered(value)).decode().translate(_HTML)


_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\", '"': '\\"'}


def quote(s: str) -> str:
    """Go's strconv.Quote."""
    out = []
    for c in s:
        if c in _ESCAPES:
            out.append(_ESCAPES[c])
        elif c.isprintable():
            out.append(c)
        elif ord(c) < 0x80:
            out.append(f"\\x{ord(c):02x}")
        elif ord(c) < 0x10000:
            out.append(f"\\u{ord(c):04x}")
        else:
            out.append(f"\\U{ord(c):08x}")
    return '"' + "".join(out) + '"'


def invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueInvalid", field, value, detail)


def type_invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueTypeInvalid", field, value, detail)


def required(field: str, detail: str = "") -> FieldError:
    return FieldError("FieldValueRequired", field, "", detail)


def forbidden(field: str, detail: str) -> FieldError:
    return FieldError("FieldValueForbidden", field, "", detail)


def duplicate(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", field, value)


def not_found(field: str, value: Any) -> FieldError:
    return FieldError("FieldValueNotFound", field, value)


def not_supported(field: str, value: Any, allowed: Iterable[str]) -> FieldError:
    """`allowed` prints in its order, a set sorted."""
    values = ", ".join(quote(v) for v in (sorted(allowed) if isinstance(allowed, (set, frozenset)) else allowed))
    return FieldError("FieldValueNotSupported", field, value, f"supported values: {values}" if values else "")


def too_long(field: str, max_length: int) -> FieldError:
    unit = "byte" if max_length == 1 else "bytes"
    detail = f"may not be more than {max_length} {unit}" if max_length >= 0 else "value is too long"
    return FieldError("FieldValueTooLong", field, _OMIT, detail)


def too_many(field: str, actual: int, max_items: int) -> FieldError:
    unit = "item" if max_items == 1 else "items"
    return FieldError("FieldValueTooMany", field, actual, f"must have at most {max_items} {unit}")


def internal(field: str, detail: str) -> FieldError:
    return FieldError("InternalError", field, None, detail)


def as_given(errors: list[FieldError], body: bytes) -> list[FieldError]:
    """Lists and maps that a request gave as empty are not kept; in what is said of them they are shown as they were given. Bodies in JSON only."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return errors
    return [replace(e, value=empty) if e.value is None and "." in e.field and (empty := _at(given, e.field)) in ([], {}) else e for e in errors]


_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def _at(value: Any, path: str) -> Any:
    """What stands at "a.b[0].c"; None for nothing, or where a step names a key of a map."""
    for name, index in _STEP.findall(path):
        if name and isinstance(value, dict):
            value = value.get(name)
        elif index and isinstance(value, list) and int(index) < len(value):
            value = value[int(index)]
        else:
            return None
    return value


def aggregate(texts: Iterable[str]) -> str:
    """Several errors in one text, as Go's Aggregate prints them: one bare, more in brackets, each once."""
    once = list(dict.fromkeys(texts))
    return once[0] if len(once) == 1 else "[" + ", ".join(once) + "]"
