"""Which group grows and which nodes go: the plan over small clusters."""

from __future__ import annotations

from typing import Any

from kubern.scheduler.grow import Group, Size, daemon_pods, grow, template_node
from kubern.scheduler.pick import Extra
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.shrink import Rules, budgets_of, shrink
from kubern.scheduler.table import NodeTable


def nothing(p: PodInfo) -> Extra:
    return Extra()


def node(name: str, cpu: str = "4", memory: str = "8Gi", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": "110"}}}


def pod(name: str, cpu: str = "1", memory: str = "1Gi", owner: str = "ReplicaSet", namespace: str = "default", annotations: Any = None, **spec: Any) -> PodInfo:
    refs = [{"kind": owner, "name": "x", "uid": "u", "controller": True, "apiVersion": "apps/v1"}] if owner else []
    return pod_info({"metadata": {"name": name, "namespace": namespace, "uid": name, "labels": {"app": "a"}, "ownerReferences": refs,
                                  "annotations": annotations or {}},
                     "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}], **spec}})


def table(nodes: list[dict[str, Any]], placed: dict[str, list[PodInfo]] | None = None) -> NodeTable:
    t = NodeTable()
    for n in nodes:
        t.set_node(n)
    for where, pods in (placed or {}).items():
        for p in pods:
            p.pod["spec"]["nodeName"] = where
            assert t.add_pod(p, where)
    return t


def size(name: str, cpu: str = "4", memory: str = "8Gi", target: int = 0, upcoming: int = 0, backoff: bool = False, **words: Any) -> Size:
    g = Group(name, capacity={"cpu": cpu, "memory": memory}, **words)
    return Size(g, target, upcoming, template_node(g, f"t-{name}"), backoff)


def state(t: NodeTable) -> Any:
    return sorted(t.slots), sorted((k, t.names[p.slot]) for k, p in t.placed.items()), t.used[:, :t.size].sum(axis=1).tolist()


def test_as_many_nodes_as_the_pods_need_and_no_more() -> None:
    t = table([node("a")])
    before = state(t)
    found = grow([pod(f"p{i}", "2") for i in range(9)], t, [size("g")], nothing)
    assert (found.group, found.now, found.size) == ("g", 0, 4)              # two go on the node there is, seven need four of four cpus
    assert len(found.helped) == 7
    assert (found.group, found.now, found.size, found.nodes, found.max) == ("g", 0, 4, 4, 10)
    assert state(t) == before


def test_nodes_on_their_way_count() -> None:
    assert not grow([pod("p", "2"), pod("q", "2")], table([]), [size("g", target=1, upcoming=1)], nothing).group
    assert grow([pod(f"p{i}", "2") for i in range(3)], table([]), [size("g", target=1, upcoming=1)], nothing).size == 2


def test_max_and_backoff_are_reasons() -> None:
    found = grow([pod("p", "2")], table([]), [size("g", target=2, max=2), size("h", backoff=True), size("small", cpu="1")], nothing)
    assert not found.group
    assert dict(found.refused[0][1]) == {"max node group size reached": 1, "in backoff after failed scale-up": 1, "Insufficient cpu": 1}


def test_never_beyond_max() -> None:
    found = grow([pod(f"p{i}", "4") for i in range(5)], table([]), [size("g", target=1, max=3)], nothing)
    assert (found.size, len(found.helped), len(found.refused)) == (3, 2, 3)


def test_least_waste_chooses_the_group() -> None:
    sizes = [size("big", "32", "64Gi"), size("fit", "2", "4Gi")]
    assert grow([pod("p", "2", "4Gi")], table([]), sizes, nothing).group == "fit"
    assert grow([pod("p", "16", "32Gi")], table([]), sizes, nothing).group == "big"


def test_labels_and_taints_of_the_group_decide() -> None:
    sizes = [size("plain"), size("gpu", labels={"gpu": "yes"}, taints=({"key": "gpu", "value": "", "effect": "NoSchedule"},))]
    assert grow([pod("p", nodeSelector={"gpu": "yes"}, tolerations=[{"key": "gpu", "operator": "Exists"}])], table([]), sizes, nothing).group == "gpu"
    refused = grow([pod("p", nodeSelector={"gpu": "yes"})], table([]), sizes, nothing).refused[0][1]
    assert sum(refused.values()) == 2


def test_daemon_sets_take_their_share_of_a_new_node() -> None:
    daemons = daemon_pods([{"metadata": {"name": "d", "namespace": "kube-system"}, "spec": {"template": {
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]}}}}])
    found = grow([pod("p", "1"), pod("q", "1")], table([]), [size("g")], nothing, daemons)
    assert found.size == 2


def test_anti_affinity_needs_a_node_each() -> None:
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}}
    t = table([node("a")])
    before = state(t)
    assert grow([pod(f"p{i}", "100m", affinity=apart) for i in range(4)], t, [size("g")], nothing).size == 3
    assert state(t) == before


