"""Refusals: what becomes of a pod that no node will take. Whom to evict, what to say, where it waits. What is decided is decided in preempt.py.

Refusals are told in conditions and events at a bounded rate, the newest of each pod: when thousands wait, telling must not slow placing down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from kubern.client.client import Client
from kubern.model.object import Object, condition, deleting, meta, name, notes
from kubern.model.status import StatusError
from kubern.model.time import rfc3339
from kubern.scheduler import claims, extended
from kubern.scheduler.bind import POD
from kubern.scheduler.events import Speaker, quiet
from kubern.scheduler.extenders import Extender, ExtenderFailed
from kubern.scheduler.pick import Extra, Rejection
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.preempt import DryRuns, NoHelp, Victims, hurt, preempt
from kubern.scheduler.profile import DEFAULT
from kubern.scheduler.queue import Queued
from kubern.scheduler.state import State

log = logging.getLogger(__name__)

REPORTS_PER_S, REPORTS_BURST = 100.0, 200
NO_CLAIMS = "no new claims to deallocate"
NO_NODES = "no nodes available to schedule pods"
Work = Coroutine[Any, Any, None]
Found = list[Victims] | NoHelp | Object | None               # nodes with victims, why there are none, or a claim to give up first


class Refusals:
    """`run` tells; `refused` is called for each pod without a node."""

    def __init__(self, state: State, client: Client, speaker: Speaker, extenders: list[Extender], random: Callable[[int], int]) -> None:
        self.state, self.client, self.speaker, self.random = state, client, speaker, random
        self.extenders = [e for e in extenders if e.spec.preempt_verb]
        self.untold: dict[tuple[str, str], tuple[PodInfo, str]] = {}        # to be told, the newest of each pod
        self.telling = asyncio.Event()
        self.runs = DryRuns()

    def refused(self, queued: Queued, p: PodInfo, rejection: Rejection, extra: Extra) -> Work:
        """Looks for victims and promises their room at once, while the plugins still know this pod; the coroutine that does the rest."""
        return self._settled(queued, p, rejection, self._looked(p, rejection, extra))

    async def refused_by_all(self, queued: Queued, p: PodInfo, rejection: Rejection, extra: Extra) -> Work:
        """The same with extenders asked about the victims; nobody else is decided meanwhile."""
        found = self._looked(p, rejection, extra)
        if isinstance(found, list):
            try:
                found = await self._heard(p, found) or None
            except ExtenderFailed as e:
                found = NoHelp(str(e), waits=True)
        return self._settled(queued, p, rejection, found)

    def _looked(self, p: PodInfo, rejection: Rejection, extra: Extra) -> Found:
        known = not rejection.message or rejection.plugins == {"DynamicResources"}       # else the device plugin knows nothing of the pod
        if not rejection.total or not known or (extra.profile is not None and not extra.profile.preempts):
            return None
        claim = self._in_the_way(p)
        if claim is not None:
            return claim
        return preempt(p, self.state.table, rejection, self.state.mirrors.list("poddisruptionbudgets.policy"), extra, self.random, self.runs)

    def _settled(self, queued: Queued, p: PodInfo, rejection: Rejection, found: Found) -> Work:
        """Promises and takes back room; what is left to do needs the API."""
        nominated = self.state.nominated
        if isinstance(found, list):
            best = found[0]
            lesser = [q for q in nominated.on(best.node) if q.priority < p.priority]      # may not fit any more: free to go elsewhere
            for q in lesser:
                nominated.drop(q.key)
            nominated.set(p, best.node)
            return self._preempt(queued, p, rejection, best, lesser)
        keeps = (isinstance(found, NoHelp) and found.waits) or isinstance(found, dict) or bool(found is None and rejection.total and rejection.message)
        dropped = not keeps and bool(nominated.drop(p.key) or (p.pod.get("status") or {}).get("nominatedNodeName"))
        return self._refuse(queued, p, rejection, found, dropped)

    def _in_the_way(self, p: PodInfo) -> Object | None:
        """A claim that keeps the pod from being placed and that nobody else uses: it is given up before anybody is evicted."""
        if not (p.claims or p.backed):
            return None
        devices = self.state.devices
        return devices.stale or next((c for c in devices.unavailable if all(
            r.get("uid") == p.uid for r in (c.get("status") or {}).get("reservedFor") or ())), None)

    async def _preempt(self, queued: Queued, p: PodInfo, rejection: Rejection, best: Victims, lesser: list[PodInfo]) -> None:
        """Evicts; the pod waits for its victims to be gone, or tries again soon where they could not be evicted."""
        state, text = self.state, rejection.text()
        for q in lesser:
            await self._patch(q, {"nominatedNodeName": None})
        done = await self._evict(p, best)
        if done:
            state.queue.park(queued, rejection.plugins, state.clock())
        else:
            state.queue.retry(queued, state.clock())
        state.wake.set()
        self.untold.pop(p.key, None)
        self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
        await self._condition(p, text, {"nominatedNodeName": best.node})

    async def _refuse(self, queued: Queued, p: PodInfo, rejection: Rejection, found: Found, dropped: bool) -> None:
        state, tail = self.state, ""
        if isinstance(found, dict):
            tail = await self._give_up(found) + "."
        elif isinstance(found, NoHelp):
            known = (p.claims or p.backed) and not rejection.message
            tail = f"{'still not schedulable' if known else NO_CLAIMS}, preemption: {found.message}"
        elif rejection.message:
            tail = "not found"                                          # upstream's device plugin has no state then, and says so
        text = rejection.text(tail) if rejection.total else NO_NODES
        state.queue.park(queued, rejection.plugins or {"NodeAdded"}, state.clock())
        state.wake.set()
        if dropped:
            self.untold.pop(p.key, None)
            self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
            await self._condition(p, text, {"nominatedNodeName": None})
        else:
            self.untold[p.key] = (p, text)
            self.telling.set()

    async def failed(self, queued: Queued, p: PodInfo, text: str, reason: str = "SchedulerError") -> None:
        """Deciding itself or binding went wrong: said, and tried again after the back-off, wherever that may be."""
        self.state.queue.retry(queued, self.state.clock())
        self.state.wake.set()
        self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
        nominated = self.state.nominated.drop(p.key) or (p.pod.get("status") or {}).get("nominatedNodeName")
        await self._condition(p, text, {"nominatedNodeName": None} if nominated else {}, reason)

    async def _heard(self, p: PodInfo, found: list[Victims]) -> list[Victims]:
        """What extenders leave of it, the least harm first."""
        for e in self.extenders:
            if not e.concerns(p):
                continue
            try:
                found = await e.victims(p, found)
            except ExtenderFailed:
                if not e.spec.ignorable:
                    raise
        return sorted((v for v in found if v.pods), key=hurt)

    async def _give_up(self, claim: Object) -> str:
        """Free the claim's devices; what upstream says of it."""
        row, m = self.state.mirrors.rows[claims.CLAIMS], meta(claim)
        made = notes(claim).get(extended.ANNOTATION) == "true"
        try:
            if made:
                await self.client.patch(row, m["namespace"], m["name"], {"metadata": {"uid": m["uid"], "finalizers": None}})
                await self.client.delete(row, m["namespace"], m["name"], uid=m["uid"])
                return "deletion of ResourceClaim completed"
            await self.client.patch(row, m["namespace"], m["name"], {"metadata": {"resourceVersion": m["resourceVersion"]}, "status": {
                "allocation": None, "reservedFor": None, "devices": None}}, subresource="status")
        except StatusError as e:
            log.info("claim %s/%s: %s", m["namespace"], name(claim), e.message)
            return e.message
        return "deallocation of ResourceClaim completed"

    async def run(self) -> None:
        """Write refusals as conditions and events, at a bounded rate."""
        tokens, at = float(REPORTS_BURST), self.state.clock()
        while True:
            if not self.untold:
                self.telling.clear()
                await self.telling.wait()
            now = self.state.clock()
            tokens, at = min(REPORTS_BURST, tokens + max(0.0, now - at) * REPORTS_PER_S), now
            if tokens < 1:
                await asyncio.sleep((1 - tokens) / REPORTS_PER_S)
                continue
            tokens -= 1
            await quiet()
            key = next(iter(self.untold), None)
            if key is None:
                continue
            p, text = self.untold.pop(key)
            if key in self.state.queue.pods:                       # else it has been placed or deleted meanwhile
                self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
                await self._condition(p, text, {})

    async def _condition(self, p: PodInfo, text: str, patch: Object, reason: str = "Unschedulable") -> None:
        """PodScheduled=False beside what else of the status is to be changed."""
        old = condition(p.pod, "PodScheduled") or {}
        if (old.get("status"), old.get("reason"), old.get("message")) != ("False", reason, text):
            at = old.get("lastTransitionTime") if old.get("status") == "False" else None
            patch = {**patch, "conditions": [self._made(p, "PodScheduled", "False", reason, text, at)]}
        if patch:
            await self._patch(p, patch)

    def _made(self, p: PodInfo, type_: str, status: str, reason: str, message: str, since: str | None = None) -> Object:
        generation = meta(p.pod).get("generation")
        return {"type": type_, "status": status, "reason": reason, "message": message, "lastProbeTime": None,
                "lastTransitionTime": since or rfc3339(self.state.clock()), **({"observedGeneration": generation} if generation else {})}

    async def _patch(self, p: PodInfo, status: Object) -> bool:
        """Changes a pod's status; False where that failed though the pod may be there."""
        try:
            await self.client.patch(POD, p.namespace, p.name, {"metadata": {"uid": p.uid}, "status": status}, "strategic", subresource="status")
        except StatusError as e:
            if e.code not in (404, 409):
                log.warning("status of %s/%s: %s", p.namespace, p.name, e.message)
                return False
        return True

    async def _evict(self, p: PodInfo, found: Victims) -> bool:
        """Delete the victims, with the condition and the event that say why. False: somebody could not be evicted."""
        return all(await asyncio.gather(*(self._evict_one(p, v, found.node) for v in found.pods if not deleting(v.pod))))

    async def _evict_one(self, p: PodInfo, v: PodInfo, node: str) -> bool:
        message = f"{p.spec.get('schedulerName', DEFAULT)}: preempting to accommodate a higher priority pod"
        target = self._made(v, "DisruptionTarget", "True", "PreemptionByScheduler", message)
        order = [{"type": c["type"]} for c in (v.pod.get("status") or {}).get("conditions") or () if c["type"] != target["type"]]
        if not await self._patch(v, {"conditions": [target], "$setElementOrder/conditions": [*order, {"type": target["type"]}]}):
            return False
        try:
            await self.client.delete(POD, v.namespace, v.name, uid=v.uid)
        except StatusError as e:
            if e.code in (404, 409):
                return True
            log.warning("preempting %s/%s: %s", v.namespace, v.name, e.message)
            return False
        self.speaker.say(v.pod, "Normal", "Preempted", "Preempting", f"Preempted by pod {p.uid} on node {node}", p.pod)
        return True
