"""Clusters whose pods and Services have IPv6 alone, or first: the API server, names, Services, probes, ingress and outside by it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.test_dualstack import PODS, ask, names, outside, service

pytestmark = pytest.mark.real

SIX, FOUR = ("fd00:10:96::/112", "fd00:10:244::/56"), ("10.96.0.0/16", "10.244.0.0/16")


@pytest.fixture(scope="module", params=["alone", "first"])
def web(request: pytest.FixtureRequest, module_cluster: Any) -> Iterator[Any]:
    ranges = [SIX] if request.param == "alone" else [SIX, FOUR]
    flags = ("--service-cidr", ",".join(s for s, _ in ranges), "--pod-cidr", ",".join(p for _, p in ranges))
    made = module_cluster(Path(tempfile.mkdtemp(prefix="kt")), "--nodes", "2" if request.param == "alone" else "1", "--node-grace", "6", *flags)
    made.both = request.param == "first"
    try:
        made.up()
        made.apply(PODS + "---\n" + json.dumps({"apiVersion": "v1", "kind": "List", "items": [
            service("main", type="LoadBalancer"), service("head", clusterIP="None"), *([service("four", ipFamilies=["IPv4"])] if made.both else [])]}))
        made.kubectl("rollout", "status", "daemonset/web", "--timeout=90s", timeout=100)
        made.wait("pod/client")
        yield made
    finally:
        made.down()


def test_addresses(web: Any) -> None:
    order = [True, False] if web.both else [True]
    for node in web.get("nodes")["items"]:
        assert [":" in c for c in node["spec"]["podCIDRs"]] == order
        assert [":" in a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"] == order
    for pod in web.pods("app=web"):
        assert [":" in i["ip"] for i in pod["status"]["podIPs"]] == order and ":" in pod["status"]["podIP"] and ":" in pod["status"]["hostIP"]
        assert ask(web, pod["status"]["podIP"], port=8080) == pod["metadata"]["name"]
    (slice_,) = web.get("endpointslices", "-l", "kubernetes.io/service-name=kubernetes")["items"]
    assert slice_["addressType"] == "IPv6"


def test_services_and_names(web: Any) -> None:
    main = web.get("service", "main")
    assert ":" in main["spec"]["clusterIP"] and main["spec"]["ipFamilies"] == ["IPv6"]
    for host in (main["spec"]["clusterIP"], "main"):
        web.until(lambda h=host: {ask(web, h) for _ in range(6)} == names(web), f"every pod through {host}")
    web.until(lambda: ask(web, "head", port=8080) in names(web), "a pod of the headless service")     # its libc always takes the nearest
    vip, port = main["status"]["loadBalancer"]["ingress"][0]["ip"], main["spec"]["ports"][0]["nodePort"]
    web.until(lambda: outside(vip, 80) in names(web), "the load balancer's address")
    for node in web.get("nodes")["items"]:
        web.until(lambda n=node: outside(n["status"]["addresses"][0]["address"], port) in names(web), "the node's port")
    if web.both:
        web.until(lambda: ask(web, "four") in names(web), "a service of the second family")


def test_the_api_from_a_pod(web: Any) -> None:
    said = web.exec("client", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST; cat /etc/resolv.conf; nc -w 2 kubernetes.default 443 </dev/null && echo open")
    host, *rest = said.splitlines()
    assert host == str(web.get("service", "kubernetes")["spec"]["clusterIP"]) and ":" in host and rest[-1] == "open", said
    assert any(line.startswith("nameserver fd00:10:96::a") for line in rest)
    assert web.kubectl("logs", "client") == "" and web.exec("client", "echo", "here") == "here\n"                # the kubelet is reached by IPv6 as well


def test_probes_and_ingress(web: Any) -> None:
    web.apply(json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "site"}, "spec": {
        "selector": {"matchLabels": {"app": "site"}}, "template": {"metadata": {"labels": {"app": "site"}}, "spec": {"containers": [{
            "name": "c", "image": "busybox", "command": ["sh", "-c", "mkdir -p /w && echo site > /w/index.html && exec httpd -f -p 8080 -h /w"],
            "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}, "livenessProbe": {"tcpSocket": {"port": 8080}}}]}}}}))
    web.kubectl("rollout", "status", "deployment/site", "--timeout=60s", timeout=70)
    web.apply(json.dumps(service("site", selector={"app": "site"})))
    web.apply(json.dumps({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}, "spec": {
        "defaultBackend": {"service": {"name": "site", "port": {"number": 80}}}}}))

    def address() -> str:
        held = (web.get("ingress", "i").get("status") or {}).get("loadBalancer", {}).get("ingress") or [{}]
        return str(held[0].get("ip") or "")
    web.until(address, "an address")
    web.until(lambda: outside(address(), 80) == "site", "an answer")


def test_nothing_of_the_other_family_is_left_over(web: Any) -> None:
    unit = json.loads((web.home / "nodes" / "node-0" / "unit.json").read_text())["pid"]
    tables = subprocess.run(["nsenter", f"--net=/proc/{unit}/ns/net", "nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert "table ip6 kubern-proxy" in tables and ("table ip kubern-proxy" in tables) == web.both
