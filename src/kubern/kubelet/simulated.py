"""Simulated runtime: the Runtime protocol in memory, for nodes that run nothing (hollow.py) and for tests of the kubelet.

A container whose command or args hold `exit:N` ends with that code soon after its start; `never-ready` keeps it unready (hollow.py reads
that). Of shell scripts the words in `act` are understood, so that one suite (tests/cri) holds for this runtime and for real ones; what is not
understood runs until it is stopped. Images whose name holds `nosuch` are in no registry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kubern.kubelet import pods
from kubern.kubelet.runtime import (
    CREATED,
    EXITED,
    NOTHING,
    RUNNING,
    Config,
    Container,
    ExecResult,
    Image,
    MountPoint,
    Observed,
    RuntimeFailure,
    Sandbox,
    Usage,
    observed,
)

EXIT_AFTER_S = 0.1


def behaviour(container: Mapping[str, Any]) -> tuple[int | None, bool]:
    """(exit code it ends with or None, becomes ready)."""
    code, ready = None, True
    for item in (*(container.get("command") or ()), *(container.get("args") or ())):
        if item.startswith("exit:") and item[5:].isdigit():
            code = int(item[5:])
        elif item == "never-ready":
            ready = False
    return code, ready


def act(argv: Sequence[str]) -> tuple[bytes, float, int | None]:
    """(output, seconds, exit code or None for "never ends") of a command: echo, sleep, true, false, exit, and `sh -c` of those."""
    words = list(argv)
    if words[:2] == ["sh", "-c"] and len(words) > 2:
        output, seconds = b"", 0.0
        code: int | None = 0
        for part in words[2].replace("&&", ";").split(";"):
            more, took, code = act(part.split())
            output, seconds = output + more, seconds + took
            if code is None or part.split()[:1] == ["exit"]:
                break
        return output, seconds, code
    match words:
        case []:
            return b"", 0.0, 0
        case ["echo", *text]:
            return " ".join(text).encode() + b"\n", 0.0, 0
        case ["sleep", n] if n.replace(".", "", 1).isdigit():
            return b"", float(n), 0
        case ["exit", n] if n.isdigit():
            return b"", 0.0, int(n)
        case ["true"] | ["false"]:
            return b"", 0.0, int(words[0] == "false")
    return b"", 0.0, None


def _limits(resources: Mapping[str, Any]) -> dict[str, int]:
    """LinuxContainerResources as a Container tells of them."""
    names = {"cpu_shares": "cpu_shares", "cpu_quota": "cpu_quota", "cpu_period": "cpu_period", "memory_limit_in_bytes": "memory_limit"}
    return {ours: int(resources[theirs]) for theirs, ours in names.items() if resources.get(theirs) is not None}


class SimulatedRuntime:
    """Runtime in memory. The plain methods act at once and cost microseconds; the async ones are the Runtime protocol over them."""

    name = "simulated"

    def __init__(self, clock: Callable[[], float] = time.time, address: Callable[[str], str] | None = None) -> None:
        self.clock = clock
        self.by_pod: dict[str, Observed] = {}          # pod uid -> what it has
        self.where: dict[str, str] = {}                # sandbox or container id -> pod uid
        self.exits: dict[str, int] = {}                # container id -> code it will end with
        self._address = address or self._next_address
        self._count = 0
        self.taken: set[str] = set()                   # addresses of pods that were there before this process
        self._changes: list[asyncio.Queue[str]] = []
        self._images: dict[str, Image] = {}
        self._scripts: dict[str, list[str]] = {}       # container id -> what it runs

    def _next_address(self, _uid: str) -> str:
        while True:
            n = self._count
            address = f"10.{128 + (n >> 16) % 64}.{n >> 8 & 255}.{n & 255}"
            if address not in self.taken:
                return address
            self._count += 1

    def _id(self) -> str:
        self._count += 1
        return f"{self._count:064x}"

    def _told(self, id_: str) -> None:
        for q in self._changes:
            q.put_nowait(id_)

    def seen(self, uid: str) -> Observed:
        return self.by_pod.get(uid, NOTHING)

    def add_sandbox(self, uid: str, namespace: str, name: str, attempt: int, host_network: bool) -> str:
        id_ = self._id()
        seen = self.seen(uid)
        ips = () if host_network else (self._address(uid),)
        one = Sandbox(id_, name, namespace, uid, attempt, True, int(self.clock() * 1e9), ips, host_network, True)
        self.by_pod[uid] = replace(seen, sandboxes=(one, *seen.sandboxes[:1]))
        self.where[id_] = uid
        return id_

    def add_container(self, uid: str, spec: Mapping[str, Any], attempt: int, running: bool = True) -> str:
        seen = self.seen(uid)
        if not seen.sandboxes:
            raise RuntimeFailure("NOT_FOUND", "no sandbox")
        id_ = self._id()
        now = int(self.clock() * 1e9)
        code, _ = behaviour(spec)
        if code is not None:
            self.exits[id_] = code
        image = spec.get("image", "")
        one = Container(id_, spec["name"], uid, seen.sandboxes[0].id, attempt, RUNNING if running else CREATED, now, now if running else 0,
                        image=image, image_id=f"simulated://{image}", hash=pods.container_hash(spec), restart_count=attempt)
        kept, same = [], 0
        for c in seen.containers:
            same += c.name == one.name
            if c.name != one.name or same <= 1:
                kept.append(c)
            else:
                self.where.pop(c.id, None)
        self.by_pod[uid] = replace(seen, containers=(one, *kept))
        self.where[id_] = uid
        self._told(id_)
        return id_

    def end_container(self, id_: str, code: int, reason: str = "") -> None:
        uid = self.where.get(id_)
        if uid is None:
            return
        seen = self.by_pod[uid]
        now = int(self.clock() * 1e9)
        self.by_pod[uid] = replace(seen, containers=tuple(
            replace(c, state=EXITED, finished_ns=now, exit_code=code, reason=reason or ("Completed" if code == 0 else "Error"))
            if c.id == id_ and c.state != EXITED else c for c in seen.containers))
        self.exits.pop(id_, None)
        self._told(id_)

    def drop_container(self, id_: str) -> None:
        uid = self.where.pop(id_, None)
        self.exits.pop(id_, None)
        self._scripts.pop(id_, None)
        if uid is not None and uid in self.by_pod:
            seen = self.by_pod[uid]
            self.by_pod[uid] = replace(seen, containers=tuple(c for c in seen.containers if c.id != id_))

    def stop_all(self, uid: str, code: int) -> None:
        seen = self.seen(uid)
        for c in seen.containers:
            if c.state != EXITED:
                self.end_container(c.id, code)
        seen = self.seen(uid)
        if seen.sandboxes:
            self.by_pod[uid] = replace(seen, sandboxes=tuple(replace(s, ready=False) for s in seen.sandboxes))

    def forget(self, uid: str) -> None:
        seen = self.by_pod.pop(uid, None)
        if seen is not None:
            self.taken.difference_update(ip for s in seen.sandboxes for ip in s.ips)
            for id_ in (*(s.id for s in seen.sandboxes), *(c.id for c in seen.containers)):
                self.where.pop(id_, None)
                self.exits.pop(id_, None)

    # --- the Runtime protocol ---

    async def version(self) -> tuple[str, str]:
        return "simulated", "1"

    async def conditions(self) -> dict[str, tuple[bool, str, str]]:
        return {"RuntimeReady": (True, "", ""), "NetworkReady": (True, "", "")}

    async def sandboxes(self, uid: str = "") -> list[Sandbox]:
        return [s for u, seen in self.by_pod.items() if uid in ("", u) for s in seen.sandboxes]

    async def containers(self, uid: str = "") -> list[Container]:
        return [c for u, seen in self.by_pod.items() if uid in ("", u) for c in seen.containers]

    def _find(self, id_: str) -> tuple[str, Observed]:
        uid = self.where.get(id_)
        if uid is None or uid not in self.by_pod:
            raise RuntimeFailure("NOT_FOUND", f"{id_} not found")
        return uid, self.by_pod[uid]

    async def sandbox(self, id: str) -> Sandbox:
        found = next((s for s in self._find(id)[1].sandboxes if s.id == id), None)
        if found is None:
            raise RuntimeFailure("NOT_FOUND", f"sandbox {id} not found")
        return found

    async def container(self, id: str) -> Container:
        found = next((c for c in self._find(id)[1].containers if c.id == id), None)
        if found is None:
            raise RuntimeFailure("NOT_FOUND", f"container {id} not found")
        return found

    async def network_namespace(self, id: str) -> str:
        return ""

    async def run_sandbox(self, config: Config, handler: str = "") -> str:
        m = config["metadata"]
        for s in self.seen(m["uid"]).sandboxes:
            if (s.name, s.namespace, s.attempt) == (m["name"], m["namespace"], m.get("attempt", 0)):
                raise RuntimeFailure("UNKNOWN", f"failed to reserve sandbox name: name is reserved for {s.id!r}")
        return self.add_sandbox(m["uid"], m["namespace"], m["name"], m.get("attempt", 0), config.get("hostname") is None)

    async def stop_sandbox(self, id: str) -> None:
        uid = self.where.get(id)
        if uid is not None:
            self.stop_all(uid, 143)

    async def remove_sandbox(self, id: str) -> None:
        uid = self.where.pop(id, None)
        if uid is not None:
            seen = self.by_pod[uid]
            for c in seen.containers:
                if c.sandbox_id == id:
                    self.drop_container(c.id)
            left = observed([s for s in seen.sandboxes if s.id != id], [c for c in seen.containers if c.sandbox_id != id])
            self.by_pod[uid] = left
            if not left.sandboxes and not left.containers:
                self.forget(uid)

    async def create(self, sandbox_id: str, config: Config, sandbox_config: Config) -> str:
        uid, seen = self._find(sandbox_id)
        if not any(s.id == sandbox_id for s in seen.sandboxes):
            raise RuntimeFailure("NOT_FOUND", f"sandbox {sandbox_id} not found")
        name, attempt = config["metadata"]["name"], config["metadata"].get("attempt", 0)
        for c in seen.containers:
            if (c.name, c.attempt, c.sandbox_id) == (name, attempt, sandbox_id):
                raise RuntimeFailure("UNKNOWN", f"failed to reserve container name: name is reserved for {c.id!r}")
        spec = {"name": name, "image": config["image"].get("user_specified_image") or config["image"]["image"],
                "command": config.get("command"), "args": config.get("args")}
        id_ = self.add_container(uid, spec, attempt, running=False)
        notes = config.get("annotations") or {}
        limits = (config.get("linux") or {}).get("resources")
        if "io.kubernetes.container.hash" in notes:
            self._change(id_, hash=notes["io.kubernetes.container.hash"])
        path = f"{sandbox_config.get('log_directory', '')}/{config['log_path']}" if config.get("log_path") else ""
        self._change(id_, resources=_limits(limits) if limits else None, log_path=path)
        self._scripts[id_] = [*(config.get("command") or ()), *(config.get("args") or ())]
        return id_

    def _change(self, id_: str, **fields: Any) -> None:
        uid, seen = self._find(id_)
        self.by_pod[uid] = replace(seen, containers=tuple(replace(c, **fields) if c.id == id_ else c for c in seen.containers))

    async def start(self, id: str) -> None:
        if (await self.container(id)).state != CREATED:
            raise RuntimeFailure("UNKNOWN", f"container {id} is not created but in another state")
        self._change(id, state=RUNNING, started_ns=int(self.clock() * 1e9))
        self._told(id)
        _, seconds, code = act(self._scripts.get(id) or ())
        if id in self.exits:
            asyncio.get_running_loop().call_later(EXIT_AFTER_S, self.end_container, id, self.exits[id])
        elif self._scripts.get(id) and code is not None:
            asyncio.get_running_loop().call_later(EXIT_AFTER_S + seconds, self.end_container, id, code)

    async def stop(self, id: str, timeout_s: int) -> None:
        self.end_container(id, 143)

    async def remove(self, id: str) -> None:
        self.drop_container(id)

    async def update(self, id: str, resources: Config) -> None:
        now = (await self.container(id)).resources or {}
        self._change(id, resources={**now, **_limits(resources)})

    async def exec_sync(self, id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        if (await self.container(id)).state != RUNNING:
            raise RuntimeFailure("UNKNOWN", f"container {id} is not running")
        output, seconds, code = act(command)
        if timeout_s and seconds > timeout_s:
            await asyncio.sleep(timeout_s)
            raise RuntimeFailure("DEADLINE_EXCEEDED", f"failed to exec in container: timeout {timeout_s:g}s exceeded")
        await asyncio.sleep(seconds)
        return ExecResult(output, b"", code or 0)

    async def exec_url(self, id: str, command: Sequence[str], tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        raise RuntimeFailure("UNIMPLEMENTED", "simulated containers run nothing")

    async def attach_url(self, id: str, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        raise RuntimeFailure("UNIMPLEMENTED", "simulated containers run nothing")

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int] = ()) -> str:
        raise RuntimeFailure("UNIMPLEMENTED", "simulated containers run nothing")

    async def checkpoint(self, id: str, path: str, timeout_s: int) -> None:
        raise RuntimeFailure("UNIMPLEMENTED", "method CheckpointContainer not implemented")

    async def reopen_log(self, id: str) -> None:
        return None

    async def usage(self) -> list[Usage]:
        return []

    async def image(self, ref: str) -> Image | None:
        return self._images.get(ref) or next((i for i in self._images.values() if i.id == ref), None)

    async def images(self) -> list[Image]:
        return list(self._images.values())

    async def pull(self, ref: str, auth: Mapping[str, str] | None, sandbox_config: Config | None) -> str:
        if "nosuch" in ref:
            raise RuntimeFailure("NOT_FOUND", f'failed to pull and unpack image "{ref}": not found')
        self._images[ref] = Image(f"simulated://{ref}", (ref,), size=1)
        return f"simulated://{ref}"

    async def remove_image(self, ref: str) -> None:
        image = await self.image(ref)
        if image is not None:
            self._images = {k: i for k, i in self._images.items() if i.id != image.id}

    async def image_mounts(self, ref: str, key: str) -> list[MountPoint] | None:
        return None

    async def release(self, key: str) -> None:
        return None

    async def image_fs(self) -> tuple[str, int, int]:
        return "/", 0, 0

    async def events(self) -> AsyncIterator[str]:
        q: asyncio.Queue[str] = asyncio.Queue()
        self._changes.append(q)
        try:
            while True:
                yield await q.get()
        finally:
            self._changes.remove(q)

    async def close(self) -> None:
        return None
