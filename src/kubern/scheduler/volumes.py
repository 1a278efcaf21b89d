"""Volumes in scheduling: VolumeRestrictions, NodeVolumeLimits, VolumeBinding, VolumeZone. Pure over a View of storage objects.

Claims that are bound pin a pod by their volume's node affinity; claims that wait for their first consumer are matched to free volumes or
left to a provisioner on the chosen node, and `bindings` says which writes make that so. Volumes seen as taken by decisions not yet written
are passed in as `assumed`. Source: upstream volume binding plugin, KEP-490 (topology), KEP-2485 (ReadWriteOncePod), KEP-1472 (capacity).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kubern.model import quantity
from kubern.model.object import Object, controller_of, deleting, meta, name
from kubern.model.selector import from_label_selector
from kubern.model.view import View
from kubern.scheduler.plugins.node import node_selector_mask
from kubern.scheduler.plugins.verdict import Mask, Reject, Restrict, Verdict
from kubern.scheduler.pod import PodInfo
from kubern.scheduler.table import NodeTable

SELECTED_NODE = "volume.kubernetes.io/selected-node"
BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BETA_CLASS = "volume.beta.kubernetes.io/storage-class"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
ZONE_LABELS = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region",
               "failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region")
CLASSES, CSINODES, CAPACITIES, DRIVERS = ("storageclasses.storage.k8s.io", "csinodes.storage.k8s.io", "csistoragecapacities.storage.k8s.io",
                                          "csidrivers.storage.k8s.io")


@dataclass(slots=True)
class Wanted:
    """A pod's claims, sorted by what has to happen to them."""

    bound: list[Object] = field(default_factory=list)
    delayed: list[Object] = field(default_factory=list)
    immediate: list[Object] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bindings:
    """Writes that make a placement true: volumes to bind to claims, claims to be provisioned on the node."""

    static: tuple[tuple[Object, Object], ...] = ()      # (volume, claim)
    provision: tuple[Object, ...] = ()


def class_of(claim: Object) -> str:
    return (meta(claim).get("annotations") or {}).get(BETA_CLASS) or (claim.get("spec") or {}).get("storageClassName") or ""


def claims_of(p: PodInfo, view: View) -> Wanted | Reject:
    """The pod's claims, or why it cannot be scheduled yet."""
    out = Wanted()
    for v in p.spec.get("volumes") or ():
        if v.get("persistentVolumeClaim"):
            claim_name, own = v["persistentVolumeClaim"].get("claimName") or "", False
        elif v.get("ephemeral"):
            claim_name, own = f"{p.name}-{v.get('name')}", True
        else:
            continue
        claim = view.get("persistentvolumeclaims", p.namespace, claim_name)
        if claim is None:
            if own:
                return Reject(f'waiting for ephemeral volume controller to create the persistentvolumeclaim "{claim_name}"', True)
            return Reject(f'persistentvolumeclaim "{claim_name}" not found', True)
        spec = claim.get("spec") or {}
        if (claim.get("status") or {}).get("phase") == "Lost":
            return Reject(f'persistentvolumeclaim "{claim_name}" bound to non-existent persistentvolume "{spec.get("volumeName") or ""}"', True)
        if deleting(claim):
            return Reject(f'persistentvolumeclaim "{claim_name}" is being deleted', True)
        if own and (controller_of(claim) or {}).get("uid") != p.uid:
            return Reject(f"PVC {p.namespace}/{claim_name} was not created for pod {p.namespace}/{p.name} (pod is not owner)", True)
        if spec.get("volumeName") and BIND_COMPLETED in (meta(claim).get("annotations") or {}):
            out.bound.append(claim)
        elif not spec.get("volumeName") and _waits(claim, view):
            out.delayed.append(claim)
        else:
            out.immediate.append(claim)
    return out


