"""The cluster as a process on this machine: start it, find it, wait for it, stop it. Not what runs inside: that is cluster.py.

The running process holds a lock on D/kubern.lock, so "is it running" is never guessed from a stale pid. Progress goes from the
background process to the waiting command through a pipe: one line a step, "ready" at the end.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kubern.commands.terminal import say
from kubern.config import Settings

READY_TIMEOUT_S = 180
STOP_TIMEOUT_S = 20
END_WAIT_S = 12.0                      # for a process that gave up starting to be gone


class Running(Exception):
    """Another process runs this cluster; `pid` is its id."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"already running as process {pid}")
        self.pid = pid


def lock(home: Path) -> int:
    """Take the cluster's lock for this process and write our pid into it; returns the descriptor to keep open. Raises Running."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(home / "kubern.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = int(os.read(fd, 32) or b"0")
        os.close(fd)
        raise Running(pid) from None
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def running_pid(home: Path) -> int:
    """The pid of the process that runs this cluster, 0 if none does."""
    try:
        fd = os.open(home / "kubern.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return int(os.read(fd, 32) or b"0")
    else:
        return 0
    finally:
        os.close(fd)


def saved(home: Path) -> dict[str, Any]:
    """The settings the cluster was last started with (D/cluster.json), {} if never."""
    try:
        return json.loads((home / "cluster.json").read_text())
    except (OSError, ValueError):
        return {}


def progress() -> Any:
    """The function that reports a step: to the waiting command when there is one, else to our own output."""
    fd = os.environ.pop("KUBERN_NOTIFY_FD", "")
    if not fd:
        return say
    pipe = os.fdopen(int(fd), "w", buffering=1)
    os.set_inheritable(pipe.fileno(), False)

    def tell(text: str) -> None:
        try:
            pipe.write(text + "\n")
        except (OSError, ValueError):                        # the waiting command has gone; nobody listens any more
            return
        if text == "ready":
            pipe.close()
    return tell


def run_here(s: Settings) -> int:
    """The cluster in this process, under its lock, until it is told to stop."""
    from kubern import cluster

    try:
        held = lock(s.home)
    except Running as e:
        say(f"kubern: {e}")
        return 1
    try:
        return cluster.run(s, progress())
    finally:
        os.close(held)


def start_background(s: Settings) -> int:
    """Start `kubern up` as a process of its own session and wait until it reports ready."""
    s.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    read, write = os.pipe()
    log = open(s.home / "kubern.log", "ab")                  # noqa: SIM115  (the child keeps it)
    before = log.tell()
    os.chmod(s.home / "kubern.log", 0o600)
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "kubern", "_up", s.data_dir], stdin=subprocess.PIPE, stdout=log, stderr=log,
                             start_new_session=True, pass_fds=[write], env={**os.environ, "KUBERN_NOTIFY_FD": str(write)})
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(s)).encode())
    child.stdin.close()
    os.close(write)
    log.close()
    for line in _lines(read, began + READY_TIMEOUT_S):
        if line == "ready":
            say(f"ready in {time.monotonic() - began:.1f} s; kubeconfig: {s.home / 'admin.kubeconfig'}")
            return 0
        say(f"  {time.monotonic() - began:5.1f} s  {line}")
    try:
        code = child.wait(max(0.1, min(END_WAIT_S, began + READY_TIMEOUT_S - time.monotonic())))
    except subprocess.TimeoutExpired:
        code = None
    other = running_pid(s.home)
    if code is not None and other:                            # started by somebody else at the same moment
        say(f"the cluster in {s.data_dir} is already running (process {other})")
        return 0
    say(f"kubern: the cluster {'ended while starting' if code is not None else 'did not become ready in time'}; the end of {s.home / 'kubern.log'}:")
    say(tail(s.home / "kubern.log", 15, before))
    return 1


def _lines(fd: int, deadline: float) -> Iterator[str]:
    """Lines from a pipe until it closes or the time is over."""
    import select

    left = b""
    while (wait := deadline - time.monotonic()) > 0:
        if not select.select([fd], [], [], wait)[0]:
            return
        data = os.read(fd, 65536)
        if not data:
            return
        *whole, left = (left + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


def tail(path: Path, lines: int, start: int = 0) -> str:
    """The last lines of a file, of what comes after `start` bytes; "" if there is none."""
    try:
        with open(path, "rb") as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(min(start, f.tell()), f.tell() - lines * 400))
            return b"\n".join(f.read().splitlines()[-lines:]).decode(errors="replace")
    except OSError:
        return ""


def stop_process(home: Path) -> bool:
    """End the process that runs this cluster; True if there was one."""
    pid = running_pid(home)
    if not pid:
        return False
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_TIMEOUT_S
    while running_pid(home) == pid:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end += STOP_TIMEOUT_S
        time.sleep(0.02)
    return True
