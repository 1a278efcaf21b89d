"""Tokens in Secrets: it is recorded since when their use is told, and the day each was last used."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kubern import pki
from kubern.api.authn.legacy import LAST_USED, NAME, SINCE
from kubern.api.authn.tokens import INVALID_SINCE, Keys, TokenError, legacy_token
from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.model.status import StatusError
from kubern.store.memory import MemoryStore

TODAY = datetime.now(UTC).strftime("%Y-%m-%d")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    private, public = pki.service_account_keys(tmp_path)
    made = Server(MemoryStore(), settings=ApiSettings(service_account_signing_key=private, service_account_public_keys=(public,)))
    await made.start()
    yield made
    await made.stop()


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(10):
        while True:
            try:
                if found := await look():
                    return found
            except StatusError:
                pass
            await asyncio.sleep(0.01)


async def test_since_when(server: Server) -> None:
    row = server.rows.of_kind("v1", "ConfigMap").row            # type: ignore[union-attr]

    async def since() -> Any:
        return (await server.client.get(row, "kube-system", NAME)).get("data") == {SINCE: TODAY, **more}
    more: dict[str, str] = {}
    await until(since)
    more = {"kept": "yes"}
    await server.client.patch(row, "kube-system", NAME, {"data": {SINCE: "yesterday", **more}})      # no day: written anew
    await until(since)
    await server.client.delete(row, "kube-system", NAME)
    await asyncio.sleep(0.05)
    with pytest.raises(StatusError):                            # made every half hour at most
        await server.client.get(row, "kube-system", NAME)


async def test_last_used(server: Server) -> None:
    account = await server.client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "default"}})
    secret: Any = await server.client.create({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "t", "namespace": "default", "annotations": {"kubernetes.io/service-account.name": "a"}}})
    keys = server.authenticator.keys
    assert isinstance(keys, Keys)
    token = legacy_token(keys, account, secret)
    row = server.rows.of_kind("v1", "Secret").row               # type: ignore[union-attr]
    await server.client.patch(row, "default", "t", {"data": {"token": base64.b64encode(token.encode()).decode()}})

    async def labels() -> Any:
        return (await server.client.get(row, "default", "t"))["metadata"].get("labels")
    assert await labels() is None
    assert (await server.authenticator.verify(token, server.authenticator.audiences)).user.name == "system:serviceaccount:default:a"  # type: ignore[union-attr]
    assert await until(labels) == {LAST_USED: TODAY}
    before = (await server.client.get(row, "default", "t"))["metadata"]["resourceVersion"]
    await server.authenticator.verify(token, server.authenticator.audiences)
    await asyncio.sleep(0.05)
    assert (await server.client.get(row, "default", "t"))["metadata"]["resourceVersion"] == before     # once a day
    await server.client.patch(row, "default", "t", {"metadata": {"labels": {LAST_USED: "2020-01-01", INVALID_SINCE: "2021-01-01"}}})
    with pytest.raises(TokenError, match="has been marked invalid"):
        await server.authenticator.verify(token, server.authenticator.audiences)
    await until(lambda: _is(labels, {LAST_USED: TODAY, INVALID_SINCE: "2021-01-01"}))           # somebody still tries


async def _is(look: Callable[[], Awaitable[Any]], wanted: Any) -> bool:
    return bool(await look() == wanted)
