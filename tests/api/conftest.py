"""`api`: a server with the namespace default."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.store.memory import MemoryStore
from tests.api.inside import Api


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await server.start()
    out = Api(server)
    assert (await out("POST", "/api/v1/namespaces", {"metadata": {"name": "default"}}))[0] == 201
    yield out
    await server.stop()
