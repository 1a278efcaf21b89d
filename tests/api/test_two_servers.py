"""Two API servers on one etcd: what one has acknowledged the other shows, to reads, watches and writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import orjson
import pytest

from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.api.watch import Watch
from kubern.model.request import Request
from kubern.store.etcd import EtcdStore

NS = "/api/v1/namespaces/default"


async def ask(server: Server, method: str, path: str, body: Any = None, type: str = "application/json", **query: str) -> tuple[int, Any]:
    response = await server.handle(Request(method, path, {k: [v] for k, v in query.items()}, {"content-type": type, "accept": "application/json"},
                                           orjson.dumps(body) if body is not None else b"", user=MASTERS))
    if isinstance(response.body, Watch):
        return response.status, response.body
    raw = response.body if isinstance(response.body, bytes) else b"".join(response.body)  # type: ignore[arg-type]
    return response.status, orjson.loads(raw)


@pytest.fixture
async def servers(etcd: str) -> AsyncIterator[tuple[Server, Server]]:
    url = f"{etcd}/{uuid4().hex}"
    stores = [await EtcdStore.open(url) for _ in range(2)]
    a, b = (Server(s, settings=ApiSettings(bootstrap=False)) for s in stores)
    await asyncio.gather(a.start(), b.start())
    assert (await ask(a, "POST", "/api/v1/namespaces", {"metadata": {"name": "default"}}))[0] == 201
    yield a, b
    await asyncio.gather(a.stop(), b.stop())
    await asyncio.gather(*(s.close() for s in stores))


async def test_reads_see_what_the_other_server_wrote(servers: tuple[Server, Server]) -> None:
    a, b = servers
    for i in range(10):
        status, made = await ask(a, "POST", f"{NS}/configmaps", {"metadata": {"name": f"m{i}"}})
        assert status == 201
        assert await ask(b, "GET", f"{NS}/configmaps/m{i}") == (200, made)
        listed = (await ask(b, "GET", f"{NS}/configmaps"))[1]
        assert len(listed["items"]) == i + 1
        version = made["metadata"]["resourceVersion"]
        assert len((await ask(b, "GET", f"{NS}/configmaps", resourceVersion=version))[1]["items"]) == i + 1
        assert b.fast(Request("GET", f"{NS}/configmaps/m{i}", user=MASTERS)) is None


async def test_writes_by_turns(servers: tuple[Server, Server]) -> None:
    await ask(servers[0], "POST", f"{NS}/configmaps", {"metadata": {"name": "m"}, "data": {}})

    async def add(server: Server, who: str) -> None:
        for i in range(10):
            assert (await ask(server, "PATCH", f"{NS}/configmaps/m", {"data": {f"{who}{i}": "x"}}, "application/merge-patch+json"))[0] == 200
    await asyncio.gather(add(servers[0], "a"), add(servers[1], "b"))
    for s in servers:
        assert len((await ask(s, "GET", f"{NS}/configmaps/m"))[1]["data"]) == 20
    assert (await ask(servers[1], "DELETE", f"{NS}/configmaps/m"))[0] == 200
    assert (await ask(servers[0], "GET", f"{NS}/configmaps/m"))[0] == 404


async def test_a_watch_tells_of_both(servers: tuple[Server, Server]) -> None:
    a, b = servers
    _, listed = await ask(b, "GET", f"{NS}/configmaps")
    _, watch = await ask(b, "GET", f"{NS}/configmaps", watch="1", resourceVersion=listed["metadata"]["resourceVersion"])
    for i in range(6):
        await ask((a, b)[i % 2], "POST", f"{NS}/configmaps", {"metadata": {"name": f"m{i}"}})
    names: list[str] = []
    async with asyncio.timeout(5):
        async for chunk in watch:
            names += [orjson.loads(line)["object"]["metadata"]["name"] for line in chunk.splitlines() if line]
            if len(names) >= 6:
                break
    assert names == [f"m{i}" for i in range(6)]
    watch.end()
