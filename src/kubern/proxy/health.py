"""Health: the small HTTP servers of a proxy: healthCheckNodePort of services with the Local policy, its own /healthz and /livez, and on loopback
/proxyMode and /metrics.

A load balancer asks a node's healthCheckNodePort, or for all other services /healthz, and sends traffic only where the answer is 200; a node that
is about to go says 503 there, not so at /livez (KEP-3836). Bodies and ports: upstream's pkg/proxy/healthcheck and cmd/kube-proxy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

import orjson

from kubern.model.time import rfc3339

log = logging.getLogger(__name__)

PROXY_PORT, STATUS_PORT = 10256, 10249
REQUEST_S = 5.0
REQUEST_BYTES_MAX = 8192
Answer = Callable[[str], tuple[int, bytes]]


class Check(NamedTuple):
    namespace: str
    name: str
    endpoints: int


def service_answer(c: Check) -> tuple[int, bytes]:
    """(status, body) for a service with so many ready endpoints on this node."""
    body = {"service": {"namespace": c.namespace, "name": c.name}, "localEndpoints": c.endpoints, "serviceProxyHealthy": True}
    return (200 if c.endpoints else 503), orjson.dumps(body)


@dataclass(slots=True)
class Figures:
    """What the proxy did, and how it is."""

    full: int = 0                         # the whole was written
    changes: int = 0
    last_s: float = 0.0
    spent_s: float = 0.0
    services: int = 0
    written_at_s: float = 0.0             # by the clock of the world
    healthy: bool = False                 # the kernel has what it should have
    eligible: bool = True                 # the node stays


def own_answer(path: str, f: Figures, now_s: float) -> tuple[int, bytes]:
    """/healthz and /livez."""
    body: dict[str, object] = {"lastUpdated": rfc3339(now_s if f.healthy else f.written_at_s), "currentTime": rfc3339(now_s), "healthy": f.healthy}
    if path == "/livez":
        return 200 if f.healthy else 503, orjson.dumps(body)
    if path != "/healthz":
        return 404, b"404 page not found\n"
    return 200 if f.healthy and f.eligible else 503, orjson.dumps({**body, "nodeEligible": f.eligible})


def status_answer(path: str, f: Figures) -> tuple[int, bytes]:
    """What is asked on loopback."""
    match path:
        case "/proxyMode":
            return 200, b"nftables"
        case "/healthz":
            return 200, b"ok"
        case "/metrics":
            return 200, _METRICS.format(f).encode()
    return 404, b"404 page not found\n"


_METRICS = """# HELP kubeproxy_sync_proxy_rules_duration_seconds [ALPHA] SyncProxyRules latency in seconds
# TYPE kubeproxy_sync_proxy_rules_duration_seconds summary
kubeproxy_sync_proxy_rules_duration_seconds_sum {0.spent_s}
kubeproxy_sync_proxy_rules_duration_seconds_count {0.changes}
# HELP kubeproxy_sync_proxy_rules_last_timestamp_seconds [ALPHA] The last time proxy rules were successfully synced
# TYPE kubeproxy_sync_proxy_rules_last_timestamp_seconds gauge
kubeproxy_sync_proxy_rules_last_timestamp_seconds {0.written_at_s}
# HELP kubern_proxy_whole_tables_total How often the whole was written
# TYPE kubern_proxy_whole_tables_total counter
kubern_proxy_whole_tables_total {0.full}
# HELP kubern_proxy_services Services the node knows
# TYPE kubern_proxy_services gauge
kubern_proxy_services {0.services}
"""


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
    try:
        async with asyncio.timeout(REQUEST_S):
            line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        status, body = answer(line[1] if len(line) == 3 else "/")
        kind = "application/json" if body.startswith(b"{") else "text/plain; charset=utf-8"
        head = (f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n"
                f"X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n")
        writer.write(head.encode() + body)
        await writer.drain()
    except (ConnectionError, TimeoutError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


class HealthServers:
    """One listening socket per port in use; `set` opens and closes them."""

    def __init__(self, host: str | None = None) -> None:
        self._host = host
        self._checks: dict[int, Check] = {}
        self._servers: dict[int, asyncio.Server] = {}
        self._always: dict[int, asyncio.Server] = {}

    async def set(self, checks: Mapping[int, Check]) -> None:
        self._checks = dict(checks)
        for port in [p for p in self._servers if p not in checks]:
            self._servers.pop(port).close()
        for port in checks:
            if port not in self._servers:
                await self._open(port, lambda path, port=port: service_answer(self._checks[port]), self._servers)  # type: ignore[misc]

    async def own(self, figures: Figures) -> None:
        """The proxy's own ports."""
        await self._open(PROXY_PORT, lambda path: own_answer(path, figures, time.time()), self._always)
        await self._open(STATUS_PORT, lambda path: status_answer(path, figures), self._always, "127.0.0.1")

    async def _open(self, port: int, answer: Answer, servers: dict[int, asyncio.Server], host: str | None = None) -> None:
        try:
            servers[port] = await asyncio.start_server(lambda r, w: _serve(r, w, answer), host or self._host, port, limit=REQUEST_BYTES_MAX)
        except OSError as e:
            log.warning("cannot answer health checks on port %d: %s", port, e)

    def close(self) -> None:
        for s in (*self._servers.values(), *self._always.values()):
            s.close()
        self._servers.clear()
