"""Recorder: writes Events about objects; equal ones are counted, similar ones combined, floods dropped.

Numbers and words as client-go tools/record: identical events raise `count` of the first; from the tenth different message of the same
reason within ten minutes on they are combined; a source may write 25 events about an object and then one in five minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from kubern.client.client import Client
from kubern.model.intent import Emit
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.status import StatusError
from kubern.model.time import rfc3339

log = logging.getLogger(__name__)

CACHE_MAX = 4096
SIMILAR_MAX, SIMILAR_WINDOW_S = 10, 600.0
BURST, REFILL_PER_S = 25.0, 1 / 300
BACKLOG_MAX = 1000
EVENTS = Resource("", "v1", "events", "Event")
V = TypeVar("V")


class _Lru(Generic[V]):
    def __init__(self) -> None:
        self._table: OrderedDict[str, V] = OrderedDict()

    def get(self, key: str) -> V | None:
        found = self._table.get(key)
        if found is not None:
            self._table.move_to_end(key)
        return found

    def set(self, key: str, value: V) -> None:
        self._table[key] = value
        self._table.move_to_end(key)
        if len(self._table) > CACHE_MAX:
            self._table.popitem(last=False)


@dataclass(slots=True)
class _Similar:
    last_s: float
    messages: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Written:
    name: str
    first: str
    count: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


def reference(obj: Object) -> Object:
    """The involvedObject that points to an object (or to a dict with apiVersion, kind, metadata and perhaps fieldPath)."""
    meta = obj.get("metadata") or {}
    ref = {"kind": obj.get("kind"), "namespace": meta.get("namespace"), "name": meta.get("name"), "uid": meta.get("uid"),
           "apiVersion": obj.get("apiVersion"), "resourceVersion": meta.get("resourceVersion"), "fieldPath": obj.get("fieldPath")}
    return {k: v for k, v in ref.items() if v}


class Recorder:
    """`emit` never blocks; `run` writes. One recorder serves every component of a process."""

    def __init__(self, client: Client, clock: Callable[[], float], host: str = "") -> None:
        self.client, self.clock, self.host = client, clock, host
        self._queue: asyncio.Queue[tuple[Client, str, Emit, float]] = asyncio.Queue(BACKLOG_MAX)
        self._similar: _Lru[_Similar] = _Lru()
        self._written: _Lru[_Written] = _Lru()
        self._buckets: _Lru[_Bucket] = _Lru()
        self._last_ns = 0

    def emit(self, component: str, event: Emit, client: Client | None = None) -> None:
        try:
            self._queue.put_nowait((client or self.client, component, event, self.clock()))
        except asyncio.QueueFull:
            log.debug("event dropped: %s %s", event.reason, event.message)

    async def run(self) -> None:
        while True:
            client, component, event, at_s = await self._queue.get()
            try:
                await self._write(client, component, event, at_s)
            except StatusError as e:
                log.debug("event %s not written: %s", event.reason, e.message)
            except Exception:
                log.exception("writing an event")

    async def _write(self, client: Client, component: str, emit: Emit, at_s: float) -> None:
        ref = reference(emit.regarding)
        namespace = ref.get("namespace") or "default"
        source = {"component": component, **({"host": self.host} if self.host else {})}
        identity = "\0".join((component, self.host, ref.get("kind") or "", ref.get("namespace") or "", ref.get("name") or "",
                              ref.get("uid") or "", ref.get("apiVersion") or "", emit.type))
        key = "\0".join((identity, ref.get("fieldPath") or "", emit.reason, emit.message))
        message = emit.message
        similar_key = f"{identity}\0{emit.reason}"
        similar = self._similar.get(similar_key)
        if similar is None or at_s - similar.last_s > SIMILAR_WINDOW_S:
            similar = _Similar(at_s)
        similar.messages.add(message)
        similar.last_s = at_s
        self._similar.set(similar_key, similar)
        if len(similar.messages) >= SIMILAR_MAX:
            similar.messages.pop()
            key, message = similar_key, f"(combined from similar events): {message}"
        now = rfc3339(at_s)
        written = self._written.get(key)
        if written is not None:
            written.count += 1
            self._written.set(key, written)
        if not self._allowed(identity, at_s):
            return
        if written is not None:
            try:
                await client.patch(EVENTS, namespace, written.name, {"count": written.count, "lastTimestamp": now, "message": message},
                                   "strategic")
                return
            except StatusError as e:
                if e.code != 404:
                    raise
        self._last_ns = max(self._last_ns + 1, int(at_s * 1e9))
        name = f"{ref.get('name')}.{self._last_ns:x}"
        count, first = (written.count, written.first) if written else (1, now)
        body: dict[str, Any] = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace}, "involvedObject": ref,
            "reason": emit.reason, "message": message, "source": source, "firstTimestamp": first, "lastTimestamp": now, "count": count,
            "type": emit.type, "eventTime": None, "reportingComponent": component, "reportingInstance": self.host}
        self._written.set(key, _Written(name, first, count))
        await client.create_in(EVENTS, body, namespace=namespace)

    def _allowed(self, identity: str, at_s: float) -> bool:
        bucket = self._buckets.get(identity) or _Bucket(BURST, at_s)
        bucket.tokens = min(BURST, bucket.tokens + max(0.0, at_s - bucket.at_s) * REFILL_PER_S)
        bucket.at_s = at_s
        self._buckets.set(identity, bucket)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
