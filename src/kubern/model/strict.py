"""Strict: JSON data made to fit a type with upstream's words for what does not; the slow walk behind model/shape.py.

In: a tree of model/gojson.py (order, duplicates and number texts kept) or plain JSON data, and a schema. Out: a fresh object and its strict
errors (unknown and duplicate fields), or Fault with the first type error, as Go's decoder tells it.
Behaviour: apimachinery runtime/serializer/json, sigs.k8s.io/json, apiextensions-apiserver schemaCoercingDecoder; KEP-2885 (field validation).
"""

from __future__ import annotations

import binascii
import re
from functools import cache
from typing import Any, NamedTuple

import orjson

from kubern.model import gojson, gotime, quantity, shape, wire
from kubern.model import invalid as field_error
from kubern.model.gojson import Float, Int, Pairs, kind_of
from kubern.model.object import Object
from kubern.model.schema import (
    ANYTHING,
    BOOL,
    BYTES,
    DURATION,
    INT32,
    INT64,
    INT_OR_STRING,
    LIST,
    MAP,
    MICROTIME,
    NUMBER,
    OBJECT_META,
    OPEN,
    QUANTITY,
    STRING,
    STRUCT,
    TIME,
    Schema,
    definition,
)
from kubern.model.shape import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, zero

STRICT_ERRORS_MAX = 100


class Fault(ValueError):
    """The body does not fit the type; str() is upstream's message without its frame."""


def typed(tree: Any, schema: Schema, custom: bool = False, root: str = "") -> tuple[Object, list[str]]:
    """JSON data (or a tree of model/gojson.py) made to fit a schema: (fresh object, strict errors). Raises Fault."""
    walk = Walk(root or schema.name.rsplit(".", 1)[-1])
    try:
        if tree is None:
            tree = {}
        obj = walk.custom(tree, schema) if schema.raw is not None or custom else walk.struct(tree, schema, "")
    except RecursionError:
        raise Fault("exceeded max depth") from None
    if walk.first is not None:
        raise Fault(walk.first)
    return obj, walk.errors


def tidy(obj: Object, schema: Schema) -> Object:
    """An object the server itself made, brought into the shape upstream writes: the argument may be changed and is given back.
    Raises Fault where it does not fit."""
    if schema.raw is None:
        try:
            shape.struct(obj, schema)
            return obj
        except shape.Odd:
            pass
    return typed(obj, schema)[0]


def _members(value: Any) -> Any:
    return value if isinstance(value, Pairs) else value.items()


