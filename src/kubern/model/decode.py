"""Decode: a request's body as an object that is shaped as upstream's Go types would write it back.

In: bytes, their media type, the resource's schema. Out: the object and warnings, or a 400 in upstream's words. On the way: unknown fields
are pruned, duplicate ones reported (fieldValidation), types and ranges checked, quantities and times made canonical, empty
values dropped and the ever-present ones added, so that two texts that mean the same become the same dict.

Two ways: the fast one is orjson and one walk (no paths, no texts); whatever is odd sends it to the slow one, which reads the text again,
keeps order, duplicates and number texts, and knows the exact words. The object is freshly made and belongs to the caller.
Behaviour: apimachinery runtime/serializer/json, sigs.k8s.io/json, apiserver handlers/rest.go; KEP-2885 (field validation).
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

import orjson

from kubern.model import gojson, gotime, quantity, yamltree
from kubern.model.gojson import Float, Int, Pairs, kind_of
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.schema import (
    ANY,
    ANYTHING,
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
    OBJECT_META,
    QUANTITY,
    RAW,
    STRING,
    STRUCT,
    TIME,
    Schema,
    definition,
    definitions,
    schema_for,
)
from kubern.model.status import StatusError, bad_request

JSON, YAML, PROTOBUF = "application/json", "application/yaml", "application/vnd.kubernetes.protobuf"
STRICT_ERRORS_MAX = 100
_INT32_MIN, _INT32_MAX, _INT64_MIN, _INT64_MAX = -(1 << 31), (1 << 31) - 1, -(1 << 63), (1 << 63) - 1
_FIND_KIND = ('struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }')


class Fault(ValueError):
    """The body does not fit the type; str() is upstream's message without its frame."""


class _Odd(Exception):
    """Something the fast walk does not judge."""


# ---------------------------------------------------------------- entry points

def media_type(content_type: str) -> str:
    """"application/json; charset=utf-8" -> "application/json"; "" counts as JSON."""
    return content_type.partition(";")[0].strip().lower() or JSON


def unsupported(custom: bool = False) -> StatusError:
    types = [JSON, YAML] + ([] if custom else [PROTOBUF])
    return StatusError(415, "UnsupportedMediaType", "the body of the request was in an unknown format - accepted media types include: "
                       + ", ".join(types))


def decode(body: bytes, content_type: str, resource: Resource, schema: Schema, field_validation: str = "Warn", *,
           api_version: str = "", kind: str = "") -> tuple[Object, list[str]]:
    """(object, warnings). api_version and kind are of the body where it is not the resource's own (Scale, Eviction …)."""
    kind = kind or resource.kind
    api_version = api_version or resource.api_version
    type_ = media_type(content_type)
    strict = field_validation != "Ignore"
    complaint = ""
    tree: Any = None
    if type_ == JSON:
        try:
            obj = orjson.loads(body)
        except ValueError:
            tree = _parse_json(body, kind)
        else:
            if obj.__class__ is dict and obj.get("kind", kind) == kind and obj.get("apiVersion", api_version) == api_version:
                try:
                    keys = _custom_fast(obj, schema) if schema.raw is not None else _struct(obj, schema)
                    if not strict or _key_count(body) == keys:
                        obj["apiVersion"], obj["kind"] = api_version, kind
                        return obj, []
                except _Odd:
                    pass
                except RecursionError:
                    raise _unrecognized(kind, "exceeded max depth", body) from None
            tree = _parse_json(body, kind)
    elif type_ == YAML:
        try:
            tree, complaint = yamltree.parse(body)
        except yamltree.YAMLFault as e:
            raise _unrecognized(kind, str(e), body) from None
    elif type_ == PROTOBUF and not resource.custom:
        from kubern.model import protobuf

        try:
            tree = protobuf.to_json(body, api_version, kind)
        except protobuf.ProtobufFault as e:
            raise _unrecognized(kind, str(e), body) from None
        if tree["kind"] == kind and tree["apiVersion"] == api_version:
            try:
                _struct(tree, schema)
                return tree, []
            except _Odd:                      # read again: the walk may have changed half of it
                tree = protobuf.to_json(body, api_version, kind)
    else:
        raise unsupported(resource.custom)

    have_version, have_kind = _identify(tree, kind, body)
    if not have_kind:
        have_kind = kind
    if not have_version:
        have_version = api_version
    _check_kind(have_version, have_kind, api_version, kind, resource)
    try:
        obj, errors = typed(tree, schema, resource.custom, root=kind)
    except Fault as e:
        raise _cannot(have_kind, have_version, kind, str(e)) from None
    if complaint:
        errors.insert(0, complaint)
    if errors and field_validation == "Strict":
        raise _cannot(have_kind, have_version, kind, "strict decoding error: " + ", ".join(errors))
    obj["apiVersion"], obj["kind"] = api_version, kind
    return obj, _warnings(errors) if field_validation == "Warn" else []


