"""CEL's values in Python: null, bool, int, float, str, bytes, list and dict are themselves; the rest have a class here.

Equality and order are CEL's, not Python's: true is not 1, an int equals a double of the same size, values of different kinds are
unequal rather than an error. Upstream: cel-spec doc/langdef.md "Values"; cel-go common/types.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from decimal import Decimal
from typing import Any

from kubern.model.cel.types import DURATION, NULL, TIMESTAMP, Object, Type
from kubern.model.time import duration_ns

NS = 1_000_000_000
INT_MAX, UINT_MAX = (1 << 63) - 1, (1 << 64) - 1


class CelError(Exception):
    """An evaluation that failed; the text is upstream's."""


class Cancelled(CelError):
    """One that became too expensive: nothing in the expression can make up for it."""

    def __init__(self) -> None:
        super().__init__("operation cancelled: actual cost limit exceeded")


_EPOCH = dt.datetime(1970, 1, 1)
_FIRST_S, _END_S = -62135596800, 253402300800          # years 1 to 9999


class UInt(int):
    __slots__ = ()


class Timestamp:
    """Nanoseconds since 1970, and how far from UTC it was written, in minutes: it is shown so again."""

    __slots__ = ("ns", "zone")
    kind = TIMESTAMP

    def __init__(self, ns: int, zone: int = 0) -> None:
        if not _FIRST_S * NS <= ns < _END_S * NS:
            raise CelError("timestamp overflow")
        self.ns, self.zone = ns, zone

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timestamp) and self.ns == other.ns

    def __hash__(self) -> int:
        return hash(self.ns)

    def __str__(self) -> str:
        t = _EPOCH + dt.timedelta(seconds=self.ns // NS, minutes=self.zone)
        fraction = f"{self.ns % NS:09d}".rstrip("0")
        hours, minutes = divmod(abs(self.zone), 60)
        zone = f"{'-' if self.zone < 0 else '+'}{hours:02d}:{minutes:02d}" if self.zone else "Z"
        return f"{t.isoformat()}{'.' if fraction else ''}{fraction}{zone}"


class Duration:
    __slots__ = ("ns",)
    kind = DURATION

    def __init__(self, ns: int) -> None:
        self.ns = checked_int(ns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and self.ns == other.ns

    def __hash__(self) -> int:
        return hash(self.ns)

    def __str__(self) -> str:
        return f"{_fixed(self.ns / NS)}s"


class Optional:
    """optional.of(value), or optional.none() with has false."""

    __slots__ = ("has", "value")
    kind = "optional_type"

    def __init__(self, value: Any = None, has: bool = True) -> None:
        self.value, self.has = value, has

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Optional) and self.has == other.has and (not self.has or equal(self.value, other.value))

    def __hash__(self) -> int:
        return hash(self.has)


NOTHING = Optional(None, False)


class TypeValue:
    __slots__ = ("name",)
    kind = "type"

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TypeValue) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Message(dict[str, Any]):
    """What Name{…} builds: a dict that remembers its type."""

    __slots__ = ("kind",)

    def __init__(self, kind: str, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.kind = kind


class Keyed(list[Any]):
    """A list of a schema whose items are told apart by themselves (a set) or by fields: their order does not count, and adding replaces."""

    __slots__ = ("keys",)
    kind = "list"

    def __init__(self, items: list[Any], keys: tuple[str, ...]) -> None:
        super().__init__(items)
        self.keys = keys

    def key(self, item: Any) -> Any:
        return tuple([item.get(k) for k in self.keys]) if self.keys and isinstance(item, dict) else item

    def equals(self, other: Any) -> bool:
        if not isinstance(other, list):
            raise CelError("no such overload")
        if len(self) != len(other):
            return False
        mine = [(self.key(x), x) for x in self]
        return all(any(equal(k, self.key(x)) and equal(y, x) for k, y in mine) for x in other)

    def plus(self, other: list[Any]) -> Keyed:
        out = list(self)
        for x in other:
            at = next((i for i, y in enumerate(out) if equal(self.key(y), self.key(x))), None)
            if at is None:
                out.append(x)
            elif self.keys:
                out[at] = x
        return Keyed(out, self.keys)


_KINDS: dict[type, str] = {bool: "bool", int: "int", UInt: "uint", float: "double", str: "string", bytes: "bytes", list: "list", dict: "map",
                           type(None): NULL}


PLAIN = frozenset(_KINDS)             # types that say the kind of all their values


def kind_of(value: Any) -> str:
    """The name of a value's type."""
    return _KINDS.get(type(value)) or str(getattr(value, "kind", "map"))


def is_kind(value: Any, t: Type) -> bool:
    """Whether a value may be given where type `t` is declared, as far as one sees at run time."""
    if isinstance(t, Object):
        return isinstance(value, dict)
    head = t[0] if isinstance(t, tuple) else t
    if head in ("param", "dyn"):
        return True
    return kind_of(value) == head


def equal(a: Any, b: Any) -> bool:
    ta, tb = type(a), type(b)
    if ta is Keyed:
        return bool(a.equals(b))
    if tb is Keyed:
        b, tb = list(b), list
    if ta is tb and ta is not list and ta is not dict:
        return bool(a == b)
    if ta is bool or tb is bool:
        return False
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if ta is list and tb is list:
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        if len(a) != len(b):
            return False
        return all(k in b and equal(v, b[k]) for k, v in a.items())
    return bool(a == b) if ta is tb else False


def compare(a: Any, b: Any) -> int:
    """-1, 0 or 1; raises where the two cannot be ordered."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and (type(a) is bool) == (type(b) is bool):
        if a != a or b != b:
            raise CelError("NaN values cannot be ordered")
        return (a > b) - (a < b)
    if type(a) is type(b):
        if isinstance(a, (str, bytes)):
            return (a > b) - (a < b)
        if isinstance(a, (Timestamp, Duration)):
            return (a.ns > b.ns) - (a.ns < b.ns)
    raise CelError("no such overload")


def checked_int(n: int) -> int:
    if -INT_MAX - 1 <= n <= INT_MAX:
        return n
    raise CelError("integer overflow")


def checked_uint(n: int) -> UInt:
    if 0 <= n <= UINT_MAX:
        return UInt(n)
    raise CelError("unsigned integer overflow")


_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)


def timestamp(text: str) -> Timestamp:
    m = _TIMESTAMP.fullmatch(text)
    try:
        if m is None:
            raise ValueError
        zone = 0 if m[4] == "Z" else (-1 if m[4][0] == "-" else 1) * (int(m[4][1:3]) * 60 + int(m[4][4:]))
        seconds = int((dt.datetime.fromisoformat(f"{m[1]}T{m[2]}") - _EPOCH).total_seconds()) - zone * 60
    except (ValueError, OverflowError):
        raise CelError("type conversion error from 'string' to 'google.protobuf.Timestamp'") from None
    return Timestamp(seconds * NS + int((m[3] or "0").ljust(9, "0")[:9]), zone)


def duration(text: str) -> Duration:
    """Go's ParseDuration."""
    try:
        return Duration(duration_ns(text))
    except ValueError:
        raise CelError("type conversion error from 'string' to 'google.protobuf.Duration'") from None


def show_double(value: float) -> str:
    """As Go's strconv.FormatFloat(v, 'g', -1, 64)."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    power = len(digits) - 1 + exponent if value else 0
    if not -4 <= power < 6:
        text = "".join(map(str, digits))
        return f"{'-' if sign else ''}{text[0]}{'.' if len(text) > 1 else ''}{text[1:]}e{'-' if power < 0 else '+'}{abs(power):02d}"
    return _fixed(value)


def _fixed(value: float) -> str:
    """Without an exponent, in as few digits as say it."""
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def to_json(value: Any) -> Any:
    """A value as JSON data, for patches and answers."""
    if isinstance(value, (Timestamp, Duration)):
        return str(value)
    if isinstance(value, UInt):
        return int(value)
    if isinstance(value, bytes):
        import base64
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [to_json(v) for v in value]
    if isinstance(value, Optional):
        return to_json(value.value)
    return value
