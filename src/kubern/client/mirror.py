"""Mirror: a local copy of one resource that knows the revision it has reached. Mirrors: several of them, as a View.

managedFields are dropped on arrival (no decision reads them, and an update without them leaves the server's as they are). Indexes are
made when first asked for and kept from then on. Objects handed out are shared: reading only.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Iterable, Iterator

from kubern.client.client import Client
from kubern.client.watch import follow
from kubern.model.object import Key, Object
from kubern.model.resource import Resource
from kubern.model.status import qualified

log = logging.getLogger(__name__)

Objects = list[Object]
Handler = Callable[[Object | None, Object | None], None]      # (old, new)
IndexOf = Callable[[Object], Iterable[str]]


def _claims(pod: Object) -> Iterator[str]:
    """The claims a pod mounts, ephemeral ones by the name they get."""
    for v in (pod.get("spec") or {}).get("volumes") or ():
        if claim := v.get("persistentVolumeClaim"):
            yield claim.get("claimName") or ""
        elif "ephemeral" in v:
            yield f"{pod['metadata']['name']}-{v['name']}"


def _claims_in(pod: Object) -> Iterator[str]:
    namespace = pod["metadata"].get("namespace") or ""
    return (f"{namespace}/{c}" for c in _claims(pod))


def _selector_pair(service: Object) -> Iterator[str]:
    """One pair of a service's selector: a pod that it selects has this pair, so the pod finds it by its own labels."""
    selector = (service.get("spec") or {}).get("selector")
    if selector:
        key = min(selector)
        yield f"{service['metadata'].get('namespace') or ''}/{key}={selector[key]}"


def _resource_claims(pod: Object) -> Iterator[str]:
    namespace = pod["metadata"].get("namespace") or ""
    for c in (pod.get("status") or {}).get("resourceClaimStatuses") or ():
        if c.get("resourceClaimName"):
            yield f"{namespace}/{c['resourceClaimName']}"
    for c in (pod.get("spec") or {}).get("resourceClaims") or ():
        if c.get("resourceClaimName"):
            yield f"{namespace}/{c['resourceClaimName']}"


def _owners(obj: Object) -> Iterator[str]:
    return (r.get("uid") or "" for r in obj["metadata"].get("ownerReferences") or ())


def _orphan(obj: Object) -> Iterator[str]:
    meta = obj["metadata"]
    if not any(r.get("controller") for r in meta.get("ownerReferences") or ()):
        yield meta.get("namespace") or ""


INDEXES: dict[str, IndexOf] = {
    "orphan": _orphan,                    # objects without a controller, by namespace
    "owner": _owners,
    "claim": _claims_in,                  # pods by "namespace/claim"
    "selector": _selector_pair,           # services by "namespace/key=value" of one pair of their selector
    "resourceclaim": _resource_claims,    # pods by "namespace/resourceclaim"
}


def index_of(name: str) -> IndexOf:
    """“label:KEY”, “nslabel:KEY” (value "namespace/value"), a named index, or a dotted path into the object."""
    if name in INDEXES:
        return INDEXES[name]
    if name.startswith("label:"):
        label = name[6:]

        def by_label(obj: Object) -> Iterable[str]:
            value = (obj["metadata"].get("labels") or {}).get(label)
            return () if value is None else (value,)
        return by_label
    if name.startswith("nslabel:"):
        label = name[8:]

        def by_namespace_and_label(obj: Object) -> Iterable[str]:
            meta = obj["metadata"]
            value = (meta.get("labels") or {}).get(label)
            return () if value is None else (f"{meta.get('namespace') or ''}/{value}",)
        return by_namespace_and_label
    path = name.split(".")

    def by_path(obj: Object) -> Iterable[str]:
        value: object = obj
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return () if value is None else (str(value),)
    return by_path


def revision_of(meta: Object) -> int:
    """The resourceVersion as a number; 0 for what another server means by one of its own."""
    text = meta.get("resourceVersion") or ""
    return int(text) if text.isdecimal() else 0


