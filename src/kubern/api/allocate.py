"""Allocate: cluster IPs and node ports of Services, out of the service CIDRs and the node-port range.

What is taken is read off the cache: an IPAddress object names every address in use, Services their ports; what writes on their way
have chosen stands in `_pending`. Dynamic allocation takes the upper band first and leaves the lower to those who choose themselves.
Upstream: pkg/registry/core/service/{storage/alloc.go,ipallocator,portallocator}; KEP-3070, KEP-3668 (bands), KEP-1880 (IPAddress).
"""

from __future__ import annotations

import ipaddress
import logging
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kubern.api.cache import Change, value_of
from kubern.model import invalid
from kubern.model.addresses import networks
from kubern.model.invalid import FieldError
from kubern.model.kinds import service_ips
from kubern.model.object import Object
from kubern.model.status import StatusError, internal
from kubern.model.status import invalid as invalid_status
from kubern.model.time import rfc3339
from kubern.store.protocol import Conflict

if TYPE_CHECKING:
    from kubern.api.call import Call
    from kubern.api.handle import Server

log = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MANAGED_BY = "ipallocator.k8s.io"
PROBES_MAX = 4096            # random tries in a band before it is walked


def _band(size: int, least: int, most: int, step: int) -> int:
    """How many of the first addresses or ports are left to those who choose themselves."""
    if size <= least:
        return 0
    return max(least, min(size // step, most))


class Taken:
    """A write's choices. `undo` gives them back, `commit` makes them last."""

    def __init__(self, allocator: Allocator, service: Object) -> None:
        self._a, self._service = allocator, service
        self.ips: list[str] = []
        self.ports: list[int] = []
        self.release_ips: list[str] = []

    def undo(self) -> None:
        for ip in self.ips:
            self._a.pending_ips.discard(ip)
        for port in self.ports:
            self._a.pending_ports.discard(port)
        self.ips, self.ports = [], []

    async def commit(self) -> None:
        meta = self._service["metadata"]
        for ip in self.ips:
            await self._a.record(ip, meta.get("namespace", ""), meta["name"])
        for ip in self.release_ips:
            await self._a.forget(ip)
        self.undo()


class Allocator:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.low, self.high = server.settings.node_ports
        self.pending_ips: set[str] = set()
        self.pending_ports: set[int] = set()
        self._used_ports: dict[int, int] = {}
        self._port_offset = _band(self.high - self.low + 1, 16, 128, 32)
        self.addresses = server.cache.collection("networking.k8s.io", "ipaddresses")
        self.cidrs = server.cache.collection("networking.k8s.io", "servicecidrs")
        services = server.cache.collection("", "services")
        for item in services.range():
            self._count(item.parse(), 1)
        services.listeners.insert(0, self._follow)

    # --- node ports in use ---

    def _follow(self, changes: list[Change]) -> None:
        for c in changes:
            if c.old is not None:
                self._count(c.object(c.old), -1)
            if c.type != "DELETED":
                self._count(c.object(c.item), 1)

    def _count(self, service: Object, by: int) -> None:
        for port in set(_node_ports(service.get("spec") or {})):
            n = self._used_ports.get(port, 0) + by
            if n > 0:
                self._used_ports[port] = n
            else:
                self._used_ports.pop(port, None)

    def _port_free(self, port: int) -> bool:
        return port not in self._used_ports and port not in self.pending_ports

    def take_port(self, taken: Taken, port: int, dry_run: bool) -> str:
        """Takes a given port; why not, or ""."""
        if not self.low <= port <= self.high:
            return f"provided port is not in the valid range. The range of valid ports is {self.low}-{self.high}"
        if dry_run:
            return ""
        if not self._port_free(port):
            return "provided port is already allocated"
        self.pending_ports.add(port)
        taken.ports.append(port)
        return ""

    def next_port(self, taken: Taken, dry_run: bool) -> int:
        """Takes any free port, of the upper band where there is one. Raises 500 when the range is full."""
        bands = ((self.low + self._port_offset, self.high), (self.low, self.low + self._port_offset - 1))
        for first, last in bands:
            size = last - first + 1
            if size <= 0:
                continue
            start = random.randrange(size)
            for i in range(size):
                port = first + (start + i) % size
                if self._port_free(port):
                    if not dry_run:
                        self.pending_ports.add(port)
                        taken.ports.append(port)
                    return port
        raise internal("failed to allocate a nodePort: range is full")

    # --- addresses ---

    def networks(self) -> list[Network]:
        """The CIDRs that may be allocated from: those of ready ServiceCIDRs, the cluster's own first."""
        out: list[Network] = list(networks(self.server.settings.service_cidr))
        for item in self.cidrs.range():
            obj = item.peek()
            if obj["metadata"].get("deletionTimestamp"):
                continue
            ready = [c for c in (obj.get("status") or {}).get("conditions") or () if c.get("type") == "Ready"]
            if item.name != "kubernetes" and not (ready and ready[0].get("status") == "True"):
                continue
            for text in (obj.get("spec") or {}).get("cidrs") or ():
                try:
                    network = ipaddress.ip_network(text)
                except ValueError:
                    continue
                if network not in out:
                    out.append(network)
        return out

    def families(self) -> tuple[str, ...]:
        """IP families that have a CIDR, the default one first."""
        return tuple(dict.fromkeys("IPv4" if n.version == 4 else "IPv6" for n in self.networks()))

    def _ip_free(self, ip: str) -> bool:
        return ip not in self.addresses.items and ip not in self.pending_ips

    def take_ip(self, taken: Taken, ip: str, dry_run: bool) -> str:
        """Takes a given address; why not, or ""."""
        address = ipaddress.ip_address(ip)
        network = next((n for n in self.networks() if n.version == address.version and address in n), None)
        if network is None:
            return "the provided network does not match the current range"
        outside = address == network.network_address or (network.version == 4 and address == network.broadcast_address)
        if outside and network.num_addresses > 2:
            return f"the provided IP ({ip}) is not in the valid range. The range of valid IPs is {network}"
        if dry_run:
            return ""
        if not self._ip_free(str(address)):
            return "provided IP is already allocated"
        self.pending_ips.add(str(address))
        taken.ips.append(str(address))
        return ""

    def next_ip(self, taken: Taken, family: str, dry_run: bool) -> str:
        """Takes any free address of a family, "" when every range is full."""
        for network in self.networks():
            if (network.version == 4) != (family == "IPv4"):
                continue
            if dry_run:
                return str(network.network_address)
            ip = self._free_in(network)
            if ip:
                self.pending_ips.add(ip)
                taken.ips.append(ip)
                return ip
        return ""

    def _free_in(self, network: Network) -> str:
        first = 1
        last = network.num_addresses - (2 if network.version == 4 else 1)
        size = last - first + 1
        if size <= 0:
            return ""
        static = _band(min(network.num_addresses, 65536), 16, 256, 16)
        for low, high in ((first + static, last), (first, min(first + static - 1, last))):
            width = high - low + 1
            if width <= 0:
                continue
            start = random.randrange(width)
            for i in range(min(width, max(PROBES_MAX, len(self.addresses.items) + len(self.pending_ips) + 1))):
                ip = str(network[low + (start + i) % width])
                if self._ip_free(ip):
                    return ip
        return ""

    async def record(self, ip: str, namespace: str, name: str) -> None:
        """Writes the IPAddress object of a Service's address."""
        from uuid import uuid4

        server = self.server
        obj: Object = {
            "metadata": {"name": ip, "uid": str(uuid4()), "creationTimestamp": rfc3339(server.clock()), "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv6" if ":" in ip else "IPv4", "ipaddress.kubernetes.io/managed-by": MANAGED_BY}},
            "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}}}
        try:
            await server.put(self.addresses.prefix + ip, value_of(obj), 0)
        except Conflict:
            log.warning("the address %s of service %s/%s is recorded already", ip, namespace, name)

    async def forget(self, ip: str) -> None:
        item = self.addresses.items.get(ip)
        if item is None:
            return
        if item.parse()["metadata"].get("labels", {}).get("ipaddress.kubernetes.io/managed-by") != MANAGED_BY:
            return
        try:
            await self.server.delete(self.addresses.prefix + ip, item.revision)
        except Conflict:
            pass

    async def repair(self) -> None:
        """Makes the IPAddress objects agree with the Services, after a stop between the two writes."""
        used: dict[str, tuple[str, str]] = {}
        for item in self.server.cache.collection("", "services").range():
            spec = item.parse().get("spec") or {}
            for ip in _ips(spec):
                used[ip] = (item.namespace, item.name)
        for ip, (namespace, name) in used.items():
            if ip not in self.addresses.items:
                await self.record(ip, namespace, name)
        for ip in [k for k in self.addresses.items if k not in used]:
            item2 = self.addresses.items.get(ip)
            parent = ((item2.peek().get("spec") or {}).get("parentRef") or {}) if item2 else {}
            if parent.get("resource") == "services" and not parent.get("group"):
                await self.forget(ip)

    # --- Services ---

    def create(self, call: Call, service: Object, dry_run: bool) -> Taken:
        spec = service.setdefault("spec", {})
        service_ips.normalize(spec, None)
        taken = Taken(self, service)
        try:
            _raise(service, service_ips.init_families(spec, None, self.families()))
            self._take_ips(taken, service, dry_run)
            self._take_ports(taken, service, dry_run)
        except BaseException:
            taken.undo()
            raise
        return taken

    def update(self, call: Call, service: Object, old_service: Object, dry_run: bool) -> Taken:
        spec, old = service.setdefault("spec", {}), old_service.get("spec") or {}
        service_ips.patch_allocated(spec, old)
        service_ips.normalize(spec, old)
        taken = Taken(self, service)
        try:
            _raise(service, service_ips.init_families(spec, old, self.families()))
            self._update_ips(taken, service, old, dry_run)
            self._update_ports(taken, service, old, dry_run)
        except BaseException:
            taken.undo()
            raise
        return taken

    async def deleted(self, service: Object) -> None:
        for ip in _ips(service.get("spec") or {}):
            await self.forget(ip)

    def _take_ips(self, taken: Taken, service: Object, dry_run: bool) -> None:
        spec = service["spec"]
        if spec.get("type") == "ExternalName" or (spec.get("clusterIPs") or [""])[0] == "None":
            return
        families = spec.get("ipFamilies") or []
        ips = list(spec.get("clusterIPs") or ())
        ips += [""] * (len(families) - len(ips))
        for i, family in enumerate(families):
            ips[i] = self._take_one(taken, service, family, ips[i], ips, dry_run)
        spec["clusterIPs"] = ips
        spec["clusterIP"] = ips[0]

    def _take_one(self, taken: Taken, service: Object, family: str, ip: str, ips: list[str], dry_run: bool) -> str:
        if ip:
            why = self.take_ip(taken, ip, dry_run)
            if why:
                _raise(service, [invalid.invalid("spec.clusterIPs", list(ips), f"failed to allocate IP {ip}: {why}")])
            return ip
        found = self.next_ip(taken, family, dry_run)
        if not found:
            raise internal(f'failed to allocate a serviceIP for Service "{service["metadata"].get("name", "")}": range is full')
        return found

    def _update_ips(self, taken: Taken, service: Object, old: Object, dry_run: bool) -> None:
        spec = service["spec"]
        was_external, is_external = old.get("type") == "ExternalName", spec.get("type") == "ExternalName"
        if was_external and not is_external:
            self._take_ips(taken, service, dry_run)
            return
        if (old.get("clusterIPs") or [""])[0] == "None":
            return
        if not was_external and is_external:
            taken.release_ips = _ips(old)
            return
        before, now = old.get("ipFamilies") or [], spec.get("ipFamilies") or []
        if len(before) == 1 and len(now) == 2:
            ips = list(spec.get("clusterIPs") or ())
            ips += [""] * (2 - len(ips))
            ips[1] = self._take_one(taken, service, now[1], ips[1], ips, dry_run)
            spec["clusterIPs"] = ips
        elif len(before) == 2 and len(now) == 1:
            taken.release_ips = _ips(old)[1:]

    def _take_ports(self, taken: Taken, service: Object, dry_run: bool) -> None:
        spec = service["spec"]
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            allocate = spec.get("type") == "NodePort" or spec.get("allocateLoadBalancerNodePorts") is not False
            chosen: dict[int, int] = {}      # port -> its node port: TCP and UDP of one port share it
            ports = spec.get("ports") or []
            for i, p in enumerate(ports):
                if not p.get("nodePort") and not allocate:
                    continue
                number = p.get("port") or 0
                have = chosen.get(number)
                if have is None:
                    wanted = next((q["nodePort"] for q in ports if q.get("port") == number and q.get("nodePort")), 0)
                    if wanted:
                        self._take_port(taken, service, i, wanted, dry_run)
                    else:
                        wanted = self.next_port(taken, dry_run)
                    p["nodePort"] = chosen[number] = wanted
                elif not p.get("nodePort"):
                    p["nodePort"] = have
                elif p["nodePort"] != have:
                    self._take_port(taken, service, i, p["nodePort"], dry_run)
        if service_ips.needs_health_check_port(spec):
            self._take_health_check(taken, spec, dry_run)

    def _take_port(self, taken: Taken, service: Object, i: int, port: int, dry_run: bool) -> None:
        why = self.take_port(taken, port, dry_run)
        if why:
            _raise(service, [invalid.invalid(f"spec.ports[{i}].nodePort", port, why)])

    def _take_health_check(self, taken: Taken, spec: Object, dry_run: bool) -> None:
        port = spec.get("healthCheckNodePort")
        if port:
            why = self.take_port(taken, port, dry_run)
            if why:
                raise internal(f"failed to allocate requested HealthCheck NodePort {port}: {why}")
        else:
            spec["healthCheckNodePort"] = self.next_port(taken, dry_run)

    def _update_ports(self, taken: Taken, service: Object, old: Object, dry_run: bool) -> None:
        spec = service["spec"]
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            had = set(_node_ports(old, health=False))
            allocate = spec.get("type") == "NodePort" or spec.get("allocateLoadBalancerNodePorts") is not False
            now: set[int] = set()
            seen: set[tuple[str, int]] = set()
            for i, p in enumerate(spec.get("ports") or ()):
                port = p.get("nodePort")
                if not port:
                    if not allocate:
                        continue
                    port = p["nodePort"] = self.next_port(taken, dry_run)
                elif port not in had and port not in now:
                    self._take_port(taken, service, i, port, dry_run)
                now.add(port)
                pair = (p.get("protocol") or "TCP", port)
                if pair in seen:
                    raise StatusError(500, "", f"duplicate nodePort: {{{pair[0]} {pair[1]}}}")
                seen.add(pair)
        needed, needs = service_ips.needs_health_check_port(old), service_ips.needs_health_check_port(spec)
        if needs and not needed:
            self._take_health_check(taken, spec, dry_run)


def _node_ports(spec: Object, health: bool = True) -> Iterable[int]:
    for p in spec.get("ports") or ():
        if p.get("nodePort"):
            yield p["nodePort"]
    if health and spec.get("healthCheckNodePort"):
        yield spec["healthCheckNodePort"]


def _ips(spec: Object) -> list[str]:
    ips = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [ip for ip in ips if ip and ip != "None"] if spec.get("type") != "ExternalName" else []


def _raise(service: Object, errors: list[FieldError]) -> None:
    if errors:
        raise invalid_status("", "Service", service["metadata"].get("name") or "", errors)


def wire(server: Server) -> Allocator:
    """Joins the allocator to writes of Services."""
    allocator = Allocator(server)
    server.begin_create["", "services"] = allocator.create
    server.begin_update["", "services"] = allocator.update
    server.on_delete["", "services"] = allocator.deleted
    return allocator

