"""What only a store on disk can promise: restarts, crashes, a full disk, one process at a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubern.store.protocol import Broken, Compacted
from kubern.store.sqlite import SqliteStore

WRITER = """
import asyncio, os, resource, sys
from kubern.store.sqlite import SqliteStore
from kubern.store.protocol import Broken

async def main(path, limit):
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = await SqliteStore.open(path)
    async def one(w):
        i = 0
        while True:
            key = f"/{w}/{i % 50}"
            revision = await store.put(key, b"%d " % i + b"x" * 400)
            os.write(1, f"{revision} {key} {i}\\n".encode())
            i += 1
    try:
        await asyncio.gather(*(one(w) for w in range(16)))
    except Broken:
        try:
            await store.put("/more", b"")
        except Broken:
            os.write(1, b"broken\\n")
    os._exit(3)
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def check(path: Path, out: bytes) -> None:
    """Everything acknowledged is there; nothing goes backwards."""
    lines = [line.split() for line in out.decode().splitlines(keepends=False) if line.count(" ") == 2]
    last: dict[str, tuple[int, int]] = {}
    for revision, key, i in lines:
        last[key] = max(last.get(key, (0, 0)), (int(revision), int(i)))
    store = await SqliteStore.open(path)
    assert store.revision >= max(r for r, _ in last.values())
    for key, (revision, i) in last.items():
        entry = await store.get(key)
        assert entry is not None and entry.revision >= revision and int(entry.value.split()[0]) >= i
    assert await store.put("/after", b"") == store.revision
    await store.close()


def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path, log = tmp_path / "s.db", tmp_path / "log"
    for _ in range(2):
        with log.open("wb") as f:
            process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "0"], stdout=f)
        end = time.monotonic() + 30
        while log.read_bytes().count(b"\n") <= 200 and time.monotonic() < end:
            time.sleep(0.02)
        process.kill()
        process.wait()
        out = log.read_bytes()
        assert out.count(b"\n") > 20
        asyncio.run(check(path, out[:out.rfind(b"\n")]))


def test_a_full_disk_stops_the_store(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), "600000"], capture_output=True, timeout=30)
    assert done.returncode == 3 and done.stdout.endswith(b"broken\n"), done.stderr
    asyncio.run(check(path, done.stdout))


async def test_restart_keeps_state_and_revisions(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await SqliteStore.open(path)
    await store.put("/a", b"1")
    await store.put("/b", b"1")
    await store.delete("/b")
    await store.compact(3)             # the newest row of the log is gone now
    await store.close()
    store = await SqliteStore.open(path)
    assert store.revision == 3
    with pytest.raises(Compacted):
        await store.get("/a", revision=2)
    assert await store.put("/b", b"2", expect=0) == 4
    assert [e.key for e in (await store.list("/"))[0]] == ["/a", "/b"]
    await store.close()
    assert os.stat(path).st_mode & 0o777 == 0o600


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    with pytest.raises(Broken):
        await SqliteStore.open(tmp_path / "s.db")
    await store.close()


async def test_what_is_being_written_is_not_read(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.put("/a", b"1")
    task = asyncio.create_task(store.put("/a", b"2"))
    await asyncio.sleep(0)
    entry = await store.get("/a")
    assert entry is not None and entry.value == b"1"
    await task
    entry = await store.get("/a")
    assert entry is not None and entry.value == b"2"
    await store.close()
