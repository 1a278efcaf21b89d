"""When what changed a service's endpoints happened, for the annotation by which others measure how long that takes to reach the nodes.

Upstream: staging endpointslice/util/trigger_time_tracker.go.
"""

from __future__ import annotations

from kubern.model.object import Key, Object, condition, key, meta, name
from kubern.model.time import rfc3339, seconds_of

TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"


class TriggerTimes:
    """Owns what each service's pods said the last time."""

    def __init__(self) -> None:
        self._seen: dict[Key, tuple[dict[str, float], float]] = {}      # service -> (pod -> change of its readiness, the service's creation)

    def of(self, service: Object, pods: list[Object]) -> str:
        """The first change since the last look, "" if there is none; of a service that is new its creation."""
        created_s = seconds_of(meta(service).get("creationTimestamp"))
        changes = {name(p): at for p in pods if (at := seconds_of((condition(p, "Ready") or {}).get("lastTransitionTime")))}
        known = self._seen.get(key(service))
        self._seen[key(service)] = changes, created_s
        if known is None:
            return rfc3339(created_s) if created_s else ""
        new = [at for pod, at in changes.items() if at > known[0].get(pod, 0.0)]
        if created_s > known[1]:
            new.append(created_s)
        return rfc3339(min(new)) if new else ""

    def drop(self, service: Key) -> None:
        self._seen.pop(service, None)
