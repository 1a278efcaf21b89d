"""Whatever is sent is answered: no 5xx but those declared, nothing unhandled in the log, a Status for every error, no long silence.

All kinds, subresources, verbs, patch types, queries, watches, bodies in JSON, YAML and protobuf, custom resources; some of it over a connection,
and changed on the way. KUBERN_FUZZ_REQUESTS (or KUBERN_FUZZ_SECONDS) and KUBERN_FUZZ_SEED widen the search:

    KUBERN_FUZZ_REQUESTS=50000 pytest tests/api/test_fuzz.py -s

The default is short and always the same. Memory is bounded: what the process holds may not grow by more than GROWTH_MAX_MB after the first fifth.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator

import orjson
import pytest

from kubern.api import http
from kubern.api.forms import Served
from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, Response
from kubern.model.schema import schema_for
from kubern.store.memory import MemoryStore
from tests.api.requests_made import ROWS, SPECS, Mill, wire

REQUESTS = int(os.environ.get("KUBERN_FUZZ_REQUESTS", "0"))
SECONDS = float(os.environ.get("KUBERN_FUZZ_SECONDS", "86400" if REQUESTS else "8"))
SEED = int(os.environ.get("KUBERN_FUZZ_SEED", "1"))
STALL_MAX_S = 3.0                # of one thread's work: only what grows faster than its input takes so long
GROWTH_MAX_MB = 150
OVER_A_CONNECTION = 0.03
COMPACT_EVERY = 1000          # what a cluster does by the clock
DECLARED = (501, 503, 504)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await server.start()
    await send(server, "/api/v1/namespaces", {"metadata": {"name": "d"}})
    await send(server, "/api/v1/nodes", {"metadata": {"name": "n"}})
    yield server
    await server.stop()


async def send(server: Server, path: str, obj: object) -> Response:
    return await server.handle(Request("POST", path, {}, {"content-type": "application/json"}, orjson.dumps(obj), user=MASTERS))


async def established(server: Server) -> Served:
    async with asyncio.timeout(10):
        while (served := server.rows.by_path.get(("g.example.com", "v1", "things"))) is None:
            await server.cache.next_batch()
    return served


def whole(response: Response) -> bytes | None:
    """The body, None for a stream, which is ended."""
    body = response.body
    if isinstance(body, bytes):
        return body
    if isinstance(body, list):
        return b"".join(body)
    end = getattr(body, "end", None)
    if end is not None:
        end()
    return None


def fault(request: Request, response: Response, cpu_s: float) -> str:
    """What is wrong with this answer; "" for nothing."""
    body = whole(response)
    if response.status >= 500 and response.status not in DECLARED:
        return f"{response.status} {body!r:.300}"
    if cpu_s > STALL_MAX_S:
        return f"{cpu_s:.2f} s"
    if response.status < 400 or request.method == "HEAD" or body is None or "status" in request.path or b"404 page not found" in body:
        return ""
    media = response.header("Content-Type")
    if media.startswith("application/json"):
        try:
            status = orjson.loads(body)
        except ValueError:
            return f"no JSON: {body!r:.200}"
        if status.get("kind") != "Status" or status.get("code") != response.status or not isinstance(status.get("message"), str):
            return f"no Status: {body!r:.200}"
    return ""


def unhandled(record: logging.LogRecord) -> str:
    """Where an exception came from."""
    if not record.exc_info or record.exc_info[1] is None:
        return f"{record.name}: {record.getMessage()}"
    at = [f for f in traceback.extract_tb(record.exc_info[2]) if "kubern" in f.filename][-3:]
    return " < ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in reversed(at)) + f": {record.exc_info[1]!r:.300}"


def shown(r: Request) -> str:
    return f"{r.method} {r.path[:300]} {str(r.query)[:300]} {r.headers} {r.body[:1500]!r}"


def held_mb() -> float:
    """What the process holds of the machine's memory."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def over_a_connection(port: int, request: Request, rng: random.Random) -> str:
    """The request as bytes, often changed or cut, on a connection of its own; what is wrong with the answer, "" for nothing."""
    data = wire(request)[:100_000]
    at = rng.randrange(max(1, min(len(data), 400)))
    data = rng.choice((data, data[:at], data[:at] + rng.randbytes(2) + data[at + 1 :], data[:at] + data[at + 1 :], data + data))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    answer = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        writer.write(data)
        async with asyncio.timeout(0.2):
            answer = await reader.read(65536)
    writer.transport.abort()
    if answer and not re.match(rb"HTTP/1\.1 \d{3} ", answer):
        return f"no answer: {answer[:100]!r}"
    if answer and int(answer[9:12]) >= 500 and int(answer[9:12]) not in DECLARED:
        return f"over a connection: {answer[:300]!r}"
    return ""


async def test_schema_aware(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    mill = Mill(SEED)
    rng = mill.rng
    for row in ROWS:
        if row.kind in SPECS and "create" in row.verbs:
            base = f"/{'apis' if row.group else 'api'}/{row.api_version}"
            await send(server, f"{base}/{'namespaces/d/' if row.namespaced else ''}{row.plural}", mill.valid(row))
    thing = await established(server)

    async def trusted(request: Request) -> Response:
        request.user = MASTERS
        return await server.handle(request)

    listening = await http.serve(trusted, "127.0.0.1", 0)
    found: dict[str, str] = {}
    statuses: Counter[int] = Counter()
    started, count, warm_mb = time.monotonic(), 0, 0.0
    while time.monotonic() < started + SECONDS and count < (REQUESTS or 1 << 60):
        if not warm_mb and (count >= REQUESTS / 5 if REQUESTS else time.monotonic() > started + SECONDS / 5):
            warm_mb = held_mb()
        row = thing.row if rng.random() < 0.05 else rng.choice(ROWS)
        request = mill.request(row, thing.schema if row is thing.row else schema_for(row.api_version, row.kind))
        count += 1
        began = time.thread_time()
        try:
            if rng.random() < OVER_A_CONNECTION:
                why = await over_a_connection(listening.port, request, rng)
            else:
                async with asyncio.timeout(10):
                    response = await server.handle(request)
                statuses[response.status] += 1
                why = fault(request, response, time.thread_time() - began)
        except Exception as e:
            why = f"raised {e!r}"
        if caplog.records:
            why = unhandled(caplog.records[0])
            caplog.clear()
        if why:
            found.setdefault(why[:100], why + "\n  " + shown(request))
        if count % COMPACT_EVERY == 0:
            await server.store.compact(server.store.revision)
        await asyncio.sleep(0)
    await listening.close(1)
    grown_mb = held_mb() - warm_mb
    print(f"{count} requests in {time.monotonic() - started:.0f} s, {warm_mb:.0f} MB after the first fifth, {grown_mb:.0f} MB more since")
    print(dict(sorted(statuses.items())))
    assert not found, "\n\n".join(found.values())
    assert count > 100 and warm_mb and grown_mb < GROWTH_MAX_MB
