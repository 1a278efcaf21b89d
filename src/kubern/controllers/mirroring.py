"""EndpointSlices for Endpoints that people write themselves, for Services without a selector. Upstream: pkg/controller/endpointslicemirroring."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from kubern.controllers.claim import controller_ref
from kubern.controllers.endpoints import LEADER
from kubern.controllers.endpointslice import MANAGED_BY, SERVICE_NAME
from kubern.controllers.triggertime import TRIGGER_TIME
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Create, Delete, Emit, Update
from kubern.model.object import Key, Object, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.view import View

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
SUBSET_MAX = 1000
SLICES = "endpointslices.discovery.k8s.io"


def _mirrors(endpoints: Object) -> bool:
    return labels(endpoints).get(SKIP) != "true" and LEADER not in notes(endpoints)


def _mine(k: Key, view: View) -> list[Object]:
    found = view.by(SLICES, f"nslabel:{SERVICE_NAME}", f"{k[0]}/{k[1]}")
    return [s for s in found if labels(s).get(MANAGED_BY) == MANAGER and not deleting(s)]


def _port_key(ports: list[dict[str, Any]] | None) -> str:
    return json.dumps(sorted(json.dumps(p, sort_keys=True) for p in ports or ()))


def _endpoint(address: dict[str, Any], is_ready: bool) -> tuple[str, dict[str, Any]] | None:
    try:
        ip = ipaddress.ip_address(address.get("ip") or "")
    except ValueError:
        return None
    e: dict[str, Any] = {"addresses": [str(ip)], "conditions": {"ready": is_ready}}
    for source, target in (("targetRef", "targetRef"), ("nodeName", "nodeName"), ("hostname", "hostname")):
        if address.get(source):
            e[target] = address[source]
    return ("IPv6" if ip.version == 6 else "IPv4"), e


def _wanted(endpoints: Object) -> tuple[dict[tuple[str, str], tuple[list[dict[str, Any]], list[dict[str, Any]]]], int, int]:
    """((family, ports) -> (ports, endpoints), invalid addresses, addresses left out)."""
    out: dict[tuple[str, str], tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    invalid = skipped = 0
    for subset in endpoints.get("subsets") or ():
        ports: list[dict[str, Any]] = []
        for p in subset.get("ports") or ():
            port = {"name": p.get("name") or "", "port": p.get("port"), "protocol": p.get("protocol", "TCP")}
            if p.get("appProtocol") is not None:
                port["appProtocol"] = p["appProtocol"]
            ports.append(port)
        added = 0
        addresses = [(a, True) for a in subset.get("addresses") or ()] + [(a, False) for a in subset.get("notReadyAddresses") or ()]
        for a, is_ready in addresses:
            if added >= SUBSET_MAX:
                break
            found = _endpoint(a, is_ready)
            if found is None:
                invalid += 1
                continue
            family, e = found
            group = out.setdefault((family, _port_key(ports)), (ports, []))[1]
            if e not in group:
                group.append(e)
            added += 1
        skipped += len(addresses) - added
    return out, invalid, skipped


def _same(s: Object, wanted: list[dict[str, Any]]) -> bool:
    def order(e: dict[str, Any]) -> str:
        return json.dumps(e, sort_keys=True)
    return sorted(map(order, s.get("endpoints") or ())) == sorted(map(order, wanted))


def reconcile(endpoints: Object, view: View, now: float) -> Steps:
    k = key(endpoints)
    service = view.get("services", *k)
    existing = _mine(k, view)
    if not _mirrors(endpoints) or service is None or service["spec"].get("selector") is not None:
        yield from _clear(existing)
        return
    wanted, invalid, skipped = _wanted(endpoints)
    if invalid:
        yield Emit(endpoints, "Warning", "InvalidIPAddress", f"Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices")
    if skipped > invalid:
        yield Emit(endpoints, "Warning", "TooManyAddressesToMirror",
                   f"A max of {SUBSET_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped")
    slice_labels = {**labels(endpoints), SERVICE_NAME: k[1], MANAGED_BY: MANAGER}
    slice_notes = {n: v for n, v in notes(endpoints).items() if n not in (TRIGGER_TIME, LAST_APPLIED)}
    by_key: dict[tuple[str, str], list[Object]] = {}
    for s in existing:
        by_key.setdefault((s.get("addressType") or "", _port_key(s.get("ports"))), []).append(s)
    create: list[Object] = []
    update: list[Object] = []
    delete: list[Object] = [s for group, found in by_key.items() if group not in wanted for s in found]
    for group, (ports, found) in wanted.items():
        have = by_key.get(group, [])
        delete += have[1:]
        m: dict[str, Any] = {"namespace": k[0], "labels": slice_labels, "ownerReferences": [controller_ref(endpoints)]}
        if slice_notes:
            m["annotations"] = slice_notes
        body: Object = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": group[0], "endpoints": found[:SUBSET_MAX],
                        "ports": ports or None}
        if not have:
            create.append({**body, "metadata": {**m, "generateName": f"{k[1]}-"}})
            continue
        owner_right = all(r.get("uid") == uid(endpoints) for r in meta(have[0]).get("ownerReferences") or () if r.get("kind") == "Endpoints")
        if not (_same(have[0], found) and labels(have[0]) == slice_labels and notes(have[0]) == slice_notes and owner_right):
            update.append({**body, "metadata": {**meta(have[0]), **m}})
    while create and any(s.get("addressType") == create[-1]["addressType"] for s in delete):
        fresh = create.pop()
        old = next(s for s in delete if s.get("addressType") == fresh["addressType"])
        delete.remove(old)
        m = {n: v for n, v in fresh["metadata"].items() if n != "generateName"}
        update.append({**fresh, "metadata": {**meta(old), **m}})
    intents: list[Any] = [] if deleting(endpoints) else [Create(s) for s in create]
    intents += [Update(s) for s in update]
    if intents:
        yield intents
    yield from _clear(delete)


def _clear(slices: Iterable[Object]) -> Steps:
    intents = [Delete("discovery.k8s.io/v1", "EndpointSlice", namespace(s), name(s)) for s in slices]
    if intents:
        yield intents


def gone(k: Key, view: View, now: float) -> Steps:
    yield from _clear(_mine(k, view))


def _service_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    if old is not None and new is not None and (old["spec"].get("selector") is None) == (new["spec"].get("selector") is None):
        return ()
    service = new or old
    assert service is not None
    return [key(service)] if (old is not None and new is not None) or service["spec"].get("selector") is None else ()


def _slice_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return {(namespace(s), labels(s)[SERVICE_NAME]) for s in (old, new)
            if s is not None and labels(s).get(MANAGED_BY) == MANAGER and labels(s).get(SERVICE_NAME)}


def _changed(old: Object, new: Object) -> bool:
    return _mirrors(old) or _mirrors(new)


CONTROLLER = Controller("endpointslicemirroring-controller", "endpoints", reconcile, reads=("services",), gone=gone, changed=_changed,
                        component="endpoint-slice-mirroring-controller",
                        triggers=(Trigger("services", _service_changed), Trigger(SLICES, _slice_changed)))
