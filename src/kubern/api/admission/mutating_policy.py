"""MutatingAdmissionPolicy: expressions that change an object on its way in: JSON patches and apply configurations.

Upstream: apiserver admission/plugin/policy/mutating.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kubern.api.admission import match
from kubern.api.admission.attributes import CONNECT, CREATE, UPDATE, Attributes, Plugin, Rounds
from kubern.api.admission.expressions import Conditions, Failed, Variables, evaluate, variables
from kubern.api.admission.policies import Binding, Misconfigured, Policy, Source
from kubern.api.authz.unanswered import settled
from kubern.model import typed
from kubern.model.cel import CelProblem, Program
from kubern.model.cel.values import Message, to_json
from kubern.model.jsonpatch import json_patch
from kubern.model.object import Object, clone
from kubern.model.resource import Resource
from kubern.model.schema import Schema
from kubern.model.status import StatusError, internal


class MutatingPolicy(Policy):
    def __init__(self, obj: Object) -> None:
        super().__init__(obj)
        self.conditions = Conditions(self.spec.get("matchConditions"), params=self.param_kind is not None)
        self.again = self.spec.get("reinvocationPolicy") == "IfNeeded"
        self.mutations: list[tuple[str, Program | str]] = []         # a text: why it did not compile
        for m in self.spec.get("mutations") or ():
            kind = m.get("patchType") or ""
            source = (m.get("jsonPatch") or m.get("applyConfiguration") or {}).get("expression") or ""
            try:
                self.mutations.append((kind, self.compile(source, "patch" if kind == "JSONPatch" else "object", patch=True)))
            except CelProblem as e:
                self.mutations.append((kind, str(e)))


SOURCE = Source("mutatingadmissionpolicies", MutatingPolicy)


class _Refusals:
    def __init__(self, a: Attributes) -> None:
        self._a = a
        self._found: list[tuple[str, str]] = []           # (message, reason)

    def add(self, policy: MutatingPolicy, binding: Binding | None, message: str, reason: str = "Forbidden") -> None:
        if policy.fail:
            by = f"policy '{policy.name}' with binding '{binding.name}'" if binding else f'policy "{policy.name}"'
            self._found.append((f"{by} denied request: {message}", reason))

    def check(self) -> None:
        if self._found:
            message, reason = self._found[0]
            details = {**(self._a.refuse("").details or {}), "causes": [{"message": m} for m, _ in self._found]}
            raise StatusError(403, reason, message, details)


async def mutate(a: Attributes) -> None:
    policies = SOURCE.policies(a.reader)
    if not policies or match.exempt(a):
        return
    refusals = _Refusals(a)
    invocations: list[tuple[MutatingPolicy, Binding, Resource, Object | None]] = []
    for policy in policies:
        row = policy.criteria.match(a)
        if row is None:
            continue
        try:
            policy.check_params(a)
        except Misconfigured as e:
            refusals.add(policy, None, f"failed to configure policy: {e}")
            continue
        for binding in policy.bindings:
            if binding.matches(a):
                try:
                    invocations += [(policy, binding, row, p) for p in policy.params(a, binding)]
                except Misconfigured as e:
                    refusals.add(policy, binding, f"failed to configure binding: {e}")
    if invocations:
        namespace = match.namespace_of(a)
        rounds = a.rounds.of("MutatingAdmissionPolicy", a.obj)
        for policy, binding, row, param in invocations:
            await _invoke(a, policy, binding, row, param, namespace, rounds, refusals)
        if rounds.dirty:
            rounds.require()
            a.rounds.wanted = True
        rounds.end(a.obj)
    refusals.check()


async def _invoke(a: Attributes, policy: MutatingPolicy, binding: Binding, row: Resource, param: Object | None, namespace: Object | None,
                  rounds: Rounds, refusals: _Refusals) -> None:
    if policy.conditions:
        v = variables(a, row, match.shown(a, a.obj, row), match.shown(a, a.old, row), None)
        v["params"] = param
        try:
            if not await settled(partial(policy.conditions.met, v)):
                return
        except Failed as e:
            refusals.add(policy, binding, str(e), "Invalid")
            return
    m = (param or {}).get("metadata") or {}
    key = (policy.name, binding.name, m.get("namespace"), m.get("name"))
    if not rounds.due(key):
        return
    before = clone(a.obj) if a.obj is not None else None
    for kind, program in policy.mutations:
        if a.obj is None:
            break
        obj = match.shown(a, a.obj, row)
        assert obj is not None
        v = variables(a, row, obj, match.shown(a, a.old, row), namespace)
        v["params"] = param
        if policy.programs:
            v["variables"] = Variables(policy.programs, v)
        try:
            if isinstance(program, str):
                raise Failed(program)
            made = await settled(partial(evaluate, program, v))
            changed = _patched(obj, made) if kind == "JSONPatch" else _merged(a, obj, made, row)
        except Failed as e:
            refusals.add(policy, binding, str(e), "Invalid")
            continue
        if changed is not obj:
            match.taken_back(a, changed, row, strict=kind == "JSONPatch")
        rounds.dirty = True
    if before is not None and before != a.obj:
        rounds.require()
        a.rounds.wanted = True
    if policy.again:
        rounds.invoked(key)


def _patched(obj: Object, operations: list[Any]) -> Object:
    """The object with a JSON patch applied; itself, where a test of the patch failed."""
    ops = []
    for op in operations:
        _check_names(op.get("value"))
        ops.append({k: to_json(v) for k, v in op.items() if v != "" or k != "from"})
    changed, why = json_patch(clone(obj), ops)
    if why == "test":
        return obj
    if why:
        raise Failed(f"JSON Patch: {why}")
    if not isinstance(changed, dict):
        raise internal("json: cannot unmarshal into Go value")
    return changed


def _check_names(value: Any, path: str = "") -> None:
    """Object.spec{…} may stand only where spec is. Raises Failed."""
    if isinstance(value, Message):
        if not path and value.kind.startswith("Object"):
            path = value.kind
        elif path and value.kind != path:
            raise Failed(f"type mismatch: unexpected type name \"{value.kind}\", expected \"{path}\", which matches field name path from root Object type")
        for k, v in value.items():
            _check_names(v, f"{path}.{k}" if path else "")
    elif isinstance(value, list):
        for v in value:
            _check_names(v, path)
    elif isinstance(value, dict):
        for v in value.values():
            _check_names(v, path)


def _merged(a: Attributes, obj: Object, made: Any, row: Resource) -> Object:
    """The object with an apply configuration merged in by its schema."""
    _check_names(made, "Object")
    applied = {**to_json(made), "apiVersion": obj["apiVersion"], "kind": obj["kind"]}
    schema: Schema = a.served.schema if a.served is not None and a.served.schema is not None else typed.FREE
    if not row.custom and row != a.resource:
        from kubern.model.schema import schema_for
        schema = schema_for(row.api_version, row.kind)
    errors = typed.check(applied, schema)
    if errors:
        raise Failed(f"error applying patch: failed to convert patch object to typed object: {typed.complaint(errors)}")
    atomics = list(_atomics(applied, schema, ""))
    if atomics:
        raise Failed(f"error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {', '.join(atomics)}")
    merged: Object = clone(typed.merge(obj, applied, schema))
    return merged


def _atomics(value: Any, s: Schema, path: str) -> list[str]:
    out: list[str] = []
    if isinstance(value, dict):
        if s.map_type == "atomic":
            out.append(path)
        for k, v in value.items():
            known = s.at(k)
            if known is not None:
                out += _atomics(v, known, f"{path}.{k}")
    elif isinstance(value, list):
        if not typed._associative(s):
            out.append(path)
        if s.items is not None:
            for i, v in enumerate(value):
                out += _atomics(v, s.items, f"{path}[{i}]")
    return out


PLUGIN = Plugin("MutatingAdmissionPolicy", (CREATE, UPDATE, CONNECT), ("*",), mutate=mutate)
