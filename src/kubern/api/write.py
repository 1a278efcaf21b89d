"""Write: create, update and patch of every row, in the order upstream's registry has it.

    decode → storage shape → defaults → managed fields → mutating admission → fill in and prepare → validate → validating admission → store

A change reads the newest state, decides, and writes on the condition that it is still the newest; where the client gave no
resourceVersion a lost race is decided again. Upstream: endpoints/handlers/{create,update,patch}.go, registry/rest, registry/generic/registry.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, Protocol

from kubern.api.authz.attributes import Attributes as Asked
from kubern.api.authz.attributes import forbid
from kubern.api.bodies import decoded, looks_like_yaml
from kubern.api.cache import Item, body_of, value_of
from kubern.api.call import Call, answer_bytes
from kubern.api.forms import Served, form_of
from kubern.api.negotiate import YAML, Accept, content_type_of, router_unsupported_media_type
from kubern.api.options import WriteOptions, write_options
from kubern.model import invalid as field_error
from kubern.model import metadata
from kubern.model.convert import default_served
from kubern.model.invalid import FieldError, quote
from kubern.model.kinds.kind import Kind
from kubern.model.object import Object, clone
from kubern.model.request import Response
from kubern.model.status import MODIFIED, StatusError, already_exists, bad_request, conflict, forbidden, invalid, not_found
from kubern.model.time import rfc3339
from kubern.store.protocol import Conflict

GENERATED_NAME_ATTEMPTS = 8
RACE_ATTEMPTS = 50            # how often an unconditional change is decided again before it gives up
PATCH_TYPES = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
    "application/apply-patch+yaml": "apply",
}
_DUPLICATE_OWNERS = (".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such "
                     "requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}")
_DUPLICATE_OWNERS_ADMITTED = (".metadata.ownerReferences contains duplicate entries after mutating admission happens; API server dedups owner "
                              "references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) "
                              "observed: {}")



class Transaction(Protocol):
    """What a write took beside its object (addresses, ports)."""

    async def reserve(self) -> None: ...

    async def undo(self, why: BaseException | None = None) -> None: ...

    async def commit(self) -> None: ...


_random = random.Random(os.urandom(32))      # uids must not repeat; they are no secrets

Build = Callable[[Object | None], Object]      # live object in the row's shape, or None -> the wanted one in the row's shape


# --- what both ways in share ---

async def decode_object(call: Call, options: WriteOptions, api_version: str = "", kind: str = "", schema: Any = None) -> Object:
    """The body as an object with kind and apiVersion; strictness as asked. Raises StatusError."""
    from kubern.model.decode import decode

    request, served = call.request, call.served
    if served.row.custom or request.headers.get("content-type", "application/json") != "application/json":
        content_type = content_type_of(request)
    else:
        content_type = "application/json"
    schema = schema if schema is not None else served.schema
    obj, warnings = await decoded(request.body, content_type == YAML, lambda: decode(
        request.body, content_type, served.row, schema, options.validation, api_version=api_version, kind=kind))
    for w in warnings:
        call.warn(w)
    if not isinstance(obj.get("metadata"), dict):
        obj["metadata"] = {}
    return obj


def match_namespace(meta: dict[str, Any], call: Call) -> None:
    """Fills in the request's namespace; raises 400 where the object names another."""
    have, want = meta.get("namespace") or "", call.namespace
    if have == want:
        return
    if not have:
        meta["namespace"] = want
    elif not want:
        del meta["namespace"]
    else:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")


def _dedup_owners(call: Call, meta: dict[str, Any], text: str) -> None:
    twice = metadata.dedup_owner_references(meta)
    if twice:
        call.warn(text.format(", ".join(twice)))


async def shown_bytes(served: Served, value: bytes, revision: int) -> bytes:
    """The served JSON of what was just stored."""
    if served.convert is None:
        return served.head + body_of(value, revision) + b"\n"
    item = Item("", body_of(value, revision), revision, revision)
    await served.ready((item,))
    return served.head + served.body(item) + b"\n"


