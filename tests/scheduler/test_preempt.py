"""Whom to evict: the arrays against the plain reference on random clusters, and upstream's order among nodes."""

from __future__ import annotations

import random

import pytest

from kubern.scheduler.nominated import Nominations
from kubern.scheduler.pick import Decision, Extra, Rejection, pick
from kubern.scheduler.pod import pod_info
from kubern.scheduler.preempt import DryRuns, NoHelp, Victims, hurt, preempt
from kubern.scheduler.profile import Args, Strategy
from kubern.scheduler.table import NodeTable
from tests.scheduler import reference
from tests.scheduler.test_agree import SPACES, make_node, make_pod

PRIORITIES = (0, 1, 5, 10)


def some_pod(r: random.Random, i: int, plain: bool) -> dict:
    pod = make_pod(r, i)
    if plain:
        pod["spec"] = {"containers": [{"name": "c", "image": "small", "resources": {"requests": {
            "cpu": f"{r.choice((50, 400, 700, 1500))}m", "memory": f"{r.choice((64, 512, 900))}Mi"}}}]}
    pod["spec"]["priority"] = r.choice(PRIORITIES)
    pod["status"] = {"startTime": f"2030-01-01T00:00:{r.randint(0, 59):02}Z"} if r.random() < 0.9 else {}
    return pod


def budget(r: random.Random, i: int) -> dict:
    return {"metadata": {"name": f"b{i}", "namespace": r.choice(list(SPACES)), "uid": f"b{i}", "resourceVersion": "1"},
            "spec": {"selector": {"matchLabels": {"app": r.choice("abc")}}}, "status": {"disruptionsAllowed": r.randint(0, 2)}}


@pytest.mark.parametrize("seed", range(24))
def test_victims_are_those_of_the_plain_scheduler(seed: int) -> None:
    r = random.Random(seed)
    plain = seed % 3 > 0                                         # mostly pods that need nothing but room
    nodes = [make_node(r, i) for i in range(r.randint(3, 9))]
    table = NodeTable(capacity=4)
    for n in nodes:
        table.set_node(n)
    for name, labels in SPACES.items():
        table.set_namespace(name, labels)
    world = reference.World(nodes, [], SPACES, Args(), Strategy())
    budgets = [budget(r, i) for i in range(r.randint(0, 3))]
    runs, tried, found_any = DryRuns(), 0, 0
    for i in range(90):
        pod = some_pod(r, i, plain)
        info = pod_info(pod)
        decision = pick(info, table, r.randrange)
        if isinstance(decision, Decision):
            pod["spec"]["nodeName"] = decision.node
            table.add_pod(info, decision.node)
            world.pods.append(pod)
            continue
        wanted = {}
        for s in decision.candidates.nonzero()[0]:
            node = next(n for n in nodes if n["metadata"]["name"] == table.names[s])
            if one := world.victims(pod, node, budgets):
                wanted[table.names[s]] = ([q["metadata"]["uid"] for q in one[0]], one[1])
        found = preempt(info, table, decision, budgets, Extra(), r.randrange, runs)
        tried += 1
        if isinstance(found, NoHelp):
            assert not wanted, pod
            continue
        found_any += 1
        assert {v.node: ([q.uid for q in v.pods], v.violations) for v in found} == wanted, pod
        assert [hurt(v) for v in found] == sorted(hurt(v) for v in found)
        if r.random() < 0.5:
            for q in found[0].pods:
                table.remove_pod(q)
                world.pods.remove(q.pod)
    assert tried > 10 and found_any


def node(name: str, cpu: str = "2") -> dict:
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {}, "status": {"allocatable": {"cpu": cpu, "pods": "10"}}}


def pod(name: str, cpu: str, priority: int, start: str = "", labels: dict | None = None, **spec: object) -> dict:
    return {"metadata": {"name": name, "namespace": "d", "uid": name, "labels": labels or {}}, "status": {"startTime": start} if start else {},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}], **spec}}


def cluster(pods: dict[str, list[dict]]) -> NodeTable:
    t = NodeTable()
    for name, there in pods.items():
        t.set_node(node(name))
        for p in there:
            t.add_pod(pod_info(p), name)
    return t


