"""Feed: how events reach those who follow a store; the part every driver shares.

Subscribers get every batch as it is acknowledged. A watch reads history in pages and then lives on the batches; one that falls too far
behind drops them and reads pages again, so a slow watcher costs a bounded buffer and loses nothing that is not compacted away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from kubern.store.protocol import Entry, Event, Store

BACKLOG_EVENTS_MAX = 10_000
PAGE_EVENTS_MAX = 1_000

Callback = Callable[[list[Event]], None]
Page = Callable[[str, int, int], Awaitable[tuple[list[Event], int]]]   # (prefix, after, limit) -> events, revision they reach


def upper(prefix: str) -> str:
    """The first key that sorts after every key with this prefix; "" for none."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""


async def keep(store: Store, window_s: float, every_s: float) -> None:
    """Remembers where the revision stood and compacts to where it stood a window ago."""
    marks: list[tuple[float, int]] = []
    while True:
        now = time.monotonic()
        if not marks or marks[-1][1] != store.revision:
            marks.append((now, store.revision))
        due = [r for t, r in marks if t <= now - window_s]
        if due:
            marks = marks[len(due):]
            await store.compact(due[-1])
        await asyncio.sleep(every_s)


class _Live:
    """One watcher's buffer."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.events: list[Event] = []
        self.reached = 0          # newest revision this buffer has been shown
        self.overflow = False
        self.wake = asyncio.Event()

    def take(self, batch: list[Event]) -> None:
        self.reached = batch[-1].revision
        if self.overflow:
            return
        mine = [e for e in batch if e.key.startswith(self.prefix)]     # they may wait here: what they replaced is read while it is there
        mine = [e if e.previous is None else e._replace(previous=Entry(e.key, e.previous.value, e.previous.create_revision, e.previous.revision))
                for e in mine]
        if not mine:
            return
        if len(self.events) + len(mine) > BACKLOG_EVENTS_MAX:
            self.overflow = True
            self.events = []
        else:
            self.events += mine
        self.wake.set()


class Feed:
    def __init__(self) -> None:
        self._callbacks: list[Callback] = []
        self._live: set[_Live] = set()
        self._end: Exception | None = None

    def deliver(self, batch: list[Event]) -> None:
        for callback in tuple(self._callbacks):
            callback(batch)

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
        return unsubscribe

    def close(self, error: Exception) -> None:
        """Ends every watch with this error."""
        self._end = error
        for live in self._live:
            live.wake.set()

    async def watch(self, prefix: str, after: int, revision: Callable[[], int], page: Page, until: int = 0) -> AsyncIterator[list[Event]]:
        live = _Live(prefix)
        unsubscribe = self.subscribe(live.take)
        self._live.add(live)
        try:
            await page(prefix, after, 1)       # raises Compacted at once
            while True:
                while after < revision():
                    events, after = await page(prefix, after, PAGE_EVENTS_MAX)
                    if events:
                        yield events
                if until and after >= until:
                    return
                live.overflow = False
                live.events = [e for e in live.events if e.revision > after]
                while not live.overflow:
                    if live.events:
                        batch, live.events = live.events, []
                        after = batch[-1].revision
                        yield batch
                        continue
                    live.wake.clear()
                    if self._end is not None:
                        raise self._end
                    await live.wake.wait()
        finally:
            unsubscribe()
            self._live.discard(live)
