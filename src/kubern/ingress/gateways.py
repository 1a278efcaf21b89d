"""The built-in Gateway controller: one decision over all Gateways of its classes and the HTTPRoutes. Every Gateway has a front (nginx) of its own.

It runs while the Gateway API's definitions are there (client/defined.py), ours (definitions.py) or the project's. `objects()` is the
class and the controller's rights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kubern.ingress import front, gateway, statuses
from kubern.ingress.controller import SLICES, is_slice, is_tls, rights
from kubern.ingress.front import NAMESPACE, SECRETS, SERVICES, SETS
from kubern.ingress.gateway import CONTROLLER as CONTROLLER_NAME
from kubern.ingress.plan import by_service
from kubern.ingress.references import GROUP, World
from kubern.model.controller import SINGLE, Controller, Keys, Steps, Trigger
from kubern.model.intent import Delete, Emit, Update
from kubern.model.object import Key, Object, deleting, labels, meta, name, namespace
from kubern.model.rows import CRDS
from kubern.model.time import rfc3339
from kubern.model.view import View

CLASSES, GATEWAYS, ROUTES, GRANTS = NEEDED = tuple(f"{plural}.{GROUP}" for plural in ("gatewayclasses", "gateways", "httproutes", "referencegrants"))
NAMESPACES = "namespaces"
NAME = "kubern-gateway"
GATEWAY_LABEL, SPACE_LABEL = f"{GROUP}/gateway-name", "kubern.dev/gateway-namespace"
NAME_MAX = 50
MADE = ((SERVICES, "v1", "Service"), (SETS, "apps/v1", "DaemonSet"), (SECRETS, "v1", "Secret"))
GATHER_S = 0.1


def objects() -> list[Object]:
    own = [{"apiGroups": [GROUP], "resources": ["gatewayclasses/status", "gateways/status", "httproutes/status"], "verbs": ["update"]},
           {"apiGroups": [GROUP], "resources": [n.partition(".")[0] for n in NEEDED], "verbs": ["get", "list", "watch"]}]
    default = {"apiVersion": f"{GROUP}/v1", "kind": "GatewayClass", "metadata": {"name": "kubern"}, "spec": {"controllerName": CONTROLLER_NAME}}
    return [default, *rights(NAME, own)]


def front_of(g: Object) -> front.Front:
    """The name tells namespace and Gateway; a long one is cut, and a hash tells it apart."""
    text = f"gateway-{namespace(g)}-{name(g)}"
    if len(text) > NAME_MAX or "." in text:
        text = f"{text[:NAME_MAX - 9].replace('.', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    spec = g.get("spec") or {}
    more = spec.get("infrastructure") or {}
    ports = {f"port-{x['port']}": x["port"] for x in spec.get("listeners") or () if x["protocol"] in gateway.PROTOCOLS}
    wanted = tuple(a["value"] for a in spec.get("addresses") or () if a.get("value"))
    labels_ = {**(more.get("labels") or {}), GATEWAY_LABEL: name(g)[:63], SPACE_LABEL: namespace(g)}
    return front.Front(text, ports, labels_, more.get("annotations") or {}, wanted)


def _reconcile(single: Object, view: View, now: float) -> Steps:
    stamp = rfc3339(now)
    classes = {name(c): c for c in view.list(CLASSES) if (c.get("spec") or {}).get("controllerName") == CONTROLLER_NAME}
    for c in classes.values():
        status = c.get("status") or {}
        said = statuses.conditions(statuses.class_conditions(c), status.get("conditions") or (), meta(c).get("generation") or 0, stamp)
        yield from _write(c, "GatewayClass", {**status, "conditions": said})
    mine = [g for g in view.list(GATEWAYS) if (g.get("spec") or {}).get("gatewayClassName") in classes and not deleting(g)]
    routes = [r for r in view.list(ROUTES) if not deleting(r)]
    secrets = {k: s for k in set(gateway.used_secrets(mine)) if (s := view.get(SECRETS, *k.split("/", 1))) is not None}
    spaces = {b.get("namespace") or namespace(r) for r in routes for b in _references(r)}
    world = World({name(n): n for n in view.list(NAMESPACES)}, {f"{n}/{name(s)}": s for n in spaces for s in view.list(SERVICES, n)},
                          by_service(x for n in spaces for x in view.list(SLICES, n)), secrets, list(view.list(GRANTS)))
    answer = gateway.decide(mine, routes, world)
    kept = set()
    for made in answer.gateways.values():
        f = front_of(made.gateway)
        addresses: list[dict[str, str]] = []
        if made.why_not is None:
            kept.add(f.name)
            want = front.secret(f, made.plan, view)
            if front.fits(want):
                yield from front.keep(view, f, want)
            else:
                yield Emit(made.gateway, "Warning", "Rejected", "the routes of the Gateway are too many for one configuration")
            addresses = front.reached_at(view, f)
        yield from _write(made.gateway, "Gateway", statuses.gateway_status(made, addresses, stamp))
    for r in routes:
        said_of = answer.routes.get(f"{namespace(r)}/{name(r)}", [])
        status = statuses.route_status(r, said_of, stamp)
        if status["parents"] or (r.get("status") or {}).get("parents"):
            yield from _write(r, "HTTPRoute", status)
    for resource, version, kind in MADE:
        for old in view.list(resource, NAMESPACE):
            if SPACE_LABEL in labels(old) and GATEWAY_LABEL in labels(old) and name(old) not in kept and not deleting(old):
                yield Delete(version, kind, NAMESPACE, name(old))


def _references(route: Object) -> Iterable[dict[str, str]]:
    for rule in (route.get("spec") or {}).get("rules") or ():
        yield from rule.get("backendRefs") or ()
        yield from (f["requestMirror"]["backendRef"] for f in rule.get("filters") or () if f.get("requestMirror"))


def _write(obj: Object, kind: str, status: object) -> Steps:
    if obj.get("status") != status:
        yield Update({**obj, "apiVersion": f"{GROUP}/v1", "kind": kind, "status": status}, "status")


# ---- what wakes it

def _changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Not when only its own status changed."""
    same = old is not None and new is not None and all(old.get(k) == new.get(k) for k in ("spec",)) and \
        meta(old).get("generation") == meta(new).get("generation") and deleting(old) == deleting(new) and meta(old).get("labels") == meta(new).get("labels")
    return () if same else (SINGLE,)


