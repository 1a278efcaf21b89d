"""Has a Job ended, and how: its policies, limits and deadline, for the whole and index by index. Sets the pass's `outcome`; does nothing.

Upstream: pkg/controller/job (job_controller.go syncJob, indexed_job_utils.go); KEP-3329 (failure policy), 3850 (backoff per index), 3998 (success policy).
"""

from __future__ import annotations

from kubern.controllers.indexes import parse
from kubern.controllers.jobpass import FAILURES, IGNORED, JobPass
from kubern.controllers.jobrules import Pod, failure_policy, finished_at, index_of, number, pod_failed, success_policy, suspended
from kubern.controllers.pods import phase
from kubern.model.time import seconds_of


def judge(j: JobPass) -> float | None:
    """Sets `outcome` if the job has ended; else seconds until its deadline."""
    job, spec = j.job, j.spec
    if c := j.has("SuccessCriteriaMet"):
        j.outcome = c
        return None
    if c := j.has("FailureTarget"):
        j.outcome = j.condition("Failed", c.get("reason") or "", c.get("message") or "")
        return None
    if spec.get("podFailurePolicy"):
        for p in j.pods:
            if pod_failed(p, job) and (why := failure_policy(job, p)[0]):
                j.outcome = j.condition("FailureTarget", "PodFailurePolicy", why)
                return None
    limit = spec.get("backoffLimit")
    deadline, started = spec.get("activeDeadlineSeconds"), seconds_of(j.status.get("startTime"))
    if (limit is not None and j.failed > limit) or _restarts_exceed(j, limit):
        j.outcome = j.condition("FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    elif deadline is not None and started and not suspended(job):
        left = float(started + deadline - j.now)
        if left > 0:
            return left
        j.outcome = j.condition("FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline")
    return None


def _restarts_exceed(j: JobPass, limit: int | None) -> bool:
    if ((j.spec.get("template") or {}).get("spec") or {}).get("restartPolicy") != "OnFailure" or limit is None:
        return False
    n = sum(s.get("restartCount") or 0 for p in j.pods if phase(p) in ("Running", "Pending")
            for f in ("initContainerStatuses", "containerStatuses") for s in (p.get("status") or {}).get(f) or ())
    return n > 0 if limit == 0 else n >= limit


def judge_indexes(j: JobPass) -> None:
    completions = j.completions or 0
    j.before = parse(j.status.get("completedIndexes"), completions)
    j.done = j.before.plus(index_of(p) for p in j.pods if phase(p) == "Succeeded" and j.valid(p))
    j.succeeded = len(j.done)
    if j.per_index:
        j.lost = parse(j.status.get("failedIndexes"), completions).plus(
            index_of(p) for p in j.pods if j.valid(p) and _index_failed(j, p))
        if j.outcome is None:
            most = j.spec.get("maxFailedIndexes")
            if most is not None and len(j.lost) > most:
                j.outcome = j.condition("FailureTarget", "MaxFailedIndexesExceeded",
                                              "Job has exceeded the specified maximal number of failed indexes")
            elif len(j.lost) and len(j.lost) + len(j.done) >= completions:
                j.outcome = j.condition("FailureTarget", "FailedIndexes", "Job has failed indexes")
        _delay(j)
    if j.outcome is None and (why := success_policy(j.job, j.done)):
        j.outcome = j.condition("SuccessCriteriaMet", "SuccessPolicy", why)


def _index_failed(j: JobPass, pod: Pod) -> bool:
    if not pod_failed(pod, j.job):
        return False
    counts = True
    if j.spec.get("podFailurePolicy"):
        _, counts, action = failure_policy(j.job, pod)
        if action == "FailIndex":
            return True
    return counts and number(pod, FAILURES) >= j.spec["backoffLimitPerIndex"]


def _delay(j: JobPass) -> None:
    """Failed pods that stay until the next pod of their index exists: they remember how often it failed."""
    running = {index_of(p) for p in j.active}
    for p in j.pods:
        i = index_of(p)
        if not j.valid(p) or not pod_failed(p, j.job) or i in j.done or (j.lost is not None and i in j.lost) or i in running:
            continue
        last = j.delayed.get(i)
        if last is None or (number(last, FAILURES) + number(last, IGNORED) <= number(p, FAILURES) + number(p, IGNORED)
                            and finished_at(p) >= finished_at(last)):
            j.delayed[i] = p
