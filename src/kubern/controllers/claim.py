"""Claiming: which children belong to a controller. Its own that still match stay, orphans that match are adopted, others are released.

Upstream: pkg/controller/controller_ref_manager.go.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from kubern.model.controller import Undecided
from kubern.model.intent import Failed, Fetch, Patch
from kubern.model.object import Object, controller_of, deleting, meta, name, namespace, uid
from kubern.model.selector import Selector
from kubern.model.view import View


def controller_ref(owner: Object) -> dict[str, Any]:
    """The ownerReference that makes `owner` the controller of a child."""
    return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name(owner), "uid": uid(owner), "controller": True,
            "blockOwnerDeletion": True}


def controlled_by(child: Object, owner_uid: str) -> bool:
    ref = controller_of(child)
    return ref is not None and ref.get("uid") == owner_uid


def children(view: View, resource: str, owner: Object, orphans: bool = True) -> list[Object]:
    """What the owner controls, and the orphans of its namespace that it might adopt."""
    own = [c for c in view.owned(resource, uid(owner)) if controlled_by(c, uid(owner))]
    return own + list(view.by(resource, "orphan", namespace(owner))) if orphans else own


def claim(view: View, resource: str, owner: Object, selector: Selector, path: str, found: Iterable[Object] | None = None,
          match: Callable[[Object], bool] | None = None, finalizers: tuple[str, ...] = ()) -> Generator[Any, Any, list[Object]]:
    """Yields the patches that adopt and release; returns the children that are the owner's. `path` is the owner's, read live before
    the first adoption. `finalizers` are added to adopted children and taken from released ones."""
    mine: list[Object] = []
    may_adopt: bool | None = None
    for child in children(view, resource, owner) if found is None else found:
        fits = selector.matches(meta(child).get("labels")) and (match is None or match(child))
        ref = controller_of(child)
        if ref is not None:
            if ref.get("uid") != uid(owner):
                continue
            if fits:
                mine.append(child)
            elif not deleting(owner):
                drop: dict[str, Any] = {"uid": uid(child), "ownerReferences": [{"$patch": "delete", "uid": uid(owner)}]}
                if finalizers:
                    drop["$deleteFromPrimitiveList/finalizers"] = list(finalizers)
                yield Patch(child["apiVersion"], child["kind"], namespace(child), name(child), {"metadata": drop}, "strategic",
                            ignore_missing=True)
            continue
        if not fits or deleting(owner) or deleting(child):
            continue
        if may_adopt is None:
            live = yield Fetch(path)
            if isinstance(live, Failed) and live.code != 404:
                raise Undecided(live.message)                     # children would be made beside those that might be adopted
            may_adopt = not isinstance(live, Failed) and uid(live) == uid(owner) and not deleting(live)
        if may_adopt:
            add: dict[str, Any] = {"ownerReferences": [controller_ref(owner)], "uid": uid(child)}
            if finalizers:
                add["finalizers"] = list(finalizers)
            done = yield Patch(child["apiVersion"], child["kind"], namespace(child), name(child), {"metadata": add}, "strategic",
                               ignore_missing=True)
            if isinstance(done, Failed):
                raise Undecided(done.message)
            if done is not None:
                mine.append(done)
    return mine
