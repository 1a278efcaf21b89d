"""batch/v1: Job and CronJob. What a Job's status may say: job_status.py; schedules: cron.py.

Upstream: pkg/apis/batch/{v1/defaults.go,validation}, pkg/registry/batch; KEP-3329 (failure policy), KEP-3850 (limits per index),
KEP-3998 (success policy), KEP-4368 (managedBy), KEP-2926 (mutable scheduling directives).
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from kubern.model import names
from kubern.model.invalid import _OMIT, Struct, duplicate, invalid, not_supported, quote, required, too_long, too_many
from kubern.model.kinds.checks import (
    Errors,
    form,
    immutable,
    keep_spec,
    keep_status,
    listed,
    nonnegative,
    same,
    selector_form,
    selector_of,
)
from kubern.model.kinds.cron import schedule_error, zone_error
from kubern.model.kinds.internal_form import pod_spec
from kubern.model.kinds.job_status import condition_true, indexes_total, validate_job_status
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import validate_label_selector
from kubern.model.kinds.pod_defaults import default_pod_template
from kubern.model.kinds.templates import prepare_template, template_warnings, validate_template
from kubern.model.kinds.workload_rules import name_warning
from kubern.model.object import Object, clone

NAME_LABELS = ("job-name", "batch.kubernetes.io/job-name")
UID_LABELS = ("controller-uid", "batch.kubernetes.io/controller-uid")
PARALLELISM_INDEXED_MAX = FAILED_INDEXES_MAX = COMPLETIONS_SOFT_LIMIT = 100_000
PARALLELISM_HIGH_MAX = FAILED_INDEXES_HIGH_MAX = 10_000
RULES_MAX, EXIT_CODES_MAX, PATTERNS_MAX, MANAGED_BY_MAX, SUCCESS_RULES_MAX, SUCCEEDED_INDEXES_MAX = 20, 255, 20, 63, 20, 64 * 1024
CRON_NAME_MAX = 52
ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
OPERATORS = ("In", "NotIn")
STATUSES = ("False", "True", "Unknown")


def _quoted(values: tuple[str, ...]) -> str:
    return f"[{' '.join(quote(v) for v in values)}]"


# --- defaults ---------------------------------------------------------------------------------------------------------------------------

def default_job(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _default_job_spec(spec)
    labels = (spec["template"].get("metadata") or {}).get("labels")
    if labels and not obj["metadata"].get("labels"):
        obj["metadata"]["labels"] = labels             # the same labels, not a copy: those that are made for the template come to the job too


def _default_job_spec(spec: Object) -> None:
    """What a Job's spec gets; a CronJob's template gets only the parts of the pod and the policies."""
    default_pod_template(spec.setdefault("template", {}))
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    if spec.get("parallelism") is None:
        spec["parallelism"] = 1
    if spec.get("backoffLimit") is None:
        spec["backoffLimit"] = 6 if spec.get("backoffLimitPerIndex") is None else 2147483647
    if spec.get("completionMode") is None:
        spec["completionMode"] = "NonIndexed"
    if spec.get("suspend") is None:
        spec["suspend"] = False
    if spec.get("podReplacementPolicy") is None:
        spec["podReplacementPolicy"] = "TerminatingOrFailed" if spec.get("podFailurePolicy") is None else "Failed"
    if spec.get("manualSelector") is None:
        spec["manualSelector"] = False
    _default_patterns(spec)


def _default_patterns(spec: Object) -> None:
    for rule in (spec.get("podFailurePolicy") or {}).get("rules") or ():
        for pattern in rule.get("onPodConditions") or ():
            if not pattern.get("status"):
                pattern["status"] = "True"


def default_cron_job(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if not spec.get("concurrencyPolicy"):
        spec["concurrencyPolicy"] = "Allow"
    if spec.get("suspend") is None:
        spec["suspend"] = False
    if spec.get("successfulJobsHistoryLimit") is None:
        spec["successfulJobsHistoryLimit"] = 3
    if spec.get("failedJobsHistoryLimit") is None:
        spec["failedJobsHistoryLimit"] = 1
    job = spec.setdefault("jobTemplate", {}).setdefault("spec", {})
    default_pod_template(job.setdefault("template", {}))
    _default_patterns(job)


# --- strategy ---------------------------------------------------------------------------------------------------------------------------

def _create_job(obj: Object) -> None:
    """A job gets a selector of its own, unless it says manualSelector."""
    obj["status"] = {}
    spec = obj["spec"]
    prepare_template(spec["template"])
    if spec.get("manualSelector"):
        return
    metadata = spec["template"].setdefault("metadata", {})
    given = metadata.get("labels")
    labels = metadata["labels"] = dict(given or {})
    for key in NAME_LABELS:
        labels.setdefault(key, obj["metadata"].get("name") or "")
    for key in UID_LABELS:
        labels.setdefault(key, obj["metadata"].get("uid") or "")
    if spec.get("selector") is None:
        spec["selector"] = {}
    selector = spec["selector"]
    if selector.get("matchLabels") is None:
        selector["matchLabels"] = {}
    selector["matchLabels"].setdefault(UID_LABELS[1], obj["metadata"].get("uid") or "")
    own = obj["metadata"].get("labels")
    if own is given if own else not names.is_label_value(labels[NAME_LABELS[0]]):       # defaulted from the template's; a bad one is told there
        obj["metadata"]["labels"] = dict(labels)


def _update_job(new: Object, old: Object) -> None:
    keep_status(new, old)
    prepare_template((new.get("spec") or {}).get("template"), (old.get("spec") or {}).get("template"))


def _status_job(new: Object, old: Object) -> None:
    keep_spec(new, old)
    default_job(new)                # without labels it has its template's


def _job_template(obj: Object) -> Object:
    return ((obj.get("spec") or {}).get("jobTemplate") or {}).get("spec") or {}


def _create_cron_job(obj: Object) -> None:
    obj["status"] = {}
    prepare_template(_job_template(obj).get("template"))


def _update_cron_job(new: Object, old: Object) -> None:
    keep_status(new, old)
    prepare_template(_job_template(new).get("template"), _job_template(old).get("template"))


# --- Job --------------------------------------------------------------------------------------------------------------------------------

def _pod_of(spec: Object) -> Object:
    return (spec.get("template") or {}).get("spec") or {}


def _generated_selector(obj: Object, prefixed: bool) -> Errors:
    spec = obj.get("spec") or {}
    selector = spec.get("selector")
    if spec.get("manualSelector") or selector is None:
        return
    uid, name = obj["metadata"].get("uid") or "", obj["metadata"].get("name") or ""
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    expected = {UID_LABELS[0]: uid, NAME_LABELS[0]: name}
    if prefixed:
        expected |= {UID_LABELS[1]: uid, NAME_LABELS[1]: name}
    for key, value in expected.items():
        have = labels.get(key)
        if have is None:
            yield required(f"spec.template.metadata.labels[{key}]", f"must be '{value}'")
        elif have != value:
            yield invalid(f"spec.template.metadata.labels[{key}]", labels, f"must be '{value}'")
    parsed = selector_of(selector)
    if parsed is not None and not parsed.matches(expected):
        yield invalid("spec.selector", selector_form(selector), "`selector` not auto-generated")


def validate_job(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    before = (old or {}).get("spec") or {}
    prefixed = True
    if old is not None:
        labels = ((before.get("template") or {}).get("metadata") or {}).get("labels") or {}
        prefixed = NAME_LABELS[1] in labels and UID_LABELS[1] in labels
    yield from _generated_selector(obj, prefixed)
    yield from _validate_selected_spec(spec, before.get("template") if old is not None else None)
    completions = spec.get("completions")
    if spec.get("completionMode") == "Indexed" and completions is not None and completions > 0:
        name = obj["metadata"].get("name") or ""
        host = f"{name}-{completions - 1}"
        if names.is_dns1123_label(host):
            yield invalid("metadata.name", name, f"will not able to create pod with invalid DNS label: {host}")


def _validate_selected_spec(spec: Object, old_template: Object | None) -> Errors:
    yield from validate_job_spec(spec, "spec", old_template)
    selector = spec.get("selector")
    if selector is None:
        yield required("spec.selector")
    else:
        yield from validate_label_selector(selector, "spec.selector")
    parsed = selector_of(selector)
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if parsed is not None and not parsed.matches(labels):
        yield invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")


def validate_job_spec(spec: Object, path: str, old_template: Object | None = None) -> Errors:
    """The spec without its selector: what Jobs and the template of CronJobs have in common."""
    for field in ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "backoffLimitPerIndex",
                  "maxFailedIndexes"):
        yield from nonnegative(spec.get(field), f"{path}.{field}")
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        yield required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified")
    manager = spec.get("managedBy")
    if manager is not None:
        yield from names.is_domain_prefixed_path(f"{path}.managedBy", manager)
        if len(manager) > MANAGED_BY_MAX:
            yield too_long(f"{path}.managedBy", MANAGED_BY_MAX)
    mode = spec.get("completionMode")
    if mode is not None and mode not in ("NonIndexed", "Indexed"):
        yield not_supported(f"{path}.completionMode", mode, ("NonIndexed", "Indexed"))
    if mode == "Indexed":
        yield from _indexed(spec, path)
    elif mode in (None, "NonIndexed"):
        for field in ("backoffLimitPerIndex", "maxFailedIndexes"):
            if spec.get(field) is not None:
                yield invalid(f"{path}.{field}", spec[field], "requires indexed completion mode")
    failure_policy, success_policy = spec.get("podFailurePolicy"), spec.get("successPolicy")
    if failure_policy is not None:
        yield from _pod_failure_policy(spec, failure_policy, f"{path}.podFailurePolicy")
    if success_policy is not None:
        if mode != "Indexed":
            yield invalid(f"{path}.successPolicy", form(success_policy, "batch.SuccessPolicy"), "requires indexed completion mode")
        else:
            yield from _success_policy(spec, success_policy, f"{path}.successPolicy")
    replacement = spec.get("podReplacementPolicy")
    if replacement is not None:
        allowed = ("Failed", "TerminatingOrFailed") if failure_policy is None else ("Failed",)
        if replacement not in allowed:
            yield not_supported(f"{path}.podReplacementPolicy", replacement, allowed)
    yield from validate_template(spec.get("template") or {}, f"{path}.template", old_template)
    restart = _pod_of(spec).get("restartPolicy") or ""
    here = f"{path}.template.spec.restartPolicy"
    if restart in ("Always", ""):
        yield required(here, 'valid values: "OnFailure", "Never"')
    elif restart not in ("OnFailure", "Never"):
        yield not_supported(here, restart, ("OnFailure", "Never"))
    elif failure_policy is not None and restart != "Never":
        yield invalid(here, restart, 'only "Never" is supported when podFailurePolicy is specified')


def _indexed(spec: Object, path: str) -> Errors:
    completions, parallelism, failed = spec.get("completions"), spec.get("parallelism"), spec.get("maxFailedIndexes")
    if completions is None:
        yield required(f"{path}.completions", "when completion mode is Indexed")
    if parallelism is not None and parallelism > PARALLELISM_INDEXED_MAX:
        yield invalid(f"{path}.parallelism", parallelism,
                      f"must be less than or equal to {PARALLELISM_INDEXED_MAX} when completion mode is Indexed")
    if completions is not None and failed is not None and failed > completions:
        yield invalid(f"{path}.maxFailedIndexes", failed, "must be less than or equal to completions")
    if failed is not None and failed > FAILED_INDEXES_MAX:
        yield invalid(f"{path}.maxFailedIndexes", failed, f"must be less than or equal to {FAILED_INDEXES_MAX}")
    if completions is not None and completions > COMPLETIONS_SOFT_LIMIT and spec.get("backoffLimitPerIndex") is not None:
        if failed is None:
            yield required(f"{path}.maxFailedIndexes", f"must be specified when completions is above {COMPLETIONS_SOFT_LIMIT}")
        tail = f"when completions are above {COMPLETIONS_SOFT_LIMIT} and used with backoff limit per index"
        if parallelism is not None and parallelism > PARALLELISM_HIGH_MAX:
            yield invalid(f"{path}.parallelism", parallelism, f"must be less than or equal to {PARALLELISM_HIGH_MAX} {tail}")
        if failed is not None and failed > FAILED_INDEXES_HIGH_MAX:
            yield invalid(f"{path}.maxFailedIndexes", failed, f"must be less than or equal to {FAILED_INDEXES_HIGH_MAX} {tail}")


def _pod_failure_policy(spec: Object, policy: Object, path: str) -> Errors:
    rules = policy.get("rules") or ()
    if len(rules) > RULES_MAX:
        yield too_many(f"{path}.rules", len(rules), RULES_MAX)
    pod = _pod_of(spec)
    containers = {c.get("name") for which in ("containers", "initContainers") for c in pod.get(which) or ()}
    for i, rule in enumerate(rules):
        here = f"{path}.rules[{i}]"
        action = rule.get("action") or ""
        if not action:
            yield required(f"{here}.action", f"valid values: {_quoted(ACTIONS)}")
        elif action == "FailIndex":
            if spec.get("backoffLimitPerIndex") is None:
                yield invalid(f"{here}.action", action, "requires the backoffLimitPerIndex to be set")
        elif action not in ACTIONS:
            yield not_supported(f"{here}.action", action, ACTIONS)
        codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes is not None:
            yield from _exit_codes(codes, f"{here}.onExitCodes", containers)
        if patterns:
            yield from _pod_conditions(patterns, f"{here}.onPodConditions")
        if codes is not None and patterns:
            yield invalid(here, _OMIT, "specifying both OnExitCodes and OnPodConditions is not supported")
        if codes is None and not patterns:
            yield invalid(here, _OMIT, "specifying one of OnExitCodes and OnPodConditions is required")


def _pod_conditions(patterns: list[Object], path: str) -> Errors:
    if len(patterns) > PATTERNS_MAX:
        yield too_many(path, len(patterns), PATTERNS_MAX)
    for j, pattern in enumerate(patterns):
        type_ = pattern.get("type") or ""
        for text in names.is_qualified_name(type_):
            yield invalid(f"{path}[{j}].type", type_, text)
        status = pattern.get("status") or ""
        if not status:
            yield required(f"{path}[{j}].status", f"valid values: {_quoted(STATUSES)}")
        elif status not in STATUSES:
            yield not_supported(f"{path}[{j}].status", status, STATUSES)


def _exit_codes(codes: Object, path: str, containers: set[Any]) -> Errors:
    operator, values, container = codes.get("operator") or "", codes.get("values"), codes.get("containerName")
    if not operator:
        yield required(f"{path}.operator", f"valid values: {_quoted(OPERATORS)}")
    elif operator not in OPERATORS:
        yield not_supported(f"{path}.operator", operator, OPERATORS)
    if container is not None and container not in containers:
        yield invalid(f"{path}.containerName", container, "must be one of the container or initContainer names in the pod template")
    if not values:
        yield invalid(f"{path}.values", values, "at least one value is required")
    elif len(values) > EXIT_CODES_MAX:
        yield too_many(f"{path}.values", len(values), EXIT_CODES_MAX)
    seen = set()
    for j, value in enumerate(values or ()):
        if operator == "In" and value == 0:
            yield invalid(f"{path}.values[{j}]", value, "must not be 0 for the In operator")
        if value in seen:
            yield duplicate(f"{path}.values[{j}]", value)
        seen.add(value)
    if any(a > b for a, b in itertools.pairwise(values or ())):
        yield invalid(f"{path}.values", values, "must be ordered")


def _success_policy(spec: Object, policy: Object, path: str) -> Errors:
    rules = policy.get("rules") or ()
    if not rules:
        yield required(f"{path}.rules", "at least one rules must be specified when the successPolicy is specified")
    if len(rules) > SUCCESS_RULES_MAX:
        yield too_many(f"{path}.rules", len(rules), SUCCESS_RULES_MAX)
    completions = spec.get("completions") or 0
    for i, rule in enumerate(rules):
        here = f"{path}.rules[{i}]"
        count, indexes = rule.get("succeededCount"), rule.get("succeededIndexes")
        if count is None and indexes is None:
            yield required(here, "at least one of succeededCount or succeededIndexes must be specified")
        total = 0
        if indexes is not None:
            if len(indexes) > SUCCEEDED_INDEXES_MAX:
                yield too_long(f"{here}.succeededIndexes", SUCCEEDED_INDEXES_MAX)
            try:
                total = indexes_total(indexes, completions)
            except ValueError as e:
                yield invalid(f"{here}.succeededIndexes", indexes, f"error parsing succeededIndexes: {e}")
        if count is not None:
            yield from nonnegative(count, f"{here}.succeededCount")
            if count > completions:
                yield invalid(f"{here}.succeededCount", count,
                              f"must be less than or equal to {completions} (the number of specified completions)")
            if indexes is not None and count > total:
                yield invalid(f"{here}.succeededCount", count, f"must be less than or equal to {total} (the number of indexes in the "
                                                               "specified succeededIndexes field)")


def validate_job_update(new: Object, old: Object) -> Errors:
    yield from validate_job(new, old)
    spec, before = new.get("spec") or {}, old.get("spec") or {}
    yield from _validate_selected_spec(spec, before.get("template"))
    yield from _completions_update(spec, before)
    yield from immutable(spec.get("selector"), before.get("selector"), "spec.selector", "LabelSelector")
    yield from _template_update(spec, old)
    yield from immutable(spec.get("completionMode"), before.get("completionMode"), "spec.completionMode")
    yield from immutable(spec.get("podFailurePolicy"), before.get("podFailurePolicy"), "spec.podFailurePolicy", "batch.PodFailurePolicy")
    yield from immutable(spec.get("backoffLimitPerIndex"), before.get("backoffLimitPerIndex"), "spec.backoffLimitPerIndex")
    yield from immutable(spec.get("managedBy"), before.get("managedBy"), "spec.managedBy")
    yield from immutable(spec.get("successPolicy"), before.get("successPolicy"), "spec.successPolicy", "batch.SuccessPolicy")


def _completions_update(spec: Object, before: Object) -> Errors:
    now, then = spec.get("completions"), before.get("completions")
    if spec.get("completionMode") != "Indexed":
        yield from immutable(now, then, "spec.completions")
    elif now is not None and now != then and now != spec.get("parallelism"):
        yield invalid("spec.completions", now, "can only be modified in tandem with spec.parallelism")


def _template_update(spec: Object, old: Object) -> Errors:
    """A template is fixed; one of a suspended job that is not running may change where its pods go and what they ask for."""
    before, status = old.get("spec") or {}, old.get("status") or {}
    template, old_template = spec.get("template") or {}, before.get("template") or {}
    if same(template, old_template):
        return
    suspended = bool(before.get("suspend"))
    idle = not status.get("startTime") or condition_true(status, "Suspended")
    if not (suspended and idle and not status.get("active")):
        yield invalid("spec.template", template_form(template), "field is immutable")
        return
    pod, old_pod = template.get("spec") or {}, clone(old_template.get("spec") or {})
    for field in ("nodeSelector", "tolerations", "schedulingGates"):
        old_pod[field] = pod.get(field)
    affinity = dict(old_pod.get("affinity") or {}) | {"nodeAffinity": (pod.get("affinity") or {}).get("nodeAffinity")}
    old_pod["affinity"] = {k: v for k, v in affinity.items() if v is not None} or None
    if old_pod["affinity"] is None and pod.get("affinity") is not None:
        old_pod["affinity"] = {}
    for which in ("containers", "initContainers"):
        ours, theirs = old_pod.get(which) or [], pod.get(which) or []
        if len(ours) == len(theirs):
            for a, b in zip(ours, theirs, strict=True):
                if a.get("name") == b.get("name"):
                    a["resources"] = b.get("resources")
    if not same(pod, old_pod):
        yield invalid("spec.template.spec", pod_spec(pod), "field is immutable")


def template_form(template: Object) -> Struct:
    """A pod template as its internal type prints it: the metadata's fields, then the spec."""
    out = Struct(template.get("metadata") or {})
    out["Spec"] = pod_spec(template.get("spec") or {})
    return out


