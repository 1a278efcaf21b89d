"""Storage out of the box: claims of a StatefulSet become directories on the nodes, and keep what is in them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real

SET = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: busybox, command: [sleep, "100000"], volumeMounts: [{name: data, mountPath: /data}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"""


@pytest.fixture(scope="module")
def db(cluster: Any) -> Any:
    cluster.apply(SET)
    cluster.kubectl("rollout", "status", "statefulset/db", "--timeout=60s", timeout=70)
    for p in ("db-0", "db-1"):
        cluster.exec(p, "sh", "-c", f"echo {p} > /data/note")
    return cluster


def volume(cluster: Any, claim: str) -> Any:
    return cluster.get("pv", cluster.get("pvc", claim)["spec"]["volumeName"])


def place(cluster: Any, pv: Any) -> Path:
    """The directory of a volume as the machine sees it; on its node it is below /var/lib/kubelet."""
    node = pv["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"][0]
    return cluster.home / "nodes" / node / "kubelet" / Path(pv["spec"]["local"]["path"]).relative_to("/var/lib/kubelet")


def test_the_default_class(cluster: Any) -> None:
    found = cluster.get("storageclass", "standard")
    assert found["provisioner"] == "kubern.dev/local-path" and found["volumeBindingMode"] == "WaitForFirstConsumer"
    assert found["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"


def test_a_volume_lies_on_the_node_of_its_pod(db: Any) -> None:
    for p in ("db-0", "db-1"):
        pv = volume(db, f"data-{p}")
        node = db.get("pod", p)["spec"]["nodeName"]
        terms = pv["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
        assert terms == [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]
        assert (place(db, pv) / "note").read_text() == f"{p}\n"
        assert pv["status"]["phase"] == "Bound" and pv["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] == "kubern.dev/local-path"


def test_data_outlives_the_pod_and_the_node(db: Any) -> None:
    node = db.get("pod", "db-0")["spec"]["nodeName"]
    old = db.get("pod", "db-0")["metadata"]["uid"]
    db.kubectl("delete", "pod", "db-0")
    db.until(lambda: db.kubectl("get", "pod", "db-0", "--ignore-not-found", "-o", "jsonpath={.metadata.uid}") not in ("", old), "another db-0")
    db.wait("pod/db-0")
    assert db.exec("db-0", "cat", "/data/note") == "db-0\n" and db.get("pod", "db-0")["spec"]["nodeName"] == node
    before = db.get("pod", "db-0")["status"]["containerStatuses"][0]["containerID"]
    os.kill(json.loads((db.home / "nodes" / node / "unit.json").read_text())["pid"], signal.SIGKILL)       # the machine loses power
    db.kubern("node", "add", node)

    def restarted() -> bool:
        s = db.get("pod", "db-0")["status"]["containerStatuses"][0]
        return bool(s["ready"]) and s.get("containerID") != before
    db.until(restarted, "db-0 runs again")
    assert db.exec("db-0", "cat", "/data/note") == "db-0\n"


def test_a_claim_grows(db: Any) -> None:
    db.kubectl("patch", "pvc", "data-db-1", "-p", '{"spec":{"resources":{"requests":{"storage":"3Gi"}}}}')
    db.until(lambda: db.get("pvc", "data-db-1")["status"]["capacity"]["storage"] == "3Gi", "a grown claim")
    assert volume(db, "data-db-1")["spec"]["capacity"]["storage"] == "3Gi"


def test_reclaiming(db: Any) -> None:
    """Delete takes directory and volume away, Retain keeps both."""
    keep, go = volume(db, "data-db-0"), volume(db, "data-db-1")
    db.kubectl("patch", "pv", keep["metadata"]["name"], "-p", '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}')
    db.kubectl("delete", "statefulset", "db")
    db.kubectl("delete", "pvc", "data-db-0", "data-db-1", "--timeout=60s")
    name = go["metadata"]["name"]
    db.until(lambda: not db.kubectl("get", "pv", name, "--ignore-not-found"), "its volume goes")
    assert not place(db, go).exists()
    assert db.get("pv", keep["metadata"]["name"])["status"]["phase"] == "Released"
    assert (place(db, keep) / "note").read_text() == "db-0\n"


def test_what_a_directory_cannot_be(cluster: Any) -> None:
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "many"}, "spec": {
        "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}}))
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "many"}, "spec": {
        "containers": [{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "many"}}]}}))

    def told() -> bool:
        events = cluster.get("events", "--field-selector", "involvedObject.name=many,involvedObject.kind=PersistentVolumeClaim")["items"]
        return any(e["reason"] == "ProvisioningFailed" and "ReadWriteOnce" in e["message"] for e in events)
    cluster.until(told, "an event")
    cluster.kubectl("delete", "pod/many", "pvc/many", "--timeout=30s")


