"""The autoscaler of nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kubern.client.mirror import Mirrors
from kubern.model.request import User
from kubern.roles.context import Context, alone, running
from kubern.roles.units import unit_settings


@asynccontextmanager
async def run(ctx: Context) -> AsyncIterator[None]:
    """Nodes come and go as pods need them; only where node groups are configured."""
    s = ctx.settings
    from kubern.autoscaler.groups import external, parse_groups
    from kubern.autoscaler.options import parse_options

    service = external(s.node_groups)
    if not s.node_groups or (not service and ctx.hollow is None and ctx.fabric is None):      # no groups, or the nodes are another process's
        yield
        return
    from kubern.autoscaler.external import External, read_config
    from kubern.autoscaler.providers import Local, Named, Provider, Simulated
    from kubern.autoscaler.run import NAME, Autoscaler

    groups, options = parse_groups(s.node_groups), parse_options(s.autoscaler)
    provider: Provider
    if service:
        provider = External(read_config(service), options)
    elif ctx.hollow is not None:
        provider = Named(groups, Simulated(ctx.hollow))
    else:
        assert ctx.fabric is not None
        gateway = ctx.fabric.gateway
        provider = Named(groups, Local(s.home, lambda name: unit_settings(s, ctx.pki, gateway, name)))
    client = ctx.client(User(f"system:serviceaccount:kube-system:{NAME}", ("system:masters", "system:authenticated")), NAME)
    ready = asyncio.Event()

    async def work() -> None:
        mirrors = Mirrors(client)
        try:
            await Autoscaler(client, mirrors, provider, groups, options, ctx.clock).run(ready.set)
        finally:
            await mirrors.close()
    async with running(ctx.spawn(alone(ctx, NAME, work, ready), "autoscaler")):
        await ready.wait()
        ctx.tell(f"autoscaler: {', '.join(f'{g.name} {g.min} to {g.max} nodes' for g in groups) or f'groups of the service in {service}'}")
        yield
