"""Attach and detach: VolumeAttachments for CSI volumes of pods that are on a node; the node's list of attached volumes.

Upstream: pkg/controller/volume/attachdetach, pkg/volume/csi/csi_attacher.go. In-tree plugins are gone upstream but for CSI; drivers whose CSIDriver
says attachRequired: false need nothing here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from kubern.controllers.pods import finished, node_of
from kubern.controllers.volumes import CLAIMS, PVS
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Create, Delete, Emit, Failed, Patch, Requeue
from kubern.model.object import Key, Object, condition, deleting, name, namespace, notes, uid
from kubern.model.time import seconds_of
from kubern.model.view import View

ATTACHMENTS, DRIVERS = "volumeattachments.storage.k8s.io", "csidrivers.storage.k8s.io"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
FORCE_DETACH_S = 360.0
MANAGED = "volumes.kubernetes.io/controller-managed-attach-detach"      # of a node whose kubelet leaves attaching to this controller


def attachment_name(handle: str, driver: str, node_name: str) -> str:
    return "csi-" + hashlib.sha256(f"{handle}{driver}{node_name}".encode()).hexdigest()


def _ours(attachment: Object) -> bool:
    """Made here, by its name: those of others are theirs to delete."""
    return re.fullmatch("csi-[0-9a-f]{64}", name(attachment)) is not None


def unique_name(driver: str, handle: str) -> str:
    return f"kubernetes.io/csi/{driver}^{handle}"


def _volumes(pod: Object, view: View) -> Iterable[tuple[str, Object | None, dict[str, Any]]]:
    """(volume's name in the pod, its PersistentVolume or None if inline, csi source)."""
    for v in (pod.get("spec") or {}).get("volumes") or ():
        claim_name = (v.get("persistentVolumeClaim") or {}).get("claimName") or (f"{name(pod)}-{v['name']}" if "ephemeral" in v else "")
        if not claim_name:
            continue
        claim = view.get(CLAIMS, namespace(pod), claim_name)
        pv = view.get(PVS, "", (claim["spec"].get("volumeName") or "")) if claim is not None else None
        csi = pv["spec"].get("csi") if pv is not None else None
        if pv is not None and csi and (pv["spec"].get("claimRef") or {}).get("uid") == uid(claim or {}):
            yield v["name"], pv, csi


def _needs_attaching(driver: str, view: View) -> bool:
    d = view.get(DRIVERS, "", driver)
    return d is None or (d.get("spec") or {}).get("attachRequired", True) is not False


def _single_writer(pv: Object) -> bool:
    return not set(pv["spec"].get("accessModes") or ()) & {"ReadWriteMany", "ReadOnlyMany"}


def reconcile(node: Object, view: View, now: float) -> Steps:
    if MANAGED not in notes(node):
        return
    wanted: dict[str, tuple[Object, dict[str, Any], list[Object]]] = {}
    for pod in view.by("pods", "spec.nodeName", name(node)):
        if finished(pod) and not _running_containers(pod):
            continue
        for _, pv, csi in _volumes(pod, view):
            if pv is not None and _needs_attaching(csi["driver"], view):
                wanted.setdefault(attachment_name(csi["volumeHandle"], csi["driver"], name(node)), (pv, csi, []))[2].append(pod)
    have = {name(a): a for a in view.by(ATTACHMENTS, "spec.nodeName", name(node))}
    in_use = set((node.get("status") or {}).get("volumesInUse") or ())
    attached: list[dict[str, str]] = []
    for va_name, (pv, csi, pods) in sorted(wanted.items()):
        a = have.get(va_name)
        if a is None:
            elsewhere = [x for x in view.by(ATTACHMENTS, "spec.source.persistentVolumeName", name(pv)) if x["spec"].get("nodeName") != name(node)]
            if elsewhere and _single_writer(pv):
                for pod in pods:
                    yield Emit(pod, "Warning", "FailedAttachVolume", f'Multi-Attach error for volume "{name(pv)}" Volume is already exclusively '
                               "attached to one node and can't be attached to another")
                yield Requeue(10)
                continue
            body = {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": va_name},
                    "spec": {"attacher": csi["driver"], "nodeName": name(node), "source": {"persistentVolumeName": name(pv)}}}
            yield Create(body, ignore_exists=True)
        elif (a.get("status") or {}).get("attached"):
            attached.append({"name": unique_name(csi["driver"], csi["volumeHandle"]), "devicePath": ""})
        elif error := ((a.get("status") or {}).get("attachError") or {}).get("message"):
            for pod in pods:
                yield Emit(pod, "Warning", "FailedAttachVolume", f'AttachVolume.Attach failed for volume "{name(pv)}" : {error}')
    forced = any(t.get("key") == OUT_OF_SERVICE for t in (node.get("spec") or {}).get("taints") or ())
    down_s = _down_for(node, now)
    for va_name, a in have.items():
        if va_name in wanted or deleting(a) or not _ours(a):
            continue
        pv = view.get(PVS, "", (a["spec"].get("source") or {}).get("persistentVolumeName") or "")
        csi = (pv["spec"].get("csi") or {}) if pv is not None else {}
        unique = unique_name(csi.get("driver") or "", csi.get("volumeHandle") or "")
        if unique in in_use and not forced and down_s < FORCE_DETACH_S:
            attached.append({"name": unique, "devicePath": ""})
            if down_s:
                yield Requeue(FORCE_DETACH_S - down_s)
            continue
        yield Delete("storage.k8s.io/v1", "VolumeAttachment", "", va_name)
    current = (node.get("status") or {}).get("volumesAttached") or []
    if sorted(attached, key=lambda v: v["name"]) != sorted(current, key=lambda v: v.get("name") or ""):
        done = yield Patch("v1", "Node", "", name(node), {"status": {"volumesAttached": attached or None}}, "merge", "status", ignore_missing=True)
        if isinstance(done, Failed):
            return
        before = {v.get("name") for v in current}
        for pv, csi, pods in wanted.values():
            unique = unique_name(csi["driver"], csi["volumeHandle"])
            if unique not in before and any(v["name"] == unique for v in attached):
                for pod in pods:
                    yield Emit(pod, "Normal", "SuccessfulAttachVolume", f'AttachVolume.Attach succeeded for volume "{name(pv)}" ')


def _running_containers(pod: Object) -> bool:
    return any("running" in (s.get("state") or {}) for s in (pod.get("status") or {}).get("containerStatuses") or ())


def _down_for(node: Object, now: float) -> float:
    c = condition(node, "Ready")
    return 0.0 if c is None or c.get("status") == "True" else max(0.001, now - seconds_of(c.get("lastTransitionTime")))


def gone(k: Key, view: View, now: float) -> Steps:
    for a in view.by(ATTACHMENTS, "spec.nodeName", k[1]):
        if not deleting(a) and _ours(a):
            yield Delete("storage.k8s.io/v1", "VolumeAttachment", "", name(a))


def _pod_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    pod = new or old
    if pod is None or not node_of(pod):
        return ()
    if old is not None and new is not None and node_of(old) == node_of(new) and finished(old) == finished(new):
        return ()
    has = any("persistentVolumeClaim" in v or "ephemeral" in v for v in (pod.get("spec") or {}).get("volumes") or ())
    return [("", node_of(pod))] if has else ()


def _attachment_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return {("", a["spec"].get("nodeName") or "") for a in (old, new) if a is not None}


def _claim_bound(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    if new is None or not new["spec"].get("volumeName") or (old is not None and old["spec"].get("volumeName")):
        return ()
    return {("", node_of(p)) for p in view.by("pods", "claim", f"{namespace(new)}/{name(new)}") if node_of(p)}


def _changed(old: Object, new: Object) -> bool:
    if (MANAGED in notes(old)) != (MANAGED in notes(new)):
        return True
    a, b = old.get("status") or {}, new.get("status") or {}
    return a.get("volumesInUse") != b.get("volumesInUse") or a.get("volumesAttached") != b.get("volumesAttached") or \
        (old.get("spec") or {}).get("taints") != (new.get("spec") or {}).get("taints")


CONTROLLER = Controller("attachdetach-controller", "nodes", reconcile, reads=("pods", PVS, CLAIMS, DRIVERS), gone=gone, changed=_changed,
                        triggers=(Trigger("pods", _pod_changed), Trigger(ATTACHMENTS, _attachment_changed), Trigger(CLAIMS, _claim_bound)))
