"""Which pods of a namespace a selector means, by an index where the selector names one value of a label; which selectors mean some pods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.model.object import Key, Object, meta
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


class Overlaps:
    """Selectors by who has them; finds those that match some labels without asking all."""

    def __init__(self) -> None:
        self._pairs: dict[Key, tuple[str, str]] = {}                                  # whose -> (namespace, "key=value" it needs, "" for none)
        self._selectors: dict[tuple[str, str], dict[Key, Selector]] = {}

    def put(self, whose: Key, selector: Selector) -> None:
        self.drop(whose)
        needs = (f"{r.key}={r.values[0]}" for r in selector.requirements if r.op in ("=", "==", "in") and len(r.values) == 1)
        self._pairs[whose] = pair = (whose[0], next(needs, ""))
        self._selectors.setdefault(pair, {})[whose] = selector

    def drop(self, whose: Key) -> None:
        pair = self._pairs.pop(whose, None)
        if pair is not None:
            del self._selectors[pair][whose]
            if not self._selectors[pair]:
                del self._selectors[pair]

    def of(self, namespace: str, labels: Iterable[dict[str, str]]) -> list[Key]:
        """Whose selectors match any of these, in order."""
        out: set[Key] = set()
        for each in {tuple(sorted(x.items())) for x in labels}:
            have = dict(each)
            for pair in ("", *(f"{k}={v}" for k, v in each)):
                out |= {whose for whose, s in self._selectors.get((namespace, pair), {}).items() if s.matches(have)}
        return sorted(out)


def go_selector(selector: dict[str, Any] | None) -> str:
    """A *LabelSelector as Go prints it."""
    if selector is None:
        return "nil"
    pairs = "".join(f"{k}: {v}," for k, v in sorted((selector.get("matchLabels") or {}).items()))
    expressions = "".join(f"LabelSelectorRequirement{{Key:{e.get('key')},Operator:{e.get('operator')},Values:[{' '.join(e.get('values') or ())}],}},"
                          for e in selector.get("matchExpressions") or ())
    return f"&LabelSelector{{MatchLabels:map[string]string{{{pairs}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
