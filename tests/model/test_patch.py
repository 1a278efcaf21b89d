"""Patches of the three types: results, quirks, refusals in upstream's words."""

import orjson
import pytest

from kubern.model.jsonpatch import OPERATIONS_MAX
from kubern.model.patch import apply_patch, patched
from kubern.model.schema import schema_for
from kubern.model.status import StatusError

TEMPLATE = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t", "labels": {"a": "b"}}, "template": {"metadata": {}, "spec": {
    "containers": [{"name": "a", "image": "i:1", "resources": {}, "env": [{"name": "E", "value": "1"}], "ports": [{"containerPort": 80}]},
                   {"name": "b", "image": "i:1", "resources": {}}],
    "volumes": [{"name": "v", "emptyDir": {}}], "restartPolicy": "Always"}}}
MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v", "l": "w"}}


def patch(type_, patch_, obj=MAP, validation="Warn"):
    body = patch_ if isinstance(patch_, bytes) else orjson.dumps(patch_)
    before = orjson.dumps(obj)
    out = patched(type_, obj, body, schema_for("v1", obj["kind"]), kind=obj["kind"], api_version="v1", validation=validation)
    assert orjson.dumps(obj) == before, "the live object was changed"
    return out


def containers(patch_):
    return patch("strategic", {"template": {"spec": patch_}}, TEMPLATE)[0]["template"]["spec"]


@pytest.mark.parametrize(("operations", "data"), [
    ([{"op": "add", "path": "/data/n", "value": "1"}], {"k": "v", "l": "w", "n": "1"}),
    ([{"op": "replace", "path": "/data/missing", "value": "1"}], {"k": "v", "l": "w", "missing": "1"}),
    ([{"op": "move", "from": "/data/k", "path": "/data/m"}], {"l": "w", "m": "v"}),
    ([{"op": "copy", "from": "/data/k", "path": "/data/l"}], {"k": "v", "l": "v"}),
    ([{"op": "copy", "from": "/data/none", "path": "/data/l"}], {"k": "v", "l": ""}),
    ([{"op": "test", "path": "/data/k", "value": "v"}, {"op": "remove", "path": "/data/k"}], {"l": "w"}),
    ([{"op": "test", "path": "/data/none", "value": None}], {"k": "v", "l": "w"}),
    ([{"op": "add", "path": "/data/a~1b", "value": "1"}], {"k": "v", "l": "w", "a/b": "1"}),
    ([{"op": "replace", "path": "", "value": {"kind": "ConfigMap", "apiVersion": "v1", "data": {"n": "1"}}}], {"n": "1"}),
])
def test_json_patch(operations, data):
    assert patch("json", operations)[0]["data"] == data


@pytest.mark.parametrize(("path", "op", "names"), [
    ("/template/spec/containers/-", "add", ["a", "b", "z"]), ("/template/spec/containers/0", "add", ["z", "a", "b"]),
    ("/template/spec/containers/-1", "replace", ["a", "z"]), ("/template/spec/containers/01", "replace", ["a", "z"]),
    ("/template/spec/containers/1", "remove", ["a"]),
])
def test_json_patch_lists(path, op, names):
    out, _ = patch("json", [{"op": op, "path": path, "value": {"name": "z", "image": "i"}}], TEMPLATE)
    assert [c["name"] for c in out["template"]["spec"]["containers"]] == names


@pytest.mark.parametrize("operations", [
    [{"op": "remove", "path": "/data/zz"}], [{"op": "test", "path": "/data/k", "value": "x"}], [{"op": "frob", "path": "/data/k"}], [{"path": "/a"}],
    [{"op": "add", "path": "", "value": {}}], [{"op": "add", "path": "/nope/deep/x", "value": 1}], [{"op": "move", "path": "/data/x"}],
    [{"op": "test", "path": "/metadata/name", "value": True}],
])
def test_json_patch_refused(operations):
    with pytest.raises(StatusError) as e:
        patch("json", operations)
    assert (e.value.code, e.value.reason, e.value.details) == (422, "Invalid", {})


def test_limits():
    with pytest.raises(StatusError) as e:
        patch("json", b"[" + b",".join([b"{}"] * (OPERATIONS_MAX + 1)) + b"]")
    assert e.value.code == 413
    double = [{"op": "copy", "from": "/data", "path": "/data/x"}] * 40
    with pytest.raises(StatusError):
        patch("json", double)
    with pytest.raises(StatusError) as e:
        patch("merge", b'{"a":' * 5000 + b"1" + b"}" * 5000)
    assert e.value.code in (400, 422)


@pytest.mark.parametrize(("type_", "body", "message"), [
    ("json", b"{}", "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"),
    ("merge", b"[1]", "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"),
    ("merge", b"null", "Invalid JSON Patch"), ("merge", b"", "error decoding patch: unexpected end of JSON input"),
    ("strategic", b"[1]", "json: cannot unmarshal array into Go value of type map[string]interface {}"),
    ("strategic", b'{"data":{"$retainKeys":"x"}}', "invalid patch format of retainKeys"),
])
def test_bodies_refused(type_, body, message):
    with pytest.raises(StatusError) as e:
        patch(type_, body)
    assert (e.value.code, e.value.message) == (400, message)


