"""Removal: takes nodes away. Taint and cordon, evict the pods under their budgets, end the node at its provider, delete the Node; where eviction fails
the node is given back. Which nodes go is decided in kubern.scheduler.shrink.

Upstream: core/scaledown/actuation (actuator.go, drain.go), utils/taints.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from kubern.autoscaler.options import Options
from kubern.autoscaler.providers import Provider
from kubern.autoscaler.voice import Voice
from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.model.object import Object, deleting, meta, notes
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.scheduler.grow import is_daemon
from kubern.scheduler.shrink import CANDIDATE_TAINT, DELETING_TAINT, MIRROR, PREFIX, Unneeded

log = logging.getLogger(__name__)

POD, NODE = by_kind[("v1", "Pod")], by_kind[("v1", "Node")]
EVICT_DAEMON = PREFIX + "enable-ds-eviction"       # of a pod: "true" or "false" overrules the options
EVICTION_RETRY_S, GONE_POLL_S = 2.0, 0.2
CONFLICT_TRIES = 5
SOFT_TAINTS_MAX = 100                              # written in one scan
Spawn = Callable[[Any, str], asyncio.Task[None]]


class Removal:
    """Owns the nodes that are being deleted."""

    def __init__(self, client: Client, mirrors: Mirrors, provider: Provider, options: Options, voice: Voice, clock: Callable[[], float],
                 spawn: Spawn) -> None:
        self.client, self.mirrors, self.provider, self.options, self.voice, self.clock = client, mirrors, provider, options, voice, clock
        self._spawn = spawn
        self.deleting: dict[str, tuple[asyncio.Task[None], bool]] = {}   # node -> (task, with drain)
        self.failed_s = self.deleted_s = float("-inf")

    @property
    def drains(self) -> int:
        return sum(1 for _, drain in self.deleting.values() if drain)

    def delete(self, name: str, why: Unneeded | None) -> None:
        """Begin. Without a reason it is a node that never became one."""
        if name not in self.deleting:
            task = self._spawn(self._remove(name, why), f"delete {name}")
            self.deleting[name] = (task, bool(why and why.pods))
            task.add_done_callback(lambda _: self.deleting.pop(name, None))

    async def _remove(self, name: str, why: Unneeded | None) -> None:
        node = self.mirrors.get("nodes", "", name)
        if node is not None and why is not None:
            await self.taint(name, DELETING_TAINT, "NoSchedule", cordon=True)
            self.voice.say(node, "Normal", "ScaleDown", "marked the node as toBeDeleted/unschedulable")
            if why.pods:
                self.voice.note("Normal", "ScaleDown", f"Scale-down: removing node {name}, utilization: {why.utilization:.3f}, "
                                                       f"pods to reschedule: {', '.join(f'{p.namespace}/{p.name}' for p in why.pods)}")
            else:
                self.voice.note("Normal", "ScaleDownEmpty", f'Scale-down: removing empty node "{name}"')
            problem = await self._evict(name, bool(why.pods))
            if problem:
                await self._give_back(node, f"failed to drain the node, aborting ScaleDown: {problem}")
                return
        try:
            await self.provider.delete(name)
        except Exception as e:
            log.warning("node %s could not be removed: %s", name, e)
            self.failed_s = self.clock()
            if node is not None:
                await self._give_back(node, f"failed to delete the node: {e}")
            return
        try:
            await self.client.delete(NODE, "", name)
        except StatusError as e:
            if e.code != 404:
                raise
        self.deleted_s = self.clock()
        if node is not None:
            self.voice.say(node, "Normal", "ScaleDown", "node removed by cluster autoscaler")

    async def _give_back(self, node: Object, why: str) -> None:
        self.failed_s = self.clock()
        await self.untaint(meta(node)["name"])
        self.voice.say(node, "Warning", "ScaleDownFailed", why)

    # --- pods ---------------------------------------------------------------------------------------------------------

    async def _evict(self, name: str, occupied: bool) -> str:
        """Evict what has to move and wait until it is gone; "" or what went wrong. DaemonSets' pods are asked to go, and not waited for."""
        told: set[str] = set()
        began = self.clock()
        by_default = self.options.daemonset_eviction_for_occupied_nodes if occupied else self.options.daemonset_eviction_for_empty_nodes
        while True:
            items, _ = await self.client.list(POD, fields=f"spec.nodeName={name}")
            here = [p for p in items if MIRROR not in notes(p) and (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
            left = [p for p in here if not is_daemon(p)]
            if not told:
                for p in here:
                    if is_daemon(p) and notes(p).get(EVICT_DAEMON, str(by_default).lower()) == "true":
                        await self._ask(p, told)
            if not left:
                return ""
            refused = ""
            for p in left:
                refused = await self._ask(p, told) or refused
            waited = self.clock() - began
            if refused and waited > self.options.max_pod_eviction_time_s:
                return refused
            if waited > self.options.max_graceful_termination_s:
                return f"{len(left)} pods are still there"
            await asyncio.sleep(min(EVICTION_RETRY_S, max(GONE_POLL_S, self.options.max_pod_eviction_time_s / 10)) if refused else GONE_POLL_S)

    async def _ask(self, pod: Object, told: set[str]) -> str:
        """Evict it; why that is refused, or ""."""
        m = meta(pod)
        if deleting(pod):
            return ""
        if m["uid"] not in told:
            told.add(m["uid"])
            self.voice.say(pod, "Normal", "ScaleDown", "deleting pod for node scale down")
        try:
            await self.client.create_in(POD, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": m["name"], "namespace": m["namespace"]}},
                                        name=m["name"], subresource="eviction")
        except StatusError as e:
            return f"{m['namespace']}/{m['name']}: {e.message}" if e.code != 404 else ""
        return ""

    # --- taints -------------------------------------------------------------------------------------------------------

    async def soften(self, nodes: dict[str, Object], candidates: Iterable[str], unneeded: Iterable[str]) -> None:
        """Nodes that may go soon are the scheduler's last choice."""
        budget, unneeded = SOFT_TAINTS_MAX, set(unneeded)
        for name in candidates:
            if name in self.deleting or budget <= 0:
                continue
            has = tainted(nodes[name], CANDIDATE_TAINT)
            if has != (name in unneeded):
                budget -= 1
                try:
                    await (self.untaint(name) if has else self.taint(name, CANDIDATE_TAINT, "PreferNoSchedule"))
                except StatusError as e:
                    log.info("taint of %s: %s", name, e.message)

    async def taint(self, name: str, key: str, effect: str, cordon: bool = False) -> None:
        value = str(int(self.clock()))

        def change(spec: dict[str, Any]) -> dict[str, Any]:
            taints = [t for t in spec.get("taints") or () if t.get("key") != key]
            return {"taints": [*taints, {"key": key, "value": value, "effect": effect}], **({"unschedulable": True} if cordon else {})}
        await self._change(name, change)

    async def untaint(self, name: str) -> None:
        """Both taints off; where it was about to be deleted, schedulable again."""
        def change(spec: dict[str, Any]) -> dict[str, Any]:
            old = spec.get("taints") or []
            taints = [t for t in old if t.get("key") not in (DELETING_TAINT, CANDIDATE_TAINT)]
            ours = any(t.get("key") == DELETING_TAINT for t in old)
            return {"taints": taints, **({"unschedulable": None} if ours else {})}
        await self._change(name, change)

    async def _change(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        for attempt in range(CONFLICT_TRIES):
            try:
                node = await self.client.get(NODE, "", name)
                await self.client.patch(NODE, "", name, {"metadata": {"resourceVersion": meta(node)["resourceVersion"]},
                                                         "spec": change(node.get("spec") or {})})
                return
            except StatusError as e:
                if e.code == 404:
                    return
                if e.code != 409 or attempt == CONFLICT_TRIES - 1:
                    raise


def tainted(node: Object, key: str) -> bool:
    return any(t.get("key") == key for t in (node.get("spec") or {}).get("taints") or ())
