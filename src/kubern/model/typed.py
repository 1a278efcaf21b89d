"""Typed values: comparing, merging, pruning objects field by field as their schema says they are owned.

In: JSON values and a Schema. Out: FieldSets (which fields differ, which a value has) or values (merged, pruned). A struct or map is owned
by field unless it is atomic; a list is owned as a whole unless it is a map (by keys) or a set (by value).
Pure; arguments are not changed, results share parts with them.
Behaviour: structured-merge-diff typed (compare, merge, tofieldset, remove, validate) over Kubernetes' OpenAPI schemas.
"""

from __future__ import annotations

import json
from typing import Any

from kubern.model import fieldset
from kubern.model.fieldset import LEAF, Set
from kubern.model.schema import (
    ANY,
    BOOL,
    BYTES,
    DURATION,
    INT32,
    INT64,
    INT_OR_STRING,
    LIST,
    MAP,
    MICROTIME,
    NUMBER,
    QUANTITY,
    RAW,
    STRING,
    STRUCT,
    TIME,
    Schema,
)

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
SCALAR = frozenset({STRING, INT32, INT64, BOOL, NUMBER, BYTES, TIME, MICROTIME, QUANTITY, INT_OR_STRING, DURATION})

# free-form JSON: maps by key, lists as a whole
FREE = Schema()
FREE.extra = FREE
FREE.items = FREE
FREE.preserve = True


class Malformed(ValueError):
    """A value that does not fit its schema; str() is upstream's list of errors."""


def _shape(s: Schema, value: Any) -> str:
    """"map", "list" or "scalar": how a value of this schema is owned."""
    c = s.code
    if c in (STRUCT, MAP):
        return "map"
    if c == LIST:
        return "list"
    if c in SCALAR:
        return "scalar"
    return _free(value)


def _free(value: Any) -> str:
    if isinstance(value, dict):
        return "map"
    if isinstance(value, list):
        return "list"
    return "scalar" if value is not None and value is not MISSING else "map"


def _atomic_map(s: Schema) -> bool:
    return s.map_type == "atomic"


def _associative(s: Schema) -> bool:
    if s.list_type:
        return s.list_type in ("map", "set")
    return bool(s.patch_strategy) and "merge" in s.patch_strategy


def list_keys(s: Schema) -> tuple[str, ...]:
    """The keys of an associative list; () for a set."""
    if s.list_type == "map":
        return s.list_keys
    return (s.patch_key,) if not s.list_type and s.patch_key else ()


def child(s: Schema, key: str) -> Schema:
    """The schema of a member; free-form where the schema leaves it open."""
    found = s.at(key) if s.code in (STRUCT, MAP) else None
    return found if found is not None else FREE


def _items(s: Schema) -> Schema:
    return s.items if s.items is not None else FREE


def _named(s: Schema, key: str) -> bool:
    return s.props is not None and key in s.props


_CORE = "io.k8s.api.core.v1."
_KEY_DEFAULTS = {(_CORE + "ContainerPort", "protocol"): "TCP", (_CORE + "ServicePort", "protocol"): "TCP", (_CORE + "LocalObjectReference", "name"): ""}


def key_default(item: Schema, key: str) -> Any:
    """What a key field of a list item counts as when it is absent; None: nothing."""
    p = item.props.get(key) if item.props else None
    if p is None:
        return None
    if p.has_default:
        return p.default
    declared = _KEY_DEFAULTS.get((item.name, key))
    if declared is not None:
        return declared
    if p.keep and not p.pointer and p.code in SCALAR:
        return "" if p.code == STRING else False if p.code == BOOL else 0
    return None


def element(s: Schema, item: Any) -> str:
    """The path element of an item of an associative list; raises Malformed."""
    keys = list_keys(s)
    if not keys:
        if isinstance(item, dict):
            raise Malformed("associative list without keys has an element that's a map type")
        if isinstance(item, list):
            raise Malformed("not supported: associative list with lists as elements")
        if item is None:
            raise Malformed("associative list without keys has an element that's an explicit null")
        return "v:" + _json(item)
    if item is None:
        raise Malformed("associative list with keys may not have a null element")
    if not isinstance(item, dict):
        raise Malformed("associative list with keys may not have non-map elements")
    if len(keys) == 1:
        value = item.get(keys[0])
        if value.__class__ is str and value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
            return f'k:{{"{keys[0]}":"{value}"}}'
    found = {}
    for k in sorted(keys):
        if k in item:
            found[k] = item[k]
        else:
            default = key_default(_items(s), k)
            if default is not None:
                found[k] = default
    if not found:
        quoted = " ".join(f'"{k}"' for k in keys)
        raise Malformed(f"associative list with keys has an element that omits all key fields [{quoted}] (and doesn't have default values for "
                        "any key fields)")
    return "k:" + _json(found)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------- the fields of a value

