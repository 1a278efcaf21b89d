"""The v2 document in protobuf, read back field by field."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from kubern.api.handle import MASTERS, Server
from kubern.api.openapi_binary import encode
from kubern.api.settings import ApiSettings
from kubern.model.request import Request
from kubern.store.memory import MemoryStore


def fields(data: bytes) -> dict[int, list[Any]]:
    """Field numbers to values, of one message."""
    out: dict[int, list[Any]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        n = shift = 0
        while True:
            b = data[at]
            at += 1
            n |= (b & 0x7F) << shift
            shift += 7
            if b < 0x80:
                return n
    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            value: Any = varint()
        else:
            size = 8 if tag & 7 == 1 else varint()
            value = data[at:at + size]
            assert len(value) == size
            at += size
        out.setdefault(tag >> 3, []).append(value)
    return out


def named(data: bytes, field: int = 1) -> dict[str, bytes]:
    return {fields(e)[1][0].decode(): fields(e).get(2, [b""])[0] for e in fields(data)[field]}


def test_a_schema() -> None:
    gvk = [{"group": "", "kind": "A", "version": "v1"}]
    doc = fields(encode({"swagger": "2.0", "info": {"title": "T", "version": "v1"}, "definitions": {"a": {
        "description": "d" * 300, "type": "object", "required": ["x", "y"], "properties": {
            "x": {"$ref": "#/definitions/b"}, "y": {"type": "array", "items": {"type": "string"}}, "z": {"additionalProperties": {"type": "integer"}}},
        "x-kubernetes-group-version-kind": gvk}}}))
    assert doc[1] == [b"2.0"] and fields(doc[2][0]) == {1: [b"T"], 2: [b"v1"]}
    a = fields(named(doc[9][0])["a"])
    assert a[4] == [b"d" * 300] and a[19] == [b"x", b"y"] and fields(a[22][0]) == {1: [b"object"]}
    properties = named(a[25][0])
    assert fields(properties["x"])[1] == [b"#/definitions/b"] and fields(fields(fields(properties["y"])[23][0])[1][0])[22]
    assert fields(fields(fields(fields(properties["z"])[21][0])[1][0])[22][0]) == {1: [b"integer"]}
    extension = fields(a[31][0])
    assert extension[1] == [b"x-kubernetes-group-version-kind"] and orjson.loads(fields(extension[2][0])[2][0]) == gvk


@pytest.mark.parametrize("accept", ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"))
async def test_all_of_it(accept: str) -> None:
    server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await server.start()
    whole: Any = (await server.handle(Request("GET", "/openapi/v2", {}, {"accept": "application/json"}, user=MASTERS))).body
    response: Any = await server.handle(Request("GET", "/openapi/v2", {}, {"accept": accept}, user=MASTERS))
    await server.stop()
    assert response.status == 200 and response.header("Content-Type") == "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    wanted, got = orjson.loads(whole), fields(response.body)
    assert set(named(got[9][0])) == set(wanted["definitions"]) and set(named(got[8][0], 2)) == set(wanted["paths"])
    path = "/api/v1/namespaces/{namespace}/pods/{name}"
    item, want = fields(named(got[8][0], 2)[path]), wanted["paths"][path]
    patch = fields(item[8][0])
    assert patch[5] == [want["patch"]["operationId"].encode()] and len(patch[8]) == len(want["patch"]["parameters"])
    assert set(named(patch[9][0])) == set(want["patch"]["responses"])
