"""Validation of pod specs and pod templates: puts together the rules of volumes, containers, security and scheduling.

`validate_pod_template` is what workloads call (apps, batch, ReplicationController, PodTemplate); `validate_pod_spec` is the part that
pods share with them. Generators of errors over the v1 shape after defaulting, in upstream's order.
Upstream: pkg/apis/core/validation (ValidatePodSpec, ValidatePodTemplateSpec).
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from kubern.model import names
from kubern.model.addresses import validate_legacy_ip
from kubern.model.invalid import FieldError, duplicate, forbidden, invalid, not_found, not_supported, required, too_long
from kubern.model.kinds import pod_security
from kubern.model.kinds.containers import Surroundings, validate_containers
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.labels import messages, validate_annotations, validate_labels
from kubern.model.kinds.leeway import DELETION_COST, FOR_TEMPLATE, Leeway, deletion_cost_is_bad
from kubern.model.kinds.placement import validate_affinity, validate_tolerations, validate_topology_spread
from kubern.model.kinds.pod_resources import is_huge_page, sum_containers
from kubern.model.kinds.pod_security import annotations_match_fields, containers_with_path, profile_annotations
from kubern.model.kinds.resource_rules import pod_resource_name, requirements
from kubern.model.kinds.volumes import validate_volumes
from kubern.model.object import Object
from kubern.model.quantity import compare, parse

Errors = Iterator[FieldError]
MIRROR = "kubernetes.io/config.mirror"
TOLERATIONS = "scheduler.alpha.kubernetes.io/tolerations"
RESTART_POLICIES = ("Always", "OnFailure", "Never")
DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
NAMESERVERS_MAX, SEARCHES_MAX, SEARCH_BYTES_MAX = 3, 32, 2048


def validate_pod_template(template: Object, path: str, leeway: Leeway = FOR_TEMPLATE) -> Errors:
    """A pod template at `path` ("spec.template")."""
    m, spec = template.get("metadata") or {}, template.get("spec") or {}
    annotations = m.get("annotations") or {}
    yield from validate_labels(m.get("labels"), f"{path}.labels")
    yield from validate_annotations(annotations, f"{path}.annotations")
    yield from validate_pod_annotations(annotations, spec, f"{path}.annotations", leeway)
    yield from validate_pod_spec(spec, f"{path}.spec", leeway)
    yield from annotations_match_fields(annotations, spec, f"{path}.spec")
    if spec.get("ephemeralContainers"):
        yield forbidden(f"{path}.spec.ephemeralContainers", "ephemeral containers not allowed in pod template")


def validate_pod_annotations(annotations: dict[str, str], spec: Object, path: str, leeway: Leeway) -> Errors:
    """Annotations that mean something for a pod."""
    if not annotations:
        return
    if MIRROR in annotations and not spec.get("nodeName"):
        yield invalid(f"{path}[{MIRROR}]", annotations[MIRROR], "must set spec.nodeName if mirror pod annotation is set")
    if annotations.get(TOLERATIONS):
        try:
            tolerations = orjson.loads(annotations[TOLERATIONS])
            yield from validate_tolerations(tolerations or [], f"{path}.{TOLERATIONS}", leeway.comparisons)
        except (orjson.JSONDecodeError, AttributeError, TypeError) as e:
            yield invalid(path, TOLERATIONS, str(e))
    if not leeway.deletion_cost and deletion_cost_is_bad(annotations):
        yield invalid(f"{path}[{DELETION_COST}]", annotations[DELETION_COST], "must be a 32bit integer")
    yield from profile_annotations(annotations, spec, path)


def validate_pod_spec(spec: Object, path: str, leeway: Leeway = FOR_TEMPLATE, pod_meta: Object | None = None) -> Errors:
    """`pod_meta` is the pod's metadata, None for templates."""
    grace, os = spec.get("terminationGracePeriodSeconds"), (spec.get("os") or {}).get("name")
    if grace is None:
        yield required(f"{path}.terminationGracePeriodSeconds")
    by_name: dict[str, Object] = {}
    if volumes := spec.get("volumes"):
        checked = validate_volumes(volumes, f"{path}.volumes", (pod_meta or {}).get("name", ""), leeway.is_pod, leeway.token_paths)
        yield from checked.errors
        by_name = dict(checked.by_name)
    claims = {c["name"] for c in spec.get("resourceClaims") or () if c.get("name")}
    if spec.get("resourceClaims"):
        yield from _resource_claims(spec["resourceClaims"], f"{path}.resourceClaims", pod_meta)
    restart, host_users = spec.get("restartPolicy", ""), spec.get("hostUsers") is not False
    yield from validate_containers(spec, path, Surroundings(by_name, claims, restart, grace, os, host_users, leeway))
    if spec.get("resources") is not None:
        yield from _pod_resources(spec, f"{path}.resources", os, claims, leeway)
    if spec.get("hostNetwork"):
        yield from _host_network_ports(spec, path, leeway)
    yield from _one_of(restart, f"{path}.restartPolicy", RESTART_POLICIES)
    yield from _one_of(spec.get("dnsPolicy", ""), f"{path}.dnsPolicy", DNS_POLICIES)
    if spec.get("nodeSelector"):
        yield from validate_labels(spec["nodeSelector"], f"{path}.nodeSelector")
    yield from pod_security.pod_security_context(spec, f"{path}.securityContext", leeway)
    if spec.get("affinity"):
        yield from validate_affinity(spec["affinity"], f"{path}.affinity", leeway.node_affinity_values, leeway.affinity_values)
    if spec.get("dnsConfig") is not None or spec.get("dnsPolicy") == "None":
        yield from _dns_config(spec.get("dnsConfig"), spec.get("dnsPolicy", ""), f"{path}.dnsConfig")
    for i, gate in enumerate(spec.get("readinessGates") or ()):
        condition = gate.get("conditionType", "")
        yield from messages(f"{path}.readinessGates[{i}].conditionType", condition, names.is_qualified_name(condition))
    if spec.get("schedulingGates"):
        yield from _scheduling_gates(spec["schedulingGates"], f"{path}.schedulingGates")
    if spec.get("topologySpreadConstraints"):
        yield from validate_topology_spread(spec["topologySpreadConstraints"], f"{path}.topologySpreadConstraints",
                                            leeway.spread_keys, leeway.spread_selectors)
    yield from pod_security.host_process(spec, path)
    yield from pod_security.host_users(spec, path, leeway)
    if spec.get("hostnameOverride") is not None:
        yield from _hostname_override(spec["hostnameOverride"], spec, f"{path}.hostnameOverride")
    yield from _names(spec, path)
    if spec.get("tolerations"):
        yield from validate_tolerations(spec["tolerations"], f"{path}.tolerations", leeway.comparisons)
    for i, alias in enumerate(spec.get("hostAliases") or ()):
        yield from validate_legacy_ip(f"{path}.hostAliases[{i}].ip", alias.get("ip", ""))
        for j, host in enumerate(alias.get("hostnames") or ()):
            yield from messages(f"{path}.hostAliases[{i}].hostnames[{j}]", host, names.is_dns1123_subdomain(host))
    yield from _classes(spec, path, claims, leeway)
    yield from pod_security.operating_system(spec, path)
    if (group := spec.get("schedulingGroup")) is not None:
        yield from _scheduling_group(group, f"{path}.schedulingGroup.podGroupName")
    yield from _file_key_volumes(spec, path)


