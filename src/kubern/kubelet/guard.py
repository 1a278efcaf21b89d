"""Who may ask the kubelet's endpoint what: authentication and authorization, delegated to the API server.

A client certificate or a TokenReview tells who asks, SubjectAccessReviews on nodes/{proxy,stats,metrics,log,…} what he may. Answers are kept for a
while. Upstream: pkg/kubelet/server/auth.go; KEP-2862 (fine-grained authorization).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from kubern.model.request import ANONYMOUS, Request, User
from kubern.model.resources import by_path
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)

ALLOWED_S, DENIED_S, DECISIONS_MAX = 300.0, 30.0, 1000
TOKEN_REVIEWS, ACCESS_REVIEWS = by_path["authentication.k8s.io", "v1", "tokenreviews"], by_path["authorization.k8s.io", "v1", "subjectaccessreviews"]
VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# path -> subresources of nodes any of which allows it; upstream's table
FINE = {"/pods": "pods", "/healthz": "healthz", "/configz": "configz", "/runningpods": "pods"}
COARSE = {"/stats": "stats", "/metrics": "metrics", "/logs": "log", "/checkpoint": "checkpoint", "/statusz": "statusz", "/flagz": "configz"}


class Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def subresources(path: str) -> list[str]:
    out = [sub for prefix, sub in FINE.items() if under(path, prefix)]
    out += [sub for prefix, sub in COARSE.items() if under(path, prefix)] or ["proxy"]
    return out


class Guard:
    """Authentication and authorization, delegated to the API server."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet = kubelet
        self._decisions: dict[tuple[Any, ...], tuple[bool, float]] = {}
        self._tokens: dict[str, tuple[User | None, float]] = {}

    async def check(self, request: Request) -> User:
        """Raises Refused."""
        k = self.kubelet
        if k.client is None:
            return ANONYMOUS
        user = await self._who(request)
        if user is None:
            if not k.configuration.anonymous:
                raise Refused(401, "Unauthorized")
            user = ANONYMOUS
        verb = VERBS.get(request.method, "")
        subs = subresources(request.path)
        for sub in subs:
            if await self._may(user, verb, sub):
                return user
        listed = "[" + " ".join(subs) + "]"
        raise Refused(403, f"Forbidden (user={user.name}, verb={verb}, resource=nodes, subresource(s)={listed})\n")

    async def _who(self, request: Request) -> User | None:
        if request.certificate:
            return certificate_user(request.certificate)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        token = token.strip()
        now = asyncio.get_running_loop().time()
        known = self._tokens.get(token)
        if known and now < known[1]:
            return known[0]
        assert self.kubelet.client is not None
        try:
            made = await self.kubelet.client.create_in(TOKEN_REVIEWS, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                                                                       "spec": {"token": token}})
        except StatusError as e:
            log.info("token review: %s", e.message)
            return None
        status = made.get("status") or {}
        user = None
        if status.get("authenticated"):
            u = status.get("user") or {}
            user = User(u.get("username") or "", tuple(u.get("groups") or ()), u.get("uid") or "")
        if len(self._tokens) >= DECISIONS_MAX:
            self._tokens.clear()
        self._tokens[token] = (user, now + 120.0)
        return user

    async def _may(self, user: User, verb: str, sub: str) -> bool:
        key = (user.name, user.groups, verb, sub)
        now = asyncio.get_running_loop().time()
        known = self._decisions.get(key)
        if known and now < known[1]:
            return known[0]
        assert self.kubelet.client is not None
        spec = {"user": user.name, "groups": list(user.groups), "resourceAttributes": {
            "verb": verb, "version": "v1", "resource": "nodes", "subresource": sub, "name": self.kubelet.settings.name}}
        try:
            made = await self.kubelet.client.create_in(ACCESS_REVIEWS, {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                                                                        "spec": spec})
        except StatusError as e:
            raise Refused(500, f"Authorization error (user={user.name}, verb={verb}, resource=nodes, subresource={sub}): {e.message}") from None
        allowed = bool((made.get("status") or {}).get("allowed"))
        if len(self._decisions) >= DECISIONS_MAX:
            self._decisions.clear()
        self._decisions[key] = (allowed, now + (ALLOWED_S if allowed else DENIED_S))
        return allowed


def certificate_user(der: bytes) -> User | None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    subject = x509.load_der_x509_certificate(der).subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not names:
        return None
    groups = tuple(str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
    return User(str(names[0].value), (*groups, "system:authenticated"))
