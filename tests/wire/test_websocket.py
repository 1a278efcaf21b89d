"""WebSocket frames and messages, and the channel protocols over them."""

from __future__ import annotations

import asyncio

import pytest

from kubern.model.request import Request
from kubern.wire import channels, websocket
from kubern.wire.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, ProtocolError, WebSocket, frame


class Script:
    """A stream that reads a script and remembers what was written."""

    def __init__(self, data: bytes, step: int = 7) -> None:
        self.data, self.step, self.written, self.closed = data, step, b"", False

    async def read(self, n: int = 65536) -> bytes:
        out, self.data = self.data[:self.step], self.data[self.step:]
        return out

    async def write(self, data: bytes) -> None:
        self.written += data

    async def close(self) -> None:
        self.closed = True


def test_accept_key_of_the_rfc() -> None:
    assert websocket.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70001])
async def test_messages_of_every_length_class(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    s = WebSocket(Script(frame(BINARY, payload, client=True), 4096))
    assert await s.receive() == (BINARY, payload)
    assert await s.receive() is None


async def test_fragments_with_a_ping_between() -> None:
    first = bytearray(frame(TEXT, b"ab", client=True))
    first[0] &= 0x7F                                              # not the last fragment
    data = bytes(first) + frame(PING, b"x", client=True) + frame(CONTINUATION, b"cd", client=True)
    script = Script(data)
    s = WebSocket(script)
    assert await s.receive() == (TEXT, b"abcd")
    assert script.written == frame(PONG, b"x")


async def test_close_is_answered_once() -> None:
    script = Script(frame(CLOSE, b"\x03\xe8", client=True))
    s = WebSocket(script)
    assert await s.receive() is None
    await s.close()
    assert script.written == frame(CLOSE, b"\x03\xe8")


@pytest.mark.parametrize("data", [
    frame(BINARY, b"not masked"), b"\xc2\x80\0\0\0\0", b"\x82\xff" + b"\x7f" + b"\xff" * 7, frame(CONTINUATION, b"x", client=True),
], ids=["not masked", "reserved bits", "endless", "continues nothing"])       # masks are random, names of tests must not be
async def test_broken_frames_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        await WebSocket(Script(data)).receive()


def test_choice_of_the_protocol() -> None:
    def ask(value: str) -> Request:
        return Request("GET", "/", headers={"sec-websocket-protocol": value} if value else {})
    assert websocket.choose(ask("v5.channel.k8s.io, v4.channel.k8s.io"), channels.COMMAND_PROTOCOLS) == "v5.channel.k8s.io"
    assert websocket.choose(ask("nope, v4.channel.k8s.io"), channels.COMMAND_PROTOCOLS) == "v4.channel.k8s.io"
    assert websocket.choose(ask("nope"), channels.COMMAND_PROTOCOLS) is None
    assert websocket.choose(ask(""), channels.COMMAND_PROTOCOLS) == ""


async def test_channels_in_binary_and_base64() -> None:
    script = Script(frame(BINARY, b"\x00in", client=True) + frame(BINARY, b"\xff\x00", client=True))
    c = channels.Channels(WebSocket(script), channels.V5)
    assert await c.receive() == (0, b"in")
    assert await c.receive() == (channels.CLOSED, b"\0")
    await c.send(channels.STDOUT, b"out")
    assert script.written == frame(BINARY, b"\x01out")
    script = Script(frame(TEXT, b"0aW4=", client=True))
    c = channels.Channels(WebSocket(script), "base64.channel.k8s.io")
    assert await c.receive() == (0, b"in")
    await c.send(channels.STDERR, b"e")
    assert script.written == frame(TEXT, b"2ZQ==")


def test_the_oldest_protocol_tells_failures_only() -> None:
    failed = b'{"status":"Failure","message":"command terminated with non-zero exit code"}'
    old = channels.Channels(WebSocket(Script(b"")), "channel.k8s.io")
    assert old.verdict(b"") == b"" and old.verdict(failed) == b"command terminated with non-zero exit code"
    new = channels.Channels(WebSocket(Script(b"")), channels.V4)
    assert new.verdict(b"") == b'{"metadata":{},"status":"Success"}' and new.verdict(failed) == failed


async def test_tunnelled_bytes_are_one_stream() -> None:
    script = Script(frame(BINARY, b"abc", client=True) + frame(BINARY, b"def", client=True))
    s = websocket.MessageStream(WebSocket(script))
    assert await s.read(2) + await s.read(2) + await s.read(9) == b"abcdef"
    assert await s.read() == b""


async def test_mask_is_its_own_inverse() -> None:
    await asyncio.sleep(0)
    for n in range(9):
        data = bytes(range(n))
        assert websocket.mask(websocket.mask(data, b"\x01\x02\x03\x04"), b"\x01\x02\x03\x04") == data
