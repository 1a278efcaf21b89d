"""What people do with a pod that misbehaves: debug it and its node, copy, forward a lot, attach, give it input that ends, ask what it used."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]

FORWARD_MB = 100
POD = f"""
apiVersion: v1
kind: Pod
metadata: {{name: s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    stdin: true
    command: [sh, -c, 'echo begun; while read line; do echo "got $line"; done; echo over; sleep 1000']
    resources: {{requests: {{cpu: 10m, memory: 8Mi}}, limits: {{memory: 64Mi}}}}
  - name: server
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'while true; do dd if=/dev/zero bs=1M count={FORWARD_MB} 2>/dev/null | nc -l -p 7000 >/dev/null; done']
"""


@pytest.fixture(scope="module")
def c(cluster: Any) -> Iterator[Any]:
    cluster.until(lambda: cluster.kubectl("get", "serviceaccount", "default", check=False), "no service account")
    cluster.apply(POD)
    cluster.wait("pod/s")
    yield cluster
    cluster.kubectl("delete", "pod", "--all", "--force", "--grace-period=0", check=False)


def popen(c: Any, *args: str, **more: Any) -> subprocess.Popen[bytes]:
    kubectl = str(Path(sys.executable).parent / "kubectl")
    return subprocess.Popen([kubectl, *args], env=c.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_input_that_ends(c: Any) -> None:
    """`exec -i` hands on that its input is over, else the command would wait for ever."""
    data = os.urandom(3 << 20)
    out = subprocess.run([str(Path(sys.executable).parent / "kubectl"), "exec", "-i", "s", "-c", "c", "--", "sha256sum"], env=c.env, input=data,
                         capture_output=True, timeout=60, check=True).stdout
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert c.kubectl("exec", "-i", "s", "-c", "c", "--", "cat", stdin="") == ""


def test_attach_speaks_to_the_main_process(c: Any) -> None:
    out = c.kubectl("attach", "-i", "s", "-c", "c", stdin="one\ntwo\n", timeout=60, check=False)
    assert "got two" in c.until(lambda: (t := c.kubectl("logs", "s", "-c", "c")) and "got two" in t and t, "it did not hear")
    assert "got one" in out or "got one" in c.kubectl("logs", "s", "-c", "c")


def test_copy_there_and_back(c: Any, tmp_path: Path) -> None:
    (tmp_path / "d/deep").mkdir(parents=True)
    data = os.urandom(5 << 20)
    (tmp_path / "d/deep/f").write_bytes(data)
    c.kubectl("cp", str(tmp_path / "d"), "s:/tmp/d", "-c", "c")
    c.kubectl("cp", "s:/tmp/d", str(tmp_path / "back"), "-c", "c")
    assert (tmp_path / "back/deep/f").read_bytes() == data


def test_forwarding_a_hundred_megabytes(c: Any) -> None:
    p = popen(c, "port-forward", "pod/s", ":7000")
    try:
        assert p.stdout and select.select([p.stdout], [], [], 20)[0]
        port = int(p.stdout.readline().decode().split("127.0.0.1:")[1].split()[0])
        got = 0
        with socket.create_connection(("127.0.0.1", port), 10) as s:
            s.settimeout(60)
            while got < FORWARD_MB << 20:
                chunk = s.recv(1 << 20)
                if not chunk:
                    break
                assert not chunk.strip(b"\0")
                got += len(chunk)
        assert got == FORWARD_MB << 20
    finally:
        p.kill()
        p.communicate()


def test_debug_a_pod(c: Any) -> None:
    """An ephemeral container beside the pod's own, in the process namespace of one of them."""
    c.kubectl("debug", "s", "--image=busybox", "--image-pull-policy=IfNotPresent", "--target=c", "--container=look", "--profile=general", "--",
              "sh", "-c", "ps; echo seen; sleep 1")
    text = c.until(lambda: (t := c.kubectl("logs", "s", "-c", "look", check=False)) and "seen" in t and t, "the debugger said nothing", 40)
    assert "while read line" in text or "sleep 1000" in text, text


def test_debug_a_node(c: Any) -> None:
    made = c.kubectl("debug", "node/node-0", "--image=busybox", "--image-pull-policy=IfNotPresent", "--profile=sysadmin", "--", "sh", "-c",
                     "ls /host/var/lib/kubelet; hostname; sleep 1")
    name = made.split("debugging pod ")[1].split()[0]
    text = c.until(lambda: (t := c.kubectl("logs", name, check=False)) and "node-0" in t and t, "the debugger said nothing", 40)
    assert "pods" in text.split() and "device-plugins" in text.split(), text
    c.kubectl("delete", "pod", name, "--force", "--grace-period=0")


def test_top(c: Any) -> None:
    text = c.until(lambda: t if "s " in (t := c.kubectl("top", "pod", "s", "--containers", check=False)) else None, "no figures", 60)
    rows = {line.split()[1]: line.split()[2:] for line in text.splitlines()[1:]}
    assert set(rows) >= {"c", "server"} and rows["c"][1].endswith("Mi")
    assert "node-0" in c.kubectl("top", "node", "node-0")
