"""CEL: what expressions give, what is wrong with those that do not compile or fail, in upstream's words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kubern.model.cel import CelError, CelProblem, Lazy, Object, compile_, compile_error
from kubern.model.cel.library import LENGTH_MAX

POD = {"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [{"name": f"c{i}", "image": "i"} for i in range(3)]}}


def run(source: str, **variables: Any) -> Any:
    names = {"object": POD, **variables}
    return compile_(source, dict.fromkeys(names, "dyn")).run(names)


@pytest.mark.parametrize(("source", "value"), [
    ("object.spec.containers.all(c, c.name.startsWith('c'))", True), ("object.spec.containers.map(c, c.image == 'i', c.name)", ["c0", "c1", "c2"]),
    ("has(object.metadata.zz) || has(object.metadata.name)", True), ("object.?metadata.?labels.?zz.orValue('x')", "x"),
    ("[1, 2, 3].exists_one(x, x > 2)", True), ("{'a': 1}.exists(k, k == 'a')", True), ("{'a': 1}.transformMap(k, v, v + 1)", {"a": 2}),
    ("[1, 2].transformList(i, v, i * v)", [0, 2]), ("[3, 1, 2].sort()", [1, 2, 3]), ("[1, [2]].flatten()", None), ("lists.range(3).sum()", 3),
    ("1/0 == 1 || true", True), ("[0, 1].exists(x, 1/x == 1)", True), ("dyn(1) == 1.0 && 1 < 2.5", True),
    ("quantity('1Gi').isGreaterThan(quantity('1Mi'))", True), ("string(ip('::1'))", "::1"), ("ip.isCanonical('::1')", True),
    ("cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')", True), ("url('https://a:80/b?c=d').getQuery()", {"c": ["d"]}),
    ("semver('1.2.3-rc.1').isLessThan(semver('v1.2', true))", None), ("format.dns1123Label().validate('A').hasValue()", True),
    ("'%s has %d%%'.format([dyn('a'), dyn(3)])", "a has 3%"), ("'a,b'.split(',').join('-').upperAscii()", "A-B"),
    ("timestamp('2020-03-01T00:00:00Z') - duration('24h') == timestamp('2020-02-29T00:00:00Z')", True),
    ("duration('1h30m').getMinutes()", 90), ("type(1) == int && type(null) == null_type", True), ("b'ab'.size() + 'é'.size()", 3),
    ("'abc'.find('b.') + 'x'", "bcx"), ("jsonpatch.escapeKey('a/b~c')", None), ("-7 / 2 == -3 && -7 % 2 == -1", True),
    ("optional.none().or(optional.of(1)).value()", 1), ("[?optional.none(), 1]", None), ("object.metadata.labels['a'] in ['b']", True),
])
def test_values(source: str, value: Any) -> None:
    try:
        got = run(source)
    except CelProblem:
        assert value is None
        return
    if value is not None:
        assert got == value


@pytest.mark.parametrize(("source", "message"), [
    ("object.zz", "no such key: zz"), ("object.spec.containers[7]", "index out of bounds: 7"), ("1 / 0", "division by zero"),
    ("9223372036854775807 + 1", "integer overflow"), ("int('x')", "type conversion error from 'string' to 'int'"),
    ("dyn('a') + dyn(1)", "no such overload"), ("[].max()", None), ("optional.none().value()", "optional.none() dereference"),
    ("lists.range(1000).all(a, lists.range(1000).all(b, a + b >= 0))", "operation cancelled: actual cost limit exceeded"),
])
def test_failures(source: str, message: str | None) -> None:
    if message is None:
        return
    with pytest.raises(CelError) as e:
        run(source)
    assert str(e.value) == message


@pytest.mark.parametrize(("source", "message"), [
    ("nope.x == 1", "ERROR: <input>:1:1: undeclared reference to 'nope' (in container '')\n | nope.x == 1\n | ^"),
    ("foo(object)", "ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')\n | foo(object)\n | ...^"),
    ("1 + 'a'", "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 + 'a'\n | ..^"),
    ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
    ("true &&\n1 == 'a'", "ERROR: <input>:2:3: found no matching overload for '_==_' applied to '(int, string)'\n | 1 == 'a'\n | ..^"),
    ("object.x +", "ERROR: <input>:1:11: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', "
                   "NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | object.x +\n | ..........^"),
])
def test_problems(source: str, message: str) -> None:
    with pytest.raises(CelProblem) as e:
        compile_(source, {"object": "dyn"})
    assert str(e.value) == message


def test_types_with_fields() -> None:
    item = Object("item", {"v": "int"})
    spec = Object("spec", {"a": "int", "list": ("list", item), "when": "google.protobuf.Timestamp", "ratio": "double"})
    assert compile_("self.list.map(i, i.v)", {"self": spec}).type == ("list", "int")
    data = {"a": 1, "when": "2020-01-01T00:00:00Z", "ratio": 2}
    assert compile_("self.when.getFullYear() == 2020 && self.ratio / 4.0 == 0.5", {"self": spec}).run({"self": data}) is True
    for source, message in (("self.b == 1", "1:5: undefined field 'b'"), ("self.a.x > 1", "1:7: type 'int' does not support field selection"),
                            ("self.a == 'x'", "1:8: found no matching overload for '_==_' applied to '(int, string)'")):
        with pytest.raises(CelProblem, match=message.replace("(", r"\(").replace(")", r"\)")):
            compile_(source, {"self": spec})


def test_admission_expressions() -> None:
    assert compile_error("request.operation == 'CREATE' && authorizer.requestResource.check('create').allowed()", "bool") == ""
    assert compile_error("1 + 1", "bool") == "must evaluate to bool but got int"
    assert compile_error("1", "string or null") == "must evaluate to one of [string null_type] but got int"
    assert compile_error("variables.a > 1", "bool", variables={"a": "1"}) == ""
    assert "undefined field 'b'" in compile_error("variables.b", "bool", variables={"a": "1"})
    assert compile_error('[JSONPatch{op: "add", path: "/a", value: 1}]', "patch", patch_types=True) == ""
    assert compile_error('Object{spec: Object.spec{replicas: 1}}', "object", patch_types=True) == ""
    assert "undeclared reference to 'JSONPatch'" in compile_error('[JSONPatch{op: "add"}]', "any")
    assert "undeclared reference to 'params'" in compile_error("params.x == 1", "bool")


def test_lazy_variables_and_bounds() -> None:
    asked: list[int] = []
    program = compile_("false && v == 1", {"v": "dyn"})
    assert program.run({"v": Lazy(lambda: asked.append(1))}) is False
    assert asked == []
    assert LENGTH_MAX < 1 << 30
    for source in ("(" * 400 + "1" + ")" * 400, "!" * 10_000 + "true", "[" * 300 + "]" * 300, "1" + " + 1" * 20_000):
        try:
            compile_(source, {})
        except CelProblem as e:
            assert "recursion" in str(e) or "Syntax" in str(e)


@pytest.mark.parametrize(("source", "why"), [
    ("ip('1.2.3')", 'IP Address "1.2.3" parse error during conversion from string: ParseAddr("1.2.3"): IPv4 address too short'),
    ("ip('1.2.3.256')", 'IP Address "1.2.3.256" parse error during conversion from string: ParseAddr("1.2.3.256"): IPv4 field has value >255'),
    ("cidr('a')", "network address parse error during conversion from string: network address parse error during conversion from string: "
                  "netip.ParsePrefix(\"a\"): no '/'"),
    ("cidr('10.0.0.0/33')", "network address parse error during conversion from string: network address parse error during conversion from string: "
                            'netip.ParsePrefix("10.0.0.0/33"): prefix length out of range')])
def test_addresses_that_are_none(source: str, why: str) -> None:
    with pytest.raises(CelError, match=re.escape(why)):
        compile_(source, {}).run({})


@pytest.mark.parametrize(("source", "why"), [
    ("'%s and %s'.format(['a']) == ''", "ERROR: <input>:1:19: index 1 out of range"),
    ("'%s%%'.format(['a', 'b']) == ''", "too many arguments supplied to string.format (expected 1, got 2)"),
    ("'%d'.format(['a']) == ''", "error during formatting: decimal clause can only be used on integers, was given string"),
    ("'%z'.format(['a']) == ''", 'could not parse formatting clause: unrecognized formatting clause "z"')])
def test_formats_have_their_arguments(source: str, why: str) -> None:
    with pytest.raises(CelProblem, match=re.escape(why)):
        compile_(source, {})


def test_what_is_formatted_may_be_of_many_types() -> None:
    assert compile_("'%s is %d'.format(['a', 5])", {}).run({}) == "a is 5"
