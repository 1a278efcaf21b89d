"""What wakes a controller: the key functions of triggers that several rows share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kubern.model.controller import Keys
from kubern.model.object import Key, Object, controller_of, group_version, key, meta, namespace
from kubern.model.selector import Selector, from_label_selector
from kubern.model.view import View

SelectorOf = Callable[[Object], Selector]


def spec_selector(obj: Object) -> Selector:
    """spec.selector as a LabelSelector."""
    return from_label_selector((obj.get("spec") or {}).get("selector"))


def map_selector(obj: Object) -> Selector:
    """spec.selector as a map of labels; an empty one selects nothing."""
    labels = (obj.get("spec") or {}).get("selector") or {}
    return from_label_selector({"matchLabels": labels} if labels else None)


def owner(group: str, kind: str, resource: str = "", selector_of: SelectorOf = spec_selector) -> Keys:
    """Wakes the controller of the object, before and after; a new orphan, or one with new labels, wakes every object of `resource` that
    selects it."""
    def keys(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        if new is not None and not meta(new).get("ownerReferences") and old is not None and not meta(old).get("ownerReferences") \
                and meta(old).get("labels") == meta(new).get("labels"):
            return ()
        out: set[Key] = set()
        for obj in (old, new):
            if obj is None:
                continue
            ref = controller_of(obj)
            if ref is not None:
                if ref.get("kind") == kind and group_version(ref.get("apiVersion") or "")[0] == group:
                    out.add((namespace(obj), ref.get("name") or ""))
            elif resource and obj is new:
                labels = meta(obj).get("labels")
                if labels:
                    for parent in view.list(resource, namespace(obj)):
                        selector = selector_of(parent)
                        if not selector.empty and selector.matches(labels):
                            out.add(key(parent))
        return out
    return keys


def same_name(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """The object of the same namespace and name."""
    for obj in (new, old):
        if obj is not None:
            return (key(obj),)
    return ()
