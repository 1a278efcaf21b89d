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
SERIES_MAX = 200


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

    def text(self) -> str:
        o = self.operations
        return "".join((
            o.counters("kubelet_runtime_operations_total", "Cumulative number of runtime operations by operation type."),
            o.counters("kubelet_runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type.", True),
            *(h.text() for h in (o, self.relist, self.interval, self.worker, self.start, self.cgroup))))
