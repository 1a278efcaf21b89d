"""What a CSI driver brings along beside itself: external-provisioner, -attacher, -resizer and capacity tracking, as small as tests need them.

Upstream keeps these out of Kubernetes, and so does kubern: they are containers of the driver's own pods. One thread here does their work by
looking at everything several times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import grpc.aio

from kubern.client.client import Client
from kubern.client.kubeconfig import sender_of
from kubern.kubelet import proto
from kubern.model import quantity
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

CLAIMS, VOLUMES, NODES = (by_path["", "v1", n] for n in ("persistentvolumeclaims", "persistentvolumes", "nodes"))
CLASSES, ATTACHMENTS, CAPACITIES, ATTRIBUTES = (by_path["storage.k8s.io", "v1", n] for n in (
    "storageclasses", "volumeattachments", "csistoragecapacities", "volumeattributesclasses"))
LOOK_S = 0.2
FINALIZER = "external-attacher/csi-kubern-test"


class Sidecars:
    def __init__(self, kubeconfig: str, socket: str, driver: Any) -> None:
        self.kubeconfig, self.socket, self.driver = kubeconfig, socket, driver
        self.c = driver.classes()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Sidecars:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(10)

    async def _run(self) -> None:
        sender = sender_of(self.kubeconfig)
        client = Client(sender.send, agent="csi-sidecars")
        try:
            while not self.stop.is_set():
                for work in (self.capacity, self.provision, self.reclaim, self.attach, self.resize):
                    with contextlib.suppress(StatusError, OSError, EOFError, grpc.aio.AioRpcError):      # the next look does it again
                        await work(client)
                await asyncio.sleep(LOOK_S)
        finally:
            await sender.close()
            await asyncio.sleep(0.1)                      # for its sockets to go

    async def ask(self, method: str, **fields: Any) -> Any:
        answer = self.c[self.driver.ANSWERS.get(method, "Empty")]
        return await proto.call(self.socket, f"/csi.v1.Controller/{method}", self.c[f"{method}Request"](**fields), answer)

    async def _classes(self, client: Client) -> dict[str, Object]:
        return {c["metadata"]["name"]: c for c in (await client.list(CLASSES))[0] if c["provisioner"] == self.driver.NAME}

    async def capacity(self, client: Client) -> None:
        have = {c["metadata"]["name"] for c in (await client.list(CAPACITIES, "default"))[0]}
        for storage_class in await self._classes(client):
            for node in (await client.list(NODES))[0]:
                where = (node["metadata"]["labels"] or {}).get(self.driver.TOPOLOGY)
                name = f"{storage_class}-{where}"
                if where and name not in have:
                    room = await self.ask("GetCapacity", accessible_topology={"segments": {self.driver.TOPOLOGY: where}})
                    await client.create({"apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity", "metadata": {"name": name, "namespace": "default"},
                                         "storageClassName": storage_class, "capacity": str(room.available_capacity),
                                         "nodeTopology": {"matchLabels": {self.driver.TOPOLOGY: where}}})

    async def provision(self, client: Client) -> None:
        classes = await self._classes(client)
        known = {v["metadata"]["name"] for v in (await client.list(VOLUMES))[0]}
        for claim in (await client.list(CLAIMS))[0]:
            m, spec, notes = claim["metadata"], claim["spec"], claim["metadata"].get("annotations") or {}
            c = classes.get(spec.get("storageClassName") or "")
            name = f"pvc-{m['uid']}"
            if c is None or name in known or spec.get("volumeName") or notes.get("volume.kubernetes.io/storage-provisioner") != self.driver.NAME:
                continue
            node = notes.get("volume.kubernetes.io/selected-node")
            if c["volumeBindingMode"] == "WaitForFirstConsumer" and not node:
                continue
            block = spec.get("volumeMode") == "Block"
            topology = {"preferred": [{"segments": {self.driver.TOPOLOGY: node}}]} if node else {}
            made = (await self.ask("CreateVolume", name=name, volume_capabilities=[{"block": {}} if block else {"mount": {"fs_type": "ext4"}}],
                                   capacity_range={"required_bytes": quantity.value(spec["resources"]["requests"]["storage"])},
                                   accessibility_requirements=topology, parameters=c.get("parameters") or {})).volume
            terms = [{"matchExpressions": [{"key": k, "operator": "In", "values": [v]} for k, v in t.segments.items()]} for t in made.accessible_topology]
            pv_spec: dict[str, Any] = {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]}, "accessModes": spec["accessModes"],
                "storageClassName": c["metadata"]["name"],
                "persistentVolumeReclaimPolicy": c["reclaimPolicy"], "volumeMode": spec.get("volumeMode"),
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": m["namespace"], "name": m["name"], "uid": m["uid"]},
                "csi": {"driver": self.driver.NAME, "volumeHandle": made.volume_id, "volumeAttributes": dict(made.volume_context),
                        **({} if block else {"fsType": "ext4"})}}
            if terms:
                pv_spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": terms}}
            if spec.get("volumeAttributesClassName"):
                pv_spec["volumeAttributesClassName"] = spec["volumeAttributesClassName"]
            await client.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {
                "name": name, "annotations": {"pv.kubernetes.io/provisioned-by": self.driver.NAME}}, "spec": pv_spec})

    async def reclaim(self, client: Client) -> None:
        for pv in (await client.list(VOLUMES))[0]:
            csi = pv["spec"].get("csi") or {}
            if csi.get("driver") == self.driver.NAME and pv["status"]["phase"] == "Released" and pv["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
                attached = [a for a in (await client.list(ATTACHMENTS))[0] if a["spec"]["source"].get("persistentVolumeName") == pv["metadata"]["name"]]
                if not attached:
                    await self.ask("DeleteVolume", volume_id=csi["volumeHandle"])
                    await client.delete(VOLUMES, "", pv["metadata"]["name"])

    async def attach(self, client: Client) -> None:
        for a in (await client.list(ATTACHMENTS))[0]:
            if a["spec"]["attacher"] != self.driver.NAME:
                continue
            a = {**a, "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment"}
            m = a["metadata"]
            pv = await client.get(VOLUMES, "", a["spec"]["source"]["persistentVolumeName"])
            about = {"volume_id": pv["spec"]["csi"]["volumeHandle"], "node_id": f"id-{a['spec']['nodeName']}"}
            if m.get("deletionTimestamp"):
                if FINALIZER in (m.get("finalizers") or ()):
                    await self.ask("ControllerUnpublishVolume", **about)
                    await client.update({**a, "metadata": {**m, "finalizers": [f for f in m["finalizers"] if f != FINALIZER]}})
            elif not (a.get("status") or {}).get("attached"):
                if FINALIZER not in (m.get("finalizers") or ()):
                    a = await client.update({**a, "metadata": {**m, "finalizers": [*(m.get("finalizers") or ()), FINALIZER]}})
                done = await self.ask("ControllerPublishVolume", **about)
                await client.update({**a, "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
                                     "status": {"attached": True, "attachmentMetadata": dict(done.publish_context)}}, "status")

    async def resize(self, client: Client) -> None:
        """Growing, and other parameters by a VolumeAttributesClass."""
        for claim in (await client.list(CLAIMS))[0]:
            if (claim.get("status") or {}).get("phase") != "Bound" or not claim["spec"]["volumeName"].startswith("pvc-"):
                continue
            pv = await client.get(VOLUMES, "", claim["spec"]["volumeName"])
            if (pv["spec"].get("csi") or {}).get("driver") != self.driver.NAME:
                continue
            m, status, handle = claim["metadata"], claim["status"], pv["spec"]["csi"]["volumeHandle"]
            size = claim["spec"]["resources"]["requests"]["storage"]
            if quantity.compare(size, pv["spec"]["capacity"]["storage"]) > 0:
                await self.ask("ControllerExpandVolume", volume_id=handle, capacity_range={"required_bytes": quantity.value(size)})
                await client.patch(VOLUMES, "", pv["metadata"]["name"], {"spec": {"capacity": {"storage": size}}})
                await client.patch(CLAIMS, m["namespace"], m["name"], {"status": {
                    "allocatedResources": {"storage": size}, "allocatedResourceStatuses": {"storage": "NodeResizePending"},
                    "conditions": [{"type": "FileSystemResizePending", "status": "True", "message": "Waiting for user to (re-)start a pod"}]}},
                    subresource="status")
            wanted = claim["spec"].get("volumeAttributesClassName")
            if wanted and wanted != status.get("currentVolumeAttributesClassName"):
                kind = await client.get(ATTRIBUTES, "", wanted)
                await self.ask("ControllerModifyVolume", volume_id=handle, mutable_parameters=kind.get("parameters") or {})
                await client.patch(VOLUMES, "", pv["metadata"]["name"], {"spec": {"volumeAttributesClassName": wanted}})
                await client.patch(CLAIMS, m["namespace"], m["name"], {"status": {"currentVolumeAttributesClassName": wanted}}, subresource="status")
