"""Webhook: audit events in batches to a service outside, as EventLists, by the URL of a kubeconfig.

A batch goes when it is full or has waited long enough, not more often than the throttle allows. A service that is away is tried again with growing
pauses; then the batch is lost, as is what finds the buffer full. Requests never wait for it. Upstream's mode "batch"; "blocking" is not here,
since it would make every request depend on the service. Upstream: apiserver plugin/pkg/audit/{webhook,buffered}; the options --audit-webhook-*.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass

from kubern.api.admission.webhook_call import CallFailed
from kubern.api.remote import Remote
from kubern.model.object import Object

log = logging.getLogger(__name__)

BUFFER_BYTES_MAX = 64 * 1024 * 1024
CLOSE_S = 3.0                          # for what is left when the server stops


@dataclass(frozen=True, slots=True)
class Batching:
    """By upstream's names and with its defaults."""

    buffer_size: int = 10_000
    max_size: int = 400
    max_wait_s: float = 30.0
    throttle_qps: float = 10.0
    throttle_burst: int = 15


class WebhookSink:
    """Runs from its making until `close`; both in the loop."""

    plugin = "webhook"

    def __init__(self, remote: Remote, batching: Batching | None = None) -> None:
        self._remote, self._b = remote, batching or Batching()
        self.sent = self.lost = 0
        self._buffer: deque[tuple[Object, int]] = deque()
        self._bytes = 0
        self._due = asyncio.Event()                                  # a whole batch is there, or the end has come
        self._closing = False
        self._tokens, self._filled_s = float(self._b.throttle_burst), asyncio.get_running_loop().time()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="audit webhook")

    def put(self, event: Object, weight: int = 1024) -> None:
        if len(self._buffer) >= self._b.buffer_size or self._bytes > BUFFER_BYTES_MAX or self._closing:
            self.lost += 1
            return
        self._buffer.append((event, weight))
        self._bytes += weight
        if len(self._buffer) >= self._b.max_size:
            self._due.set()

    async def close(self) -> None:
        """Sends what is there, as far as it goes in a moment."""
        self._closing = True
        self._due.set()
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(self._task, CLOSE_S)
        self.lost += len(self._buffer)
        await self._remote.close()

    async def _run(self) -> None:
        while not self._closing or self._buffer:
            if not self._closing and len(self._buffer) < self._b.max_size:
                self._due.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), self._b.max_wait_s)
            if self._buffer:
                await self._may_send()
                await self._send()

    async def _may_send(self) -> None:
        if self._b.throttle_qps <= 0:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._tokens = min(float(self._b.throttle_burst), self._tokens + (now - self._filled_s) * self._b.throttle_qps)
        self._filled_s = now
        if self._tokens < 1:
            await asyncio.sleep((1 - self._tokens) / self._b.throttle_qps)
        self._tokens -= 1

    async def _send(self) -> None:
        batch = [self._buffer.popleft() for _ in range(min(len(self._buffer), self._b.max_size))]
        self._bytes -= sum(weight for _, weight in batch)
        try:
            await self._remote.post({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": [event for event, _ in batch]},
                                    answered=False)
            self.sent += len(batch)
        except CallFailed as e:
            self.lost += len(batch)
            log.error("audit events are lost, %d so far: %s", self.lost, e)
