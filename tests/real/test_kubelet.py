"""The kubelet on real containers, driven by kubectl: lives of pods, volumes, probes, hooks, streams, and a restart of the agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

BUSYBOX = {"image": "busybox", "imagePullPolicy": "IfNotPresent"}


def shell(text: str, name: str = "c", **more: Any) -> dict[str, Any]:
    return {"name": name, **BUSYBOX, "command": ["sh", "-c", text], **more}


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "terminationGracePeriodSeconds": 1, "containers": list(containers), **spec}}


@pytest.fixture
def c(cluster: Any) -> Iterator[Any]:
    cluster.until(lambda: cluster.kubectl("get", "serviceaccount", "default", check=False), "no service account")
    yield cluster
    cluster.kubectl("delete", "pod", "--all", "--force", "--grace-period=0", "--wait=true", check=False)


def make(c: Any, *objects: dict[str, Any]) -> None:
    c.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def status(c: Any, name: str, container: int = 0) -> dict[str, Any]:
    return c.get("pod", name)["status"]["containerStatuses"][container]


def phase(c: Any, name: str, wanted: str) -> dict[str, Any]:
    return c.until(lambda: (p := c.get("pod", name))["status"]["phase"] == wanted and p, f"{name} is not {wanted}")


def test_two_containers_of_a_pod_meet_on_localhost(c: Any) -> None:
    make(c, pod("web", {"name": "nginx", "image": "nginx", "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 80, "name": "http"}],
                        "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1}},
                {"name": "redis", "image": "redis", "imagePullPolicy": "IfNotPresent",
                 "livenessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 2}}))
    c.wait("pod/web")
    assert "Welcome to nginx" in c.kubectl("exec", "web", "-c", "redis", "--", "wget", "-qO-", "http://localhost")
    assert c.kubectl("exec", "web", "-c", "nginx", "--", "sh", "-c", "echo PING | nc localhost 6379").startswith("+PONG")


def test_logs_and_streams(c: Any) -> None:
    make(c, pod("s", shell("echo one; sleep 0.3; echo two >&2; sleep 1000")))
    c.wait("pod/s")
    c.until(lambda: c.kubectl("logs", "s") == "one\ntwo\n", "the log is not there")
    assert c.kubectl("logs", "s", "--tail=1") == "two\n"
    assert c.kubectl("exec", "-i", "s", "--", "cat", stdin="x" * 100_000) == "x" * 100_000
    done = subprocess.run([c_path(), "exec", "s", "--", "sh", "-c", "exit 7"], env=c.env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 7 and "exit code 7" in done.stderr


def c_path() -> str:
    import sys

    return str(Path(sys.executable).parent / "kubectl")


def test_ends_restarts_and_messages(c: Any) -> None:
    make(c, pod("ok", shell("exit 0"), restartPolicy="Never"), pod("bad", shell("echo why > /dev/termination-log; exit 3"), restartPolicy="Never"),
         pod("loop", shell("echo last words; exit 1", terminationMessagePolicy="FallbackToLogsOnError")))
    assert phase(c, "ok", "Succeeded")["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "Completed"
    ended = phase(c, "bad", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "why\n")
    s = c.until(lambda: (s := status(c, "loop"))["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff" and s, "no back-off")
    assert s["lastState"]["terminated"]["message"] == "last words\n" and s["restartCount"] >= 1
    assert c.kubectl("logs", "loop", "--previous") == "last words\n"


def test_volumes_hold_and_follow(c: Any) -> None:
    make(c, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"a": "1", "b": "x"}},
         {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sec"}, "stringData": {"pw": "s3cret"}},
         pod("v", shell("sleep 1000", volumeMounts=[{"name": "cm", "mountPath": "/cm"}, {"name": "sec", "mountPath": "/sec"},
                                                    {"name": "down", "mountPath": "/down"}, {"name": "e", "mountPath": "/e"},
                                                    {"name": "e", "mountPath": "/sub", "subPath": "deep/er"}, {"name": "m", "mountPath": "/m"}],
                        env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "a"}}}]),
             securityContext={"fsGroup": 2000}, volumes=[
                 {"name": "cm", "configMap": {"name": "cm", "items": [{"key": "a", "path": "dir/a"}]}},
                 {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 0o400}},
                 {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                 {"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}]))
    c.wait("pod/v")

    def sh(text: str) -> str:
        return c.kubectl("exec", "v", "--", "sh", "-c", text)

    assert sh("cat /cm/dir/a /sec/pw /down/labels; echo; echo $A") == '1s3cretapp="v"\n1\n'
    assert sh("echo hi > /sub/f; cat /e/deep/er/f; stat -c '%g %a' /e; stat -L -c '%a' /sec/pw; df -k /m | tail -1 | awk '{print $2}'") == \
        "hi\n2000 2777\n440\n8192\n"
    c.kubectl("patch", "configmap", "cm", "-p", '{"data":{"a":"2"}}')
    c.kubectl("label", "pod", "v", "more=1")
    c.until(lambda: sh("cat /cm/dir/a") == "2", "the config map did not follow", 20)
    c.until(lambda: "more" in sh("cat /down/labels"), "labels did not follow", 20)
    token = sh("cat /var/run/secrets/kubernetes.io/serviceaccount/token")
    assert token.count(".") == 2


def test_security(c: Any) -> None:
    make(c, pod("sec", shell("id -u; id -g; touch /x || echo read-only; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status; sleep 1000",
                             securityContext={"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}),
                securityContext={"runAsUser": 1000, "runAsGroup": 3000, "seccompProfile": {"type": "RuntimeDefault"}}),
         pod("root", shell("sleep 1000", securityContext={"runAsNonRoot": True})))
    c.wait("pod/sec")
    assert [x.split(":\t")[-1] for x in c.kubectl("logs", "sec").splitlines() if "touch" not in x] == [
        "1000", "3000", "read-only", "1", "0000000000000000"]
    c.until(lambda: status(c, "root")["state"].get("waiting", {}).get("reason") == "CreateContainerConfigError", "root was let in")


def test_probes_and_hooks(c: Any) -> None:
    make(c, pod("live", shell("touch /ok; sleep 2; rm /ok; sleep 1000", livenessProbe={
        "exec": {"command": ["cat", "/ok"]}, "periodSeconds": 1, "failureThreshold": 1})),
        pod("start", {"name": "c", "image": "nginx", "imagePullPolicy": "IfNotPresent", "startupProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 1,
                                                                                                       "failureThreshold": 100}}),
        pod("hooks", shell("trap 'exit 0' TERM; while true; do sleep 0.1; done", lifecycle={
            "postStart": {"exec": {"command": ["sh", "-c", "echo post > /dev/termination-log"]}},
            "preStop": {"exec": {"command": ["sh", "-c", "sleep 1; echo pre >> /dev/termination-log"]}}}), terminationGracePeriodSeconds=10))
    c.until(lambda: status(c, "live")["restartCount"] >= 1, "liveness did not restart it")
    c.wait("pod/hooks")
    s = status(c, "start")
    assert (s["started"], s["ready"]) == (False, False) and "running" in s["state"]
    began = time.monotonic()
    c.kubectl("delete", "pod", "hooks")
    assert 1 <= time.monotonic() - began < 8


def test_init_containers_and_sidecars(c: Any) -> None:
    make(c, pod("i", shell("sleep 1"), restartPolicy="Never", initContainers=[
        shell("trap 'exit 0' TERM; while true; do sleep 0.1; done", "side", restartPolicy="Always"), shell("sleep 0.5", "first")]))
    p = phase(c, "i", "Succeeded")
    assert [x["state"]["terminated"]["exitCode"] for x in p["status"]["initContainerStatuses"]] == [0, 0]


def test_limits(c: Any) -> None:
    make(c, pod("oom", shell("dd if=/dev/zero of=/dev/null bs=300M count=1", resources={"limits": {"memory": "32Mi"}}), restartPolicy="Never"),
         pod("late", shell("sleep 1000"), activeDeadlineSeconds=2))
    assert phase(c, "oom", "Failed")["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"
    assert phase(c, "late", "Failed")["status"]["reason"] == "DeadlineExceeded"


def test_resize_in_place(c: Any) -> None:
    make(c, pod("r", shell("sleep 1000", resources={"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}})))
    c.wait("pod/r")
    c.kubectl("patch", "pod", "r", "--subresource", "resize", "--type", "strategic", "-p",
              '{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"300m"}}}]}}')
    s = c.until(lambda: (s := status(c, "r"))["resources"]["limits"]["cpu"] == "300m" and s, "not resized")
    assert s["restartCount"] == 0


def test_a_restarted_agent_restarts_nothing_and_misses_nothing(c: Any) -> None:
    make(c, pod("keep", shell("sleep 1000")), pod("gone", shell("sleep 1000")))
    c.wait("pod/keep")
    c.wait("pod/gone")
    before = status(c, "keep")
    for line in Path("/proc").iterdir():
        try:
            text = (line / "cmdline").read_bytes()
        except OSError:
            continue
        if b"kubern.agent" in text and b"unshare" not in text and line.name.isdigit() and str(c.home).encode() in (line / "environ").read_bytes() + text:
            os.kill(int(line.name), signal.SIGKILL)
    c.kubectl("delete", "pod", "gone")
    after = c.until(lambda: (s := status(c, "keep"))["ready"] and s, "keep is not ready", 30)
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


STATIC = """
apiVersion: v1
kind: Pod
metadata: {name: fixed}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo from a file; sleep 1000']}
"""


def test_static_pods_are_shown_by_mirror_pods(c: Any) -> None:
    folder = c.home / "nodes/node-0/manifests"
    folder.mkdir(exist_ok=True)
    (folder / "fixed.yaml").write_text(STATIC)
    c.until(lambda: c.kubectl("get", "pod", "fixed-node-0", check=False), "no mirror pod")
    p = phase(c, "fixed-node-0", "Running")
    assert p["metadata"]["annotations"]["kubernetes.io/config.source"] == "file" and p["metadata"]["ownerReferences"][0]["kind"] == "Node"
    assert c.until(lambda: c.kubectl("logs", "fixed-node-0"), "no log") == "from a file\n"
    container = p["status"]["containerStatuses"][0]["containerID"]
    c.kubectl("delete", "pod", "fixed-node-0", "--grace-period=0", "--force")
    again = c.until(lambda: (p2 := c.kubectl("get", "pod", "fixed-node-0", "-o", "json", check=False)) and (
        p2 := json.loads(p2))["metadata"]["uid"] != p["metadata"]["uid"] and p2["status"].get("containerStatuses") and p2, "the mirror stays away")
    assert again["status"]["containerStatuses"][0]["containerID"] == container, "its image was deleted, not the pod"
    (folder / "fixed.yaml").unlink()
    c.until(lambda: not c.kubectl("get", "pod", "fixed-node-0", check=False), "it stays")


def test_the_endpoint_and_who_may_read_it(c: Any) -> None:
    make(c, pod("seen", shell("sleep 1000", livenessProbe={"exec": {"command": ["true"]}, "periodSeconds": 1}), nodeName="node-0"))
    c.wait("pod/seen")

    def raw(path: str) -> str:
        return c.kubectl("get", "--raw", f"/api/v1/nodes/node-0/proxy/{path}")
    assert raw("healthz") == "ok" and "seen" in [p["metadata"]["name"] for p in json.loads(raw("pods"))["items"]]
    figures = c.until(lambda: next((p for p in json.loads(raw("stats/summary"))["pods"] if p["podRef"]["name"] == "seen"), None), "not in the summary")
    if Path("/proc/pressure/cpu").exists():
        assert json.loads(raw("stats/summary"))["node"]["cpu"]["psi"]["some"]["total"] > 0
    assert figures["containers"][0]["memory"]["workingSetBytes"] and figures["cpu"]["usageCoreNanoSeconds"]
    for path, name in (("metrics", 'kubelet_started_containers_total{container_type="container"}'), ("metrics/cadvisor", "container_fs_writes_bytes_total"),
                       ("metrics/cadvisor", 'container_memory_working_set_bytes{container="c"'),
                       ("metrics/resource", 'pod_cpu_usage_seconds_total{namespace="default",pod="seen"}'),
                       ("metrics/probes", 'prober_probe_total{container="c"')):
        c.until(lambda p=path, n=name: n in raw(p), f"no {name} in {path}", 20)
    url = f"https://{c.node_address('node-0')}:10250/metrics/resource"

    def status_for(*words: str) -> str:
        return subprocess.run(["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10", *words, url], capture_output=True, text=True).stdout
    assert status_for() == "401"
    token = c.kubectl("create", "token", "default").strip()
    assert status_for("-H", f"Authorization: Bearer {token}") == "403"
    c.kubectl("create", "clusterrole", "scraper", "--verb=get", "--resource=nodes/metrics")
    c.kubectl("create", "clusterrolebinding", "scraper", "--clusterrole=scraper", "--serviceaccount=default:scraper")
    c.kubectl("create", "serviceaccount", "scraper")
    token = c.kubectl("create", "token", "scraper").strip()
    assert status_for("-H", f"Authorization: Bearer {token}") == "200"


def test_nothing_is_left_behind(c: Any) -> None:
    make(c, pod("x", shell("sleep 1000")))
    c.wait("pod/x")
    uid = c.get("pod", "x")["metadata"]["uid"]
    c.kubectl("delete", "pod", "x")

    def traces() -> list[str]:
        return [p for root in ("/sys/fs/cgroup", str(c.home)) for p, _, _ in os.walk(root) if uid in p]

    c.until(lambda: not traces(), "traces of the pod are left", 20)
