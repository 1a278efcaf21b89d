"""The small HTTP server, spoken to over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kubern.model.request import Request, Response, Stream
from kubern.wire import h1
from kubern.wire.stream import UpgradeRefused, dial, upgrade


async def handle(r: Request) -> Response:
    if r.path == "/echo":
        return Response(200, [("X-Query", ",".join(r.query.get("q") or ()))], r.body)
    if r.path == "/stream":
        async def chunks() -> AsyncIterator[bytes]:
            for i in range(3):
                yield b"%d" % i
        return Response(200, [], chunks())
    if r.path == "/up" and r.headers.get("upgrade") == "test":
        async def raw(s: Stream) -> None:
            while data := await s.read():
                await s.write(data.upper())
        return Response(101, [("Upgrade", "test")], b"", raw)
    return Response(404, [], b"no")


async def ask(port: int, data: bytes) -> bytes:
    s = await dial("127.0.0.1", port)
    await s.write(data)
    out = b""
    while more := await s.read():
        out += more
    await s.close()
    return out


@pytest.fixture
async def port() -> AsyncIterator[int]:
    listening = await h1.serve(handle, "127.0.0.1", 0)
    yield listening.port
    await listening.close()


async def test_two_requests_on_one_connection(port: int) -> None:
    one = b"POST /echo?q=a%20b&q=c HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
    two = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    answer = await ask(port, one + two)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"X-Query: a b,c" in answer and b"\r\n\r\nhi" in answer and answer.endswith(b"abcd")


async def test_streams_are_chunked(port: int) -> None:
    answer = await ask(port, b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in answer and answer.endswith(b"1\r\n0\r\n1\r\n1\r\n1\r\n2\r\n0\r\n\r\n")


async def test_upgrade_and_refusal(port: int) -> None:
    s = await dial("127.0.0.1", port)
    _, rest = await upgrade(s, "GET", "/up", [("Host", "x"), ("Upgrade", "test"), ("Connection", "Upgrade")])
    await s.write(b"abc")
    assert rest + await s.read() == b"ABC"
    await s.close()
    s = await dial("127.0.0.1", port)
    with pytest.raises(UpgradeRefused) as e:
        await upgrade(s, "GET", "/nothing", [("Host", "x"), ("Upgrade", "test"), ("Connection", "Upgrade")])
    assert (e.value.status, e.value.body) == (404, b"no")
    await s.close()


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                                  b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"])
async def test_bad_requests_get_400(port: int, data: bytes) -> None:
    assert (await ask(port, data)).startswith(b"HTTP/1.1 400")


async def test_silence_is_no_harm(port: int) -> None:
    s = await dial("127.0.0.1", port)
    await s.close()
    await asyncio.sleep(0.01)
