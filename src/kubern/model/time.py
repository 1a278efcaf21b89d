"""Time on the wire: RFC 3339 with whole seconds (metav1.Time) or microseconds (metav1.MicroTime), from and to Unix seconds.

Upstream: apimachinery meta/v1 time.go, micro_time.go. Nothing here reads the clock.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=64)
def _whole(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339(seconds: float) -> str:
    """Whole seconds, cut off: "2030-01-02T03:04:05Z"."""
    return _whole(int(seconds))


def micro(seconds: float) -> str:
    """Six digits: "2030-01-02T03:04:05.000006Z"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@lru_cache(maxsize=4096)
def seconds_of(text: str | None) -> float:
    """Unix seconds of either form; 0.0 for None, "" or what is no time."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
