"""Endpoints: the backends of one service port, and which of them a node uses. Pure.

Sources: KEP-2086 (internal traffic policy), KEP-1669 (terminating endpoints), KEP-4444 (traffic distribution), KEP-2433 (topology
hints), EndpointSlice API.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubern.model.addresses import parse_ip
from kubern.model.object import Object


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    ip: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """`cluster`: for the Cluster policy (topology applied); `local`: for the Local policy; `anywhere`: some node has a usable one."""

    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    anywhere: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """The node the rules are for."""

    name: str
    zone: str = ""
    addresses: tuple[str, ...] = ()


def plain(text: str, family: int) -> str:
    """An address as nft takes it, "" if it is none of the family; the common case costs one system-library call."""
    try:
        if family == 4:
            socket.inet_pton(socket.AF_INET, text)
            return text
    except OSError:
        pass
    address = parse_ip(text)
    return str(address) if address and address.version == family else ""


def collect(slices: Iterable[Object], port: Mapping[str, Any], family: int, node: str) -> list[Endpoint]:
    """The endpoints that slices of one service give for one service port (matched by name and protocol), sorted, no address twice."""
    wanted_type = "IPv6" if family == 6 else "IPv4"
    name, protocol = port.get("name") or "", port.get("protocol") or "TCP"
    found: dict[tuple[str, int], Endpoint] = {}
    for s in slices:
        if s.get("addressType") != wanted_type:
            continue
        for p in s.get("ports") or ():
            if (p.get("name") or "") != name or (p.get("protocol") or "TCP") != protocol or not p.get("port"):
                continue
            for e in s.get("endpoints") or ():
                address = plain((e.get("addresses") or ("",))[0], family)
                if not address:
                    continue
                c = e.get("conditions") or {}
                hints = e.get("hints") or {}
                ready = c.get("ready") is not False
                serving = c.get("serving")
                new = Endpoint(address, p["port"], ready, ready if serving is None else bool(serving), bool(c.get("terminating")),
                               e.get("nodeName") == node, tuple(z["name"] for z in hints.get("forZones") or ()),
                               tuple(n["name"] for n in hints.get("forNodes") or ()))
                key = (new.ip, new.port)
                have = found.get(key)
                if have is None or (new.ready, new.serving) > (have.ready, have.serving):
                    found[key] = new
    return [found[k] for k in sorted(found)]


def topology(endpoints: Iterable[Endpoint], node: Node) -> str:
    """Which hints hold here: "node", "zone" or "" (none): only if every ready endpoint has them and one is meant for us."""
    ready = [e for e in endpoints if e.ready]
    if not ready:
        return ""
    if all(e.nodes for e in ready) and any(node.name in e.nodes for e in ready):
        return "node"
    if all(e.zones for e in ready) and any(node.zone in e.zones for e in ready):
        return "zone"
    return ""


def choose(endpoints: list[Endpoint], node: Node, uses_cluster: bool, uses_local: bool) -> Chosen:
    """Ready endpoints, or where there are none those that terminate but still serve, for each policy by itself."""
    usable = [e for e in endpoints if e.ready] or [e for e in endpoints if e.serving and e.terminating]
    if not usable:
        return Chosen()
    cluster: list[Endpoint] = []
    if uses_cluster:
        mode = topology(endpoints, node)
        if mode == "node":
            cluster = [e for e in usable if node.name in e.nodes]
        elif mode == "zone":
            cluster = [e for e in usable if node.zone in e.zones]
        else:
            cluster = usable
    local: list[Endpoint] = []
    if uses_local:
        local = [e for e in endpoints if e.local and e.ready] or [e for e in endpoints if e.local and e.serving and e.terminating]
    return Chosen(tuple(cluster), tuple(local), True)