def _waits(claim: Object, view: View) -> bool:
    storage_class = view.get(CLASSES, "", class_of(claim)) if class_of(claim) else None
    return (storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer"


def prefilter(view: View) -> Callable[[PodInfo, NodeTable], Restrict | Reject | None]:
    def run(p: PodInfo, t: NodeTable) -> Restrict | Reject | None:
        if not p.volumes:
            return None
        wanted = claims_of(p, view)
        if isinstance(wanted, Reject):
            return wanted
        if wanted.immediate:
            return Reject("pod has unbound immediate PersistentVolumeClaims", True)
        return None
    return run


def fits_claim(volume: Object, claim: Object, delayed: bool) -> bool:
    """Whether a free volume could serve a claim: class, size, modes, selector (component-helpers FindMatchingVolume)."""
    vs, cs = volume.get("spec") or {}, claim.get("spec") or {}
    if deleting(volume) or (volume.get("status") or {}).get("phase", "Available") != "Available":
        return False
    ref = vs.get("claimRef")
    if ref and (ref.get("name"), ref.get("namespace")) != (name(claim), meta(claim).get("namespace")):
        return False
    if ref and ref.get("uid") and ref["uid"] != meta(claim).get("uid"):
        return False
    if ref and delayed is False:
        return True
    if (vs.get("storageClassName") or "") != class_of(claim) or (vs.get("volumeMode") or "Filesystem") != (cs.get("volumeMode") or "Filesystem"):
        return False
    if (vs.get("volumeAttributesClassName") or "") != (cs.get("volumeAttributesClassName") or ""):
        return False
    if cs.get("selector") and not from_label_selector(cs["selector"]).matches(meta(volume).get("labels") or {}):
        return False
    if not set(cs.get("accessModes") or ()) <= set(vs.get("accessModes") or ()):
        return False
    want = ((cs.get("resources") or {}).get("requests") or {}).get("storage") or "0"
    return quantity.value((vs.get("capacity") or {}).get("storage") or "0") >= quantity.value(want)


def _size(volume: Object) -> int:
    return quantity.value(((volume.get("spec") or {}).get("capacity") or {}).get("storage") or "0")


def _wanted_size(claim: Object) -> int:
    return quantity.value((((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage") or "0")


def _volume_mask(volume: Object, t: NodeTable) -> Mask:
    """Nodes a volume can be used on."""
    required = ((volume.get("spec") or {}).get("nodeAffinity") or {}).get("required")
    if not required:
        return np.ones(t.size, bool)
    return node_selector_mask(required, t)


def _topologies(storage_class: Object, t: NodeTable) -> Mask:
    """Nodes in the class's allowed topologies."""
    allowed = storage_class.get("allowedTopologies") or ()
    if not allowed:
        return np.ones(t.size, bool)
    ok = np.zeros(t.size, bool)
    for term in allowed:
        one = np.ones(t.size, bool)
        for e in term.get("matchLabelExpressions") or ():
            col = t.column(e.get("key") or "")
            one &= np.isin(col, [t.values[v] for v in e.get("values") or () if v in t.values])
        ok |= one
    return ok


def _allowed(storage_class: Object, t: NodeTable) -> Mask:
    """_topologies, remembered until a node changes."""
    return t.remember(("topologies", repr(storage_class.get("allowedTopologies"))), lambda: _topologies(storage_class, t))


def _capacity(claim: Object, storage_class: Object, view: View, t: NodeTable) -> Mask:
    """Nodes where the driver reports room for the claim; everywhere if the driver does not track capacity."""
    driver = view.get(DRIVERS, "", storage_class.get("provisioner") or "")
    if not ((driver or {}).get("spec") or {}).get("storageCapacity"):
        return np.ones(t.size, bool)
    ok, want = np.zeros(t.size, bool), _wanted_size(claim)
    for c in view.list(CAPACITIES):
        if c.get("storageClassName") != name(storage_class) or c.get("capacity") is None:
            continue
        if quantity.value(c.get("maximumVolumeSize") or c["capacity"]) < want:
            continue
        selector = c.get("nodeTopology")
        if selector is None:
            continue
        match = from_label_selector(selector)
        ok |= np.fromiter((n is not None and match.matches(meta(n).get("labels") or {}) for n in t.nodes), bool, t.size)
    return ok


def volume_binding(view: View, assumed: Mapping[str, str]) -> Callable[[PodInfo, NodeTable], Iterator[Verdict]]:
    """`assumed`: volume name -> uid of the claim it has been promised to."""
    def run(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
        if not p.volumes:
            return
        wanted = claims_of(p, view)
        if isinstance(wanted, Reject):
            return
        for claim in wanted.bound:
            volume = view.get("persistentvolumes", "", claim["spec"]["volumeName"])
            if volume is None:
                yield Verdict(t.all(), "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)", True)
                continue
            bad = ~_volume_mask(volume, t)
            if bad.any():
                yield Verdict(bad, "node(s) didn't match PersistentVolume's node affinity", True)
        if not wanted.delayed:
            return
        unmatched, no_room = np.zeros(t.size, bool), np.zeros(t.size, bool)
        for slot in np.nonzero(t.all())[0]:
            missing = _match(wanted.delayed, t, int(slot), view, assumed)[1]
            for claim in missing:
                storage_class = view.get(CLASSES, "", class_of(claim)) or {}
                if not storage_class.get("provisioner") or storage_class["provisioner"] == NO_PROVISIONER or not _allowed(storage_class, t)[slot]:
                    unmatched[slot] = True
                elif not _capacity(claim, storage_class, view, t)[slot]:
                    no_room[slot] = True
        if unmatched.any():
            yield Verdict(unmatched, "node(s) didn't find available persistent volumes to bind", True)
        if no_room.any():
            yield Verdict(no_room & ~unmatched, "node(s) did not have enough free storage", True)
    return run


def _match(claims: list[Object], t: NodeTable, slot: int, view: View, assumed: Mapping[str, str]) -> tuple[list[tuple[Object, Object]], list[Object]]:
    """Free volumes for claims on one node, smallest that fits, and the claims left without; claims already told their node only go there."""
    chosen: list[tuple[Object, Object]] = []
    left: list[Object] = []
    taken: set[str] = set()
    for claim in sorted(claims, key=_wanted_size):
        node = (meta(claim).get("annotations") or {}).get(SELECTED_NODE)
        best: Object | None = None
        if not node:
            for v in view.by("persistentvolumes", "spec.storageClassName", class_of(claim)):
                if name(v) in taken or assumed.get(name(v), meta(claim).get("uid")) != meta(claim).get("uid"):
                    continue
                if fits_claim(v, claim, True) and _volume_mask(v, t)[slot] and (best is None or _size(v) < _size(best)):
                    best = v
        if best is None:
            left.append(claim)
        else:
            taken.add(name(best))
            chosen.append((best, claim))
    return chosen, left


def bindings(p: PodInfo, t: NodeTable, slot: int, view: View, assumed: Mapping[str, str]) -> Bindings:
    """What has to be written so that the pod's waiting claims are served on this node."""
    wanted = claims_of(p, view)
    if isinstance(wanted, Reject) or not wanted.delayed:
        return Bindings()
    static, left = _match(wanted.delayed, t, slot, view, assumed)
    return Bindings(tuple(static), tuple(left))


def restrictions_prefilter(view: View) -> Callable[[PodInfo, NodeTable], Restrict | Reject | None]:
    def run(p: PodInfo, t: NodeTable) -> Restrict | Reject | None:
        for n in p.volumes:
            if any((v.get("persistentVolumeClaim") or {}).get("claimName") == n for v in p.spec.get("volumes") or ()) and \
                    view.get("persistentvolumeclaims", p.namespace, n) is None:
                return Reject(f'persistentvolumeclaim "{n}" not found', True)
        return None
    return run


def volume_restrictions(view: View) -> Callable[[PodInfo, NodeTable], Iterator[Verdict]]:
    """A ReadWriteOncePod claim in use by another pod keeps this one out wherever that pod is."""
    def run(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
        exclusive = {n for n in p.volumes
                     if "ReadWriteOncePod" in (((view.get("persistentvolumeclaims", p.namespace, n) or {}).get("spec") or {}).get("accessModes") or ())}
        if not exclusive:
            return
        holders = [q for q in t.placed.values() if q.namespace == p.namespace and exclusive & set(q.volumes) and q.uid != p.uid]
        if holders:
            bad = np.zeros(t.size, bool)
            bad[[q.slot for q in holders]] = True
            yield Verdict(bad, "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode "
                          "already in-use by another pod")
    return run


def volume_limits(view: View) -> Callable[[PodInfo, NodeTable], Iterator[Verdict]]:
    """CSI drivers' limits of volumes a node (CSINode allocatable)."""
    def driver_of(namespace: str, claim_name: str) -> tuple[str, str]:
        claim = view.get("persistentvolumeclaims", namespace, claim_name) or {}
        volume = view.get("persistentvolumes", "", (claim.get("spec") or {}).get("volumeName") or "")
        csi = ((volume or {}).get("spec") or {}).get("csi")
        if csi:
            return csi.get("driver") or "", csi.get("volumeHandle") or ""
        storage_class = view.get(CLASSES, "", class_of(claim)) if claim else None
        return (storage_class or {}).get("provisioner") or "", f"{namespace}/{claim_name}"

    def run(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
        if not p.volumes:
            return
        limits = {(name(n), d.get("name")): int((d.get("allocatable") or {})["count"])
                  for n in view.list(CSINODES) for d in (n.get("spec") or {}).get("drivers") or () if (d.get("allocatable") or {}).get("count") is not None}
        if not limits:
            return
        mine = [driver_of(p.namespace, n) for n in p.volumes]
        bad = np.zeros(t.size, bool)
        for slot in np.nonzero(t.all())[0]:
            for driver in {d for d, _ in mine}:
                limit = limits.get((t.names[slot], driver))
                if limit is None:
                    continue
                used = {driver_of(q.namespace, n) for q in t.pods[slot].values() for n in q.volumes} | set(mine)
                bad[slot] |= sum(1 for d, _ in used if d == driver) > limit
        if bad.any():
            yield Verdict(bad, "node(s) exceed max volume count")
    return run


def volume_zone(view: View) -> Callable[[PodInfo, NodeTable], Iterator[Verdict]]:
    """Zone and region labels of bound volumes against the node's."""
    def run(p: PodInfo, t: NodeTable) -> Iterator[Verdict]:
        for n in p.volumes:
            claim = view.get("persistentvolumeclaims", p.namespace, n) or {}
            volume: Any = view.get("persistentvolumes", "", (claim.get("spec") or {}).get("volumeName") or "") or {}
            for label in ZONE_LABELS:
                value = (meta(volume).get("labels") or {}).get(label)
                if value is None:
                    continue
                ids = [t.values[z] for z in value.split("__") if z in t.values]
                bad = ~np.isin(t.column(label), ids)
                if bad.any():
                    yield Verdict(bad, "node(s) had no available volume zone", True)
    return run


# ---- the table

def filters(view: View, assumed: Mapping[str, str]) -> tuple[tuple[str, Callable[[PodInfo, NodeTable], Iterator[Verdict]]], ...]:
    """The plugins in their order, for pods with volumes."""
    return (("VolumeRestrictions", volume_restrictions(view)), ("NodeVolumeLimits", volume_limits(view)),
            ("VolumeBinding", volume_binding(view, assumed)), ("VolumeZone", volume_zone(view)))


def prefilters(view: View) -> tuple[tuple[str, Callable[[PodInfo, NodeTable], Restrict | Reject | None]], ...]:
    return ("VolumeRestrictions", restrictions_prefilter(view)), ("VolumeBinding", prefilter(view))
