"""pod_status(pod, seen, …) -> the status a kubelet reports: container statuses, addresses, and what conditions.py makes of them. Pure.

`old` is the status last reported (or the API's); conditions of others are carried over untouched. Upstream: pkg/kubelet
kubelet_pods.go generateAPIPodStatus, status/generate.go, prober_manager.go UpdatePodStatus; KEP-3085 (PodReadyToStartContainers),
KEP-5067 (observedGeneration), KEP-1287 (resources in status).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubern.kubelet import conditions, pods
from kubern.kubelet.conditions import RESTARTING
from kubern.kubelet.runtime import EXITED, RUNNING, UNKNOWN, Container, Observed
from kubern.model.object import Object

Status = dict[str, Any]

OWN_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled",
                  "PodResizePending", "PodResizeInProgress", "AllContainersRestarting")
LOST = {"reason": "ContainerStatusUnknown", "exitCode": 137}
LOST_TERMINATED = "The container could not be located when the pod was terminated"
LOST_DELETED = "The container could not be located when the pod was deleted.  The container used to be Running"


@dataclass(frozen=True, slots=True)
class Facts:
    """What status needs beyond pod and runtime."""

    waiting: Mapping[str, tuple[str, str]] = field(default_factory=dict)   # container -> (reason, message) of its failed start
    startup: Mapping[str, bool] = field(default_factory=dict)              # probe results by container id
    readiness: Mapping[str, bool] = field(default_factory=dict)
    host_ips: tuple[str, ...] = ()
    scheme: str = "containerd"
    evicted: tuple[str, str] | None = None                                 # (reason, message): failed for a reason of the node's
    resize: tuple[tuple[str, str, str], ...] = ()                          # (condition type, reason, message) of a resize under way
    actuated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)   # container -> resources it runs with
    began_s: float = 0.0                                                   # when this kubelet began
    pending: bool = False                                                  # a resize is not granted: allocated is what runs
    disruption: str = ""                                                   # why the node itself ended it


def stamp(seconds: float) -> str:
    """metav1.Time."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_status(pod: Object, seen: Observed, old: Mapping[str, Any], facts: Facts, now: float, terminal: bool = False) -> Status:
    """The whole status. `terminal`: no container will run again."""
    spec = pod["spec"]
    api = pod.get("status") or {}
    out: Status = {}
    if pod["metadata"].get("generation"):
        out["observedGeneration"] = pod["metadata"]["generation"]
    restarting = pods.restart_all_wanted(pod, seen, old)
    regular = _statuses(pod, seen, old.get("containerStatuses") or (), spec.get("containers") or (), False, restarting, facts)
    inits = _statuses(pod, seen, old.get("initContainerStatuses") or (), spec.get("initContainers") or (), True, restarting, facts)
    ephemeral = _statuses(pod, seen, old.get("ephemeralContainerStatuses") or (), spec.get("ephemeralContainers") or (), False,
                          restarting, facts)
    every = {s["name"]: s for s in (*inits, *regular)}
    phase = conditions.phase(pod, every, terminal, pods.any_regular_active(pod, seen))
    if phase not in ("Failed", "Succeeded"):
        for before in (old.get("phase"), api.get("phase")):
            if before in ("Failed", "Succeeded"):
                phase = before
                break
    reason = message = ""
    if phase == old.get("phase"):
        reason = old.get("reason") or api.get("reason") or ""
        message = old.get("message") or api.get("message") or ""
    if facts.evicted:
        phase, (reason, message) = "Failed", facts.evicted
    if api.get("phase") in ("Failed", "Succeeded"):
        phase = api["phase"]
    out["phase"] = phase
    _probed(pod, old, inits, regular, facts)

    others: list[dict[str, Any]] = [dict(c) for c in api.get("conditions") or () if c["type"] not in OWN_CONDITIONS]
    generation = pod["metadata"].get("generation") or 0
    mine: list[dict[str, Any]] = [conditions.condition(t, "True", r, m) for t, r, m in facts.resize]
    if facts.disruption:
        others = [c for c in others if c["type"] != "DisruptionTarget"]
        mine.append(conditions.condition("DisruptionTarget", "True", "TerminationByKubelet", facts.disruption))
    changed, _, _ = pods.needs_sandbox(pod, seen)
    mine.append(conditions.condition("PodReadyToStartContainers", "False" if changed else "True"))
    mine.append(conditions.initialized(pod, every, phase, old))
    containers_ready = conditions.containers_ready(pod, every, phase)
    mine.append(conditions.ready(pod, others, containers_ready))
    mine.append(containers_ready)
    mine.append(conditions.condition("PodScheduled", "True"))
    if pods.restart_all_possible(spec):
        mine.append(conditions.restarting_all(pod, seen, phase, restarting))
    previous = {c["type"]: c for c in old.get("conditions") or api.get("conditions") or ()}
    for c in mine:
        before = previous.get(c["type"])
        kept = before is not None and before["status"] == c["status"]
        c["lastTransitionTime"] = (before or {}).get("lastTransitionTime") if kept else stamp(now)
        if generation and c["type"] != "AllContainersRestarting":
            c["observedGeneration"] = generation
    out["conditions"] = others + mine

    if reason:
        out["reason"] = reason
    if message:
        out["message"] = message
    _addresses(pod, seen, old, facts, out)
    out["startTime"] = old.get("startTime") or api.get("startTime") or stamp(now)
    out["qosClass"] = pods.qos_class(pod)
    if inits:
        out["initContainerStatuses"] = inits
    if regular:
        out["containerStatuses"] = regular
    if ephemeral:
        out["ephemeralContainerStatuses"] = ephemeral
    requests = pods.resources(spec, "requests")
    if requests:
        out["allocatedResources"] = requests
    level: dict[str, Any] = {}
    for key, value in (("requests", requests), ("limits", (spec.get("resources") or {}).get("limits") or pods.resources(spec, "limits"))):
        if value:
            level[key] = value
    out["resources"] = level
    for key in ("resourceClaimStatuses", "extendedResourceClaimStatus", "nominatedNodeName"):
        if key in api:
            out[key] = api[key]
    return out


