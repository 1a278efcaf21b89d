"""The nodes that this machine holds, and what they find around them: images, names, routes, and the way in for other machines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from kubern import KUBERNETES_VERSION
from kubern.client.mirror import Mirrors
from kubern.model import bootstrap
from kubern.model.request import User
from kubern.roles.context import MASTERS, Context, create, end, running
from kubern.roles.units import REGISTRY_PORT, cluster_dns, unit_settings

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 120.0
ROUTES_GATHER_S = 0.05


@asynccontextmanager
async def run(ctx: Context) -> AsyncIterator[None]:
    """The nodes this machine holds: real ones in units of their own, or simulated ones in this process."""
    s = ctx.settings
    if s.runtime == "containerd":
        await open_to_nodes(ctx)
    if s.runtime == "none" or not (s.nodes or s.node_groups):
        yield
        return
    if s.runtime == "simulated":
        from kubern.kubelet.hollow import Hollow, shapes

        client = ctx.client(User("system:simulated-nodes", ("system:masters", "system:authenticated")), "kubelet/simulated")
        ctx.hollow = Hollow(client, shapes(s.nodes, s.node_prefix), version=KUBERNETES_VERSION)
        async with running(ctx.spawn(ctx.hollow.run(), "simulated nodes")):
            async with asyncio.timeout(READY_TIMEOUT_S):         # looking at all of them meanwhile would take more than registering them
                await ctx.hollow.ready.wait()
            await nodes_ready(ctx, [f"{s.node_prefix}{i}" for i in range(s.nodes)])
            ctx.tell(f"{s.nodes} simulated nodes: pods turn Running without containers")
            yield
        return
    async with registry(ctx), routes(ctx), names_of_the_world(ctx):
        names = await asyncio.to_thread(start_units, ctx)
        await nodes_ready(ctx, names, ctx.began_s)
        ctx.tell(f"nodes ready: {', '.join(names)}")
        yield                                                # units go on without us: pods keep serving


async def open_to_nodes(ctx: Context) -> None:
    """What real nodes find in the cluster: access for their proxies and DNS, storage, and what lets other machines join."""
    from kubern.controllers import localpath
    from kubern.ingress import controller as ingress
    from kubern.kubelet import network

    await network.ensure_access(ctx.client(MASTERS))
    for obj in (*localpath.objects(), *ingress.objects()):
        await create(ctx.client(MASTERS), obj)
    await let_join(ctx, f"http://{ctx.fabric.gateway}:{REGISTRY_PORT}" if ctx.fabric else "")


async def let_join(ctx: Context, registry: str) -> None:
    """Puts cluster-info, the nodes' common settings and the access rules in place; objects somebody changed stay, addresses are kept true."""
    s, client = ctx.settings, ctx.client(MASTERS)
    for obj in bootstrap.access():
        await create(client, obj)
    config = {"podCIDR": s.pod_cidr, "serviceCIDR": s.service_cidr, "clusterDNS": cluster_dns(s.service_cidr), "clusterDomain": s.cluster_domain,
              "registry": registry}
    for obj in (bootstrap.cluster_info(f"https://{url_host(ctx.public_address)}:{s.port}", ctx.pki.ca.cert), bootstrap.node_config(config)):
        have = await create(client, obj)
        data = {**(have.get("data") or {}), **obj["data"]} if have else {}
        if have and data != have.get("data"):
            await client.update({**have, "apiVersion": "v1", "kind": "ConfigMap", "data": data})


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@asynccontextmanager
async def registry(ctx: Context) -> AsyncIterator[None]:
    """Our own images, and a way to real registries, for the units."""
    from kubern.images import build
    from kubern.images.library import Library
    from kubern.images.registry import Registry
    from kubern.images.upstream import Upstream

    assert ctx.fabric is not None
    library = Library(ctx.settings.home / "images")
    await asyncio.to_thread(build.ensure, library, progress=ctx.tell)
    shop = Registry(library, Upstream())
    await shop.serve(ctx.fabric.gateway, REGISTRY_PORT)
    try:
        yield
    finally:
        await shop.close()


