"""managedFields of updates and applies: ownership, conflicts, giving up, times, order."""

import pytest

from kubern.model import fields, fieldset
from kubern.model.object import clone
from kubern.model.schema import from_openapi, schema_for
from kubern.model.status import StatusError
from kubern.model.strict import tidy

T = [f"2024-01-01T00:00:0{i}Z" for i in range(10)]


def config(**data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


def template(*containers):
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}, "template": {"spec": {"containers": list(containers)}}}


def live(obj, uid="u"):
    out = clone(obj)
    out["metadata"]["uid"] = uid
    return out


def apply(before, obj, manager, now=T[1], force=False, **more):
    return live(fields.apply(before, obj, manager, force, obj["apiVersion"], now, schema=more.pop("schema", None), **more))


def owners(obj):
    return {(e["manager"], e["operation"]): e["fieldsV1"] for e in obj["metadata"].get("managedFields") or ()}


def test_create():
    pod = tidy({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}, "ownerReferences": [
        {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u"}]}, "spec": {"containers": [
            {"name": "c", "ports": [{"containerPort": 80}], "command": ["x"]}], "nodeSelector": {"a": "b"}, "tolerations": [{"key": "k"}]},
        "status": {"phase": "Pending"}}, schema_for("v1", "Pod"))
    entry, = fields.update(None, pod, "", "v1", T[0])
    assert {k: v for k, v in entry.items() if k != "fieldsV1"} == {
        "manager": "unknown", "operation": "Update", "apiVersion": "v1", "time": T[0], "fieldsType": "FieldsV1"}
    assert entry["fieldsV1"] == {
        "f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:ownerReferences": {".": {}, 'k:{"uid":"u"}': {}}},
        "f:spec": {"f:containers": {'k:{"name":"c"}': {".": {}, "f:command": {}, "f:name": {}, "f:ports": {".": {}, (
            'k:{"containerPort":80,"protocol":"TCP"}'): {".": {}, "f:containerPort": {}}}, "f:resources": {}}},
                   "f:nodeSelector": {}, "f:tolerations": {}}}


def test_update_takes_what_it_changes():
    before = live(config(k="v", l="w"))
    before["metadata"]["managedFields"] = fields.update(None, before, "one", "v1", T[0])
    after = live(config(k="x", m="n"))
    after["metadata"]["managedFields"] = fields.update(before, after, "two", "v1", T[1])
    assert owners(after) == {("one", "Update"): {"f:data": {}}, ("two", "Update"): {"f:data": {"f:k": {}, "f:m": {}}}}
    same = clone(after)
    assert fields.update(after, same, "three", "v1", T[2]) == after["metadata"]["managedFields"]
    reset = clone(after)
    reset["metadata"]["managedFields"] = [{}]
    assert fields.update(after, reset, "three", "v1", T[2]) == []
    untracked = live(config(k="v"))
    assert fields.update(untracked, live(config(k="w")), "m", "v1", T[1]) == []


def test_status_writes_own_status_alone():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "uid": "u", "labels": {"a": "b"}}, "spec": {"containers": []}, "status": {}}
    pod["metadata"]["managedFields"] = fields.update(None, pod, "one", "v1", T[0])
    new = clone(pod)
    new["spec"]["hostname"], new["status"]["phase"], new["metadata"]["labels"]["x"] = "h", "Running", "y"
    entries = fields.update(pod, new, "kubelet", "v1", T[1], "status")
    assert entries[-1]["subresource"] == "status"
    assert entries[-1]["fieldsV1"] == {"f:metadata": {"f:labels": {"f:x": {}}}, "f:status": {"f:phase": {}}}


def test_old_updaters_melt():
    obj = live(config(k="0"))
    obj["metadata"]["managedFields"] = fields.update(None, obj, "m0", "v1", T[0])
    for i in range(1, 14):
        new = live(config(**{**obj["data"], f"k{i}": "x"}))
        new["metadata"]["managedFields"] = fields.update(obj, new, f"m{i:02}", "v1", f"2024-01-01T00:01:{i:02}Z")
        obj = new
    names = [e["manager"] for e in obj["metadata"]["managedFields"]]
    assert len(names) == fields.UPDATE_MANAGERS_MAX and "ancient-changes" in names


def test_apply_and_conflict():
    a = apply(None, config(k="v", l="w"), "m", T[0])
    with pytest.raises(StatusError) as e:
        apply(a, config(k="x", l="y"), "n")
    assert e.value.code == 409
    assert e.value.message == 'Apply failed with 2 conflicts: conflicts with "m":\n- .data.k\n- .data.l'
    assert e.value.details["causes"][0] == {"reason": "FieldManagerConflict", "message": 'conflict with "m"', "field": ".data.k"}
    b = apply(a, config(k="x"), "n", force=True)
    assert b["data"] == {"k": "x", "l": "w"}
    assert owners(b) == {("m", "Apply"): {"f:data": {"f:l": {}}}, ("n", "Apply"): {"f:data": {"f:k": {}}}}
    shared = apply(b, config(l="w"), "n")
    assert shared["data"] == {"l": "w"}, "k was n's alone and is given up"
    assert owners(shared)["m", "Apply"] == {"f:data": {"f:l": {}}}


def test_conflict_names_updaters():
    a = live(config(k="v"))
    a["metadata"]["managedFields"] = fields.update(None, a, "creator", "v1", T[0])
    with pytest.raises(StatusError) as e:
        apply(a, config(k="w"), "n")
    assert e.value.message == 'Apply failed with 1 conflict: conflict with "creator" using v1: .data.k'


def test_apply_without_change_has_no_time_and_comes_first():
    a = live(config(k="v"))
    a["metadata"]["managedFields"] = fields.update(None, a, "creator", "v1", T[0])
    b = apply(a, config(k="v"), "m")
    assert [(e["manager"], e.get("time")) for e in b["metadata"]["managedFields"]] == [("m", None), ("creator", T[0])]


