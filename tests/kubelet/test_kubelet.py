"""The whole kubelet over the simulated runtime and the real API server in memory: no containers, everything else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kubern.api.handle import Server
from kubern.client.client import Client
from kubern.kubelet.run import Kubelet, KubeletSettings
from kubern.kubelet.simulated import SimulatedRuntime
from kubern.model.request import User
from kubern.model.resources import by_path
from kubern.model.status import StatusError
from kubern.store.memory import MemoryStore

PODS, NODES, EVENTS = by_path["", "v1", "pods"], by_path["", "v1", "nodes"], by_path["", "v1", "events"]


class World:
    """An API server, a runtime, and a kubelet that can be stopped and started over them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.server = Server(MemoryStore())
        self.client = Client(self.server.handle, User("admin", ("system:masters", "system:authenticated")))
        self.ahead_s = 0.0                            # how far the node's clock is from ours
        self.runtime = SimulatedRuntime(self.clock)
        self.kubelet: Kubelet | None = None
        self._task: asyncio.Task[None] | None = None

    def clock(self) -> float:
        return time.time() + self.ahead_s

    async def start(self) -> None:
        s = KubeletSettings("n1", ("192.0.2.7",), root=str(self.home / "root"), log_root=str(self.home / "logs"), port=0, cluster_dns=("10.96.0.10",),
                            static_pods=str(self.home / "manifests"))
        self.kubelet = Kubelet(s, self.client, self.runtime, self.clock)
        self._task = asyncio.create_task(self.kubelet.run())
        async with asyncio.timeout(5):
            await self.kubelet.ready.wait()
            await self.kubelet.presence.registered.wait()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def create(self, name: str, *command: str, **spec: Any) -> dict[str, Any]:
        return await self.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": {
            "nodeName": "n1", "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "i:1", **({"command": list(command)} if command else {})}], **spec}})

    async def until(self, name: str, check: Any) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(StatusError):
                    p = await self.client.get(PODS, "default", name)
                    if check(p.get("status") or {}):
                        return p
                await asyncio.sleep(0.02)

    async def gone(self, name: str) -> None:
        async with asyncio.timeout(10):
            with contextlib.suppress(StatusError):
                while True:
                    await self.client.get(PODS, "default", name)
                    await asyncio.sleep(0.02)

    async def reasons(self, name: str) -> list[str]:
        items, _ = await self.client.list(EVENTS, "default")
        return [e["reason"] for e in items if e["involvedObject"]["name"] == name]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    w = World(tmp_path)
    await w.server.start()
    await w.client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    await w.start()
    yield w
    await w.stop()
    await w.server.stop()


def ready(status: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())


def reason(status: dict[str, Any]) -> str:
    return next(iter(((status.get("containerStatuses") or [{}])[0].get("state") or {"": {}}).values())).get("reason", "")


async def test_the_node_says_what_it_is(world: World) -> None:
    node = await world.client.get(NODES, "", "n1")
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "n1"
    assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"
    assert node["status"]["nodeInfo"]["containerRuntimeVersion"] == "simulated://1"
    assert node["status"]["addresses"][0] == {"type": "InternalIP", "address": "192.0.2.7"}
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(StatusError):
                await world.client.get(by_path["coordination.k8s.io", "v1", "leases"], "kube-node-lease", "n1")
                break
            await asyncio.sleep(0.02)


async def test_a_life(world: World) -> None:
    await world.create("a")
    p = await world.until("a", ready)
    assert (p["status"]["phase"], p["status"]["hostIP"]) == ("Running", "192.0.2.7")
    await world.client.delete(PODS, "default", "a")
    await world.gone("a")
    async with asyncio.timeout(5):
        while await world.runtime.sandboxes() or list((world.home / "logs").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await world.reasons("a"))[:5] == ["Pulling", "Pulled", "Created", "Started", "Killing"]


