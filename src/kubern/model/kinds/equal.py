"""Equality of two API values as upstream's apiequality.Semantic sees it: an empty list is absent, 1000m is 1. Empty maps are not stored,
so that {} is a pointer to an empty struct, which is not the same as none.

Upstream: apimachinery api/equality. Quantities are recognised by where they stand (resource lists), texts elsewhere must be the same.
"""

from __future__ import annotations

from typing import Any

from kubern.model.quantity import QuantityError, compare

_LISTS = frozenset({"limits", "requests", "capacity", "allocatable", "hard", "used", "overhead", "allocatedResources"})
_QUANTITIES = frozenset({"sizeLimit", "divisor"})


def semantic_equal(a: Any, b: Any, key: str = "") -> bool:
    if a is b or a == b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        inner = key if key in _LISTS else ""
        return all(semantic_equal(a.get(k), b.get(k), f"{inner}." if inner else k) for k in a.keys() | b.keys())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(semantic_equal(x, y) for x, y in zip(a, b, strict=True))
    if (a is None and b == []) or (b is None and a == []):
        return True
    if isinstance(a, str) and isinstance(b, str) and (key.endswith(".") or key in _QUANTITIES):
        try:
            return compare(a, b) == 0
        except QuantityError:
            return False
    return False
