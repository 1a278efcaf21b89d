"""Figures of the node, its pods and containers, and the document /stats/summary.

`Sampler` asks the runtime and the cgroups, at most once in MIN_INTERVAL_S, and works out cpu rates from two samples; the rest turns a
Sample into the Summary. The same figures for scrapers: scrape.py. Upstream: kubelet stats v1alpha1 Summary.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kubern.kubelet import container as config
from kubern.kubelet.cgroups import Cgroups, node_memory
from kubern.kubelet.runtime import RUNNING, RuntimeFailure
from kubern.kubelet.status import stamp

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet
    from kubern.kubelet.worker import Worker

MIN_INTERVAL_S, VOLUMES_EVERY_S = 5.0, 60.0


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
    pressure: Mapping[str, Any] = field(default_factory=dict)                   # cpu, memory, io -> some, full


@dataclass(frozen=True, slots=True)
class Volume:
    """Room of a file system, or what lies in a directory of it. `claim` names the PersistentVolumeClaim behind it."""

    used: int
    capacity: int
    available: int
    inodes: int = 0
    inodes_free: int = 0
    inodes_used: int = 0
    claim: str = ""


@dataclass(frozen=True, slots=True)
class PodFigures:
    namespace: str
    name: str
    uid: str
    started: str
    whole: Figures
    containers: dict[str, Figures]
    network: dict[str, int]
    path: str = ""                                 # its cgroup
    volumes: dict[str, Volume] = field(default_factory=dict)
    logs: dict[str, int] = field(default_factory=dict)                          # container -> bytes


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    node: Figures
    pods: list[PodFigures]
    network: dict[str, int]
    fs: Volume
    image_fs_used: int
    memory_available: int
    all_pods: Figures = Figures()


class Sampler:
    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self._last: Sample | None = None
        # id -> (time, counter, last rate); the machine's counter began long before us
        self._cpu: dict[str, tuple[float, int, int]] = {"/": (kubelet.clock(), _machine()[0], 0)}
        self._lock = asyncio.Lock()
        self._disk: dict[str, tuple[float, dict[str, Volume], dict[str, int]]] = {}        # pod -> (when, volumes, logs)

    async def sample(self) -> Sample:
        async with self._lock:
            now = self.kubelet.clock()
            if self._last is None or abs(now - self._last.at_s) >= MIN_INTERVAL_S:
                self._last = await self._take(now)
            return self._last

    def _rate(self, id_: str, now: float, counter: int, began: float = 0.0) -> int:
        """Nanocores since the last sample, or since the beginning at the first."""
        before = self._cpu.get(id_)
        if before is not None and 0 <= now - before[0] < 0.5:
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
        alive: set[str] = {"/", "pods"}
        for w in list(k.workers.values()):
            seen = k.observer.seen(w.uid)
            containers: dict[str, Figures] = {}
            for c in seen.containers:
                u = usage.get(c.id)
                if c.state != RUNNING or u is None or c.name in containers:
                    continue
                alive.add(c.id)
                containers[c.name] = Figures(u.cpu_ns, self._rate(c.id, now, u.cpu_ns, c.started_ns / 1e9), u.working_set, u.usage or u.working_set, u.rss,
                                             u.page_faults, u.major_page_faults, u.fs_used, u.fs_inodes, c.started_ns / 1e9, c.image, c.id,
                                             k.cgroups.pressure(f"{config.cgroup_parent(k.actor.node, w.pod)}/{c.id}") if k.cgroups else {})
            if not containers:
                continue
            alive.add(w.uid)
            whole = self._pod(w.uid, config.cgroup_parent(k.actor.node, w.pod), containers, now)
            m = w.pod["metadata"]
            pids = await asyncio.to_thread(_first_process, k.cgroups, config.cgroup_parent(k.actor.node, w.pod)) if k.cgroups else 0
            network = {} if w.pod["spec"].get("hostNetwork") else await asyncio.to_thread(network_counters, pids)
            volumes, logs = await self._on_disk(w, now)
            pods_.append(PodFigures(m.get("namespace") or "", m["name"], w.uid, w.status.get("startTime") or "", whole, containers, network,
                                    config.cgroup_parent(k.actor.node, w.pod), volumes, logs))
        for uid in self._disk.keys() - alive:
            del self._disk[uid]
        for id_ in self._cpu.keys() - alive:
            del self._cpu[id_]
        memory = node_memory()
        machine = _machine()
        node = Figures(machine[0], self._rate("/", now, machine[0]), machine[1], memory["total"] - memory["available"], machine[2], started_s=k.began_s,
                       pressure=k.cgroups.pressure("/") if k.cgroups is not None else {})
        fs = await asyncio.to_thread(file_system, k.settings.root if await asyncio.to_thread(os.path.isdir, k.settings.root) else "/")
        together = self._pod("pods", f"{k.settings.cgroup_root}/kubepods", {}, now) if k.cgroups is not None else Figures()
        return Sample(now, node, pods_, await asyncio.to_thread(network_counters, 0), fs, image_used, memory["available"], together)

    async def _on_disk(self, w: Worker, now: float) -> tuple[dict[str, Volume], dict[str, int]]:
        """Volumes and logs of a pod, measured anew every minute."""
        known = self._disk.get(w.uid)
        if known is not None and abs(now - known[0]) < VOLUMES_EVERY_S:
            return known[1], known[2]
        k = self.kubelet
        claims = {v["name"]: (v.get("persistentVolumeClaim") or {}).get("claimName") or (f"{w.pod['metadata']['name']}-{v['name']}" if "ephemeral" in v else "")
                  for v in w.pod["spec"].get("volumes") or ()}
        ready = [(v.name, v.path, claims.get(v.name, "")) for v in k.volumes.ready.get(w.uid, {}).values()]
        folder = config.log_directory(k.actor.node, w.pod)
        told = {name: u for name, path, _ in ready if (u := await k.csi.usage(path)) is not None}

        def measure() -> tuple[dict[str, Volume], dict[str, int]]:
            volumes = {}
            for name, path, claim in ready:
                if name in told:
                    room, inodes = told[name]
                    volumes[name] = Volume(room.used, room.total, room.available, inodes.total, inodes.available, inodes.used, claim)
                    continue
                if k.csi.owns(path):
                    continue                               # a driver that tells nothing: neither does upstream
                try:
                    volumes[name] = replace(file_system(path) if os.path.ismount(path) else directory(path), claim=claim)
                except OSError:
                    continue
            names = os.listdir(folder) if os.path.isdir(folder) else ()
            return volumes, {n: directory(f"{folder}/{n}").used for n in names}
        volumes, logs = await asyncio.to_thread(measure)
        self._disk[w.uid] = (now, volumes, logs)
        return volumes, logs

    def _pod(self, uid: str, path: str, containers: dict[str, Figures], now: float) -> Figures:
        if self.kubelet.cgroups is not None:
            u = self.kubelet.cgroups.usage(path)
            if u["memory"] or u["cpu_ns"]:
                return Figures(u["cpu_ns"], self._rate(uid, now, u["cpu_ns"]), u["working_set"], u["memory"], u["rss"], u["page_faults"],
                               u["major_page_faults"], pressure=self.kubelet.cgroups.pressure(path))
        every = containers.values()
        return Figures(sum(f.cpu_ns for f in every), sum(f.cpu_rate for f in every), sum(f.working_set for f in every),
                       sum(f.usage for f in every), sum(f.rss for f in every))


def file_system(path: str) -> Volume:
    """The whole file system a path is on."""
    st = os.statvfs(path)
    return Volume((st.f_blocks - st.f_bfree) * st.f_frsize, st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize, st.f_files, st.f_ffree,
                  st.f_files - st.f_ffree)


def directory(path: str) -> Volume:
    """What lies below a path; the room is its file system's."""
    used = count = 0
    for d, _, files in os.walk(path):
        for name in (".", *files):
            try:
                used += os.lstat(os.path.join(d, name)).st_blocks * 512
                count += 1
            except OSError:
                continue
    return replace(file_system(path), used=used, inodes_used=count)


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
    """Bytes, packets, errors and drops of eth0 in the namespace of a process (0: ours)."""
    try:
        with open(f"/proc/{pid or 'self'}/net/dev") as f:
            for line in f:
                name, _, rest = line.partition(":")
                if name.strip() == "eth0":
                    n = [int(x) for x in rest.split()]
                    return {"rx_bytes": n[0], "rx_packets": n[1], "rx_errors": n[2], "rx_drops": n[3], "tx_bytes": n[8], "tx_packets": n[9],
                            "tx_errors": n[10], "tx_drops": n[11]}
    except (OSError, ValueError, IndexError):
        pass
    return {}


