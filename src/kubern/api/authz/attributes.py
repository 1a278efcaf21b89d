"""Attributes: what an authorizer is asked about, and Decision: what it answers. Also the words of a refusal.

`from_request` reads verb, group, resource and name out of a path as upstream's RequestInfo does, before any routing: a request
for something that does not exist is refused before it is not found.
Upstream: apiserver endpoints/request/requestinfo.go, endpoints/handlers/responsewriters/errors.go, authorization/authorizer.
"""

from __future__ import annotations

from typing import NamedTuple

from kubern.model.invalid import quote
from kubern.model.request import ANONYMOUS, Request, Response, User
from kubern.model.status import StatusError, forbidden


class Attributes(NamedTuple):
    user: User
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    is_resource: bool = True
    field_selector: str = ""
    label_selector: str = ""


class Decision(NamedTuple):
    """allowed; or denied for good; or (neither) no opinion, which refuses when nobody else allows. `error`: who should have decided could not."""

    allowed: bool
    reason: str = ""
    denied: bool = False
    error: str = ""


NO_OPINION = Decision(False)
ALLOWED = Decision(True)

_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAMESPACE_SUBRESOURCES = ("status", "finalize")


def _watching(request: Request) -> bool:
    values = request.query.get("watch")
    return values is not None and values[0].lower() not in ("false", "0")


def _exact_name(selector: str) -> str:
    """The name a field selector pins metadata.name to, "" if none or not a path segment."""
    for term in selector.split(","):
        field, sep, value = term.partition("=")
        if sep and not field.endswith("!") and field.strip() == "metadata.name":
            value = value.removeprefix("=").strip()
            return "" if value in (".", "..") or "/" in value or "%" in value else value
    return ""


def from_request(request: Request, user: User | None = None) -> Attributes:
    """The attributes of a request, by its method, path and query alone."""
    who = user or request.user or ANONYMOUS
    path, method = request.path, request.method
    parts = path.strip("/").split("/")
    head = parts[0]
    if head == "api":
        at, group = 1, ""
    elif head == "apis":
        at, group = 2, parts[1] if len(parts) > 1 else ""
    else:
        at, group = 0, ""
    if not at or len(parts) < at + 2:
        return Attributes(who, method.lower(), path=path, is_resource=False)
    version = parts[at]
    rest = parts[at + 1:]
    verb, by_prefix = _VERBS.get(method, ""), False
    if rest[0] in ("watch", "proxy") and len(rest) > 1:
        verb, by_prefix = rest[0], True
        rest = rest[1:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]
    resource = rest[0]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 and verb != "proxy" else ""
    if not name and verb == "get":
        verb = "watch" if request.query and _watching(request) else "list"
        if request.query:
            name = _exact_name(request.param("fieldSelector"))
    if not name and verb == "delete":
        verb = "deletecollection"
    fields = labels = ""
    if not by_prefix and request.query and verb in ("list", "watch", "deletecollection"):
        fields, labels = request.param("fieldSelector"), request.param("labelSelector")
    return Attributes(who, verb, group, version, resource, subresource, namespace, name, path, True, fields, labels)


def path_matches(pattern: str, path: str) -> bool:
    """Whether a rule's non-resource URL, which may end in "*", is meant for a path."""
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern.rstrip("*")))


def refusal(a: Attributes) -> str:
    """`User "x" cannot get resource "y" in API group "z" in the namespace "n"`."""
    if not a.is_resource:
        text = f"User {quote(a.user.name)} cannot {a.verb} path {quote(a.path)}"
    else:
        resource = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
        scope = f"in the namespace {quote(a.namespace)}" if a.namespace else "at the cluster scope"
        text = f"User {quote(a.user.name)} cannot {a.verb} resource {quote(resource)} in API group {quote(a.group)} {scope}"
    return _escaped(text)


def forbid(a: Attributes, reason: str = "") -> StatusError:
    """The 403 for these attributes, with the authorizer's reason behind."""
    text = refusal(a)
    error = forbidden(a.group, a.resource, a.name, f"{text}: {reason}" if reason else text)
    return error


def undecided(request: Request, error: str) -> Response:
    """The 500 for a request that nobody allows and that somebody who should decide could not: a webhook that is away."""
    text = f"Internal Server Error: {quote(request.path)}: {error}\n"
    return Response(500, [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")], _escaped(text).encode())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
