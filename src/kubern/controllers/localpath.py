"""The local-path provisioner: claims of classes with the provisioner kubern.dev/local-path get a directory on the node their pod is placed on.

The directory is made by that node's kubelet before the PersistentVolume exists and removed before it goes; both are asked for through
nodes/proxy (kubelet/localvolumes.py). A directory has no size of its own: capacity is what was asked for, and growing is a matter of writing it down.
Source: external-provisioner and external-resizer (annotations, names, events); Rancher's local-path-provisioner (what people expect of it).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.controllers.context import Context
from kubern.controllers.volumes import BIND_COMPLETED, CLAIMS, CLASSES, PROVISIONED_BY, PROVISIONER, PVS, SELECTED_NODE, annotated, class_of, storage
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Create, Delete, Emit, Failed, Fetch, Update
from kubern.model.object import Key, Object, condition, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.quantity import compare
from kubern.model.view import View

DRIVER = "kubern.dev/local-path"
NODES = "nodes"
HOSTNAME = "kubernetes.io/hostname"
ACCOUNT = "kubern-local-path"
MODES = {"ReadWriteOnce", "ReadWriteOncePod"}
RBAC = "rbac.authorization.k8s.io"
_SHOWN_PATH_MAX = 200


def objects() -> list[Object]:
    """The default class, and what this controller may do."""
    rules = [{"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": ["get", "list", "watch", "create", "update", "delete"]},
             {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get", "list", "watch", "update"]},
             {"apiGroups": [""], "resources": ["persistentvolumeclaims/status"], "verbs": ["update"]},
             {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get", "list", "watch"]},
             {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
             {"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["create", "delete"]},
             {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]}]
    return [
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {
            "name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": DRIVER,
         "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete", "allowVolumeExpansion": True},
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": ACCOUNT}, "rules": rules},
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": ACCOUNT},
         "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "kube-system"}],
         "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": ACCOUNT}}]


def _directory(node: str, volume: str) -> str:
    return f"/api/v1/nodes/{node}/proxy/localvolumes/{volume}"


def _asked(claim: Object) -> str:
    return storage((claim["spec"].get("resources") or {}).get("requests"))


def _ours(claim: Object, view: View) -> Object | None:
    """The claim's class, if it is one of ours."""
    c = view.get(CLASSES, "", class_of(claim)) if class_of(claim) else None
    return c if c is not None and c.get("provisioner") == DRIVER else None


def node_for(claim: Object, c: Object, view: View) -> Object | None:
    """The node the scheduler selected; for a class that binds at once the first that is ready."""
    selected = notes(claim).get(SELECTED_NODE)
    if selected:
        return view.get(NODES, "", selected)
    terms = [{e["key"]: e.get("values") or () for e in t.get("matchLabelExpressions") or ()} for t in c.get("allowedTopologies") or ()]
    fit = [n for n in view.list(NODES) if (condition(n, "Ready") or {}).get("status") == "True" and not (n.get("spec") or {}).get("unschedulable")
           and (not terms or any(all(labels(n).get(k) in v for k, v in t.items()) for t in terms))]
    return min(fit, key=name) if fit else None


def volume(claim: Object, c: Object, node: Object, path: str) -> Object:
    """The PersistentVolume of a claim."""
    spec: dict[str, Any] = {
        "capacity": {"storage": _asked(claim)}, "accessModes": list(claim["spec"].get("accessModes") or ()),
        "volumeMode": "Filesystem", "storageClassName": name(c), "persistentVolumeReclaimPolicy": c.get("reclaimPolicy") or "Delete",
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace(claim), "name": name(claim), "uid": uid(claim)},
        "local": {"path": path}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": HOSTNAME, "operator": "In", "values": [labels(node).get(HOSTNAME) or name(node)]}]}]}}}
    if c.get("mountOptions"):
        spec["mountOptions"] = list(c["mountOptions"])
    return {"apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": f"pvc-{uid(claim)}", "annotations": {PROVISIONED_BY: DRIVER}}, "spec": spec}


def _failed(claim: Object, c: Object, why: str) -> Steps:
    yield Emit(claim, "Warning", "ProvisioningFailed", f'failed to provision volume with StorageClass "{name(c)}": {why}')


