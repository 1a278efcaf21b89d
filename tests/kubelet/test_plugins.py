"""Device plugins and resource claims: registration, devices for pods, what becomes of them over restarts, and who has what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kubern.api.handle import Server
from kubern.client.client import Client
from kubern.kubelet import cdi, podresources, proto
from kubern.kubelet.claims import CLAIMS, SLICES, Claims, NotPrepared
from kubern.kubelet.devices import Devices, NoDevices
from kubern.kubelet.grants import ANYWHERE
from kubern.kubelet.plugins import watch
from kubern.kubelet.pods import every_container
from kubern.kubelet.run import Kubelet, KubeletSettings
from kubern.kubelet.simulated import SimulatedRuntime
from kubern.model.request import User
from kubern.model.resources import by_path
from kubern.store.memory import MemoryStore
from tests.kubelet.drivers import DevicePlugin, DraDriver, registrar

GPU = "example.com/gpu"


async def until(check: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert check(), what


def pod(uid: str, count: int = 0, **spec: Any) -> dict[str, Any]:
    limits = {"resources": {"limits": {GPU: str(count)}, "requests": {GPU: str(count)}}} if count else {}
    return {"metadata": {"name": uid, "namespace": "default", "uid": uid}, "spec": {"containers": [{"name": "c", "image": "i", **limits}], **spec},
            "status": {}}


# --- device plugins ---

@pytest.fixture
async def devices(tmp_path: Path) -> AsyncIterator[tuple[Devices, DevicePlugin]]:
    d, plugin = Devices(str(tmp_path), lambda: 1000.0), DevicePlugin(tmp_path, GPU, ["a", "b", "c"])
    task = asyncio.create_task(d.run())
    await until(lambda: (tmp_path / "device-plugins/kubelet.sock").exists(), "no socket")
    await plugin.start()
    yield d, plugin
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await plugin.stop()


async def allocate(d: Devices, p: dict[str, Any]) -> None:
    for kind, c in every_container(p["spec"]):
        await d.grant(p, kind, c, ANYWHERE)


async def test_a_plugin_registers_and_its_devices_count(devices: tuple[Devices, DevicePlugin]) -> None:
    d, plugin = devices
    with pytest.raises(grpc.aio.AioRpcError, match="not supported by kubelet"):
        await plugin.register("v1alpha")
    await plugin.register()
    await until(lambda: d.capacity() == ({GPU: "3"}, {GPU: "3"}), "not counted")
    plugin.set_health("b", "Unhealthy")
    await until(lambda: d.capacity() == ({GPU: "3"}, {GPU: "2"}), "the sick one is handed out")
    await plugin.stop()
    await until(lambda: d.capacity() == ({GPU: "3"}, {GPU: "0"}), "devices without a plugin are handed out")


async def test_pods_get_devices_and_give_them_back(devices: tuple[Devices, DevicePlugin], tmp_path: Path) -> None:
    d, plugin = devices
    await plugin.register()
    await until(lambda: d.capacity()[1] == {GPU: "3"}, "not counted")
    await allocate(d, pod("p1", 2))
    assert sorted(d.grants["p1"]["c"][GPU].ids) == ["b", "c"], "the plugin prefers the last ones"
    more = d.additions("p1", "c")
    assert sorted(more.envs["DEVICES"].split(",")) == ["b", "c"] and {x["container_path"] for x in more.devices} == {"/dev/b", "/dev/c"}
    await d.prepare("p1", "c")
    assert sorted(plugin.started[0]) == ["b", "c"]
    with pytest.raises(NoDevices, match=f"requested number of devices unavailable for {GPU}. Requested: 2, Available: 1"):
        await allocate(d, pod("p2", 2))
    again = Devices(str(tmp_path), lambda: 1000.0)                       # a kubelet that restarted
    assert again.grants == d.grants and again.capacity() == ({GPU: "0"}, {GPU: "0"})
    await d.release("p1")
    await allocate(d, pod("p2", 2))


async def test_init_containers_leave_their_devices_to_the_others(devices: tuple[Devices, DevicePlugin]) -> None:
    d, plugin = devices
    await plugin.register()
    await until(lambda: d.capacity()[1] == {GPU: "3"}, "not counted")
    limits = {"resources": {"limits": {GPU: "2"}}}
    await allocate(d, pod("p", 2, initContainers=[{"name": "i1", **limits}, {"name": "i2", **limits}]))
    mine = d.grants["p"]
    assert len({*mine["i1"][GPU].ids, *mine["i2"][GPU].ids, *mine["c"][GPU].ids}) == 2


# --- claims ---

class World:
    def __init__(self, client: Client, claims: Claims, driver: DraDriver) -> None:
        self.client, self.claims, self.driver = client, claims, driver

    async def claim(self, name: str, *reserved: str) -> None:
        await self.client.create({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name, "namespace": "default"},
                                  "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}}})
        made = await self.client.get(CLAIMS, "default", name)
        made["status"] = {"allocation": {"devices": {"results": [{"request": "r", "driver": self.driver.name, "pool": "pool", "device": "d0"}]}},
                          "reservedFor": [{"resource": "pods", "name": u, "uid": u} for u in reserved]}
        await self.client.update(made, "status")


def with_claim(uid: str, name: str) -> dict[str, Any]:
    p = pod(uid, resourceClaims=[{"name": "x", "resourceClaimName": name}])
    p["spec"]["containers"][0]["resources"] = {"claims": [{"name": "x"}]}
    return p


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    server = Server(MemoryStore())
    await server.start()
    client = Client(server.handle, User("admin", ("system:masters", "system:authenticated")))
    claims, driver = Claims(client, "n1", str(tmp_path)), DraDriver(tmp_path)
    await driver.start()
    task = asyncio.create_task(watch(str(tmp_path), {"DRAPlugin": claims}))
    await until(lambda: driver.told, "not registered")
    yield World(client, claims, driver)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await driver.stop()
    await server.stop()


async def test_a_claim_is_prepared_once_and_given_back_after_the_last_pod(world: World, tmp_path: Path) -> None:
    assert world.driver.told == [(True, "")]
    await world.claim("shared", "p1", "p2")
    first, second = with_claim("p1", "shared"), with_claim("p2", "shared")
    await world.claims.prepare(first)
    await world.claims.prepare(first)
    await world.claims.prepare(second)
    assert world.driver.calls == [("prepare", ["shared"])]
    assert world.claims.devices(first, first["spec"]["containers"][0]) == ["example.com/gpu=one"]
    again = Claims(world.client, "n1", str(tmp_path))                     # a kubelet that restarted knows what is prepared
    assert again.claims == world.claims.claims
    await world.claims.unprepare("p1")
    assert len(world.driver.calls) == 1
    await world.claims.unprepare("p2")
    assert world.driver.calls[-1] == ("unprepare", ["shared"]) and not world.claims.claims


async def test_why_a_claim_cannot_be_used(world: World) -> None:
    await world.claim("of-another", "somebody-else")
    with pytest.raises(NotPrepared, match=r"pod p1 \(p1\) is not allowed to use ResourceClaim of-another"):
        await world.claims.prepare(with_claim("p1", "of-another"))
    await world.claim("mine", "p1")
    world.driver.fail = "out of luck"
    with pytest.raises(NotPrepared, match="NodePrepareResources failed for ResourceClaim mine: out of luck"):
        await world.claims.prepare(with_claim("p1", "mine"))
    world.driver.fail = ""
    await world.claims.prepare(with_claim("p1", "mine"))
    template = pod("p3", resourceClaims=[{"name": "x", "resourceClaimTemplateName": "t"}])
    with pytest.raises(NotPrepared, match="ResourceClaim not created yet"):
        await world.claims.prepare(template)
    template["status"] = {"resourceClaimStatuses": [{"name": "x"}]}       # none was needed
    await world.claims.prepare(template)


async def test_pods_that_are_no_more_leave_nothing_prepared_and_drivers_that_went_no_slices(world: World) -> None:
    for driver in (world.driver.name, "gone.example.com"):
        await world.client.create({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": driver}, "spec": {
            "nodeName": "n1", "driver": driver, "pool": {"name": "n1", "resourceSliceCount": 1}, "devices": []}})
    await world.claim("mine", "p1")
    await world.claims.prepare(with_claim("p1", "mine"))
    sourced = asyncio.Event()
    sourced.set()
    task = asyncio.create_task(world.claims.run(list, sourced))
    await until(lambda: ("unprepare", ["mine"]) in world.driver.calls, "still prepared")
    task.cancel()
    assert (await world.client.list(SLICES))[0] == [], "drivers publish anew after a restart of the kubelet"


async def test_other_plugins_are_refused(tmp_path: Path) -> None:
    told: list[Any] = []
    server = await registrar(f"{tmp_path}/plugins_registry/x.sock", "Unheard", "x", "", ["v1"], told)
    task = asyncio.create_task(watch(str(tmp_path), {}))
    await until(lambda: told, "not told")
    assert told[0][0] is False and "no handler registered for plugin type: Unheard" in told[0][1]
    task.cancel()
    await server.stop(None)


# --- CDI ---

def test_what_a_cdi_device_adds(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text("""{"cdiVersion": "0.6.0", "kind": "example.com/gpu", "containerEdits": {"env": ["ALL=1"]}, "devices": [
        {"name": "one", "containerEdits": {"env": ["ID=one"], "deviceNodes": [{"path": "/dev/gpu", "hostPath": "/dev/null"}], "additionalGids": [7],
                                           "mounts": [{"hostPath": "/opt", "containerPath": "/gpu", "options": ["ro"]}]}},
        {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/x"}]}}]}""")
    (tmp_path / "bad.yaml").write_text("{")
    specs = cdi.read((str(tmp_path),))
    made = cdi.apply({"envs": [{"key": "ID", "value": b"old"}], "linux": {"security_context": {"supplemental_groups": [3]}}}, ["example.com/gpu=one"], specs)
    assert made["envs"] == [{"key": "ALL", "value": b"1"}, {"key": "ID", "value": b"one"}]
    assert made["devices"] == [{"container_path": "/dev/gpu", "host_path": "/dev/null", "permissions": "rw"}]
    assert made["mounts"] == [{"container_path": "/gpu", "host_path": "/opt", "readonly": True}]
    assert made["linux"]["security_context"]["supplemental_groups"] == [3, 7]
    with pytest.raises(cdi.NoSuchDevice, match=r"unresolvable CDI devices example\.com/gpu=two"):
        cdi.apply({}, ["example.com/gpu=two"], specs)
    with pytest.raises(cdi.NoSuchDevice, match="needs hooks"):
        cdi.apply({}, ["example.com/gpu=hooked"], specs)
    assert [cdi.native(*x) for x in (("containerd", "1.6.20~ds1"), ("containerd", "v2.1.0"), ("cri-o", "1.36.0"))] == [False, True, True]


# --- the whole kubelet ---

async def test_a_pod_with_devices_in_the_kubelet(tmp_path: Path) -> None:
    server = Server(MemoryStore())
    await server.start()
    client = Client(server.handle, User("admin", ("system:masters", "system:authenticated")))
    await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    kubelet = Kubelet(KubeletSettings("n1", ("192.0.2.7",), root=str(tmp_path), log_root=str(tmp_path / "l"), port=0), client, SimulatedRuntime())
    task = asyncio.create_task(kubelet.run())
    plugin = DevicePlugin(tmp_path, GPU, ["a"])
    pods, nodes = by_path["", "v1", "pods"], by_path["", "v1", "nodes"]
    try:
        await until(lambda: kubelet.ready.is_set() and (tmp_path / "device-plugins/kubelet.sock").exists(), "not ready")
        await plugin.start()
        await plugin.register()
        async with asyncio.timeout(5):
            while (await client.get(nodes, "", "n1"))["status"]["allocatable"].get(GPU) != "1":  # noqa: ASYNC110
                await asyncio.sleep(0.02)

        async def phase(name: str) -> dict[str, Any]:
            await client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": {
                "nodeName": "n1", "automountServiceAccountToken": False, "containers": [{"name": "c", "image": "i", "resources": {"limits": {GPU: "1"}}}]}})
            async with asyncio.timeout(5):
                while (s := (await client.get(pods, "default", name)).get("status") or {}).get("phase", "Pending") == "Pending":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            return s
        assert (await phase("one"))["phase"] == "Running"
        plugin.set_health("a", "Unhealthy")
        await until(lambda: kubelet.devices.capacity()[1] == {GPU: "0"}, "healthy")
        refused = await phase("two")
        assert (refused["phase"], refused["reason"]) in (("Failed", "UnexpectedAdmissionError"), ("Failed", f"OutOf{GPU}"))
        c = podresources.classes()
        listed = await proto.call(f"{tmp_path}/pod-resources/kubelet.sock", "/v1.PodResourcesLister/List", c["Empty"](), c["ListResponse"])
        row = listed.pod_resources[0]
        assert (row.name, row.containers[0].devices[0].resource_name, list(row.containers[0].devices[0].device_ids)) == ("one", GPU, ["a"])
        with pytest.raises(grpc.aio.AioRpcError, match="not found"):
            await proto.call(f"{tmp_path}/pod-resources/kubelet.sock", "/v1.PodResourcesLister/Get", c["GetRequest"](pod_name="no"), c["GetResponse"])
        await client.delete(pods, "default", "one")
        await until(lambda: not kubelet.devices.grants, "not given back")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await plugin.stop()
        await server.stop()
