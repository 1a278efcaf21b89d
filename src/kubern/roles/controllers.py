"""The controllers, in one loop, and those of the Gateway API while it is defined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from kubern import pki
from kubern.roles.api import issuer
from kubern.roles.context import MASTERS, Context, alone, create, running

if TYPE_CHECKING:
    from kubern.client.defined import Kinds


@asynccontextmanager
async def run(ctx: Context) -> AsyncIterator[None]:
    """Every controller of CONTROLLERS in the one loop."""
    from kubern.client.loop import run_controllers
    from kubern.controllers import controllers as table

    rows = table(means(ctx))
    if ctx.settings.runtime == "containerd":               # somewhere to run it
        from kubern.ingress import controller as ingress

        rows = (*rows, ingress.CONTROLLER)
    ready = asyncio.Event()

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run_controllers(rows, ctx.client, clock=ctx.clock, ready=ready.set))
            if ctx.settings.runtime == "containerd":
                group.create_task(gateways(ctx))
    async with running(ctx.spawn(alone(ctx, "kube-controller-manager", work, ready), "controllers")):
        await ready.wait()
        ctx.tell(f"{len(rows)} controllers")
        yield


async def gateways(ctx: Context) -> None:
    """The Gateway controller, while its API is defined."""
    from kubern.client.defined import run_while_defined
    from kubern.ingress import gateways as row

    async def access(kinds: Kinds) -> None:
        for obj in row.objects():
            await create(ctx.client(MASTERS).with_kinds(kinds), obj)

    async def no_fronts() -> None:
        client = ctx.client(MASTERS)
        for _, version, kind in row.MADE:
            for obj in (await client.list(client.row(version, kind), row.NAMESPACE, labels=row.SPACE_LABEL))[0]:
                await client.delete(client.row(version, kind), row.NAMESPACE, obj["metadata"]["name"])
    await run_while_defined(row.NEEDED, (row.CONTROLLER,), ctx.client(MASTERS), ctx.client, before=access, without=no_fronts, clock=ctx.clock)


def means(ctx: Context) -> Any:
    """What controllers cannot do by themselves: sign certificates and tokens."""
    from kubern.api.authn.tokens import Keys, legacy_token
    from kubern.controllers.context import Context as Means

    p, s = ctx.pki, ctx.settings
    keys = Keys(p.service_account_key, (p.service_account_public,), issuer(s))
    return Means(root_ca=p.ca.cert.decode(), sign=lambda signer, csr, usages, seconds: pki.sign_request(p.ca, csr, usages, seconds),
                 token=lambda account, secret: legacy_token(keys, account, secret), pod_cidr=s.pod_cidr, service_cidr=s.service_cidr,
                 node_grace_s=s.node_grace_s, started_s=ctx.clock(), real_nodes=s.runtime == "containerd",
                 load_balancer_pool=s.load_balancer_pool or (ctx.fabric.load_balancers if ctx.fabric else ""))
