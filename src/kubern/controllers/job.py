"""Job: runs pods to completion and counts them exactly once, by a finalizer on every pod.

A pod that has ended is first noted in `uncountedTerminatedPods`, then loses its finalizer, then is counted: no crash in between loses or
doubles it. Upstream: pkg/controller/job; KEP-2307 (tracking), 3329 (failure policy), 3850 (backoff per index), 3998 (success policy).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from kubern.controllers import conditions
from kubern.controllers.amount import whole
from kubern.controllers.claim import claim
from kubern.controllers.context import Context
from kubern.controllers.indexes import Indexes, parse
from kubern.controllers.jobrules import (
    FINALIZER,
    INDEX,
    Pod,
    backoff_left,
    failure_policy,
    finished_at,
    index_of,
    indexed,
    job_finished,
    managed_elsewhere,
    number,
    only_failed_replaced,
    pod_failed,
    success_policy,
    suspended,
    tracked,
)
from kubern.controllers.pods import active, by_deletion, create_pods, delete_pods, finished, from_template, phase, ready
from kubern.controllers.wake import owner, spec_selector
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Emit, Failed, Patch, Requeue, Update
from kubern.model.object import Key, Object, clone, controller_of, deleting, key, meta, name, namespace, uid
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

FAILURES, IGNORED = "batch.kubernetes.io/job-index-failure-count", "batch.kubernetes.io/job-index-ignored-failure-count"
UNCOUNTED_MAX, PODS_A_PASS_MAX = 500, 500
GENERATED_NAME_MAX = 58
Condition = dict[str, Any]


@dataclass
class Backoff:
    """Failures since the last success, and when the last one was."""

    failures: int = 0
    last: float = 0.0

    def after(self, succeeded: list[Pod], failed: list[Pod]) -> Backoff:
        if not failed:
            return Backoff() if succeeded else self
        ends = sorted(finished_at(p) for p in failed)
        if succeeded:
            newest = max(finished_at(p) for p in succeeded)
            ends = [e for e in ends if e > newest]
            return Backoff(len(ends), ends[-1]) if ends else Backoff()
        return Backoff(self.failures + len(ends), ends[-1])


@dataclass
class _Job:
    job: Object
    pods: list[Pod]
    now: float
    status: dict[str, Any] = field(default_factory=dict)
    active: list[Pod] = field(default_factory=list)
    active_count: int = 0
    ready: int = 0
    terminating: int = 0
    succeeded: int = 0
    failed: int = 0
    before: Indexes = field(default_factory=Indexes)
    done: Indexes = field(default_factory=Indexes)
    lost: Indexes | None = None
    delayed: dict[int, Pod] = field(default_factory=dict)
    outcome: Condition | None = None
    error: Failed | None = None

    def __post_init__(self) -> None:
        self.spec = self.job["spec"]
        old = self.job.get("status") or {}
        self.status = {**old, "conditions": list(old.get("conditions") or ())}
        uncounted = old.get("uncountedTerminatedPods") or {}
        self.noted_ok: list[str] = list(uncounted.get("succeeded") or ())
        self.noted_bad: list[str] = list(uncounted.get("failed") or ())
        self.active = [p for p in self.pods if active(p)]
        self.active_count = len(self.active)
        self.ready = sum(ready(p) for p in self.active)
        self.terminating = sum(deleting(p) and not finished(p) for p in self.pods)
        self.completions: int | None = self.spec.get("completions")
        self.per_index = self.spec.get("backoffLimitPerIndex") is not None

    def condition(self, type_: str, reason: str, message: str, status: str = "True") -> Condition:
        at = rfc3339(self.now)
        return {"type": type_, "status": status, "lastProbeTime": at, "lastTransitionTime": at, "reason": reason, "message": message}

    def ensure(self, type_: str, status: str, reason: str, message: str) -> bool:
        found = self.status["conditions"]
        new = self.condition(type_, reason, message, status)
        for i, c in enumerate(found):
            if c.get("type") == type_:
                if all(c.get(f) == new[f] for f in ("status", "reason", "message")):
                    return False
                found[i] = new
                return True
        if status == "False":
            return False
        found.append(new)
        return True

    def has(self, type_: str) -> Condition | None:
        c = conditions.find(self.status["conditions"], type_)
        return c if c is not None and c.get("status") == "True" else None

    def valid(self, pod: Pod) -> bool:
        """Does it count at all?"""
        return tracked(pod) and (not indexed(self.job) or 0 <= index_of(pod) < (self.completions or 0))

    # ---- verdicts

    def judge(self) -> float | None:
        """Sets `outcome` if the job has ended; else seconds until its deadline."""
        job, spec = self.job, self.spec
        if c := self.has("SuccessCriteriaMet"):
            self.outcome = c
            return None
        if c := self.has("FailureTarget"):
            self.outcome = self.condition("Failed", c.get("reason") or "", c.get("message") or "")
            return None
        if spec.get("podFailurePolicy"):
            for p in self.pods:
                if pod_failed(p, job) and (why := failure_policy(job, p)[0]):
                    self.outcome = self.condition("FailureTarget", "PodFailurePolicy", why)
                    return None
        limit = spec.get("backoffLimit")
        deadline, started = spec.get("activeDeadlineSeconds"), seconds_of(self.status.get("startTime"))
        if (limit is not None and self.failed > limit) or self._restarts_exceed(limit):
            self.outcome = self.condition("FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif deadline is not None and started and not suspended(job):
            left = float(started + deadline - self.now)
            if left > 0:
                return left
            self.outcome = self.condition("FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline")
        return None

    def _restarts_exceed(self, limit: int | None) -> bool:
        if ((self.spec.get("template") or {}).get("spec") or {}).get("restartPolicy") != "OnFailure" or limit is None:
            return False
        n = sum(s.get("restartCount") or 0 for p in self.pods if phase(p) in ("Running", "Pending")
                for f in ("initContainerStatuses", "containerStatuses") for s in (p.get("status") or {}).get(f) or ())
        return n > 0 if limit == 0 else n >= limit

    def judge_indexes(self) -> None:
        completions = self.completions or 0
        self.before = parse(self.status.get("completedIndexes"), completions)
        self.done = self.before.plus(index_of(p) for p in self.pods if phase(p) == "Succeeded" and self.valid(p))
        self.succeeded = len(self.done)
        if self.per_index:
            self.lost = parse(self.status.get("failedIndexes"), completions).plus(
                index_of(p) for p in self.pods if self.valid(p) and self._index_failed(p))
            if self.outcome is None:
                most = self.spec.get("maxFailedIndexes")
                if most is not None and len(self.lost) > most:
                    self.outcome = self.condition("FailureTarget", "MaxFailedIndexesExceeded",
                                                  "Job has exceeded the specified maximal number of failed indexes")
                elif len(self.lost) and len(self.lost) + len(self.done) >= completions:
                    self.outcome = self.condition("FailureTarget", "FailedIndexes", "Job has failed indexes")
            self._delay()
        if self.outcome is None and (why := success_policy(self.job, self.done)):
            self.outcome = self.condition("SuccessCriteriaMet", "SuccessPolicy", why)

    def _index_failed(self, pod: Pod) -> bool:
        if not pod_failed(pod, self.job):
            return False
        counts = True
        if self.spec.get("podFailurePolicy"):
            _, counts, action = failure_policy(self.job, pod)
            if action == "FailIndex":
                return True
        return counts and number(pod, FAILURES) >= self.spec["backoffLimitPerIndex"]

    def _delay(self) -> None:
        """Failed pods that stay until the next pod of their index exists: they remember how often it failed."""
        running = {index_of(p) for p in self.active}
        for p in self.pods:
            i = index_of(p)
            if not self.valid(p) or not pod_failed(p, self.job) or i in self.done or (self.lost is not None and i in self.lost) or i in running:
                continue
            last = self.delayed.get(i)
            if last is None or (number(last, FAILURES) + number(last, IGNORED) <= number(p, FAILURES) + number(p, IGNORED)
                                and finished_at(p) >= finished_at(last)):
                self.delayed[i] = p

    # ---- pods

    def stop_all(self) -> Generator[Any, Any, None]:
        """An ended job's active pods are deleted; the verdict waits until that worked."""
        self.error = yield from delete_pods(self.job, self.active)
        if self.error is not None:
            self.outcome = None
        else:
            self.terminating += len(self.active)
            self.active_count, self.ready = 0, 0

    def _remove(self, pods: list[Pod]) -> Generator[Any, Any, None]:
        """Pods that are too many are not counted: their finalizer goes first."""
        yield [untrack(p) for p in pods if tracked(p)]
        self.error = yield from delete_pods(self.job, pods)
        self.active_count -= len(pods)
        self.terminating += len(pods)
        self.ready -= sum(ready(p) for p in pods)

    def _surplus(self, at_least: int) -> list[Pod]:
        gone: list[Pod] = []
        left = self.active
        if indexed(self.job):
            left = []
            groups: dict[int, list[Pod]] = {}
            for p in self.active:
                groups.setdefault(index_of(p), []).append(p)
            for i, group in sorted(groups.items()):
                if i < 0 or i >= (self.completions or 0):
                    gone += group
                else:
                    ranked = by_deletion(group, {}, self.now)
                    gone += ranked[:-1]
                    left.append(ranked[-1])
        if len(gone) < at_least:
            gone += by_deletion(left, {}, self.now)[:at_least - len(gone)]
        return gone

    def manage(self, backoff: Backoff) -> Generator[Any, Any, None]:
        job, spec = self.job, self.spec
        if suspended(job):
            gone = self._surplus(len(self.active))
            if gone:
                yield from self._remove(gone)
            return
        parallelism = spec.get("parallelism")
        parallelism = 1 if parallelism is None else parallelism
        if self.completions is None:
            wanted = len(self.active) if self.succeeded > 0 else parallelism
        else:
            wanted = max(0, min(self.completions - self.succeeded, parallelism))
        gone = self._surplus(max(0, len(self.active) - wanted))[:PODS_A_PASS_MAX]
        if gone:
            yield from self._remove(gone)
            return
        missing = wanted - len(self.active) - (self.terminating if only_failed_replaced(job) else 0)
        if missing <= 0:
            return
        if not self.per_index and (left := backoff_left(backoff.failures, backoff.last, self.now)) > 0:
            yield Requeue(left)
            self.active_count = 0
            return
        missing = min(missing, PODS_A_PASS_MAX)
        indexes: list[int] = []
        if indexed(job):
            indexes = self._next_indexes(missing)
            if self.per_index:
                waits = {i: self._index_wait(i) for i in indexes}
                indexes = [i for i in indexes if not waits[i]]
                if not indexes and any(waits.values()):
                    yield Requeue(min(w for w in waits.values() if w))
                    self.active_count = 0
                    return
            missing = len(indexes)
        bodies = [self._pod(indexes[i] if indexes else None) for i in range(missing)]
        made, self.error = yield from create_pods(job, bodies)
        self.active_count += len(made)

    def _next_indexes(self, count: int) -> list[int]:
        taken = self.done.plus(index_of(p) for p in self.active if index_of(p) >= 0)
        if only_failed_replaced(self.job):
            taken = taken.plus(index_of(p) for p in self.pods if deleting(p) and not finished(p) and index_of(p) >= 0)
        if self.lost is not None:
            taken = taken.merge(self.lost)
        out: list[int] = []
        for i in taken.missing(self.completions or 0):
            if len(out) >= count:
                break
            out.append(i)
        return out

    def _index_wait(self, i: int) -> float:
        p = self.delayed.get(i)
        return backoff_left(number(p, FAILURES) + number(p, IGNORED) + 1, finished_at(p), self.now) if p is not None else 0.0

    def _pod(self, i: int | None) -> Pod:
        template = self.spec.get("template") or {}
        if i is None:
            pod = from_template(template, self.job)
        else:
            suffix = f"-{i}-"
            pod = from_template(template, self.job, name(self.job)[:GENERATED_NAME_MAX - len(suffix)] + suffix)
            m = pod["metadata"]
            m["labels"] = {**(m.get("labels") or {}), INDEX: str(i)}
            m["annotations"] = {**(m.get("annotations") or {}), INDEX: str(i)}
            if self.per_index:
                self._note_failures(m["annotations"], self.delayed.get(i))
            spec = pod["spec"]
            spec["hostname"] = f"{name(self.job)}-{i}"
            for c in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
                env = list(c.get("env") or ())
                if not any(e.get("name") == "JOB_COMPLETION_INDEX" for e in env):
                    path = f"metadata.labels['{INDEX}']"
                    env.append({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": path}}})
                c["env"] = env
        m = pod["metadata"]
        m["finalizers"] = [*(m.get("finalizers") or ()), *([] if FINALIZER in (m.get("finalizers") or ()) else [FINALIZER])]
        return pod

    def _note_failures(self, annotations_: dict[str, str], replaced: Pod | None) -> None:
        failures = ignored = 0
        if replaced is not None:
            failures, ignored = number(replaced, FAILURES), number(replaced, IGNORED)
            counts = failure_policy(self.job, replaced)[1]
            failures, ignored = (failures + 1, ignored) if counts else (failures, ignored + 1)
        annotations_[FAILURES] = str(failures)
        if ignored:
            annotations_[IGNORED] = str(ignored)

    # ---- counting

    def _settle(self, holding: set[str]) -> bool:
        """Notes whose pod has lost its finalizer are counted."""
        ok, bad = [u for u in self.noted_ok if u in holding], [u for u in self.noted_bad if u in holding]
        if len(ok) == len(self.noted_ok) and len(bad) == len(self.noted_bad):
            return False
        self.status["succeeded"] = (self.status.get("succeeded") or 0) + len(self.noted_ok) - len(ok)
        self.status["failed"] = (self.status.get("failed") or 0) + len(self.noted_bad) - len(bad)
        self.noted_ok, self.noted_bad = ok, bad
        return True

    def _may_untrack(self, pod: Pod, bad: bool) -> bool:
        if deleting(self.job) or self.outcome is not None or phase(pod) == "Succeeded":
            return True
        delayed = self.delayed.get(index_of(pod)) if self.per_index else None
        return bad and (delayed is None or uid(delayed) != uid(pod))

    def _note(self, pod: Pod, bad: bool) -> tuple[bool, int | None]:
        """(is there something new to write, a newly succeeded index)."""
        job, u, i = self.job, uid(pod), index_of(pod)
        if phase(pod) == "Succeeded" and u not in self.noted_bad:
            if indexed(job):
                new = 0 <= i < (self.completions or 0) and i not in self.before
                return new, i if new else None
            if u not in self.noted_ok:
                self.noted_ok.append(u)
                return True, None
            return False, None
        if not bad and (self.outcome is None or self.outcome["type"] == "SuccessCriteriaMet"):
            return False, None
        if u in self.noted_bad or (indexed(job) and not 0 <= i < (self.completions or 0)):
            return False, None
        if self.spec.get("podFailurePolicy") and not failure_policy(job, pod)[1]:
            return False, None
        self.noted_bad.append(u)
        return True, None

    def track(self, flush: bool) -> Generator[Any, Any, bool]:
        """Counts, takes finalizers away, writes the status. False: something failed."""
        pods = sorted(self.pods, key=index_of) if indexed(self.job) else self.pods
        holding = {uid(p) for p in pods if tracked(p)}
        flush |= self._settle(holding)
        release: list[Pod] = []
        fresh: list[int] = []
        full = False
        for p in pods:
            if not tracked(p):
                continue
            bad = pod_failed(p, self.job)
            if not self._may_untrack(p, bad):
                continue
            release.append(p)
            news, i = self._note(p, bad)
            flush |= news
            if i is not None:
                fresh.append(i)
            if len(fresh) + len(self.noted_ok) + len(self.noted_bad) >= UNCOUNTED_MAX:
                full = True
                break
        if indexed(self.job):
            flush |= self._write_indexes(fresh)
        final = self._announce()
        flush |= final[1]
        if flush and not (yield from self.write()):
            return False
        flush = False
        results = (yield [untrack(p) for p in release]) if release else []
        refused = False
        for p, result in zip(release, results, strict=True):
            if isinstance(result, Failed):
                refused = True
            else:
                holding.discard(uid(p))
        flush |= self._settle(holding)
        ended = False
        if not refused and not full and final[0] is not None and not self.noted_ok and not self.noted_bad and not self.terminating:
            c = final[0]
            self.ensure(c["type"], c["status"], c["reason"], c["message"])
            if c["type"] == "Complete":
                self.status["completionTime"] = c["lastTransitionTime"]
            ended = flush = True
        if flush and not (yield from self.write()):
            return False
        if ended and final[0] is not None:
            yield from self._farewell(final[0])
        return not refused

    def _write_indexes(self, fresh: list[int]) -> bool:
        self.done = self.done.plus(fresh)
        text = str(self.done)
        changed = text != (self.status.get("completedIndexes") or "")
        self.status["succeeded"], self.status["completedIndexes"] = len(self.done), text
        if self.lost is not None and str(self.lost) != self.status.get("failedIndexes"):
            self.status["failedIndexes"] = str(self.lost)
            changed = True
        elif self.lost is None and "failedIndexes" in self.status:
            del self.status["failedIndexes"]
            changed = True
        return changed

    def _announce(self) -> tuple[Condition | None, bool]:
        """(the terminal condition to come, is its forerunner new)."""
        c = self.outcome
        if c is None:
            return None, False
        if c["type"] == "FailureTarget":
            self.status["conditions"].append(c)
            return self.condition("Failed", c["reason"], c["message"]), True
        if c["type"] == "SuccessCriteriaMet":
            new = self.has("SuccessCriteriaMet") is None
            if new:
                self.status["conditions"].append(c)
            return self.condition("Complete", c.get("reason") or "", c.get("message") or ""), new
        return c, False

    def _farewell(self, c: Condition) -> Generator[Any, Any, None]:
        if c["type"] == "Complete":
            if self.completions is not None and (self.status.get("succeeded") or 0) > self.completions:
                yield Emit(self.job, "Warning", "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
            yield Emit(self.job, "Normal", "Completed", "Job completed")
        else:
            yield Emit(self.job, "Warning", c["reason"], c["message"])

    def write(self) -> Generator[Any, Any, bool]:
        s = self.status
        uncounted = {k: v for k, v in (("succeeded", self.noted_ok), ("failed", self.noted_bad)) if v}
        body = {**whole({k: s.get(k) for k in ("conditions", "startTime", "completionTime", "active", "succeeded", "failed", "completedIndexes")}),
                "uncountedTerminatedPods": uncounted, "ready": self.ready, "terminating": self.terminating}
        if "failedIndexes" in s:
            body["failedIndexes"] = s["failedIndexes"]
        answer = yield Update({**self.job, "status": body}, "status")
        if isinstance(answer, Failed):
            return False
        self.job = answer
        return True


def untrack(pod: Pod) -> Patch:
    return Patch("v1", "Pod", namespace(pod), name(pod), {"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}, "strategic",
                 ignore_missing=True)


def _pass(job: Object, pods: list[Pod], now: float, backoff: Backoff, remember: Callable[[Backoff], None]) -> Steps:
    j = _Job(job, pods, now)
    ok = [p for p in pods if j.valid(p) and uid(p) not in j.noted_ok and phase(p) == "Succeeded"]
    bad = [p for p in pods if j.valid(p) and uid(p) not in j.noted_bad and pod_failed(p, job)]
    j.succeeded = (j.status.get("succeeded") or 0) + len(ok) + len(j.noted_ok)
    j.failed = (j.status.get("failed") or 0) + sum(failure_policy(job, p)[1] for p in bad) + len(j.noted_bad)
    if not j.status.get("startTime") and not suspended(job):
        j.status["startTime"] = rfc3339(now)
    backoff = backoff.after(ok, bad)
    left = j.judge()
    if left:
        yield Requeue(left)
    if indexed(job):
        j.judge_indexes()
    changed = False
    if j.outcome is not None:
        yield from j.stop_all()
    else:
        if not deleting(job):
            yield from j.manage(backoff)
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
    if (yield from j.track(flush)):
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
