"""apps/v1 StatefulSet. Upstream: pkg/apis/apps/{v1/defaults.go,validation}, pkg/registry/apps/statefulset."""

from __future__ import annotations

from typing import Any

from kubern.model import names
from kubern.model.invalid import forbidden, invalid, required
from kubern.model.kinds.checks import (
    Errors,
    form,
    int_or_percent_value,
    keep_spec,
    listed,
    nonnegative,
    nonnegative_int_or_percent,
    not_more_than_100_percent,
    one_of,
    same,
    selector_form,
    selector_of,
)
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import validate_annotations, validate_labels
from kubern.model.kinds.pod_defaults import default_pod_template
from kubern.model.kinds.templates import claim_spec_warnings, default_claim, validate_claim_spec, validate_template
from kubern.model.kinds.workload_rules import (
    TEMPLATE,
    always_running,
    at_most,
    collision_count,
    counts,
    create_with,
    fill,
    labels_match,
    old_template,
    part,
    selector_errors,
    spec_of,
    template_of,
    update_with_template,
    workload_warnings,
)
from kubern.model.object import Object


def default_stateful_set(obj: Object) -> None:
    spec = spec_of(obj)
    if not spec.get("podManagementPolicy"):
        spec["podManagementPolicy"] = "OrderedReady"
    strategy = part(spec, "updateStrategy")
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
        part(strategy, "rollingUpdate")
    if strategy["type"] == "RollingUpdate" and strategy.get("rollingUpdate") is not None:
        fill(strategy["rollingUpdate"], {"partition": 0})
    retention = part(spec, "persistentVolumeClaimRetentionPolicy")
    for when in ("whenDeleted", "whenScaled"):
        if not retention.get(when):
            retention[when] = "Retain"
    fill(spec, {"replicas": 1, "revisionHistoryLimit": 10})
    for claim in spec.get("volumeClaimTemplates") or ():
        default_claim(claim)
        claim["apiVersion"], claim["kind"] = "v1", "PersistentVolumeClaim"
    default_pod_template(spec.setdefault("template", {}))


def _drop_max_unavailable(new: Object, old: Object | None) -> None:
    """updateStrategy.rollingUpdate.maxUnavailable is behind a gate that is off."""
    def rolling(obj: Object) -> Object:
        return ((obj.get("spec") or {}).get("updateStrategy") or {}).get("rollingUpdate") or {}

    if old is None or rolling(old).get("maxUnavailable") is None:
        rolling(new).pop("maxUnavailable", None)


_fresh_stateful_set = create_with({"replicas": 0, "availableReplicas": 0})


def _create_stateful_set(obj: Object) -> None:
    _fresh_stateful_set(obj)
    _drop_max_unavailable(obj, None)


def _update_stateful_set(new: Object, old: Object) -> None:
    update_with_template(new, old)
    _drop_max_unavailable(new, old)


def _stateful_strategy(strategy: Object, path: str) -> Errors:
    type_, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if not type_:
        yield required(path)
    elif type_ == "OnDelete":
        if rolling is not None:
            yield invalid(f"{path}.rollingUpdate", form({"partition": 0, **rolling}, "apps.RollingUpdateStatefulSetStrategy"),
                          "only allowed for updateStrategy 'RollingUpdate'")
    elif type_ == "RollingUpdate":
        if rolling is not None:
            yield from nonnegative(rolling.get("partition"), f"{path}.rollingUpdate.partition")
            unavailable = rolling.get("maxUnavailable")
            if unavailable is not None:
                here = f"{path}.rollingUpdate.maxUnavailable"
                yield from nonnegative_int_or_percent(unavailable, here)
                if int_or_percent_value(unavailable) == 0:
                    yield invalid(here, unavailable, "cannot be 0")
                yield from not_more_than_100_percent(unavailable, here)
    else:
        yield invalid(path, form(strategy, "apps.StatefulSetUpdateStrategy"), "must be 'RollingUpdate' or 'OnDelete'")


