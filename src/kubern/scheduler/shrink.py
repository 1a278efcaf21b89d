"""shrink: which nodes nobody needs. Pure; upstream's cluster-autoscaler FAQ, "How does scale-down work?" and "What types of pods can prevent …".

A node is unneeded when little of it is asked for and everything on it that matters fits elsewhere. Nodes found so far count as gone while
the next one is looked at, so all of the answer can go together. The table is changed while looking and restored before returning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kubern.model.object import Object, controller_of, deleting, meta
from kubern.model.selector import Selector, from_label_selector
from kubern.scheduler.grow import EXPENDABLE_BELOW, ExtraFor, is_daemon
from kubern.scheduler.pick import Decision, pick
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.table import CPU, MEMORY, NodeTable

PREFIX = "cluster-autoscaler.kubernetes.io/"
SAFE, SAFE_VOLUMES = PREFIX + "safe-to-evict", PREFIX + "safe-to-evict-local-volumes"
DISABLED = PREFIX + "scale-down-disabled"
DELETING_TAINT, CANDIDATE_TAINT = "ToBeDeletedByClusterAutoscaler", "DeletionCandidateOfClusterAutoscaler"
MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a group's nodes are judged by."""

    threshold: float = 0.5                       # of utilization; below it a node may go
    ignore_daemons: bool = False                 # what DaemonSets' pods ask for does not count
    keep_system_pods: bool = True                # pods of kube-system without a budget keep their node
    keep_local_storage: bool = True


