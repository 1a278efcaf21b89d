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
