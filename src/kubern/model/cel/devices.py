"""CEL of device selectors (dynamic resource allocation): one variable, `device`. Upstream: k8s.io/dynamic-resource-allocation/cel/compile.go."""

from __future__ import annotations

from functools import lru_cache

from kubern.model.cel import CelProblem, Program, compile_
from kubern.model.cel.types import DYN, Object, name

DEVICE = Object("kubernetes.DRADevice", {
    "driver": "string", "allowMultipleAllocations": "bool", "attributes": ("map", "string", ("map", "string", DYN)),
    "capacity": ("map", "string", ("map", "string", "kubernetes.Quantity"))})


@lru_cache(maxsize=1024)
def compile_selector(expression: str) -> Program:
    """Raises CelProblem as validation words it."""
    try:
        program = compile_(expression, {"device": DEVICE})
    except CelProblem as e:
        raise CelProblem(f"compilation failed: {e}") from None
    if program.type not in ("bool", DYN):
        raise CelProblem(f"must evaluate to bool or the unknown type, not {name(program.type)}")
    if program.broken:
        raise CelProblem(f"program instantiation failed: {program.broken}")
    return program


def selector_error(expression: str) -> str:
    """What is wrong with a selector, "" if nothing."""
    try:
        compile_selector(expression)
    except CelProblem as e:
        return str(e)
    return ""
