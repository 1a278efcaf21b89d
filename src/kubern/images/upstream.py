"""Upstream: reads from real registries on behalf of node units, which have no way out of their own.

Does the token dance of the distribution API itself (anonymous, or with the Basic credentials a node sends for
imagePullSecrets), because a node could not reach the token server either. Keeps nothing: a node's containerd has its own
content store. Blocking HTTP in threads; pulls are few and large.
Source: distribution-spec 1.1; docker registry token authentication.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

CONNECT_S = 5.0
READ_S = 60.0
MANIFEST_BYTES_MAX = 8 << 20
REDIRECTS_MAX = 5
DOWN_S = 10.0                   # how long a registry that could not be reached is not asked again
TOKENS_MAX = 256
CHUNK_BYTES = 256 << 10
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?")


class Unreachable(Exception):
    """No connection to the registry."""


class Refused(Exception):
    """The registry answered, but not with what was asked for."""

    def __init__(self, status: int, body: bytes = b"") -> None:
        super().__init__(status)
        self.status, self.body = status, body


@dataclass(frozen=True, slots=True)
class Download:
    status: int
    length: int
    range: str
    response: http.client.HTTPResponse

    async def chunks(self) -> AsyncIterator[bytes]:
        while chunk := await asyncio.to_thread(self.response.read, CHUNK_BYTES):
            yield chunk


class Upstream:
    """`plain_http` names registries that speak HTTP without TLS (those on loopback always do)."""

    def __init__(self, plain_http: frozenset[str] = frozenset()) -> None:
        self._plain = plain_http
        self._tokens: dict[tuple[str, str, str], tuple[str, float]] = {}
        self._down: dict[str, tuple[float, str]] = {}

    async def manifest(self, registry: str, name: str, ref: str, accept: str, authorization: str) -> tuple[bytes, str]:
        """(bytes, media type). Raises Refused, Unreachable."""
        wanted = {"Accept": accept} if accept else {}
        r = await asyncio.to_thread(self._get, registry, name, f"/v2/{name}/manifests/{ref}", wanted, authorization)
        try:
            data = await asyncio.to_thread(r.read, MANIFEST_BYTES_MAX + 1)
        finally:
            r.close()
        if len(data) > MANIFEST_BYTES_MAX:
            raise Refused(502, b"manifest too large")
        return data, (r.getheader("Content-Type") or "").split(";")[0]

    @asynccontextmanager
    async def blob(self, registry: str, name: str, digest: str, wanted: str, authorization: str) -> AsyncIterator[Download]:
        headers = {"Range": wanted} if wanted else {}
        r = await asyncio.to_thread(self._get, registry, name, f"/v2/{name}/blobs/{digest}", headers, authorization)
        try:
            length = r.getheader("Content-Length")
            if length is None:
                raise Refused(502, b"the registry does not say how long the blob is")
            yield Download(r.status, int(length), r.getheader("Content-Range") or "", r)
        finally:
            r.close()

    # ---- blocking, in threads
    def _get(self, registry: str, name: str, path: str, headers: dict[str, str], basic: str) -> http.client.HTTPResponse:
        if registry == "localhost" or not _HOST.fullmatch(registry):
            raise Refused(404)
        host = _ALIASES.get(registry, registry)
        down, why = self._down.get(host, (0.0, ""))
        if down > time.monotonic():
            raise Unreachable(why)
        key = (host, name, basic)
        token, until = self._tokens.get(key, ("", 0.0))
        if token and until > time.monotonic():
            headers = {**headers, "Authorization": token}
        r = self._fetch(host, path, headers)
        if r.status == 401:
            challenge = r.getheader("WWW-Authenticate") or ""
            r.close()
            token = self._token(challenge, name, basic, key)
            if not token:
                raise Refused(401)
            r = self._fetch(host, path, {**headers, "Authorization": token})
        if r.status >= 300:
            body = r.read(4096)
            r.close()
            raise Refused(r.status if r.status in (401, 404, 416, 429, 503) else 404, body)
        return r

    def _fetch(self, host: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        loopback = host.split(":")[0] in ("127.0.0.1", "localhost")
        url = f"{'http' if loopback or host in self._plain else 'https'}://{host}{path}"
        for _ in range(REDIRECTS_MAX):
            r = self._open(url, host, headers)
            if r.status not in (301, 302, 303, 307, 308):
                return r
            target = r.getheader("Location") or ""
            r.close()
            if not target.startswith(("http://", "https://")):
                parts = urlsplit(url)
                target = f"{parts.scheme}://{parts.netloc}{target}"
            if urlsplit(target).netloc != urlsplit(url).netloc:
                headers = {k: v for k, v in headers.items() if k != "Authorization"}     # a storage host must not see it
            url = target
        raise Refused(502, b"too many redirects")

    def _open(self, url: str, registry: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        if parts.scheme == "http":
            connection = http.client.HTTPConnection(parts.netloc, timeout=CONNECT_S)
        else:
            connection = http.client.HTTPSConnection(parts.netloc, timeout=CONNECT_S, context=ssl.create_default_context())
        try:
            connection.connect()
            connection.sock.settimeout(READ_S)
            target = parts.path + ("?" + parts.query if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "kubern", "Connection": "close", **headers})
            r = connection.getresponse()
            if connection.sock is not None:
                connection.sock.close()                  # the response holds it open until it is closed itself
            return r
        except (OSError, http.client.HTTPException) as e:
            connection.close()
            why = f"cannot reach {parts.netloc}: {e}"
            if len(self._down) > TOKENS_MAX:
                self._down.clear()
            self._down[registry] = time.monotonic() + DOWN_S, why
            raise Unreachable(why) from None

    def _token(self, challenge: str, name: str, basic: str, key: tuple[str, str, str]) -> str:
        """The Authorization header that answers a challenge, "" if we have none."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return basic
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or "realm" not in fields:
            return ""
        query = {"scope": fields.get("scope") or f"repository:{name}:pull"}
        if "service" in fields:
            query["service"] = fields["service"]
        realm = fields["realm"] + ("&" if "?" in fields["realm"] else "?") + urlencode(query)
        r = self._open(realm, urlsplit(realm).netloc, {"Authorization": basic} if basic else {})
        try:
            doc: dict[str, Any] = orjson.loads(r.read(1 << 20)) if r.status == 200 else {}
        except orjson.JSONDecodeError:
            doc = {}
        finally:
            r.close()
        token = doc.get("token") or doc.get("access_token")
        if not token:
            return ""
        if len(self._tokens) >= TOKENS_MAX:
            self._tokens.clear()
        self._tokens[key] = f"Bearer {token}", time.monotonic() + int(doc.get("expires_in") or 60) - 10
        return f"Bearer {token}"
