"""The scheduler's shell: mirrors feed the table and the queue, decisions become bindings, refusals become conditions and events.

Nothing is decided here. One pod is decided at a time against a table that already holds every earlier decision (assumed), while up to
BINDINGS_MAX bindings are on their way; a refused one is taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as _random
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kubern.client.client import Client, path_of
from kubern.client.mirror import Mirrors
from kubern.model.object import Object, controller_of, deleting, meta
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.scheduler import claims, volumes
from kubern.scheduler.events import Speaker, quiet
from kubern.scheduler.pick import Decision, Extra, Filter, Rejection, pick
from kubern.scheduler.plain import Plain
from kubern.scheduler.pod import PodInfo, Spread, default_spreads, pod_info
from kubern.scheduler.preempt import NoHelp, Victims, preempt
from kubern.scheduler.profile import STANDARD, Configuration
from kubern.scheduler.queue import Queue, Queued
from kubern.scheduler.table import NodeTable
from kubern.scheduler.why import why

log = logging.getLogger(__name__)

NAME = "default-scheduler"
BINDINGS_MAX = 128
SLICE_S = 0.004                      # decide for so long before letting others run
LEFTOVERS_S = 30.0
REPORTS_PER_S, REPORTS_BURST = 100.0, 200   # refusals told in conditions and events; when thousands wait, telling must not slow placing down
LOOK_FIRST_S, LOOK_LAST_S = 0.1, 10.0
CLAIM_BIND_S = 600.0                 # how long a placed pod waits for its volumes
POD = by_kind[("v1", "Pod")]
READS = ("pods", "nodes", "namespaces", "services", "replicationcontrollers", "replicasets.apps", "statefulsets.apps",
         "poddisruptionbudgets.policy", "persistentvolumeclaims", "persistentvolumes", volumes.CLASSES, volumes.CSINODES,
         volumes.DRIVERS, volumes.CAPACITIES, claims.CLAIMS, claims.SLICES, claims.DEVICE_CLASSES)
DEVICES = (claims.CLAIMS, claims.SLICES, claims.DEVICE_CLASSES)
STORAGE = ("persistentvolumeclaims", "persistentvolumes", volumes.CLASSES, volumes.CSINODES, volumes.DRIVERS, volumes.CAPACITIES)
NO_CLAIMS_TAIL = "no new claims to deallocate, preemption: "


class Scheduler:
    """Owns the table and the queue. `random(n)` gives 0..n-1, `clock()` seconds."""

    def __init__(self, client: Client, mirrors: Mirrors, clock: Callable[[], float], random: Callable[[int], int] | None = None,
                 configuration: Configuration = STANDARD) -> None:
        self.profiles = configuration.profiles
        self.client, self.mirrors, self.clock = client, mirrors, clock
        self.random = random or _random.SystemRandom().randrange
        self.table, self.queue = NodeTable(), Queue(configuration.initial_backoff_s, configuration.max_backoff_s)
        self.plain = Plain(self.table)
        self.speaker = Speaker(client, clock, socket.gethostname())
        self.homeless: dict[str, dict[tuple[str, str], PodInfo]] = {}      # pods on nodes that are not there (yet)
        self.nominated: dict[tuple[str, str], tuple[str, PodInfo]] = {}
        self.promised: dict[str, str] = {}                                  # volume -> uid of the claim it was given to
        self.allocating: dict[str, Any] = {}                                # uid of a claim -> its allocation, on the way to the API
        self.untold: dict[tuple[str, str], tuple[PodInfo, str]] = {}        # refusals to be told, the newest of each pod
        self.telling = asyncio.Event()
        self.wake = asyncio.Event()
        self.slots = asyncio.Semaphore(BINDINGS_MAX)
        self.tasks: set[asyncio.Task[None]] = set()
        view = mirrors
        self.volume_filters: tuple[tuple[str, Filter], ...] = (
            ("VolumeRestrictions", volumes.volume_restrictions(view)), ("NodeVolumeLimits", volumes.volume_limits(view)),
            ("VolumeBinding", volumes.volume_binding(view, self.promised)), ("VolumeZone", volumes.volume_zone(view)))
        self.volume_prefilters = (("VolumeRestrictions", volumes.restrictions_prefilter(view)), ("VolumeBinding", volumes.prefilter(view)))
        self.claim_prefilters = (("DynamicResources", claims.prefilter(view, self.allocating)),)
        self.claim_filters = (("DynamicResources", claims.dynamic_resources(view, self.allocating)),)

    # --- what the mirrors say ---------------------------------------------------------------------------------------

    def on_node(self, old: Object | None, new: Object | None) -> None:
        now = self.clock()
        if new is None:
            assert old is not None
            name = meta(old)["name"]
            slot = self.table.slots.get(name, -1)
            if slot >= 0:
                self.homeless.setdefault(name, {}).update(self.table.pods[slot])
            self.table.remove_node(name)
            self._event("node-removed", now)
            return
        name = meta(new)["name"]
        if old is not None and name in self.table.slots and not _node_differs(old, new):
            self.table.nodes[self.table.slots[name]] = new
            return
        known = name in self.table.slots
        self.table.set_node(new)
        if not known:
            for p in self.homeless.pop(name, {}).values():
                self.table.add_pod(p, name)
            self._event("node-added", now)
            return
        assert old is not None
        if ((old.get("status") or {}).get("allocatable")) != ((new.get("status") or {}).get("allocatable")):
            self._event("node-allocatable", now)
        if meta(old).get("labels") != meta(new).get("labels"):
            self._event("node-labels", now)
        if _taints(old) != _taints(new):
            self._event("node-taints", now)

    def on_pod(self, old: Object | None, new: Object | None) -> None:
        now = self.clock()
        pod = new or old
        assert pod is not None
        m = meta(pod)
        key = (m.get("namespace") or "", m["name"])
        if new is None or (new.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self._forget(key, m.get("uid") or "", now)
            return
        node = (new.get("spec") or {}).get("nodeName")
        if node:
            self._placed(key, new, node, now)
        elif (new.get("spec") or {}).get("schedulerName", NAME) in self.profiles:
            self._waiting(key, old, new, now)

    def _forget(self, key: tuple[str, str], uid: str, now: float) -> None:
        placed = self.table.placed.get(key)
        if placed is not None and placed.uid == uid:
            self.table.remove_pod(placed)
            self._event("pod-removed", now)
        for there in self.homeless.values():
            there.pop(key, None)
        queued = self.queue.pods.get(key)
        if queued is not None and queued.info.uid == uid:
            self.queue.remove(key)
        if self.nominated.pop(key, None) is not None:
            self._event("pod-removed", now)

    def _placed(self, key: tuple[str, str], pod: Object, node: str, now: float) -> None:
        self.queue.remove(key)
        self.nominated.pop(key, None)
        before = self.table.placed.get(key)
        if before is not None and before.uid == meta(pod).get("uid") and self.table.names[before.slot] == node:
            was_assumed, before.assumed = before.assumed, False
            old_pod, before.pod = before.pod, pod
            same = (meta(old_pod).get("labels") == meta(pod).get("labels") and deleting(old_pod) == deleting(pod)
                    and (was_assumed or (old_pod.get("spec") == pod.get("spec") and _resources(old_pod) == _resources(pod))))
            if same:
                if was_assumed:
                    self._event("pod-placed", now)
                return
            self.table.remove_pod(before)
            info = pod_info(pod)
            self.table.add_pod(info, node)
            self._event("pod-labels" if before.labels != info.labels else "pod-removed", now)
            return
        if before is not None:
            self.table.remove_pod(before)
        info = pod_info(pod)
        if not self.table.add_pod(info, node):
            self.homeless.setdefault(node, {})[key] = info
        self._event("pod-placed", now)

    def _waiting(self, key: tuple[str, str], old: Object | None, new: Object, now: float) -> None:
        if deleting(new):
            self.queue.remove(key)
            return
        placed = self.table.placed.get(key)
        if placed is not None and placed.assumed and placed.uid == meta(new).get("uid"):
            return                                                         # our binding is on its way
        info = pod_info(new)
        nominated = (new.get("status") or {}).get("nominatedNodeName")
        if nominated:
            self.nominated[key] = (nominated, info)
        gated = bool((new.get("spec") or {}).get("schedulingGates")) or (info.claims and isinstance(claims.claims_of(info, self.mirrors), str))
        known = self.queue.pods.get(key)
        if known is not None and old is not None and old.get("spec") == new.get("spec") and meta(old).get("labels") == meta(new).get("labels") \
                and known.info.uid == info.uid and meta(old).get("annotations") == meta(new).get("annotations"):
            self.queue.refresh(info)
            return
        self.queue.add(info, now, gated)
        self.wake.set()

    def on_namespace(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            self.table.set_namespace(meta(old)["name"], None)
        else:
            self.table.set_namespace(meta(new)["name"], meta(new).get("labels") or {})

    def on_storage(self, old: Object | None, new: Object | None) -> None:
        if new is not None and new.get("kind") == "PersistentVolume" and (new.get("spec") or {}).get("claimRef"):
            self.promised.pop(meta(new)["name"], None)
        self._event("storage", self.clock())

    def on_devices(self, old: Object | None, new: Object | None) -> None:
        now = self.clock()
        if new is not None and new.get("kind") == "ResourceClaim":
            if claims.allocation(new):
                self.allocating.pop(meta(new)["uid"], None)
            for pod in self.mirrors.by("pods", "resourceclaim", f"{meta(new).get('namespace')}/{meta(new)['name']}"):
                queued = self.queue.pods.get((meta(pod).get("namespace") or "", meta(pod)["name"]))
                if queued is not None and queued.place == "gated" and not (pod.get("spec") or {}).get("schedulingGates") \
                        and not isinstance(claims.claims_of(queued.info, self.mirrors), str):
                    self.queue.add(queued.info, now)
        self._event("claims", now)

    def _event(self, name: str, now: float) -> None:
        self.queue.event(name, now)
        self.wake.set()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self, ready: Callable[[], Any] | None = None) -> None:
        """Until cancelled."""
        for name, handler in (("nodes", self.on_node), ("pods", self.on_pod), ("namespaces", self.on_namespace)):
            mirror = self.mirrors.mirror(name)
            for obj in list(mirror.objects.values()):
                handler(None, obj)
            mirror.handlers.append(handler)
        for name in STORAGE:
            self.mirrors.mirror(name).handlers.append(self.on_storage)
        for name in DEVICES:
            self.mirrors.mirror(name).handlers.append(self.on_devices)
        await self.mirrors.synced(READS)
        if ready is not None:
            ready()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.speaker.run(), name="scheduler events")
            group.create_task(self._leftovers(), name="scheduler leftovers")
            group.create_task(self._tell(), name="scheduler refusals")
            await self._loop()

    async def _leftovers(self) -> None:
        while True:
            await asyncio.sleep(LEFTOVERS_S)
            self.queue.leftovers(self.clock())
            self.wake.set()

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + SLICE_S
        while True:
            queued = self.queue.pop(self.clock())
            if queued is None:
                self.wake.clear()
                await self._woken()
                until = loop.time() + SLICE_S
                continue
            await self.slots.acquire()
            try:
                task = self.schedule(queued)
            except Exception:
                log.exception("scheduling %s/%s", *queued.info.key)
                self.queue.retry(queued, self.clock())
                task = None
            if task is None:
                self.slots.release()
            else:
                running = loop.create_task(task)
                self.tasks.add(running)
                running.add_done_callback(self._done)
            if loop.time() >= until:
                await asyncio.sleep(0)
                until = loop.time() + SLICE_S

    async def _woken(self) -> None:
        """Until something changes, or a back-off ends."""
        due_s = self.queue.next_s()
        if due_s is None:
            await self.wake.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, due_s - self.clock())):
                await self.wake.wait()

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("binding failed", exc_info=task.exception())

    def extra_for(self, p: PodInfo) -> Extra:
        """What picking this pod needs besides the table."""
        nominated = tuple((self.table.slots[node], q) for key, (node, q) in self.nominated.items()
                          if q.priority >= p.priority and key != p.key and node in self.table.slots)
        prefilters = (*(self.volume_prefilters if p.volumes else ()), *(self.claim_prefilters if p.claims else ()))
        return Extra(filters=self.volume_filters if p.volumes else (), prefilters=prefilters, late_filters=self.claim_filters if p.claims else (),
                     default_spreads=() if p.spreads else self._default_spreads(p), nominated=nominated,
                     profile=self.profiles.get(p.spec.get("schedulerName", NAME)))

    def _default_spreads(self, p: PodInfo) -> tuple[Spread, ...]:
        """The system's soft spreading over the pods of the same Services and owner."""
        match: dict[str, str] = {}
        for k, v in p.labels.items():
            for service in self.mirrors.by("services", "selector", f"{p.namespace}/{k}={v}"):
                selector = (service.get("spec") or {}).get("selector") or {}
                if all(p.labels.get(a) == b for a, b in selector.items()):
                    match.update(selector)
        expressions: list[Any] = []
        owner = controller_of(p.pod)
        if owner is not None:
            kind, name = owner.get("kind"), owner.get("name") or ""
            resource = {"ReplicationController": "replicationcontrollers", "ReplicaSet": "replicasets.apps",
                        "StatefulSet": "statefulsets.apps"}.get(kind or "")
            obj = self.mirrors.get(resource, p.namespace, name) if resource else None
            if obj is not None:
                selector = (obj.get("spec") or {}).get("selector") or {}
                if kind == "ReplicationController":
                    match.update(selector)
                else:
                    match.update(selector.get("matchLabels") or {})
                    expressions = selector.get("matchExpressions") or []
        if not match and not expressions:
            return ()
        return default_spreads(p, {"matchLabels": match, "matchExpressions": expressions} if expressions else {"matchLabels": match})

    def why(self, namespace: str, name: str) -> dict[str, Any] | None:
        """What keeps a pod from being placed, in detail (why.py); None if there is no such pod."""
        pod = self.mirrors.get("pods", namespace, name)
        if pod is None:
            return None
        node = (pod.get("spec") or {}).get("nodeName")
        if node:
            return {"nodes": self.table.count, "fits": [node], "reasons": [], "fixes": [], "text": f"{namespace}/{name} runs on {node}"}
        gates = [g.get("name") for g in (pod.get("spec") or {}).get("schedulingGates") or ()]
        if gates:
            return {"nodes": self.table.count, "fits": [], "reasons": [], "fixes": [],
                    "text": f"{namespace}/{name} is held back by its scheduling gates {', '.join(gates)}"}
        return why(pod_info(pod), self.table, self.extra_for)

    def schedule(self, queued: Queued) -> Any:
        """Decide one pod; the coroutine that carries the decision out, or None."""
        p = queued.info
        extra = self.extra_for(p)
        decision: Decision | Rejection = self.plain.pick(p, extra, self.random) or pick(p, self.table, self.random, extra)
        if isinstance(decision, Decision):
            bound = volumes.bindings(p, self.table, decision.slot, self.mirrors, self.promised) if p.volumes else volumes.Bindings()
            for volume, claim in bound.static:
                self.promised[meta(volume)["name"]] = meta(claim)["uid"]
            devices = self._allocate(p, decision) if p.claims else []
            p.assumed = True
            self.table.add_pod(p, decision.node)
            self.nominated.pop(p.key, None)
            return self._bind(queued, p, decision.node, bound, devices)
        return self._refused(queued, p, decision, extra)

    def _allocate(self, p: PodInfo, decision: Decision) -> list[tuple[Object, Any]]:
        """The pod's claims with the devices they get on the chosen node (None: they have theirs)."""
        found = claims.claims_of(p, self.mirrors)
        if isinstance(found, str):
            return []
        waiting = [c for c in found if not claims.allocation(c)]
        used = claims.in_use(self.mirrors, self.allocating)
        given = claims.allocate(waiting, claims.devices_of(self.table, decision.slot, self.mirrors), used, self.mirrors, decision.node) or []
        for claim, allocation in zip(waiting, given, strict=True):
            self.allocating[meta(claim)["uid"]] = allocation
        return [(c, self.allocating.get(meta(c)["uid"])) for c in found]

    async def _take_devices(self, p: PodInfo, devices: list[tuple[Object, Any]]) -> None:
        """Write allocations and reservations of the pod's claims."""
        row = self.mirrors.rows[claims.CLAIMS]
        for claim, allocation in devices:
            m = meta(claim)
            if allocation is not None and claims.FINALIZER not in (m.get("finalizers") or ()):
                await self.client.patch(row, p.namespace, m["name"], {"metadata": {"uid": m["uid"], "finalizers": claims.finalizers(claim)}})
            status = dict(claim.get("status") or {})
            if allocation is not None:
                status["allocation"] = {**allocation, "allocationTimestamp": _timestamp(self.clock())}
            if not claims.reserved_for(claim, p.uid):
                status["reservedFor"] = [*(status.get("reservedFor") or ()), claims.reservation(p)]
            await self.client.patch(row, p.namespace, m["name"], {"metadata": {"uid": m["uid"]}, "status": status}, subresource="status")

    async def _bind(self, queued: Queued, p: PodInfo, node: str, bound: volumes.Bindings, devices: list[tuple[Object, Any]]) -> None:
        try:
            if devices:
                await self._take_devices(p, devices)
            if bound.static or bound.provision:
                await self._bind_volumes(p, node, bound)
            try:
                await self.client.call("POST", path_of(POD, p.namespace, p.name, "binding"), None, {
                    "apiVersion": "v1", "kind": "Binding", "metadata": {"name": p.name, "namespace": p.namespace, "uid": p.uid},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": node}})
            except StatusError as e:
                if not await self._bound_after_all(p, node, e):
                    raise
        except (StatusError, TimeoutError) as e:
            for volume, _ in bound.static:
                self.promised.pop(meta(volume)["name"], None)
            for claim, _ in devices:
                self.allocating.pop(meta(claim)["uid"], None)
            if p.assumed and self.table.placed.get(p.key) is p:
                self.table.remove_pod(p)
                p.assumed = False
                self._event("pod-removed", self.clock())
            if isinstance(e, StatusError) and e.code == 404:
                self.queue.remove(p.key)
                return
            text = e.message if isinstance(e, StatusError) else "binding volumes: timed out waiting for the condition"
            log.info("binding %s/%s to %s: %s", p.namespace, p.name, node, text)
            self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
            self.queue.retry(queued, self.clock())
            self.wake.set()
            return
        self.queue.remove(p.key)
        self.speaker.say(p.pod, "Normal", "Scheduled", "Binding", f"Successfully assigned {p.namespace}/{p.name} to {node}")

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

    async def _bind_volumes(self, p: PodInfo, node: str, bound: volumes.Bindings) -> None:
        """Promise volumes to claims and name the node to provisioners, then wait until the claims are bound."""
        rows = self.mirrors.rows
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
        async with asyncio.timeout(CLAIM_BIND_S):
            changed = asyncio.Event()
            mirror = self.mirrors.mirror("persistentvolumeclaims")

            def notice(old: Object | None, new: Object | None) -> None:
                changed.set()
            mirror.handlers.append(notice)
            try:
                while True:
                    wanted = volumes.claims_of(p, self.mirrors)
                    if isinstance(wanted, volumes.Wanted) and not wanted.delayed and not wanted.immediate:
                        return
                    changed.clear()
                    await changed.wait()
            finally:
                mirror.handlers.remove(notice)

    async def _refused(self, queued: Queued, p: PodInfo, rejection: Rejection, extra: Extra) -> None:
        """Try preemption, say why, and park the pod until something changes."""
        now = self.clock()
        tail, nominate = "", ""
        plugins = rejection.plugins
        if not rejection.total:
            text = "no nodes available to schedule pods"
        else:
            if rejection.message:
                tail = "not found"                                          # upstream's device plugin has no state then, and says so
            elif extra.profile is None or extra.profile.preempts:
                found = preempt(p, self.table, rejection, self.mirrors.list("poddisruptionbudgets.policy"), extra, self.random)
                if isinstance(found, NoHelp):
                    tail = ("still not schedulable, preemption: " if p.claims else NO_CLAIMS_TAIL) + found.message
                else:
                    nominate = found.node
                    plugins = plugins | {"Preemption"}
                    self.nominated[p.key] = (nominate, p)
                    await self._evict(p, found)
            text = rejection.text(tail)
        if not nominate and self.nominated.pop(p.key, None) is not None:
            nominate = "-"
        self.queue.park(queued, plugins or {"NodeAdded"}, now)
        self.wake.set()
        if nominate:
            self.untold.pop(p.key, None)
            self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
            await self._condition(p, text, nominate)
        else:
            self.untold[p.key] = (p, text)
            self.telling.set()

    async def _tell(self) -> None:
        """Write refusals as conditions and events, at a bounded rate."""
        tokens, at = float(REPORTS_BURST), self.clock()
        while True:
            if not self.untold:
                self.telling.clear()
                await self.telling.wait()
            now = self.clock()
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
            if key in self.queue.pods:                       # else it has been placed or deleted meanwhile
                self.speaker.say(p.pod, "Warning", "FailedScheduling", "Scheduling", text)
                await self._condition(p, text, "")

    async def _condition(self, p: PodInfo, text: str, nominate: str) -> None:
        status = p.pod.get("status") or {}
        old: Object = next((c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), {})
        patch: Object = {}
        if (old.get("status"), old.get("reason"), old.get("message")) != ("False", "Unschedulable", text):
            at = old.get("lastTransitionTime") if old.get("status") == "False" else None
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text, "lastProbeTime": None,
                         "lastTransitionTime": at or _timestamp(self.clock())}
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
                         "message": f"{p.spec.get('schedulerName', NAME)}: preempting to accommodate a higher priority pod", "lastProbeTime": None,
                         "lastTransitionTime": _timestamp(self.clock())}
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


def _timestamp(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _taints(node: Object) -> tuple[Any, Any]:
    spec = node.get("spec") or {}
    return spec.get("taints"), spec.get("unschedulable")


def _resources(pod: Object) -> Any:
    return [c.get("allocatedResources") for c in (pod.get("status") or {}).get("containerStatuses") or ()]


def _node_differs(old: Object, new: Object) -> bool:
    """Whether anything that scheduling reads changed: heartbeats do not count."""
    a, b = old.get("status") or {}, new.get("status") or {}
    return (meta(old).get("labels") != meta(new).get("labels") or _taints(old) != _taints(new)
            or a.get("allocatable") != b.get("allocatable") or a.get("images") != b.get("images"))
