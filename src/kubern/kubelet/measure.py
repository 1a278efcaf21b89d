"""Histograms and counters of the kubelet's own work, in the text format of Prometheus. No registry: whoever measures holds one.

Names and buckets: upstream pkg/kubelet/metrics/metrics.go.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
START_BUCKETS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0,
                 1200.0, 1800.0, 2700.0, 3600.0)
STATUS_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0)
PULL_BUCKETS = (1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 180.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0)
COUNT_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0)
SERIES_MAX = 200
# what is counted: name without kubelet_ -> (help, labels)
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "admission_rejections_total": ("Cumulative number pod admission rejections by the Kubelet.", ("reason",)),
    "started_pods_total": ("Cumulative number of pods started", ()),
    "started_pods_errors_total": ("Cumulative number of errors when starting pods", ()),
    "run_podsandbox_errors_total": ("Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.", ("runtime_handler",)),
    "started_containers_total": ("Cumulative number of containers started", ("container_type",)),
    "started_containers_errors_total": ("Cumulative number of errors when starting containers", ("container_type", "code")),
    "orphaned_runtime_pods_total": ("Number of pods that have been detected in the container runtime without being already known to the pod worker. "
                                    "This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local "
                                    "configuration, which is unusual.", ()),
    "image_garbage_collected_total": ("Total number of images garbage collected by the kubelet, whether through disk usage or image age.", ("reason",)),
    "topology_manager_admission_requests_total": ("The number of admission requests where resources have to be aligned.", ()),
    "topology_manager_admission_errors_total": ("The number of admission request failures where resources could not be aligned.", ()),
    "cpu_manager_pinning_requests_total": ("The number of cpu core allocations which required pinning.", ()),
    "cpu_manager_pinning_errors_total": ("The number of cpu core allocations which required pinning failed.", ()),
    "memory_manager_pinning_requests_total": ("The number of memory pages allocations which required pinning.", ()),
    "memory_manager_pinning_errors_total": ("The number of memory pages allocations which required pinning that failed.", ()),
    "device_plugin_registration_total": ("Cumulative number of device plugin registrations. Broken down by resource name.", ("resource_name",)),
    "pod_resources_endpoint_requests_total": ("Cumulative number of requests to the PodResource endpoint. Broken down by server api version.",
                                              ("server_api_version",)),
    "pod_resources_endpoint_requests_list": ("Number of requests to the PodResource List endpoint. Broken down by server api version.",
                                             ("server_api_version",)),
    "pod_resources_endpoint_requests_get": ("Number of requests to the PodResource Get endpoint. Broken down by server api version.", ("server_api_version",)),
    "pod_resources_endpoint_requests_get_allocatable": (
        "Number of requests to the PodResource GetAllocatableResources endpoint. Broken down by server api version.", ("server_api_version",)),
    "pod_resources_endpoint_errors_get": ("Number of requests to the PodResource Get endpoint which returned error. Broken down by server api version.",
                                          ("server_api_version",)),
    "pod_infeasible_resizes_total": ("Number of infeasible resizes for pods.", ("reason_detail",)),
    "http_requests_total": ("Number of the http requests received since the server started", ("method", "path", "server_type", "long_running")),
}


@dataclass(slots=True)
class Series:
    counts: list[int]
    total: float = 0.0
    errors: int = 0


@dataclass(slots=True)
class Histogram:
    name: str
    help: str
    label: str = ""
    buckets: tuple[float, ...] = DEFAULT_BUCKETS
    series: dict[str, Series] = field(default_factory=dict)

    def observe(self, seconds: float, value: str = "", failed: bool = False) -> None:
        s = self.series.get(value)
        if s is None:
            if len(self.series) >= SERIES_MAX:
                return
            s = self.series[value] = Series([0] * (len(self.buckets) + 1))
        s.counts[bisect.bisect_left(self.buckets, seconds)] += 1
        s.total += seconds
        s.errors += failed

    @contextmanager
    def timed(self, value: str = "") -> Iterator[None]:
        began = time.perf_counter()
        failed = True
        try:
            yield
            failed = False
        finally:
            self.observe(time.perf_counter() - began, value, failed)

    def text(self) -> str:
        lines = [f"# HELP {self.name} [ALPHA] {self.help}", f"# TYPE {self.name} histogram"]
        for value, s in sorted(self.series.items()):
            tag = f'{self.label}="{value}",' if self.label else ""
            end = f"{{{tag.rstrip(',')}}}" if tag else ""
            seen = 0
            for bound, n in zip((*self.buckets, float("inf")), s.counts, strict=True):
                seen += n
                lines.append(f'{self.name}_bucket{{{tag}le="{"+Inf" if bound == float("inf") else f"{bound:g}"}"}} {seen}')
            lines += [f"{self.name}_sum{end} {s.total:.9g}", f"{self.name}_count{end} {seen}"]
        return "\n".join(lines) + "\n"

    def counters(self, name: str, help: str, errors: bool = False) -> str:
        """The counts (or the failures among them) as a counter of their own."""
        lines = [f"# HELP {name} [ALPHA] {help}", f"# TYPE {name} counter"]
        for value, s in sorted(self.series.items()):
            n = s.errors if errors else sum(s.counts)
            if n or not errors:
                lines.append(f'{name}{{{self.label}="{value}"}} {n}' if self.label else f"{name} {n}")
        return "\n".join(lines) + "\n"


@dataclass(slots=True)
class Measures:
    """What one kubelet measures of itself."""

    counts: dict[tuple[str, ...], int] = field(default_factory=dict)                # (name, *labels) -> how often
    operations: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_runtime_operations_duration_seconds", "Duration in seconds of runtime operations. Broken down by operation type.", "operation_type"))
    relist: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG."))
    interval: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG."))
    worker: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pod_worker_duration_seconds", "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync",
        "operation_type"))
    start: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pod_start_duration_seconds", "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
        buckets=START_BUCKETS))
    cgroup: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_cgroup_manager_duration_seconds", "Duration in seconds for cgroup manager operations. Broken down by method.", "operation_type"))

    sandbox: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_run_podsandbox_duration_seconds", "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.",
        "runtime_handler"))
    worker_start: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pod_worker_start_duration_seconds", "Duration in seconds from kubelet seeing a pod to starting a worker."))
    start_total: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pod_start_total_duration_seconds", "Duration in seconds to start a pod since creation, including time to pull images and run init "
        "containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", buckets=START_BUCKETS))
    start_sli: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pod_start_sli_duration_seconds", "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from "
        "pod creation timestamp to when all its containers are reported as started and observed via watch", buckets=START_BUCKETS))
    status: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_pod_status_sync_duration_seconds", "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status "
        "until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.", buckets=STATUS_BUCKETS))
    pull: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_image_pull_duration_seconds", "Duration in seconds to pull an image.", "image_size_in_bytes", PULL_BUCKETS))
    containers: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_containers_per_pod_count", "The number of containers per pod.", buckets=COUNT_BUCKETS))
    devices: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_device_plugin_alloc_duration_seconds", "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.",
        "resource_name"))
    requests: Histogram = field(default_factory=lambda: Histogram(
        "kubelet_http_requests_duration_seconds", "Duration in seconds to serve http requests", "path"))

    def count(self, name: str, *labels: str) -> None:
        key = (name, *labels)
        if key in self.counts or len(self.counts) < SERIES_MAX:
            self.counts[key] = self.counts.get(key, 0) + 1

    def _counted(self) -> Iterator[str]:
        for name, (text, labels) in COUNTERS.items():
            rows = {key[1:]: n for key, n in self.counts.items() if key[0] == name}
            if not labels:
                rows = rows or {(): 0}
            if rows:
                yield f"# HELP kubelet_{name} [ALPHA] {text}\n# TYPE kubelet_{name} counter\n"
            for values, n in sorted(rows.items()):
                tags = ",".join(f'{k}="{v}"' for k, v in zip(labels, values, strict=True))
                yield f"kubelet_{name}{{{tags}}} {n}\n" if tags else f"kubelet_{name} {n}\n"

    def text(self) -> str:
        o = self.operations
        return "".join((
            o.counters("kubelet_runtime_operations_total", "Cumulative number of runtime operations by operation type."),
            o.counters("kubelet_runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type.", True),
            *(h.text() for h in (o, self.relist, self.interval, self.worker, self.start, self.cgroup, self.sandbox, self.worker_start, self.start_total,
                                 self.start_sli, self.status, self.pull, self.containers, self.devices, self.requests)), *self._counted()))
