"""kubern why: the shortfall, the taints and the nearest fix."""

from __future__ import annotations

from kubern.scheduler.pick import NOTHING
from kubern.scheduler.pod import pod_info
from kubern.scheduler.table import NodeTable
from kubern.scheduler.why import why


def table() -> NodeTable:
    t = NodeTable(4)
    for i in range(6):
        gpu = {"taints": [{"key": "gpu", "value": "true", "effect": "NoSchedule"}]} if i >= 4 else {}
        t.set_node({"metadata": {"name": f"n{i}", "labels": {"zone": "ab"[i % 2]}}, "spec": gpu,
                    "status": {"allocatable": {"cpu": "4", "memory": "2Gi" if i < 4 else "8Gi", "pods": "10"}}})
    return t


def pod(**spec: object) -> dict:
    return {"metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"memory": "3584Mi"}}}], **spec}}


def test_memory_and_taints() -> None:
    found = why(pod_info(pod()), table(), lambda p: NOTHING)
    assert found["nodes"] == 6 and not found["fits"]
    assert [(r["reason"], r["detail"], len(r["nodes"])) for r in found["reasons"]] == [
        ("node(s) had untolerated taint(s)", "gpu=true:NoSchedule", 2), ("Insufficient memory", "short by 1.5Gi at least", 4)]
    assert {"change": "tolerate gpu=true:NoSchedule", "nodes": 2} in found["fixes"]
    assert "nearest fix: tolerate gpu=true:NoSchedule (→ 2 nodes)" in found["text"]


def test_selector() -> None:
    found = why(pod_info(pod(nodeSelector={"zone": "c"}, tolerations=[{"operator": "Exists"}])), table(), lambda p: NOTHING)
    assert found["fixes"] == [{"change": "remove nodeSelector zone=c", "nodes": 2}]


def test_it_fits() -> None:
    found = why(pod_info(pod(tolerations=[{"operator": "Exists"}])), table(), lambda p: NOTHING)
    assert found["fits"] == ["n4", "n5"] and "2 of 6 nodes would do" in found["text"]


def test_whom_it_must_not_meet_and_who_holds_its_port() -> None:
    t = table()
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}
    anti = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    web = {"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}
    for i in range(4):
        other = pod_info({"metadata": {"name": f"x{i}", "namespace": "d", "labels": {"app": "x"}}, "spec": web})
        assert t.add_pod(other, f"n{i}")
    found = why(pod_info({"metadata": {"name": "p", "namespace": "d", "labels": {}}, "spec": {**web, "affinity": anti}}), t, lambda p: NOTHING)
    details = {r["reason"]: r["detail"] for r in found["reasons"]}
    assert details["node(s) didn't have free ports for the requested pod ports"] == "80/TCP held by d/x0, d/x1, d/x2, d/x3"
    found = why(pod_info({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [{"name": "c"}], "affinity": anti}}), t, lambda p: NOTHING)
    assert "d/x0, d/x1, d/x2, d/x3" in found["text"] and "remove the required pod anti-affinity" in found["text"]


def test_which_domains_are_full() -> None:
    t = table()
    constraint = {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "x"}}}
    for i in range(2):
        assert t.add_pod(pod_info({"metadata": {"name": f"x{i}", "namespace": "d", "labels": {"app": "x"}}, "spec": {"containers": [{"name": "c"}]}}), "n0")
    found = why(pod_info({"metadata": {"name": "p", "namespace": "d", "labels": {"app": "x"}}, "spec": {
        "containers": [{"name": "c"}], "nodeSelector": {"zone": "a"}, "topologySpreadConstraints": [{**constraint, "nodeAffinityPolicy": "Ignore"}]}}), t,
        lambda p: NOTHING)
    details = {r["reason"]: r["detail"] for r in found["reasons"]}
    assert details["node(s) didn't match pod topology spread constraints"] == "zone: a 2, b 0; maxSkew 1"
    assert details["node(s) didn't match Pod's node affinity/selector"] == "zone=a"


def test_what_is_said_before_any_node_is_looked_at() -> None:
    from kubern.scheduler.pick import Extra
    from kubern.scheduler.plugins.verdict import Reject

    missing = Extra(prefilters=(("VolumeBinding", lambda p, t: Reject('persistentvolumeclaim "data" not found', True)),))
    found = why(pod_info(pod()), table(), lambda p: missing)
    assert found["message"] == 'persistentvolumeclaim "data" not found' and "create the claim" in found["text"]
