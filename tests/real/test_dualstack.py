"""A dual-stack cluster on real nodes: IPv6 from pod to pod, through services, node ports and load balancers, in DNS and in network policies."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.real.cluster import Neighbour

pytestmark = pytest.mark.real

FLAGS = ("--service-cidr", "10.96.0.0/16,fd00:10:96::/112", "--pod-cidr", "10.244.0.0/16,fd00:10:244::/56")
PODS = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: c, image: busybox, command: [sh, -c, 'mkdir -p /w && echo $HOSTNAME > /w/index.html && httpd -f -p 8080 -h /w']}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: busybox, command: [sleep, "100000"]}]}
"""


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **spec}}


@pytest.fixture(scope="module")
def web(cluster: Any) -> Any:
    services = [service("both", type="LoadBalancer", ipFamilyPolicy="RequireDualStack"), service("six", ipFamilies=["IPv6"]), service("four"),
                service("head", clusterIP="None", ipFamilyPolicy="PreferDualStack"),
                service("local", type="NodePort", ipFamilies=["IPv6"], externalTrafficPolicy="Local")]
    cluster.apply(PODS + "---\n" + json.dumps({"apiVersion": "v1", "kind": "List", "items": services}))
    cluster.kubectl("rollout", "status", "daemonset/web", "--timeout=90s", timeout=100)
    cluster.wait("pod/client")
    return cluster


def names(cluster: Any) -> set[str]:
    return {p["metadata"]["name"] for p in cluster.pods("app=web")}


def ask(cluster: Any, host: str, pod: str = "client", port: int = 80) -> str:
    return str(cluster.exec(pod, "timeout", "2", "wget", "-qO-", f"http://{f'[{host}]' if ':' in host else host}:{port}", check=False)).strip()


def outside(host: str, port: int) -> str:
    return subprocess.run(["curl", "-gsm", "2", f"http://[{host}]:{port}/"], capture_output=True, text=True, check=False).stdout.strip()


def test_every_node_and_pod_has_two_addresses(web: Any) -> None:
    for node in web.get("nodes")["items"]:
        assert [":" in c for c in node["spec"]["podCIDRs"]] == [False, True]
        assert [":" in a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"] == [False, True]
    for pod in web.pods("app=web"):
        assert [":" in i["ip"] for i in pod["status"]["podIPs"]] == [False, True] and len(pod["status"]["hostIPs"]) == 2
    for pod in web.pods("app=web"):
        assert ask(web, pod["status"]["podIPs"][1]["ip"], port=8080) == pod["metadata"]["name"]          # across nodes
        assert outside(pod["status"]["podIPs"][1]["ip"], 8080) == pod["metadata"]["name"]                # from the machine


def test_services_of_each_policy(web: Any) -> None:
    both, four, six = (web.get("service", n)["spec"] for n in ("both", "four", "six"))
    assert both["ipFamilies"] == ["IPv4", "IPv6"] and len(both["clusterIPs"]) == 2 and four["ipFamilies"] == ["IPv4"] and ":" in six["clusterIP"]
    for ip in (*both["clusterIPs"], six["clusterIP"], "six"):
        web.until(lambda ip=ip: {ask(web, ip) for _ in range(6)} == names(web), f"both pods through {ip}")
    inside = web.pods("app=web")[0]["metadata"]["name"]
    web.until(lambda: {ask(web, both["clusterIPs"][1], inside) for _ in range(8)} == names(web), "a pod through its own service, to itself as well")
    web.kubectl("patch", "service", "four", "-p", '{"spec":{"ipFamilyPolicy":"PreferDualStack"}}')
    assert ":" in web.get("service", "four")["spec"]["clusterIPs"][1]                                    # a second address comes later


def test_names_have_addresses_of_both_families(web: Any) -> None:
    both = web.get("service", "both")["spec"]["clusterIPs"]
    said = web.exec("client", "nslookup", "both.default.svc.cluster.local")
    assert all(ip in said for ip in both)
    said = web.exec("client", "nslookup", "head.default.svc.cluster.local")
    assert all(i["ip"] in said for p in web.pods("app=web") for i in p["status"]["podIPs"])
    said = web.exec("client", "nslookup", both[1], check=False)
    assert "both.default.svc.cluster.local" in said


def test_node_ports_and_load_balancers(web: Any) -> None:
    found = web.get("service", "both")
    v4, v6 = (i["ip"] for i in found["status"]["loadBalancer"]["ingress"])
    port = found["spec"]["ports"][0]["nodePort"]
    nodes = {n["metadata"]["name"]: n["status"]["addresses"][1]["address"] for n in web.get("nodes")["items"]}
    for address in nodes.values():
        web.until(lambda a=address: {outside(a, port) for _ in range(6)} == names(web), f"node port on {address}")
    web.until(lambda: outside(v6, 80) in names(web), "the load balancer's address")
    assert ":" not in v4
    neighbour = Neighbour(web.home, 202)
    try:                                                          # a machine on the segment finds it by neighbour discovery alone
        web.until(lambda: neighbour.get(f"http://[{v6}]/") in names(web), "an answer by neighbour discovery")
    finally:
        neighbour.close()
    local = web.get("service", "local")["spec"]["ports"][0]["nodePort"]
    on = {p["spec"]["nodeName"]: p["metadata"]["name"] for p in web.pods("app=web")}
    for name, address in nodes.items():
        web.until(lambda n=name, a=address: {outside(a, local) for _ in range(3)} == {on[n]}, f"only the pod of {name}")


def test_network_policy(web: Any) -> None:
    ip = {p["spec"]["nodeName"]: p["status"]["podIPs"][1]["ip"] for p in web.pods("app=web")}
    web.apply(json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
                          "spec": {"podSelector": {"matchLabels": {"app": "web"}}}}))
    web.until(lambda: not any(ask(web, i, port=8080) for i in ip.values()), "nobody comes through, on the same node and on the other")
    web.apply(json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "block"}, "spec": {
        "podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [{"ipBlock": {"cidr": "fd00:10:244::/56"}}]}]}}))
    web.until(lambda: all(ask(web, i, port=8080) for i in ip.values()), "IPv6 comes through")
    assert not ask(web, web.pods("app=web")[0]["status"]["podIP"], port=8080)                            # IPv4 does not
    web.kubectl("delete", "networkpolicy", "deny", "block")


def test_ingress_answers_on_both_addresses(web: Any) -> None:
    web.apply(json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}, "spec": {
        "defaultBackend": {"service": {"name": "both", "port": {"number": 80}}}}}))

    def addresses() -> list[str]:
        held = (web.get("ingress", "i").get("status") or {}).get("loadBalancer", {}).get("ingress") or []
        return [x["ip"] for x in held]
    web.until(lambda: len(addresses()) == 2, "two addresses")
    web.until(lambda: outside(addresses()[1], 80) in names(web), "an answer over IPv6")
    assert subprocess.run(["curl", "-sm", "3", f"http://{addresses()[0]}/"], capture_output=True, text=True, check=False).stdout.strip() in names(web)
