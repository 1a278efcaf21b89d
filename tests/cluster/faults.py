"""The seeded fault layer between components and the API server.

Requests fail before or after they took effect, answers come late, a component dies right after one of its writes; watches are delayed, cut,
told to list again, and say things twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from kubern.model.object import Object
from kubern.model.request import Request, Response, Send

REFUSALS = ((500, "InternalError"), (429, "TooManyRequests"), (503, "ServiceUnavailable"), (504, "Timeout"))


class Faults:
    """`send_of(name)` is the server as this component sees it; `crash(name)` ends the process the component lives in."""

    def __init__(self, send: Send, rng: random.Random, log: Callable[[str], None], crash: Callable[[str], None]) -> None:
        self.send, self.rng, self.log, self.crash = send, rng, log, crash
        self.on = True
        self.count: Counter[str] = Counter()

    def send_of(self, who: str) -> Send:
        async def send(request: Request) -> Response:
            return await self._send(who, request)
        return send

    def _hit(self, what: str, who: str, request: Request) -> None:
        self.count[what] += 1
        if request.method != "GET":
            self.log(f"{what}: {who} {request.method} {request.path}")

    async def _send(self, who: str, request: Request) -> Response:
        if not self.on:
            return await self._watched(request, await self.send(request))
        rng, write = self.rng, request.method != "GET"
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.5)
        roll = rng.random()
        if roll < 0.05:
            self._hit("lost request", who, request)
            raise ConnectionResetError("the request was lost")
        if roll < 0.08:
            code, reason = rng.choice(REFUSALS)
            self._hit(f"answered {code}", who, request)
            body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "chaos"}
            return Response(code, [("Content-Type", "application/json")], orjson.dumps(body))
        response = await self.send(request)
        if write and roll < 0.14:
            self._hit("lost answer", who, request)
            raise ConnectionResetError("the answer was lost")
        if write and roll < 0.145:
            self._hit("crash", who, request)
            self.crash(who)
            await asyncio.get_running_loop().create_future()       # nobody is left to read the answer
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random() * 0.5)
        return await self._watched(request, response)

    async def _watched(self, request: Request, response: Response) -> Response:
        if "watch" in request.query and getattr(response.body, "objects", False):
            response.body = _Stream(self, response.body)         # type: ignore[assignment]
        return response


class _Stream:
    """A watch that comes late, says things twice and breaks."""

    objects = True

    def __init__(self, faults: Faults, body: Any) -> None:
        self.faults, self.body = faults, body

    async def events(self) -> AsyncIterator[list[tuple[str, Object]]]:
        faults, rng, loop = self.faults, self.faults.rng, asyncio.get_running_loop()
        inner = self.body.events()
        ends = loop.time() + rng.expovariate(1 / 10.0)
        try:
            while True:
                try:
                    if faults.on:
                        async with asyncio.timeout_at(ends):
                            batch = await anext(inner)
                    else:
                        batch = await anext(inner)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    roll = rng.random()
                    faults.count["watch cut"] += 1
                    if roll < 0.4:
                        faults.count["watch gone"] += 1
                        yield [("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})]
                    elif roll < 0.7:
                        raise ConnectionResetError("the watch was cut") from None
                    return
                if faults.on and rng.random() < 0.3:
                    await asyncio.sleep(rng.random() * rng.choice((0.05, 1.0, 4.0)))
                if faults.on and len(batch) > 1 and rng.random() < 0.05:
                    yield batch[:rng.randrange(1, len(batch))]
                    raise ConnectionResetError("the watch was cut within a batch")
                yield batch
                if faults.on and rng.random() < 0.03:
                    faults.count["said twice"] += 1
                    yield batch
        finally:
            await inner.aclose()
