"""Read: get, list and watch of every row, over the cache.

Consistency: the cache has seen every acknowledged write, so "most recent" is what it holds; the past (an exact resourceVersion, a
continue token) comes from the store's history. Upstream: API concepts "Resource versions", KEP-365, KEP-2340; storage/cacher.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
from typing import Any

import orjson

from kubern.api.cache import Item, body_of
from kubern.api.call import Call, answer_bytes
from kubern.api.forms import ITEMS_A_TURN, Form, form_of
from kubern.api.negotiate import JSON, STREAMS, YAML, not_acceptable
from kubern.api.options import ListOptions, list_options
from kubern.api.options import version as parse_version
from kubern.api.watch import Watch
from kubern.model import names
from kubern.model.invalid import quote
from kubern.model.request import Response
from kubern.model.status import StatusError, bad_request, not_found, qualified
from kubern.store.protocol import Compacted, Future

INCONSISTENT = ("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue "
                "parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided "
                "token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was "
                "returned and now may show up in the list.")


def too_large(wanted: int, current: int) -> StatusError:
    return StatusError(504, "Timeout", f"Timeout: Too large resource version: {wanted}, current: {current}", {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1},
        [("Retry-After", "1")])


def find(call: Call) -> Item:
    """The item a request names; raises 404, 400 for a name that is no path segment."""
    item = call.served.collection.items.get(call.key)
    if item is None:
        a, row = call.attributes, call.served.row
        why = names.is_path_segment_name(a.name)
        if why:
            raise bad_request(f"Name parameter invalid: {quote(a.name)}: {';'.join(why)}")
        raise not_found(row.group, row.plural, a.name)
    return item


async def get(call: Call) -> Response:
    request, served = call.request, call.served
    accept = call.accept()
    if request.query:
        if request.query.get("export"):
            raise bad_request("the export parameter, deprecated since v1.14, is no longer supported")
        wanted = parse_version(request.param("resourceVersion"))
        if wanted > call.server.cache.revision:
            raise too_large(wanted, call.server.cache.revision)
    item = find(call)
    if served.webhook is not None:
        await served.ready((item,))
    if not accept.convert:
        return answer_bytes(served.head + served.body(item) + b"\n", accept)
    return answer_bytes(form_of(served, accept, request.param("includeObject"), listing=False).one(item), accept)


def _encode_continue(revision: int, start: str) -> str:
    token = orjson.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": start + "\0"})
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def _decode_continue(text: str) -> tuple[int, str]:
    try:
        token = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        revision, start = token["rv"], token["start"]
        if token["v"] != "meta.k8s.io/v1" or not isinstance(revision, int) or not isinstance(start, str) or revision == 0:
            raise ValueError
    except (binascii.Error, ValueError, KeyError, TypeError, UnicodeError):
        at = next((i for i, c in enumerate(text) if not (c.isascii() and (c.isalnum() or c in "-_"))), len(text) // 4 * 4)
        raise bad_request(f"invalid continue token: continue key is not valid: illegal base64 data at input byte {at}") from None
    if not start:
        raise bad_request("invalid continue token: continue key is not valid: encoded start key empty (version meta.k8s.io/v1)")
    return revision, start


async def list_(call: Call, *, forced_watch: bool = False, name: str = "") -> Response:
    """LIST, or WATCH where the query or the deprecated path asks for it."""
    served = call.served
    accept = call.accept(True)
    o = list_options(call.request, served.row, watch=forced_watch, name=name)
    if o.watch:
        return watch(call, o)
    form = form_of(served, accept, call.request.param("includeObject"), listing=True)
    collection, cache = served.collection, call.server.cache
    namespace = call.namespace
    wanted = 0
    limit = max(o.limit, 0)
    start, exact = "", False
    if o.continue_:
        revision, start = _decode_continue(o.continue_)
        if o.version not in ("", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
        if revision > 0:
            wanted, exact = revision, True
    elif o.version:
        wanted = parse_version(o.version, listing=True)
        exact = bool(wanted) and (o.match == "Exact" or (not o.match and limit > 0))
        if o.version == "0" and o.match != "Exact":
            limit = 0
    if wanted > cache.revision:
        raise too_large(wanted, cache.revision)
    if exact and (collection.changed > wanted or wanted < call.server.store.compacted):
        return await _list_past(call, form, o, namespace, wanted, start, limit)
    revision = wanted if exact else cache.revision
    if not limit and not start and o.everything:
        return answer_bytes(await _whole(call, form, namespace, revision), accept)
    low, high = collection.span(namespace, start)
    items, order = collection.items, collection.order
    meta = b'%d"' % revision
    if o.everything:
        end = min(high, low + limit) if limit else high
        chosen = [items[k] for k in order[low:end]]
        if end < high:
            meta += _more(revision, namespace, chosen[-1], high - end)
    else:
        chosen, more = await _select(call, o, [items[k] for k in order[low:high]], limit)
        if more:
            meta += _more(revision, namespace, chosen[-1], None)
    if form.whole:
        await served.ready(chosen)
    return answer_bytes(await form.long_list(chosen, meta + b"}"), accept)


def _more(revision: int, namespace: str, last: Item, remaining: int | None) -> bytes:
    start = last.name if namespace else last.key
    out = b',"continue":"%b"' % _encode_continue(revision, start).encode()
    if remaining is not None:
        out += b',"remainingItemCount":%d' % remaining
    return out


async def _select(call: Call, o: ListOptions, candidates: list[Item], limit: int) -> tuple[list[Item], bool]:
    """Items that match, at most `limit`, and whether there are more."""
    name = o.exact("metadata.name")
    if name is not None:
        candidates = [i for i in candidates if i.name == name]
    out: list[Item] = []
    served = call.served
    if o.of_fields:
        await served.ready(candidates)
    for n, item in enumerate(candidates, 1):
        if n % ITEMS_A_TURN == 0:
            await asyncio.sleep(0)
        if served.selected(o, item, item.read()):
            if limit and len(out) == limit:
                return out, True
            out.append(item)
    return out, False


async def _whole(call: Call, form: Form, namespace: str, revision: int) -> list[bytes]:
    """All objects of a collection or namespace; the joined body is kept while nothing changes."""
    collection = call.served.collection
    meta = b'%d"}' % revision
    if type(form) is not Form:
        items = collection.range(namespace)
        if form.whole:
            await call.served.ready(items)
        return await form.long_list(items, meta)
    key = (call.served.row.api_version, namespace)
    kept = call.server.lists.get((collection.prefix, *key))
    head = form.list_start(meta)
    if kept is not None and kept[0] == collection.changed and kept[1] is call.served:
        return [head, *kept[2]]
    changed, items = collection.changed, collection.range(namespace)
    await call.served.ready(items)
    pieces = await form.long_list(items, meta)
    rest = [pieces[0][len(head):], *pieces[1:]]
    call.server.keep_list((collection.prefix, *key), (changed, call.served, rest), sum(map(len, rest)))
    return [head, *rest]


async def _list_past(call: Call, form: Form, o: ListOptions, namespace: str, revision: int, start: str, limit: int) -> Response:
    """A list of an older revision, out of the store's history."""
    collection = call.served.collection
    prefix = collection.prefix + (f"{namespace}/" if namespace else "")
    out: list[Item] = []
    more = False
    at = prefix + start if start else ""
    selecting = not o.everything
    page = 0 if not limit else (limit + 1 if not selecting else max(limit + 1, 500))
    while True:
        try:
            entries, _ = await call.server.store.list(prefix, start=at, limit=page, revision=revision)
        except Compacted:
            if o.continue_:
                error = StatusError(410, "Expired", INCONSISTENT)
                raise _WithContinue(error, _encode_continue(-1, start.rstrip("\0"))) from None
            raise StatusError(410, "Expired", "The resourceVersion for the provided list is too old.") from None
        except Future:
            raise too_large(revision, call.server.cache.revision) from None
        found = [Item(e.key[len(collection.prefix):], body_of(e.value, e.revision), e.revision, e.create_revision) for e in entries]
        if o.of_fields:
            await call.served.ready(found)
        for item in found:
            if selecting and not call.served.selected(o, item, item.parse()):
                continue
            if limit and len(out) == limit:
                more = True
                break
            out.append(item)
        if more or not page or len(entries) < page:
            break
        at = entries[-1].key + "\0"
    meta = b'%d"' % revision
    if more:
        remaining = None
        if not selecting:
            rest, _ = await call.server.store.list(prefix, start=prefix + (out[-1].name if namespace else out[-1].key) + "\0", revision=revision)
            remaining = len(rest)
        meta += _more(revision, namespace, out[-1], remaining)
    if form.whole:
        await call.served.ready(out)
    return answer_bytes(form.list(out, meta + b"}"), call.accept(True))


