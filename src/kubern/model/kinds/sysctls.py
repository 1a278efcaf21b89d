"""Sysctls of pods: their names, and those that belong to a namespace a pod may share with its node. Upstream: ValidateHostSysctl."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kubern.model.invalid import FieldError, invalid

PATTERN = "([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
is_name = re.compile(PATTERN).fullmatch
_IPC_SYSCTLS = frozenset(f"kernel.{n}" for n in (
    "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced", "shm", "msgmax", "msgmnb", "msgmni", "msg"))


def host_sysctl(name: str, host_network: bool, host_ipc: bool, path: str) -> Iterator[FieldError]:
    """A sysctl of a namespace that the pod shares with its node."""
    dot, slash = name.find("."), name.find("/")
    plain = name
    if slash != -1 and (dot == -1 or slash < dot):             # written with slashes: a.b/c is a/b.c
        plain = name.translate({ord("/"): ".", ord("."): "/"})
    plain = plain.partition("*")[0]
    if plain.startswith("net."):
        if host_network:
            yield invalid(path, name, "may not be specified when 'hostNetwork' is true")
    elif host_ipc and (plain in _IPC_SYSCTLS or plain.startswith("fs.mqueue.")):
        yield invalid(path, name, "may not be specified when 'hostIPC' is true")
