"""Core kinds other than Pod: validation by cases (core_cases.yaml), defaults and strategy."""

from pathlib import Path

import pytest
import yaml

from kubern.model.kinds import kind_of, service_ips
from kubern.model.object import clone

CASES = yaml.safe_load(Path(__file__).with_name("core_cases.yaml").read_text())


def prepared(kind, obj):
    obj = {"metadata": {"name": "x", "namespace": "n"}, **clone(obj)}
    kind.defaults(obj)
    return obj


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['kind']}: {c['name']}")
def test_rules(case):
    kind, new, warnings = kind_of("", case["kind"]), None, []
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
    assert warnings == case.get("warnings", warnings if case["errors"] else [])


@pytest.mark.parametrize(("kind", "obj", "want"), [
    ("Service", {"spec": {"ports": [{"port": 80}], "sessionAffinity": "ClientIP"}}, {"spec": {
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "ClientIP", "type": "ClusterIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "internalTrafficPolicy": "Cluster"}}),
    ("Service", {"spec": {"type": "LoadBalancer"}}, {"spec": {
        "type": "LoadBalancer", "sessionAffinity": "None", "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
        "allocateLoadBalancerNodePorts": True}}),
    ("Secret", {"stringData": {"a": "b"}, "data": {"c": "ZA=="}}, {"type": "Opaque", "data": {"c": "ZA==", "a": "Yg=="}}),
    ("PersistentVolume", {"spec": {"hostPath": {"path": "/a"}}}, {"spec": {
        "hostPath": {"path": "/a", "type": ""}, "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"},
        "status": {"phase": "Pending"}}),
    ("PersistentVolumeClaim", {"spec": {}}, {"spec": {"volumeMode": "Filesystem", "resources": {}}, "status": {"phase": "Pending"}}),
    ("Node", {"spec": {"podCIDR": "10.0.0.0/24"}, "status": {"capacity": {"cpu": "4"}}}, {
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}, "status": {"capacity": {"cpu": "4"}, "allocatable": {"cpu": "4"}}}),
    ("ReplicationController", {"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}}, {
        "metadata": {"name": "x", "namespace": "n", "labels": {"a": "b"}}, "spec": {"replicas": 1, "selector": {"a": "b"}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {}, "terminationGracePeriodSeconds": 30,
                "schedulerName": "default-scheduler"}}}}),
    ("LimitRange", {"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1"}}]}}, {"spec": {"limits": [{
        "type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1"}, "default": {"cpu": "1"},
        "defaultRequest": {"cpu": "1", "memory": "1"}}]}}),
])
def test_defaults(kind, obj, want):
    got = prepared(kind_of("", kind), obj)
    assert got == {"metadata": {"name": "x", "namespace": "n"}, **want}


def test_namespace_gets_its_name_label_and_finalizer():
    kind, obj = kind_of("", "Namespace"), {"metadata": {"name": "x"}}
    kind.defaults(obj)
    kind.prepare_create(obj)
    assert obj == {"metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "x"}}, "spec": {"finalizers": ["kubernetes"]},
                   "status": {"phase": "Active"}}


def test_data_sources_are_mirrored_and_unknown_ones_dropped():
    kind = kind_of("", "PersistentVolumeClaim")
    obj = prepared(kind, {"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"}}})
    kind.prepare_create(obj)
    assert obj["spec"]["dataSourceRef"] == {"kind": "PersistentVolumeClaim", "name": "a"}
    obj = prepared(kind, {"spec": {"dataSource": {"kind": "X", "name": "a"}}})
    kind.prepare_create(obj)
    assert "dataSource" not in obj["spec"]


# Services across a write -------------------------------------------------------------------------------------------------------

def test_a_put_keeps_what_it_leaves_out():
    old = {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"name": "a", "nodePort": 30001}, {"name": "b"}]}
    new = {"type": "NodePort", "ports": [{"name": "a"}, {"name": "c"}]}
    service_ips.patch_allocated(new, old)
    assert new == {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                   "ports": [{"name": "a", "nodePort": 30001}, {"name": "c"}]}


@pytest.mark.parametrize(("spec", "policy", "families"), [
    ({}, "SingleStack", ["IPv4"]),
    ({"clusterIP": "None", "clusterIPs": ["None"]}, "RequireDualStack", ["IPv4", "IPv6"]),
    ({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}}, "SingleStack", ["IPv4"]),
    ({"ipFamilyPolicy": "PreferDualStack"}, "PreferDualStack", ["IPv4"]),
])
def test_families_of_a_single_stack_cluster(spec, policy, families):
    spec = clone(spec)
    assert service_ips.init_families(spec, None) == []
    assert (spec["ipFamilyPolicy"], spec["ipFamilies"]) == (policy, families)


@pytest.mark.parametrize(("spec", "want"), [
    ({"ipFamilyPolicy": "RequireDualStack"}, "this cluster is not configured for dual-stack services"),
    ({"ipFamilies": ["IPv6"]}, "not configured on this cluster"),
    ({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}, "IPv6 is not configured on this cluster"),
])
def test_families_refused(spec, want):
    assert [e.detail for e in service_ips.init_families(clone(spec), None)] == [want]


def test_another_type_lets_go_of_what_the_old_one_had():
    kind = kind_of("", "Service")
    old = prepared(kind, {"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"],
                                   "ipFamilyPolicy": "SingleStack", "ports": [{"port": 1, "nodePort": 30001}]}})
    new = clone(old)
    new["spec"].update(type="ExternalName", externalName="a.b")
    kind.prepare_update(new, old)
    assert new["spec"] == {"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None",
                           "ports": [{"port": 1, "protocol": "TCP", "targetPort": 1}]}
