"""Store: ordered, revisioned bytes. Knows keys, values and revisions, nothing of Kubernetes.

One log: every write gets the next revision; a key's history is its log entries. Revisions start at 1 and never go back, not
over restarts either. A write is acknowledged (its coroutine returns) only when it survives power loss. Writers are
serialized in the loop: conditions are checked against the newest state including writes still on their way to disk, so
group commit needs no locks. Drivers: memory.py, sqlite.py, etcd.py; one suite, tests/store, holds for all of them.
Model: etcd v3 KV and Watch; k3s-io/kine's log table.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    key: str
    value: bytes
    create_revision: int   # revision of the write that made this incarnation of the key
    revision: int          # revision of its newest write


class Previous(Protocol):
    """An Entry, or what has its fields and reads the value when asked: ask in the callback, or never."""

    @property
    def key(self) -> str: ...

    @property
    def value(self) -> bytes: ...

    @property
    def create_revision(self) -> int: ...

    @property
    def revision(self) -> int: ...


class Event(NamedTuple):
    revision: int
    key: str
    value: bytes | None       # None: deleted
    previous: Previous | None # what it was before; None: created


Batch = list[Event]          # in revision order


class Conflict(Exception):
    """The expectation did not hold. `current` is the entry as it is now (pending writes included), None if absent."""

    def __init__(self, key: str, current: Entry | None) -> None:
        super().__init__(key)
        self.key, self.current = key, current


class Compacted(Exception):
    """The revision asked for is older than the retention window. `revision` is the oldest that can still be asked for."""

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


class Future(Exception):
    """The revision asked for does not exist yet."""


class Broken(Exception):
    """The disk refused a write, or the store is closed. What is acknowledged is safe; nothing more is accepted: the process must stop."""


class Unavailable(Exception):
    """The store cannot be asked at the moment. Whether a write that ends so has happened is unknown."""


class TooLarge(Exception):
    """The store does not take values of this size."""


class Store(Protocol):
    """A driver whose state others may write too has one more: `async caught_up()` returns when everything that was acknowledged to anybody
    when it was called has been delivered here."""

    @property
    def revision(self) -> int:
        """The newest acknowledged (delivered) revision."""
        ...

    @property
    def compacted(self) -> int:
        """History before this revision is forgotten, as far as this driver knows; reading there raises Compacted."""
        ...

    async def get(self, key: str, *, revision: int = 0) -> Entry | None:
        """Newest acknowledged state, or that at an older revision. Raises Compacted, Future."""
        ...

    async def list(self, prefix: str, *, start: str = "", limit: int = 0, revision: int = 0) -> tuple[list[Entry], int]:
        """Entries with this prefix in key order from `start` on, at most `limit`, and the revision they are of."""
        ...

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        """Write; returns the revision. expect: None = any, 0 = must not exist, N = newest revision of the key is N. Raises Conflict.
        All watchers registered by `subscribe` have seen the event before this returns."""
        ...

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        """Like put. A key that does not exist: Conflict with current None."""
        ...

    def subscribe(self, callback: Callable[[Batch], None]) -> Callable[[], None]:
        """Every event after this call, in revision order, in batches, called in the loop thread; returns the unsubscriber.
        The callback must not block or raise."""
        ...

    def watch(self, prefix: str, after: int, until: int = 0) -> AsyncIterator[Batch]:
        """Events with revision > after, from history and then live, none lost, doubled or reordered. Given an acknowledged revision as `until`,
        it ends when all up to there are told. Raises Compacted."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history before this revision (the state at it stays readable). An older one than the last is no work. Raises Future."""
        ...

    async def keep(self, window_s: float, every_s: float = 30.0) -> None:
        """Runs for ever: compacts so that history older than the window is forgotten."""
        ...

    async def close(self) -> None: ...