def chosen(t: NodeTable, p: dict, budgets: list[dict] | None = None, extra: Extra | None = None) -> Victims | NoHelp:
    info = pod_info(p)
    extra = extra or Extra()
    rejection = pick(info, t, lambda n: 0, extra)
    assert isinstance(rejection, Rejection)
    found = preempt(info, t, rejection, budgets or [], extra, lambda n: 0)
    return found if isinstance(found, NoHelp) else found[0]


@pytest.mark.parametrize(("a", "b", "why"), [
    ([pod("x", "2", 3)], [pod("y", "2", 2)], "the least important victim"),
    ([pod("x", "1", 2), pod("z", "1", 2)], [pod("y", "2", 2)], "the fewest victims"),
    ([pod("x", "2", 2, "2030-01-01T00:00:00Z")], [pod("y", "2", 2, "2030-01-02T00:00:00Z")], "the one that started last"),
    ([pod("x", "2", 1, labels={"app": "guarded"})], [pod("y", "2", 4)], "no budget violated, whatever the priority"),
], ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else "")
def test_of_two_nodes_the_second_hurts_less(a: list[dict], b: list[dict], why: str) -> None:
    guard = {"metadata": {"name": "b", "namespace": "d"}, "spec": {"selector": {"matchLabels": {"app": "guarded"}}}, "status": {"disruptionsAllowed": 0}}
    everything = {"metadata": {"name": "e", "namespace": "d"}, "spec": {"selector": {}}, "status": {"disruptionsAllowed": 0}}      # matches nothing
    found = chosen(cluster({"a": a, "b": b}), pod("p", "2", 9), [guard, everything])
    assert isinstance(found, Victims) and found.node == "b", why


def test_who_may_not_and_who_waits() -> None:
    t = cluster({"a": [pod("x", "2", 1)]})
    assert chosen(t, pod("p", "1", 2, preemptionPolicy="Never")) == NoHelp("not eligible due to preemptionPolicy=Never.", waits=True)
    assert isinstance(chosen(t, pod("p", "1", 1)), NoHelp)
    leaving = pod("y", "2", 1)
    leaving["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    p = pod_info(pod("p", "1", 2))
    for status, waits in (("True", True), ("False", False)):
        leaving["status"]["conditions"] = [{"type": "DisruptionTarget", "status": status, "reason": "PreemptionByScheduler"}]
        there = cluster({"a": [leaving]})
        nominated = Nominations(there)
        nominated.set(p, "a")
        found = chosen(there, p.pod, extra=Extra(nominated=nominated))
        assert isinstance(found, NoHelp if waits else Victims)
        if isinstance(found, NoHelp):
            assert found.waits and found.message == "not eligible due to a terminating pod on the nominated node."


def test_promised_room_is_not_made_twice() -> None:
    """A second preemptor does not count on room that the first was promised; a more important one does."""
    t = cluster({"a": [pod("x", "1", 1), pod("y", "1", 1)]})
    nominated = Nominations(t)
    nominated.set(pod_info(pod("first", "2", 5)), "a")
    extra = Extra(nominated=nominated)
    equal = chosen(t, pod("second", "1", 5), extra=extra)
    assert equal == NoHelp("0/1 nodes are available: 1 Insufficient cpu.")
    higher = chosen(t, pod("third", "1", 6), extra=extra)
    assert isinstance(higher, Victims) and len(higher.pods) == 1


def test_ports_and_enmity_of_nominated_pods_count_too() -> None:
    """Not only their room: as if they were there."""
    t = cluster({"a": [], "b": []})
    ports = pod("first", "1", 5)
    ports["spec"]["containers"][0]["ports"] = [{"hostPort": 80}]
    second = pod("second", "1", 5)
    second["spec"]["containers"][0]["ports"] = [{"hostPort": 80}]
    nominated = Nominations(t)
    nominated.set(pod_info(ports), "a")
    found = pick(pod_info(second), t, lambda n: 0, Extra(nominated=nominated))
    assert isinstance(found, Decision) and found.node == "b"
    keeps_away = pod("first", "1", 5, affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "w"}}}]}})
    nominated.set(pod_info(keeps_away), "a")
    found = pick(pod_info(pod("w", "1", 5, labels={"app": "w"})), t, lambda n: 0, Extra(nominated=nominated))
    assert isinstance(found, Decision) and found.node == "b"
    found = pick(pod_info(pod("w", "1", 6, labels={"app": "w"})), t, lambda n: 0, Extra(nominated=nominated))
    assert isinstance(found, Decision) and found.node == "a"                     # more important than the nominated one
