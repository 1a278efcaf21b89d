"""The loop: one loop runs every controller. It owns the queues, executes intents through the client and never decides anything.

Per key: one pass at a time; after a pass the key rests until the mirrors have seen the pass's own writes (this replaces client-go's
expectations); a pass in which an intent failed is repeated with backoff. Nothing here polls: an idle cluster costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from kubern.client.aggregated import follow_aggregated
from kubern.client.client import Client
from kubern.client.events import Recorder
from kubern.client.mirror import Handler, Mirror, Mirrors, revision_of
from kubern.client.queue import Queue
from kubern.model import rows
from kubern.model.controller import SINGLE, Controller, Steps, Trigger, Undecided
from kubern.model.intent import Again, Create, Delete, DeleteAll, Emit, Failed, Fetch, Patch, Requeue, Update
from kubern.model.object import Key, Object
from kubern.model.request import User
from kubern.model.resource import Resource
from kubern.model.status import StatusError, qualified

log = logging.getLogger(__name__)

AGENT = "kube-controller-manager/v1.36.2"
BATCH_CALLS_MAX = 64                # of a list of intents, so many are under way at once
STEPS_MAX = 100_000                 # intents of one pass; more is a mistake
GLANCES_MAX_S = 0.002               # passes that have nothing to do follow each other at once for so long
UNCLEAR_LOOKS_MAX, UNCLEAR_FIRST_S = 6, 0.1
MIRROR_WAITS_MAX = 10               # of 30 s each: client-go lets its expectations expire after five minutes


def acting(row: Controller) -> User:
    return User(row.user, ("system:authenticated",)) if row.user else service_account(row.name)


def service_account(name: str) -> User:
    """The user a controller acts as."""
    return User(f"system:serviceaccount:kube-system:{name}", ("system:serviceaccounts", "system:serviceaccounts:kube-system",
                                                              "system:authenticated"))


class _Writes:
    """What a pass wrote and the mirrors must show before the next one."""

    def __init__(self) -> None:
        self.revisions: dict[str, int] = {}
        self.deleted: list[tuple[str, str, str, str]] = []       # resource, namespace, name, uid
        self.unclear: dict[tuple[str, str], Resource] = {}       # (resource, namespace) where a create may have been done: no answer told
        self.failed: Failed | None = None

    def saw(self, resource: str, answer: Object) -> bool:
        revision = revision_of(answer.get("metadata") or {}) if answer.get("kind") != "Status" else 0
        if revision:
            self.revisions[resource] = max(revision, self.revisions.get(resource, 0))
        return bool(revision)


class Worker:
    """One controller at work."""

    def __init__(self, row: Controller, mirrors: Mirrors, client: Client, recorder: Recorder, clock: Callable[[], float]) -> None:
        self.row, self.mirrors, self.client, self.recorder, self.clock = row, mirrors, client, recorder, clock
        self.queue: Queue[Key] = Queue(row.backoff_first_s, row.backoff_last_s, row.name)
        self._slots = asyncio.Semaphore(row.workers)
        self._tasks: set[asyncio.Task[None]] = set()
        self.everywhere: list[str] = []
        for name in self.resources():
            mirrors.mirror(name)               # in full, before anybody asks for its metadata alone
        self._subscribe()

    def _subscribe(self) -> None:
        row = self.row
        if row.resource:
            changed, after_s = row.changed, row.after_s

            def own(old: Object | None, new: Object | None) -> None:
                if old is None or new is None or changed(old, new):
                    meta = (old if new is None else new)["metadata"]                    # type: ignore[index]
                    self._wake((meta.get("namespace") or "", meta["name"]), after_s)
            self.mirrors.mirror(row.resource).handlers.append(own)
        for trigger in row.triggers:
            self.mirrors.mirror(trigger.resource).handlers.append(self._handler(trigger))

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _handler(self, trigger: Trigger) -> Callable[[Object | None, Object | None], None]:
        keys, after_s, mirrors, wake = trigger.keys, trigger.after_s, self.mirrors, self._wake

        def handle(old: Object | None, new: Object | None) -> None:
            for key in keys(old, new, mirrors):
                wake(key, after_s)
        return handle

    def _wake(self, key: Key, after_s: float) -> None:
        if after_s:
            self.queue.add_after(key, after_s)
        else:
            self.queue.add(key)

    def resources(self) -> Iterable[str]:
        row = self.row
        return dict.fromkeys(([row.resource] if row.resource else []) + list(row.reads) + [t.resource for t in row.triggers]
                             + self.everywhere)

    async def run(self) -> None:
        await self.mirrors.synced(self.resources())
        if not self.row.resource:
            self.queue.add(SINGLE)
        loop = asyncio.get_running_loop()
        resync, rested = loop.create_task(self._resync()) if self.row.resync_s else None, loop.time()
        try:
            while True:
                await self._slots.acquire()
                key = await self.queue.get()
                begun = self._begin(key)
                if begun is not None:
                    self._own(loop.create_task(self._pass(key, *begun)))
                    continue
                self._slots.release()
                if loop.time() > rested + GLANCES_MAX_S:
                    await asyncio.sleep(0)
                    rested = loop.time()
        finally:
            if resync is not None:
                resync.cancel()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self.row.resync_s)
            if not self.row.resource:
                self.queue.add(SINGLE)
                continue
            for key in list(self.mirrors.mirror(self.row.resource).objects):
                self.queue.add(key)

    def _begin(self, key: Key) -> tuple[Steps, Any] | None:
        """Starts a pass, up to its first intent. None: there is nothing to do, as most often, and the key is done without a task."""
        row, now = self.row, self.clock()
        obj: Object | None = {"key": key} if not row.resource else self.mirrors.get(row.resource, *key)
        try:
            if obj is not None:
                steps = row.reconcile(obj, self.mirrors, now)
            elif row.gone is not None:
                steps = row.gone(key, self.mirrors, now)
            else:
                raise StopIteration
            return steps, steps.send(None)
        except StopIteration:
            self.queue.forget(key)
        except Undecided as e:
            log.debug("%s %s/%s: %s; again in %.3f s", row.name, *key, e, self.queue.add_backoff(key))
        except Exception:
            log.exception("%s %s/%s", row.name, *key)
            self.queue.add_backoff(key)
        self.queue.done(key)
        return None

    async def _pass(self, key: Key, steps: Steps, intent: Any) -> None:
        writes = _Writes()
        try:
            try:
                await self._reconcile(key, steps, intent, writes)
            finally:
                self._slots.release()
            if writes.failed is not None:
                delay = self.queue.add_backoff(key)
                log.debug("%s %s/%s: %s; again in %.3f s", self.row.name, *key, writes.failed.message, delay)
            else:
                self.queue.forget(key)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s %s/%s", self.row.name, *key)
            self.queue.add_backoff(key)
        finally:
            try:
                await self._rest(writes)
            finally:
                self.queue.done(key)

    async def _rest(self, writes: _Writes) -> None:
        """Waits until the mirrors show what the pass wrote: on older news the next pass would do it again."""
        for (resource, namespace), row in writes.unclear.items():
            await self._clear_up(resource, namespace, row, writes)
        for resource, revision in writes.revisions.items():
            mirror = self.mirrors.mirrors.get(resource)
            for _ in range(MIRROR_WAITS_MAX):
                if mirror is None or await mirror.reached(revision):
                    break
                log.warning("%s: the mirror of %s is behind revision %d", self.row.name, resource, revision)
        for resource, namespace, name, uid in writes.deleted:
            mirror = self.mirrors.mirrors.get(resource)
            if mirror is not None:
                await mirror.left(namespace, name, uid)

    async def _clear_up(self, resource: str, namespace: str, row: Resource, writes: _Writes) -> None:
        """A create that failed without a clear answer may have taken effect: the newest object there must be seen first."""
        for attempt in range(UNCLEAR_LOOKS_MAX):
            try:
                found, _ = await self.client.list(row, namespace, metadata_only=True)
            except StatusError as e:
                if e.code < 500 and e.code != 429:
                    return
                await asyncio.sleep(UNCLEAR_FIRST_S * 2 ** attempt)
                continue
            for obj in found:
                writes.saw(resource, obj)
            return

    async def _reconcile(self, key: Key, steps: Steps, intent: Any, writes: _Writes) -> None:
        """A pass from its first intent on."""
        for _ in range(STEPS_MAX):
            if isinstance(intent, Sequence):
                result: Any = await self._many(key, intent, writes)
            else:
                result = await self._execute(key, intent, writes)
            try:
                intent = steps.send(result)
            except StopIteration:
                return
            except Undecided as e:
                writes.failed = writes.failed or Failed(None, 500, "Undecided", str(e))
                return
        raise AssertionError(f"{self.row.name}: a pass of more than {STEPS_MAX} intents")

    async def _many(self, key: Key, intents: Sequence[Any], writes: _Writes) -> list[Any]:
        results: list[Any] = []
        for i in range(0, len(intents), BATCH_CALLS_MAX):
            results += await asyncio.gather(*(self._execute(key, x, writes) for x in intents[i:i + BATCH_CALLS_MAX]))
        return results

    async def _execute(self, key: Key, intent: Any, writes: _Writes) -> Any:
        if isinstance(intent, Emit):
            self.recorder.emit(self.row.component or self.row.name, intent, self.client)
            return None
        if isinstance(intent, Requeue):
            self.queue.add_after(key, intent.after_s)
            return None
        if isinstance(intent, Again):
            writes.failed = writes.failed or Failed(intent, 500, "Again", intent.why)
            return None
        try:
            return await execute(self.client, intent, writes)
        except StatusError as e:
            failed = Failed(intent, e.code, e.reason, e.message, e.details or {})
            if e.code >= 500 and isinstance(intent, Create) and not intent.subresource:
                row = self.client.row(intent.obj["apiVersion"], intent.obj["kind"])
                writes.unclear[qualified(row.group, row.plural), intent.obj["metadata"].get("namespace") or ""] = row
            if e.code == 403 and " cannot " in e.message and not self.queue.failures(key):
                log.warning("%s: %s", self.row.name, e.message)          # a rule is missing: nothing else will say so
            if not isinstance(intent, Fetch) and not namespace_terminating(failed):
                writes.failed = failed
            return failed


def namespace_terminating(failed: Failed) -> bool:
    """Refused because the namespace is going away: trying again leads nowhere."""
    return any(c.get("reason") == "NamespaceTerminating" for c in failed.details.get("causes") or ())


async def execute(client: Client, intent: Any, writes: _Writes) -> Any:
    """Performs one intent; the answer, None for what was not there to delete. Raises StatusError."""
    if isinstance(intent, Create):
        row = client.row(intent.obj["apiVersion"], intent.obj["kind"]) if not intent.parent else client.row(*intent.parent)
        name = intent.obj["metadata"]["name"] if intent.subresource else ""
        try:
            answer = await client.create_in(row, intent.obj, subresource=intent.subresource, name=name)
        except StatusError as e:
            if intent.ignore_exists and e.reason == "AlreadyExists":
                return None
            raise
        if not intent.subresource:
            writes.saw(qualified(row.group, row.plural), answer)
        return answer
    if isinstance(intent, Update):
        row = client.row(intent.obj["apiVersion"], intent.obj["kind"])
        answer = await client.update(intent.obj, intent.subresource)
        if intent.subresource in ("", "status"):
            writes.saw(qualified(row.group, row.plural), answer)
        return answer
    if isinstance(intent, Patch):
        row = client.row(intent.api_version, intent.kind)
        try:
            answer = await client.patch(row, intent.namespace, intent.name, intent.patch, intent.type, subresource=intent.subresource,
                                        field_manager=intent.field_manager, force=intent.force)
        except StatusError as e:
            if intent.ignore_missing and e.code == 404:
                return None
            raise
        if intent.subresource in ("", "status"):
            writes.saw(qualified(row.group, row.plural), answer)
        return answer
    if isinstance(intent, Delete):
        row = client.row(intent.api_version, intent.kind)
        try:
            answer = await client.delete(row, intent.namespace, intent.name, uid=intent.uid, revision=intent.revision,
                                         grace_s=intent.grace_s, propagation=intent.propagation)
        except StatusError as e:
            if intent.ignore_missing and e.code == 404:
                return None
            raise
        resource = qualified(row.group, row.plural)
        if not writes.saw(resource, answer):
            writes.deleted.append((resource, intent.namespace, intent.name, intent.uid))
        return answer
    if isinstance(intent, DeleteAll):
        return await client.delete_all(intent.resource, intent.namespace, labels=intent.labels, fields=intent.fields,
                                       propagation=intent.propagation)
    if isinstance(intent, Fetch):
        return await client.call(intent.method, intent.path, intent.query or None, intent.body, accept=intent.accept)
    raise TypeError(f"not an intent: {intent!r}")


def watch_everything(mirrors: Mirrors, workers: Sequence[Worker]) -> Handler:
    """Subscribes to every collection, and to those that come and go with CustomResourceDefinitions; feeds the graph. Gives what is told of changes."""
    graph = mirrors.graph
    wakes = [(w.row.everything, w.queue.add) for w in workers if w.row.everything is not None]

    def handle(old: Object | None, new: Object | None) -> None:
        graph.change(old, new)
        for keys, add in wakes:
            for key in keys(old, new, mirrors):
                add(key)

    names = [n for n in rows.BUILT_IN if n != "events"]
    for name in names:
        if name not in mirrors.mirrors:
            mirrors.mirrors[name] = Mirror(mirrors.client, rows.BUILT_IN[name], metadata_only=True)
        mirrors.mirrors[name].handlers.insert(0, handle)
    for worker in workers:
        worker.everywhere += names
    going: set[asyncio.Task[None]] = set()

    def crd_changed(old: Object | None, new: Object | None) -> None:
        before, after = (rows.of_crd(x) if x is not None else None for x in (old, new))
        if before == after:
            return
        if before is not None:
            task = asyncio.get_running_loop().create_task(mirrors.remove(qualified(before.group, before.plural)))
            going.add(task)
            task.add_done_callback(going.discard)
        if after is not None:
            mirrors.add(qualified(after.group, after.plural), after, metadata_only=True).handlers.append(handle)
    mirrors.mirror(rows.CRDS).handlers.append(crd_changed)
    return handle


def kinds_of(mirrors: Mirrors) -> Callable[[str, str], Resource | None]:
    """Finds rows of built-in kinds, and of custom ones while their definitions are mirrored."""
    def find(api_version: str, kind: str) -> Resource | None:
        return rows.find(mirrors, api_version, kind)
    return find


async def run_controllers(table: Iterable[Controller], client_for: Callable[[User, str], Client], *, clock: Callable[[], float] = time.time,
                          mirrors: Mirrors | None = None, ready: Callable[[], Awaitable[None] | None] | None = None) -> None:
    """Runs every row until cancelled. `client_for(user, agent)` gives the client a controller acts through."""
    manager = client_for(User("system:kube-controller-manager", ("system:authenticated",)), AGENT)
    own = mirrors is None
    mirrors = mirrors or Mirrors(manager)
    recorder = Recorder(manager, clock)
    kinds = kinds_of(mirrors)
    workers = [Worker(row, mirrors, client_for(acting(row), AGENT).with_kinds(kinds), recorder, clock) for row in table]
    watchers = [w for w in workers if w.row.everything is not None]
    try:
        async with asyncio.TaskGroup() as group:
            if watchers:             # after all have subscribed: what a controller reads in full is not mirrored a second time
                group.create_task(follow_aggregated(mirrors, watch_everything(mirrors, watchers)), name="aggregated APIs")
            group.create_task(recorder.run(), name="events")
            for worker in workers:
                group.create_task(worker.run(), name=worker.row.name)
            for name in dict.fromkeys(n for w in workers for n in w.resources()):
                mirrors.start(name)
            await mirrors.synced(dict.fromkeys(n for w in workers for n in w.resources()))
            if ready is not None:
                done = ready()
                if done is not None:
                    await done
    finally:
        if own:
            await mirrors.close()
