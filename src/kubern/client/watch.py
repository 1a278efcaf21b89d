"""follow: list, then watch for ever. Resumes where it broke off, lists again when its revision is gone, backs off with jitter.

Model: client-go tools/cache reflector. The consumer sees a full `replace` or single events, never a gap.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from kubern.client.client import Client
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.2, 30.0
SHORT_WATCH_S = 1.0                     # a watch that ends sooner and brought nothing counts as a failure
WATCH_MIN_S = 300                       # a watch is asked to end after 1 to 2 times this, so that servers can shed load

Replace = Callable[[list[Object], int], None]           # (all objects, revision)
Apply = Callable[[str, Object], None]                   # (event type, object); a BOOKMARK carries a revision only


async def follow(client: Client, resource: Resource, replace: Replace, apply: Apply, *, namespace: str = "", labels: str = "",
                 fields: str = "", metadata_only: bool = False, jitter: Callable[[], float] = random.random,
                 broken: Callable[[], None] = lambda: None) -> None:
    """Runs until cancelled. `replace` is called after each list, `apply` for each event after it, `broken` when the server went away."""
    loop = asyncio.get_running_loop()
    revision = ""
    delay = 0.0
    while True:
        try:
            if not revision:
                items, revision = await client.list(resource, namespace, labels=labels, fields=fields, revision="0",
                                                    metadata_only=metadata_only, limit=0)
                replace(items, int(revision) if revision.isdecimal() else 0)       # another server's may be no number
            events = client.watch(resource, namespace, revision=revision, labels=labels, fields=fields, metadata_only=metadata_only,
                                  timeout_s=int(WATCH_MIN_S * (1 + jitter())))
            started, empty = loop.time(), True
            try:
                async for batch in events:
                    empty = False
                    for type_, obj in batch:
                        if type_ == "ERROR":
                            raise StatusError(int(obj.get("code") or 500), obj.get("reason") or "", obj.get("message") or "")
                        revision = (obj.get("metadata") or {}).get("resourceVersion") or revision
                        apply(type_, obj)
                    delay = 0.0
            finally:
                await events.aclose()   # type: ignore[attr-defined]
            if empty and loop.time() - started < SHORT_WATCH_S:
                raise EOFError("the watch ended at once")
        except StatusError as e:
            if e.code == 410 or e.reason in ("Expired", "Gone") or (e.code == 504 and "Too large resource version" in e.message):
                revision = ""
            delay = min(max(delay * 2, BACKOFF_FIRST_S), BACKOFF_LAST_S)
            if e.code == 503:
                broken()
            if e.code not in (410, 503, 504):
                log.warning("following %s: %s", resource.plural, e.message)
        except (OSError, EOFError) as e:
            delay = min(max(delay * 2, BACKOFF_FIRST_S), BACKOFF_LAST_S)
            log.info("following %s: %s", resource.plural, e)
            broken()
        except Exception:                    # a follower that dies would leave its consumers with old news for ever
            log.exception("following %s", resource.plural)
            revision, delay = "", BACKOFF_LAST_S / 3
        if delay:
            await asyncio.sleep(delay * (1 + jitter()))
        else:
            await asyncio.sleep(0)
