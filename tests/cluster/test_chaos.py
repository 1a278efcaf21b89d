"""Seeds of chaos.py: a few in every run, KUBERN_CHAOS_SEEDS=500 for many, KUBERN_CHAOS_FIRST=n to begin elsewhere. A failure prints its schedule."""

from __future__ import annotations

import os

import pytest
from tests.cluster import chaos

FIRST, SEEDS = int(os.environ.get("KUBERN_CHAOS_FIRST", "100")), int(os.environ.get("KUBERN_CHAOS_SEEDS", "4"))
ONCE_BROKEN = {
    4: "a binding that is refused for good was tried again without a pause",
    23: "a namespace was taken for empty because the list of what is left in it failed",
    29: "a pod of a job whose creation got no answer was made twice",
    31: "the room of a pod whose binding got no answer was given away",
    36: "a quota was lowered by a mirror that was late",
}


@pytest.mark.parametrize("seed", [*ONCE_BROKEN, *range(FIRST, FIRST + SEEDS)])
def test_a_cluster_comes_to_rest_after_faults(seed: int) -> None:
    done = chaos.run(seed)
    assert done.faults.count["lost request"] and done.faults.count["lost answer"] and done.faults.count["watch cut"]