def fields_of(value: Any, s: Schema) -> Set:
    """All fields a value has, as an applier owns them."""
    return _fields(value, s) or {}


def _fields(value: Any, s: Schema) -> Set | None:
    """The node below a value: LEAF where the value itself is a member, None where it has nothing."""
    shape = _shape(s, value)
    if shape == "scalar":
        return LEAF
    out: Set = {}
    if shape == "list":
        if not _associative(s):
            return LEAF
        if not isinstance(value, list):
            return None
        seen: dict[str, int] = {}
        for item in value:
            try:
                e = element(s, item)
            except Malformed:
                continue
            if e in seen:
                out[e] = LEAF
                continue
            seen[e] = 1
            node = _fields(item, _items(s))
            out[e] = {".": LEAF, **node} if node else LEAF
        return out or None
    if _atomic_map(s):
        return LEAF
    if not isinstance(value, dict):
        return None
    for k, v in value.items():
        node = _fields(v, child(s, k))
        own = v is None or v == {} or not _named(s, k)
        if node is None:
            if own:
                out["f:" + k] = LEAF
        elif not node:
            out["f:" + k] = LEAF
        else:
            out["f:" + k] = {".": LEAF, **node} if own and "." not in node else node
    return out or None


# ---------------------------------------------------------------- comparing

def compare(old: Any, new: Any, s: Schema) -> tuple[Set, Set, Set]:
    """(removed, modified, added) fields between two values of a schema."""
    removed, modified, added = _compare(old, new, s)
    return removed or {}, modified or {}, added or {}


Three = tuple[Set | None, Set | None, Set | None]
_SAME: Three = (None, None, None)


def _compare(old: Any, new: Any, s: Schema) -> Three:
    if old is MISSING:
        return None, None, _added(new, s)
    if new is MISSING:
        return _added(old, s), None, None
    if old == new:
        return _SAME
    c = s.code
    if c == STRUCT and old.__class__ is dict and new.__class__ is dict and s.map_type != "atomic":
        return _compare_maps(old, new, s)
    shape = _shape(s, old)
    other = _shape(s, new)
    if shape != other:
        return None, LEAF, None
    if shape == "scalar":
        return None, LEAF, None
    if shape == "list":
        if not _associative(s) or (not old and not new) or not isinstance(old or [], list) or not isinstance(new or [], list):
            return None, LEAF, None
        return _compare_lists(old or [], new or [], s)
    if _atomic_map(s) or (not old and not new) or not isinstance(old or {}, dict) or not isinstance(new or {}, dict):
        return None, LEAF, None          # the wrong type: validation will say so
    return _compare_maps(old or {}, new or {}, s)


def _compare_maps(old: dict[str, Any], new: dict[str, Any], s: Schema) -> Three:
    removed: Set = {}
    modified: Set = {}
    added: Set = {}
    for k in sorted(old):
        a, b = old[k], new.get(k, MISSING)
        if a is b or (b is not MISSING and a == b):
            continue
        r, m, d = _compare(a, b, child(s, k))
        if r is not None:
            removed["f:" + k] = r
        if m is not None:
            modified["f:" + k] = m
        if d is not None:
            added["f:" + k] = d
    for k in sorted(new.keys() - old.keys()) if len(new) > 1 else new.keys() - old.keys():
        added["f:" + k] = _added(new[k], child(s, k))
    if len(added) > 1:
        added = dict(sorted(added.items()))
    return removed or None, modified or None, added or None


def _compare_lists(old: list[Any], new: list[Any], s: Schema) -> Three:
    left, right = _by_element(old, s), _by_element(new, s)
    parts: list[Set] = [{}, {}, {}]
    item = _items(s)
    for e in [*left, *(e for e in right if e not in left)]:
        a, b = left.get(e, []), right.get(e, [])
        if len(a) <= 1 and len(b) <= 1:
            for part, node in zip(parts, _compare(a[0] if a else MISSING, b[0] if b else MISSING, item), strict=True):
                if node is not None:
                    part[e] = node
        elif len(a) >= 2 and len(b) >= 2:
            if a != b:
                parts[1][e] = LEAF
        elif len(a) >= 2:
            if b:
                parts[2][e] = _added(b[0], item)
            parts[0][e] = LEAF
        else:
            if a:
                parts[0][e] = _added(a[0], item)
            parts[2][e] = LEAF
    return parts[0] or None, parts[1] or None, parts[2] or None


