"""What a real API server answers to some 850 rules over one schema: whether they are let in and in which words refused, and what they come to.

golden_cel.json: the schema, a value, and for each expression E the refusal of the rule `type(E) == int`, and what a rule that shows E says of the value.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubern.model.cel import CelProblem, compile_, schema_errors, schema_rules
from kubern.model.cel.schemas import type_of

GOLDEN = orjson.loads((Path(__file__).parent / "golden_cel.json").read_bytes())
# expression -> why the answer differs
DIFFERENT = {
    "'%s'.format([{1: 2, true: 3}])": "1 and true are one key to a dict",
    "[dyn([1]), dyn([2])].max()": "the overload is not named",
    "double('1_0')": "refused",
    "self.ms.transformList(k, v, k + v)": "a map has no order there",
}


def refusal(rule: str) -> str:
    schema = {"type": "object", "properties": {"spec": {**GOLDEN["schema"], "x-kubernetes-validations": [{"rule": rule}]}}}
    return "\n".join(e.text().partition(": ")[2] for e in schema_errors(schema, "spec.validation.openAPIV3Schema"))


def shown(expression: str) -> str:
    rule = {"rule": f"dyn({expression}) == dyn('zz!')", "messageExpression": f"'%s'.format([{expression}])"}
    schema = {"type": "object", "properties": {"spec": {**GOLDEN["schema"], "x-kubernetes-validations": [rule]}}}
    (error,) = schema_rules(schema)({"spec": GOLDEN["value"]}, None, lambda text: None)
    return str(error.text().partition(": ")[2])


@cache
def variables() -> dict[str, Any]:
    return {"self": type_of(GOLDEN["schema"])}


@pytest.mark.parametrize("part", range(10))
def test_rules_are_refused_in_the_same_words(part: int) -> None:
    different = {}
    for expression, wanted, _ in GOLDEN["answers"][part::10]:
        got = refusal(f"type({expression}) == int")
        if got != wanted and expression not in DIFFERENT:
            different[expression] = (wanted, got)
    assert different == {}


@pytest.mark.parametrize("part", range(10))
def test_expressions_come_to_the_same(part: int) -> None:
    different = {}
    for expression, _, wanted in GOLDEN["answers"][part::10]:
        if wanted is not None and expression not in DIFFERENT:
            got = shown(expression)
            if got != wanted:
                different[expression] = (wanted, got)
    assert different == {}


def test_functions_of_patches_are_known_to_patches_alone() -> None:
    with pytest.raises(CelProblem):
        compile_("jsonpatch.escapeKey('a')", variables())
