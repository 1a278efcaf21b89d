"""Mirrors follow a server: in order, through broken watches and lost revisions, with indexes that stay right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from kubern.client import watch
from kubern.client.client import Client
from kubern.client.lease import campaign, lead
from kubern.client.loop import run_controllers
from kubern.client.mirror import Mirror, Mirrors
from kubern.model.controller import Controller, Undecided
from kubern.model.intent import Patch, Requeue
from kubern.model.object import Object
from kubern.model.request import Request, Response, User
from kubern.model.rows import BUILT_IN

ADMIN = User("admin", ("system:masters", "system:authenticated"))
MAPS = BUILT_IN["configmaps"]


def config_map(name: str, **meta: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default", **meta}}


async def until(check: Callable[[], Any], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if check():
                return
            await asyncio.sleep(0.002)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    from kubern.api.handle import Server
    from kubern.api.settings import ApiSettings
    from kubern.store.memory import MemoryStore

    server = Server(MemoryStore(), settings=ApiSettings(authorization=False, bootstrap=False))
    await server.start()
    client = Client(server.handle, ADMIN)
    for name in ("default", "kube-system"):
        await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield client
    await server.stop()


async def test_follows_and_indexes(client: Client) -> None:
    await client.create(config_map("a", labels={"app": "x"}))
    mirrors = Mirrors(client)
    mirror = mirrors.start("configmaps")
    await mirrors.synced(["configmaps"])
    calls: list[tuple[Any, Any]] = []
    mirror.handlers.append(lambda old, new: calls.append((old and old["metadata"]["name"], new and new["metadata"]["name"])))
    assert [o["metadata"]["name"] for o in mirrors.by("configmaps", "label:app", "x")] == ["a"]
    owner = await client.create(config_map("b", labels={"app": "x"}))
    ref = {"apiVersion": "v1", "kind": "ConfigMap", "name": "b", "uid": owner["metadata"]["uid"], "controller": True}
    last = await client.patch(MAPS, "default", "a", {"metadata": {"labels": {"app": "y"}, "ownerReferences": [ref]}})
    assert await mirror.reached(int(last["metadata"]["resourceVersion"]))
    assert [o["metadata"]["name"] for o in mirrors.by("configmaps", "label:app", "x")] == ["b"]
    assert [o["metadata"]["name"] for o in mirrors.owned("configmaps", owner["metadata"]["uid"])] == ["a"]
    await client.delete(MAPS, "default", "a")
    assert await mirror.left("default", "a")
    assert not list(mirrors.by("configmaps", "label:app", "y")) and mirrors.get("configmaps", "default", "a") is None
    assert calls == [(None, "b"), ("a", "a"), ("a", None)]
    assert not await mirror.reached(10**9, 0.01)
    await mirrors.close()


class Scripted:
    """A server that answers lists and watches from a script."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[str]()

    async def send(self, request: Request) -> Response:
        watching = request.param("watch")
        self.asked.append(f"watch {request.param('resourceVersion')}" if watching else "list")
        if not self.answers:
            await asyncio.sleep(3600)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if not watching:
            return Response(200, [("Content-Type", "application/json")], orjson.dumps(answer))

        async def body() -> AsyncIterator[bytes]:
            for event in answer:
                yield orjson.dumps(event) + b"\n"
        return Response(200, [("Content-Type", "application/json")], body())


def versioned(name: str, version: int) -> Object:
    return config_map(name, resourceVersion=str(version))


