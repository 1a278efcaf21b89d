"""Sets of completion indexes as Jobs write them: "0,1" for two, "0-2" for more. Upstream: pkg/controller/job/indexed_job_utils.go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Interval = tuple[int, int]


class Indexes:
    """Sorted, disjoint, never adjacent intervals; a frozen value."""

    __slots__ = ("intervals",)

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        out: list[Interval] = []
        for first, last in sorted(intervals):
            if out and first <= out[-1][1] + 1:
                if last > out[-1][1]:
                    out[-1] = (out[-1][0], last)
            else:
                out.append((first, last))
        self.intervals: tuple[Interval, ...] = tuple(out)

    def plus(self, indexes: Iterable[int]) -> Indexes:
        return Indexes([*self.intervals, *((i, i) for i in indexes)])

    def merge(self, other: Indexes) -> Indexes:
        return Indexes([*self.intervals, *other.intervals])

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.intervals)

    def __contains__(self, index: int) -> bool:
        return any(first <= index <= last for first, last in self.intervals)

    def __str__(self) -> str:
        parts = []
        for first, last in self.intervals:
            parts.append(str(first) if first == last else f"{first},{last}" if last == first + 1 else f"{first}-{last}")
        return ",".join(parts)

    def missing(self, end: int) -> Iterator[int]:
        """Indexes below `end` that are not in it."""
        at = 0
        for first, last in self.intervals:
            yield from range(at, min(first, end))
            at = max(at, last + 1)
        yield from range(at, end)

    def overlap(self, other: Indexes) -> int:
        return sum(max(0, min(b, d) - max(a, c) + 1) for a, b in self.intervals for c, d in other.intervals)


def parse(text: str | None, completions: int) -> Indexes:
    """Malformed parts are left out, as are indexes from `completions` on."""
    out: list[Interval] = []
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (not last or last.isdecimal()) and int(first) < completions:
            out.append((int(first), min(int(last or first), completions - 1)))
    return Indexes(out)
