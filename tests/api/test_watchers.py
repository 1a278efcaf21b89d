# ruff: noqa: E501
"""Watchers over real connections that come, go, dawdle and resume, against random writes: each sees the store's log, whole and in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import orjson

from kubern.api import http
from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, Response
from kubern.store.memory import MemoryStore

WATCHERS, WRITES, NAMES = 50, 1500, 40
PATH = "/api/v1/namespaces/d/configmaps"


async def write(server: Server, rng: random.Random) -> None:
    """Random creates, updates and deletes; labels come and go."""

    async def send(method: str, path: str, obj: Any = None) -> int:
        body = b"" if obj is None else orjson.dumps(obj)
        return (await server.handle(Request(method, path, {}, {"content-type": "application/json"}, body, user=MASTERS))).status

    await send("POST", "/api/v1/namespaces", {"metadata": {"name": "d"}})
    for n in range(WRITES):
        name = f"m{rng.randrange(NAMES)}"
        obj = {"metadata": {"name": name, "labels": {"x": rng.choice("ab")}}, "data": {"n": str(n), "fill": "f" * rng.choice((0, 10, 3000))}}
        if await send("POST", PATH, obj) == 409:
            await (send("DELETE", f"{PATH}/{name}") if rng.random() < 0.3 else send("PUT", f"{PATH}/{name}", obj))
        if rng.random() < 0.3:
            await asyncio.sleep(rng.choice((0, 0, 0.001, 0.01)))


class Watcher:
    """Reads events over HTTP, now and then away or slow."""

    def __init__(self, port: int, selector: str, seed: int) -> None:
        self.port, self.selector, self.rng = port, selector, random.Random(seed)
        self.seen: list[tuple[int, str, str]] = []
        self.at, self.resumes, self.done = 0, 0, False

    async def run(self, last: asyncio.Future[int]) -> None:
        while not (last.done() and self.at >= last.result()):
            self.resumes += 1
            query = f"watch=1&allowWatchBookmarks=true&resourceVersion={self.at}" + (f"&labelSelector={self.selector}" if self.selector else "")
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
            writer.write(f"GET {PATH}?{query}&timeoutSeconds=2 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 200 " in head.splitlines()[0], head
                await self._read(reader, last, self.rng.randrange(1, 400))
            finally:
                writer.transport.abort() if self.rng.random() < 0.5 else writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader, last: asyncio.Future[int], patience: int) -> None:
        rest = b""
        while size := int(await reader.readline(), 16):
            *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
            await reader.readexactly(2)
            for line in lines:
                event = orjson.loads(line)
                meta = event["object"]["metadata"]
                self.at = int(meta["resourceVersion"])
                if event["type"] != "BOOKMARK":
                    self.seen.append((self.at, event["type"], meta["name"]))
                patience -= 1
            if patience < 0 or (last.done() and self.at >= last.result()):
                return
            if self.rng.random() < 0.02:
                await asyncio.sleep(0.05)


def expected(log: list[tuple[int, str, dict[str, Any] | None]], selector: str) -> list[tuple[int, str, str]]:
    """What a watcher of this selector must be told, out of the store's log."""
    out: list[tuple[int, str, str]] = []
    shown: dict[str, bool] = {}
    want = selector.partition("=")[2]
    for revision, name, obj in log:
        now = obj is not None and (not want or obj["metadata"]["labels"]["x"] == want)
        was = shown.get(name, False)
        if now or was:
            out.append((revision, "ADDED" if not was else "MODIFIED" if now else "DELETED", name))
        shown[name] = now
    return out


async def test_every_watcher_sees_the_log() -> None:
    store = MemoryStore()
    server = Server(store, settings=ApiSettings(bootstrap=False, authorization=False))
    await server.start()
    log: list[tuple[int, str, dict[str, Any] | None]] = []

    def record(events: Any) -> None:
        for e in events:
            if e.key.startswith("/registry/core/configmaps/d/"):
                log.append((e.revision, e.key.rpartition("/")[2], None if e.value is None else orjson.loads(b'{"metadata":{' + e.value)))

    for name in ("d", "e"):                          # a watch from revision 0 or 1 would begin with the state, not with events
        await server.handle(Request("POST", "/api/v1/namespaces", {}, {"content-type": "application/json"}, orjson.dumps({"metadata": {"name": name}}),
                                    user=MASTERS))
    stop = store.subscribe(record)

    async def trusted(request: Request) -> Response:
        request.user = MASTERS
        return await server.handle(request)

    listening = await http.serve(trusted, "127.0.0.1", 0)
    last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    watchers = [Watcher(listening.port, ("", "x=a", "x=b")[i % 3], i) for i in range(WATCHERS)]
    revision = store.revision
    for w in watchers:
        w.at = revision
    try:
        async with asyncio.timeout(60):
            tasks = [asyncio.ensure_future(w.run(last)) for w in watchers]
            await write(server, random.Random(1))
            end = {"metadata": {"name": "end", "labels": {"x": "a"}}}       # one that each selector sees come to an end
            for label in "ab":
                end["metadata"]["labels"] = {"x": label}
                await server.handle(Request("PUT" if label == "b" else "POST", PATH + ("/end" if label == "b" else ""), {}, {"content-type": "application/json"},
                                            orjson.dumps(end), user=MASTERS))
            last.set_result(log[-1][0])
            await asyncio.gather(*tasks)
        for w in watchers:
            assert w.seen == expected(log, w.selector), (w.selector, len(w.seen))
        assert sum(w.resumes for w in watchers) > 2 * WATCHERS
    finally:
        stop()
        await listening.close(1)
        await server.stop()