def _one_of(value: str, path: str, allowed: tuple[str, ...]) -> Errors:
    if not value:
        yield required(path)
    elif value not in allowed:
        yield not_supported(path, value, allowed)


def _names(spec: Object, path: str) -> Errors:
    for field, check in (("serviceAccountName", names.is_dns1123_subdomain), ("nodeName", names.is_dns1123_subdomain)):
        if spec.get(field):
            yield from messages(f"{path}.{field}", spec[field], check(spec[field]))
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2147483647:
        yield invalid(f"{path}.activeDeadlineSeconds", deadline, names.between(1, 2147483647))
    for field in ("hostname", "subdomain"):
        if spec.get(field):
            yield from messages(f"{path}.{field}", spec[field], names.is_dns1123_label(spec[field]))


def _classes(spec: Object, path: str, claims: set[str], leeway: Leeway) -> Errors:
    if spec.get("priorityClassName"):
        yield from messages(f"{path}.priorityClassName", spec["priorityClassName"], names.is_dns1123_subdomain(spec["priorityClassName"]))
    if (runtime := spec.get("runtimeClassName")) is not None:
        yield from messages(f"{path}.runtimeClassName", runtime, names.is_dns1123_subdomain(runtime))
    if (policy := spec.get("preemptionPolicy")) is not None:
        yield from _one_of(policy, f"{path}.preemptionPolicy", ("PreemptLowerPriority", "Never"))
    if spec.get("overhead"):
        yield from requirements({"limits": spec["overhead"]}, f"{path}.overhead", (), leeway.huge_pages)


