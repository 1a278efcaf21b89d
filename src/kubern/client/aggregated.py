"""Aggregated: the collections of other API servers, found by their discovery, for whoever watches everything.

Only what can be listed, watched and deleted, of each group the preferred version. Discovery is read when an APIService changes and every
RESYNC_S while there are any; a group that does not answer keeps the rows it had. Upstream: garbagecollector.go (GetDeletableResources, Sync).
"""

from __future__ import annotations

import asyncio
import logging

from kubern.client.mirror import Handler, Mirrors
from kubern.model.resource import Resource
from kubern.model.rows import API_SERVICES, of_discovery, remote_versions, resource_name
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

NEEDED = {"delete", "list", "watch"}
RESYNC_S, GATHER_S = 30.0, 0.5
RESOURCES_MAX = 1000                     # more are left alone



async def follow_aggregated(mirrors: Mirrors, handle: Handler) -> None:
    """Until cancelled: mirrors their metadata and tells `handle` of every change."""
    known: dict[tuple[str, str], list[Resource]] = {}            # (group, version) -> rows
    changed = asyncio.Event()
    services = mirrors.start(API_SERVICES)
    services.handlers.append(lambda old, new: changed.set())
    await services.synced.wait()
    while True:
        changed.clear()
        versions = remote_versions(services.list())
        known = {v: await _discovered(mirrors, v, known.get(v, [])) for v in versions}
        await _apply(mirrors, [r for rows in known.values() for r in rows], handle)
        try:
            async with asyncio.timeout(RESYNC_S if versions else None):
                await changed.wait()
                await asyncio.sleep(GATHER_S)                     # they come several at a time
        except TimeoutError:
            continue


async def _discovered(mirrors: Mirrors, version: tuple[str, str], before: list[Resource]) -> list[Resource]:
    try:
        document = await mirrors.client.call("GET", "/apis/{}/{}".format(*version))
    except StatusError as e:
        log.debug("discovery of %s/%s: %s", *version, e.message)
        return before
    return [r for r in of_discovery(document, *version) if set(r.verbs) >= NEEDED]


async def _apply(mirrors: Mirrors, rows: list[Resource], handle: Handler) -> None:
    wanted: dict[str, Resource] = {}
    for row in rows[:RESOURCES_MAX]:
        wanted.setdefault(resource_name(row), row)                # the preferred version comes first
    have = {resource_name(r): r for r in mirrors.remote.values()}
    for name in [n for n, r in have.items() if wanted.get(n) != r]:
        await mirrors.remove(name)
    mirrors.remote = {(r.api_version, r.kind): r for r in wanted.values()}
    for name, row in wanted.items():
        if name not in mirrors.mirrors:
            mirrors.add(name, row, metadata_only=True).handlers.append(handle)
