"""Patch: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and Kubernetes' strategic merge patch, with upstream's quirks and words.

In: the live object (left untouched), the patch's bytes, the schema. Out: a fresh object that fits its type again, and warnings.
Not server-side apply (model/fields.py). Bounded: so many operations, so much copied.
Behaviour: apiserver handlers/patch.go, evanphx/json-patch v4, apimachinery util/strategicpatch (KEP and docs: "Strategic merge patch").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from kubern.model import decode, gojson, invalid, jsonpatch, shape, strategic, strict
from kubern.model.gojson import Pairs
from kubern.model.object import Object, clone
from kubern.model.patch_words import Marks, converter_fault, go_map, text
from kubern.model.schema import ANYTHING, Schema, definitions
from kubern.model.status import StatusError, bad_request
from kubern.model.status import invalid as invalid_status

_NOTHING = Schema()
GENERIC = "the server rejected our request due to an error in our request"


# ---------------------------------------------------------------- entry points

def apply_patch(type_: str, original: Object, patch_body: bytes, schema: Schema) -> Object:
    """The patched object, not yet made to fit its type. type_: "json", "merge" or "strategic"."""
    return _apply(type_, clone(original), patch_body, schema, "Ignore", Marks())[0]


def patched(type_: str, original: Object, patch_body: bytes, schema: Schema, *, kind: str, api_version: str, custom: bool = False,
            validation: str = "Warn") -> tuple[Object, list[str]]:
    """The patched object in the shape of its type, and warnings. Raises 400, 413 or 422 as upstream."""
    marks = Marks()
    obj, complaints, shown = _apply(type_, clone(original), patch_body, schema, validation, marks)

    def value() -> str:
        return shown() if shown is not None else text(obj, schema, marks)

    if not custom and shown is None and isinstance(obj, dict):
        if not obj.get("apiVersion"):
            # without an apiVersion upstream reads the text as its internal type, which knows none of the fields
            return {"metadata": {}}, [f'unknown field "{k}"' for k in sorted(obj) if k not in ("apiVersion", "kind")]
        _identity(obj, kind, api_version, value)
    if not isinstance(obj, dict):
        raise _invalid(value(), f"couldn't get version/kind; json parse error: json: cannot unmarshal {gojson.kind_of(obj)} into Go value of type "
                       + decode.FIND_KIND)
    unknown: list[str] = []
    if not custom and schema.raw is None:
        try:
            shape.struct(obj, schema)          # what fits at once needs no words
            out = obj
        except shape.Odd:
            fault = converter_fault(obj, schema) if shown is not None else None
            if fault:
                raise _invalid(value(), fault) from None
            try:
                out, unknown = strict.typed(obj, schema, root=kind)
            except strict.Fault as e:
                raise _invalid(value(), str(e)) from None
    else:
        obj = {k: v for k, v in obj.items() if k not in ("apiVersion", "kind") or isinstance(v, str)}     # what is no text names nothing
        have_version, have_kind = obj.get("apiVersion"), obj.get("kind")
        if custom and (have_version, have_kind) != (api_version, kind):      # about to be refused; another version's fields are not known
            same_group = str(have_version).rpartition("/")[0] == api_version.rpartition("/")[0]
            schema = _NOTHING if same_group and have_kind == kind else ANYTHING
        try:
            out, unknown = strict.typed(obj, schema, True)
        except strict.Fault as e:
            raise _invalid(value(), str(e)) from None
    errors = complaints + unknown
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
        package = decode.internal_package(api_version.rpartition("/")[0])
        raise _invalid(value(), f"converting ({version.rpartition('/')[2]}.{name}) to ({package}.{kind}): unknown conversion")


def _invalid(value: str, why: str) -> StatusError:
    return invalid_status("", "", "", [invalid.invalid("patch", value, why)])


def _apply(type_: str, doc: Any, body: bytes, schema: Schema, validation: str, marks: Marks) -> tuple[Any, list[str], Callable[[], str] | None]:
    """(document, strict errors, text of the patch for messages or None)."""
    if type_ == "json":
        operations, complaints = jsonpatch.parse(body, validation)
        try:
            return jsonpatch.run(doc, operations, marks), complaints, None
        except jsonpatch.Refused:
            raise StatusError(422, "Invalid", GENERIC, {}) from None
    if type_ == "merge":
        patch, complaints = _read(body, "error decoding patch: ")
        if patch is None:
            raise bad_request("Invalid JSON Patch")
        return _merge(doc, patch, marks), complaints, None
    patch, complaints = _read(body, "")
    try:
        return strategic.merge(doc, patch or {}, schema), complaints, lambda: go_map(_read(body, "")[0] or {})    # the merge used it up
    except strategic.BadFormat as e:
        raise bad_request(str(e)) from None
    except RecursionError:
        raise bad_request("exceeded max depth") from None


def _read(body: bytes, prefix: str) -> tuple[Any, list[str]]:
    """The patch body as an object, or None for null, and the strict errors of its keys."""
    try:
        quick = orjson.loads(body)
        if quick.__class__ is dict and shape.key_count(body) == _keys(quick):
            return quick, []
    except (ValueError, RecursionError):         # RecursionError: deeper than we walk; gojson says so
        pass
    tree = _tree(body, prefix)
    return gojson.plain(tree), _duplicates(tree)


def _keys(value: Any) -> int:
    """How many keys a document has, for comparison with its text. Raises ValueError where the fast parser may have rounded a number."""
    c = value.__class__
    if c is dict:
        return len(value) + sum(map(_keys, value.values()))
    if c is list:
        return sum(map(_keys, value))
    if c is float:
        raise ValueError
    return 0


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
    walk = strict.Walk("")
    walk.duplicates(tree, "")
    return walk.errors


# ---------------------------------------------------------------- merge patch

def _merge(doc: Any, patch: Any, marks: Marks) -> Any:
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


def _without_nulls(value: Any, marks: Marks) -> Any:
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
