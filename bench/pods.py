"""Pods on a real node: from create to Ready, at a rate; then memory of the node's agent and what the node costs while nothing happens.

Runs on the machine itself (root, containerd). A pod is one busybox container with its token, as people make them; Ready is when a
watcher sees the condition. The image is there before the clock starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from kubern.client.client import Client
from kubern.client.kubeconfig import sender_of
from kubern.model.resources import by_kind
from kubern.model.status import StatusError

PODS = by_kind["v1", "Pod"]
PATIENCE_S = 120.0


def pod(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": "bench"}}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                                                            "command": ["sleep", "100000"]}]}}


def ready(p: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in (p.get("status") or {}).get("conditions") or ())


class Watcher:
    """When each pod was first seen Ready, and when it was gone."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ready_s: dict[str, float] = {}
        self.gone_s: dict[str, float] = {}

    async def run(self, revision: str) -> None:
        async for batch in self.client.watch(PODS, "default", revision=revision):
            now = time.perf_counter()
            for kind, p in batch:
                name = p["metadata"].get("name") or ""
                if kind == "DELETED":
                    self.gone_s[name] = now
                elif ready(p):
                    self.ready_s.setdefault(name, now)

    async def until(self, seen: dict[str, float], names: list[str]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while any(n not in seen for n in names):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def starts(kubeconfig: Path, count: int, per_s: float) -> dict[str, Any]:
    """Creates pods at a rate, waits until all are Ready: milliseconds from create to Ready. They stay."""
    sender = sender_of(kubeconfig)
    client = Client(sender.send)
    while True:
        try:
            await client.get(by_kind["v1", "ServiceAccount"], "default", "default")
            break
        except StatusError:
            await asyncio.sleep(0.1)
    _, revision = await client.list(PODS, "default")
    watcher = Watcher(client)
    watching = asyncio.create_task(watcher.run(revision))
    await client.create(pod("warm"))
    await watcher.until(watcher.ready_s, ["warm"])
    began: dict[str, float] = {}
    start = time.perf_counter()
    for i in range(count):
        await asyncio.sleep(max(0.0, start + i / per_s - time.perf_counter()))
        began[f"p-{i:03d}"] = time.perf_counter()
        await client.create(pod(f"p-{i:03d}"))
    await watcher.until(watcher.ready_s, list(began))
    took = [(watcher.ready_s[n] - t) * 1000 for n, t in began.items()]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await sender.close()
    return {"pods": count, "p50_ms": round(percentile(took, 0.5)), "p99_ms": round(percentile(took, 0.99)), "max_ms": round(max(took))}


# --- the node's processes, seen from the machine ---

def below(pid: int) -> list[int]:
    """This process and all its descendants."""
    out = [pid]
    for p in out:
        try:
            out += [int(c) for t in os.listdir(f"/proc/{p}/task") for c in Path(f"/proc/{p}/task/{t}/children").read_text().split()]
        except OSError:
            continue
    return out


def cpu_s(pids: list[int]) -> float:
    total = 0
    for p in pids:
        try:
            f = Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(f[11]) + int(f[12])
    return total / os.sysconf("SC_CLK_TCK")


def node_processes(home: Path, name: str) -> tuple[list[int], int]:
    """(every process of a node unit but its pods', its agent)."""
    every = below(json.loads((home / "nodes" / name / "unit.json").read_text())["pid"])
    ours, agent = [], 0
    for p in every:
        try:
            argv = Path(f"/proc/{p}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"kubern.agent" in argv and argv[0] != b"unshare":
            agent = p
        if agent == p or any(x in argv[0] for x in (b"python", b"unshare", b"containerd")):
            ours.append(p)
    return ours, agent


def memory_mb(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def idle_percent(pids: list[int], seconds: float) -> float:
    before = cpu_s(pids)
    time.sleep(seconds)
    return round((cpu_s(pids) - before) / seconds * 100, 2)
