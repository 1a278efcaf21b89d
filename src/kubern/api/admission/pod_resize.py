"""PodResizeValidator: a bound pod grows in place only where its node has the room.

Upstream: plugin/pkg/admission/podresize; KEP-1287.
"""

from __future__ import annotations

from kubern.api.admission.attributes import UPDATE, Attributes, Plugin
from kubern.model.invalid import quote
from kubern.model.kinds.pod_resources import sum_containers
from kubern.model.quantity import milli, value


async def validate(a: Attributes) -> None:
    assert a.obj is not None
    spec = a.obj.get("spec") or {}
    name = spec.get("nodeName") or ""
    if not name or spec == (a.old or {}).get("spec"):
        return
    node = a.reader.get("nodes", "", name)
    if node is None:
        raise a.refuse(f"node {quote(name)} not found")
    system = (node["metadata"].get("labels") or {}).get("kubernetes.io/os", "linux")
    problem, reason = "", "NodeCapacity"
    if system != "linux":
        problem, reason = f"pod resize is only supported on linux nodes, node {quote(name)} is {quote(system)}", "UnsupportedPlatform"
    else:
        have = (node.get("status") or {}).get("allocatable") or {}
        want = sum_containers(spec, "requests") | ((spec.get("resources") or {}).get("requests") or {})
        texts = []
        for resource, amount in (("cpu", milli), ("memory", value)):
            asked, there = amount(want.get(resource, "0")), amount(have.get(resource, "0"))
            if asked > there:
                texts.append(f"{resource}, requested: {asked}, allocatable: {there}")
        if texts:
            problem = "node didn't have enough allocatable resources: " + "; ".join(texts)
    if problem:
        error = a.refuse(problem)
        assert error.details is not None
        error.details["causes"] = [{"reason": reason}]
        raise error


PLUGIN = Plugin("PodResizeValidator", (UPDATE,), ("pods/resize",), validate=validate)