def _by_element(values: list[Any], s: Schema) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    for v in values:
        try:
            out.setdefault(element(s, v), []).append(v)
        except Malformed:
            continue
    return out


def _added(value: Any, s: Schema) -> Set:
    """The node of a value that is wholly new (or wholly gone): itself and everything in it."""
    c = s.code
    if c == STRUCT:
        if not value or value.__class__ is not dict or s.map_type == "atomic":
            return LEAF
        props = s.props or {}
        out: Set = {".": LEAF}
        for k in sorted(value):
            p = props.get(k)
            if p is None:
                out["f:" + k] = _added(value[k], child(s, k))
            elif p.code in _LEAVES:
                out["f:" + k] = LEAF
            else:
                out["f:" + k] = _added(value[k], p)
        return out
    if c == LIST:
        if not value or not _associative(s):
            return LEAF
        out = {".": LEAF}
        items = _items(s)
        for item in value:
            try:
                e = element(s, item)
            except Malformed:
                continue
            out[e] = LEAF if e in out else _added(item, items)
        return dict(sorted(out.items())) if len(out) > 2 else out
    if c in SCALAR or value.__class__ is not dict or not value or s.map_type == "atomic":
        return LEAF
    out = {".": LEAF}
    extra = s.extra if s.extra is not None else FREE
    if extra.code in SCALAR:
        for k in sorted(value):
            out["f:" + k] = LEAF
        return out
    for k in sorted(value):
        out["f:" + k] = _added(value[k], child(s, k))
    return out


_LEAVES = SCALAR


# ---------------------------------------------------------------- merging

def merge(live: Any, applied: Any, s: Schema) -> Any:
    """The live value with the applied one laid over it."""
    if live is MISSING:
        return applied
    if applied is MISSING:
        return live
    shape = _shape(s, applied)
    if shape == "scalar":
        return applied
    if shape == "list":
        if not _associative(s) or (not live and not applied):
            return applied
        return _merge_lists(live if isinstance(live, list) else [], applied or [], s)
    if _atomic_map(s) or (not live and not applied):
        return applied
    left = live if isinstance(live, dict) else {}
    right = applied or {}
    out = {}
    for k, v in left.items():
        out[k] = merge(v, right[k], child(s, k)) if k in right else v
    for k, v in right.items():
        if k not in left:
            out[k] = v
    return out


def _merge_lists(live: list[Any], applied: list[Any], s: Schema) -> list[Any]:
    """Items by their element: the applier's order among what it applies, live items where they stood."""
    item = _items(s)
    left_keys = [element(s, v) for v in live]
    right_keys = [element(s, v) for v in applied]
    left: dict[str, Any] = {}
    for k, v in zip(left_keys, live, strict=True):
        left[k] = v if k not in left else MISSING               # duplicates count as absent
    right = dict(zip(right_keys, applied, strict=True))
    shared = [k for k in right_keys if k in left]
    at = 0
    done: set[str] = set()
    out: list[Any] = []

    def next_shared() -> str | None:
        return shared[at] if at < len(shared) else None

    i = j = 0
    while i < len(left_keys) or j < len(right_keys):
        if i < len(left_keys) and j < len(right_keys):
            k = left_keys[i]
            if k == right_keys[j]:
                done.add(k)
                out.append(merge(left[k], right[k], item))
                i += 1
                j += 1
                at += 1
                continue
            if k in right and next_shared() is not None and next_shared() != k:
                i += 1
                continue
        if i < len(left_keys):
            k = left_keys[i]
            if k not in right:
                out.append(live[i])
                i += 1
                continue
            if k in done:
                i += 1
        if j < len(right_keys):
            k = right_keys[j]
            done.add(k)
            out.append(merge(left.get(k, MISSING), right[k], item))
            j += 1
            if next_shared() == k:
                at += 1
    return out


# ---------------------------------------------------------------- removing

def remove(value: Any, fields: Set, s: Schema) -> Any:
    """The value without these fields; None where nothing is left."""
    shape = _shape(s, value)
    if shape == "list":
        if not isinstance(value, list) or not value or not _associative(s):
            return None
        return _remove_items(value, fields, s)
    if shape == "map":
        if not isinstance(value, dict) or not value or _atomic_map(s):
            return None
        out: dict[str, Any] = {}
        matched = False
        for k, v in value.items():
            below = fields.get("f:" + k)
            if below is None:
                out[k] = v
                continue
            if fieldset.is_member(below):
                continue
            matched = True
            rest = remove(v, below, child(s, k))
            out[k] = ({} if isinstance(v, dict) else [] if isinstance(v, list) else rest) if rest is None else rest
        return out if out or matched else None
    return value


