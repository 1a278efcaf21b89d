"""What is recorded of tokens that live in Secrets, for the controller that removes those nobody uses: since when their use is told (a ConfigMap), and
the day each was last used (a label of its Secret).

Upstream: pkg/controlplane/controller/legacytokentracking, pkg/serviceaccount/legacy.go; KEP-2799.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kubern.model.object import Object, meta
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.api.cache import Change
    from kubern.api.handle import Server

log = logging.getLogger(__name__)

NAMESPACE, NAME, SINCE = "kube-system", "kube-apiserver-legacy-service-account-token-tracking", "since"
LAST_USED = "kubernetes.io/legacy-token-last-used"
MADE_EVERY_S = 1800.0                    # servers that do and servers that do not keep it must not quarrel
AGAIN_S = 5.0
MARKS_MAX = 100                          # under way at once; a use that is not marked is marked by the next
DAY_S = 86400.0


def day(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d")


def _is_day(text: object) -> bool:
    try:
        return bool(datetime.strptime(str(text), "%Y-%m-%d"))
    except ValueError:
        return False


class Tracking:
    """Owns the marks that are being written."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._marks: dict[str, asyncio.Task[None]] = {}               # uid of a Secret -> the write

    def used(self, secret: Object) -> None:
        """A token was used: its Secret says so once a day."""
        now_s, m = self.server.clock(), meta(secret)
        if (m.get("labels") or {}).get(LAST_USED) in (day(now_s), day(now_s + DAY_S)) or m["uid"] in self._marks or len(self._marks) >= MARKS_MAX:
            return
        task = asyncio.get_running_loop().create_task(self._mark(m, day(now_s)), name="mark of a token's use")
        self._marks[m["uid"]] = task
        task.add_done_callback(lambda _: self._marks.pop(m["uid"], None))

    async def _mark(self, m: Object, today: str) -> None:
        served = self.server.rows.of_kind("v1", "Secret")
        assert served is not None
        try:
            await self.server.client.patch(served.row, m["namespace"], m["name"], {"metadata": {"uid": m["uid"], "labels": {LAST_USED: today}}})
        except StatusError as e:
            log.error("marking the token in secret %s/%s as used: %s", m["namespace"], m["name"], e.message)

    async def run(self) -> None:
        """Keeps the ConfigMap there for as long as the server runs."""
        collection, key = self.server.cache.collection("", "configmaps"), f"{NAMESPACE}/{NAME}"
        changed = asyncio.Event()

        def listen(changes: list[Change]) -> None:
            if any(c.item.key == key for c in changes):
                changed.set()
        collection.listeners.append(listen)
        made_s = float("-inf")
        try:
            while True:
                changed.clear()
                item, now_s = collection.get(key), self.server.clock()
                body: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": NAMESPACE, "name": NAME}, "data": {SINCE: day(now_s)}}
                wait_s: float | None = None
                try:
                    if item is None and now_s - made_s < MADE_EVERY_S:
                        wait_s = MADE_EVERY_S - (now_s - made_s)
                    elif item is None:
                        await self.server.client.create(body)
                        made_s = now_s
                    elif not _is_day(((have := item.parse()).get("data") or {}).get(SINCE)):
                        await self.server.client.update({**have, "apiVersion": "v1", "kind": "ConfigMap", "data": {
                            **(have.get("data") or {}), SINCE: day(now_s)}})
                except StatusError as e:
                    if e.reason not in ("AlreadyExists", "Conflict"):
                        log.warning("%s: %s", NAME, e.message)
                        wait_s = AGAIN_S
                try:
                    async with asyncio.timeout(wait_s):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            collection.listeners.remove(listen)
            for task in list(self._marks.values()):
                task.cancel()
