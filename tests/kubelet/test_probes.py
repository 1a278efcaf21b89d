"""Probes: thresholds, and attempts against real sockets; Go's words for failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kubern.kubelet import probes
from kubern.kubelet.probes import FAILURE, SUCCESS, WARNING, Track, find_port
from kubern.model.request import Request, Response
from kubern.wire import h1


@pytest.mark.parametrize(("attempts", "results"), [
    ([True], [True]), ([False, False, False], [None, None, False]), ([False, False, True, False], [None, None, True, None]),
    ([True, False, True], [True, None, True])])
def test_thresholds(attempts: list[bool], results: list[bool | None]) -> None:
    track = Track(3, 1)
    assert [track.attempt(a) for a in attempts] == results


def test_success_threshold() -> None:
    track = Track(1, 2)
    assert [track.attempt(a) for a in (False, True, True)] == [False, None, True]


def test_ports_by_name() -> None:
    c = {"ports": [{"name": "http", "containerPort": 8080}]}
    assert (find_port("http", c), find_port(80, c), find_port("81", c)) == (8080, 80, 81)
    for bad in ("none", 0, 70000):
        with pytest.raises(ValueError):
            find_port(bad, c)


async def handle(r: Request) -> Response:
    if r.path == "/headers":
        return Response(200 if r.headers.get("x") == "y" and r.headers["user-agent"] == "kube-probe/1.36" else 500)
    if r.path == "/away":
        return Response(301, [("Location", "http://example.com/")], b"gone")
    if r.path == "/near":
        return Response(307, [("Location", "/ok")])
    if r.path == "/slow":
        await asyncio.sleep(5)
    return Response(200 if r.path == "/ok" else 503, [], b"body")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    listening = await h1.serve(handle, "127.0.0.1", 0)
    yield listening.port
    await listening.close()


@pytest.mark.parametrize(("path", "outcome", "words"), [
    ("/ok", SUCCESS, ""), ("ok", SUCCESS, ""), ("/near", SUCCESS, ""), ("/bad", FAILURE, "HTTP probe failed with statuscode: 503"),
    ("/away", WARNING, "Probe terminated redirects"), ("/slow", FAILURE, "context deadline exceeded (Client.Timeout exceeded while awaiting headers)")])
async def test_http(port: int, path: str, outcome: str, words: str) -> None:
    got, output = await probes.probe_http({"port": port, "path": path}, {}, "127.0.0.1", 0.5)
    assert got == outcome and words in output


async def test_http_headers(port: int) -> None:
    action = {"port": port, "path": "/headers", "httpHeaders": [{"name": "X", "value": "y"}]}
    assert (await probes.probe_http(action, {}, "127.0.0.1", 1))[0] == SUCCESS


async def test_https_to_a_plain_server_fails(port: int) -> None:
    assert (await probes.probe_http({"port": port, "path": "/ok", "scheme": "HTTPS"}, {}, "127.0.0.1", 1))[0] == FAILURE


async def test_tcp(port: int) -> None:
    assert await probes.probe_tcp("127.0.0.1", port, 1) == (SUCCESS, "")
    assert await probes.probe_tcp("127.0.0.1", 1, 1) == (FAILURE, "dial tcp 127.0.0.1:1: connect: connection refused")
    got = await probes.probe_http({"port": 1}, {}, "127.0.0.1", 1)
    assert got == (FAILURE, 'Get "http://127.0.0.1:1/": dial tcp 127.0.0.1:1: connect: connection refused')


async def test_grpc_health() -> None:
    import grpc
    import grpc.aio

    async def check(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if request == b"":
            return b"\x08\x01"
        if request == b"\n\x02no":
            return b"\x08\x02"
        await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return b""

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(check)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert (await probes.probe_grpc("127.0.0.1", "", port, 2))[0] == SUCCESS
        assert await probes.probe_grpc("127.0.0.1", "no", port, 2) == (FAILURE, 'service unhealthy (responded with "NOT_SERVING")')
        assert "code = NotFound desc = unknown service" in (await probes.probe_grpc("127.0.0.1", "x", port, 2))[1]
    finally:
        await server.stop(None)