class Mirror:
    """`run()` keeps it up to date; `synced` is set after the first list."""

    def __init__(self, client: Client, resource: Resource, *, metadata_only: bool = False, labels: str = "", fields: str = "") -> None:
        self.client, self.resource, self.metadata_only = client, resource, metadata_only
        self._labels, self._fields = labels, fields
        self.objects: dict[Key, Object] = {}
        self.revision = 0
        self.synced = asyncio.Event()
        self.handlers: list[Handler] = []
        self._spaces: dict[str, dict[Key, Object]] = {}
        self._indexes: dict[str, tuple[IndexOf, dict[str, dict[Key, Object]]]] = {}
        self._revision_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._key_waiters: dict[Key, list[tuple[str, asyncio.Future[None]]]] = {}
        self._count = 0

    async def run(self) -> None:
        await follow(self.client, self.resource, self._replace, self._apply, labels=self._labels, fields=self._fields,
                     metadata_only=self.metadata_only)

    # ---- reading

    def get(self, namespace: str, name: str) -> Object | None:
        return self.objects.get((namespace, name))

    def list(self, namespace: str | None = None) -> Iterable[Object]:
        if namespace is None:
            return list(self.objects.values())
        return list(self._spaces.get(namespace, {}).values())

    def by(self, index: str, value: str) -> Iterable[Object]:
        found = self._indexes.get(index)
        if found is None:
            fn, table = index_of(index), dict[str, dict[Key, Object]]()
            found = self._indexes[index] = (fn, table)
            for key, obj in self.objects.items():
                for v in fn(obj):
                    table.setdefault(v, {})[key] = obj
        return list(found[1].get(value, {}).values())

    async def reached(self, revision: int, timeout_s: float = 30.0) -> bool:
        """Waits until this copy holds everything up to the revision. False: it did not within the time."""
        if self.revision >= revision:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._revision_waiters, (revision, self._count, future))
        return await _within(future, timeout_s)

    async def left(self, namespace: str, name: str, uid: str = "", timeout_s: float = 5.0) -> bool:
        """Waits until the object is gone from this copy, or is being deleted, or is another one."""
        if self._has_left((namespace, name), uid):
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._key_waiters.setdefault((namespace, name), []).append((uid, future))
        return await _within(future, timeout_s)

    def _has_left(self, key: Key, uid: str) -> bool:
        obj = self.objects.get(key)
        if obj is None:
            return True
        meta = obj["metadata"]
        return bool(meta.get("deletionTimestamp")) or bool(uid and meta.get("uid") != uid)

    # ---- following

    def clear(self) -> None:
        """Forgets everything, as if it were deleted."""
        for key in list(self.objects):
            self._set(key, self.objects[key], None)

    def _replace(self, items: Objects, revision: int) -> None:
        seen: set[Key] = set()
        for obj in items:
            meta = obj["metadata"]
            key = (meta.get("namespace") or "", meta["name"])
            seen.add(key)
            old = self.objects.get(key)
            if old is None or old["metadata"].get("resourceVersion") != meta.get("resourceVersion"):
                self._set(key, old, obj)
        for key in [k for k in self.objects if k not in seen]:
            self._set(key, self.objects[key], None)
        self._advance(revision)
        self.synced.set()

    def _apply(self, type_: str, obj: Object) -> None:
        meta = obj["metadata"]
        revision = revision_of(meta)
        if type_ != "BOOKMARK":
            key = (meta.get("namespace") or "", meta["name"])
            old = self.objects.get(key)
            if type_ == "DELETED":
                if old is not None:
                    self._set(key, old, None, obj)
            else:
                self._set(key, old, obj)
        self._advance(revision)

    def _set(self, key: Key, old: Object | None, new: Object | None, last: Object | None = None) -> None:
        if new is not None:
            new["metadata"].pop("managedFields", None)
            self.objects[key] = new
            self._spaces.setdefault(key[0], {})[key] = new
        else:
            del self.objects[key]
            space = self._spaces[key[0]]
            del space[key]
            if not space:
                del self._spaces[key[0]]
        for fn, table in self._indexes.values():
            if old is not None:
                for v in fn(old):
                    if (rows := table.get(v)) is not None:
                        rows.pop(key, None)
                        if not rows:
                            del table[v]
            if new is not None:
                for v in fn(new):
                    table.setdefault(v, {})[key] = new
        for handler in self.handlers:
            try:
                handler(old if last is None else last, new)
            except Exception:                # one consumer's mistake must not stop everybody's news
                log.exception("a handler of %s %s/%s", self.resource.plural, *key)
        if key in self._key_waiters:
            rest = []
            for uid, future in self._key_waiters[key]:
                if self._has_left(key, uid):
                    if not future.done():
                        future.set_result(None)
                elif not future.done():
                    rest.append((uid, future))
            if rest:
                self._key_waiters[key] = rest
            else:
                del self._key_waiters[key]

    def _advance(self, revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
        while self._revision_waiters and self._revision_waiters[0][0] <= self.revision:
            future = heapq.heappop(self._revision_waiters)[2]
            if not future.done():
                future.set_result(None)


async def _within(future: asyncio.Future[None], timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await future
        return True
    except TimeoutError:
        return False


def rows_by_name(rows: Iterable[Resource]) -> dict[str, Resource]:
    """"pods", "deployments.apps" -> the row of the version it is stored in."""
    out: dict[str, Resource] = {}
    for row in rows:
        name = qualified(row.group, row.plural)
        if name not in out or row.storage_version in ("", row.version):
            out[name] = row
    return out


class Graph:
    """Who owns whom, over all mirrors that feed it."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}                       # uid -> object
        self.dependents: dict[str, dict[str, Object]] = {}         # owner uid -> {uid: object}

    def change(self, old: Object | None, new: Object | None) -> None:
        if old is not None:
            meta = old["metadata"]
            uid = meta.get("uid") or ""
            self.objects.pop(uid, None)
            for ref in meta.get("ownerReferences") or ():
                owned = self.dependents.get(ref.get("uid") or "")
                if owned is not None:
                    owned.pop(uid, None)
                    if not owned:
                        del self.dependents[ref.get("uid") or ""]
        if new is not None:
            meta = new["metadata"]
            uid = meta.get("uid") or ""
            self.objects[uid] = new
            for ref in meta.get("ownerReferences") or ():
                self.dependents.setdefault(ref.get("uid") or "", {})[uid] = new


class Mirrors:
    """The mirrors of a process, made when first asked for. Implements model/view.py."""

    def __init__(self, client: Client, rows: dict[str, Resource] | None = None) -> None:
        self.client = client
        if rows is None:
            from kubern.model.resources import RESOURCES
            rows = rows_by_name(RESOURCES)
        self.rows = rows
        self.mirrors: dict[str, Mirror] = {}
        self.graph = Graph()
        self.remote: dict[tuple[str, str], Resource] = {}          # (apiVersion, kind) of aggregated APIs (client/aggregated.py)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def mirror(self, name: str) -> Mirror:
        found = self.mirrors.get(name)
        if found is None:
            found = self.mirrors[name] = Mirror(self.client, self.rows[name])
        return found

    def start(self, name: str) -> Mirror:
        """The mirror, running."""
        mirror = self.mirror(name)
        if name not in self._tasks:
            self._tasks[name] = asyncio.get_running_loop().create_task(mirror.run(), name=f"mirror {name}")
        return mirror

    def add(self, name: str, row: Resource, *, metadata_only: bool) -> Mirror:
        """A mirror for a resource that is not in the table (custom resources), running."""
        self.rows[name] = row
        if name not in self.mirrors:
            self.mirrors[name] = Mirror(self.client, row, metadata_only=metadata_only)
        return self.start(name)

    async def remove(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        mirror = self.mirrors.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if mirror is not None:
            mirror.clear()

    async def synced(self, names: Iterable[str]) -> None:
        for name in names:
            await self.start(name).synced.wait()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- View

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        return self.mirrors[resource].objects.get((namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> Iterable[Object]:
        return self.mirrors[resource].list(namespace)

    def owned(self, resource: str, owner_uid: str) -> Iterable[Object]:
        return self.mirrors[resource].by("owner", owner_uid)

    def by(self, resource: str, index: str, value: str) -> Iterable[Object]:
        return self.mirrors[resource].by(index, value)

    def find(self, uid: str) -> Object | None:
        return self.graph.objects.get(uid)

    def dependents(self, uid: str) -> Iterable[Object]:
        return list(self.graph.dependents.get(uid, {}).values())

    def served_elsewhere(self, api_version: str, kind: str) -> Resource | None:
        return self.remote.get((api_version, kind))
