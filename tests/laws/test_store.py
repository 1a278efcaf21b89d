"""Every driver is linearizable: clients that write and read at the same time see what one could have seen who did it all one after the other.

The revision a write got says where it stands in that order. Replayed in it, every write's condition must hold; what ended before another began
stands before it; a refusal and a read tell a state that was true at some moment between their beginning and their end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from kubern.store.memory import MemoryStore
from kubern.store.protocol import Conflict
from kubern.store.sqlite import SqliteStore

KEYS = ("/a", "/b")
CLIENTS, STEPS, ROUNDS = 6, 25, 4


class Step(NamedTuple):
    """One operation as its client saw it. Times are counts of a common clock."""

    began: int
    ended: int
    act: str                   # "put", "delete", "get"
    key: str
    value: bytes | None        # written, or read (None: nothing there)
    expect: int | None
    revision: int              # got; of the entry read or named in a refusal, 0 for none
    refused: bool


async def memory(_: Path, __: Any) -> Any:
    return MemoryStore()


async def sqlite(home: Path, _: Any) -> Any:
    return await SqliteStore.open(home / "store.db")


async def etcd(_: Path, request: pytest.FixtureRequest) -> Any:
    from kubern.store.etcd import EtcdStore

    return await EtcdStore.open(f"{request.getfixturevalue('etcd')}/{uuid4().hex}", root="/")


@pytest.mark.parametrize("opened", [memory, sqlite, etcd], ids=lambda f: f.__name__)
def test_linearizable(opened: Callable[[Path, Any], Awaitable[Any]], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if opened is etcd:
        request.getfixturevalue("etcd")                  # says why it cannot be had

    async def run() -> None:
        store = await opened(tmp_path, request)
        for seed in range(ROUNDS):
            base, before = store.revision, {k: await store.get(k) for k in KEYS}
            steps = await busy(store, random.Random(seed))
            agree(steps, base, {k: (e.revision, e.value) if e else (0, None) for k, e in before.items()})
        await store.close()

    asyncio.run(run())


async def busy(store: Any, rng: random.Random) -> list[Step]:
    """What several clients do at once."""
    clock = 0
    out: list[Step] = []

    def tick() -> int:
        nonlocal clock
        clock += 1
        return clock

    async def client(name: int, rng: random.Random) -> None:
        known = dict.fromkeys(KEYS, 0)
        for n in range(STEPS):
            key, act = rng.choice(KEYS), rng.choice(("put", "put", "delete", "get"))
            expect = rng.choice((None, known[key], known[key], 0))
            value: bytes | None = f"{name}.{n}".encode()
            began, refused = tick(), False
            try:
                if act == "get":
                    entry = await store.get(key)
                    value, revision, expect = (entry.value, entry.revision, None) if entry else (None, 0, None)
                else:
                    revision = await (store.put(key, value, expect=expect) if act == "put" else store.delete(key, expect=expect))
            except Conflict as e:
                refused, revision = True, e.current.revision if e.current else 0
            out.append(Step(began, tick(), act, key, value, expect, revision, refused))
            known[key] = 0 if act == "delete" and not refused else revision
            for _ in range(rng.choice((0, 0, 1, 3))):
                await asyncio.sleep(0)

    await asyncio.gather(*[client(i, random.Random(rng.random())) for i in range(CLIENTS)])
    return out


def agree(steps: list[Step], base: int, before: dict[str, tuple[int, bytes | None]]) -> None:
    writes = sorted((s for s in steps if s.act != "get" and not s.refused), key=lambda s: s.revision)
    assert len({s.revision for s in writes}) == len(writes) and all(s.revision > base for s in writes)
    latest_begin = 0
    for s in writes:                                     # in real time: nobody who began after another's end stands before it
        assert s.ended > latest_begin, s
        latest_begin = max(latest_begin, s.began)
    # key -> [(revision of the entry, its value, earliest moment it can be true, first moment it can be over)]
    states = {k: [[*v, 0, 1 << 60]] for k, v in before.items()}
    for s in writes:
        revision, _, _, _ = states[s.key][-1]
        assert s.expect in (None, revision), (s, revision)
        assert s.act == "put" or revision, s
        states[s.key][-1][3] = s.ended
        states[s.key].append([s.revision if s.act == "put" else 0, s.value if s.act == "put" else None, s.began, 1 << 60])
    for s in steps:
        if s.act == "get" or s.refused:
            true = [(r, v) for r, v, start, end in states[s.key] if start < s.ended and end > s.began and r == s.revision]
            assert true, s
            if s.act == "get":
                assert s.value in [v for _, v in true], s
            else:
                assert s.expect not in (None, s.revision) or (s.act == "delete" and not s.revision), s
