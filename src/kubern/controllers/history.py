"""ControllerRevisions: what StatefulSets and DaemonSets remember of their templates.

Upstream: pkg/controller/history, daemon/update.go.
"""

from __future__ import annotations

from typing import Any

from kubern.controllers.claim import controller_ref
from kubern.model.hash import fnv32a, safe_encode, sorted_members
from kubern.model.object import Object, labels, meta, name, namespace, notes

RESOURCE = "controllerrevisions.apps"
HASH = "controller.kubernetes.io/hash"              # label of a StatefulSet's revisions
POD_HASH = "controller-revision-hash"               # label of pods, and of a DaemonSet's revisions
NAME_MAX = 223


def snapshot(owner: Object) -> dict[str, Any]:
    """The data of a revision: the template as a patch that replaces it."""
    return {"spec": {"template": {**(owner["spec"].get("template") or {}), "$patch": "replace"}}}


def template_of(revision: Object, owner: Object) -> dict[str, Any]:
    """The owner's template as the revision remembers it."""
    template = ((revision.get("data") or {}).get("spec") or {}).get("template")
    if template is None:
        template = owner["spec"].get("template") or {}
    return {k: v for k, v in template.items() if k != "$patch"}


def same(revision: Object, data: dict[str, Any]) -> bool:
    return bool(revision.get("data") == data)


def order(revision: Object) -> tuple[int, str, str]:
    return revision.get("revision") or 0, meta(revision).get("creationTimestamp") or "", name(revision)


def new(owner: Object, number: int, label: str, collisions: int | None) -> Object:
    data = snapshot(owner)
    hash_ = safe_encode(str(fnv32a(data, collisions)))
    m: dict[str, Any] = {"name": f"{name(owner)[:NAME_MAX]}-{hash_}", "namespace": namespace(owner),
                         "labels": {**labels(owner["spec"].get("template") or {}), label: hash_}, "ownerReferences": [controller_ref(owner)]}
    if notes(owner):
        m["annotations"] = dict(notes(owner))
    # clients compare the data of a revision byte by byte with a template they write themselves (daemon.Match)
    return {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": m, "data": sorted_members(data), "revision": number}
