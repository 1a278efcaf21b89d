"""Label and field selectors: what they match, and upstream's words for what they refuse."""

import pytest

from kubern.model.selector import from_label_selector, parse_fields, parse_labels
from kubern.model.status import StatusError

LABEL_FORM = ("must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
              "(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')")


@pytest.mark.parametrize(("text", "labels", "match"), [
    ("", {}, True), ("a=b", {"a": "b"}, True), ("a=b", {}, False), ("a==b,c!=d", {"a": "b", "c": "x"}, True), ("a!=b", {}, True),
        ("a in (x, y)", {"a": "y"}, True), ("a notin (x)", {}, True), ("a", {"a": ""}, True), ("!a", {"a": ""}, False), ("a>3", {"a": "4"}, True),
    ("a<3", {"a": "x"}, False), ("a=", {"a": ""}, True),
    ("in=b", {"in": "b"}, True), ("a in ()", {"a": ""}, True), ("a in (,)", {"a": ""}, True),
])
def test_matches(text, labels, match):
    assert parse_labels(text).matches(labels) is match


@pytest.mark.parametrize(("text", "message"), [
    ("app=x=y", "found '=', expected: ',' or 'end of string'"),
    ("app in x", "unable to parse requirement: found 'x' expected: '('"),
    ("app in (x", "unable to parse requirement: found '', expected: ',' or ')'"),
    ("-bad", f'unable to parse requirement: <nil>: Invalid value: "-bad": name part {LABEL_FORM}'),
    ("n>x", """unable to parse requirement: values[0]: Invalid value: "x": for 'Gt', 'Lt' operators, the value must be an integer"""),
    ("app exists", "unable to parse requirement: found 'exists', expected: in, notin, =, ==, !=, gt, lt"),
    (",", "found ',', expected: !, identifier, or 'end of string'"),
    ("!app=x", "found '=', expected: ',' or 'end of string'"),
    ("a,,b", "found ',', expected: identifier after ','"),
])
def test_refused(text, message):
    with pytest.raises(StatusError) as e:
        parse_labels(text)
    assert (e.value.code, e.value.message) == (400, message)


def test_label_selector_objects():
    assert not from_label_selector(None).matches({})
    assert from_label_selector({}).matches({})
    s = from_label_selector({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]})
    assert s.matches({"a": "b"}) and not s.matches({"a": "b", "c": ""})
    assert str(s) == "a=b,!c"
    with pytest.raises(StatusError):
        from_label_selector({"matchExpressions": [{"key": "c", "operator": "Is"}]})


def test_fields():
    s = parse_fields("metadata.name=a,spec.nodeName!=n")
    assert s.matches_object({"metadata": {"name": "a"}, "spec": {"nodeName": "m"}})
    assert s.exact("metadata.name") == "a"
    assert parse_fields(r"a=x\,y").terms == (("a", True, "x,y"),)
    with pytest.raises(StatusError, match="invalid selector: 'abc'; can't understand 'abc'"):
        parse_fields("abc")
