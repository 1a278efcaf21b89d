"""One suite for every driver: what store/protocol.py promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from kubern.store.memory import MemoryStore
from kubern.store.protocol import Broken, Compacted, Conflict, Event, Future
from kubern.store.sqlite import SqliteStore

DRIVERS = ("memory", "sqlite", "etcd")


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(driver: str, request: pytest.FixtureRequest) -> str:
    """A state of its own in the one etcd that all tests share."""
    return f"{request.getfixturevalue('etcd')}/{uuid4().hex}" if driver == "etcd" else ""


async def opened(driver: str, url: str, tmp_path: Path) -> Any:
    if driver == "etcd":
        from kubern.store.etcd import EtcdStore

        return await EtcdStore.open(url, root="/")
    return MemoryStore() if driver == "memory" else await SqliteStore.open(tmp_path / "store.db")


@pytest.fixture
async def store(driver: str, url: str, tmp_path: Path) -> AsyncIterator[Any]:
    """Revisions are counted from where the store stood: an etcd is not new."""
    s = await opened(driver, url, tmp_path)
    yield s
    await s.close()


async def take(store: Any, prefix: str, after: int, count: int) -> list[Event]:
    out: list[Event] = []
    feed = store.watch(prefix, after)
    async with asyncio.timeout(10):
        async for batch in feed:
            out += batch
            if len(out) >= count:
                break
    await feed.aclose()
    return out


async def test_put_get_and_revisions(store: Any) -> None:
    base = store.revision
    assert await store.get("/a") is None
    assert await store.put("/a", b"1") == base + 1
    assert await store.put("/a", b"2") == base + 2
    assert store.revision == base + 2
    assert tuple(await store.get("/a")) == ("/a", b"2", base + 1, base + 2)
    assert (await store.get("/a", revision=base + 1)).value == b"1"
    with pytest.raises(Future):
        await store.get("/a", revision=base + 3)


async def test_conditions(store: Any) -> None:
    base = store.revision
    await store.put("/a", b"1", expect=0)
    with pytest.raises(Conflict) as e:
        await store.put("/a", b"2", expect=0)
    assert tuple(e.value.current) == ("/a", b"1", base + 1, base + 1)
    await store.put("/a", b"2", expect=base + 1)
    with pytest.raises(Conflict):
        await store.delete("/a", expect=base + 1)
    assert await store.delete("/a", expect=base + 2) == base + 3
    with pytest.raises(Conflict) as e:
        await store.delete("/a")
    assert e.value.current is None
    with pytest.raises(Conflict):
        await store.put("/a", b"3", expect=base + 2)
    await store.put("/a", b"3", expect=0)
    assert tuple(await store.get("/a")) == ("/a", b"3", base + 4, base + 4)


async def test_conditions_see_pending_writes(store: Any) -> None:
    base = store.revision
    results = await asyncio.gather(*(store.put("/a", b"%d" % i, expect=0) for i in range(8)), return_exceptions=True)
    assert [r for r in results if isinstance(r, int)] == [base + 1]
    current = {r.current.value for r in results if isinstance(r, Conflict)}
    assert current == {b"0"}


async def test_list_order_limit_start_and_past(store: Any) -> None:
    base = store.revision
    for name in ("b", "a", "d", "c"):
        await store.put(f"/x/{name}", name.encode())
    await store.put("/xy", b"other")
    await store.delete("/x/b")
    entries, revision = await store.list("/x/")
    assert [e.key for e in entries] == ["/x/a", "/x/c", "/x/d"] and revision == base + 6
    entries, _ = await store.list("/x/", start="/x/b", limit=1)
    assert [e.key for e in entries] == ["/x/c"]
    entries, revision = await store.list("/x/", revision=base + 3)
    assert [e.key for e in entries] == ["/x/a", "/x/b", "/x/d"] and revision == base + 3
    entries, _ = await store.list("/x/", revision=base + 3, limit=1000)
    assert [e.value for e in entries] == [b"a", b"b", b"d"]
    assert len((await store.list(""))[0]) == 4


async def test_subscribers_see_events_before_the_writer_returns(store: Any) -> None:
    base = store.revision
    seen: list[Event] = []
    stop = store.subscribe(seen.extend)
    await store.put("/a", b"1")
    assert [e.revision - base for e in seen] == [1] and seen[0].previous is None
    await asyncio.gather(store.put("/a", b"2"), store.put("/a", b"3"), store.delete("/a"))
    assert [(e.revision - base, e.value, e.previous and e.previous.value) for e in seen] == [
        (1, b"1", None), (2, b"2", b"1"), (3, b"3", b"2"), (4, None, b"3")]
    assert seen[3].previous is not None and seen[3].previous.create_revision == base + 1
    stop()
    await store.put("/a", b"4")
    assert len(seen) == 4


async def test_watch_from_history_and_live(store: Any) -> None:
    base = store.revision
    for i in range(5):
        await store.put(f"/p/{i}", b"x")
        await store.put(f"/q/{i}", b"x")
    task = asyncio.create_task(take(store, "/p/", base + 2, 6))
    await asyncio.sleep(0.05)
    await store.put("/p/0", b"y")
    await store.delete("/p/1")
    events = await task
    assert [e.key for e in events] == ["/p/1", "/p/2", "/p/3", "/p/4", "/p/0", "/p/1"]
    assert events[-1].value is None and events[-2].previous is not None and events[-2].previous.value == b"x"


async def test_a_slow_watcher_loses_nothing(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.store.feed.BACKLOG_EVENTS_MAX", 10)
    monkeypatch.setattr("kubern.store.feed.PAGE_EVENTS_MAX", 7)
    got: list[int] = []
    base = store.revision

    async def follow() -> None:
        async for batch in store.watch("/", base):
            got.extend(e.revision for e in batch)
            await asyncio.sleep(0.005)
            if got[-1] >= base + 300:
                return
    task = asyncio.create_task(follow())
    for i in range(0, 300, 30):
        await asyncio.gather(*(store.put(f"/{i + j}", b"x") for j in range(30)))
    async with asyncio.timeout(20):
        await task
    assert got == list(range(base + 1, base + 301))


async def test_compaction(store: Any) -> None:
    base = store.revision
    for value in (b"1", b"2", b"3"):
        await store.put("/a", value)
    await store.put("/b", b"1")
    await store.delete("/b")           # 5
    await store.put("/a", b"4")        # 6
    await store.compact(base + 5)
    assert store.compacted == base + 5
    with pytest.raises(Compacted) as e:
        await store.get("/a", revision=base + 4)
    assert e.value.revision == base + 5
    with pytest.raises(Compacted):
        await take(store, "/", base + 4, 1)
    assert (await store.get("/a", revision=base + 5)).value == b"3"
    assert [x.key for x in (await store.list("/", revision=base + 5))[0]] == ["/a"]
    events = await take(store, "/", base + 5, 1)
    assert events[0].value == b"4" and events[0].previous is not None and events[0].previous.value == b"3"
    await store.compact(base + 3)             # older than the last: nothing to do
    with pytest.raises(Future):
        await store.compact(base + 7)


async def test_keep_forgets_what_is_older_than_the_window(store: Any) -> None:
    base = store.revision
    for i in range(5):
        await store.put("/a", b"%d" % i)
    task = asyncio.create_task(store.keep(0.05, 0.02))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(Compacted):
        await store.get("/a", revision=base + 4)
    assert (await store.get("/a")).value == b"4"


async def test_64_writers(store: Any, driver: str) -> None:
    writers = 64 if driver != "etcd" else 12        # every round is a round trip
    order: list[int] = []
    base = store.revision
    store.subscribe(lambda batch: order.extend(e.revision for e in batch))

    async def count_up(writer: int) -> None:
        for _ in range(10):            # all on one key: a conditional increment that retries
            while True:
                entry = await store.get("/counter")
                try:
                    await store.put("/counter", b"%d" % (int(entry.value) + 1 if entry else 1), expect=entry.revision if entry else 0)
                    break
                except Conflict:
                    await asyncio.sleep(0)
            await store.put(f"/own/{writer}", b"x" * 500)
    await asyncio.gather(*(count_up(w) for w in range(writers)))
    assert (await store.get("/counter")).value == b"%d" % (10 * writers)
    assert order == list(range(base + 1, base + 1 + 20 * writers))
    assert len((await store.list("/own/"))[0]) == writers


async def test_a_cancelled_writer_does_not_stop_the_others(store: Any) -> None:
    base = store.revision
    first = asyncio.create_task(store.put("/a", b"1"))
    await asyncio.sleep(0)
    first.cancel()
    await store.put("/b", b"1")
    await asyncio.sleep(0.1 if store.revision < base + 2 else 0)       # side by side in etcd
    assert store.revision == base + 2
    assert (await store.get("/a")).value == b"1"


async def test_a_closed_store_refuses(driver: str, url: str, tmp_path: Path) -> None:
    s = await opened(driver, url, tmp_path)
    waiting = asyncio.create_task(take(s, "/", s.revision, 1))
    await asyncio.sleep(0.02)
    await s.close()
    with pytest.raises(Broken):
        await s.put("/a", b"1")
    with pytest.raises(Broken):
        await waiting
