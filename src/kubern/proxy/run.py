"""The proxy role: mirrors of services and endpoint slices in, nftables out. One per node, in the node's network namespace.

The first application replaces the table as a whole; from then on only what changed is written, a batch of changes as one
transaction: elements straight to the kernel, all else through nft. If a change is refused, or the table is not what was written (guard.py),
the whole is written again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from kubern.client.mirror import Mirrors
from kubern.model.object import Object, deleting
from kubern.proxy import conntrack, netlink, nft
from kubern.proxy.endpoints import Node, collect
from kubern.proxy.guard import Guard
from kubern.proxy.health import Check, Figures, HealthServers
from kubern.proxy.policy_run import PolicyRole
from kubern.proxy.render import TABLE, TYPES, Settings, addresses, owner, policies, render_service, skeleton, slice_owner, table_of
from kubern.proxy.ruleset import Part, Ruleset

log = logging.getLogger(__name__)

SERVICES, SLICES, NODES = "services", "endpointslices.discovery.k8s.io", "nodes"
GATHER_S = 0.005                       # changes that come within this time go into one transaction
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 30.0
ZONE = "topology.kubernetes.io/zone"
TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"


class Proxy:
    """State of the role: rules as rendered, owners to look at again."""

    def __init__(self, settings: Settings, families: tuple[int, ...] = (4, 6), health: HealthServers | None = None) -> None:
        self.settings, self.families = settings, families
        self.rules = Ruleset()
        self.figures = Figures()
        self.services: dict[str, Object] = {}
        self.slices: dict[str, dict[str, Object]] = {}
        self.dirty: set[str] = set()
        self.whole = True                          # the table must be written anew
        self.wake = asyncio.Event()
        self.health = health
        self._udp_changed: set[str] = set()
        self.kernel = netlink.Kernel()
        self.guard = Guard(TABLE, map(table_of, families), self.rules, self.kernel, self.again)
        self._checks: dict[str, tuple[int, Check]] = {}
        self._checks_changed = False

    # ---- events
    def service_changed(self, old: Object | None, new: Object | None) -> None:
        key = owner(new or old)                    # type: ignore[arg-type]
        if new is None:
            self.services.pop(key, None)
        else:
            self.services[key] = new
        self._touch(key)

    def slice_changed(self, old: Object | None, new: Object | None) -> None:
        if old is not None:
            self._drop_slice(old)
        if new is not None:
            self._drop_slice(new)
            key = slice_owner(new)
            self.slices.setdefault(key, {})[new["metadata"]["name"]] = new
            self._touch(key)

    def _drop_slice(self, slice_: Object) -> None:
        key = slice_owner(slice_)
        rows = self.slices.get(key)
        if rows and rows.pop(slice_["metadata"]["name"], None) is not None:
            if not rows:
                del self.slices[key]
            self._touch(key)

    def node_changed(self, old: Object | None, new: Object | None) -> None:
        """Our own Node: its zone and addresses decide."""
        if new is None or new["metadata"]["name"] != self.settings.node.name:
            return
        self.figures.eligible = not deleting(new) and not any(t.get("key") == TO_BE_DELETED for t in (new.get("spec") or {}).get("taints") or ())
        node = node_of(new)
        if node != self.settings.node:
            self.settings = replace(self.settings, node=node)
            self.dirty.update(self.services)
            self.wake.set()

    def again(self) -> None:
        """The table is not what it should be: the whole is written."""
        self.whole, self.figures.healthy = True, False
        self.wake.set()

    def _touch(self, key: str) -> None:
        self.dirty.add(key)
        self.wake.set()

    # ---- work
    def pending(self) -> str | bytes:
        """Everything that is dirty, as nft text or as messages for the kernel; afterwards nothing is."""
        changes: dict[str, Part | None] = {}
        for key in self.dirty:
            service = self.services.get(key)
            part = render_service(service, self.slices.get(key, {}).values(), self.settings) if service else None
            changes[key] = part
            self._check(key)
            if any(" . udp . " in e[2] for p in (part, self.rules.parts.get(key)) if p for e in p.elements):
                self._udp_changed.add(key)
        self.dirty.clear()
        delta = self.rules.update(changes)
        if self.whole:
            text = "".join(skeleton(self.settings, f) for f in self.families) + self.rules.everything().text(TABLE)
            self.figures.full += 1
            self.whole = False
            return text
        return netlink.encode(delta, TABLE, TYPES) or delta.text(TABLE) if delta else ""

    async def apply(self) -> None:
        """Writes what is pending. Raises NftError; then the next call writes the whole."""
        began = time.monotonic()
        async with self.guard.alone:
            whole, text = self.whole, self.pending()
            if text:
                try:
                    if isinstance(text, bytes):
                        self.kernel.send(text)
                    else:
                        await nft.apply(text)
                    if whole:
                        self.guard.written()
                except BaseException:
                    self.again()
                    raise
                self.figures.changes += 1
        f = self.figures
        f.last_s, f.written_at_s, f.services, f.healthy = time.monotonic() - began, time.time(), len(self.services), True
        f.spent_s += f.last_s
        if self._udp_changed:
            fronts = self.udp_fronts(self._udp_changed)
            self._udp_changed = set()
            for family, rows in fronts.items():
                try:
                    await asyncio.to_thread(conntrack.forget, rows, family)
                except OSError as e:
                    log.warning("conntrack: %s", e)
        if self.health and self._checks_changed:
            self._checks_changed = False
            await self.health.set(self.checks())

    def udp_fronts(self, keys: set[str]) -> dict[int, dict[conntrack.Front, frozenset[tuple[str, int]]]]:
        """Family -> where clients of these services' UDP ports send to -> who may answer."""
        out: dict[int, dict[conntrack.Front, frozenset[tuple[str, int]]]] = {}
        for key in keys:
            service = self.services.get(key)
            for family in self.families if service else ():
                assert service is not None
                cluster, external, vips = addresses(service, family)
                for p in service["spec"].get("ports") or ():
                    if p.get("protocol") != "UDP" or not cluster:
                        continue
                    found = collect(self.slices.get(key, {}).values(), p, family, self.settings.node.name)
                    usable = frozenset((e.ip, e.port) for e in found if e.ready or e.serving)
                    rows = out.setdefault(family, {})
                    for a in (cluster, *external, *vips):
                        rows[a, p["port"]] = usable
                    if p.get("nodePort"):
                        rows["", p["nodePort"]] = usable
        return out

    def checks(self) -> dict[int, Check]:
        """healthCheckNodePort -> what to answer."""
        return dict(self._checks.values())

    def _check(self, key: str) -> None:
        """Keeps what is answered for one service true."""
        service = self.services.get(key)
        spec = (service or {}).get("spec") or {}
        port = spec.get("healthCheckNodePort")
        new: tuple[int, Check] | None = None
        if service is not None and port and spec.get("type") == "LoadBalancer" and policies(spec, False)[1]:
            local = {e.ip for f in self.families for p in spec.get("ports") or ()
                     for e in collect(self.slices.get(key, {}).values(), p, f, self.settings.node.name) if e.local and e.ready}
            new = port, Check(service["metadata"].get("namespace") or "", service["metadata"]["name"], len(local))
        if new != self._checks.get(key):
            self._checks_changed = True
            if new is None:
                del self._checks[key]
            else:
                self._checks[key] = new


