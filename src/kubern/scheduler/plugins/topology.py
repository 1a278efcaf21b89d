"""PodTopologySpread and InterPodAffinity, on the table's incremental counts: the cost does not grow with the number of pods."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from kubern.scheduler.plugins.node import placement, untolerated
from kubern.scheduler.plugins.verdict import Ints, Mask, Verdict
from kubern.scheduler.pod import PodInfo, Spread, Term
from kubern.scheduler.table import Counter, NodeTable

HOSTNAME = "kubernetes.io/hostname"


# --- topology spread ----------------------------------------------------------------------------------------------------

def _eligible(p: PodInfo, t: NodeTable, c: Spread, keys: tuple[str, ...]) -> Mask:
    """Nodes whose pods count for this constraint: all topology keys there, and the inclusion policies honoured."""
    def make() -> Mask:
        ok = t.all().copy()
        for k in keys:
            ok &= t.column(k) >= 0
        if c.honor_affinity:
            mask = placement(p, t)
            if mask is not None:
                ok &= mask
        if c.honor_taints:
            ok &= ~untolerated(p, t)
        return ok
    tolerations = repr(p.spec.get("tolerations")) if c.honor_taints else ""
    return t.remember(("eligible", keys, p.placement_sig if c.honor_affinity else b"", tolerations), make)     # type: ignore[no-any-return]


def _present(t: NodeTable, key: str, eligible: Mask) -> Ints:
    """The domains that eligible nodes are in. (The mask is kept with the answer: its id stays its own.)"""
    return t.remember(("present", key, id(eligible)), lambda: (eligible, t.domains(key).within(eligible)))[1]      # type: ignore[no-any-return]


def spread(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    hard = [c for c in p.spreads if c.hard]
    keys = tuple(c.key for c in hard)
    for c in hard:
        d = t.domains(c.key)
        if not d.everywhere:
            yield Verdict(~d.have, "node(s) didn't match pod topology spread constraints (missing required label)", True)
        eligible = _eligible(p, t, c, keys)
        per = d.sums(t.counts(c.pods) * eligible)
        present = _present(t, c.key, eligible)
        least = int(per[present].min()) if len(present) >= max(1, c.min_domains) else 0
        skewed = per + (1 if c.self_match else 0) - least > c.max_skew
        skewed[d.number] = False
        if skewed.any():
            yield Verdict(skewed[d.codes], "node(s) didn't match pod topology spread constraints")


def score_spread(p: PodInfo, t: NodeTable, feasible: Mask, soft: tuple[Spread, ...], system: bool) -> Ints | None:
    """Fewer matching pods in the node's domains is better; normalized over the feasible nodes to 0-100. None: no soft constraint.
    `system`: the constraints are the defaults, which do not ask for all keys to be present."""
    if not soft:
        return None
    keys = tuple(c.key for c in soft)
    scored = feasible
    if not system:
        for k in keys:
            d = t.domains(k)
            if not d.everywhere:
                scored = scored & d.have
    total = np.zeros(t.size, np.float64)
    for c in soft:
        d = t.domains(c.key)
        counts = t.counts(c.pods)
        if c.key == HOSTNAME:
            size, n = int(np.count_nonzero(scored)), counts
        else:
            size = len(d.within(scored))
            eligible = _eligible(p, t, c, keys if not system else ())
            n = t.around(c.key, t.counter(c.pods)) if eligible.all() else t.by_domain(c.key, counts, eligible)
        part = n * math.log(size + 2) + (c.max_skew - 1)
        total += part if d.everywhere else np.where(d.have, part, 0.0)
    if not scored.any():
        return np.zeros(t.size, np.int64)
    score = np.rint(total).astype(np.int64)
    mine = score[scored]
    low, high = int(mine.min()), int(mine.max())
    if high == 0:
        return np.where(scored, 100, 0)
    return np.where(scored, 100 * (high + low - score) // high, 0)


# --- pod affinity -------------------------------------------------------------------------------------------------------

def _matching_all(p: PodInfo, t: NodeTable, terms: tuple[Term, ...]) -> bool:
    return all(t.in_set(x.pods, p) for x in terms)


def _affinity_counts(t: NodeTable, terms: tuple[Term, ...]) -> Ints:
    """Pods a node that match every required affinity term (upstream counts only those)."""
    if len(terms) == 1:
        return t.counts(terms[0].pods)
    counts = np.zeros(t.size, np.int64)
    first = t.counts(terms[0].pods)
    for slot in np.nonzero(first)[0]:
        counts[slot] = sum(1 for q in t.pods[slot].values() if all(t.in_set(x.pods, q) for x in terms))
    return counts


def pod_affinity(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    """In upstream's order: the pod's affinity, its anti-affinity, then the anti-affinity of pods that are there."""
    n = t.size
    if p.affinity:
        alone = len(p.affinity) == 1
        counts = _affinity_counts(t, p.affinity)
        ok, has_keys = np.ones(n, bool), np.ones(n, bool)
        anywhere = False
        for x in p.affinity:
            has_keys &= t.domains(x.topology_key).have
            near = (t.around(x.topology_key, t.counter(x.pods)) if alone else t.by_domain(x.topology_key, counts)) > 0
            anywhere = anywhere or bool(near.any())
            ok &= near
        ok &= has_keys
        if not anywhere and _matching_all(p, t, p.affinity):
            ok = has_keys                            # the first pod of a group that wants to be together
        yield Verdict(~ok, "node(s) didn't match pod affinity rules", True)
    taken = np.zeros(n, bool)
    for x in p.anti_affinity:
        taken |= t.around(x.topology_key, t.counter(x.pods)) > 0
    if p.anti_affinity:
        yield Verdict(taken, "node(s) didn't match pod anti-affinity rules")
    refused = np.zeros(n, bool)
    for term, carriers in t.carried["anti"].values():
        if t.in_set(term.pods, p):
            refused |= t.around(term.topology_key, carriers) > 0
    if refused.any():
        yield Verdict(refused & ~taken, "node(s) didn't satisfy existing pods anti-affinity rules")


def score_pod_affinity(p: PodInfo, t: NodeTable, feasible: Mask) -> Ints | None:
    """Preferred terms of the pod over pods there, and of pods there over the pod (required ones count 1); normalized to 0-100."""
    total: Ints | None = None

    def add(term: Term, counter: Counter, weight: int) -> None:
        nonlocal total
        if counter.total:
            part = t.around(term.topology_key, counter) * weight
            total = part if total is None else total + part
    for x in p.preferred:
        add(x, t.counter(x.pods), x.weight)
    for x in p.anti_preferred:
        add(x, t.counter(x.pods), -x.weight)
    theirs = () if p.args.ignore_preferred_of_existing else (("preferred", 1), ("anti_preferred", -1))
    for kind, sign in (("affinity", 1), *theirs):
        if kind == "affinity" and not p.args.hard_affinity_weight:
            continue
        for term, carriers in t.carried[kind].values():
            if t.in_set(term.pods, p):
                add(term, carriers, sign * (p.args.hard_affinity_weight if kind == "affinity" else term.weight))
    if total is None:
        return None
    low, high = int(total[feasible].min()), int(total[feasible].max())
    if high == low:
        return None
    return (100.0 * ((total - low) / (high - low))).astype(np.int64)
