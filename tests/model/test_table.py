"""The Table form: durations, definitions, rows, printer columns of custom resources."""

import pytest

from kubern.model.kinds import KINDS, kind_of
from kubern.model.kinds.kind import Kind
from kubern.model.resources import RESOURCES
from kubern.model.status import StatusError
from kubern.model.table import check_include, custom, definitions, human_duration, table

NOW = 1_700_000_000.0          # 2023-11-14T22:13:20Z
POD = {"metadata": {"name": "p", "namespace": "n", "creationTimestamp": "2023-11-14T22:11:00Z"},
       "spec": {"nodeName": "w", "containers": [{"name": "c"}, {"name": "d"}]},
       "status": {"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}], "containerStatuses": [
           {"name": "c", "ready": True, "restartCount": 0, "state": {"running": {}}},
           {"name": "d", "ready": False, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2023-11-14T22:12:20Z"}}}]}}


@pytest.mark.parametrize(("seconds", "text"), [
    (-5, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (599, "9m59s"), (600, "10m"), (3 * 3600 - 1, "179m"),
    (3 * 3600, "3h"), (3 * 3600 + 60, "3h1m"), (8 * 3600, "8h"), (48 * 3600, "2d"), (49 * 3600, "2d1h"), (8 * 86400, "8d"),
    (365 * 86400 * 2, "2y"), (365 * 86400 * 3 + 86400, "3y1d"), (365 * 86400 * 9, "9y")])
def test_durations(seconds, text):
    assert human_duration(seconds) == text


def test_a_pod_s_row():
    kind = kind_of("", "Pod")
    t = table(kind, [POD], {"resourceVersion": "5"}, "Metadata", NOW)
    cells = dict(zip((c["name"] for c in t["columnDefinitions"]), t["rows"][0]["cells"], strict=True))
    assert cells == {"Name": "p", "Ready": "1/2", "Status": "CrashLoopBackOff", "Restarts": "2 (60s ago)", "Age": "2m20s", "IP": "1.2.3.4",
                     "Node": "w", "Nominated Node": "<none>", "Readiness Gates": "<none>"}
    assert t["metadata"] == {"resourceVersion": "5"}
    assert t["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


@pytest.mark.parametrize(("change", "status"), [
    ({"metadata": {"deletionTimestamp": "2023-11-14T22:13:00Z"}}, "Terminating"),
    ({"status": {"phase": "Succeeded"}}, "Succeeded"),
    ({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}}, "SchedulingGated"),
    ({"status": {"phase": "Failed", "reason": "Evicted"}}, "Evicted"),
    ({"spec": {"initContainers": [{"name": "i"}, {"name": "j"}], "containers": []}, "status": {
        "phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}},
                                                      {"name": "j", "state": {"running": {}}}]}}, "Init:1/2"),
])
def test_a_pod_s_status(change, status):
    pod = {"metadata": {"name": "p", **change.get("metadata", {})}, "spec": change.get("spec", {"containers": []}),
           "status": change.get("status", {"phase": "Running"})}
    assert kind_of("", "Pod").cells(pod, NOW)[2] == status


def test_every_kind_prints_an_empty_object():
    """Objects of others may lack anything: no cell may fail, and there are as many as columns."""
    for r in RESOURCES:
        kind = KINDS.get((r.group, r.kind))
        if kind is None or not kind.columns or "list" not in r.verbs:
            continue
        cells = kind.cells({"metadata": {"name": "x"}, "spec": {}, "status": {}}, NOW)
        assert len(cells) == len(kind.columns) + (r.kind == "IPAddress"), r.kind      # upstream's has a cell too many


def test_a_kind_without_columns():
    t = table(Kind(), [{"metadata": {"name": "x", "creationTimestamp": "2023-11-14T22:11:00Z"}}], {}, "None", NOW)
    assert [c["name"] for c in t["columnDefinitions"]] == ["Name", "Created At"]
    assert t["rows"] == [{"cells": ["x", "2023-11-14T22:11:00Z"], "object": None}]


def test_printer_columns():
    kind = custom([{"name": "S", "type": "string", "jsonPath": ".spec.a"}, {"name": "N", "type": "integer", "jsonPath": ".spec.n", "priority": 1},
                   {"name": "D", "type": "date", "jsonPath": ".spec.d"}, {"name": "B", "type": "boolean", "jsonPath": ".spec.n"},
                   {"name": "M", "type": "string", "jsonPath": ".spec.missing"}])
    obj = {"metadata": {"name": "x"}, "spec": {"a": {"b": [1]}, "n": 2.7, "d": "2023-11-14T22:11:00Z"}}
    assert kind.cells(obj, NOW) == ["x", '{"b":[1]}', 2, "2m20s", None, None]
    assert [(c["name"], c["priority"]) for c in definitions(kind.columns)] == [("Name", 0), ("S", 0), ("N", 1), ("D", 0), ("B", 0), ("M", 0)]
    assert [c.name for c in custom([]).columns] == ["Name", "Age"]


def test_include():
    assert [check_include(v) for v in ("", "None", "Object")] == ["Metadata", "None", "Object"]
    with pytest.raises(StatusError):
        check_include("All")