def _job_spec_warnings(spec: Object, path: str, old: Object | None) -> list[str]:
    out = []
    if spec.get("completionMode") == "Indexed" and (spec.get("completions") or 0) > COMPLETIONS_SOFT_LIMIT \
            and (spec.get("parallelism") or 0) > PARALLELISM_HIGH_MAX:
        out.append(f"{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes "
                   "might not be able to track completedIndexes when a big number of indexes fail")
    return out + template_warnings(spec.get("template") or {}, f"{path}.template", None if old is None else old.get("template"))


def _changed(new: Object, old: Object | None) -> bool:
    return old is None or new["metadata"].get("generation") != old["metadata"].get("generation")


def _job_warnings(new: Object, old: Object | None) -> list[str]:
    if not _changed(new, old):
        return []
    before = None if old is None else old.get("spec") or {}
    return (name_warning(new) if old is None else []) + _job_spec_warnings(new.get("spec") or {}, "spec", before)


# --- CronJob ----------------------------------------------------------------------------------------------------------------------------

_zone_part = re.compile(r"[A-Za-z.\-_0-9+]{1,14}").fullmatch


def _schedule(schedule: str, old: str | None, zone: str | None) -> Errors:
    if why := schedule_error(schedule):
        yield invalid("spec.schedule", schedule, why)
    if "TZ" in schedule:
        if old is None or "TZ" not in old:
            yield invalid("spec.schedule", schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
        elif zone is not None:
            yield invalid("spec.schedule", schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule")


def _time_zone(zone: str | None) -> Errors:
    if zone is None:
        return
    if not zone:
        yield invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string")
        return
    if any(p in (".", "..") or p.startswith("-") or not _zone_part(p) for p in zone.split("/")):
        yield invalid("spec.timeZone", zone, f"unknown time zone {zone}")
        return
    if zone.lower() == "local":
        yield invalid("spec.timeZone", zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
    if why := zone_error(zone):
        yield invalid("spec.timeZone", zone, why)


def _validate_cron_spec(spec: Object, before: Object | None) -> Errors:
    schedule, zone = spec.get("schedule") or "", spec.get("timeZone")
    if not schedule:
        yield required("spec.schedule")
    else:
        yield from _schedule(schedule, None if before is None else before.get("schedule") or "", zone)
    yield from nonnegative(spec.get("startingDeadlineSeconds"), "spec.startingDeadlineSeconds")
    if before is None or before.get("timeZone") != zone:
        yield from _time_zone(zone)
    concurrency = spec.get("concurrencyPolicy") or ""
    if not concurrency:
        yield required("spec.concurrencyPolicy")
    elif concurrency not in ("Allow", "Forbid", "Replace"):
        yield not_supported("spec.concurrencyPolicy", concurrency, ("Allow", "Forbid", "Replace"))
    job = (spec.get("jobTemplate") or {}).get("spec") or {}
    old_job = None if before is None else (before.get("jobTemplate") or {}).get("spec") or {}
    path = "spec.jobTemplate.spec"
    yield from validate_job_spec(job, path, None if old_job is None else old_job.get("template"))
    if job.get("selector") is not None:
        yield invalid(f"{path}.selector", selector_form(job["selector"]), "`selector` will be auto-generated")
    if job.get("manualSelector"):
        yield not_supported(f"{path}.manualSelector", True, ("nil", "false"))
    yield from nonnegative(spec.get("successfulJobsHistoryLimit"), "spec.successfulJobsHistoryLimit")
    yield from nonnegative(spec.get("failedJobsHistoryLimit"), "spec.failedJobsHistoryLimit")


def validate_cron_job(obj: Object) -> Errors:
    yield from _validate_cron_spec(obj.get("spec") or {}, None)
    name = obj["metadata"].get("name") or ""
    if len(name) > CRON_NAME_MAX:
        yield invalid("metadata.name", name, f"must be no more than {CRON_NAME_MAX} characters")


def validate_cron_job_update(new: Object, old: Object) -> Errors:
    return _validate_cron_spec(new.get("spec") or {}, old.get("spec") or {})


def _cron_warnings(new: Object, old: Object | None) -> list[str]:
    spec = new.get("spec") or {}
    out = name_warning(new) if old is None else []
    if _changed(new, old):
        job = (spec.get("jobTemplate") or {}).get("spec") or {}
        before = None if old is None else ((old.get("spec") or {}).get("jobTemplate") or {}).get("spec") or {}
        out += _job_spec_warnings(job, "spec.jobTemplate.spec", before)
    if old is not None and "TZ" in (spec.get("schedule") or ""):
        out.append("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see "
                   "https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details")
    return out


KINDS: KindTable = {
    ("batch", "Job"): Kind(
        meta_again=1,
        defaults=default_job, prepare_create=_create_job, prepare_update=_update_job, prepare_status=_status_job,
        validate=listed(validate_job), validate_update=listed(validate_job_update), validate_status=listed(validate_job_status),
        warnings=_job_warnings, has_generation=True, default_propagation="Orphan"),
    ("batch", "CronJob"): Kind(
        defaults=default_cron_job, prepare_create=_create_cron_job, prepare_update=_update_cron_job, prepare_status=keep_spec,
        validate=listed(validate_cron_job), validate_update=listed(validate_cron_job_update), warnings=_cron_warnings, has_generation=True,
        meta_status=0),
}
