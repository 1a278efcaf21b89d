"""cluster: what is measured: a kubern of our own, or any server whose address and processes are told; and the objects that are put there.

Every result is a row, printed as a line of JSON the moment it is known and kept in RESULTS. Not the work (load, parts, run).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import orjson
from load import Load, Target, connect

RESULTS: list[dict[str, Any]] = []
PODS, MAPS = "/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/configmaps"


def emit(what: str, **result: Any) -> dict[str, Any]:
    row = {"what": what, "load": round(os.getloadavg()[0], 2), **result}
    RESULTS.append(row)
    print(json.dumps(row), flush=True)
    return row


class Server:
    """A server under measurement: where it answers, and the processes that are it (none known: no memory, no CPU)."""

    def __init__(self, target: Target, pids: tuple[int, ...] = ()) -> None:
        self.target, self.pids = target, pids

    def memory_mb(self) -> int:
        return sum(int(line.split()[1]) for p in self.pids for line in Path(f"/proc/{p}/status").read_text().splitlines()
                   if line.startswith("VmRSS")) // 1024

    def cpu_s(self) -> float:
        total = 0
        for p in self.pids:
            fields = Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def settle(self, timeout_s: float = 60.0) -> None:
        """Waits until it has finished what it was doing."""
        end = time.perf_counter() + timeout_s
        while time.perf_counter() < end:
            before = self.cpu_s()
            time.sleep(1)
            if self.cpu_s() - before < 0.05:
                return


class Cluster(Server):
    """`kubern up` in a directory of its own."""

    def __init__(self, port: int, *options: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="kubern-bench-"))
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kubern", "up", "--data-dir", str(self.home / "d"), "--port", str(port), "--bind", "127.0.0.1",
             "--node-grace", "1000000", "--log-level", "error", *(options or ("--runtime", "none"))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output = []
        for line in self.process.stdout or ():
            output.append(line)
            if line.strip() == "ready":
                break
        else:
            raise SystemExit("the cluster did not start:\n" + "".join(output))
        self.ready_s = time.perf_counter() - started
        threading.Thread(target=lambda: [None for _ in self.process.stdout or ()], daemon=True).start()
        import yaml

        user = yaml.safe_load((self.home / "d" / "admin.kubeconfig").read_text())["users"][0]["user"]
        for name, field in (("cert", "client-certificate-data"), ("key", "client-key-data")):
            (self.home / name).write_bytes(base64.b64decode(user[field]))
        super().__init__(Target("127.0.0.1", port, str(self.home / "cert"), str(self.home / "key")), (self.process.pid,))

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        shutil.rmtree(self.home, ignore_errors=True)


class Probe:
    """Asks for one thing every few milliseconds meanwhile: for /readyz, the longest answer is the longest pause."""

    def __init__(self, target: Target, request: bytes = b"") -> None:
        self.target, self.request, self.stop = target, request or target.request("GET", "/readyz"), False
        self.waits, self.refused = list[float](), 0
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.thread.start()

    async def _run(self) -> None:
        if os.geteuid() == 0:            # its own waiting for a core is not the server's pause
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        connection = await connect(self.target)
        while not self.stop:
            at = time.perf_counter()
            status, _ = await connection.ask(self.request)
            self.waits.append((time.perf_counter() - at) * 1000)
            self.refused += status >= 400
            await asyncio.sleep(0.005)

    def end(self) -> dict[str, float]:
        self.stop = True
        self.thread.join(5)
        waits = sorted(self.waits) or [0.0]
        return {"n": len(waits), "p50_ms": round(waits[len(waits) // 2], 2), "p99_ms": round(waits[int(len(waits) * 0.99)], 2),
                "max_ms": round(waits[-1], 2), "refused": self.refused}


# --- objects ---

def config_map(name: str) -> bytes:
    return orjson.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": "bench"}}, "data": {"k": "x" * 256}})


def pod(name: str, labels: dict[str, str] | None = None, cpu: str = "100m", memory: str = "500Mi", **spec: Any) -> bytes:
    return orjson.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {"app": "bench"}}, "spec": {
        "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0, **spec,
        "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10", "ports": [{"containerPort": 80}],
                        "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})


def node(i: int, zones: int) -> bytes:
    room, name = {"cpu": "4", "memory": "32Gi", "pods": "110"}, f"node-{i:05d}"
    return orjson.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
        "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": f"zone{i % zones + 1}"}}, "spec": {}, "status": {
            "capacity": room, "allocatable": room, "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2030-01-01T00:00:00Z",
                "lastTransitionTime": "2030-01-01T00:00:00Z"}]}})


def add_nodes(load: Load, n: int, zones: int = 10) -> dict[str, Any]:
    """Nodes without kubelets, with the taint admission gives them taken off."""
    t = load.target
    made = load.run(lambda i: t.request("POST", "/api/v1/nodes", node(i, zones)), n, 16)
    load.run(lambda i: t.request("PATCH", f"/api/v1/nodes/node-{i:05d}", b'{"spec":{"taints":null}}', "application/merge-patch+json"), n, 16)
    return made