def _stateful_template(spec: Object, selector: Any, old: Object | None, skip_template: bool) -> Errors:
    template = template_of(spec)
    yield from labels_match(spec, selector)
    pod = template.get("spec") or {}
    claims = spec.get("volumeClaimTemplates") or ()
    checked = template
    if pod.get("subdomain") or pod.get("hostname") or claims:
        # the set gives these itself: names of its pods, and one volume a claim template
        own = {(c.get("metadata") or {}).get("name") or "" for c in claims}
        volumes = [{"name": n, "persistentVolumeClaim": {"claimName": n}} for n in sorted(own)]
        volumes += [v for v in pod.get("volumes") or () if v.get("name") not in own]
        checked = {**template, "spec": {**{k: v for k, v in pod.items() if k not in ("subdomain", "hostname")}, "volumes": volumes}}
    if not skip_template:
        yield from validate_template(checked, TEMPLATE, old_template(old))
    metadata = template.get("metadata") or {}
    yield from validate_labels(metadata.get("labels"), f"{TEMPLATE}.labels")
    yield from validate_annotations(metadata.get("annotations"), f"{TEMPLATE}.annotations")


def _validate_stateful_spec(spec: Object, old: Object | None, skip_template: bool) -> Errors:
    management = spec.get("podManagementPolicy")
    if not management:
        yield required("spec.podManagementPolicy")
    elif management not in ("OrderedReady", "Parallel"):
        yield invalid("spec.podManagementPolicy", management, "must be 'OrderedReady' or 'Parallel'")
    yield from _stateful_strategy(spec.get("updateStrategy") or {}, "spec.updateStrategy")
    retention = spec.get("persistentVolumeClaimRetentionPolicy")
    if retention is not None:
        for when in ("whenDeleted", "whenScaled"):
            yield from one_of(retention.get(when), ("Retain", "Delete"), f"spec.persistentVolumeClaimRetentionPolicy.{when}")
    if old is None:
        for i, claim in enumerate(spec.get("volumeClaimTemplates") or ()):
            yield from validate_claim_spec(claim.get("spec") or {}, f"spec.volumeClaimTemplates[{i}].spec")
    yield from nonnegative(spec.get("replicas"), "spec.replicas")
    yield from nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
    yield from nonnegative((spec.get("ordinals") or {}).get("start"), "spec.ordinals.start")
    if old is None and spec.get("serviceName"):
        for text in names.is_dns1123_label(spec["serviceName"]):
            yield invalid("spec.serviceName", spec["serviceName"], text)
    yield from selector_errors(spec, "statefulset")
    selector = selector_of(spec.get("selector"))
    if selector is None:
        yield invalid("spec.selector", selector_form(spec.get("selector")), "")
    else:
        yield from _stateful_template(spec, selector, old, skip_template)
    yield from always_running(spec, "StatefulSet")


def validate_stateful_set(obj: Object) -> Errors:
    return _validate_stateful_spec(obj.get("spec") or {}, None, False)


_STATEFUL_MUTABLE = ("replicas", "template", "updateStrategy", "minReadySeconds", "ordinals", "revisionHistoryLimit",
                     "persistentVolumeClaimRetentionPolicy")


def validate_stateful_set_update(new: Object, old: Object) -> Errors:
    spec, before = new.get("spec") or {}, old.get("spec") or {}
    broken = not same(spec.get("template"), before.get("template")) and next(_validate_stateful_spec(before, old, False), None) is not None
    yield from _validate_stateful_spec(spec, old, broken)
    fixed = (spec.keys() | before.keys()) - set(_STATEFUL_MUTABLE)
    if not all(same(spec.get(k), before.get(k)) for k in fixed):
        yield forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', "
                                "'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden")


def validate_stateful_set_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from counts(status, "replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas", "observedGeneration",
                       "collisionCount")
    yield from at_most(status, "replicas", "status.replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas")
    yield from at_most(status, "readyReplicas", "status.readyReplicas", "availableReplicas")
    yield from collision_count(new, old)


def _stateful_set_warnings(new: Object, old: Object | None) -> list[str]:
    out = workload_warnings(new, old)
    spec = new.get("spec") or {}
    for i, claim in enumerate(spec.get("volumeClaimTemplates") or ()):
        path = f"spec.volumeClaimTemplates[{i}]" + (".Spec" if old is not None else "")
        out += claim_spec_warnings(claim.get("spec") or {}, path)
    if (spec.get("revisionHistoryLimit") or 0) < 0:
        out.append("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
    return out


KINDS: KindTable = {
    ("apps", "StatefulSet"): Kind(
        defaults=default_stateful_set,
        prepare_create=_create_stateful_set, prepare_update=_update_stateful_set, prepare_status=keep_spec,
        validate=listed(validate_stateful_set), validate_update=listed(validate_stateful_set_update),
        validate_status=listed(validate_stateful_set_status), warnings=_stateful_set_warnings,
        name_check=names.name_is_dns_label, has_generation=True),
}
