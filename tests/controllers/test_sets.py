"""StatefulSets and DaemonSets."""

from __future__ import annotations

import json
from typing import Any

from kubern.controllers import daemonset, history, statefulset
from kubern.model.intent import Create, Delete, Update
from kubern.model.object import Object
from tests.controllers.conftest import ListView, drive, of, pod, workload

NOW = 1893456100.0


def revision(owner: Object, label: str) -> Object:
    r = history.new(owner, 1, label, 0 if owner["kind"] == "StatefulSet" else None)
    r["metadata"] |= {"uid": "uid-r", "creationTimestamp": "2030-01-01T00:00:00Z"}
    return r


def a_set(**spec: Any) -> tuple[Object, Object]:
    s = workload("StatefulSet", "w", serviceName="svc", updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}, **spec)
    return s, revision(s, history.HASH)


def member(s: Object, r: Object, i: int, **more: Any) -> Object:
    return pod(f"w-{i}", owner=s, labels={"app": "a", "controller-revision-hash": r["metadata"]["name"],
                                          "statefulset.kubernetes.io/pod-name": f"w-{i}"}, **more)


def view(r: Object, pods: list[Object], **more: list[Object]) -> ListView:
    return ListView(pods=pods, controllerrevisions__apps=[r], **more)


def test_one_at_a_time_in_order() -> None:
    s, r = a_set(replicas=3)
    made = of(drive(statefulset.reconcile(s, view(r, []), NOW)), Create)
    assert [p.obj["metadata"]["name"] for p in made] == ["w-0"]
    assert made[0].obj["spec"]["hostname"] == "w-0" and made[0].obj["spec"]["subdomain"] == "svc"
    unready = [member(s, r, 0, is_ready=False)]
    assert not of(drive(statefulset.reconcile(s, view(r, unready), NOW)), Create)
    assert [p.obj["metadata"]["name"] for p in of(drive(statefulset.reconcile(s, view(r, [member(s, r, 0)]), NOW)), Create)] == ["w-1"]


def test_parallel_makes_all() -> None:
    s, r = a_set(replicas=3, podManagementPolicy="Parallel")
    assert len(of(drive(statefulset.reconcile(s, view(r, []), NOW)), Create)) == 3


def test_goes_down_from_the_top() -> None:
    s, r = a_set(replicas=1)
    pods = [member(s, r, i) for i in range(3)]
    assert [d.name for d in of(drive(statefulset.reconcile(s, view(r, pods), NOW)), Delete)] == ["w-2"]


def test_an_update_starts_at_the_top_and_stops_at_the_partition() -> None:
    s, _ = a_set(replicas=3)
    s["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = 2
    r = revision(s, history.HASH)
    old = {**r, "metadata": {**r["metadata"], "name": "old"}, "revision": 0, "data": {"spec": {"template": {"spec": {}}}}}
    s["status"] = {"currentRevision": "old"}
    pods = [member(s, old, i) for i in range(3)]
    v = ListView(pods=pods, controllerrevisions__apps=[old, r])
    assert [d.name for d in of(drive(statefulset.reconcile(s, v, NOW)), Delete)] == ["w-2"]
    v = ListView(pods=[*pods[:2], member(s, r, 2)], controllerrevisions__apps=[old, r])
    assert not of(drive(statefulset.reconcile(s, v, NOW)), Delete)


def test_claims_come_before_the_pod() -> None:
    s, _ = a_set(replicas=1, volumeClaimTemplates=[{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}])
    r = revision(s, history.HASH)
    made = [c.obj for c in of(drive(statefulset.reconcile(s, view(r, []), NOW)), Create)]
    assert [(o["kind"], o["metadata"]["name"]) for o in made] == [("PersistentVolumeClaim", "data-w-0"), ("Pod", "w-0")]
    assert made[1]["spec"]["volumes"] == [{"name": "data", "persistentVolumeClaim": {"claimName": "data-w-0"}}]


def node(name: str, taints: list[Any] | None = None, labels: dict[str, str] | None = None) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels or {}}, "spec": {"taints": taints or []}}


def a_daemonset(**spec: Any) -> Object:
    return workload("DaemonSet", "ds", updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}, **spec)


def test_one_pod_on_every_node_that_fits() -> None:
    ds = a_daemonset()
    ds["spec"]["template"]["spec"]["nodeSelector"] = {"d": "y"}
    nodes = [node("a", labels={"d": "y"}), node("b"), node("c", [{"key": "k", "effect": "NoSchedule"}], {"d": "y"})]
    v = ListView(pods=[], nodes=nodes, controllerrevisions__apps=[])
    intents = drive(daemonset.controller().reconcile(ds, v, NOW))
    pods = [c.obj for c in of(intents, Create) if c.obj["kind"] == "Pod"]
    terms = [p["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] for p in pods]
    assert terms == [[{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]]
    assert of(intents, Update)[-1].obj["status"]["desiredNumberScheduled"] == 1


def test_no_execute_taints_drive_pods_away_and_no_schedule_ones_do_not() -> None:
    ds = a_daemonset()
    r = revision(ds, history.POD_HASH)
    hash_ = r["metadata"]["labels"][history.POD_HASH]
    pods = [pod("p-a", node="a", owner=ds, labels={"app": "a", history.POD_HASH: hash_}),
            pod("p-b", node="b", owner=ds, labels={"app": "a", history.POD_HASH: hash_})]
    nodes = [node("a", [{"key": "k", "effect": "NoSchedule"}]), node("b", [{"key": "k", "effect": "NoExecute"}])]
    v = ListView(pods=pods, nodes=nodes, controllerrevisions__apps=[r])
    assert [d.name for d in of(drive(daemonset.controller().reconcile(ds, v, NOW)), Delete)] == ["p-b"]


def test_an_update_replaces_one_at_a_time() -> None:
    ds = a_daemonset()
    r = revision(ds, history.POD_HASH)
    pods = [pod(f"p-{n}", node=n, owner=ds, labels={"app": "a", history.POD_HASH: "old"}) for n in "abc"]
    v = ListView(pods=pods, nodes=[node(n) for n in "abc"], controllerrevisions__apps=[r])
    assert len(of(drive(daemonset.controller().reconcile(ds, v, NOW)), Delete)) == 1


def test_a_revision_is_written_as_go_writes_it() -> None:
    s, r = a_set(replicas=1)
    text = json.dumps(r["data"])
    assert r["data"] == history.snapshot(s)
    assert text == json.dumps(r["data"], sort_keys=True) and text.startswith('{"spec": {"template": {"$patch": "replace", ')
