"""KubeletConfiguration and what follows from it: thresholds and shortages, the order of a shutdown, the node's room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubern.kubelet import evict, registration
from kubern.kubelet.configuration import BadConfiguration, Threshold, cpu_list, cpu_text, interpret, read, seconds
from kubern.kubelet.evict import Amount, Shortages, judge
from kubern.kubelet.shutdown import groups

Mi = 1 << 20


def test_defaults_are_upstreams_and_the_document_is_whole() -> None:
    c, doc = interpret({})
    assert (c.pods_max, c.log_bytes, c.transition_s, c.shutdown, c.reserved) == (110, 10 * Mi, 300.0, (), {})
    assert doc["kind"] == "KubeletConfiguration" and doc["evictionHard"]["memory.available"] == "100Mi" and doc["syncFrequency"] == "1m0s"


def test_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: KubeletConfiguration\nmaxPods: 20\npodPidsLimit: 7\nevictionHard: {memory.available: 5%}\n")
    (tmp_path / "b.yaml").write_text("maxPods: 30\n")
    c, doc = read((str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), str(tmp_path / "none.yaml")))
    assert (c.pods_max, c.pids_max, c.thresholds[:1]) == (30, 7, (Threshold("memory.available", share=0.05),)) and doc["maxPods"] == 30


@pytest.mark.parametrize("given, words", [
    ({"maxPod": 1}, 'unknown field "maxPod"'), ({"evictionHard": {"memory.free": "1Mi"}}, "unsupported eviction signal memory.free"),
    ({"evictionSoft": {"memory.available": "1Mi"}}, "grace period must be specified"), ({"syncFrequency": "1m", "shutdownGracePeriod": "soon"}, "no duration"),
    ({"memoryManagerPolicy": "BestEffort"}, "memoryManagerPolicy"), ({"memorySwap": {"swapBehavior": "Much"}}, "memorySwap.swapBehavior"),
    ({"cpuManagerPolicy": "static"}, "to be greater than zero"), ({"cgroupDriver": "systemd"}, "cgroupDriver"),
    ({"enforceNodeAllocatable": ["system-reserved"]}, "systemReservedCgroup"), ({"evictionHard": {"memory.available": "much"}}, "memory.available"),
    ({"shutdownGracePeriod": "10s", "shutdownGracePeriodCriticalPods": "20s"}, "must be <="),
])
def test_what_cannot_be_done_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadConfiguration, match=words):
        interpret(given)


def test_durations_and_lists_of_cpus() -> None:
    assert [seconds(x, "") for x in ("1m30s", "1.5h", "300ms", "0", "0s")] == [90, 5400, 0.3, 0, 0]
    assert cpu_list("0-2,5") == [0, 1, 2, 5] and cpu_text([5, 0, 2, 1]) == "0-2,5"


# --- shortages ---

HARD, SOFT = Threshold("memory.available", 100 * Mi), Threshold("memory.available", 300 * Mi, grace_s=60)
DISK = Threshold("nodefs.available", share=0.1, reclaim=50)


def memory(mi: int) -> dict[str, Amount]:
    return {"memory.available": Amount(mi * Mi, 1000 * Mi)}


def test_hard_at_once_soft_after_its_grace() -> None:
    state, due = judge(Shortages(), (HARD, SOFT), memory(200), 0, 30)
    assert due == [] and state.conditions == {"MemoryPressure"}, "the condition tells of a soft shortage, nobody goes yet"
    state, due = judge(state, (HARD, SOFT), memory(200), 59, 30)
    assert due == []
    state, due = judge(state, (HARD, SOFT), memory(200), 60, 30)
    assert due == [SOFT]
    state, due = judge(state, (HARD, SOFT), memory(50), 61, 30)
    assert due[0] is HARD


def test_a_condition_outlives_the_shortage_by_the_transition_period() -> None:
    state, _ = judge(Shortages(), (HARD,), memory(50), 0, 30)
    for now, held in ((29, True), (31, False)):
        state, due = judge(state, (HARD,), memory(500), now, 30)
        assert (due, bool(state.conditions)) == ([], held)


def test_what_is_reclaimed_is_more_than_the_threshold() -> None:
    state, due = judge(Shortages(), (DISK,), {"nodefs.available": Amount(90, 1000)}, 0, 30)
    assert due == [DISK]
    state, due = judge(state, (DISK,), {"nodefs.available": Amount(120, 1000)}, 1, 30)
    assert due == [DISK], "100 are enough to begin with, 150 to stop"
    state, due = judge(state, (DISK,), {"nodefs.available": Amount(151, 1000)}, 2, 30)
    assert due == []


def test_a_node_under_pressure_refuses() -> None:
    def pod(priority: int = 0, **resources: str) -> dict[str, Any]:
        return {"metadata": {"name": "p"}, "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": resources}}]}}

    assert evict.refused(pod(), ["MemoryPressure"], False) == "The node had condition: [MemoryPressure]. "
    assert evict.refused(pod(), ["MemoryPressure"], True) == "" and evict.refused(pod(memory="1Mi"), ["MemoryPressure"], False) == ""
    assert evict.refused(pod(memory="1Mi"), ["DiskPressure"], True) and evict.refused(pod(2_000_000_000), ["DiskPressure"], False) == ""


# --- the node ---

def test_the_room_of_a_node() -> None:
    c, _ = interpret({"systemReserved": {"cpu": "500m", "memory": "1Gi"}, "kubeReserved": {"memory": "512Mi"}, "podsPerCore": 10,
                      "evictionHard": {"memory.available": "10%", "nodefs.available": "5%"}})
    machine = registration.Machine(4, 8 << 30, 1000 << 30, hugepages={"hugepages-2Mi": 64 * Mi})
    s = registration.NodeSettings("n", (), configuration=c)
    room = registration.capacity(machine, s)
    assert (room["pods"], room["hugepages-2Mi"], room["hugepages-1Gi"]) == ("40", "64Mi", "0")
    left = registration.allocatable(room, s)
    assert left["cpu"] == "3500m" and left["memory"] == f"{((8 << 30) - (1536 + 64) * Mi - (8 << 30) // 10) // 1024}Ki"
    assert left["ephemeral-storage"] == str(950 << 30)


def test_a_shutdown_goes_from_the_least_important_up() -> None:
    def pods(*priorities: int) -> list[dict[str, Any]]:
        return [{"spec": {"priority": p}} for p in priorities]

    c, _ = interpret({"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "10s"})
    assert c.shutdown == ((0, 20), (2_000_000_000, 10)) and c.shutdown_s == 30
    assert [(s, [p["spec"]["priority"] for p in g]) for s, g in groups(c.shutdown, pods(-5, 0, 7, 2_000_000_000))] == [
        (20, [-5, 0, 7]), (10, [2_000_000_000])]
    rows = [{"priority": 100, "shutdownGracePeriodSeconds": 5}, {"priority": 0, "shutdownGracePeriodSeconds": 3}]
    c, _ = interpret({"shutdownGracePeriodByPodPriority": rows})
    assert [len(g) for _, g in groups(c.shutdown, pods(1, 99, 100, 5000))] == [2, 2]
