"""Objects of an aggregated API own and are owned like any others: the collector follows what another server serves."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kubern import pki
from kubern.api import http
from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client
from kubern.client.loop import run_controllers
from kubern.client.mirror import Mirrors
from kubern.controllers import garbage
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.rows import BUILT_IN
from kubern.model.status import StatusError
from kubern.store.memory import MemoryStore
from tests.controllers.conftest import ADMIN

THING = Resource("x.example.com", "v1", "things", "Thing", namespaced=True, custom=True)
CRD: Object = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.x.example.com"}, "spec": {
    "group": "x.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing", "singular": "thing", "listKind": "ThingList"},
    "versions": [{"name": "v1", "served": True, "storage": True,
                  "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}}


async def until(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while True:
            if await look():
                return
            await asyncio.sleep(0.02)


async def prepared(server: Server) -> Client:
    await server.start()
    c = Client(server.handle, ADMIN)
    await c.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    return c


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Client, Client]]:
    """(the cluster's API, the other server's)"""
    front, ca = pki.authority(tmp_path, "front", "front"), pki.authority(tmp_path, "other", "other")
    proxy = pki.client(tmp_path, "front-proxy-client", "front-proxy-client", (), front)
    serving = pki.serving(tmp_path, "serving", "s", ["s.default.svc"], [], ca)
    other = Server(MemoryStore(), settings=ApiSettings(authorization=False, bootstrap=False, front_proxy_ca=front.cert))
    there = await prepared(other)
    await there.create(CRD)
    context = http.ssl_context(str(serving.cert_path), str(serving.key_path), front.cert)
    listening = await http.serve(other.handle, "127.0.0.1", 0, context)
    server = Server(MemoryStore(), settings=ApiSettings(authorization=False, bootstrap=False, proxy_client_cert=str(proxy.cert_path),
                                                        proxy_client_key=str(proxy.key_path)))
    here = await prepared(server)
    await here.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "default"},
                       "spec": {"type": "ExternalName", "externalName": "localhost"}})
    await here.create({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.x.example.com"}, "spec": {
        "group": "x.example.com", "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10, "caBundle": base64.b64encode(ca.cert).decode(),
        "service": {"name": "s", "namespace": "default", "port": listening.port}}})
    yield here, there
    await server.stop()
    await listening.close(0.1)
    await other.stop()


async def exists(c: Client, row: Resource, name: str) -> bool:
    try:
        await c.get(row, "default", name)
    except StatusError as e:
        assert e.code in (404, 503), e.message
        return e.code == 503
    return True


def owned(obj: Object, owner: Any) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "namespace": "default", "ownerReferences": [
        {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]}}


async def test_owners_and_dependents(both: tuple[Client, Client]) -> None:
    here, there = both
    config_map = BUILT_IN["configmaps"]

    async def thing(name: str, owner: Any = None) -> Any:
        body: Object = {"apiVersion": "x.example.com/v1", "kind": "Thing", "metadata": {"name": name, "namespace": "default"}}
        return await there.create_in(THING, owned(body, owner) if owner else body)

    def note(name: str) -> Object:
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}
    await until(lambda: exists(there, BUILT_IN["namespaces"], "default"))
    mirrors = Mirrors(here)
    task = asyncio.create_task(run_controllers((garbage.CONTROLLER,), lambda user, agent: here, clock=time.time, mirrors=mirrors))
    try:
        async def found() -> bool:
            return ("x.example.com/v1", "Thing") in mirrors.remote and mirrors.mirrors["things.x.example.com"].synced.is_set()
        await until(found)
        owner = await here.create(note("owner"))
        await thing("dependent", owner)
        await thing("free")
        lord = await thing("lord")
        await here.create(owned(note("vassal"), lord))
        await here.create(owned(note("orphan"), {**lord, "metadata": {**lord["metadata"], "uid": "another"}}))     # its owner is not that one
        await here.delete(config_map, "default", "owner")
        await there.delete(THING, "default", "lord")

        async def gone() -> bool:
            return not (await exists(there, THING, "dependent") or await exists(here, config_map, "vassal") or await exists(here, config_map, "orphan"))
        await until(gone)
        assert await exists(there, THING, "free")
        await here.delete(BUILT_IN["apiservices.apiregistration.k8s.io"], "", "v1.x.example.com")

        async def forgotten() -> bool:
            return not mirrors.remote and "things.x.example.com" not in mirrors.mirrors
        await until(forgotten)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await mirrors.close()
