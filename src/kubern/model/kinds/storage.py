"""storage.k8s.io/v1: StorageClass, VolumeAttributesClass, VolumeAttachment, CSIDriver, CSINode, CSIStorageCapacity.

Upstream: pkg/apis/storage/{v1/defaults.go,validation}, pkg/registry/storage.
"""

from __future__ import annotations

from kubern.model import names
from kubern.model.invalid import duplicate, forbidden, invalid, not_supported, required, too_long
from kubern.model.kinds.checks import (
    Errors,
    immutable,
    keep_spec_and_metadata,
    keep_status,
    listed,
    messages,
    nonnegative,
    same,
    selector_form,
    zero_status,
)
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import selector_is_valid, validate_label_selector
from kubern.model.kinds.pod_warnings import DEPRECATED_NODE_LABELS
from kubern.model.kinds.volumes import csi_driver_name
from kubern.model.object import Object
from kubern.model.quantity import canonical, compare

PARAMETERS_MAX, PARAMETERS_BYTES_MAX = 512, 256 * 1024
METADATA_BYTES_MAX, ERROR_BYTES_MAX, NODE_ID_MAX = 256 * 1024, 1024, 256
RECLAIM_POLICIES = ("Delete", "Retain")
BINDING_MODES = ("Immediate", "WaitForFirstConsumer")
FS_GROUP_POLICIES = ("File", "None", "ReadWriteOnceWithFSType")
LIFECYCLE_MODES = ("Persistent", "Ephemeral")
TOKEN_S_MIN, TOKEN_S_MAX, UPDATE_PERIOD_S_MIN = 600, 1 << 32, 10
INT32_MAX = 2147483647


# --- StorageClass, VolumeAttributesClass ------------------------------------------------------------------------------------------------

def default_storage_class(obj: Object) -> None:
    if obj.get("reclaimPolicy") is None:
        obj["reclaimPolicy"] = "Delete"
    if obj.get("volumeBindingMode") is None:
        obj["volumeBindingMode"] = "Immediate"


def _provisioner(name: str, path: str) -> Errors:
    if not name:
        yield required(path)
    else:
        lower = name.lower()
        yield from messages(lower, names.is_qualified_name(lower), path)


def _parameters(parameters: dict[str, str] | None, path: str, may_be_empty: bool) -> Errors:
    given = parameters or {}
    if len(given) > PARAMETERS_MAX:
        yield too_long(path, PARAMETERS_MAX)
        return
    for key in given:
        if not key:
            yield invalid(path, key, "field can not be empty.")
    if sum(names.size(k) + names.size(v) for k, v in given.items()) > PARAMETERS_BYTES_MAX:
        yield too_long(path, PARAMETERS_BYTES_MAX)
    if not may_be_empty and not given:
        yield required(path, "must contain at least one key/value pair")


def validate_storage_class(obj: Object) -> Errors:
    yield from _provisioner(obj.get("provisioner") or "", "provisioner")
    yield from _parameters(obj.get("parameters"), "parameters", True)
    reclaim, binding = obj.get("reclaimPolicy"), obj.get("volumeBindingMode")
    if reclaim and reclaim not in RECLAIM_POLICIES:
        yield not_supported("reclaimPolicy", reclaim, RECLAIM_POLICIES)
    if binding is None:
        yield required("volumeBindingMode")
    elif binding not in BINDING_MODES:
        yield not_supported("volumeBindingMode", binding, BINDING_MODES)
    yield from _topologies(obj.get("allowedTopologies") or [])


def _topologies(terms: list[Object]) -> Errors:
    # upstream starts with one empty entry a term, so that an empty term counts as a duplicate of each
    seen: list[dict[str, set[str]]] = [{} for _ in terms]
    for i, term in enumerate(terms):
        path = f"allowedTopologies[{i}].matchLabelExpressions"
        found: dict[str, set[str]] = {}
        for j, e in enumerate(term.get("matchLabelExpressions") or ()):
            key, values = e.get("key") or "", e.get("values") or ()
            if not values:
                yield required(f"{path}[{j}].values")
            have: set[str] = set()
            for k, value in enumerate(values):
                if value in have:
                    yield duplicate(f"{path}[{j}].values[{k}]", value)
                have.add(value)
            yield from messages(key, names.is_qualified_name(key), f"{path}[{j}].key")
            if key in found:
                yield duplicate(f"{path}[{j}].key", key)
            found[key] = have
        for earlier in seen:
            if earlier == found:
                yield duplicate(path, "")
        seen.append(found)


