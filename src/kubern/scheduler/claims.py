"""Devices in scheduling: the DynamicResources plugin. Pure over a View of ResourceClaims, DeviceClasses and ResourceSlices.

A pod whose claims do not exist yet is not queued at all; a claim that is not allocated gets devices of the chosen node, found by a search
with backtracking over requests in order, and is allocated and reserved before the pod is bound. KEP-4381 (structured parameters).
Not here: partitionable devices, consumable capacity, binding conditions, extended resources backed by devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kubern.model.object import Object, controller_of, deleting, meta, name, uid
from kubern.model.view import View
from kubern.scheduler.plugins.node import node_selector_mask
from kubern.scheduler.plugins.verdict import Reject, Restrict, Verdict
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.table import NodeTable

CLAIMS, SLICES, DEVICE_CLASSES = "resourceclaims.resource.k8s.io", "resourceslices.resource.k8s.io", "deviceclasses.resource.k8s.io"
FINALIZER = "resource.kubernetes.io/delete-protection"
RESERVED_MAX = 256
RESULTS_MAX = 32
Device = tuple[str, str, str]                         # (driver, pool, name)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    id: Device
    spec: Mapping[str, Any]
    everywhere: bool                                  # not tied to one node


def claims_of(p: PodInfo, view: View) -> list[Object] | str:
    """The pod's claims, or why it has to wait for them."""
    names = {s.get("name"): s.get("resourceClaimName") for s in (p.pod.get("status") or {}).get("resourceClaimStatuses") or ()}
    out = []
    for ref in p.spec.get("resourceClaims") or ():
        claim_name = ref.get("resourceClaimName")
        own = not claim_name
        if own:
            if ref.get("name") not in names:
                return f"waiting for dynamic resource controller to create the resourceclaim for pod \"{p.namespace}/{p.name}\""
            claim_name = names[ref.get("name")]
            if not claim_name:
                continue                              # the template asked for none
        claim = view.get(CLAIMS, p.namespace, claim_name)
        if claim is None:
            return f'resourceclaim.resource.k8s.io "{claim_name}" not found'
        if deleting(claim):
            return f'resourceclaim "{claim_name}" is being deleted'
        if own and (controller_of(claim) or {}).get("uid") != p.uid:
            return f"ResourceClaim {p.namespace}/{claim_name} was not created for pod {p.namespace}/{p.name} (pod is not owner)"
        out.append(claim)
    return out


def allocation(claim: Object) -> Mapping[str, Any] | None:
    return (claim.get("status") or {}).get("allocation")


def reserved_for(claim: Object, pod_uid: str) -> bool:
    return any(r.get("uid") == pod_uid for r in (claim.get("status") or {}).get("reservedFor") or ())


def prefilter(view: View, pending: Mapping[str, Any]) -> Callable[[PodInfo, NodeTable], Restrict | Reject | None]:
    """`pending`: uid of a claim -> allocation that is on its way to the API."""
    def run(p: PodInfo, t: NodeTable) -> Restrict | Reject | None:
        if not p.claims:
            return None
        claims = claims_of(p, view)
        if isinstance(claims, str):
            return Reject(claims, True)
        for claim in claims:
            if allocation(claim):
                if not reserved_for(claim, p.uid) and len((claim.get("status") or {}).get("reservedFor") or ()) >= RESERVED_MAX:
                    return Reject("resourceclaim in use", True)
            elif uid(claim) in pending:
                return Reject(f"resource claim {p.namespace}/{name(claim)} is in the process of being allocated", True)
            else:
                for request in _requests(claim):
                    for sub in request.get("firstAvailable") or (request.get("exactly") or {},):
                        device_class = sub.get("deviceClassName") or ""
                        if view.get(DEVICE_CLASSES, "", device_class) is None:
                            return Reject(f"request {request.get('name')}: device class {device_class} does not exist", True)
        return None
    return run


