"""Filters and scores about the node itself: unschedulable, name, taints, node affinity, ports, images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kubern.model.taint import tolerated
from kubern.scheduler.plugins.verdict import Ints, Mask, Reject, Restrict, Verdict
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.table import NodeTable

UNSCHEDULABLE_TAINT = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
NAME_FIELD = "metadata.name"


def unschedulable(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    bad = t.unschedulable[:t.size]
    if bad.any() and not tolerated(UNSCHEDULABLE_TAINT, p.spec.get("tolerations")):
        yield Verdict(bad, "node(s) were unschedulable", True)


def node_name(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    wanted = p.spec.get("nodeName")
    if wanted:
        bad = np.ones(t.size, bool)
        slot = t.slots.get(wanted, -1)
        if slot >= 0:
            bad[slot] = False
        yield Verdict(bad, "node(s) didn't match the requested node name", True)


def _by_taints(p: PodInfo, t: NodeTable, effects: tuple[str, ...], prefer: bool) -> Ints:
    """Per node the number of taints with these effects that the pod does not tolerate."""
    tolerations = p.spec.get("tolerations") or []
    if prefer:
        tolerations = [x for x in tolerations if x.get("effect") in (None, "", "PreferNoSchedule")]
    per_set = np.zeros(len(t.taint_sets), np.int64)
    for taints, number in t.taint_sets.items():
        per_set[number] = sum(1 for key, value, effect in taints
                              if effect in effects and not tolerated({"key": key, "value": value, "effect": effect}, tolerations))
    return per_set[t.taints[:t.size]]


def _toleration_key(p: PodInfo) -> str:
    return repr(p.spec.get("tolerations"))


def taint_toleration(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    bad = untolerated(p, t)
    if bad.any():
        yield Verdict(bad, "node(s) had untolerated taint(s)", True)


def untolerated(p: PodInfo, t: NodeTable) -> Mask:
    """Nodes with a NoSchedule or NoExecute taint that the pod does not tolerate."""
    return t.remember(("taints", _toleration_key(p)), lambda: _by_taints(p, t, ("NoSchedule", "NoExecute"), False) > 0)


def score_taints(p: PodInfo, t: NodeTable) -> Ints | None:
    counts = t.remember(("prefer-taints", _toleration_key(p)), lambda: _by_taints(p, t, ("PreferNoSchedule",), True))
    return counts


# --- node affinity ------------------------------------------------------------------------------------------------------

def _requirement(r: Mapping[str, Any], t: NodeTable, field: bool) -> Mask:
    """Nodes that satisfy one matchExpressions or matchFields requirement."""
    op, values = r.get("operator"), r.get("values") or []
    if field:
        ok = np.zeros(t.size, bool)
        if r.get("key") == NAME_FIELD:
            for v in values:
                slot = t.slots.get(v, -1)
                if slot >= 0:
                    ok[slot] = True
            if op == "NotIn":
                ok = ~ok
        return ok
    col = t.column(r.get("key") or "")
    if op == "Exists":
        return col >= 0
    if op == "DoesNotExist":
        return col < 0
    if op in ("In", "NotIn"):
        ids = [t.values[v] for v in values if v in t.values]
        hit = np.isin(col, ids) if len(ids) != 1 else col == ids[0]
        return hit if op == "In" else ~hit
    if op in ("Gt", "Lt") and values:
        try:
            bound = int(values[0])
        except ValueError:
            return np.zeros(t.size, bool)
        table = np.zeros(len(t.value_names) + 1, bool)
        for v in np.unique(col[col >= 0]):
            try:
                n = int(t.value_names[v])
            except ValueError:
                continue
            table[v] = n > bound if op == "Gt" else n < bound
        return table[col]                                # NONE (-1) reads the last, always False, entry
    return np.zeros(t.size, bool)


def node_term(term: Mapping[str, Any], t: NodeTable) -> Mask:
    """Nodes that satisfy one nodeSelectorTerm; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return np.zeros(t.size, bool)
    ok = np.ones(t.size, bool)
    for r in expressions:
        ok &= _requirement(r, t, False)
    for r in fields:
        ok &= _requirement(r, t, True)
    return ok


def node_selector_mask(selector: Mapping[str, Any] | None, t: NodeTable) -> Mask:
    """Nodes that satisfy a NodeSelector (terms are ORed), e.g. a PersistentVolume's."""
    ok = np.zeros(t.size, bool)
    for term in (selector or {}).get("nodeSelectorTerms") or ():
        ok |= node_term(term, t)
    return ok


