"""Forms: how stored objects are shown to a client: as themselves, as metadata alone, as a Table; in lists and in watches.

A Form turns cached items into bytes. The plain form concatenates and never parses, unless the row serves another version than the
store keeps. Table columns come from the Kind. Upstream: apiserver endpoints/handlers/response.go; KEP-555, KEP-1152.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from kubern.api.cache import Change, Collection, Item, body_of, value_of
from kubern.api.negotiate import Accept
from kubern.api.options import ListOptions
from kubern.model import table
from kubern.model.invalid import quote
from kubern.model.kinds.kind import Kind
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.status import StatusError, bad_request

if TYPE_CHECKING:
    from kubern.api.conversion import Webhook

Pieces = list[bytes]
ITEMS_A_TURN, JOINED_A_TURN = 100, 4000      # objects of a list that are made, or merely joined, before others are answered

Converter = Callable[[Object, Resource], Object]     # a stored object with kind and apiVersion -> as the row shows it

class Served:
    """One row as this server serves it: the row, its kind, its schema (loaded when first needed) and its collection."""

    def __init__(self, row: Resource, kind: Kind, collection: Collection, *, schema: Callable[[], Any] | None = None,
                 convert: Converter | None = None, to_storage: Converter | None = None, custom: Any = None,
                 stored: tuple[str, str] | None = None) -> None:
        self.row, self.kind, self.collection = row, kind, collection
        self._schema_of, self._schema = schema, None
        self.convert = convert                       # None: the stored shape is the served one
        self.to_storage = to_storage
        self.webhook: Webhook | None = None          # converts between this version and those of other items: `ready` before `shown` and `body`
        self.convert_before = 0                      # not 0: only what was written before this revision needs converting
        self.has_status = row.subresource("status") is not None
        self.custom = custom                         # what the CRD engine keeps with the row
        self.marks = row.storage_version or row.version if row.custom else ""      # the version that is written behind stored objects
        self.stored_api_version, self.stored_kind = stored or (row.api_version, row.kind)
        self.head = b'{"kind":%s,"apiVersion":%s,' % (orjson.dumps(row.kind), orjson.dumps(row.api_version))
        self.item_head = self.head if row.custom else b"{"
        self.list_head = b'{"kind":%s,"apiVersion":%s,"metadata":{"resourceVersion":"' % (
            orjson.dumps(row.list_kind or row.kind + "List"), orjson.dumps(row.api_version))

    @property
    def schema(self) -> Any:
        if self._schema is None and self._schema_of is not None:
            self._schema = self._schema_of()
        return self._schema

    def stored(self, item: Item) -> Object:
        """A fresh object as it was stored, with kind and apiVersion."""
        version = self.stored_api_version
        if item.version and self.webhook is not None:
            version = f"{self.row.group}/{item.version}"
        return {"kind": self.stored_kind, "apiVersion": version, **item.parse()}

    async def kept(self, obj: Object) -> Object:
        """An object of this row as the store keeps it."""
        return obj if self.webhook is None else await self.webhook.shape(obj, self.stored_api_version)

    async def ready(self, items: Iterable[Item]) -> None:
        """Has items converted that only a webhook can convert, so that they can be shown. Raises StatusError where it fails."""
        if self.webhook is not None:
            await self.webhook.ready(items, self.stored_api_version, self.row.api_version)

    def shown(self, item: Item) -> Object:
        """A fresh object as this row shows it."""
        if self.convert is None or not self.converts(item):
            return self.stored(item)
        shape = self.webhook.known(item, self.row.api_version) if self.webhook is not None else None
        if shape is None:
            return self.convert(self.stored(item), self.row)
        obj: Object = orjson.loads(shape)
        if item.revision:
            obj["metadata"]["resourceVersion"] = str(item.revision)
        return self.convert(obj, self.row)

    def converts(self, item: Item) -> bool:
        """Whether this item is shown otherwise than it is stored."""
        return self.convert is not None and not (0 < self.convert_before <= item.revision and item.version in ("", self.row.version))

    def selected(self, options: ListOptions, item: Item, obj: Object) -> bool:
        """Whether selectors take an item, `obj` as stored. The fields of a custom resource are those of the version that was asked for."""
        return options.matches(self.shown(item) if self.custom is not None and options.of_fields and self.converts(item) else obj)

    def body(self, item: Item) -> bytes:
        """The bytes after kind and apiVersion, as this row shows them."""
        if self.convert is None or not self.converts(item):
            return item.body
        return body_of(value_of(self.shown(item)), item.revision)


def _alone(served: Served, meta: Object) -> Object:
    """Metadata without what only stands for fields of the object; `meta` is changed."""
    for name in served.kind.field_annotations:
        annotations = meta.get("annotations")
        if annotations and annotations.pop(name, None) is not None and not annotations:
            del meta["annotations"]
    return meta


def _unmanaged(meta: Object) -> Object:
    return {k: v for k, v in meta.items() if k != "managedFields"}


class Form:
    """The plain form."""

    key: Any = "json"
    whole = True                  # shows more of an object than its metadata

    def __init__(self, served: Served) -> None:
        self.served = served
        self.between = b"," + served.item_head                       # objects of a list
        self.turn = ITEMS_A_TURN if served.convert else JOINED_A_TURN

    def one(self, item: Item) -> bytes:
        return self.served.head + self.served.body(item)

    def list(self, items: Iterable[Item], meta: bytes) -> list[bytes]:
        """Pieces of the list object; `meta` is what follows resourceVersion's opening quote in the metadata."""
        s = self.served
        head = self.list_start(meta)
        joined = self.between.join([i.body for i in items] if s.convert is None else [s.body(i) for i in items])
        if not joined:
            return [head + b',"items":[]}\n']
        return [head + b',"items":[' + s.item_head, joined, b"]}\n"]

    async def long_list(self, items: Sequence[Item], meta: bytes) -> Pieces:
        """The same; of many objects some are made at a time, so that others are answered meanwhile."""
        if len(items) <= self.turn or self.served.webhook is not None:           # what a webhook converted is kept for a moment only
            return self.list(items, meta)
        *pieces, end = self.list(items[:self.turn], meta)
        for at in range(self.turn, len(items), self.turn):
            await asyncio.sleep(0)
            pieces += self.between, self.list(items[at:at + self.turn], meta)[1]
        return [*pieces, end]

    def list_start(self, meta: bytes) -> bytes:
        """Kind, version and metadata of the list. Lists of custom resources show their continue token even where it is empty."""
        if self.served.row.custom and b'"continue"' not in meta:
            meta = meta[:-1] + b',"continue":""}'
        return self.served.list_head + meta

    def event(self, type_: str, item: Item) -> bytes:
        """One line of a watch."""
        return b'{"type":"%s","object":' % type_.encode() + self.served.head + self.served.body(item) + b"}\n"

    def line(self, change: Change, type_: str, item: Item) -> bytes:
        """The same, made once for everybody who watches in this form."""
        key = (self.served.row.api_version, self.key, type_, id(item))
        data = change.encoded.get(key)
        if data is None:
            data = change.encoded[key] = self.event(type_, item)
        return data

    def shared(self, change: Change, item: Item) -> Object:
        """The object of an event for readers in this process, the same one for all: reading only. Without managedFields."""
        s = self.served
        if s.converts(item):
            obj = s.shown(item)
            obj["metadata"].pop("managedFields", None)
            return obj
        obj = {"kind": s.stored_kind, "apiVersion": s.stored_api_version, **change.object(item)}
        obj["metadata"] = _unmanaged(obj["metadata"])
        return obj

    def bookmark(self, revision: int, initial_end: bool) -> bytes:
        s = self.served
        meta = b'"metadata":{"resourceVersion":"%d"' % revision
        if initial_end:
            meta += b',"annotations":{"k8s.io/initial-events-end":"true"}'
        return b'{"type":"BOOKMARK","object":' + s.head + meta + b"}" + _ZERO.get((s.row.group, s.row.kind), b"") + b"}}\n"


