"""Snapshot: the whole state at one revision in one file; taken from any store while it is in use, restored into any store that is empty.

The file: a line of JSON (format, revision, how many entries), then per entry a line of JSON with key, revisions and the length of the value, and the
value; at the end a line with the SHA-256 of all before it. Values are as the driver holds them: what is encrypted stays so. Restoring keeps revisions
monotonic: they go on a million later than the snapshot, so that no client that has seen more than the snapshot sees a revision twice, and
nothing before can be asked for, so that every watch begins anew. Not in it: certificates and keys (they lie in the data directory).
Like `etcdctl snapshot save` and `etcdutl snapshot restore --bump-revision --mark-compacted`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

import orjson

from kubern.store.protocol import Broken, Entry

FORMAT = "kubern-snapshot/1"
BUMP = 1_000_000
LINE_MAX_BYTES = 64 * 1024


class BadSnapshot(ValueError):
    """A file that is no snapshot, or not whole."""


def write(path: Path, entries: list[Entry], revision: int) -> None:
    """Writes the file, whole or not at all."""
    draft = path.with_name(path.name + ".part")
    digest = hashlib.sha256()
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
        def put(data: bytes) -> None:
            digest.update(data)
            f.write(data)
        put(orjson.dumps({"format": FORMAT, "revision": revision, "entries": len(entries)}) + b"\n")
        for e in entries:
            put(orjson.dumps([e.key, e.create_revision, e.revision, len(e.value)]) + b"\n")
            put(e.value + b"\n")
        f.write(digest.hexdigest().encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())
    draft.rename(path)


def read(path: Path) -> tuple[list[Entry], int]:
    """Entries and revision of a file. Raises BadSnapshot."""
    try:
        with open(path, "rb") as f:
            return _read(f)
    except OSError as e:
        raise BadSnapshot(f"cannot read {path}: {e.strerror}") from None
    except (orjson.JSONDecodeError, ValueError, TypeError, KeyError) as e:
        raise BadSnapshot(f"{path} is no snapshot, or not whole: {e}") from None


def _read(f: IO[bytes]) -> tuple[list[Entry], int]:
    digest = hashlib.sha256()

    def line() -> bytes:
        data = f.readline(LINE_MAX_BYTES)
        digest.update(data)
        return data
    head = orjson.loads(line())
    if head["format"] != FORMAT:
        raise ValueError(f"unknown format {head['format']!r}")
    out = []
    for _ in range(int(head["entries"])):
        key, created, revision, size = orjson.loads(line())
        value = f.read(size + 1)
        if len(value) != size + 1:
            raise ValueError("it ends too early")
        digest.update(value)
        out.append(Entry(key, value[:-1], created, revision))
    if f.readline(LINE_MAX_BYTES).strip() != digest.hexdigest().encode():
        raise ValueError("its checksum is wrong")
    return out, int(head["revision"])


async def save(path: Path, store: str, database: Path) -> tuple[int, int]:
    """Takes a snapshot of an etcd:// store, or of the SQLite file at `database`. (entries, revision)."""
    if store.startswith("etcd://"):
        from kubern.store.etcd import EtcdStore

        etcd = await EtcdStore.open(store)
        try:
            entries, revision = await etcd.list("")
        finally:
            await etcd.close()
    else:
        from kubern.store.sqlite import read_file

        try:
            entries, revision = read_file(database)
        except FileNotFoundError:
            raise Broken(f"there is no store at {database}; say where the cluster lives with --data-dir") from None
    write(path, entries, revision)
    return len(entries), revision


async def restore(path: Path, store: str, database: Path) -> tuple[int, int]:
    """Fills an empty store. (entries, revision it goes on after). Raises BadSnapshot, Broken where there is a state already."""
    entries, revision = read(path)
    revision += BUMP
    if store.startswith("etcd://"):
        from kubern.store.etcd import EtcdStore

        etcd = await EtcdStore.open(store)
        try:
            await etcd.take_over(entries, revision)
        finally:
            await etcd.close()
    else:
        from kubern.store.sqlite import write_file

        try:
            write_file(database, entries, revision)
        except FileExistsError as e:
            raise Broken(f"{e}; move it away first") from None
    return len(entries), revision
