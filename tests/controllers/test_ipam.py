"""Ranges of pod addresses for nodes, of one family or two."""

from __future__ import annotations

from typing import Any

from kubern.controllers import ipam
from kubern.controllers.context import Context
from kubern.model.intent import Emit, Patch
from tests.controllers.conftest import ListView, drive


def node(name: str, *cidrs: str) -> Any:
    return {"metadata": {"name": name, "uid": name}, "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {},
            "status": {"nodeInfo": {"kubeletVersion": "v1.36.0"}}}


def given(pod_cidr: str, new: Any, *others: Any) -> list[Any]:
    return drive(ipam.controller(Context(pod_cidr=pod_cidr)).reconcile(new, ListView(nodes=[new, *others]), 0.0))


def test_the_first_that_is_free_of_each_family() -> None:
    others = node("a", "10.244.0.0/24", "fd00:10:244::/64"), node("b", "10.244.2.0/24", "fd00:10:244:1::/64")
    done = given("10.244.0.0/16,fd00:10:244::/56", node("c"), *others)
    assert [p.patch["spec"] for p in done if isinstance(p, Patch)] == [
        {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:2::/64"]}]
    assert given("10.244.0.0/16", node("c"), *others)[0].patch["spec"]["podCIDRs"] == ["10.244.1.0/24"]


def test_nothing_for_nodes_that_have_one_and_a_word_when_all_are_gone() -> None:
    assert given("10.244.0.0/16", node("a", "10.244.0.0/24")) == []
    done = given("10.244.0.0/16,fd00::/64", node("c"), node("a", "10.244.0.0/24", "fd00::/64"))
    assert [i.reason for i in done if isinstance(i, Emit)] == ["CIDRNotAvailable"]


def test_ranges_are_kept_as_nodes_come_and_go() -> None:
    row = ipam.controller(Context(pod_cidr="10.244.0.0/22"))
    keep, view = row.triggers[0].keys, ListView(nodes=[])

    def give(name: str) -> str:
        return next(i.patch["spec"]["podCIDR"] for i in drive(row.reconcile(node(name), view, 0.0), lambda _: {"metadata": {}}))
    assert [give("a"), give("b")] == ["10.244.0.0/24", "10.244.1.0/24"]       # the view has seen neither yet
    keep(node("a"), node("a"), view)                                            # news older than what was given
    keep(None, node("own", "10.244.2.0/24"), view)
    assert give("c") == "10.244.3.0/24"
    keep(node("a", "10.244.0.0/24"), None, view)
    assert give("d") == "10.244.0.0/24"
