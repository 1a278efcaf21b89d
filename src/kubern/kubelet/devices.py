"""Device plugins: processes that offer devices of an extended resource (vendor.com/name) and say what a container with one of them gets.

In: registrations at ROOT/device-plugins/kubelet.sock (or in plugins_registry), each plugin's stream of devices and their health. Out: capacity
for the node's status, devices for pods at admission, and what they add to containers. Which pod has which device is written down
(kubelet_internal_checkpoint). Specs: deviceplugin v1beta1; upstream pkg/kubelet/cm/devicemanager.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import orjson

from kubern.kubelet import pods, proto
from kubern.kubelet.cpus import whole_pod
from kubern.kubelet.measure import Measures
from kubern.kubelet.numa import Hint, Hints, Nodes, masks, preferring
from kubern.kubelet.record import write_whole
from kubern.model import quantity
from kubern.model.object import Object

log = logging.getLogger(__name__)

VERSION, HEALTHY = "v1beta1", "Healthy"
CHECKPOINT = "kubelet_internal_checkpoint"
STOP_GRACE_S = 300.0                    # a plugin may be away so long before its resource disappears from the node
PRE_START_TIMEOUT_S = 30.0

MESSAGES: proto.Messages = {
    "Empty": (), "Options": (("pre_start_required", 1, "bool"), ("get_preferred_allocation_available", 2, "bool")),
    "RegisterRequest": (("version", 1, "string"), ("endpoint", 2, "string"), ("resource_name", 3, "string"), ("options", 4, "Options")),
    "NumaNode": (("ID", 1, "int64"),), "Topology": (("nodes", 1, "NumaNode*"),),
    "Device": (("ID", 1, "string"), ("health", 2, "string"), ("topology", 3, "Topology")), "DeviceList": (("devices", 1, "Device*"),),
    "PreStartRequest": (("devices_ids", 1, "string*"),),
    "Preference": (("available_deviceIDs", 1, "string*"), ("must_include_deviceIDs", 2, "string*"), ("allocation_size", 3, "int32")),
    "PreferenceRequest": (("container_requests", 1, "Preference*"),),
    "Preferred": (("deviceIDs", 1, "string*"),), "PreferenceResponse": (("container_responses", 1, "Preferred*"),),
    "ContainerRequest": (("devices_ids", 1, "string*"),), "AllocateRequest": (("container_requests", 1, "ContainerRequest*"),),
    "Mount": (("container_path", 1, "string"), ("host_path", 2, "string"), ("read_only", 3, "bool")),
    "Spec": (("container_path", 1, "string"), ("host_path", 2, "string"), ("permissions", 3, "string")), "Cdi": (("name", 1, "string"),),
    "ContainerResponse": (("envs", 1, "map"), ("mounts", 2, "Mount*"), ("devices", 3, "Spec*"), ("annotations", 4, "map"), ("cdi_devices", 5, "Cdi*")),
    "AllocateResponse": (("container_responses", 1, "ContainerResponse*"),),
}


class NoDevices(Exception):
    """A pod cannot have the devices it asks for."""


@cache
def classes() -> proto.Classes:
    return proto.define("kubern.deviceplugin", MESSAGES)


@dataclass(slots=True)
class Plugin:
    """One resource. `health` by device id; `stopped_s`: since when its plugin is away (0 = it is here)."""

    socket: str = ""
    pre_start: bool = False
    preferring: bool = False
    health: dict[str, bool] = field(default_factory=dict)
    numa: dict[str, list[int]] = field(default_factory=dict)
    stopped_s: float = 0.0
    task: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Devices of one resource that one container has; `response` is the plugin's ContainerResponse as bytes."""

    ids: tuple[str, ...]
    response: bytes


@dataclass(frozen=True, slots=True)
class Additions:
    """What devices add to a container."""

    envs: Mapping[str, str]
    mounts: list[dict[str, Any]]
    devices: list[dict[str, Any]]
    annotations: Mapping[str, str]
    cdi: list[str]


