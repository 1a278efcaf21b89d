"""SPDY/3.1: frames, header compression and a session of streams, as the Kubernetes streaming protocols use it.

SPDY/3 draft 3.1 (sections 2.2, 2.6). Flow control is not kept, as the implementations it talks to (moby/spdystream) do not keep it
either; instead a stream that is not read stops the reading of its whole session. Server push and settings are ignored.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Mapping

from kubern.model.request import Stream

WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length content-location "
    "content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match "
    "if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range "
    "referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get "
    "status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin "
)
TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Informat"
    "ion204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error"
    "501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, "
    "Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/"
    "javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
# section 2.6.10.1: the words with their lengths in front ("_" stands for a space), then frequent values
DICTIONARY = b"".join(struct.pack(">I", len(w)) + w.replace("_", " ").encode() for w in WORDS.split()) + TAIL.encode()

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 1
PROTOCOL_ERROR, INVALID_STREAM, REFUSED_STREAM, CANCEL, STREAM_CLOSED = 1, 2, 3, 5, 9
DATA_BYTES_MAX = 32768
QUEUE_FRAMES_MAX = 64
FRAME_BYTES_MAX = 1 << 20
STREAMS_MAX = 4096


class SpdyStream:
    """One stream of a session: a Stream with headers whose two directions end separately."""

    def __init__(self, session: Session, id_: int, headers: Mapping[str, str]) -> None:
        self.session, self.id, self.headers = session, id_, headers
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_FRAMES_MAX)
        self._rest = b""
        self._ended = self._sent_fin = False
        self.replied = asyncio.Event()

    async def read(self, n: int = 65536) -> bytes:
        """Bytes, or b"" after the peer's FIN or a reset."""
        if not self._rest:
            if self._ended:
                return b""
            self._rest = await self._queue.get()
            if not self._rest:
                self._ended = True
                return b""
        out, self._rest = self._rest[:n], self._rest[n:]
        return out

    async def read_all(self, limit: int = 1 << 20) -> bytes:
        parts, size = [], 0
        while size < limit and (data := await self.read()):
            parts.append(data)
            size += len(data)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        if self._sent_fin:
            raise ConnectionError("the stream is closed for writing")
        for at in range(0, len(data), DATA_BYTES_MAX):
            await self.session.send(data_frame(self.id, data[at:at + DATA_BYTES_MAX]))

    async def finish(self) -> None:
        """No more is written: FIN."""
        if not self._sent_fin:
            self._sent_fin = True
            await self.session.send(data_frame(self.id, b"", fin=True))

    async def close(self) -> None:
        await self.finish()

    async def reset(self, code: int = CANCEL) -> None:
        self._sent_fin = True
        self.session.streams.pop(self.id, None)
        await self.session.send(control_frame(RST_STREAM, 0, struct.pack(">II", self.id, code)))

    async def deliver(self, data: bytes) -> None:
        if not self._ended:
            await self._queue.put(data)

    def cut(self) -> None:
        """The session is over: readers see the end, after what is still queued."""
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(b"")
        self._sent_fin = True


def data_frame(stream: int, data: bytes, fin: bool = False) -> bytes:
    return struct.pack(">II", stream, (FIN << 24 if fin else 0) | len(data)) + data


def control_frame(type_: int, flags: int, body: bytes) -> bytes:
    return struct.pack(">HHI", 0x8003, type_, flags << 24 | len(body)) + body


def name_values(headers: Mapping[str, str]) -> bytes:
    out = [struct.pack(">I", len(headers))]
    for k, v in headers.items():
        for text in (k.lower().encode(), v.encode()):
            out.append(struct.pack(">I", len(text)))
            out.append(text)
    return b"".join(out)


def parse_name_values(data: bytes) -> dict[str, str]:
    """Names and values; of repeated values (NUL-separated) the first. Raises ValueError."""
    out: dict[str, str] = {}
    try:
        (count,) = struct.unpack_from(">I", data)
        at = 4
        if count > 1000:
            raise ValueError("too many headers")
        for _ in range(count):
            pair = []
            for _ in range(2):
                (n,) = struct.unpack_from(">I", data, at)
                if at + 4 + n > len(data):
                    raise ValueError("headers are cut off")
                pair.append(data[at + 4:at + 4 + n].decode())
                at += 4 + n
            out[pair[0].lower()] = pair[1].split("\0", 1)[0]
    except struct.error as e:
        raise ValueError("headers are cut off") from e
    return out


