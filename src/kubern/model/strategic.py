"""Strategic merge patch: a merge that knows from the schema which lists have keys, with its directives.

In: the live data, which is changed, the patch, the schema. Out: the merged data, or BadFormat in upstream's words.
Behaviour: apimachinery util/strategicpatch, the document "Strategic merge patch" of sig-api-machinery.
"""

from __future__ import annotations

from typing import Any

from kubern.model.jsonpatch import same
from kubern.model.patch_words import go_map, go_text, go_type, go_verb_s
from kubern.model.schema import MAP, STRUCT, Schema

DIRECTIVE, RETAIN_KEYS, DELETE_FROM, ORDER = "$patch", "$retainKeys", "$deleteFromPrimitiveList", "$setElementOrder"


class BadFormat(ValueError):
    """The patch is malformed; str() is upstream's message."""


_RETAIN_FORMAT = "invalid patch format of retainKeys"
_ORDER_FORMAT = "invalid patch format of setElementOrder list"
_DELETE_FORMAT = "invalid patch format of primitive list"


def merge(original: dict[str, Any] | None, patch: dict[str, Any], schema: Schema | None) -> dict[str, Any]:
    """original changed in place and returned; patch is used up."""
    if DIRECTIVE in patch:
        directive = patch[DIRECTIVE]
        if directive == "replace":
            del patch[DIRECTIVE]
            return patch
        if directive == "delete":
            return {}
        raise BadFormat(f"unknown patch type: {go_verb_s(directive)} in map: {go_map(patch)}")
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
        if k not in doc or go_type(doc[k]) != go_type(value):
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
                doc[k] = merge(have, value, p)
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
        raise BadFormat(message)
    return rest


def _retain_keys(doc: dict[str, Any], patch: dict[str, Any]) -> None:
    if RETAIN_KEYS not in patch:
        return
    keys = patch.pop(RETAIN_KEYS)
    if not isinstance(keys, list):
        raise BadFormat(_RETAIN_FORMAT)
    for k, v in patch.items():
        if v is not None and not k.startswith((DELETE_FROM, ORDER)) and k not in keys:
            raise BadFormat(_RETAIN_FORMAT)
    for k in list(doc):
        if k not in keys:
            del doc[k]


def _element_orders(doc: dict[str, Any], patch: dict[str, Any], schema: Schema | None) -> None:
    """$setElementOrder/x: the order the client wants for list x; merges x on the way."""
    for key in [k for k in patch if k.startswith(ORDER)]:
        order = patch.pop(key)
        if not isinstance(order, list):
            raise BadFormat(f"expected a []interface {{}}, but received a {go_type(order)}")
        k = _extract(key, ORDER, _ORDER_FORMAT)
        have, want = doc.get(k), patch.get(k)
        for value in (have, want):
            if value is not None and not isinstance(value, list):
                raise BadFormat(f"expected a []interface {{}}, but received a {go_type(value)}")
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
        raise BadFormat(f"The order in patch list:\n{go_text(want)}\n doesn't match {ORDER} list:\n{go_text(order)}\n")


def _key_of(item: Any, merge_key: str) -> Any:
    if not merge_key:
        return item
    if not isinstance(item, dict):
        raise BadFormat(f"expected a map[string]interface {{}}, but received a {go_type(item)}")
    if merge_key not in item:
        raise BadFormat(f"map: {go_map(item)} does not contain declared merge key: {merge_key}")
    return item[merge_key]


def _same_types(*lists: list[Any]) -> str:
    types: list[str] = []
    for items in lists:
        for x in items:
            if isinstance(x, list) and not types:
                raise BadFormat("lists of lists are not supported")
            types.append(go_type(x))
    if not types:
        raise BadFormat("no elements in any of the given slices")
    if any(t != types[0] for t in types):
        raise BadFormat(f"list element types are not identical: [{' '.join(go_text(x) for x in lists)}]")
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
            raise BadFormat(f"cannot merge lists without merge key for {items.name.rsplit('.', 1)[-1] if items is not None else ''}")
        before, plain = _special(original, patch, merge_key)
        original, patch = before, plain
        merged = list(original)
        for x in patch:
            key = _key_of(x, merge_key)
            i = _position(merged, merge_key, key)
            if i is None:
                merged.append(x)
            else:
                merged[i] = merge(merged[i], x, items)
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
            original = [o for o in original if not (merge_key in o and same(o[merge_key], key))]
        elif x[DIRECTIVE] == "replace":
            replace = True
        elif x[DIRECTIVE] == "merge":
            raise BadFormat("merging lists cannot yet be specified in the patch")
        else:
            raise BadFormat(f"unknown patch type: {go_verb_s(x[DIRECTIVE])} in map: {go_map(x)}")
    return (plain, []) if replace else (original, plain)


def _position(items: list[Any], merge_key: str, key: Any) -> int | None:
    for i, x in enumerate(items):
        if not isinstance(x, dict):
            raise BadFormat(f"value for key {i} is not a map")
        if merge_key in x and same(x[merge_key], key):
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
            if isinstance(x, dict) and merge_key in x and same(x[merge_key], key):
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