# Resources ---------------------------------------------------------------------------------------------------------------------

def _resource_claims(claims: list[Object], path: str, pod_meta: Object | None) -> Errors:
    seen: set[str] = set()
    static = MIRROR in ((pod_meta or {}).get("annotations") or {})
    for i, claim in enumerate(claims):
        if static:
            yield forbidden("", "static pods do not support resource claims")
            continue
        here, name = f"{path}[{i}]", claim.get("name", "")
        own, template = claim.get("resourceClaimName"), claim.get("resourceClaimTemplateName")
        if not name:
            yield required(f"{here}.name")
        elif name in seen:
            yield duplicate(f"{here}.name", name)
        else:
            yield from messages(f"{here}.name", name, names.is_dns1123_label(name))
            seen.add(name)
        if own is not None and template is not None:
            yield invalid(here, struct("PodResourceClaim", claim),
                          "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
        if own is None and template is None:
            yield invalid(here, struct("PodResourceClaim", claim),
                          "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
        for field, value in (("resourceClaimName", own), ("resourceClaimTemplateName", template)):
            if value is not None:
                yield from messages(f"{here}.{field}", value, names.is_dns1123_subdomain(value))


def _pod_resources(spec: Object, path: str, os: str | None, claims: set[str], leeway: Leeway) -> Errors:
    """Pod-level resources (KEP-2837) against the containers'."""
    own = spec["resources"]
    if os == "windows":
        yield forbidden(path, "may not be set for a windows pod")
        return
    if own.get("claims") is not None:
        yield forbidden(f"{path}.claims", "claims may not be set for Resources at pod-level")
    yield from requirements(own, path, claims, leeway.huge_pages, pod_resource_name)
    requests, limits = own.get("requests") or {}, own.get("limits") or {}
    for name, total in sum_containers(spec, "requests").items():
        if name in requests and compare(total, requests[name]) > 0:
            yield invalid(f"{path}.requests[{name}]", parse(requests[name]).text,
                          f"must be greater than or equal to aggregate container requests of {parse(total).text}")
    for name, total in sum_containers(spec, "limits").items():
        if is_huge_page(name) and name in limits and compare(total, limits[name]) > 0:
            yield invalid(f"{path}.limits[{name}]", parse(limits[name]).text,
                          f"must be greater than or equal to aggregate container limits of {parse(total).text}")
    for i, c in enumerate(spec.get("containers") or ()):
        for name, limit in ((c.get("resources") or {}).get("limits") or {}).items():
            if name in limits and compare(limit, limits[name]) > 0:
                yield invalid(f"{path}.containers[{i}][{name}].limits", parse(limit).text,
                              f"must be less than or equal to pod limits of {parse(limits[name]).text}")


# Network -----------------------------------------------------------------------------------------------------------------------

def _host_network_ports(spec: Object, path: str, leeway: Leeway) -> Errors:
    for i, c in enumerate(spec.get("containers") or ()):
        for j, p in enumerate(c.get("ports") or ()):
            host = p.get("hostPort", 0)
            if (leeway.is_pod or host) and host != p.get("containerPort", 0):
                yield invalid(f"{path}.containers[{i}].ports[{j}].hostPort", host, "must match `containerPort` when `hostNetwork` is true")


def _dns_config(config: Object | None, policy: str, path: str) -> Errors:
    if policy == "None":
        if config is None:
            yield required(path, "must provide `dnsConfig` when `dnsPolicy` is None")
            return
        if not config.get("nameservers"):
            yield required(f"{path}.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` is None")
            return
    if config is None:
        return
    servers, searches = config.get("nameservers") or [], config.get("searches") or []
    if len(servers) > NAMESERVERS_MAX:
        yield invalid(f"{path}.nameservers", servers, f"must not have more than {NAMESERVERS_MAX} nameservers")
    for i, server in enumerate(servers):
        yield from validate_legacy_ip(f"{path}.nameservers[{i}]", server)
    if len(searches) > SEARCHES_MAX:
        yield invalid(f"{path}.searches", searches, f"must not have more than {SEARCHES_MAX} search paths")
    if names.size(" ".join(searches)) > SEARCH_BYTES_MAX:
        yield invalid(f"{path}.searches", searches,
                      f"must not have more than {SEARCH_BYTES_MAX} characters (including spaces) in the search list")
    for i, search in enumerate(searches):
        if search != ".":
            search = search.removesuffix(".")
            yield from messages(f"{path}.searches[{i}]", search, names.is_dns1123_subdomain_with_underscore(search))
    for i, option in enumerate(config.get("options") or ()):
        if not option.get("name"):
            yield required(f"{path}.options[{i}]", "must not be empty")


def _hostname_override(name: str, spec: Object, path: str) -> Errors:
    if spec.get("setHostnameAsFQDN"):
        yield forbidden(path, "may not be specified when setHostnameAsFQDN is true")
    if spec.get("hostNetwork"):
        yield forbidden(path, "may not be specified when hostNetwork is true")
    if names.size(name) > 64:
        yield too_long(path, 64)
    yield from messages(path, name, names.is_dns1123_subdomain(name))


# The rest ----------------------------------------------------------------------------------------------------------------------

def _scheduling_gates(gates: list[Object], path: str) -> Errors:
    seen: set[str] = set()
    for i, gate in enumerate(gates):
        name = gate.get("name", "")
        yield from messages(f"{path}[{i}]", name, names.is_qualified_name(name))
        if name in seen:
            yield duplicate(f"{path}[{i}]", name)
        seen.add(name)


def _scheduling_group(group: Object, path: str) -> Errors:
    name = group.get("podGroupName")
    if name is None:
        yield invalid(path, None, "must specify one of: `podGroupName`")
    else:
        yield from messages(path, name, names.is_dns1123_subdomain(name))


def _file_key_volumes(spec: Object, path: str) -> Errors:
    """Environment from files (KEP-3721): the file must lie in an emptyDir."""
    for c, here in containers_with_path(spec, path):
        for i, e in enumerate(c.get("env") or ()):
            ref = (e.get("valueFrom") or {}).get("fileKeyRef")
            if ref is not None:
                name, target = ref.get("volumeName", ""), f"{here}.env[{i}].valueFrom.fileKeyRef.volumeName"
                volume = next((v for v in spec.get("volumes") or () if v.get("name", "") == name), None)
                if volume is None:
                    yield not_found(target, name)
                elif volume.get("emptyDir") is None:
                    yield invalid(target, name, "referenced volume must be of type emptyDir")
