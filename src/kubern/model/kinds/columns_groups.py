"""The Table form of the kinds of every group but core and those of columns_workloads.py; see columns_core.py for how TABLES is read.

Roles, ClusterRoles, CSIStorageCapacities and CustomResourceDefinitions stand in none: they have the default columns upstream too.
"""

from __future__ import annotations

from typing import Any

from kubern.model.kinds.columns_core import (
    Table,
    ingress_points,
    more,
    name_age_cells,
    text_column,
)
from kubern.model.kinds.columns_workloads import boolean, integer, selector_text, spec_of, status_of
from kubern.model.kinds.kind import Column
from kubern.model.object import Object
from kubern.model.object import name as name_of
from kubern.model.table import AGE, NAME, age, human_duration

# --- networking, discovery --------------------------------------------------------------------------------------------------------------

INGRESS = (
    NAME, text_column("Class", "The name of the IngressClass resource that should be used for additional configuration"),
    text_column("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
    text_column("Address", "Address is a list containing ingress points for the load-balancer"),
    text_column("Ports", "Ports of TLS configurations that open"), AGE)


def _hosts_text(rules: list[Object]) -> str:
    hosts: list[str] = []
    for rule in rules:
        if len(hosts) == 3:
            return f"{','.join(hosts)} + {len(rules) - 3} more..."
        if rule.get("host"):
            hosts.append(rule["host"])
    return ",".join(hosts) or "*"


def ingress_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    class_name = spec.get("ingressClassName")
    return [name_of(obj), "<none>" if class_name is None else class_name, _hosts_text(spec.get("rules") or []),
            ingress_points(obj.get("status")), "80, 443" if spec.get("tls") else "80", age(obj, now_s)]


INGRESS_CLASS = (
    NAME, text_column("Controller", "Controller that is responsible for handling this class"),
    text_column("Parameters", "A reference to a resource with additional parameters"), AGE)


def _default_name(obj: Object, *annotations: str) -> str:
    have = obj["metadata"].get("annotations") or {}
    return name_of(obj) + (" (default)" if any(have.get(a) == "true" for a in annotations) else "")


def ingress_class_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    p = spec.get("parameters")
    text = "<none>"
    if p is not None:
        group = p.get("apiGroup")
        text = f"{p.get('kind') or ''}{'' if group is None else '.' + group}/{p.get('name') or ''}"
    return [_default_name(obj, "ingressclass.kubernetes.io/is-default-class"), spec.get("controller") or "", text, age(obj, now_s)]


NETWORK_POLICY = (NAME, text_column("Pod-Selector", "@networking.v1.NetworkPolicySpec.podSelector"), AGE)


def network_policy_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), selector_text(spec_of(obj).get("podSelector") or {}), age(obj, now_s)]


SERVICE_CIDR = (NAME, text_column("CIDRs", "@networking.v1.ServiceCIDRSpec.cidrs"), AGE)


def service_cidr_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), ",".join(spec_of(obj).get("cidrs") or ()), age(obj, now_s)]


IP_ADDRESS = (NAME, text_column("ParentRef", "@networking.v1.IPAddressSpec.parentRef"))


def ip_address_cells(obj: Object, now_s: float) -> list[Any]:
    """One cell more than there are columns, as upstream."""
    parent, text = spec_of(obj).get("parentRef"), "<none>"
    if parent is not None:
        resource, group, namespace = (parent.get(k) or "" for k in ("resource", "group", "namespace"))
        whole = (f"{resource}.{group}" if group else resource).lower()
        text = "/".join((whole, namespace, parent.get("name") or "") if namespace else (whole, parent.get("name") or ""))
    return [name_of(obj), text, age(obj, now_s)]


ENDPOINT_SLICE = (
    NAME, text_column("AddressType", "@discovery.v1.EndpointSlice.addressType"), text_column("Ports", "@discovery.v1.EndpointSlice.ports"),
    text_column("Endpoints", "@discovery.v1.EndpointSlice.endpoints"), AGE)


