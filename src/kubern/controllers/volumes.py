"""The binder of PersistentVolumes and claims: finds a volume for a claim, binds both ways, releases what is left.

One row looks at claims, one at volumes. Provisioning and deleting are left to CSI drivers' own controllers: the claim is marked for them.
Upstream: pkg/controller/volume/persistentvolume/pv_controller.go (its comment is the specification), component-helpers storage/volume.
Left out: in-tree recyclers (deprecated; a volume with Recycle ends Failed).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from kubern.controllers.pods import finished, node_of
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Delete, Emit, Failed, Fetch, Update
from kubern.model.object import Key, Object, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.quantity import compare
from kubern.model.selector import from_label_selector
from kubern.model.view import View

PVS, CLAIMS, CLASSES = "persistentvolumes", "persistentvolumeclaims", "storageclasses.storage.k8s.io"
BIND_COMPLETED, BOUND_BY_CONTROLLER = "pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller"
SELECTED_NODE, PROVISIONED_BY = "volume.kubernetes.io/selected-node", "pv.kubernetes.io/provisioned-by"
PROVISIONER, BETA_PROVISIONER = "volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"
BETA_CLASS, DEFAULT_CLASS = "volume.beta.kubernetes.io/storage-class", "storageclass.kubernetes.io/is-default-class"
BETA_DEFAULT_CLASS, MIGRATED_TO = "storageclass.beta.kubernetes.io/is-default-class", "pv.kubernetes.io/migrated-to"
PRE_RESIZE = "volume.alpha.kubernetes.io/pre-resize-capacity"
TO_CSI = {
    "kubernetes.io/aws-ebs": "ebs.csi.aws.com", "kubernetes.io/gce-pd": "pd.csi.storage.gke.io", "kubernetes.io/cinder": "cinder.csi.openstack.org",
    "kubernetes.io/azure-disk": "disk.csi.azure.com", "kubernetes.io/azure-file": "file.csi.azure.com",
    "kubernetes.io/vsphere-volume": "csi.vsphere.vmware.com", "kubernetes.io/portworx-volume": "pxd.portworx.com"}
NAME = "persistent-volume-binder"
COMPONENT = "persistentvolume-controller"


# ---- facts

def class_of(obj: Object) -> str:
    """The storage class of a claim or a volume, "" for none."""
    beta = notes(obj).get(BETA_CLASS)
    return beta if beta is not None else (obj["spec"].get("storageClassName") or "")


def _has_class(claim: Object) -> bool:
    return BETA_CLASS in notes(claim) or claim["spec"].get("storageClassName") is not None


def storage(resources: dict[str, Any] | None) -> str:
    return str((resources or {}).get("storage") or "0")


def _asked(claim: Object) -> str:
    return storage((claim["spec"].get("resources") or {}).get("requests"))


def bound_to(pv: Object, claim: Object) -> bool:
    """Does the volume name this claim (perhaps not yet by its uid)?"""
    ref = pv["spec"].get("claimRef")
    return ref is not None and ref.get("name") == name(claim) and ref.get("namespace") == namespace(claim) and \
        ref.get("uid") in (None, "", uid(claim))


def _mode(obj: Object) -> str:
    return obj["spec"].get("volumeMode") or "Filesystem"


def _attributes_class(obj: Object) -> str:
    return obj["spec"].get("volumeAttributesClassName") or ""


def _modes_fit(claim: Object, pv: Object) -> bool:
    return set(claim["spec"].get("accessModes") or ()) <= set(pv["spec"].get("accessModes") or ())


def _delays(claim: Object, view: View) -> bool:
    c = view.get(CLASSES, "", class_of(claim)) if class_of(claim) else None
    return c is not None and c.get("volumeBindingMode") == "WaitForFirstConsumer"


def mismatch(pv: Object, claim: Object) -> str:
    """Why a requested volume cannot be bound, "" if it can."""
    if deleting(pv):
        return f'the volume is marked for deletion "{name(pv)}"'
    if compare(storage(pv["spec"].get("capacity")), _asked(claim)) < 0:
        return "requested PV is too small"
    if class_of(pv) != class_of(claim):
        return "storageClassName does not match"
    if _attributes_class(pv) != _attributes_class(claim):
        return "volumeAttributesClassName does not match"
    if _mode(pv) != _mode(claim):
        return "incompatible volumeMode"
    return "" if _modes_fit(claim, pv) else "incompatible accessMode"


def best_match(claim: Object, view: View, delay: bool) -> Object | None:
    """The smallest fitting volume with the fewest access modes, or the one that names this claim."""
    selector = from_label_selector(claim["spec"]["selector"]) if claim["spec"].get("selector") is not None else None
    groups: dict[int, list[Object]] = {}
    for pv in view.list(PVS):
        if _modes_fit(claim, pv):
            groups.setdefault(len(pv["spec"].get("accessModes") or ()), []).append(pv)
    for _, group in sorted(groups.items()):
        best: Object | None = None
        for pv in sorted(group, key=name):
            ref = pv["spec"].get("claimRef")
            capacity = storage(pv["spec"].get("capacity"))
            if (ref is not None and not bound_to(pv, claim)) or compare(capacity, _asked(claim)) < 0 or _mode(pv) != _mode(claim) or \
                    _attributes_class(pv) != _attributes_class(claim) or deleting(pv):
                continue
            if bound_to(pv, claim):
                return pv
            if delay or (pv.get("status") or {}).get("phase") != "Available" or class_of(pv) != class_of(claim) or \
                    (selector is not None and not selector.matches(labels(pv))):
                continue
            if best is None or compare(storage(best["spec"].get("capacity")), capacity) > 0:
                best = pv
        if best is not None:
            return best
    return None


def default_class(view: View) -> Object | None:
    found = [c for c in view.list(CLASSES) if "true" in (notes(c).get(DEFAULT_CLASS), notes(c).get(BETA_DEFAULT_CLASS))]
    if not found:
        return None
    newest = max(meta(c).get("creationTimestamp") or "" for c in found)
    return min((c for c in found if (meta(c).get("creationTimestamp") or "") == newest), key=name)


def annotated(obj: Object, add: dict[str, str], drop: Iterable[str] = ()) -> Object:
    have = {k: v for k, v in {**notes(obj), **add}.items() if k not in set(drop)}
    m = {k: v for k, v in meta(obj).items() if k != "annotations"}
    return {**obj, "metadata": {**m, "annotations": have} if have else m}


# ---- writes

def _claim_status(claim: Object, phase: str, pv: Object | None) -> Generator[Any, Any, Object | None]:
    """The claim afterwards, None if the write failed."""
    old = claim.get("status") or {}
    new = {**old, "phase": phase}
    if pv is None:
        for f in ("accessModes", "capacity", "currentVolumeAttributesClassName"):
            new.pop(f, None)
    else:
        new["accessModes"] = list(pv["spec"].get("accessModes") or ())
        if old.get("phase") != phase:
            if PRE_RESIZE in notes(pv):
                new["capacity"] = {**(old.get("capacity") or {}), "storage": notes(pv)[PRE_RESIZE]}
            elif "storage" not in (old.get("capacity") or {}) or compare(storage(old["capacity"]), storage(pv["spec"].get("capacity"))) != 0:
                new["capacity"] = dict(pv["spec"].get("capacity") or {})
            if old.get("phase") == "Pending" and phase == "Bound" and _attributes_class(pv):
                new["currentVolumeAttributesClassName"] = _attributes_class(pv)
    if new == old:
        return claim
    answer = yield Update({**claim, "status": new}, "status")
    return None if isinstance(answer, Failed) else answer


def _volume_phase(pv: Object, phase: str, message: str = "") -> Generator[Any, Any, Object | None]:
    old = pv.get("status") or {}
    if old.get("phase") == phase:
        return pv
    new = {**{k: v for k, v in old.items() if k != "message"}, "phase": phase, **({"message": message} if message else {})}
    answer = yield Update({**pv, "status": new}, "status")
    return None if isinstance(answer, Failed) else answer


def _bind(pv: Object, claim: Object) -> Steps:
    """Volume, its phase, claim, its status: each step is repeated by the next pass if it fails."""
    was_bound = bound_to(pv, claim)
    ref = pv["spec"].get("claimRef") or {}
    changed = pv
    if not was_bound or ref.get("uid") != uid(claim):
        new_ref = {"kind": "PersistentVolumeClaim", "namespace": namespace(claim), "name": name(claim), "uid": uid(claim), "apiVersion": "v1",
                   "resourceVersion": meta(claim).get("resourceVersion")}
        changed = {**pv, "spec": {**pv["spec"], "claimRef": new_ref}}
    if not was_bound and BOUND_BY_CONTROLLER not in notes(pv):
        changed = annotated(changed, {BOUND_BY_CONTROLLER: "yes"})
    if changed is not pv:
        answer = yield Update(changed)
        if isinstance(answer, Failed):
            return
        pv = answer
    phased = yield from _volume_phase(pv, "Bound")
    if phased is None:
        return
    pv = phased
    wanted = claim
    add: dict[str, str] = {}
    if claim["spec"].get("volumeName") != name(pv):
        wanted = {**claim, "spec": {**claim["spec"], "volumeName": name(pv)}}
        if BOUND_BY_CONTROLLER not in notes(claim):
            add[BOUND_BY_CONTROLLER] = "yes"
    if BIND_COMPLETED not in notes(claim):
        add[BIND_COMPLETED] = "yes"
    if wanted is not claim or add:
        answer = yield Update(annotated(wanted, add))
        if isinstance(answer, Failed):
            return
        claim = answer
    yield from _claim_status(claim, "Bound", pv)


def _unbind(pv: Object) -> Steps:
    spec = dict(pv["spec"])
    if BOUND_BY_CONTROLLER in notes(pv):
        spec.pop("claimRef", None)
        changed = annotated({**pv, "spec": spec}, {}, (BOUND_BY_CONTROLLER,))
    else:
        spec["claimRef"] = {k: v for k, v in spec["claimRef"].items() if k != "uid"}
        changed = {**pv, "spec": spec}
    answer = yield Update(changed)
    if not isinstance(answer, Failed):
        yield from _volume_phase(answer, "Available")


# ---- claims

def _provision(claim: Object, view: View) -> Steps:
    """Asks an external provisioner for a volume, by annotation."""
    c = view.get(CLASSES, "", class_of(claim))
    if c is None:
        yield Emit(claim, "Warning", "ProvisioningFailed", f'storageclass.storage.k8s.io "{class_of(claim)}" not found')
        return
    provisioner = c.get("provisioner") or ""
    if provisioner.startswith("kubernetes.io/") and provisioner not in TO_CSI:
        yield Emit(claim, "Warning", "ProvisioningFailed", f"no volume plugin matched name: {provisioner}")
        return
    provisioner = TO_CSI.get(provisioner, provisioner)
    if notes(claim).get(PROVISIONER) != provisioner or notes(claim).get(BETA_PROVISIONER) != provisioner:
        answer = yield Update(annotated(claim, {BETA_PROVISIONER: provisioner, PROVISIONER: provisioner}))
        if isinstance(answer, Failed):
            yield Emit(claim, "Warning", "ProvisioningFailed", f"Error saving claim: {answer.message}")
            return
        claim = answer
    yield Emit(claim, "Normal", "ExternalProvisioning",
               f"Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system "
               "administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.")


def _unbound_claim(claim: Object, view: View) -> Steps:
    delay = _delays(claim, view)
    waits = delay and SELECTED_NODE not in notes(claim)
    pv = best_match(claim, view, delay)
    if pv is not None:
        yield from _bind(pv, claim)
        return
    if not _has_class(claim) and (c := default_class(view)) is not None:
        yield Update({**claim, "spec": {**claim["spec"], "storageClassName": name(c)}})
        return
    if waits:
        waiting = sorted(name(p) for p in view.by("pods", "claim", f"{namespace(claim)}/{name(claim)}") if not finished(p) and not node_of(p))
        if not waiting:
            yield Emit(claim, "Normal", "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
        else:
            what = f"pod {waiting[0]}" if len(waiting) == 1 else f"pods {','.join(waiting)}"
            yield Emit(claim, "Normal", "WaitForPodScheduled", f"waiting for {what} to be scheduled")
    elif class_of(claim):
        yield from _provision(claim, view)
        return
    else:
        yield Emit(claim, "Normal", "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
    yield from _claim_status(claim, "Pending", None)


def _requested_volume(claim: Object, view: View) -> Steps:
    pv = view.get(PVS, "", claim["spec"]["volumeName"])
    if pv is None:
        yield from _claim_status(claim, "Pending", None)
    elif not pv["spec"].get("claimRef"):
        why = mismatch(pv, claim)
        if why:
            yield Emit(claim, "Warning", "VolumeMismatch", f'Cannot bind to requested volume "{name(pv)}": {why}')
            yield from _claim_status(claim, "Pending", None)
        else:
            yield from _bind(pv, claim)
    elif bound_to(pv, claim):
        yield from _bind(pv, claim)
    else:
        yield Emit(claim, "Warning", "FailedBinding", f'volume "{name(pv)}" already bound to a different claim.')
        if BOUND_BY_CONTROLLER in notes(claim):
            yield Again(f"volume {name(pv)} is bound to a different claim")
        else:
            yield from _claim_status(claim, "Pending", None)


def _lost(claim: Object, reason: str, message: str) -> Steps:
    if (claim.get("status") or {}).get("phase") == "Lost":
        return
    changed = yield from _claim_status(claim, "Lost", None)
    if changed is not None:
        yield Emit(changed, "Warning", reason, message)


def reconcile_claim(claim: Object, view: View, now: float) -> Steps:
    volume_name = claim["spec"].get("volumeName")
    if BIND_COMPLETED not in notes(claim):
        yield from (_requested_volume(claim, view) if volume_name else _unbound_claim(claim, view))
        return
    if not volume_name:
        yield from _lost(claim, "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
        return
    pv = view.get(PVS, "", volume_name)
    if pv is None:
        live = yield Fetch(f"/api/v1/persistentvolumes/{volume_name}")
        if isinstance(live, Failed):
            if live.code == 404:
                yield from _lost(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
            else:
                yield Again(live.message)
            return
        pv = live
    ref = pv["spec"].get("claimRef")
    if not ref or ref.get("uid") == uid(claim):
        yield from _bind(pv, claim)
    else:
        yield from _lost(claim, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")


def _volume_wakes_claims(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """The claim a volume names; and, when a volume becomes available, all that wait."""
    out: set[Key] = set()
    for pv in (old, new):
        ref = (pv["spec"].get("claimRef") or {}) if pv is not None else {}
        if ref.get("name"):
            out.add((ref.get("namespace") or "", ref["name"]))
    if new is None and old is not None:
        return out
    if new is not None and (new.get("status") or {}).get("phase") == "Available" and (
            old is None or (old.get("status") or {}).get("phase") != "Available" or old["spec"] != new["spec"] or labels(old) != labels(new)):
        out.update(key(c) for c in view.by(CLAIMS, "status.phase", "Pending") if BIND_COMPLETED not in notes(c) and class_of(c) == class_of(new))
    return out


def _class_wakes_claims(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    if new is None:
        return ()
    return [key(c) for c in view.by(CLAIMS, "status.phase", "Pending")
            if BIND_COMPLETED not in notes(c) and (class_of(c) == name(new) or not _has_class(c))]


def _pod_wakes_claims(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """A pod that uses a waiting claim came, went or was scheduled."""
    pod = new or old
    if pod is None or (old is not None and new is not None and node_of(old) == node_of(new)):
        return
    for v in (pod.get("spec") or {}).get("volumes") or ():
        claim_name = (v.get("persistentVolumeClaim") or {}).get("claimName") or (f"{name(pod)}-{v['name']}" if "ephemeral" in v else "")
        if claim_name:
            claim = view.get(CLAIMS, namespace(pod), claim_name)
            if claim is not None and BIND_COMPLETED not in notes(claim):
                yield key(claim)


def _claim_changed(old: Object, new: Object) -> bool:
    return old["spec"] != new["spec"] or notes(old) != notes(new) or old.get("status") != new.get("status")


CLAIM = Controller(NAME, CLAIMS, reconcile_claim, reads=(PVS, CLASSES, "pods"), component=COMPONENT, changed=_claim_changed,
                   triggers=(Trigger(PVS, _volume_wakes_claims), Trigger(CLASSES, _class_wakes_claims), Trigger("pods", _pod_wakes_claims)))


# ---- volumes

def _failed(pv: Object, reason: str, message: str) -> Steps:
    if (pv.get("status") or {}).get("phase") == "Failed":
        return
    changed = yield from _volume_phase(pv, "Failed", message)
    if changed is not None:
        yield Emit(changed, "Warning", reason, message)


def _reclaim(pv: Object, view: View) -> Steps:
    if notes(pv).get(MIGRATED_TO):
        return
    policy, spec = pv["spec"].get("persistentVolumeReclaimPolicy"), pv["spec"]
    if policy == "Recycle":
        yield from _failed(pv, "VolumeFailedRecycle", "No recycler plugin found for the volume!")
    elif policy == "Delete":
        provisioner = notes(pv).get(PROVISIONED_BY) or ""
        if "csi" in spec or (provisioner and not provisioner.startswith("kubernetes.io/")):
            return                                                  # its driver deletes it
        path = (spec.get("hostPath") or {}).get("path") or ""
        if "hostPath" not in spec or provisioner:
            why = f"no volume plugin matched name: {provisioner}" if provisioner else \
                f'error getting deleter volume plugin for volume "{name(pv)}": no deletable volume plugin matched'
            yield from _failed(pv, "VolumeFailedDelete", why)
        elif not (path.startswith("/tmp/") and len(path) > 5):
            yield from _failed(pv, "VolumeFailedDelete", f"host_path deleter only supports /tmp/.+ but received provided {path}")
        else:
            yield Delete("v1", "PersistentVolume", "", name(pv), uid=uid(pv))


def reconcile_volume(pv: Object, view: View, now: float) -> Steps:
    ref = pv["spec"].get("claimRef")
    if not ref or not ref.get("uid"):
        yield from _volume_phase(pv, "Available")
        return
    claim = view.get(CLAIMS, ref.get("namespace") or "", ref.get("name") or "")
    phase = (pv.get("status") or {}).get("phase")
    if (claim is None and phase not in ("Released", "Failed")) or (claim is not None and uid(claim) != ref["uid"]):
        live = yield Fetch(f"/api/v1/namespaces/{ref.get('namespace')}/persistentvolumeclaims/{ref.get('name')}")
        if isinstance(live, Failed) and live.code != 404:
            yield Again(live.message)
            return
        claim = live if not isinstance(live, Failed) and uid(live) == ref["uid"] else None
    if claim is None:
        if phase not in ("Released", "Failed"):
            released = yield from _volume_phase(pv, "Released")
            if released is None:
                return
            pv = released
        yield from _reclaim(pv, view)
    elif not claim["spec"].get("volumeName"):
        if _mode(pv) != _mode(claim):
            yield Emit(pv, "Warning", "VolumeMismatch",
                       f'Cannot bind PersistentVolume to requested PersistentVolumeClaim "{name(claim)}" due to incompatible volumeMode.')
            yield Emit(claim, "Warning", "VolumeMismatch",
                       f'Cannot bind PersistentVolume "{name(pv)}" to requested PersistentVolumeClaim due to incompatible volumeMode.')
    elif claim["spec"]["volumeName"] == name(pv):
        yield from _volume_phase(pv, "Bound")
    elif PROVISIONED_BY in notes(pv) and pv["spec"].get("persistentVolumeReclaimPolicy") == "Delete":
        if phase not in ("Released", "Failed"):
            released = yield from _volume_phase(pv, "Released")
            if released is None:
                return
            pv = released
        yield from _reclaim(pv, view)
    else:
        yield from _unbind(pv)


def _claim_wakes_volumes(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """The volume a claim names, and those that name the claim."""
    out: set[Key] = set()
    claim = new or old
    assert claim is not None
    for c in (old, new):
        if c is not None and c["spec"].get("volumeName"):
            out.add(("", c["spec"]["volumeName"]))
    out.update(("", name(pv)) for pv in view.by(PVS, "spec.claimRef.uid", uid(claim)))
    return out


VOLUME = Controller(NAME, PVS, reconcile_volume, reads=(CLAIMS,), component=COMPONENT, triggers=(Trigger(CLAIMS, _claim_wakes_volumes),))