def _warnings(errors: list[str]) -> list[str]:
    """Strict errors as warnings: those of YAML one a line."""
    out = []
    for e in errors:
        if e.startswith("yaml: unmarshal errors:\n"):
            out += [line.strip() for line in e.split("\n")[1:]]
        else:
            out.append(e)
    return out


def typed(tree: Any, schema: Schema, custom: bool = False, root: str = "") -> tuple[Object, list[str]]:
    """JSON data (or a tree of model/gojson.py) made to fit a schema: (fresh object, strict errors). Raises Fault."""
    walk = _Slow(root or schema.name.rsplit(".", 1)[-1])
    try:
        if tree is None:
            tree = {}
        obj = walk.custom(tree, schema) if schema.raw is not None or custom else walk.struct(tree, schema, "")
    except RecursionError:
        raise Fault("exceeded max depth") from None
    if walk.first is not None:
        raise Fault(walk.first)
    return obj, walk.errors


def tidy(obj: Object, schema: Schema) -> Object:
    """An object the server itself made, brought into the shape upstream writes: the argument may be changed and is given back.
    Raises Fault where it does not fit."""
    if schema.raw is None:
        try:
            _struct(obj, schema)
            return obj
        except _Odd:
            pass
    return typed(obj, schema)[0]


def prune(obj: Object, schema: Schema) -> Object:
    """A copy without the fields the schema does not know."""
    return typed(obj, schema)[0]


def zero(schema: Schema) -> Any:
    """What upstream writes for a field that is always written and was not given."""
    c = schema.code
    if schema.pointer:
        return None
    if c == STRUCT:
        return {name: zero(p) for name, p in schema.always}
    if c in (STRING, DURATION):
        return ""
    if c in (INT32, INT64, NUMBER, INT_OR_STRING):
        return 0
    if c == BOOL:
        return False
    if c == QUANTITY:
        return "0"
    return None


# ---------------------------------------------------------------- identity: apiVersion and kind

def _parse_json(body: bytes, kind: str) -> Any:
    try:
        return gojson.parse(body)
    except gojson.SyntaxFault as e:
        raise _unrecognized(kind, f"couldn't get version/kind; json parse error: {e}", body) from None


def _summary(body: bytes, length: int = 30) -> str:
    if not body:
        return "<empty>"
    if body[:1] == b"{":
        text = body[:length].decode("utf-8", "replace")
        return text + (" ..." if len(body) > length else "")
    return body[:length].hex() + (" ..." if len(body) > length else "")


def _unrecognized(kind: str, why: str, body: bytes) -> StatusError:
    return bad_request(f"the object provided is unrecognized (must be of type {kind}): {why} ({_summary(body)})")


def _cannot(have_kind: str, have_version: str, kind: str, why: str) -> StatusError:
    return bad_request(f'{have_kind} in version "{have_version.rpartition("/")[2]}" cannot be handled as a {kind}: {why}')


