"""Taint eviction: pods leave a node with a NoExecute taint they do not tolerate, or tolerate for a time only.

Upstream: pkg/controller/tainteviction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.controllers.context import Context
from kubern.controllers.pods import node_of
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Delete, Emit, Failed, Patch, Requeue
from kubern.model.object import Key, Object, condition, deleting, key, meta, name, namespace, uid
from kubern.model.taint import tolerates
from kubern.model.time import rfc3339
from kubern.model.view import View


def _no_execute(node: Object | None) -> list[dict[str, Any]]:
    return [t for t in ((node or {}).get("spec") or {}).get("taints") or () if t.get("effect") == "NoExecute"]


def stays_s(pod: Object, taints: list[dict[str, Any]]) -> float | None:
    """How long the pod may stay: 0 = not at all, None = for ever."""
    tolerations = (pod.get("spec") or {}).get("tolerations") or []
    used = []
    for taint in taints:
        match = next((t for t in tolerations if tolerates(t, taint)), None)
        if match is None:
            return 0.0
        used.append(match)
    times = [t["tolerationSeconds"] for t in used if t.get("tolerationSeconds") is not None]
    return float(max(0, min(times))) if times else None


def disrupted(pod: Object, reason: str, message: str, now: float, status: dict[str, Any] | None = None) -> Patch:
    """The patch that says why a pod is going to be deleted."""
    old = condition(pod, "DisruptionTarget") or {}
    at = old.get("lastTransitionTime") if old.get("status") == "True" else rfc3339(now)
    c = {"type": "DisruptionTarget", "observedGeneration": meta(pod).get("generation"), "status": "True", "reason": reason, "message": message,
         "lastTransitionTime": at}
    return Patch("v1", "Pod", namespace(pod), name(pod), {"metadata": {"uid": uid(pod)}, "status": {**(status or {}), "conditions": [c]}},
                 "strategic", "status", ignore_missing=True)


def controller(context: Context | None = None) -> Controller:
    since: dict[Key, float] = {}            # pods with a planned eviction, and since when

    def event(pod_key: Key, words: str) -> Emit:
        ref = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": pod_key[0], "name": pod_key[1]}}
        return Emit(ref, "Normal", "TaintManagerEviction", f"{words} Pod {pod_key[0]}/{pod_key[1]}")

    def reconcile(pod: Object, view: View, now: float) -> Steps:
        k = key(pod)
        taints = _no_execute(view.get("nodes", "", node_of(pod))) if node_of(pod) else []
        stays = stays_s(pod, taints) if taints else None
        if stays is None:
            if since.pop(k, None) is not None:
                yield event(k, "Cancelling deletion of")
            return
        if deleting(pod):
            since.pop(k, None)
            return
        due = since.setdefault(k, now) + stays
        if due > now:
            yield Requeue(due - now)
            return
        since.pop(k, None)
        yield event(k, "Marking for deletion")
        done = yield disrupted(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint", now)
        if not isinstance(done, Failed):
            yield Delete("v1", "Pod", *k)

    def gone(k: Key, view: View, now: float) -> Steps:
        if since.pop(k, None) is not None:
            yield event(k, "Cancelling deletion of")

    def changed(old: Object, new: Object) -> bool:
        a, b = old.get("spec") or {}, new.get("spec") or {}
        return a.get("nodeName") != b.get("nodeName") or a.get("tolerations") != b.get("tolerations")

    def node_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        node = new or old
        if node is None or _no_execute(old) == _no_execute(new):
            return ()
        return [key(p) for p in view.by("pods", "spec.nodeName", name(node))]

    return Controller("node-controller", "pods", reconcile, reads=("nodes",), gone=gone, changed=changed, workers=8,
                      component="taint-eviction-controller",
                      triggers=(Trigger("nodes", node_changed),))
