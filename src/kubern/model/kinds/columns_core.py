"""The Table form of the core kinds: columns as upstream's printers define them, cells as they put them into words.

TABLES: (group, kind) -> (columns, cells), attached to the kinds in __init__.py. "@core.v1.PodStatus.podIP" as a description stands for
that field's documentation. Wide cells (priority 1) are always made: the client hides them. Source: pkg/printers/internalversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kubern.model.kinds.kind import Column
from kubern.model.object import Object
from kubern.model.object import name as name_of
from kubern.model.quantity import canonical
from kubern.model.table import AGE, NAME, age, human_duration, seconds_of, since

Table = tuple[tuple[Column, ...], Callable[[Object, float], list[Any]]]

CONTAINERS = Column("Containers", "string", "", "Names of each container in the template.", 1)
IMAGES = Column("Images", "string", "", "Images referenced by each container in the template.", 1)


def text_column(name: str, description: str, priority: int = 0) -> Column:
    return Column(name, "string", "", description, priority)


def containers_cells(template: Object | None) -> list[str]:
    """Names and images of a template's containers, comma separated."""
    containers = ((template or {}).get("spec") or {}).get("containers") or ()
    return [",".join(c.get("name") or "" for c in containers), ",".join(c.get("image") or "" for c in containers)]


def labels_text(labels: dict[str, str] | None) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted((labels or {}).items())) or "<none>"


def more(items: list[str], count: int, shown_max: int) -> str:
    """The first items with how many were left out."""
    text = ",".join(items[:shown_max])
    return f"{text} + {count - shown_max} more..." if count > shown_max else text


# --- pods -------------------------------------------------------------------------------------------------------------------------------

