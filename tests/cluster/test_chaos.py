"""Seeds of chaos.py: a few in every run, KUBERN_CHAOS_SEEDS=500 for many, KUBERN_CHAOS_FIRST=n to begin elsewhere. A failure prints its schedule."""

from __future__ import annotations

import os

import pytest
from tests.cluster import chaos

FIRST, SEEDS = int(os.environ.get("KUBERN_CHAOS_FIRST", "100")), int(os.environ.get("KUBERN_CHAOS_SEEDS", "4"))
ONCE_BROKEN = {
    0: "a quota was lowered by what a late mirror showed",
    9: "a binding that is refused for good was tried again without a pause",
}


@pytest.mark.parametrize("seed", [*ONCE_BROKEN, *range(FIRST, FIRST + SEEDS)])
def test_a_cluster_comes_to_rest_after_faults(seed: int) -> None:
    done = chaos.run(seed)
    assert done.faults.count["lost request"] and done.faults.count["lost answer"] and done.faults.count["watch cut"]
