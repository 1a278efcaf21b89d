"""PersistentVolume and PersistentVolumeClaim: defaults, strategy, validation, warnings.

Upstream: pkg/registry/core/{persistentvolume,persistentvolumeclaim}/strategy.go, pkg/api/persistentvolume{,claim}/util.go,
pkg/apis/core/validation, KEP-1790 (recovery from expansion), KEP-3751 (attributes classes), KEP-3762 (phase transition time).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from kubern.model import names
from kubern.model.invalid import FieldError, forbidden, invalid, not_supported, required
from kubern.model.kinds.claim_spec import ACCESS_MODES, VOLUME_MODES, access_modes, validate_claim_spec
from kubern.model.kinds.equal import semantic_equal
from kubern.model.kinds.internal_form import difference, struct
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import IMMUTABLE, annotations_of, messages, selector_is_valid
from kubern.model.kinds.placement import bad_values_in_terms, validate_node_selector
from kubern.model.kinds.pod_defaults import default_claim_spec, default_resource_list, default_volume_source
from kubern.model.kinds.pod_resources import is_native
from kubern.model.kinds.pod_warnings import claim_spec_warnings, node_term_warnings
from kubern.model.kinds.resource_rules import basic_quantity, positive_quantity, quantity_value
from kubern.model.kinds.volumes import ONE_TYPE, PERSISTENT_SOURCES, iscsi_persistent
from kubern.model.object import Object, meta
from kubern.model.object import name as name_of
from kubern.model.quantity import compare

Errors = Iterator[FieldError]
RECLAIM_POLICIES = ("Delete", "Recycle", "Retain")
CLASS_ANNOTATION, OPTIONS_ANNOTATION = "volume.beta.kubernetes.io/storage-class", "volume.beta.kubernetes.io/mount-options"
SOURCE_FIELDS = tuple(kind for kind, _, _, _ in PERSISTENT_SOURCES)
# Volumes that take mount options; for the others the old annotation is refused.
_MOUNTABLE = ("gcePersistentDisk", "awsElasticBlockStore", "glusterfs", "nfs", "rbd", "quobyte", "iscsi", "cinder", "cephfs", "azureFile",
              "vsphereVolume", "azureDisk", "photonPersistentDisk")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _spec(obj: Object) -> Object:
    return obj.get("spec") or {}


# PersistentVolume --------------------------------------------------------------------------------------------------------------

def default_volume(pv: Object) -> None:
    spec, status = pv.setdefault("spec", {}), pv.setdefault("status", {})
    if not status.get("phase"):
        status["phase"] = "Pending"
    if not spec.get("persistentVolumeReclaimPolicy"):
        spec["persistentVolumeReclaimPolicy"] = "Retain"
    if spec.get("volumeMode") is None:
        spec["volumeMode"] = "Filesystem"
    default_resource_list(spec.get("capacity"))
    default_volume_source(spec)


def _prepare_volume(pv: Object) -> None:
    pv["status"] = {"phase": "Pending", "lastPhaseTransitionTime": meta(pv).get("creationTimestamp") or _now()}


def _keep_status(new: Object, old: Object) -> None:
    new["status"] = old.get("status") or {}


def _prepare_volume_status(new: Object, old: Object) -> None:
    new["spec"] = old.get("spec") or {}
    status, before = new.setdefault("status", {}), old.get("status") or {}
    at, was = status.get("lastPhaseTransitionTime"), before.get("lastPhaseTransitionTime")
    if status.get("phase") == before.get("phase"):
        if at is None and was is not None:
            status["lastPhaseTransitionTime"] = was
    elif at is None or at == was:
        status["lastPhaseTransitionTime"] = _now()


def _volume(pv: Object, any_value: bool) -> Errors:
    yield from volume_spec_errors(_spec(pv), name_of(pv), "spec", inline=False, any_value=any_value)


def _mount_options(pv: Object) -> Errors:
    if OPTIONS_ANNOTATION in annotations_of(pv) and not any(_spec(pv).get(k) is not None for k in _MOUNTABLE):
        yield forbidden(f"metadata.annotations.{OPTIONS_ANNOTATION}", "may not specify mount options for this volume type")


def validate_volume(pv: Object) -> list[FieldError]:
    return [*_volume(pv, False), *_mount_options(pv)]


def volume_spec_errors(spec: Object, name: str, path: str, inline: bool, any_value: bool = False) -> Errors:
    """A PersistentVolume's spec; `inline`: that of a VolumeAttachment, which must be CSI and nothing else."""
    if inline:
        for field in ("claimRef", "capacity"):
            if spec.get(field):
                yield forbidden(f"{path}.{field}", "may not be specified in the context of inline volumes")
        if spec.get("csi") is None:
            yield required(f"{path}.csi", "has to be specified in the context of inline volumes")
    modes = spec.get("accessModes") or []
    if not modes:
        yield required(f"{path}.accessModes")
    yield from access_modes(modes, f"{path}.accessModes")
    if not inline:
        yield from _capacity(spec.get("capacity") or {}, f"{path}.capacity")
    policy = spec.get("persistentVolumeReclaimPolicy")
    if policy and inline and policy != "Retain":
        yield forbidden(f"{path}.persistentVolumeReclaimPolicy", "may only be Retain in the context of inline volumes")
    elif policy and not inline and policy not in RECLAIM_POLICIES:
        yield not_supported(f"{path}.persistentVolumeReclaimPolicy", policy, RECLAIM_POLICIES)
    affinity = spec.get("nodeAffinity")
    if affinity is not None and inline:
        yield forbidden(f"{path}.nodeAffinity", "may not be specified in the context of inline volumes")
    elif affinity is not None:
        if affinity.get("required") is not None:
            yield from validate_node_selector(affinity["required"], f"{path}.nodeAffinity.required", any_value)
        else:
            yield required(f"{path}.nodeAffinity.required", "must specify required node constraints")
    yield from _sources(spec, name, path, affinity is not None and not inline)
    if spec.get("hostPath") is not None and policy == "Recycle" and _is_root(spec["hostPath"].get("path", "")):
        yield forbidden(f"{path}.persistentVolumeReclaimPolicy", "may not be 'recycle' for a hostPath mount of '/'")
    yield from _volume_classes(spec, path, inline)