def node_of(obj: Object) -> Node:
    addresses_ = tuple(a["address"] for a in (obj.get("status") or {}).get("addresses") or () if a.get("type") == "InternalIP")
    return Node(obj["metadata"]["name"], (obj["metadata"].get("labels") or {}).get(ZONE) or "", addresses_)


async def run(mirrors: Mirrors, node: str, pod_cidrs: tuple[str, ...], service_cidrs: tuple[str, ...],
              families: tuple[int, ...] = (4, 6), ready: Callable[[], None] = lambda: None) -> None:
    """The role. `ready` is called after the first application. Runs until cancelled; removes nothing then (traffic goes on)."""
    health = HealthServers()
    proxy = Proxy(Settings(Node(node), pod_cidrs, service_cidrs), families, health)
    for name, handler in ((SERVICES, proxy.service_changed), (SLICES, proxy.slice_changed), (NODES, proxy.node_changed)):
        mirrors.mirror(name).handlers.append(handler)
        for obj in mirrors.mirror(name).list():
            handler(None, obj)
    await mirrors.synced((SERVICES, SLICES, NODES))
    await health.own(proxy.figures)
    await asyncio.to_thread(conntrack.keep_long)
    async with asyncio.TaskGroup() as group:
        group.create_task(PolicyRole(mirrors, node).run(), name="network policy")
        group.create_task(proxy.guard.run(), name="guard")
        delay = 0.0
        try:
            while True:
                try:
                    await proxy.apply()
                    delay = 0.0
                    ready()
                except nft.NftError as e:
                    log.error("nft: %s", e)
                    delay = min(max(delay * 2, RETRY_FIRST_S), RETRY_MAX_S)
                if delay:
                    await asyncio.sleep(delay)
                else:
                    await proxy.wake.wait()
                    await asyncio.sleep(GATHER_S)
                proxy.wake.clear()
        finally:
            health.close()
            proxy.kernel.close()
