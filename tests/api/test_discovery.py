"""Discovery and OpenAPI documents against upstream's own, where those are at hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from kubern.api import openapi
from kubern.api.discovery import Catalog, legacy_resources, version_rank
from kubern.model.resource import Resource
from kubern.model.resources import RESOURCES
from kubern.model.schema import from_openapi

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
HAVE = Catalog(list(RESOURCES), [], {})
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no published documents at {DATA}")


def without_cbor(value):
    if isinstance(value, dict):
        return {k: without_cbor(v) for k, v in value.items() if "cbor" not in k}
    return [without_cbor(v) for v in value] if isinstance(value, list) else value


@needs_data
@pytest.mark.parametrize("key", [k for k in openapi.index_keys(HAVE) if not k.startswith(".")])
def test_openapi_v3(key):
    """Everything but the wording of descriptions is as upstream's published document, which is made without enumerations and a version."""
    want = without_cbor(json.loads((DATA / "openapi-v3" / f"{key.replace('/', '__')}_openapi.json").read_text()))
    want["info"]["version"] = "1.36"
    differences: list[str] = []
    compare(want, json.loads(json.dumps(openapi.document(SimpleNamespace(), HAVE, key))), key, differences)
    assert differences == []


def compare(want, got, path, out):
    if isinstance(want, dict) and isinstance(got, dict):
        for k in want.keys() | got.keys():
            if k in want and k in got:
                compare(want[k], got[k], f"{path}/{k}", out)
            elif k != "enum":
                out.append(f"{path}/{k} {'missing' if k in want else 'extra'}")
    elif isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        for i, (a, b) in enumerate(zip(want, got, strict=True)):
            compare(a, b, f"{path}/{i}", out)
    elif want != got and not path.endswith("description"):
        out.append(f"{path}: {want!r} != {got!r}")


def test_enumerations():
    pod_spec = openapi.render("io.k8s.api.core.v1.PodSpec")["properties"]
    assert pod_spec["restartPolicy"]["enum"] == ["Always", "Never", "OnFailure"]
    assert pod_spec["restartPolicy"]["description"].endswith('\n\nPossible enum values:\n - `"Always"`\n - `"Never"`\n - `"OnFailure"`')
    families = openapi.render("io.k8s.api.core.v1.ServiceSpec")["properties"]["ipFamilies"]
    assert families["items"]["enum"] == ["", "IPv4", "IPv6"]
    assert "Possible" not in families["description"]
    assert "enum" not in pod_spec["hostname"]
    swagger = openapi.swagger(SimpleNamespace(), HAVE)["definitions"]
    assert swagger["io.k8s.api.apps.v1.DeploymentStrategy"]["properties"]["type"]["enum"] == ["Recreate", "RollingUpdate"]


@needs_data
def test_legacy_documents():
    for (group, version), rows in {(g, v): HAVE.list_of(g, v) for g, vs in {"": HAVE.core, **HAVE.groups}.items() for v in vs}.items():
        name = f"apis__{group}__{version}.json" if group else f"api__{version}.json"
        want = {r["name"]: r for r in json.loads((DATA / "discovery" / name).read_text())["resources"]}
        got = {r["name"]: r for r in legacy_resources(rows)}
        for entry in (*want.values(), *got.values()):
            entry.pop("storageVersionHash", None)       # of a few kinds upstream's two published forms differ
        assert got == want


def test_custom_rows():
    rows = [Resource("example.com", v, "foos", "Foo", custom=True) for v in ("v1beta1", "v2", "v1", "v1alpha1")]
    have = Catalog([*RESOURCES, *rows], [{"spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "service": {}}}], {})
    assert list(have.groups)[-2:] == ["example.com", "metrics.k8s.io"]
    assert list(have.groups["example.com"]) == ["v2", "v1", "v1beta1", "v1alpha1"]
    assert legacy_resources(have.list_of("example.com", "v1"))[0]["verbs"][0] == "delete"
    body, tag = have.aggregated(False)
    doc = json.loads(body)
    assert doc["items"][-1]["versions"] == [{"version": "v1beta1", "freshness": "Stale"}]
    assert doc["items"][-2]["versions"][0]["resources"][0]["responseKind"] == {"group": "example.com", "version": "v2", "kind": "Foo"}
    assert tag.startswith('"') and len(tag) == 130
    schema = from_openapi({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "integer"}}}}})
    made = openapi.custom_definitions(rows[1], schema)
    assert made["com.example.v2.Foo"]["x-kubernetes-group-version-kind"] == [{"group": "example.com", "kind": "Foo", "version": "v2"}]
    assert made["com.example.v2.Foo"]["properties"].keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert "com.example.v2.FooList" in made


def test_versions_are_ranked():
    names = ["v1alpha1", "foo", "v10", "v2", "v1", "v11beta2", "v1beta1", "v10beta3"]
    assert sorted(names, key=version_rank) == ["v10", "v2", "v1", "v11beta2", "v10beta3", "v1beta1", "v1alpha1", "foo"]


def test_swagger_is_whole():
    doc = openapi.swagger(SimpleNamespace(), HAVE)
    text = json.dumps(doc)
    assert "#/components/" not in text and doc["swagger"] == "2.0"
    refs = {part.split('"')[0] for part in text.split("#/definitions/")[1:]}
    assert refs <= doc["definitions"].keys()
    assert doc["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["type"] == "string"


def test_what_many_operations_take_stands_once_in_the_v2_document() -> None:
    """Under upstream's names: they end in a hash of the parameter as Go writes it."""
    doc = openapi.swagger(SimpleNamespace(), HAVE)
    shared = doc["parameters"]
    assert {"allowWatchBookmarks-HC2hJt-J", "body-2Y1dVQaQ", "command-Py3eQybp", "fieldManager-Qy4HdaTW", "fieldManager-7c6nTn1T"} <= set(shared)
    assert shared["watch-XNNPZGbK"]["description"].startswith("Watch for changes to the described resources")
    pods = doc["paths"]["/api/v1/namespaces/{namespace}/pods"]
    assert {"$ref": "#/parameters/allowWatchBookmarks-HC2hJt-J"} in pods["get"]["parameters"]
    assert {"dryRun", "fieldValidation"} <= {p.get("name") for p in pods["post"]["parameters"]}
    scale = doc["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]
    assert {p["description"] for p in scale["parameters"] if p.get("name") == "name"} == {"name of the Scale"}
