"""Which toleration covers which taint."""

from __future__ import annotations

import pytest

from kubern.model.taint import tolerated

TAINT = {"key": "k", "value": "v", "effect": "NoSchedule"}


@pytest.mark.parametrize(("toleration", "covers"), [
    ({"operator": "Exists"}, True), ({"key": "k", "operator": "Exists"}, True), ({"key": "k", "value": "v"}, True),
    ({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}, True), ({"value": "v"}, True),
    ({"key": "k"}, False), ({"key": "x", "operator": "Exists"}, False), ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, False),
    ({"key": "k", "operator": "Gt", "value": "1"}, False),
])
def test_a_toleration_covers_a_taint(toleration: dict[str, str], covers: bool) -> None:
    assert tolerated(TAINT, [toleration]) is covers
    assert not tolerated(TAINT, None)
