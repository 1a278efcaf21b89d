"""Patch: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and Kubernetes' strategic merge patch, with upstream's quirks and words.

In: the live object (left untouched), the patch's bytes, the schema. Out: a fresh object that fits its type again, and warnings.
Not server-side apply (model/fields.py). Bounded: so many operations, so much copied.
Behaviour: apiserver handlers/patch.go, evanphx/json-patch v4, apimachinery util/strategicpatch (KEP and docs: "Strategic merge patch").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from kubern.model import decode, gojson, invalid, wire
from kubern.model.gojson import Pairs
from kubern.model.object import Object, clone
from kubern.model.schema import (
    BOOL,
    INT32,
    INT64,
    LIST,
    MAP,
    NUMBER,
    STRING,
    STRUCT,
    Schema,
    definitions,
)
from kubern.model.status import StatusError, bad_request
from kubern.model.status import invalid as invalid_status

OPERATIONS_MAX = 10_000
COPIED_BYTES_MAX = 3 << 20         # what `copy` operations may add up to
GENERIC = "the server rejected our request due to an error in our request"


class _Refused(Exception):
    """A JSON patch that does not apply; str() is evanphx/json-patch's text. `test`: because a test failed."""

    test = False


class _NoPath(_Refused):
    """The path leads nowhere."""


class _TestFailed(_Refused):
    test = True


class _Marks(dict[int, str]):
    """How objects of a patched document are printed: id -> "sorted" (looked into by the patch) or "raw" (as the patch spelled them)."""


# ---------------------------------------------------------------- entry points

def apply_patch(type_: str, original: Object, patch_body: bytes, schema: Schema) -> Object:
    """The patched object, not yet made to fit its type. type_: "json", "merge" or "strategic"."""
    return _apply(type_, clone(original), patch_body, schema, "Ignore", _Marks())[0]


def patched(type_: str, original: Object, patch_body: bytes, schema: Schema, *, kind: str, api_version: str, custom: bool = False,
            validation: str = "Warn") -> tuple[Object, list[str]]:
    """The patched object in the shape of its type, and warnings. Raises 400, 413 or 422 as upstream."""
    marks = _Marks()
    obj, strict, shown = _apply(type_, clone(original), patch_body, schema, validation, marks)

    def value() -> str:
        return shown if shown is not None else text(obj, schema, marks)

    if not custom and shown is None and isinstance(obj, dict):
        if not obj.get("apiVersion"):
            # without an apiVersion upstream reads the text as its internal type, which knows none of the fields
            return {"metadata": {}}, [f'unknown field "{k}"' for k in sorted(obj) if k not in ("apiVersion", "kind")]
        _identity(obj, kind, api_version, value)
    if not isinstance(obj, dict):
        raise _invalid(value(), f"json: cannot unmarshal {gojson.kind_of(obj)} into Go value of type {kind}")
    unknown: list[str] = []
    if not custom and schema.raw is None:
        try:
            decode._struct(obj, schema)          # what fits at once needs no words
            out = obj
        except decode._Odd:
            fault = _converter_fault(obj, schema) if shown is not None else None
            if fault:
                raise _invalid(value(), fault) from None
            try:
                out, unknown = decode.typed(obj, schema, root=kind)
            except decode.Fault as e:
                raise _invalid(value(), str(e)) from None
    else:
        try:
            out, unknown = decode.typed(obj, schema, True)
        except decode.Fault as e:
            raise _invalid(value(), str(e)) from None
    errors = strict + unknown
    if errors and validation == "Strict":
        raise _invalid(value(), "strict decoding error: " + ", ".join(errors))
    if not isinstance(out.get("metadata"), dict):
        out["metadata"] = {}
    if not custom:
        out["apiVersion"], out["kind"] = api_version, kind
    return out, errors if validation == "Warn" else []


