"""Fixtures for tests on real containers: one cluster of two nodes for the module (FLAGS: of `kubern up`), skipped with a reason where it cannot run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.cluster import Cluster, missing


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[object]:
    why = missing()
    if why:
        pytest.skip(why)
    made = Cluster(Path(tempfile.mkdtemp(prefix="kt")), "--nodes", "2", "--node-grace", "6", *getattr(request.module, "FLAGS", ()))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def module_cluster() -> Any:
    """Makes a cluster with flags of the module's own; skips where none can run."""
    why = missing()
    if why:
        pytest.skip(why)
    return Cluster