def _addresses(pod: Object, seen: Observed, old: Mapping[str, Any], facts: Facts, out: Status) -> None:
    ips = list(seen.ips)
    if facts.host_ips:
        out["hostIP"] = facts.host_ips[0]
        out["hostIPs"] = [{"ip": ip} for ip in facts.host_ips]
        if pods.host_network(pod) and not ips:
            ips = [e["ip"] for e in old.get("podIPs") or ()] or list(facts.host_ips)
    if not ips and not any(s.ready for s in seen.sandboxes):       # a pod that ended keeps its address on record
        ips = [e["ip"] for e in old.get("podIPs") or ()]
    if facts.host_ips:
        # the family of the node's first address comes first
        six = ":" in facts.host_ips[0]
        ips.sort(key=lambda ip: (":" in ip) != six)
    if ips:
        out["podIP"] = ips[0]
        out["podIPs"] = [{"ip": ip} for ip in ips]


# --- containers ---

def _statuses(pod: Object, seen: Observed, previous: Iterable[Mapping[str, Any]], containers: Iterable[dict[str, Any]], init: bool,
              restarting: bool, facts: Facts) -> list[Status]:
    spec = pod["spec"]
    old = {s["name"]: s for s in previous}
    has_init = bool(spec.get("initContainers"))
    default = "PodInitializing" if has_init else "ContainerCreating"
    out: dict[str, Status] = {}
    for c in containers:
        name = c["name"]
        seen_here = seen.all_of(name)[:2]
        before = old.get(name)
        if not seen_here:
            out[name] = _unseen(pod, c, before, default, restarting)
            continue
        status = _converted(seen_here[0], c, before, restarting, facts)
        if len(seen_here) == 2:
            status["lastState"] = _converted(seen_here[1], c, before, restarting, facts)["state"]
        out[name] = status
    for c in containers:
        name = c["name"]
        last = seen.latest(name)
        status = out[name]
        if init:
            if last is not None and last.state == EXITED and last.exit_code == 0 and not pods.is_sidecar(c):
                continue
            if last is None and not pods.is_sidecar(c) and "waiting" in status["state"] and pods.any_regular_created(pod, seen):
                status["state"] = {"terminated": {
                    "exitCode": 0, "reason": "Completed", "startedAt": None, "finishedAt": None,
                    "message": "Unable to get init container status from container runtime and pod has been initialized, "
                               "treat it as exited normally"}}
                continue
        if not pods.should_start(pod, c, seen):
            continue
        why = facts.waiting.get(name)
        if why is None:
            continue
        if "terminated" in status["state"]:
            status["lastState"] = status["state"]
        status["state"] = {"waiting": {k: v for k, v in (("reason", why[0]), ("message", why[1])) if v}}
    if init:
        return [out[c["name"]] for c in containers]
    return [out[n] for n in sorted(out)]


