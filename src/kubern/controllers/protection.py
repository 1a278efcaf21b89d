"""Finalizers that keep what is in use: claims used by pods, volumes bound to claims, attribute classes in use.

Upstream: pkg/controller/volume/{pvcprotection,pvprotection,vacprotection}.
"""

from __future__ import annotations

from collections.abc import Iterable

from kubern.controllers.pods import finished, node_of
from kubern.controllers.volumes import CLAIMS, PVS
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Failed, Fetch, Update
from kubern.model.object import Key, Object, controller_of, deleting, key, meta, name, namespace, uid
from kubern.model.view import View

CLAIM_FINALIZER, VOLUME_FINALIZER, CLASS_FINALIZER = "kubernetes.io/pvc-protection", "kubernetes.io/pv-protection", "kubernetes.io/vac-protection"
ATTRIBUTE_CLASSES = "volumeattributesclasses.storage.k8s.io"


def _finalizers(obj: Object) -> list[str]:
    return meta(obj).get("finalizers") or []


def _add(obj: Object, finalizer: str) -> Update:
    return Update({**obj, "metadata": {**meta(obj), "finalizers": [*_finalizers(obj), finalizer]}})


def _drop(obj: Object, finalizer: str) -> Update:
    return Update({**obj, "metadata": {**meta(obj), "finalizers": [f for f in _finalizers(obj) if f != finalizer]}})


# ---- claims

def _uses(pod: Object, claim: Object) -> bool:
    """A pod that was scheduled uses its claims until it is gone."""
    if not node_of(pod):
        return False
    for v in (pod.get("spec") or {}).get("volumes") or ():
        if (v.get("persistentVolumeClaim") or {}).get("claimName") == name(claim):
            return True
        if "ephemeral" in v and f"{name(pod)}-{v['name']}" == name(claim) and not (deleting(pod) and meta(pod).get("deletionGracePeriodSeconds") == 0):
            ref = controller_of(claim)
            if ref is not None and ref.get("uid") == uid(pod):
                return True
    return False


def _claim(claim: Object, view: View, now: float) -> Steps:
    if not deleting(claim):
        if CLAIM_FINALIZER not in _finalizers(claim):
            yield _add(claim, CLAIM_FINALIZER)
        return
    if CLAIM_FINALIZER not in _finalizers(claim):
        return
    if any(_uses(p, claim) for p in view.by("pods", "claim", f"{namespace(claim)}/{name(claim)}")):
        return
    live = yield Fetch(f"/api/v1/namespaces/{namespace(claim)}/pods")     # the mirror may lag behind a scheduling
    if isinstance(live, Failed):
        yield Again(live.message)
    elif not any(_uses(p, claim) for p in live.get("items") or ()):
        yield _drop(claim, CLAIM_FINALIZER)


def _pod_left(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """A pod that stops using its claims."""
    pod = new or old
    if pod is None or (new is not None and not finished(new) and node_of(new)):
        return
    for v in (pod.get("spec") or {}).get("volumes") or ():
        claim_name = (v.get("persistentVolumeClaim") or {}).get("claimName") or (f"{name(pod)}-{v['name']}" if "ephemeral" in v else "")
        claim = view.get(CLAIMS, namespace(pod), claim_name) if claim_name else None
        if claim is not None and deleting(claim):
            yield key(claim)


def _claim_changed(old: Object, new: Object) -> bool:
    return deleting(new) or CLAIM_FINALIZER not in _finalizers(new)


CLAIM = Controller("pvc-protection-controller", CLAIMS, _claim, reads=("pods",), changed=_claim_changed, triggers=(Trigger("pods", _pod_left),))


# ---- volumes

def _volume(pv: Object, view: View, now: float) -> Steps:
    if not deleting(pv):
        if VOLUME_FINALIZER not in _finalizers(pv):
            yield _add(pv, VOLUME_FINALIZER)
    elif VOLUME_FINALIZER in _finalizers(pv) and (pv.get("status") or {}).get("phase") != "Bound":
        yield _drop(pv, VOLUME_FINALIZER)


def _volume_changed(old: Object, new: Object) -> bool:
    return deleting(new) or VOLUME_FINALIZER not in _finalizers(new)


VOLUME = Controller("pv-protection-controller", PVS, _volume, changed=_volume_changed)


# ---- attribute classes

def _in_use(class_name: str, view: View) -> bool:
    for pv in view.list(PVS):
        if pv["spec"].get("volumeAttributesClassName") == class_name:
            return True
    for c in view.list(CLAIMS):
        status = c.get("status") or {}
        if class_name in (c["spec"].get("volumeAttributesClassName"), status.get("currentVolumeAttributesClassName"),
                          (status.get("modifyVolumeStatus") or {}).get("targetVolumeAttributesClassName")):
            return True
    return False


def _class(c: Object, view: View, now: float) -> Steps:
    if not deleting(c):
        if CLASS_FINALIZER not in _finalizers(c):
            yield _add(c, CLASS_FINALIZER)
    elif CLASS_FINALIZER in _finalizers(c) and not _in_use(name(c), view):
        yield _drop(c, CLASS_FINALIZER)


def _deleting_classes(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return [key(c) for c in view.list(ATTRIBUTE_CLASSES) if deleting(c)]


CLASS = Controller("volumeattributesclass-protection-controller", ATTRIBUTE_CLASSES, _class,
                   triggers=(Trigger(PVS, _deleting_classes), Trigger(CLAIMS, _deleting_classes)))
