"""Object metadata: what may stand there, what the server fills in, how deletion marks it. The same for every kind.

Pure functions over the metadata dict. `fill` and `mark_*` change what they are given (owned by the request); validators never do.
Upstream: apimachinery pkg/api/validation/objectmeta.go, apis/meta/v1/validation, apiserver registry/rest and registry/generic/registry.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from kubern.model import invalid, names
from kubern.model.invalid import FieldError, quote
from kubern.model.time import rfc3339

Meta = dict[str, Any]
NameCheck = Callable[[str, bool], list[str]]     # (name, is it a generateName prefix) -> what is wrong

ANNOTATIONS_MAX_BYTES = 256 * 1024
SUBRESOURCE_NAME_MAX = 256
FIELD_MANAGER_MAX = 128
ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
_STANDARD_FINALIZERS = ("kubernetes", ORPHAN, FOREGROUND)
_RANDOM_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
GENERATED_SUFFIX_LENGTH = 5
GENERATED_BASE_MAX = 63 - GENERATED_SUFFIX_LENGTH


_OWNER_FIELDS = ("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion")


def _in_order(reference: Meta) -> invalid.Struct:
    """An owner reference as upstream prints it."""
    return invalid.Struct((k, reference[k]) for k in _OWNER_FIELDS if k in reference)


def uid(bits: int) -> str:
    """A version 4 UUID of 128 random bits."""
    h = f"{bits & ~(0xf << 76) & ~(0x3 << 62) | 0x4 << 76 | 0x2 << 62:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def parse_timestamp(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def generate_name(base: str, randint: Callable[[int], int]) -> str:
    """The base, cut so that the name fits a label, and five random characters. `randint(n)` gives 0..n-1."""
    if len(base) > GENERATED_BASE_MAX:
        base = base[:GENERATED_BASE_MAX]
    return base + "".join(_RANDOM_ALPHABET[randint(len(_RANDOM_ALPHABET))] for _ in range(GENERATED_SUFFIX_LENGTH))


def wipe(meta: Meta) -> None:
    """Drops what only the server sets, before a create."""
    for field in ("creationTimestamp", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        meta.pop(field, None)


def tidy(meta: Meta) -> None:
    """Drops empty members that upstream's types would not keep."""
    meta.pop("selfLink", None)
    for field in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields", "generateName", "namespace",
                  "creationTimestamp", "uid", "name", "generation"):
        if field in meta and not meta[field]:
            del meta[field]
    for field in ("deletionTimestamp", "deletionGracePeriodSeconds"):
        if field in meta and meta[field] is None:
            del meta[field]


# --- validation ---

_NO_LABELS: dict[str, str] = {}
_good_keys: set[str] = set()
_good_values: set[str] = set()
_MEMO_MAX = 20_000


