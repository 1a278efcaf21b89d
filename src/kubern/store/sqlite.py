"""The SQLite store: one append-only log table, id = revision, group commit with full sync. The embedded default.

The loop checks conditions against `_heads` (newest revision of every key, writes on their way to disk included) and numbers the writes;
one writer thread commits whatever has gathered meanwhile in one transaction; back in the loop events are delivered and then the writers
are answered, in revision order. When the disk refuses, nothing of that transaction is acknowledged and the store stays broken (fail-stop:
what the disk holds after a failed sync is unknown). Not for several processes: a lock file keeps the second one out.
Model: k3s-io/kine's log table; SQLite "Write-Ahead Logging" (a commit survives power loss with synchronous=FULL).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import apsw

from kubern.store.feed import Feed, keep, upper
from kubern.store.protocol import Batch, Broken, Compacted, Conflict, Entry, Event, Future

BATCH_ROWS_MAX = 1_000
ROWS_A_STATEMENT = 64             # each statement is one wait for the interpreter lock; a transaction of one is one in all
COMPACT_ROWS_MAX = 2_000          # rows forgotten in one transaction, so that writers never wait long

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, created INTEGER NOT NULL, previous INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS log_key ON log (key, id);
CREATE TABLE IF NOT EXISTS mark (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) WITHOUT ROWID;
"""
_INSERT = "INSERT INTO log (id, key, value, created, previous) VALUES "
_LIST = """
SELECT l.key, l.value, l.created, l.id FROM
  (SELECT key, max(id) AS id FROM log INDEXED BY log_key WHERE key >= ? AND key < ? AND id <= ? GROUP BY key ORDER BY key) AS newest
  CROSS JOIN log AS l ON l.id = newest.id WHERE l.value IS NOT NULL LIMIT ?
"""     # CROSS JOIN keeps the order of the left side; an ORDER BY out here would sort everything before the first row
_PAGE = """
SELECT l.id, l.key, l.value, p.value, p.created, p.id FROM log AS l LEFT JOIN log AS p ON p.id = l.previous
WHERE l.id > ? AND l.id <= ? ORDER BY l.id LIMIT ?
"""
_END = "\U0010ffff"


class _Past:
    """The entry a write replaced: an Entry whose value is read when somebody asks for it."""

    __slots__ = ("_con", "create_revision", "key", "revision")

    def __init__(self, con: apsw.Connection, key: str, create_revision: int, revision: int) -> None:
        self._con, self.key, self.create_revision, self.revision = con, key, create_revision, revision

    @property
    def value(self) -> bytes:
        value: bytes = self._con.execute("SELECT value FROM log WHERE id = ?", (self.revision,)).get
        return value


class _Write(NamedTuple):
    revision: int
    key: str
    value: bytes | None
    created: int
    previous: int                 # revision this write replaces, 0 for none
    previous_created: int
    done: asyncio.Future[int]


_Writes = list[_Write]
_Job = tuple[Callable[[apsw.Connection], Any], asyncio.Future[Any]]
_Results = list[tuple[asyncio.Future[Any], Any]]
_Futures = list[asyncio.Future[Any]]


def _connect(path: Path) -> apsw.Connection:
    con = apsw.Connection(str(path), statementcachesize=2 * ROWS_A_STATEMENT)
    con.set_busy_timeout(10_000)
    con.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000; PRAGMA journal_size_limit=67108864")
    return con


def _read(con: apsw.Connection, prefix: str, start: str, limit: int, revision: int) -> list[Entry]:
    rows = con.execute(_LIST, (max(prefix, start), upper(prefix) or _END, revision, limit or -1))
    return [Entry(*row) for row in rows]


def _history(con: apsw.Connection, prefix: str, after: int, newest: int, limit: int) -> tuple[list[Event], int]:
    rows = list(con.execute(_PAGE, (after, newest, limit)))
    events = [Event(i, key, value, Entry(key, old, created, at) if at is not None and old is not None else None)
              for i, key, value, old, created, at in rows if key.startswith(prefix)]
    return events, rows[-1][0] if len(rows) == limit else newest


