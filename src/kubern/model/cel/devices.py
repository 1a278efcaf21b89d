"""CEL of device selectors (dynamic resource allocation): one variable, `device`. Upstream: k8s.io/dynamic-resource-allocation/cel/compile.go."""

from __future__ import annotations

from functools import lru_cache

from kubern.model.cel import CelProblem, Program, compile_
from kubern.model.cel.cost import estimate
from kubern.model.cel.meter import CALL_MAX
from kubern.model.cel.types import DYN, Object, name

DEVICE = Object("kubernetes.DRADevice", {
    "driver": "string", "allowMultipleAllocations": "bool", "attributes": ("map", "string", ("map", "string", DYN)),
    "capacity": ("map", "string", ("map", "string", "kubernetes.Quantity"))})


@lru_cache(maxsize=1024)
def compile_selector(expression: str) -> Program:
    """Raises CelProblem as validation words it."""
    try:
        program = compile_(expression, {"device": DEVICE}, binds=True)
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


# how large the pieces of a device may be: elements of a map, characters of a text
_NAMES_MAX, _ID_MAX, _DOMAIN_MAX, _VALUE_MAX = 32, 32, 63, 64
_SIZES: dict[tuple[str, ...], int] = {(): 0, ("driver",): 63, ("allowMultipleAllocations",): 1}
for _name, _member in (("attributes", _VALUE_MAX), ("capacity", 0)):
    _SIZES |= {(_name,): _NAMES_MAX, (_name, "@keys"): _DOMAIN_MAX, (_name, "@values"): _NAMES_MAX, (_name, "@values", "@keys"): _ID_MAX,
               (_name, "@values", "@values"): _member}


def _size_at(path: tuple[str, ...]) -> int | None:
    found = _SIZES.get(path[1:])
    if found is None and path[1:2] == ("attributes",) and len(path) == 4:      # a field is an attribute by its name
        return _VALUE_MAX
    return found


def too_complex(expression: str) -> bool:
    """Whether a selector that compiles may cost more than one evaluation is allowed to."""
    return estimate(compile_selector(expression).tree, _size_at) > CALL_MAX
