"""Managed fields: who set which field (KEP-555, server-side apply).

`update` says what managedFields become after an ordinary write; `apply` merges an applied configuration into the live object. An entry of
managedFields is one manager = (manager, operation, apiVersion of updates, subresource); its fieldsV1 is a FieldSet (model/fieldset.py).
Pure over JSON objects in the version of the request; live objects must be given in that version too. Time is an argument.
Behaviour: apimachinery util/managedfields, structured-merge-diff merge/update.go, strategies' GetResetFields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import orjson

from kubern.model import fieldset, gojson, typed, yamltree
from kubern.model.fieldset import LEAF, Set
from kubern.model.invalid import quote
from kubern.model.likeness import Kept, likeness
from kubern.model.object import Object, clone
from kubern.model.resource import Resource
from kubern.model.schema import Schema, schema_for
from kubern.model.shape import count, key_count, zero
from kubern.model.status import StatusError, bad_request
from kubern.model.strict import Fault, tidy

Entry = dict[str, Any]
Manager = tuple[str, str, str, str]        # manager, operation, apiVersion ("" for Apply), subresource
UPDATE_MANAGERS_MAX = 10
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
BEFORE_FIRST_APPLY = "before-first-apply"

# never owned by anybody
STRIPPED: Set = {
    "f:apiVersion": LEAF, "f:kind": LEAF,
    "f:metadata": {".": LEAF, **{f"f:{k}": LEAF for k in (
        "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion")}},
}

_SPEC: Set = {"f:spec": LEAF}
_STATUS: Set = {"f:status": LEAF}
_META_SPEC: Set = {"f:metadata": LEAF, "f:spec": LEAF}
# what a write through a subresource cannot change, and so does not own, where it is not just spec
RESET: dict[tuple[str, str], Set] = {
    ("Pod", "status"): {"f:spec": LEAF, "f:metadata": {"f:deletionTimestamp": LEAF, "f:ownerReferences": LEAF}},
    ("Deployment", "status"): {"f:spec": LEAF, "f:metadata": {"f:labels": LEAF}},
    ("Namespace", "status"): _SPEC,
    ("Namespace", "finalize"): _STATUS,
    ("CertificateSigningRequest", "status"): _SPEC,
    ("CertificateSigningRequest", "approval"): {"f:spec": LEAF, "f:status": {"f:certificate": LEAF}},
    **{(kind, "status"): _META_SPEC for kind in (
        "ServiceCIDR", "StorageVersionMigration", "ResourceClaim", "DeviceTaintRule", "ResourcePoolStatusRequest", "StorageVersion",
        "VolumeAttachment", "FlowSchema", "PriorityLevelConfiguration", "ValidatingAdmissionPolicy", "PodGroup")},
}


def reset_fields(kind: str, subresource: str, has_status: bool, custom: bool = False) -> Set:
    """Fields that a write to this (sub)resource leaves as they are, whatever the body says."""
    found = RESET.get((kind, subresource))
    if found is not None:
        return found
    if subresource == "":
        return _STATUS if has_status else {}
    if subresource == "status":
        return _META_SPEC if custom else _SPEC
    return {}


def _pod_part(*below: str) -> Callable[[fieldset.Path], bool]:
    def keep(path: fieldset.Path) -> bool:
        return path[: 2] == ("f:spec", below[0]) and (len(below) == 1 or (len(path) > 3 and path[3] in below[1:]))
    return keep


# writes through these own nothing else
ONLY: dict[tuple[str, str], Callable[[fieldset.Path], bool]] = {
    ("Pod", "ephemeralcontainers"): _pod_part("f:ephemeralContainers"),
    ("Pod", "resize"): lambda path: path[:1] == ("f:spec",) and path[1:2] in (("f:containers",), ("f:initContainers",)) and path[3:4] in (
        ("f:resources",), ("f:resizePolicy",)),
}


class Managed:
    """managedFields, decoded: manager -> fields, and manager -> apiVersion, time."""

    __slots__ = ("fields", "times", "versions")

    def __init__(self) -> None:
        self.fields: dict[Manager, Set] = {}
        self.versions: dict[Manager, str] = {}
        self.times: dict[Manager, str] = {}

    @staticmethod
    def decode(entries: Iterable[Any] | None) -> Managed | None:
        """None where an entry is malformed."""
        out = Managed()
        for e in entries or ():
            if not isinstance(e, dict) or e.get("operation") not in ("Apply", "Update") or not e.get("apiVersion"):
                return None
            if e.get("fieldsType") != "FieldsV1" or not fieldset.valid(e.get("fieldsV1") or {}):
                return None
            m = identity(e)
            out.fields[m] = e.get("fieldsV1") or {}
            out.versions[m] = e["apiVersion"]
            if e.get("time"):
                out.times[m] = e["time"]
        return out

    def set(self, manager: Manager, fields: Set, version: str) -> None:
        if fields:
            self.fields[manager], self.versions[manager] = fields, version
        else:
            self.drop(manager)

    def drop(self, manager: Manager) -> None:
        self.fields.pop(manager, None)
        self.versions.pop(manager, None)

    def encode(self) -> list[Entry]:
        """Entries in order: Apply before Update, then by time, manager, apiVersion, subresource."""
        out = [_entry(m, self.versions[m], self.times.get(m, ""), f) for m, f in self.fields.items()]
        if len(out) > 1:
            out.sort(key=lambda e: (e["operation"], e.get("time", ""), e.get("manager", ""), e["apiVersion"], e.get("subresource", "")))
        return out


def identity(e: Entry) -> Manager:
    operation = e["operation"]
    return e.get("manager") or "", operation, "" if operation == "Apply" else e["apiVersion"], e.get("subresource") or ""


def _entry(m: Manager, version: str, time: str, fields: Set) -> Entry:
    e: Entry = {"manager": m[0]} if m[0] else {}
    e["operation"] = m[1]
    e["apiVersion"] = version
    if time:
        e["time"] = time
    e["fieldsType"] = "FieldsV1"
    e["fieldsV1"] = fields
    if m[3]:
        e["subresource"] = m[3]
    return e


def _is_reset(entries: Any) -> bool:
    """[] or [{}]: a wish to forget all managers."""
    return isinstance(entries, list) and (not entries or (len(entries) == 1 and not entries[0]))


# ---------------------------------------------------------------- update

def update(live: Object | None, new: Object, manager: str, api_version: str, now: str, subresource: str = "", operation: str = "Update", *,
           schema: Schema | None = None, reset: Set | None = None, has_status: bool = True) -> list[Entry]:
    """The managedFields after an ordinary write of `new` over `live` (None: a create); [] where the object has none.

    Both objects are tidy (model/decode.py) and in api_version; `new` carries managedFields as the request gave them."""
    kind = new.get("kind", "")
    s = schema if schema is not None else schema_for(api_version, kind)
    if reset is None:
        reset = reset_fields(kind, subresource, has_status, s.raw is not None)
    me: Manager = (manager or "unknown", operation, "" if operation == "Apply" else api_version, subresource)
    given = (new.get("metadata") or {}).get("managedFields")
    if live is None:
        return _created(new, me, api_version, now, s, reset, kind, given)
    before = live.get("metadata") or {}
    managed: Managed | None
    if subresource:
        managed = Managed.decode(before.get("managedFields")) or Managed()
    elif _is_reset(given):
        managed = Managed()
    else:
        managed = Managed.decode(given)
        if managed is None or not managed.fields:
            managed = Managed.decode(before.get("managedFields")) or Managed()
    if not managed.fields:
        return []
    _update(managed, live, new, me, api_version, now, s, reset, kind)
    _cap(managed)
    return managed.encode()


def _created(new: Object, me: Manager, api_version: str, now: str, s: Schema, reset: Set, kind: str, given: Any) -> list[Entry]:
    """The common case in one walk: a new object has one manager."""
    managed = Managed.decode(given) if given else None
    if managed is None or not managed.fields:
        if s.raw is None:
            fields = _first_fields(new, s, reset)
        else:
            fields = typed.compare({"apiVersion": new.get("apiVersion"), "kind": new.get("kind")}, _bare(new), s)[2]
            fields = fieldset.difference(fieldset.without(fields, reset), STRIPPED)
        return [_entry(me, api_version, now, fields)] if fields else []
    _update(managed, {**zero(s), "apiVersion": api_version, "kind": kind}, new, me, api_version, now, s, reset, kind)
    _cap(managed)
    return managed.encode()


_OWN_METADATA = frozenset({"name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion"})


_spec_fields: dict[str, Kept[Set]] = {}       # by schema


def _first_fields(new: Object, s: Schema, reset: Set) -> Set:
    """Fields of a new object against the empty one, without what nobody owns."""
    props = s.props or {}
    always = dict(s.always)
    out: Set = {}
    for k in sorted(new):
        if k == "apiVersion" or k == "kind" or "f:" + k in reset:
            continue
        p = props.get(k)
        if p is None:
            continue
        v = new[k]
        if k == "metadata":
            mine: Set = {}
            inside = p.props or {}
            for mk in sorted(v):
                if mk not in _OWN_METADATA and mk in inside:
                    mine["f:" + mk] = typed._added(v[mk], inside[mk])
            if mine:
                out["f:metadata"] = mine
            continue
        key = likeness(v) if k == "spec" else b""
        kept = _spec_fields.setdefault(s.name, Kept()) if key else None
        node = kept.get(key) if kept is not None else None
        if node is None:
            if k in always:
                _, modified, added = typed._compare(zero(p), v, p)
                node = fieldset.sort(fieldset.union(modified, added)) if modified and added else modified if modified is not None else added
            else:
                node = typed._added(v, p)
            if kept is not None and node is not None:
                kept.keep(key, node)
        if node is not None:
            out["f:" + k] = node
    return out


def _bare(obj: Object) -> Object:
    """The object without managedFields, which are never compared."""
    meta = obj.get("metadata")
    if not meta or "managedFields" not in meta:
        return obj
    return {**obj, "metadata": {k: v for k, v in meta.items() if k != "managedFields"}}


def _filter(fields: Set, reset: Set, only: Callable[[fieldset.Path], bool] | None) -> Set:
    if only is not None:
        return fieldset.only(fields, only)
    return fieldset.without(fields, reset)


def _update(managed: Managed, live: Object, new: Object, me: Manager, api_version: str, now: str, s: Schema, reset: Set, kind: str) -> None:
    """Take what changed from the others and give it to the writer; its time moves only if it took something."""
    only = ONLY.get((kind, me[3]))
    for m in [m for m, fields in managed.fields.items() if not fields]:
        managed.drop(m)
    removed, modified, added = typed.compare(_bare(live), _bare(new), s)
    if not removed and not modified and not added:
        return
    raw = fieldset.union(modified, added)
    taken = _filter(raw, reset, only)
    gone = _filter(removed, reset, only)
    if not gone and me in managed.fields and len(managed.fields) == 1 and taken and not fieldset.difference(taken, managed.fields[me]):
        managed.times[me] = now                  # the only manager changed what it has: as most writes do
        return
    for m in list(managed.fields):
        fields = fieldset.difference(fieldset.difference(managed.fields[m], taken), gone)
        managed.set(m, fields, managed.versions[m])
    mine = fieldset.difference(taken, STRIPPED)
    if mine:
        managed.set(me, fieldset.sort(fieldset.union(managed.fields.get(me, {}), mine)), api_version)
        managed.times[me] = now


def _cap(managed: Managed) -> None:
    """At most so many managers that update: the oldest melt into one of their version."""
    updaters = [m for m in managed.fields if m[1] == "Update"]
    if len(updaters) <= UPDATE_MANAGERS_MAX:
        return
    updaters.sort(key=lambda m: (managed.times.get(m, ""), m))
    first: dict[str, Manager] = {}
    length = len(updaters)
    for m in updaters:
        if length <= UPDATE_MANAGERS_MAX:
            break
        version = managed.versions[m]
        bucket: Manager = ("ancient-changes", "Update", version, "")
        if version not in first:
            first[version] = m
            continue
        if bucket not in managed.fields:
            fields = managed.fields[first[version]]
            managed.drop(first[version])
            managed.set(bucket, fields, version)
        if m == bucket:
            continue
        managed.set(bucket, fieldset.union(managed.fields[m], managed.fields[bucket]), version)
        if m in managed.times:
            managed.times[bucket] = managed.times[m]
        managed.drop(m)
        length -= 1


# ---------------------------------------------------------------- apply

def apply(live: Object | None, applied: Object, manager: str, force: bool, api_version: str, now: str, subresource: str = "",
          schema: Schema | None = None, *, reset: Set | None = None, has_status: bool = True, kind: str = "") -> Object:
    """The object after an apply: merged, without what the manager gave up, managedFields set. Raises 400 where the
    configuration does not fit its type, 409 with causes on conflicts. The result is a fresh object before defaulting."""
    have = applied.get("apiVersion") or "", applied.get("kind") or ""
    if not isinstance(have[0], str) or not isinstance(have[1], str):
        raise bad_request("Object 'apiVersion' and 'kind' must be strings")
    want = kind or (live or {}).get("kind") or (schema.name.rsplit(".", 1)[-1] if schema is not None else "") or have[1]
    if have != (api_version, want):
        group, _, version = have[0].rpartition("/")
        raise bad_request(f"invalid object type: {group}/{version}, Kind={have[1]}")
    kind = want
    meta = applied.get("metadata")
    if isinstance(meta, dict) and meta.get("managedFields") is not None:
        raise bad_request("metadata.managedFields must be nil")
    s = schema if schema is not None else schema_for(api_version, kind)
    if reset is None:
        reset = reset_fields(kind, subresource, has_status, s.raw is not None)
    me: Manager = (manager or "unknown", "Apply", "", subresource)
    errors = typed.check(applied, s)
    if errors:
        meta = meta if isinstance(meta, dict) else {}
        group, _, version = api_version.rpartition("/")
        where = f"{meta.get('namespace') or ''}/{meta.get('name') or ''}; {group}/{version}, Kind={kind}"
        raise bad_request(f"failed to create typed patch object ({where}): {typed.complaint(errors)}")
    empty: Object = {**zero(s), "apiVersion": api_version, "kind": kind} if s.raw is None else {"apiVersion": api_version, "kind": kind}
    base = live if live is not None else empty
    managed = Managed.decode((base.get("metadata") or {}).get("managedFields"))
    if managed is None:
        raise bad_request("failed to decode managed fields")
    if not managed.fields and live is not None:
        first: Manager = (BEFORE_FIRST_APPLY, "Update", api_version, subresource)
        _update(managed, empty, live, first, api_version, now, s, reset, kind)
    try:
        merged, managed = _apply(managed, _bare(base), applied, me, force, api_version, s, reset, kind)
    except _Conflicts as e:
        if manager != "kubectl" or not _allowed(e, base, api_version, s):
            raise e.status() from None
        managed = Managed.decode((base.get("metadata") or {}).get("managedFields")) or Managed()
        merged, managed = _apply(managed, _bare(base), applied, me, True, api_version, s, reset, kind)
    changed = merged != _bare(base)
    if changed:
        managed.times[me] = now
        out = _fit(merged, s, api_version, kind)
    else:
        out = clone(_bare(base))
    metadata = out.setdefault("metadata", {})
    entries = managed.encode()
    if entries:
        metadata["managedFields"] = entries
    if manager == "kubectl":
        annotations = metadata.get("annotations") or {}
        if annotations.get(LAST_APPLIED):
            metadata["annotations"] = {**annotations, LAST_APPLIED: _last_applied(applied)}
    return out


def _fit(merged: Object, s: Schema, api_version: str, kind: str) -> Object:
    out = clone(merged)
    if s.raw is None:
        try:
            out = tidy(out, s)
        except Fault as e:
            group, _, version = api_version.rpartition("/")
            raise bad_request(f"failed to convert new typed object ({group}/{version}, Kind={kind}) to object: {e}") from None
    out["apiVersion"], out["kind"] = api_version, kind
    return out


def _last_applied(applied: Object) -> str:
    meta = applied.get("metadata") or {}
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k != LAST_APPLIED}
    meta = {k: v for k, v in meta.items() if k != "annotations"}
    if annotations:
        meta["annotations"] = annotations
    return orjson.dumps({**applied, "metadata": meta}, option=orjson.OPT_SORT_KEYS).decode() + "\n"


class _Conflicts(Exception):
    def __init__(self, by_manager: dict[Manager, Set], times: dict[Manager, str]) -> None:
        super().__init__()
        self.by_manager, self.times = by_manager, times

    def fields(self) -> Set:
        out: Set = {}
        for f in self.by_manager.values():
            out = fieldset.union(out, f)
        return out

    def status(self) -> StatusError:
        causes, groups, total = [], [], 0
        for m in sorted(self.by_manager, key=lambda m: _identifier(m)):
            found = [fieldset.text(p) for p in fieldset.paths(self.by_manager[m])]
            total += len(found)
            name = _manager_text(m)
            causes += [{"reason": "FieldManagerConflict", "message": f"conflict with {name}", "field": p} for p in found]
            groups.append((name, found))
        if total == 1:
            message = f"Apply failed with 1 conflict: conflict with {groups[0][0]}: {groups[0][1][0]}"
        else:
            lines = [line for name, found in groups for line in (f"conflicts with {name}:", *(f"- {p}" for p in found))]
            message = f"Apply failed with {total} conflicts: " + "\n".join(lines)
        return StatusError(409, "Conflict", message, {"causes": causes})


def _identifier(m: Manager) -> str:
    parts = {"manager": m[0], "operation": m[1], "apiVersion": m[2], "subresource": m[3]}
    return orjson.dumps({k: v for k, v in parts.items() if v}).decode()


def _manager_text(m: Manager) -> str:
    text = quote(m[0])
    if m[3]:
        text += f" with subresource {quote(m[3])}"
    if m[1] == "Update":
        text += f" using {m[2]}"
    return text


def _apply(managed: Managed, live: Object, applied: Object, me: Manager, force: bool, api_version: str, s: Schema, reset: Set,
           kind: str) -> tuple[Object, Managed]:
    only = ONLY.get((kind, me[3]))
    try:
        merged = typed.merge(live, applied, s)
    except typed.Malformed as e:
        raise bad_request(f"failed to merge config: {e}") from None
    last = managed.fields.get(me)
    last_version = managed.versions.get(me, api_version)
    mine = _filter(typed.fields_of(applied, s), reset, only)
    managed.fields[me], managed.versions[me] = mine, api_version
    if last:
        merged = _prune(merged, last, managed, s, last_version)
    removed, modified, added = typed.compare(live, merged, s)
    taken = _filter(fieldset.union(modified, added), reset, only)
    gone = _filter(removed, reset, only)
    conflicts = {}
    for m, fields in managed.fields.items():
        if m != me:
            hit = fieldset.intersection(fields, taken)
            if hit:
                conflicts[m] = hit
    if conflicts and not force:
        raise _Conflicts(conflicts, managed.times)
    for m in list(managed.fields):
        if m != me:
            fields = fieldset.difference(managed.fields[m], conflicts[m]) if m in conflicts else managed.fields[m]
            managed.set(m, fieldset.difference(fields, gone), managed.versions[m])
    managed.set(me, fieldset.sort(fieldset.difference(mine, STRIPPED)), api_version)
    return merged, managed


def _prune(merged: Object, last: Set, managed: Managed, s: Schema, version: str) -> Object:
    """Remove what the manager applied before and no longer does, unless somebody else owns it or what lies below it."""
    last = typed.with_named(last, s)
    pruned = typed.remove(merged, last, s) or {}
    owned: Set = {}
    for fields in managed.fields.values():
        owned = fieldset.union(owned, fields)
    merged_set = typed.with_named(typed.fields_of(merged, s), s)
    pruned_set = typed.with_named(typed.fields_of(pruned, s), s)
    kept = fieldset.union(pruned_set, typed.with_named(owned, s))
    pruned = typed.remove(merged, fieldset.difference(merged_set, kept), s) or {}
    pruned_set = typed.with_named(typed.fields_of(pruned, s), s)
    dangling = fieldset.intersection(fieldset.difference(merged_set, pruned_set), last)
    return typed.remove(merged, dangling, s) or {}


def _allowed(conflicts: _Conflicts, live: Object, api_version: str, s: Schema) -> bool:
    """kubectl may take over what its client-side apply set before, as the last-applied annotation shows."""
    text = ((live.get("metadata") or {}).get("annotations") or {}).get(LAST_APPLIED)
    if not text:
        return False
    try:
        last = orjson.loads(text)
    except ValueError:
        return False
    if not isinstance(last, dict) or last.get("apiVersion") != api_version or typed.check(last, s):
        return False
    fields = typed.fields_of(last, s)
    for part in typed.compare(last, _bare(live), s):
        fields = fieldset.difference(fields, part)
    return not fieldset.difference(conflicts.fields(), fields)


# ---------------------------------------------------------------- the body of an apply

def parse_applied(body: bytes, row: Resource, schema: Schema, validation: str = "Warn") -> tuple[Object, list[str]]:
    """(configuration, warnings) of a YAML or JSON body; raises 400. Duplicate keys are an error under Strict."""
    try:
        obj = orjson.loads(body) if body.lstrip()[:1] == b"{" else None
    except ValueError:
        obj = None
    complaint = ""
    if isinstance(obj, dict) and key_count(body) == count(obj):
        obj = _whole(obj)
    else:
        try:
            obj, complaint = yamltree.parse(body)
        except yamltree.YAMLFault as e:
            raise bad_request(f"error decoding YAML: error converting YAML to JSON: {e}") from None
        obj = {} if obj is None else gojson.plain(obj)
        if not isinstance(obj, dict):
            raise bad_request("error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal "
                              f"{gojson.kind_of(obj)} into Go value of type map[string]interface {{}}")
    if complaint:
        complaint = f"error converting YAML to JSON: {complaint}"
        if validation == "Strict":
            raise bad_request(f"error strict decoding YAML: {complaint}")
        if validation == "Warn":
            return obj, [line.strip() for line in complaint.split("\n")[1:]]
    return obj, []


def _whole(value: Any) -> Any:
    """JSON read as YAML: 2.0 is 2."""
    if value.__class__ is dict:
        for k, v in value.items():
            if v.__class__ is float or v.__class__ is dict or v.__class__ is list:
                value[k] = _whole(v)
        return value
    if value.__class__ is list:
        return [_whole(v) for v in value]
    if value.__class__ is float and abs(value) < 1e21 and value == int(value):
        return int(value)
    return value


# ---------------------------------------------------------------- helpers of the write path

def to_scale(entries: list[Entry] | None, path: tuple[str, ...], api_version: str) -> list[Entry]:
    """managedFields of a scalable object as its Scale shows them: only those who own the replicas, as spec.replicas of autoscaling/v1."""
    where = tuple("f:" + p for p in path)
    out = Managed()
    decoded = Managed.decode(entries) or Managed()
    for m, fields in decoded.fields.items():
        if decoded.versions[m] == api_version and fieldset.contains(fields, where):
            key = (m[0], m[1], "" if m[1] == "Apply" else "autoscaling/v1", m[3])
            out.set(key, {"f:spec": {"f:replicas": LEAF}}, "autoscaling/v1")
            if m in decoded.times:
                out.times[key] = decoded.times[m]
    return out.encode()


def from_scale(entries: list[Entry] | None, scale_entries: list[Entry] | None, path: tuple[str, ...], api_version: str) -> list[Entry]:
    """managedFields of the object after a write through its Scale: owners of the replicas are those of the Scale.

    Who updates is told by his apiVersion too, so the Scale's entry is not his entry of the object: the replicas move to one of their own, and
    entries that come so have no time."""
    where = tuple("f:" + p for p in path)
    one = fieldset.make([where])
    before = Managed.decode(entries) or Managed()
    now_own = [m for m, fields in (Managed.decode(scale_entries) or Managed()).fields.items() if fieldset.contains(fields, ("f:spec", "f:replicas"))]
    out = Managed()
    out.times = before.times
    for m, fields in before.fields.items():
        stolen = m not in now_own and before.versions[m] == api_version and fieldset.contains(fields, where)
        out.set(m, fieldset.difference(fields, one) if stolen else fields, before.versions[m])
    for m in now_own:
        if m not in out.fields:
            out.set(m, one, api_version)
    return out.encode()
