"""Where the traffic of Services goes, the control plane in the loop: policies, distribution, affinity, endings; and that faults of the proxy heal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.real.cluster import agents

pytestmark = pytest.mark.real

NODES = ("node-0", "node-1")
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
      - name: c
        image: busybox
        command: [sh, -c, 'mkdir -p /w && echo $NODE > /w/index.html && exec httpd -f -p 8080 -h /w']
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: busybox, command: [sleep, "100000"]}]}
"""


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **spec}}


class World:
    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.clients = {p["spec"]["nodeName"]: p["metadata"]["name"] for p in cluster.pods("app=client")}

    def put(self, *objects: dict[str, Any]) -> None:
        self.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def ask(self, node: str, host: str, times: int = 1) -> list[str]:
        """What a pod of the node gets from there, each time; "" for nothing within a second."""
        loop = f"for i in $(seq {times}); do timeout 1 wget -qO- http://{host} 2>/dev/null || echo; done"
        return [line.strip() for line in self.cluster.exec(self.clients[node], "sh", "-c", loop, check=False).splitlines()]

    def until(self, host: str, wanted: dict[str, set[str]]) -> None:
        """Waits until pods of each node get their answers from there; silence costs a second each time, so it is asked for less often."""
        self.cluster.until(lambda: all(set(self.ask(n, host, 2 if w == {""} else 6)) == w for n, w in wanted.items()), f"{host}: {wanted}")

    def unit(self, node: str) -> int:
        return int(json.loads((self.cluster.home / "nodes" / node / "unit.json").read_text())["pid"])

    def nft(self, node: str, *words: str) -> str:
        return subprocess.run(["nsenter", f"--net=/proc/{self.unit(node)}/ns/net", "nft", *words], check=True, capture_output=True, text=True).stdout


ALL = {n: set(NODES) for n in NODES}
OWN = {n: {n} for n in NODES}


@pytest.fixture(scope="module")
def world(cluster: Any) -> World:
    for i, node in enumerate(NODES):
        cluster.kubectl("label", "node", node, f"topology.kubernetes.io/zone=z{i}")
    cluster.apply(PODS)
    for name in ("web", "client"):
        cluster.kubectl("rollout", "status", f"daemonset/{name}", "--timeout=90s", timeout=100)
    made = World(cluster)
    made.put(service("web"))
    made.until("web", ALL)
    return made


@pytest.mark.parametrize("how", ["PreferSameNode", "PreferSameZone", "PreferClose"])
def test_near_endpoints_are_preferred(world: World, how: str) -> None:
    world.put(service("near", trafficDistribution=how))
    world.until("near", OWN)
    world.cluster.kubectl("delete", "service", "near")


def test_only_endpoints_of_the_node(world: World) -> None:
    world.put(service("local", internalTrafficPolicy="Local"))
    world.until("local", OWN)
    pod = next(p["metadata"]["name"] for p in world.cluster.pods("app=web") if p["spec"]["nodeName"] == "node-1")
    world.cluster.kubectl("label", "pod", pod, "only=here")
    world.put(service("local", internalTrafficPolicy="Local", selector={"only": "here"}))
    world.until("local", {"node-0": {""}, "node-1": {"node-1"}})


def test_a_client_stays_where_it_was_until_its_time_is_over(world: World) -> None:
    world.put(service("sticky", sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 2}}))
    world.cluster.until(lambda: world.ask("node-0", "sticky")[0], "an answer")
    seen: set[str] = set()

    def moved() -> bool:
        burst = set(world.ask("node-0", "sticky", 5))
        assert len(burst) == 1
        seen.update(burst)
        if len(seen) < 2:
            time.sleep(2.5)
        return len(seen) == 2
    world.cluster.until(moved, "the other one, once", 90)


def test_outside_addresses_and_aliases(world: World) -> None:
    world.put(service("outside", externalIPs=["198.51.100.7"]), {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"}, "spec": {
        "type": "ExternalName", "externalName": "web.default.svc.cluster.local"}})
    world.until("198.51.100.7", ALL)
    world.until("alias", ALL)


