"""The spec of a PersistentVolumeClaim, also where it is a template: ephemeral volumes, StatefulSets.

Upstream: pkg/apis/core/validation (ValidatePersistentVolumeClaimSpec), KEP-1495 (data sources), KEP-3751 (attributes classes).
"""

from __future__ import annotations

from collections.abc import Iterator

from kubern.model import names
from kubern.model.invalid import FieldError, forbidden, invalid, not_supported, required
from kubern.model.kinds.labels import messages, validate_annotations, validate_label_selector, validate_labels
from kubern.model.kinds.resource_rules import positive_quantity, quantity_value
from kubern.model.object import Object

Errors = Iterator[FieldError]
ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
VOLUME_MODES = ("Block", "Filesystem")


def access_modes(modes: list[str], path: str) -> Errors:
    """Known ones, and ReadWriteOncePod alone."""
    for mode in modes:
        if mode not in ACCESS_MODES:
            yield not_supported(path, mode, ACCESS_MODES)
    if "ReadWriteOncePod" in modes and any(m != "ReadWriteOncePod" and m in ACCESS_MODES for m in modes):
        yield forbidden(path, "may not use ReadWriteOncePod with other access modes")


def validate_claim_spec(spec: Object, path: str, any_selector_value: bool = False, any_source_group: bool = False) -> Errors:
    modes = spec.get("accessModes") or []
    if not modes:
        yield required(f"{path}.accessModes", "at least 1 access mode is required")
    yield from validate_label_selector(spec.get("selector"), f"{path}.selector", any_selector_value)
    yield from access_modes(modes, f"{path}.accessModes")
    storage = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    here = f"{path}.resources[storage]"
    if storage is None:
        yield required(here)
    else:
        first = None
        for first in positive_quantity(storage, here):
            yield first
        if first is None:
            yield from quantity_value("storage", storage, here)
    if spec.get("storageClassName"):
        yield from messages(f"{path}.storageClassName", spec["storageClassName"], names.is_dns1123_subdomain(spec["storageClassName"]))
    mode = spec.get("volumeMode")
    if mode is not None and mode not in VOLUME_MODES:
        yield not_supported(f"{path}.volumeMode", mode, VOLUME_MODES)
    source, ref = spec.get("dataSource"), spec.get("dataSourceRef")
    if source is not None:
        yield from _data_source(source, f"{path}.dataSource", any_source_group)
    if ref is not None:
        yield from _data_source(ref, f"{path}.dataSourceRef", any_source_group)
        if ref.get("namespace"):
            yield from messages(f"{path}.dataSourceRef.namespace", ref["namespace"], names.is_dns1123_label(ref["namespace"]))
    if source is not None and ref is not None:
        if ref.get("namespace"):
            yield invalid(path, _PATH, "may not be specified when dataSourceRef.namespace is specified")
        elif any(source.get(f) != ref.get(f) for f in ("apiGroup", "kind", "name")):
            yield invalid(path, _PATH, "must match dataSourceRef")
    if spec.get("volumeAttributesClassName"):
        yield from messages(f"{path}.volumeAttributesClassName", spec["volumeAttributesClassName"],
                            names.is_dns1123_subdomain(spec["volumeAttributesClassName"]))


_PATH: dict[str, str] = {}        # upstream prints the path object itself here, which has no exported fields


def _data_source(source: Object, path: str, any_group: bool) -> Errors:
    for field in ("name", "kind"):
        if not source.get(field):
            yield required(f"{path}.{field}")
    group = source.get("apiGroup") or ""
    if not group and source.get("kind", "") != "PersistentVolumeClaim":
        yield invalid(path, source.get("kind", ""), "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
    if group and not any_group:
        yield from messages(f"{path}.apiGroup", group, names.is_dns1123_subdomain(group))


# Only labels and annotations of a template's metadata mean anything.
_NOT_IN_TEMPLATES = ("name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", "generation", "creationTimestamp",
                     "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "finalizers", "managedFields")


def validate_claim_template(template: Object, path: str) -> Errors:
    """The volumeClaimTemplate of an ephemeral volume."""
    yield from validate_template_metadata(template.get("metadata") or {}, f"{path}.metadata")
    yield from validate_claim_spec(template.get("spec") or {}, f"{path}.spec")


def validate_template_metadata(metadata: Object, path: str) -> Errors:
    yield from validate_annotations(metadata.get("annotations"), f"{path}.annotations")
    yield from validate_labels(metadata.get("labels"), f"{path}.labels")
    for field in _NOT_IN_TEMPLATES:
        if metadata.get(field):
            yield forbidden(f"{path}.{'uID' if field == 'uid' else field}", "cannot be set")
