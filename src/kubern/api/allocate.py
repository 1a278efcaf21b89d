"""Allocate: cluster IPs and node ports of Services, out of the service CIDRs and the node-port range.

What is taken is read off the cache: an IPAddress object names every address in use, Services their ports; what writes on their way
have chosen stands in `pending_*`. What was chosen is written down before the Service itself (allocated.py), so that of several servers one
gets it. Dynamic allocation takes the upper band first and leaves the lower to those who choose themselves.
Upstream: pkg/registry/core/service/{storage/alloc.go,ipallocator,portallocator}; KEP-3070, KEP-3668 (bands), KEP-1880 (IPAddress).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kubern.api.allocated import Records
from kubern.api.cache import Change
from kubern.model import invalid
from kubern.model.addresses import networks
from kubern.model.invalid import FieldError
from kubern.model.kinds import service_ips
from kubern.model.object import Object
from kubern.model.status import StatusError, internal
from kubern.model.status import invalid as invalid_status
from kubern.store.protocol import Unavailable

if TYPE_CHECKING:
    from kubern.api.call import Call
    from kubern.api.handle import Server

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PROBES_MAX = 4096            # random tries in a band before it is walked


def _band(size: int, least: int, most: int, step: int) -> int:
    """How many of the first addresses or ports are left to those who choose themselves."""
    if size <= least:
        return 0
    return max(least, min(size // step, most))


class Taken:
    """A write's choices. `reserve` writes them down before the object itself is written, `undo` gives them back, `commit` makes them last."""

    def __init__(self, allocator: Allocator, service: Object) -> None:
        self._a, self._service = allocator, service
        self.ips: list[str] = []
        self.ports: list[int] = []
        self.wanted: dict[str | int, Callable[[str], StatusError]] = {}      # what the client chose -> the refusal where it is taken
        self.release_ips: list[str] = []
        self.release_ports: list[int] = []
        self._reserved: list[str | int] = []

    async def reserve(self) -> None:
        """Another server may have taken the same: then something else is chosen, or the write refused."""
        records = self._a.records
        meta = self._service["metadata"]
        owner = meta.get("namespace", ""), meta["name"]
        for ip in tuple(self.ips):
            while not await records.take_ip(ip, *owner):
                ip = self._instead(ip, "provided IP is already allocated")
            self._reserved.append(ip)
        for port in tuple(self.ports) if records.shared else ():
            while not await records.take_port(port, *owner):
                port = self._instead(port, "provided port is already allocated")
            self._reserved.append(port)

    def _instead(self, lost: Any, why: str) -> Any:
        """Something else for what was lost to another server. Raises StatusError where the client wanted just this."""
        if lost in self.wanted:
            raise self.wanted[lost](why)
        if isinstance(lost, str):
            found: str | int = self._a.next_ip(self, "IPv6" if ":" in lost else "IPv4", False)
            if not found:
                raise internal(f'failed to allocate a serviceIP for Service "{self._service["metadata"].get("name", "")}": range is full')
            self._a.pending_ips.discard(lost)
            self.ips.remove(lost)
        else:
            found = self._a.next_port(self, False)
            self._a.pending_ports.discard(lost)
            self.ports.remove(lost)
        spec = self._service["spec"]
        if "clusterIPs" in spec:
            spec["clusterIPs"] = [found if ip == lost else ip for ip in spec["clusterIPs"]]
        for holder in (spec, *(spec.get("ports") or ())):
            for name in ("clusterIP", "healthCheckNodePort", "nodePort"):
                if holder.get(name) == lost:
                    holder[name] = found
        return found

    async def undo(self, why: BaseException | None = None) -> None:
        """Where it is not known whether the write has happened, what it reserved is left to the repair."""
        reserved, self._reserved = self._reserved, []
        for what in reserved if not isinstance(why, (Unavailable, asyncio.CancelledError)) else ():
            await self._a.records.free(what)
        self.forget()

    async def commit(self) -> None:
        self._reserved = []
        released: list[str | int] = [*self.release_ips, *self.release_ports]
        for what in released:
            await self._a.records.free(what)
        self.forget()

    def forget(self) -> None:
        self._a.pending_ips.difference_update(self.ips)
        self._a.pending_ports.difference_update(self.ports)
        self.ips, self.ports = [], []


