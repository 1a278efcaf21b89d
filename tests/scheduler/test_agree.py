"""The arrays against the plain reference, on random clusters: the same reasons, the same feasible nodes, the same best nodes."""

from __future__ import annotations

import random

import pytest

from kubern.scheduler.pick import Decision, Extra, feasible, pick, scores
from kubern.scheduler.plain import Plain
from kubern.scheduler.pod import pod_info
from kubern.scheduler.profile import Args, Profile, Strategy
from kubern.scheduler.table import NodeTable
from tests.scheduler import reference

APPS, ZONES, IMAGES = ("a", "b", "c"), ("x", "y", "z"), ("small", "large")
SPACES = {"d": {"team": "red"}, "e": {"team": "blue"}}
KEYS = ("kubernetes.io/hostname", "zone")


def make_node(r: random.Random, i: int) -> dict:
    labels = {"kubernetes.io/hostname": f"n{i}"}
    if r.random() < 0.9:
        labels["zone"] = r.choice(ZONES)
    if r.random() < 0.4:
        labels["size"] = str(r.randint(1, 9))
    spec: dict = {"unschedulable": True} if r.random() < 0.05 else {}
    if r.random() < 0.3:
        spec["taints"] = [{"key": "t", "value": r.choice("pq"), "effect": r.choice(("NoSchedule", "PreferNoSchedule", "NoExecute"))}]
    room = {"cpu": str(r.randint(1, 4)), "memory": f"{r.randint(1, 8)}Gi", "pods": str(r.randint(2, 12))}
    if r.random() < 0.4:
        room["x.com/gpu"] = str(r.randint(1, 4))
    images = [{"names": [f"{name}:latest"], "sizeBytes": r.randint(1, 2000) << 20} for name in IMAGES if r.random() < 0.4]
    status: dict = {"allocatable": room, "images": images}
    if r.random() < 0.5:
        status["declaredFeatures"] = ["RestartAllContainersOnContainerExits"]
    return {"metadata": {"name": f"n{i}", "labels": labels}, "spec": spec, "status": status}


def make_pod(r: random.Random, i: int) -> dict:
    container: dict = {"name": "c", "image": r.choice(IMAGES)}
    if r.random() < 0.8:
        container["resources"] = {"requests": {"cpu": f"{r.choice((50, 100, 700))}m", "memory": f"{r.choice((64, 512, 900))}Mi"}}
        if r.random() < 0.2:
            container["resources"]["requests"]["x.com/gpu"] = "1"
    if r.random() < 0.1:
        container["ports"] = [{"hostPort": r.choice((80, 443)), **r.choice(({}, {"hostIP": "10.0.0.1"}, {"protocol": "UDP"}))}]
    if r.random() < 0.05:
        container["restartPolicyRules"] = [{"action": "RestartAllContainers"}]
    spec: dict = {"containers": [container]}
    if r.random() < 0.3:
        spec["tolerations"] = [r.choice(({"operator": "Exists"}, {"key": "t", "value": "p"}, {"key": "t", "operator": "Exists", "effect": "NoSchedule"}))]
    if r.random() < 0.15:
        spec["nodeSelector"] = {"zone": r.choice(ZONES)}
    affinity: dict = {}
    if r.random() < 0.25:
        e = r.choice(({"key": "zone", "operator": r.choice(("In", "NotIn")), "values": ["x", "y"]}, {"key": "size", "operator": "Exists"},
                      {"key": "size", "operator": r.choice(("Gt", "Lt")), "values": ["4"]}, {"key": "size", "operator": "DoesNotExist"}))
        if r.random() < 0.5:
            affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [e]}]}}
        else:
            affinity["nodeAffinity"] = {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": r.randint(1, 100), "preference": {"matchExpressions": [e]}}]}
    for kind in ("podAffinity", "podAntiAffinity"):
        if r.random() < 0.25:
            term = {"topologyKey": r.choice(KEYS), "labelSelector": {"matchLabels": {"app": r.choice(APPS)}},
                    **r.choice(({}, {}, {"namespaces": ["e"]}, {"namespaceSelector": {}}, {"namespaceSelector": {"matchLabels": {"team": "blue"}}}))}
            if r.random() < 0.5:
                affinity[kind] = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
            else:
                affinity[kind] = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": r.randint(1, 100), "podAffinityTerm": term}]}
    if affinity:
        spec["affinity"] = affinity
    if r.random() < 0.3:
        spec["topologySpreadConstraints"] = [
            {"maxSkew": r.randint(1, 2), "topologyKey": key, "whenUnsatisfiable": r.choice(("DoNotSchedule", "ScheduleAnyway")),
             "labelSelector": {"matchLabels": {"app": r.choice(APPS)}},
             **r.choice(({}, {}, {"nodeAffinityPolicy": "Ignore"}, {"nodeTaintsPolicy": "Honor"}))} for key in r.sample(KEYS, r.randint(1, 2))]
        for c in spec["topologySpreadConstraints"]:
            if c["whenUnsatisfiable"] == "DoNotSchedule" and r.random() < 0.3:
                c["minDomains"] = r.randint(1, 3)
    return {"metadata": {"name": f"p{i}", "namespace": r.choice(list(SPACES)), "uid": f"u{i}", "labels": {"app": r.choice(APPS)}}, "spec": spec}


def make_profile(r: random.Random) -> tuple[Profile | None, Args, Strategy]:
    """The default one half of the time."""
    if r.random() < 0.5:
        return None, Args(), Strategy()
    prefer = {"weight": 9, "preference": {"matchExpressions": [{"key": "size", "operator": "Exists"}]}}
    args = Args(
        ignored=r.choice((frozenset(), frozenset({"x.com/gpu"}))), balanced=r.choice((("cpu", "memory"), ("cpu", "memory", "x.com/gpu"))),
        hard_affinity_weight=r.choice((0, 1, 50)), ignore_preferred_of_existing=r.random() < 0.5,
        required=r.choice((None, {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["z"]}]}]})),
        preferred=r.choice(((), (prefer,))))
    kind, shape = r.choice((("LeastAllocated", ()), ("MostAllocated", ()), ("RequestedToCapacityRatio", ((10, 0), (90, 100))),
                            ("RequestedToCapacityRatio", ((0, 100), (75, 10)))))
    strategy = Strategy(kind, r.choice(((("cpu", 1), ("memory", 1)), (("cpu", 2), ("x.com/gpu", 3)))), shape)
    return Profile("default-scheduler", strategy=strategy, args=args), args, strategy


