"""A CSI driver for the tests: directories (and files behind loop devices) of one folder that all nodes see. Run in a node unit's namespaces:

    python csi_driver.py NODE KUBELET_ROOT BACKEND

Identity, controller and node services over gRPC, and the registrar's socket as node-driver-registrar makes it. Every call is a line of
BACKEND/calls.jsonl. Messages are written down here by field numbers from the CSI specification, apart from those the product has.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kubern.kubelet import plugins, proto
from kubern.kubelet.csi_driver import BYTES, EXPAND, INODES, MESSAGES, STAGE_UNSTAGE, STATS

NAME, TOPOLOGY = "csi.kubern.test", "csi.kubern.test/node"
GB = 1 << 30
ALL: proto.Messages = {
    **MESSAGES,
    "GetPluginInfoResponse": (("name", 1, "string"), ("vendor_version", 2, "string")),
    "Volume": (("capacity_bytes", 1, "int64"), ("volume_id", 2, "string"), ("volume_context", 3, "map"), ("accessible_topology", 5, "Topology*")),
    "TopologyRequirement": (("requisite", 1, "Topology*"), ("preferred", 2, "Topology*")),
    "CreateVolumeRequest": (("name", 1, "string"), ("capacity_range", 2, "CapacityRange"), ("volume_capabilities", 3, "VolumeCapability*"),
                            ("parameters", 4, "map"), ("secrets", 5, "map"), ("accessibility_requirements", 7, "TopologyRequirement"),
                            ("mutable_parameters", 8, "map")),
    "CreateVolumeResponse": (("volume", 1, "Volume"),),
    "DeleteVolumeRequest": (("volume_id", 1, "string"), ("secrets", 2, "map")),
    "ControllerPublishVolumeRequest": (("volume_id", 1, "string"), ("node_id", 2, "string"), ("volume_capability", 3, "VolumeCapability"),
                                       ("readonly", 4, "bool"), ("secrets", 5, "map"), ("volume_context", 6, "map")),
    "ControllerPublishVolumeResponse": (("publish_context", 1, "map"),),
    "ControllerUnpublishVolumeRequest": (("volume_id", 1, "string"), ("node_id", 2, "string"), ("secrets", 3, "map")),
    "GetCapacityRequest": (("volume_capabilities", 1, "VolumeCapability*"), ("parameters", 2, "map"), ("accessible_topology", 3, "Topology")),
    "GetCapacityResponse": (("available_capacity", 1, "int64"),),
    "ControllerExpandVolumeRequest": (("volume_id", 1, "string"), ("capacity_range", 2, "CapacityRange"), ("secrets", 3, "map")),
    "ControllerExpandVolumeResponse": (("capacity_bytes", 1, "int64"), ("node_expansion_required", 2, "bool")),
    "ControllerModifyVolumeRequest": (("volume_id", 1, "string"), ("secrets", 2, "map"), ("mutable_parameters", 3, "map")),
}
ANSWERS = {"CreateVolume": "CreateVolumeResponse", "ControllerPublishVolume": "ControllerPublishVolumeResponse", "GetCapacity": "GetCapacityResponse",
           "ControllerExpandVolume": "ControllerExpandVolumeResponse"}


def classes() -> proto.Classes:
    return proto.define("kubern.test.csi", ALL)


def sh(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def mounted(path: str) -> bool:
    return any(line.split()[4] == path for line in Path("/proc/self/mountinfo").read_text().splitlines())


class Driver:
    def __init__(self, node: str, backend: Path) -> None:
        self.node, self.backend, self.c = node, backend, classes()

    def log(self, method: str, request: Any) -> None:
        from google.protobuf.json_format import MessageToDict

        line = json.dumps({"method": method, "node": self.node, "at": time.monotonic(), **MessageToDict(request, preserving_proto_field_name=True)})
        with open(self.backend / "calls.jsonl", "a") as f:
            f.write(line + "\n")

    # ---- controller

    async def CreateVolume(self, r: Any) -> Any:
        path, size = self.backend / r.name, r.capacity_range.required_bytes or GB
        if any(v.HasField("block") for v in r.volume_capabilities):
            sh("truncate", "-s", str(min(size, 16 << 20)), str(path))
        else:
            path.mkdir(exist_ok=True)
        (self.backend / f"{r.name}.size").write_text(str(size))
        preferred = [dict(t.segments) for t in r.accessibility_requirements.preferred]
        topology = [{"segments": preferred[0]}] if preferred else []
        return self.c["CreateVolumeResponse"](volume={"volume_id": r.name, "capacity_bytes": size, "volume_context": {"made": "yes"},
                                                      "accessible_topology": topology})

    async def DeleteVolume(self, r: Any) -> Any:
        path = self.backend / r.volume_id
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return self.c["Empty"]()

    async def ControllerPublishVolume(self, r: Any) -> Any:
        return self.c["ControllerPublishVolumeResponse"](publish_context={"attached-to": r.node_id})

    async def ControllerUnpublishVolume(self, r: Any) -> Any:
        return self.c["Empty"]()

    async def GetCapacity(self, r: Any) -> Any:
        return self.c["GetCapacityResponse"](available_capacity=100 * GB if r.accessible_topology.segments[TOPOLOGY].endswith("1") else GB)

    async def ControllerExpandVolume(self, r: Any) -> Any:
        size = r.capacity_range.required_bytes
        return self.c["ControllerExpandVolumeResponse"](capacity_bytes=size, node_expansion_required=True)

    async def ControllerModifyVolume(self, r: Any) -> Any:
        return self.c["Empty"]()

    # ---- node

    async def NodeGetInfo(self, r: Any) -> Any:
        return self.c["NodeGetInfoResponse"](node_id=f"id-{self.node}", max_volumes_per_node=8, accessible_topology={"segments": {TOPOLOGY: self.node}})

    async def NodeGetCapabilities(self, r: Any) -> Any:
        return self.c["NodeGetCapabilitiesResponse"](capabilities=[{"rpc": {"type": t}} for t in (STAGE_UNSTAGE, STATS, EXPAND)])

    async def NodeStageVolume(self, r: Any) -> Any:
        path = str(self.backend / r.volume_id)
        if r.volume_capability.HasField("block"):
            if not sh("losetup", "-j", path):
                sh("losetup", "-f", path)
        elif not mounted(r.staging_target_path):
            sh("mount", "--bind", path, r.staging_target_path)
        return self.c["Empty"]()

    async def NodeUnstageVolume(self, r: Any) -> Any:
        path = str(self.backend / r.volume_id)
        if mounted(r.staging_target_path):
            sh("umount", r.staging_target_path)
        for line in sh("losetup", "-j", path).splitlines():
            sh("losetup", "-d", line.partition(":")[0])
        return self.c["Empty"]()

    async def NodePublishVolume(self, r: Any) -> Any:
        if mounted(r.target_path):                           # published again: what a token or a secret says may be new
            return self.c["Empty"]()
        if r.volume_capability.HasField("block"):
            device = sh("losetup", "-j", str(self.backend / r.volume_id)).partition(":")[0]
            sh("touch", r.target_path)
            sh("mount", "--bind", device, r.target_path)
        else:
            os.makedirs(r.target_path, exist_ok=True)
            if r.volume_context["csi.storage.k8s.io/ephemeral"] == "true":
                sh("mount", "-t", "tmpfs", "tmpfs", r.target_path)
                (Path(r.target_path) / "note").write_text(r.volume_context["note"])
            else:
                sh("mount", "--bind", r.staging_target_path, r.target_path)
        return self.c["Empty"]()

    async def NodeUnpublishVolume(self, r: Any) -> Any:
        if mounted(r.target_path):
            sh("umount", r.target_path)
        sh("rm", "-rf", r.target_path)
        return self.c["Empty"]()

    async def NodeExpandVolume(self, r: Any) -> Any:
        (self.backend / f"{r.volume_id}.size").write_text(str(r.capacity_range.required_bytes))
        return self.c["NodeExpandVolumeResponse"](capacity_bytes=r.capacity_range.required_bytes)

    async def NodeGetVolumeStats(self, r: Any) -> Any:
        total = int((self.backend / f"{r.volume_id}.size").read_text())
        return self.c["NodeGetVolumeStatsResponse"](usage=[{"unit": BYTES, "total": total, "available": total - 12345, "used": 12345},
                                                          {"unit": INODES, "total": 100, "available": 93, "used": 7}])

    # ---- serving

    def row(self, name: str, takes: str) -> tuple[Any, Any]:
        async def run(r: Any) -> Any:
            self.log(name, r)
            return await getattr(self, name)(r)
        return self.c[takes], run


async def main(node: str, root: str, backend: str) -> None:
    d = Driver(node, Path(backend))
    reg = plugins.classes()
    socket = f"{root}/plugins/{NAME}/csi.sock"
    controller = {n: d.row(n, f"{n}Request") for n in ("CreateVolume", "DeleteVolume", "ControllerPublishVolume", "ControllerUnpublishVolume", "GetCapacity",
                                                       "ControllerExpandVolume", "ControllerModifyVolume")}
    served = {n: d.row(n, f"{n}Request") for n in ("NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeExpandVolume",
                                                       "NodeGetVolumeStats")}
    served |= {n: d.row(n, "Empty") for n in ("NodeGetInfo", "NodeGetCapabilities")}
    servers = [await proto.serve(socket, {"csi.v1.Controller": controller, "csi.v1.Node": served})]

    async def info(r: Any) -> Any:
        return reg["PluginInfo"](type="CSIPlugin", name=NAME, endpoint=socket, supported_versions=["1.0.0"])

    async def told(r: Any) -> Any:
        return reg["Empty"]()
    servers.append(await proto.serve(f"{root}/plugins_registry/{NAME}-reg.sock", {"pluginregistration.Registration": {
        "GetInfo": (reg["InfoRequest"], info), "NotifyRegistrationStatus": (reg["RegistrationStatus"], told)}}))
    await asyncio.Event().wait()                 # the servers live as long as somebody holds them


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
