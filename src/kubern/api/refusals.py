"""Refusals: when those who were sent away with 429 should come again. The more are refused, the later.

Looked at once a second: three or more refusals for every second of the pause, within that pause, double it; fewer than one a second shorten it by one.
Upstream: apiserver util/flowcontrol/dropped_requests_tracker.go.
"""

from __future__ import annotations

from collections import deque

AFTER_MAX_S = 32


class Refusals:
    """`after_s` is what the next one is told."""

    def __init__(self) -> None:
        self.after_s = 1
        self._second = self._count = 0                          # the present second, and how many were refused in it
        self._past: deque[tuple[int, int]] = deque(maxlen=AFTER_MAX_S + 1)
        self._doubled = 0                                       # when the pause was last made longer

    def add(self, now_s: float) -> int:
        """One more; the pause it is told."""
        second = int(now_s)
        if second != self._second:
            self._past.append((self._second, self._count))
            self._second, self._count = second, 0
            self._look(second)
        self._count += 1
        return self.after_s

    def _look(self, now: int) -> None:
        recent = sum(n for at, n in self._past if now - self.after_s <= at < now)
        if recent >= 3 * self.after_s and now - self._doubled >= self.after_s:
            self.after_s, self._doubled = min(2 * self.after_s, AFTER_MAX_S), now
        elif recent < self.after_s and self.after_s > 1:
            self.after_s -= 1