def _slice_port(port: Object) -> str:
    if port.get("port") is not None:
        return str(port["port"])
    return "*" if port.get("name") is None else port["name"]


def endpoint_slice_cells(obj: Object, now_s: float) -> list[Any]:
    ports = [_slice_port(p) for p in obj.get("ports") or ()]
    addresses = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    return [name_of(obj), obj.get("addressType") or "", more(ports, len(ports), 3) or "<unset>",
            more(addresses, len(addresses), 3) or "<unset>", age(obj, now_s)]


# --- rbac -------------------------------------------------------------------------------------------------------------------------------

_ROLE_REF = "If the RoleRef cannot be resolved, the Authorizer must return an error."


def _binding_columns(kind: str, role_ref: str) -> tuple[Column, ...]:
    return (NAME, text_column("Role", f"{role_ref} {_ROLE_REF}"), AGE, text_column("Users", f"Users in the {kind}", 1),
            text_column("Groups", f"Groups in the {kind}", 1), text_column("ServiceAccounts", f"ServiceAccounts in the {kind}", 1))


ROLE_BINDING = _binding_columns(
    "roleBinding", "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace.")
CLUSTER_ROLE_BINDING = _binding_columns("clusterRoleBinding", "RoleRef can only reference a ClusterRole in the global namespace.")


def binding_cells(obj: Object, now_s: float) -> list[Any]:
    ref = obj.get("roleRef") or {}
    by_kind: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for s in obj.get("subjects") or ():
        if s.get("kind") in by_kind:
            name = s.get("name") or ""
            by_kind[s["kind"]].append(f"{s.get('namespace') or ''}/{name}" if s["kind"] == "ServiceAccount" else name)
    return [name_of(obj), f"{ref.get('kind') or ''}/{ref.get('name') or ''}", age(obj, now_s), *(", ".join(v) for v in by_kind.values())]


# --- storage ----------------------------------------------------------------------------------------------------------------------------

STORAGE_CLASS = (
    NAME, text_column("Provisioner", "@storage.v1.StorageClass.provisioner"),
    text_column("ReclaimPolicy", "@storage.v1.StorageClass.reclaimPolicy"),
    text_column("VolumeBindingMode", "@storage.v1.StorageClass.volumeBindingMode"),
    text_column("AllowVolumeExpansion", "@storage.v1.StorageClass.allowVolumeExpansion"), AGE)


def storage_class_cells(obj: Object, now_s: float) -> list[Any]:
    return [_default_name(obj, "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"),
            obj.get("provisioner") or "", obj.get("reclaimPolicy") or "Delete", obj.get("volumeBindingMode") or "Immediate",
            bool(obj.get("allowVolumeExpansion")), age(obj, now_s)]


VOLUME_ATTRIBUTES_CLASS = (NAME, text_column("DriverName", "@storage.v1.VolumeAttributesClass.driverName"), AGE)


def volume_attributes_class_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), obj.get("driverName") or "", age(obj, now_s)]


VOLUME_ATTACHMENT = (
    NAME, Column("Attacher", "string", "name", "@storage.v1.VolumeAttachmentSpec.attacher"),
    text_column("PV", "@storage.v1.VolumeAttachmentSource.persistentVolumeName"),
    text_column("Node", "@storage.v1.VolumeAttachmentSpec.nodeName"),
    boolean("Attached", "@storage.v1.VolumeAttachmentStatus.attached"), AGE)


def volume_attachment_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    return [name_of(obj), spec.get("attacher") or "", (spec.get("source") or {}).get("persistentVolumeName") or "",
            spec.get("nodeName") or "", bool(status_of(obj).get("attached")), age(obj, now_s)]


CSI_NODE = (NAME, integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node"), AGE)


def csi_node_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), len(spec_of(obj).get("drivers") or ()), age(obj, now_s)]


