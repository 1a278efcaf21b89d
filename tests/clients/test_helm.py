# ruff: noqa: E501
"""Helm 4, the real one as a library: it installs by server-side apply, waits by conditions, and reads OpenAPI and discovery."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
import helm_python as helm
kubeconfig, directory, release = sys.argv[1:]
config = helm.Config(kubeconfig_path=kubeconfig, namespace="default")
config.check_reachable()
chart = helm.Chart.create("shop", directory)
path = os.path.join(directory, "shop")
values = {"image": {"repository": "nginx"}, "replicaCount": 1, "livenessProbe": None, "readinessProbe": None}
out = {}
first = config.install(path, release, values, wait="watcher", timeout=60)
out["installed"] = first["status"]
second = config.upgrade(path, release, {**values, "replicaCount": 2}, wait="watcher", timeout=60)
out["upgraded"], out["revision"] = second["status"], second["revision"]
out["listed"] = [r["name"] for r in config.list()]
config.rollback(release, version=1, wait="watcher", timeout=60)
out["history"] = len(config.history(release))
config.uninstall(release)
out["left"] = [r["name"] for r in config.list()]
print(json.dumps(out))
"""


def test_helm(kubeconfig: str, tmp_path: Path) -> None:
    """Its own starter chart: install, upgrade, rollback, uninstall; in a process of its own, because the library has a runtime of its own."""
    pytest.importorskip("helm_python")
    done = subprocess.run([sys.executable, "-c", SCRIPT, kubeconfig, str(tmp_path), "shop"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"installed": "deployed", "upgraded": "deployed", "revision": 2, "listed": ["shop"], "history": 3, "left": []}
