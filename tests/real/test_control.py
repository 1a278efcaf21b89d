"""Control loops on real nodes: what scales, moves, completes, keeps its data, fires and gives way. What takes long begins first and is looked at last."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubern.model.quantity import milli

pytestmark = [pytest.mark.real, pytest.mark.slow]

BURN = "while :; do [ -e /tmp/stop ] && sleep 1; done"


def box(text: str, cpu: str = "10m", **more: Any) -> dict[str, Any]:
    return {"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", text],
            "resources": {"requests": {"cpu": cpu, "memory": "8Mi"}}, **more}


def template(name: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec}}


def workload(kind: str, name: str, replicas: int, container: dict[str, Any], spec: Any = None, **pod: Any) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, container, **pod), **(spec or {})}}


def make(c: Any, *objects: dict[str, Any]) -> None:
    c.apply("\n---\n".join(json.dumps(o) for o in objects))


def cpu_of(c: Any, node: str) -> int:
    """The node's allocatable cpu in milli."""
    return milli(c.get("node", node)["status"]["allocatable"]["cpu"])


def running(c: Any, app: str) -> list[dict[str, Any]]:
    return [p for p in c.pods(f"app={app}") if not p["metadata"].get("deletionTimestamp") and p["status"].get("phase") == "Running"]


@pytest.fixture(scope="module")
def c(cluster: Any) -> Any:
    """The cluster, with the slow ones on their way."""
    cluster.until(lambda: cluster.kubectl("get", "serviceaccount", "default", check=False), "no service account")
    burn = box(BURN, "50m")
    burn["resources"]["limits"] = {"cpu": "150m"}
    quick = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}
    make(cluster, workload("Deployment", "burn", 1, burn), {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "burn"}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "burn"}, "minReplicas": 1, "maxReplicas": 3,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 100}}}],
            "behavior": {"scaleUp": quick, "scaleDown": quick}}}, {
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"}, "spec": {"schedule": "* * * * *", "jobTemplate": {
            "spec": {"template": template("tick", box("echo tick"), restartPolicy="Never")}}}})
    cluster.cron_began = time.monotonic()
    return cluster


def test_indexed_job_completes_though_some_indexes_fail_at_first(c: Any) -> None:
    count = {"name": "FAILED", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-index-failure-count']"}}}
    text = 'case $JOB_COMPLETION_INDEX in 3|11|17) [ "$FAILED" != 0 ] || exit 1;; esac; echo $JOB_COMPLETION_INDEX'
    make(c, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "many"}, "spec": {
        "completions": 20, "parallelism": 6, "completionMode": "Indexed", "backoffLimitPerIndex": 2,
        "template": template("many", box(text, env=[count]), restartPolicy="Never")}})
    c.wait("job/many", "condition=Complete", 120)
    job = c.get("job", "many")["status"]
    assert (job["succeeded"], job["failed"], job["completedIndexes"]) == (20, 3, "0-19")
    done = [p for p in c.pods("app=many") if p["status"]["phase"] == "Succeeded"]
    logs = {p["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]: c.kubectl("logs", p["metadata"]["name"]).strip() for p in done[:4]}
    assert all(i == text for i, text in logs.items())
    c.kubectl("delete", "job", "many", "--wait=false")


def test_stateful_set_keeps_its_volumes(c: Any) -> None:
    make(c, workload("StatefulSet", "db", 3, box("[ -e /data/id ] || echo $HOSTNAME-$RANDOM > /data/id; sleep 10000",
                                                 volumeMounts=[{"name": "data", "mountPath": "/data"}]), {
        "serviceName": "db", "podManagementPolicy": "Parallel", "volumeClaimTemplates": [
            {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}}]}))
    names = ["db-0", "db-1", "db-2"]
    c.kubectl("rollout", "status", "statefulset/db", "--timeout=90s")
    before = {n: (c.get("pod", n)["metadata"]["uid"], c.exec(n, "cat", "/data/id").strip()) for n in names}
    assert len({i for _, i in before.values()}) == 3 and all(i.startswith(n) for n, (_, i) in before.items())
    c.kubectl("delete", "pod", *names)
    c.until(lambda: {p["metadata"]["uid"] for p in running(c, "db")}.isdisjoint({u for u, _ in before.values()}) and len(running(c, "db")) == 3, "new pods")
    c.kubectl("rollout", "status", "statefulset/db", "--timeout=90s")
    for n, (uid, identity) in before.items():
        assert c.get("pod", n)["metadata"]["uid"] != uid
        assert c.exec(n, "cat", "/data/id").strip() == identity
    c.kubectl("delete", "statefulset", "db", "--wait=true")


def test_preemption_evicts_the_least_important_pod_that_is_enough(c: Any) -> None:
    share = f"{cpu_of(c, 'node-0') * 28 // 100}m"
    values = {"least": 5, "low": 10, "mid": 100, "high": 1000}
    make(c, *({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": n}, "value": v} for n, v in values.items()))

    def at(name: str) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "prio"}}, "spec": {
            "priorityClassName": name, "nodeSelector": {"kubernetes.io/hostname": "node-0"}, "terminationGracePeriodSeconds": 1,
            "containers": [box("sleep 10000", share)]}}
    make(c, at("least"), at("low"), at("mid"))
    for n in ("least", "low", "mid"):
        c.wait(f"pod/{n}")
    make(c, at("high"))
    c.wait("pod/high")
    assert {p["metadata"]["name"] for p in c.pods("app=prio")} == {"low", "mid", "high"}
    event = c.until(lambda: c.get("events", "--field-selector", "involvedObject.name=least,reason=Preempted")["items"], "the event")[0]
    assert event["message"].endswith("on node node-0")
    c.kubectl("delete", "pod", "-l", "app=prio", "--force", "--grace-period=0")


def test_drain_moves_pods_and_keeps_the_budget(c: Any) -> None:
    spread = [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
               "labelSelector": {"matchLabels": {"app": "front"}}}]
    make(c, workload("Deployment", "front", 4, box("sleep 10000"), topologySpreadConstraints=spread), {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "front"},
        "spec": {"minAvailable": 3, "selector": {"matchLabels": {"app": "front"}}}})
    c.kubectl("rollout", "status", "deployment/front", "--timeout=90s")
    c.until(lambda: c.get("pdb", "front")["status"].get("disruptionsAllowed") == 1, "the budget is counted")
    assert {p["spec"]["nodeName"] for p in running(c, "front")} == {"node-0", "node-1"}
    least, over = [4], threading.Event()

    def look() -> None:
        while not over.is_set():
            ready = sum(1 for p in running(c, "front") if all(s["ready"] for s in p["status"].get("containerStatuses") or [{"ready": False}]))
            least.append(ready)
            time.sleep(0.1)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        c.kubectl("drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s", timeout=100)
    finally:
        over.set()
        watcher.join()
        c.kubectl("uncordon", "node-1")
    assert min(least) >= 3, least
    assert all(p["spec"]["nodeName"] == "node-0" for p in running(c, "front"))
    c.kubectl("rollout", "status", "deployment/front", "--timeout=60s")
    c.kubectl("delete", "deployment/front", "pdb/front", "--wait=false")


