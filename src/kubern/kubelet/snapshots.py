"""Snapshots: the files of an image as mounts, by containerd's own snapshot service.

For containerd before 2.1, whose CRI knows no image mounts. A view is kept from the runtime's garbage collection until it is removed.
Sources: containerd api/services/snapshots/v1, api/types/mount.proto; mount(8) for the options.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from kubern.kubelet import proto
from kubern.kubelet.runtime import MountPoint

SNAPSHOTTER = "overlayfs"
HEADERS = (("containerd-namespace", "k8s.io"),)
ROOT_LABEL = "containerd.io/gc.root"
FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "bind": 4096, "rbind": 4096 | 16384}
CALL_TIMEOUT_S = 30.0

# as proto.py reads them
MESSAGES: proto.Messages = {
    "Mount": (("type", 1, "string"), ("source", 2, "string"), ("target", 3, "string"), ("options", 4, "string*")),
    "ViewSnapshotRequest": (("snapshotter", 1, "string"), ("key", 2, "string"), ("parent", 3, "string"), ("labels", 4, "map")),
    "MountsRequest": (("snapshotter", 1, "string"), ("key", 2, "string")),
    "MountsResponse": (("mounts", 1, "Mount*"),),                     # ViewSnapshotResponse is the same on the wire
    "RemoveSnapshotRequest": (("snapshotter", 1, "string"), ("key", 2, "string")),
    "Empty": (),
}


@cache
def _classes() -> proto.Classes:
    return proto.define("kubern.snapshots", MESSAGES)


def mount_point(kind: str, source: str, options: Iterable[str]) -> MountPoint:
    """One of containerd's mounts: options the kernel takes as flags apart from those the file system reads."""
    flags, data = 0, []
    for o in options:
        if o in FLAGS:
            flags |= FLAGS[o]
        else:
            data.append(o)
    return MountPoint(kind, source, flags, ",".join(data))


async def _call(channel: Any, method: str, request: Any, answer: str) -> Any:
    stub = channel.unary_unary(f"/containerd.services.snapshots.v1.Snapshots/{method}", request_serializer=lambda m: m.SerializeToString(),
                               response_deserializer=_classes()[answer].FromString)
    return await stub(request, timeout=CALL_TIMEOUT_S, metadata=HEADERS)


async def view(channel: Any, key: str, chain: str) -> list[MountPoint]:
    """Read-only mounts of the layers that end in `chain`; asking again for the same key gives the same. Raises grpc.aio.AioRpcError."""
    import grpc

    c = _classes()
    try:
        found = await _call(channel, "View", c["ViewSnapshotRequest"](snapshotter=SNAPSHOTTER, key=key, parent=chain, labels={ROOT_LABEL: "kubern"}),
                            "MountsResponse")
    except grpc.aio.AioRpcError as e:
        if e.code() != grpc.StatusCode.ALREADY_EXISTS:
            raise
        found = await _call(channel, "Mounts", c["MountsRequest"](snapshotter=SNAPSHOTTER, key=key), "MountsResponse")
    return [mount_point(m.type, m.source, m.options) for m in found.mounts]


async def remove(channel: Any, key: str) -> None:
    """Gives a view up; one that is gone already is no failure."""
    import grpc

    try:
        await _call(channel, "Remove", _classes()["RemoveSnapshotRequest"](snapshotter=SNAPSHOTTER, key=key), "Empty")
    except grpc.aio.AioRpcError as e:
        if e.code() != grpc.StatusCode.NOT_FOUND:
            raise
