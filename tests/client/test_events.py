"""Recorder: equal events are counted, similar ones combined, floods dropped."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from kubern.client.client import Client
from kubern.client.events import Recorder
from kubern.model.intent import Emit
from kubern.model.request import Request, Response

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns", "uid": "u"}}


class Api:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.created: list[Any] = []
        self.patched: list[Any] = []

    async def send(self, request: Request) -> Response:
        body = orjson.loads(request.body)
        (self.created if request.method == "POST" else self.patched).append(body)
        return Response(201, [], request.body)


async def record(*events: tuple[str, str, float]) -> Api:
    """Emits (reason, message, at second)."""
    api, now = Api(), 0.0
    recorder = Recorder(Client(api.send), lambda: now)
    task = asyncio.create_task(recorder.run())
    for reason, message, at_s in events:
        now = 1e9 + at_s
        recorder.emit("tester", Emit(POD, "Normal", reason, message))
    for _ in range(20 * len(events)):
        await asyncio.sleep(0)
    task.cancel()
    return api


async def test_equal_events_are_counted() -> None:
    api = await record(("Made", "a pod", 0), ("Made", "a pod", 1), ("Made", "a pod", 2))
    assert len(api.created) == 1 and [p["count"] for p in api.patched] == [2, 3]
    event = api.created[0]
    assert event["involvedObject"] == {"kind": "Pod", "namespace": "ns", "name": "p", "uid": "u", "apiVersion": "v1"}
    assert event["source"] == {"component": "tester"} and event["type"] == "Normal" and event["metadata"]["namespace"] == "ns"


async def test_similar_events_are_combined() -> None:
    api = await record(*[("Made", f"pod {i}", i) for i in range(12)])
    assert [e["message"] for e in api.created[:9]] == [f"pod {i}" for i in range(9)]
    assert api.created[9]["message"] == "(combined from similar events): pod 9"
    assert [p["count"] for p in api.patched] == [2, 3]


async def test_not_similar_after_ten_minutes() -> None:
    api = await record(*[("Made", f"pod {i}", 700.0 * i) for i in range(12)])
    assert len(api.created) == 12 and not api.patched


async def test_floods_are_dropped() -> None:
    api = await record(*[("Made", "a pod", 0) for _ in range(40)])
    assert len(api.created) + len(api.patched) == 25
    api = await record(*[("Made", "a pod", 0) for _ in range(40)], ("Made", "a pod", 301))
    assert api.patched[-1]["count"] == 41                     # the dropped ones count
