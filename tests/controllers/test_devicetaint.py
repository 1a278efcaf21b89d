"""Pods leave devices with NoExecute taints."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.controllers import devicetaint
from kubern.model.intent import Delete, Patch, Requeue
from tests.controllers.conftest import ListView, drive, emitted, of

CONTROLLER = devicetaint.controller()
NOW = 1893456100.0                              # 2030-01-01T00:01:40Z
TAINTED = "2030-01-01T00:01:00Z"


def _pod(**status: Any) -> Any:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "p1"},
            "spec": {"nodeName": "n", "resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}]}, "status": status}


def _view(taints: list[Any], tolerations: list[Any], generation: int = 1) -> ListView:
    def slice_(name: str, generation: int, taints: list[Any]) -> Any:
        return {"metadata": {"name": name, "uid": name}, "spec": {
            "driver": "d", "pool": {"name": "pool", "generation": generation}, "devices": [{"name": "gpu-0", "taints": taints}]}}
    claim = {"metadata": {"name": "c", "namespace": "default", "uid": "c1"}, "status": {
        "reservedFor": [{"resource": "pods", "name": "p", "uid": "p1"}],
        "allocation": {"devices": {"results": [{"driver": "d", "pool": "pool", "device": "gpu-0", "tolerations": tolerations}]}}}}
    return ListView(resourceclaims__resource__k8s__io=[claim], resourceslices__resource__k8s__io=[
        slice_("now", generation, taints), slice_("before", 0, [{"key": "old", "effect": "NoExecute", "timeAdded": TAINTED}])])


TAINT = {"key": "broken", "effect": "NoExecute", "timeAdded": TAINTED}


@pytest.mark.parametrize(("taints", "tolerations", "leaves"), [
    ([TAINT], [], True),
    ([{**TAINT, "effect": "NoSchedule"}], [], False),
    ([], [], False),                                                      # of an older generation of the pool: no longer true
    ([TAINT], [{"operator": "Exists", "effect": "NoExecute"}], False),
    ([TAINT], [{"operator": "Exists"}], True),                            # speaks of no effect: does not count here
    ([TAINT], [{"key": "broken", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}], True),
    ([TAINT, {**TAINT, "key": "worse"}], [{"key": "broken", "operator": "Exists", "effect": "NoExecute"}], True),
])
def test_a_tainted_device_evicts_its_pods(taints: list[Any], tolerations: list[Any], leaves: bool) -> None:
    done = drive(CONTROLLER.reconcile(_pod(), _view(taints, tolerations), NOW))
    assert bool(of(done, Delete)) == leaves
    if leaves:
        assert emitted(done) == [("DeviceTaintManagerEviction", "Marking for deletion")]
        assert of(done, Patch)[0].patch["status"]["conditions"][0]["reason"] == "DeletionByDeviceTaintManager"


def test_a_taint_tolerated_for_a_time_is_waited_for_and_may_be_taken_back() -> None:
    later = _view([TAINT], [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}])
    assert drive(CONTROLLER.reconcile(_pod(), later, NOW)) == [Requeue(20.0)]
    assert emitted(drive(CONTROLLER.reconcile(_pod(), _view([], []), NOW))) == [("DeviceTaintManagerEviction", "Cancelling deletion")]
    assert drive(CONTROLLER.reconcile(_pod(), _view([], []), NOW)) == []
