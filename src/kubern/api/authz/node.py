"""The node authorizer: a kubelet reads only what the pods bound to it need.

Everything a pod refers to is counted per node when the pod is bound, so an answer is one lookup, with thousands of pods sharing
a ConfigMap too. Claims lead on to volumes, volumes to the secrets they are mounted with. What is not about single objects
follows RULES. What a node may write *into* objects is checked by api/admission/node_restriction.py.
Upstream: plugin/pkg/auth/authorizer/node, pkg/auth/nodeidentifier; "Using Node Authorization".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from kubern.api.authz.attributes import ALLOWED, NO_OPINION, Attributes, Decision
from kubern.api.authz.rbac import allows, compile_rule
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.request import User

WATCHED = (("", "pods"), ("", "persistentvolumes"), ("storage.k8s.io", "volumeattachments"), ("resource.k8s.io", "resourceslices"))
NODES_GROUP = "system:nodes"
PREFIX = "system:node:"
MIRROR = "kubernetes.io/config.mirror"

_READ = ["get", "list", "watch"]
_RULES: tuple[tuple[list[str], list[str], list[str]], ...] = (   # verbs, groups, resources
    (["create"], ["authentication.k8s.io"], ["tokenreviews"]),
    (["create"], ["authorization.k8s.io"], ["localsubjectaccessreviews", "subjectaccessreviews"]),
    (_READ, [""], ["services"]),
    (["create", "update", "patch"], ["", "events.k8s.io"], ["events"]),
    (["get"], [""], ["endpoints"]),
    (["create", *_READ], ["certificates.k8s.io"], ["certificatesigningrequests"]),
    (_READ, ["storage.k8s.io"], ["csidrivers"]),
    (_READ, ["node.k8s.io"], ["runtimeclasses"]),
)
RULES = tuple(compile_rule({"verbs": v, "apiGroups": g, "resources": r}) for v, g, r in _RULES)


def identity(user: User) -> tuple[str, bool]:
    """(node name, is a node). A member of system:nodes whose name is not system:node:NAME is no node."""
    if NODES_GROUP in user.groups and user.name.startswith(PREFIX):
        return user.name[len(PREFIX):], True
    return "", False


Ref = tuple[str, str, str]   # (plural, namespace, name)

_VOLUME_SECRET = (("cephfs", "secretRef", "name"), ("cinder", "secretRef", "name"), ("flexVolume", "secretRef", "name"),
                  ("rbd", "secretRef", "name"), ("scaleIO", "secretRef", "name"), ("iscsi", "secretRef", "name"),
                  ("storageos", "secretRef", "name"), ("csi", "nodePublishSecretRef", "name"))


def pod_secrets(spec: dict[str, Any]) -> Iterator[str]:
    """Names of the secrets a pod spec refers to."""
    for ref in spec.get("imagePullSecrets") or ():
        yield ref.get("name") or ""
    for c in _containers(spec):
        for source in c.get("envFrom") or ():
            yield (source.get("secretRef") or {}).get("name") or ""
        for env in c.get("env") or ():
            yield ((env.get("valueFrom") or {}).get("secretKeyRef") or {}).get("name") or ""
    for v in spec.get("volumes") or ():
        yield (v.get("secret") or {}).get("secretName") or ""
        yield (v.get("azureFile") or {}).get("secretName") or ""
        for source in (v.get("projected") or {}).get("sources") or ():
            yield (source.get("secret") or {}).get("name") or ""
        for kind, ref, name in _VOLUME_SECRET:
            yield ((v.get(kind) or {}).get(ref) or {}).get(name) or ""


def pod_config_maps(spec: dict[str, Any]) -> Iterator[str]:
    """Names of the ConfigMaps a pod spec refers to."""
    for c in _containers(spec):
        for source in c.get("envFrom") or ():
            yield (source.get("configMapRef") or {}).get("name") or ""
        for env in c.get("env") or ():
            yield ((env.get("valueFrom") or {}).get("configMapKeyRef") or {}).get("name") or ""
    for v in spec.get("volumes") or ():
        yield (v.get("configMap") or {}).get("name") or ""
        for source in (v.get("projected") or {}).get("sources") or ():
            yield (source.get("configMap") or {}).get("name") or ""


def _containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for field in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(field) or ()


def _pod_refs(pod: Object, namespace: str, name: str) -> set[Ref]:
    spec, refs = pod.get("spec") or {}, {("pods", namespace, name)}
    if MIRROR in ((pod.get("metadata") or {}).get("annotations") or {}):
        return refs   # a node must not give itself access by a pod it made
    if spec.get("serviceAccountName"):
        refs.add(("serviceaccounts", namespace, spec["serviceAccountName"]))
    refs.update(("secrets", namespace, s) for s in pod_secrets(spec) if s)
    refs.update(("configmaps", namespace, s) for s in pod_config_maps(spec) if s)
    for v in spec.get("volumes") or ():
        if v.get("persistentVolumeClaim"):
            refs.add(("persistentvolumeclaims", namespace, v["persistentVolumeClaim"].get("claimName") or ""))
        elif v.get("ephemeral"):
            refs.add(("persistentvolumeclaims", namespace, f"{name}-{v.get('name')}"))
    status = pod.get("status") or {}
    made = {s.get("name"): s.get("resourceClaimName") for s in status.get("resourceClaimStatuses") or ()}
    for claim in spec.get("resourceClaims") or ():
        claim_name = claim.get("resourceClaimName") or made.get(claim.get("name"))
        if claim_name:
            refs.add(("resourceclaims", namespace, claim_name))
    extended = (status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName")
    if extended:
        refs.add(("resourceclaims", namespace, extended))
    return refs


_PV_SECRET = ("cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos")
_PV_OWN_NAMESPACE = ("cinder", "storageos")


def _pv_secrets(pv: Object, claim_namespace: str) -> set[Ref]:
    """Secrets a kubelet needs to mount a volume."""
    spec, refs = pv.get("spec") or {}, set()
    azure = spec.get("azureFile") or {}
    if azure.get("secretName"):
        refs.add(("secrets", azure.get("secretNamespace") or claim_namespace, azure["secretName"]))
    for kind in _PV_SECRET:
        ref = (spec.get(kind) or {}).get("secretRef") or {}
        if ref.get("name"):
            ns = ref.get("namespace") or ("" if kind in _PV_OWN_NAMESPACE else claim_namespace)
            refs.add(("secrets", ns, ref["name"]))
    for field in ("nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"):
        ref = (spec.get("csi") or {}).get(field) or {}
        if ref.get("name"):
            refs.add(("secrets", ref.get("namespace") or "", ref["name"]))
    return refs


class NodeGraph:
    """Which objects each node may read, kept by `observe`."""

    def __init__(self) -> None:
        self._pods: dict[tuple[str, str], tuple[str, set[Ref]]] = {}
        self._nodes_of: dict[Ref, Counter[str]] = {}                       # object -> node -> pods there that need it
        self._volumes: dict[str, tuple[Ref, set[Ref]]] = {}                # volume -> (its claim, secrets to mount it)
        self._volumes_of: dict[Ref, set[str]] = {}                         # secret -> volumes
        self._direct: dict[Ref, str] = {}                                  # attachment, slice -> node

    def observe(self, group: str, plural: str, namespace: str, name: str, obj: Object | None) -> None:
        if plural == "pods":
            self._observe_pod(namespace, name, obj)
        elif plural == "persistentvolumes":
            self._observe_volume(name, obj)
        else:
            node = ((obj or {}).get("spec") or {}).get("nodeName") or ""
            if node:
                self._direct[(plural, namespace, name)] = node
            else:
                self._direct.pop((plural, namespace, name), None)

    def _observe_pod(self, namespace: str, name: str, pod: Object | None) -> None:
        old_node, old_refs = self._pods.get((namespace, name), ("", set()))
        node = ((pod or {}).get("spec") or {}).get("nodeName") or ""
        refs = _pod_refs(pod, namespace, name) if pod and node else set()
        if old_node == node and old_refs == refs:
            return
        for ref in old_refs:
            count = self._nodes_of[ref]
            count[old_node] -= 1
            if not count[old_node]:
                del count[old_node]
                if not count:
                    del self._nodes_of[ref]
        for ref in refs:
            self._nodes_of.setdefault(ref, Counter())[node] += 1
        if refs:
            self._pods[(namespace, name)] = (node, refs)
        else:
            self._pods.pop((namespace, name), None)

    def _observe_volume(self, name: str, pv: Object | None) -> None:
        old = self._volumes.pop(name, None)
        if old:
            for ref in old[1]:
                self._volumes_of[ref].discard(name)
                if not self._volumes_of[ref]:
                    del self._volumes_of[ref]
        claim = ((pv or {}).get("spec") or {}).get("claimRef")
        if pv and claim:
            secrets = _pv_secrets(pv, claim.get("namespace") or "")
            self._volumes[name] = (("persistentvolumeclaims", claim.get("namespace") or "", claim.get("name") or ""), secrets)
            for ref in secrets:
                self._volumes_of.setdefault(ref, set()).add(name)

    def related(self, node: str, plural: str, namespace: str, name: str) -> bool:
        """Whether a pod on the node needs this object (or the object is about this node)."""
        if plural == "persistentvolumes":
            volume = self._volumes.get(name)
            return volume is not None and self.related(node, *volume[0])
        ref = (plural, namespace, name)
        if node in self._nodes_of.get(ref, ()) or self._direct.get(ref) == node:
            return True
        return plural == "secrets" and any(self.related(node, "persistentvolumes", "", v) for v in self._volumes_of.get(ref, ()))

    # -- deciding

    def authorize(self, a: Attributes) -> Decision:
        if NODES_GROUP not in a.user.groups:
            return NO_OPINION
        node, is_node = identity(a.user)
        if not is_node:
            return NO_OPINION
        if not node:
            return Decision(False, f"unknown node for user {quote(a.user.name)}")
        steps = _BY_RESOURCE.get((a.group, a.resource)) if a.is_resource else None
        if steps is None:
            return ALLOWED if any(allows(r, a) for r in RULES) else NO_OPINION
        for step in steps:
            answer = step(self, node, a)
            if answer is not None:
                return ALLOWED if answer is True else Decision(False, str(answer or ""))
        return NO_OPINION


# -- what a node may do with single objects: steps asked in order, until one allows (True) or refuses (why)

Step = Callable[[NodeGraph, str, Attributes], "bool | str | None"]


def _only(*verbs: str, why: str) -> Step:
    return lambda g, node, a: None if a.verb in verbs else why


def _free(*verbs: str) -> Step:
    return lambda g, node, a: True if a.verb in verbs else None


def _when(*verbs: str, then: Step) -> Step:
    return lambda g, node, a: then(g, node, a) if a.verb in verbs else None


def _below(subresource: str, *steps: Step) -> Step:
    """The steps for a subresource; all of them pass by what is not it."""
    def step(g: NodeGraph, node: str, a: Attributes) -> bool | str | None:
        if a.subresource != subresource:
            return None
        return next((answer for s in steps if (answer := s(g, node, a)) is not None), None)
    return step


def _whole(why: str) -> Step:
    """Not a subresource."""
    return lambda g, node, a: why if a.subresource else None


def _never(why: str) -> Step:
    return lambda g, node, a: why


def _namespaced(g: NodeGraph, node: str, a: Attributes) -> str | None:
    return None if a.namespace else "can only read namespaced object of this type"


def _related(g: NodeGraph, node: str, a: Attributes) -> bool | str:
    if not a.name:
        return "No Object name found"
    return g.related(node, a.resource, a.namespace, a.name) or f"no relationship found between node '{node}' and this object"


def _selecting(why: str) -> Step:
    """The field selector has the term spec.nodeName=NODE."""
    def step(g: NodeGraph, node: str, a: Attributes) -> bool | str:
        wanted = (f"spec.nodeName={node}", f"spec.nodeName=={node}")
        return any(term.strip() in wanted for term in a.field_selector.split(",")) or why
    return step


def _selecting_or_related(why: str) -> Step:
    selecting = _selecting(why)

    def step(g: NodeGraph, node: str, a: Attributes) -> bool | str | None:
        answer = selecting(g, node, a)
        return _related(g, node, a) if answer is not True and a.name else answer
    return step


def _own(why: str) -> Step:
    """Of the node's name; on create the name is not known, and admission looks at it."""
    return lambda g, node, a: True if a.verb == "create" or a.name == node else why


