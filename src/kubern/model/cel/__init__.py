"""CEL, the Common Expression Language, as Kubernetes speaks it: parser, type checker, evaluator and libraries.

    program = compile_("object.spec.replicas < 5", {"object": "dyn"})      raises CelProblem with upstream's text
    program.type                                                         "bool"
    program.run({"object": {...}})                                       True, or raises CelError

Our own and not cel-cpp, for three reasons: rules of CRDs are checked against types made from schemas, which cel-cpp knows only as
protobuf messages; the texts are upstream's (cel-go's); and an evaluation over a pod takes 2 µs, because nothing is converted,
where the binding took 58 µs. cel-cpp's parser still words syntax errors. Upstream: cel-spec, cel-go, apiserver pkg/cel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kubern.model.cel import literals
from kubern.model.cel.check import Checker, Env, Overload
from kubern.model.cel.meter import METER, Meter
from kubern.model.cel.parse import CelSyntaxError, Node, parse, syntax_error
from kubern.model.cel.run import Lazy, Run, program
from kubern.model.cel.types import DYN, Object, Type, name, read, same
from kubern.model.cel.values import Cancelled, CelError

__all__ = ["METER", "Cancelled", "CelError", "CelProblem", "Lazy", "Meter", "Object", "Program", "admission_variables", "compile_", "compile_error"]


class CelProblem(Exception):
    """An expression that does not compile; the text is what upstream shows."""


@dataclass(frozen=True, slots=True)
class Program:
    source: str
    type: Type
    run: Run
    tree: Node
    broken: str = ""          # why upstream would not make a program of it


@cache
def functions(patches: bool = False) -> dict[str, tuple[Overload, ...]]:
    """All that expressions may call. `patches`: those too that only mutations need."""
    from kubern.model.cel.kubernetes import KUBERNETES, PATCHES
    from kubern.model.cel.library import STANDARD, overloads
    return overloads((*STANDARD, *KUBERNETES, *(PATCHES if patches else ())))


def compile_(source: str, variables: Mapping[str, Type], types: Mapping[str, Object] | None = None, binds: bool = False) -> Program:
    """An expression over these variables. `binds`: it may bind more with cel.bind(). Raises CelProblem."""
    try:
        tree = parse(source, binds)
    except CelSyntaxError as e:
        raise CelProblem(syntax_error(source, e)) from None
    checker = Checker(Env(variables, functions(isinstance(types, PatchTypes)), types), source)
    try:
        found = checker.check(tree)
        if checker.problems:
            raise CelProblem(checker.report())
        checker.problems = literals.problems(tree)
        if checker.problems:
            raise CelProblem(checker.report())
        return Program(source, found, program(tree), tree, literals.broken(tree))
    except RecursionError:
        raise CelProblem("expression recursion limit exceeded: 250") from None


# -- the variables of admission

def _request() -> Object:
    gvk = Object("kubernetes.GroupVersionKind", dict.fromkeys(("group", "version", "kind"), "string"))
    gvr = Object("kubernetes.GroupVersionResource", dict.fromkeys(("group", "version", "resource"), "string"))
    strings = ("list", "string")
    user = Object("kubernetes.UserInfo", {"username": "string", "uid": "string", "groups": strings, "extra": ("map", "string", strings)})
    return Object("kubernetes.AdmissionRequest", {
        "kind": gvk, "resource": gvr, "subResource": "string", "requestKind": gvk, "requestResource": gvr, "requestSubResource": "string",
        "name": "string", "namespace": "string", "operation": "string", "userInfo": user, "dryRun": "bool", "options": DYN})


def _namespace() -> Object:
    time, strings, pairs = read("timestamp"), ("list", "string"), ("map", "string", "string")
    condition = Object("kubernetes.NamespaceCondition", {"status": "string", "type": "string", "lastTransitionTime": time, "message": "string",
                                                         "reason": "string"})
    return Object("kubernetes.Namespace", {
        "metadata": Object("kubernetes.NamespaceMetadata", {
            "name": "string", "generateName": "string", "namespace": "string", "labels": pairs, "annotations": pairs, "UID": "string",
            "creationTimestamp": time, "deletionGracePeriodSeconds": "int", "deletionTimestamp": time, "generation": "int",
            "resourceVersion": "string", "finalizers": strings}),
        "spec": Object("kubernetes.NamespaceSpec", {"finalizers": strings}),
        "status": Object("kubernetes.NamespaceStatus", {"conditions": ("list", condition), "phase": "string"})})


REQUEST, NAMESPACE = _request(), _namespace()


class _Patch(Object):
    """Object{…} of an apply configuration: any field, and Object.spec{…} and deeper below it."""

    def __init__(self, type_name: str) -> None:
        super().__init__(type_name, {}, make=True, open=True)


class PatchTypes(dict[str, Object]):
    """Types that mutations may build: JSONPatch, Object and every Object.a.b."""

    def __init__(self) -> None:
        super().__init__({"JSONPatch": Object("JSONPatch", {"op": "string", "path": "string", "from": "string", "value": DYN}, make=True)})

    def get(self, key: str, default: Any = None) -> Any:
        if key == "Object" or key.startswith("Object."):
            return _Patch(key)
        return super().get(key, default)


def admission_variables(*, params: bool = False, authorizer: bool = True, variables: Mapping[str, Type] | None = None) -> dict[str, Type]:
    """What expressions of policies and match conditions may name."""
    out: dict[str, Type] = {"object": DYN, "oldObject": DYN, "request": REQUEST, "namespaceObject": NAMESPACE}
    if params:
        out["params"] = DYN
    if authorizer:
        out["authorizer"], out["authorizer.requestResource"] = read("authorizer"), read("resourcecheck")
    if variables is not None:
        out["variables"] = Object("kubernetes.variables", dict(variables))
    return out


RETURNS: dict[str, tuple[Type, ...]] = {"bool": ("bool",), "string": ("string",), "string or null": ("string", "null_type"), "any": (),
                                        "object": (_Patch("Object"),), "patch": (("list", PatchTypes()["JSONPatch"]),)}


def compile_for_admission(source: str, returns: str, *, params: bool = False, authorizer: bool = True, patch_types: bool = False,
                          variables: Mapping[str, Type] | None = None) -> Program:
    """An expression of a policy or match condition; `returns` is a key of RETURNS. Raises CelProblem as validation words it."""
    declared = admission_variables(params=params, authorizer=authorizer, variables=variables)
    try:
        program = compile_(source, declared, PatchTypes() if patch_types else None)
    except CelProblem as e:
        raise CelProblem(f"compilation failed: {e}") from None
    wanted = RETURNS[returns]
    if wanted and not any(same(program.type, w) for w in wanted):
        if len(wanted) == 1:
            raise CelProblem(f"must evaluate to {name(wanted[0])} but got {name(program.type)}")
        raise CelProblem(f"must evaluate to one of [{' '.join(name(w) for w in wanted)}] but got {name(program.type)}")
    if program.broken:
        raise CelProblem(f"program instantiation failed: {program.broken}")
    return program


def variable_types(expressions: Mapping[str, str], *, params: bool = False, authorizer: bool = True) -> dict[str, Type]:
    """Types of a policy's variables, in order; each may use those before it. One that does not compile may be anything."""
    out: dict[str, Type] = {}
    for variable, source in expressions.items():
        try:
            out[variable] = compile_for_admission(source, "any", params=params, authorizer=authorizer, variables=out).type
        except CelProblem:
            out[variable] = DYN
    return out


def compile_error(expression: str, returns: str, *, params: bool = False, authorizer: bool = True, patch_types: bool = False,
                  variables: Mapping[str, str] | None = None) -> str:
    """What is wrong with an expression of a policy or match condition, "" if nothing. `variables`: name -> expression, None: `variables` is not
    declared."""
    types = variable_types(variables, params=params, authorizer=authorizer) if variables is not None else None
    try:
        compile_for_admission(expression, returns, params=params, authorizer=authorizer, patch_types=patch_types, variables=types)
    except CelProblem as e:
        return str(e)
    return ""


def schema_errors(schema: Mapping[str, Any], path: str, each: bool = True) -> Any:
    """What does not compile or costs too much in the rules of a CRD's schema, as field errors."""
    from kubern.model.cel.schemas import schema_errors as errors
    return errors(schema, path, each)


def schema_rules(schema: Mapping[str, Any]) -> Any:
    """The rules of a CRD's schema as (object, old object or None, who hears of what is let be) -> field errors; None where there are none."""
    from kubern.model.cel.schemas import rules
    from kubern.model.custom import MISSING
    found = rules(schema)
    return None if found is None else lambda obj, old, warn: found.errors(obj, MISSING if old is None else old, warn)