class Session:
    """One SPDY connection over a Stream. `run()` reads it until its end; streams the peer opens come from `accept()`."""

    def __init__(self, stream: Stream, *, server: bool, first: bytes = b"") -> None:
        self._stream, self._buffer = stream, bytearray(first)
        self.server = server
        self._next = 2 if server else 1
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, 15, 8, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self.streams: dict[int, SpdyStream] = {}
        self._accepted: asyncio.Queue[SpdyStream | None] = asyncio.Queue(STREAMS_MAX)
        self._lock = asyncio.Lock()
        self.closed = False

    async def send(self, data: bytes) -> None:
        if self.closed:
            raise ConnectionError("the session is closed")
        async with self._lock:
            await self._stream.write(data)

    def _pack(self, headers: Mapping[str, str]) -> bytes:
        return self._deflate.compress(name_values(headers)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    async def open(self, headers: Mapping[str, str], fin: bool = False) -> SpdyStream:
        async with self._lock:                       # ids and the compressor's state must go out in order
            id_ = self._next
            self._next += 2
            stream = self.streams[id_] = SpdyStream(self, id_, headers)
            await self._stream.write(control_frame(SYN_STREAM, FIN if fin else 0, struct.pack(">IIBB", id_, 0, 0, 0) + self._pack(headers)))
        return stream

    async def accept(self) -> SpdyStream | None:
        """The next stream the peer opened (already acknowledged), None at the end."""
        return await self._accepted.get()

    async def _read(self, n: int) -> bytes:
        while len(self._buffer) < n:
            data = await self._stream.read(65536)
            if not data:
                raise EOFError
            self._buffer += data
        out = bytes(self._buffer[:n])
        del self._buffer[:n]
        return out

    async def run(self) -> None:
        """Reads frames until the connection ends or breaks."""
        try:
            while True:
                head = await self._read(8)
                word, rest = struct.unpack(">II", head)
                flags, size = rest >> 24, rest & 0xFFFFFF
                if size > FRAME_BYTES_MAX:
                    raise ValueError("frame too large")
                body = await self._read(size)
                if word >> 31:
                    await self._control(word & 0xFFFF, flags, body, head)
                else:
                    await self._data(word, flags, body)
        except (EOFError, ConnectionError, OSError, ValueError, struct.error, zlib.error):
            pass
        finally:
            self.closed = True
            for s in list(self.streams.values()):
                s.cut()
                s.replied.set()
            self.streams.clear()
            if self._accepted.full():
                self._accepted.get_nowait()
            self._accepted.put_nowait(None)

    async def _data(self, id_: int, flags: int, body: bytes) -> None:
        stream = self.streams.get(id_)
        if stream is None:
            return
        if body:
            await stream.deliver(body)
        if flags & FIN:
            await stream.deliver(b"")

    async def _control(self, type_: int, flags: int, body: bytes, head: bytes) -> None:
        if type_ == SYN_STREAM:
            (id_,) = struct.unpack_from(">I", body)
            headers = parse_name_values(self._inflate.decompress(body[10:], FRAME_BYTES_MAX))
            if len(self.streams) >= STREAMS_MAX or self._accepted.full():
                await self.send(control_frame(RST_STREAM, 0, struct.pack(">II", id_, REFUSED_STREAM)))
                return
            stream = self.streams[id_] = SpdyStream(self, id_, headers)
            async with self._lock:
                await self._stream.write(control_frame(SYN_REPLY, 0, struct.pack(">I", id_) + self._pack({})))
            if flags & FIN:
                await stream.deliver(b"")
            self._accepted.put_nowait(stream)
        elif type_ == SYN_REPLY:
            (id_,) = struct.unpack_from(">I", body)
            self._inflate.decompress(body[4:], FRAME_BYTES_MAX)
            if id_ in self.streams:
                self.streams[id_].replied.set()
        elif type_ == HEADERS:
            self._inflate.decompress(body[4:], FRAME_BYTES_MAX)
        elif type_ == RST_STREAM:
            (id_,) = struct.unpack_from(">I", body)
            gone = self.streams.pop(id_, None)
            if gone is not None:
                gone.replied.set()
                await gone.deliver(b"")
        elif type_ == PING:
            await self.send(head + body)
        elif type_ == GOAWAY:
            raise EOFError

    async def close(self) -> None:
        if not self.closed:
            try:
                await self.send(control_frame(GOAWAY, 0, struct.pack(">II", 0, 0)))
            except (ConnectionError, OSError):
                pass
        await self._stream.close()
