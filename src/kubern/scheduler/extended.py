"""Extended resources that a DeviceClass backs: what a pod asks for by name becomes a ResourceClaim of its own. Pure. KEP-5004.

On a node that offers the resource itself (a device plugin) nothing changes; elsewhere the claim is made for the pod and that node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kubern.model.object import Object, meta, name, notes
from kubern.model.quantity import value
from kubern.model.view import View
from kubern.scheduler.pod import PodInfo

CLAIMS, DEVICE_CLASSES = "resourceclaims.resource.k8s.io", "deviceclasses.resource.k8s.io"
IMPLICIT = "deviceclass.resource.kubernetes.io/"               # followed by the name of a class
ANNOTATION = "resource.kubernetes.io/extended-resource-claim"
NATIVE = ("cpu", "memory", "ephemeral-storage", "pods", "storage")


def is_extended(resource: str) -> bool:
    """A name with a domain that is not Kubernetes' own, or one that names a class."""
    if resource.startswith(IMPLICIT):
        return True
    return "/" in resource and "kubernetes.io/" not in resource and not resource.startswith("requests.")


def classes(p: PodInfo, view: View) -> dict[str, str]:
    """{resource: name of the class that backs it} of what the pod asks for; of several classes the youngest."""
    asked = [r for r, n in p.requests.items() if n and r not in NATIVE and is_extended(r)]
    if not asked:
        return {}
    out = {}
    for resource in asked:
        backing = [c for c in view.list(DEVICE_CLASSES)
                   if (c.get("spec") or {}).get("extendedResourceName") == resource or f"{IMPLICIT}{name(c)}" == resource]
        if backing:
            youngest = max(meta(c).get("creationTimestamp") or "" for c in backing)
            out[resource] = min(name(c) for c in backing if (meta(c).get("creationTimestamp") or "") == youngest)
    return out


def left_behind(p: PodInfo, view: View) -> Object | None:
    """A claim that an earlier attempt made for this pod."""
    return next((c for c in view.owned(CLAIMS, p.uid) if notes(c).get(ANNOTATION) == "true"), None)


def claim_for(p: PodInfo, backed: Mapping[str, str]) -> tuple[Object, list[dict[str, Any]]]:
    """The claim for these resources, without a name, and which request serves which container."""
    containers = [*(p.spec.get("initContainers") or ()), *(p.spec.get("containers") or ())]
    passing = [i for i, c in enumerate(p.spec.get("initContainers") or ()) if c.get("restartPolicy") != "Always"]
    requests: list[dict[str, Any]] = []
    mappings: list[dict[str, Any]] = []
    for resource in sorted(backed):
        lasting: dict[int, dict[str, Any]] = {}
        for i, c in enumerate(containers):
            if i not in passing:
                request, maps = _request(i, c, resource, backed[resource], ())
                mappings += maps
                if request:
                    lasting[i] = request
        largest: dict[str, Any] | None = None
        short: list[dict[str, Any]] = []
        replaced: set[str] = set()
        for i in passing:                                      # they run one by one, and may use what later containers will have
            request, maps = _request(i, containers[i], resource, backed[resource], [r for j, r in lasting.items() if j >= i])
            short += maps
            if request:
                replaced.add(request["name"])
                if largest is None or largest["exactly"]["count"] < request["exactly"]["count"]:
                    largest = request
        if largest is not None:
            short = [{**m, "requestName": largest["name"]} if m["requestName"] in replaced else m for m in short]
            requests.append(largest)
        requests += lasting.values()
        mappings += short
    owner = {"apiVersion": "v1", "kind": "Pod", "name": p.name, "uid": p.uid, "controller": True}
    claim: Object = {
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"generateName": f"{p.name}-extended-resources-", "namespace": p.namespace, "uid": f"extended {p.uid}",
                     "annotations": {ANNOTATION: "true"}, "ownerReferences": [owner]},
        "spec": {"devices": {"requests": sorted(requests, key=lambda r: str(r["name"]))}}}
    return claim, mappings


def _request(i: int, container: Mapping[str, Any], resource: str, device_class: str,
             reusable: Sequence[dict[str, Any]]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(a request for what the reusable ones do not cover, or None; how the container's resource maps to requests)."""
    asked = (container.get("resources") or {}).get("requests") or {}
    want = value(asked[resource]) if resource in asked else 0
    if not want:
        return None, []
    maps: list[dict[str, Any]] = []
    have = 0
    for r in reusable:
        have += r["exactly"]["count"]
        maps.append({"containerName": container.get("name"), "resourceName": resource, "requestName": r["name"]})
        if have >= want:
            return None, maps
    label = f"container-{i}-request-{sorted(asked).index(resource)}"
    maps.append({"containerName": container.get("name"), "resourceName": resource, "requestName": label})
    return {"name": label, "exactly": {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": want - have}}, maps
