"""Server: `await handle(Request) -> Response`. The chain every request walks, and the state it walks over.

    authenticate (and impersonate) → authorize → room in flight → find the row → verb → answer with its headers

Reads of a single object or a whole list have a way without a task, `fast`: nothing in them can wait. Not the verbs (read.py, write.py,
delete.py, subresource/), not HTTP (http.py), not what a cluster starts with (bootstrap.py).
Upstream: apiserver server/config.go DefaultBuildHandlerChain, endpoints/installer.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from kubern.api import delete, paths, read, write
from kubern.api.admission import Attributes as Admitted
from kubern.api.admission import mutate, validate
from kubern.api.authn import Authenticator
from kubern.api.authz import ALLOWED, Authorizer, Decision, forbid, from_request
from kubern.api.authz.attributes import Attributes, undecided
from kubern.api.authz.unanswered import Unanswered, settled
from kubern.api.cache import ROOT, Cache, Change, Collection
from kubern.api.call import Call, failure, warning_headers
from kubern.api.fairness import Fairness, too_many
from kubern.api.forms import Form, Served
from kubern.api.metrics import Metrics, Series
from kubern.api.rows import Rows, install_built_in
from kubern.api.settings import ApiSettings
from kubern.api.subresource import approval
from kubern.api.watch import Hub, Watch
from kubern.client.client import Client
from kubern.model.invalid import FieldError
from kubern.model.object import Object
from kubern.model.request import Request, Response, User
from kubern.model.resource import Resource
from kubern.model.status import StatusError, bad_request, internal
from kubern.model.time import duration_ns
from kubern.store.protocol import Broken, Conflict, Store, TooLarge, Unavailable

if TYPE_CHECKING:
    from kubern.api.allocate import Allocator
    from kubern.api.audit import Audit, Record
    from kubern.api.crd import Definitions
    from kubern.api.openapi_remote import Remote

log = logging.getLogger(__name__)

MASTERS = User("system:apiserver", ("system:masters", "system:authenticated"))
LISTS_KEPT_MAX = 16
LISTS_KEPT_MAX_BYTES = 64 * 1024 * 1024
TARGETS_MAX = 50_000
WINNER_SEEN_S = 5.0
NOT_FOUND_TEXT = b"404 page not found\n"
CACHE_CONTROL = ("Cache-Control", "no-cache, private")
LONG_RUNNING = frozenset(("exec", "attach", "portforward", "proxy", "log"))
DEPRECATED = {
    ("", "componentstatuses"): "v1 ComponentStatus is deprecated in v1.19+",
    ("", "endpoints"): "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
}

Handler = Callable[[Call], Awaitable[Response]]
Begin = Callable[..., "write.Transaction | None"]


def no_method() -> StatusError:
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def no_resource() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def check_timeout(request: Request, a: Attributes) -> None:
    """What a client gives as `timeout` must be a duration, unless the request is one that goes on (apiserver WithRequestDeadline)."""
    text = request.param("timeout")
    if text and a.verb != "watch" and a.subresource not in LONG_RUNNING:
        try:
            duration_ns(text)
        except ValueError as e:
            raise bad_request(f"invalid timeout specified in the request URL - {e}") from None


def _never(key: str) -> bool:
    return False


class Admission:
    """One write's way through the admission chain."""

    __slots__ = ("_a",)

    def __init__(self, attributes: Admitted) -> None:
        self._a = attributes

    @property
    def obj(self) -> Object:
        assert self._a.obj is not None
        return self._a.obj

    @obj.setter
    def obj(self, obj: Object) -> None:
        self._a.obj = obj

    @property
    def name(self) -> str:
        return self._a.name

    @name.setter
    def name(self, name: str) -> None:
        self._a.name = name

    @property
    def errors(self) -> list[FieldError]:
        """What plugins found wrong with the object, to be told with the rest."""
        return self._a.errors

    async def mutate(self) -> None:
        await mutate(self._a)

    async def validate(self) -> None:
        await validate(self._a)

    async def run(self) -> None:
        """Both halves: for deletes and connects."""
        await mutate(self._a)
        await validate(self._a)


