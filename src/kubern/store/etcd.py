"""The etcd store: an unmodified etcd v3, for more than one API server on one state. Revisions are etcd's own.

A write is one transaction that compares the key's mod revision; it is answered when the one watch over all our keys has shown it, so
subscribers see every event, ours and other servers', in order and before the writer goes on. What another server has written may not
have reached us yet: `caught_up` asks etcd where it stands and waits for the watch to get there. Progress notifications on request are
not used for that: etcd before 3.4.25 and 3.5.8 may send them ahead of events; a write to a mark of ours cannot be overtaken. A state that was moved
here from elsewhere must not begin anew at revision 1: the mark's value is a number that is added to all of etcd's revisions (0 as a rule).
URL: etcd://HOST:PORT[,HOST:PORT…][/prefix][?ca=FILE&cert=FILE&key=FILE]. Not a manager of etcd: it is started, backed up and defragmented elsewhere.
Model: etcd v3 KV and Watch (Documentation, "API guarantees"); apiserver storage/etcd3; KEP-2340 (consistent reads from a cache).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import grpc.aio

from kubern.store.etcd_wire import DELETED, EQUAL, GREATER, MOD, VERSION, message
from kubern.store.feed import Feed, keep, upper
from kubern.store.protocol import Batch, Broken, Compacted, Conflict, Entry, Event, Future, TooLarge, Unavailable

log = logging.getLogger(__name__)

PAGE_KEYS = 1_000                      # keys asked for at a time
MESSAGE_BYTES_MAX = 512 << 20
CALL_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 30.0              # how long a write waits to come back through the watch
RETRY_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
GRACE_S = 0.05                         # how long a read waits for events of others before it writes the mark
MARK = "kubern-mark"                   # our own key below the root; never shown

_UNARY = {"Range": "KV", "Put": "KV", "Txn": "KV", "Compact": "KV"}
_OPTIONS = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000), ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000), ("grpc.enable_retries", 0)]
_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def _target(netloc: str) -> str:
    """A gRPC target that tries every endpoint in turn. Raises ValueError, OSError."""
    addresses: list[tuple[int, str, int]] = []
    for endpoint in netloc.split(","):
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"an etcd endpoint is HOST:PORT, not {endpoint!r}")
        family, _, _, _, at = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        addresses.append((family, str(at[0]), int(port)))
    if all(f == socket.AF_INET for f, _, _ in addresses):
        return "ipv4:" + ",".join(f"{host}:{n}" for _, host, n in addresses)
    return "ipv6:" + ",".join(f"[{host}]:{n}" for f, host, n in addresses if f == socket.AF_INET6)


def _channel(url: str) -> tuple[Any, str]:
    """The channel and the key prefix of a URL."""
    parts = urlsplit(url)
    query = {k: v[0] for k, v in parse_qs(parts.query).items()}
    target = _target(parts.netloc)
    options: list[tuple[str, Any]] = list(_OPTIONS)
    if query:
        read = {k: Path(query[k]).read_bytes() if k in query else None for k in ("ca", "cert", "key")}
        host = parts.netloc.split(",")[0].rpartition(":")[0].strip("[]")
        options.append(("grpc.ssl_target_name_override", host))
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(read["ca"], read["key"], read["cert"]), options), parts.path.rstrip("/")
    return grpc.aio.insecure_channel(target, options), parts.path.rstrip("/")


class EtcdStore:
    """Open with `await EtcdStore.open(url)`. `root`: the start of all our keys; what lies beside it is not ours and is not seen."""

    def __init__(self, channel: Any, prefix: str, root: str, on_broken: Callable[[Exception], None] | None = None) -> None:
        self._channel, self._prefix, self._root, self._on_broken = channel, prefix, root, on_broken
        self._calls = {name: channel.unary_unary(
            f"/etcdserverpb.{service}/{name}", request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=message("CompactionResponse" if name == "Compact" else f"{name}Response").FromString)
            for name, service in _UNARY.items()}
        self._watching = channel.stream_stream("/etcdserverpb.Watch/Watch", request_serializer=lambda m: m.SerializeToString(),
                                               response_deserializer=message("WatchResponse").FromString)
        self._feed = Feed()
        self._offset = 0                                   # ours minus etcd's
        self._revision = 0
        self._forgotten = 0                                # before this revision, as far as we had it compacted
        self._newest_event = 0                             # revision of the newest event of our keys, the mark's included
        self._broken: Exception | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self._tails: dict[str, asyncio.Future[None]] = {}  # key -> end of the last write to it that is on its way
        self._writes: set[asyncio.Task[int]] = set()
        self._follower: asyncio.Task[None] | None = None
        self._next_look: asyncio.Future[int] | None = None
        self._looker: asyncio.Task[None] | None = None
        self._marker: asyncio.Task[int] | None = None

    @classmethod
    async def open(cls, url: str, *, root: str = "/registry/", on_broken: Callable[[Exception], None] | None = None) -> EtcdStore:
        """Raises Broken where no etcd answers, ValueError for a URL that is none."""
        try:
            channel, prefix = _channel(url)
        except OSError as e:
            raise Broken(f"{url}: {e}") from e
        self = cls(channel, prefix, root, on_broken)
        try:
            await self._settle()
        except Unavailable as e:
            await channel.close()
            raise Broken(f"etcd at {url} does not answer: {e}") from e
        self._follower = asyncio.get_running_loop().create_task(self._follow(), name="etcd watch")
        return self

    async def _settle(self, offset: int = -1) -> None:
        """Reads the offset, or sets it, and takes our place in etcd's log."""
        if offset < 0:
            r = await self._call("Range", message("RangeRequest")(key=self._key(self._root + MARK)))
            offset = int(r.kvs[0].value or b"0") if r.kvs else 0
        self._offset = offset
        self._revision = self._newest_event = await self._mark()

    # --- calls ---

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _end(self, prefix: str) -> bytes:
        return upper(self._prefix + prefix).encode()

    def _entry(self, kv: Any) -> Entry:
        return Entry(kv.key[len(self._prefix.encode()):].decode(), kv.value, kv.create_revision + self._offset, kv.mod_revision + self._offset)

    def _theirs(self, revision: int) -> int:
        """etcd's number for a revision; for one from before the state was moved here 1, under which etcd has no key."""
        return max(revision - self._offset, 1) if revision else 0

    def _readable(self, revision: int) -> int:
        """The same for reading."""
        if 0 < revision <= self._offset:
            raise Compacted(self._offset + 1)
        return self._theirs(revision)

    async def _call(self, name: str, request: Any, *, again: bool = True) -> Any:
        """One call; reads are repeated while etcd has no leader or is away, writes are not: they may have happened."""
        for pause_s in (*RETRY_S, None) if again else (None,):
            if self._broken is not None:
                raise self._broken
            try:
                return await self._calls[name](request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as e:
                text = e.details() or ""
                if "has been compacted" in text:
                    raise Compacted(await self._compacted()) from None
                if "future revision" in text:
                    raise Future(text) from None
                if "too large" in text or "larger than max" in text:
                    raise TooLarge(text) from None
                if e.code() not in _TRANSIENT or pause_s is None:
                    raise Unavailable(text or str(e.code())) from None
                await asyncio.sleep(pause_s)
            except asyncio.CancelledError:
                if self._broken is not None:               # the channel was closed under us
                    raise self._broken from None
                raise
        raise AssertionError("unreachable")

    async def _compacted(self) -> int:
        """The oldest revision that can be asked for."""
        async for response in self._history(1):
            return int(response.compact_revision) + self._offset
        raise AssertionError("unreachable")

    # --- reads ---

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def compacted(self) -> int:
        return self._forgotten

    async def get(self, key: str, *, revision: int = 0) -> Entry | None:
        r = await self._call("Range", message("RangeRequest")(key=self._key(key), revision=self._readable(revision)))
        return self._entry(r.kvs[0]) if r.kvs else None

    async def list(self, prefix: str, *, start: str = "", limit: int = 0, revision: int = 0) -> tuple[list[Entry], int]:
        out: list[Entry] = []
        prefix = prefix if prefix.startswith(self._root) else self._root if self._root.startswith(prefix) else prefix
        at, end, mark = self._key(max(prefix, start)), self._end(prefix), self._root + MARK
        while True:
            n = min(PAGE_KEYS, limit - len(out) + 1) if limit else PAGE_KEYS         # one more: the mark may be among them
            r = await self._call("Range", message("RangeRequest")(key=at, range_end=end, limit=n, revision=self._readable(revision)))
            revision = revision or r.header.revision + self._offset
            out += [self._entry(kv) for kv in r.kvs]
            out = [e for e in out if e.key != mark]
            if not r.more or (limit and len(out) >= limit):
                return (out[:limit] if limit else out), revision
            at = r.kvs[-1].key + b"\0"

    async def caught_up(self) -> None:
        """Returns when everything that etcd had acknowledged when this was called has been delivered here. One question to etcd answers
        all who ask meanwhile."""
        if self._broken is not None:
            raise self._broken
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().create_future()
            if self._looker is None or self._looker.done():
                self._looker = asyncio.get_running_loop().create_task(self._look(), name="etcd look")
        revision = await asyncio.shield(self._next_look)
        if self._revision >= revision:
            return
        try:
            async with asyncio.timeout(GRACE_S):
                await self._reached(revision)
        except TimeoutError:
            if self._marker is None or self._marker.done():
                self._marker = asyncio.get_running_loop().create_task(self._mark(), name="etcd mark")
                self._marker.add_done_callback(_retrieved)
            await self._reached(await asyncio.shield(self._marker))

    async def _look(self) -> None:
        while self._next_look is not None:
            waiting, self._next_look = self._next_look, None
            try:
                r = await self._call("Range", message("RangeRequest")(key=self._key(self._root + MARK), count_only=True))
                waiting.set_result(r.header.revision + self._offset)
            except Exception as e:
                waiting.set_exception(e)
                waiting.exception()

    async def _mark(self) -> int:
        r = await self._call("Put", message("PutRequest")(key=self._key(self._root + MARK), value=b"%d" % self._offset))
        return int(r.header.revision) + self._offset

    # --- writes ---

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        return await self._write(key, value, expect)

    async def delete(self, key: str, *, expect: int | None = None) -> int:
        return await self._write(key, None, expect)

    async def _write(self, key: str, value: bytes | None, expect: int | None) -> int:
        if self._broken is not None:
            raise self._broken
        task = asyncio.get_running_loop().create_task(self._transact(key, value, expect))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        task.add_done_callback(_retrieved)
        return await asyncio.shield(task)

    async def _transact(self, key: str, value: bytes | None, expect: int | None) -> int:
        """Writes to one key go one after the other, in the order they were asked for; writes to several side by side."""
        before, mine = self._tails.get(key), asyncio.get_running_loop().create_future()
        self._tails[key] = mine
        try:
            if before is not None:
                await before
            revision = await self._commit(key, value, expect)
        finally:
            mine.set_result(None)
            if self._tails.get(key) is mine:
                del self._tails[key]
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_S):
                await self._reached(revision)
        except TimeoutError:
            raise Unavailable("etcd took the write and its watch does not show it") from None
        return revision

    async def _commit(self, key: str, value: bytes | None, expect: int | None) -> int:
        k, op, compare = self._key(key), message("RequestOp"), message("Compare")
        if value is None:
            do = op(request_delete_range=message("DeleteRangeRequest")(key=k))
        else:
            do = op(request_put=message("PutRequest")(key=k, value=value))
        conditions = []
        if expect is not None:
            conditions.append(compare(result=EQUAL, target=MOD, key=k, mod_revision=self._theirs(expect)))
        if value is None and not expect:
            conditions.append(compare(result=GREATER, target=VERSION, key=k, version=0))
        r = await self._call("Txn", message("TxnRequest")(compare=conditions, success=[do], failure=[op(request_range=message("RangeRequest")(key=k))]),
                             again=False)
        if not r.succeeded:
            kvs = r.responses[0].response_range.kvs
            raise Conflict(key, self._entry(kvs[0]) if kvs else None)
        return int(r.header.revision) + self._offset

    # --- events ---

    def subscribe(self, callback: Callable[[Batch], None]) -> Callable[[], None]:
        return self._feed.subscribe(callback)

    def _event(self, e: Any) -> Event:
        kv = e.kv
        key = kv.key[len(self._prefix.encode()):].decode()
        previous = self._entry(e.prev_kv) if e.HasField("prev_kv") else None
        return Event(kv.mod_revision + self._offset, key, None if e.type == DELETED else kv.value, previous)

    async def _history(self, after: int) -> AsyncIterator[Any]:
        """The responses of a watch over all our keys after a revision. The event at that revision itself may come first: asked for as well,
        since a watch from a compacted revision is ended by etcd, and the one after it is not."""
        call = self._watching()
        try:
            await call.write(message("WatchRequest")(create_request=message("WatchCreateRequest")(
                key=self._key(self._root), range_end=self._end(self._root), start_revision=max(self._theirs(after), 1), prev_kv=True)))
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    raise Unavailable("etcd has ended a watch")
                if response.canceled and not response.compact_revision:
                    raise Unavailable(f"etcd has ended a watch: {response.cancel_reason}")
                if response.canceled or not response.created:
                    yield response
        except grpc.aio.AioRpcError as e:
            raise Unavailable(e.details() or str(e.code())) from None
        finally:
            call.cancel()

    async def _follow(self) -> None:
        """The one watch; begins again where it was broken off. If etcd has forgotten what we have not seen, the store is broken."""
        pauses = 0
        while True:
            try:
                async for response in self._history(self._revision):
                    pauses = 0
                    if response.canceled:
                        self._break(f"etcd has forgotten what came after revision {self._revision}")
                        return
                    self._take(response)
            except Unavailable as e:
                pause_s = RETRY_S[min(pauses, len(RETRY_S) - 1)]
                pauses += 1
                log.log(logging.INFO if pauses == 1 else logging.WARNING, "watch of etcd: %s; again in %.2g s", e, pause_s)
                await asyncio.sleep(pause_s)
            except asyncio.CancelledError:
                raise
            except Exception as e:
                log.exception("watch of etcd")
                self._break(str(e))
                return

    def _take(self, response: Any) -> None:
        if not response.events or response.events[-1].kv.mod_revision + self._offset <= self._revision:
            return
        mark = self._root + MARK
        events = [e for e in map(self._event, response.events) if e.key != mark and e.revision > self._revision]
        self._revision = self._newest_event = response.events[-1].kv.mod_revision + self._offset
        if events:
            self._feed.deliver(events)
        while self._waiting and self._waiting[0][0] <= self._revision:
            done = heapq.heappop(self._waiting)[2]
            if not done.done():
                done.set_result(None)

    async def _reached(self, revision: int) -> None:
        if self._revision >= revision:
            return
        if self._broken is not None:
            raise self._broken
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (revision, next(self._count), done))
        await done

    async def _page(self, prefix: str, after: int, limit: int) -> tuple[Batch, int]:
        if self._broken is not None:
            raise self._broken
        target = self._newest_event
        if after >= target:
            return [], max(after, self._revision)
        if after < self._offset:
            raise Compacted(self._offset + 1)              # from before the state was moved here
        out: Batch = []
        mark = self._root + MARK
        first = after
        async for response in self._history(after):
            if response.canceled:
                raise Compacted(response.compact_revision + self._offset)
            for raw in response.events:
                event = self._event(raw)
                if event.revision <= first:
                    continue
                if event.key.startswith(prefix) and event.key != mark:
                    out.append(event)
                after = event.revision
                if len(out) >= limit or after >= target:
                    return out, after
        return out, after

    def watch(self, prefix: str, after: int, until: int = 0) -> AsyncIterator[Batch]:
        return self._feed.watch(prefix, after, lambda: self._revision, self._page, until)

    async def take_over(self, entries: Sequence[Entry], revision: int) -> None:
        """Fills an empty state with entries from elsewhere; every revision from now on is greater than `revision`. Raises Broken if not empty."""
        have, _ = await self.list(self._root, limit=1)
        if have:
            raise Broken(f"there is a state in this etcd already: {have[0].key}")
        newest = (await self._call("Range", message("RangeRequest")(key=self._key(self._root + MARK), count_only=True))).header.revision
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self._settle(max(revision - newest, 0))
        self._follower = asyncio.get_running_loop().create_task(self._follow(), name="etcd watch")
        for i in range(0, len(entries), PAGE_KEYS):
            await asyncio.gather(*(self.put(e.key, e.value, expect=0) for e in entries[i:i + PAGE_KEYS]))

    # --- life ---

    async def compact(self, revision: int) -> None:
        try:
            await self._call("Compact", message("CompactionRequest")(revision=self._theirs(revision)))
        except Compacted:
            pass
        self._forgotten = max(self._forgotten, revision)

    async def keep(self, window_s: float, every_s: float = 30.0) -> None:
        await keep(self, window_s, every_s)

    def _break(self, why: str) -> None:
        if self._broken is not None:
            return
        self._broken = Broken(f"the store is broken: {why}")
        self._end_all()
        if self._on_broken is not None:
            self._on_broken(self._broken)

    def _end_all(self) -> None:
        assert self._broken is not None
        self._feed.close(self._broken)
        for _, _, done in self._waiting:
            if not done.done():
                done.set_exception(self._broken)
                done.exception()
        self._waiting = []

    async def close(self) -> None:
        """Waits for writes on their way, then closes."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=CALL_TIMEOUT_S)
        if self._broken is None:
            self._broken = Broken("the store is closed")
            self._end_all()
        tasks = [t for t in (self._follower, self._looker, self._marker) if t is not None]
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()


def _retrieved(task: asyncio.Task[int]) -> None:
    """A writer that went away is no error of its own."""
    if not task.cancelled():
        task.exception()