def _identify(tree: Any, kind: str, body: bytes) -> tuple[str, str]:
    """(apiVersion, kind) of a tree, "" where absent."""
    if tree is None:
        return "", ""
    if not isinstance(tree, (Pairs, dict)):
        why = f"json: cannot unmarshal {kind_of(tree)} into Go value of type {_FIND_KIND}"
        raise _unrecognized(kind, f"couldn't get version/kind; json parse error: {why}", body)
    found = {"apiVersion": "", "kind": ""}
    for k, v in tree if isinstance(tree, Pairs) else tree.items():
        if k in found and v is not None:
            if not isinstance(v, str):
                why = f"json: cannot unmarshal {kind_of(v)} into Go struct field .{k} of type string"
                raise _unrecognized(kind, f"couldn't get version/kind; json parse error: {why}", body)
            found[k] = v
    if found["apiVersion"].count("/") > 1:
        raise _unrecognized(kind, f"unexpected GroupVersion string: {found['apiVersion']}", body)
    return found["apiVersion"], found["kind"]


def _internal_package(group: str) -> str:
    """The package of upstream's internal types of a group, as Go prints it."""
    return {"": "core", "events.k8s.io": "core", "internal.apiserver.k8s.io": "apiserverinternal"}.get(group, group.partition(".")[0])


# Versions that upstream still decodes and serves no more.
RETIRED = {
    "admissionregistration.k8s.io/v1alpha1": "ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding",
    "admissionregistration.k8s.io/v1beta1": "ValidatingWebhookConfiguration MutatingWebhookConfiguration ValidatingAdmissionPolicy "
                                            "ValidatingAdmissionPolicyBinding",
    "apps/v1beta1": "ControllerRevision Deployment StatefulSet", "batch/v1beta1": "CronJob", "certificates.k8s.io/v1beta1": "CertificateSigningRequest",
    "apps/v1beta2": "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet", "authentication.k8s.io/v1alpha1": "SelfSubjectReview",
    "authentication.k8s.io/v1beta1": "SelfSubjectReview TokenReview",
    "authorization.k8s.io/v1beta1": "SelfSubjectRulesReview SelfSubjectAccessReview SubjectAccessReview LocalSubjectAccessReview",
    "coordination.k8s.io/v1beta1": "Lease", "discovery.k8s.io/v1beta1": "EndpointSlice", "events.k8s.io/v1beta1": "Event",
    "extensions/v1beta1": "DaemonSet Deployment Ingress NetworkPolicy ReplicaSet",
    "flowcontrol.apiserver.k8s.io/v1beta1": "FlowSchema PriorityLevelConfiguration",
    "flowcontrol.apiserver.k8s.io/v1beta2": "FlowSchema PriorityLevelConfiguration",
    "flowcontrol.apiserver.k8s.io/v1beta3": "FlowSchema PriorityLevelConfiguration", "networking.k8s.io/v1beta1": "Ingress IngressClass",
    "node.k8s.io/v1alpha1": "RuntimeClass", "node.k8s.io/v1beta1": "RuntimeClass", "policy/v1beta1": "PodDisruptionBudget Eviction",
    "rbac.authorization.k8s.io/v1alpha1": "Role RoleBinding ClusterRole ClusterRoleBinding",
    "rbac.authorization.k8s.io/v1beta1": "Role RoleBinding ClusterRole ClusterRoleBinding", "scheduling.k8s.io/v1beta1": "PriorityClass",
    "storage.k8s.io/v1alpha1": "VolumeAttachment CSIStorageCapacity VolumeAttributesClass",
    "storage.k8s.io/v1beta1": "StorageClass VolumeAttachment CSIDriver CSINode CSIStorageCapacity"}


