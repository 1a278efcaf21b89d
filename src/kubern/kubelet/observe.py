"""What runs: the runtime's pods as Observed, kept fresh by its events and by relisting; whoever listens hears which pod changed.

In: a Runtime. Out: `seen(uid)`, and a call of `changed(uid)`. Details of a container are asked for once per state. A pod's termination
message is read here because it is part of how a container ended. Upstream: pkg/kubelet/pleg, kuberuntime toKubeContainerStatus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from kubern.kubelet.logs import tail_for_message
from kubern.kubelet.measure import Measures
from kubern.kubelet.runtime import EXITED, NOTHING, Container, Observed, Runtime, RuntimeFailure, Sandbox, observed

log = logging.getLogger(__name__)

RELIST_S = 1.0                      # without events
RELIST_WITH_EVENTS_S = 10.0
EVENTS_RETRY_S = 5.0
EVENT_DELAYS_S = (0.02, 0.25)
MESSAGE_BYTES_MAX = 4096
LOG_MESSAGE_BYTES_MAX, LOG_MESSAGE_LINES_MAX = 2048, 80


class Observer:
    def __init__(self, runtime: Runtime, changed: Callable[[str], None], measures: Measures | None = None) -> None:
        self.runtime, self.changed, self.measures = runtime, changed, measures or Measures()
        self._seen: dict[str, Observed] = {}
        self._owner: dict[str, str] = {}                 # container or sandbox id -> pod uid
        self._details: dict[str, Container] = {}         # container id -> as last asked for
        self._sandboxes: dict[str, Sandbox] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._due: set[str] = set()                      # pods a look is already planned for
        self._tasks: set[asyncio.Task[None]] = set()
        self.evented = False
        self.relisted = asyncio.Event()
        self.healthy_at = 0.0

    def seen(self, uid: str) -> Observed:
        return self._seen.get(uid, NOTHING)

    def pods(self) -> list[str]:
        return list(self._seen)

    def owner(self, id_: str) -> str:
        return self._owner.get(id_, "")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            while True:
                try:
                    with self.measures.relist.timed():
                        await self.relist()
                except RuntimeFailure as e:
                    log.warning("listing containers: %s", e)
                await asyncio.sleep(RELIST_WITH_EVENTS_S if self.evented else RELIST_S)

    async def _listen(self) -> None:
        while True:
            async for id_ in self.runtime.events():
                self.evented = True
                uid = self._owner.get(id_)
                if uid is not None and uid not in self._due:      # else of somebody else, or of a worker that looks itself
                    self._due.add(uid)
                    task = asyncio.create_task(self._look_after_event(uid))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            self.evented = False
            await asyncio.sleep(EVENTS_RETRY_S)

    async def _look_after_event(self, uid: str) -> None:
        """Twice: the runtime tells of an end a moment before it has written it down."""
        try:
            await asyncio.sleep(EVENT_DELAYS_S[0])
            self._due.discard(uid)
            for delay in (0.0, *EVENT_DELAYS_S[1:]):
                await asyncio.sleep(delay)
                await self.look(uid)
        except RuntimeFailure as e:
            log.debug("looking at pod %s: %s", uid, e)

    async def relist(self) -> None:
        sandboxes, containers = await self.runtime.sandboxes(), await self.runtime.containers()
        by_pod: dict[str, tuple[list[Sandbox], list[Container]]] = {}
        for s in sandboxes:
            by_pod.setdefault(s.uid, ([], []))[0].append(s)
        for c in containers:
            by_pod.setdefault(c.uid, ([], []))[1].append(c)
        for uid in [*by_pod, *(u for u in self._seen if u not in by_pod)]:
            if self._differs(uid, *by_pod.get(uid, ([], []))):
                await self.look(uid)
        now = asyncio.get_running_loop().time()
        if self.healthy_at:
            self.measures.interval.observe(now - self.healthy_at)
        self.healthy_at = now
        self.relisted.set()

    def _differs(self, uid: str, sandboxes: list[Sandbox], containers: list[Container]) -> bool:
        seen = self.seen(uid)
        return {(s.id, s.ready) for s in sandboxes} != {(s.id, s.ready) for s in seen.sandboxes} or \
            {(c.id, c.state) for c in containers} != {(c.id, c.state) for c in seen.containers}

    async def look(self, uid: str) -> Observed:
        """The pod as it is now. One look at a time, else an older answer could replace a newer one."""
        lock = self._locks.setdefault(uid, asyncio.Lock())
        async with lock:
            await self._update(uid, await self.runtime.sandboxes(uid), await self.runtime.containers(uid))
        if uid not in self._seen and not lock.locked():
            self._locks.pop(uid, None)
        return self.seen(uid)

    def forget(self, container_id: str) -> None:
        """Details of this container have to be asked for again."""
        self._details.pop(container_id, None)

    async def _update(self, uid: str, sandboxes: list[Sandbox], containers: list[Container]) -> None:
        fresh_s = [await self._sandbox(s) for s in sandboxes]
        fresh_c = [await self._container(c) for c in containers]
        now = observed([s for s in fresh_s if s], [c for c in fresh_c if c])
        before = self._seen.get(uid)
        if before == now:
            return
        if before is not None:
            gone = {*(s.id for s in before.sandboxes), *(c.id for c in before.containers)} - \
                {*(s.id for s in now.sandboxes), *(c.id for c in now.containers)}
            for id_ in gone:
                self._owner.pop(id_, None)
                self._details.pop(id_, None)
                self._sandboxes.pop(id_, None)
        if now.sandboxes or now.containers:
            self._seen[uid] = now
        else:
            self._seen.pop(uid, None)
        self.changed(uid)

    async def _sandbox(self, s: Sandbox) -> Sandbox | None:
        known = self._sandboxes.get(s.id)
        if known is not None and known.ready == s.ready and (known.ips or known.host_network or not s.ready):
            return known
        self._owner[s.id] = s.uid
        try:
            self._sandboxes[s.id] = full = await self.runtime.sandbox(s.id)
        except RuntimeFailure as e:
            if e.code == "NOT_FOUND":
                return None
            raise
        return full

    async def _container(self, c: Container) -> Container | None:
        known = self._details.get(c.id)
        if known is not None and known.state == c.state:
            return known
        self._owner[c.id] = c.uid
        try:
            full = await self.runtime.container(c.id)
        except RuntimeFailure as e:
            if e.code == "NOT_FOUND":
                return None
            raise
        full = replace(full, uid=c.uid, sandbox_id=c.sandbox_id)
        if full.state == EXITED:
            full = replace(full, message=await asyncio.to_thread(termination_message, full))
        self._details[c.id] = full
        return full


def termination_message(c: Container) -> str:
    """What the container left in its termination log, else (where its policy says so) the end of its log."""
    text = ""
    if c.termination_file:
        try:
            with open(c.termination_file, "rb") as f:
                text = f.read(MESSAGE_BYTES_MAX).decode(errors="replace")
        except OSError as e:
            text = f"Error on reading termination log {c.termination_file}: {e.strerror}"
    if not text and c.termination_policy == "FallbackToLogsOnError" and c.exit_code != 0 and c.log_path:
        text = tail_for_message(c.log_path, LOG_MESSAGE_LINES_MAX, LOG_MESSAGE_BYTES_MAX)
    if c.message and text:
        return f"{c.message}: {text}"[:MESSAGE_BYTES_MAX]
    return c.message or text