class _WithContinue(StatusError):
    """410 with a token by which the client may go on inconsistently."""

    def __init__(self, error: StatusError, token: str) -> None:
        super().__init__(error.code, error.reason, error.message, error.details, error.headers)
        self.token = token

    def status(self) -> dict[str, Any]:
        return {**super().status(), "metadata": {"continue": self.token}}


def watch(call: Call, o: ListOptions) -> Response:
    served, row = call.served, call.served.row
    if "watch" not in row.verbs:
        raise StatusError(405, "MethodNotAllowed", f"watch is not supported on resources of kind {quote(qualified(row.group, row.plural))}",
                          {k: v for k, v in (("group", row.group), ("kind", row.plural)) if v})
    accept = call.accept(True)
    version = parse_version(o.version)
    form = form_of(served, accept, call.request.param("includeObject"), listing=True, watching=True)
    if accept.media == YAML:
        raise not_acceptable(STREAMS)
    server = call.server
    settings = server.settings
    timeout_s = float(o.timeout_s or 0)
    if timeout_s <= 0:
        timeout_s = settings.watch_timeout_s * (1 + random.random())
    body = Watch(server.hub(served.collection), form, call.namespace, o, version, timeout_s)
    body.objects = call.request.objects and not body.headers_due
    server.watch_started(body)
    return Response(200, [("Content-Type", JSON)], body)
