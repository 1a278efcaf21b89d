"""Endpoints of Services with a selector: the old, single-object form of EndpointSlices, cut off at 1000 addresses.

Upstream: pkg/controller/endpoint/endpoints_controller.go, pkg/api/v1/endpoints/util.go.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from kubern.controllers.context import Context
from kubern.controllers.endpointslice import (
    GATHER_S,
    HEADLESS,
    find_port,
    headless,
    hostname_for,
    in_endpoints,
    pod_changed,
)
from kubern.controllers.pods import node_of, ready
from kubern.controllers.select import selected
from kubern.controllers.triggertime import TRIGGER_TIME, TriggerTimes
from kubern.controllers.wake import same_name
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Create, Delete, Emit, Failed, Update
from kubern.model.object import Key, Object, labels, meta, name, namespace, notes, uid
from kubern.model.selector import from_set
from kubern.model.view import View

MANAGED_BY = "endpoints.kubernetes.io/managed-by"
MANAGER = "endpoint-controller"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
LEADER = "control-plane.alpha.kubernetes.io/leader"
ADDRESSES_MAX = 1000

Subset = dict[str, Any]


def _address(pod: Object, service: Object) -> dict[str, Any] | None:
    status = pod.get("status") or {}
    families = service["spec"].get("ipFamilies") or []
    v6 = families[0] == "IPv6" if families else ":" in (service["spec"].get("clusterIP") or "")
    ips = [p.get("ip") for p in status.get("podIPs") or ()] or [status.get("podIP")]
    ip = next((i for i in ips if i and (":" in i) == v6), None)
    if ip is None:
        return None
    out: dict[str, Any] = {"ip": ip}
    if host := hostname_for(pod, service):
        out["hostname"] = host
    if n := node_of(pod):
        out["nodeName"] = n
    out["targetRef"] = {"kind": "Pod", "namespace": namespace(pod), "name": name(pod), "uid": uid(pod)}
    return out


def subsets_of(service: Object, pods: list[Object]) -> list[Subset]:
    """Addresses grouped by their ports, ports by their addresses."""
    spec = service["spec"]
    unready_too = bool(spec.get("publishNotReadyAddresses"))
    addresses: dict[tuple[str, str], dict[str, Any]] = {}
    by_port: dict[str, dict[tuple[str, str], bool]] = {}     # port as JSON ("" = none) -> address -> ready
    for pod in pods:
        if not in_endpoints(pod, unready_too):
            continue
        address = _address(pod, service)
        if address is None:
            continue
        k = (address["ip"], uid(pod))
        ports: list[str] = []
        if spec.get("ports"):
            for p in spec["ports"]:
                number = find_port(pod, p)
                if number is not None:
                    port = {"name": p.get("name"), "port": number, "protocol": p.get("protocol", "TCP"), "appProtocol": p.get("appProtocol")}
                    ports.append(json.dumps({f: v for f, v in port.items() if v}, sort_keys=True))
        elif headless(service):
            ports.append("")
        for port_text in ports:
            addresses.setdefault(k, address)
            found = by_port.setdefault(port_text, {})
            found[k] = found.get(k, True) and (unready_too or ready(pod))
    groups: dict[tuple[Any, ...], list[str]] = {}
    for port_text, found in by_port.items():
        groups.setdefault(tuple(sorted(found.items())), []).append(port_text)
    out: list[Subset] = []
    for members, texts in groups.items():
        subset: Subset = {"addresses": [addresses[k] for k, ok in members if ok], "notReadyAddresses": [addresses[k] for k, ok in members if not ok],
                          "ports": [json.loads(t) for t in sorted(texts) if t]}
        out.append({f: v for f, v in subset.items() if v})
    return sorted(out, key=lambda s: json.dumps(s.get("ports") or [], sort_keys=True))


def _truncate(subsets: list[Subset]) -> tuple[list[Subset], bool]:
    good, bad = (sum(len(s.get(f) or ()) for s in subsets) for f in ("addresses", "notReadyAddresses"))
    if good + bad <= ADDRESSES_MAX:
        return subsets, False
    field, total, room = ("addresses", good, ADDRESSES_MAX) if good > ADDRESSES_MAX else ("notReadyAddresses", bad, ADDRESSES_MAX - good)
    left, out = room, []
    for s in subsets:
        have = s.get(field) or []
        part = have[:min(left, math.ceil(len(have) / total * room))]
        left -= len(part)
        cut = {**s, field: part}
        if field == "addresses":
            cut.pop("notReadyAddresses", None)
        out.append({f: v for f, v in cut.items() if v})
    return out, True


def reconcile(service: Object, view: View, times: TriggerTimes) -> Steps:
    spec = service["spec"]
    if spec.get("type") == "ExternalName" or spec.get("selector") is None:
        return
    pods = selected(view, "pods", namespace(service), from_set(spec["selector"]))
    at = times.of(service, pods)
    subsets, truncated = _truncate(subsets_of(service, pods))
    current = view.get("endpoints", namespace(service), name(service))
    wanted = {k: v for k, v in labels(service).items() if k != HEADLESS}
    if headless(service):
        wanted[HEADLESS] = ""
    wanted[MANAGED_BY] = MANAGER
    have_notes = notes(current) if current is not None else {}
    if current is not None and (current.get("subsets") or []) == subsets and labels(current) == wanted and \
            (OVER_CAPACITY in have_notes) == truncated:
        return
    annotations_ = {k: v for k, v in have_notes.items() if k not in (OVER_CAPACITY, TRIGGER_TIME)}
    if at:
        annotations_[TRIGGER_TIME] = at
    if truncated:
        annotations_[OVER_CAPACITY] = "truncated"
    body: Object = {"apiVersion": "v1", "kind": "Endpoints", "subsets": subsets or None,
                    "metadata": {**(meta(current) if current is not None else {"name": name(service), "namespace": namespace(service)}),
                                 "labels": wanted, "annotations": annotations_}}
    if not annotations_:
        del body["metadata"]["annotations"]
    if subsets == []:
        del body["subsets"]
    result = yield Create(body) if current is None else Update(body)
    if isinstance(result, Failed) and not any(c.get("reason") == "NamespaceTerminating" for c in result.details.get("causes") or ()):
        if current is None:
            yield Emit(body, "Warning", "FailedToCreateEndpoint",
                       f"Failed to create endpoint for service {namespace(service)}/{name(service)}: {result.message}")
        else:
            yield Emit(body, "Warning", "FailedToUpdateEndpoint",
                       f"Failed to update endpoint {namespace(service)}/{name(service)}: {result.message}")


def gone(key: Key, view: View, now: float) -> Steps:
    current = view.get("endpoints", *key)
    if current is not None and LEADER not in notes(current):
        yield Delete("v1", "Endpoints", *key)


def _of_a_service(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Endpoints that somebody made without a Service are his: only those of Services are looked at."""
    return [k for k in same_name(old, new, view) if view.get("services", *k) is not None]


def controller(context: Context | None = None) -> Controller:
    times = TriggerTimes()

    def forget(k: Key, view: View, now: float) -> Steps:
        times.drop(k)
        yield from gone(k, view, now)

    return Controller("endpoint-controller", "services", lambda service, view, now: reconcile(service, view, times), reads=("pods",), gone=forget,
                      triggers=(Trigger("pods", pod_changed, after_s=GATHER_S), Trigger("endpoints", _of_a_service)))