def _worth(test: object) -> Keys:
    """Once there is a Gateway: objects that `test` finds worth it, and those of the fronts."""
    def keys(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        obj = new or old
        assert obj is not None and callable(test)
        own = namespace(obj) == NAMESPACE and SPACE_LABEL in labels(obj)
        return (SINGLE,) if own or (test(old, new) and next(iter(view.list(GATEWAYS)), None) is not None) else ()
    return keys


def _spec(old: Object | None, new: Object | None) -> bool:
    return old is None or new is None or old.get("spec") != new.get("spec")


def _labels(old: Object | None, new: Object | None) -> bool:
    return old is None or new is None or labels(old) != labels(new)


CONTROLLER = Controller(
    NAME, "", _reconcile, component=NAME, reads=(*NEEDED, CRDS, NAMESPACES, SERVICES, SLICES, SECRETS, SETS), workers=1,
    backoff_first_s=0.5, backoff_last_s=60.0,
    triggers=(*(Trigger(n, _changed, GATHER_S) for n in NEEDED), Trigger(SERVICES, _worth(_spec), GATHER_S), Trigger(SLICES, _worth(is_slice), GATHER_S),
              Trigger(SECRETS, _worth(is_tls), GATHER_S), Trigger(NAMESPACES, _worth(_labels), GATHER_S),
              Trigger(SETS, _worth(lambda old, new: False), GATHER_S)))
