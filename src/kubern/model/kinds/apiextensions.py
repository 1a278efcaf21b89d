"""apiextensions.k8s.io/v1: CustomResourceDefinition as an object; its schemas: crd_schema.py; what it makes: api/crd.py.

Upstream checks an internal form in which what all versions have in common stands once, at the top; errors name that place
("spec.validation.openAPIV3Schema …"), so this does the same. Upstream: apiextensions-apiserver pkg/apis/apiextensions.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from kubern.model import names
from kubern.model.invalid import FieldError, Struct, duplicate, forbidden, invalid, not_supported, quote, required, too_many
from kubern.model.kinds.checks import IMMUTABLE, Errors, immutable, keep_spec, keep_status, listed, messages, same
from kubern.model.kinds.crd_form import schema_form
from kubern.model.kinds.crd_schema import STRICT, Leniency, field_at, leniency_of, validate_schema, walk
from kubern.model.kinds.internal_form import struct
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.webhook_client import client_config, default_service_port
from kubern.model.object import Object

APPROVED = "api-approved.kubernetes.io"
APPROVAL_URL = "https://github.com/kubernetes/enhancements/pull/1111"
REVIEW_VERSIONS = ("v1", "v1beta1")
COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")
SELECTABLE_MAX, WARNING_MAX = 8, 256
FORMATS = frozenset((  # those that the value validator knows
    "bsonobjectid", "uri", "email", "hostname", "ipv4", "ipv6", "cidr", "mac", "uuid", "uuid3", "uuid4", "uuid5", "isbn", "isbn10", "isbn13",
    "creditcard", "ssn", "hexcolor", "rgbcolor", "byte", "password", "date", "duration", "datetime", "date-time", "int32", "int64", "float",
    "double", "k8s-short-name", "k8s-long-name"))


# --- defaults and strategy --------------------------------------------------------------------------------------------------------------

def default_definition(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    given = spec.setdefault("names", {})
    kind = given.get("kind") or ""
    if not given.get("singular") and kind:
        given["singular"] = kind.lower()
    if not given.get("listKind") and kind:
        given["listKind"] = f"{kind}List"
    if spec.get("conversion") is None:
        spec["conversion"] = {"strategy": "None"}
    default_service_port(((spec.get("conversion") or {}).get("webhook") or {}).get("clientConfig"))


def _stored(obj: Object, versions: list[str]) -> list[str]:
    """The stored versions with today's storage version among them."""
    for v in (obj.get("spec") or {}).get("versions") or ():
        if v.get("storage"):
            name = v.get("name") or ""
            return versions if name in versions else [*versions, name]
    return versions


def _create(obj: Object) -> None:
    stored = _stored(obj, [])
    obj["status"] = {"conditions": None, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored or None}


def _update(new: Object, old: Object) -> None:
    keep_status(new, old)
    status = new.get("status") or {}
    stored = _stored(new, status.get("storedVersions") or [])
    if stored != (status.get("storedVersions") or []):
        new["status"] = {**status, "storedVersions": stored}


# --- the internal form ------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class _Spec:
    """A spec with what its versions have in common lifted to the top."""

    spec: Object
    versions: list[Object]
    common: Object           # schema, subresources, additionalPrinterColumns, selectableFields where all versions agree

    def of(self, version: Object, field: str) -> Any:
        """What a version has of its own."""
        return None if field in self.common else version.get(field)


_LIFTED = ("subresources", "schema", "additionalPrinterColumns", "selectableFields")


def _lift(spec: Object) -> _Spec:
    versions = spec.get("versions") or []
    common = {f: versions[0].get(f) for f in _LIFTED if versions and all(same(v.get(f), versions[0].get(f)) for v in versions)}
    return _Spec(spec, versions, common)


def _versions_form(s: _Spec) -> list[Struct] | None:
    raw = s.spec.get("versions")
    if raw is None:
        return None
    out = []
    for v in raw:
        own = struct("apiextensions.CustomResourceDefinitionVersion", v | {f: s.of(v, f) for f in _LIFTED}) or Struct()
        if own["Schema"] is not None:
            own["Schema"] = Struct(OpenAPIV3Schema=schema_form(own["Schema"].get("openAPIV3Schema")))
        out.append(own)
    return out