def dynamic_resources(view: View, pending: Mapping[str, Any]) -> Callable[[PodInfo, NodeTable], Iterator[Verdict]]:
    def run(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
        if not p.claims:
            return
        claims = claims_of(p, view)
        if isinstance(claims, str):
            return
        open_ = []
        for claim in claims:
            given = allocation(claim)
            if given is None:
                open_.append(claim)
            elif given.get("nodeSelector"):
                bad = ~node_selector_mask(given["nodeSelector"], t)
                if bad.any():
                    yield Verdict(bad, "resourceclaim not available on the node", True)
        if open_:
            used = in_use(view, pending)
            bad = np.fromiter((t.nodes[s] is not None and allocate(open_, devices_of(t, s, view), used, view, t.names[s]) is None
                               for s in range(t.size)), bool, t.size)
            if bad.any():
                yield Verdict(bad, "cannot allocate all claims", True)
    return run


# --- what there is ------------------------------------------------------------------------------------------------------

def in_use(view: View, pending: Mapping[str, Any]) -> set[Device]:
    """Devices that claims have, or are about to have."""
    used: set[Device] = set()
    for given in (*(allocation(c) for c in view.list(CLAIMS)), *pending.values()):
        for r in ((given or {}).get("devices") or {}).get("results") or ():
            if not r.get("adminAccess"):
                used.add((r.get("driver") or "", r.get("pool") or "", r.get("device") or ""))
    return used


def _pools(view: View) -> list[Object]:
    """Slices of each pool's newest generation, of pools whose slices are all there."""
    newest: dict[tuple[str, str], int] = {}
    for s in view.list(SLICES):
        pool = s["spec"].get("pool") or {}
        k = (s["spec"].get("driver") or "", pool.get("name") or "")
        newest[k] = max(newest.get(k, 0), int(pool.get("generation") or 0))
    by_pool: dict[tuple[str, str], list[Object]] = {}
    for s in view.list(SLICES):
        pool = s["spec"].get("pool") or {}
        k = (s["spec"].get("driver") or "", pool.get("name") or "")
        if int(pool.get("generation") or 0) == newest[k]:
            by_pool.setdefault(k, []).append(s)
    return [s for slices in by_pool.values() if len(slices) >= int((slices[0]["spec"].get("pool") or {}).get("resourceSliceCount") or 1)
            for s in sorted(slices, key=name)]


def devices_of(t: NodeTable, slot: int, view: View) -> list[Candidate]:
    """Devices that a pod on this node could use."""
    out = []
    for s in _pools(view):
        spec = s["spec"]
        everywhere = False
        if spec.get("nodeName"):
            if spec["nodeName"] != t.names[slot]:
                continue
        elif spec.get("nodeSelector"):
            if not node_selector_mask(spec["nodeSelector"], t)[slot]:
                continue
        elif spec.get("allNodes"):
            everywhere = True
        else:
            continue
        pool = (spec.get("pool") or {}).get("name") or ""
        out += [Candidate((spec.get("driver") or "", pool, d.get("name") or ""), d, everywhere) for d in spec.get("devices") or ()]
    return out


# --- the search ---------------------------------------------------------------------------------------------------------

def _requests(claim: Object) -> list[Mapping[str, Any]]:
    return ((claim.get("spec") or {}).get("devices") or {}).get("requests") or []


def allocate(claims: Iterable[Object], devices: list[Candidate], used: set[Device], view: View, node: str) -> list[dict[str, Any]] | None:
    """An allocation for each claim from these devices, or None. `used` is left as it was."""
    taken = set(used)
    out = []
    for claim in claims:
        found = _one(claim, devices, taken, view)
        if found is None:
            return None
        taken |= {c.id for _, c, admin in found if not admin}
        out.append(_result(claim, found, view, node))
    return out


def _one(claim: Object, devices: list[Candidate], taken: set[Device], view: View) -> list[tuple[str, Candidate, bool]] | None:
    """(request, device, admin access) triples that satisfy one claim."""
    requests = _requests(claim)
    constraints = ((claim.get("spec") or {}).get("devices") or {}).get("constraints") or []
    chosen: list[tuple[str, Candidate, bool]] = []

    def place(i: int) -> bool:
        if i == len(requests):
            return True
        request = requests[i]
        for sub in request.get("firstAvailable") or (request.get("exactly") or {},):
            label = f"{request['name']}/{sub['name']}" if request.get("firstAvailable") else request["name"]
            fitting = [c for c in devices if _suits(c, sub, view)]
            if sub.get("allocationMode") == "All":
                if not fitting or len(chosen) + len(fitting) > RESULTS_MAX or any(c.id in taken for c in fitting):
                    continue
                if take(label, fitting, len(fitting), sub, i):
                    return True
            elif take(label, [c for c in fitting if sub.get("adminAccess") or c.id not in taken], int(sub.get("count") or 1), sub, i):
                return True
        return False

    def take(label: str, fitting: list[Candidate], count: int, sub: Mapping[str, Any], i: int, start: int = 0) -> bool:
        if count == 0:
            return place(i + 1)
        for n in range(start, len(fitting) - count + 1):
            c = fitting[n]
            if any(c.id == d.id for _, d, _ in chosen) and not sub.get("adminAccess"):
                continue
            if len(chosen) >= RESULTS_MAX or not _constrained(label, c, chosen, constraints):
                continue
            chosen.append((label, c, bool(sub.get("adminAccess"))))
            if take(label, fitting, count - 1, sub, i, n + 1):
                return True
            chosen.pop()
        return False
    return chosen if place(0) else None


def _suits(c: Candidate, request: Mapping[str, Any], view: View) -> bool:
    """Class and request selectors hold, taints are tolerated, capacity is enough."""
    device_class = view.get(DEVICE_CLASSES, "", request.get("deviceClassName") or "") or {}
    selectors = [*((device_class.get("spec") or {}).get("selectors") or ()), *(request.get("selectors") or ())]
    if not all(selects((s.get("cel") or {}).get("expression") or "", c) for s in selectors):
        return False
    tolerations = request.get("tolerations") or []
    return all(any(_tolerates(x, taint) for x in tolerations) for taint in c.spec.get("taints") or () if taint.get("effect") in ("NoSchedule", "NoExecute"))


def _tolerates(t: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if t.get("effect") and t["effect"] != taint.get("effect"):
        return False
    if t.get("key") and t["key"] != taint.get("key"):
        return False
    return t.get("operator") == "Exists" or (t.get("value") or "") == (taint.get("value") or "")


@lru_cache(maxsize=1024)
def _program(expression: str) -> Any:
    from kubern.model.cel import CelProblem, compile_
    from kubern.model.cel.types import DYN

    try:
        return compile_(expression, {"device": DYN})
    except CelProblem:
        return None


def selects(expression: str, c: Candidate) -> bool:
    """A device selector over one device; an expression that fails selects nothing."""
    from kubern.model.cel import CelError

    program = _program(expression)
    if program is None:
        return False
    try:
        return program.run({"device": _variable(c)}) is True
    except CelError:
        return False


def _variable(c: Candidate) -> dict[str, Any]:
    from kubern.model.cel.kubernetes import _quantity

    attributes: dict[str, dict[str, Any]] = {c.id[0]: {}}
    capacity: dict[str, dict[str, Any]] = {c.id[0]: {}}
    for full, value in (c.spec.get("attributes") or {}).items():
        domain, _, short = full.rpartition("/")
        attributes.setdefault(domain or c.id[0], {})[short] = next(iter(value.values()), None)
    for full, value in (c.spec.get("capacity") or {}).items():
        domain, _, short = full.rpartition("/")
        capacity.setdefault(domain or c.id[0], {})[short] = _quantity(value.get("value") or "0")
    return {"driver": c.id[0], "attributes": attributes, "capacity": capacity, "allowMultipleAllocations": bool(c.spec.get("allowMultipleAllocations"))}


def _attribute(c: Candidate, full: str) -> Any:
    attributes = c.spec.get("attributes") or {}
    domain, _, short = full.rpartition("/")
    value = attributes.get(full)
    if value is None and domain == c.id[0]:
        value = attributes.get(short)
    return None if value is None else (next(iter(value)), next(iter(value.values())))


def _constrained(label: str, c: Candidate, chosen: list[tuple[str, Candidate, bool]], constraints: list[Mapping[str, Any]]) -> bool:
    for k in constraints:
        names = k.get("requests") or ()
        if names and label not in names and label.partition("/")[0] not in names:
            continue
        others = [d for other, d, _ in chosen if not names or other in names or other.partition("/")[0] in names]
        if k.get("matchAttribute"):
            mine = _attribute(c, k["matchAttribute"])
            if mine is None or any(_attribute(d, k["matchAttribute"]) != mine for d in others):
                return False
        if k.get("distinctAttribute"):
            mine = _attribute(c, k["distinctAttribute"])
            if mine is None or any(_attribute(d, k["distinctAttribute"]) == mine for d in others):
                return False
    return True


def _result(claim: Object, found: list[tuple[str, Candidate, bool]], view: View, node: str) -> dict[str, Any]:
    """status.allocation, without its time."""
    results = [{"request": label, "driver": c.id[0], "pool": c.id[1], "device": c.id[2], **({"adminAccess": True} if admin else {})}
               for label, c, admin in found]
    config = []
    for request in _requests(claim):
        for sub in request.get("firstAvailable") or (request.get("exactly") or {},):
            label = f"{request['name']}/{sub['name']}" if request.get("firstAvailable") else request["name"]
            if label not in {r["request"] for r in results}:
                continue
            device_class = view.get(DEVICE_CLASSES, "", sub.get("deviceClassName") or "") or {}
            config += [{"source": "FromClass", "requests": [label], **x} for x in (device_class.get("spec") or {}).get("config") or ()]
    config += [{"source": "FromClaim", **x} for x in ((claim.get("spec") or {}).get("devices") or {}).get("config") or ()]
    out: dict[str, Any] = {"devices": {"results": results, **({"config": config} if config else {})}}
    if not all(c.everywhere for _, c, _ in found):
        out["nodeSelector"] = {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}
    return out


def reservation(p: PodInfo) -> dict[str, Any]:
    return {"resource": "pods", "name": p.name, "uid": p.uid}


def finalizers(claim: Object) -> list[str]:
    have = list(meta(claim).get("finalizers") or ())
    return have if FINALIZER in have else [*have, FINALIZER]