def test_what_ends_still_serves_while_there_is_nothing_else(world: World) -> None:
    c = world.cluster
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ending", "labels": {"app": "ending"}}, "spec": {
        "nodeName": "node-1", "terminationGracePeriodSeconds": 60, "shareProcessNamespace": True, "containers": [{
            "name": "c", "image": "busybox", "command": ["sh", "-c", "mkdir -p /w && echo ending > /w/index.html && exec httpd -f -p 8080 -h /w"],
            "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
            "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "while [ ! -e /end ]; do sleep 0.2; done"]}}}}]}}
    world.put(made, service("ending", selector={"app": "ending"}))
    c.wait("pod/ending")
    world.until("ending", {n: {"ending"} for n in NODES})
    c.kubectl("delete", "pod", "ending", "--wait=false")

    def terminating() -> bool:
        (e,) = [e for s in c.get("endpointslices", "-l", "kubernetes.io/service-name=ending")["items"] for e in s["endpoints"] or ()]
        return bool(e["conditions"] == {"ready": False, "serving": True, "terminating": True})
    c.until(terminating, "the slice says so")
    time.sleep(0.5)
    assert all(set(world.ask(n, "ending", 3)) == {"ending"} for n in NODES)
    c.exec("ending", "touch", "/end")
    world.until("ending", {n: {""} for n in NODES})
    assert "refused" in c.exec(world.clients["node-0"], "sh", "-c", "timeout 3 wget -qO- http://ending 2>&1 || true")


def test_policies_follow_labels_of_pods_and_namespaces(world: World) -> None:
    c = world.cluster
    c.kubectl("create", "namespace", "guests")
    c.kubectl("run", "guest", "-n", "guests", "--image=busybox", "--restart=Never", "--", "sleep", "100000")
    c.wait("pod/guest", namespace="guests")
    world.put({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"}, "spec": {
        "podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 8000, "endPort": 8080}], "from": [
            {"podSelector": {"matchLabels": {"may": "ask"}}},
            {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"run": "guest"}}}]}]}})

    def guest() -> str:
        return str(c.kubectl("exec", "-n", "guests", "guest", "--", "timeout", "1", "wget", "-qO-", "http://web.default", check=False)).strip()
    world.until("web", {n: {""} for n in NODES})
    assert not guest()
    c.kubectl("label", "pod", world.clients["node-0"], "may=ask")
    c.kubectl("label", "namespace", "guests", "team=a")
    world.until("web", {"node-0": set(NODES), "node-1": {""}})
    c.until(guest, "an answer for the guest")
    c.kubectl("label", "namespace", "guests", "team=b", "--overwrite")
    c.until(lambda: not guest(), "none any more")
    world.put({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "out"}, "spec": {
        "podSelector": {"matchLabels": {"may": "ask"}}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]}})
    world.until("web", {n: {""} for n in NODES})
    assert "Address" in c.exec(world.clients["node-0"], "nslookup", "web.default.svc.cluster.local")             # names still resolve
    c.kubectl("delete", "networkpolicy", "web", "out")
    world.until("web", ALL)


def test_the_proxy_says_how_it_is(world: World) -> None:
    unit = f"--net=/proc/{world.unit('node-0')}/ns/net"

    def get(place: str) -> tuple[str, str]:
        out = subprocess.run(["nsenter", unit, "curl", "-sm", "2", "-w", " %{http_code}", f"http://127.0.0.1:{place}"], capture_output=True, text=True,
                             check=False).stdout
        return out.rpartition(" ")[2], out.rpartition(" ")[0]
    assert get("10249/proxyMode") == ("200", "nftables") and "kubeproxy_sync_proxy_rules" in get("10249/metrics")[1]
    assert get("10256/healthz")[0] == "200" and get("10256/livez")[0] == "200"
    world.cluster.kubectl("taint", "node", "node-0", "ToBeDeletedByClusterAutoscaler:NoSchedule")
    world.cluster.until(lambda: get("10256/healthz")[0] == "503", "balancers turn away")
    assert get("10256/livez")[0] == "200"
    world.cluster.kubectl("taint", "node", "node-0", "ToBeDeletedByClusterAutoscaler:NoSchedule-")
    world.cluster.until(lambda: get("10256/healthz")[0] == "200", "and come back")