def _schemas(spec: Object) -> list[Object]:
    return [s for v in spec.get("versions") or () if (s := (v.get("schema") or {}).get("openAPIV3Schema")) is not None]


# --- validation -------------------------------------------------------------------------------------------------------------------------

def _label(value: str, path: str, lower: bool = False) -> Errors:
    errors = names.is_dns1035_label(value.lower() if lower else value)
    if value and errors:
        yield invalid(path, value, ("may have mixed case, but should otherwise match: " if lower else "") + ",".join(errors))


def _names(given: Object, path: str) -> Errors:
    yield from _label(given.get("plural") or "", f"{path}.plural")
    yield from _label(given.get("singular") or "", f"{path}.singular")
    yield from _label(given.get("kind") or "", f"{path}.kind", True)
    yield from _label(given.get("listKind") or "", f"{path}.listKind", True)
    for i, short in enumerate(given.get("shortNames") or ()):
        if errors := names.is_dns1035_label(short):
            yield invalid(f"{path}.shortNames[{i}]", short, ",".join(errors))
    if given.get("kind") and given.get("kind") == given.get("listKind"):
        yield invalid(f"{path}.listKind", given["listKind"], "kind and listKind may not be the same")
    for i, category in enumerate(given.get("categories") or ()):
        if errors := names.is_dns1035_label(category):
            yield invalid(f"{path}.categories[{i}]", category, ",".join(errors))


def _one_of(value: str, allowed: tuple[str, ...], path: str) -> Errors:
    if not value:
        yield required(path)
    elif value not in allowed:
        yield not_supported(path, value, allowed)


def _group(group: str) -> Errors:
    if not group:
        yield required("spec.group")
    elif errors := names.is_dns1123_subdomain(group):
        yield invalid("spec.group", group, ",".join(errors))
    elif "." not in group:
        yield invalid("spec.group", group, "should be a domain with at least one dot")


def _validate_spec(spec: Object, old: Object | None) -> Errors:
    s = _lift(spec)
    lenient = STRICT if old is None else leniency_of(_schemas(old))
    if not spec.get("preserveUnknownFields"):
        lenient = replace(lenient, structural=True)
    unchanged = _unchanged(spec, old)
    yield from _group(spec.get("group") or "")
    yield from _one_of(spec.get("scope") or "", ("Cluster", "Namespaced"), "spec.scope")
    whole = (s.common.get("schema") or {}).get("openAPIV3Schema")
    if whole is None:
        for i, v in enumerate(s.versions):
            if (s.of(v, "schema") or {}).get("openAPIV3Schema") is None:
                yield required(f"spec.versions[{i}].schema.openAPIV3Schema")
    if spec.get("preserveUnknownFields") and any(n.get("default") is not None for x in _schemas(spec) for n in walk(x)):
        yield invalid("spec.preserveUnknownFields", True, "must be false in order to use defaults in the schema")
    yield from _versions(s, lenient, unchanged)
    given = spec.get("names") or {}
    for field in ("plural", "singular", "kind", "listKind"):
        if not given.get(field):
            yield required(f"spec.names.{field}")
    yield from _names(given, "spec.names")
    any_status = any(_has_status(v.get("subresources")) for v in s.versions)
    if whole is not None:
        first = s.versions[0].get("name") if s.versions else ""
        yield from validate_schema(whole, "spec.validation", any_status, replace(lenient, costs=first not in unchanged))
    yield from _subresources(s.common.get("subresources"), "spec.subresources")
    for i, column in enumerate(s.common.get("additionalPrinterColumns") or ()):
        yield from _column(column, f"spec.additionalPrinterColumns[{i}]")
    if s.common.get("selectableFields"):
        if whole is None:
            yield invalid("spec.selectableFields", "", "may only be set when validations.schema is included")
        else:
            yield from _selectable(s.common["selectableFields"], whole, "spec.selectableFields")
    conversion = spec.get("conversion")
    if conversion is not None and conversion.get("strategy") != "None" and spec.get("preserveUnknownFields"):
        yield invalid("spec.conversion.strategy", conversion.get("strategy") or "", "must be None if spec.preserveUnknownFields is true")
    yield from _conversion(conversion, old)


