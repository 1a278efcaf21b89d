"""The functions of CEL: operators, conversions, strings, lists, sets, optionals; Kubernetes' own are in kubernetes.py.

A row is a signature and what it does: `T.f(A) -> R` is called on its first argument, `f(T, A) -> R` is not; a colon before it says that
the dots are part of the name. Overloads stand together.
Upstream: cel-go common/stdlib, ext/{strings,lists,sets}, and the versions that apiserver pkg/cel/environment/base.go takes.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import zoneinfo
from collections.abc import Callable, Iterable
from functools import cmp_to_key
from itertools import pairwise
from typing import Any

from kubern.model.cel.check import Overload
from kubern.model.cel.literals import CLAUSES, BadFormat, clauses
from kubern.model.cel.run import at
from kubern.model.cel.types import read, split
from kubern.model.cel.values import (
    INT_MAX,
    NOTHING,
    NS,
    UINT_MAX,
    Cancelled,
    CelError,
    Duration,
    Keyed,
    Optional,
    Timestamp,
    TypeValue,
    UInt,
    checked_int,
    checked_uint,
    compare,
    duration,
    equal,
    kind_of,
    show_double,
    timestamp,
)

Row = tuple[str, Callable[..., Any]]
LENGTH_MAX = 10_000_000        # of strings and lists that functions make


def overloads(rows: Iterable[Row]) -> dict[str, tuple[Overload, ...]]:
    """Functions by name."""
    out: dict[str, list[Overload]] = {}
    for signature, call in rows:
        head, _, result = signature.rpartition(" -> ")
        name, _, params = head.partition("(") if not head.startswith(("list(", "map(", "optional_type(", "type(")) else _generic(head)
        args = [read(p) for p in split(params[:-1])]
        target, dot, method = name.rpartition(".")
        is_target = not signature.startswith(":") and bool(dot) and (target[:1].isupper() or target in _TARGETS or "(" in target)
        if is_target:
            args.insert(0, read(target))
            name = method
        out.setdefault(name.lstrip(":"), []).append(Overload(tuple(args), read(result), call, is_target))
    return {name: tuple(rows) for name, rows in out.items()}


def _generic(head: str) -> tuple[str, str, str]:
    """(`list(A).f`, "(", params) of a signature whose target has parameters."""
    depth = 0
    for i, c in enumerate(head):
        depth += (c == "(") - (c == ")")
        if c == "." and not depth:
            name, _, params = head[i:].partition("(")
            return head[:i] + name, "(", params
    return head.partition("(")


_TARGETS = frozenset(("string", "bytes", "int", "uint", "double", "timestamp", "duration", "quantity", "url", "ip", "cidr", "semver", "format",
                      "authorizer", "pathcheck", "groupcheck", "resourcecheck", "decision"))


def _wrong(value: Any, to: str) -> CelError:
    return CelError(f"type conversion error from '{kind_of(value)}' to '{to}'")


# -- arithmetic

def _add(a: Any, b: Any) -> Any:
    if isinstance(a, (Timestamp, Duration)) and isinstance(b, (Timestamp, Duration)):
        total = a.ns + b.ns
        if isinstance(a, Duration) and isinstance(b, Duration):
            return Duration(total)
        return Timestamp(total, (a if isinstance(a, Timestamp) else b).zone)       # type: ignore[union-attr]
    if isinstance(a, (str, bytes, list)) and len(a) + len(b) > LENGTH_MAX:
        raise Cancelled
    return a.plus(b) if type(a) is Keyed else a + b


def _sub(a: Any, b: Any) -> Any:
    total = a.ns - b.ns
    return Timestamp(total, a.zone) if isinstance(a, Timestamp) and isinstance(b, Duration) else Duration(total)


def _div(a: int, b: int) -> int:
    if b == 0:
        raise CelError("division by zero")
    q = abs(a) // abs(b)
    return checked_int(q if (a < 0) == (b < 0) else -q)


def _mod(a: int, b: int) -> int:
    if b == 0:
        raise CelError("modulus by zero")
    if b == -1:
        checked_int(-a)
    r = abs(a) % abs(b)
    return -r if a < 0 else r


def _fdiv(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1, b)
    return a / b


def _in_list(x: Any, xs: Any) -> bool:
    return any(equal(x, y) for y in xs)


def _in_map(x: Any, m: Any) -> bool:
    return any(equal(x, k) for k in m) if isinstance(x, (bool, float)) else x in m


_ORDERED = ("bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration")
_MIXED = (("int", "uint"), ("int", "double"), ("uint", "int"), ("uint", "double"), ("double", "int"), ("double", "uint"))


def _compare(a: Any, b: Any) -> int:
    if type(a) is bool and type(b) is bool:
        return int(a) - int(b)
    return compare(a, b)


_OPERATORS: list[Row] = [
    ("_==_(A, A) -> bool", equal), ("_!=_(A, A) -> bool", lambda a, b: not equal(a, b)),
    ("!_(bool) -> bool", lambda a: not a),
    ("-_(int) -> int", lambda a: checked_int(-a)), ("-_(double) -> double", lambda a: -a),
    ("_+_(int, int) -> int", lambda a, b: checked_int(a + b)), ("_+_(uint, uint) -> uint", lambda a, b: checked_uint(a + b)),
    ("_+_(double, double) -> double", _add), ("_+_(string, string) -> string", _add), ("_+_(bytes, bytes) -> bytes", _add),
    ("_+_(list(A), list(A)) -> list(A)", _add), ("_+_(timestamp, duration) -> timestamp", _add),
    ("_+_(duration, timestamp) -> timestamp", _add), ("_+_(duration, duration) -> duration", _add),
    ("_-_(int, int) -> int", lambda a, b: checked_int(a - b)), ("_-_(uint, uint) -> uint", lambda a, b: checked_uint(a - b)),
    ("_-_(double, double) -> double", lambda a, b: a - b), ("_-_(timestamp, timestamp) -> duration", _sub),
    ("_-_(timestamp, duration) -> timestamp", _sub), ("_-_(duration, duration) -> duration", _sub),
    ("_*_(int, int) -> int", lambda a, b: checked_int(a * b)), ("_*_(uint, uint) -> uint", lambda a, b: checked_uint(a * b)),
    ("_*_(double, double) -> double", lambda a, b: a * b),
    ("_/_(int, int) -> int", _div), ("_/_(uint, uint) -> uint", lambda a, b: UInt(_div(a, b))), ("_/_(double, double) -> double", _fdiv),
    ("_%_(int, int) -> int", _mod), ("_%_(uint, uint) -> uint", lambda a, b: UInt(_mod(a, b))),
    ("@in(A, list(A)) -> bool", _in_list), ("@in(A, map(A, B)) -> bool", _in_map),
]
for _name, _test in (("_<_", lambda c: c < 0), ("_<=_", lambda c: c <= 0), ("_>_", lambda c: c > 0), ("_>=_", lambda c: c >= 0)):
    _OPERATORS += [(f"{_name}({a}, {b}) -> bool", lambda x, y, test=_test: test(_compare(x, y)))
                   for a, b in (*((t, t) for t in _ORDERED), *_MIXED)]


# -- conversions

def _to_int(x: Any) -> int:
    if isinstance(x, Timestamp):
        return x.ns // NS
    if isinstance(x, str):
        try:
            n = int(x) if x.strip() == x and "_" not in x else None
        except ValueError:
            n = None
        if n is None or not -INT_MAX - 1 <= n <= INT_MAX:
            raise _wrong(x, "int")
        return n
    if isinstance(x, float):
        if x != x or not -(2.0**63) < x < 2.0**63:
            raise CelError("integer overflow")
        return int(x)
    return checked_int(int(x))


def _to_uint(x: Any) -> UInt:
    if isinstance(x, str):
        if not x.isdigit() or not x.isascii() or int(x) > UINT_MAX:
            raise _wrong(x, "uint")
        return UInt(int(x))
    if isinstance(x, float) and (x != x or not 0 <= x < 2.0**64):
        raise CelError("unsigned integer overflow")
    return checked_uint(int(x))


_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity)|nan", re.IGNORECASE)
_HEX_FLOAT = re.compile(r"[+-]?0x(?:[0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)p[+-]?[0-9]+", re.IGNORECASE)


def _to_double(x: Any) -> float:
    try:
        if isinstance(x, str) and _HEX_FLOAT.fullmatch(x):
            return float.fromhex(x)
        if isinstance(x, str) and not _FLOAT.fullmatch(x):
            raise ValueError
        return float(x)
    except (ValueError, OverflowError):
        raise _wrong(x, "double") from None


def _to_string(x: Any) -> str:
    if isinstance(x, bool):
        return "true" if x else "false"
    if isinstance(x, float):
        return show_double(x)
    if isinstance(x, bytes):
        try:
            return x.decode()
        except UnicodeDecodeError:
            raise CelError("invalid UTF-8 in bytes, cannot convert to string") from None
    return str(x)


_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


def _to_bool(x: str) -> bool:
    if x in _TRUE or x in _FALSE:
        return x in _TRUE
    raise _wrong(x, "bool")


_CONVERSIONS: list[Row] = [
    *((f"int({t}) -> int", _to_int) for t in ("int", "uint", "double", "string", "timestamp")),
    ("int(duration) -> int", lambda d: d.ns),
    *((f"uint({t}) -> uint", _to_uint) for t in ("uint", "int", "double", "string")),
    *((f"double({t}) -> double", _to_double) for t in ("double", "int", "uint", "string")),
    *((f"string({t}) -> string", _to_string) for t in ("string", "bool", "int", "uint", "double", "bytes", "timestamp", "duration")),
    ("bool(bool) -> bool", lambda x: x), ("bool(string) -> bool", _to_bool),
    ("bytes(bytes) -> bytes", lambda x: x), ("bytes(string) -> bytes", lambda x: x.encode()),
    ("timestamp(timestamp) -> timestamp", lambda x: x), ("timestamp(string) -> timestamp", timestamp),
    ("timestamp(int) -> timestamp", lambda x: Timestamp(x * NS)),
    ("duration(duration) -> duration", lambda x: x), ("duration(string) -> duration", duration),
    ("duration(int) -> duration", Duration),
    ("dyn(A) -> dyn", lambda x: x), ("type(A) -> type(A)", lambda x: TypeValue(kind_of(x))),
]


# -- sizes, strings

def _matches(text: str, pattern: str) -> bool:
    return regex(pattern).search(text) is not None


_REGEXES: dict[str, Any] = {}


def regex(pattern: str) -> Any:
    found = _REGEXES.get(pattern)
    if found is None:
        import re2
        options = re2.Options()
        options.log_errors = False
        try:
            found = re2.compile(pattern, options)
        except re2.error:
            from kubern.model.kinds.crd_structural import pattern_error
            raise CelError(pattern_error(pattern)) from None
        if len(_REGEXES) > 5000:
            _REGEXES.clear()
        _REGEXES[pattern] = found
    return found


def _char_at(s: str, i: int) -> str:
    if not 0 <= i <= len(s):
        raise CelError(f"index out of range: {i}")
    return s[i:i + 1]


def _index_of(s: str, sub: str, start: int = 0) -> int:
    if sub and start < 0:
        raise CelError(f"index out of range: {start}")
    return s.find(sub, start) if sub else start


def _last_index_of(s: str, sub: str, start: int | None = None) -> int:
    if start is None:
        return s.rfind(sub)
    if sub and start < 0:
        raise CelError(f"index out of range: {start}")
    return (s.rfind(sub, 0, start + len(sub)) if start < len(s) else -1) if sub else start


def _replace(s: str, old: str, new: str, count: int = -1) -> str:
    out = s.replace(old, new, count)
    if len(out) > LENGTH_MAX:
        raise Cancelled
    return out


def _split(s: str, sep: str, limit: int = -1) -> list[str]:
    if limit == 0:
        return []
    if not sep:
        parts = list(s)
        return parts if limit < 0 or len(parts) <= limit else [*parts[:limit - 1], "".join(parts[limit - 1:])]
    return s.split(sep, limit - 1 if limit > 0 else -1)


def _substring(s: str, start: int, end: int | None = None) -> str:
    stop = len(s) if end is None else end
    if not 0 <= start <= len(s):
        raise CelError(f"index out of range: {start}")
    if not 0 <= stop <= len(s):
        raise CelError(f"index out of range: {stop}")
    if start > stop:
        raise CelError(f"invalid substring range. start: {start}, end: {stop}")
    return s[start:stop]


_UPPER = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def _clause(c: str, precision: int | None, x: Any) -> str:
    """One %-clause of format()."""
    kind = kind_of(x)
    kinds, why = CLAUSES[c]
    if kind not in kinds or (kind == "string" and c in "fe" and x not in ("NaN", "Infinity", "-Infinity")):
        raise CelError(f"error during formatting: {why}, was given {kind}")
    if c in "fe":
        return _decimal(c, float(x), 6 if precision is None else precision)
    if c == "b":
        return ("1" if x else "0") if kind == "bool" else f"{x:b}"
    if c == "o":
        return f"{x:o}"
    if c in "xX":
        text = f"{x:x}" if isinstance(x, int) else (x.encode() if isinstance(x, str) else x).hex()
        return text if c == "x" else text.upper()
    return _shown(x)


def _decimal(c: str, x: float, precision: int) -> str:
    """As golang.org/x/text prints a number in English: thousands apart, powers of ten in full, always six digits before them."""
    if not math.isfinite(x):
        return "NaN" if x != x else "∞" if x > 0 else "-∞"
    if c == "f":
        return f"{x:,.{min(precision, 1000)}f}"
    mantissa, _, power = f"{x:.6e}".partition("e")
    return f"{mantissa}×10{(('-' if power[0] == '-' else '') + power[1:]).translate(_SUPERSCRIPT)}"


def _shown(x: Any) -> str:
    if x is None:
        return "null"
    if isinstance(x, list):
        return "[" + ", ".join(_member(i) for i in x) + "]"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{k}:{v}" for k, v in sorted((_member(k), _member(v)) for k, v in x.items())) + "}"
    if isinstance(x, TypeValue):
        return x.name
    try:
        return _to_string(x)
    except CelError as e:
        raise CelError(f"error during formatting: could not convert argument {_quoted(str(e))} to string") from None


def _member(x: Any) -> str:
    """As a literal of CEL, in a list or map."""
    if isinstance(x, str):
        return _quoted(x)
    if isinstance(x, bytes):
        return "b" + _quoted(_shown(x))
    if isinstance(x, float):
        return f"{x:.6f}" if math.isfinite(x) else _quoted(show_double(x))
    if isinstance(x, (Duration, Timestamp)):
        return f'{"duration" if isinstance(x, Duration) else "timestamp"}("{x}")'
    return _shown(x)


def _format(s: str, args: list[Any]) -> str:
    out, used = [], 0
    try:
        for before, clause, precision in clauses(s):
            out.append(before)
            if not clause:
                break
            if used >= len(args):
                raise CelError(f"index {used} out of range")
            out.append(_clause(clause, precision, args[used]))
            used += 1
    except BadFormat as e:
        raise CelError(str(e)) from None
    if used < len(args):
        raise CelError(f"too many arguments supplied to string.format (expected {used}, got {len(args)})")
    return "".join(out)


_STRINGS: list[Row] = [
    *((f"size({t}) -> int", len) for t in ("string", "bytes", "list(A)", "map(A, B)")),
    *((f"{t}.size() -> int", len) for t in ("string", "bytes", "list(A)", "map(A, B)")),
    ("string.contains(string) -> bool", lambda s, x: x in s), ("string.startsWith(string) -> bool", str.startswith),
    ("string.endsWith(string) -> bool", str.endswith),
    ("string.matches(string) -> bool", _matches), ("matches(string, string) -> bool", _matches),
    ("string.charAt(int) -> string", _char_at),
    ("string.indexOf(string) -> int", _index_of), ("string.indexOf(string, int) -> int", _index_of),
    ("string.lastIndexOf(string) -> int", _last_index_of), ("string.lastIndexOf(string, int) -> int", _last_index_of),
    ("string.lowerAscii() -> string", lambda s: s.translate(_LOWER)), ("string.upperAscii() -> string", lambda s: s.translate(_UPPER)),
    ("string.replace(string, string) -> string", _replace), ("string.replace(string, string, int) -> string", _replace),
    ("string.split(string) -> list(string)", _split), ("string.split(string, int) -> list(string)", _split),
    ("string.substring(int) -> string", _substring), ("string.substring(int, int) -> string", _substring),
    ("string.trim() -> string", str.strip),
    ("string.format(list(dyn)) -> string", _format),
    ("strings.quote(string) -> string", lambda s: _quote(s)),
    ("list(string).join() -> string", "".join), ("list(string).join(string) -> string", lambda xs, sep: sep.join(xs)),
]


_ESCAPES = str.maketrans({"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", "\\": "\\\\", '"': '\\"'})


def _quote(s: str) -> str:
    return '"' + s.translate(_ESCAPES) + '"'


def _quoted(s: str) -> str:
    """As Go's %q."""
    from kubern.model.invalid import quote
    return quote(s)