class _NoAdmission(Admission):
    async def mutate(self) -> None:
        return None

    async def validate(self) -> None:
        return None

    async def run(self) -> None:
        return None


class Server:
    """The API server over a store. `start` before the first request, `stop` after the last."""

    def __init__(self, store: Store, *, settings: ApiSettings | None = None, clock: Callable[[], float] = time.time) -> None:
        self.store, self.settings, self.clock = store, settings or ApiSettings(), clock
        self._caught_up: Callable[[], Awaitable[None]] | None = getattr(store, "caught_up", None)    # others write there too
        self.audit: Audit | None = None
        self.stale: Callable[[str], bool] = getattr(store, "stale", _never)      # is what is stored encrypted with an old key?
        self.cache = Cache()
        self.rows = Rows(self.cache)
        self.authorizer = Authorizer()
        self.authenticator = Authenticator(self.authorizer)
        self.metrics = Metrics()
        self.flags: dict[str, str] = {}                          # what the process was told, for /flagz
        self.fairness = Fairness(self.cache, self.settings.max_in_flight)
        self.definitions: Definitions | None = None
        self.allocator: Allocator | None = None
        self.ready = False
        self.stopping = False
        self.begin_create: dict[tuple[str, str], Begin] = {("certificates.k8s.io", "certificatesigningrequests"): approval.asked}
        self.begin_update: dict[tuple[str, str], Begin] = {}
        self.before_delete: dict[tuple[str, str], Callable[[Call, Object], None]] = {}
        self.on_delete: dict[tuple[str, str], Callable[[Object], Awaitable[None]]] = {}
        self.lists: dict[Any, tuple[int, Any, list[bytes]]] = {}
        self._list_sizes: dict[Any, int] = {}
        self._hubs: dict[int, Hub] = {}
        self._watches: set[Watch] = set()
        self._built_in_groups: frozenset[str] = frozenset()
        self.in_flight = self.writing = 0                       # requests that run now; those of them that write
        self._writing: dict[str, asyncio.Future[None]] = {}      # done when the write of a key has been answered
        self._targets: dict[str, tuple[Served, Attributes, Series]] = {}
        self._unsubscribe: Callable[[], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.identity = str(uuid4())
        self._audit_prefix = os.urandom(10).hex()
        self._audit_count = 0
        self.client = Client(self.handle, MASTERS, "kube-apiserver")
        self.unlisted: dict[tuple[str, str, str], Handler] = {}          # our own GET-only subresources, not in discovery: it is upstream's
        self.extra_paths: dict[str, Callable[[Request, User], Awaitable[Response]]] = {}
        self.remote_rows: dict[tuple[str, str], list[Resource]] = {}     # (group, version) of APIServices -> what is known to lie there
        self.remote_openapi: dict[tuple[str, str], Remote] = {}          # their OpenAPI documents

    # --- life ---

    async def start(self) -> None:
        """Fills the cache from the store, follows it, and creates what every cluster starts with."""
        from kubern.api import bootstrap, crd

        install_built_in(self.rows)
        self._built_in_groups = frozenset(self.rows.groups)
        self.rows.changed.append(self._targets.clear)
        pending: list[Any] = []
        self._unsubscribe = self.store.subscribe(pending.extend)
        entries, revision = await self.store.list(ROOT)
        self.cache.load(entries, revision)
        self._unsubscribe()
        self.cache.feed(pending)
        self._unsubscribe = self.store.subscribe(self.cache.feed)
        self._observe()
        allocator = self.allocator = bootstrap.wire(self)
        await allocator.records.repair()
        self.definitions = crd.wire(self)
        if self.settings.bootstrap:
            await bootstrap.create_all(self)
        self._tasks = bootstrap.background(self)
        if allocator.records.shared:
            self._tasks.append(asyncio.get_running_loop().create_task(allocator.records.keep(), name="addresses and ports"))
        self.ready = True

    async def stop(self) -> None:
        """Ends watches and background work."""
        self.stopping, self.ready = True, False
        for w in tuple(self._watches):
            w.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._unsubscribe is not None:
            self._unsubscribe()

    def _observe(self) -> None:
        """Tells authorization and authentication of the objects they decide by, now and at every change."""
        from kubern.api.authn import WATCHED

        for group, plural in self.authorizer.watched:
            collection = self.cache.collection(group, plural)
            for item in collection.range():
                self.authorizer.observe(group, plural, item.namespace, item.name, item.read())
            collection.listeners.insert(0, self._authorization_listener(group, plural))
        for group, plural in WATCHED:
            self.cache.collection(group, plural).listeners.insert(0, self._authentication_listener(group, plural))

    def _authorization_listener(self, group: str, plural: str) -> Callable[[list[Change]], None]:
        def listen(changes: list[Change]) -> None:
            for c in changes:
                obj = None if c.type == "DELETED" else c.object(c.item)
                self.authorizer.observe(group, plural, c.item.namespace, c.item.name, obj)
        return listen

    def _authentication_listener(self, group: str, plural: str) -> Callable[[list[Change]], None]:
        def listen(changes: list[Change]) -> None:
            for c in changes:
                if c.type == "DELETED":
                    self.authenticator.observe(group, plural, c.item.namespace, c.item.name, None, c.object(c.item))
                elif plural == "secrets" or b'"deletionTimestamp"' in c.item.body:
                    obj = c.object(c.item)
                    self.authenticator.observe(group, plural, c.item.namespace, c.item.name, obj, c.object(c.old) if c.old else None)
        return listen

    # --- what verbs need ---

    def hub(self, collection: Collection) -> Hub:
        hub = self._hubs.get(id(collection))
        if hub is None:
            hub = self._hubs[id(collection)] = Hub(collection, self.cache, self.store)
        return hub

    def watch_started(self, watch: Watch) -> None:
        self._watches.add(watch)
        watch.on_end = self._watches.discard

    @property
    def watches(self) -> int:
        return len(self._watches)

    def long_running(self) -> Iterator[tuple[str, ...]]:
        """The labels by which metrics tell every watch."""
        for w in self._watches:
            row = w.form.served.row
            yield "apiserver", row.group, row.plural, "namespace" if w.namespace else "cluster", "", "WATCH", row.version

    def keep_list(self, key: Any, entry: tuple[int, Any, list[bytes]], size: int) -> None:
        """Keeps the joined body of a list; the oldest go when there are too many or they grow too big."""
        if size > LISTS_KEPT_MAX_BYTES // 2 or size < 4096:
            return
        self.lists.pop(key, None)
        self.lists[key] = entry
        self._list_sizes[key] = size
        while len(self.lists) > LISTS_KEPT_MAX or sum(self._list_sizes[k] for k in self.lists) > LISTS_KEPT_MAX_BYTES:
            oldest = next(iter(self.lists))
            del self.lists[oldest], self._list_sizes[oldest]

    def admission_for(self, call: Call, operation: str, name: str, obj: Object | None, old: Object | None, dry_run: bool,
                      options: dict[str, Any]) -> Admission:
        a = call.attributes
        chain = Admission if self.settings.admission else _NoAdmission
        namespace = a.namespace
        if call.served.row.storage == ("", "namespaces"):
            namespace = name
        return chain(Admitted(operation, call.served.row, a.subresource, namespace, name, obj, old, call.user, self.cache, dry_run, options,
                              call.warn, self.authorizer, self.client, served=call.served, verb=a.verb))

    async def put(self, key: str, value: bytes, expect: int, obj: Object | None = None) -> int:
        """Stores a value. `obj` is what it was made of, for those who want to read it: nobody may change it any more."""
        mine: asyncio.Future[None] | None = None
        if key not in self._writing:
            mine = self._writing[key] = asyncio.get_running_loop().create_future()
        if obj is not None:
            self.cache.offered[id(value)] = obj
        try:
            return await self.store.put(key, value, expect=expect)
        except Conflict:
            await self._winner_seen(key, expect)
            raise
        finally:
            self.cache.offered.pop(id(value), None)
            if mine is not None:
                del self._writing[key]
                mine.set_result(None)

    async def settled(self, key: str) -> None:
        """Until no write of this key is on its way to disk: what would be decided before that would have to be decided again."""
        while (writing := self._writing.get(key)) is not None:
            await asyncio.wait((writing,))

    async def delete(self, key: str, expect: int) -> int:
        try:
            return await self.store.delete(key, expect=expect)
        except Conflict:
            await self._winner_seen(key, expect)
            raise

    async def _winner_seen(self, key: str, expect: int) -> None:
        """Wait until the cache shows the write that won the race: it may still be on its way to disk, and deciding again before that is
        deciding on the same state."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WINNER_SEEN_S):
                while self.cache.revision_of(key) == expect:
                    await self.cache.next_batch()

    async def after_delete(self, call: Call, obj: Object) -> None:
        hook = self.on_delete.get(call.served.row.storage)
        if hook is not None:
            await hook(obj)

    def decide(self, a: Attributes) -> Decision:
        return self.authorizer.authorize(a) if self.settings.authorization else ALLOWED

    # --- the chain ---

    def fast(self, request: Request) -> Response | None:
        """The answer to a plain GET of an object or a list, or None: then `handle` must be asked."""
        if request.query or request.method != "GET" or self._caught_up is not None or self.audit is not None:
            return None
        started = time.perf_counter()
        target = self._targets.get(request.path)
        if target is None:
            return None
        headers = request.headers
        accept = headers.get("accept")
        if accept is not None and accept not in ("application/json", "*/*", "application/json, */*"):
            return None
        if headers.get("user-agent", "").startswith(("curl", "Wget", "Mozilla")):
            return None
        coroutine = self.authenticator.authenticate(request)
        try:
            coroutine.send(None)
        except StopIteration as done:
            user: User = done.value
        except StatusError:
            return None
        else:
            coroutine.close()
            return None
        served, a, series = target
        if served.webhook is not None:
            return None
        try:
            if self.settings.authorization and not self.authorizer.authorize(a if user is a.user else a._replace(user=user)).allowed:
                return None
        except Unanswered:
            return None
        body: bytes | list[bytes]
        if a.name:
            item = served.collection.items.get(f"{a.namespace}/{a.name}" if served.row.namespaced else a.name)
            if item is None:
                return None
            body = served.head + served.body(item) + b"\n"
        else:
            collection = served.collection
            kept = self.lists.get((collection.prefix, served.row.api_version, a.namespace))
            if kept is not None and kept[0] == collection.changed and kept[1] is served:
                body = [Form(served).list_start(b'%d"}' % self.cache.revision), *kept[2]]
            elif len(collection.order) < 200:
                body = Form(served).list(collection.range(a.namespace), b'%d"}' % self.cache.revision)
            else:
                return None
        self._audit_count += 1
        response = Response(200, [("Audit-Id", self._audit_id()), CACHE_CONTROL, ("Content-Type", "application/json"),
                              *self.fairness.headers(user, a)], body)
        series.add(time.perf_counter() - started, response.size)
        return response

    def _audit_id(self) -> str:
        p, n = self._audit_prefix, self._audit_count
        return f"{p[:8]}-{p[8:12]}-4{p[12:15]}-8{p[15:18]}-{n:012x}"

    async def handle(self, request: Request) -> Response:
        """The answer to any request. Never raises for what a client sent."""
        started = time.perf_counter()
        call: Call | None = None
        a: Attributes | None = None
        record: Record | None = None
        annotations: dict[str, str] = {}
        self._audit_count += 1
        audit_id = request.headers.get("audit-id", "")[:64] or self._audit_id()
        try:
            user = await self.authenticator.authenticate(request)
            a = from_request(request, user)
            if self.audit is not None:
                record = self.audit.begin(request, user, a, audit_id)
            if "timeout" in request.query:
                check_timeout(request, a)
            try:
                decision = self.decide(a)
            except Unanswered:
                decision = await settled(partial(self.decide, a))
            if record is not None:
                annotations = {"authorization.k8s.io/decision": "allow" if decision.allowed else "forbid", "authorization.k8s.io/reason": decision.reason}
            self.metrics.refused += not decision.allowed
            if not decision.allowed and not decision.error:
                raise forbid(a, decision.reason)
            if not decision.allowed:
                response = undecided(request, decision.error)
            elif a.is_resource:
                served = self.rows.by_path.get((a.group, a.version, a.resource))
                if request.path.startswith("//"):
                    response = paths.not_found()
                elif served is None or "//" in request.path:
                    response = await self._unknown(request, a)
                else:
                    call = Call(self, request, user, a, served)
                    response = await self._resource(call)
            else:
                response = await self._path(request, user)
        except StatusError as e:
            response = failure(e, request)
        except Broken:
            response = failure(StatusError(503, "ServiceUnavailable", "the store accepts no more writes"), request)
        except Unavailable as e:
            response = failure(StatusError(503, "ServiceUnavailable", f"the store cannot be reached: {e}", {"retryAfterSeconds": 1},
                                           [("Retry-After", "1")]), request)
        except TooLarge as e:
            response = failure(StatusError(413, "RequestEntityTooLarge", str(e), {}), request)
        except RecursionError:                # only what a client sent is so deep
            response = failure(bad_request("exceeded max depth"), request)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s %s", request.method, request.path)
            response = failure(internal("an unexpected error; the server's log has it"), request)
        response.headers += [("Audit-Id", audit_id), CACHE_CONTROL]
        if a is not None and not request.user:
            response.headers += self.fairness.headers(a.user, a)
        if call is not None and call.warnings:
            response.headers += warning_headers(call.warnings)
        if request.method == "HEAD":
            response.body = b""
        if self.audit is not None:
            if a is None:                      # authentication failed
                record = self.audit.begin(request, None, from_request(request, None), audit_id)
                if record is not None and request.impersonator is None:
                    record.refused(response)
                    record = None
            if record is not None:
                record.finish(response, annotations)
        if a is not None:
            series = self.metrics.series(a, response.status, "All" if "dryRun" in request.query else "", call is not None)
            series.add(time.perf_counter() - started, response.size)
            if request.body and call is not None:
                self.metrics.bodies.observe((a.group, a.resource, a.verb), len(request.body))
        else:
            self.metrics.strangers += 1
        return response

    async def _resource(self, call: Call) -> Response:
        a, served, request = call.attributes, call.served, call.request
        handler = self._handler(call)
        if self._caught_up is not None:
            await self._see_others(request)
        deprecated = DEPRECATED.get((a.group, a.resource))
        if deprecated is not None:
            call.warn(deprecated)
            self.metrics.deprecated.add((a.group, a.version, a.resource, a.subresource))
        elif served.custom is not None and served.custom.deprecation:
            call.warn(served.custom.deprecation)
        if a.subresource in LONG_RUNNING:
            return await handler(call)
        flow = self.fairness.flow(call.user, a)
        width = 1
        if flow.level is None:
            if self.in_flight >= self.settings.max_in_flight:
                return too_many()
        else:
            width = self.fairness.width(flow.level, a, request, len(served.collection.order))
            if not await flow.enter(width):
                return too_many(flow.level)
        writes = a.verb not in ("get", "list", "watch")
        self.in_flight += 1
        self.writing += writes
        try:
            response = await handler(call)
        finally:
            self.in_flight -= 1
            self.writing -= writes
            if flow.level is not None:
                flow.leave(width)
        if request.method == "GET" and not request.query and not a.subresource and a.verb in ("get", "list") and not call.warnings \
                and request.path not in self._targets and served.row.storage not in VIRTUAL_READS:
            self._remember(request.path, served, a)
        return response

    async def _see_others(self, request: Request) -> None:
        """Waits until what other servers have written is here, unless the client is content with what there is (resourceVersion=0, or one that
        is here already)."""
        version = request.param("resourceVersion")
        if version and version.isascii() and version.isdigit() and int(version) <= self.cache.revision and request.method == "GET":
            return
        assert self._caught_up is not None
        await self._caught_up()
        self.cache.revision = max(self.cache.revision, self.store.revision)      # a revision may be none of our keys

    def _remember(self, path: str, served: Served, a: Attributes) -> None:
        if len(self._targets) >= TARGETS_MAX:
            self._targets.clear()
        self._targets[path] = served, a, self.metrics.series(a, 200)

    def _handler(self, call: Call) -> Handler:
        """The verb for this request: by the shape of its path and its method. Raises 404 and 405."""
        from kubern.api.subresource import SUBRESOURCES, VIRTUAL

        a, served, method = call.attributes, call.served, call.request.method
        row = served.row
        parts = call.request.path.strip("/").split("/")
        by_prefix = a.verb == "watch" and "watch" in parts[2:4] and parts[3 if a.group else 2] == "watch"
        at = (3 if a.group else 2) + by_prefix           # where the collection stands in the path
        if parts[at] == "namespaces" and len(parts) > at + 2 and row.storage != ("", "namespaces"):
            at += 2
        named = len(parts) > at + 1
        if row.namespaced:
            if not a.namespace and named and not by_prefix:
                raise no_resource()
        elif a.namespace and row.storage != ("", "namespaces"):
            raise no_resource()
        if a.verb == "proxy":
            raise no_resource()
        if by_prefix:
            return self._watch_by_path(call)
        if a.subresource:
            return SUBRESOURCES.find(call, parts)
        virtual = VIRTUAL.get((row.group, row.plural))
        if virtual is not None:
            return virtual(call, named)
        if not named:
            if method == "GET" and "list" in row.verbs:
                return read.list_
            if method == "POST" and "create" in row.verbs and (a.namespace or not row.namespaced):
                return write.create
            if method == "DELETE" and "deletecollection" in row.verbs and (a.namespace or not row.namespaced):
                return delete.delete_collection
        elif method == "GET" and "get" in row.verbs:
            return read.get
        elif method == "PUT" and "update" in row.verbs:
            return write.update
        elif method == "PATCH" and "patch" in row.verbs:
            return write.patch
        elif method == "DELETE" and "delete" in row.verbs:
            return delete.delete
        raise no_method()

    def _watch_by_path(self, call: Call) -> Handler:
        if call.request.method != "GET" or "watch" not in call.served.row.verbs:
            raise no_method()
        name = call.attributes.name

        async def handler(call: Call) -> Response:
            return await read.list_(call, forced_watch=True, name=name)
        return handler

    async def _unknown(self, request: Request, a: Attributes) -> Response:
        """A resource path nobody serves: aggregated APIs, or one of the two ways of saying so."""
        if a.group not in self._built_in_groups:
            proxied = self.extra_paths.get("aggregate")
            if proxied is not None:
                return await proxied(request, a.user)
            return Response(404, [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")], NOT_FOUND_TEXT)
        raise no_resource()

    async def _path(self, request: Request, user: User) -> Response:
        return await paths.respond(self, request, user)


VIRTUAL_READS = {("", "componentstatuses")}
