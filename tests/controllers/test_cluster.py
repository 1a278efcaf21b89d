"""Garbage, namespaces, nodes, taints, quotas, volumes: against a real API server in memory."""

from __future__ import annotations

from typing import Any

from kubern.controllers import garbage, namespace, nodes, quota, serviceaccount, tainteviction, volumes
from kubern.controllers.context import Context
from kubern.model.intent import Delete, Patch, Update
from kubern.model.object import Object
from kubern.model.rows import BUILT_IN
from kubern.model.status import StatusError
from tests.controllers.conftest import ListView, drive, emitted, of, pod

NOW = 1893456100.0


def config_map(name: str, owner: Any = None, space: str = "default", **ref: Any) -> Any:
    m: dict[str, Any] = {"name": name, "namespace": space}
    if owner is not None:
        m["ownerReferences"] = [{"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], **ref}]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": m}


async def names(c: Any, resource: str = "configmaps", space: str = "default") -> set[str]:
    return {o["metadata"]["name"] for o in await c.list(resource, space)}


async def test_garbage_goes_with_its_owner(cluster: Any) -> None:
    c = await cluster(garbage.CONTROLLER)
    a = await c.client.create(config_map("a"))
    b = await c.client.create(config_map("b", a))
    await c.client.create(config_map("c", b))
    await c.client.create(config_map("stranger", {"metadata": {"name": "a", "uid": "nobody"}}))

    async def gone(want: set[str]) -> bool:
        return await names(c) == want
    await c.until(lambda: gone({"a", "b", "c"}))          # an owner that never was
    await c.client.delete(BUILT_IN["configmaps"], "default", "a")
    await c.until(lambda: gone(set()))


async def test_foreground_waits_and_orphan_keeps(cluster: Any) -> None:
    c = await cluster(garbage.CONTROLLER)
    a = await c.client.create(config_map("a"))
    child = config_map("child", a, blockOwnerDeletion=True)
    child["metadata"]["finalizers"] = ["example.com/f"]
    await c.client.create(child)
    await c.client.delete(BUILT_IN["configmaps"], "default", "a", propagation="Foreground")

    async def deleting() -> bool:
        return bool((await c.get("configmaps", "child"))["metadata"].get("deletionTimestamp"))
    await c.until(deleting)
    assert (await c.get("configmaps", "a"))["metadata"]["finalizers"] == ["foregroundDeletion"]
    await c.client.patch(BUILT_IN["configmaps"], "default", "child", {"metadata": {"finalizers": None}})

    async def empty() -> bool:
        return not await names(c)
    await c.until(empty)
    b = await c.client.create(config_map("b"))
    await c.client.create(config_map("kept", b))
    await c.client.delete(BUILT_IN["configmaps"], "default", "b", propagation="Orphan")

    async def orphaned() -> bool:
        return await names(c) == {"kept"} and "ownerReferences" not in (await c.get("configmaps", "kept"))["metadata"]
    await c.until(orphaned)


async def test_a_namespace_is_emptied_before_it_goes(cluster: Any) -> None:
    c = await cluster(namespace.CONTROLLER, serviceaccount.ACCOUNTS, serviceaccount.root_ca(Context(root_ca="PEM")))
    await c.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})

    async def furnished() -> bool:
        return await names(c, "serviceaccounts", "n") == {"default"} and await names(c, "configmaps", "n") == {"kube-root-ca.crt"}
    await c.until(furnished)
    await c.client.create(config_map("x", space="n"))
    await c.client.delete(BUILT_IN["namespaces"], "", "n")

    async def gone() -> bool:
        try:
            await c.get("namespaces", "n", "")
        except StatusError as e:
            return e.code == 404
        return False
    await c.until(gone)
    assert await names(c, "configmaps", "n") == set()


async def test_a_quota_is_counted(cluster: Any) -> None:
    c = await cluster(quota.CONTROLLER)
    await c.client.create(config_map("x"))
    await c.client.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "default"},
                           "spec": {"hard": {"configmaps": "5", "pods": "3"}}})

    async def used() -> Any:
        return ((await c.get("resourcequotas", "q")).get("status") or {}).get("used") == {"configmaps": "1", "pods": "0"}
    await c.until(used)


