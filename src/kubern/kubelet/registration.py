"""The Node object: what a kubelet says of its machine. Mostly pure: `facts_of_machine` alone reads files.

Upstream: pkg/kubelet/kubelet_node_status.go, nodestatus/setters.go; KEP-589 (leases as heartbeats).
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubern.kubelet.configuration import Configuration
from kubern.kubelet.runtime import Image
from kubern.kubelet.status import stamp
from kubern.model import quantity
from kubern.model.object import Object

IMAGE_NAMES_MAX = 5
# what schedulers may count on (KEP-5328)
DECLARED_FEATURES = ("ExtendWebSocketsToKubelet", "InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers",
                     "RestartAllContainersOnContainerExits")


@dataclass(frozen=True, slots=True)
class Machine:
    cpus: int
    memory_bytes: int
    disk_bytes: int
    machine_id: str = ""
    system_uuid: str = ""
    boot_id: str = ""
    kernel: str = ""
    os_image: str = "linux"
    arch: str = "amd64"
    hugepages: Mapping[str, int] = field(default_factory=dict)      # hugepages-2Mi -> bytes set aside


@dataclass(frozen=True, slots=True)
class Health:
    """What conditions are made of."""

    ready: bool
    message: str = ""
    memory_pressure: bool = False
    disk_pressure: bool = False
    pid_pressure: bool = False


@dataclass(frozen=True, slots=True)
class NodeSettings:
    name: str
    addresses: tuple[str, ...]
    port: int = 10250
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    version: str = "v1.36.0"
    runtime_version: str = ""
    capacity: Mapping[str, str] = field(default_factory=dict)      # overrides what the machine has
    configuration: Configuration = field(default_factory=Configuration)


def facts_of_machine(root: str) -> Machine:
    def read(path: str) -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return ""

    os_image = next((line.partition("=")[2].strip('"') for line in read("/etc/os-release").splitlines() if line.startswith("PRETTY_NAME=")), "linux")
    memory = re.search(r"MemTotal:\s+(\d+)", read("/proc/meminfo"))
    try:
        st = os.statvfs(root)
        disk = st.f_blocks * st.f_frsize
    except OSError:
        disk = 0
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    machine_id = read("/etc/machine-id")
    return Machine(os.cpu_count() or 1, int(memory.group(1)) * 1024 if memory else 0, disk, machine_id,
                   read("/sys/class/dmi/id/product_uuid") or machine_id, read("/proc/sys/kernel/random/boot_id"), platform.release(), os_image, arch,
                   huge_pages())


def huge_pages(base: str = "/sys/kernel/mm/hugepages") -> dict[str, int]:
    """Resource name -> bytes of huge pages the machine has set aside."""
    out = {}
    for folder in sorted(Path(base).glob("hugepages-*kB")) if os.path.isdir(base) else ():
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) << 10
        try:
            out[f"hugepages-{quantity.of_value(size, 'BinarySI')}"] = size * int((folder / "nr_hugepages").read_text())
        except (OSError, ValueError):
            continue
    return out


def capacity(m: Machine, s: NodeSettings) -> dict[str, str]:
    c = s.configuration
    most = min(c.pods_max, c.pods_per_core * m.cpus) if c.pods_per_core else c.pods_max
    out = {"cpu": str(m.cpus), "memory": f"{m.memory_bytes // 1024}Ki", "pods": str(most), "ephemeral-storage": f"{m.disk_bytes // 1024}Ki",
           "hugepages-1Gi": "0", "hugepages-2Mi": "0"}
    return out | {k: quantity.of_value(v, "BinarySI") if v else "0" for k, v in m.hugepages.items()} | dict(s.capacity)


def allocatable(room: Mapping[str, str], s: NodeSettings) -> dict[str, str]:
    """Capacity less what is reserved and the hard eviction thresholds."""
    out = dict(room)
    for k, v in s.configuration.reserved.items():
        if k in out:
            out[k] = quantity.sub(out[k], v) if quantity.compare(out[k], v) > 0 else "0"
    hard = {t.signal: t for t in s.configuration.thresholds if not t.grace_s}
    memory, disk = quantity.value(out["memory"]), quantity.value(out["ephemeral-storage"])
    if "memory.available" in hard:
        memory -= hard["memory.available"].limit(quantity.value(room["memory"]))
    memory -= sum(quantity.value(v) for k, v in room.items() if k.startswith("hugepages-"))
    if "nodefs.available" in hard:
        disk -= hard["nodefs.available"].limit(quantity.value(room["ephemeral-storage"]))
    return out | {"memory": f"{max(0, memory) // 1024}Ki", "ephemeral-storage": str(max(0, disk))}


def conditions(h: Health, before: Iterable[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    rows = (
        ("MemoryPressure", h.memory_pressure, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available",
         "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", h.disk_pressure, "KubeletHasDiskPressure", "kubelet has disk pressure",
         "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", h.pid_pressure, "KubeletHasInsufficientPID", "kubelet has insufficient PID available",
         "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", h.ready, "KubeletReady", "kubelet is posting ready status", "KubeletNotReady", h.message),
    )
    old = {c["type"]: c for c in before}
    out = []
    for type_, yes, reason, message, other_reason, other_message in rows:
        c = {"type": type_, "status": "True" if yes else "False", "reason": reason if yes else other_reason,
             "message": message if yes else other_message, "lastHeartbeatTime": stamp(now)}
        was = old.get(type_)
        kept = was is not None and was.get("status") == c["status"]
        c["lastTransitionTime"] = was["lastTransitionTime"] if was is not None and kept else stamp(now)
        out.append(c)
    return out


def images(found: Iterable[Image], most: int = 50) -> list[dict[str, Any]]:
    """The biggest ones, each by its digests and tags."""
    rows = sorted(found, key=lambda i: -i.size)[:most if most >= 0 else None]
    return [{"names": [*i.digests, *i.tags][:IMAGE_NAMES_MAX], "sizeBytes": i.size} for i in rows if i.digests or i.tags]


def node_object(m: Machine, s: NodeSettings) -> Object:
    labels = {"beta.kubernetes.io/arch": m.arch, "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": m.arch, "kubernetes.io/os": "linux",
              "kubernetes.io/hostname": s.name, **s.labels}
    spec: dict[str, Any] = {}
    if s.taints:
        spec["taints"] = [dict(t) for t in s.taints]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {
        "name": s.name, "labels": labels, "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}, "spec": spec}


def node_status(m: Machine, s: NodeSettings, health: Health, found: Iterable[Image], before: Mapping[str, Any], now: float,
                devices: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})) -> dict[str, Any]:
    """`devices`: (capacity, allocatable) of the device plugins' resources."""
    room = capacity(m, s)
    return {
        "addresses": [*({"type": "InternalIP", "address": a} for a in s.addresses), {"type": "Hostname", "address": s.name}],
        "capacity": {**room, **devices[0]}, "allocatable": {**allocatable(room, s), **devices[1]},
        "conditions": conditions(health, before.get("conditions") or (), now),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": s.port}}, "images": images(found, s.configuration.images_reported),
        "nodeInfo": {"machineID": m.machine_id, "systemUUID": m.system_uuid, "bootID": m.boot_id, "kernelVersion": m.kernel,
                     "osImage": m.os_image, "containerRuntimeVersion": s.runtime_version, "kubeletVersion": s.version, "kubeProxyVersion": "",
                     "operatingSystem": "linux", "architecture": m.arch},
        "declaredFeatures": list(DECLARED_FEATURES),
    }


def status_patch(before: Mapping[str, Any], now: Mapping[str, Any], heartbeat: bool) -> dict[str, Any]:
    """The strategic-merge patch, {} when nothing changed (heartbeat times alone count only with `heartbeat`)."""
    out: dict[str, Any] = {}
    for k, v in now.items():
        if k == "conditions":
            old = {c["type"]: c for c in before.get("conditions") or ()}
            diff = [c for c in v if heartbeat or any(c.get(x) != old.get(c["type"], {}).get(x) for x in ("status", "reason", "message"))]
            if diff:
                out["conditions"] = diff
        elif k == "addresses":
            if before.get(k) != v:
                gone = [{"$patch": "delete", "type": a["type"], "address": a["address"]} for a in before.get(k) or () if a not in v]
                out["addresses"] = [*gone, *v]
                out["$setElementOrder/addresses"] = [{"type": a["type"]} for a in v]
        elif before.get(k) != v:
            out[k] = v
    return out