def _identity(obj: dict[str, Any], kind: str, api_version: str, value: Callable[[], str]) -> None:
    """A patch may change apiVersion and kind only to what the decoder still takes."""
    have_version, have_kind = obj.get("apiVersion"), obj.get("kind")
    if have_version == api_version and (have_kind or kind) == kind:
        return
    version, name = have_version or api_version, have_kind or kind
    if not isinstance(version, str) or not isinstance(name, str):
        raise _invalid(value(), "couldn't get version/kind; json parse error: json: cannot unmarshal "
                       f"{gojson.kind_of(version if not isinstance(version, str) else name)} into Go struct field "
                       f".{'apiVersion' if not isinstance(version, str) else 'kind'} of type string")
    if f"{version}/{name}" not in definitions().index:
        raise _invalid(value(), f'no kind "{name}" is registered for version "{version}" in scheme "pkg/api/legacyscheme/scheme.go:30"')
    if name != kind:
        package = decode._internal_package(api_version.rpartition("/")[0])
        raise _invalid(value(), f"converting ({version.rpartition('/')[2]}.{name}) to ({package}.{kind}): unknown conversion")


def _invalid(value: str, why: str) -> StatusError:
    return invalid_status("", "", "", [invalid.invalid("patch", value, why)])


def _apply(type_: str, doc: Any, body: bytes, schema: Schema, validation: str, marks: _Marks) -> tuple[Any, list[str], str | None]:
    """(document, strict errors, text of the patch for messages or None)."""
    if type_ == "json":
        operations, strict = _operations(body, validation)
        try:
            return _json_patch(doc, operations, marks), strict, None
        except _Refused:
            raise StatusError(422, "Invalid", GENERIC, {}) from None
    if type_ == "merge":
        tree = _tree(body, "error decoding patch: ")
        patch = gojson.plain(tree)
        if patch is None:
            raise bad_request("Invalid JSON Patch")
        return _merge(doc, patch, marks), _duplicates(tree), None
    tree = _tree(body, "")
    patch = gojson.plain(tree) or {}
    shown = _go_map(patch)
    try:
        return _merge_map(doc, patch, schema), _duplicates(tree), shown
    except _BadFormat as e:
        raise bad_request(str(e)) from None
    except RecursionError:
        raise bad_request("exceeded max depth") from None


def _tree(body: bytes, prefix: str) -> Any:
    """The patch body as a tree of an object, or None for null."""
    try:
        tree = gojson.parse(body)
    except gojson.SyntaxFault as e:
        raise bad_request(f"{prefix}{e}") from None
    if tree is not None and not isinstance(tree, Pairs):
        raise bad_request(f"{prefix}json: cannot unmarshal {gojson.kind_of(tree)} into Go value of type map[string]interface {{}}")
    return tree


def _duplicates(tree: Any) -> list[str]:
    walk = decode._Slow("")
    walk._duplicates(tree, "")
    return walk.errors


# ---------------------------------------------------------------- JSON patch

_OP_FIELDS = {"op", "path", "from", "value"}


def _operations(body: bytes, validation: str) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        tree = gojson.parse(body)
    except gojson.SyntaxFault as e:
        raise bad_request(f"error decoding patch: {e}") from None
    if tree is None:
        return [], []
    if not isinstance(tree, list) or isinstance(tree, Pairs):
        raise bad_request(f"error decoding patch: json: cannot unmarshal {gojson.kind_of(tree)} into Go value of type []handlers.jsonPatchOp")
    strict: list[str] = []
    operations: list[dict[str, Any]] = []
    for i, item in enumerate(tree):
        if item is None:
            operations.append({})
            continue
        if not isinstance(item, Pairs):
            raise bad_request(f"error decoding patch: json: cannot unmarshal {gojson.kind_of(item)} into Go value of type handlers.jsonPatchOp")
        op: dict[str, Any] = {}
        for k, v in item:
            if k not in _OP_FIELDS:
                _add_strict(strict, f'json patch unknown field "[{i}].{k}"')
                continue
            if k in op:
                _add_strict(strict, f'json patch duplicate field "[{i}].{k}"')
            if k != "value" and v is not None and not isinstance(v, str):
                raise bad_request(f"error decoding patch: json: cannot unmarshal {gojson.kind_of(v)} into Go struct field jsonPatchOp.{k} of type string")
            op[k] = gojson.plain(v)
        operations.append(op)
    if len(operations) > OPERATIONS_MAX:
        raise StatusError(413, "RequestEntityTooLarge", "Request entity too large: The allowed maximum operations in a JSON patch is "
                          f"{OPERATIONS_MAX}, got {len(operations)}")
    return operations, strict if validation != "Ignore" else []


