"""Figures of the node, its pods and containers: /stats/summary, /metrics/resource, /metrics/cadvisor, /metrics/probes, /metrics.

`Sampler` asks the runtime and the cgroups, at most once in MIN_INTERVAL_S, and works out cpu rates from two samples; the rest turns a
Sample into documents. Upstream: kubelet stats v1alpha1 Summary, pkg/kubelet/metrics/collectors/resource_metrics.go, cAdvisor's names.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kubern.kubelet import container as config
from kubern.kubelet.cgroups import Cgroups, node_memory
from kubern.kubelet.runtime import RUNNING, RuntimeFailure
from kubern.kubelet.status import stamp

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

MIN_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Figures:
    """cpu_ns is a counter, cpu_rate nanocores."""

    cpu_ns: int = 0
    cpu_rate: int = 0
    working_set: int = 0
    usage: int = 0
    rss: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    fs_used: int = 0
    fs_inodes: int = 0
    started_s: float = 0.0
    image: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class PodFigures:
    namespace: str
    name: str
    uid: str
    started: str
    whole: Figures
    containers: dict[str, Figures]
    network: dict[str, int]
    volumes: dict[str, tuple[int, int, int]] = field(default_factory=dict)      # name -> (used, capacity, available)


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    node: Figures
    pods: list[PodFigures]
    network: dict[str, int]
    fs: tuple[int, int, int]                       # capacity, available, used
    image_fs_used: int
    memory_available: int


class Sampler:
    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self._last: Sample | None = None
        # id -> (time, counter, last rate); the machine's counter began long before us
        self._cpu: dict[str, tuple[float, int, int]] = {"/": (kubelet.clock(), _machine()[0], 0)}
        self._lock = asyncio.Lock()

    async def sample(self) -> Sample:
        async with self._lock:
            now = self.kubelet.clock()
            if self._last is None or now - self._last.at_s >= MIN_INTERVAL_S:
                self._last = await self._take(now)
            return self._last

    def _rate(self, id_: str, now: float, counter: int, began: float = 0.0) -> int:
        """Nanocores since the last sample, or since the beginning at the first."""
        before = self._cpu.get(id_)
        if before is not None and now - before[0] < 0.5:
            return before[2]
        since, base = (before[0], before[1]) if before else (began, 0)
        rate = max(0, int((counter - base) / (now - since))) if since and now > since else 0
        self._cpu[id_] = (now, counter, rate)
        return rate

    async def _take(self, now: float) -> Sample:
        k = self.kubelet
        try:
            usage = {u.id: u for u in await k.runtime.usage()}
            _, image_used, _ = await k.runtime.image_fs()
        except RuntimeFailure:
            usage, image_used = {}, 0
        pods_: list[PodFigures] = []
        alive: set[str] = {"/"}
        for w in list(k.workers.values()):
            seen = k.observer.seen(w.uid)
            containers: dict[str, Figures] = {}
            for c in seen.containers:
                u = usage.get(c.id)
                if c.state != RUNNING or u is None or c.name in containers:
                    continue
                alive.add(c.id)
                containers[c.name] = Figures(u.cpu_ns, self._rate(c.id, now, u.cpu_ns, c.started_ns / 1e9), u.working_set, u.usage or u.working_set, u.rss,
                                             u.page_faults, u.major_page_faults, u.fs_used, u.fs_inodes, c.started_ns / 1e9, c.image, c.id)
            if not containers:
                continue
            alive.add(w.uid)
            whole = self._pod(w.uid, config.cgroup_parent(k.actor.node, w.pod), containers, now)
            m = w.pod["metadata"]
            pids = await asyncio.to_thread(_first_process, k.cgroups, config.cgroup_parent(k.actor.node, w.pod)) if k.cgroups else 0
            network = {} if w.pod["spec"].get("hostNetwork") else await asyncio.to_thread(network_counters, pids)
            pods_.append(PodFigures(m.get("namespace") or "", m["name"], w.uid, w.status.get("startTime") or "", whole, containers, network))
        for id_ in self._cpu.keys() - alive:
            del self._cpu[id_]
        memory = node_memory()
        machine = _machine()
        node = Figures(machine[0], self._rate("/", now, machine[0]), machine[1], memory["total"] - memory["available"], machine[2], started_s=k.began_s)
        st = os.statvfs(k.settings.root if await asyncio.to_thread(os.path.isdir, k.settings.root) else "/")
        fs = (st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize, (st.f_blocks - st.f_bfree) * st.f_frsize)
        return Sample(now, node, pods_, await asyncio.to_thread(network_counters, 0), fs, image_used, memory["available"])

    def _pod(self, uid: str, path: str, containers: dict[str, Figures], now: float) -> Figures:
        if self.kubelet.cgroups is not None:
            u = self.kubelet.cgroups.usage(path)
            if u["memory"] or u["cpu_ns"]:
                return Figures(u["cpu_ns"], self._rate(uid, now, u["cpu_ns"]), u["working_set"], u["memory"], u["rss"], u["page_faults"],
                               u["major_page_faults"])
        every = containers.values()
        return Figures(sum(f.cpu_ns for f in every), sum(f.cpu_rate for f in every), sum(f.working_set for f in every),
                       sum(f.usage for f in every), sum(f.rss for f in every))


def _machine() -> tuple[int, int, int]:
    """(cpu nanoseconds, working set, rss) of the whole machine."""
    with open("/proc/stat") as f:
        ticks = [int(x) for x in f.readline().split()[1:9]]
    hz = os.sysconf("SC_CLK_TCK")
    cpu = (sum(ticks) - ticks[3] - ticks[4]) * 1_000_000_000 // hz
    memory = node_memory()
    used = memory["total"] - memory["available"]
    return cpu, used, used


def _first_process(cgroups: Cgroups, path: str) -> int:
    """Any process of a pod: its network namespace is the pod's."""
    for top in cgroups.h.all():
        for d, _, files in os.walk(f"{top}{path}"):
            if "cgroup.procs" in files:
                try:
                    with open(f"{d}/cgroup.procs") as f:
                        line = f.readline().strip()
                except OSError:
                    continue
                if line and line != "0":
                    return int(line)
    return 0


