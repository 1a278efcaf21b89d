"""A cluster for the scheduler: an API server in memory, the controllers a test wants, the scheduler, and nodes whose kubelet is three rules."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client
from kubern.client.loop import run_controllers
from kubern.client.mirror import Mirrors
from kubern.model.controller import Controller
from kubern.model.object import Object, deleting, meta
from kubern.model.request import User
from kubern.model.rows import BUILT_IN
from kubern.model.status import StatusError
from kubern.model.time import rfc3339
from kubern.scheduler.profile import STANDARD, Configuration
from kubern.scheduler.run import Scheduler
from kubern.store.memory import MemoryStore
from tests.controllers.conftest import ADMIN, Cluster

POD, NODE = BUILT_IN["pods"], BUILT_IN["nodes"]


class Stage(Cluster):
    """`scheduler` may be looked into; `seen` holds every pod's name in the order they came."""

    def __init__(self, client: Client, scheduler: Scheduler) -> None:
        super().__init__(client)
        self.scheduler, self.seen = scheduler, list[str]()

    async def node(self, name: str, **allocatable: str) -> None:
        room = {"cpu": "4", "memory": "8Gi", "pods": "110", **{k.replace("__", "/"): v for k, v in allocatable.items()}}
        await self.client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                                  "status": {"allocatable": room, "capacity": room}})
        await self.client.patch(NODE, "", name, {"spec": {"taints": None}})              # it is ready

    async def priorities(self, **values: int) -> None:
        for name, value in values.items():
            await self.client.create({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value})

    async def pod(self, name: str, labels: dict[str, str] | None = None, requests: dict[str, str] | None = None, **spec: Any) -> Object:
        return await self.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": labels or {}},
                                         "spec": pod_spec(requests or {}, **spec)})

    async def placed(self, name: str) -> str:
        async def node() -> Any:
            return (await self.get("pods", name))["spec"].get("nodeName")
        return str(await self.until(node))

    async def names(self) -> set[str]:
        return {meta(p)["name"] for p in await self.list("pods") if not deleting(p)}


def pod_spec(requests: dict[str, str], **spec: Any) -> Object:
    extended = {k: v for k, v in requests.items() if "/" in k}
    return {"terminationGracePeriodSeconds": 1, **spec,
            "containers": [{"name": "c", "image": "x", "resources": {"requests": requests, **({"limits": extended} if extended else {})}}]}


async def kubelet(stage: Stage, client: Client, grace_s: float) -> None:
    """Bound pods run at once; what is being deleted is gone after a while, each taking longer than the one before."""
    async def end(pod: Object, number: int) -> None:
        await asyncio.sleep(grace_s * number)
        try:
            await client.delete(POD, meta(pod)["namespace"], meta(pod)["name"], uid=meta(pod)["uid"], grace_s=0)
        except StatusError:
            pass

    ends: dict[str, asyncio.Task[None]] = {}
    numbers = itertools.count(1)
    mirrors = Mirrors(client)

    def on_pod(old: Object | None, new: Object | None) -> None:
        if new is None:
            return
        if old is None:
            stage.seen.append(meta(new)["name"])
        uid = meta(new)["uid"]
        if deleting(new) and uid not in ends:
            ends[uid] = asyncio.create_task(end(new, next(numbers)))
        elif new["spec"].get("nodeName") and not (new.get("status") or {}).get("startTime"):
            ends[uid + "run"] = asyncio.create_task(run(new))

    async def run(pod: Object) -> None:
        status = {"phase": "Running", "startTime": rfc3339(time.time()), "conditions": [{"type": "Ready", "status": "True"}]}
        try:
            await client.patch(POD, meta(pod)["namespace"], meta(pod)["name"], {"status": status}, "strategic", subresource="status")
        except StatusError:
            pass
    mirrors.mirror("pods").handlers.append(on_pod)
    try:
        await mirrors.synced(("pods",))
        await asyncio.Event().wait()
    finally:
        for task in ends.values():
            task.cancel()
        await asyncio.gather(*ends.values(), return_exceptions=True)
        await mirrors.close()


@asynccontextmanager
async def running(rows: tuple[Controller, ...], grace_s: float, configuration: Configuration) -> AsyncIterator[Stage]:
    server = Server(MemoryStore(), settings=ApiSettings(authorization=False))
    await server.start()
    client, masters = Client(server.handle, ADMIN), ("system:masters", "system:authenticated")
    await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    mirrors = Mirrors(Client(server.handle, User("system:kube-scheduler", masters)))
    stage = Stage(client, Scheduler(mirrors.client, mirrors, time.time, lambda n: 0, configuration))
    ready = asyncio.Event()
    tasks = [asyncio.create_task(stage.scheduler.run(ready.set)), asyncio.create_task(kubelet(stage, Client(server.handle, User("kubelet", masters)), grace_s))]
    if rows:
        tasks.append(asyncio.create_task(run_controllers(rows, lambda user, agent: Client(server.handle, user, agent), clock=time.time)))
    try:
        await asyncio.wait_for(ready.wait(), 10)
        yield stage
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await mirrors.close()
        await server.stop()


@pytest.fixture
def stage() -> Callable[..., Any]:
    """`async with stage(rows of controllers…, grace_s=…) as s:`"""
    def start(*rows: Controller, grace_s: float = 0.3, configuration: Configuration = STANDARD) -> Any:
        return running(rows, grace_s, configuration)
    return start
