"""The scheduler's shell: mirrors feed the state, decisions become bindings (bind.py), refusals conditions and events (refuse.py).

Nothing is decided here. One pod is decided at a time against a table that already holds every earlier decision (assumed), while up to
BINDINGS_MAX bindings are on their way; a refused one is taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as _random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.model.object import Object
from kubern.scheduler.bind import Binder
from kubern.scheduler.claims import DynamicResources
from kubern.scheduler.events import Speaker
from kubern.scheduler.extenders import PLUGIN, Extender, ExtenderFailed
from kubern.scheduler.pick import Decision, Extra, Rejection, best, feasible, pick
from kubern.scheduler.plain import Plain
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.profile import STANDARD, Configuration
from kubern.scheduler.queue import Queued
from kubern.scheduler.refuse import Refusals
from kubern.scheduler.state import READS, State
from kubern.scheduler.why import why

log = logging.getLogger(__name__)

BINDINGS_MAX = 128
SLICE_S = 0.004                      # decide for so long before letting others run
LEFTOVERS_S = 30.0
Work = Coroutine[Any, Any, None]


class Scheduler:
    """`random(n)` gives 0..n-1, `clock()` seconds."""

    def __init__(self, client: Client, mirrors: Mirrors, clock: Callable[[], float], random: Callable[[int], int] | None = None,
                 configuration: Configuration = STANDARD) -> None:
        self.clock = clock
        self.random = random or _random.SystemRandom().randrange
        self.state = State(mirrors, clock, configuration)
        self.plain = Plain(self.state.table)
        self.speaker = Speaker(client, clock, socket.gethostname())
        self.extenders = [Extender(spec) for spec in configuration.extenders]
        self.refusals = Refusals(self.state, client, self.speaker, self.extenders, self.random)
        self.binder = Binder(self.state, client, self.speaker, self.extenders, self.refusals.failed)
        self.slots = asyncio.Semaphore(BINDINGS_MAX)
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, ready: Callable[[], Any] | None = None) -> None:
        """Until cancelled."""
        self.state.follow()
        await self.state.mirrors.synced(READS)
        if ready is not None:
            ready()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.speaker.run(), name="scheduler events")
                group.create_task(self._leftovers(), name="scheduler leftovers")
                group.create_task(self.refusals.run(), name="scheduler refusals")
                await self._loop()
        finally:
            for task in self.tasks:                    # a binding must not outlive the lease it was decided under
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _leftovers(self) -> None:
        while True:
            await asyncio.sleep(LEFTOVERS_S)
            self.state.queue.leftovers(self.clock())
            self.state.wake.set()

    async def _loop(self) -> None:
        loop, queue = asyncio.get_running_loop(), self.state.queue
        until = loop.time() + SLICE_S
        while True:
            queued = queue.pop(self.clock())
            if queued is None:
                self.state.wake.clear()
                await self._woken()
                until = loop.time() + SLICE_S
                continue
            await self.slots.acquire()
            try:
                concerned = [e for e in self.extenders if e.concerns(queued.info)]
                work = await self._extended(queued, concerned) if concerned else self.schedule(queued)
            except Exception:
                log.exception("scheduling %s/%s", *queued.info.key)
                queue.retry(queued, self.clock())
                self.slots.release()
            else:
                running = loop.create_task(work)
                self.tasks.add(running)
                running.add_done_callback(self._done)
            if loop.time() >= until:
                await asyncio.sleep(0)
                until = loop.time() + SLICE_S

    async def _woken(self) -> None:
        """Until something changes, or a back-off ends."""
        due_s = self.state.queue.next_s()
        if due_s is None:
            await self.state.wake.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, due_s - self.clock())):
                await self.state.wake.wait()

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("carrying a decision out failed", exc_info=task.exception())

    def schedule(self, queued: Queued) -> Work:
        """Decide one pod; the coroutine that carries the decision out."""
        p, table = queued.info, self.state.table
        extra = self.state.extra_for(p)
        decision: Decision | Rejection = self.plain.pick(p, extra, self.random) or pick(p, table, self.random, extra)
        return self._carry_out(queued, decision, extra)

    def _carry_out(self, queued: Queued, decision: Decision | Rejection, extra: Extra) -> Work:
        if isinstance(decision, Decision):
            return self.binder.assume(queued, decision)            # type: ignore[no-any-return]
        return self.refusals.refused(queued, queued.info, decision, extra)

    async def _extended(self, queued: Queued, extenders: list[Extender]) -> Work:
        """The same with extenders asked; nobody else is decided meanwhile."""
        p, table = queued.info, self.state.table
        extra = self.state.extra_for(p)
        ok, rejection = feasible(p, table, extra)
        try:
            for e in extenders:
                if e.spec.filter_verb and ok.any():
                    await self._filtered(e, p, ok, rejection)
        except ExtenderFailed as failed:
            return self.refusals.failed(queued, p, str(failed))
        more = np.zeros(len(ok), np.int64)
        for e in extenders:
            if e.spec.prioritize_verb and np.count_nonzero(ok) > 1:
                with contextlib.suppress(ExtenderFailed):          # its scores are left out then, as upstream does
                    for node, score in (await e.scores(p, self._nodes(ok))).items():
                        slot = table.slots.get(node, -1)
                        if 0 <= slot < len(more):
                            more[slot] += score
        still = np.zeros(table.size, bool)                         # nodes may have gone while the extenders thought
        still[:len(ok)] = ok & table.live[:len(ok)]
        if not still.any():
            return await self.refusals.refused_by_all(queued, p, rejection, extra)
        grown = np.zeros(table.size, np.int64)
        grown[:len(more)] = more
        return self._carry_out(queued, best(p, table, still, extra, self.random, grown), extra)

    def _nodes(self, ok: np.ndarray) -> list[Object]:
        return [n for s in np.nonzero(ok)[0] if (n := self.state.table.nodes[s]) is not None]

    async def _filtered(self, extender: Extender, p: PodInfo, ok: np.ndarray, rejection: Rejection) -> None:
        """Takes out of `ok` what the extender does not want, and counts its reasons."""
        try:
            left, failed, hopeless = await extender.filter(p, self._nodes(ok))
        except ExtenderFailed:
            if not extender.spec.ignorable:
                raise
            return
        names = self.state.table.names
        for slot in np.nonzero(ok)[0]:
            node = names[slot]
            if node in left:
                continue
            ok[slot] = False
            reason = hopeless.get(node) or failed.get(node)
            if reason:
                rejection.reasons[reason] = rejection.reasons.get(reason, 0) + 1
            if rejection.candidates is not None and slot < len(rejection.candidates):
                rejection.candidates[slot] = node not in hopeless
            rejection.plugins.add(PLUGIN)

    def why(self, namespace: str, name: str) -> dict[str, Any] | None:
        """What keeps a pod from being placed, in detail (why.py); None if there is no such pod."""
        pod = self.state.mirrors.get("pods", namespace, name)
        if pod is None:
            return None
        node = (pod.get("spec") or {}).get("nodeName")
        if node:
            return {"nodes": self.state.table.count, "fits": [node], "reasons": [], "fixes": [], "text": f"{namespace}/{name} runs on {node}"}
        gates = [g.get("name") for g in (pod.get("spec") or {}).get("schedulingGates") or ()]
        if gates:
            return {"nodes": self.state.table.count, "fits": [], "reasons": [], "fixes": [],
                    "text": f"{namespace}/{name} is held back by its scheduling gates {', '.join(gates)}"}
        devices = DynamicResources(self.state.mirrors, dict(self.state.allocating), self.clock)
        return why(pod_info(pod), self.state.table, lambda p: self.state.extra_for(p, devices))