CSI_DRIVER = (
    NAME, boolean("AttachRequired", "@storage.v1.CSIDriverSpec.attachRequired"),
    boolean("PodInfoOnMount", "@storage.v1.CSIDriverSpec.podInfoOnMount"),
    boolean("StorageCapacity", "@storage.v1.CSIDriverSpec.storageCapacity"),
    text_column("TokenRequests", "@storage.v1.CSIDriverSpec.tokenRequests"),
    boolean("RequiresRepublish", "@storage.v1.CSIDriverSpec.requiresRepublish"),
    text_column("Modes", "@storage.v1.CSIDriverSpec.volumeLifecycleModes"), AGE)


def csi_driver_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    tokens = spec.get("tokenRequests")
    return [name_of(obj), spec.get("attachRequired") is not False, bool(spec.get("podInfoOnMount")), bool(spec.get("storageCapacity")),
            "<unset>" if tokens is None else ",".join(t.get("audience") or "" for t in tokens), bool(spec.get("requiresRepublish")),
            ",".join(spec.get("volumeLifecycleModes") or ()) or "<none>", age(obj, now_s)]


# --- admissionregistration, flowcontrol -------------------------------------------------------------------------------------------------

WEBHOOKS = (NAME, integer("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"), AGE)


def webhooks_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), len(obj.get("webhooks") or ()), age(obj, now_s)]


_PARAM_KIND = text_column("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy")
VALIDATING_POLICY = (
    NAME, integer("Validations", "Validations indicates the number of validation rules defined in this configuration"), _PARAM_KIND, AGE)
MUTATING_POLICY = (
    NAME, integer("Mutations", "Mutation indicates the number of mutations rules defined in this configuration"), _PARAM_KIND, AGE)


def policy_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    kind = spec.get("paramKind")
    return [name_of(obj), len(spec.get("validations") or spec.get("mutations") or ()),
            "<unset>" if kind is None else f"{kind.get('apiVersion') or ''}/{kind.get('kind') or ''}", age(obj, now_s)]


