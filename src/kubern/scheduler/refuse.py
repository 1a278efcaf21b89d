"""Refusals: what becomes of a pod that no node will take. Whom to evict, what to say, where it waits. What is decided is decided in preempt.py.

Refusals are told in conditions and events at a bounded rate, the newest of each pod: when thousands wait, telling must not slow placing down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from kubern.client.client import Client
from kubern.model.object import Object, deleting, meta, name, notes
from kubern.model.status import StatusError
from kubern.model.time import rfc3339
from kubern.scheduler import claims, extended
from kubern.scheduler.bind import POD
from kubern.scheduler.events import Speaker, quiet
from kubern.scheduler.extenders import Extender, ExtenderFailed
from kubern.scheduler.pick import Extra, Rejection
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.preempt import NoHelp, Victims, hurt, preempt
from kubern.scheduler.profile import DEFAULT
from kubern.scheduler.queue import Queued
from kubern.scheduler.state import State

log = logging.getLogger(__name__)

REPORTS_PER_S, REPORTS_BURST = 100.0, 200
NO_CLAIMS = "no new claims to deallocate"
NO_NODES = "no nodes available to schedule pods"


class Refusals:
    """`run` tells; `refused` is called for each pod without a node."""

    def __init__(self, state: State, client: Client, speaker: Speaker, extenders: list[Extender], random: Callable[[int], int]) -> None:
        self.state, self.client, self.speaker, self.random = state, client, speaker, random
        self.extenders = [e for e in extenders if e.spec.preempt_verb]
        self.untold: dict[tuple[str, str], tuple[PodInfo, str]] = {}        # to be told, the newest of each pod
        self.telling = asyncio.Event()

    def refused(self, queued: Queued, p: PodInfo, rejection: Rejection, extra: Extra) -> Any:
        """Looks for victims at once, while the plugins still know this pod; the coroutine that does the rest."""
        found: list[Victims] | NoHelp | None = None
        claim: Object | None = None
        told = not rejection.message or rejection.plugins == {"DynamicResources"}       # else the device plugin knows nothing of the pod
        if rejection.total and told and (extra.profile is None or extra.profile.preempts):
            claim = self._in_the_way(p)
            if claim is None:
                found = preempt(p, self.state.table, rejection, self.state.mirrors.list("poddisruptionbudgets.policy"), extra, self.random)
        return self._carry_out(queued, p, rejection, found, claim)

    def _in_the_way(self, p: PodInfo) -> Object | None:
        """A claim that keeps the pod from being placed and that nobody else uses: it is given up before anybody is evicted."""
        if not (p.claims or p.backed):
            return None
        devices = self.state.devices
        return devices.stale or next((c for c in devices.unavailable if all(
            r.get("uid") == p.uid for r in (c.get("status") or {}).get("reservedFor") or ())), None)

    async def _carry_out(self, queued: Queued, p: PodInfo, rejection: Rejection, found: list[Victims] | NoHelp | None, claim: Object | None) -> None:
        state, now = self.state, self.state.clock()
        tail, nominate, plugins = "", "", rejection.plugins
        if claim is not None:
            tail = await self._give_up(claim) + "."
        elif isinstance(found, NoHelp):
            known = (p.claims or p.backed) and not rejection.message
            tail = f"{'still not schedulable' if known else NO_CLAIMS}, preemption: {found.message}"
        elif found:
            try:
                best = await self._heard(p, found)
            except ExtenderFailed as e:
                best, tail = None, f"preemption: {e}"
            if best is not None:
                nominate, plugins = best.node, plugins | {"Preemption"}
                state.nominated[p.key] = (nominate, p)
                await self._evict(p, best)
        elif rejection.message:
            tail = "not found"                                          # upstream's device plugin has no state then, and says so
        text = rejection.text(tail) if rejection.total else NO_NODES
        if not nominate and state.nominated.pop(p.key, None) is not None:
            nominate = "-"
        state.queue.park(queued, plugins or {"NodeAdded"}, now)
        state.wake.set()
        if nominate:
            self.untold.pop(p.key, None)
            self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
            await self._condition(p, text, nominate)
        else:
            self.untold[p.key] = (p, text)
            self.telling.set()

    async def failed(self, queued: Queued, p: PodInfo, text: str) -> None:
        """Deciding itself went wrong (an extender did not answer): said, and tried again after the back-off."""
        self.state.queue.retry(queued, self.state.clock())
        self.state.wake.set()
        self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
        await self._condition(p, text, "", "SchedulerError")

    async def _heard(self, p: PodInfo, found: list[Victims]) -> Victims | None:
        """The least harm of what extenders leave."""
        for e in self.extenders:
            if not e.concerns(p):
                continue
            try:
                found = await e.victims(p, found)
            except ExtenderFailed:
                if not e.spec.ignorable:
                    raise
        return min((v for v in found if v.pods), key=hurt, default=None)

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
                await self._condition(p, text, "")

    async def _condition(self, p: PodInfo, text: str, nominate: str, reason: str = "Unschedulable") -> None:
        status = p.pod.get("status") or {}
        old: Object = next((c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), {})
        patch: Object = {}
        if (old.get("status"), old.get("reason"), old.get("message")) != ("False", reason, text):
            at = old.get("lastTransitionTime") if old.get("status") == "False" else None
            condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": text, "lastProbeTime": None,
                         "lastTransitionTime": at or rfc3339(self.state.clock())}
            if meta(p.pod).get("generation"):
                condition["observedGeneration"] = meta(p.pod)["generation"]
            patch["conditions"] = [condition]
        if nominate == "-":
            patch["nominatedNodeName"] = None
        elif nominate and status.get("nominatedNodeName") != nominate:
            patch["nominatedNodeName"] = nominate
        if patch:
            try:
                await self.client.patch(POD, p.namespace, p.name, {"metadata": {"uid": p.uid}, "status": patch}, "strategic", subresource="status")
            except StatusError as e:
                if e.code not in (404, 409):
                    log.warning("condition of %s/%s: %s", p.namespace, p.name, e.message)

    async def _evict(self, p: PodInfo, found: Victims) -> None:
        """Delete the victims, with the condition and the event that say why."""
        for v in found.pods:
            if deleting(v.pod):
                continue
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                         "message": f"{p.spec.get('schedulerName', DEFAULT)}: preempting to accommodate a higher priority pod", "lastProbeTime": None,
                         "lastTransitionTime": rfc3339(self.state.clock())}
            if meta(v.pod).get("generation"):
                condition["observedGeneration"] = meta(v.pod)["generation"]
            try:
                order = [{"type": c["type"]} for c in (v.pod.get("status") or {}).get("conditions") or () if c["type"] != condition["type"]]
                status = {"conditions": [condition], "$setElementOrder/conditions": [*order, {"type": condition["type"]}]}
                await self.client.patch(POD, v.namespace, v.name, {"metadata": {"uid": v.uid}, "status": status}, "strategic", subresource="status")
                await self.client.delete(POD, v.namespace, v.name, uid=v.uid)
            except StatusError as e:
                if e.code not in (404, 409):
                    log.warning("preempting %s/%s: %s", v.namespace, v.name, e.message)
                continue
            self.speaker.say(v.pod, "Normal", "Preempted", "Preempting", f"Preempted by pod {p.uid} on node {found.node}", p.pod)
