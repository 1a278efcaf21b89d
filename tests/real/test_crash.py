"""Killed at any moment: what was acknowledged is there afterwards, revisions only grow, and watches go on or are told to start over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kubern.client.client import Client
from kubern.client.kubeconfig import sender_of
from kubern.model.resources import by_kind
from kubern.model.status import StatusError

ROUNDS = int(os.environ.get("KUBERN_CRASH_ROUNDS", "4"))
WRITERS = 12
MAP = by_kind["v1", "ConfigMap"]
GONE = (StatusError, OSError, TimeoutError, EOFError, ssl.SSLError, asyncio.IncompleteReadError)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(home: Path, port: int) -> subprocess.Popen[bytes]:
    with open(home.parent / "log", "ab") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kubern",
                "up",
                "--data-dir",
                str(home),
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--runtime",
                "none",
                "--roles",
                "api",
            ],
            stdout=log,
            stderr=log,
        )


async def answering(home: Path, process: subprocess.Popen[bytes]) -> tuple[Client, Any]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        assert process.poll() is None, (home.parent / "log").read_text()[-2000:]
        if (home / "admin.kubeconfig").exists():
            sender = sender_of(home / "admin.kubeconfig")
            client = Client(sender.send)
            try:
                await client.list(MAP, "default")
                return client, sender
            except GONE:
                await sender.close()
        await asyncio.sleep(0.05)
    raise AssertionError("the server did not come up")


class Journal:
    """What the server acknowledged, and what was under way when it died."""

    def __init__(self) -> None:
        self.acked: dict[str, tuple[int, str] | None] = {}
        self.open: dict[str, str | None] = {}
        self.highest = 0
        self.count = 0

    def done(self, name: str, revision: int, text: str | None) -> None:
        assert revision > self.highest_of(name), f"{name}: revision {revision} after {self.acked[name]}"
        self.acked[name] = None if text is None else (revision, text)
        self.open.pop(name, None)
        self.highest = max(self.highest, revision)
        self.count += 1

    def highest_of(self, name: str) -> int:
        had = self.acked.get(name)
        return had[0] if had else 0


async def write(client: Client, journal: Journal, worker: int, rng: random.Random, n: int) -> None:
    """Creates, updates and deletes until the server is gone."""
    while True:
        n += 1
        name, text = f"w{worker}-{rng.randrange(30)}", f"{worker}.{n}." + "x" * rng.choice((0, 100, 4000))
        had = journal.acked.get(name)
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"t": text}}
        delete = had is not None and rng.random() < 0.3
        journal.open[name] = None if delete else text
        try:
            if delete:
                await client.delete(MAP, "default", name)
                journal.done(name, journal.highest_of(name) + 1, None)
            else:
                made = await (client.update(obj) if had else client.create(obj))
                journal.done(name, int(made["metadata"]["resourceVersion"]), text)
        except StatusError as e:
            if e.code not in (0, 502, 503):
                raise AssertionError(f"{e.code} {e.message}") from None
            return
        except GONE:
            return


async def follow(client: Client, since: int, events: list[tuple[int, str, str]]) -> bool:
    """Watches from a revision until the server is gone; False if it was too old."""
    try:
        async for batch in client.watch(MAP, "default", revision=str(since)):
            for kind, obj in batch:
                if kind == "ERROR":
                    return obj.get("code") != 410
                if kind in ("ADDED", "MODIFIED", "DELETED"):
                    events.append((int(obj["metadata"]["resourceVersion"]), kind, obj["metadata"]["name"]))
    except StatusError as e:
        return e.code != 410
    except GONE:
        pass
    return True


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    home, port, rng, journal = tmp_path / "k", free_port(), random.Random(os.environ.get("KUBERN_CRASH_SEED", "1")), Journal()
    events: list[tuple[int, str, str]] = []
    process = start(home, port)
    try:
        since = 0
        for turn in range(ROUNDS):
            client, sender = await answering(home, process)
            items, revision = await client.list(MAP, "default")
            there = {o["metadata"]["name"]: o for o in items if o["metadata"]["name"].startswith("w")}
            assert int(revision) >= journal.highest, "the revision went back"
            for name, want in journal.acked.items():
                have = there.get(name)
                shown = None if have is None else (int(have["metadata"]["resourceVersion"]), have["data"]["t"])
                if name in journal.open:  # was under way: either state is right
                    if (shown[1] if shown else None) == journal.open[name]:
                        continue
                assert shown == want, f"round {turn}: {name} is {str(shown)[:80]}, acknowledged {str(want)[:80]}"
            assert all(n in journal.acked or n in journal.open for n in there)
            journal.acked = {n: (int(o["metadata"]["resourceVersion"]), o["data"]["t"]) for n, o in there.items()}
            journal.open.clear()
            since = since or int(revision)
            watching = asyncio.ensure_future(follow(client, events[-1][0] if events else since, events))
            workers = [asyncio.ensure_future(write(client, journal, i, rng, turn * 100_000)) for i in range(WRITERS)]
            await asyncio.sleep(rng.uniform(0.05, 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
            await asyncio.gather(*workers)
            assert await watching, "a watch of the last minute must resume"
            await sender.close()
            process = start(home, port)
            if rng.random() < 0.3:  # and once more while it starts
                await asyncio.sleep(rng.uniform(0.1, 0.8))
                process.kill()
                process.wait()
                process = start(home, port)
        client, sender = await answering(home, process)
        _, revision = await client.list(MAP, "default")
        watching = asyncio.ensure_future(follow(client, events[-1][0], events))
        await asyncio.sleep(0.5)
        watching.cancel()
        await sender.close()
        revisions = [r for r, _, _ in events]
        assert revisions == sorted(set(revisions)), "events doubled or out of order"
        final: dict[str, int | None] = {}
        for r, kind, name in events:
            final[name] = None if kind == "DELETED" else r
        for name, want in journal.acked.items():
            if want is not None and name.startswith("w") and name in final and name not in journal.open:
                assert final[name] == want[0], name
        assert journal.count > 20 * ROUNDS and len(events) >= journal.count, (journal.count, len(events))
        print(f"{journal.count} acknowledged writes, {len(events)} events, {ROUNDS} kills")
    finally:
        process.kill()
        process.wait()
