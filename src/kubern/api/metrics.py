"""Metrics: what the API server counts, under upstream's names and labels, in the Prometheus text format.

A counter is a dict entry, a histogram a list of counts that ends with their number and sum; nothing here waits or locks. Labels never hold what a
client made up. The page is written when somebody asks for it (`text`). Upstream: apiserver endpoints/metrics/metrics.go, admission/metrics,
storage/etcd3/metrics; test/instrumentation/testdata/stable-metrics-list.yaml names what may be relied on.
"""

from __future__ import annotations

import hashlib
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kubern.api import configfile
from kubern.api.authz.attributes import Attributes

if TYPE_CHECKING:
    from kubern.api.handle import Server

DURATION_S = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60)
SIZE_BYTES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
ADMISSION_S = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5)
WEBHOOK_S = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0)
SERIES_MAX = 20_000
HEALTH = ("/healthz", "/livez", "/readyz")
LONG_RUNNING = ("exec", "attach", "portforward", "log", "proxy")
VERBS = {"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE",
         "deletecollection": "DELETECOLLECTION"}

Labels = tuple[str, ...]


class Histogram:
    """Counts by buckets for each set of labels."""

    def __init__(self, name: str, help_: str, labels: Sequence[str], buckets: Sequence[float]) -> None:
        self.name, self.help, self.labels, self.buckets = name, help_, tuple(labels), tuple(buckets)
        self.series: dict[Labels, list[float]] = {}

    def cells(self, labels: Labels) -> list[float]:
        """The counts of these labels; of nobody where there are too many already."""
        h = self.series.get(labels)
        if h is None:
            h = [0.0] * (len(self.buckets) + 2)
            if len(self.series) < SERIES_MAX:
                self.series[labels] = h
        return h

    def observe(self, labels: Labels, value: float) -> None:
        h = self.series.get(labels) or self.cells(labels)
        h[bisect_left(self.buckets, value)] += 1
        h[-1] += value

    def text(self, name: str = "") -> str:
        name = name or self.name
        out = [_family(name, "histogram", self.help)]
        for labels, h in self.series.items():
            shown = _labels(zip(self.labels, labels, strict=True))
            bare, comma = f"{{{shown}}}" if shown else "", "," if shown else ""
            total = 0.0
            for bound, count in zip(self.buckets, h, strict=False):
                total += count
                out.append(f'{name}_bucket{{{shown}{comma}le="{_go(bound)}"}} {total:g}\n')
            total += h[len(self.buckets)]
            out.append(f'{name}_bucket{{{shown}{comma}le="+Inf"}} {total:g}\n{name}_sum{bare} {h[-1]:g}\n{name}_count{bare} {total:g}\n')
        return "".join(out)


# How long admission takes; asked by every server of the process.
STEPS = Histogram("apiserver_admission_step_admission_duration_seconds", "[STABLE] Admission sub-step latency histogram in seconds, broken out for each "
                  "operation and API resource and step type (validate or admit).", ("operation", "rejected", "type"), ADMISSION_S)
PLUGINS = Histogram("apiserver_admission_controller_admission_duration_seconds", "[STABLE] Admission controller latency histogram in seconds, identified "
                    "by name and broken out for each operation and API resource and type (validate or admit).",
                    ("name", "operation", "rejected", "type"), ADMISSION_S)
WEBHOOKS = Histogram("apiserver_admission_webhook_admission_duration_seconds", "[STABLE] Admission webhook latency histogram in seconds, identified by name "
                     "and broken out for each operation and API resource and type (validate or admit).",
                     ("name", "operation", "rejected", "type"), WEBHOOK_S)

# Conversion webhooks of custom resources.
CONVERSIONS = Histogram("apiserver_crd_conversion_webhook_duration_seconds", "[ALPHA] CRD webhook conversion duration in seconds",
                        ("crd_name", "from_version", "to_version", "succeeded"), tuple(0.001 * 2**i for i in range(15)))
CONVERSION_CALLS = Histogram("apiserver_conversion_webhook_duration_seconds", "[ALPHA] Conversion webhook request latency", ("failure_type", "result"),
                             (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 45, 60))


def _conversions() -> str:
    if not CONVERSION_CALLS.series:
        return ""
    counts = [(zip(CONVERSION_CALLS.labels, labels, strict=True), sum(h[:-1])) for labels, h in CONVERSION_CALLS.series.items()]
    return CONVERSIONS.text() + CONVERSION_CALLS.text() + family(
        "apiserver_conversion_webhook_request_total", "counter",
        "[ALPHA] Counter for conversion webhook requests with success/failure and failure error type", counts)


