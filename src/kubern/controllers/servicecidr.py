"""ServiceCIDRs: ready when they are there, kept while addresses of theirs are in use.

Upstream: pkg/controller/servicecidrs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Patch, Requeue
from kubern.model.object import Key, Object, condition, deleting, labels, meta, name
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

CIDRS, ADDRESSES = "servicecidrs.networking.k8s.io", "ipaddresses.networking.k8s.io"
FINALIZER = "networking.k8s.io/service-cidr-finalizer"
MANAGER = "ipallocator.k8s.io"
GRACE_S = 10.0
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(cidr: Object) -> list[Network]:
    out: list[Network] = []
    for text in (cidr.get("spec") or {}).get("cidrs") or ():
        try:
            out.append(ipaddress.ip_network(text))
        except ValueError:
            continue
    return out


def _inside(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)          # type: ignore[arg-type]


def _removable(cidr: Object, view: View) -> bool:
    others = [n for c in view.list(CIDRS) if name(c) != name(cidr) for n in _networks(c)]
    mine = _networks(cidr)
    if all(any(_inside(n, o) for o in others) for n in mine):
        return True
    for a in view.list(ADDRESSES):
        if labels(a).get("ipaddress.kubernetes.io/managed-by") != MANAGER:
            continue
        try:
            ip = ipaddress.ip_address(name(a))
        except ValueError:
            continue
        if any(ip in n for n in mine) and not any(ip in o for o in others):
            return False
    return True


def _ready(cidr: Object, status: str, reason: str, message: str, now: float) -> Steps:
    old = condition(cidr, "Ready")
    if old is not None and old.get("status") == status and (old.get("reason") or "") == reason and old.get("message") == message:
        return
    c: dict[str, Any] = {"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": rfc3339(now)}
    body = {"apiVersion": cidr["apiVersion"], "kind": "ServiceCIDR", "metadata": {"name": name(cidr)}, "status": {"conditions": [c]}}
    yield Patch(cidr["apiVersion"], "ServiceCIDR", "", name(cidr), body, "apply", "status", "service-cidr-controller", True)


def reconcile(cidr: Object, view: View, now: float) -> Steps:
    held = FINALIZER in (meta(cidr).get("finalizers") or ())
    if not deleting(cidr):
        if not held:
            yield Patch(cidr["apiVersion"], "ServiceCIDR", "", name(cidr), {"metadata": {"finalizers": [FINALIZER]}}, "strategic", ignore_missing=True)
        yield from _ready(cidr, "True", "", "Kubernetes Service CIDR is ready", now)
        return
    if not _removable(cidr, view):
        yield from _ready(cidr, "False", "Terminating",
                          "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR", now)
        return
    left = seconds_of(meta(cidr).get("deletionTimestamp")) + GRACE_S - now
    if left > 0:
        yield Requeue(left)
    elif held:
        yield Patch(cidr["apiVersion"], "ServiceCIDR", "", name(cidr), {"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}, "strategic",
                    ignore_missing=True)


def _address_gone(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return [("", name(c)) for c in view.list(CIDRS) if deleting(c)] if new is None else ()


def _others(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return [("", name(c)) for c in view.list(CIDRS) if deleting(c)]


CONTROLLER = Controller("service-cidrs-controller", CIDRS, reconcile, component="service-cidr-controller",
                        triggers=(Trigger(ADDRESSES, _address_gone), Trigger(CIDRS, _others)))
