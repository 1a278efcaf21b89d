"""Node: defaults, strategy, validation.

Upstream: pkg/registry/core/node/strategy.go, pkg/apis/core/validation (ValidateNode, ValidateNodeUpdate).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from kubern.model import names
from kubern.model.addresses import cidr_warnings, is_dual_stack, parse_cidr, validate_legacy_cidr
from kubern.model.invalid import FieldError, duplicate, forbidden, internal, invalid, required
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import annotations_of, messages
from kubern.model.kinds.placement import validate_taints
from kubern.model.kinds.pod_defaults import default_resource_list
from kubern.model.kinds.resource_rules import quantity_value
from kubern.model.object import Object

Errors = Iterator[FieldError]
TAINTS, AVOID = "scheduler.alpha.kubernetes.io/taints", "scheduler.alpha.kubernetes.io/preferAvoidPods"
_feature = re.compile(r"[A-Z][a-zA-Z0-9]*(/[a-zA-Z][a-zA-Z0-9]*)*").fullmatch


def defaults(node: Object) -> None:
    spec, status = node.setdefault("spec", {}), node.setdefault("status", {})
    if status.get("allocatable") is None and status.get("capacity") is not None:
        status["allocatable"] = dict(status["capacity"])
    default_resource_list(status.get("capacity"))
    default_resource_list(status.get("allocatable"))
    cidr, cidrs = spec.get("podCIDR"), spec.get("podCIDRs")        # two spellings of one fact; the older wins
    if cidr and (not cidrs or cidrs[0] != cidr):
        spec["podCIDRs"] = [cidr]
    elif cidrs and not cidr:
        spec["podCIDR"] = cidrs[0]


def prepare_create(node: Object) -> None:
    node.get("spec", {}).pop("configSource", None)
    node.get("status", {}).pop("config", None)


def prepare_update(new: Object, old: Object) -> None:
    new["status"] = old.get("status") or {}
    if not (old.get("spec") or {}).get("configSource"):
        new.setdefault("spec", {}).pop("configSource", None)


def prepare_status(new: Object, old: Object) -> None:
    new["spec"] = old.get("spec") or {}
    if not (old.get("status") or {}).get("config"):
        new.setdefault("status", {}).pop("config", None)


def _annotations(node: Object) -> Errors:
    marks, path = annotations_of(node), "metadata.annotations"
    if marks.get(TAINTS):
        yield from _parsed(marks[TAINTS], path, TAINTS, lambda v: validate_taints(v or [], f"{path}.{TAINTS}"))
    if marks.get(AVOID):
        yield from _parsed(marks[AVOID], f"{path}.AvoidPods", AVOID, lambda v: _avoid(v, f"{path}.{AVOID}"))


def _parsed(text: str, path: str, key: str, check: Any) -> Errors:
    try:
        found = list(check(orjson.loads(text)))
    except (orjson.JSONDecodeError, AttributeError, TypeError) as e:
        yield invalid(path, key, str(e))
        return
    yield from found


def _avoid(value: Object, path: str) -> Errors:
    for i, entry in enumerate(value.get("preferAvoidPods") or ()):
        controller = (entry.get("podSignature") or {}).get("podController")
        if controller is None:
            yield required(f"{path}[{i}].PodSignature")
        elif not controller.get("controller"):
            yield invalid(f"{path}[{i}].PodSignature.PodController.Controller", False, "must point to a controller")


def _resources(status: Object) -> Errors:
    for field in ("capacity", "allocatable"):
        for name, amount in (status.get(field) or {}).items():
            yield from quantity_value(name, amount, f"status.{field}.{name}")


def _features(status: Object) -> Errors:
    features = status.get("declaredFeatures") or []
    for i, feature in enumerate(features):
        here = f"status.declaredFeatures[{i}]"
        if names.size(feature) > 253:
            yield invalid(here, feature, f'invalid feature name "{feature}": must be no more than 253 characters')
        elif not _feature(feature):
            yield invalid(here, feature, f'invalid feature name "{feature}": must start with an UpperCamelCase segment, with subsequent segments '
                          "separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes")
        following = features[i + 1] if i + 1 < len(features) else None
        if following == feature:
            yield duplicate(f"status.declaredFeatures[{i + 1}]", following)
        elif following is not None and feature > following:
            yield invalid(f"status.declaredFeatures[{i + 1}]", following, "list must be sorted alphabetically")


def validate(node: Object) -> list[FieldError]:
    return list(_validate(node))


def _validate(node: Object) -> Errors:
    spec, status = node.get("spec") or {}, node.get("status") or {}
    yield from _annotations(node)
    if spec.get("taints"):
        yield from validate_taints(spec["taints"], "metadata.taints")
    yield from _resources(status)
    swap = ((status.get("nodeInfo") or {}).get("swap") or {}).get("capacity")
    if swap is not None and swap <= 0:
        yield invalid("metadata.nodeSwapStatus.capacity", swap, "must be greater than zero")
    yield from _features(status)
    cidrs = spec.get("podCIDRs") or []
    for i, cidr in enumerate(cidrs):
        yield from validate_legacy_cidr(f"spec.podCIDRs[{i}]", cidr)
    bad = next((i for i, cidr in enumerate(cidrs) if parse_cidr(cidr) is None), None)
    if len(cidrs) > 1 and bad is not None:
        yield internal("spec.podCIDRs", "invalid PodCIDRs. failed to check with dual stack with error:"
                       f"invalid CIDR[{bad}]: <nil> (invalid CIDR address: {cidrs[bad]})")
    if len(cidrs) > 1 and (len(cidrs) > 2 or not is_dual_stack(cidrs)):
        yield invalid("spec.podCIDRs", cidrs, "may specify no more than one CIDR for each IP family")


def validate_update(new: Object, old: Object) -> list[FieldError]:
    return [*_validate(new), *_update(new, old)]


def validate_status(new: Object, old: Object) -> list[FieldError]:
    return list(_update(new, old))


def _update(new: Object, old: Object) -> Errors:
    spec, status, before = new.get("spec") or {}, new.get("status") or {}, old.get("spec") or {}
    yield from _annotations(new)
    yield from _resources(status)
    yield from _features(status)
    seen: list[Object] = []
    for i, address in enumerate(status.get("addresses") or ()):
        if address in seen:
            yield duplicate(f"status.addresses[{i}]", struct("NodeAddress", address))
        seen.append(address)
    fixed = 'node updates may not change podCIDR except from "" to valid'
    cidrs, were = spec.get("podCIDRs") or [], before.get("podCIDRs") or []
    if were and len(cidrs) != len(were):
        yield forbidden("spec.podCIDRs", fixed)
    elif were:
        for cidr, was in zip(cidrs, were, strict=True):
            if cidr != was:
                yield forbidden("spec.podCIDRs", fixed)
    if before.get("providerID") and spec.get("providerID", "") != before["providerID"]:
        yield forbidden("spec.providerID", 'node updates may not change providerID except from "" to valid')
    if (source := spec.get("configSource")) is not None:
        yield from _config_source(source, "spec.configSource", stored=False)
    for part in ("assigned", "active", "lastKnownGood"):
        if (source := (status.get("config") or {}).get(part)) is not None:
            yield from _config_source(source, f"status.config.{part}", stored=True)
    if spec.get("taints"):
        yield from validate_taints(spec["taints"], "metadata.taints")
    if spec.get("externalID", "") != before.get("externalID", ""):
        yield forbidden("spec.externalID", "may not be updated")


def _config_source(source: Object, path: str, stored: bool) -> Errors:
    """Dynamic kubelet configuration: gone, but still checked where it is stored."""
    config = source.get("configMap")
    if config is None:
        yield invalid(path, struct("NodeConfigSource", source), "exactly one reference subfield must be non-nil")
        return
    here = f"{path}.configMap"
    for field in ("uid", "resourceVersion"):
        if stored and not config.get(field):
            yield required(f"{here}.{field}")
        elif not stored and config.get(field):
            yield forbidden(f"{here}.{field}", f"{field} must not be set in spec")
    for field, check in (("namespace", names.is_dns1123_label), ("name", names.is_dns1123_subdomain), ("kubeletConfigKey", names.is_config_map_key)):
        if not config.get(field):
            yield required(f"{here}.{field}")
        else:
            yield from messages(f"{here}.{field}", config[field], check(config[field]))


def warnings(node: Object, old: Object | None) -> list[str]:
    spec, out = node.get("spec") or {}, []
    if spec.get("configSource") is not None:
        out.append("spec.configSource: the feature is removed")
    if spec.get("externalID"):
        out.append("spec.externalID: this field is deprecated, and is unused by Kubernetes")
    for i, cidr in enumerate(spec.get("podCIDRs") or ()):
        out += cidr_warnings(f"spec.podCIDRs[{i}]", cidr)
    return out


KINDS: KindTable = {
    ("", "Node"): Kind(meta_again=1, defaults=defaults, prepare_create=prepare_create, prepare_update=prepare_update, prepare_status=prepare_status,
                       validate=validate, validate_update=validate_update, validate_status=validate_status, warnings=warnings),
}
