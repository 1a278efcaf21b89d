"""Cache: every collection in memory as encoded bytes with a small index, fed by the store; the read path lives here.

An Item's `body` is the text after `{"kind":…,"apiVersion":…,` of the object: metadata with its resourceVersion first, then the rest.
GET is a dict lookup and one concatenation, LIST one join; labels and field values are parsed out of the body when a selector first
asks. The store delivers an event before the write returns, so what is here is never older than what was acknowledged.
Not here: who is told of a change (watch.py) and what a change may be (write.py).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from sys import intern
from typing import Any

import orjson

from kubern.model.object import Object
from kubern.model.status import bad_request
from kubern.store.protocol import Entry, Event

WINDOW_EVENTS_MAX = 4096        # changes a collection remembers in memory; older ones come from the store's history
ENCODED_CHANGES_MAX = 512       # changes whose lines are kept for watches that are a little behind, and whose objects for who changes them next
KEPT_OBJECT_MAX_BYTES = 16 * 1024
_HEAD = b'"metadata":{"resourceVersion":"%d",'
_CLOSE = ord("}")
ROOT = "/registry/"


def body_of(value: bytes, revision: int) -> bytes:
    """The stored value as the cache keeps it; revision 0: of a dry run, which has none."""
    return (_HEAD % revision) + value if revision else b'"metadata":{' + value


def value_of(obj: Object, version: str = "") -> bytes:
    """An object as the store keeps it: without kind, apiVersion and resourceVersion, metadata first.

    `version`, for custom resources, goes on a line of its own behind the object: which one is stored may change with the definition.
    """
    meta = obj["metadata"]
    if "resourceVersion" in meta:
        meta = {k: v for k, v in meta.items() if k != "resourceVersion"}
    out: dict[str, Any] = {"metadata": meta}
    for k, v in obj.items():
        if k not in ("kind", "apiVersion", "metadata"):
            out[k] = v
    try:
        value = orjson.dumps(out)[13:]     # after {"metadata":{
    except TypeError as e:                # deeper than the encoder goes, or an integer of more than 64 bits
        raise bad_request(f"the object cannot be stored: {e}") from None
    return value + b"\n" + version.encode() if version else value


class Item:
    """One object at one revision. Never changed, so a list may be read while writes go on."""

    __slots__ = ("_index", "_parsed", "body", "created", "key", "name", "namespace", "revision", "shapes", "version")

    def __init__(self, key: str, body: bytes, revision: int, created: int) -> None:
        self.version = ""                        # in which a custom resource was written
        if body[-1] != _CLOSE:
            body, _, version = body.rpartition(b"\n")
            self.version = intern(version.decode())
        self.key, self.body, self.revision, self.created = key, body, revision, created
        self.namespace, slash, name = key.partition("/")
        if slash:
            self.name = name
        else:
            self.namespace, self.name = "", key
        self._parsed: Object | None = None
        self._index: dict[str, str] | None = None
        self.shapes: tuple[Any, dict[str, bytes]] | None = None      # what a conversion webhook made of it, by version: conversion.py

    @property
    def index(self) -> dict[str, str]:
        """Field values that watches are found by, filled as they are asked for."""
        if self._index is None:
            self._index = {}
        return self._index

    @property
    def value(self) -> bytes:
        """As the store holds it."""
        value = self.body[len(_HEAD) - 2 + len(str(self.revision)):]
        return value + b"\n" + self.version.encode() if self.version else value

    def take(self, obj: Object) -> None:
        """What the value says, from the one who wrote it: nobody needs to parse it."""
        meta = {"resourceVersion": str(self.revision), **obj["metadata"]}
        meta["resourceVersion"] = str(self.revision)
        self._parsed = {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}
        self._parsed["metadata"] = meta

    def parse(self) -> Object:
        """A fresh object without kind and apiVersion; the caller may change it."""
        obj: Object = orjson.loads(b"{" + self.body)
        return obj

    def read(self) -> Object:
        """The object for reading only."""
        return self._parsed or self.parse()

    def peek(self) -> Object:
        """The object for reading only; kept while the item lives. Only for collections that are small or asked often."""
        if self._parsed is None:
            self._parsed = self.parse()
        return self._parsed


class Change:
    """One event of a collection. `item` is what it became (for DELETED: the last state with the revision of the deletion), `old` what it was."""

    __slots__ = ("encoded", "item", "left", "offered", "old", "revision", "seen", "type")

    def __init__(self, type_: str, item: Item, old: Item | None, revision: int) -> None:
        self.type, self.item, self.old, self.revision = type_, item, old, revision
        self.encoded: dict[Any, bytes] = {}    # form -> the line of the watch, made once for everybody
        self.left: Item | None = None          # the old state with the new revision, for selectors the object has left
        self.seen: dict[int, Object] = {}      # what selectors and readers parsed: id(item) -> object, dropped after delivery
        self.offered = False                   # its writer told what it says; kept a little longer

    def object(self, item: Item) -> Object:
        obj = self.seen.get(id(item))
        if obj is None:
            obj = self.seen[id(item)] = item.read()
        return obj

    def forget(self) -> None:
        """Lets go of what was made of it for others."""
        self.encoded.clear()
        if self.offered:
            self.item._parsed = None


Listener = Callable[[list[Change]], None]


class Collection:
    """All objects of one (group, plural), by "namespace/name" or "name"."""

    def __init__(self, group: str, plural: str) -> None:
        self.group, self.plural = group, plural
        self.prefix = f"{ROOT}{group or 'core'}/{plural}/"
        self.received = 0                     # events of the store
        self.items: dict[str, Item] = {}
        self.order: list[str] = []                         # keys, sorted
        self.window: deque[Change] = deque(maxlen=WINDOW_EVENTS_MAX)
        self.window_after = 0                              # every change with a greater revision is in the window
        self.changed = 0                                   # revision of the newest change
        self.listeners: list[Listener] = []
        self._lists: dict[Any, tuple[int, Any]] = {}

    def get(self, key: str) -> Item | None:
        return self.items.get(key)

    def span(self, namespace: str, start: str = "") -> tuple[int, int]:
        """Positions in `order` of a namespace ("" = all), from the key `start` (relative to the namespace) on."""
        if not namespace:
            return (bisect_left(self.order, start) if start else 0), len(self.order)
        return bisect_left(self.order, f"{namespace}/{start}"), bisect_left(self.order, f"{namespace}0")

    def range(self, namespace: str = "") -> list[Item]:
        """Items of a namespace, or all, in key order."""
        items = self.items
        if not namespace:
            return [items[k] for k in self.order]
        low, high = self.span(namespace)
        return [items[k] for k in self.order[low:high]]

    def load(self, entry: Entry) -> None:
        """An entry of the store at start, before any event."""
        key = entry.key[len(self.prefix):]
        if key not in self.items:
            insort(self.order, key)
        self.items[key] = Item(key, body_of(entry.value, entry.revision), entry.revision, entry.create_revision)
        self.changed = max(self.changed, entry.revision)

    def take(self, event: Event) -> Change:
        """An event of the store; the change it makes."""
        key = event.key[len(self.prefix):]
        self.received += 1
        old = self.items.get(key)
        if event.value is None:
            if old is None:   # never loaded: its previous state stands in the event
                previous = event.previous
                old = Item(key, body_of(previous.value, previous.revision), previous.revision, previous.create_revision) if previous else None
            else:
                del self.items[key]
                at = bisect_left(self.order, key)
                del self.order[at]
            last = old.value if old else b'"name":""}}'
            item = Item(key, body_of(last, event.revision), event.revision, old.created if old else event.revision)
            if old is not None:
                item.shapes = old.shapes
            change = Change("DELETED", item, old, event.revision)
        else:
            created = event.previous.create_revision if event.previous else event.revision
            item = Item(key, body_of(event.value, event.revision), event.revision, created)
            if old is None:
                insort(self.order, key)
            self.items[key] = item
            change = Change("ADDED" if old is None else "MODIFIED", item, old, event.revision)
        if len(self.window) == WINDOW_EVENTS_MAX:
            self.window_after = self.window[0].revision
        self.window.append(change)
        self.changed = event.revision
        return change

    def since(self, revision: int) -> list[Change] | None:
        """Changes after a revision, or None if the window does not reach that far back."""
        if revision < self.window_after:
            return None
        if not self.window or self.window[-1].revision <= revision:
            return []
        out = []
        for change in reversed(self.window):
            if change.revision <= revision:
                break
            out.append(change)
        out.reverse()
        return out


class Cache:
    """All collections, and the revision they stand at. `feed` is given to store.subscribe."""

    def __init__(self) -> None:
        self.collections: dict[tuple[str, str], Collection] = {}
        self._by_prefix: dict[str, Collection] = {}
        self.revision = 0
        self._next: asyncio.Future[None] | None = None
        self._parsed: list[Change] = []                     # the last batch, whose objects are still kept
        self._encoded: deque[Change] = deque()              # those whose lines of watches are still kept
        self.offered: dict[int, Object] = {}                # id of the bytes on their way to the store -> the object they were made of

    def collection(self, group: str, plural: str) -> Collection:
        key = (group, plural)
        c = self.collections.get(key)
        if c is None:
            c = self.collections[key] = Collection(group, plural)
            self._by_prefix[c.prefix] = c
            c.window_after = c.changed = self.revision
        return c

    def _of(self, key: str) -> Collection:
        end = key.index("/", key.index("/", len(ROOT)) + 1) + 1
        c = self._by_prefix.get(key[:end])
        if c is None:
            group, _, plural = key[len(ROOT):end - 1].partition("/")
            c = self.collection("" if group == "core" else group, plural)
        return c

    def load(self, entries: Iterable[Entry], revision: int) -> None:
        for entry in entries:
            self._of(entry.key).load(entry)
        self.revision = revision
        for c in self.collections.values():
            c.window_after = c.changed = revision           # what was deleted last left no entry to tell when

    def feed(self, batch: Iterable[Event]) -> None:
        """A batch of the store's events, in order."""
        touched: dict[int, tuple[Collection, list[Change]]] = {}
        for change in self._parsed:
            change.seen.clear()
        self._encoded.extend(self._parsed)
        while len(self._encoded) > ENCODED_CHANGES_MAX:
            self._encoded.popleft().forget()
        self._parsed = []
        for event in batch:
            if event.revision <= self.revision:
                continue          # already in what was loaded
            self.revision = event.revision
            c = self._of(event.key)
            change = c.take(event)
            offered = self.offered.pop(id(event.value), None)
            if offered is not None and c.listeners and len(change.item.body) <= KEPT_OBJECT_MAX_BYTES:
                change.item.take(offered)
                change.offered = True
            if c.listeners:
                entry = touched.get(id(c))
                if entry is None:
                    touched[id(c)] = (c, [change])
                else:
                    entry[1].append(change)
        for c, changes in touched.values():
            for listener in tuple(c.listeners):
                listener(changes)
            self._parsed += changes          # whoever reads objects does so at the end of this turn of the loop
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    def next_batch(self) -> Awaitable[None]:
        """Done when the next batch has been taken in."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._next)

    def revision_of(self, key: str) -> int:
        """The revision of the entry under a store key, 0 if there is none."""
        c = self._of(key)
        item = c.items.get(key[len(c.prefix):])
        return item.revision if item else 0

    # --- the reader that admission and authorization use ---

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """"deployments.apps" or "pods"; the stored object for reading, with resourceVersion and without kind and apiVersion."""
        plural, _, group = resource.partition(".")
        c = self.collections.get((group, plural))
        item = c.items.get(f"{namespace}/{name}" if namespace else name) if c else None
        return item.peek() if item else None

    def changed(self, resource: str) -> int:
        """The revision of the newest change of a collection; 0 where there never was one."""
        plural, _, group = resource.partition(".")
        c = self.collections.get((group, plural))
        return c.changed if c is not None else 0

    def list(self, resource: str, namespace: str | None = None) -> Iterator[Object]:
        plural, _, group = resource.partition(".")
        c = self.collections.get((group, plural))
        if c is not None:
            for item in c.range(namespace or ""):
                yield item.peek()
