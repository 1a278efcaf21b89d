"""What evaluations cost, and where they are cut off."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.api.admission.expressions import Conditions, Failed
from kubern.model.cel import METER, Cancelled, Meter, compile_, schema_rules
from kubern.model.cel.devices import compile_selector, too_complex
from kubern.model.cel.meter import CALL_MAX

TYPES = {"x": "int", "o": "dyn", "s": "string", "t": "string", "l": ("list", "int")}


def cost(expression: str, **variables: Any) -> int:
    v: dict[Any, Any] = {**variables, METER: Meter()}
    compile_(expression, TYPES).run(v)
    total: int = v[METER].total
    return total


@pytest.mark.parametrize(("expression", "units"), [
    ("1", 0), ("x", 1), ("x == 1", 2), ("o.a.b", 3), ("has(o.a)", 1), ("x == 1 || o.a.b == 2", 2), ("x == 2 || o.a.b == 2", 6),
    ("x == 1 ? 1 : o.a.b", 2), ("[1, 2]", 0), ("[x, 2]", 11), ("{'a': 1}", 0), ("{'a': x}", 31), ("[x][0]", 13),
    ("s + s", 2 + 20), ("dyn(s) + dyn(s)", 5), ("int('5') + x", 2), ("x in [1, 2]", 1), ("s.contains('aaaaaaaaaaaaaaaaaaaaa')", 1 + 10 * 3),
    ("s.matches('a+')", 1 + 11), ("1 in l", 1 + 3), ("l.all(i, i > 0)", 2 + 3 * 5), ("l.exists(i, i == 1)", 2 + 6),
    ("l.map(i, i + 1)", 2 + 3 * 14), ("l.filter(i, i > 1)", 2 + 3 * 3 + 2 * 12), ("lists.range(3)", 14), ("l.sort()", 1 + 18 + 11),
])
def test_units(expression: str, units: int) -> None:
    assert cost(expression, x=1, o={"a": {"b": 2}}, s="a" * 100, l=[1, 2, 3]) == units


# `s.contains(t)`: a tenth of one's length times a tenth of the other's
def texts(units: int) -> dict[str, str]:
    return {"s": "a" * (units // 10), "t": "b" * 1000}


MUCH = "s.contains(t)"


def test_an_expression_that_costs_too_much_is_cut_off_whatever_stands_beside_it() -> None:
    for expression in (MUCH, f"{MUCH} || true", f"[1].exists(x, {MUCH}) || true", "l.all(x, l.all(y, l.all(z, x + y + z >= 0)))"):
        with pytest.raises(Cancelled):
            cost(expression, l=list(range(80)), **texts(2 * CALL_MAX))


def rules(*expressions: str, message: str = "") -> Any:
    schema = {"type": "object", "properties": {"s": {"type": "string"}, "t": {"type": "string"}}}
    return schema_rules({**schema, "x-kubernetes-validations": [
        {"rule": e, **({"messageExpression": message} if message else {})} for e in expressions]})


def test_rules_stop_where_one_costs_too_much_or_all_together() -> None:
    one = "!self.s.contains(self.t)"
    assert [e.text() for e in rules(one, "false")(texts(2 * CALL_MAX), None, print)] == [
        '<nil>: Invalid value: "object": \'operation cancelled: actual cost limit exceeded\': no further validation rules will be run due to call cost '
        f"exceeds limit for rule: {one}"]
    assert [e.text() for e in rules(*[one] * 12, "false")(texts(CALL_MAX * 9 // 10), None, print)] == [
        '<nil>: Invalid value: "object": validation failed due to running out of cost budget, no further validation rules will be run']


def test_a_message_that_costs_too_much() -> None:
    found = rules("false", "true", message="string(self.s.contains(self.t))")(texts(2 * CALL_MAX), None, print)
    assert [e.text() for e in found] == [
        '<nil>: Invalid value: "object": no further validation rules will be run due to call cost exceeds limit for messageExpression: '
        '"string(self.s.contains(self.t))"']


def test_match_conditions_have_a_budget_of_their_own() -> None:
    conditions = Conditions([{"name": f"c{i}", "expression": "!object.s.contains(object.t)"} for i in range(4)])
    assert conditions.met({"object": texts(1000)})
    with pytest.raises(Failed, match="validation failed due to running out of cost budget, no further validation rules will be run"):
        conditions.met({"object": texts(CALL_MAX * 9 // 10)})


@pytest.mark.parametrize(("expression", "too_much"), [
    ("device.driver == 'a'", False), ("device.attributes['a'].b == 1 && device.capacity['a'].c.compareTo(quantity('1')) > 0", False),
    ("cel.bind(d, device.attributes['a'], d.x && d.y)", False),
    ("device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, true))))", True),
])
def test_selectors_of_devices(expression: str, too_much: bool) -> None:
    compile_selector(expression)
    assert too_complex(expression) is too_much
