"""A Job's pods: which to make and which are too many, after how much waiting.

Upstream: pkg/controller/job (job_controller.go manageJob, indexed_job_utils.go, backoff_utils.go); KEP-3850 (backoff per index), 3939 (pod replacement).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from kubern.controllers.jobcount import untrack
from kubern.controllers.jobpass import FAILURES, IGNORED, JobPass
from kubern.controllers.jobrules import (
    FINALIZER,
    INDEX,
    Pod,
    backoff_left,
    failure_policy,
    finished_at,
    index_of,
    indexed,
    number,
    only_failed_replaced,
    suspended,
    tracked,
)
from kubern.controllers.pods import by_deletion, create_pods, delete_pods, finished, from_template, ready
from kubern.model.intent import Requeue
from kubern.model.object import deleting, name

PODS_A_PASS_MAX = 500
GENERATED_NAME_MAX = 58


@dataclass
class Backoff:
    """Failures since the last success, and when the last one was."""

    failures: int = 0
    last: float = 0.0

    def after(self, succeeded: list[Pod], failed: list[Pod]) -> Backoff:
        if not failed:
            return Backoff() if succeeded else self
        ends = sorted(finished_at(p) for p in failed)
        if succeeded:
            newest = max(finished_at(p) for p in succeeded)
            ends = [e for e in ends if e > newest]
            return Backoff(len(ends), ends[-1]) if ends else Backoff()
        return Backoff(self.failures + len(ends), ends[-1])


def stop_all(j: JobPass) -> Generator[Any, Any, None]:
    """An ended job's active pods are deleted; the verdict waits until that worked."""
    j.error = yield from delete_pods(j.job, j.active)
    if j.error is not None:
        j.outcome = None
    else:
        j.terminating += len(j.active)
        j.active_count, j.ready = 0, 0


def _remove(j: JobPass, pods: list[Pod]) -> Generator[Any, Any, None]:
    """Pods that are too many are not counted: their finalizer goes first."""
    yield [untrack(p) for p in pods if tracked(p)]
    j.error = yield from delete_pods(j.job, pods)
    j.active_count -= len(pods)
    j.terminating += len(pods)
    j.ready -= sum(ready(p) for p in pods)


def _surplus(j: JobPass, at_least: int) -> list[Pod]:
    gone: list[Pod] = []
    left = j.active
    if indexed(j.job):
        left = []
        groups: dict[int, list[Pod]] = {}
        for p in j.active:
            groups.setdefault(index_of(p), []).append(p)
        for i, group in sorted(groups.items()):
            if i < 0 or i >= (j.completions or 0):
                gone += group
            else:
                ranked = by_deletion(group, {}, j.now)
                gone += ranked[:-1]
                left.append(ranked[-1])
    if len(gone) < at_least:
        gone += by_deletion(left, {}, j.now)[:at_least - len(gone)]
    return gone


def manage(j: JobPass, backoff: Backoff) -> Generator[Any, Any, None]:
    job, spec = j.job, j.spec
    if suspended(job):
        gone = _surplus(j, len(j.active))
        if gone:
            yield from _remove(j, gone)
        return
    parallelism = spec.get("parallelism")
    parallelism = 1 if parallelism is None else parallelism
    if j.completions is None:
        wanted = len(j.active) if j.succeeded > 0 else parallelism
    else:
        wanted = max(0, min(j.completions - j.succeeded, parallelism))
    gone = _surplus(j, max(0, len(j.active) - wanted))[:PODS_A_PASS_MAX]
    if gone:
        yield from _remove(j, gone)
        return
    missing = wanted - len(j.active) - (j.terminating if only_failed_replaced(job) else 0)
    if missing <= 0:
        return
    if not j.per_index and (left := backoff_left(backoff.failures, backoff.last, j.now)) > 0:
        yield Requeue(left)
        j.active_count = 0
        return
    missing = min(missing, PODS_A_PASS_MAX)
    indexes: list[int] = []
    if indexed(job):
        indexes = _next_indexes(j, missing)
        if j.per_index:
            waits = {i: _index_wait(j, i) for i in indexes}
            indexes = [i for i in indexes if not waits[i]]
            if not indexes and any(waits.values()):
                yield Requeue(min(w for w in waits.values() if w))
                j.active_count = 0
                return
        missing = len(indexes)
    bodies = [_pod(j, indexes[i] if indexes else None) for i in range(missing)]
    made, j.error = yield from create_pods(job, bodies)
    j.active_count += len(made)


def _next_indexes(j: JobPass, count: int) -> list[int]:
    taken = j.done.plus(index_of(p) for p in j.active if index_of(p) >= 0)
    if only_failed_replaced(j.job):
        taken = taken.plus(index_of(p) for p in j.pods if deleting(p) and not finished(p) and index_of(p) >= 0)
    if j.lost is not None:
        taken = taken.merge(j.lost)
    out: list[int] = []
    for i in taken.missing(j.completions or 0):
        if len(out) >= count:
            break
        out.append(i)
    return out


def _index_wait(j: JobPass, i: int) -> float:
    p = j.delayed.get(i)
    return backoff_left(number(p, FAILURES) + number(p, IGNORED) + 1, finished_at(p), j.now) if p is not None else 0.0


def _pod(j: JobPass, i: int | None) -> Pod:
    template = j.spec.get("template") or {}
    if i is None:
        pod = from_template(template, j.job)
    else:
        suffix = f"-{i}-"
        pod = from_template(template, j.job, name(j.job)[:GENERATED_NAME_MAX - len(suffix)] + suffix)
        m = pod["metadata"]
        m["labels"] = {**(m.get("labels") or {}), INDEX: str(i)}
        m["annotations"] = {**(m.get("annotations") or {}), INDEX: str(i)}
        if j.per_index:
            _note_failures(j, m["annotations"], j.delayed.get(i))
        spec = pod["spec"]
        spec["hostname"] = f"{name(j.job)}-{i}"
        for c in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
            env = list(c.get("env") or ())
            if not any(e.get("name") == "JOB_COMPLETION_INDEX" for e in env):
                path = f"metadata.labels['{INDEX}']"
                env.append({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": path}}})
            c["env"] = env
    m = pod["metadata"]
    m["finalizers"] = [*(m.get("finalizers") or ()), *([] if FINALIZER in (m.get("finalizers") or ()) else [FINALIZER])]
    return pod


def _note_failures(j: JobPass, annotations_: dict[str, str], replaced: Pod | None) -> None:
    failures = ignored = 0
    if replaced is not None:
        failures, ignored = number(replaced, FAILURES), number(replaced, IGNORED)
        counts = failure_policy(j.job, replaced)[1]
        failures, ignored = (failures + 1, ignored) if counts else (failures, ignored + 1)
    annotations_[FAILURES] = str(failures)
    if ignored:
        annotations_[IGNORED] = str(ignored)
