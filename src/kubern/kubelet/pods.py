"""Questions about a pod's spec that plan, status and the shell ask alike. Pure; no opinions about what to do.

Upstream: pkg/api/v1/pod/util.go, pkg/apis/core/v1/helper/qos.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from kubern.kubelet.runtime import CREATED, EXITED, RUNNING, UNKNOWN, Observed
from kubern.model import quantity
from kubern.model.object import Object

Spec = Mapping[str, Any]

STATIC_SOURCE = "kubernetes.io/config.source"
MIRROR = "kubernetes.io/config.mirror"


def is_sidecar(container: Spec) -> bool:
    """An init container that keeps running: restartPolicy Always."""
    return container.get("restartPolicy") == "Always"


def every_container(spec: Spec) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, container) with kind init | container | ephemeral, in the order they start."""
    for c in spec.get("initContainers") or ():
        yield "init", c
    for c in spec.get("containers") or ():
        yield "container", c
    for c in spec.get("ephemeralContainers") or ():
        yield "ephemeral", c


def find_container(spec: Spec, name: str) -> dict[str, Any] | None:
    for _, c in every_container(spec):
        if c["name"] == name:
            return c
    return None


def host_network(pod: Object) -> bool:
    return bool(pod["spec"].get("hostNetwork"))


def is_static(pod: Object) -> bool:
    source = (pod["metadata"].get("annotations") or {}).get(STATIC_SOURCE)
    return source is not None and source != "api"


def describe(pod: Object) -> str:
    """name_namespace(uid), as upstream's messages name a pod."""
    m = pod["metadata"]
    return f"{m['name']}_{m.get('namespace', '')}({m.get('uid', '')})"


def full_key(pod: Object, container: Spec) -> str:
    """What back-off is counted by: the pod, the container, and the part of its definition that makes it another one."""
    m = pod["metadata"]
    return f"{m.get('uid', '')}_{m.get('namespace', '')}_{m['name']}_{container['name']}_{container_hash(container)}"


def container_hash(container: Spec) -> str:
    """Changes when a running container must be replaced: only by name and image."""
    return hashlib.sha1(f"{container['name']}\0{container.get('image', '')}".encode()).hexdigest()[:8]


def matching_rule(container: Spec, exit_code: int) -> str:
    """The action of the first restartPolicyRule that matches, "" for none."""
    for rule in container.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes")
        if not codes:
            continue
        hit = exit_code in (codes.get("values") or ())
        if (codes.get("operator") == "In" and hit) or (codes.get("operator") == "NotIn" and not hit):
            return rule.get("action") or ""
    return ""


def restarts_after(container: Spec, spec: Spec, exit_code: int) -> bool:
    """Whether a container that ended with this code is to be started again: its rules, then its policy, then the pod's."""
    policy = container.get("restartPolicy")
    if policy:
        if matching_rule(container, exit_code) in ("Restart", "RestartAllContainers"):
            return True
    else:
        policy = spec.get("restartPolicy") or "Always"
    if policy == "OnFailure":
        return exit_code != 0
    return policy != "Never"


