"""LimitRanger: defaults for what containers ask, and bounds for what they and claims may ask.

Upstream: plugin/pkg/admission/limitranger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin, spec_of
from kubern.model.invalid import aggregate
from kubern.model.kinds.pod_resources import is_pod_level, sum_containers
from kubern.model.object import Object
from kubern.model.quantity import parse

ANNOTATION = "kubernetes.io/limit-ranger"
Quantities = dict[str, Any]


def _ranges(a: Attributes) -> list[Object]:
    if (a.operation == UPDATE and a.what == "pods") or (a.old or {}).get("metadata", {}).get("deletionTimestamp"):
        return []
    return list(a.reader.list("limitranges", a.namespace))


def _limits(ranges: Iterable[Object], kind: str) -> Iterable[dict[str, Any]]:
    for r in ranges:
        for limit in (r.get("spec") or {}).get("limits") or ():
            if limit.get("type") == kind:
                yield limit


async def mutate(a: Attributes) -> None:
    if a.resource.plural != "pods":
        return
    for limit_range in _ranges(a):
        requests: Quantities = {}
        limits: Quantities = {}
        for limit in _limits((limit_range,), "Container"):
            requests |= limit.get("defaultRequest") or {}
            limits |= limit.get("default") or {}
        _default(a, requests, limits)


def _default(a: Attributes, requests: Quantities, limits: Quantities) -> None:
    assert a.obj is not None
    spec, notes = spec_of(a.obj), []
    for field, word in (("containers", "container"), ("initContainers", "init container")):
        for c in spec.get(field) or ():
            resources = c.get("resources") or {}
            made: dict[str, list[str]] = {}
            for side, defaults in (("requests", requests), ("limits", limits)):
                have = resources.get(side) or {}
                made[side] = sorted(k for k in defaults if k not in have)
                if made[side]:
                    resources = {**resources, side: {**have, **{k: defaults[k] for k in made[side]}}}
            if made["requests"] or made["limits"]:
                c["resources"] = resources
            notes += [f"{', '.join(made[side])} {one} for {word} {c.get('name', '')}"
                      for side, one in (("requests", "request"), ("limits", "limit")) if made[side]]
    if notes:
        m = a.obj["metadata"]
        m["annotations"] = {**(m.get("annotations") or {}), ANNOTATION: "LimitRanger plugin set: " + "; ".join(notes)}


async def validate(a: Attributes) -> None:
    ranges = _ranges(a)
    spec = spec_of(a.obj) if ranges else {}
    for limit_range in ranges:
        problems: list[str] = []
        if a.resource.plural == "persistentvolumeclaims":
            asked = (spec.get("resources") or {}).get("requests") or {}
            for limit in _limits((limit_range,), "PersistentVolumeClaim"):
                problems += _minimum("PersistentVolumeClaim", limit.get("min"), asked, {})
                problems += _maximum_request("PersistentVolumeClaim", limit.get("max"), asked)
        else:
            for limit in (limit_range.get("spec") or {}).get("limits") or ():
                problems += _pod(limit, spec)
        if problems:
            raise a.refuse(aggregate(problems))


def _pod(limit: dict[str, Any], spec: dict[str, Any]) -> list[str]:
    kind, parts = limit.get("type"), []
    if kind == "Container":
        for c in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
            resources = c.get("resources") or {}
            parts.append((resources.get("requests") or {}, resources.get("limits") or {}))
    elif kind == "Pod":
        own = spec.get("resources") or {}
        sums = [sum_containers(spec, side) | {k: v for k, v in (own.get(side) or {}).items() if is_pod_level(k)}
                for side in ("requests", "limits")]
        parts.append((sums[0], sums[1]))
    problems: list[str] = []
    for requests, limits in parts:
        problems += _minimum(str(kind), limit.get("min"), requests, limits)
        problems += _maximum(str(kind), limit.get("max"), requests, limits)
        problems += _ratio(str(kind), limit.get("maxLimitRequestRatio"), requests, limits)
    return problems


def _q(text: Any) -> Any:
    return parse(str(text)).amount


def _text(text: Any) -> str:
    return parse(str(text)).text


def _minimum(kind: str, bounds: Quantities | None, requests: Quantities, limits: Quantities) -> Iterable[str]:
    for name, bound in sorted((bounds or {}).items()):
        head = f"minimum {name} usage per {kind} is {_text(bound)}"
        if name not in requests:
            yield f"{head}.  No request is specified"
        elif _q(requests[name]) < _q(bound):
            yield f"{head}, but request is {_text(requests[name])}"
        elif name in limits and _q(limits[name]) < _q(bound):
            yield f"{head}, but limit is {_text(limits[name])}"


def _maximum_request(kind: str, bounds: Quantities | None, requests: Quantities) -> Iterable[str]:
    for name, bound in sorted((bounds or {}).items()):
        head = f"maximum {name} usage per {kind} is {_text(bound)}"
        if name not in requests:
            yield f"{head}.  No request is specified"
        elif _q(requests[name]) > _q(bound):
            yield f"{head}, but request is {_text(requests[name])}"


def _maximum(kind: str, bounds: Quantities | None, requests: Quantities, limits: Quantities) -> Iterable[str]:
    for name, bound in sorted((bounds or {}).items()):
        head = f"maximum {name} usage per {kind} is {_text(bound)}"
        if name not in limits:
            yield f"{head}.  No limit is specified"
        elif _q(limits[name]) > _q(bound):
            yield f"{head}, but limit is {_text(limits[name])}"
        elif name in requests and _q(requests[name]) > _q(bound):
            yield f"{head}, but request is {_text(requests[name])}"


def _ratio(kind: str, bounds: Quantities | None, requests: Quantities, limits: Quantities) -> Iterable[str]:
    for name, bound in sorted((bounds or {}).items()):
        head = f"{name} max limit to request ratio per {kind} is {_text(bound)}"
        request, limit = _q(requests.get(name, "0")), _q(limits.get(name, "0"))
        if not request:
            yield f"{head}, but no request is specified or request is 0"
        elif not limit:
            yield f"{head}, but no limit is specified or limit is 0"
        elif limit / request > _q(bound):
            yield f"{head}, but provided ratio is {float(limit / request):f}"


PLUGIN = Plugin("LimitRanger", (CREATE, UPDATE), ("pods", "persistentvolumeclaims", "pods/resize"), mutate=mutate, validate=validate)
