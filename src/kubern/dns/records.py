"""Records: what services and endpoint slices mean as names. An index kept up to date event by event; looked up, never scanned.

Not the protocol (codec.py) and not the decision what to answer (answer.py). Source: Kubernetes DNS-Based Service Discovery 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kubern.model.addresses import parse_ip
from kubern.model.object import Object

SERVICE_LABEL = "kubernetes.io/service-name"
Owner = tuple[str, str]                        # (namespace, service)


class Backend(NamedTuple):
    """One address of a service, with the label its own name has."""

    label: str
    ip: str
    ports: tuple[tuple[str, str, int], ...]    # (name, protocol in lower case, number)


def dashed(ip: str) -> str:
    return ip.replace(".", "-").replace(":", "-")


class Records:
    """`changed(owner)` is called whenever answers about a service may differ from now on."""

    def __init__(self, changed: Callable[[Owner], None] = lambda owner: None) -> None:
        self.services: dict[Owner, Object] = {}
        self.slices: dict[Owner, dict[str, Object]] = {}
        self.namespaces: dict[str, int] = {}           # name -> how many reasons there are to know it
        self.serial = 1
        self._by_ip: dict[str, dict[Owner, None]] = {} # cluster IPs, and addresses of headless services' endpoints
        self._changed = changed

    # ---- events
    def service_changed(self, old: Object | None, new: Object | None) -> None:
        """Handler of a mirror. Events on which no answer depends (status) cost nothing."""
        some = new or old
        assert some is not None
        owner = (some["metadata"].get("namespace") or "", some["metadata"]["name"])
        before = self.services.get(owner)
        if before is not None and new is not None and before["spec"] == new["spec"]:
            self.services[owner] = new
            return
        if before is not None:
            self._forget_ips(owner, before)
            self._known(owner[0], -1)
        if new is None:
            self.services.pop(owner, None)
        else:
            self.services[owner] = new
            self._known(owner[0], 1)
            for ip in self._ips(owner, new):
                self._by_ip.setdefault(ip, {})[owner] = None
        self._touch(owner)

    def slice_changed(self, old: Object | None, new: Object | None) -> None:
        """Handler of a mirror."""
        before, after = _slice_owner(old), _slice_owner(new)
        if new is not None and before == after:
            known = self.slices.get(after, {}).get(new["metadata"]["name"])
            if known is not None and known.get("endpoints") == new.get("endpoints") and known.get("ports") == new.get("ports"):
                self.slices[after][new["metadata"]["name"]] = new
                return
        owners = dict.fromkeys(o for o in (before, after) if o[1])
        for owner in owners:
            if owner in self.services:
                self._forget_ips(owner, self.services[owner])
        if old is not None and before in self.slices:
            self.slices[before].pop(old["metadata"]["name"], None)
            if not self.slices[before]:
                del self.slices[before]
        if new is not None:
            self.slices.setdefault(after, {})[new["metadata"]["name"]] = new
        for owner in owners:
            if owner in self.services:
                for ip in self._ips(owner, self.services[owner]):
                    self._by_ip.setdefault(ip, {})[owner] = None
            self._touch(owner)

    def namespace_changed(self, old: Object | None, new: Object | None) -> None:
        if old is None and new is not None:
            self._known(new["metadata"]["name"], 1)
        elif new is None and old is not None:
            self._known(old["metadata"]["name"], -1)

    def _known(self, namespace: str, by: int) -> None:
        n = self.namespaces.get(namespace, 0) + by
        if n > 0:
            self.namespaces[namespace] = n
        else:
            self.namespaces.pop(namespace, None)
        self._changed((namespace, ""))

    def _touch(self, owner: Owner) -> None:
        self.serial += 1
        self._changed(owner)

    def _ips(self, owner: Owner, service: Object) -> Iterator[str]:
        ips = cluster_ips(service)
        if ips:
            yield from ips
        elif service["spec"].get("type") != "ExternalName":
            for b in self.backends(owner):
                yield b.ip

    def _forget_ips(self, owner: Owner, service: Object) -> None:
        for ip in list(self._ips(owner, service)):
            rows = self._by_ip.get(ip)
            if rows:
                rows.pop(owner, None)
                if not rows:
                    del self._by_ip[ip]
                    self._changed(("", ip))

    # ---- lookups
    def owners_of(self, ip: str) -> Iterable[Owner]:
        return self._by_ip.get(ip, ())

    def backends(self, owner: Owner) -> list[Backend]:
        """The ready endpoints of a service, each address and port set once."""
        found: dict[tuple[str, str], Backend] = {}
        for s in self.slices.get(owner, {}).values():
            if s.get("addressType") not in ("IPv4", "IPv6"):
                continue
            ports = tuple((p.get("name") or "", (p.get("protocol") or "TCP").lower(), p.get("port") or 0) for p in s.get("ports") or ())
            for e in s.get("endpoints") or ():
                if (e.get("conditions") or {}).get("ready") is False:
                    continue
                for ip in (str(a) for a in map(parse_ip, e.get("addresses") or ()) if a):
                    label = (e.get("hostname") or dashed(ip)).lower()
                    have = found.get((label, ip))
                    found[label, ip] = Backend(label, ip, tuple(dict.fromkeys((*have.ports, *ports))) if have else ports)
        return list(found.values())


def _slice_owner(slice_: Object | None) -> Owner:
    if slice_ is None:
        return ("", "")
    m = slice_["metadata"]
    return m.get("namespace") or "", (m.get("labels") or {}).get(SERVICE_LABEL) or ""


def cluster_ips(service: Object) -> list[str]:
    """Its cluster IPs as DNS compares them; [] if headless or an ExternalName."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return []
    ips = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [str(a) for a in (parse_ip(i) for i in ips if i and i != "None") if a]
