"""Pods as controllers see them: ready, available, active; made from a template; ranked for deletion.

Upstream: pkg/api/v1/pod/util.go, pkg/controller/controller_utils.go.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from functools import cmp_to_key
from typing import Any

from kubern.controllers.claim import controller_ref
from kubern.model.hash import fnv32a, safe_encode
from kubern.model.intent import Create, Delete, Emit, Failed
from kubern.model.object import Object, clone, condition, deleting, meta, name, namespace, notes, uid
from kubern.model.time import seconds_of

BATCH_FIRST = 1
BURST_MAX = 500
NO_TERMINATING = "NamespaceTerminating"


def phase(pod: Object) -> str:
    return (pod.get("status") or {}).get("phase") or ""


def finished(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def active(pod: Object) -> bool:
    return not finished(pod) and not deleting(pod)


def ready(pod: Object) -> bool:
    c = condition(pod, "Ready")
    return c is not None and c.get("status") == "True"


def ready_since(pod: Object) -> float:
    """When it became ready, 0.0 if it is not."""
    c = condition(pod, "Ready")
    return seconds_of(c.get("lastTransitionTime")) if c is not None and c.get("status") == "True" else 0.0


def available_in(pod: Object, min_ready_s: int, now: float) -> float | None:
    """Seconds until a ready pod is available, 0 if it is, None if it is not ready."""
    if not ready(pod):
        return None
    if not min_ready_s:
        return 0.0
    since = ready_since(pod)
    return max(0.0, since + min_ready_s - now) if since else None


def available(pod: Object, min_ready_s: int, now: float) -> bool:
    return available_in(pod, min_ready_s, now) == 0.0


def next_available_s(pods: Iterable[Object], min_ready_s: int, now: float) -> float | None:
    """When the next of these pods becomes available, None if none will by waiting alone."""
    waits = [w for p in pods if (w := available_in(p, min_ready_s, now))]
    return min(waits) if waits else None


def node_of(pod: Object) -> str:
    return (pod.get("spec") or {}).get("nodeName") or ""


def template_hash(template: Object, collisions: int | None) -> str:
    """A short, safe name for a pod template."""
    return safe_encode(str(fnv32a(template, collisions)))


def from_template(template: Object, owner: Object, generate_name: str = "", ref: bool = True) -> Object:
    """A pod to create, named by the server after its owner."""
    m = meta(template)
    prefix = generate_name or f"{name(owner)}-"
    metadata: dict[str, Any] = {"generateName": prefix, "namespace": namespace(owner)}
    for field in ("labels", "annotations"):
        if m.get(field):
            metadata[field] = dict(m[field])
    if m.get("finalizers"):
        metadata["finalizers"] = list(m["finalizers"])
    if ref:
        metadata["ownerReferences"] = [controller_ref(owner)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": clone(template.get("spec") or {})}


def terminating_namespace(failed: Failed) -> bool:
    return any(c.get("reason") == NO_TERMINATING for c in failed.details.get("causes") or ())


def create_pods(owner: Object, pods: Sequence[Object]) -> Generator[Any, Any, tuple[list[Object], Failed | None]]:
    """Creates in batches that double while all goes well; with the events. Returns the created and the first failure."""
    done: list[Object] = []
    size = BATCH_FIRST
    at = 0
    while at < len(pods):
        batch = pods[at:at + size]
        results = yield [Create(p) for p in batch]
        at += len(batch)
        size *= 2
        failure: Failed | None = None
        for result in results:
            if isinstance(result, Failed):
                if terminating_namespace(result):
                    continue
                yield Emit(owner, "Warning", "FailedCreate", f"Error creating: {result.message}")
                failure = failure or result
            else:
                done.append(result)
                yield Emit(owner, "Normal", "SuccessfulCreate", f"Created pod: {name(result)}")
        if failure is not None:
            return done, failure
    return done, None


def delete_pods(owner: Object, pods: Iterable[Object]) -> Generator[Any, Any, Failed | None]:
    """Deletes them at once, with the events. Returns the first failure."""
    pods = list(pods)
    if not pods:
        return None
    failure: Failed | None = None
    results = yield [Delete("v1", "Pod", namespace(p), name(p)) for p in pods]
    for pod, result in zip(pods, results, strict=True):
        if isinstance(result, Failed):
            yield Emit(owner, "Warning", "FailedDelete", f"Error deleting: {result.message}")
            failure = failure or result
        elif result is not None:
            yield Emit(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {name(pod)}")
    return failure


_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def _deletion_cost(pod: Object) -> int:
    text = notes(pod).get("controller.kubernetes.io/pod-deletion-cost", "0")
    try:
        return int(text)
    except ValueError:
        return 0


def restarts(pod: Object) -> tuple[int, int]:
    """The most restarts of a regular and of a sidecar container."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    sidecars = {c["name"] for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    regular = max((c.get("restartCount") or 0 for c in status.get("containerStatuses") or ()), default=0)
    side = max((c.get("restartCount") or 0 for c in status.get("initContainerStatuses") or () if c.get("name") in sidecars), default=0)
    return regular, side


def _log_rank(seconds: float, now: float) -> int:
    d = now - seconds
    return int(math.log2(d * 1e9)) if d > 0 else -1


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def by_deletion(pods: Iterable[Object], ranks: dict[str, int], now: float) -> list[Object]:
    """Those that may go first, first. `ranks`: pod uid -> how many related pods its node runs."""
    def compare(a: Object, b: Object) -> int:
        na, nb = node_of(a), node_of(b)
        if na != nb and (not na or not nb):
            return -1 if not na else 1
        if (d := _PHASES.get(phase(a), 0) - _PHASES.get(phase(b), 0)) != 0:
            return d
        if (d := ready(a) - ready(b)) != 0:
            return d
        if (d := _deletion_cost(a) - _deletion_cost(b)) != 0:
            return d
        if (d := ranks.get(uid(b), 0) - ranks.get(uid(a), 0)) != 0:
            return d
        if ready(a) and ready(b):
            ta, tb = ready_since(a), ready_since(b)
            if ta != tb:
                if not ta or not tb:
                    return -1 if not ta else 1
                return _sign(_log_rank(ta, now) - _log_rank(tb, now)) or (-1 if uid(a) < uid(b) else 1)
        ra, rb = restarts(a), restarts(b)
        if ra != rb:
            return 1 if ra < rb else -1
        ca, cb = seconds_of(meta(a).get("creationTimestamp")), seconds_of(meta(b).get("creationTimestamp"))
        if ca != cb:
            return _sign(_log_rank(ca, now) - _log_rank(cb, now)) or (-1 if uid(a) < uid(b) else 1)
        return 0
    return sorted(pods, key=cmp_to_key(compare))
