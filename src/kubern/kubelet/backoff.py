"""Back-off by key, as client-go's flowcontrol.Backoff counts it: doubling from `initial_s` to `max_s`,
forgotten after 2 × max_s without use.

The caller brings the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INITIAL_S = 10.0
MAX_S = 300.0
CLOCK_SET_BACK_S = 5.0         # what lies further ahead than this was stamped by a clock that has been set back since


@dataclass(slots=True)
class Backoff:
    initial_s: float = INITIAL_S
    max_s: float = MAX_S
    entries: dict[str, tuple[float, float]] = field(default_factory=dict)    # key -> (delay, last update)

    def delay(self, key: str) -> float:
        return self.entries.get(key, (0.0, 0.0))[0]

    def _expired(self, event: float, last: float) -> bool:
        return event - last > 2 * self.max_s

    def waiting(self, key: str, event: float, now: float) -> bool:
        """Whether the delay that counts from `event` (say, a container's end) still runs."""
        entry = self.entries.get(key)
        if entry is None or self._expired(event, entry[1]):
            return False
        return -CLOCK_SET_BACK_S < now - event < entry[0]

    def waiting_since_update(self, key: str, now: float) -> bool:
        """Whether the delay that counts from the last `next` still runs."""
        entry = self.entries.get(key)
        if entry is None or self._expired(now, entry[1]):
            return False
        return -CLOCK_SET_BACK_S < now - entry[1] < entry[0]

    def next(self, key: str, event: float, now: float) -> None:
        entry = self.entries.get(key)
        if entry is None or self._expired(event, entry[1]):
            delay = self.initial_s
        else:
            delay = min(entry[0] * 2, self.max_s)
        self.entries[key] = (delay, now)

    def forget(self, prefix: str) -> None:
        for key in [k for k in self.entries if k.startswith(prefix)]:
            del self.entries[key]


def go_duration(seconds: float) -> str:
    """Whole seconds as Go prints a Duration: 10s, 1m20s, 5m0s."""
    s = int(seconds)
    h, m, s = s // 3600, s % 3600 // 60, s % 60
    if h:
        return f"{h}h{m}m{s}s"
    return f"{m}m{s}s" if m else f"{s}s"
