"""Whatever is sent is answered: no 5xx but those declared, nothing unhandled in the log, a Status for every error, no long silence.

KUBERN_FUZZ_SECONDS and KUBERN_FUZZ_SEED widen the search; the default is short and always the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
import traceback
from collections.abc import AsyncIterator

import orjson
import pytest
from requests_made import ROWS, SPECS, Mill

from kubern.api.forms import Served
from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, Response
from kubern.model.schema import schema_for
from kubern.store.memory import MemoryStore

SECONDS = float(os.environ.get("KUBERN_FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("KUBERN_FUZZ_SEED", "1"))
STALL_MAX_S = 0.2
GROWTH_MAX_MB = 300
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


async def test_schema_aware(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    mill = Mill(SEED)
    rng = mill.rng
    for row in ROWS:
        if row.kind in SPECS and "create" in row.verbs:
            base = f"/{'apis' if row.group else 'api'}/{row.api_version}"
            await send(server, f"{base}/{'namespaces/d/' if row.namespaced else ''}{row.plural}", mill.valid(row))
    thing = await established(server)
    found: dict[str, str] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end, count = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        row = thing.row if rng.random() < 0.05 else rng.choice(ROWS)
        request = mill.request(row, thing.schema if row is thing.row else schema_for(row.api_version, row.kind))
        count += 1
        began = time.thread_time()
        try:
            async with asyncio.timeout(10):
                response = await server.handle(request)
        except Exception as e:
            found.setdefault(repr(e), shown(request))
            continue
        why = fault(request, response, time.thread_time() - began)
        if caplog.records:
            why = unhandled(caplog.records[0])
            caplog.clear()
        if why:
            found.setdefault(why[:100], why + "\n  " + shown(request))
        await asyncio.sleep(0)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{count} requests, grown {grown_mb:.0f} MB")
    assert not found, "\n\n".join(found.values())
    assert count > 100 * SECONDS / 8 and grown_mb < GROWTH_MAX_MB
