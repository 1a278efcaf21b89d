"""Watch is the replay of the log: whoever watches, from whatever revision and with whatever selector, sees exactly the transitions that a plain
replay of the store's log gives, in its order; bookmarks tell no lie; lists in chunks are a snapshot.

Several clients write at random through a server, others watch meanwhile; afterwards watches from every sort of revision are opened on that
server and on one that has just started on the same store, which knows the past from the store alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubern.api.cache import ROOT
from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request
from kubern.store.memory import MemoryStore
from kubern.store.protocol import Event, Store
from kubern.store.sqlite import SqliteStore

PREFIX = ROOT + "core/secrets/"
NAMESPACES, NAMES, LABELS, TYPES = ("n", "m"), ("a", "b", "c"), ("x", "y", ""), ("Opaque", "t/t")


class Wanted(NamedTuple):
    """What a watcher asks for."""

    namespace: str
    label: str         # labelSelector: "", "l", "!l", "l=x", "l!=x"
    field: str         # fieldSelector: "", "metadata.name=a", "metadata.name!=a", "type=t/t"

    def path(self) -> str:
        return "/api/v1/" + (f"namespaces/{self.namespace}/" if self.namespace else "") + "secrets"

    def query(self, **more: str) -> dict[str, list[str]]:
        given = {"labelSelector": self.label, "fieldSelector": self.field, **more}
        return {k: [v] for k, v in given.items() if v != ""}

    def sees(self, obj: dict[str, Any]) -> bool:
        meta = obj["metadata"]
        label, labels = self.label, meta.get("labels") or {}
        has = {"": True, "l": "l" in labels, "!l": "l" not in labels, "l=x": labels.get("l") == "x", "l!=x": labels.get("l") != "x"}[label]
        field = {"": True, "metadata.name=a": meta["name"] == "a", "metadata.name!=a": meta["name"] != "a", "type=t/t": obj.get("type") == "t/t"}
        return has and field[self.field] and self.namespace in ("", meta["namespace"])


wanted = st.builds(Wanted, st.sampled_from(["", *NAMESPACES]), st.sampled_from(["", "", "l", "!l", "l=x", "l!=x"]),
                   st.sampled_from(["", "", "metadata.name=a", "metadata.name!=a", "type=t/t"]))
Seen = tuple[str, str, int]      # type, namespace/name, revision
LABELED = {"l": "l"}


def parsed(value: bytes) -> dict[str, Any]:
    return orjson.loads(b'{"metadata":{' + value)


def transitions(log: list[Event], w: Wanted, after: int) -> Iterator[Seen]:
    """The replay: a change is shown by what it means to the watcher."""
    for e in log:
        if e.revision <= after:
            continue
        was = e.previous is not None and w.sees(parsed(e.previous.value))
        is_ = e.value is not None and w.sees(parsed(e.value))
        if was or is_:
            yield ("MODIFIED" if was and is_ else "ADDED" if is_ else "DELETED"), e.key.removeprefix(PREFIX), e.revision


def snapshot(log: list[Event], w: Wanted, at: int) -> list[tuple[str, int]]:
    """What is there at a revision, in the order of keys."""
    state: dict[str, Event] = {}
    for e in log:
        if e.revision <= at:
            state[e.key] = e
    return [(k.removeprefix(PREFIX), e.revision) for k, e in sorted(state.items()) if e.value is not None and w.sees(parsed(e.value))]


async def ask(server: Server, method: str, path: str, query: dict[str, list[str]] | None = None, body: Any = None, type_: str = "application/json") -> Any:
    data = b"" if body is None else orjson.dumps(body)
    return await server.handle(Request(method, path, query or {}, {"accept": "application/json", "content-type": type_}, data, user=MASTERS))


def data(response: Any) -> Any:
    return orjson.loads(response.body if isinstance(response.body, bytes) else b"".join(response.body))


def identity(obj: dict[str, Any]) -> tuple[str, int]:
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}", int(meta["resourceVersion"])


async def write(server: Server, rng: random.Random, count: int) -> None:
    """One client: creates, replaces, patches, deletes what may be there or not."""
    for _ in range(count):
        ns, name, label, act = rng.choice(NAMESPACES), rng.choice(NAMES), rng.choice(LABELS), rng.random()
        base = f"/api/v1/namespaces/{ns}/secrets"
        labels = {"l": label} if label else {}
        if act < 0.35:
            await ask(server, "POST", base, None, {"metadata": {"name": name, "labels": labels}, "type": rng.choice(TYPES)})
        elif act < 0.55:
            await ask(server, "PUT", f"{base}/{name}", None, {"metadata": {"name": name, "labels": labels}, "type": "Opaque", "data": {}})
        elif act < 0.8:
            patch = {"metadata": {"labels": {"l": label or None}}, "stringData": {"n": str(rng.random())}}
            await ask(server, "PATCH", f"{base}/{name}", None, patch, "application/merge-patch+json")
        elif act < 0.97:
            await ask(server, "DELETE", f"{base}/{name}")
        else:
            await ask(server, "DELETE", base)
        if rng.random() < 0.3:
            await asyncio.sleep(0)


async def read(server: Server, w: Wanted, version: str, settle: Callable[[], Awaitable[Any]], **more: str) -> list[dict[str, Any]]:
    """All events of a watch until it is settled."""
    response = await ask(server, "GET", w.path(), w.query(watch="1", resourceVersion=version, **more))
    assert response.status == 200, data(response)
    out: list[dict[str, Any]] = []
    stream = response.body

    async def collect() -> None:
        async for chunk in stream:
            out.extend(orjson.loads(line) for line in chunk.splitlines())

    reading = asyncio.ensure_future(collect())
    await settle()
    stream.end()
    await asyncio.wait_for(reading, 10)
    return out


def seen(events: list[dict[str, Any]]) -> list[Seen]:
    return [(e["type"], *identity(e["object"])) for e in events if e["type"] != "BOOKMARK"]


async def quiet(server: Server) -> None:
    """Long enough for a watch to have read its past and been given what there is."""
    for _ in range(4):
        await asyncio.sleep(0.01)


async def world(store: Store, again: Callable[[], Awaitable[Store]], seed: int, asked: list[Wanted], counts: tuple[int, int]) -> None:
    rng = random.Random(seed)
    server = Server(store, settings=ApiSettings(bootstrap=False, admission=False))
    await server.start()
    for ns in NAMESPACES:
        await ask(server, "POST", "/api/v1/namespaces", None, {"metadata": {"name": ns}})
    start = store.revision
    done = asyncio.Event()

    async def settle() -> None:
        await done.wait()
        await quiet(server)

    watching = []
    for w in asked:
        watching.append((w, store.revision, asyncio.ensure_future(read(server, w, str(store.revision), settle))))
        await asyncio.gather(*[write(server, random.Random(rng.random()), counts[0]) for _ in range(3)])
    await asyncio.gather(*[write(server, random.Random(rng.random()), counts[1]) for _ in range(3)])
    done.set()
    log = await history(store, start)
    assert [e.revision for e in log] == sorted({e.revision for e in log})
    for w, after, task in watching:
        assert seen(await task) == list(transitions(log, w, after)), (w, after)
    now = store.revision
    await past(server, rng, log, asked, start, now)
    await chunks(server, rng, log, asked, start, now)
    await server.stop()
    store = await again()
    server = Server(store, settings=ApiSettings(bootstrap=False, admission=False))     # knows the past from the store alone
    await server.start()
    await past(server, rng, log, asked, start, now)
    await chunks(server, rng, log, asked, start, now)
    await server.stop()
    await store.close()


async def history(store: Store, after: int) -> list[Event]:
    out: list[Event] = []
    feed = store.watch(PREFIX, after)
    try:
        async with asyncio.timeout(10):
            while not out or out[-1].revision < store.revision:
                out += [Event(e.revision, e.key, e.value, e.previous and type(e.previous)(*e.previous) if isinstance(e.previous, tuple) else e.previous)
                        for e in await anext(feed)]
    finally:
        await feed.aclose()  # type: ignore[attr-defined]
    return out


async def past(server: Server, rng: random.Random, log: list[Event], asked: list[Wanted], start: int, now: int) -> None:
    """Watches from every sort of revision, all of it gone by; with the state first where that is asked for."""
    for w in asked:
        after = rng.randint(start, now)
        events = await read(server, w, str(after), lambda: quiet(server), allowWatchBookmarks="true")
        assert seen(events) == list(transitions(log, w, after)), (w, after)
        for more in ({}, {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}):
            events = await read(server, w, "", lambda: quiet(server), **more)
            here = snapshot(log, w, now)
            assert seen(events) == [("ADDED", *i) for i in here], (w, more)
            marks = [e["object"]["metadata"] for e in events if e["type"] == "BOOKMARK"]
            if more:
                assert marks[0]["annotations"] == {"k8s.io/initial-events-end": "true"} and events.index(
                    next(e for e in events if e["type"] == "BOOKMARK")) == len(here)
            assert all(int(m["resourceVersion"]) >= max((r for _, r in here), default=0) for m in marks)


async def chunks(server: Server, rng: random.Random, log: list[Event], asked: list[Wanted], start: int, now: int) -> None:
    """Lists in pieces are of one moment, whatever is written between them; lists of the past are exact."""
    for w in asked:
        at = rng.randint(start, now)
        response = await ask(server, "GET", w.path(), w.query(resourceVersion=str(at), resourceVersionMatch="Exact"))
        assert response.status == 200 and [identity(i) for i in data(response)["items"]] == snapshot(log, w, at), (w, at)
        limit, token, items, revisions = str(rng.randint(1, 3)), "", [], set()
        while True:
            page = data(await ask(server, "GET", w.path(), w.query(limit=limit, **({"continue": token} if token else {}))))
            items += [identity(i) for i in page["items"]]
            revisions.add(page["metadata"]["resourceVersion"])
            token = page["metadata"].get("continue", "")
            await ask(server, "POST", "/api/v1/namespaces/n/configmaps", None, {"metadata": {"generateName": "x"}})
            if not token:
                break
        assert items == snapshot(log, w, now) and len(revisions) == 1, w


seeds = st.integers(0, 1 << 32)
examples = settings(max_examples=max(6, settings().max_examples // 10))


@examples
@given(seeds, st.lists(wanted, min_size=3, max_size=6))
def test_in_memory(seed: int, asked: list[Wanted]) -> None:
    async def run() -> None:
        store = MemoryStore()

        async def again() -> Store:
            return store

        await world(store, again, seed, asked, (12, 20))

    asyncio.run(run())


@examples
@given(seeds, st.lists(wanted, min_size=3, max_size=6))
def test_on_disk(tmp_path_factory: pytest.TempPathFactory, seed: int, asked: list[Wanted]) -> None:
    path: Path = tmp_path_factory.mktemp("watch") / "store.db"

    async def run() -> None:
        store = await SqliteStore.open(path)

        async def again() -> Store:
            await store.close()
            return await SqliteStore.open(path)

        await world(store, again, seed, asked, (6, 10))

    asyncio.run(run())