def network_counters(pid: int) -> dict[str, int]:
    """rx_bytes, rx_errors, tx_bytes, tx_errors of eth0 in the namespace of a process (0: ours)."""
    try:
        with open(f"/proc/{pid or 'self'}/net/dev") as f:
            for line in f:
                name, _, rest = line.partition(":")
                if name.strip() == "eth0":
                    n = [int(x) for x in rest.split()]
                    return {"rx_bytes": n[0], "rx_errors": n[2], "tx_bytes": n[8], "tx_errors": n[10]}
    except (OSError, ValueError, IndexError):
        pass
    return {}


# --- documents ---

def _cpu(f: Figures, t: str) -> dict[str, Any]:
    return {"time": t, "usageNanoCores": f.cpu_rate, "usageCoreNanoSeconds": f.cpu_ns}


def _memory(f: Figures, t: str, available: int | None = None) -> dict[str, Any]:
    out = {"time": t, "usageBytes": f.usage, "workingSetBytes": f.working_set, "rssBytes": f.rss, "pageFaults": f.page_faults,
           "majorPageFaults": f.major_page_faults}
    return {**out, "availableBytes": available} if available is not None else out


def _network(n: dict[str, int], t: str) -> dict[str, Any]:
    one = {"name": "eth0", "rxBytes": n.get("rx_bytes", 0), "rxErrors": n.get("rx_errors", 0), "txBytes": n.get("tx_bytes", 0),
           "txErrors": n.get("tx_errors", 0)}
    return {"time": t, **one, "interfaces": [one]}


def _fs(s: Sample, t: str, used: int) -> dict[str, Any]:
    return {"time": t, "availableBytes": s.fs[1], "capacityBytes": s.fs[0], "usedBytes": used}


