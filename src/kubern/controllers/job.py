"""Job: runs pods to completion and counts them exactly once.

A pass judges the job (jobverdict.py), makes or deletes pods (jobpods.py), counts those that ended and writes the status (jobcount.py). Upstream:
pkg/controller/job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kubern.controllers.claim import claim
from kubern.controllers.context import Context
from kubern.controllers.jobcount import track, untrack
from kubern.controllers.jobpass import JobPass
from kubern.controllers.jobpods import Backoff, manage, stop_all
from kubern.controllers.jobrules import FINALIZER, Pod, failure_policy, indexed, job_finished, managed_elsewhere, pod_failed, suspended, tracked
from kubern.controllers.jobverdict import judge, judge_indexes
from kubern.controllers.pods import phase
from kubern.controllers.wake import owner, spec_selector
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Emit, Requeue
from kubern.model.object import Key, Object, clone, controller_of, deleting, key, meta, name, namespace, uid
from kubern.model.time import rfc3339
from kubern.model.view import View


def _pass(job: Object, pods: list[Pod], now: float, backoff: Backoff, remember: Callable[[Backoff], None]) -> Steps:
    j = JobPass(job, pods, now)
    counted = {*j.noted_ok, *j.noted_bad}            # a pod that was deleted counts as failed, even if it succeeds while it goes
    ok = [p for p in pods if j.valid(p) and uid(p) not in counted and phase(p) == "Succeeded"]
    bad = [p for p in pods if j.valid(p) and uid(p) not in j.noted_bad and pod_failed(p, job)]
    j.succeeded = (j.status.get("succeeded") or 0) + len(ok) + len(j.noted_ok)
    j.failed = (j.status.get("failed") or 0) + sum(failure_policy(job, p)[1] for p in bad) + len(j.noted_bad)
    if not j.status.get("startTime") and not suspended(job):
        j.status["startTime"] = rfc3339(now)
    backoff = backoff.after(ok, bad)
    left = judge(j)
    if left:
        yield Requeue(left)
    if indexed(job):
        judge_indexes(j)
    changed = False
    if j.outcome is not None:
        yield from stop_all(j)
    else:
        if not deleting(job):
            yield from manage(j, backoff)
        complete = j.succeeded > 0 if j.completions is None else j.succeeded >= j.completions
        if complete and j.active_count == 0:
            j.outcome = j.condition("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")
        elif not deleting(job):
            if suspended(job):
                changed = j.ensure("Suspended", "True", "JobSuspended", "Job suspended")
                if changed:
                    yield Emit(job, "Normal", "Suspended", "Job suspended")
                    j.status.pop("startTime", None)
            else:
                changed = j.ensure("Suspended", "False", "JobResumed", "Job resumed")
                if changed:
                    yield Emit(job, "Normal", "Resumed", "Job resumed")
                    j.status["startTime"] = rfc3339(now)
    old = job.get("status") or {}
    flush = changed or j.active_count != (old.get("active") or 0) or j.ready != old.get("ready") or j.terminating != old.get("terminating")
    j.status["active"] = j.active_count
    if (yield from track(j, flush)):
        remember(backoff)
    if j.error is not None:
        yield Again(j.error.message)


def controller(context: Context | None = None) -> Controller:
    backoffs: dict[str, Backoff] = {}          # job uid -> failures since the last success

    def reconcile(job: Object, view: View, now: float) -> Steps:
        if managed_elsewhere(job):
            return
        if job_finished(job):
            backoffs.pop(uid(job), None)
            return
        path = f"/apis/batch/v1/namespaces/{namespace(job)}/jobs/{name(job)}"
        pods = yield from claim(view, "pods", job, spec_selector(job), path, finalizers=(FINALIZER,))

        def remember(b: Backoff) -> None:
            if b.failures:
                backoffs[uid(job)] = b
            else:
                backoffs.pop(uid(job), None)
        yield from _pass(job, pods, now, backoffs.get(uid(job), Backoff()), remember)

    return Controller("job-controller", "jobs.batch", reconcile, reads=("pods",), backoff_first_s=1.0, backoff_last_s=60.0,
                      triggers=(Trigger("pods", owner("batch", "Job", "jobs.batch"), after_s=0.02),))


# ---- pods that outlive their job

def _release(pod: Pod, view: View, now: float) -> Steps:
    if not tracked(pod):
        return
    ref = controller_of(pod)
    if ref is not None:
        if ref.get("kind") != "Job" or ref.get("apiVersion") != "batch/v1":
            return
        job = view.get("jobs.batch", namespace(pod), ref.get("name") or "")
        if job is not None and uid(job) == ref.get("uid") and (managed_elsewhere(job) or not job_finished(job)):
            return
    yield untrack(clone(pod))


def _job_over(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    job = new or old
    if job is None or (new is not None and not job_finished(new)):
        return ()
    return [key(p) for p in view.owned("pods", uid(job)) if tracked(p)]


ORPHANS = Controller("job-controller", "pods", _release, reads=("jobs.batch",), backoff_first_s=1.0, backoff_last_s=60.0,
                     triggers=(Trigger("jobs.batch", _job_over),),
                     changed=lambda old, new: tracked(new) and meta(old).get("ownerReferences") != meta(new).get("ownerReferences"))
