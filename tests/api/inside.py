"""The server over the memory store, in process: what tests ask it through."""

from __future__ import annotations

from typing import Any

import orjson

from kubern.api.handle import MASTERS, Server
from kubern.model.request import Request

NS = "/api/v1/namespaces/default"


class Api:
    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, method: str, path: str, body: Any = None, *, type: str = "application/json", accept: str = "application/json",
                       headers: dict[str, str] | None = None) -> tuple[int, Any]:
        path, _, text = path.partition("?")
        query: dict[str, list[str]] = {}
        for part in text.split("&") if text else ():
            k, _, v = part.partition("=")
            query.setdefault(k, []).append(v)
        data = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        response = await self.server.handle(Request(method, path, query, {"content-type": type, "accept": accept, "user-agent": "test/1",
                                                                          **(headers or {})}, data, user=MASTERS))
        if not isinstance(response.body, (bytes, list)):
            return response.status, response.body
        raw = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        return response.status, orjson.loads(raw) if raw[:1] == b"{" else raw

    async def map(self, name: str, **more: Any) -> dict[str, Any]:
        status, obj = await self("POST", f"{NS}/configmaps", {"metadata": {"name": name, **more}})
        assert status == 201, obj
        return obj
