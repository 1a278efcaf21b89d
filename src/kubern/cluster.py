"""The composition root: ROLES in dependency order, one process. Here and only here the rooms of the house are joined.

A role is an async context manager: it is entered when the roles before it are ready, yields when it is ready itself, and cleans up
when it is left, in reverse order. Work that goes on in the background belongs to the cluster's one TaskGroup: if a role dies, the
process ends, and node units outlive it. Not the command line (cli.py) and not the process's life (daemon.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubern import KUBERNETES_VERSION, pki
from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.config import Settings
from kubern.model.addresses import networks
from kubern.model.request import User

if TYPE_CHECKING:
    from kubern.api.audit import Audit
    from kubern.api.handle import Server
    from kubern.client.defined import Kinds
    from kubern.kubelet.fabric import Fabric
    from kubern.kubelet.hollow import Hollow
    from kubern.kubelet.node import Unit

log = logging.getLogger("kubern")

REGISTRY_PORT = 5001
LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 120.0
STOP_MAX_S = 9.0                       # from SIGTERM to the end of the process, whatever happens
DRAIN_S = 4.0                          # for requests that are being answered when the end comes
ROUTES_GATHER_S = 0.05
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
    def listens(self) -> list[str]:
        """Where the API server listens: also on the bridge of this machine's nodes, which reach no other address if one was chosen."""
        bind = self.settings.bind
        return [bind, self.fabric.gateway] if self.fabric and bind not in ("0.0.0.0", "::", self.fabric.gateway) else [bind]

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


# --- roles ------------------------------------------------------------------------------------------------------------

@asynccontextmanager
async def api(ctx: Context) -> AsyncIterator[None]:
    """Store and API server, listening with TLS."""
    from kubern.api import access, http
    from kubern.api.handle import Server
    from kubern.api.settings import ApiSettings

    s, p = ctx.settings, ctx.pki
    low, _, high = s.node_ports.partition("-")
    kubelet = p.clients["apiserver-kubelet-client"]
    async with AsyncExitStack() as stack:                    # left in reverse: first nobody is listened to any more, last the audit is closed
        audit = await stack.enter_async_context(audited(s))
        allowed = access.read(access.Files(own_issuers=(issuer(s),), **{name: getattr(s, name) for name in access.SETTINGS}))
        store = await open_store(s)
        stack.push_async_callback(store.close)
        if s.encryption_config and s.encryption_config_automatic_reload == "true":
            await stack.enter_async_context(running(ctx.spawn(follow_encryption(s.encryption_config, store), "encryption")))
        server = Server(store, settings=ApiSettings(
            service_cidr=s.service_cidr, node_ports=(int(low), int(high)), advertise_address=ctx.address, advertise_port=s.port,
            cluster_domain=s.cluster_domain, client_ca=p.ca.cert, front_proxy_ca=p.front_proxy_ca.cert,
            service_account_issuer=issuer(s), service_account_public_keys=(p.service_account_public,),
            service_account_signing_key=p.service_account_key, kubelet_client_cert=str(kubelet.cert_path), kubelet_client_key=str(kubelet.key_path),
            proxy_client_cert=str(p.front_proxy_client.cert_path), proxy_client_key=str(p.front_proxy_client.key_path)))
        server.audit = audit
        server.flags = {name.replace("_", "-"): str(value) for name, value in asdict(s).items()}
        stack.push_async_callback(server.stop)
        await server.start()
        ctx.server = server
        await stack.enter_async_context(access.applied(allowed, server))
        context = http.ssl_context(str(p.apiserver.cert_path), str(p.apiserver.key_path), p.ca.cert + p.front_proxy_ca.cert)
        listening = await http.serve(server.handle, ctx.listens, s.port, context, fast=server.fast)
        stack.push_async_callback(listening.close, DRAIN_S)
        write_kubeconfigs(ctx)
        ctx.tell(f"API server {KUBERNETES_VERSION} on https://{'127.0.0.1' if s.bind == '0.0.0.0' else s.bind}:{s.port}")
        yield


