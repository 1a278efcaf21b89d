"""Netlink: changes of elements handed straight to the kernel, one transaction a call, without nft(8).

Nearly every change is endpoints that come and go: elements of maps that are there already. Running nft for it takes 20 ms, of which the kernel
needs 0.1. `encode` turns such a Delta into messages, and says None to all others (new chains, new sets, very many elements): those stay text.
`Kernel` also tells what is there, for guard.py.
Numbers are of linux/netfilter/nf_tables.h and nfnetlink.h. A concatenation is its parts one after the other, each padded to four bytes.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

from kubern.proxy.nft import NftError
from kubern.proxy.ruleset import Delta, Element, Name

ELEMENTS_MAX = 2000                    # in one call; more is nft's
A_MESSAGE = 400                        # elements: an attribute's length has sixteen bits
TIMEOUT_S = 10.0
SEND_BYTES = 1 << 20
FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
VERDICTS = {"drop": 0, "accept": 1, "jump": -3, "goto": -4}
_NETLINK_NETFILTER, _NFTABLES, _BEGIN, _END = 12, 10, 16, 17
_NEW_ELEMENT, _DELETE_ELEMENT = _NFTABLES << 8 | 12, _NFTABLES << 8 | 14
_GET_RULE, _GET_SET = _NFTABLES << 8 | 7, _NFTABLES << 8 | 10
_REQUEST, _ACK, _DUMP, _CREATE, _NESTED, _ERROR, _DONE = 1, 4, 0x300, 0x400, 0x8000, 2, 3
_SET_NAME, _SET_COUNT = 2, 20                  # the count only in kernels from 6.16 on

Part = Callable[[str], bytes]
PARTS: Mapping[str, Part] = {          # by the type's name: a value as text to its bytes
    "ipv4_addr": socket.inet_aton, "ipv6_addr": lambda t: ipaddress.IPv6Address(t).packed, "inet_proto": lambda t: bytes((PROTOCOLS[t], 0, 0, 0)),
    "inet_service": lambda t: struct.pack("!HH", int(t), 0), "mark": lambda t: struct.pack("=I", int(t))}


def encode(delta: Delta, table: str, types: Mapping[Name, str]) -> bytes | None:
    """The messages of a change, or None if nft has to do it. `types`: of each set, as nft has it ("type ipv4_addr : verdict;")."""
    if delta.new_sets or delta.chains or delta.old_chains or delta.old_sets or len(delta.removed) + len(delta.added) > ELEMENTS_MAX:
        return None
    out = [_message(_BEGIN, _REQUEST, 1, 0, _NFTABLES)]
    try:
        for type_, flags, rows in ((_DELETE_ELEMENT, _REQUEST, _by_set((e, "") for e, _ in delta.removed)),
                                   (_NEW_ELEMENT, _REQUEST | _CREATE, _by_set(delta.added.items()))):
            for (family, name), elements in rows.items():
                keys, values = _shape(types[family, name])
                head = _attribute(1, table.encode() + b"\0") + _attribute(2, name.encode() + b"\0")
                for at in range(0, len(elements), A_MESSAGE):
                    items = b"".join(_element(k, v, keys, values) for k, v in elements[at:at + A_MESSAGE])
                    out.append(_message(type_, flags, len(out) + 1, FAMILIES[family], 0, head + _nest(3, items)))
    except (KeyError, ValueError, OSError, struct.error):       # a type or a value that is not of the tables above
        return None
    out.append(_message(_END, _REQUEST | _ACK, len(out) + 1, 0, _NFTABLES))
    return b"".join(out)


class Kernel:
    """A socket to nf_tables. It is kept: closing one waits for everything that earlier transactions removed, some 10 ms."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def send(self, messages: bytes) -> None:
        """All of it or nothing. Raises NftError. Blocks for a tenth of a millisecond."""
        self._failed(_failure(self._ask(messages)))

    def contents(self, family: str, table: str) -> tuple[int, dict[str, int]]:
        """(how many rules a table has, how many elements each set of it, if the kernel counts them). Raises NftError."""
        name = _attribute(1, table.encode() + b"\0")
        rules = sum(1 for _ in self._dump(_message(_GET_RULE, _REQUEST | _DUMP, 1, FAMILIES[family], 0, name)))
        sets: dict[str, int] = {}
        for row in self._dump(_message(_GET_SET, _REQUEST | _DUMP, 2, FAMILIES[family], 0, name)):
            found = _attributes(row)
            if _SET_COUNT in found:
                sets[found[_SET_NAME].rstrip(b"\0").decode()] = int.from_bytes(found[_SET_COUNT], "big")
        return rules, sets

    def _dump(self, message: bytes) -> Iterator[bytes]:
        """The attributes of everything an answer of several parts lists."""
        data = self._ask(message)
        while True:
            for type_, body in _messages(data):
                if type_ == _DONE:
                    return
                if type_ == _ERROR:
                    self._failed(-struct.unpack_from("=i", body)[0])
                yield body[4:]
            data = self._ask(b"")

    def _failed(self, code: int) -> None:
        if code:
            self.close()
            raise NftError(f"netlink: {os.strerror(code)}")

    def _ask(self, messages: bytes) -> bytes:
        """What the kernel answers; with nothing to say, what it goes on with."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
                self._socket.settimeout(TIMEOUT_S)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
                self._socket.bind((0, 0))
            if messages:
                self._socket.send(messages)
            return self._socket.recv(1 << 16)
        except OSError as e:
            self.close()                                        # what was asked is not known: a late answer must not be taken for the next
            raise NftError(f"netlink: {e}") from None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message."""
    at = 0
    while at + 16 <= len(data):
        length, type_ = struct.unpack_from("=IH", data, at)
        yield type_, data[at + 16:at + length]
        at += max(16, (length + 3) & ~3)


