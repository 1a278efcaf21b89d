"""apps/v1: Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision.

Upstream: pkg/apis/apps/{v1/defaults.go,v1/conversion.go,validation}, pkg/registry/apps. Pod templates: pod_defaults.py, pod_validate.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kubern.model import names
from kubern.model.invalid import forbidden, invalid, not_supported, required
from kubern.model.kinds.checks import (
    Errors,
    decremented,
    form,
    immutable,
    int_or_percent_value,
    keep,
    keep_labels,
    keep_spec,
    keep_status,
    listed,
    nonnegative,
    nonnegative_int_or_percent,
    not_more_than_100_percent,
    one_of,
    same,
    selector_form,
    selector_of,
    zero_status,
)
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import validate_annotations, validate_label_selector, validate_labels
from kubern.model.kinds.pod_defaults import default_pod_template
from kubern.model.kinds.templates import claim_spec_warnings, default_claim, prepare_template, template_warnings, validate_claim_spec, validate_template
from kubern.model.object import Object
from kubern.model.status import bad_request

TEMPLATE = "spec.template"


def _spec(obj: Object) -> Object:
    return obj.setdefault("spec", {})


def _set(obj: Object, field: str) -> Object:
    made: Object = {}
    obj[field] = made
    return made


# --- shared -----------------------------------------------------------------------------------------------------------------------------

def _selector(spec: Object, empty_text: str) -> Errors:
    selector = spec.get("selector")
    if selector is None:
        yield required("spec.selector")
        return
    yield from validate_label_selector(selector, "spec.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield invalid("spec.selector", {}, f"empty selector is invalid for {empty_text}")


def _selector_immutable(new: Object, old: Object) -> Errors:
    yield from immutable((new.get("spec") or {}).get("selector"), (old.get("spec") or {}).get("selector"), "spec.selector", "LabelSelector")


def _create_with(status: Object) -> Callable[[Object], None]:
    """prepare_create of what has a template and starts with this status."""
    fresh = zero_status(status)

    def prepare(obj: Object) -> None:
        fresh(obj)
        prepare_template(obj["spec"].get("template"))

    return prepare


def _update_with_template(new: Object, old: Object) -> None:
    keep_status(new, old)
    prepare_template((new.get("spec") or {}).get("template"), _old_template(old))


def _template_of(spec: Object) -> Object:
    return spec.get("template") or {}


def _labels_match(spec: Object, selector: Any) -> Errors:
    labels = (_template_of(spec).get("metadata") or {}).get("labels")
    if not selector.empty and not selector.matches(labels):
        yield invalid(f"{TEMPLATE}.metadata.labels", labels, "`selector` does not match template `labels`")


def _always_running(spec: Object, kind: str) -> Errors:
    pod = _template_of(spec).get("spec") or {}
    if pod.get("restartPolicy") != "Always":
        yield not_supported(f"{TEMPLATE}.spec.restartPolicy", pod.get("restartPolicy") or "", ("Always",))
    if pod.get("activeDeadlineSeconds") is not None:
        yield forbidden(f"{TEMPLATE}.spec.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not Supported")


def _replica_template(spec: Object, old: Object | None) -> Errors:
    """The template under a Deployment or ReplicaSet."""
    selector = selector_of(spec.get("selector"))
    if selector is None:
        yield invalid("spec.selector", selector_form(spec["selector"]), "invalid label selector")
        return
    yield from _labels_match(spec, selector)
    yield from validate_template(_template_of(spec), TEMPLATE, _old_template(old))
    yield from _always_running(spec, "ReplicaSet")


def _old_template(old: Object | None) -> Object | None:
    return None if old is None else (old.get("spec") or {}).get("template")


def _counts(status: Object, *fields: str) -> Errors:
    for f in fields:
        yield from nonnegative(status.get(f), f"status.{f}")


def _at_most(status: Object, total: str, text: str, *fields: str) -> Errors:
    for f in fields:
        if (status.get(f) or 0) > (status.get(total) or 0):
            yield invalid(f"status.{f}", status.get(f, 0), f"cannot be greater than {text}")


def _collision_count(new: Object, old: Object) -> Errors:
    now, before = (new.get("status") or {}).get("collisionCount"), (old.get("status") or {}).get("collisionCount")
    if decremented(now, before):
        yield invalid("status.collisionCount", now or 0, "cannot be decremented")


def _name_warning(obj: Object) -> list[str]:
    texts = names.is_dns1123_label(obj["metadata"].get("name") or "")
    return ["metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: "
            f"[{' '.join(texts)}]"] if texts else []


def _template_warnings(new: Object, old: Object | None) -> list[str]:
    """Templates are looked at when they are new or when something changed."""
    if old is not None and new["metadata"].get("generation") == old["metadata"].get("generation"):
        return []
    return template_warnings(_template_of(new.get("spec") or {}), TEMPLATE, _old_template(old))


def _named_warnings(new: Object, old: Object | None) -> list[str]:
    return [*(_name_warning(new) if old is None else ()), *_template_warnings(new, old)]


# --- Deployment -------------------------------------------------------------------------------------------------------------------------

def default_deployment(obj: Object) -> None:
    spec = _spec(obj)
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    strategy = spec.get("strategy")
    if strategy is None:
        strategy = _set(spec, "strategy")
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.get("rollingUpdate")
        if rolling is None:
            rolling = _set(strategy, "rollingUpdate")
        for limit in ("maxUnavailable", "maxSurge"):
            if rolling.get(limit) is None:
                rolling[limit] = "25%"
    if spec.get("revisionHistoryLimit") is None:
        spec["revisionHistoryLimit"] = 10
    if spec.get("progressDeadlineSeconds") is None:
        spec["progressDeadlineSeconds"] = 600
    default_pod_template(spec.setdefault("template", {}))


def _rolling_deployment(rolling: Object, path: str) -> Errors:
    unavailable, surge = rolling.get("maxUnavailable") or 0, rolling.get("maxSurge") or 0
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
    yield from _selector(spec, "deployment")
    yield from _replica_template(spec, old)
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
        yield from _selector_immutable(new, old)

    return validate


def validate_deployment_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from _counts(status, "observedGeneration", "replicas", "updatedReplicas", "readyReplicas", "availableReplicas",
                       "unavailableReplicas", "terminatingReplicas", "collisionCount")
    yield from _at_most(status, "replicas", "status.replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    yield from _at_most(status, "readyReplicas", "readyReplicas", "availableReplicas")
    yield from _collision_count(new, old)


def _deployment_status(new: Object, old: Object) -> None:
    keep(new, old, "spec")
    keep_labels(new, old)


def _deployment_changed(new: Object, old: Object) -> bool:
    """Annotations count too: they are copied to ReplicaSets."""
    return not same(new.get("spec"), old.get("spec")) or not same(new["metadata"].get("annotations"), old["metadata"].get("annotations"))


# --- ReplicaSet -------------------------------------------------------------------------------------------------------------------------

def default_replica_set(obj: Object) -> None:
    spec = _spec(obj)
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    default_pod_template(spec.setdefault("template", {}))


def validate_replica_set(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    yield from nonnegative(spec.get("replicas"), "spec.replicas")
    yield from nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
    yield from _selector(spec, "deployment")
    yield from _replica_template(spec, old)


def validate_replica_set_status(new: Object, old: Object) -> Errors:
    status = new.get("status") or {}
    yield from _counts(status, "replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration",
                       "terminatingReplicas")
    yield from _at_most(status, "replicas", "status.replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas")
    yield from _at_most(status, "readyReplicas", "readyReplicas", "availableReplicas")


# --- StatefulSet ------------------------------------------------------------------------------------------------------------------------

def default_stateful_set(obj: Object) -> None:
    spec = _spec(obj)
    if not spec.get("podManagementPolicy"):
        spec["podManagementPolicy"] = "OrderedReady"
    strategy = spec.get("updateStrategy")
    if strategy is None:
        strategy = _set(spec, "updateStrategy")
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
        if strategy.get("rollingUpdate") is None:
            strategy["rollingUpdate"] = {}
    rolling = strategy.get("rollingUpdate")
    if strategy["type"] == "RollingUpdate" and rolling is not None and rolling.get("partition") is None:
        rolling["partition"] = 0
    retention = spec.get("persistentVolumeClaimRetentionPolicy")
    if retention is None:
        retention = _set(spec, "persistentVolumeClaimRetentionPolicy")
    for when in ("whenDeleted", "whenScaled"):
        if not retention.get(when):
            retention[when] = "Retain"
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    if spec.get("revisionHistoryLimit") is None:
        spec["revisionHistoryLimit"] = 10
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


_fresh_stateful_set = _create_with({"replicas": 0, "availableReplicas": 0})


def _create_stateful_set(obj: Object) -> None:
    _fresh_stateful_set(obj)
    _drop_max_unavailable(obj, None)


def _update_stateful_set(new: Object, old: Object) -> None:
    _update_with_template(new, old)
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
    template = _template_of(spec)
    yield from _labels_match(spec, selector)
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
        yield from validate_template(checked, TEMPLATE, _old_template(old))
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
    yield from _selector(spec, "statefulset")
    selector = selector_of(spec.get("selector"))
    if selector is None:
        yield invalid("spec.selector", selector_form(spec.get("selector")), "")
    else:
        yield from _stateful_template(spec, selector, old, skip_template)
    yield from _always_running(spec, "StatefulSet")


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
    yield from _counts(status, "replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas", "observedGeneration",
                       "collisionCount")
    yield from _at_most(status, "replicas", "status.replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas")
    yield from _at_most(status, "readyReplicas", "status.readyReplicas", "availableReplicas")
    yield from _collision_count(new, old)


def _stateful_set_warnings(new: Object, old: Object | None) -> list[str]:
    out = _template_warnings(new, old)
    spec = new.get("spec") or {}
    for i, claim in enumerate(spec.get("volumeClaimTemplates") or ()):
        path = f"spec.volumeClaimTemplates[{i}]" + (".Spec" if old is not None else "")
        out += claim_spec_warnings(claim.get("spec") or {}, path)
    if (spec.get("revisionHistoryLimit") or 0) < 0:
        out.append("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
    return out


# --- DaemonSet --------------------------------------------------------------------------------------------------------------------------

TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"


def default_daemon_set(obj: Object) -> None:
    spec = _spec(obj)
    strategy = spec.get("updateStrategy")
    if strategy is None:
        strategy = _set(spec, "updateStrategy")
    if not strategy.get("type"):
        strategy["type"] = "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.get("rollingUpdate")
        if rolling is None:
            rolling = _set(strategy, "rollingUpdate")
        if rolling.get("maxUnavailable") is None:
            rolling["maxUnavailable"] = 1
        if rolling.get("maxSurge") is None:
            rolling["maxSurge"] = 0
    if spec.get("revisionHistoryLimit") is None:
        spec["revisionHistoryLimit"] = 10
    default_pod_template(spec.setdefault("template", {}))
    value = _template_generation(obj)
    if value is not None and not re.fullmatch(r"[+-]?\d+", value):
        raise bad_request('DaemonSet in version "v1" cannot be handled as a DaemonSet: strconv.ParseInt: parsing '
                          f'"{value}": invalid syntax')


def _template_generation(obj: Object) -> str | None:
    return (obj["metadata"].get("annotations") or {}).get(TEMPLATE_GENERATION)


def _set_template_generation(obj: Object, value: int) -> None:
    obj["metadata"]["annotations"] = {**(obj["metadata"].get("annotations") or {}), TEMPLATE_GENERATION: str(value)}


_fresh_daemon_set = _create_with({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0})


def _create_daemon_set(obj: Object) -> None:
    _fresh_daemon_set(obj)
    _set_template_generation(obj, max(1, int(_template_generation(obj) or 0)))


def _update_daemon_set(new: Object, old: Object) -> None:
    _update_with_template(new, old)
    changed = not same((new.get("spec") or {}).get("template"), (old.get("spec") or {}).get("template"))
    _set_template_generation(new, int(_template_generation(old) or 0) + changed)


def _status_daemon_set(new: Object, old: Object) -> None:
    keep_spec(new, old)
    _set_template_generation(new, int(_template_generation(old) or 0))


def _rolling_daemon_set(rolling: Object, path: str) -> Errors:
    unavailable, surge = rolling.get("maxUnavailable") or 0, rolling.get("maxSurge") or 0
    yield from nonnegative_int_or_percent(unavailable, f"{path}.maxUnavailable")
    yield from nonnegative_int_or_percent(surge, f"{path}.maxSurge")
    yield from not_more_than_100_percent(unavailable, f"{path}.maxUnavailable")
    yield from not_more_than_100_percent(surge, f"{path}.maxSurge")
    has_unavailable, has_surge = int_or_percent_value(unavailable) != 0, int_or_percent_value(surge) != 0
    if has_unavailable and has_surge:
        yield invalid(f"{path}.maxSurge", surge, "may not be set when maxUnavailable is non-zero")
    elif not has_unavailable and not has_surge:
        yield required(f"{path}.maxUnavailable", "cannot be 0 when maxSurge is 0")


def _daemon_strategy(strategy: Object, path: str) -> Errors:
    type_, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if type_ == "RollingUpdate":
        if rolling is None:
            yield required(f"{path}.rollingUpdate")
        else:
            yield from _rolling_daemon_set(rolling, f"{path}.rollingUpdate")
    elif type_ != "OnDelete":
        yield not_supported(path, form(strategy, "apps.DaemonSetUpdateStrategy"), ("RollingUpdate", "OnDelete"))


def validate_daemon_set(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    label_selector = spec.get("selector")
    yield from validate_label_selector(label_selector, "spec.selector")
    selector = selector_of(label_selector)
    labels = (_template_of(spec).get("metadata") or {}).get("labels")
    if selector is not None and not selector.matches(labels):
        yield invalid(f"{TEMPLATE}.metadata.labels", labels, "`selector` does not match template `labels`")
    if label_selector is not None and not label_selector.get("matchLabels") and not label_selector.get("matchExpressions"):
        yield invalid("spec.selector", {}, "empty selector is invalid for daemonset")
    yield from validate_template(_template_of(spec), TEMPLATE, _old_template(old))
    yield from _always_running(spec, "DaemonSet")
    yield from nonnegative(spec.get("minReadySeconds"), "spec.minReadySeconds")
    yield from nonnegative(int(_template_generation(obj) or 0), "spec.templateGeneration")
    yield from _daemon_strategy(spec.get("updateStrategy") or {}, "spec.updateStrategy")
    yield from nonnegative(spec.get("revisionHistoryLimit"), "spec.revisionHistoryLimit")


def validate_daemon_set_update(new: Object, old: Object) -> Errors:
    yield from _selector_immutable(new, old)
    yield from validate_daemon_set(new, old)


def validate_daemon_set_status(new: Object, old: Object) -> Errors:
    yield from _counts(new.get("status") or {}, "currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady",
                       "observedGeneration", "updatedNumberScheduled", "numberAvailable", "numberUnavailable", "collisionCount")
    yield from _collision_count(new, old)


def _daemon_set_warnings(new: Object, old: Object | None) -> list[str]:
    if old is not None and _template_generation(new) == _template_generation(old):
        return []
    return template_warnings(_template_of(new.get("spec") or {}), TEMPLATE, _old_template(old))


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
        prepare_create=_create_with({}), prepare_update=_update_with_template, prepare_status=_deployment_status,
        validate=listed(validate_deployment), validate_update=listed(_replica_update(validate_deployment)),
        validate_status=listed(validate_deployment_status), warnings=_named_warnings,
        has_generation=True, generation_changed=_deployment_changed),
    ("apps", "ReplicaSet"): Kind(
        defaults=default_replica_set,
        prepare_create=_create_with({"replicas": 0}), prepare_update=_update_with_template, prepare_status=keep_spec,
        validate=listed(validate_replica_set), validate_update=listed(_replica_update(validate_replica_set)),
        validate_status=listed(validate_replica_set_status), warnings=_named_warnings, has_generation=True),
    ("apps", "StatefulSet"): Kind(
        defaults=default_stateful_set,
        prepare_create=_create_stateful_set, prepare_update=_update_stateful_set, prepare_status=keep_spec,
        validate=listed(validate_stateful_set), validate_update=listed(validate_stateful_set_update),
        validate_status=listed(validate_stateful_set_status), warnings=_stateful_set_warnings,
        name_check=names.name_is_dns_label, has_generation=True),
    ("apps", "DaemonSet"): Kind(
        defaults=default_daemon_set,
        prepare_create=_create_daemon_set, prepare_update=_update_daemon_set, prepare_status=_status_daemon_set,
        validate=listed(validate_daemon_set), validate_update=listed(validate_daemon_set_update),
        validate_status=listed(validate_daemon_set_status), warnings=_daemon_set_warnings, has_generation=True),
    ("apps", "ControllerRevision"): Kind(
        validate=listed(validate_controller_revision), validate_update=listed(validate_controller_revision_update)),
}