def _capacity(capacity: dict[str, str], path: str) -> Errors:
    if not capacity:
        yield required(path)
    if set(capacity) != {"storage"}:
        yield not_supported(path, capacity or None, ("storage",))
    for name, amount in capacity.items():
        yield from basic_quantity(amount, f"{path}[{name}]")
        yield from positive_quantity(amount, f"{path}[{name}]")


def _sources(spec: Object, name: str, path: str, has_affinity: bool) -> Errors:
    count = 0
    for kind, twice, own, check in PERSISTENT_SOURCES:
        source = spec.get(kind)
        if source is None:
            continue
        if count and twice:
            yield forbidden(f"{path}.{twice}", ONE_TYPE)
            continue
        count += 1
        yield from iscsi_persistent(source, f"{path}.{own}", name) if kind == "iscsi" else check(source, f"{path}.{own}")
        if kind == "local" and not has_affinity:
            yield required(f"{path}.nodeAffinity", "Local volume requires node affinity")
    if not count:
        yield required(path, "must specify a volume type")


def _is_root(path: str) -> bool:
    parts: list[str] = []
    for p in path.split("/"):
        if p == "..":
            parts[-1:] = []
        elif p not in ("", "."):
            parts.append(p)
    return path.startswith("/") and not parts


def _volume_classes(spec: Object, path: str, inline: bool) -> Errors:
    storage, mode, attributes = spec.get("storageClassName"), spec.get("volumeMode"), spec.get("volumeAttributesClassName")
    if storage and inline:
        yield forbidden(f"{path}.storageClassName", "may not be specified in the context of inline volumes")
    elif storage:
        yield from messages(f"{path}.storageClassName", storage, names.is_dns1123_subdomain(storage))
    if mode is not None and inline and mode != "Filesystem":
        yield forbidden(f"{path}.volumeMode", "may not specify volumeMode other than Filesystem in the context of inline volumes")
    elif mode is not None and not inline and mode not in VOLUME_MODES:
        yield not_supported(f"{path}.volumeMode", mode, VOLUME_MODES)
    if attributes is not None:
        if not attributes:
            yield required(f"{path}.volumeAttributesClassName", "an empty string is disallowed")
        else:
            yield from messages(f"{path}.volumeAttributesClassName", attributes, names.is_dns1123_subdomain(attributes))
        if spec.get("csi") is None:
            yield required(f"{path}.csi", "has to be specified when using volumeAttributesClassName")