async def respond(call: Call, accept: Accept, value: bytes, revision: int, status: int) -> Response:
    """The answer of a write: the object as it is stored now. Revision 0: a dry run, which has none."""
    served = call.served
    if accept.convert:
        key = call.key or "x"
        item = Item(key, body_of(value, revision), revision, revision)
        await served.ready((item,))
        return answer_bytes(form_of(served, accept, call.request.param("includeObject"), listing=False).one(item), accept, status)
    if not revision and served.convert is None:
        return answer_bytes(served.head + b'"metadata":{' + value + b"\n", accept, status)
    return answer_bytes(await shown_bytes(served, value, revision), accept, status)


def _fields_update(call: Call, live: Object | None, new: Object, options: WriteOptions, subresource: str) -> None:
    from kubern.model import fields

    served = call.served
    entries = fields.update(live, new, options.manager, served.row.api_version, rfc3339(call.now_s), subresource,
                            schema=served.schema, has_status=served.has_status)
    if entries:
        new["metadata"]["managedFields"] = entries
    else:
        new["metadata"].pop("managedFields", None)


def meta_errors(served: Served, meta: dict[str, Any]) -> list[FieldError]:
    errors = metadata.validate_meta(meta, served.row.namespaced, served.kind.name_check)
    if meta.get("finalizers") and not served.row.custom and served.kind.qualified_finalizers:
        errors += metadata.validate_finalizers_qualified(meta["finalizers"], "metadata.finalizers")
    return errors


def meta_update_errors(served: Served, new: dict[str, Any], old: dict[str, Any], sub: str = "") -> list[FieldError]:
    """The errors of metadata on update. The registry checks it once for all kinds, the kind's own validation again: causes come twice."""
    from kubern.model.names import name_is_path_segment

    common = metadata.validate_meta(new, served.row.namespaced, name_is_path_segment)
    changed = metadata.validate_meta_update(new, old)
    kind = served.kind
    again = kind.meta_update
    if sub == "status":
        again = min(kind.meta_update + kind.meta_again, 1) if kind.meta_status is None else kind.meta_status
    errors = [*common, *changed, *changed * again]
    if again and new.get("finalizers") and new.get("finalizers") != old.get("finalizers") and not served.row.custom \
            and kind.qualified_finalizers:
        errors += metadata.validate_finalizers_qualified(new["finalizers"], "metadata.finalizers")
    return errors


def raise_invalid(call: Call, name: str, errors: list[FieldError]) -> None:
    if errors:
        row = call.served.row
        if call.request.method != "PATCH" and any(e.value is None for e in errors):
            errors = field_error.as_given(errors, call.request.body)
        raise invalid(row.storage[0], row.kind, name, errors)


# --- create ---

async def create(call: Call) -> Response:
    accept = call.accept()
    served = call.served
    if not served.row.custom and call.request.headers.get("content-type"):
        content_type_of(call.request)
    options = write_options(call.request, "CreateOptions")
    obj = await decode_object(call, options)
    meta = obj["metadata"]
    version = meta.get("resourceVersion", "")
    versioned = version.isascii() and version.isdigit() and int(version) > 0         # what is no number is no version
    metadata.wipe(meta)
    match_namespace(meta, call)
    _dedup_owners(call, meta, _DUPLICATE_OWNERS)
    value, revision = await create_object(call, obj, options, versioned=versioned)
    return await respond(call, accept, value, revision, 201)


