"""resource.k8s.io/v1 ResourceSlice: the devices of a driver's pool.

Lists as attribute values and mappings to node resources are behind gates that are off. Upstream: pkg/apis/resource/validation,
pkg/registry/resource/resourceslice.
"""

from __future__ import annotations

import re
import time
from itertools import pairwise
from typing import Any

from kubern.model import names
from kubern.model.invalid import forbidden, invalid, required, too_long, too_many
from kubern.model.kinds.checks import Errors, form, immutable, messages, same
from kubern.model.kinds.device_rules import (
    binding_conditions,
    driver_name,
    each,
    each_once,
    label,
    name_of,
    pool_name,
    qualified_name,
    taint,
)
from kubern.model.kinds.placement import validate_node_selector
from kubern.model.object import Object
from kubern.model.quantity import add, canonical, compare
from kubern.model.quantity import value as whole
from kubern.model.time import rfc3339

DEVICES_MAX, ADVANCED_DEVICES_MAX, TAINTS_MAX, ENTRIES_MAX, VALUES_MAX = 128, 64, 16, 32, 48
COUNTER_SETS_MAX, COUNTERS_MAX, CONSUMPTIONS_MAX = 8, 32, 2
KEY_MAX, LABEL_MAX, VALUE_MAX, OPTIONS_MAX = 63 + 1 + 32, 63, 64, 10
LISTS = ("bools", "ints", "strings", "versions")
VALUES = ("bool", "int", "string", "version")
EXACTLY_ONE = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
ONE_A_DEVICE = ("exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the "
                "ResourceSlice spec")
