"""apps/v1: Deployment, ReplicaSet, ControllerRevision.

Upstream: pkg/apis/apps/{v1/defaults.go,validation}, pkg/registry/apps. StatefulSet and DaemonSet have files of their own.
"""

from __future__ import annotations

from typing import Any

from kubern.model.invalid import forbidden, invalid, not_supported, required
from kubern.model.kinds.checks import (
    Errors,
    form,
    int_or_percent_value,
    keep,
    keep_labels,
    keep_spec,
    listed,
    nonnegative,
    nonnegative_int_or_percent,
    not_more_than_100_percent,
    same,
)
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.pod_defaults import default_pod_template
from kubern.model.kinds.workload_rules import (
    at_most,
    collision_count,
    counts,
    create_with,
    default_rolling,
    fill,
    named_warnings,
    part,
    replica_template,
    selector_errors,
    selector_immutable,
    spec_of,
    update_with_template,
)
from kubern.model.object import Object

# --- Deployment -------------------------------------------------------------------------------------------------------------------------

def default_deployment(obj: Object) -> None:
    spec = spec_of(obj)
    fill(spec, {"replicas": 1})
    default_rolling(part(spec, "strategy"), {"maxUnavailable": "25%", "maxSurge": "25%"})
    fill(spec, {"revisionHistoryLimit": 10, "progressDeadlineSeconds": 600})
    default_pod_template(spec.setdefault("template", {}))


def _rolling_deployment(rolling: Object, path: str) -> Errors:
    unavailable, surge = rolling.get("maxUnavailable", 0), rolling.get("maxSurge", 0)
    yield from nonnegative_int_or_percent(unavailable, f"{path}.maxUnavailable")
    yield from nonnegative_int_or_percent(surge, f"{path}.maxSurge")
    if int_or_percent_value(unavailable) == 0 and int_or_percent_value(surge) == 0:
        yield invalid(f"{path}.maxUnavailable", unavailable, "may not be 0 when `maxSurge` is 0")
    yield from not_more_than_100_percent(unavailable, f"{path}.maxUnavailable")


def _deployment_strategy(strategy: Object, path: str) -> Errors:
    type_, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if type_ == "Recreate":
        if rolling is not None:
            yield forbidden(f"{path}.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
    elif type_ == "RollingUpdate":
        if rolling is None:
            yield required(f"{path}.rollingUpdate", "this should be defaulted and never be nil")
        else:
            yield from _rolling_deployment(rolling, f"{path}.rollingUpdate")
    else:
        yield not_supported(path, form(strategy, "apps.DeploymentStrategy"), ("Recreate", "RollingUpdate"))


def validate_deployment(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    yield from nonnegative(spec.get("replicas"), "spec.replicas")
    yield from selector_errors(spec, "deployment")
    yield from replica_template(spec, old)
    yield from _deployment_strategy(spec.get("strategy") or {}, "spec.strategy")
    yield from nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
    yield from nonnegative(spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None:
        yield from nonnegative(deadline, "spec.progressDeadlineSeconds")
        if deadline <= (spec.get("minReadySeconds") or 0):
            yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def _replica_update(check: Any) -> Any:
    """Deployments and ReplicaSets: valid, and the selector as it was."""

    def validate(new: Object, old: Object) -> Errors:
        yield from check(new, old)
        yield from selector_immutable(new, old)

    return validate


def validate_deployment_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from counts(status, "observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas",
                       "unavailableReplicas", "terminatingReplicas", "collisionCount")
    yield from at_most(status, "replicas", "status.replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    yield from at_most(status, "readyReplicas", "readyReplicas", "availableReplicas")
    yield from collision_count(new, old)


def _deployment_status(new: Object, old: Object) -> None:
    keep(new, old, "spec")
    keep_labels(new, old)


def _deployment_changed(new: Object, old: Object) -> bool:
    """Annotations count too: they are copied to ReplicaSets."""
    return not same(new.get("spec"), old.get("spec")) or not same(new["metadata"].get("annotations"), old["metadata"].get("annotations"))


# --- ReplicaSet -------------------------------------------------------------------------------------------------------------------------

def default_replica_set(obj: Object) -> None:
    spec = spec_of(obj)
    fill(spec, {"replicas": 1})
    default_pod_template(spec.setdefault("template", {}))


def validate_replica_set(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    yield from nonnegative(spec.get("replicas"), "spec.replicas")
    yield from nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
    yield from selector_errors(spec, "deployment")
    yield from replica_template(spec, old)


def validate_replica_set_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from counts(status, "replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration",
                       "terminatingReplicas")
    yield from at_most(status, "replicas", "status.replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas")
    yield from at_most(status, "readyReplicas", "readyReplicas", "availableReplicas")


# --- ControllerRevision -----------------------------------------------------------------------------------------------------------------

def validate_controller_revision(obj: Object) -> Errors:
    yield from nonnegative(obj.get("revision"), "revision")
    data = obj.get("data")
    if data is None:
        yield required("data", "data is mandatory")
    elif not isinstance(data, dict):
        yield required("data", "data must be a valid JSON object")


def validate_controller_revision_update(new: Object, old: Object) -> Errors:
    yield from nonnegative(new.get("revision"), "revision")
    if new.get("data") != old.get("data"):
        yield invalid("data", new.get("data"), "field is immutable")


KINDS: KindTable = {
    ("apps", "Deployment"): Kind(
        defaults=default_deployment,
        prepare_create=create_with({}), prepare_update=update_with_template, prepare_status=_deployment_status,
        validate=listed(validate_deployment), validate_update=listed(_replica_update(validate_deployment)),
        validate_status=listed(validate_deployment_status), warnings=named_warnings,
        has_generation=True, generation_changed=_deployment_changed),
    ("apps", "ReplicaSet"): Kind(
        defaults=default_replica_set,
        prepare_create=create_with({"replicas": 0}), prepare_update=update_with_template, prepare_status=keep_spec,
        validate=listed(validate_replica_set), validate_update=listed(_replica_update(validate_replica_set)),
        validate_status=listed(validate_replica_set_status), warnings=named_warnings, has_generation=True),
    ("apps", "ControllerRevision"): Kind(
        validate=listed(validate_controller_revision), validate_update=listed(validate_controller_revision_update)),
}
