"""Rollout: what can be told of a Deployment and its ReplicaSets without doing anything. Counts, limits, status, the next size. Pure.

Upstream: pkg/controller/deployment/util.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kubern.controllers import conditions
from kubern.controllers.amount import scaled, whole
from kubern.model.object import Object, meta, name, notes
from kubern.model.time import rfc3339, seconds_of

REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
HASH = "pod-template-hash"
NOT_COPIED = {"kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, MAXIMUM,
              "deprecated.deployment.rollback.to"}
HISTORY_CHARS_MAX = 2000
NAME_MAX = 253
FOREVER = 2147483647

Sets = list[Object]


def replicas(obj: Object) -> int:
    return obj["spec"].get("replicas") or 0


def count(sets: Iterable[Object | None], field: str) -> int:
    return sum((s.get("status") or {}).get(field) or 0 for s in sets if s is not None)


def wanted(sets: Iterable[Object | None]) -> int:
    return sum(replicas(s) for s in sets if s is not None)


def active(sets: Iterable[Object | None]) -> Sets:
    return [s for s in sets if s is not None and replicas(s) > 0]


def age(rs: Object) -> tuple[str, str]:
    return meta(rs).get("creationTimestamp") or "", name(rs)


def rolling_update(d: Object) -> dict[str, Any] | None:
    strategy = d["spec"].get("strategy") or {}
    return (strategy.get("rollingUpdate") or {}) if strategy.get("type", "RollingUpdate") == "RollingUpdate" else None


def fenceposts(d: Object) -> tuple[int, int]:
    """(surge, unavailable) as numbers; (0, 0) for Recreate."""
    rolling = rolling_update(d)
    if rolling is None:
        return 0, 0
    n = replicas(d)
    surge, unavailable = scaled(rolling.get("maxSurge"), n, True), scaled(rolling.get("maxUnavailable"), n, False)
    return (surge, unavailable) if surge or unavailable else (0, 1)


def max_surge(d: Object) -> int:
    return fenceposts(d)[0]


def max_unavailable(d: Object) -> int:
    return min(fenceposts(d)[1], replicas(d)) if replicas(d) else 0


def deadline(d: Object) -> int | None:
    s = d["spec"].get("progressDeadlineSeconds")
    return None if s is None or s == FOREVER else int(s)


def revision_of(rs: Object) -> int:
    try:
        return int(notes(rs).get(REVISION) or 0)
    except ValueError:
        return 0


def same_template(a: Object, b: Object) -> bool:
    def plain(t: Object) -> Object:
        m = {k: v for k, v in meta(t).items() if v is not None}
        found = {k: v for k, v in (m.get("labels") or {}).items() if k != HASH}
        m = {k: v for k, v in m.items() if k not in ("labels", "creationTimestamp") and v}
        return {"metadata": {**m, "labels": found}, "spec": t.get("spec")}
    return plain(a) == plain(b)


def find_new(d: Object, sets: Sets) -> Object | None:
    template = d["spec"].get("template") or {}
    for rs in sorted(sets, key=age):
        if same_template(rs["spec"].get("template") or {}, template):
            return rs
    return None


def complete(d: Object, status: Object) -> bool:
    n = replicas(d)
    return (all((status.get(f) or 0) == n for f in ("updatedReplicas", "replicas", "availableReplicas"))
            and (status.get("observedGeneration") or 0) >= (meta(d).get("generation") or 0))


def condition(type_: str, status: str, reason: str, message: str, now: float) -> dict[str, Any]:
    at = rfc3339(now)
    return {"type": type_, "status": status, "lastUpdateTime": at, "lastTransitionTime": at, "reason": reason, "message": message}


def progressing(d: Object) -> dict[str, Any] | None:
    return conditions.find((d.get("status") or {}).get("conditions"), "Progressing")


def with_conditions(d: Object, found: list[dict[str, Any]]) -> Object:
    return {**d, "status": {**(d.get("status") or {}), "conditions": found}}


def status(d: Object, sets: list[Object | None], new: Object | None, now: float) -> Object:
    available, total = count(sets, "availableReplicas"), wanted(sets)
    old = d.get("status") or {}
    ok = available >= replicas(d) - max_unavailable(d)
    minimum = (condition("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now) if ok else
               condition("Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", now))
    status = whole({
        "observedGeneration": meta(d).get("generation"), "replicas": count(sets, "replicas"), "updatedReplicas": count([new], "replicas"),
        "readyReplicas": count(sets, "readyReplicas"), "availableReplicas": available, "unavailableReplicas": max(0, total - available),
        "conditions": conditions.put(old.get("conditions"), minimum)})
    if old.get("collisionCount") is not None:
        status["collisionCount"] = old["collisionCount"]
    terminating: int | None = 0
    for rs in sets:
        s = (rs or {}).get("status") or {}
        if rs is None or (not s.get("observedGeneration") and s.get("terminatingReplicas") is None):
            continue
        if s.get("terminatingReplicas") is None:
            terminating = None
            break
        assert terminating is not None
        terminating += s["terminatingReplicas"]
    if terminating is not None:
        status["terminatingReplicas"] = terminating
    return status


def annotated(d: Object, rs: Object, revision: int, exists: bool) -> dict[str, str]:
    """The annotations the ReplicaSet should have."""
    have = dict(notes(rs))
    for k, v in notes(d).items():
        if k not in NOT_COPIED:
            have[k] = v
    old_text = have.get(REVISION)
    try:
        old = int(old_text or 0)
    except ValueError:
        return have
    if old < revision:
        have[REVISION] = str(revision)
        if old_text is not None:
            past = [r for r in (have.get(HISTORY) or "").split(",") if r]
            past.append(old_text)
            while len(",".join(past)) > HISTORY_CHARS_MAX:
                del past[0]
            have[HISTORY] = ",".join(past)
    if not exists:
        have |= {DESIRED: str(replicas(d)), MAXIMUM: str(replicas(d) + max_surge(d))}
    return have


def new_size(d: Object, sets: list[Object], new: Object) -> int:
    rolling = rolling_update(d)
    if rolling is None:
        return replicas(d)
    room = replicas(d) + scaled(rolling.get("maxSurge"), replicas(d), True) - wanted(sets)
    return replicas(new) + min(room, replicas(d) - replicas(new)) if room > 0 else replicas(new)


def proportion(rs: Object, d: Object, to_add: int, added: int) -> int:
    """How many of `to_add` go to this set, by its share before the change."""
    if not replicas(rs) or to_add == added:
        return 0
    if not replicas(d):
        share = -replicas(rs)
    else:
        text = notes(rs).get(MAXIMUM) or ""
        before = int(text) if text.isdecimal() else 0
        before = before or (d.get("status") or {}).get("replicas") or 0
        if not before:
            share = 0
        else:
            exact = replicas(rs) * (replicas(d) + max_surge(d)) / before
            share = int(exact + 0.5 if exact >= 0 else exact - 0.5) - replicas(rs)
    rest = to_add - added
    return min(share, rest) if to_add > 0 else max(share, rest)


def moved(old: Object, new: Object) -> bool:
    def n(s: Object, f: str) -> int:
        return s.get(f) or 0
    return (n(new, "updatedReplicas") > n(old, "updatedReplicas")
            or n(new, "replicas") - n(new, "updatedReplicas") < n(old, "replicas") - n(old, "updatedReplicas")
            or n(new, "readyReplicas") > n(old, "readyReplicas") or n(new, "availableReplicas") > n(old, "availableReplicas"))


def timed_out(found: list[dict[str, Any]], deadline: int, now: float) -> bool:
    c = conditions.find(found, "Progressing")
    if c is None or c.get("reason") == "NewReplicaSetAvailable":
        return False
    return c.get("reason") == "ProgressDeadlineExceeded" or seconds_of(c.get("lastUpdateTime")) + deadline < now
