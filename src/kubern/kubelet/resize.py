"""Other resources for a pod that runs: whether the node grants them, and how that is told. Pure.

In: the pod with what its spec asks for now, what its containers run with, the node, its other pods. Upstream: pkg/kubelet/allocation; KEP-1287.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kubern.kubelet import pods
from kubern.model import quantity
from kubern.model.object import Object


def refused(pod: Object, node: Object | None, others: Iterable[Object]) -> tuple[str, str] | None:
    """Why a pod that runs cannot have the resources its spec asks for now: (Infeasible | Deferred, message), or None. KEP-1287."""
    room = ((node or {}).get("status") or {}).get("allocatable") or {}
    asked = pods.resources(pod["spec"], "requests")
    there = [p for p in others if p["metadata"].get("uid") != pod["metadata"].get("uid")]
    for resource, measure in (("cpu", quantity.milli), ("memory", quantity.value)):
        if resource not in asked or resource not in room:
            continue
        want, have = measure(asked[resource]), measure(str(room[resource]))
        if want > have:
            return "Infeasible", f"Node didn't have enough capacity: {resource}, requested: {want}, capacity: {have}"
        used = sum(measure(r[resource]) for p in there if resource in (r := pods.resources(p["spec"], "requests")))
        if want + used > have:
            return "Deferred", f"Node didn't have enough resource: {resource}, requested: {want}, used: {used}, capacity: {have}"
    return None


def pinned(pod: Object, held: Mapping[str, Mapping[str, Any]], cpu_policy: str, memory_policy: str) -> tuple[str, str] | None:
    """Why a Guaranteed pod cannot be resized where its cpus or memory were handed to it. `held`: container -> the resources it runs with."""
    if pods.qos_class(pod) != "Guaranteed":
        return None
    for resource, policy, name, measure in (("cpu", cpu_policy, "CPU", quantity.milli), ("memory", memory_policy, "Memory", quantity.value)):
        for _, c in pods.every_container(pod["spec"]):
            new, old = ((r.get("requests") or {}).get(resource, "0") for r in (c.get("resources") or {}, held.get(c["name"], c.get("resources") or {})))
            if policy in ("static", "Static") and measure(str(new)) != measure(str(old)):
                return "Infeasible", f'Resize is infeasible for Guaranteed Pods alongside {name} Manager policy "{policy}"'
    return None


def told(pod: Object, error: str = "") -> str:
    """The resources of the spec as resize events tell them."""
    doc: dict[str, Any] = {}
    for key in ("initContainers", "containers"):
        every = [{"name": c["name"], "resources": c.get("resources") or {}} for c in pod["spec"].get(key) or ()
                 if key == "containers" or pods.is_sidecar(c)]
        if every:
            doc[key] = every
    doc["generation"] = pod["metadata"].get("generation") or 0
    if error:
        doc["error"] = error
    return json.dumps(doc, separators=(",", ":"), sort_keys=False)


def reported(status: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The resources a container runs with, as the status says."""
    for key in ("containerStatuses", "initContainerStatuses"):
        for s in status.get(key) or ():
            if s["name"] == name and s.get("resources") is not None:
                return dict(s["resources"])
    return None
