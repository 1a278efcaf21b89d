"""The short way picks what the long way picks."""

import random

import pytest

from kubern.scheduler.nominated import Nominations
from kubern.scheduler.pick import Decision, Extra, feasible, pick, scores
from kubern.scheduler.plain import Plain
from kubern.scheduler.pod import pod_info
from kubern.scheduler.table import NodeTable


def node(name, cpu, memory, pods=10, **spec):
    return {"metadata": {"name": name, "labels": {"zone": name[-1]}}, "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": str(pods)}}}


def pod(name, cpu=None, memory=None, **spec):
    requests = {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}
    return pod_info({"metadata": {"name": name, "namespace": "d", "uid": name},
                     "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}], **spec}})


def table(rng, n=60):
    t = NodeTable()
    for i in range(n):
        taints = {"taints": [{"key": "a", "effect": "NoSchedule"}]} if i % 7 == 0 else {"unschedulable": True} if i % 11 == 0 else {}
        t.set_node(node(f"n{i}", rng.choice(("2", "4", "8")), rng.choice(("4Gi", "8Gi", "0")), rng.choice((3, 10)), **taints))
    return t


@pytest.mark.parametrize("seed", range(4))
def test_scores_stay_those_of_pick(seed):
    rng = random.Random(seed)
    t = table(rng)
    plain = Plain(t)
    kinds = (("100m", "500Mi", {}), ("1", None, {}), (None, None, {}), ("250m", "1Gi", {"nodeSelector": {"zone": "3"}}),
             ("100m", "64Mi", {"tolerations": [{"operator": "Exists"}]}))
    for i in range(300):
        cpu, memory, spec = rng.choice(kinds)
        p = pod(f"p{i}", cpu, memory, **spec)
        found = plain.pick(p, Extra(), lambda n: 0)
        wanted = pick(p, t, lambda n: 0)
        assert found == wanted if isinstance(wanted, Decision) else found is None
        if found is not None:
            ok, _ = feasible(p, t, Extra())
            total, _ = scores(p, t, ok, Extra())
            kind = plain._kinds[p.detail["plain"]]
            assert [int(x) for x in kind.scores[ok]] == [int(x) for x in total[ok]] and (kind.scores[~ok] == -1).all()
            t.add_pod(p, found.node)
        if i % 9 == 0 and t.placed:
            t.remove_pod(rng.choice(list(t.placed.values())))
        if i % 50 == 0:
            t.set_node(node(f"new{i}", "4", "8Gi"))


def test_others_go_the_ordinary_way():
    t = table(random.Random(1))
    assert Plain(t).pick(pod("a", "1"), Extra(), lambda n: 0) is not None
    for spec in ({"containers": [{"ports": [{"hostPort": 80}]}]}, {"nodeName": "n1"}, {"resourceClaims": [{"name": "c", "resourceClaimName": "c"}]},
                 {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}, {"hostNetwork": True, "hostUsers": False}):
        assert Plain(t).pick(pod("b", "1", **spec), Extra(), lambda n: 0) is None


@pytest.mark.parametrize("seed", range(4))
def test_promised_room_counts_as_in_pick(seed):
    rng = random.Random(seed)
    t = table(rng)
    plain, nominated = Plain(t), Nominations(t)
    for i in range(200):
        p = pod(f"p{i}", rng.choice(("500m", "1", "2")), "500Mi", priority=rng.randrange(3))
        if rng.random() < 0.4:
            nominated.set(p, f"n{rng.randrange(62)}")
        extra = Extra(nominated=nominated)
        found, wanted = plain.pick(p, extra, lambda n: 0), pick(p, t, lambda n: 0, extra)
        assert found == wanted if isinstance(wanted, Decision) else found is None
        if found is not None and rng.random() < 0.5:
            nominated.drop(p.key)
            t.add_pod(p, found.node)
        if i % 9 == 0 and nominated:
            nominated.drop(rng.choice(list(nominated.nodes)))
        if i % 60 == 0:
            t.set_node(node(f"new{i}", "4", "8Gi"))
