"""Defined: controllers of custom resources, run while all the definitions they need are there.

Definitions come and go and change their versions; the controllers start anew with each such change. Not the loop itself (loop.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from kubern.client.client import Client
from kubern.client.loop import run_controllers
from kubern.client.mirror import Mirrors
from kubern.model.controller import Controller
from kubern.model.object import Object
from kubern.model.request import User
from kubern.model.resource import Resource
from kubern.model.resources import by_kind
from kubern.model.rows import CRDS, of_crd, resource_name
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

Kinds = Callable[[str, str], Resource | None]
Before = Callable[[Kinds], Awaitable[None]]      # is told how to find the rows of kinds, custom ones as well
GATHER_S = 0.2                       # definitions come several at a time
AGAIN_S = 5.0


async def run_while_defined(needed: Iterable[str], table: Iterable[Controller], client: Client, client_for: Callable[[User, str], Client], *,
                            before: Before, without: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.time) -> None:
    """Until cancelled. `needed`: "gateways.gateway.networking.k8s.io", …; `before` is awaited each time the controllers start, `without` when
    they cannot, or can no longer."""
    names, table = tuple(needed), tuple(table)
    rows: dict[str, Resource] = {}
    changed = asyncio.Event()

    def seen(old: Object | None, new: Object | None) -> None:
        gone = of_crd(old) if old is not None else None
        come = of_crd(new) if new is not None else None
        for row in (gone, come):
            if row is not None and (name := resource_name(row)) in names and rows.get(name) != come:
                rows.pop(name, None)
                if come is not None:
                    rows[name] = come
                changed.set()
    watch = Mirrors(client)
    watch.mirror(CRDS).handlers.append(seen)
    try:
        await watch.synced((CRDS,))
        while True:
            changed.clear()
            task = None
            if all(n in rows for n in names):
                task = asyncio.get_running_loop().create_task(_run(dict(rows), table, client, client_for, before, clock), name=table[0].name)
            else:
                with contextlib.suppress(StatusError):
                    await without()
            await changed.wait()
            await asyncio.sleep(GATHER_S)
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        await watch.close()


async def _run(rows: dict[str, Resource], table: tuple[Controller, ...], client: Client, client_for: Callable[[User, str], Client],
               before: Before, clock: Callable[[], float]) -> None:
    def kinds(api_version: str, kind: str) -> Resource | None:
        return by_kind.get((api_version, kind)) or next((r for r in rows.values() if (r.kind, f"{r.group}/{r.version}") == (kind, api_version)), None)

    while True:
        mirrors = Mirrors(client)
        mirrors.rows = {**mirrors.rows, **rows}
        try:
            await before(kinds)
            await run_controllers(table, client_for, clock=clock, mirrors=mirrors)
        except Exception:
            log.exception("%s", table[0].name)
        finally:
            with contextlib.suppress(Exception):
                await mirrors.close()
        await asyncio.sleep(AGAIN_S)
