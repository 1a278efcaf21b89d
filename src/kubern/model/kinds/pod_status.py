"""Validation of a Pod's status.

Upstream: pkg/apis/core/validation (ValidatePodStatusUpdate), KEP-4680 (device health), KEP-5067 (observed generations).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kubern.model import names
from kubern.model.addresses import is_dual_stack, unreadable, validate_legacy_ip
from kubern.model.invalid import FieldError, duplicate, forbidden, internal, invalid, not_supported, required, too_long
from kubern.model.kinds.internal_form import structs
from kubern.model.kinds.labels import IMMUTABLE, messages
from kubern.model.kinds.pod_change import annotation_changes, leeway_of
from kubern.model.kinds.pod_prepare import spec_of
from kubern.model.kinds.pod_resources import is_native
from kubern.model.kinds.pod_security import containers_with_path
from kubern.model.object import Object
from kubern.model.quantity import compare

Errors = Iterator[FieldError]
_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


def validate_status(new: Object, old: Object) -> list[FieldError]:
    return list(_status(new, old))


def _status(new: Object, old: Object) -> Errors:
    status, before, spec, old_spec = new.get("status") or {}, old.get("status") or {}, spec_of(new), spec_of(old)
    yield from annotation_changes(new, old, leeway_of(old))
    for i, c in enumerate(status.get("conditions") or ()):
        if c.get("observedGeneration", 0) < 0:
            yield invalid(f"status.conditions[{i}].observedGeneration", c["observedGeneration"], "must be a non-negative integer")
        if c.get("type", "") not in ("PodScheduled", "Ready", "Initialized"):
            yield from messages(f"status.conditions[{i}].Type", c.get("type", ""), names.is_qualified_name(c.get("type", "")))
    if spec.get("nodeName", "") != old_spec.get("nodeName", ""):
        yield forbidden("status.nodeName", "may not be changed directly")
    nominated = status.get("nominatedNodeName", "")
    if nominated and nominated != before.get("nominatedNodeName", ""):
        yield from messages("status.nominatedNodeName", nominated, names.is_dns1123_subdomain(nominated))
        if old_spec.get("nodeName"):
            yield forbidden("status.nominatedNodeName", "may not be set on pods that are already bound to a node")
    if status.get("observedGeneration", 0) < 0:
        yield invalid("status.observedGeneration", status["observedGeneration"], "must be a non-negative integer")
    if status.get("qosClass", "") != before.get("qosClass", ""):
        yield invalid("status.qosClass", status.get("qosClass", ""), IMMUTABLE)
    if not _all_may_restart(old_spec):
        for field, which in (("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")):
            yield from _no_resurrection(status, before, field, old_spec.get(which) or [], old_spec)
    yield from _no_resurrection(status, before, "ephemeralContainerStatuses", [], old_spec)
    yield from _claim_statuses(status, spec)
    if (extended := status.get("extendedResourceClaimStatus")) is not None:
        yield from _extended_claim(extended, spec, "status.extendedResourceClaimStatus")
    yield from _node_claims(status, spec)
    yield from _addresses(status, before)
    for field in _STATUSES:
        yield from _users(status.get(field) or (), f"status.{field}", (spec.get("os") or {}).get("name", "linux"))
    for field, which in (("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")):
        yield from _device_health(status.get(field) or (), f"status.{field}", spec.get(which) or ())
    for i, s in enumerate(status.get("ephemeralContainerStatuses") or ()):
        if s.get("allocatedResourcesStatus"):
            yield forbidden(f"status.ephemeralContainerStatuses[{i}].allocatedResourcesStatus", "must not be specified in container status")


def _no_resurrection(new: Object, old: Object, field: str, containers: Sequence[Object], spec: Object) -> Errors:
    """A container that ended for good stays ended."""
    now = {s.get("name"): s for s in reversed(new.get(field) or [])}
    for i, was in enumerate(old.get(field) or ()):
        ended = (was.get("state") or {}).get("terminated")
        current = now.get(was.get("name"))
        if ended is None or current is None or (current.get("state") or {}).get("terminated") is not None:
            continue
        container = next((c for c in containers if c.get("name") == was.get("name")), None)
        if container is None or not may_restart(container, spec, ended.get("exitCode", 0)):
            yield forbidden(f"status.{field}[{i}].state", "may not be transitioned to non-terminated state")


def _all_may_restart(spec: Object) -> bool:
    """Some rule restarts all containers of the pod at once."""
    return any(r.get("action") == "RestartAllContainers" for c, _ in containers_with_path(spec, "") for r in c.get("restartPolicyRules") or ())


def may_restart(container: Object, spec: Object, exit_code: int) -> bool:
    """Whether a container that ended with this code is started again: its rules, its policy, then the pod's (KEP-5307)."""
    for rule in container.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        if (exit_code in (codes.get("values") or ())) == (codes.get("operator") == "In"):
            return True
    policy = container.get("restartPolicy") or spec.get("restartPolicy", "")
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def _claim_statuses(status: Object, spec: Object) -> Errors:
    known = {c.get("name", "") for c in spec.get("resourceClaims") or ()}
    seen: set[str] = set()
    for i, s in enumerate(status.get("resourceClaimStatuses") or ()):
        here, name = f"status.resourceClaimStatuses[{i}]", s.get("name", "")
        if name not in known:
            yield invalid(f"{here}.name", name, "must match the name of an entry in `spec.resourceClaims`")
        if name in seen:
            yield duplicate(f"{here}.name", name)
        seen.add(name)
        if (claim := s.get("resourceClaimName")) is not None:
            yield from messages(f"{here}.resourceClaimName", claim, names.is_dns1123_subdomain(claim))


