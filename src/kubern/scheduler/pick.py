"""pick: filters, then scores. One pod, the table and a random number in; a Decision or a Rejection out. Pure.

FILTERS and SCORES are read in order; order decides which reason a node is counted under, as upstream's first failing plugin does.
All nodes are looked at (upstream samples them): the arrays make that cheaper than sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from kubern.scheduler.nominated import Nominations
from kubern.scheduler.plugins import node, resources, topology
from kubern.scheduler.plugins.verdict import Ints, Mask, Reject, Restrict, Verdict
from kubern.scheduler.pod import PodInfo, Spread
from kubern.scheduler.profile import WEIGHTS, Profile
from kubern.scheduler.table import NodeTable

Filter = Callable[[PodInfo, NodeTable], Iterator[Verdict]]

FILTERS: tuple[tuple[str, Filter], ...] = (
    ("NodeUnschedulable", node.unschedulable),
    ("NodeName", node.node_name),
    ("TaintToleration", node.taint_toleration),
    ("NodeAffinity", node.node_affinity),
    ("NodePorts", node.node_ports),
    ("NodeResourcesFit", resources.fit),
)
AFTER_VOLUMES: tuple[tuple[str, Filter], ...] = (      # volume plugins stand between; they need storage objects (volumes.py)
    ("PodTopologySpread", topology.spread),
    ("InterPodAffinity", topology.pod_affinity),
)
LAST: tuple[tuple[str, Filter], ...] = (("NodeDeclaredFeatures", node.declared_features),)
ONE_REASON = frozenset({"InterPodAffinity", "PodTopologySpread"})     # plugins that give a node one reason at most


@dataclass(frozen=True, slots=True)
class Decision:
    node: str
    slot: int


@dataclass(slots=True)
class Rejection:
    """Why no node: counts by reason, and per node whether evicting pods might help."""

    total: int
    reasons: dict[str, int] = field(default_factory=dict)
    plugins: set[str] = field(default_factory=set)
    candidates: Mask | None = None                  # nodes where preemption may help
    message: str = ""                               # a pre-filter's own words instead of counts
    only_resources: Mask | None = None              # candidates that failed for resources alone
    per_node: list[tuple[str, str, Mask]] = field(default_factory=list)   # (plugin, reason, nodes): what `kubern why` shows

    def text(self, tail: str = "") -> str:
        """"0/N nodes are available: …": reasons sorted as strings, then what preemption had to say."""
        out = f"0/{self.total} nodes are available:"
        if self.message:
            out += f" {self.message}."
        else:
            parts = sorted(f"{n} {reason}" for reason, n in self.reasons.items())
            if parts:
                out += f" {', '.join(parts)}."
        return f"{out} {tail}" if tail else out


@dataclass(frozen=True, slots=True)
class Extra:
    """What pick needs besides the table: filters over storage and devices, soft default spreading, pods nominated to nodes."""

    filters: tuple[tuple[str, Filter], ...] = ()
    prefilters: tuple[tuple[str, Callable[[PodInfo, NodeTable], Restrict | Reject | None]], ...] = ()
    late_filters: tuple[tuple[str, Filter], ...] = ()
    late_scores: tuple[tuple[str, Callable[[PodInfo, NodeTable, Mask], Ints | None]], ...] = ()      # normalized here
    default_spreads: tuple[Spread, ...] = ()
    profile: Profile | None = None                      # None: upstream's default
    nominated: Nominations | None = None


def feasible(p: PodInfo, t: NodeTable, extra: Extra, *, explain: bool = False) -> tuple[Mask, Rejection]:
    """The nodes that pass every filter, and what kept the others out. With `explain`, per node and plugin."""
    alive = t.all().copy()
    out = Rejection(int(alive.sum()))
    final = np.zeros(t.size, bool)
    only_fit = np.zeros(t.size, bool)
    off = extra.profile.off if extra.profile is not None else ()
    for name, pre in (("NodeAffinity", node.prefilter_affinity), *extra.prefilters):
        if name in off:
            continue
        verdict = pre(p, t)
        if isinstance(verdict, Reject):
            out.message = verdict.reason
            out.plugins.add(name)
            out.candidates = np.zeros(t.size, bool) if verdict.final else alive
            return np.zeros(t.size, bool), out
        if isinstance(verdict, Restrict):
            dropped = int((alive & ~verdict.only).sum())
            if dropped:
                reason = f"node(s) didn't satisfy plugin(s) [{name}]"
                out.reasons[reason] = out.reasons.get(reason, 0) + dropped
                out.plugins.add(name)
                final |= alive & ~verdict.only
                alive &= verdict.only
    promised = extra.nominated.sums(p) if extra.nominated else None
    if promised is not None:
        t.used[:len(promised)] += promised              # nobody takes the room that was made for another
    try:
        for name, run in (*FILTERS, *extra.filters, *AFTER_VOLUMES, *extra.late_filters, *LAST):
            if name in off:
                continue
            failing: Mask | None = None
            for v in run(p, t):
                bad = v.bad & alive
                n = int(np.count_nonzero(bad))
                if not n:
                    continue
                if failing is not None and name in ONE_REASON:
                    bad &= ~failing
                    n = int(np.count_nonzero(bad))
                    if not n:
                        continue
                out.reasons[v.reason] = out.reasons.get(v.reason, 0) + n
                if explain:
                    out.per_node.append((name, v.reason, bad))
                if v.final is True:
                    final |= bad
                elif v.final is not False:
                    final |= bad & v.final
                failing = bad if failing is None else failing | bad
            if failing is not None:
                out.plugins.add(name)
                if name == "NodeResourcesFit":
                    only_fit |= failing
                alive &= ~failing
    finally:
        if promised is not None:
            t.used[:len(promised)] -= promised
    if extra.nominated:
        _meet(p, t, extra, alive, final, out, explain)
    out.candidates = t.all() & ~alive & ~final
    out.only_resources = only_fit
    return alive, out


def _meet(p: PodInfo, t: NodeTable, extra: Extra, alive: Mask, final: Mask, out: Rejection, explain: bool) -> None:
    """Where others are nominated and more than room is at stake (ports, affinity, spreading), a node must do with them there as well as without."""
    assert extra.nominated is not None
    for slot, others in extra.nominated.meeting(p):
        if not alive[slot]:
            continue
        for q in others:
            t.add_pod(q, t.names[slot])
        try:
            ok, why = feasible(p, t, replace(extra, nominated=None), explain=True)
        finally:
            for q in others:
                t.remove_pod(q)
        if ok[slot]:
            continue
        alive[slot] = False
        final[slot] = why.candidates is None or not why.candidates[slot]
        for plugin, reason, nodes in why.per_node:
            if nodes[slot]:
                out.reasons[reason] = out.reasons.get(reason, 0) + 1
                out.plugins.add(plugin)
                if explain:
                    here = np.zeros(t.size, bool)
                    here[slot] = True
                    out.per_node.append((plugin, reason, here))


def _normalized(score: Ints, ok: Mask, reverse: bool) -> Ints:
    """0-100 by the highest feasible score; reversed where less is better (upstream's DefaultNormalizeScore)."""
    high = int(score[ok].max()) if ok.any() else 0
    if high == 0:
        return np.full(len(score), 100 if reverse else 0, np.int64)
    scaled = score * 100 // high
    return 100 - scaled if reverse else scaled


def scores(p: PodInfo, t: NodeTable, ok: Mask, extra: Extra) -> tuple[Ints, dict[str, Ints]]:
    """The weighted sum over all score plugins, and each plugin's part."""
    parts: dict[str, Ints] = {}
    taints = node.score_taints(p, t)
    if taints is not None and taints.any():
        parts["TaintToleration"] = _normalized(taints, ok, reverse=True)
    preferred = node.score_affinity(p, t)
    if preferred is not None:
        parts["NodeAffinity"] = _normalized(preferred, ok, reverse=False)
    profile = extra.profile
    parts["NodeResourcesFit"] = (resources.least_allocated(p, t) if profile is None or profile.strategy is None
                                 else resources.by_strategy(p, t, profile.strategy))
    soft = tuple(c for c in p.spreads if not c.hard) or (() if p.spreads else extra.default_spreads)
    for name, part in (("PodTopologySpread", topology.score_spread(p, t, ok, soft, system=soft is extra.default_spreads)),
                       ("InterPodAffinity", topology.score_pod_affinity(p, t, ok)),
                       ("NodeResourcesBalancedAllocation", resources.balanced(p, t)),
                       ("ImageLocality", node.score_images(p, t))):
        if part is not None:
            parts[name] = part
    for name, run in extra.late_scores:
        raw = run(p, t, ok)
        if raw is not None:
            parts[name] = _normalized(raw, ok, reverse=False)
    total = np.zeros(t.size, np.int64)
    weights = WEIGHTS if profile is None else profile.weights
    for name, part in parts.items():
        if name in weights:
            total += weights[name] * part
    return total, parts


def pick(p: PodInfo, t: NodeTable, random: Callable[[int], int], extra: Extra | None = None) -> Decision | Rejection:
    """The best node for the pod; ties broken by random(n) -> 0..n-1."""
    extra = extra or NOTHING
    ok, rejection = feasible(p, t, extra)
    return best(p, t, ok, extra, random) if ok.any() else rejection


def best(p: PodInfo, t: NodeTable, ok: Mask, extra: Extra, random: Callable[[int], int], more: Ints | None = None) -> Decision:
    """The node with the highest score of those that will do (one at least); `more` is added to what the plugins say."""
    if extra.nominated:
        first = t.slots.get(extra.nominated.node_of(p.key), -1)
        if first >= 0 and ok[first]:                    # room was made there, so there it goes
            return Decision(t.names[first], first)
    slots = np.nonzero(ok)[0]
    if len(slots) == 1:
        slot = int(slots[0])
        return Decision(t.names[slot], slot)
    total, _ = scores(p, t, ok, extra)
    if more is not None:
        total = total + more
    mine = total[slots]
    top = slots[mine == mine.max()]
    slot = int(top[random(len(top))] if len(top) > 1 else top[0])
    return Decision(t.names[slot], slot)


NOTHING = Extra()