def _check_kind(have_version: str, have_kind: str, api_version: str, kind: str, resource: Resource) -> None:
    """Refuse a body of another kind or version, in upstream's words."""
    if have_kind == kind and have_version == api_version:
        return
    version = have_version.rpartition("/")[2]
    if resource.custom:
        if have_kind == kind and have_version.rpartition("/")[0] == resource.group:
            raise bad_request(f"the API version in the data ({have_version}) does not match the expected API version ({api_version})")
        group = resource.group
        raise _cannot(have_kind, have_version, kind, f"{have_version}, Kind={have_kind} is not a registered kind of {group}")
    if have_kind == kind and have_kind in RETIRED.get(have_version, "").split():
        raise bad_request(f"the API version in the data ({have_version}) does not match the expected API version ({api_version})")
    if f"{have_version}/{have_kind}" not in definitions().index:
        scheme = "pkg/api/legacyscheme/scheme.go:30"
        if resource.group == "apiextensions.k8s.io":
            scheme = "pkg/apiserver/apiserver.go:51"
        elif resource.group == "apiregistration.k8s.io":
            scheme = "pkg/apiserver/scheme/scheme.go:33"
        raise _cannot(have_kind, have_version, kind, f'no kind "{have_kind}" is registered for version "{have_version}" in scheme "{scheme}"')
    if have_kind == kind and (have_kind == "Event" or have_version.rpartition("/")[0] == api_version.rpartition("/")[0]):
        raise bad_request(f"the API version in the data ({have_version}) does not match the expected API version ({api_version})")
    into = f"{_internal_package(api_version.rpartition('/')[0])}.{kind}"
    raise _cannot(have_kind, have_version, kind, f"converting ({version}.{have_kind}) to ({into}): unknown conversion")


# ---------------------------------------------------------------- the fast walk

def _key_count(body: bytes) -> int:
    """How many object keys a JSON text has, duplicates included; -1 where this cheap count would not be sure."""
    if b'" :' in body or b'"\n:' in body or b'"\t:' in body or b'"\r:' in body:
        return -1
    n = body.count(b'":')
    return n - body.count(b'\\":') if n else 0


def _count(value: Any) -> int:
    """Keys in free-form JSON."""
    if value.__class__ is dict:
        n = len(value)
        for v in value.values():
            c = v.__class__
            if c is dict or c is list:
                n += _count(v)
        return n
    n = 0
    if value.__class__ is list:
        for v in value:
            c = v.__class__
            if c is dict or c is list:
                n += _count(v)
    return n


def _struct(obj: dict[str, Any], schema: Schema) -> int:
    """Tidy a struct in place; the number of keys it and everything below had. Raises _Odd where it cannot judge."""
    n = len(obj)
    props = schema.props
    assert props is not None
    drop: list[str] | None = None
    for k, v in obj.items():
        p = props.get(k)
        if p is None:
            raise _Odd
        if v is None:
            if p.keep:
                obj[k] = zero(p)
            else:
                drop = drop or []
                drop.append(k)
            continue
        c = p.code
        if c == STRING:
            if v.__class__ is not str:
                raise _Odd
            if not v and not p.pointer and not p.keep:
                drop = drop or []
                drop.append(k)
        elif c == STRUCT:
            if v.__class__ is not dict:
                raise _Odd
            n += _struct(v, p)
        elif c == LIST:
            if v.__class__ is not list:
                raise _Odd
            if not v:
                if p.pointer:
                    pass                                    # empty is not absent here
                elif p.keep:
                    obj[k] = None
                else:
                    drop = drop or []
                    drop.append(k)
            else:
                items = p.items
                ic = items.code  # type: ignore[union-attr]
                if ic == STRUCT:
                    for x in v:
                        if x.__class__ is not dict:
                            raise _Odd
                        n += _struct(x, items)  # type: ignore[arg-type]
                elif ic == STRING:
                    for x in v:
                        if x.__class__ is not str:
                            raise _Odd
                else:
                    for i, x in enumerate(v):
                        v[i], m = _scalar(x, items)  # type: ignore[arg-type]
                        n += m
        elif c == BOOL:
            if v.__class__ is not bool:
                raise _Odd
            if not v and not p.pointer and not p.keep:
                drop = drop or []
                drop.append(k)
        elif c in (INT32, INT64):
            if v.__class__ is not int or not (_INT32_MIN <= v <= _INT32_MAX or (c == INT64 and _INT64_MIN <= v <= _INT64_MAX)):
                raise _Odd
            if not v and not p.pointer and not p.keep:
                drop = drop or []
                drop.append(k)
        elif c == MAP:
            if v.__class__ is not dict:
                raise _Odd
            if not v:
                if p.keep:
                    obj[k] = None
                else:
                    drop = drop or []
                    drop.append(k)
            else:
                n += _map(v, p.extra)  # type: ignore[arg-type]
        else:
            new, m = _scalar(v, p)
            if new is not v:
                obj[k] = new
            n += m
    if drop is not None:
        for k in drop:
            del obj[k]
    for k, p in schema.always:
        if k not in obj:
            obj[k] = zero(p)
    return n


