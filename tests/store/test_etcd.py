"""What only the etcd store does: several writers on one state, an etcd that goes away and comes back."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from kubern.store.etcd import EtcdStore
from kubern.store.protocol import Broken, Conflict, Event, TooLarge, Unavailable


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