class Allocator:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.low, self.high = server.settings.node_ports
        self.pending_ips: set[str] = set()
        self.pending_ports: set[int] = set()
        self._used_ports: dict[int, int] = {}
        self._port_offset = _band(self.high - self.low + 1, 16, 128, 32)
        self.records = Records(server)
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
        for port in set(node_ports_of(service.get("spec") or {})):
            n = self._used_ports.get(port, 0) + by
            if n > 0:
                self._used_ports[port] = n
            else:
                self._used_ports.pop(port, None)

    @property
    def used_ports(self) -> int:
        return len(self._used_ports)

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
            taken.forget()
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
            if self.records.shared:
                taken.release_ports = sorted(set(node_ports_of(old)) - set(node_ports_of(spec)))
        except BaseException:
            taken.forget()
            raise
        return taken

    async def deleted(self, service: Object) -> None:
        spec = service.get("spec") or {}
        held: list[str | int] = [*ips_of(spec), *(set(node_ports_of(spec)) if self.records.shared else ())]
        for what in held:
            await self.records.free(what)

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
            given = list(ips)

            def refusal(why: str) -> StatusError:
                return _refusal(service, [invalid.invalid("spec.clusterIPs", given, f"failed to allocate IP {ip}: {why}")])
            why = self.take_ip(taken, ip, dry_run)
            if why:
                raise refusal(why)
            taken.wanted[ip] = refusal
            return ip
        found = self.next_ip(taken, family, dry_run)
        if not found:
            raise internal(f'failed to allocate a serviceIP for Service "{service["metadata"].get("name", "")}": range is full')
        if not service["metadata"].get("name") and not dry_run:                # the IPAddress must name its owner
            raise _refusal(service, [invalid.invalid("spec.clusterIPs", list(ips), f'failed to allocate IP: IPAddress.networking.k8s.io "{found}" is '
                                                                                   "invalid: spec.parentRef.name: Required value")])
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
            taken.release_ips = ips_of(old)
            return
        before, now = old.get("ipFamilies") or [], spec.get("ipFamilies") or []
        if len(before) == 1 and len(now) == 2:
            ips = list(spec.get("clusterIPs") or ())
            ips += [""] * (2 - len(ips))
            ips[1] = self._take_one(taken, service, now[1], ips[1], ips, dry_run)
            spec["clusterIPs"] = ips
        elif len(before) == 2 and len(now) == 1:
            taken.release_ips = ips_of(old)[1:]

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
        def refusal(why: str) -> StatusError:
            return _refusal(service, [invalid.invalid(f"spec.ports[{i}].nodePort", port, why)])
        why = self.take_port(taken, port, dry_run)
        if why:
            raise refusal(why)
        taken.wanted[port] = refusal

    def _take_health_check(self, taken: Taken, spec: Object, dry_run: bool) -> None:
        port = spec.get("healthCheckNodePort")
        if port:
            def refusal(why: str) -> StatusError:
                return internal(f"failed to allocate requested HealthCheck NodePort {port}: {why}")
            why = self.take_port(taken, port, dry_run)
            if why:
                raise refusal(why)
            taken.wanted[port] = refusal
        else:
            spec["healthCheckNodePort"] = self.next_port(taken, dry_run)

    def _update_ports(self, taken: Taken, service: Object, old: Object, dry_run: bool) -> None:
        spec = service["spec"]
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            had = set(node_ports_of(old, health=False))
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


def node_ports_of(spec: Object, health: bool = True) -> Iterable[int]:
    for p in spec.get("ports") or ():
        if p.get("nodePort"):
            yield p["nodePort"]
    if health and spec.get("healthCheckNodePort"):
        yield spec["healthCheckNodePort"]


def ips_of(spec: Object) -> list[str]:
    ips = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [ip for ip in ips if ip and ip != "None"] if spec.get("type") != "ExternalName" else []


def _refusal(service: Object, errors: list[FieldError]) -> StatusError:
    return invalid_status("", "Service", service["metadata"].get("name") or "", errors)


def _raise(service: Object, errors: list[FieldError]) -> None:
    if errors:
        raise _refusal(service, errors)


def wire(server: Server) -> Allocator:
    """Joins the allocator to writes of Services."""
    allocator = Allocator(server)
    server.begin_create["", "services"] = allocator.create
    server.begin_update["", "services"] = allocator.update
    server.on_delete["", "services"] = allocator.deleted
    return allocator