async def create_object(call: Call, obj: Object, options: WriteOptions, *, tracked: bool = False, versioned: bool = False) -> tuple[bytes, int]:
    """Stores a new object, given in the row's shape; what was stored and its revision (0 for a dry run). `tracked`: its managedFields stand.
    `versioned`: it came with a resourceVersion, which the store refuses, after everybody else had a say."""
    server, served = call.server, call.served
    kind, row = served.kind, served.row
    meta = obj["metadata"]
    if served.to_storage is not None:
        default_served(obj, row)
        if not tracked:
            _fields_update(call, None, obj, options, "")
            tracked = True
        obj = served.to_storage(obj, row)
        meta = obj["metadata"]
    kind.defaults(obj)
    if not tracked:
        _fields_update(call, None, obj, options, "")
    name = meta.get("name") or ""
    admission = server.admission_for(call, "CREATE", name, obj, None, options.dry_run, options.raw)
    await admission.mutate()
    obj = admission.obj
    meta = obj["metadata"]
    _dedup_owners(call, meta, _DUPLICATE_OWNERS_ADMITTED)
    generated = not meta.get("name") and bool(meta.get("generateName"))
    for attempt in range(GENERATED_NAME_ATTEMPTS if generated else 1):
        trial = clone(obj) if generated and attempt + 1 < GENERATED_NAME_ATTEMPTS else obj
        try:
            return await _create_once(call, trial, options, admission, generated, versioned)
        except StatusError as e:
            if e.reason != "AlreadyExists" or not generated or attempt + 1 == GENERATED_NAME_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


async def _create_once(call: Call, obj: Object, options: WriteOptions, admission: Any, generated: bool, versioned: bool) -> tuple[bytes, int]:
    server, served = call.server, call.served
    kind, row, collection = served.kind, served.row, served.collection
    meta = obj["metadata"]
    if served.custom is not None and served.custom.terminating:
        raise forbidden(row.group, row.plural, meta.get("name") or "", "create not allowed while custom resource definition is terminating")
    meta["creationTimestamp"] = rfc3339(call.now_s)
    meta["uid"] = metadata.uid(_random.getrandbits(128))
    if generated:
        meta["name"] = metadata.generate_name(meta["generateName"], random.randrange)
    match_namespace(meta, call)
    taken: Transaction | None = None
    begin = server.begin_create.get(row.storage)
    if begin is not None:
        taken = begin(call, obj, options.dry_run)
    try:
        if kind.has_generation:
            meta["generation"] = 1
        kind.prepare_create(obj)
        metadata.tidy(meta)
        errors = [*admission.errors, *meta_errors(served, meta), *kind.validate(obj)]
        name = meta.get("name") or ""
        raise_invalid(call, name, errors)
        for w in kind.warnings(obj, None):
            call.warn(w)
        admission.obj, admission.name = obj, name
        await admission.validate()
        if versioned:
            raise bad_request("resourceVersion should not be set on objects to be created")
        key = f"{meta['namespace']}/{name}" if row.namespaced else name
        if taken is not None and not options.dry_run:
            await taken.reserve()
        kept = obj if served.webhook is None else await served.kept(obj)
        value = value_of(kept, served.marks)
        if options.dry_run:
            if key in collection.items:
                raise _exists(call, key, name)
            if taken is not None:
                await taken.undo()
            return value, 0
        try:
            revision = await server.put(collection.prefix + key, value, 0, kept)
        except Conflict:
            raise _exists(call, key, name) from None
    except BaseException as e:
        if taken is not None:
            await taken.undo(e)
        raise
    if taken is not None:
        await taken.commit()
    return value, revision


def _exists(call: Call, key: str, name: str) -> StatusError:
    row = call.served.row
    error = already_exists(row.group, row.plural, name)
    item = call.served.collection.items.get(key)
    if item is not None and b'"deletionTimestamp"' in item.body and item.parse()["metadata"].get("deletionTimestamp"):
        return StatusError(error.code, error.reason, f"object is being deleted: {error.message}", error.details)
    return error


# --- update ---

Prepare = Callable[[Object, Object], None]
Check = Callable[[Object, Object], list[FieldError]]


