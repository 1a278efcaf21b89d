"""Addresses for Services of type LoadBalancer: given, kept, given back."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.controllers import loadbalancer
from kubern.controllers.context import Context
from kubern.kubelet import vips
from kubern.model import pool
from kubern.model.intent import Again, Patch
from kubern.model.rows import BUILT_IN
from tests.controllers.conftest import ListView, drive, emitted, of

ROW = loadbalancer.controller(Context(load_balancer_pool="10.0.0.1-10.0.0.2"))
F = loadbalancer.FINALIZER


def node(name: str, ip: str, ready: str = "True", **labels: str) -> Any:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {
        "addresses": [{"type": "InternalIP", "address": ip}], "conditions": [{"type": "Ready", "status": ready}]}}


def service(name: str, *held: str, finalizer: bool = False, gone: bool = False, **spec: Any) -> Any:
    m: dict[str, Any] = {"name": name, "namespace": "default", "uid": name}
    if finalizer:
        m["finalizers"] = [F]
    if gone:
        m["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    status = {"loadBalancer": {"ingress": [{"ip": h, "ipMode": "VIP"} for h in held]} if held else {}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": m, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], **spec}, "status": status}


def look(s: Any, *others: Any, nodes: tuple[Any, ...] = (node("n", "10.1.0.1"),)) -> list[Any]:
    return drive(ROW.reconcile(s, ListView(services=[s, *others], nodes=list(nodes)), 0.0), answer=lambda i: s)


def given(done: list[Any]) -> list[str]:
    return [i["ip"] for p in of(done, Patch) for i in (p.patch.get("status") or {}).get("loadBalancer", {}).get("ingress") or ()]


def test_the_first_free_address() -> None:
    done = look(service("a"), service("b", "10.0.0.1"))
    assert given(done) == ["10.0.0.2"]
    assert emitted(done) == [("EnsuringLoadBalancer", "Ensuring load balancer"), ("EnsuredLoadBalancer", "Ensured load balancer")]
    assert of(done, Patch)[0].patch["metadata"]["finalizers"] == [F]


def test_an_address_is_kept() -> None:
    done = look(service("a", "10.0.0.2", finalizer=True))
    assert not of(done, Patch)


def test_what_was_asked_for() -> None:
    assert given(look(service("a", loadBalancerIP="10.0.0.2"))) == ["10.0.0.2"]
    done = look(service("a", loadBalancerIP="10.0.0.2"), service("b", "10.0.0.2"))
    assert emitted(done)[-1][0] == "SyncLoadBalancerFailed" and of(done, Again)
    assert emitted(look(service("a", loadBalancerIP="10.9.9.9")))[-1][0] == "SyncLoadBalancerFailed"


def test_an_empty_pool() -> None:
    done = look(service("a"), service("b", "10.0.0.1"), service("c", "10.0.0.2"))
    assert emitted(done)[-1] == ("SyncLoadBalancerFailed", "Error syncing load balancer: failed to ensure load balancer: "
                                 "no address of the pool 10.0.0.1-10.0.0.2 is free")
    assert not given(done)


def test_no_nodes() -> None:
    assert ("UnAvailableLoadBalancer", "There are no available nodes for LoadBalancer") in emitted(look(service("a"), nodes=(node("n", "1.1.1.1", "False"),)))


def test_others_are_left_alone() -> None:
    assert look(service("a", loadBalancerClass="example.com/x")) == []
    assert look(service("a", type="ClusterIP")) == []
    assert drive(loadbalancer.controller(Context()).reconcile(service("a"), ListView(), 0.0)) == []


def test_deletion_and_change_of_type_give_it_back() -> None:
    for s in (service("a", "10.0.0.1", finalizer=True, gone=True), service("a", "10.0.0.1", finalizer=True, type="ClusterIP")):
        done = look(s)
        assert emitted(done) == [("DeletingLoadBalancer", "Deleting load balancer"), ("DeletedLoadBalancer", "Deleted load balancer")]
        assert of(done, Patch)[-1].patch["metadata"]["$deleteFromPrimitiveList/finalizers"] == [F]


async def test_in_a_server(cluster: Any) -> None:
    c = await cluster(ROW)
    await c.client.create(node("n", "10.1.0.1"))
    for n in ("a", "b", "c"):
        await c.client.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": n, "namespace": "default"},
                               "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"x": "y"}}})

    async def held() -> list[str]:
        return sorted(i["ip"] for s in await c.list("services") for i in s["status"]["loadBalancer"].get("ingress") or ())

    async def two() -> bool:
        return await held() == ["10.0.0.1", "10.0.0.2"]
    await c.until(two)
    holder = next(s for s in await c.list("services") if s["status"]["loadBalancer"].get("ingress"))
    assert holder["metadata"]["finalizers"] == [F]
    await c.client.delete(BUILT_IN["services"], "default", holder["metadata"]["name"])

    async def passed_on() -> bool:
        return len(await c.list("services")) == 2 and await two()
    await c.until(passed_on)


def test_one_address_of_each_family() -> None:
    row = loadbalancer.controller(Context(load_balancer_pool="10.0.0.1-10.0.0.2,fd00::/120"))

    def held(policy: str, *families: str) -> list[str]:
        s = service("a", ipFamilies=list(families), ipFamilyPolicy=policy)
        return given(drive(row.reconcile(s, ListView(services=[s], nodes=[node("n", "10.1.0.1")]), 0.0), answer=lambda i: s))
    assert held("RequireDualStack", "IPv6", "IPv4") == ["fd00::", "10.0.0.1"]
    assert held("SingleStack", "IPv6") == ["fd00::"]
    only4 = service("a", ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="PreferDualStack")
    assert given(look(only4)) == ["10.0.0.1"]                               # a pool of one family, a service that only prefers two
    assert emitted(look(service("a", ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="RequireDualStack")))[-1][0] == "SyncLoadBalancerFailed"


def test_pools() -> None:
    p = pool.parse("10.0.0.0/30,10.0.1.5-10.0.1.6")
    assert p.has("10.0.0.2") and not p.has("10.0.0.3") and p.has("10.0.1.6") and not p.has("x")
    assert p.free({"10.0.0.0", "10.0.0.1", "10.0.0.2"}) == "10.0.1.5"
    six = pool.parse("10.0.0.1/32,fd00::10-fd00::1f")
    assert six.free((), 6) == "fd00::10" and six.has("fd00:0::1f") and not six.has("fd00::20") and not six.has("0.0.0.16")
    assert not pool.parse("none")
    for bad in ("x", "10.0.0.5-10.0.0.1", "10.0.0.0/8", "10.0.0.1/24", "10.0.0.1-fd00::1", "fd00::/64"):
        with pytest.raises(ValueError):
            pool.parse(bad)


def test_where_addresses_are_routed() -> None:
    nodes = [node("a", "10.1.0.1"), node("b", "10.1.0.2"), node("c", "10.1.0.3", "False"),
             node("d", "10.1.0.4", **{vips.EXCLUDED: ""})]
    many = [service(f"s{i}", f"10.0.0.{i}") for i in range(1, 40)]
    found = vips.routes(many, [], nodes)
    assert set(found.values()) == {"10.1.0.1", "10.1.0.2"} and len(found) == 39
    fewer = vips.routes(many, [], nodes[:1])
    assert set(fewer.values()) == {"10.1.0.1"}
    local = service("l", "10.0.0.9", externalTrafficPolicy="Local")
    slices = [{"metadata": {"name": "x", "namespace": "default", "labels": {"kubernetes.io/service-name": "l"}},
               "endpoints": [{"nodeName": "b", "conditions": {"ready": True}}, {"nodeName": "a", "conditions": {"ready": False}}]}]
    assert vips.routes([local], slices, nodes) == {"10.0.0.9": "10.1.0.2"}
    assert vips.routes([local], [], nodes) == {}
