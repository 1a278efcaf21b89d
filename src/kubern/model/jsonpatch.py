"""JSON patch: RFC 6902 with upstream's leniencies.

In: a document, which is changed, and operations as bytes or data. Out: the document, or Refused with the library's words. Bounded: so many
operations, so much copied. Behaviour: evanphx/json-patch v4, apiserver handlers/patch.go.
"""

from __future__ import annotations

from typing import Any

import orjson

from kubern.model import gojson
from kubern.model.gojson import Pairs
from kubern.model.object import clone
from kubern.model.patch_words import Marks
from kubern.model.status import StatusError, bad_request
from kubern.model.strict import STRICT_ERRORS_MAX

OPERATIONS_MAX = 10_000
COPIED_BYTES_MAX = 3 << 20         # what `copy` operations may add up to


class Refused(Exception):
    """A JSON patch that does not apply; str() is evanphx/json-patch's text. `test`: because a test failed."""

    test = False


class _NoPath(Refused):
    """The path leads nowhere."""


class _TestFailed(Refused):
    test = True


_OP_FIELDS = {"op", "path", "from", "value"}


def parse(body: bytes, validation: str) -> tuple[list[dict[str, Any]], list[str]]:
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
    if len(strict) < STRICT_ERRORS_MAX and message not in strict:
        strict.append(message)


def json_patch(doc: Any, operations: list[dict[str, Any]]) -> tuple[Any, str]:
    """A document changed by operations that are known to be such (in place, where not all of it is replaced), and why it could not be:
    "" if it could, "test" if a test failed."""
    try:
        return run(doc, operations, Marks()), ""
    except Refused as e:
        return doc, "test" if e.test else str(e) or "invalid operation"


def run(doc: Any, operations: list[dict[str, Any]], marks: Marks) -> Any:
    copied = [0]
    marks[id(doc)] = "sorted"
    for op in operations:
        kind, path = op.get("op"), op.get("path")
        if path is None:
            raise Refused(f"{kind} operation failed to decode path: missing value")
        try:
            if path == "" and kind in ("replace", "test"):        # of the whole document; the others find no path there
                doc = _whole(doc, op, kind, marks)
            else:
                _one(doc, op, kind, path, marks, copied)
        except _NoPath:
            raise Refused(f'{kind} operation does not apply: doc is missing path: "{path}": missing value') from None
        except Refused as e:
            if e.test or not e.args or kind not in _OPERATIONS:
                raise
            raise Refused(f"error in {kind} for path: '{path}': {e}") from None
    return doc


_OPERATIONS = ("add", "remove", "replace", "move", "copy", "test")


def _one(doc: Any, op: dict[str, Any], kind: Any, path: str, marks: Marks, copied: list[int]) -> None:
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
            raise Refused
        holder, key = _find(doc, op["from"], marks)
        value = _take(holder, key)
        holder, key = _find(doc, path, marks)
        _add(holder, key, value)
    elif kind == "copy":
        if op.get("from") is None:
            raise Refused
        holder, key = _find(doc, op["from"], marks)
        value = clone(holder.get(key) if isinstance(holder, dict) else holder[_index(holder, key)])
        copied[0] += len(orjson.dumps(value))
        if copied[0] > COPIED_BYTES_MAX:
            raise Refused
        holder, key = _find(doc, path, marks)
        _add(holder, key, value)
    elif kind == "test":
        holder, key = _find(doc, path, marks)
        value = holder.get(key) if isinstance(holder, dict) else holder[_index(holder, key)]
        if not same(value, op.get("value")):
            raise _TestFailed(f"testing value {path} failed: test failed")
    else:
        raise Refused(f"Unexpected kind: {kind}")


def _whole(doc: Any, op: dict[str, Any], kind: str, marks: Marks) -> Any:
    value = op.get("value")
    if kind == "test":
        if not same(doc, value):
            raise _TestFailed("testing value  failed: test failed")
        return doc
    if not isinstance(value, (dict, list)):
        raise Refused
    return _raw(value, marks)


def _raw(value: Any, marks: Marks) -> Any:
    """A value that the patch spelled, remembered to be printed in its own order."""
    if isinstance(value, dict):
        marks[id(value)] = "raw"
        for v in value.values():
            _raw(v, marks)
    elif isinstance(value, list):
        for v in value:
            _raw(v, marks)
    return value


def _find(doc: Any, pointer: str, marks: Marks) -> tuple[Any, str]:
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
        raise Refused(f'strconv.Atoi: parsing "{key}": invalid syntax')
    return int(key)


def _index(items: list[Any], key: str) -> int:
    """An index of an existing item; -1 is the last one."""
    i = _number(key)
    if i < 0:
        i += len(items)
    if not 0 <= i < len(items):
        raise Refused(f"Unable to access invalid index: {key}: invalid index referenced")
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
            raise Refused(f"Unable to access invalid index: {key}: invalid index referenced")
        holder.insert(i, value)


def _take(holder: Any, key: str) -> Any:
    if isinstance(holder, dict):
        if key not in holder:
            raise Refused(f"Unable to remove nonexistent key: {key}: missing value")
        return holder.pop(key)
    return holder.pop(_index(holder, key))


def same(a: Any, b: Any) -> bool:
    """JSON equality: true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.__class__ is b.__class__ and a == b
