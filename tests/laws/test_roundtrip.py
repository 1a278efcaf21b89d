"""Nothing is lost on the way in and out: upstream's objects with every field filled, through the codecs and through every embedded store.

JSON → the body decoder → storage form → the store, closed and opened again → GET, list, watch in JSON and protobuf → the same object.
Kinds that are served no longer go through the codecs and the store alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubern.api.cache import ROOT, value_of
from kubern.api.forms import Served
from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.model import protobuf
from kubern.model.convert import CURRENT
from kubern.model.decode import decode
from kubern.model.request import Request
from kubern.model.schema import META
from kubern.store.memory import MemoryStore
from kubern.store.protocol import Store
from kubern.store.sqlite import SqliteStore
from tests.laws import vectors

pytestmark = pytest.mark.skipif(not vectors.names(), reason=vectors.WHY_NOT)
PROTOBUF = "application/vnd.kubernetes.protobuf"


@pytest.mark.parametrize("name", vectors.names())
def test_binary_form(name: str) -> None:
    """protobuf → JSON → protobuf, and JSON → protobuf, to the byte."""
    obj, body = vectors.load(name)
    if "kind" not in obj:                                # a WatchEvent names no kind of its own
        message = META + "WatchEvent"
        assert protobuf.envelope("", "", protobuf.message(obj, message)) == body
        raw = bytes(protobuf.message(obj, message))
        assert protobuf.read(raw, message) == obj
        return
    assert protobuf.from_json(protobuf.to_json(body)) == body
    assert protobuf.from_json(obj) == body


async def test_every_object_in_memory() -> None:
    store = MemoryStore()

    async def again() -> Store:
        return store

    await through(store, again)


async def test_every_object_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await SqliteStore.open(path)

    async def again() -> Store:
        await store.close()
        return await SqliteStore.open(path)

    await through(store, again)


async def through(store: Store, again: Callable[[], Awaitable[Store]]) -> None:
    """Writes all objects, opens the store again, and reads them with a server."""
    server = Server(store, settings=ApiSettings(bootstrap=False))
    await server.start()
    kept: list[tuple[str, dict[str, Any], bytes]] = []
    bare: dict[str, bytes] = {}
    for name in vectors.names():
        obj, body = vectors.load(name)
        served = server.rows.by_kind.get((obj.get("apiVersion", ""), obj.get("kind", "")))
        if served is None or not {"create", "get", "list"} <= set(served.row.verbs):
            bare[ROOT + "elsewhere/vectors/" + name] = orjson.dumps(obj)
            continue
        kept.append((at(served, obj), obj, body))
        for data, media in ((orjson.dumps(obj), "application/json"), (body, PROTOBUF)):
            got, warnings = decode(data, media, served.row, served.schema, "Strict")
            assert (got, warnings) == (obj, []), (name, media)
        await store.put(served.collection.prefix + key(served, obj), await stored(served, got), expect=0)
    for where, raw in bare.items():
        await store.put(where, raw, expect=0)
    await server.stop()
    store = await again()
    for where, raw in bare.items():
        entry = await store.get(where)
        assert entry is not None and entry.value == raw
    server = Server(store, settings=ApiSettings(bootstrap=False))
    await server.start()
    for path, obj, body in kept:
        revision = await same(server, path, obj, body)
        collection = path.rpartition("/")[0]
        listed = orjson.loads(await read(server, collection))
        items = [i for i in listed["items"] if i["metadata"]["resourceVersion"] == revision]
        assert [{"kind": obj["kind"], "apiVersion": obj["apiVersion"], **plain(i)} for i in items] == [plain(obj)], path
        assert plain(await first_event(server, collection, revision)) == plain(obj), path
    await server.stop()
    await store.close()
    assert len(kept) > 50 and len(kept) + len(bare) == len(vectors.names())


def key(served: Served, obj: dict[str, Any]) -> str:
    """Versions of a kind share a collection, so the key holds the version; the object keeps the name it has."""
    name = f"{served.row.group}-{served.row.version}"
    return f"{obj['metadata']['namespace']}/{name}" if served.row.namespaced else name


def at(served: Served, obj: dict[str, Any]) -> str:
    """The path that shows what stands under the key."""
    row, (namespace, _, name) = served.row, key(served, obj).rpartition("/")
    return f"{row.prefix}/{'namespaces/' + namespace + '/' if row.namespaced else ''}{row.plural}/{name}"


async def stored(served: Served, obj: dict[str, Any]) -> bytes:
    return value_of(await served.kept(served.to_storage(obj, served.row) if served.to_storage is not None else obj))


def plain(obj: dict[str, Any]) -> dict[str, Any]:
    """Without the revision, which the store gives, and the note in which autoscaling/v1 keeps the measured metrics it has no field for."""
    meta = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    return {**obj, "metadata": {**meta, "annotations": {k: v for k, v in meta.get("annotations", {}).items() if k != CURRENT}}}


async def read(server: Server, path: str, accept: str = "application/json") -> bytes:
    response = await server.handle(Request("GET", path, {}, {"accept": accept}, b"", user=MASTERS))
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)  # type: ignore[arg-type]
    assert response.status == 200, (path, body)
    return body


async def same(server: Server, path: str, obj: dict[str, Any], body: bytes) -> str:
    """The object as it is answered in both forms is the one that was written; its revision."""
    got = orjson.loads(await read(server, path))
    assert plain(got) == plain(obj), path
    binary = protobuf.to_json(await read(server, path, PROTOBUF))
    revision = binary["metadata"]["resourceVersion"]
    binary = {**plain(binary), "metadata": {**plain(binary)["metadata"], "resourceVersion": obj["metadata"]["resourceVersion"]}}
    assert protobuf.from_json(binary) == body, path
    return revision


async def first_event(server: Server, path: str, revision: str) -> dict[str, Any]:
    """The object as a watch shows it."""
    query = {"watch": ["1"], "timeoutSeconds": ["5"]}
    response = await server.handle(Request("GET", path, query, {"accept": "application/json"}, b"", user=MASTERS))
    assert response.status == 200
    stream: Any = response.body
    try:
        async with asyncio.timeout(10):
            async for chunk in stream:
                for line in (chunk if isinstance(chunk, bytes) else b"".join(chunk)).splitlines():
                    event = orjson.loads(line)
                    if event["type"] != "BOOKMARK" and event["object"]["metadata"]["resourceVersion"] == revision:
                        return event["object"]
    finally:
        stream.end()
    raise AssertionError(f"{path}: no event")
