"""When a CronJob's schedule fires. The schedule is valid here: model/kinds/cron.py has checked it.

Follows robfig/cron v3 in its standard form: five fields, descriptors, `@every`, `TZ=`; a day matches by either of its two fields when both are
given; hours that a clock change skips do not fire, hours it repeats fire twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from kubern.model.kinds.cron import schedule_error, zone_error

YEARS_MAX = 5
_MONTHS = {n: i for i, n in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)}
_DAYS = {n: i for i, n in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_FIELDS: tuple[tuple[int, int, dict[str, int]], ...] = ((0, 59, {}), (0, 23, {}), (1, 31, {}), (1, 12, _MONTHS), (0, 6, _DAYS))
_DESCRIPTORS = {"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *",
                "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def zone(name: str | None) -> tzinfo:
    return UTC if name in (None, "", "UTC", "Local") else ZoneInfo(str(name))


@dataclass(frozen=True, slots=True)
class Schedule:
    every_s: float = 0.0
    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()
    any_day: bool = True
    any_weekday: bool = True
    zone: tzinfo = UTC

    def _day_matches(self, t: datetime) -> bool:
        by_day, by_weekday = t.day in self.days, (t.weekday() + 1) % 7 in self.weekdays
        return by_day and by_weekday if self.any_day or self.any_weekday else by_day or by_weekday

    def next(self, after: float) -> float | None:
        """The first time after `after` (Unix seconds), None if there is none within five years."""
        if self.every_s:
            return float(int(after) + self.every_s)
        at = (int(after) // 60 + 1) * 60
        end = at + YEARS_MAX * 366 * 86400
        while at < end:
            t = datetime.fromtimestamp(at, self.zone)
            if t.month not in self.months:
                at = self._start(t.year + t.month // 12, t.month % 12 + 1, 1)
            elif not self._day_matches(t):
                following = t.date() + timedelta(days=1)
                at = max(at + 60, self._start(following.year, following.month, following.day))
            elif t.hour not in self.hours:
                at += 3600 - t.minute * 60
            elif t.minute not in self.minutes:
                at += 60
            else:
                return float(at)
        return None

    def _start(self, year: int, month: int, day: int) -> int:
        return int(datetime(year, month, day, tzinfo=self.zone).timestamp())


def _field(text: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    def number(s: str) -> int:
        return names[s.lower()] if s.lower() in names else int(s)
    out: set[int] = set()
    for part in text.split(","):
        if not part:
            continue
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        if first in ("*", "?"):
            a, b = low, high
        else:
            a = number(first)
            b = number(last) if dash else (high if step else a)
        out.update(range(a, b + 1, int(step or 1)))
    return frozenset(out)


@lru_cache(maxsize=1024)
def parse(spec: str, time_zone: str | None = None) -> Schedule:
    """Raises ValueError with the parser's words."""
    if why := schedule_error(spec):
        raise ValueError(why)
    if time_zone and (why := zone_error(time_zone)):
        raise ValueError(why)
    where = zone(time_zone)
    if spec.startswith(("TZ=", "CRON_TZ=")):
        head, _, spec = spec.partition(" ")
        where, spec = zone(head.partition("=")[2]), spec.strip()
    if spec.startswith("@every "):
        total = sum(float(n) * _UNITS[u] for n, u in re.findall(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)", spec))
        return Schedule(every_s=max(1.0, float(int(total))))
    texts = _DESCRIPTORS.get(spec, spec).split()
    sets = [_field(t, *f) for t, f in zip(texts, _FIELDS, strict=True)]

    def star(text: str) -> bool:
        return any(p.partition("/")[0] in ("*", "?") for p in text.split(","))
    return Schedule(0.0, sets[0], sets[1], sets[2], sets[3], sets[4], star(texts[2]), star(texts[4]), where)
