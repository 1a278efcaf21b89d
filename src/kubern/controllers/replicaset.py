"""ReplicaSet and ReplicationController: keep as many pods as asked for.

Upstream: pkg/controller/replicaset, pkg/controller/replication.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from kubern.controllers import conditions
from kubern.controllers.amount import whole
from kubern.controllers.claim import children, claim, controlled_by
from kubern.controllers.pods import (
    BURST_MAX,
    active,
    available,
    by_deletion,
    create_pods,
    delete_pods,
    finished,
    from_template,
    next_available_s,
    node_of,
    ready,
)
from kubern.controllers.wake import map_selector, owner, spec_selector
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Failed, Requeue, Update
from kubern.model.object import Object, controller_of, deleting, labels, meta, name, namespace, uid
from kubern.model.selector import Selector
from kubern.model.time import rfc3339
from kubern.model.view import View


def _ranks(rs: Object, view: View, resource: str) -> dict[str, int]:
    """Pod uid -> how many active pods of the ReplicaSet and its siblings run on the pod's node."""
    ref = controller_of(rs)
    siblings = [s for s in view.owned(resource, ref["uid"]) if controlled_by(s, ref["uid"])] if ref is not None else [rs]
    pods = [p for s in siblings for p in view.owned("pods", uid(s)) if controlled_by(p, uid(s)) and active(p)]
    count: dict[str, int] = {}
    for p in pods:
        if n := node_of(p):
            count[n] = count.get(n, 0) + 1
    return {uid(p): count.get(node_of(p), 0) for p in pods}


def _manage(rs: Object, mine: list[Object], view: View, now: float, resource: str) -> Generator[Any, Any, Failed | None]:
    spec = rs["spec"]
    surplus = len(mine) - (spec.get("replicas") or 0)
    if surplus < 0:
        template = spec.get("template") or {}
        _, failure = yield from create_pods(rs, [from_template(template, rs) for _ in range(min(-surplus, BURST_MAX))])
        return failure
    if surplus > 0:
        surplus = min(surplus, BURST_MAX)
        victims = by_deletion(mine, _ranks(rs, view, resource), now)[:surplus] if surplus < len(mine) else mine
        return (yield from delete_pods(rs, victims))
    return None


def _status(rs: Object, mine: list[Object], terminating: int | None, failure: Failed | None, now: float) -> Object:
    spec, old = rs["spec"], rs.get("status") or {}
    wanted = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    min_ready = spec.get("minReadySeconds") or 0
    kept = old.get("conditions") or []
    if failure is not None and conditions.find(kept, "ReplicaFailure") is None:
        reason = "FailedCreate" if len(mine) < (spec.get("replicas") or 0) else "FailedDelete"
        kept = conditions.put(kept, {"type": "ReplicaFailure", "status": "True", "lastTransitionTime": rfc3339(now), "reason": reason,
                                     "message": failure.message}, keep_transition=False)
    elif failure is None:
        kept = conditions.without(kept, "ReplicaFailure")
    status = {"replicas": len(mine), **whole({
        "fullyLabeledReplicas": sum(wanted.items() <= labels(p).items() for p in mine),
        "readyReplicas": sum(ready(p) for p in mine),
        "availableReplicas": sum(available(p, min_ready, now) for p in mine),
        "observedGeneration": meta(rs).get("generation"), "conditions": kept})}
    if terminating is not None:
        status["terminatingReplicas"] = terminating
    return status


def _reconcile(rs: Object, view: View, now: float, resource: str, path: str, selector: Selector, count_terminating: bool) -> Steps:
    found = children(view, "pods", rs)
    mine = yield from claim(view, "pods", rs, selector, f"{path}/{name(rs)}", [p for p in found if active(p)])
    terminating = None
    if count_terminating:
        terminating = sum(deleting(p) and not finished(p) and controlled_by(p, uid(rs)) and selector.matches(labels(p)) for p in found)
    failure = None
    if not deleting(rs):
        failure = yield from _manage(rs, mine, view, now, resource)
    status = _status(rs, mine, terminating, failure, now)
    if status != (rs.get("status") or {}):
        yield Update({**rs, "status": status}, "status")
    min_ready = rs["spec"].get("minReadySeconds") or 0
    if failure is None and min_ready and status.get("readyReplicas") != status.get("availableReplicas"):
        wait = next_available_s(mine, min_ready, now)
        yield Requeue(min_ready if wait is None else wait)


def reconcile(rs: Object, view: View, now: float) -> Steps:
    path = f"/apis/apps/v1/namespaces/{namespace(rs)}/replicasets"
    return _reconcile(rs, view, now, "replicasets.apps", path, spec_selector(rs), True)


def reconcile_replication_controller(rc: Object, view: View, now: float) -> Steps:
    path = f"/api/v1/namespaces/{namespace(rc)}/replicationcontrollers"
    return _reconcile(rc, view, now, "replicationcontrollers", path, map_selector(rc), False)


CONTROLLER = Controller(
    "replicaset-controller", "replicasets.apps", reconcile, reads=("pods",),
    triggers=(Trigger("pods", owner("apps", "ReplicaSet", "replicasets.apps")),))

REPLICATION = Controller(
    "replication-controller", "replicationcontrollers", reconcile_replication_controller, reads=("pods",),
    triggers=(Trigger("pods", owner("", "ReplicationController", "replicationcontrollers", map_selector)),))
