"""Counting a Job's ended pods exactly once. A pod is first noted in `uncountedTerminatedPods`, then loses its finalizer, then is counted: no crash in
between loses or doubles it.

Upstream: pkg/controller/job (job_controller.go trackJobStatusAndRemoveFinalizers); KEP-2307.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from kubern.controllers.amount import whole
from kubern.controllers.jobpass import Condition, JobPass
from kubern.controllers.jobrules import FINALIZER, Pod, failure_policy, index_of, indexed, pod_failed, tracked
from kubern.controllers.pods import phase
from kubern.model.intent import Emit, Failed, Patch, Update
from kubern.model.object import deleting, name, namespace, uid

UNCOUNTED_MAX = 500


def untrack(pod: Pod) -> Patch:
    return Patch("v1", "Pod", namespace(pod), name(pod), {"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}, "strategic",
                 ignore_missing=True)


def _settle(j: JobPass, holding: set[str]) -> bool:
    """Notes whose pod has lost its finalizer are counted."""
    ok, bad = [u for u in j.noted_ok if u in holding], [u for u in j.noted_bad if u in holding]
    if len(ok) == len(j.noted_ok) and len(bad) == len(j.noted_bad):
        return False
    j.status["succeeded"] = (j.status.get("succeeded") or 0) + len(j.noted_ok) - len(ok)
    j.status["failed"] = (j.status.get("failed") or 0) + len(j.noted_bad) - len(bad)
    j.noted_ok, j.noted_bad = ok, bad
    return True


def _may_untrack(j: JobPass, pod: Pod, bad: bool) -> bool:
    if deleting(j.job) or j.outcome is not None or phase(pod) == "Succeeded":
        return True
    delayed = j.delayed.get(index_of(pod)) if j.per_index else None
    return bad and (delayed is None or uid(delayed) != uid(pod))


def _note(j: JobPass, pod: Pod, bad: bool) -> tuple[bool, int | None]:
    """(is there something new to write, a newly succeeded index)."""
    job, u, i = j.job, uid(pod), index_of(pod)
    if phase(pod) == "Succeeded" and u not in j.noted_bad:
        if indexed(job):
            new = 0 <= i < (j.completions or 0) and i not in j.before
            return new, i if new else None
        if u not in j.noted_ok:
            j.noted_ok.append(u)
            return True, None
        return False, None
    if not bad and (j.outcome is None or j.outcome["type"] == "SuccessCriteriaMet"):
        return False, None
    if u in j.noted_bad or (indexed(job) and not 0 <= i < (j.completions or 0)):
        return False, None
    if j.spec.get("podFailurePolicy") and not failure_policy(job, pod)[1]:
        return False, None
    j.noted_bad.append(u)
    return True, None


def track(j: JobPass, flush: bool) -> Generator[Any, Any, bool]:
    """Counts, takes finalizers away, writes the status. False: something failed."""
    pods = sorted(j.pods, key=index_of) if indexed(j.job) else j.pods
    holding = {uid(p) for p in pods if tracked(p)}
    flush |= _settle(j, holding)
    release: list[Pod] = []
    fresh: list[int] = []
    full = False
    for p in pods:
        if not tracked(p):
            continue
        bad = pod_failed(p, j.job)
        if not _may_untrack(j, p, bad):
            continue
        release.append(p)
        news, i = _note(j, p, bad)
        flush |= news
        if i is not None:
            fresh.append(i)
        if len(fresh) + len(j.noted_ok) + len(j.noted_bad) >= UNCOUNTED_MAX:
            full = True
            break
    if indexed(j.job):
        flush |= _write_indexes(j, fresh)
    final = _announce(j)
    flush |= final[1]
    if flush and not (yield from write(j)):
        return False
    flush = False
    results = (yield [untrack(p) for p in release]) if release else []
    refused = False
    for p, result in zip(release, results, strict=True):
        if isinstance(result, Failed):
            refused = True
        else:
            holding.discard(uid(p))
    flush |= _settle(j, holding)
    ended = False
    if not refused and not full and final[0] is not None and not j.noted_ok and not j.noted_bad and not j.terminating:
        c = final[0]
        j.ensure(c["type"], c["status"], c["reason"], c["message"])
        if c["type"] == "Complete":
            j.status["completionTime"] = c["lastTransitionTime"]
        ended = flush = True
    if flush and not (yield from write(j)):
        return False
    if ended and final[0] is not None:
        yield from _farewell(j, final[0])
    return not refused


def _write_indexes(j: JobPass, fresh: list[int]) -> bool:
    j.done = j.done.plus(fresh)
    text = str(j.done)
    changed = text != (j.status.get("completedIndexes") or "")
    j.status["succeeded"], j.status["completedIndexes"] = len(j.done), text
    if j.lost is not None and str(j.lost) != j.status.get("failedIndexes"):
        j.status["failedIndexes"] = str(j.lost)
        changed = True
    elif j.lost is None and "failedIndexes" in j.status:
        del j.status["failedIndexes"]
        changed = True
    return changed


def _announce(j: JobPass) -> tuple[Condition | None, bool]:
    """(the terminal condition to come, is its forerunner new)."""
    c = j.outcome
    if c is None:
        return None, False
    if c["type"] == "FailureTarget":
        j.status["conditions"].append(c)
        return j.condition("Failed", c["reason"], c["message"]), True
    if c["type"] == "SuccessCriteriaMet":
        new = j.has("SuccessCriteriaMet") is None
        if new:
            j.status["conditions"].append(c)
        return j.condition("Complete", c.get("reason") or "", c.get("message") or ""), new
    return c, False


def _farewell(j: JobPass, c: Condition) -> Generator[Any, Any, None]:
    if c["type"] == "Complete":
        if j.completions is not None and (j.status.get("succeeded") or 0) > j.completions:
            yield Emit(j.job, "Warning", "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
        yield Emit(j.job, "Normal", "Completed", "Job completed")
    else:
        yield Emit(j.job, "Warning", c["reason"], c["message"])


def write(j: JobPass) -> Generator[Any, Any, bool]:
    s = j.status
    uncounted = {k: v for k, v in (("succeeded", j.noted_ok), ("failed", j.noted_bad)) if v}
    body = {**whole({k: s.get(k) for k in ("conditions", "startTime", "completionTime", "active", "succeeded", "failed", "completedIndexes")}),
            "uncountedTerminatedPods": uncounted, "ready": j.ready, "terminating": j.terminating}
    if "failedIndexes" in s:
        body["failedIndexes"] = s["failedIndexes"]
    answer = yield Update({**j.job, "status": body}, "status")
    if isinstance(answer, Failed):
        return False
    j.job = answer
    return True
