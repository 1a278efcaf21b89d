"""The cluster as a process: it stops when told, whatever state it is in, and says what to do when it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubern import cluster, config
from kubern.config import BadSettings, Settings

STOP_MAX_S = 10.0


def kubern(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "kubern", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=60)
    return process.returncode, text


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        number = s.getsockname()[1]
    yield int(number)


@pytest.mark.parametrize("after_s", [0.3, 0.8, 1.1, 1.3, 1.6])
def test_it_stops_in_every_state(tmp_path: Path, port: int, after_s: float) -> None:
    process = kubern("up", "--data-dir", str(tmp_path / "k"), "--port", str(port), "--bind", "127.0.0.1", "--runtime", "simulated", "--nodes", "1")
    time.sleep(after_s)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, text = said(process)
    assert time.monotonic() - began < STOP_MAX_S and code in (0, -signal.SIGTERM, 128 + signal.SIGTERM), text
    assert "Traceback" not in text and "not everything stopped" not in text, text


def test_two_at_once_and_a_port_in_use(tmp_path: Path, port: int) -> None:
    def up(name: str) -> subprocess.Popen[str]:
        return kubern("up", "--data-dir", str(tmp_path / name), "--port", str(port), "--bind", "127.0.0.1", "--runtime", "none", "-d")

    try:
        answers = [said(p) for p in [up("k"), up("k")]]
        assert [code for code, _ in answers] == [0, 0], answers
        assert sum("ready in" in text for _, text in answers) == 1, answers
        code, text = said(up("other"))
        assert code == 1 and f"port {port} is in use" in text and "--port" in text and "Traceback" not in text, text
    finally:
        downs = [said(p) for p in [kubern("down", "--data-dir", str(tmp_path / "k")) for _ in range(2)]]
    assert [code for code, _ in downs] == [0, 0], downs


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for detach in ((), ("-d",)):
        code, text = said(kubern("up", "--data-dir", str(tmp_path / "file"), "--runtime", "none", *detach))
        assert code == 1 and "--data-dir" in text and "Traceback" not in text, text


@pytest.mark.parametrize(("field", "value"), [("roles", "foo"), ("roles", "controllers"), ("store", "foo"), ("runtime", "x")])
def test_settings_that_make_no_sense(field: str, value: str) -> None:
    with pytest.raises(BadSettings, match=f"--{field} must be"):
        config.check(Settings(**{field: value}))


def test_the_roles_have_one_list() -> None:
    assert tuple(r.name for r in cluster.ROLES) == config.ROLES


def test_a_full_disk_is_named() -> None:
    assert "is full" in cluster.explained(OSError(28, os.strerror(28)), Settings(data_dir="/d"))
