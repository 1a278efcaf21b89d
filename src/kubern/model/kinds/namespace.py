"""Namespace, and ComponentStatus which is only read.

Upstream: pkg/registry/core/namespace/strategy.go, pkg/apis/core/validation (ValidateNamespace and its like).
"""

from __future__ import annotations

from collections.abc import Iterator

from kubern.model import names
from kubern.model.invalid import FieldError, invalid
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import messages
from kubern.model.object import Object
from kubern.model.object import name as name_of

Errors = Iterator[FieldError]
NAME_LABEL = "kubernetes.io/metadata.name"
STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")


def defaults(ns: Object) -> None:
    if name := name_of(ns):
        m = ns["metadata"]
        m["labels"] = {**(m.get("labels") or {}), NAME_LABEL: name}
    status = ns.setdefault("status", {})
    if not status.get("phase"):
        status["phase"] = "Active"
    ns.setdefault("spec", {})


def prepare_create(ns: Object) -> None:
    ns["status"] = {"phase": "Active"}
    spec = ns.setdefault("spec", {})
    finalizers = spec.get("finalizers") or []
    if "kubernetes" not in finalizers:
        spec["finalizers"] = [*finalizers, "kubernetes"]
    if name := name_of(ns):                                   # a generated name is known only now
        m = ns["metadata"]
        m["labels"] = {**(m.get("labels") or {}), NAME_LABEL: name}


def prepare_update(new: Object, old: Object) -> None:
    new["status"] = old.get("status") or {}
    spec, before = new.setdefault("spec", {}), old.get("spec") or {}
    if before.get("finalizers"):
        spec["finalizers"] = before["finalizers"]
    else:
        spec.pop("finalizers", None)


def prepare_status(new: Object, old: Object) -> None:
    new["spec"] = old.get("spec") or {}


def _finalizer(text: str, path: str) -> Errors:
    yield from messages(path, text, names.is_qualified_name(text))
    if "/" not in text and text not in STANDARD_FINALIZERS:
        yield invalid(path, text, "name is neither a standard finalizer name nor is it fully qualified")


def validate(ns: Object) -> list[FieldError]:
    return [e for f in (ns.get("spec") or {}).get("finalizers") or () for e in _finalizer(f, "spec.finalizers")]


def validate_status(new: Object, old: Object) -> list[FieldError]:
    phase = (new.get("status") or {}).get("phase", "")
    if not (new.get("metadata") or {}).get("deletionTimestamp"):
        return [] if phase == "Active" else [invalid("status.Phase", phase, "may only be 'Active' if `deletionTimestamp` is empty")]
    return [] if phase == "Terminating" else [invalid("status.Phase", phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")]


KINDS: KindTable = {
    ("", "Namespace"): Kind(
        defaults=defaults, prepare_create=prepare_create, prepare_update=prepare_update, prepare_status=prepare_status,
        validate=validate, validate_update=lambda new, old: validate(new), validate_status=validate_status,
        name_check=names.name_is_dns_label, meta_again=1, delete_returns_object=True),
    ("", "ComponentStatus"): Kind(),
}
