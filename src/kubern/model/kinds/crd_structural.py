"""Structural schemas: whether an openAPIV3Schema says of every node what type it is, so that it can be pruned and defaulted.

In: the schema as JSON and its path. Out: errors sorted by their text, as upstream does. Upstream: apiextensions-apiserver
pkg/apiserver/schema/{validation,complete,convert}.go; KEP "Vanilla OpenAPI Subset: Structural Schema".
"""

from __future__ import annotations

from functools import lru_cache

from kubern.model.invalid import FieldError, forbidden, invalid, required
from kubern.model.kinds.checks import Errors
from kubern.model.object import Object

ROOT, ITEM, FIELD = "at the root", "for specified array items", "for specified object fields"
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
_UNSUPPORTED = (("id", "id"), ("$schema", "schema"), ("$ref", "$ref"), ("patternProperties", "patternProperties"),
                ("dependencies", "dependencies"), ("additionalItems", "additionalItems"), ("definitions", "definitions"))
_NOT_STRUCTURAL = (  # what may not stand under a logical junctor, in upstream's order after type and additionalProperties
    ("default", "must be undefined to be structural"), ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"), ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"), ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"), ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"), ("x-kubernetes-validations", "must be empty to be structural"))


def conversion_error(schema: Object) -> str:
    """Why a schema cannot be made structural at all (keywords that nothing supports), "" where it can."""
    for keyword, name in _UNSUPPORTED:
        if schema.get(keyword):
            return f"OpenAPIV3Schema '{name}' is not supported"
    if isinstance(schema.get("items"), list):
        return "OpenAPIV3Schema 'items' must be a schema, but is an array"
    if schema.get("x-kubernetes-preserve-unknown-fields") is False:
        return "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined"
    children = [*(schema.get("properties") or {}).values()]
    for field in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(field), dict):
            children.append(schema[field])
    for field in ("allOf", "anyOf", "oneOf"):
        children += schema.get(field) or ()
    return next((why for c in children if (why := conversion_error(c))), "")


def validate_structural(schema: Object, path: str) -> list[FieldError]:
    return sorted([*_invariants(schema, ROOT, path), *_completeness(schema, schema, path, path)], key=FieldError.text)


def _invariants(s: Object, level: str, path: str) -> Errors:
    type_, items, more = s.get("type") or "", s.get("items"), s.get("additionalProperties")
    properties = s.get("properties") or {}
    embedded, preserve = bool(s.get("x-kubernetes-embedded-resource")), bool(s.get("x-kubernetes-preserve-unknown-fields"))
    int_or_string = bool(s.get("x-kubernetes-int-or-string"))
    if type_ == "array" and items is None:
        yield required(f"{path}.items", "must be specified")
    if isinstance(items, dict):
        yield from _invariants(items, ITEM, f"{path}.items")
    for name, child in properties.items():
        yield from _invariants(child, FIELD, f"{path}.properties[{name}]")
    if more is not None:
        if level == ROOT:
            yield forbidden(f"{path}.additionalProperties", "must not be used at the root")
        if isinstance(more, dict):
            yield from _invariants(more, FIELD, f"{path}.additionalProperties")
    if int_or_string and preserve:
        yield invalid(f"{path}.x-kubernetes-preserve-unknown-fields", True, "must be false if x-kubernetes-int-or-string is true")
    if int_or_string and embedded:
        yield invalid(f"{path}.x-kubernetes-embedded-resource", True, "must be false if x-kubernetes-int-or-string is true")
    all_of = s.get("allOf") or []
    yield from _values(s, s.get("anyOf") == INT_OR_STRING, bool(all_of) and all_of[0].get("anyOf") == INT_OR_STRING, path)
    if embedded and type_ != "object":
        text = "must be object if x-kubernetes-embedded-resource is true"
        yield invalid(f"{path}.type", type_, text) if type_ else required(f"{path}.type", text)
    elif not type_ and not int_or_string and not preserve:
        yield required(f"{path}.type", f"must not be empty {level}")
    if embedded and more is not None:
        yield forbidden(f"{path}.additionalProperties", "must not be used if x-kubernetes-embedded-resource is set")
    if level == ROOT and type_ and type_ != "object":
        yield invalid(f"{path}.type", type_, "must be object at the root")
    is_object = level == ROOT or embedded
    for name in ("kind", "apiVersion"):
        if is_object and name in properties and (properties[name].get("type") or "") != "string":
            yield invalid(f"{path}.properties[{name}].type", properties[name].get("type") or "", "must be string")
    if "metadata" in properties:
        yield from _metadata(properties["metadata"], is_object, level, f"{path}.properties[metadata]")
    if embedded and not preserve and not properties:
        yield required(f"{path}.properties", "must not be empty if x-kubernetes-embedded-resource is true without "
                                             "x-kubernetes-preserve-unknown-fields")