# ---- faults

def test_tables_that_somebody_took_away_come_back(world: World) -> None:
    for harm in (("flush", "ruleset"), ("flush", "chain", "ip", "kubern-proxy", "nat-prerouting")):
        world.nft("node-0", *harm)
        world.until("web", ALL)


def test_a_killed_agent_leaves_traffic_alone_and_catches_up(world: World) -> None:
    """Rules stay while nobody is there; what changed meanwhile is there afterwards."""
    (before,) = agents(world.cluster, "node-0")
    where = world.cluster.get("service", "web")["spec"]["clusterIP"]
    ip = next(p["status"]["podIP"] for p in world.cluster.pods("app=web") if p["spec"]["nodeName"] == "node-1")
    unit = f"--net=/proc/{world.unit('node-0')}/ns/net"
    os.kill(before, signal.SIGKILL)
    world.put(service("meanwhile"))
    answers = [subprocess.run(["nsenter", unit, "curl", "-sm", "2", f"http://{host}/"], capture_output=True, text=True, check=False).stdout.strip()
               for host in (where, f"{ip}:8080") for _ in range(5)]
    assert set(answers) <= set(NODES), answers
    world.cluster.until(lambda: agents(world.cluster, "node-0") not in ([], [before]), "another agent")
    world.until("meanwhile", ALL)


def test_without_the_api_traffic_goes_on(world: World) -> None:
    pid = int((world.cluster.home / "kubern.lock").read_text())
    where = world.cluster.get("service", "web")["spec"]["clusterIP"]
    unit = f"--net=/proc/{world.unit('node-1')}/ns/net"
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(4)
        assert subprocess.run(["nsenter", unit, "curl", "-sm", "2", f"http://{where}/"], capture_output=True, text=True, check=False).stdout.strip() in NODES
    finally:
        os.kill(pid, signal.SIGCONT)
    world.put(service("afterwards"))
    world.until("afterwards", ALL)


def test_a_flood_of_changes_leaves_nothing_stale(world: World) -> None:
    """40 services whose three endpoints all change again and again; then the kernel has the last state, and after their end nothing of them."""
    c, count, last = world.cluster, 40, 5

    def slices(round_: int) -> list[dict[str, Any]]:
        return [{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"port": 9000 + round_, "protocol": "TCP"}],
                 "metadata": {"name": f"flood-{i}", "labels": {"kubernetes.io/service-name": f"flood-{i}"}},
                 "endpoints": [{"addresses": [f"10.99.{i}.{10 * e + round_ + 1}"], "conditions": {"ready": True}} for e in range(3)]} for i in range(count)]
    world.put(*({**service(f"flood-{i}"), "spec": {"ports": [{"port": 80}]}} for i in range(count)), *slices(0))
    for round_ in range(1, last + 1):
        c.kubectl("replace", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": slices(round_)}))
    ips = [s["spec"]["clusterIP"] for s in c.get("services")["items"] if s["metadata"]["name"].startswith("flood-")]
    assert len(ips) == count

    def held(node: str) -> set[str]:
        return set(re.findall(r": (10\.99\.\d+\.\d+ \. \d+)", world.nft(node, "list", "map", "ip", "kubern-proxy", "endpoints")))

    def gone(node: str) -> bool:
        table = world.nft(node, "list", "table", "ip", "kubern-proxy")
        return not held(node) and not any(f"{ip} " in table for ip in ips)
    wanted = {f"{e['addresses'][0]} . {9000 + last}" for s in slices(last) for e in s["endpoints"]}
    for node in NODES:
        c.until(lambda n=node: held(n) == wanted, f"the last state on {node}")
    c.kubectl("delete", "service", *(f"flood-{i}" for i in range(count)))
    for node in NODES:
        c.until(lambda n=node: gone(n), f"nothing left on {node}")
    world.until("web", ALL)
