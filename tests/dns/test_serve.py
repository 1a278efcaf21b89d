"""The server on loopback: UDP and TCP, forwarding with cache and stub domains, the relay; spoken to by dnspython."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from kubern.dns.answer import Answerer
from kubern.dns.forward import Forwarder, Kept, aged, keep_seconds, servers_of
from kubern.dns.serve import Server

Answer = Callable[[dns.message.Message], dns.message.Message]


@asynccontextmanager
async def upstream(answer: Answer) -> AsyncIterator[tuple[tuple[str, int], list[str]]]:
    """A DNS server of the world; what it was asked is kept."""
    asked: list[str] = []

    class Protocol(asyncio.DatagramProtocol):
        def connection_made(self, transport: object) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            q = dns.message.from_wire(data)
            asked.append(str(q.question[0].name))
            self.transport.sendto(answer(q).to_wire(), addr)  # type: ignore[attr-defined]

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        q = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")))
        asked.append("tcp")
        wire = big(q, tcp=True).to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(tcp, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, local_addr=address)
    try:
        yield address, asked
    finally:
        transport.close()
        server.close()


def fixed(q: dns.message.Message) -> dns.message.Message:
    m = dns.message.make_response(q)
    name = q.question[0].name
    if str(name).startswith("missing"):
        m.set_rcode(dns.rcode.NXDOMAIN)
        m.authority.append(dns.rrset.from_text("example.com.", 60, "IN", "SOA", "ns.example.com. h.example.com. 1 2 3 4 20"))
    else:
        m.answer.append(dns.rrset.from_text("www.example.com." if str(name) == "www.example.com." else name, 30, "IN", "A", "192.0.2.7"))
    return m


def big(q: dns.message.Message, tcp: bool = False) -> dns.message.Message:
    m = dns.message.make_response(q)
    if tcp:
        m.answer.append(dns.rrset.from_text(q.question[0].name, 30, "IN", "A", *(f"192.0.2.{i}" for i in range(40))))
    else:
        m.flags |= dns.flags.TC
    return m


@asynccontextmanager
async def server(forwarder: Forwarder, local: bool = True) -> AsyncIterator[Server]:
    a = None
    if local:
        a = Answerer()
        a.records.service_changed(None, {"metadata": {"name": "web", "namespace": "default"}, "spec": {"clusterIP": "10.96.0.20", "ports": []}})
        a.records.service_changed(None, {"metadata": {"name": "ext", "namespace": "default"},
                                         "spec": {"type": "ExternalName", "externalName": "www.example.com"}})
    s = Server(a, forwarder)
    await s.listen("127.0.0.1", 0)
    try:
        yield s
    finally:
        s.close()
        await asyncio.sleep(0)


async def udp(s: Server, name: str, type_: str = "A", **how: object) -> dns.message.Message:
    return await dns.asyncquery.udp(dns.message.make_query(name, type_, **how), "127.0.0.1", port=s.port, timeout=5)  # type: ignore[arg-type]


async def test_cluster_names_by_udp_and_tcp() -> None:
    async with server(Forwarder([])) as s:
        q = dns.message.make_query("web.default.svc.cluster.local", "A")
        for m in (await udp(s, "web.default.svc.cluster.local"), await dns.asyncquery.tcp(q, "127.0.0.1", port=s.port, timeout=5)):
            assert str(m.answer[0][0]) == "10.96.0.20"
        await asyncio.sleep(0.01)


async def test_other_names_are_forwarded_once_and_kept() -> None:
    async with upstream(fixed) as (address, asked), server(Forwarder([address])) as s:
        got = await asyncio.gather(*(udp(s, "a.example.com") for _ in range(5)))
        assert all(str(m.answer[0][0]) == "192.0.2.7" and not m.flags & dns.flags.AA for m in got)
        await udp(s, "A.Example.com", use_edns=0)
        assert asked == ["a.example.com."]


async def test_negative_answers_are_kept_too() -> None:
    async with upstream(fixed) as (address, asked), server(Forwarder([address])) as s:
        for _ in range(3):
            assert (await udp(s, "missing.example.com")).rcode() == dns.rcode.NXDOMAIN
        assert len(asked) == 1


async def test_external_name_ends_with_the_worlds_answer() -> None:
    async with upstream(fixed) as (address, _), server(Forwarder([address])) as s:
        m = await udp(s, "ext.default.svc.cluster.local")
        assert [str(x) for rr in m.answer for x in rr] == ["www.example.com.", "192.0.2.7"]


async def test_stub_domains_go_elsewhere() -> None:
    async with upstream(fixed) as (address, asked), server(Forwarder([("127.0.0.1", 9)], {("corp", "example"): [address]})) as s:
        await udp(s, "db.corp.example")
        assert asked == ["db.corp.example."]


async def test_cut_off_answers_are_fetched_by_tcp_and_cut_for_clients_without_edns() -> None:
    async with upstream(big) as (address, asked), server(Forwarder([address])) as s:
        m = await udp(s, "big.example.com", use_edns=0, payload=4096)
        assert len(m.answer[0]) == 40 and asked == ["big.example.com.", "tcp"]
        q = dns.message.make_query("big.example.com", "A")
        raw = await dns.asyncquery.udp(q, "127.0.0.1", port=s.port, timeout=5)
        assert raw.flags & dns.flags.TC


async def test_nobody_answers_is_servfail() -> None:
    async with server(Forwarder([])) as s:
        assert (await udp(s, "a.example.com")).rcode() == dns.rcode.SERVFAIL


async def test_the_relay_forwards_everything() -> None:
    async with upstream(fixed) as (address, asked), server(Forwarder([address]), local=False) as s:
        await udp(s, "web.default.svc.cluster.local")
        assert asked == ["web.default.svc.cluster.local."]


async def test_rubbish_is_survived() -> None:
    async with server(Forwarder([])) as s:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", s.port))
        for junk in (b"", b"\0", b"\xff" * 600):
            transport.sendto(junk)
        assert (await udp(s, "web.default.svc.cluster.local")).answer
        transport.close()


def test_ttls_count_down() -> None:
    reply = fixed(dns.message.make_query("a.example.com", "A")).to_wire()
    seconds, ttls = keep_seconds(reply)
    now = time.monotonic()
    assert seconds == 30
    assert dns.message.from_wire(aged(Kept(reply, ttls, now, now + 30), 7, now + 12.5)).answer[0].ttl == 18


def test_resolv_conf() -> None:
    assert servers_of("# x\nnameserver 192.0.2.1\nsearch a b\nnameserver 192.0.2.2\n") == [("192.0.2.1", 53), ("192.0.2.2", 53)]
