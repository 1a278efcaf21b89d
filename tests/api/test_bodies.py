"""Large YAML is decoded beside the event loop: others are answered first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kubern.api.bodies import YAML_INLINE_MAX_BYTES
from kubern.api.handle import MASTERS, Server
from kubern.model.request import Request
from kubern.store.memory import MemoryStore

PATH = "/api/v1/namespaces/default/configmaps"
YAML = b"kind: ConfigMap\napiVersion: v1\nmetadata:\n  name: big\ndata:\n" + b"".join(b"  key%d: value\n" % i for i in range(6000))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(MemoryStore())
    await server.start()
    yield server
    await server.stop()


async def ask(server: Server, method: str, path: str, body: bytes = b"", content_type: str = "", **query: list[str]) -> Any:
    return await server.handle(Request(method, path, query, {"content-type": content_type} if body else {}, body, user=MASTERS))


@pytest.mark.parametrize(("method", "path", "content_type", "query"), [
    ("POST", PATH, "application/yaml", {}), ("PATCH", f"{PATH}/big", "application/apply-patch+yaml", {"fieldManager": ["me"]})])
async def test_others_are_answered_while_large_yaml_is_read(server: Server, method: str, path: str, content_type: str, query: Any) -> None:
    assert len(YAML) > YAML_INLINE_MAX_BYTES
    large = asyncio.ensure_future(ask(server, method, path, YAML, content_type, **query))
    await asyncio.sleep(0)
    assert (await ask(server, "GET", "/api/v1/namespaces/default")).status == 200
    assert not large.done()
    assert (await large).status == 201
    assert len(server.cache.get("configmaps", "default", "big")["data"]) == 6000        # type: ignore[index]


async def test_what_is_wrong_with_large_yaml_is_told_as_ever(server: Server) -> None:
    for body, status, text in ((YAML + b"  key1: again\n", 400, b'key \\"key1\\" already set in map'), (YAML + b"a: [", 400, b"yaml: line 600")):
        answer = await ask(server, "POST", PATH, body, "application/yaml", fieldValidation=["Strict"])
        assert answer.status == status and text in b"".join([answer.body] if isinstance(answer.body, bytes) else answer.body)


async def test_large_yaml_of_delete_options(server: Server) -> None:
    await ask(server, "POST", PATH, b"metadata: {name: a}", "application/yaml")
    answer = await ask(server, "DELETE", f"{PATH}/a", b"#" * YAML_INLINE_MAX_BYTES + b"\npropagationPolicy: Background\n", "application/yaml")
    assert answer.status == 200 and server.cache.get("configmaps", "default", "a") is None
