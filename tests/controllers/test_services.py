"""EndpointSlices and Endpoints."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.controllers import endpoints, endpointslice, ttl
from kubern.controllers.triggertime import TriggerTimes
from kubern.model.intent import Create, Delete, Update
from kubern.model.object import Object
from tests.controllers.conftest import ListView, drive, emitted, of, pod

NOW = 1893456100.0
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}}


def service(**spec: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "s", "namespace": "default", "uid": "uid-s", "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"selector": {"app": "a"}, "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"],
                     "ports": [{"name": "h", "port": 80, "targetPort": "web", "protocol": "TCP"}], **spec}}


def run(s: Object, pods: list[Object], slices: list[Object] | None = None) -> list[Any]:
    v = ListView(pods=pods, nodes=[NODE], endpointslices__discovery__k8s__io=slices or [], services=[s])
    v.all["endpointslices.discovery.k8s.io"] = slices or []
    return drive(endpointslice.controller().reconcile(s, v, NOW))


def test_a_slice_of_a_ready_and_an_unready_pod() -> None:
    unready = pod("b", is_ready=False)
    unready["status"]["podIPs"] = [{"ip": "10.0.0.2"}]
    made = of(run(service(), [pod("a"), unready]), Create)[0].obj
    assert made["ports"] == [{"name": "h", "port": 8080, "protocol": "TCP"}]
    assert [(e["addresses"], e["conditions"]["ready"], e["zone"]) for e in made["endpoints"]] == [(["10.0.0.1"], True, "z"), (["10.0.0.2"], False, "z")]


def test_nothing_changed_nothing_written() -> None:
    made = of(run(service(), [pod("a")]), Create)[0].obj
    made["metadata"]["name"] = "s-1"
    assert run(service(), [pod("a")], [made]) == []


def test_a_service_without_pods_keeps_one_empty_slice() -> None:
    made = of(run(service(), []), Create)
    assert len(made) == 1 and made[0].obj["endpoints"] is None and made[0].obj["ports"] is None
    made[0].obj["metadata"]["name"] = "s-1"
    assert run(service(), [], [made[0].obj]) == []


def test_many_pods_fill_several_slices() -> None:
    pods = []
    for i in range(230):
        p = pod(f"p{i}")
        p["status"]["podIPs"] = [{"ip": f"10.0.{i // 200}.{i % 200 + 1}"}]
        pods.append(p)
    slices = [c.obj for c in of(run(service(), pods), Create)]
    assert sorted(len(s["endpoints"]) for s in slices) == [30, 100, 100]
    for i, s in enumerate(slices):
        s["metadata"]["name"] = f"s-{i}"
    intents = run(service(), pods[:-1], slices)
    assert len(of(intents, Update)) == 1 and not of(intents, Create, Delete)


def test_endpoints_group_addresses_by_port() -> None:
    unready = pod("b", is_ready=False)
    unready["status"]["podIPs"] = [{"ip": "10.0.0.2"}]
    subsets = endpoints.subsets_of(service(), [pod("a"), unready])
    assert [[a["ip"] for a in s["addresses"]] for s in subsets] == [["10.0.0.1"]]
    assert [a["ip"] for a in subsets[0]["notReadyAddresses"]] == ["10.0.0.2"]
    assert subsets[0]["ports"] == [{"name": "h", "port": 8080, "protocol": "TCP"}]


def zoned(name: str, zone: str, cpu: str = "4") -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]}}


def share(pods: list[Object], nodes: list[Object], slices: list[Object] | None = None, mode: str = "Auto") -> list[Any]:
    s = service()
    s["metadata"]["annotations"] = {"service.kubernetes.io/topology-mode": mode}
    v = ListView(pods=pods, nodes=nodes, services=[s])
    v.all["endpointslices.discovery.k8s.io"] = slices or []
    return drive(endpointslice.controller().reconcile(s, v, NOW))


def zones_of(slice_: Object) -> list[str]:
    return [e["hints"]["forZones"][0]["name"] for e in slice_["endpoints"]]


def test_endpoints_are_shared_out_by_cpu() -> None:
    nodes = [zoned("a", "za"), zoned("b", "zb"), zoned("c", "za")]
    pods = [pod(f"p{i}", node="b") for i in range(6)]
    for i, p in enumerate(pods):
        p["status"]["podIPs"] = [{"ip": f"10.0.0.{i + 1}"}]
    out = share(pods, nodes)
    made = of(out, Create)[0].obj
    assert sorted(zones_of(made)) == ["za"] * 4 + ["zb"] * 2
    assert emitted(out) == [("TopologyAwareHintsEnabled", "Topology Aware Hints has been enabled, addressType: IPv4")]
    made["metadata"]["name"] = "s-1"
    assert share(pods, nodes, [made]) == []                               # stays
    gone = of(share(pods, nodes, [made], mode="Disabled"), Update)[0].obj
    assert not any("hints" in e for e in gone["endpoints"])
    out = share(pods, nodes[1:2], [made])                                 # one zone left
    assert emitted(out)[0][1].startswith("Insufficient Node information") and not any("hints" in e for e in of(out, Update)[0].obj["endpoints"])
    out = share(pods[:1], nodes)
    assert emitted(out) == [("TopologyAwareHintsDisabled", "Insufficient number of endpoints (1 endpoints, 2 zones), addressType: IPv4")]


@pytest.mark.parametrize(("nodes", "seconds"), [(1, 0), (100, 0), (101, 15), (5000, 300)])
def test_larger_clusters_let_kubelets_wait(nodes: int, seconds: int) -> None:
    assert ttl.seconds_for(nodes) == seconds


def test_what_changed_last() -> None:
    """A new service counts from its creation, then each pod from when its readiness changed: the first of those not seen before."""
    times, s = TriggerTimes(), service()

    def changed(name: str, at: str) -> Object:
        p = pod(name)
        p["status"]["conditions"][0]["lastTransitionTime"] = at
        return p
    one = changed("a", "2030-01-01T00:00:05Z")
    assert times.of(s, [one]) == "2030-01-01T00:00:00Z" and times.of(s, [one]) == ""
    late = changed("b", "2030-01-01T00:00:03Z")
    assert times.of(s, [one, late]) == "2030-01-01T00:00:03Z"
    assert times.of(s, [changed("a", "2030-01-01T00:00:09Z"), changed("b", "2030-01-01T00:00:08Z")]) == "2030-01-01T00:00:08Z"
    times.drop(("default", "s"))
    assert times.of(s, [one]) == "2030-01-01T00:00:00Z"
