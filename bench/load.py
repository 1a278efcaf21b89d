"""load: drives any Kubernetes API server with one kind of work and measures it from outside.

Closed loops over keep-alive TLS connections, in several processes so that the client is not what is measured. Every function takes a
Target and gives a dict: how many, how long, per second, latencies in ms. Not the workloads (run).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

Requests = Callable[[int], bytes]        # number of the request -> its bytes
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    cert: str = ""           # file names
    key: str = ""
    token: str = ""

    @functools.cache                     # noqa: B019  (a handful of targets, and making one for each of thousands of connections takes minutes)
    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nAccept: application/json\r\n"
        if self.token:
            head += f"Authorization: Bearer {self.token}\r\n"
        if body:
            head += f"Content-Type: {content_type}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._missing = -1                       # bytes of the body still to come; -1: the head is not complete
        self._answer: asyncio.Future[bytes] | None = None
        self._head = self._tail = b""
        self._chunked = False
        self.chunks: Callable[[bytes], None] | None = None      # a watch: whatever comes

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed"))

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end], self._head[end + 4:]
            if self.chunks is not None:
                self._missing = 1 << 60
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(head)
            else:
                at = head.lower().find(b"content-length:")
                self._chunked = at < 0 and b"\r\ntransfer-encoding: chunked" in head.lower()
                self._missing = int(head[at + 15:].split(b"\r", 1)[0]) if at >= 0 else 1 << 60 if self._chunked else 0
            self.status = int(head[9:12])
            self.retry_after = b"\r\nRetry-After:" in head
        if self.chunks is not None:
            self.chunks(data)
            return
        self._pieces.append(data)
        self._missing -= len(data)
        if self._chunked:                                       # JSON holds no bare line end, so only the last chunk looks like this
            self._tail = (self._tail + data)[-7:]
            if self._tail.endswith(LAST_CHUNK):
                self._missing = 0
        if self._missing <= 0 and self._answer is not None and not self._answer.done():
            self._answer.set_result(b"")

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._pieces, self._missing, self._head, self._tail, self._chunked = [], -1, b"", b"", False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answer
        return self.status, b"".join(self._pieces)

    def close(self) -> None:
        self._transport.close()


async def connect(target: Target) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, target.host, target.port, ssl=target.context())
    return connection


def summary(latencies_ms: list[float], seconds: float, errors: int = 0, **more: Any) -> dict[str, Any]:
    values = sorted(latencies_ms) or [0.0]

    def at(share: float) -> float:
        return round(values[int(share * (len(values) - 1))], 2)
    return {"n": len(latencies_ms), "seconds": round(seconds, 3), "per_s": round(len(latencies_ms) / max(seconds, 1e-9), 1), "p50_ms": at(0.5),
            "p99_ms": at(0.99), "max_ms": at(1.0), "errors": errors, **more}


# latencies, statuses, refusals that do not say when to come again, the first error, when it began and ended
Outcome = tuple[list[float], Counter[int], int, str, float, float]


def put_back(target: Target, request: bytes, body: bytes) -> bytes:
    """What a GET answered, its first data of x changed, as a PUT to where it came from."""
    path = request.split(b" ", 2)[1].decode()
    return target.request("PUT", path, body.replace(b'"x', b'"%dx' % (time.perf_counter_ns() % 1_000_000), 1))


async def _clients(target: Target, requests: Iterator[bytes], clients: int, ok: tuple[int, ...], again: bool = False) -> Outcome:
    latencies: list[float] = []
    statuses, silent, first = Counter[int](), 0, ""
    connections = [await connect(target) for _ in range(clients)]

    async def one(connection: Connection) -> None:
        nonlocal silent, first
        for request in requests:
            at = time.perf_counter()
            status, body = await connection.ask(request)
            if again and status == 200:
                status, body = await connection.ask(put_back(target, request, body))
            latencies.append((time.perf_counter() - at) * 1000)
            statuses[status] += 1
            silent += status == 429 and not connection.retry_after
            if status not in ok:
                first = first or f"{status} {body[:200].decode(errors='replace')}"
        connection.close()
    began = time.perf_counter()
    await asyncio.gather(*(one(c) for c in connections))
    return latencies, statuses, silent, first, began, time.perf_counter()


def _process(target: Target, requests: list[bytes], clients: int, ok: tuple[int, ...], again: bool) -> Outcome:
    import uvloop

    return uvloop.run(_clients(target, iter(requests), clients, ok, again))


class Load:
    """A pool of client processes."""

    def __init__(self, target: Target, processes: int = 2) -> None:
        self.target, self.processes = target, processes
        self.began = 0.0                         # when the last run sent its first request
        self._pool = ProcessPoolExecutor(processes)
        list(self._pool.map(abs, range(processes)))

    def run(self, make: Requests, n: int, clients: int, ok: tuple[int, ...] = (200, 201), *, again: bool = False) -> dict[str, Any]:
        """n requests by so many clients; `again`: GETs whose answers are changed and put back, both counted as one."""
        shares = [[make(i) for i in range(k, n, self.processes)] for k in range(self.processes)]
        each = max(1, clients // self.processes)
        results = [f.result() for f in [self._pool.submit(_process, self.target, s, each, ok, again) for s in shares if s]]
        self.began = min(r[4] for r in results)
        seconds = max(r[5] for r in results) - self.began
        statuses = sum((r[1] for r in results), Counter[int]())
        first = next((r[3] for r in results if r[3]), "")
        return summary(list(itertools.chain.from_iterable(r[0] for r in results)), seconds, sum(c for s, c in statuses.items() if s not in ok),
                       **({"statuses": dict(statuses), "no_retry_after": sum(r[2] for r in results)} if 429 in statuses else {}),
                       **({"first_error": first} if first else {}))

    def close(self) -> None:
        self._pool.shutdown()


def ask(target: Target, method: str, path: str, body: Any = None, content_type: str = "application/json") -> tuple[int, Any]:
    """One request on a connection of its own; the answer parsed."""
    async def go() -> tuple[int, bytes]:
        connection = await connect(target)
        answer = await connection.ask(target.request(method, path, b"" if body is None else orjson.dumps(body), content_type))
        connection.close()
        return answer
    status, data = asyncio.run(go())
    try:
        return status, orjson.loads(data)
    except ValueError:
        return status, data


async def _watchers(target: Target, path: str, watchers: int, events: int, make: Requests, opened: Callable[[], Any]) -> dict[str, Any]:
    _, answer = await (first := await connect(target)).ask(target.request("GET", path + "?limit=1"))
    revision = orjson.loads(answer)["metadata"]["resourceVersion"]
    delivered, wanted, done = 0, watchers * events, asyncio.Event()
    sent: dict[bytes, float] = {}                  # what names an object -> when its creation was sent
    late: list[float] = []

    def chunk(data: bytes) -> None:
        nonlocal delivered
        here = data.count(b'{"type":"ADDED"')
        delivered += here
        at = data.rfind(b'"name":"') + 8           # the last of a piece: one in a few is enough to know how late they come
        if here and (then := sent.get(data[at:data.find(b'"', at)])):
            late.append((time.perf_counter() - then) * 1000)
        if delivered >= wanted:
            done.set()
    open_ = []
    for _ in range(watchers):
        c = await connect(target)
        c.chunks = chunk
        c._answer = asyncio.get_running_loop().create_future()
        c._transport.write(target.request("GET", f"{path}?watch=1&resourceVersion={revision}"))
        await c._answer
        open_.append(c)
    def timed() -> Iterator[bytes]:
        for request in [make(i) for i in range(events)]:
            at = request.find(b'"name":"') + 8
            sent[request[at:request.find(b'"', at)]] = time.perf_counter()
            yield request
    opened()
    at = time.perf_counter()
    writers = asyncio.create_task(_clients(target, timed(), 8, (201,)))
    try:
        async with asyncio.timeout(120):
            await done.wait()
    except TimeoutError:
        pass
    seconds = time.perf_counter() - at
    await writers
    for c in (*open_, first):
        c.close()
    late.sort()
    return {"watchers": watchers, "events": events, "delivered": delivered, "expected": wanted, "seconds": round(seconds, 3),
            "per_s": round(delivered / seconds, 1), "p50_ms": round(late[len(late) // 2], 2) if late else 0.0,
            "p99_ms": round(late[int(len(late) * 0.99)], 2) if late else 0.0}


def watch_fan_out(target: Target, path: str, watchers: int, events: int, make: Requests, opened: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Deliveries a second while eight clients create objects under so many watchers; `opened` is called when all of them watch."""
    import uvloop

    return uvloop.run(_watchers(target, path, watchers, events, make, opened))