def _blank(c: Mapping[str, Any]) -> Status:
    out: Status = {"name": c["name"], "state": {}, "lastState": {}, "ready": False, "restartCount": 0, "image": c.get("image", ""),
                   "imageID": ""}
    mounts = []
    for m in c.get("volumeMounts") or ():
        one: dict[str, Any] = {"name": m["name"], "mountPath": m["mountPath"]}
        if m.get("readOnly"):
            one["readOnly"] = True
            one["recursiveReadOnly"] = "Disabled"
        mounts.append(one)
    if mounts:
        out["volumeMounts"] = mounts
    return out


def _unseen(pod: Object, c: Mapping[str, Any], before: Mapping[str, Any] | None, default: str, restarting: bool) -> Status:
    """The runtime knows nothing of it: it waits, or it is lost."""
    out = _blank(c)
    out["state"] = {"waiting": {"reason": default}}
    if before is None:
        return out
    state = before.get("state") or {}
    if restarting and "waiting" not in state:
        text = "The container is removed because RestartAllContainers in place"
        out.update(state={"waiting": {"reason": RESTARTING, "message": text}}, restartCount=before.get("restartCount", 0) + 1,
                   lastState={"terminated": {"reason": RESTARTING, "message": text, "exitCode": 137,
                                             "startedAt": None, "finishedAt": None}})
        return out
    if "terminated" in state:
        return dict(before)
    out["restartCount"] = before.get("restartCount", 0)
    out["lastState"] = before.get("lastState") or {}
    if "running" not in state or out["lastState"].get("terminated"):
        return out
    out["lastState"] = {"terminated": {**LOST, "message": LOST_DELETED, "startedAt": None, "finishedAt": None}}
    if not pod["metadata"].get("deletionTimestamp"):
        out["restartCount"] += 1
    return out


def _converted(seen: Container, c: Mapping[str, Any], before: Mapping[str, Any] | None, restarting: bool, facts: Facts) -> Status:
    out = _blank(c)
    id_ = f"{facts.scheme}://{seen.id}"
    out["restartCount"] = seen.restart_count
    out["image"] = seen.image or c.get("image", "")
    out["imageID"] = seen.image_id
    out["containerID"] = id_
    state = (before or {}).get("state") or {}
    if before is not None:
        out["restartCount"] = max(out["restartCount"], before.get("restartCount", 0))
        if before.get("containerID") != id_ and state.get("terminated"):
            out["lastState"] = {"terminated": state["terminated"]}
        elif (before.get("lastState") or {}).get("terminated"):
            out["lastState"] = {"terminated": before["lastState"]["terminated"]}
    if seen.state == RUNNING:
        out["state"] = {"running": {"startedAt": stamp(seen.started_ns / 1e9)}}
        if state.get("terminated") and before is not None and before.get("restartCount", 0) >= seen.restart_count \
                and before.get("containerID") != id_:
            out["restartCount"] = before.get("restartCount", 0) + 1
    elif seen.state == EXITED:
        t = {"exitCode": seen.exit_code, "startedAt": stamp(seen.started_ns / 1e9), "finishedAt": stamp(seen.finished_ns / 1e9),
             "containerID": id_}
        if seen.reason:
            t["reason"] = seen.reason
        if seen.message:
            t["message"] = seen.message
        out["state"] = {"terminated": t}
    elif seen.state == UNKNOWN and state.get("running"):
        out["state"] = {"terminated": {**LOST, "reason": RESTARTING if restarting else LOST["reason"], "message": LOST_TERMINATED,
                                       "startedAt": None, "finishedAt": None}}
        out["restartCount"] = (before or {}).get("restartCount", 0) + 1
    else:
        out["state"] = {"waiting": {}}
    asked = c.get("resources") or {}
    if seen.state == RUNNING and c["name"] in facts.actuated:
        out["resources"] = dict(facts.actuated[c["name"]])
    else:
        out["resources"] = dict(asked)
    granted = facts.actuated.get(c["name"], asked) if facts.pending and seen.state == RUNNING else asked
    if granted.get("requests"):
        out["allocatedResources"] = granted["requests"]
    if seen.user:
        out["user"] = {"linux": dict(seen.user)}
    return out


def _probed(pod: Object, old: Mapping[str, Any], inits: list[Status], regular: list[Status], facts: Facts) -> None:
    """Fills `started` and `ready`. Before a new kubelet has probed, what was reported of the same container stands."""
    specs = {c["name"]: c for _, c in pods.every_container(pod["spec"])}
    before = {s["name"]: s for key in ("initContainerStatuses", "containerStatuses") for s in old.get(key) or ()}
    for s in (*inits, *regular):
        c = specs[s["name"]]
        running = "running" in s["state"]
        id_ = s.get("containerID", "").partition("://")[2]
        was = before.get(s["name"]) or {}
        same = was.get("containerID") == s.get("containerID")
        if not running:
            started = False
        elif id_ in facts.startup:
            started = facts.startup[id_]
        elif c.get("startupProbe"):
            started = bool(same and was.get("started"))
        else:
            started = True
        s["started"] = started
        if s in inits and not pods.is_sidecar(c):
            s["ready"] = (s["state"].get("terminated") or {"exitCode": 1})["exitCode"] == 0
        elif not started:
            s["ready"] = False
        elif id_ in facts.readiness:
            s["ready"] = facts.readiness[id_]
        elif not c.get("readinessProbe"):
            s["ready"] = True
        else:
            s["ready"] = bool(same and was.get("ready"))


