"""What only the etcd store does: several writers on one state, an etcd that goes away and comes back."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from kubern.store.etcd import EtcdStore
from kubern.store.protocol import Broken, Compacted, Conflict, Event, TooLarge, Unavailable


async def test_two_stores_see_each_other(etcd: str) -> None:
    url = f"{etcd}/{uuid4().hex}"
    a, b = await EtcdStore.open(url), await EtcdStore.open(url)
    seen: list[Event] = []
    b.subscribe(seen.extend)
    revision = await a.put("/registry/core/pods/x/1", b"one", expect=0)
    await b.caught_up()
    assert [(e.revision, e.key, e.value) for e in seen] == [(revision, "/registry/core/pods/x/1", b"one")] and b.revision >= revision
    with pytest.raises(Conflict) as e:
        await b.put("/registry/core/pods/x/1", b"two", expect=0)
    assert e.value.current is not None and e.value.current.value == b"one"
    await b.delete("/registry/core/pods/x/1", expect=revision)
    await a.caught_up()
    assert a.revision >= b.revision - 1 and await a.get("/registry/core/pods/x/1") is None
    await asyncio.gather(a.close(), b.close())


async def test_reads_are_never_staler_than_etcd(etcd: str) -> None:
    url = f"{etcd}/{uuid4().hex}"
    a, b = await EtcdStore.open(url), await EtcdStore.open(url)
    state: dict[str, Any] = {}
    b.subscribe(lambda batch: state.update({e.key: e.value for e in batch}))
    for i in range(50):
        await a.put("/registry/x/y", b"%d" % i)
        await b.caught_up()
        assert state["/registry/x/y"] == b"%d" % i
    await asyncio.gather(a.close(), b.close())


async def test_foreign_keys_are_not_seen_and_stop_no_read(etcd: str) -> None:
    prefix = f"/{uuid4().hex}"
    ours, foreign = await EtcdStore.open(etcd + prefix), await EtcdStore.open(f"{etcd}/foreign{prefix}")
    seen: list[Event] = []
    ours.subscribe(seen.extend)
    before = ours.revision
    await foreign.put("/registry/a", b"x")
    async with asyncio.timeout(5):
        await asyncio.gather(*(ours.caught_up() for _ in range(20)))
    assert not seen and ours.revision > before
    assert (await ours.list("/registry/"))[0] == []
    assert await ours.list("/registry/", limit=1) == ([], (await ours.list(""))[1])
    await asyncio.gather(ours.close(), foreign.close())


async def test_an_etcd_that_comes_back(own_etcd: Any) -> None:
    store = await EtcdStore.open(own_etcd.url)
    seen: list[Event] = []
    store.subscribe(seen.extend)
    await store.put("/registry/a", b"1")
    own_etcd.stop()
    with pytest.raises(Unavailable):
        await store.put("/registry/a", b"2")
    own_etcd.start()
    other = await EtcdStore.open(own_etcd.url)
    last = await other.put("/registry/b", b"3")
    async with asyncio.timeout(20):
        await store.caught_up()
    assert store.revision >= last
    assert [(e.key, e.value) for e in seen] == [("/registry/a", b"1"), ("/registry/b", b"3")]
    await asyncio.gather(store.close(), other.close())


async def test_values_too_large(etcd: str) -> None:
    store = await EtcdStore.open(f"{etcd}/{uuid4().hex}")
    with pytest.raises(TooLarge):
        await store.put("/registry/a", b"x" * 3_000_000)
    await store.put("/registry/a", b"x" * 1_000_000)
    await store.close()


async def test_no_etcd_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.store.etcd.RETRY_S", ())
    with pytest.raises(Broken, match="does not answer"):
        await EtcdStore.open("etcd://127.0.0.1:1")
    with pytest.raises(ValueError, match="HOST:PORT"):
        await EtcdStore.open("etcd://nowhere")


async def test_kill_9_in_the_middle_of_writes(own_etcd: Any) -> None:
    """What was acknowledged is there afterwards, what was not is there at most once; every event is seen once, in order."""
    store = await EtcdStore.open(own_etcd.url)
    seen: list[Event] = []
    store.subscribe(seen.extend)
    acknowledged: dict[str, int] = {}
    unknown: set[str] = set()
    down = asyncio.Event()

    async def write(who: int) -> None:
        for i in range(10_000):
            key = f"/registry/w/{who}-{i}"
            try:
                acknowledged[key] = await store.put(key, b"x", expect=0)
            except Unavailable:
                unknown.add(key)
                return
            if down.is_set():
                return
    writers = [asyncio.create_task(write(n)) for n in range(8)]
    await until(lambda: len(acknowledged) > 200)
    own_etcd.kill()
    down.set()
    own_etcd.start()
    await asyncio.wait(writers)
    async with asyncio.timeout(20):
        await store.caught_up()
    have = {e.key: e.revision for e in (await store.list("/registry/"))[0]}
    assert acknowledged.items() <= have.items() and have.keys() - acknowledged.keys() <= unknown
    assert [e.revision for e in seen] == sorted({e.revision for e in seen}) and {e.key: e.revision for e in seen} == have
    assert await store.put("/registry/after", b"y", expect=0) > max(have.values())
    await store.close()


async def test_history_somebody_else_has_compacted(own_etcd: Any) -> None:
    """A store that has seen everything goes on; a watch from before is told; one that was away for what is gone is broken, and says so."""
    broken: list[Exception] = []
    store = await EtcdStore.open(own_etcd.url, on_broken=broken.append)
    other = await EtcdStore.open(own_etcd.url)
    first = await store.put("/registry/a", b"0")
    for i in range(20):
        last = await store.put("/registry/a", b"%d" % i)
    await other.caught_up()
    await other.compact(last)
    with pytest.raises(Compacted):
        async for _ in store.watch("/registry/", first):
            pass
    assert await store.put("/registry/a", b"z") > last and not broken
    feed = store._follower
    assert feed is not None
    feed.cancel()                                     # the watch is cut off, and what it misses is forgotten
    await asyncio.gather(feed, return_exceptions=True)
    for i in range(5):
        last = await other.put("/registry/a", b"%d" % i)
    await other.compact(last)
    store._follower = asyncio.create_task(store._follow())
    await until(lambda: bool(broken))
    with pytest.raises(Broken, match="has forgotten"):
        await store.put("/registry/a", b"x")
    await asyncio.gather(store.close(), other.close())


async def until(happened: Any) -> None:
    async with asyncio.timeout(20):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