@asynccontextmanager
async def controllers(ctx: Context) -> AsyncIterator[None]:
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
    from kubern import join
    from kubern.client.defined import run_while_defined
    from kubern.ingress import gateways as row

    async def access(kinds: Kinds) -> None:
        for obj in row.objects():
            await join.create(ctx.client(MASTERS).with_kinds(kinds), obj)

    async def no_fronts() -> None:
        client = ctx.client(MASTERS)
        for _, version, kind in row.MADE:
            for obj in (await client.list(client.row(version, kind), row.NAMESPACE, labels=row.SPACE_LABEL))[0]:
                await client.delete(client.row(version, kind), row.NAMESPACE, obj["metadata"]["name"])
    await run_while_defined(row.NEEDED, (row.CONTROLLER,), ctx.client(MASTERS), ctx.client, before=access, without=no_fronts, clock=ctx.clock)


async def alone(ctx: Context, name: str, work: Callable[[], Coroutine[Any, Any, None]], ready: asyncio.Event) -> None:
    """Does work that one process of a cluster may do at a time. A store others can share decides by a Lease who."""
    from kubern.client.lease import campaign

    if not ctx.settings.store.startswith("etcd://"):
        await work()
        return
    ready.set()                                              # whoever leads, the cluster goes on
    await campaign(ctx.client(User(f"system:{name}", ("system:authenticated",)), name), name, work, ctx.clock)


def scheduler_configuration(path: str) -> Any:
    """The scheduler's Configuration from a file; the standard one without. Raises OSError or BadConfiguration."""
    if not path:
        from kubern.scheduler.profile import STANDARD
        return STANDARD
    import yaml

    from kubern.scheduler.configuration import BadConfiguration, parse

    try:
        return parse(yaml.safe_load(Path(path).read_text()))
    except (yaml.YAMLError, BadConfiguration) as e:
        raise OSError(f"{path}: {e}") from None


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


@asynccontextmanager
async def scheduler(ctx: Context) -> AsyncIterator[None]:
    from kubern.api.call import Call
    from kubern.model.request import Response
    from kubern.model.status import not_found
    from kubern.scheduler.run import Scheduler

    ready = asyncio.Event()
    client = ctx.client(User("system:kube-scheduler", ("system:authenticated",)), f"kube-scheduler/{KUBERNETES_VERSION}")
    at_work: Scheduler | None = None

    async def work() -> None:
        nonlocal at_work
        mirrors = Mirrors(client)
        at_work = Scheduler(client, mirrors, ctx.clock, configuration=scheduler_configuration(ctx.settings.scheduler_config))
        try:
            await at_work.run(ready.set)
        finally:
            at_work = None
            await mirrors.close()
    async with running(ctx.spawn(alone(ctx, "kube-scheduler", work, ready), "scheduler")):
        await ready.wait()

        async def why(call: Call) -> Response:
            found = at_work.why(call.attributes.namespace, call.attributes.name) if at_work is not None else None
            if found is None:
                raise not_found("", "pods", call.attributes.name)
            return Response(200, [("Content-Type", "application/json")], json.dumps(found).encode())
        assert ctx.server is not None
        ctx.server.unlisted["", "pods", "why"] = why
        ctx.tell("scheduler")
        yield


@asynccontextmanager
async def nodes(ctx: Context) -> AsyncIterator[None]:
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


@asynccontextmanager
async def metrics(ctx: Context) -> AsyncIterator[None]:
    """metrics.k8s.io, for kubectl top and the autoscaler."""
    from kubern.metrics_api import MetricsApi

    assert ctx.server is not None
    certificate = ctx.pki.clients["apiserver-kubelet-client"]
    api = MetricsApi(ctx.client(MASTERS, "metrics-server"), certificate.cert_path.read_bytes(), certificate.key_path.read_bytes(), ctx.clock)
    await api.mount(ctx.server.extra_paths, ctx.server.remote_rows)
    try:
        yield
    finally:
        await api.close()


