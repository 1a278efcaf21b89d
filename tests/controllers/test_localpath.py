"""The local-path provisioner's decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubern.controllers import localpath
from kubern.controllers.context import Context
from kubern.kubelet import localvolumes
from kubern.model.intent import Again, Create, Delete, Failed, Fetch, Update
from tests.controllers.conftest import ListView, drive, emitted, of

CLAIMS = localpath.claims(Context(real_nodes=True))
VOLUMES = localpath.volumes(Context(real_nodes=True))
NODE = {"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
SC = {"metadata": {"name": "standard"}, "provisioner": localpath.DRIVER, "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"}


def claim(size: str = "1Gi", notes: dict[str, str] | None = None, status: Any = None, **spec: Any) -> Any:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "c", "namespace": "default", "uid": "u", "annotations": {
                "volume.kubernetes.io/storage-provisioner": localpath.DRIVER, **(notes or {})}},
            "spec": {"storageClassName": "standard", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **spec},
            "status": status or {"phase": "Pending"}}


SELECTED = {"volume.kubernetes.io/selected-node": "n1"}


def look(c: Any, answer: Any = None, sc: Any = SC, **more: Any) -> list[Any]:
    view = ListView(storageclasses__storage__k8s__io=[], nodes=[NODE], **more)
    view.all["storageclasses.storage.k8s.io"] = [sc]
    return drive(CLAIMS.reconcile(c, view, 0.0), answer or (lambda i: {"path": "/d/pvc-u"} if isinstance(i, Fetch) else i))


def test_nothing_before_a_node_is_selected() -> None:
    assert look(claim()) == []


def test_directory_first_then_the_volume() -> None:
    done = look(claim(notes=SELECTED))
    assert of(done, Fetch)[0].path == "/api/v1/nodes/n1/proxy/localvolumes/pvc-u" and of(done, Fetch)[0].method == "POST"
    pv = of(done, Create)[0].obj
    assert pv["metadata"] == {"name": "pvc-u", "annotations": {"pv.kubernetes.io/provisioned-by": localpath.DRIVER}}
    assert pv["spec"]["local"] == {"path": "/d/pvc-u"} and localpath.home_of(pv) == "n1"
    assert pv["spec"]["claimRef"]["uid"] == "u" and pv["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert [r for r, _ in emitted(done)] == ["Provisioning", "ProvisioningSucceeded"]


def test_at_once_where_the_class_says_so() -> None:
    assert of(look(claim(), sc={**SC, "volumeBindingMode": "Immediate"}), Create)


def test_a_node_that_does_not_answer() -> None:
    done = look(claim(notes=SELECTED), lambda i: Failed(i, 503, "ServiceUnavailable", "no route"))
    assert not of(done, Create) and of(done, Again) and emitted(done)[-1][0] == "ProvisioningFailed"


def test_a_selected_node_that_is_gone() -> None:
    done = look(claim(notes={"volume.kubernetes.io/selected-node": "n9"}))
    assert "volume.kubernetes.io/selected-node" not in of(done, Update)[0].obj["metadata"]["annotations"] and not of(done, Create)


@pytest.mark.parametrize("spec", [{"accessModes": ["ReadWriteMany"]}, {"volumeMode": "Block"}, {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}},
                                  {"selector": {}} | {"selector": {"matchLabels": {"a": "b"}}}])
def test_what_it_cannot_do(spec: Any) -> None:
    done = look(claim(notes=SELECTED, **spec))
    assert [type(x).__name__ for x in done] == ["Emit"] and emitted(done)[0][0] == "ProvisioningFailed"


def test_other_provisioners_claims_are_left_alone() -> None:
    assert look(claim(notes=SELECTED), sc={**SC, "provisioner": "example.com/x"}) == []
    view = ListView(nodes=[NODE])
    view.all["storageclasses.storage.k8s.io"] = [SC]
    assert drive(localpath.claims(Context()).reconcile(claim(notes=SELECTED), view, 0.0)) == []


def pv(phase: str = "Released", policy: str = "Delete", size: str = "1Gi", **m: Any) -> Any:
    made = localpath.volume(claim(size), SC, NODE, "/d/pvc-u")
    made["spec"]["persistentVolumeReclaimPolicy"] = policy
    return {**made, "metadata": {**made["metadata"], **m}, "status": {"phase": phase}}


def test_growing() -> None:
    bound = {"phase": "Bound", "capacity": {"storage": "1Gi"}}
    c = claim("2Gi", {"pv.kubernetes.io/bind-completed": "yes"}, bound, volumeName="pvc-u")
    done = look(c, persistentvolumes=[pv("Bound")])
    writes = of(done, Update)
    assert writes[0].obj["spec"]["capacity"] == {"storage": "2Gi"} and writes[1].obj["status"]["capacity"] == {"storage": "2Gi"}
    assert [r for r, _ in emitted(done)] == ["Resizing", "VolumeResizeSuccessful"]
    smaller = claim("1Gi", {"pv.kubernetes.io/bind-completed": "yes"}, bound, volumeName="pvc-u")
    assert look(smaller, persistentvolumes=[pv("Bound")]) == []


def test_reclaiming() -> None:
    def end(volume: Any, *nodes: Any, answer: Any = lambda i: {}) -> list[Any]:
        return drive(VOLUMES.reconcile(volume, ListView(nodes=list(nodes)), 0.0), answer)
    assert [type(x) for x in end(pv(), NODE)] == [Fetch, Delete]
    assert [type(x) for x in end(pv())] == [Delete]                        # its node is gone, and the directory with it
    assert end(pv(policy="Retain"), NODE) == [] and end(pv("Bound"), NODE) == []
    assert [type(x) for x in end(pv(deletionTimestamp="2030-01-01T00:00:00Z"), NODE)] == [Fetch]
    done = end(pv(), NODE, answer=lambda i: Failed(i, 503, "", "down"))
    assert not of(done, Delete) and of(done, Again) and emitted(done)[0][0] == "VolumeFailedDelete"


def test_directories(tmp_path: Path) -> None:
    root = str(tmp_path)
    made = Path(localvolumes.make(root, "pvc-a")["path"])
    assert made.is_dir() and made.stat().st_mode & 0o777 == 0o777
    (made / "deep").mkdir()
    (made / "deep" / "link").symlink_to("/etc")
    assert localvolumes.make(root, "pvc-a")["path"] == str(made) and (made / "deep").exists()
    localvolumes.remove(root, "pvc-a")
    localvolumes.remove(root, "pvc-a")
    assert not made.exists() and Path("/etc/passwd").exists()
    for bad in ("..", ".trash", "a/b", "", "A"):
        for act in (localvolumes.make, localvolumes.remove):
            with pytest.raises(ValueError):
                act(root, bad)
