"""Kinds outside the core group: validation by cases (group_cases.yaml), defaults, strategy, and that every row of the table has its rules."""

import json
from pathlib import Path

import pytest
import yaml

from kubern.model.decode import decode
from kubern.model.kinds import KINDS, kind_of
from kubern.model.kinds.certificates import asked_by, prepare_approval, stamp, validate_approval
from kubern.model.kinds.checks import conditions, same, selector_form
from kubern.model.kinds.cron import schedule_error, zone_error
from kubern.model.kinds.flow_defaults import DEFAULTS
from kubern.model.kinds.job_status import indexes_total
from kubern.model.object import clone
from kubern.model.resources import RESOURCES, by_path
from kubern.model.schema import schema_for

CASES = yaml.safe_load(Path(__file__).with_name("group_cases.yaml").read_text())
REVIEWS = {"authentication.k8s.io", "authorization.k8s.io"}       # answered, never stored
RULELESS = {("internal.apiserver.k8s.io", "StorageVersion"), ("storagemigration.k8s.io", "StorageVersionMigration")}


def prepared(kind, obj):
    obj = {"metadata": {"name": "x", "namespace": "n"}, **clone(obj)}
    kind.defaults(obj)
    return obj


def group_kind(text):
    group, _, kind = text.rpartition("/")
    return kind_of(group, kind)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['kind']}: {c['name']}")
def test_rules(case):
    kind, warnings = group_kind(case["kind"]), []
    new = prepared(kind, case["obj"])
    if "old" not in case:
        kind.prepare_create(new)
        errors, warnings = kind.validate(new), kind.warnings(new, None)
    elif case.get("status"):
        errors = kind.validate_status(new, prepared(kind, case["old"]))
    else:
        old = prepared(kind, case["old"])
        kind.prepare_update(new, old)
        errors, warnings = kind.validate_update(new, old), kind.warnings(new, old)
    assert [e.text() for e in errors] == case["errors"]
    assert warnings == case.get("warnings", [])


def test_every_stored_kind_has_rules_and_no_rules_are_for_nothing():
    rows = {(r.storage[0], r.kind) for r in RESOURCES if r.group not in REVIEWS and "list" in r.verbs}
    assert rows - KINDS.keys() - RULELESS == {("", "ComponentStatus")} - KINDS.keys()
    served = {(r.group, r.kind) for r in RESOURCES} | {(s.group or r.group, s.kind) for r in RESOURCES for s in r.subresources}
    assert {k for k in KINDS if not KINDS[k].columns} <= served
    assert {k for k in KINDS if k not in served and KINDS[k].columns} == set()


@pytest.mark.parametrize(("kind", "obj", "want"), [
    ("batch/CronJob", {"spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never"}}}}}}, {
        "spec": {"schedule": "@daily", "concurrencyPolicy": "Allow", "suspend": False, "successfulJobsHistoryLimit": 3,
                 "failedJobsHistoryLimit": 1}}),
    ("autoscaling/HorizontalPodAutoscaler", {"spec": {"maxReplicas": 3}}, {"spec": {
        "maxReplicas": 3, "minReplicas": 1,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]}}),
    ("networking.k8s.io/NetworkPolicy", {"spec": {"egress": [{}]}}, {"spec": {"egress": [{}], "policyTypes": ["Ingress", "Egress"]}}),
    ("networking.k8s.io/IngressClass", {"spec": {"parameters": {"kind": "K", "name": "n"}}}, {
        "spec": {"parameters": {"kind": "K", "name": "n", "scope": "Cluster"}}}),
    ("rbac.authorization.k8s.io/RoleBinding", {"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
        {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}, {
        "roleRef": {"kind": "Role", "name": "r", "apiGroup": "rbac.authorization.k8s.io"}, "subjects": [
            {"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount", "name": "s"}]}),
    ("storage.k8s.io/StorageClass", {"provisioner": "a/b"}, {
        "provisioner": "a/b", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
    ("scheduling.k8s.io/PriorityClass", {"value": 1}, {"value": 1, "preemptionPolicy": "PreemptLowerPriority"}),
    ("resource.k8s.io/ResourceClaim", {"spec": {"devices": {"requests": [
        {"name": "a", "exactly": {"deviceClassName": "c"}}, {"name": "b", "firstAvailable": [{"allocationMode": "All"}]}]}}}, {
        "spec": {"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1}},
                                          {"name": "b", "firstAvailable": [{"allocationMode": "All"}]}]}}}),
])
def test_defaults(kind, obj, want):
    got = prepared(group_kind(kind), obj)
    got["spec"].pop("jobTemplate", None) if "spec" in got else None
    assert got == {"metadata": {"name": "x", "namespace": "n"}, **want}


