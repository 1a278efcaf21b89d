"""The Table form of the kinds of every group but core; see columns_core.py for how TABLES is read.

Roles, ClusterRoles, CSIStorageCapacities and CustomResourceDefinitions stand in none: they have the default columns upstream too.
"""

from __future__ import annotations

from typing import Any

from kubern.model.kinds.columns_core import (
    CONTAINERS,
    IMAGES,
    Table,
    _name,
    containers_cells,
    ingress_points,
    labels_text,
    more,
    name_age_cells,
    quantity_text,
    text_column,
)
from kubern.model.kinds.kind import Column
from kubern.model.object import Object, controller_of, group_version
from kubern.model.selector import from_label_selector
from kubern.model.status import StatusError
from kubern.model.table import AGE, NAME, age, human_duration, seconds_of, since


def selector_text(selector: Object | None, empty: str = "<none>", broken: str = "<error>") -> str:
    try:
        return str(from_label_selector(selector)) or empty
    except (StatusError, ValueError):
        return broken


def _spec(obj: Object) -> Object:
    return obj.get("spec") or {}


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _integer(name: str, description: str) -> Column:
    return Column(name, "integer", "", description)


def _boolean(name: str, description: str) -> Column:
    return Column(name, "boolean", "", description)


def _bool_text(value: bool | None) -> str:
    return "<unset>" if value is None else "True" if value else "False"


# --- apps, batch ------------------------------------------------------------------------------------------------------------------------

DEPLOYMENT = (
    NAME, text_column("Ready", "Number of the pod with ready state"),
    text_column("Up-to-date", "@apps.v1.DeploymentStatus.updatedReplicas"),
    text_column("Available", "@apps.v1.DeploymentStatus.availableReplicas"),
    AGE, CONTAINERS, IMAGES, text_column("Selector", "@apps.v1.DeploymentSpec.selector", 1))


def deployment_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    return [_name(obj), f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}", status.get("updatedReplicas") or 0,
            status.get("availableReplicas") or 0, age(obj, now_s), *containers_cells(spec.get("template")),
            selector_text(spec.get("selector"), "", "<invalid>")]


REPLICA_SET = (
    NAME, _integer("Desired", "@apps.v1.ReplicaSetSpec.replicas"), _integer("Current", "@apps.v1.ReplicaSetStatus.replicas"),
    _integer("Ready", "@apps.v1.ReplicaSetStatus.readyReplicas"), AGE, CONTAINERS, IMAGES,
    text_column("Selector", "@apps.v1.ReplicaSetSpec.selector", 1))


def replica_set_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    return [_name(obj), spec.get("replicas") or 0, status.get("replicas") or 0, status.get("readyReplicas") or 0, age(obj, now_s),
            *containers_cells(spec.get("template")), selector_text(spec.get("selector"))]


STATEFUL_SET = (NAME, text_column("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES)


def stateful_set_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    return [_name(obj), f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}", age(obj, now_s),
            *containers_cells(spec.get("template"))]


DAEMON_SET = (
    NAME, _integer("Desired", "@apps.v1.DaemonSetStatus.desiredNumberScheduled"),
    _integer("Current", "@apps.v1.DaemonSetStatus.currentNumberScheduled"), _integer("Ready", "@apps.v1.DaemonSetStatus.numberReady"),
    _integer("Up-to-date", "@apps.v1.DaemonSetStatus.updatedNumberScheduled"),
    _integer("Available", "@apps.v1.DaemonSetStatus.numberAvailable"), text_column("Node Selector", "@core.v1.PodSpec.nodeSelector"),
    AGE, CONTAINERS, IMAGES, text_column("Selector", "@apps.v1.DaemonSetSpec.selector", 1))


def daemon_set_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    template = spec.get("template") or {}
    counts = [status.get(k) or 0 for k in ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled",
                                           "numberAvailable")]
    return [_name(obj), *counts, labels_text((template.get("spec") or {}).get("nodeSelector")), age(obj, now_s),
            *containers_cells(template), selector_text(spec.get("selector"))]


CONTROLLER_REVISION = (
    NAME, text_column("Controller", "Controller of the object"), text_column("Revision", "@apps.v1.ControllerRevision.revision"), AGE)


def controller_revision_cells(obj: Object, now_s: float) -> list[Any]:
    owner, text = controller_of(obj), "<none>"
    if owner:
        group, _ = group_version(owner.get("apiVersion") or "")
        kind = (owner.get("kind") or "").lower()
        text = f"{kind}.{group}/{owner.get('name')}" if group else f"{kind}/{owner.get('name')}"
    return [_name(obj), text, obj.get("revision") or 0, age(obj, now_s)]


