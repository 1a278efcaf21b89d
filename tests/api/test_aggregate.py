"""Aggregated APIs against a real TLS server that believes only the front proxy."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubern import pki
from kubern.api.aggregate import RECHECK_S, endpoints_of
from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, User
from kubern.model.rows import of_discovery
from kubern.store.memory import MemoryStore

MASTERS = User("admin", ("system:masters", "system:authenticated"), extra={"a/b": ("1",)})
LIST = {"kind": "APIResourceList", "groupVersion": "x.example.com/v1", "resources": [
    {"name": "things", "singularName": "thing", "namespaced": True, "kind": "Thing", "verbs": ["get", "list"], "shortNames": ["th"]},
    {"name": "things/status", "singularName": "", "namespaced": True, "kind": "Thing", "verbs": ["get"]}]}

OPENAPI = {"openapi": "3.0.0", "info": {"title": "Things"},
           "paths": {"/apis/x.example.com/v1/things": {}}, "components": {"schemas": {"thing": {"type": "object"}}}}


SWAGGER = {"swagger": "2.0", "info": {"title": "Things"}, "paths": {
    "/apis/x.example.com/v1/things": {"get": {"operationId": "listThings", "responses": {"200": {"schema": {"$ref": "#/definitions/com.example.Thing"}}}}},
    "/apis/y.example.com/v1/others": {}}, "definitions": {"com.example.Thing": {"type": "object"}, "com.example.Other": {"type": "object"}}}


class Backend:
    """Answers its discovery document, and to anything else what it was asked."""

    def __init__(self) -> None:
        self.port, self.broken = 0, False
        self.go_on = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = [tuple(h.split(": ", 1)) for h in head[1:] if h]
        length = int({k.lower(): v for k, v in headers}.get("content-length", 0))
        body = await reader.readexactly(length)
        document = LIST if target == "/apis/x.example.com/v1" else {"method": method, "target": target, "headers": headers, "body": body.decode()}
        if target == "/openapi/v3/apis/x.example.com/v1":
            document = OPENAPI
        if target == "/openapi/v2":
            document = SWAGGER
        if "upgrade" in {k.lower() for k, _ in headers}:
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            while data := await reader.read(1000):
                writer.write(b"echo " + data)
            writer.close()
            return
        if "watch=1" in target:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                writer.write(b"5\r\nevent\r\n")
                await self.go_on.wait()
                self.go_on.clear()
            writer.write(b"0\r\n\r\n")
            writer.close()
            return
        out = orjson.dumps(document)
        status = "500 no" if self.broken else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(out)}\r\n\r\n".encode() + out)
        await writer.drain()
        writer.close()


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[tuple[Server, Backend, bytes]]:
    front, ca = pki.authority(tmp_path, "front", "front"), pki.authority(tmp_path, "other", "other")
    client = pki.client(tmp_path, "front-proxy-client", "front-proxy-client", (), front)
    serving = pki.serving(tmp_path, "serving", "s", ["s.default.svc"], [], ca)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=front.cert.decode())
    context.load_cert_chain(serving.cert_path, serving.key_path)
    context.verify_mode = ssl.CERT_REQUIRED
    backend = Backend()
    listening = await asyncio.start_server(backend.answer, "127.0.0.1", 0, ssl=context)
    backend.port = listening.sockets[0].getsockname()[1]
    server = Server(MemoryStore(), settings=ApiSettings(
        bootstrap=False, proxy_client_cert=str(client.cert_path), proxy_client_key=str(client.key_path)))
    await server.start()
    await ask(server, "POST", "/api/v1/namespaces", {"metadata": {"name": "default"}})
    yield server, backend, ca.cert
    await server.stop()
    listening.close()


async def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    path, _, text = path.partition("?")
    query = {k: [v] for k, _, v in (p.partition("=") for p in text.split("&") if p)}
    r = await server.handle(Request(method, path, query, {"content-type": "application/json", "accept": "application/json", **headers},
                                    b"" if body is None else orjson.dumps(body), user=MASTERS))
    if isinstance(r.body, bytes):
        raw = r.body
    elif isinstance(r.body, list):
        raw = b"".join(r.body)
    else:
        raw = b"".join([c async for c in r.body])
    return r.status, orjson.loads(raw) if raw[:1] == b"{" else raw


async def register(server: Server, port: int, ca: bytes) -> None:
    status, made = await ask(server, "POST", "/apis/apiregistration.k8s.io/v1/apiservices", {
        "metadata": {"name": "v1.x.example.com"}, "spec": {
            "group": "x.example.com", "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10,
            "caBundle": base64.b64encode(ca).decode(), "service": {"name": "s", "namespace": "default", "port": port}}})
    assert status == 201, made


async def available(server: Server, reason: str) -> str:
    """The message of the condition once it has this reason."""
    async with asyncio.timeout(10):
        while True:
            got = (await ask(server, "GET", "/apis/apiregistration.k8s.io/v1/apiservices/v1.x.example.com"))[1]
            found = got["status"].get("conditions") or [{}]
            if found[0].get("reason") == reason:
                return str(found[0]["message"])
            await asyncio.sleep(0.02)


async def test_a_server_behind_an_api_service(parts: tuple[Server, Backend, bytes]) -> None:
    server, backend, ca = parts
    await register(server, backend.port, ca)
    assert await available(server, "ServiceNotFound") == 'service/s in "default" is not present'
    assert await ask(server, "GET", "/apis/x.example.com/v1/things") == (503, b"service unavailable\n")
    assert await ask(server, "GET", "/apis/x.example.com/v1") == (503, b"service unavailable\n")

    service = {"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "localhost"}}
    assert (await ask(server, "POST", "/api/v1/namespaces/default/services", service))[0] == 201
    assert await available(server, "Passed") == "all checks passed"

    status, got = await ask(server, "POST", "/apis/x.example.com/v1/namespaces/n/things?dryRun=All", {"a": 1},
                            authorization="Bearer secret", **{"x-remote-user": "root"})
    assert (status, got["method"], got["target"], got["body"]) == (200, "POST", "/apis/x.example.com/v1/namespaces/n/things?dryRun=All", '{"a":1}')
    headers = [(k.lower(), v) for k, v in got["headers"]]
    assert [v for k, v in headers if k == "x-remote-user"] == ["admin"]
    assert [v for k, v in headers if k == "x-remote-group"] == ["system:masters", "system:authenticated"]
    assert ("x-remote-extra-a%2fb", "1") in headers
    assert not [k for k, _ in headers if k == "authorization"]

    assert (await ask(server, "GET", "/apis/x.example.com/v1"))[1] == LIST
    found = await server.handle(Request("GET", "/apis", {}, {"accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"},
                                        b"", user=MASTERS))
    assert b'"things"' in (found.body if isinstance(found.body, bytes) else b"".join(found.body))      # type: ignore[arg-type]

    assert (await ask(server, "DELETE", "/apis/apiregistration.k8s.io/v1/apiservices/v1.x.example.com"))[0] == 200
    assert await ask(server, "GET", "/apis/x.example.com/v1/things") == (404, b"404 page not found\n")
    answers = [await server.handle(Request("GET", "/apis/x.example.com/v1/things", {}, {}, b"", user=MASTERS)) for _ in range(3)]
    assert len({len(a.headers) for a in answers}) == 1             # what is added to one answer is not added to all


async def test_a_server_that_fails_or_is_another(parts: tuple[Server, Backend, bytes], tmp_path: Path) -> None:
    server, backend, ca = parts
    service = {"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "localhost"}}
    await ask(server, "POST", "/api/v1/namespaces/default/services", service)
    backend.broken = True
    await register(server, backend.port, ca)
    assert "bad status from https://localhost" in await available(server, "FailedDiscoveryCheck")
    assert (await ask(server, "GET", "/apis/x.example.com/v1/things"))[0] == 503

    backend.broken = False
    await ask(server, "DELETE", "/apis/apiregistration.k8s.io/v1/apiservices/v1.x.example.com")
    await register(server, backend.port, pki.authority(tmp_path, "stranger", "stranger").cert)
    assert "failing or missing response" in await available(server, "FailedDiscoveryCheck")
    assert RECHECK_S <= 30


class Pipe:
    """The client's side of an upgraded connection."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.got: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self, n: int = 65536) -> bytes:
        return await self.incoming.get()

    async def write(self, data: bytes) -> None:
        self.got.put_nowait(data)

    async def close(self) -> None:
        self.incoming.put_nowait(b"")


