"""Reporter: writes the statuses of pods back, each only when it says something new, and the last delete of a pod that is over.

A status is a strategic-merge patch of what differs from the API's. A terminal phase is held back until nothing of the pod can run any more.
Upstream: pkg/kubelet/status/status_manager.go (syncPod, mergePodStatus, canBeDeleted).
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from kubern.kubelet import pods
from kubern.kubelet.status import changed
from kubern.kubelet.worker import Worker
from kubern.model.resources import by_path
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)

PODS = by_path["", "v1", "pods"]
WRITERS = 4
RETRY_S = 1.0


class Reporter:
    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self._dirty: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._writing: set[str] = set()
        self._since: dict[str, float] = {}              # uid -> when it first had something to say that is not written yet
        self._sent: dict[str, Any] = {}                 # uid -> "deleted" once the last delete was sent

    def forget(self, uid: str) -> None:
        self._since.pop(uid, None)
        self._sent.pop(uid, None)

    def busy(self, uid: str) -> bool:
        """Something of this pod is still to be written."""
        return uid in self._queued or uid in self._writing

    def report(self, w: Worker) -> None:
        """The worker's status is to be written, if it says something new."""
        if self.kubelet.client is None or w.uid in self._queued:
            return
        self._queued.add(w.uid)
        self._since.setdefault(w.uid, time.monotonic())
        self._dirty.put_nowait(w.uid)

    async def write(self) -> None:
        """One of the writers; until cancelled."""
        while True:
            uid = await self._dirty.get()
            if uid in self._writing:                       # another writer has it: come back when it is done
                await asyncio.sleep(0.01)
                self._dirty.put_nowait(uid)
                continue
            self._queued.discard(uid)
            w = self.kubelet.workers.get(uid)
            if w is None:
                continue
            self._writing.add(uid)
            try:
                if await self._write_one(w):
                    self.kubelet.measures.status.observe(time.monotonic() - self._since.get(uid, time.monotonic()))
                self._since.pop(uid, None)
            except StatusError as e:
                if e.code == 404:
                    if not pods.is_static(w.pod):
                        self.kubelet.lost(w)
                elif e.code == 409 and "uid" in e.message.lower():
                    self.kubelet.lost(w)
                else:
                    log.info("status of %s: %s", pods.describe(w.pod), e.message)
                    asyncio.get_running_loop().call_later(RETRY_S, self.report, w)
            except Exception:
                log.exception("status of %s", pods.describe(w.pod))
                asyncio.get_running_loop().call_later(RETRY_S, self.report, w)
            finally:
                self._writing.discard(uid)

    async def _write_one(self, w: Worker) -> bool:
        """Whether there was something to write."""
        client = self.kubelet.client
        assert client is not None
        target = w.mirror if pods.is_static(w.pod) else w.pod
        if target is None:
            return False
        api = target.get("status") or {}
        status = w.status
        done = ("Succeeded", "Failed")
        if not status or w.gone:
            return False
        if status.get("phase") in done and api.get("phase") not in done and not w.terminated:
            # what could still run is not over
            status = {**status, "phase": api.get("phase") or "Pending"}
            for key in ("reason", "message"):
                if key in api:
                    status[key] = api[key]
                else:
                    status.pop(key, None)
        diff = changed(api, status)
        m = target["metadata"]
        if diff:
            made = await client.patch(PODS, m["namespace"], m["name"], {"metadata": {"uid": m["uid"]}, "status": diff}, "strategic",
                                      subresource="status")
            if made.get("metadata", {}).get("uid") == m["uid"]:
                made.setdefault("apiVersion", "v1")
                made.setdefault("kind", "Pod")
                made["metadata"].pop("managedFields", None)
                if pods.is_static(w.pod):
                    w.mirror = made
                elif int(made["metadata"]["resourceVersion"]) > int(w.pod["metadata"].get("resourceVersion") or 0):
                    w.pod = made
                api = made.get("status") or {}
        if w.terminated and w.pod["metadata"].get("deletionTimestamp") and api.get("phase") in done and not pods.is_static(w.pod) \
                and self._sent.get(w.uid) != "deleted":
            self._sent[w.uid] = "deleted"
            try:
                await client.delete(PODS, m["namespace"], m["name"], uid=m["uid"], grace_s=0)
            except StatusError as e:
                if e.code != 404:
                    self._sent.pop(w.uid, None)
                raise
        return bool(diff)