def test_a_job_gets_its_selector_and_labels():
    kind = kind_of("batch", "Job")
    job = {"metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": {"template": {"spec": {"restartPolicy": "Never"}}}}
    kind.defaults(job)
    kind.prepare_create(job)
    labels = {"batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j", "controller-uid": "u", "job-name": "j"}
    assert job["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}
    assert job["spec"]["template"]["metadata"]["labels"] == labels
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 1
    assert job["status"] == {}


def test_statuses_of_released_devices_go_with_them():
    device = {"driver": "a.b", "pool": "p", "device": "d"}
    old = {"metadata": {}, "spec": {}, "status": {"allocation": {"devices": {"results": [{"request": "r", **device}]}}, "devices": [device]}}
    new = {"metadata": {}, "spec": {}, "status": {"devices": [device]}}
    kind_of("resource.k8s.io", "ResourceClaim").prepare_status(new, old)
    assert new["status"] == {}


def test_attributes_behind_gates_are_dropped():
    obj = {"metadata": {}, "spec": {"devices": [{"name": "d", "attributes": {"a": {"ints": [1]}}, "nodeAllocatableResourceMappings": {"cpu": {}}}]}}
    kind_of("resource.k8s.io", "ResourceSlice").prepare_create(obj)
    assert obj["spec"]["devices"] == [{"name": "d", "attributes": {"a": {}}}]


def test_who_asks_for_a_certificate_is_the_server_s_to_say():
    csr = {"metadata": {"name": "c"}, "spec": {"username": "root", "groups": ["system:masters"], "signerName": "a.b/c"}}
    asked_by(csr, "jane", "1", ("g",), {"k": ("v",)})
    assert csr["spec"] == {"signerName": "a.b/c", "username": "jane", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}}


def test_approvals_are_final():
    old = {"metadata": {"name": "c"}, "spec": {}, "status": {}}
    approved = {"type": "Approved", "status": "True", "reason": "R"}
    new = {"metadata": {"name": "c"}, "spec": {}, "status": {"conditions": [approved], "certificate": "QQ=="}}
    prepare_approval(new, old)
    stamp(new, old, "2026-01-01T00:00:00Z")
    times = {"lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    assert new["status"] == {"conditions": [{**approved, **times}]}
    denied = {"metadata": {"name": "c"}, "spec": {}, "status": {"conditions": [{"type": "Denied", "status": "True"}]}}
    assert [e.field for e in validate_approval(denied, new)]


def test_the_defaults_of_flow_control_are_valid():
    for obj in DEFAULTS:
        kind = kind_of("flowcontrol.apiserver.k8s.io", obj["kind"])
        obj = clone(obj)
        kind.defaults(obj)
        kind.prepare_create(obj)
        assert kind.validate(obj) == [], obj["metadata"]["name"]


# Parts -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("spec", "error"), [
    ("*/5 * * * *", ""), ("0 0 1-5,7 JAN mon-FRI", ""), ("@every 1h30m", ""), ("TZ=Europe/Berlin 0 0 * * *", ""), ("? ? ? ? ?", ""),
    ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
    ("60 * * * *", "end of range (60) above maximum (59): 60"),
    ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
    ("*/0 * * * *", "step of range should be a positive number: */0"),
    ("x * * * *", 'failed to parse int from x: strconv.Atoi: parsing "x": invalid syntax'),
    ("@never", "unrecognized descriptor: @never"),
    ("", "empty spec string"),
])
def test_schedules(spec, error):
    assert schedule_error(spec) == error


def test_zones():
    assert [bool(zone_error(z)) for z in ("Europe/Berlin", "UTC", "Nowhere/At", "../etc/passwd", "")] == [False, False, True, True, False]


@pytest.mark.parametrize(("text", "total"), [("", 0), ("0", 1), ("0-2", 3), ("0,2-4,7", 5)])
def test_index_lists(text, total):
    assert indexes_total(text, 8) == total