@pytest.mark.parametrize("seed", range(24))
def test_arrays_agree_with_the_plain_scheduler(seed: int) -> None:
    r = random.Random(seed)
    profile, args, strategy = make_profile(r)
    extra = Extra(profile=profile)
    nodes = [make_node(r, i) for i in range(r.randint(3, 12))]
    table = NodeTable(capacity=4)
    for n in nodes:
        table.set_node(n)
    for name, labels in SPACES.items():
        table.set_namespace(name, labels)
    world = reference.World(nodes, [], SPACES, args, strategy)
    infos, plain, taken = [], Plain(table), 0
    for i in range(60):
        if infos and r.random() < 0.2:                           # pods also leave: the counts must follow
            gone = infos.pop(r.randrange(len(infos)))
            table.remove_pod(gone)
            world.pods.remove(gone.pod)
        pod = make_pod(r, i)
        info = pod_info(pod)
        info.args = args
        ok, rejection = feasible(info, table, extra)
        expected: dict[str, int] = {}
        good = []
        for n in nodes:
            reasons = world.why_not(pod, n)
            if not reasons:
                good.append(n)
            for reason in reasons:
                expected[reason] = expected.get(reason, 0) + 1
        assert rejection.reasons == expected, pod
        assert {table.names[s] for s in ok.nonzero()[0]} == {n["metadata"]["name"] for n in good}
        decision = pick(info, table, r.randrange, extra)
        short, way = plain.pick(info, extra, lambda n: 0), pick(info, table, lambda n: 0, extra)
        assert short is None or short == way
        taken += short is not None
        assert isinstance(decision, Decision) == bool(good)
        if not isinstance(decision, Decision):
            continue
        total, _ = scores(info, table, ok, extra)
        wanted = world.total(pod, good)
        mine = {table.names[s]: int(total[s]) for s in ok.nonzero()[0]}
        low = {k: v - wanted[k] for k, v in mine.items()}
        assert len(set(low.values())) == 1, (pod, mine, wanted)  # a constant offset changes no ranking
        assert wanted[decision.node] == max(wanted.values())
        pod["spec"]["nodeName"] = decision.node
        table.add_pod(info, decision.node)
        world.pods.append(pod)
        infos.append(info)
    assert taken > 5 or profile is not None or any(t["effect"] == "PreferNoSchedule" for n in nodes for t in n["spec"].get("taints", []))
