"""Where a webhook is called: the checks of a URL or a service reference, shared by admission webhooks and CRD conversion.

Upstream: apiserver pkg/util/webhook/validation.go.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from kubern.model import names
from kubern.model.invalid import invalid, quote, required
from kubern.model.kinds.checks import Errors
from kubern.model.object import Object

FORM = "; desired format: https://host[/path]"
PORT_DEFAULT = 443


def default_service_port(client: Object | None) -> None:
    service = (client or {}).get("service")
    if service is not None and service.get("port") is None:
        service["port"] = PORT_DEFAULT


def client_config(client: Object, path: str) -> Errors:
    url, service = client.get("url"), client.get("service")
    if (url is None) == (service is None):
        yield required(path, "exactly one of url or service is required")
    elif url is not None:
        yield from webhook_url(url, f"{path}.url")
    elif service is not None:
        yield from webhook_service(service, f"{path}.service")


def webhook_url(url: str, path: str) -> Errors:
    if why := _parse_error(url):
        yield required(path, f"url must be a valid URL: {why}{FORM}")
        return
    u = urlsplit(url)
    user, _, host = u.netloc.rpartition("@")
    if u.scheme != "https":
        yield invalid(path, u.scheme, f"'https' is the only allowed URL scheme{FORM}")
    if not host:
        yield invalid(path, host, f"host must be specified{FORM}")
    if user:
        yield invalid(path, user, "user information is not permitted in the URL")
    if u.fragment:
        yield invalid(path, u.fragment, "fragments are not permitted in the URL")
    if u.query:
        yield invalid(path, u.query, "query parameters are not permitted in the URL")


def _parse_error(url: str) -> str:
    """Why Go's url.Parse refuses a URL."""
    head = f"parse {quote(url)}: "
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in url):
        return head + "net/url: invalid control character in URL"
    if url.startswith(":"):
        return head + "missing protocol scheme"
    scheme, colon, rest = url.partition(":")
    if colon and not (scheme[0].isalpha() and all(c.isalnum() or c in "+-." for c in scheme)) and "/" not in scheme:
        return head + "first path segment in URL cannot contain colon"
    for i in range(len(url)):
        if url[i] == "%" and not (len(url) > i + 2 and all(c in "0123456789abcdefABCDEF" for c in url[i + 1:i + 3])):
            return head + f"invalid URL escape {quote(url[i:i + 3])}"
    if rest.startswith("//"):
        host = rest[2:].split("/")[0].split("?")[0].split("#")[0].rpartition("@")[2]
        if " " in host:
            return head + 'invalid character " " in host name'
        port = host.rpartition("]")[2].rpartition(":")
        if port[1] and not port[2].isdigit() and port[2]:
            return head + f"invalid port {quote(':' + port[2])} after host"
    return ""


def webhook_service(service: Object, path: str) -> Errors:
    """Upstream hands name and namespace over the other way round: an empty one is reported as the other."""
    if not service.get("namespace"):
        yield required(f"{path}.name")
    if not service.get("name"):
        yield required(f"{path}.namespace")
    port = service.get("port") or 0
    if errors := names.is_port_number(port):
        yield invalid(f"{path}.port", port, f"port is not valid: {', '.join(errors)}")
    url_path = service.get("path")
    if not url_path or url_path == "/":
        return
    if url_path == "//":
        yield invalid(f"{path}.path", url_path, "segment[0] may not be empty")
        return
    if not url_path.startswith("/"):
        yield invalid(f"{path}.path", url_path, "must start with a '/'")
    steps = url_path[1:].removesuffix("/").split("/")
    for i, step in enumerate(steps):
        if not step:
            yield invalid(f"{path}.path", url_path, f"segment[{i}] may not be empty")
            continue
        for text in names.is_dns1123_subdomain(step):
            yield invalid(f"{path}.path", url_path, f"segment[{i}]: {text}")
