"""connect: log, exec, attach, portforward and proxy: the API server as a way to kubelets, pods and services.

A request becomes one of the kubelet's own (/containerLogs, /exec, /attach, /portForward), with the front certificate. An upgrade is passed
on only after the backend has answered 101 itself; its bytes are carried unread, so SPDY and WebSocket work alike. A backend that does not
upgrade answers like any HTTP server. Upstream: pkg/registry/core/pod/rest, pkg/registry/core/{node,service}/rest, apimachinery util/proxy;
KEP-4006; CVE-2018-1002105.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as quote_path
from urllib.parse import urlencode

import httptools

from kubern.api.authz.attributes import forbid
from kubern.api.call import Call
from kubern.api.options import flag, number
from kubern.api.read import find
from kubern.model import invalid
from kubern.model.invalid import FieldError, quote
from kubern.model.object import Object
from kubern.model.request import Request, Response, Stream
from kubern.model.status import StatusError, bad_request, internal, not_found, unavailable
from kubern.model.status import invalid as invalid_status
from kubern.wire import channels, websocket
from kubern.wire import stream as wire

if TYPE_CHECKING:
    from kubern.api.handle import Server

DIAL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0
ERROR_BODY_MAX_BYTES = 64 * 1024
REWRITE_MAX_BYTES = 4 * 1024 * 1024
HOP = frozenset(("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
                 "content-length", "host", "authorization", "expect"))
TOKEN_PROTOCOL = "base64url.bearer.authorization.k8s.io."
IDENTITY_PREFIXES = ("impersonate-", "x-remote-")


@dataclass(slots=True)
class Backend:
    """Where a request goes on to."""

    host: str
    port: int
    path: str                                     # with query
    tls: ssl.SSLContext | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    server_name: str = ""                         # what the certificate must be for, where that is not the host

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


# --- kubelets ---

_contexts: dict[tuple[str, str, str], ssl.SSLContext] = {}


def kubelet_tls(server: Server) -> ssl.SSLContext:
    """TLS towards kubelets: our client certificate; theirs is verified where a CA for them is set."""
    s = server.settings
    key = (s.kubelet_client_cert, s.kubelet_client_key, s.kubelet_ca)
    context = _contexts.get(key)
    if context is None:
        context = ssl.create_default_context(cafile=s.kubelet_ca or None)
        context.check_hostname = False
        if not s.kubelet_ca:
            context.verify_mode = ssl.CERT_NONE
        if s.kubelet_client_cert:
            context.load_cert_chain(s.kubelet_client_cert, s.kubelet_client_key)
        context.set_alpn_protocols(["http/1.1"])
        _contexts[key] = context
    return context


def kubelet_of(server: Server, node_name: str) -> tuple[str, int]:
    """Address and port of a node's kubelet."""
    node = server.cache.get("nodes", "", node_name)
    if node is None:
        raise not_found("", "nodes", node_name)
    status = node.get("status") or {}
    port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
    if not port and ((status.get("nodeInfo") or {}).get("containerRuntimeVersion") or "").startswith("simulated://"):
        raise unavailable(f"node {node_name} is simulated: nothing runs behind its pods; nodes that run containers: kubern up --nodes 1")
    by_type = {a.get("type"): a.get("address") or "" for a in reversed(status.get("addresses") or ())}
    host = by_type.get("InternalIP") or by_type.get("ExternalIP") or by_type.get("Hostname") or ""
    if not host:
        raise unavailable(f"no preferred addresses found; known addresses: {sorted(str(t) for t in by_type)}")
    return host, port or server.settings.kubelet_port


def _containers(pod: Object) -> list[str]:
    spec = pod.get("spec") or {}
    return [c.get("name", "") for part in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(part) or ()]


def container_of(pod: Object, name: str) -> str:
    """The container meant; raises 400 where that is not clear."""
    pod_name = pod["metadata"]["name"]
    if name:
        if name not in _containers(pod):
            raise bad_request(f"container {name} is not valid for pod {pod_name}")
        return name
    containers = (pod.get("spec") or {}).get("containers") or []
    if len(containers) == 1:
        return str(containers[0]["name"])
    if not containers:
        raise bad_request(f"a container name must be specified for pod {pod_name}")
    raise bad_request(f"a container name must be specified for pod {pod_name}, choose one of: [{' '.join(_containers(pod))}]")


