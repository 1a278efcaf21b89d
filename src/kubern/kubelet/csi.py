"""CSI: volumes by drivers that register themselves on this node's plugin sockets.

A driver's registrar puts a socket into ROOT/plugins_registry; we ask it who it is, let the node's CSINode say so, and then have the driver
stage and publish volumes. Attachment is waited for where the driver's CSIDriver asks for it. What was published is written down beside the
mount (vol_data.json), so that a kubelet that restarted can undo it. The few messages this takes are described here, field numbers and
all, instead of carrying generated code. Not block volumes. Specs: CSI csi.proto v1 (Node service), kubelet plugin registration v1; upstream
pkg/volume/csi, pkg/kubelet/pluginmanager.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import orjson

from kubern.client.client import Client
from kubern.kubelet import plugins, proto
from kubern.kubelet.projection import Missing
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

CSI_NODES, CSI_DRIVERS = by_path["storage.k8s.io", "v1", "csinodes"], by_path["storage.k8s.io", "v1", "csidrivers"]
ATTACHMENTS, SECRETS, NODES = by_path["storage.k8s.io", "v1", "volumeattachments"], by_path["", "v1", "secrets"], by_path["", "v1", "nodes"]
STAGE_UNSTAGE = 1
ACCESS = {"ReadWriteOnce": 1, "ReadOnlyMany": 3, "ReadWriteMany": 5, "ReadWriteOncePod": 6}
DATA = "vol_data.json"

# as proto.py reads them
MESSAGES: proto.Messages = {
    **plugins.MESSAGES,
    "NodeGetInfoResponse": (("node_id", 1, "string"), ("max_volumes_per_node", 2, "int64"), ("accessible_topology", 3, "Topology")),
    "Topology": (("segments", 1, "map"),), "NodeGetCapabilitiesResponse": (("capabilities", 1, "NodeServiceCapability*"),),
    "NodeServiceCapability": (("rpc", 1, "Rpc"),), "Rpc": (("type", 1, "int32"),),
    "MountVolume": (("fs_type", 1, "string"), ("mount_flags", 2, "string*"), ("volume_mount_group", 3, "string")),
    "AccessMode": (("mode", 1, "int32"),), "VolumeCapability": (("mount", 2, "MountVolume"), ("access_mode", 3, "AccessMode")),
    "NodeStageVolumeRequest": (("volume_id", 1, "string"), ("publish_context", 2, "map"), ("staging_target_path", 3, "string"),
                               ("volume_capability", 4, "VolumeCapability"), ("secrets", 5, "map"), ("volume_context", 6, "map")),
    "NodeUnstageVolumeRequest": (("volume_id", 1, "string"), ("staging_target_path", 2, "string")),
    "NodePublishVolumeRequest": (("volume_id", 1, "string"), ("publish_context", 2, "map"), ("staging_target_path", 3, "string"),
                                 ("target_path", 4, "string"), ("volume_capability", 5, "VolumeCapability"), ("readonly", 6, "bool"),
                                 ("secrets", 7, "map"), ("volume_context", 8, "map")),
    "NodeUnpublishVolumeRequest": (("volume_id", 1, "string"), ("target_path", 2, "string")),
}


@cache
def classes() -> Mapping[str, Any]:
    """The message classes of MESSAGES."""
    return proto.define("kubern.csi", MESSAGES)


async def call(socket: str, method: str, request: Any, answer: str) -> Any:
    """One unary call on a unix socket. Raises grpc.aio.AioRpcError."""
    return await proto.call(socket, method, request, classes()[answer])


@dataclass(frozen=True, slots=True)
class Driver:
    name: str
    socket: str
    node_id: str
    stages: bool
    volumes_max: int = 0
    topology: Mapping[str, str] | None = None


def attachment_name(handle: str, driver: str, node: str) -> str:
    return "csi-" + hashlib.sha256(f"{handle}{driver}{node}".encode()).hexdigest()


class Drivers:
    """The CSI drivers of this node. `publish` and `unpublish` are what volumes.py needs."""

    def __init__(self, client: Client | None, node: str, root: str) -> None:
        self.client, self.node, self.root = client, node, root
        self.known: dict[str, Driver] = {}

    # --- registration ---

    async def run(self) -> None:
        """Looks for drivers alone, for ever."""
        await plugins.watch(self.root, {"CSIPlugin": self})

    async def register(self, name: str, socket: str, versions: list[str]) -> None:
        c = classes()
        who = await call(socket, "/csi.v1.Node/NodeGetInfo", c["Empty"](), "NodeGetInfoResponse")
        can = await call(socket, "/csi.v1.Node/NodeGetCapabilities", c["Empty"](), "NodeGetCapabilitiesResponse")
        stages = any(x.rpc.type == STAGE_UNSTAGE for x in can.capabilities)
        driver = Driver(name, socket, who.node_id, stages, who.max_volumes_per_node, dict(who.accessible_topology.segments))
        await self._tell_api(name, driver)
        self.known[name] = driver

    async def unregister(self, name: str, socket: str) -> None:
        if self.known.pop(name, None) is not None:
            await self._tell_api(name, None)

    async def _tell_api(self, name: str, driver: Driver | None) -> None:
        """The driver's entry in the node's CSINode, its node id and topology on the Node."""
        if self.client is None:
            return
        node = await self.client.get(NODES, "", self.node)
        try:
            have = await self.client.get(CSI_NODES, "", self.node)
        except StatusError as e:
            if e.code != 404:
                raise
            owner = {"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": node["metadata"]["uid"]}
            have = await self.client.create({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {
                "name": self.node, "ownerReferences": [owner]}, "spec": {"drivers": []}})
        drivers = [d for d in (have.get("spec") or {}).get("drivers") or () if d["name"] != name]
        if driver is not None:
            entry: dict[str, Any] = {"name": name, "nodeID": driver.node_id, "topologyKeys": sorted(driver.topology or ()) or None}
            if driver.volumes_max > 0:
                entry["allocatable"] = {"count": driver.volumes_max}
            drivers.append(entry)
        await self.client.update({**have, "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "spec": {"drivers": drivers}})
        ids = orjson.loads((node["metadata"].get("annotations") or {}).get("csi.volume.kubernetes.io/nodeid") or "{}")
        ids.pop(name, None)
        if driver is not None:
            ids[name] = driver.node_id
        await self.client.patch(NODES, "", self.node, {"metadata": {
            "annotations": {"csi.volume.kubernetes.io/nodeid": orjson.dumps(ids).decode() if ids else None},
            "labels": dict((driver.topology if driver else None) or {})}})

    # --- volumes ---

    def in_use(self) -> list[str]:
        """Names of the volumes that are published here, as node.status.volumesInUse tells them."""
        return sorted({f"kubernetes.io/csi/{d['driverName']}^{d['volumeHandle']}" for d in self._records() if d.get("attachmentID")})

    def _records(self) -> list[dict[str, Any]]:
        out = []
        pods = f"{self.root}/pods"
        for uid in os.listdir(pods) if os.path.isdir(pods) else ():
            out += read_records(f"{pods}/{uid}")
        return out

    async def publish(self, pod: Object, source: Mapping[str, Any], pv: Mapping[str, Any], target: str) -> str:
        """Stages and publishes one volume of a pod (`pv` is empty for an inline one); the path it is at. Raises Missing, StatusError."""
        import grpc.aio

        driver = self.known.get(source["driver"])
        if driver is None:
            raise Missing(f"driver name {source['driver']} not found in the list of registered CSI drivers")
        target = target if target.endswith("/mount") else f"{target}/mount"
        inline = not pv
        m = pod["metadata"]
        handle = source.get("volumeHandle") or "csi-" + hashlib.sha256(f"{os.path.basename(os.path.dirname(target))}{m['uid']}".encode()).hexdigest()
        kind = await self._driver_object(driver.name)
        spec = (kind or {}).get("spec") or {}
        attached: dict[str, str] = {}
        attachment = ""
        if not inline and spec.get("attachRequired", True):
            attachment = attachment_name(handle, driver.name, self.node)
            attached = await self._attached(attachment)
        context = {k: str(v) for k, v in (source.get("volumeAttributes") or {}).items()}
        if spec.get("podInfoOnMount"):
            context |= {"csi.storage.k8s.io/pod.name": m["name"], "csi.storage.k8s.io/pod.namespace": m["namespace"],
                        "csi.storage.k8s.io/pod.uid": m["uid"], "csi.storage.k8s.io/ephemeral": "true" if inline else "false",
                        "csi.storage.k8s.io/serviceAccount.name": pod["spec"].get("serviceAccountName") or "default"}
        modes = (pv.get("spec") or {}).get("accessModes") or ["ReadWriteOnce"]
        c = classes()
        capability = c["VolumeCapability"](mount={"fs_type": source.get("fsType") or "", "mount_flags": (pv.get("spec") or {}).get("mountOptions") or []},
                                           access_mode={"mode": ACCESS.get(modes[0], 1)})
        staging = f"{self.root}/plugins/kubernetes.io/csi/{driver.name}/{hashlib.sha256(handle.encode()).hexdigest()}/globalmount"
        try:
            if driver.stages and not inline:
                os.makedirs(staging, exist_ok=True)
                await call(driver.socket, "/csi.v1.Node/NodeStageVolume", c["NodeStageVolumeRequest"](
                    volume_id=handle, publish_context=attached, staging_target_path=staging, volume_capability=capability,
                    secrets=await self._secret(source.get("nodeStageSecretRef")), volume_context=context), "Empty")
            await asyncio.to_thread(write_record, os.path.dirname(target), {
                "driverName": driver.name, "volumeHandle": handle, "attachmentID": attachment, "nodeName": self.node,
                "staging": staging if driver.stages and not inline else "", "volumeLifecycleMode": "Ephemeral" if inline else "Persistent"})
            secret = source.get("nodePublishSecretRef")
            await call(driver.socket, "/csi.v1.Node/NodePublishVolume", c["NodePublishVolumeRequest"](
                volume_id=handle, publish_context=attached, staging_target_path=staging if driver.stages and not inline else "", target_path=target,
                volume_capability=capability, readonly=bool(source.get("readOnly")),
                secrets=await self._secret({"namespace": m["namespace"], **secret} if secret else None), volume_context=context), "Empty")
        except grpc.aio.AioRpcError as e:
            raise Missing(f"rpc error: code = {e.code().name.title().replace('_', '')} desc = {e.details()}") from None
        return target

    async def unpublish(self, pod_dir: str) -> None:
        """Undoes all CSI volumes of a pod. Raises Missing when a driver refuses."""
        import grpc.aio

        c = classes()
        for record in read_records(pod_dir):
            driver = self.known.get(record["driverName"])
            if driver is None:
                raise Missing(f"driver name {record['driverName']} not found in the list of registered CSI drivers")
            folder = record["folder"]
            try:
                await call(driver.socket, "/csi.v1.Node/NodeUnpublishVolume",
                           c["NodeUnpublishVolumeRequest"](volume_id=record["volumeHandle"], target_path=f"{folder}/mount"), "Empty")
                os.unlink(f"{folder}/{DATA}")
                others = [r for r in self._records() if (r["driverName"], r["volumeHandle"]) == (record["driverName"], record["volumeHandle"])]
                if record.get("staging") and not others:
                    await call(driver.socket, "/csi.v1.Node/NodeUnstageVolume",
                               c["NodeUnstageVolumeRequest"](volume_id=record["volumeHandle"], staging_target_path=record["staging"]), "Empty")
            except grpc.aio.AioRpcError as e:
                raise Missing(f"rpc error: code = {e.code().name.title().replace('_', '')} desc = {e.details()}") from None

    async def _driver_object(self, name: str) -> Object | None:
        if self.client is None:
            return None
        try:
            return await self.client.get(CSI_DRIVERS, "", name)
        except StatusError as e:
            if e.code == 404:
                return None
            raise

    async def _attached(self, name: str) -> dict[str, str]:
        """The publish context of an attachment that is there. Raises Missing until then."""
        assert self.client is not None
        try:
            status = (await self.client.get(ATTACHMENTS, "", name)).get("status") or {}
        except StatusError as e:
            if e.code != 404:
                raise
            raise Missing(f"volumeattachments.storage.k8s.io {quote(name)} not found") from None
        if not status.get("attached"):
            why = (status.get("attachError") or {}).get("message") or "timed out waiting for external-attacher"
            raise Missing(f"attachment of the volume is awaited: {why}")
        return dict(status.get("attachmentMetadata") or {})

    async def _secret(self, ref: Mapping[str, Any] | None) -> dict[str, str]:
        if not ref or self.client is None:
            return {}
        data = (await self.client.get(SECRETS, ref["namespace"], ref["name"])).get("data") or {}
        return {k: base64.b64decode(v).decode(errors="replace") for k, v in data.items()}


def write_record(folder: str, record: Mapping[str, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{DATA}", "wb") as f:
        f.write(orjson.dumps(record))


def read_records(pod_dir: str) -> list[dict[str, Any]]:
    """What was published for a pod, each with the folder it lies in."""
    base = f"{pod_dir}/volumes/kubernetes.io~csi"
    out = []
    try:
        names = os.listdir(base)
    except OSError:
        return []
    for name in names:
        try:
            with open(f"{base}/{name}/{DATA}", "rb") as f:
                out.append({**orjson.loads(f.read()), "folder": f"{base}/{name}"})
        except (OSError, ValueError):
            continue
    return out
