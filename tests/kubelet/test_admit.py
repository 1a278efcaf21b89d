"""Admission by the node, deadlines, eviction."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.kubelet import admit, evict, resize

NODE = {"metadata": {"name": "n1", "labels": {"zone": "a", "cpus": "8"}}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "3"}}}


def pod(uid: str = "u", cpu: str = "", memory: str = "", **spec: Any) -> dict[str, Any]:
    requests = {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}
    return {"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}], **spec}}


def affinity(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}}


@pytest.mark.parametrize(("p", "others", "reason"), [
    (pod(), [], None), (pod(cpu="2"), [], None), (pod(cpu="1500m"), [pod("o", cpu="600m")], "OutOfcpu"), (pod(memory="2Gi"), [], "OutOfmemory"),
    (pod(), [pod("a"), pod("b"), pod("c")], "OutOfpods"), (pod(nodeSelector={"zone": "b"}), [], "NodeAffinity"),
    (pod(nodeSelector={"zone": "a"}), [], None),
    (pod(**affinity({"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["4"]}]})), [], None),
    (pod(**affinity({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]})), [], "NodeAffinity"),
    (pod(**affinity({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})), [], None),
    (pod(hostUsers=False), [], "UserNamespacesNotSupported"), (pod(os={"name": "windows"}), [], "PodOSNotSupported"),
    (pod(securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}), [], "SysctlForbidden"),
    (pod(securityContext={"sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "1"}]}), [], None),
    (pod(containers=[{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]),
     [pod("o", containers=[{"name": "c", "ports": [{"containerPort": 2, "hostPort": 80, "hostIP": "10.0.0.1"}]}])], "NodePorts"),
    (pod(containers=[{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]),
     [pod("o", containers=[{"name": "c", "ports": [{"containerPort": 2, "hostPort": 80, "protocol": "UDP"}]}])], None)])
def test_admission(p: dict[str, Any], others: list[dict[str, Any]], reason: str | None) -> None:
    got = admit.admit(p, NODE, others)
    assert (got[0] if got else None) == reason


@pytest.mark.parametrize(("spec", "reason"), [
    ({"securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}}}, "AppArmor"),
    ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, None),
    ({"securityContext": {"supplementalGroupsPolicy": "Strict"}}, "SupplementalGroupsPolicyNotSupported"),
    ({"securityContext": {"supplementalGroupsPolicy": "Merge"}}, None), ({"hostUsers": False}, "UserNamespacesNotSupported")])
def test_what_this_runtime_cannot(spec: dict[str, Any], reason: str | None) -> None:
    refused = admit.admit(pod(**spec), NODE, [])
    assert (refused[0] if refused else None) == reason


def test_the_words_of_a_refusal() -> None:
    assert admit.admit(pod(cpu="1500m"), NODE, [pod("o", cpu="600m")]) == (
        "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 1500, used: 600, capacity: 2000")
    assert admit.forbidden_sysctl({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}) == '"kernel.msgmax" not allowlisted'


def test_what_was_handed_out_whole_is_not_resized() -> None:
    def guaranteed(cpu: str, memory: str = "1Gi") -> dict[str, Any]:
        resources = {k: {"cpu": cpu, "memory": memory} for k in ("requests", "limits")}
        return {"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c", "resources": resources}]}}
    held = {"c": guaranteed("1")["spec"]["containers"][0]["resources"]}
    assert resize.pinned(guaranteed("2"), held, "static", "None") == (
        "Infeasible", 'Resize is infeasible for Guaranteed Pods alongside CPU Manager policy "static"')
    assert resize.pinned(guaranteed("1", "2Gi"), held, "static", "None") is None and resize.pinned(guaranteed("1", "2Gi"), held, "none", "Static")
    assert resize.pinned(guaranteed("1000m"), held, "static", "Static") is None


def test_deadline() -> None:
    p = pod(activeDeadlineSeconds=30)
    status = {"startTime": "1970-01-01T00:01:00Z"}
    assert admit.deadline(p, status, 80.0) == (10.0, None)
    assert admit.deadline(p, status, 90.0)[1] == ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
    assert admit.deadline(pod(), status, 1e9) == (0.0, None)


def test_order_of_eviction() -> None:
    big, small, fine = pod("big", memory="10Mi"), pod("small", memory="10Mi"), pod("fine", memory="500Mi")
    critical, low = pod("critical", priority=2_000_000_000), pod("low", memory="10Mi", priority=-1)
    ranked = evict.rank("memory", [(fine, 400 << 20), (small, 20 << 20), (big, 90 << 20), (critical, 900 << 20), (low, 11 << 20)])
    assert [p["metadata"]["uid"] for p, _ in ranked] == ["low", "big", "small", "fine"]


def test_words_of_eviction() -> None:
    text = evict.low_message("memory", pod("u", memory="10Mi"), {"c": 20 << 20}, 100 << 20, 50 << 20)
    assert text == ("The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. "
                    "Container c was using 20Mi, request is 10Mi, has larger consumption of memory. ")


def test_local_storage_limits() -> None:
    p = pod(volumes=[{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}])
    assert evict.over_limit(p, {"e": 1 << 20}, {}) == ""
    assert evict.over_limit(p, {"e": 2 << 20}, {}) == 'Usage of EmptyDir volume "e" exceeds the limit "1Mi". '
    p = pod(containers=[{"name": "c", "resources": {"limits": {"ephemeral-storage": "1Mi"}}}])
    assert evict.over_limit(p, {}, {"c": 2 << 20}) == 'Container c exceeded its local ephemeral storage limit "1Mi". '
