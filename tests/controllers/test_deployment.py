"""Deployment: the arithmetic of a rollout, and a rollout."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.controllers import deployment, replicaset, rollout
from kubern.controllers.amount import scaled
from tests.controllers.conftest import workload


@pytest.mark.parametrize(("value", "total", "up", "result"), [(3, 10, True, 3), ("25%", 10, True, 3), ("25%", 10, False, 2), ("0%", 5, True, 0)])
def test_scaled(value: Any, total: int, up: bool, result: int) -> None:
    assert scaled(value, total, up) == result


def test_fenceposts_are_never_both_zero() -> None:
    d = workload("Deployment", replicas=3, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "1%"}})
    assert rollout.max_surge(d) == 0 and rollout.max_unavailable(d) == 1


async def test_rolls_out_and_cleans_up(cluster: Any) -> None:
    c = await cluster(deployment.CONTROLLER, replicaset.CONTROLLER)
    body = workload("Deployment", "d", replicas=2, revisionHistoryLimit=0)
    body["metadata"] = {"name": "d", "namespace": "default"}
    await c.client.create(body)

    async def ready_pods() -> list[Any]:
        """Stands in for the kubelet."""
        pods = await c.list("pods")
        for p in pods:
            if p["status"].get("phase") != "Running":
                await c.client.update({**p, "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}}, "status")
        return pods

    async def done(image: str, revision: str) -> bool:
        pods = await ready_pods()
        d = await c.get("deployments.apps", "d")
        s = d.get("status") or {}
        progressing = [x for x in s.get("conditions") or () if x["type"] == "Progressing"]
        return (len(pods) == 2 and {p["spec"]["containers"][0]["image"] for p in pods} == {image} and s.get("availableReplicas") == 2
                and d["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
                and progressing[0]["reason"] == "NewReplicaSetAvailable")
    await c.until(lambda: done("x", "1"))
    d = await c.get("deployments.apps", "d")
    d["spec"]["template"]["spec"]["containers"][0]["image"] = "y"
    await c.client.update(d)
    await c.until(lambda: done("y", "2"))

    async def one_set() -> bool:
        return len(await c.list("replicasets.apps")) == 1
    await c.until(one_set)
