"""JSONPath of printer columns."""

import pytest

from kubern.model.jsonpath import JSONPathError, find, parse, text, values

OBJ = {"metadata": {"labels": {"a.b/c": "x"}, "name": "n"}, "spec": {"n": 3, "items": [{"name": "p", "v": 1}, {"name": "q", "v": 2}]},
       "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}}


@pytest.mark.parametrize(("path", "found"), [
    (".metadata.name", ["n"]), ("{.metadata.name}", ["n"]), (".metadata.labels['a.b/c']", ["x"]), (r".metadata.labels.a\.b/c", ["x"]),
    (".spec.items[*].name", ["p", "q"]), (".spec.items[0].name", ["p"]), (".spec.items[-1].v", [2]), (".spec.items[0:1].v", [1]),
    ('.status.conditions[?(@.type=="Ready")].status', ["True"]), (".status.conditions[?(@.type=='None')].status", []),
    (".spec.items[?(@.v>1)].name", ["q"]), (".spec.missing.deep", []), ("..name", ["n", "p", "q"]), (".spec.items[0,1].v", [1, 2]),
    (".spec.items[7].v", []), (".spec.n.x", []), ("$.spec.n", [3]),
])
def test_find(path, found):
    assert values(path, OBJ) == found
    assert find(path)(OBJ) == found


@pytest.mark.parametrize("path", [".spec.[", ".a[b]", ".a[1:2:3:4]", "." + "a" * 5000, ".a[?(@.b==]"])
def test_refused(path):
    with pytest.raises(JSONPathError):
        parse(path)


def test_text():
    assert [text(v) for v in ("a", 3, True, {"b": 1, "a": [2]}, 1.5)] == ["a", "3", "true", '{"a":[2],"b":1}', "1.5"]
