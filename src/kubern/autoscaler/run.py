"""The autoscaler's shell: every scan it reads the mirrors, asks grow and shrink, and has providers carry the answer out.

What upstream calls by these names: scan interval, max node provision time, backoff, unneeded time, delay after add. A node that is
taken away is tainted and cordoned, its pods are evicted under their budgets, then the provider ends it and the Node is deleted; where eviction
fails the node is given back. Not a decision: those are in kubern.scheduler.grow and .shrink.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kubern.autoscaler import status
from kubern.autoscaler.devices import Imagined
from kubern.autoscaler.groups import Timings
from kubern.autoscaler.providers import Provider
from kubern.client.client import Client
from kubern.client.events import Recorder
from kubern.client.mirror import Mirrors
from kubern.model.intent import Emit
from kubern.model.object import Object, condition, deleting, meta
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.model.time import seconds_of
from kubern.scheduler import claims, volumes
from kubern.scheduler.grow import Expander, Group, Growth, Size, daemon_pods, expander, grow, is_daemon, template_node
from kubern.scheduler.pick import Extra
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.shrink import CANDIDATE_TAINT, DELETING_TAINT, MIRROR, Unneeded, budgets_of, shrink
from kubern.scheduler.table import NodeTable

log = logging.getLogger(__name__)

NAME = "cluster-autoscaler"
POD, NODE, CONFIG_MAP = by_kind[("v1", "Pod")], by_kind[("v1", "Node")], by_kind[("v1", "ConfigMap")]
DAEMON_SETS = "daemonsets.apps"
READS = ("pods", "nodes", "namespaces", "poddisruptionbudgets.policy", DAEMON_SETS, "persistentvolumeclaims", "persistentvolumes",
         volumes.CLASSES, volumes.CSINODES, volumes.DRIVERS, volumes.CAPACITIES, claims.CLAIMS, claims.SLICES, claims.DEVICE_CLASSES)
PRIORITIES = "cluster-autoscaler-priority-expander"      # ConfigMap beside the status: priorities: {10: [regular expressions of groups]}
DELETIONS_MAX, DRAINS_MAX = 10, 1
EVICTION_RETRY_S, GONE_POLL_S = 2.0, 0.2
CONFLICT_TRIES = 5
SOFT_TAINTS_MAX = 100                   # written in one scan


@dataclass(slots=True)
class Backoff:
    until_s: float
    for_s: float
    why: str


class Autoscaler:
    """Owns what is under way: nodes asked for, nodes being deleted, since when each node is unneeded."""

    def __init__(self, client: Client, mirrors: Mirrors, provider: Provider, groups: Iterable[Group], timings: Timings,
                 clock: Callable[[], float]) -> None:
        self.client, self.mirrors, self.provider, self.clock, self.timings = client, mirrors, provider, clock, timings
        self.groups = {g.name: g for g in groups}
        self.recorder = Recorder(client, clock)
        self.requested: dict[str, tuple[str, float]] = {}            # node -> (group, when it was asked for), until it is ready
        self.unneeded: dict[str, float] = {}                         # node -> since when
        self.deleting: dict[str, tuple[asyncio.Task[None], bool]] = {}   # node -> (task, with drain)
        self.backoff: dict[str, Backoff] = {}
        self.added_s = self.failed_s = float("-inf")
        self.transitions = status.Transitions()
        self.object: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": status.NAME, "namespace": status.NAMESPACE}}
        self._infos: dict[str, tuple[str, PodInfo]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._volume_filters, self._volume_prefilters = volumes.filters(mirrors, {}), volumes.prefilters(mirrors)
        self._allocating: dict[str, Any] = {}
        self._like: dict[str, str] = {}                              # group -> a node of it that is there
        self._view = Imagined(mirrors, self._slices_of)
        self._devices = claims.DynamicResources(self._view, self._allocating, clock)

    async def run(self, ready: Callable[[], Any] | None = None) -> None:
        """Until cancelled."""
        await self.mirrors.synced(READS)
        writing = asyncio.create_task(self.recorder.run(), name="autoscaler events")
        try:
            await self._take_up()
            if ready is not None:
                ready()
            while True:
                try:
                    await self.scan()
                except StatusError as e:
                    log.warning("scan: %s", e.message)
                except Exception:
                    log.exception("scan")
                await asyncio.sleep(self.timings.scan_interval_s)
        finally:
            pending = [writing, *self._tasks, *(t for t, _ in self.deleting.values())]
            for t in pending:
                t.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _take_up(self) -> None:
        """What an earlier process left: its nodes are ours, nodes it was about to delete are given back."""
        await self._refresh()
        have = self.provider.instances()
        for node in self.mirrors.list("nodes"):
            name = meta(node)["name"]
            group = self.groups.get(self.provider.group_of(name))
            if group is None:
                continue
            if name not in have:
                await self.provider.adopt(group, name)
            if _tainted(node, DELETING_TAINT) or _tainted(node, CANDIDATE_TAINT):
                await self._untaint(name)

    async def _refresh(self) -> None:
        """The provider's groups, and the names of nodes that were asked for by number."""
        try:
            groups = await self.provider.refresh(self.mirrors.list("nodes"))
        except Exception as e:
            log.warning("the provider does not answer: %s", e)
            return
        if groups is not None:
            self.groups = {g.name: g for g in groups}
        for asked, name in self.provider.renamed().items():
            if asked in self.requested:
                self.requested[name] = self.requested.pop(asked)

    # --- one scan -----------------------------------------------------------------------------------------------------

    async def scan(self) -> None:
        """Look once, and start what is to be done."""
        await self._refresh()
        now = self.clock()
        nodes = {meta(n)["name"]: n for n in self.mirrors.list("nodes")}
        self._check_provisioning(nodes, now)
        members = self._members(nodes)
        sizes = [self._size(g, members[g.name], nodes, now) for g in self.groups.values()]
        grown = False
        for s in sizes:
            if s.target < s.group.min and not s.backoff:
                grown |= self._start(s.group, s.group.min - s.target, members[s.group.name] | nodes.keys(), now)
        table: NodeTable | None = None
        extra_for = self._extra_for
        pending = [p for p in self.mirrors.by("pods", "status.phase", "Pending") if _unschedulable(p) and self._old_enough(p, now)]
        if pending and not grown:
            table = self._table(nodes)
            found = grow([pod_info(p) for p in pending], table, sizes, extra_for, daemon_pods(self.mirrors.list(DAEMON_SETS)),
                         await self._expander(), self._reserve)
            grown = self._grow(found, members, nodes, now)
        candidates = {n: g for g, names in members.items() for n in names
                      if n in nodes and n not in self.requested and n not in self.deleting}
        going = {g: sum(1 for n in self.deleting if n in members[g]) for g in self.groups}
        spare = {s.group.name: s.target - going[s.group.name] - s.upcoming - s.group.min for s in sizes}
        unneeded: tuple[Unneeded, ...] = ()
        if candidates and any(spare[g] > 0 for g in candidates.values()):
            table = table or self._table(nodes)
            unready = frozenset(n for n in candidates if not is_ready(nodes[n]))
            shrunk = shrink(table, candidates, spare, budgets_of(self.mirrors.list("poddisruptionbudgets.policy")), extra_for,
                            self.timings.scale_down_utilization_threshold, unready)
            unneeded = shrunk.unneeded
            if shrunk.kept:
                log.debug("nodes that stay: %s", ", ".join(f"{n} ({why})" for n, why in sorted(shrunk.kept.items())))
        self.unneeded = {u.node: self.unneeded.get(u.node, now) for u in unneeded}
        if not grown:
            self._shrink(unneeded, nodes, now)
        await self._soft_taints(nodes, candidates)
        await self._report(members, nodes, sizes, now)

    def _members(self, nodes: dict[str, Object]) -> dict[str, set[str]]:
        """The nodes of each group: that run, are registered or have been asked for."""
        out: dict[str, set[str]] = {g: set() for g in self.groups}
        for name in {*self.provider.instances(), *nodes, *self.requested}:
            group = self.requested[name][0] if name in self.requested else self.provider.group_of(name)
            if group in out:
                out[group].add(name)
        return out

    def _size(self, group: Group, members: set[str], nodes: dict[str, Object], now: float) -> Size:
        like = next((nodes[n] for n in sorted(members) if n in nodes and is_ready(nodes[n])), None)
        told = self.provider.template(group)[0]
        self._like[group.name] = meta(like)["name"] if like is not None else ""
        template = template_node(group, f"template-{group.name}", like or told or None, self.provider.room(group))
        backoff = self.backoff.get(group.name)
        return Size(group, len(members), sum(1 for n in members if n in self.requested), template, bool(backoff and now < backoff.until_s))

    def _table(self, nodes: dict[str, Object]) -> NodeTable:
        """Nodes that are there and count, with their pods. Those on their way are grow's to imagine."""
        table = NodeTable()
        for ns in self.mirrors.list("namespaces"):
            table.set_namespace(meta(ns)["name"], meta(ns).get("labels") or {})
        for name, node in nodes.items():
            if name not in self.requested:
                table.set_node(node)
        kept: dict[str, tuple[str, PodInfo]] = {}
        for pod in self.mirrors.list("pods"):
            m = meta(pod)
            where = (pod.get("spec") or {}).get("nodeName")
            if where and where in table.slots and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                known = self._infos.get(m["uid"])
                if known is None or known[0] != m["resourceVersion"]:
                    known = (m["resourceVersion"], pod_info(pod))
                known[1].slot = -1
                kept[m["uid"]] = known
                table.add_pod(known[1], where)
        self._infos = kept
        self._view.table = table
        return table

    def _extra_for(self, p: PodInfo) -> Extra:
        devices = self._devices.concerns(p)
        return Extra(
            filters=self._volume_filters if p.volumes else (),
            prefilters=(*(self._volume_prefilters if p.volumes else ()), *((("DynamicResources", self._devices.prefilter),) if devices else ())),
            late_filters=(("DynamicResources", self._devices.filter),) if devices else ())

    def _reserve(self, p: PodInfo, slot: int) -> Callable[[], None]:
        """The pod takes devices while the thought lasts."""
        assert self._view.table is not None
        taken = self._devices.reserve(p, self._view.table, slot).uids

        def give_back() -> None:
            for claim in taken:
                self._allocating.pop(claim, None)
        return give_back

    def _slices_of(self, group: str) -> list[Object]:
        """The ResourceSlices of a node of the group: as the provider tells, or as one that is there has them."""
        found = self.groups.get(group)
        told = self.provider.template(found)[1] if found is not None else []
        like = self._like.get(group)
        return told or [s for s in self.mirrors.list(claims.SLICES) if like and s["spec"].get("nodeName") == like]

    async def _expander(self) -> Expander:
        names, priorities = self.timings.expander, {}
        if "priority" in names:
            try:
                found = await self.client.get(CONFIG_MAP, status.NAMESPACE, PRIORITIES)
                priorities = _priorities((found.get("data") or {}).get("priorities") or "")
            except StatusError as e:
                log.warning("%s: %s", PRIORITIES, e.message)
        return expander(names, priorities, _random.randrange)

    def _old_enough(self, pod: Object, now: float) -> bool:
        return not self.timings.new_pod_scale_up_delay_s or now - seconds_of(meta(pod).get("creationTimestamp")) >= self.timings.new_pod_scale_up_delay_s

    # --- up -----------------------------------------------------------------------------------------------------------

    def _grow(self, found: Growth, members: dict[str, set[str]], nodes: dict[str, Object], now: float) -> bool:
        """Ask for the nodes and tell the pods; True if there are any."""
        if not found.group:
            for p, reasons in found.refused:
                text = ", ".join(f"{n} {r}" for r, n in sorted(reasons.items()))
                self._say(p.pod, "Normal", "NotTriggerScaleUp", f"pod didn't trigger scale-up: {text}")
            return False
        group = self.groups[found.group]
        self._start(group, found.size - found.now, members[group.name] | nodes.keys(), now)
        for p in found.helped:
            self._say(p.pod, "Normal", "TriggeredScaleUp", f"pod triggered scale-up: {found}")
        return True

    def _start(self, group: Group, count: int, taken: set[str], now: float) -> bool:
        was = sum(1 for n in taken if self.provider.group_of(n) == group.name)
        self._log_event("Normal", "ScaledUpGroup", f"Scale-up: setting group {group.name} size to {was + count} instead of {was} (max: {group.max})")
        number, names = 0, []
        for _ in range(count):
            while f"{group.name}-{number}" in taken:
                number += 1
            names.append(f"{group.name}-{number}")
            taken = taken | {names[-1]}
            self.requested[names[-1]] = (group.name, now)
        if names:
            self._spawn(self._create(group, names), f"create {', '.join(names)}")
        self.added_s = now
        return count > 0

    async def _create(self, group: Group, names: list[str]) -> None:
        try:
            failed = await self.provider.create(group, names)
        except Exception as e:
            failed = {n: str(e) for n in names}
        for name, why in failed.items():
            log.warning("node %s could not be made: %s", name, why)
            self.requested.pop(name, None)
        if failed:
            self._failed(group.name, f"Scale-up failed for group {group.name}: {next(iter(failed.values()))}", "FailedToScaleUpGroup")

    def _failed(self, group: str, why: str, reason: str) -> None:
        """Leave the group alone for a while, longer each time."""
        now = self.clock()
        before = self.backoff.get(group)
        again = before is not None and now - before.until_s < 3 * 3600
        span = min(before.for_s * 2, self.timings.backoff_max_s) if before is not None and again else self.timings.backoff_s
        self.backoff[group] = Backoff(now + span, span, why)
        self._log_event("Warning", reason, why)

    def _check_provisioning(self, nodes: dict[str, Object], now: float) -> None:
        """Forget requests that have come true; give up on those that take too long."""
        for name, (group, at) in list(self.requested.items()):
            if name in nodes and is_ready(nodes[name]):
                del self.requested[name]
                self.backoff.pop(group, None)
            elif now - at > self.timings.max_node_provision_time_s:
                del self.requested[name]
                self._failed(group, f"Nodes added to group {group} failed to register within {_go_duration(now - at)}", "ScaleUpTimedOut")
                self._delete(name, None)

    # --- down ---------------------------------------------------------------------------------------------------------

    def _shrink(self, unneeded: Iterable[Unneeded], nodes: dict[str, Object], now: float) -> None:
        """Begin with those that have been unneeded long enough: empty ones together, others one at a time."""
        t = self.timings
        if now - self.added_s < t.scale_down_delay_after_add_s or now - self.failed_s < t.scale_down_delay_after_failure_s:
            return
        drains = sum(1 for _, drain in self.deleting.values() if drain)
        for u in unneeded:
            long = t.scale_down_unneeded_time_s if is_ready(nodes[u.node]) else t.scale_down_unready_time_s
            if now - self.unneeded[u.node] < long or len(self.deleting) >= DELETIONS_MAX or (u.pods and drains >= DRAINS_MAX):
                continue
            drains += bool(u.pods)
            self._delete(u.node, u)

    def _delete(self, name: str, why: Unneeded | None) -> None:
        if name not in self.deleting:
            task = self._spawn(self._remove(name, why), f"delete {name}")
            self.deleting[name] = (task, bool(why and why.pods))
            task.add_done_callback(lambda _: self.deleting.pop(name, None))

    async def _remove(self, name: str, why: Unneeded | None) -> None:
        """Take one node away; given back if its pods cannot be evicted."""
        node = self.mirrors.get("nodes", "", name)
        if node is not None and why is not None:
            await self._taint(name, DELETING_TAINT, "NoSchedule", cordon=True)
            self._say(node, "Normal", "ScaleDown", "marked the node as toBeDeleted/unschedulable")
            if why.pods:
                self._log_event("Normal", "ScaleDown", f"Scale-down: removing node {name}, utilization: {why.utilization:.3f}, "
                                                       f"pods to reschedule: {', '.join(f'{p.namespace}/{p.name}' for p in why.pods)}")
            else:
                self._log_event("Normal", "ScaleDownEmpty", f'Scale-down: removing empty node "{name}"')
            problem = await self._evict(name)
            if problem:
                self.failed_s = self.clock()
                await self._untaint(name)
                self._say(node, "Warning", "ScaleDownFailed", f"failed to drain the node, aborting ScaleDown: {problem}")
                return
        try:
            await self.provider.delete(name)
        except Exception as e:
            log.warning("node %s could not be removed: %s", name, e)
            self.failed_s = self.clock()
            if node is not None:
                await self._untaint(name)
                self._say(node, "Warning", "ScaleDownFailed", f"failed to delete the node: {e}")
            return
        try:
            await self.client.delete(NODE, "", name)
        except StatusError as e:
            if e.code != 404:
                raise
        if node is not None:
            self._say(node, "Normal", "ScaleDown", "node removed by cluster autoscaler")

    async def _evict(self, name: str) -> str:
        """Evict what has to move and wait until it is gone; "" or what went wrong."""
        told: set[str] = set()
        began = self.clock()
        while True:
            items, _ = await self.client.list(POD, fields=f"spec.nodeName={name}")
            left = [p for p in items if not is_daemon(p) and MIRROR not in (meta(p).get("annotations") or {})
                    and (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
            if not left:
                return ""
            refused = ""
            for p in left:
                m = meta(p)
                if deleting(p):
                    continue
                if m["uid"] not in told:
                    told.add(m["uid"])
                    self._say(p, "Normal", "ScaleDown", "deleting pod for node scale down")
                try:
                    await self.client.create_in(POD, {"apiVersion": "policy/v1", "kind": "Eviction",
                                                      "metadata": {"name": m["name"], "namespace": m["namespace"]}}, name=m["name"], subresource="eviction")
                except StatusError as e:
                    if e.code != 404:
                        refused = f"{m['namespace']}/{m['name']}: {e.message}"
            waited = self.clock() - began
            if refused and waited > self.timings.max_pod_eviction_time_s:
                return refused
            if waited > self.timings.max_graceful_termination_s:
                return f"{len(left)} pods are still there"
            await asyncio.sleep(min(EVICTION_RETRY_S, max(GONE_POLL_S, self.timings.max_pod_eviction_time_s / 10)) if refused else GONE_POLL_S)

    # --- taints -------------------------------------------------------------------------------------------------------

    async def _soft_taints(self, nodes: dict[str, Object], candidates: dict[str, str]) -> None:
        """Nodes that may go soon are the scheduler's last choice."""
        budget = SOFT_TAINTS_MAX
        for name in candidates:
            if name in self.deleting or budget <= 0:
                continue
            has = _tainted(nodes[name], CANDIDATE_TAINT)
            if has != (name in self.unneeded):
                budget -= 1
                try:
                    await (self._untaint(name) if has else self._taint(name, CANDIDATE_TAINT, "PreferNoSchedule"))
                except StatusError as e:
                    log.info("taint of %s: %s", name, e.message)

    async def _taint(self, name: str, key: str, effect: str, cordon: bool = False) -> None:
        value = str(int(self.clock()))

        def change(spec: dict[str, Any]) -> dict[str, Any]:
            taints = [t for t in spec.get("taints") or () if t.get("key") != key]
            return {"taints": [*taints, {"key": key, "value": value, "effect": effect}], **({"unschedulable": True} if cordon else {})}
        await self._change(name, change)

    async def _untaint(self, name: str) -> None:
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

    # --- telling ------------------------------------------------------------------------------------------------------

    def _say(self, obj: Object, type_: str, reason: str, message: str) -> None:
        about = obj if obj.get("kind") else {**obj, "apiVersion": "v1", "kind": "Node" if not meta(obj).get("namespace") else "Pod"}
        self.recorder.emit(NAME, Emit(about, type_, reason, message))

    def _log_event(self, type_: str, reason: str, message: str) -> None:
        """An event on the status ConfigMap, for people without the log."""
        log.info("%s", message)
        self.recorder.emit(NAME, Emit(self.object, type_, reason, message))

    async def _report(self, members: dict[str, set[str]], nodes: dict[str, Object], sizes: list[Size], now: float) -> None:
        states = [self._state(s, members[s.group.name], nodes, now) for s in sizes]
        others = [n for n in nodes.values() if self.provider.group_of(meta(n)["name"]) not in self.groups]
        ready = sum(is_ready(n) for n in others)

        def total(attribute: str) -> int:
            return sum(getattr(g, attribute) for g in states)
        whole = status.GroupState(
            "", total("total") + len(others), total("ready") + ready, total("not_started"), total("being_deleted"), total("unready") + len(others) - ready,
            total("unregistered"), scaling_up=any(g.scaling_up for g in states), candidates=total("candidates"))
        body = status.config_map(status.report(states, whole, self.transitions, now), now)
        try:
            made = await self.client.patch(CONFIG_MAP, status.NAMESPACE, status.NAME, {"metadata": {"annotations": body["metadata"]["annotations"]},
                                                                                       "data": body["data"]})
        except StatusError as e:
            if e.code != 404:
                raise
            made = await self.client.create(body)
        self.object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(made)}

    def _state(self, s: Size, members: set[str], nodes: dict[str, Object], now: float) -> status.GroupState:
        there = [n for n in members if n in nodes]
        ready = sum(1 for n in there if is_ready(nodes[n]) and n not in self.deleting)
        gone = sum(1 for n in there if n in self.deleting)
        starting = sum(1 for n in there if n in self.requested)
        backoff = self.backoff.get(s.group.name)
        return status.GroupState(
            s.group.name, len(there), ready, starting, gone, max(0, len(there) - ready - gone - starting), len(members) - len(there),
            target=len({*members, *(n for n, (g, _) in self.requested.items() if g == s.group.name)}), min=s.group.min, max=s.group.max,
            scaling_up=any(g == s.group.name for g, _ in self.requested.values()), backoff=backoff.why if backoff and now < backoff.until_s else "",
            candidates=sum(1 for n in self.unneeded if n in members))

    def _spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failed_s = self.clock()
            log.warning("%s: %s", task.get_name(), task.exception())


def is_ready(node: Object) -> bool:
    """Ready, and nothing keeps pods away because it only just came."""
    keys = {t.get("key") for t in (node.get("spec") or {}).get("taints") or ()}
    return ((condition(node, "Ready") or {}).get("status") == "True" and "node.kubernetes.io/not-ready" not in keys
            and "node.kubernetes.io/network-unavailable" not in keys and "node.kubernetes.io/unreachable" not in keys)


def _tainted(node: Object, key: str) -> bool:
    return any(t.get("key") == key for t in (node.get("spec") or {}).get("taints") or ())


def _unschedulable(pod: Object) -> bool:
    c = condition(pod, "PodScheduled") or {}
    return not (pod.get("spec") or {}).get("nodeName") and not deleting(pod) and c.get("status") == "False" and c.get("reason") == "Unschedulable"


def _priorities(text: str) -> dict[int, list[str]]:
    """What the ConfigMap says; nothing of what cannot be read."""
    import re

    import yaml

    try:
        given = yaml.safe_load(text) or {}
        out = {int(n): [str(p) for p in patterns] for n, patterns in given.items()}
        for p in (p for patterns in out.values() for p in patterns):
            re.compile(p)
    except (yaml.YAMLError, re.error, AttributeError, TypeError, ValueError) as e:
        log.warning("%s: %s", PRIORITIES, e)
        return {}
    return out


def _go_duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.9f}".rstrip("0").rstrip(".") + "s" if minutes else f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
