"""KubeSchedulerConfiguration: what profiles change, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kubern.scheduler.pick import Decision, Extra, Rejection, pick
from kubern.scheduler.pod import pod_info
from kubern.scheduler.profile import WEIGHTS, BadConfiguration, Configuration, Profile, parse
from kubern.scheduler.table import NodeTable

HEAD = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"


def given(text: str) -> Configuration:
    return parse(yaml.safe_load(HEAD + text))


def only(text: str) -> Profile:
    found = given(f"profiles:\n- schedulerName: mine\n{text}").profiles["mine"]
    assert found is not None
    return found


def table() -> NodeTable:
    t = NodeTable()
    for name, cpu, taints in (("empty", "4", []), ("busy", "4", []), ("kept", "4", [{"key": "k", "effect": "NoSchedule"}])):
        t.set_node({"metadata": {"name": name}, "spec": {"taints": taints}, "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "9"}}})
    assert t.add_pod(pod("there", "2", "4Gi"), "busy")
    return t


def pod(name: str, cpu: str, memory: str) -> Any:
    return pod_info({"metadata": {"name": name, "namespace": "d"}, "spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})


def where(profile: Profile | None, cpu: str = "1") -> str:
    found = pick(pod("p", cpu, "2Gi"), table(), lambda n: 0, Extra(profile=profile))
    return found.node if isinstance(found, Decision) else ""


def test_a_configuration_that_changes_nothing_is_the_default() -> None:
    assert given("").profiles == {"default-scheduler": None}
    assert given("parallelism: 8\npercentageOfNodesToScore: 50\nleaderElection: {leaderElect: false}\n").profiles == {"default-scheduler": None}
    assert given("podInitialBackoffSeconds: 2\npodMaxBackoffSeconds: 20\n").max_backoff_s == 20


def test_most_allocated_packs() -> None:
    packing = only("  pluginConfig:\n  - name: NodeResourcesFit\n    args: {scoringStrategy: {type: MostAllocated}}\n")
    assert (where(None), where(packing)) == ("empty", "busy")
    bent = only("  pluginConfig:\n  - name: NodeResourcesFit\n    args: {scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: "
                "{shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}}}\n")
    assert where(bent) == "busy"


def test_a_filter_that_is_off_keeps_no_node_away() -> None:
    loose = only("  plugins: {multiPoint: {disabled: [{name: TaintToleration}]}}\n")
    assert "TaintToleration" in loose.off and "TaintToleration" not in loose.weights
    blind = only("  plugins: {filter: {disabled: [{name: NodeResourcesFit}]}}\n")
    assert isinstance(pick(pod("p", "9", "1Gi"), table(), lambda n: 0, Extra(profile=blind)), Decision)
    assert isinstance(pick(pod("p", "9", "1Gi"), table(), lambda n: 0, Extra()), Rejection)


def test_weights_and_a_profile_of_few_scores() -> None:
    few = only("  plugins: {score: {disabled: [{name: '*'}], enabled: [{name: NodeResourcesFit, weight: 7}]}}\n")
    assert few.weights == {"NodeResourcesFit": 7} and not few.off
    assert only("  plugins: {multiPoint: {enabled: [{name: ImageLocality, weight: 9}]}}\n").weights == {**WEIGHTS, "ImageLocality": 9}
    assert not only("  plugins: {postFilter: {disabled: [{name: DefaultPreemption}]}}\n").preempts


@pytest.mark.parametrize(("text", "words"), [
    ("extenders: [{urlPrefix: x}]", "extenders: not supported"),
    ("profiles: [{}, {}]", 'profiles[1].schedulerName: Duplicate value: "default-scheduler"'),
    ("profiles: [{plugins: {score: {enabled: [{name: Mine}]}}}]", "plugin 'Mine' does not exist"),
    ("profiles: [{plugins: {scoer: {}}}]", "unknown field"),
    ("percentageOfNodesToScore: 101", "percentageOfNodesToScore"),
    ("podInitialBackoffSeconds: 5\npodMaxBackoffSeconds: 2", "must be greater than or equal"),
    ("profiles: 3", "must be a list"),
    ("profles: []", 'unknown field "profles"'),
])
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadConfiguration, match=None) as e:
        given(text)
    assert words in str(e.value)


def test_not_a_configuration() -> None:
    for doc in (None, [], {"kind": "Pod"}):
        with pytest.raises(BadConfiguration):
            parse(doc)
