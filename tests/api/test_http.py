"""The HTTP layer over a toy application: what a client may send, in which pieces, and what it gets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubern import pki
from kubern.api import http
from kubern.model.request import Request, Response, Stream


async def application(request: Request) -> Response:
    if request.path == "/echo":
        return Response(200, [("Content-Type", "text/plain"), ("X-Method", request.method)], request.body)
    if request.path == "/slow":
        await asyncio.sleep(0.02)
        return Response(200, [], request.param("n").encode())
    if request.path == "/stream":
        async def body() -> AsyncIterator[bytes]:
            for i in range(3):
                yield b"%d" % i
        return Response(200, [], body())
    if request.path == "/up":
        async def run(stream: Stream) -> None:
            while data := await stream.read():
                await stream.write(data.upper())
        return Response(101, [("Upgrade", "shout"), ("Connection", "Upgrade")], upgrade=run)
    if request.path == "/who":
        return Response(200, [], b"cert" if request.certificate else b"none")
    return Response(404, [], b"no")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    listening = await http.serve(application, "127.0.0.1", 0)
    yield listening.port
    await listening.close(0.5)


async def talk(port: int, data: bytes, until: bytes = b"", tls: ssl.SSLContext | None = None) -> bytes:
    """Sends bytes; what came until the end, or until these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(data)
    out = b""
    try:
        async with asyncio.timeout(3):
            while not until or until not in out:
                more = await reader.read(65536)
                if not more:
                    break
                out += more
    finally:
        writer.close()
    return out


async def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    got = await talk(port, b"".join(b"GET /slow?n=%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(40))
                     + b"GET /slow?n=end HTTP/1.1\r\nConnection: close\r\n\r\n")
    bodies = [part.split(b"HTTP/1.1")[0] for part in got.split(b"\r\n\r\n")[1:]]
    assert bodies == [b"%d" % i for i in range(40)] + [b"end"]


async def test_chunked_bodies_both_ways(port: int) -> None:
    got = await talk(port, b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert got.endswith(b"\r\n\r\nabcde")
    got = await talk(port, b"GET /stream HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert got.endswith(b"1\r\n0\r\n1\r\n1\r\n1\r\n2\r\n0\r\n\r\n")


async def test_expect_head_and_unknown_methods(port: int) -> None:
    got = await talk(port, b"POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
    assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    got = await talk(port, b"HEAD /slow?n=abc HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b"Content-Length: 3" in got and got.endswith(b"\r\n\r\n")
    got = await talk(port, b"FROB /echo HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b"X-Method: FROB" in got


async def test_what_is_too_big_or_malformed_is_refused(port: int) -> None:
    assert (await talk(port, b"POST /echo HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    assert (await talk(port, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 600 + b"\r\n")).startswith(b"HTTP/1.1 431 ")
    assert (await talk(port, b"GET / HTTP/9\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    smuggled = b"POST /echo HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert (await talk(port, smuggled)).startswith(b"HTTP/1.1 400 ")
    chunks = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 4
    assert b"HTTP/1.1 413 " in await talk(port, chunks)


async def test_an_upgrade_owns_the_connection(port: int) -> None:
    got = await talk(port, b"GET /up HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\nhello", until=b"HELLO")
    assert got.startswith(b"HTTP/1.1 101 ") and got.endswith(b"\r\n\r\nHELLO")
    got = await talk(port, b"GET /echo HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 ")


async def test_a_certificate_of_an_unknown_authority_does_not_end_the_handshake(tmp_path: Path) -> None:
    ours, theirs = pki.ensure(tmp_path / "a"), pki.ensure(tmp_path / "b")
    context = http.ssl_context(str(ours.apiserver.cert_path), str(ours.apiserver.key_path), ours.ca.cert)
    listening = await http.serve(application, "127.0.0.1", 0, context)
    try:
        for pair in (None, theirs.clients["admin"], ours.clients["admin"]):
            client = ssl.create_default_context(cadata=ours.ca.cert.decode())
            client.check_hostname = False
            if pair is not None:
                client.load_cert_chain(str(pair.cert_path), str(pair.key_path))
            got = await talk(listening.port, b"GET /who HTTP/1.1\r\nConnection: close\r\n\r\n", tls=client)
            assert got.endswith(b"cert" if pair else b"none")
    finally:
        await listening.close(0.5)
