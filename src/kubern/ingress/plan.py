"""Plan: what a reverse proxy shall do, as data: which requests of which host and port go where, and how they change on the way.

Ingresses (routes.py) and Gateways (gateway.py) are turned into it, render.py makes nginx' configuration of it. Nothing here knows any of them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubern.model.object import Object, labels, namespace

SERVICE_LABEL = "kubernetes.io/service-name"
SERVERS_MAX = 200                                    # endpoints of a headless service that are listed
Slices = Mapping[str, list[Object]]                  # "namespace/service" -> slices
Pair = tuple[bytes, bytes]                           # certificate chain and key, PEM


@dataclass(frozen=True, slots=True)
class Backend:
    """`servers` host:port; none: nobody answers, and the client gets `error`."""

    id: str
    servers: tuple[str, ...] = ()
    weight: int = 1
    error: int = 503


@dataclass(frozen=True, slots=True)
class Condition:
    """A header or query parameter that must have a value; `regex`: match an expression."""

    name: str
    value: str
    regex: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """`kind` exact, prefix (by path elements; `path` without a slash at its end, "" for all) or regex."""

    path: str = ""
    kind: str = "prefix"
    method: str = ""
    headers: tuple[Condition, ...] = ()
    query: tuple[Condition, ...] = ()

    @property
    def plain(self) -> bool:
        """Decided by the path alone."""
        return self.kind != "regex" and not (self.method or self.headers or self.query)


@dataclass(frozen=True, slots=True)
class Headers:
    """Changes to headers, in this order: set, add, remove."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Address:
    """Parts of a URL that change; None stays. `prefix`: what of the path `path` replaces, None: all of it."""

    scheme: str | None = None
    host: str | None = None
    port: int | None = None
    path: str | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """Exactly one of: an answer with `code` alone, a `redirect` with that code, or a request to one of the `backends`."""

    code: int = 0
    redirect: Address | None = None
    backends: tuple[Backend, ...] = ()
    rewrite: Address | None = None
    request: Headers = Headers()
    response: Headers = Headers()
    mirrors: tuple[Backend, ...] = ()
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    match: Match
    action: Action


@dataclass(frozen=True, slots=True)
class Port:
    number: int
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A host on some ports, its routes in order of precedence. "" is every host that has no site; "*.x" is one label before x,
    "**.x" any number of them."""

    host: str
    routes: tuple[Route, ...]
    ports: tuple[Port, ...]
    certificate: str = ""                            # key into Plan.certificates, for ports with TLS


@dataclass(frozen=True, slots=True)
class Plan:
    sites: tuple[Site, ...] = ()
    ports: tuple[Port, ...] = ()                     # all there are: those without a site for every host answer 404, or no handshake
    certificates: Mapping[str, Pair] = field(default_factory=dict)
    complaints: tuple[tuple[str, str], ...] = ()     # (uid of an object, what is wrong with it)


# ---- what both make of Services and Secrets

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


def backend(key: str, wanted: Mapping[str, Any], services: Mapping[str, Object], slices: Slices) -> tuple[Backend, str]:
    """(the backend, what is wrong with it) of a port ({"number": …} or {"name": …}) of the Service "namespace/name".

    It is the Service's cluster address: the node's proxy picks an endpoint; of a headless Service the endpoints themselves."""
    id_ = f"{key.replace('/', '_')}_{wanted.get('number') or wanted.get('name')}"
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


def pair_of(secret: Object | None) -> Pair | None:
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
