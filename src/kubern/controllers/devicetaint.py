"""Device taint eviction: pods leave when a device they were given gets a NoExecute taint they do not tolerate, or tolerate for a time only.

Taints stand in ResourceSlices; DeviceTaintRules are off by default and not served. Upstream: pkg/controller/devicetainteviction, KEP-5055.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kubern.controllers.claims import RESOURCE_CLAIMS, claim_name, owned_by
from kubern.controllers.context import Context
from kubern.controllers.pods import node_of
from kubern.controllers.tainteviction import disrupted
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Delete, Emit, Failed, Requeue
from kubern.model.object import Key, Object, deleting, key, namespace, uid
from kubern.model.taint import tolerates
from kubern.model.time import seconds_of
from kubern.model.view import View

SLICES = "resourceslices.resource.k8s.io"
Device = tuple[str, str, str]                  # (driver, pool, name)


def _no_execute(slice_: Object | None) -> dict[Device, list[dict[str, Any]]]:
    """The NoExecute taints of a slice's devices."""
    spec = (slice_ or {}).get("spec") or {}
    pool = (spec.get("pool") or {}).get("name") or ""
    out: dict[Device, list[dict[str, Any]]] = {}
    for d in spec.get("devices") or ():
        taints = [t for t in d.get("taints") or () if t.get("effect") == "NoExecute"]
        if taints:
            out[spec.get("driver") or "", pool, d.get("name") or ""] = taints
    return out


def _generation(slice_: Object) -> int:
    return int((slice_["spec"].get("pool") or {}).get("generation") or 0)


def _taints(result: dict[str, Any], view: View) -> Iterator[dict[str, Any]]:
    """Taints of an allocated device, of the newest generation of its pool."""
    device = (result.get("driver") or "", result.get("pool") or "", result.get("device") or "")
    slices = [s for s in view.by(SLICES, "spec.pool.name", device[1]) if s["spec"].get("driver") == device[0]]
    newest = max((_generation(s) for s in slices), default=0)
    for s in slices:
        if _generation(s) == newest:
            yield from _no_execute(s).get(device, ())


def _due(claim: Object, view: View) -> float | None:
    """When pods that use the claim have to go; None: they may stay."""
    times = []
    for result in (((claim.get("status") or {}).get("allocation") or {}).get("devices") or {}).get("results") or ():
        for taint in _taints(result, view):
            waits = [t.get("tolerationSeconds") for t in result.get("tolerations") or () if t.get("effect") == "NoExecute" and tolerates(t, taint)]
            if None in waits:
                continue
            times.append(seconds_of(taint.get("timeAdded")) + max(0, min((w for w in waits if w is not None), default=0)))
    return min(times, default=None)


def _claims(pod: Object, view: View) -> Iterator[Object]:
    """The claims a pod runs with."""
    for ref in (pod.get("spec") or {}).get("resourceClaims") or ():
        found = claim_name(pod, ref)
        claim = view.get(RESOURCE_CLAIMS, namespace(pod), found) if found else None
        if claim is None or (not ref.get("resourceClaimName") and not owned_by(claim, pod)):
            continue
        if any(r.get("uid") == uid(pod) for r in (claim.get("status") or {}).get("reservedFor") or ()):
            yield claim


def controller(context: Context | None = None) -> Controller:
    planned: set[Key] = set()                  # pods whose eviction has a date

    def event(pod: Object, words: str) -> Emit:
        return Emit({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": key(pod)[0], "name": key(pod)[1], "uid": uid(pod)}},
                    "Normal", "DeviceTaintManagerEviction", words)

    def reconcile(pod: Object, view: View, now: float) -> Steps:
        k = key(pod)
        dates = [d for d in (_due(c, view) for c in _claims(pod, view)) if d is not None] if node_of(pod) and not deleting(pod) else []
        if not dates:
            if k in planned and not deleting(pod):
                yield event(pod, "Cancelling deletion")
            planned.discard(k)
            return
        if min(dates) > now:
            planned.add(k)
            yield Requeue(min(dates) - now)
            return
        planned.discard(k)
        yield event(pod, "Marking for deletion")
        done = yield disrupted(pod, "DeletionByDeviceTaintManager", "Device Taint manager: deleting due to NoExecute taint", now)
        if not isinstance(done, Failed):
            yield Delete("v1", "Pod", *k, uid=uid(pod))

    def gone(k: Key, view: View, now: float) -> Steps:
        planned.discard(k)
        yield from ()

    def changed(old: Object, new: Object) -> bool:
        return bool((new.get("spec") or {}).get("resourceClaims")) and node_of(old) != node_of(new)

    def users(claim: Object, view: View) -> Iterable[Key]:
        return [key(p) for p in view.by("pods", "resourceclaim", f"{namespace(claim)}/{key(claim)[1]}")]

    def claim_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        claim = new or old
        return () if claim is None else users(claim, view)

    def slice_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        before, after = _no_execute(old), _no_execute(new)
        touched = {d for d in before.keys() | after.keys() if before.get(d) != after.get(d)}
        if not touched:
            return
        for claim in view.list(RESOURCE_CLAIMS):
            results = (((claim.get("status") or {}).get("allocation") or {}).get("devices") or {}).get("results") or ()
            if any((r.get("driver"), r.get("pool"), r.get("device")) in touched for r in results):
                yield from users(claim, view)

    return Controller("device-taint-eviction-controller", "pods", reconcile, reads=(RESOURCE_CLAIMS, SLICES), gone=gone, changed=changed, workers=8,
                      triggers=(Trigger(RESOURCE_CLAIMS, claim_changed), Trigger(SLICES, slice_changed)))
