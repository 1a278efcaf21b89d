"""HTTPRoutes: their rules as a plan's Routes: matches, filters, backends. Pure.

Source: Gateway API v1, HTTPRoute: core, and of what is extended redirects and rewrites of path, host, port, scheme, response headers, mirrors, method
and query matches, timeouts. What cannot be done is a NotImplementedError inside of here, and the refusal of the whole route outside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from kubern.ingress.plan import Action, Address, Backend, Condition, Headers, Match, Route, backend
from kubern.ingress.references import World
from kubern.model.object import Object, namespace

HEADER = re.compile(r"[A-Za-z0-9-]+")                          # names nginx has variables for
DURATION_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


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