async def _until(target: Target, path: str, enough: int, sign: bytes, start: Callable[[], Any], timeout_s: float, named: str) -> tuple[float, int]:
    _, answer = await (first := await connect(target)).ask(target.request("GET", path + "?limit=1"))
    revision = orjson.loads(answer)["metadata"]["resourceVersion"]
    first.close()
    seen: set[str] = set()
    done, rest = asyncio.Event(), b""

    def chunk(data: bytes) -> None:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if sign in line:
                at = line.find(b'"name":"') + 8
                name = line[at:line.find(b'"', at)].decode()
                if name.startswith(named):
                    seen.add(name)
        if len(seen) >= enough:
            done.set()
    c = await connect(target)
    c.chunks = chunk
    c._answer = asyncio.get_running_loop().create_future()
    c._transport.write(target.request("GET", f"{path}?watch=1&resourceVersion={revision}"))
    await c._answer
    work = asyncio.get_running_loop().run_in_executor(None, start)
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    except TimeoutError:
        pass
    ended = time.perf_counter()
    await work
    c.close()
    return ended, len(seen)


def until(target: Target, path: str, enough: int, sign: bytes, start: Callable[[], Any], timeout_s: float = 600.0,
          named: str = "") -> tuple[float, int]:
    """Runs `start` and waits until a watch of `path` has shown so many objects of such names with the sign: (time.perf_counter() then, objects)."""
    return asyncio.run(_until(target, path, enough, sign, start, timeout_s, named))


def slow_readers(target: Target, requests: list[bytes]) -> Callable[[], None]:
    """Connections that ask and then read next to nothing: 1 kB a second at most. Returns what ends them."""
    stop, asked = threading.Event(), threading.Event()

    def run() -> None:
        connections = []
        for request in requests:
            plain = socket.create_connection((target.host, target.port))
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connections.append(target.context().wrap_socket(plain, server_hostname=target.host))
            connections[-1].sendall(request)
            connections[-1].settimeout(0.001)
        asked.set()
        while not stop.wait(1.0):
            for c in connections:
                with contextlib.suppress(OSError):
                    c.recv(1024)
        for c in connections:
            c.close()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    asked.wait(30)

    def end() -> None:
        stop.set()
        thread.join(10)
    return end
