"""The registry over HTTP, and pull-through from a real-looking registry with tokens."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from kubern.images import oci
from kubern.images.library import Library
from kubern.images.registry import Registry
from kubern.images.upstream import Upstream

IMAGE = oci.image([oci.layer(lambda w: w.file("a", b"hi" * 1000))], {}, "amd64")


@asynccontextmanager
async def serving(library: Library, upstream: Upstream | None = None) -> AsyncIterator[int]:
    r = Registry(library, upstream)
    server = await r.serve("127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await r.close()
        await asyncio.sleep(0.02)


async def fetch(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    extra = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n".encode())
    data = await reader.read()
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return int(lines[0].split()[1]), {k.lower(): v for k, _, v in (x.partition(": ") for x in lines[1:])}, body


@pytest.fixture
def library(tmp_path: Path) -> Library:
    out = Library(tmp_path)
    out.add("docker.io/library/app:1", [IMAGE])
    return out


async def test_what_containerd_asks(library: Library) -> None:
    layer = IMAGE.blobs[1]
    async with serving(library) as port:
        assert (await fetch(port, "/v2/"))[0] == 200
        status, headers, body = await fetch(port, "/v2/library/app/manifests/1?ns=docker.io")
        assert (status, headers["docker-content-digest"], body) == (200, IMAGE.manifest.digest, IMAGE.manifest.data)
        assert headers["content-type"] == oci.MANIFEST
        status, headers, body = await fetch(port, "/v2/library/app/manifests/1?ns=docker.io", "HEAD")
        assert (status, int(headers["content-length"]), body) == (200, len(IMAGE.manifest.data), b"")
        assert (await fetch(port, f"/v2/library/app/manifests/{IMAGE.manifest.digest}"))[2] == IMAGE.manifest.data
        assert (await fetch(port, f"/v2/library/app/blobs/{layer.digest}"))[2] == layer.data
        status, headers, body = await fetch(port, f"/v2/library/app/blobs/{layer.digest}", Range="bytes=10-")
        assert (status, body) == (206, layer.data[10:]) and headers["content-range"].startswith("bytes 10-")
        assert (await fetch(port, f"/v2/library/app/blobs/{layer.digest}", Range="bytes=999999-"))[0] == 416


@pytest.mark.parametrize(("path", "method", "code"), [
    ("/v2/library/no/manifests/1", "GET", 404), ("/v2/library/app/manifests/2", "GET", 404), ("/v2/library/app/blobs/sha256:aa", "GET", 404),
    ("/v2/library/app/manifests/1?ns=quay.io", "GET", 404), ("/v2/../../etc/passwd", "GET", 404), ("/", "GET", 404),
    ("/v2/library/app/blobs/uploads/", "POST", 405), ("/v2/library/app/manifests/1", "DELETE", 405)])
async def test_what_is_not_there_and_what_is_not_done(library: Library, path: str, method: str, code: int) -> None:
    async with serving(library) as port:
        assert (await fetch(port, path, method))[0] == code


async def test_rubbish_ends_the_connection_not_the_server(library: Library) -> None:
    async with serving(library) as port:
        for junk in (b"\r\n\r\n", b"\xff" * 100 + b"\r\n\r\n", b"GET " + b"a" * 40000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(junk)
            writer.write_eof()
            await reader.read()
            writer.close()
        assert (await fetch(port, "/v2/"))[0] == 200


class World(BaseHTTPRequestHandler):
    """A registry that wants a token, and for private/ a token of its user."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        self.seen.append(self.path)
        auth = self.headers.get("Authorization") or ""
        if self.path.startswith("/token"):
            user = auth == "Basic " + base64.b64encode(b"u:p").decode()
            return self.out(200, b'{"token":"%s","expires_in":300}' % (b"user" if user else b"anyone"), {})
        if auth not in (("Bearer user",) if "/private/" in self.path else ("Bearer user", "Bearer anyone")):
            return self.out(401, b"{}", {"WWW-Authenticate": f'Bearer realm="http://127.0.0.1:{port}/token",service="s",scope="repository:x:pull"'})
        if self.path.endswith("/manifests/1"):
            return self.out(200, IMAGE.manifest.data, {"Content-Type": oci.MANIFEST})
        if self.path.startswith("/storage/"):
            return self.out(200, IMAGE.blobs[1].data, {})
        if "/blobs/" in self.path:
            return self.out(307, b"", {"Location": "/storage/x"})
        return self.out(404, b"{}", {})

    def out(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for k, v in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def world() -> Iterator[str]:
    World.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), World)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_what_the_library_lacks_comes_from_the_real_registry(tmp_path: Path, world: str) -> None:
    async with serving(Library(tmp_path), Upstream()) as port:
        status, headers, body = await fetch(port, f"/v2/a/b/manifests/1?ns={world}", Accept=oci.MANIFEST)
        assert (status, body, headers["content-type"]) == (200, IMAGE.manifest.data, oci.MANIFEST)
        assert headers["docker-content-digest"] == IMAGE.manifest.digest
        status, _, body = await fetch(port, f"/v2/a/b/blobs/{IMAGE.blobs[1].digest}?ns={world}")
        assert (status, body) == (200, IMAGE.blobs[1].data)
        assert sum(p.startswith("/token") for p in World.seen) == 1
        assert (await fetch(port, f"/v2/a/b/manifests/2?ns={world}"))[0] == 404


async def test_private_images_need_the_nodes_credentials(tmp_path: Path, world: str) -> None:
    async with serving(Library(tmp_path), Upstream()) as port:
        path = f"/v2/private/b/manifests/1?ns={world}"
        status, headers, _ = await fetch(port, path)
        assert status == 401 and headers["www-authenticate"].startswith("Basic")
        assert (await fetch(port, path, Authorization="Basic " + base64.b64encode(b"u:p").decode()))[0] == 200
        assert (await fetch(port, path))[0] == 401


async def test_an_unreachable_registry_is_said_so(tmp_path: Path) -> None:
    async with serving(Library(tmp_path), Upstream()) as port:
        status, _, body = await fetch(port, "/v2/a/b/manifests/1?ns=127.0.0.1:9")
        assert status == 502 and b"cannot reach 127.0.0.1:9" in body


async def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    """A client that keeps its connection does not keep the registry."""
    r = Registry(Library(tmp_path))
    port = (await r.serve("127.0.0.1", 0)).sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"200" in await reader.readline()
    before = len(asyncio.all_tasks())
    await r.close()
    assert len(asyncio.all_tasks()) == before - 1
    await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
