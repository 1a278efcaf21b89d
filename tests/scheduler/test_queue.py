"""The scheduler's queue: what backs off from an error is not taken early."""

from __future__ import annotations

from kubern.scheduler.pod import pod_info
from kubern.scheduler.queue import Queue, Queued


def taken() -> tuple[Queue, Queued]:
    """A queue whose only pod is being decided."""
    queue = Queue()
    queue.add(pod_info({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "default", "uid": "a"}, "spec": {"containers": []}}), 0.0)
    first = queue.pop(0.0)
    assert first is not None
    return queue, first


def test_an_error_is_waited_out() -> None:
    queue, first = taken()
    queue.retry(first, 0.0)
    assert queue.pop(0.5) is None and queue.next_s() == 1.0
    assert queue.pop(1.0) is first and queue.next_s() is None


def test_a_refused_pod_is_taken_early_when_nothing_else_waits() -> None:
    queue, first = taken()
    queue.park(first, {"NodeResourcesFit"}, 0.0)
    assert queue.pop(0.1) is None
    queue.event("pod-removed", 0.1)
    assert queue.pop(0.1) is first


def test_what_went_meanwhile_is_not_waited_for() -> None:
    queue, first = taken()
    queue.retry(first, 0.0)
    queue.remove(first.info.key)
    assert queue.next_s() is None and queue.pop(5.0) is None
