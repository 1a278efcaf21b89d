"""Service: defaults, strategy, validation, warnings.

Allocation itself is api/allocate.py, which runs before all of this; families and kept values are service_ips.py.
Upstream: pkg/registry/core/service/strategy.go, pkg/apis/core/validation (validateService), pkg/api/service, KEP-563, KEP-2086, KEP-3015.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubern.model import names
from kubern.model.addresses import (
    cidr_warnings,
    ip_warnings,
    parse_ip,
    validate_endpoint_ip,
    validate_legacy_cidr,
    validate_legacy_ip,
)
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_supported, required
from kubern.model.kinds.containers import PROTOCOLS, port_or_name
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import annotations_of, messages, validate_labels
from kubern.model.kinds.service_ips import cluster_ip_errors, is_headless, needs_cluster_ip, needs_health_check_port, same_cluster_ips, same_families
from kubern.model.object import Object

Errors = Iterator[FieldError]
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
HINTS, MODE = "service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"
SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
AFFINITY_DEFAULT_S, AFFINITY_MAX_S = 10800, 86400


def _spec(service: Object) -> Object:
    return service.get("spec") or {}


def _external(spec: Object) -> bool:
    """Traffic may come from outside the cluster."""
    return spec.get("type") in ("LoadBalancer", "NodePort") or (spec.get("type") == "ClusterIP" and bool(spec.get("externalIPs")))


# Defaults and strategy ---------------------------------------------------------------------------------------------------------

def defaults(service: Object) -> None:
    spec = service.setdefault("spec", {})
    affinity = spec.setdefault("sessionAffinity", "None") or "None"
    spec["sessionAffinity"] = affinity
    if affinity == "None":
        spec.pop("sessionAffinityConfig", None)
    elif affinity == "ClientIP" and ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds") is None:
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_DEFAULT_S}}
    kind = spec["type"] = spec.get("type") or "ClusterIP"
    for p in spec.get("ports") or ():
        if not p.get("protocol"):
            p["protocol"] = "TCP"
        if p.get("targetPort") in (None, 0, ""):
            p["targetPort"] = p.get("port", 0)
    if not spec.get("externalTrafficPolicy") and _external(spec):
        spec["externalTrafficPolicy"] = "Cluster"
    if spec.get("internalTrafficPolicy") is None and kind in ("ClusterIP", "NodePort", "LoadBalancer"):
        spec["internalTrafficPolicy"] = "Cluster"
    if kind == "LoadBalancer":
        if spec.get("allocateLoadBalancerNodePorts") is None:
            spec["allocateLoadBalancerNodePorts"] = True
        for ingress in ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ():
            if ingress.get("ip") and ingress.get("ipMode") is None:
                ingress["ipMode"] = "VIP"


def prepare_create(service: Object) -> None:
    service["status"] = {"loadBalancer": {}}
    _hide_for_external_name(_spec(service))


def prepare_update(new: Object, old: Object) -> None:
    new["status"] = old.get("status") or {"loadBalancer": {}}
    _drop_what_the_type_had(new, _spec(new), _spec(old))
    _hide_for_external_name(_spec(new))


def _hide_for_external_name(spec: Object) -> None:
    """Upstream does it on every read; here it is stored that way."""
    if spec.get("type") == "ExternalName":
        spec.pop("internalTrafficPolicy", None)


def _drop_what_the_type_had(service: Object, spec: Object, old: Object) -> None:
    """A change of type lets go of what only the old type had, unless the client changed that too."""
    kind, was = spec.get("type"), old.get("type")
    if needs_cluster_ip(old) and not needs_cluster_ip(spec):
        if same_cluster_ips(old, spec):
            spec.pop("clusterIP", None)
            spec.pop("clusterIPs", None)
        if same_families(old, spec):
            spec.pop("ipFamilies", None)
        _drop_same(spec, old, "ipFamilyPolicy")
    with_ports = ("NodePort", "LoadBalancer")
    if was in with_ports and kind not in with_ports and _node_ports(spec) <= _node_ports(old):
        for p in spec.get("ports") or ():
            p.pop("nodePort", None)
    if needs_health_check_port(old) and not needs_health_check_port(spec):
        _drop_same(spec, old, "healthCheckNodePort")
    if was == "LoadBalancer" and kind != "LoadBalancer":
        if old.get("allocateLoadBalancerNodePorts") is not None:
            _drop_same(spec, old, "allocateLoadBalancerNodePorts")
        _drop_same(spec, old, "loadBalancerClass")
    if _external(old) and not _external(spec):
        _drop_same(spec, old, "externalTrafficPolicy")
    if kind != "LoadBalancer":
        service["status"] = {**(service.get("status") or {}), "loadBalancer": {}}


def _node_ports(spec: Object) -> set[int]:
    return {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}


def _drop_same(spec: Object, old: Object, field: str) -> None:
    if spec.get(field) == old.get(field):
        spec.pop(field, None)


# Validation --------------------------------------------------------------------------------------------------------------------

def validate(service: Object) -> list[FieldError]:
    return list(_validate(service, None))


def validate_update(new: Object, old: Object) -> list[FieldError]:
    spec, before = _spec(new), _spec(old)
    return [*_cluster_ip_changes(spec, before), *_family_changes(spec, before), *_load_balancer_class(spec, before),
            *_health_check_change(spec, before), *_validate(new, old)]


def _validate(service: Object, old: Object | None) -> Errors:
    spec, marks, before = _spec(service), annotations_of(service), _spec(old or {})
    if HINTS in marks and MODE in marks and marks[HINTS] != marks[MODE]:
        yield invalid(f"metadata.annotations[{MODE}]", marks[MODE], f"must match annotations[{HINTS}] when both are specified")
    ports, kind = spec.get("ports") or [], spec.get("type", "")
    headless = is_headless(spec)
    if not ports and not headless and kind != "ExternalName":
        yield required("spec.ports")
    yield from _of_type(spec, kind, headless)
    seen: set[str] = set()
    for i, p in enumerate(ports):
        yield from _port(p, len(ports) > 1, seen, f"spec.ports[{i}]")
    if spec.get("selector"):
        yield from validate_labels(spec["selector"], "spec.selector")
    yield from _session_affinity(spec)
    yield from cluster_ip_errors(spec, before if old is not None else None)
    for i, ip in enumerate(spec.get("externalIPs") or ()):
        errors = validate_legacy_ip(f"spec.externalIPs[{i}]", ip, before.get("externalIPs") or ())
        yield from errors or validate_endpoint_ip(f"spec.externalIPs[{i}]", ip)
    if not kind:
        yield required("spec.type")
    elif kind not in TYPES:
        yield not_supported("spec.type", kind, TYPES)
    yield from _port_numbers(ports, kind)
    yield from _source_ranges(spec, marks, before, annotations_of(old) if old is not None else None)
    if kind == "LoadBalancer":
        if spec.get("allocateLoadBalancerNodePorts") is None:
            yield required("allocateLoadBalancerNodePorts")
    elif spec.get("allocateLoadBalancerNodePorts") is not None:
        yield forbidden("spec.allocateLoadBalancerNodePorts", "may only be used when `type` is 'LoadBalancer'")
    yield from _load_balancer_class(spec, None)
    yield from _traffic(spec, kind)


def _of_type(spec: Object, kind: str, headless: bool) -> Errors:
    if kind in ("LoadBalancer", "NodePort") and headless:
        yield invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    elif kind == "ExternalName":
        for field in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(field):
                yield forbidden(f"spec.{field}", "may not be set for ExternalName services")
        name = spec.get("externalName", "").removesuffix(".")
        if name:
            yield from messages("spec.externalName", name, names.is_dns1123_subdomain(name))
        else:
            yield required("spec.externalName")


def _port(p: Object, name_needed: bool, seen: set[str], path: str) -> Errors:
    name, number, protocol = p.get("name", ""), p.get("port", 0), p.get("protocol", "")
    if name:
        yield from messages(f"{path}.name", name, names.is_dns1123_label(name))
        if name in seen:
            yield duplicate(f"{path}.name", name)
        seen.add(name)
    elif name_needed:
        yield required(f"{path}.name")
    yield from messages(f"{path}.port", number, names.is_port_number(number))
    if not protocol:
        yield required(f"{path}.protocol")
    elif protocol not in PROTOCOLS:
        yield not_supported(f"{path}.protocol", protocol, PROTOCOLS)
    yield from port_or_name(p.get("targetPort", 0), f"{path}.targetPort")
    if (app := p.get("appProtocol")) is not None:
        yield from messages(f"{path}.appProtocol", app, names.is_qualified_name(app))


def _port_numbers(ports: list[Object], kind: str) -> Errors:
    if kind == "ClusterIP":
        for i, p in enumerate(ports):
            if p.get("nodePort"):
                yield forbidden(f"spec.ports[{i}].nodePort", "may not be used when `type` is 'ClusterIP'")
    node_ports: set[tuple[str, int]] = set()
    for i, p in enumerate(ports):
        key = (p.get("protocol", ""), p.get("nodePort", 0))
        if key[1] and key in node_ports:
            yield duplicate(f"spec.ports[{i}].nodePort", key[1])
        node_ports.add(key)
    seen: set[tuple[str, int]] = set()
    for i, p in enumerate(ports):
        key = (p.get("protocol", ""), p.get("port", 0))
        if key in seen:
            yield duplicate(f"spec.ports[{i}]", struct("ServicePort", {"protocol": key[0], "port": key[1]}))
        seen.add(key)


def _session_affinity(spec: Object) -> Errors:
    affinity, config = spec.get("sessionAffinity", ""), spec.get("sessionAffinityConfig")
    if not affinity:
        yield required("spec.sessionAffinity")
    elif affinity not in ("ClientIP", "None"):
        yield not_supported("spec.sessionAffinity", affinity, ("ClientIP", "None"))
    if affinity == "ClientIP":
        seconds = ((config or {}).get("clientIP") or {}).get("timeoutSeconds")
        path = "spec.sessionAffinityConfig"
        for value, part in ((config, ""), ((config or {}).get("clientIP"), ".clientIP"), (seconds, ".clientIP.timeoutSeconds")):
            if value is None:
                yield required(path + part, "when session affinity type is ClientIP")
                return
        if seconds is not None and not 0 < seconds <= AFFINITY_MAX_S:
            yield invalid(f"{path}.clientIP.timeoutSeconds", seconds, f"must be greater than 0 and less than {AFFINITY_MAX_S}")
    elif affinity == "None" and config is not None:
        yield forbidden("spec.sessionAffinityConfig", "must not be set when session affinity is None")


def _source_ranges(spec: Object, marks: dict[str, str], old: Object, old_marks: dict[str, str] | None) -> Errors:
    wrong_type = spec.get("type") != "LoadBalancer"
    if ranges := spec.get("loadBalancerSourceRanges"):
        if wrong_type:
            yield forbidden("spec.LoadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'")
        known = [r.strip() for r in old.get("loadBalancerSourceRanges") or ()]
        for i, r in enumerate(ranges):
            yield from validate_legacy_cidr(f"spec.LoadBalancerSourceRanges[{i}]", r.strip(), known)
    elif SOURCE_RANGES in marks:
        path = f"metadata.annotations[{SOURCE_RANGES}]"
        if wrong_type:
            yield forbidden(path, "may only be used when `type` is 'LoadBalancer'")
        text = marks[SOURCE_RANGES].strip()
        if text and (old_marks is None or old_marks.get(SOURCE_RANGES, "") != marks[SOURCE_RANGES]):
            for r in text.split(","):
                yield from validate_legacy_cidr(path, r.strip())


def _load_balancer_class(spec: Object, old: Object | None) -> Errors:
    name, balanced = spec.get("loadBalancerClass"), spec.get("type") == "LoadBalancer"
    if old is not None and balanced and old.get("type") == "LoadBalancer" and name != old.get("loadBalancerClass"):
        yield invalid("spec.loadBalancerClass", name, "may not change once set")
    if name is not None:
        if balanced:
            yield from messages("spec.loadBalancerClass", name, names.is_qualified_name(name))
        else:
            yield forbidden("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'")


def _traffic(spec: Object, kind: str) -> Errors:
    policy, port = spec.get("externalTrafficPolicy", ""), spec.get("healthCheckNodePort", 0)
    if not _external(spec):
        if policy:
            yield invalid("spec.externalTrafficPolicy", policy, "may only be set for externally-accessible services")
    elif not policy:
        yield required("spec.externalTrafficPolicy")
    elif policy not in ("Cluster", "Local"):
        yield not_supported("spec.externalTrafficPolicy", policy, ("Cluster", "Local"))
    if not needs_health_check_port(spec):
        if port:
            yield invalid("spec.healthCheckNodePort", port, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
    elif not port:
        yield required("spec.healthCheckNodePort")
    else:
        yield from messages("spec.healthCheckNodePort", port, names.is_port_number(port))
    internal = spec.get("internalTrafficPolicy")
    if internal is None:
        if kind in ("NodePort", "LoadBalancer", "ClusterIP"):
            yield required("spec.internalTrafficPolicy")
    elif internal not in ("Cluster", "Local"):
        yield not_supported("spec.internalTrafficPolicy", internal, ("Cluster", "Local"))
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        yield not_supported("spec.trafficDistribution", distribution, DISTRIBUTIONS)


# What may change ---------------------------------------------------------------------------------------------------------------

def _cluster_ip_changes(spec: Object, old: Object) -> Errors:
    if "ExternalName" in (spec.get("type"), old.get("type")) or (is_headless(spec) and is_headless(old)):
        return
    ips, were = spec.get("clusterIPs") or [], old.get("clusterIPs") or []
    shown: Any = ips or None
    if len(ips) == len(were):
        for i, ip in enumerate(were):
            if ip != ips[i]:
                yield invalid(f"spec.clusterIPs[{i}]", shown, "may not change once set")
        return
    if len(ips) < len(were) and not ips:
        yield invalid("spec.clusterIPs[0]", shown, "primary clusterIP can not be unset")
    if were and ips and ips[0] != were[0]:
        yield invalid("spec.clusterIPs[0]", shown, "may not change once set")
    if len(ips) == 1 and len(were) > 1 and spec.get("ipFamilyPolicy") != "SingleStack":
        yield invalid("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), "must be set to 'SingleStack' when releasing the secondary clusterIP")


def _family_changes(spec: Object, old: Object) -> Errors:
    if "ExternalName" in (spec.get("type"), old.get("type")) or is_headless(spec) or is_headless(old):
        return
    families, were, ips = spec.get("ipFamilies") or [], old.get("ipFamilies") or [], spec.get("clusterIPs") or None
    if len(families) == len(were):
        for family, was in zip(families, were, strict=True):
            if family != was:
                yield invalid("spec.ipFamilies[0]", families, "may not change once set")
        return
    if len(families) < len(were) and not ips:
        yield invalid("spec.ipFamilies[0]", families or None, "primary ipFamily can not be unset")
    if families and were and families[0] != were[0]:
        yield invalid("spec.ipFamilies[0]", ips, "may not change once set")
    if len(families) == 1 and len(were) > 1 and spec.get("ipFamilyPolicy") != "SingleStack":
        yield invalid("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), "must be set to 'SingleStack' when releasing the secondary ipFamily")


def _health_check_change(spec: Object, old: Object) -> Errors:
    if needs_health_check_port(spec) and needs_health_check_port(old) and spec.get("healthCheckNodePort", 0) != old.get("healthCheckNodePort", 0):
        yield forbidden("spec.healthCheckNodePort", "field is immutable")


# Status ------------------------------------------------------------------------------------------------------------------------

def load_balancer_errors(status: Object, old: Object, path: str, balanced: bool) -> Errors:
    """status.loadBalancer of a Service (and, with balanced=True, of an Ingress' like)."""
    ingresses = status.get("ingress") or []
    if not balanced:
        if ingresses:
            yield forbidden(f"{path}.ingress", "may only be used when `spec.type` is 'LoadBalancer'")
        return
    known = [i["ip"] for i in old.get("ingress") or () if i.get("ip")]
    for i, ingress in enumerate(ingresses):
        here, ip, mode, host = f"{path}.ingress[{i}]", ingress.get("ip", ""), ingress.get("ipMode"), ingress.get("hostname", "")
        if ip:
            yield from validate_legacy_ip(f"{here}.ip", ip, known)
        if mode is None:
            if ip:
                yield required(f"{here}.ipMode", "must be specified when `ip` is set")
        elif not ip:
            yield forbidden(f"{here}.ipMode", "may not be specified when `ip` is not set")
        elif mode not in ("Proxy", "VIP"):
            yield not_supported(f"{here}.ipMode", mode, ("Proxy", "VIP"))
        if host:
            yield from messages(f"{here}.hostname", host, names.is_dns1123_subdomain(host))
            if parse_ip(host) is not None:
                yield invalid(f"{here}.hostname", host, "must be a DNS name, not an IP address")


def validate_status(new: Object, old: Object) -> list[FieldError]:
    return list(load_balancer_errors((new.get("status") or {}).get("loadBalancer") or {}, (old.get("status") or {}).get("loadBalancer") or {},
                                     "status.loadBalancer", _spec(new).get("type") == "LoadBalancer"))


def prepare_status(new: Object, old: Object) -> None:
    new["spec"] = old.get("spec") or {}


# Warnings ----------------------------------------------------------------------------------------------------------------------

def warnings(service: Object, old: Object | None) -> list[str]:
    spec, kind = _spec(service), _spec(service).get("type")
    headless, outside = kind == "ClusterIP" and spec.get("clusterIP") == "None", spec.get("externalIPs") or []
    out = []
    if HINTS in annotations_of(service):
        out.append(f"annotation {HINTS} is deprecated, please use {MODE} instead")
    if spec.get("clusterIP") not in (None, "", "None"):
        for i, ip in enumerate(spec.get("clusterIPs") or ()):
            out += ip_warnings(f"spec.clusterIPs[{i}]", ip)
    if headless:
        for given, field in ((spec.get("loadBalancerIP"), "loadBalancerIP"), (outside, "externalIPs"),
                             (spec.get("sessionAffinity", "") != "None", "SessionAffinity")):
            if given:
                out.append(f"spec.{field} is ignored for headless services")
    for i, ip in enumerate(outside):
        out += ip_warnings(f"spec.externalIPs[{i}]", ip)
    if outside and not headless and kind != "ExternalName":
        out.append("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
    if spec.get("loadBalancerIP"):
        out += ip_warnings("spec.loadBalancerIP", spec["loadBalancerIP"])
    for i, cidr in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        out += cidr_warnings(f"spec.loadBalancerSourceRanges[{i}]", cidr)
    if kind == "ExternalName" and outside:
        out.append('spec.externalIPs is ignored when spec.type is "ExternalName"')
    if kind != "ExternalName" and spec.get("externalName"):
        out.append('spec.externalName is ignored when spec.type is not "ExternalName"')
    if spec.get("trafficDistribution") == "PreferClose":
        out.append('spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"')
    return out


def status_warnings(service: Object) -> list[str]:
    ingresses = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [t for i, e in enumerate(ingresses) if e.get("ip") for t in ip_warnings(f"status.loadBalancer.ingress[{i}]", e["ip"])]


KINDS: KindTable = {
    ("", "Service"): Kind(
        defaults=defaults, prepare_create=prepare_create, prepare_update=prepare_update, prepare_status=prepare_status, validate=validate,
        validate_update=validate_update, validate_status=validate_status, name_check=names.name_is_dns_label, warnings=warnings,
        status_warnings=status_warnings, create_on_update=True, delete_returns_object=True),
}
