"""Lists of conditions, as the apps controllers keep them. Functions return new lists.

Upstream: SetDeploymentCondition and its siblings.
"""

from __future__ import annotations

from typing import Any

Condition = dict[str, Any]


def find(conditions: list[Condition] | None, type_: str) -> Condition | None:
    for c in conditions or ():
        if c.get("type") == type_:
            return c
    return None


def without(conditions: list[Condition] | None, type_: str) -> list[Condition]:
    return [c for c in conditions or () if c.get("type") != type_]


def put(conditions: list[Condition] | None, new: Condition, keep_transition: bool = True) -> list[Condition]:
    """The list with `new` at its end; unchanged where status and reason are the same already."""
    old = find(conditions, new["type"])
    if old is not None and old.get("status") == new.get("status") and old.get("reason") == new.get("reason"):
        return list(conditions or ())
    if keep_transition and old is not None and old.get("status") == new.get("status"):
        new = {**new, "lastTransitionTime": old.get("lastTransitionTime")}
    return [*without(conditions, new["type"]), new]
