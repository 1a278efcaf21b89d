"""Storage out of the box: claims of a StatefulSet become directories on the nodes, and keep what is in them."""

from __future__ import annotations

import json
import os
import signal
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


def test_nfs_needs_its_helper(cluster: Any) -> None:
    """This machine has no mount.nfs (nor an NFS server to ask): what it says is what the pod's event says."""
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nfs"}, "spec": {
        "containers": [{"name": "c", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "v", "nfs": {"server": "127.0.0.1", "path": "/exported", "readOnly": True}}]}}))

    def told() -> bool:
        events = cluster.get("events", "--field-selector", "involvedObject.name=nfs,reason=FailedMount")["items"]
        return any("Mounting arguments: -t nfs -o ro 127.0.0.1:/exported " in e["message"] for e in events)
    cluster.until(told, "an event")
    cluster.kubectl("delete", "pod", "nfs", "--timeout=60s")
