"""Routes: Ingresses, Services, EndpointSlices and Secrets to a Plan: which host and path goes where. Pure, and of no particular proxy.

The rules of the Ingress API: exact hosts before wildcards (one label), Exact before Prefix, longer before shorter, the older Ingress where two
claim the same; what matches no path of a host goes to that Ingress' default backend, what matches no host to the oldest default backend.
A backend is its Service's cluster IP (the node's proxy picks an endpoint), for headless Services the endpoints themselves; one without a ready
endpoint answers 503. Source: Kubernetes Ingress; gateway-api conformance of ingress-controller-conformance.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubern.model.object import Object, deleting, labels, meta, name, namespace, notes, uid

CONTROLLER = "kubern.dev/ingress"
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
SSL_REDIRECT = "kubern.dev/ssl-redirect"
SERVICE_LABEL = "kubernetes.io/service-name"
SERVERS_MAX = 200                                    # endpoints of a headless service that are listed
SAFE_PATH = re.compile(r"/[A-Za-z0-9/_.~%!@&'()*+,:=\[\]|^-]*")          # nothing that ends nginx' quotes or begins something in them
Slices = Mapping[str, list[Object]]                  # "namespace/service" -> slices


@dataclass(frozen=True, slots=True)
class Backend:
    """`servers` host:port; none: nobody is ready."""

    id: str
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Location:
    path: str                                        # without a slash at its end, "" for all
    exact: bool
    backend: Backend | None                          # None: 404


@dataclass(frozen=True, slots=True)
class Site:
    """A host. "" is every host that has no site; "*.x" is one label before x."""

    host: str
    locations: tuple[Location, ...]
    certificate: str = ""                            # key into Plan.certificates
    redirect: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    sites: tuple[Site, ...] = ()
    certificates: Mapping[str, tuple[bytes, bytes]] = field(default_factory=dict)          # name -> (chain, key), PEM
    complaints: tuple[tuple[str, str], ...] = ()     # (uid of an Ingress, what is wrong with it)


def ours(ingress: Object, classes: Mapping[str, Object]) -> bool:
    """Whether an Ingress is for this controller: by the class it names, or by the old annotation."""
    if deleting(ingress):
        return False
    wanted = (ingress.get("spec") or {}).get("ingressClassName") or notes(ingress).get(CLASS_ANNOTATION) or ""
    c = classes.get(wanted)
    return c is not None and (c.get("spec") or {}).get("controller") == CONTROLLER


def by_service(slices: Iterable[Object]) -> dict[str, list[Object]]:
    out: dict[str, list[Object]] = {}
    for s in slices:
        out.setdefault(f"{namespace(s)}/{labels(s).get(SERVICE_LABEL) or ''}", []).append(s)
    return out


def _ready(slices: Iterable[Object], port: Mapping[str, Any]) -> list[str]:
    """host:port of the endpoints of a service's port."""
    out = []
    for s in slices:
        number = next((p.get("port") for p in s.get("ports") or () if (p.get("name") or "") == (port.get("name") or "")), None)
        if not number or s.get("addressType") == "FQDN":
            continue
        for e in s.get("endpoints") or ():
            if (e.get("conditions") or {}).get("ready") is not False:
                out += [f"[{a}]:{number}" if ":" in a else f"{a}:{number}" for a in e.get("addresses") or ()[:1]]
    return sorted(set(out))


