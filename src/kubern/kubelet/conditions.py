"""Phase and conditions of a pod, from the statuses of its containers. Pure.

Upstream: pkg/kubelet kubelet_pods.go getPhase, status/generate.go; KEP-753 (sidecars), KEP-5532 (restart of all containers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubern.kubelet import pods
from kubern.kubelet.runtime import Observed
from kubern.model.object import Object

Status = dict[str, Any]

RESTARTING = "RestartingAllContainers"


def phase(pod: Object, every: Mapping[str, Status], terminal: bool, initialized: bool) -> str:
    spec = pod["spec"]
    pending_init = pending_sidecars = lost_init = 0
    unknown = running = waiting = stopped = final = succeeded = 0
    for c in spec.get("initContainers") or ():
        s = every.get(c["name"])
        if pods.is_sidecar(c):
            if s is None:
                unknown += 1
            elif "running" in s["state"]:
                pending_sidecars += not _started(s, c)
                running += 1
            elif "waiting" in s["state"] and not s["lastState"].get("terminated"):
                pending_sidecars += 1
                waiting += 1
            continue
        ended = _ended(s)
        if ended is None:
            pending_init += 1
        elif ended["exitCode"] != 0 and not _restartable(c, spec, ended):
            lost_init += 1
    for c in spec.get("containers") or ():
        s = every.get(c["name"])
        if s is None:
            unknown += 1
        elif "running" in s["state"]:
            running += 1
        elif (ended := _ended(s)) is not None:
            stopped += 1
            final += not _restartable(c, spec, ended)
            succeeded += "terminated" in s["state"] and ended["exitCode"] == 0
        elif "waiting" in s["state"]:
            waiting += 1
        else:
            unknown += 1
    if lost_init:
        return "Failed"
    if pending_init or (pending_sidecars and not initialized) or waiting:
        return "Pending"
    if running and not unknown:
        return "Running"
    if stopped and not unknown:
        if terminal and not pods.is_static(pod):
            return "Succeeded" if stopped == succeeded else "Failed"
        if stopped != final:
            return "Running"
        return "Succeeded" if stopped == succeeded else "Failed"
    return "Pending"


def _started(s: Status, c: Mapping[str, Any]) -> bool:
    """While the phase is computed `started` is not filled in yet for a fresh sidecar: without startup probe it has started."""
    return bool(s.get("started", not c.get("startupProbe")))


def _ended(s: Status | None) -> dict[str, Any] | None:
    """How a container ended: now, or before the restart it waits for."""
    if s is None:
        return None
    if "terminated" in s["state"]:
        return s["state"]["terminated"]
    return s["lastState"].get("terminated") if "waiting" in s["state"] else None


def _restartable(c: Mapping[str, Any], spec: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    return pods.restarts_after(c, spec, ended["exitCode"]) or ended.get("reason") == RESTARTING


def condition(type_: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {"type": type_, "status": status, "lastProbeTime": None}
    if reason:
        out["reason"] = reason
    if message:
        out["message"] = message
    return out


def _names(names: list[str]) -> str:
    return "[" + " ".join(names) + "]"


def containers_ready(pod: Object, every: Mapping[str, Status], phase: str) -> dict[str, Any]:
    spec = pod["spec"]
    unknown, unready = [], []
    for c in (*(c for c in spec.get("initContainers") or () if pods.is_sidecar(c)), *(spec.get("containers") or ())):
        s = every.get(c["name"])
        if s is None:
            unknown.append(c["name"])
        elif not s["ready"]:
            unready.append(c["name"])
    if phase == "Succeeded" and not unknown:
        return condition("ContainersReady", "False", "PodCompleted")
    if phase == "Failed":
        return condition("ContainersReady", "False", "PodFailed")
    texts = [f"containers with unknown status: {_names(unknown)}"] * bool(unknown) + \
            [f"containers with unready status: {_names(unready)}"] * bool(unready)
    if texts:
        return condition("ContainersReady", "False", "ContainersNotReady", ", ".join(texts))
    return condition("ContainersReady", "True")


def ready(pod: Object, others: list[dict[str, Any]], containers: Mapping[str, Any]) -> dict[str, Any]:
    if containers["status"] != "True":
        return condition("Ready", containers["status"], containers.get("reason", ""), containers.get("message", ""))
    texts = []
    have = {c["type"]: c["status"] for c in others}
    for gate in pod["spec"].get("readinessGates") or ():
        t = gate["conditionType"]
        if t not in have:
            texts.append(f'corresponding condition of pod readiness gate "{t}" does not exist.')
        elif have[t] != "True":
            texts.append(f'the status of pod readiness gate "{t}" is not "True", but {have[t]}')
    if texts:
        return condition("Ready", "False", "ReadinessGatesNotReady", ", ".join(texts))
    return condition("Ready", "True")


def initialized(pod: Object, every: Mapping[str, Status], phase: str, old: Mapping[str, Any]) -> dict[str, Any]:
    spec = pod["spec"]
    unknown, incomplete = [], []
    for c in spec.get("initContainers") or ():
        s = every.get(c["name"])
        if s is None:
            unknown.append(c["name"])
        elif not (s["started"] if pods.is_sidecar(c) else s["ready"]):
            incomplete.append(c["name"])
    if phase == "Succeeded" and not unknown:
        return condition("Initialized", "True", "PodCompleted")
    if any((s := every.get(c["name"])) and ("running" in s["state"] or "terminated" in s["state"]) for c in spec.get("containers") or ()):
        return condition("Initialized", "True")
    texts = [f"containers with unknown status: {_names(unknown)}"] * bool(unknown) + \
            [f"containers with incomplete status: {_names(incomplete)}"] * bool(incomplete)
    if texts:
        if any(c["type"] == "Initialized" and c["status"] == "True" for c in old.get("conditions") or ()):
            return condition("Initialized", "True")
        return condition("Initialized", "False", "ContainersNotInitialized", ", ".join(texts))
    return condition("Initialized", "True")


def restarting_all(pod: Object, seen: Observed, phase: str, restarting: bool) -> dict[str, Any]:
    if phase in ("Succeeded", "Failed"):
        return condition("AllContainersRestarting", "False", "PodCompleted" if phase == "Succeeded" else "PodFailed")
    gone = all(seen.latest(c["name"]) is None for kind, c in pods.every_container(pod["spec"]) if kind != "ephemeral")
    if not restarting or gone:
        return condition("AllContainersRestarting", "False")
    return condition("AllContainersRestarting", "True", "RestartAllContainersStarted", "container exited with restart policy rule")
