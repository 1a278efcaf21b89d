"""Expressions: what CEL of policies and match conditions can see of a request, and match conditions themselves.

Upstream: apiserver admission/plugin/cel, admission/plugin/webhook/matchconditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubern.api.admission import match
from kubern.api.admission.attributes import Attributes
from kubern.api.authz.attributes import Attributes as Asked
from kubern.model.cel import METER, CelError, CelProblem, Lazy, Meter, Program, compile_for_admission
from kubern.model.cel.kubernetes import Check
from kubern.model.cel.meter import CONDITIONS_MAX, TOTAL_MAX
from kubern.model.invalid import aggregate
from kubern.model.object import Object
from kubern.model.request import User
from kubern.model.resource import Resource

_META = ("name", "generateName", "namespace", "labels", "annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp",
         "generation", "resourceVersion", "finalizers")


class Failed(Exception):
    """An expression of a policy that gave no answer; str() is upstream's text."""


class OutOfBudget(Failed):
    """All expressions together cost too much: none is asked any more."""

    def __init__(self) -> None:
        super().__init__("validation failed due to running out of cost budget, no further validation rules will be run")


def evaluate(program: Program, v: dict[Any, Any], units_max: int = TOTAL_MAX) -> Any:
    """The value of an expression. Raises Failed in the words of a policy. `units_max`: what all that share the meter may cost."""
    problem = ""
    value = None
    try:
        value = program.run(v)
    except (CelError, ArithmeticError, ValueError) as e:
        problem = f"expression '{program.source}' resulted in error: {e}"
    if v[METER].total > units_max:
        raise OutOfBudget
    if problem:
        raise Failed(problem)
    return value


def variables(a: Attributes, row: Resource, obj: Object | None, old: Object | None, namespace: Object | None) -> dict[str, Any]:
    """The variables that every expression of a policy may name. `authorizer` stands among them: whether one may use it is for its compiler."""
    check = _authorizer(a)
    return {
        "object": obj, "oldObject": old,
        "request": Lazy(lambda: match.request_of(a, row)),
        "namespaceObject": Lazy(lambda: _namespace(namespace)),
        "authorizer": check,
        "authorizer.requestResource": Lazy(lambda: _of_request(check, a)),
    }


def _namespace(namespace: Object | None) -> Object | None:
    if namespace is None:
        return None
    m = namespace["metadata"]
    return {"metadata": {k: m[k] for k in _META if k in m}, "spec": namespace.get("spec") or {}, "status": namespace.get("status") or {}}


def _authorizer(a: Attributes) -> Check:
    def ask(c: Check) -> tuple[bool, str, str]:
        if a.authorizer is None:
            return False, "", ""
        user = a.user
        if c.user is not None:
            namespace, name = c.user
            user = User(f"system:serviceaccount:{namespace}:{name}",
                        ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"))
        if c.path:
            asked = Asked(user, c.verb, path=c.path, is_resource=False)
        else:
            asked = Asked(user, c.verb, c.group, "*", c.resource, c.subresource, c.namespace, c.name, field_selector=c.field_selector,
                          label_selector=c.label_selector)
        decision = a.authorizer.authorize(asked)
        return decision.allowed, decision.reason, ""
    return Check(ask)


def _of_request(check: Check, a: Attributes) -> Check:
    from dataclasses import replace

    from kubern.model.cel.types import read
    r = a.resource
    return replace(check, kind=read("resourcecheck"), group=r.group, resource=r.plural, subresource=a.subresource, namespace=a.namespace, name=a.name)


class Variables(dict[str, Any]):
    """`variables` of a policy: each computed when it is first asked for."""

    def __init__(self, programs: Mapping[str, Program], v: dict[Any, Any]) -> None:
        super().__init__()
        self._programs, self._v = programs, v

    def __contains__(self, name: object) -> bool:
        return name in self._programs

    def __missing__(self, name: str) -> Any:
        program = self._programs[name]
        try:
            value = self[name] = program.run(self._v)
        except CelError as e:
            raise CelError(f'composited variable "{name}" fails to evaluate: {e}') from None
        return value


class Conditions:
    """Match conditions: all must be true. A false one decides, even beside others that fail."""

    def __init__(self, given: Iterable[Object] | None, *, params: bool = False) -> None:
        self._programs: list[Callable[[dict[Any, Any]], Any]] = []
        for c in given or ():
            self._programs.append(_compiled(c["expression"], params))

    def __bool__(self) -> bool:
        return bool(self._programs)

    def met(self, v: dict[Any, Any]) -> bool:
        """Raises Failed where that cannot be told."""
        errors = []
        v = {**v, METER: Meter()}
        for run in self._programs:
            try:
                if run(v) is not True:
                    return False
            except OutOfBudget:
                raise
            except Failed as e:
                errors.append(str(e))
        if errors:
            raise Failed(aggregate(errors))
        return True


def _compiled(source: str, params: bool) -> Callable[[dict[Any, Any]], Any]:
    try:
        program = compile_for_admission(source, "bool", params=params)
    except CelProblem as e:
        why = str(e)

        def fail(v: dict[Any, Any]) -> Any:
            raise Failed(why)
        return fail
    return lambda v: evaluate(program, v, CONDITIONS_MAX)
