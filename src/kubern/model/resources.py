"""RESOURCES: every built-in row that a default 1.36 cluster serves, in the order discovery shows them.

Not here: rows that CRDs make (api/crd.py), and versions that stand behind a feature gate or runtime-config (all alpha and beta ones).
Field selectors follow each group's conversion functions (pkg/apis/*/v1/conversion.go): a kind without an entry in FIELDS knows
metadata.name and metadata.namespace alone.
"""

from __future__ import annotations

from typing import Any

from kubern.model.object import Object
from kubern.model.resource import ALL_VERBS, Resource, Subresource

_GPU = ("get", "patch", "update")
_PROXY = ("create", "delete", "get", "patch", "update")
_CREATE = ("create",)

STATUS = Subresource("status", _GPU)
SCALE = Subresource("scale", _GPU, "Scale", "autoscaling", "v1")

# (group, kind) -> selectable labels with the path each reads in the stored object
FIELDS: dict[tuple[str, str], dict[str, str]] = {
    ("", "Pod"): {"metadata.name": "metadata.name", "metadata.namespace": "metadata.namespace", **{p: p for p in (
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase",
        "status.podIP", "status.podIPs", "status.nominatedNodeName")}, "spec.host": "spec.nodeName"},
    ("", "Node"): {p: p for p in ("metadata.name", "spec.unschedulable")},
    ("", "ReplicationController"): {p: p for p in ("metadata.name", "metadata.namespace", "status.replicas")},
    ("", "Event"): {p: p for p in (
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion",
        "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type",
        "metadata.namespace", "metadata.name")},
    ("", "Namespace"): {p: p for p in ("status.phase", "metadata.name")},
    ("", "Secret"): {p: p for p in ("type", "metadata.namespace", "metadata.name")},
    ("", "Service"): {p: p for p in ("metadata.namespace", "metadata.name", "spec.clusterIP", "spec.type")},
    ("events.k8s.io", "Event"): {
        "reason": "reason",
        **{f"regarding.{p}": f"involvedObject.{p}" for p in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")},
        "reportingController": "reportingComponent", "type": "type", "metadata.namespace": "metadata.namespace",
        "metadata.name": "metadata.name"},
    ("batch", "Job"): {"metadata.name": "metadata.name", "metadata.namespace": "metadata.namespace", "status.successful": "status.succeeded"},
    ("certificates.k8s.io", "CertificateSigningRequest"): {p: p for p in ("metadata.name", "spec.signerName")},
    ("resource.k8s.io", "ResourceSlice"): {p: p for p in ("metadata.name", "spec.nodeName", "spec.driver")},
}
_DEFAULT_FIELDS = {"metadata.name": "metadata.name", "metadata.namespace": "metadata.namespace"}
_ZERO = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.replicas": "0", "status.succeeded": "0"}


def field_path(resource: Resource, label: str) -> str:
    """The path in the stored object that a field-selector label reads; ValueError with upstream's words for one that is not supported."""
    if resource.custom:
        if label in _DEFAULT_FIELDS or label in resource.fields:
            return label
        raise ValueError(f"field label not supported: {label}")
    path = FIELDS.get((resource.group, resource.kind), _DEFAULT_FIELDS).get(label)
    if path is not None:
        return path
    if (resource.group, resource.kind) not in FIELDS:
        raise ValueError(f'"{label}" is not a known field selector: only "metadata.name", "metadata.namespace"')
    if resource.kind == "Job":
        raise ValueError(f'field label "{label}" not supported for Job')
    if resource.kind == "ResourceSlice":
        raise ValueError(f"field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: {label}")
    raise ValueError(f"field label not supported: {label}")


def field_value(obj: Object, path: str) -> str:
    """What a stored object holds at a path of field_path, as the string a selector compares with."""
    if path == "source":  # events: the component, or the newer reportingController
        return (obj.get("source") or {}).get("component") or obj.get("reportingComponent") or ""
    if path == "status.podIPs":  # accepted, but never part of the field set
        return ""
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return _ZERO.get(path, "")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _group(group: str, version: str, *rows: Resource) -> tuple[Resource, ...]:
    """Rows with their group, version and field labels filled in."""
    out = []
    for r in rows:
        labels = FIELDS.get((group, r.kind), {})
        out.append(Resource(
            group, version, r.plural, r.kind, r.singular, r.namespaced, r.verbs, r.short_names, r.categories, r.subresources,
            r.storage_version, r.storage_group, r.hash_version, tuple(p for p in labels if p not in _DEFAULT_FIELDS),
            list_kind=r.kind + "List"))
    return tuple(out)


def _row(plural: str, kind: str, short: str = "", *subs: Subresource, cluster: bool = False, verbs: tuple[str, ...] = ALL_VERBS,
         categories: tuple[str, ...] = (), storage_version: str = "", storage_group: str | None = None, hash_version: str = "") -> Resource:
    return Resource("", "", plural, kind, kind.lower(), not cluster, verbs, tuple(short.split()), categories, subs,
                    storage_version, storage_group, hash_version)


_ALL = ("all",)
_EXTENSIONS = ("api-extensions",)

RESOURCES: tuple[Resource, ...] = (
    *_group(
        "", "v1",
        _row("bindings", "Binding", verbs=_CREATE),
        _row("componentstatuses", "ComponentStatus", "cs", cluster=True, verbs=("get", "list")),
        _row("configmaps", "ConfigMap", "cm"),
        _row("endpoints", "Endpoints", "ep"),
        _row("events", "Event", "ev"),
        _row("limitranges", "LimitRange", "limits"),
        _row("namespaces", "Namespace", "ns", Subresource("finalize", ("update",)), STATUS, cluster=True,
             verbs=("create", "delete", "get", "list", "patch", "update", "watch")),
        _row("nodes", "Node", "no", Subresource("proxy", _PROXY, "NodeProxyOptions"), STATUS, cluster=True),
        _row("persistentvolumeclaims", "PersistentVolumeClaim", "pvc", STATUS),
        _row("persistentvolumes", "PersistentVolume", "pv", STATUS, cluster=True),
        _row("pods", "Pod", "po",
             Subresource("attach", ("create", "get"), "PodAttachOptions"),
             Subresource("binding", _CREATE, "Binding"),
             Subresource("ephemeralcontainers", _GPU),
             Subresource("eviction", _CREATE, "Eviction", "policy", "v1"),
             Subresource("exec", ("create", "get"), "PodExecOptions"),
             Subresource("log", ("get",)),
             Subresource("portforward", ("create", "get"), "PodPortForwardOptions"),
             Subresource("proxy", _PROXY, "PodProxyOptions"),
             Subresource("resize", _GPU),
             STATUS, categories=_ALL),
        _row("podtemplates", "PodTemplate"),
        _row("replicationcontrollers", "ReplicationController", "rc", SCALE, STATUS, categories=_ALL),
        _row("resourcequotas", "ResourceQuota", "quota", STATUS),
        _row("secrets", "Secret"),
        _row("serviceaccounts", "ServiceAccount", "sa", Subresource("token", _CREATE, "TokenRequest", "authentication.k8s.io", "v1")),
        _row("services", "Service", "svc", Subresource("proxy", _PROXY, "ServiceProxyOptions"), STATUS, categories=_ALL),
    ),
    *_group(
        "apiregistration.k8s.io", "v1",
        _row("apiservices", "APIService", "", STATUS, cluster=True, categories=_EXTENSIONS),
    ),
    *_group(
        "apps", "v1",
        _row("controllerrevisions", "ControllerRevision"),
        _row("daemonsets", "DaemonSet", "ds", STATUS, categories=_ALL),
        _row("deployments", "Deployment", "deploy", SCALE, STATUS, categories=_ALL),
        _row("replicasets", "ReplicaSet", "rs", SCALE, STATUS, categories=_ALL),
        _row("statefulsets", "StatefulSet", "sts", SCALE, STATUS, categories=_ALL),
    ),
    *_group(
        "events.k8s.io", "v1",
        _row("events", "Event", "ev", storage_group=""),
    ),
    *_group(
        "authentication.k8s.io", "v1",
        _row("selfsubjectreviews", "SelfSubjectReview", cluster=True, verbs=_CREATE),
        _row("tokenreviews", "TokenReview", cluster=True, verbs=_CREATE),
    ),
    *_group(
        "authorization.k8s.io", "v1",
        _row("localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=_CREATE),
        _row("selfsubjectaccessreviews", "SelfSubjectAccessReview", cluster=True, verbs=_CREATE),
        _row("selfsubjectrulesreviews", "SelfSubjectRulesReview", cluster=True, verbs=_CREATE),
        _row("subjectaccessreviews", "SubjectAccessReview", cluster=True, verbs=_CREATE),
    ),
    *_group(
        "autoscaling", "v2",
        _row("horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa", STATUS, categories=_ALL),
    ),
    *_group(
        "autoscaling", "v1",
        _row("horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa", STATUS, categories=_ALL, storage_version="v2"),
    ),
    *_group(
        "batch", "v1",
        _row("cronjobs", "CronJob", "cj", STATUS, categories=_ALL),
        _row("jobs", "Job", "", STATUS, categories=_ALL),
    ),
    *_group(
        "certificates.k8s.io", "v1",
        _row("certificatesigningrequests", "CertificateSigningRequest", "csr", Subresource("approval", _GPU), STATUS, cluster=True),
    ),
    *_group(
        "networking.k8s.io", "v1",
        _row("ingressclasses", "IngressClass", cluster=True),
        _row("ingresses", "Ingress", "ing", STATUS),
        _row("ipaddresses", "IPAddress", "ip", cluster=True),
        _row("networkpolicies", "NetworkPolicy", "netpol"),
        _row("servicecidrs", "ServiceCIDR", "", STATUS, cluster=True),
    ),
    *_group(
        "policy", "v1",
        _row("poddisruptionbudgets", "PodDisruptionBudget", "pdb", STATUS),
    ),
    *_group(
        "rbac.authorization.k8s.io", "v1",
        _row("clusterrolebindings", "ClusterRoleBinding", cluster=True),
        _row("clusterroles", "ClusterRole", cluster=True),
        _row("rolebindings", "RoleBinding"),
        _row("roles", "Role"),
    ),
    *_group(
        "storage.k8s.io", "v1",
        _row("csidrivers", "CSIDriver", cluster=True),
        _row("csinodes", "CSINode", cluster=True),
        _row("csistoragecapacities", "CSIStorageCapacity"),
        _row("storageclasses", "StorageClass", "sc", cluster=True),
        _row("volumeattachments", "VolumeAttachment", "", STATUS, cluster=True),
        _row("volumeattributesclasses", "VolumeAttributesClass", "vac", cluster=True),
    ),
    *_group(
        "admissionregistration.k8s.io", "v1",
        _row("mutatingadmissionpolicies", "MutatingAdmissionPolicy", cluster=True, categories=_EXTENSIONS, hash_version="v1beta1"),
        _row("mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding", cluster=True, categories=_EXTENSIONS,
             hash_version="v1beta1"),
        _row("mutatingwebhookconfigurations", "MutatingWebhookConfiguration", cluster=True, categories=_EXTENSIONS),
        _row("validatingadmissionpolicies", "ValidatingAdmissionPolicy", "", STATUS, cluster=True, categories=_EXTENSIONS),
        _row("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", cluster=True, categories=_EXTENSIONS),
        _row("validatingwebhookconfigurations", "ValidatingWebhookConfiguration", cluster=True, categories=_EXTENSIONS),
    ),
    *_group(
        "apiextensions.k8s.io", "v1",
        _row("customresourcedefinitions", "CustomResourceDefinition", "crd crds", STATUS, cluster=True, categories=_EXTENSIONS,
             hash_version="v1beta1"),
    ),
    *_group(
        "scheduling.k8s.io", "v1",
        _row("priorityclasses", "PriorityClass", "pc", cluster=True),
    ),
    *_group(
        "coordination.k8s.io", "v1",
        _row("leases", "Lease"),
    ),
    *_group(
        "node.k8s.io", "v1",
        _row("runtimeclasses", "RuntimeClass", cluster=True),
    ),
    *_group(
        "discovery.k8s.io", "v1",
        _row("endpointslices", "EndpointSlice"),
    ),
    *_group(
        "resource.k8s.io", "v1",
        _row("deviceclasses", "DeviceClass", cluster=True),
        _row("resourceclaims", "ResourceClaim", "", STATUS),
        _row("resourceclaimtemplates", "ResourceClaimTemplate"),
        _row("resourceslices", "ResourceSlice", cluster=True),
    ),
    *_group(
        "flowcontrol.apiserver.k8s.io", "v1",
        _row("flowschemas", "FlowSchema", "", STATUS, cluster=True),
        _row("prioritylevelconfigurations", "PriorityLevelConfiguration", "", STATUS, cluster=True),
    ),
)

by_path: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in RESOURCES}
by_kind: dict[tuple[str, str], Resource] = {(r.api_version, r.kind): r for r in RESOURCES}
