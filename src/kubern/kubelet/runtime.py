"""Runtime: what a kubelet asks of whatever runs containers. cri.py speaks CRI v1 to containerd or CRI-O, simulated.py runs nothing.

Configurations are dicts with the field names of the CRI messages (PodSandboxConfig, ContainerConfig); what comes back are the
frozen views below, times in nanoseconds since 1970. Not decisions: those are plan.py and status.py.
Upstream: cri-api pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

CREATED, RUNNING, EXITED, UNKNOWN = "created", "running", "exited", "unknown"

Config = dict[str, Any]


class RuntimeFailure(Exception):
    """A call the runtime refused. `code` is the gRPC code's name, `message` the runtime's own words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"rpc error: code = {_go_code(code)} desc = {message}")
        self.code, self.message = code, message


def _go_code(code: str) -> str:
    """NOT_FOUND -> NotFound, as Go prints codes."""
    return "".join(w.capitalize() for w in code.split("_"))


@dataclass(frozen=True, slots=True)
class Sandbox:
    id: str
    name: str
    namespace: str
    uid: str
    attempt: int
    ready: bool
    created_ns: int
    ips: tuple[str, ...] = ()
    host_network: bool = False
    network_known: bool = False       # the runtime said something about the network (ips may still be empty)


@dataclass(frozen=True, slots=True)
class Container:
    id: str
    name: str
    uid: str                          # of the pod
    sandbox_id: str
    attempt: int
    state: str                        # CREATED | RUNNING | EXITED | UNKNOWN
    created_ns: int = 0
    started_ns: int = 0
    finished_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    image: str = ""
    image_id: str = ""
    hash: str = ""
    restart_count: int = 0
    log_path: str = ""
    resources: Mapping[str, int] | None = None   # cpu_shares, cpu_quota, cpu_period, memory_limit as the runtime has them
    user: Mapping[str, Any] | None = None        # uid, gid, groups
    termination_file: str = ""                   # where its termination message lies on the node
    termination_policy: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """All the runtime knows of one pod, newest first."""

    sandboxes: tuple[Sandbox, ...] = ()
    containers: tuple[Container, ...] = ()

    def latest(self, name: str) -> Container | None:
        for c in self.containers:
            if c.name == name:
                return c
        return None

    def all_of(self, name: str) -> list[Container]:
        return [c for c in self.containers if c.name == name]

    @property
    def ips(self) -> tuple[str, ...]:
        """Of the newest sandbox while it is ready."""
        return self.sandboxes[0].ips if self.sandboxes and self.sandboxes[0].ready else ()

    @property
    def running(self) -> bool:
        return any(c.state == RUNNING for c in self.containers) or any(s.ready for s in self.sandboxes)


NOTHING = Observed()


def observed(sandboxes: Sequence[Sandbox], containers: Sequence[Container]) -> Observed:
    return Observed(tuple(sorted(sandboxes, key=lambda s: -s.created_ns)), tuple(sorted(containers, key=lambda c: -c.created_ns)))


@dataclass(frozen=True, slots=True)
class Image:
    id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    uid: int | None = None            # the user the image runs as, where it is a number
    username: str = ""
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """One container's (or sandbox's) consumption at a moment."""

    id: str
    time_ns: int
    cpu_ns: int = 0
    working_set: int = 0
    rss: int = 0
    usage: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    fs_used: int = 0
    fs_inodes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    started_ns: int = 0


@dataclass(frozen=True, slots=True)
class MountPoint:
    """What mount(2) is called with."""

    kind: str
    source: str
    flags: int = 0
    data: str = ""


@dataclass(frozen=True, slots=True)
class ExecResult:
    stdout: bytes
    stderr: bytes
    exit_code: int


class Runtime(Protocol):
    name: str                          # "containerd": the scheme of container ids

    async def version(self) -> tuple[str, str]:
        """(runtime name, version)."""
        ...

    async def conditions(self) -> dict[str, tuple[bool, str, str]]:
        """RuntimeReady and NetworkReady: (status, reason, message)."""
        ...

    async def sandboxes(self, uid: str = "") -> list[Sandbox]:
        """Those of a pod, or all; without ips."""
        ...

    async def containers(self, uid: str = "") -> list[Container]:
        """Those of a pod, or all; with id, name, uid, sandbox, attempt and state only."""
        ...

    async def sandbox(self, id: str) -> Sandbox: ...

    async def container(self, id: str) -> Container: ...

    async def network_namespace(self, id: str) -> str:
        """Path of a sandbox's network namespace, "" when it is the node's."""
        ...

    async def run_sandbox(self, config: Config, handler: str = "") -> str: ...

    async def stop_sandbox(self, id: str) -> None: ...

    async def remove_sandbox(self, id: str) -> None: ...

    async def create(self, sandbox_id: str, config: Config, sandbox_config: Config) -> str: ...

    async def start(self, id: str) -> None: ...

    async def stop(self, id: str, timeout_s: int) -> None: ...

    async def remove(self, id: str) -> None: ...

    async def update(self, id: str, resources: Config) -> None: ...

    async def exec_sync(self, id: str, command: Sequence[str], timeout_s: float) -> ExecResult: ...

    async def exec_url(self, id: str, command: Sequence[str], tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str: ...

    async def attach_url(self, id: str, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str: ...

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int] = ()) -> str: ...

    async def reopen_log(self, id: str) -> None: ...

    async def checkpoint(self, id: str, path: str, timeout_s: int) -> None:
        """Writes a running container's state to an archive; UNIMPLEMENTED where the runtime cannot."""
        ...

    async def usage(self) -> list[Usage]: ...

    async def image(self, ref: str) -> Image | None: ...

    async def images(self) -> list[Image]: ...

    async def pull(self, ref: str, auth: Mapping[str, str] | None, sandbox_config: Config | None) -> str: ...

    async def remove_image(self, ref: str) -> None: ...

    async def image_mounts(self, ref: str, key: str) -> list[MountPoint] | None:
        """Mounts that show the files of an image until release(key); None when the runtime mounts images itself (CRI Mount.image)."""
        ...

    async def release(self, key: str) -> None: ...

    async def image_fs(self) -> tuple[str, int, int]:
        """(mount point, bytes used, inodes used)."""
        ...

    def events(self) -> AsyncIterator[str]:
        """Ids of containers something happened to; ends when the runtime cannot tell."""
        ...

    async def close(self) -> None: ...
