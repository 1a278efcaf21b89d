"""Custom resources of two versions, converted by a webhook that is called over real TLS, on a server over a store in memory."""

from __future__ import annotations

import base64
import http.server
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubern import pki
from kubern.api.handle import Server
from kubern.client.client import Client
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.status import StatusError
from kubern.store.memory import MemoryStore

ROWS = {v: Resource("example.com", v, "foos", "Foo", namespaced=True, custom=True) for v in ("v1", "v2")}
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)


class Hook:
    """Version v1 has `a: "x-1"`, version v2 has `name` and `number`."""

    def __init__(self, d: Path) -> None:
        self.asked: list[Object] = []
        self.broken = ""
        ca = pki.authority(d, "ca", "hooks")
        pki.serving(d, "hook", "hook", [], ["127.0.0.1"], ca)
        self.bundle = base64.b64encode(ca.cert).decode()
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                review = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
                body = orjson.dumps({**review, "response": hook.answer(review["request"])})
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return None

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(d / "hook.crt", d / "hook.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: Object) -> Object:
        self.asked.append(request)
        if self.broken:
            return {"uid": request["uid"], "result": {"status": "Failure", "message": self.broken}}
        return {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": [
            self.convert(o, request["desiredAPIVersion"]) for o in request["objects"]]}

    def convert(self, o: Object, to: str) -> Object:
        spec = o.get("spec") or {}
        if to.endswith("v2"):
            name, _, number = spec["a"].partition("-")
            return {**o, "apiVersion": to, "spec": {"name": name, "number": int(number)}}
        return {**o, "apiVersion": to, "spec": {"a": f"{spec['name']}-{spec['number']}"}}


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[Hook]:
    h = Hook(tmp_path)
    yield h
    h.server.shutdown()
    h.server.server_close()


def definition(hook: Hook) -> Object:
    def version(name: str, storage: bool, /, **properties: Object) -> Object:
        schema = {"type": "object", "properties": {"spec": {"type": "object", "required": list(properties), "properties": properties}}}
        return {"name": name, "served": True, "storage": storage, "schema": {"openAPIV3Schema": schema},
                "selectableFields": [{"jsonPath": f".spec.{p}"} for p in properties if p != "number"]}
    text, number = {"type": "string"}, {"type": "integer", "maximum": 100}
    return {"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "foos.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
        "versions": [version("v1", True, a=text), version("v2", False, name=text, number=number)],
        "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {
            "url": f"https://127.0.0.1:{hook.server.server_port}/convert", "caBundle": hook.bundle}}}}}


@pytest.fixture
async def client(hook: Hook) -> AsyncIterator[Client]:
    server = Server(MemoryStore())
    await server.start()
    await server.client.create_in(CRDS, definition(hook))
    while server.rows.of_kind("example.com/v2", "Foo") is None:
        await server.cache.next_batch()
    yield server.client.with_kinds(lambda version, kind: ROWS.get(version.partition("/")[2]))
    await server.stop()


def foo(version: str, name: str, /, **spec: Any) -> Object:
    return {"kind": "Foo", "apiVersion": f"example.com/{version}", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


async def test_both_versions_show_the_same_object(hook: Hook, client: Client) -> None:
    made = await client.create(foo("v2", "a", name="x", number=1))
    assert made["spec"] == {"name": "x", "number": 1}
    stored = await client.get(ROWS["v1"], "default", "a")
    assert (stored["apiVersion"], stored["spec"]) == ("example.com/v1", {"a": "x-1"})
    await client.update({**stored, "spec": {"a": "x-2"}})
    shown = await client.get(ROWS["v2"], "default", "a")
    assert (shown["apiVersion"], shown["spec"], shown["metadata"]["generation"]) == ("example.com/v2", {"name": "x", "number": 2}, 2)
    asked = len(hook.asked)
    assert (await client.get(ROWS["v2"], "default", "a"))["spec"] == {"name": "x", "number": 2}
    assert len(hook.asked) == asked                                     # remembered
    same = await client.update(shown)
    assert same["metadata"]["resourceVersion"] == shown["metadata"]["resourceVersion"]      # no change, no write


async def test_values_are_checked_in_the_version_they_come_in(client: Client) -> None:
    with pytest.raises(StatusError) as e:
        await client.create(foo("v2", "a", name="x", number=101))
    assert e.value.message == ('Foo.example.com "a" is invalid: spec.number: Invalid value: 101: spec.number in body should be less than or equal to 100')


async def test_a_list_is_converted_in_one_call(hook: Hook, client: Client) -> None:
    for i in range(3):
        await client.create(foo("v1", f"f{i}", a=f"x-{i}"))
    hook.asked.clear()
    items, _ = await client.list(ROWS["v2"], "default")
    assert [o["spec"]["number"] for o in items] == [0, 1, 2]
    assert [len(r["objects"]) for r in hook.asked] == [3]


async def test_a_conversion_that_fails(hook: Hook, client: Client) -> None:
    await client.create(foo("v1", "a", a="x-1"))
    hook.broken = "cannot"
    with pytest.raises(StatusError) as e:
        await client.get(ROWS["v2"], "default", "a")
    assert e.value.message == "conversion webhook for example.com/v1, Kind=Foo failed: cannot"
    assert (await client.get(ROWS["v1"], "default", "a"))["spec"] == {"a": "x-1"}


async def test_fields_are_selected_in_the_version_that_is_asked_for(client: Client) -> None:
    for i, name in enumerate(("x", "y", "x")):
        await client.create(foo("v1", f"f{i}", a=f"{name}-{i}"))
    for version, selector, wanted in (("v2", "spec.name=x", ["f0", "f2"]), ("v2", "spec.name!=x", ["f1"]),
                                      ("v1", "spec.a=x-2", ["f2"]), ("v1", "spec.a=x", [])):
        items, _ = await client.list(ROWS[version], "default", fields=selector)
        assert [o["metadata"]["name"] for o in items] == wanted, selector

async def test_another_version_becomes_the_stored_one(client: Client) -> None:
    await client.create(foo("v1", "old", a="x-1"))
    crd = await client.get(CRDS, "", "foos.example.com")
    versions = [{**v, "storage": v["name"] == "v2"} for v in crd["spec"]["versions"]]
    await client.call("PUT", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/foos.example.com", None,
                      {**crd, "spec": {**crd["spec"], "versions": versions}})
    await client.create(foo("v2", "new", name="y", number=2))
    assert (await client.get(CRDS, "", "foos.example.com"))["status"]["storedVersions"] == ["v1", "v2"]
    assert [o["spec"] for o in (await client.list(ROWS["v2"], "default"))[0]] == [{"name": "y", "number": 2}, {"name": "x", "number": 1}]
    assert [o["spec"] for o in (await client.list(ROWS["v1"], "default"))[0]] == [{"a": "y-2"}, {"a": "x-1"}]
