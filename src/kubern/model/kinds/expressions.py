"""CEL expressions in objects: the one place through which validators ask whether an expression compiles.

Upstream: apiserver plugin/cel compile.go. The engine is loaded with the first expression: many objects have none.
"""

from __future__ import annotations

from collections.abc import Mapping

from kubern.model.invalid import forbidden, invalid
from kubern.model.kinds.checks import Errors


def compiles(expression: str, path: str, returns: str, *, params: bool = False, authorizer: bool = True, patch_types: bool = False,
             variables: Mapping[str, str] | None = None, shown: str | None = None) -> Errors:
    """Errors of one expression; `returns` is "bool", "string", "string or null", "any", "object" or "patch"; variables: name -> expression."""
    from kubern.model.cel import compile_error

    why = compile_error(expression, returns, params=params, authorizer=authorizer, patch_types=patch_types, variables=variables)
    if why:
        yield invalid(path, expression if shown is None else shown, why)


def device_selector(expression: str, path: str) -> Errors:
    """The CEL of a DRA device selector: `device` is the one variable, the answer is a bool."""
    from kubern.model.cel.devices import selector_error, too_complex

    why = selector_error(expression)
    if why:
        yield invalid(path, expression, why)
    elif too_complex(expression):
        yield forbidden(path, "too complex, exceeds cost limit")