def _provision(claim: Object, c: Object, view: View) -> Steps:
    if (claim["spec"].get("volumeMode") or "Filesystem") == "Block":
        yield from _failed(claim, c, "block volumes cannot be directories")
        return
    if not set(claim["spec"].get("accessModes") or ()) <= MODES:
        yield from _failed(claim, c, "a directory of one node can only be ReadWriteOnce or ReadWriteOncePod")
        return
    if claim["spec"].get("dataSource") or claim["spec"].get("dataSourceRef"):
        yield from _failed(claim, c, "data sources are not supported")
        return
    if claim["spec"].get("selector"):
        yield from _failed(claim, c, "claim Selector is not supported")
        return
    node = node_for(claim, c, view)
    if node is None and SELECTED_NODE in notes(claim):            # gone meanwhile: the scheduler shall choose again
        yield from _failed(claim, c, f"node {notes(claim)[SELECTED_NODE]} is gone")
        yield Update(annotated(claim, {}, (SELECTED_NODE,)))
        return
    if node is None:
        yield Again("no node for the volume")
        return
    pv_name = f"pvc-{uid(claim)}"
    yield Emit(claim, "Normal", "Provisioning", f'External provisioner is provisioning volume for claim "{namespace(claim)}/{name(claim)}"')
    made = yield Fetch(_directory(name(node), pv_name), method="POST", body={})
    if isinstance(made, Failed) or not made.get("path"):
        why = made.message[:_SHOWN_PATH_MAX] if isinstance(made, Failed) else "the node did not say where"
        yield from _failed(claim, c, f"node {name(node)}: {why}")
        yield Again(why)
        return
    answer = yield Create(volume(claim, c, node, made["path"]), ignore_exists=True)
    if not isinstance(answer, Failed):
        yield Emit(claim, "Normal", "ProvisioningSucceeded", f"Successfully provisioned volume {pv_name}")


def _grow(claim: Object, pv: Object) -> Steps:
    """A bound claim asks for more than it has."""
    asked = _asked(claim)
    if compare(asked, storage(pv["spec"].get("capacity"))) > 0:
        yield Emit(claim, "Normal", "Resizing", f"External resizer is resizing volume {name(pv)}")
        answer = yield Update({**pv, "spec": {**pv["spec"], "capacity": {**(pv["spec"].get("capacity") or {}), "storage": asked}}})
        if isinstance(answer, Failed):
            return
    status = claim.get("status") or {}
    if compare(asked, storage(status.get("capacity"))) > 0:
        kept = {k: v for k, v in status.items() if k not in ("allocatedResources", "allocatedResourceStatuses")}
        answer = yield Update({**claim, "status": {**kept, "capacity": {**(status.get("capacity") or {}), "storage": asked}}}, "status")
        if not isinstance(answer, Failed):
            yield Emit(claim, "Normal", "VolumeResizeSuccessful", "Resize volume succeeded")


def _claim(claim: Object, view: View, now: float) -> Steps:
    c = _ours(claim, view)
    if c is None or deleting(claim):
        return
    if BIND_COMPLETED in notes(claim):
        pv = view.get(PVS, "", claim["spec"].get("volumeName") or "")
        if pv is not None and notes(pv).get(PROVISIONED_BY) == DRIVER and (claim.get("status") or {}).get("phase") == "Bound":
            yield from _grow(claim, pv)
    elif not claim["spec"].get("volumeName") and notes(claim).get(PROVISIONER) == DRIVER and view.get(PVS, "", f"pvc-{uid(claim)}") is None:
        if notes(claim).get(SELECTED_NODE) or c.get("volumeBindingMode") != "WaitForFirstConsumer":
            yield from _provision(claim, c, view)


def claims(context: Context) -> Controller:
    def wakes(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        """A claim of class "" may get a default; nodes may become ready."""
        return [key(x) for x in view.by(CLAIMS, "status.phase", "Pending")] if new is not None and old is None else ()

    row = Controller(ACCOUNT, CLAIMS, _claim if context.real_nodes else _nothing, reads=(PVS, CLASSES, NODES), component=DRIVER,
                     triggers=(Trigger(CLASSES, wakes), Trigger(NODES, wakes)), backoff_first_s=0.5, backoff_last_s=60.0)
    return row


def _nothing(obj: Object, view: View, now: float) -> Steps:
    yield from ()


def home_of(pv: Object) -> str:
    """The hostname label of the node that holds a volume."""
    for term in ((pv["spec"].get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or ():
        for e in term.get("matchExpressions") or ():
            if e.get("key") == HOSTNAME and e.get("operator") == "In" and e.get("values"):
                return str(e["values"][0])
    return ""


def _volume(pv: Object, view: View, now: float) -> Steps:
    """A released volume with the Delete policy goes, its directory first."""
    if notes(pv).get(PROVISIONED_BY) != DRIVER or (pv.get("status") or {}).get("phase") not in ("Released", "Failed") or \
            pv["spec"].get("persistentVolumeReclaimPolicy") != "Delete":
        return
    node = next((n for n in view.list(NODES) if labels(n).get(HOSTNAME, name(n)) == home_of(pv)), None)
    if node is not None:
        done = yield Fetch(_directory(name(node), name(pv)), method="DELETE")
        if isinstance(done, Failed):
            yield Emit(pv, "Warning", "VolumeFailedDelete", f"node {name(node)}: {done.message[:_SHOWN_PATH_MAX]}")
            yield Again(done.message)
            return
    if not deleting(pv):
        yield Delete("v1", "PersistentVolume", "", name(pv), uid=meta(pv).get("uid") or "")


def volumes(context: Context) -> Controller:
    def node_gone(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        return [key(pv) for pv in view.list(PVS) if (pv.get("status") or {}).get("phase") == "Released"] if new is None else ()

    return Controller(ACCOUNT, PVS, _volume if context.real_nodes else _nothing, reads=(NODES,), component=DRIVER,
                      triggers=(Trigger(NODES, node_gone),), backoff_first_s=1.0, backoff_last_s=60.0)