def _extended_claim(status: Object, spec: Object, path: str) -> Errors:
    containers = {c.get("name", ""): c for which in ("initContainers", "containers") for c in spec.get(which) or ()}
    mappings = status.get("requestMappings") or []
    if not mappings:
        yield required(f"{path}.requestMappings", "at least one request mapping is required")
    seen: set[tuple[str, ...]] = set()
    for i, m in enumerate(mappings):
        here, key = f"{path}.requestMappings[{i}]", tuple(m.get(f, "") for f in ("containerName", "resourceName", "requestName"))
        container = containers.get(key[0])
        if container is None:
            yield invalid(f"{here}.containerName", key[0], "must match the name of an entry in spec.initContainers.name or spec.containers.name")
        elif key[1] not in ((container.get("resources") or {}).get("requests") or {}):
            yield invalid(f"{here}.resourceName", key[1], "must match the extended resource name of an entry in "
                          "spec.initContainers.resources.requests or spec.containers.resources.requests")
        yield from messages(f"{path}.requestName", key[2], names.is_dns1123_label(key[2]))
        if key in seen:
            for field, value in zip(("containerName", "resourceName", "requestName"), key, strict=True):
                yield duplicate(f"{here}.{field}", value)
        seen.add(key)
    name = status.get("resourceClaimName", "")
    if not name:
        yield required(f"{path}.resourceClaimName")
    else:
        yield from messages(f"{path}.resourceClaimName", name, names.is_dns1123_subdomain(name))


def _node_claims(status: Object, spec: Object) -> Errors:
    known = {c.get("resourceClaimName") for c in (*(spec.get("resourceClaims") or ()), *(status.get("resourceClaimStatuses") or ()))}
    for i, s in enumerate(status.get("nodeAllocatableResourceClaimStatuses") or ()):
        here, name = f"status.nodeAllocatableResourceClaimStatuses[{i}]", s.get("resourceClaimName", "")
        if not name:
            yield required(f"{here}.resourceClaimName", "must not be empty")
        if not name or name not in known:
            yield invalid(f"{here}.resourceClaimName", name, "no mapping found in pod reference")
        for field in ("containers", "resources"):
            if not s.get(field):
                yield required(f"{here}.{field}", "must not be empty")
        for resource, amount in (s.get("resources") or {}).items():
            if not is_native(resource):
                yield invalid(f"{here}.resources[{resource}]", resource, "must be a node allocatable resource name")
            if compare(amount, "0") < 0:
                yield invalid(f"{here}.resources[{resource}]", amount, "must be non-negative")


def _addresses(status: Object, before: Object) -> Errors:
    for field, type_ in (("podIPs", "PodIP"), ("hostIPs", "HostIP")):
        entries = status.get(field) or []
        ips = [e.get("ip", "") for e in entries]
        if field == "hostIPs" and ips and status.get("hostIP", "") != ips[0]:
            yield invalid("status.hostIPs[0].ip", ips[0], "must be equal to `hostIP`")
        old = [e.get("ip", "") for e in before.get(field) or ()]
        for i, ip in enumerate(ips):
            yield from validate_legacy_ip(f"status.{field}[{i}]", ip, old)
        if len(ips) > 1 and (why := unreadable(ips)):
            yield internal(f"status.{field}", f"failed to check for dual stack with error:{why}")
        if len(ips) > 1 and (len(ips) > 2 or not is_dual_stack(ips)):
            yield invalid(f"status.{field}", structs(type_, entries), "may specify no more than one IP for each IP family")


def _users(statuses: Sequence[Object], path: str, os: str) -> Errors:
    for i, s in enumerate(statuses):
        linux = (s.get("user") or {}).get("linux")
        if linux is None:
            continue
        here = f"{path}[{i}].user.linux"
        if os == "windows":
            yield forbidden(here, "cannot be set for a windows pod")
        elif os == "linux":
            for field in ("uid", "gid"):
                yield from messages(f"{here}.{field}", linux.get(field, 0), names.is_user_id(linux.get(field, 0)))
            for j, gid in enumerate(linux.get("supplementalGroups") or ()):
                yield from messages(f"{here}.supplementalGroups[{j}]", gid, names.is_user_id(gid))


_HEALTH = ("Healthy", "Unhealthy", "Unknown")


def _device_health(statuses: Sequence[Object], path: str, containers: Sequence[Object]) -> Errors:
    for i, s in enumerate(statuses):
        container = next((c for c in containers if c.get("name") == s.get("name")), None)
        for j, r in enumerate(s.get("allocatedResourcesStatus") or ()):
            here, name = f"{path}[{i}].allocatedResourcesStatus[{j}]", r.get("name", "")
            if container is not None:
                resources = container.get("resources") or {}
                if name.startswith("claim:"):
                    known = {f"claim:{c.get('name', '')}" + (f"/{c['request']}" if c.get("request") else "") for c in resources.get("claims") or ()}
                    why = ("must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or "
                           "'claim:<claimName>' if request is empty")
                else:
                    known, why = set(resources.get("requests") or ()), "must match one of the container's resource requests"
                if name not in known:
                    yield invalid(f"{here}.name", name, why)
            seen: set[str] = set()
            for k, device in enumerate(r.get("resources") or ()):
                there, health, text = f"{here}.resources[{k}]", device.get("health", ""), device.get("message")
                if health not in _HEALTH:
                    yield not_supported(f"{there}.health", health, _HEALTH)
                if text == "":
                    yield required(f"{there}.message", "must be non-empty if specified")
                elif text is not None and names.size(text) > 1024:
                    yield too_long(f"{there}.message", 1024)
                if device.get("resourceID", "") in seen:
                    yield duplicate(f"{there}.resourceID", device.get("resourceID", ""))
                seen.add(device.get("resourceID", ""))