def _map(obj: dict[str, Any], values: Schema) -> int:
    n = len(obj)
    c = values.code
    if c == STRING:
        for v in obj.values():
            if v.__class__ is not str:
                raise _Odd
        return n
    for k, v in obj.items():
        new, m = _scalar(v, values)
        if new is not v:
            obj[k] = new
        n += m
    return n


def _scalar(v: Any, p: Schema) -> tuple[Any, int]:
    """(the value as upstream writes it, keys below) for everything that is not worth a branch of its own in _struct."""
    c = p.code
    if c == STRUCT:
        if v.__class__ is not dict:
            raise _Odd
        return v, _struct(v, p)
    if c == QUANTITY:
        if v.__class__ is str:
            try:
                return quantity.parse(v.strip()).text, 0
            except quantity.QuantityError:
                raise _Odd from None
        if v.__class__ is int:
            try:
                return quantity.parse(str(v)).text, 0
            except quantity.QuantityError:
                raise _Odd from None
        raise _Odd
    if c in (TIME, MICROTIME):
        if v.__class__ is not str:
            raise _Odd
        try:
            return gotime.canonical(v, c == MICROTIME), 0
        except gotime.TimeFault:
            raise _Odd from None
    if c == INT_OR_STRING:
        if v.__class__ is str or (v.__class__ is int and _INT32_MIN <= v <= _INT32_MAX):
            return v, 0
        raise _Odd
    if c == RAW:
        return v, _count(v)
    if c == BYTES:
        if v.__class__ is not str:
            raise _Odd
        return _base64(v), 0
    if v is None:
        raise _Odd
    if c in (STRING, DURATION):
        if v.__class__ is not str:
            raise _Odd
        return v, 0
    if c == NUMBER:
        if v.__class__ is not int and v.__class__ is not float:
            raise _Odd
        return v, 0
    if c == LIST:
        if v.__class__ is not list:
            raise _Odd
        n = 0
        assert p.items is not None
        for i, x in enumerate(v):
            v[i], m = _scalar(x, p.items)
            n += m
        return v, n
    if c == MAP:
        if v.__class__ is not dict:
            raise _Odd
        return v, _map(v, p.extra)  # type: ignore[arg-type]
    if c in (INT32, INT64):
        if v.__class__ is int and (_INT32_MIN <= v <= _INT32_MAX or (c == INT64 and _INT64_MIN <= v <= _INT64_MAX)):
            return v, 0
        raise _Odd
    if c == BOOL:
        if v.__class__ is not bool:
            raise _Odd
        return v, 0
    if p.or_schema:
        raise _Odd
    return v, _count(v)


def _base64(text: str) -> str:
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, binascii.Error):
        raise _Odd from None
    again = binascii.b2a_base64(raw, newline=False).decode()
    if len(again) != len(text):
        raise _Odd
    return again


def _custom_fast(obj: dict[str, Any], schema: Schema) -> int:
    """Fast walk of a custom object: metadata as ObjectMeta, the rest must be known to the schema; its types are the validator's."""
    n = len(obj)
    for k, v in obj.items():
        if k == "metadata":
            if v.__class__ is not dict:
                raise _Odd
            n += _struct(v, definition(OBJECT_META))
        elif k == "apiVersion" or k == "kind":
            continue
        else:
            p = schema.at(k)
            if p is None:
                if not schema.preserve:
                    raise _Odd
                n += _count(v)
            else:
                n += _custom_value(v, p)
    return n


