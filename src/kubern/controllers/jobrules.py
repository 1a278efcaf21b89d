"""Job rules: what can be told of a Job and its pods without doing anything. Is it over, has a pod failed, what do its policies say. Pure.

Upstream: pkg/controller/job (pod_failure_policy.go, success_policy.go, backoff_utils.go); KEP-3329 (failure policy), 3998 (success policy).
"""

from __future__ import annotations

from typing import Any

from kubern.controllers import conditions
from kubern.controllers.indexes import Indexes, parse
from kubern.controllers.pods import phase
from kubern.model.object import Object, deleting, meta, name, namespace, notes
from kubern.model.time import seconds_of

FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
MANAGER = "kubernetes.io/job-controller"
BACKOFF_FIRST_S, BACKOFF_LAST_S = 10.0, 600.0
Pod = Object


def job_finished(job: Object) -> str:
    """"Complete" or "Failed" once it is, else ""."""
    for c in (job.get("status") or {}).get("conditions") or ():
        if c.get("type") in ("Complete", "Failed") and c.get("status") == "True":
            return str(c["type"])
    return ""


def suspended(job: Object) -> bool:
    return bool(job["spec"].get("suspend"))


def indexed(job: Object) -> bool:
    return bool(job["spec"].get("completionMode") == "Indexed")


def managed_elsewhere(job: Object) -> bool:
    return job["spec"].get("managedBy") not in (None, MANAGER)


def tracked(pod: Pod) -> bool:
    return FINALIZER in (meta(pod).get("finalizers") or ())


def index_of(pod: Pod) -> int:
    """The completion index, -1 for none."""
    text = notes(pod).get(INDEX) or ""
    return int(text) if text.isdecimal() and len(text) < 11 else -1


def number(pod: Pod, note: str) -> int:
    text = notes(pod).get(note) or ""
    return int(text) if text.isdecimal() and len(text) < 11 else 0


def only_failed_replaced(job: Object) -> bool:
    return job["spec"].get("podReplacementPolicy") == "Failed" or bool(job["spec"].get("podFailurePolicy"))


def pod_failed(pod: Pod, job: Object) -> bool:
    if phase(pod) == "Failed":
        return True
    return not only_failed_replaced(job) and deleting(pod) and phase(pod) != "Succeeded"


def finished_at(pod: Pod) -> float:
    """When the pod ended, as well as can be told."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    sidecars = {c["name"] for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    states = list(status.get("containerStatuses") or ()) + [s for s in status.get("initContainerStatuses") or () if s.get("name") in sidecars]
    ends = [seconds_of(((s.get("state") or {}).get("terminated") or {}).get("finishedAt")) for s in states]
    if ends and all(ends):
        return max(ends)
    c = conditions.find(status.get("conditions"), "Ready")
    if c is not None and c.get("status") == "False" and c.get("lastTransitionTime"):
        return seconds_of(c["lastTransitionTime"])
    if deleting(pod):
        return seconds_of(meta(pod)["deletionTimestamp"]) - (meta(pod).get("deletionGracePeriodSeconds") or 0)
    return seconds_of(meta(pod).get("creationTimestamp"))


def _exit_code_rule(rule: dict[str, Any], pod: Pod) -> dict[str, Any] | None:
    status = pod.get("status") or {}
    for s in [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]:
        ended = (s.get("state") or {}).get("terminated")
        if ended is None or rule.get("containerName") not in (None, s.get("name")) or not ended.get("exitCode"):
            continue
        if (ended["exitCode"] in (rule.get("values") or ())) == (rule.get("operator") == "In"):
            return dict(s)
    return None


def failure_policy(job: Object, pod: Pod) -> tuple[str, bool, str]:
    """(why the job fails, "" if it does not; does the failure count; the action taken, "" for none)."""
    where = f"{namespace(pod)}/{name(pod)}"
    for i, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules") or ()):
        action = rule.get("action") or ""
        if rule.get("onExitCodes") is not None:
            s = _exit_code_rule(rule["onExitCodes"], pod)
            if s is None:
                continue
            code = s["state"]["terminated"]["exitCode"]
            why = f"Container {s.get('name')} for pod {where} failed with exit code {code} matching {action} rule at index {i}"
        else:
            found = next((c for c in (pod.get("status") or {}).get("conditions") or () for p in rule.get("onPodConditions") or ()
                          if c.get("type") == p.get("type") and c.get("status") == p.get("status", "True")), None)
            if found is None:
                continue
            why = f"Pod {where} has condition {found['type']} matching {action} rule at index {i}"
        if action in ("Ignore", "FailIndex", "Count", "FailJob"):
            return why if action == "FailJob" else "", action != "Ignore", action
    return "", True, ""


def success_policy(job: Object, succeeded: Indexes) -> str:
    """The message of the rule that is met, "" if none is."""
    policy = job["spec"].get("successPolicy")
    if not policy or not len(succeeded):
        return ""
    for i, rule in enumerate(policy.get("rules") or ()):
        count = rule.get("succeededCount")
        if rule.get("succeededIndexes") is not None:
            wanted = parse(rule["succeededIndexes"], job["spec"].get("completions") or 0)
            if not len(wanted):
                continue
            have = wanted.overlap(succeeded)
            met = have == len(wanted) or (count is not None and have >= count)
        else:
            met = count is not None and len(succeeded) >= count
        if met:
            return f"Matched rules at index {i}"
    return ""


def backoff_left(failures: int, last: float, now: float) -> float:
    if not failures:
        return 0.0
    delay = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30), BACKOFF_LAST_S)
    return max(0.0, last + delay - now)