def _has_status(subresources: Object | None) -> bool:
    return subresources is not None and subresources.get("status") is not None


def _unchanged(spec: Object, old: Object | None) -> set[str]:
    """Names of the versions whose schema is that of before."""
    before = {v.get("name"): v.get("schema") for v in (old or {}).get("versions") or ()}
    return {v["name"] for v in spec.get("versions") or () if v.get("name") in before and v.get("schema") == before[v["name"]]}


def _versions(s: _Spec, lenient: Leniency, unchanged: set[str]) -> Errors:
    path = "spec.versions"
    for i, v in enumerate(s.versions):
        here, name = f"{path}[{i}]", v.get("name") or ""
        if errors := names.is_dns1035_label(name):
            yield invalid(f"{here}.name", name, ",".join(errors))
        for text in _deprecation(v):
            yield invalid(f"{here}.deprecationWarning", v.get("deprecationWarning"), text)
        schema = (s.of(v, "schema") or {}).get("openAPIV3Schema")
        if schema is not None:
            yield from validate_schema(schema, f"{here}.schema", _has_status(v.get("subresources")), replace(lenient, costs=name not in unchanged))
        yield from _subresources(s.of(v, "subresources"), f"{here}.subresources")
        for j, column in enumerate(s.of(v, "additionalPrinterColumns") or ()):
            yield from _column(column, f"{here}.additionalPrinterColumns[{j}]")
        if s.of(v, "selectableFields"):
            if schema is None:
                yield invalid(f"{here}.selectableFields", "", "may only be set when `version.schema.openAPIV3Schema` is not included")
            else:
                yield from _selectable(v["selectableFields"], schema, f"{here}.selectableFields")
    if len({v.get("name") or "" for v in s.versions}) != len(s.versions):
        yield invalid(path, _versions_form(s), "must contain unique version names")
    if sum(1 for v in s.versions if v.get("storage")) != 1:
        yield invalid(path, _versions_form(s), "must have exactly one version marked as storage version")
    if s.versions:  # the first version stands at the top as well
        first = s.versions[0].get("name") or ""
        if first and (errors := names.is_dns1035_label(first)):
            yield invalid("spec.version", first, ",".join(errors))


def _deprecation(v: Object) -> list[str]:
    warning = v.get("deprecationWarning")
    if warning is None:
        return []
    if not v.get("deprecated"):
        return ["can only be set for deprecated versions"]
    out = []
    if names.size(warning) > WARNING_MAX:
        out.append(f"must be <= {WARNING_MAX} characters long")
    if not warning:
        out.append("must not be an empty string")
    for i, c in enumerate(warning):
        if c != " " and unicodedata.category(c)[0] in "CZ":
            at = len(warning[:i].encode())
            out.append(f"must only contain printable UTF-8 characters; non-printable character found at index {at}")
            break
    return out


def _simple_path(text: str, path: str) -> Errors:
    if not text:
        yield invalid(path, text, "must not be empty")
    elif not text.startswith("."):
        yield invalid(path, text, "must be a simple json path starting with .")


def _subresources(subresources: Object | None, path: str) -> Errors:
    scale = (subresources or {}).get("scale")
    if scale is None:
        return
    for field, root in (("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")):
        text, here = scale.get(field) or "", f"{path}.scale.{field}"
        if not text:
            yield required(here)
        elif errors := list(_simple_path(text, here)):
            yield from errors
        elif not text.startswith(root):
            yield invalid(here, text, f"should be a json path under {root[:-1]}")
    text, here = scale.get("labelSelectorPath") or "", f"{path}.scale.labelSelectorPath"
    if text:
        if errors := list(_simple_path(text, here)):
            yield from errors
        elif not text.startswith((".spec.", ".status.")):
            yield invalid(here, text, "should be a json path under either .spec or .status")