async def update(call: Call, *, prepare: Prepare | None = None, check: Check | None = None) -> Response:
    """PUT of an object, or of a subresource of its shape whose rules are given."""
    accept = call.accept()
    served, a = call.served, call.attributes
    options = write_options(call.request, "UpdateOptions")
    if not served.row.custom and call.request.headers.get("content-type"):
        content_type_of(call.request)
    obj = await decode_object(call, options)
    meta = obj["metadata"]
    same_identity(call, obj)
    _dedup_owners(call, meta, _DUPLICATE_OWNERS)
    given: list[Object] = [obj]
    uid = meta.get("uid") or ""

    def build(live: Object | None) -> Object:
        if live is not None and uid and uid != live["metadata"].get("uid"):
            raise _wrong_uid(call, uid, live["metadata"].get("uid") or "")
        if live is None and uid:
            raise _wrong_uid(call, uid, "")
        return given.pop() if given else clone(spare)

    spare = clone(obj) if not meta.get("resourceVersion") else obj
    value, revision, created = await modify(call, build, options, create_ok=served.kind.create_on_update and not a.subresource,
                                            prepare=prepare, check=check)
    return await respond(call, accept, value, revision, 201 if created else 200)


# Where upstream's store keeps what is not under its own name; of these groups all is kept under the group's.
_KEPT_UNDER = {("", "replicationcontrollers"): "controllers", ("", "endpoints"): "services/endpoints", ("", "nodes"): "minions",
               ("", "services"): "services/specs", ("networking.k8s.io", "ingresses"): "ingress"}
_KEPT_BY_GROUP = ("apiextensions.k8s.io", "apiregistration.k8s.io")


def _wrong_uid(call: Call, want: str, have: str) -> StatusError:
    row = call.served.row
    group, plural = row.storage
    place = f"{group}/{plural}" if row.custom or group in _KEPT_BY_GROUP else _KEPT_UNDER.get(row.storage, plural)
    return conflict(row.group, row.plural, call.attributes.name,
                    f"StorageError: invalid object, Code: 4, Key: /registry/{place}/{call.key}, ResourceVersion: 0, "
                    f"AdditionalErrorMsg: Precondition failed: UID in precondition: {want}, UID in object meta: {have}")


