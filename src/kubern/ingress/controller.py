"""The built-in Ingress controller: one decision over all Ingresses of its classes. It keeps the front (nginx) and the Ingresses' statuses.
Nothing of it exists before the first Ingress.

Only Ingresses are looked at that name an IngressClass with controller kubern.dev/ingress; `objects()` is the default class and the
controller's rights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.ingress import front, routes
from kubern.ingress.front import NAMESPACE, SECRETS, SERVICES, SETS
from kubern.ingress.plan import SERVICE_LABEL, Plan, by_service
from kubern.model.controller import SINGLE, Controller, Keys, Steps, Trigger
from kubern.model.intent import Emit, Update
from kubern.model.object import Key, Object, labels, meta, name, namespace, uid
from kubern.model.view import View

INGRESSES, CLASSES = "ingresses.networking.k8s.io", "ingressclasses.networking.k8s.io"
SLICES = "endpointslices.discovery.k8s.io"
NAME = "kubern-ingress"
TLS = "kubernetes.io/tls"
GATHER_S = 0.1
FRONT = front.Front(NAME, {"http": routes.HTTP.number, "https": routes.HTTPS.number})


def objects() -> list[Object]:
    """The default IngressClass, and what the controller may do."""
    default = {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {
        "name": "kubern", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}, "spec": {"controller": routes.CONTROLLER}}
    return [default, *rights(NAME, [{"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["update"]}])]


def rights(name_: str, own: list[dict[str, Any]]) -> list[Object]:
    """A controller's roles: `own` in all namespaces, events, and keeping fronts."""
    rbac = "rbac.authorization.k8s.io"
    rules = [*own, {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]}]
    writes = ["create", "update", "delete"]
    fronts = [{"apiGroups": [""], "resources": ["secrets", "services"], "verbs": writes},
              {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": writes}]
    subject = [{"kind": "ServiceAccount", "name": name_, "namespace": NAMESPACE}]

    def role(kind: str, rules_: list[dict[str, Any]], **where: str) -> list[Object]:
        return [{"apiVersion": f"{rbac}/v1", "kind": kind, "metadata": {"name": name_, **where}, "rules": rules_},
                {"apiVersion": f"{rbac}/v1", "kind": f"{kind}Binding", "metadata": {"name": name_, **where}, "subjects": subject,
                 "roleRef": {"apiGroup": rbac, "kind": kind, "name": name_}}]
    return [*role("ClusterRole", rules), *role("Role", fronts, namespace=NAMESPACE)]


def plan_of(view: View, mine: list[Object]) -> Plan:
    wanted = {f"{namespace(i)}/{t.get('secretName')}" for i in mine for t in (i.get("spec") or {}).get("tls") or ()}
    secrets = {k: s for k in wanted if (s := view.get(SECRETS, *k.split("/", 1))) is not None}
    spaces = {namespace(i) for i in mine}
    services = {f"{n}/{name(s)}": s for n in spaces for s in view.list(SERVICES, n)}
    return routes.plan(mine, services, by_service(x for n in spaces for x in view.list(SLICES, n)), secrets)


def _reconcile(single: Object, view: View, now: float) -> Steps:
    classes = {name(c): c for c in view.list(CLASSES)}
    mine = [i for i in view.list(INGRESSES) if routes.ours(i, classes)]
    if not mine and view.get(SECRETS, NAMESPACE, NAME) is None:
        return
    plan = plan_of(view, mine)
    want = front.secret(FRONT, plan, view)
    if not front.fits(want):
        for i in mine:
            yield Emit(i, "Warning", "Rejected", "the Ingresses of the cluster are too many for one configuration")
        return
    changed = yield from front.keep(view, FRONT, want)
    if changed:
        for i in mine:
            yield Emit(i, "Normal", "Sync", "Scheduled for sync")
    by_uid = {uid(i): i for i in mine}
    for whose, text in plan.complaints:
        yield Emit(by_uid[whose], "Warning", "Rejected", text)
    where = front.reached_at(view, FRONT)
    for i in mine:
        status = i.get("status") or {}
        if where and ((status.get("loadBalancer") or {}).get("ingress") or []) != where:
            yield Update({**i, "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "status": {**status, "loadBalancer": {"ingress": where}}}, "status")


# ---- what wakes it

def _always(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return (SINGLE,)


def _ingress(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Not when only its status changed."""
    same = old is not None and new is not None and old.get("spec") == new.get("spec") and meta(old).get("annotations") == meta(new).get("annotations") \
        and meta(old).get("deletionTimestamp") == meta(new).get("deletionTimestamp")
    return () if same else (SINGLE,)


def _where_ingresses_are(own: bool, worth: Any) -> Keys:
    """Objects of namespaces that have Ingresses; `own`: those of the controller itself too."""
    def keys(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        if own and namespace(obj) == NAMESPACE and name(obj) == NAME:
            return (SINGLE,)
        if not worth(old, new) or next(iter(view.list(INGRESSES, namespace(obj))), None) is None:
            return ()
        return (SINGLE,)
    return keys


def is_tls(old: Object | None, new: Object | None) -> bool:
    return any(s is not None and s.get("type") in (TLS, "Opaque") and "tls.crt" in (s.get("data") or {}) for s in (old, new))


def is_slice(old: Object | None, new: Object | None) -> bool:
    """A service's own addresses come to matter only when there are none, or when it is headless: looked at together, seldom written."""
    return any(s is not None and SERVICE_LABEL in labels(s) for s in (old, new))


def _any(old: Object | None, new: Object | None) -> bool:
    return True


CONTROLLER = Controller(
    NAME, "", _reconcile, component=NAME, reads=(INGRESSES, CLASSES, SERVICES, SLICES, SECRETS, SETS), workers=1, backoff_first_s=0.5, backoff_last_s=60.0,
    triggers=(Trigger(INGRESSES, _ingress, GATHER_S), Trigger(CLASSES, _always, GATHER_S), Trigger(SERVICES, _where_ingresses_are(True, _any), GATHER_S),
              Trigger(SLICES, _where_ingresses_are(False, is_slice), GATHER_S), Trigger(SECRETS, _where_ingresses_are(True, is_tls), GATHER_S),
              Trigger(SETS, _where_ingresses_are(True, lambda old, new: False), GATHER_S)))