def _add_strict(strict: list[str], message: str) -> None:
    if len(strict) < decode.STRICT_ERRORS_MAX and message not in strict:
        strict.append(message)


def json_patch(doc: Any, operations: list[dict[str, Any]]) -> tuple[Any, str]:
    """A document changed in place by operations that are known to be such, and why it could not be ("" if it could, "test" if a test failed)."""
    try:
        return _json_patch(doc, operations, _Marks()), ""
    except _Refused as e:
        return doc, "test" if e.test else str(e) or "invalid operation"


def _json_patch(doc: Any, operations: list[dict[str, Any]], marks: _Marks) -> Any:
    copied = [0]
    marks[id(doc)] = "sorted"
    for op in operations:
        kind, path = op.get("op"), op.get("path")
        if path is None:
            raise _Refused(f"{kind} operation failed to decode path: missing value")
        try:
            _one(doc, op, kind, path, marks, copied)
        except _NoPath:
            raise _Refused(f'{kind} operation does not apply: doc is missing path: "{path}": missing value') from None
        except _Refused as e:
            if e.test or not e.args or kind not in _OPERATIONS:
                raise
            raise _Refused(f"error in {kind} for path: '{path}': {e}") from None
    return doc


_OPERATIONS = ("add", "remove", "replace", "move", "copy", "test")


def _one(doc: Any, op: dict[str, Any], kind: Any, path: str, marks: _Marks, copied: list[int]) -> None:
    if kind == "add":
        holder, key = _find(doc, path, marks)
        _add(holder, key, _raw(op.get("value"), marks))
    elif kind == "remove":
        holder, key = _find(doc, path, marks)
        _take(holder, key)
    elif kind == "replace":
        holder, key = _find(doc, path, marks)
        if isinstance(holder, dict):                 # a missing member is tolerated
            holder[key] = _raw(op.get("value"), marks)
        else:
            holder[_index(holder, key)] = _raw(op.get("value"), marks)
    elif kind == "move":
        if op.get("from") is None:
            raise _Refused
        holder, key = _find(doc, op["from"], marks)
        value = _take(holder, key)
        holder, key = _find(doc, path, marks)
        _add(holder, key, value)
    elif kind == "copy":
        if op.get("from") is None:
            raise _Refused
        holder, key = _find(doc, op["from"], marks)
        value = clone(holder.get(key) if isinstance(holder, dict) else holder[_index(holder, key)])
        copied[0] += len(orjson.dumps(value))
        if copied[0] > COPIED_BYTES_MAX:
            raise _Refused
        holder, key = _find(doc, path, marks)
        _add(holder, key, value)
    elif kind == "test":
        holder, key = _find(doc, path, marks)
        value = holder.get(key) if isinstance(holder, dict) else holder[_index(holder, key)]
        if not _same(value, op.get("value")):
            raise _TestFailed(f"testing value {path} failed: test failed")
    else:
        raise _Refused(f"Unexpected kind: {kind}")


def _raw(value: Any, marks: _Marks) -> Any:
    """A value that the patch spelled, remembered to be printed in its own order."""
    if isinstance(value, dict):
        marks[id(value)] = "raw"
        for v in value.values():
            _raw(v, marks)
    elif isinstance(value, list):
        for v in value:
            _raw(v, marks)
    return value


def _find(doc: Any, pointer: str, marks: _Marks) -> tuple[Any, str]:
    """(the object or list that holds the target, its key). A pointer without a leading slash loses its first part, as upstream's does."""
    parts = pointer.split("/")
    if len(parts) < 2:
        raise _NoPath
    holder = doc
    for part in parts[1:-1]:
        if isinstance(holder, dict):
            below = holder.get(_unescape(part))
        else:
            below = holder[_index(holder, _unescape(part))]
        if not isinstance(below, (dict, list)):
            raise _NoPath
        holder = below
        if isinstance(holder, dict):
            marks[id(holder)] = "sorted"
    return holder, _unescape(parts[-1])


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _number(key: str) -> int:
    digits = key[1:] if key[:1] in ("+", "-") else key
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise _Refused(f'strconv.Atoi: parsing "{key}": invalid syntax')
    return int(key)


