"""Gateway: Gateways and HTTPRoutes to a Plan each, and what their statuses say. Pure.

Sources: Gateway API v1 (HTTPRoute, core; of what is extended: redirects and rewrites of path, host, port, scheme, response headers, mirrors,
method and query matches, timeouts, listener isolation), GEP-1364 (conditions), GEP-709 (ReferenceGrant), GEP-1762 (in-cluster gateways).
Refused with a condition: parameters of any kind, filters of backends, ExtensionRef and CORS filters, shares of mirrored requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from kubern.ingress.plan import Action, Address, Backend, Condition, Headers, Match, Pair, Plan, Port, Route, Site, Slices, backend, pair_of
from kubern.ingress.render import OWN_PORTS
from kubern.model.object import Object, labels, meta, name, namespace
from kubern.model.selector import from_label_selector

GROUP = "gateway.networking.k8s.io"
CONTROLLER = "kubern.dev/gateway"
PROTOCOLS = {"HTTP": False, "HTTPS": True}                     # whether there is TLS
HEADER = re.compile(r"[A-Za-z0-9-]+")                          # names nginx has variables for
DURATION_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
Ask = tuple[str, str, str, str]                                # (type, status, reason, message) of a condition


@dataclass(frozen=True, slots=True)
class World:
    """What references lead to; Services, Secrets by "namespace/name"."""

    namespaces: Mapping[str, Object]
    services: Mapping[str, Object]
    slices: Slices
    secrets: Mapping[str, Object]
    grants: Iterable[Object] = ()

    def granted(self, kind: str, space: str, to_kind: str, to_space: str, to_name: str) -> bool:
        """Whether objects of that kind and namespace may refer to this Service or Secret of another namespace."""
        return space == to_space or any(
            namespace(g) == to_space
            and any((f.get("group"), f.get("kind"), f.get("namespace")) == (GROUP, kind, space) for f in g["spec"].get("from") or ())
            and any((t.get("group") or "", t.get("kind")) == ("", to_kind) and t.get("name") in (None, "", to_name) for t in g["spec"].get("to") or ())
            for g in self.grants)


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


# ---- rules

def rules_of(route: Object, world: World) -> tuple[list[Route], list[tuple[str, str]], str]:
    """(its routes in order, (reason, message) of references that lead nowhere, what of it cannot be done at all)."""
    out: list[Route] = []
    problems: list[tuple[str, str]] = []
    anything: list[dict[str, Any]] = [{}]
    for rule in (route.get("spec") or {}).get("rules") or anything:
        for m in rule.get("matches") or anything:
            try:
                match = _match(m)
                out.append(Route(match, _action(rule, match, route, world, problems)))
            except NotImplementedError as e:
                return [], problems, str(e)
    return out, problems, ""


def _match(m: Mapping[str, Any]) -> Match:
    path = m.get("path") or {}
    kind, value = path.get("type", "PathPrefix"), path.get("value", "/")
    if kind == "RegularExpression":
        return Match(_expression(value), "regex", m.get("method") or "", _conditions(m, "headers"), _conditions(m, "queryParams"))
    value = unquote(value)
    return Match(value if kind == "Exact" else value.rstrip("/"), "exact" if kind == "Exact" else "prefix", m.get("method") or "",
                 _conditions(m, "headers"), _conditions(m, "queryParams"))


def _conditions(m: Mapping[str, Any], where: str) -> tuple[Condition, ...]:
    """Of several for one name the first counts."""
    out: dict[str, Condition] = {}
    for c in m.get(where) or ():
        if where == "headers" and not HEADER.fullmatch(c["name"]):
            raise NotImplementedError(f"header {c['name']} cannot be matched")
        regex = c.get("type", "Exact") == "RegularExpression"
        key = c["name"].lower() if where == "headers" else c["name"]
        out.setdefault(key, Condition(c["name"], _expression(c["value"]) if regex else c["value"], regex))
    return tuple(out.values())


def _expression(text: str) -> str:
    """It matches the whole value, so that anchors at its ends say nothing."""
    import re2

    try:
        re2.compile(text)
    except re2.error:
        raise NotImplementedError(f"{text} is no regular expression") from None
    if "\n" in text or "(?" in text.replace("(?:", ""):
        raise NotImplementedError(f"the regular expression {text} uses what the proxy does not know")
    return text.removeprefix("^")[:-1] if text.endswith("$") and not text.endswith("\\$") else text.removeprefix("^")


def _action(rule: Mapping[str, Any], match: Match, route: Object, world: World, problems: list[tuple[str, str]]) -> Action:
    done = Action()
    for f in rule.get("filters") or ():
        match f["type"]:
            case "RequestHeaderModifier":
                done = replace(done, request=_headers(f["requestHeaderModifier"]))
            case "ResponseHeaderModifier":
                done = replace(done, response=_headers(f["responseHeaderModifier"]))
            case "RequestRedirect":
                r = f["requestRedirect"]
                to = Address(r.get("scheme"), r.get("hostname"), r.get("port"), *_path(r, match))
                done = replace(done, code=r.get("statusCode", 302), redirect=to)
            case "URLRewrite":
                r = f["urlRewrite"]
                done = replace(done, rewrite=Address(None, r.get("hostname"), None, *_path(r, match)))
            case "RequestMirror":
                r = f["requestMirror"]
                if r.get("percent") not in (None, 100) or r.get("fraction"):
                    raise NotImplementedError("shares of mirrored requests are not supported")
                done = replace(done, mirrors=(*done.mirrors, _backend(r["backendRef"], route, world, problems)))
            case other:
                raise NotImplementedError(f"filters of type {other} are not supported")
    if any(b.get("filters") for b in rule.get("backendRefs") or ()):
        raise NotImplementedError("filters of backends are not supported")
    backends = tuple(_backend(b, route, world, problems) for b in rule.get("backendRefs") or ())
    limits = [ms for k in ("request", "backendRequest") if (ms := _milliseconds((rule.get("timeouts") or {}).get(k) or ""))]
    return replace(done, backends=backends, timeout_ms=min(limits, default=0))


def _headers(h: Mapping[str, Any]) -> Headers:
    names = [x["name"] for k in ("set", "add") for x in h.get(k) or ()] + list(h.get("remove") or ())
    if odd := [n for n in names if not HEADER.fullmatch(n)]:
        raise NotImplementedError(f"header {odd[0]} cannot be changed")

    def pairs(k: str) -> tuple[tuple[str, str], ...]:
        return tuple((x["name"], x["value"]) for x in h.get(k) or ())
    return Headers(pairs("set"), pairs("add"), tuple(h.get("remove") or ()))


def _path(r: Mapping[str, Any], match: Match) -> tuple[str | None, str | None]:
    """(new path, the prefix it replaces)."""
    path = r.get("path")
    if not path:
        return None, None
    if path["type"] == "ReplaceFullPath":
        return path.get("replaceFullPath") or "/", None
    return path.get("replacePrefixMatch") or "/", match.path


def _milliseconds(text: str) -> int:
    return sum(int(n) * DURATION_MS[unit] for n, unit in re.findall(r"(\d+)(ms|h|m|s)", text))


def _backend(ref: Mapping[str, Any], route: Object, world: World, problems: list[tuple[str, str]]) -> Backend:
    """One that is wrong answers its share of requests with 500."""
    space = ref.get("namespace") or namespace(route)
    key = f"{space}/{ref['name']}"
    weight = ref.get("weight", 1)
    problem: tuple[str, str] | None = None
    found = Backend(f"{key.replace('/', '_')}_{ref.get('port')}")
    if (ref.get("group") or "", ref.get("kind", "Service")) != ("", "Service"):
        problem = "InvalidKind", f"backends of kind {ref.get('kind')} are not supported"
    elif not world.granted("HTTPRoute", namespace(route), "Service", space, ref["name"]):
        problem = "RefNotPermitted", f"no ReferenceGrant of namespace {space} lets this route use service {key}"
    else:
        found, why = backend(key, {"number": ref.get("port")}, world.services, world.slices)
        if why:
            problem = "BackendNotFound", why
        elif _speaks_h2c(world.services.get(key), ref.get("port")):
            problem = "UnsupportedProtocol", f"service {key} speaks HTTP/2 without TLS"
    if problem:
        problems.append(problem)
        return replace(found, servers=(), weight=weight, error=500)
    return replace(found, weight=weight)


def _speaks_h2c(service: Object | None, port: Any) -> bool:
    return any(p.get("port") == port and p.get("appProtocol") == "kubernetes.io/h2c" for p in ((service or {}).get("spec") or {}).get("ports") or ())


# ---- statuses

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


def used_secrets(gateways: Iterable[Object]) -> Iterator[str]:
    """"namespace/name" of every Secret a listener names."""
    for g in gateways:
        for x in (g.get("spec") or {}).get("listeners") or ():
            for ref in (x.get("tls") or {}).get("certificateRefs") or ():
                yield f"{ref.get('namespace') or namespace(g)}/{ref['name']}"
