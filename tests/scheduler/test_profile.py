"""KubeSchedulerConfiguration: what profiles change, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kubern.scheduler.configuration import BadConfiguration, parse
from kubern.scheduler.pick import Decision, Extra, Rejection, pick
from kubern.scheduler.pod import pod_info
from kubern.scheduler.profile import WEIGHTS, Configuration, Profile
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
    ("profiles: [{schedulerName: a}, {schedulerName: a}]", 'profiles[1].schedulerName: Duplicate value: "profiles[0].schedulerName"'),
    ("profiles: [{}, {}]", "[profiles[0].schedulerName: Required value, profiles[1].schedulerName: Required value, "),
    ("profiles: [{plugins: {score: {enabled: [{name: Mine}]}}}]", 'plugin "Mine" does not exist'),
    ("profiles: [{plugins: {queueSort: {enabled: [{name: PrioritySort}]}}, schedulerName: a}, {schedulerName: b}]", "must be the same for all profiles"),
    ("extenders: [{urlPrefix: x, httpTimeout: 1.2.3s}]", 'extenders[0].httpTimeout: time: invalid duration "1.2.3s"'),
    ("profiles: [{pluginConfig: [{name: DynamicResources, args: {bindingTimeout: soon}}]}]", 'bindingTimeout: time: invalid duration "soon"'),
    ("profiles: [{pluginConfig: [{name: DynamicResources, args: {bindingTimeout: 500ms}}]}]", "must be at least 1 second"),
    ("parallelism: 0", "parallelism: Invalid value: 0: should be an integer value greater than zero"),
    ("parallelism: many", "parallelism: 'many' is not of type int"),
    ("leaderElection: {resourceLock: endpoints}", 'resourceLock value must be "leases"'),
    ("extenders: [{urlPrefix: x, prioritizeVerb: p}]", "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it"),
    ("extenders: [{urlPrefix: x, bindVerb: b}, {urlPrefix: y, bindVerb: b}]", "only one extender can implement bind"),
    ("extenders: [{urlPrefix: x, managedResources: [{name: cpu}]}]", 'managedResources[0].name: Invalid value: "cpu": is an invalid extended resource name'),
    ("profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {ignored: 1}}]}]", 'unknown field "profiles[0].pluginConfig[0].args.ignored"'),
    ("profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {kind: Pod}}]}]", "args for plugin NodeResourcesFit were not of type NodeResourcesFitArgs"),
    ("profiles: [{pluginConfig: [{name: NodeResourcesFit}, {name: NodeResourcesFit}]}]", 'pluginConfig[1]: Duplicate value: "NodeResourcesFit"'),
    ("profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: Most}}}]}]", 'scoringStrategy.type: Unsupported value: "Most"'),
    ("profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: "
     "[{utilization: 9, score: 11}, {utilization: 9}]}}}}]}]", "values must be sorted in increasing order"),
    ("profiles: [{pluginConfig: [{name: DefaultPreemption, args: {minCandidateNodesPercentage: 101}}]}]", "not in valid range [0, 100]"),
    ("profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: -1}}]}]", "hardPodAffinityWeight: Invalid value: -1"),
    ("profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}]}}]}]",
     'defaultingType: Invalid value: "System": when .defaultConstraints are not empty'),
    ("profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultingType: List, defaultConstraints: [{topologyKey: zone, labelSelector: {}}]}}]}]",
     "constraint must not define a selector, as they deduced for each pod"),
    ("profiles: [{pluginConfig: [{name: VolumeBinding, args: {bindTimeoutSeconds: -1}}]}]", "should not be a negative value"),
    ("profiles: [{pluginConfig: [{name: NodeAffinity, args: {addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {}}}}]}]", "Required value"),
    ("profiles: [{pluginConfig: [{name: NodeResourcesBalancedAllocation, args: {resources: [{name: cpu, weight: 2}]}}]}]", "must be 1"),
    ("profiles: [{plugins: {score: {enabled: [{name: EBSLimits}]}}}]", "was invalid in version"),
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


def test_what_one_document_gets_wrong_is_told_at_once() -> None:
    with pytest.raises(BadConfiguration) as e:
        given("percentageOfNodesToScore: 101\npodInitialBackoffSeconds: 0\n")
    assert str(e.value) == ("[percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100], "
                            "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0]")


def test_arguments_of_plugins_reach_them() -> None:
    def args(name: str, text: str) -> Profile:
        return only(f"  pluginConfig:\n  - name: {name}\n    args: {text}\n")
    lax = args("NodeResourcesFit", "{ignoredResources: [example.com/thing], ignoredResourceGroups: [example.org]}").args
    assert lax.ignores("example.com/thing") and lax.ignores("example.org/any") and not lax.ignores("example.com/other")
    hungry = pod_info({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [{"resources": {"requests": {"example.com/thing": "1"}}}]}})
    assert isinstance(pick(hungry, table(), lambda n: 0), Rejection)
    hungry.args = lax
    assert isinstance(pick(hungry, table(), lambda n: 0), Decision)
    pinned = pod("p", "1", "1Gi")
    pinned.args = args("NodeAffinity", "{addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: "
                       "[{matchFields: [{key: metadata.name, operator: In, values: [busy]}]}]}}}").args
    found = pick(pinned, table(), lambda n: 0)
    assert isinstance(found, Decision) and found.node == "busy"
    pinned.args = args("NodeAffinity", "{addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: "
                       "[{matchFields: [{key: metadata.name, operator: In, values: [none]}]}]}}}").args
    refused = pick(pinned, table(), lambda n: 0)
    assert isinstance(refused, Rejection) and refused.reasons["node(s) didn't match scheduler-enforced node affinity"] == 2
    assert args("InterPodAffinity", "{hardPodAffinityWeight: 7, ignorePreferredTermsOfExistingPods: true}").args.hard_affinity_weight == 7
    assert args("DefaultPreemption", "{minCandidateNodesAbsolute: 3, minCandidateNodesPercentage: 50}").args.candidates_share == 0.5
    assert args("PodTopologySpread", "{defaultingType: List}").args.default_constraints == ()
    assert args("DynamicResources", "{bindingTimeout: 1m30s}").args.device_bind_s == 90
    assert args("VolumeBinding", "{bindTimeoutSeconds: 5}").args.volume_bind_s == 5
    assert args("NodeResourcesBalancedAllocation", "{resources: [{name: cpu}, {name: memory}, {name: pods}]}").args.balanced == ("cpu", "memory", "pods")


def test_not_a_configuration() -> None:
    for doc in (None, [], {"kind": "Pod"}):
        with pytest.raises(BadConfiguration):
            parse(doc)
