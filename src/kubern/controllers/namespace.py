"""Namespace: deleting one empties it, pods first, then lets it go.

Upstream: pkg/controller/namespace (deletion/namespaced_resources_deleter.go, status_condition_utils.go); KEP-5080 ordered deletion.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from kubern.controllers.pods import finished
from kubern.model import rows
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, DeleteAll, Failed, Fetch, Requeue, Update
from kubern.model.object import Key, Object, deleting, meta, name, namespace
from kubern.model.resource import Resource
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

FINALIZER_ESTIMATE_S = 15
OK = {  # in the order of status.conditions: type -> (reason, message) when all is well
    "NamespaceDeletionDiscoveryFailure": ("ResourcesDiscovered", "All resources successfully discovered"),
    "NamespaceDeletionGroupVersionParsingFailure": ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    "NamespaceDeletionContentFailure": ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    "NamespaceContentRemaining": ("ContentRemoved", "All content successfully removed"),
    "NamespaceFinalizersRemaining": ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
}


@dataclass
class _Left:
    """What deletion has left behind."""

    estimate_s: int = 0
    remaining: dict[str, int] = field(default_factory=dict)       # "configmaps." -> how many
    finalizers: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    undiscovered: list[str] = field(default_factory=list)         # "group/version" of aggregated APIs that do not answer


def _grace(ns: Object, pods: Iterable[Object], now: float) -> int:
    """Seconds that pods may still take to stop."""
    longest = max(((p.get("spec") or {}).get("terminationGracePeriodSeconds") or 0 for p in pods if not finished(p)), default=0)
    return 0 if now - seconds_of(meta(ns).get("deletionTimestamp")) >= longest else longest


def _empty(row: Resource, ns: Object, view: View, now: float, left: _Left) -> Generator[Any, Any, None]:
    where = rows.path(row, name(ns))
    found = yield Fetch(where, accept=rows.METADATA_LIST)
    if isinstance(found, Failed):
        if found.code not in (404, 405):
            left.errors.append(found.message)
        return
    if not found.get("items"):
        return
    estimate = _grace(ns, view.list("pods", name(ns)), now) if row.plural == "pods" and not row.group else 0
    if "deletecollection" in row.verbs:
        done = yield DeleteAll(row, name(ns), propagation="Background")
    else:
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        each = yield [Fetch(rows.path(row, name(ns), name(x)), method="DELETE", body=body) for x in found["items"]]
        done = next((x for x in each if isinstance(x, Failed) and x.code != 404), None)
    if isinstance(done, Failed):
        left.errors.append(done.message)
        left.estimate_s = max(left.estimate_s, estimate)
        return
    found = yield Fetch(where, accept=rows.METADATA_LIST)
    if isinstance(found, Failed):
        left.errors.append(found.message)                # not knowing is not emptiness
        return
    items = found.get("items") or []
    if not items:
        return
    held: dict[str, int] = {}
    for item in items:
        for f in meta(item).get("finalizers") or ():
            held[f] = held.get(f, 0) + 1
    if not estimate and not held:
        left.errors.append(f"unexpected items still remain in namespace: {name(ns)} for gvr: "
                           f"{row.group}/{row.version}, Resource={row.plural}")
    left.estimate_s = max(left.estimate_s, estimate or (FINALIZER_ESTIMATE_S if held else 0))
    left.remaining[f"{row.plural}.{row.group}"] = len(items)
    for f, n in held.items():
        left.finalizers[f] = left.finalizers.get(f, 0) + n


def _aggregated(view: View, left: _Left) -> Generator[Any, Any, list[Resource]]:
    """The namespaced resources of aggregated APIs, read from their discovery: of each the preferred version."""
    out: dict[tuple[str, str], Resource] = {}
    for group, version in rows.remote_versions(view.list(rows.API_SERVICES)):
        found = yield Fetch(f"/apis/{group}/{version}")
        if isinstance(found, Failed):
            left.undiscovered.append(f"{group}/{version}")
            continue
        for row in rows.of_discovery(found, group, version):
            if row.namespaced and {"delete", "list"} <= set(row.verbs):
                out.setdefault((group, row.plural), row)
    return list(out.values())


def _undiscovered(groups: list[str]) -> str:
    each = ", ".join(f"{g}: stale GroupVersion discovery: {g}" for g in sorted(groups))
    return f"unable to retrieve the complete list of server APIs: {each}"


def _conditions(ns: Object, left: _Left, totals: bool, now: float) -> list[dict[str, Any]]:
    new: dict[str, tuple[str, str]] = {}
    if left.undiscovered:
        new["NamespaceDeletionDiscoveryFailure"] = ("DiscoveryFailed", f"Discovery failed for some groups, {len(left.undiscovered)} failing: "
                                                    f"{_undiscovered(left.undiscovered)}")
    if left.errors:
        new["NamespaceDeletionContentFailure"] = ("ContentDeletionFailed", f"Failed to delete all resource types, {len(left.errors)} "
                                                  f"remaining: {', '.join(sorted(left.errors))}")
    if totals and left.remaining:
        texts = sorted(f"{r} has {n} resource instances" for r, n in left.remaining.items())
        new["NamespaceContentRemaining"] = ("SomeResourcesRemain", f"Some resources are remaining: {', '.join(texts)}")
    if totals and left.finalizers:
        texts = sorted(f"{f} in {n} resource instances" for f, n in left.finalizers.items())
        new["NamespaceFinalizersRemaining"] = ("SomeFinalizersRemain",
                                               f"Some content in the namespace has finalizers remaining: {', '.join(texts)}")
    out = list((ns.get("status") or {}).get("conditions") or ())
    for type_, ok in OK.items():
        reason, message = new.get(type_, ok)
        status = "True" if type_ in new else "False"
        at = next((i for i, c in enumerate(out) if c.get("type") == type_), None)
        c = {"type": type_, "status": status, "lastTransitionTime": rfc3339(now), "reason": reason, "message": message}
        if at is None:
            out.append(c)
        elif any(out[at].get(k) != c[k] for k in ("status", "reason", "message")):
            if out[at].get("status") == status:
                c["lastTransitionTime"] = out[at].get("lastTransitionTime")
            out[at] = c
    return out


def reconcile(ns: Object, view: View, now: float) -> Steps:
    if not deleting(ns):
        return
    if (ns.get("status") or {}).get("phase") != "Terminating":
        ns = yield Update({**ns, "status": {**(ns.get("status") or {}), "phase": "Terminating"}}, "status")
        if isinstance(ns, Failed):
            return
    if not (ns.get("spec") or {}).get("finalizers"):
        return
    left = _Left()
    found = [r for r in rows.deletable(view) if r.namespaced] + (yield from _aggregated(view, left))
    pods = rows.BUILT_IN["pods"]
    yield from _empty(pods, ns, view, now, left)
    totals = not left.remaining            # while pods remain nothing else is touched
    if totals:
        for row in found:
            if row is not pods:
                yield from _empty(row, ns, view, now, left)
    conditions = _conditions(ns, left, totals, now)
    if conditions != (ns.get("status") or {}).get("conditions"):
        answer = yield Update({**ns, "status": {**(ns.get("status") or {}), "conditions": conditions}}, "status")
        if isinstance(answer, Failed):
            return
        ns = answer
    if left.errors or left.undiscovered:
        yield Again(", ".join([*left.errors, *([_undiscovered(left.undiscovered)] if left.undiscovered else ())]))
    elif left.estimate_s:
        yield Requeue(left.estimate_s / 2 + 1)
    else:
        rest = sorted(f for f in ns["spec"]["finalizers"] if f != "kubernetes")
        yield Update({**ns, "spec": {**ns["spec"], "finalizers": rest}}, "finalize")


def _pod_left(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """A pod is gone: its namespace may be empty now."""
    if new is None and old is not None:
        ns = view.get("namespaces", "", namespace(old))
        if ns is not None and deleting(ns):
            return [("", name(ns))]
    return ()


CONTROLLER = Controller("namespace-controller", "namespaces", reconcile, reads=("pods", rows.CRDS, rows.API_SERVICES), workers=10, backoff_last_s=60.0,
                        triggers=(Trigger("pods", _pod_left, after_s=0.05),), changed=lambda old, new: deleting(new), after_s=0.05)