JOB = (
    NAME, text_column("Status", "Status of the job."), text_column("Completions", "@batch.v1.JobStatus.succeeded"),
    text_column("Duration", "Time required to complete the job."), AGE, CONTAINERS, IMAGES,
    text_column("Selector", "@batch.v1.JobSpec.selector", 1))


def _job_status(obj: Object) -> str:
    first: dict[str, str] = {}
    for c in _status(obj).get("conditions") or ():
        first.setdefault(c.get("type"), c.get("status"))
    for type_ in ("Complete", "Failed"):
        if first.get(type_) == "True":
            return type_
    if obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return next((t for t in ("Suspended", "FailureTarget", "SuccessCriteriaMet") if first.get(t) == "True"), "Running")


def job_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    done, parallelism = status.get("succeeded") or 0, spec.get("parallelism") or 0
    if spec.get("completions") is not None:
        completions = f"{done}/{spec['completions']}"
    else:
        completions = f"{done}/1 of {parallelism}" if parallelism > 1 else f"{done}/1"
    start = seconds_of(status["startTime"]) if status.get("startTime") else None
    end = seconds_of(status["completionTime"]) if status.get("completionTime") else None
    duration = "" if start is None else human_duration((now_s if end is None else end) - start)
    return [_name(obj), _job_status(obj), completions, duration, age(obj, now_s), *containers_cells(spec.get("template")),
            selector_text(spec.get("selector"))]


CRON_JOB = (
    NAME, text_column("Schedule", "@batch.v1.CronJobSpec.schedule"), text_column("Timezone", "@batch.v1.CronJobSpec.timeZone"),
    _boolean("Suspend", "@batch.v1.CronJobSpec.suspend"), _integer("Active", "@batch.v1.CronJobStatus.active"),
    text_column("Last Schedule", "@batch.v1.CronJobStatus.lastScheduleTime"), AGE, CONTAINERS, IMAGES,
    text_column("Selector", "@batch.v1.JobSpec.selector", 1))


def cron_job_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    job = (spec.get("jobTemplate") or {}).get("spec") or {}
    last = status.get("lastScheduleTime")
    zone = spec.get("timeZone")
    return [_name(obj), spec.get("schedule") or "", "<none>" if zone is None else zone, _bool_text(spec.get("suspend")),
            len(status.get("active") or ()), since(last, now_s) if last else "<none>", age(obj, now_s),
            *containers_cells(job.get("template")), selector_text(job.get("selector"))]


# --- policy, autoscaling ----------------------------------------------------------------------------------------------------------------

