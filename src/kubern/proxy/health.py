"""Health: the small HTTP servers of a proxy: healthCheckNodePort of services with the Local policy, and the proxy's own /healthz.

A load balancer asks a node's healthCheckNodePort and sends traffic only where the answer is 200. Body: upstream's
pkg/proxy/healthcheck.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import orjson

log = logging.getLogger(__name__)

PROXY_PORT = 10256
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


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
    try:
        async with asyncio.timeout(REQUEST_S):
            line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        status, body = answer(line[1] if len(line) == 3 else "/")
        head = (f"HTTP/1.1 {status} {'OK' if status == 200 else 'Service Unavailable'}\r\nContent-Type: application/json\r\n"
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

    async def set(self, checks: Mapping[int, Check]) -> None:
        self._checks = dict(checks)
        for port in [p for p in self._servers if p not in checks]:
            self._servers.pop(port).close()
        for port in checks:
            if port not in self._servers:
                await self._open(port, lambda path, port=port: service_answer(self._checks[port]))  # type: ignore[misc]

    async def own(self, healthy: Callable[[], bool], port: int = PROXY_PORT) -> None:
        await self._open(port, lambda path: (200 if healthy() else 503, b'{"healthy": %s}' % (b"true" if healthy() else b"false")))

    async def _open(self, port: int, answer: Answer) -> None:
        try:
            self._servers[port] = await asyncio.start_server(lambda r, w: _serve(r, w, answer), self._host, port, limit=REQUEST_BYTES_MAX)
        except OSError as e:
            log.warning("cannot answer health checks on port %d: %s", port, e)

    def close(self) -> None:
        for s in self._servers.values():
            s.close()
        self._servers.clear()
