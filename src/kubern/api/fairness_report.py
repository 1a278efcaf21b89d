"""What can be seen of priority and fairness: metrics, and the tables of /debug/api_priority_and_fairness/dump_*.

Upstream: apiserver util/flowcontrol/{metrics,apf_controller_debug.go}. Of queues it is told who waits in them; seats in use are counted for the
whole level, since they do not belong to a queue here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kubern.api.fairness import WAITS, Fairness, Level
from kubern.api.metrics import family
from kubern.model.time import micro

PREFIX = "/debug/api_priority_and_fairness/"


def metrics(f: Fairness) -> str:
    counts = [((("flow_schema", c.name), ("priority_level", c.level)), c) for c in f.counts.values()]
    return "".join((
        family("apiserver_flowcontrol_nominal_limit_seats", "gauge", "[BETA] Nominal number of execution seats configured for each priority level",
               (((("priority_level", v.name),), 0 if v.exempt else v.nominal) for v in f.levels.values())),
        family("apiserver_flowcontrol_current_executing_seats", "gauge", "[BETA] Concurrency (number of seats) occupied by the currently executing (initial "
               "stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem", ((k, c.executing) for k, c in counts)),
        family("apiserver_flowcontrol_current_executing_requests", "gauge", "[BETA] Number of requests in initial (for a WATCH) or any (for a non-WATCH) "
               "execution stage in the API Priority and Fairness subsystem", ((k, c.running) for k, c in counts)),
        family("apiserver_flowcontrol_current_inqueue_requests", "gauge", "[BETA] Number of requests currently pending in queues of the API Priority and "
               "Fairness subsystem", ((k, c.waiting) for k, c in counts)),
        family("apiserver_flowcontrol_dispatched_requests_total", "counter", "[BETA] Number of requests executed by API Priority and Fairness subsystem",
               ((k, c.dispatched) for k, c in counts)),
        family("apiserver_flowcontrol_rejected_requests_total", "counter", "[BETA] Number of requests rejected by API Priority and Fairness subsystem",
               (((("flow_schema", schema), ("priority_level", v.name), ("reason", reason)), n)
                for v in f.levels.values() for (schema, reason), n in v.rejected.items())),
        WAITS.text()))


def dump(f: Fairness, path: str) -> bytes | None:
    """The table at a path, None where there is none."""
    make = {"dump_priority_levels": _levels, "dump_queues": _queues, "dump_requests": _requests}.get(path.removeprefix(PREFIX))
    return _table(list(make(f))).encode() if make is not None else None


def _table(rows: Sequence[Sequence[object]]) -> str:
    """Columns side by side, each cell but the last with a comma."""
    text = [[f"{c}," if i + 1 < len(row) else str(c) for i, c in enumerate(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    return "".join(" ".join(c.ljust(w) if i + 1 < len(row) else c for i, (c, w) in enumerate(zip(row, widths, strict=True))) + "\n" for row in text)


def _by_name(f: Fairness) -> list[Level]:
    return [f.levels[n] for n in sorted(f.levels)]


def _levels(f: Fairness) -> Iterable[Sequence[object]]:
    yield ("PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing", "WaitingRequests", "ExecutingRequests", "DispatchedRequests", "RejectedRequests",
           "TimedoutRequests", "CancelledRequests")
    for v in _by_name(f):
        yield (v.name, len(v.active), str(not v.running and not v.waiting).lower(), "false", v.waiting, v.running, v.dispatched, sum(v.rejected.values()),
               v.timed_out, v.cancelled)


def _queues(f: Fairness) -> Iterable[Sequence[object]]:
    yield ("PriorityLevelName", "Index", "PendingRequests", "ExecutingRequests", "SeatsInUse", "NextDispatchR", "InitialSeatsSum", "MaxSeatsSum",
           "TotalWorkSum")
    for v in _by_name(f):
        for i in range(v.queues):
            q = v.active.get(i)
            widths = [w.width for w in q.waiting] if q is not None else []
            yield (v.name, i, len(widths), 0, 0, f"{q.served if q is not None else 0:.8f}ss", sum(widths), sum(widths), f"{sum(widths):.8f}ss")


def _requests(f: Fairness) -> Iterable[Sequence[object]]:
    yield ("PriorityLevelName", "FlowSchemaName", "QueueIndex", "RequestIndexInQueue", "FlowDistingsher", "ArriveTime", "InitialSeats", "FinalSeats",
           "AdditionalLatency", "StartTime")
    for v in _by_name(f):
        for i, q in sorted(v.active.items()):
            for n, w in enumerate(q.waiting):
                yield v.name, w.schema, i, n, w.flow.partition("/")[2], micro(w.since_s), w.width, 0, "0s", "0001-01-01T00:00:00Z"
