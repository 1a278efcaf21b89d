"""Validation of a Pod on creation and on update through the main resource.

Upstream: pkg/apis/core/validation (ValidatePodCreate, ValidatePodUpdate), KEP-3838 (gated pods may be narrowed).
"""

from __future__ import annotations

from collections.abc import Iterator

from kubern.model import names
from kubern.model.invalid import FieldError, forbidden, invalid, required
from kubern.model.kinds.containers import image_spelling
from kubern.model.kinds.equal import semantic_equal
from kubern.model.kinds.internal_form import difference, pod_spec
from kubern.model.kinds.labels import annotations_of
from kubern.model.kinds.leeway import FOR_POD, Leeway, leeway
from kubern.model.kinds.placement import only_added_tolerations, only_tightened_node_affinity
from kubern.model.kinds.pod_prepare import spec_of
from kubern.model.kinds.pod_security import APPARMOR_CONTAINER, annotations_match_fields
from kubern.model.kinds.pod_spec import MIRROR, validate_pod_annotations, validate_pod_spec
from kubern.model.likeness import Kept, likeness
from kubern.model.object import Object, meta

Errors = Iterator[FieldError]
UPDATABLE = ",".join((
    "`spec.containers[*].image`", "`spec.initContainers[*].image`", "`spec.activeDeadlineSeconds`",
    "`spec.tolerations` (only additions to existing tolerations)",
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"))


def whole(pod: Object, leeway_: Leeway) -> Errors:
    """What holds for a pod at any time."""
    spec, marks = spec_of(pod), annotations_of(pod)
    yield from validate_pod_annotations(marks, spec, "metadata.annotations", leeway_)
    yield from validate_pod_spec(spec, "spec", leeway_, meta(pod))
    if not spec.get("serviceAccountName"):
        for i, v in enumerate(spec.get("volumes") or ()):
            for j, s in enumerate((v.get("projected") or {}).get("sources") or ()):
                if s.get("serviceAccountToken") is not None:
                    yield forbidden(f"spec.volumes[{i}].projected.sources[{j}].serviceAccountToken",
                                    "must not be specified when serviceAccountName is not set")
    for which in ("containers", "initContainers"):
        for i, c in enumerate(spec.get(which) or ()):
            yield from image_spelling(c, f"spec.{which}[{i}]")


_valid: Kept[bool] = Kept()


def validate(pod: Object) -> list[FieldError]:
    spec = spec_of(pod)
    own = spec.get("resourceClaims") or any("ephemeral" in v for v in spec.get("volumes") or ())    # depend on the pod's name
    key = b"" if own else likeness((spec, annotations_of(pod)))
    if _valid.get(key):
        return []
    errors = list(_create(pod))
    if not errors:
        _valid.keep(key, True)
    return errors


def _create(pod: Object) -> Errors:
    spec = spec_of(pod)
    yield from whole(pod, FOR_POD)
    if spec.get("ephemeralContainers"):
        yield forbidden("spec.ephemeralContainers", "cannot be set on create")
    if spec.get("nodeName") and spec.get("schedulingGates"):
        yield forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared")
    yield from annotations_match_fields(annotations_of(pod), spec, "spec")


def leeway_of(old: Object) -> Leeway:
    return leeway(spec_of(old), annotations_of(old), is_pod=True)


def validate_update(new: Object, old: Object) -> list[FieldError]:
    return list(_update(new, old, leeway_of(old)))


def _update(new: Object, old: Object, leeway_: Leeway) -> Errors:
    spec, before = spec_of(new), spec_of(old)
    yield from whole(new, leeway_)
    yield from annotation_changes(new, old, leeway_)
    for which in ("containers", "initContainers"):
        mine = spec.get(which) or []
        if len(mine) != len(before.get(which) or ()):
            yield forbidden(f"spec.{which}", "pod updates may not add or remove containers")
            return
        for i, c in enumerate(mine):
            if not c.get("image"):
                yield required(f"spec.{which}[{i}].image")
            yield from image_spelling(c, f"spec.{which}[{i}]")
    deadline, was = spec.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    if deadline is not None:
        if not 0 <= deadline <= 2147483647:
            yield invalid("spec.activeDeadlineSeconds", deadline, names.between(0, 2147483647))
            return
        if was is not None and was < deadline:
            yield invalid("spec.activeDeadlineSeconds", deadline, "must be less than or equal to previous value")
            return
    elif was is not None:
        yield invalid("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value")
    yield from only_added_tolerations(spec.get("tolerations") or [], before.get("tolerations") or [], "spec.tolerations", leeway_.comparisons)
    yield from _only_removed_gates(spec.get("schedulingGates") or [], before.get("schedulingGates") or [])
    if not semantic_equal(spec, before):
        yield from _unchangeable(spec, before)


def annotation_changes(new: Object, old: Object, leeway_: Leeway) -> Errors:
    marks, before = annotations_of(new), annotations_of(old)
    for key in before:
        if marks.get(key) != before[key]:
            if key.startswith(APPARMOR_CONTAINER):
                yield forbidden(f"metadata.annotations[{key}]", "may not remove or update AppArmor annotations")
            elif key == MIRROR:
                yield forbidden(f"metadata.annotations[{key}]", "may not remove or update mirror pod annotation")
    for key in marks:
        if key not in before:
            if key.startswith(APPARMOR_CONTAINER):
                yield forbidden(f"metadata.annotations[{key}]", "may not add AppArmor annotations")
            elif key == MIRROR:
                yield forbidden(f"metadata.annotations[{key}]", "may not add mirror pod annotation")
    yield from validate_pod_annotations(marks, spec_of(new), "metadata.annotations", leeway_)


def _only_removed_gates(new: list[Object], old: list[Object]) -> Errors:
    known = {g.get("name") for g in old}
    for i, gate in enumerate(new):
        if gate.get("name") not in known:
            yield forbidden(f"spec.schedulingGates[{i}].name", f"only deletion is allowed, but found new scheduling gate '{gate.get('name', '')}'")


def _unchangeable(spec: Object, before: Object) -> Errors:
    """All but the few fields that may change; a gated pod's node selection may be narrowed too."""
    munged = dict(spec)
    for which in ("containers", "initContainers"):
        if spec.get(which):
            munged[which] = [{**c, "image": o.get("image", "")} for c, o in zip(spec[which], before[which], strict=True)]
    for field in ("activeDeadlineSeconds", "schedulingGates", "tolerations"):
        restore(munged, before, field)
    if (before.get("terminationGracePeriodSeconds") or 0) < 0 and munged.get("terminationGracePeriodSeconds") == 1:
        munged["terminationGracePeriodSeconds"] = before["terminationGracePeriodSeconds"]
    if before.get("schedulingGates"):
        selector, was = spec.get("nodeSelector") or {}, before.get("nodeSelector") or {}
        if any(selector.get(k) != v for k, v in was.items()):
            yield invalid("spec.nodeSelector", selector or None, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
        restore(munged, before, "nodeSelector")
        yield from _gated_affinity(munged, before)
    if not semantic_equal(munged, before):
        yield forbidden("spec", f"pod updates may not change fields other than {UPDATABLE}\n{difference(pod_spec(before), pod_spec(munged))}")


def restore(munged: Object, before: Object, field: str) -> None:
    if field in before:
        munged[field] = before[field]
    else:
        munged.pop(field, None)


def _gated_affinity(munged: Object, before: Object) -> Errors:
    affinity, old_affinity = munged.get("affinity"), before.get("affinity")
    node, was = (affinity or {}).get("nodeAffinity"), (old_affinity or {}).get("nodeAffinity")
    if semantic_equal(node, was):
        return
    yield from only_tightened_node_affinity(node, was, "spec.affinity.nodeAffinity")
    rest = {k: v for k, v in (affinity or {}).items() if k != "nodeAffinity"}
    if was is not None:
        munged["affinity"] = {**rest, "nodeAffinity": was}
    elif rest or old_affinity is not None:
        munged["affinity"] = rest
    else:
        munged.pop("affinity", None)
