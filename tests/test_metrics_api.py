"""metrics.k8s.io against a kubelet's endpoint played by the small HTTP server, over TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubern.api.handle import Server
from kubern.client.client import Client
from kubern.kubelet.serve import own_certificate
from kubern.metrics_api import PREFIX, MetricsApi
from kubern.model.request import Request, Response, User
from kubern.store.memory import MemoryStore
from kubern.wire import h1

ADMIN = User("admin", ("system:masters", "system:authenticated"))


def figures(cpu: int, memory: int) -> dict[str, Any]:
    t = "2026-01-01T00:00:00Z"
    return {"cpu": {"time": t, "usageNanoCores": cpu, "usageCoreNanoSeconds": 1}, "memory": {"time": t, "workingSetBytes": memory}}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[MetricsApi]:
    cert, key = own_certificate(str(tmp_path), "n1", ("127.0.0.1",))
    server = Server(MemoryStore())
    await server.start()
    client = Client(server.handle, ADMIN)
    await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    pod = await client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "labels": {"a": "b"}},
                               "spec": {"containers": [{"name": "c", "image": "i"}]}})
    asked = 0

    async def kubelet(r: Request) -> Response:
        nonlocal asked
        asked += 1
        assert r.path == "/stats/summary"
        ref = {"name": "p", "namespace": "default", "uid": pod["metadata"]["uid"]}
        gone = {"name": "gone", "namespace": "default", "uid": "x"}
        return Response(200, [], orjson.dumps({"node": figures(1_000_000, 4096), "pods": [
            {"podRef": ref, "containers": [{"name": "c", **figures(5000, 2048)}], **figures(5000, 2048)},
            {"podRef": gone, "containers": [], **figures(1, 1)}]}))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listening = await h1.serve(kubelet, "127.0.0.1", 0, context)
    await client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"x": "y"}}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": listening.port}}}})
    await client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "silent"}})
    made = MetricsApi(client, Path(cert).read_bytes(), Path(key).read_bytes())  # noqa: ASYNC240
    made.asked = lambda: asked  # type: ignore[attr-defined]
    await made.mount(server.extra_paths, server.remote_rows)
    made.server = server  # type: ignore[attr-defined]
    yield made
    await made.close()
    await listening.close()
    await server.stop()


async def get(api: MetricsApi, path: str, **query: str) -> tuple[int, Any]:
    r = await api.server.handle(Request("GET", PREFIX + path, {k: [v] for k, v in query.items()}, user=ADMIN))  # type: ignore[attr-defined]
    body = r.body if isinstance(r.body, bytes) else b"".join(r.body)
    return r.status, orjson.loads(body)


async def test_nodes_and_pods(api: MetricsApi) -> None:
    status, nodes = await get(api, "/v1beta1/nodes")
    assert status == 200 and [(n["metadata"]["name"], n["usage"]) for n in nodes["items"]] == [("n1", {"cpu": "1000000n", "memory": "4Ki"})]
    _, pods = await get(api, "/v1beta1/namespaces/default/pods")
    assert [(p["metadata"]["name"], p["containers"]) for p in pods["items"]] == [
        ("p", [{"name": "c", "usage": {"cpu": "5000n", "memory": "2Ki"}}])]
    assert (await get(api, "/v1beta1/pods", labelSelector="a=c"))[1]["items"] == []
    assert (await get(api, "/v1beta1/namespaces/default/pods/p"))[1]["kind"] == "PodMetrics"
    assert (await get(api, "/v1beta1/nodes/silent"))[0] == 404
    assert api.asked() == 1  # type: ignore[attr-defined]


async def test_discovery_tells_of_it(api: MetricsApi) -> None:
    status, doc = await get(api, "/v1beta1")
    assert status == 200 and [r["kind"] for r in doc["resources"]] == ["NodeMetrics", "PodMetrics"]
    r = await api.server.handle(Request("GET", "/apis", {}, {  # type: ignore[attr-defined]
        "accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"}, user=ADMIN))
    body = orjson.loads(r.body if isinstance(r.body, bytes) else b"".join(r.body))
    group = next(i for i in body["items"] if i["metadata"]["name"] == "metrics.k8s.io")
    assert [x["resource"] for x in group["versions"][0]["resources"]] == ["nodes", "pods"]