async def modify(call: Call, build: Build, options: WriteOptions, *, subresource: str | None = None, create_ok: bool = False,
                 tracked: bool = False, prepare: Prepare | None = None, check: Check | None = None) -> tuple[bytes, int, bool]:
    """The change of one object: (what is stored now, its revision, was it created). `prepare` and `check` replace the kind's for a
    subresource with its own rules; `tracked`: build has set managedFields."""
    server, served = call.server, call.served
    row, kind, collection, key = served.row, served.kind, served.collection, call.key
    sub = call.attributes.subresource if subresource is None else subresource
    for _ in range(RACE_ATTEMPTS):
        await server.settled(collection.prefix + key)
        item = collection.items.get(key)
        if item is None:
            if not create_ok:
                raise not_found(row.group, row.plural, call.attributes.name)
            obj = build(None)
            if obj["metadata"].get("uid") and call.request.method == "PATCH":
                raise conflict(row.group, row.plural, call.attributes.name, "uid mismatch: the provided object specified uid "
                               f"{obj['metadata']['uid']}, and no existing object was found")
            metadata.wipe(obj["metadata"])
            _may_create(call)
            value, revision = await create_object(call, obj, options, tracked=tracked)
            return value, revision, True
        await served.ready((item,))
        live = served.stored(item)
        if served.to_storage is not None and served.convert is not None:
            shown = served.convert(served.stored(item), row)
            new = build(shown)
            default_served(new, row)
            if not tracked:
                _fields_update(call, shown, new, options, sub)
            new = served.to_storage(new, row)
            kind.defaults(new)
        else:
            if served.custom is not None:
                live = served.shown(item)      # another version's, or an older schema's, as this one reads it
            new = build(live)
            kind.defaults(new)
            if not tracked:
                _fields_update(call, live, new, options, sub)
        admission = server.admission_for(call, "UPDATE", call.attributes.name, new, live, options.dry_run, options.raw)
        await admission.mutate()
        new = admission.obj
        meta, old_meta = new["metadata"], live["metadata"]
        match_namespace(meta, call)
        _dedup_owners(call, meta, _DUPLICATE_OWNERS_ADMITTED)
        _check_version(call, meta, item.revision)
        taken: Transaction | None = None
        begin = server.begin_update.get(row.storage) if not sub else None
        if begin is not None:
            taken = begin(call, new, live, options.dry_run)
        try:
            if served.custom is not None:
                _same_kind(served, new)
            _prepare(served, new, live, sub, prepare)
            meta = new["metadata"]
            errors = [*meta_update_errors(served, meta, old_meta, sub), *admission.errors]
            if kind.meta_again and sub != "status":
                errors += meta_errors(served, meta) * kind.meta_again
            if check is not None:
                errors += check(new, live)
            elif sub == "status":
                errors += kind.validate_status(new, live)
            else:
                errors += kind.validate_update(new, live)
            if errors and served.custom is not None:
                for w in kind.warnings(new, live):
                    call.warn(w)
            raise_invalid(call, meta.get("name") or "", errors)
            for w in kind.warnings(new, live) if not sub else kind.status_warnings(new) if sub == "status" else ():
                call.warn(w)
            _forget_times(new, live)
            admission.obj = new
            await admission.validate()
            if _emptied(call, meta, old_meta, new):
                value = value_of(await served.kept(new), served.marks)
                if options.dry_run:
                    return value, item.revision, False
                try:
                    revision = await server.delete(collection.prefix + key, item.revision)
                except Conflict:
                    continue
                await server.after_delete(call, live)
                return value, revision, False
            kept = new if served.webhook is None else await served.kept(new)
            if kept == (live if served.custom is None else served.stored(item)) and not server.stale(collection.prefix + key):
                if taken is not None:
                    await taken.undo()
                return item.value, item.revision, False
            if taken is not None and not options.dry_run:
                await taken.reserve()
                kept = await served.kept(new)
            value = value_of(kept, served.marks)
            if options.dry_run:
                if taken is not None:
                    await taken.undo()
                return value, item.revision, False
            try:
                revision = await server.put(collection.prefix + key, value, item.revision, kept)
            except Conflict:
                if taken is not None:
                    await taken.undo()
                continue
            if taken is not None:
                await taken.commit()
            return value, revision, False
        except BaseException as e:
            if taken is not None:
                await taken.undo(e)
            raise
    raise conflict(row.group, row.plural, call.attributes.name, MODIFIED)


def _same_kind(served: Served, new: Object) -> None:
    """A patch may not make another kind of a custom resource."""
    row = served.row
    errors = [field_error.invalid(field, new.get(field) or "", f"must be {want}")
              for field, want in (("kind", row.kind), ("apiVersion", row.api_version)) if new.get(field) != want]
    if errors:
        raise invalid(str(new.get("apiVersion") or "").rpartition("/")[0], str(new.get("kind") or ""), new["metadata"].get("name") or "", errors)


def _may_create(call: Call) -> None:
    """PUT and apply of a missing object need the right to create it."""
    asked = Asked(call.user, "create", *call.attributes[2:8], path=call.attributes.path)
    decision = call.server.decide(asked)
    if not decision.allowed:
        raise forbid(asked, decision.reason)


def _check_version(call: Call, meta: dict[str, Any], current: int) -> None:
    row, kind = call.served.row, call.served.kind
    given = meta.get("resourceVersion") or ""
    if given in ("", "0"):
        if not kind.unconditional_update:
            raise invalid(row.group, row.plural, call.attributes.name,
                          [field_error.invalid("metadata.resourceVersion", 0, "must be specified for an update")])
        meta["resourceVersion"] = str(current)
    elif given != str(current):
        if not given.isascii() or not given.isdigit():
            raise bad_request(f"strconv.ParseUint: parsing {quote(given)}: invalid syntax")
        raise conflict(row.group, row.plural, call.attributes.name, MODIFIED)


