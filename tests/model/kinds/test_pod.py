"""Pods: validation by cases (pod_cases.yaml), defaults, strategy, updates, status, resize, ephemeral containers, warnings."""

from pathlib import Path

import pytest
import yaml

from kubern.model.kinds import kind_of, pod_resize
from kubern.model.kinds.pod_defaults import image_tag, pull_policy
from kubern.model.kinds.pod_resources import qos_class, sum_containers
from kubern.model.object import clone

POD = kind_of("", "Pod")
CASES = yaml.safe_load(Path(__file__).with_name("pod_cases.yaml").read_text())


def pod(spec=None, container=None, meta=None, defaulted=True):
    c = {"name": "c", "image": "registry.test/i:1", **(container or {})}
    out = {"metadata": {"name": "p", "namespace": "n", **(meta or {})}, "spec": {"containers": [c], **clone(spec or {})}}
    if defaulted:
        POD.defaults(out)
    return out


def texts(errors):
    return [e.text() for e in errors]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_create(case):
    obj = pod(case.get("spec"), case.get("container"), case.get("meta"))
    assert texts(POD.validate(obj)) == case["errors"]


def test_defaults():
    obj = pod({"hostNetwork": True, "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]},
              {"ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "0.0005"}},
               "livenessProbe": {"httpGet": {"port": 80}}, "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]})
    assert obj["spec"] == {
        "containers": [{
            "name": "c", "image": "registry.test/i:1", "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "1m"}, "requests": {"cpu": "1m"}},
            "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                              "successThreshold": 1, "failureThreshold": 3},
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}]}],
        "hostNetwork": True, "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {}, "enableServiceLinks": True,
        "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}]}


def test_defaulting_twice_changes_nothing():
    once = pod({"volumes": [{"name": "v", "iscsi": {}}, {"name": "w", "azureDisk": {}}], "resources": {"limits": {"cpu": "1"}}})
    twice = clone(once)
    POD.defaults(twice)
    assert twice == once


def test_pod_level_requests_come_from_the_containers_then_from_the_limits():
    obj = pod({"resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}, {"resources": {"requests": {"cpu": "100m"}}})
    assert obj["spec"]["resources"]["requests"] == {"cpu": "100m", "memory": "1Gi"}


@pytest.mark.parametrize(("image", "tag", "policy"), [
    ("nginx", "latest", "Always"), ("nginx:latest", "latest", "Always"), ("nginx:1", "1", "IfNotPresent"),
    ("localhost:5000/x", "latest", "Always"), ("a.b/c@sha256:" + "0" * 64, "", "IfNotPresent"), ("UPPER", None, "IfNotPresent"),
    ("x:latest@sha256:" + "0" * 64, "latest", "Always"), ("x@sha256:0", None, "IfNotPresent"), ("0" * 64, None, "IfNotPresent"),
])
def test_image_tag(image, tag, policy):
    assert (image_tag(image), pull_policy(image)) == (tag, policy)


@pytest.mark.parametrize(("containers", "want"), [
    ([{}], "BestEffort"),
    ([{"requests": {"cpu": "1"}}], "Burstable"),
    ([{"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "1000m", "memory": "1"}}], "Guaranteed"),
    ([{"limits": {"cpu": "1", "memory": "1"}, "requests": {"cpu": "1", "memory": "1"}}, {}], "Burstable"),
    ([{"limits": {"cpu": "0"}, "requests": {"cpu": "0"}}], "BestEffort"),
    ([{"limits": {"example.com/x": "1"}}], "BestEffort"),
])
def test_qos(containers, want):
    assert qos_class({"containers": [{"resources": r} for r in containers]}) == want


def test_sum_of_containers_is_the_larger_of_running_and_initialising():
    def c(cpu, **more):
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    spec = {"containers": [c("100m")], "initContainers": [c("50m"), c("20m", restartPolicy="Always"), c("200m")]}
    assert sum_containers(spec, "requests") == {"cpu": "220m"}


def test_create_strategy():
    obj = pod({"schedulingGates": [{"name": "g"}], "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"a": "b"}},
         "matchLabelKeys": ["hash", "absent"]}],
        "volumes": [{"name": "v", "projected": {"sources": [{"clusterTrustBundle": {"name": "x", "path": "y"}}]}}]},
        meta={"labels": {"hash": "1"}, "creationTimestamp": "2026-01-02T03:04:05Z"})
    POD.prepare_create(obj)
    assert obj["status"] == {"phase": "Pending", "qosClass": "BestEffort", "conditions": [
        {"type": "PodScheduled", "status": "False", "lastProbeTime": None, "lastTransitionTime": "2026-01-02T03:04:05Z",
         "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates"}]}
    assert obj["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"] == [
        {"key": "hash", "operator": "In", "values": ["1"]}]
    assert obj["spec"]["volumes"][0]["projected"]["sources"] == [{}]


# Updates -----------------------------------------------------------------------------------------------------------------------

def changed(old, **spec):
    new = clone(old)
    new["spec"].update(clone(spec))
    return new


def test_images_deadlines_and_tolerations_may_change():
    old = pod({"activeDeadlineSeconds": 10})
    new = changed(old, activeDeadlineSeconds=5, tolerations=[{"key": "a", "operator": "Exists"}])
    new["spec"]["containers"][0]["image"] = "other"
    assert POD.validate_update(new, old) == []


def test_the_rest_may_not_and_the_message_shows_the_difference():
    old = pod()
    new = clone(old)
    new["spec"]["containers"][0]["command"] = ["x"]
    (error,) = POD.validate_update(new, old)
    assert error.field == "spec"
    assert error.detail.split("\n", 1)[1] == (
        '@@ -5,7 +5,9 @@\n   {\n    "Name": "c",\n    "Image": "registry.test/i:1",\n-   "Command": null,\n+   "Command": [\n+    "x"\n+   ],\n'
        '    "Args": null,\n    "WorkingDir": "",\n    "Ports": null,\n')


@pytest.mark.parametrize(("before", "after", "want"), [
    ({"activeDeadlineSeconds": 5}, {"activeDeadlineSeconds": 6},
     ["spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value"]),
    ({"tolerations": [{"key": "a", "operator": "Exists"}]}, {"tolerations": []},
     ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]),
    ({"schedulingGates": [{"name": "a"}]}, {"schedulingGates": [{"name": "b"}]},
     ["spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'b'"]),
    ({"schedulingGates": [{"name": "a"}], "nodeSelector": {"x": "y"}}, {"nodeSelector": {"x": "y", "z": "1"}}, []),
    ({"schedulingGates": [{"name": "a"}], "nodeSelector": {"x": "y"}}, {"nodeSelector": {"x": "z"}},
     ['spec.nodeSelector: Invalid value: {"x":"z"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)']),
])
def test_update(before, after, want):
    old = pod(before)
    assert texts(POD.validate_update(changed(old, **after), old)) == want


def test_containers_may_not_be_added():
    old = pod()
    new = clone(old)
    new["spec"]["containers"].append({**new["spec"]["containers"][0], "name": "d"})
    assert texts(POD.validate_update(new, old)) == ["spec.containers: Forbidden: pod updates may not add or remove containers"]


def test_status():
    old = pod({"restartPolicy": "Never"})
    old["status"] = {"phase": "Running", "qosClass": "BestEffort", "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 3}],
                     "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]}
    new = clone(old)
    new["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "podIPs": [{"ip": "x"}],
                     "containerStatuses": [{"name": "c", "state": {"running": {}}}]}
    new["spec"] = {}
    POD.prepare_status(new, old)
    assert new["spec"] == old["spec"]
    assert new["status"]["conditions"] == [{"type": "Ready", "status": "False", "observedGeneration": 3}]
    assert texts(POD.validate_status(new, old)) == [
        "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state",
        'status.podIPs[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)']


@pytest.mark.parametrize(("node", "phase", "asked", "want"), [
    ("n", "Running", None, 30), ("n", "Running", 5, 5), ("n", "Running", -1, 1), ("", "Pending", None, 0), ("n", "Succeeded", 9, 0)])
def test_grace(node, phase, asked, want):
    obj = pod({"nodeName": node})
    obj["status"] = {"phase": phase}
    assert POD.grace_s(obj, asked) == want


# Resize and ephemeral containers -----------------------------------------------------------------------------------------------

def resize(old, edit):
    new = clone(old)
    edit(new["spec"])
    pod_resize.prepare_resize(new, old)
    return new, texts(pod_resize.validate_resize(new, old))


def test_resize_changes_compute_and_drops_everything_else():
    old = pod(container={"resources": {"requests": {"cpu": "1"}}})

    def edit(spec):
        spec["containers"][0].update(resources={"requests": {"cpu": "2"}}, image="other")

    new, errors = resize(old, edit)
    assert errors == []
    assert new["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "2"}}
    assert new["spec"]["containers"][0]["image"] == "registry.test/i:1"


def _qos(spec):
    spec["containers"][0]["resources"] = {}


def _storage(spec):
    spec["containers"][0]["resources"]["requests"]["ephemeral-storage"] = "1"


@pytest.mark.parametrize(("edit", "want"), [
    (_qos, ['spec: Invalid value: "": Pod QOS Class may not change as a result of resizing',
            "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"]),
    (_storage, ["spec: Forbidden: only cpu and memory resources are mutable"]),
])
def test_resize_refused(edit, want):
    assert resize(pod(container={"resources": {"requests": {"cpu": "1"}}}), edit)[1] == want


def test_ephemeral_containers_are_added_and_never_changed():
    old = pod()
    new = changed(old, ephemeralContainers=[{"name": "d", "image": "i"}], nodeName="x")
    POD.defaults(new)
    pod_resize.prepare_ephemeral(new, old)
    assert "nodeName" not in new["spec"]
    assert pod_resize.validate_ephemeral(new, old) == []
    gone = clone(old)
    assert texts(pod_resize.validate_ephemeral(gone, new)) == [
        'spec.ephemeralContainers: Forbidden: existing ephemeral containers "d" may not be removed\n']


# Warnings ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("spec", "container", "meta", "want"), [
    ({}, {}, {}, []),
    ({}, {}, {"name": "a.b"}, ["metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is "
                               "recommended: [must not contain dots]"]),
    ({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}, {}, {},
     ['spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead']),
    ({}, {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A):3"}]}, {},
     ['spec.containers[0].env[1]: hides previous definition of "A", which may be dropped when using apply']),
    ({}, {"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 1, "name": "b"}]}, {},
     ["spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"]),
    ({}, {"resources": {"limits": {"memory": "100m"}}}, {},
     ['spec.containers[0].resources.limits[memory]: fractional byte value "100m" is invalid, must be an integer',
      'spec.containers[0].resources.requests[memory]: fractional byte value "100m" is invalid, must be an integer']),
    ({"volumes": [{"name": "v", "gitRepo": {"repository": "r"}}]}, {}, {},
     ["spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+"]),
    ({"volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"key": "a", "path": "x"}, {"key": "b", "path": "x/y"}]}}]}, {}, {},
     ['volume "v" (ConfigMap "m"): overlapping paths: "x/y" with "x"']),
    ({}, {}, {"annotations": {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}},
     ['metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: deprecated since v1.30; use the "appArmorProfile" field '
      "instead"]),
])
def test_warnings(spec, container, meta, want):
    obj = pod(spec, container, meta)
    POD.prepare_create(obj)
    assert POD.warnings(obj, None) == want
