"""Endpoints and Event of the core group.

Events written through events.k8s.io have stricter rules: kinds/events.py. Upstream: pkg/registry/core/{endpoint,event}/strategy.go,
pkg/apis/core/validation (validateEndpointSubsets, events.go).
"""

from __future__ import annotations

from collections.abc import Iterator

from kubern.model import names
from kubern.model.addresses import ip_warnings, validate_endpoint_ip, validate_legacy_ip
from kubern.model.invalid import FieldError, invalid, not_supported, required
from kubern.model.kinds.containers import PROTOCOLS
from kubern.model.kinds.equal import semantic_equal
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import messages
from kubern.model.object import Object, labels, namespace

Errors = Iterator[FieldError]


# Endpoints ---------------------------------------------------------------------------------------------------------------------

def default_endpoints(obj: Object) -> None:
    for subset in obj.get("subsets") or ():
        for p in subset.get("ports") or ():
            if not p.get("protocol"):
                p["protocol"] = "TCP"


def _subsets(obj: Object) -> Errors:
    for i, s in enumerate(obj.get("subsets") or ()):
        path = f"subsets[{i}]"
        if not s.get("addresses") and not s.get("notReadyAddresses"):
            yield required(path, "must specify `addresses` or `notReadyAddresses`")
        for field in ("addresses", "notReadyAddresses"):
            for j, a in enumerate(s.get(field) or ()):
                yield from _address(a, f"{path}.{field}[{j}]")
        ports = s.get("ports") or []
        for j, p in enumerate(ports):
            yield from _port(p, len(ports) > 1, f"{path}.ports[{j}]")


def _address(a: Object, path: str) -> Errors:
    ip = a.get("ip", "")
    yield from validate_legacy_ip(f"{path}.ip", ip)
    if a.get("hostname"):
        yield from messages(f"{path}.hostname", a["hostname"], names.is_dns1123_label(a["hostname"]))
    if (node := a.get("nodeName")) is not None:
        yield from messages(f"{path}.nodeName", node, names.is_dns1123_subdomain(node))
    yield from validate_endpoint_ip(f"{path}.ip", ip)


def _port(p: Object, name_needed: bool, path: str) -> Errors:
    name, number, protocol = p.get("name", ""), p.get("port", 0), p.get("protocol", "")
    if name:
        yield from messages(f"{path}.name", name, names.is_dns1123_label(name))
    elif name_needed:
        yield required(f"{path}.name")
    yield from messages(f"{path}.port", number, names.is_port_number(number))
    if not protocol:
        yield required(f"{path}.protocol")
    elif protocol not in PROTOCOLS:
        yield not_supported(f"{path}.protocol", protocol, PROTOCOLS)
    if (app := p.get("appProtocol")) is not None:
        yield from messages(f"{path}.appProtocol", app, names.is_qualified_name(app))


def validate_endpoints_update(new: Object, old: Object) -> list[FieldError]:
    return [] if semantic_equal(new.get("subsets"), old.get("subsets")) else list(_subsets(new))


def endpoints_warnings(obj: Object, old: Object | None) -> list[str]:
    if labels(obj).get("endpoints.kubernetes.io/managed-by") == "endpoint-controller":
        return []
    return [t for i, s in enumerate(obj.get("subsets") or ()) for field in ("addresses", "notReadyAddresses")
            for j, a in enumerate(s.get(field) or ()) for t in ip_warnings(f"subsets[{i}].{field}[{j}].ip", a.get("ip", ""))]


# Event -------------------------------------------------------------------------------------------------------------------------

SHORT_MAX, NOTE_MAX = 128, 1024


def event_errors(event: Object, reporter: str = "reportingComponent") -> Errors:
    """A stored event (core shape); `reporter` is the field's name in the API it came through."""
    ns, about = namespace(event), (event.get("involvedObject") or {}).get("namespace", "")
    if not event.get("eventTime"):
        if ns != about if about else ns not in ("", "default"):
            yield invalid("involvedObject.namespace", about, "does not match event.namespace")
    else:
        if not about and ns not in ("default", "kube-system"):
            yield invalid("involvedObject.namespace", about, "does not match event.namespace")
        component = event.get("reportingComponent", "")
        if not component:
            yield required(reporter)
        yield from messages(reporter, component, names.is_qualified_name(component))
        for field, needed, most in (("reportingInstance", True, SHORT_MAX), ("action", True, SHORT_MAX), ("reason", True, SHORT_MAX),
                                    ("message", False, NOTE_MAX)):
            text = event.get(field, "")
            if needed and not text:
                yield required(field)
            if names.size(text) > most:
                yield invalid(field, "", f"can have at most {most} characters")
    yield from messages("namespace", ns, names.is_dns1123_subdomain(ns))


KINDS: KindTable = {
    ("", "Endpoints"): Kind(meta_again=1, defaults=default_endpoints, validate=lambda obj: list(_subsets(obj)), validate_update=validate_endpoints_update,
                            warnings=endpoints_warnings, create_on_update=True),
    ("", "Event"): Kind(qualified_finalizers=False, meta_update=0,
        validate=lambda obj: list(event_errors(obj)), validate_update=lambda new, old: list(event_errors(new)),
                        name_check=names.name_is_path_segment, create_on_update=True),
}