async def test_success_failure_and_crash_loop(world: World) -> None:
    await world.create("ok", "exit:0", restartPolicy="Never")
    await world.create("bad", "exit:3", restartPolicy="Never")
    await world.create("loop", "exit:1")
    await world.until("ok", lambda s: s.get("phase") == "Succeeded")
    p = await world.until("bad", lambda s: s.get("phase") == "Failed")
    assert p["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    p = await world.until("loop", lambda s: reason(s) == "CrashLoopBackOff")
    assert p["status"]["containerStatuses"][0]["restartCount"] == 1 and p["status"]["phase"] == "Running"


async def test_what_keeps_a_container_waiting(world: World) -> None:
    await world.create("env", containers=[{"name": "c", "image": "i:1", "envFrom": [{"configMapRef": {"name": "later"}}]}])
    await world.create("name", containers=[{"name": "c", "image": "BAD NAME"}])
    await world.until("env", lambda s: reason(s) == "CreateContainerConfigError")
    await world.until("name", lambda s: reason(s) == "InvalidImageName")
    await world.client.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later", "namespace": "default"}, "data": {"a": "b"}})
    await world.until("env", ready)


async def test_refused_by_the_node(world: World) -> None:
    await world.create("u", hostUsers=False)
    p = await world.until("u", lambda s: s.get("phase") == "Failed")
    assert p["status"]["reason"] == "UserNamespacesNotSupported" and "containerStatuses" not in p["status"]


async def test_a_deadline_ends_it(world: World) -> None:
    await world.create("d", activeDeadlineSeconds=1)
    p = await world.until("d", lambda s: s.get("phase") == "Failed")
    assert p["status"]["reason"] == "DeadlineExceeded" and "DeadlineExceeded" in await world.reasons("d")


async def test_a_finalizer_keeps_the_object_and_not_the_containers(world: World) -> None:
    await world.create("f")
    await world.until("f", ready)
    await world.client.patch(PODS, "default", "f", {"metadata": {"finalizers": ["example.com/f"]}})
    await world.client.delete(PODS, "default", "f")
    p = await world.until("f", lambda s: s.get("phase") in ("Failed", "Succeeded"))
    assert p["metadata"]["finalizers"] == ["example.com/f"] and not any(x.ready for x in await world.runtime.sandboxes())
    await world.client.patch(PODS, "default", "f", {"metadata": {"finalizers": None}})
    await world.gone("f")


async def test_a_restart_adopts_what_runs_and_ends_what_is_gone(world: World) -> None:
    await world.create("keep")
    await world.create("gone")
    before = (await world.until("keep", ready))["status"]["containerStatuses"][0]
    await world.until("gone", ready)
    await world.stop()
    await world.client.delete(PODS, "default", "gone", grace_s=0)
    await world.gone("gone")
    await world.start()
    async with asyncio.timeout(10):
        while len(await world.runtime.sandboxes()) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    after = (await world.until("keep", ready))["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


async def test_a_lost_sandbox_is_replaced(world: World) -> None:
    await world.create("s")
    p = await world.until("s", ready)
    for box in await world.runtime.sandboxes():
        await world.runtime.stop_sandbox(box.id)
    await world.until("s", lambda s: ready(s) and s["podIP"] != p["status"]["podIP"])
    assert "SandboxChanged" in await world.reasons("s")


async def test_static_pods_are_mirrored(world: World) -> None:
    (world.home / "manifests").mkdir()
    (world.home / "manifests" / "w.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: w}\nspec: {containers: [{name: c, image: i}]}\n")
    await world.stop()
    await world.start()
    p = await world.until("w-n1", ready)
    assert p["metadata"]["annotations"]["kubernetes.io/config.source"] == "file" and p["metadata"]["ownerReferences"][0]["kind"] == "Node"


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_clock_that_jumps_stops_nothing(world: World, jump_s: float) -> None:
    """The kernel's time namespaces do not cover the wall clock, so the node's clock is set through the kubelet's own seam."""
    await world.create("steady")
    await world.create("loop", "exit:1", terminationGracePeriodSeconds=1)
    await world.until("steady", ready)
    await world.until("loop", lambda s: reason(s) == "CrashLoopBackOff")
    world.ahead_s = jump_s
    for name in ("steady", "loop"):
        assert world.kubelet
        world.kubelet.wake((await world.client.get(PODS, "default", name))["metadata"]["uid"])
    await world.until("loop", lambda s: s["containerStatuses"][0]["restartCount"] >= 2)
    await world.create("later")
    await world.until("later", ready)
    p = await world.client.get(PODS, "default", "steady")
    assert ready(p["status"]) and p["status"]["containerStatuses"][0]["restartCount"] == 0
    await world.client.delete(PODS, "default", "steady")
    await world.gone("steady")
