"""plan(): input -> actions, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from kubern.kubelet.backoff import Backoff, go_duration
from kubern.kubelet.plan import CreateSandbox, Kill, Memory, Remove, Resize, Start, StopPod, Wait, grace_period, kill_order, plan
from kubern.kubelet.runtime import CREATED, UNKNOWN, Container
from tests.kubelet.pods_made import c, end, pod, pods, run, sandbox, seen

PROBE = {"tcpSocket": {"port": 1}}
SIDECAR = {"restartPolicy": "Always"}
NEVER, ON_FAILURE = {"restartPolicy": "Never"}, {"restartPolicy": "OnFailure"}


def state(name: str, state_: str) -> Container:
    return Container(f"{name}0", name, "u", "s0", 0, state_, created_ns=10)


CASES: list[tuple[str, Any, Any, list[Any]]] = [
    ("a new pod", pod(), seen(), [CreateSandbox(0, False), Start("container", "a", 0)]),
    ("two containers start together", pod(c("a"), c("b")), seen(sandbox()), [Start("container", "a", 0), Start("container", "b", 0)]),
    ("nothing to do", pod(), seen(sandbox(), run("a")), []),
    ("init first", pod(init=(c("i"), c("j"))), seen(), [CreateSandbox(0, False), Start("init", "i", 0)]),
    ("init begins in a ready sandbox", pod(init=(c("i"),)), seen(sandbox()), [Start("init", "i", 0)]),
    ("init runs: wait", pod(init=(c("i"),)), seen(sandbox(), run("i")), []),
    ("next init", pod(init=(c("i"), c("j"))), seen(sandbox(), end("i")), [Start("init", "j", 0)]),
    ("all init done", pod(init=(c("i"),)), seen(sandbox(), end("i")), [Start("container", "a", 0)]),
    ("failed init of a Never pod ends it", pod(init=(c("i"),), **NEVER), seen(sandbox(), end("i", 1)), [StopPod(False)]),
    ("init forgotten by the runtime while the pod runs", pod(init=(c("i"),)), seen(sandbox(), run("a")), []),
    ("sidecar then container", pod(init=(c("s", **SIDECAR),)), seen(sandbox(), run("s")), [Start("container", "a", 0)]),
    ("sidecar with a startup probe is waited for", pod(init=(c("s", startupProbe=PROBE, **SIDECAR),)), seen(sandbox(), run("s")), []),
    ("sidecar between init containers", pod(init=(c("i"), c("s", **SIDECAR), c("j"))), seen(sandbox(), end("i"), run("s")),
     [Start("init", "j", 0)]),
    ("sandbox died: all again", pod(), seen(sandbox(ready=False), run("a")),
     [StopPod(True), CreateSandbox(1, True), Start("container", "a", 1)]),
    ("sandbox died of a finished Never pod", pod(**NEVER), seen(sandbox(ready=False), end("a")), []),
    ("sandbox died, OnFailure and done", pod(**ON_FAILURE), seen(sandbox(ready=False), end("a")), []),
    ("sandbox died, OnFailure, one of two done", pod(c("a"), c("b"), **ON_FAILURE), seen(sandbox(ready=False), end("a"), end("b", 1)),
     [StopPod(True), CreateSandbox(1, True), Start("container", "b", 1, "u_n_p_b_" + pods.container_hash(c("b")), 100.0)]),
    ("sandbox without address", pod(), seen(sandbox(ips=())), [StopPod(True), CreateSandbox(1, True), Start("container", "a", 0)]),
    ("done for good", pod(**NEVER), seen(sandbox(), end("a")), [StopPod(False)]),
    ("one of two done", pod(c("a"), c("b"), **NEVER), seen(sandbox(), end("a"), run("b")), []),
    ("OnFailure, failed", pod(**ON_FAILURE), seen(sandbox(), end("a", 3)),
     [Start("container", "a", 1, "u_n_p_a_" + pods.container_hash(c("a")), 100.0)]),
    ("image changed", pod(c("a", image="new")), seen(sandbox(), run("a")),
     [Kill("a0", "a", "Container a definition changed, will be restarted"), Start("container", "a", 1)]),
    ("unknown state is killed first", pod(), seen(sandbox(), state("a", UNKNOWN)),
     [Kill("a0", "a", 'Container is in "unknown" state, try killing it before restart', "Unknown"), Start("container", "a", 1)]),
    ("created but never started", pod(), seen(sandbox(), state("a", CREATED)), [Start("container", "a", 1)]),
    ("ephemeral once", pod(ephemeralContainers=[c("e")]), seen(sandbox(), run("a")), [Start("ephemeral", "e", 0)]),
    ("ephemeral never again", pod(ephemeralContainers=[c("e")]), seen(sandbox(), run("a"), end("e", 1)), []),
    ("being deleted: no starts", pod(meta={"deletionTimestamp": "x"}), seen(sandbox(), end("a")), [StopPod(False)]),
    ("container policy over the pod's", pod(c("a", restartPolicy="Never"), c("b")), seen(sandbox(), end("a", 1), run("b")), []),
    ("rule restarts one code", pod(c("a", restartPolicy="Never", restartPolicyRules=[
        {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]), c("b")), seen(sandbox(), end("a", 42), run("b")),
     [Start("container", "a", 1, "u_n_p_a_" + pods.container_hash(c("a")), 100.0)]),
]


@pytest.mark.parametrize(("what", "spec", "observed", "expected"), CASES, ids=[x[0] for x in CASES])
def test_plan(what: str, spec: Any, observed: Any, expected: list[Any]) -> None:
    assert plan(spec, observed, Memory(), 1000.0) == expected


def test_failed_probes_restart_and_say_why() -> None:
    p = pod(c("a", livenessProbe=PROBE))
    assert plan(p, seen(sandbox(), run("a")), Memory(liveness={"a0": False}), 0) == [
        Kill("a0", "a", "Container a failed liveness probe, will be restarted", "LivenessProbe"), Start("container", "a", 1)]
    p = pod(c("a"), c("b"), **NEVER)
    assert plan(p, seen(sandbox(), run("a"), run("b")), Memory(startup={"a0": False}), 0) == [
        Kill("a0", "a", "Container a failed startup probe", "StartupProbe")]
    assert plan(p, seen(sandbox(), run("a"), run("b")), Memory(liveness={"a0": True}, startup={"a0": True}), 0) == []


def test_sidecar_probes() -> None:
    p = pod(init=(c("s", startupProbe=PROBE, livenessProbe=PROBE, **SIDECAR),))
    now = seen(sandbox(), run("s"))
    assert plan(p, now, Memory(startup={"s0": True}), 0) == [Start("container", "a", 0)]
    assert plan(p, now, Memory(startup={"s0": False}), 0) == [
        Kill("s0", "s", "Init container s failed startup probe", "StartupProbe"), Start("init", "s", 1)]
    both = seen(sandbox(), run("s"), run("a"))
    assert plan(p, both, Memory(startup={"s0": True}, liveness={"s0": False}), 0) == [
        Kill("s0", "s", "Init container s failed liveness probe", "LivenessProbe"), Start("init", "s", 1)]


def test_crash_loop_waits_ten_twenty_and_so_on_up_to_five_minutes() -> None:
    p, memory = pod(), Memory(backoff=Backoff())
    now, delays = 1000.0, []
    for n in range(8):
        observed = seen(sandbox(), end("a", 1, n, now))
        action, = plan(p, observed, memory, now)
        waited = 0.0
        if isinstance(action, Wait):
            waited = action.until_s - now
            assert action.message == f"back-off {go_duration(waited)} restarting failed container=a pod=p_n(u)"
            now = action.until_s
            action, = plan(p, observed, memory, now)
        assert isinstance(action, Start) and action.attempt == n + 1
        memory.backoff.next(action.backoff_key, action.finished_s, now)
        delays.append(waited)
        now += 0.5
    assert delays == [0, 10, 20, 40, 80, 160, 300, 300]
    now += 601                                                    # it ran for more than ten minutes: forgiven
    assert isinstance(plan(p, seen(sandbox(), end("a", 1, 9, now)), memory, now)[0], Start)


def test_restart_all_removes_everything_and_the_cause_last() -> None:
    rule = [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]
    p = pod(c("a", restartPolicy="Never", restartPolicyRules=rule), c("b"), init=(c("i"),))
    now = seen(sandbox(), end("i"), end("a", 7), run("b"))
    assert plan(p, now, Memory(restart_all=True), 0) == [
        Kill("b0", "b", "killing", "RestartAllContainers", 0), Remove("b0", "b"), Remove("i0", "i"), Remove("a0", "a")]


def test_resize_in_place_or_by_restart() -> None:
    wanted = {"limits": {"cpu": "2"}}
    p = pod(c("a", resources=wanted))
    memory = Memory(resized=frozenset({"a"}), actuated={"a": {"limits": {"cpu": "1"}}})
    assert plan(p, seen(sandbox(), run("a")), memory, 0) == [Resize("a0", "a")]
    p = pod(c("a", resources=wanted, resizePolicy=[{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]))
    assert plan(p, seen(sandbox(), run("a")), memory, 0) == [
        Kill("a0", "a", "Container a resize requires restart, will be restarted"), Start("container", "a", 1)]


def test_order_of_termination_and_grace() -> None:
    p = pod(c("a", livenessProbe={"terminationGracePeriodSeconds": 5}), init=(c("s1", **SIDECAR), c("i"), c("s2", **SIDECAR)),
            terminationGracePeriodSeconds=40)
    main, sidecars = kill_order(p, seen(sandbox(), run("s1"), end("i"), run("s2"), run("a")))
    assert [x.name for x in main] == ["a"]
    assert [[x.name for x in group] for group in sidecars] == [["s2"], ["s1"]]
    a = p["spec"]["containers"][0]
    assert (grace_period(p, a, ""), grace_period(p, a, "LivenessProbe")) == (40, 5)
    p["metadata"]["deletionGracePeriodSeconds"] = 3
    assert grace_period(p, a, "LivenessProbe") == 3


@pytest.mark.parametrize(("seconds", "text"), [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3661, "1h1m1s")])
def test_go_duration(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
