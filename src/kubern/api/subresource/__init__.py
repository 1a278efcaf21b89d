"""Subresources and resources without storage: which handler serves what lies below an object, and what is only computed.

A table, read by handle.py. Each handler is `async (Call) -> Response`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING

from kubern.model.request import Response
from kubern.model.status import StatusError, not_found

if TYPE_CHECKING:
    from kubern.api.call import Call

Handler = Callable[["Call"], Awaitable[Response]]

# (group, plural, subresource) -> "module:function"; "*" stands for every resource that has the subresource in its row
_TABLE: dict[tuple[str, str, str], str] = {
    ("*", "*", "status"): "status:handle",
    ("*", "*", "scale"): "scale:handle",
    ("", "pods", "binding"): "binding:handle",
    ("", "pods", "eviction"): "eviction:handle",
    ("", "pods", "resize"): "resize:handle",
    ("", "pods", "ephemeralcontainers"): "ephemeral:handle",
    ("", "pods", "log"): "connect:log",
    ("", "pods", "exec"): "connect:exec_",
    ("", "pods", "attach"): "connect:exec_",
    ("", "pods", "portforward"): "connect:exec_",
    ("", "pods", "proxy"): "connect:proxy",
    ("", "nodes", "proxy"): "connect:proxy",
    ("", "services", "proxy"): "connect:proxy",
    ("", "namespaces", "finalize"): "finalize:handle",
    ("", "serviceaccounts", "token"): "token:handle",
    ("certificates.k8s.io", "certificatesigningrequests", "approval"): "approval:handle",
    ("certificates.k8s.io", "certificatesigningrequests", "status"): "approval:status",
}
_VIRTUAL = {
    ("", "bindings"): "binding:collection",
    ("", "componentstatuses"): "componentstatus:handle",
}
_REVIEWS = {"authentication.k8s.io", "authorization.k8s.io"}


def no_method() -> StatusError:
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def _load(where: str) -> Handler:
    module, _, function = where.partition(":")
    handler: Handler = getattr(import_module(f"kubern.api.subresource.{module}"), function)
    return handler


_METHODS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "HEAD": "", "OPTIONS": ""}


class _Subresources:
    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str, str], Handler] = {}

    def find(self, call: Call, parts: list[str]) -> Handler:
        """The handler of a subresource; raises 404 for one the row has not, 405 for a verb it has not."""
        a, row = call.attributes, call.served.row
        own = call.server.unlisted.get((row.group, row.plural, a.subresource))
        if own is not None and call.request.method == "GET":
            return own
        sub = row.subresource(a.subresource)
        deeper = len(parts) > (3 if not a.group else 4) + (2 if row.namespaced else 0) + 2
        if sub is None and row.custom and not deeper:
            raise not_found(row.group, row.plural, a.name)
        if sub is None or (deeper and a.subresource != "proxy") or (row.namespaced and not a.namespace):
            raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
        method = call.request.method
        if a.subresource != "proxy" and _METHODS.get(method, "") not in sub.verbs:
            raise no_method()
        key = (row.group, row.plural, a.subresource)
        handler = self._loaded.get(key)
        if handler is None:
            where = _TABLE.get(key) or _TABLE.get(("*", "*", a.subresource))
            if where is None:
                raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
            handler = self._loaded[key] = _load(where)
        return handler


class _Virtual:
    def get(self, key: tuple[str, str]) -> Callable[[Call, bool], Handler] | None:
        """How to find the handler of a resource that is not stored, or None for one that is."""
        where = _VIRTUAL.get(key)
        if where is None:
            if key[0] not in _REVIEWS:
                return None
            where = "review:handle"

        def find(call: Call, named: bool) -> Handler:
            verb = {"GET": "get" if named else "list", "POST": "create"}.get(call.request.method, "")
            if named and "get" not in call.served.row.verbs:
                raise StatusError(404, "NotFound", "the server could not find the requested resource", {})
            if verb not in call.served.row.verbs or (verb == "create" and named):
                raise no_method()
            return _load(where)
        return find


SUBRESOURCES, VIRTUAL = _Subresources(), _Virtual()
