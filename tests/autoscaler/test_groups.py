"""Node groups and timings as people write them, and the status document."""

from __future__ import annotations

import pytest
import yaml

from kubern.autoscaler import status
from kubern.autoscaler.groups import instance_of, parse_group, parse_groups
from kubern.autoscaler.options import BadGroup, Options, parse_options, seconds
from kubern.config import BadSettings, load


def test_a_group_as_text_and_as_mapping() -> None:
    text = parse_group("name=real,min=1,max=4,label=disk=ssd,taint=only=me:NoSchedule,cpu=2")
    assert text == parse_group({"name": "real", "min": 1, "max": 4, "labels": {"disk": "ssd"}, "taints": ["only=me:NoSchedule"], "capacity": {"cpu": 2}})
    assert text.taints == ({"key": "only", "value": "me", "effect": "NoSchedule"},)


@pytest.mark.parametrize("bad", ["", "min=1", "name=A", "name=a,min=3,max=2", "name=a,min=x", "name=a,what=1", "name=a,taint=x", "name"])
def test_bad_groups_say_why(bad: str) -> None:
    with pytest.raises(BadGroup):
        parse_group(bad)


def test_groups_through_the_settings(tmp_path: object) -> None:
    s = load({"node_groups": ["name=a,max=3", {"name": "b", "max": 2}], "autoscaler": "scan-interval=1s"}, environ={})
    assert [g.name for g in parse_groups(s.node_groups)] == ["a", "b"]
    assert parse_options(s.autoscaler).scan_interval_s == 1
    with pytest.raises(BadSettings):
        load({"node_groups": ["name=a", "name=a"]}, environ={})
    with pytest.raises(BadSettings):
        load({"autoscaler": "sacn-interval=1s"}, environ={})
    assert parse_groups("") == ()


def test_durations() -> None:
    assert [seconds(t) for t in ("10s", "1m30s", "1.5h", "500ms", "7")] == [10, 90, 5400, 0.5, 7]
    with pytest.raises(BadGroup):
        seconds("soon")


def test_a_node_belongs_to_the_group_it_is_named_after() -> None:
    groups = [parse_group("name=real"), parse_group("name=real-big")]
    assert instance_of("real-3", groups) is groups[0]
    assert instance_of("real-big-3", groups) is groups[1]
    assert instance_of("other-3", groups) is None and instance_of("real-x", groups) is None


def test_the_status_document_keeps_transition_times() -> None:
    seen = status.Transitions()
    group = status.GroupState("real", total=2, ready=1, not_started=1, target=3, unregistered=1, min=1, max=4, scaling_up=True)
    first = status.report([group], group, seen, 1000.0, Options().healthy)
    later = status.report([status.GroupState("real", total=2, ready=2, target=2, min=1, max=4)], group, seen, 1010.0, Options().healthy)
    assert first["nodeGroups"][0]["scaleUp"]["status"] == "InProgress" and later["nodeGroups"][0]["scaleUp"]["status"] == "NoActivity"
    assert later["nodeGroups"][0]["health"]["lastTransitionTime"] == first["nodeGroups"][0]["health"]["lastTransitionTime"]
    assert later["nodeGroups"][0]["scaleUp"]["lastTransitionTime"] != first["nodeGroups"][0]["scaleUp"]["lastTransitionTime"]
    text = yaml.safe_load(status.config_map(first, 1000.0)["data"]["status"])
    assert text["autoscalerStatus"] == "Running" and text["nodeGroups"][0]["health"]["cloudProviderTarget"] == 3
