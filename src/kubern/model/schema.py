"""Schema: data that says what an object may look like; built-ins and CRDs the same way. Functions elsewhere walk it.

In: an apiVersion and kind (built-ins, from schemas.bin, made by build_hook.py) or an openAPIV3Schema dict (CRDs). Out: a Schema
tree. Trees are shared and built lazily, one definition at a time; recursive definitions share their `props`.
It holds no defaults for built-ins and does not validate (model/decode.py checks types, model/kinds the rest).
Sources: OpenAPI v2/v3 with Kubernetes' x-kubernetes-* extensions (KEP-1693, structured-merge-diff), wire facts in model/wire.py.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from kubern.model import wire

# What a walker does with a value: one code a node, so that hot loops compare small integers.
ANY, STRUCT, MAP, LIST, STRING, INT32, INT64, BOOL, NUMBER, BYTES, TIME, MICROTIME, QUANTITY, INT_OR_STRING, RAW, DURATION = range(16)

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
OBJECT_META = META + "ObjectMeta"
EMPTY_LISTS = {                                           # where empty is not absent
    OBJECT_META: ("managedFields",), "io.k8s.api.autoscaling.v2.HPAScalingRules": ("policies",),
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec": ("versions",)}
_SPECIAL = {
    META + "Time": TIME, META + "MicroTime": MICROTIME, META + "FieldsV1": RAW, META + "Duration": DURATION, META + "Patch": ANY,
    "io.k8s.apimachinery.pkg.api.resource.Quantity": QUANTITY,
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": INT_OR_STRING,
    "io.k8s.apimachinery.pkg.runtime.RawExtension": RAW,
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": RAW,
}
_OR = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOr"   # …Array, Bool, StringArray: a schema or something simpler


class Schema:
    """One node. `props` for structs, `extra` for maps, `items` for lists; the rest are facts about the node and the field it stands in."""

    __slots__ = ("always", "code", "default", "embedded", "extra", "field", "format", "go", "has_default", "int_or_string", "items", "keep",
                 "list_keys", "list_type", "map_type", "name", "nullable", "or_schema", "patch_key", "patch_strategy", "pointer", "preserve",
                 "props", "raw", "required", "type")

    def __init__(self) -> None:
        self.name = ""                                   # definition, "" where anonymous
        self.code = ANY
        self.type = ""
        self.format = ""
        self.props: dict[str, Schema] | None = None
        self.extra: Schema | None = None
        self.items: Schema | None = None
        self.list_type = ""                              # "" | "atomic" | "set" | "map"
        self.list_keys: tuple[str, ...] = ()
        self.map_type = ""                               # "" | "granular" | "atomic"
        self.patch_strategy: tuple[str, ...] = ()        # of "merge", "replace", "retainKeys"
        self.patch_key = ""
        self.required: tuple[str, ...] = ()
        self.nullable = False
        self.preserve = False                            # x-kubernetes-preserve-unknown-fields
        self.embedded = False
        self.int_or_string = False
        self.or_schema = ""                              # JSONSchemaPropsOrBool and its like: what else may stand here
        self.default: Any = None
        self.has_default = False
        self.field: wire.Field | None = None             # facts about the field, built-ins only
        self.pointer = False                             # a zero scalar is kept
        self.keep = False                                # written even when empty
        self.go = ""                                     # Go's name of the type
        self.always: list[tuple[str, Schema]] = []       # properties of a struct that are written even when absent
        self.raw: dict[str, Any] | None = None           # the OpenAPI node it came from, CRDs only

    def __repr__(self) -> str:
        return f"<Schema {self.name or self.type or 'any'}>"

    def copy(self) -> Schema:
        new = Schema.__new__(Schema)
        for slot in Schema.__slots__:
            setattr(new, slot, getattr(self, slot))
        return new

    def at(self, name: str) -> Schema | None:
        """The schema of a member of an object, or None where unknown."""
        if self.props is not None:
            found = self.props.get(name)
            if found is not None:
                return found
        return self.extra


ANYTHING = Schema()
ANYTHING.preserve = True
OPEN = ANYTHING.copy()                                   # what `additionalProperties: true` lets in: scalars, and objects that are emptied


class _Definitions:
    """schemas.bin, opened once: raw lines by name, parsed one by one; descriptions only when somebody asks."""

    def __init__(self, data: bytes) -> None:
        assert data[:8] == b"KUBERN1\n", "schemas.bin is not of this version: run build_hook.py"
        first = int.from_bytes(data[8:12], "big")
        self._texts: bytes | dict[str, bytes] = data[16 + first :]
        self._lines = _split(zlib.decompress(data[16 : 16 + first]))
        self.index: dict[str, str] = orjson.loads(self._lines.pop(""))

    def names(self) -> Iterator[str]:
        return iter(self._lines)

    def raw(self, name: str) -> dict[str, Any]:
        """A definition as JSON schema; `$ref` is a bare name, descriptions are left out."""
        return orjson.loads(self._lines[name])

    def descriptions(self, name: str) -> dict[str, str]:
        if isinstance(self._texts, bytes):
            self._texts = _split(zlib.decompress(self._texts))
        return orjson.loads(self._texts.get(name, b"{}"))

    def __contains__(self, name: str) -> bool:
        return name in self._lines


def _split(text: bytes) -> dict[str, bytes]:
    out = {}
    for line in text.splitlines():
        name, _, value = line.partition(b"\t")
        out[name.decode()] = value
    return out


@cache
def definitions() -> _Definitions:
    return _Definitions(files("kubern.model").joinpath("schemas.bin").read_bytes())


def definition_of(api_version: str, kind: str) -> str | None:
    """The name of a built-in kind's definition: ("apps/v1", "Deployment") -> "io.k8s.api.apps.v1.Deployment"."""
    return definitions().index.get(f"{api_version}/{kind}")


