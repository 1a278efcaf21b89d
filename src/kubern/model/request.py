"""Request and Response: what `await handle(Request) -> Response` takes and gives. In process and over HTTP alike.

Not HTTP parsing (http.py) and not routing (handle.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class User:
    """Who asks. Groups hold system:authenticated or system:unauthenticated already."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def user_info(user: User) -> dict[str, Any]:
    """authentication.k8s.io UserInfo, as reviews, expressions and audit show it: in upstream's order, empty fields left out."""
    fields = {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": {k: list(v) for k, v in sorted(user.extra.items())}}
    return {k: v for k, v in fields.items() if v}


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass(slots=True)
class Request:
    method: str
    path: str                                        # decoded path without query
    query: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case; repeated ones joined by ", "
    body: bytes = b""
    peer: str = ""                                   # address of the client, "" in process
    certificate: bytes | None = None                 # DER of the client's certificate: its key is proven, who issued it is authentication's affair
    intermediates: tuple[bytes, ...] = ()            # DER of what the client sent with it
    user: User | None = None                         # set in process (trusted) or by authentication
    impersonator: User | None = None                 # set by authentication: who it was that asks as somebody else
    impersonation: str = ""                          # … and the constrained mode that allowed it
    repeated: dict[str, list[str]] = field(default_factory=dict)   # headers whose repetitions matter (impersonate-group …)
    objects: bool = False                            # in process: a watch may give its events as objects, shared with other readers

    def param(self, name: str, default: str = "") -> str:
        """First value of a query parameter."""
        v = self.query.get(name)
        return v[0] if v else default


class Stream(Protocol):
    """A raw, bidirectional byte stream: a connection after 101 Switching Protocols."""

    async def read(self, n: int = 65536) -> bytes:
        """Up to n bytes; b"" at end of file."""
        ...

    async def write(self, data: bytes) -> None:
        """Writes and waits while the peer is slow."""
        ...

    async def close(self) -> None: ...


Chunks = AsyncIterable[bytes]


@dataclass(slots=True)
class Response:
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | list[bytes] | Chunks = b""         # bytes, pieces to be written in order, or a stream (watch, log)
    upgrade: Callable[[Stream], Awaitable[None]] | None = None   # with status 101: runs on the raw connection

    @property
    def size(self) -> int:
        """Bytes of the body, -1 of a stream."""
        body = self.body
        return len(body) if isinstance(body, bytes) else sum(map(len, body)) if isinstance(body, list) else -1

    def header(self, name: str) -> str:
        low = name.lower()
        for k, v in self.headers:
            if k.lower() == low:
                return v
        return ""


Send = Callable[[Request], Awaitable[Response]]       # handle in process, or http.send of a remote server


