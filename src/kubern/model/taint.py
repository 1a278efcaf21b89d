"""Taints and tolerations, of nodes and of devices alike: whether one covers the other. Upstream: ToleratesTaint (KEP-5471's comparisons are off)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """An empty effect or key of the toleration covers all; without an operator the values must be the same."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    operator = toleration.get("operator") or "Equal"
    return operator == "Exists" or (operator == "Equal" and (toleration.get("value") or "") == (taint.get("value") or ""))


def tolerated(taint: Mapping[str, Any], tolerations: Iterable[Mapping[str, Any]] | None) -> bool:
    return any(tolerates(t, taint) for t in tolerations or ())
