"""Metrics: what the API server counts, under upstream's names, in the Prometheus text format.

A counter is a dict entry; histograms keep upstream's buckets. Nothing here waits or locks. Upstream: endpoints/metrics/metrics.go.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from typing import Any

from kubern.api.authz.attributes import Attributes

BUCKETS = (0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60)
SERIES_MAX = 20_000


class Metrics:
    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str, str, str, int], int] = {}
        self.durations: dict[tuple[str, str, str, str, str], list[float]] = {}
        self.started_s = time.time()

    def count(self, verb: str, group: str, version: str, resource: str, subresource: str, code: int) -> None:
        key = (verb, group, version, resource, subresource, code)
        requests = self.requests
        if key in requests:
            requests[key] += 1
        elif len(requests) < SERIES_MAX:
            requests[key] = 1

    def observe(self, a: Attributes, code: int, seconds: float, known: bool = True) -> None:
        """`known`: the path is one of ours. Labels never hold what a client made up."""
        if not known or not a.is_resource or (a.subresource and code in (404, 405)):
            self.count(a.verb if a.verb in _VERBS else "other", "", "", "", "", code)
            return
        self.count(a.verb, a.group, a.version, a.resource, a.subresource, code)
        if a.verb == "watch" or a.subresource in ("exec", "attach", "portforward", "log", "proxy"):
            return
        key = (a.verb, a.group, a.version, a.resource, a.subresource)
        h = self.durations.get(key)
        if h is None:
            if len(self.durations) >= SERIES_MAX:
                return
            h = self.durations[key] = [0.0] * (len(BUCKETS) + 2)
        h[bisect_left(BUCKETS, seconds)] += 1
        h[-1] += seconds

    def text(self, server: Any) -> bytes:
        """The page of /metrics."""
        out: list[str] = []

        def family(name: str, type_: str, help_: str) -> None:
            out.append(f"# HELP {name} {help_}\n# TYPE {name} {type_}\n")

        family("apiserver_request_total", "counter", "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, "
               "version, resource, scope, component, and HTTP response code.")
        for (verb, group, version, resource, sub, code), n in self.requests.items():
            out.append(f'apiserver_request_total{{code="{code}",component="apiserver",dry_run="",group="{group}",resource="{resource}",'
                       f'scope="",subresource="{sub}",verb="{_VERBS.get(verb, verb.upper())}",version="{version}"}} {n}\n')
        for name in ("apiserver_request_duration_seconds", "apiserver_request_sli_duration_seconds"):
            family(name, "histogram", "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, "
                   "subresource, scope and component.")
            for (verb, group, version, resource, sub), h in self.durations.items():
                labels = (f'component="apiserver",dry_run="",group="{group}",resource="{resource}",scope="",subresource="{sub}",'
                          f'verb="{_VERBS.get(verb, verb.upper())}",version="{version}"')
                total = 0.0
                for bound, count in zip(BUCKETS, h, strict=False):
                    total += count
                    out.append(f'{name}_bucket{{{labels},le="{bound:g}"}} {total:g}\n')
                total += h[len(BUCKETS)]
                out.append(f'{name}_bucket{{{labels},le="+Inf"}} {total:g}\n{name}_sum{{{labels}}} {h[-1]:g}\n{name}_count{{{labels}}} {total:g}\n')
        family("apiserver_longrunning_requests", "gauge", "[STABLE] Gauge of all active long-running apiserver requests.")
        out.append(f'apiserver_longrunning_requests{{component="apiserver",verb="WATCH"}} {server.watches}\n')
        family("apiserver_current_inflight_requests", "gauge", "[STABLE] Maximal number of currently used inflight request limit.")
        out.append(f'apiserver_current_inflight_requests{{request_kind="mutating"}} {server._in_flight}\n'
                   'apiserver_current_inflight_requests{request_kind="readOnly"} 0\n')
        for name in ("apiserver_storage_objects", "apiserver_resource_objects"):
            family(name, "gauge", "Number of stored objects at the time of last check split by kind.")
            for (group, plural), c in server.cache.collections.items():
                label = f"{plural}.{group}" if group else plural
                out.append(f'{name}{{resource="{label}"}} {len(c.items)}\n' if name == "apiserver_storage_objects"
                           else f'{name}{{group="{group}",resource="{plural}"}} {len(c.items)}\n')
        out.append(server.fairness.metrics())
        if server.audit is not None:
            family("apiserver_audit_event_total", "counter", "[ALPHA] Counter of audit events generated and sent to the audit backend.")
            out.append(f"apiserver_audit_event_total {server.audit.events}\n")
            family("apiserver_audit_error_total", "counter", "[ALPHA] Counter of audit events that failed to be audited properly.")
            out.append(f'apiserver_audit_error_total{{plugin="log"}} {server.audit.log.lost}\n')
        family("kubernetes_build_info", "gauge", "A metric with a constant '1' value labeled by major, minor, git version.")
        out.append('kubernetes_build_info{git_version="v1.36.2",major="1",minor="36",platform="linux/amd64"} 1\n')
        family("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.")
        out.append(f"process_cpu_seconds_total {time.process_time():.2f}\n")
        family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.")
        with open("/proc/self/statm") as f:
            out.append(f"process_resident_memory_bytes {int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')}\n")
        family("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.")
        out.append(f"process_start_time_seconds {self.started_s:.2f}\n")
        return "".join(out).encode()


_VERBS = {"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE",
          "deletecollection": "DELETECOLLECTION"}
