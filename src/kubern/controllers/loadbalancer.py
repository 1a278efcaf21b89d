"""Services of type LoadBalancer: an address from the pool, and a finalizer as long as it is held.

Announcing the address is not done here: the composition root routes it to a node (kubelet/vips.py), the nodes' proxies do the rest. Services
with a loadBalancerClass belong to somebody else, unless it is ours.
Upstream: cloud-provider/controllers/service/controller.go (order, events, what counts as a change).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.controllers.context import Context
from kubern.model import pool
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Emit, Failed, Patch
from kubern.model.object import Key, Object, condition, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.view import View

SERVICES, NODES = "services", "nodes"
FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
CLASS = "kubern.dev/load-balancer"
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
_WATCHED = ("type", "ports", "loadBalancerIP", "loadBalancerSourceRanges", "loadBalancerClass", "externalIPs", "externalTrafficPolicy",
            "healthCheckNodePort", "sessionAffinity", "sessionAffinityConfig", "ipFamilies", "ipFamilyPolicy")


def wants(service: Object) -> bool:
    spec = service.get("spec") or {}
    return spec.get("type") == "LoadBalancer" and spec.get("loadBalancerClass") in (None, "", CLASS)


def _held(service: Object) -> list[str]:
    return [i["ip"] for i in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or () if i.get("ip")]


def _finalizers(service: Object) -> list[str]:
    return meta(service).get("finalizers") or []


def usable(node: Object) -> bool:
    """Whether outside traffic may be sent to this node."""
    return not deleting(node) and EXCLUDED not in labels(node) and (condition(node, "Ready") or {}).get("status") == "True"


def choose(service: Object, others: Iterable[Object], addresses: pool.Pool) -> list[str]:
    """The addresses of a service, one of each of its families. Raises LookupError. Of a service that only prefers two families one will do."""
    taken = {ip for s in others if uid(s) != uid(service) for ip in _held(s)}
    families = service["spec"].get("ipFamilies") or ["IPv4"]
    out: list[str] = []
    failure: LookupError | None = None
    for family in families:
        try:
            out.append(_choose(service, taken, addresses, 6 if family == "IPv6" else 4))
        except LookupError as e:
            failure = failure or e
    if failure and (not out or service["spec"].get("ipFamilyPolicy") != "PreferDualStack"):
        raise failure
    return out


def _choose(service: Object, taken: set[str], addresses: pool.Pool, version: int) -> str:
    """The one it asks for, the one it has, or the lowest that is free."""
    wanted = service["spec"].get("loadBalancerIP") or ""
    if wanted and (":" in wanted) == (version == 6):
        if not addresses.has(wanted):
            raise LookupError(f"the address {wanted} is not in the pool {addresses.text}")
        if wanted in taken:
            raise LookupError(f"the address {wanted} is held by another service")
        return wanted
    for ip in _held(service):
        if (":" in ip) == (version == 6) and addresses.has(ip) and ip not in taken:
            return ip
    free = addresses.free(taken, version)
    if free is None:
        raise LookupError(f"no address of the pool {addresses.text} is free")
    return free


def _patch(service: Object, patch: dict[str, Any]) -> Patch:
    return Patch("v1", "Service", namespace(service), name(service), {"metadata": {"uid": uid(service), **patch.pop("metadata", {})}, **patch},
                 "strategic", "status", ignore_missing=True)


def _release(service: Object) -> Steps:
    if FINALIZER not in _finalizers(service):
        return
    yield Emit(service, "Normal", "DeletingLoadBalancer", "Deleting load balancer")
    if _held(service) and not deleting(service):
        answer = yield _patch(service, {"status": {"loadBalancer": {"ingress": None}}})
        if isinstance(answer, Failed):
            return
    answer = yield _patch(service, {"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}})
    if not isinstance(answer, Failed):
        yield Emit(service, "Normal", "DeletedLoadBalancer", "Deleted load balancer")


def controller(context: Context) -> Controller:
    addresses = pool.parse(context.load_balancer_pool)

    def reconcile(service: Object, view: View, now: float) -> Steps:
        if deleting(service) or not wants(service):
            yield from _release(service)
            return
        if not addresses:
            return
        yield Emit(service, "Normal", "EnsuringLoadBalancer", "Ensuring load balancer")
        if FINALIZER not in _finalizers(service):
            answer = yield _patch(service, {"metadata": {"finalizers": [FINALIZER]}})
            if isinstance(answer, Failed) or answer is None:
                return
        if not any(usable(n) for n in view.list(NODES)):
            yield Emit(service, "Warning", "UnAvailableLoadBalancer", "There are no available nodes for LoadBalancer")
        try:
            ips = choose(service, view.list(SERVICES), addresses)
        except LookupError as e:
            why = f"Error syncing load balancer: failed to ensure load balancer: {e.args[0]}"
            yield Emit(service, "Warning", "SyncLoadBalancerFailed", why)
            yield Again(why)
            return
        ingress = [{"ip": ip, "ipMode": "VIP"} for ip in ips]
        if ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") != ingress:
            answer = yield _patch(service, {"status": {"loadBalancer": {"ingress": ingress}}})
            if isinstance(answer, Failed):
                return
        yield Emit(service, "Normal", "EnsuredLoadBalancer", "Ensured load balancer")

    def freed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        """An address became free: those that wait for one."""
        if old is None or not _held(old) or (new is not None and _held(new) == _held(old)):
            return ()
        return [key(s) for s in view.list(SERVICES) if wants(s) and not _held(s)]

    # one worker: two services that choose at the same time would choose the same
    return Controller("service-controller", SERVICES, reconcile, reads=(NODES,), changed=_changed, workers=1, triggers=(Trigger(SERVICES, freed),),
                      backoff_first_s=5.0, backoff_last_s=300.0)


def _changed(old: Object, new: Object) -> bool:
    a, b = old.get("spec") or {}, new.get("spec") or {}
    if not wants(old) and not wants(new) and not deleting(new):
        return False
    return deleting(old) != deleting(new) or any(a.get(f) != b.get(f) for f in _WATCHED) or notes(old) != notes(new) or uid(old) != uid(new)