def test_untracked_objects_get_a_first_manager():
    b = apply(live(config(k="v", l="w")), config(k="v"), "m")
    assert owners(b)["before-first-apply", "Update"] == {"f:data": {".": {}, "f:k": {}, "f:l": {}}}


def test_lists_of_two_managers():
    a = apply(None, template({"name": "a", "image": "i"}, {"name": "b", "image": "i"}), "m", T[0])
    b = apply(a, template({"name": "x", "image": "i"}, {"name": "a", "image": "i"}), "n")
    assert [c["name"] for c in b["template"]["spec"]["containers"]] == ["x", "a", "b"]
    c = apply(b, template({"name": "a", "image": "i"}), "m")
    assert [x["name"] for x in c["template"]["spec"]["containers"]] == ["x", "a"], "b was m's alone"
    d = apply(c, template({"name": "x", "image": "i"}), "n")
    assert [x["name"] for x in d["template"]["spec"]["containers"]] == ["x", "a"], "a is still m's"


@pytest.mark.parametrize(("obj", "message"), [
    ({**config(k="v"), "nope": 1}, "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .nope: field not declared in schema"),
    (template({"name": "a", "image": "i"}, {"name": "a"}),
     'failed to create typed patch object (/t; /v1, Kind=PodTemplate): .template.spec.containers: duplicate entries for key [name="a"]'),
    (template({"name": "a", "image": 5}), 'failed to create typed patch object (/t; /v1, Kind=PodTemplate): .template.spec.containers[name="a"]'
     ".image: expected string, got &value.valueUnstructured{Value:5}"),
    ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "managedFields": []}}, "metadata.managedFields must be nil"),
])
def test_apply_refused(obj, message):
    with pytest.raises(StatusError) as e:
        apply(None, obj, "m")
    assert (e.value.code, e.value.message) == (400, message)
    with pytest.raises(StatusError, match="invalid object type: /v1, Kind=Secret"):
        fields.apply(None, {"apiVersion": "v1", "kind": "Secret", "metadata": {}}, "m", False, "v1", T[0], kind="ConfigMap")


def test_custom_resources():
    schema = from_openapi({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"], "items": {
            "type": "object", "properties": {"n": {"type": "string"}, "v": {"type": "integer"}}}},
        "whole": {"type": "array", "items": {"type": "string"}}, "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}})
    foo = {"apiVersion": "x/v1", "kind": "Foo", "metadata": {"name": "f"}}
    a = apply(None, {**foo, "spec": {"set": ["a"], "map": [{"n": "x", "v": 1}], "whole": ["w"], "free": {"q": [1]}}}, "m", T[0], schema=schema)
    b = apply(a, {**foo, "spec": {"set": ["b"], "map": [{"n": "y"}]}}, "n", schema=schema)
    assert b["spec"]["set"] == ["a", "b"] and [i["n"] for i in b["spec"]["map"]] == ["x", "y"]
    assert owners(b)["m", "Apply"] == {"f:spec": {"f:free": {"f:q": {}}, "f:map": {'k:{"n":"x"}': {".": {}, "f:n": {}, "f:v": {}}},
                                                  "f:set": {'v:"a"': {}}, "f:whole": {}}}
    with pytest.raises(StatusError, match=r"\.spec\.nope: field not declared in schema"):
        apply(None, {**foo, "spec": {"nope": 1}}, "m", schema=schema)


def test_scale():
    entries = fields.update(None, {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r"}, "spec": {"replicas": 1}}, "m", "apps/v1", T[0])
    path = ("spec", "replicas")
    shown = fields.to_scale(entries, path, "apps/v1")
    assert [(e["manager"], e["apiVersion"], e["fieldsV1"]) for e in shown] == [("m", "autoscaling/v1", {"f:spec": {"f:replicas": {}}})]
    taken = [{**shown[0], "manager": "hpa", "operation": "Apply", "subresource": "scale"}]
    back = fields.from_scale(entries, taken, path, "apps/v1")
    assert [(e["manager"], e["operation"], e["apiVersion"]) for e in back] == [("hpa", "Apply", "apps/v1")]


def test_body():
    row = None
    obj, _ = fields.parse_applied(b'{"a": 2.0, "b": "x"}', row, None)
    assert obj == {"a": 2, "b": "x"}
    assert fields.parse_applied(b"", row, None)[0] == {}
    assert fields.parse_applied(b"a: b\na: c\n", row, None)[1] == ['line 2: key "a" already set in map']
    for body, message in ((b"[1]", "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}"),
                          (b"a: b: c", "error converting YAML to JSON: yaml: mapping values are not allowed in this context")):
        with pytest.raises(StatusError) as e:
            fields.parse_applied(body, row, None)
        assert e.value.message == "error decoding YAML: " + message


def test_sets():
    a = fieldset.make([("f:a",), ("f:a", "f:b"), ("f:c", "f:d")])
    assert a == {"f:a": {".": {}, "f:b": {}}, "f:c": {"f:d": {}}}
    b = fieldset.make([("f:a",)])
    assert fieldset.difference(a, b) == {"f:a": {"f:b": {}}, "f:c": {"f:d": {}}}
    assert fieldset.without(a, b) == {"f:c": {"f:d": {}}}
    assert fieldset.intersection(a, b) == {"f:a": {}}
    assert fieldset.union(fieldset.difference(a, b), b) == a
    assert [fieldset.text(p) for p in fieldset.paths(a)] == [".a", ".a.b", ".c.d"]
    assert not fieldset.valid({"x": {}}) and fieldset.valid(a) and not fieldset.valid({"f:a": 1})
