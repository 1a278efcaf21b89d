"""Custom resources of two versions, converted by a webhook that is called over real TLS, on a server over a store in memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import ssl
import threading
from collections.abc import AsyncIterator
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
        self.change = lambda o: o                     # of every answered object
        self.open = threading.Event()                 # answers are given while it is set
        self.open.set()
        self.called = asyncio.Event()
        self.loop = asyncio.get_running_loop()
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
        self.loop.call_soon_threadsafe(self.called.set)
        self.open.wait(20)
        if self.broken:
            return {"uid": request["uid"], "result": {"status": "Failure", "message": self.broken}}
        return {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": [
            self.change(self.convert(o, request["desiredAPIVersion"])) for o in request["objects"]]}

    def convert(self, o: Object, to: str) -> Object:
        spec = o.get("spec") or {}
        if to.endswith("v2"):
            name, _, number = spec["a"].partition("-")
            return {**o, "apiVersion": to, "spec": {"name": name, "number": int(number)}}
        return {**o, "apiVersion": to, "spec": {"a": f"{spec['name']}-{spec['number']}"}}


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[Hook]:
    h = Hook(tmp_path)
    yield h
    h.open.set()
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


@pytest.mark.parametrize(("change", "text"), [
    ({"apiVersion": "example.com/v3"}, "returned invalid object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v3)"),
    ({"kind": "Bar"}, "returned invalid object at index 0: invalid kind (expected Foo, received Bar)"),
    ({"metadata": {"name": "b", "namespace": "default"}}, "returned invalid object: must have the same name: a != b"),
    ({"metadata": {"name": "a", "namespace": "default", "labels": {"x": 1}}},
     "returned invalid metadata: metadata.labels[x] must be a string, but is int64 in converted object"),
])
async def test_what_a_webhook_may_not_answer(hook: Hook, client: Client, change: Object, text: str) -> None:
    made = await client.create(foo("v1", "a", a="x-1"))
    if "metadata" in change:
        change = {"metadata": {"uid": made["metadata"]["uid"], **change["metadata"]}}
    hook.change = lambda o: {**o, **change}
    with pytest.raises(StatusError) as e:
        await client.get(ROWS["v2"], "default", "a")
    assert (e.value.code, e.value.message) == (500, f"conversion webhook for example.com/v1, Kind=Foo {text}")


async def test_everybody_else_goes_on_while_a_webhook_thinks(hook: Hook, client: Client) -> None:
    await client.create(foo("v1", "a", a="x-1"))
    hook.open.clear()
    hook.called.clear()
    waiting = [asyncio.ensure_future(client.get(ROWS["v2"], "default", "a")), asyncio.ensure_future(client.list(ROWS["v2"], "default")),
               asyncio.ensure_future(client.create(foo("v2", "b", name="y", number=2)))]
    await hook.called.wait()
    assert (await client.get(ROWS["v1"], "default", "a"))["spec"] == {"a": "x-1"}
    await client.create(foo("v1", "c", a="z-3"))
    assert not any(w.done() for w in waiting)
    hook.open.set()
    one, (many, _), made = await asyncio.gather(*waiting)
    assert one["spec"] == {"name": "x", "number": 1} and [o["metadata"]["name"] for o in many] == ["a"] and made["spec"]["number"] == 2


async def _events(client: Client, version: str, count: int) -> list[tuple[str, str, Object]]:
    out: list[tuple[str, str, Object]] = []
    async for batch in client.watch(ROWS[version], "default"):
        out += [(type_, o["metadata"]["name"], o["spec"]) for type_, o in batch]
        if len(out) >= count:
            break
    return out


async def test_a_watch_waits_for_the_webhook_alone_and_in_order(hook: Hook, client: Client) -> None:
    await client.create(foo("v1", "a", a="x-1"))
    v1, v2 = (asyncio.ensure_future(_events(client, v, 4)) for v in ("v1", "v2"))
    await hook.called.wait()                      # the opening is being converted
    hook.open.clear()
    await client.create(foo("v1", "b", a="y-2"))
    await client.update({**await client.get(ROWS["v1"], "default", "b"), "spec": {"a": "y-3"}})
    await client.delete(ROWS["v1"], "default", "a")
    assert [(t, n) for t, n, _ in await v1] == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a")]
    assert not v2.done()
    hook.open.set()
    assert await v2 == [("ADDED", "a", {"name": "x", "number": 1}), ("ADDED", "b", {"name": "y", "number": 2}),
                        ("MODIFIED", "b", {"name": "y", "number": 3}), ("DELETED", "a", {"name": "x", "number": 1})]


async def test_a_watch_ends_where_its_webhook_fails(hook: Hook, client: Client) -> None:
    hook.broken = "cannot"
    watching = asyncio.ensure_future(_events(client, "v2", 1))
    await asyncio.sleep(0)
    await client.create(foo("v1", "a", a="x-1"))
    with contextlib.suppress(StatusError):
        assert [t for t, _, _ in await watching] == []