class SqliteStore:
    """Open with `await SqliteStore.open(path)`. `on_broken` is called once, in the loop, when the disk refuses."""

    def __init__(self, path: Path, on_broken: Callable[[Exception], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._lock)
            raise Broken(f"{path} is in use by another process") from e
        self._on_broken = on_broken
        self._feed = Feed()
        self._broken: Exception | None = None
        self._writer_con = _connect(path)
        self._writer_con.execute(_SCHEMA)
        os.chmod(path, 0o600)
        self._con = _connect(path)                       # the loop's own: single rows by id
        self._reader_con = _connect(path)                # lists and history, in the reader thread
        self._reader = ThreadPoolExecutor(1, "store-read")
        marks: dict[str, int] = dict(self._con.execute("SELECT name, revision FROM mark"))
        newest: int = self._con.execute("SELECT coalesce(max(id), 0) FROM log").get
        self._compacted = marks.get("compacted", 0)
        self._revision = max(newest, self._compacted)
        self._next = self._revision + 1
        self._heads: dict[str, tuple[int, int]] = {      # key -> (create revision, revision)
            key: (created, i) for key, created, i in self._con.execute(
                "SELECT l.key, l.created, l.id FROM (SELECT max(id) AS id FROM log GROUP BY key) AS n "
                "CROSS JOIN log AS l ON l.id = n.id WHERE l.value IS NOT NULL")}
        self._pending: list[_Write] = []
        self._values: dict[int, bytes] = {}              # values of writes that are not acknowledged yet
        self._jobs: list[_Job] = []
        self._busy = False
        self._work: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._writer, name="store-write", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: str | Path, on_broken: Callable[[Exception], None] | None = None) -> SqliteStore:
        return cls(Path(path), on_broken)

    @property
    def size_bytes(self) -> int:
        """Of the database file."""
        return self._path.stat().st_size

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def compacted(self) -> int:
        return self._compacted

    # ---- reading

    def _check(self, revision: int) -> None:
        if self._broken is not None:
            raise self._broken
        if revision > self._revision:
            raise Future(revision)
        if revision and revision < self._compacted:
            raise Compacted(self._compacted)

    def _fetch(self, con: apsw.Connection, revision: int) -> Entry:
        row = con.execute("SELECT key, value, created, id FROM log WHERE id = ?", (revision,)).fetchone()
        assert row is not None
        return Entry(*row)

    def _current(self, key: str) -> Entry | None:
        """The newest entry, pending writes included."""
        head = self._heads.get(key)
        if head is None:
            return None
        created, revision = head
        value = self._values.get(revision)
        return self._fetch(self._con, revision) if value is None else Entry(key, value, created, revision)

    async def get(self, key: str, *, revision: int = 0) -> Entry | None:
        self._check(revision)
        head = self._heads.get(key)
        if not revision and head is None and not self._values and not self._pending and not self._busy:
            return None
        if not revision and head is not None and head[1] <= self._revision:
            return self._fetch(self._con, head[1])
        row = self._con.execute("SELECT key, value, created, id FROM log WHERE key = ? AND id <= ? ORDER BY id DESC LIMIT 1",
                                (key, revision or self._revision)).fetchone()
        return Entry(*row) if row is not None and row[1] is not None else None

    async def list(self, prefix: str, *, start: str = "", limit: int = 0, revision: int = 0) -> tuple[list[Entry], int]:
        self._check(revision)
        at = revision or self._revision
        if limit and limit <= 100:
            return _read(self._con, prefix, start, limit, at), at
        entries = await self._loop.run_in_executor(self._reader, _read, self._reader_con, prefix, start, limit, at)
        self._check(at)                                  # compacted while it was read: the answer may have holes
        return entries, at

    async def _page(self, prefix: str, after: int, limit: int) -> tuple[Batch, int]:
        self._check(0)
        if after >= self._compacted:
            page = await self._loop.run_in_executor(self._reader, _history, self._reader_con, prefix, after, self._revision, limit)
            if after >= self._compacted:
                return page
        raise Compacted(self._compacted)

    def subscribe(self, callback: Callable[[Batch], None]) -> Callable[[], None]:
        return self._feed.subscribe(callback)

    def watch(self, prefix: str, after: int, until: int = 0) -> AsyncIterator[Batch]:
        return self._feed.watch(prefix, after, lambda: self._revision, self._page, until)

    # ---- writing

    def _submit(self, key: str, value: bytes | None, expect: int | None) -> asyncio.Future[int]:
        if self._broken is not None:
            raise self._broken
        head = self._heads.get(key)
        if (expect is not None and expect != (head[1] if head else 0)) or (value is None and head is None):
            raise Conflict(key, self._current(key))
        revision = self._next
        self._next += 1
        previous_created, previous = head or (0, 0)
        created = previous_created or revision
        if value is None:
            del self._heads[key]
        else:
            self._heads[key] = (created, revision)
            self._values[revision] = value
        done = self._loop.create_future()
        self._pending.append(_Write(revision, key, value, created, previous, previous_created, done))
        self._kick()
        return done

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        return await self._submit(key, value, expect)      # a caller that goes away cancels its waiting, not the write

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        return await self._submit(key, None, expect)

    async def compact(self, revision: int) -> None:
        self._check(revision if revision > self._revision else 0)
        if revision <= self._compacted:
            return
        old, self._compacted = self._compacted, revision
        while old < revision:                            # in steps, each its own transaction
            upto = min(revision, old + COMPACT_ROWS_MAX)
            await self._run(_forget(old, upto))
            old = upto

    async def _run(self, job: Callable[[apsw.Connection], Any]) -> Any:
        done = self._loop.create_future()
        self._jobs.append((job, done))
        self._kick()
        return await asyncio.shield(done)

    def _kick(self) -> None:
        """Hands what has gathered to the writer at the end of this turn of the loop, unless it is at work."""
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        batch, self._pending = self._pending[:BATCH_ROWS_MAX], self._pending[BATCH_ROWS_MAX:]
        jobs, self._jobs = self._jobs, []
        if self._broken is not None or not (batch or jobs):
            self._busy = False
            return
        self._work.put((batch, jobs))

    def _writer(self) -> None:
        con = self._writer_con
        while (work := self._work.get()) is not None:
            batch, jobs = work
            try:
                if batch:
                    _commit(con, batch)
                results = [(done, job(con)) for job, done in jobs]
                self._loop.call_soon_threadsafe(self._finish, batch, results)
            except Exception as e:
                try:
                    if con.in_transaction:
                        con.execute("ROLLBACK")
                except apsw.Error:
                    pass
                try:
                    self._loop.call_soon_threadsafe(self._break, e, [*(w.done for w in batch), *(done for _, done in jobs)])
                except RuntimeError:                     # the loop is closed: nobody is left to tell
                    return
                return

    def _finish(self, batch: _Writes, results: _Results) -> None:
        if self._broken is not None:                     # closed meanwhile: the rows are on disk, nobody is told
            return
        self._busy = False
        if self._pending or self._jobs:
            self._kick()
        if batch:
            self._revision = batch[-1].revision
            for w in batch:
                self._values.pop(w.revision, None)
            self._feed.deliver([Event(w.revision, w.key, w.value, _Past(self._con, w.key, w.previous_created, w.previous) if w.previous else None)
                                for w in batch])
            for w in batch:
                if not w.done.done():
                    w.done.set_result(w.revision)
        for done, result in results:
            if not done.done():
                done.set_result(result)

    def _break(self, error: Exception, waiting: _Futures) -> None:
        if self._broken is not None:
            return
        self._broken = Broken(f"the store is broken: {error}")
        for done in [*waiting, *(w.done for w in self._pending), *(done for _, done in self._jobs)]:
            if not done.done():
                done.set_exception(self._broken)
                done.exception()                         # a writer that went away is no error of its own
        self._pending, self._jobs = [], []
        self._feed.close(self._broken)
        if self._on_broken is not None:
            self._on_broken(error)

    async def keep(self, window_s: float, every_s: float = 30.0) -> None:
        await keep(self, window_s, every_s)

    async def close(self) -> None:
        """Waits for writes on their way, then closes."""
        if self._busy and self._broken is None:
            try:
                await self._run(lambda con: None)
            except Broken:
                pass
        if self._broken is None:
            self._broken = Broken("the store is closed")
            self._feed.close(self._broken)
        self._work.put(None)
        await asyncio.to_thread(self._thread.join, 10)
        self._reader.shutdown(wait=True)
        for con in (self._con, self._reader_con, self._writer_con):
            con.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _commit(con: apsw.Connection, batch: _Writes) -> None:
    """One transaction of all rows. Runs in the writer thread."""
    whole = len(batch) <= ROWS_A_STATEMENT
    if not whole:
        con.execute("BEGIN IMMEDIATE")
    for at in range(0, len(batch), ROWS_A_STATEMENT):
        some = batch[at:at + ROWS_A_STATEMENT]
        con.execute(_INSERT + ",".join(["(?,?,?,?,?)"] * len(some)), [v for w in some for v in w[:5]])
    if not whole:
        con.execute("COMMIT")


