"""Queue: a key waits once, is in one pair of hands, comes back when due."""

from __future__ import annotations

import asyncio

import uvloop

from kubern.client.queue import BACKOFF_LAST_S, Queue


async def test_a_key_waits_once() -> None:
    q: Queue[str] = Queue()
    for key in "aba":
        q.add(key)
    assert [await q.get(), await q.get()] == ["a", "b"] and len(q) == 0


async def test_a_key_in_hand_comes_again_only_after_done() -> None:
    q: Queue[str] = Queue()
    q.add("a")
    assert await q.get() == "a"
    q.add("a")
    q.add("a")
    assert len(q) == 0 and not q.idle
    q.done("a")
    assert await q.get() == "a" and len(q) == 0
    q.done("a")
    assert q.idle


async def test_the_earliest_date_wins() -> None:
    q: Queue[str] = Queue()
    q.add_after("a", 0.05)
    q.add_after("a", 30)
    q.add_after("b", 30)
    q.add_after("b", 0.02)
    async with asyncio.timeout(1):
        assert [await q.get(), await q.get()] == ["b", "a"]
    await asyncio.sleep(0.05)
    assert len(q) == 0


def test_dates_on_uvloop() -> None:
    """Its timers tell no dates."""
    uvloop.run(test_the_earliest_date_wins())


async def test_backoff_doubles_and_is_forgotten() -> None:
    q: Queue[str] = Queue()
    assert [q.add_backoff("a") for _ in range(3)] == [0.005, 0.01, 0.02] and q.failures("a") == 3
    for _ in range(40):
        last = q.add_backoff("a")
    assert last == BACKOFF_LAST_S
    q.forget("a")
    assert q.add_backoff("a") == 0.005


async def test_waiters_share() -> None:
    q: Queue[int] = Queue()
    got: list[int] = []

    async def take() -> None:
        got.append(await q.get())
    tasks = [asyncio.create_task(take()) for _ in range(3)]
    await asyncio.sleep(0)
    for i in range(3):
        q.add(i)
    await asyncio.gather(*tasks)
    assert sorted(got) == [0, 1, 2]
