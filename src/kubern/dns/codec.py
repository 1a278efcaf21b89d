"""Codec: DNS messages as bytes: questions in, resource records out. Pure; RFC 1035, RFC 6891 (EDNS), RFC 2782 (SRV).

Written by hand since it is on the path of every query: names are lower-cased tuples of labels, records are encoded once and kept.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, OPT, ANY = 1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
QR, AUTHORITATIVE, TRUNCATED, RECURSE, RECURSION = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
CLASS_IN = 1
UDP_PLAIN_MAX, UDP_EDNS_MAX = 512, 4096          # what a reply may have without EDNS, and at most with it
OUR_UDP_SIZE = 1232
POINTERS_MAX = 64
TO_QUESTION = b"\xc0\x0c"                        # a pointer to the name of the question

Name = tuple[str, ...]


class BadMessage(ValueError):
    """Not a DNS message we can answer: FORMERR."""


class Question(NamedTuple):
    id: int
    flags: int
    name: Name
    type: int
    class_: int
    raw: bytes                 # the question section as it came (its case is echoed)
    edns_size: int             # 0: no EDNS


class Record(NamedTuple):
    name: Name
    type: int
    ttl: int
    data: bytes                # names in it are not compressed


@lru_cache(4096)
def encode_name(name: Name) -> bytes:
    return b"".join(bytes((len(x.encode("latin-1")),)) + x.encode("latin-1") for x in name) + b"\0"


def name_of(text: str) -> Name:
    """"Web.default.svc." -> labels, lower case."""
    return tuple(text.rstrip(".").lower().split(".")) if text.strip(".") else ()


def decode_name(m: bytes, at: int) -> tuple[Name, int]:
    """(labels, position after the name). Pointers must lead backwards. Raises BadMessage."""
    labels: list[str] = []
    end, jumps, total = -1, 0, 0
    try:
        while True:
            n = m[at]
            if n >= 0xC0:
                target = (n & 0x3F) << 8 | m[at + 1]
                if end < 0:
                    end = at + 2
                jumps += 1
                if target >= at or jumps > POINTERS_MAX:
                    raise BadMessage("a name points forwards")
                at = target
            elif n > 63:
                raise BadMessage("label type")
            elif n:
                label = m[at + 1:at + 1 + n]
                total += n + 1
                if len(label) != n or total > 254:
                    raise BadMessage("name")
                labels.append(label.decode("latin-1").lower())
                at += n + 1
            else:
                return tuple(labels), end if end >= 0 else at + 1
    except IndexError:
        raise BadMessage("cut off in a name") from None


def parse_query(m: bytes) -> Question:
    """The one question of a query, and its EDNS size. Raises BadMessage; its header can still be answered (`refusal`)."""
    if len(m) < 17:
        raise BadMessage("short")
    id_, flags, questions, answers, authority, additional = struct.unpack_from(">6H", m)
    if flags & QR or questions != 1 or answers or authority:
        raise BadMessage("not a query with one question")
    name, at = decode_name(m, 12)
    if len(m) < at + 4:
        raise BadMessage("cut off in the question")
    type_, class_ = struct.unpack_from(">2H", m, at)
    raw, at = m[12:at + 4], at + 4
    edns = 0
    for _ in range(min(additional, 4)):
        owner, p = decode_name(m, at)
        if len(m) < p + 10:
            raise BadMessage("cut off in a record")
        t, size, _ttl, n = struct.unpack_from(">2HIH", m, p)
        if t == OPT and not owner:
            edns = max(size, UDP_PLAIN_MAX)
        at = p + 10 + n
    return Question(id_, flags, name, type_, class_, raw, edns)


def build_query(id_: int, name: Name, type_: int) -> bytes:
    return struct.pack(">6H", id_, RECURSE, 1, 0, 0, 1) + encode_name(name) + struct.pack(">2H", type_, CLASS_IN) + _OPT


_OPT = b"\0" + struct.pack(">2HIH", OPT, OUR_UDP_SIZE, 0, 0)


def refusal(m: bytes, code: int) -> bytes:
    """An answer without content to something that could not be read; b"" when there is not even a header, or it is no query."""
    if len(m) < 12 or m[2] & 0x80:
        return b""
    flags = struct.unpack_from(">H", m, 2)[0]
    return m[:2] + struct.pack(">5H", QR | flags & 0x7900 | RECURSION | code, 0, 0, 0, 0)


def encode_record(type_: int, ttl: int, data: bytes, owner: bytes = TO_QUESTION) -> bytes:
    return owner + struct.pack(">2HIH", type_, CLASS_IN, ttl, len(data)) + data


def address_data(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def srv_data(port: int, target: Name, priority: int = 0, weight: int = 100) -> bytes:
    return struct.pack(">3H", priority, weight, port) + encode_name(target)


def soa_data(zone: Name, serial: int, minimum: int) -> bytes:
    return (encode_name(("ns", "dns", *zone)) + encode_name(("hostmaster", *zone)) + struct.pack(">5I", serial & 0xFFFFFFFF, 7200, 1800, 86400, minimum))


def text_data(text: str) -> bytes:
    raw = text.encode()
    return bytes((len(raw),)) + raw


def build_reply(q: Question, code: int, answers: list[bytes], authority: list[bytes], additional: list[bytes], *, udp: bool,
                authoritative: bool = True) -> bytes:
    """A whole reply. Over UDP what does not fit is left out: additional records silently, others with TC set."""
    opt = _OPT if q.edns_size else b""
    flags = QR | q.flags & (0x7800 | RECURSE) | RECURSION | code | (AUTHORITATIVE if authoritative else 0)
    limit = min(q.edns_size or UDP_PLAIN_MAX, UDP_EDNS_MAX) if udp else 65535
    room = limit - 12 - len(q.raw) - len(opt)
    size = sum(map(len, answers)) + sum(map(len, authority))
    if size > room:
        kept = []
        for r in answers:
            room -= len(r)
            if room < 0:
                break
            kept.append(r)
        answers, authority, additional = kept, [], []
        flags |= TRUNCATED
    elif additional and size + sum(map(len, additional)) > room:
        additional = []
    head = struct.pack(">6H", q.id, flags, 1, len(answers), len(authority), len(additional) + (1 if opt else 0))
    return b"".join((head, q.raw, *answers, *authority, *additional, opt))


def parse_reply(m: bytes) -> tuple[int, list[Record], list[Record], list[int]]:
    """(code, answers, authority, positions of every TTL) of a reply; names in known record data are expanded. Raises BadMessage."""
    if len(m) < 12:
        raise BadMessage("short")
    _, flags, questions, *counts = struct.unpack_from(">6H", m)
    at = 12
    for _ in range(questions):
        _, at = decode_name(m, at)
        at += 4
    sections: list[list[Record]] = [[], [], []]
    ttls = []
    for section, count in zip(sections, counts, strict=True):
        for _ in range(count):
            name, at = decode_name(m, at)
            if len(m) < at + 10:
                raise BadMessage("cut off in a record")
            type_, _class, ttl, n = struct.unpack_from(">2HIH", m, at)
            if type_ != OPT:
                ttls.append(at + 4)
            at += 10
            if len(m) < at + n:
                raise BadMessage("cut off in record data")
            section.append(Record(name, type_, ttl, _expand(m, type_, at, n)))
            at += n
    return flags & 15, sections[0], sections[1], ttls


def _expand(m: bytes, type_: int, at: int, n: int) -> bytes:
    if type_ in (CNAME, NS, PTR):
        return encode_name(decode_name(m, at)[0])
    if type_ in (MX, SRV):
        fixed = 2 if type_ == MX else 6
        return m[at:at + fixed] + encode_name(decode_name(m, at + fixed)[0])
    if type_ == SOA:
        first, p = decode_name(m, at)
        second, p = decode_name(m, p)
        return encode_name(first) + encode_name(second) + m[p:at + n]
    return m[at:at + n]


def encode_all(records: Iterable[Record]) -> list[bytes]:
    return [encode_record(r.type, r.ttl, r.data, encode_name(r.name)) for r in records]
