"""Preemption over a whole API server: who goes, who stays, who gets the room, and what is said about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kubern.controllers.replicaset import CONTROLLER as REPLICASET
from kubern.model.object import Object, condition, deleting, meta
from kubern.model.rows import BUILT_IN
from tests.scheduler.conftest import NODE, POD, pod_spec

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


async def test_what_is_said_and_who_gives_way(stage: Start) -> None:
    """The victim's condition and event, the preemptor's nomination; whoever less important was nominated there may look elsewhere."""
    async with stage(grace_s=1.0) as s:
        await s.node("a", cpu="2")
        await s.priorities(low=1, mid=5, high=9)
        await s.pod("victim", requests={"cpu": "2"}, priorityClassName="low")
        assert await s.placed("victim") == "a"
        await s.pod("mid", requests={"cpu": "2"}, priorityClassName="mid")

        async def nominated(name: str, node: str | None) -> bool:
            return (await s.get("pods", name)).get("status", {}).get("nominatedNodeName") == node
        await s.until(lambda: nominated("mid", "a"))
        gone = await s.get("pods", "victim")
        target = condition(gone, "DisruptionTarget")
        assert target is not None and (target["status"], target["reason"], target["message"]) == (
            "True", "PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod")
        assert deleting(gone)
        said = condition(await s.get("pods", "mid"), "PodScheduled")
        assert said is not None and said["message"] == "0/1 nodes are available: 1 Insufficient cpu."
        high = await s.pod("high", requests={"cpu": "2"}, priorityClassName="high")
        await s.until(lambda: nominated("high", "a"))
        await s.until(lambda: nominated("mid", None))
        assert await s.placed("high") == "a"

        async def told() -> list[str]:
            events, _ = await s.client.list(BUILT_IN["events"], "default")
            return [e["message"] for e in events if e.get("reason") == "Preempted"]
        texts = await s.until(told)
        mid = await s.get("pods", "mid")
        assert texts == [f"Preempted by pod {meta(mid)['uid']} on node a"] and meta(high)["uid"] not in texts[0]


async def test_refused_pods_are_woken_by_what_may_help_them(stage: Start) -> None:
    async with stage() as s:
        await s.node("a")
        await s.client.patch(NODE, "", "a", {"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})
        near = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "friend"}}}]}}
        await s.until(lambda: asyncio.sleep(0, bool(s.scheduler.state.table.count)))
        await s.pod("plain")
        await s.pod("near", affinity=near, tolerations=[{"operator": "Exists"}])
        queue = s.scheduler.state.queue

        async def parked() -> Any:
            return all(k in queue.pods and queue.pods[k].place == "parked" for k in (("default", "plain"), ("default", "near")))
        await s.until(parked)
        attempts = {k: q.attempts for k, q in queue.pods.items()}
        await s.pod("stranger", labels={"app": "other"}, tolerations=[{"operator": "Exists"}])
        await s.placed("stranger")
        await s.client.patch(NODE, "", "a", {"metadata": {"labels": {"x": "y"}}, "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}})
        await asyncio.sleep(0.2)
        assert queue.pods["default", "plain"].attempts == attempts["default", "plain"], "still tainted"
        await s.pod("friend", labels={"app": "friend"}, tolerations=[{"operator": "Exists"}])
        assert await s.placed("near") == "a"
        assert queue.pods["default", "plain"].attempts == attempts["default", "plain"]
        await s.client.patch(NODE, "", "a", {"spec": {"taints": None}})
        assert await s.placed("plain") == "a"
