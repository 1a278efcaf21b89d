"""Claims that pods bring along: PersistentVolumeClaims of ephemeral volumes, ResourceClaims from templates; and growing claims.

Upstream: pkg/controller/volume/ephemeral, pkg/controller/resourceclaim, pkg/controller/volume/expand.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from kubern.controllers.pods import finished, node_of
from kubern.controllers.volumes import CLAIMS, storage
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Create, Delete, Emit, Failed, Fetch, Patch, Update
from kubern.model.object import Key, Object, clone, controller_of, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.quantity import compare
from kubern.model.view import View

RESOURCE_CLAIMS, TEMPLATES = "resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io"
POD_CLAIM = "resource.kubernetes.io/pod-claim-name"
FINALIZER = "resource.kubernetes.io/delete-protection"
NAME_MAX = 57


# ---- ephemeral volumes

def _ephemeral(pod: Object, view: View, now: float) -> Steps:
    if deleting(pod):
        return
    for v in (pod.get("spec") or {}).get("volumes") or ():
        if "ephemeral" not in v:
            continue
        wanted = f"{name(pod)}-{v['name']}"
        have = view.get(CLAIMS, namespace(pod), wanted)
        error = ""
        if have is not None:
            ref = controller_of(have)
            if ref is None or ref.get("uid") != uid(pod):
                error = f"PVC {namespace(pod)}/{wanted} was not created for pod {namespace(pod)}/{name(pod)} (pod is not owner)"
        else:
            template = v["ephemeral"].get("volumeClaimTemplate") or {}
            m: dict[str, Any] = {"name": wanted, "namespace": namespace(pod), "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": name(pod), "uid": uid(pod), "controller": True, "blockOwnerDeletion": True}]}
            if labels(template):
                m["labels"] = dict(labels(template))
            if notes(template):
                m["annotations"] = dict(notes(template))
            made = yield Create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": m, "spec": clone(template.get("spec") or {})})
            if isinstance(made, Failed):
                error = f"create PVC {wanted}: {made.message}"
        if error:
            yield Emit(pod, "Warning", "FailedBinding", f"ephemeral volume {v['name']}: {error}")
            yield Again(error)
            return


def _claim_gone(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    if new is None and old is not None:
        ref = controller_of(old)
        if ref is not None and ref.get("kind") == "Pod":
            return [(namespace(old), ref.get("name") or "")]
    return ()


EPHEMERAL = Controller("ephemeral-volume-controller", "pods", _ephemeral, component="ephemeral_volume", changed=lambda old, new: False,
                       triggers=(Trigger(CLAIMS, _claim_gone),))


# ---- claims that grow

def _expand(claim: Object, view: View, now: float) -> Steps:
    status = claim.get("status") or {}
    if status.get("phase") != "Bound" or not claim["spec"].get("volumeName"):
        return
    if compare(storage((claim["spec"].get("resources") or {}).get("requests")), storage(status.get("capacity"))) > 0:
        yield Emit(claim, "Normal", "ExternalExpanding", "waiting for an external controller to expand this PVC")


def _grew(old: Object, new: Object) -> bool:
    return compare(storage((old["spec"].get("resources") or {}).get("requests")), storage((new["spec"].get("resources") or {}).get("requests"))) < 0


EXPAND = Controller("expand-controller", CLAIMS, _expand, component="volume_expand", changed=_grew)


# ---- resource claims

def _done(pod: Object) -> bool:
    return finished(pod) or (deleting(pod) and not node_of(pod))


def claim_name(pod: Object, pod_claim: dict[str, Any]) -> str | None:
    """The claim's name; "" = not made yet; None = none is needed."""
    if pod_claim.get("resourceClaimName"):
        return str(pod_claim["resourceClaimName"])
    for s in (pod.get("status") or {}).get("resourceClaimStatuses") or ():
        if s.get("name") == pod_claim.get("name"):
            return s.get("resourceClaimName")
    return ""


def owned_by(claim: Object, pod: Object) -> bool:
    ref = controller_of(claim)
    return ref is not None and ref.get("uid") == uid(pod)


def _generate_name(pod_name: str, short: str) -> str:
    text = f"{pod_name}-{short}-"
    if len(text) > NAME_MAX:
        text = f"{pod_name[:len(pod_name) * NAME_MAX // len(text)]}-{short[:len(short) * NAME_MAX // len(text)]}"
    return text


def _make(pod: Object, pod_claim: dict[str, Any], view: View) -> Generator[Any, Any, tuple[str, str]]:
    """(name of a claim that is new to the pod's status, error)."""
    have = claim_name(pod, pod_claim)
    if have is None:
        return "", ""
    existing = view.get(RESOURCE_CLAIMS, namespace(pod), have) if have else None
    if existing is not None and (pod_claim.get("resourceClaimName") or owned_by(existing, pod)):
        return "", ""
    template_name = pod_claim.get("resourceClaimTemplateName")
    if not template_name:
        return "", ""
    for c in view.owned(RESOURCE_CLAIMS, uid(pod)):
        if notes(c).get(POD_CLAIM) == pod_claim["name"] and not deleting(c):
            return name(c), ""
    template = view.get(TEMPLATES, namespace(pod), template_name)
    if template is None:
        return "", f'resource claim template "{template_name}": resourceclaimtemplate.resource.k8s.io "{template_name}" not found'
    spec = template.get("spec") or {}
    m: dict[str, Any] = {
        "generateName": _generate_name(name(pod), pod_claim["name"]), "namespace": namespace(pod),
        "annotations": {**notes(spec), POD_CLAIM: pod_claim["name"]},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name(pod), "uid": uid(pod), "controller": True}]}
    if labels(spec):
        m["labels"] = dict(labels(spec))
    made = yield Create({"apiVersion": template["apiVersion"], "kind": "ResourceClaim", "metadata": m, "spec": clone(spec.get("spec") or {})})
    return ("", f"create ResourceClaim : {made.message}") if isinstance(made, Failed) else (name(made), "")