def _column(column: Object, path: str) -> Errors:
    type_, format_, where = column.get("type") or "", column.get("format") or "", column.get("jsonPath") or ""
    if not column.get("name"):
        yield required(f"{path}.name")
    text = f"must be one of {','.join(COLUMN_TYPES)}"
    if not type_:
        yield required(f"{path}.type", text)
    elif type_ not in COLUMN_TYPES:
        yield invalid(f"{path}.type", type_, text)
    if format_ and format_ not in COLUMN_FORMATS:
        yield invalid(f"{path}.format", format_, f"must be one of {','.join(COLUMN_FORMATS)}")
    if not where:
        yield required(f"{path}.JSONPath")
    else:
        yield from _simple_path(where, f"{path}.JSONPath")


def _selectable(fields: list[Object], schema: Object, path: str) -> Errors:
    seen = set()
    for i, f in enumerate(fields):
        where, here = f.get("jsonPath") or "", f"{path}[{i}].jsonPath"
        if not where:
            yield required(here)
            continue
        if why := _path_error(schema, where):
            yield invalid(here, where, f"is an invalid path: {why}")
            continue
        node = field_at(schema, where, arrays=False) or {}
        if where.startswith(".metadata"):
            yield invalid(here, where, "must not point to fields in metadata")
        if node.get("type") not in ("string", "boolean", "integer"):
            yield invalid(here, where, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats "
                                       "are allowed.")
        if where in seen:
            yield duplicate(here, where)
        seen.add(where)
    if len(seen) > SELECTABLE_MAX:
        yield too_many(path, len(seen), SELECTABLE_MAX)


def _path_error(schema: Object, where: str) -> str:
    if not where.startswith((".", "[")):
        return f"expected [ or . but got: {where[:1]}"
    at = ""
    for part in where[1:].split("."):
        at += f".{part}"
        if field_at(schema, at, arrays=False) is None:
            return "does not refer to a valid field"
    return ""


def _conversion(conversion: Object | None, old: Object | None) -> Errors:
    if conversion is None:
        return
    strategy, path = conversion.get("strategy") or "", "spec.conversion"
    yield from _one_of(strategy, ("None", "Webhook"), f"{path}.strategy")
    webhook = conversion.get("webhook") or {}
    client, versions = webhook.get("clientConfig"), webhook.get("conversionReviewVersions") or []
    if strategy != "Webhook":
        if client is not None:
            yield forbidden(f"{path}.webhookClientConfig", "should not be set when strategy is not set to Webhook")
        if versions:
            yield forbidden(f"{path}.conversionReviewVersions", "should not be set when strategy is not set to Webhook")
        return
    if client is None:
        yield required(f"{path}.webhookClientConfig", "required when strategy is set to Webhook")
    else:
        yield from client_config(client, f"{path}.webhookClientConfig")
    before = (((old or {}).get("conversion") or {}).get("webhook") or {}).get("conversionReviewVersions") or []
    known = not before or bool(set(before) & set(REVIEW_VERSIONS))
    yield from _review_versions(versions, known, f"{path}.conversionReviewVersions")


def _review_versions(versions: list[str], recognized: bool, path: str) -> Errors:
    if not versions:
        yield required(path)
        return
    seen = set()
    for i, version in enumerate(versions):
        if version in seen:
            yield invalid(f"{path}[{i}]", version, "duplicate version")
            continue
        seen.add(version)
        yield from messages(version, names.is_dns1035_label(version), f"{path}[{i}]")
    if recognized and not seen & set(REVIEW_VERSIONS):
        yield invalid(path, versions, f"must include at least one of {', '.join(REVIEW_VERSIONS)}")


def _status(obj: Object) -> Errors:
    status, spec = obj.get("status") or {}, obj.get("spec") or {}
    yield from _names(status.get("acceptedNames") or {}, "status.acceptedNames")
    stored = status.get("storedVersions") or []
    path = "status.storedVersions"
    if not stored:
        yield invalid(path, None, "must have at least one stored version")
        return
    have = {v.get("name") or "" for v in spec.get("versions") or ()}
    for v in spec.get("versions") or ():
        if v.get("storage") and v.get("name") not in stored:
            yield invalid(path, stored, f"must have the storage version {v.get('name') or ''}")
    for i, name in enumerate(stored):
        if name not in have:
            yield invalid(f"{path}[{i}]", name, f"missing from spec.versions; {name} was previously a storage version, and must remain in "
                                                "spec.versions until a storage migration ensures no data remains persisted in "
                                                f"{name} and removes {name} from status.storedVersions")