# --- an HTTP client for one request ---

class _Answer:
    """The head of a backend's answer, and its body as it comes."""

    def __init__(self, stream: wire.SocketStream) -> None:
        self._stream = stream
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._chunks: list[bytes] = []
        self._head = False
        self._done = False
        self._parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self.status == 100:
            self._head, self.headers = False, []
            return
        self._done = True

    async def _more(self) -> None:
        data = await self._stream.read()
        if not data:
            self._done = True
            if not self._head:
                raise ConnectionResetError("the connection was closed before an answer came")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            raise ConnectionResetError(f"malformed answer: {e}") from None

    async def head(self) -> None:
        while not self._head:
            await self._more()

    async def body(self) -> AsyncIterator[bytes]:
        try:
            while True:
                chunks, self._chunks = self._chunks, []
                for c in chunks:
                    yield c
                if self._done and not self._chunks:
                    return
                if not self._chunks:
                    try:
                        await self._more()
                    except ConnectionError:
                        return
        finally:
            await self._stream.close()

    async def whole(self, limit: int) -> bytes:
        out: list[bytes] = []
        size = 0
        async for chunk in self.body():
            out.append(chunk)
            size += len(chunk)
            if size > limit:
                break
        return b"".join(out)[:limit]


async def _dial(backend: Backend) -> wire.SocketStream:
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            return await wire.dial(backend.host, backend.port, backend.tls, backend.server_name or None)
    except (OSError, TimeoutError, ssl.SSLError) as e:
        why = str(e) or "timeout"
        raise unavailable(f"error trying to reach service: dial tcp {backend.authority}: {why}") from None


async def send(backend: Backend, method: str, headers: list[tuple[str, str]], body: bytes = b"") -> _Answer:
    """One request on a connection of its own; raises 503 and 504."""
    connection = await _dial(backend)
    try:
        head = [("Host", backend.authority), *headers, *backend.headers, ("Connection", "close")]
        if body or method in ("POST", "PUT", "PATCH"):
            head.append(("Content-Length", str(len(body))))
        lines = "".join(f"{k}: {v}\r\n" for k, v in head)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await connection.write(f"{method} {backend.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1", "replace") + body)
            answer = _Answer(connection)
            await answer.head()
            return answer
    except TimeoutError:
        await connection.close()
        raise StatusError(504, "Timeout", f"error trying to reach service: {backend.authority} did not answer in time") from None
    except (OSError, ssl.SSLError) as e:
        await connection.close()
        raise unavailable(f"error trying to reach service: {e}") from None
    except asyncio.CancelledError:                     # nobody waits for the answer any more
        await connection.close()
        raise


def forwarded(request: Request, upgrading: bool = False) -> list[tuple[str, str]]:
    """The client's headers without those of its connection and its identity."""
    out: list[tuple[str, str]] = []
    for k, v in request.headers.items():
        if k in HOP or k.startswith(IDENTITY_PREFIXES):
            continue
        if k == "sec-websocket-protocol":       # a browser's token travels here
            v = ", ".join(p for p in (p.strip() for p in v.split(",")) if p and not p.startswith(TOKEN_PROTOCOL))
        out += [(k, one) for one in request.repeated.get(k) or (v,)]
    if upgrading:
        out += [("Connection", "Upgrade"), ("Upgrade", request.headers["upgrade"])]
    if request.peer:
        out.append(("X-Forwarded-For", request.peer))
    return out


