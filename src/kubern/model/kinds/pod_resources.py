"""What a pod asks for: sums over its containers, and the quality-of-service class that follows from them.

In: a pod spec (v1 JSON). Out: resource lists (name -> quantity text) and the class. Upstream: component-helpers/resource (the
sum over init containers and sidecars, KEP-753), pkg/apis/core/helper/qos, KEP-2837 (pod-level resources).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.model.object import Object
from kubern.model.quantity import add, compare, parse

ResourceList = dict[str, str]
HUGE_PAGES = "hugepages-"


def is_huge_page(name: str) -> bool:
    return name.startswith(HUGE_PAGES)


def is_native(name: str) -> bool:
    """A resource Kubernetes itself defines: without a domain, or under kubernetes.io/."""
    return "/" not in name or "kubernetes.io/" in name


def is_overcommit_allowed(name: str) -> bool:
    return is_native(name) and not is_huge_page(name)


def is_pod_level(name: str) -> bool:
    """May stand in spec.resources of a pod."""
    return name in ("cpu", "memory") or name.startswith(HUGE_PAGES)


def is_sidecar(container: Object) -> bool:
    """An init container that keeps running."""
    return container.get("restartPolicy") == "Always"


def _add(total: ResourceList, more: ResourceList) -> None:
    for name, amount in more.items():
        total[name] = add(total[name], amount) if name in total else amount


def _max(total: ResourceList, other: ResourceList) -> None:
    for name, amount in other.items():
        if name not in total or compare(amount, total[name]) > 0:
            total[name] = amount


def sum_containers(spec: Object, side: str) -> ResourceList:
    """The larger of (containers and sidecars together) and (the greediest moment of initialisation); side: requests or limits."""
    total: ResourceList = {}
    for c in spec.get("containers") or ():
        _add(total, (c.get("resources") or {}).get(side) or {})
    sidecars: ResourceList = {}
    peak: ResourceList = {}
    for c in spec.get("initContainers") or ():
        mine = (c.get("resources") or {}).get(side) or {}
        if is_sidecar(c):
            _add(total, mine)
            _add(sidecars, mine)
            _max(peak, sidecars)
        else:
            now = dict(mine)
            _add(now, sidecars)
            _max(peak, now)
    _max(total, peak)
    return total


def _computed(resources: ResourceList | None) -> Iterable[tuple[str, Any]]:
    for name in ("cpu", "memory"):
        text = (resources or {}).get(name)
        if text is not None:
            amount = parse(str(text)).amount
            if amount.numerator > 0:
                yield name, amount


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort."""
    requests: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    guaranteed = True
    own = spec.get("resources")
    if own is not None:
        parts = [own] if own.get("requests") or own.get("limits") else []
    else:
        parts = [c.get("resources") or {} for c in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))]
    for resources in parts:
        for name, amount in _computed(resources.get("requests")):
            requests[name] = requests[name] + amount if name in requests else amount
        found = 0
        for name, amount in _computed(resources.get("limits")):
            limits[name] = limits[name] + amount if name in limits else amount
            found += 1
        if found != 2 and (own is None or resources.get("limits")):
            guaranteed = False
    if not requests and not limits:
        return "BestEffort"
    if guaranteed and requests.keys() == limits.keys() and all(limits[n] == amount for n, amount in requests.items()):
        return "Guaranteed"
    return "Burstable"
