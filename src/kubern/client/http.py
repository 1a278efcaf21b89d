"""HttpSender: `send` over HTTP/1.1 and TLS, with a pool of kept-alive connections, streamed bodies and raw upgrades.

Not HTTP/2 and not a proxy. Parsing: httptools. A connection goes back to the pool only after its body was read to the end.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httptools

from kubern.client.client import encode_query
from kubern.model.request import Request, Response, Stream

IDLE_CONNECTIONS_MAX = 64
CONNECT_TIMEOUT_S = 10.0
HEADER_TIMEOUT_S = 75.0
READ_BYTES = 1 << 18
KEEPALIVE = (((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1), ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 30),
             ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 10), ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 3))


class _Connection:
    """One connection and the parser of the answer it is reading."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.fresh = True

    def begin(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.headers: list[tuple[str, str]] = []
        self.chunks: deque[bytes] = deque()
        self.head_done = self.complete = self.keep = False
        self.rest = b""

    # parser callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.head_done = True

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        self.complete = True
        self.keep = self.parser.should_keep_alive()      # known only here: the parser forgets

    async def feed(self) -> None:
        """Reads once from the connection into the parser."""
        data = await self.reader.read(READ_BYTES)
        if not data:
            if self.head_done and not self.complete and not any(
                    k.lower() in ("content-length", "transfer-encoding") for k, _ in self.headers):
                self.complete = True                     # a body that ends with the connection
                return
            raise ConnectionResetError("the server closed the connection")
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self.head_done = self.complete = True
            self.rest = data[e.args[0]:]
        except httptools.HttpParserError as e:
            raise ConnectionResetError(f"malformed answer: {e}") from e

    def close(self) -> None:
        self.writer.close()


class _Raw:
    """A connection after its upgrade, as a Stream."""

    def __init__(self, connection: _Connection) -> None:
        self._c, self._rest = connection, connection.rest

    async def read(self, n: int = 65536) -> bytes:
        if self._rest:
            data, self._rest = self._rest[:n], self._rest[n:]
            return data
        try:
            return await self._c.reader.read(n)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        self._c.writer.write(data)
        await self._c.writer.drain()

    async def close(self) -> None:
        self._c.close()


async def couple(a: Stream, b: Stream) -> None:
    """Copies both ways until one side ends, then closes both."""
    async def copy(source: Stream, target: Stream) -> None:
        while data := await source.read():
            await target.write(data)
    tasks = [asyncio.ensure_future(copy(a, b)), asyncio.ensure_future(copy(b, a))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await a.close()
        await b.close()


def tls(ca: bytes | None = None, cert: bytes | None = None, key: bytes | None = None, insecure: bool = False) -> ssl.SSLContext:
    """A client context from PEM bytes; without `ca` the system's roots, without `cert` no client certificate."""
    context = ssl.create_default_context(cadata=ca.decode() if ca else None)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert and key:
        with tempfile.TemporaryDirectory() as d:         # ssl reads key pairs from files only
            pem = Path(d) / "pair.pem"
            pem.touch(0o600)
            pem.write_bytes(cert + b"\n" + key)
            context.load_cert_chain(pem)
    return context


class HttpSender:
    """`send(Request) -> Response` to one server. Close it with `close()`."""

    def __init__(self, server: str, ca: bytes | None = None, cert: bytes | None = None, key: bytes | None = None, token: str = "",
                 insecure: bool = False, server_name: str = "", address: tuple[str, int] | None = None) -> None:
        """`address`: where to connect to, if not where the name of the server leads."""
        parts = urlsplit(server)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        if address is not None:
            server_name = server_name or self._host
            self._host, self._port = address
        self._base = parts.path.rstrip("/")
        self._authority = parts.netloc
        self._trust = (ca, insecure)
        self.url, self.address = server, (self._host, self._port)
        self._ssl = tls(ca, cert, key, insecure) if parts.scheme == "https" else None
        self._server_name = server_name
        self._token = token
        self._idle: deque[_Connection] = deque()
        self._closed = False

    async def send(self, request: Request) -> Response:
        connection = await self._exchange(request)
        status, headers = connection.parser.get_status_code(), connection.headers
        if status == 101:
            raw = _Raw(connection)
            return Response(101, headers, upgrade=lambda stream: couple(stream, raw))
        if request.method == "HEAD":
            connection.close()                           # the parser would wait for the body
            return Response(status, headers)
        if connection.complete:
            body = b"".join(connection.chunks)
            self._give_back(connection)
            return Response(status, headers, body)
        if any(k.lower() == "content-length" for k, _ in headers):
            try:
                while not connection.complete:
                    await connection.feed()
            except BaseException:
                connection.close()
                raise
            body = b"".join(connection.chunks)
            self._give_back(connection)
            return Response(status, headers, body)
        return Response(status, headers, self._stream(connection))

    async def open(self, request: Request) -> tuple[Response, Stream | None]:
        """For exec, attach and port-forward: the raw stream after 101, or the answer that refused the upgrade."""
        connection = await self._exchange(request)
        status, headers = connection.parser.get_status_code(), connection.headers
        if status == 101:
            return Response(101, headers), _Raw(connection)
        return Response(status, headers, b"".join([c async for c in self._stream(connection)])), None

    def identify(self, cert: bytes, key: bytes) -> None:
        """Goes on as another identity: new connections show this certificate, those that wait for work are closed."""
        if self._ssl is not None:
            self._ssl = tls(self._trust[0], cert, key, self._trust[1])
        while self._idle:
            self._idle.pop().close()

    async def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> _Connection:
        extra: dict[str, Any] = {"server_hostname": self._server_name or self._host} if self._ssl else {}
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._ssl, limit=1 << 20, **extra)
        sock = writer.get_extra_info("socket")
        for option, value in KEEPALIVE:                  # a server that vanished is noticed though a watch is silent
            sock.setsockopt(*option, value)
        return _Connection(reader, writer)

    async def _exchange(self, request: Request) -> _Connection:
        """Sends the request and reads the answer's head. A kept-alive connection that turns out dead is replaced once."""
        while True:
            connection = None
            while self._idle and connection is None:
                connection = self._idle.pop()
                if connection.reader.at_eof() or connection.writer.is_closing():
                    connection.close()
                    connection = None
            if connection is None:
                connection = await self._connect()
            connection.begin()
            try:
                connection.writer.write(self._encode(request))
                await connection.writer.drain()
                async with asyncio.timeout(HEADER_TIMEOUT_S):
                    while not connection.head_done:
                        await connection.feed()
                return connection
            except BaseException as e:
                connection.close()
                idempotent = request.method in ("GET", "HEAD")
                if isinstance(e, OSError) and not isinstance(e, TimeoutError) and not connection.fresh and idempotent:
                    continue
                raise

    def _encode(self, request: Request) -> bytes:
        target = (self._base + quote(request.path, safe="/:@!$&'()*+,;=-._~")) or "/"
        if request.query:
            target += "?" + encode_query(request.query)
        lines = [f"{request.method} {target} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{k}: {v}" for k, v in request.headers.items() if k not in ("host", "content-length", "transfer-encoding")]
        if self._token and "authorization" not in request.headers:
            lines.append(f"authorization: Bearer {self._token}")
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            lines.append(f"content-length: {len(request.body)}")
        if any("\n" in line or "\r" in line for line in lines):
            raise ValueError("a header holds a line break")
        return "\r\n".join(lines).encode("utf-8") + b"\r\n\r\n" + request.body

    async def _stream(self, connection: _Connection) -> AsyncIterator[bytes]:
        """The body as it comes. Leaving it early closes the connection."""
        try:
            while True:
                while connection.chunks:
                    yield connection.chunks.popleft()
                if connection.complete:
                    break
                await connection.feed()
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)

    def _give_back(self, connection: _Connection) -> None:
        if self._closed or not connection.keep or len(self._idle) >= IDLE_CONNECTIONS_MAX:
            connection.close()
            return
        connection.fresh = False
        self._idle.append(connection)