def _go(n: float) -> str:
    return f"{n:g}"


def _family(name: str, type_: str, help_: str) -> str:
    return f"# HELP {name} {help_}\n# TYPE {name} {type_}\n"


def _labels(pairs: Iterable[tuple[str, Any]]) -> str:
    return ",".join(f'{k}="{v}"' for k, v in pairs)


def family(name: str, type_: str, help_: str, rows: Iterable[tuple[Iterable[tuple[str, Any]], float]]) -> str:
    """A family of counters or gauges. Rows: (labels, value)."""
    out = [_family(name, type_, help_)]
    for labels, value in rows:
        shown = _labels(labels)
        out.append(f"{name}{{{shown}}} {value:g}\n" if shown else f"{name} {value:g}\n")
    return "".join(out)


def scope_of(a: Attributes) -> str:
    return "resource" if a.name else "namespace" if a.namespace else "cluster"


class Series:
    """What is counted of requests with the same labels and answer; found once, added to often."""

    __slots__ = ("count", "durations", "sizes")

    def __init__(self, durations: list[float] | None, sizes: list[float] | None) -> None:
        self.count, self.durations, self.sizes = 0, durations, sizes

    def add(self, seconds: float, size: int) -> None:
        """`size`: of the body, -1 where it has none."""
        self.count += 1
        d, s = self.durations, self.sizes
        if d is not None:
            d[bisect_left(DURATION_S, seconds)] += 1
            d[-1] += seconds
        if s is not None and size >= 0:
            s[bisect_left(SIZE_BYTES, size)] += 1
            s[-1] += size


class Metrics:
    """What one server counts."""

    def __init__(self) -> None:
        self.requests: dict[Labels, Series] = {}
        self._found: dict[tuple[Any, ...], Series] = {}
        self.durations = Histogram("apiserver_request_duration_seconds", "[STABLE] Response latency distribution in seconds for each verb, dry run value, "
                                   "group, version, resource, subresource, scope and component.",
                                   ("component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version"), DURATION_S)
        self.sizes = Histogram("apiserver_response_sizes", "[STABLE] Response size distribution in bytes for each group, version, verb, resource, "
                               "subresource, scope and component.", ("component", "group", "resource", "scope", "subresource", "verb", "version"), SIZE_BYTES)
        self.deprecated: set[tuple[str, str, str, str]] = set()       # (group, version, resource, subresource) that were asked for
        self.started_s = time.time()

    def series(self, a: Attributes, code: int, dry_run: str = "", known: bool = True) -> Series:
        """`known`: the path is one of ours."""
        key = (a.verb, a.group, a.version, a.resource, a.subresource, scope_of(a), code, dry_run, known, "" if a.is_resource else a.path)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= SERIES_MAX:
                self._found.clear()
            found = self._found[key] = self._series(a, code, dry_run, known)
        return found

    def _series(self, a: Attributes, code: int, dry_run: str, known: bool) -> Series:
        timed = a.verb != "watch" and a.subresource not in LONG_RUNNING
        if not a.is_resource and a.path in HEALTH:
            labels: Labels = ("", "", "", "", "", a.path, VERBS.get(a.verb, "OTHER"), "")
        elif not known or not a.is_resource or (a.subresource and code in (404, 405)):
            labels, timed = ("", "", "", "", "", "", VERBS.get(a.verb, "OTHER"), ""), False
        else:
            labels = ("apiserver", dry_run, a.group, a.resource, scope_of(a), a.subresource, VERBS.get(a.verb, a.verb.upper()), a.version)
        key = (*labels, str(code))
        series = self.requests.get(key)
        if series is None:
            sized = timed and a.verb in ("get", "list")
            series = Series(self.durations.cells(labels) if timed else None, self.sizes.cells((labels[0], *labels[2:])) if sized else None)
            if len(self.requests) < SERIES_MAX:
                self.requests[key] = series
        return series

    def text(self, server: Server) -> bytes:
        """The page of /metrics."""
        from kubern.api import fairness_report

        names = self.durations.labels
        pages = [
            family("apiserver_request_total", "counter", "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, "
                   "resource, scope, component, and HTTP response code.",
                   ((sorted(zip((*names, "code"), key, strict=True)), series.count) for key, series in self.requests.items())),
            self.durations.text(), self.durations.text("apiserver_request_sli_duration_seconds"), self.sizes.text(),
            family("apiserver_requested_deprecated_apis", "gauge", "[STABLE] Gauge of deprecated APIs that have been requested, broken out by API group, "
                   "version, resource, subresource, and removed_release.",
                   (((("group", g), ("removed_release", ""), ("resource", r), ("subresource", s), ("version", v)), 1)
                    for g, v, r, s in sorted(self.deprecated))),
            _watches(server), _in_flight(server), STEPS.text(), PLUGINS.text(), WEBHOOKS.text(), _conversions(), _stored(server),
            fairness_report.metrics(server.fairness), _reloads(server)]
        if server.audit is not None:
            pages += [family("apiserver_audit_event_total", "counter", "[ALPHA] Counter of audit events generated and sent to the audit backend.",
                             [((), server.audit.events)]),
                      family("apiserver_audit_error_total", "counter", "[ALPHA] Counter of audit events that failed to be audited properly. Plugin identifies "
                             "the plugin affected by the error.", [((("plugin", s.plugin),), s.lost) for s in server.audit.sinks])]
        return "".join([*pages, _build(), self._process()]).encode()

    def _process(self) -> str:
        with open("/proc/self/statm") as f:
            resident = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return (family("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", [((), time.process_time())])
                + _family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.") + f"process_resident_memory_bytes {resident}\n"
                + _family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.")
                + f"process_start_time_seconds {self.started_s:.2f}\n")