def _index(items: list[Any], key: str) -> int:
    """An index of an existing item; -1 is the last one."""
    i = _number(key)
    if i < 0:
        i += len(items)
    if not 0 <= i < len(items):
        raise _Refused(f"Unable to access invalid index: {key}: invalid index referenced")
    return i


def _add(holder: Any, key: str, value: Any) -> None:
    if isinstance(holder, dict):
        holder[key] = value
    elif key == "-":
        holder.append(value)
    else:
        i = _number(key)
        if i < 0:
            i += len(holder) + 1
        if not 0 <= i <= len(holder):
            raise _Refused(f"Unable to access invalid index: {key}: invalid index referenced")
        holder.insert(i, value)


def _take(holder: Any, key: str) -> Any:
    if isinstance(holder, dict):
        if key not in holder:
            raise _Refused(f"Unable to remove nonexistent key: {key}: missing value")
        return holder.pop(key)
    return holder.pop(_index(holder, key))


def _same(a: Any, b: Any) -> bool:
    """JSON equality: true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a.__class__ is b.__class__ and a == b


# ---------------------------------------------------------------- merge patch

def _merge(doc: Any, patch: Any, marks: _Marks) -> Any:
    if not isinstance(patch, dict):
        return _without_nulls(patch, marks)
    if not isinstance(doc, dict):
        return _without_nulls(patch, marks)
    marks[id(doc)] = "sorted"
    for k, v in patch.items():
        if v is None:
            doc.pop(k, None)
        elif isinstance(v, dict) and doc.get(k) is not None:
            doc[k] = _merge(doc[k], v, marks)
        else:
            doc[k] = _without_nulls(v, marks)
    return doc


def _without_nulls(value: Any, marks: _Marks) -> Any:
    """A value that is new to the document: nulls in objects mean nothing there."""
    if isinstance(value, dict):
        for k in [k for k, v in value.items() if v is None]:
            del value[k]
        for v in value.values():
            _without_nulls(v, marks)
        marks[id(value)] = "sorted"
    elif isinstance(value, list):
        for v in value:
            _without_nulls(v, marks)
    return value


# ---------------------------------------------------------------- strategic merge patch

DIRECTIVE, RETAIN_KEYS, DELETE_FROM, ORDER = "$patch", "$retainKeys", "$deleteFromPrimitiveList", "$setElementOrder"


class _BadFormat(ValueError):
    """The patch is malformed; str() is upstream's message."""


_RETAIN_FORMAT = "invalid patch format of retainKeys"
_ORDER_FORMAT = "invalid patch format of setElementOrder list"
_DELETE_FORMAT = "invalid patch format of primitive list"


def _merge_map(original: dict[str, Any] | None, patch: dict[str, Any], schema: Schema | None) -> dict[str, Any]:
    """original changed in place and returned; patch is used up."""
    if DIRECTIVE in patch:
        directive = patch[DIRECTIVE]
        if directive == "replace":
            del patch[DIRECTIVE]
            return patch
        if directive == "delete":
            return {}
        raise _BadFormat(f"unknown patch type: {_go(directive)} in map: {_go_map(patch)}")
    doc: dict[str, Any] = {} if original is None else original
    _retain_keys(doc, patch)
    _element_orders(doc, patch, schema)
    for key, value in patch.items():
        k = key
        deleting = key.startswith(DELETE_FROM)
        if deleting:
            k = _extract(key, DELETE_FROM, _DELETE_FORMAT)
        if value is None:
            doc.pop(k, None)
            continue
        if k not in doc or _go_type(doc[k]) != _go_type(value):
            if not deleting:
                new, keep = _without_directives(_drop_nulls(value))
                if keep:
                    doc[k] = new
                else:
                    doc.pop(k, None)
            continue
        have = doc[k]
        p = _property(schema, k)
        if isinstance(have, dict):
            if p is not None and "replace" in p.patch_strategy:
                doc[k] = value
            else:
                doc[k] = _merge_map(have, value, p)
        elif isinstance(have, list):
            if deleting or (p is not None and "merge" in p.patch_strategy):
                doc[k] = _merge_list(have, value, p.items if p is not None else None, p.patch_key if p is not None else "", deleting)
            else:
                doc[k] = value
        else:
            doc[k] = value
    return doc


def _property(schema: Schema | None, key: str) -> Schema | None:
    return schema.at(key) if schema is not None and schema.code in (STRUCT, MAP) else None


