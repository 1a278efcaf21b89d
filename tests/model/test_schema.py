"""Schemas: every definition builds, facts of fields agree with the published definitions, CRDs make the same trees."""

from kubern.model import wire
from kubern.model.schema import LIST, RAW, STRUCT, definition, definitions, describe, from_openapi, schema_for, walk


def test_every_definition_builds():
    for name in definitions().names():
        assert definition(name).name == name
    pod = schema_for("v1", "Pod")
    ports = walk(pod, "spec.containers.ports")
    assert ports.code == LIST and ports.list_keys == ("containerPort", "protocol") and ports.patch_key == "containerPort"
    assert walk(pod, "spec.tolerations").go == "[]v1.Toleration"
    assert walk(pod, "spec.containers.env.value").go == "string"
    assert walk(pod, "spec.nope") is None
    assert "containers" in describe("io.k8s.api.core.v1.PodSpec")
    assert schema_for("v1", "Nope").preserve


def test_wire_facts_cover_the_definitions():
    missing = []
    for name in definitions().names():
        s = definition(name)
        if s.code != STRUCT or not s.props:
            continue
        known = {f.name for f in _flat(name)} | {"apiVersion", "kind"}
        missing += [f"{name}.{p}" for p in s.props if p not in known]
    assert [m for m in missing if "version.Info" not in m] == []


def _flat(name):
    for f in wire.fields(name):
        if f.name == "<":
            yield from _flat(f.type)
        else:
            yield f


def test_crd():
    s = from_openapi({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {
        "l": {"type": "array", "items": {"type": "string"}}, "e": {"type": "object", "x-kubernetes-embedded-resource": True}}}}})
    assert s.props["metadata"].name.endswith("ObjectMeta")
    assert walk(s, "spec.l").items.type == "string"
    assert walk(s, "spec.e").props["metadata"].name.endswith("ObjectMeta")
    assert s.props["spec"].preserve and s.raw is not None
    assert definition("io.k8s.apimachinery.pkg.runtime.RawExtension").code == RAW