# --- documents ---

def _cpu(f: Figures, t: str) -> dict[str, Any]:
    return {"time": t, "usageNanoCores": f.cpu_rate, "usageCoreNanoSeconds": f.cpu_ns, **_pressure(f, "cpu")}


def _pressure(f: Figures, of: str) -> dict[str, Any]:
    return {"psi": f.pressure[of]} if of in f.pressure else {}


def _io(f: Figures, t: str) -> dict[str, Any]:
    """KEP-4205; nothing where the kernel tells no pressure."""
    return {"io": {"time": t, **_pressure(f, "io")}} if "io" in f.pressure else {}


def _memory(f: Figures, t: str, available: int | None = None) -> dict[str, Any]:
    out = {"time": t, "usageBytes": f.usage, "workingSetBytes": f.working_set, "rssBytes": f.rss, "pageFaults": f.page_faults,
           "majorPageFaults": f.major_page_faults, **_pressure(f, "memory")}
    return {**out, "availableBytes": available} if available is not None else out


def _network(n: dict[str, int], t: str) -> dict[str, Any]:
    one = {"name": "eth0", "rxBytes": n.get("rx_bytes", 0), "rxErrors": n.get("rx_errors", 0), "txBytes": n.get("tx_bytes", 0),
           "txErrors": n.get("tx_errors", 0)}
    return {"time": t, **one, "interfaces": [one]}