IMAGE = """
apiVersion: v1
kind: Pod
metadata: {name: files}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    command: [sleep, "100000"]
    volumeMounts: [{name: site, mountPath: /all}, {name: site, mountPath: /html, subPath: usr/share/nginx/html}]
  volumes:
  - {name: site, image: {reference: nginx}}
"""


def test_an_image_as_a_volume(cluster: Any) -> None:
    cluster.apply(IMAGE)
    cluster.kubectl("wait", "pod/files", "--for=condition=Ready", "--timeout=60s", timeout=70)
    assert "Welcome to nginx" in cluster.exec("files", "cat", "/html/index.html", "/all/usr/share/nginx/html/index.html")
    assert "Read-only" in cluster.exec("files", "sh", "-c", "touch /all/x 2>&1 || true")
    cluster.kubectl("delete", "pod", "files", "--now", timeout=30)


def test_host_paths_by_type_and_parts_of_volumes(cluster: Any) -> None:
    """What is there or is made, what is not what it should be, and a subPath that would lead out."""
    folder = cluster.home / "host"
    folder.mkdir()
    (folder / "file").write_text("here\n")
    (folder / "way-out").symlink_to("/etc")

    def pod(name: str, path: str, kind: str, **mount: Any) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "nodeName": "node-0", "terminationGracePeriodSeconds": 0, "volumes": [{"name": "v", "hostPath": {"path": path, "type": kind}}],
            "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "100000"], "env": [{"name": "WHO", "value": "me"}],
                            "volumeMounts": [{"name": "v", "mountPath": "/v", **mount}]}]}}
    pods = [pod("made", f"{folder}/new/deep", "DirectoryOrCreate"), pod("filed", f"{folder}/newfile", "FileOrCreate"), pod("file", f"{folder}/file", "File"),
            pod("wrong", f"{folder}/file", "Directory"), pod("part", str(folder), "Directory", subPathExpr="$(WHO)/data"),
            pod("out", str(folder), "Directory", subPath="way-out")]
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": pods}))
    for name in ("made", "filed", "file", "part"):
        cluster.wait(f"pod/{name}")
    assert (folder / "new/deep").is_dir() and (folder / "newfile").is_file() and cluster.exec("file", "cat", "/v") == "here\n"
    cluster.exec("part", "touch", "/v/mine")
    assert (folder / "me/data/mine").exists()

    def says(name: str, text: str) -> bool:
        return any(text in e["message"] for e in cluster.get("events", "--field-selector", f"involvedObject.name={name}")["items"])
    cluster.until(lambda: says("wrong", f"hostPath type check failed: {folder}/file is not a directory"), "a word about the type")
    cluster.until(lambda: says("out", "failed to prepare subPath"), "a word about the way out")
    cluster.kubectl("delete", "pod", *(p["metadata"]["name"] for p in pods), "--timeout=60s")


