"""networking.k8s.io/v1: Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR.

Upstream: pkg/apis/networking/{v1/defaults.go,validation}, pkg/registry/networking; KEP-1880 (IPAddress, ServiceCIDR).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubern.model import names
from kubern.model.addresses import cidr_warnings, parse_cidr, parse_ip, validate_cidr, validate_ip, validate_legacy_cidr, validate_legacy_ip
from kubern.model.invalid import forbidden, invalid, not_supported, required, too_long
from kubern.model.kinds.checks import (
    IMMUTABLE,
    Errors,
    form,
    immutable,
    keep_spec,
    keep_spec_and_metadata,
    keep_status,
    listed,
    messages,
    path_segment,
    zero_status,
)
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import selector_is_valid, validate_label_selector
from kubern.model.object import Object

INGRESS_CLASS_ANNOTATION = "kubernetes.io/ingress.class"
CONTROLLER_MAX = 250
PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")
PROTOCOLS = ("TCP", "UDP", "SCTP")
_BAD_SEQUENCES = ("//", "/./", "/../", "%2f", "%2F")
_BAD_SUFFIXES = ("/..", "/.")


# --- Ingress ----------------------------------------------------------------------------------------------------------------------------

def validate_ingress(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    rules, backend = spec.get("rules") or [], spec.get("defaultBackend")
    if not rules and backend is None:
        yield invalid("spec", form(spec.get("rules"), "networking.IngressRule"), "either `defaultBackend` or `rules` must be specified")
    if backend is not None:
        yield from _backend(backend, "spec.defaultBackend")
    lenient = old is not None and _has_bad_wildcard_rule(old.get("spec") or {})
    for i, rule in enumerate(rules):
        yield from _rule(rule, f"spec.rules[{i}]", lenient)
    any_secret = old is not None and any(_secret_errors(t) for t in (old.get("spec") or {}).get("tls") or ())
    for i, tls in enumerate(spec.get("tls") or ()):
        yield from _tls(tls, f"spec.tls[{i}]", any_secret)
    name = spec.get("ingressClassName")
    if name is not None:
        yield from messages(name, names.is_dns1123_subdomain(name), "spec.ingressClassName")


def validate_ingress_create(obj: Object) -> Errors:
    yield from validate_ingress(obj)
    annotation = (obj["metadata"].get("annotations") or {}).get(INGRESS_CLASS_ANNOTATION)
    name = (obj.get("spec") or {}).get("ingressClassName")
    if annotation is not None and name is not None and annotation != name:
        yield invalid(f"annotations.{INGRESS_CLASS_ANNOTATION}", annotation, "must match `ingressClassName` when both are specified")


def _host(host: str, path: str) -> Errors:
    check = names.is_wildcard_dns1123_subdomain if "*" in host else names.is_dns1123_subdomain
    yield from messages(host, check(host), path)


def _rule(rule: Object, path: str, lenient: bool) -> Errors:
    host = rule.get("host") or ""
    if host:
        if parse_ip(host) is not None:
            yield invalid(f"{path}.host", host, "must be a DNS name, not an IP address")
        yield from _host(host, f"{path}.host")
    if not ("*" in host and lenient):
        yield from _http(rule, path)


def _http(rule: Object, path: str) -> Errors:
    http = rule.get("http")
    if http is None:
        return
    if not http.get("paths"):
        yield required(f"{path}.http.paths")
    for i, p in enumerate(http.get("paths") or ()):
        yield from _path(p, f"{path}.http.paths[{i}]")


def _has_bad_wildcard_rule(spec: Object) -> bool:
    return any("*" in (r.get("host") or "") and next(_http(r, ""), None) is not None for r in spec.get("rules") or ())


def _path(p: Object, path: str) -> Errors:
    type_, text = p.get("pathType"), p.get("path") or ""
    if type_ is None:
        yield required(f"{path}.pathType", "pathType must be specified")
        return
    if type_ in ("Exact", "Prefix"):
        if not text.startswith("/"):
            yield invalid(f"{path}.path", text, "must be an absolute path")
        for sequence in _BAD_SEQUENCES:
            if sequence in text:
                yield invalid(f"{path}.path", text, f"must not contain '{sequence}'")
        for suffix in _BAD_SUFFIXES:
            if text.endswith(suffix):
                yield invalid(f"{path}.path", text, f"cannot end with '{suffix}'")
    elif type_ == "ImplementationSpecific":
        if text and not text.startswith("/"):
            yield invalid(f"{path}.path", text, "must be an absolute path")
    else:
        yield not_supported(f"{path}.pathType", type_, PATH_TYPES)
    yield from _backend(p.get("backend") or {}, f"{path}.backend")


def _backend(backend: Object, path: str) -> Errors:
    resource, service = backend.get("resource"), backend.get("service")
    if resource is not None and service is not None:
        yield invalid(path, "", "cannot set both resource and service backends")
    elif resource is not None:
        yield from _typed_reference(resource, f"{path}.resource")
    elif service is not None:
        name, port = service.get("name") or "", service.get("port") or {}
        if not name:
            yield required(f"{path}.service.name")
        else:
            yield from messages(name, names.is_dns1123_label(name), f"{path}.service.name")
        if port.get("name") and port.get("number"):
            yield invalid(path, "", "cannot set both port name & port number")
        elif port.get("name"):
            yield from messages(port["name"], names.is_port_name(port["name"]), f"{path}.service.port.name")
        elif port.get("number"):
            yield from messages(port["number"], names.is_port_number(port["number"]), f"{path}.service.port.number")
        else:
            yield required(path, "port name or number is required")
    else:
        yield invalid(path, "", "resource or service backend is required")


def _typed_reference(ref: Object, path: str) -> Errors:
    group = ref.get("apiGroup")
    if group is not None:
        yield from messages(group, names.is_dns1123_subdomain(group), f"{path}.apiGroup")
    yield from path_segment(ref.get("kind"), f"{path}.kind")
    yield from path_segment(ref.get("name"), f"{path}.name")


def _secret_errors(tls: Object) -> list[str]:
    name = tls.get("secretName") or ""
    return names.is_dns1123_subdomain(name) if name else []


def _tls(tls: Object, path: str, any_secret: bool) -> Errors:
    for i, host in enumerate(tls.get("hosts") or ()):
        yield from _host(host, f"{path}.hosts[{i}]")
    if not any_secret:
        yield from messages(tls.get("secretName") or "", _secret_errors(tls), f"{path}.secretName")


def validate_ingress_status(new: Object, old: Object) -> Errors:
    def points(obj: Object) -> list[Object]:
        return ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []

    known = [p["ip"] for p in points(old) if p.get("ip")]
    for i, p in enumerate(points(new)):
        path = f"status.loadBalancer.ingress[{i}]"
        if p.get("ip"):
            yield from validate_legacy_ip(f"{path}.ip", p["ip"], known)
        host = p.get("hostname")
        if host:
            yield from messages(host, names.is_dns1123_subdomain(host), f"{path}.hostname")
            if parse_ip(host) is not None:
                yield invalid(f"{path}.hostname", host, "must be a DNS name, not an IP address")


def _ingress_warnings(new: Object, old: Object | None) -> list[str]:
    annotated = INGRESS_CLASS_ANNOTATION in (new["metadata"].get("annotations") or {})
    if old is None and annotated and (new.get("spec") or {}).get("ingressClassName") is None:
        return [f"annotation \"{INGRESS_CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"]
    return []


# --- IngressClass -----------------------------------------------------------------------------------------------------------------------

def default_ingress_class(obj: Object) -> None:
    parameters = (obj.get("spec") or {}).get("parameters")
    if parameters is not None and parameters.get("scope") is None:
        parameters["scope"] = "Cluster"


def validate_ingress_class(obj: Object) -> Errors:
    spec = obj.get("spec") or {}
    controller = spec.get("controller") or ""
    if len(controller) > CONTROLLER_MAX:
        yield too_long("spec.controller", CONTROLLER_MAX)
    yield from names.is_domain_prefixed_path("spec.controller", controller)
    p = spec.get("parameters")
    if p is None:
        return
    path = "spec.parameters"
    yield from _typed_reference(p, path)
    scope, namespace = p.get("scope"), p.get("namespace")
    if scope is None:
        yield required(f"{path}.scope")
    elif scope not in ("Cluster", "Namespace"):
        yield not_supported(f"{path}.scope", scope, ("Cluster", "Namespace"))
    elif scope == "Namespace":
        if namespace is None:
            yield required(f"{path}.namespace", "`parameters.scope` is set to 'Namespace'")
        else:
            yield from messages(namespace, names.is_dns1123_label(namespace), f"{path}.namespace")
    elif namespace is not None:
        yield forbidden(f"{path}.namespace", "`parameters.scope` is set to 'Cluster'")


def validate_ingress_class_update(new: Object, old: Object) -> Errors:
    yield from immutable((new.get("spec") or {}).get("controller"), (old.get("spec") or {}).get("controller"), "spec.controller")
    yield from validate_ingress_class(new)


# --- NetworkPolicy ----------------------------------------------------------------------------------------------------------------------

def default_network_policy(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    for direction in ("ingress", "egress"):
        for rule in spec.get(direction) or ():
            for port in rule.get("ports") or ():
                if port.get("protocol") is None:
                    port["protocol"] = "TCP"


def _peers(spec: Object) -> Iterator[tuple[str, Object]]:
    """Every peer of the policy with its path."""
    for direction, field in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(spec.get(direction) or ()):
            for j, peer in enumerate(rule.get(field) or ()):
                yield f"spec.{direction}[{i}].{field}[{j}]", peer


def validate_network_policy(obj: Object, old: Object | None = None) -> Errors:
    spec = obj.get("spec") or {}
    known: list[str] = []
    any_value = False
    if old is not None:
        any_value = not selector_is_valid((old.get("spec") or {}).get("podSelector") or {})
        for _, peer in _peers(old.get("spec") or {}):
            block = peer.get("ipBlock")
            if block is not None:
                known += [block.get("cidr") or "", *(block.get("except") or ())]
    yield from validate_label_selector(spec.get("podSelector") or {}, "spec.podSelector", any_value)
    for direction, field in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(spec.get(direction) or ()):
            path = f"spec.{direction}[{i}]"
            for j, port in enumerate(rule.get("ports") or ()):
                yield from _policy_port(port, f"{path}.ports[{j}]")
            for j, peer in enumerate(rule.get(field) or ()):
                yield from _peer(peer, f"{path}.{field}[{j}]", any_value, known)
    types = spec.get("policyTypes") or ()
    if len(types) > 2:
        yield invalid("spec.policyTypes", types, "may not specify more than two policyTypes")
        return
    for i, type_ in enumerate(types):
        if type_ not in ("Ingress", "Egress"):
            yield not_supported(f"spec.policyTypes[{i}]", type_, ("Ingress", "Egress"))


def _policy_port(port: Object, path: str) -> Errors:
    protocol, number, end = port.get("protocol"), port.get("port"), port.get("endPort")
    if protocol is not None and protocol not in PROTOCOLS:
        yield not_supported(f"{path}.protocol", protocol, PROTOCOLS)
    if number is None:
        if end is not None:
            yield invalid(f"{path}.endPort", end, "may not be specified when `port` is not specified")
    elif isinstance(number, int):
        yield from messages(number, names.is_port_number(number), f"{path}.port")
        if end is not None:
            if end < number:
                yield invalid(f"{path}.endPort", number, "must be greater than or equal to `port`")
            yield from messages(end, names.is_port_number(end), f"{path}.endPort")
    else:
        if end is not None:
            yield invalid(f"{path}.endPort", end, "may not be specified when `port` is non-numeric")
        yield from messages(number, names.is_port_name(number), f"{path}.port")


def _peer(peer: Object, path: str, any_value: bool, known: list[str]) -> Errors:
    pods, namespaces, block = peer.get("podSelector"), peer.get("namespaceSelector"), peer.get("ipBlock")
    if pods is not None:
        yield from validate_label_selector(pods, f"{path}.podSelector", any_value)
    if namespaces is not None:
        yield from validate_label_selector(namespaces, f"{path}.namespaceSelector", any_value)
    if block is not None:
        yield from _ip_block(block, f"{path}.ipBlock", known)
    if pods is None and namespaces is None and block is None:
        yield required(path, "must specify a peer")
    elif block is not None and (pods is not None or namespaces is not None):
        yield forbidden(path, "may not specify both ipBlock and another peer")


def _ip_block(block: Object, path: str, known: list[str]) -> Errors:
    cidr = block.get("cidr") or ""
    if not cidr:
        yield required(f"{path}.cidr")
        return
    yield from validate_legacy_cidr(f"{path}.cidr", cidr, known)
    whole = parse_cidr(cidr)
    if whole is None:
        return
    for i, text in enumerate(block.get("except") or ()):
        here = f"{path}.except[{i}]"
        yield from validate_legacy_cidr(here, text, known)
        part = parse_cidr(text)
        if part is None:
            continue
        a, b = whole[1], part[1]
        if a.version != b.version or b.network_address not in a or a.prefixlen >= b.prefixlen:
            yield invalid(here, text, "must be a strict subset of `cidr`")


def _policy_warnings(new: Object, old: Object | None) -> list[str]:
    out: list[str] = []
    for path, peer in _peers(new.get("spec") or {}):
        block = peer.get("ipBlock")
        if block is not None:
            out += cidr_warnings(f"{path}.ipBlock.cidr", block.get("cidr") or "")
            for k, text in enumerate(block.get("except") or ()):
                out += cidr_warnings(f"{path}.ipBlock.except[{k}]", text)
    return out


# --- IPAddress, ServiceCIDR -------------------------------------------------------------------------------------------------------------

def ip_address_name(name: str, prefix: bool = False) -> list[str]:
    return [e.detail for e in validate_ip("", name)]


def validate_ip_address(obj: Object) -> Errors:
    parent = (obj.get("spec") or {}).get("parentRef")
    path = "spec.parentRef"
    if parent is None:
        yield required(path)
        return
    if parent.get("group"):
        yield from messages(parent["group"], names.is_dns1123_subdomain(parent["group"]), f"{path}.group")
    yield from path_segment(parent.get("resource"), f"{path}.resource")
    yield from path_segment(parent.get("name"), f"{path}.name")
    if parent.get("namespace"):
        yield from messages(parent["namespace"], names.is_path_segment_name(parent["namespace"]), f"{path}.namespace")


def validate_ip_address_update(new: Object, old: Object) -> Errors:
    yield from validate_ip_address(new)
    yield from immutable((new.get("spec") or {}).get("parentRef"), (old.get("spec") or {}).get("parentRef"), "spec.parentRef",
                         "networking.ParentReference")


def _family(cidr: str) -> int:
    parsed = parse_cidr(cidr)
    return parsed[1].version if parsed else 0


def _cidrs(spec: Object) -> Errors:
    cidrs: list[Any] = spec.get("cidrs") or []
    path = "spec.cidrs"
    if not cidrs:
        yield required(path, "at least one CIDR required")
        return
    whole = form(spec, "networking.ServiceCIDRSpec")
    if len(cidrs) > 2:
        yield invalid(path, whole, "may only hold up to 2 values")
        return
    for i, cidr in enumerate(cidrs):
        yield from validate_cidr(f"{path}[{i}]", cidr)
    if len(cidrs) == 2 and _family(cidrs[0]) == _family(cidrs[1]) != 0:
        yield invalid(path, cidrs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64")


def validate_service_cidr(obj: Object) -> Errors:
    return _cidrs(obj.get("spec") or {})


def validate_service_cidr_update(new: Object, old: Object) -> Errors:
    now, before = (new.get("spec") or {}).get("cidrs") or [], (old.get("spec") or {}).get("cidrs") or []
    if len(now) == len(before):
        for i, cidr in enumerate(before):
            if cidr != now[i]:
                yield invalid(f"spec.cidrs[{i}]", now[i], IMMUTABLE)
    elif len(before) == 1 and len(now) == 2:
        if now[0] != before[0]:
            yield invalid("spec.cidrs[0]", now[0], IMMUTABLE)
        yield from _cidrs(new.get("spec") or {})
    else:
        yield invalid("spec.cidrs", now, IMMUTABLE)


GROUP = "networking.k8s.io"
KINDS: KindTable = {
    (GROUP, "Ingress"): Kind(
        meta_again=1,
        prepare_create=zero_status({"loadBalancer": {}}), prepare_update=keep_status, prepare_status=keep_spec,
        validate=listed(validate_ingress_create), validate_update=listed(validate_ingress), validate_status=listed(validate_ingress_status),
        warnings=_ingress_warnings, has_generation=True),
    (GROUP, "IngressClass"): Kind(
        meta_again=1,
        defaults=default_ingress_class, validate=listed(validate_ingress_class), validate_update=listed(validate_ingress_class_update),
        has_generation=True),
    (GROUP, "NetworkPolicy"): Kind(
        defaults=default_network_policy, validate=listed(validate_network_policy), validate_update=listed(validate_network_policy),
        warnings=_policy_warnings, has_generation=True),
    (GROUP, "IPAddress"): Kind(
        meta_again=1,
        validate=listed(validate_ip_address), validate_update=listed(validate_ip_address_update), name_check=ip_address_name),
    (GROUP, "ServiceCIDR"): Kind(
        prepare_create=zero_status({}), prepare_update=keep_status, prepare_status=keep_spec_and_metadata,
        validate=listed(validate_service_cidr), validate_update=listed(validate_service_cidr_update)),
}