async def test_streams_upgrades_and_documents_pass_through(parts: tuple[Server, Backend, bytes]) -> None:
    server, backend, ca = parts
    await ask(server, "POST", "/api/v1/namespaces/default/services", {"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "localhost"}})
    await register(server, backend.port, ca)
    await available(server, "Passed")
    watch: Any = await server.handle(Request("GET", "/apis/x.example.com/v1/things", {"watch": ["1"]}, {}, user=MASTERS))
    chunks = aiter(watch.body)
    async with asyncio.timeout(5):
        for _ in range(3):
            assert await anext(chunks) == b"event"           # as it comes
            backend.go_on.set()
        assert [c async for c in chunks] == []
    response = await server.handle(Request("GET", "/apis/x.example.com/v1/things/a/exec", {}, {"connection": "Upgrade", "upgrade": "echo"}, user=MASTERS))
    assert response.status == 101 and response.upgrade is not None
    pipe = Pipe()
    task = asyncio.create_task(response.upgrade(pipe))
    pipe.incoming.put_nowait(b"hello")
    assert await asyncio.wait_for(pipe.got.get(), 5) == b"echo hello"
    await pipe.close()
    await asyncio.wait_for(task, 5)

    index = (await ask(server, "GET", "/openapi/v3"))[1]["paths"]
    where = index["apis/x.example.com/v1"]["serverRelativeURL"]
    assert (await ask(server, "GET", where))[1] == OPENAPI
    swagger = (await ask(server, "GET", "/openapi/v2"))[1]
    assert "/apis/x.example.com/v1/things" in swagger["paths"] and "/apis/y.example.com/v1/others" not in swagger["paths"]
    assert "com.example.Thing" in swagger["definitions"] and "com.example.Other" not in swagger["definitions"] and "/api/v1/pods" in swagger["paths"]
    backend.broken = True
    await ask(server, "DELETE", "/apis/apiregistration.k8s.io/v1/apiservices/v1.x.example.com")
    await register(server, backend.port, ca)
    await available(server, "FailedDiscoveryCheck")
    assert "apis/x.example.com/v1" not in (await ask(server, "GET", "/openapi/v3"))[1]["paths"]
    assert "/apis/x.example.com/v1/things" not in (await ask(server, "GET", "/openapi/v2"))[1]["paths"]
    r: Any = await server.handle(Request("GET", "/apis", {}, {"accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}, user=MASTERS))
    group = next(g for g in orjson.loads(r.body)["items"] if g["metadata"]["name"] == "x.example.com")
    assert group["versions"][0]["freshness"] == "Stale"


def test_endpoints_by_the_port_s_name() -> None:
    slices = [{"metadata": {"labels": {"kubernetes.io/service-name": "s"}}, "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}], "endpoints": [
        {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": False}}]}]
    assert endpoints_of(slices, "s", "b") == (True, [("10.0.0.1", 2)])
    assert endpoints_of(slices, "s", "c") == (True, [])
    assert endpoints_of(slices, "t", "b") == (False, [])


def test_what_another_server_says_is_not_believed_blindly() -> None:
    assert [r.plural for r in of_discovery(LIST, "x.example.com", "v1")] == ["things"]
    for odd in (None, [], {"resources": [None, {"name": 5}, {"name": "a/b", "kind": "K"}, {"name": "a", "kind": None}]}):
        assert of_discovery(odd, "g", "v1") == []
