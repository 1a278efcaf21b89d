"""HTTP: HTTP/1.1 over TLS on asyncio, for `handle`. Turns bytes into Requests and Responses into bytes, nothing else.

Own protocol because the application needs what no application server hands it: the client's certificate, raw upgrades, and watches
whose bytes are made once for many connections. Keep-alive, pipelining, chunked bodies both ways, Expect, HEAD, gzip of large bodies,
limits on everything a client can send, timeouts for those who send it slowly, and a drain at the end.
RFC 9110, RFC 9112; httptools (llhttp) parses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from typing import Any, cast
from urllib.parse import parse_qs, unquote

import httptools
import orjson

from kubern.api.watch import Watch
from kubern.model.request import Request, Response
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

HEADERS_MAX_BYTES = 1024 * 1024
HEADERS_MAX = 512
PARAMETERS_MAX = 1000
BODY_MAX_BYTES = 3 * 1024 * 1024
PIPELINE_MAX = 32                        # requests read ahead on one connection before it is no longer read
WATCH_BUFFER_MAX_BYTES = 16 * 1024 * 1024   # unsent bytes at which a watcher counts as too slow
INTERMEDIATES_MAX = 5
WRITE_HIGH_BYTES = 256 * 1024
WRITE_SLICE_BYTES = 128 * 1024
LARGE_BYTES = 512 * 1024                 # bodies from this size on are written as the client reads them
STREAM_BUFFER_MAX_BYTES = 256 * 1024
HANDSHAKE_TIMEOUT_S = 10.0
HEAD_TIMEOUT_S = 30.0                    # from the first byte of a request to the end of its headers
BODY_TIMEOUT_S = 60.0
STALLED_S = 60.0                         # for a quarter of a megabyte of a large body
IDLE_TIMEOUT_S = 300.0
SWEEP_EVERY_S = 5.0
LINGER_S = 0.5
DRAIN_S = 10.0
GZIP_FROM_BYTES = 128 * 1024
REPEATED = ("impersonate-group", "impersonate-uid", "x-remote-user", "x-remote-group", "x-stream-protocol-version")
REPEATED_PREFIXES = ("impersonate-extra-", "x-remote-extra-")
REASONS = {
    100: "Continue", 101: "Switching Protocols", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 301: "Moved Permanently",
    302: "Found", 304: "Not Modified", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 409: "Conflict", 410: "Gone", 413: "Request Entity Too Large",
    415: "Unsupported Media Type", 422: "Unprocessable Entity", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}

_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE"))
_KNOWN_STARTS = frozenset((b"GET ", b"POST", b"PUT ", b"PATC", b"DELE", b"HEAD"))
_METHOD = re.compile(rb"([A-Za-z]{1,32}) /")

Handle = Callable[[Request], Awaitable[Response]]
Fast = Callable[[Request], "Response | None"]

_status_lines = {code: f"HTTP/1.1 {code} {reason}\r\n".encode() for code, reason in REASONS.items()}
_date: tuple[int, bytes] = (0, b"")


def _date_header() -> bytes:
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, b"Date: " + formatdate(now, usegmt=True).encode() + b"\r\n")
    return _date[1]


def head_bytes(status: int, headers: list[tuple[str, str]]) -> bytes:
    """Status line and headers, without the empty line that ends them."""
    line = _status_lines.get(status) or f"HTTP/1.1 {status} \r\n".encode()
    text = "".join([f"{k}: {v}\r\n" for k, v in headers])
    try:
        encoded = text.encode("latin-1")
    except UnicodeEncodeError:
        encoded = text.encode()
    return line + encoded + _date_header()


class _Sink:
    """A watch's way out on one connection."""

    def __init__(self, connection: Connection, chunked: bool) -> None:
        self._c, self._chunked = connection, chunked

    def write(self, payload: bytes, framed: bytes) -> bool:
        transport = self._c.transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > WATCH_BUFFER_MAX_BYTES:
            transport.abort()
            return False
        transport.write(framed if self._chunked else payload)
        return True

    async def drain(self) -> None:
        await self._c.drain()

    def finish(self) -> None:
        self._c.watch_finished(self._chunked)