def user(name: str, claim: str, node: str = "", **spec: Any) -> dict[str, Any]:
    """A pod that has a claim at /v."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        **({"nodeName": node} if node else {}), "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
        "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "100000"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], **spec}}


def fixed(name: str, mode: str = "Filesystem", **source: Any) -> list[dict[str, Any]]:
    """A volume made by hand and a claim bound to it."""
    common = {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": ""}
    here = {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-0"]}]}]}}
    return [{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        **common, "capacity": {"storage": "32Mi"}, "persistentVolumeReclaimPolicy": "Retain", "nodeAffinity": here, **source}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
            **common, "volumeName": name, "resources": {"requests": {"storage": "32Mi"}}}}]


def put(cluster: Any, *objects: dict[str, Any]) -> None:
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def inside(cluster: Any, node: str = "node-0") -> str:
    """The first process in a node unit's namespaces."""
    unit = json.loads((cluster.home / "nodes" / node / "unit.json").read_text())["pid"]
    return Path(f"/proc/{unit}/task/{unit}/children").read_text().split()[0]


@pytest.fixture
def disk(cluster: Any) -> Iterator[str]:
    file = cluster.home / "disk"
    with open(file, "wb") as f:
        f.truncate(32 << 20)
    done = subprocess.run(["losetup", "-f", "--show", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop devices: {done.stderr.strip()}")
    device = done.stdout.strip()
    yield device
    subprocess.run(["losetup", "-d", device], check=False)


def test_a_disk_is_formatted_once_mounted_shared_and_let_go(cluster: Any, disk: str) -> None:
    put(cluster, *fixed("disk", local={"path": disk, "fsType": "ext4"}, mountOptions=["noatime"]))
    put(cluster, user("first", "disk", "node-0", securityContext={"fsGroup": 4242}), user("beside", "disk", "node-0"))
    cluster.wait("pod/first")
    cluster.wait("pod/beside")
    cluster.exec("first", "sh", "-c", "echo kept > /v/note")
    assert cluster.exec("beside", "cat", "/v/note") == "kept\n" and cluster.exec("first", "stat", "-c", "%g", "/v/note") == "4242\n"
    (line,) = [x for x in cluster.exec("first", "cat", "/proc/mounts").splitlines() if " /v " in x]
    assert line.startswith(f"{disk} /v ext4 rw,") and "noatime" in line
    stats = json.loads(cluster.kubectl("get", "--raw", "/api/v1/nodes/node-0/proxy/stats/summary"))
    (room,) = [v for p in stats["pods"] if p["podRef"]["name"] == "first" for v in p["volume"] if v["name"] == "v"]
    assert 16 << 20 < room["capacityBytes"] < 32 << 20 and room["pvcRef"] == {"name": "disk", "namespace": "default"}
    metrics = cluster.kubectl("get", "--raw", "/api/v1/nodes/node-0/proxy/metrics")
    assert 'kubelet_volume_stats_capacity_bytes{namespace="default",persistentvolumeclaim="disk"}' in metrics

    def mounted() -> bool:
        return f" {disk} " in Path(f"/proc/{inside(cluster)}/mountinfo").read_text()
    cluster.kubectl("delete", "pod", "first", "--timeout=30s")
    assert mounted() and cluster.exec("beside", "cat", "/v/note") == "kept\n"
    cluster.kubectl("delete", "pod", "beside", "--timeout=30s")
    cluster.until(lambda: not mounted(), "the disk is let go")
    put(cluster, user("again", "disk"))
    cluster.wait("pod/again")
    assert cluster.exec("again", "cat", "/v/note") == "kept\n" and cluster.get("pod", "again")["spec"]["nodeName"] == "node-0"
    cluster.kubectl("delete", "pod/again", "pvc/disk", "pv/disk", "--timeout=30s")


def test_a_disk_as_it_is(cluster: Any, disk: str) -> None:
    put(cluster, *fixed("raw", "Block", local={"path": disk}))
    pod = user("raw", "raw")
    pod["spec"]["containers"][0] |= {"volumeMounts": None, "volumeDevices": [{"name": "v", "devicePath": "/dev/mine"}]}
    put(cluster, pod)
    cluster.wait("pod/raw")
    cluster.exec("raw", "sh", "-c", "test -b /dev/mine && echo written | dd of=/dev/mine conv=notrunc 2>/dev/null && sync")
    with open(disk, "rb") as f:
        assert f.read(8) == b"written\n"
    cluster.kubectl("delete", "pod/raw", "pvc/raw", "pv/raw", "--timeout=30s")


def test_one_pod_at_a_time(cluster: Any) -> None:
    put(cluster, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "alone"}, "spec": {
        "accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "1Mi"}}}}, user("owner", "alone"))
    cluster.wait("pod/owner")
    put(cluster, user("second", "alone"))

    def told() -> bool:
        said = [c["message"] for c in cluster.get("pod", "second")["status"].get("conditions") or () if c["type"] == "PodScheduled"]
        return any("ReadWriteOncePod access mode already in-use by another pod" in m for m in said)
    cluster.until(told, "why the second waits")
    cluster.kubectl("delete", "pod", "owner", "--timeout=30s")
    cluster.wait("pod/second")
    cluster.kubectl("delete", "pod/second", "pvc/alone", "--timeout=30s")


def test_a_volume_of_the_pods_own(cluster: Any) -> None:
    """Generic ephemeral: the claim is made with the pod and goes with it, its directory too."""
    pod = user("brief", "")
    pod["spec"]["volumes"] = [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"of": "brief"}}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}}}]
    put(cluster, pod)
    cluster.wait("pod/brief")
    cluster.exec("brief", "touch", "/v/here")
    claim = cluster.get("pvc", "brief-v")
    assert claim["metadata"]["labels"] == {"of": "brief"} and claim["metadata"]["ownerReferences"][0]["name"] == "brief"
    path = place(cluster, volume(cluster, "brief-v"))
    assert (path / "here").exists()
    cluster.kubectl("delete", "pod", "brief", "--timeout=30s")
    cluster.until(lambda: not cluster.kubectl("get", "pvc", "brief-v", "--ignore-not-found") and not path.exists(), "claim and directory go")
    put(cluster, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "taken-v"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}})
    pod["metadata"]["name"] = "taken"
    put(cluster, pod)

    def told() -> bool:
        said = [c["message"] for c in cluster.get("pod", "taken")["status"].get("conditions") or () if c["type"] == "PodScheduled"]
        return any("was not created for pod" in m for m in said)
    cluster.until(told, "that the claim is somebody else's")
    cluster.kubectl("delete", "pod/taken", "pvc/taken-v", "--timeout=30s")


