"""Times as upstream reads and writes them: RFC 3339 in Go's words.

In: the text of a metav1.Time or MicroTime. Out: the canonical text in UTC ("…Z" to the second, "….000000Z" to the microsecond).
Behaviour: Go time.Parse and Time.Format; apimachinery meta/v1 time.go, micro_time.go.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta, timezone

RFC3339 = "2006-01-02T15:04:05Z07:00"
RFC3339_MICRO = "2006-01-02T15:04:05.000000Z07:00"
_PLAIN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", re.ASCII)
_PLAIN_MICRO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z", re.ASCII)
_PARTS = (("2006", 4), ("-", 0), ("01", 2), ("-", 0), ("02", 2), ("T", 0), ("15", 2), (":", 0), ("04", 2), (":", 0), ("05", 2))


class TimeFault(ValueError):
    """Not a time; str() is Go's message."""


def canonical(text: str, micro: bool = False) -> str:
    """The text as upstream writes it back; raises TimeFault."""
    if (_PLAIN_MICRO if micro else _PLAIN).match(text) and text[8:10] < "29" and text[8:10] > "00" and "00" < text[5:7] < "13" \
            and text[11:13] < "24" and text[14:16] < "60" and text[17:19] < "60":
        return text
    return _parse(text, micro)


def _parse(text: str, micro: bool) -> str:
    layout = RFC3339_MICRO if micro else RFC3339
    rest = text
    numbers: list[int] = []
    out_of_range = ""

    def refuse(element: str) -> TimeFault:
        return TimeFault(f'parsing time {_quote(text)} as "{layout}": cannot parse {_quote(rest)} as "{element}"')

    for element, width in _PARTS:
        if not width:
            if not rest.startswith(element):
                raise refuse(element)
            rest = rest[1:]
            continue
        digits = rest[:width]
        if len(digits) < width or not digits.isascii() or not digits.isdigit():
            raise refuse(element)
        numbers.append(int(digits))
        rest = rest[width:]
        limit = {"01": ("month", 1, 12), "15": ("hour", 0, 23), "04": ("minute", 0, 59), "05": ("second", 0, 59)}.get(element)
        if limit and not limit[1] <= numbers[-1] <= limit[2]:
            out_of_range = out_of_range or limit[0]
            raise TimeFault(f"parsing time {_quote(text)}: {out_of_range} out of range")
    fraction = ""
    if micro:
        m = re.match(r"\.\d{6}", rest, re.ASCII)
        if m is None:
            raise refuse(".000000")
        fraction, rest = m.group()[1:], rest[7:]
    else:
        m = re.match(r"[.,](\d+)", rest, re.ASCII)
        if m:
            fraction, rest = m.group(1)[:9], rest[m.end():]
    if rest.startswith("Z"):
        offset, rest = timedelta(0), rest[1:]
    else:
        m = re.match(r"([+-])(\d\d):(\d\d)", rest, re.ASCII)
        if m is None:
            raise refuse("Z07:00")
        if int(m[2]) > 24 or int(m[3]) >= 60:
            raise TimeFault(f"parsing time {_quote(text)}: time zone offset {'hour' if int(m[2]) > 24 else 'minute'} out of range")
        offset, rest = timedelta(hours=int(m[2]), minutes=int(m[3])) * (1 if m[1] == "+" else -1), rest[6:]
    if rest:
        raise TimeFault(f"parsing time {_quote(text)}: extra text: {_quote(rest)}")
    year, month, day, hour, minute, second = numbers
    if not 1 <= day <= (monthrange(year, month)[1] if year else 31):
        raise TimeFault(f"parsing time {_quote(text)}: day out of range")
    if year == 0:
        return text
    try:
        t = datetime(year, month, day, hour, minute, second, int(fraction[:6].ljust(6, "0") or 0), tzinfo=timezone(offset) if abs(
            offset) < timedelta(hours=24) else UTC).astimezone(UTC)
    except (OverflowError, ValueError):
        return text
    whole = f"{t.year:04d}-{t.month:02d}-{t.day:02d}T{t.hour:02d}:{t.minute:02d}:{t.second:02d}"
    return f"{whole}.{t.microsecond:06d}Z" if micro else whole + "Z"


def _quote(s: str) -> str:
    return '"' + s.replace("\\", "\\\\").replace('"', '\\"') + '"'