POD = (
    NAME,
    text_column("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    text_column("Status", "The aggregate status of the containers in this pod."),
    text_column("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod "
                            "has restarted."),
    AGE,
    text_column("IP", "@core.v1.PodStatus.podIP", 1),
    text_column("Node", "@core.v1.PodSpec.nodeName", 1),
    text_column("Nominated Node", "@core.v1.PodStatus.nominatedNodeName", 1),
    text_column("Readiness Gates", "@core.v1.PodSpec.readinessGates", 1),
)


class _Restarts:
    """Counts restarts and remembers the latest termination."""

    def __init__(self) -> None:
        self.count, self.last_s = 0, 0.0

    def add(self, status: Object) -> None:
        self.count += status.get("restartCount") or 0
        ended = ((status.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
        if ended:
            self.last_s = max(self.last_s, seconds_of(ended) or 0.0)


def _ended_text(terminated: Object) -> str:
    if terminated.get("reason"):
        return terminated["reason"]
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode') or 0}"


def _has(conditions: Iterable[Object], type_: str) -> bool:
    return any(c.get("type") == type_ and c.get("status") == "True" for c in conditions)


def _init_cells(spec: Object, status: Object, restarts: _Restarts, sidecars: _Restarts) -> tuple[int, str]:
    """How many sidecars are ready, and the reason if initialization has not finished ("" if it has)."""
    containers = spec.get("initContainers") or ()
    restartable = {c.get("name") for c in containers if c.get("restartPolicy") == "Always"}
    ready = 0
    for i, s in enumerate(status.get("initContainerStatuses") or ()):
        restarts.add(s)
        is_sidecar = s.get("name") in restartable
        if is_sidecar:
            sidecars.add(s)
        state = s.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting") or {}
        if terminated is not None and not terminated.get("exitCode"):
            continue
        if is_sidecar and s.get("started"):
            ready += 1 if s.get("ready") else 0
            continue
        if terminated is not None:
            return ready, "Init:" + _ended_text(terminated)
        if waiting.get("reason") and waiting["reason"] != "PodInitializing":
            return ready, "Init:" + waiting["reason"]
        return ready, f"Init:{i}/{len(containers)}"
    return ready, ""


def _running_cells(status: Object, restarts: _Restarts, reason: str) -> tuple[int, str]:
    """How many containers are ready and the reason that they give together; `reason` where they give none."""
    ready, running, error = 0, False, ""
    for s in reversed(status.get("containerStatuses") or ()):
        restarts.add(s)
        state = s.get("state") or {}
        waiting, terminated = state.get("waiting") or {}, state.get("terminated")
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif terminated is not None:
            reason = _ended_text(terminated)
            if terminated.get("exitCode"):
                error = reason
        elif s.get("ready") and state.get("running") is not None:
            running = True
            ready += 1
    if reason == "Completed":
        if running and _has(status.get("conditions") or (), "Ready"):
            reason = "Running"
        elif error:
            reason = error
        elif running:
            reason = "NotReady"
    return ready, reason


def pod_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    conditions = status.get("conditions") or ()
    phase = status.get("phase") or ""
    reason = status.get("reason") or phase
    if any(c.get("type") == "PodScheduled" and c.get("reason") == "SchedulingGated" for c in conditions):
        reason = "SchedulingGated"
    total = len(spec.get("containers") or ()) + sum(1 for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")

    restarts, sidecars = _Restarts(), _Restarts()
    ready, waiting_for = _init_cells(spec, status, restarts, sidecars)
    if waiting_for:
        reason = waiting_for
    if not waiting_for or _has(conditions, "Initialized"):
        restarts = sidecars
        more_ready, reason = _running_cells(status, restarts, reason)
        ready += more_ready

    if obj["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            reason = "Unknown"
        elif phase not in ("Succeeded", "Failed"):
            reason = "Terminating"
    count = str(restarts.count)
    if restarts.count and restarts.last_s:
        count = f"{restarts.count} ({human_duration(now_s - restarts.last_s)} ago)"

    gates_text = "<none>"
    gates = spec.get("readinessGates")
    if gates:
        first: dict[str, str] = {}
        for c in conditions:
            first.setdefault(c.get("type"), c.get("status"))
        gates_text = f"{sum(1 for g in gates if first.get(g.get('conditionType')) == 'True')}/{len(gates)}"
    ips = status.get("podIPs") or ()
    return [name_of(obj), f"{ready}/{total}", reason, count, age(obj, now_s), (ips[0].get("ip") if ips else "") or "<none>",
            spec.get("nodeName") or "<none>", status.get("nominatedNodeName") or "<none>", gates_text]


# --- services, endpoints ----------------------------------------------------------------------------------------------------------------

SERVICE = (
    NAME,
    text_column("Type", "@core.v1.ServiceSpec.type"),
    text_column("Cluster-IP", "@core.v1.ServiceSpec.clusterIP"),
    text_column("External-IP", "@core.v1.ServiceSpec.externalIPs"),
    text_column("Port(s)", "@core.v1.ServiceSpec.ports"),
    AGE,
    text_column("Selector", "@core.v1.ServiceSpec.selector", 1),
)


def ingress_points(status: Object | None) -> str:
    """The addresses of a load balancer's status, sorted."""
    points = ((status or {}).get("loadBalancer") or {}).get("ingress") or ()
    return ",".join(sorted({p.get("ip") or p.get("hostname") for p in points} - {None, ""}))


def _external_ip(obj: Object, spec: Object) -> str:
    type_, ips = spec.get("type"), spec.get("externalIPs") or []
    if type_ in ("ClusterIP", "NodePort"):
        return ",".join(ips) or "<none>"
    if type_ == "LoadBalancer":
        balancer = ingress_points(obj.get("status"))
        return ",".join(([balancer] if balancer else []) + ips) or "<pending>"
    if type_ == "ExternalName":
        return spec.get("externalName") or ""
    return "<unknown>"


def _port_text(port: Object) -> str:
    number = f"{port.get('port')}:{port['nodePort']}" if port.get("nodePort") else str(port.get("port"))
    return f"{number}/{port.get('protocol') or ''}"


def service_cells(obj: Object, now_s: float) -> list[Any]:
    spec = obj.get("spec") or {}
    ips = spec.get("clusterIPs") or ()
    return [name_of(obj), spec.get("type") or "", ips[0] if ips else "<none>", _external_ip(obj, spec),
            ",".join(_port_text(p) for p in spec.get("ports") or ()) or "<none>", age(obj, now_s), labels_text(spec.get("selector"))]


ENDPOINTS = (NAME, text_column("Endpoints", "@core.v1.Endpoints.subsets"), AGE)


def endpoints_cells(obj: Object, now_s: float) -> list[Any]:
    items: list[str] = []
    for subset in obj.get("subsets") or ():
        addresses = [a.get("ip") or "" for a in subset.get("addresses") or ()]
        ports = subset.get("ports") or ()
        if not ports:
            items += addresses
        for port in ports:
            items += [f"[{ip}]:{port.get('port') or 0}" if ":" in ip else f"{ip}:{port.get('port') or 0}" for ip in addresses]
    return [name_of(obj), more(items, len(items), 3) if obj.get("subsets") else "<none>", age(obj, now_s)]


# --- nodes, namespaces ------------------------------------------------------------------------------------------------------------------

NODE = (
    NAME,
    text_column("Status", "The status of the node"),
    text_column("Roles", "The roles of the node"),
    AGE,
    text_column("Version", "@core.v1.NodeSystemInfo.kubeletVersion"),
    text_column("Internal-IP", "@core.v1.NodeStatus.addresses", 1),
    text_column("External-IP", "@core.v1.NodeStatus.addresses", 1),
    text_column("OS-Image", "@core.v1.NodeSystemInfo.osImage", 1),
    text_column("Kernel-Version", "@core.v1.NodeSystemInfo.kernelVersion", 1),
    text_column("Container-Runtime", "@core.v1.NodeSystemInfo.containerRuntimeVersion", 1),
)
_ROLE_PREFIX = "node-role.kubernetes.io/"


def _roles(labels: dict[str, str]) -> str:
    roles = {k[len(_ROLE_PREFIX):] if k.startswith(_ROLE_PREFIX) else v
             for k, v in labels.items() if k.startswith(_ROLE_PREFIX) or k == "kubernetes.io/role"}
    return ",".join(sorted(roles - {""})) or "<none>"


def _address(status: Object, type_: str) -> str:
    return next((a.get("address") or "" for a in status.get("addresses") or () if a.get("type") == type_), "<none>")


def node_cells(obj: Object, now_s: float) -> list[Any]:
    status = obj.get("status") or {}
    info = status.get("nodeInfo") or {}
    state = "Unknown"
    for c in status.get("conditions") or ():
        if c.get("type") == "Ready":
            state = "Ready" if c.get("status") == "True" else "NotReady"
    if (obj.get("spec") or {}).get("unschedulable"):
        state += ",SchedulingDisabled"
    kernel = info.get("kernelVersion") or "<unknown>"
    if info.get("architecture"):
        kernel += f" ({info['architecture']})"
    return [name_of(obj), state, _roles(obj["metadata"].get("labels") or {}), age(obj, now_s), info.get("kubeletVersion") or "",
            _address(status, "InternalIP"), _address(status, "ExternalIP"), info.get("osImage") or "<unknown>", kernel,
            info.get("containerRuntimeVersion") or "<unknown>"]


NAMESPACE = (NAME, text_column("Status", "The status of the namespace"), AGE)


def namespace_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), (obj.get("status") or {}).get("phase") or "", age(obj, now_s)]


# --- events -----------------------------------------------------------------------------------------------------------------------------

EVENT = (
    text_column("Last Seen", "@core.v1.Event.lastTimestamp"),
    text_column("Type", "@core.v1.Event.type"),
    text_column("Reason", "@core.v1.Event.reason"),
    text_column("Object", "@core.v1.Event.involvedObject"),
    text_column("Subobject", "@core.v1.ObjectReference.fieldPath", 1),
    text_column("Source", "@core.v1.Event.source", 1),
    text_column("Message", "@core.v1.Event.message"),
    text_column("First Seen", "@core.v1.Event.firstTimestamp", 1),
    text_column("Count", "@core.v1.Event.count", 1),
    Column("Name", "string", "name", "@meta.v1.ObjectMeta.name", 1),
)


def event_cells(obj: Object, now_s: float) -> list[Any]:
    """Reads both shapes: the core one and that of events.k8s.io."""
    involved = obj.get("involvedObject") or obj.get("regarding") or {}
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    first = since(obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp") or obj.get("eventTime"), now_s)
    last_time = obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp")
    last = since(last_time, now_s) if last_time else first
    count = obj.get("count") or obj.get("deprecatedCount") or 1
    series = obj.get("series")
    if series:
        last, count = since(series.get("lastObservedTime"), now_s), series.get("count") or 0
    kind = (involved.get("kind") or "").lower()
    component = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController") or ""
    instance = source.get("host") or obj.get("reportingInstance") or ""
    return [last, obj.get("type") or "", obj.get("reason") or "", f"{kind}/{involved['name']}" if involved.get("name") else kind,
            involved.get("fieldPath") or "", f"{component}, {instance}" if instance else component,
            (obj.get("message") or obj.get("note") or "").strip(), first, count, name_of(obj)]


# --- storage ----------------------------------------------------------------------------------------------------------------------------

PERSISTENT_VOLUME = (
    NAME,
    text_column("Capacity", "@core.v1.PersistentVolumeSpec.capacity"),
    text_column("Access Modes", "@core.v1.PersistentVolumeSpec.accessModes"),
    text_column("Reclaim Policy", "@core.v1.PersistentVolumeSpec.persistentVolumeReclaimPolicy"),
    text_column("Status", "@core.v1.PersistentVolumeStatus.phase"),
    text_column("Claim", "@core.v1.PersistentVolumeSpec.claimRef"),
    text_column("StorageClass", "StorageClass of the pv"),
    text_column("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
    text_column("Reason", "@core.v1.PersistentVolumeStatus.reason"),
    AGE,
    text_column("VolumeMode", "@core.v1.PersistentVolumeSpec.volumeMode", 1),
)
PERSISTENT_VOLUME_CLAIM = (
    NAME,
    text_column("Status", "@core.v1.PersistentVolumeClaimStatus.phase"),
    text_column("Volume", "@core.v1.PersistentVolumeClaimSpec.volumeName"),
    text_column("Capacity", "@core.v1.PersistentVolumeClaimStatus.capacity"),
    text_column("Access Modes", "@core.v1.PersistentVolumeClaimStatus.accessModes"),
    text_column("StorageClass", "StorageClass of the pvc"),
    text_column("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
    AGE,
    text_column("VolumeMode", "@core.v1.PersistentVolumeClaimSpec.volumeMode", 1),
)
_MODES = (("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP"))
_CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"


def _modes_text(modes: Iterable[str] | None) -> str:
    have = set(modes or ())
    return ",".join(short for mode, short in _MODES if mode in have)


def quantity_text(value: Any) -> str:
    """A quantity as its canonical string; an absent one is "0"."""
    return "0" if value is None else canonical(str(value))


def _class_of(obj: Object) -> str:
    annotations = obj["metadata"].get("annotations") or {}
    return annotations[_CLASS_ANNOTATION] if _CLASS_ANNOTATION in annotations else (obj.get("spec") or {}).get("storageClassName") or ""


def _phase(obj: Object) -> str:
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else (obj.get("status") or {}).get("phase") or ""


def _set(value: Any) -> Any:
    return "<unset>" if value is None else value


def persistent_volume_cells(obj: Object, now_s: float) -> list[Any]:
    spec = obj.get("spec") or {}
    claim = spec.get("claimRef")
    return [name_of(obj), quantity_text((spec.get("capacity") or {}).get("storage")), _modes_text(spec.get("accessModes")),
            spec.get("persistentVolumeReclaimPolicy") or "", _phase(obj),
            f"{claim.get('namespace') or ''}/{claim.get('name') or ''}" if claim is not None else "", _class_of(obj),
            _set(spec.get("volumeAttributesClassName")), (obj.get("status") or {}).get("reason") or "", age(obj, now_s),
            _set(spec.get("volumeMode"))]


def persistent_volume_claim_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    bound = bool(spec.get("volumeName"))
    return [name_of(obj), _phase(obj), spec.get("volumeName") or "",
            quantity_text((status.get("capacity") or {}).get("storage")) if bound else "",
            _modes_text(status.get("accessModes")) if bound else "", _class_of(obj), _set(spec.get("volumeAttributesClassName")),
            age(obj, now_s), _set(spec.get("volumeMode"))]


# --- the rest ---------------------------------------------------------------------------------------------------------------------------

POD_TEMPLATE = (
    NAME, Column("Containers", "string", "", CONTAINERS.description), Column("Images", "string", "", IMAGES.description),
    text_column("Pod Labels", "The labels for the pod template."))


def pod_template_cells(obj: Object, now_s: float) -> list[Any]:
    template = obj.get("template") or {}
    return [name_of(obj), *containers_cells(template), labels_text((template.get("metadata") or {}).get("labels"))]


REPLICATION_CONTROLLER = (
    NAME,
    Column("Desired", "integer", "", "@core.v1.ReplicationControllerSpec.replicas"),
    Column("Current", "integer", "", "@core.v1.ReplicationControllerStatus.replicas"),
    Column("Ready", "integer", "", "@core.v1.ReplicationControllerStatus.readyReplicas"),
    AGE, CONTAINERS, IMAGES,
    text_column("Selector", "@core.v1.ReplicationControllerSpec.selector", 1),
)


def replication_controller_cells(obj: Object, now_s: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    return [name_of(obj), spec.get("replicas") or 0, status.get("replicas") or 0, status.get("readyReplicas") or 0, age(obj, now_s),
            *containers_cells(spec.get("template")), labels_text(spec.get("selector"))]


SECRET = (NAME, text_column("Type", "@core.v1.Secret.type"), text_column("Data", "@core.v1.Secret.data"), AGE)


def secret_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), obj.get("type") or "", len(obj.get("data") or ()), age(obj, now_s)]


CONFIG_MAP = (NAME, text_column("Data", "@core.v1.ConfigMap.data"), AGE)


def config_map_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), age(obj, now_s)]


def name_age_cells(obj: Object, now_s: float) -> list[Any]:
    return [name_of(obj), age(obj, now_s)]


COMPONENT_STATUS = (
    NAME, text_column("Status", "Status of the component conditions"), text_column("Message", "Message of the component conditions"),
    text_column("Error", "Error of the component conditions"))


def component_status_cells(obj: Object, now_s: float) -> list[Any]:
    for c in obj.get("conditions") or ():
        if c.get("type") == "Healthy":
            return [name_of(obj), "Healthy" if c.get("status") == "True" else "Unhealthy", c.get("message") or "", c.get("error") or ""]
    return [name_of(obj), "Unknown", "", ""]


RESOURCE_QUOTA = (
    NAME,
    text_column("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
    text_column("Limit", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."),
    AGE)


def resource_quota_cells(obj: Object, now_s: float) -> list[Any]:
    status = obj.get("status") or {}
    used = status.get("used") or {}
    requests: list[str] = []
    limits: list[str] = []
    for name, hard in sorted((status.get("hard") or {}).items()):
        (limits if name.startswith("limits.") else requests).append(f"{name}: {quantity_text(used.get(name))}/{quantity_text(hard)}")
    return [name_of(obj), ", ".join(requests), ", ".join(limits), age(obj, now_s)]


TABLES: dict[tuple[str, str], Table] = {
    ("", "Pod"): (POD, pod_cells),
    ("", "PodTemplate"): (POD_TEMPLATE, pod_template_cells),
    ("", "ReplicationController"): (REPLICATION_CONTROLLER, replication_controller_cells),
    ("", "Service"): (SERVICE, service_cells),
    ("", "Endpoints"): (ENDPOINTS, endpoints_cells),
    ("", "Node"): (NODE, node_cells),
    ("", "Namespace"): (NAMESPACE, namespace_cells),
    ("", "Event"): (EVENT, event_cells),
    ("events.k8s.io", "Event"): (EVENT, event_cells),
    ("", "Secret"): (SECRET, secret_cells),
    ("", "ConfigMap"): (CONFIG_MAP, config_map_cells),
    ("", "ServiceAccount"): ((NAME, AGE), name_age_cells),
    ("", "PersistentVolume"): (PERSISTENT_VOLUME, persistent_volume_cells),
    ("", "PersistentVolumeClaim"): (PERSISTENT_VOLUME_CLAIM, persistent_volume_claim_cells),
    ("", "ComponentStatus"): (COMPONENT_STATUS, component_status_cells),
    ("", "ResourceQuota"): (RESOURCE_QUOTA, resource_quota_cells),
}
