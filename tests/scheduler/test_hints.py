"""Which change may help which refused pod."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.scheduler.hints import Change
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.table import NodeTable

HOST, ZONE = "kubernetes.io/hostname", "zone"


def node(name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": "Node", "metadata": {"name": name, "labels": {HOST: name, "disk": "fast"}}, "spec": spec,
            "status": {"allocatable": {"cpu": "2", "pods": "9"}, "declaredFeatures": ["RestartAllContainersOnContainerExits"]}}


def pod(name: str, app: str = "a", cpu: str = "1", namespace: str = "d", port: int = 0, **spec: Any) -> PodInfo:
    container = {"name": "c", "resources": {"requests": {"cpu": cpu}}, **({"ports": [{"hostPort": port}]} if port else {})}
    return pod_info({"metadata": {"name": name, "namespace": namespace, "uid": name, "labels": {"app": app}}, "spec": {"containers": [container], **spec}})


def near(kind: str, app: str, key: str) -> dict[str, Any]:
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}}}


def spread(key: str) -> dict[str, Any]:
    return {"topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]}


TAINT = {"taints": [{"key": "k", "effect": "NoSchedule"}]}
CLAIM = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "mine"}}]}


def claim(name: str) -> dict[str, Any]:
    return {"node": {"kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "d"}}}


@pytest.mark.parametrize(("plugin", "p", "change", "helps"), [
    ("NodeResourcesFit", pod("p", cpu="2"), {"was": pod("q")}, True),
    ("NodeResourcesFit", pod("p", cpu="3"), {"was": pod("q")}, False),
    ("TaintToleration", pod("p"), {"node": node("n", **TAINT)}, False),
    ("TaintToleration", pod("p", tolerations=[{"key": "k", "operator": "Exists"}]), {"node": node("n", **TAINT)}, True),
    ("NodeUnschedulable", pod("p"), {"node": node("n", unschedulable=True)}, False),
    ("NodeAffinity", pod("p", nodeSelector={"disk": "fast"}), {"node": node("n")}, True),
    ("NodeAffinity", pod("p", nodeSelector={"disk": "slow"}), {"node": node("n")}, False),
    ("NodePorts", pod("p", port=80), {"was": pod("q", port=80)}, True),
    ("NodePorts", pod("p", port=80), {"was": pod("q", port=81)}, False),
    ("InterPodAffinity", pod("p", **near("podAffinity", "b", HOST)), {"pod": pod("q", "b")}, True),
    ("InterPodAffinity", pod("p", **near("podAffinity", "b", HOST)), {"pod": pod("q", "c")}, False),
    ("InterPodAffinity", pod("p", **near("podAntiAffinity", "b", HOST)), {"was": pod("q", "b")}, True),
    ("InterPodAffinity", pod("p"), {"was": pod("q", "b", **near("podAntiAffinity", "a", HOST))}, True),
    ("InterPodAffinity", pod("p", **near("podAffinity", "b", ZONE)), {"node": node("n")}, False),
    ("InterPodAffinity", pod("p", **near("podAntiAffinity", "b", ZONE)), {"node": node("n")}, True),
    ("PodTopologySpread", pod("p", **spread(HOST)), {"was": pod("q")}, True),
    ("PodTopologySpread", pod("p", **spread(HOST)), {"was": pod("q", namespace="e")}, False),
    ("PodTopologySpread", pod("p", **spread(ZONE)), {"node": node("n")}, False),
    ("VolumeBinding", pod("p", **CLAIM), claim("mine"), True),
    ("VolumeBinding", pod("p", **CLAIM), claim("another"), False),
    ("VolumeBinding", pod("p", **CLAIM), {"node": {"kind": "PersistentVolume", "metadata": {"name": "v"}}}, True),
    ("NodeVolumeLimits", pod("p", **CLAIM), {"was": pod("q")}, False),
    ("NodeDeclaredFeatures", pod("p", hostNetwork=True, hostUsers=False), {"node": node("n")}, False),
    ("DynamicResources", pod("p"), {"was": pod("q")}, True),
])
def test_a_change_helps(plugin: str, p: PodInfo, change: dict[str, Any], helps: bool) -> None:
    table = NodeTable()
    table.set_node(change["node"] if (change.get("node") or {}).get("kind") == "Node" else node("n"))
    assert Change(table, 0, **change).helps(plugin, p) is helps