def validate_storage_class_update(new: Object, old: Object) -> Errors:
    yield from validate_storage_class(new)
    for field in ("parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"):
        yield from immutable(new.get(field), old.get(field), field)


def _storage_class_warnings(new: Object, old: Object | None) -> list[str]:
    return [f"allowedTopologies[{i}].matchLabelExpressions[{j}].key: {DEPRECATED_NODE_LABELS[e['key']]}"
            for i, term in enumerate(new.get("allowedTopologies") or ())
            for j, e in enumerate(term.get("matchLabelExpressions") or ()) if e.get("key") in DEPRECATED_NODE_LABELS]


def validate_attributes_class(obj: Object) -> Errors:
    yield from _provisioner(obj.get("driverName") or "", "driverName")
    yield from _parameters(obj.get("parameters"), "parameters", False)


def validate_attributes_class_update(new: Object, old: Object) -> Errors:
    if (new.get("driverName") or "") != (old.get("driverName") or ""):
        yield forbidden("driverName", "updates to driverName are forbidden.")
    if not same(new.get("parameters"), old.get("parameters")):
        yield forbidden("parameters", "updates to parameters are forbidden.")
    yield from validate_attributes_class(new)


# --- VolumeAttachment -------------------------------------------------------------------------------------------------------------------

def validate_attachment(obj: Object, old: Object | None = None) -> Errors:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    yield from csi_driver_name(spec.get("attacher") or "", "spec.attacher")
    source = spec.get("source") or {}
    volume, inline = source.get("persistentVolumeName"), source.get("inlineVolumeSpec")
    if volume is None and inline is None:
        yield required("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
    elif volume is not None and inline is not None:
        yield forbidden("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
    elif volume is not None:
        if not volume:
            yield required("spec.source.persistentVolumeName", "must specify non empty persistentVolumeName")
    else:
        yield from _inline_volume(inline or {})
    node = spec.get("nodeName") or ""
    yield from messages(node, names.is_dns1123_subdomain(node), "spec.nodeName")
    if sum(names.size(k) + names.size(v) for k, v in (status.get("attachmentMetadata") or {}).items()) > METADATA_BYTES_MAX:
        yield too_long("status.attachmentMetadata", METADATA_BYTES_MAX)
    for field in ("attachError", "detachError"):
        yield from _volume_error(status.get(field), f"status.{field}")
    if volume is not None:
        yield from messages(volume, names.is_dns1123_subdomain(volume), "spec.source.persistentVolumeName")
    if old is not None:
        yield from immutable(spec, old.get("spec") or {}, "spec", "storage.VolumeAttachmentSpec")


def _inline_volume(spec: Object) -> Errors:
    from kubern.model.kinds.persistent_volume import volume_spec_errors

    yield from volume_spec_errors(spec, "", "spec.source.inlineVolumeSpec", True)


def _volume_error(error: Object | None, path: str) -> Errors:
    if error is None:
        return
    if names.size(error.get("message") or "") > ERROR_BYTES_MAX:
        yield too_long(f"{path}.message", METADATA_BYTES_MAX)
    code = error.get("errorCode")
    if code is not None and code < 0:
        yield invalid(f"{path}.errorCode", code, names.between(0, INT32_MAX))


# --- CSIDriver --------------------------------------------------------------------------------------------------------------------------

def default_csi_driver(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    for field, value in (("attachRequired", True), ("podInfoOnMount", False), ("storageCapacity", False),
                         ("fsGroupPolicy", "ReadWriteOnceWithFSType"), ("requiresRepublish", False), ("seLinuxMount", False)):
        if spec.get(field) is None:
            spec[field] = value
    if not spec.get("volumeLifecycleModes"):
        spec["volumeLifecycleModes"] = ["Persistent"]


def _drop_scheduling_field(new: Object, old: Object | None) -> None:
    """preventPodSchedulingIfMissing is behind a gate that is off."""
    if old is None or (old.get("spec") or {}).get("preventPodSchedulingIfMissing") is None:
        (new.get("spec") or {}).pop("preventPodSchedulingIfMissing", None)


def validate_csi_driver(obj: Object) -> Errors:
    spec = obj.get("spec") or {}
    for field, name in (("attachRequired", "attachedRequired"), ("podInfoOnMount", "podInfoOnMount"), ("storageCapacity", "storageCapacity")):
        if spec.get(field) is None:
            yield required(f"spec.{name}")
    policy = spec.get("fsGroupPolicy")
    if policy is not None and policy not in FS_GROUP_POLICIES:
        yield not_supported("spec.fsGroupPolicy", policy, FS_GROUP_POLICIES)
    yield from _token_requests(spec.get("tokenRequests") or [])
    for mode in spec.get("volumeLifecycleModes") or ():
        if mode not in LIFECYCLE_MODES:
            yield not_supported("spec.volumeLifecycleModes", mode, LIFECYCLE_MODES)
    if spec.get("seLinuxMount") is None:
        yield required("spec.seLinuxMount")
    period = spec.get("nodeAllocatableUpdatePeriodSeconds")
    if period is not None and period < UPDATE_PERIOD_S_MIN:
        yield invalid("spec.nodeAllocatableUpdatePeriodSeconds", period, f"must be greater than or equal to {UPDATE_PERIOD_S_MIN} seconds")
    in_secrets = spec.get("serviceAccountTokenInSecrets")
    if in_secrets is not None and not spec.get("tokenRequests"):
        yield invalid("spec.serviceAccountTokenInSecrets", in_secrets,
                      "serviceAccountTokenInSecrets is set but no tokenRequests are specified")


def _token_requests(requests: list[Object]) -> Errors:
    seen = set()
    for i, r in enumerate(requests):
        audience, lifetime = r.get("audience") or "", r.get("expirationSeconds")
        if audience in seen:
            yield duplicate(f"spec.tokenRequests[{i}].audience", audience)
            continue
        seen.add(audience)
        if lifetime is None:
            continue
        if lifetime < TOKEN_S_MIN:
            yield invalid(f"spec.tokenRequests[{i}].expirationSeconds", lifetime, "may not specify a duration less than 10 minutes")
        if lifetime > TOKEN_S_MAX:
            yield invalid(f"spec.tokenRequests[{i}].expirationSeconds", lifetime, "may not specify a duration larger than 2^32 seconds")


def validate_csi_driver_update(new: Object, old: Object) -> Errors:
    yield from validate_csi_driver(new)
    spec, before = new.get("spec") or {}, old.get("spec") or {}
    yield from immutable(spec.get("attachRequired"), before.get("attachRequired"), "spec.attachedRequired")
    yield from immutable(spec.get("volumeLifecycleModes"), before.get("volumeLifecycleModes"), "spec.volumeLifecycleModes")


def _csi_driver_warnings(new: Object, old: Object | None) -> list[str]:
    spec = new.get("spec") or {}
    unchanged = old is not None and same((old.get("spec") or {}).get("tokenRequests"), spec.get("tokenRequests"))
    if spec.get("tokenRequests") and spec.get("serviceAccountTokenInSecrets") is None and not unchanged:
        return ["spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of "
                "tokens in volume attributes"]
    return []


def _create_csi_driver(obj: Object) -> None:
    _drop_scheduling_field(obj, None)


def _update_csi_driver(new: Object, old: Object) -> None:
    """The generation counts changes, from none at all."""
    _drop_scheduling_field(new, old)
    if not same(new.get("spec"), old.get("spec")):
        new["metadata"]["generation"] = (old["metadata"].get("generation") or 0) + 1


# --- CSINode, CSIStorageCapacity --------------------------------------------------------------------------------------------------------

def validate_csi_node(obj: Object) -> Errors:
    seen = set()
    for i, d in enumerate((obj.get("spec") or {}).get("drivers") or ()):
        path = f"spec.drivers[{i}]"
        name, node_id = d.get("name") or "", d.get("nodeID") or ""
        yield from csi_driver_name(name, f"{path}.name")
        if not node_id:
            yield required(f"{path}.nodeID")
        if names.size(node_id) > NODE_ID_MAX:
            yield invalid(f"{path}.nodeID", node_id, f"must be {NODE_ID_MAX} characters or less")
        yield from nonnegative((d.get("allocatable") or {}).get("count"), f"{path}.allocatable.count")
        if name in seen:
            yield duplicate(f"{path}.name", name)
        seen.add(name)
        keys = set()
        for key in d.get("topologyKeys") or ():
            if not key:
                yield required(path)
            if key in keys:
                yield duplicate(path, key)
            keys.add(key)
            yield from messages(key, names.is_qualified_name(key), path)


def validate_csi_node_update(new: Object, old: Object) -> Errors:
    """A driver that stays is fixed but for what is allocatable."""
    yield from validate_csi_node(new)
    now = (new.get("spec") or {}).get("drivers") or ()
    for before in (old.get("spec") or {}).get("drivers") or ():
        for driver in now:
            if driver.get("name") == before.get("name"):
                a, b = ({k: v for k, v in d.items() if k != "allocatable"} for d in (driver, before))
                yield from immutable(a, b, "spec.drivers", "storage.CSINodeDriver")


def validate_capacity(obj: Object, old: Object | None = None) -> Errors:
    any_value = old is not None and not selector_is_valid(old.get("nodeTopology"))
    yield from validate_label_selector(obj.get("nodeTopology"), "nodeTopology", any_value)
    name = obj.get("storageClassName") or ""
    yield from messages(name, names.is_dns1123_subdomain(name), "storageClassName")
    amount = obj.get("capacity")
    if amount is not None and compare(str(amount), "0") < 0:
        yield invalid("capacity", canonical(str(amount)), names.NEGATIVE)
    if old is not None:
        if not same(obj.get("nodeTopology"), old.get("nodeTopology")):
            yield invalid("nodeTopology", selector_form(obj.get("nodeTopology")), "field is immutable")
        if name != (old.get("storageClassName") or ""):
            yield invalid("storageClassName", name, "field is immutable")


def _capacity_warnings(new: Object, old: Object | None) -> list[str]:
    topology = new.get("nodeTopology") or {}
    out = [f"nodeTopology.matchExpressions[{i}].key: {e['key']} is {DEPRECATED_NODE_LABELS[e['key']]}"
           for i, e in enumerate(topology.get("matchExpressions") or ()) if e.get("key") in DEPRECATED_NODE_LABELS]
    return out + [f"nodeTopology.matchLabels.{label}: {DEPRECATED_NODE_LABELS[label]}"
                  for label in topology.get("matchLabels") or () if label in DEPRECATED_NODE_LABELS]


GROUP = "storage.k8s.io"
KINDS: KindTable = {
    (GROUP, "StorageClass"): Kind(
        delete_returns_object=True,
        meta_again=1,
        defaults=default_storage_class, validate=listed(validate_storage_class), validate_update=listed(validate_storage_class_update),
        warnings=_storage_class_warnings),
    (GROUP, "VolumeAttributesClass"): Kind(
        delete_returns_object=True,
        validate=listed(validate_attributes_class), validate_update=listed(validate_attributes_class_update)),
    (GROUP, "VolumeAttachment"): Kind(
        delete_returns_object=True,
        meta_again=1, meta_update=0, meta_status=0,
        prepare_create=zero_status({"attached": False}), prepare_update=keep_status, prepare_status=keep_spec_and_metadata,
        validate=listed(validate_attachment), validate_update=listed(validate_attachment), validate_status=listed(validate_attachment),
        unconditional_update=False),
    (GROUP, "CSIDriver"): Kind(
        delete_returns_object=True,
        defaults=default_csi_driver, prepare_create=_create_csi_driver, prepare_update=_update_csi_driver,
        validate=listed(validate_csi_driver), validate_update=listed(validate_csi_driver_update), warnings=_csi_driver_warnings,
        unconditional_update=False),
    (GROUP, "CSINode"): Kind(
        delete_returns_object=True,
        meta_again=1, meta_update=0,
        validate=listed(validate_csi_node), validate_update=listed(validate_csi_node_update), unconditional_update=False),
    (GROUP, "CSIStorageCapacity"): Kind(
        meta_again=1,
        validate=listed(validate_capacity), validate_update=listed(validate_capacity), warnings=_capacity_warnings,
        unconditional_update=False),
}
