"""Service proxy and DNS of a node, measured from a pod's network namespace; no cluster and no containers are needed, but root and nft.

`python net.py proxy SERVICES` and `python net.py dns SECONDS` print one JSON line; they run themselves again in a network namespace of their
own, where one more namespace is the pod that asks and another the pod that is asked. A service has three endpoints.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLIENT, SERVER = "10.244.0.2", "10.244.1.2"
DNS_VIP, ZONE = "10.96.0.10", "cluster.local"
ENDPOINTS, UPDATES, CONNECTS = 3, 300, 400
OUTSTANDING = 32                       # queries of the asking pod that wait for an answer


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def in_ms(values: list[float], name: str) -> dict[str, float]:
    return {f"{name}_p50_ms": round(percentile(values, 0.5) * 1000, 3), f"{name}_p99_ms": round(percentile(values, 0.99) * 1000, 3),
            f"{name}_max_ms": round(max(values) * 1000, 3)}


# ---- the node and its two pods

def sh(lines: str) -> None:
    for line in lines.strip().splitlines():
        subprocess.run(line.split(), check=True)


def pod(name: str, address: str, gateway: str) -> subprocess.Popen[bytes]:
    """A namespace on a cable of its own; the process that holds it."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
        time.sleep(0.005)
    sh(f"""ip link add {name} type veth peer name eth0 netns {holder.pid}
ip addr add {gateway}/24 dev {name}
ip link set {name} up""")
    for line in (f"ip addr add {address}/24 dev eth0", "ip link set eth0 up", "ip link set lo up", f"ip route add default via {gateway}"):
        subprocess.run(["nsenter", "-t", str(holder.pid), "-n", *line.split()], check=True)
    return holder


def inside(holder: subprocess.Popen[bytes], work: Callable[..., Any], *args: Any) -> Any:
    """Runs a function in a pod's namespace, in a process of its own, and gives back what it returns."""
    def run(answer: Any) -> None:
        with open(f"/proc/{holder.pid}/ns/net") as ns:
            setns(ns.fileno())
        answer.send(work(*args))
    here, there = multiprocessing.Pipe()
    p = multiprocessing.get_context("fork").Process(target=run, args=(there,))
    p.start()
    found = here.recv()
    p.join()
    return found


def setns(fd: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000):
        raise OSError("setns")


def vip(i: int) -> str:
    n = i + 256
    return f"10.{96 + (n >> 16)}.{n >> 8 & 255}.{n & 255}"


def service(i: int) -> dict[str, Any]:
    return {"metadata": {"name": f"s{i}", "namespace": f"ns{i % 10}"}, "spec": {
        "type": "ClusterIP", "clusterIP": vip(i), "clusterIPs": [vip(i)], "ports": [{"port": 80, "protocol": "TCP"}]}}


def slice_of(i: int, first: int = 0) -> dict[str, Any]:
    """The first so many endpoints are of pods that no one asks."""
    addresses = [f"10.244.{9 + j}.{i % 250 + 2}" for j in range(first)] + [SERVER] * (ENDPOINTS - first)
    return {"metadata": {"name": f"s{i}-x", "namespace": f"ns{i % 10}", "labels": {"kubernetes.io/service-name": f"s{i}"}}, "addressType": "IPv4",
            "ports": [{"port": 8080, "protocol": "TCP", "name": ""}],
            "endpoints": [{"addresses": [a], "conditions": {"ready": True}, "nodeName": "far"} for a in dict.fromkeys(addresses)]}


# ---- proxy

def serve(ready: Any) -> None:
    s = socket.create_server(("0.0.0.0", 8080), backlog=1024)
    ready.set()
    while True:
        s.accept()[0].close()


def connects(addresses: list[str], port: int) -> list[float]:
    out = []
    for a in addresses:
        with socket.socket() as s:
            at = time.perf_counter()
            s.connect((a, port))
            out.append(time.perf_counter() - at)
    return out


async def proxy(count: int) -> dict[str, Any]:
    from kubern.proxy.endpoints import Node
    from kubern.proxy.render import Settings
    from kubern.proxy.run import Proxy

    client, server = pod("pod0", CLIENT, "10.244.0.1"), pod("pod1", SERVER, "10.244.1.1")
    ready = multiprocessing.Event()
    served = multiprocessing.get_context("fork").Process(target=lambda: inside(server, serve, ready), daemon=False)
    served.start()
    ready.wait(10)
    p = Proxy(Settings(Node("here")), (4,))
    for i in range(count):
        p.service_changed(None, service(i))
        p.slice_changed(None, slice_of(i))
    at = time.perf_counter()
    await p.apply()
    load_s = time.perf_counter() - at
    gc.collect()
    gc.freeze()                                            # as a node's agent does when it has everything
    for n in (1, 2):                                       # a chain for every count of endpoints, as after the first minutes of a node
        p.slice_changed(None, slice_of(0, n))
        await p.apply()
    updates = []
    for k in range(UPDATES):
        p.slice_changed(None, slice_of(random.randrange(count), k % 3))
        at = time.perf_counter()
        await p.apply()
        updates.append(time.perf_counter() - at)
        await asyncio.sleep(0.002)
    for i in range(count):
        p.slice_changed(None, slice_of(i))
    await p.apply()
    direct = inside(client, connects, [SERVER] * CONNECTS, 8080)
    through = inside(client, connects, [vip(random.randrange(count)) for _ in range(CONNECTS)], 80)
    for holder in (client, server):
        holder.kill()
    served.kill()                                          # what it started ends with this namespace of processes
    return {"services": count, "load_s": round(load_s, 2), **in_ms(updates, "update"), **in_ms(direct, "connect_direct"), **in_ms(through, "connect")}


