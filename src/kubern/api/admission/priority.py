"""Priority: a pod's priority comes from its PriorityClass and from nowhere else; one class at most is the default.

Upstream: plugin/pkg/admission/priority.
"""

from __future__ import annotations

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin, spec_of
from kubern.model.object import Object

CLASSES = "priorityclasses.scheduling.k8s.io"


def _default(a: Attributes) -> Object | None:
    """The default class; of several (made at the same moment) the one with the lowest value."""
    found = [c for c in a.reader.list(CLASSES) if c.get("globalDefault")]
    return min(found, key=lambda c: c.get("value", 0)) if found else None


async def mutate(a: Attributes) -> None:
    spec = spec_of(a.obj)
    if a.operation == UPDATE:
        before = (a.old or {}).get("spec") or {}
        for field in ("priority", "preemptionPolicy"):
            if spec.get(field) is None and before.get(field) is not None:
                spec[field] = before[field]
        return
    name = spec.get("priorityClassName") or ""
    cls: Object | None
    if name:
        cls = a.reader.get(CLASSES, "", name)
        if cls is None:
            raise a.refuse(f"no PriorityClass with name {name} was found")
    else:
        cls = _default(a)
        if cls is not None:
            spec["priorityClassName"] = cls["metadata"]["name"]
    value = cls.get("value", 0) if cls else 0
    policy = cls.get("preemptionPolicy") if cls else "PreemptLowerPriority"
    given = spec.get("priority")
    if given is not None and given != value:
        raise a.refuse(f"the integer value of priority ({given}) must not be provided in pod spec; priority admission controller "
                       f"computed {value} from the given PriorityClass name")
    spec["priority"] = value
    if policy:
        given = spec.get("preemptionPolicy")
        if given is not None and given != policy:
            raise a.refuse(f"the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission "
                           f"controller computed {policy} from the given PriorityClass name")
        spec["preemptionPolicy"] = policy


async def validate(a: Attributes) -> None:
    if a.resource.plural != "priorityclasses" or not (a.obj or {}).get("globalDefault"):
        return
    default = _default(a)
    if default is not None and a.obj is not None:
        name = default["metadata"]["name"]
        if a.operation == CREATE or name != a.obj["metadata"].get("name"):
            raise a.refuse(f"PriorityClass {name} is already marked as default. Only one default can exist")


POD = Plugin("Priority", (CREATE, UPDATE), ("pods",), mutate=mutate)
CLASS = Plugin("Priority", (CREATE, UPDATE), (CLASSES,), validate=validate)