def _custom_value(v: Any, p: Schema) -> int:
    if v.__class__ is dict:
        if p.embedded:
            raise _Odd
        if p.props is None and p.extra is None:
            if not p.preserve:
                if v:
                    raise _Odd
                return 0
            return _count(v)
        n = len(v)
        for k, x in v.items():
            c = p.at(k)
            if c is None:
                if not p.preserve:
                    raise _Odd
                n += _count(x)
            elif x.__class__ is dict or x.__class__ is list:
                n += _custom_value(x, c)
        return n
    if v.__class__ is list:
        n = 0
        items = p.items
        for x in v:
            if x.__class__ is dict or x.__class__ is list:
                n += _custom_value(x, items) if items is not None else _count(x)
        return n
    return 0


# ---------------------------------------------------------------- the slow walk

def _members(value: Any) -> Any:
    return value if isinstance(value, Pairs) else value.items()


class _Slow:
    """Walks a tree in the order of its text. `first` is the first type error, `errors` the strict ones."""

    def __init__(self, root: str) -> None:
        self.first: str | None = None
        self.errors: list[str] = []
        self.owner = root                # the Go struct whose field is being read
        self.stack: tuple[str, ...] = ()

    def fail(self, message: str) -> None:
        if self.first is None:
            self.first = message

    def mismatch(self, value: Any, go: str, literal: bool = False) -> None:
        what = kind_of(value)
        if literal:
            what += " " + _text(value)
        self.fail(f"json: cannot unmarshal {what} into Go struct field {self.owner}.{'.'.join(self.stack)} of type {go}")

    def strict(self, kind: str, path: str) -> None:
        message = f'{kind} field "{path}"'
        if message not in self.errors and len(self.errors) < STRICT_ERRORS_MAX:
            self.errors.append(message)

    def struct(self, tree: Any, schema: Schema, path: str, into: dict[str, Any] | None = None) -> dict[str, Any]:
        props = schema.props
        assert props is not None
        out: dict[str, Any] = {} if into is None else into
        owner, stack = self.owner, self.stack
        self.owner = schema.name.rsplit(".", 1)[-1] or owner
        mine = self.owner
        seen = set()
        for k, v in _members(tree):
            where = f"{path}.{k}" if path else k
            p = props.get(k)
            if p is None:
                self.strict("unknown", where)
                continue
            if k in seen:
                self.strict("duplicate", where)
            seen.add(k)
            self.owner, self.stack = mine, (*stack, k)
            if v is None:
                if p.code in (STRING, INT32, INT64, BOOL, NUMBER, STRUCT) and not p.pointer and k in out:
                    continue                       # null leaves a value type as it is
                out.pop(k, None)
                if p.keep:
                    out[k] = zero(p)
                continue
            new = self.value(v, p, where, out.get(k))
            if new is _SKIP:
                continue
            if self._dropped(new, p):
                out.pop(k, None)
                if p.keep:
                    out[k] = zero(p)
            else:
                out[k] = new
        self.owner, self.stack = owner, stack
        for k, p in schema.always:
            if k not in out:
                out[k] = zero(p)
        return out

    @staticmethod
    def _dropped(value: Any, p: Schema) -> bool:
        c = p.code
        if c in (LIST, MAP, BYTES):
            return not value and not p.pointer
        if c in (STRING, INT32, INT64, BOOL, NUMBER):
            return not value and not p.pointer
        return False

    def value(self, v: Any, p: Schema, path: str, old: Any = None) -> Any:
        c = p.code
        if c == STRUCT:
            if not isinstance(v, (Pairs, dict)):
                self.mismatch(v, p.go)
                return _SKIP
            return self.struct(v, p, path, old if isinstance(old, dict) else None)
        if c == LIST:
            return self.items(v, p, path)
        if c == MAP:
            return self.map(v, p, path, old)
        if c in (STRING, DURATION):
            if not isinstance(v, str):
                self.mismatch(v, p.go or "string")
                return _SKIP
            return v
        if c == BOOL:
            if not isinstance(v, bool):
                self.mismatch(v, p.go or "bool")
                return _SKIP
            return v
        if c in (INT32, INT64):
            return self.integer(v, c, p.go or ("int32" if c == INT32 else "int64"))
        if c == NUMBER:
            if isinstance(v, bool) or not isinstance(v, (int, float)):
                self.mismatch(v, p.go or "float64")
                return _SKIP
            return int(v) if isinstance(v, int) else float(v)
        if c == BYTES:
            return self.base64(v)
        if c == QUANTITY:
            try:
                return quantity.parse((v if isinstance(v, str) else _text(v)).strip()).text
            except quantity.QuantityError as e:
                self.fail(str(e))
                return _SKIP
        if c in (TIME, MICROTIME):
            if not isinstance(v, str):
                self.mismatch(v, "string")
                return _SKIP
            try:
                return gotime.canonical(v, c == MICROTIME)
            except gotime.TimeFault as e:
                self.fail(str(e))
                return _SKIP
        if c == INT_OR_STRING:
            return v if isinstance(v, str) else self.integer(v, INT32, "int32")
        if p.or_schema:
            return self.or_schema(v, p.or_schema)
        return gojson.plain(v)

    def integer(self, v: Any, code: int, go: str) -> Any:
        if isinstance(v, bool) or not isinstance(v, (int, float)):
            self.mismatch(v, go)
            return _SKIP
        low, high = (_INT32_MIN, _INT32_MAX) if code == INT32 else (_INT64_MIN, _INT64_MAX)
        if isinstance(v, float) or not low <= v <= high:
            self.mismatch(v, go, literal=True)
            return _SKIP
        return int(v)

    def base64(self, v: Any) -> Any:
        if not isinstance(v, str):
            self.mismatch(v, "[]uint8")
            return _SKIP
        text = v.replace("\r", "").replace("\n", "")
        at = _base64_fault(v)
        if at is not None:
            self.fail(f"illegal base64 data at input byte {at}")
            return _SKIP
        return binascii.b2a_base64(binascii.a2b_base64(text), newline=False).decode()

    def items(self, v: Any, p: Schema, path: str) -> Any:
        if not isinstance(v, list) or isinstance(v, Pairs):
            self.mismatch(v, p.go)
            return _SKIP
        items = p.items or ANYTHING
        out = []
        owner, stack = self.owner, self.stack
        for i, x in enumerate(v):
            self.owner, self.stack = owner, stack
            if x is None:
                out.append(zero(items))
                continue
            new = self.value(x, items, f"{path}[{i}]")
            out.append(zero(items) if new is _SKIP else new)
        self.owner, self.stack = owner, stack
        return out

    def map(self, v: Any, p: Schema, path: str, old: Any = None) -> Any:
        if not isinstance(v, (Pairs, dict)):
            self.mismatch(v, p.go)
            return _SKIP
        values = p.extra or ANYTHING
        out: dict[str, Any] = old if isinstance(old, dict) else {}
        owner, stack = self.owner, self.stack
        seen = set()
        for k, x in _members(v):
            where = f"{path}.{k}"
            if k in seen:
                self.strict("duplicate", where)
            seen.add(k)
            self.owner, self.stack = owner, stack
            new = zero(values) if x is None else self.value(x, values, where)
            if new is not _SKIP:
                out[k] = new
        self.owner, self.stack = owner, stack
        return out

    def or_schema(self, v: Any, kind: str) -> Any:
        """JSONSchemaPropsOrArray, …OrBool, …OrStringArray: read by a decoder of their own that is not strict."""
        inner = definition("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        if isinstance(v, (Pairs, dict)):
            return self.apart(v, inner)
        if kind == "Bool":
            if not isinstance(v, bool):
                self.fail("boolean or JSON schema expected")
                return _SKIP
            return v
        if isinstance(v, list):
            if kind == "Array":
                return [self.apart(x, inner) if isinstance(x, (Pairs, dict)) else {} for x in v]
            return [x for x in v if isinstance(x, str)]
        return _SKIP

    def apart(self, tree: Any, schema: Schema) -> Any:
        walk = _Slow("JSONSchemaProps")
        out = walk.struct(tree, schema, "")
        if walk.first is not None:
            self.fail(walk.first)
        return out

    # custom resources: unknown fields are pruned by the structural schema, metadata is ObjectMeta

    def custom(self, tree: Any, schema: Schema) -> dict[str, Any]:
        out: dict[str, Any] = {}
        self._duplicates(tree, "")
        unknown: list[str] = []
        for k, v in _members(tree):
            if k == "metadata":
                out[k] = self.metadata(v, "metadata", unknown)
            elif k in ("apiVersion", "kind"):
                out[k] = v
            else:
                self._member(out, k, v, schema, k, unknown)
        for path in unknown:
            self.strict("unknown", path)
        return out

    def _duplicates(self, tree: Any, path: str) -> None:
        """A custom body is read as free-form JSON first: its duplicates come before all else."""
        if isinstance(tree, Pairs):
            seen = set()
            for k, v in tree:
                where = f"{path}.{k}" if path else k
                if k in seen:
                    self.strict("duplicate", where)
                seen.add(k)
                self._duplicates(v, where)
        elif isinstance(tree, list):
            for i, v in enumerate(tree):
                self._duplicates(v, f"{path}[{i}]")

    def metadata(self, v: Any, path: str, unknown: list[str]) -> Any:
        if v is None:
            return {}
        walk = _Slow("ObjectMeta")
        if not isinstance(v, (Pairs, dict)):
            self.fail(f"json: cannot unmarshal {kind_of(v)} into Go struct field .metadata of type v1.ObjectMeta")
            return {}
        walk.stack = ("metadata",)
        out = walk.struct(v, definition(OBJECT_META), path)
        unknown.extend(e[len('unknown field "'):-1] for e in walk.errors if e.startswith("unknown"))
        if walk.first is not None:
            self.fail(walk.first)
        return out

    def _member(self, out: dict[str, Any], k: str, v: Any, schema: Schema, path: str, unknown: list[str]) -> None:
        p = schema.at(k)
        if p is None:
            if schema.preserve:
                out[k] = gojson.plain(v)
            else:
                unknown.append(path)
            return
        out[k] = self._custom_value(v, p, path, unknown)

    def _custom_value(self, v: Any, p: Schema, path: str, unknown: list[str]) -> Any:
        if isinstance(v, (Pairs, dict)):
            out: dict[str, Any] = {}
            for k, x in sorted(_last(v).items()):
                where = f"{path}.{k}"
                if p.embedded and k == "metadata" and isinstance(x, (Pairs, dict)):
                    out[k] = self.metadata(x, where, unknown)
                elif p.embedded and k in ("apiVersion", "kind"):
                    out[k] = gojson.plain(x)
                else:
                    self._member(out, k, x, p, where, unknown)
            return out
        if isinstance(v, list):
            items = p.items
            if items is None:
                return gojson.plain(v)
            return [self._custom_value(x, items, f"{path}[{i}]", unknown) for i, x in enumerate(v)]
        return gojson.plain(v)


_SKIP = object()


def _last(tree: Any) -> dict[str, Any]:
    return dict(tree) if isinstance(tree, Pairs) else tree


def _text(v: Any) -> str:
    """The JSON text of a value, for messages and quantities."""
    if isinstance(v, (Int, Float)):
        return v.text
    if isinstance(v, (Pairs, dict, list)):
        return "{}"
    return orjson.dumps(v).decode() if not isinstance(v, int) or abs(v) < 1 << 63 else str(v)


def _base64_fault(text: str) -> int | None:
    """The input byte at which Go's decoder stops, or None."""
    alphabet = _ALPHABET
    data = text.encode("utf-8", "surrogatepass")
    i, n, quantum = 0, len(data), 0
    while i < n:
        c = data[i]
        if c in b"\r\n":
            i += 1
            continue
        if c == 0x3D:
            if quantum < 2:
                return i
            j = i + 1
            if quantum == 2:
                while j < n and data[j] in b"\r\n":
                    j += 1
                if j >= n:
                    return n
                if data[j] != 0x3D:
                    return j
                j += 1
            while j < n and data[j] in b"\r\n":
                j += 1
            return None if j >= n else j
        if c not in alphabet:
            return i
        quantum = (quantum + 1) % 4
        i += 1
    return None if quantum == 0 else n - quantum


_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")

__all__ = ["ANY", "Fault", "Mapping", "decode", "media_type", "prune", "schema_for", "tidy", "typed", "unsupported", "zero"]