@cache
def schema_for(api_version: str, kind: str) -> Schema:
    """The schema of a built-in kind; one that accepts anything where the kind is unknown."""
    name = definition_of(api_version, kind)
    return definition(name) if name else ANYTHING


_built: dict[str, Schema] = {}


def definition(name: str) -> Schema:
    """The schema of a definition by name."""
    found = _built.get(name)
    if found is not None:
        return found
    if name not in definitions():
        return ANYTHING
    raw = definitions().raw(name)
    s = _built[name] = Schema()                          # registered before it is filled: definitions may be recursive
    s.name = name
    s.go = f"{wire.package(name)}.{name.rsplit('.', 1)[1]}"
    if name in _SPECIAL:
        s.code = _SPECIAL[name]
        s.type = "" if s.code in (RAW, ANY, QUANTITY, INT_OR_STRING) else "string"
        s.preserve = s.code in (RAW, ANY)
        s.int_or_string = s.code in (QUANTITY, INT_OR_STRING)
        s.map_type = "granular" if s.code == RAW else ""
        return s
    if name.startswith(_OR):
        s.code, s.or_schema, s.preserve = ANY, name[len(_OR):], True
        return s
    s.code, s.type, s.props = STRUCT, "object", {}
    s.map_type = raw.get("x-kubernetes-map-type", "")
    s.required = tuple(raw.get("required", ()))
    facts = {f.name: f for f in _flat(name)}
    for prop, node in (raw.get("properties") or {}).items():
        child = s.props[prop] = _node(node)
        fact = facts.get(prop)
        if fact is not None:
            _apply_fact(child, fact)
        elif prop in ("apiVersion", "kind"):
            child.go = "string"
    for prop in EMPTY_LISTS.get(name, ()):
        s.props[prop].pointer = True
    s.always.extend((f.name, s.props[f.name]) for f in facts.values() if f.name in s.props and _always(f, s.props[f.name]))
    return s


def _flat(name: str) -> Iterator[wire.Field]:
    """The fields of a type with embedded ones inlined."""
    for f in wire.fields(name):
        if f.name == "<":
            yield from _flat(f.type)
        else:
            yield f


def _apply_fact(child: Schema, fact: wire.Field) -> None:
    child.field, child.pointer, child.keep = fact, fact.pointer, fact.always
    child.go = fact.go
    inner = child
    for wrap in re.findall(r"\[\]|\{\}", fact.wrap):     # element types of lists and maps have Go names too
        below = inner.items if wrap == "[]" else inner.extra
        if below is None:
            break
        inner = below
        if wrap == "{}" and fact.wrap == "{}" and not fact.scalar:
            inner.go = f"{wire.package(fact.type)}.{fact.type.rsplit('.', 1)[1]}"
        elif fact.scalar:
            inner.go = fact.go.removeprefix("[]") if wrap == "[]" else re.sub(r"^map\[[\w.]+\]", "", fact.go)
    if fact.type == "b" and not fact.wrap:
        child.code = BOOL
    elif fact.type in ("i", "l") and not fact.wrap:
        child.code = INT32 if fact.type == "i" else INT64