def test_horizontal_autoscaler_follows_real_load(c: Any) -> None:
    def replicas() -> int:
        return int(c.get("deployment", "burn")["spec"]["replicas"])
    c.until(lambda: replicas() == 3, f"scaled up: {c.get('hpa', 'burn').get('status')}", 120)
    current = c.get("hpa", "burn")["status"]
    assert {x["type"]: x["status"] for x in current["conditions"]}["ScalingActive"] == "True"

    def calm() -> bool:
        for p in running(c, "burn"):
            c.exec(p["metadata"]["name"], "touch", "/tmp/stop", check=False)
        return replicas() == 1
    c.until(calm, "scaled down", 120)
    reasons = {e["message"] for e in c.get("events", "--field-selector", "involvedObject.kind=HorizontalPodAutoscaler,reason=SuccessfulRescale")["items"]}
    assert "New size: 3; reason: cpu resource utilization (percentage of request) above target" in reasons
    assert "New size: 1; reason: All metrics below target" in reasons


def test_cron_job_fires_every_minute(c: Any) -> None:
    job = c.until(lambda: [j for j in c.get("jobs")["items"] if j["metadata"]["name"].startswith("tick-")], "a job",
                  max(1.0, 75 - (time.monotonic() - c.cron_began)))[0]
    c.wait(f"job/{job['metadata']['name']}", "condition=Complete", 30)
    assert c.get("cronjob", "tick")["status"]["lastSuccessfulTime"]


# --- nodes by need, in a cluster of its own ---------------------------------------------------------------------------

@pytest.fixture
def growing(cluster: Any) -> Iterator[Any]:
    made = type(cluster)(Path(tempfile.mkdtemp(prefix="kt")), "--nodes", "1", "--node-grace", "8", "--node-group", "name=extra,max=2,label=pool=extra",
                         "--autoscaler", "scan-interval=1s,scale-down-unneeded-time=4s,scale-down-delay-after-add=2s")
    try:
        made.up()
        yield made
    finally:
        made.down()


def test_nodes_appear_for_a_deployment_too_large_and_go_when_it_shrinks(growing: Any) -> None:
    c = growing
    c.until(lambda: c.kubectl("get", "serviceaccount", "default", check=False), "no service account")
    prefer = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "preference": {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}}]}}
    make(c, workload("Deployment", "large", 3, box("sleep 10000", f"{cpu_of(c, 'node-0') * 6 // 10}m")))
    c.kubectl("rollout", "status", "deployment/large", "--timeout=120s", timeout=130)
    assert {p["spec"]["nodeName"] for p in running(c, "large")} == {"node-0", "extra-0", "extra-1"}
    assert len(c.get("nodes", "-l", "pool=extra")["items"]) == 2
    told = [e["message"] for e in c.get("events", "--field-selector", "reason=TriggeredScaleUp")["items"]]
    assert "pod triggered scale-up: [{extra 0->2 (max: 2)}]" in told
    c.kubectl("scale", "deployment/large", "--replicas=4")
    c.until(lambda: any(e["message"] == "pod didn't trigger scale-up: 1 max node group size reached"
                        for e in c.get("events", "--field-selector", "reason=NotTriggerScaleUp")["items"]), "the refusal")
    make(c, workload("Deployment", "small", 1, box("sleep 10000"), affinity=prefer))       # sits on an extra node and must move
    c.kubectl("rollout", "status", "deployment/small", "--timeout=60s")
    assert running(c, "small")[0]["spec"]["nodeName"].startswith("extra-")
    c.kubectl("scale", "deployment/large", "--replicas=0")
    c.until(lambda: [n["metadata"]["name"] for n in c.get("nodes")["items"]] == ["node-0"], "the extra nodes are gone", 120)
    c.until(lambda: [p["spec"].get("nodeName") for p in running(c, "small")] == ["node-0"], "the small pod moved")
    assert "extra" not in c.kubern("node", "list")
    done = {e["message"] for e in c.get("events", "-A", "--field-selector", "reason=ScaleDown")["items"]}
    assert {"marked the node as toBeDeleted/unschedulable", "deleting pod for node scale down", "node removed by cluster autoscaler"} <= done
    assert "autoscalerStatus: Running" in c.get("configmap", "cluster-autoscaler-status", "-n", "kube-system")["data"]["status"]
