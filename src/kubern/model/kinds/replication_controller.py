"""ReplicationController.

Upstream: pkg/registry/core/replicationcontroller/strategy.go, pkg/apis/core/validation (ValidateReplicationController).
"""

from __future__ import annotations

from collections.abc import Iterator

from kubern.model import names
from kubern.model.invalid import FieldError, forbidden, invalid, not_supported, required
from kubern.model.kinds.equal import semantic_equal
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import annotations_of, set_matches
from kubern.model.kinds.leeway import leeway
from kubern.model.kinds.pod_defaults import default_pod_template
from kubern.model.kinds.pod_prepare import drop_disabled
from kubern.model.kinds.pod_spec import validate_pod_template
from kubern.model.kinds.pod_warnings import template_warnings
from kubern.model.kinds.workload_rules import at_most, counts, name_warning
from kubern.model.object import Object, meta

Errors = Iterator[FieldError]
NON_CONVERTIBLE = "non-convertible.kubernetes.io"


def defaults(rc: Object) -> None:
    spec = rc.setdefault("spec", {})
    template = spec.get("template")
    labels = ((template or {}).get("metadata") or {}).get("labels")
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        if not meta(rc).get("labels"):
            rc.setdefault("metadata", {})["labels"] = dict(labels)
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    default_pod_template(template)


def prepare_create(rc: Object) -> None:
    rc["status"] = {"replicas": 0}
    if template := (rc.get("spec") or {}).get("template"):
        drop_disabled(template.setdefault("spec", {}), None)


def prepare_update(new: Object, old: Object) -> None:
    new["status"] = old.get("status") or {"replicas": 0}
    if template := (new.get("spec") or {}).get("template"):
        drop_disabled(template.setdefault("spec", {}), ((old.get("spec") or {}).get("template") or {}).get("spec"))


def prepare_status(new: Object, old: Object) -> None:
    new["spec"] = old.get("spec") or {}


def _validate(rc: Object, old: Object | None) -> Errors:
    spec = rc.get("spec") or {}
    seconds, replicas, template, selector = spec.get("minReadySeconds", 0), spec.get("replicas"), spec.get("template"), spec.get("selector") or {}
    if seconds < 0:
        yield invalid("spec.minReadySeconds", seconds, names.NEGATIVE)
    if not selector:
        yield required("spec.selector")
    if replicas is None:
        yield required("spec.replicas")
    elif replicas < 0:
        yield invalid("spec.replicas", replicas, names.NEGATIVE)
    if template is None:
        yield required("spec.template")
        return
    labels = (template.get("metadata") or {}).get("labels")
    if selector and not set_matches(selector, labels):
        yield invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
    stored = ((old or {}).get("spec") or {}).get("template") or {}
    yield from validate_pod_template(template, "spec.template", leeway(stored.get("spec"), annotations_of(stored)))
    pod = template.get("spec") or {}
    if pod.get("restartPolicy") != "Always":
        yield not_supported("spec.template.spec.restartPolicy", pod.get("restartPolicy", ""), ("Always",))
    if pod.get("activeDeadlineSeconds") is not None:
        yield forbidden("spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in ReplicationController is not Supported")


def _update(new: Object, old: Object) -> Errors:
    yield from _validate(new, old)
    for key, value in annotations_of(old).items():
        if key.startswith(NON_CONVERTIBLE) and key.count("/") == 1:
            field = key.split("/")[1]
            if "selector" not in field:
                yield FieldError("FieldValueNotFound", field, value, "unknown non-convertible field")
            elif not semantic_equal((old.get("spec") or {}).get("selector"), (new.get("spec") or {}).get("selector")):
                yield invalid("spec.selector", (new.get("spec") or {}).get("selector"), "cannot update non-convertible selector")


def _status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from counts(status, "replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration")
    yield from at_most(status, "replicas", "status.replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas")
    yield from at_most(status, "readyReplicas", "readyReplicas", "availableReplicas")


def warnings(rc: Object, old: Object | None) -> list[str]:
    template = (rc.get("spec") or {}).get("template")
    if old is not None:
        return [] if semantic_equal(rc.get("spec"), old.get("spec")) else template_warnings((old.get("spec") or {}).get("template"), "spec.template")
    return name_warning(rc) + template_warnings(template, "spec.template")


KINDS: KindTable = {
    ("", "ReplicationController"): Kind(
        defaults=defaults, prepare_create=prepare_create, prepare_update=prepare_update, prepare_status=prepare_status,
        validate=lambda rc: list(_validate(rc, None)), validate_update=lambda new, old: list(_update(new, old)),
        validate_status=lambda new, old: list(_status(new, old)), warnings=warnings,
        has_generation=True, generation_changed=lambda new, old: not semantic_equal(new.get("spec"), old.get("spec")),
        default_propagation="Orphan", name_check=names.name_is_declared_subdomain),
}
