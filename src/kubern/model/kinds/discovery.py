"""discovery.k8s.io/v1: EndpointSlice. Upstream: pkg/apis/discovery/{v1/defaults.go,validation}, pkg/registry/discovery; KEP-752."""

from __future__ import annotations

from kubern.model import names
from kubern.model.addresses import ip_warnings, is_ipv6, validate_endpoint_ip, validate_ip, validate_legacy_ip
from kubern.model.invalid import duplicate, invalid, not_supported, required, too_many
from kubern.model.kinds.checks import Errors, immutable, listed, messages, same
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.object import Object

ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
PROTOCOLS = ("SCTP", "TCP", "UDP")
ADDRESSES_MAX, PORTS_MAX, ENDPOINTS_MAX, HINTS_MAX = 100, 20_000, 1000, 8
OWN_WRITERS = ("endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io")


def default_slice(obj: Object) -> None:
    for p in obj.get("ports") or ():
        if p.get("name") is None:
            p["name"] = ""
        if p.get("protocol") is None:
            p["protocol"] = "TCP"


def _drop_topology(new: Object, old: Object | None = None) -> None:
    """deprecatedTopology cannot be written through v1; an old node name in it is kept as nodeName."""
    if old is not None and same(old.get("endpoints"), new.get("endpoints")):
        return
    before = {(e.get("deprecatedTopology") or {}).get("kubernetes.io/hostname") for e in (old or {}).get("endpoints") or ()}
    for e in new.get("endpoints") or ():
        topology = e.pop("deprecatedTopology", None) or {}
        name = topology.get("kubernetes.io/hostname")
        if e.get("nodeName") is None and name is not None and name in before and not names.is_dns1123_subdomain(name):
            e["nodeName"] = name


def validate_slice(obj: Object, old: Object | None = None) -> Errors:
    type_ = obj.get("addressType") or ""
    if not type_:
        yield required("addressType")
    elif type_ not in ADDRESS_TYPES:
        yield not_supported("addressType", type_, ADDRESS_TYPES)
    yield from _ports(obj.get("ports") or [])
    if old is None or not same(obj.get("endpoints"), old.get("endpoints")):
        yield from _endpoints(obj.get("endpoints") or [], type_)
    if old is not None:
        yield from immutable(type_, old.get("addressType") or "", "addressType")


def _ports(ports: list[Object]) -> Errors:
    if len(ports) > PORTS_MAX:
        yield too_many("ports", len(ports), PORTS_MAX)
        return
    seen = set()
    for i, p in enumerate(ports):
        path = f"ports[{i}]"
        name, protocol, app = p.get("name") or "", p.get("protocol"), p.get("appProtocol")
        if name:
            yield from messages(name, names.is_dns1123_label(name), f"{path}.name")
        if name in seen:
            yield duplicate(f"{path}.name", name)
        seen.add(name)
        if protocol is None:
            yield required(f"{path}.protocol")
        elif protocol not in PROTOCOLS:
            yield not_supported(f"{path}.protocol", protocol, PROTOCOLS)
        if app is not None:
            yield from messages(app, names.is_qualified_name(app), f"{path}.appProtocol")


def _endpoints(endpoints: list[Object], type_: str) -> Errors:
    if len(endpoints) > ENDPOINTS_MAX:
        yield too_many("endpoints", len(endpoints), ENDPOINTS_MAX)
        return
    for i, e in enumerate(endpoints):
        path = f"endpoints[{i}]"
        addresses = e.get("addresses") or ()
        if not addresses:
            yield required(f"{path}.addresses", "must contain at least 1 address")
        elif len(addresses) > ADDRESSES_MAX:
            yield too_many(f"{path}.addresses", len(addresses), ADDRESSES_MAX)
        for j, address in enumerate(addresses):
            yield from _address(address, type_, f"{path}.addresses", j)
        node, host = e.get("nodeName"), e.get("hostname")
        if node is not None:
            yield from messages(node, names.is_dns1123_subdomain(node), f"{path}.nodeName")
        if host is not None:
            yield from messages(host, names.is_dns1123_label(host), f"{path}.hostname")
        if e.get("hints") is not None:
            yield from _hints(e["hints"], f"{path}.hints")


def _address(address: str, type_: str, path: str, j: int) -> Errors:
    here = f"{path}[{j}]"
    if type_ == "FQDN":
        yield from names.is_fully_qualified_domain_name(here, address)
    elif type_ in ("IPv4", "IPv6"):
        errors = validate_legacy_ip(here, address) if type_ == "IPv4" else validate_ip(here, address)
        if errors:
            yield from errors
            return
        if is_ipv6(address) != (type_ == "IPv6"):
            yield invalid(path, address, f"must be an {type_} address")
        yield from validate_endpoint_ip(here, address)


def _hints(hints: Object, path: str) -> Errors:
    for field, check in (("forZones", names.is_label_value), ("forNodes", names.is_dns1123_subdomain)):
        items = hints.get(field) or ()
        if len(items) > HINTS_MAX:
            yield too_many(f"{path}.{field}", len(items), HINTS_MAX)
            return
        seen = set()
        for i, item in enumerate(items):
            name = item.get("name") or ""
            if name in seen:
                yield duplicate(f"{path}.{field}[{i}].name", name)
            seen.add(name)
            yield from messages(name, check(name), f"{path}.{field}[{i}].name")


def _warnings(new: Object, old: Object | None) -> list[str]:
    out: list[str] = []
    if old is None and new.get("addressType") == "FQDN":
        out.append("spec.addressType: FQDN endpoints are deprecated")
    if (new["metadata"].get("labels") or {}).get("endpointslice.kubernetes.io/managed-by") in OWN_WRITERS:
        return out
    for i, e in enumerate(new.get("endpoints") or ()):
        for j, address in enumerate(e.get("addresses") or ()):
            out += ip_warnings(f"endpoints[{i}].addresses[{j}]", address)
    return out


def _changed(new: Object, old: Object) -> bool:
    return any(not same(new.get(f), old.get(f)) for f in ("addressType", "endpoints", "ports")) \
        or not same(new["metadata"].get("labels"), old["metadata"].get("labels"))


KINDS: KindTable = {
    ("discovery.k8s.io", "EndpointSlice"): Kind(
        meta_again=1, meta_update=0,
        defaults=default_slice, prepare_create=_drop_topology, prepare_update=_drop_topology,
        validate=listed(validate_slice), validate_update=listed(validate_slice), warnings=_warnings,
        has_generation=True, generation_changed=_changed),
}
