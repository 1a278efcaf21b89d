"""Call: one request on its way through the chain, and how its answer is made.

What every verb needs travels here: who, what, in which form to answer, which warnings to add. Not the verbs (read.py, write.py, delete.py).
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import orjson

from kubern.api.authz.attributes import Attributes
from kubern.api.forms import Served
from kubern.api.negotiate import CONVERSIONS, JSON, PROTOBUF, YAML, Accept, accept_of, to_yaml, wants_pretty
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.request import Request, Response, User
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.api.handle import Server

JSON_HEADER = ("Content-Type", JSON)
WARNINGS_MAX_BYTES = 4096


class Call:
    __slots__ = ("attributes", "conversions", "now_s", "request", "served", "server", "user", "warnings")

    def __init__(self, server: Server, request: Request, user: User, attributes: Attributes, served: Served) -> None:
        self.server, self.request, self.user, self.attributes, self.served = server, request, user, attributes, served
        self.warnings: list[str] = []
        self.conversions = CONVERSIONS                       # the kinds its answer can be shown as
        self.now_s = server.clock()

    @property
    def namespace(self) -> str:
        return self.attributes.namespace if self.served.row.namespaced else ""

    @property
    def key(self) -> str:
        a = self.attributes
        return f"{a.namespace}/{a.name}" if self.served.row.namespaced else a.name

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def accept(self, watchable: bool = False, conversions: frozenset[str] | None = None) -> Accept:
        return accept_of(self.request, watchable, self.conversions if conversions is None else conversions)


def encode(obj: Object, accept: Accept) -> tuple[bytes, str]:
    """An object's bytes and media type."""
    if accept.media == YAML:
        return to_yaml(obj), YAML
    if accept.media == PROTOBUF:
        from kubern.model.protobuf import from_json

        with contextlib.suppress(ValueError, KeyError):
            return from_json(obj), PROTOBUF
    return orjson.dumps(obj, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE if accept.pretty else orjson.OPT_APPEND_NEWLINE), JSON


def answer(obj: Object, accept: Accept, status: int = 200) -> Response:
    body, media = encode(obj, accept)
    return Response(status, [("Content-Type", media)], body)


def answer_bytes(body: bytes | list[bytes], accept: Accept, status: int = 200) -> Response:
    """The answer for JSON that is encoded already; parsed again only where another representation was asked for."""
    if accept.media == JSON and not accept.pretty:
        return Response(status, [JSON_HEADER], body)
    return answer(orjson.loads(body if isinstance(body, bytes) else b"".join(body)), accept, status)


def failure(error: StatusError, request: Request) -> Response:
    """The answer for an error, in the representation the client asked for where that is one we can write."""
    header = request.headers.get("accept", "")
    accept = Accept(YAML if header.startswith(YAML) else JSON, pretty=wants_pretty(request))
    response = answer(error.status(), accept, error.code)
    if error.headers:
        response.headers.extend(error.headers)
    return response


def warning_headers(texts: list[str]) -> list[tuple[str, str]]:
    """Warning headers, RFC 7234 code 299, cut where they grow beyond what clients take."""
    out: list[tuple[str, str]] = []
    size = 0
    for text in texts:
        if any(ord(c) < 0x20 or 0x7f <= ord(c) < 0xa0 for c in text):        # upstream drops them whole
            continue
        clean = "".join(c for c in text if c.isprintable())
        size += len(clean)
        if size > WARNINGS_MAX_BYTES:
            break
        out.append(("Warning", f"299 - {quote(clean)}"))
    return out


def clock() -> float:
    return time.time()


__all__ = ["Any", "Call", "answer", "answer_bytes", "encode", "failure", "warning_headers"]
