"""scheduling.k8s.io/v1: PriorityClass. Where pods may run is placement.py. Upstream: pkg/apis/scheduling, pkg/registry/scheduling."""

from __future__ import annotations

from kubern.model.invalid import forbidden, not_supported, required
from kubern.model.kinds.checks import Errors, immutable, listed
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.object import Object

HIGHEST_USER_PRIORITY = 1_000_000_000
SYSTEM_PREFIX = "system-"
SYSTEM_CLASSES = {  # name -> (value, description); made at start by the API
    "system-node-critical": (2 * HIGHEST_USER_PRIORITY + 1000,
                             "Used for system critical pods that must not be moved from their current node."),
    "system-cluster-critical": (2 * HIGHEST_USER_PRIORITY, "Used for system critical pods that must run in the cluster, but can be moved to "
                                                           "another node if necessary."),
}
PREEMPTION_POLICIES = ("PreemptLowerPriority", "Never")


def default_priority_class(obj: Object) -> None:
    if obj.get("preemptionPolicy") is None:
        obj["preemptionPolicy"] = "PreemptLowerPriority"


def _system_error(name: str, value: int, default: bool) -> str:
    known = SYSTEM_CLASSES.get(name)
    if known is None:
        return f"{name} is not a known system priority class"
    if value != known[0]:
        return f"value of {name} PriorityClass must be {known[0]}"
    return f"globalDefault of {name} PriorityClass must be false" if default else ""


def validate_priority_class(obj: Object) -> Errors:
    name, value = obj["metadata"].get("name") or "", obj.get("value") or 0
    if name.startswith(SYSTEM_PREFIX):
        if why := _system_error(name, value, bool(obj.get("globalDefault"))):
            yield forbidden("metadata.name", f"priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}")
    elif value > HIGHEST_USER_PRIORITY:
        yield forbidden("value", f"maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}")
    policy = obj.get("preemptionPolicy")
    if policy == "":
        yield required("preemptionPolicy")
    elif policy is not None and policy not in PREEMPTION_POLICIES:
        yield not_supported("preemptionPolicy", policy, PREEMPTION_POLICIES)


def validate_priority_class_update(new: Object, old: Object) -> Errors:
    if (new.get("value") or 0) != (old.get("value") or 0):
        yield forbidden("value", "may not be changed in an update.")
    yield from immutable(new.get("preemptionPolicy"), old.get("preemptionPolicy"), "preemptionPolicy")


def _unchanged(new: Object, old: Object) -> bool:
    return False


KINDS: KindTable = {
    ("scheduling.k8s.io", "PriorityClass"): Kind(
        defaults=default_priority_class, validate=listed(validate_priority_class), validate_update=listed(validate_priority_class_update),
        has_generation=True, generation_changed=_unchanged),
}
