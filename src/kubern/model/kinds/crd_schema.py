"""The openAPIV3Schema of a custom resource: which keywords may stand where, list and map types, validation rules, defaults.

Whether it is structural: crd_structural.py. Whether rules compile and defaults are valid values is asked of the engines that run them
(model/cel/, model/custom.py), where they are there. Upstream: ValidateCustomResourceDefinitionOpenAPISchema in
apiextensions-apiserver pkg/apis/apiextensions/validation, structural defaulting validation.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from kubern.model.invalid import FieldError, forbidden, invalid, not_supported, required
from kubern.model.kinds.checks import Errors
from kubern.model.kinds.crd_structural import conversion_error, validate_structural
from kubern.model.object import Object

TYPES = ("array", "boolean", "integer", "number", "object", "string")
REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
META_FIELDS = ("metadata", "kind", "apiVersion")
_has_newline = re.compile(r"[\n\r]").search
ALLOWED_AT_ROOT = ("Description", "Type", "Format", "Title", "Maximum", "ExclusiveMaximum", "Minimum", "ExclusiveMinimum", "MaxLength",
                   "MinLength", "Pattern", "MaxItems", "MinItems", "UniqueItems", "MultipleOf", "Required", "Items", "Properties",
                   "ExternalDocs", "Example", "XPreserveUnknownFields", "XValidations")
_AT_ROOT = frozenset(("description", "type", "format", "title", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength",
                      "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "multipleOf", "required", "items", "properties",
                      "externalDocs", "example", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations"))


@dataclass(frozen=True, slots=True)
class Leniency:
    """What an update tolerates because the stored object has it already. The defaults are those of a new object."""

    valid_types: bool = True
    structural: bool = True
    pruned_defaults: bool = True
    atomic_sets: bool = True
    map_keys: bool = True
    costs: bool = True                   # of single rules; all together are limited always


STRICT = Leniency()


def walk(schema: Object | None) -> Iterator[Object]:
    """Every schema in a schema."""
    if not isinstance(schema, dict):
        return
    yield schema
    for field in ("items", "additionalProperties", "not", "additionalItems"):
        child = schema.get(field)
        if isinstance(child, dict):
            yield from walk(child)
        elif isinstance(child, list):
            for c in child:
                yield from walk(c)
    for field in ("allOf", "anyOf", "oneOf"):
        for c in schema.get(field) or ():
            yield from walk(c)
    for field in ("properties", "patternProperties", "definitions", "dependencies"):
        for c in (schema.get(field) or {}).values():
            yield from walk(c)


def leniency_of(schemas: list[Object]) -> Leniency:
    """What the schemas of a stored object force us to tolerate."""
    nodes = [n for s in schemas for n in walk(s)]
    return Leniency(
        valid_types=all(not n.get("type") or n["type"] in TYPES for n in nodes),
        structural=not any(conversion_error(s) or validate_structural(s, "") for s in schemas),
        pruned_defaults=not any(_unpruned(n) for n in nodes),
        atomic_sets=not any(next(_set_items(n, ""), None) for n in nodes),
        map_keys=not any(next(_map_keys(n, ""), None) for n in nodes))


def validate_schema(schema: Object, path: str, has_status: bool, lenient: Leniency = STRICT) -> Errors:
    """`path` is that of the schema's holder; the schema itself stands in its openAPIV3Schema."""
    here = f"{path}.openAPIV3Schema"
    found: list[FieldError] = list(_root(schema, here, has_status))
    broken = conversion_error(schema)
    rules = False
    if lenient.structural and not broken:
        errors = validate_structural(schema, here) or list(_defaults(schema, schema, here, False, lenient.pruned_defaults))
        found += errors
        rules = not errors
    found += _node(schema, here, _Place(lenient, root=True))
    if rules and not found:
        found += _rule_errors(schema, here, lenient.costs)
    if not found and broken and lenient.structural:
        found.append(invalid(here, "", broken))
    yield from found


