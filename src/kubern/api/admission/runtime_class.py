"""RuntimeClass: a pod takes the overhead, the node selector and the tolerations of its runtime class.

Upstream: plugin/pkg/admission/runtimeclass; KEP-688, KEP-894.
"""

from __future__ import annotations

from typing import Any

from kubern.api.admission.attributes import CREATE, Attributes, Plugin, spec_of
from kubern.model.invalid import quote
from kubern.model.object import Object, clone
from kubern.model.quantity import parse

CLASSES = "runtimeclasses.node.k8s.io"


def _class(a: Attributes, spec: dict[str, Any]) -> Object | None:
    name = spec.get("runtimeClassName")
    if name is None:
        return None
    cls = a.reader.get(CLASSES, "", name)
    if cls is None:
        raise a.refuse(f"pod rejected: RuntimeClass {quote(name)} not found")
    return cls


def _fixed(cls: Object | None) -> dict[str, str] | None:
    overhead = (cls or {}).get("overhead")
    return None if overhead is None else overhead.get("podFixed") or {}


def _same(one: dict[str, str], other: dict[str, str]) -> bool:
    return one.keys() == other.keys() and all(parse(str(one[k])).amount == parse(str(other[k])).amount for k in one)


async def mutate(a: Attributes) -> None:
    spec = spec_of(a.obj)
    cls = _class(a, spec)
    if cls is None:
        return
    fixed = _fixed(cls)
    if fixed is not None:
        if spec.get("overhead") and not _same(fixed, spec["overhead"]):
            raise a.refuse("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
        spec["overhead"] = dict(fixed)
    scheduling = cls.get("scheduling")
    if scheduling is None:
        return
    selector = dict(spec.get("nodeSelector") or {})
    for key, value in (scheduling.get("nodeSelector") or {}).items():
        if key in selector and selector[key] != value:
            raise a.refuse(f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; "
                           f"pod.spec.nodeSelector[{key}] = {selector[key]}")
        selector[key] = value
    if selector:
        spec["nodeSelector"] = selector
    tolerations = _merge([*(spec.get("tolerations") or []), *(scheduling.get("tolerations") or [])])
    if tolerations:
        spec["tolerations"] = tolerations


def _merge(tolerations: list[Object]) -> list[Object]:
    """Without those that another one includes."""
    out: list[Object] = []
    for i, t in enumerate(tolerations):
        if any(t == later for later in tolerations[i + 1:]):
            continue
        if any(_includes(other, t) for j, other in enumerate(tolerations) if j != i and other != t):
            continue
        out.append(clone(t))
    return out


def _includes(wide: Object, narrow: Object) -> bool:
    if wide.get("key") and (wide.get("key") != narrow.get("key") or (wide.get("effect") and wide.get("effect") != narrow.get("effect"))):
        return False
    if not wide.get("key") and wide.get("operator") != "Exists":
        return False
    if wide.get("effect") and wide.get("effect") != narrow.get("effect"):
        return False
    if wide.get("effect") == "NoExecute" and wide.get("tolerationSeconds") is not None:
        mine, theirs = wide["tolerationSeconds"], narrow.get("tolerationSeconds")
        if theirs is None or theirs > mine:
            return False
    operator = wide.get("operator") or "Equal"
    return operator == "Exists" or ((narrow.get("operator") or "Equal") == "Equal" and wide.get("value") == narrow.get("value"))


async def validate(a: Attributes) -> None:
    spec = spec_of(a.obj)
    fixed = _fixed(_class(a, spec))
    overhead = spec.get("overhead")
    if fixed is None:
        if overhead is not None:
            raise a.refuse("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
    elif not _same(fixed, overhead or {}):
        raise a.refuse("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")


PLUGIN = Plugin("RuntimeClass", (CREATE,), ("pods",), mutate=mutate, validate=validate)
