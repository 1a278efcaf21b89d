"""scale: what a Scale shows and who owns the replicas afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.inside import Api

APPS = "/apis/apps/v1/namespaces/default"
FOOS = "/apis/example.com/v1/namespaces/default/foos"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
REPLICA_SET = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r"}, "spec": {
    "replicas": 1, "selector": {"matchLabels": {"a": "b"}},
    "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}
SCALE = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "r"}, "spec": {"replicas": 2}}


def owners(obj: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(manager, subresource, has it a time?) of those who own the replicas."""
    return [(e["manager"], e.get("subresource", ""), "time" in e) for e in obj["metadata"]["managedFields"]
            if "f:replicas" in e["fieldsV1"].get("f:spec", {})]


@pytest.fixture
async def foos(api: Api) -> Api:
    """`api` with a custom resource that scales."""
    replicas = {"type": "object", "properties": {"replicas": {"type": "integer"}}}
    status, made = await api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {
        "metadata": {"name": "foos.example.com"}, "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"}, "versions": [{
                "name": "v1", "served": True, "storage": True, "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": replicas, "status": replicas}}},
                "additionalPrinterColumns": [{"name": "Wanted", "type": "integer", "jsonPath": ".spec.replicas"}]}]}})
    assert status == 201, made
    while (await api("GET", FOOS))[0] != 200:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return api


async def test_who_writes_through_a_scale_takes_the_replicas(api: Api) -> None:
    await api("POST", f"{APPS}/replicasets?fieldManager=m", REPLICA_SET)
    status, _ = await api("PUT", f"{APPS}/replicasets/r/scale?fieldManager=u", SCALE)
    assert status == 200
    _, got = await api("GET", f"{APPS}/replicasets/r")
    assert got["spec"]["replicas"] == 2 and owners(got) == [("u", "scale", False)]


async def test_nobody_owns_zero_replicas(api: Api) -> None:
    """A Scale does not show them."""
    await api("POST", f"{APPS}/replicasets?fieldManager=m", REPLICA_SET)
    await api("PATCH", f"{APPS}/replicasets/r/scale?fieldManager=u", {"spec": {"replicas": 0}}, type=MERGE)
    _, got = await api("GET", f"{APPS}/replicasets/r")
    assert got["spec"]["replicas"] == 0 and owners(got) == []


async def test_a_scale_that_changes_nothing_still_moves_the_ownership(api: Api) -> None:
    """The owner of the object and of its Scale are told apart by their apiVersion; after that nothing changes any more."""
    await api("POST", f"{APPS}/replicasets?fieldManager=m", REPLICA_SET)
    seen = []
    for _ in range(4):
        _, scale = await api("PATCH", f"{APPS}/replicasets/r/scale?fieldManager=u", {"spec": {"replicas": 1}}, type=MERGE)
        seen.append((scale["metadata"]["resourceVersion"], owners((await api("GET", f"{APPS}/replicasets/r"))[1])))
    assert [o for _, o in seen] == [[("m", "", False)], [], [], []]
    assert seen[0][0] != seen[1][0] == seen[2][0] == seen[3][0]


async def test_an_apply_where_nobody_is_known_conflicts_with_what_was_before(api: Api) -> None:
    await api("POST", f"{APPS}/replicasets", REPLICA_SET)
    await api("PATCH", f"{APPS}/replicasets/r", {"metadata": {"managedFields": [{}]}}, type=MERGE)
    status, why = await api("PATCH", f"{APPS}/replicasets/r/scale?fieldManager=h", SCALE, type=APPLY)
    assert status == 409
    assert why["message"] == 'Apply failed with 1 conflict: conflict with "before-first-apply" with subresource "scale" using autoscaling/v1: .spec.replicas'
    assert (await api("PATCH", f"{APPS}/replicasets/r/scale?fieldManager=h&force=true", SCALE, type=APPLY))[0] == 200
    assert owners((await api("GET", f"{APPS}/replicasets/r"))[1]) == [("h", "scale", False)]


async def test_the_table_of_a_scale(foos: Api) -> None:
    await foos("POST", f"{APPS}/replicasets", REPLICA_SET)
    _, table = await foos("GET", f"{APPS}/replicasets/r/scale", accept=TABLE)
    assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Desired", "Available", "Age"] and table["rows"][0]["cells"][:3] == ["r", 1, 0]
    await foos("POST", FOOS, {"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": {"replicas": 3}})
    _, table = await foos("GET", f"{FOOS}/f/scale", accept=TABLE)
    assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Wanted"] and table["rows"][0]["cells"] == ["f", 3]


async def test_a_custom_resource_without_replicas_is_given_some(foos: Api) -> None:
    await foos("POST", FOOS, {"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}})
    assert (await foos("GET", f"{FOOS}/f/scale"))[1]["message"] == 'the spec replicas field ".spec.replicas" does not exist'
    status, why = await foos("PATCH", f"{FOOS}/f/scale", {"metadata": {"labels": {}}}, type=MERGE)
    assert status == 400 and why["message"] == 'the spec replicas field ".spec.replicas" cannot be empty'
    status, scale = await foos("PUT", f"{FOOS}/f/scale", {**SCALE, "metadata": {"name": "f"}})
    assert status == 200 and scale["spec"] == {"replicas": 2}


async def test_apply_of_a_custom_resources_scale_looks_for_conflicts_before_it_is_refused(foos: Api) -> None:
    foo = {"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": {"replicas": 1}}
    await foos("PATCH", f"{FOOS}/f?fieldManager=m", foo, type=APPLY)
    scale = {**SCALE, "metadata": {"name": "f"}}
    status, why = await foos("PATCH", f"{FOOS}/f/scale?fieldManager=h", scale, type=APPLY)
    assert status == 409 and why["message"] == 'Apply failed with 1 conflict: conflict with "m": .spec.replicas'
    status, why = await foos("PATCH", f"{FOOS}/f/scale?fieldManager=h&force=true", scale, type=APPLY)
    assert status == 400 and why["message"].startswith("failed to convert new object (/f; autoscaling/v1, Kind=Scale) to proper version: ")
    status, _ = await foos("PATCH", f"{FOOS}/f/scale?fieldManager=h", {**scale, "spec": {"replicas": 1}}, type=APPLY)
    assert status == 200
