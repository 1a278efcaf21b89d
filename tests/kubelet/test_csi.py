"""CSI with a driver in this process: registration, staging and publishing for a pod, and all of it undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kubern.api.handle import Server
from kubern.client.client import Client
from kubern.kubelet.csi import CSI_NODES, Drivers, Published, attachment_name, kubelet_owns, read_records
from kubern.kubelet.csi_driver import EXPAND, classes
from kubern.kubelet.csi_upkeep import CLAIMS, Upkeep
from kubern.kubelet.plugins import watch
from kubern.kubelet.projection import Missing
from kubern.model.intent import Emit
from kubern.model.request import User
from kubern.model.resources import by_path
from kubern.store.memory import MemoryStore
from tests.kubelet.drivers import registrar

POD = {"metadata": {"name": "p", "namespace": "default", "uid": "u1"}, "spec": {"serviceAccountName": "sa"}}
PV = {"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteMany"], "mountOptions": ["noatime"]}}
SOURCE = {"driver": "d.example.com", "volumeHandle": "h1", "volumeAttributes": {"a": "b"}, "fsType": "ext4"}


class Driver:
    """A CSI driver and its registrar on two sockets."""

    def __init__(self, home: Path) -> None:
        self.home, self.calls = home, []  # type: ignore[var-annotated]
        self.told: list[Any] = []
        self.failure: Any = None

    async def start(self) -> None:
        c = classes()
        answers = {"NodeGetInfo": ("Empty", c["NodeGetInfoResponse"](node_id="N", max_volumes_per_node=5, accessible_topology={"segments": {"zone": "z"}})),
                   "NodeGetCapabilities": ("Empty", c["NodeGetCapabilitiesResponse"](capabilities=[{"rpc": {"type": t}} for t in (1, 2)]))}
        answers["NodeGetVolumeStats"] = ("NodeGetVolumeStatsRequest", c["NodeGetVolumeStatsResponse"](
            usage=[{"unit": 1, "total": 100, "available": 60, "used": 40}]))
        answers["NodeExpandVolume"] = ("NodeExpandVolumeRequest", c["NodeExpandVolumeResponse"]())
        for name in ("NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume"):
            answers[name] = (f"{name}Request", c["Empty"]())
        self.server = self._serve("csi.v1.Node", answers, f"unix://{self.home}/csi.sock")
        await self.server.start()
        self.registrar = await registrar(f"{self.home}/plugins_registry/d-reg.sock", "CSIPlugin", "d.example.com", f"{self.home}/csi.sock",
                                         ["1.0.0"], self.told)

    def _serve(self, service: str, answers: dict[str, tuple[str, Any]], address: str) -> grpc.aio.Server:
        server = grpc.aio.server()

        def handler(name: str, takes: str, answer: Any) -> Any:
            async def run(request: Any, context: Any) -> Any:
                self.calls.append((name, request))
                if self.failure is not None and name == "NodeExpandVolume":
                    await context.abort(self.failure, "no")
                return answer
            return grpc.unary_unary_rpc_method_handler(run, classes()[takes].FromString, lambda m: m.SerializeToString())
        rows = {name: handler(name, takes, answer) for name, (takes, answer) in answers.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, rows),))
        server.add_insecure_port(address)
        return server

    async def stop(self) -> None:
        await self.server.stop(None)
        await self.registrar.stop(None)

    def names(self) -> list[str]:
        return [n for n, _ in self.calls if n.startswith("Node") and "Get" not in n]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[Driver, Drivers, Client]]:
    server = Server(MemoryStore())
    await server.start()
    client = Client(server.handle, User("admin", ("system:masters", "system:authenticated")))
    await client.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
    driver, drivers = Driver(tmp_path), Drivers(client, "n1", str(tmp_path))
    await driver.start()
    task = asyncio.create_task(watch(str(tmp_path), {"CSIPlugin": drivers}))
    async with asyncio.timeout(5):
        while not driver.told:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    yield driver, drivers, client
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await driver.stop()
    await server.stop()


async def test_a_driver_registers(world: tuple[Driver, Drivers, Client]) -> None:
    driver, drivers, client = world
    assert driver.told == [(True, "")] and set(drivers.known) == {"d.example.com"}
    node = await client.get(CSI_NODES, "", "n1")
    assert node["spec"]["drivers"] == [{"name": "d.example.com", "nodeID": "N", "topologyKeys": ["zone"], "allocatable": {"count": 5}}]
    labels = (await client.get(by_path["", "v1", "nodes"], "", "n1"))["metadata"]["labels"]
    assert labels["zone"] == "z"


async def test_staged_published_and_undone(world: tuple[Driver, Drivers, Client], tmp_path: Path) -> None:
    driver, drivers, client = world
    await client.create({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "d.example.com"},
                         "spec": {"attachRequired": False, "podInfoOnMount": True}})
    target = f"{tmp_path}/pods/u1/volumes/kubernetes.io~csi/pv/mount"
    assert await drivers.publish(POD, SOURCE, PV, "v") == target
    assert driver.names() == ["NodeStageVolume", "NodePublishVolume"]
    stage, publish = driver.calls[-2][1], driver.calls[-1][1]
    assert stage.volume_id == publish.volume_id == "h1" and publish.target_path == target and publish.staging_target_path == stage.staging_target_path
    assert publish.volume_capability.mount.fs_type == "ext4" and list(publish.volume_capability.mount.mount_flags) == ["noatime"]
    assert publish.volume_capability.access_mode.mode == 5
    assert publish.volume_context["a"] == "b" and publish.volume_context["csi.storage.k8s.io/pod.name"] == "p"
    assert await drivers.usage(target) == ((100, 60, 40), (0, 0, 0)) and await drivers.usage("/elsewhere") is None
    await drivers.publish({**POD, "metadata": {**POD["metadata"], "uid": "u2"}}, SOURCE, PV, "v")
    driver.calls.clear()
    await drivers.unpublish(f"{tmp_path}/pods/u1")
    assert driver.names() == ["NodeUnpublishVolume"]                  # the other pod still has it staged
    await Drivers.unpublish(drivers, f"{tmp_path}/pods/u2")
    assert driver.names() == ["NodeUnpublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"]
    assert read_records(f"{tmp_path}/pods/u1") == []


async def test_attachment_is_waited_for(world: tuple[Driver, Drivers, Client], tmp_path: Path) -> None:
    driver, drivers, client = world
    with pytest.raises(Missing, match="volumeattachments"):
        await drivers.publish(POD, SOURCE, PV, "v")
    name = attachment_name("h1", "d.example.com", "n1")
    made = await client.create({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name}, "spec": {
        "attacher": "d.example.com", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}})
    with pytest.raises(Missing, match="awaited"):
        await drivers.publish(POD, SOURCE, PV, "v")
    await client.update({**made, "status": {"attached": True, "attachmentMetadata": {"disk": "sda"}}}, "status")
    await drivers.publish(POD, SOURCE, PV, "v")
    assert driver.calls[-1][1].publish_context["disk"] == "sda"
    assert drivers.in_use() == ["kubernetes.io/csi/d.example.com^h1"]


async def test_inline_volumes_are_published_only(world: tuple[Driver, Drivers, Client], tmp_path: Path) -> None:
    driver, drivers, client = world
    with pytest.raises(Missing, match="no CSIDriver object"):
        await drivers.publish(POD, {"driver": "d.example.com"}, {}, "v")
    made = await client.create({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "d.example.com"}, "spec": {
        "volumeLifecycleModes": ["Ephemeral"]}})
    await drivers.publish(POD, {"driver": "d.example.com"}, {}, "v")
    assert driver.names() == ["NodePublishVolume"] and driver.calls[-1][1].volume_id.startswith("csi-")
    with pytest.raises(Missing, match="not found in the list of registered CSI drivers"):
        await drivers.publish(POD, {"driver": "none"}, {}, "v")
    assert made["spec"]["volumeLifecycleModes"] == ["Ephemeral"]
    with pytest.raises(Missing, match=r'"Persistent" not supported by driver d.example.com \(only supports \["Ephemeral"\]\)'):
        await drivers.publish(POD, SOURCE, PV, "v")


async def test_a_block_device_has_places_of_its_own(world: tuple[Driver, Drivers, Client], tmp_path: Path) -> None:
    driver, drivers, client = world
    await client.create({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "d.example.com"}, "spec": {"attachRequired": False}})
    pv = {"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOncePod"], "volumeMode": "Block"}}
    target = await drivers.publish(POD, SOURCE, pv, "v")
    assert target == f"{tmp_path}/plugins/kubernetes.io/csi/volumeDevices/publish/pv/u1"
    stage, publish = driver.calls[-2][1], driver.calls[-1][1]
    assert publish.volume_capability.HasField("block") and stage.staging_target_path.endswith("/volumeDevices/staging/pv")
    assert publish.volume_capability.access_mode.mode == 1                          # SINGLE_NODE_WRITER: this driver does not tell writers apart
    await drivers.unpublish(f"{tmp_path}/pods/u1")
    assert driver.names()[-2:] == ["NodeUnpublishVolume", "NodeUnstageVolume"] and read_records(f"{tmp_path}/pods/u1") == []


def test_whose_files_are_the_groups() -> None:
    once, many = {"spec": {"accessModes": ["ReadWriteOnce"]}}, {"spec": {"accessModes": ["ReadWriteMany"]}}
    default = "ReadWriteOnceWithFSType"
    assert kubelet_owns({"fsType": "ext4"}, once, default) and not kubelet_owns({"fsType": "ext4"}, many, default)
    assert not kubelet_owns({}, once, default) and kubelet_owns({}, many, "File") and not kubelet_owns({"fsType": "ext4"}, once, "None")
    assert not kubelet_owns({"fsType": "ext4", "readOnly": True}, once, "File") and kubelet_owns({"fsType": "ext4"}, {}, default)


async def test_nothing_is_staged_before_the_node_says_it_is_in_use(world: tuple[Driver, Drivers, Client]) -> None:
    driver, drivers, client = world
    name = attachment_name("h1", "d.example.com", "n1")
    made = await client.create({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": name}, "spec": {
        "attacher": "d.example.com", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}}})
    await client.update({**made, "status": {"attached": True}}, "status")
    nudged = asyncio.Event()
    drivers.nudge = nudged.set
    task = asyncio.create_task(drivers.publish(POD, SOURCE, PV, "v"))
    await asyncio.wait_for(nudged.wait(), 5)
    assert driver.names() == [] and drivers.in_use() == ["kubernetes.io/csi/d.example.com^h1"]
    drivers.told(drivers.in_use())
    await task
    assert driver.names() == ["NodeStageVolume", "NodePublishVolume"]


async def test_a_driver_that_goes_is_forgotten(world: tuple[Driver, Drivers, Client], tmp_path: Path) -> None:
    driver, drivers, client = world
    await driver.stop()
    (tmp_path / "plugins_registry" / "d-reg.sock").unlink(missing_ok=True)
    async with asyncio.timeout(5):
        while drivers.known:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while (await client.get(CSI_NODES, "", "n1"))["spec"]["drivers"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)




async def test_it_grows_when_the_claim_waits_for_the_node(world: tuple[Driver, Drivers, Client]) -> None:
    driver, drivers, client = world
    known = drivers.known["d.example.com"]
    drivers.known["d.example.com"] = replace(known, can=known.can | {EXPAND})
    pv = await client.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {
        "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "csi": {"driver": "d.example.com", "volumeHandle": "h1"},
        "claimRef": {"namespace": "default", "name": "c"}}})
    claim = await client.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "default"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "volumeName": "pv", "resources": {"requests": {"storage": "2Gi"}}}})
    waits = {"phase": "Bound", "capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
             "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}
    await client.update({**claim, "status": waits}, "status")
    told: list[Emit] = []
    v = Published(POD, SOURCE, pv, "v", "d.example.com", "h1", "/target", "/staging")
    upkeep = Upkeep(drivers, told.append, lambda: 100.0)
    driver.failure = grpc.StatusCode.OUT_OF_RANGE
    await upkeep.grow(v)
    status = (await client.get(CLAIMS, "default", "c"))["status"]
    assert status["allocatedResourceStatuses"] == {"storage": "NodeResizeInfeasible"} and status["capacity"] == {"storage": "1Gi"}
    assert {c["type"] for c in status["conditions"]} == {"FileSystemResizePending", "NodeResizeError"} and told[-1].reason == "VolumeResizeFailed"
    driver.failure = None
    have = await client.get(CLAIMS, "default", "c")
    await client.update({**have, "apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {**status, "allocatedResourceStatuses": {
        "storage": "NodeResizePending"}}}, "status")                                # the resizer tries again
    await upkeep.grow(v)                                                            # too soon after the failure
    assert (await client.get(CLAIMS, "default", "c"))["status"]["capacity"] == {"storage": "1Gi"}
    upkeep.clock = lambda: 1000.0
    await upkeep.grow(v)
    status = (await client.get(CLAIMS, "default", "c"))["status"]
    assert status["capacity"] == {"storage": "2Gi"} and "allocatedResourceStatuses" not in status and not status.get("conditions")
    assert [t.reason for t in told[-2:]] == ["FileSystemResizeSuccessful"] * 2
    assert driver.calls[-1][1].capacity_range.required_bytes == 2 << 30 and driver.calls[-1][1].volume_path == "/target"