# --- the end ---

def ended_status(pod: Object, status: Status) -> Status:
    """The last status of a pod that will not run again: no container without an end, a terminal phase."""
    out = dict(status)
    if _was_initialized(pod, status):
        out["containerStatuses"] = [_lost(s) for s in status.get("containerStatuses") or ()]
    inits = status.get("initContainerStatuses") or []
    last = max((i for i, s in enumerate(inits) if "waiting" not in s["state"] or s["lastState"].get("terminated")), default=0)
    if inits:
        out["initContainerStatuses"] = [_lost(s) if i <= last else s for i, s in enumerate(inits)]
    if out.get("phase") not in ("Succeeded", "Failed") and not pods.is_static(pod):
        out["phase"] = "Failed"
    if out.get("phase") in ("Succeeded", "Failed"):
        out = without_readiness(out)
    return {k: v for k, v in out.items() if v != []}


def without_readiness(status: Status) -> Status:
    """A status with a terminal phase never says ready."""
    reason = "PodCompleted" if status["phase"] == "Succeeded" else "PodFailed"
    conditions = [
        {**c, "status": "False", "reason": reason} if c["type"] in ("Ready", "ContainersReady") and c["status"] == "True" else c
        for c in status.get("conditions") or ()
    ]
    return {**status, "conditions": conditions}


def _lost(s: Status) -> Status:
    if "terminated" in s["state"]:
        return s
    return {**s, "ready": False, "started": False,
            "state": {"terminated": {**LOST, "message": LOST_TERMINATED, "startedAt": None, "finishedAt": None}}}


def _was_initialized(pod: Object, status: Status) -> bool:
    inits = pod["spec"].get("initContainers") or ()
    if not inits:
        return True
    if any(s["lastState"].get("terminated") or "waiting" not in s["state"] for s in status.get("containerStatuses") or ()):
        return True
    states = status.get("initContainerStatuses") or ()
    if not states:
        return False
    last = states[-1]
    if pods.is_sidecar(inits[-1]):
        return "running" in last["state"] and bool(last.get("started"))
    return any((s.get("terminated") or {"exitCode": 1})["exitCode"] == 0 for s in (last["state"], last["lastState"]))


def changed(old: Mapping[str, Any], new: Status) -> dict[str, Any]:
    """The strategic-merge patch of status that turns old into new, {} when there is nothing to say. Only what a kubelet owns."""
    out: dict[str, Any] = {}
    for key, value in new.items():
        if key == "conditions":
            before = {c["type"]: c for c in old.get("conditions") or ()}
            ours = (*OWN_CONDITIONS, "DisruptionTarget")
            diff = [c for c in value if c["type"] in ours and not _same_condition(before.get(c["type"]), c)]
            gone = [t for t in before if t in OWN_CONDITIONS and all(c["type"] != t for c in value)]
            if diff or gone:
                out["$setElementOrder/conditions"] = [{"type": c["type"]} for c in value]
                # a merge keeps what is not named: the reason a condition no longer has must be taken away
                named = [c | {k: None for k in ("reason", "message") if before.get(c["type"], {}).get(k) and k not in c} for c in diff]
                out["conditions"] = [*({"$patch": "delete", "type": t} for t in gone), *named]
        elif old.get(key) != value:
            out[key] = value
            if key in ("podIPs", "hostIPs"):              # merged by ip: what is gone has to be named
                now = {e["ip"] for e in value}
                out[key] = [*({"$patch": "delete", "ip": e["ip"]} for e in old.get(key) or () if e["ip"] not in now), *value]
                out[f"$setElementOrder/{key}"] = value
    for key in ("reason", "message", "podIP", "podIPs"):
        if key in old and key not in new:
            out[key] = None
    return out


def _same_condition(a: Mapping[str, Any] | None, b: Mapping[str, Any]) -> bool:
    if a is None:
        return False
    return all((a.get(k) or None) == (b.get(k) or None)
               for k in ("status", "reason", "message", "lastTransitionTime", "observedGeneration"))