def _metadata(s: Object, is_object: bool, level: str, path: str) -> Errors:
    if is_object and s.get("type") != "object":
        yield invalid(f"{path}.type", s.get("type") or "", "must be object")
    if level == ROOT:
        rest = {k: v for k, v in s.items() if k not in ("type", "default") and v not in (None, "", [], {}, False)}
        if rest.keys() <= {"properties"} and set(rest.get("properties") or ()) <= {"name", "generateName"}:
            return
        yield forbidden(path, "must not specify anything other than name and generateName, but metadata is implicitly specified")


def _values(v: Object, skip_any_of: bool, skip_first_all_of: bool, path: str) -> Errors:
    for i, child in enumerate(() if skip_any_of else v.get("anyOf") or ()):
        yield from _nested(child, False, f"{path}.anyOf[{i}]")
    for i, child in enumerate(v.get("allOf") or ()):
        yield from _nested(child, skip_first_all_of and i == 0, f"{path}.allOf[{i}]")
    for i, child in enumerate(v.get("oneOf") or ()):
        yield from _nested(child, False, f"{path}.oneOf[{i}]")
    if v.get("not") is not None:
        yield from _nested(v["not"], False, f"{path}.not")
    pattern = v.get("pattern")
    if pattern and (why := pattern_error(pattern)):
        yield invalid(f"{path}.pattern", pattern, f"must be a valid regular expression, but isn't: {why}")


def _nested(v: Object, skip_any_of: bool, path: str) -> Errors:
    yield from _values(v, skip_any_of, False, path)
    if isinstance(v.get("items"), dict):
        yield from _nested(v["items"], False, f"{path}.items")
    properties = v.get("properties") or {}
    for name, child in properties.items():
        yield from _nested(child, False, f"{path}.properties[{name}]")
    if v.get("type"):
        yield forbidden(f"{path}.type", "must be empty to be structural")
    if v.get("additionalProperties") is not None:
        yield forbidden(f"{path}.additionalProperties", "must be undefined to be structural")
    for keyword, text in _NOT_STRUCTURAL:
        if v.get(keyword) not in (None, "", [], False) or (keyword == "default" and v.get("default") is not None):
            yield forbidden(f"{path}.{keyword}", text)
    if "metadata" in properties:
        yield forbidden(f"{path}.properties[metadata]", "must not be specified in a nested context")


def _completeness(v: Object, s: Object | None, s_path: str, v_path: str) -> Errors:
    """What junctors speak of must be there outside of them too."""
    for field in ("not", "allOf", "anyOf", "oneOf"):
        given = v.get(field)
        if isinstance(given, dict):
            yield from _nested_completeness(given, s, s_path, f"{v_path}.{field}")
        for i, child in enumerate(given if isinstance(given, list) else ()):
            yield from _nested_completeness(child, s, s_path, f"{v_path}.{field}[{i}]")


def _nested_completeness(v: Object, s: Object | None, s_path: str, v_path: str) -> Errors:
    if s is None:
        yield required(s_path, f"because it is defined in {v_path}")
        return
    yield from _completeness(v, s, s_path, v_path)
    if isinstance(v.get("items"), dict):
        yield from _nested_completeness(v["items"], s.get("items"), f"{s_path}.items", f"{v_path}.items")
    properties = s.get("properties") or {}
    for name, child in (v.get("properties") or {}).items():
        here, there = f"{s_path}.properties[{name}]", f"{v_path}.properties[{name}]"
        if name not in properties:
            yield required(here, f"because it is defined in {there}")
        else:
            yield from _nested_completeness(child, properties[name], here, there)


_RE_CODES = {  # RE2's words -> Go's
    "missing )": "missing closing )", "unexpected )": "unexpected )", "missing ]": "missing closing ]",
    "no argument for repetition operator": "missing argument to repetition operator",
    "bad repetition operator": "invalid nested repetition operator", "invalid perl operator": "invalid or unsupported Perl syntax",
    "invalid repetition size": "invalid repeat count", "invalid escape sequence": "invalid escape sequence",
    "invalid character class range": "invalid character class range", "trailing \\": "trailing backslash at end of expression",
    "invalid named capture group": "invalid named capture",
}


@lru_cache(maxsize=1024)
def pattern_error(pattern: str) -> str:
    """What Go's regexp says of a pattern it cannot compile."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as e:
        text = e.args[0] if e.args else ""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        head, _, where = text.partition(": ")
        head = _RE_CODES.get(head, head)
        if head.startswith("trailing"):
            return f"error parsing regexp: {head}: ``"
        return f"error parsing regexp: {head}: `{where or pattern}`"
    return ""
