"""Simulated nodes against the real API server in memory: registration, pods to Running, ends, deletion, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kubern.api.handle import Server
from kubern.client.client import Client
from kubern.kubelet.hollow import Hollow, Shape, shapes
from kubern.kubelet.simulated import SimulatedRuntime, behaviour
from kubern.model.request import User
from kubern.model.resources import by_path
from kubern.model.status import StatusError
from kubern.store.memory import MemoryStore

PODS, NODES = by_path["", "v1", "pods"], by_path["", "v1", "nodes"]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    server = Server(MemoryStore())
    await server.start()
    client = Client(server.handle, User("admin", ("system:masters", "system:authenticated")))
    try:
        await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    except StatusError as e:
        assert e.code == 409
    yield client
    await server.stop()


@pytest.fixture
async def hollow(client: Client) -> AsyncIterator[Hollow]:
    h = Hollow(client, [*shapes(2), Shape("big", cpu="96")])
    task = asyncio.create_task(h.run())
    async with asyncio.timeout(5):
        await h.ready.wait()
    yield h
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def pod(name: str, *command: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": {
        "nodeName": "fake-0", "containers": [{"name": "c", "image": "i", **({"command": list(command)} if command else {})}], **spec}}


async def until(client: Client, name: str, check: Any) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            p = await client.get(PODS, "default", name)
            if check(p.get("status") or {}):
                return p
            await asyncio.sleep(0.01)


async def gone(client: Client, name: str) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await client.get(PODS, "default", name)
            except StatusError as e:
                assert e.code == 404
                return
            await asyncio.sleep(0.01)


def ready(status: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())


def test_behaviour_is_in_the_command() -> None:
    assert behaviour({"command": ["exit:3"]}) == (3, True)
    assert behaviour({"args": ["x", "never-ready"]}) == (None, False)
    assert behaviour({}) == (None, True)


async def test_nodes_are_registered(client: Client, hollow: Hollow) -> None:
    nodes, _ = await client.list(NODES)
    by_name = {n["metadata"]["name"]: n for n in nodes}
    assert set(by_name) == {"fake-0", "fake-1", "big"}
    assert by_name["fake-1"]["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-1"
    assert by_name["fake-0"]["status"]["allocatable"]["cpu"] == "4" and by_name["big"]["status"]["capacity"]["cpu"] == "96"
    lease = await client.get(by_path["coordination.k8s.io", "v1", "leases"], "kube-node-lease", "fake-0")
    assert lease["spec"]["holderIdentity"] == "fake-0"


async def test_a_pod_runs_and_is_deleted(client: Client, hollow: Hollow) -> None:
    await client.create(pod("a"))
    p = await until(client, "a", ready)
    assert p["status"]["phase"] == "Running" and p["status"]["podIP"] and p["status"]["containerStatuses"][0]["started"]
    await client.delete(PODS, "default", "a")
    await gone(client, "a")


async def test_ends_and_never_ready(client: Client, hollow: Hollow) -> None:
    await client.create(pod("ok", "exit:0", restartPolicy="Never"))
    await client.create(pod("bad", "exit:7", restartPolicy="Never"))
    await client.create(pod("nr", "never-ready"))
    assert (await until(client, "ok", lambda s: s.get("phase") == "Succeeded"))["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    assert (await until(client, "bad", lambda s: s.get("phase") == "Failed"))["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 7
    assert not ready((await until(client, "nr", lambda s: s.get("phase") == "Running"))["status"])


async def test_crash_loop_and_init_containers(client: Client, hollow: Hollow) -> None:
    await client.create(pod("loop", "exit:1"))
    await client.create(pod("init", initContainers=[{"name": "i", "image": "x"}, {"name": "s", "image": "x", "restartPolicy": "Always"}]))
    s = (await until(client, "loop", lambda s: s.get("containerStatuses", [{}])[0].get("state", {}).get("waiting")))["status"]
    assert s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff" and s["containerStatuses"][0]["restartCount"] == 1
    s = (await until(client, "init", ready))["status"]
    assert [next(iter(x["state"])) for x in s["initContainerStatuses"]] == ["terminated", "running"]


async def test_one_status_a_pod_and_none_at_once_for_one_deleted_without_grace(client: Client, hollow: Hollow) -> None:
    await client.create({**pod("a"), "metadata": {"name": "a", "namespace": "default", "finalizers": ["example.com/held"]}})
    running = await until(client, "a", ready)
    await asyncio.sleep(0.1)
    assert (await client.get(PODS, "default", "a"))["metadata"]["resourceVersion"] == running["metadata"]["resourceVersion"]
    await client.delete(PODS, "default", "a", grace_s=0)
    await asyncio.sleep(0.1)
    assert ready((await client.get(PODS, "default", "a"))["status"])
    await until(client, "a", lambda s: "terminated" in s["containerStatuses"][0]["state"])       # something holds it: it ends all the same


async def test_two_hundred_pods(client: Client, hollow: Hollow) -> None:
    await asyncio.gather(*(client.create(pod(f"p{i}", nodeName=f"fake-{i % 2}")) for i in range(200)))
    async with asyncio.timeout(20):
        while True:
            items, _ = await client.list(PODS, "default")
            if sum(ready(p.get("status") or {}) for p in items) == 200:
                break
            await asyncio.sleep(0.05)
    assert len({p["status"]["podIP"] for p in items}) == 200


async def test_a_restarted_process_adopts_what_runs(client: Client, hollow: Hollow) -> None:
    await client.create(pod("a"))
    p = await until(client, "a", ready)
    again = Hollow(client, shapes(2))
    task = asyncio.create_task(again.run())
    async with asyncio.timeout(5):
        await again.ready.wait()
    await asyncio.sleep(0.3)
    now = (await client.get(PODS, "default", "a"))["status"]
    assert now["containerStatuses"][0]["restartCount"] == 0 and now["podIP"] == p["status"]["podIP"] and ready(now)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_runtime_protocol() -> None:
    r = SimulatedRuntime()
    box = await r.run_sandbox({"metadata": {"uid": "u", "namespace": "n", "name": "p"}, "hostname": "p"})
    id_ = await r.create(box, {"metadata": {"name": "c", "attempt": 0}, "image": {"image": "i"}, "command": ["exit:2"]}, {})
    await r.start(id_)
    assert (await r.container(id_)).state == "running"
    await asyncio.sleep(0.2)
    assert ((await r.container(id_)).state, (await r.container(id_)).exit_code) == ("exited", 2)
    await r.remove(id_)
    await r.stop_sandbox(box)
    await r.remove_sandbox(box)
    assert await r.sandboxes() == []
