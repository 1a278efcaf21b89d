"""Match: which requests a webhook or a policy is for, and the shape in which it sees their object.

Criteria are made once of `matchConstraints`, `matchResources` or a webhook and asked for every request. matchPolicy Equivalent also takes a
request for another version of what the rules name; the object is then shown in that version.
Upstream: apiserver admission/plugin/{webhook/predicates,policy/matching}.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes
from kubern.model.convert import from_storage
from kubern.model.object import Object
from kubern.model.request import user_info
from kubern.model.resource import Resource
from kubern.model.selector import Selector, from_label_selector
from kubern.model.status import internal, not_found

EXEMPT = frozenset(("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "ValidatingAdmissionPolicy",
                    "ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"))
EXEMPT_GROUP = "admissionregistration.k8s.io"
CRDS = "customresourcedefinitions.apiextensions.k8s.io"


class _Rule(NamedTuple):
    operations: frozenset[str]
    groups: frozenset[str]
    versions: frozenset[str]
    resources: tuple[tuple[str, str], ...]
    scope: str
    names: frozenset[str]

    def matches(self, a: Attributes, row: Resource) -> bool:
        if not (a.operation in self.operations or "*" in self.operations):
            return False
        if not (row.group in self.groups or "*" in self.groups) or not (row.version in self.versions or "*" in self.versions):
            return False
        if self.scope != "*":
            in_namespace = bool(a.namespace) and not _is_namespaces(row)
            if in_namespace != (self.scope == "Namespaced"):
                return False
        if not any((r == "*" or r == row.plural) and (s == "*" or s == a.subresource) for r, s in self.resources):
            return False
        return not self.names or a.name in self.names


def _is_namespaces(row: Resource) -> bool:
    return row.plural == "namespaces" and not row.group


def _rules(given: Iterable[Object] | None) -> tuple[_Rule, ...]:
    out = []
    for r in given or ():
        resources = tuple((res, sub) for res, _, sub in (x.partition("/") for x in r.get("resources") or ()))
        operations, groups, versions, names = (frozenset(r.get(k) or ()) for k in ("operations", "apiGroups", "apiVersions", "resourceNames"))
        out.append(_Rule(operations, groups, versions, resources, r.get("scope") or "*", names))
    return tuple(out)


class Criteria:
    """What one webhook, policy or binding is for."""

    __slots__ = ("_equivalent", "_excluded", "_namespaces", "_objects", "_rules")

    def __init__(self, spec: Object) -> None:
        rules = spec.get("resourceRules") if "rules" not in spec else spec["rules"]
        self._rules, self._excluded = _rules(rules), _rules(spec.get("excludeResourceRules"))
        self._equivalent = spec.get("matchPolicy") == "Equivalent"
        self._namespaces = _selector(spec.get("namespaceSelector"))
        self._objects = _selector(spec.get("objectSelector"))

    def match(self, a: Attributes) -> Resource | None:
        """The row the request is matched as, None if it is not. Raises where that cannot be told."""
        row = self._by_rules(self._rules, a) if self._rules else a.resource
        if row is None or (self._excluded and self._by_rules(self._excluded, a) is not None):
            return None
        if self._objects is not None and not any(o is not None and self._objects.matches((o.get("metadata") or {}).get("labels"))
                                                 for o in (a.obj, a.old)):
            return None
        if self._namespaces is not None and (a.namespace or a.resource.plural == "namespaces") \
                and not self._namespaces.matches(_namespace_labels(a)):
            return None
        return row

    def _by_rules(self, rules: tuple[_Rule, ...], a: Attributes) -> Resource | None:
        for r in rules:
            if r.matches(a, a.resource):
                return a.resource
        if self._equivalent:
            others = equivalents(a)
            for r in rules:
                for row in others:
                    if r.matches(a, row):
                        return row
        return None


def _selector(given: Object | None) -> Selector | None:
    """None: everything matches."""
    if not given:
        return None
    selector = from_label_selector(given)
    return None if selector.empty else selector


def _namespace_labels(a: Attributes) -> dict[str, str] | None:
    if a.resource.plural == "namespaces" and not a.subresource and a.operation in (CREATE, UPDATE):
        return ((a.obj or {}).get("metadata") or {}).get("labels")
    namespace = a.reader.get("namespaces", "", a.namespace)
    if namespace is None:
        raise not_found("", "namespaces", a.namespace)
    labels: dict[str, str] | None = namespace["metadata"].get("labels")
    return labels


def equivalents(a: Attributes) -> tuple[Resource, ...]:
    """The other rows through which the same object is served."""
    r = a.resource
    if not r.custom:
        return _built_in(r.storage, a.subresource, r)
    from dataclasses import replace

    crd = a.reader.get(CRDS, "", f"{r.plural}.{r.group}") or {}
    return tuple(replace(r, version=v["name"]) for v in (crd.get("spec") or {}).get("versions") or ()
                 if v.get("served") and v.get("name") != r.version)


@cache
def _built_in(storage: tuple[str, str], subresource: str, but: Resource) -> tuple[Resource, ...]:
    from kubern.model.resources import RESOURCES

    return tuple(r for r in RESOURCES if r.storage == storage and r != but and (not subresource or r.subresource(subresource)))


def exempt(a: Attributes) -> bool:
    """Whether nothing may stand in the way of the request: what configures admission must stay repairable."""
    return a.resource.group == EXEMPT_GROUP and a.resource.kind in EXEMPT


def kind_of(row: Resource, subresource: str) -> dict[str, str]:
    """The kind a request's object has: group, version and kind."""
    sub = row.subresource(subresource) if subresource else None
    if sub is not None and sub.kind and not (sub.kind == row.kind and not sub.version):
        return {"group": sub.group if sub.version else row.group, "version": sub.version or row.version, "kind": sub.kind}
    return {"group": row.group, "version": row.version, "kind": row.kind}