@asynccontextmanager
async def autoscaler(ctx: Context) -> AsyncIterator[None]:
    """Nodes come and go as pods need them; only where node groups are configured."""
    s = ctx.settings
    from kubern.autoscaler.groups import external, parse_groups, parse_timings

    service = external(s.node_groups)
    if not s.node_groups or (not service and ctx.hollow is None and ctx.fabric is None):      # no groups, or the nodes are another process's
        yield
        return
    from kubern.autoscaler.external import External, read_config
    from kubern.autoscaler.providers import Local, Named, Provider, Simulated
    from kubern.autoscaler.run import NAME, Autoscaler

    groups = parse_groups(s.node_groups)
    provider: Provider
    if service:
        provider = External(read_config(service))
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
            await Autoscaler(client, mirrors, provider, groups, parse_timings(s.autoscaler), ctx.clock).run(ready.set)
        finally:
            await mirrors.close()
    async with running(ctx.spawn(alone(ctx, NAME, work, ready), "autoscaler")):
        await ready.wait()
        ctx.tell(f"autoscaler: {', '.join(f'{g.name} {g.min} to {g.max} nodes' for g in groups) or f'groups of the service in {service}'}")
        yield


@dataclass(frozen=True, slots=True)
class Role:
    name: str
    run: Callable[[Context], Any]


ROLES: tuple[Role, ...] = (Role("api", api), Role("controllers", controllers), Role("scheduler", scheduler), Role("metrics", metrics),
                           Role("nodes", nodes), Role("autoscaler", autoscaler))


# --- parts of roles ---------------------------------------------------------------------------------------------------

async def open_to_nodes(ctx: Context) -> None:
    """What real nodes find in the cluster: access for their proxies and DNS, storage, and what lets other machines join."""
    from kubern import join
    from kubern.controllers import localpath
    from kubern.ingress import controller as ingress
    from kubern.kubelet import network

    await network.ensure_access(ctx.client(MASTERS))
    for obj in (*localpath.objects(), *ingress.objects()):
        await join.create(ctx.client(MASTERS), obj)
    await join.ensure(ctx, f"http://{ctx.fabric.gateway}:{REGISTRY_PORT}" if ctx.fabric else "")


def issuer(s: Settings) -> str:
    """Who signs service-account tokens: a name every pod resolves by its search path, and the serving certificate carries."""
    return "https://kubernetes.default"


async def open_store(s: Settings) -> Any:
    """The store of the settings, with encryption where it is asked for."""
    if not s.encryption_config:
        return await open_driver(s)
    from kubern.store.encrypted import EncryptedStore
    from kubern.store.encryption import read

    encryption = read(s.encryption_config)                   # before anything is opened
    return EncryptedStore(await open_driver(s), encryption)


async def follow_encryption(path: str, store: Any) -> None:
    """Takes up what the file says when it changes, if its keys open all that is there."""
    from kubern.api.configfile import BadFile, follow
    from kubern.store.encryption import BadConfiguration, CannotOpen, read
    from kubern.store.protocol import Unavailable

    async def changed() -> None:
        try:
            await store.configure(read(path))
        except (BadConfiguration, CannotOpen, Unavailable) as e:
            raise BadFile(str(e)) from None
    await follow(path, changed, "encryption")


@asynccontextmanager
async def audited(s: Settings) -> AsyncIterator[Audit | None]:
    """The audit of the settings: a policy, and where its events go. Raises BadPolicy, BadFile."""
    if not s.audit_policy_file:
        yield None
        return
    from kubern.api import audit
    from kubern.api.audit.log import FORMATS
    from kubern.api.audit.webhook import Batching, WebhookSink
    from kubern.api.configfile import BadFile
    from kubern.api.remote import Remote
    from kubern.model.time import duration_s

    policy = audit.read(s.audit_policy_file)
    if s.audit_log_format not in FORMATS:
        raise BadFile(f"audit-log-format must be one of {', '.join(FORMATS)}, not {s.audit_log_format!r}")
    try:
        wait_s, pause_s = duration_s(s.audit_webhook_batch_max_wait), duration_s(s.audit_webhook_initial_backoff)
    except ValueError as e:
        raise BadFile(f"audit-webhook: {e}") from None
    log = webhook = None
    if s.audit_log_path or not s.audit_webhook_config_file:
        log = audit.Log(s.audit_log_path or str(s.home / "audit.log"), s.audit_log_maxsize << 20, s.audit_log_maxbackup, s.audit_log_maxage,
                        s.audit_log_compress == "true", s.audit_log_format)
    if s.audit_webhook_config_file:
        batching = Batching(s.audit_webhook_batch_buffer_size, s.audit_webhook_batch_max_size, wait_s,
                            s.audit_webhook_batch_throttle_qps, s.audit_webhook_batch_throttle_burst)
        webhook = WebhookSink(Remote(s.audit_webhook_config_file, pause_s=pause_s), batching)
    try:
        yield audit.Audit(policy, [sink for sink in (log, webhook) if sink is not None])
    finally:
        if webhook is not None:
            await webhook.close()
        if log is not None:
            log.close()