POLICY_BINDING = (
    NAME, text_column("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
    text_column("ParamRef", "ParamRef indicates the param resource which sets the configuration param"), AGE)


def _go_selector(selector: Object) -> str:
    """A LabelSelector as Go prints the message itself."""
    labels = selector.get("matchLabels") or {}
    terms = "".join(
        f"LabelSelectorRequirement{{Key:{e.get('key') or ''},Operator:{e.get('operator') or ''},"
        f"Values:[{' '.join(e.get('values') or ())}],}},"
        for e in selector.get("matchExpressions") or ())
    pairs = "".join(f"{k}: {v}," for k, v in sorted(labels.items()))
    return f"&LabelSelector{{MatchLabels:map[string]string{{{pairs}}},MatchExpressions:[]LabelSelectorRequirement{{{terms}}},}}"


def policy_binding_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    ref, text = spec.get("paramRef"), "<unset>"
    if ref is not None:
        if ref.get("name"):
            text = f"{ref.get('namespace') or '*'}/{ref['name']}"
        elif ref.get("selector") is not None:
            text = _go_selector(ref["selector"])
    return [name_of(obj), spec.get("policyName") or "", text, age(obj, now_s)]


FLOW_SCHEMA = (
    NAME, text_column("PriorityLevel", "@flowcontrol.v1.PriorityLevelConfigurationReference.name"),
    text_column("MatchingPrecedence", "@flowcontrol.v1.FlowSchemaSpec.matchingPrecedence"),
    text_column("DistinguisherMethod", "@flowcontrol.v1.FlowSchemaSpec.distinguisherMethod"), AGE,
    text_column("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"))


def flow_schema_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    method = spec.get("distinguisherMethod")
    missing = next((c.get("status") or "" for c in status_of(obj).get("conditions") or () if c.get("type") == "Dangling"), "?")
    return [name_of(obj), (spec.get("priorityLevelConfiguration") or {}).get("name") or "", spec.get("matchingPrecedence") or 0,
            "<none>" if method is None else method.get("type") or "", age(obj, now_s), missing]


PRIORITY_LEVEL = (
    NAME, text_column("Type", "@flowcontrol.v1.PriorityLevelConfigurationSpec.type"),
    text_column("NominalConcurrencyShares", "@flowcontrol.v1.LimitedPriorityLevelConfiguration.nominalConcurrencyShares"),
    text_column("Queues", "@flowcontrol.v1.QueuingConfiguration.queues"),
    text_column("HandSize", "@flowcontrol.v1.QueuingConfiguration.handSize"),
    text_column("QueueLengthLimit", "@flowcontrol.v1.QueuingConfiguration.queueLengthLimit"), AGE)


def priority_level_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    limited = spec.get("limited")
    queuing = ((limited or {}).get("limitResponse") or {}).get("queuing")
    queues = ["<none>"] * 3 if queuing is None else [queuing.get(k) or 0 for k in ("queues", "handSize", "queueLengthLimit")]
    return [name_of(obj), spec.get("type") or "", "<none>" if limited is None else limited.get("nominalConcurrencyShares") or 0, *queues,
            age(obj, now_s)]


# --- the rest ---------------------------------------------------------------------------------------------------------------------------

# the descriptions are those of v1beta1, which upstream's printers name
CERTIFICATE_SIGNING_REQUEST = (
    NAME, AGE,
    text_column("SignerName", (
        "Requested signer for the request. It is a qualified name in the form: `scope-hostname.io/name`. If empty, it will be defaulted:\n"
        " 1. If it's a kubelet client certificate, it is assigned\n    \"kubernetes.io/kube-apiserver-client-kubelet\".\n"
        " 2. If it's a kubelet serving certificate, it is assigned\n    \"kubernetes.io/kubelet-serving\".\n"
        " 3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\nDistribution of trust for signers happens out of band. "
        "You can select on this field using `spec.signerName`.")),
    text_column("Requestor", "Base64-encoded PKCS#10 CSR data"),
    text_column("RequestedDuration", "@certificates.v1.CertificateSigningRequestSpec.expirationSeconds"),
    text_column("Condition", "Conditions applied to the request, such as approval or denial."))


def certificate_signing_request_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = spec_of(obj), status_of(obj)
    types = {c.get("type") for c in status.get("conditions") or ()}
    text = "Denied" if "Denied" in types else "Approved" if "Approved" in types else "Pending"
    text += (",Failed" if "Failed" in types else "") + (",Issued" if status.get("certificate") else "")
    lifetime = spec.get("expirationSeconds")
    return [name_of(obj), age(obj, now_s), spec.get("signerName") or "<none>", spec.get("username") or "",
            "<none>" if lifetime is None else human_duration(lifetime), text]


LEASE = (NAME, text_column("Holder", "@coordination.v1.LeaseSpec.holderIdentity"), AGE)


def lease_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), spec_of(obj).get("holderIdentity") or "", age(obj, now_s)]


PRIORITY_CLASS = (
    NAME, integer("Value", "@scheduling.v1.PriorityClass.value"), boolean("Global-Default", "@scheduling.v1.PriorityClass.globalDefault"),
    AGE, text_column("PreemptionPolicy", "@scheduling.v1.PriorityClass.preemptionPolicy"))


def priority_class_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), obj.get("value") or 0, bool(obj.get("globalDefault")), age(obj, now_s), obj.get("preemptionPolicy") or ""]


RUNTIME_CLASS = (NAME, text_column("Handler", ""), AGE)


def runtime_class_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), obj.get("handler") or "", age(obj, now_s)]


RESOURCE_CLAIM = (NAME, text_column("State", "A summary of the current state (allocated, pending, reserved, etc.)."), AGE)


def resource_claim_cells(obj: Object, now_s: float) -> list[Any]:
    status = status_of(obj)
    deleted = bool(obj["metadata"].get("deletionTimestamp"))
    states = ["deleted"] if deleted else []
    if status.get("allocation") is not None:
        states += ["allocated", "reserved"] if status.get("reservedFor") else ["allocated"]
    elif not deleted:
        states.append("pending")
    return [name_of(obj), ",".join(states), age(obj, now_s)]


RESOURCE_SLICE = (
    NAME, text_column("Node", "@resource.v1.ResourceSliceSpec.nodeName"), text_column("Driver", "@resource.v1.ResourceSliceSpec.driver"),
    text_column("Pool", "@resource.v1.ResourcePool.name"), AGE)


