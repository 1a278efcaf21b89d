"""Metrics: what the API server counts, under upstream's names and labels, in the Prometheus text format.

A counter is a dict entry, a histogram a list of counts that ends with their number and sum; nothing here waits or locks. Labels never hold what a
client made up. The page is written when somebody asks for it (metrics_report.py). Upstream: apiserver endpoints/metrics/metrics.go,
admission/metrics, storage/etcd3/metrics; test/instrumentation/testdata/stable-metrics-list.yaml names what may be relied on.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from kubern.api.authz.attributes import Attributes

DURATION_S = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60)
SIZE_BYTES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
BODY_BYTES = tuple(50_000 + 100_000 * i for i in range(31))
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

    def text(self) -> str:
        name = self.name
        out = [_family(name, "histogram", self.help)]
        for labels, h in self.series.items():
            shown = _labels(zip(self.labels, labels, strict=True))
            bare, comma = f"{{{shown}}}" if shown else "", "," if shown else ""
            total = 0
            for bound, count in zip(self.buckets, h, strict=False):
                total += int(count)
                out.append(f'{name}_bucket{{{shown}{comma}le="{bound:g}"}} {total}\n')
            total += int(h[len(self.buckets)])
            out.append(f'{name}_bucket{{{shown}{comma}le="+Inf"}} {total}\n{name}_sum{bare} {_number(h[-1])}\n{name}_count{bare} {total}\n')
        return "".join(out)

    def without(self, label: str, name: str, help_: str) -> Histogram:
        """The same under another name, added up over the values of a label."""
        at = self.labels.index(label)
        out = Histogram(name, help_, (*self.labels[:at], *self.labels[at + 1:]), self.buckets)
        for labels, h in self.series.items():
            cells = out.cells((*labels[:at], *labels[at + 1:]))
            for i, n in enumerate(h):
                cells[i] += n
        return out


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


def _number(n: float) -> str:
    """As exact as it is."""
    return str(int(n)) if n == int(n) else repr(n)


def _family(name: str, type_: str, help_: str) -> str:
    return f"# HELP {name} {help_}\n# TYPE {name} {type_}\n"


def _labels(pairs: Iterable[tuple[str, Any]]) -> str:
    return ",".join(f'{k}="{v}"' for k, v in pairs)


def family(name: str, type_: str, help_: str, rows: Iterable[tuple[Iterable[tuple[str, Any]], float]]) -> str:
    """A family of counters or gauges. Rows: (labels, value)."""
    out = [_family(name, type_, help_)]
    for labels, value in rows:
        shown = _labels(labels)
        out.append(f"{name}{{{shown}}} {_number(value)}\n" if shown else f"{name} {_number(value)}\n")
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
        self.bodies = Histogram("apiserver_request_body_size_bytes", "[ALPHA] Apiserver request body size in bytes broken out by resource and verb.",
                                ("group", "resource", "verb"), BODY_BYTES)
        self.strangers = self.refused = 0         # requests of nobody that is known; of those that are, what was not allowed
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
