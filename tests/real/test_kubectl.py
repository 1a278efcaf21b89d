"""kubectl, unmodified, against real containers: what a person does all day."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real

POD = """
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'i=0; while true; do echo line $i; i=$((i+1)); sleep 0.2; done']
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {memory: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: nginx, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
"""


@pytest.fixture(scope="module")
def pods(cluster: Any) -> Any:
    cluster.apply(POD)
    cluster.wait("pod/talker")
    cluster.wait("pod/server")
    return cluster


def popen(cluster: Any, *args: str, **more: Any) -> subprocess.Popen[bytes]:
    kubectl = str(Path(os.sys.executable).parent / "kubectl")  # type: ignore[attr-defined]
    return subprocess.Popen([kubectl, *args], env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_get_wide_and_describe(pods: Any) -> None:
    wide = pods.kubectl("get", "pod", "talker", "-o", "wide")
    assert wide.split()[:5] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert "1/1" in wide and "Running" in wide
    text = pods.kubectl("describe", "pod", "talker")
    for part in ("Status:           Running", "QoS Class:", "Scheduled", "Pulled", "Created", "Started"):
        assert part in text, text
    assert "Allocated resources" in pods.kubectl("describe", "node", "node-0")


def test_logs(pods: Any) -> None:
    lines = pods.kubectl("logs", "talker", "--tail=3").splitlines()
    assert len(lines) == 3 and lines[0].startswith("line ")
    assert pods.kubectl("logs", "talker", "--timestamps", "--tail=1").split()[0].startswith("20")
    p = popen(pods, "logs", "-f", "talker", "--tail=1")
    try:
        assert p.stdout
        first = p.stdout.readline()
        second = p.stdout.readline()
        assert int(second.split()[1]) == int(first.split()[1]) + 1
    finally:
        p.kill()
        p.communicate()


def test_exec(pods: Any) -> None:
    assert pods.exec("talker", "echo", "hello") == "hello\n"
    assert pods.kubectl("exec", "-i", "talker", "--", "cat", stdin="some text\n") == "some text\n"
    done = subprocess.run([str(Path(os.sys.executable).parent / "kubectl"), "exec", "talker", "--", "sh", "-c", "echo out; echo err >&2; exit 7"],  # type: ignore[attr-defined]
                          env=pods.env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 7 and done.stdout == "out\n" and "err\n" in done.stderr


def test_exec_with_a_terminal(pods: Any) -> None:
    master, slave = pty.openpty()
    p = popen(pods, "exec", "-it", "talker", "--", "sh", stdin=slave)
    os.close(slave)
    os.write(master, b"tty && echo $((6*7))\nexit\n")
    out, _ = p.communicate(timeout=30)
    os.close(master)
    assert b"42" in out and b"/dev/pts" in out, out


def test_copy(pods: Any, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "there").write_bytes(data)
    pods.kubectl("cp", str(tmp_path / "there"), "talker:/tmp/there")
    pods.kubectl("cp", "talker:/tmp/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data


def test_port_forward(pods: Any) -> None:
    p = popen(pods, "port-forward", "pod/server", ":80")
    try:
        assert p.stdout
        assert select.select([p.stdout], [], [], 20)[0]
        line = p.stdout.readline().decode()
        port = line.split("127.0.0.1:")[1].split()[0]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                assert b"nginx" in answer.read()
    finally:
        p.kill()
        p.communicate()


def test_top(pods: Any) -> None:
    nodes = pods.until(lambda: pods.kubectl("top", "nodes", check=False) or None, "top nodes", 60)
    assert "node-0" in nodes and "node-1" in nodes
    text = pods.until(lambda: t if "talker" in (t := pods.kubectl("top", "pods", check=False)) else None, "top pods", 60)
    assert "Mi" in text


def test_explain_and_api_resources(pods: Any) -> None:
    assert "containers" in pods.kubectl("explain", "pod.spec") and "FIELD: replicas" in pods.kubectl("explain", "deployment.spec.replicas")
    resources = pods.kubectl("api-resources")
    for name in ("pods", "deployments", "ingresses", "customresourcedefinitions", "horizontalpodautoscalers"):
        assert name in resources


def test_rollout_scale_wait_events_delete(pods: Any) -> None:
    pods.kubectl("create", "deployment", "rolls", "--image=nginx", "--replicas=2")
    pods.kubectl("rollout", "status", "deployment/rolls", "--timeout=60s", timeout=70)
    pods.kubectl("scale", "deployment/rolls", "--replicas=1")
    pods.kubectl("wait", "deployment/rolls", "--for=jsonpath={.status.replicas}=1", "--timeout=60s", timeout=70)
    pods.kubectl("rollout", "restart", "deployment/rolls")
    pods.kubectl("rollout", "status", "deployment/rolls", "--timeout=60s", timeout=70)
    assert "revision" in pods.kubectl("rollout", "history", "deployment/rolls").lower()
    assert "ScalingReplicaSet" in pods.kubectl("events", "--for", "deployment/rolls")
    pods.kubectl("delete", "deployment", "rolls", "--wait=true")
    pods.until(lambda: not pods.pods("app=rolls"), "its pods gone")


def test_crash_loop_is_told(pods: Any) -> None:
    pods.kubectl("run", "crash", "--image=busybox", "--restart=Always", "--", "sh", "-c", "echo bye; exit 3")
    status = pods.until(lambda: next((s for s in pods.get("pod", "crash")["status"].get("containerStatuses") or []
                                      if s["restartCount"] >= 1 and (s["state"].get("waiting") or {}).get("reason") == "CrashLoopBackOff"), None),
                        "CrashLoopBackOff")
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert "bye" in pods.kubectl("logs", "crash", "--previous")
    pods.kubectl("delete", "pod", "crash", "--now")


def test_missing_image_is_told(pods: Any) -> None:
    pods.kubectl("run", "noimage", "--image=localhost/nosuch/image:1")
    pods.until(lambda: (pods.get("pod", "noimage")["status"].get("containerStatuses") or [{}])[0].get("state", {}).get("waiting", {}).get("reason")
               in ("ErrImagePull", "ImagePullBackOff"), "ErrImagePull")
    assert "Failed to pull image" in pods.kubectl("describe", "pod", "noimage")
    pods.kubectl("delete", "pod", "noimage", "--now")


def test_delete_is_graceful(pods: Any) -> None:
    began = time.monotonic()
    pods.kubectl("delete", "pod", "talker", "server")
    assert time.monotonic() - began < 20
    assert not pods.pods("app in (talker,server)")
