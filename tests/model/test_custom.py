"""Custom values and the rules of their schemas."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.model.cel.schemas import rules, schema_errors
from kubern.model.custom import apply_defaults, blocking, matches, validate, value_errors
from kubern.model.object import Object


def spec(**properties: Object) -> Object:
    return {"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}}


def found(value: Any, schema: Object, old: Any = None) -> list[str]:
    return [e.text() for e in validate({"spec": value}, schema, None if old is None else {"spec": old})]


@pytest.mark.parametrize(("schema", "value", "expected"), [
    ({"type": "string"}, 1, ['spec.a: Invalid value: "integer": spec.a in body must be of type string: "integer"']),
    ({"type": "integer"}, True, ['spec.a: Invalid value: "boolean": spec.a in body must be of type integer: "boolean"']),
    ({"type": "integer"}, 1.0, []),
    ({"type": "number"}, 1, []),
    ({"type": "string", "nullable": True}, None, []),
    ({"type": "integer", "maximum": 3}, 4, ["spec.a: Invalid value: 4: spec.a in body should be less than or equal to 3"]),
    ({"type": "number", "multipleOf": 0.5}, 1.5, []),
    ({"type": "integer", "format": "int32"}, 1 << 40,
     ['<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.a']),
    ({"type": "string", "pattern": "^a+$"}, "b", ["spec.a: Invalid value: \"b\": spec.a in body should match '^a+$'"]),
    ({"type": "string", "maxLength": 1}, "ab", ["spec.a: Too long: may not be more than 1 byte"]),
    ({"type": "string", "enum": ["x", "y"]}, "z", ['spec.a: Unsupported value: "z": supported values: "x", "y"']),
    ({"type": "string", "format": "ipv4"}, "1.2.3", ['spec.a: Invalid value: "1.2.3": spec.a in body must be of type ipv4: "1.2.3"']),
    ({"type": "string", "format": "never-heard-of"}, "x", []),
    ({"x-kubernetes-int-or-string": True}, "5", []),
    ({"x-kubernetes-int-or-string": True}, 1.5, ['spec.a: Invalid value: "number": spec.a in body must be of type integer,string: "number"']),
    ({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}, ["a", "b", "a"], ['spec.a[2]: Duplicate value: "a"']),
    ({"type": "object", "required": ["x"]}, {}, ["spec.a.x: Required value"]),
    ({"type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True}, {"kind": "Pod"},
     ["spec.a.apiVersion: Required value"]),
    ({"oneOf": [{"required": ["x"]}, {"required": ["y"]}], "type": "object"}, {"x": 1, "y": 1},
     ['<nil>: Invalid value: "": "spec.a" must validate one and only one schema (oneOf). Found 2 valid alternatives']),
])
def test_values(schema: Object, value: Any, expected: list[str]) -> None:
    assert found({"a": value}, spec(a=schema)) == expected


def test_what_was_wrong_before_and_is_not_touched_is_let_be() -> None:
    items = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
             "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 10}}}}
    schema = spec(a={"type": "integer", "maximum": 10}, b={"type": "string"}, l=items)
    old = {"a": 50, "b": "x", "l": [{"k": "one", "v": 11}]}
    assert found({**old, "b": "y"}, schema, old) == []
    assert len(found({**old, "a": 51}, schema, old)) == 1
    assert found({**old, "l": [{"k": "two", "v": 1}, {"k": "one", "v": 11}]}, schema, old) == []
    assert len(found({**old, "l": [{"k": "two", "v": 11}]}, schema, old)) == 1


def test_defaults() -> None:
    schema = spec(a={"type": "string", "default": "x"}, b={"type": "object", "default": {}, "properties": {"c": {"type": "integer", "default": 1}}},
                  d={"type": "string", "nullable": True, "default": "x"}, e={"type": "string"})
    obj: Object = {"spec": {"a": None, "d": None, "e": None}}
    apply_defaults(obj, schema)
    assert obj == {"spec": {"a": "x", "b": {"c": 1}, "d": None}}
    again: Object = {"spec": {"b": {}}}
    apply_defaults(again, schema)
    again["spec"]["b"]["c"] = 2
    assert schema["properties"]["spec"]["properties"]["b"]["default"] == {}       # never shared with an object


def test_patterns_are_those_of_go() -> None:
    assert matches(r"^\d+$", "12")
    assert not matches(r"^\d+$", "12\n")
    assert not matches("(?=x)", "x")           # not Go


RULED = {"type": "object", "properties": {"spec": {
    "type": "object",
    "x-kubernetes-validations": [{"rule": "self.a < 20", "messageExpression": "'a is ' + string(self.a)"},
                                 {"rule": "self.b == oldSelf.b", "message": "b is fixed", "fieldPath": ".b", "reason": "FieldValueForbidden"}],
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "when": {"type": "string", "format": "date-time", "x-kubernetes-validations": [
        {"rule": "self > timestamp('2020-01-01T00:00:00Z')"}]},
        "x-y": {"type": "string"}, "l": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0"}]}}}}}}


def broken(new: Object, old: Object | None = None) -> tuple[list[str], list[str]]:
    made = rules(RULED)
    assert made is not None
    warnings: list[str] = []
    errors = made.errors({"spec": new}, {"spec": old}, warnings.append) if old is not None else made.errors({"spec": new})
    return [e.text() for e in errors], warnings


def test_rules() -> None:
    assert broken({"a": 1, "b": "x"}) == ([], [])
    assert broken({"a": 20, "b": "x", "l": [1, 0]})[0] == ["spec: Invalid value: a is 20", "spec.l[1]: Invalid value: 0: failed rule: self > 0"]
    assert broken({"a": 1, "b": "y"}, {"a": 1, "b": "x"})[0] == ["spec.b: Forbidden: b is fixed"]
    assert broken({"a": 1, "when": "2019-01-01T00:00:00Z"})[0][0].startswith('spec.when: Invalid value: "2019-01-01T00:00:00Z": failed rule')
    same = {"a": 30, "b": "x"}
    assert broken(same, same) == ([], ["spec: Invalid value: a is 30"])


def test_rules_are_not_run_over_what_has_no_shape() -> None:
    assert blocking(value_errors({"spec": []}, RULED))
    assert not blocking(value_errors({"spec": {"a": 1}}, RULED))


def test_rules_that_do_not_compile() -> None:
    schema = spec(a={"type": "integer", "x-kubernetes-validations": [{"rule": "self + 1"}, {"rule": "self == 'x'"}]},
                  l={"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}})
    first, second, third = (e.text() for e in schema_errors(schema, "root"))
    assert first.endswith("cel expression must evaluate to a bool")
    assert "found no matching overload for '_==_' applied to '(int, string)'" in second
    assert "oldSelf cannot be used on the uncorrelatable portion of the schema" in third


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("hostname", ["a", "a.bc", "YQ=="], ["a.b", "1.2.3.4", "2020-01-01", "-a"]), ("duration", ["1.5h", "3 days", "PT1H"], ["x", "", "1.5"]),
    ("creditcard", ["4111111111111111"], ["4111-1111-1111-1112", "9780306406157"]), ("ipv4", ["1.2.3.4", "01.2.3.4"], ["::1", "1.2.3"]),
    ("email", ["a@b.c"], ["mailto:a@b", "@"]), ("byte", ["YQ=="], ["", "YQ"])])
def test_formats(name: str, good: list[str], bad: list[str]) -> None:
    schema = spec(a={"type": "string", "format": name})
    assert [t for t in good if found({"a": t}, schema)] == []
    assert [t for t in bad if not found({"a": t}, schema)] == []


def test_nulls_go_where_they_may_not_be() -> None:
    value: Any = {"m": {"x": None, "y": 1}, "any": None, "nullable": None}
    apply_defaults(value, {"type": "object", "properties": {
        "m": {"type": "object", "additionalProperties": {"type": "integer"}}, "any": {"x-kubernetes-preserve-unknown-fields": True},
        "nullable": {"type": "string", "nullable": True}}})
    assert value == {"m": {"y": 1}, "nullable": None}


@pytest.mark.parametrize(("value", "by", "fits"), [(0.3, 0.1, True), (0.35, 0.1, False), (0.7, 0.1, True), (4, 3, False), (1, 0.1, True)])
def test_multiples(value: float, by: float, fits: bool) -> None:
    assert (found({"a": value}, spec(a={"type": "number", "multipleOf": by})) == []) is fits
