"""A device plugin and a DRA driver as vendors write them, small: real gRPC on real sockets. For tests with and without containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from kubern.kubelet import claims, devices, plugins, proto


async def registrar(path: str, type_: str, name: str, endpoint: str, versions: list[str], told: list[Any]) -> Any:
    """The socket in plugins_registry that says who a plugin is."""
    c = plugins.classes()

    async def info(_: Any) -> Any:
        return c["PluginInfo"](type=type_, name=name, endpoint=endpoint, supported_versions=versions)

    async def status(request: Any) -> Any:
        told.append((request.plugin_registered, request.error))
        return c["Empty"]()
    return await proto.serve(path, {"pluginregistration.Registration": {"GetInfo": (c["InfoRequest"], info),
                                                                         "NotifyRegistrationStatus": (c["RegistrationStatus"], status)}})


class DraDriver:
    """Prepares every claim as one device; `fail` is what it answers instead."""

    def __init__(self, root: Path, name: str = "gpu.example.com", cdi: str = "example.com/gpu=one") -> None:
        self.root, self.name, self.cdi = root, name, cdi
        self.fail = ""
        self.calls: list[tuple[str, list[str]]] = []
        self.told: list[Any] = []
        self._servers: list[Any] = []

    async def start(self) -> None:
        c = claims.classes()

        async def prepare(request: Any) -> Any:
            self.calls.append(("prepare", [x.name for x in request.claims]))
            if self.fail:
                return c["PrepareResponse"](claims={x.uid: c["Prepared"](error=self.fail) for x in request.claims})
            return c["PrepareResponse"](claims={x.uid: c["Prepared"](devices=[
                {"pool_name": "pool", "device_name": "d0", "request_names": ["r"], "cdi_device_ids": [self.cdi]}]) for x in request.claims})

        async def unprepare(request: Any) -> Any:
            self.calls.append(("unprepare", [x.name for x in request.claims]))
            return c["UnprepareResponse"](claims={x.uid: c["Unprepared"]() for x in request.claims})
        socket = f"{self.root}/plugins/{self.name}/dra.sock"
        rows = {"NodePrepareResources": (c["Request"], prepare), "NodeUnprepareResources": (c["Request"], unprepare)}
        self._servers = [await proto.serve(socket, {"k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin": rows}),
                         await registrar(f"{self.root}/plugins_registry/{self.name}-reg.sock", "DRAPlugin", self.name, socket, ["v1.DRAPlugin"], self.told)]

    async def stop(self) -> None:
        for s in self._servers:
            await s.stop(None)
        Path(f"{self.root}/plugins_registry/{self.name}-reg.sock").unlink(missing_ok=True)  # noqa: ASYNC240


class DevicePlugin:
    """Offers devices of one resource; a container gets the environment DEVICES and /dev/null as /dev/ID."""

    def __init__(self, root: Path, resource: str, ids: list[str]) -> None:
        self.folder, self.resource = root / "device-plugins", resource
        self.health = dict.fromkeys(ids, "Healthy")
        self.changed = asyncio.Event()
        self.started: list[list[str]] = []
        self._server: Any = None

    async def start(self) -> None:
        c = devices.classes()

        async def options(_: Any, __: Any) -> Any:
            return c["Options"](pre_start_required=True, get_preferred_allocation_available=True)

        async def listing(_: Any, __: Any) -> Any:
            while True:
                yield c["DeviceList"](devices=[{"ID": i, "health": h} for i, h in self.health.items()])
                self.changed.clear()
                await self.changed.wait()

        async def preferred(request: Any, _: Any) -> Any:
            r = request.container_requests[0]
            return c["PreferenceResponse"](container_responses=[{"deviceIDs": sorted(r.available_deviceIDs)[-r.allocation_size:]}])

        async def allocate(request: Any, _: Any) -> Any:
            return c["AllocateResponse"](container_responses=[
                {"envs": {"DEVICES": ",".join(r.devices_ids)}, "annotations": {"devices": "yes"},
                 "devices": [{"container_path": f"/dev/{i}", "host_path": "/dev/null", "permissions": "rw"} for i in r.devices_ids]}
                for r in request.container_requests])

        async def pre_start(request: Any, _: Any) -> Any:
            self.started.append(list(request.devices_ids))
            return c["Empty"]()

        def row(method: Any, takes: str, stream: bool = False) -> Any:
            make = grpc.unary_stream_rpc_method_handler if stream else grpc.unary_unary_rpc_method_handler
            return make(method, c[takes].FromString, lambda m: m.SerializeToString())
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", {
            "GetDevicePluginOptions": row(options, "Empty"), "ListAndWatch": row(listing, "Empty", True), "Allocate": row(allocate, "AllocateRequest"),
            "GetPreferredAllocation": row(preferred, "PreferenceRequest"), "PreStartContainer": row(pre_start, "PreStartRequest")}),))
        os.makedirs(self.folder, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.folder}/test.sock")
        self._server.add_insecure_port(f"unix://{self.folder}/test.sock")
        await self._server.start()

    async def register(self, version: str = "v1beta1") -> None:
        c = devices.classes()
        await proto.call(f"{self.folder}/kubelet.sock", "/v1beta1.Registration/Register",
                         c["RegisterRequest"](version=version, endpoint="test.sock", resource_name=self.resource), c["Empty"])

    def set_health(self, id_: str, health: str) -> None:
        self.health[id_] = health
        self.changed.set()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
