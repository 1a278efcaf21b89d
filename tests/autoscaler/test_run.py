"""The autoscaler with scheduler and node controllers over simulated nodes: up and down, failures back off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from kubern.api.handle import Server
from kubern.autoscaler.groups import parse_group
from kubern.autoscaler.options import parse_options
from kubern.autoscaler.providers import Named, Provider, Simulated
from kubern.autoscaler.run import Autoscaler
from kubern.client.client import Client
from kubern.client.loop import run_controllers
from kubern.client.mirror import Mirrors
from kubern.controllers import controllers
from kubern.controllers.context import Context
from kubern.kubelet.hollow import Hollow
from kubern.model.request import User
from kubern.model.resources import by_kind
from kubern.scheduler.grow import Group
from kubern.scheduler.run import Scheduler
from kubern.store.memory import MemoryStore

POD, NODE, EVENT = by_kind["v1", "Pod"], by_kind["v1", "Node"], by_kind["v1", "Event"]
ROWS = ("node",)
FAST = "scan-interval=50ms,scale-down-unneeded-time=200ms,scale-down-delay-after-add=0s,scale-down-delay-after-failure=0s,max-pod-eviction-time=300ms"


@asynccontextmanager
async def api() -> AsyncIterator[Client]:
    """A server with the namespace the pods live in."""
    server = Server(MemoryStore())
    await server.start()
    client = Client(server.handle, User("admin", ("system:masters", "system:authenticated")))
    await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "work"}})
    await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "work"}})
    try:
        yield client
    finally:
        await server.stop()


@asynccontextmanager
async def scaling(client: Client, provider: Provider, groups: list[Group], timings: str, *beside: Coroutine[Any, Any, None]) -> AsyncIterator[Autoscaler]:
    """An autoscaler, a scheduler and what runs beside them."""
    mine, theirs = Mirrors(client), Mirrors(client)
    scaler = Autoscaler(client, mine, provider, groups, parse_options(timings), time.time)
    tasks = [asyncio.create_task(w) for w in (*beside, Scheduler(client, theirs, time.time).run(), scaler.run())]
    try:
        yield scaler
    finally:
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await mine.close()
        await theirs.close()


@asynccontextmanager
async def cluster(group: str | list[str], timings: str = FAST, provider: Callable[[Hollow], Any] = Simulated) -> AsyncIterator[tuple[Client, Autoscaler]]:
    async with api() as client:
        hollow, groups = Hollow(client, []), [parse_group(g) for g in ([group] if isinstance(group, str) else group)]
        rows = [r for r in controllers(Context()) if any(r.name.startswith(n) for n in ROWS)]
        node_controllers = run_controllers(rows, lambda user, agent="": client)
        async with scaling(client, Named(groups, provider(hollow)), groups, timings, hollow.run(), node_controllers) as scaler:
            yield client, scaler


def pod(name: str, cpu: str) -> dict[str, Any]:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": True}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "work", "labels": {"app": "a"}, "ownerReferences": [owner]},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}}


async def until(ask: Callable[[], Any], what: str) -> Any:
    try:
        async with asyncio.timeout(15):
            while True:
                found = await ask()
                if found:
                    return found
                await asyncio.sleep(0.03)
    except TimeoutError:
        raise AssertionError(what) from None


async def names(client: Client) -> list[str]:
    return sorted(n["metadata"]["name"] for n in (await client.list(NODE))[0])


async def reasons(client: Client) -> set[str]:
    return {e["reason"] for e in (await client.list(EVENT))[0]}


async def test_up_and_down_again_but_never_below_min() -> None:
    async with cluster("name=g,min=1,max=3,cpu=2") as (client, _):
        for i in range(3):
            await client.create(pod(f"p{i}", "1500m"))

        async def placed() -> bool:
            return all(p["spec"].get("nodeName") for p in (await client.list(POD))[0])
        await until(placed, "all pods have a node")
        assert await names(client) == ["g-0", "g-1", "g-2"]
        for i in range(3):
            await client.delete(POD, "work", f"p{i}", grace_s=0)

        async def small() -> bool:
            return len(await names(client)) == 1
        await until(small, "one node is left")
        await asyncio.sleep(0.5)
        assert len(await names(client)) == 1
        assert {"TriggeredScaleUp", "ScaleDown", "ScaledUpGroup", "ScaleDownEmpty"} <= await reasons(client)


class Broken(Simulated):
    """Makes no nodes."""

    async def make(self, group: Group, name: str) -> None:
        raise OSError("no room")


async def test_a_group_that_fails_is_left_alone_for_a_while() -> None:
    async with cluster("name=g,max=3", provider=Broken) as (client, scaler):
        await client.create(pod("p", "1"))

        async def told() -> bool:
            items = (await client.list(EVENT))[0]
            return any("in backoff after failed scale-up" in e["message"] for e in items)
        await until(told, "the pod hears of the backoff")
        assert "FailedToScaleUpGroup" in await reasons(client)
        assert scaler.backoff["g"].for_s == 300 and not scaler.requested


class Silent(Simulated):
    """Makes nodes that never show up."""

    async def make(self, group: Group, name: str) -> None:
        return None


async def test_a_node_that_never_comes_is_given_up() -> None:
    async with cluster("name=g,max=3", FAST + ",max-node-provision-time=300ms", Silent) as (client, scaler):
        await client.create(pod("p", "1"))

        async def given_up() -> bool:
            return "ScaleUpTimedOut" in await reasons(client)
        await until(given_up, "the request times out")
        assert not scaler.requested and "g" in scaler.backoff