_NUMBER, _PART = r"(0|[1-9]\d*)", r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_semver = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_PART}(\.{_PART})*)?(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?", re.ASCII).fullmatch


def default_slice(obj: Object) -> None:
    for d in (obj.get("spec") or {}).get("devices") or ():
        for t in d.get("taints") or ():
            if not t.get("timeAdded"):
                t["timeAdded"] = rfc3339(int(time.time()))


def drop_disabled(new: Object, old: Object | None = None) -> None:
    before = ((old or {}).get("spec") or {}).get("devices") or ()
    lists = any(a.get(f) is not None for d in before for a in (d.get("attributes") or {}).values() for f in LISTS)
    mappings = any(d.get("nodeAllocatableResourceMappings") for d in before)
    for d in (new.get("spec") or {}).get("devices") or ():
        if not mappings:
            d.pop("nodeAllocatableResourceMappings", None)
        if not lists:
            for a in (d.get("attributes") or {}).values():
                for f in LISTS:
                    a.pop(f, None)


def validate_slice(obj: Object, old: Object | None = None) -> Errors:
    spec, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
    pool = spec.get("pool") or {}
    yield from driver_name(spec.get("driver") or "", "spec.driver")
    yield from pool_name(pool.get("name") or "", "spec.pool.name")
    if (pool.get("resourceSliceCount") or 0) <= 0:
        yield invalid("spec.pool.resourceSliceCount", pool.get("resourceSliceCount") or 0, "must be greater than zero")
    if (pool.get("generation") or 0) < 0:
        yield invalid("spec.pool.generation", pool["generation"], "must be greater than or equal to zero")
    if old is not None:
        yield from immutable(pool.get("name") or "", (before.get("pool") or {}).get("name") or "", "spec.pool.name")
        for field in ("driver", "nodeName"):
            yield from immutable(spec.get(field), before.get(field), f"spec.{field}")
    yield from _nodes(spec)
    if spec.get("sharedCounters") is not None and spec.get("devices") is not None:
        yield invalid("spec", "", "only one of `sharedCounters` or `devices` is allowed")
    devices, per_device = spec.get("devices") or (), bool(spec.get("perDeviceNodeSelection"))
    advanced = any(d.get("taints") or d.get("consumesCounters") or any(f in a for a in (d.get("attributes") or {}).values() for f in LISTS)
                   for d in devices)
    known = {name_of(d): d for d in reversed(before.get("devices") or ())}
    yield from each_once(devices, ADVANCED_DEVICES_MAX if advanced else DEVICES_MAX,
                         lambda d, path: _device(d, known.get(name_of(d)), path, per_device), name_of, "spec.devices")
    yield from each_once(spec.get("sharedCounters"), COUNTER_SETS_MAX, _counter_set, name_of, "spec.sharedCounters")


def _nodes(spec: Object) -> Errors:
    """Which nodes reach the devices: exactly one way of saying so."""
    ways, name, selector = [], spec.get("nodeName"), spec.get("nodeSelector")
    if name is not None:
        if name:
            ways.append("`nodeName`")
            yield from messages(name, names.is_dns1123_subdomain(name), "spec.nodeName")
        else:
            yield invalid("spec.nodeName", name, "must be either unset or set to a non-empty string")
    if selector is not None:
        ways.append("`nodeSelector`")
        yield from validate_node_selector(selector, "spec.nodeSelector")
        terms = selector.get("nodeSelectorTerms")
        if len(terms or ()) != 1:
            yield invalid("spec.nodeSelector.nodeSelectorTerms", form(terms, "NodeSelectorTerm"), "must have exactly one node selector term")
    for field in ("allNodes", "perDeviceNodeSelection"):
        if spec.get(field):
            ways.append(f"`{field}`")
        elif spec.get(field) is not None:
            yield invalid(f"spec.{field}", False, "must be either unset or set to true")
    if not ways:
        yield required("spec", EXACTLY_ONE)
    elif len(ways) > 1:
        yield invalid("spec", "{" + ", ".join(ways) + "}", f"{EXACTLY_ONE}, but multiple fields are set")


def _device(d: Object, before: Object | None, path: str, per_device: bool) -> Errors:
    attributes, capacity = d.get("attributes") or {}, d.get("capacity") or {}
    yield from label(d.get("name"), f"{path}.name")
    if len(attributes) + len(capacity) > ENTRIES_MAX:
        yield invalid(path, len(attributes) + len(capacity), f"the total number of attributes and capacities must not exceed {ENTRIES_MAX}")
    values = sum(sum(len(a.get(f) or ()) for f in LISTS) or 1 for a in attributes.values())
    if values > VALUES_MAX:
        yield invalid(path, values, f"the total number of attribute values must not exceed {VALUES_MAX}")
    for key, attribute in attributes.items():
        yield from qualified_name(key, f"{path}.attributes")
        yield from _attribute(attribute, f"{path}.attributes[{_short(key, KEY_MAX)}]")
    for key, c in capacity.items():
        yield from qualified_name(key, f"{path}.capacity")
        if c.get("requestPolicy") is not None:
            here = f"{path}.capacity[{_short(key, KEY_MAX)}].requestPolicy"
            if d.get("allowMultipleAllocations"):
                yield from _policy(str(c.get("value") or "0"), c["requestPolicy"], here)
            else:
                yield forbidden(here, "allowMultipleAllocations must be true")
    if before is None or not same(before.get("taints"), d.get("taints")):
        yield from each(d.get("taints"), TAINTS_MAX, taint, f"{path}.taints")
    yield from each_once(d.get("consumesCounters"), CONSUMPTIONS_MAX, _consumption, lambda c: c.get("counterSet") or "",
                         f"{path}.consumesCounters")
    if per_device:
        yield from _device_nodes(d, path)
    elif any(d.get(f) is not None for f in ("nodeName", "nodeSelector", "allNodes")):
        yield invalid(path, None, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in "
                      "the ResourceSlice spec")
    yield from binding_conditions(d, path)


def _device_nodes(d: Object, path: str) -> Errors:
    ways, name = [], d.get("nodeName")
    if name is not None:
        if name:
            ways.append("`nodeName`")
            yield from messages(name, names.is_dns1123_subdomain(name), f"{path}.nodeName")
        else:
            yield invalid(f"{path}.nodeName", name, "must not be empty")
    if d.get("nodeSelector") is not None:
        ways.append("`nodeSelector`")
        yield from validate_node_selector(d["nodeSelector"], f"{path}.nodeSelector")
    if d.get("allNodes"):
        ways.append("`allNodes`")
    elif d.get("allNodes") is not None:
        yield invalid(f"{path}.allNodes", False, "must be either unset or set to true")
    if not ways:
        yield required(path, ONE_A_DEVICE)
    elif len(ways) > 1:
        yield invalid(path, "{" + ", ".join(ways) + "}", ONE_A_DEVICE)


def _attribute(a: Object, path: str) -> Errors:
    for field, check in (("string", _text), ("version", _version)):
        if a.get(field) is not None:
            yield from check(a[field], f"{path}.{field}")
    for field in LISTS:
        if a.get(field) == []:
            yield invalid(f"{path}.{field}", [], "must not be empty if specified")
        for i, item in enumerate(a.get(field) or ()):
            if field == "strings":
                yield from _text(item, f"{path}.strings[{i}]")
            elif field == "versions":
                yield from _version(item, f"{path}.versions[{i}]")
    given = sum(a.get(f) is not None for f in VALUES + LISTS)
    if given != 1:
        yield invalid(path, form(a, "resource.DeviceAttribute") if given else "", "exactly one value must be specified")


def _text(value: str, path: str) -> Errors:
    if names.size(value) > VALUE_MAX:
        yield too_long(path, VALUE_MAX)


def _version(value: str, path: str) -> Errors:
    if not _semver(value):
        yield invalid(path, value, "must be a string compatible with semver.org spec 2.0.0")
    yield from _text(value, path)


# --- counters ---------------------------------------------------------------------------------------------------------------------------

def _counter_set(s: Object, path: str) -> Errors:
    yield from _named(s.get("name"), f"{path}.name")
    yield from _counters(s.get("counters"), f"{path}.counters")


def _consumption(c: Object, path: str) -> Errors:
    yield from _named(c.get("counterSet"), f"{path}.counterSet")
    yield from _counters(c.get("counters"), f"{path}.counters")


def _named(name: str | None, path: str) -> Errors:
    if not name:
        yield required(path)
    else:
        yield from label(name, path)


def _counters(counters: Object | None, path: str) -> Errors:
    if not counters:
        yield required(path)
    elif len(counters) > COUNTERS_MAX:
        yield too_many(path, len(counters), COUNTERS_MAX)
    else:
        for name in counters:
            yield from label(name, path)


def _short(key: str, limit: int) -> str:
    """A key in a path, without its middle where it is too long."""
    if len(key) <= limit:
        return key
    rest = limit - 3
    return key[:(rest + 1) // 2] + "..." + key[len(key) - rest // 2:]


# --- consumable capacity ----------------------------------------------------------------------------------------------------------------

def _policy(most: str, policy: Object, path: str) -> Errors:
    values, span, default = policy.get("validValues"), policy.get("validRange"), policy.get("default")
    if values and span is not None:
        yield forbidden(path, 'exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time')
    elif values or span is not None:
        if default is None:
            yield required(f"{path}.default", f"required when {'validValues' if values else 'validRange'} is defined")
        elif values:
            yield from _options(str(default), most, [str(v) for v in values], f"{path}.validValues")
        else:
            yield from _range(str(default), most, {k: str(v) for k, v in (span or {}).items() if v is not None}, f"{path}.validRange")


def _options(default: str, most: str, values: list[str], path: str) -> Errors:
    for i, (a, b) in enumerate(pairwise(values)):
        if compare(a, b) > 0:
            yield invalid(f"{path}[{i + 1}]", canonical(b), "values must be sorted in ascending order")

    def option(v: str, here: str) -> Errors:
        if compare(v, most) > 0:
            yield invalid(here, canonical(v), f"option is larger than capacity value: {canonical(most)}")

    yield from each_once(values, OPTIONS_MAX, option, lambda v: str(whole(v)), path)
    if len(values) > OPTIONS_MAX or not any(compare(v, default) == 0 for v in values):
        yield invalid(path, canonical(default), "default value is not valid according to the requestPolicy")


def _range(default: str, most: str, span: dict[str, Any], path: str) -> Errors:
    low, high, step = span.get("min"), span.get("max"), span.get("step")
    if low is None:
        yield required(f"{path}.min", "required when validRange is defined")
        return
    if compare(low, most) > 0:
        yield invalid(f"{path}.min", canonical(low), f"min is larger than capacity value: {canonical(most)}")
    if compare(default, low) < 0:
        yield invalid(f"{path}.min", canonical(default), f"default is less than min: {canonical(low)}")
    if high is not None:
        if compare(low, high) > 0:
            yield invalid(f"{path}.max", canonical(low), f"min is larger than max: {canonical(high)}")
        if compare(high, most) > 0:
            yield invalid(f"{path}.max", canonical(high), f"max is larger than capacity value: {canonical(most)}")
        if compare(default, high) > 0:
            yield invalid(f"{path}.max", canonical(default), f"default is more than max: {canonical(high)}")
    if step is None:
        return
    once = add(low, step)
    if compare(once, most) > 0:
        yield invalid(f"{path}.step", canonical(step), f"one step {once} is larger than capacity value: {canonical(most)}")
    for value in (default, *([high] if high is not None else [])):
        if whole(step) and (whole(value) - whole(low)) % whole(step):
            yield invalid(f"{path}.step", canonical(value), f"value is not a multiple of a given step ({canonical(step)}) from ({canonical(low)})")
