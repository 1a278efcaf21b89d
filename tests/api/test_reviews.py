"""Access reviews: what of them is checked, and what is only ignored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.inside import Api

REVIEWS = "/apis/authorization.k8s.io/v1"
PODS = {"verb": "list", "resource": "pods"}


async def ask(api: Api, **more: Any) -> dict[str, Any]:
    _, answer = await api("POST", f"{REVIEWS}/subjectaccessreviews", {"spec": {"user": "u", "resourceAttributes": {**PODS, **more}}})
    return answer


@pytest.mark.parametrize(("selector", "requirement", "wrong"), [
    ("fieldSelector", {"operator": "In", "values": ["x"]}, "requirements[0].key: Required value: must be specified"),
    ("fieldSelector", {"key": "a", "operator": "In"}, "requirements[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"),
    ("fieldSelector", {"key": "a", "operator": "Exists", "values": ["x"]}, "requirements[0].values: Forbidden: may not be specified when"),
    ("labelSelector", {"key": "a b", "operator": "Exists"}, 'requirements[0].key: Invalid value: "a b": name part must consist of'),
    ("labelSelector", {"key": "a", "operator": "In", "values": ["!"]}, 'requirements[0].values[0]: Invalid value: "!": a valid label must be'),
    ("labelSelector", {"key": "a", "operator": "In"}, "requirements[0].values: Required value: must be specified when `operator` is")])
async def test_requirements_are_checked(api: Api, selector: str, requirement: dict[str, Any], wrong: str) -> None:
    answer = await ask(api, **{selector: {"requirements": [requirement]}})
    assert answer["code"] == 422 and f"spec.resourceAttributes.{selector}.{wrong}" in answer["message"]


@pytest.mark.parametrize(("selector", "given", "how"), [
    ("fieldSelector", {"requirements": [{"key": "a", "operator": "New"}]}, "ignored"),
    ("fieldSelector", {"requirements": [{"key": "a", "operator": "In", "values": ["x", "y"]}]}, "ignored"),
    ("fieldSelector", {"requirements": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "In", "values": ["x"]}]}, "partially ignored"),
    ("fieldSelector", {"rawSelector": "a"}, "ignored"),
    ("fieldSelector", {"rawSelector": "a=b"}, ""),
    ("labelSelector", {"requirements": [{"key": "a", "operator": "New"}, {"key": "b", "operator": "Exists"}]}, "partially ignored"),
    ("labelSelector", {"rawSelector": "a in"}, "ignored"),
    ("labelSelector", {"requirements": [{"key": "a", "operator": "NotIn", "values": ["x", "y"]}]}, "")])
async def test_what_cannot_be_understood_widens_the_question(api: Api, selector: str, given: dict[str, Any], how: str) -> None:
    answer = await ask(api, **{selector: given})
    assert answer["status"].get("evaluationError", "") == (f"spec.resourceAttributes.{selector} {how} due to parse error" if how else "")


async def test_metadata_is_refused_as_it_stands(api: Api) -> None:
    body = {"metadata": {"name": "x"}, "spec": {"resourceAttributes": PODS}}
    _, answer = await api("POST", f"{REVIEWS}/selfsubjectaccessreviews", body)
    assert 'metadata: Invalid value: {"name":"x","managedFields":[{"manager":"test","operation":"Update","apiVersion":"authorization.k8s.io/v1","time":' \
        in answer["message"] and answer["message"].endswith(": must be empty")


async def test_an_answer_begins_with_what_it_is(api: Api) -> None:
    answer = await ask(api)
    assert list(answer) == ["kind", "apiVersion", "metadata", "spec", "status"]
    assert [e["manager"] for e in answer["metadata"]["managedFields"]] == ["test"]


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "PATCH", "DELETE"])
async def test_what_is_only_answered_has_no_names(api: Api, method: str) -> None:
    assert (await api(method, f"{REVIEWS}/subjectaccessreviews/x", {}))[0] == 404
    assert (await api("PUT", f"{REVIEWS}/subjectaccessreviews", {}))[0] == 405
