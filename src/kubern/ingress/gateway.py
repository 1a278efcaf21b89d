"""Gateway: Gateways and HTTPRoutes to a Plan each: listeners, their certificates, which routes they take, whom a request belongs to. Pure.

Sources: Gateway API v1, GEP-1762 (in-cluster gateways), listener isolation. Routes' rules are httproutes.py, what is said of all of it statuses.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubern.ingress.httproutes import rules_of
from kubern.ingress.plan import Match, Pair, Plan, Port, Route, Site, pair_of
from kubern.ingress.references import GROUP, World
from kubern.ingress.render import OWN_PORTS
from kubern.model.object import Object, labels, meta, name, namespace
from kubern.model.selector import from_label_selector

CONTROLLER = "kubern.dev/gateway"
PROTOCOLS = {"HTTP": False, "HTTPS": True}                     # whether there is TLS
Ask = tuple[str, str, str, str]                                # (type, status, reason, message) of a condition


@dataclass(slots=True)
class Listener:
    spec: Mapping[str, Any]
    port: Port
    host: str
    kinds: list[dict[str, str]]
    conditions: dict[str, Ask]
    certificate: str = ""
    pair: Pair | None = None
    attached: int = 0

    @property
    def accepted(self) -> bool:
        return self.conditions["Accepted"][1] == "True"

    @property
    def programmed(self) -> bool:
        return self.accepted and not (self.port.tls and self.pair is None)


@dataclass(slots=True)
class Made:
    """A Gateway as it is to be: its plan, and its status but for addresses."""

    gateway: Object
    listeners: list[Listener]
    plan: Plan
    why_not: tuple[str, str] | None = None                     # (reason, message): it is not accepted


@dataclass(slots=True)
class Answer:
    """All Gateways by "namespace/name", and what is said of each route for each of its parents that is ours."""

    gateways: dict[str, Made] = field(default_factory=dict)
    routes: dict[str, list[tuple[dict[str, Any], list[Ask]]]] = field(default_factory=dict)


def decide(gateways: Iterable[Object], routes: Iterable[Object], world: World) -> Answer:
    """Everything, from the Gateways of our classes and all HTTPRoutes."""
    answer = Answer()
    for g in gateways:
        found = listeners(g, world)
        answer.gateways[f"{namespace(g)}/{name(g)}"] = Made(g, found, Plan(), refusal(g, found))
    sites: dict[str, dict[tuple[Port, str], list[tuple[Any, Route]]]] = {k: _empty_sites(m) for k, m in answer.gateways.items()}
    for route in sorted(routes, key=_age):
        rules, problems, refused = rules_of(route, world)
        resolved: Ask = ("ResolvedRefs", "False", *problems[0]) if problems else ("ResolvedRefs", "True", "ResolvedRefs", "all references are resolved")
        for parent in (route.get("spec") or {}).get("parentRefs") or ():
            key = f"{parent.get('namespace') or namespace(route)}/{parent['name']}"
            made = answer.gateways.get(key)
            if made is None or (parent.get("group", GROUP), parent.get("kind", "Gateway")) != (GROUP, "Gateway"):
                continue
            matched, why = attach(route, parent, made, world)
            if refused:
                matched, why = [], ("UnsupportedValue", refused)
            for listener, hosts in matched:
                listener.attached += 1
                for host in hosts:
                    if _best(made.listeners, listener.port, host) is listener:
                        sites[key].setdefault((listener.port, host), []).extend((_precedence(route, i, r), r) for i, r in enumerate(rules))
            accepted: Ask = ("Accepted", "False", *why) if why else ("Accepted", "True", "Accepted", "the route is accepted")
            answer.routes.setdefault(f"{namespace(route)}/{name(route)}", []).append((parent, [accepted, resolved]))
    for key, made in answer.gateways.items():
        made.plan = _plan(made, sites[key])
    return answer


def _age(obj: Object) -> tuple[str, str, str]:
    return meta(obj).get("creationTimestamp") or "", namespace(obj), name(obj)


def _empty_sites(made: Made) -> dict[tuple[Port, str], list[tuple[Any, Route]]]:
    """Every listener answers for its host, if only with 404."""
    return {(x.port, x.host): [] for x in made.listeners if x.programmed}


def _plan(made: Made, sites: Mapping[tuple[Port, str], list[tuple[Any, Route]]]) -> Plan:
    out: list[Site] = []
    for (port, host), rows in sorted(sites.items(), key=lambda x: (x[0][0].number, x[0][1])):
        listener = _best(made.listeners, port, host)
        if listener is None or not listener.programmed:
            continue
        first: dict[Match, Route] = {}                         # what asks for the same is never reached a second time
        for _, route in sorted(rows, key=lambda x: x[0]):
            first.setdefault(route.match, route)
        pattern = f"*{host}" if host.startswith("*.") else host
        out.append(Site(pattern, tuple(first.values()), (port,), listener.certificate))
    used = [x for x in made.listeners if x.programmed]
    return Plan(tuple(out), tuple(dict.fromkeys(x.port for x in used)), {x.certificate: x.pair for x in used if x.pair})


# ---- Gateways and their listeners

def refusal(gateway: Object, found: list[Listener]) -> tuple[str, str] | None:
    """(reason, message) why a Gateway as a whole is not accepted."""
    spec = gateway.get("spec") or {}
    if (spec.get("infrastructure") or {}).get("parametersRef"):
        return "InvalidParameters", "spec.infrastructure.parametersRef is not supported"
    odd = [a for a in spec.get("addresses") or () if a.get("type", "IPAddress") != "IPAddress"]
    if odd:
        return "UnsupportedAddress", f"addresses of type {odd[0].get('type')} are not supported"
    if not any(x.accepted for x in found):
        return "ListenersNotValid", "none of the listeners is valid"
    return None


def listeners(gateway: Object, world: World) -> list[Listener]:
    found = [_listener(x, gateway, world) for x in (gateway.get("spec") or {}).get("listeners") or ()]
    for x in found:
        if not x.accepted:
            continue
        beside = [o for o in found if o is not x and o.port.number == x.port.number and o.conditions["Accepted"][2] not in ("UnsupportedProtocol",)]
        if any(o.port.tls != x.port.tls for o in beside):
            x.conditions["Conflicted"] = ("Conflicted", "True", "ProtocolConflict", f"listeners of different protocols share port {x.port.number}")
        elif any(o.host == x.host for o in beside):
            x.conditions["Conflicted"] = ("Conflicted", "True", "HostnameConflict", f"listeners on port {x.port.number} share a hostname")
    for x in found:
        if x.conditions["Conflicted"][1] == "True":
            x.conditions["Accepted"] = ("Accepted", "False", *x.conditions["Conflicted"][2:])
        x.conditions["Programmed"] = ("Programmed", "True", "Programmed", "the listener is programmed") if x.programmed else \
            ("Programmed", "False", "Invalid", "the listener is not valid")
    return found


def _listener(spec: Mapping[str, Any], gateway: Object, world: World) -> Listener:
    protocol, number = spec["protocol"], spec["port"]
    allowed = (spec.get("allowedRoutes") or {}).get("kinds")
    wanted = [{"group": k.get("group", GROUP), "kind": k["kind"]} for k in allowed or ({"kind": "HTTPRoute"},)]
    kinds = [k for k in wanted if k == {"group": GROUP, "kind": "HTTPRoute"}]
    x = Listener(spec, Port(number, PROTOCOLS.get(protocol, False)), (spec.get("hostname") or "").lower(), kinds, {
        "Accepted": ("Accepted", "True", "Accepted", "the listener is accepted"),
        "Conflicted": ("Conflicted", "False", "NoConflicts", "there are no conflicts"),
        "ResolvedRefs": ("ResolvedRefs", "True", "ResolvedRefs", "all references are resolved")})
    if protocol not in PROTOCOLS:
        x.kinds = []
        x.conditions["Accepted"] = ("Accepted", "False", "UnsupportedProtocol", f"protocol {protocol} is not supported")
    elif number in OWN_PORTS:
        x.conditions["Accepted"] = ("Accepted", "False", "PortUnavailable", f"port {number} is the proxy's own")
    if len(kinds) < len(wanted):
        x.conditions["ResolvedRefs"] = ("ResolvedRefs", "False", "InvalidRouteKinds", "of the kinds of routes only HTTPRoute is supported")
    if x.port.tls:
        problem = _certificate(x, gateway, world)
        if problem:
            x.conditions["ResolvedRefs"] = ("ResolvedRefs", "False", *problem)
    return x


def _certificate(x: Listener, gateway: Object, world: World) -> tuple[str, str] | None:
    """Takes the first certificate that can be used; (reason, message) if one cannot."""
    problem: tuple[str, str] | None = None
    refs = (x.spec.get("tls") or {}).get("certificateRefs") or ()
    for ref in refs:
        space = ref.get("namespace") or namespace(gateway)
        key = f"{space}/{ref['name']}"
        if (ref.get("group") or "", ref.get("kind", "Secret")) != ("", "Secret"):
            problem = problem or ("InvalidCertificateRef", f"certificates of kind {ref.get('kind')} are not supported")
        elif not world.granted("Gateway", namespace(gateway), "Secret", space, ref["name"]):
            problem = problem or ("RefNotPermitted", f"no ReferenceGrant of namespace {space} lets this Gateway use secret {key}")
        elif (pair := pair_of(world.secrets.get(key))) is None:
            problem = problem or ("InvalidCertificateRef", f"secret {key} holds no usable certificate and key")
        elif x.pair is None:
            x.pair, x.certificate = pair, key.replace("/", "_")
    return problem or (None if refs else ("InvalidCertificateRef", "no certificate is named"))


# ---- which listeners a route is attached to

def attach(route: Object, parent: Mapping[str, Any], made: Made, world: World) -> tuple[list[tuple[Listener, list[str]]], tuple[str, str] | None]:
    """(the listeners, each with the hosts it serves for the route; why there are none)."""
    named = [x for x in made.listeners if parent.get("sectionName") in (None, "", x.spec["name"]) and parent.get("port") in (None, x.port.number)]
    if not named:
        return [], ("NoMatchingParent", "no listener has that name and port")
    allowed = [x for x in named if x.kinds and _space_allowed(x, route, made.gateway, world)]
    if not allowed:
        return [], ("NotAllowedByListeners", "no listener allows routes of this kind and namespace")
    hosts = [h.lower() for h in (route.get("spec") or {}).get("hostnames") or ()]
    found = [(x, both) for x in allowed if x.accepted and (both := intersection(x.host, hosts))]
    if not found:
        return [], ("NoMatchingListenerHostname", "no listener has a hostname in common with the route")
    return found, None


def _space_allowed(x: Listener, route: Object, gateway: Object, world: World) -> bool:
    spaces = (x.spec.get("allowedRoutes") or {}).get("namespaces") or {}
    match spaces.get("from", "Same"):
        case "All":
            return True
        case "Selector":
            space = world.namespaces.get(namespace(route))
            return space is not None and bool(spaces.get("selector")) and from_label_selector(spaces["selector"]).matches(labels(space))
    return namespace(route) == namespace(gateway)


def contains(pattern: str, host: str) -> bool:
    """Whether every name of `host` (a name, or a wildcard for any number of labels) is one of `pattern`; "" has all."""
    if pattern in ("", host):
        return True
    return pattern.startswith("*.") and host.removeprefix("*").endswith(pattern[1:]) and host != pattern[2:]


def intersection(listener: str, hosts: Iterable[str]) -> list[str]:
    hosts = list(hosts) or [""]
    return list(dict.fromkeys(h if contains(listener, h) else listener for h in hosts if contains(listener, h) or contains(h, listener)))


def _best(every: Iterable[Listener], port: Port, host: str) -> Listener | None:
    """The listener that requests for this host belong to: of those that cover it, the most specific."""
    fits = [x for x in every if x.accepted and x.port == port and contains(x.host, host)]
    return max(fits, key=lambda x: (not x.host.startswith("*") and bool(x.host), len(x.host)), default=None)


def _precedence(route: Object, i: int, r: Route) -> tuple[Any, ...]:
    """The order in which routes of a host are asked: exact paths, longer ones, with a method, more headers, more parameters, older, by name."""
    m = r.match
    return m.kind != "exact", -len(m.path), not m.method, -len(m.headers), -len(m.query), *_age(route), i


def used_secrets(gateways: Iterable[Object]) -> Iterator[str]:
    """"namespace/name" of every Secret a listener names."""
    for g in gateways:
        for x in (g.get("spec") or {}).get("listeners") or ():
            for ref in (x.get("tls") or {}).get("certificateRefs") or ():
                yield f"{ref.get('namespace') or namespace(g)}/{ref['name']}"
