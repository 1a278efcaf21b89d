"""Services of type LoadBalancer on real nodes, asked from the machine itself."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.real.cluster import Neighbour

pytestmark = pytest.mark.real


def fetch(url: str, timeout_s: float = 3) -> str:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return answer.read().decode()


def answers(url: str) -> bool:
    try:
        return "nginx" in fetch(url, 1)
    except OSError:
        return False


def address(cluster: Any, name: str) -> str:
    def given() -> str:
        ingress = cluster.get("service", name)["status"]["loadBalancer"].get("ingress") or [{}]
        return str(ingress[0].get("ip") or "")
    return str(cluster.until(given, f"an address for {name}"))


@pytest.fixture(scope="module")
def web(cluster: Any) -> Any:
    cluster.kubectl("create", "deployment", "lb", "--image=nginx", "--replicas=1")
    cluster.kubectl("rollout", "status", "deployment/lb", "--timeout=90s", timeout=100)
    return cluster


def service(name: str, **spec: Any) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
        "type": "LoadBalancer", "selector": {"app": "lb"}, "ports": [{"port": 80}], **spec}})


def test_traffic_and_events(web: Any) -> None:
    web.apply(service("one", allocateLoadBalancerNodePorts=False))
    url = f"http://{address(web, 'one')}/"
    web.until(lambda: answers(url), "an answer")
    found = web.get("service", "one")
    assert "nodePort" not in found["spec"]["ports"][0]
    assert found["metadata"]["finalizers"] == ["service.kubernetes.io/load-balancer-cleanup"]
    reasons = [e["reason"] for e in web.get("events", "--field-selector", "involvedObject.name=one")["items"]]
    assert {"EnsuringLoadBalancer", "EnsuredLoadBalancer"} <= set(reasons)
    pod = web.pods("app=lb")[0]["metadata"]["name"]
    assert "nginx" in web.exec(pod, "wget", "-qO-", url)              # hairpin: a pod asks for itself from outside


def test_local_policy_keeps_the_source_and_has_a_health_port(web: Any) -> None:
    web.apply(service("two", externalTrafficPolicy="Local"))
    vip = address(web, "two")
    web.until(lambda: answers(f"http://{vip}/two"[:-3]), "an answer")
    gateway = json.loads((web.home / "fabric.json").read_text())["subnet"].replace("0/24", "1")
    pod = web.pods("app=lb")[0]
    assert gateway in web.kubectl("logs", pod["metadata"]["name"])    # nginx saw the machine itself
    port = web.get("service", "two")["spec"]["healthCheckNodePort"]
    seen = {}
    for n in ("node-0", "node-1"):
        try:
            seen[n] = (200, json.loads(fetch(f"http://{web.node_address(n)}:{port}/"))["localEndpoints"])
        except urllib.error.HTTPError as e:
            seen[n] = (e.code, 0)
    here = pod["spec"]["nodeName"]
    assert seen == {n: (200, 1) if n == here else (503, 0) for n in seen}


def test_source_ranges(web: Any) -> None:
    web.apply(service("three", loadBalancerSourceRanges=["203.0.113.0/24"]))
    vip = address(web, "three")
    web.until(lambda: subprocess.run(["ip", "route", "get", vip], capture_output=True, text=True).stdout.count(" via "), "a route")
    assert not answers(f"http://{vip}/")
    web.apply(service("three", loadBalancerSourceRanges=["172.16.0.0/12"]))
    web.until(lambda: answers(f"http://{vip}/"), "an answer")


@pytest.fixture
def neighbour(web: Any) -> Any:
    made = Neighbour(web.home, 201)
    yield made
    made.close()


def test_a_machine_on_the_segment_finds_it_and_follows_it(web: Any, neighbour: Any) -> None:
    """By ARP alone: one node answers for the address, and another when that one may no longer."""
    web.apply(service("near"))
    vip = address(web, "near")
    web.until(lambda: "nginx" in neighbour.get(f"http://{vip}/"), "an answer by ARP")

    def whose() -> str:
        mac = neighbour.run("ip", "neigh", "show", vip).partition("lladdr ")[2].split(" ")[0]
        return next((n for n in ("node-0", "node-1") if mac and mac in neighbour.run("ip", "neigh", "show", web.node_address(n))), "")
    for n in ("node-0", "node-1"):
        neighbour.get(f"http://{web.node_address(n)}:1/")
    first = whose()
    assert first
    web.kubectl("label", "node", first, "node.kubernetes.io/exclude-from-external-load-balancers=")
    try:
        web.until(lambda: "nginx" in neighbour.get(f"http://{vip}/") and whose() not in ("", first), "the other node answers")
    finally:
        web.kubectl("label", "node", first, "node.kubernetes.io/exclude-from-external-load-balancers-")
    web.kubectl("delete", "service", "near", "--timeout=20s")


def test_an_address_goes_back(web: Any) -> None:
    vip = address(web, "one")
    web.kubectl("delete", "service", "one", "--timeout=20s")
    web.until(lambda: " via " not in subprocess.run(["ip", "route", "get", vip], capture_output=True, text=True).stdout, "its route goes")
    web.apply(service("four"))
    assert address(web, "four") == vip
