"""Registry: the library over the read half of the OCI distribution API (distribution-spec 1.1), plain HTTP on the fabric's address.

Nodes have it as the mirror of every registry (kubelet/containerd.py). What the library lacks is passed through from the real
registry that `?ns=` names, by upstream.py, so node units reach real registries though the machine forwards no packets.
Read only: pushing is `kubern image import`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from kubern.images import oci
from kubern.images.library import Library
from kubern.images.upstream import Refused, Unreachable, Upstream

HEAD_BYTES_MAX = 32 << 10
IDLE_S = 10                      # containerd opens new connections for every pull and leaves the old ones idle
CONNECTIONS_MAX = 512
CHUNK_BYTES = 256 << 10
_PATH = re.compile(r"/v2/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)/(?P<kind>manifests|blobs)/(?P<ref>[A-Za-z0-9_][A-Za-z0-9._:-]{0,255})")
_REASONS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
            416: "Range Not Satisfiable", 429: "Too Many Requests", 502: "Bad Gateway", 503: "Service Unavailable"}


class Registry:
    """`upstream` None: only what the library has."""

    def __init__(self, library: Library, upstream: Upstream | None = None) -> None:
        self.library, self.upstream = library, upstream
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listens. `close` ends it."""
        self._server = await asyncio.start_server(self._connection, host, port, limit=HEAD_BYTES_MAX)
        return self._server

    async def close(self) -> None:
        """Nothing of it is left afterwards: no socket, no connection, no task."""
        if self._server:
            self._server.close()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[writer] = task
        try:
            if len(self._connections) > CONNECTIONS_MAX:
                await _reply(writer, 503, _error("UNAVAILABLE", "too many connections"), {}, head=False)
                return
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            del self._connections[writer]

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; True while the connection goes on."""
        async with asyncio.timeout(IDLE_S):
            head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        headers = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:] if x)}
        if len(words) != 3 or headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            await _reply(writer, 400, _error("UNSUPPORTED", "this registry takes no request bodies"), {}, head=False)
            return False
        method, target = words[0], urlsplit(words[1])
        if method not in ("GET", "HEAD"):
            await _reply(writer, 405, _error("UNSUPPORTED", "this registry is read only"), {}, head=False)
            return False
        is_head = method == "HEAD"
        path = unquote(target.path)
        if path in ("/v2/", "/v2"):
            await _reply(writer, 200, b"{}", {"Content-Type": "application/json"}, is_head)
        elif m := _PATH.fullmatch(path):
            source = (parse_qs(target.query).get("ns") or ["docker.io"])[0]
            if m["kind"] == "manifests":
                await self._manifest(writer, source, m["name"], m["ref"], headers, is_head)
            else:
                await self._blob(writer, source, m["name"], m["ref"], headers, is_head)
        else:
            await _reply(writer, 404, _error("NAME_UNKNOWN", f"no such path: {path}"), {}, is_head)
        return headers.get("connection", "").lower() != "close" and not writer.is_closing()

    async def _manifest(self, writer: asyncio.StreamWriter, source: str, name: str, ref: str, headers: dict[str, str], head: bool) -> None:
        digest = ref if ref.startswith("sha256:") else ""
        if not digest:
            found = self.library.find(f"{source}/{name}:{ref}")
            digest = found["digest"] if found else ""
        path = self.library.blob_path(digest) if digest else None
        if path is not None:
            data = path.read_bytes()
            try:
                media = orjson.loads(data).get("mediaType") or oci.MANIFEST
            except (orjson.JSONDecodeError, AttributeError):
                media = ""
            if media:
                await _reply(writer, 200, data, {"Content-Type": media, "Docker-Content-Digest": digest}, head)
                return
        try:
            if self.upstream is None:
                raise Refused(404, _error("MANIFEST_UNKNOWN", f"{source}/{name}:{ref} is not in the library"))
            data, media = await self.upstream.manifest(source, name, ref, headers.get("accept", ""), headers.get("authorization", ""))
        except (Refused, Unreachable) as e:
            await self._refuse(writer, e, source, head)
            return
        await _reply(writer, 200, data, {"Content-Type": media, "Docker-Content-Digest": oci.digest(data)}, head)

    async def _blob(self, writer: asyncio.StreamWriter, source: str, name: str, digest: str, headers: dict[str, str], head: bool) -> None:
        path = self.library.blob_path(digest)
        if path is not None:
            await _reply_file(writer, path, digest, headers.get("range", ""), head)
            return
        try:
            if self.upstream is None:
                raise Refused(404, _error("BLOB_UNKNOWN", digest))
            async with self.upstream.blob(source, name, digest, headers.get("range", ""), headers.get("authorization", "")) as got:
                writer.write(_head(got.status, {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest,
                                                **({"Content-Range": got.range} if got.range else {})}, got.length))
                if not head:
                    async for chunk in got.chunks():
                        writer.write(chunk)
                        await writer.drain()
        except (Refused, Unreachable) as e:
            await self._refuse(writer, e, source, head)

    async def _refuse(self, writer: asyncio.StreamWriter, e: Refused | Unreachable, source: str, head: bool) -> None:
        if isinstance(e, Unreachable):
            await _reply(writer, 502, _error("UNAVAILABLE", str(e)), {}, head)
            return
        more = {"WWW-Authenticate": f'Basic realm="{source}"'} if e.status == 401 else {}
        await _reply(writer, e.status, e.body, more, head)


def _error(code: str, message: str) -> bytes:
    return orjson.dumps({"errors": [{"code": code, "message": message}]})


def _head(status: int, headers: dict[str, Any], length: int) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}",
             "Docker-Distribution-Api-Version: registry/2.0", f"Content-Length: {length}"]
    lines += [f"{k}: {v}" for k, v in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


async def _reply(writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str], head: bool) -> None:
    writer.write(_head(status, {"Content-Type": "application/json", **headers}, len(body)) + (b"" if head else body))
    await writer.drain()


async def _reply_file(writer: asyncio.StreamWriter, path: Path, digest: str, wanted: str, head: bool) -> None:
    """A blob, or its tail for a resumed download (`Range: bytes=N-`)."""
    size, start = path.stat().st_size, 0  # noqa: ASYNC240 (local, and no slower than the loop itself)
    headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
    m = re.fullmatch(r"bytes=(\d{1,18})-", wanted)
    if m:
        start = int(m[1])
        if start >= size:
            await _reply(writer, 416, b"", {"Content-Range": f"bytes */{size}"}, head)
            return
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    writer.write(_head(206 if m else 200, headers, size - start))
    await writer.drain()
    if not head:
        with path.open("rb") as f:
            f.seek(start)
            while chunk := f.read(CHUNK_BYTES):              # uvloop has no sendfile
                writer.write(chunk)
                await writer.drain()