@asynccontextmanager
async def names_of_the_world(ctx: Context) -> AsyncIterator[None]:
    """A DNS relay on the fabric: units have no other way to the machine's resolvers."""
    from kubern.dns.run import configure_relay, relay

    assert ctx.fabric is not None
    listening = await relay(ctx.fabric.gateway)
    task = ctx.spawn(configure_relay(ctx.client(MASTERS), listening), "DNS relay")
    try:
        yield
    finally:
        await end(task)
        listening.close()


@asynccontextmanager
async def routes(ctx: Context) -> AsyncIterator[None]:
    """The machine's own routes to pods and to load balancers' addresses, kept as Nodes and Services come and go."""
    from kubern.kubelet import fabric, vips

    names = ["nodes", "services", "endpointslices.discovery.k8s.io"]
    mirrors = Mirrors(ctx.client(MASTERS))
    changed = asyncio.Event()
    for name in names:
        mirrors.mirror(name).handlers.append(lambda old, new: changed.set())

    async def keep() -> None:
        await mirrors.synced(names)
        before: dict[str, str] | None = None
        while True:
            changed.clear()
            nodes, services, slices = (mirrors.mirror(name).list() for name in names)
            nodes = list(nodes)
            want = {**fabric.node_routes(nodes, ""), **vips.routes(services, slices, nodes)}
            if want != before:
                try:
                    await asyncio.to_thread(fabric.sync_routes, want, (*ctx.fabric.subnets, *ctx.fabric.pod_cidr.split(",")) if ctx.fabric else ())
                    before = want
                except OSError as e:
                    log.warning("routes to pods: %s", e)
            await changed.wait()
            await asyncio.sleep(ROUTES_GATHER_S)
    task = ctx.spawn(keep(), "routes")
    try:
        yield
    finally:
        await end(task)
        await mirrors.close()


def start_units(ctx: Context) -> list[str]:
    """Start or adopt the units of settings.nodes; one killed on purpose (nodes/NAME/killed) stays away. Returns the names. Blocking."""
    from kubern.kubelet.node import cleanup_stale, create_unit, list_units

    s = ctx.settings
    assert ctx.fabric is not None
    records = {u.name: u.config for u in list_units(s.home) if not u.config.host}       # the machine itself is `up --host-node`'s
    known = list(records)
    cleanup_stale(s.home, keep=[u.name for u in list_units(s.home) if u.alive()] or [""])
    wanted = list(dict.fromkeys([*known, *(f"{s.node_prefix}{i}" for i in range(s.nodes))]))
    wanted = [n for n in wanted if not (s.home / "nodes" / n / "killed").exists()]
    for name in wanted:
        settings = unit_settings(s, ctx.pki, ctx.fabric.gateway, name)
        if name in records:                                  # labels and taints its node group gave it
            settings = replace(settings, labels=records[name].labels, taints=tuple(records[name].taints))
        ctx.units.append(create_unit(settings, wait=False))
    return wanted


async def nodes_ready(ctx: Context, names: list[str], since_s: float = 0.0) -> None:
    """Wait until all these Nodes are Ready, and were heard of after `since_s`: a status may be of a node that died since."""
    from kubern.model.object import condition
    from kubern.model.resources import by_kind
    from kubern.model.time import micro

    client = ctx.client(MASTERS)
    node, lease, since = by_kind[("v1", "Node")], by_kind[("coordination.k8s.io/v1", "Lease")], micro(since_s)
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            items, _ = await client.list(node)
            ready = {n["metadata"]["name"] for n in items if (condition(n, "Ready") or {}).get("status") == "True"}
            if since_s and ready >= set(names):
                leases, _ = await client.list(lease, "kube-node-lease")
                ready &= {x["metadata"]["name"] for x in leases if (x["spec"].get("renewTime") or "") >= since}
            if ready >= set(names):
                return
            await asyncio.sleep(0.05)
