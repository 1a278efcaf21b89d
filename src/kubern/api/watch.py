"""Watch: who is told of a change, in which form, from which revision on.

Watchers of the same collection, namespace, selectors and form share a Channel: it selects each change once, makes its line once and joins
the lines of a moment once; every member gets the same bytes. A change never waits for a watcher: one that cannot keep up is cut off
and lists again. A watch opens with what it asked for (the state, or the changes since a revision) while live changes queue behind it.
Custom resources that a webhook must convert first wait for it in their channel, in order; other channels go on.
Rules: KEP-365 (bookmarks), KEP-3157 (sendInitialEvents), API concepts "Efficient detection of changes".
Upstream: apiserver storage/cacher, endpoints/handlers/watch.go.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import orjson

from kubern.api.cache import Cache, Change, Collection, Item, body_of
from kubern.api.forms import Form, TableForm
from kubern.api.options import ListOptions
from kubern.model.object import Object
from kubern.model.resources import field_value
from kubern.model.status import StatusError, gone
from kubern.store.protocol import Compacted, Store

QUEUE_BYTES_MAX = 64 * 1024 * 1024     # what waits for an in-process watcher, or behind the opening of any, before it is cut off
OBJECT_BYTES = 2000                    # what an event waiting as an object is counted as
INITIAL_CHUNK_ITEMS = 500
HELD_CHANGES_MAX = 4096                # what waits for a conversion webhook before the channel is cut off
SYNC_ITEMS_MAX = 200                   # openings up to this size are written at once, without a task
BOOKMARK_EVERY_S = 60.0
COALESCE_MEMBERS = 16                  # from so many members on, changes wait a moment to be joined: a moment that grows with them,
COALESCE_MEMBER_S = 0.00006            # because each flush costs a record and a system call a member
COALESCE_MAX_S = 0.02
INDEXED = ("metadata.name", "spec.nodeName")   # exact field terms by which channels are found without asking each

Events = list[tuple[str, Object]]


class Sink(Protocol):
    """Where a watch's bytes go. `write` gives False when the reader is too far behind."""

    def write(self, payload: bytes, framed: bytes) -> bool: ...

    async def drain(self) -> None: ...

    def finish(self) -> None: ...


