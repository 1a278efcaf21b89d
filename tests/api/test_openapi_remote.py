"""OpenAPI documents of other servers: fetched, cut to a group version, made one with ours."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from kubern.api.openapi_remote import Remote, learn, merged, only

GVK = "x-kubernetes-group-version-kind"


def reference(name: str, kind: str = "definitions") -> dict[str, str]:
    return {"$ref": f"#/{kind}/{name}"}


def document(**definitions: Any) -> dict[str, Any]:
    return {"paths": {"/apis/x/v1/things": {"get": {"schema": reference("Thing")}}}, "definitions": definitions, "parameters": {}}


def test_what_paths_need_comes_with_them() -> None:
    doc = {"paths": {"/a": {"schema": reference("A"), "parameters": [reference("p", "parameters")]}, "/b": {"schema": reference("C")}},
           "definitions": {"A": {"properties": {"b": reference("B")}}, "B": {"properties": {"a": reference("A")}}, "C": {}},
           "parameters": {"p": {"name": "p"}, "q": {"name": "q"}}}
    assert only(doc, ["/a"]) == {"paths": {"/a": doc["paths"]["/a"]}, "definitions": {k: doc["definitions"][k] for k in "AB"},
                                 "parameters": {"p": {"name": "p"}}}


def test_names_that_mean_something_else_get_another() -> None:
    ours = {"swagger": "2.0", "paths": {"/api": {}}, "definitions": {"Thing": {"type": "string"}, "Same": {"type": "object"}}}
    theirs = document(Thing={"type": "object", "properties": {"s": reference("Same")}}, Same={"type": "object"})
    out = merged(ours, [theirs])
    assert set(out["paths"]) == {"/api", "/apis/x/v1/things"} and out["swagger"] == "2.0"
    assert out["definitions"]["Thing"] == {"type": "string"} and out["definitions"]["Thing_v2"]["properties"]["s"] == reference("Same")
    assert out["paths"]["/apis/x/v1/things"]["get"]["schema"] == reference("Thing_v2") and set(out["definitions"]) == {"Thing", "Thing_v2", "Same"}
    assert "/apis/x/v1/things" not in ours["paths"] and "Thing_v2" not in ours["definitions"]


def test_the_same_definition_of_several_kinds_is_one() -> None:
    ours = {"paths": {}, "definitions": {"Thing": {"type": "object", GVK: [{"group": "a"}]}}}
    out = merged(ours, [document(Thing={"type": "object", GVK: [{"group": "b"}, {"group": "a"}]})])
    assert out["definitions"] == {"Thing": {"type": "object", GVK: [{"group": "a"}, {"group": "b"}]}}


def test_what_was_renamed_once_is_found_again() -> None:
    ours = {"paths": {}, "definitions": {"Thing": {"type": "string"}}}
    second = document(Thing={"type": "object"})
    second["paths"] = {"/apis/y/v1/things": second["paths"]["/apis/x/v1/things"]}
    out = merged(ours, [document(Thing={"type": "object"}), second])
    assert set(out["definitions"]) == {"Thing", "Thing_v2"} and out["paths"]["/apis/y/v1/things"]["get"]["schema"] == reference("Thing_v2")


def test_paths_that_are_there_already_are_ours() -> None:
    ours = {"paths": {"/apis/x/v1/things": {"ours": {}}}, "definitions": {}}
    assert merged(ours, [document(Thing={})])["paths"] == ours["paths"]


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b'{"swagger":"2.0","paths":[]}', b'{"swagger":"3","paths":{}}',
    b'{"swagger":"2.0","paths":{"/apis/x/v1/a":{"$ref":"#/definitions/A"}},"definitions":[1]}'])
async def test_what_cannot_be_read_is_left_out(body: bytes) -> None:
    async def fetch(path: str, tag: str) -> tuple[int, bytes, str]:
        return 200, body, '"1"'
    learned = await learn(fetch, "x", "v1", Remote())
    assert learned.v2 == learned.v3 == b""


async def test_what_has_not_changed_is_not_fetched_again() -> None:
    asked = []

    async def fetch(path: str, tag: str) -> tuple[int, bytes, str]:
        asked.append((path, tag))
        if tag == '"1"':
            return 304, b"", ""
        return 200, orjson.dumps({"swagger": "2.0", "openapi": "3.0.0", **document(Thing={})}), '"1"'
    first = await learn(fetch, "x", "v1", Remote())
    assert first.v2_tag == first.v3_tag == '"1"' and orjson.loads(first.v2)["paths"]
    assert await learn(fetch, "x", "v1", first) == first
    assert asked[2:] == [("/openapi/v3/apis/x/v1", '"1"'), ("/openapi/v2", '"1"')]
