"""Byte streams: the Stream of a raw connection after an upgrade, dialling one, and splicing two.

In and out: bytes. Every buffer is bounded: a slow peer stops the reader of the other side.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

from kubern.model.request import Stream

CHUNK_BYTES = 65536
HEAD_BYTES_MAX = 65536


class UpgradeRefused(Exception):
    """The peer answered an upgrade with something else than 101."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        super().__init__(f"upgrade refused: {status} {body[:200].decode(errors='replace')}")
        self.status, self.headers, self.body = status, headers, body


class SocketStream:
    """A Stream over asyncio's reader and writer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b"") -> None:
        self._reader, self._writer, self._first = reader, writer, first

    async def read(self, n: int = CHUNK_BYTES) -> bytes:
        if self._first:
            out, self._first = self._first[:n], self._first[n:]
            return out
        try:
            return await self._reader.read(n)
        except (ConnectionError, ssl.SSLError, OSError):
            return b""

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except (ConnectionError, ssl.SSLError, OSError):
            pass


async def dial(host: str, port: int, ssl_context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> SocketStream:
    reader, writer = await asyncio.open_connection(host, port, ssl=ssl_context, server_hostname=server_hostname, limit=4 * CHUNK_BYTES)
    return SocketStream(reader, writer)


async def upgrade(stream: Stream, method: str, target: str, headers: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], bytes]:
    """Sends an upgrade request on a fresh connection: (headers of the 101, bytes that came after it). Raises UpgradeRefused."""
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers)
    await stream.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        more = await stream.read()
        if not more or len(data) > HEAD_BYTES_MAX:
            raise UpgradeRefused(502, [], b"the connection was closed before an answer came")
        data += more
    head, rest = data[:end].decode("latin-1").split("\r\n"), data[end + 4:]
    status = int(head[0].split(" ", 2)[1])
    answer = [(k.strip().lower(), v.strip()) for k, _, v in (line.partition(":") for line in head[1:])]
    if status != 101:
        length = int(dict(answer).get("content-length") or 0)
        while len(rest) < min(length, HEAD_BYTES_MAX) and (more := await stream.read()):
            rest += more
        raise UpgradeRefused(status, answer, rest)
    return answer, rest


async def splice(a: Stream, b: Stream) -> None:
    """Carries bytes both ways until either side ends; closes both."""

    async def one_way(source: Stream, sink: Stream) -> None:
        try:
            while data := await source.read(CHUNK_BYTES):
                await sink.write(data)
        except (ConnectionError, OSError):
            pass

    tasks = [asyncio.create_task(one_way(a, b)), asyncio.create_task(one_way(b, a))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await a.close()
        await b.close()


class Prefixed:
    """A Stream with bytes that were read too early put back in front."""

    def __init__(self, first: bytes, stream: Stream) -> None:
        self._first, self._stream = first, stream

    async def read(self, n: int = CHUNK_BYTES) -> bytes:
        if self._first:
            out, self._first = self._first[:n], self._first[n:]
            return out
        return await self._stream.read(n)

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close(self) -> None:
        await self._stream.close()