async def test_resumes_and_lists_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BACKOFF_FIRST_S", 0.001)
    listed = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": [versioned("a", 3), versioned("b", 5)]}
    again = {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "20"}, "items": [versioned("a", 3), versioned("c", 19)]}
    gone = {"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old"}}
    bookmark = {"type": "BOOKMARK", "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}}}
    api = Scripted(listed, [{"type": "MODIFIED", "object": versioned("b", 7)}, bookmark], ConnectionResetError("cut"), [gone], again, [])
    mirror = Mirror(Client(api.send), MAPS)
    calls: list[tuple[str, str]] = []
    mirror.handlers.append(lambda old, new: calls.append(((old or new or {})["metadata"]["name"], "set" if new else "gone")))
    task = asyncio.create_task(mirror.run())
    assert await mirror.reached(20, 2.0)
    await until(lambda: len(api.asked) >= 7)
    task.cancel()
    assert api.asked[:7] == ["list", "watch 5", "watch 9", "watch 9", "list", "watch 20", "watch 20"]
    assert calls == [("a", "set"), ("b", "set"), ("b", "set"), ("c", "set"), ("b", "gone")]


async def test_the_loop_sees_its_own_writes_first(client: Client) -> None:
    """Every pass over a key sees what the pass before wrote, though the mirror lags."""
    seen: list[tuple[int, int]] = []
    written = 0

    def reconcile(obj: Object, view: Any, now: float) -> Any:
        nonlocal written
        count = int((obj.get("data") or {}).get("n", 0))
        seen.append((count, written))
        if count < 20:
            written = count + 1
            yield Patch("v1", "ConfigMap", "default", obj["metadata"]["name"], {"data": {"n": str(written)}})
            yield Requeue(0)

    row = Controller("counter", "configmaps", reconcile=reconcile)
    task = asyncio.create_task(run_controllers((row,), lambda user, agent: Client(client.send, ADMIN)))
    await client.create(config_map("a"))
    await until(lambda: (20, 20) in seen)
    assert (await client.get(MAPS, "default", "a"))["data"] == {"n": "20"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert all(count == known for count, known in seen) and len(seen) <= 45


async def test_passes_without_an_intent_end_at_once_and_undecided_ones_come_again(client: Client) -> None:
    looks: dict[str, int] = {}

    def reconcile(obj: Object, view: Any, now: float) -> Any:
        name = obj["metadata"]["name"]
        looks[name] = looks.get(name, 0) + 1
        if name == "later" and looks[name] < 3:
            raise Undecided("not yet")
        if name == "broken" and looks[name] < 3:
            raise KeyError("a mistake")
        yield from ()

    row = Controller("looker", "configmaps", reconcile=reconcile, workers=1, backoff_first_s=0.001)
    for name in ("later", "broken", *(f"quiet-{i}" for i in range(200))):
        await client.create(config_map(name))
    task = asyncio.create_task(run_controllers((row,), lambda user, agent: Client(client.send, ADMIN)))
    await until(lambda: looks.get("later") == looks.get("broken") == 3 and len(looks) == 202)
    await client.patch(MAPS, "default", "quiet-7", {"data": {"n": "1"}})
    await until(lambda: looks["quiet-7"] == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert looks["quiet-8"] == 1


async def test_one_leads_and_hands_over(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.client.lease.RETRY_S", 0.02)
    now, leading = 1e9, list[str]()
    release = asyncio.Event()

    def candidate(name: str) -> asyncio.Task[None]:
        async def run() -> None:
            leading.append(name)
            await release.wait()
        return asyncio.create_task(lead(client, "boss", name, run, lambda: now))
    first = candidate("one")
    await until(lambda: leading)
    second = candidate("two")
    await asyncio.sleep(0.1)
    assert leading == ["one"]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    now += 2                                                        # a released lease lasts one second
    await until(lambda: len(leading) == 2)
    release.set()
    await second
    lease = await client.get(BUILT_IN["leases.coordination.k8s.io"], "kube-system", "boss")
    assert leading == ["one", "two"] and lease["spec"]["leaseTransitions"] == 1 and lease["spec"].get("holderIdentity", "") == ""


async def test_a_bad_handler_stops_nobody(client: Client) -> None:
    mirrors = Mirrors(client)
    mirror = mirrors.start("configmaps")
    await mirrors.synced(["configmaps"])
    seen: list[Object | None] = []

    def bad(old: Object | None, new: Object | None) -> None:
        raise ZeroDivisionError
    mirror.handlers += [bad, lambda old, new: seen.append(new)]
    for name in "ab":
        last = await client.create(config_map(name))
    assert await mirror.reached(int(last["metadata"]["resourceVersion"]), 2.0) and len(seen) == 2
    await mirrors.close()


async def test_work_starts_anew_after_a_lost_lease(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.client.lease.RETRY_S", 0.02)
    now, terms, ended = 1e9, 0, 0

    async def run() -> None:
        nonlocal terms, ended
        terms += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
    task = asyncio.create_task(campaign(client, "boss", run, lambda: now))
    await until(lambda: terms == 1)
    await client.patch(BUILT_IN["leases.coordination.k8s.io"], "kube-system", "boss", {"spec": {"holderIdentity": "thief"}})
    await until(lambda: ended == 1)
    await asyncio.sleep(0.1)
    assert terms == 1                                                   # the thief's time is not over
    now += 16
    await until(lambda: terms == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert ended == 2
