"""Options: ListOptions, DeleteOptions and those of writes, out of the query or the body, checked with upstream's words.

Upstream: apimachinery apis/meta/v1 (types, conversion, validation), apis/meta/internalversion/validation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from kubern.model import gojson, invalid
from kubern.model.invalid import FieldError, quote
from kubern.model.object import Object
from kubern.model.request import Request
from kubern.model.resource import Resource
from kubern.model.resources import field_path, field_value
from kubern.model.selector import EVERYTHING, FieldSelector, Selector, parse_fields, parse_labels
from kubern.model.status import bad_request
from kubern.model.status import invalid as invalid_status

FIELD_MANAGER_MAX = 128
_INT64 = 1 << 63
DIGITS_MAX = 1000                      # int() of more raises; no number here has so many


def flag(values: list[str] | None) -> bool | None:
    """A boolean query parameter: absent None, "false" and "0" False, anything else True."""
    if values is None:
        return None
    return values[0].lower() not in ("false", "0")


def number(values: list[str] | None) -> int | None:
    """An int64 query parameter; raises 400 with strconv's words."""
    if values is None or not values or values[0] == "":
        if values:
            raise bad_request('strconv.ParseInt: parsing "": invalid syntax')
        return None
    text = values[0]
    digits = text[1:] if text[0] in "+-" else text
    if not digits.isascii() or not digits.isdigit():
        raise bad_request(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    n = int(text) if len(digits) <= DIGITS_MAX else _INT64
    if not -_INT64 <= n < _INT64:
        raise bad_request(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    return n


def version(text: str, *, listing: bool = False) -> int:
    """A resourceVersion as a number. Raises 400 (upstream answers most bad ones with 500 and the same words)."""
    if text in ("", "0"):
        return 0
    if text.isascii() and text.isdigit():
        if len(text) <= DIGITS_MAX and int(text) < 1 << 64:
            return int(text)
        why = "value out of range"
    else:
        why = "invalid syntax"
    message = f"resourceVersion: Invalid value: {quote(text)}: strconv.ParseUint: parsing {quote(text)}: {why}"
    if listing:
        raise bad_request(f"invalid resource version: {message}")
    raise bad_request(message)


def raise_invalid(kind: str, errors: list[FieldError]) -> None:
    if errors:
        raise invalid_status("meta.k8s.io", kind, "", errors)


@dataclass(slots=True)
class ListOptions:
    labels: Selector = EVERYTHING
    fields: FieldSelector = field(default_factory=FieldSelector)
    labels_text: str = ""
    fields_text: str = ""
    watch: bool = False
    bookmarks: bool = False
    version: str = ""
    match: str = ""
    timeout_s: int | None = None
    limit: int = 0
    continue_: str = ""
    initial_events: bool | None = None

    terms: tuple[tuple[str, bool, str], ...] = ()   # of the field selector, with the paths they read in the stored object

    @property
    def everything(self) -> bool:
        return self.labels.empty and self.fields.empty

    @property
    def of_fields(self) -> bool:
        """Whether the field selector reads more than metadata."""
        return any(not path.startswith("metadata.") for path, _, _ in self.terms)

    def matches(self, obj: Object) -> bool:
        """Whether a stored object is selected."""
        if not self.labels.empty and not self.labels.matches((obj.get("metadata") or {}).get("labels")):
            return False
        return all((field_value(obj, path) == value) is equal for path, equal, value in self.terms)

    def exact(self, path: str) -> str | None:
        """The one value this path must have, or None."""
        for p, equal, value in self.terms:
            if p == path and equal:
                return value
        return None


def list_options(request: Request, row: Resource, *, watch: bool = False, name: str = "") -> ListOptions:
    """ListOptions of a query, checked; raises StatusError 400 or 422. `name` restricts to one object (the deprecated watch path)."""
    q = request.query
    if not q and not name:
        return ListOptions(watch=watch)
    o = ListOptions(
        labels_text=request.param("labelSelector"), fields_text=request.param("fieldSelector"),
        watch=watch or bool(flag(q.get("watch"))), bookmarks=bool(flag(q.get("allowWatchBookmarks"))),
        version=request.param("resourceVersion"), match=request.param("resourceVersionMatch"), timeout_s=number(q.get("timeoutSeconds")),
        limit=number(q.get("limit")) or 0, continue_=request.param("continue"), initial_events=flag(q.get("sendInitialEvents")))
    if o.labels_text:
        o.labels = parse_labels(o.labels_text)
    if o.fields_text:
        o.fields = parse_fields(o.fields_text)
    _check_list(o)
    if not o.fields.empty:
        try:
            o.terms = tuple((field_path(row, label), equal, value) for label, equal, value in o.fields.terms)
        except ValueError as e:
            raise bad_request(str(e)) from None
    if name:
        if not o.fields.empty:
            if o.fields.exact("metadata.name") != name:
                raise bad_request("fieldSelector metadata.name doesn't match requested name")
        else:
            o.fields_text, o.terms = f"metadata.name={name}", (("metadata.name", True, name),)
            o.fields = FieldSelector(o.terms)
    return o


def _check_list(o: ListOptions) -> None:
    errors: list[FieldError] = []
    if o.watch:
        if o.initial_events is not None and o.match != "NotOlderThan":
            errors.append(invalid.forbidden("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"))
        if o.match:
            if o.initial_events is None:
                errors.append(invalid.forbidden("resourceVersionMatch",
                                                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"))
            if o.match != "NotOlderThan":
                errors.append(invalid.not_supported("resourceVersionMatch", o.match, ["NotOlderThan"]))
            if o.continue_:
                errors.append(invalid.forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"))
    else:
        if o.match:
            if not o.version:
                errors.append(invalid.forbidden("resourceVersionMatch",
                                                "resourceVersionMatch is forbidden unless resourceVersion is provided"))
            if o.continue_:
                errors.append(invalid.forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"))
            if o.match not in ("Exact", "NotOlderThan"):
                errors.append(FieldError("FieldValueNotSupported", "resourceVersionMatch", o.match,
                                         'supported values: "Exact", "NotOlderThan", ""'))
            if o.match == "Exact" and o.version == "0":
                errors.append(invalid.forbidden("resourceVersionMatch",
                                                'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'))
        if o.initial_events is not None:
            errors.append(invalid.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    raise_invalid("ListOptions", errors)


@dataclass(slots=True)
class WriteOptions:
    dry_run: bool = False
    manager: str = ""
    validation: str = "Warn"       # Strict | Warn | Ignore
    force: bool = False
    raw: dict[str, Any] = field(default_factory=dict)   # as admission webhooks see it


_MANAGERS: dict[str, str] = {}
_MANAGERS_MAX = 4096


def manager_of(request: Request, given: str) -> str:
    """The field manager: as given, or the first word of the user agent."""
    if given:
        return given
    agent = request.headers.get("user-agent", "")
    name = _MANAGERS.get(agent)
    if name is None:
        name = "".join(c for c in agent.split("/")[0] if c.isprintable())
        while len(name.encode()) > FIELD_MANAGER_MAX:
            name = name[:-1]
        if len(_MANAGERS) < _MANAGERS_MAX:
            _MANAGERS[agent] = name
    return name


def check_manager(manager: str, path: str = "fieldManager") -> list[FieldError]:
    errors = []
    if len(manager.encode()) > FIELD_MANAGER_MAX:
        errors.append(invalid.too_long(path, FIELD_MANAGER_MAX))
    at = 0
    for c in manager:
        if not c.isprintable() and c != " ":
            errors.append(invalid.invalid(path, manager, f"invalid character U+{ord(c):04X} (at position {at})"))
        at += len(c.encode())
    return errors


def _check_dry_run(values: list[str]) -> list[FieldError]:
    if all(v == "All" for v in values):
        return []
    return [FieldError("FieldValueNotSupported", "dryRun", values, 'supported values: "All"')]


def write_options(request: Request, kind: str, patch: str = "") -> WriteOptions:
    """CreateOptions, UpdateOptions or PatchOptions (then `patch` is its type) of a query; raises StatusError."""
    q = request.query
    if not q and not patch:
        return WriteOptions(manager=manager_of(request, ""))
    dry_run, manager, validation = q.get("dryRun") or [], request.param("fieldManager"), request.param("fieldValidation")
    dry_run = [v for v in dry_run if v != ""] if dry_run != [""] else []
    force = flag(q.get("force"))
    errors: list[FieldError] = []
    if patch == "apply":
        if not manager:
            errors.append(invalid.required("fieldManager", "is required for apply patch"))
    elif patch and force is not None:
        errors.append(invalid.forbidden("force", "may not be specified for non-apply patch"))
    errors += check_manager(manager)
    errors += _check_dry_run(dry_run)
    if validation not in ("", "Ignore", "Warn", "Strict"):
        errors.append(invalid.not_supported("fieldValidation", validation, ["", "Ignore", "Strict", "Warn"]))
    raise_invalid(kind, errors)
    raw: dict[str, Any] = {"kind": kind, "apiVersion": "meta.k8s.io/v1"}
    if dry_run:
        raw["dryRun"] = dry_run
    if manager:
        raw["fieldManager"] = manager
    if validation:
        raw["fieldValidation"] = validation
    if force is not None and patch:
        raw["force"] = force
    return WriteOptions(bool(dry_run), manager_of(request, manager), validation or "Warn", bool(force), raw)


@dataclass(slots=True)
class DeleteOptions:
    grace_s: int | None = None
    uid: str | None = None
    version: str | None = None
    orphan: bool | None = None
    propagation: str | None = None
    dry_run: bool = False
    raw: dict[str, Any] = field(default_factory=dict)



def delete_options(request: Request, content_type: str) -> DeleteOptions:
    """DeleteOptions of the body, or of the query where there is none; raises StatusError."""
    raw: dict[str, Any] = {}
    if request.body:
        raw = _delete_body(request.body, content_type)
    elif request.query:
        q = request.query
        for name, value in (("gracePeriodSeconds", number(q.get("gracePeriodSeconds"))), ("orphanDependents", flag(q.get("orphanDependents"))),
                            ("propagationPolicy", q["propagationPolicy"][0] if "propagationPolicy" in q else None),
                            ("dryRun", q.get("dryRun"))):
            if value is not None:
                raw[name] = value
    return parse_delete_options(raw)


def parse_delete_options(raw: dict[str, Any]) -> DeleteOptions:
    """DeleteOptions of their JSON form, checked; raises StatusError 422."""
    pre = raw.get("preconditions") or {}
    dry_run = raw.get("dryRun") or []
    if not any(dry_run):
        dry_run = []
    o = DeleteOptions(raw.get("gracePeriodSeconds"), pre.get("uid"), pre.get("resourceVersion"), raw.get("orphanDependents"),
                      raw.get("propagationPolicy"), bool(dry_run), {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", **raw})
    errors: list[FieldError] = []
    if o.orphan is not None and o.propagation is not None:
        errors.append(invalid.invalid("propagationPolicy", o.propagation, "orphanDependents and deletionPropagation cannot be both set"))
    if o.propagation is not None and o.propagation not in ("Foreground", "Background", "Orphan"):
        errors.append(FieldError("FieldValueNotSupported", "propagationPolicy", o.propagation,
                                 'supported values: "Foreground", "Background", "Orphan", "nil"'))
    errors += _check_dry_run(dry_run)
    raise_invalid("DeleteOptions", errors)
    return o


def _delete_body(body: bytes, content_type: str) -> dict[str, Any]:
    if content_type == "application/yaml":
        from kubern.model import yamltree

        try:
            doc, _ = yamltree.parse(body)
        except yamltree.YAMLFault as e:
            raise bad_request(f"couldn't get version/kind; json parse error: {e}") from None
    elif content_type == "application/vnd.kubernetes.protobuf":
        from kubern.model.protobuf import ProtobufFault, to_json

        try:
            doc = to_json(body)
        except ProtobufFault as e:
            raise bad_request(f"couldn't get version/kind; {e}") from None
    else:
        try:
            doc = orjson.loads(body)
        except orjson.JSONDecodeError as e:
            text = "unexpected end of JSON input" if e.pos >= len(body.rstrip()) else f"invalid character {body[e.pos:e.pos + 1].decode(errors='replace')!r}"
            raise bad_request(f"couldn't get version/kind; json parse error: {text}") from None
    if doc is None:
        return {}
    if not isinstance(doc, dict):
        what = gojson.kind_of(doc)
        raise bad_request(f"couldn't get version/kind; json parse error: json: cannot unmarshal {what} into Go value of type "
                          'struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }')
    for name in ("apiVersion", "kind"):
        if not isinstance(doc.get(name, ""), str | None):
            raise bad_request(f"couldn't get version/kind; json parse error: json: cannot unmarshal {gojson.kind_of(doc[name])} into Go struct field "
                              f".{name} of type string")
    if (doc.get("kind") or "DeleteOptions") != "DeleteOptions":
        raise bad_request(f"no kind {quote(doc['kind'])} is registered for version {quote(doc.get('apiVersion') or 'meta.k8s.io/v1')} in scheme "
                          '"pkg/apis/meta/internalversion/scheme/register.go:27"')
    return {k: v for k, v in _typed(doc, body).items() if k not in ("kind", "apiVersion")}


def _typed(doc: dict[str, Any], body: bytes) -> dict[str, Any]:
    from kubern.model import strict
    from kubern.model.schema import definition

    schema = definition("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
    try:
        try:
            return strict.typed(doc, schema)[0]
        except strict.Fault:
            if body[:1] != b"{":
                raise
        return strict.typed(gojson.parse(body), schema)[0]          # once more, for the words: they show numbers as they were written
    except strict.Fault as e:
        raise bad_request(str(e)) from None
