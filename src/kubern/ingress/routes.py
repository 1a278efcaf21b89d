"""Routes: Ingresses, Services, EndpointSlices and Secrets to a Plan. Pure.

The rules of the Ingress API: exact hosts before wildcards (one label), Exact before Prefix, longer before shorter, the older Ingress where two
claim the same; what matches no path of a host goes to that Ingress' default backend, what matches no host to the oldest default backend.
A backend without a ready endpoint answers 503. Source: Kubernetes Ingress; ingress-controller-conformance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubern.ingress.plan import Action, Address, Backend, Match, Pair, Plan, Port, Route, Site, Slices, backend, pair_of
from kubern.model.object import Object, deleting, meta, name, namespace, notes, uid

CONTROLLER = "kubern.dev/ingress"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
SSL_REDIRECT = "kubern.dev/ssl-redirect"
HTTP, HTTPS = Port(80), Port(443, tls=True)
SAFE_PATH = re.compile(r"/[A-Za-z0-9/_.~%!@&'()*+,:=\[\]|^-]*")          # nothing that ends nginx' quotes or begins something in them
TO_HTTPS = Route(Match(), Action(308, redirect=Address(scheme="https")))


def ours(ingress: Object, classes: Mapping[str, Object]) -> bool:
    """Whether an Ingress is for this controller: by the class it names, or by the old annotation."""
    if deleting(ingress):
        return False
    wanted = (ingress.get("spec") or {}).get("ingressClassName") or notes(ingress).get(CLASS_ANNOTATION) or ""
    c = classes.get(wanted)
    return c is not None and (c.get("spec") or {}).get("controller") == CONTROLLER


def backend_of(spec: Mapping[str, Any], space: str, services: Mapping[str, Object], slices: Slices) -> tuple[Backend, str]:
    """(the backend, what is wrong with it) of an IngressBackend."""
    ref = spec.get("service")
    if not ref:
        return Backend(f"{space}-none"), "backends other than services are not supported"
    return backend(f"{space}/{ref['name']}", ref.get("port") or {}, services, slices)


def covers(pattern: str, host: str) -> bool:
    """Whether a host of spec.tls is meant for this host of a rule."""
    return pattern == host or (pattern.startswith("*.") and host.partition(".")[2] == pattern[2:])


@dataclass(slots=True)
class _Making:
    """A site while Ingresses add to it."""

    paths: dict[tuple[str, bool], Backend] = field(default_factory=dict)
    rest: Backend | None = None
    certificate: str = ""
    redirect: bool = False


def plan(ingresses: Iterable[Object], services: Mapping[str, Object], slices: Slices, secrets: Mapping[str, Object]) -> Plan:
    """Everything, from the Ingresses that are ours (any order). `services` and `secrets` by "namespace/name"."""
    made: dict[str, _Making] = {}
    certificates: dict[str, Pair] = {}
    complaints: list[tuple[str, str]] = []
    ordered = sorted(ingresses, key=lambda i: (meta(i).get("creationTimestamp") or "", namespace(i), name(i)))
    for ingress in ordered:
        spec, space = ingress.get("spec") or {}, namespace(ingress)

        def complain(text: str, whose: str = uid(ingress)) -> None:
            if text and (whose, text) not in complaints:
                complaints.append((whose, text))
        fallback = None
        if spec.get("defaultBackend"):
            fallback, why = backend_of(spec["defaultBackend"], space, services, slices)
            complain(why)
            every = made.setdefault("", _Making())
            every.rest = every.rest or fallback
        for rule in spec.get("rules") or ():
            site = made.setdefault((rule.get("host") or "").lower(), _Making())
            for p in (rule.get("http") or {}).get("paths") or ():
                text = p.get("path") or "/"
                if not SAFE_PATH.fullmatch(text):
                    complain(f"path {text!r} holds characters that cannot be routed")
                    continue
                to, why = backend_of(p.get("backend") or {}, space, services, slices)
                complain(why)
                exact = p.get("pathType") == "Exact"
                site.paths.setdefault((text if exact else text.rstrip("/"), exact), to)
            if fallback is not None or not (rule.get("http") or {}).get("paths"):
                site.rest = site.rest or fallback
            if notes(ingress).get(SSL_REDIRECT) == "true":
                site.redirect = True
        for tls in spec.get("tls") or ():
            key = f"{space}/{tls.get('secretName') or ''}"
            pair = pair_of(secrets.get(key))
            if pair is None:
                complain(f"secret {key} holds no usable certificate and key")
                continue
            file = f"{space}_{tls['secretName']}"
            for host, site in made.items():
                mine = any((r.get("host") or "").lower() == host for r in spec.get("rules") or ()) or (not spec.get("rules") and host == "")
                if mine and not site.certificate and (not tls.get("hosts") or any(covers(h.lower(), host) for h in tls["hosts"])):
                    site.certificate, certificates[file] = file, pair
    last = made[""].rest if "" in made else None                # for hosts whose Ingresses have no default backend of their own
    sites = [s for host, m in sorted(made.items()) for s in _sites(host, m, m.rest or last)]
    return Plan(tuple(sites), (HTTP, HTTPS), certificates, tuple(complaints))


def _sites(host: str, m: _Making, rest: Backend | None) -> list[Site]:
    """One, or two where HTTP only leads to HTTPS."""
    rows = [Route(Match(path, "exact" if exact else "prefix"), Action(backends=(to,))) for (path, exact), to in m.paths.items()]
    if ("", False) not in m.paths:
        rows.append(Route(Match(), Action(404) if rest is None else Action(backends=(rest,))))
    rows.sort(key=lambda r: (-len(r.match.path), r.match.kind != "exact", r.match.path))
    if not m.certificate:
        return [Site(host, tuple(rows), (HTTP,))]
    if m.redirect:
        return [Site(host, (TO_HTTPS,), (HTTP,)), Site(host, tuple(rows), (HTTPS,), m.certificate)]
    return [Site(host, tuple(rows), (HTTP, HTTPS), m.certificate)]