def test_merge():
    out, warnings = patch("merge", b'{"data":{"k":null,"n":"1"},"nope":1,"metadata":{"labels":{"a":"1","a":"2"}}}')
    assert out["data"] == {"l": "w", "n": "1"} and out["metadata"]["labels"] == {"a": "2"}
    assert warnings == ['duplicate field "metadata.labels.a"', 'unknown field "nope"']
    with pytest.raises(StatusError) as e:
        patch("merge", {"nope": 1}, validation="Strict")
    assert e.value.message == (' "" is invalid: patch: Invalid value: "{\\"apiVersion\\":\\"v1\\",\\"data\\":{\\"k\\":\\"v\\",\\"l\\":\\"w\\"},\\"kind\\":'
                               '\\"ConfigMap\\",\\"metadata\\":{\\"name\\":\\"a\\"},\\"nope\\":1}": strict decoding error: unknown field "nope"')
    with pytest.raises(StatusError, match=r"cannot unmarshal array into Go struct field ConfigMap\.data of type map"):
        patch("merge", {"data": ["a"]})


def test_strategic_lists():
    assert [c["name"] for c in containers({"containers": [{"name": "z", "image": "i"}]})["containers"]] == ["z", "a", "b"]
    assert containers({"containers": [{"name": "a", "env": [{"name": "F", "value": "2"}]}]})["containers"][0]["env"] == [
        {"name": "F", "value": "2"}, {"name": "E", "value": "1"}]
    assert [c["name"] for c in containers({"containers": [{"name": "a", "$patch": "delete"}]})["containers"]] == ["b"]
    assert [c["name"] for c in containers({"containers": [{"name": "q", "image": "i"}, {"$patch": "replace"}]})["containers"]] == ["q"]
    assert [c["name"] for c in containers({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]})["containers"]] == ["b", "a"]
    assert "volumes" not in containers({"volumes": None})
    kept = containers({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "x"}}]})["volumes"]
    assert kept == [{"name": "v", "configMap": {"name": "x"}}]
    ports = containers({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "w"}, {"containerPort": 81}]}]})["containers"][0]["ports"]
    assert sorted(p["containerPort"] for p in ports) == [80, 81] and {"containerPort": 80, "name": "w"} in ports


def test_strategic_primitive_lists():
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "finalizers": ["x/a", "x/b"]}}
    assert patch("strategic", {"metadata": {"finalizers": ["x/c"]}}, obj)[0]["metadata"]["finalizers"] == ["x/c", "x/a", "x/b"]
    assert patch("strategic", {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/a"]}}, obj)[0]["metadata"]["finalizers"] == ["x/b"]


@pytest.mark.parametrize(("patch_", "code", "message"), [
    ({"containers": [{"image": "i:2"}]}, 400, "map: map[image:i:2] does not contain declared merge key: name"),
    ({"containers": [{"name": "a", "$patch": "frob"}]}, 400, "unknown patch type: frob in map: map[$patch:frob name:a]"),
    ([{"x": 1}], 422, ' "" is invalid: patch: Invalid value: "map[template:map[spec:[map[x:1]]]]": cannot restore struct from: slice'),
    ({"hostNetwork": "yes"}, 422, ' "" is invalid: patch: Invalid value: "map[template:map[spec:map[hostNetwork:yes]]]": unrecognized type: bool'),
])
def test_strategic_refused(patch_, code, message):
    with pytest.raises(StatusError) as e:
        containers(patch_)
    assert (e.value.code, e.value.message) == (code, message)


def test_raw_form():
    assert apply_patch("merge", {"spec": {"a": 1}}, b'{"spec":{"b":2}}', schema_for("x/v1", "Nope")) == {"spec": {"a": 1, "b": 2}}


@pytest.mark.parametrize("name", ["kind", "apiVersion"])
def test_a_custom_object_whose_name_is_no_text(name):
    """It is read as one without: refused later as of another kind."""
    live = {"apiVersion": "x/v1", "kind": "Nope", "metadata": {"name": "n"}}
    out, _ = patched("merge", live, orjson.dumps({name: ["a"]}), schema_for("x/v1", "Nope"), kind="Nope", api_version="x/v1", custom=True)
    assert name not in out


@pytest.mark.parametrize("body", [
    b'{"data":{"a":"1"}}', b'{ "data" : {"a":"1"}}', b'{"data":{"a":"1","a":"2"}}', b'{"data":{"a":"1"},"data":{"b":"2"}}', b'{"data":{"a":"\\":"}}',
    b'{"metadata":{"generation":2}}', b'{"metadata":{"generation":2.0}}', b'{"metadata":{"generation":9223372036854775808}}', b'{"data":null}', b"null",
])
@pytest.mark.parametrize("type_", ["merge", "strategic"])
def test_quick_and_careful_reading_agree(type_, body):
    def outcome(body):
        try:
            return patch(type_, body)
        except StatusError as e:
            return e.code, e.message
    assert outcome(body) == outcome(body.replace(b":", b" :", 1)), "a space before a colon makes the quick reader stand back"
