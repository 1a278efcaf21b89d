"""The network without an API server: fabric, services, DNS, network policy on two node units, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubern.kubelet import node
from kubern.kubelet.runtime import RuntimeFailure
from tests.real.bed import CLUSTER, NODES, PYTHON, Bed, udp_echo, until, web

pytestmark = pytest.mark.real

SCTP = 132


@pytest.fixture(scope="module")
def loop_() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def bed(loop_: asyncio.AbstractEventLoop) -> Iterator[Bed]:
    try:
        node.check_machine()
    except node.CannotRun as e:
        pytest.skip(str(e))
    home = Path(tempfile.mkdtemp(prefix="kn-net-"))
    forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    b = Bed(home)
    try:
        loop_.run_until_complete(b.start())

        async def pods() -> None:
            await asyncio.gather(b.pod("w1", "na", command=web("w1"), labels={"app": "w"}),
                                 b.pod("w2", "nb", command=web("w2"), labels={"app": "w"}), b.pod("c1", "na"), b.pod("c2", "nb"))
            b.write()
        loop_.run_until_complete(pods())
        yield b
        loop_.run_until_complete(b.stop())
    finally:
        for u in node.list_units(home):
            node.destroy_unit(home, u.name, kill=True)
        left = node.cleanup_stale(home, CLUSTER)
        shutil.rmtree(home, ignore_errors=True)
    assert left == []
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == forwarding
    assert not list(Path("/sys/fs/cgroup").glob(f"*/kubern/{CLUSTER}"))
    assert not (node.RUN / CLUSTER).exists()


def test_pods_reach_pods_on_both_nodes_with_their_own_address(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        for c in ("c1", "c2"):
            for w in ("w1", "w2"):
                assert await bed.get(c, f"http://{bed.pods[w].ip}:8080") == w
    loop_.run_until_complete(go())


def test_cluster_ip_spreads_over_nodes_and_hairpins(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        bed.service("web", "10.96.0.20", ["w1", "w2"])
        async def both() -> bool:
            return {await bed.get("c1", "http://10.96.0.20") for _ in range(12)} == {"w1", "w2"}
        async def both_from_one() -> bool:
            return {await bed.get("w1", "http://10.96.0.20") for _ in range(12)} == {"w1", "w2"}
        await until(both)
        await until(both_from_one)
        bed.service("web", "10.96.0.20", ["w1"])
        async def itself() -> bool:
            return {await bed.get("w1", "http://10.96.0.20") for _ in range(4)} == {"w1"}
        await until(itself)
        bed.service("web", "10.96.0.20", ["w1", "w2"])
    loop_.run_until_complete(go())


def test_node_port_answers_on_every_node_from_the_machine_and_from_pods(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        bed.service("np", "10.96.0.21", ["w2"], nodePort=30080, type="NodePort")
        for name in NODES:
            address = bed.units[name].config.address
            async def answers(address: str = address) -> bool:
                return await bed.get("c1", f"http://{address}:30080") == "w2"
            await until(answers)
            reader, writer = await asyncio.open_connection(address, 30080)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert b"w2" in await reader.read()
            writer.close()
    loop_.run_until_complete(go())


def test_local_external_policy_keeps_the_source_and_shuns_other_nodes(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        bed.service("npl", "10.96.0.22", ["w2"], nodePort=30081, type="NodePort", externalTrafficPolicy="Local")
        async def here() -> bool:
            try:
                async with asyncio.timeout(1):
                    reader, writer = await asyncio.open_connection(bed.units["nb"].config.address, 30081)
                    writer.write(b"GET / HTTP/1.0\r\n\r\n")
                    got = await reader.read()
                    writer.close()
                    return b"w2" in got
            except (OSError, TimeoutError):
                return False
        await until(here)
        with pytest.raises((OSError, TimeoutError)):
            async with asyncio.timeout(1):
                await asyncio.open_connection(bed.units["na"].config.address, 30081)
        assert await bed.get("c1", f"http://{bed.units['na'].config.address}:30081") == "w2"       # pods go anywhere
    loop_.run_until_complete(go())


def test_no_endpoints_is_refused_at_once(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        bed.service("none", "10.96.0.23", [])
        async def refused() -> bool:
            began = time.monotonic()
            _, out = await bed.run("c1", "timeout 3 wget -qO- http://10.96.0.23 2>&1")
            return "refused" in out and time.monotonic() - began < 1
        await until(refused)
    loop_.run_until_complete(go())


def test_client_ip_affinity(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        bed.service("sticky", "10.96.0.24", ["w1", "w2"], sessionAffinity="ClientIP",
                    sessionAffinityConfig={"clientIP": {"timeoutSeconds": 600}})
        async def answers() -> bool:
            return bool(await bed.get("c1", "http://10.96.0.24"))
        await until(answers)
        assert len({await bed.get("c1", "http://10.96.0.24") for _ in range(10)}) == 1
        assert len({await bed.get("c2", "http://10.96.0.24") for _ in range(10)}) == 1
    loop_.run_until_complete(go())


def test_affinity_ends_with_its_timeout(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        bed.service("brief", "10.96.0.26", ["w1", "w2"], sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 1}})
        async def answers() -> bool:
            return bool(await bed.get("c1", "http://10.96.0.26"))
        await until(answers)
        async def burst() -> set[str]:
            return {await bed.get("c1", "http://10.96.0.26") for _ in range(3)}
        async def moved() -> bool:
            await asyncio.sleep(1.2)
            seen.update(await burst())
            return seen == {"w1", "w2"}
        seen = await burst()
        assert len(seen) == 1
        await until(moved, 20)
    loop_.run_until_complete(go())


def test_near_endpoints_are_preferred_by_zone_and_by_node(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    """As trafficDistribution has the slices say: hints are heeded while they name an endpoint for us, else everything is used."""
    async def go() -> None:
        async def asked() -> tuple[set[str], set[str]]:
            a, b = [{await bed.get(c, "http://10.96.0.27") for _ in range(8)} for c in ("c1", "c2")]
            return a, b
        for hints in (("forZones", "z0", "z1"), ("forNodes", "na", "nb")):
            kind, one, two = hints
            bed.service("near", "10.96.0.27", ["w1", "w2"], endpoints={"w1": {"hints": {kind: [{"name": one}]}}, "w2": {"hints": {kind: [{"name": two}]}}})
            async def near() -> bool:
                return await asked() == ({"w1"}, {"w2"})
            await until(near, 20)
            bed.service("near", "10.96.0.27", ["w1", "w2"], endpoints={x: {"hints": {kind: [{"name": two}]}} for x in ("w1", "w2")})
            async def far() -> bool:
                return (await asked())[0] == {"w1", "w2"}                       # nothing is meant for c1's place: anything will do
            await until(far, 20)
    loop_.run_until_complete(go())


def test_the_internal_local_policy(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        bed.service("inner", "10.96.0.28", ["w1", "w2"], internalTrafficPolicy="Local")
        async def own() -> bool:
            return [{await bed.get(c, "http://10.96.0.28") for _ in range(6)} for c in ("c1", "c2")] == [{"w1"}, {"w2"}]
        await until(own, 20)
        bed.service("inner", "10.96.0.28", ["w2"], internalTrafficPolicy="Local")
        async def nothing_here() -> bool:
            return not await bed.get("c1", "http://10.96.0.28") and await bed.get("c2", "http://10.96.0.28") == "w2"
        await until(nothing_here, 20)
    loop_.run_until_complete(go())


def test_endpoints_that_end_serve_while_there_are_no_others(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        ending = {"conditions": {"ready": False, "serving": True, "terminating": True}}
        async def only(who: str) -> bool:
            return {await bed.get("c1", "http://10.96.0.29") for _ in range(8)} == {who}
        bed.service("ending", "10.96.0.29", ["w1"], endpoints={"w1": ending})
        await until(lambda: only("w1"), 20)
        bed.service("ending", "10.96.0.29", ["w1", "w2"], endpoints={"w1": ending})
        await until(lambda: only("w2"), 20)
    loop_.run_until_complete(go())


def test_sctp_where_the_kernel_has_it(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError as e:
        pytest.skip(f"this kernel has no SCTP: {e}")

    async def go() -> None:
        serve = f"import socket; s=socket.socket(2,1,{SCTP}); s.bind(('',9000)); s.listen()\nwhile 1: c=s.accept()[0]; c.send(b'sctp'); c.close()"
        await asyncio.gather(bed.pod("s1", "nb", PYTHON, ("python3", "-c", serve)), bed.pod("sc", "na", PYTHON))
        bed.service("sctp", "10.96.0.30", ["s1"], port=9000, target=9000, protocol="SCTP")
        ask = f"python3 -c \"import socket; s=socket.socket(2,1,{SCTP}); s.settimeout(2); s.connect(('10.96.0.30',9000)); print(s.recv(9))\""
        async def answers() -> bool:
            return "sctp" in (await bed.run("sc", ask))[1]
        await until(answers, 20)
    loop_.run_until_complete(go())


def test_names_resolve_in_pods(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        for c in ("c1", "c2"):
            assert await bed.get(c, "http://web") in ("w1", "w2")
            _, out = await bed.run(c, "nslookup web.default.svc.cluster.local")
            assert "10.96.0.20" in out, out
            _, out = await bed.run(c, "nslookup nothing.default.svc.cluster.local")
            assert "NXDOMAIN" in out
        bed.service("head", "None", ["w1", "w2"])
        async def both() -> bool:
            _, out = await bed.run("c1", "nslookup head.default.svc.cluster.local")
            return bed.pods["w1"].ip in out and bed.pods["w2"].ip in out
        await until(both)
        _, out = await bed.run("c1", "nslookup w2.head.default.svc.cluster.local")
        assert bed.pods["w2"].ip in out
    loop_.run_until_complete(go())


def test_udp_flows_move_to_the_new_endpoint(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    """A client that keeps its source port is not left with an endpoint that is gone."""
    async def go() -> None:
        await asyncio.gather(bed.pod("u1", "na", PYTHON, udp_echo("u1")), bed.pod("u2", "nb", PYTHON, udp_echo("u2")),
                             bed.pod("uc", "na", PYTHON))
        ask = ("python3 -c \"import socket; s=socket.socket(2,2); s.bind(('',7777)); s.settimeout(1); s.sendto(b'hi',('10.96.0.25',9000)); "
               "print(s.recv(99))\"")
        async def says(who: str) -> bool:
            return who in (await bed.run("uc", ask))[1]
        for who in ("u1", "u2"):
            bed.service("udp", "10.96.0.25", [who], port=9000, target=9000, protocol="UDP")
            await until(lambda who=who: says(who))
    loop_.run_until_complete(go())


def test_network_policy_on_one_node_and_across(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        name = "networkpolicies.networking.k8s.io"
        w1, w2 = (f"http://{bed.pods[w].ip}:8080" for w in ("w1", "w2"))
        bed.state[name] = [{"metadata": {"name": "deny", "namespace": "default"},
                            "spec": {"podSelector": {"matchLabels": {"app": "w"}}, "policyTypes": ["Ingress"]}}]
        bed.write()
        async def denied() -> bool:
            return not any([await bed.get(c, u) for c in ("c1", "c2") for u in (w1, w2)])
        await until(denied, 30)
        bed.state[name].append({"metadata": {"name": "c1", "namespace": "default"}, "spec": {
            "podSelector": {"matchLabels": {"app": "w"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "c1"}}}], "ports": [{"port": 8000, "endPort": 8080}]}]}})
        bed.write()
        async def only_c1() -> bool:
            return bool(await bed.get("c1", w1) and await bed.get("c1", w2)) and not (await bed.get("c2", w1) or await bed.get("c2", w2))
        await until(only_c1, 30)
        bed.state[name] = [{"metadata": {"name": "out", "namespace": "default"}, "spec": {
            "podSelector": {"matchLabels": {"app": "c2"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": f"{bed.pods['w1'].ip}/32"}}]}]}}]
        bed.write()
        async def only_w1() -> bool:
            return bool(await bed.get("c2", w1)) and not await bed.get("c2", w2) and bool(await bed.get("c1", w2))
        await until(only_w1, 30)
        bed.state[name] = []
        bed.write()
        async def open_again() -> bool:
            return bool(await bed.get("c2", w2))
        await until(open_again, 30)
    loop_.run_until_complete(go())


def test_network_policy_by_namespace_named_port_and_excepted_addresses(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        name = "networkpolicies.networking.k8s.io"
        await bed.pod("o1", "nb", namespace="other")
        for p in bed.state["pods"]:
            if p["metadata"]["name"] in ("w1", "w2"):
                p["spec"]["containers"] = [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]
        w1, w2 = (f"http://{bed.pods[w].ip}:8080" for w in ("w1", "w2"))

        def allow(peer: dict[str, Any], port: Any) -> None:
            bed.state[name] = [{"metadata": {"name": "in", "namespace": "default"}, "spec": {
                "podSelector": {"matchLabels": {"app": "w"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer], "ports": [{"port": port}]}]}}]
            bed.write()

        async def seen() -> list[bool]:
            return [bool(await bed.get(c, w)) for c in ("c1", "o1") for w in (w1, w2)]
        allow({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}, "web")
        await until(lambda: _equals(seen, [False, False, True, True]), 30)
        allow({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}, "dns")
        await until(lambda: _equals(seen, [False] * 4), 30)
        allow({"ipBlock": {"cidr": "10.0.0.0/8", "except": [f"{bed.pods['o1'].ip}/32"]}}, 8080)
        await until(lambda: _equals(seen, [True, True, False, False]), 30)
        bed.state[name] = []
        bed.write()
        await until(lambda: _equals(seen, [True] * 4), 30)
    loop_.run_until_complete(go())


async def _equals(ask: Callable[[], Awaitable[Any]], wanted: Any) -> bool:
    return bool(await ask() == wanted)


def test_containerd_and_agent_come_back_and_traffic_goes_on(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        unit = bed.units["na"]
        me = next(iter(node._children_of(unit.pid)))
        before = node._children_of(me)
        for child in before:
            argv = _cmdline(Path(f"/proc/{child}"))
            if b"containerd.toml" in argv or b"net_agent" in argv:
                os.kill(child, 9)
        assert await asyncio.to_thread(await_pods, bed)
        async def again() -> bool:
            try:
                return (await bed.get("c1", "http://web")) in ("w1", "w2")
            except RuntimeFailure:
                return False
        await until(again, 20)
        assert unit.alive()
    loop_.run_until_complete(go())


def test_the_agent_is_started_anew_on_request(bed: Bed, loop_: asyncio.AbstractEventLoop) -> None:
    async def go() -> None:
        unit = bed.units["na"]

        def agent() -> int:
            me = next(iter(node._children_of(unit.pid)))
            return next((c for c in node._children_of(me) if b"net_agent" in _cmdline(Path(f"/proc/{c}"))), 0)
        before = agent()
        node.restart_agent(unit)
        async def another() -> bool:
            return agent() not in (0, before)
        await until(another, 5)
        async def answers() -> bool:
            return bool(await bed.get("c1", "http://web"))
        await until(answers)
    loop_.run_until_complete(go())


def await_pods(bed: Bed) -> bool:
    """The machine itself reaches the pods while containerd is down."""
    import urllib.request

    with urllib.request.urlopen(f"http://{bed.pods['w1'].ip}:8080", timeout=5) as r:
        return r.read().strip() == b"w1"


def test_units_are_found_again_by_their_record(bed: Bed) -> None:
    alive, dead = node.adopt(bed.home)
    assert [u.name for u in alive] == list(NODES) and dead == []
    assert node.cleanup_stale(bed.home, CLUSTER, keep=NODES) == []
    assert all(u.alive() for u in alive)


def test_killing_a_unit_takes_everything_with_it(bed: Bed) -> None:
    unit = bed.units["nb"]
    os.kill(unit.pid, 9)
    end = time.monotonic() + 5
    while time.monotonic() < end and any(f"/{CLUSTER}/nb/".encode() in _cmdline(p) for p in Path("/proc").glob("[0-9]*")):
        time.sleep(0.05)
    assert not any(f"/{CLUSTER}/nb/".encode() in _cmdline(p) for p in Path("/proc").glob("[0-9]*"))
    assert f"/{CLUSTER}/nb/" not in Path("/proc/self/mountinfo").read_text()
    assert node.destroy_unit(bed.home, "nb")


def _cmdline(p: Path) -> bytes:
    try:
        return (p / "cmdline").read_bytes()
    except OSError:
        return b""