def _always(fact: wire.Field, child: Schema) -> bool:
    """Whether upstream writes the field though nothing was given: no omitempty, or a struct by value."""
    if fact.always:
        return True
    return not fact.pointer and not fact.zero and not fact.wrap and child.code in (STRUCT, TIME, MICROTIME, QUANTITY, INT_OR_STRING)


def _node(node: Mapping[str, Any]) -> Schema:
    """A property, item or value node of a built-in definition."""
    ref = node.get("$ref")
    if ref is not None:
        s = definition(ref).copy()
    else:
        s = Schema()
        s.type = node.get("type", "")
        s.format = node.get("format", "")
        s.code = _code(s.type, s.format)
        if s.code == LIST:
            s.items = _node(node["items"])
        elif s.type == "object":
            if "additionalProperties" in node:
                s.code, s.extra = MAP, _node(node["additionalProperties"])
            else:
                s.code, s.preserve = RAW, True
    _extensions(s, node)
    return s


def _code(type_: str, format_: str) -> int:
    if type_ == "string":
        return {"byte": BYTES, "date-time": TIME}.get(format_, STRING)
    if type_ == "integer":
        return INT32 if format_ == "int32" else INT64
    return {"boolean": BOOL, "number": NUMBER, "array": LIST}.get(type_, ANY)


def _extensions(s: Schema, node: Mapping[str, Any]) -> None:
    s.list_type = node.get("x-kubernetes-list-type", s.list_type)
    if "x-kubernetes-list-map-keys" in node:
        s.list_keys = tuple(node["x-kubernetes-list-map-keys"])
    s.map_type = node.get("x-kubernetes-map-type", s.map_type)
    if "x-kubernetes-patch-strategy" in node:
        s.patch_strategy = tuple(node["x-kubernetes-patch-strategy"].split(","))
    s.patch_key = node.get("x-kubernetes-patch-merge-key", s.patch_key)


def from_openapi(node: Mapping[str, Any], *, root: bool = True) -> Schema:
    """The schema of a CRD version from its openAPIV3Schema; the root and embedded objects get apiVersion, kind and metadata."""
    s = Schema()
    s.raw = dict(node)
    s.type = node.get("type", "")
    s.format = node.get("format", "")
    s.nullable = bool(node.get("nullable"))
    s.preserve = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    s.embedded = bool(node.get("x-kubernetes-embedded-resource"))
    s.int_or_string = bool(node.get("x-kubernetes-int-or-string"))
    s.required = tuple(node.get("required") or ())
    if "default" in node:
        s.default, s.has_default = node["default"], True
    _extensions(s, node)
    extra = node.get("additionalProperties")
    if s.int_or_string:
        s.code = INT_OR_STRING
    elif s.type == "array":
        s.code = LIST
        items = node.get("items")
        s.items = from_openapi(items, root=False) if isinstance(items, Mapping) else ANYTHING
    elif s.type == "object" or node.get("properties") or extra or root:
        s.type = s.type or "object"
        s.props = {name: from_openapi(p, root=False) for name, p in (node.get("properties") or {}).items()}
        s.code = STRUCT
        if isinstance(extra, Mapping):
            s.extra, s.code = from_openapi(extra, root=False), STRUCT if s.props else MAP
        elif extra is True:
            s.extra, s.code = OPEN, STRUCT if s.props else MAP
        if root or s.embedded:
            text = definition(META + "ListMeta").props
            assert text is not None
            s.props["apiVersion"] = s.props["kind"] = text["continue"]
            s.props["metadata"] = definition(OBJECT_META)
    else:
        s.code = {"string": STRING, "integer": INT64, "number": NUMBER, "boolean": BOOL}.get(s.type, ANY)
    return s


def describe(name: str) -> dict[str, str]:
    """Descriptions of a definition: "" is its own, the rest by property."""
    return definitions().descriptions(name)


def walk(schema: Schema, path: str) -> Schema | None:
    """The schema of a dotted path ("spec.template.spec"), through lists and maps; None where there is none."""
    node: Schema | None = schema
    for part in path.split("."):
        while node is not None and node.code == LIST:
            node = node.items
        node = node.at(part) if node is not None else None
    return node
