"""Jobs and CronJobs: counting, policies, indexes, schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from kubern.controllers import cronjob, job
from kubern.controllers.indexes import Indexes, parse
from kubern.controllers.schedule import parse as schedule
from kubern.model.intent import Again, Create, Delete, Failed, Fetch, Patch, Requeue, Update
from kubern.model.object import Object
from tests.controllers.conftest import ListView, drive, emitted, of, pod, workload

NOW = 1893456100.0


def a_job(**spec: Any) -> Object:
    j = workload("Job", "j", "batch/v1", **{"completions": 1, "parallelism": 1, "backoffLimit": 6, **spec})
    j["spec"]["selector"] = {"matchLabels": {"app": "a"}}
    return j


def test_indexes() -> None:
    assert str(Indexes([(0, 0), (1, 1), (3, 5)])) == "0,1,3-5"
    assert str(parse("0,1,3-9", 5)) == "0,1,3,4"
    assert len(parse("x,2-3", 10)) == 2
    assert list(parse("1-2", 5).missing(5)) == [0, 3, 4]


def test_a_pod_gets_the_finalizer() -> None:
    created = of(drive(job.controller().reconcile(a_job(), ListView(pods=[]), NOW)), Create)
    assert [p.obj["metadata"]["finalizers"] for p in created] == [["batch.kubernetes.io/job-tracking"]]


def test_a_finished_pod_is_noted_then_released_then_counted() -> None:
    j = a_job()
    p = pod("p", phase="Succeeded", owner=j, finalizers=["batch.kubernetes.io/job-tracking"])
    intents = drive(job.controller().reconcile(j, ListView(pods=[p]), NOW))
    kinds = [type(i).__name__ for i in intents if isinstance(i, (Update, Patch))]
    assert kinds == ["Update", "Patch", "Update"]
    noted, counted = (u.obj["status"] for u in of(intents, Update))
    assert noted["uncountedTerminatedPods"] == {"succeeded": ["uid-p"]} and "succeeded" not in noted
    assert counted["succeeded"] == 1 and counted["uncountedTerminatedPods"] == {} and "completionTime" in counted
    assert [c["type"] for c in counted["conditions"]] == ["SuccessCriteriaMet", "Complete"]
    assert ("Completed", "Job completed") in emitted(intents)


def test_failures_wait_longer_each_time() -> None:
    j = a_job()
    p = pod("p", phase="Failed", owner=j, finalizers=["batch.kubernetes.io/job-tracking"])
    p["status"]["containerStatuses"] = [{"name": "c", "state": {"terminated": {"exitCode": 1, "finishedAt": "2030-01-01T00:01:38Z"}}}]
    intents = drive(job.controller().reconcile(j, ListView(pods=[p]), NOW))
    assert not of(intents, Create)
    assert 0 < of(intents, Requeue)[0].after_s <= 10


def test_backoff_limit_fails_the_job() -> None:
    j = a_job(backoffLimit=0)
    p = pod("p", phase="Failed", owner=j, finalizers=["batch.kubernetes.io/job-tracking"])
    last = of(drive(job.controller().reconcile(j, ListView(pods=[p]), NOW)), Update)[-1].obj["status"]
    assert [(c["type"], c["reason"]) for c in last["conditions"]] == [("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")]


def test_indexed_jobs_make_the_missing_indexes() -> None:
    j = a_job(completions=4, parallelism=4, completionMode="Indexed")
    pods = [pod("a", owner=j, annotations={"batch.kubernetes.io/job-completion-index": "1"}, finalizers=["batch.kubernetes.io/job-tracking"])]
    made = of(drive(job.controller().reconcile(j, ListView(pods=pods), NOW)), Create)
    assert [p.obj["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] for p in made] == ["0", "2", "3"]
    assert made[0].obj["spec"]["hostname"] == "j-0"


def test_suspending_removes_pods() -> None:
    j = a_job(suspend=True)
    intents = drive(job.controller().reconcile(j, ListView(pods=[pod("p", owner=j, finalizers=["batch.kubernetes.io/job-tracking"])]), NOW))
    assert [d.name for d in of(intents, Delete)] == ["p"]
    assert of(intents, Update)[-1].obj["status"]["conditions"][0]["type"] == "Suspended"


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(("spec", "zone", "after", "expected"), [
    ("*/15 * * * *", None, "2026-01-01T00:07:00+00:00", "2026-01-01T00:15:00+00:00"),
    ("0 0 29 2 *", None, "2026-01-01T00:00:00+00:00", "2028-02-29T00:00:00+00:00"),
    ("30 2 * * *", "America/New_York", "2026-03-07T12:00:00+00:00", "2026-03-09T06:30:00+00:00"),     # 8 March has no 2:30
    ("0 12 13 * 5", None, "2026-01-01T00:00:00+00:00", "2026-01-02T12:00:00+00:00"),                   # by day or by weekday
    ("@every 90s", None, "2026-01-01T00:00:00+00:00", "2026-01-01T00:01:30+00:00"),
    ("TZ=Asia/Tokyo 0 9 * * *", None, "2026-01-01T00:00:01+00:00", "2026-01-02T00:00:00+00:00"),
    ("0 0 31 2 *", None, "2026-01-01T00:00:00+00:00", None),
])
def test_schedules(spec: str, zone: str | None, after: str, expected: str | None) -> None:
    found = schedule(spec, zone).next(at(after))
    assert found == (at(expected) if expected else None)


def a_cronjob(**spec: Any) -> Object:
    return {"apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "c", "namespace": "default", "uid": "uid-c", "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": {}}}}, **spec}}


def test_a_due_schedule_makes_a_job_named_by_its_minute() -> None:
    now = at("2030-01-01T00:01:05+00:00")
    intents = drive(cronjob.controller().reconcile(a_cronjob(), ListView(jobs__batch=[]), now))
    made = of(intents, Create)[0].obj
    assert made["metadata"]["name"] == f"c-{int(now) // 60}"
    assert made["metadata"]["annotations"] == {"batch.kubernetes.io/cronjob-scheduled-timestamp": "2030-01-01T00:01:00Z"}
    assert of(intents, Update)[0].obj["status"]["lastScheduleTime"] == "2030-01-01T00:01:00Z"


def test_a_missed_deadline_is_told() -> None:
    now = at("2030-01-01T00:01:30+00:00")
    intents = drive(cronjob.controller().reconcile(a_cronjob(startingDeadlineSeconds=40, schedule="1 0 * * *"), ListView(jobs__batch=[]), now))
    assert of(intents, Create)
    intents = drive(cronjob.controller().reconcile(a_cronjob(startingDeadlineSeconds=20, schedule="1 0 * * *"), ListView(jobs__batch=[]), now))
    assert not of(intents, Create)


@pytest.mark.parametrize(("answer", "dropped", "again"), [
    ({"metadata": {"name": "c-1", "uid": "old"}}, False, False),
    ({"metadata": {"name": "c-1", "uid": "new"}}, True, False),                   # made again under the same name
    (Failed(None, 404, "NotFound", "gone"), True, False),
    (Failed(None, 503, "ServiceUnavailable", "no"), False, True),
])
def test_active_jobs_that_the_mirror_does_not_show_are_looked_for(answer: Any, dropped: bool, again: bool) -> None:
    c = a_cronjob(suspend=True)
    c["status"] = {"active": [{"kind": "Job", "namespace": "default", "name": "c-1", "uid": "old"}]}
    intents = drive(cronjob.controller().reconcile(c, ListView(jobs__batch=[]), at("2030-01-01T00:01:05+00:00")),
                    lambda i: answer if isinstance(i, Fetch) else getattr(i, "obj", None))
    assert bool(of(intents, Again)) == again
    assert (emitted(intents) == [("MissingJob", "Active job went missing: c-1")]) == dropped
    assert bool([u for u in of(intents, Update) if not u.obj["status"].get("active")]) == dropped
