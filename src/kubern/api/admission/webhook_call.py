"""Webhook calls: one HTTPS request to where a clientConfig leads, and its answer as JSON. Shared by admission and CRD conversion.

A service is called at one of its ready endpoints, by the name NAME.NAMESPACE.svc that its certificate must bear. Connections are kept, one
pool for each destination. Errors are in the words of Go's client. Upstream: apiserver pkg/util/webhook/client.go.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson

from kubern.client.http import HttpSender
from kubern.model import gojson, yamltree
from kubern.model.decode import FIND_KIND
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.request import Request

SENDERS_MAX = 256
ANSWER_MAX_BYTES = 10 * 1024 * 1024
TIMEOUT_S = 10


class CallFailed(Exception):
    """No usable answer; str() says why."""


class Services(Protocol):
    def get(self, resource: str, namespace: str, name: str) -> Object | None: ...

    def list(self, resource: str, namespace: str | None = None) -> Any: ...


_senders: OrderedDict[tuple[Any, ...], HttpSender] = OrderedDict()


def _endpoint(services: Services, namespace: str, name: str, port: int) -> tuple[str, int]:
    service = services.get("services", namespace, name)
    if service is None:
        raise CallFailed(f"service {quote(name)} not found")
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return spec.get("externalName") or "", port
    found = next((p for p in spec.get("ports") or () if p.get("port") == port), None)
    if found is None:
        raise CallFailed(f"no service port {port} found for service {quote(name)}")
    candidates = []
    for piece in services.list("endpointslices.discovery.k8s.io", namespace):
        if (piece["metadata"].get("labels") or {}).get("kubernetes.io/service-name") != name:
            continue
        number = next((p["port"] for p in piece.get("ports") or () if p.get("port") and (p.get("name") or "") == (found.get("name") or "")), None)
        if number is not None:
            candidates += [(e["addresses"][0], number) for e in piece.get("endpoints") or ()
                           if (e.get("conditions") or {}).get("ready", True) is not False and e.get("addresses")]
    if not candidates:
        raise CallFailed(f"no endpoints available for service {quote(name)}")
    return random.choice(candidates)


def _sender(url: str, address: tuple[str, int] | None, bundle: str) -> HttpSender:
    key = (url, address, bundle)
    sender = _senders.get(key)
    if sender is not None:
        _senders.move_to_end(key)
        return sender
    try:
        ca = base64.b64decode(bundle) if bundle else None
        sender = HttpSender(url, ca, address=address)
    except (ssl.SSLError, ValueError, binascii.Error) as e:
        raise CallFailed(f"unable to load root certificates: {e}") from None
    _senders[key] = sender
    if len(_senders) > SENDERS_MAX:
        _, oldest = _senders.popitem(last=False)
        asyncio.get_running_loop().create_task(oldest.close())
    return sender


async def post(client: Mapping[str, Any], body: Object, services: Services, timeout_s: int = TIMEOUT_S) -> Object:
    """The object a webhook answers with, of the kind that was sent. Raises CallFailed."""
    url, path = _target(client)
    target = f"{url}{path}?timeout={timeout_s}s"
    address: tuple[str, int] | None = None
    try:
        service = client.get("service")
        if service is not None:
            address = _endpoint(services, service["namespace"], service["name"], service.get("port") or 443)
        sender = _sender(url, address, client.get("caBundle") or "")
        request = Request("POST", path, {"timeout": [f"{timeout_s}s"]},
                          {"content-type": "application/json", "accept": "application/json", "user-agent": "kube-apiserver-admission"},
                          orjson.dumps(body))
        async with asyncio.timeout(timeout_s):
            try:
                answer = await sender.send(request)
            except ConnectionResetError:                 # a kept connection the other side had given up
                answer = await sender.send(request)
            raw = await whole(answer.body)
    except CallFailed as e:
        raise CallFailed(f"Post {quote(target)}: {e}") from None
    except TimeoutError:
        raise CallFailed(f"Post {quote(target)}: context deadline exceeded") from None
    except (OSError, ssl.SSLError) as e:
        raise CallFailed(f"Post {quote(target)}: {words(e, address or _host_port(url))}") from None
    return parsed(answer.status, raw, answer.header("content-type"), body)


def parsed(status: int, raw: bytes, content_type: str, asked: Object) -> Object:
    """The object of an answer. Raises CallFailed."""
    if not 200 <= status < 300:
        raise CallFailed(_refused(status, raw, not content_type or content_type.startswith("text/")))
    if not raw:
        raise CallFailed(f"0-length response with status code: {status} and content type: {content_type}")
    out = _decoded(raw)
    version, kind = out.get("apiVersion") or asked["apiVersion"], out.get("kind") or asked["kind"]
    group, _, of = asked["apiVersion"].partition("/")
    if kind != asked["kind"] or version not in (f"{group}/v1", f"{group}/v1beta1"):
        raise CallFailed(f'no kind {quote(str(kind))} is registered for version {quote(str(version))} in scheme '
                         '"k8s.io/apiserver/pkg/util/webhook/client.go:71"')
    if version != asked["apiVersion"]:
        raise CallFailed(f"converting ({version.rpartition('/')[2]}.{kind}) to ({of}.{kind}): unknown conversion")
    return out


def _decoded(raw: bytes) -> Object:
    try:
        tree = orjson.loads(raw)
    except ValueError:
        tree = _odd(raw)
    if not isinstance(tree, dict):
        raise CallFailed(f"couldn't get version/kind; json parse error: json: cannot unmarshal {gojson.kind_of(tree)} into Go value of type {FIND_KIND}")
    return tree


def _odd(raw: bytes) -> Any:
    """What no JSON parser reads may be YAML to upstream's."""
    try:
        return gojson.plain(gojson.parse(raw) if raw.lstrip()[:1] == b"{" else yamltree.parse(raw)[0])
    except (gojson.SyntaxFault, yamltree.YAMLFault) as e:
        raise CallFailed(f"couldn't get version/kind; json parse error: {e}") from None


