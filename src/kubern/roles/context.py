"""Context: what the roles of a control plane share, and the few things all of them do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kubern import pki
from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.config import Settings
from kubern.model.object import Object
from kubern.model.request import User
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.api.handle import Server
    from kubern.kubelet.fabric import Fabric
    from kubern.kubelet.hollow import Hollow
    from kubern.kubelet.node import Unit

LOOPBACK = "127.0.0.1"
MASTERS = User("system:apiserver", ("system:masters", "system:authenticated"))
Tell = Callable[[str], None]


@dataclass(slots=True)
class Context:
    """What roles share. `server` is there once the api role is ready."""

    settings: Settings
    tell: Tell
    tasks: asyncio.TaskGroup
    pki: pki.Pki
    fabric: Fabric | None = None
    server: Server | None = None
    clock: Callable[[], float] = time.time
    mirrors: Mirrors | None = None
    units: list[Unit] = field(default_factory=list)
    hollow: Hollow | None = None
    began_s: float = field(default_factory=time.time)

    def client(self, user: User, agent: str = "kubern") -> Client:
        """The API as this user, in process."""
        assert self.server is not None
        return Client(self.server.handle, user, agent)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self.tasks.create_task(work, name=name)

    @property
    def address(self) -> str:
        """Where nodes reach the API server."""
        return self.fabric.gateway if self.fabric else own_address()

    @property
    def advertised(self) -> str:
        """Where pods reach the API server: of the family that Services have first."""
        six = ":" in self.settings.service_cidr.partition(",")[0]
        return self.fabric.gateway6 if self.fabric and six else self.address

    @property
    def listens(self) -> list[str]:
        """Where the API server listens: also on the bridge of this machine's nodes, which reach no other address if one was chosen."""
        bind = self.settings.bind
        more = {self.fabric.gateway, self.advertised} if self.fabric else set()
        return [bind, *sorted(a for a in more if a != bind and bind != "::" and (":" in a or bind != "0.0.0.0"))]

    @property
    def public_address(self) -> str:
        """Where other machines reach the API server; nodes on this machine's bridge do as well."""
        if self.settings.bind not in ("0.0.0.0", "::"):
            return self.settings.bind
        own = own_address()
        return self.address if own == LOOPBACK else own


def own_address() -> str:
    """The address this machine uses towards others; loopback if it has none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))                          # a UDP connect sends nothing
        return str(s.getsockname()[0])
    return LOOPBACK


async def alone(ctx: Context, name: str, work: Callable[[], Coroutine[Any, Any, None]], ready: asyncio.Event) -> None:
    """Does work that one process of a cluster may do at a time. A store others can share decides by a Lease who."""
    from kubern.client.lease import campaign

    if not ctx.settings.store.startswith("etcd://"):
        await work()
        return
    ready.set()                                              # whoever leads, the cluster goes on
    await campaign(ctx.client(User(f"system:{name}", ("system:authenticated",)), name), name, work, ctx.clock)


@asynccontextmanager
async def running(task: asyncio.Task[None]) -> AsyncIterator[None]:
    """A task that ends with this block, also when the block is left before its role was ready."""
    try:
        yield
    finally:
        await end(task)


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def create(client: Client, obj: Object) -> Object | None:
    """Creates it; what is there already, if something is."""
    try:
        await client.create(obj)
    except StatusError as e:
        if e.code != 409:
            raise
        return await client.get(client.row(obj["apiVersion"], obj["kind"]), obj["metadata"].get("namespace") or "", obj["metadata"]["name"])
    return None
