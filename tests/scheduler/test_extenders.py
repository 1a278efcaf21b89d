"""Extenders over real HTTP: they take nodes out, add to scores, choose victims and bind; who may be missing is passed over."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.model.request import User
from kubern.model.resources import by_kind
from kubern.scheduler.configuration import parse
from kubern.scheduler.run import Scheduler
from kubern.store.memory import MemoryStore
from tests.controllers.conftest import ADMIN

POD = by_kind["v1", "Pod"]


class Service:
    """An extender of the test's own: `answers[verb](body)`; what it heard is in `heard`."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                verb, body = self.path.rpartition("/")[2], json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.heard.append((verb, body))
                found = outer.answers[verb](body) if verb in outer.answers else None
                text = json.dumps(found).encode()
                self.send_response(200 if found is not None else 500)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/scheduler"


@pytest.fixture
def service() -> Iterator[Service]:
    s = Service()
    yield s
    s.server.shutdown()
    s.server.server_close()


class Cluster:
    def __init__(self, client: Client) -> None:
        self.client = client

    async def pod(self, name: str, **spec: Any) -> Any:
        return await self.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": "1"}}}], **spec}})

    async def until(self, name: str, check: Callable[[Any], Any]) -> Any:
        async with asyncio.timeout(10):
            while True:
                found = check(await self.client.get(POD, "default", name))
                if found:
                    return found
                await asyncio.sleep(0.01)

    async def node_of(self, name: str) -> str:
        return str(await self.until(name, lambda p: p["spec"].get("nodeName")))

    async def refusal(self, name: str) -> tuple[str, str]:
        def look(p: Any) -> Any:
            c = next((c for c in (p.get("status") or {}).get("conditions") or () if c["type"] == "PodScheduled"), None)
            return c and (c["reason"], c["message"])
        return await self.until(name, look)                                # type: ignore[no-any-return]


async def _run(extenders: list[dict[str, Any]], test: Callable[[Cluster], Any]) -> None:
    import time

    server = Server(MemoryStore(), settings=ApiSettings(authorization=False))
    await server.start()
    client = Client(server.handle, ADMIN)
    await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    for n in ("a", "b", "c"):
        await client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": n}, "status": {
            "allocatable": {"cpu": "2", "memory": "8Gi", "pods": "9", "x.com/gpu": "1"}}})
        await client.patch(by_kind["v1", "Node"], "", n, {"spec": {"taints": None}})              # it is ready
    configuration = parse({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration", "extenders": extenders})
    mirrors = Mirrors(Client(server.handle, User("system:kube-scheduler", ("system:masters",))))
    task = asyncio.create_task(Scheduler(mirrors.client, mirrors, time.time, lambda n: 0, configuration).run())
    try:
        await test(Cluster(client))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await mirrors.close()
        await server.stop()


async def test_it_filters_scores_and_binds(service: Service) -> None:
    service.answers["filter"] = lambda b: {"nodenames": [n for n in b["NodeNames"] if n != "a"], "failedNodes": {"a": "too old"}}
    service.answers["rank"] = lambda b: [{"Host": n, "Score": 10 if n == "c" else 0} for n in b["NodeNames"]]
    service.answers["bind"] = lambda b: {}

    async def test(c: Cluster) -> None:
        await c.pod("p")
        async with asyncio.timeout(10):
            while not any(v == "bind" for v, _ in service.heard):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [v for v, _ in service.heard] == ["filter", "rank", "bind"]
        assert service.heard[0][1]["Pod"]["metadata"]["name"] == "p" and service.heard[0][1]["Nodes"] is None
        bound = service.heard[2][1]
        assert (bound["PodName"], bound["PodNamespace"], bound["Node"]) == ("p", "default", "c") and bound["PodUID"]
    await _run([{"urlPrefix": service.url, "filterVerb": "filter", "prioritizeVerb": "rank", "weight": 5, "bindVerb": "bind", "nodeCacheCapable": True}], test)


async def test_it_is_given_whole_nodes_and_its_reasons_are_told(service: Service) -> None:
    service.answers["filter"] = lambda b: {"Nodes": {"Items": []}, "FailedNodes": {"a": "no"}, "FailedAndUnresolvableNodes": {"b": "never", "c": "never"}}

    async def test(c: Cluster) -> None:
        await c.pod("p")
        reason, message = await c.refusal("p")
        assert reason == "Unschedulable" and message.startswith("0/3 nodes are available: 1 no, 2 never.")
        assert [n["metadata"]["name"] for n in service.heard[0][1]["Nodes"]["items"]] == ["a", "b", "c"]
    await _run([{"urlPrefix": service.url, "filterVerb": "filter"}], test)


async def test_who_must_be_heard_and_who_may_be_missing(service: Service) -> None:
    async def deaf(c: Cluster) -> None:
        await c.pod("p")
        reason, message = await c.refusal("p")
        assert reason == "SchedulerError" and message.startswith("failed filter with extender at URL http://127.0.0.1:") and message.endswith("code 500")
    await _run([{"urlPrefix": service.url, "filterVerb": "filter"}], deaf)

    async def placed(c: Cluster) -> None:
        await c.pod("p")
        assert await c.node_of("p")
    await _run([{"urlPrefix": service.url, "filterVerb": "filter", "ignorable": True}], placed)
    await _run([{"urlPrefix": "http://127.0.0.1:1", "filterVerb": "filter", "ignorable": True, "httpTimeout": "1s"}], placed)
    await _run([{"urlPrefix": service.url, "prioritizeVerb": "rank", "weight": 1}], placed)       # scores are never waited for in vain


async def test_only_pods_with_its_resources_concern_it(service: Service) -> None:
    service.answers["filter"] = lambda b: {"nodenames": ["b"]}

    async def test(c: Cluster) -> None:
        await c.pod("plain")
        assert await c.node_of("plain") and not service.heard
        for n in range(2):                                     # more than one node has: the resource is the extender's to count
            await c.pod(f"gpu{n}", containers=[{"name": "c", "image": "x", "resources": {"limits": {"x.com/gpu": "1"}}}])
            assert await c.node_of(f"gpu{n}") == "b"
    await _run([{"urlPrefix": service.url, "filterVerb": "filter", "nodeCacheCapable": True,
                 "managedResources": [{"name": "x.com/gpu", "ignoredByScheduler": True}]}], test)


async def test_it_chooses_among_victims(service: Service) -> None:
    def preempt(b: Any) -> Any:
        victims = b["NodeNameToMetaVictims"]
        return {"NodeNameToMetaVictims": {"b": {"Pods": victims["b"]["Pods"], "NumPDBViolations": 0}}}
    service.answers["preempt"] = preempt

    async def test(c: Cluster) -> None:
        await c.client.create({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 5})
        for n in ("a", "b", "c"):
            await c.pod(f"low-{n}", nodeName=n, containers=[{"name": "c", "image": "x", "resources": {"requests": {"cpu": "2"}}}])
        await c.pod("vip", priorityClassName="high")
        assert await c.node_of("vip") == "b"
        left = {p["metadata"]["name"] for p in (await c.client.list(POD, "default"))[0] if not p["metadata"].get("deletionTimestamp")}
        assert left == {"low-a", "low-c", "vip"}
    await _run([{"urlPrefix": service.url, "preemptVerb": "preempt", "nodeCacheCapable": True}], test)
