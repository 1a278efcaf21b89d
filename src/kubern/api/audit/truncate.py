"""Truncate: events that are too large for who takes them lose the objects they show; those that still are go nowhere.

Upstream: apiserver plugin/pkg/audit/truncate; the options --audit-{log,webhook}-truncate-*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from kubern.model.object import Object

if TYPE_CHECKING:
    from kubern.api.audit import Sink

MARK = "audit.k8s.io/truncated"


class Truncated:
    """A sink before which events are cut to `max_bytes` of JSON."""

    def __init__(self, sink: Sink, max_bytes: int = 102_400) -> None:
        self._sink, self.max_bytes = sink, max_bytes
        self.plugin = sink.plugin
        self._too_large = 0

    @property
    def lost(self) -> int:
        return self._sink.lost + self._too_large

    def put(self, event: Object, weight: int = 1024) -> None:
        """`weight`, roughly the size, tells which events need not be measured."""
        if weight > self.max_bytes // 4 and len(orjson.dumps(event)) > self.max_bytes:
            event = {k: v for k, v in event.items() if k not in ("requestObject", "responseObject")}
            event["annotations"] = {**(event.get("annotations") or {}), MARK: "true"}
            weight = len(orjson.dumps(event))
            if weight > self.max_bytes:
                self._too_large += 1
                return
        self._sink.put(event, weight)
