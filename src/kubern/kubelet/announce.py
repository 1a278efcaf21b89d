"""Announce: load balancer addresses that this node serves are answered for on its segment, by ARP and neighbour discovery.

Which node serves an address is decided by everybody alike (vips.py), so that one answers. The kernel does the answering: an IPv4 address is a local
route, an IPv6 one a proxied neighbour; what arrives is the proxy's. Taking an address over is told to the segment at once (gratuitous ARP,
RFC 826 and 5227; unsolicited advertisement, RFC 4861), or clients would keep asking the node before. Blocking; needs CAP_NET_ADMIN and CAP_NET_RAW.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from kubern.kubelet.fabric import LOCAL_PROTOCOL, batch, show

log = logging.getLogger(__name__)

ALL_NODES = "ff02::1"
_ARP, _REPLY, _ADVERTISEMENT, _OVERRIDE, _TARGET_LINK_ADDRESS = 0x0806, 2, 136, 0x20000000, 2
_IPV6_UNICAST_HOPS, _IPV6_MULTICAST_HOPS, _IPV6_MULTICAST_IF = 16, 18, 17


def interface_of(address: str) -> str:
    """The interface that has this address; "" if none."""
    return next((str(link["ifname"]) for link in show("addr", "show") for a in link.get("addr_info") or () if a.get("local") == address), "")


def announced(device: str) -> set[str]:
    """What is answered for now."""
    v4 = {str(r["dst"]) for r in show("-4", "route", "show", "table", "local", "proto", str(LOCAL_PROTOCOL))}
    v6 = {str(n["dst"]) for n in show("-6", "neigh", "show", "proxy", "dev", device)}
    return v4 | v6


def changes(want: Iterable[str], have: Iterable[str]) -> tuple[list[str], list[str]]:
    """(to begin with, to end)."""
    wanted, had = set(want), set(have)
    return sorted(wanted - had), sorted(had - wanted)


def sync(want: Iterable[str], device: str) -> list[str]:
    """Answers for exactly these from now on; returns those that are new. Raises OSError."""
    new, gone = changes(want, announced(device))
    if not new and not gone:
        return []
    if any(":" in a for a in new):
        Path(f"/proc/sys/net/ipv6/conf/{device}/proxy_ndp").write_text("1")
    lines = [f"neigh {verb} proxy {a} dev {device}" if ":" in a else f"route {verb} local {a}/32 dev lo proto {LOCAL_PROTOCOL}"
             for verb, rows in (("del", gone), ("add", new)) for a in rows]
    complaints = batch(lines, force=True)
    if complaints:
        log.info("announcing: %s", complaints.strip())
    for address in new:
        tell(address, device)
    return new


def tell(address: str, device: str) -> None:
    """Everybody on the segment hears that the address is here now."""
    mac = bytes.fromhex(Path(f"/sys/class/net/{device}/address").read_text().strip().replace(":", ""))
    ip = ipaddress.ip_address(address).packed
    if len(ip) == 4:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
            s.bind((device, _ARP))
            s.send(arp(mac, ip))
        return
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as s:
        s.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_HOPS, 255)
        s.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_IF, socket.if_nametoindex(device))
        s.sendto(advertisement(mac, ip), (ALL_NODES, 0, 0, socket.if_nametoindex(device)))


def arp(mac: bytes, ip: bytes) -> bytes:
    """A gratuitous reply, as a whole Ethernet frame; Linux takes it for one only with the sender as its target."""
    return b"\xff" * 6 + mac + struct.pack("!HHHBBH", _ARP, 1, 0x0800, 6, 4, _REPLY) + mac + ip + mac + ip


def advertisement(mac: bytes, ip: bytes) -> bytes:
    """An unsolicited neighbour advertisement; the kernel fills in the checksum."""
    return struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + ip + bytes((_TARGET_LINK_ADDRESS, 1)) + mac
