"""CRI v1 over grpc.aio: the Runtime of containerd, CRI-O or any other runtime with a socket.

Message classes come from cri.bin, a FileDescriptorSet made at build time, so no generated code pins a protobuf release. Where a
runtime does not know a call (containerd 1.6 lacks several) the caller gets RuntimeFailure UNIMPLEMENTED or a fallback named in the
docstring. Events: containerd's own event stream, the one thing here that is not CRI. Upstream: cri-api pkg/apis/runtime/v1/api.proto.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

# nothing here forks with gRPC in use; its fork handlers only slow down and chatter when something else starts a process
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import grpc.aio

from kubern.kubelet import snapshots
from kubern.kubelet.measure import Histogram
from kubern.kubelet.runtime import (
    CREATED,
    EXITED,
    RUNNING,
    UNKNOWN,
    Config,
    Container,
    ExecResult,
    Image,
    MountPoint,
    RuntimeFailure,
    Sandbox,
    Usage,
)

_OPERATION = re.compile(r"(?<!^)(?=[A-Z])")              # RunPodSandbox -> run_pod_sandbox
STATES = (CREATED, RUNNING, EXITED, UNKNOWN)
MESSAGE_BYTES_MAX = 16 << 20
CALL_TIMEOUT_S = 120.0
PULL_TIMEOUT_S = 600.0
STOP_EXTRA_S = 30.0
NODE_NETWORK = 2

POD_UID = "io.kubernetes.pod.uid"
TERMINATION_PATH, TERMINATION_POLICY = "io.kubernetes.container.terminationMessagePath", "io.kubernetes.container.terminationMessagePolicy"
HASH, RESTARTS = "io.kubernetes.container.hash", "io.kubernetes.container.restartCount"


@cache
def message(name: str) -> Any:
    """The class of a runtime.v1 message."""
    return _classes()[f"runtime.v1.{name}"]


@cache
def _classes() -> Mapping[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    files = descriptor_pb2.FileDescriptorSet.FromString(resources.files("kubern.kubelet").joinpath("cri.bin").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    names: list[str] = []
    for f in files.file:
        for m in f.message_type:
            if m.name == "KeyValue":        # environment values are bytes in newer releases of the protocol; on the wire it is the same
                next(x for x in m.field if x.name == "value").type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
        pool.Add(f)
        names += [f"{f.package}.{m.name}" for m in f.message_type]
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(n)) for n in names}


class Cri:
    """The Runtime protocol over one CRI socket. `name` is the scheme of container ids, known after `version()`."""

    def __init__(self, socket: str) -> None:
        self.name = "containerd"
        self._channel = grpc.aio.insecure_channel(socket if "://" in socket else f"unix://{socket}", options=[
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX), ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2000)])
        self._methods: dict[str, Any] = {}
        self.mounts_images = False                       # whether CRI mounts may name images, known after `version()`
        self.operations: Histogram | None = None         # measures every call, where somebody wants to know

    async def _call(self, method: str, timeout_s: float = CALL_TIMEOUT_S, service: str = "RuntimeService", **fields: Any) -> Any:
        stub = self._methods.get(method)
        if stub is None:
            stub = self._methods[method] = self._channel.unary_unary(
                f"/runtime.v1.{service}/{method}",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=message(f"{method}Response").FromString)
        try:
            request = message(f"{method}Request")(**fields)
        except (TypeError, ValueError) as e:             # a value the protocol cannot carry, such as text that is not UTF-8
            raise RuntimeFailure("INTERNAL", f"grpc: error while marshaling: {e}") from None
        began = time.perf_counter()
        failed = False
        try:
            return await stub(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as e:
            failed = True
            raise RuntimeFailure(e.code().name, e.details() or "") from None
        finally:
            if self.operations is not None:
                self.operations.observe(time.perf_counter() - began, _OPERATION.sub("_", method).lower(), failed)

    async def _image_call(self, method: str, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> Any:
        return await self._call(method, timeout_s, "ImageService", **fields)

    async def version(self) -> tuple[str, str]:
        v = await self._call("Version")
        self.name = v.runtime_name
        self.mounts_images = v.runtime_name != "containerd" or _version(v.runtime_version) >= (2, 1)
        return v.runtime_name, v.runtime_version

    async def conditions(self) -> dict[str, tuple[bool, str, str]]:
        return {c.type: (c.status, c.reason, c.message) for c in (await self._call("Status", 10.0)).status.conditions}

    # --- sandboxes ---

    async def sandboxes(self, uid: str = "") -> list[Sandbox]:
        only: dict[str, Any] = {"filter": {"label_selector": {POD_UID: uid}}} if uid else {}
        return [Sandbox(s.id, s.metadata.name, s.metadata.namespace, s.metadata.uid, s.metadata.attempt, s.state == 0, s.created_at)
                for s in (await self._call("ListPodSandbox", **only)).items]

    async def sandbox(self, id: str) -> Sandbox:
        s = (await self._call("PodSandboxStatus", pod_sandbox_id=id)).status
        host = s.linux.namespaces.options.network == NODE_NETWORK
        ips = () if host or not s.network.ip else (s.network.ip, *(a.ip for a in s.network.additional_ips))
        return Sandbox(s.id, s.metadata.name, s.metadata.namespace, s.metadata.uid, s.metadata.attempt, s.state == 0, s.created_at,
                       ips, host, s.HasField("network"))

    async def network_namespace(self, id: str) -> str:
        import orjson

        info = (await self._call("PodSandboxStatus", pod_sandbox_id=id, verbose=True)).info
        spec = (orjson.loads(info["info"]) if "info" in info else {}).get("runtimeSpec") or {}
        for ns in (spec.get("linux") or {}).get("namespaces") or ():
            if ns.get("type") == "network":
                return ns.get("path") or ""
        return ""

    async def run_sandbox(self, config: Config, handler: str = "") -> str:
        return (await self._call("RunPodSandbox", 240.0, config=config, runtime_handler=handler)).pod_sandbox_id

    async def stop_sandbox(self, id: str) -> None:
        """A sandbox that is not there is stopped."""
        try:
            await self._call("StopPodSandbox", pod_sandbox_id=id)
        except RuntimeFailure as e:
            if e.code != "NOT_FOUND":
                raise

    async def remove_sandbox(self, id: str) -> None:
        await self._call("RemovePodSandbox", pod_sandbox_id=id)

    # --- containers ---

    async def containers(self, uid: str = "") -> list[Container]:
        only: dict[str, Any] = {"filter": {"label_selector": {POD_UID: uid}}} if uid else {}
        return [Container(c.id, c.metadata.name, c.labels.get(POD_UID, ""), c.pod_sandbox_id, c.metadata.attempt, STATES[c.state],
                          c.created_at)
                for c in (await self._call("ListContainers", **only)).containers]

    async def container(self, id: str) -> Container:
        s = (await self._call("ContainerStatus", container_id=id)).status
        linux = s.resources.linux if s.HasField("resources") and s.resources.HasField("linux") else None
        limits = None if linux is None else {"cpu_shares": linux.cpu_shares, "cpu_quota": linux.cpu_quota, "cpu_period": linux.cpu_period,
                                             "memory_limit": linux.memory_limit_in_bytes}
        user = None
        if s.HasField("user") and s.user.HasField("linux"):
            user = {"uid": s.user.linux.uid, "gid": s.user.linux.gid, "supplementalGroups": list(s.user.linux.supplemental_groups)}
        try:
            restarts = int(s.annotations.get(RESTARTS, ""))
        except ValueError:
            restarts = s.metadata.attempt
        path = s.annotations.get(TERMINATION_PATH, "")
        file = next((m.host_path for m in s.mounts if path and m.container_path == path), "")
        return Container(
            s.id, s.metadata.name, s.labels.get(POD_UID, ""), "", s.metadata.attempt, STATES[s.state],
            s.created_at, s.started_at, s.finished_at, s.exit_code, s.reason, s.message, s.image.user_specified_image or s.image.image,
            s.image_ref, s.annotations.get(HASH, ""), restarts, s.log_path, limits, user,
            file, s.annotations.get(TERMINATION_POLICY, ""))

    async def create(self, sandbox_id: str, config: Config, sandbox_config: Config) -> str:
        return (await self._call("CreateContainer", pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox_config)).container_id

    async def start(self, id: str) -> None:
        await self._call("StartContainer", container_id=id)

    async def stop(self, id: str, timeout_s: int) -> None:
        try:
            await self._call("StopContainer", timeout_s + STOP_EXTRA_S, container_id=id, timeout=timeout_s)
        except RuntimeFailure as e:
            if e.code != "NOT_FOUND":
                raise

    async def remove(self, id: str) -> None:
        await self._call("RemoveContainer", container_id=id)

    async def update(self, id: str, resources: Config) -> None:
        await self._call("UpdateContainerResources", container_id=id, linux=resources)

    async def reopen_log(self, id: str) -> None:
        await self._call("ReopenContainerLog", container_id=id)

    async def checkpoint(self, id: str, path: str, timeout_s: int) -> None:
        await self._call("CheckpointContainer", timeout_s + 10.0 if timeout_s else CALL_TIMEOUT_S, container_id=id, location=path, timeout=timeout_s)

    # --- exec ---

    async def exec_sync(self, id: str, command: Sequence[str], timeout_s: float) -> ExecResult:
        """Raises RuntimeFailure DEADLINE_EXCEEDED when the command takes longer (0 = for ever)."""
        r = await self._call("ExecSync", timeout_s + 10 if timeout_s else 86400.0, container_id=id, cmd=list(command),
                             timeout=int(timeout_s))
        return ExecResult(r.stdout, r.stderr, r.exit_code)

    async def exec_url(self, id: str, command: Sequence[str], tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        return (await self._call("Exec", container_id=id, cmd=list(command), tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)).url

    async def attach_url(self, id: str, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        return (await self._call("Attach", container_id=id, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)).url

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int] = ()) -> str:
        return (await self._call("PortForward", pod_sandbox_id=sandbox_id, port=list(ports))).url

    # --- figures ---

    async def usage(self) -> list[Usage]:
        return [Usage(s.attributes.id, s.cpu.timestamp, s.cpu.usage_core_nano_seconds.value, s.memory.working_set_bytes.value,
                      s.memory.rss_bytes.value, s.memory.usage_bytes.value, s.memory.page_faults.value, s.memory.major_page_faults.value,
                      s.writable_layer.used_bytes.value, s.writable_layer.inodes_used.value, dict(s.attributes.labels))
                for s in (await self._call("ListContainerStats")).stats]

    # --- images ---

    async def image(self, ref: str) -> Image | None:
        r = await self._image_call("ImageStatus", image={"image": ref})
        return _image(r.image) if r.HasField("image") else None

    async def images(self) -> list[Image]:
        return [_image(i) for i in (await self._image_call("ListImages")).images]

    async def pull(self, ref: str, auth: Mapping[str, str] | None, sandbox_config: Config | None) -> str:
        fields: dict[str, Any] = {"image": {"image": ref}}
        if auth:
            fields["auth"] = dict(auth)
        if sandbox_config:
            fields["sandbox_config"] = sandbox_config
        return (await self._image_call("PullImage", PULL_TIMEOUT_S, **fields)).image_ref

    async def remove_image(self, ref: str) -> None:
        await self._image_call("RemoveImage", image={"image": ref})

    async def image_mounts(self, ref: str, key: str) -> list[MountPoint] | None:
        if self.mounts_images:
            return None
        import orjson

        info = (await self._image_call("ImageStatus", image={"image": ref}, verbose=True)).info.get("info") or "{}"
        chain = orjson.loads(info).get("chainID")
        if not chain:
            raise RuntimeFailure("NOT_FOUND", f"no such image: {ref}")
        try:
            return await snapshots.view(self._channel, key, chain)
        except grpc.aio.AioRpcError as e:
            raise RuntimeFailure(e.code().name, e.details() or "") from None

    async def release(self, key: str) -> None:
        if not self.mounts_images:
            try:
                await snapshots.remove(self._channel, key)
            except grpc.aio.AioRpcError as e:
                raise RuntimeFailure(e.code().name, e.details() or "") from None

    async def image_fs(self) -> tuple[str, int, int]:
        found = (await self._image_call("ImageFsInfo")).image_filesystems
        if not found:
            return "/", 0, 0
        return found[0].fs_id.mountpoint, found[0].used_bytes.value, found[0].inodes_used.value

    # --- events ---

    async def events(self) -> AsyncIterator[str]:
        """Container (or sandbox) ids as containerd tells of starts, ends and out-of-memory kills. Ends where the service is unknown."""
        subscribe = self._channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")
        try:
            async for envelope in subscribe(b"", wait_for_ready=True):
                id_ = _event_container(envelope)
                if id_:
                    yield id_
        except grpc.aio.AioRpcError:
            return

    async def close(self) -> None:
        await self._channel.close()


def _version(text: str) -> tuple[int, ...]:
    """(1, 6) of "v1.6.20~ds1"."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else ()


