"""Patch words: how upstream prints what a patch made, and what its converter says of a value that does not fit. For error texts alone.

In: patched data, a schema, and marks of what the patch looked into. Out: text as Go writes it (%v, encoding/json).
Upstream: apimachinery runtime/converter.go, evanphx/json-patch v4 (which re-sorts what it parses).
"""

from __future__ import annotations

from typing import Any

import orjson

from kubern.model import wire
from kubern.model.schema import BOOL, BYTES, INT32, INT64, LIST, MAP, NUMBER, STRING, STRUCT, Schema
from kubern.model.strict import base64_fault


class Marks(dict[int, str]):
    """How objects of a patched document are printed: id -> "sorted" (looked into by the patch) or "raw" (as the patch spelled them)."""


def go_type(value: Any) -> str:
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64"
    return {str: "string", float: "float64", dict: "map[string]interface {}", list: "[]interface {}"}[type(value)]


def go_text(value: Any) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, dict):
        return go_map(value)
    if isinstance(value, list):
        return "[" + " ".join(go_text(v) for v in value) + "]"
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def go_verb_s(value: Any) -> str:
    """A value as Go's %s prints it: what is no text is marked as such."""
    if isinstance(value, str):
        return value
    if value is None:
        return "%!s(<nil>)"
    type_ = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "float64" if isinstance(value, float) else ""
    return f"%!s({type_}={go_text(value)})" if type_ else go_text(value)


def go_map(value: dict[str, Any]) -> str:
    return "map[" + " ".join(f"{k}:{go_text(v)}" for k, v in sorted(value.items())) + "]"


_KINDS = {str: "string", bool: "bool", int: "int64", float: "float64", dict: "map", list: "slice"}


def converter_fault(value: Any, s: Schema) -> str | None:
    """What upstream's converter, which a strategic patch goes through, says of the first value that does not fit; None: nothing."""
    if value is None:
        return None
    kind = _KINDS[type(value)]
    c = s.code
    if c == STRUCT:
        if kind != "map":
            return f"cannot restore struct from: {kind}"
        for k in sorted(value):
            p = (s.props or {}).get(k)
            found = converter_fault(value[k], p) if p is not None else None
            if found:
                return found
    elif c == MAP:
        if kind != "map":
            return f"cannot restore map from {kind}"
        for k in sorted(value):
            found = converter_fault(value[k], s.extra) if s.extra is not None else None
            if found:
                return found
    elif c == LIST:
        if kind != "slice":
            return f"cannot restore slice from {kind}"
        for x in value:
            found = converter_fault(x, s.items) if s.items is not None else None
            if found:
                return found
    elif c == STRING:
        if kind != "string":
            return f"cannot convert int64 to {s.go or 'string'}" if kind == "int64" else "unrecognized type: string"
    elif c == BOOL:
        if kind != "bool":
            return "unrecognized type: bool"
    elif c in (INT32, INT64):
        go = "int32" if c == INT32 else "int64"
        if kind == "float64":
            if value != int(value):
                return f"cannot convert float64 to {s.go or go}"
        elif kind != "int64":
            return f"unrecognized type: {go}"
    elif c == BYTES:
        if kind != "string":
            return f"cannot restore slice from {kind}"
        at = base64_fault(value)
        if at is not None:
            return f"error decoding from json: illegal base64 data at input byte {at}"
    elif c == NUMBER and kind not in ("int64", "float64"):
        return "unrecognized type: float64"
    return None


def text(value: Any, schema: Schema | None, marks: Marks) -> str:
    """The JSON of a patched document as upstream prints it: what the patch looked into is sorted, the rest in declared order; of custom
    resources everything but what the patch spelled is sorted."""
    return _text(value, _SORTED if schema is not None and schema.raw is not None else schema, marks)


_SORTED = Schema()                       # keys sorted all the way down
_SORTED.code, _SORTED.extra, _SORTED.items = MAP, _SORTED, _SORTED

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def _quote(s: str) -> str:
    out = orjson.dumps(s).decode()
    for c, e in _ESCAPES.items():
        if c in out:
            out = out.replace(c, e)
    return out


def _text(value: Any, s: Schema | None, marks: Marks) -> str:
    if isinstance(value, dict):
        mark = marks.get(id(value))
        keys = list(value) if mark == "raw" else sorted(value)
        if mark is None and s is not None and s.code == STRUCT and s.raw is None and s.name:
            rank = _declared(s.name)
            keys.sort(key=lambda k: rank.get(k, len(rank)))
        elif mark is None and (s is None or s.code not in (STRUCT, MAP)) and not (s is not None and s.raw is not None):
            keys = list(value)
        return "{" + ",".join(f"{_quote(k)}:{_text(value[k], s.at(k) if s is not None else None, marks)}" for k in keys) + "}"
    if isinstance(value, list):
        items = s.items if s is not None else None
        return "[" + ",".join(_text(x, items, marks) for x in value) + "]"
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, float):
        return orjson.dumps(value).decode()
    return go_text(value) if value is not None else "null"


def _declared(name: str) -> dict[str, int]:
    """Rank of the properties of a definition in the order of upstream's declaration."""
    rank: dict[str, int] = {}
    for f in _flat(name):
        rank.setdefault(f, len(rank))
    rank.setdefault("kind", -2)
    rank.setdefault("apiVersion", -1)
    return rank


def _flat(name: str) -> list[str]:
    out: list[str] = []
    for f in wire.fields(name):
        out += _flat(f.type) if f.name == "<" else [f.name]
    return out
