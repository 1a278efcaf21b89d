"""Hints: whether something that happened may help a pod that a plugin refused. Pure; the queue asks before it wakes a pod.

A hint may say yes too often, which costs a look, and never no wrongly, which would leave a pod waiting. Upstream: KEP-4247, each plugin's EventsToRegister.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kubern.model.object import Object, labels, meta
from kubern.model.taint import tolerated
from kubern.scheduler.plugins.node import UNSCHEDULABLE_TAINT, needed_features, placement, ports_conflict
from kubern.scheduler.plugins.resources import fits_at
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.table import NodeTable


@dataclass(frozen=True, slots=True)
class Change:
    """What happened: to a pod on a node (`was`, `pod`), to a node (`node`, with `before`), or to an object of storage (`node` is that)."""

    table: NodeTable
    slot: int = -1
    pod: PodInfo | None = None                       # as it is now, None where it is gone
    was: PodInfo | None = None                       # as it was, None where it is new
    node: Object | None = None
    before: Object | None = None

    def helps(self, plugin: str, p: PodInfo) -> bool:
        hint = HINTS.get(plugin)
        return hint is None or hint(p, self)


def _resources(p: PodInfo, c: Change) -> bool:
    return fits_at(p, c.table, c.slot)


def _node_name(p: PodInfo, c: Change) -> bool:
    return c.node is None or meta(c.node).get("name") == p.spec.get("nodeName")


def _affinity(p: PodInfo, c: Change) -> bool:
    mask = placement(p, c.table)
    return mask is None or c.slot < 0 or bool(mask[c.slot])


def _taints(p: PodInfo, c: Change) -> bool:
    taints = ((c.node or {}).get("spec") or {}).get("taints") or ()
    return all(tolerated(x, p.spec.get("tolerations")) for x in taints if x.get("effect") != "PreferNoSchedule")


def _unschedulable(p: PodInfo, c: Change) -> bool:
    return not ((c.node or {}).get("spec") or {}).get("unschedulable") or tolerated(UNSCHEDULABLE_TAINT, p.spec.get("tolerations"))


def _ports(p: PodInfo, c: Change) -> bool:
    return c.was is None or ports_conflict(p.ports, set(c.was.ports))


def _other_pods(p: PodInfo, c: Change) -> bool:
    """InterPodAffinity: a pod it wants to be near came, one it keeps away from (or that keeps away from it) went, or a node where it may be."""
    t = c.table
    if c.node is not None or c.before is not None:
        there = labels(c.node or {}).keys() | labels(c.before or {}).keys()
        return not p.affinity or any(x.topology_key in there for x in p.affinity)        # enmity does not reach nodes outside every domain
    seen = [q for q in (c.pod, c.was) if q is not None]
    if any(t.in_set(x.pods, q) for q in seen for x in (*p.affinity, *p.anti_affinity)):
        return True
    return c.was is not None and any(t.in_set(x.pods, p) for x in c.was.anti_affinity)


def _spread(p: PodInfo, c: Change) -> bool:
    hard = [x for x in p.spreads if x.hard]
    if c.node is not None or c.before is not None:
        return any(all(x.key in labels(n) for x in hard) for n in (c.node, c.before) if n is not None)
    return any(c.table.in_set(x.pods, q) or q.deleting for q in (c.pod, c.was) if q is not None and q.namespace == p.namespace for x in hard)


def _features(p: PodInfo, c: Change) -> bool:
    return needed_features(p) <= set(((c.node or {}).get("status") or {}).get("declaredFeatures") or ())


def _claimed(p: PodInfo, c: Change) -> bool:
    """A claim helps whoever names it; of other objects of storage nothing is known here, nor of a pod that went."""
    if c.node is None or c.node.get("kind") != "PersistentVolumeClaim":
        return True
    m = meta(c.node)
    return m.get("namespace") == p.namespace and m.get("name") in p.volumes


def _limits(p: PodInfo, c: Change) -> bool:
    return bool(c.was.volumes) if c.was is not None else _claimed(p, c)


HINTS: dict[str, Callable[[PodInfo, Change], bool]] = {
    "NodeResourcesFit": _resources,
    "NodeName": _node_name,
    "NodeAffinity": _affinity,
    "TaintToleration": _taints,
    "NodeUnschedulable": _unschedulable,
    "NodePorts": _ports,
    "InterPodAffinity": _other_pods,
    "PodTopologySpread": _spread,
    "NodeDeclaredFeatures": _features,
    "VolumeBinding": _claimed,
    "VolumeZone": _claimed,
    "NodeVolumeLimits": _limits,
}