def placement(p: PodInfo, t: NodeTable) -> Mask | None:
    """Nodes that match the pod's nodeSelector and required node affinity; None if it has neither."""
    if not p.placement_sig:
        return None

    def make() -> Mask:
        ok = np.ones(t.size, bool)
        for k, v in (p.spec.get("nodeSelector") or {}).items():
            col = t.column(k)
            ok &= col == t.values.get(v, -2)
        required = ((p.spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
        if required is not None:
            ok &= node_selector_mask(required, t)
        return ok
    return t.remember(("placement", p.placement_sig), make)


def prefilter_affinity(p: PodInfo, t: NodeTable) -> Restrict | Reject | None:
    """Pods pinned by metadata.name look at those nodes only; contradicting terms reject the pod outright."""
    required = ((p.spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = (required or {}).get("nodeSelectorTerms") or ()
    if not terms:
        return None
    names: set[str] = set()
    for term in terms:
        own: set[str] | None = None
        for r in term.get("matchFields") or ():
            if r.get("key") == NAME_FIELD and r.get("operator") == "In":
                own = set(r.get("values") or ()) if own is None else own & set(r.get("values") or ())
        if own is None:
            return None
        names |= own
    if not names:
        return Reject("pod affinity terms conflict", True)
    only = np.zeros(t.size, bool)
    for n in names:
        if n in t.slots:
            only[t.slots[n]] = True
    return Restrict(only)


def node_affinity(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    enforced: Mask | None = None
    if p.args.required is not None:
        enforced = t.remember(("enforced", repr(p.args.required)), lambda: node_selector_mask(p.args.required, t))
        yield Verdict(~enforced, "node(s) didn't match scheduler-enforced node affinity", True)
    ok = placement(p, t)
    if ok is not None:
        yield Verdict(~ok if enforced is None else ~ok & enforced, "node(s) didn't match Pod's node affinity/selector", True)


def score_affinity(p: PodInfo, t: NodeTable) -> Ints | None:
    preferred = [*(((p.spec.get("affinity") or {}).get("nodeAffinity") or {}).get("preferredDuringSchedulingIgnoredDuringExecution") or ()),
                 *p.args.preferred]
    if not preferred:
        return None

    def make() -> Ints:
        total = np.zeros(t.size, np.int64)
        for x in preferred:
            total += int(x.get("weight") or 0) * node_term(x.get("preference") or {}, t)
        return total
    return t.remember(("preferred", repr(preferred)), make)


# --- declared features ----------------------------------------------------------------------------------------------------

def needed_features(p: PodInfo) -> set[str]:
    """What the pod can only run with. KEP-5328; upstream's component-helpers nodedeclaredfeatures."""
    out, spec = set(), p.spec
    for c in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        if any(r.get("action") == "RestartAllContainers" for r in c.get("restartPolicyRules") or ()):
            out.add("RestartAllContainersOnContainerExits")
    if spec.get("hostNetwork") and spec.get("hostUsers") is False:
        out.add("UserNamespacesHostNetworkSupport")
    return out


def declared_features(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    needed = needed_features(p)
    if needed:
        bad = np.fromiter((not needed <= set(((n or {}).get("status") or {}).get("declaredFeatures") or ()) for n in t.nodes), bool, t.size)
        yield Verdict(bad, "node(s) didn't match Pod's required features", True)


# --- ports and images ---------------------------------------------------------------------------------------------------

def ports_conflict(wanted: tuple[tuple[str, str, int], ...], taken: set[tuple[str, str, int]]) -> bool:
    """0.0.0.0 overlaps every address of the same protocol and port."""
    for proto, ip, port in wanted:
        for q_proto, q_ip, q_port in taken:
            if port == q_port and proto == q_proto and (ip == q_ip or "0.0.0.0" in (ip, q_ip)):
                return True
    return False


def node_ports(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
    if p.ports:
        bad = np.fromiter((ports_conflict(p.ports, t.ports[i]) for i in range(t.size)), bool, t.size)
        yield Verdict(bad, "node(s) didn't have free ports for the requested pod ports")


MB = 1024 * 1024
IMAGE_MIN, IMAGE_MAX_PER_CONTAINER = 23 * MB, 1000 * MB


def normalized_image(name: str) -> str:
    """With a tag: containerd's and CRI's names carry one."""
    return name if ":" in name.rpartition("/")[2] or "@" in name else name + ":latest"


def score_images(p: PodInfo, t: NodeTable) -> Ints | None:
    spec = p.spec
    names = [c.get("image") or "" for c in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]]
    names += [v["image"].get("reference") or "" for v in spec.get("volumes") or () if v.get("image")]
    if not t.images:
        return None
    total = np.zeros(t.size, np.float64)
    for n in names:
        have = t.images.get(normalized_image(n))
        if have:
            for slot, size in have.items():
                total[slot] += int(size * (len(have) / t.count))
    if not total.any():
        return None
    top = IMAGE_MAX_PER_CONTAINER * max(1, len(names))
    clipped = np.clip(total.astype(np.int64), IMAGE_MIN, top)
    return 100 * (clipped - IMAGE_MIN) // (top - IMAGE_MIN)