def backend(spec: Mapping[str, Any], space: str, services: Mapping[str, Object], slices: Slices) -> tuple[Backend, str]:
    """(the backend, what is wrong with it) of an IngressBackend."""
    ref = spec.get("service")
    if not ref:
        return Backend(f"{space}-none"), "backends other than services are not supported"
    wanted = ref.get("port") or {}
    key = f"{space}/{ref['name']}"
    id_ = f"{space}_{ref['name']}_{wanted.get('number') or wanted.get('name')}"
    service = services.get(key)
    if service is None:
        return Backend(id_), f"service {key} not found"
    s = service.get("spec") or {}
    port = next((p for p in s.get("ports") or () if (wanted.get("number") and p.get("port") == wanted["number"])
                 or (wanted.get("name") and p.get("name") == wanted["name"])), None)
    if s.get("type") == "ExternalName":                        # would let a namespace send outside traffic anywhere, and a name that does not
        return Backend(id_), f"service {key} is an ExternalName"     # resolve would make nginx refuse everything
    if port is None:
        return Backend(id_), f"service {key} has no port {wanted.get('number') or wanted.get('name')}"
    if (port.get("protocol") or "TCP") != "TCP":
        return Backend(id_), f"port {port['port']} of service {key} is not TCP"
    ready = _ready(slices.get(key, ()), port)
    address = s.get("clusterIP") or "None"
    if not ready or address == "None":
        return Backend(id_, tuple(ready[:SERVERS_MAX])), ""
    return Backend(id_, (f"[{address}]:{port['port']}" if ":" in address else f"{address}:{port['port']}",)), ""


def pair_of(secret: Object | None) -> tuple[bytes, bytes] | None:
    """(chain, key) of a TLS Secret, None if it is none."""
    data = (secret or {}).get("data") or {}
    try:
        chain, key = (base64.b64decode(data.get(k) or "") for k in ("tls.crt", "tls.key"))
    except ValueError:
        return None
    return (chain, key) if b"-----BEGIN CERTIFICATE-----" in chain and b"PRIVATE KEY-----" in key and _fit(chain, key) else None


def _fit(chain: bytes, key: bytes) -> bool:
    """Whether they belong together: nginx refuses the whole configuration otherwise."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return (x509.load_pem_x509_certificates(chain)[0].public_key().public_bytes(*form)
                == load_pem_private_key(key, None).public_key().public_bytes(*form))
    except (ValueError, TypeError, IndexError):
        return False


def covers(pattern: str, host: str) -> bool:
    """Whether a host of spec.tls is meant for this host of a rule."""
    return pattern == host or (pattern.startswith("*.") and host.partition(".")[2] == pattern[2:])


@dataclass(slots=True)
class _Making:
    """A site while Ingresses add to it."""

    paths: dict[tuple[str, bool], Backend | None] = field(default_factory=dict)
    rest: Backend | None = None
    certificate: str = ""
    redirect: bool = False


def plan(ingresses: Iterable[Object], services: Mapping[str, Object], slices: Slices, secrets: Mapping[str, Object]) -> Plan:
    """Everything, from the Ingresses that are ours (any order). `services` and `secrets` by "namespace/name"."""
    made: dict[str, _Making] = {}
    certificates: dict[str, tuple[bytes, bytes]] = {}
    complaints: list[tuple[str, str]] = []
    ordered = sorted(ingresses, key=lambda i: (meta(i).get("creationTimestamp") or "", namespace(i), name(i)))
    for ingress in ordered:
        spec, space = ingress.get("spec") or {}, namespace(ingress)

        def complain(text: str, whose: str = uid(ingress)) -> None:
            if text and (whose, text) not in complaints:
                complaints.append((whose, text))
        fallback = None
        if spec.get("defaultBackend"):
            fallback, why = backend(spec["defaultBackend"], space, services, slices)
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
                to, why = backend(p.get("backend") or {}, space, services, slices)
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
    return Plan(tuple(_site(host, m, m.rest or last) for host, m in sorted(made.items())), certificates, tuple(complaints))


def _site(host: str, m: _Making, rest: Backend | None) -> Site:
    rows = [Location(path, exact, to) for (path, exact), to in m.paths.items()]
    if ("", False) not in m.paths:
        rows.append(Location("", False, rest))
    rows.sort(key=lambda x: (-len(x.path), not x.exact, x.path))
    return Site(host, tuple(rows), m.certificate, m.redirect and bool(m.certificate))