async def test_a_claim_is_bound_to_the_smallest_volume(cluster: Any) -> None:
    c = await cluster(volumes.CLAIM, volumes.VOLUME)
    for name, size in (("big", "9Gi"), ("small", "2Gi"), ("tiny", "1Mi")):
        await c.client.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
                               "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}})
    await c.client.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "p", "namespace": "default"},
                           "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}})

    async def bound() -> bool:
        claim = await c.get("persistentvolumeclaims", "p")
        return claim["spec"].get("volumeName") == "small" and claim["status"].get("phase") == "Bound"
    await c.until(bound)
    await c.client.delete(BUILT_IN["persistentvolumeclaims"], "default", "p")
    await c.client.patch(BUILT_IN["persistentvolumeclaims"], "default", "p", {"metadata": {"finalizers": None}})

    async def released() -> bool:
        return bool((await c.get("persistentvolumes", "small", ""))["status"]["phase"] == "Released")
    await c.until(released)


def node(name: str, status: str, zone: str = "z", **spec: Any) -> Any:
    return {"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"topology.kubernetes.io/zone": zone}, "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": spec, "status": {"conditions": [{"type": "Ready", "status": status, "lastHeartbeatTime": "2030-01-01T00:00:00Z"}]}}


def test_a_silent_node_becomes_unknown_and_tainted() -> None:
    silent = node("a", "True")
    others = [node("b", "True"), node("c", "True")]
    row = nodes.controller(Context(node_grace_s=50))
    view = ListView(nodes=[silent, *others], pods=[pod("p", node="a")])
    intents = drive(row.reconcile(silent, view, NOW))
    assert ("NodeNotReady", "Node a status is now: NodeNotReady") in emitted(intents)
    patches = [p.patch for p in of(intents, Patch)]
    assert patches[0]["status"]["conditions"][0]["status"] == "False"          # its pod
    assert [t["effect"] for t in patches[1]["spec"]["taints"]] == ["NoSchedule", "NoExecute"]


def test_a_lone_node_is_not_emptied_when_everything_is_down() -> None:
    down = node("a", "Unknown")
    taints, _ = nodes.wanted_taints(down, ListView(nodes=[down]), NOW)
    assert [t["effect"] for t in taints] == ["NoSchedule"]


def test_one_node_of_a_zone_at_a_time() -> None:
    first = node("a", "Unknown", taints=[{"key": nodes.UNREACHABLE, "effect": "NoExecute", "timeAdded": "2030-01-01T00:01:35Z"}])
    second = node("b", "Unknown")
    view = ListView(nodes=[first, second, node("c", "True")])
    taints, wait = nodes.wanted_taints(second, view, NOW)
    assert [t["effect"] for t in taints] == ["NoSchedule"] and 0 < wait <= 10


def test_eviction_after_the_tolerated_time() -> None:
    tainted = node("n", "Unknown", taints=[{"key": "k", "effect": "NoExecute"}])
    p = pod("p")
    view = ListView(nodes=[tainted])
    row = tainteviction.controller()
    p["spec"]["tolerations"] = [{"key": "k", "operator": "Exists", "tolerationSeconds": 30}]
    assert not of(drive(row.reconcile(p, view, NOW)), Delete)
    assert of(drive(row.reconcile(p, view, NOW + 31)), Delete)
    p["spec"]["tolerations"] = [{"operator": "Exists"}]
    assert drive(row.reconcile(p, view, NOW)) == []


def test_a_node_whose_clock_is_wrong() -> None:
    """Its heartbeats count from when they were heard: a clock that is ahead keeps nobody alive, one that is behind kills nobody."""
    def telling(at: str) -> Object:
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u", "creationTimestamp": "2029-12-31T23:00:00Z"},
                "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": at}]}}
    row = nodes.controller(Context(node_grace_s=50))

    def lost(at: str, now: float) -> bool:
        n = telling(at)
        return bool(of(drive(row.reconcile(n, ListView(nodes=[n]), now)), Update))
    ahead, behind = "2031-01-01T00:00:00Z", "2029-01-01T00:00:00Z"
    assert not lost(ahead, NOW) and not lost(ahead, NOW + 49) and lost(ahead, NOW + 51)
    assert not lost(behind, NOW + 52) and not lost(behind, NOW + 101) and lost(behind, NOW + 103)
