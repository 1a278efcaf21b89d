"""OpenAPI definitions: what a kind and its parts look like, in the v3 form. openapi.py puts them into documents and makes the v2 form of them.

In: a definition's name, or the row and schema of a custom resource. Out: a schema with descriptions, defaults and enumerations as upstream
publishes them. Published defaults are told, not applied: model/kinds does that.
Upstream: kube-openapi generators (`+default`, `+enum`), apiextensions-apiserver pkg/controller/openapi/builder.
"""

from __future__ import annotations

from typing import Any

from kubern.api import openapi_paths as paths
from kubern.model.enums import meaning, values_of
from kubern.model.resource import Resource
from kubern.model.schema import BOOL, INT32, INT64, LIST, MAP, STRING, STRUCT, Schema, definition, definition_of, definitions, describe

Doc = dict[str, Any]
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_CORE = "io.k8s.api.core.v1."
# What upstream's types declare beyond zero values: definition -> property -> default. List keys count on that of protocol.
_DEFAULTS: dict[str, Doc] = {
    _CORE + "ContainerPort": {"protocol": "TCP"},
    _CORE + "ServicePort": {"protocol": "TCP"},
    _CORE + "AzureDiskVolumeSource": {"cachingMode": "ReadWrite", "fsType": "ext4", "kind": "Shared", "readOnly": False},
    _CORE + "FileKeySelector": {"optional": False},
    _CORE + "GRPCAction": {"service": ""},
    _CORE + "ISCSIPersistentVolumeSource": {"iscsiInterface": "default"},
    _CORE + "ISCSIVolumeSource": {"iscsiInterface": "default"},
    _CORE + "RBDPersistentVolumeSource": {"keyring": "/etc/ceph/keyring", "pool": "rbd", "user": "admin"},
    _CORE + "RBDVolumeSource": {"keyring": "/etc/ceph/keyring", "pool": "rbd", "user": "admin"},
    _CORE + "ReplicationControllerSpec": {"minReadySeconds": 0, "replicas": 1},
    _CORE + "ScaleIOPersistentVolumeSource": {"fsType": "xfs", "storageMode": "ThinProvisioned"},
    _CORE + "ScaleIOVolumeSource": {"fsType": "xfs", "storageMode": "ThinProvisioned"},
    **{_CORE + name: {"name": ""} for name in (
        "ConfigMapEnvSource", "ConfigMapKeySelector", "ConfigMapProjection", "ConfigMapVolumeSource", "LocalObjectReference", "SecretEnvSource",
        "SecretKeySelector", "SecretProjection")},
    "io.k8s.api.autoscaling.v1.ScaleSpec": {"replicas": 0},
    "io.k8s.api.resource.v1.DeviceToleration": {"operator": "Equal"},
    "io.k8s.apimachinery.pkg.version.Info": dict.fromkeys(
        ("buildDate", "compiler", "gitCommit", "gitTreeState", "gitVersion", "goVersion", "major", "minor", "platform"), ""),
}


def render(name: str, group: str = "", version: str = "") -> Doc:
    """A definition in the v3 form; group and version are of the document it stands in."""
    raw = definitions().raw(name)
    text = describe(name)
    out: Doc = {}
    if text.get(""):
        out["description"] = text[""]
    if name == QUANTITY:
        out.setdefault("description", "An exact amount: a number, or text of a number with a suffix such as m, k, M, G, Ki, Mi, Gi.")
        out["oneOf"] = [{"type": "string"}, {"type": "number"}]
        return out
    if name == INT_OR_STRING:
        out.setdefault("description", "A 32-bit integer or a string.")
        out["format"] = "int-or-string"
        out["oneOf"] = [{"type": "integer"}, {"type": "string"}]
        return out
    schema = definition(name)
    for key, value in raw.items():
        if key == "properties":
            out[key] = {p: _property(node, text.get(p, ""), (schema.props or {}).get(p)) for p, node in value.items()}
        elif key == "x-kubernetes-group-version-kind" and len(value) > 2:
            out[key] = [g for g in value if not g["group"] or (g["group"], g["version"]) == (group, version)]
        else:
            out[key] = value
    for prop, default in _DEFAULTS.get(name, {}).items():
        out["properties"][prop]["default"] = default
    return out


def _property(node: Doc, description: str, schema: Schema | None) -> Doc:
    """A property of a struct: its description and the zero value that upstream shows as its default."""
    out = _node(node)
    if schema is not None:
        description += _enumerate(out, schema)
    by_value = schema is not None and schema.code == STRUCT and not schema.pointer
    if description or by_value:
        if "$ref" in out:
            out = {"allOf": [{"$ref": out["$ref"]}], **{k: v for k, v in out.items() if k != "$ref"}}
    if description:
        out["description"] = description
    if schema is not None and not schema.pointer:
        if by_value and "allOf" in out:
            out["default"] = {}
        elif schema.keep:
            zero = {STRING: "", BOOL: False, INT32: 0, INT64: 0}.get(schema.code)
            if zero is not None:
                out["default"] = zero
    return dict(sorted(out.items()))


