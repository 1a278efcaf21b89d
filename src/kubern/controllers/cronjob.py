"""CronJob: makes Jobs by the clock. Also: Jobs with a time to live are removed after it.

Upstream: pkg/controller/cronjob (cronjob_controllerv2.go, utils.go), pkg/controller/ttlafterfinished.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime
from typing import Any

from kubern.controllers import schedule as cron
from kubern.controllers.amount import whole
from kubern.controllers.claim import controlled_by, controller_ref
from kubern.controllers.context import Context
from kubern.controllers.jobrules import job_finished
from kubern.controllers.wake import owner
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Create, Delete, Emit, Failed, Fetch, Requeue, Update
from kubern.model.object import Key, Object, clone, condition, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

JOBS = "jobs.batch"
SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
LATE_S = 0.1
MISSED_MAX = 100


def most_recent(cj: Object, now: float, s: cron.Schedule, with_deadline: bool) -> tuple[float, float | None, int]:
    """(where counting began, the last time that should have fired or None, how many were missed). Raises ValueError."""
    earliest = seconds_of((cj.get("status") or {}).get("lastScheduleTime")) or seconds_of(meta(cj).get("creationTimestamp"))
    deadline = cj["spec"].get("startingDeadlineSeconds")
    if with_deadline and deadline is not None:
        earliest = max(earliest, now - deadline)
    first = s.next(earliest)
    second = s.next(first) if first is not None else None
    if first is None or now < first:
        return earliest, None, 0
    if second is None or now < second:
        return earliest, first, 0
    step = round(second - first)
    if step < 1:
        raise ValueError("time difference between two schedules is less than 1 second")
    missed = int(now - first) // step + 1
    recent: float | None = None
    t = s.next(first + (missed - 2) * step)
    while t is not None and t <= now:
        recent = t
        t = s.next(t)
    return earliest, recent, missed


def next_in(cj: Object, now: float, s: cron.Schedule) -> float | None:
    """Seconds until the schedule fires next."""
    try:
        earliest, recent, missed = most_recent(cj, now, s, False)
        base = recent if recent is not None else earliest if not missed else now
    except ValueError:
        base = now
    t = s.next(base)
    return None if t is None else t + LATE_S - now


def _job_name(cj: Object, at: float) -> str:
    return f"{name(cj)}-{int(at) // 60}"


def _stamp(at: float, time_zone: str | None) -> str:
    t = datetime.fromtimestamp(int(at), cron.zone(time_zone))
    text = t.isoformat()
    return text.replace("+00:00", "Z") if t.utcoffset() is not None and not t.utcoffset() else text


class _Cron:
    """One pass."""

    def __init__(self, cj: Object, jobs: list[Object], now: float) -> None:
        self.cj, self.jobs, self.now = cj, jobs, now
        self.spec = cj["spec"]
        status = cj.get("status") or {}
        self.active: list[dict[str, Any]] = list(status.get("active") or ())
        self.last: str | None = status.get("lastScheduleTime")
        self.last_ok: str | None = status.get("lastSuccessfulTime")
        self.failed = False

    def emit(self, type_: str, reason: str, message: str) -> Emit:
        return Emit(self.cj, type_, reason, message)

    def _drop(self, job_uid: str) -> None:
        self.active = [a for a in self.active if a.get("uid") != job_uid]

    def follow(self) -> Generator[Any, Any, None]:
        """Brings `active` and the last success up to date."""
        children = {uid(j) for j in self.jobs}
        listed = {a.get("uid") for a in self.active}
        for j in self.jobs:
            end = job_finished(j)
            if not end:
                if uid(j) not in listed:
                    yield self.emit("Warning", "UnexpectedJob", f"Saw a job that the controller did not create or forgot: {name(j)}")
                continue
            if uid(j) in listed:
                self._drop(uid(j))
                yield self.emit("Normal", "SawCompletedJob", f"Saw completed job: {name(j)}, condition: {end}")
            completed = (j.get("status") or {}).get("completionTime")
            if end == "Complete" and completed and (not self.last_ok or seconds_of(completed) > seconds_of(self.last_ok)):
                self.last_ok = completed
        for a in list(self.active):
            if a.get("uid") in children:
                continue
            live = yield Fetch(f"/apis/batch/v1/namespaces/{a.get('namespace') or namespace(self.cj)}/jobs/{a.get('name')}")
            if live.code == 404 if isinstance(live, Failed) else uid(live) != a.get("uid"):       # another of that name is not it
                yield self.emit("Normal", "MissingJob", f"Active job went missing: {a.get('name')}")
                self._drop(a.get("uid") or "")
            elif isinstance(live, Failed):
                yield Again(live.message)

    def _delete(self, job_namespace: str, job_name: str, job_uid: str) -> Generator[Any, Any, bool]:
        answer = yield Delete("batch/v1", "Job", job_namespace, job_name, propagation="Background", ignore_missing=False)
        if isinstance(answer, Failed):
            yield self.emit("Warning", "FailedDelete", f"Deleted job: {answer.message}")
            return False
        self._drop(job_uid)
        yield self.emit("Normal", "SuccessfulDelete", f"Deleted job {job_name}")
        return True

    def start(self) -> Generator[Any, Any, None]:
        """Starts the job that is due, and says when to look again."""
        cj, spec, now = self.cj, self.spec, self.now
        time_zone = spec.get("timeZone")
        if time_zone is not None and (why := cron.zone_error(time_zone)):
            yield self.emit("Warning", "UnknownTimeZone", f'invalid timeZone: "{time_zone}": {why}')
            return
        if spec.get("suspend"):
            return
        text = spec.get("schedule") or ""
        if "TZ" in text:
            yield self.emit("Warning", "UnsupportedSchedule",
                            f'CRON_TZ or TZ used in schedule "{text}" is not officially supported, see '
                            "https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details")
        try:
            s = cron.parse(text, time_zone)
        except ValueError as e:
            yield self.emit("Warning", "UnparseableSchedule", f'unparseable schedule: "{text}" : {e}')
            return
        try:
            _, due, missed = most_recent(cj, now, s, True)
        except ValueError as e:
            yield self.emit("Warning", "InvalidSchedule", f"invalid schedule: {text} : {e}")
            return
        if due is not None and missed > MISSED_MAX:
            yield self.emit("Warning", "TooManyMissedTimes",
                            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
        if due is not None and (yield from self._may_start(due)):
            yield from self._create(due)
        if not self.failed:
            after = {**cj, "status": {**(cj.get("status") or {}), **({"lastScheduleTime": self.last} if self.last else {})}}
            wait = next_in(after, now, s)
            if wait is not None:
                yield Requeue(max(wait, 0.01))

    def _may_start(self, due: float) -> Generator[Any, Any, bool]:
        deadline = self.spec.get("startingDeadlineSeconds")
        if deadline is not None and due + deadline < self.now:
            when = datetime.fromtimestamp(int(due), UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
            yield self.emit("Warning", "MissSchedule", f"Missed scheduled time to start a job: {when}")
            return False
        job_name = _job_name(self.cj, due)
        if any(a.get("name") == job_name for a in self.active) or (self.last and seconds_of(self.last) == due):
            return False
        policy = self.spec.get("concurrencyPolicy", "Allow")
        if policy == "Forbid" and self.active:
            yield self.emit("Normal", "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
            return False
        if policy == "Replace":
            for a in list(self.active):
                if not (yield from self._delete(a.get("namespace") or namespace(self.cj), a.get("name") or "", a.get("uid") or "")):
                    self.failed = True
                    return False
        return True

    def _create(self, due: float) -> Generator[Any, Any, None]:
        cj = self.cj
        template = self.spec.get("jobTemplate") or {}
        m: dict[str, Any] = {"name": _job_name(cj, due), "namespace": namespace(cj), "ownerReferences": [controller_ref(cj)],
                             "annotations": {**notes(template), SCHEDULED: _stamp(due, self.spec.get("timeZone"))}}
        if labels(template):
            m["labels"] = dict(labels(template))
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": m, "spec": clone(template.get("spec") or {})}
        made = yield Create(job, ignore_exists=True)
        if isinstance(made, Failed):
            self.failed = True
            if not any(c.get("reason") == "NamespaceTerminating" for c in made.details.get("causes") or ()):
                yield self.emit("Warning", "FailedCreate", f"Error creating job: {made.message}")
            return
        if made is None:
            made = yield Fetch(f"/apis/batch/v1/namespaces/{namespace(cj)}/jobs/{m['name']}")
            if isinstance(made, Failed):
                yield Again(made.message)
                return
            if not controlled_by(made, uid(cj)) or any(a.get("uid") == uid(made) for a in self.active):
                return
        else:
            yield self.emit("Normal", "SuccessfulCreate", f"Created job {name(made)}")
        self.active.append({"kind": "Job", "namespace": namespace(made), "name": name(made), "uid": uid(made), "apiVersion": "batch/v1",
                            "resourceVersion": meta(made).get("resourceVersion")})
        self.last = rfc3339(due)

    def clean(self) -> Generator[Any, Any, None]:
        def by_start(j: Object) -> tuple[bool, str, str]:
            started = (j.get("status") or {}).get("startTime")
            return started is None, started or "", name(j)
        for end, field in (("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")):
            limit = self.spec.get(field)
            if limit is None:
                continue
            over = sorted((j for j in self.jobs if job_finished(j) == end), key=by_start)
            for j in over[:max(0, len(over) - limit)]:
                yield from self._delete(namespace(j), name(j), uid(j))


def controller(context: Context | None = None) -> Controller:
    schedules: dict[Key, tuple[Any, Any]] = {}     # what the schedule was when it was last looked at

    def reconcile(cj: Object, view: View, now: float) -> Steps:
        spec = cj["spec"]
        schedule = (spec.get("schedule"), spec.get("timeZone"))
        if schedules.setdefault(key(cj), schedule) != schedule:      # a new schedule starts with its next time; it makes up for nothing
            schedules[key(cj)] = schedule
            try:
                wait = next_in(cj, now, cron.parse(spec.get("schedule") or "", spec.get("timeZone")))
            except ValueError:
                yield Emit(cj, "Warning", "UnParseableCronJobSchedule", f"unparseable schedule for cronjob: {spec.get('schedule')}")
                return
            if wait is not None:
                yield Requeue(max(wait, 0.01))
            return
        jobs = [j for j in view.owned(JOBS, uid(cj)) if controlled_by(j, uid(cj)) and not deleting(j)]
        c = _Cron(cj, sorted(jobs, key=name), now)
        yield from c.clean()
        yield from c.follow()
        if not deleting(cj):
            yield from c.start()
        status = whole({"active": c.active, "lastScheduleTime": c.last, "lastSuccessfulTime": c.last_ok})
        if status != (cj.get("status") or {}):
            yield Update({**cj, "status": status}, "status")

    def gone(k: Key, view: View, now: float) -> Steps:
        schedules.pop(k, None)
        yield from ()

    return Controller("cronjob-controller", "cronjobs.batch", reconcile, reads=(JOBS,), gone=gone,
                      triggers=(Trigger(JOBS, owner("batch", "CronJob", "")),))


# ---- jobs that expire

def _expire(job: Object, view: View, now: float) -> Steps:
    ttl, end = job["spec"].get("ttlSecondsAfterFinished"), job_finished(job)
    if ttl is None or not end or deleting(job):
        return
    left = seconds_of((condition(job, end) or {}).get("lastTransitionTime")) + ttl - now
    if left > 0:
        yield Requeue(left)
        return
    live = yield Fetch(f"/apis/batch/v1/namespaces/{namespace(job)}/jobs/{name(job)}")
    if isinstance(live, Failed) and live.code != 404:
        yield Again(live.message)
    elif not isinstance(live, Failed) and uid(live) == uid(job) and live["spec"].get("ttlSecondsAfterFinished") == ttl and not deleting(live):
        yield Delete("batch/v1", "Job", namespace(job), name(job), uid=uid(job), propagation="Foreground")


def _worth_a_look(old: Object, new: Object) -> bool:
    return bool(job_finished(new))


EXPIRY = Controller("ttl-after-finished-controller", JOBS, _expire, changed=_worth_a_look)

