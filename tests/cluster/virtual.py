"""Virtual time: an event loop whose clock jumps to the next timer as soon as nothing is left to do. Minutes pass in the time of the work alone."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

STILL_TURNS_MAX = 20_000              # turns of the loop in one moment


class Broken(AssertionError):
    """An invariant does not hold."""


class _Selector(selectors.DefaultSelector):        # type: ignore[misc, valid-type]
    """Does not wait: it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._still = 0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise Broken("nothing will ever happen again")
            self._still = 0 if timeout > 0 else self._still + 1
            if self._still > STILL_TURNS_MAX:
                raise Broken("somebody works without a pause: the clock stands still")
            self.now_s += max(timeout, 0.0)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s