def _pod(pod: Object, view: View, now: float) -> Steps:
    wanted = (pod.get("spec") or {}).get("resourceClaims") or ()
    if not wanted or deleting(pod):
        return
    new: list[dict[str, str]] = []
    for pod_claim in wanted:
        made, error = yield from _make(pod, pod_claim, view)
        if error:
            yield Emit(pod, "Warning", "FailedResourceClaimCreation", f"PodResourceClaim {pod_claim['name']}: {error}")
            yield Again(error)
            return
        if made:
            new.append({"name": pod_claim["name"], "resourceClaimName": made})
    if new:
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name(pod), "namespace": namespace(pod)},
                "status": {"resourceClaimStatuses": new}}
        yield Patch("v1", "Pod", namespace(pod), name(pod), body, "apply", "status", "ResourceClaimController", True)
    if not node_of(pod):
        return
    for pod_claim in wanted:                   # a pod that was bound without the scheduler
        have = claim_name(pod, pod_claim)
        claim = view.get(RESOURCE_CLAIMS, namespace(pod), have) if have else None
        if claim is None:
            continue
        status = claim.get("status") or {}
        reserved = status.get("reservedFor") or []
        if status.get("allocation") and not any(r.get("uid") == uid(pod) for r in reserved) and len(reserved) < 256:
            entry = {"resource": "pods", "name": name(pod), "uid": uid(pod)}
            yield Update({**claim, "status": {**status, "reservedFor": [*reserved, entry]}}, "status")


def _template_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    if new is None:
        return ()
    return [key(p) for p in view.list("pods", namespace(new))
            if any(c.get("resourceClaimTemplateName") == name(new) for c in (p.get("spec") or {}).get("resourceClaims") or ())]


def _claim_wakes_pods(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    claim = new or old
    assert claim is not None
    return [key(p) for p in view.by("pods", "resourceclaim", f"{namespace(claim)}/{name(claim)}")]


def _pod_changed(old: Object, new: Object) -> bool:
    return bool((new.get("spec") or {}).get("resourceClaims")) and (
        node_of(old) != node_of(new) or (old.get("status") or {}).get("resourceClaimStatuses") != (new.get("status") or {}).get("resourceClaimStatuses"))


PODS = Controller("resource-claim-controller", "pods", _pod, reads=(RESOURCE_CLAIMS, TEMPLATES), component="resource_claim", changed=_pod_changed,
                  triggers=(Trigger(TEMPLATES, _template_changed), Trigger(RESOURCE_CLAIMS, _claim_wakes_pods)))


def _release(claim: Object, view: View, now: float) -> Steps:
    status = claim.get("status") or {}
    reserved, kept = status.get("reservedFor") or [], []
    for r in reserved:
        if r.get("apiGroup") or r.get("resource") != "pods":
            kept.append(r)
            continue
        pod = view.get("pods", namespace(claim), r.get("name") or "")
        if pod is None:
            live = yield Fetch(f"/api/v1/namespaces/{namespace(claim)}/pods/{r.get('name')}")
            if isinstance(live, Failed):
                if live.code != 404:
                    yield Again(live.message)
                    return
                continue
            pod = live
        if uid(pod) == r.get("uid") and not _done(pod):
            kept.append(r)
    held = FINALIZER in (meta(claim).get("finalizers") or ())
    if len(kept) < len(reserved) or (held and deleting(claim) and not kept):
        new = {k: v for k, v in status.items() if k != "reservedFor" and not (k == "allocation" and not kept and held)}
        if kept:
            new["reservedFor"] = kept
        if new != status:
            answer = yield Update({**claim, "status": new}, "status")
            if isinstance(answer, Failed):
                return
            claim = answer
        if held and not new.get("allocation"):
            rest = [f for f in meta(claim).get("finalizers") or () if f != FINALIZER]
            answer = yield Update({**claim, "metadata": {**meta(claim), "finalizers": rest}})
            if isinstance(answer, Failed):
                return
    ref = controller_of(claim)
    if not kept and ref is not None and ref.get("kind") == "Pod" and ref.get("apiVersion") == "v1" and not deleting(claim):
        pod = view.get("pods", namespace(claim), ref.get("name") or "")
        if pod is not None and (uid(pod) != ref.get("uid") or _done(pod)):
            yield Delete(claim["apiVersion"], "ResourceClaim", namespace(claim), name(claim))


def _pod_wakes_claims(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    pod = new or old
    if pod is None or not (pod.get("spec") or {}).get("resourceClaims") or (new is not None and not _done(new)):
        return
    for pod_claim in pod["spec"]["resourceClaims"]:
        if used := claim_name(pod, pod_claim):
            yield namespace(pod), used


RELEASE = Controller("resource-claim-controller", RESOURCE_CLAIMS, _release, reads=("pods",), component="resource_claim",
                     triggers=(Trigger("pods", _pod_wakes_claims),))
