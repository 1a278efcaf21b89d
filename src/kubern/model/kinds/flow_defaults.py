"""The flow schemas and priority levels of a new cluster: two of each are mandatory and fixed, the others only suggested.

Data alone. Upstream: apiserver pkg/apis/flowcontrol/bootstrap/default.go; KEP-1040, "Default configuration".
"""

from __future__ import annotations

from typing import Any

from kubern.model.object import Object

API_VERSION = "flowcontrol.apiserver.k8s.io/v1"
AUTO_UPDATE = {"apf.kubernetes.io/autoupdate-spec": "true"}


def _level(shares: int, lendable: int, queues: int = 0, hand: int = 0) -> Object:
    response: Object = {"type": "Reject"}
    if queues:
        response = {"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}}
    return {"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "limitResponse": response, "lendablePercent": lendable}}


def _groups(*names: str) -> list[Object]:
    return [{"kind": "Group", "group": {"name": n}} for n in names]


def _users(*names: str) -> list[Object]:
    return [{"kind": "User", "user": {"name": n}} for n in names]


def _resources(verbs: list[str], groups: list[str], resources: list[str], cluster: bool) -> Object:
    rule: Object = {"verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": ["*"]}
    return {**rule, "clusterScope": True} if cluster else rule


_ALL_RESOURCES = [_resources(["*"], ["*"], ["*"], True)]
_ALL_PATHS = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]


def _schema(level: str, precedence: int, method: str, subjects: list[Object], resources: list[Object] | None = None,
            paths: list[Object] | None = None) -> Object:
    rule: dict[str, Any] = {"subjects": subjects}
    if resources:
        rule["resourceRules"] = resources
    if paths:
        rule["nonResourceRules"] = paths
    out: Object = {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence}
    if method:
        out["distinguisherMethod"] = {"type": method}
    out["rules"] = [rule]
    return out


_EVERYBODY = _groups("system:unauthenticated", "system:authenticated")
_KUBE_SYSTEM: list[Object] = [{"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}}]

MANDATORY_LEVELS: dict[str, Object] = {
    "catch-all": _level(5, 0),
    "exempt": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}},
}
SUGGESTED_LEVELS: dict[str, Object] = {
    "system": _level(30, 33, 64, 6),
    "node-high": _level(40, 25, 64, 6),
    "leader-election": _level(10, 0, 16, 4),
    "workload-high": _level(40, 50, 128, 6),
    "workload-low": _level(100, 90, 128, 6),
    "global-default": _level(20, 50, 128, 6),
}
MANDATORY_SCHEMAS: dict[str, Object] = {
    "exempt": _schema("exempt", 1, "", _groups("system:masters"), _ALL_RESOURCES, _ALL_PATHS),
    "catch-all": _schema("catch-all", 10_000, "ByUser", _EVERYBODY, _ALL_RESOURCES, _ALL_PATHS),
}
SUGGESTED_SCHEMAS: dict[str, Object] = {
    "system-nodes": _schema("system", 500, "ByUser", _groups("system:nodes"), _ALL_RESOURCES, _ALL_PATHS),
    "system-node-high": _schema("node-high", 400, "ByUser", _groups("system:nodes"), [
        _resources(["*"], [""], ["nodes", "nodes/status"], True), _resources(["*"], ["coordination.k8s.io"], ["leases"], False)]),
    "probes": _schema("exempt", 2, "", _EVERYBODY, paths=[{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]),
    "system-leader-election": _schema(
        "leader-election", 100, "ByUser", _users("system:kube-controller-manager", "system:kube-scheduler") + _KUBE_SYSTEM,
        [_resources(["get", "create", "update"], ["coordination.k8s.io"], ["leases"], False)]),
    "kube-controller-manager": _schema(
        "workload-high", 800, "ByNamespace", _users("system:kube-controller-manager"), _ALL_RESOURCES, _ALL_PATHS),
    "kube-scheduler": _schema("workload-high", 800, "ByNamespace", _users("system:kube-scheduler"), _ALL_RESOURCES, _ALL_PATHS),
    "kube-system-service-accounts": _schema("workload-high", 900, "ByNamespace", _KUBE_SYSTEM, _ALL_RESOURCES, _ALL_PATHS),
    "service-accounts": _schema("workload-low", 9000, "ByUser", _groups("system:serviceaccounts"), _ALL_RESOURCES, _ALL_PATHS),
    "global-default": _schema("global-default", 9900, "ByUser", _EVERYBODY, _ALL_RESOURCES, _ALL_PATHS),
}


def _objects(kind: str, *tables: dict[str, Object]) -> list[Object]:
    return [{"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "annotations": dict(AUTO_UPDATE)}, "spec": spec}
            for table in tables for name, spec in table.items()]


DEFAULTS: list[Object] = [
    *_objects("PriorityLevelConfiguration", SUGGESTED_LEVELS, MANDATORY_LEVELS),
    *_objects("FlowSchema", SUGGESTED_SCHEMAS, MANDATORY_SCHEMAS),
]