def _enumerate(node: Doc, schema: Schema) -> str:
    """Puts the values of an enumerated type into a string's node, or its items'; what to add to the description of the field."""
    inner = schema
    while inner.code in (LIST, MAP) and (inner.items or inner.extra) is not None:
        node = node["items" if inner.items is not None else "additionalProperties"]
        inner = inner.items or inner.extra or inner
    values = values_of(inner.go) if inner.code == STRING else ()
    if not values:
        return ""
    node["enum"] = list(values)
    return meaning(inner.go) if inner is schema else ""


def _node(node: Doc) -> Doc:
    out: Doc = {}
    for key, value in node.items():
        if key == "$ref":
            out[key] = f"#/components/schemas/{value}"
        elif key == "items" or (key == "additionalProperties" and isinstance(value, dict)):
            out[key] = _node(value)
        else:
            out[key] = value
    return out


def _refs(value: Any, found: set[str]) -> None:
    if isinstance(value, dict):
        for k, v in value.items():
            if k == "$ref" and isinstance(v, str):
                found.add(v.rsplit("/", 1)[-1])
            else:
                _refs(v, found)
    elif isinstance(value, list):
        for v in value:
            _refs(v, found)


def closure(names: set[str], made: dict[str, Doc], group: str, version: str) -> dict[str, Doc]:
    """All definitions that some need; `made` are those of CRDs."""
    out: dict[str, Doc] = {}
    todo = sorted(names, reverse=True)
    while todo:
        name = todo.pop()
        if name in out:
            continue
        if name in made:
            out[name] = made[name]
        elif name in definitions():
            out[name] = render(name, group, version)
        else:
            continue
        found: set[str] = set()
        _refs(out[name], found)
        todo += [f for f in found if f not in out]
    return dict(sorted(out.items()))


# ---------------------------------------------------------------- definitions of custom resources

def model_name(group: str, version: str, kind: str) -> str:
    """The definition of a kind: a built-in's own, else as CRDs are named: com.example.v1.Foo."""
    api_version = f"{group}/{version}" if group else version
    return definition_of(api_version, kind) or ".".join([*reversed(group.split(".")), version, kind])


def custom_definitions(row: Resource, schema: Schema | None) -> dict[str, Doc]:
    """The definitions of a CRD's kind and its list."""
    name = model_name(row.group, row.version, row.kind)
    raw = dict(schema.raw or {}) if schema is not None else {}
    gvk = [{"group": row.group, "kind": row.kind, "version": row.version}]
    base = definitions().raw(paths.META + "Status")["properties"]
    texts = describe(paths.META + "Status")
    own = {p: {**base[p], "description": texts[p]} for p in ("apiVersion", "kind")}
    meta = {"description": "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/"
                           "api-conventions.md#metadata", "allOf": [{"$ref": f"#/components/schemas/{paths.META}ObjectMeta"}]}
    shape = {**raw, "type": raw.get("type") or "object", "x-kubernetes-group-version-kind": gvk}
    if raw.get("properties") or not raw.get("x-kubernetes-preserve-unknown-fields"):
        shape["properties"] = {**_embedded(raw.get("properties") or {}), **own, "metadata": meta}
    items = {"description": f"List of {row.plural}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
             "items": {"$ref": f"#/components/schemas/{name}"}, "type": "array"}
    list_meta = {"description": "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/"
                                "api-conventions.md#types-kinds", "allOf": [{"$ref": f"#/components/schemas/{paths.META}ListMeta"}]}
    listed = {"description": f"{row.list_kind or row.kind + 'List'} is a list of {row.kind}", "type": "object", "required": ["items"],
              "properties": {**own, "items": items, "metadata": list_meta},
              "x-kubernetes-group-version-kind": [{**gvk[0], "kind": row.list_kind or row.kind + "List"}]}
    return {name: shape, model_name(row.group, row.version, row.kind + "List"): listed}


def _embedded(node: Any) -> Any:
    """Embedded objects have apiVersion, kind and metadata, said or not."""
    if isinstance(node, list):
        return [_embedded(v) for v in node]
    if not isinstance(node, dict):
        return node
    out = {k: _embedded(v) if k not in ("default", "enum", "example") else v for k, v in node.items()}
    if out.get("x-kubernetes-embedded-resource") is True:
        out["properties"] = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, **(out.get("properties") or {}),
                             "metadata": {"$ref": f"#/components/schemas/{paths.META}ObjectMeta"}}
    return out
