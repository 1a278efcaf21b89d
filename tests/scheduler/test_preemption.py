"""Preemption over a whole API server: who goes, who stays, who gets the room, and what is said about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kubern.controllers.replicaset import CONTROLLER as REPLICASET
from kubern.model.object import Object, condition, meta
from tests.scheduler.conftest import POD, pod_spec

FAKE = "example.com/fakecpu"
Start = Callable[..., Any]


def replicaset(name: str, amount: str, priority: str) -> Object:
    labels = {"name": name}
    spec = pod_spec({FAKE: amount}, priorityClassName=priority, nodeSelector={"kubernetes.io/hostname": "a"})
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name, "namespace": "default"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}}


async def test_replacements_of_victims_leave_the_preemptor_its_room(stage: Start) -> None:
    """As the conformance test "runs ReplicaSets to verify preemption running path": each victim is evicted once, whoever survives stays."""
    async with stage(REPLICASET, grace_s=0.3) as s:
        await s.node("a", **{FAKE: "1000"})
        await s.node("b")
        await s.priorities(p1=1, p2=2, p3=3, p4=4)
        for i, amount in ((1, "200"), (2, "300"), (3, "450")):
            await s.client.create(replicaset(f"rs-pod{i}", amount, f"p{i}"))

        async def three_run() -> bool:
            return sum((p.get("status") or {}).get("phase") == "Running" for p in await s.list("pods")) == 3
        await s.until(three_run)
        await s.pod("pod4", requests={FAKE: "500"}, priorityClassName="p4", nodeSelector={"kubernetes.io/hostname": "a"})
        for i in range(40):                              # whoever is looked at again while a victim is still there finds the room taken
            for p in await s.list("pods"):
                if not p["spec"].get("nodeName") and meta(p)["name"].startswith("rs-"):
                    await s.client.patch(POD, "default", meta(p)["name"], {"metadata": {"labels": {"seen": str(i)}}})
            await asyncio.sleep(0.03)
        assert await s.placed("pod4") == "a"
        counts = [sum(n.startswith(f"rs-pod{i}") for n in s.seen) for i in (1, 2, 3)]
        assert counts == [2, 2, 1]
        waiting = [p for p in await s.list("pods") if not p["spec"].get("nodeName")]
        assert sorted(meta(p)["labels"]["name"] for p in waiting) == ["rs-pod1", "rs-pod2"]
        for p in waiting:
            said = condition(p, "PodScheduled")
            assert said is not None and said["message"].startswith(f"0/2 nodes are available: 1 Insufficient {FAKE}, 1 node(s) didn't match")
