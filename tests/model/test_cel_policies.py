"""Type checking of ValidatingAdmissionPolicies: the warnings that upstream's controller writes for the same policies."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.controllers.policystatus import CRDS, reconcile
from kubern.model.cel.policies import warnings
from kubern.model.object import Object

CRD: Object = {"metadata": {"name": "zoos.example.com"}, "spec": {
    "group": "example.com", "names": {"plural": "zoos", "kind": "Zoo"}, "versions": [{"name": "v1", "served": True, "schema": {"openAPIV3Schema": {
        "type": "object", "properties": {"spec": {"type": "object", "properties": {
            "n": {"type": "integer"}, "x": {"x-kubernetes-int-or-string": True}, "when": {"type": "string", "format": "date-time"}}}}}}}]}}


def policy(expressions: list[str], *matches: tuple[str, str, str], **spec: Any) -> Object:
    rules = [{"apiGroups": [g], "apiVersions": [v], "resources": r.split(","), "operations": ["CREATE"]} for g, v, r in matches]
    return {"kind": "ValidatingAdmissionPolicy", "apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": "p", "generation": 2}, "spec": {
        "matchConstraints": {"resourceRules": rules}, "validations": [{"expression": e} for e in expressions], **spec}}


PODS, DEPLOYMENTS, ZOOS = ("", "v1", "pods"), ("apps", "v1", "deployments"), ("example.com", "v1", "zoos")


def pointed(gvk: str, expression: str, column: int, why: str) -> str:
    return f"{gvk}: ERROR: <input>:1:{column}: {why}\n | {expression}\n | {'.' * (column - 1)}^\n"


@pytest.mark.parametrize(("match", "gvk", "expression", "column", "why"), [
    (DEPLOYMENTS, "apps/v1, Kind=Deployment", "object.spec.replicas == 'a'", 22, "found no matching overload for '_==_' applied to '(int, string)'"),
    (DEPLOYMENTS, "apps/v1, Kind=Deployment", "object.foo == 1", 7, "undefined field 'foo'"),
    (PODS, "/v1, Kind=Pod", "object.spec.containers.all(c, c.resources.limits['cpu'] == '1')", 42, "undefined field 'limits'"),
    (PODS, "/v1, Kind=Pod", "oldObject.status.phase == 1", 24, "found no matching overload for '_==_' applied to '(string, int)'"),
    (PODS, "/v1, Kind=Pod", "authorizer.requestResource.check('get').allowed()", 11,
     "unexpected failed resolution of 'kubernetes.authorization.Authorizer'"),
    (ZOOS, "example.com/v1, Kind=Zoo", "object.spec.n == 'a'", 15, "found no matching overload for '_==_' applied to '(int, string)'"),
    (ZOOS, "example.com/v1, Kind=Zoo", "object.metadata.labels.a == 1", 26, "found no matching overload for '_==_' applied to '(string, int)'"),
])
def test_what_does_not_fit(match: tuple[str, str, str], gvk: str, expression: str, column: int, why: str) -> None:
    assert warnings(policy(["true", expression], match), [CRD]) == [("spec.validations[1].expression", pointed(gvk, expression, column, why))]


@pytest.mark.parametrize(("match", "expression"), [
    (PODS, "object.metadata.creationTimestamp > timestamp('2020-01-01T00:00:00Z')"),
    (PODS, "object.spec.containers[0].livenessProbe.httpGet.port == 8 || object.spec.containers[0].livenessProbe.httpGet.port == 'a'"),
    (ZOOS, "object.spec.x == 1 && object.spec.when.getFullYear() > 2000"),
    (("*", "v1", "pods"), "object.nope == 1"), (("", "v1", "pods/status"), "object.nope == 1"), (("", "v1", "nopes"), "object.nope == 1"),
])
def test_what_fits_or_cannot_be_told(match: tuple[str, str, str], expression: str) -> None:
    assert warnings(policy([expression], match), [CRD]) == []


def test_every_type_that_is_matched_counts_and_a_group_without_name_is_any() -> None:
    found = warnings(policy(["object.nope == 1"], ("", "v1", "events")), [])
    line = pointed("{}", "object.nope == 1", 7, "undefined field 'nope'")
    assert found == [("spec.validations[0].expression", line.format("/v1, Kind=Event") + "\n" + line.format("events.k8s.io/v1, Kind=Event"))]


def test_variables_and_params_have_types() -> None:
    given = policy(["variables.x == 'a' && params.data['k'] == 1"], PODS, variables=[{"name": "x", "expression": "object.spec.priority"}],
                   paramKind={"apiVersion": "v1", "kind": "ConfigMap"})
    ((field, text),) = warnings(given, [])
    assert field == "spec.validations[0].expression"
    assert "applied to '(int, string)'" in text and "applied to '(string, int)'" in text
    assert warnings({**given, "spec": {**given["spec"], "paramKind": {"apiVersion": "no.io/v1", "kind": "No"}}}, []) == [
        (field, pointed("/v1, Kind=Pod", given["spec"]["validations"][0]["expression"], 13,
                        "found no matching overload for '_==_' applied to '(int, string)'"))]


class _View:
    def list(self, resource: str, namespace: str | None = None) -> list[Object]:
        assert resource == CRDS
        return [CRD]


def test_the_controller_looks_at_each_generation_once() -> None:
    given = policy(["object.nope == 1"], ZOOS)
    (patch,) = reconcile(given, _View(), 0.0)      # type: ignore[arg-type]
    assert patch.patch["status"]["observedGeneration"] == 2
    assert [w["fieldRef"] for w in patch.patch["status"]["typeChecking"]["expressionWarnings"]] == ["spec.validations[0].expression"]
    assert list(reconcile({**given, "status": patch.patch["status"]}, _View(), 0.0)) == []      # type: ignore[arg-type]
