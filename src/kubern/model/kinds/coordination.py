"""coordination.k8s.io/v1: Lease. Upstream: pkg/apis/coordination/validation, pkg/registry/coordination/lease."""

from __future__ import annotations

from kubern.model.invalid import invalid
from kubern.model.kinds.checks import Errors, listed
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.object import Object

_GATED = ("strategy", "preferredHolder")  # coordinated leader election (KEP-4355) is off


def _create(obj: Object) -> None:
    spec = obj.get("spec") or {}
    for field in _GATED:
        spec.pop(field, None)


def _update(new: Object, old: Object) -> None:
    spec, before = new.get("spec") or {}, old.get("spec") or {}
    for field in _GATED:
        if before.get(field) is None:
            spec.pop(field, None)


def validate_lease(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if duration is not None and duration <= 0:
        yield invalid("spec.leaseDurationSeconds", duration, "must be greater than 0")
    if transitions is not None and transitions < 0:
        yield invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0")


KINDS: KindTable = {
    ("coordination.k8s.io", "Lease"): Kind(
        prepare_create=_create, prepare_update=_update, validate=listed(validate_lease), validate_update=listed(validate_lease),
        create_on_update=True, unconditional_update=False, qualified_finalizers=False),
}
