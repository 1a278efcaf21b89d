"""Allocated: what Services have taken, written down where every server sees it, before the Service itself is written.

An address is an IPAddress object, as everybody may list them. A node port is a record of its own, `/registry/ranges/servicenodeports/PORT`, kept
only where several servers share the store: one server alone knows its own writes. Both are created or not at all, so two servers never take the
same; the loser chooses again. A server that ends between the two writes leaves a record without a Service: `repair` removes it once it is so old
that nobody can still be about to write the Service.
Upstream: KEP-1880 (IPAddress), pkg/registry/core/service/{ipallocator,portallocator}/controller (repair).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kubern.api.cache import Collection, Item, value_of
from kubern.model.metadata import parse_timestamp
from kubern.model.object import Object
from kubern.model.time import rfc3339
from kubern.store.protocol import Conflict

if TYPE_CHECKING:
    from kubern.api.handle import Server

log = logging.getLogger(__name__)

MANAGED_BY = "ipallocator.k8s.io"
REPAIR_EVERY_S = 180.0
ABANDONED_S = 60.0                     # a record this old without a Service is nobody's


class Records:
    def __init__(self, server: Server) -> None:
        self._server = server
        self.shared = hasattr(server.store, "caught_up")             # others write there too
        self.addresses = server.cache.collection("networking.k8s.io", "ipaddresses")
        self.ports = server.cache.collection("ranges", "servicenodeports")

    async def take_ip(self, ip: str, namespace: str, name: str) -> bool:
        """False where somebody has it."""
        obj: Object = {
            "metadata": {"name": ip, "uid": str(uuid4()), "creationTimestamp": rfc3339(self._server.clock()), "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv6" if ":" in ip else "IPv4", "ipaddress.kubernetes.io/managed-by": MANAGED_BY}},
            "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}}}
        return await self._take(self.addresses, ip, obj)

    async def take_port(self, port: int, namespace: str, name: str) -> bool:
        obj: Object = {"metadata": {"name": str(port), "creationTimestamp": rfc3339(self._server.clock())},
                       "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}}}
        return await self._take(self.ports, str(port), obj)

    async def _take(self, where: Collection, key: str, obj: Object) -> bool:
        try:
            await self._server.put(where.prefix + key, value_of(obj), 0)
        except Conflict:
            return False
        return True

    async def free(self, what: str | int) -> None:
        """Gives back an address or a port that is ours to give."""
        where = self.ports if isinstance(what, int) else self.addresses
        item = where.items.get(str(what))
        if item is None or (isinstance(what, str) and item.parse()["metadata"].get("labels", {}).get("ipaddress.kubernetes.io/managed-by") != MANAGED_BY):
            return
        try:
            await self._server.delete(where.prefix + item.key, item.revision)
        except Conflict:
            pass

    async def repair(self, abandoned_s: float | None = None) -> None:
        """Makes the records agree with the Services, after a stop between the two writes."""
        from kubern.api.allocate import ips_of, node_ports_of

        if abandoned_s is None:
            abandoned_s = ABANDONED_S if self.shared else 0.0
        ips: dict[Any, tuple[str, str]] = {}
        ports: dict[Any, tuple[str, str]] = {}
        for item in self._server.cache.collection("", "services").range():
            spec, owner = item.parse().get("spec") or {}, (item.namespace, item.name)
            ips.update(dict.fromkeys(ips_of(spec), owner))
            ports.update(dict.fromkeys(node_ports_of(spec), owner))
        for ip, owner in ips.items():
            if ip not in self.addresses.items:
                await self.take_ip(ip, *owner)
        if self.shared:
            for port, owner in ports.items():
                if str(port) not in self.ports.items:
                    await self.take_port(port, *owner)
            for key in self._abandoned(self.ports, map(str, ports), abandoned_s):
                await self.free(int(key))
        for key in self._abandoned(self.addresses, ips, abandoned_s):
            await self.free(key)

    def _abandoned(self, where: Collection, used: Iterable[str], age_s: float) -> list[str]:
        """Records of Services that do not have what is recorded."""
        known, now = set(used), self._server.clock()

        def old(item: Item) -> bool:
            obj = item.peek()
            parent = (obj.get("spec") or {}).get("parentRef") or {}
            made = obj["metadata"].get("creationTimestamp") or ""
            return parent.get("resource") == "services" and not parent.get("group") and (not made or parse_timestamp(made) <= now - age_s)
        return [key for key, item in where.items.items() if key not in known and old(item)]

    async def keep(self) -> None:
        """Runs for ever beside a store others write to."""
        while True:
            await asyncio.sleep(REPAIR_EVERY_S)
            try:
                await self.repair()
            except Exception as e:
                log.warning("records of addresses and ports: %s", e)