def frame(payload: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _index_value(change: Change, item: Item, path: str) -> str:
    if path == "metadata.name":
        return item.name
    obj = item.index
    value = obj.get(path)
    if value is None:
        value = obj[path] = field_value(change.object(item), path)
    return value


class Channel:
    """Watchers who see the same bytes."""

    def __init__(self, hub: Hub, key: Any, form: Form, namespace: str, options: ListOptions) -> None:
        self.hub, self.key, self.form, self.namespace, self.options = hub, key, form, namespace, options
        self.members: list[Watch] = []
        self.pending: list[tuple[Change, str, Item]] = []
        self.waiting = False              # a flush is due after a moment
        self.held: deque[list[Change]] = deque()          # changes whose objects are being converted
        self._task: asyncio.Task[None] | None = None
        self.everything = options.everything
        self.plain_name = options.exact("metadata.name") if len(options.terms) == 1 and options.labels.empty else None

    def matches(self, change: Change, item: Item) -> bool:
        if self.namespace and item.namespace != self.namespace:
            return False
        if self.everything:
            return True
        if self.plain_name is not None:
            return item.name == self.plain_name
        return self.form.served.selected(self.options, item, change.object(item))

    def select(self, change: Change) -> tuple[str, Item] | None:
        """What this change is for these watchers: its type and the state to show, or None."""
        if self.everything:
            if self.namespace and change.item.namespace != self.namespace:
                return None
            return change.type, change.item
        old = change.old
        was = old is not None and self.matches(change, old)
        if change.type == "DELETED":
            return ("DELETED", change.item) if was else None
        if self.matches(change, change.item):
            return ("MODIFIED" if was else "ADDED"), change.item
        if was and old is not None:
            left = change.left
            if left is None:
                left = change.left = Item(old.key, body_of(old.value, change.revision), change.revision, old.created)
                left.shapes = old.shapes
            return "DELETED", left
        return None

    def take(self, changes: list[Change]) -> None:
        if self.converts:
            self._hold(changes)
            return
        self._take(changes)

    @property
    def converts(self) -> bool:
        """Whether objects must have been converted by a webhook before they are selected and shown."""
        return self.form.served.webhook is not None and (self.form.whole or self.options.of_fields)

    def concerned(self, changes: list[Change]) -> list[Item]:
        """What may be shown of changes, or asked for its fields."""
        items = [c.item for c in changes]
        if not self.everything:
            items += [c.old for c in changes if c.old is not None]
        return [i for i in items if not self.namespace or i.namespace == self.namespace]

    def _hold(self, changes: list[Change]) -> None:
        self.held.append(changes)
        if sum(map(len, self.held)) > HELD_CHANGES_MAX:
            self._cut(b"")
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._let_go())

    async def _let_go(self) -> None:
        """Takes what is held, once it has been converted."""
        try:
            while self.held and self.members:
                changes = self.held[0]
                await self.form.served.ready(self.concerned(changes))
                if not self.held or self.held[0] is not changes:
                    continue                 # everybody was cut off meanwhile
                self._take(changes)
                self.flush()
                for change in changes:
                    change.seen.clear()
                self.held.popleft()
        except StatusError as e:
            self._cut(_error(e))
        finally:
            self._task = None
            self.held.clear()

    def _cut(self, last: bytes) -> None:
        """Ends all members: each lists again."""
        self.held.clear()
        for member in tuple(self.members):
            if last and not member.objects:
                member.push(last, frame(last))
            member.end()

    def _take(self, changes: list[Change]) -> None:
        for change in changes:
            selected = self.select(change)
            if selected is not None:
                self.pending.append((change, *selected))
        if self.pending:
            self.hub.schedule(self)

    def flush(self) -> None:
        self.waiting = False
        entries, self.pending = self.pending, []
        if not entries or not self.members:
            return
        form = self.form
        payload = framed = b""
        objects: list[tuple[str, Object]] = []
        self.hub.delivered += len(entries) * len(self.members)
        for member in tuple(self.members):
            if member.objects:
                if not objects:
                    objects = [(type_, form.shared(change, item)) for change, type_, item in entries]
                member.push_objects(objects if member.opened_at < entries[0][0].revision else
                                    [o for o, e in zip(objects, entries, strict=True) if e[0].revision > member.opened_at])
                continue
            if not payload:
                payload = b"".join([form.line(*e) for e in entries])
                framed = frame(payload)
            if member.headers_due:
                own = member.lines([e for e in entries if e[0].revision > member.opened_at])
                if own:
                    member.push(own, frame(own))
            elif member.opened_at >= entries[0][0].revision:
                own = b"".join([form.line(*e) for e in entries if e[0].revision > member.opened_at])
                if own:
                    member.push(own, frame(own))
            else:
                member.push(payload, framed)


