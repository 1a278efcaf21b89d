"""What rules may cost at most: factors by which upstream's estimate exceeds the budget of one rule, ten million."""

import re

import pytest

from kubern.model.cel.schemas import schema_errors
from kubern.model.object import Object

TEXT: Object = {"type": "string"}
SHORT: Object = {"type": "string", "maxLength": 40}
FIELDS: Object = {
    "s": TEXT, "l": {"type": "array", "items": TEXT}, "li": {"type": "array", "items": {"type": "integer"}}, "sm": SHORT,
    "lm": {"type": "array", "maxItems": 100, "items": SHORT}, "m": {"type": "object", "additionalProperties": TEXT},
    "mm": {"type": "object", "maxProperties": 50, "additionalProperties": SHORT}, "i": {"type": "integer"}, "io": {"x-kubernetes-int-or-string": True}}


def found(rule: str, each: bool = True, **around: Object) -> list[str]:
    node: Object = {"type": "object", "properties": FIELDS, "x-kubernetes-validations": [{"rule": rule}]}
    if around:
        node = {**around["of"], next(iter(k for k in ("items", "additionalProperties") if k in around["of"])): node}
    return [e.text() for e in schema_errors({"type": "object", "properties": {"spec": node}}, "schema", each)]


def factor(rule: str, **around: Object) -> str:
    for text in found(rule, **around):
        m = re.search(r"estimated rule cost exceeds budget by factor of (.*) \(try", text)
        if m:
            return m[1]
    return ""


@pytest.mark.parametrize("rule", [
    "self.s.matches('^a$')", "self.li.all(x, x > 0)", "self.lm.all(x, x.startsWith('a'))", "self.lm.all(x, self.lm.exists(y, x == y))",
    "self.mm.all(k, self.mm[k].matches('abc'))", "has(self.s) && self.s == 'a'", "type(self.io) == string && self.io.matches('a')", "self.i > 5",
])
def test_let_in(rule: str) -> None:
    assert found(rule) == []


@pytest.mark.parametrize("rule", [
    "self.l.all(x, self.l.all(y, x == y))", "self.s.contains(self.s)", "self.m.all(k, self.m[k].matches('a+'))",
    "self.l.map(x, x.size()).all(y, self.l.all(z, z.matches('q')))", "sets.equivalent(self.l, self.l)", "self.l.distinct().size() > 0",
])
def test_far_too_expensive(rule: str) -> None:
    assert factor(rule) == "more than 100x"


def test_a_rule_below_a_list_counts_for_every_item() -> None:
    assert factor("self.s == 'a'", of={"type": "array", "maxItems": 100, "items": {}}) == ""
    assert factor("type(self.io) == string && self.io.matches('a')", of={"type": "array", "maxItems": 1000, "items": {}}) == "31.5x"
    assert factor("self.lm.all(x, self.mm.all(k, x == k))", of={"type": "array", "maxItems": 1000, "items": {}}) != ""


def test_all_together() -> None:
    errors = found("self.l.all(x, self.l.all(y, x == y))", each=False)
    assert errors[0] == ("schema.properties[spec].x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost "
                         "limit for entire OpenAPIv3 schema")
    assert errors[1].startswith("schema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by "
                                "factor of more than 100x (try")