_ZERO: dict[tuple[str, str], bytes] = {}


class MetadataForm(Form):
    """PartialObjectMetadata."""

    whole = False

    def __init__(self, served: Served, version: str, listing: bool) -> None:
        super().__init__(served)
        self.version, self.listing = version, listing
        self.key = ("meta", version)
        self.between, self.turn = b",", ITEMS_A_TURN

    def _partial(self, item: Item) -> Object:
        return {"kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{self.version}", "metadata": _alone(self.served, item.parse()["metadata"])}

    def one(self, item: Item) -> bytes:
        return orjson.dumps(self._partial(item))

    def list(self, items: Iterable[Item], meta: bytes) -> list[bytes]:
        head = b'{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/%s","metadata":{"resourceVersion":"' % self.version.encode()
        joined = b",".join([orjson.dumps(self._partial(i)) for i in items])
        return [head + meta + b',"items":[', joined, b"]}\n"] if joined else [head + meta + b',"items":null}\n']

    def event(self, type_: str, item: Item) -> bytes:
        return b'{"type":"%s","object":' % type_.encode() + orjson.dumps(self._partial(item)) + b"}\n"

    def shared(self, change: Change, item: Item) -> Object:
        row = self.served.row
        return {"kind": row.kind, "apiVersion": row.api_version, "metadata": _unmanaged(change.object(item)["metadata"])}

    def bookmark(self, revision: int, initial_end: bool) -> bytes:
        meta: Object = {"resourceVersion": str(revision)}
        if initial_end:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        return orjson.dumps({"type": "BOOKMARK", "object": {
            "kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{self.version}", "metadata": meta}}) + b"\n"


