"""The DynamicResources plugin: a pod's ResourceClaims against the nodes. Pure over a View of claims, classes and slices; devices.py searches.

A pod whose claims do not exist yet is not queued at all; a claim that is not allocated gets devices of the chosen node, and is allocated and
reserved before the pod is bound. Extended resources that a DeviceClass backs become one more claim, made for the pod (extended.py).
KEP-4381 (structured parameters), 5007 (binding conditions), 5004 (extended resources).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kubern.model.object import Object, controller_of, deleting, meta, name, uid
from kubern.model.time import seconds_of
from kubern.model.view import View
from kubern.scheduler import extended
from kubern.scheduler.allocate import allocate, preference
from kubern.scheduler.devices import BadClaim, Inventory, Used, alternatives, conditions_of, requests
from kubern.scheduler.plugins.node import node_selector_mask
from kubern.scheduler.plugins.verdict import Ints, Mask, Reject, Restrict, Verdict
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.table import NodeTable

CLAIMS, SLICES, DEVICE_CLASSES = "resourceclaims.resource.k8s.io", "resourceslices.resource.k8s.io", "deviceclasses.resource.k8s.io"
FINALIZER = "resource.kubernetes.io/delete-protection"
RESERVED_MAX = 256
BINDING_TIMEOUT_S = 600.0                             # DynamicResourcesArgs.bindingTimeout


def claims_of(p: PodInfo, view: View) -> list[Object] | str:
    """The claims that a pod names, or why it has to wait for them."""
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


def reservation(p: PodInfo) -> dict[str, Any]:
    return {"resource": "pods", "name": p.name, "uid": p.uid}


def finalizers(claim: Object) -> list[str]:
    have = list(meta(claim).get("finalizers") or ())
    return have if FINALIZER in have else [*have, FINALIZER]


def prepared(claim: Object) -> bool:
    """Whether all devices that have to be made ready for binding are. Raises BadClaim where that failed."""
    ready = True
    for result, conditions in conditions_of(claim):
        failed = next((c for c in result.get("bindingFailureConditions") or () if conditions.get(c) == "True"), None)
        if failed:
            raise BadClaim(f"device binding failed: claim={name(claim)}, condition={failed}")
        ready &= all(conditions.get(c) == "True" for c in result["bindingConditions"])
    return ready


def late(claim: Object, now: float) -> bool:
    """Whether it has waited for its binding conditions for too long."""
    since = seconds_of((allocation(claim) or {}).get("allocationTimestamp"))
    return bool(since) and since + BINDING_TIMEOUT_S < now and any(True for _ in conditions_of(claim))


def _unusable(claim: Object, now: float) -> bool:
    try:
        return not prepared(claim) and late(claim, now)
    except BadClaim:
        return True


class DynamicResources:
    """The plugin, for one pod after the other: `prefilter` looks the pod's claims up, `filter`, `score` and `reserve` speak of the same pod."""

    def __init__(self, view: View, pending: dict[str, Any], clock: Any) -> None:
        self.view, self.pending, self.clock = view, pending, clock      # pending: uid of a claim -> allocation that is on its way to the API
        self.claims: list[Object] = []
        self.extended: dict[str, str] = {}                     # resources of the pod that device classes back: name -> class
        self.stale: Object | None = None                       # a claim for extended resources that an earlier attempt left behind
        self.unavailable: list[Object] = []                    # allocated claims that keep the pod from nodes
        self.inventory, self.used = Inventory(()), Used()
        self.found: dict[int, list[dict[str, Any]]] = {}       # slot -> allocations of the claims that had none

    def concerns(self, p: PodInfo) -> bool:
        """Whether the pod asks for devices; tells NodeResourcesFit which resources are not its own."""
        self.extended = extended.classes(p, self.view)
        p.backed = frozenset(self.extended)
        return p.claims or bool(self.extended)

    def _class(self, wanted: str) -> Object | None:
        return self.view.get(DEVICE_CLASSES, "", wanted)

    def prefilter(self, p: PodInfo, t: NodeTable) -> Restrict | Reject | None:
        claims = claims_of(p, self.view)
        self.unavailable, self.found = [], {}
        if isinstance(claims, str):
            self.claims = []
            return Reject(claims, True)
        self.claims = claims
        self.stale = extended.left_behind(p, self.view) if self.extended else None
        for claim in claims:
            if allocation(claim):
                if not reserved_for(claim, p.uid) and len((claim.get("status") or {}).get("reservedFor") or ()) >= RESERVED_MAX:
                    return Reject("resourceclaim in use", True)
            elif uid(claim) in self.pending:
                return Reject(f"resource claim {p.namespace}/{name(claim)} is in the process of being allocated", True)
            else:
                for request in requests(claim):
                    for sub in alternatives(request):
                        label = f"{request.get('name')}/{sub.get('name')}" if request.get("firstAvailable") else request.get("name")
                        if self._class(sub.get("deviceClassName") or "") is None:
                            return Reject(f"request {label}: device class {sub.get('deviceClassName') or ''} does not exist", True)
        self.inventory, self.used = Inventory(self.view.list(SLICES)), Used()
        for given in (*(allocation(c) for c in self.view.list(CLAIMS)), *self.pending.values()):
            self.used.add(given)
        return None

    def _open(self, p: PodInfo, t: NodeTable, slot: int) -> tuple[list[Object], list[dict[str, Any]]]:
        """(claims that want an allocation on this node, how containers' extended resources map to requests)."""
        waiting = [c for c in self.claims if not allocation(c)]
        here = {r: c for r, c in self.extended.items() if not t.allocatable[t.resource_row(r), slot]}
        if not here:
            return waiting, []
        claim, mappings = extended.claim_for(p, here)
        return [*waiting, claim], mappings

    def _allocate(self, claims: list[Object], t: NodeTable, slot: int) -> list[dict[str, Any]] | str:
        def on_node(selector: Mapping[str, Any]) -> bool:
            return bool(t.remember(("selector", repr(selector)), lambda: node_selector_mask(selector, t))[slot])
        try:
            return allocate(claims, self.inventory, self.used, self._class, t.names[slot], on_node)
        except BadClaim as e:
            return str(e)

    def filter(self, p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
        if self.stale is not None:
            yield Verdict(t.all(), "cannot schedule extended resource claim", True)
            return
        now = self.clock()
        elsewhere = np.zeros(t.size, bool)
        for claim in self.claims:
            given = allocation(claim)
            if given is None:
                continue
            bad = ~node_selector_mask(given["nodeSelector"], t) if given.get("nodeSelector") else np.zeros(t.size, bool)
            if _unusable(claim, now):
                bad = np.ones(t.size, bool)
            if bad.any():
                self.unavailable.append(claim)
                elsewhere |= bad
        if elsewhere.any():
            yield Verdict(elsewhere, "resourceclaim not available on the node", True)
        if not self.extended and all(allocation(c) for c in self.claims):
            return
        reasons: dict[str, list[int]] = {}
        for slot in np.nonzero(t.all() & ~elsewhere)[0]:
            claims, _ = self._open(p, t, int(slot))
            found = self._allocate(claims, t, int(slot)) if claims else []
            if isinstance(found, str):
                reasons.setdefault(found, []).append(int(slot))
            else:
                self.found[int(slot)] = found
        for reason, slots in reasons.items():
            bad = np.zeros(t.size, bool)
            bad[slots] = True
            yield Verdict(bad, reason, True)

    def score(self, p: PodInfo, t: NodeTable, feasible: Mask) -> Ints | None:
        """By how early in their prioritized lists the requests were served."""
        waiting = [c for c in self.claims if not allocation(c)]
        if not any(r.get("firstAvailable") for c in waiting for r in requests(c)):
            return None
        out = np.zeros(t.size, np.int64)
        for slot, found in self.found.items():
            out[slot] = preference(waiting, found[:len(waiting)])
        return out

    def reserve(self, p: PodInfo, t: NodeTable, slot: int) -> Reserved:
        """The pod's claims with the devices they get on the chosen node, noted as on their way."""
        claims, mappings = self._open(p, t, slot)
        found = self.found.get(slot) or (self._allocate(claims, t, slot) if claims else [])
        given = {uid(c): a for c, a in zip(claims, found, strict=True)} if not isinstance(found, str) else {}
        self.pending |= given
        own = [(c, given.get(uid(c))) for c in self.claims]
        made = claims[-1] if mappings else None
        return Reserved(own, made, given.get(uid(made)) if made else None, mappings)


class Reserved:
    """What a placed pod was given. `claims`: each with its allocation, None where it had one; `made`: the claim for its extended resources."""

    def __init__(self, claims: list[tuple[Object, Any]], made: Object | None = None, allocation: Any = None,
                 mappings: list[dict[str, Any]] | None = None) -> None:
        self.claims, self.made, self.allocation, self.mappings = claims, made, allocation, mappings or []
        self.created: Object | None = None                     # `made`, once the server has it

    def __bool__(self) -> bool:
        return bool(self.claims or self.made)

    @property
    def uids(self) -> list[str]:
        return [uid(c) for c, _ in self.claims] + ([uid(self.made)] if self.made else [])
