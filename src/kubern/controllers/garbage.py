"""The garbage collector: deletes what its owners left behind; foreground and orphan deletion.

Keys are uids. The view's graph answers what upstream's graph builder does; what it does not know is read live, so an owner that the
mirrors have not shown yet is never taken for absent. Upstream: pkg/controller/garbagecollector.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from kubern.model import rows
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Again, Delete, Emit, Failed, Fetch, Patch
from kubern.model.object import Key, Object, deleting, meta, name, namespace, uid
from kubern.model.view import View

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
SINGLE: Key = ("", "")


def _refs(obj: Object) -> list[dict[str, Any]]:
    return meta(obj).get("ownerReferences") or []


def _finalizers(obj: Object) -> list[str]:
    return meta(obj).get("finalizers") or []


def _deleting_dependents(obj: Object) -> bool:
    return deleting(obj) and FOREGROUND in _finalizers(obj)


def _known(ref: dict[str, Any], item: Object, view: View) -> Object | None:
    """The owner if the graph has it where the reference says it is."""
    owner = view.find(ref.get("uid") or "")
    if owner is None or name(owner) != ref.get("name") or owner.get("kind") != ref.get("kind"):
        return None
    if ref.get("apiVersion", "").rpartition("/")[0] != owner.get("apiVersion", "").rpartition("/")[0]:
        return None
    return owner if namespace(owner) in ("", namespace(item)) else None


def keys(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Who must be looked at after a change."""
    out: set[str] = set()
    if new is None:
        assert old is not None
        out.update(uid(d) for d in view.dependents(uid(old)))
        out.update(r["uid"] for r in _refs(old) if r.get("uid"))
    else:
        refs = _refs(new)
        if refs and (old is None or _refs(old) != refs) and not deleting(new):
            if not all((o := _known(r, new, view)) is not None and not _deleting_dependents(o) for r in refs):
                out.add(uid(new))
        if old is not None and _refs(old) != refs:
            out.update(r["uid"] for r in _refs(old) if r.get("uid"))
        if deleting(new) and (old is None or not deleting(old) or _finalizers(old) != _finalizers(new)):
            finalizers = _finalizers(new)
            if ORPHAN in finalizers or FOREGROUND in finalizers:
                out.add(uid(new))
            if FOREGROUND in finalizers:
                out.update(uid(d) for d in view.dependents(uid(new)))
            out.update(r["uid"] for r in refs if r.get("uid"))
    return [("", u) for u in out if u]


def _merge(obj: Object, change: dict[str, Any]) -> Patch:
    return Patch(obj["apiVersion"], obj["kind"], namespace(obj), name(obj),
                 {"metadata": {"uid": uid(obj), "resourceVersion": meta(obj).get("resourceVersion"), **change}}, ignore_missing=True)


def _drop_refs(obj: Object, uids: set[str]) -> Patch:
    return _merge(obj, {"ownerReferences": [r for r in _refs(obj) if r.get("uid") not in uids] or None})


def _drop_finalizer(obj: Object, finalizer: str) -> Patch:
    return _merge(obj, {"finalizers": [f for f in _finalizers(obj) if f != finalizer] or None})


def _owner(ref: dict[str, Any], item: Object, view: View) -> Generator[Any, Any, Object | str]:
    """The owner, or "absent", "unknown" (cannot be told now) or "foreign" (it cannot own this)."""
    known = _known(ref, item, view)
    if known is not None:
        return known
    elsewhere = view.find(ref.get("uid") or "")
    if elsewhere is not None and namespace(elsewhere) not in ("", namespace(item)):
        yield Emit(item, "Warning", "OwnerRefInvalidNamespace",
                   f"ownerRef [{ref.get('apiVersion')}/{ref.get('kind')}, namespace: {namespace(item)}, name: {ref.get('name')}, "
                   f"uid: {ref.get('uid')}] does not exist in namespace \"{namespace(item)}\"")
    row = rows.find(view, ref.get("apiVersion") or "", ref.get("kind") or "")
    if row is None:
        return "unknown"
    if row.namespaced and not namespace(item):
        return "foreign"
    live = yield Fetch(rows.path(row, namespace(item), ref.get("name") or ""), accept=METADATA)
    if isinstance(live, Failed):
        return "absent" if live.code == 404 else "unknown"
    return live if uid(live) == ref.get("uid") else "absent"


def _orphan(item: Object, view: View) -> Steps:
    results = yield [_drop_refs(d, {uid(item)}) for d in view.dependents(uid(item))]
    if not any(isinstance(r, Failed) for r in results):
        yield _drop_finalizer(item, ORPHAN)


def _foreground(item: Object, view: View) -> Steps:
    """The owner stays until no dependent blocks it; the dependents have been woken themselves."""
    blocking = [d for d in view.dependents(uid(item))
                if any(r.get("uid") == uid(item) and r.get("blockOwnerDeletion") for r in _refs(d))]
    if not blocking:
        yield _drop_finalizer(item, FOREGROUND)


def reconcile(key_object: Object, view: View, now: float) -> Steps:
    item = view.find(key_object["key"][1])
    if item is None:
        return
    if deleting(item):
        if ORPHAN in _finalizers(item):
            yield from _orphan(item, view)
        elif FOREGROUND in _finalizers(item):
            yield from _foreground(item, view)
        return
    solid, dangling, waiting = False, set[str](), set[str]()
    for ref in _refs(item):
        owner = yield from _owner(ref, item, view)
        if owner == "unknown":
            yield Again(f"cannot tell whether {ref.get('kind')} {ref.get('name')} exists")
            return
        if owner == "foreign":
            return
        if owner == "absent":
            dangling.add(ref["uid"])
        elif isinstance(owner, dict) and _deleting_dependents(owner):
            waiting.add(ref["uid"])
        else:
            solid = True
    if not dangling and not waiting:
        return
    if solid:
        yield _drop_refs(item, dangling | waiting)
        return
    dependents = list(view.dependents(uid(item)))
    if waiting and dependents:
        if any(_deleting_dependents(d) for d in dependents):        # a circle: nobody may wait for anybody
            patched = yield _merge(item, {"ownerReferences": [{**r, "blockOwnerDeletion": False} for r in _refs(item)]})
            if isinstance(patched, Failed) or patched is None:
                return
            item = {**item, "metadata": patched["metadata"]}
        policy = "Foreground"
    else:
        policy = "Orphan" if ORPHAN in _finalizers(item) else "Foreground" if FOREGROUND in _finalizers(item) else "Background"
    yield Delete(item["apiVersion"], item["kind"], namespace(item), name(item), uid=uid(item), revision=meta(item).get("resourceVersion") or "",
                 propagation=policy)


CONTROLLER = Controller("generic-garbage-collector", "", reconcile, reads=(rows.CRDS, rows.API_SERVICES), everything=keys, workers=20,
                        component="garbage-collector-controller")
