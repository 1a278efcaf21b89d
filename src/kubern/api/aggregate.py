"""Aggregated APIs: requests below /apis/G/V that an APIService gives to another server, and whether that server is there.

The other server learns who asks from X-Remote-* headers, which it believes because of the front proxy's client certificate; how to verify
that stands in the ConfigMap kube-system/extension-apiserver-authentication. Endpoints are dialled themselves, not the service's address,
so no proxy need run here. Not discovery: that lists the groups (api/discovery.py). Upstream: k8s.io/kube-aggregator pkg/apiserver
(handler_proxy.go) and pkg/controllers/status/remote; "Configure the Aggregation Layer".
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import random
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as quote_path
from urllib.parse import urlencode

import orjson

from kubern.api import openapi_remote
from kubern.api.cache import Change
from kubern.api.subresource import connect
from kubern.api.subresource.connect import Backend
from kubern.model.invalid import quote
from kubern.model.object import Object, condition
from kubern.model.request import Request, Response, User
from kubern.model.resource import Resource
from kubern.model.rows import of_discovery
from kubern.model.status import StatusError
from kubern.model.time import rfc3339

if TYPE_CHECKING:
    from kubern.api.handle import Server

log = logging.getLogger(__name__)

GROUP = "apiregistration.k8s.io"
API_SERVICES = f"apiservices.{GROUP}"
RECHECK_S = 30.0                       # servers are asked again this often
SETTLE_S = 0.1                         # changes gather this long
CHECK_TIMEOUT_S = 5.0
CHECKS_MAX = 10                        # at a time
DOCUMENT_MAX_BYTES = 4 * 1024 * 1024
TEXT = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
CHECKER = User("system:kube-aggregator", ("system:masters",))
DOWNLOADER = User("system:aggregator", ("system:masters", "system:authenticated"))

Verdict = tuple[str, str, str]         # status, reason, message of the condition Available


def authentication_config(client_ca: bytes, front_proxy_ca: bytes) -> Object:
    """The ConfigMap by which other servers know whom to believe."""
    data = {"client-ca-file": client_ca.decode(), "requestheader-client-ca-file": front_proxy_ca.decode(),
            "requestheader-allowed-names": '["front-proxy-client"]', "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
            "requestheader-group-headers": '["X-Remote-Group"]', "requestheader-uid-headers": '["X-Remote-Uid"]',
            "requestheader-username-headers": '["X-Remote-User"]'}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": data}


def identity_headers(user: User) -> list[tuple[str, str]]:
    out = [("X-Remote-User", user.name)]
    if user.uid:
        out.append(("X-Remote-Uid", user.uid))
    out += [("X-Remote-Group", g) for g in user.groups]
    return out + [(f"X-Remote-Extra-{quote_path(k, safe='')}", v) for k, values in user.extra.items() for v in values]


# --- where the server is ---

def endpoints_of(slices: Iterable[Object], service: str, port_name: str) -> tuple[bool, list[tuple[str, int]]]:
    """(has the service slices at all?, its ready addresses for a port)."""
    found, out = False, []
    for piece in slices:
        if (piece["metadata"].get("labels") or {}).get("kubernetes.io/service-name") != service:
            continue
        found = True
        ports = [p["port"] for p in piece.get("ports") or () if p.get("port") and (p.get("name") or "") == port_name]
        if ports:
            out += [(e["addresses"][0], ports[0]) for e in piece.get("endpoints") or ()
                    if (e.get("conditions") or {}).get("ready", True) is not False and e.get("addresses")]
    return found, out


class Aggregator:
    """`serve` answers for the other servers, `run` keeps the conditions of their APIServices true."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._tls: dict[str, ssl.SSLContext] = {}
        self._rows: dict[tuple[str, str], list[Resource]] = {}       # what is known of other servers, as it stands in server.remote_rows
        self._wanted: set[tuple[str, str]] = set()                   # (namespace, name) of the services they are behind
        self._changed = asyncio.Event()

    # --- requests ---

    async def serve(self, request: Request, user: User) -> Response:
        parts = request.path.split("/", 4)
        service = self.server.cache.get(API_SERVICES, "", f"{parts[3]}.{parts[2]}") if len(parts) > 3 else None
        if service is None or not (service.get("spec") or {}).get("service"):
            return Response(404, [*TEXT], b"404 page not found\n")
        if (condition(service, "Available") or {}).get("status") != "True":
            return Response(503, [*TEXT], b"service unavailable\n")
        verdict, backend = self.locate(service)
        if backend is None:
            log.debug("%s.%s: %s", parts[3], parts[2], verdict[2])
            return Response(503, [*TEXT], b"service unavailable\n")
        query = urlencode([(k, v) for k, values in request.query.items() for v in values])
        backend.path = quote_path(request.path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")
        backend.headers = identity_headers(user)
        try:
            if request.headers.get("upgrade") and "upgrade" in request.headers.get("connection", "").lower():
                return await connect.tunnel(backend, request)
            answer = await connect.send(backend, request.method, connect.forwarded(request), request.body)
        except StatusError as e:
            return Response(503, [*TEXT], f"{e.message}\n".encode())
        kept = [(k, v) for k, v in answer.headers if k.lower() not in connect.HOP]
        if request.method == "HEAD" or answer.status in (204, 304):
            await answer.whole(0)
            return Response(answer.status, kept)
        return Response(answer.status, kept, answer.body())

    def locate(self, api_service: Object) -> tuple[Verdict, Backend | None]:
        """One of the endpoints behind an APIService, or why there is none."""
        spec = api_service["spec"]
        namespace, name, port = spec["service"].get("namespace") or "", spec["service"].get("name") or "", spec["service"].get("port") or 443
        service = self.server.cache.get("services", namespace, name)
        if service is None:
            return ("False", "ServiceNotFound", f"service/{name} in {quote(namespace)} is not present"), None
        if (service.get("spec") or {}).get("type") == "ExternalName":
            candidates = [(service["spec"].get("externalName") or "", port)]
        else:
            found = next((p for p in (service.get("spec") or {}).get("ports") or () if p.get("port") == port), None)
            if found is None:
                return ("False", "ServicePortError", f"service/{name} in {quote(namespace)} is not listening on port {port}"), None
            slices = self.server.cache.list("endpointslices.discovery.k8s.io", namespace)
            any_slice, candidates = endpoints_of(slices, name, found.get("name") or "")
            if not any_slice:
                return ("False", "EndpointsNotFound", f"cannot find endpointslices for service/{name} in {quote(namespace)}"), None
            if not candidates:
                return ("False", "MissingEndpoints", f"endpointslices for service/{name} in {quote(namespace)} have no addresses with port name "
                        f"{quote(found.get('name') or '')}"), None
        host, number = random.choice(candidates)
        return ("True", "Passed", "all checks passed"), Backend(host, number, "", self._context(spec), [], f"{name}.{namespace}.svc")

    def _context(self, spec: Object) -> ssl.SSLContext:
        """TLS as the APIService wants it, with the front proxy's certificate."""
        bundle = "insecure" if spec.get("insecureSkipTLSVerify") else spec.get("caBundle") or ""
        context = self._tls.get(bundle)
        if context is None:
            if len(self._tls) > 256:
                self._tls.clear()
            pem = base64.b64decode(bundle).decode("ascii", "replace") if bundle not in ("", "insecure") else None
            context = self._tls[bundle] = ssl.create_default_context(cadata=pem)
            if bundle == "insecure":
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            s = self.server.settings
            if s.proxy_client_cert:
                context.load_cert_chain(s.proxy_client_cert, s.proxy_client_key)
        return context

    # --- conditions ---

    async def run(self) -> None:
        collection = self.server.cache.collection
        collection(GROUP, "apiservices").listeners.append(self._listen)
        for group, plural in (("", "services"), ("discovery.k8s.io", "endpointslices")):
            collection(group, plural).listeners.append(self._listen_behind)
        limit = asyncio.Semaphore(CHECKS_MAX)

        async def one(service: Object) -> None:
            async with limit:
                try:
                    await self._keep(service)
                except StatusError as e:
                    log.log(logging.DEBUG if e.code in (404, 409) else logging.WARNING, "API service %s: %s", service["metadata"]["name"], e.message)

        while True:
            remote = [s for s in self.server.cache.list(API_SERVICES) if (s.get("spec") or {}).get("service") and not self._answered_here(s)]
            self._wanted = {(s["spec"]["service"].get("namespace") or "", s["spec"]["service"].get("name") or "") for s in remote}
            self._forget({(s["spec"].get("group") or "", s["spec"].get("version") or "") for s in remote})
            await asyncio.gather(*(one(s) for s in remote))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._changed.wait()
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()

    def _listen(self, changes: list[Change]) -> None:
        self._changed.set()

    def _listen_behind(self, changes: list[Change]) -> None:
        """Services and slices: most are nobody's here, so nothing is parsed. Slices bear the name of their service as a prefix."""
        if self._wanted and any(c.item.namespace == namespace and c.item.name.startswith(name) for c in changes for namespace, name in self._wanted):
            self._changed.set()

    def _answered_here(self, service: Object) -> bool:
        """Some groups have an APIService for discovery's sake and are answered by this process."""
        key = (service["spec"].get("group") or "", service["spec"].get("version") or "")
        return key in self.server.remote_rows and key not in self._rows

    async def _keep(self, service: Object) -> None:
        verdict, backend = self.locate(service)
        key = (service["spec"].get("group") or "", service["spec"].get("version") or "")
        if backend is not None:
            verdict, document = await self._ask(backend, f"/apis/{key[0]}/{key[1]}", service["spec"]["service"])
            if verdict[0] == "True":
                self._rows[key] = self.server.remote_rows[key] = of_discovery(document, *key)
                await self._learn(service, key)
        if verdict[0] != "True":
            self._drop(key)
        self.server.extra_paths[f"/apis/{key[0]}/{key[1]}"] = self.serve           # also to say that it is unavailable
        await self._write(service, verdict)

    async def _ask(self, backend: Backend, path: str, where: Object) -> tuple[Verdict, Any]:
        """The server's own list of what it has: the proof that it is there."""
        backend.path, backend.headers = path, [*identity_headers(CHECKER), ("Accept", "application/json")]
        address = f"https://{backend.authority}{path}"
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                answer = await connect.send(backend, "GET", [])
                body = await answer.whole(DOCUMENT_MAX_BYTES)
        except TimeoutError:
            return ("False", "FailedDiscoveryCheck", f"failing or missing response from {address}: Get {quote(address)}: context deadline exceeded"), None
        except StatusError as e:
            return ("False", "FailedDiscoveryCheck", f"failing or missing response from {address}: {e.message}"), None
        if not 200 <= answer.status < 300:
            return ("False", "FailedDiscoveryCheck",
                    f"failing or missing response from {address}: bad status from {address}: {answer.status}"), None
        try:
            return ("True", "Passed", "all checks passed"), orjson.loads(body)
        except orjson.JSONDecodeError:
            return ("True", "Passed", "all checks passed"), None

    async def _learn(self, service: Object, key: tuple[str, str]) -> None:
        """The server's OpenAPI documents, if it has them; without them there are only the names of its resources."""
        async def fetch(path: str, tag: str) -> tuple[int, bytes, str]:
            _, backend = self.locate(service)
            if backend is None:
                return 503, b"", ""
            backend.path, backend.headers = path, [*identity_headers(DOWNLOADER), ("Accept", "application/json"), *([("If-None-Match", tag)] if tag else [])]
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    answer = await connect.send(backend, "GET", [])
                    return answer.status, await answer.whole(DOCUMENT_MAX_BYTES), next((v for k, v in answer.headers if k.lower() == "etag"), "")
            except (TimeoutError, StatusError):
                return 503, b"", ""
        documents = self.server.remote_openapi
        documents[key] = await openapi_remote.learn(fetch, *key, documents.get(key, openapi_remote.Remote()))

    def _drop(self, key: tuple[str, str]) -> None:
        self.server.remote_openapi.pop(key, None)
        if self._rows.pop(key, None) is not None:
            self.server.remote_rows.pop(key, None)

    def _forget(self, wanted: set[tuple[str, str]]) -> None:
        """What belonged to APIServices that are gone."""
        for key in [k for k in self._rows if k not in wanted]:
            self._drop(key)
        for path in [p for p, f in self.server.extra_paths.items() if f == self.serve and p != "aggregate"]:
            group, version = path.split("/")[2:4]
            if (group, version) not in wanted:
                del self.server.extra_paths[path]

    async def _write(self, service: Object, verdict: Verdict) -> None:
        status, reason, message = verdict
        old = condition(service, "Available")
        if old is not None and (old.get("status"), old.get("reason"), old.get("message")) == verdict:
            return
        at = old["lastTransitionTime"] if old is not None and old.get("status") == status else rfc3339(self.server.clock())
        new = {"type": "Available", "status": status, "lastTransitionTime": at, "reason": reason, "message": message}
        others = [c for c in (service.get("status") or {}).get("conditions") or () if c.get("type") != "Available"]
        served = self.server.rows.of_kind(f"{GROUP}/v1", "APIService")
        if served is not None:
            await self.server.client.patch(served.row, "", service["metadata"]["name"], {"status": {"conditions": [*others, new]}}, "merge",
                                           subresource="status")
