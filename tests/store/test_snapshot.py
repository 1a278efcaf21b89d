"""Snapshots: from either durable store into either, revisions never going back."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from kubern.store import snapshot
from kubern.store.etcd import EtcdStore
from kubern.store.protocol import Broken, Compacted
from kubern.store.sqlite import SqliteStore


async def opened(where: str, path: Path) -> Any:
    return await EtcdStore.open(where) if where.startswith("etcd") else await SqliteStore.open(path)


@pytest.mark.parametrize("source, target", (("sqlite", "sqlite"), ("sqlite", "etcd"), ("etcd", "sqlite"), ("etcd", "etcd")))
async def test_from_one_store_into_another(source: str, target: str, etcd: str, tmp_path: Path) -> None:
    where = {end: f"{etcd}/{uuid4().hex}" if kind == "etcd" else "sqlite" for end, kind in (("from", source), ("to", target))}
    first = await opened(where["from"], tmp_path / "from.db")
    for i in range(120):
        await first.put(f"/registry/core/configmaps/default/{i % 100}", b'{"n":%d}\n' % i)
    await first.delete("/registry/core/configmaps/default/7")
    file = tmp_path / "snapshot"
    count, revision = await snapshot.save(file, where["from"], tmp_path / "from.db")         # while it is open
    assert count == 99 and revision >= first.revision and file.stat().st_mode & 0o77 == 0
    before = {e.key: e.value for e in (await first.list("/registry/"))[0]}
    await first.close()
    assert await snapshot.restore(file, where["to"], tmp_path / "to.db") == (99, revision + snapshot.BUMP)
    second = await opened(where["to"], tmp_path / "to.db")
    try:
        entries, at = await second.list("/registry/")
        assert {e.key: e.value for e in entries} == before and at >= revision + snapshot.BUMP
        assert len({e.revision for e in entries}) == 99
        with pytest.raises(Compacted):
            await second.get("/registry/x", revision=revision)
        with pytest.raises(Compacted):
            await anext(second.watch("/registry/", revision))
        key = entries[0].key
        new = await second.put(key, b"new", expect=entries[0].revision)
        assert new > revision + snapshot.BUMP and (await second.get(key)).create_revision == entries[0].create_revision
        feed = second.watch("/registry/", new - 1)
        assert [(e.revision, e.value, e.previous.value) for e in await anext(feed)] == [(new, b"new", before[key])]
        await feed.aclose()
        await second.delete(key, expect=new)
    finally:
        await second.close()
    again = await opened(where["to"], tmp_path / "to.db")
    assert again.revision > new and len((await again.list("/registry/"))[0]) == 98
    await again.close()
    with pytest.raises(Broken, match=r"already|move it away"):
        await snapshot.restore(file, where["to"], tmp_path / "to.db")


async def test_a_file_that_is_not_whole(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.put("/registry/a", b"x" * 1000)
    file = tmp_path / "snapshot"
    await snapshot.save(file, "sqlite", tmp_path / "s.db")
    await store.close()
    whole = file.read_bytes()
    for bad in (whole[:-10], whole[:500], whole.replace(b"xx", b"xy", 1), b"", b"{}\n", b"\x00" * 100):
        file.write_bytes(bad)
        with pytest.raises(snapshot.BadSnapshot):
            await snapshot.restore(file, "sqlite", tmp_path / "t.db")
    with pytest.raises(Broken, match="no store"):
        await snapshot.save(file, "sqlite", tmp_path / "none.db")
    assert not (tmp_path / "t.db").exists()