def _remove_items(value: list[Any], fields: Set, s: Schema) -> Any:
    out = []
    matched = False
    for item in value:
        try:
            below = fields.get(element(s, item))
        except Malformed:
            below = None
        if below is None:
            out.append(item)
            continue
        if fieldset.is_member(below):
            continue
        matched = True
        rest = remove(item, below, _items(s))
        out.append(({} if isinstance(item, dict) else [] if isinstance(item, list) else rest) if rest is None else rest)
    return out if out or matched else None


def with_named(fields: Set, s: Schema) -> Set:
    """The set with every field of a struct on the way to a member made a member too."""
    out: Set = {}
    for k, below in fields.items():
        if k == "." or not below:
            out[k] = below
            continue
        inner = with_named(below, _at_element(s, k))
        if k[:2] == "f:" and "." not in inner and _named(s, k[2:]):
            inner = {".": LEAF, **inner}
        out[k] = inner
    return out


def _at_element(s: Schema, e: str) -> Schema:
    if e[:2] == "f:":
        return child(s, e[2:])
    return _items(s)


# ---------------------------------------------------------------- validation of what is applied

ERRORS_MAX = 100


def check(value: Any, s: Schema) -> list[str]:
    """What is wrong with an applied value: unknown fields, wrong types, duplicate items; as "path: message"."""
    errors: list[str] = []
    _check(value, s, "", errors)
    return errors


def complaint(errors: list[str]) -> str:
    return errors[0] if len(errors) == 1 else "\n".join(["errors:", *("  " + e for e in errors)])


def _say(errors: list[str], path: str, message: str) -> None:
    if len(errors) < ERRORS_MAX:
        errors.append(f"{path}: {message}" if path else message)


def _go(value: Any) -> str:
    """A value as Go's %v prints it inside of a pointer to a struct: &{x}."""
    return "&{" + _plain(value) + "}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{_plain(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_plain(v) for v in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "<nil>" if value is None else str(value)


def _literal(value: Any) -> str:
    """A value as Go's %#v prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "map[string]interface {}{" + ", ".join(f"{json.dumps(k)}:{_literal(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return "[]interface {}{" + ", ".join(_literal(v) for v in value) + "}"
    return "interface {}(nil)" if value is None else str(value)


_GO_TYPES = {str: "string", bool: "bool", int: "int64", float: "float64", dict: "map[string]interface {}", list: "[]interface {}"}


def _check(value: Any, s: Schema, path: str, errors: list[str]) -> None:
    if value is None:
        return
    c = s.code
    if c in (STRUCT, MAP):
        if not isinstance(value, dict):
            _say(errors, path, f"expected map, got {_go(value)}")
            return
        for k in value:
            p = s.at(k)
            if p is None and not s.preserve:
                _say(errors, f"{path}.{k}", "field not declared in schema")
                return
            _check(value[k], p if p is not None else FREE, f"{path}.{k}", errors)
    elif c == LIST:
        if not isinstance(value, list):
            _say(errors, path, f"expected list, got {_go(value)}")
            return
        keyed = _associative(s)
        seen = set()
        for i, item in enumerate(value):
            where = f"[{i}]"
            if keyed:
                try:
                    e = element(s, item)
                except Malformed as m:
                    _say(errors, path, f"element {i}: {m}")
                    return
                where = fieldset.element_text(e)
                if e in seen:
                    _say(errors, path, f"duplicate entries for key {where}")
                seen.add(e)
            _check(item, _items(s), path + where, errors)
    elif c in (QUANTITY, INT_OR_STRING):
        if isinstance(value, (dict, list)):
            _say(errors, path, f"expected any scalar, got {_go(value)}")
    elif c in (STRING, BYTES, TIME, MICROTIME, DURATION):
        if not isinstance(value, str):
            _say(errors, path, f"expected string, got &value.valueUnstructured{{Value:{_literal(value)}}}")
    elif c == BOOL:
        if not isinstance(value, bool):
            _say(errors, path, f"expected boolean, got {_go(value)}")
    elif c in (INT32, INT64, NUMBER):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _say(errors, path, f"expected numeric (int or float), got {_GO_TYPES.get(type(value), 'nil')}")
    elif c in (ANY, RAW):
        return