async def tunnel(backend: Backend, request: Request) -> Response:
    """Passes an upgrade on; if the backend does not upgrade, its answer."""
    connection = await _dial(backend)
    headers = [("Host", backend.authority), *forwarded(request, True), *backend.headers]
    if request.body or request.method == "POST":
        headers.append(("Content-Length", str(len(request.body))))
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answered, rest = await wire.upgrade(connection, request.method, backend.path, headers)
    except wire.UpgradeRefused as e:
        await connection.close()
        kept = [(k, v) for k, v in e.headers if k in ("content-type", "x-content-type-options")]
        return Response(e.status, kept, e.body)
    except (OSError, TimeoutError, ValueError) as e:
        await connection.close()
        raise unavailable(f"error dialing backend: {e or 'timeout'}") from None

    async def run(client: Stream) -> None:
        if rest:
            await client.write(rest)
        await wire.splice(client, connection)

    shown = [(k.title() if k != "sec-websocket-accept" else "Sec-WebSocket-Accept", v) for k, v in answered if k not in ("content-length", "date")]
    return Response(101, shown, upgrade=run)


# --- pods ---

async def log(call: Call) -> Response:
    request, name = call.request, call.attributes.name
    pod = call.served.stored(find(call))
    q = request.query
    seconds, tail, limit = number(q.get("sinceSeconds")), number(q.get("tailLines")), number(q.get("limitBytes"))
    since_time, stream = request.param("sinceTime"), request.param("stream") or "All"
    errors: list[FieldError] = []
    if tail is not None and tail < 0:
        errors.append(invalid.invalid("tailLines", tail, "must be greater than or equal to 0"))
    if limit is not None and limit < 1:
        errors.append(invalid.invalid("limitBytes", limit, "must be greater than 0"))
    if seconds is not None and since_time:
        errors.append(invalid.forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"))
    elif seconds is not None and seconds < 1:
        errors.append(invalid.invalid("sinceSeconds", seconds, "must be greater than 0"))
    if stream not in ("All", "Stdout", "Stderr"):
        errors.append(invalid.not_supported("stream", stream, ["All", "Stdout", "Stderr"]))
    elif stream != "All" and tail is not None:
        errors.append(invalid.forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now"))
    if errors:
        raise invalid_status("", "PodLogOptions", name, errors)
    container = container_of(pod, request.param("container"))
    node = (pod.get("spec") or {}).get("nodeName") or ""
    if not node:
        return Response(204, [])
    wanted = [(k, "true") for k in ("follow", "previous", "timestamps") if flag(q.get(k))]
    wanted += [(k, str(v)) for k, v in (("sinceSeconds", seconds), ("sinceTime", since_time or None), ("tailLines", tail),
                                        ("limitBytes", limit)) if v is not None]
    wanted.append(("stream", stream))
    host, port = kubelet_of(call.server, node)
    path = f"/containerLogs/{pod['metadata']['namespace']}/{name}/{container}?{urlencode(wanted)}"
    answer = await send(Backend(host, port, path, kubelet_tls(call.server)), "GET", [("Accept", "*/*")])
    if answer.status >= 400:
        text = (await answer.whole(ERROR_BODY_MAX_BYTES)).decode("utf-8", "replace").rstrip("\n")
        raise _from_backend(answer.status, text, name)
    if websocket.is_upgrade(request):
        protocol = websocket.choose(request, channels.READER_PROTOCOLS)
        if protocol is None:
            raise bad_request("unable to negotiate a protocol")
        chosen = protocol
        return Response(101, websocket.answer_headers(request, chosen), b"",
                        lambda raw: channels.read_out(answer.body(), raw, chosen))
    return Response(200, [("Content-Type", "text/plain")], answer.body())


def _from_backend(status: int, text: str, name: str) -> StatusError:
    if status == 400:
        return bad_request(text)
    if status == 404:
        return StatusError(404, "NotFound", f"the server could not find the requested resource ( pods/log {name})",
                           {"name": name, "kind": "pods/log", "causes": [{"reason": "UnexpectedServerResponse", "message": text}]})
    if status == 500:
        return internal(text)
    return StatusError(status, "", text)


_STREAMS = (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"))


async def exec_(call: Call) -> Response:
    """exec, attach and portforward."""
    request, a = call.request, call.attributes
    _may_open(call)
    pod = call.served.stored(find(call))
    node = (pod.get("spec") or {}).get("nodeName") or ""
    options: dict[str, Any] = {"kind": _OPTIONS[a.subresource], "apiVersion": "v1"}
    namespace, name = pod["metadata"]["namespace"], a.name
    wanted: list[tuple[str, str]] = []
    if a.subresource == "portforward":
        ports = [p for v in request.query.get("ports") or () for p in v.split(",") if p]
        if any(not p.isdigit() for p in ports):
            raise bad_request(f"strconv.ParseInt: parsing {quote(next(p for p in ports if not p.isdigit()))}: invalid syntax")
        if ports:
            options["ports"] = [int(p) for p in ports]
            wanted.append(("port", ",".join(ports)))
        path = f"/portForward/{namespace}/{name}"
    else:
        container = container_of(pod, request.param("container"))
        command = request.query.get("command") or []
        for theirs, ours in _STREAMS:
            if flag(request.query.get(theirs)):
                options[theirs] = True
                wanted.append((ours, "1"))
        if not any(options.get(s) for s in ("stdin", "stdout", "stderr")):
            raise bad_request("you must specify at least 1 of stdin, stdout, stderr")
        if options.get("tty") and options.get("stderr"):
            raise bad_request("tty and stderr cannot both be true")
        if a.subresource == "exec":
            if not command:
                raise bad_request("you must specify a command to execute")     # the kubelet would refuse it
            options["command"] = command
            wanted += [("command", c) for c in command]
        options["container"] = container
        path = f"/{a.subresource}/{namespace}/{name}/{container}"
    await call.server.admission_for(call, "CONNECT", name, options, None, False, {}).run()
    if not node:
        raise bad_request(f"pod {name} does not have a host assigned")
    host, port = kubelet_of(call.server, node)
    backend = Backend(host, port, f"{path}?{urlencode(wanted)}" if wanted else path, kubelet_tls(call.server))
    if "upgrade" not in request.headers:
        raise bad_request("Upgrade request required")
    return await tunnel(backend, request)


_OPTIONS = {"exec": "PodExecOptions", "attach": "PodAttachOptions", "portforward": "PodPortForwardOptions"}


def _may_open(call: Call) -> None:
    """A WebSocket client opens a session with GET: it needs the right to create all the same."""
    if call.request.method == "GET" and call.request.headers.get("upgrade", "").lower() == "websocket":
        asked = call.attributes._replace(verb="create")
        decision = call.server.decide(asked)
        if not decision.allowed:
            raise forbid(asked, decision.reason)


# --- proxy ---

def _split(id_: str) -> tuple[str, str, str]:
    """"https:name:port" -> (scheme, name, port); raises ValueError."""
    parts = id_.split(":")
    if len(parts) == 1:
        scheme, name, port = "", parts[0], ""
    elif len(parts) == 2:
        scheme, name, port = "", parts[0], parts[1]
    elif len(parts) == 3:
        scheme, name, port = parts
    else:
        raise ValueError
    if scheme not in ("", "http", "https") or not name:
        raise ValueError
    return scheme, name, port


async def proxy(call: Call) -> Response:
    """pods/proxy, services/proxy and nodes/proxy."""
    request, a = call.request, call.attributes
    marker = f"/{a.resource}/{a.name}/proxy"
    at = request.path.index(marker) + len(marker)
    base, rest = request.path[:at], request.path[at:]
    try:
        scheme, name, port = _split(a.name)
    except ValueError:
        raise bad_request(f"invalid {a.resource.removesuffix('s')} request {quote(a.name)}") from None
    if not rest and request.method in ("GET", "HEAD"):
        query = "?" + urlencode([(k, v) for k, values in request.query.items() for v in values]) if request.query else ""
        return Response(301, [("Location", quote_path(base) + "/" + query)])
    named = Call(call.server, call.request, call.user, a._replace(name=name), call.served)
    options = {"kind": {"pods": "PodProxyOptions", "services": "ServiceProxyOptions", "nodes": "NodeProxyOptions"}[a.resource],
               "apiVersion": "v1", "path": rest}
    backend = _LOCATE[a.resource](named, scheme, port)
    await call.server.admission_for(named, "CONNECT", name, options, None, False, {}).run()
    query = urlencode([(k, v) for k, values in request.query.items() for v in values])
    backend.path = quote_path(rest or "/", safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")
    if request.headers.get("upgrade") and "upgrade" in request.headers.get("connection", "").lower():
        return await tunnel(backend, request)
    headers = [(k, v) for k, v in forwarded(request) if k != "accept-encoding"]
    headers.append(("X-Forwarded-Uri", request.path))
    answer = await send(backend, request.method, headers, request.body)
    kept = [(k, _own_location(v, base) if k.lower() == "location" else v) for k, v in answer.headers
            if k.lower() not in HOP and k.lower() not in ("audit-id", "cache-control")]
    if {k.lower(): v for k, v in answer.headers}.get("content-type", "").startswith("text/html") and request.method != "HEAD":
        return Response(answer.status, kept, _own_links(await answer.whole(REWRITE_MAX_BYTES), base))
    if request.method == "HEAD" or answer.status in (204, 304):
        await answer.whole(0)
        return Response(answer.status, kept)
    return Response(answer.status, kept, answer.body())


def _own_location(value: str, base: str) -> str:
    return base + value if value.startswith("/") and not value.startswith("//") else value


_LINK = re.compile(rb"""(\s(?:href|src|action|cite|data|background|longdesc|poster|formaction|manifest|icon)\s*=\s*["'])(/(?!/)[^"']*)""", re.IGNORECASE)


def _own_links(page: bytes, base: str) -> bytes:
    """Absolute links of a page lead through the proxy again."""
    prefix = base.encode()
    return _LINK.sub(lambda m: m[1] + (m[2] if m[2].startswith(prefix) else prefix + m[2]), page)


def _global(text: str) -> str:
    """An address the proxy may dial; raises 400 for those of this machine or of links."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise bad_request("address not allowed") from None
    if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        raise bad_request("address not allowed")
    return text


def _any_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _port(text: str, default: int) -> int:
    if not text:
        return default
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise bad_request(f"invalid port {quote(text)}")
    return int(text)


def _to_pod(call: Call, scheme: str, port: str) -> Backend:
    pod = call.served.stored(find(call))
    if not port:
        port = next((str(p["containerPort"]) for c in (pod.get("spec") or {}).get("containers") or () for p in (c.get("ports") or ())[:1]), "")
    ips = (pod.get("status") or {}).get("podIPs") or []
    host = _global((ips[0].get("ip") or "") if ips else "")
    return Backend(host, _port(port, 443 if scheme == "https" else 80), "", _any_tls() if scheme == "https" else None)


def _to_node(call: Call, scheme: str, port: str) -> Backend:
    find(call)
    host, kubelet_port = kubelet_of(call.server, call.attributes.name)
    if not port or port == str(kubelet_port):
        return Backend(host, kubelet_port, "", kubelet_tls(call.server))
    return Backend(_global(host), _port(port, kubelet_port), "", _any_tls() if scheme == "https" else None)


def _to_service(call: Call, scheme: str, port: str) -> Backend:
    """A ready endpoint of the service's port, by its name, its number or the only one there is."""
    service = call.served.stored(find(call))
    name, namespace = call.attributes.name, call.attributes.namespace
    ports = (service.get("spec") or {}).get("ports") or []
    port_name = port
    if port.isdigit():
        found = next((p for p in ports if p.get("port") == int(port)), None)
        if found is None:
            raise unavailable(f"no service port {port} found for service {quote(name)}")
        port_name = found.get("name") or ""
    candidates: list[tuple[str, int]] = []
    for piece in call.server.cache.list("endpointslices.discovery.k8s.io", namespace):
        if (piece["metadata"].get("labels") or {}).get("kubernetes.io/service-name") != name:
            continue
        numbers = [p["port"] for p in piece.get("ports") or () if p.get("port") and (not port or (p.get("name") or "") == port_name)]
        if not numbers:
            continue
        for endpoint in piece.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready", True) is not False and endpoint.get("addresses"):
                candidates.append((endpoint["addresses"][0], numbers[0]))
    if not candidates:
        raise unavailable(f"no endpoints available for service {quote(call.request.path.split('/proxy')[0].rsplit('/', 1)[-1])}")
    import random

    host, number_ = random.choice(candidates)
    return Backend(_global(host), number_, "", _any_tls() if scheme == "https" else None)


_LOCATE = {"pods": _to_pod, "services": _to_service, "nodes": _to_node}