def resource_slice_cells(obj: Object, now_s: float) -> list[Any]:
    spec = spec_of(obj)
    return [name_of(obj), spec.get("nodeName") or "", spec.get("driver") or "", (spec.get("pool") or {}).get("name") or "", age(obj, now_s)]


API_SERVICE = (
    NAME, text_column("Service", "The reference to the service that hosts this API endpoint."),
    text_column("Available", "Whether this service is available."), AGE)


def api_service_cells(obj: Object, now_s: float) -> list[Any]:
    service = spec_of(obj).get("service")
    available = next((c for c in status_of(obj).get("conditions") or () if c.get("type") == "Available"), None)
    text = "Unknown"
    if available is not None:
        text = available.get("status") or ""
        if text != "True" and available.get("reason"):
            text = f"{text} ({available['reason']})"
    where = "Local" if service is None else f"{service.get('namespace') or ''}/{service.get('name') or ''}"
    return [name_of(obj), where, text, age(obj, now_s)]


TABLES: dict[tuple[str, str], Table] = {
    ("networking.k8s.io", "Ingress"): (INGRESS, ingress_cells),
    ("networking.k8s.io", "IngressClass"): (INGRESS_CLASS, ingress_class_cells),
    ("networking.k8s.io", "NetworkPolicy"): (NETWORK_POLICY, network_policy_cells),
    ("networking.k8s.io", "ServiceCIDR"): (SERVICE_CIDR, service_cidr_cells),
    ("networking.k8s.io", "IPAddress"): (IP_ADDRESS, ip_address_cells),
    ("discovery.k8s.io", "EndpointSlice"): (ENDPOINT_SLICE, endpoint_slice_cells),
    ("rbac.authorization.k8s.io", "RoleBinding"): (ROLE_BINDING, binding_cells),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): (CLUSTER_ROLE_BINDING, binding_cells),
    ("storage.k8s.io", "StorageClass"): (STORAGE_CLASS, storage_class_cells),
    ("storage.k8s.io", "VolumeAttributesClass"): (VOLUME_ATTRIBUTES_CLASS, volume_attributes_class_cells),
    ("storage.k8s.io", "VolumeAttachment"): (VOLUME_ATTACHMENT, volume_attachment_cells),
    ("storage.k8s.io", "CSINode"): (CSI_NODE, csi_node_cells),
    ("storage.k8s.io", "CSIDriver"): (CSI_DRIVER, csi_driver_cells),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): (WEBHOOKS, webhooks_cells),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): (WEBHOOKS, webhooks_cells),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"): (VALIDATING_POLICY, policy_cells),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"): (MUTATING_POLICY, policy_cells),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"): (POLICY_BINDING, policy_binding_cells),
    ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"): (POLICY_BINDING, policy_binding_cells),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema"): (FLOW_SCHEMA, flow_schema_cells),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration"): (PRIORITY_LEVEL, priority_level_cells),
    ("certificates.k8s.io", "CertificateSigningRequest"): (CERTIFICATE_SIGNING_REQUEST, certificate_signing_request_cells),
    ("coordination.k8s.io", "Lease"): (LEASE, lease_cells),
    ("scheduling.k8s.io", "PriorityClass"): (PRIORITY_CLASS, priority_class_cells),
    ("node.k8s.io", "RuntimeClass"): (RUNTIME_CLASS, runtime_class_cells),
    ("resource.k8s.io", "DeviceClass"): ((NAME, AGE), name_age_cells),
    ("resource.k8s.io", "ResourceClaim"): (RESOURCE_CLAIM, resource_claim_cells),
    ("resource.k8s.io", "ResourceClaimTemplate"): ((NAME, AGE), name_age_cells),
    ("resource.k8s.io", "ResourceSlice"): (RESOURCE_SLICE, resource_slice_cells),
    ("apiregistration.k8s.io", "APIService"): (API_SERVICE, api_service_cells),
}
