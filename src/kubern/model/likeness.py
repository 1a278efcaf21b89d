"""Likeness: what was found out about a value is kept under its JSON, because pods come in thousands of a kind.

For pure functions alone, whose answer depends on nothing but the value, and for answers nobody changes afterwards. Bounded: the
oldest go first, and what is large is not kept.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import orjson

KEPT_MAX = 512
KEY_BYTES_MAX = 16 * 1024
T = TypeVar("T")


def likeness(value: Any) -> bytes:
    """The key of a value; b"" where it has none."""
    try:
        key = orjson.dumps(value)
    except (TypeError, ValueError):
        return b""
    return key if len(key) <= KEY_BYTES_MAX else b""


class Kept(Generic[T]):
    """Answers by likeness."""

    def __init__(self) -> None:
        self._answers: dict[bytes, T] = {}

    def get(self, key: bytes) -> T | None:
        return self._answers.get(key) if key else None

    def keep(self, key: bytes, answer: T) -> None:
        if key:
            if len(self._answers) >= KEPT_MAX:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = answer
