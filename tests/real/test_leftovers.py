"""Everything killed at once: the next start finds what was left and takes it away, and nothing of a cluster outlives its end."""

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

from kubern.kubelet import fabric, node

pytestmark = pytest.mark.real

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
    "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "100000"], "volumeMounts": [
        {"name": "m", "mountPath": "/m"}]}], "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}]}}


def out(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def traces(cluster_id: str, home: Path) -> dict[str, list[str]]:
    """What a cluster has on this machine, by kind."""
    bridge = fabric.bridge_name(cluster_id)
    processes = []
    for p in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = p.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/run/kubern/{cluster_id}/" in argv or str(home) in argv:
            processes.append(argv)
    found = {
        "links": [line.split(":")[1].strip() for line in out("ip", "-o", "link").splitlines() if f" {bridge}" in line],
        "routes": [r for r in (out("ip", "route") + out("ip", "-6", "route")).splitlines() if bridge in r],
        "nft": [t for t in out("nft", "list", "tables").splitlines() if cluster_id in t],
        "mounts": [m for m in Path("/proc/self/mountinfo").read_text().splitlines() if str(home) in m or f"/run/kubern/{cluster_id}" in m],
        "cgroups": [str(p) for p in node.CGROUPS.glob(f"*/kubern/{cluster_id}")], "run": [str(p) for p in [node.RUN / cluster_id] if p.exists()],
        "processes": processes}
    return {k: v for k, v in found.items() if v}


def kill_everything(cluster: Any, cluster_id: str) -> None:
    pids = [int((cluster.home / "kubern.lock").read_text())]
    pids += [pid for pid, _ in node._supervisors(node.RUN / cluster_id)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture(scope="module")
def id_(cluster: Any) -> Iterator[str]:
    yield fabric.cluster_id(cluster.home)


def test_a_start_after_everything_was_killed(cluster: Any, id_: str) -> None:
    cluster.apply(json.dumps(POD))
    cluster.wait("pod/p")
    before = traces(id_, cluster.home)
    assert {"links", "routes", "cgroups", "run", "processes"} <= set(before)
    kill_everything(cluster, id_)
    (cluster.home / "nodes" / "node-1" / "unit.json").unlink()              # a crash between a unit's start and its record
    cluster.up()
    cluster.until(lambda: cluster.get("pod", "p")["status"]["containerStatuses"][0]["restartCount"] >= 1, "the pod runs anew")
    cluster.wait("pod/p")
    after = traces(id_, cluster.home)
    assert len(after["links"]) == len(before["links"]) and len(after["processes"]) <= len(before["processes"]) + 2
    assert sorted(after["routes"]) == sorted(before["routes"])


def test_an_end_after_everything_was_killed(cluster: Any, id_: str) -> None:
    kill_everything(cluster, id_)
    cluster.kubern("down")
    end = time.monotonic() + 10
    while (left := traces(id_, cluster.home)) and time.monotonic() < end:
        time.sleep(0.2)
    assert left == {}