def _target(client: Mapping[str, Any]) -> tuple[str, str]:
    """(https://host:port, path)."""
    service = client.get("service")
    if service is None:
        u = urlsplit(client.get("url") or "")
        return f"https://{u.netloc}", u.path
    return (f"https://{service['name']}.{service['namespace']}.svc:{service.get('port') or 443}", "/" + (service.get("path") or "").lstrip("/"))


async def whole(body: Any) -> bytes:
    """A body of any form as bytes. Raises CallFailed where it is too large."""
    if isinstance(body, bytes):
        out = body
    elif isinstance(body, list):
        out = b"".join(body)
    else:
        out = b""
        async for piece in body:
            out += piece
            if len(out) > ANSWER_MAX_BYTES:
                break
    if len(out) > ANSWER_MAX_BYTES:
        raise CallFailed("http: response body too large")
    return out


def _host_port(url: str) -> tuple[str, int]:
    u = urlsplit(url)
    return u.hostname or "", u.port or 443


def words(e: Exception, address: tuple[str, int]) -> str:
    """A failed connection in Go's words."""
    at = f"{address[0]}:{address[1]}"
    if isinstance(e, ssl.SSLCertVerificationError):
        why = {18: "certificate signed by unknown authority", 19: "certificate signed by unknown authority",
               20: "certificate signed by unknown authority", 21: "certificate signed by unknown authority",
               10: "certificate has expired or is not yet valid"}.get(e.verify_code, e.verify_message)
        return f"tls: failed to verify certificate: x509: {why}"
    if isinstance(e, ssl.SSLError):
        return "http: server gave HTTP response to HTTPS client" if "WRONG_VERSION" in str(e) else f"tls: {e.reason or e}"
    if isinstance(e, ConnectionRefusedError):
        return f"dial tcp {at}: connect: connection refused"
    if isinstance(e, ConnectionResetError):
        return "EOF"
    if e.__class__.__name__ == "gaierror":
        return f"dial tcp: lookup {address[0]}: no such host"
    return f"dial tcp {at}: {(e.strerror or str(e)).lower() if isinstance(e, OSError) else e}"


_REFUSALS = {
    400: "the server rejected our request for an unknown reason", 401: "the server has asked for the client to provide credentials",
    404: "the server could not find the requested resource", 405: "the server does not allow this method on the requested resource",
    409: "the server reported a conflict", 422: "the server rejected our request due to an error in our request",
    429: "the server has received too many requests and has asked us to try again later", 503: "the server is currently unable to handle the request",
    504: "the server was unable to return a response in the time allotted, but may still be processing the request"}


def _refused(status: int, raw: bytes, is_text: bool) -> str:
    """An HTTP status as upstream's client words it; a body counts where it is text."""
    said = raw.decode("utf-8", "replace").strip() if is_text else ""
    text = said or "unknown"
    if status == 406 and not said:
        return "the server was unable to respond with a content type that the client supports"
    if status in (403, 406, 415):
        return text
    if status in _REFUSALS:
        return _REFUSALS[status]
    if status >= 500:
        return f"an error on the server ({quote(text)}) has prevented the request from succeeding"
    return f"the server responded with the status code {status} but did not return more information"