def _forget(old: int, revision: int) -> Callable[[apsw.Connection], None]:
    """A job that drops what the state at `revision` no longer needs, given that (.., old] is dropped already."""
    def job(con: apsw.Connection) -> None:
        con.execute("BEGIN IMMEDIATE")
        con.execute("DELETE FROM log WHERE id IN (SELECT previous FROM log WHERE id > ? AND id <= ? AND previous > 0)", (old, revision))
        con.execute("DELETE FROM log WHERE id > ? AND id <= ? AND value IS NULL", (old, revision))
        con.execute("INSERT OR REPLACE INTO mark VALUES ('compacted', ?)", (revision,))
        con.execute("COMMIT")
    return job


def read_file(path: Path) -> tuple[list[Entry], int]:
    """All entries of a store's file and the revision they are of; the store may be in use by another process.
    Raises FileNotFoundError."""
    path.stat()
    con = apsw.Connection(f"file:{path}?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        con.set_busy_timeout(10_000)
        con.execute("BEGIN")
        newest: int = con.execute("SELECT max(coalesce((SELECT max(id) FROM log), 0), coalesce((SELECT max(revision) FROM mark), 0))").get
        return _read(con, "", "", 0, newest), newest
    finally:
        con.close()


def write_file(path: Path, entries: list[Entry], revision: int) -> None:
    """A new store's file with these entries under the revisions they have; the next write is after `revision`, nothing before it can be asked
    for. Raises FileExistsError."""
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".restoring")
    for old in path.parent.glob(draft.name + "*"):
        old.unlink()
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    con = apsw.Connection(str(draft))
    con.execute(_SCHEMA)
    con.execute("BEGIN")
    used: set[int] = set()
    at = revision - len(entries)                             # for entries whose revision another has too (written in one transaction of etcd)
    for e in sorted(entries, key=lambda e: e.revision):
        i = e.revision
        if i in used or i > revision:
            at += 1
            while at in used:
                at += 1
            i = at
        used.add(i)
        con.execute("INSERT INTO log (id, key, value, created, previous) VALUES (?, ?, ?, ?, 0)", (i, e.key, e.value, min(e.create_revision, i)))
    con.execute("INSERT OR REPLACE INTO mark VALUES ('compacted', ?)", (max(revision, *used) if used else revision,))
    con.execute("COMMIT")
    con.close()
    fd = os.open(draft, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    draft.rename(path)
    fd = os.open(path.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