async def open_driver(s: Settings) -> Any:
    if s.store == "memory":
        from kubern.store.memory import MemoryStore

        return MemoryStore()
    if s.store.startswith("etcd://"):
        from kubern.store.etcd import EtcdStore

        return await EtcdStore.open(s.store)
    from kubern.store.sqlite import SqliteStore

    return await SqliteStore.open(s.home / "kubern.db")


def write_kubeconfigs(ctx: Context) -> None:
    """D/admin.kubeconfig for people on this machine."""
    s, p = ctx.settings, ctx.pki
    name = "kubern" if s.port == 6443 else f"kubern-{s.port}"
    host = "127.0.0.1" if s.bind in ("0.0.0.0", "::") else s.bind
    pki.write_kubeconfig(s.home / "admin.kubeconfig", pki.kubeconfig(name, f"https://{host}:{s.port}", p.ca.cert, p.clients["admin"]))


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


def lease_s(node_grace_s: float) -> float:
    """How long nodes' leases hold: 40 s, or four fifths of the control plane's patience where that is shorter (upstream: 40 of 50)."""
    return min(40.0, 0.8 * node_grace_s)


def unit_settings(s: Settings, p: pki.Pki, gateway: str, name: str) -> Any:
    """What create_unit needs for this node; writes its kubeconfig and serving certificate."""
    from kubern.kubelet.network import GROUP
    from kubern.kubelet.node import UnitSettings

    server = f"https://{gateway}:{s.port}"
    home = s.home / "nodes" / name
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = home / "kubelet.kubeconfig"
    pki.write_kubeconfig(path, pki.kubeconfig("kubern", server, p.ca.cert, p.node_client(name), user=f"system:node:{name}"))
    pki.write_private(home / "ca.crt", p.ca.cert)
    network_path = home / "network.kubeconfig"
    pair = pki.client(p.directory, f"network-{name}-client", f"kubern:network:{name}", (GROUP,), p.ca)
    pki.write_kubeconfig(network_path, pki.kubeconfig("kubern", server, p.ca.cert, pair, user=f"kubern:network:{name}"))
    return UnitSettings(home=s.home, name=name, server=server, kubeconfig=str(path), network_kubeconfig=str(network_path), registry=f"http://{gateway}:{REGISTRY_PORT}",
                        pod_cidr=s.pod_cidr, service_cidr=s.service_cidr, cluster_dns=cluster_dns(s.service_cidr), cluster_domain=s.cluster_domain,
                        log_level=s.log_level, lease_s=lease_s(s.node_grace_s))


def cluster_dns(service_cidr: str) -> str:
    """The tenth address of the service range, as everywhere."""
    return str(networks(service_cidr)[0][10])


def start_units(ctx: Context) -> list[str]:
    """Start or adopt the units of settings.nodes; one killed on purpose (nodes/NAME/killed) stays away. Returns the names. Blocking."""
    from kubern.kubelet.node import cleanup_stale, create_unit, list_units

    s = ctx.settings
    assert ctx.fabric is not None
    records = {u.name: u.config for u in list_units(s.home)}
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


# --- the process ------------------------------------------------------------------------------------------------------