class Devices:
    """The device plugins of this node. A Keeper of plugins.py."""

    def __init__(self, root: str, clock: Callable[[], float], changed: Callable[[], None] = lambda: None, measures: Measures | None = None) -> None:
        self.measures = measures or Measures()
        self.folder, self.clock, self.changed = f"{root}/device-plugins", clock, changed
        self.plugins: dict[str, Plugin] = {}
        self.grants: dict[str, dict[str, dict[str, Grant]]] = {}      # pod uid -> container -> resource -> its devices
        self._reusable: dict[str, dict[str, list[str]]] = {}          # pod uid -> resource -> what init containers that are over by then leave
        self._lock = asyncio.Lock()
        self._read()

    # --- plugins ---

    async def run(self) -> None:
        """Takes registrations until cancelled."""
        c = classes()
        await asyncio.to_thread(_remove_sockets, self.folder)         # plugins watch for this and register again
        server = await proto.serve(f"{self.folder}/kubelet.sock", {"v1beta1.Registration": {"Register": (c["RegisterRequest"], self._asked)}})
        try:
            await asyncio.Event().wait()
        finally:
            for p in self.plugins.values():
                if p.task is not None:
                    p.task.cancel()
            await server.stop(0.2)

    async def _asked(self, request: Any) -> Any:
        if request.version != VERSION:
            raise ValueError(f'requested API version "{request.version}" is not supported by kubelet. Supported version is "{VERSION}"')
        if not _extended(request.resource_name):
            raise ValueError(f'the ResourceName "{request.resource_name}" is invalid')
        await self.register(request.resource_name, f"{self.folder}/{request.endpoint}", [VERSION])
        return classes()["Empty"]()

    async def register(self, name: str, socket: str, versions: list[str]) -> None:
        if not any(v in (VERSION, f"{VERSION}.DevicePlugin") for v in versions):
            raise ValueError(f"device plugin registration version mismatch: {' '.join(versions)}")
        self.measures.count("device_plugin_registration_total", name)
        p = self.plugins.setdefault(name, Plugin())
        if p.task is not None:
            p.task.cancel()
        p.socket, p.stopped_s = socket, 0.0
        p.task = asyncio.create_task(self._listen(name, p))

    async def unregister(self, name: str, socket: str) -> None:
        p = self.plugins.get(name)
        if p is not None and p.socket == socket and p.task is not None:
            p.task.cancel()
            self._stopped(p)

    async def _listen(self, name: str, p: Plugin) -> None:
        """The plugin's devices as long as it tells of them."""
        import grpc.aio

        c = classes()
        try:
            async with proto.channel(p.socket) as channel:
                options = await channel.unary_unary("/v1beta1.DevicePlugin/GetDevicePluginOptions", lambda m: m.SerializeToString(),
                                                    c["Options"].FromString)(c["Empty"](), timeout=10, wait_for_ready=True)
                p.pre_start, p.preferring = options.pre_start_required, options.get_preferred_allocation_available
                stream = channel.unary_stream("/v1beta1.DevicePlugin/ListAndWatch", lambda m: m.SerializeToString(), c["DeviceList"].FromString)
                async for devices in stream(c["Empty"]()):
                    p.health = {d.ID: d.health == HEALTHY for d in devices.devices}
                    p.numa = {d.ID: [n.ID for n in d.topology.nodes] for d in devices.devices}
                    log.info("device plugin %s: %d devices, %d healthy", name, len(p.health), sum(p.health.values()))
                    self.changed()
        except grpc.aio.AioRpcError as e:
            log.info("device plugin %s: %s", name, proto.go_error(e))
        self._stopped(p)

    def _stopped(self, p: Plugin) -> None:
        """Its devices count, but nobody gets one."""
        p.health = dict.fromkeys(p.health, False)
        p.stopped_s = p.stopped_s or self.clock()
        self.changed()

    def capacity(self) -> tuple[dict[str, str], dict[str, str]]:
        """(capacity, allocatable) for the node's status; a resource whose plugin stayed away is there with 0."""
        whole: dict[str, str] = {}
        usable: dict[str, str] = {}
        for name, p in self.plugins.items():
            gone = bool(p.stopped_s) and self.clock() - p.stopped_s > STOP_GRACE_S
            whole[name] = "0" if gone else str(len(p.health))
            usable[name] = "0" if gone else str(sum(p.health.values()))
        return whole, usable

    # --- pods ---

    def hints(self, pod: Object, c: Mapping[str, Any] | None) -> Hints:
        """Of resources whose plugins say where their devices are."""
        out: dict[str, list[Hint] | None] = {}
        for resource, count in _asked_for(c, self.plugins) if c is not None else _asked_by(pod, self.plugins):
            p = self.plugins[resource]
            if not any(p.numa.values()):
                out[resource] = None
                continue
            reusable = set(self._reusable.get(pod["metadata"]["uid"], {}).get(resource, ()))
            available = {i for i, ok in p.health.items() if ok} - self._taken(resource)
            out[resource] = near_to(p.numa, available, reusable if c is not None else set(), count) if len(available | reusable) >= count else []
        return out

    async def grant(self, pod: Object, kind: str, c: Mapping[str, Any], near: Hint) -> None:
        """Gives a container its devices. Raises NoDevices."""
        uid = pod["metadata"]["uid"]
        async with self._lock:
            for resource, count in _asked_for(c, self.plugins):
                if resource in self.grants.get(uid, {}).get(c["name"], {}):
                    continue
                reusable = self._reusable.setdefault(uid, {})
                ids = await self._choose(resource, count, reusable.get(resource, []), near)
                self.grants.setdefault(uid, {}).setdefault(c["name"], {})[resource] = await self._ask(resource, ids)
                if kind == "init" and not pods.is_sidecar(c):
                    reusable[resource] = sorted({*reusable.get(resource, []), *ids})
                else:
                    reusable[resource] = [i for i in reusable.get(resource, []) if i not in ids]
                await self._write()

    def _taken(self, resource: str) -> set[str]:
        return {i for by_container in self.grants.values() for by_resource in by_container.values()
                for r, g in by_resource.items() if r == resource for i in g.ids}

    async def _choose(self, resource: str, count: int, reusable: list[str], near: Hint) -> list[str]:
        p = self.plugins[resource]
        healthy = {i for i, ok in p.health.items() if ok}
        if not healthy:
            raise NoDevices(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        out = [i for i in reusable if i in healthy][:count]
        available = sorted(healthy - self._taken(resource))
        if len(available) < count - len(out):
            raise NoDevices(f"requested number of devices unavailable for {resource}. Requested: {count - len(out)}, Available: {len(available)}")
        aligned = [i for i in available if near.nodes is not None and near.nodes.intersection(p.numa.get(i, ()))]
        for among in (aligned, [*(i for i in available if i not in aligned and p.numa.get(i)), *(i for i in available if not p.numa.get(i))]):
            need = count - len(out)
            if need and need < len(among) and p.preferring:
                preferred = await self._prefer(p, [*among, *out], out, count)
                among = [*(i for i in preferred if i in among), *(i for i in among if i not in preferred)]
            out += among[:need]
        return out

    async def _prefer(self, p: Plugin, available: list[str], chosen: list[str], count: int) -> list[str]:
        request = classes()["PreferenceRequest"](container_requests=[{"available_deviceIDs": available, "must_include_deviceIDs": chosen,
                                                                      "allocation_size": count}])
        preferred = (await self._call(p, "GetPreferredAllocation", request, "PreferenceResponse")).container_responses
        return list(preferred[0].deviceIDs) if preferred else []

    async def _ask(self, resource: str, ids: list[str]) -> Grant:
        request = classes()["AllocateRequest"](container_requests=[{"devices_ids": ids}])
        with self.measures.devices.timed(resource):
            got = (await self._call(self.plugins[resource], "Allocate", request, "AllocateResponse")).container_responses
        if not got:
            raise NoDevices("no containers return in allocation response")
        return Grant(tuple(ids), got[0].SerializeToString())

    async def _call(self, p: Plugin, method: str, request: Any, answer: str, timeout_s: float = proto.CALL_TIMEOUT_S) -> Any:
        import grpc.aio

        try:
            return await proto.call(p.socket, f"/v1beta1.DevicePlugin/{method}", request, classes()[answer], timeout_s)
        except grpc.aio.AioRpcError as e:
            raise NoDevices(proto.go_error(e) if method == "Allocate" else f"device plugin {method} rpc failed with err: {proto.go_error(e)}") from None

    async def prepare(self, uid: str, container: str) -> None:
        """Before a container starts: plugins that asked for it are told. Raises NoDevices."""
        for resource, grant in self.grants.get(uid, {}).get(container, {}).items():
            p = self.plugins.get(resource)
            if p is not None and p.pre_start:
                await self._call(p, "PreStartContainer", classes()["PreStartRequest"](devices_ids=grant.ids), "Empty", PRE_START_TIMEOUT_S)

    def additions(self, uid: str, container: str) -> Additions:
        out = Additions({}, [], [], {}, [])
        envs: dict[str, str] = {}
        notes: dict[str, str] = {}
        for grant in self.grants.get(uid, {}).get(container, {}).values():
            r = classes()["ContainerResponse"].FromString(grant.response)
            envs.update(r.envs)
            notes.update(r.annotations)
            out.mounts.extend({"container_path": m.container_path, "host_path": m.host_path, "readonly": m.read_only} for m in r.mounts)
            out.devices.extend({"container_path": d.container_path, "host_path": d.host_path, "permissions": d.permissions} for d in r.devices)
            out.cdi.extend(d.name for d in r.cdi_devices)
        return Additions(envs, out.mounts, out.devices, notes, out.cdi)

    async def release(self, uid: str) -> bool:
        self._reusable.pop(uid, None)
        if self.grants.pop(uid, None) is None:
            return False
        await self._write()
        return True

    # --- the record ---

    def _read(self) -> None:
        import base64

        try:
            with open(f"{self.folder}/{CHECKPOINT}", "rb") as f:
                data = orjson.loads(f.read())["Data"]
            for e in data.get("PodDeviceEntries") or ():
                ids = tuple(i for group in e["DeviceIDs"].values() for i in group)
                grant = Grant(ids, base64.b64decode(e["AllocResp"]))
                self.grants.setdefault(e["PodUID"], {}).setdefault(e["ContainerName"], {})[e["ResourceName"]] = grant
            for name in data.get("RegisteredDevices") or ():
                self.plugins[name] = Plugin(stopped_s=self.clock())
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            log.warning("%s cannot be read: %s", CHECKPOINT, e)

    async def _write(self) -> None:
        import base64

        entries = [{"PodUID": uid, "ContainerName": c, "ResourceName": r, "DeviceIDs": {"-1": list(g.ids)},
                    "AllocResp": base64.b64encode(g.response).decode()}
                   for uid, by_container in self.grants.items() for c, by_resource in by_container.items() for r, g in by_resource.items()]
        doc = {"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {n: sorted(p.health) for n, p in self.plugins.items()}}, "Checksum": 0}
        await asyncio.to_thread(write_whole, f"{self.folder}/{CHECKPOINT}", orjson.dumps(doc))


def _extended(name: str) -> bool:
    return "/" in name and "kubernetes.io/" not in name and not name.startswith("requests.")


def _asked_for(c: Mapping[str, Any], known: Iterable[str]) -> Iterator[tuple[str, int]]:
    limits = (c.get("resources") or {}).get("limits") or {}
    for name in known:
        count = quantity.value(str(limits[name])) if name in limits else 0
        if count:
            yield name, count


def _asked_by(pod: Object, known: Iterable[str]) -> Iterator[tuple[str, int]]:
    """What the pod's containers need at most at one time."""
    for name in known:
        count = whole_pod(pod, lambda c, name=name: dict(_asked_for(c, [name])).get(name, 0))       # type: ignore[misc]
        if count:
            yield name, count


def near_to(numa: Mapping[str, Sequence[int]], available: set[str], reusable: set[str], count: int) -> list[Hint]:
    """NUMA nodes with `count` devices at them, those already the pod's among them."""
    nodes = {n for at in numa.values() for n in at}
    found, least = [], len(nodes)
    for mask in masks(nodes):
        def there(i: str, mask: Nodes = mask) -> bool:
            return bool(mask.intersection(numa.get(i, ())))
        if sum(map(there, numa)) >= count:
            least = min(least, len(mask))
        own = [i for i in reusable if numa.get(i)]
        if all(map(there, own)) and len(own) + sum(map(there, available)) >= count:
            found.append(mask)
    return preferring(found, least)


def _remove_sockets(folder: str) -> None:
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(f"{folder}/{name}").st_mode):
                os.unlink(f"{folder}/{name}")
