"""Nodes: a node that stops renewing its lease becomes Unknown; conditions become taints; labels that exist twice are kept in step.

Upstream: pkg/controller/nodelifecycle. Where upstream keeps queues per zone, the time a taint was added says how fast nodes are tainted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

from kubern.controllers.context import Context
from kubern.controllers.pods import node_of, ready
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Emit, Failed, Patch, Requeue, Update
from kubern.model.object import Key, Object, condition, labels, meta, name, namespace, uid
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

LEASES = "leases.coordination.k8s.io"
NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
TAINTS = {  # condition -> status -> taint
    "Ready": {"False": NOT_READY, "Unknown": UNREACHABLE},
    "MemoryPressure": {"True": "node.kubernetes.io/memory-pressure"},
    "DiskPressure": {"True": "node.kubernetes.io/disk-pressure"},
    "NetworkUnavailable": {"True": "node.kubernetes.io/network-unavailable"},
    "PIDPressure": {"True": "node.kubernetes.io/pid-pressure"},
}
CONDITION_TAINTS = {t for by_status in TAINTS.values() for t in by_status.values()} | {UNSCHEDULABLE}
TWINS = (("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch"))
EVICTION_S, EVICTION_DISRUPTED_S = 10.0, 100.0      # one node of a zone in this time
LARGE_CLUSTER_NODES, DISRUPTED_SHARE = 50, 0.55
EXCLUDED = "node.kubernetes.io/exclude-disruption"


def zone_of(node: Object) -> tuple[str, str]:
    have = labels(node)
    return have.get("topology.kubernetes.io/region", ""), have.get("topology.kubernetes.io/zone", "")


def _ready_status(node: Object) -> str:
    return (condition(node, "Ready") or {}).get("status") or "Unknown"


def _node_event(node: Object, reason: str, message: str) -> Emit:
    ref = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name(node), "uid": uid(node)}}
    return Emit(ref, "Normal", reason, f"Node {name(node)} {message}")


@dataclass(slots=True)
class _Heard:
    """What a node said last (its lease, its heartbeat), when that was by our clock, and when we looked."""

    said: tuple[str, str]
    at_s: float
    looked_s: float


def _listen(node: Object, view: View, now: float, before: _Heard | None, started_s: float) -> _Heard:
    """A node's own times are believed where they can be true: it may have another clock."""
    lease = view.get(LEASES, "kube-node-lease", name(node))
    said = ((lease.get("spec") or {}).get("renewTime") or "" if lease is not None else "", (condition(node, "Ready") or {}).get("lastHeartbeatTime") or "")
    stamp = max(map(seconds_of, said))
    if before is None:
        return _Heard(said, min(now, max(stamp, seconds_of(meta(node).get("creationTimestamp")), started_s)), now)
    if before.said == said:
        return _Heard(said, before.at_s, now)
    return _Heard(said, stamp if before.looked_s <= stamp <= now else now, now)


def _forgotten(node: Object, now: float) -> list[dict[str, Any]]:
    """The conditions of a node nobody speaks for."""
    out = [dict(c) for c in (node.get("status") or {}).get("conditions") or ()]
    for type_ in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure"):
        c = next((c for c in out if c.get("type") == type_), None)
        if c is None:
            out.append({"type": type_, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                        "message": "Kubelet never posted node status.", "lastHeartbeatTime": meta(node).get("creationTimestamp"),
                        "lastTransitionTime": rfc3339(now)})
        elif c.get("status") != "Unknown":
            c |= {"status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status.",
                  "lastTransitionTime": rfc3339(now)}
    return out


def _mark_pods(node: Object, view: View, now: float) -> Steps:
    """Pods of a node that is not ready are not ready either."""
    for pod in view.by("pods", "spec.nodeName", name(node)):
        if not ready(pod):
            continue
        c = {**(condition(pod, "Ready") or {}), "status": "False", "lastTransitionTime": rfc3339(now)}
        done = yield Patch("v1", "Pod", namespace(pod), name(pod), {"metadata": {"uid": uid(pod)}, "status": {"conditions": [c]}}, "strategic",
                           "status", ignore_missing=True)
        if not isinstance(done, Failed):
            yield Emit(pod, "Warning", "NodeNotReady", "Node is not ready")


def _crowd(node: Object, view: View) -> tuple[bool, float | None]:
    """(is every node of the cluster down, seconds between taints in this node's zone; None: no more taints)."""
    all_down, zone_ready, zone_down = True, 0, 0
    mine = zone_of(node)
    for n in view.list("nodes"):
        if EXCLUDED in labels(n):
            continue
        up = _ready_status(n) == "True"
        all_down &= not up
        if zone_of(n) == mine:
            zone_ready += up
            zone_down += not up
    if zone_down > 2 and zone_ready and zone_down / (zone_down + zone_ready) >= DISRUPTED_SHARE:
        return all_down, EVICTION_DISRUPTED_S if zone_down + zone_ready > LARGE_CLUSTER_NODES else None
    return all_down, EVICTION_S


def _wait_for_taint(node: Object, view: View, now: float, pace_s: float) -> float:
    """Seconds until this node may get its NoExecute taint."""
    mine, last = zone_of(node), 0.0
    for n in view.list("nodes"):
        if zone_of(n) == mine and name(n) != name(node):
            for t in (n.get("spec") or {}).get("taints") or ():
                if t.get("effect") == "NoExecute" and t.get("key") in (NOT_READY, UNREACHABLE):
                    last = max(last, seconds_of(t.get("timeAdded")))
    return max(0.0, last + pace_s - now)


