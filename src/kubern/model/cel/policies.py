"""Type checking of ValidatingAdmissionPolicies: expressions against the types of what a policy matches, as warnings for its status.

In: a policy and the definitions of custom resources. Out: (field, warning) of validations and their messages that do not fit. It never alters what a
policy does: at run time an object is whatever it is. Fields whose type OpenAPI does not say (quantities, free JSON) do not exist for it.
Upstream: apiserver pkg/admission/plugin/policy/validating/typechecking.go, pkg/cel/common/schemas.go; KEP-3488.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

from kubern.model.cel import NAMESPACE, REQUEST, CelProblem, compile_
from kubern.model.cel.types import DYN, TIMESTAMP, Object, Type, escape, read
from kubern.model.object import Object as Json
from kubern.model.resources import RESOURCES
from kubern.model.schema import (
    ANY,
    BOOL,
    BYTES,
    INT32,
    INT64,
    INT_OR_STRING,
    LIST,
    MICROTIME,
    NUMBER,
    QUANTITY,
    TIME,
    Schema,
    definition_of,
    from_openapi,
    schema_for,
)

TYPES_MAX = 10                      # of what one rule matches


class Gvk(NamedTuple):
    group: str
    version: str
    kind: str

    def __str__(self) -> str:
        return f"{self.group}/{self.version}, Kind={self.kind}"


Served = tuple[str, str, str, str, Callable[[], Schema]]            # group, version, plural, kind, schema


@cache
def _built_in() -> tuple[Served, ...]:
    return tuple((r.group, r.version, r.plural, r.kind, lambda r=r: schema_for(r.api_version, r.kind))        # type: ignore[misc]
                 for r in RESOURCES if definition_of(r.api_version, r.kind))


def _custom(crds: Iterable[Json]) -> Iterator[Served]:
    for crd in crds:
        spec = crd["spec"]
        for v in spec["versions"]:
            schema = (v.get("schema") or {}).get("openAPIV3Schema")
            if v.get("served") and schema:
                yield spec["group"], v["name"], spec["names"]["plural"], spec["names"]["kind"], lambda schema=schema: from_openapi(schema)   # type: ignore[misc]


# --- types ---

_JSON = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
_SIMPLE: dict[int, Type] = {BOOL: "bool", INT32: "int", INT64: "int", NUMBER: "double", BYTES: "bytes", TIME: TIMESTAMP, MICROTIME: TIMESTAMP,
                            INT_OR_STRING: DYN}
_FORMATS = {"byte": "bytes", "duration": read("duration"), "date": TIMESTAMP, "date-time": TIMESTAMP}


def type_of(s: Schema, name: str, inside: tuple[str, ...] = ()) -> Type:
    """The type of what a schema describes, None where expressions cannot see it. `inside`: definitions on the way, at which recursion ends."""
    if s.code == QUANTITY or s.or_schema or s.name == _JSON:
        return None
    if s.code in _SIMPLE:
        return _SIMPLE[s.code]
    if s.code == LIST:
        item = type_of(s.items, f"{name}.@idx", inside) if s.items is not None else None
        return None if item is None else ("list", item)
    if s.type == "string":
        return _FORMATS.get(s.format, "string")
    if s.code == ANY:
        return None
    if s.extra is not None and not s.props:
        value = type_of(s.extra, f"{name}.@elem", inside)
        return None if value is None else ("map", "string", value)
    if s.name and s.name in inside:
        return Object(name, {})
    return Object(name, lambda: _fields(s, name, (*inside, s.name) if s.name else inside))


def _fields(s: Schema, name: str, inside: tuple[str, ...]) -> dict[str, Type]:
    out: dict[str, Type] = {}
    for key, part in (s.props or {}).items():
        escaped, t = escape(key), type_of(part, f"{name}.{key}", inside)
        if escaped is not None and t is not None:
            out[escaped] = t
    return out


# --- policies ---

def _kinds(policy: Json, served: tuple[Served, ...]) -> dict[Gvk, Callable[[], Schema]]:
    """What a policy matches, as far as its rules name it."""
    out: dict[Gvk, Callable[[], Schema]] = {}
    for rule in (policy["spec"].get("matchConstraints") or {}).get("resourceRules") or ():
        groups, versions = rule.get("apiGroups") or (), rule.get("apiVersions") or ()
        if any("*" in x for x in (*groups, *versions)):
            continue
        plain = [r for r in rule.get("resources") or () if "*" not in r and "/" not in r]
        count = 0
        for group in sorted(groups):
            for version in sorted(versions):
                for resource in sorted(plain):
                    for g, v, plural, kind, schema in served:
                        # the core group has no name, and what has none is looked for everywhere
                        if (not group or g == group) and v == version and plural == resource:
                            out[Gvk(g, v, kind)] = schema
                            count += 1
                            if count == TYPES_MAX:
                                return dict(sorted(out.items()))
    return dict(sorted(out.items()))


def _of_params(policy: Json, served: tuple[Served, ...]) -> Type:
    """The type of params, None where the policy has none."""
    kind = policy["spec"].get("paramKind")
    if not kind:
        return None
    group, _, version = kind["apiVersion"].rpartition("/")
    for g, v, _, k, schema in served:
        if (g, v, k) == (group, version, kind["kind"]):
            return type_of(schema(), k)
    return DYN


def warnings(policy: Json, crds: Iterable[Json]) -> list[tuple[str, str]]:
    """(field, warning) of every expression that does not fit."""
    served = (*_built_in(), *_custom(crds))
    params = _of_params(policy, served)
    scopes = [(gvk, _variables(policy, type_of(schema(), gvk.kind), params)) for gvk, schema in _kinds(policy, served).items()]
    out: list[tuple[str, str]] = []
    for i, validation in enumerate(policy["spec"].get("validations") or ()):
        for field in ("expression", "messageExpression"):
            expression = validation.get(field)
            found = [f"{gvk}: {why}\n" for gvk, variables in scopes if (why := _problem(expression, variables))] if expression else []
            if found:
                out.append((f"spec.validations[{i}].{field}", "\n".join(found)))
    return out


def _variables(policy: Json, obj: Type, params: Type) -> dict[str, Type]:
    of_policy: dict[str, Type] = {}
    out: dict[str, Type] = {"object": obj, "oldObject": obj, "request": REQUEST, "namespaceObject": NAMESPACE, "authorizer": read("authorizer")}
    if params is not None:
        out["params"] = params
    for v in policy["spec"].get("variables") or ():
        scope = {**out, "variables": Object("kubernetes.variables", dict(of_policy))}
        try:
            of_policy[v["name"]] = compile_(v["expression"], scope).type
        except CelProblem:
            of_policy[v["name"]] = DYN
    return {**out, "variables": Object("kubernetes.variables", of_policy)}


def _problem(expression: str, variables: Mapping[str, Type]) -> str:
    try:
        compile_(expression, variables)
    except CelProblem as e:
        return str(e)
    return ""
