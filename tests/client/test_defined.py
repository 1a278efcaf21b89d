"""Controllers of custom resources run exactly while their definitions are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kubern.api.handle import Server
from kubern.client.client import Client
from kubern.client.defined import Kinds, run_while_defined
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Update
from kubern.model.object import Object
from kubern.model.request import User
from kubern.model.rows import CRDS, of_crd
from kubern.model.view import View
from kubern.store.memory import MemoryStore

ADMIN = User("admin", ("system:masters", "system:authenticated"))
CRD = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "boats.example.com"}, "spec": {
    "group": "example.com", "scope": "Namespaced", "names": {"plural": "boats", "kind": "Boat", "singular": "boat", "listKind": "BoatList"},
    "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
        "type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}}]}}
BOAT = {"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "b", "namespace": "default"}, "spec": {}}


def reconcile(boat: Object, view: View, now: float) -> Steps:
    if not boat["spec"].get("painted"):
        yield Update({**boat, "apiVersion": "example.com/v1", "kind": "Boat", "spec": {"painted": True}})


async def until(ask: Callable[[], Any]) -> Any:
    async with asyncio.timeout(10):
        while not (found := await ask()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return found


async def test_they_come_and_go_with_their_definitions() -> None:
    server = Server(MemoryStore())
    await server.start()
    client = Client(server.handle, ADMIN)
    told: list[str] = []

    async def before(kinds: Kinds) -> None:
        row = kinds("example.com/v1", "Boat")
        told.append(f"with {row.plural if row else ''}")

    async def without() -> None:
        told.append("without")
    row = Controller("boats", "boats.example.com", reconcile, reads=(CRDS,))
    work = asyncio.create_task(run_while_defined(("boats.example.com",), (row,), client, lambda user, agent: Client(server.handle, ADMIN, agent),
                                                 before=before, without=without))

    async def said(n: int) -> bool:
        return len(told) >= n
    try:
        for round_ in range(2):
            await until(lambda r=round_: said(2 * r + 1))                    # type: ignore[misc]
            await client.create(CRD)
            boats = await until(lambda: _row(client))
            await client.with_kinds(lambda v, k, row=boats: row).create(BOAT)

            async def painted(boats: Any = boats) -> bool:
                return bool((await client.get(boats, "default", "b"))["spec"].get("painted"))
            await until(painted)
            await client.delete(client.row("apiextensions.k8s.io/v1", "CustomResourceDefinition"), "", "boats.example.com")
            await until(lambda r=round_: said(2 * r + 3))                    # type: ignore[misc]
            await until(lambda: _gone(client))
        assert told[:4] == ["without", "with boats", "without", "with boats"]
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await server.stop()


async def _row(client: Client) -> Any:
    found = (await client.list(client.row("apiextensions.k8s.io/v1", "CustomResourceDefinition")))[0]
    return next((r for c in found if (r := of_crd(c)) is not None), None)


async def _gone(client: Client) -> bool:
    return not (await client.list(client.row("apiextensions.k8s.io/v1", "CustomResourceDefinition")))[0]
