"""Fixtures for tests on real containers: one cluster of two nodes for the module (FLAGS: of `kubern up`), skipped with a reason where it cannot run."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kubern_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cluster_module = _load("cluster")


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[object]:
    why = cluster_module.missing()
    if why:
        pytest.skip(why)
    made = cluster_module.Cluster(Path(tempfile.mkdtemp(prefix="kt")), "--nodes", "2", "--node-grace", "6", *getattr(request.module, "FLAGS", ()))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def module_cluster() -> Any:
    """Makes a cluster with flags of the module's own; skips where none can run."""
    why = cluster_module.missing()
    if why:
        pytest.skip(why)
    return cluster_module.Cluster
