"""Amounts that are a number or a percentage (IntOrString), scaled to a total. Upstream: apimachinery util/intstr."""

from __future__ import annotations

from typing import Any


def scaled(value: Any, total: int, up: bool) -> int:
    """3 -> 3; "25%" of total, rounded up or down. Raises ValueError for other text."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    text = str(value)
    if not text.endswith("%"):
        raise ValueError(f"invalid value for IntOrString: invalid type: string is not a percentage: {text}")
    percent = int(text[:-1])
    return -(-percent * total // 100) if up else percent * total // 100


def whole(fields: dict[str, Any]) -> dict[str, Any]:
    """Without zeros, empty strings, empty lists and None: as Go's omitempty leaves a status."""
    return {k: v for k, v in fields.items() if v not in (0, "", None, False) and v != [] and v != {}}
