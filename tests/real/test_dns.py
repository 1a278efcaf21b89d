"""The whole DNS specification for Kubernetes (1.1), asked from a pod's own network by dnspython, on a dual-stack cluster of two nodes; then
forwarding, stub domains and the cache against a server of the tests' own."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import dns.message
import dns.rcode
import dns.reversename
import dns.rrset
import pytest

from tests.real import resolver
from tests.real.cluster import agents
from tests.real.test_dualstack import FLAGS as FLAGS

pytestmark = pytest.mark.real

ZONE = "default.svc.cluster.local."
PODS = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: db}}}]
      containers: [{name: c, image: busybox, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: unready, labels: {app: unready}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: busybox, command: [sleep, "100000"], readinessProbe: {exec: {command: ["false"]}}}]
"""
PORTS = [{"name": "sql", "port": 5432}, {"name": "dns", "port": 53, "protocol": "UDP"}]


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": PORTS, "ipFamilyPolicy": "PreferDualStack", **spec}}


class World:
    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.server = cluster.get("service", "kube-dns", "-n", "kube-system")["spec"]["clusterIP"]
        pid = subprocess.run(["sh", "-c", "grep -ls " + cluster.get("pod", "db-0")["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
                              + " /proc/[0-9]*/cgroup"], capture_output=True, text=True, check=False).stdout.split("/")[2]
        self.asker = subprocess.Popen(["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, resolver.__file__, self.server],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name: str, type_: str = "A", **how: Any) -> dict[str, Any]:
        assert self.asker.stdin is not None and self.asker.stdout is not None
        self.asker.stdin.write(json.dumps({"name": name, "type": type_, **how}) + "\n")
        self.asker.stdin.flush()
        return dict(json.loads(self.asker.stdout.readline()))

    def data(self, name: str, type_: str = "A") -> set[str]:
        return {row[2] for row in self.ask(name, type_).get("answers") or () if row[1] == type_}

    def ips(self, service: str) -> tuple[str, str]:
        four, six = self.cluster.get("service", service)["spec"]["clusterIPs"]
        return four, six

    def pods(self) -> dict[str, tuple[str, str]]:
        return {p["metadata"]["name"]: (p["status"]["podIPs"][0]["ip"], p["status"]["podIPs"][1]["ip"]) for p in self.cluster.pods("app=db")}


@pytest.fixture(scope="module")
def world(cluster: Any) -> Iterator[World]:
    many = [{"addresses": [f"10.77.0.{i}"], "conditions": {"ready": True}} for i in range(1, 61)]
    items = [service("db", clusterIP="None", selector={"app": "db"}), service("plain", selector={"app": "db"}),
             service("early", clusterIP="None", selector={"app": "unready"}, publishNotReadyAddresses=True),
             service("late", clusterIP="None", selector={"app": "unready"}), service("many", clusterIP="None", ipFamilyPolicy="SingleStack"),
             {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "many-1", "labels": {"kubernetes.io/service-name": "many"}},
              "addressType": "IPv4", "endpoints": many, "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]},
             {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "away"}, "spec": {"type": "ExternalName", "externalName": "host.world.test"}},
             {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"}, "spec": {"type": "ExternalName", "externalName": "plain." + ZONE[:-1]}}]
    cluster.apply(PODS + "---\n" + json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    cluster.kubectl("rollout", "status", "statefulset/db", "--timeout=90s", timeout=100)
    cluster.until(lambda: (cluster.get("pod", "unready")["status"].get("podIPs")), "an address of the unready pod")
    w = World(cluster)
    cluster.until(lambda: len(w.data(f"db.{ZONE}")) == 2 and w.data(f"early.{ZONE}"), "the first answers")
    yield w
    w.asker.communicate()


def test_the_version_and_the_zone(world: World) -> None:
    assert world.data("dns-version.cluster.local.", "TXT") == {'"1.1.0"'}
    assert world.ask("cluster.local.", "SOA")["answers"][0][1] == "SOA" and world.ask("cluster.local.", "NS")["answers"][0][2] == "ns.dns.cluster.local."


def test_addresses_of_services(world: World) -> None:
    four, six = world.ips("plain")
    assert world.data(f"plain.{ZONE}") == {four} and world.data(f"plain.{ZONE}", "AAAA") == {six}
    found = world.ask(f"pLaIn.{ZONE}")
    assert found["question"] == f"pLaIn.{ZONE}" and "AA" in found["flags"] and found["ttl"] == 5
    assert world.data("kubernetes.default.svc.cluster.local.") == {world.cluster.get("service", "kubernetes")["spec"]["clusterIP"]}
    for name in ("nothing." + ZONE, "plain.nowhere.svc.cluster.local.", "x.plain." + ZONE):
        missing = world.ask(name)
        assert missing["code"] == "NXDOMAIN" and missing["authority"][0][1] == "SOA", name
    nothing = world.ask(f"plain.{ZONE}", "MX")
    assert nothing["code"] == "NOERROR" and not nothing["answers"] and nothing["authority"][0][1] == "SOA"


def test_ports_of_services(world: World) -> None:
    found = world.ask(f"_sql._tcp.plain.{ZONE}", "SRV")
    assert [row[2] for row in found["answers"]] == [f"0 100 5432 plain.{ZONE}"]
    assert {row[2] for row in found["additional"]} == set(world.ips("plain"))
    assert world.data(f"_dns._udp.plain.{ZONE}", "SRV") == {f"0 100 53 plain.{ZONE}"}
    assert world.ask(f"_sql._udp.plain.{ZONE}", "SRV")["code"] == "NXDOMAIN"


def test_names_of_addresses(world: World) -> None:
    for ip in world.ips("plain"):
        assert world.data(str(dns.reversename.from_address(ip)), "PTR") == {f"plain.{ZONE}"}
    for name, ips in world.pods().items():
        for ip in ips:
            assert f"{name}.db.{ZONE}" in world.data(str(dns.reversename.from_address(ip)), "PTR")


def test_headless_services(world: World) -> None:
    pods = world.pods()
    assert world.data(f"db.{ZONE}") == {four for four, _ in pods.values()} and world.data(f"db.{ZONE}", "AAAA") == {six for _, six in pods.values()}
    for name, (four, six) in pods.items():
        assert world.data(f"{name}.db.{ZONE}") == {four} and world.data(f"{name}.db.{ZONE}", "AAAA") == {six}
    found = world.ask(f"_sql._tcp.db.{ZONE}", "SRV")
    assert {row[2].split()[-1] for row in found["answers"]} == {f"{n}.db.{ZONE}" for n in pods} and all(row[2].split()[2] == "5432" for row in found["answers"])
    assert {row[2] for row in found["additional"]} == {ip for ips in pods.values() for ip in ips}
    assert len(world.data(f"early.{ZONE}")) == 1 and world.ask(f"late.{ZONE}")["code"] == "NXDOMAIN"         # not ready: only who wants them


def test_names_of_pods(world: World) -> None:
    four, six = world.pods()["db-1"]
    assert world.data(f"{four.replace('.', '-')}.default.pod.cluster.local.") == {four}
    assert {ipaddress.ip_address(x) for x in world.data(f"{six.replace(':', '-')}.default.pod.cluster.local.", "AAAA")} == {ipaddress.ip_address(six)}
    assert world.ask(f"{four.replace('.', '-')}.nowhere.pod.cluster.local.")["code"] == "NXDOMAIN"


def test_names_inside_of_others(world: World) -> None:
    """What a program in the pod sees through its resolv.conf: short names by the search path, and its own host name."""
    c = world.cluster
    for name in ("plain", "plain.default", "plain.default.svc"):
        assert f"PING {name} ({world.ips('plain')[0]})" in c.exec("db-0", "ping", "-4", "-c1", "-w1", name, check=False)
    assert c.exec("db-0", "hostname", "-f").strip() == f"db-0.db.{ZONE[:-1]}"


def test_aliases(world: World) -> None:
    four, _ = world.ips("plain")
    found = world.ask(f"alias.{ZONE}")
    assert [row[1:] for row in found["answers"]] == [["CNAME", f"plain.{ZONE}"], ["A", four]]
    assert world.data(f"away.{ZONE}", "CNAME") == {"host.world.test."}


def test_what_does_not_fit(world: World) -> None:
    """60 addresses: cut for a plain datagram, more of it with EDNS, whole by TCP."""
    plain, wide, whole = (world.ask(f"many.{ZONE}", **how) for how in ({}, {"edns": 1232}, {"tcp": True}))
    assert "TC" in plain["flags"] and len(plain["answers"]) < 40
    assert "TC" not in wide["flags"] and wide["edns"] and len(wide["answers"]) == 60
    assert {row[2] for row in whole["answers"]} == {f"10.77.0.{i}" for i in range(1, 61)}
    assert len({world.ask(f"many.{ZONE}", edns=4096)["answers"][0][2] for _ in range(12)}) > 3                # not always the same first


def test_it_follows_what_happens(world: World) -> None:
    c = world.cluster
    c.kubectl("scale", "statefulset", "db", "--replicas=1")
    c.until(lambda: world.ask(f"db-1.db.{ZONE}")["code"] == "NXDOMAIN" and len(world.data(f"db.{ZONE}")) == 1, "one address less")
    c.kubectl("scale", "statefulset", "db", "--replicas=2")
    c.until(lambda: len(world.data(f"db.{ZONE}")) == 2, "both again")
    c.apply(json.dumps(service("brief")))
    c.until(lambda: world.data(f"brief.{ZONE}"), "a new service")
    c.kubectl("delete", "service", "brief")
    c.until(lambda: world.ask(f"brief.{ZONE}")["code"] == "NXDOMAIN", "a service less")


ASKED: list[str] = []                                # what the world was asked


class Upstream(socketserver.BaseRequestHandler):
    """Everything has an address, but for what is missing.test."""

    def handle(self) -> None:
        data, sock = self.request
        q = dns.message.from_wire(data)
        name, m = q.question[0].name, dns.message.make_response(q)
        ASKED.append(f"{name} {q.question[0].rdtype.name}")
        if str(name).endswith("missing.test."):
            m.set_rcode(dns.rcode.NXDOMAIN)
            m.authority.append(dns.rrset.from_text("test.", 60, "IN", "SOA", "ns.test. h.test. 1 2 3 4 20"))
        elif q.question[0].rdtype.name == "A":
            m.answer.append(dns.rrset.from_text(str(name), 60, "IN", "A", "203.0.113.9"))
        sock.sendto(m.to_wire(), self.client_address)


@pytest.fixture(scope="module")
def upstream(world: World) -> Iterator[str]:
    gateway = json.loads((world.cluster.home / "fabric.json").read_text())["subnet"].replace(".0/24", ".1")
    with socketserver.ThreadingUDPServer((gateway, 0), Upstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{gateway}:{server.server_address[1]}"
        server.shutdown()


def test_names_of_the_world(world: World, upstream: str) -> None:
    """upstreamNameservers: forwarded, by UDP and TCP, kept while their time lasts, what is missing as well; aliases lead there."""
    c = world.cluster
    c.kubectl("create", "configmap", "kube-dns", "-n", "kube-system", f"--from-literal=upstreamNameservers={json.dumps([upstream])}")
    c.until(lambda: world.data("first.world.test.") == {"203.0.113.9"}, "an answer from the world", 90)
    ASKED.clear()
    for how in ({}, {"tcp": True}, {"edns": 1232}):
        found = world.ask("kept.world.test.", **how)
        assert found["answers"] == [["kept.world.test.", "A", "203.0.113.9"]] and "AA" not in found["flags"]
        assert world.ask("it.missing.test.", **how)["code"] == "NXDOMAIN"
    assert sorted(ASKED) == ["it.missing.test. A", "kept.world.test. A"]
    found = world.ask(f"away.{ZONE}")
    assert [row[1:] for row in found["answers"]] == [["CNAME", "host.world.test."], ["A", "203.0.113.9"]]
    assert world.ask("9.113.0.203.in-addr.arpa.", "PTR")["code"] == "NOERROR" and "9.113.0.203.in-addr.arpa. PTR" in ASKED
    c.kubectl("delete", "configmap", "kube-dns", "-n", "kube-system")


def test_domains_of_others(world: World, upstream: str) -> None:
    """stubDomains: some names go elsewhere, also from a pod by way of libc; a server that is silent is a failure, not a silence."""
    c = world.cluster
    stubs = json.dumps({"acme.test": [upstream], "silent.test": [upstream.rpartition(":")[0] + ":9"]})
    c.kubectl("create", "configmap", "kube-dns", "-n", "kube-system", f"--from-literal=stubDomains={stubs}")
    c.until(lambda: world.data("host.acme.test.") == {"203.0.113.9"}, "the other server", 90)
    assert "203.0.113.9" in c.exec("db-0", "nslookup", "-type=a", "deep.host.acme.test.")
    began = time.monotonic()
    assert world.ask("x.silent.test.", tcp=True)["code"] in ("SERVFAIL", "TIMEOUT") and time.monotonic() - began < 10
    c.kubectl("delete", "configmap", "kube-dns", "-n", "kube-system")


def test_a_killed_server_comes_back(world: World) -> None:
    c = world.cluster
    node = c.get("pod", "db-0")["spec"]["nodeName"]
    four, _ = world.ips("plain")
    (before,) = agents(c, node)
    os.kill(before, signal.SIGKILL)
    c.until(lambda: agents(c, node) not in ([], [before]), "another agent")
    c.until(lambda: world.data(f"plain.{ZONE}") == {four}, "an answer again", 30)