def _failure(data: bytes) -> int:
    """The first error number of an answer, 0 if all went well."""
    return next((-int(code) for type_, body in _messages(data) if type_ == _ERROR and (code := struct.unpack_from("=i", body)[0])), 0)


def _attributes(data: bytes) -> dict[int, bytes]:
    out, at = {}, 0
    while at + 4 <= len(data):
        length, type_ = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        out[type_ & ~_NESTED] = data[at + 4:at + length]
        at += (length + 3) & ~3
    return out


def _by_set(elements: Iterable[tuple[Element, str]]) -> dict[Name, list[tuple[str, str]]]:
    out: dict[Name, list[tuple[str, str]]] = {}
    for (family, name, key), value in elements:
        out.setdefault((family, name), []).append((key, value))
    return out


def _shape(declaration: str) -> tuple[list[Part], list[Part] | None]:
    """(how keys are made, how values are; None for verdicts). Raises KeyError."""
    kind = declaration.partition("type ")[2].partition(";")[0]
    keys, _, values = kind.partition(" : ")
    wanted = values.strip()
    return [PARTS[p.strip()] for p in keys.split(" . ")], None if wanted in ("", "verdict") else [PARTS[p.strip()] for p in wanted.split(" . ")]


def _joined(text: str, parts: list[Part]) -> bytes:
    return b"".join(part(t) for part, t in zip(parts, text.split(" . "), strict=True))


def _element(key: str, value: str, keys: list[Part], values: list[Part] | None) -> bytes:
    body = _nest(1, _attribute(1, _joined(key, keys)))
    if value and values is None:
        verb, _, chain = value.partition(" ")
        body += _nest(2, _nest(2, _attribute(1, struct.pack("!i", VERDICTS[verb])) + (_attribute(2, chain.encode() + b"\0") if chain else b"")))
    elif value:
        assert values is not None
        body += _nest(2, _attribute(1, _joined(value, values)))
    return _nest(1, body)


def _attribute(type_: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, type_) + data + bytes(-length % 4)


def _nest(type_: int, data: bytes) -> bytes:
    return _attribute(type_ | _NESTED, data)


def _message(type_: int, flags: int, sequence: int, family: int, resource: int, body: bytes = b"") -> bytes:
    return struct.pack("=IHHIIBBH", 20 + len(body), type_, flags, sequence, 0, family, 0, socket.htons(resource)) + body
