"""The page of /metrics: what was counted (metrics.py), and what can be read off the server when somebody asks.

Upstream's names, labels and words, where what stands there means the same here. What a scrape costs is spent on it, not on requests.
"""

from __future__ import annotations

import hashlib
import ipaddress
import resource
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubern.api import configfile, fairness_report
from kubern.api.metrics import CONVERSION_CALLS, CONVERSIONS, PLUGINS, STEPS, WEBHOOKS, family
from kubern.client.queue import NAMED

if TYPE_CHECKING:
    from kubern.api.handle import Server

REQUEST_LABELS = ("component", "dry_run", "group", "resource", "scope", "subresource", "verb", "version", "code")


def page(server: Server) -> bytes:
    m = server.metrics
    return "".join([
        _requests(server), m.durations.text(),
        m.durations.without("dry_run", "apiserver_request_sli_duration_seconds", "[ALPHA] Response latency distribution (not counting webhook duration "
                            "and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and "
                            "component.").text(),
        m.sizes.text(), m.bodies.text(), _deprecated(server), _watches(server), _in_flight(server), STEPS.text(), PLUGINS.text(), WEBHOOKS.text(),
        _conversions(), _stored(server), _allocated(server), fairness_report.metrics(server.fairness), _reloads(server), _audit(server), _queues(),
        _build(), _process(m.started_s)]).encode()


def _requests(server: Server) -> str:
    """Requests by what they asked for and how they were answered, and who was let in."""
    m = server.metrics
    rows = [(dict(zip(REQUEST_LABELS, key, strict=True)), series.count) for key, series in m.requests.items()]
    known = sum(n for _, n in rows)
    return "".join((
        family("apiserver_request_total", "counter", "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, "
               "resource, scope, component, and HTTP response code.", ((sorted(labels.items()), n) for labels, n in rows)),
        family("apiserver_request_terminations_total", "counter", "[ALPHA] Number of requests which apiserver terminated in self-defense.",
               ((sorted((k, v) for k, v in labels.items() if k != "dry_run"), n) for labels, n in rows if labels["code"] == "429")),
        family("authentication_attempts", "counter", "[ALPHA] Counter of authenticated attempts.",
               ((_one("result", "error"), m.strangers), (_one("result", "success"), known))),
        family("authorization_attempts_total", "counter", "[ALPHA] Counter of authorization attempts broken down by result. It can be either 'allowed', "
               "'denied', 'no-opinion' or 'error'.", ((_one("result", "allowed"), known - m.refused), (_one("result", "denied"), m.refused)))))


def _one(name: str, value: str) -> tuple[tuple[str, str], ...]:
    return ((name, value),)


def _deprecated(server: Server) -> str:
    return family("apiserver_requested_deprecated_apis", "gauge", "[STABLE] Gauge of deprecated APIs that have been requested, broken out by API group, "
                  "version, resource, subresource, and removed_release.",
                  (((("group", g), ("removed_release", ""), ("resource", r), ("subresource", s), ("version", v)), 1)
                   for g, v, r, s in sorted(server.metrics.deprecated)))


def _conversions() -> str:
    if not CONVERSION_CALLS.series:
        return ""
    counts = [(zip(CONVERSION_CALLS.labels, labels, strict=True), sum(h[:-1])) for labels, h in CONVERSION_CALLS.series.items()]
    return CONVERSIONS.text() + CONVERSION_CALLS.text() + family(
        "apiserver_conversion_webhook_request_total", "counter",
        "[ALPHA] Counter for conversion webhook requests with success/failure and failure error type", counts)


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
        out += family("apiserver_storage_size_bytes", "gauge", "[STABLE] Size of the storage database file physically allocated in bytes.",
                      [(_one("storage_cluster_id", "etcd-0"), size)])
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
        out += family(f"{name}_last_timestamp_seconds", "gauge", f"[BETA] Timestamp of the last automatic reload of {help_}",
                      (((("apiserver_id_hash", who), ("status", status)), round(at_s, 3)) for status, _, at_s in seen))
    return out


