"""Statuses: what is said of GatewayClasses, Gateways and HTTPRoutes (GEP-1364, conditions). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubern.ingress.gateway import CONTROLLER, Ask, Made
from kubern.model.object import Object, meta


def conditions(asked: Iterable[Ask], old: Iterable[Mapping[str, Any]], generation: int, now: str) -> list[dict[str, Any]]:
    """As metav1.Condition: the time of transition is kept while the status is the same."""
    before = {c.get("type"): c for c in old}
    out = []
    for type_, status, reason, message in asked:
        was = before.get(type_) or {}
        since = was.get("lastTransitionTime") if was.get("status") == status else None
        out.append({"type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": generation,
                    "lastTransitionTime": since or now})
    return out


def class_conditions(gateway_class: Object) -> list[Ask]:
    if (gateway_class.get("spec") or {}).get("parametersRef"):
        return [("Accepted", "False", "InvalidParameters", "spec.parametersRef is not supported")]
    return [("Accepted", "True", "Accepted", "the class is served by kubern")]


def gateway_status(made: Made, addresses: list[dict[str, str]], now: str) -> dict[str, Any]:
    """Its whole status."""
    g = made.gateway
    old, generation = g.get("status") or {}, meta(g).get("generation") or 0
    shown = [{"type": "IPAddress" if "ip" in a else "Hostname", "value": a.get("ip") or a["hostname"]} for a in addresses]
    if made.why_not:
        asked: list[Ask] = [("Accepted", "False", *made.why_not), ("Programmed", "False", "Invalid", "the Gateway is not accepted")]
    else:
        whole = all(x.accepted for x in made.listeners)
        asked = [("Accepted", "True", "Accepted" if whole else "ListenersNotValid", "the Gateway is accepted" if whole else "not all listeners are valid")]
        asked += [("Programmed", "True", "Programmed", "the Gateway is programmed") if shown else
                  ("Programmed", "False", "AddressNotAssigned", "no address is assigned yet")]
    before = {x.get("name"): x for x in old.get("listeners") or ()}
    rows = []
    for x in made.listeners:
        was = before.get(x.spec["name"]) or {}
        rows.append({"name": x.spec["name"], "supportedKinds": x.kinds, "attachedRoutes": x.attached,
                     "conditions": conditions(x.conditions.values(), was.get("conditions") or (), generation, now)})
    return {**({"addresses": shown} if shown else {}), "conditions": conditions(asked, old.get("conditions") or (), generation, now), "listeners": rows}


def route_status(route: Object, said: Iterable[tuple[dict[str, Any], list[Ask]]], now: str) -> dict[str, Any]:
    """Its whole status: what other controllers say of their parents stays."""
    parents = (route.get("status") or {}).get("parents") or []
    old = {_key(p["parentRef"]): p for p in parents if p.get("controllerName") == CONTROLLER}
    mine = [{"parentRef": parent, "controllerName": CONTROLLER,
             "conditions": conditions(asked, (old.get(_key(parent)) or {}).get("conditions") or (), meta(route).get("generation") or 0, now)}
            for parent, asked in said]
    return {"parents": [*(p for p in parents if p.get("controllerName") != CONTROLLER), *mine]}


def _key(parent: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(parent.items()))
