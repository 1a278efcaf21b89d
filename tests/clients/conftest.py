# ruff: noqa: E501
"""One cluster with a simulated node for the clients that nobody changed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The admin kubeconfig of a running cluster; KUBERN_TEST_KUBECONFIG names one that runs already."""
    given = os.environ.get("KUBERN_TEST_KUBECONFIG")
    if given:
        yield given
        return
    home = tmp_path_factory.mktemp("cluster") / "k"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "kubern"]
    where = ["--data-dir", str(home)]
    started = subprocess.run([*command, "up", *where, "--port", str(port), "--bind", "127.0.0.1", "--runtime", "simulated", "--nodes", "1", "-d"], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stdout + started.stderr
    yield str(Path(home, "admin.kubeconfig"))
    subprocess.run([*command, "down", *where, "--purge"], capture_output=True, timeout=60, check=True)
