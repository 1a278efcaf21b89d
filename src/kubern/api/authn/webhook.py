"""Webhook token authentication: what nobody here knows is asked of an outside service by a TokenReview; answers are kept for a while.

Upstream: apiserver plugin/pkg/authenticator/token/webhook, authentication/token/cache; "Webhook Token Authentication".
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence

from kubern.api.admission.webhook_call import CallFailed
from kubern.api.authn.tokens import TokenError, Verified
from kubern.api.configfile import BadFile
from kubern.api.remote import Remote, status_of
from kubern.model.object import Object
from kubern.model.request import User

log = logging.getLogger(__name__)

VERSIONS = ("v1", "v1beta1")
KEPT_S = 120.0
KEPT_MAX = 20_000
GROUP = "authentication.k8s.io"

Key = tuple[bytes, tuple[str, ...]]


class TokenWebhook:
    """A check among those the Authenticator asks. `own`: the API server's audiences."""

    def __init__(self, remote: Remote, own: Sequence[str], version: str = "v1", kept_s: float = KEPT_S, now: Callable[[], float] = time.time) -> None:
        if version not in VERSIONS:
            raise BadFile(f'unsupported authentication webhook version "{version}", supported versions are "v1", "v1beta1"')
        self._remote, self._own, self._version, self._kept_s, self._now = remote, tuple(own), version, kept_s, now
        self._kept: dict[Key, tuple[float, Verified | TokenError | None]] = {}
        self._asking: dict[Key, asyncio.Task[Verified | None]] = {}

    async def check(self, token: str, audiences: Sequence[str]) -> Verified | None:
        """Raises TokenError where the service says why not, or cannot be asked."""
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest(), tuple(audiences)
        kept = self._kept.get(key)
        if kept is not None and kept[0] > self._now():
            if isinstance(kept[1], TokenError):
                raise kept[1]
            return kept[1]
        asking = self._asking.get(key)
        if asking is None:                                            # one question for all who wait for the same answer
            asking = self._asking[key] = asyncio.get_running_loop().create_task(self._ask(token, key))
            asking.add_done_callback(lambda t: (self._asking.pop(key, None), t.cancelled() or t.exception()))
        return await asyncio.shield(asking)

    async def _ask(self, token: str, key: Key) -> Verified | None:
        body: Object = {"kind": "TokenReview", "apiVersion": f"{GROUP}/{self._version}", "metadata": {}, "spec": {
            "token": token, "audiences": list(key[1])}, "status": {"user": {}}}
        try:
            status = status_of(await self._remote.post(body), "TokenReview")
        except CallFailed as e:
            log.error("Failed to make webhook authenticator request: %s", e)
            raise TokenError(str(e)) from None                         # not kept: it may be there again
        answer = self._read(status, key[1])
        if len(self._kept) >= KEPT_MAX:
            self._kept.clear()
        if self._kept_s > 0:
            self._kept[key] = (self._now() + self._kept_s, answer)
        if isinstance(answer, TokenError):
            raise answer
        return answer

    def _read(self, status: Object, wanted: Sequence[str]) -> Verified | TokenError | None:
        given = status.get("audiences") or self._own                   # a service that knows of no audiences speaks for this server
        audiences = tuple(a for a in wanted if a in given)
        if not audiences:
            return None
        if status.get("authenticated") is not True:
            return TokenError(str(status["error"])) if status.get("error") else None
        u = status.get("user") or {}
        groups = [str(g) for g in u.get("groups") or ()]
        extra = {str(k): tuple(str(v) for v in vs or ()) for k, vs in (u.get("extra") or {}).items()}
        if "system:authenticated" not in groups and "system:unauthenticated" not in groups:
            groups.append("system:authenticated")
        return Verified(User(str(u.get("username") or ""), tuple(groups), str(u.get("uid") or ""), extra), audiences, self._now() + self._kept_s)
