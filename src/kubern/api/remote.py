"""Remote: an outside service that answers reviews: one object is posted to the exact URL of a kubeconfig, the same kind comes back.

Repeated, with growing pauses, where the answer says that it may go better next time; never where the service is not there, since a request
waits for it. Not the webhooks of admission (admission/webhook_call.py), which are found by objects. Upstream: apiserver pkg/util/webhook/webhook.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from pathlib import Path
from typing import Any

import orjson

from kubern.api.admission.webhook_call import CallFailed, parsed, whole, words
from kubern.api.configfile import BadFile
from kubern.client.kubeconfig import sender_of
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.request import Request

log = logging.getLogger(__name__)

STEPS_MAX = 5
FIRST_PAUSE_S, FACTOR, JITTER = 0.5, 1.5, 0.2
TIMEOUT_S = 30.0
AGAIN = (429, 500)


class Remote:
    """Where a kubeconfig file leads. `counts`: (code or "<error>") -> [calls, seconds]."""

    def __init__(self, path: str | Path, timeout_s: float = TIMEOUT_S, pause_s: float = FIRST_PAUSE_S) -> None:
        """`pause_s`: before the second try. Raises BadFile."""
        try:
            self._sender = sender_of(path)
        except (ValueError, OSError, ssl.SSLError) as e:
            raise BadFile(f"{path}: {e}") from None
        self.url, self.timeout_s, self.pause_s = self._sender.url, timeout_s, pause_s
        self.counts: dict[str, list[float]] = {}

    async def close(self) -> None:
        await self._sender.close()

    async def post(self, body: Object, answered: bool = True) -> Object:
        """The object that comes back, where one is to be `answered`. Raises CallFailed."""
        data, pause_s = orjson.dumps(body), self.pause_s
        try:
            async with asyncio.timeout(self.timeout_s):
                for step in range(STEPS_MAX):
                    try:
                        status, raw, type_ = await self._once(data)
                    except ConnectionResetError as e:
                        status, raw, type_, why = 0, b"", "", e
                    if status not in AGAIN and status:
                        return parsed(status, raw, type_, body) if answered or status >= 300 else {}
                    if step + 1 < STEPS_MAX and (status or step):     # a kept connection the other side gave up is replaced at once
                        await asyncio.sleep(pause_s * (1 + random.random() * JITTER))
                        pause_s *= FACTOR
                if status:
                    return parsed(status, raw, type_, body)
                raise why
        except TimeoutError:
            raise CallFailed(f"Post {quote(self.url)}: context deadline exceeded") from None
        except (OSError, ssl.SSLError) as e:
            raise CallFailed(f"Post {quote(self.url)}: {words(e, self._sender.address)}") from None

    async def _once(self, data: bytes) -> tuple[int, bytes, str]:
        started = asyncio.get_running_loop().time()
        code = "<error>"
        try:
            answer = await self._sender.send(Request("POST", "", {}, {
                "content-type": "application/json", "accept": "application/json", "user-agent": "kube-apiserver"}, data))
            raw = await whole(answer.body)
            code = str(answer.status)
            return answer.status, raw, answer.header("content-type")
        finally:
            count = self.counts.setdefault(code, [0, 0.0])
            count[0] += 1
            count[1] += asyncio.get_running_loop().time() - started


def status_of(review: Object, kind: str) -> Any:
    """The status of a review that came back. Raises CallFailed."""
    if review.get("kind") not in (kind, None):
        raise CallFailed(f"unable to decode an answer of kind {quote(str(review.get('kind')))} as {kind}")
    status = review.get("status")
    if not isinstance(status, dict):
        raise CallFailed(f"the answer is a {kind} without status")
    return status