def run(s: Settings, tell: Tell) -> int:
    """Run the cluster in this process until SIGTERM or SIGINT. Returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=s.log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    s.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(s.home, 0o700)
    pki.write_private(s.home / "cluster.json", json.dumps({**asdict(s), "pid": os.getpid()}).encode())
    gc.set_threshold(20_000, 5, 1000)      # the middle generation is what pauses: 21 ms at most as pods pile up; of (50_000, 20, 100) 198 ms
    gc.disable()                           # until everything is there: what start makes stays
    sys.setswitchinterval(0.0005)          # the store's writer must not wait long for the interpreter when its sync is done
    try:
        import uvloop

        return uvloop.run(_run(s, tell))
    except TimeoutError:
        log.error("the nodes did not become Ready within %.0f s; see: kubern logs NODE", READY_TIMEOUT_S)
        return 1
    except Exception as e:
        from kubern.api.audit import BadPolicy
        from kubern.api.configfile import BadFile
        from kubern.kubelet.node import CannotRun
        from kubern.store.encryption import BadConfiguration
        from kubern.store.protocol import Broken, Unavailable

        for each in e.exceptions if isinstance(e, ExceptionGroup) else (e,):
            if isinstance(each, (CannotRun, OSError, BadConfiguration, BadFile, BadPolicy, Broken, Unavailable)):
                why = explained(each, s)
                log.error("%s", why)
                tell(f"kubern: {why}")
            else:
                log.error("ended by an error", exc_info=each)
        return 1


def explained(e: Exception, s: Settings) -> str:
    """An error of the machine, and what to do about it."""
    match getattr(e, "errno", None):
        case errno.EADDRINUSE:
            return f"port {s.port} is in use by another process; choose another with --port, or stop the other cluster with kubern down --data-dir"
        case errno.EADDRNOTAVAIL:
            return f"{s.bind} is no address of this machine; give another with --bind"
        case errno.ENOSPC:
            return f"the disk of {s.data_dir} is full; free some space and start again"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{e}; choose a directory you may write to with --data-dir"
    return str(e)


def give_up() -> None:
    """Ends the process that was asked to stop and has not: a thread waits for something outside. What was acknowledged is on disk."""
    log.error("not everything stopped within %.0f s; ending", STOP_MAX_S)
    os._exit(1)


async def _run(s: Settings, tell: Tell) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if not stop.is_set():
            stop.set()
            last = threading.Timer(STOP_MAX_S, give_up)
            last.daemon = True
            last.start()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, asked)
    chosen = [r for r in ROLES if s.roles == "all" or r.name in s.roles.split(",")]
    fabric = None
    if (s.nodes or s.node_groups) and s.runtime == "containerd" and any(r.name == "nodes" for r in chosen):
        from kubern.kubelet import fabric as f
        from kubern.kubelet.node import check_machine

        check_machine()
        fabric = await asyncio.to_thread(f.ensure, f.cluster_id(s.home), s.home / "fabric.json", s.pod_cidr, s.service_cidr)
        s = replace(s, pod_cidr=fabric.pod_cidr)             # another cluster on this machine may have the default
    names = [n for n in s.sans.split(",") if n]
    addresses = [n for n in names if n.replace(".", "").isdigit() or ":" in n]
    gateways = [a for a in (fabric.gateway, fabric.gateway6) if a] if fabric else []
    ips = [first_service_address(s.service_cidr), own_address(), *gateways, *addresses]
    keys = pki.ensure(s.home / "pki", [n for n in [socket.gethostname(), *names] if n not in addresses], ips)
    async with asyncio.TaskGroup() as tasks:
        ctx = Context(s, tell, tasks, keys, fabric)
        async with AsyncExitStack() as stack:
            starting = asyncio.ensure_future(_enter(stack, ctx, chosen))
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                gc.collect()
                gc.freeze()
                gc.enable()
                tell("ready")
                log.info("ready; kubeconfig: %s", s.home / "admin.kubeconfig")
                await stopping
            else:
                await end(starting)
            stopping.cancel()
            log.info("stopping")
    return 0


async def _enter(stack: AsyncExitStack, ctx: Context, roles: list[Role]) -> None:
    for role in roles:
        await stack.enter_async_context(role.run(ctx))


def first_service_address(service_cidr: str) -> str:
    return str(networks(service_cidr)[0][1])