def shown(a: Attributes, obj: Object | None, row: Resource) -> Object | None:
    """The object as the row shows it, with kind and apiVersion. May share parts with the given one."""
    if obj is None:
        return None
    if a.subresource:
        k = kind_of(row, a.subresource)
        if k["kind"] != row.kind:
            return {"kind": k["kind"], "apiVersion": f"{k['group']}/{k['version']}" if k["group"] else k["version"], **obj}
    if "apiVersion" not in obj:
        obj = {"kind": row.kind, "apiVersion": _stored_as(row), **obj}
    if obj["apiVersion"] == row.api_version:
        return obj
    return {**obj, "apiVersion": row.api_version} if row.custom else from_storage(obj, row)


def _stored_as(row: Resource) -> str:
    group = row.storage[0]
    version = row.storage_version or row.version
    return f"{group}/{version}" if group else version


def namespace_of(a: Attributes) -> Object | None:
    """The namespace a request is in; None for what is in none, and for namespaces themselves. Raises 404 where it is missing."""
    if not a.namespace or _is_namespaces(a.resource):
        return None
    namespace = a.reader.get("namespaces", "", a.namespace)
    if namespace is None:
        raise not_found("", "namespaces", a.namespace)
    return namespace


def request_of(a: Attributes, row: Resource) -> dict[str, Any]:
    """The common part of an AdmissionRequest. Empty texts are left out, as upstream's `omitempty` has it."""
    asked = a.resource
    out: dict[str, Any] = {"kind": kind_of(row, a.subresource), "resource": _resource(row), "subResource": a.subresource,
                           "requestKind": kind_of(asked, a.subresource), "requestResource": _resource(asked), "requestSubResource": a.subresource,
                           "name": a.name, "namespace": a.namespace, "operation": a.operation, "userInfo": user_info(a.user)}
    out = {k: v for k, v in out.items() if v or k == "userInfo"}
    out["dryRun"] = a.dry_run
    out["options"] = dict(a.options) or None
    return out


def _resource(row: Resource) -> dict[str, str]:
    return {"group": row.group, "version": row.version, "resource": row.plural}


def taken_back(a: Attributes, changed: Object, row: Resource, *, strict: bool) -> None:
    """A changed object becomes the request's: fitted to its type, in the stored shape, with defaults. Raises 500 where it does not fit."""
    from kubern.model.convert import to_storage
    from kubern.model.strict import Fault, typed

    served = a.served
    if served is None or (a.subresource and kind_of(row, a.subresource)["kind"] != row.kind):
        a.obj = changed
        return
    schema = served.schema
    if not row.custom and row != a.resource:
        from kubern.model.schema import schema_for
        schema = schema_for(row.api_version, row.kind)
    if schema is not None:
        try:
            changed, errors = typed(changed, schema, row.custom)
        except Fault as e:
            raise internal(str(e)) from None
        if errors and strict:
            raise internal("strict decoding error: " + ", ".join(errors))
    changed["kind"], changed["apiVersion"] = row.kind, row.api_version
    stored = (a.obj or {}).get("apiVersion")
    if row.custom:
        if stored:
            changed["apiVersion"] = stored
    elif stored and stored != row.api_version:
        changed = to_storage(changed, row)
    if not isinstance(changed.get("metadata"), dict):
        changed["metadata"] = {}
    served.kind.defaults(changed)
    a.obj = changed
