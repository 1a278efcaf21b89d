"""CSI on real nodes with a driver of the tests' own: provisioned, attached, staged, published, grown, modified, given back; block and inline volumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real import csi_driver as driver
from tests.real.csi_sidecars import Sidecars

pytestmark = pytest.mark.real


NAME = driver.NAME


def objects() -> list[dict[str, Any]]:
    def kind(name: str, **spec: Any) -> dict[str, Any]:
        return {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name}, "provisioner": NAME, "reclaimPolicy": "Delete",
                "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": True, **spec}
    tokens = [{"audience": "vault", "expirationSeconds": 600}]
    return [{"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME}, "spec": {
        "attachRequired": True, "podInfoOnMount": True, "storageCapacity": True, "fsGroupPolicy": "File", "tokenRequests": tokens, "requiresRepublish": True,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}, kind("csi"), kind("kept", reclaimPolicy="Retain", volumeBindingMode="Immediate"),
        *({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttributesClass", "metadata": {"name": n}, "driverName": NAME, "parameters": {"iops": i}}
          for n, i in (("slow", "100"), ("fast", "9000")))]


def claim(name: str, size: str = "1Gi", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "csi", "resources": {"requests": {"storage": size}}, **spec}}


def pod(name: str, volume: dict[str, Any], container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    uses = container or {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "100000"], **uses}],
        "volumes": [{"name": "v", **volume}], **spec}}


def of(claim_name: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": claim_name}}


class World:
    def __init__(self, cluster: Any, backend: Path) -> None:
        self.cluster, self.backend = cluster, backend

    def drive(self, node: str) -> subprocess.Popen[bytes]:
        """The driver, in a node unit."""
        unit = json.loads((self.cluster.home / "nodes" / node / "unit.json").read_text())["pid"]
        inside = Path(f"/proc/{unit}/task/{unit}/children").read_text().split()[0]
        return subprocess.Popen(["nsenter", "-t", inside, "-m", "-n", "-p", sys.executable, driver.__file__, node, "/var/lib/kubelet", str(self.backend)])

    def apply(self, *objs: dict[str, Any]) -> None:
        self.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objs)}))

    def calls(self, method: str, **fields: Any) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.backend / "calls.jsonl").read_text().splitlines()]
        return [r for r in rows if r["method"] == method and all(r.get(k) == v for k, v in fields.items())]

    def handle(self, claim_name: str) -> str:
        return "pvc-" + str(self.cluster.get("pvc", claim_name)["metadata"]["uid"])

    def delete_pod(self, name: str) -> None:
        self.cluster.kubectl("delete", "pod", name, "--timeout=60s")


@pytest.fixture(scope="module")
def world(cluster: Any) -> Iterator[World]:
    backend = cluster.home / "csi"
    backend.mkdir()
    (backend / "calls.jsonl").touch()
    processes: list[subprocess.Popen[bytes]] = []
    w = World(cluster, backend)
    processes += [w.drive(node) for node in ("node-0", "node-1")]
    try:
        w.apply(*objects())
        socket = f"{cluster.home}/nodes/node-0/kubelet/plugins/{NAME}/csi.sock"
        with Sidecars(str(cluster.home / "admin.kubeconfig"), socket, driver):
            cluster.until(lambda: [len(n["spec"]["drivers"] or ()) for n in cluster.get("csinodes")["items"]] == [1, 1], "registration")
            yield w
    finally:
        for p in processes:
            p.kill()
            p.wait()
        for line in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=False).stdout.splitlines():
            if str(backend) in line:
                subprocess.run(["losetup", "-d", line.partition(":")[0]], check=False)


def test_registration(world: World) -> None:
    for node in ("node-0", "node-1"):
        (entry,) = world.cluster.get("csinode", node)["spec"]["drivers"]
        assert entry == {"name": NAME, "nodeID": f"id-{node}", "topologyKeys": [driver.TOPOLOGY], "allocatable": {"count": 8}}
        assert world.cluster.get("node", node)["metadata"]["labels"][driver.TOPOLOGY] == node


def test_provisioned_where_there_is_room_attached_staged_and_published(world: World) -> None:
    c = world.cluster
    c.until(lambda: len(c.get("csistoragecapacities")["items"]) == 4, "capacities")
    world.apply(claim("data", "5Gi", volumeAttributesClassName="slow"), pod("one", of("data"), securityContext={"fsGroup": 4242}))
    c.wait("pod/one")
    assert c.get("pod", "one")["spec"]["nodeName"] == "node-1"                  # the other has room for 1 Gi
    handle = world.handle("data")
    pv = c.get("pv", handle)
    assert pv["status"]["phase"] == "Bound" and pv["spec"]["csi"]["volumeAttributes"] == {"made": "yes"}
    (attachment,) = c.get("volumeattachments")["items"]
    assert attachment["status"]["attached"] and attachment["spec"]["nodeName"] == "node-1"
    assert f"kubernetes.io/csi/{NAME}^{handle}" in [v["name"] for v in c.get("node", "node-1")["status"]["volumesAttached"]]
    (stage,), (publish,) = world.calls("NodeStageVolume", volume_id=handle), world.calls("NodePublishVolume", volume_id=handle)
    assert stage["publish_context"] == {"attached-to": "id-node-1"} and stage["volume_capability"]["mount"]["fs_type"] == "ext4"
    context = publish["volume_context"]
    assert context["csi.storage.k8s.io/pod.name"] == "one" and context["csi.storage.k8s.io/ephemeral"] == "false" and context["made"] == "yes"
    tokens = json.loads(context["csi.storage.k8s.io/serviceAccount.tokens"])
    assert set(tokens) == {"vault"} and tokens["vault"]["token"].count(".") == 2
    c.exec("one", "sh", "-c", "echo hello > /v/note")
    assert (world.backend / handle / "note").read_text() == "hello\n" and (world.backend / handle / "note").stat().st_gid == 4242


def test_the_driver_says_what_is_in_it(world: World) -> None:
    c = world.cluster
    stats = json.loads(c.kubectl("get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"))
    (room,) = [v for p in stats["pods"] if p["podRef"]["name"] == "one" for v in p["volume"] if v["name"] == "v"]
    assert {k: v for k, v in room.items() if k != "time"} == {
        "name": "v", "pvcRef": {"name": "data", "namespace": "default"}, "usedBytes": 12345, "capacityBytes": 5 << 30,
        "availableBytes": (5 << 30) - 12345, "inodes": 100, "inodesFree": 93, "inodesUsed": 7}
    metrics = c.kubectl("get", "--raw", "/api/v1/nodes/node-1/proxy/metrics")
    assert 'kubelet_volume_stats_used_bytes{namespace="default",persistentvolumeclaim="data"} 12345' in metrics
    assert world.calls("NodeGetVolumeStats")[0]["volume_path"].endswith("/mount")


def test_it_grows_on_controller_and_node(world: World) -> None:
    c, handle = world.cluster, world.handle("data")
    c.kubectl("patch", "pvc", "data", "-p", '{"spec":{"resources":{"requests":{"storage":"7Gi"}}}}')
    c.until(lambda: c.get("pvc", "data")["status"]["capacity"]["storage"] == "7Gi", "a grown claim")
    status = c.get("pvc", "data")["status"]
    assert "allocatedResourceStatuses" not in status and not status.get("conditions")
    (call,) = world.calls("NodeExpandVolume", volume_id=handle)
    assert call["capacity_range"]["required_bytes"] == str(7 << 30) and call["staging_target_path"].endswith("/globalmount")
    assert (world.backend / f"{handle}.size").read_text() == str(7 << 30)
    reasons = {e["reason"] for e in c.get("events", "--field-selector", "involvedObject.name=one")["items"]}
    assert {"SuccessfulAttachVolume", "FileSystemResizeSuccessful"} <= reasons


def test_its_attributes_change(world: World) -> None:
    c = world.cluster
    assert c.get("pvc", "data")["status"]["currentVolumeAttributesClassName"] == "slow"
    c.kubectl("patch", "pvc", "data", "-p", '{"spec":{"volumeAttributesClassName":"fast"}}')
    c.until(lambda: c.get("pvc", "data")["status"]["currentVolumeAttributesClassName"] == "fast", "the other class")
    (call,) = world.calls("ControllerModifyVolume", volume_id=world.handle("data"))
    assert call["mutable_parameters"] == {"iops": "9000"} and c.get("pv", world.handle("data"))["spec"]["volumeAttributesClassName"] == "fast"


def test_it_moves_with_its_pod_and_goes_back(world: World) -> None:
    """Unpublished, unstaged, detached; the data stays until the claim goes."""
    c, handle = world.cluster, world.handle("data")
    world.delete_pod("one")
    c.until(lambda: world.calls("ControllerUnpublishVolume", volume_id=handle), "detached")
    order = [world.calls(m, volume_id=handle)[0]["at"] for m in ("NodeUnpublishVolume", "NodeUnstageVolume", "ControllerUnpublishVolume")]
    assert order == sorted(order)
    c.until(lambda: not c.get("volumeattachments")["items"], "no attachment")
    world.apply(pod("two", of("data")))
    c.wait("pod/two")
    assert c.exec("two", "cat", "/v/note") == "hello\n"
    world.delete_pod("two")
    c.kubectl("delete", "pvc", "data", "--timeout=30s")
    c.until(lambda: not (world.backend / handle).exists() and not c.kubectl("get", "pv", handle, "--ignore-not-found"), "the volume goes")


def test_retained_and_bound_at_once(world: World) -> None:
    c = world.cluster
    world.apply(claim("kept", storageClassName="kept"))
    c.until(lambda: c.get("pvc", "kept")["status"].get("phase") == "Bound", "bound without a pod")
    handle = world.handle("kept")
    c.kubectl("delete", "pvc", "kept", "--timeout=30s")
    c.until(lambda: c.get("pv", handle)["status"]["phase"] == "Released", "released")
    assert (world.backend / handle).is_dir()
    c.kubectl("delete", "pv", handle)


def test_a_block_device(world: World) -> None:
    c = world.cluster
    world.apply(claim("raw", volumeMode="Block"), pod("raw", of("raw"), {"volumeDevices": [{"name": "v", "devicePath": "/dev/xvda"}]}))
    c.wait("pod/raw")
    handle = world.handle("raw")
    (publish,) = world.calls("NodePublishVolume", volume_id=handle)
    assert "block" in publish["volume_capability"] and "/volumeDevices/publish/" in publish["target_path"]
    c.exec("raw", "sh", "-c", "test -b /dev/xvda && echo written | dd of=/dev/xvda conv=notrunc 2>/dev/null && sync")
    assert (world.backend / handle).read_bytes().startswith(b"written\n")
    world.delete_pod("raw")
    c.until(lambda: world.calls("NodeUnstageVolume", volume_id=handle), "unstaged")
    c.kubectl("delete", "pvc", "raw", "--timeout=30s")


def test_inline_volumes_live_with_their_pod(world: World) -> None:
    c = world.cluster
    world.apply(pod("inline", {"csi": {"driver": NAME, "volumeAttributes": {"note": "from the pod"}}}))
    c.wait("pod/inline")
    assert c.exec("inline", "cat", "/v/note") == "from the pod"
    world.delete_pod("inline")
    (publish,) = [p for p in world.calls("NodePublishVolume") if p["volume_context"].get("note")]
    assert publish["volume_context"]["csi.storage.k8s.io/ephemeral"] == "true" and publish["volume_id"].startswith("csi-")
    c.until(lambda: world.calls("NodeUnpublishVolume", volume_id=publish["volume_id"]), "unpublished")
    assert not world.calls("NodeStageVolume", volume_id=publish["volume_id"])


def test_whose_the_files_are_is_the_drivers_policy(world: World) -> None:
    """"File" is what the first pod showed; None leaves files alone, ReadWriteOnceWithFSType those of volumes for many."""
    c = world.cluster
    for policy, mode, group in (("None", "ReadWriteOnce", 0), ("ReadWriteOnceWithFSType", "ReadWriteMany", 0),
                                ("ReadWriteOnceWithFSType", "ReadWriteOnce", 4242), ("File", "ReadWriteMany", 4242)):
        c.kubectl("patch", "csidriver", NAME, "-p", json.dumps({"spec": {"fsGroupPolicy": policy}}))
        name = f"{policy}-{mode}".lower()
        world.apply(claim(name, accessModes=[mode]), pod(name, of(name), securityContext={"fsGroup": 4242}))
        c.wait(f"pod/{name}")
        assert (world.backend / world.handle(name)).stat().st_gid == group, name
        c.kubectl("delete", f"pod/{name}", f"pvc/{name}", "--timeout=60s")


def test_a_volume_of_the_pods_own_and_no_more_than_the_node_takes(world: World) -> None:
    c = world.cluster
    own = {"ephemeral": {"volumeClaimTemplate": {"spec": claim("")["spec"]}}}
    for node in ("node-0", "node-1"):
        c.kubectl("patch", "csinode", node, "--type=json", "-p", '[{"op": "replace", "path": "/spec/drivers/0/allocatable/count", "value": 1}]')
    world.apply(pod("own", own))
    c.wait("pod/own")
    world.apply(pod("over", own, nodeSelector={driver.TOPOLOGY: c.get("pod", "own")["spec"]["nodeName"]}))

    def told() -> bool:
        said = [x["message"] for x in c.get("pod", "over")["status"].get("conditions") or () if x["type"] == "PodScheduled"]
        return any("node(s) exceed max volume count" in m for m in said)
    c.until(told, "why it waits")
    handle = world.handle("own-v")
    world.delete_pod("own")
    c.wait("pod/over")
    c.until(lambda: not (world.backend / handle).exists(), "the first volume goes")
    world.delete_pod("over")


def test_one_pod_at_a_time(world: World) -> None:
    """The scheduler keeps a second one away; one that is put on the node by hand is refused by the kubelet."""
    c = world.cluster
    world.apply(claim("single", accessModes=["ReadWriteOncePod"]), pod("holder", of("single")))
    c.wait("pod/holder")
    world.apply(pod("waiter", of("single")))

    def told() -> bool:
        said = [x["message"] for x in c.get("pod", "waiter")["status"].get("conditions") or () if x["type"] == "PodScheduled"]
        return any("ReadWriteOncePod access mode already in-use by another pod" in m for m in said)
    c.until(told, "why it waits")
    c.kubectl("delete", "pod/holder", "pod/waiter", "--timeout=60s")
    c.kubectl("delete", "pvc", "single", "--timeout=30s")


def test_selinux_mount_options() -> None:
    if not Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("this kernel has no SELinux: volumes cannot be mounted with -o context=, nor files relabelled")
    pytest.fail("SELinux is here, and the kubelet does not mount with its contexts yet")


def test_a_driver_that_is_missing_is_named(world: World) -> None:
    c = world.cluster
    world.apply(pod("nodriver", {"csi": {"driver": "missing.example.com"}}))

    def told() -> bool:
        events = c.get("events", "--field-selector", "involvedObject.name=nodriver,reason=FailedMount")["items"]
        return any("driver name missing.example.com not found in the list of registered CSI drivers" in e["message"] for e in events)
    c.until(told, "an event")
    c.kubectl("delete", "pod", "nodriver", "--timeout=30s")


def test_a_dead_node_lets_go_of_its_volumes(world: World) -> None:
    """Its machine lost power and an administrator says so: pods go, volumes are detached at once and follow to another node."""
    c = world.cluster
    world.apply(claim("roams", storageClassName="kept"))
    c.until(lambda: c.get("pvc", "roams")["status"].get("phase") == "Bound", "bound")
    world.apply({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "roams"}, "spec": {
        "serviceName": "roams", "selector": {"matchLabels": {"app": "roams"}}, "template": {"metadata": {"labels": {"app": "roams"}}, "spec": {
            **pod("", of("roams"))["spec"], "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": driver.TOPOLOGY, "operator": "In", "values": ["node-1"]}]}}]}}}}}})
    c.until(lambda: c.pods("app=roams"), "a pod")
    c.wait("pod/roams-0")
    assert c.get("pod", "roams-0")["spec"]["nodeName"] == "node-1"
    c.exec("roams-0", "sh", "-c", "echo moved > /v/note; sync")

    def attached() -> list[str]:
        return [a["spec"]["nodeName"] for a in c.get("volumeattachments")["items"] if a["status"]["attached"]]
    assert attached() == ["node-1"]
    os.kill(json.loads((c.home / "nodes" / "node-1" / "unit.json").read_text())["pid"], signal.SIGKILL)
    c.kubectl("taint", "node", "node-1", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
    c.until(lambda: attached() == ["node-0"], "detached from one, attached to the other", 90)
    c.wait("pod/roams-0")
    assert c.exec("roams-0", "cat", "/v/note") == "moved\n" and c.get("pod", "roams-0")["spec"]["nodeName"] == "node-0"
    (gone, *_) = world.calls("ControllerUnpublishVolume", volume_id=world.handle("roams"))
    assert gone["node_id"] == "id-node-1"