def validate_volume_update(new: Object, old: Object) -> list[FieldError]:
    any_value = bad_values_in_terms((((_spec(old).get("nodeAffinity") or {}).get("required")) or {}).get("nodeSelectorTerms"))
    return [*_volume(new, any_value), *_mount_options(new), *_volume(new, any_value), *_volume_changes(_spec(new), _spec(old))]


_BETA_LABELS = {"failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
                "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
                "beta.kubernetes.io/os": "kubernetes.io/os", "beta.kubernetes.io/arch": "kubernetes.io/arch",
                "beta.kubernetes.io/instance-type": "node.kubernetes.io/instance-type"}


def _volume_changes(spec: Object, old: Object) -> Errors:
    now, was = ({k: s[k] for k in SOURCE_FIELDS if s.get(k) is not None} for s in (spec, old))
    if "csi" in now and "csi" in was and was["csi"].get("controllerExpandSecretRef") is None:
        now["csi"] = {k: v for k, v in now["csi"].items() if k != "controllerExpandSecretRef"}
    if not semantic_equal(now, was):
        shown = difference(struct("PersistentVolumeSource", was), struct("PersistentVolumeSource", now))
        yield forbidden("spec.persistentvolumesource", f"spec.persistentvolumesource is immutable after creation\n{shown}")
    if spec.get("volumeMode") != old.get("volumeMode"):
        yield invalid("volumeMode", spec.get("volumeMode"), IMMUTABLE)
    affinity, before = spec.get("nodeAffinity"), old.get("nodeAffinity")
    if before is not None and not semantic_equal(_stable_labels(affinity, before), before):
        yield invalid("nodeAffinity", struct("VolumeNodeAffinity", affinity), f"{IMMUTABLE}, except for updating from beta label to GA")
    if old.get("volumeAttributesClassName") is not None and spec.get("volumeAttributesClassName") is None:
        yield forbidden("spec.volumeAttributesClassName", "update from non-nil value to nil is forbidden")


def _stable_labels(affinity: Object | None, old: Object) -> Object | None:
    """The new affinity with a stable label's key put back to the beta one it replaces."""
    def terms(a: Object | None) -> list[Object]:
        return ((a or {}).get("required") or {}).get("nodeSelectorTerms") or []

    if affinity is None or len(terms(affinity)) != len(terms(old)):
        return affinity
    out = []
    for term, was in zip(terms(affinity), terms(old), strict=True):
        mine, theirs = term.get("matchExpressions") or [], was.get("matchExpressions") or []
        if len(mine) == len(theirs):
            mine = [{**e, "key": o["key"]} if _BETA_LABELS.get(o.get("key", "")) == e.get("key") else e for e, o in zip(mine, theirs, strict=True)]
        out.append({**term, "matchExpressions": mine})
    return {**affinity, "required": {**affinity["required"], "nodeSelectorTerms": out}} if out else affinity