def wanted_taints(node: Object, view: View, now: float) -> tuple[list[dict[str, Any]], float]:
    """(the taints the node should have, seconds to wait for one that may not be added yet)."""
    have = list((node.get("spec") or {}).get("taints") or ())
    no_schedule: list[str] = []
    for c in (node.get("status") or {}).get("conditions") or ():
        key = TAINTS.get(c.get("type") or "", {}).get(c.get("status") or "")
        if key:
            no_schedule.append(key)
    if (node.get("spec") or {}).get("unschedulable"):
        no_schedule.append(UNSCHEDULABLE)
    status, wait = (condition(node, "Ready") or {}).get("status"), 0.0
    no_execute = {"False": NOT_READY, "Unknown": UNREACHABLE}.get(status or "", "")
    has_no_execute = any(t.get("effect") == "NoExecute" and t.get("key") in (NOT_READY, UNREACHABLE) for t in have)
    if no_execute:
        all_down, pace_s = _crowd(node, view)
        if all_down:
            no_execute = ""
        elif not has_no_execute:
            wait = _wait_for_taint(node, view, now, pace_s) if pace_s is not None else EVICTION_S
            if wait:
                no_execute = ""
    out = [t for t in have
           if not (t.get("effect") == "NoSchedule" and t.get("key") in CONDITION_TAINTS and t.get("key") not in no_schedule)
           and not (t.get("effect") == "NoExecute" and t.get("key") in (NOT_READY, UNREACHABLE) and t.get("key") != no_execute)]
    for key, effect in [*((k, "NoSchedule") for k in no_schedule), (no_execute, "NoExecute")]:
        if key and not any(t.get("key") == key and t.get("effect") == effect for t in out):
            out.append({"key": key, "effect": effect, "timeAdded": rfc3339(now)})
    return out, wait


def controller(context: Context) -> Controller:
    known: set[str] = set()                 # uids for which RegisteredNode was written by this process
    heard: dict[str, _Heard] = {}           # by the node's name

    def reconcile(node: Object, view: View, now: float) -> Steps:
        if uid(node) not in known:
            known.add(uid(node))
            heard.pop(name(node), None)
            yield _node_event(node, "RegisteredNode", f"event: Registered Node {name(node)} in Controller")
        never = condition(node, "Ready") is None
        grace_s = context.node_startup_grace_s if never else context.node_grace_s
        last = heard[name(node)] = _listen(node, view, now, heard.get(name(node)), context.started_s)
        left_s = last.at_s + grace_s - now
        was_ready = _ready_status(node) == "True"
        if left_s <= 0:
            conditions = _forgotten(node, now)
            if conditions != ((node.get("status") or {}).get("conditions") or []):
                answer = yield Update({**node, "status": {**(node.get("status") or {}), "conditions": conditions}}, "status")
                if isinstance(answer, Failed):
                    return
                node = answer
                if was_ready:
                    yield _node_event(node, "NodeNotReady", "status is now: NodeNotReady")
        if _ready_status(node) != "True" and not never:
            yield from _mark_pods(node, view, now)
        taints, wait_s = wanted_taints(node, view, now)
        if taints != ((node.get("spec") or {}).get("taints") or []):
            yield from _set(node, {"spec": {"taints": taints or None}})
        twins = {b: labels(node)[a] for a, b in TWINS if a in labels(node) and labels(node).get(b) != labels(node)[a]}
        if twins:
            yield Patch("v1", "Node", "", name(node), {"metadata": {"labels": twins}})
        if wait_s:
            yield Requeue(wait_s)
        if left_s > 0:
            yield Requeue(left_s + 0.1)

    def gone(key: Key, view: View, now: float) -> Steps:
        heard.pop(key[1], None)
        yield Emit({"apiVersion": "v1", "kind": "Node", "metadata": {"name": key[1]}}, "Normal", "RemovingNode",
                   f"Node {key[1]} event: Removing Node {key[1]} from Controller")

    return Controller("node-controller", "nodes", reconcile, reads=("pods", LEASES), gone=gone, workers=8,
                      triggers=(Trigger("pods", _assigned), Trigger("nodes", _zone())))


def _set(node: Object, change: Object) -> Generator[Any, Any, None]:
    yield Patch("v1", "Node", "", name(node), {"metadata": {"resourceVersion": meta(node).get("resourceVersion")}, **change})


def _assigned(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """A pod came to a node that is not ready."""
    if new is None or not node_of(new) or (old is not None and node_of(old)):
        return ()
    node = view.get("nodes", "", node_of(new))
    return [("", name(node))] if node is not None and condition(node, "Ready") is not None and _ready_status(node) != "True" else ()


def _zone() -> Callable[[Object | None, Object | None, View], Iterable[Key]]:
    """When a node falls or rises, nodes that are down may gain or lose their taint. Those that are down are kept by name: looking
    through all nodes at each change would cost their square while a cluster grows."""
    down: set[str] = set()

    def keys(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        node = new if new is not None else old
        assert node is not None
        up = new is not None and _ready_status(new) == "True"
        if new is None or up:
            down.discard(name(node))
        else:
            down.add(name(node))
        if old is not None and new is not None and (_ready_status(old) == "True") == up:
            return ()
        return [("", n) for n in down]
    return keys
