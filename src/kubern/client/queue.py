"""Queue: which keys a controller must look at. A key waits at most once, is never handed out twice at the same time, may be due later.

Backoff per key doubles from 5 ms to 1000 s, as client-go's default rate limiter (util/workqueue). NAMED are those that metrics tell of.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

BACKOFF_FIRST_S = 0.005
BACKOFF_LAST_S = 1000.0
K = TypeVar("K", bound=Hashable)
NAMED: WeakValueDictionary[str, Queue[Any]] = WeakValueDictionary()


class Queue(Generic[K]):
    def __init__(self, backoff_first_s: float = BACKOFF_FIRST_S, backoff_last_s: float = BACKOFF_LAST_S, name: str = "") -> None:
        self.adds = self.retries = 0            # of keys that did not wait already; of keys that had failed
        if name:
            NAMED[name] = self
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()             # wants a look
        self._busy: set[K] = set()              # is being looked at
        self._due: dict[K, float] = {}          # loop time at which a delayed key becomes ready; the earliest wins
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0
        self._failures: dict[K, int] = {}
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._first, self._last = backoff_first_s, backoff_last_s

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Nothing to look at now; delayed keys do not count."""
        return not self._dirty and not self._busy

    def add(self, key: K) -> None:
        if key in self._dirty:
            return
        self._dirty.add(key)
        self.adds += 1
        if key not in self._busy:
            self._offer(key)

    def add_after(self, key: K, seconds: float) -> None:
        if seconds <= 0:
            self.add(key)
            return
        due = asyncio.get_running_loop().time() + seconds
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        self._arm()

    def add_backoff(self, key: K) -> float:
        """Adds the key after its backoff and returns that."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.retries += 1
        delay = min(self._first * 2.0 ** min(failures, 60), self._last)
        self.add_after(key, delay)
        return delay

    def failures(self, key: K) -> int:
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        self._failures.pop(key, None)

    async def get(self) -> K:
        while not self._ready:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: K) -> None:
        self._busy.discard(key)
        if key in self._dirty:
            self._offer(key)

    def _offer(self, key: K) -> None:
        self._ready.append(key)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    def _arm(self) -> None:
        """One timer, for the earliest delayed key."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)           # superseded by an earlier date
        if not self._heap:
            return
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = asyncio.get_running_loop().call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time() + 0.0005
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        self._arm()
