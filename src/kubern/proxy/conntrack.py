"""Conntrack: forgets UDP flows that a change of endpoints has made wrong. UDP has no end, so a client that keeps asking from one
port would stay with a dead endpoint (or with none) for ever. TCP is left alone: its peers notice.

Pure decision (`stale`), netlink shell (`forget`). Model: upstream's pkg/proxy/conntrack, in effect.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

UDP = 17
TIMEOUTS = {"tcp_timeout_established": 86_400, "tcp_timeout_close_wait": 3600}


class Flow(NamedTuple):
    """A tracked UDP flow: what the client asked, and who answers."""

    source: str
    source_port: int
    target: str
    target_port: int
    answers: str
    answers_port: int


Front = tuple[str, int]                  # (address, port); a node port has address ""


def stale(flows: Iterable[Flow], fronts: Mapping[Front, frozenset[tuple[str, int]]]) -> list[Flow]:
    """The flows to one of these service addresses that are answered by none of its present endpoints."""
    out = []
    for f in flows:
        endpoints = fronts.get((f.target, f.target_port))
        if endpoints is None:
            endpoints = fronts.get(("", f.target_port))
            if endpoints is None or (f.answers, f.answers_port) == (f.target, f.target_port):     # no DNAT: not via the node port
                continue
        if (f.answers, f.answers_port) not in endpoints:
            out.append(f)
    return out


def forget(fronts: Mapping[Front, frozenset[tuple[str, int]]], family: int = 4) -> int:
    """Deletes the stale flows of this network namespace; blocking (some ms). Returns how many. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as s:
        s.settimeout(TIMEOUT_S)
        s.bind((0, 0))
        af = socket.AF_INET6 if family == 6 else socket.AF_INET
        rows = dict(_dump(s, af))
        doomed = stale(rows, fronts)
        for flow in doomed:
            body = struct.pack("BBH", af, 0, 0) + struct.pack("HH", 4 + len(rows[flow]), _TUPLE_ORIG | _NESTED) + rows[flow]
            _send(s, _DELETE, _REQUEST | _ACK, body)
            s.recv(_RECEIVE_BYTES)                       # the acknowledgement; a flow that ended by itself meanwhile is as good
    return len(doomed)


def keep_long() -> None:
    """How long the kernel remembers connections, as kube-proxy sets it: the kernel's own minute of CLOSE_WAIT is too short for servers that
    close late. Blocking; where it may not be set it stays."""
    for name, seconds in TIMEOUTS.items():
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text(str(seconds))


# ---- ctnetlink by hand (linux/netfilter/nfnetlink_conntrack.h): two messages do not warrant a library of 25 MB in every node's agent

_NETLINK_NETFILTER = 12
_GET, _DELETE = 0x101, 0x102                             # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_TUPLE_ORIG, _TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE, _IP_TARGET = (1, 3), (2, 4)                  # IPv4, IPv6
_PROTO_NUMBER, _PROTO_SOURCE, _PROTO_TARGET = 1, 2, 3
_RECEIVE_BYTES = 1 << 18
TIMEOUT_S = 5.0


def _send(s: socket.socket, type_: int, flags: int, body: bytes) -> None:
    s.send(struct.pack("IHHII", 16 + len(body), type_, flags, 1, 0) + body)


def _attributes(data: bytes) -> dict[int, bytes]:
    out, at = {}, 0
    while at + 4 <= len(data):
        length, type_ = struct.unpack_from("HH", data, at)
        if length < 4:
            break
        out[type_ & _TYPE_MASK] = data[at + 4:at + length]
        at += (length + 3) & ~3
    return out


def _dump(s: socket.socket, af: int) -> Iterator[tuple[Flow, bytes]]:
    """(flow, the original tuple as the kernel words it) of every UDP flow."""
    _send(s, _GET, _REQUEST | _DUMP, struct.pack("BBH", af, 0, 0))
    while True:
        data = s.recv(_RECEIVE_BYTES)
        at = 0
        while at + 16 <= len(data):
            length, type_ = struct.unpack_from("IH", data, at)
            if type_ == _DONE or length < 16:
                return
            if type_ == _ERROR:
                raise OSError(-struct.unpack_from("i", data, at + 16)[0], "conntrack dump")
            found = _attributes(data[at + 20:at + length])
            ask, answer = _tuple(found.get(_TUPLE_ORIG, b"")), _tuple(found.get(_TUPLE_REPLY, b""))
            if ask and answer:
                yield Flow(ask[0], ask[1], ask[2], ask[3], answer[0], answer[1]), found[_TUPLE_ORIG]
            at += (length + 3) & ~3


def _tuple(data: bytes) -> tuple[str, int, str, int] | None:
    """(source, its port, target, its port) of a UDP tuple."""
    parts = _attributes(data)
    ip, proto = _attributes(parts.get(_TUPLE_IP, b"")), _attributes(parts.get(_TUPLE_PROTO, b""))
    source = next((ip[k] for k in _IP_SOURCE if k in ip), b"")
    target = next((ip[k] for k in _IP_TARGET if k in ip), b"")
    if proto.get(_PROTO_NUMBER, b"\0")[0] != UDP or not source or not target:
        return None
    ports = [int.from_bytes(proto.get(k, b""), "big") for k in (_PROTO_SOURCE, _PROTO_TARGET)]
    return str(ipaddress.ip_address(source)), ports[0], str(ipaddress.ip_address(target)), ports[1]