def _prepare(served: Served, new: Object, live: Object, sub: str, prepare: Prepare | None) -> None:
    """Strategy: what this way of writing may change, system fields, generation."""
    kind = served.kind
    meta, old_meta = new["metadata"], live["metadata"]
    if old_meta.get("generation"):
        meta["generation"] = old_meta["generation"]
    else:
        meta.pop("generation", None)
    if prepare is not None:
        prepare(new, live)
        meta = new["metadata"]
    elif sub == "status":
        if kind.prepare_status is not None:
            kind.prepare_status(new, live)
        else:
            keep_all_but_status(new, live, served.row.custom)
        meta = new["metadata"]
    else:
        kind.prepare_update(new, live)
        if kind.has_generation:
            changed = kind.generation_changed
            if changed(new, live) if changed is not None else new.get("spec") != live.get("spec"):
                meta["generation"] = (old_meta.get("generation") or 0) + 1
    metadata.keep_system_fields(meta, old_meta)
    metadata.tidy(meta)


def bump_generation(new: Object, live: Object) -> None:
    """The generation counts a changed spec."""
    if new.get("spec") != live.get("spec") and live["metadata"].get("generation"):
        new["metadata"]["generation"] = live["metadata"]["generation"] + 1


def as_main(kind: Kind) -> Prepare:
    """Prepares like a write of the object itself, for subresources that change a part of its spec."""
    def prepare(new: Object, live: Object) -> None:
        kind.prepare_update(new, live)
        if kind.has_generation:
            changed = kind.generation_changed
            if changed(new, live) if changed is not None else new.get("spec") != live.get("spec"):
                new["metadata"]["generation"] = (live["metadata"].get("generation") or 0) + 1
    return prepare


def item_of(call: Call, value: bytes, revision: int) -> Item:
    """What was just stored, as the cache would hold it."""
    return Item(call.key or "x", body_of(value, revision), revision, revision)


async def change(call: Call, build: Build, options: WriteOptions) -> int:
    """A change of a built-in kind that the server makes by itself: no admission, no validation, no managed fields; its new revision. `build`
    gets an object that others read as well, and leaves it as it is."""
    collection, row = call.served.collection, call.served.row
    for _ in range(RACE_ATTEMPTS):
        await call.server.settled(collection.prefix + call.key)
        item = collection.items.get(call.key)
        if item is None:
            raise not_found(row.group, row.plural, call.attributes.name)
        new = build({"kind": row.kind, "apiVersion": row.api_version, **item.read()})
        value = value_of(new, item.version)
        if value == item.value or options.dry_run:
            return item.revision
        try:
            return await call.server.put(collection.prefix + call.key, value, item.revision, new)
        except Conflict:
            continue
    raise conflict(row.group, row.plural, call.attributes.name, MODIFIED)


def keep_all_but_status(new: Object, live: Object, custom: bool) -> None:
    """A status update changes the status; built-in kinds let labels and annotations pass, custom resources no metadata at all."""
    for field in [k for k in new if k not in ("kind", "apiVersion", "metadata", "status")]:
        if field not in live:
            del new[field]
    for field, v in live.items():
        if field not in ("kind", "apiVersion", "metadata", "status"):
            new[field] = v
    if custom:
        meta = new["metadata"]
        managed, revision = meta.get("managedFields"), meta.get("resourceVersion")
        new["metadata"] = meta = dict(live["metadata"])
        if managed:
            meta["managedFields"] = managed
        if revision:
            meta["resourceVersion"] = revision


def _without_times(entries: Any) -> Any:
    return [{k: v for k, v in e.items() if k != "time"} for e in entries or ()]


