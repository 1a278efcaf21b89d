# ruff: noqa: E501
"""Bytes that are no requests, over real connections: each gets an answer or an end, and the server goes on serving the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kubern import pki
from kubern.api import http
from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, Response
from kubern.model.schema import schema_for
from kubern.store.memory import MemoryStore
from tests.api.requests_made import ROWS, Mill, wire

GET = b"GET /api/v1/namespaces/d HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
# text -> statuses of the answers that may come before the connection ends or goes silent
CASES: list[tuple[str, bytes, tuple[tuple[int, ...], ...]]] = [
    ("pipelined", GET * 40, ((200,) * 40,)),
    ("both lengths", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET, ((400,),)),
    ("two lengths", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", ((400,),)),
    ("a list of lengths", POST + b"Content-Length: 5, 5\r\n\r\nabcde", ((400,),)),
    ("signed length", POST + b"Content-Length: +5\r\n\r\nabcde", ((400,),)),
    ("hex length", POST + b"Content-Length: 0x5\r\n\r\nabcde", ((400,),)),
    ("huge length", POST + b"Content-Length: 99999999999999999999\r\n\r\n", ((400,), (413,))),
    ("too long", POST + b"Content-Length: 4000000\r\n\r\n", ((413,),)),
    ("odd encoding", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + GET, ((400,),)),
    ("encoding twice", POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + GET, ((400,),)),
    ("obfuscated encoding", POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + GET, ((400,),)),
    ("folded header", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", ((400,), (200,))),
    ("bare LF", b"GET /api HTTP/1.1\nHost: x\n\n", ((400,), (200,))),
    ("bad chunk", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", ((400,),)),
    ("chunk too big", POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", ((400,),)),
    ("chunks of nothing", POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 2000 + b"0\r\n\r\n" + GET, ((400, 200),)),
    ("two hosts", b"GET /api HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", ((400,),)),
    ("no version", b"GET /api\r\n\r\n", ((400,), (), (200,))),
    ("HTTP/1.0", b"GET /api HTTP/1.0\r\n\r\n", ((200,),)),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ((400,), (505,), (405,), (404,))),
    ("NUL in a header", b"GET /api HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", ((400,),)),
    ("bad UTF-8 in a path", b"GET /api/v1/namespaces/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", ((404,), (400,))),
    ("bad escapes", b"GET /api/v1/namespaces/%zz%00%ff HTTP/1.1\r\nHost: x\r\n\r\n", ((404,), (400,))),
    ("many headers", b"GET /api HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(2000)) + b"\r\n", ((431,),)),
    ("a long header", b"GET /api HTTP/1.1\r\na: " + b"b" * 2_000_000 + b"\r\n\r\n", ((431,),)),
    ("a long path", b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\n\r\n", ((431,),)),
    ("many parameters", b"GET /api/v1/pods?" + b"a=b&" * 50_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", ((200,), (400,))),
    ("absolute form", b"GET http://x/api HTTP/1.1\r\nHost: x\r\n\r\n", ((200,),)),
    ("CONNECT", b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", ((405,), (404,), (400,), (200,), (403,))),
    ("an upgrade nobody offers", b"GET /api/v1/pods HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + b"\x81\x80" * 50, ((200,), (400,))),
    ("h2c upgrade", b"GET /api HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", ((200,),)),
    ("noise", bytes(range(256)) * 20, ((400,), ())),
    ("empty lines", b"\r\n" * 500 + GET, ((200,), (400,))),
]


@pytest.fixture
async def listening() -> AsyncIterator[http.Listening]:
    server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await server.start()
    await server.handle(Request("POST", "/api/v1/namespaces", {}, {"content-type": "application/json"}, b'{"metadata":{"name":"d"}}', user=MASTERS))

    async def trusted(request: Request) -> Response:
        request.user = MASTERS
        return await server.handle(request)

    out = await http.serve(trusted, "127.0.0.1", 0)
    yield out
    await out.close(1)
    await server.stop()


async def answers(port: int, data: bytes, context: ssl.SSLContext | None = None) -> list[int]:
    """The statuses of all that comes back until the end or a silence."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24, ssl=context)
    out: list[int] = []
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
    try:
        while True:
            async with asyncio.timeout(0.4):
                head = await reader.readuntil(b"\r\n\r\n")
            out.append(int(head.split()[1]))
            lower = head.lower()
            if b"content-length:" in lower:
                await reader.readexactly(int(lower.partition(b"content-length:")[2].split(b"\r\n")[0]))
            elif b"chunked" in lower:
                break
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.transport.abort()
    return out


async def ping(port: int) -> None:
    assert await asyncio.wait_for(answers(port, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")), 5) == [200]


@pytest.mark.parametrize(("text", "data", "allowed"), CASES, ids=[c[0] for c in CASES])
async def test_what_is_no_request(listening: http.Listening, caplog: pytest.LogCaptureFixture, text: str, data: bytes, allowed: Any) -> None:
    assert tuple(await answers(listening.port, data)) in allowed
    await ping(listening.port)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text


async def test_cut_anywhere(listening: http.Listening, caplog: pytest.LogCaptureFixture) -> None:
    """Ordinary and odd requests, changed in a byte, cut, or in crumbs."""
    mill = Mill(3)
    rng = random.Random(4)

    async def one() -> None:
        row = rng.choice(ROWS)
        data = wire(mill.request(row, schema_for(row.api_version, row.kind)))[:20_000]
        at = rng.randrange(max(1, min(len(data), 300)))
        data = rng.choice((data[:at], data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :], data))
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for i in range(0, len(data), 700):
                writer.write(data[i : i + 700])
                await asyncio.sleep(0)
            async with asyncio.timeout(0.1):
                line = await reader.readline()
                assert not line or (line.startswith(b"HTTP/1.1 ") and int(line[9:12]) not in (500, 502)), (line, data[:500])
        writer.transport.abort()

    for _ in range(20):
        await asyncio.gather(*[one() for _ in range(20)])
    await ping(listening.port)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text


async def test_tls_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Plain text, broken handshakes and silence on the TLS port."""
    keys = pki.ensure(tmp_path / "pki", ["localhost"], ["127.0.0.1"])

    async def handle(request: Request) -> Response:
        return Response(200, [], b"ok")

    out = await http.serve(handle, "127.0.0.1", 0, http.ssl_context(str(keys.apiserver.cert_path), str(keys.apiserver.key_path), keys.ca.cert))
    silent = [await asyncio.open_connection("127.0.0.1", out.port) for _ in range(50)]
    try:
        for data in (GET, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 600, b"\x16\x03\x01\xff\xff" + b"a" * 70_000, b"\x80\x2e\x01\x00\x02" * 20, b""):
            assert await answers(out.port, data) in ([], [400])
        context = ssl.create_default_context(cadata=keys.ca.cert.decode())
        assert await answers(out.port, GET, context) == [200]
    finally:
        for _, writer in silent:
            writer.transport.abort()
        await out.close(1)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR], caplog.text
