"""SPDY/3.1: the dictionary of the draft, and two ends of a session over a pair of connected streams."""

from __future__ import annotations

import asyncio
import zlib

import pytest

from kubern.wire import spdy


class Pipe:
    """One end of a connected pair; closing either ends both, as a socket does."""

    def __init__(self, into: asyncio.Queue[bytes], out: asyncio.Queue[bytes]) -> None:
        self._into, self._out = into, out

    async def read(self, n: int = 65536) -> bytes:
        data = await self._into.get()
        if not data:
            self._into.put_nowait(b"")
        return data

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), 1000):                    # frames arrive in pieces
            await self._out.put(data[at:at + 1000])

    async def close(self) -> None:
        self._out.put_nowait(b"")
        self._into.put_nowait(b"")


def pair() -> tuple[Pipe, Pipe]:
    a: asyncio.Queue[bytes] = asyncio.Queue()
    b: asyncio.Queue[bytes] = asyncio.Queue()
    return Pipe(a, b), Pipe(b, a)


def test_dictionary_is_that_of_the_draft() -> None:
    assert len(spdy.DICTIONARY) == 1423
    assert zlib.adler32(spdy.DICTIONARY) == 0xE3C6A7C2             # the Adler-32 the draft's header compression shows on the wire
    assert spdy.DICTIONARY.startswith(b"\0\0\0\x07options\0\0\0\x04head")


def test_headers_round_trip_and_lower_case() -> None:
    assert spdy.parse_name_values(spdy.name_values({"StreamType": "error", "port": "80"})) == {"streamtype": "error", "port": "80"}


@pytest.mark.parametrize("data", [b"", b"\0\0\0\x01", b"\0\0\0\x01\0\0\0\xffab", b"\xff\xff\xff\xff"])
def test_broken_headers_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        spdy.parse_name_values(data)


async def test_streams_carry_data_both_ways_and_end_separately() -> None:
    left, right = pair()
    client, server = spdy.Session(left, server=False), spdy.Session(right, server=True)
    tasks = [asyncio.create_task(client.run()), asyncio.create_task(server.run())]
    one = await client.open({"streamtype": "stdin"})
    two = await client.open({"streamtype": "stdout"})
    seen_one, seen_two = await server.accept(), await server.accept()
    assert seen_one is not None and seen_two is not None
    assert (seen_one.headers, seen_two.headers) == ({"streamtype": "stdin"}, {"streamtype": "stdout"})
    data = bytes(range(256)) * 400
    await one.write(data)
    await one.finish()
    assert await seen_one.read_all() == data
    await seen_two.write(b"answer")
    assert await two.read() == b"answer"
    await seen_two.finish()
    assert await two.read() == b""
    with pytest.raises(ConnectionError):
        await one.write(b"after the end")
    await client.close()
    await asyncio.gather(*tasks)
    assert await server.accept() is None


async def test_end_of_the_connection_ends_every_stream() -> None:
    left, right = pair()
    client, server = spdy.Session(left, server=False), spdy.Session(right, server=True)
    tasks = [asyncio.create_task(client.run()), asyncio.create_task(server.run())]
    stream = await client.open({"streamtype": "stdout"})
    reading = asyncio.create_task(stream.read())
    await server.accept()
    await right.close()
    assert await reading == b""
    await asyncio.gather(*tasks)


async def test_oversized_frame_ends_the_session() -> None:
    left, right = pair()
    server = spdy.Session(right, server=True)
    task = asyncio.create_task(server.run())
    await left.write(b"\x80\x03\x00\x01\x00\xff\xff\xff")
    await task
    assert server.closed
