"""Two API servers on one etcd: what one has acknowledged the other shows, to reads, watches and writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import orjson
import pytest

from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.api.watch import Watch
from kubern.model.request import Request
from kubern.store.etcd import EtcdStore

NS = "/api/v1/namespaces/default"


async def ask(server: Server, method: str, path: str, body: Any = None, type: str = "application/json", **query: str) -> tuple[int, Any]:
    response = await server.handle(Request(method, path, {k: [v] for k, v in query.items()}, {"content-type": type, "accept": "application/json"},
                                           orjson.dumps(body) if body is not None else b"", user=MASTERS))
    if isinstance(response.body, Watch):
        return response.status, response.body
    raw = response.body if isinstance(response.body, bytes) else b"".join(response.body)  # type: ignore[arg-type]
    return response.status, orjson.loads(raw)


@pytest.fixture
async def servers(etcd: str) -> AsyncIterator[tuple[Server, Server]]:
    url = f"{etcd}/{uuid4().hex}"
    stores = [await EtcdStore.open(url) for _ in range(2)]
    a, b = (Server(s, settings=ApiSettings(bootstrap=False)) for s in stores)
    await asyncio.gather(a.start(), b.start())
    assert (await ask(a, "POST", "/api/v1/namespaces", {"metadata": {"name": "default"}}))[0] == 201
    yield a, b
    await asyncio.gather(a.stop(), b.stop())
    await asyncio.gather(*(s.close() for s in stores))


async def test_reads_see_what_the_other_server_wrote(servers: tuple[Server, Server]) -> None:
    a, b = servers
    for i in range(10):
        status, made = await ask(a, "POST", f"{NS}/configmaps", {"metadata": {"name": f"m{i}"}})
        assert status == 201
        assert await ask(b, "GET", f"{NS}/configmaps/m{i}") == (200, made)
        listed = (await ask(b, "GET", f"{NS}/configmaps"))[1]
        assert len(listed["items"]) == i + 1
        version = made["metadata"]["resourceVersion"]
        assert len((await ask(b, "GET", f"{NS}/configmaps", resourceVersion=version))[1]["items"]) == i + 1
        assert b.fast(Request("GET", f"{NS}/configmaps/m{i}", user=MASTERS)) is None


async def test_writes_by_turns(servers: tuple[Server, Server]) -> None:
    await ask(servers[0], "POST", f"{NS}/configmaps", {"metadata": {"name": "m"}, "data": {}})

    async def add(server: Server, who: str) -> None:
        for i in range(10):
            assert (await ask(server, "PATCH", f"{NS}/configmaps/m", {"data": {f"{who}{i}": "x"}}, "application/merge-patch+json"))[0] == 200
    await asyncio.gather(add(servers[0], "a"), add(servers[1], "b"))
    for s in servers:
        assert len((await ask(s, "GET", f"{NS}/configmaps/m"))[1]["data"]) == 20
    assert (await ask(servers[1], "DELETE", f"{NS}/configmaps/m"))[0] == 200
    assert (await ask(servers[0], "GET", f"{NS}/configmaps/m"))[0] == 404


async def test_a_watch_tells_of_both(servers: tuple[Server, Server]) -> None:
    a, b = servers
    _, listed = await ask(b, "GET", f"{NS}/configmaps")
    _, watch = await ask(b, "GET", f"{NS}/configmaps", watch="1", resourceVersion=listed["metadata"]["resourceVersion"])
    for i in range(6):
        await ask((a, b)[i % 2], "POST", f"{NS}/configmaps", {"metadata": {"name": f"m{i}"}})
    names: list[str] = []
    async with asyncio.timeout(5):
        async for chunk in watch:
            names += [orjson.loads(line)["object"]["metadata"]["name"] for line in chunk.splitlines() if line]
            if len(names) >= 6:
                break
    assert names == [f"m{i}" for i in range(6)]
    watch.end()


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}], **spec}}


def taken(service: dict[str, Any]) -> tuple[str, int]:
    return service["spec"]["clusterIP"], service["spec"]["ports"][0]["nodePort"]


async def test_both_allocate_and_nothing_twice(servers: tuple[Server, Server]) -> None:
    """A range of 14 addresses and 11 ports, 11 Services made at once by two servers: every one gets its own, the twelfth none."""
    for s in servers:
        s.settings = ApiSettings(bootstrap=False, service_cidr="10.96.0.0/28", node_ports=(30000, 30010))
    from kubern.api import allocate

    for s in servers:
        allocate.wire(s)
    made = await asyncio.gather(*(ask(servers[i % 2], "POST", f"{NS}/services", service(f"s{i}")) for i in range(11)))
    assert [status for status, _ in made] == [201] * 11
    ips, ports = zip(*(taken(s) for _, s in made), strict=True)
    assert len(set(ips)) == len(set(ports)) == 11
    assert (await ask(servers[0], "POST", f"{NS}/services", service("more")))[0] == 500
    for i in range(11):
        assert (await ask(servers[(i + 1) % 2], "DELETE", f"{NS}/services/s{i}"))[0] == 200
    for s in servers:
        assert (await ask(s, "GET", "/apis/networking.k8s.io/v1/ipaddresses"))[1]["items"] == []
    made = await asyncio.gather(*(ask(servers[i % 2], "POST", f"{NS}/services", service(f"t{i}")) for i in range(11)))
    assert [status for status, _ in made] == [201] * 11


async def test_of_two_that_want_the_same_one_gets_it(servers: tuple[Server, Server]) -> None:
    for i in range(6):
        wanted = service(f"a{i}", clusterIP=f"10.96.1.{i + 1}"), service(f"b{i}", clusterIP=f"10.96.1.{i + 1}")
        answers = await asyncio.gather(*(ask(s, "POST", f"{NS}/services", w) for s, w in zip(servers, wanted, strict=True)))
        assert sorted(status for status, _ in answers) == [201, 422]
        lost = next(said for status, said in answers if status == 422)
        assert "provided IP is already allocated" in lost["message"]
        port = [{"port": 80, "nodePort": 31000 + i}]
        answers = await asyncio.gather(*(ask(s, "POST", f"{NS}/services", service(f"{n}{i}", ports=port)) for s, n in zip(servers, "cd", strict=True)))
        assert sorted(status for status, _ in answers) == [201, 422]
        assert "provided port is already allocated" in next(said for status, said in answers if status == 422)["message"]
    for s in servers:
        listed = (await ask(s, "GET", "/apis/networking.k8s.io/v1/ipaddresses"))[1]["items"]
        services = (await ask(s, "GET", f"{NS}/services"))[1]["items"]
        assert sorted(ip["metadata"]["name"] for ip in listed) == sorted(taken(s)[0] for s in services)


async def test_ports_are_changed_and_given_back(servers: tuple[Server, Server]) -> None:
    a, b = servers
    assert (await ask(a, "POST", f"{NS}/services", service("s", ports=[{"port": 80, "nodePort": 31500}])))[0] == 201
    change = {"spec": {"ports": [{"port": 80, "nodePort": 31501}]}}
    assert (await ask(b, "PATCH", f"{NS}/services/s", change, "application/merge-patch+json"))[0] == 200
    assert (await ask(a, "POST", f"{NS}/services", service("t", ports=[{"port": 80, "nodePort": 31500}])))[0] == 201
    assert (await ask(b, "POST", f"{NS}/services", service("u", ports=[{"port": 80, "nodePort": 31501}])))[0] == 422


async def test_records_left_by_a_server_that_ended_are_removed(servers: tuple[Server, Server]) -> None:
    from kubern.api.allocated import Records

    a, b = servers
    records = Records(a)
    assert await records.take_ip("10.96.2.2", "default", "gone") and await records.take_port(31777, "default", "gone")
    assert not await Records(b).take_ip("10.96.2.2", "default", "other")
    assert (await ask(b, "POST", f"{NS}/services", service("s")))[0] == 201
    await Records(b).repair()                                        # somebody may still be about to write the Service
    await b._caught_up()  # type: ignore[misc]
    assert "10.96.2.2" in records.addresses.items and "31777" in records.ports.items
    await Records(b).repair(abandoned_s=0)
    assert (await ask(a, "GET", "/apis/networking.k8s.io/v1/ipaddresses/10.96.2.2"))[0] == 404
    assert "31777" not in records.ports.items and len(records.ports.items) == 1 and len(records.addresses.items) == 1


async def test_an_etcd_that_goes_away_and_comes_back(own_etcd: Any) -> None:
    """Writes are 503 and readiness says so; what is in memory can be read; afterwards everything goes on, watches too."""
    store = await EtcdStore.open(own_etcd.url)
    server = Server(store, settings=ApiSettings(bootstrap=False))
    await server.start()
    assert (await ask(server, "POST", "/api/v1/namespaces", {"metadata": {"name": "default"}}))[0] == 201
    assert (await ask(server, "POST", f"{NS}/configmaps", {"metadata": {"name": "before"}}))[0] == 201
    _, watch = await ask(server, "GET", f"{NS}/configmaps", watch="1", resourceVersion="0")
    names: list[str] = []

    async def follow() -> None:
        async for chunk in watch:
            names.extend(orjson.loads(line)["object"]["metadata"]["name"] for line in chunk.splitlines() if line)
    following = asyncio.create_task(follow())
    own_etcd.kill()

    async def ready() -> int:
        return (await server.handle(Request("GET", "/readyz", user=MASTERS))).status
    assert await ready() == 500
    status, said = await ask(server, "POST", f"{NS}/configmaps", {"metadata": {"name": "lost"}})
    assert status == 503 and said["details"]["retryAfterSeconds"] == 1
    assert (await ask(server, "GET", f"{NS}/configmaps/before", resourceVersion="0"))[0] == 200
    own_etcd.start()
    async with asyncio.timeout(20):
        while await ready() != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert (await ask(server, "POST", f"{NS}/configmaps", {"metadata": {"name": "after"}}))[0] == 201
        while "after" not in names:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert [n for n in names if n != "lost"] == ["before", "after"]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await server.stop()
    await store.close()