def _forget_times(new: Object, live: Object) -> None:
    """A change of nothing but times in managedFields is no change."""
    meta, old = new["metadata"], live["metadata"]
    have, had = meta.get("managedFields"), old.get("managedFields")
    if have == had or not have or not had:
        return
    if _without_times(have) != _without_times(had):
        return
    if {**new, "metadata": {**meta, "managedFields": had}} == live:
        meta["managedFields"] = had


def _emptied(call: Call, meta: dict[str, Any], old_meta: dict[str, Any], new: Object) -> bool:
    """Whether this update removed the last thing a deletion was waiting for."""
    if not old_meta.get("deletionTimestamp") or meta.get("finalizers"):
        return False
    if meta.get("deletionGracePeriodSeconds"):
        return False
    if call.served.row.storage == ("", "namespaces"):
        return not (new.get("spec") or {}).get("finalizers")
    return bool(old_meta.get("finalizers"))


# --- patch ---

async def patch(call: Call, *, prepare: Prepare | None = None, check: Check | None = None) -> Response:
    """PATCH of an object or a subresource of its shape, in the four types."""
    request, served = call.request, call.served
    header = request.headers.get("content-type", "").partition(";")[0].strip()
    type_ = PATCH_TYPES.get(header)
    if type_ is None:
        raise router_unsupported_media_type()
    if type_ == "strategic" and served.row.custom:
        from kubern.api.negotiate import unsupported_media_type

        raise unsupported_media_type(tuple(t for t, n in PATCH_TYPES.items() if n != "strategic"))
    accept = call.accept()
    options = write_options(request, "PatchOptions", type_)
    if type_ == "apply":
        return await _apply(call, accept, options, prepare, check)
    from kubern.model.patch import patched

    row = served.row

    def build(live: Object | None) -> Object:
        assert live is not None
        out, warnings = patched(type_, live, request.body, served.schema, kind=row.kind, api_version=row.api_version, custom=row.custom,
                                validation=options.validation)
        for w in warnings:
            call.warn(w)
        same_identity(call, out)
        return out

    value, revision, _ = await modify(call, build, options, prepare=prepare, check=check)
    return await respond(call, accept, value, revision, 200)


def same_identity(call: Call, obj: Object) -> None:
    """A written object must be the one the path names."""
    match_namespace(obj["metadata"], call)
    name = obj["metadata"].get("name") or ""
    if not name:
        raise bad_request(f"the name of the object ({call.attributes.name} based on URL) was undeterminable: name must be provided")
    if name != call.attributes.name:
        raise bad_request(f"the name of the object ({name}) does not match the name on the URL ({call.attributes.name})")


async def _apply(call: Call, accept: Accept, options: WriteOptions, prepare: Prepare | None, check: Check | None) -> Response:
    from kubern.model import fields

    served, a = call.served, call.attributes
    row = served.row
    body, schema = call.request.body, served.schema
    applied, warnings = await decoded(body, looks_like_yaml(body), lambda: fields.parse_applied(body, row, schema, options.validation))
    if applied.get("metadata", {}) is None:
        del applied["metadata"]

    def build(live: Object | None) -> Object:
        new = fields.apply(live, applied, options.manager, options.force, row.api_version, rfc3339(call.now_s), a.subresource, served.schema,
                           has_status=served.has_status, kind=row.kind)
        meta = new.setdefault("metadata", {})
        same_identity(call, new)
        if live is not None and not (applied.get("metadata") or {}).get("resourceVersion"):
            meta["resourceVersion"] = live["metadata"]["resourceVersion"]
        for w in warnings:
            call.warn(w)
        return new

    may_create = not a.subresource or row.storage == ("", "services")
    value, revision, created = await modify(call, build, options, create_ok=may_create, tracked=True, prepare=prepare, check=check)
    return await respond(call, accept, value, revision, 201 if created else 200)


__all__ = ["create", "create_object", "decode_object", "modify", "patch", "respond", "same_identity", "update"]
