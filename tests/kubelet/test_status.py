"""pod_status(): what is reported, case by case; times are 1970-01-01T00:16:40Z (second 1000)."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.kubelet import pods
from kubern.kubelet.status import Facts, changed, ended_status, pod_status
from tests.kubelet.pods_made import c, end, pod, run, sandbox, seen

NOW = "1970-01-01T00:16:40Z"
SIDECAR = {"restartPolicy": "Always"}
PROBE = {"tcpSocket": {"port": 1}}


def status(p: dict[str, Any], observed: Any, old: dict[str, Any] | None = None, terminal: bool = False, **facts: Any) -> dict[str, Any]:
    return pod_status(p, observed, old or {}, Facts(**facts), 1000.0, terminal)


def conditions(s: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {x["type"]: (x["status"], x.get("reason", ""), x.get("message", "")) for x in s["conditions"]}


def test_a_fresh_pod_says_container_creating() -> None:
    s = status(pod(), seen(), host_ips=("192.0.2.1",))
    assert (s["phase"], s["hostIP"], s["hostIPs"], s["startTime"], s["qosClass"], s["observedGeneration"]) == (
        "Pending", "192.0.2.1", [{"ip": "192.0.2.1"}], NOW, "BestEffort", 1)
    assert s["containerStatuses"] == [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": {}, "ready": False,
                                       "restartCount": 0, "image": "i", "imageID": "", "started": False}]
    assert conditions(s) == {
        "PodReadyToStartContainers": ("False", "", ""), "Initialized": ("True", "", ""),
        "Ready": ("False", "ContainersNotReady", "containers with unready status: [a]"),
        "ContainersReady": ("False", "ContainersNotReady", "containers with unready status: [a]"), "PodScheduled": ("True", "", "")}
    assert all(x["lastTransitionTime"] == NOW and x["observedGeneration"] == 1 for x in s["conditions"])
    assert "podIP" not in s


def test_init_containers_hold_the_others_back() -> None:
    s = status(pod(init=(c("i"), c("j"))), seen(sandbox(), run("i")))
    assert s["phase"] == "Pending"
    assert [x["state"] for x in s["initContainerStatuses"]] == [{"running": {"startedAt": "1970-01-01T00:00:01Z"}},
                                                               {"waiting": {"reason": "PodInitializing"}}]
    assert conditions(s)["Initialized"] == ("False", "ContainersNotInitialized", "containers with incomplete status: [i j]")
    assert conditions(s)["PodReadyToStartContainers"] == ("True", "", "")


def test_running_and_ready() -> None:
    s = status(pod(c("b"), c("a")), seen(sandbox(ips=("10.0.0.1", "fd00::1")), run("a"), run("b")))
    assert (s["phase"], s["podIP"], s["podIPs"]) == ("Running", "10.0.0.1", [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}])
    assert [(x["name"], x["ready"], x["started"], x["containerID"]) for x in s["containerStatuses"]] == [
        ("a", True, True, "containerd://a0"), ("b", True, True, "containerd://b0")]
    assert conditions(s)["Ready"] == ("True", "", "")


@pytest.mark.parametrize(("facts", "started", "ready"), [
    ({}, False, False), ({"startup": {"a0": True}}, True, False), ({"startup": {"a0": False}}, False, False),
    ({"startup": {"a0": True}, "readiness": {"a0": True}}, True, True), ({"startup": {"a0": True}, "readiness": {"a0": False}}, True, False),
    ({"readiness": {"a0": True}}, False, False)])
def test_probes_decide_started_and_ready(facts: Any, started: bool, ready: bool) -> None:
    s = status(pod(c("a", startupProbe=PROBE, readinessProbe=PROBE)), seen(sandbox(), run("a")), **facts)
    assert (s["containerStatuses"][0]["started"], s["containerStatuses"][0]["ready"]) == (started, ready)


def test_a_restarted_kubelet_believes_what_was_reported_of_the_same_container() -> None:
    p = pod(c("a", startupProbe=PROBE, readinessProbe=PROBE))
    old = {"containerStatuses": [{"name": "a", "containerID": "containerd://a0", "started": True, "ready": True, "state": {"running": {}},
                                  "lastState": {}, "restartCount": 0}]}
    assert status(p, seen(sandbox(), run("a")), old)["containerStatuses"][0]["ready"] is True
    old["containerStatuses"][0]["containerID"] = "containerd://other"
    assert status(p, seen(sandbox(), run("a")), old)["containerStatuses"][0]["ready"] is False


def test_crash_loop_keeps_the_pod_running() -> None:
    p = pod()
    s = status(p, seen(sandbox(), end("a", 1, 2), end("a", 1, 1)), waiting={"a": ("CrashLoopBackOff", "back-off")})
    a = s["containerStatuses"][0]
    assert s["phase"] == "Running"
    assert a["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert (a["restartCount"], a["lastState"]["terminated"]["exitCode"], a["lastState"]["terminated"]["containerID"]) == (2, 1, "containerd://a2")
    s = status(p, seen(sandbox(), run("a", 3), end("a", 1, 2)))
    a = s["containerStatuses"][0]
    assert ("running" in a["state"], a["restartCount"], a["lastState"]["terminated"]["reason"]) == (True, 3, "Error")


@pytest.mark.parametrize(("policy", "codes", "phase", "reason"), [
    ("Never", (0, 0), "Succeeded", "PodCompleted"), ("Never", (0, 1), "Failed", "PodFailed"), ("OnFailure", (0, 0), "Succeeded", "PodCompleted"),
    ("OnFailure", (0, 1), "Running", "ContainersNotReady"), ("Always", (0, 0), "Running", "ContainersNotReady")])
def test_phase_of_ended_containers(policy: str, codes: tuple[int, int], phase: str, reason: str) -> None:
    s = status(pod(c("a"), c("b"), restartPolicy=policy), seen(sandbox(), end("a", codes[0]), end("b", codes[1])))
    assert (s["phase"], conditions(s)["Ready"][1]) == (phase, reason)


def test_sidecars_count_for_readiness_and_not_for_the_end() -> None:
    p = pod(init=(c("s", **SIDECAR),), restartPolicy="Never")
    s = status(p, seen(sandbox(), run("s"), run("a")))
    assert (s["phase"], s["initContainerStatuses"][0]["ready"], s["initContainerStatuses"][0]["started"]) == ("Running", True, True)
    s = status(p, seen(sandbox(), end("s", 137), end("a", 0)), terminal=True)
    assert s["phase"] == "Succeeded"


def test_failed_init_fails_a_never_pod() -> None:
    p = pod(init=(c("i"),), restartPolicy="Never")
    assert status(p, seen(sandbox(), end("i", 1)))["phase"] == "Failed"
    assert status(pod(init=(c("i"),)), seen(sandbox(), end("i", 1)))["phase"] == "Pending"


def test_readiness_gates() -> None:
    p = pod(readinessGates=[{"conditionType": "x/y"}], status={"conditions": []})
    text = 'corresponding condition of pod readiness gate "x/y" does not exist.'
    assert conditions(status(p, seen(sandbox(), run("a"))))["Ready"] == ("False", "ReadinessGatesNotReady", text)
    p["status"] = {"conditions": [{"type": "x/y", "status": "True"}]}
    s = status(p, seen(sandbox(), run("a")))
    assert conditions(s)["Ready"][0] == "True"
    assert s["conditions"][0] == {"type": "x/y", "status": "True"}


def test_a_lost_container_is_not_waiting() -> None:
    old = {"containerStatuses": [{"name": "a", "containerID": "containerd://a0", "state": {"running": {}}, "lastState": {}, "restartCount": 1}]}
    a = status(pod(), seen(sandbox()), old)["containerStatuses"][0]
    assert (a["restartCount"], a["lastState"]["terminated"]["reason"], a["lastState"]["terminated"]["exitCode"]) == (2, "ContainerStatusUnknown", 137)


def test_terminal_phases_are_for_ever() -> None:
    p = pod(restartPolicy="Never", status={"phase": "Succeeded"})
    assert status(p, seen())["phase"] == "Succeeded"


def test_eviction_names_the_reason() -> None:
    s = status(pod(), seen(sandbox(), run("a")), evicted=("Evicted", "The node was low on resource: memory."))
    assert (s["phase"], s["reason"], s["message"]) == ("Failed", "Evicted", "The node was low on resource: memory.")


def test_transition_times_stay_while_the_status_does() -> None:
    p = pod()
    first = pod_status(p, seen(sandbox(), run("a")), {}, Facts(), 500.0)
    second = pod_status(p, seen(sandbox(), run("a")), first, Facts(), 1000.0)
    assert second == first
    assert changed(first, second) == {}


def test_patch_holds_only_what_changed() -> None:
    p = pod(c("a", readinessProbe=PROBE))
    first = pod_status(p, seen(sandbox(), run("a")), {}, Facts(), 500.0)
    second = pod_status(p, seen(sandbox(), run("a")), first, Facts(readiness={"a0": True}), 1000.0)
    patch = changed(first, second)
    assert set(patch) == {"conditions", "$setElementOrder/conditions", "containerStatuses"}
    assert [x["type"] for x in patch["conditions"]] == ["Ready", "ContainersReady"]


def test_an_address_that_changed_replaces_the_old_one() -> None:
    assert changed({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}, {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}) == {
        "podIP": "10.0.0.2", "podIPs": [{"$patch": "delete", "ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
        "$setElementOrder/podIPs": [{"ip": "10.0.0.2"}]}


def test_the_address_of_an_ended_pod_stays_on_record() -> None:
    p = pod(restartPolicy="Never")
    old = {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}
    assert status(p, seen(sandbox(ready=False, ips=()), end("a")), old)["podIP"] == "10.0.0.1"


def test_the_last_status_has_no_container_without_an_end() -> None:
    p = pod(init=(c("i"),))
    s = ended_status(p, status(p, seen(sandbox(), end("i"), run("a"))))
    assert s["phase"] == "Failed"
    assert s["containerStatuses"][0]["state"]["terminated"]["reason"] == "ContainerStatusUnknown"
    assert s["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    assert conditions(s)["Ready"] == ("False", "PodFailed", "")
    s = ended_status(p, status(p, seen()))
    assert "waiting" in s["containerStatuses"][0]["state"]


def test_resources_in_status() -> None:
    p = pod(c("a", resources={"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}))
    s = status(p, seen(sandbox(), run("a")), actuated={"a": {"requests": {"cpu": "50m"}, "limits": {"cpu": "1"}}})
    a = s["containerStatuses"][0]
    assert (a["allocatedResources"], a["resources"]["requests"]) == ({"cpu": "100m"}, {"cpu": "50m"})
    assert s["allocatedResources"] == {"cpu": "100m"}


def test_what_a_pod_asks_for() -> None:
    def r(cpu: str, memory: str = "") -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu, **({"memory": memory} if memory else {})}}}
    spec = pod(c("a", **r("1", "1Gi")), c("b", **r("500m")), init=(c("i", **r("3")), c("s", **r("250m"), **SIDECAR)))["spec"]
    assert pods.resources(spec, "requests") == {"cpu": "3", "memory": "1Gi"}
    spec["overhead"] = {"cpu": "100m"}
    assert pods.resources(spec, "requests")["cpu"] == "3100m"
    spec["resources"] = {"requests": {"cpu": "4"}}
    del spec["overhead"]
    assert pods.resources(spec, "requests")["cpu"] == "4"


def test_a_condition_that_has_no_reason_any_more_loses_it() -> None:
    """A strategic merge keeps what a patch does not name."""
    old = {"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "containers with unready status: [c]"}]}
    now = {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "T"}]}
    assert changed(old, now)["conditions"] == [{"type": "Ready", "status": "True", "lastTransitionTime": "T", "reason": None, "message": None}]
