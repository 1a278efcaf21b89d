"""Streams of clients that are older or others than today's kubectl: 1.28 speaks SPDY where 1.37 speaks WebSockets, Node's client speaks its own v4."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients import tools

pytestmark = pytest.mark.real

POD = """
apiVersion: v1
kind: Pod
metadata: {name: old}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: nginx}
  - {name: echo, image: busybox, stdin: true, command: [sh, -c, 'while read x; do echo "got $x"; done; sleep 3600']}
"""


@pytest.fixture(scope="module")
def old(cluster: Any) -> Callable[..., Any]:
    """Runs or starts kubectl 1.28 against a pod that is ready."""
    program = tools.program("kubectl", "old")
    cluster.apply(POD)
    cluster.wait("pod/old")

    def run(*args: str, start: bool = False, **more: Any) -> Any:
        if start:
            return subprocess.Popen([program, *args], env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        return subprocess.run([program, *args], env=cluster.env, capture_output=True, timeout=60, **more)

    return run


def test_exec(old: Callable[..., Any]) -> None:
    done = old("exec", "-i", "old", "-c", "c", "--", "sh", "-c", "cat; echo err >&2; exit 7", input=b"typed" * 20_000)
    assert (done.returncode, done.stdout) == (7, b"typed" * 20_000) and b"err\n" in done.stderr


def test_exec_with_a_terminal(old: Callable[..., Any]) -> None:
    master, slave = pty.openpty()
    p = old("exec", "-it", "old", "-c", "c", "--", "sh", start=True, stdin=slave)
    os.close(slave)
    os.write(master, b"tty && echo $((6*7))\nexit\n")
    out, _ = p.communicate(timeout=30)
    os.close(master)
    assert b"42" in out and b"/dev/pts" in out, out


def test_copy(old: Callable[..., Any], tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "there").write_bytes(data)
    assert old("cp", str(tmp_path / "there"), "old:/tmp/there", "-c", "c").returncode == 0
    assert old("cp", "old:/tmp/there", str(tmp_path / "back"), "-c", "c").returncode == 0
    assert (tmp_path / "back").read_bytes() == data


def test_attach_and_logs(old: Callable[..., Any]) -> None:
    p = old("attach", "-i", "old", "-c", "echo", start=True, stdin=subprocess.PIPE)
    try:
        p.stdin.write(b"word\n")
        p.stdin.flush()
        assert select.select([p.stdout], [], [], 20)[0] and p.stdout.readline() == b"got word\n"
    finally:
        p.kill()
        p.communicate()
    assert b"got word" in old("logs", "old", "-c", "echo", "--tail=5").stdout


def test_port_forward(old: Callable[..., Any]) -> None:
    p = old("port-forward", "pod/old", ":80", start=True)
    try:
        assert select.select([p.stdout], [], [], 20)[0]
        port = p.stdout.readline().decode().split("127.0.0.1:")[1].split()[0]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                assert b"nginx" in answer.read()
    finally:
        p.kill()
        p.communicate()


def test_node(cluster: Any) -> None:
    """The official client for Node, with exec and logs."""
    home = tools.node_modules()
    shutil.copy(tools.NODE / "client.mjs", home)
    command = [tools.node(), "client.mjs", cluster.env["KUBECONFIG"], "node-real", "containers"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["said"] == "typed|Failure|hello"