@pytest.mark.parametrize("text", ["2-1", "0,0", "a", "9", "1,0", "0-1-2"])
def test_bad_index_lists(text):
    with pytest.raises(ValueError):
        indexes_total(text, 8)


@pytest.mark.parametrize(("a", "b", "equal"), [
    ({"x": None}, {}, True), ({"x": []}, {}, True), ({"x": {}}, {}, False), ({"x": [1]}, {"x": [1]}, True), ({"x": [1]}, {"x": [1, 2]}, False),
    ({"x": 0}, {}, False), ({"a": {"b": []}}, {"a": {}}, True), ("a", "b", False)])
def test_nothing_equals_nothing(a, b, equal):
    assert same(a, b) is equal and same(b, a) is equal


def test_selectors_print_in_their_order():
    form = selector_form({"matchExpressions": [{"values": ["v"], "operator": "In", "key": "k"}], "matchLabels": {"a": "b"}})
    assert list(form) == ["matchLabels", "matchExpressions"]
    assert list(form["matchExpressions"][0]) == ["key", "operator", "values"]


def test_conditions():
    bad = [{"type": "A", "status": "maybe", "reason": "1"}, {"type": "A", "status": "True", "lastTransitionTime": "t", "reason": "R"}]
    assert [e.field for e in conditions(bad, "c")] == ["c[0].status", "c[0].lastTransitionTime", "c[0].reason", "c[1].type"]


def test_an_empty_list_of_scaling_policies_is_not_none():
    row = by_path["autoscaling", "v2", "horizontalpodautoscalers"]
    body = {"spec": {"maxReplicas": 1, "scaleTargetRef": {"kind": "K", "name": "n", "apiVersion": "a/v1"},
                     "behavior": {"scaleUp": {"policies": []}}}, "metadata": {"name": "x"}}
    for text in (json.dumps(body), json.dumps(body).replace('"maxReplicas"', '"maxReplicas": 1, "maxReplicas"')):   # both walks of the decoder
        obj = decode(text.encode(), "application/json", row, schema_for("autoscaling/v2", "HorizontalPodAutoscaler"), "Ignore")[0]
        kind = kind_of("autoscaling", "HorizontalPodAutoscaler")
        kind.defaults(obj)
        assert [e.text() for e in kind.validate(obj)] == ["spec.behavior.scaleUp.policies: Required value: must specify at least one Policy"]


def test_job_takes_the_labels_made_for_its_template():
    kind = kind_of("batch", "Job")
    job = {"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}}
    kind.defaults(job)
    kind.prepare_create(job)
    assert job["metadata"]["labels"] == job["spec"]["template"]["metadata"]["labels"] == {
        "a": "b", "controller-uid": "u", "job-name": "j", "batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j"}
    own = {"metadata": {"name": "j", "uid": "u", "labels": {"a": "b"}}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}}
    kind.defaults(own)
    kind.prepare_create(own)
    assert own["metadata"]["labels"] == {"a": "b"}


def test_daemon_set_on_delete_keeps_rolling_update_with_zeros():
    kind = kind_of("apps", "DaemonSet")
    obj = {"metadata": {}, "spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": {"maxSurge": 1}}}}
    kind.defaults(obj)
    assert obj["spec"]["updateStrategy"] == {"type": "OnDelete", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


@pytest.mark.parametrize(("group", "kind", "name", "fits"), [
    ("policy", "PodDisruptionBudget", "Bad_Name!", True), ("policy", "PodDisruptionBudget", "a/b", False), ("", "ReplicationController", "Bad", False),
    ("certificates.k8s.io", "CertificateSigningRequest", "..", False), ("certificates.k8s.io", "CertificateSigningRequest", "A b", True)])
def test_names(group, kind, name, fits):
    assert (kind_of(group, kind).name_check(name, False) == []) is fits


def test_declared_names():
    check = kind_of("resource.k8s.io", "DeviceClass").name_check
    assert check("a" * 254, False) == ["must be no more than 253 bytes"]
    assert check("Bad_Name", True) == [] and check("a/", True) != []


def test_what_an_event_keeps_can_be_shown():
    """A refusal shows the changed struct in its internal form, whichever it is."""
    from kubern.model.kinds import events, internal_form

    for _, type_ in events._FIXED:
        assert not type_ or internal_form.struct(type_, {})