def _build() -> str:
    from kubern.api.paths import version

    v = version()
    names = (("build_date", "buildDate"), ("compiler", "compiler"), ("git_commit", "gitCommit"), ("git_tree_state", "gitTreeState"),
             ("git_version", "gitVersion"), ("go_version", "goVersion"), ("major", "major"), ("minor", "minor"), ("platform", "platform"))
    return family("kubernetes_build_info", "gauge", "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree "
                  "state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
                  [(((label, v[key]) for label, key in names), 1)])


def _allocated(server: Server) -> str:
    """Addresses and node ports of services."""
    allocator = server.allocator
    if allocator is None:
        return ""
    ips, networks, (low, high) = list(allocator.addresses.items), allocator.networks(), server.settings.node_ports
    used = {n: sum((":" in ip) == (n.version == 6) for ip in ips) if sum(o.version == n.version for o in networks) == 1
            else sum(ipaddress.ip_address(ip) in n for ip in ips) for n in networks}
    room = {n: n.num_addresses - (2 if n.version == 4 else 1) for n in networks}
    ports = allocator.used_ports
    prefix, help_ = "kube_apiserver_clusterip_allocator_", "[ALPHA] Gauge measuring the number of"
    return "".join((
        family(f"{prefix}allocated_ips", "gauge", f"{help_} allocated IPs for Services", ((_one("cidr", str(n)), k) for n, k in used.items())),
        family(f"{prefix}available_ips", "gauge", f"{help_} available IPs for Services", ((_one("cidr", str(n)), room[n] - k) for n, k in used.items())),
        family("kube_apiserver_nodeport_allocator_allocated_ports", "gauge", f"{help_} allocated NodePorts for Services", [((), ports)]),
        family("kube_apiserver_nodeport_allocator_available_ports", "gauge", f"{help_} available NodePorts for Services",
               [((), high - low + 1 - ports)])))


def _audit(server: Server) -> str:
    audit = server.audit
    return (family("apiserver_audit_event_total", "counter", "[ALPHA] Counter of audit events generated and sent to the audit backend.",
                   [((), audit.events if audit is not None else 0)])
            + family("apiserver_audit_error_total", "counter", "[ALPHA] Counter of audit events that failed to be audited properly. Plugin identifies "
                     "the plugin affected by the error.", [(_one("plugin", s.plugin), s.lost) for s in audit.sinks] if audit is not None else ()))


def _queues() -> str:
    """Those of the controllers that run in this process."""
    def each(what: str) -> Iterable[tuple[Any, float]]:
        return [(_one("name", name), len(q) if what == "depth" else getattr(q, what)) for name, q in sorted(NAMED.items())]
    return "".join((
        family("workqueue_adds_total", "counter", "[BETA] Total number of adds handled by workqueue", each("adds")),
        family("workqueue_depth", "gauge", "[BETA] Current depth of workqueue", each("depth")),
        family("workqueue_retries_total", "counter", "[BETA] Total number of retries handled by workqueue", each("retries"))))


def _process(started_s: float) -> str:
    own = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    received = sent = 0
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        numbers = line.partition(":")[2].split()
        received, sent = received + int(numbers[0]), sent + int(numbers[8])
    soft, virtual = resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_AS)[0]
    values = (
        ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", time.process_time()),
        ("process_max_fds", "gauge", "Maximum number of open file descriptors.", soft),
        ("process_network_receive_bytes_total", "counter", "Number of bytes received by the process over the network.", received),
        ("process_network_transmit_bytes_total", "counter", "Number of bytes sent by the process over the network.", sent),
        ("process_open_fds", "gauge", "Number of open file descriptors.", sum(1 for _ in Path("/proc/self/fd").iterdir())),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", int(own["VmRSS"].split()[0]) * 1024),
        ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", round(started_s, 2)),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", int(own["VmSize"].split()[0]) * 1024),
        ("process_virtual_memory_max_bytes", "gauge", "Maximum amount of virtual memory available in bytes.", float(virtual if virtual >= 0 else 1 << 64)))
    return "".join(family(name, type_, help_, [((), value)]) for name, type_, help_, value in values)