class Walk:
    """Walks a tree in the order of its text. `first` is the first type error, `errors` the strict ones."""

    def __init__(self, root: str) -> None:
        self.first: str | None = None
        self.errors: list[str] = []
        self.owner = root                # the Go struct whose field is being read
        self.stack: tuple[str, ...] = ()

    def fail(self, message: str) -> None:
        if self.first is None:
            self.first = message

    def mismatch(self, value: Any, go: str, literal: bool = False) -> None:
        what = kind_of(value)
        if literal:
            what += " " + _text(value)
        self.fail(f"json: cannot unmarshal {what} into Go struct field {self.owner}.{'.'.join(self.stack)} of type {go}")

    def strict(self, kind: str, path: str) -> None:
        message = f'{kind} field "{path}"'
        if message not in self.errors and len(self.errors) < STRICT_ERRORS_MAX:
            self.errors.append(message)

    def struct(self, tree: Any, schema: Schema, path: str, into: dict[str, Any] | None = None) -> dict[str, Any]:
        props = schema.props
        assert props is not None
        out: dict[str, Any] = {} if into is None else into
        owner, stack = self.owner, self.stack
        self.owner = schema.name.rsplit(".", 1)[-1] or owner
        mine = self.owner
        seen = set()
        for k, v in _members(tree):
            where = f"{path}.{k}" if path else k
            p = props.get(k)
            if p is None:
                self.strict("unknown", where)
                continue
            if k in seen:
                self.strict("duplicate", where)
            seen.add(k)
            self.owner, self.stack = mine, (*stack, *_embedding(schema.name).get(k, ()), k)
            if v is None:
                if p.code in (STRING, INT32, INT64, BOOL, NUMBER, STRUCT) and not p.pointer and k in out:
                    continue                       # null leaves a value type as it is
                out.pop(k, None)
                if p.keep:
                    out[k] = zero(p)
                continue
            new = self.value(v, p, where, out.get(k))
            if new is _SKIP:
                continue
            if self._dropped(new, p):
                out.pop(k, None)
                if p.keep:
                    out[k] = zero(p)
            else:
                out[k] = new
        self.owner, self.stack = owner, stack
        for k, p in schema.always:
            if k not in out:
                out[k] = zero(p)
        return out

    @staticmethod
    def _dropped(value: Any, p: Schema) -> bool:
        c = p.code
        if c in (LIST, MAP, BYTES):
            return not value and not p.pointer
        if c in (STRING, INT32, INT64, BOOL, NUMBER):
            return not value and not p.pointer
        return False

    def value(self, v: Any, p: Schema, path: str, old: Any = None) -> Any:
        c = p.code
        if c == STRUCT:
            if not isinstance(v, (Pairs, dict)):
                self.mismatch(v, p.go)
                return _SKIP
            return self.struct(v, p, path, old if isinstance(old, dict) else None)
        if c == LIST:
            return self.items(v, p, path)
        if c == MAP:
            return self.map(v, p, path, old)
        if c in (STRING, DURATION):
            if not isinstance(v, str):
                self.mismatch(v, p.go or "string")
                return _SKIP
            return v
        if c == BOOL:
            if not isinstance(v, bool):
                self.mismatch(v, p.go or "bool")
                return _SKIP
            return v
        if c in (INT32, INT64):
            return self.integer(v, c, p.go or ("int32" if c == INT32 else "int64"))
        if c == NUMBER:
            if isinstance(v, bool) or not isinstance(v, (int, float)):
                self.mismatch(v, p.go or "float64")
                return _SKIP
            return int(v) if isinstance(v, int) else float(v)
        if c == BYTES:
            return self.base64(v)
        if c == QUANTITY:
            try:
                return quantity.parse((v if isinstance(v, str) else _text(v)).strip()).text
            except quantity.QuantityError as e:
                self.fail(str(e))
                return _SKIP
        if c in (TIME, MICROTIME):
            if not isinstance(v, str):
                self.mismatch(v, "string")
                return _SKIP
            try:
                return gotime.canonical(v, c == MICROTIME)
            except gotime.TimeFault as e:
                self.fail(str(e))
                return _SKIP
        if c == INT_OR_STRING:
            return v if isinstance(v, str) else self.integer(v, INT32, "int32")
        if p.or_schema:
            return self.or_schema(v, p.or_schema)
        return gojson.plain(v)

    def integer(self, v: Any, code: int, go: str) -> Any:
        if isinstance(v, bool) or not isinstance(v, (int, float)):
            self.mismatch(v, go)
            return _SKIP
        low, high = (INT32_MIN, INT32_MAX) if code == INT32 else (INT64_MIN, INT64_MAX)
        if isinstance(v, float) or not low <= v <= high:
            self.mismatch(v, go, literal=True)
            return _SKIP
        return int(v)

    def base64(self, v: Any) -> Any:
        if isinstance(v, list) and not isinstance(v, Pairs):
            return self.octets(v)
        if not isinstance(v, str):
            self.mismatch(v, "[]uint8")
            return _SKIP
        text = v.replace("\r", "").replace("\n", "")
        at = base64_fault(v)
        if at is not None:
            self.fail(f"illegal base64 data at input byte {at}")
            return _SKIP
        return binascii.b2a_base64(binascii.a2b_base64(text), newline=False).decode()

    def octets(self, v: list[Any]) -> Any:
        """Go takes bytes as a list of numbers too."""
        out = bytearray()
        for x in v:
            if isinstance(x, bool) or not isinstance(x, (int, float)):
                self.mismatch(x, "uint8")
            elif isinstance(x, float) or not 0 <= x <= 255:
                self.mismatch(x, "uint8", literal=True)
            else:
                out.append(x)
        return binascii.b2a_base64(bytes(out), newline=False).decode()

    def items(self, v: Any, p: Schema, path: str) -> Any:
        if not isinstance(v, list) or isinstance(v, Pairs):
            self.mismatch(v, p.go)
            return _SKIP
        items = p.items or ANYTHING
        out = []
        owner, stack = self.owner, self.stack
        for i, x in enumerate(v):
            self.owner, self.stack = owner, stack
            if x is None:
                out.append(zero(items))
                continue
            new = self.value(x, items, f"{path}[{i}]")
            out.append(zero(items) if new is _SKIP else new)
        self.owner, self.stack = owner, stack
        return out

    def map(self, v: Any, p: Schema, path: str, old: Any = None) -> Any:
        if not isinstance(v, (Pairs, dict)):
            self.mismatch(v, p.go)
            return _SKIP
        values = p.extra or ANYTHING
        out: dict[str, Any] = old if isinstance(old, dict) else {}
        owner, stack = self.owner, self.stack
        seen = set()
        for k, x in _members(v):
            where = f"{path}.{k}"
            if k in seen:
                self.strict("duplicate", where)
            seen.add(k)
            self.owner, self.stack = owner, stack
            new = self.value(x, values, where) if x is not None else "" if values.code == BYTES else zero(values)
            if new is not _SKIP:
                out[k] = new
        self.owner, self.stack = owner, stack
        return out

    def or_schema(self, v: Any, kind: str) -> Any:
        """JSONSchemaPropsOrArray, …OrBool, …OrStringArray: read by a decoder of their own that is not strict."""
        inner = definition("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        if isinstance(v, (Pairs, dict)):
            return self.apart(v, inner)
        if kind == "Bool":
            if not isinstance(v, bool):
                self.fail("boolean or JSON schema expected")
                return _SKIP
            return v
        if isinstance(v, list):
            if kind == "Array":
                return [self.apart({} if x is None else x, inner) for x in v]
            return [x for x in v if isinstance(x, str)]
        return _SKIP

    def apart(self, tree: Any, schema: Schema) -> Any:
        """By a decoder that knows nothing of where it stands; what it says gets the path from there on."""
        if not isinstance(tree, (Pairs, dict)):
            self.mismatch(tree, schema.go)
            return {}
        walk = Walk("JSONSchemaProps")
        out = walk.struct(tree, schema, "")
        if walk.first is not None:
            here = f"{self.owner}.{'.'.join(self.stack)}."
            self.fail(re.sub(r"(?<= into Go struct field )\w+\.", lambda m: here, walk.first, count=1))
        return out

    # custom resources: unknown fields are pruned by the structural schema, metadata is ObjectMeta. What is told comes in upstream's order:
    # duplicates, then the object's metadata, what was pruned, and metadata of embedded objects.

    def custom(self, tree: Any, schema: Schema) -> dict[str, Any]:
        out: dict[str, Any] = {}
        self.duplicates(tree, "")
        members = _last(tree)
        found = _Unknown([], [], [])
        if "metadata" in members:
            out["metadata"] = self.metadata(members["metadata"], "metadata", found.own)
        for k, v in members.items():
            if k in ("apiVersion", "kind"):
                out[k] = v
            elif k != "metadata":
                self._member(out, k, v, schema, k, found)
        for path in (*found.own, *sorted(found.pruned), *sorted(found.embedded)):
            self.strict("unknown", path)
        return out

    def duplicates(self, tree: Any, path: str) -> None:
        """A custom body is read as free-form JSON first: its duplicates come before all else."""
        if isinstance(tree, Pairs):
            seen = set()
            for k, v in tree:
                where = f"{path}.{k}" if path else k
                if k in seen:
                    self.strict("duplicate", where)
                seen.add(k)
                self.duplicates(v, where)
        elif isinstance(tree, list):
            for i, v in enumerate(tree):
                self.duplicates(v, f"{path}[{i}]")

    def metadata(self, v: Any, path: str, unknown: list[str], embedded: bool = False) -> Any:
        if v is None:
            return {}
        walk = Walk("ObjectMeta")
        out: dict[str, Any] = {}
        if isinstance(v, (Pairs, dict)):
            out = walk.struct(dict(sorted(_last(v).items())), definition(OBJECT_META), path)
            unknown.extend(e[len('unknown field "'):-1] for e in walk.errors if e.startswith("unknown"))
        else:
            walk.fail(f"json: cannot unmarshal {kind_of(v)} into Go value of type v1.ObjectMeta")
        if walk.first is not None:
            self.fail(field_error.invalid(path, gojson.plain(v), walk.first).text() if embedded else walk.first)
        return out

    def _member(self, out: dict[str, Any], k: str, v: Any, schema: Schema, path: str, found: _Unknown) -> None:
        p = schema.at(k)
        if p is None:
            if schema.preserve:
                out[k] = gojson.plain(v)
            else:
                found.pruned.append(path)
            return
        out[k] = self._custom_value(v, p, path, found)

    def _emptied(self, v: Any, path: str, found: _Unknown) -> Any:
        """What no schema describes: objects lose everything, lists and scalars stay."""
        if isinstance(v, (Pairs, dict)):
            found.pruned.extend(f"{path}.{k}" for k in _last(v))
            return {}
        if isinstance(v, list):
            return [self._emptied(x, f"{path}[{i}]", found) for i, x in enumerate(v)]
        return gojson.plain(v)

    def _custom_value(self, v: Any, p: Schema, path: str, found: _Unknown) -> Any:
        if p is OPEN:
            return self._emptied(v, path, found)
        if isinstance(v, (Pairs, dict)):
            out: dict[str, Any] = {}
            for k, x in sorted(_last(v).items()):
                where = f"{path}.{k}"
                if p.embedded and k == "metadata":
                    out[k] = self.metadata(x, where, found.embedded, embedded=True)
                elif p.embedded and k in ("apiVersion", "kind"):
                    if not isinstance(x, str):
                        self.fail(field_error.invalid(where, gojson.plain(x), "must be a string").text())
                    out[k] = gojson.plain(x)
                else:
                    self._member(out, k, x, p, where, found)
            return out
        if isinstance(v, list):
            items = p.items
            if items is None:
                return gojson.plain(v) if p.preserve else self._emptied(v, path, found)
            return [self._custom_value(x, items, f"{path}[{i}]", found) for i, x in enumerate(v)]
        return gojson.plain(v)


class _Unknown(NamedTuple):
    """Paths of unknown fields: of the object's own metadata, of what was pruned, of embedded objects' metadata."""

    own: list[str]
    pruned: list[str]
    embedded: list[str]


_SKIP = object()


@cache
def _embedding(definition: str) -> dict[str, tuple[str, ...]]:
    """Fields of a type that come from types embedded in it -> the names of those, which Go's decoder puts into the path."""
    out: dict[str, tuple[str, ...]] = {}
    for f in wire.fields(definition):
        if f.name == "<":
            inner, own = _embedding(f.type), f.type.rsplit(".", 1)[-1]
            for g in wire.fields(f.type):
                if g.name != "<":
                    out[g.name] = (own,)
            out |= {name: (own, *path) for name, path in inner.items()}
    return out


def _last(tree: Any) -> dict[str, Any]:
    return dict(tree) if isinstance(tree, Pairs) else tree


def _text(v: Any) -> str:
    """The JSON text of a value, for messages and quantities."""
    if isinstance(v, (Int, Float)):
        return v.text
    if isinstance(v, (Pairs, dict, list)):
        return "{}"
    return orjson.dumps(v).decode() if not isinstance(v, int) or abs(v) < 1 << 63 else str(v)


def base64_fault(text: str) -> int | None:
    """The input byte at which Go's decoder stops, or None."""
    alphabet = _ALPHABET
    data = text.encode("utf-8", "surrogatepass")
    i, n, quantum = 0, len(data), 0
    while i < n:
        c = data[i]
        if c in b"\r\n":
            i += 1
            continue
        if c == 0x3D:
            if quantum < 2:
                return i
            j = i + 1
            if quantum == 2:
                while j < n and data[j] in b"\r\n":
                    j += 1
                if j >= n:
                    return n
                if data[j] != 0x3D:
                    return j
                j += 1
            while j < n and data[j] in b"\r\n":
                j += 1
            return None if j >= n else j
        if c not in alphabet:
            return i
        quantum = (quantum + 1) % 4
        i += 1
    return None if quantum == 0 else n - quantum


_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
