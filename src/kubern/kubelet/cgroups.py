"""Cgroups of QoS classes and pods, on v1 (hybrid too) and v2, driver cgroupfs.

In: a root below which everything lies (/kubern/CLUSTER/NODE), pods. Effects: directories in every hierarchy, limits of pods whose
containers all have limits; the runtime makes the containers' cgroups inside. Nothing removes a pod's directories but `remove`.
Upstream: pkg/kubelet/cm (qos_container_manager, pod_container_manager, helpers_linux.go ResourceConfigForPod).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubern.kubelet import pods
from kubern.kubelet.container import PERIOD_US, quota, shares
from kubern.model import quantity
from kubern.model.object import Object

MOUNT = Path("/sys/fs/cgroup")
NO_LIMITS: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """The cgroup file systems of this machine: v2 (one), or v1 by controller (hybrid: "unified" is one more without limits)."""

    v2: Path | None
    v1: Mapping[str, Path]

    def all(self) -> list[Path]:
        return [self.v2] if self.v2 else sorted(set(self.v1.values()))


def discover(mount: Path = MOUNT) -> Hierarchies:
    if (mount / "cgroup.controllers").exists():
        return Hierarchies(mount, {})
    found: dict[str, Path] = {}
    for entry in sorted(mount.iterdir()) if mount.exists() else ():
        if not entry.is_dir():
            continue
        real = entry.resolve()
        for controller in entry.name.split(","):
            found[controller] = real
    return Hierarchies(None, found)


def pod_limits(pod: Object) -> dict[str, int]:
    """cpu_shares, cpu_quota, memory, of the pod as a whole; a limit only where all containers have one (or the pod level has)."""
    spec = pod["spec"]
    asked = pods.resources(spec, "requests")
    capped = pods.resources(spec, "limits")
    whole = (spec.get("resources") or {}).get("limits") or {}
    every = [c for kind, c in pods.every_container(spec) if kind != "ephemeral"]

    def all_have(resource: str) -> bool:
        return resource in whole or all(resource in ((c.get("resources") or {}).get("limits") or {}) for c in every)

    out: dict[str, int] = {}
    cpu = quantity.milli(asked["cpu"]) if "cpu" in asked else quantity.milli(capped["cpu"]) if all_have("cpu") and "cpu" in capped else 0
    out["cpu_shares"] = shares(cpu)
    if "cpu" in capped and all_have("cpu"):
        out["cpu_quota"] = quota(quantity.milli(capped["cpu"]))
    if "memory" in capped and all_have("memory"):
        out["memory"] = quantity.value(capped["memory"])
    return out


class Cgroups:
    def __init__(self, root: str, hierarchies: Hierarchies | None = None) -> None:
        self.root, self.h = root, hierarchies or discover()

    def ensure(self, path: str) -> None:
        """The directory in every hierarchy, cpuset inherited (v1) or controllers enabled (v2)."""
        for top in self.h.all():
            full = Path(f"{top}{path}")
            if full.is_dir():
                continue
            at = top
            for part in path.strip("/").split("/"):
                parent, at = at, at / part
                if self.h.v2:
                    _enable(parent)
                try:
                    at.mkdir()
                except FileExistsError:
                    continue
                except OSError as e:
                    if e.errno in (errno.EROFS, errno.EPERM):
                        break
                    raise
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if not self.h.v2 and (at / name).exists() and not (at / name).read_text().strip():
                        _write(at / name, (parent / name).read_text())

    def apply(self, path: str, limits: Mapping[str, int], pids_max: int = -1) -> None:
        """Limits of one cgroup; those not given are left as they are."""
        if self.h.v2:
            at = Path(f"{self.h.v2}{path}")
            if "cpu_shares" in limits:
                weight = 1 + (limits["cpu_shares"] - 2) * 9999 // 262142
                _write(at / "cpu.weight", str(weight))
            if "cpu_quota" in limits:
                _write(at / "cpu.max", f"{limits['cpu_quota'] or 'max'} {PERIOD_US}")
            if "memory" in limits:
                _write(at / "memory.max", str(limits["memory"] or "max"))
            if pids_max > 0:
                _write(at / "pids.max", str(pids_max))
            return
        cpu, memory, pids = (self.h.v1.get(c) for c in ("cpu", "memory", "pids"))
        if cpu and "cpu_shares" in limits:
            _write(Path(f"{cpu}{path}/cpu.shares"), str(limits["cpu_shares"]))
        if cpu and "cpu_quota" in limits:
            _write(Path(f"{cpu}{path}/cpu.cfs_period_us"), str(PERIOD_US))
            _write(Path(f"{cpu}{path}/cpu.cfs_quota_us"), str(limits["cpu_quota"] or -1))
        if memory and "memory" in limits:
            _write(Path(f"{memory}{path}/memory.limit_in_bytes"), str(limits["memory"] or -1))
        if pids and pids_max > 0:
            _write(Path(f"{pids}{path}/pids.max"), str(pids_max))

    def setup(self, limits: Mapping[str, int] = NO_LIMITS, pids_max: int = -1) -> None:
        """The directories of the QoS classes; `limits` hold for all pods together."""
        for path in ("/kubepods", "/kubepods/burstable", "/kubepods/besteffort"):
            self.ensure(self.root + path)
        self.apply(f"{self.root}/kubepods", limits, pids_max)
        self.apply(f"{self.root}/kubepods/besteffort", {"cpu_shares": 2})

    def pod_exists(self, path: str) -> bool:
        tops = self.h.all()
        return bool(tops) and Path(f"{tops[0]}{path}").is_dir()

    def remove(self, path: str) -> bool:
        """Removes the cgroup and what is left below it; False while processes are still in it."""
        gone = True
        for top in self.h.all():
            full = f"{top}{path}"
            if not os.path.isdir(full):
                continue
            for d, _, _ in os.walk(full, topdown=False):
                try:
                    os.rmdir(d)
                except FileNotFoundError:
                    pass
                except OSError:
                    gone = False
        return gone

    def processes(self, path: str) -> int:
        """How many processes are in a cgroup and below it."""
        top = self.h.v2 or self.h.v1.get("pids")
        return _number(f"{top}{path}/pids.current") if top else 0

    def pods(self) -> dict[str, str]:
        """uid -> path of every pod cgroup there is."""
        out: dict[str, str] = {}
        for top in self.h.all():
            for middle in ("", "/burstable", "/besteffort"):
                base = f"{self.root}/kubepods{middle}"
                try:
                    names = os.listdir(f"{top}{base}")
                except OSError:
                    continue
                for n in names:
                    if n.startswith("pod"):
                        out[n[3:]] = f"{base}/{n}"
        return out

    def usage(self, path: str) -> dict[str, int]:
        """cpu_ns, memory, working_set, rss, page faults of one cgroup, as far as they can be read; path "" or "/" is the machine."""
        if self.h.v2:
            at = f"{self.h.v2}{path}"
            stat = _table(f"{at}/memory.stat")
            used = _number(f"{at}/memory.current")
            inactive = stat.get("inactive_file", 0)
            out = {"cpu_ns": _table(f"{at}/cpu.stat").get("usage_usec", 0) * 1000, "rss": stat.get("anon", 0),
                   "page_faults": stat.get("pgfault", 0), "major_page_faults": stat.get("pgmajfault", 0)}
        else:
            cpu, memory = self.h.v1.get("cpuacct") or self.h.v1.get("cpu"), self.h.v1.get("memory")
            stat = _table(f"{memory}{path}/memory.stat") if memory else {}
            used = _number(f"{memory}{path}/memory.usage_in_bytes") if memory else 0
            inactive = stat.get("total_inactive_file", 0)
            out = {"cpu_ns": _number(f"{cpu}{path}/cpuacct.usage") if cpu else 0, "rss": stat.get("total_rss", 0),
                   "page_faults": stat.get("total_pgfault", 0), "major_page_faults": stat.get("total_pgmajfault", 0)}
        return out | {"memory": used, "working_set": max(0, used - inactive)}


    def pressure(self, path: str) -> dict[str, dict[str, dict[str, float]]]:
        """cpu, memory, io -> some, full -> total (microseconds) and averages: how long work waited. Of the machine ("/"), of cgroups on v2."""
        at = {"cpu": "/proc/pressure/cpu", "memory": "/proc/pressure/memory", "io": "/proc/pressure/io"} if path in ("", "/") else \
            {r: f"{self.h.v2}{path}/{r}.pressure" for r in ("cpu", "memory", "io")} if self.h.v2 else {}
        return {r: found for r, file in at.items() if (found := stalls(_word(file)))}

    def disk(self, path: str) -> dict[str, dict[str, int]]:
        """Device (8:0) -> read_bytes, write_bytes, reads, writes, as far as the kernel counts them."""
        out: dict[str, dict[str, int]] = {}
        if self.h.v2:
            names = {"rbytes": "read_bytes", "wbytes": "write_bytes", "rios": "reads", "wios": "writes"}
            for line in _word(f"{self.h.v2}{path}/io.stat").splitlines():
                device, *pairs = line.split()
                out[device] = {names[k]: int(v) for k, _, v in (p.partition("=") for p in pairs) if k in names}
            return out
        for file, kind in (("io_service_bytes", "_bytes"), ("io_serviced", "s")):
            for line in _word(f"{self.h.v1.get('blkio', '')}{path}/blkio.throttle.{file}_recursive").splitlines():
                device, _, rest = line.partition(" ")
                operation, _, n = rest.partition(" ")
                if operation in ("Read", "Write"):
                    out.setdefault(device, {})[operation.lower() + kind] = int(n)
        return out

    def details(self, path: str) -> dict[str, float]:
        """What scrapers ask of a cgroup beyond `usage`, by cAdvisor's names; what cannot be read is not there."""
        if self.h.v2:
            at = f"{self.h.v2}{path}"
            cpu, stat = _table(f"{at}/cpu.stat"), _table(f"{at}/memory.stat")
            out = {"user": cpu.get("user_usec", 0) / 1e6, "system": cpu.get("system_usec", 0) / 1e6, "cache": stat.get("file", 0),
                   "mapped": stat.get("file_mapped", 0), "kernel": stat.get("kernel", 0), "max": _number(f"{at}/memory.peak"),
                   "swap": _number(f"{at}/memory.swap.current"), "active_file": stat.get("active_file", 0), "inactive_file": stat.get("inactive_file", 0)}
            limit = _word(f"{at}/memory.max")
            out["limit"] = float(limit) if limit.isdigit() else 0
            quota, _, period = _word(f"{at}/cpu.max").partition(" ")
            throttled = cpu
            out["throttled_s"] = cpu.get("throttled_usec", 0) / 1e6
            out["oom"] = _table(f"{at}/memory.events").get("oom_kill", 0)
        else:
            c, m = (f"{self.h.v1.get(x, '')}{path}" for x in ("cpu", "memory"))
            acct = _table(f"{self.h.v1.get('cpuacct', '')}{path}/cpuacct.stat")
            hz, stat, throttled = os.sysconf("SC_CLK_TCK"), _table(f"{m}/memory.stat"), _table(f"{c}/cpu.stat")
            limit_bytes = _number(f"{m}/memory.limit_in_bytes")
            out = {"user": acct.get("user", 0) / hz, "system": acct.get("system", 0) / hz, "cache": stat.get("total_cache", 0),
                   "mapped": stat.get("total_mapped_file", 0), "kernel": _number(f"{m}/memory.kmem.usage_in_bytes"),
                   "max": _number(f"{m}/memory.max_usage_in_bytes"), "swap": stat.get("total_swap", 0), "failcnt": _number(f"{m}/memory.failcnt"),
                   "active_file": stat.get("total_active_file", 0), "inactive_file": stat.get("total_inactive_file", 0),
                   "limit": limit_bytes if limit_bytes < 1 << 62 else 0, "shares": _number(f"{c}/cpu.shares"),
                   "throttled_s": throttled.get("throttled_time", 0) / 1e9, "oom": _table(f"{m}/memory.oom_control").get("oom_kill", 0)}
            quota, period = _word(f"{c}/cpu.cfs_quota_us"), _word(f"{c}/cpu.cfs_period_us")
        if period.isdigit():
            out["period"] = float(period)
            if quota.isdigit():
                out |= {"quota": float(quota), "periods": throttled.get("nr_periods", 0), "throttled": throttled.get("nr_throttled", 0)}
        return out | {"processes": self.processes(path)}


