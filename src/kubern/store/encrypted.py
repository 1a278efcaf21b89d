"""Encryption at rest: a Store whose values of chosen resources are sealed before they reach the driver below, whichever that is.

What is sealed and with what is said by an Encryption (encryption.py). A value that is sealed as it should not be any more is remembered (`stale`),
so that the next write carries it over. Snapshots hold what the driver holds: sealed values stay sealed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from kubern.store.encryption import PLAIN_ONLY, PREFIX, ROOT, CannotOpen, Encryption
from kubern.store.protocol import Batch, Broken, Conflict, Entry, Event, Store, Unavailable

log = logging.getLogger(__name__)

HOLD_S = 1.0                           # between tries to open events while a plugin is away


class _Past:
    """What a write replaced, opened when somebody asks for it."""

    __slots__ = ("_entry", "_store")

    def __init__(self, store: EncryptedStore, entry: Any) -> None:
        self._store, self._entry = store, entry

    @property
    def key(self) -> str:
        return str(self._entry.key)

    @property
    def create_revision(self) -> int:
        return int(self._entry.create_revision)

    @property
    def revision(self) -> int:
        return int(self._entry.revision)

    @property
    def value(self) -> bytes:
        return self._store._text(self._entry.key, self._entry.value)


class EncryptedStore:
    """A Store over another. Values of resources that no rule names pass through untouched."""

    def __init__(self, inner: Store, encryption: Encryption) -> None:
        self._inner, self._encryption = inner, encryption
        self._stale: set[str] = set()
        if hasattr(inner, "caught_up"):
            self.caught_up = inner.caught_up

    @property
    def size_bytes(self) -> int:
        return getattr(self._inner, "size_bytes", -1)

    @property
    def revision(self) -> int:
        return self._inner.revision

    @property
    def compacted(self) -> int:
        return self._inner.compacted

    async def configure(self, encryption: Encryption) -> None:
        """Goes on with other keys. Raises CannotOpen, Unavailable where they do not open all that is there; then everything stays as it was."""
        entries, _ = await self._inner.list(ROOT)
        stale = {e.key for e in entries if encryption.chain(e.key).open(e.key, e.value)[1]}
        before, self._encryption, self._stale = self._encryption, encryption, stale
        before.close()

    def stale(self, key: str) -> bool:
        """Whether what is stored under a key is not sealed as it should be now."""
        return key in self._stale

    def _text(self, key: str, data: bytes) -> bytes:
        try:
            return self._encryption.chain(key).open(key, data)[0]
        except CannotOpen as e:
            raise Broken(str(e)) from None

    def _entry(self, e: Entry) -> Entry:
        chain = self._encryption.chain(e.key)
        if chain is PLAIN_ONLY:
            if e.value.startswith(PREFIX):
                raise Broken(f"{e.key} is encrypted, and no encryption configuration names its resource")
            return e
        try:
            text, stale = chain.open(e.key, e.value)
        except CannotOpen as error:
            raise Broken(str(error)) from None
        if stale:
            self._stale.add(e.key)
        return e._replace(value=text)

    def _event(self, e: Event) -> Event:
        chain = self._encryption.chain(e.key)
        if chain is PLAIN_ONLY:
            return e
        value = e.value
        if value is not None:
            value, stale = chain.open(e.key, value)
            if stale:
                self._stale.add(e.key)
            else:
                self._stale.discard(e.key)
        else:
            self._stale.discard(e.key)
        previous: Any = _Past(self, e.previous) if e.previous is not None else None
        return Event(e.revision, e.key, value, previous)

    async def get(self, key: str, *, revision: int = 0) -> Entry | None:
        e = await self._inner.get(key, revision=revision)
        return self._entry(e) if e is not None else None

    async def list(self, prefix: str, *, start: str = "", limit: int = 0, revision: int = 0) -> tuple[list[Entry], int]:
        entries, at = await self._inner.list(prefix, start=start, limit=limit, revision=revision)
        return [self._entry(e) for e in entries], at

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        try:
            return await self._inner.put(key, self._encryption.chain(key).seal(key, value), expect=expect)
        except Conflict as e:
            raise Conflict(e.key, self._entry(e.current) if e.current is not None else None) from None

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        try:
            return await self._inner.delete(key, expect=expect)
        except Conflict as e:
            raise Conflict(e.key, self._entry(e.current) if e.current is not None else None) from None

    def subscribe(self, callback: Callable[[Batch], None]) -> Callable[[], None]:
        """Events that only a plugin can open wait until it is there, and those behind them with them."""
        held: deque[Batch] = deque()

        def flush() -> None:
            while held:
                out = []
                for e in held[0]:
                    try:
                        out.append(self._event(e))
                    except CannotOpen as error:         # of another server with a key that we were not told; ours are sealed by us
                        log.error("an event is lost: %s", error)
                    except Unavailable as error:
                        log.warning("events wait: %s", error)
                        asyncio.get_running_loop().call_later(HOLD_S, flush)
                        return
                held.popleft()
                if out:
                    callback(out)

        def opened(batch: Batch) -> None:
            held.append(batch)
            if len(held) == 1:
                flush()
        return self._inner.subscribe(opened)

    async def watch(self, prefix: str, after: int, until: int = 0) -> AsyncIterator[Batch]:
        feed: Any = self._inner.watch(prefix, after, until)
        try:
            async for batch in feed:
                yield [self._event(e) for e in batch]
        finally:
            await feed.aclose()

    async def compact(self, revision: int) -> None:
        await self._inner.compact(revision)

    async def keep(self, window_s: float, every_s: float = 30.0) -> None:
        await self._inner.keep(window_s, every_s)

    def problems(self) -> Sequence[str]:
        """What keeps values from being sealed or opened."""
        return self._encryption.problems()

    async def close(self) -> None:
        await self._inner.close()
        self._encryption.close()
