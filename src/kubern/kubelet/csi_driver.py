"""A CSI driver on its socket: who it is, what it can do, and the few messages of the Node service that this takes.

They are described here, field numbers and all, instead of carrying generated code. Spec: CSI csi.proto v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from kubern.kubelet import proto

STAGE_UNSTAGE, STATS, EXPAND, MULTI_WRITER, MOUNT_GROUP = 1, 2, 3, 5, 6      # of NodeServiceCapability.RPC
BYTES, INODES = 1, 2                                                         # VolumeUsage.Unit

# as proto.py reads them
MESSAGES: proto.Messages = {
    "Empty": (),
    "NodeGetInfoResponse": (("node_id", 1, "string"), ("max_volumes_per_node", 2, "int64"), ("accessible_topology", 3, "Topology")),
    "Topology": (("segments", 1, "map"),), "NodeGetCapabilitiesResponse": (("capabilities", 1, "NodeServiceCapability*"),),
    "NodeServiceCapability": (("rpc", 1, "Rpc"),), "Rpc": (("type", 1, "int32"),),
    "MountVolume": (("fs_type", 1, "string"), ("mount_flags", 2, "string*"), ("volume_mount_group", 3, "string")),
    "AccessMode": (("mode", 1, "int32"),),
    "VolumeCapability": (("block", 1, "Empty"), ("mount", 2, "MountVolume"), ("access_mode", 3, "AccessMode")),
    "NodeStageVolumeRequest": (("volume_id", 1, "string"), ("publish_context", 2, "map"), ("staging_target_path", 3, "string"),
                               ("volume_capability", 4, "VolumeCapability"), ("secrets", 5, "map"), ("volume_context", 6, "map")),
    "NodeUnstageVolumeRequest": (("volume_id", 1, "string"), ("staging_target_path", 2, "string")),
    "NodePublishVolumeRequest": (("volume_id", 1, "string"), ("publish_context", 2, "map"), ("staging_target_path", 3, "string"),
                                 ("target_path", 4, "string"), ("volume_capability", 5, "VolumeCapability"), ("readonly", 6, "bool"),
                                 ("secrets", 7, "map"), ("volume_context", 8, "map")),
    "NodeUnpublishVolumeRequest": (("volume_id", 1, "string"), ("target_path", 2, "string")),
    "CapacityRange": (("required_bytes", 1, "int64"), ("limit_bytes", 2, "int64")),
    "NodeExpandVolumeRequest": (("volume_id", 1, "string"), ("volume_path", 2, "string"), ("capacity_range", 3, "CapacityRange"),
                                ("staging_target_path", 4, "string"), ("volume_capability", 5, "VolumeCapability"), ("secrets", 6, "map")),
    "NodeExpandVolumeResponse": (("capacity_bytes", 1, "int64"),),
    "NodeGetVolumeStatsRequest": (("volume_id", 1, "string"), ("volume_path", 2, "string"), ("staging_target_path", 3, "string")),
    "VolumeUsage": (("available", 1, "int64"), ("total", 2, "int64"), ("used", 3, "int64"), ("unit", 4, "int32")),
    "NodeGetVolumeStatsResponse": (("usage", 1, "VolumeUsage*"),),
}


@cache
def classes() -> Mapping[str, Any]:
    """The message classes of MESSAGES."""
    return proto.define("kubern.csi", MESSAGES)


async def call(socket: str, method: str, request: Any, answer: str, timeout_s: float = proto.CALL_TIMEOUT_S) -> Any:
    """One unary call on a unix socket. Raises grpc.aio.AioRpcError."""
    return await proto.call(socket, method, request, classes()[answer], timeout_s)


@dataclass(frozen=True, slots=True)
class Driver:
    name: str
    socket: str
    node_id: str
    can: frozenset[int] = frozenset()
    volumes_max: int = 0
    topology: Mapping[str, str] | None = None

    @property
    def stages(self) -> bool:
        return STAGE_UNSTAGE in self.can


async def ask(name: str, socket: str) -> Driver:
    """Who a driver is and what it can do. Raises grpc.aio.AioRpcError."""
    c = classes()
    who = await call(socket, "/csi.v1.Node/NodeGetInfo", c["Empty"](), "NodeGetInfoResponse")
    can = await call(socket, "/csi.v1.Node/NodeGetCapabilities", c["Empty"](), "NodeGetCapabilitiesResponse")
    return Driver(name, socket, who.node_id, frozenset(x.rpc.type for x in can.capabilities), who.max_volumes_per_node,
                  dict(who.accessible_topology.segments))
