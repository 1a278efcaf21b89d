"""Who has to go when the node runs short, and who used more than it may. Pure.

In: what there is of each resource, thresholds, what was decided before; pods with what they use. Out: conditions of the node, the shortage to act
on, the victims in order, and the words of their end. Upstream: pkg/kubelet/eviction (helpers.go, eviction_manager.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubern.kubelet import pods
from kubern.kubelet.configuration import CRITICAL_PRIORITY, Threshold
from kubern.model import quantity
from kubern.model.object import Object

REASON = "Evicted"
MEMORY, DISK, PID = "MemoryPressure", "DiskPressure", "PIDPressure"
RESOURCE = {"memory.available": "memory", "allocatableMemory.available": "memory", "nodefs.available": "ephemeral-storage",
            "imagefs.available": "ephemeral-storage", "containerfs.available": "ephemeral-storage", "nodefs.inodesFree": "inodes",
            "imagefs.inodesFree": "inodes", "containerfs.inodesFree": "inodes", "pid.available": "pids"}
CONDITION = {s: MEMORY if r == "memory" else PID if r == "pids" else DISK for s, r in RESOURCE.items()}


@dataclass(frozen=True, slots=True)
class Amount:
    """Of one signal: what there is and how much there could be."""

    available: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Shortages:
    """What is remembered from pass to pass."""

    since: Mapping[Threshold, float] = field(default_factory=dict)      # crossed -> since when
    acted: tuple[Threshold, ...] = ()                                   # those past their grace, not yet relieved
    last_seen: Mapping[str, float] = field(default_factory=dict)        # condition -> when it last held
    conditions: frozenset[str] = frozenset()


def crossed(thresholds: Iterable[Threshold], seen: Mapping[str, Amount], relieved: bool = False) -> list[Threshold]:
    """`relieved`: count what has to be reclaimed beyond the threshold as well."""
    out = []
    for t in thresholds:
        have = seen.get(t.signal)
        if have is not None and have.available < t.limit(have.capacity) + (t.reclaim if relieved else 0):
            out.append(t)
    return out


def judge(before: Shortages, thresholds: Sequence[Threshold], seen: Mapping[str, Amount], now: float, transition_s: float) -> tuple[Shortages, list[Threshold]]:
    """(what to remember, shortages to act on, the first one first). A condition holds until it has not been seen for the transition period."""
    hit = list(dict.fromkeys([*crossed(thresholds, seen), *crossed(before.acted, seen, relieved=True)]))
    since = {t: min(now, before.since.get(t, now)) for t in hit}              # min: the clock may have been set back
    last_seen = {c: min(now, at) for c, at in before.last_seen.items()} | {CONDITION[t.signal]: now for t in hit}
    conditions = frozenset(c for c, at in last_seen.items() if now - at < transition_s or at == now)
    due = [t for t in hit if now - since[t] >= t.grace_s]
    due.sort(key=lambda t: (RESOURCE[t.signal] != "memory", t.grace_s > 0))
    return Shortages(since, tuple(due), last_seen, conditions), due


def refused(pod: Object, conditions: Iterable[str], tolerates_memory: bool) -> str:
    """Why a node under pressure does not take this pod, "" if it does."""
    held = sorted(conditions)
    if not held or _protected(pod):
        return ""
    if held == [MEMORY] and (pods.qos_class(pod) != "BestEffort" or tolerates_memory):
        return ""
    return f"The node had condition: [{' '.join(held)}]. "


def _protected(pod: Object) -> bool:
    return pods.is_static(pod) or (pod["spec"].get("priority") or 0) >= CRITICAL_PRIORITY


def rank(resource: str, candidates: Iterable[tuple[Object, int]]) -> list[tuple[Object, int]]:
    """First to go first: those over their request, then by priority, then by how far they are over it. Static and critical pods stay."""

    def order(item: tuple[Object, int]) -> tuple[bool, int, int]:
        pod, used = item
        priority = pod["spec"].get("priority") or 0
        if resource in ("pids", "inodes"):
            return False, priority, -used
        asked = quantity.value(pods.resources(pod["spec"], "requests").get(resource, "0"))
        return used <= asked, priority, asked - used

    return sorted((c for c in candidates if not _protected(c[0])), key=order)


def low_message(resource: str, pod: Object, containers: Mapping[str, int], threshold: int, available: int) -> str:
    """Why: the node's shortage, then the containers that use more than they asked for."""
    text = f"The node was low on resource: {resource}. Threshold quantity: {_binary(threshold)}, available: {_binary(available)}. "
    if resource not in ("memory", "ephemeral-storage"):
        return text
    for c in (*(pod["spec"].get("containers") or ()), *(pod["spec"].get("initContainers") or ())):
        asked = quantity.value(str(((c.get("resources") or {}).get("requests") or {}).get(resource) or "0"))
        used = containers.get(c["name"], 0)
        if used > asked:
            text += f"Container {c['name']} was using {_binary(used)}, request is {_binary(asked) if asked else 0}, " \
                    f"has larger consumption of {resource}. "
    return text


def _binary(n: int) -> str:
    return quantity.of_value(n - n % 1024, "BinarySI") if n >= 1024 else str(n)


def over_limit(pod: Object, volumes: Mapping[str, int], containers: Mapping[str, int]) -> str:
    """What a pod used beyond its own limits of local storage, "" if nothing."""
    spec = pod["spec"]
    for v in spec.get("volumes") or ():
        limit = (v.get("emptyDir") or {}).get("sizeLimit")
        if limit and quantity.value(str(limit)) and volumes.get(v["name"], 0) > quantity.value(str(limit)):
            return f'Usage of EmptyDir volume "{v["name"]}" exceeds the limit "{limit}". '
    limits: dict[str, Any] = {c["name"]: ((c.get("resources") or {}).get("limits") or {}).get("ephemeral-storage") for c in spec.get("containers") or ()}
    for name, limit in limits.items():
        if limit and containers.get(name, 0) > quantity.value(str(limit)):
            return f"Container {name} exceeded its local ephemeral storage limit \"{limit}\". "
    whole = pods.resources(spec, "limits").get("ephemeral-storage")
    if whole and limits and all(limits.values()):
        used = sum(containers.values()) + sum(volumes.get(v["name"], 0) for v in spec.get("volumes") or () if "emptyDir" in v)
        if used > quantity.value(whole):
            return f"Pod ephemeral local storage usage exceeds the total limit of containers {whole}. "
    return ""
