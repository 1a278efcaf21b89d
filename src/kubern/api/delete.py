"""Delete: one object or a collection; graceful, by finalizers, or at once. Decides what a deletion is and writes it.

Upstream: registry/rest/delete.go (BeforeDelete), registry/generic/registry/store.go (Delete, DeleteCollection), endpoints/handlers/delete.go.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from kubern.api.bodies import decoded
from kubern.api.cache import Item, body_of, value_of
from kubern.api.call import Call, answer, answer_bytes
from kubern.api.forms import form_of
from kubern.api.negotiate import YAML, content_type_of
from kubern.api.options import DeleteOptions, delete_options, list_options
from kubern.api.read import _encode_continue, _select, find
from kubern.model import metadata
from kubern.model.object import Object
from kubern.model.request import Response
from kubern.model.status import MODIFIED, StatusError, conflict, not_found
from kubern.model.time import rfc3339
from kubern.store.protocol import Conflict

RACE_ATTEMPTS = 50
PAGE_ITEMS = 10_000
WORKERS = 16                    # objects of a collection deleted at the same time (upstream: --delete-collection-workers); they share commits
NO_GARBAGE_COLLECTION = {("", "events")}
NAMESPACES, DEFINITIONS = ("", "namespaces"), ("apiextensions.k8s.io", "customresourcedefinitions")     # upstream begins their deletion by hand


def _warn(call: Call, options: DeleteOptions) -> None:
    if options.propagation is None and options.orphan is None and call.served.row.storage == ("batch", "jobs"):
        call.warn("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set "
                  "propagationPolicy=Orphan to suppress this warning")


async def _options(call: Call) -> DeleteOptions:
    request = call.request
    content_type = content_type_of(request) if request.body else ""
    return await decoded(request.body, content_type == YAML, lambda: delete_options(request, content_type))


async def delete(call: Call) -> Response:
    accept = call.accept()
    options = await _options(call)
    _warn(call, options)
    item = find(call)
    outcome, gone = await remove(call, item, options)
    status = 202 if not gone and options.orphan is False else 200
    if isinstance(outcome, Item):
        await call.served.ready((outcome,))
        if accept.convert:
            return answer_bytes(form_of(call.served, accept, call.request.param("includeObject"), listing=False).one(outcome), accept, status)
        return answer_bytes(call.served.head + call.served.body(outcome) + b"\n", accept, status)
    return answer(outcome, accept, status)


def _success(call: Call, meta: dict[str, Any]) -> Object:
    row = call.served.row
    details = {"name": meta.get("name"), "group": row.group, "kind": row.plural, "uid": meta.get("uid")}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": {k: v for k, v in details.items() if v}}


def _preconditions(call: Call, meta: dict[str, Any], revision: int, options: DeleteOptions) -> None:
    row, name = call.served.row, meta.get("name") or ""
    if options.uid is not None and options.uid != meta.get("uid"):
        raise conflict(row.group, row.kind, name, f"the UID in the precondition ({options.uid}) does not match the UID in record "
                       f"({meta.get('uid')}). The object might have been deleted and then recreated")
    if options.version is not None and options.version != str(revision):
        raise conflict(row.group, row.kind, name, f"the ResourceVersion in the precondition ({options.version}) does not match the "
                       f"ResourceVersion in record ({revision}). The object might have been modified")


async def remove(call: Call, item: Item, options: DeleteOptions) -> tuple[Item | Object, bool]:
    """Deletes, or begins to. The object or Status to show, and whether it is gone."""
    server, served = call.server, call.served
    kind, row, collection = served.kind, served.row, served.collection
    key = item.key
    grace = options.grace_s
    if grace is not None and grace < 0:
        grace = 1
    for _ in range(RACE_ATTEMPTS):
        live = served.stored(item)
        old = live
        if served.webhook is not None:
            await served.ready((item,))
            old = served.shown(item)
        meta = live["metadata"]
        _preconditions(call, meta, item.revision, options)
        begins = row.storage in (NAMESPACES, DEFINITIONS) and not meta.get("deletionTimestamp")
        namespace = row.storage == NAMESPACES and bool((live.get("spec") or {}).get("finalizers"))
        if namespace and not begins:
            return _result(call, item, live), False
        admission = server.admission_for(call, "DELETE", meta["name"], None, old, options.dry_run, options.raw)
        # graceful: how long the object lives on; pending: it is being deleted already and nothing changes
        graceful = pending = changed = False
        seconds = 0
        if kind.grace_s is not None:
            if meta.get("deletionTimestamp"):
                left = meta.get("deletionGracePeriodSeconds") or 0
                if left > 0:
                    if grace is not None and grace < left:
                        await admission.run()
                        metadata.shorten_grace(meta, grace, call.now_s)
                        graceful, seconds, changed = True, meta["deletionGracePeriodSeconds"] if grace else 0, True
                    else:
                        pending = True
            else:
                seconds = kind.grace_s(live, grace)
                if seconds is not None and seconds >= 0:
                    graceful = True
        if pending:
            return _result(call, item, live), False
        if not changed:
            await admission.run()
            if graceful:
                metadata.mark_graceful(meta, seconds, call.now_s)
                changed = True
        before = server.before_delete.get(row.storage)
        if before is not None:
            before(call, live)
            changed = True
        default = "Unsupported" if row.storage in NO_GARBAGE_COLLECTION else kind.default_propagation
        finalizers = metadata.deletion_finalizers(meta, options.orphan, options.propagation, default)
        if finalizers is not None and not (begins and row.storage == DEFINITIONS):
            meta["finalizers"] = finalizers
            changed = True
            if not finalizers:
                del meta["finalizers"]
        waiting = bool(meta.get("finalizers"))
        if (waiting and not graceful) or namespace:
            if begins:
                meta["deletionTimestamp"] = rfc3339(call.now_s)
            else:
                metadata.mark_deleting(meta, call.now_s)
            if row.storage == NAMESPACES:
                live.setdefault("status", {})["phase"] = "Terminating"
            changed = True
        try:
            shown = item
            if changed and (graceful or waiting or namespace):
                value = value_of(live, item.version)
                revision = item.revision
                if options.dry_run:
                    shown = Item(key, body_of(value, revision), revision, item.created)
                else:
                    if value != item.value:
                        revision = await server.put(collection.prefix + key, value, item.revision)
                    shown = collection.items.get(key) or Item(key, body_of(value, revision), revision, item.created)
                if waiting or namespace or seconds > 0:
                    return shown, False
            if options.dry_run:
                return _result(call, shown, live), True
            revision = await server.delete(collection.prefix + key, shown.revision)
            await server.after_delete(call, live)
            last = Item(key, body_of(shown.value, revision), revision, item.created)
            return _result(call, last, live), True
        except Conflict:
            newer = collection.items.get(key)
            if newer is None:
                if graceful and changed:
                    return _result(call, shown, live), True
                raise not_found(row.group, row.plural, meta["name"]) from None
            item = newer
    raise conflict(row.group, row.plural, call.attributes.name, MODIFIED)


def _result(call: Call, item: Item, live: Object) -> Item | Object:
    return item if call.served.kind.delete_returns_object else _success(call, live["metadata"])


async def delete_collection(call: Call) -> Response:
    accept = call.accept()
    served = call.served
    o = list_options(call.request, served.row)
    options = await _options(call)
    _warn(call, options)
    form = form_of(served, accept, call.request.param("includeObject"), listing=True)
    collection = served.collection
    limit = max(o.limit, 0)
    low, high = collection.span(call.namespace)
    candidates = [collection.items[k] for k in collection.order[low:high]]
    if o.everything:
        chosen, more = (candidates[:limit], len(candidates) > limit) if limit else (candidates, False)
    else:
        chosen, more = await _select(call, o, candidates, limit)
    revision = call.server.cache.revision
    todo = iter(chosen)

    async def some() -> None:
        for item in todo:
            current = collection.items.get(item.key)
            if current is None:
                continue
            one = Call(call.server, call.request, call.user, call.attributes._replace(name=item.name, namespace=item.namespace), served)
            one.warnings = call.warnings
            try:
                await remove(one, current, replace(options))
            except StatusError as e:
                if e.reason != "NotFound":
                    raise
    ended = await asyncio.gather(*(some() for _ in range(min(WORKERS, len(chosen)))), return_exceptions=True)
    failed = next((e for e in ended if isinstance(e, BaseException)), None)
    if failed is not None:
        raise failed
    meta = b'%d"' % revision
    if more and chosen:
        meta += b',"continue":"%b"' % _encode_continue(revision, chosen[-1].name if call.namespace else chosen[-1].key).encode()
        if o.everything:
            meta += b',"remainingItemCount":%d' % (len(candidates) - len(chosen))
    if form.whole:
        await served.ready(chosen)
    return answer_bytes(form.list(chosen, meta + b"}"), accept)
