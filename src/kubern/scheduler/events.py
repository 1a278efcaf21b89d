"""Events of the scheduler, in the events.k8s.io form with an action; equal ones become a series. KEP-383.

`say` never blocks: writing is a background task with a bounded backlog, and what does not fit is dropped, as upstream's broadcaster does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from kubern.client.client import Client
from kubern.model.object import Object, meta
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.model.time import micro

log = logging.getLogger(__name__)

BACKLOG_MAX = 20_000
WRITERS = 16                            # of which a commit takes many at once: the sync of the disk is most of what an event costs alone
BUSY_S = 0.002                          # a turn of the loop that takes longer has other work to do
PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.3)  # how telling waits for a quieter moment, and no longer
SERIES_MAX, SERIES_S = 4096, 360.0
ROW = by_kind[("events.k8s.io/v1", "Event")]
CONTROLLER = "default-scheduler"


async def quiet() -> None:
    """Lets placing pods and answering clients go before: returns at a quiet moment, or after a while anyhow."""
    loop = asyncio.get_running_loop()
    for pause in PAUSES_S:
        at = loop.time()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if loop.time() - at < BUSY_S:
            return
        await asyncio.sleep(pause)


class Speaker:
    def __init__(self, client: Client, clock: Callable[[], float], host: str) -> None:
        self.client, self.clock = client, clock
        self.instance = f"{CONTROLLER}-{host}"
        self._queue: asyncio.Queue[tuple[Object, Object | None, str, str, str, str, float]] = asyncio.Queue(BACKLOG_MAX)
        self._series: OrderedDict[tuple[str, ...], tuple[str, int, float]] = OrderedDict()
        self._last_ns = 0

    def say(self, regarding: Object, type_: str, reason: str, action: str, note: str, related: Object | None = None) -> None:
        try:
            self._queue.put_nowait((regarding, related, type_, reason, action, note, self.clock()))
        except asyncio.QueueFull:
            log.debug("event dropped: %s %s", reason, note)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write_all())

    async def _write_all(self) -> None:
        while True:
            item = await self._queue.get()
            await quiet()
            try:
                await self._write(*item)
            except StatusError as e:
                log.debug("event not written: %s", e.message)

    async def _write(self, regarding: Object, related: Object | None, type_: str, reason: str, action: str, note: str, at_s: float) -> None:
        m = meta(regarding)
        namespace = m.get("namespace") or "default"
        key = (m.get("uid") or "", type_, reason, action, note)
        before = self._series.get(key)
        if before and at_s - before[2] < SERIES_S:
            name, count, _ = before
            self._series[key] = (name, count + 1, at_s)
            try:
                await self.client.patch(ROW, namespace, name, {"series": {"count": count + 1, "lastObservedTime": micro(at_s)}})
                return
            except StatusError as e:
                if e.code != 404:
                    raise
        self._last_ns = max(self._last_ns + 1, int(at_s * 1e9))
        name = f"{m.get('name')}.{self._last_ns:x}"
        self._series[key] = (name, 1, at_s)
        if len(self._series) > SERIES_MAX:
            self._series.popitem(last=False)
        speaker = _spoken_for(related) or _spoken_for(regarding) or CONTROLLER
        event: Object = {
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace}, "eventTime": micro(at_s),
            "reportingController": speaker,
            "reportingInstance": self.instance.replace(CONTROLLER, speaker, 1), "action": action, "reason": reason, "type": type_,
            "note": note[:1024], "regarding": _reference(regarding)}
        if related is not None:
            event["related"] = _reference(related)
        await self.client.create_in(ROW, event, namespace=namespace)


def _spoken_for(pod: Object | None) -> str:
    """The profile a pod asked for: each speaks in its own name."""
    return ((pod or {}).get("spec") or {}).get("schedulerName") or ""


def _reference(obj: Object) -> Object:
    m = meta(obj)
    ref = {"kind": obj.get("kind"), "namespace": m.get("namespace"), "name": m.get("name"), "uid": m.get("uid"),
           "apiVersion": obj.get("apiVersion"), "resourceVersion": m.get("resourceVersion")}
    return {k: v for k, v in ref.items() if v}
