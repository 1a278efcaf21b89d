"""What a Job's status may say: strict, since any controller may own a job (KEP-4368). Also the index lists of indexed jobs ("0,3-5").

Upstream: validateJobStatus and ValidateJobStatusUpdate in pkg/apis/batch/validation, getStatusValidationOptions in pkg/registry/batch/job.
"""

from __future__ import annotations

import re
from typing import Any

from kubern.model.invalid import _OMIT, FieldError, duplicate, invalid, quote, required
from kubern.model.kinds.checks import Errors, form, nonnegative, same
from kubern.model.object import Object
from kubern.model.table import seconds_of


def condition_true(status: Object, type_: str) -> bool:
    return any(c.get("type") == type_ and c.get("status") == "True" for c in status.get("conditions") or ())


# --- index lists ------------------------------------------------------------------------------------------------------------------------

def _index(text: str, completions: int) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(f"cannot convert string to integer for index: {quote(text)}")
    if int(text) >= completions:
        raise ValueError(f"too large index: {quote(text)}")
    return int(text)


def _interval(text: str, completions: int) -> tuple[int, int]:
    ends = text.split("-")
    if len(ends) > 2:
        raise ValueError(f"the fragment {quote(text)} violates the requirement that an index interval can have at most two parts separated "
                         "by '-'")
    x = _index(ends[0], completions)
    y = x
    if len(ends) == 2:
        y = _index(ends[1], completions)
        if x >= y:
            raise ValueError(f"non-increasing order, previous: {x}, current: {y}")
    return x, y


def indexes_total(text: str, completions: int) -> int:
    """How many indexes a list names; ValueError with upstream's words where it is malformed."""
    total, last = 0, None
    for part in text.split(",") if text else ():
        x, y = _interval(part, completions)
        if last is not None and last >= x:
            raise ValueError(f"non-increasing order, previous: {last}, current: {x}")
        total, last = total + y - x + 1, y
    return total


def _intervals(text: str, completions: int) -> list[tuple[int, int]]:
    out = []
    for part in text.split(",") if text else ():
        try:
            out.append(_interval(part, completions))
        except ValueError:
            continue
    return out


def _overlap(completed: str, failed: str, completions: int) -> int | None:
    """The first index in both lists."""
    ours, theirs = _intervals(completed, completions), _intervals(failed, completions)
    i = j = 0
    while i < len(ours) and j < len(theirs):
        (a, b), (c, d) = ours[i], theirs[j]
        if a <= d and c <= b:
            return max(a, c)
        if a <= c:
            i += 1
        else:
            j += 1
    return None


# --- status -----------------------------------------------------------------------------------------------------------------------------

class _Facts:
    """What the checks ask of one state of a job."""

    def __init__(self, obj: Object) -> None:
        self.status = s = obj.get("status") or {}
        self.complete, self.failed = condition_true(s, "Complete"), condition_true(s, "Failed")
        self.failure_target, self.success = condition_true(s, "FailureTarget"), condition_true(s, "SuccessCriteriaMet")
        self.finished = self.complete or self.failed
        self.start, self.end = s.get("startTime"), s.get("completionTime")
        self.active = s.get("active") or 0
        self.completed_indexes, self.failed_indexes = s.get("completedIndexes") or "", s.get("failedIndexes")


def _conditions(detail: str) -> FieldError:
    return invalid("status.conditions", _OMIT, detail)


def _uncounted(pods: Object) -> Errors:
    seen: set[Any] = set()
    for which in ("succeeded", "failed"):
        for i, uid in enumerate(pods.get(which) or ()):
            path = f"status.uncountedTerminatedPods.{which}[{i}]"
            if not uid:
                yield invalid(path, uid, "must not be empty")
            elif uid in seen:
                yield duplicate(path, uid)
            seen.add(uid)


