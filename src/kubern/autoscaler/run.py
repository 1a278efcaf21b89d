"""The autoscaler's shell: every scan it reads the mirrors, asks grow and shrink, and has providers carry the answer out.

What upstream calls by these names: scan interval, max node provision time, backoff, unneeded time, delay after add. Not a decision: those are in
kubern.scheduler.grow and .shrink. How a node goes: removal.py.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kubern.autoscaler import status
from kubern.autoscaler.balance import balance, similar
from kubern.autoscaler.options import BadGroup, Options, parse_priorities
from kubern.autoscaler.providers import Provider
from kubern.autoscaler.removal import Removal, tainted
from kubern.autoscaler.thought import READS as THOUGHT_READS
from kubern.autoscaler.thought import Thought
from kubern.autoscaler.voice import NAME, Voice
from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.model.object import Object, condition, deleting, meta
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.model.time import duration_text, seconds_of
from kubern.scheduler import claims
from kubern.scheduler.grow import Expander, Group, Growth, Size, daemon_pods, expander, grow, template_node
from kubern.scheduler.pod import pod_info
from kubern.scheduler.shrink import CANDIDATE_TAINT, DELETING_TAINT, Rules, Unneeded, budgets_of, shrink
from kubern.scheduler.table import NodeTable

__all__ = ["NAME", "Autoscaler"]

log = logging.getLogger(__name__)

CONFIG_MAP = by_kind[("v1", "ConfigMap")]
DAEMON_SETS, BUDGETS = "daemonsets.apps", "poddisruptionbudgets.policy"
READS = (*THOUGHT_READS, DAEMON_SETS, BUDGETS)
PRIORITIES = "cluster-autoscaler-priority-expander"      # ConfigMap beside the status: priorities: {10: [regular expressions of groups]}
STALE_AFTER_S = 3 * 3600.0                               # a failure this long ago does not lengthen the next pause


@dataclass(slots=True)
class Backoff:
    until_s: float
    for_s: float
    why: str


class Autoscaler:
    """Owns what is under way: nodes asked for, since when each node is unneeded, which groups are left alone."""

    def __init__(self, client: Client, mirrors: Mirrors, provider: Provider, groups: Iterable[Group], options: Options,
                 clock: Callable[[], float]) -> None:
        self.client, self.mirrors, self.provider, self.clock, self.options = client, mirrors, provider, clock, options
        self.groups = {g.name: g for g in groups}
        self.voice = Voice(client, clock)
        self.removal = Removal(client, mirrors, provider, options, self.voice, clock, self._spawn)
        self.thought = Thought(mirrors, self._slices_of, clock)
        self.requested: dict[str, tuple[str, float]] = {}            # node -> (group, when it was asked for), until it is ready
        self.unneeded: dict[str, float] = {}                         # node -> since when
        self.backoff: dict[str, Backoff] = {}
        self.added_s = float("-inf")
        self.transitions = status.Transitions()
        self._like: dict[str, str] = {}                              # group -> a node of it that is there
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, ready: Callable[[], Any] | None = None) -> None:
        """Until cancelled."""
        await self.mirrors.synced(READS)
        writing = asyncio.create_task(self.voice.recorder.run(), name="autoscaler events")
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
                await asyncio.sleep(self.options.scan_interval_s)
        finally:
            pending = [writing, *self._tasks]
            for t in pending:
                t.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await self.provider.close()

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
            if tainted(node, DELETING_TAINT) or tainted(node, CANDIDATE_TAINT):
                await self.removal.untaint(name)

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

    def _options(self, group: str) -> Options:
        found = self.groups.get(group)
        return self.provider.options(found, self.options) if found is not None else self.options

    # --- one scan -----------------------------------------------------------------------------------------------------

    async def scan(self) -> None:
        """Look once, and start what is to be done."""
        await self._refresh()
        now = self.clock()
        nodes = {meta(n)["name"]: n for n in self.mirrors.list("nodes")}
        self._check_provisioning(nodes, now)
        members = self._members(nodes)
        sizes = [self._size(g, members[g.name], nodes, now) for g in self.groups.values()]
        unready = frozenset(n for n in nodes if not is_ready(nodes[n]) and n not in self.requested and n not in self.removal.deleting)
        if self.options.healthy(len(nodes), len(unready)):
            await self._act(sizes, members, nodes, unready, now)
        else:
            log.warning("%d of %d nodes are not ready: nothing is changed", len(unready), len(nodes))
        await self._report(members, nodes, sizes, now)

    async def _act(self, sizes: list[Size], members: dict[str, set[str]], nodes: dict[str, Object], unready: frozenset[str], now: float) -> None:
        taken, grown = {*nodes, *(n for names in members.values() for n in names)}, False
        for s in sizes:
            if s.target < s.group.min and not s.backoff:
                grown |= self._start(s, s.group.min - s.target, taken, now)
        table: NodeTable | None = None
        pending = [p for p in self.mirrors.by("pods", "status.phase", "Pending") if _unschedulable(p) and self._old_enough(p, now)]
        if pending and not grown:
            table = self.thought.table(nodes, self.requested)
            found = grow([pod_info(p) for p in pending], table, sizes, self.thought.extra_for, daemon_pods(self.mirrors.list(DAEMON_SETS)),
                         await self._expander(), self.thought.reserve)
            grown = self._grow(found, sizes, taken, now)
        candidates = {n: g for g, names in members.items() for n in names
                      if n in nodes and n not in self.requested and n not in self.removal.deleting}
        going = {g: sum(1 for n in self.removal.deleting if n in members[g]) for g in self.groups}
        spare = {s.group.name: s.target - going[s.group.name] - s.upcoming - s.group.min for s in sizes}
        unneeded: tuple[Unneeded, ...] = ()
        if self.options.scale_down_enabled and candidates and any(spare[g] > 0 for g in candidates.values()):
            shrunk = shrink(table or self.thought.table(nodes, self.requested), candidates, spare, budgets_of(self.mirrors.list(BUDGETS)),
                            self.thought.extra_for, {g: self._rules(g) for g in self.groups}, unready)
            unneeded = shrunk.unneeded
            if shrunk.kept:
                log.debug("nodes that stay: %s", ", ".join(f"{n} ({why})" for n, why in sorted(shrunk.kept.items())))
        self.unneeded = {u.node: self.unneeded.get(u.node, now) for u in unneeded}
        if not grown:
            self._shrink(unneeded, candidates, nodes, now)
        await self.removal.soften(nodes, candidates, self.unneeded)

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

    def _rules(self, group: str) -> Rules:
        o = self._options(group)
        return Rules(o.scale_down_utilization_threshold, o.ignore_daemonsets_utilization, o.skip_nodes_with_system_pods, o.skip_nodes_with_local_storage)

    def _slices_of(self, group: str) -> list[Object]:
        """The ResourceSlices of a node of the group: as the provider tells, or as one that is there has them."""
        found = self.groups.get(group)
        told = self.provider.template(found)[1] if found is not None else []
        like = self._like.get(group)
        return told or [s for s in self.mirrors.list(claims.SLICES) if like and s["spec"].get("nodeName") == like]

    async def _expander(self) -> Expander:
        names, priorities = self.options.expander, dict[int, list[str]]()
        if "priority" in names:
            try:
                found = await self.client.get(CONFIG_MAP, status.NAMESPACE, PRIORITIES)
                priorities = parse_priorities((found.get("data") or {}).get("priorities") or "")
            except (StatusError, BadGroup) as e:
                log.warning("%s: %s", PRIORITIES, e)
        return expander(names, priorities, _random.randrange)

    def _old_enough(self, pod: Object, now: float) -> bool:
        delay_s = self.options.new_pod_scale_up_delay_s
        return not delay_s or now - seconds_of(meta(pod).get("creationTimestamp")) >= delay_s

    # --- up -----------------------------------------------------------------------------------------------------------

    def _grow(self, found: Growth, sizes: list[Size], taken: set[str], now: float) -> bool:
        """Ask for the nodes and tell the pods; True if there are any."""
        if not found.group:
            for p, reasons in found.refused:
                text = ", ".join(f"{n} {r}" for r, n in sorted(reasons.items()))
                self.voice.say(p.pod, "Normal", "NotTriggerScaleUp", f"pod didn't trigger scale-up: {text}")
            return False
        count = found.nodes
        if most := self.options.max_nodes_total:
            count = min(count, most - len(taken))
            if count <= 0:
                for p in found.helped:
                    self.voice.say(p.pod, "Normal", "NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max cluster size reached")
                return False
        by_name = {s.group.name: s for s in sizes}
        best = by_name[found.group]
        shares = {found.group: count}
        if self.options.balance_similar_node_groups:
            alike = [by_name[g] for g in found.others if similar(by_name[g].template, best.template)]
            shares = balance([best, *alike], count)
        told = " ".join(f"{{{g} {by_name[g].target}->{by_name[g].target + n} (max: {by_name[g].group.max})}}" for g, n in shares.items())
        for group, n in shares.items():
            self._start(by_name[group], n, taken, now)
        for p in found.helped:
            self.voice.say(p.pod, "Normal", "TriggeredScaleUp", f"pod triggered scale-up: [{told}]")
        return True

    def _start(self, size: Size, count: int, taken: set[str], now: float) -> bool:
        group, number, names = size.group, 0, []
        sizes = f"{size.target + count} instead of {size.target} (max: {group.max})"
        self.voice.note("Normal", "ScaledUpGroup", f"Scale-up: setting group {group.name} size to {sizes}")
        for _ in range(count):
            while f"{group.name}-{number}" in taken:
                number += 1
            names.append(f"{group.name}-{number}")
            taken.add(names[-1])
            self.requested[names[-1]] = (group.name, now)
        if names:
            self._spawn(self._create(group, names, sizes), f"create {', '.join(names)}")
        self.added_s = now
        return count > 0

    async def _create(self, group: Group, names: list[str], sizes: str) -> None:
        try:
            failed = await self.provider.create(group, names)
        except Exception as e:
            failed = {n: str(e) for n in names}
        for name, why in failed.items():
            log.warning("node %s could not be made: %s", name, why)
            self.requested.pop(name, None)
        if failed:
            self._failed(group.name, f"Scale-up failed for group {group.name}: {next(iter(failed.values()))}", "FailedToScaleUpGroup")
        else:
            self.voice.note("Normal", "ScaledUpGroup", f"Scale-up: group {group.name} size set to {sizes}")

    def _failed(self, group: str, why: str, reason: str) -> None:
        """Leave the group alone for a while, longer each time."""
        now = self.clock()
        before = self.backoff.get(group)
        again = before is not None and now - before.until_s < STALE_AFTER_S
        span = min(before.for_s * 2, self.options.backoff_max_s) if before is not None and again else self.options.backoff_s
        self.backoff[group] = Backoff(now + span, span, why)
        self.voice.note("Warning", reason, why)

    def _check_provisioning(self, nodes: dict[str, Object], now: float) -> None:
        """Forget requests that have come true; give up on those that take too long."""
        for name, (group, at) in list(self.requested.items()):
            if name in nodes and is_ready(nodes[name]):
                del self.requested[name]
                self.backoff.pop(group, None)
            elif now - at > self._options(group).max_node_provision_time_s:
                del self.requested[name]
                took = duration_text(int((now - at) * 1e9))
                self._failed(group, f"Nodes added to group {group} failed to register within {took}", "ScaleUpTimedOut")
                self.removal.delete(name, None)

    # --- down ---------------------------------------------------------------------------------------------------------

    def _shrink(self, unneeded: Iterable[Unneeded], group_of: dict[str, str], nodes: dict[str, Object], now: float) -> None:
        """Begin with those that have been unneeded long enough: empty ones together, others one at a time."""
        o, removal = self.options, self.removal
        if now - self.added_s < o.scale_down_delay_after_add_s or now - removal.failed_s < o.scale_down_delay_after_failure_s \
                or now - removal.deleted_s < o.scale_down_delay_after_delete_s:
            return
        for u in unneeded:
            own = self._options(group_of[u.node])
            long = own.scale_down_unneeded_time_s if is_ready(nodes[u.node]) else own.scale_down_unready_time_s
            if now - self.unneeded[u.node] >= long and len(removal.deleting) < o.max_scale_down_parallelism \
                    and not (u.pods and removal.drains >= o.max_drain_parallelism):
                removal.delete(u.node, u)

    # --- telling ------------------------------------------------------------------------------------------------------

    async def _report(self, members: dict[str, set[str]], nodes: dict[str, Object], sizes: list[Size], now: float) -> None:
        states = [self._state(s, members[s.group.name], nodes, now) for s in sizes]
        others = [n for n in nodes.values() if self.provider.group_of(meta(n)["name"]) not in self.groups]
        whole = status.whole(states, len(others), sum(is_ready(n) for n in others))
        body = status.config_map(status.report(states, whole, self.transitions, now, self.options.healthy), now)
        try:
            made = await self.client.patch(CONFIG_MAP, status.NAMESPACE, status.NAME, {"metadata": {"annotations": body["metadata"]["annotations"]},
                                                                                       "data": body["data"]})
        except StatusError as e:
            if e.code != 404:
                raise
            made = await self.client.create(body)
        self.voice.object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(made)}

    def _state(self, s: Size, members: set[str], nodes: dict[str, Object], now: float) -> status.GroupState:
        there = [n for n in members if n in nodes]
        ready = sum(1 for n in there if is_ready(nodes[n]) and n not in self.removal.deleting)
        gone = sum(1 for n in there if n in self.removal.deleting)
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
            self.removal.failed_s = self.clock()
            log.warning("%s: %s", task.get_name(), task.exception())


def is_ready(node: Object) -> bool:
    """Ready, and nothing keeps pods away because it only just came."""
    keys = {t.get("key") for t in (node.get("spec") or {}).get("taints") or ()}
    return ((condition(node, "Ready") or {}).get("status") == "True" and "node.kubernetes.io/not-ready" not in keys
            and "node.kubernetes.io/network-unavailable" not in keys and "node.kubernetes.io/unreachable" not in keys)


def _unschedulable(pod: Object) -> bool:
    c = condition(pod, "PodScheduled") or {}
    return not (pod.get("spec") or {}).get("nodeName") and not deleting(pod) and c.get("status") == "False" and c.get("reason") == "Unschedulable"
