"""ResourceQuota status: recounts what a namespace uses. Admission charges new objects; this gives back what is gone.

Upstream: pkg/controller/resourcequota. Woken by what can only lower usage, by a changed spec, and every five minutes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from kubern.controllers.pods import finished
from kubern.model import rows
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Again, Failed, Fetch, Requeue, Update
from kubern.model.object import Key, Object, key, namespace
from kubern.model.quantity import add, canonical, compare
from kubern.model.usage import matches, matching, usage
from kubern.model.view import View

RESYNC_S = 300.0
RECOUNT_S = 1.0
COUNTED = ("pods", "services", "persistentvolumeclaims", "resourceclaims.resource.k8s.io", "resourcequotas")


def used_by(quota: Object, view: View, now: float, live: bool) -> Generator[Any, Any, dict[str, str] | None]:
    """What the namespace uses of everything the quota limits; None if it cannot be told. `live`: ask the server, the mirrors may lag."""
    hard = quota["spec"].get("hard") or {}
    used: dict[str, str] = {}
    for row in rows.deletable(view):
        if not row.namespaced:
            continue
        names = matching(row.group, row.plural, hard)
        if not names:
            continue
        for n in names:
            used.setdefault(n, "0")
        found = view.list(rows.resource_name(row), namespace(quota))
        if live:
            answer = yield Fetch(rows.path(row, namespace(quota)))
            if isinstance(answer, Failed):
                yield Again(answer.message)
                return None
            found = answer.get("items") or ()
        for obj in found:
            if not matches(row.group, row.plural, quota, hard, obj):
                continue
            counted = usage(row.group, row.plural, obj, now)
            for n in names:
                if n in counted:
                    used[n] = add(used[n], str(counted[n]))
    return used


def _same(a: dict[str, str], b: dict[str, str]) -> bool:
    return a.keys() == b.keys() and all(compare(a[k], b[k]) == 0 for k in a)


def reconcile(quota: Object, view: View, now: float) -> Steps:
    hard = {k: canonical(str(v)) for k, v in (quota["spec"].get("hard") or {}).items()}
    status = quota.get("status") or {}
    new = "used" not in status or not _same(status.get("hard") or {}, hard)     # admission has not charged what is there already
    for live in (False, True):
        if new and not live:
            continue
        counted = yield from used_by(quota, view, now, live)
        if counted is None:
            return
        used = {k: v for k, v in {**(status.get("used") or {}), **counted}.items() if k in hard}
        if not new and _same(status["used"], used):
            return                               # and never lowered by what late mirrors show: they lack what was charged last
    yield Update({**quota, "status": {"hard": hard, "used": used}}, "status")
    if new:
        yield Requeue(RECOUNT_S)                 # what was made between the count and its writing has not been charged


def _lower(old: Object, new: Object) -> bool:
    """Can the change give something back?"""
    if new.get("kind") == "Pod":
        return finished(old) != finished(new) or (old.get("spec") or {}).get("containers") != (new.get("spec") or {}).get("containers")
    if new.get("kind") in ("Service", "PersistentVolumeClaim"):
        return old.get("spec") != new.get("spec") or (old.get("status") or {}).get("allocatedResources") != \
            (new.get("status") or {}).get("allocatedResources")
    return False


def keys(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    if old is None or (new is not None and not _lower(old, new)):
        return ()
    space = namespace(old)
    return [key(q) for q in view.list("resourcequotas", space)] if space and old.get("kind") != "ResourceQuota" else ()


def changed(old: Object, new: Object) -> bool:
    return old["spec"].get("hard") != new["spec"].get("hard")


CONTROLLER = Controller("resourcequota-controller", "resourcequotas", reconcile, reads=(*COUNTED, rows.CRDS), everything=keys,
                        changed=changed, resync_s=RESYNC_S)
