"""@kubernetes/client-node, as npm has it: one script of what programs for Node do; tests/real runs it once more where pods have containers."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid

from tests.clients import tools


def test_client_node(kubeconfig: str) -> None:
    home = tools.node_modules()
    shutil.copy(tools.NODE / "client.mjs", home)
    done = subprocess.run([tools.node(), "client.mjs", kubeconfig, f"node-{uuid.uuid4().hex[:6]}"], cwd=home, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["seen"] == ["add before 1", "add one 1", "delete one 2", "update one 2"]