def validate_labels(labels: dict[str, str], field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for k in sorted(labels):
        v = labels[k]
        if k not in _good_keys:
            why = names.is_qualified_name(k)
            errors += [invalid.invalid(field, k, w) for w in why]
            if not why and len(_good_keys) < _MEMO_MAX:
                _good_keys.add(k)
        if v and v not in _good_values:
            why = names.is_label_value(v)
            errors += [invalid.invalid(field, v, w) for w in why]
            if not why and len(_good_values) < _MEMO_MAX:
                _good_values.add(v)
    return errors


def validate_annotations(annotations: dict[str, str], field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    size = 0
    for k in sorted(annotations):
        low = k.lower()
        if low not in _good_keys:
            why = names.is_qualified_name(low)
            errors += [invalid.invalid(field, k, w) for w in why]
            if not why and len(_good_keys) < _MEMO_MAX:
                _good_keys.add(low)
        v = annotations[k]
        size += len(k) + len(v) if k.isascii() and v.isascii() else len(k.encode()) + len(v.encode())
    if size > ANNOTATIONS_MAX_BYTES:
        errors.append(invalid.too_long(field, ANNOTATIONS_MAX_BYTES))
    return errors


def validate_owner_references(references: list[Any], field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    controller = ""
    for ref in references:
        api_version, kind, name, uid = (ref.get(k) or "" for k in ("apiVersion", "kind", "name", "uid"))
        version = api_version.rpartition("/")[2] if api_version.count("/") <= 1 else ""
        if not version:
            errors.append(invalid.invalid(f"{field}.apiVersion", api_version, "version must not be empty"))
        if not kind:
            errors.append(invalid.invalid(f"{field}.kind", kind, "must not be empty"))
        if not name:
            errors.append(invalid.invalid(f"{field}.name", name, "must not be empty"))
        if not uid:
            errors.append(invalid.invalid(f"{field}.uid", uid, "must not be empty"))
        if (api_version, kind) == ("v1", "Event"):
            errors.append(invalid.invalid(field, ref, "/v1, Kind=Event is disallowed from being an owner"))
        if ref.get("controller"):
            this = f"{kind}/{name}"
            if controller:
                errors.append(invalid.invalid(field, [_in_order(r) for r in references], "Only one reference can have Controller set to true. "
                                              f'Found "true" in references for {controller} and {this}'))
            else:
                controller = this
    return errors


def validate_finalizer_name(name: str, field: str) -> list[FieldError]:
    return [invalid.invalid(field, name, why) for why in names.is_qualified_name(name)]


def validate_finalizers(finalizers: list[str], field: str) -> list[FieldError]:
    errors = [e for f in finalizers for e in validate_finalizer_name(f, field)]
    if ORPHAN in finalizers and FOREGROUND in finalizers:
        errors.append(invalid.invalid(field, finalizers, f"finalizer {ORPHAN} and {FOREGROUND} cannot be both set"))
    return errors


def validate_finalizers_qualified(finalizers: list[str], field: str) -> list[FieldError]:
    """The stricter rule of core kinds: one of the standard names, or with a domain."""
    return [invalid.invalid(f"{field}[{i}]", f, "name is neither a standard finalizer name nor is it fully qualified")
            for i, f in enumerate(finalizers) if "/" not in f and f not in _STANDARD_FINALIZERS]


_good_managers: set[tuple[Any, ...]] = set()


def validate_managed_fields(entries: list[Any], field: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, entry in enumerate(entries):
        who = entry.get("operation"), entry.get("fieldsType"), entry.get("manager"), entry.get("subresource")
        if who in _good_managers:
            continue
        at, before = f"{field}[{i}]", len(errors)
        operation = entry.get("operation") or ""
        if operation not in ("Apply", "Update"):
            errors.append(invalid.invalid(f"{at}.operation", operation, "must be `Apply` or `Update`"))
        type_ = entry.get("fieldsType") or ""
        if type_ and type_ != "FieldsV1":
            errors.append(invalid.invalid(f"{at}.fieldsType", type_, "must be `FieldsV1`"))
        manager = entry.get("manager") or ""
        if len(manager.encode()) > FIELD_MANAGER_MAX:
            errors.append(invalid.too_long(f"{at}.manager", FIELD_MANAGER_MAX))
        offset = 0
        for c in manager:
            if not c.isprintable():
                errors.append(invalid.invalid(f"{at}.manager", manager, f"invalid character U+{ord(c):04X} (at position {offset})"))
            offset += len(c.encode())
        if len((entry.get("subresource") or "").encode()) > SUBRESOURCE_NAME_MAX:
            errors.append(invalid.too_long(f"{at}.subresource", SUBRESOURCE_NAME_MAX))
        if len(errors) == before and len(_good_managers) < _MEMO_MAX:
            _good_managers.add(who)
    return errors


def validate_meta(meta: Meta, namespaced: bool, name_check: NameCheck | None, field: str = "metadata") -> list[FieldError]:
    """Metadata of a new object; its name was generated already. The order is upstream's."""
    check = name_check or names.name_is_dns_subdomain
    errors: list[FieldError] = []
    generate, name = meta.get("generateName") or "", meta.get("name") or ""
    if generate:
        errors += [invalid.invalid(f"{field}.generateName", generate, why) for why in check(generate, True)]
    if not name:
        errors.append(invalid.required(f"{field}.name", "name or generateName is required"))
    else:
        errors += [invalid.invalid(f"{field}.name", name, why) for why in check(name, False)]
    namespace = meta.get("namespace") or ""
    if namespaced:
        if not namespace:
            errors.append(invalid.required(f"{field}.namespace"))
        else:
            errors += [invalid.invalid(f"{field}.namespace", namespace, why) for why in names.name_is_dns_label(namespace, False)]
    elif namespace:
        errors.append(invalid.forbidden(f"{field}.namespace", "not allowed on this type"))
    generation = meta.get("generation")
    if generation and generation < 0:
        errors.append(invalid.invalid(f"{field}.generation", generation, "must be greater than or equal to 0"))
    if meta.get("labels"):
        errors += validate_labels(meta["labels"], f"{field}.labels")
    if meta.get("annotations"):
        errors += validate_annotations(meta["annotations"], f"{field}.annotations")
    if meta.get("ownerReferences"):
        errors += validate_owner_references(meta["ownerReferences"], f"{field}.ownerReferences")
    if meta.get("finalizers"):
        errors += validate_finalizers(meta["finalizers"], f"{field}.finalizers")
    if meta.get("managedFields"):
        errors += validate_managed_fields(meta["managedFields"], f"{field}.managedFields")
    return errors


IMMUTABLE = "field is immutable"


def validate_meta_update(new: Meta, old: Meta, field: str = "metadata") -> list[FieldError]:
    """Metadata of a changed object against what it was. The order is upstream's."""
    errors: list[FieldError] = []
    if old.get("deletionTimestamp"):
        extra = sorted(set(new.get("finalizers") or ()) - set(old.get("finalizers") or ()))
        if extra:
            listed = "[]string{" + ", ".join(quote(f) for f in extra) + "}"
            errors.append(invalid.forbidden(f"{field}.finalizers", "no new finalizers can be added if the object is being deleted, "
                                            f"found new finalizers {listed}"))
    if not new.get("resourceVersion"):
        errors.append(invalid.invalid(f"{field}.resourceVersion", "", "must be specified for an update"))
    if (new.get("generation") or 0) < (old.get("generation") or 0):
        errors.append(invalid.invalid(f"{field}.generation", new.get("generation") or 0, "must not be decremented"))
    for name, absent in (("name", ""), ("namespace", ""), ("uid", ""), ("creationTimestamp", None), ("deletionTimestamp", None),
                         ("deletionGracePeriodSeconds", None)):
        have = new.get(name)
        if (have or absent if absent == "" else have) != (old.get(name) or absent if absent == "" else old.get(name)):
            errors.append(invalid.invalid(f"{field}.{name}", have if have is not None else absent, IMMUTABLE))
    if new.get("labels"):
        errors += validate_labels(new["labels"], f"{field}.labels")
    if new.get("annotations"):
        errors += validate_annotations(new["annotations"], f"{field}.annotations")
    if new.get("ownerReferences"):
        errors += validate_owner_references(new["ownerReferences"], f"{field}.ownerReferences")
    if new.get("managedFields"):
        errors += validate_managed_fields(new["managedFields"], f"{field}.managedFields")
    return errors


# --- update and deletion ---

def keep_system_fields(new: Meta, old: Meta) -> None:
    """What an update cannot change by leaving it out or setting it."""
    if not new.get("uid"):
        new["uid"] = old.get("uid", "")
    for field in ("creationTimestamp", "deletionTimestamp"):
        if old.get(field):
            new[field] = old[field]
    if old.get("deletionGracePeriodSeconds") is not None and new.get("deletionGracePeriodSeconds") is None:
        new["deletionGracePeriodSeconds"] = old["deletionGracePeriodSeconds"]


def dedup_owner_references(meta: Meta) -> list[str]:
    """Drops repeated owner references; the uids of those dropped."""
    references = meta.get("ownerReferences")
    if not references or len(references) < 2:
        return []
    out: list[Any] = []
    twice: list[str] = []
    for ref in references:
        if ref in out:
            twice.append(ref.get("uid") or "")
        else:
            out.append(ref)
    if twice:
        meta["ownerReferences"] = out
    return twice


def deletion_finalizers(meta: Meta, orphan: bool | None, propagation: str | None, default: str) -> list[str] | None:
    """The finalizers after a delete with these options for the garbage collector to handle; None where they stay as they are.

    `default` is the kind's own policy: "Background", "Orphan", or "Unsupported" for kinds without garbage collection.
    """
    have = meta.get("finalizers") or []
    should_orphan = should_foreground = False
    if default != "Unsupported":
        if orphan is not None:
            should_orphan = orphan
        elif propagation is not None:
            should_orphan, should_foreground = propagation == "Orphan", propagation == "Foreground"
        else:
            standing = next((f for f in have if f in (ORPHAN, FOREGROUND)), "")
            should_orphan = standing == ORPHAN or (not standing and default == "Orphan")
            should_foreground = standing == FOREGROUND
    out = [f for f in have if f not in (ORPHAN, FOREGROUND)]
    if should_orphan:
        out.append(ORPHAN)
    if should_foreground:
        out.append(FOREGROUND)
    return None if set(out) == set(have) else out


def mark_deleting(meta: Meta, now_s: float) -> None:
    """Deletion without grace that waits for finalizers."""
    if not meta.get("deletionTimestamp") and (meta.get("generation") or 0) > 0:
        meta["generation"] += 1
    if not meta.get("deletionTimestamp") or parse_timestamp(meta["deletionTimestamp"]) > now_s:
        meta["deletionTimestamp"] = rfc3339(now_s)
    meta["deletionGracePeriodSeconds"] = 0


def mark_graceful(meta: Meta, grace_s: int, now_s: float) -> None:
    """The first graceful deletion."""
    meta["deletionTimestamp"] = rfc3339(now_s + grace_s)
    meta["deletionGracePeriodSeconds"] = grace_s
    if (meta.get("generation") or 0) > 0:
        meta["generation"] += 1


def shorten_grace(meta: Meta, grace_s: int, now_s: float) -> None:
    """A later delete with a shorter grace period moves the deletion forward, never into the past."""
    when_s = parse_timestamp(meta["deletionTimestamp"]) + grace_s - meta["deletionGracePeriodSeconds"]
    if when_s < now_s:
        when_s = now_s
        if grace_s:
            grace_s = 1
    meta["deletionTimestamp"] = rfc3339(when_s)
    meta["deletionGracePeriodSeconds"] = grace_s