POD_DISRUPTION_BUDGET = (
    NAME, text_column("Min Available", "The minimum number of pods that must be available."),
    text_column("Max Unavailable", "The maximum number of pods that may be unavailable."),
    _integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."), AGE)


def pod_disruption_budget_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    low, high = spec.get("minAvailable"), spec.get("maxUnavailable")
    return [_name(obj), "N/A" if low is None else str(low), "N/A" if high is None else str(high),
            _status(obj).get("disruptionsAllowed") or 0, age(obj, now_s)]


HORIZONTAL_POD_AUTOSCALER = (
    NAME, text_column("Reference", "@autoscaling.v2.HorizontalPodAutoscalerSpec.scaleTargetRef"),
    text_column("Targets", "@autoscaling.v2.HorizontalPodAutoscalerSpec.metrics"),
    text_column("MinPods", "@autoscaling.v2.HorizontalPodAutoscalerSpec.minReplicas"),
    text_column("MaxPods", "@autoscaling.v2.HorizontalPodAutoscalerSpec.maxReplicas"),
    text_column("Replicas", "@autoscaling.v2.HorizontalPodAutoscalerStatus.currentReplicas"), AGE)
_SOURCES = {"External": "external", "Pods": "pods", "Object": "object", "Resource": "resource", "ContainerResource": "containerResource"}


def _metric_text(spec: Object, status: Object | None) -> str:
    type_ = spec.get("type") or ""
    field = _SOURCES.get(type_)
    if field is None:
        return "<unknown type>"
    source = spec.get(field) or {}
    target = source.get("target") or {}
    found = (status or {}).get(field)
    now = (found or {}).get("current") or {}
    average = target.get("averageValue")
    if type_ in ("External", "Object"):
        if average is not None:
            have = now.get("averageValue")
            return f"{'<unknown>' if have is None else quantity_text(have)}/{quantity_text(average)} (avg)"
        return f"{'<unknown>' if found is None else quantity_text(now.get('value'))}/{quantity_text(target.get('value'))}"
    if type_ == "Pods":
        return f"{'<unknown>' if found is None else quantity_text(now.get('averageValue'))}/{quantity_text(average)}"
    name = source.get("name") or ""
    if average is not None:
        return f"{name}: {'<unknown>' if found is None else quantity_text(now.get('averageValue'))}/{quantity_text(average)}"
    have, want = now.get("averageUtilization"), target.get("averageUtilization")
    return f"{name}: {'<unknown>' if have is None else f'{have}%'}/{'<auto>' if want is None else f'{want}%'}"


def horizontal_pod_autoscaler_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = _spec(obj), _status(obj)
    target = spec.get("scaleTargetRef") or {}
    statuses = status.get("currentMetrics") or ()
    texts = [_metric_text(m, statuses[i] if i < len(statuses) else None) for i, m in enumerate(spec.get("metrics") or ())]
    metrics = ", ".join(texts[:2]) + (f" + {len(texts) - 2} more..." if len(texts) > 2 else "") if texts else "<none>"
    low = spec.get("minReplicas")
    return [_name(obj), f"{target.get('kind') or ''}/{target.get('name') or ''}", metrics, "<unset>" if low is None else str(low),
            spec.get("maxReplicas") or 0, status.get("currentReplicas") or 0, age(obj, now_s)]


SCALE = (
    text_column("Name", "@meta.v1.ObjectMeta.name"), _integer("Desired", "@autoscaling.v1.ScaleSpec.replicas"),
    _integer("Available", "@autoscaling.v1.ScaleStatus.replicas"), AGE)


def scale_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), _spec(obj).get("replicas") or 0, _status(obj).get("replicas") or 0, age(obj, now_s)]


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
    spec = _spec(obj)
    class_name = spec.get("ingressClassName")
    return [_name(obj), "<none>" if class_name is None else class_name, _hosts_text(spec.get("rules") or []),
            ingress_points(obj.get("status")), "80, 443" if spec.get("tls") else "80", age(obj, now_s)]


INGRESS_CLASS = (
    NAME, text_column("Controller", "Controller that is responsible for handling this class"),
    text_column("Parameters", "A reference to a resource with additional parameters"), AGE)


def _default_name(obj: Object, *annotations: str) -> str:
    have = obj["metadata"].get("annotations") or {}
    return _name(obj) + (" (default)" if any(have.get(a) == "true" for a in annotations) else "")


def ingress_class_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    p = spec.get("parameters")
    text = "<none>"
    if p is not None:
        group = p.get("apiGroup")
        text = f"{p.get('kind') or ''}{'' if group is None else '.' + group}/{p.get('name') or ''}"
    return [_default_name(obj, "ingressclass.kubernetes.io/is-default-class"), spec.get("controller") or "", text, age(obj, now_s)]


NETWORK_POLICY = (NAME, text_column("Pod-Selector", "@networking.v1.NetworkPolicySpec.podSelector"), AGE)


def network_policy_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), selector_text(_spec(obj).get("podSelector") or {}), age(obj, now_s)]


SERVICE_CIDR = (NAME, text_column("CIDRs", "@networking.v1.ServiceCIDRSpec.cidrs"), AGE)


def service_cidr_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), ",".join(_spec(obj).get("cidrs") or ()), age(obj, now_s)]


IP_ADDRESS = (NAME, text_column("ParentRef", "@networking.v1.IPAddressSpec.parentRef"))


def ip_address_cells(obj: Object, now_s: float) -> list[Any]:
    """One cell more than there are columns, as upstream."""
    parent, text = _spec(obj).get("parentRef"), "<none>"
    if parent is not None:
        resource, group, namespace = (parent.get(k) or "" for k in ("resource", "group", "namespace"))
        whole = (f"{resource}.{group}" if group else resource).lower()
        text = "/".join((whole, namespace, parent.get("name") or "") if namespace else (whole, parent.get("name") or ""))
    return [_name(obj), text, age(obj, now_s)]


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
    return [_name(obj), obj.get("addressType") or "", more(ports, len(ports), 3) or "<unset>",
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
    return [_name(obj), f"{ref.get('kind') or ''}/{ref.get('name') or ''}", age(obj, now_s), *(", ".join(v) for v in by_kind.values())]


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
    return [_name(obj), obj.get("driverName") or "", age(obj, now_s)]


VOLUME_ATTACHMENT = (
    NAME, Column("Attacher", "string", "name", "@storage.v1.VolumeAttachmentSpec.attacher"),
    text_column("PV", "@storage.v1.VolumeAttachmentSource.persistentVolumeName"),
    text_column("Node", "@storage.v1.VolumeAttachmentSpec.nodeName"),
    _boolean("Attached", "@storage.v1.VolumeAttachmentStatus.attached"), AGE)


def volume_attachment_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    return [_name(obj), spec.get("attacher") or "", (spec.get("source") or {}).get("persistentVolumeName") or "",
            spec.get("nodeName") or "", bool(_status(obj).get("attached")), age(obj, now_s)]


CSI_NODE = (NAME, _integer("Drivers", "Drivers indicates the number of CSI drivers registered on the node"), AGE)


def csi_node_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), len(_spec(obj).get("drivers") or ()), age(obj, now_s)]