@dataclass(frozen=True, slots=True)
class Unneeded:
    """A node that can go, and the pods that move when it does (none: it is empty)."""

    node: str
    utilization: float
    pods: tuple[PodInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Shrinkage:
    unneeded: tuple[Unneeded, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)       # node -> why it stays


@dataclass(slots=True)
class Budget:
    """A PodDisruptionBudget and what of it is left."""

    namespace: str
    selector: Selector
    left: int

    def covers(self, p: PodInfo) -> bool:
        return p.namespace == self.namespace and self.selector.matches(dict(p.labels))


def budgets_of(objects: Iterable[Object]) -> list[Budget]:
    return [Budget(meta(b).get("namespace") or "", from_label_selector((b.get("spec") or {}).get("selector")),
                   int((b.get("status") or {}).get("disruptionsAllowed") or 0)) for b in objects]


def utilization(t: NodeTable, slot: int, ignore_daemons: bool = False) -> float:
    """What of the node is asked for: the larger of the parts of cpu and memory."""
    daemons = [p.requests for p in t.pods[slot].values() if is_daemon(p.pod)] if ignore_daemons else []
    parts = []
    for row, resource in ((CPU, "cpu"), (MEMORY, "memory")):
        aside = sum(r.get(resource, 0) for r in daemons)
        room = int(t.allocatable[row, slot]) - aside
        parts.append((int(t.used[row, slot]) - aside) / room if room > 0 else 1.0)
    return max(parts)


def blocks(p: PodInfo, budgets: list[Budget], rules: Rules) -> str:
    """Why this pod keeps its node, in upstream's words for reasons; "" if it may move. Budgets are looked at by `movable`."""
    notes = meta(p.pod).get("annotations") or {}
    if notes.get(SAFE) == "true":
        return ""
    if notes.get(SAFE) == "false":
        return "NotSafeToEvictAnnotation"
    if controller_of(p.pod) is None:
        return "NotReplicated"
    if rules.keep_system_pods and p.namespace == "kube-system" and not any(b.covers(p) for b in budgets):
        return "UnmovableKubeSystemPod"
    if not rules.keep_local_storage:
        return ""
    harmless = {v.strip() for v in (notes.get(SAFE_VOLUMES) or "").split(",")}
    for v in p.spec.get("volumes") or ():
        local = "hostPath" in v or ("emptyDir" in v and (v["emptyDir"] or {}).get("medium") != "Memory")
        if local and v.get("name") not in harmless:
            return "LocalStorageRequested"
    return ""


def movable(pods: Iterable[PodInfo], budgets: list[Budget], rules: Rules) -> tuple[list[PodInfo], str]:
    """(the pods of a node that have to go elsewhere, "") or ([], why the node stays)."""
    out = []
    need = [0] * len(budgets)
    for p in pods:
        if is_daemon(p.pod) or MIRROR in (meta(p.pod).get("annotations") or {}) or deleting(p.pod) or p.priority < EXPENDABLE_BELOW:
            continue
        why = blocks(p, budgets, rules)
        if why:
            return [], f"BlockedByPod: {p.namespace}/{p.name} {why}"
        for i, b in enumerate(budgets):
            if b.covers(p):
                need[i] += 1
                if need[i] > b.left:
                    return [], f"BlockedByPod: {p.namespace}/{p.name} NotEnoughPdb"
        out.append(p)
    for i, b in enumerate(budgets):
        b.left -= need[i]
    return out, ""


def shrink(t: NodeTable, candidates: Mapping[str, str], spare: Mapping[str, int], budgets: list[Budget], extra_for: ExtraFor,
           rules: Mapping[str, Rules] | None = None, unready: frozenset[str] = frozenset()) -> Shrinkage:
    """The nodes that can go. `candidates`: node -> its group; `spare`: how many nodes a group may lose; `rules` of groups that have their own; an
    unready node's utilization does not matter."""
    of_group = {g: (rules or {}).get(g) or Rules() for g in candidates.values()}
    kept: dict[str, str] = {}
    looked: list[tuple[float, str]] = []
    for name in candidates:
        slot = t.slots.get(name, -1)
        if slot < 0:
            continue
        node, rule = t.nodes[slot] or {}, of_group[candidates[name]]
        if (meta(node).get("annotations") or {}).get(DISABLED) == "true":
            kept[name] = "ScaleDownDisabledAnnotation"
        elif any(x.get("key") == DELETING_TAINT for x in (node.get("spec") or {}).get("taints") or ()):
            kept[name] = "CurrentlyBeingDeleted"
        elif (u := utilization(t, slot, rule.ignore_daemons)) >= rule.threshold and name not in unready:
            kept[name] = "NotUnderutilized"
        else:
            looked.append((u, name))
    gone: list[tuple[Object, list[PodInfo], list[tuple[PodInfo, str]]]] = []
    found: list[Unneeded] = []
    left = dict(spare)
    try:
        for u, name in sorted(looked):
            if left.get(candidates[name], 0) <= 0:
                kept[name] = "NodeGroupMinSizeReached"
                continue
            slot = t.slots[name]
            move, why = movable(list(t.pods[slot].values()), budgets, of_group[candidates[name]])
            if why:
                kept[name] = why
                continue
            node, pods = t.nodes[slot] or {}, list(t.pods[slot].values())
            t.remove_node(name)
            placed: list[tuple[PodInfo, str]] = []
            fits = True
            for p in map(_homeless, move):
                to = pick(p, t, lambda n: 0, extra_for(p))
                if not isinstance(to, Decision):
                    fits = False
                    break
                t.add_pod(p, to.node)
                placed.append((p, to.node))
            if fits:
                gone.append((node, pods, placed))
                left[candidates[name]] -= 1
                found.append(Unneeded(name, u, tuple(move)))
                continue
            kept[name] = "NoPlaceToMovePods"
            for b in budgets:
                b.left += sum(b.covers(p) for p in move)
            _back(t, node, pods, placed)
    finally:
        for node, pods, placed in reversed(gone):
            _back(t, node, pods, placed)
    return Shrinkage(tuple(found), kept)


def _homeless(p: PodInfo) -> PodInfo:
    """The pod that replaces this one: bound to no node."""
    spec = {k: v for k, v in p.spec.items() if k != "nodeName"}
    return pod_info({**p.pod, "spec": spec})


def _back(t: NodeTable, node: Object, pods: list[PodInfo], placed: list[tuple[PodInfo, str]]) -> None:
    for p, _ in placed:
        t.remove_pod(p)
    t.set_node(node)
    for p in pods:
        t.add_pod(p, meta(node)["name"])