def _watches(server: Server) -> str:
    names = ("component", "group", "resource", "scope", "subresource", "verb", "version")
    return family("apiserver_longrunning_requests", "gauge", "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, "
                  "resource, scope and component. Not all requests are tracked this way.",
                  ((zip(names, key, strict=True), n) for key, n in Counter(server.long_running()).items()))


def _in_flight(server: Server) -> str:
    return family("apiserver_current_inflight_requests", "gauge", "[STABLE] Maximal number of currently used inflight request limit of this apiserver per "
                  "request kind in last second.",
                  [((("request_kind", "mutating"),), server.writing), ((("request_kind", "readOnly"),), server.in_flight - server.writing)])


def _stored(server: Server) -> str:
    collections = [(g, p, c) for (g, p), c in server.cache.collections.items() if g != "ranges"]
    out = family("apiserver_storage_objects", "gauge", "[STABLE] (Deprecated since 1.34.0) [DEPRECATED, consider using apiserver_resource_objects instead] "
                 "Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.",
                 (((("resource", f"{p}.{g}" if g else p),), len(c.items)) for g, p, c in collections))
    out += family("apiserver_resource_objects", "gauge", "[ALPHA] Number of stored objects at the time of last check split by kind. In case of a fetching "
                  "error, the value will be -1.", (((("group", g), ("resource", p)), len(c.items)) for g, p, c in collections))
    out += family("apiserver_storage_events_received_total", "counter", "[BETA] Number of etcd events received split by kind.",
                  (((("group", g), ("resource", p)), c.received) for g, p, c in collections if c.received))
    size = getattr(server.store, "size_bytes", -1)
    if size >= 0:
        out += _family("apiserver_storage_size_bytes", "gauge", "[STABLE] Size of the storage database file physically allocated in bytes.")
        out += f'apiserver_storage_size_bytes{{storage_cluster_id="etcd-0"}} {size}\n'
    return out


def _reloads(server: Server) -> str:
    """How often configuration files were read again while the server ran."""
    out = ""
    who = "sha256:" + hashlib.sha256(server.identity.encode()).hexdigest()
    for what in ("authentication", "authorization"):
        seen = [(status, *configfile.RELOADS[what, status]) for status in ("success", "failure") if (what, status) in configfile.RELOADS]
        name = f"apiserver_{what}_config_controller_automatic_reload"
        help_ = f"{what} configuration split by status and apiserver identity."
        out += family(f"{name}s_total", "counter", f"[BETA] Total number of automatic reloads of {help_}",
                      (((("apiserver_id_hash", who), ("status", status)), n) for status, n, _ in seen))
        out += _family(f"{name}_last_timestamp_seconds", "gauge", f"[BETA] Timestamp of the last automatic reload of {help_}")
        out += "".join(f'{name}_last_timestamp_seconds{{apiserver_id_hash="{who}",status="{status}"}} {at_s:.3f}\n' for status, _, at_s in seen)
    return out


def _build() -> str:
    from kubern.api.paths import version

    v = version()
    names = (("build_date", "buildDate"), ("compiler", "compiler"), ("git_commit", "gitCommit"), ("git_tree_state", "gitTreeState"),
             ("git_version", "gitVersion"), ("go_version", "goVersion"), ("major", "major"), ("minor", "minor"), ("platform", "platform"))
    return family("kubernetes_build_info", "gauge", "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree "
                  "state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
                  [(((label, v[key]) for label, key in names), 1)])
