"""Authentication: who asks. One class, asked once a request; answers from memory whenever it has seen the credential before.

    in-process user → front proxy → client certificate → bearer token (static, service account, bootstrap, OIDC, webhook) → anonymous

then impersonation. A credential that fails is a 401, no credential is system:anonymous (what that may do is authorization's
affair). Verified tokens are kept by hash until they expire or an object they are bound to goes.
Upstream: apiserver authentication/request/union, token/cache; pkg/kubeapiserver/authenticator.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from kubern.api.authn import impersonate
from kubern.api.authn.certificates import Certificates, proxied
from kubern.api.authn.tokens import ISSUER, Get, Keys, TokenError, Used, Verified, check, check_bootstrap, unrecorded
from kubern.api.authz import Authorizer, from_request
from kubern.api.authz.unanswered import settled
from kubern.model.invalid import aggregate
from kubern.model.object import Object
from kubern.model.request import ANONYMOUS, Request, User
from kubern.model.status import StatusError

__all__ = ["Authenticator", "Keys", "TokenError", "Verified"]

TOKENS_MAX = 20_000
TOKEN_CACHE_S = 600.0        # at most this long without looking at the token again
PROTOCOL_PREFIX = "base64url.bearer.authorization.k8s.io."
WATCHED = frozenset((("", "serviceaccounts"), ("", "secrets"), ("", "pods"), ("", "nodes")))

TokenCheck = Callable[[str, Sequence[str]], Awaitable[Verified | None]]   # OIDC, webhook: (token, wanted audiences)


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


class Authenticator:
    """`get(plural, namespace, name)` reads core objects from the API's cache. The cache calls `observe` for the collections in
    WATCHED when objects are deleted."""

    def __init__(self, authorizer: Authorizer | None = None, keys: Keys | None = None, get: Get = lambda r, ns, n: None,
                 audiences: Sequence[str] = (), static_tokens: Mapping[str, User] | None = None, client_cas: bytes = b"",
                 proxy_cas: bytes = b"", proxy_names: Sequence[str] = ("front-proxy-client",), others: Sequence[TokenCheck] = (),
                 anonymous: bool = True, now: Callable[[], float] = time.time) -> None:
        self.keys, self.others, self.anonymous = keys, list(others), anonymous
        self.used: Used = unrecorded                            # is told of Secrets whose tokens are used, every TOKEN_CACHE_S at most
        self.anonymous_paths: frozenset[str] = frozenset()      # where one may be anonymous; empty: everywhere
        self.audiences = tuple(audiences) or ((keys.issuer,) if keys else (ISSUER,))
        self._authorizer, self._get, self._now = authorizer, get, now
        self._static = {hashlib.sha256(t.encode()).digest(): u for t, u in (static_tokens or {}).items()}
        self._certificates = Certificates(client_cas, proxy_cas, proxy_names)
        self._tokens: dict[bytes, tuple[float, Verified]] = {}
        self._bound: dict[str, set[bytes]] = {}          # uid -> hashes of tokens that die with it

    # -- the cache's side

    def observe(self, group: str, plural: str, namespace: str, name: str, obj: Object | None, old: Object | None = None) -> None:
        """An object was deleted (obj None, `old` as it was): tokens bound to it are forgotten. Without `old`, all are."""
        if obj is not None and not (obj.get("metadata") or {}).get("deletionTimestamp") and plural != "secrets":
            return
        if not self._tokens:
            return
        gone = old or obj
        if gone is None:
            self._tokens.clear()
            self._bound.clear()
            return
        for digest in self._bound.pop((gone.get("metadata") or {}).get("uid") or "", ()):
            self._tokens.pop(digest, None)

    # -- the request's side

    async def authenticate(self, request: Request) -> User:
        """The user a request runs as, impersonation included. Raises 401, and 400 and 403 of impersonation."""
        if request.user is not None:
            return request.user
        user = await self._identify(request)
        if self._authorizer is not None and impersonate.asked(request):
            request.impersonator = user
            user = await settled(partial(impersonate.impersonate, request, from_request(request, user), self._authorizer))
        return user

    async def _identify(self, request: Request) -> User:
        user, failed = None, False
        if request.certificate is not None:
            seen = self._certificates.look(request.certificate, request.intermediates)
            if seen.expires_s < self._now():
                failed = True
            elif seen.proxy:
                user = proxied(request)
                if user is not None:
                    return user
            else:
                user, failed = seen.user, seen.user is None
        token = bearer(request)
        if token:
            # Stricter than upstream, which looks no further once the certificate is good: a wrong token is refused even then,
            # so that nobody is admin who asked to be somebody else.
            try:
                verified = await self.verify(token, self.audiences)
            except TokenError:
                verified = None
            if verified is None:
                raise unauthorized()
            return user or verified.user
        if user is not None:
            return user
        if failed or not self.anonymous or (self.anonymous_paths and request.path not in self.anonymous_paths):
            raise unauthorized()
        return ANONYMOUS

    async def verify(self, token: str, audiences: Sequence[str]) -> Verified | None:
        """The token's user, if it holds for one of the audiences; None if nobody knows it. Raises TokenError."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        static = self._static.get(digest)
        if static is not None:
            held_for = self.implied(audiences)
            return Verified(static, held_for) if held_for else None
        ours = audiences is self.audiences
        if ours:
            held = self._tokens.get(digest)
            if held is not None:
                if held[0] > self._now():
                    return held[1]
                del self._tokens[digest]
        now = self._now()
        problems: list[str] = []
        verified: Verified | None = None
        if self.keys is not None:
            try:
                verified = check(token, self.keys, self._get, audiences, self.audiences, now, self.used)
            except TokenError as e:
                problems.append(str(e))
        if verified is None and self.implied(audiences):
            verified = check_bootstrap(token, self._get, now)
        for other in self.others:
            if verified is None:
                try:
                    verified = await other(token, audiences)
                except TokenError as e:
                    problems.append(str(e))
        if verified is None:
            if problems:
                raise TokenError(aggregate(problems))
            return None
        if ours:
            self._remember(digest, verified, now)
        return verified

    def implied(self, audiences: Sequence[str]) -> tuple[str, ...]:
        """The audiences, of those asked for, of a token that names none: it is meant for this API server."""
        return tuple(a for a in audiences if a in self.audiences)

    def forget(self) -> None:
        """Every token is looked at again: what is believed has changed."""
        self._tokens.clear()
        self._bound.clear()

    def _remember(self, digest: bytes, verified: Verified, now: float) -> None:
        if len(self._tokens) >= TOKENS_MAX:
            self._tokens.clear()
            self._bound.clear()
        until = min(verified.expires_s or now + TOKEN_CACHE_S, now + TOKEN_CACHE_S)
        self._tokens[digest] = (until, verified)
        for uid in verified.uids:
            self._bound.setdefault(uid, set()).add(digest)


def bearer(request: Request) -> str:
    """The bearer token of a request, "" if there is none. WebSocket clients in browsers carry it as a subprotocol."""
    header = request.headers.get("authorization")
    if header:
        parts = header.strip().split(" ", 2)
        if len(parts) >= 2 and parts[0].lower() == "bearer":
            return parts[1]
    protocols = request.headers.get("sec-websocket-protocol")
    if protocols and PROTOCOL_PREFIX in protocols:
        for protocol in protocols.split(","):
            protocol = protocol.strip()
            if protocol.startswith(PROTOCOL_PREFIX):
                encoded = protocol[len(PROTOCOL_PREFIX):]
                try:
                    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
                except ValueError:
                    return ""
    return ""