class _Raw:
    """The Stream of a connection after 101."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._eof = False
        self._wake: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size > STREAM_BUFFER_MAX_BYTES:
            self._c.pause_reading()
        self._notify()

    def feed_eof(self) -> None:
        self._eof = True
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def read(self, n: int = 65536) -> bytes:
        while not self._chunks:
            if self._eof:
                return b""
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        chunk = self._chunks.popleft()
        if len(chunk) > n:
            self._chunks.appendleft(chunk[n:])
            chunk = chunk[:n]
        self._size -= len(chunk)
        if self._size <= STREAM_BUFFER_MAX_BYTES // 2:
            self._c.resume_reading()
        return chunk

    async def write(self, data: bytes) -> None:
        transport = self._c.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        transport.write(data)
        await self._c.drain()

    async def close(self) -> None:
        if self._c.transport is not None:
            self._c.transport.close()


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, listening: Listening) -> None:
        self.listening = listening
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.local_peer = False
        self.certificate: bytes | None = None
        self.intermediates: tuple[bytes, ...] = ()
        self._parser: Any = None
        self._url = b""
        self._method = ""
        self._headers: dict[str, str] = {}
        self._repeated: dict[str, list[str]] = {}
        self._header_bytes = 0
        self._header_count = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._queue: deque[tuple[Request, bool, bool, Response | None]] = deque()     # request, keep alive, upgrade, its answer if known
        self._task: asyncio.Task[None] | None = None
        self._busy = False                       # a response is being made or written
        self._refused: StatusError | None = None
        self._raw: _Raw | None = None
        self._watch: Watch | None = None
        self._watch_keep = False
        self._upgrade_rest: bytes | None = None  # what followed a request that asked for an upgrade
        self._paused_reading = False
        self._drain: asyncio.Future[None] | None = None
        self._writable = True
        self._since = time.monotonic()           # of the state the sweep looks at
        self._state = "idle"                     # idle | head | body | busy

    # --- transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else ""
        self.local_peer = self.peer.startswith("127.") or self.peer in ("::1", "")
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            with contextlib.suppress(ValueError, ssl.SSLError):
                self.certificate = ssl_object.getpeercert(True)
                if self.certificate is not None:
                    self.intermediates = _sent_with(ssl_object, self.certificate)
        self._parser = httptools.HttpRequestParser(self)
        self.listening.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.listening.gone(self)
        self.transport = None
        if self._watch is not None:
            self._watch.end()
            self._watch = None
        if self._raw is not None:
            self._raw.feed_eof()
        elif self._task is not None:
            self._task.cancel()
        self._queue.clear()
        self.resume_writing()

    def eof_received(self) -> bool:
        if self._raw is not None:
            self._raw.feed_eof()
            return True
        return False

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        self._drain = None

    async def drain(self) -> None:
        if self._writable:
            return
        if self.transport is None:
            raise ConnectionResetError("the connection is closed")
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._drain)

    def pause_reading(self) -> None:
        if not self._paused_reading and self.transport is not None:
            self._paused_reading = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused_reading and self.transport is not None and not self.transport.is_closing():
            self._paused_reading = False
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._raw is not None:
            self._raw.feed(data)
            return
        if self._upgrade_rest is not None:
            self._upgrade_rest += data
            if len(self._upgrade_rest) > STREAM_BUFFER_MAX_BYTES:
                self.pause_reading()
            return
        if self._refused is not None:
            return                              # what follows a refused request is not read
        if self._watch is not None:
            return
        if self._state == "idle":
            self._state, self._since = "head", time.monotonic()
            self._method = ""
            if data[:4] not in _KNOWN_STARTS:
                unknown = _METHOD.match(data)
                if unknown is not None and unknown[1] not in _METHODS:
                    self._method = unknown[1].decode()       # the parser refuses methods it does not know; the application answers 405
                    data = b"SOURCE" + data[unknown.end(1):]
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._upgrade_rest = data[e.args[0]:]
        except httptools.HttpParserCallbackError as e:
            if not isinstance(e.__context__, StatusError):
                log.exception("reading a request")
            self._refuse(e.__context__ if isinstance(e.__context__, StatusError) else StatusError(400, "BadRequest", "bad request"))
        except httptools.HttpParserError as e:
            self._refuse(StatusError(400, "BadRequest", f"400 Bad Request: {e}"))

    # --- the parser's callbacks ---

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers, self._repeated = {}, {}
        self._header_bytes = self._header_count = 0
        self._body, self._body_bytes = [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._header_bytes += len(url)
        if self._header_bytes > HEADERS_MAX_BYTES:
            raise StatusError(431, "RequestHeaderFieldsTooLarge", "431 Request Header Fields Too Large")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        self._header_count += 1
        if self._header_bytes > HEADERS_MAX_BYTES or self._header_count > HEADERS_MAX:
            raise StatusError(431, "RequestHeaderFieldsTooLarge", "431 Request Header Fields Too Large")
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in REPEATED or key.startswith(REPEATED_PREFIXES):
            self._repeated.setdefault(key, []).append(text)
        if key in self._headers:
            if key in ("content-length", "host", "authorization"):
                raise StatusError(400, "BadRequest", f"400 Bad Request: repeated header {key}")
            self._headers[key] += ", " + text
        else:
            self._headers[key] = text

    def on_headers_complete(self) -> None:
        self._state, self._since = "body", time.monotonic()
        length = self._headers.get("content-length")
        if length is not None:
            if not length.isascii() or not length.isdigit():
                raise StatusError(400, "BadRequest", "400 Bad Request: Content-Length")
            if "transfer-encoding" in self._headers:
                raise StatusError(400, "BadRequest", "400 Bad Request: both Content-Length and Transfer-Encoding")
            if int(length) > BODY_MAX_BYTES:
                raise _too_large()
        if self._headers.get("expect", "").lower() == "100-continue" and self.transport is not None and not self._busy:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > BODY_MAX_BYTES:
            raise _too_large()
        self._body.append(body)

    def on_message_complete(self) -> None:
        raw = self._url
        path, _, query = raw.partition(b"?")
        text = path.decode("latin-1")
        if not text.startswith("/"):
            _, _, rest = text.partition("://")
            slash = rest.find("/")
            text = rest[slash:] if slash >= 0 else "/"
        if "%" in text:
            text = unquote(text, errors="replace")
        elif not text.isascii():
            text = path.decode("utf-8", "replace")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = Request(
            self._method or self._parser.get_method().decode(), text,
            _parameters(query) if query else {},
            self._headers, body, self.peer, self.certificate, self.intermediates, repeated=self._repeated)
        keep = self._parser.should_keep_alive()
        upgrade = "upgrade" in self._headers
        self._body = []
        response: Response | None = None
        if not self._busy and not self._queue and not upgrade:
            if self.listening.fast is not None:
                response = self.listening.fast(request)
                if response is not None and response.size < LARGE_BYTES:
                    self._state, self._since = "idle", time.monotonic()
                    self._write_whole(request, response, keep)
                    return
        self._queue.append((request, keep, upgrade, response))
        if len(self._queue) >= PIPELINE_MAX:
            self.pause_reading()
        if not self._busy:
            self._busy = True
            self._task = asyncio.get_running_loop().create_task(self._serve())

    # --- answering ---

    def _refuse(self, error: StatusError) -> None:
        """Answers a request that cannot be read, after those before it, and closes."""
        self._refused = error
        if not self._busy:
            self._write_refusal()

    def _write_refusal(self) -> None:
        if self.transport is None or self._refused is None:
            return
        body = orjson.dumps(self._refused.status())
        head = head_bytes(self._refused.code, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")])
        self.transport.write(head + b"\r\n" + body)
        # what the client still sends is read and dropped for a moment: closing at once would reset the connection under the answer
        asyncio.get_running_loop().call_later(LINGER_S, self._close)

    async def _serve(self) -> None:
        """Answers the queue in order."""
        try:
            while self._queue and self.transport is not None:
                self._state, self._since = "busy", time.monotonic()
                request, keep, upgrade, known = self._queue.popleft()
                if self._paused_reading and len(self._queue) < PIPELINE_MAX // 2:
                    self.resume_reading()
                response = known or await self.listening.handle(request)
                if self.transport is None:
                    _discard(response)
                    return
                if response.status == 101 and response.upgrade is not None:
                    await self._switch(response)
                    return
                if isinstance(response.body, Watch):
                    self._start_watch(request, response, keep)
                    return
                if isinstance(response.body, (bytes, list)):
                    await self._compress(request, response)
                    if response.size < LARGE_BYTES:
                        self._write_whole(request, response, keep and not upgrade)
                        await self.drain()
                    else:
                        await self._write_large(request, response, keep and not upgrade)
                else:
                    await self._write_stream(request, response, keep)
                if upgrade or self.transport is None or self.transport.is_closing():
                    self._close()
                    return
        except (ConnectionError, TimeoutError):
            self._close()
            return
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("answering a request")
            self._close()
            return
        finally:
            self._busy = False
            self._task = None
        if self._refused is not None:
            self._write_refusal()
        elif self._state == "busy":
            self._state, self._since = "idle", time.monotonic()
            if self.listening.closing:
                self._close()

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _head(self, request: Request, response: Response, keep: bool) -> bytes:
        """Status line and headers of an answer whose size is known."""
        if not keep or self.listening.closing:
            response.headers.append(("Connection", "close"))
        head, size = head_bytes(response.status, response.headers), response.size
        if response.status not in (204, 304) and not (request.method == "HEAD" and not size):
            return head + b"Content-Length: %d\r\n\r\n" % size
        return head + b"\r\n"

    def _write_whole(self, request: Request, response: Response, keep: bool) -> None:
        transport = self.transport
        if transport is None:
            return
        head, body = self._head(request, response, keep), response.body
        if request.method == "HEAD":
            transport.write(head)
        elif isinstance(body, list):
            transport.write(b"".join([head, *body]))
        else:
            transport.write(head + cast(bytes, body))
        if not keep or self.listening.closing:
            transport.close()

    async def _write_large(self, request: Request, response: Response, keep: bool) -> None:
        """A slice at a time, no faster than the client reads: others are answered meanwhile, and what waits for this one is bounded."""
        assert self.transport is not None
        self.transport.write(self._head(request, response, keep))
        body, written = response.body, 0
        for piece in cast("list[bytes]", body if isinstance(body, list) else [body]) if request.method != "HEAD" else ():
            view = memoryview(piece)
            for at in range(0, len(piece), WRITE_SLICE_BYTES):
                if self.transport is None:
                    return
                self.transport.write(view[at:at + WRITE_SLICE_BYTES])
                written += WRITE_SLICE_BYTES
                if not self._writable:
                    await self._drained()
                elif written >= LARGE_BYTES:
                    written = 0
                    await asyncio.sleep(0)
        if (not keep or self.listening.closing) and self.transport is not None:
            self.transport.close()

    async def _drained(self) -> None:
        """As `drain`; a client that reads nothing to speak of for a minute is cut off."""
        try:
            async with asyncio.timeout(STALLED_S):
                await self.drain()
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            raise

    async def _compress(self, request: Request, response: Response) -> None:
        """gzip of a large body for a client that asks for it, over a network; next door it costs more than it saves."""
        if self.local_peer or response.status != 200 or "gzip" not in request.headers.get("accept-encoding", ""):
            return
        pieces = response.body if isinstance(response.body, list) else [cast(bytes, response.body)]
        if sum(map(len, pieces)) < GZIP_FROM_BYTES or response.header("Content-Encoding"):
            return

        def work() -> bytes:
            c = zlib.compressobj(1, zlib.DEFLATED, 31)
            return b"".join([*[c.compress(p) for p in pieces], c.flush()])
        response.body = await asyncio.to_thread(work)
        response.headers += [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")]

    async def _write_stream(self, request: Request, response: Response, keep: bool) -> None:
        assert self.transport is not None
        chunked = request.headers.get("transfer-encoding") is not None or self._parser.get_http_version() == "1.1"
        has_length = bool(response.header("Content-Length"))
        head = head_bytes(response.status, [*response.headers, *([] if has_length or not chunked else [("Transfer-Encoding", "chunked")]),
                                            *([] if keep else [("Connection", "close")])])
        self.transport.write(head + b"\r\n")
        body = cast(Any, response.body)
        if request.method == "HEAD":
            with contextlib.suppress(AttributeError):
                await body.aclose()
            return
        try:
            async for chunk in body:
                if self.transport is None:
                    return
                if chunk:
                    self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked and not has_length else chunk)
                    await self.drain()
        finally:
            with contextlib.suppress(AttributeError):
                await body.aclose()
        if self.transport is not None:
            if chunked and not has_length:
                self.transport.write(b"0\r\n\r\n")
            if not keep or (not chunked and not has_length):
                self.transport.close()

    def _start_watch(self, request: Request, response: Response, keep: bool) -> None:
        assert self.transport is not None and isinstance(response.body, Watch)
        chunked = self._parser.get_http_version() == "1.1"
        headers = [*response.headers, *([("Transfer-Encoding", "chunked")] if chunked else [("Connection", "close")])]
        self.transport.write(head_bytes(response.status, headers) + b"\r\n")
        self._watch, self._watch_keep = response.body, keep and chunked
        self._watch.attach(_Sink(self, chunked))

    def watch_finished(self, chunked: bool) -> None:
        """The watch has ended on its own: the connection may be used again."""
        self._watch = None
        if self.transport is None or self.transport.is_closing():
            return
        if chunked:
            self.transport.write(b"0\r\n\r\n")
        if not self._watch_keep or self.listening.closing:
            self.transport.close()
            return
        self._state, self._since = "idle", time.monotonic()
        if self._queue and not self._busy:
            self._busy = True
            self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _switch(self, response: Response) -> None:
        """101: the connection belongs to the upgraded protocol from here on."""
        assert self.transport is not None and response.upgrade is not None
        self._state = "raw"
        raw = self._raw = _Raw(self)
        rest, self._upgrade_rest = self._upgrade_rest, None
        if rest:
            raw.feed(rest)
        self.resume_reading()
        self.transport.write(head_bytes(101, response.headers) + b"\r\n")
        try:
            await response.upgrade(raw)
        except (ConnectionError, asyncio.IncompleteReadError, EOFError):
            pass
        except Exception:
            log.exception("an upgraded connection")
        finally:
            self._close()

    def sweep(self, now: float) -> None:
        """Closes the connection if it has been slow or idle for too long."""
        limit = {"idle": IDLE_TIMEOUT_S, "head": HEAD_TIMEOUT_S, "body": BODY_TIMEOUT_S}.get(self._state)
        if limit is not None and self._watch is None and now - self._since > limit and self.transport is not None:
            self.transport.abort() if self._state != "idle" else self.transport.close()

    @property
    def idle(self) -> bool:
        return self._state in ("idle", "head") and not self._busy and self._watch is None


def _parameters(query: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(query.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=PARAMETERS_MAX)
    except ValueError:
        raise StatusError(400, "BadRequest", f"400 Bad Request: more than {PARAMETERS_MAX} query parameters") from None


def _too_large() -> StatusError:
    return StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_MAX_BYTES}")


def _discard(response: Response) -> None:
    if isinstance(response.body, Watch):
        response.body.end()


class Listening:
    """A listening server. `close` stops it: no new connections, those at work may finish."""

    def __init__(self, handle: Handle, fast: Fast | None) -> None:
        self.handle, self.fast = handle, fast
        self.connections: set[Connection] = set()
        self.closing = False
        self.server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._drained: asyncio.Event | None = None

    def gone(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self._drained is not None and not self.connections:
            self._drained.set()

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now = time.monotonic()
            for c in tuple(self.connections):
                c.sweep(now)

    async def start(self, host: str | Sequence[str], port: int, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {}
        if context is not None:
            options = {"ssl": context, "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_S, "ssl_shutdown_timeout": 2.0}
        self.server = await loop.create_server(lambda: Connection(self), host, port, backlog=2048, reuse_address=True, **options)
        self._sweeper = loop.create_task(self._sweep())

    async def close(self, drain_s: float = DRAIN_S) -> None:
        self.closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self.server is not None:
            self.server.close()
        for c in tuple(self.connections):
            if c.idle or c._raw is not None:
                c._close()
            elif c._watch is not None:
                c._watch.end()
        if self.connections:
            self._drained = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._drained.wait()
        for c in tuple(self.connections):
            if c.transport is not None:
                c.transport.abort()


def ssl_context(cert: str, key: str, client_cas: bytes = b"") -> ssl.SSLContext:
    """The server's side of TLS: its certificate (file names), and a client certificate asked for but not required.

    A certificate of an unknown authority must not end the handshake: the client may have a good token as well. OpenSSL leaves that to
    a callback the ssl module does not show, so it is set through ctypes; whether the certificate counts is authentication's affair,
    which checks its signature. Where that cannot be set, unknown certificates are refused by the handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0                # clients of Kubernetes do not resume, and making a ticket costs as much as the handshake
    if client_cas:
        context.load_verify_locations(cadata=client_cas.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        _accept_any_certificate(context)
    return context


def _sent_with(ssl_object: Any, certificate: bytes) -> tuple[bytes, ...]:
    """The certificates that came with the client's own, which may lead to a known authority. Public in the ssl module only since Python 3.13."""
    get = getattr(ssl_object, "get_unverified_chain", None) or getattr(getattr(ssl_object, "_sslobj", None), "get_unverified_chain", None)
    sent = (get() or ()) if get is not None else ()
    ders = (c if isinstance(c, bytes) else ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in sent[:INTERMEDIATES_MAX + 1])
    return tuple(der for der in ders if der != certificate)


_keep_alive: list[Any] = []      # the C callback must outlive every context


def _accept_any_certificate(context: ssl.SSLContext) -> bool:
    """SSL_CTX_set_verify with a callback that lets every chain pass; False where the interpreter's OpenSSL cannot be reached."""
    import ctypes
    import sys

    try:
        import _ssl

        library = ctypes.CDLL(_ssl.__file__)
        set_verify = library.SSL_CTX_set_verify
        if sys.implementation.name != "cpython":
            return False
        if not _keep_alive:
            _keep_alive.append(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(lambda ok, store: 1))
        # PySSLContext starts with the object header and then holds SSL_CTX*
        pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
        set_verify.argtypes = [ctypes.c_void_p, ctypes.c_int, type(_keep_alive[0])]
        set_verify.restype = None
        set_verify(pointer, 1, _keep_alive[0])
        return True
    except (ImportError, OSError, AttributeError):
        return False


async def serve(handle: Handle, host: str | Sequence[str], port: int, context: ssl.SSLContext | None = None, *, fast: Fast | None = None) -> Listening:
    """Listens on one address or several; `fast` is Server.fast. Port 0 takes any free one, see Listening.port."""
    listening = Listening(handle, fast)
    await listening.start(host, port, context)
    return listening
