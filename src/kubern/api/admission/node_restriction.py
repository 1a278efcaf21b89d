"""NodeRestriction: what a kubelet may write: its own Node, mirror pods and status of its own pods, its lease, tokens of its pods.

What it may read is the node authorizer's affair (api/authz/node.py). Upstream: plugin/pkg/admission/noderestriction.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

from kubern.api.admission.attributes import CREATE, DELETE, UPDATE, Attributes, Plugin, annotations_of
from kubern.api.authz.node import MIRROR, identity, pod_config_maps, pod_secrets
from kubern.api.authz.unanswered import settled
from kubern.model.invalid import quote
from kubern.model.object import Object, labels
from kubern.model.status import StatusError, not_found

LEASES = "kube-node-lease"
KUBELET_LABELS = frozenset((
    "kubernetes.io/hostname", "topology.kubernetes.io/zone", "topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region", "node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type",
    "kubernetes.io/os", "kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/arch"))
KUBELET_NAMESPACES = ("kubelet.kubernetes.io", "node.kubernetes.io")
RESTRICTED = "node-restriction.kubernetes.io"
SIGNERS = ("kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet")


async def mutate(a: Attributes) -> None:
    if "system:nodes" not in a.user.groups:
        return
    node, is_node = identity(a.user)
    if not is_node:
        return
    if not node:
        raise a.refuse(f"could not determine node from user {quote(a.user.name)}")
    check = _CHECKS.get((a.resource.group, a.resource.plural))
    if check:
        await settled(partial(check, node, a))


def _unexpected(a: Attributes) -> StatusError:
    return a.refuse(f"unexpected operation {quote(a.operation)}")


def _pod(node: str, a: Attributes) -> None:
    n = quote(node)
    if a.subresource == "status":
        return _pod_status(node, a)
    if a.subresource == "eviction":
        return _eviction(node, a)
    if a.subresource:
        raise a.refuse(f"unexpected pod subresource {quote(a.subresource)}, only 'status' and 'eviction' are allowed")
    if a.operation == CREATE:
        return _mirror(node, a)
    if a.operation == DELETE:
        pod = a.reader.get("pods", a.namespace, a.name)
        if pod is None:
            raise not_found("", "pods", a.name)
        if _node_of(pod) != node:
            raise a.refuse(f"node {n} can only delete pods with spec.nodeName set to itself")
        return None
    raise a.refuse(f"unexpected operation {quote(a.operation)}, node {n} can only create and delete mirror pods")


def _node_of(pod: Object | None) -> str:
    return ((pod or {}).get("spec") or {}).get("nodeName") or ""


def _mirror(node: str, a: Attributes) -> None:
    n, pod = quote(node), a.obj or {}
    if MIRROR not in annotations_of(pod):
        raise a.refuse(f'pod does not have "{MIRROR}" annotation, node {n} can only create mirror pods')
    if _node_of(pod) != node:
        raise a.refuse(f"node {n} can only create pods with spec.nodeName set to itself")
    owners = (pod.get("metadata") or {}).get("ownerReferences") or []
    if len(owners) > 1:
        raise a.refuse(f"node {n} can only create pods with a single owner reference set to itself")
    if not owners or (owners[0].get("apiVersion"), owners[0].get("kind"), owners[0].get("name")) != ("v1", "Node", node):
        raise a.refuse(f"node {n} can only create pods with an owner reference set to itself")
    if not owners[0].get("controller"):
        raise a.refuse(f"node {n} can only create pods with a controller owner reference set to itself")
    if owners[0].get("blockOwnerDeletion"):
        raise a.refuse(f"node {n} must not set blockOwnerDeletion on an owner reference")
    stored = a.reader.get("nodes", "", node)
    if stored is None:
        raise not_found("", "nodes", node)
    uid = stored["metadata"].get("uid", "")
    if owners[0].get("uid") != uid:
        raise a.refuse(f"node {node} UID mismatch: expected {owners[0].get('uid')} got {uid}")
    found = _reference(pod.get("spec") or {})
    if found:
        raise a.refuse(f"node {n} can not create pods that reference {found}")


def _reference(spec: dict[str, Any]) -> str:
    """The kind of API object a pod refers to, "" if none."""
    if spec.get("serviceAccountName"):
        return "serviceaccounts"
    if any(pod_secrets(spec)):
        return "secrets"
    if any(pod_config_maps(spec)):
        return "configmaps"
    if spec.get("resourceClaims"):
        return "resourceclaims"
    for v in spec.get("volumes") or ():
        for field, what in _VOLUME_REFERENCES:
            if v.get(field):
                return what
        for source in (v.get("projected") or {}).get("sources") or ():
            for field, what in _PROJECTED_REFERENCES:
                if source.get(field):
                    return what
    return ""


_VOLUME_REFERENCES = (
    ("configMap", "configmaps (via configmap volumes)"), ("secret", "secrets (via secret volumes)"), ("csi", "csidrivers (via CSI volumes)"),
    ("glusterfs", "endpoints (via glusterFS volumes)"), ("persistentVolumeClaim", "persistentvolumeclaims"),
    ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"), ("azureFile", "secrets (via azureFile volumes)"))
_PROJECTED_REFERENCES = (
    ("configMap", "configmaps (via projected volumes)"), ("secret", "secrets (via projected volumes)"),
    ("serviceAccountToken", "serviceaccounts (via projected volumes)"), ("clusterTrustBundle", "clustertrustbundles"),
    ("podCertificate", "podcertificates"))


def _pod_status(node: str, a: Attributes) -> None:
    if a.operation != UPDATE:
        raise _unexpected(a)
    n, old, new = quote(node), a.old or {}, a.obj or {}
    if _node_of(old) != node:
        raise a.refuse(f"node {n} can only update pod status for pods with spec.nodeName set to itself")
    if labels(old) != labels(new):
        raise a.refuse(f"node {n} cannot update labels through pod status")
    before, after = old.get("status") or {}, new.get("status") or {}
    if (before.get("resourceClaimStatuses") or []) != (after.get("resourceClaimStatuses") or []):
        raise a.refuse(f"node {n} cannot update resource claim statues")
    if before.get("extendedResourceClaimStatus") != after.get("extendedResourceClaimStatus"):
        raise a.refuse(f"node {n} cannot update extended resource claim status")


def _eviction(node: str, a: Attributes) -> None:
    if a.operation != CREATE:
        raise a.refuse(f"unexpected operation {a.operation}")
    name = a.name or ((a.obj or {}).get("metadata") or {}).get("name") or ""
    if not name:
        raise a.refuse("could not determine pod from request data")
    pod = a.reader.get("pods", a.namespace, name)
    if pod is None:
        raise not_found("", "pods", name)
    if _node_of(pod) != node:
        raise a.refuse(f"node {node} can only evict pods with spec.nodeName set to itself")


def _claim(node: str, a: Attributes) -> None:
    if a.subresource != "status":
        raise a.refuse("may only update PVC status")
    if a.operation != UPDATE:
        raise _unexpected(a)

    def rest(claim: Object) -> Any:
        m = {k: v for k, v in (claim.get("metadata") or {}).items() if k not in ("resourceVersion", "managedFields")}
        free = ("capacity", "conditions", "allocatedResourceStatuses", "allocatedResources")
        status = {k: v for k, v in (claim.get("status") or {}).items() if k not in free}
        return m, claim.get("spec"), status

    if rest(a.old or {}) != rest(a.obj or {}):
        raise a.refuse(f"node {quote(node)} is not allowed to update fields other than status.quantity and status.conditions")


def _node(node: str, a: Attributes) -> None:
    n = quote(node)
    name = a.name or ((a.obj or {}).get("metadata") or {}).get("name") or ""
    if name != node:
        raise a.refuse(f"node {n} is not allowed to modify node {quote(name)}")
    if a.operation not in (CREATE, UPDATE):
        return
    new, old = a.obj or {}, a.old or {}
    spec, before = new.get("spec") or {}, old.get("spec") or {}
    source = spec.get("configSource")
    if a.operation == CREATE:
        if source is not None:
            raise a.refuse(f"node {n} is not allowed to create pods with a non-nil configSource")
        bad = _forbidden_labels(labels(new), {})
        if bad:
            raise a.refuse(f"node {n} is not allowed to set the following labels: {', '.join(bad)}")
        return
    if source is not None and source != before.get("configSource"):
        raise a.refuse(f"node {n} is not allowed to update configSource to a new non-nil configSource")
    if (spec.get("taints") or []) != (before.get("taints") or []):
        raise a.refuse(f"node {n} is not allowed to modify taints")
    if (new["metadata"].get("ownerReferences") or []) != (old["metadata"].get("ownerReferences") or []):
        raise a.refuse(f"node {n} is not allowed to modify ownerReferences")
    bad = _forbidden_labels(labels(new), labels(old))
    if bad:
        raise a.refuse(f"is not allowed to modify labels: {', '.join(bad)}")


def _under(domain: str, parent: str) -> bool:
    return domain == parent or domain.endswith(f".{parent}")


def _forbidden_labels(new: dict[str, str], old: dict[str, str]) -> list[str]:
    """Labels that changed and that a kubelet must leave alone."""
    out = []
    for key in new.keys() | old.keys():
        if new.get(key) == old.get(key):
            continue
        domain = key.partition("/")[0] if "/" in key else ""
        ours = _under(domain, "kubernetes.io") or _under(domain, "k8s.io")
        known = key in KUBELET_LABELS or any(_under(domain, p) for p in KUBELET_NAMESPACES)
        if _under(domain, RESTRICTED) or (ours and not known):
            out.append(key)
    return sorted(out)


def _token(node: str, a: Attributes) -> None:
    if a.operation != CREATE or a.subresource != "token":
        return
    request = (a.obj or {}).get("spec") or {}
    ref = request.get("boundObjectRef") or {}
    if ref.get("apiVersion") != "v1" or ref.get("kind") != "Pod" or not ref.get("name"):
        raise a.refuse("node requested token not bound to a pod")
    if not ref.get("uid"):
        raise a.refuse("node requested token with a pod binding without a uid")
    pod = a.reader.get("pods", a.namespace, ref["name"])
    if pod is None:
        raise not_found("", "pods", ref["name"])
    if ref["uid"] != pod["metadata"].get("uid"):
        raise a.refuse(f"the UID in the bound object reference ({ref['uid']}) does not match the UID in record. The object might have "
                       "been deleted and then recreated")
    if _node_of(pod) != node:
        raise a.refuse("node requested token bound to a pod scheduled on a different node")
    audiences = request.get("audiences") or []
    if len(audiences) > 1:
        raise a.refuse("node may only request 0 or 1 audiences")
    audience = audiences[0] if audiences else ""
    if not _mounts_audience(a, pod, audience) and not _may_request(a, audience):
        raise a.refuse(f"audience {quote(audience)} not found in pod spec volume, {a.user.name} is not authorized to request tokens for "
                       "this audience")


def _may_request(a: Attributes, audience: str) -> bool:
    return a.authorizer is not None and a.authorizer.allowed(a.user, "request-serviceaccounts-token-audience", "", audience, a.namespace,
                                                             a.name, version="v1")


def _mounts_audience(a: Attributes, pod: Object, audience: str) -> bool:
    """Whether a volume of the pod projects a token for this audience, or a CSI driver it uses asks for one."""
    drivers: list[str] = []
    for v in (pod.get("spec") or {}).get("volumes") or ():
        for source in (v.get("projected") or {}).get("sources") or ():
            token = source.get("serviceAccountToken")
            if token is not None and (token.get("audience") or "") == audience:
                return True
        claim = (v.get("persistentVolumeClaim") or {}).get("claimName") or ""
        if v.get("ephemeral"):
            claim = f"{pod['metadata']['name']}-{v.get('name')}"
        if v.get("csi"):
            drivers.append(v["csi"].get("driver") or "")
        elif claim:
            volume = ((a.reader.get("persistentvolumeclaims", a.namespace, claim) or {}).get("spec") or {}).get("volumeName") or ""
            pv = a.reader.get("persistentvolumes", "", volume) if volume else None
            drivers.append((((pv or {}).get("spec") or {}).get("csi") or {}).get("driver") or "")
    for name in filter(None, drivers):
        driver = a.reader.get("csidrivers.storage.k8s.io", "", name) or {}
        if any((t.get("audience") or "") == audience for t in (driver.get("spec") or {}).get("tokenRequests") or ()):
            return True
    return False


def _lease(node: str, a: Attributes) -> None:
    if a.namespace != LEASES:
        raise a.refuse(f"can only access leases in the {quote(LEASES)} system namespace")
    name = ((a.obj or {}).get("metadata") or {}).get("name") or "" if a.operation == CREATE else a.name
    if name != node:
        raise a.refuse("can only access node lease with the same name as the requesting node")


def _csi_node(node: str, a: Attributes) -> None:
    name = ((a.obj or {}).get("metadata") or {}).get("name") or "" if a.operation == CREATE else a.name
    if name != node:
        raise a.refuse("can only access CSINode with the same name as the requesting node")


def _slice(node: str, a: Attributes) -> None:
    if a.operation == CREATE and ((a.obj or {}).get("spec") or {}).get("nodeName", "") != node:
        raise a.refuse("can only create ResourceSlice with the same NodeName as the requesting node")
    if a.operation == DELETE:
        existing = a.old or a.reader.get("resourceslices.resource.k8s.io", "", a.name)
        if existing is not None and (existing.get("spec") or {}).get("nodeName", "") != node:
            raise a.refuse("can only delete ResourceSlice with the same NodeName as the requesting node")


def _csr(node: str, a: Attributes) -> None:
    """A node asks for certificates of its own name only."""
    if a.operation != CREATE or a.subresource:
        return
    spec = (a.obj or {}).get("spec") or {}
    if spec.get("signerName") not in SIGNERS:
        return
    from cryptography import x509
    from cryptography.x509.oid import NameOID
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(spec.get("request") or ""))
    except ValueError as e:
        raise a.refuse("unable to parse csr: PEM block type must be CERTIFICATE REQUEST") from e
    names = [str(n.value) for n in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    name = names[-1] if names else ""
    if name != a.user.name:
        raise a.refuse(f"can only create a node CSR with CN={a.user.name}")


_CHECKS: dict[tuple[str, str], Callable[[str, Attributes], None]] = {
    ("", "pods"): _pod,
    ("", "nodes"): _node,
    ("", "persistentvolumeclaims"): _claim,
    ("", "serviceaccounts"): _token,
    ("coordination.k8s.io", "leases"): _lease,
    ("storage.k8s.io", "csinodes"): _csi_node,
    ("resource.k8s.io", "resourceslices"): _slice,
    ("certificates.k8s.io", "certificatesigningrequests"): _csr,
}

PLUGIN = Plugin("NodeRestriction", (CREATE, UPDATE, DELETE), ("*",), mutate=mutate)