def _root(schema: Object, path: str, has_status: bool) -> Errors:
    if has_status:
        for field, value in schema.items():
            if value in (None, "", [], {}, False):
                continue
            if field == "type":
                if value != "object":
                    yield invalid(f"{path}.type", value,
                                  'only "object" is allowed as the type at the root of the schema if the status subresource is enabled')
                    break
            elif field not in _AT_ROOT:
                yield invalid(path, schema, f"only [{' '.join(ALLOWED_AT_ROOT)}] fields are allowed at the root of the schema if the status "
                                            "subresource is enabled")
                break
    if schema.get("nullable"):
        yield forbidden(f"{path}.nullable", "nullable cannot be true at the root")


# --- one node ---------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node stands."""

    lenient: Leniency
    root: bool = False
    no_defaults: str | None = None     # why defaults are forbidden here
    in_metadata: bool = False


def _node(s: Object, path: str, place: _Place) -> Errors:
    yield from _keywords(s, path, place)
    if s.get("uniqueItems"):
        yield forbidden(f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic")
    inside = replace(place, root=False)
    properties, more = s.get("properties") or {}, s.get("additionalProperties")
    if more is not None:
        if properties and more is not True:
            yield forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
        if isinstance(more, dict):
            below = replace(inside, no_defaults="inside additionalProperties applying to object metadata") if place.in_metadata else inside
            yield from _node(more, f"{path}.additionalProperties", below)
    for name in sorted(properties):
        below = inside
        if (place.root or s.get("x-kubernetes-embedded-resource")) and name in META_FIELDS:
            below = replace(below, in_metadata=True)
            if place.root:
                below = replace(below, no_defaults=f"in top-level {name}")
        yield from _node(properties[name], f"{path}.properties[{name}]", below)
    if isinstance(s.get("not"), dict):
        yield from _node(s["not"], f"{path}.not", inside)
    for field in ("allOf", "oneOf", "anyOf"):
        for i, child in enumerate(s.get(field) or ()):
            yield from _node(child, f"{path}.{field}[{i}]", inside)
    for name, child in (s.get("definitions") or {}).items():
        yield from _node(child, f"{path}.definitions[{name}]", inside)
    items = s.get("items")
    if isinstance(items, dict):
        yield from _node(items, f"{path}.items", inside)
    elif isinstance(items, list):
        for i, child in enumerate(items):
            yield from _node(child, f"{path}.items[{i}]", inside)
    for name, child in (s.get("dependencies") or {}).items():
        if isinstance(child, dict):
            yield from _node(child, f"{path}.dependencies[{name}]", inside)
    if s.get("x-kubernetes-preserve-unknown-fields") is False:
        yield invalid(f"{path}.x-kubernetes-preserve-unknown-fields", False, "must be true or undefined")
    yield from _collections(s, path, place.lenient)
    yield from _rules(s, path)


def _keywords(s: Object, path: str, place: _Place) -> Errors:
    type_ = s.get("type") or ""
    if place.lenient.valid_types and type_ and type_ not in TYPES:
        yield not_supported(f"{path}.type", type_, TYPES)
    if s.get("default") is not None and place.no_defaults is not None:
        yield forbidden(f"{path}.default", f"must not be set {place.no_defaults}")
    for keyword in ("id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"):
        if s.get(keyword) not in (None, "", {}) or (keyword in ("additionalItems", "dependencies", "$ref") and s.get(keyword) is not None):
            yield forbidden(f"{path}.{keyword}", f"{keyword} is not supported")
    if type_ == "null":
        yield forbidden(f"{path}.type", "type cannot be set to null, use nullable as an alternative")
    if isinstance(s.get("items"), list) and s["items"]:
        yield forbidden(f"{path}.items", "items must be a schema object and not an array")
    if place.in_metadata and s.get("x-kubernetes-embedded-resource"):
        yield forbidden(f"{path}.x-kubernetes-embedded-resource", "must not be used inside of resource meta")


def _must_be(s: Object, path: str, type_: str, keyword: str) -> Errors:
    have = s.get("type") or ""
    if have != type_:
        text = f"must be {type_} if {keyword} is specified"
        yield invalid(f"{path}.type", have, text) if have else required(f"{path}.type", text)


def _collections(s: Object, path: str, lenient: Leniency) -> Errors:
    map_type, list_type, keys = s.get("x-kubernetes-map-type"), s.get("x-kubernetes-list-type"), s.get("x-kubernetes-list-map-keys") or []
    if map_type is not None:
        yield from _must_be(s, path, "object", "x-kubernetes-map-type")
        if map_type not in ("atomic", "granular"):
            yield not_supported(f"{path}.x-kubernetes-map-type", map_type, ("atomic", "granular"))
    if list_type is not None:
        if s.get("type") != "array":
            yield from _must_be(s, path, "array", "x-kubernetes-list-type")
        elif lenient.atomic_sets:
            yield from _set_items(s, path)
        if list_type not in ("atomic", "set", "map"):
            yield not_supported(f"{path}.x-kubernetes-list-type", list_type, ("atomic", "set", "map"))
    if keys:
        text = "must be map if x-kubernetes-list-map-keys is non-empty"
        if list_type is None:
            yield required(f"{path}.x-kubernetes-list-type", text)
        elif list_type != "map":
            yield invalid(f"{path}.x-kubernetes-list-type", list_type, text)
    if list_type == "map":
        yield from _map_list(s, path, keys)
    if lenient.map_keys:
        yield from _map_keys(s, path)


def _set_items(s: Object, path: str) -> Errors:
    items = s.get("items")
    if s.get("x-kubernetes-list-type") != "set" or not isinstance(items, dict):
        return
    text = "must be atomic as item of a list with x-kubernetes-list-type=set"
    if items.get("type") == "array" and items.get("x-kubernetes-list-type") not in (None, "atomic"):
        yield invalid(f"{path}.items.x-kubernetes-list-type", items["x-kubernetes-list-type"], text)
    if items.get("type") == "object" and items.get("x-kubernetes-map-type") != "atomic":
        yield invalid(f"{path}.items.x-kubernetes-map-type", items.get("x-kubernetes-list-type"), text)


def _map_list(s: Object, path: str, keys: list[str]) -> Errors:
    items = s.get("items")
    if not keys:
        yield required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
    if items is None:
        yield required(f"{path}.items", "must have a schema if x-kubernetes-list-type is map")
    elif isinstance(items, list):
        yield invalid(f"{path}.items", items, "must only have a single schema if x-kubernetes-list-type is map")
    elif items.get("type") != "object":
        yield invalid(f"{path}.items.type", items.get("type") or "", "must be object if parent array's x-kubernetes-list-type is map")
    else:
        seen = set()
        for key in keys:
            child = (items.get("properties") or {}).get(key)
            if child is None:
                yield invalid(f"{path}.x-kubernetes-list-map-keys", keys, "entries must all be names of item properties")
            elif child.get("type") in ("array", "object"):
                yield invalid(f"{path}.items.properties[{key}].type", items["type"],
                              "must be a scalar type if parent array's x-kubernetes-list-type is map")
            if key in seen:
                yield invalid(f"{path}.x-kubernetes-list-map-keys", keys, "must not contain duplicate entries")
            seen.add(key)


def _map_keys(s: Object, path: str) -> Errors:
    items, list_type = s.get("items"), s.get("x-kubernetes-list-type")
    if not isinstance(items, dict) or list_type not in ("set", "map"):
        return
    if items.get("nullable"):
        yield forbidden(f"{path}.items.nullable", f"cannot be nullable when x-kubernetes-list-type is {list_type}")
    if list_type == "map":
        for key in s.get("x-kubernetes-list-map-keys") or ():
            child = (items.get("properties") or {}).get(key)
            if child is None:
                continue
            here = f"{path}.items.properties[{key}]"
            if key not in (items.get("required") or ()) and child.get("default") is None:
                yield required(f"{here}.default", "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required "
                                                  "property")
            if child.get("nullable"):
                yield forbidden(f"{here}.nullable", "this property is in x-kubernetes-list-map-keys, so it cannot be nullable")


# --- rules ------------------------------------------------------------------------------------------------------------------------------

def _rules(s: Object, path: str) -> Errors:
    for i, r in enumerate(s.get("x-kubernetes-validations") or ()):
        here = f"{path}.x-kubernetes-validations[{i}]"
        rule, message, message_rule, at = (r.get(k) or "" for k in ("rule", "message", "messageExpression", "fieldPath"))
        if not rule.strip():
            yield required(f"{here}.rule", "rule is not specified")
        elif message and not message.strip():
            yield invalid(f"{here}.message", message, "must be non-empty if specified")
        elif _has_newline(message.strip()):
            yield invalid(f"{here}.message", message, "must not contain line breaks")
        elif _has_newline(rule.strip()) and not message.strip():
            yield required(f"{here}.message", "message must be specified if rule contains line breaks")
        if message_rule and not message_rule.strip():
            yield required(f"{here}.messageExpression", "messageExpression must be non-empty if specified")
        reason = r.get("reason")
        if reason is not None and reason not in REASONS:
            yield not_supported(f"{here}.reason", reason, REASONS)
        if at and not at.strip():
            yield invalid(f"{here}.fieldPath", at, "must be non-empty if specified")
        if _has_newline(at):
            yield invalid(f"{here}.fieldPath", at, "must not contain line breaks")
        if at and field_at(s, at) is None:
            yield invalid(f"{here}.fieldPath", at, "must be a valid path")


_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\['((?:[^'\\]|\\.)*)'\]|\[(\d+)\]")


