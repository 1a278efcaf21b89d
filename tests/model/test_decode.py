"""Decoding bodies: what is refused and in which words, what is dropped, made canonical, warned about."""

import orjson
import pytest

from kubern.model.decode import decode
from kubern.model.resources import by_path
from kubern.model.schema import from_openapi, schema_for
from kubern.model.status import StatusError
from kubern.model.strict import Fault, typed


def read(plural, body, *, group="", version="v1", validation="Warn", type_="application/json"):
    row = by_path[(group, version, plural)]
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else orjson.dumps(body)
    return decode(data, type_, row, schema_for(row.api_version, row.kind), validation)


def pod(**spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


CANNOT = '{0} in version "v1" cannot be handled as a {0}: '
UNRECOGNIZED = "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: "


@pytest.mark.parametrize(("plural", "body", "message"), [
    ("configmaps", "", UNRECOGNIZED.format("ConfigMap") + "unexpected end of JSON input (<empty>)"),
    ("configmaps", "[]", UNRECOGNIZED.format("ConfigMap") + 'json: cannot unmarshal array into Go value of type struct { APIVersion string '
     '"json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" } (5b5d)'),
    ("configmaps", '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}} x',
     UNRECOGNIZED.format("ConfigMap") + """invalid character 'x' after top-level value ({"apiVersion":"v1","kind":"Con ...)"""),
    ("configmaps", '{"apiVersion":"v1","kind":"ConfigMap","metadata":"x"}',
     CANNOT.format("ConfigMap") + "json: cannot unmarshal string into Go struct field ConfigMap.metadata of type v1.ObjectMeta"),
    ("configmaps", '{"data":["a"]}',
     CANNOT.format("ConfigMap") + "json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string"),
    ("configmaps", '{"data":{"a":1}}',
     CANNOT.format("ConfigMap") + "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"),
    ("configmaps", '{"metadata":{"labels":{"a":1}}}',
     CANNOT.format("ConfigMap") + "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
    ("pods", pod(tolerations="x"),
     CANNOT.format("Pod") + "json: cannot unmarshal string into Go struct field PodSpec.spec.tolerations of type []v1.Toleration"),
    ("pods", pod(hostNetwork="yes"), CANNOT.format("Pod") + "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool"),
    ("services", {"spec": {"ports": [{"port": 1, "targetPort": True}]}},
     CANNOT.format("Service") + "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32"),
    ("secrets", '{"data":{"k":"not base64!"}}', CANNOT.format("Secret") + "illegal base64 data at input byte 3"),
    ("secrets", '{"apiVersion":"v1","kind":"ConfigMap"}',
     'ConfigMap in version "v1" cannot be handled as a Secret: converting (v1.ConfigMap) to (core.Secret): unknown conversion'),
    ("secrets", '{"apiVersion":"v2","kind":"Secret"}', 'Secret in version "v2" cannot be handled as a Secret: no kind "Secret" is registered for '
     'version "v2" in scheme "pkg/api/legacyscheme/scheme.go:30"'),
    ("secrets", '{"metadata":{"creationTimestamp":"nope"}}', CANNOT.format("Secret")
     + 'parsing time "nope" as "2006-01-02T15:04:05Z07:00": cannot parse "nope" as "2006"'),
    ("pods", {"spec": {"containers": [{"resources": {"limits": {"cpu": ""}}}]}},
     CANNOT.format("Pod") + "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
])
def test_refused(plural, body, message):
    with pytest.raises(StatusError) as e:
        read(plural, body)
    assert (e.value.code, e.value.message) == (400, message)


@pytest.mark.parametrize(("number", "text"), [("2.0", "number 2.0"), ("99999999999", "number 99999999999"), ('"x"', "string")])
def test_int32(number, text):
    with pytest.raises(StatusError) as e:
        read("deployments", f'{{"spec":{{"replicas":{number}}}}}', group="apps")
    assert e.value.message == CANNOT.format("Deployment") + f"json: cannot unmarshal {text} into Go struct field DeploymentSpec.spec.replicas of type int32"


@pytest.mark.parametrize("body", ["null", "{}", '{"kind":"Secret"}', '{"apiVersion":"v1"}'])
def test_identity_is_defaulted(body):
    assert read("secrets", body)[0] == {"apiVersion": "v1", "kind": "Secret", "metadata": {}}


BODY = '{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a","nope":1},"bogus":{"x":1,"x":2},"data":{}}'
TWICE = '{"metadata":{"name":"b","labels":{"a":"1","a":"2"}},"type":"Opaque","type":"Opaque"}'


def test_unknown_and_duplicate_fields():
    obj, warnings = read("secrets", BODY)
    assert obj == {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}
    assert warnings == ['unknown field "metadata.nope"', 'unknown field "bogus"']
    obj, warnings = read("secrets", TWICE)
    assert obj["metadata"]["labels"] == {"a": "2"}
    assert warnings == ['duplicate field "metadata.labels.a"', 'duplicate field "type"']
    assert read("secrets", BODY, validation="Ignore")[1] == []
    with pytest.raises(StatusError) as e:
        read("secrets", TWICE, validation="Strict")
    assert e.value.message.endswith('strict decoding error: duplicate field "metadata.labels.a", duplicate field "type"')
    obj, warnings = read("configmaps", '{"data":{"k":"1","k":"2"},"data":{"z":"3"}}')
    assert obj["data"] == {"k": "2", "z": "3"}
    assert warnings == ['duplicate field "data.k"', 'duplicate field "data"']


FOO = from_openapi({"type": "object", "properties": {"spec": {"type": "object", "properties": {
    "a": {"type": "string"}, "open": {"type": "object", "additionalProperties": True},
    "e": {"type": "object", "x-kubernetes-embedded-resource": True, "x-kubernetes-preserve-unknown-fields": True}}}}})


def custom(**fields):
    return typed({"apiVersion": "e.com/v1", "kind": "Foo", **fields}, FOO, True)


def test_custom_unknown_fields_come_sorted_after_those_of_metadata():
    obj, errors = custom(zoo=1, spec={"b": 2, "a": "1", "e": {"metadata": {"odd": 1, "name": "x"}, "z": 1}}, extra=1, metadata={"name": "f", "bogus": 1})
    assert errors == ['unknown field "metadata.bogus"', 'unknown field "extra"', 'unknown field "spec.b"', 'unknown field "zoo"',
                      'unknown field "spec.e.metadata.odd"']
    assert obj["spec"] == {"a": "1", "e": {"metadata": {"name": "x"}, "z": 1}}


@pytest.mark.parametrize(("fields", "message"), [
    ({"metadata": "x"}, "json: cannot unmarshal string into Go value of type v1.ObjectMeta"),
    ({"metadata": {"labels": {"a": 5}}}, "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"),
    ({"spec": {"e": {"metadata": {"name": "A", "labels": {"a": 5}}}}}, 'spec.e.metadata: Invalid value: {"labels":{"a":5},"name":"A"}: '
     "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"),
    ({"spec": {"e": {"kind": 5}}}, "spec.e.kind: Invalid value: 5: must be a string"),
])
def test_custom_metadata(fields, message):
    with pytest.raises(Fault) as e:
        custom(**fields)
    assert str(e.value) == message


def test_yaml():
    obj, _ = read("configmaps", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yy\ndata:\n  a: 'x'\n  multi: |\n    l1\n    l2\n",
                  type_="application/yaml")
    assert obj["data"] == {"a": "x", "multi": "l1\nl2\n"}
    with pytest.raises(StatusError) as e:
        read("configmaps", "metadata:\n  name: y\n", type_="application/yaml")
    assert e.value.message.endswith("json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string")
    with pytest.raises(StatusError) as e:
        read("configmaps", "a: [1\nb: {", type_="application/yaml")
    assert e.value.message == ("the object provided is unrecognized (must be of type ConfigMap): yaml: line 1: did not find expected ',' or ']' "
                               "(613a205b310a623a207b)")
    with pytest.raises(StatusError) as e:
        read("configmaps", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yy\ndatum:\n  a: 'x'\nimmutable: true\nimmutable: false\n",
             type_="application/yaml", validation="Strict")
    assert e.value.message.endswith('strict decoding error: yaml: unmarshal errors:\n  line 8: key "immutable" already set in map, '
                                    'unknown field "datum"')


def test_yaml_bomb_is_bounded():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    with pytest.raises(StatusError) as e:
        read("configmaps", bomb, type_="application/yaml")
    assert "excessive aliasing" in e.value.message


def test_shape():
    """Empty values go, ever-present ones come, pointers keep their zeros, quantities and times are canonical."""
    obj, _ = read("pods", pod(hostNetwork=False, automountServiceAccountToken=False, nodeSelector={}, tolerations=None, restartPolicy="",
                              activeDeadlineSeconds=0, affinity={}))
    assert obj["spec"] == {"containers": [{"name": "c", "image": "i", "resources": {}}], "automountServiceAccountToken": False,
                           "activeDeadlineSeconds": 0, "affinity": {}}
    assert obj["status"] == {}
    obj, _ = read("pods", {"metadata": {"creationTimestamp": None, "deletionTimestamp": "2024-01-01T02:00:00+02:00"},
                           "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}}, "command": []}]}})
    assert obj["metadata"] == {"deletionTimestamp": "2024-01-01T00:00:00Z"}
    assert obj["spec"]["containers"][0] == {"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}
    obj, _ = read("roles", {"rules": []}, group="rbac.authorization.k8s.io")
    assert obj["rules"] is None


def test_depth_and_numbers_are_bounded():
    for deep in ("[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, '{"data":' + "[" * 3000 + "]" * 3000 + "}"):
        with pytest.raises(StatusError) as e:
            read("configmaps", deep)
        assert e.value.code == 400
    with pytest.raises(StatusError):
        read("deployments", '{"spec":{"replicas":' + "9" * 10000 + "}}", group="apps")
    assert read("configmaps", b'{"data":{"a":"\xff"}}')[0]["data"] == {"a": "\ufffd"}


@pytest.mark.parametrize("text", [b"[" * 100_000, b"- " * 100_000, b"{a: " * 100_000, b"? " * 100_000, b"a:\n" + b"".join(b" " * i + b"a:\n" for i in range(1, 1400)),  # noqa: E501
                                  b"x: &a [&b [*a]]"])
def test_yaml_that_would_overrun_the_stack_is_refused(text: bytes) -> None:
    from kubern.model import yamltree

    with pytest.raises(yamltree.YAMLFault):
        yamltree.parse(text)


def test_half_a_surrogate_pair_is_read_as_in_go() -> None:
    from kubern.model import gojson

    assert gojson.parse(rb'["\ud800", "\ud83d\ude00", "\\ud800", "\udc00x"]') == ["�", "\U0001f600", "\\ud800", "�x"]


@pytest.mark.parametrize(("plural", "group", "body", "field"), [
    ("ingresses", "networking.k8s.io", {"spec": {"rules": [{"http": {"paths": [{"path": 5}]}}]}},
     "HTTPIngressPath.spec.rules.IngressRuleValue.http.paths.path"),
    ("pods", "", {"spec": {"containers": [{"livenessProbe": {"httpGet": {"path": 5}}}]}},
     "HTTPGetAction.spec.containers.livenessProbe.ProbeHandler.httpGet.path"),
    ("pods", "", {"spec": {"volumes": [{"configMap": {"name": 5}}]}}, "ConfigMapVolumeSource.spec.volumes.VolumeSource.configMap.LocalObjectReference.name"),
    ("customresourcedefinitions", "apiextensions.k8s.io", {"spec": {"versions": [{"schema": {"openAPIV3Schema": {"items": {"properties": {
        "a": {"title": 5}}}}}}]}}, "JSONSchemaProps.spec.versions.schema.openAPIV3Schema.items.properties.title"),
])
def test_the_path_names_embedded_types(plural, group, body, field):
    with pytest.raises(StatusError) as e:
        read(plural, body, group=group)
    assert e.value.message.endswith(f"json: cannot unmarshal number into Go struct field {field} of type string")


def test_null_in_a_map_of_bytes_is_empty():
    assert read("configmaps", {"binaryData": {"a": None}})[0]["binaryData"] == {"a": ""}


def test_a_version_may_begin_with_a_slash():
    assert read("configmaps", {"apiVersion": "/v1", "kind": "ConfigMap"})[0]["apiVersion"] == "v1"


def test_custom_objects_that_no_schema_describes_are_emptied():
    obj, errors = custom(spec={"open": {"x": {"y": 1}, "z": 2}, "a": [{"x": 1}]})
    assert obj["spec"] == {"a": [{}], "open": {"x": {}, "z": 2}}
    assert errors == ['unknown field "spec.a[0].x"', 'unknown field "spec.open.x.y"']