class Hub:
    """The channels of one collection."""

    def __init__(self, collection: Collection, cache: Cache, store: Store) -> None:
        self.collection, self.cache, self.store = collection, cache, store
        self.channels: dict[Any, Channel] = {}
        self.plain: dict[Channel, None] = {}
        self.indexed: dict[str, dict[str, list[Channel]]] = {}
        self._due: dict[Channel, None] = {}
        self._timer: asyncio.Handle | None = None
        self._bookmarks: asyncio.TimerHandle | None = None
        self.watchers = 0
        self.delivered = 0

    def join(self, watch: Watch) -> Channel:
        o = watch.options
        key = (watch.form.served.row.api_version, watch.form.key, watch.namespace, o.labels_text, o.fields_text)
        channel = self.channels.get(key)
        if channel is None:
            channel = self.channels[key] = Channel(self, key, watch.form, watch.namespace, o)
            for path in INDEXED:
                value = o.exact(path)
                if value is not None:
                    self.indexed.setdefault(path, {}).setdefault(value, []).append(channel)
                    break
            else:
                self.plain[channel] = None
        elif channel.pending:
            channel.flush()      # what waits there is part of the newcomer's opening already
        channel.members.append(watch)
        self.watchers += 1
        if self.watchers == 1:
            self.collection.listeners.append(self.listen)
            self._bookmarks = asyncio.get_running_loop().call_later(BOOKMARK_EVERY_S * random.uniform(0.9, 1.1), self._bookmark)
        return channel

    def leave(self, channel: Channel, watch: Watch) -> None:
        channel.members.remove(watch)
        self.watchers -= 1
        if not channel.members:
            del self.channels[channel.key]
            self.plain.pop(channel, None)
            for path, table in list(self.indexed.items()):
                for value, channels in list(table.items()):
                    if channel in channels and channel.options.exact(path) == value:
                        channels.remove(channel)
                        if not channels:
                            del table[value]
                if not table:
                    del self.indexed[path]
        if not self.watchers:
            self.collection.listeners.remove(self.listen)
            if self._bookmarks is not None:
                self._bookmarks.cancel()

    def listen(self, changes: list[Change]) -> None:
        for channel in self.plain:
            channel.take(changes)
        for path, table in self.indexed.items():
            found: dict[Channel, list[Change]] = {}
            for change in changes:
                now = _index_value(change, change.item, path)
                before = _index_value(change, change.old, path) if change.old is not None else now
                for channel in table.get(now, ()):
                    found.setdefault(channel, []).append(change)
                if before != now:
                    for channel in table.get(before, ()):
                        found.setdefault(channel, []).append(change)
            for channel, some in found.items():
                channel.take(some)

    def schedule(self, channel: Channel) -> None:
        members = len(channel.members)
        if members >= COALESCE_MEMBERS:
            if not channel.waiting:
                channel.waiting = True
                asyncio.get_running_loop().call_later(min(COALESCE_MAX_S, members * COALESCE_MEMBER_S), channel.flush)
            return
        self._due[channel] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._timer = None
        due, self._due = self._due, {}
        for channel in due:
            channel.flush()

    def _bookmark(self) -> None:
        """Tells those who asked which revision they have reached."""
        for channel in tuple(self.channels.values()):
            channel.flush()
            if channel.held:
                continue
            payload = framed = b""
            for member in tuple(channel.members):
                if member.options.bookmarks and not member.opening:
                    if not payload:
                        payload = channel.form.bookmark(max(self.cache.revision, 1), False)
                        framed = frame(payload)
                    member.push(payload, framed)
        self._bookmarks = asyncio.get_running_loop().call_later(BOOKMARK_EVERY_S * random.uniform(0.9, 1.1), self._bookmark)


def _error(e: StatusError) -> bytes:
    return orjson.dumps({"type": "ERROR", "object": e.status()}) + b"\n"


def _expired(after: int, oldest: int) -> bytes:
    return _error(gone(f"too old resource version: {after} ({oldest})"))


