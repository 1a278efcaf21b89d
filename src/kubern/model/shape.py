"""Shape: JSON data brought in place into the form upstream's Go types would write back; the fast walk, without paths and texts.

In: a freshly parsed object and its schema. Out: how many keys it had, so that a caller can tell duplicates by the text's count. Quantities and
times become canonical, empty values go, the ever-present ones come. What is odd raises Odd: model/strict.py then reads the text again and has
the words.
"""

from __future__ import annotations

import binascii
from typing import Any

from kubern.model import gotime, quantity
from kubern.model.schema import (
    BOOL,
    BYTES,
    DURATION,
    INT32,
    INT64,
    INT_OR_STRING,
    LIST,
    MAP,
    MICROTIME,
    NUMBER,
    OBJECT_META,
    OPEN,
    QUANTITY,
    RAW,
    STRING,
    STRUCT,
    TIME,
    Schema,
    definition,
)

INT32_MIN, INT32_MAX, INT64_MIN, INT64_MAX = -(1 << 31), (1 << 31) - 1, -(1 << 63), (1 << 63) - 1


class Odd(Exception):
    """Something the fast walk does not judge."""


def zero(schema: Schema) -> Any:
    """What upstream writes for a field that is always written and was not given."""
    c = schema.code
    if schema.pointer:
        return None
    if c == STRUCT:
        return {name: zero(p) for name, p in schema.always}
    if c in (STRING, DURATION):
        return ""
    if c in (INT32, INT64, NUMBER, INT_OR_STRING):
        return 0
    if c == BOOL:
        return False
    if c == QUANTITY:
        return "0"
    return None


def key_count(body: bytes) -> int:
    """How many object keys a JSON text has, duplicates included; -1 where this cheap count would not be sure."""
    if b'" :' in body or b'"\n:' in body or b'"\t:' in body or b'"\r:' in body:
        return -1
    n = body.count(b'":')
    return n - body.count(b'\\":') if n else 0


def count(value: Any) -> int:
    """Keys in free-form JSON."""
    if value.__class__ is dict:
        n = len(value)
        for v in value.values():
            c = v.__class__
            if c is dict or c is list:
                n += count(v)
        return n
    n = 0
    if value.__class__ is list:
        for v in value:
            c = v.__class__
            if c is dict or c is list:
                n += count(v)
    return n


def struct(obj: dict[str, Any], schema: Schema) -> int:
    """Tidy a struct in place; the number of keys it and everything below had. Raises Odd where it cannot judge."""
    n = len(obj)
    props = schema.props
    assert props is not None
    drop: list[str] | None = None
    for k, v in obj.items():
        p = props.get(k)
        if p is None:
            raise Odd
        if v is None:
            if p.keep:
                obj[k] = zero(p)
            else:
                drop = drop or []
                drop.append(k)
            continue
        c = p.code
        if c == STRING:
            if v.__class__ is not str:
                raise Odd
            if not v and not p.pointer and not p.keep:
                drop = drop or []
                drop.append(k)
        elif c == STRUCT:
            if v.__class__ is not dict:
                raise Odd
            n += struct(v, p)
        elif c == LIST:
            if v.__class__ is not list:
                raise Odd
            if not v:
                if p.pointer:
                    pass                                    # empty is not absent here
                elif p.keep:
                    obj[k] = None
                else:
                    drop = drop or []
                    drop.append(k)
            else:
                items = p.items
                ic = items.code  # type: ignore[union-attr]
                if ic == STRUCT:
                    for x in v:
                        if x.__class__ is not dict:
                            raise Odd
                        n += struct(x, items)  # type: ignore[arg-type]
                elif ic == STRING:
                    for x in v:
                        if x.__class__ is not str:
                            raise Odd
                else:
                    for i, x in enumerate(v):
                        v[i], m = _scalar(x, items)  # type: ignore[arg-type]
                        n += m
        elif c == BOOL:
            if v.__class__ is not bool:
                raise Odd
            if not v and not p.pointer and not p.keep:
                drop = drop or []
                drop.append(k)
        elif c in (INT32, INT64):
            if v.__class__ is not int or not (INT32_MIN <= v <= INT32_MAX or (c == INT64 and INT64_MIN <= v <= INT64_MAX)):
                raise Odd
            if not v and not p.pointer and not p.keep:
                drop = drop or []
                drop.append(k)
        elif c == MAP:
            if v.__class__ is not dict:
                raise Odd
            if not v:
                if p.keep:
                    obj[k] = None
                else:
                    drop = drop or []
                    drop.append(k)
            else:
                n += _map(v, p.extra)  # type: ignore[arg-type]
        else:
            new, m = _scalar(v, p)
            if new is not v:
                obj[k] = new
            n += m
            if c == BYTES and not new and not p.pointer and not p.keep:
                drop = drop or []
                drop.append(k)
    if drop is not None:
        for k in drop:
            del obj[k]
    for k, p in schema.always:
        if k not in obj:
            obj[k] = zero(p)
    return n