def field_at(schema: Object, path: str, arrays: bool = True) -> Object | None:
    """The schema of a path like .spec.a['b.c'], None where there is none."""
    at, node = 0, schema
    while at < len(path):
        m = _STEP.match(path, at)
        if m is None:
            return None
        at = m.end()
        if m[3] is not None:
            if not arrays or not isinstance(node.get("items"), dict):
                return None
            node = node["items"]
            continue
        name = m[1] if m[1] is not None else m[2].replace("\\'", "'").replace("\\\\", "\\")
        child = (node.get("properties") or {}).get(name)
        if child is None:
            more = node.get("additionalProperties")
            child = more if isinstance(more, dict) else None
        if child is None:
            return None
        node = child
    return node if path else None


def _rule_errors(schema: Object, path: str, costs: bool) -> list[FieldError]:
    """What the CEL engine says of the rules, where there is one."""
    if not any(n.get("x-kubernetes-validations") for n in walk(schema)):
        return []
    from kubern.model.cel import schema_errors

    return list(schema_errors(schema, path, costs))


# --- defaults ---------------------------------------------------------------------------------------------------------------------------

def _defaults(s: Object, root: Object, path: str, in_metadata: bool, pruned: bool) -> Errors:
    if s.get("x-kubernetes-embedded-resource"):
        in_metadata, root = False, s
    default = s.get("default")
    if default is not None and not in_metadata:
        if pruned and prune(default, s) != default:
            yield invalid(f"{path}.default", default, "must not have unknown fields")
        yield from _value_errors(default, s, f"{path}.default")
    if isinstance(s.get("items"), dict):
        yield from _defaults(s["items"], root, f"{path}.items", in_metadata, pruned)
    is_object = s is root
    for name in sorted(s.get("properties") or {}):
        yield from _defaults(s["properties"][name], root, f"{path}.properties[{name}]", in_metadata or (is_object and name in META_FIELDS), pruned)


def _value_errors(value: Any, schema: Object, path: str) -> list[FieldError]:
    from kubern.model.custom import value_errors

    return value_errors(value, schema, path)


def _unpruned(s: Object) -> bool:
    return s.get("default") is not None and prune(s["default"], s) != s["default"]


def prune(value: Any, s: Object) -> Any:
    """A value without the fields its schema does not know."""
    if s.get("x-kubernetes-preserve-unknown-fields") and not s.get("properties") and not s.get("additionalProperties"):
        return value
    if isinstance(value, dict):
        properties, more = s.get("properties") or {}, s.get("additionalProperties")
        out = {}
        for k, v in value.items():
            if k in properties:
                out[k] = prune(v, properties[k])
            elif isinstance(more, dict):
                out[k] = prune(v, more)
            elif more is True or s.get("x-kubernetes-preserve-unknown-fields") \
                    or (s.get("x-kubernetes-embedded-resource") and k in META_FIELDS):
                out[k] = v
        return out
    if isinstance(value, list) and isinstance(s.get("items"), dict):
        return [prune(v, s["items"]) for v in value]
    return value
