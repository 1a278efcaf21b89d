"""plan(pod, seen, memory, now) -> actions: what a kubelet does next for one pod. Pure; act.py performs, status.py reports.

Actions are done in order. A failed StopPod, Kill, CreateSandbox or Start of an init container ends the list; a failed Start of
another container does not stop its siblings. Then the runtime is looked at again and the plan is made anew: nothing is remembered
but what `Memory` holds. Upstream: pkg/kubelet/kuberuntime computePodActions and SyncPod; KEP-753 (sidecars), KEP-5307 (restart rules).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubern.kubelet import pods
from kubern.kubelet.backoff import Backoff, go_duration
from kubern.kubelet.runtime import CREATED, EXITED, RUNNING, Container, Observed
from kubern.model.object import Object


@dataclass(frozen=True, slots=True)
class StopPod:
    """Stop every container and the sandboxes. `recreate`: a new sandbox follows."""

    recreate: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """Stop one container. `why` is "" | LivenessProbe | StartupProbe | Unknown, it chooses the grace period."""

    id: str
    name: str
    message: str
    why: str = ""
    grace_s: int | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    attempt: int
    changed: bool            # it replaces one: worth an event


@dataclass(frozen=True, slots=True)
class Start:
    kind: str                # init | container | ephemeral
    name: str
    attempt: int             # restart count of the new container
    backoff_key: str = ""
    finished_s: float = 0.0  # when its predecessor ended; counts into the back-off


@dataclass(frozen=True, slots=True)
class Wait:
    """A container in its restart back-off until `until_s`."""

    kind: str
    name: str
    until_s: float
    message: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Give a running container other cpu or memory limits, in place."""

    id: str
    name: str


Action = StopPod | Kill | Remove | CreateSandbox | Start | Wait | Resize


@dataclass(slots=True)
class Memory:
    """What the kubelet knows of a pod beyond pod and runtime. Probe results by container id: True passed, False failed, absent unknown."""

    liveness: Mapping[str, bool] = field(default_factory=dict)
    startup: Mapping[str, bool] = field(default_factory=dict)
    backoff: Backoff = field(default_factory=Backoff)
    restart_all: bool = False
    resized: frozenset[str] = frozenset()        # names of containers whose resources differ from those they run with
    actuated: Mapping[str, Any] = field(default_factory=dict)


def plan(pod: Object, seen: Observed, memory: Memory, now: float) -> list[Action]:
    """The actions that bring the pod nearer to its spec; [] when there is nothing to do."""
    spec = pod["spec"]
    create, attempt, sandbox_id = pods.needs_sandbox(pod, seen)
    if memory.restart_all and not create:
        return _reset(pod, seen)
    if create:
        return _fresh(pod, seen, memory, now, attempt, sandbox_id)

    out: list[Action] = []
    starts: list[Action] = []
    for c in spec.get("ephemeralContainers") or ():
        if seen.latest(c["name"]) is None:
            starts.append(Start("ephemeral", c["name"], 0))

    initialized, stop, kills, init_starts = _init(pod, seen, memory, now)
    if stop:
        return [StopPod(False)]
    if not initialized:
        return [*kills, *starts, *init_starts]

    keep = 0
    main_starts: list[Action] = []
    resizes: list[Action] = []
    for c in spec.get("containers") or ():
        last = seen.latest(c["name"])
        if last is None or last.state != RUNNING:
            if pods.should_start(pod, c, seen):
                main_starts.append(_start("container", pod, c, seen, memory, now))
                if last is not None and last.state not in (EXITED, CREATED):
                    message = f'Container is in "{last.state}" state, try killing it before restart'
                    kills.append(Kill(last.id, c["name"], message, "Unknown"))
            continue
        restart = (c.get("restartPolicy") or spec.get("restartPolicy") or "Always") != "Never"
        if last.hash and last.hash != pods.container_hash(c):
            message, why, restart = f"Container {c['name']} definition changed", "", True
        elif memory.liveness.get(last.id) is False:
            message, why = f"Container {c['name']} failed liveness probe", "LivenessProbe"
        elif memory.startup.get(last.id) is False:
            message, why = f"Container {c['name']} failed startup probe", "StartupProbe"
        elif c["name"] in memory.resized and _resize_restarts(c, memory.actuated.get(c["name"]) or {}):
            message, why, restart = f"Container {c['name']} resize requires restart", "", True
        else:
            keep += 1
            if c["name"] in memory.resized:
                resizes.append(Resize(last.id, c["name"]))
            continue
        if restart:
            message += ", will be restarted"
            main_starts.append(_start("container", pod, c, seen, memory, now))
        kills.append(Kill(last.id, c["name"], message, why))
    if not keep and not main_starts:
        return [StopPod(False)]
    out += kills
    out += starts
    out += init_starts
    out += resizes
    out += main_starts
    return out


