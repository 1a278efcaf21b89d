"""A view made of lists, a way to drive a reconcile by hand, and a whole API server in memory for what takes several controllers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from kubern.client.client import Client
from kubern.client.loop import run_controllers
from kubern.client.mirror import index_of
from kubern.model.controller import Controller
from kubern.model.intent import Emit, Failed
from kubern.model.object import Object, namespace, uid
from kubern.model.request import User
from kubern.model.resource import Resource
from kubern.model.rows import BUILT_IN

ADMIN = User("admin", ("system:masters", "system:authenticated"))


class ListView:
    """View over plain lists: {"pods": [...], …}."""

    def __init__(self, **resources: list[Object]) -> None:
        self.all = {k.replace("__", "."): v for k, v in resources.items()}

    def get(self, resource: str, space: str, name: str) -> Object | None:
        return next((o for o in self.list(resource, space or None) if o["metadata"]["name"] == name), None)

    def list(self, resource: str, space: str | None = None) -> Iterable[Object]:
        return [o for o in self.all.get(resource, []) if space is None or namespace(o) == space]

    def by(self, resource: str, index: str, value: str) -> Iterable[Object]:
        fn = index_of(index)
        return [o for o in self.all.get(resource, []) if value in list(fn(o))]

    def owned(self, resource: str, owner_uid: str) -> Iterable[Object]:
        return self.by(resource, "owner", owner_uid)

    def find(self, wanted: str) -> Object | None:
        return next((o for objs in self.all.values() for o in objs if uid(o) == wanted), None)

    def dependents(self, wanted: str) -> Iterable[Object]:
        return [o for objs in self.all.values() for o in objs if wanted in list(index_of("owner")(o))]

    def served_elsewhere(self, api_version: str, kind: str) -> Resource | None:
        return None


def drive(steps: Any, answer: Callable[[Any], Any] = lambda i: getattr(i, "obj", None)) -> list[Any]:
    """Runs a reconcile; `answer(intent)` is what it gets back (by default the object it sent). All intents in order, lists flattened."""
    out: list[Any] = []
    result: Any = None
    while True:
        try:
            intent = steps.send(result)
        except StopIteration:
            return out
        if isinstance(intent, (list, tuple)):
            out += intent
            result = [answer(i) for i in intent]
        else:
            out.append(intent)
            result = answer(intent)


def of(intents: list[Any], *types: type) -> list[Any]:
    return [i for i in intents if isinstance(i, types)]


def emitted(intents: list[Any]) -> list[tuple[str, str]]:
    return [(e.reason, e.message) for e in intents if isinstance(e, Emit)]


def refuse(code: int, reason: str, message: str) -> Callable[[Any], Any]:
    return lambda intent: Failed(intent, code, reason, message)


class Cluster:
    """An API server in memory and the controllers a test wants."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def get(self, resource: str, name: str, space: str = "default") -> Object:
        return await self.client.get(BUILT_IN[resource], space, name)

    async def list(self, resource: str, space: str = "default") -> list[Object]:
        return (await self.client.list(BUILT_IN[resource], space))[0]

    async def until(self, check: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        """Waits until the awaited `check()` is true; gives its value."""
        async with asyncio.timeout(timeout_s):
            while True:
                value = await check()
                if value:
                    return value
                await asyncio.sleep(0.01)


@pytest.fixture
async def cluster() -> AsyncIterator[Callable[..., Any]]:
    """`await cluster(rows)` starts them over a fresh server."""
    from kubern.api.handle import Server
    from kubern.api.settings import ApiSettings
    from kubern.store.memory import MemoryStore

    server = Server(MemoryStore(), settings=ApiSettings(authorization=False, bootstrap=False))
    await server.start()
    tasks: list[asyncio.Task[None]] = []

    async def start(*rows: Controller) -> Cluster:
        ready = asyncio.Event()
        tasks.append(asyncio.create_task(run_controllers(rows, lambda user, agent: Client(server.handle, user, agent), clock=time.time,
                                                         ready=ready.set)))
        client = Client(server.handle, ADMIN)
        await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
        await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
        await asyncio.wait_for(ready.wait(), 10)
        return Cluster(client)
    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.stop()


def pod(name: str, *, node: str = "n", phase: str = "Running", is_ready: bool = True, labels: dict[str, str] | None = None,
        owner: Object | None = None, **meta: Any) -> Object:
    m: dict[str, Any] = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": labels or {"app": "a"},
                         "creationTimestamp": "2030-01-01T00:00:00Z", "resourceVersion": "1", **meta}
    if owner is not None:
        m["ownerReferences"] = [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
                                 "uid": owner["metadata"]["uid"], "controller": True}]
    status = {"phase": phase, "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
              "conditions": [{"type": "Ready", "status": "True" if is_ready else "False", "lastTransitionTime": "2030-01-01T00:00:10Z"}]}
    spec: dict[str, Any] = {"containers": [{"name": "c", "image": "x", "ports": [{"name": "web", "containerPort": 8080}]}]}
    if node:
        spec["nodeName"] = node
    return {"apiVersion": "v1", "kind": "Pod", "metadata": m, "spec": spec, "status": status}


def workload(kind: str, name: str = "w", api_version: str = "apps/v1", **spec: Any) -> Object:
    return {"apiVersion": api_version, "kind": kind,
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": 1, "resourceVersion": "1",
                         "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"selector": {"matchLabels": {"app": "a"}},
                     "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}, **spec}}
