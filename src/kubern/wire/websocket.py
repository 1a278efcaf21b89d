"""WebSocket: handshake, frames, and a connection over any Stream (RFC 6455). No extensions, no compression.

`WebSocket.receive()` gives whole messages, answers pings and closes; `send` writes one frame. Both ends: a client masks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from collections.abc import Iterable

from kubern.model.request import Request, Stream

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MESSAGE_BYTES_MAX = 32 << 20
READ_BYTES = 65536


class ProtocolError(Exception):
    """The peer broke the protocol; the connection is of no use any more."""


def accept_key(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


def is_upgrade(request: Request) -> bool:
    """A client that wants a WebSocket."""
    return request.headers.get("upgrade", "").lower() == "websocket" and "upgrade" in request.headers.get("connection", "").lower()


def offered(request: Request) -> list[str]:
    """The subprotocols the client offers, best first."""
    return [p.strip() for p in request.headers.get("sec-websocket-protocol", "").split(",") if p.strip()]


def choose(request: Request, supported: Iterable[str]) -> str | None:
    """The first offered subprotocol we speak, "" if none was offered, None if none of those offered fits."""
    asked = offered(request)
    if not asked:
        return ""
    known = set(supported)
    return next((p for p in asked if p in known), None)


def answer_headers(request: Request, protocol: str = "") -> list[tuple[str, str]]:
    """Headers of the 101 that accepts this request."""
    out = [("Upgrade", "websocket"), ("Connection", "Upgrade"),
           ("Sec-WebSocket-Accept", accept_key(request.headers.get("sec-websocket-key", "")))]
    if protocol:
        out.append(("Sec-WebSocket-Protocol", protocol))
    return out


def mask(data: bytes, key: bytes) -> bytes:
    """XOR with a repeated 4-byte key, by one big-integer operation."""
    n = len(data)
    if not n:
        return b""
    pad = (key * (n // 4 + 1))[:n]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pad, "little")).to_bytes(n, "little")


def frame(opcode: int, payload: bytes, client: bool = False) -> bytes:
    n = len(payload)
    flag = 0x80 if client else 0
    if n < 126:
        head = struct.pack("!BB", 0x80 | opcode, flag | n)
    elif n < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, flag | 126, n)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, flag | 127, n)
    if client:
        key = os.urandom(4)
        return head + key + mask(payload, key)
    return head + payload


class WebSocket:
    """One connection. receive() from one task, send() from any."""

    def __init__(self, stream: Stream, *, client: bool = False, first: bytes = b"") -> None:
        self._stream, self._client, self._buffer = stream, client, bytearray(first)
        self._closing = False
        self._lock = asyncio.Lock()

    async def _need(self, n: int) -> bool:
        while len(self._buffer) < n:
            data = await self._stream.read(READ_BYTES)
            if not data:
                return False
            self._buffer += data
        return True

    async def _frame(self) -> tuple[bool, int, bytes] | None:
        if not await self._need(2):
            return None
        b0, b1 = self._buffer[0], self._buffer[1]
        if b0 & 0x70:
            raise ProtocolError("reserved bits are set")
        masked, n, at = bool(b1 & 0x80), b1 & 0x7F, 2
        if n >= 126:
            size = 2 if n == 126 else 8
            if not await self._need(at + size):
                return None
            n = int.from_bytes(self._buffer[at:at + size], "big")
            at += size
        if n > MESSAGE_BYTES_MAX:
            raise ProtocolError("message too large")
        if masked == self._client:
            raise ProtocolError("wrong masking")
        key = b""
        if masked:
            if not await self._need(at + 4):
                return None
            key = bytes(self._buffer[at:at + 4])
            at += 4
        if not await self._need(at + n):
            return None
        payload = bytes(self._buffer[at:at + n])
        del self._buffer[:at + n]
        return bool(b0 & 0x80), b0 & 0x0F, mask(payload, key) if masked else payload

    async def receive(self) -> tuple[int, bytes] | None:
        """(TEXT | BINARY, message), None at the end."""
        parts: list[bytes] = []
        kind = 0
        size = 0
        while True:
            got = await self._frame()
            if got is None:
                return None
            last, opcode, payload = got
            if opcode == PING:
                await self._write(frame(PONG, payload, self._client))
                continue
            if opcode == PONG:
                continue
            if opcode == CLOSE:
                await self.close(payload=payload[:2])
                return None
            if opcode in (TEXT, BINARY):
                if parts:
                    raise ProtocolError("a message inside a message")
                kind = opcode
            elif opcode != CONTINUATION or not kind:
                raise ProtocolError(f"unexpected opcode {opcode}")
            parts.append(payload)
            size += len(payload)
            if size > MESSAGE_BYTES_MAX:
                raise ProtocolError("message too large")
            if last:
                return kind, b"".join(parts)

    async def _write(self, data: bytes) -> None:
        async with self._lock:
            await self._stream.write(data)

    async def send(self, payload: bytes, opcode: int = BINARY) -> None:
        if not self._closing:
            await self._write(frame(opcode, payload, self._client))

    async def ping(self) -> None:
        await self.send(b"", PING)

    async def close(self, code: int = 1000, payload: bytes | None = None) -> None:
        """Says goodbye once; the stream is closed by whoever owns it."""
        if self._closing:
            return
        self._closing = True
        try:
            await self._write(frame(CLOSE, struct.pack("!H", code) if payload is None else payload, self._client))
        except (ConnectionError, OSError):
            pass


class MessageStream:
    """The payloads of binary messages as one byte stream: what a protocol tunnelled in WebSocket sees."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket, self._rest = socket, b""

    async def read(self, n: int = READ_BYTES) -> bytes:
        while not self._rest:
            got = await self._socket.receive()
            if got is None:
                return b""
            self._rest = got[1]
        out, self._rest = self._rest[:n], self._rest[n:]
        return out

    async def write(self, data: bytes) -> None:
        await self._socket.send(data)

    async def close(self) -> None:
        await self._socket.close()
