"""A Service's addresses and ports across a write: what a PUT that leaves them out keeps, and which IP families it gets.

`normalize` and `patch_allocated` run before allocation (api/allocate.py), `init_families` decides the families and gives the errors that
stop the write before validation. All change the new object. Single-stack clusters have one family in `configured`.
Upstream: pkg/registry/core/service/storage/{storage,alloc}.go, KEP-563 (dual stack).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kubern.model.addresses import is_dual_stack, is_ipv6, validate_legacy_ip
from kubern.model.invalid import FieldError, duplicate, invalid, not_supported, required
from kubern.model.object import Object

Spec = Object


def needs_cluster_ip(spec: Spec) -> bool:
    return spec.get("type") != "ExternalName"


def is_headless(spec: Spec) -> bool:
    return spec.get("clusterIPs") == ["None"]


def needs_node_ports(spec: Spec) -> bool:
    """Ports that are kept or allocated: a load balancer may do without."""
    return spec.get("type") == "NodePort" or (spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False)


def needs_health_check_port(spec: Spec) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def same_cluster_ips(a: Spec, b: Spec) -> bool:
    return a.get("clusterIP", "") == b.get("clusterIP", "") and (a.get("clusterIPs") or []) == (b.get("clusterIPs") or [])


def same_families(a: Spec, b: Spec) -> bool:
    return (a.get("ipFamilies") or []) == (b.get("ipFamilies") or [])


def normalize(spec: Spec, old: Spec | None) -> None:
    """clusterIP and clusterIPs[0] are one fact; a client that knows only the first changes both by it."""
    first, ips = spec.get("clusterIP", ""), spec.get("clusterIPs") or []
    if old is None:
        if first and not ips:
            spec["clusterIPs"] = [first]
        return
    was, were = old.get("clusterIP", ""), old.get("clusterIPs") or []
    if were and not ips and was == first:
        spec["clusterIPs"] = ips = list(were)
    if was != first and ips == were:
        if was and not first:
            spec.pop("clusterIPs", None)
        else:
            spec["clusterIPs"] = [first]


def patch_allocated(spec: Spec, old: Spec) -> None:
    """A PUT without cluster IPs, node ports or health check port keeps those it had."""
    if needs_cluster_ip(old) and needs_cluster_ip(spec):
        if not spec.get("clusterIP") and old.get("clusterIP"):
            spec["clusterIP"] = old["clusterIP"]
        if not spec.get("clusterIPs") and old.get("clusterIPs"):
            spec["clusterIPs"] = list(old["clusterIPs"])
    if needs_node_ports(old) and needs_node_ports(spec):
        was = {p.get("name", ""): p.get("nodePort", 0) for p in old.get("ports") or ()}
        used = set(was.values()) & {p.get("nodePort", 0) for p in spec.get("ports") or () if p.get("nodePort")}
        for p in spec.get("ports") or ():
            port = was.get(p.get("name", ""), 0)
            if not p.get("nodePort") and port and port not in used:
                p["nodePort"] = port
    if needs_health_check_port(old) and needs_health_check_port(spec) and not spec.get("healthCheckNodePort") and old.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = old["healthCheckNodePort"]


def cluster_ip_errors(spec: Object, old: Object | None) -> Iterator[FieldError]:
    """clusterIP, clusterIPs, ipFamilies and ipFamilyPolicy against each other."""
    if spec.get("type") == "ExternalName":
        return
    first, ips, families, policy = spec.get("clusterIP", ""), spec.get("clusterIPs") or [], spec.get("ipFamilies") or [], spec.get("ipFamilyPolicy")
    if first:
        if not ips:
            yield required("spec.clusterIPs")
        elif ips[0] != first:
            yield invalid("spec.clusterIPs", ips, "first value must match `clusterIP`")
    elif ips:
        yield invalid("spec.clusterIPs", ips, "must be empty when `clusterIP` is not specified")
    for i, family in enumerate(families):
        if family not in ("IPv4", "IPv6"):
            yield not_supported(f"spec.ipFamilies[{i}]", family, ("IPv4", "IPv6"))
        if family in families[:i]:
            yield duplicate(f"spec.ipFamilies[{i}]", family)
    if policy is not None and policy not in ("PreferDualStack", "RequireDualStack", "SingleStack"):
        yield not_supported("spec.ipFamilyPolicy", policy, ("PreferDualStack", "RequireDualStack", "SingleStack"))
    bad = False
    for i, ip in enumerate(ips):
        if i == 0 and ip == "None":
            if len(ips) > 1:
                bad = True
                yield invalid("spec.clusterIPs", ips, "'None' must be the first and only value")
            continue
        errors = validate_legacy_ip(f"spec.clusterIPs[{i}]", ip, (old or {}).get("clusterIPs") or ())
        bad = bad or bool(errors)
        yield from errors
    if len(ips) > 2:
        yield invalid("spec.clusterIPs", ips, "may only hold up to 2 values")
    if bad:
        return
    if len(ips) > 1 and not is_dual_stack(ips):
        yield invalid("spec.clusterIPs", ips, "may specify no more than one IP for each IP family")
    if not is_headless(spec):
        for i, (ip, family) in enumerate(zip(ips, families, strict=False)):
            if family in ("IPv4", "IPv6") and (family == "IPv6") != is_ipv6(ip):
                yield invalid(f"spec.clusterIPs[{i}]", ip, f"expected an {family} value as indicated by `ipFamilies[{i}]`")


def init_families(spec: Spec, old: Spec | None, configured: Sequence[str] = ("IPv4",)) -> list[FieldError]:
    """ipFamilyPolicy and ipFamilies; `configured`: the families that have a service CIDR, the default one first."""
    if spec.get("type") == "ExternalName" or (old is not None and _still_prefers_dual_stack(spec, old)):
        return []
    without_selector = spec.get("clusterIP") == "None" and not spec.get("selector")
    if spec.get("ipFamilyPolicy") is None:
        if old is not None and old.get("ipFamilyPolicy") is not None:
            spec["ipFamilyPolicy"] = old["ipFamilyPolicy"]
        else:
            spec["ipFamilyPolicy"] = "RequireDualStack" if without_selector else "SingleStack"
    if errors := list(cluster_ip_errors(spec, old)):
        return errors
    policy = spec["ipFamilyPolicy"]
    errors = _policy_errors(spec, old, policy)
    _families_of_ips(spec, configured, errors)
    if errors:
        return errors
    families = list(spec.get("ipFamilies") or [configured[0]])
    other = "IPv6" if families[0] == "IPv4" else "IPv4"
    if without_selector:
        if len(families) < 2 and policy != "SingleStack":
            families.append(other)
        spec["ipFamilies"] = families
        return []
    if policy == "RequireDualStack" and len(configured) < 2:
        errors.append(invalid("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services"))
    for i, family in enumerate(spec.get("ipFamilies") or ()):
        if family not in configured:
            errors.append(invalid(f"spec.ipFamilies[{i}]", family, "not configured on this cluster"))
    if not errors:
        if policy != "SingleStack" and len(families) == 1 and len(configured) == 2:
            families.append(other)
        spec["ipFamilies"] = families
    return errors


def _policy_errors(spec: Spec, old: Spec | None, policy: str) -> list[FieldError]:
    errors: list[FieldError] = []
    if old is not None and policy == "SingleStack":          # releases the second family
        if same_cluster_ips(old, spec) and len(spec.get("clusterIPs") or ()) > 1:
            spec["clusterIPs"] = spec["clusterIPs"][:1]
        if same_families(old, spec) and len(spec.get("ipFamilies") or ()) > 1:
            spec["ipFamilies"] = spec["ipFamilies"][:1]
    elif old is not None:
        for field, what in (("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")):
            if spec.get(field) and len(spec[field]) < len(old.get(field) or ()):
                errors.append(invalid("spec.ipFamilyPolicy", policy, f"must be 'SingleStack' to release the secondary {what}"))
    if policy == "SingleStack":
        for field, what in (("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")):
            if len(spec.get(field) or ()) == 2:
                errors.append(invalid("spec.ipFamilyPolicy", policy,
                                      f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"))
    return errors


def _families_of_ips(spec: Spec, configured: Sequence[str], errors: list[FieldError]) -> None:
    """Families that only the given addresses tell."""
    for i, ip in enumerate(spec.get("clusterIPs") or ()):
        if ip == "None":
            break
        family = "IPv6" if is_ipv6(ip) else "IPv4"
        if i >= len(spec.get("ipFamilies") or ()):
            if family not in configured:
                errors.append(invalid(f"spec.clusterIPs[{i}]", spec["clusterIPs"], f"{family} is not configured on this cluster"))
            else:
                spec["ipFamilies"] = [*(spec.get("ipFamilies") or ()), family]


def _still_prefers_dual_stack(spec: Spec, old: Spec) -> bool:
    """A PreferDualStack service made before the second family was there stays as it is until touched."""
    return (spec.get("ipFamilyPolicy") == "PreferDualStack" and old.get("ipFamilyPolicy") in (None, "PreferDualStack")
            and spec.get("type") == old.get("type") and same_cluster_ips(spec, old) and same_families(spec, old))
