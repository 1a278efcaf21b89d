"""ReplicaSet: how many pods, which go first, whose they are."""

from __future__ import annotations

from typing import Any

from kubern.controllers import replicaset
from kubern.model.intent import Create, Delete, Fetch, Patch, Update
from tests.controllers.conftest import ListView, drive, emitted, of, pod, refuse, workload

NOW = 1893456100.0


def test_creates_what_is_missing_in_growing_batches() -> None:
    rs = workload("ReplicaSet", replicas=5)
    batches: list[int] = []
    steps = replicaset.reconcile(rs, ListView(pods=[]), NOW)
    result: Any = None
    while True:
        try:
            intent = steps.send(result)
        except StopIteration:
            break
        if isinstance(intent, list):
            batches.append(len(intent))
            result = [{**i.obj, "metadata": {**i.obj["metadata"], "name": "w-x"}} for i in intent]
        else:
            result = getattr(intent, "obj", None)
    assert batches == [1, 2, 2]


def test_a_refused_pod_stops_the_batches_and_shows_in_status() -> None:
    rs = workload("ReplicaSet", replicas=5)
    intents = drive(replicaset.reconcile(rs, ListView(pods=[]), NOW), refuse(403, "Forbidden", "no quota"))
    assert len(of(intents, Create)) == 1
    assert emitted(intents) == [("FailedCreate", "Error creating: no quota")]
    status = of(intents, Update)[0].obj["status"]
    assert status["conditions"][0]["reason"] == "FailedCreate" and status["replicas"] == 0


def test_surplus_goes_unready_and_unscheduled_first() -> None:
    rs = workload("ReplicaSet", replicas=1)
    pods = [pod("good", owner=rs), pod("sick", is_ready=False, owner=rs), pod("homeless", node="", phase="Pending", owner=rs)]
    intents = drive(replicaset.reconcile(rs, ListView(pods=pods, replicasets__apps=[rs]), NOW))
    assert {d.name for d in of(intents, Delete)} == {"sick", "homeless"}


def test_finished_pods_do_not_count() -> None:
    rs = workload("ReplicaSet", replicas=1)
    pods = [pod("done", phase="Succeeded", owner=rs)]
    assert len(of(drive(replicaset.reconcile(rs, ListView(pods=pods), NOW)), Create)) == 1


def test_adopts_orphans_and_releases_strangers() -> None:
    rs = workload("ReplicaSet", replicas=1)
    pods = [pod("orphan"), pod("relabelled", owner=rs, labels={"app": "other"})]

    def answer(intent: Any) -> Any:
        if isinstance(intent, Fetch):
            return rs
        return pods[0] if isinstance(intent, Patch) else getattr(intent, "obj", None)
    intents = drive(replicaset.reconcile(rs, ListView(pods=pods), NOW), answer)
    patches = {p.name: p.patch["metadata"]["ownerReferences"][0] for p in of(intents, Patch)}
    assert patches["orphan"]["uid"] == "uid-w" and patches["relabelled"]["$patch"] == "delete"
    assert not of(intents, Create)


def test_nothing_to_do_writes_nothing() -> None:
    rs = workload("ReplicaSet", replicas=1)
    first = drive(replicaset.reconcile(rs, ListView(pods=[pod("a", owner=rs)]), NOW))
    settled = of(first, Update)[0].obj
    assert drive(replicaset.reconcile(settled, ListView(pods=[pod("a", owner=rs)]), NOW)) == []
    assert settled["status"] == {"replicas": 1, "fullyLabeledReplicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 1,
                                 "terminatingReplicas": 0}
