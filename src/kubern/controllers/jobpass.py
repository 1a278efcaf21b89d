"""JobPass: what one look at a Job knows, shared by those who judge it (jobverdict.py), make its pods (jobpods.py) and count them (jobcount.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kubern.controllers import conditions
from kubern.controllers.indexes import Indexes
from kubern.controllers.jobrules import Pod, index_of, indexed, tracked
from kubern.controllers.pods import active, finished, ready
from kubern.model.intent import Failed
from kubern.model.object import Object, deleting
from kubern.model.time import rfc3339

FAILURES, IGNORED = "batch.kubernetes.io/job-index-failure-count", "batch.kubernetes.io/job-index-ignored-failure-count"
Condition = dict[str, Any]


@dataclass
class JobPass:
    """What one look at a job knows: how it stands, how its pods stand, and the status that will say so."""

    job: Object
    pods: list[Pod]
    now: float
    status: dict[str, Any] = field(default_factory=dict)
    active: list[Pod] = field(default_factory=list)
    active_count: int = 0
    ready: int = 0
    terminating: int = 0
    succeeded: int = 0
    failed: int = 0
    before: Indexes = field(default_factory=Indexes)
    done: Indexes = field(default_factory=Indexes)      # indexes that have succeeded, `before` this look and now
    lost: Indexes | None = None                # that have failed, where they count each for itself
    delayed: dict[int, Pod] = field(default_factory=dict)   # failed pods that stay until the next of their index is there
    outcome: Condition | None = None           # how the job has ended
    error: Failed | None = None                # why pods could not be made or deleted

    def __post_init__(self) -> None:
        self.spec = self.job["spec"]
        old = self.job.get("status") or {}
        self.status = {**old, "conditions": list(old.get("conditions") or ())}
        uncounted = old.get("uncountedTerminatedPods") or {}
        self.noted_ok: list[str] = list(uncounted.get("succeeded") or ())
        self.noted_bad: list[str] = list(uncounted.get("failed") or ())
        self.active = [p for p in self.pods if active(p)]
        self.active_count = len(self.active)
        self.ready = sum(ready(p) for p in self.active)
        self.terminating = sum(deleting(p) and not finished(p) for p in self.pods)
        self.completions: int | None = self.spec.get("completions")
        self.per_index = self.spec.get("backoffLimitPerIndex") is not None

    def condition(self, type_: str, reason: str, message: str, status: str = "True") -> Condition:
        at = rfc3339(self.now)
        return {"type": type_, "status": status, "lastProbeTime": at, "lastTransitionTime": at, "reason": reason, "message": message}

    def ensure(self, type_: str, status: str, reason: str, message: str) -> bool:
        found = self.status["conditions"]
        new = self.condition(type_, reason, message, status)
        for i, c in enumerate(found):
            if c.get("type") == type_:
                if all(c.get(f) == new[f] for f in ("status", "reason", "message")):
                    return False
                found[i] = new
                return True
        if status == "False":
            return False
        found.append(new)
        return True

    def has(self, type_: str) -> Condition | None:
        c = conditions.find(self.status["conditions"], type_)
        return c if c is not None and c.get("status") == "True" else None

    def valid(self, pod: Pod) -> bool:
        """Does it count at all?"""
        return tracked(pod) and (not indexed(self.job) or 0 <= index_of(pod) < (self.completions or 0))