def _approval_state(obj: Object) -> str:
    text = (obj["metadata"].get("annotations") or {}).get(APPROVED) or ""
    if not text:
        return "missing"
    if text.startswith("unapproved"):
        return "bypassed"
    try:
        url = urlsplit(text)
    except ValueError:
        return "invalid"
    return "approved" if url.scheme and url.netloc else "invalid"


def _approval(obj: Object, old: Object | None) -> Errors:
    """Groups of the community need a link to their review."""
    group = (obj.get("spec") or {}).get("group") or ""
    if not (group in ("k8s.io", "kubernetes.io") or group.endswith((".k8s.io", ".kubernetes.io"))):
        return
    state = _approval_state(obj)
    if old is not None and _approval_state(old) == state:
        return
    path = f"metadata.annotations[{APPROVED}]"
    text = f"protected groups must have approval annotation {quote(APPROVED)}"
    if state == "missing":
        yield required(path, f"{text}, see {APPROVAL_URL}")
    elif state == "invalid":
        yield invalid(path, obj["metadata"]["annotations"][APPROVED],
                      f'{text} with either a URL or a reason starting with "unapproved", see {APPROVAL_URL}')


def _preserve(obj: Object, old: Object | None) -> Errors:
    if (obj.get("spec") or {}).get("preserveUnknownFields") and not ((old or {}).get("spec") or {}).get("preserveUnknownFields"):
        yield invalid("spec.preserveUnknownFields", True,
                      "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead")


def validate_definition(obj: Object) -> Errors:
    spec, name = obj.get("spec") or {}, obj["metadata"].get("name") or ""
    for field, given in (("generateName", obj["metadata"].get("generateName")), ("name", name)):
        if given and given != f"{(spec.get('names') or {}).get('plural') or ''}.{spec.get('group') or ''}":
            yield invalid(f"metadata.{field}", given, 'must be spec.names.plural+"."+spec.group')
    yield from _validate_spec(spec, None)
    yield from _status(obj)
    yield from _approval(obj, None)
    yield from _preserve(obj, None)


def validate_definition_update(new: Object, old: Object) -> Errors:
    spec, before = new.get("spec") or {}, old.get("spec") or {}
    yield from _validate_spec(spec, before)
    given, had = spec.get("names") or {}, before.get("names") or {}
    if any(c.get("type") == "Established" and c.get("status") == "True" for c in (old.get("status") or {}).get("conditions") or ()):
        yield from immutable(spec.get("scope"), before.get("scope"), "spec.scope")
        yield from immutable(given.get("kind"), had.get("kind"), "spec.names.kind")
    yield from immutable(spec.get("group"), before.get("group"), "spec.group", detail=IMMUTABLE)
    yield from immutable(given.get("plural"), had.get("plural"), "spec.names.plural")
    yield from _status(new)
    yield from _approval(new, old)
    yield from _preserve(new, old)


def validate_definition_status(new: Object, old: Object) -> list[FieldError]:
    return list(_names((new.get("status") or {}).get("acceptedNames") or {}, "status.acceptedNames"))


def unknown_formats(spec: Object) -> list[str]:
    """Formats in the schemas that nothing checks, each once."""
    found = {n["format"] for s in _schemas(spec) for n in walk(s) if n.get("format") and n["format"].replace("-", "") not in _PLAIN_FORMATS}
    return sorted(found)


_PLAIN_FORMATS = frozenset(f.replace("-", "") for f in FORMATS)


def _warnings(new: Object, old: Object | None) -> list[str]:
    known = () if old is None else unknown_formats(old.get("spec") or {})
    return [f"unrecognized format {quote(f)}" for f in unknown_formats(new.get("spec") or {}) if f not in known]


KINDS: KindTable = {
    ("apiextensions.k8s.io", "CustomResourceDefinition"): Kind(
        defaults=default_definition, prepare_create=_create, prepare_update=_update, prepare_status=keep_spec,
        validate=listed(validate_definition), validate_update=listed(validate_definition_update), validate_status=validate_definition_status,
        warnings=_warnings, unconditional_update=False, has_generation=True, qualified_finalizers=False),
}