def stalls(text: str) -> dict[str, dict[str, float]]:
    """A pressure file: its lines by name, each with avg10, avg60, avg300 and total."""
    out: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        name, *pairs = line.split()
        out[name] = {k: int(v) if k == "total" else float(v) for k, _, v in (p.partition("=") for p in pairs)}
    return out


def device_name(number: str, base: str = "/sys/dev/block") -> str:
    """8:0 -> /dev/sda."""
    try:
        return f"/dev/{os.path.basename(os.readlink(f'{base}/{number}'))}"
    except OSError:
        return ""


def _word(path: str) -> str:
    try:
        with open(path) as f:
            return f.read().strip()
    except OSError:
        return ""


def _enable(at: Path) -> None:
    """Lets the children of a v2 cgroup have limits."""
    try:
        have = (at / "cgroup.controllers").read_text().split()
    except OSError:
        return
    for c in have:
        _write(at / "cgroup.subtree_control", f"+{c}")


def _write(path: Path, text: str) -> None:
    """Best effort: a controller that is missing or a value it refuses does not keep a pod from running."""
    try:
        path.write_text(text)
    except OSError:
        pass


def _number(path: str) -> int:
    try:
        with open(path) as f:
            return int(f.read())
    except (OSError, ValueError):
        return 0


def _table(path: str) -> dict[str, int]:
    try:
        with open(path) as f:
            return {k: int(v) for k, _, v in (line.strip().partition(" ") for line in f) if v.lstrip("-").isdigit()}
    except OSError:
        return {}


def node_memory(path: str = "/proc/meminfo") -> dict[str, int]:
    """total, available, in bytes."""
    out: dict[str, Any] = {}
    with open(path) as f:
        for line in f:
            k, _, v = line.partition(":")
            if k in ("MemTotal", "MemAvailable"):
                out[k] = int(v.split()[0]) * 1024
    return {"total": out.get("MemTotal", 0), "available": out.get("MemAvailable", 0)}
