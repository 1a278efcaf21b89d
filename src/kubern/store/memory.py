"""The memory store: the smallest thing that keeps the protocol, for fixtures and as the oracle of the other drivers.

Not durable. Every write is acknowledged at once, so nothing is ever pending.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Callable

from kubern.store.feed import Feed, keep, upper
from kubern.store.protocol import Batch, Broken, Compacted, Conflict, Entry, Event, Future


class MemoryStore:
    """One log of events and, per key, the versions that are still remembered."""

    def __init__(self) -> None:
        self._log: list[Event] = []                     # events after self._compacted, in revision order
        self._versions: dict[str, list[tuple[int, Entry | None]]] = {}  # key -> (revision, entry or None if deleted), oldest first
        self._keys: list[str] = []                      # every key of _versions, sorted
        self._compacted = 0
        self._revision = 0
        self._closed = False
        self._feed = Feed()

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def compacted(self) -> int:
        return self._compacted

    def _at(self, key: str, revision: int) -> Entry | None:
        versions = self._versions.get(key)
        if not versions:
            return None
        if not revision:
            return versions[-1][1]
        i = bisect_right(versions, revision, key=lambda v: v[0])
        return versions[i - 1][1] if i else None

    def _check(self, revision: int) -> None:
        if self._closed:
            raise Broken("the store is closed")
        if revision > self._revision:
            raise Future(revision)
        if revision and revision < self._compacted:
            raise Compacted(self._compacted)

    async def get(self, key: str, *, revision: int = 0) -> Entry | None:
        self._check(revision)
        return self._at(key, revision)

    async def list(self, prefix: str, *, start: str = "", limit: int = 0, revision: int = 0) -> tuple[list[Entry], int]:
        self._check(revision)
        out: list[Entry] = []
        end = upper(prefix)
        for i in range(bisect_left(self._keys, max(prefix, start)), len(self._keys)):
            key = self._keys[i]
            if end and key >= end:
                break
            entry = self._at(key, revision)
            if entry is not None:
                out.append(entry)
                if limit and len(out) >= limit:
                    break
        return out, revision or self._revision

    def _write(self, key: str, value: bytes | None, expect: int | None) -> int:
        self._check(0)
        current = self._at(key, 0)
        if (expect is not None and expect != (current.revision if current else 0)) or (value is None and current is None):
            raise Conflict(key, current)
        self._revision = revision = self._revision + 1
        entry = None if value is None else Entry(key, value, current.create_revision if current else revision, revision)
        versions = self._versions.get(key)
        if versions is None:
            versions = self._versions[key] = []
            insort(self._keys, key)
        versions.append((revision, entry))
        event = Event(revision, key, value, current)
        self._log.append(event)
        self._feed.deliver([event])
        return revision

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        return self._write(key, value, expect)

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        return self._write(key, None, expect)

    def subscribe(self, callback: Callable[[Batch], None]) -> Callable[[], None]:
        return self._feed.subscribe(callback)

    async def _page(self, prefix: str, after: int, limit: int) -> tuple[Batch, int]:
        self._check(0)
        if after < self._compacted:
            raise Compacted(self._compacted)
        i = bisect_right(self._log, after, key=lambda e: e.revision)
        page = self._log[i:i + limit]
        return [e for e in page if e.key.startswith(prefix)], page[-1].revision if page else self._revision

    def watch(self, prefix: str, after: int, until: int = 0) -> AsyncIterator[Batch]:
        return self._feed.watch(prefix, after, lambda: self._revision, self._page, until)

    async def compact(self, revision: int) -> None:
        self._check(revision if revision > self._revision else 0)
        if revision <= self._compacted:
            return
        cut = bisect_right(self._log, revision, key=lambda e: e.revision)
        for key in {e.key for e in self._log[:cut]}:
            versions = self._versions[key]
            i = bisect_right(versions, revision, key=lambda v: v[0]) - 1
            del versions[:i + 1 if versions[i][1] is None else i]
            if not versions:
                del self._versions[key]
                del self._keys[bisect_left(self._keys, key)]
        del self._log[:cut]
        self._compacted = revision
        await asyncio.sleep(0)

    async def keep(self, window_s: float, every_s: float = 30.0) -> None:
        await keep(self, window_s, every_s)

    async def close(self) -> None:
        self._closed = True
        self._feed.close(Broken("the store is closed"))