CSI_DRIVER = (
    NAME, _boolean("AttachRequired", "@storage.v1.CSIDriverSpec.attachRequired"),
    _boolean("PodInfoOnMount", "@storage.v1.CSIDriverSpec.podInfoOnMount"),
    _boolean("StorageCapacity", "@storage.v1.CSIDriverSpec.storageCapacity"),
    text_column("TokenRequests", "@storage.v1.CSIDriverSpec.tokenRequests"),
    _boolean("RequiresRepublish", "@storage.v1.CSIDriverSpec.requiresRepublish"),
    text_column("Modes", "@storage.v1.CSIDriverSpec.volumeLifecycleModes"), AGE)


def csi_driver_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    tokens = spec.get("tokenRequests")
    return [_name(obj), spec.get("attachRequired") is not False, bool(spec.get("podInfoOnMount")), bool(spec.get("storageCapacity")),
            "<unset>" if tokens is None else ",".join(t.get("audience") or "" for t in tokens), bool(spec.get("requiresRepublish")),
            ",".join(spec.get("volumeLifecycleModes") or ()) or "<none>", age(obj, now_s)]


# --- admissionregistration, flowcontrol -------------------------------------------------------------------------------------------------

WEBHOOKS = (NAME, _integer("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"), AGE)


def webhooks_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), len(obj.get("webhooks") or ()), age(obj, now_s)]


_PARAM_KIND = text_column("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy")
VALIDATING_POLICY = (
    NAME, _integer("Validations", "Validations indicates the number of validation rules defined in this configuration"), _PARAM_KIND, AGE)
MUTATING_POLICY = (
    NAME, _integer("Mutations", "Mutation indicates the number of mutations rules defined in this configuration"), _PARAM_KIND, AGE)


def policy_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    kind = spec.get("paramKind")
    return [_name(obj), len(spec.get("validations") or spec.get("mutations") or ()),
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
    spec = _spec(obj)
    ref, text = spec.get("paramRef"), "<unset>"
    if ref is not None:
        if ref.get("name"):
            text = f"{ref.get('namespace') or '*'}/{ref['name']}"
        elif ref.get("selector") is not None:
            text = _go_selector(ref["selector"])
    return [_name(obj), spec.get("policyName") or "", text, age(obj, now_s)]


FLOW_SCHEMA = (
    NAME, text_column("PriorityLevel", "@flowcontrol.v1.PriorityLevelConfigurationReference.name"),
    text_column("MatchingPrecedence", "@flowcontrol.v1.FlowSchemaSpec.matchingPrecedence"),
    text_column("DistinguisherMethod", "@flowcontrol.v1.FlowSchemaSpec.distinguisherMethod"), AGE,
    text_column("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"))


def flow_schema_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    method = spec.get("distinguisherMethod")
    missing = next((c.get("status") or "" for c in _status(obj).get("conditions") or () if c.get("type") == "Dangling"), "?")
    return [_name(obj), (spec.get("priorityLevelConfiguration") or {}).get("name") or "", spec.get("matchingPrecedence") or 0,
            "<none>" if method is None else method.get("type") or "", age(obj, now_s), missing]


PRIORITY_LEVEL = (
    NAME, text_column("Type", "@flowcontrol.v1.PriorityLevelConfigurationSpec.type"),
    text_column("NominalConcurrencyShares", "@flowcontrol.v1.LimitedPriorityLevelConfiguration.nominalConcurrencyShares"),
    text_column("Queues", "@flowcontrol.v1.QueuingConfiguration.queues"),
    text_column("HandSize", "@flowcontrol.v1.QueuingConfiguration.handSize"),
    text_column("QueueLengthLimit", "@flowcontrol.v1.QueuingConfiguration.queueLengthLimit"), AGE)


def priority_level_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    limited = spec.get("limited")
    queuing = ((limited or {}).get("limitResponse") or {}).get("queuing")
    queues = ["<none>"] * 3 if queuing is None else [queuing.get(k) or 0 for k in ("queues", "handSize", "queueLengthLimit")]
    return [_name(obj), spec.get("type") or "", "<none>" if limited is None else limited.get("nominalConcurrencyShares") or 0, *queues,
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
    spec, status = _spec(obj), _status(obj)
    types = {c.get("type") for c in status.get("conditions") or ()}
    text = "Denied" if "Denied" in types else "Approved" if "Approved" in types else "Pending"
    text += (",Failed" if "Failed" in types else "") + (",Issued" if status.get("certificate") else "")
    lifetime = spec.get("expirationSeconds")
    return [_name(obj), age(obj, now_s), spec.get("signerName") or "<none>", spec.get("username") or "",
            "<none>" if lifetime is None else human_duration(lifetime), text]


LEASE = (NAME, text_column("Holder", "@coordination.v1.LeaseSpec.holderIdentity"), AGE)


def lease_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), _spec(obj).get("holderIdentity") or "", age(obj, now_s)]