def _fs(s: Sample, t: str, used: int, inodes: int | None = None) -> dict[str, Any]:
    out = {"time": t, "availableBytes": s.fs.available, "capacityBytes": s.fs.capacity, "usedBytes": used, "inodes": s.fs.inodes,
           "inodesFree": s.fs.inodes_free}
    return out if inodes is None else {**out, "inodesUsed": inodes}


def _swap(t: str) -> dict[str, Any]:
    """Pods have none (NoSwap)."""
    return {"time": t, "swapUsageBytes": 0}


def _volumes(p: PodFigures, t: str) -> list[dict[str, Any]]:
    out = []
    for name, v in p.volumes.items():
        one: dict[str, Any] = {"time": t, "name": name, "usedBytes": v.used, "capacityBytes": v.capacity, "availableBytes": v.available,
                               "inodes": v.inodes, "inodesFree": v.inodes_free, "inodesUsed": v.inodes_used}
        out.append({**one, "pvcRef": {"name": v.claim, "namespace": p.namespace}} if v.claim else one)
    return out


def summary(s: Sample, node: str, only_cpu_and_memory: bool = False) -> dict[str, Any]:
    """The Summary document."""
    t = stamp(s.at_s)
    doc: dict[str, Any] = {"nodeName": node, "startTime": stamp(s.node.started_s), "cpu": _cpu(s.node, t),
                           "memory": _memory(s.node, t, s.memory_available), **_io(s.node, t)}
    if not only_cpu_and_memory:
        doc |= {"network": _network(s.network, t), "fs": _fs(s, t, s.fs.used, s.fs.inodes_used), "swap": _swap(t) | {"swapAvailableBytes": 0},
                "runtime": {"imageFs": _fs(s, t, s.image_fs_used, s.fs.inodes_used), "containerFs": _fs(s, t, s.image_fs_used, s.fs.inodes_used)},
                "rlimit": _processes(t), "systemContainers": [{"name": "pods", "startTime": stamp(s.node.started_s),
                                                               "cpu": _cpu(s.all_pods, t), "memory": _memory(s.all_pods, t, s.memory_available)}]}
    out = []
    for p in s.pods:
        containers = []
        for name, f in p.containers.items():
            c: dict[str, Any] = {"name": name, "startTime": stamp(f.started_s), "cpu": _cpu(f, t), "memory": _memory(f, t), **_io(f, t)}
            if not only_cpu_and_memory:
                c |= {"rootfs": _fs(s, t, f.fs_used, f.fs_inodes), "logs": _fs(s, t, p.logs.get(name, 0), 1), "swap": _swap(t)}
            containers.append(c)
        one: dict[str, Any] = {"podRef": {"name": p.name, "namespace": p.namespace, "uid": p.uid}, "startTime": p.started, "containers": containers,
                               "cpu": _cpu(p.whole, t), "memory": _memory(p.whole, t), **_io(p.whole, t)}
        if not only_cpu_and_memory:
            if p.network:
                one["network"] = _network(p.network, t)
            local = sum(v.used for v in p.volumes.values() if not v.claim)
            one["ephemeral-storage"] = _fs(s, t, sum(f.fs_used for f in p.containers.values()) + sum(p.logs.values()) + local,
                                           sum(f.fs_inodes for f in p.containers.values()) + sum(v.inodes_used for v in p.volumes.values() if not v.claim))
            one["volume"] = _volumes(p, t)
            one["swap"] = _swap(t)
        out.append(one)
    return {"node": doc, "pods": out}


def _processes(t: str) -> dict[str, Any]:
    with open("/proc/sys/kernel/pid_max") as f, open("/proc/loadavg") as g:
        return {"time": t, "maxpid": int(f.read()), "curproc": int(g.read().split()[3].partition("/")[2])}