class Watch:
    """One watch: the body of its response. HTTP attaches a Sink; in process it is iterated, a chunk being whole lines."""

    def __init__(self, hub: Hub, form: Form, namespace: str, options: ListOptions, version: int, timeout_s: float) -> None:
        self.hub, self.form, self.namespace, self.options, self.timeout_s = hub, form, namespace, options, timeout_s
        self.headers_due = isinstance(form, TableForm)
        self.objects = False                    # an in-process reader takes events as shared objects
        self.opening = True
        self._waiting: list[tuple[Any, bytes]] = []        # (bytes, framed), or (events as objects, b"")
        self._waiting_bytes = 0
        self._sink: Sink | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.ended = False
        self.on_end: Callable[[Watch], None] | None = None
        self._version = version
        self._items: list[Item] = []
        self._changes: list[Change] = []
        self._history = 0                       # read the store's history after this revision first; 0 = no need
        self._error = b""
        self.after = 0                          # changes up to here were not asked for
        self.opened_at = 0                      # and of live ones up to here not either: they are part of the opening
        self._until = self._revision = 0
        self.channel: Channel | None = None

    def _begin(self) -> None:
        """Joins the channel and takes note, at the same moment, of what the watch opens with."""
        collection, options, version = self.hub.collection, self.options, self._version
        state = options.initial_events if options.initial_events is not None else not version
        now = self.hub.cache.revision
        if state:
            self._items = collection.range(self.namespace)
        elif version:
            self.after = version if version > now else 0
            changes = collection.since(version)
            if version == 1:                    # the empty store of upstream's etcd: clients send it to mean "long ago"
                self._error = _expired(version, max(collection.window_after, now))
            elif changes is None:
                if collection.changed > version:
                    self._history = version
            else:
                self._changes = changes
        self._until = self._revision = now
        self.channel = self.hub.join(self)
        self.opened_at = max(self.after, now if self.channel.held else 0)

    # --- the opening ---

    def _select_items(self, items: list[Item]) -> list[Item]:
        channel, o = self.channel, self.options
        assert channel is not None
        if channel.everything:
            return items
        if channel.plain_name is not None:
            return [i for i in items if i.name == channel.plain_name]
        return [i for i in items if channel.form.served.selected(o, i, i.read())]

    def lines(self, entries: list[tuple[Change, str, Item]]) -> bytes:
        """Entries for this member alone, with the Table's header on the first."""
        out = []
        for change, type_, item in entries:
            if change.revision <= self.after:
                continue
            if self.headers_due and isinstance(self.form, TableForm):
                self.headers_due = False
                out.append(self.form.event(type_, item, True))
            else:
                out.append(self.form.line(change, type_, item))
        return b"".join(out)

    def _added(self, items: list[Item]) -> bytes:
        out = []
        for item in items:
            if self.headers_due and isinstance(self.form, TableForm):
                self.headers_due = False
                out.append(self.form.event("ADDED", item, True))
            else:
                out.append(self.form.event("ADDED", item))
        return b"".join(out)

    def _replay(self, changes: list[Change]) -> bytes:
        entries = []
        assert self.channel is not None
        for change in changes:
            selected = self.channel.select(change)
            if selected is not None:
                entries.append((change, *selected))
        data = self.lines(entries)
        for change in changes:
            change.seen.clear()
        return data

    def _end_of_opening(self) -> bytes:
        if self.options.initial_events and self.options.bookmarks:
            return self.form.bookmark(max(self._revision, 1), True)
        return b""

    def attach(self, sink: Sink) -> None:
        """Starts the flow. Everything goes to the sink from now on, `finish` last."""
        self._sink = sink
        if self.ended:
            sink.finish()
            return
        self._begin()
        loop = asyncio.get_running_loop()
        if self.timeout_s > 0:
            self._timer = loop.call_later(self.timeout_s, self.end)
        if self._error:
            self._send(self._error)
            self.end()
            return
        waits = self.channel is not None and self.channel.converts and bool(self._items or self._changes)
        if self._history or waits or len(self._items) > SYNC_ITEMS_MAX:
            self._task = loop.create_task(self._open())
            return
        data = self._added(self._select_items(self._items)) if self._items else b""
        if self._changes:
            data += self._replay(self._changes)
        self._items, self._changes = [], []
        data += self._end_of_opening()
        if data:
            self._send(data)
        self._go_live()

    async def _open(self) -> None:
        sink, channel = self._sink, self.channel
        assert sink is not None and channel is not None
        served = self.form.served
        try:
            if self._history:
                try:
                    async for batch in self.hub.store.watch(self.hub.collection.prefix, self._history, self._until):
                        changes = [_past(self.hub.collection, e) for e in batch if e.revision <= self._until]
                        if channel.converts:
                            await served.ready(channel.concerned(changes))
                        data = self._replay(changes)
                        if data:
                            self._send(data)
                            await sink.drain()
                except Compacted as e:
                    self._send(_expired(self._history, e.revision))
                    self.end()
                    return
            items, self._items = self._items, []
            changes, self._changes = self._changes, []
            if channel.converts:
                await served.ready([*items, *channel.concerned(changes)])
            for at in range(0, len(items), INITIAL_CHUNK_ITEMS):
                data = self._added(self._select_items(items[at:at + INITIAL_CHUNK_ITEMS]))
                if data:
                    self._send(data)
                    await sink.drain()
                await asyncio.sleep(0)
            if changes and (data := self._replay(changes)):
                self._send(data)
            end = self._end_of_opening()
            if end:
                self._send(end)
            self._go_live()
        except (ConnectionError, OSError):
            self.end()
        except StatusError as e:
            self._send(_error(e))
            self.end()

    def _send(self, data: bytes) -> None:
        if self._sink is not None and not self.ended:
            self._sink.write(data, frame(data))

    def _go_live(self) -> None:
        self.opening = False
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        for payload, framed in waiting:
            if payload.__class__ is list:
                self.push_objects(payload)
            else:
                self.push(payload, framed)

    # --- live ---

    def push(self, payload: bytes, framed: bytes) -> None:
        if self.ended:
            return
        if self.opening:
            self._waiting.append((payload, framed))
            self._waiting_bytes += len(payload)
            if self._waiting_bytes > QUEUE_BYTES_MAX:
                self.end()
        elif self._sink is not None and not self._sink.write(payload, framed):
            self.end()

    def push_objects(self, events: Events) -> None:
        """The same for a reader in this process that takes objects."""
        if self.ended or not events:
            return
        if self.opening:
            self._waiting.append((events, b""))
            self._waiting_bytes += len(events) * OBJECT_BYTES
            if self._waiting_bytes > QUEUE_BYTES_MAX:
                self.end()
        elif isinstance(self._sink, _QueueSink) and not self._sink.write_objects(events):
            self.end()

    def end(self) -> None:
        """The watch is over: by its timeout, by its reader, or because the reader was too slow."""
        if self.ended:
            return
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self.channel is not None:
            self.hub.leave(self.channel, self)
        self._waiting.clear()
        self._items, self._changes = [], []
        if self._sink is not None:
            self._sink.finish()
        if self.on_end is not None:
            self.on_end(self)

    # --- in process ---

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[bytes]:
        queue = _QueueSink()
        self.attach(queue)
        try:
            while True:
                chunk = await queue.get()
                if not chunk:
                    return
                yield chunk
        finally:
            self.end()

    async def events(self) -> AsyncIterator[Events]:
        """Batches of (type, object) for a reader in this process who asked for objects. They are shared: reading only."""
        queue = _QueueSink()
        self.attach(queue)
        served = self.form.served
        try:
            while True:
                await queue.some()
                while (chunk := queue.take()) is not None:
                    if chunk.__class__ is list:
                        yield chunk
                        continue
                    out = []
                    for line in chunk.splitlines():             # the opening, bookmarks, errors: in the form of everybody
                        event = orjson.loads(line)
                        if self.form.key != "json" and event["type"] != "ERROR":
                            event["object"]["kind"], event["object"]["apiVersion"] = served.row.kind, served.row.api_version
                        out.append((event["type"], event["object"]))
                    yield out
                if queue.finished:
                    return
        finally:
            self.end()