def _map(obj: dict[str, Any], values: Schema) -> int:
    n = len(obj)
    c = values.code
    if c == STRING:
        for v in obj.values():
            if v.__class__ is not str:
                raise Odd
        return n
    for k, v in obj.items():
        new, m = _scalar(v, values)
        if new is not v:
            obj[k] = new
        n += m
    return n


def _scalar(v: Any, p: Schema) -> tuple[Any, int]:
    """(the value as upstream writes it, keys below) for everything that is not worth a branch of its own in _struct."""
    c = p.code
    if c == STRUCT:
        if v.__class__ is not dict:
            raise Odd
        return v, struct(v, p)
    if c == QUANTITY:
        if v.__class__ is str:
            try:
                return quantity.parse(v.strip()).text, 0
            except quantity.QuantityError:
                raise Odd from None
        if v.__class__ is int:
            try:
                return quantity.parse(str(v)).text, 0
            except quantity.QuantityError:
                raise Odd from None
        raise Odd
    if c in (TIME, MICROTIME):
        if v.__class__ is not str:
            raise Odd
        try:
            return gotime.canonical(v, c == MICROTIME), 0
        except gotime.TimeFault:
            raise Odd from None
    if c == INT_OR_STRING:
        if v.__class__ is str or (v.__class__ is int and INT32_MIN <= v <= INT32_MAX):
            return v, 0
        raise Odd
    if c == RAW:
        return v, count(v)
    if c == BYTES:
        if v.__class__ is not str:
            raise Odd
        return _base64(v), 0
    if v is None:
        raise Odd
    if c in (STRING, DURATION):
        if v.__class__ is not str:
            raise Odd
        return v, 0
    if c == NUMBER:
        if v.__class__ is not int and v.__class__ is not float:
            raise Odd
        return v, 0
    if c == LIST:
        if v.__class__ is not list:
            raise Odd
        n = 0
        assert p.items is not None
        for i, x in enumerate(v):
            v[i], m = _scalar(x, p.items)
            n += m
        return v, n
    if c == MAP:
        if v.__class__ is not dict:
            raise Odd
        return v, _map(v, p.extra)  # type: ignore[arg-type]
    if c in (INT32, INT64):
        if v.__class__ is int and (INT32_MIN <= v <= INT32_MAX or (c == INT64 and INT64_MIN <= v <= INT64_MAX)):
            return v, 0
        raise Odd
    if c == BOOL:
        if v.__class__ is not bool:
            raise Odd
        return v, 0
    if p.or_schema:
        raise Odd
    return v, count(v)


def _base64(text: str) -> str:
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, binascii.Error):
        raise Odd from None
    again = binascii.b2a_base64(raw, newline=False).decode()
    if len(again) != len(text):
        raise Odd
    return again


def custom(obj: dict[str, Any], schema: Schema) -> int:
    """Fast walk of a custom object: metadata as ObjectMeta, the rest must be known to the schema; its types are the validator's."""
    n = len(obj)
    for k, v in obj.items():
        if k == "metadata":
            if v.__class__ is not dict:
                raise Odd
            n += struct(v, definition(OBJECT_META))
        elif k == "apiVersion" or k == "kind":
            continue
        else:
            p = schema.at(k)
            if p is None:
                if not schema.preserve:
                    raise Odd
                n += count(v)
            else:
                n += _custom_value(v, p)
    return n


def _custom_value(v: Any, p: Schema) -> int:
    if p is OPEN:
        raise Odd
    if v.__class__ is dict:
        if p.embedded:
            raise Odd
        if p.props is None and p.extra is None:
            if not p.preserve:
                if v:
                    raise Odd
                return 0
            return count(v)
        n = len(v)
        for k, x in v.items():
            c = p.at(k)
            if c is None:
                if not p.preserve:
                    raise Odd
                n += count(x)
            elif x.__class__ is dict or x.__class__ is list:
                n += _custom_value(x, c)
        return n
    if v.__class__ is list:
        n = 0
        items = p.items
        for x in v:
            if x.__class__ is dict or x.__class__ is list:
                if items is None and not p.preserve:
                    raise Odd
                n += _custom_value(x, items) if items is not None else count(x)
        return n
    return 0