def _fresh(pod: Object, seen: Observed, memory: Memory, now: float, attempt: int, sandbox_id: str) -> list[Action]:
    """No usable sandbox: stop what is left; start over unless the pod has done its work."""
    spec = pod["spec"]
    head: list[Action] = [StopPod(True)] if sandbox_id or seen.running else []
    if spec.get("restartPolicy") == "Never" and attempt and seen.containers:
        return [StopPod(False)] if seen.running else []
    todo = []
    for c in spec.get("containers") or ():
        policy = c.get("restartPolicy") or spec.get("restartPolicy")
        last = seen.latest(c["name"])
        if policy == "OnFailure" and last is not None and last.state == EXITED and last.exit_code == 0:
            continue
        todo.append(c)
    if not todo and pods.any_regular_created(pod, seen):
        return [StopPod(False)] if seen.running else []
    head.append(CreateSandbox(attempt, bool(sandbox_id)))
    inits = spec.get("initContainers") or ()
    if inits:
        first = inits[0]
        return [*head, _start("init", pod, first, seen, memory, now)]
    return [*head, *(_start("container", pod, c, seen, memory, now) for c in todo)]


def _init(pod: Object, seen: Observed, memory: Memory, now: float) -> tuple[bool, bool, list[Action], list[Action]]:
    """(initialized, stop the pod, kills, starts). From the last init container back to the first that has a state: what comes before it
    is done, whether or not the runtime still remembers."""
    spec = pod["spec"]
    inits = spec.get("initContainers") or []
    kills: list[Action] = []
    if not inits:
        return True, False, kills, []
    initialized = any((last := seen.latest(c["name"])) is not None and last.state in (CREATED, RUNNING)
                      for c in spec.get("containers") or ())
    before = initialized                       # the one looked at was initialized before
    todo: list[int] = []
    for i in range(len(inits) - 1, -1, -1):
        c = inits[i]
        sidecar = pods.is_sidecar(c)
        last = seen.latest(c["name"])
        if last is None:
            if before and sidecar:
                todo.append(i)
            continue
        if before and not sidecar:
            continue
        if last.state == CREATED:
            todo.append(i)
        elif last.state == RUNNING:
            if sidecar:
                initialized = _running_sidecar(c, last, i, inits, memory, before, initialized, kills, todo)
        elif last.state == EXITED:
            if sidecar:
                todo.append(i)
            elif last.exit_code != 0:
                if not pods.restarts_after(c, spec, last.exit_code):
                    return False, True, kills, []
                todo.append(i)
            elif i == len(inits) - 1:
                initialized = True
            else:
                todo.append(i + 1)
        else:
            if not sidecar and (c.get("restartPolicy") or spec.get("restartPolicy")) == "Never":
                return False, True, kills, []
            kills.append(Kill(last.id, c["name"], f'Init container is in "{last.state}" state, try killing it before restart', "Unknown"))
            todo.append(i)
        before = True
    if not before:
        todo.append(0)
    starts: list[Action] = []
    for i in reversed(todo):
        starts.append(_start("init", pod, inits[i], seen, memory, now))
    return initialized, False, kills, starts


