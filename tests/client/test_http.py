"""HttpSender against a real socket: bodies, kept connections, streams, upgrades, servers that go away."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubern import pki
from kubern.api import http
from kubern.client.http import HttpSender
from kubern.model.request import Request, Response, Stream


async def application(request: Request) -> Response:
    if request.path == "/stream":
        async def body() -> AsyncIterator[bytes]:
            for i in range(3):
                yield b"%d\n" % i
                await asyncio.sleep(0.001)
        return Response(200, [], body())
    if request.path == "/endless":
        async def ticks() -> AsyncIterator[bytes]:
            while True:
                yield b"."
                await asyncio.sleep(0.001)
        return Response(200, [], ticks())
    if request.path == "/up":
        async def run(stream: Stream) -> None:
            while data := await stream.read():
                await stream.write(data.upper())
        return Response(101, [("Upgrade", "shout"), ("Connection", "Upgrade")], upgrade=run)
    return Response(200, [("X-Token", request.headers.get("authorization", ""))], request.body)


@pytest.fixture
async def listening() -> AsyncIterator[http.Listening]:
    listening = await http.serve(application, "127.0.0.1", 0)
    yield listening
    await listening.close(0.2)


async def whole(response: Response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    return b"".join([c async for c in response.body])  # type: ignore[union-attr]


async def test_bodies_and_one_connection(listening: http.Listening) -> None:
    sender = HttpSender(f"http://127.0.0.1:{listening.port}", token="t")
    for size in (0, 1, 100_000):
        response = await sender.send(Request("POST", "/echo", body=b"x" * size))
        assert response.status == 200 and await whole(response) == b"x" * size and response.header("x-token") == "Bearer t"
    assert len(sender._idle) == 1
    await sender.close()


async def test_streams_come_piece_by_piece(listening: http.Listening) -> None:
    sender = HttpSender(f"http://127.0.0.1:{listening.port}")
    response = await sender.send(Request("GET", "/stream"))
    assert await whole(response) == b"0\n1\n2\n" and len(sender._idle) == 1      # read to the end: the connection is kept
    response = await sender.send(Request("GET", "/endless"))
    async for _ in response.body:  # type: ignore[union-attr]
        break
    await response.body.aclose()  # type: ignore[union-attr]
    assert not sender._idle                                                         # left early: closed
    await sender.close()


async def test_upgrade(listening: http.Listening) -> None:
    sender = HttpSender(f"http://127.0.0.1:{listening.port}")
    response, stream = await sender.open(Request("GET", "/up", headers={"connection": "Upgrade", "upgrade": "shout"}))
    assert response.status == 101 and stream is not None
    await stream.write(b"hello")
    async with asyncio.timeout(2):
        assert await stream.read() == b"HELLO"
    await stream.close()
    response, stream = await sender.open(Request("GET", "/echo"))
    assert response.status == 200 and stream is None
    await sender.close()


async def test_a_kept_connection_that_died_is_replaced() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request, then closes as soon as the next one comes."""
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await reader.readuntil(b"\r\n\r\n")
        except EOFError:
            pass
        finally:
            writer.close()
    server = await asyncio.start_server(once, "127.0.0.1", 0)
    sender = HttpSender(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for _ in range(3):
        assert (await sender.send(Request("GET", "/"))).body == b"ok"
    with pytest.raises(OSError):                                                    # a write may have been done: not sent twice
        await sender.send(Request("POST", "/"))
    await sender.close()
    server.close()
    await asyncio.sleep(0.02)


async def test_no_line_breaks_in_headers(listening: http.Listening) -> None:
    sender = HttpSender(f"http://127.0.0.1:{listening.port}")
    with pytest.raises(ValueError):
        await sender.send(Request("GET", "/", headers={"a": "b\r\nc: d"}))
    await sender.close()


async def test_tls_trusts_only_its_ca(tmp_path: Path) -> None:
    mine, other = pki.ensure(tmp_path / "a"), pki.ensure(tmp_path / "b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(mine.apiserver.cert_path, mine.apiserver.key_path)
    listening = await http.serve(application, "127.0.0.1", 0, context)
    good = HttpSender(f"https://127.0.0.1:{listening.port}", ca=mine.ca.cert)
    assert (await good.send(Request("GET", "/"))).status == 200
    bad = HttpSender(f"https://127.0.0.1:{listening.port}", ca=other.ca.cert)
    with pytest.raises(ssl.SSLError):
        await bad.send(Request("GET", "/"))
    await good.close()
    await listening.close(0.2)
