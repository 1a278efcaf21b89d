"""Rules that resource claims and slices share: names of drivers, pools and attributes, taints and tolerations, CEL selectors.

Upstream: pkg/apis/resource/validation/validation.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from kubern.model import names
from kubern.model.invalid import duplicate, invalid, not_supported, quote, required, too_long, too_many
from kubern.model.kinds.checks import Errors, messages
from kubern.model.kinds.expressions import device_selector
from kubern.model.kinds.labels import validate_label_name
from kubern.model.kinds.volumes import csi_driver_name
from kubern.model.object import Object

SELECTORS_MAX, EXPRESSION_MAX = 32, 10 * 1024
POOL_NAME_MAX, ID_MAX, OPAQUE_MAX, BINDING_CONDITIONS_MAX = 253, 32, 10 * 1024, 4
TAINT_EFFECTS = ("NoExecute", "NoSchedule", "None")
OPERATORS = ("Equal", "Exists")
OMITTED = "<value omitted>"

Check = Callable[[Any, str], Errors]
driver_name = csi_driver_name
_hex = re.compile(r"[0-9a-fA-F]{32}").fullmatch
_uuid = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


# --- lists ------------------------------------------------------------------------------------------------------------------------------

def each(items: Iterable[Any] | None, limit: int, check: Check, path: str) -> Errors:
    """A list of at most `limit` items; a longer one is not looked into."""
    items = list(items or ())
    if 0 <= limit < len(items):
        yield too_many(path, len(items), limit)
        return
    for i, item in enumerate(items):
        yield from check(item, f"{path}[{i}]")


def each_once(items: Iterable[Any] | None, limit: int, check: Check, key: Callable[[Any], Hashable], path: str,
              shown: Callable[[Any], Any] | None = None) -> Errors:
    """The same, and no two items with one key."""
    items = list(items or ())
    yield from each(items, limit, check, path)
    if 0 <= limit < len(items):
        return
    seen = set()
    for i, item in enumerate(items):
        k = key(item)
        if k in seen:
            yield duplicate(f"{path}[{i}]", shown(item) if shown else k)
        seen.add(k)


def name_of(item: Object) -> str:
    return item.get("name") or ""


def itself(item: str) -> str:
    return item


# --- names ------------------------------------------------------------------------------------------------------------------------------

def label(value: str | None, path: str) -> Errors:
    yield from messages(value or "", names.is_dns1123_label(value or ""), path)


def pool_name(value: str, path: str) -> Errors:
    if not value:
        yield required(path)
        return
    if names.size(value) > POOL_NAME_MAX:
        yield too_long(path, POOL_NAME_MAX)
    for part in value.split("/"):
        yield from messages(part, names.is_dns1123_subdomain(part), path)


def identifier(value: str, path: str) -> Errors:
    if names.size(value) > ID_MAX:
        yield too_long(path, ID_MAX)
    yield from messages(value, names.is_c_identifier(value), path)


def qualified_name(value: str, path: str) -> Errors:
    """NAME or DOMAIN/NAME; more slashes pass, as upstream."""
    parts = value.split("/")
    if len(parts) == 1:
        yield from identifier(value, path)
    elif len(parts) == 2:
        if not parts[0]:
            yield invalid(path, "", "the domain must not be empty")
        else:
            yield from driver_name(parts[0], path)
        if not parts[1]:
            yield invalid(path, "", "the name must not be empty")
        else:
            yield from identifier(parts[1], path)


def fully_qualified_name(value: str, path: str) -> Errors:
    yield from qualified_name(value, path)
    if "/" not in value:
        yield invalid(path, value, "a fully qualified name must be a domain and a name separated by a slash")


def uuid(value: str, path: str) -> Errors:
    """RFC 4122, as google/uuid words what is wrong; the other forms that it reads are not the normal one."""
    why = _uuid_error(value)
    if why:
        yield invalid(path, value, f"error validating uid: {why}")
    elif len(value) != 36 or value != value.lower():
        yield invalid(path, value, "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase "
                      "hexadecimal characters")


def _uuid_error(value: str) -> str:
    size = names.size(value)
    if size == 32:
        return "" if _hex(value) else "invalid UUID format"
    if size == 45 and value[:9].lower() != "urn:uuid:":
        return f"invalid urn prefix: {quote(value[:9])}"
    if size == 38 and (value[0] != "{" or value[-1] != "}"):
        return "invalid bracketed UUID format"
    if size not in (36, 38, 45):
        return f"invalid UUID length: {size}"
    return "" if _uuid(value[9:] if size == 45 else value.strip("{}")) else "invalid UUID format"


# --- taints, tolerations, conditions ----------------------------------------------------------------------------------------------------

def taint(t: Object, path: str) -> Errors:
    yield from validate_label_name(t.get("key") or "", f"{path}.key")
    value, effect = t.get("value") or "", t.get("effect") or ""
    if value:
        yield from messages(value, names.is_label_value(value), f"{path}.value")
    if not effect:
        yield required(f"{path}.effect")
    elif effect not in TAINT_EFFECTS:
        yield not_supported(f"{path}.effect", effect, TAINT_EFFECTS)


def toleration(t: Object, path: str) -> Errors:
    key, operator, value, effect = (t.get(f) or "" for f in ("key", "operator", "value", "effect"))
    if key:
        yield from validate_label_name(key, f"{path}.key")
    if operator == "Exists":
        if value:
            yield invalid(f"{path}.value", value, "must be empty for operator `Exists`")
    elif operator == "Equal":
        yield from messages(value, names.is_label_value(value), f"{path}.value")
    elif not operator:
        yield required(f"{path}.operator")
    else:
        yield not_supported(f"{path}.operator", operator, OPERATORS)
    if effect and effect not in TAINT_EFFECTS:
        yield not_supported(f"{path}.effect", effect, TAINT_EFFECTS)


def binding_conditions(holder: Object, path: str) -> Errors:
    """bindingConditions and bindingFailureConditions: both or none, and nothing in both."""
    good, bad = holder.get("bindingConditions") or [], holder.get("bindingFailureConditions") or []
    here, there = f"{path}.bindingConditions", f"{path}.bindingFailureConditions"
    yield from each(good, BINDING_CONDITIONS_MAX, validate_label_name, here)
    yield from each(bad, BINDING_CONDITIONS_MAX, validate_label_name, there)
    seen = set()
    for i, c in enumerate(good):
        if c in seen:
            yield duplicate(f"{here}[{i}]", c)
        seen.add(c)
    failures = set()
    for i, c in enumerate(bad):
        if c in failures:
            yield duplicate(f"{there}[{i}]", c)
        failures.add(c)
        if c in seen:
            yield invalid(f"{there}[{i}]", c, "bindingFailureConditions must not overlap with bindingConditions")
    if bad and not good:
        yield invalid(here, holder.get("bindingConditions"), "bindingConditions are required to use bindingFailureConditions")
    if good and not bad:
        yield invalid(there, holder.get("bindingFailureConditions"), "bindingFailureConditions are required to use bindingConditions")


# --- selectors and opaque configuration -------------------------------------------------------------------------------------------------

def selectors(items: list[Object] | None, path: str, stored: bool = False) -> Errors:
    """stored: the expressions are those that the object already had."""

    def check(item: Object, here: str) -> Errors:
        cel = item.get("cel")
        if cel is None:
            yield required(f"{here}.cel")
            return
        expression = cel.get("expression") or ""
        if names.size(expression) > EXPRESSION_MAX:
            yield too_long(f"{here}.cel.expression", EXPRESSION_MAX)
        elif not stored:
            yield from device_selector(expression, f"{here}.cel.expression")

    yield from each(items, SELECTORS_MAX, check, path)


def configuration(config: Object, path: str, stored: bool = False) -> Errors:
    opaque = config.get("opaque")
    if opaque is None:
        yield required(f"{path}.opaque")
        return
    yield from driver_name(opaque.get("driver") or "", f"{path}.opaque.driver")
    yield from raw_object(opaque.get("parameters"), f"{path}.opaque.parameters", OPAQUE_MAX, stored)


def raw_object(value: Any, path: str, limit: int, stored: bool = False) -> Errors:
    """A JSON object of a driver's own, as upstream's RawExtension."""
    if value is None:
        yield required(path)
    elif not stored and names.size(json.dumps(value, separators=(",", ":"), ensure_ascii=False)) > limit:
        yield too_long(path, limit)
    elif not isinstance(value, dict):
        yield invalid(path, OMITTED, "must be a valid JSON object")


