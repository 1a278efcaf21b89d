"""OpenAPI documents in protobuf, read back field by field."""

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



@pytest.mark.parametrize("accept", ("application/com.github.proto-openapi.spec.v3@v1.0+protobuf", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"))
async def test_a_v3_document(accept: str) -> None:
    server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await server.start()
    path = "/openapi/v3/apis/apps/v1"
    whole: Any = (await server.handle(Request("GET", path, {}, {"accept": "application/json"}, user=MASTERS))).body
    response: Any = await server.handle(Request("GET", path, {}, {"accept": accept}, user=MASTERS))
    await server.stop()
    assert response.status == 200 and response.header("Content-Type") == "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
    wanted, got = orjson.loads(whole), fields(response.body)
    schemas = named(fields(got[5][0])[1][0])
    assert got[1] == [b"3.0.0"] and set(schemas) == set(wanted["components"]["schemas"]) and set(named(got[4][0])) == set(wanted["paths"])
    deployment = fields(fields(schemas["io.k8s.api.apps.v1.Deployment"])[1][0])
    assert deployment[25] == [b"object"] and orjson.loads(fields(fields(deployment[36][0])[2][0])[2][0])[0]["kind"] == "Deployment"
    spec = fields(fields(named(deployment[31][0])["spec"])[1][0])
    assert fields(fields(spec[26][0])[2][0]) == {1: [b"#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"]} and spec[33] == [b""]
    item = fields(named(got[4][0])["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"])
    patch = fields(item[10][0])
    assert patch[5] == [b"patchAppsV1NamespacedDeployment"] and set(named(patch[8][0], 2)) == {"200", "201", "401"}
    assert "application/merge-patch+json" in named(fields(fields(patch[7][0])[1][0])[2][0])
    force = next(p for p in (fields(fields(p)[1][0]) for p in patch[6]) if p[1] == [b"force"])
    assert force[2] == [b"query"] and fields(fields(force[10][0])[1][0])[25] == [b"boolean"]