def _extract(key: str, prefix: str, message: str) -> str:
    head, slash, rest = key.partition("/")
    if not slash or head != prefix:
        raise _BadFormat(message)
    return rest


def _retain_keys(doc: dict[str, Any], patch: dict[str, Any]) -> None:
    if RETAIN_KEYS not in patch:
        return
    keys = patch.pop(RETAIN_KEYS)
    if not isinstance(keys, list):
        raise _BadFormat(_RETAIN_FORMAT)
    for k, v in patch.items():
        if v is not None and not k.startswith((DELETE_FROM, ORDER)) and k not in keys:
            raise _BadFormat(_RETAIN_FORMAT)
    for k in list(doc):
        if k not in keys:
            del doc[k]


def _element_orders(doc: dict[str, Any], patch: dict[str, Any], schema: Schema | None) -> None:
    """$setElementOrder/x: the order the client wants for list x; merges x on the way."""
    for key in [k for k in patch if k.startswith(ORDER)]:
        order = patch.pop(key)
        if not isinstance(order, list):
            raise _BadFormat(f"expected a []interface {{}}, but received a {_go_type(order)}")
        k = _extract(key, ORDER, _ORDER_FORMAT)
        have, want = doc.get(k), patch.get(k)
        for value in (have, want):
            if value is not None and not isinstance(value, list):
                raise _BadFormat(f"expected a []interface {{}}, but received a {_go_type(value)}")
        p = _property(schema, k)
        merge_key = p.patch_key if p is not None else ""
        _check_order(want or [], order, merge_key)
        had, wanted = k in doc, k in patch
        if had and not wanted:
            merged = have or []
        elif not had and wanted:
            merged = _without_directives(want or [])[0]
        elif had and wanted:
            if p is not None and "merge" in p.patch_strategy:
                merged = _merge_list(have or [], want or [], p.items, merge_key, False)
            else:
                merged = want or []
        else:
            continue
        chosen, rest = _partition(merged, order, merge_key)
        _same_types(have or [], want or [])
        keyed = any(isinstance(x, dict) for x in [*(have or []), *(want or [])])
        doc[k] = _ordered(chosen, rest, order, have or [], merge_key, keyed)
        patch.pop(k, None)


def _check_order(want: list[Any], order: list[Any], merge_key: str) -> None:
    if not want or not order:
        return
    kept = [x for x in want if not (isinstance(x, dict) and x.get(DIRECTIVE) == "delete")] if merge_key else want
    i = j = 0
    while i < len(kept) and j < len(order):
        if isinstance(kept[i], dict) and DIRECTIVE in kept[i]:
            i += 1
            continue
        if _key_of(kept[i], merge_key) == _key_of(order[j], merge_key):
            i += 1
        j += 1
    if i < len(kept) and j >= len(order):
        raise _BadFormat(f"The order in patch list:\n{_go(want)}\n doesn't match {ORDER} list:\n{_go(order)}\n")


def _key_of(item: Any, merge_key: str) -> Any:
    if not merge_key:
        return item
    if not isinstance(item, dict):
        raise _BadFormat(f"expected a map[string]interface {{}}, but received a {_go_type(item)}")
    if merge_key not in item:
        raise _BadFormat(f"map: {_go_map(item)} does not contain declared merge key: {merge_key}")
    return item[merge_key]


def _same_types(*lists: list[Any]) -> str:
    types: list[str] = []
    for items in lists:
        for x in items:
            if isinstance(x, list) and not types:
                raise _BadFormat("lists of lists are not supported")
            types.append(_go_type(x))
    if not types:
        raise _BadFormat("no elements in any of the given slices")
    if any(t != types[0] for t in types):
        raise _BadFormat(f"list element types are not identical: [{' '.join(_go(x) for x in lists)}]")
    return types[0]