_DEPRECATED = (("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
               ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
               ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
               ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
               ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
               ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"))


def volume_warnings(pv: Object, old: Object | None) -> list[str]:
    spec, marks, out = _spec(pv), annotations_of(pv), []
    for key, text in ((CLASS_ANNOTATION, 'deprecated since v1.8; use "storageClassName" attribute instead'),
                      (OPTIONS_ANNOTATION, 'deprecated since v1.31; use "mountOptions" attribute instead')):
        if key in marks:
            out.append(f"metadata.annotations[{key}]: {text}")
    if spec.get("persistentVolumeReclaimPolicy") == "Recycle":
        out.append("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use "
                   "dynamic provisioning.")
    for i, term in enumerate(((spec.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or ()):
        out += node_term_warnings(term, f"spec.nodeAffinity.required.nodeSelectorTerms[{i}]", False)
    return out + [f"spec.{printed}: {text}" for field, printed, text in _DEPRECATED if spec.get(field) is not None]


# PersistentVolumeClaim ---------------------------------------------------------------------------------------------------------

def default_claim(pvc: Object) -> None:
    spec, status = pvc.setdefault("spec", {}), pvc.setdefault("status", {})
    if not status.get("phase"):
        status["phase"] = "Pending"
    default_claim_spec(spec)
    default_resource_list(status.get("capacity"))
    default_resource_list(status.get("allocatedResources"))


def _prepare_claim(pvc: Object) -> None:
    pvc["status"] = {"phase": "Pending"}
    _data_sources(_spec(pvc), None)


def _prepare_claim_update(new: Object, old: Object) -> None:
    new["status"] = old.get("status") or {}
    _data_sources(_spec(new), _spec(old))


def _data_sources(spec: Object, old: Object | None) -> None:
    """dataSource and dataSourceRef say the same; what only the newer can say is dropped where its feature is off."""
    was = old or {}
    ref = spec.get("dataSourceRef")
    if ref is not None and ref.get("namespace") and was.get("dataSourceRef") is None:
        spec.pop("dataSourceRef")
        ref = None
    source = spec.get("dataSource")
    if was.get("dataSource") is None and was.get("dataSourceRef") is None and ref is None and source is not None:
        known = (source.get("kind", ""), source.get("apiGroup") or "")
        if known not in (("PersistentVolumeClaim", ""), ("VolumeSnapshot", "snapshot.storage.k8s.io")):
            spec.pop("dataSource")
            source = None
    if source is not None and ref is None:
        spec["dataSourceRef"] = dict(source)
    elif ref is not None and source is None and not ref.get("namespace"):
        spec["dataSource"] = {k: v for k, v in ref.items() if k != "namespace"}


def validate_claim(pvc: Object) -> list[FieldError]:
    return list(validate_claim_spec(_spec(pvc), "spec"))


def validate_claim_update(new: Object, old: Object) -> list[FieldError]:
    before = _spec(old)
    any_group = any((before.get(f) or {}).get("apiGroup") is not None for f in ("dataSource", "dataSourceRef"))
    return [*validate_claim_spec(_spec(new), "spec", not selector_is_valid(before.get("selector")), any_group), *_claim_changes(new, old)]


def _storage(spec_or_status: Object, *path: str) -> str:
    value: Object = spec_or_status
    for p in path:
        value = value.get(p) or {}
    return str(value.get("storage", "0"))


def _claim_changes(new: Object, old: Object) -> Errors:
    spec, before, status = _spec(new), _spec(old), old.get("status") or {}
    munged, was = dict(spec), dict(before)
    bound = (new.get("status") or {}).get("phase") == "Bound"
    if not before.get("volumeName") and spec.get("volumeName"):
        was["volumeName"] = spec["volumeName"]
    marks, old_marks = annotations_of(new), annotations_of(old)
    annotated, name = old_marks.get(CLASS_ANNOTATION), spec.get("storageClassName")
    first_class = before.get("storageClassName") is None and name is not None
    if annotated is not None and first_class and name == annotated and marks.get(CLASS_ANNOTATION, annotated) == annotated:
        munged.pop("storageClassName")                       # the annotation became the field
    else:
        if marks.get(CLASS_ANNOTATION, "") != old_marks.get(CLASS_ANNOTATION, ""):
            yield invalid(f"metadata.annotations.{CLASS_ANNOTATION}", marks.get(CLASS_ANNOTATION, ""), IMMUTABLE)
        if first_class and (annotated is None or name == annotated):
            munged.pop("storageClassName")                   # a class is given late, once
    if bound:
        resources = spec.get("resources") or {}
        if resources.get("requests") is not None:
            munged["resources"] = {**resources, "requests": {**resources["requests"], "storage": _storage(before, "resources", "requests")}}
        munged.pop("volumeAttributesClassName", None)
        if before.get("volumeAttributesClassName") is not None:
            munged["volumeAttributesClassName"] = before["volumeAttributesClassName"]
    if not semantic_equal(munged, was):
        shown = difference(struct("PersistentVolumeClaimSpec", was), struct("PersistentVolumeClaimSpec", munged))
        yield forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n" + shown)
    size = _storage(spec, "resources", "requests")
    if compare(size, _storage(before, "resources", "requests")) < 0 and compare(size, _storage(status, "capacity")) <= 0:
        yield forbidden("spec.resources.requests.storage", "field can not be less than status.capacity")
    if spec.get("volumeMode") != before.get("volumeMode"):
        yield invalid("volumeMode", spec.get("volumeMode"), IMMUTABLE)
    attributes = spec.get("volumeAttributesClassName")
    if attributes != before.get("volumeAttributesClassName") and status.get("currentVolumeAttributesClassName") is not None:
        for value, what in ((None, "nil"), ("", "empty string")):
            if attributes == value:
                yield forbidden("spec.volumeAttributesClassName",
                                f"update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil")


RESIZE_STATUSES = ("ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending")


def validate_claim_status(new: Object, old: Object) -> list[FieldError]:
    return list(_claim_status(new))


def _claim_status(pvc: Object) -> Errors:
    status = pvc.get("status") or {}
    if not _spec(pvc).get("accessModes"):
        yield required("Spec.accessModes")
    for name, amount in (status.get("capacity") or {}).items():
        yield from basic_quantity(amount, f"status.capacity[{name}]")
    for name, value in (status.get("allocatedResourceStatuses") or {}).items():
        yield from _claim_resource(name, "status.allocatedResourceStatuses")
        if value not in RESIZE_STATUSES:
            yield not_supported("status.allocatedResourceStatuses", name, frozenset(RESIZE_STATUSES))
    for name, amount in (status.get("allocatedResources") or {}).items():
        here = f"status.allocatedResources[{name}]"
        if errors := list(_claim_resource(name, "status.allocatedResources")) or list(basic_quantity(amount, here)):
            yield from errors
        else:
            yield from quantity_value("storage", amount, here)


def _claim_resource(name: str, path: str) -> Errors:
    if errors := names.is_qualified_name(name):
        yield from messages(path, name, errors)
    elif is_native(name) and name != "storage":
        yield not_supported(path, name, ("storage",))


def claim_warnings(pvc: Object, old: Object | None) -> list[str]:
    out = []
    if CLASS_ANNOTATION in annotations_of(pvc):
        out.append(f'metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use "storageClassName" attribute instead')
    return [*out, *claim_spec_warnings(_spec(pvc), "spec")]


KINDS: KindTable = {
    ("", "PersistentVolume"): Kind(
        defaults=default_volume, prepare_create=_prepare_volume, prepare_update=_keep_status, prepare_status=_prepare_volume_status,
        validate=validate_volume, validate_update=validate_volume_update, warnings=volume_warnings, meta_again=2, meta_update=0,
        delete_returns_object=True),
    ("", "PersistentVolumeClaim"): Kind(
        defaults=default_claim, prepare_create=_prepare_claim, prepare_update=_prepare_claim_update,
        validate=validate_claim, validate_update=validate_claim_update, validate_status=validate_claim_status, warnings=claim_warnings,
        meta_again=1,
        delete_returns_object=True),
}
__all__ = ["ACCESS_MODES", "KINDS", "volume_spec_errors"]
