"""The ConfigMap kube-system/cluster-autoscaler-status, in upstream's structured YAML form (since 1.30). Pure but for its caller's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubern.model.object import Object
from kubern.model.time import micro

NAME, NAMESPACE = "cluster-autoscaler-status", "kube-system"
Healthy = Callable[[int, int], bool]                   # (nodes, of them unready)
UPDATED = "cluster-autoscaler.kubernetes.io/last-updated"


@dataclass(frozen=True, slots=True)
class GroupState:
    """What the report says of one group (or of all together, without name and sizes)."""

    name: str
    total: int = 0
    ready: int = 0
    not_started: int = 0
    being_deleted: int = 0
    unready: int = 0
    unregistered: int = 0
    long_unregistered: int = 0
    target: int = 0
    min: int = 0
    max: int = 0
    scaling_up: bool = False
    backoff: str = ""                                  # why the last try failed, while nothing is tried
    candidates: int = 0


@dataclass(slots=True)
class Transitions:
    """Since when each condition is as it is."""

    seen: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def since(self, what: tuple[str, str], status: str, now: str) -> str:
        old = self.seen.get(what)
        if old is None or old[0] != status:
            self.seen[what] = old = (status, now)
        return old[1]


def whole(groups: list[GroupState], others: int, others_ready: int) -> GroupState:
    """All groups together, and the nodes of none."""
    def total(attribute: str) -> int:
        return sum(getattr(g, attribute) for g in groups)
    return GroupState("", total("total") + others, total("ready") + others_ready, total("not_started"), total("being_deleted"),
                      total("unready") + others - others_ready, total("unregistered"), scaling_up=any(g.scaling_up for g in groups),
                      candidates=total("candidates"))


def _counts(g: GroupState) -> dict[str, Any]:
    return {"registered": {"total": g.total, "ready": g.ready, "notStarted": g.not_started, **({"beingDeleted": g.being_deleted} if g.being_deleted else {}),
                           "unready": {"total": g.unready, "resourceUnready": 0}},
            "longUnregistered": g.long_unregistered, "unregistered": g.unregistered}


def _conditions(g: GroupState, seen: Transitions, now: str, cluster: bool, is_healthy: Healthy) -> dict[str, Any]:
    def stamped(what: str, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "lastProbeTime": now, "lastTransitionTime": seen.since((g.name, what), body["status"], now)}
    healthy = is_healthy(g.total, g.unready + g.long_unregistered)
    health: dict[str, Any] = {"status": "Healthy" if healthy else "Unhealthy", "nodeCounts": _counts(g)}
    if not cluster:
        health |= {"cloudProviderTarget": g.target, "minSize": g.min, "maxSize": g.max}
    up: dict[str, Any] = {"status": "InProgress" if g.scaling_up else "Backoff" if g.backoff and not cluster else "NoActivity"}
    if up["status"] == "Backoff":
        up["backoffInfo"] = {"errorCode": "OTHER", "errorMessage": g.backoff[:500]}
    down: dict[str, Any] = {"status": "CandidatesPresent" if g.candidates else "NoCandidates"}
    if g.candidates:
        down["candidates"] = g.candidates
    return {"health": stamped("health", health), "scaleUp": stamped("scaleUp", up), "scaleDown": stamped("scaleDown", down)}


def report(groups: Iterable[GroupState], cluster: GroupState, seen: Transitions, now_s: float, is_healthy: Healthy) -> Mapping[str, Any]:
    """The document."""
    now = micro(now_s)
    return {"time": _go_time(now_s), "autoscalerStatus": "Running", "clusterWide": _conditions(cluster, seen, now, True, is_healthy),
            "nodeGroups": [{"name": g.name, **_conditions(g, seen, now, False, is_healthy)} for g in groups]}


def _go_time(now_s: float) -> str:
    """As Go prints a time; readers of the annotation parse it so."""
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")


def config_map(document: Mapping[str, Any], now_s: float) -> Object:
    import yaml

    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE, "annotations": {UPDATED: _go_time(now_s)}},
            "data": {"status": yaml.safe_dump(document, sort_keys=False)}}