def _own_node(g: NodeGraph, node: str, a: Attributes) -> bool | str:
    if a.name == node:
        return True
    other = f"'{a.name}'" if a.name else "all nodes"
    return f"node '{node}' cannot read {other}, only its own Node object"


def _in_leases(g: NodeGraph, node: str, a: Attributes) -> str | None:
    return None if a.namespace == "kube-node-lease" else 'can only access leases in the "kube-node-lease" system namespace'


def _token(g: NodeGraph, node: str, a: Attributes) -> bool | str:
    if a.verb != "create" or not a.name:
        return "can only create tokens for individual service accounts"
    return _related(g, node, a) if a.subresource == "token" else "can only create token subresource of serviceaccount"


_CHANGES = ("get", "create", "update", "patch", "delete")
_READS = ("get", "list", "watch")
_READ_OBJECT: tuple[Step, ...] = (_only(*_READS, why="can only read resources of this type"), _whole("cannot read subresource"), _namespaced, _related)
_GET_OBJECT: tuple[Step, ...] = (_only("get", why="can only get individual resources of this type"), _whole("cannot get subresource"), _related)

_BY_RESOURCE: dict[tuple[str, str], tuple[Step, ...]] = {
    ("", "secrets"): _READ_OBJECT,
    ("", "configmaps"): _READ_OBJECT,
    ("", "persistentvolumeclaims"): (_below("status", _only("update", "patch", why="can only get/update/patch this type"), _related), *_GET_OBJECT),
    ("", "persistentvolumes"): _GET_OBJECT,
    ("resource.k8s.io", "resourceclaims"): _GET_OBJECT,
    ("storage.k8s.io", "volumeattachments"): _GET_OBJECT,
    ("", "serviceaccounts"): (_below("", _when("get", then=_namespaced), _when("get", then=_related)), _token),
    ("coordination.k8s.io", "leases"): (
        _only(*_CHANGES, why="can only get, create, update, patch, or delete a node lease"), _in_leases,
        _own("can only access node lease with the same name as the requesting node")),
    ("storage.k8s.io", "csinodes"): (
        _only(*_CHANGES, why="can only get, create, update, patch, or delete a CSINode"), _whole("cannot authorize CSINode subresources"),
        _own("can only access CSINode with the same name as the requesting node")),
    ("resource.k8s.io", "resourceslices"): (
        _whole("cannot authorize ResourceSlice subresources"), _free("create"), _when("get", "update", "patch", "delete", then=_related),
        _when("watch", "list", "deletecollection", then=_selecting("can only list/watch/deletecollection resourceslices with nodeName field selector")),
        _never("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection")),
    ("", "nodes"): (
        _below("status", _free("update", "patch")), _whole(""), _free("create", "update", "patch"), _when(*_READS, then=_own_node), _never("")),
    ("", "pods"): (
        _below("status", _free("update", "patch")), _below("eviction", _free("create")), _whole(""), _free("create", "delete"),
        _when("get", then=_related), _when("list", "watch", then=_selecting_or_related("can only list/watch pods with spec.nodeName field selector")),
        _never("")),
}