def _image(i: Any) -> Image:
    return Image(i.id, tuple(i.repo_tags), tuple(i.repo_digests), i.size, i.uid.value if i.HasField("uid") else None, i.username, i.pinned)


# --- just enough protobuf to read containerd's event envelope: {1 timestamp, 2 namespace, 3 topic, 4 Any{1 type_url, 2 value}} ---

def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        b = data[at]
        at += 1
        value |= (b & 0x7F) << shift
        if b < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> dict[int, bytes]:
    """The length-delimited fields of a message, the first of each number."""
    out: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 2:
            n, at = _varint(data, at)
            out.setdefault(tag >> 3, data[at:at + n])
            at += n
        elif wire == 0:
            _, at = _varint(data, at)
        elif wire == 5:
            at += 4
        elif wire == 1:
            at += 8
        else:
            return out
    return out


def _event_container(envelope: bytes) -> str:
    """The container a task event is of, "" for other events."""
    try:
        e = _fields(envelope)
        if e.get(3, b"").decode() not in ("/tasks/start", "/tasks/exit", "/tasks/oom", "/tasks/delete"):
            return ""
        task = _fields(_fields(e.get(4, b"")).get(2, b""))
        if task.get(2, task.get(1)) != task.get(1) and e[3] == b"/tasks/exit":
            return ""                                     # a command that ran in the container
        return task.get(1, b"").decode()
    except (IndexError, UnicodeDecodeError):
        return ""
