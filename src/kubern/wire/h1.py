"""A small HTTP/1.1 server for endpoints beside the API: requests in, Responses out, streams and upgrades. Not the API's server.

One task a connection, keep-alive, no pipelining, bodies by Content-Length or chunks, everything bounded. RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, unquote, urlsplit

from kubern.model.request import Request, Response
from kubern.wire.stream import SocketStream

log = logging.getLogger(__name__)

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 3 << 20
HEAD_TIMEOUT_S, BODY_TIMEOUT_S, IDLE_TIMEOUT_S = 30.0, 60.0, 120.0
CONNECTIONS_MAX = 1024
REASONS = {101: "Switching Protocols", 200: "OK", 201: "Created", 301: "Moved Permanently", 307: "Temporary Redirect", 400: "Bad Request",
           401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 413: "Request Entity Too Large",
           500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable"}

Handle = Callable[[Request], Awaitable[Response]]


class _Bad(Exception):
    """The peer does not speak HTTP we accept."""


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str], dict[str, list[str]], bool]:
    """(method, target, headers, repeated ones, HTTP/1.1). Raises _Bad."""
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise _Bad("malformed request line")
    headers: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise _Bad("malformed header")
        name, value = name.lower(), value.strip()
        repeated.setdefault(name, []).append(value)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return parts[0], parts[1], headers, {k: v for k, v in repeated.items() if len(v) > 1}, parts[2] == "HTTP/1.1"


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        out: list[bytes] = []
        size = 0
        while True:
            line = await reader.readuntil(b"\r\n")
            try:
                n = int(line.split(b";")[0], 16)
            except ValueError:
                raise _Bad("malformed chunk") from None
            size += n
            if size > BODY_BYTES_MAX or n < 0:
                raise _Bad("body too large")
            if n == 0:
                while (await reader.readuntil(b"\r\n")) != b"\r\n":
                    pass
                return b"".join(out)
            out.append(await reader.readexactly(n))
            await reader.readexactly(2)
    try:
        n = int(headers.get("content-length") or 0)
    except ValueError:
        raise _Bad("malformed Content-Length") from None
    if not 0 <= n <= BODY_BYTES_MAX:
        raise _Bad("body too large")
    return await reader.readexactly(n) if n else b""


def _head(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers)
    return f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n{lines}".encode("latin-1", "replace")


class Listening:
    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._tasks) <= CONNECTIONS_MAX:
                while await self._one(reader, writer):
                    pass
        except (ConnectionError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except _Bad as e:
            with contextlib.suppress(ConnectionError):
                writer.write(_head(400, [("Content-Length", str(len(str(e)))), ("Connection", "close")]) + b"\r\n" + str(e).encode())
        except asyncio.CancelledError:
            pass
        except Exception:
            log.exception("serving a connection")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            first = await reader.read(1)
        if not first:
            return False
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = first + await reader.readuntil(b"\r\n\r\n")
        method, target, headers, repeated, modern = _parse_head(head[:-4])
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _body(reader, headers)
        url = urlsplit(target)
        peer = writer.get_extra_info("peername")
        tls = writer.get_extra_info("ssl_object")
        request = Request(method, unquote(url.path), parse_qs(url.query, keep_blank_values=True), headers, body,
                          str(peer[0]) if isinstance(peer, tuple) else "", tls.getpeercert(True) if tls else None, repeated=repeated)
        response = await self.handle(request)
        if response.status == 101 and response.upgrade is not None:
            writer.write(_head(101, response.headers) + b"\r\n")
            await response.upgrade(SocketStream(reader, writer))
            return False
        keep = modern and "close" not in headers.get("connection", "").lower() and "upgrade" not in headers.get("connection", "").lower()
        await self._answer(writer, method, response, keep, modern)
        return keep

    async def _answer(self, writer: asyncio.StreamWriter, method: str, response: Response, keep: bool, modern: bool) -> None:
        headers = list(response.headers)
        if not keep:
            headers.append(("Connection", "close"))
        if isinstance(response.body, (bytes, list)):
            body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
            writer.write(_head(response.status, [*headers, ("Content-Length", str(len(body)))]) + b"\r\n" + (b"" if method == "HEAD" else body))
            await writer.drain()
            return
        chunked = modern
        writer.write(_head(response.status, [*headers, *([("Transfer-Encoding", "chunked")] if chunked else [])]) + b"\r\n")
        await writer.drain()
        source = response.body
        try:
            async for chunk in source:
                if chunk:
                    writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                    await writer.drain()
            if chunked:
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for t in list(self._tasks):
            t.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def serve(handle: Handle, host: str, port: int, context: ssl.SSLContext | None = None) -> Listening:
    """Listens until `close()`. Port 0 takes any free one."""
    listening = Listening(handle)
    listening.server = await asyncio.start_server(listening._connected, host, port, ssl=context, limit=HEAD_BYTES_MAX,
                                                  **({"ssl_handshake_timeout": 10.0} if context else {}))
    return listening