def _past(collection: Collection, event: Any) -> Change:
    """A change out of the store's history."""
    key = event.key[len(collection.prefix):]
    previous = event.previous
    old = Item(key, body_of(previous.value, previous.revision), previous.revision, previous.create_revision) if previous else None
    if event.value is None:
        last = previous.value if previous else b'"name":""}}'
        return Change("DELETED", Item(key, body_of(last, event.revision), event.revision, event.revision), old, event.revision)
    created = previous.create_revision if previous else event.revision
    return Change("MODIFIED" if old else "ADDED", Item(key, body_of(event.value, event.revision), event.revision, created), old, event.revision)


class _QueueSink:
    """The sink of an in-process reader: a bounded queue of chunks, or of batches of objects."""

    def __init__(self) -> None:
        self._chunks: deque[Any] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self.finished = False

    def write(self, payload: bytes, framed: bytes) -> bool:
        self._chunks.append(payload)
        self._size += len(payload)
        self._wake.set()
        return self._size <= QUEUE_BYTES_MAX

    def write_objects(self, events: Events) -> bool:
        self._chunks.append(events)
        self._size += len(events) * OBJECT_BYTES
        self._wake.set()
        return self._size <= QUEUE_BYTES_MAX

    async def drain(self) -> None:
        while self._size > QUEUE_BYTES_MAX // 4 and not self.finished:
            self._room.clear()
            await self._room.wait()

    def finish(self) -> None:
        self.finished = True
        self._wake.set()
        self._room.set()

    async def some(self) -> None:
        """Until there is something, or the end."""
        while not self._chunks and not self.finished:
            self._wake.clear()
            await self._wake.wait()

    def take(self) -> Any:
        """What came next, or None."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._size -= len(chunk) * (OBJECT_BYTES if chunk.__class__ is list else 1)
        self._room.set()
        return chunk

    async def get(self) -> bytes:
        """The next chunk; b"" at the end."""
        await self.some()
        if not self._chunks:
            return b""
        if len(self._chunks) == 1:
            chunk: bytes = self._chunks.popleft()
        else:
            chunk = b"".join(self._chunks)
            self._chunks.clear()
        self._size -= len(chunk)
        self._room.set()
        return chunk


__all__ = ["Channel", "Hub", "Sink", "Watch", "frame"]