PRIORITY_CLASS = (
    NAME, _integer("Value", "@scheduling.v1.PriorityClass.value"), _boolean("Global-Default", "@scheduling.v1.PriorityClass.globalDefault"),
    AGE, text_column("PreemptionPolicy", "@scheduling.v1.PriorityClass.preemptionPolicy"))


def priority_class_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), obj.get("value") or 0, bool(obj.get("globalDefault")), age(obj, now_s), obj.get("preemptionPolicy") or ""]


RUNTIME_CLASS = (NAME, text_column("Handler", ""), AGE)


def runtime_class_cells(obj: Object, now_s: float) -> list[Any]:
    return [_name(obj), obj.get("handler") or "", age(obj, now_s)]


RESOURCE_CLAIM = (NAME, text_column("State", "A summary of the current state (allocated, pending, reserved, etc.)."), AGE)


def resource_claim_cells(obj: Object, now_s: float) -> list[Any]:
    status = _status(obj)
    deleted = bool(obj["metadata"].get("deletionTimestamp"))
    states = ["deleted"] if deleted else []
    if status.get("allocation") is not None:
        states += ["allocated", "reserved"] if status.get("reservedFor") else ["allocated"]
    elif not deleted:
        states.append("pending")
    return [_name(obj), ",".join(states), age(obj, now_s)]


RESOURCE_SLICE = (
    NAME, text_column("Node", "@resource.v1.ResourceSliceSpec.nodeName"), text_column("Driver", "@resource.v1.ResourceSliceSpec.driver"),
    text_column("Pool", "@resource.v1.ResourcePool.name"), AGE)


def resource_slice_cells(obj: Object, now_s: float) -> list[Any]:
    spec = _spec(obj)
    return [_name(obj), spec.get("nodeName") or "", spec.get("driver") or "", (spec.get("pool") or {}).get("name") or "", age(obj, now_s)]


API_SERVICE = (
    NAME, text_column("Service", "The reference to the service that hosts this API endpoint."),
    text_column("Available", "Whether this service is available."), AGE)


def api_service_cells(obj: Object, now_s: float) -> list[Any]:
    service = _spec(obj).get("service")
    available = next((c for c in _status(obj).get("conditions") or () if c.get("type") == "Available"), None)
    text = "Unknown"
    if available is not None:
        text = available.get("status") or ""
        if text != "True" and available.get("reason"):
            text = f"{text} ({available['reason']})"
    where = "Local" if service is None else f"{service.get('namespace') or ''}/{service.get('name') or ''}"
    return [_name(obj), where, text, age(obj, now_s)]


TABLES: dict[tuple[str, str], Table] = {
    ("apps", "Deployment"): (DEPLOYMENT, deployment_cells),
    ("apps", "ReplicaSet"): (REPLICA_SET, replica_set_cells),
    ("apps", "StatefulSet"): (STATEFUL_SET, stateful_set_cells),
    ("apps", "DaemonSet"): (DAEMON_SET, daemon_set_cells),
    ("apps", "ControllerRevision"): (CONTROLLER_REVISION, controller_revision_cells),
    ("batch", "Job"): (JOB, job_cells),
    ("batch", "CronJob"): (CRON_JOB, cron_job_cells),
    ("policy", "PodDisruptionBudget"): (POD_DISRUPTION_BUDGET, pod_disruption_budget_cells),
    ("autoscaling", "HorizontalPodAutoscaler"): (HORIZONTAL_POD_AUTOSCALER, horizontal_pod_autoscaler_cells),
    ("autoscaling", "Scale"): (SCALE, scale_cells),
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
