"""A Pod's two other ways of being written: `resize` and `ephemeralcontainers`. Each has prepare(new, old) and validate(new, old).

Upstream: pkg/registry/core/pod/strategy.go, pkg/apis/core/validation (ValidatePodResize, ValidatePodEphemeralContainersUpdate),
KEP-1287 (in-place resize), KEP-277 (ephemeral containers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubern.model.invalid import FieldError, forbidden, invalid
from kubern.model.kinds.equal import semantic_equal
from kubern.model.kinds.internal_form import difference, struct
from kubern.model.kinds.labels import annotations_of
from kubern.model.kinds.pod_change import annotation_changes, leeway_of, restore, whole
from kubern.model.kinds.pod_prepare import keep_status, spec_of
from kubern.model.kinds.pod_resources import is_sidecar, qos_class
from kubern.model.kinds.pod_spec import MIRROR
from kubern.model.object import Object, meta

Errors = Iterator[FieldError]


# Ephemeral containers ----------------------------------------------------------------------------------------------------------

def prepare_ephemeral(new: Object, old: Object) -> None:
    """PUT …/ephemeralcontainers changes nothing else; other changes are silently dropped."""
    mine = spec_of(new).get("ephemeralContainers")
    new["spec"] = {k: v for k, v in spec_of(old).items() if k != "ephemeralContainers"} | ({"ephemeralContainers": mine} if mine else {})
    keep_status(new, old)
    _keep_metadata(new, old)


def _keep_metadata(new: Object, old: Object) -> None:
    """As for a status update: only labels and annotations … are not even those; managed fields are handled elsewhere."""
    kept = {k: v for k, v in meta(new).items() if k in ("resourceVersion", "uid", "managedFields", "name", "namespace")}
    new["metadata"] = {**{k: v for k, v in meta(old).items() if k not in ("resourceVersion", "managedFields")}, **kept}


def validate_ephemeral(new: Object, old: Object) -> list[FieldError]:
    if MIRROR in annotations_of(old):
        return [forbidden("", "static pods do not support ephemeral containers")]
    leeway_ = leeway_of(old)
    out = [*whole(new, leeway_), *annotation_changes(new, old, leeway_)]
    now = {c.get("name", ""): c for c in spec_of(new).get("ephemeralContainers") or ()}
    for was in spec_of(old).get("ephemeralContainers") or ():
        name = was.get("name", "")
        if name not in now:
            out.append(forbidden("spec.ephemeralContainers", f'existing ephemeral containers "{name}" may not be removed\n'))
        elif not semantic_equal(was, now[name]):
            shown = difference(struct("EphemeralContainer", was), struct("EphemeralContainer", now[name]))
            out.append(forbidden("spec.ephemeralContainers", f'existing ephemeral containers "{name}" may not be changed\n{shown}'))
    return out


# Resize ------------------------------------------------------------------------------------------------------------------------

def prepare_resize(new: Object, old: Object) -> None:
    """PUT …/resize changes resources and resize policies; other changes are silently dropped (KEP-1287)."""
    spec, before = spec_of(new), spec_of(old)
    if any(len(spec.get(w) or ()) != len(before.get(w) or ()) for w in ("containers", "initContainers")):
        return
    merged = dict(before)
    for which in ("containers", "initContainers"):
        if spec.get(which):
            merged[which] = _only_resources(spec[which], before[which])
    restore(merged, spec, "resources")
    new["spec"] = merged
    keep_status(new, old)
    _keep_metadata(new, old)


def _only_resources(new: list[Object], old: list[Object]) -> list[Object]:
    out = []
    for c, was in zip(new, old, strict=True):
        if c.get("name") != was.get("name"):
            return new
        merged = dict(was)
        for field in ("resources", "resizePolicy"):
            restore(merged, c, field)
        merged.setdefault("resources", {})
        out.append(merged)
    return out


def validate_resize(new: Object, old: Object) -> list[FieldError]:
    if MIRROR in annotations_of(old):
        return [forbidden("", "static pods cannot be resized")]
    if (spec_of(old).get("os") or {}).get("name") == "windows":
        return [forbidden("", "windows pods cannot be resized")]
    return list(_resize(new, old))


def _resize(new: Object, old: Object) -> Errors:
    spec, before = spec_of(new), spec_of(old)
    count = 0
    for e in _resize_early(new, old):
        count += 1
        yield e
    for e in (ordering := list(_same_containers(spec, before))):
        yield e
    if ordering:
        return
    munged = dict(spec)
    for e in _container_resizes(spec, before, munged):
        count += 1
        yield e
    if spec.get("resources") is not None or before.get("resources") is not None:
        munged["resources"] = _keep_compute(spec.get("resources"), before.get("resources"))
        if munged["resources"] is None:
            del munged["resources"]
    if not count and not semantic_equal(munged, before):
        yield forbidden("spec", "only cpu and memory resources are mutable")


def _resize_early(new: Object, old: Object) -> Errors:
    spec, before, status = spec_of(new), spec_of(old), old.get("status") or {}
    yield from whole(new, leeway_of(old))
    was = status.get("qosClass") or qos_class(before)
    if was != qos_class(spec):
        yield invalid("spec", (new.get("status") or {}).get("qosClass", ""), "Pod QOS Class may not change as a result of resizing")
    running = next((s for s in status.get("containerStatuses") or () if (s.get("state") or {}).get("running") is not None), None)
    if running is not None and running.get("resources") is None:
        yield forbidden("spec", "Pod running on node without support for resize")
    if _has_amounts(spec.get("resources")) or _has_amounts(before.get("resources")):
        yield from _pod_level_resize(spec, before)
    if status.get("nodeAllocatableResourceClaimStatuses"):
        yield forbidden("spec", "pods with node allocatable resource claims cannot be resized")


def _has_amounts(resources: Object | None) -> bool:
    return bool((resources or {}).get("requests") or (resources or {}).get("limits"))


def _pod_level_resize(spec: Object, before: Object) -> Errors:
    now, was = spec.get("resources"), before.get("resources")
    if was is not None and now is None:
        yield forbidden("spec.resources", "pod-level resources cannot be removed")
        return
    for side in ("requests", "limits") if was is not None else ():
        if _removed(now, was, side):
            yield forbidden(f"spec.resources.{side}", f"pod-level resource {side} cannot be removed")
    if not semantic_equal(_keep_compute(now, was), was):
        yield forbidden("spec", "only cpu and memory resources are mutable at pod-level")


def _removed(new: Object | None, old: Object | None, side: str) -> bool:
    return bool(((old or {}).get(side) or {}).keys() - ((new or {}).get(side) or {}).keys())


def _keep_compute(new: Object | None, old: Object | None) -> Object | None:
    """The new requirements with the old cpu and memory: what is left of a change that is not of those two."""
    if new is None:
        return None
    out: dict[str, Any] = {}
    for side in ("requests", "limits"):
        before = (old or {}).get(side) or {}
        amounts = {k: v for k, v in (new.get(side) or {}).items() if k not in ("cpu", "memory")}
        amounts.update({k: before[k] for k in ("cpu", "memory") if k in before})
        if amounts:
            out[side] = amounts
    if new.get("claims"):
        out["claims"] = new["claims"]
    return out if out or old is not None else None


def _same_containers(spec: Object, before: Object) -> Errors:
    for which in ("containers", "initContainers"):
        mine, theirs = spec.get(which) or [], before.get(which) or []
        if len(mine) != len(theirs):
            yield forbidden(f"spec.{which}", f"{which} may not be added or removed on resize")
        else:
            for i, (c, was) in enumerate(zip(mine, theirs, strict=True)):
                if c.get("name") != was.get("name"):
                    yield forbidden(f"spec.{which}[{i}].name", f"{which} may not be renamed or reordered on resize")


def _container_resizes(spec: Object, before: Object, munged: Object) -> Errors:
    for which in ("initContainers", "containers"):
        for i, was in enumerate(before.get(which) or ()):
            for side in ("requests", "limits"):
                if _removed(spec[which][i].get("resources"), was.get("resources"), side):
                    yield forbidden(f"spec.{which}[{i}].resources.{side}", f"resource {side} cannot be removed")
    for which in ("containers", "initContainers"):
        if not spec.get(which):
            continue
        kept = []
        for i, (c, was) in enumerate(zip(spec[which], before[which], strict=True)):
            resources = _keep_compute({k: v for k, v in (c.get("resources") or {}).items() if k != "claims"}, was.get("resources") or {})
            same = {**c, "resources": resources}
            if not semantic_equal(same, was):
                if which == "containers":
                    yield forbidden("spec", "only cpu and memory resources are mutable")
                else:
                    yield forbidden(f"spec.initContainers[{i}]", "only cpu and memory resources for init or sidecar containers are mutable")
            if which == "initContainers" and not is_sidecar(c) and not semantic_equal(c, was):
                for p in c.get("resizePolicy") or ():
                    if p.get("restartPolicy") == "RestartContainer":
                        yield forbidden(f"spec.initContainers[{i}]",
                                        "non-sidecar init containers with a resize policy of RestartContainer cannot be resized")
            kept.append(same)
        munged[which] = kept
