"""PodDisruptionBudget status: how many pods may be evicted now. The eviction subresource counts it down.

Upstream: pkg/controller/disruption.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from kubern.controllers.amount import scaled
from kubern.controllers.pods import finished, ready
from kubern.controllers.select import go_selector, selected
from kubern.model import rows
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Emit, Failed, Fetch, Patch, Requeue, Update
from kubern.model.object import Key, Object, condition, controller_of, deleting, group_version, key, labels, meta, name, namespace, uid
from kubern.model.selector import Selector, from_label_selector
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

PDBS = "poddisruptionbudgets.policy"
DELETION_TIMEOUT_S = 120.0
STALE_CONDITION_S = 120.0


def _selector(pdb: Object) -> Selector:
    return from_label_selector((pdb.get("spec") or {}).get("selector"))


def _scale(ref: dict[str, Any], space: str, view: View) -> Generator[Any, Any, tuple[str, int] | None]:
    """(uid of what decides how many pods there are, how many)."""
    group, kind, ref_name = group_version(ref.get("apiVersion") or "")[0], ref.get("kind"), ref.get("name") or ""

    def live(resource: str, owner_name: str, owner_uid: str) -> Object | None:
        obj = view.get(resource, space, owner_name)
        return obj if obj is not None and uid(obj) == owner_uid else None
    if group in ("apps", "extensions") and kind == "ReplicaSet":
        rs = live("replicasets.apps", ref_name, ref["uid"])
        if rs is None:
            return None
        parent = controller_of(rs)
        if parent is not None and parent.get("kind") == "Deployment":
            d = live("deployments.apps", parent.get("name") or "", parent.get("uid") or "")
            return (uid(d), d["spec"].get("replicas") or 0) if d is not None else None
        return uid(rs), rs["spec"].get("replicas") or 0
    plural = {("", "ReplicationController"): "replicationcontrollers", ("apps", "StatefulSet"): "statefulsets.apps"}.get((group, kind or ""))
    if plural is not None:
        obj = live(plural, ref_name, ref["uid"])
        return (uid(obj), obj["spec"].get("replicas") or 0) if obj is not None else None
    row = rows.find(view, ref.get("apiVersion") or "", kind or "")
    if row is None:
        return None
    scale = yield Fetch(rows.path(row, space, ref_name) + "/scale")
    if isinstance(scale, Failed) and (scale.code >= 500 or scale.code == 429):
        yield Again(scale.message)
    if isinstance(scale, Failed) or uid(scale) != ref.get("uid"):
        return None
    return uid(scale), (scale.get("spec") or {}).get("replicas") or 0


def _expected(pods: list[Object], view: View) -> Generator[Any, Any, tuple[int, list[str], str]]:
    """(pods that should exist, names of those nobody manages, error)."""
    scales: dict[str, int] = {}
    unmanaged = []
    seen: set[str] = set()
    for p in pods:
        ref = controller_of(p)
        if ref is None:
            unmanaged.append(name(p))
            continue
        if ref["uid"] in seen:
            continue
        found = yield from _scale(ref, namespace(p), view)
        if found is None:
            kind = ref.get("kind") or ""
            if kind in ("Job", "DaemonSet") and rows.find(view, ref.get("apiVersion") or "", kind):
                plural = {"Job": "jobs", "DaemonSet": "daemonsets"}[kind]
                group = group_version(ref.get("apiVersion") or "")[0]
                return 0, unmanaged, f"{plural}.{group} does not implement the scale subresource"
            return 0, unmanaged, f'found no controllers for pod "{name(p)}"'
        seen.add(ref["uid"])
        scales[found[0]] = found[1]
    return sum(scales.values()), unmanaged, ""


def _condition(pdb: Object, allowed: int, generation: int | None, now: float) -> dict[str, Any]:
    status = "True" if allowed > 0 else "False"
    old = condition(pdb, "DisruptionAllowed")
    at = old.get("lastTransitionTime") if old is not None and old.get("status") == status else rfc3339(now)
    return {"type": "DisruptionAllowed", "status": status, "observedGeneration": generation, "lastTransitionTime": at,
            "reason": "SufficientPods" if allowed > 0 else "InsufficientPods", "message": ""}


def _fail_safe(pdb: Object, why: str, now: float) -> Steps:
    status = pdb.get("status") or {}
    c = _condition(pdb, 0, status.get("observedGeneration"), now) | {"reason": "SyncFailed", "message": why}
    if c["observedGeneration"] is None:
        del c["observedGeneration"]
    others = [x for x in status.get("conditions") or () if x.get("type") != "DisruptionAllowed"]
    new = {"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, **status, "disruptionsAllowed": 0, "conditions": [*others, c]}
    if new != status:
        yield Update({**pdb, "status": new}, "status")


def _several(pdb: Object, pods: list[Object], view: View) -> Steps:
    """Pods of more than one budget hear of it, from the first of them."""
    others = [b for b in view.list(PDBS, namespace(pdb)) if name(b) != name(pdb)]
    selectors = [(name(b), s) for b in others if not (s := _selector(b)).nothing]
    for p in pods if selectors else ():
        have = labels(p)
        also = [n for n, s in selectors if s.matches(have)]
        if also and name(pdb) < min(also):
            yield Emit(p, "Warning", "MultiplePodDisruptionBudgets",
                       f'Pod "{namespace(p)}"/"{name(p)}" matches multiple PodDisruptionBudgets.  Chose "{name(pdb)}" arbitrarily.')


def reconcile(pdb: Object, view: View, now: float) -> Steps:
    spec = pdb["spec"]
    pods = selected(view, "pods", namespace(pdb), _selector(pdb))
    if not pods:
        yield Emit(pdb, "Normal", "NoPods", "No matching pods found")
    yield from _several(pdb, pods, view)
    limit, minimum = spec.get("maxUnavailable"), spec.get("minAvailable")
    unmanaged: list[str] = []
    error = ""
    expected = desired = 0
    if limit is not None or isinstance(minimum, str):
        expected, unmanaged, error = yield from _expected(pods, view)
        if not error:
            desired = max(0, expected - scaled(limit, expected, True)) if limit is not None else scaled(minimum, expected, True)
    elif minimum is not None:
        expected, desired = len(pods), int(minimum)
    if error:
        yield Emit(pdb, "Warning", "CalculateExpectedPodCountFailed", f"Failed to calculate the number of expected pods: {error}")
        yield from _fail_safe(pdb, error, now)
        return
    if unmanaged:
        yield Emit(pdb, "Warning", "UnmanagedPods",
                   f"Pods selected by this PodDisruptionBudget (selector: {go_selector(spec.get('selector') or {})}) were found to be "
                   "unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "
                   'To account for these pods please set ".spec.minAvailable" field of the PDB to an integer value.')
    old = pdb.get("status") or {}
    disrupted: dict[str, str] = {}
    for p in pods:
        at = (old.get("disruptedPods") or {}).get(name(p))
        if at is None or deleting(p):
            continue
        if seconds_of(at) + DELETION_TIMEOUT_S < now:
            yield Emit(p, "Warning", "NotDeleted", f"Pod was expected by PDB {namespace(pdb)}/{namespace(pdb)} to be deleted but it wasn't")
        else:
            disrupted[name(p)] = at
    healthy = sum(ready(p) and not deleting(p) and name(p) not in disrupted for p in pods)
    allowed = max(0, healthy - desired) if expected > 0 else 0
    generation = meta(pdb).get("generation")
    others = [c for c in old.get("conditions") or () if c.get("type") != "DisruptionAllowed"]
    status: dict[str, Any] = {"disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": expected,
                              "conditions": [*others, _condition(pdb, allowed, generation, now)]}
    if generation is not None:
        status["observedGeneration"] = generation
    if disrupted:
        status["disruptedPods"] = disrupted
        yield Requeue(max(0.1, min(seconds_of(t) for t in disrupted.values()) + DELETION_TIMEOUT_S - now + 0.1))
    if status != old:
        yield Update({**pdb, "status": status}, "status")


def _budgets_of(pod: Object, view: View) -> set[Key]:
    have = labels(pod)
    return {key(b) for b in view.list(PDBS, namespace(pod)) if not (s := _selector(b)).nothing and s.matches(have)}


def _pod_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    if old is not None and new is not None and labels(old) == labels(new):
        if ready(old) == ready(new) and deleting(old) == deleting(new):
            return ()
        return _budgets_of(new, view)
    return set().union(*(_budgets_of(p, view) for p in (old, new) if p is not None))


def _scaled(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """A workload whose size changed: the budgets over its pods."""
    if old is not None and new is not None and old["spec"].get("replicas") == new["spec"].get("replicas"):
        return ()
    obj = new or old
    if obj is None:
        return ()
    template = (obj["spec"].get("template") or {})
    return _budgets_of({"metadata": {"namespace": namespace(obj), "labels": labels(template)}}, view)


CONTROLLER = Controller(
    "disruption-controller", PDBS, reconcile, reads=("pods",), component="controllermanager",
    triggers=(Trigger("pods", _pod_changed), *(Trigger(r, _scaled) for r in (
        "deployments.apps", "replicasets.apps", "statefulsets.apps", "replicationcontrollers"))))


# ---- pods that were to be disrupted and were not

def _stale(pod: Object, view: View, now: float) -> Steps:
    c = condition(pod, "DisruptionTarget")
    if c is None or c.get("status") != "True" or deleting(pod) or finished(pod) or c.get("reason") == "TerminationByKubelet":
        return
    left = seconds_of(c.get("lastTransitionTime")) + STALE_CONDITION_S - now
    if left > 0:
        yield Requeue(left)
        return
    new = {"type": "DisruptionTarget", "status": "False", "lastTransitionTime": rfc3339(now), "observedGeneration": meta(pod).get("generation"),
           "reason": None, "message": None}
    done = yield Patch("v1", "Pod", namespace(pod), name(pod), {"metadata": {"uid": uid(pod)}, "status": {"conditions": [new]}}, "strategic", "status",
                       ignore_missing=True)
    if isinstance(done, Failed):
        yield Again(done.message)


STALE = Controller("disruption-controller", "pods", _stale, component="controllermanager",
                   changed=lambda old, new: condition(old, "DisruptionTarget") != condition(new, "DisruptionTarget"))