def _merge_list(original: list[Any], patch: list[Any], items: Schema | None, merge_key: str, deleting: bool) -> list[Any]:
    if not original and not patch:
        return original
    keyed = _same_types(original, patch).startswith("map")
    if not keyed:
        if deleting:
            return [x for x in original if x not in patch]
        merged: list[Any] = []
        for x in [*original, *patch]:
            if x not in merged:
                merged.append(x)
    else:
        if not merge_key:
            raise _BadFormat(f"cannot merge lists without merge key for {items.name.rsplit('.', 1)[-1] if items is not None else ''}")
        before, plain = _special(original, patch, merge_key)
        original, patch = before, plain
        merged = list(original)
        for x in patch:
            key = _key_of(x, merge_key)
            i = _position(merged, merge_key, key)
            if i is None:
                merged.append(x)
            else:
                merged[i] = _merge_map(merged[i], x, items)
    chosen, rest = _partition(merged, patch, merge_key)
    return _ordered(chosen, rest, patch, original, merge_key, keyed)


def _special(original: list[Any], patch: list[Any], merge_key: str) -> tuple[list[Any], list[Any]]:
    """$patch directives inside a list: (what is left of the original, ordinary items of the patch)."""
    plain, replace = [], False
    for x in patch:
        if DIRECTIVE not in x:
            plain.append(x)
        elif x[DIRECTIVE] == "delete":
            key = _key_of(x, merge_key)
            original = [o for o in original if not (merge_key in o and _same(o[merge_key], key))]
        elif x[DIRECTIVE] == "replace":
            replace = True
        elif x[DIRECTIVE] == "merge":
            raise _BadFormat("merging lists cannot yet be specified in the patch")
        else:
            raise _BadFormat(f"unknown patch type: {_go(x[DIRECTIVE])} in map: {_go_map(x)}")
    return (plain, []) if replace else (original, plain)


def _position(items: list[Any], merge_key: str, key: Any) -> int | None:
    for i, x in enumerate(items):
        if not isinstance(x, dict):
            raise _BadFormat(f"value for key {i} is not a map")
        if merge_key in x and _same(x[merge_key], key):
            return i
    return None


def _partition(items: list[Any], by: list[Any], merge_key: str) -> tuple[list[Any], list[Any]]:
    """(items that are in `by`, the others)."""
    chosen: list[Any] = []
    rest: list[Any] = []
    for x in items:
        if not merge_key:
            (chosen if x in by else rest).append(x)
        else:
            (rest if _position(by, merge_key, _key_of(x, merge_key)) is None else chosen).append(x)
    return chosen, rest


def _ordered(chosen: list[Any], rest: list[Any], patch_order: list[Any], server_order: list[Any], merge_key: str, keyed: bool) -> list[Any]:
    """The client's items in the client's order, the server's own between them where the server's order says so."""
    chosen = _sorted_by(chosen, patch_order, merge_key, keyed)
    rest = _sorted_by(rest, server_order, merge_key, keyed)
    out: list[Any] = []
    i = j = 0
    while i < len(rest) or j < len(chosen):
        if i >= len(rest):
            out.append(chosen[j])
            j += 1
        elif j >= len(chosen):
            out.append(rest[i])
            i += 1
        else:
            a, b = _rank(server_order, rest[i], merge_key, keyed), _rank(server_order, chosen[j], merge_key, keyed)
            if a >= 0 and b >= 0 and a < b:
                out.append(rest[i])
                i += 1
            else:
                out.append(chosen[j])
                j += 1
    return out


def _rank(order: list[Any], item: Any, merge_key: str, keyed: bool) -> int:
    if keyed:
        key = item.get(merge_key) if isinstance(item, dict) else item
        for i, x in enumerate(order):
            if isinstance(x, dict) and merge_key in x and _same(x[merge_key], key):
                return i
        return -1
    return order.index(item) if item in order else -1


def _sorted_by(items: list[Any], order: list[Any], merge_key: str, keyed: bool) -> list[Any]:
    ranks = [_rank(order, x, merge_key, keyed) for x in items]
    known = [(r, n) for n, r in enumerate(ranks) if r >= 0]
    if len(known) == len(items):
        return [items[n] for _, n in sorted(known)]
    return items


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        for k in [k for k, v in value.items() if v is None]:
            del value[k]
        for v in value.values():
            _drop_nulls(v)
    elif isinstance(value, list):
        for v in value:
            _drop_nulls(v)
    return value


