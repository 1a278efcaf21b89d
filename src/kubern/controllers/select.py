"""Which pods of a namespace a selector means; by an index where the selector names one value of a label."""

from __future__ import annotations

from typing import Any

from kubern.model.object import Object, meta
from kubern.model.selector import Selector
from kubern.model.view import View


def selected(view: View, resource: str, namespace: str, selector: Selector) -> list[Object]:
    """Objects of the namespace that the selector matches, in no order that means anything."""
    for r in selector.requirements:
        if r.op in ("=", "==", "in") and len(r.values) == 1:
            found = view.by(resource, f"nslabel:{r.key}", f"{namespace}/{r.values[0]}")
            if len(selector.requirements) == 1:
                return list(found)
            return [o for o in found if selector.matches(meta(o).get("labels"))]
    if selector.nothing:
        return []
    return [o for o in view.list(resource, namespace) if selector.matches(meta(o).get("labels"))]


def go_selector(selector: dict[str, Any] | None) -> str:
    """A *LabelSelector as Go prints it."""
    if selector is None:
        return "nil"
    pairs = "".join(f"{k}: {v}," for k, v in sorted((selector.get("matchLabels") or {}).items()))
    expressions = "".join(f"LabelSelectorRequirement{{Key:{e.get('key')},Operator:{e.get('operator')},Values:[{' '.join(e.get('values') or ())}],}},"
                          for e in selector.get("matchExpressions") or ())
    return f"&LabelSelector{{MatchLabels:map[string]string{{{pairs}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
