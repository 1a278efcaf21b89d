"""Binder: carries a decision out. Devices and volumes first, then the binding; whatever fails is taken back. Nothing is decided here.

Upstream: the reserve, pre-bind and bind points of the default plugins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from kubern.client.client import Client, path_of
from kubern.model.object import Object, meta, name
from kubern.model.resources import by_kind
from kubern.model.status import StatusError, conflict
from kubern.model.time import rfc3339
from kubern.scheduler import claims, volumes
from kubern.scheduler.claims import Reserved
from kubern.scheduler.devices import BadClaim, conditions_of
from kubern.scheduler.events import Speaker
from kubern.scheduler.extenders import Extender, ExtenderFailed
from kubern.scheduler.hints import Change
from kubern.scheduler.pick import Decision
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.queue import Queued
from kubern.scheduler.state import State

log = logging.getLogger(__name__)

Failed = Callable[[Queued, PodInfo, str, str], Awaitable[None]]
LOOK_FIRST_S, LOOK_LAST_S = 0.1, 10.0
DEVICES_EVERY_S = 5.0
POD = by_kind[("v1", "Pod")]


class Binder:
    """`failed(queued, pod, text, reason)` says what became of a pod that was not bound, and has it tried again."""

    def __init__(self, state: State, client: Client, speaker: Speaker, extenders: list[Extender], failed: Failed) -> None:
        self.state, self.client, self.speaker, self.failed = state, client, speaker, failed
        self.extenders = [e for e in extenders if e.spec.bind_verb]

    def assume(self, queued: Queued, decision: Decision) -> Any:
        """Counts the pod on its node at once; the coroutine that makes it true."""
        p, state = queued.info, self.state
        bound = volumes.bindings(p, state.table, decision.slot, state.mirrors, state.promised) if p.volumes else volumes.Bindings()
        for volume, claim in bound.static:
            state.promised[meta(volume)["name"]] = meta(claim)["uid"]
        devices = state.devices.reserve(p, state.table, decision.slot) if p.claims or p.backed else None
        p.assumed = True
        state.table.add_pod(p, decision.node)
        state.nominated.drop(p.key)
        state.queue.placed(queued)
        return self._bind(queued, p, decision.node, bound, devices or Reserved([]))

    async def _bind(self, queued: Queued, p: PodInfo, node: str, bound: volumes.Bindings, devices: Reserved) -> None:
        state = self.state
        slow, doing = bool(devices or bound.static or bound.provision), ""
        try:
            if slow:
                await self._expect(p, node)
            if devices:
                doing = 'running PreBind plugin "DynamicResources": '
                await self._take_devices(p, node, devices)
            if bound.static or bound.provision:
                doing = 'running PreBind plugin "VolumeBinding": '
                await self._bind_volumes(p, node, bound)
            if p.volumes:
                await self._same_claims(p)
            extender = next((e for e in self.extenders if e.concerns(p)), None)
            if extender is not None:
                doing = ""
                await extender.bind(p, node)
            else:
                doing = 'running Bind plugin "DefaultBinder": '
                await self._bind_pod(p, node)
        except (StatusError, TimeoutError, BadClaim, ExtenderFailed) as e:
            for volume, _ in bound.static:
                state.promised.pop(meta(volume)["name"], None)
            for claim_uid in devices.uids:
                state.allocating.pop(claim_uid, None)
            await self._return_devices(p, devices)
            if slow:
                await self._expect(p, None)
            if p.assumed and state.table.placed.get(p.key) is p:
                slot = p.slot
                state.table.remove_pod(p)
                p.assumed = False
                state.event("pod-removed", state.clock(), Change(state.table, slot, was=p))
            if isinstance(e, StatusError) and e.code == 404:
                state.queue.remove(p.key)
                return
            text = e.message if isinstance(e, StatusError) else str(e) or "binding volumes: context deadline exceeded"
            log.info("binding %s/%s to %s: %s", p.namespace, p.name, node, text)
            rejected = isinstance(e, BadClaim)                             # by the devices themselves: nothing went wrong
            await self.failed(queued, p, text if rejected else doing + text, "Unschedulable" if rejected else "SchedulerError")
            return
        state.queue.remove(p.key)
        self.speaker.say(p.pod, "Normal", "Scheduled", "Binding", f"Successfully assigned {p.namespace}/{p.name} to {node}")

    async def _expect(self, p: PodInfo, node: str | None) -> None:
        """Says where a pod will be before what may take long begins (KEP-5278); binding clears it again."""
        if ((p.pod.get("status") or {}).get("nominatedNodeName") or None) == node and node is not None:
            return
        try:
            await self.client.patch(POD, p.namespace, p.name, {"metadata": {"uid": p.uid}, "status": {"nominatedNodeName": node}}, subresource="status")
        except StatusError as e:
            log.debug("nominating %s for %s/%s: %s", node, p.namespace, p.name, e.message)

    async def _bind_pod(self, p: PodInfo, node: str) -> None:
        try:
            await self.client.call("POST", path_of(POD, p.namespace, p.name, "binding"), None, {
                "apiVersion": "v1", "kind": "Binding", "metadata": {"name": p.name, "namespace": p.namespace, "uid": p.uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node}})
        except StatusError as e:
            if not await self._bound_after_all(p, node, e):
                raise

    async def _bound_after_all(self, p: PodInfo, node: str, e: StatusError) -> bool:
        """A binding without a clear answer may have been made: until that is known its room must not be given away."""
        if e.code < 500 and e.code != 409:
            return False
        delay_s = LOOK_FIRST_S
        while True:
            try:
                pod = await self.client.get(POD, p.namespace, p.name)
                return meta(pod).get("uid") == p.uid and (pod.get("spec") or {}).get("nodeName") == node
            except StatusError as again:
                if again.code < 500 and again.code != 429:
                    return False
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LOOK_LAST_S)

    # --- devices ----------------------------------------------------------------------------------------------------

    async def _take_devices(self, p: PodInfo, node: str, devices: Reserved) -> None:
        """Write allocations and reservations of the pod's claims, and wait until devices that need it are made ready."""
        row = self.state.mirrors.rows[claims.CLAIMS]
        written = []
        for claim, allocation in devices.claims:
            written.append(claim if allocation is None and claims.reserved_for(claim, p.uid) else await self._take(p, claim, allocation))
        if devices.made is not None:
            body = {**devices.made, "metadata": {k: v for k, v in meta(devices.made).items() if k != "uid"}}
            made = await self.client.create_in(row, body, namespace=p.namespace)
            devices.created = made
            written.append(await self._take(p, made, devices.allocation))
            self.state.allocating.pop(meta(devices.made)["uid"], None)
            status = {"extendedResourceClaimStatus": {"requestMappings": devices.mappings, "resourceClaimName": name(made)}}
            await self.client.patch(POD, p.namespace, p.name, {"metadata": {"uid": p.uid}, "status": status}, "strategic", subresource="status")
        if any(True for claim in written for _ in conditions_of(claim)):
            self.speaker.say(p.pod, "Normal", "BindingConditionsPending", "Scheduling", f"waiting for binding conditions for device on node {node}")
            await self._prepared(p, written)

    async def _take(self, p: PodInfo, claim: Object, allocation: Any) -> Object:
        row, m = self.state.mirrors.rows[claims.CLAIMS], meta(claim)
        if allocation is not None and claims.FINALIZER not in (m.get("finalizers") or ()):
            await self.client.patch(row, p.namespace, m["name"], {"metadata": {"uid": m["uid"], "finalizers": claims.finalizers(claim)}})
        status = dict(claim.get("status") or {})
        if allocation is not None:
            status["allocation"] = {**allocation, "allocationTimestamp": rfc3339(self.state.clock())}
        if not claims.reserved_for(claim, p.uid):
            status["reservedFor"] = [*(status.get("reservedFor") or ()), claims.reservation(p)]
        return await self.client.patch(row, p.namespace, m["name"], {"metadata": {"uid": m["uid"]}, "status": status}, subresource="status")

    async def _prepared(self, p: PodInfo, written: list[Object]) -> None:
        """Until every device is ready. Raises BadClaim when one fails or takes too long."""
        until_s = self.state.clock() + p.args.device_bind_s
        while True:
            now_is = [self.state.mirrors.get(claims.CLAIMS, p.namespace, name(c)) for c in written]
            if all(c is not None and claims.prepared(c) for c in now_is):
                return
            if self.state.clock() >= until_s:
                raise BadClaim("device binding timeout: context deadline exceeded")
            await asyncio.sleep(DEVICES_EVERY_S)

    async def _return_devices(self, p: PodInfo, devices: Reserved) -> None:
        """A claim made for a pod that was not bound goes again."""
        if devices.created is None:
            return
        row, m = self.state.mirrors.rows[claims.CLAIMS], meta(devices.created)
        try:
            await self.client.patch(row, p.namespace, m["name"], {"metadata": {"uid": m["uid"], "finalizers": None}})
            await self.client.delete(row, p.namespace, m["name"], uid=m["uid"])
        except StatusError as e:
            log.info("returning %s/%s: %s", p.namespace, m["name"], e.message)

    # --- volumes ----------------------------------------------------------------------------------------------------

    async def _same_claims(self, p: PodInfo) -> None:
        """A pod that is newer than our copy of its claims may mean others by the same names, that wait for it. Raises StatusError."""
        mirror, wanted = self.state.mirrors.mirror("persistentvolumeclaims"), volumes.claims_of(p, self.state.mirrors)
        if not isinstance(wanted, volumes.Wanted) or int(meta(p.pod).get("resourceVersion") or 0) <= mirror.revision:
            return
        for claim in wanted.bound:
            try:
                live: Object = await self.client.get(mirror.resource, p.namespace, name(claim))
            except StatusError as e:
                if e.code != 404:
                    raise
                live = {"metadata": {}}
            if meta(live).get("uid") != meta(claim)["uid"]:
                raise conflict("", "persistentvolumeclaims", name(claim), "it is another than the pod was placed by")

    async def _bind_volumes(self, p: PodInfo, node: str, bound: volumes.Bindings) -> None:
        """Promise volumes to claims and name the node to provisioners, then wait until the claims are bound."""
        rows = self.state.mirrors.rows
        for volume, claim in bound.static:
            c = meta(claim)
            await self.client.patch(rows["persistentvolumes"], "", meta(volume)["name"], {
                "metadata": {"resourceVersion": meta(volume)["resourceVersion"], "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
                "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": c["namespace"], "name": c["name"],
                                      "uid": c["uid"], "resourceVersion": c["resourceVersion"]}}})
        for claim in bound.provision:
            if (meta(claim).get("annotations") or {}).get(volumes.SELECTED_NODE) != node:
                await self.client.patch(rows["persistentvolumeclaims"], p.namespace, meta(claim)["name"],
                                        {"metadata": {"annotations": {volumes.SELECTED_NODE: node}}})
        async with asyncio.timeout(p.args.volume_bind_s):
            changed = asyncio.Event()
            mirror = self.state.mirrors.mirror("persistentvolumeclaims")

            def notice(old: Object | None, new: Object | None) -> None:
                changed.set()
            mirror.handlers.append(notice)
            try:
                while True:
                    wanted = volumes.claims_of(p, self.state.mirrors)
                    if isinstance(wanted, volumes.Wanted) and not wanted.delayed and not wanted.immediate:
                        return
                    changed.clear()
                    await changed.wait()
            finally:
                mirror.handlers.remove(notice)