def should_start(pod: Object, container: Spec, seen: Observed) -> bool:
    """Whether a container that does not run is to be started (again)."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    last = seen.latest(container["name"])
    if last is None:
        return True
    if last.state == RUNNING:
        return False
    if last.state in (UNKNOWN, CREATED):
        return True
    return restarts_after(container, pod["spec"], last.exit_code)


def needs_sandbox(pod: Object, seen: Observed) -> tuple[bool, int, str]:
    """(a new sandbox is needed, its attempt, id of the newest one if it is to be killed)."""
    if not seen.sandboxes:
        return True, 0, ""
    newest = seen.sandboxes[0]
    if sum(s.ready for s in seen.sandboxes) > 1 or not newest.ready:
        return True, newest.attempt + 1, newest.id
    if newest.host_network != host_network(pod):
        return True, newest.attempt + 1, ""
    if not host_network(pod) and newest.network_known and not newest.ips:
        return True, newest.attempt + 1, newest.id
    return False, newest.attempt, newest.id


def any_regular_created(pod: Object, seen: Observed) -> bool:
    return any(seen.latest(c["name"]) is not None for c in pod["spec"].get("containers") or ())


def any_regular_active(pod: Object, seen: Observed) -> bool:
    """A regular container of the newest sandbox has started at some time (running, or ended in this sandbox)."""
    if not seen.sandboxes:
        return False
    newest = seen.sandboxes[0].id
    names = {c["name"] for c in pod["spec"].get("containers") or ()}
    return any(c.name in names and c.sandbox_id == newest and c.state in (RUNNING, EXITED) for c in seen.containers)


def restart_all_possible(spec: Spec) -> bool:
    return any(r.get("action") == "RestartAllContainers" for _, c in every_container(spec) for r in c.get("restartPolicyRules") or ())


def restart_all_wanted(pod: Object, seen: Observed, status: Mapping[str, Any]) -> bool:
    """A container ended in a way that restarts all of them, or that is under way."""
    if not restart_all_possible(pod["spec"]):
        return False
    for cond in status.get("conditions") or ():
        if cond["type"] == "AllContainersRestarting" and cond["status"] == "True":
            return True
    for kind, c in every_container(pod["spec"]):
        if kind == "ephemeral":
            continue
        last = seen.latest(c["name"])
        if last is not None and last.state == EXITED and matching_rule(c, last.exit_code) == "RestartAllContainers":
            return True
    return False


def qos_class(pod: Object) -> str:
    """Guaranteed, Burstable or BestEffort, from requests and limits of cpu and memory."""
    from kubern.model import quantity

    spec = pod["spec"]
    if (pod.get("status") or {}).get("qosClass"):
        return pod["status"]["qosClass"]
    level = spec.get("resources") or {}
    parts = [level] if (level.get("requests") or level.get("limits")) else \
        [c.get("resources") or {} for kind, c in every_container(spec) if kind != "ephemeral"]
    requests: dict[str, int] = {}
    limits: dict[str, int] = {}
    guaranteed = True
    for r in parts:
        asked = {k: quantity.milli(v) for k, v in (r.get("requests") or {}).items() if k in ("cpu", "memory")}
        capped = {k: quantity.milli(v) for k, v in (r.get("limits") or {}).items() if k in ("cpu", "memory")}
        for k, v in asked.items():
            if v:
                requests[k] = requests.get(k, 0) + v
        for k, v in capped.items():
            if v:
                limits[k] = limits.get(k, 0) + v
        if not all(capped.get(k) for k in ("cpu", "memory")):
            guaranteed = False
    if not requests and not limits:
        return "BestEffort"
    if guaranteed and all(requests.get(k, limits.get(k)) == limits.get(k) for k in ("cpu", "memory")) and len(requests) in (0, len(limits)):
        return "Guaranteed"
    return "Burstable"


def resources(spec: Mapping[str, Any], which: str) -> dict[str, str]:
    """What a pod asks for in all (or its limits): pod level first, else containers and sidecars together or the largest moment of
    initialization; plus overhead."""
    total: dict[str, str] = {}
    sidecars: dict[str, str] = {}
    peak: dict[str, str] = {}

    def of(c: Mapping[str, Any]) -> dict[str, str]:
        return {k: str(v) for k, v in ((c.get("resources") or {}).get(which) or {}).items()}

    def plus(into: dict[str, str], more: Mapping[str, str]) -> None:
        for k, v in more.items():
            into[k] = quantity.add(into[k], v) if k in into else v

    def larger(into: dict[str, str], other: Mapping[str, str]) -> None:
        for k, v in other.items():
            if k not in into or quantity.compare(into[k], v) < 0:
                into[k] = v

    for c in spec.get("containers") or ():
        plus(total, of(c))
    for c in spec.get("initContainers") or ():
        if is_sidecar(c):
            plus(sidecars, of(c))
            plus(total, of(c))
            larger(peak, sidecars)
        else:
            at_once = dict(sidecars)
            plus(at_once, of(c))
            larger(peak, at_once)
    larger(total, peak)
    total.update(of(spec))
    overhead = {k: str(v) for k, v in (spec.get("overhead") or {}).items()}
    plus(total, overhead if which == "requests" else {k: v for k, v in overhead.items() if k in total})
    return total