def validate_job_status(obj: Object, old: Object) -> Errors:
    spec = obj.get("spec") or {}
    new, before = _Facts(obj), _Facts(old)
    status = new.status
    for field in ("active", "succeeded", "failed", "ready", "terminating"):
        yield from nonnegative(status.get(field), f"status.{field}")
    uncounted = status.get("uncountedTerminatedPods")
    if uncounted is not None:
        yield from _uncounted(uncounted)
    yield from _finish(new, before)
    yield from _finished(spec, new, before, uncounted)
    yield from _indexes(spec, new, before)
    yield from _pods(new, before)
    if new.success and new.failed:
        yield _conditions("cannot set SuccessCriteriaMet=True and Failed=true conditions")
    if new.success and new.failure_target:
        yield _conditions("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
    if spec.get("successPolicy") is not None and not new.success and new.complete:
        yield _conditions("cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")
    yield from _transition(spec, new, before)


def _finish(new: _Facts, before: _Facts) -> Errors:
    """How conditions and times of the end go together."""
    complete_changed, failed_changed = new.complete != before.complete, new.failed != before.failed
    end_changed = new.end != before.end
    if (complete_changed or failed_changed) and new.complete and new.failed:
        yield _conditions("cannot set Complete=True and Failed=true conditions")
    if (complete_changed or new.failure_target != before.failure_target) and new.complete and new.failure_target:
        yield _conditions("cannot set Complete=True and FailureTarget=true conditions")
    if complete_changed or end_changed:
        if new.end is not None and not new.complete:
            yield invalid("status.completionTime", new.end, "cannot set completionTime when there is no Complete=True condition")
        if new.end is None and new.complete:
            yield required("status.completionTime", "completionTime is required for Complete jobs")
    if (new.start != before.start or end_changed) and new.start and new.end \
            and (seconds_of(new.end) or 0) < (seconds_of(new.start) or 0):
        yield invalid("status.completionTime", new.end, "must be equal to or after `startTime`")
    if (failed_changed or new.failed_indexes != before.failed_indexes) and new.failed and not new.failure_target:
        yield _conditions("cannot set Failed=True condition without the FailureTarget=true condition")
    if (complete_changed or new.success != before.success) and new.complete and not new.success:
        yield _conditions("cannot set Complete=True condition without the SuccessCriteriaMet=true condition")


def _finished(spec: Object, new: _Facts, before: _Facts, uncounted: Object | None) -> Errors:
    """What a finished job cannot have."""
    changed = new.finished != before.finished
    if (changed or new.active != before.active) and new.active > 0 and new.finished:
        yield invalid("status.active", new.active, "active>0 is invalid for finished job")
    never_ran = spec.get("suspend") is True and spec.get("completions") == 0
    if (changed or new.start != before.start) and not never_ran and new.start is None and new.finished:
        yield required("status.startTime", "startTime is required for finished job")
    if (changed or not same(uncounted, before.status.get("uncountedTerminatedPods"))) and new.finished \
            and uncounted is not None and (uncounted.get("failed") or uncounted.get("succeeded")):
        yield invalid("status.uncountedTerminatedPods", form(uncounted, "batch.UncountedTerminatedPods"), "must be empty for finished job")


def _indexes(spec: Object, new: _Facts, before: _Facts) -> Errors:
    completions, limit = spec.get("completions"), spec.get("backoffLimitPerIndex")
    completed, failed = new.completed_indexes, new.failed_indexes
    completed_changed, failed_changed = completed != before.completed_indexes, failed != before.failed_indexes
    if completed_changed and completions is not None and (why := _malformed(completed, completions)):
        yield invalid("status.completedIndexes", completed, f"error parsing completedIndexes: {why}")
    if failed_changed and completions is not None and limit is not None and failed is not None and (why := _malformed(failed, completions)):
        yield invalid("status.failedIndexes", failed, f"error parsing failedIndexes: {why}")
    if completed_changed and completed and spec.get("completionMode") != "Indexed":
        yield invalid("status.completedIndexes", completed, "cannot set non-empty completedIndexes when non-indexed completion mode")
    if failed_changed and limit is None and failed is not None:
        yield invalid("status.failedIndexes", failed, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
    if (failed_changed or completed_changed) and completions is not None and failed is not None:
        at = _overlap(completed, failed, completions)
        if at is not None:
            yield invalid("status.failedIndexes", failed, f"failedIndexes and completedIndexes overlap at index: {at}")


def _malformed(text: str, completions: int) -> str:
    try:
        indexes_total(text, completions)
    except ValueError as e:
        return str(e)
    return ""


def _pods(new: _Facts, before: _Facts) -> Errors:
    terminating, ready = new.status.get("terminating"), new.status.get("ready")
    if (new.finished != before.finished or terminating != before.status.get("terminating")) and (terminating or 0) > 0 and new.finished:
        yield invalid("status.terminating", terminating, "terminating>0 is invalid for finished job")
    if (ready != before.status.get("ready") or new.active != before.active) and ready is not None and ready > new.active:
        yield invalid("status.ready", ready, "cannot set more ready pods than active")


def _transition(spec: Object, new: _Facts, before: _Facts) -> Errors:
    for type_ in ("Failed", "Complete", "FailureTarget"):
        if condition_true(before.status, type_) and not condition_true(new.status, type_):
            yield _conditions(f"cannot disable the terminal {type_}=True condition")
    failed, succeeded = new.status.get("failed") or 0, new.status.get("succeeded") or 0
    if failed < (before.status.get("failed") or 0):
        yield invalid("status.failed", failed, "cannot decrease the failed counter")
    elastic = spec.get("completionMode") == "Indexed" and spec.get("completions") == spec.get("parallelism")
    if not elastic and succeeded < (before.status.get("succeeded") or 0):
        yield invalid("status.succeeded", succeeded, "cannot decrease the succeeded counter")
    if new.end and before.end and new.end != before.end:
        yield invalid("status.completionTime", new.end, "field is immutable")
    resuming = condition_true(before.status, "Suspended") and any(
        c.get("type") == "Suspended" and c.get("status") == "False" for c in new.status.get("conditions") or ())
    if new.start != before.start and not resuming and before.start and not spec.get("suspend"):
        yield invalid("status.startTime", new.start, "field is immutable for unsuspended job once set")
    if before.success and not new.success:
        yield _conditions("cannot disable the SuccessCriteriaMet=True condition")
    if before.complete and not before.success and new.success:
        yield _conditions("cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions")
