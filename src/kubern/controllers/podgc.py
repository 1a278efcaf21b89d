"""Pod garbage collection: pods of nodes that are gone, terminating pods nobody will finish, too many finished pods.

Upstream: pkg/controller/podgc. By events where upstream sweeps every 20 seconds, leaving a
terminating pod that no node has to its finalizers for a moment; only the count of finished pods is looked at in turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from kubern.controllers.context import Context
from kubern.controllers.pods import finished, node_of, phase
from kubern.controllers.tainteviction import disrupted
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Delete, Failed, Fetch, Patch, Requeue
from kubern.model.object import Key, Object, condition, deleting, key, meta, name, namespace, uid
from kubern.model.time import seconds_of
from kubern.model.view import View

QUARANTINE_S = 40.0
SWEEP_S = 20.0
UNSCHEDULED_S = 5.0
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"


def _force(pod: Object, now: float, reason: str = "", message: str = "") -> Steps:
    if not finished(pod):
        status = {"phase": "Failed", "observedGeneration": meta(pod).get("generation")}
        if reason:
            done = yield disrupted(pod, reason, message, now, status)
        else:
            done = yield Patch("v1", "Pod", namespace(pod), name(pod), {"metadata": {"uid": uid(pod)}, "status": status}, "strategic", "status",
                               ignore_missing=True)
        if isinstance(done, Failed):
            return
    yield Delete("v1", "Pod", namespace(pod), name(pod), grace_s=0)


def controller(context: Context | None = None) -> Controller:
    orphaned: dict[Key, float] = {}         # pods whose node is missing, and since when

    def reconcile(pod: Object, view: View, now: float) -> Steps:
        node_name = node_of(pod)
        if not node_name:
            if deleting(pod):
                due = seconds_of(meta(pod)["deletionTimestamp"]) + UNSCHEDULED_S
                if due > now:
                    yield Requeue(due - now)
                else:
                    yield from _force(pod, now)
            return
        node = view.get("nodes", "", node_name)
        if node is not None:
            orphaned.pop(key(pod), None)
            taints = (node.get("spec") or {}).get("taints") or ()
            if deleting(pod) and (condition(node, "Ready") or {}).get("status") != "True" and any(t.get("key") == OUT_OF_SERVICE for t in taints):
                yield from _force(pod, now)
            return
        due = orphaned.setdefault(key(pod), now) + QUARANTINE_S
        if due > now:
            yield Requeue(due - now)
            return
        live = yield Fetch(f"/api/v1/nodes/{node_name}")
        if isinstance(live, Failed) and live.code == 404:
            yield from _force(pod, now, "DeletionByPodGC", "PodGC: node no longer exists")
        else:
            yield Requeue(QUARANTINE_S)

    def gone(k: Key, view: View, now: float) -> Steps:
        orphaned.pop(k, None)
        yield from ()

    def changed(old: Object, new: Object) -> bool:
        return deleting(old) != deleting(new) or node_of(old) != node_of(new)

    def node_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        node = new or old
        if node is None or (old is not None and new is not None and (old.get("spec") or {}).get("taints") == (new.get("spec") or {}).get("taints")):
            return ()
        return [key(p) for p in view.by("pods", "spec.nodeName", name(node))]

    return Controller("pod-garbage-collector", "pods", reconcile, reads=("nodes",), gone=gone, changed=changed,
                      triggers=(Trigger("nodes", node_changed),))


def finished_pods(context: Context) -> Controller:
    def reconcile(_: Object, view: View, now: float) -> Steps:
        if context.terminated_pods_max <= 0:
            return
        done = [*view.by("pods", "status.phase", "Succeeded"), *view.by("pods", "status.phase", "Failed")]
        surplus = len(done) - context.terminated_pods_max
        if surplus > 0:
            def evicted_first(p: Object) -> tuple[bool, str, str]:
                evicted = phase(p) == "Failed" and (p.get("status") or {}).get("reason") == "Evicted"
                return not evicted, meta(p).get("creationTimestamp") or "", name(p)
            for pod in sorted(done, key=evicted_first)[:surplus]:
                yield from _force(pod, now)

    return Controller("pod-garbage-collector", "", reconcile, reads=("pods",), resync_s=SWEEP_S)