# -- times

_OFFSET = re.compile(r"[+-]?[0-9]{1,2}:[0-9]{2}")


def _zone(name: str) -> dt.tzinfo:
    if not name:
        return dt.UTC
    if _OFFSET.fullmatch(name):
        sign = -1 if name.startswith("-") else 1
        hours, _, minutes = name.lstrip("+-").partition(":")
        return dt.timezone(sign * dt.timedelta(hours=int(hours), minutes=int(minutes or 0)))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise CelError(f"unknown time zone {name}") from None


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _part(get: Callable[[dt.datetime], int]) -> Callable[..., int]:
    return lambda t, zone="UTC": get((_EPOCH + dt.timedelta(seconds=t.ns // NS)).astimezone(_zone(zone)))


_PARTS: dict[str, Callable[[dt.datetime], int]] = {
    "getFullYear": lambda t: t.year, "getMonth": lambda t: t.month - 1, "getDayOfYear": lambda t: t.timetuple().tm_yday - 1,
    "getDate": lambda t: t.day, "getDayOfMonth": lambda t: t.day - 1, "getDayOfWeek": lambda t: t.isoweekday() % 7,
    "getHours": lambda t: t.hour, "getMinutes": lambda t: t.minute, "getSeconds": lambda t: t.second}
_TIMES: list[Row] = [
    *((f"timestamp.{name}() -> int", _part(get)) for name, get in _PARTS.items()),
    *((f"timestamp.{name}(string) -> int", _part(get)) for name, get in _PARTS.items()),
    ("timestamp.getMilliseconds() -> int", lambda t: t.ns % NS // 1_000_000),
    ("timestamp.getMilliseconds(string) -> int", lambda t, z: t.ns % NS // 1_000_000),
    ("duration.getHours() -> int", lambda d: int(d.ns / (3600 * NS))), ("duration.getMinutes() -> int", lambda d: int(d.ns / (60 * NS))),
    ("duration.getSeconds() -> int", lambda d: int(d.ns / NS)),
    ("duration.getMilliseconds() -> int", lambda d: int(d.ns / 1_000_000)),
]


# -- lists, sets, optionals

def _first(xs: list[Any], x: Any, order: int = 1) -> int:
    positions = range(len(xs)) if order > 0 else range(len(xs) - 1, -1, -1)
    return next((i for i in positions if equal(xs[i], x)), -1)


def _extreme(name: str, sign: int) -> Callable[[list[Any]], Any]:
    def run(xs: list[Any]) -> Any:
        if not xs:
            raise CelError(f"{name} called on empty list")
        best = xs[0]
        for x in xs[1:]:
            if sign * _compare(x, best) > 0:
                best = x
        return best
    return run


def _sum(zero: Any) -> Callable[[list[Any]], Any]:
    def run(xs: list[Any]) -> Any:
        total = zero
        for x in xs:
            total = _add(total, x)
        return checked_uint(total) if isinstance(zero, UInt) else checked_int(total) if type(zero) is int else total
    return run


def _slice(xs: list[Any], start: int, end: int) -> list[Any]:
    if start < 0 or end < 0:
        raise CelError(f"cannot slice({start}, {end}), negative indexes not supported")
    if start > end:
        raise CelError(f"cannot slice({start}, {end}), start index must be less than or equal to end index")
    if end > len(xs):
        raise CelError(f"cannot slice({start}, {end}), list is length {len(xs)}")
    return xs[start:end]


def _flatten(xs: list[Any], depth: int = 1) -> list[Any]:
    if depth < 0:
        raise CelError("level must be non-negative")
    out: list[Any] = []
    for x in xs:
        if isinstance(x, list):
            out.extend(_flatten(x, depth - 1) if depth > 1 else x)
        else:
            out.append(x)
    return out if depth else list(xs)


def _range(n: int) -> list[int]:
    if n > 1_000_000:
        raise Cancelled
    return list(range(n))


def _distinct(xs: list[Any]) -> list[Any]:
    out: list[Any] = []
    for x in xs:
        if not _in_list(x, out):
            out.append(x)
    return out


def _sorted(xs: list[Any]) -> bool:
    return all(_compare(a, b) <= 0 for a, b in pairwise(xs))


def _sort(xs: list[Any]) -> list[Any]:
    if any(kind_of(x) != kind_of(xs[0]) for x in xs):
        raise CelError("list elements must have the same type")
    return sorted(xs, key=cmp_to_key(_compare))


def _is_zero(x: Any) -> bool:
    return x is None or (isinstance(x, (bool, int, float, str, bytes, list, dict)) and not x) or (isinstance(x, Duration) and x.ns == 0)


def _value(o: Optional) -> Any:
    if not o.has:
        raise CelError("optional.none() dereference")
    return o.value


def _unwrap(xs: list[Optional]) -> list[Any]:
    return [x.value for x in xs if x.has]


_LISTS: list[Row] = [
    ("list(A).indexOf(A) -> int", _first), ("list(A).lastIndexOf(A) -> int", lambda xs, x: _first(xs, x, -1)),
    *((f"list({t}).isSorted() -> bool", _sorted) for t in _ORDERED),
    *((f"list({t}).max() -> {t}", _extreme("max", 1)) for t in _ORDERED),
    *((f"list({t}).min() -> {t}", _extreme("min", -1)) for t in _ORDERED),
    *((f"list({t}).sum() -> {t}", _sum(zero)) for t, zero in (("int", 0), ("uint", UInt(0)), ("double", 0.0), ("duration", Duration(0)))),
    ("list(A).slice(int, int) -> list(A)", _slice), ("list(list(A)).flatten() -> list(A)", _flatten),
    ("list(A).flatten(int) -> list(dyn)", _flatten),
    *((f"list({t}).sort() -> list({t})", _sort) for t in _ORDERED),
    ("lists.range(int) -> list(int)", _range), ("list(A).reverse() -> list(A)", lambda xs: xs[::-1]),
    ("list(A).distinct() -> list(A)", _distinct),
    ("sets.contains(list(A), list(A)) -> bool", lambda a, b: all(_in_list(x, a) for x in b)),
    ("sets.equivalent(list(A), list(A)) -> bool", lambda a, b: all(_in_list(x, a) for x in b) and all(_in_list(x, b) for x in a)),
    ("sets.intersects(list(A), list(A)) -> bool", lambda a, b: any(_in_list(x, b) for x in a)),
    ("optional.of(A) -> optional_type(A)", Optional), ("optional.none() -> optional_type(A)", lambda: NOTHING),
    ("optional.ofNonZeroValue(A) -> optional_type(A)", lambda x: NOTHING if _is_zero(x) else Optional(x)),
    ("optional_type(A).value() -> A", _value), ("optional_type(A).hasValue() -> bool", lambda o: o.has),
    ("optional_type(A).or(optional_type(A)) -> optional_type(A)", lambda o, other: o if o.has else other),
    ("optional_type(A).orValue(A) -> A", lambda o, other: o.value if o.has else other),
    ("optional.unwrap(list(optional_type(A))) -> list(A)", _unwrap), ("list(optional_type(A)).unwrapOpt() -> list(A)", _unwrap),
    ("list(A).first() -> optional_type(A)", lambda xs: Optional(xs[0]) if xs else NOTHING),
    ("list(A).last() -> optional_type(A)", lambda xs: Optional(xs[-1]) if xs else NOTHING),
    ("_[_](list(A), int) -> A", at), ("_[_](map(A, B), A) -> B", at),
]

STANDARD: tuple[Row, ...] = (*_OPERATORS, *_CONVERSIONS, *_STRINGS, *_TIMES, *_LISTS)