def test_what_a_directory_cannot_be_filled_with(cluster: Any) -> None:
    """Clones, snapshots and populators are not local-path's to serve; the claim says so and waits."""
    for name, source in (("clone", {"kind": "PersistentVolumeClaim", "name": "x"}),
                         ("snapshot", {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "x"}),
                         ("populated", {"apiGroup": "example.com", "kind": "Filler", "name": "x"})):
        put(cluster, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}, "dataSourceRef": source}}, user(name, name))

        def told(name: str = name) -> bool:
            events = cluster.get("events", "--field-selector", f"involvedObject.name={name},involvedObject.kind=PersistentVolumeClaim")["items"]
            return any(e["reason"] == "ProvisioningFailed" and "data sources are not supported" in e["message"] for e in events)
        cluster.until(told, "a word about the source")
        cluster.kubectl("delete", f"pod/{name}", f"pvc/{name}", "--timeout=30s")


HELPER = """#!/bin/sh
# mount.nfs SOURCE PLACE [-o OPTIONS], as mount(8) calls it: a directory of the machine stands in for the export
echo "$@" >> {home}/nfs-calls
exec mount --bind -o "$(echo "$4" | grep -qw ro && echo ro || echo rw)" {home}/export "$2"
"""


def test_nfs_by_the_machines_helper(cluster: Any) -> None:
    """What the helper is told, that the pod has what it mounted, and that it is unmounted. The helper is ours where the kernel has no NFS."""
    (cluster.home / "export").mkdir()
    (cluster.home / "export" / "note").write_text("exported\n")
    helper = cluster.home / "helper" / "mount.nfs"
    helper.parent.mkdir()
    helper.write_text(HELPER.format(home=cluster.home))
    helper.chmod(0o755)
    subprocess.run(["nsenter", "-t", inside(cluster), "-m", "mount", "-t", "overlay", "overlay", "-o", f"lowerdir={helper.parent}:/usr/sbin", "/usr/sbin"],
                   check=True)
    pod = user("nfs", "nfs")
    pod["spec"]["volumes"].append({"name": "inline", "nfs": {"server": "192.0.2.9", "path": "/other", "readOnly": True}})
    pod["spec"]["containers"][0]["volumeMounts"].append({"name": "inline", "mountPath": "/inline"})
    put(cluster, *fixed("nfs", nfs={"server": "fd00::9", "path": "/exported"}, mountOptions=["nfsvers=4.2", "hard"]), pod)
    cluster.wait("pod/nfs")
    assert cluster.exec("nfs", "cat", "/v/note", "/inline/note") == "exported\nexported\n"
    cluster.exec("nfs", "touch", "/v/mine")
    assert "Read-only" in cluster.exec("nfs", "sh", "-c", "touch /inline/x 2>&1 || true")
    told = sorted(line.split() for line in (cluster.home / "nfs-calls").read_text().splitlines())
    assert [(x[0], x[-1].split(",")) for x in told] == [("192.0.2.9:/other", ["ro"]), ("[fd00::9]:/exported", ["rw", "nfsvers=4.2", "hard"])]
    cluster.kubectl("delete", "pod/nfs", "pvc/nfs", "pv/nfs", "--timeout=60s")
    cluster.until(lambda: "kubernetes.io~nfs" not in Path(f"/proc/{inside(cluster)}/mountinfo").read_text(), "unmounted")
    assert (cluster.home / "export" / "mine").exists()


