"""Conntrack: forgets UDP flows that a change of endpoints has made wrong. UDP has no end, so a client that keeps asking from one
port would stay with a dead endpoint (or with none) for ever. TCP is left alone: its peers notice.

Pure decision (`stale`), netlink shell (`forget`). Model: upstream's pkg/proxy/conntrack, in effect.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import NamedTuple

UDP = 17


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
    """Deletes the stale flows of this network namespace; blocking (some ten ms). Returns how many."""
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

    af = socket.AF_INET6 if family == 6 else socket.AF_INET
    found = []
    with NFCTSocket(nfgen_family=af) as ct:
        for message in ct.dump(tuple_orig=NFCTAttrTuple(family=af, proto=UDP)):
            ask = NFCTAttrTuple.from_netlink(af, message.get_attr("CTA_TUPLE_ORIG"))
            answer = NFCTAttrTuple.from_netlink(af, message.get_attr("CTA_TUPLE_REPLY"))
            if ask.proto == UDP:
                found.append(Flow(ask.saddr, ask.sport, ask.daddr, ask.dport, answer.saddr, answer.sport))
        done = 0
        for f in stale(found, fronts):
            try:
                ct.entry("del", tuple_orig=NFCTAttrTuple(family=af, saddr=f.source, daddr=f.target, proto=UDP, sport=f.source_port,
                                                         dport=f.target_port))
                done += 1
            except NetlinkError:                     # it ended by itself meanwhile
                pass
    return done
