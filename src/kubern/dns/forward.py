"""Forward: names outside the cluster, asked of other servers, with a cache. asyncio, UDP first, TCP when an answer is cut off.

Equal questions on their way are asked once. Positive answers are kept as long as their TTL says, negative ones by their SOA
(RFC 2308), both within bounds; TTLs count down while kept.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kubern.dns import codec
from kubern.dns.codec import Name

TRY_S = 2.0
TRIES = 2
CACHE_MAX = 10_000
TTL_MAX_S, NEGATIVE_MAX_S, FAILURE_S = 3600, 30, 5
ON_THEIR_WAY_MAX = 1000
PORT = 53
Server = tuple[str, int]


@dataclass(slots=True)
class Kept:
    message: bytes                 # of the reply, id 0
    ttls: list[int]                # positions of its TTLs
    since_s: float
    until_s: float


def servers_of(resolv_conf: str) -> list[Server]:
    """The nameservers of a resolv.conf."""
    return [(w[1], PORT) for w in (line.split() for line in resolv_conf.splitlines()) if len(w) > 1 and w[0] == "nameserver"][:3]


def keep_seconds(message: bytes) -> tuple[float, list[int]]:
    """(how long a reply may be kept, positions of its TTLs). Raises BadMessage."""
    code, answers, authority, ttls = codec.parse_reply(message)
    if code not in (codec.NOERROR, codec.NXDOMAIN):
        return FAILURE_S, ttls
    if answers:
        return min(min(r.ttl for r in answers), TTL_MAX_S), ttls
    soa = next((r for r in authority if r.type == codec.SOA), None)
    minimum = struct.unpack(">I", soa.data[-4:])[0] if soa and len(soa.data) >= 4 else FAILURE_S
    return min(minimum, soa.ttl if soa else FAILURE_S, NEGATIVE_MAX_S), ttls


def aged(k: Kept, id_: int, now_s: float) -> bytes:
    """The reply for a new query: its id in, TTLs counted down."""
    out = bytearray(k.message)
    struct.pack_into(">H", out, 0, id_)
    passed = int(now_s - k.since_s)
    if passed:
        for at in k.ttls:
            struct.pack_into(">I", out, at, max(0, struct.unpack_from(">I", out, at)[0] - passed))
    return bytes(out)


class Forwarder:
    """`stubs`: other servers for some domains, the longest match counts."""

    def __init__(self, servers: Sequence[Server], stubs: Mapping[Name, Sequence[Server]] | None = None) -> None:
        self.servers, self.stubs = list(servers), dict(stubs or {})
        self._cache: OrderedDict[bytes, Kept] = OrderedDict()
        self._pending: dict[bytes, asyncio.Task[Kept | None]] = {}

    def choose(self, servers: Sequence[Server], stubs: Mapping[Name, Sequence[Server]]) -> None:
        """Others from now on; what the ones before said is forgotten."""
        self.servers, self.stubs = list(servers), dict(stubs)
        self._cache.clear()

    def servers_for(self, name: Name) -> Sequence[Server]:
        for n in range(len(name)):
            if name[n:] in self.stubs:
                return self.stubs[name[n:]]
        return self.servers

    def cached(self, name: Name, type_: int) -> Kept | None:
        key = codec.encode_name(name) + struct.pack(">H", type_)
        k = self._cache.get(key)
        if k and k.until_s > time.monotonic():
            self._cache.move_to_end(key)
            return k
        return None

    async def ask(self, name: Name, type_: int) -> Kept | None:
        """The reply from the cache or a server; None: nobody answered."""
        k = self.cached(name, type_)
        if k:
            return k
        key = codec.encode_name(name) + struct.pack(">H", type_)
        task = self._pending.get(key)
        if task is None:
            if len(self._pending) >= ON_THEIR_WAY_MAX:
                return None
            task = self._pending[key] = asyncio.get_running_loop().create_task(self._fetch(key, name, type_))
            task.add_done_callback(lambda _: self._pending.pop(key, None))
        return await asyncio.shield(task)

    async def _fetch(self, key: bytes, name: Name, type_: int) -> Kept | None:
        servers = list(self.servers_for(name))
        for attempt in range(TRIES):
            for server in servers if attempt == 0 else random.sample(servers, len(servers)):
                try:
                    message = await exchange(server, name, type_)
                    seconds, ttls = keep_seconds(message)
                except (OSError, TimeoutError, codec.BadMessage, EOFError):
                    continue
                now = time.monotonic()
                k = Kept(message, ttls, now, now + seconds)
                if seconds > 0:
                    self._cache[key] = k
                    while len(self._cache) > CACHE_MAX:
                        self._cache.popitem(last=False)
                return k
        return None


async def exchange(server: Server, name: Name, type_: int) -> bytes:
    """One question to one server, by UDP and if the answer does not fit by TCP; the reply with id 0. Raises OSError, TimeoutError."""
    id_ = secrets.randbelow(65536)
    query = codec.build_query(id_, name, type_)
    question = query[12:-11]                                     # without our EDNS record
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    class Receiver(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            if data[:2] == query[:2] and data[2:3] >= b"\x80" and data[12:12 + len(question)].lower() == question and not done.done():
                done.set_result(data)

        def error_received(self, exc: Exception) -> None:
            if not done.done():
                done.set_exception(exc)

    transport, _ = await loop.create_datagram_endpoint(Receiver, remote_addr=server)   # a new source port for every question
    try:
        transport.sendto(query)
        async with asyncio.timeout(TRY_S):
            message = await done
    finally:
        transport.close()
    if message[2] & 0x02:
        message = await _exchange_tcp(server, query)
    return b"\0\0" + message[2:]


async def _exchange_tcp(server: Server, query: bytes) -> bytes:
    async with asyncio.timeout(TRY_S):
        reader, writer = await asyncio.open_connection(*server)
        try:
            writer.write(struct.pack(">H", len(query)) + query)
            n = struct.unpack(">H", await reader.readexactly(2))[0]
            message = await reader.readexactly(n)
        finally:
            writer.close()
    if message[:2] != query[:2]:
        raise OSError("the reply is to another question")
    return message
