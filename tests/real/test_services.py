"""The example on real nodes: nginx through ClusterIP, NodePort and name, spread over replicas; redis on localhost; one volume in both."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def web(cluster: Any) -> Any:
    cluster.apply((files("kubern") / "examples" / "web.yaml").read_text())
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=120s", timeout=130)
    cluster.wait("pod/client")
    return cluster


def node_port(cluster: Any) -> str:
    service = cluster.get("service", "web")
    port = next(p["nodePort"] for p in service["spec"]["ports"] if p.get("nodePort"))
    return f"http://{cluster.node_address('node-0')}:{port}/"


def fetch(url: str, timeout_s: float = 3) -> str:
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        return answer.read().decode()


class Load:
    """Requests one after the other from the host until stopped; what failed is kept."""

    def __init__(self, url: str) -> None:
        self.url, self.done, self.failed = url, 0, []  # type: ignore[var-annotated]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                fetch(self.url)
            except Exception as e:
                self.failed.append((time.monotonic(), repr(e)))
            self.done += 1
            time.sleep(0.01)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_three_replicas_on_two_nodes(web: Any) -> None:
    pods = web.pods("app=web")
    assert len(pods) == 3
    assert {p["spec"]["nodeName"] for p in pods} == {"node-0", "node-1"}
    assert all(s["ready"] and s["restartCount"] == 0 for p in pods for s in p["status"]["containerStatuses"])


def test_service_by_name_address_and_node_port(web: Any) -> None:
    service = web.get("service", "web")
    assert "nginx" in web.exec("client", "wget", "-qO-", "http://web")
    assert "nginx" in web.exec("client", "wget", "-qO-", "http://web.default.svc.cluster.local")
    assert "nginx" in web.exec("client", "wget", "-qO-", f"http://{service['spec']['clusterIP']}")
    assert "nginx" in fetch(node_port(web))


def test_load_is_spread_over_the_replicas(web: Any) -> None:
    names = [p["metadata"]["name"] for p in web.pods("app=web")]
    for n in names:
        web.exec(n, "sh", "-c", "echo $HOSTNAME > /usr/share/nginx/html/who", container="nginx")
    seen = Counter(fetch(node_port(web) + "who").strip() for _ in range(90))
    assert set(seen) == set(names)
    assert min(seen.values()) >= 10, seen


def test_redis_on_localhost_and_a_shared_volume(web: Any) -> None:
    pod = web.pods("app=web")[0]["metadata"]["name"]
    assert "PONG" in web.exec(pod, "sh", "-c", "printf 'PING\\r\\nQUIT\\r\\n' | nc 127.0.0.1 6379", container="nginx")
    mounts = web.get("pod", pod)["spec"]["containers"]
    shared = {m["name"] for m in mounts[0]["volumeMounts"]} & {m["name"] for m in mounts[1]["volumeMounts"]}
    shared = {n for n in shared if not n.startswith("kube-api-access")}
    assert shared
    name = shared.pop()
    paths = {c["name"]: next(m["mountPath"] for m in c["volumeMounts"] if m["name"] == name) for c in mounts}
    web.exec(pod, "sh", "-c", f"echo hello > {paths['redis']}/note", container="redis")
    assert web.exec(pod, "cat", f"{paths['nginx']}/note", container="nginx") == "hello\n"


def test_rolling_update_and_rollback_under_load(web: Any) -> None:
    with Load(node_port(web)) as load:
        web.kubectl("set", "env", "deployment/web", "-c", "nginx", "ROUND=2")
        web.kubectl("rollout", "status", "deployment/web", "--timeout=120s", timeout=130)
        web.kubectl("rollout", "undo", "deployment/web")
        web.kubectl("rollout", "status", "deployment/web", "--timeout=120s", timeout=130)
    assert load.done > 50
    assert not load.failed, load.failed[:5]


def test_scale_up_and_down(web: Any) -> None:
    for n in (10, 1, 3):
        web.kubectl("scale", "deployment/web", f"--replicas={n}")
        web.kubectl("rollout", "status", "deployment/web", "--timeout=120s", timeout=130)
        web.until(lambda n=n: len([p for p in web.pods("app=web") if not p["metadata"].get("deletionTimestamp")]) == n, f"{n} replicas")
        assert "nginx" in fetch(node_port(web))
    web.until(lambda: len(web.pods("app=web")) == 3, "old pods gone")


def test_killed_container_is_restarted(web: Any) -> None:
    pod = web.pods("app=web")[0]["metadata"]["name"]
    before = {s["name"]: s["containerID"] for s in web.get("pod", pod)["status"]["containerStatuses"]}
    web.exec(pod, "sh", "-c", "kill -9 1 || true", container="nginx", check=False)
    pid = container_pid(web, pod, before["nginx"])
    if pid:
        subprocess.run(["kill", "-9", str(pid)], check=False)
    status = web.until(lambda: next((s for s in web.get("pod", pod)["status"]["containerStatuses"]
                                     if s["name"] == "nginx" and s["restartCount"] == 1 and s["ready"]), None), "nginx restarted")
    assert status["containerID"] != before["nginx"]
    assert status["lastState"]["terminated"]["exitCode"] == 137
    assert next(s for s in web.get("pod", pod)["status"]["containerStatuses"] if s["name"] == "redis")["restartCount"] == 0


def container_pid(cluster: Any, pod: str, container_id: str) -> int:
    """The main process of a container as the host sees it, by its cgroup; 0 if there is none."""
    wanted = container_id.rpartition("/")[2]
    done = subprocess.run(["sh", "-c", f"grep -ls {wanted} /proc/[0-9]*/cgroup"], capture_output=True, text=True)
    pids = sorted(int(line.split("/")[2]) for line in done.stdout.split())
    return pids[0] if pids else 0


def test_deleted_pod_is_replaced_and_back_in_the_service(web: Any) -> None:
    old = web.pods("app=web")[0]["metadata"]["name"]
    web.kubectl("delete", "pod", old)
    web.kubectl("rollout", "status", "deployment/web", "--timeout=60s", timeout=70)
    names = {p["metadata"]["name"] for p in web.pods("app=web")}
    assert old not in names and len(names) == 3
    slices = web.get("endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
    ready = {e["targetRef"]["name"] for s in slices for e in s["endpoints"] or [] if e["conditions"]["ready"]}
    assert ready == names


def test_control_plane_killed_pods_keep_serving_and_nothing_restarts(web: Any) -> None:
    before = {p["metadata"]["name"]: [s["containerID"] for s in p["status"]["containerStatuses"]] for p in web.pods("app=web")}
    web.kubectl("create", "configmap", "kept", "--from-literal=a=1")
    pid = int((web.home / "kubern.lock").read_text())
    url = node_port(web)
    with Load(url) as load:
        subprocess.run(["kill", "-9", str(pid)], check=True)
        time.sleep(2)
        assert "nginx" in fetch(url)
        web.up()
        time.sleep(2)
    assert not load.failed, load.failed[:5]
    assert json.loads(web.kubectl("get", "configmap", "kept", "-o", "json"))["data"] == {"a": "1"}
    after = {p["metadata"]["name"]: [s["containerID"] for s in p["status"]["containerStatuses"]] for p in web.pods("app=web")}
    assert after == before


def test_other_servers_for_some_domains(web: Any) -> None:
    """A server on the machine answers for a domain, once the ConfigMap kube-dns says so."""
    gateway = json.loads((web.home / "fabric.json").read_text())["subnet"].replace(".0/24", ".1")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((gateway, 0))

    def answer() -> None:
        while True:
            try:
                query, peer = server.recvfrom(512)
            except OSError:
                return
            end = query.index(b"\0", 12) + 5
            server.sendto(query[:2] + b"\x84\0\0\1\0\1\0\0\0\0" + query[12:end] + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + bytes((10, 1, 2, 3)), peer)
    threading.Thread(target=answer, daemon=True).start()
    try:
        stubs = json.dumps({"acme.test": [f"{gateway}:{server.getsockname()[1]}"]})
        web.kubectl("create", "configmap", "kube-dns", "-n", "kube-system", f"--from-literal=stubDomains={stubs}")
        web.until(lambda: "10.1.2.3" in web.exec("client", "nslookup", "-type=a", "host.acme.test", check=False), "its answer")
        web.kubectl("delete", "configmap", "kube-dns", "-n", "kube-system")
        web.until(lambda: "10.1.2.3" not in web.exec("client", "nslookup", "-type=a", "other.acme.test", check=False), "nobody knows it any more")
    finally:
        server.close()


def test_dead_node_is_noticed_and_its_pods_replaced(web: Any) -> None:
    """Last of this file: it takes a node away."""
    web.kubectl("patch", "deployment", "web", "--type=merge", "-p", json.dumps({"spec": {"template": {"spec": {"tolerations": [
        {"key": k, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
        for k in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")]}}}}))
    web.kubectl("rollout", "status", "deployment/web", "--timeout=120s", timeout=130)
    url = node_port(web)                                            # through node-0, which stays
    web.kubern("node", "remove", "node-1", "--kill")
    web.kubectl("wait", "node/node-1", "--for=condition=Ready=Unknown", "--timeout=60s", timeout=70)

    def withdrawn() -> bool:
        slices = web.get("endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
        return not any(e.get("nodeName") == "node-1" and e["conditions"]["ready"] for s in slices for e in s["endpoints"] or [])
    web.until(withdrawn, "endpoints of node-1 withdrawn", 30)
    time.sleep(0.5)
    with Load(url) as load:
        web.until(lambda: len([p for p in web.pods("app=web") if p["spec"].get("nodeName") == "node-0"
                               and all(s["ready"] for s in p["status"].get("containerStatuses") or [{"ready": False}])]) == 3, "three on node-0", 90)
    assert not load.failed, load.failed[:5]
