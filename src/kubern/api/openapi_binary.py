"""OpenAPI documents in protobuf: v2 is what kubectl asks for when it validates by itself (a List in `apply -f` or `replace -f`).

A table a message: JSON name -> (field number, how its value is written). What the tables do not name, our documents do not hold.
Message and field numbers: gnostic's OpenAPIv2.proto and OpenAPIv3.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import orjson

from kubern.model.protobuf import varint_bytes

Write = Callable[[int, Any], bytes]
Table = dict[str, tuple[int, Write]]


def _piece(number: int, data: bytes) -> bytes:
    return varint_bytes(number << 3 | 2) + varint_bytes(len(data)) + data


def _text(number: int, value: Any) -> bytes:
    return _piece(number, str(value).encode())


def _texts(number: int, value: Any) -> bytes:
    return b"".join(_text(number, v) for v in (value if isinstance(value, list) else [value]))


def _flag(number: int, value: Any) -> bytes:
    return varint_bytes(number << 3) + b"\1" if value else b""


def _integer(number: int, value: Any) -> bytes:
    return varint_bytes(number << 3) + varint_bytes(int(value))


def _double(number: int, value: Any) -> bytes:
    return varint_bytes(number << 3 | 1) + struct.pack("<d", value)


def _any(number: int, value: Any) -> bytes:
    """Any value, as YAML: JSON is YAML."""
    return _piece(number, _text(2, orjson.dumps(value).decode() + "\n"))


def _anys(number: int, value: Any) -> bytes:
    return b"".join(_any(number, v) for v in value)


def _message(table: Table, extension: int = 0) -> Callable[[Any], bytes]:
    """A writer of objects by a table; `extension`: the field that takes what begins with x-."""
    def write(obj: Any) -> bytes:
        out = []
        for k, v in obj.items():
            field = table.get(k)
            if field is not None:
                number, put = field
                out.append(put(number, v))
            elif extension and k.startswith("x-"):
                out.append(_piece(extension, _text(1, k) + _any(2, v)))
        return b"".join(out)
    return write


def _one(make: Callable[[Any], bytes]) -> Write:
    return lambda number, value: _piece(number, make(value))


def _each(make: Callable[[Any], bytes]) -> Write:
    return lambda number, value: b"".join(_piece(number, make(v)) for v in value)


def _named(make: Callable[[Any], bytes], field: int = 1) -> Write:
    """A map, as a message that repeats pairs of a name and a value."""
    return lambda number, value: _piece(number, b"".join(_piece(field, _text(1, k) + _piece(2, make(v))) for k, v in value.items()))


# ---------------------------------------------------------------- v2

def _schema(obj: Any) -> bytes:
    return _SCHEMA(obj)


def _additional(number: int, value: Any) -> bytes:
    return _piece(number, _flag(2, value) if isinstance(value, bool) else _piece(1, _schema(value)))


_SCHEMA = _message({
    "$ref": (1, _text), "format": (2, _text), "title": (3, _text), "description": (4, _text), "default": (5, _any), "multipleOf": (6, _double),
    "maximum": (7, _double), "exclusiveMaximum": (8, _flag), "minimum": (9, _double), "exclusiveMinimum": (10, _flag), "maxLength": (11, _integer),
    "minLength": (12, _integer), "pattern": (13, _text), "maxItems": (14, _integer), "minItems": (15, _integer), "uniqueItems": (16, _flag),
    "maxProperties": (17, _integer), "minProperties": (18, _integer), "required": (19, _texts), "enum": (20, _anys),
    "additionalProperties": (21, _additional), "type": (22, lambda n, v: _piece(n, _texts(1, v))),
    "items": (23, lambda n, v: _piece(n, b"".join(_piece(1, _schema(s)) for s in (v if isinstance(v, list) else [v])))),
    "allOf": (24, _each(_schema)), "properties": (25, _named(_schema)), "readOnly": (27, _flag), "example": (30, _any)}, 31)

_COMMON: Table = {"required": (1, _flag), "in": (2, _text), "description": (3, _text), "name": (4, _text)}
_QUERY = _message({**_COMMON, "type": (6, _text), "format": (7, _text), "default": (10, _any), "uniqueItems": (20, _flag)}, 23)
_PATH = _message({**_COMMON, "type": (5, _text), "format": (6, _text), "default": (9, _any), "uniqueItems": (19, _flag)}, 22)
_BODY = _message({"description": (1, _text), "name": (2, _text), "in": (3, _text), "required": (4, _flag), "schema": (5, _one(_schema))}, 6)


def _parameter(p: Any) -> bytes:
    """One of, in one of."""
    where = p.get("in")
    if where == "body":
        return _piece(1, _BODY(p))
    number, make = {"path": (4, _PATH), "header": (1, _PATH)}.get(where, (3, _QUERY))
    return _piece(2, _piece(number, make(p)))


def _parameter_item(p: Any) -> bytes:
    """A parameter, or the name of one that stands at the end."""
    return _piece(2, _text(1, p["$ref"])) if "$ref" in p else _piece(1, _parameter(p))


_RESPONSE = _message({"description": (1, _text), "schema": (2, lambda n, v: _piece(n, _piece(1, _schema(v))))}, 5)


def _response(value: Any) -> bytes:
    return _piece(1, _RESPONSE(value))


_OPERATION = _message({
    "tags": (1, _texts), "summary": (2, _text), "description": (3, _text), "operationId": (5, _text), "produces": (6, _texts), "consumes": (7, _texts),
    "parameters": (8, _each(_parameter_item)), "responses": (9, _named(_response)), "schemes": (10, _texts), "deprecated": (11, _flag)}, 13)
_ITEM = _message({"$ref": (1, _text), "parameters": (9, _each(_parameter_item)),
                  **{m: (n, _one(_OPERATION)) for m, n in (("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("options", 6), ("head", 7), ("patch", 8))}}, 10)
_API_KEY = _message({"type": (1, _text), "name": (2, _text), "in": (3, _text), "description": (4, _text)}, 5)
_DOCUMENT = _message({
    "swagger": (1, _text), "info": (2, _one(_message({"title": (1, _text), "version": (2, _text), "description": (3, _text)}, 7))),
    "paths": (8, _named(_ITEM, 2)), "definitions": (9, _named(_schema)), "parameters": (10, _named(_parameter)),
    "security": (12, _each(lambda r: b"".join(_piece(1, _text(1, k) + _piece(2, _texts(1, v))) for k, v in r.items()))),
    "securityDefinitions": (13, _named(lambda d: _piece(2, _API_KEY(d))))}, 16)


def encode(document: dict[str, Any]) -> bytes:
    """A v2 document as the bytes of openapi.v2.Document."""
    return _DOCUMENT(document)


# ---------------------------------------------------------------- v3

def _schema_v3(obj: Any) -> bytes:
    """A schema or a reference."""
    return _piece(2, _text(1, obj["$ref"])) if "$ref" in obj else _piece(1, _plain_v3(obj))


def _plain_v3(obj: Any) -> bytes:
    return _SCHEMA_V3(obj)


def _default(number: int, value: Any) -> bytes:
    """A number, a flag or a text; others stand there as empty, for which there is no room."""
    if isinstance(value, bool):
        return _piece(number, varint_bytes(2 << 3) + varint_bytes(int(value)))
    if isinstance(value, (int, float)):
        return _piece(number, _double(1, value))
    return _piece(number, _text(3, value) if isinstance(value, str) else b"")


_SCHEMA_V3 = _message({
    "nullable": (1, _flag), "readOnly": (3, _flag), "writeOnly": (4, _flag), "example": (7, _any), "deprecated": (8, _flag), "title": (9, _text),
    "multipleOf": (10, _double), "maximum": (11, _double), "exclusiveMaximum": (12, _flag), "minimum": (13, _double), "exclusiveMinimum": (14, _flag),
    "maxLength": (15, _integer), "minLength": (16, _integer), "pattern": (17, _text), "maxItems": (18, _integer), "minItems": (19, _integer),
    "uniqueItems": (20, _flag), "maxProperties": (21, _integer), "minProperties": (22, _integer), "required": (23, _texts), "enum": (24, _anys),
    "type": (25, _text), "allOf": (26, _each(_schema_v3)), "oneOf": (27, _each(_schema_v3)), "anyOf": (28, _each(_schema_v3)),
    "not": (29, lambda n, v: _piece(n, _plain_v3(v))), "items": (30, lambda n, v: _piece(n, _piece(1, _schema_v3(v)))),
    "properties": (31, _named(_schema_v3)),
    "additionalProperties": (32, lambda n, v: _piece(n, _flag(2, v) if isinstance(v, bool) else _piece(1, _schema_v3(v)))),
    "default": (33, _default), "description": (34, _text), "format": (35, _text)}, 36)
_CONTENT = _named(_message({"schema": (1, _one(_schema_v3))}, 5))
_PARAMETER_V3 = _message({"name": (1, _text), "in": (2, _text), "description": (3, _text), "required": (4, _flag), "schema": (10, _one(_schema_v3))}, 14)
_PARAMETERS_V3 = _each(lambda p: _piece(1, _PARAMETER_V3(p)))
_BODY_V3 = _message({"description": (1, _text), "content": (2, _CONTENT), "required": (3, _flag)}, 4)
_RESPONSE_V3 = _message({"description": (1, _text), "content": (3, _CONTENT)}, 5)
_OPERATION_V3 = _message({
    "tags": (1, _texts), "summary": (2, _text), "description": (3, _text), "operationId": (5, _text), "parameters": (6, _PARAMETERS_V3),
    "requestBody": (7, lambda n, v: _piece(n, _piece(1, _BODY_V3(v)))), "responses": (8, _named(lambda r: _piece(1, _RESPONSE_V3(r)), 2)),
    "deprecated": (10, _flag)}, 13)
_ITEM_V3 = _message({
    "summary": (2, _text), "description": (3, _text), "parameters": (13, _PARAMETERS_V3),
    **{m: (n, _one(_OPERATION_V3)) for m, n in (("get", 4), ("put", 5), ("post", 6), ("delete", 7), ("options", 8), ("head", 9), ("patch", 10))}}, 14)
_SCHEME_V3 = _message({"type": (1, _text), "description": (2, _text), "name": (3, _text), "in": (4, _text)}, 9)
_DOCUMENT_V3 = _message({
    "openapi": (1, _text), "info": (2, _one(_message({"title": (1, _text), "description": (2, _text), "version": (6, _text)}, 7))),
    "paths": (4, _named(_ITEM_V3)),
    "components": (5, _one(_message({"schemas": (1, _named(_schema_v3)), "securitySchemes": (7, _named(lambda d: _piece(1, _SCHEME_V3(d))))}, 10)))}, 9)


def encode_v3(document: dict[str, Any]) -> bytes:
    """A v3 document as the bytes of openapi.v3.Document."""
    return _DOCUMENT_V3(document)
