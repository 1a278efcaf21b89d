"""ValidatingAdmissionPolicy: expressions that must hold for an object to be let in. Upstream: apiserver admission/plugin/policy/validating."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, NamedTuple

from kubern.api.admission import match
from kubern.api.admission.attributes import CONNECT, CREATE, DELETE, UPDATE, Attributes, Plugin
from kubern.api.admission.expressions import Conditions, Failed, OutOfBudget, Variables, evaluate, variables
from kubern.api.admission.policies import Binding, Misconfigured, Policy, Source
from kubern.api.authz.unanswered import settled
from kubern.model.cel import METER, CelProblem, Meter, Program
from kubern.model.object import Object
from kubern.model.resource import Resource
from kubern.model.status import StatusError

CODES = {"Unauthorized": 401, "Forbidden": 403, "RequestEntityTooLarge": 413}
MESSAGE_MAX_BYTES = 5 * 1024
AUDIT_VALUE_MAX_BYTES = 10 * 1024
FAILURE_ANNOTATION = "validation.policy.admission.k8s.io/validation_failure"


class _Denied(NamedTuple):
    policy: str
    binding: str                # "" where the policy itself is at fault
    message: str
    reason: str = "Invalid"


class _Validation(NamedTuple):
    program: Program
    spec: Object
    message: Program | None


class ValidatingPolicy(Policy):
    def __init__(self, obj: Object) -> None:
        super().__init__(obj)
        self.problem = ""
        self.conditions = Conditions(self.spec.get("matchConditions"), params=self.param_kind is not None)
        self.validations: list[_Validation] = []
        self.annotations: list[tuple[str, Program]] = []
        try:
            for v in self.spec.get("validations") or ():
                message = self.compile(v["messageExpression"], "string", authorizer=False) if v.get("messageExpression") else None
                self.validations.append(_Validation(self.compile(v["expression"], "bool"), v, message))
            for n in self.spec.get("auditAnnotations") or ():
                self.annotations.append((n["key"], self.compile(n["valueExpression"], "string or null", authorizer=False)))
        except CelProblem as e:                       # stored by an older server, or over a lost variable
            self.problem = str(e)

    def decide(self, v: dict[Any, Any]) -> tuple[list[tuple[int, str, str]], dict[str, str], list[str]]:
        """([(index, message, reason)] of what does not hold, audit annotations, errors of those)."""
        if self.problem:
            return self._failed(self.problem), {}, []
        if self.conditions:
            try:
                if not self.conditions.met({**v, "namespaceObject": None}):
                    return [], {}, []
            except Failed as e:
                return self._failed(str(e)), {}, []
        v[METER] = Meter()
        if self.programs:
            v["variables"] = Variables(self.programs, v)
        denied: list[tuple[int, str, str]] = []
        for i, check in enumerate(self.validations):
            try:
                if evaluate(check.program, v) is not True:
                    denied.append((i, _message(check, v), check.spec.get("reason") or "Invalid"))
            except OutOfBudget as e:
                denied = self._failed(str(e))
                break
            except Failed as e:
                denied += self._failed(str(e), i)
        annotations, errors = {}, []
        v[METER] = Meter()
        for key, program in self.annotations:
            try:
                value = evaluate(program, v)
            except Failed as e:
                if self.fail:
                    errors.append(str(e))
                continue
            if isinstance(value, str) and value.strip():
                annotations[key] = value.strip()[:AUDIT_VALUE_MAX_BYTES]
        return denied, annotations, errors

    def _failed(self, message: str, index: int = 0) -> list[tuple[int, str, str]]:
        return [(index, message, "Invalid")] if self.fail else []


def _message(check: _Validation, v: dict[str, Any]) -> str:
    text = ""
    if check.message is not None:
        try:
            value = evaluate(check.message, v)
            text = value.strip() if isinstance(value, str) else ""
        except Failed:
            text = ""
        if len(text.encode()) > MESSAGE_MAX_BYTES or "\n" in text:
            text = ""
    return text or (check.spec.get("message") or "").strip() or f"failed expression: {check.program.source.strip()}"


SOURCE = Source("validatingadmissionpolicies", ValidatingPolicy)


async def validate(a: Attributes) -> None:
    policies = SOURCE.policies(a.reader)
    if not policies or match.exempt(a):
        return
    denied: list[_Denied] = []
    for policy in policies:
        row = policy.criteria.match(a)
        if row is None:
            continue
        try:
            policy.check_params(a)
        except Misconfigured as e:
            if policy.fail:
                denied.append(_Denied(policy.name, "", f"failed to configure policy: {e}"))
            continue
        for binding in policy.bindings:
            if binding.matches(a):
                await _bound(a, policy, binding, row, denied)
    if denied:
        raise _refusal(a, denied[0])


async def _bound(a: Attributes, policy: ValidatingPolicy, binding: Binding, row: Resource, denied: list[_Denied]) -> None:
    try:
        params = policy.params(a, binding)
    except Misconfigured as e:
        if policy.fail:
            denied.append(_Denied(policy.name, binding.name, f"failed to configure binding: {e}"))
        return
    namespace = match.namespace_of(a)
    obj, old = match.shown(a, a.obj, row), match.shown(a, a.old, row)
    for param in params:
        v = variables(a, row, obj, old, namespace)
        v["params"] = param
        found, annotations, errors = await settled(partial(policy.decide, v))
        for index, message, reason in found:
            if "Deny" in binding.actions:
                denied.append(_Denied(policy.name, binding.name, message, reason))
            if "Warn" in binding.actions:
                a.warn(f"Validation failed for ValidatingAdmissionPolicy '{policy.name}' with binding '{binding.name}': {message}")
            if "Audit" in binding.actions:
                failure = {"message": message, "policy": policy.name, "binding": binding.name, "expressionIndex": index,
                           "validationActions": binding.actions}
                a.audit[FAILURE_ANNOTATION] = json.dumps([failure], separators=(",", ":"), ensure_ascii=False)
        for key, value in annotations.items():
            name = f"{policy.name}/{key}"
            a.audit[name] = f"{a.audit[name]}, {value}" if name in a.audit and value not in a.audit[name].split(", ") else value
        denied += [_Denied(policy.name, binding.name, e) for e in errors]


def _refusal(a: Attributes, d: _Denied) -> StatusError:
    by = f"ValidatingAdmissionPolicy '{d.policy}'" + (f" with binding '{d.binding}'" if d.binding else "")
    message = f"{by} denied request: {d.message}"
    e = a.refuse(message)
    return StatusError(CODES.get(d.reason, 422), d.reason, e.message, {**(e.details or {}), "causes": [{"message": message}]})


PLUGIN = Plugin("ValidatingAdmissionPolicy", (CREATE, UPDATE, DELETE, CONNECT), ("*",), validate=validate)