class TableForm(Form):
    """Table: one row an object. Column definitions stand in the first table of a watch only."""

    def __init__(self, served: Served, version: str, include: str) -> None:
        super().__init__(served)
        self.version, self.include = f"meta.k8s.io/{version}", include
        self.key = ("table", version, include)
        self.between, self.turn = b",", ITEMS_A_TURN

    def table(self, items: Iterable[Item], meta: Object, headers: bool = True) -> Object:
        s = self.served
        items = list(items)
        objects = [s.shown(i) for i in items]
        # cells are made of what is stored, which is what upstream's internal types look like
        printed = [s.stored(i) for i in items] if s.to_storage is not None and s.row.group == s.row.storage[0] else None
        if s.kind.field_annotations and self.include not in ("Object", "None"):
            for obj in objects:
                _alone(s, obj["metadata"])
        return table.table(s.kind, objects, meta, self.include, time.time(), headers, self.version, printed)

    def one(self, item: Item) -> bytes:
        return orjson.dumps(self.table([item], {"resourceVersion": str(item.revision)} if item.revision else {}))

    def list(self, items: Iterable[Item], meta: bytes) -> list[bytes]:
        table = orjson.dumps(self.table(items, orjson.loads(b'{"resourceVersion":"' + meta)))
        head, rows, joined = table.partition(b'"rows":[')
        return [head + rows, joined[:-2], b"]}\n"]

    def event(self, type_: str, item: Item, headers: bool = False) -> bytes:
        return orjson.dumps({"type": type_, "object": self.table([item], {"resourceVersion": str(item.revision)}, headers)}) + b"\n"

    def bookmark(self, revision: int, initial_end: bool) -> bytes:
        meta: Object = {"resourceVersion": str(revision)}
        if initial_end:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        row = {"cells": [""] * (len(self.served.kind.columns) or 2), "object": {
            "kind": "PartialObjectMetadata", "apiVersion": self.version, "metadata": meta}}
        return orjson.dumps({"type": "BOOKMARK", "object": {
            "kind": "Table", "apiVersion": self.version, "metadata": {"resourceVersion": str(revision)},
            "columnDefinitions": None, "rows": [row]}}) + b"\n"


def form_of(served: Served, accept: Accept, include: str, *, listing: bool, watching: bool = False) -> Form:
    """The form an Accept asks for; raises StatusError 406 for metadata of the wrong number, 400 for a bad includeObject."""
    if not accept.convert:
        return Form(served)
    if accept.convert == "Table":
        if include not in ("", *table.INCLUDE):
            raise bad_request("Unable to convert to Table as requested: includeObject: Invalid value: "
                              f"{quote(include)}: must be 'Metadata', 'Object', 'None', or empty")
        return TableForm(served, accept.version, include or "Metadata")
    if not watching:
        kind = served.row.kind
        package = _PACKAGES.get(served.row.group, served.row.group.split(".")[0] or "core")
        package = "unstructured.Unstructured" if served.row.custom else f"{package}.{kind}"
        if listing and accept.convert == "PartialObjectMetadata":
            raise StatusError(406, "NotAcceptable",
                              f"you requested PartialObjectMetadata, but the requested object is a list (*{package}List)")
        if not listing and accept.convert == "PartialObjectMetadataList":
            raise StatusError(406, "NotAcceptable",
                              f"you requested PartialObjectMetadataList, but the requested object is not a list (*{package})")
    return MetadataForm(served, accept.version, listing)


_PACKAGES = {"rbac.authorization.k8s.io": "rbac", "flowcontrol.apiserver.k8s.io": "flowcontrol", "events.k8s.io": "core"}
