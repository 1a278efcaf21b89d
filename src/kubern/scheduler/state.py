"""State: what the scheduler knows. The node table, the queue, and what is decided but not yet written; the mirrors feed it. No I/O.

Not the plugins' state of one pod: they keep that themselves (claims.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kubern.client.mirror import Mirrors
from kubern.model.object import Object, controller_of, deleting, meta
from kubern.scheduler import claims, volumes
from kubern.scheduler.hints import Change
from kubern.scheduler.nominated import Nominations
from kubern.scheduler.pick import NOTHING, Extra
from kubern.scheduler.pod import PodInfo, Spread, default_spreads, listed_spreads, pod_info, start_time
from kubern.scheduler.profile import ARGS, DEFAULT, Configuration
from kubern.scheduler.queue import Queue
from kubern.scheduler.table import NodeTable

READS = ("pods", "nodes", "namespaces", "services", "replicationcontrollers", "replicasets.apps", "statefulsets.apps",
         "poddisruptionbudgets.policy", "persistentvolumeclaims", "persistentvolumes", volumes.CLASSES, volumes.CSINODES,
         volumes.DRIVERS, volumes.CAPACITIES, claims.CLAIMS, claims.SLICES, claims.DEVICE_CLASSES)
DEVICES = (claims.CLAIMS, claims.SLICES, claims.DEVICE_CLASSES)
STORAGE = ("persistentvolumeclaims", "persistentvolumes", volumes.CLASSES, volumes.CSINODES, volumes.DRIVERS, volumes.CAPACITIES)


class State:
    """Owns the table and the queue. `wake` is set when the queue may hold something new."""

    def __init__(self, mirrors: Mirrors, clock: Callable[[], float], configuration: Configuration) -> None:
        self.mirrors, self.clock, self.profiles = mirrors, clock, configuration.profiles
        self.table, self.queue = NodeTable(), Queue(configuration.initial_backoff_s, configuration.max_backoff_s)
        self.homeless: dict[str, dict[tuple[str, str], PodInfo]] = {}      # pods on nodes that are not there (yet)
        self.nominated = Nominations(self.table)
        self.promised: dict[str, str] = {}                                  # volume -> uid of the claim it was given to
        self.allocating: dict[str, Any] = {}                                # uid of a claim -> its allocation, on the way to the API
        self.wake = asyncio.Event()
        self.volume_filters, self.volume_prefilters = volumes.filters(mirrors, self.promised), volumes.prefilters(mirrors)
        self.devices = claims.DynamicResources(mirrors, self.allocating, clock)

    def follow(self) -> None:
        """Takes what the mirrors hold, and every change from now on."""
        for name, handler in (("nodes", self.on_node), ("pods", self.on_pod), ("namespaces", self.on_namespace)):
            mirror = self.mirrors.mirror(name)
            for obj in list(mirror.objects.values()):
                handler(None, obj)
            mirror.handlers.append(handler)
        for name in STORAGE:
            self.mirrors.mirror(name).handlers.append(self.on_storage)
        for name in DEVICES:
            self.mirrors.mirror(name).handlers.append(self.on_devices)

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
            self.event("node-removed", now, Change(self.table, before=old))
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
            self.event("node-added", now, Change(self.table, self.table.slots[name], node=new))
            return
        assert old is not None
        change = Change(self.table, self.table.slots[name], node=new, before=old)
        if ((old.get("status") or {}).get("allocatable")) != ((new.get("status") or {}).get("allocatable")):
            self.event("node-allocatable", now, change)
        if meta(old).get("labels") != meta(new).get("labels"):
            self.event("node-labels", now, change)
        if _taints(old) != _taints(new):
            self.event("node-taints", now, change)
        if _features(old) != _features(new):
            self.event("node-features", now, change)

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
        elif (new.get("spec") or {}).get("schedulerName", DEFAULT) in self.profiles:
            self._waiting(key, old, new, now)

    def _forget(self, key: tuple[str, str], uid: str, now: float) -> None:
        placed = self.table.placed.get(key)
        if placed is not None and placed.uid == uid:
            slot = placed.slot
            self.table.remove_pod(placed)
            self.event("pod-removed", now, Change(self.table, slot, was=placed))
        for there in self.homeless.values():
            there.pop(key, None)
        queued = self.queue.pods.get(key)
        if queued is not None and queued.info.uid == uid:
            self.queue.remove(key)
        promised = self.nominated.drop(key)
        if promised:
            self.event("pod-removed", now, Change(self.table, self.table.slots.get(promised, -1)))

    def _placed(self, key: tuple[str, str], pod: Object, node: str, now: float) -> None:
        self.queue.remove(key)
        self.nominated.drop(key)
        before = self.table.placed.get(key)
        if before is not None and before.uid == meta(pod).get("uid") and self.table.names[before.slot] == node:
            was_assumed, before.assumed = before.assumed, False
            old_pod, before.pod = before.pod, pod
            if was_assumed and not deleting(pod):                          # as decided; binding copies labels of the node
                if meta(old_pod).get("labels") != meta(pod).get("labels"):
                    self.table.relabel(before, pod)
                self.event("pod-placed", now, Change(self.table, before.slot, before))
                return
            same = (meta(old_pod).get("labels") == meta(pod).get("labels") and deleting(old_pod) == deleting(pod)
                    and old_pod.get("spec") == pod.get("spec") and _resources(old_pod) == _resources(pod))
            if same:
                if start_time(before) != (old_pod.get("status") or {}).get("startTime"):
                    self.table.stamp(before.slot)
                return
            slot = before.slot
            self.table.remove_pod(before)
            info = pod_info(pod)
            self.table.add_pod(info, node)
            change = Change(self.table, slot, info, before)
            if before.labels != info.labels:
                self.event("pod-labels", now, change)
            elif deleting(pod) and not deleting(old_pod) and _resources(old_pod) == _resources(pod):
                self.event("pod-leaving", now, change)                    # it still holds what it has
            else:
                self.event("pod-removed", now, change)
            return
        if before is not None:
            self.table.remove_pod(before)
        info = pod_info(pod)
        if not self.table.add_pod(info, node):
            self.homeless.setdefault(node, {})[key] = info
        self.event("pod-placed", now, Change(self.table, info.slot, info))

    def _waiting(self, key: tuple[str, str], old: Object | None, new: Object, now: float) -> None:
        if deleting(new):
            self.queue.remove(key)
            return
        placed = self.table.placed.get(key)
        if placed is not None and placed.assumed and placed.uid == meta(new).get("uid"):
            return                                                         # our binding is on its way
        info = pod_info(new)
        self._nominated(info, old, new)
        gated = bool((new.get("spec") or {}).get("schedulingGates")) or (info.claims and isinstance(claims.claims_of(info, self.mirrors), str))
        known = self.queue.pods.get(key)
        opens = known is not None and known.place == "gated" and not gated        # its claims are named now
        if known is not None and not opens and old is not None and old.get("spec") == new.get("spec") and meta(old).get("labels") == meta(new).get("labels") \
                and known.info.uid == info.uid and meta(old).get("annotations") == meta(new).get("annotations"):
            self.queue.refresh(info)
            return
        self.queue.add(info, now, gated)
        self.wake.set()

    def _nominated(self, info: PodInfo, old: Object | None, new: Object) -> None:
        """Whoever writes a pod's nomination is heard. News that know of none, before or after, leave standing what has just been promised here."""
        before, now = _nomination(old), _nomination(new)
        node = now if before or now else self.nominated.node_of(info.key)
        if node:
            self.nominated.set(info, node)
        elif before:
            self.nominated.drop(info.key)

    def on_namespace(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            assert old is not None
            self.table.set_namespace(meta(old)["name"], None)
        else:
            self.table.set_namespace(meta(new)["name"], meta(new).get("labels") or {})

    def on_storage(self, old: Object | None, new: Object | None) -> None:
        if new is not None and new.get("kind") == "PersistentVolume" and (new.get("spec") or {}).get("claimRef"):
            self.promised.pop(meta(new)["name"], None)
        self.event("storage", self.clock(), Change(self.table, node=new or old))

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
        self.event("claims", now)

    def event(self, name: str, now: float, change: Change | None = None) -> None:
        """`change`: what it was, so that only those are woken whom it may help."""
        self.queue.event(name, now, None if change is None else change.helps)
        self.wake.set()

    # --- what a pod needs besides the table ---------------------------------------------------------------------------

    def extra_for(self, p: PodInfo, devices: claims.DynamicResources | None = None) -> Extra:
        """What picking this pod needs besides the table. `devices`: another plugin than the scheduler's, for who only asks."""
        plugin = devices or self.devices
        profile = self.profiles.get(p.spec.get("schedulerName", DEFAULT))
        p.args = ARGS if profile is None else profile.args
        asks = plugin.concerns(p)
        spreads = () if p.spreads else self._default_spreads(p)
        if not (asks or spreads or p.volumes or profile or self.nominated):
            return NOTHING                                                 # most pods, and it costs to make one
        prefilters = (*(self.volume_prefilters if p.volumes else ()), *((("DynamicResources", plugin.prefilter),) if asks else ()))
        return Extra(filters=self.volume_filters if p.volumes else (), prefilters=prefilters, nominated=self.nominated, profile=profile,
                     late_filters=(("DynamicResources", plugin.filter),) if asks else (),
                     late_scores=(("DynamicResources", plugin.score),) if asks else (),
                     default_spreads=spreads)

    def _default_spreads(self, p: PodInfo) -> tuple[Spread, ...]:
        """The default spreading over the pods of the same Services and owner: the system's, or the profile's."""
        if p.args.default_constraints == ():
            return ()
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
        selector = {"matchLabels": match, "matchExpressions": expressions} if expressions else {"matchLabels": match}
        return default_spreads(p, selector) if p.args.default_constraints is None else listed_spreads(p, p.args.default_constraints, selector)


def _nomination(pod: Object | None) -> str:
    return ((pod or {}).get("status") or {}).get("nominatedNodeName") or ""


def _taints(node: Object) -> tuple[Any, Any]:
    spec = node.get("spec") or {}
    return spec.get("taints"), spec.get("unschedulable")


def _features(node: Object) -> Any:
    return (node.get("status") or {}).get("declaredFeatures")


def _resources(pod: Object) -> Any:
    return [c.get("allocatedResources") for c in (pod.get("status") or {}).get("containerStatuses") or ()]


def _node_differs(old: Object, new: Object) -> bool:
    """Whether anything that scheduling reads changed: heartbeats do not count."""
    a, b = old.get("status") or {}, new.get("status") or {}
    return (meta(old).get("labels") != meta(new).get("labels") or _taints(old) != _taints(new)
            or a.get("allocatable") != b.get("allocatable") or a.get("images") != b.get("images") or _features(old) != _features(new))
