"""Long lists: made and written a part at a time, the same bytes as at once; what a slow reader leaves is bounded. Objects told by writers."""

from __future__ import annotations

import asyncio
import socket

import orjson
import pytest

from kubern.api import forms, http
from kubern.model.request import Request, Response
from tests.api.inside import NS, Api

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
LARGE = 24 * 1024 * 1024


@pytest.mark.parametrize("accept", ["application/json", TABLE, METADATA])
@pytest.mark.parametrize("query", ["", "?limit=20", "?labelSelector=even"])
async def test_parts_make_the_same_list(api: Api, accept: str, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(23):
        await api.map(f"m-{i:02d}", labels={"even": "yes"} if i % 2 == 0 else {"odd": "yes"})
    _, whole = await api("GET", f"{NS}/configmaps{query}", accept=accept)
    monkeypatch.setattr(forms, "ITEMS_A_TURN", 4)
    monkeypatch.setattr(forms, "JOINED_A_TURN", 4)
    api.server.lists.clear()
    _, parts = await api("GET", f"{NS}/configmaps{query}", accept=accept)
    assert parts == whole and len(whole.get("items") or whole["rows"]) in (12, 20, 23)


async def test_a_large_answer_goes_as_fast_as_its_reader_and_others_are_answered() -> None:
    async def application(request: Request) -> Response:
        return Response(200, [], [b"a" * LARGE, b"the end"] if request.path == "/large" else b"small")
    listening = await http.serve(application, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(sock=_socket(listening.port), limit=65536)
    writer.write(b"GET /large HTTP/1.1\r\n\r\nGET /small HTTP/1.1\r\nConnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    other_reader, other = await asyncio.open_connection("127.0.0.1", listening.port)
    other.write(b"GET /small HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert (await other_reader.read()).endswith(b"small")
    held = max(c.transport.get_write_buffer_size() for c in listening.connections if c.transport is not None)
    assert held <= http.WRITE_HIGH_BYTES + http.WRITE_SLICE_BYTES
    got = await reader.readexactly(LARGE + 7)
    assert got.endswith(b"athe end")
    assert (await reader.read()).endswith(b"small")          # the next request of the same connection
    writer.close()
    other.close()
    await listening.close(0.5)


def _socket(port: int) -> socket.socket:
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    s.connect(("127.0.0.1", port))
    s.setblocking(False)
    return s


async def test_who_stops_reading_a_large_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def application(request: Request) -> Response:
        return Response(200, [], b"a" * LARGE)
    monkeypatch.setattr(http, "STALLED_S", 0.05)
    listening = await http.serve(application, "127.0.0.1", 0)
    s = _socket(listening.port)
    await asyncio.get_running_loop().sock_sendall(s, b"GET / HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(5):
        while not listening.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while listening.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    s.close()
    await listening.close(0.5)


async def test_what_a_writer_tells_the_cache_is_what_was_stored(api: Api) -> None:
    cache = api.server.cache
    collection = cache.collection("", "configmaps")
    collection.listeners.append(lambda changes: None)
    await api.map("a", labels={"x": "y"})
    await api("PATCH", f"{NS}/configmaps/a", {"data": {"k": "v"}}, type="application/merge-patch+json")
    item = collection.items["default/a"]
    assert item._parsed == orjson.loads(b"{" + item.body) and item._parsed is not None
    assert not cache.offered
    status, _ = await api("PUT", f"{NS}/configmaps/a", {"metadata": {"name": "a", "resourceVersion": "1"}})
    assert status == 409 and collection.items["default/a"] is item and not cache.offered