def test_nfs_from_a_server(cluster: Any) -> None:
    if not any(line.split()[-1].startswith("nfs") for line in Path("/proc/filesystems").read_text().splitlines()):
        pytest.skip("this kernel has no NFS client (no nfs in /proc/filesystems, and no modules can be loaded)")
    server, _, path = os.environ.get("KUBERN_TEST_NFS", "").rpartition(":")
    if not server:
        pytest.skip("no NFS server: KUBERN_TEST_NFS=SERVER:/PATH names one")
    put(cluster, *fixed("nfs-real", nfs={"server": server, "path": path}), user("nfs-real", "nfs-real"))
    cluster.wait("pod/nfs-real")
    cluster.exec("nfs-real", "sh", "-c", "echo there > /v/kubern-test && rm /v/kubern-test")
    cluster.kubectl("delete", "pod/nfs-real", "pvc/nfs-real", "pv/nfs-real", "--timeout=60s")


def test_nfs_needs_its_helper(cluster: Any) -> None:
    """Where a machine has no mount.nfs, what mount says is what the pod's event says."""
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nfs"}, "spec": {
        "containers": [{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "terminationGracePeriodSeconds": 0,
        "nodeName": "node-1", "volumes": [{"name": "v", "nfs": {"server": "127.0.0.1", "path": "/exported", "readOnly": True}}]}}))

    def told() -> bool:
        events = cluster.get("events", "--field-selector", "involvedObject.name=nfs,reason=FailedMount")["items"]
        return any("Mounting arguments: -t nfs -o ro 127.0.0.1:/exported " in e["message"] for e in events)
    cluster.until(told, "an event")
    cluster.kubectl("delete", "pod", "nfs", "--timeout=60s")