def _without_directives(value: Any) -> tuple[Any, bool]:
    """(value, whether to keep it): objects with a $patch directive are none."""
    if isinstance(value, dict):
        if DIRECTIVE in value:
            return None, False
        out = {}
        for k, v in value.items():
            new, keep = _without_directives(v)
            if keep:
                out[k] = new
        return out, True
    if isinstance(value, list):
        return [new for new, keep in map(_without_directives, value) if keep], True
    return value, True


# ---------------------------------------------------------------- words

def _go_type(value: Any) -> str:
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64"
    return {str: "string", float: "float64", dict: "map[string]interface {}", list: "[]interface {}"}[type(value)]


def _go(value: Any) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, dict):
        return _go_map(value)
    if isinstance(value, list):
        return "[" + " ".join(_go(v) for v in value) + "]"
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _go_map(value: dict[str, Any]) -> str:
    return "map[" + " ".join(f"{k}:{_go(v)}" for k, v in sorted(value.items())) + "]"


_KINDS = {str: "string", bool: "bool", int: "int64", float: "float64", dict: "map", list: "slice"}


def _converter_fault(value: Any, s: Schema) -> str | None:
    """What upstream's converter, which a strategic patch goes through, says of the first value that does not fit; None: nothing."""
    if value is None:
        return None
    kind = _KINDS[type(value)]
    c = s.code
    if c == STRUCT:
        if kind != "map":
            return f"cannot restore struct from: {kind}"
        for k in sorted(value):
            p = (s.props or {}).get(k)
            found = _converter_fault(value[k], p) if p is not None else None
            if found:
                return found
    elif c == MAP:
        if kind != "map":
            return f"cannot restore map from {kind}"
        for k in sorted(value):
            found = _converter_fault(value[k], s.extra) if s.extra is not None else None
            if found:
                return found
    elif c == LIST:
        if kind != "slice":
            return f"cannot restore slice from {kind}"
        for x in value:
            found = _converter_fault(x, s.items) if s.items is not None else None
            if found:
                return found
    elif c == STRING:
        if kind != "string":
            return f"cannot convert int64 to {s.go or 'string'}" if kind == "int64" else "unrecognized type: string"
    elif c == BOOL:
        if kind != "bool":
            return "unrecognized type: bool"
    elif c in (INT32, INT64):
        go = "int32" if c == INT32 else "int64"
        if kind == "float64":
            if value != int(value):
                return f"cannot convert float64 to {s.go or go}"
        elif kind != "int64":
            return f"unrecognized type: {go}"
    elif c == NUMBER and kind not in ("int64", "float64"):
        return "unrecognized type: float64"
    return None


def text(value: Any, schema: Schema | None, marks: _Marks) -> str:
    """The JSON of a patched document as upstream prints it: what the patch looked into is sorted, the rest in declared order."""
    return _text(value, schema, marks)


_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def _quote(s: str) -> str:
    out = orjson.dumps(s).decode()
    for c, e in _ESCAPES.items():
        if c in out:
            out = out.replace(c, e)
    return out


def _text(value: Any, s: Schema | None, marks: _Marks) -> str:
    if isinstance(value, dict):
        mark = marks.get(id(value))
        keys = list(value) if mark == "raw" else sorted(value)
        if mark is None and s is not None and s.code == STRUCT and s.raw is None and s.name:
            rank = _declared(s.name)
            keys.sort(key=lambda k: rank.get(k, len(rank)))
        elif mark is None and (s is None or s.code not in (STRUCT, MAP)) and not (s is not None and s.raw is not None):
            keys = list(value)
        return "{" + ",".join(f"{_quote(k)}:{_text(value[k], s.at(k) if s is not None else None, marks)}" for k in keys) + "}"
    if isinstance(value, list):
        items = s.items if s is not None else None
        return "[" + ",".join(_text(x, items, marks) for x in value) + "]"
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, float):
        return orjson.dumps(value).decode()
    return _go(value) if value is not None else "null"


def _declared(name: str) -> dict[str, int]:
    """Rank of the properties of a definition in the order of upstream's declaration."""
    rank: dict[str, int] = {}
    for f in _flat(name):
        rank.setdefault(f, len(rank))
    rank.setdefault("kind", -2)
    rank.setdefault("apiVersion", -1)
    return rank


def _flat(name: str) -> list[str]:
    out: list[str] = []
    for f in wire.fields(name):
        out += _flat(f.type) if f.name == "<" else [f.name]
    return out
