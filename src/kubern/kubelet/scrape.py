"""What scrapers read: /metrics, /metrics/resource, /metrics/cadvisor, /metrics/probes, in the text format of Prometheus.

In: a Sample of stats.py, the kubelet. Out: text. Names, labels and helps are upstream's: pkg/kubelet/metrics (and collectors), cAdvisor's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kubern.kubelet import pods
from kubern.kubelet.cgroups import Cgroups, device_name, node_memory
from kubern.kubelet.stats import Figures, Sample

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet


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
        family("container_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
               ((tags, 0, t) for tags, _ in each)),
        family("pod_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
               ((tags, 0, t) for tags, _ in whole)),
        family("node_swap_usage_bytes", "gauge", "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems", [({}, 0, t)]),
        family("resource_scrape_error", "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise", [({}, 0, "")]),
    ))


# cAdvisor's name -> (kind, help, of Figures or of Cgroups.details)
OF_FIGURES = (
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", "working_set"),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed", "usage"),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", "rss"),
    ("container_fs_usage_bytes", "gauge", "Number of bytes that are consumed by the container on this filesystem.", "fs_used"),
    ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.", "started_s"))
OF_CGROUPS = (
    ("container_cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed in seconds.", "user"),
    ("container_cpu_system_seconds_total", "counter", "Cumulative system cpu time consumed in seconds.", "system"),
    ("container_cpu_cfs_periods_total", "counter", "Number of elapsed enforcement period intervals.", "periods"),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals.", "throttled"),
    ("container_cpu_cfs_throttled_seconds_total", "counter", "Total time duration the container has been throttled.", "throttled_s"),
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory.", "cache"),
    ("container_memory_mapped_file", "gauge", "Size of memory mapped files in bytes.", "mapped"),
    ("container_memory_kernel_usage", "gauge", "Size of kernel memory allocated in bytes.", "kernel"),
    ("container_memory_max_usage_bytes", "gauge", "Maximum memory usage recorded in bytes", "max"),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", "swap"),
    ("container_memory_failcnt", "counter", "Number of memory usage hits limits", "failcnt"),
    ("container_memory_total_active_file_bytes", "gauge", "Current total active file in bytes.", "active_file"),
    ("container_memory_total_inactive_file_bytes", "gauge", "Current total inactive file in bytes.", "inactive_file"),
    ("container_oom_events_total", "counter", "Count of out of memory events observed for the container", "oom"),
    ("container_processes", "gauge", "Number of processes running inside the container.", "processes"),
    ("container_threads", "gauge", "Number of threads running inside the container", "processes"),
    ("container_spec_cpu_period", "gauge", "CPU period of the container.", "period"),
    ("container_spec_cpu_quota", "gauge", "CPU quota of the container.", "quota"),
    ("container_spec_cpu_shares", "gauge", "CPU share of the container.", "shares"),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", "limit"))
OF_NETWORK = tuple(
    (f"container_network_{way}_{what}_total", f"Cumulative count of {text}", f"{short}_{key}")
    for way, short, past, present in (("receive", "rx", "received", "receiving"), ("transmit", "tx", "transmitted", "transmitting"))
    for what, key, text in (("bytes", "bytes", f"bytes {past}"), ("packets", "packets", f"packets {past}"),
                            ("errors", "errors", f"errors encountered while {present}"), ("packets_dropped", "drops", f"packets dropped while {present}")))


OF_DISKS = (
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read", "read_bytes"),
    ("container_fs_reads_total", "Cumulative count of reads completed", "reads"),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", "write_bytes"),
    ("container_fs_writes_total", "Cumulative count of writes completed", "writes"))
OF_PRESSURE = tuple(
    (f"container_pressure_{of}_{word}_seconds_total", f"Total time duration {who} tasks in the container have {did} due to {why} congestion.", of, line)
    for of, why in (("cpu", "CPU"), ("memory", "memory"), ("io", "IO"))
    for word, line, who, did in (("stalled", "full", "no", "made progress"), ("waiting", "some", "any", "waited")))


@dataclass(frozen=True, slots=True)
class Details:
    """What cAdvisor tells of one cgroup beyond a Sample."""

    figures: Mapping[str, float]
    disks: Mapping[str, Mapping[str, int]]                   # 8:0 -> counters


NO_DETAILS = Details({}, {})


def details(s: Sample, cgroups: Cgroups | None) -> dict[str, Details]:
    """Of all pods and containers of a sample, by cgroup path. Blocking."""
    if cgroups is None:
        return {}
    return {path: Details(cgroups.details(path), cgroups.disk(path))
            for p in s.pods for path in (p.path, *(f"{p.path}/{f.id}" for f in p.containers.values()))}


def cadvisor_metrics(s: Sample, more: Mapping[str, Details]) -> str:
    t = str(int(s.at_s * 1000))
    each: list[tuple[dict[str, str], Figures]] = []
    for p in s.pods:
        base = {"namespace": p.namespace, "pod": p.name}
        each.append(({"container": "", "id": p.path, "image": "", "name": "", **base}, p.whole))
        each += [({"container": n, "id": f"{p.path}/{f.id}", "image": f.image, "name": f.id, **base}, f) for n, f in p.containers.items()]
    out = [family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.",
                  [({"container": tags["container"], "cpu": "total", **tags}, f.cpu_ns / 1e9, t) for tags, f in each])]
    for name, kind, text, key in OF_FIGURES:
        out.append(family(name, kind, text, [(tags, getattr(f, key), t) for tags, f in each]))
    for name, kind, text, key in OF_CGROUPS:
        out.append(family(name, kind, text, [(tags, more[tags["id"]].figures[key], t) for tags, _ in each if key in more.get(tags["id"], NO_DETAILS).figures]))
    disks = [(tags, number, device_name(number), counters) for tags, _ in each for number, counters in more.get(tags["id"], NO_DETAILS).disks.items()]
    for name, text, key in OF_DISKS:
        out.append(family(name, "counter", text, [({**tags, "device": device}, c[key], t) for tags, _, device, c in disks if key in c]))
    out.append(family("container_blkio_device_usage_total", "counter", "Blkio Device bytes usage", [
        ({**tags, "device": device, "major": number.partition(":")[0], "minor": number.partition(":")[2], "operation": operation}, c[key], t)
        for tags, number, device, c in disks for operation, key in (("Read", "read_bytes"), ("Write", "write_bytes")) if key in c]))
    for name, text, of, line in OF_PRESSURE:
        out.append(family(name, "counter", text, [(tags, f.pressure[of][line]["total"] / 1e6, t) for tags, f in each if line in f.pressure.get(of, ())]))
    out.append(family("container_memory_failures_total", "counter", "Cumulative count of memory allocation failures.",
                      [({**tags, "failure_type": kind, "scope": scope}, n, t) for tags, f in each for kind, n in (
                          ("pgfault", f.page_faults), ("pgmajfault", f.major_page_faults)) for scope in ("container", "hierarchy")]))
    out.append(family("container_last_seen", "gauge", "Last time a container was seen by the exporter", [(tags, int(s.at_s), t) for tags, _ in each]))
    net = [({"container": "", "id": p.path, "image": "", "interface": "eth0", "name": "", "namespace": p.namespace, "pod": p.name}, p.network)
           for p in s.pods if p.network]
    for name, text, key in OF_NETWORK:
        out.append(family(name, "counter", text, [(tags, n.get(key, 0), t) for tags, n in net]))
    out.append(family("machine_cpu_cores", "gauge", "Number of logical CPU cores.", [({}, os.cpu_count() or 1, "")]))
    out.append(family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.", [({}, node_memory()["total"], "")]))
    out.append(family("machine_scrape_error", "gauge", "1 if there was an error while getting machine metrics, 0 otherwise.", [({}, 0, "")]))
    out.append(family("container_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise", [({}, 0, "")]))
    return "".join(out)


def volume_metrics(s: Sample) -> str:
    """kubelet_volume_stats_*: of the volumes behind claims."""
    rows = [({"namespace": p.namespace, "persistentvolumeclaim": v.claim}, v) for p in s.pods for v in p.volumes.values() if v.claim]
    out = []
    for name, text, key in (
            ("capacity_bytes", "Capacity in bytes of the volume", "capacity"), ("available_bytes", "Number of available bytes in the volume", "available"),
            ("used_bytes", "Number of used bytes in the volume", "used"), ("inodes", "Maximum number of inodes in the volume", "inodes"),
            ("inodes_free", "Number of free inodes in the volume", "inodes_free"), ("inodes_used", "Number of used inodes in the volume", "inodes_used")):
        out.append(family(f"kubelet_volume_stats_{name}", "gauge", f"[ALPHA] {text}", [(tags, getattr(v, key), "") for tags, v in rows]))
    return "".join(out) if rows else ""


def probe_metrics(k: Kubelet) -> str:
    return family("prober_probe_total", "counter",
                  "[ALPHA] Cumulative number of a liveness, readiness or startup probe for a container by result.",
                  (({"container": c, "namespace": ns, "pod": pod, "probe_type": kind, "result": result}, n, "")
                   for (kind, result, ns, pod, c), n in sorted(k.prober.attempts.items())))


def _working(k: Kubelet) -> list[tuple[dict[str, str], float | int, str]]:
    """Workers by what they do."""
    rows: dict[tuple[str, str, str], int] = {}
    for w in k.workers.values():
        lifecycle = "terminated" if w.terminated else "terminating" if w.ending() else "sync"
        key = ("orphan" if w.gone else "desired", lifecycle, "true" if pods.is_static(w.pod) else "")
        rows[key] = rows.get(key, 0) + 1
    return [({"config": c, "lifecycle": phase, "static": static}, n, "") for (c, phase, static), n in sorted(rows.items())]


def _cpus(k: Kubelet) -> list[str]:
    """Of the static cpu policy."""
    if k.cpus is None:
        return []
    taken = {c for by_name in k.cpus.taken.values() for cpus in by_name.values() for c in cpus}
    on = {n: sum(k.layout.cpus[c].node == n for c in taken) for n in k.layout.nodes}
    return [family(f"kubelet_cpu_manager_{name}", "gauge", f"[ALPHA] {text}", rows) for name, text, rows in (
        ("shared_pool_size_millicores", "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.",
         [({}, 1000 * len(k.cpus.shared - k.cpus.reserved), "")]),
        ("exclusive_cpu_allocation_count", "The total number of CPUs exclusively allocated to containers running on this node", [({}, len(taken), "")]),
        ("allocation_per_numa", "Number of CPUs allocated per NUMA node", [({"numa_node": str(n)}, count, "") for n, count in on.items()]))]


def kubelet_metrics(k: Kubelet) -> str:
    running = sum(1 for u in k.observer.pods() if any(x.ready for x in k.observer.seen(u).sandboxes))
    states: dict[str, int] = {}
    for u in k.observer.pods():
        for c in k.observer.seen(u).containers:
            states[c.state] = states.get(c.state, 0) + 1
    static = sum(pods.is_static(w.pod) for w in k.workers.values())

    def one(name: str, kind: str, text: str, value: float) -> str:
        return family(name, kind, text, [({}, value, "")])
    return "".join((
        family("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.", [({"node": k.settings.name}, 1, "")]),
        family("kubernetes_build_info", "gauge", "[ALPHA] A metric with a constant '1' value labeled by major, minor and git version.",
               [({"git_version": k.settings.version, "major": "1", "minor": k.settings.version.split(".")[1], "platform": "linux"}, 1, "")]),
        one("kubelet_running_pods", "gauge", "[BETA] Number of pods that have a running pod sandbox", running),
        family("kubelet_running_containers", "gauge", "[BETA] Number of containers currently running",
               [({"container_state": s}, n, "") for s, n in sorted(states.items())]),
        family("kubelet_desired_pods", "gauge", "[ALPHA] The number of pods the kubelet is being instructed to run. "
                                                "static is true if the pod is not from the apiserver.",
               [({"static": ""}, len(k.workers) - static, ""), ({"static": "true"}, static, "")]),
        family("kubelet_active_pods", "gauge", "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new "
                                               "pods. static is true if the pod is not from the apiserver.",
               [({"static": ""}, len(k.active_pods()), "")]),
        one("kubelet_mirror_pods", "gauge", "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)", static),
        one("kubelet_cgroup_version", "gauge", "[ALPHA] cgroup version on the hosts.", 2 if k.cgroups is not None and k.cgroups.h.v2 else 1),
        family("kubelet_evictions", "counter", "[ALPHA] Cumulative number of pod evictions by eviction signal",
               [({"eviction_signal": s}, n, "") for s, n in sorted(k.room.evicted.items())]),
        family("kubelet_working_pods", "gauge", "[ALPHA] Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is "
                                                "desired, orphaned, or runtime only (also orphaned), and whether the pod is static.", _working(k)),
        family("kubelet_pod_pending_resizes", "gauge", "[ALPHA] Number of pending resizes for pods.", [
            ({"reason": reason.lower()}, sum(1 for w in k.workers.values() if w.pending and w.pending[0] == reason), "")
            for reason in ("Deferred", "Infeasible")]),
        *_cpus(k),
        one("dra_resource_claims_in_use", "gauge", "[BETA] The number of ResourceClaims that are currently in use on the node", len(k.claims.claims)),
        one("kubelet_pleg_last_seen_seconds", "gauge", "[ALPHA] Timestamp in seconds when PLEG was last seen active.", k.clock()),
        k.measures.text(),
    ))
