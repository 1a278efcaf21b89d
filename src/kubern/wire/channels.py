"""Remote commands and port forwards over WebSocket channels, and their counterparts over SPDY streams.

v5/v4.channel.k8s.io: each binary message begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 error (a Status), 4 resize; v5 adds
255 + channel: that channel is closed. base64.channel.k8s.io and v4.base64.channel.k8s.io are the same in text, the channel a digit.
Port forwards have two channels a port: data and error, each begun by the port as two little-endian bytes.
Upstream: apiserver pkg/util/wsstream, apimachinery pkg/util/remotecommand, kubelet pkg/cri/streaming; KEP-4006.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import orjson

from kubern.model.request import Stream
from kubern.wire import websocket
from kubern.wire.spdy import Session, SpdyStream

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSED = 0, 1, 2, 3, 4, 255
V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
COMMAND_PROTOCOLS = (V5, V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", "v4.base64.channel.k8s.io", "base64.channel.k8s.io")
FORWARD_PROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")
READER_PROTOCOLS = ("binary.k8s.io", "base64.binary.k8s.io")
TUNNEL = "SPDY/3.1+portforward.k8s.io"
SPDY_COMMAND_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
CHUNK_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which streams a command has."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    tty: bool = False


class Channels:
    """A WebSocket as numbered channels."""

    def __init__(self, socket: websocket.WebSocket, protocol: str) -> None:
        self.socket, self.protocol = socket, protocol
        self.text = "base64" in protocol
        self.closes = protocol == V5
        self.only_failures = protocol.removeprefix("base64.") in ("", "channel.k8s.io")

    async def receive(self) -> tuple[int, bytes] | None:
        """(channel, data); (CLOSED, channel) for the end of a channel in v5. None at the end."""
        while True:
            got = await self.socket.receive()
            if got is None:
                return None
            data = got[1]
            if not data:
                continue
            if self.text:
                try:
                    return data[0] - 48, base64.b64decode(data[1:], validate=False)
                except binascii.Error:
                    raise websocket.ProtocolError("bad base64") from None
            return data[0], data[1:]

    async def send(self, channel: int, data: bytes) -> None:
        if self.text:
            await self.socket.send(bytes([48 + channel]) + base64.b64encode(data), websocket.TEXT)
        else:
            await self.socket.send(bytes([channel]) + data)


    def verdict(self, status: bytes) -> bytes:
        """How a command ended: a Status; in the oldest protocol the words of a failure, and nothing of a success."""
        if not self.only_failures:
            return status or b'{"metadata":{},"status":"Success"}'
        try:
            told = orjson.loads(status or b"{}")
        except orjson.JSONDecodeError:
            return status
        return b"" if told.get("status", "Success") == "Success" else str(told.get("message") or "").encode()


async def command(client: Channels, runtime: Session, wanted: Wanted) -> None:
    """Carries a command between a WebSocket client and a runtime that speaks SPDY, to its end; the last word is the Status on ERROR."""
    error = await runtime.open({"streamtype": "error"})
    stdin = await runtime.open({"streamtype": "stdin"}) if wanted.stdin else None
    stdout = await runtime.open({"streamtype": "stdout"}) if wanted.stdout else None
    stderr = await runtime.open({"streamtype": "stderr"}) if wanted.stderr and not wanted.tty else None
    resize = await runtime.open({"streamtype": "resize"}) if wanted.tty else None
    reading = asyncio.create_task(runtime.run())

    async def out(stream: SpdyStream | None, channel: int) -> None:
        if stream is None:
            return
        await client.send(channel, b"")
        while data := await stream.read(CHUNK_BYTES):
            await client.send(channel, data)

    async def into() -> None:
        """What the client sends, until it goes away."""
        while (got := await client.receive()) is not None:
            channel, data = got
            with contextlib.suppress(ConnectionError):
                if channel == STDIN and stdin is not None:
                    await stdin.write(data)
                elif channel == RESIZE and resize is not None:
                    await resize.write(data)
                elif channel == CLOSED and client.closes and data[:1] == bytes([STDIN]) and stdin is not None:
                    await stdin.finish()

    async def outputs() -> None:
        await asyncio.gather(out(stdout, STDOUT), out(stderr, STDERR))
        status = await error.read_all()
        await client.send(ERROR, client.verdict(status))

    listening, writing = asyncio.create_task(into()), asyncio.create_task(outputs())
    try:
        await asyncio.wait([listening, writing], return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            await asyncio.sleep(0)
        elif writing.exception() is None:
            await client.socket.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await listening
    finally:
        for t in (listening, writing, reading):
            t.cancel()
        await asyncio.gather(listening, writing, reading, return_exceptions=True)
        await runtime.close()


async def forward(client: Channels, runtime: Session, ports: Sequence[int]) -> None:
    """The older port forward over WebSocket: two channels a port, to a runtime that speaks SPDY."""
    reading = asyncio.create_task(runtime.run())
    streams: dict[int, SpdyStream] = {}
    jobs: list[asyncio.Task[None]] = []

    async def out(stream: SpdyStream, channel: int) -> None:
        while data := await stream.read(CHUNK_BYTES):
            await client.send(channel, data)

    try:
        for i, port in enumerate(ports):
            headers = {"port": str(port), "requestid": str(i)}
            error = await runtime.open({**headers, "streamtype": "error"})
            data = await runtime.open({**headers, "streamtype": "data"})
            await error.finish()
            streams[2 * i] = data
            mark = struct.pack("<H", port)
            await client.send(2 * i, mark)
            await client.send(2 * i + 1, mark)
            jobs += [asyncio.create_task(out(data, 2 * i)), asyncio.create_task(out(error, 2 * i + 1))]
        while (got := await client.receive()) is not None:
            stream = streams.get(got[0])
            if stream is not None:
                await stream.write(got[1])
    finally:
        for t in (*jobs, reading):
            t.cancel()
        await asyncio.gather(*jobs, reading, return_exceptions=True)
        await runtime.close()


async def read_out(source: AsyncIterator[bytes], raw: Stream, protocol: str) -> None:
    """A log over WebSocket: its bytes as messages, binary or base64 text, then the end. Upstream: wsstream Reader."""
    socket = websocket.WebSocket(raw)
    listening = asyncio.create_task(_drain(socket))
    try:
        async for chunk in source:
            if listening.done():
                return
            for at in range(0, len(chunk), CHUNK_BYTES):
                part = chunk[at:at + CHUNK_BYTES]
                if protocol.startswith("base64"):
                    await socket.send(base64.b64encode(part), websocket.TEXT)
                else:
                    await socket.send(part)
        await socket.close()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await raw.close()


async def _drain(socket: websocket.WebSocket) -> None:
    """Until the client goes away."""
    while await socket.receive() is not None:
        pass


def as_bytes(socket: websocket.WebSocket) -> Stream:
    """A tunnelled protocol's byte stream."""
    return websocket.MessageStream(socket)
