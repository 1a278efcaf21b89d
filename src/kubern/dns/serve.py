"""Serve: the DNS server's sockets. UDP read many datagrams a wake-up, TCP with bounds; what needs other servers runs beside."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from dataclasses import dataclass

from kubern.dns import codec
from kubern.dns.answer import Answerer, Found
from kubern.dns.codec import Question
from kubern.dns.forward import Forwarder, Kept, aged

log = logging.getLogger(__name__)

DATAGRAMS_A_WAKE = 64
TASKS_MAX = 2000
TCP_IDLE_S = 30.0
TCP_CONNECTIONS_MAX = 256
SOCKET_BUFFER_BYTES = 1 << 20
FREE_PORT_TRIES = 20


@dataclass(slots=True)
class Counts:
    queries: int = 0
    forwarded: int = 0
    dropped: int = 0


class Server:
    """Answers on one address, UDP and TCP. `answerer` None: everything is forwarded (the relay on the fabric)."""

    def __init__(self, answerer: Answerer | None, forwarder: Forwarder) -> None:
        self.answerer, self.forwarder = answerer, forwarder
        self.counts = Counts()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self._udp: list[socket.socket] = []
        self._tcp: list[asyncio.Server] = []

    async def listen(self, host: str, port: int = 53) -> None:
        """UDP and TCP on one port; 0 = one that is free for both. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for last in (port != 0, *[False] * FREE_PORT_TRIES, True):
            s = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                s.bind((host, port))
                self._tcp.append(await asyncio.start_server(self._connection, host, s.getsockname()[1]))
                break
            except OSError:
                s.close()
                if last:
                    raise
        with contextlib.suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        self._udp.append(s)
        asyncio.get_running_loop().add_reader(s.fileno(), self._readable, s)

    @property
    def port(self) -> int:
        return int(self._udp[0].getsockname()[1])

    def close(self) -> None:
        for s in self._udp:
            asyncio.get_running_loop().remove_reader(s.fileno())
            s.close()
        for t in self._tcp:
            t.close()
        for task in self._tasks:
            task.cancel()

    # ---- UDP
    def _readable(self, s: socket.socket) -> None:
        for _ in range(DATAGRAMS_A_WAKE):
            try:
                data, peer = s.recvfrom(4096)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:                                  # an ICMP error to an earlier reply
                log.debug("dns: %s", e)
                continue
            self.counts.queries += 1
            todo = self._now(data, True)
            if isinstance(todo, bytes):
                if todo:
                    with contextlib.suppress(OSError):
                        s.sendto(todo, peer)
            elif len(self._tasks) >= TASKS_MAX:
                self.counts.dropped += 1
            else:
                task = asyncio.get_running_loop().create_task(self._later(s, peer, *todo))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _later(self, s: socket.socket, peer: tuple[str, int], q: Question, found: Found) -> None:
        reply = await self.finish(q, found, True)
        with contextlib.suppress(OSError):
            s.sendto(reply, peer)

    def _now(self, data: bytes, udp: bool) -> bytes | tuple[Question, Found]:
        """The reply if no other server is needed for it."""
        if self.answerer is not None:
            todo = self.answerer.answer(data, udp)
            if isinstance(todo, bytes):
                return todo
            q, found = todo
        else:
            try:
                q, found = codec.parse_query(data), Found(ours=False)
            except codec.BadMessage:
                return codec.refusal(data, codec.FORMERR)
        if not found.ours and (kept := self.forwarder.cached(q.name, q.type)):
            return relay(q, kept, udp)
        return q, found

    async def finish(self, q: Question, found: Found, udp: bool) -> bytes:
        """Asks other servers for the rest of an answer."""
        self.counts.forwarded += 1
        if not found.ours:
            kept = await self.forwarder.ask(q.name, q.type)
            return relay(q, kept, udp) if kept else codec.build_reply(q, codec.SERVFAIL, [], [], [], udp=udp, authoritative=False)
        answers = [codec.encode_record(r.type, r.ttl, r.data, codec.encode_name(r.name)) for r in found.answers]
        kept = await self.forwarder.ask(found.chase, q.type)
        code = codec.SERVFAIL
        if kept:
            code, more, _, _ = codec.parse_reply(aged(kept, q.id, time.monotonic()))
            answers += codec.encode_all(more)
        return codec.build_reply(q, code, answers, [], [], udp=udp)

    # ---- TCP
    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            while self._connections <= TCP_CONNECTIONS_MAX:
                async with asyncio.timeout(TCP_IDLE_S):
                    data = await reader.readexactly(struct.unpack(">H", await reader.readexactly(2))[0])
                self.counts.queries += 1
                todo = self._now(data, False)
                reply = todo if isinstance(todo, bytes) else await self.finish(*todo, udp=False)
                if not reply:
                    break
                writer.write(struct.pack(">H", len(reply)) + reply)
                await writer.drain()
        except (ConnectionError, TimeoutError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._connections -= 1
            writer.close()


def relay(q: Question, kept: Kept, udp: bool) -> bytes:
    """Another server's reply as ours: to this question's id and case; cut if it does not fit."""
    message = aged(kept, q.id, time.monotonic())
    limit = min(q.edns_size or codec.UDP_PLAIN_MAX, codec.UDP_EDNS_MAX) if udp else 65535
    code, answers, authority, _ = codec.parse_reply(message)
    if q.edns_size and len(message) <= limit:
        return message[:12] + q.raw + message[12 + len(q.raw):]
    return codec.build_reply(q, code, codec.encode_all(answers), codec.encode_all(authority), [], udp=udp, authoritative=False)