def summary(s: Sample, node: str, only_cpu_and_memory: bool = False) -> dict[str, Any]:
    """The Summary document."""
    t = stamp(s.at_s)
    doc: dict[str, Any] = {"nodeName": node, "startTime": stamp(s.node.started_s), "cpu": _cpu(s.node, t),
                           "memory": _memory(s.node, t, s.memory_available)}
    if not only_cpu_and_memory:
        doc |= {"network": _network(s.network, t), "fs": _fs(s, t, s.fs[2]), "runtime": {"imageFs": _fs(s, t, s.image_fs_used),
                                                                                       "containerFs": _fs(s, t, s.image_fs_used)}}
    out = []
    for p in s.pods:
        containers = []
        for name, f in p.containers.items():
            c: dict[str, Any] = {"name": name, "startTime": stamp(f.started_s), "cpu": _cpu(f, t), "memory": _memory(f, t)}
            if not only_cpu_and_memory:
                c |= {"rootfs": {**_fs(s, t, f.fs_used), "inodesUsed": f.fs_inodes}, "logs": _fs(s, t, 0)}
            containers.append(c)
        one: dict[str, Any] = {"podRef": {"name": p.name, "namespace": p.namespace, "uid": p.uid}, "startTime": p.started, "containers": containers,
                               "cpu": _cpu(p.whole, t), "memory": _memory(p.whole, t)}
        if not only_cpu_and_memory:
            if p.network:
                one["network"] = _network(p.network, t)
            one["ephemeral-storage"] = _fs(s, t, sum(f.fs_used for f in p.containers.values()))
            one["process_stats"] = {}
        out.append(one)
    return {"node": doc, "pods": out}


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def family(name: str, kind: str, help_: str, rows: Iterable[tuple[dict[str, str], float | int, str]]) -> str:
    """One metric in the text format; rows of (labels, value, timestamp or "")."""
    lines = [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
    for labels, value, t in rows:
        tags = ",".join(f'{k}="{escape(v)}"' for k, v in labels.items())
        lines.append(f"{name}{{{tags}}} {value:.17g}{' ' + t if t else ''}" if tags else f"{name} {value:.17g}{' ' + t if t else ''}")
    return "\n".join(lines) + "\n"


def resource_metrics(s: Sample) -> str:
    t = str(int(s.at_s * 1000))
    each = [({"container": n, "namespace": p.namespace, "pod": p.name}, f) for p in s.pods for n, f in p.containers.items()]
    whole = [({"namespace": p.namespace, "pod": p.name}, p.whole) for p in s.pods]
    return "".join((
        family("container_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
               ((tags, f.cpu_ns / 1e9, t) for tags, f in each)),
        family("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes",
               ((tags, f.working_set, t) for tags, f in each)),
        family("container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds",
               ((tags, f.started_s, "") for tags, f in each)),
        family("node_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
               [({}, s.node.cpu_ns / 1e9, t)]),
        family("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes", [({}, s.node.working_set, t)]),
        family("pod_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
               ((tags, f.cpu_ns / 1e9, t) for tags, f in whole)),
        family("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes",
               ((tags, f.working_set, t) for tags, f in whole)),
        family("resource_scrape_error", "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise", [({}, 0, "")]),
    ))


def cadvisor_metrics(s: Sample, root: str) -> str:
    t = str(int(s.at_s * 1000))
    each = []
    for p in s.pods:
        base = {"namespace": p.namespace, "pod": p.name}
        each.append(({"container": "", "id": f"{root}/kubepods/pod{p.uid}", "image": "", "name": "", **base}, p.whole))
        each += [({"container": n, "id": f"{root}/kubepods/pod{p.uid}/{f.id}", "image": f.image, "name": f.id, **base}, f)
                 for n, f in p.containers.items()]
    net = [({"container": "POD", "id": f"{root}/kubepods/pod{p.uid}", "image": "", "interface": "eth0", "name": "", "namespace": p.namespace,
             "pod": p.name}, p.network) for p in s.pods if p.network]
    rows = (("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", lambda f: f.cpu_ns / 1e9),
            ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", lambda f: f.working_set),
            ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed",
             lambda f: f.usage),
            ("container_memory_rss", "gauge", "Size of RSS in bytes.", lambda f: f.rss),
            ("container_fs_usage_bytes", "gauge", "Number of bytes that are consumed by the container on this filesystem.", lambda f: f.fs_used),
            ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.", lambda f: f.started_s))
    out = [family(name, kind, text, [(tags, value(f), t) for tags, f in each]) for name, kind, text, value in rows]
    for name, key in (("container_network_receive_bytes_total", "rx_bytes"), ("container_network_transmit_bytes_total", "tx_bytes"),
                      ("container_network_receive_errors_total", "rx_errors"), ("container_network_transmit_errors_total", "tx_errors")):
        out.append(family(name, "counter", "Cumulative count.", [(tags, n[key], t) for tags, n in net]))
    return "".join(out)


def probe_metrics(k: Kubelet) -> str:
    return family("prober_probe_total", "counter",
                  "[ALPHA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
                  (({"container": c, "namespace": ns, "pod": pod, "probe_type": kind, "result": result}, n, "")
                   for (kind, result, ns, pod, c), n in sorted(k.prober.attempts.items())))


def kubelet_metrics(k: Kubelet) -> str:
    running = sum(1 for u in k.observer.pods() if any(c.state == RUNNING for c in k.observer.seen(u).containers))
    states: dict[str, int] = {}
    for u in k.observer.pods():
        for c in k.observer.seen(u).containers:
            states[c.state] = states.get(c.state, 0) + 1
    return "".join((
        family("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.", [({"node": k.settings.name}, 1, "")]),
        family("kubelet_running_pods", "gauge", "[BETA] Number of pods that have a running pod sandbox", [({}, running, "")]),
        family("kubelet_running_containers", "gauge", "[BETA] Number of containers currently running",
               [({"container_state": s}, n, "") for s, n in sorted(states.items())]),
        family("kubelet_started_pods_total", "counter", "[ALPHA] Cumulative number of pods started", [({}, k.started_pods, "")]),
        k.measures.text(),
    ))
