"""Client: the API as functions over objects. `send` is the server's `handle` in the same process, or `HttpSender.send` of a remote one.

Not a cache (mirror.py) and not a retrier (queue.py backs off): one call is one request. Every failure is a StatusError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import orjson

from kubern.model.object import Object
from kubern.model.request import Request, Response, Send, User
from kubern.model.resource import Resource
from kubern.model.status import StatusError, internal

PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
PAGE_ITEMS = 500
WATCH_LINE_BYTES_MAX = 64 << 20

Query = dict[str, list[str]]
WatchBatch = list[tuple[str, Object]]
WatchEvent = tuple[str, Object]     # ("ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK" | "ERROR", object)


def path_of(resource: Resource, namespace: str = "", name: str = "", subresource: str = "") -> str:
    path = resource.prefix
    if resource.namespaced and namespace:
        path += f"/namespaces/{namespace}"
    path += "/" + resource.plural
    if name:
        path += "/" + name
    if subresource:
        path += "/" + subresource
    return path


async def read_body(response: Response) -> bytes:
    body = response.body
    if isinstance(body, bytes):
        return body
    if isinstance(body, list):
        return b"".join(body)
    return b"".join([bytes(chunk) async for chunk in body])


def error_of(code: int, body: bytes) -> StatusError:
    """The StatusError a failed answer stands for."""
    try:
        status = orjson.loads(body)
        if isinstance(status, dict) and status.get("kind") == "Status":
            return StatusError(int(status.get("code") or code), status.get("reason") or "", status.get("message") or "",
                               status.get("details"))
    except (ValueError, TypeError):
        pass
    return StatusError(code, "", body[:500].decode(errors="replace") or f"the server answered {code}")


def watch_line(line: bytes) -> WatchEvent:
    event = orjson.loads(line)
    return event["type"], event["object"]


class Client:
    """All of the API as one user. `kinds` finds the row of an object's (apiVersion, kind); the built-in table by default."""

    def __init__(self, send: Send, user: User | None = None, agent: str = "kubern",
                 kinds: Callable[[str, str], Resource | None] | None = None) -> None:
        self.send, self.user, self.agent = send, user, agent
        self._kinds = kinds or _built_in

    def with_kinds(self, kinds: Callable[[str, str], Resource | None]) -> Client:
        return Client(self.send, self.user, self.agent, kinds)

    def row(self, api_version: str, kind: str) -> Resource:
        row = self._kinds(api_version, kind)
        if row is None:
            raise StatusError(404, "NotFound", f'no matches for kind "{kind}" in version "{api_version}"')
        return row

    async def request(self, method: str, path: str, query: Query | None = None, body: Any = None, *, content_type: str = "application/json",
                      accept: str = "application/json", objects: bool = False) -> Response:
        """One request; raises StatusError for codes of 400 and more."""
        headers = {"accept": accept, "user-agent": self.agent}
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else orjson.dumps(body)
            headers["content-type"] = content_type
        try:
            response = await self.send(Request(method, path, query or {}, headers, data, user=self.user, objects=objects))
        except (OSError, EOFError) as e:
            raise StatusError(503, "ServiceUnavailable", f"{method} {path}: {e or type(e).__name__}") from e
        if response.status >= 400:
            raise error_of(response.status, await read_body(response))
        return response

    async def call(self, method: str, path: str, query: Query | None = None, body: Any = None, *, content_type: str = "application/json",
                   accept: str = "application/json") -> Object:
        data = await read_body(await self.request(method, path, query, body, content_type=content_type, accept=accept))
        try:
            answer = orjson.loads(data) if data else {}
        except ValueError as e:
            raise internal(f"{method} {path} answered no JSON") from e
        return answer if isinstance(answer, dict) else {}

    async def get(self, resource: Resource, namespace: str, name: str, subresource: str = "", *,
                  accept: str = "application/json") -> Object:
        return await self.call("GET", path_of(resource, namespace, name, subresource), accept=accept)

    async def list(self, resource: Resource, namespace: str = "", *, labels: str = "", fields: str = "", revision: str = "",
                   limit: int = PAGE_ITEMS, metadata_only: bool = False) -> tuple[list[Object], str]:
        """All items, read page by page, and the revision they are of. Items carry kind and apiVersion."""
        query: Query = {}
        for key, value in (("labelSelector", labels), ("fieldSelector", fields), ("resourceVersion", revision),
                           ("limit", str(limit or ""))):
            if value:
                query[key] = [value]
        items: list[Object] = []
        accept = METADATA_LIST if metadata_only else "application/json"
        while True:
            page = await self.call("GET", path_of(resource, namespace), query, accept=accept)
            for item in page.get("items") or ():
                item["apiVersion"], item["kind"] = resource.api_version, resource.kind
                items.append(item)
            more = page.get("metadata") or {}
            if not more.get("continue"):
                return items, more.get("resourceVersion") or ""
            query = {k: v for k, v in query.items() if k != "resourceVersion"} | {"continue": [more["continue"]]}

    async def watch(self, resource: Resource, namespace: str = "", *, revision: str = "", labels: str = "", fields: str = "",
                    initial: bool = False, timeout_s: int = 0, metadata_only: bool = False) -> AsyncIterator[WatchBatch]:
        """Events in batches, bookmarks among them. The iterator ends when the server ends the watch; close it with `aclose()`.

        Objects are for reading: in process they are shared. managedFields may be missing."""
        query: Query = {"watch": ["1"], "allowWatchBookmarks": ["true"]}
        for key, value in (("labelSelector", labels), ("fieldSelector", fields), ("resourceVersion", revision),
                           ("timeoutSeconds", str(timeout_s or ""))):
            if value:
                query[key] = [value]
        if initial:
            query |= {"sendInitialEvents": ["true"], "resourceVersionMatch": ["NotOlderThan"]}
        response = await self.request("GET", path_of(resource, namespace), query, accept=METADATA if metadata_only else "application/json",
                                      objects=True)
        body = response.body
        if getattr(body, "objects", False):                  # the server is in this process: what it has parsed is shared
            shared = body.events()                           # type: ignore[union-attr]
            try:
                async for batch in shared:
                    yield batch
            finally:
                await shared.aclose()
            return
        if isinstance(body, (bytes, list)):
            whole = body if isinstance(body, bytes) else b"".join(body)
            if whole:
                yield [watch_line(line) for line in whole.splitlines() if line]
            return
        rest = b""
        try:
            async for chunk in body:
                data = rest + chunk if rest else chunk
                end = data.rfind(b"\n") + 1
                rest = bytes(data[end:])
                if len(rest) > WATCH_LINE_BYTES_MAX:
                    raise internal("a watch event is too large")
                if end:
                    events = [watch_line(line) for line in bytes(data[:end]).split(b"\n") if line]
                    if metadata_only:
                        for _, obj in events:
                            if obj.get("kind") != "Status":
                                obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
                    yield events
        except (OSError, EOFError) as e:
            raise StatusError(503, "ServiceUnavailable", f"watch {resource.plural}: {e or type(e).__name__}") from e
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()

    async def create(self, obj: Object, *, subresource: str = "", name: str = "", dry_run: bool = False) -> Object:
        """POST. For a subresource (`binding`, `eviction`, `token`) pass the parent's row by `create_in`."""
        row = self.row(obj["apiVersion"], obj["kind"])
        return await self.create_in(row, obj, subresource=subresource, name=name, dry_run=dry_run)

    async def create_in(self, resource: Resource, obj: Object, *, namespace: str = "", subresource: str = "", name: str = "",
                        dry_run: bool = False) -> Object:
        space = namespace or (obj.get("metadata") or {}).get("namespace") or ""
        query = {"dryRun": ["All"]} if dry_run else None
        return await self.call("POST", path_of(resource, space, name, subresource), query, obj)

    async def update(self, obj: Object, subresource: str = "") -> Object:
        meta = obj["metadata"]
        row = self.row(obj["apiVersion"], obj["kind"])
        return await self.call("PUT", path_of(row, meta.get("namespace") or "", meta["name"], subresource), None, obj)

    async def patch(self, resource: Resource, namespace: str, name: str, patch: Any, type: str = "merge", *, subresource: str = "",
                    field_manager: str = "", force: bool = False) -> Object:
        query: Query = {}
        if field_manager or type == "apply":
            query["fieldManager"] = [field_manager or self.agent.split("/")[0]]
        if force:
            query["force"] = ["true"]
        return await self.call("PATCH", path_of(resource, namespace, name, subresource), query, patch, content_type=PATCH_TYPES[type])

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str = "", revision: str = "", grace_s: int | None = None,
                     propagation: str = "") -> Object:
        return await self.call("DELETE", path_of(resource, namespace, name), None, _delete_options(uid, revision, grace_s, propagation))

    async def delete_all(self, resource: Resource, namespace: str = "", *, labels: str = "", fields: str = "",
                         propagation: str = "") -> Object:
        query = {k: [v] for k, v in (("labelSelector", labels), ("fieldSelector", fields)) if v}
        return await self.call("DELETE", path_of(resource, namespace), query, _delete_options("", "", None, propagation))


def _delete_options(uid: str, revision: str, grace_s: int | None, propagation: str) -> Object | None:
    options: Object = {}
    preconditions = {k: v for k, v in (("uid", uid), ("resourceVersion", revision)) if v}
    if preconditions:
        options["preconditions"] = preconditions
    if grace_s is not None:
        options["gracePeriodSeconds"] = grace_s
    if propagation:
        options["propagationPolicy"] = propagation
    return {"kind": "DeleteOptions", "apiVersion": "v1", **options} if options else None


def _built_in(api_version: str, kind: str) -> Resource | None:
    from kubern.model.resources import by_kind
    return by_kind.get((api_version, kind))


def encode_query(query: Query) -> str:
    return "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, values in query.items() for v in values)