# ---- DNS

def question(name: str, type_: int, id_: int) -> bytes:
    labels = b"".join(bytes((len(x),)) + x.encode() for x in name.split("."))
    return struct.pack(">6H", id_, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", type_, 1)


def asking(seconds: float, count: int) -> tuple[int, list[float], int]:
    """(answers, how long some took, answers of another kind than expected): so many questions under way all the time, by the service's address."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    names = [f"s{i}.ns{i % 10}.svc.{ZONE}" for i in range(count)]
    wanted = [(names[i % count], 1, 0) for i in range(4096)]
    wanted[::5] = [(n, 28, 0) for n, _, _ in wanted[::5]]                          # as getaddrinfo asks
    wanted[::10] = [(f"{n.split('.')[0]}.default.svc.{ZONE}", 1, 3) for n, _, _ in wanted[::10]]      # by the search path, in vain
    questions = [question(n, t, i) for i, (n, t, _) in enumerate(wanted)]
    codes = [c for _, _, c in wanted]
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
    s.connect((DNS_VIP, 53))
    s.setblocking(False)
    sent, at, done, odd, took = dict[int, float](), 0, 0, 0, list[float]()
    clock = time.perf_counter
    end = clock() + seconds
    while clock() < end:
        while len(sent) < OUTSTANDING:
            s.send(questions[at])
            sent[at] = clock()
            at = (at + 1) % 4096
        if not select.select([s], [], [], 0.5)[0]:
            sent.clear()                                                           # lost
            continue
        try:
            while True:
                reply = s.recv(1500)
                id_ = reply[0] << 8 | reply[1]
                began = sent.pop(id_, None)
                if began is not None:
                    done += 1
                    odd += reply[3] & 15 != codes[id_]
                    took.append(clock() - began)
                    s.send(questions[at])
                    sent[at] = clock()
                    at = (at + 1) % 4096
        except BlockingIOError:
            continue
    return done, took, odd


def answering(count: int, address: str, ready: Any) -> None:
    from kubern.dns.answer import Answerer
    from kubern.dns.forward import Forwarder
    from kubern.dns.serve import Server

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    async def run() -> None:
        a = Answerer(ZONE)
        a.records.namespace_changed(None, {"metadata": {"name": "default"}})
        for i in range(count):
            a.records.service_changed(None, service(i))
            a.records.slice_changed(None, slice_of(i))
        await Server(a, Forwarder([])).listen(address, 53)
        ready.set()
        await asyncio.Event().wait()
    try:
        import uvloop

        uvloop.run(run())
    except ImportError:
        asyncio.run(run())


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def dns(seconds: float, count: int = 1000) -> dict[str, Any]:
    from kubern.proxy.endpoints import Node
    from kubern.proxy.render import Settings
    from kubern.proxy.run import Proxy

    client = pod("pod0", CLIENT, "10.244.0.1")
    ready = multiprocessing.Event()
    server = multiprocessing.get_context("fork").Process(target=answering, args=(count, "10.244.0.1", ready))
    server.start()
    ready.wait(10)
    p = Proxy(Settings(Node("here")), (4,))
    p.service_changed(None, {"metadata": {"name": "kube-dns", "namespace": "kube-system"}, "spec": {
        "clusterIP": DNS_VIP, "clusterIPs": [DNS_VIP], "ports": [{"port": 53, "protocol": "UDP"}]}})
    p.slice_changed(None, {"metadata": {"name": "d", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}}, "addressType": "IPv4",
                           "ports": [{"port": 53, "protocol": "UDP", "name": ""}], "endpoints": [{"addresses": ["10.244.0.1"], "nodeName": "here"}]})
    await p.apply()
    before_s = cpu_s(server.pid or 0)
    done, took, odd = inside(client, asking, seconds, count)
    used_s = cpu_s(server.pid or 0) - before_s
    client.kill()
    server.kill()
    return {"services": count, "per_s": round(done / seconds), **in_ms(took, "answer"), "errors": odd, "server_cpu_us": round(used_s / max(1, done) * 1e6, 1)}


def measure(what: str, amount: str) -> dict[str, Any]:
    """In a namespace of its own; for bench/run."""
    done = subprocess.run(["unshare", "--net", "--kill-child", "--fork", "--pid", "--mount-proc", sys.executable, __file__, what, amount],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(what: str, amount: str) -> None:
    sh("ip link set lo up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    print(json.dumps(asyncio.run(proxy(int(amount)) if what == "proxy" else dns(float(amount)))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:3])
