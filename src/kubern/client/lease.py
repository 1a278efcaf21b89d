"""lead: leader election by a Lease, for roles that several processes may run and one may do.

Model: client-go tools/leaderelection. A holder that cannot renew within the renew deadline stops before anybody else may start.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from kubern.client.client import Client
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.status import StatusError
from kubern.model.time import micro

log = logging.getLogger(__name__)

LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
DURATION_S, RENEW_DEADLINE_S, RETRY_S = 15.0, 10.0, 2.0


class _Election:
    def __init__(self, client: Client, namespace: str, name: str, identity: str, clock: Callable[[], float]) -> None:
        self.client, self.namespace, self.name, self.identity, self.clock = client, namespace, name, identity, clock
        self._seen: tuple[Any, float] = (None, 0.0)      # the record as last seen, and when it last changed by this clock

    async def attempt(self) -> bool:
        """Takes or renews the lease. False: somebody else holds it."""
        now = self.clock()
        try:
            lease = await self.client.get(LEASES, self.namespace, self.name)
        except StatusError as e:
            if e.code != 404:
                raise
            await self.client.create(self._lease({}, 0, now, now))
            return True
        spec = lease.get("spec") or {}
        record = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("acquireTime"))
        if record != self._seen[0]:
            self._seen = (record, now)
        holder = spec.get("holderIdentity") or ""
        mine = holder == self.identity
        if holder and not mine and now < self._seen[1] + (spec.get("leaseDurationSeconds") or DURATION_S):
            return False
        acquired = None if mine else now
        transitions = int(spec.get("leaseTransitions") or 0) + (0 if mine else 1)
        await self.client.update(self._lease(lease, transitions, acquired, now))
        return True

    def _lease(self, old: Object, transitions: int, acquired: float | None, now: float) -> Object:
        spec = {**(old.get("spec") or {}), "holderIdentity": self.identity, "leaseDurationSeconds": int(DURATION_S),
                "renewTime": micro(now), "leaseTransitions": transitions}
        if acquired is not None:
            spec["acquireTime"] = micro(acquired)
        meta = old.get("metadata") or {"name": self.name, "namespace": self.namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}

    async def release(self) -> None:
        lease = await self.client.get(LEASES, self.namespace, self.name)
        if (lease.get("spec") or {}).get("holderIdentity") != self.identity:
            return
        now = micro(self.clock())
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now, "acquireTime": now}
        await self.client.update({**lease, "spec": spec})


async def lead(client: Client, name: str, identity: str, run: Callable[[], Awaitable[None]], clock: Callable[[], float], *,
               namespace: str = "kube-system") -> None:
    """Waits for the lease, runs `run` while holding it; returns when `run` does, raises StatusError when the lease is lost."""
    election = _Election(client, namespace, name, identity, clock)
    while True:
        try:
            if await election.attempt():
                break
        except (StatusError, OSError) as e:
            log.info("lease %s: %s", name, e)
        await asyncio.sleep(RETRY_S * (1 + random.random() * 0.2))
    log.info("%s leads %s", identity, name)
    work = asyncio.ensure_future(run())
    try:
        renewed = clock()
        while not work.done():
            await asyncio.wait([work], timeout=RETRY_S)
            if work.done():
                break
            try:
                async with asyncio.timeout(RENEW_DEADLINE_S):
                    if not await election.attempt():
                        raise StatusError(409, "Conflict", f"lost the lease {name}")
                renewed = clock()
            except (StatusError, TimeoutError, OSError) as e:
                if clock() - renewed > RENEW_DEADLINE_S or (isinstance(e, StatusError) and e.message.startswith("lost")):
                    raise StatusError(409, "Conflict", f"lost the lease {name}") from e
        await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        try:
            async with asyncio.timeout(RETRY_S):
                await election.release()
        except (StatusError, TimeoutError, OSError):
            pass


async def campaign(client: Client, name: str, run: Callable[[], Awaitable[None]], clock: Callable[[], float]) -> None:
    """Leads whenever it can, for ever: after a lost lease `run` starts anew, from nothing, once the lease is won again."""
    identity = f"{socket.gethostname()}_{uuid.uuid4()}"
    while True:
        try:
            await lead(client, name, identity, run, clock)
            return
        except StatusError as e:
            log.warning("%s: %s", name, e.message)
