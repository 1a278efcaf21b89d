"""Time on the wire: RFC 3339 with whole seconds (metav1.Time) or microseconds (metav1.MicroTime), from and to Unix seconds; and durations as Go
writes them (metav1.Duration), from and to nanoseconds.

Upstream: apimachinery meta/v1 time.go, micro_time.go, duration.go; Go time.ParseDuration. Nothing here reads the clock.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from kubern.model.invalid import quote

S_NS = 10**9
_UNITS_NS = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": S_NS, "m": 60 * S_NS, "h": 3600 * S_NS}
_PART = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_DURATION_MAX_NS = (1 << 63) - 1


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


def duration_ns(text: str) -> int:
    """Nanoseconds of "1h30m", "-1.5s", "0". Raises ValueError."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    total = at = 0
    while m := _PART.match(rest, at):
        whole, fraction, unit = m[1], m[2] or "", _UNITS_NS[m[3]]
        if not (whole or fraction):
            break
        total += int(whole or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        at = m.end()
    if rest != "0" and (not at or at != len(rest) or total > _DURATION_MAX_NS):
        raise ValueError(f"time: invalid duration {quote(text)}")
    return -total if text[:1] == "-" else total


def duration_s(text: str) -> float:
    """The same in seconds."""
    return duration_ns(text) / S_NS


def duration_text(ns: int) -> str:
    """As Go prints it: "1h0m0.5s", "250ms", "0s"."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    for unit, size in (("ns", 1000), ("µs", 10**6), ("ms", S_NS)):
        if 0 < ns < size:
            return f"{sign}{_digits(ns * 1000 / size)}{unit}"
    minutes, rest = divmod(ns, 60 * S_NS)
    hours, minutes = divmod(minutes, 60)
    return sign + (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{_digits(rest / S_NS)}s"


def _digits(n: float) -> str:
    return f"{n:.9f}".rstrip("0").rstrip(".")
