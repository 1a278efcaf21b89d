"""Meter: what an evaluation costs, in CEL's units, and where it is cut off.

What surely runs is counted once, when the expression is compiled (`Node.cost`); branches, loops and functions whose cost hangs on their
arguments count as they run. CHARGES names those functions; every other call costs one unit.
Upstream: cel-go interpreter/runtimecost.go, ext/{lists,sets}.go; apiserver pkg/cel/library/cost.go, pkg/apis/cel/config.go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kubern.model.cel.values import Cancelled, Optional

CALL_MAX = 1_000_000                     # units of one expression
TOTAL_MAX = 10_000_000                   # of all expressions of an object's rules, or of a policy's binding
CONDITIONS_MAX = 2_500_000               # of all match conditions of a webhook or policy
METER = 0                                # the key under which `variables` holds the meter
TRAVERSAL, REGEX, LIST, MAP, STRUCT = 0.1, 0.25, 10, 30, 40
CHECK = 350_000
FORMAT_REGEX_MAX = 128
CIDR_BYTES = 16


class Meter:
    """`call`: units of the expression that is running; `total`: of those that have run."""

    __slots__ = ("call", "total")

    def __init__(self) -> None:
        self.call = self.total = 0


def spend(v: dict[Any, Any], units: int) -> None:
    """Raises Cancelled where an expression has become too expensive."""
    meter = v[METER]
    meter.call += units
    if meter.call > CALL_MAX:
        raise Cancelled


def size(value: Any) -> int:
    """Elements of a list or map, characters or bytes of a text, 1 of anything else."""
    if isinstance(value, (str, bytes, list, dict)):
        return len(value)
    return size(value.value) if isinstance(value, Optional) and value.has else 1


def _part(n: int, factor: float = TRAVERSAL) -> int:
    return math.ceil(n * factor)


def _first(factor: float = TRAVERSAL) -> Callable[[tuple[Any, ...], Any], int]:
    """A part of the first argument."""
    return lambda args, result: _part(size(args[0]), factor)


def _lesser(args: tuple[Any, ...], result: Any) -> int:
    return _part(min(size(args[0]), size(args[1])))


def _ordered(args: tuple[Any, ...], result: Any) -> int:
    return _lesser(args, result) if isinstance(args[0], (str, bytes)) else 1


def _added(args: tuple[Any, ...], result: Any) -> int:
    return _part(size(args[0]) + size(args[1])) if isinstance(args[0], (str, bytes)) else 1


def _of_texts(charge: Callable[[tuple[Any, ...], Any], int], kinds: Any = (str, bytes)) -> Callable[[tuple[Any, ...], Any], int]:
    """For overloads that take a text first; the others cost one."""
    return lambda args, result: charge(args, result) if isinstance(args[0], kinds) else 1


def _regex(args: tuple[Any, ...], result: Any) -> int:
    return _part(1 + size(args[0])) * _part(size(args[1]), REGEX)


def _length(value: Any) -> int:
    """Of a text, and of all that a list or map holds."""
    if isinstance(value, (str, bytes)):
        return int(len(value.encode() if isinstance(value, str) else value) * TRAVERSAL)
    if isinstance(value, dict):
        return sum(_length(k) + _length(x) for k, x in value.items())
    return sum(map(_length, value)) if isinstance(value, list) else 1


def _traversed(args: tuple[Any, ...], result: Any) -> int:
    return _length(args[0])


def _selector(args: tuple[Any, ...], result: Any) -> int:
    length = size(args[1])
    return LIST + _part(length) + _part(_part(length, 0.5), LIST + STRUCT)


def _made(factor: float, of: Callable[[tuple[Any, ...], Any], int]) -> Callable[[tuple[Any, ...], Any], int]:
    return lambda args, result: int(of(args, result) * factor) + 1 + LIST


def self_compared(items: Any) -> int:
    """Sorting, and telling items apart."""
    n = size(items)
    factor = 2 + (TRAVERSAL if n and isinstance(items[0], (str, bytes)) else 0)
    return int(n * n * factor) + 1 + LIST


def _sets(factor: int) -> Callable[[tuple[Any, ...], Any], int]:
    return lambda args, result: 1 + size(args[0]) * size(args[1]) * factor


def _contains_address(args: tuple[Any, ...], result: Any) -> int:
    return _part(2) + (_part(size(args[1])) if isinstance(args[1], str) else 0)


CHARGES: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "_==_": _lesser, "_!=_": _lesser, "_<_": _ordered, "_<=_": _ordered, "_>_": _ordered, "_>=_": _ordered, "_+_": _added,
    "@in": lambda args, result: size(args[1]) if isinstance(args[1], list) else 1,
    "startsWith": _first(), "endsWith": _first(), "format": _first(), "strings.quote": _first(),
    "bytes": _of_texts(_first(), str), "string": _of_texts(_first(), bytes),
    "matches": _regex, "find": _regex, "findAll": _regex,
    "contains": lambda args, result: _part(size(args[0])) * _part(size(args[1])),
    "isSorted": _traversed, "sum": _traversed, "max": _traversed, "min": _traversed, "indexOf": _traversed, "lastIndexOf": _traversed,
    "url": _first(), "lowerAscii": _first(), "upperAscii": _first(), "substring": _first(), "trim": _first(), "jsonpatch.escapeKey": _first(),
    "replace": _first(2 * TRAVERSAL), "split": _first(2 * TRAVERSAL), "join": lambda args, result: _part(size(result), 2 * TRAVERSAL),
    "cidr": _first(), "isIP": _first(), "isCIDR": _first(), "ip": _of_texts(_first()), "ip.isCanonical": _first(2 * TRAVERSAL),
    "containsIP": _contains_address,
    "containsCIDR": lambda args, result: _contains_address(args, result) + _part(1) + 1,
    "quantity": _first(), "isQuantity": _first(), "semver": _first(), "isSemver": _first(),
    "validate": lambda args, result: _part(1 + size(args[1])) * _part(FORMAT_REGEX_MAX, REGEX),
    "check": lambda args, result: CHECK, "fieldSelector": _selector, "labelSelector": _selector,
    "slice": _made(1, lambda args, result: size(result)), "lists.range": _made(1, lambda args, result: size(result)),
    "reverse": _made(1, lambda args, result: size(result)),
    "flatten": lambda args, result: int(size(args[0]) * (args[1] if len(args) == 2 else 1)) + 1 + LIST,
    "distinct": lambda args, result: self_compared(args[0]), "sort": lambda args, result: self_compared(args[0]),
    "sets.contains": _sets(1), "sets.intersects": _sets(1), "sets.equivalent": _sets(2),
}
# those that upstream tells apart by their overload: where more than one may fit, each costs one
BY_OVERLOAD = frozenset(("_<_", "_<=_", "_>_", "_>=_", "_+_", "@in", "bytes", "string", "sort", "startsWith", "endsWith", "slice", "flatten", "distinct",
                         "reverse", "sets.contains", "sets.intersects", "sets.equivalent"))
