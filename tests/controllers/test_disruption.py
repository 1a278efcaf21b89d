"""Pods under several budgets are told so, once."""

from __future__ import annotations

from typing import Any

from kubern.controllers import disruption
from kubern.model.object import Object
from tests.controllers.conftest import ListView, drive, emitted, pod


def budget(name: str, **selector: Any) -> Object:
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name, "namespace": "default", "generation": 1},
            "spec": {"minAvailable": 1, "selector": selector}}


def test_a_pod_under_two_budgets() -> None:
    budgets = [budget("b", matchLabels={"app": "a"}), budget("a", matchExpressions=[{"key": "app", "operator": "Exists"}]),
               budget("c", matchLabels={"app": "c"})]
    view = ListView(pods=[pod("p"), pod("q", labels={"app": "c"}), pod("r", labels={"app": "z"})])
    view.all["poddisruptionbudgets.policy"] = budgets
    told = [m for b in budgets for r, m in emitted(drive(disruption.reconcile(b, view, 0.0))) if r == "MultiplePodDisruptionBudgets"]
    assert told == [f'Pod "default"/"{p}" matches multiple PodDisruptionBudgets.  Chose "a" arbitrarily.' for p in ("p", "q")]
