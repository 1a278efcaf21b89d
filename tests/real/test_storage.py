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
        assert (Path(pv["spec"]["local"]["path"]) / "note").read_text() == f"{p}\n"
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
    assert not Path(go["spec"]["local"]["path"]).exists()
    assert db.get("pv", keep["metadata"]["name"])["status"]["phase"] == "Released"
    assert (Path(keep["spec"]["local"]["path"]) / "note").read_text() == "db-0\n"


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
