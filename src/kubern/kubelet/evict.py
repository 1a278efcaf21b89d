"""Who has to go when the node runs short, and who used more than it may. Pure.

In: pods with what they use. Out: the victim and the words of its end. Upstream: pkg/kubelet/eviction (helpers.go rankMemoryPressure,
eviction_manager.go localStorageEviction).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubern.kubelet import pods
from kubern.kubelet.container import CRITICAL_PRIORITY
from kubern.kubelet.status import pod_resources
from kubern.model import quantity
from kubern.model.object import Object

REASON = "Evicted"


def rank(resource: str, candidates: Iterable[tuple[Object, int]]) -> list[tuple[Object, int]]:
    """First to go first: those over their request, then by priority, then by how far they are over it. Static and critical pods stay."""

    def order(item: tuple[Object, int]) -> tuple[bool, int, int]:
        pod, used = item
        asked = quantity.value(pod_resources(pod["spec"], "requests").get(resource, "0"))
        return used <= asked, pod["spec"].get("priority") or 0, asked - used

    may = [c for c in candidates if not pods.is_static(c[0]) and (c[0]["spec"].get("priority") or 0) < CRITICAL_PRIORITY]
    return sorted(may, key=order)


def low_message(resource: str, pod: Object, containers: Mapping[str, int], threshold: int, available: int) -> str:
    """Why: the node's shortage, then the containers that use more than they asked for."""
    text = f"The node was low on resource: {resource}. Threshold quantity: {_binary(threshold)}, available: {_binary(available)}. "
    for c in pod["spec"].get("containers") or ():
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
    whole = pod_resources(spec, "limits").get("ephemeral-storage")
    if whole and limits and all(limits.values()):
        used = sum(containers.values()) + sum(volumes.get(v["name"], 0) for v in spec.get("volumes") or () if "emptyDir" in v)
        if used > quantity.value(whole):
            return f"Pod ephemeral local storage usage exceeds the total limit of containers {whole}. "
    return ""
