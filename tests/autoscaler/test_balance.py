"""Similar groups share new nodes; health, limits and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.autoscaler.balance import balance, similar
from kubern.autoscaler.groups import parse_group
from kubern.autoscaler.options import BadGroup, Options, parse_options, parse_priorities
from kubern.scheduler.grow import Size
from tests.autoscaler.test_run import EVENT, FAST, POD, cluster, names, pod, until


def node(cpu: str = "4", memory: str = "8Gi", **labels: str) -> dict[str, Any]:
    room = {"cpu": cpu, "memory": memory}
    return {"metadata": {"name": "n", "labels": {k.replace("_", "/"): v for k, v in labels.items()}}, "status": {"capacity": room, "allocatable": room}}


def test_which_groups_are_similar() -> None:
    assert similar(node(pool="a"), node(pool="a", **{"topology.kubernetes.io/zone": "z", "kubernetes.io/hostname": "h"}))
    assert similar(node(), node(memory="8260Mi")) and not similar(node(), node(memory="9Gi"))
    assert not similar(node(), node(cpu="8")) and not similar(node(pool="a"), node(pool="b")) and not similar(node(pool="a"), node())


@pytest.mark.parametrize(("targets", "count", "wanted"), [
    ({"a": 0, "b": 0}, 3, {"a": 2, "b": 1}), ({"a": 3, "b": 0}, 2, {"b": 2}), ({"a": 3, "b": 0}, 5, {"b": 4, "a": 1}),
    ({"a": 9, "b": 9}, 5, {"a": 1, "b": 1}),
])
def test_the_smallest_first(targets: dict[str, int], count: int, wanted: dict[str, int]) -> None:
    assert balance([Size(parse_group(f"name={g},max=10"), n) for g, n in targets.items()], count) == wanted


def test_options() -> None:
    o = parse_options("balance-similar-node-groups=true,max-nodes-total=7,max-total-unready-percentage=50,scan-interval=500ms")
    assert (o.balance_similar_node_groups, o.max_nodes_total, o.scan_interval_s) == (True, 7, 0.5)
    assert o.healthy(4, 3) and not o.healthy(6, 4) and o.healthy(8, 4)
    for bad in ("balance-similar-node-groups=yes", "max-nodes-total=x", "max-nodes-total=-1", "scale-down-utilization-threshold=nan", "expander=dice"):
        with pytest.raises(BadGroup):
            parse_options(bad)
    assert parse_priorities("10: ['.*']\n50: [big, small]") == {10: [".*"], 50: ["big", "small"]}
    for bad in ("[1]", "a: [x]", "1: ['(']", "{"):
        with pytest.raises(BadGroup):
            parse_priorities(bad)
    assert Options() == parse_options("")


async def test_new_nodes_are_spread_and_never_too_many() -> None:
    groups = [f"name={name},max=5,cpu=2,label=topology.kubernetes.io/zone={name}" for name in ("east", "west")]
    async with cluster(groups, FAST + ",balance-similar-node-groups=true,max-nodes-total=5,new-pod-scale-up-delay=2s") as (client, _):
        for i in range(6):
            await client.create(pod(f"p{i}", "1500m"))

        async def placed() -> bool:
            return sum(bool(p["spec"].get("nodeName")) for p in (await client.list(POD))[0]) == 5
        await until(placed, "as many pods as there may be nodes")
        found = await names(client)
        assert len(found) == 5 and {sum(n.startswith(g) for n in found) for g in ("east", "west")} == {2, 3}

        async def told() -> bool:
            messages = {e["message"] for e in (await client.list(EVENT))[0]}
            return "pod didn't trigger scale-up: 1 max cluster size reached" in messages and any(
                m.startswith("pod triggered scale-up: [{") and "{east " in m and "{west " in m for m in messages)
        await until(told, "the pods hear of both groups, and of the end")


async def test_pods_of_daemon_sets_are_asked_to_go() -> None:
    async with cluster("name=g,max=1,min=0,cpu=2") as (client, _):
        await client.create(pod("p", "1500m"))

        async def there() -> bool:
            return await names(client) == ["g-0"]
        await until(there, "a node for the pod")
        for name, wish in (("asked", {"cluster-autoscaler.kubernetes.io/enable-ds-eviction": "true"}), ("left", {})):
            daemon = pod(name, "10m")
            owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d", "controller": True}
            daemon["metadata"] |= {"annotations": wish, "ownerReferences": [owner]}
            daemon["spec"] |= {"nodeName": "g-0", "tolerations": [{"operator": "Exists"}]}
            await client.create(daemon)
        await client.delete(POD, "work", "p", grace_s=0)

        async def gone() -> bool:
            return not await names(client)
        await until(gone, "the empty node goes")
        about = {e["involvedObject"]["name"] for e in (await client.list(EVENT))[0] if e["message"] == "deleting pod for node scale down"}
        assert about == {"asked"}