def test_expendable_pods_make_no_nodes() -> None:
    assert not grow([pod("p", priority=-11)], table([]), [size("g")], nothing).group


def unneeded(t: NodeTable, spare: int = 9, budgets: Any = (), **more: Any) -> list[str]:
    before = state(t)
    found = shrink(t, dict.fromkeys(t.slots, "g"), {"g": spare}, budgets_of(budgets), nothing, **more)
    assert state(t) == before
    return sorted(u.node for u in found.unneeded)


def test_half_empty_nodes_go_together_only_while_their_pods_fit() -> None:
    nodes = [node("a"), node("b"), node("c")]
    t = table(nodes, {"a": [pod("p", "1")], "b": [pod("q", "1")], "c": [pod("r", "3")]})
    assert len(unneeded(t)) == 1                                            # p goes to c; then q has no place left on c, and a is gone
    t = table(nodes, {"a": [], "b": [pod("q", "1")], "c": [pod("r", "3")]})
    assert unneeded(t) == ["a", "b"]
    assert unneeded(t, spare=1) == ["a"]


def test_what_keeps_a_node() -> None:
    def kept(p: PodInfo, budgets: Any = ()) -> str:
        t = table([node("a"), node("b")], {"a": [p], "b": [pod("busy", "3")]})
        found = shrink(t, {"a": "g"}, {"g": 1}, budgets_of(budgets), nothing)
        return found.kept.get("a", "")
    assert kept(pod("p")) == ""
    assert kept(pod("p", owner="")).endswith("NotReplicated")
    assert kept(pod("p", owner="", annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "true"})) == ""
    assert kept(pod("p", annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"})).endswith("NotSafeToEvictAnnotation")
    assert kept(pod("p", volumes=[{"name": "v", "emptyDir": {}}])).endswith("LocalStorageRequested")
    assert kept(pod("p", volumes=[{"name": "v", "emptyDir": {"medium": "Memory"}}])) == ""
    assert kept(pod("p", volumes=[{"name": "v", "hostPath": {"path": "/"}}],
                    annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": "v,w"})) == ""
    assert kept(pod("p", namespace="kube-system")).endswith("UnmovableKubeSystemPod")
    assert kept(pod("p", owner="DaemonSet", volumes=[{"name": "v", "hostPath": {"path": "/"}}])) == ""
    assert kept(pod("p", "1", nodeSelector={"kubernetes.io/hostname": "a"})) == "NoPlaceToMovePods"
    assert kept(pod("p", "3")) == "NotUnderutilized"
    budget = {"metadata": {"namespace": "default"}, "spec": {"selector": {"matchLabels": {"app": "a"}}}, "status": {"disruptionsAllowed": 0}}
    assert kept(pod("p"), [budget]).endswith("NotEnoughPdb")
    assert kept(pod("p"), [{**budget, "status": {"disruptionsAllowed": 1}}]) == ""


def test_rules_of_a_group() -> None:
    busy = [pod("d", "2", owner="DaemonSet"), pod("p", "1")]
    t = table([node("a"), node("b")], {"a": busy})
    assert unneeded(t) == ["b"]                                              # three of four cpus are asked for on a
    assert unneeded(t, rules={"g": Rules(threshold=0.8)}, spare=1) == ["b"] and len(unneeded(t, rules={"g": Rules(threshold=0.8)})) == 1
    t = table([node("a"), node("b")], {"a": [pod("d", "2500m", owner="DaemonSet"), pod("p", "100m", namespace="kube-system")]})
    assert unneeded(t) == ["b"]
    assert "a" in unneeded(table([node("a"), node("c")], {"a": list(t.pods[t.slots["a"]].values()), "c": [pod("big", "3")]}),
                           rules={"g": Rules(ignore_daemons=True, keep_system_pods=False)})
    local = pod("v", volumes=[{"name": "v", "emptyDir": {}}])
    assert "a" in unneeded(table([node("a"), node("c")], {"a": [local], "c": [pod("big", "3")]}), rules={"g": Rules(keep_local_storage=False)})


def test_annotation_and_taint_on_the_node() -> None:
    off = node("a")
    off["metadata"]["annotations"] = {"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}
    assert unneeded(table([off, node("b", taints=[{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])])) == []