def _running_sidecar(c: Mapping[str, Any], last: Container, i: int, inits: list[dict[str, Any]], memory: Memory, before: bool,
                     initialized: bool, kills: list[Action], todo: list[int]) -> bool:
    """What a running sidecar means for the pod's initialization; appends to kills and todo."""
    name = c["name"]
    if c.get("startupProbe"):
        passed = memory.startup.get(last.id)
        if passed is None:
            return initialized
        if not passed:
            kills.append(Kill(last.id, name, f"Init container {name} failed startup probe", "StartupProbe"))
            todo.append(i)
            return initialized
    if i == len(inits) - 1:
        initialized = True
    elif not before:
        todo.append(i + 1)
    if last.hash and last.hash != pods.container_hash(c):
        kills.append(Kill(last.id, name, f"Init container {name} definition changed"))
        todo.append(i)
    elif c.get("livenessProbe") and memory.liveness.get(last.id) is False:
        kills.append(Kill(last.id, name, f"Init container {name} failed liveness probe", "LivenessProbe"))
        todo.append(i)
    return initialized


def _start(kind: str, pod: Object, c: Mapping[str, Any], seen: Observed, memory: Memory, now: float) -> Action:
    """Start, or Wait while the back-off since the container last ended runs. One that is about to be killed has not ended yet: then the
    end of the one before it counts, so that failing probes run into the back-off as well."""
    every = seen.all_of(c["name"])
    attempt = every[0].restart_count + 1 if every else 0
    ended = next((x for x in every if x.state == EXITED), None)
    if ended is None:
        return Start(kind, c["name"], attempt)
    key = pods.full_key(pod, c)
    finished = ended.finished_ns / 1e9
    if memory.backoff.waiting(key, finished, now):
        delay = memory.backoff.delay(key)
        return Wait(kind, c["name"], finished + delay,
                    f"back-off {go_duration(delay)} restarting failed container={c['name']} pod={pods.describe(pod)}")
    return Start(kind, c["name"], attempt, key, finished)


def _reset(pod: Object, seen: Observed) -> list[Action]:
    """Restart all containers in place: the ones that run are killed at once, all are removed, those that caused it last."""
    spec = pod["spec"]
    targets: list[Action] = []
    causes: list[Action] = []
    for group in ("containers", "initContainers"):
        for c in reversed(spec.get(group) or ()):
            last = seen.latest(c["name"])
            if last is None:
                continue
            cause = last.state == EXITED and pods.matching_rule(c, last.exit_code) == "RestartAllContainers"
            into = causes if cause else targets
            if last.state == RUNNING:
                into.append(Kill(last.id, c["name"], "killing", "RestartAllContainers", 0))
            into.append(Remove(last.id, c["name"]))
    return targets + causes


def _resize_restarts(c: Mapping[str, Any], actuated: Mapping[str, Any]) -> bool:
    """Whether the resize policy of a resource that changed asks for a restart."""
    policies = {p["resourceName"]: p["restartPolicy"] for p in c.get("resizePolicy") or ()}
    wanted = c.get("resources") or {}
    for resource in ("cpu", "memory"):
        changed = any((wanted.get(k) or {}).get(resource) != (actuated.get(k) or {}).get(resource) for k in ("requests", "limits"))
        if changed and policies.get(resource) == "RestartContainer":
            return True
    return False


def kill_order(pod: Object, seen: Observed) -> tuple[list[Container], list[list[Container]]]:
    """Running containers of a pod that ends: (regular and ephemeral ones, then sidecars from the last to the first, each alone)."""
    spec = pod["spec"]
    alive = {c.name: c for c in reversed(seen.containers) if c.state in (RUNNING, CREATED, "unknown")}
    sidecars = [c["name"] for c in spec.get("initContainers") or () if pods.is_sidecar(c)]
    first = [c for n, c in alive.items() if n not in sidecars]
    return first, [[alive[n]] for n in reversed(sidecars) if n in alive]


def grace_period(pod: Object, container: Mapping[str, Any], why: str) -> int:
    """Seconds a container gets: what the deletion asked, or a probe's own, or the pod's."""
    meta, spec = pod["metadata"], pod["spec"]
    if meta.get("deletionGracePeriodSeconds") is not None:
        return int(meta["deletionGracePeriodSeconds"])
    probe = {"StartupProbe": "startupProbe", "LivenessProbe": "livenessProbe"}.get(why)
    if probe:
        own = (container.get(probe) or {}).get("terminationGracePeriodSeconds")
        if own is not None:
            return int(own)
    if spec.get("terminationGracePeriodSeconds") is not None:
        return int(spec["terminationGracePeriodSeconds"])
    return 2
