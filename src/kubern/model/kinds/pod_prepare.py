"""What a client may set on a Pod: the strategy before validation, for creation, update and status.

All functions change the new object they are given. Upstream: pkg/registry/core/pod/strategy.go, pkg/api/pod/util.go (fields of
features that are off).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from kubern.model.kinds.labels import annotations_of
from kubern.model.kinds.placement import pod_affinity_terms
from kubern.model.kinds.pod_resources import qos_class
from kubern.model.kinds.pod_security import APPARMOR_CONTAINER, apparmor_field, apparmor_profile, containers_with_path
from kubern.model.object import Object, labels, meta


def spec_of(pod: Object) -> Object:
    return pod.get("spec") or {}


def prepare_create(pod: Object) -> None:
    spec = pod.setdefault("spec", {})
    pod["status"] = {"phase": "Pending", "qosClass": (pod.get("status") or {}).get("qosClass") or qos_class(spec)}
    drop_disabled(spec, None)
    if spec.get("schedulingGates"):
        pod["status"]["conditions"] = [{
            "type": "PodScheduled", "status": "False", "lastProbeTime": None, "lastTransitionTime": _created(pod), "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"}]
    merge_label_keys(spec, labels(pod))
    _apparmor_from_annotations(pod, spec)


def _created(pod: Object) -> str:
    return meta(pod).get("creationTimestamp") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def prepare_update(new: Object, old: Object) -> None:
    keep_status(new, old)
    drop_disabled(new.setdefault("spec", {}), spec_of(old))


def keep_status(new: Object, old: Object) -> None:
    if "status" in old:
        new["status"] = old["status"]
    else:
        new.pop("status", None)


def prepare_status(new: Object, old: Object) -> None:
    """PUT …/status: spec and owners stay; generations observed are kept where the writer knows nothing of them."""
    new["spec"] = old.get("spec") or {}
    m = new.setdefault("metadata", {})
    for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences"):
        if field in meta(old):
            m[field] = meta(old)[field]
        else:
            m.pop(field, None)
    status, before = new.setdefault("status", {}), old.get("status") or {}
    if not status.get("qosClass") and before.get("qosClass"):
        status["qosClass"] = before["qosClass"]
    if not status.get("observedGeneration") and before.get("observedGeneration"):
        status["observedGeneration"] = before["observedGeneration"]
    seen: dict[str, list[int]] = {}
    for c in before.get("conditions") or ():
        seen.setdefault(c.get("type", ""), []).append(c.get("observedGeneration", 0))
    for c in status.get("conditions") or ():
        left = seen.get(c.get("type", ""))
        generation = left.pop(0) if left else 0
        if not c.get("observedGeneration") and generation:
            c["observedGeneration"] = generation
    _drop_disabled_status(status, before)


def _drop_disabled_status(status: Object, before: Object) -> None:
    """Fields of features that are off: claims on node resources, digests of image volumes. A stored status keeps them."""
    if not before.get("nodeAllocatableResourceClaimStatuses"):
        status.pop("nodeAllocatableResourceClaimStatuses", None)
    if not any("volumeStatus" in m for m in _mount_statuses(before)):
        for m in _mount_statuses(status):
            m.pop("volumeStatus", None)


def _mount_statuses(status: Object) -> Iterator[Object]:
    for which in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for s in status.get(which) or ():
            yield from s.get("volumeMounts") or ()


def drop_disabled(spec: Object, old: Object | None) -> None:
    """Fields of features that are off by default in 1.36: projections of trust bundles and pod certificates, scheduling groups, stop
    signals. A stored object keeps what it has."""
    for kind in ("clusterTrustBundle", "podCertificate"):
        if not any(kind in s for s in _projections(old or {})):
            for s in _projections(spec):
                s.pop(kind, None)
    if not (old or {}).get("schedulingGroup"):
        spec.pop("schedulingGroup", None)
    if not any((c.get("lifecycle") or {}).get("stopSignal") for c, _ in containers_with_path(old or {}, "")):
        for c, _ in containers_with_path(spec, ""):
            lifecycle = c.get("lifecycle")
            if lifecycle and lifecycle.pop("stopSignal", None) is not None and not lifecycle:
                del c["lifecycle"]


def _projections(spec: Object) -> Iterator[Object]:
    for v in spec.get("volumes") or ():
        if projected := v.get("projected"):
            yield from projected.get("sources") or ()


def merge_label_keys(spec: Object, pod_labels: dict[str, str]) -> None:
    """matchLabelKeys and mismatchLabelKeys become expressions of the selector they stand beside (KEP-3633, KEP-3243)."""
    if not pod_labels:
        return
    for term in (*pod_affinity_terms(spec.get("affinity")), *(spec.get("topologySpreadConstraints") or ())):
        selector = term.get("labelSelector")
        if selector is None:
            continue
        for field, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")):
            for key in term.get(field) or ():
                if key in pod_labels:
                    selector.setdefault("matchExpressions", []).append({"key": key, "operator": operator, "values": [pod_labels[key]]})


def _apparmor_from_annotations(pod: Object, spec: Object) -> None:
    """The deprecated annotations become fields, where no field says anything."""
    marks = annotations_of(pod)
    if not any(k.startswith(APPARMOR_CONTAINER) for k in marks) or (spec.get("os") or {}).get("name") == "windows":
        return
    pod_profile = (spec.get("securityContext") or {}).get("appArmorProfile")
    for c, _ in containers_with_path(spec, ""):
        value = marks.get(APPARMOR_CONTAINER + c.get("name", ""))
        if value is not None and (c.get("securityContext") or {}).get("appArmorProfile") is None:
            profile = apparmor_field(value)
            if profile is not None and profile != pod_profile and next(apparmor_profile(profile, ""), None) is None:
                c.setdefault("securityContext", {})["appArmorProfile"] = profile
