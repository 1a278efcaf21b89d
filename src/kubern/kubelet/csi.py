"""CSI: volumes by drivers that register themselves on this node's plugin sockets.

A driver's registrar puts a socket into ROOT/plugins_registry; we ask it who it is, let the node's CSINode say so, and then have the driver
stage and publish volumes, mounted or as block devices. Attachment is waited for where the driver's CSIDriver asks for it. What was published
is written down (vol_data.json), so that a kubelet that restarted can undo it; what is published needs care from time to time (csi_upkeep.py).
A driver's messages are csi_driver.py's. SELinux mount options are left out. Specs: CSI csi.proto v1 (Node service); upstream pkg/volume/csi.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from kubern.client.client import Client
from kubern.kubelet import proto
from kubern.kubelet.csi_driver import BYTES, INODES, MOUNT_GROUP, MULTI_WRITER, STATS, Driver, ask, call, classes
from kubern.kubelet.paths import own
from kubern.kubelet.projection import Missing
from kubern.kubelet.record import write_whole
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

CSI_NODES, CSI_DRIVERS = by_path["storage.k8s.io", "v1", "csinodes"], by_path["storage.k8s.io", "v1", "csidrivers"]
ATTACHMENTS, SECRETS, NODES = by_path["storage.k8s.io", "v1", "volumeattachments"], by_path["", "v1", "secrets"], by_path["", "v1", "nodes"]
ACCOUNTS = by_path["", "v1", "serviceaccounts"]
ACCESS = {"ReadWriteOnce": 1, "ReadOnlyMany": 3, "ReadWriteMany": 5, "ReadWriteOncePod": 1}
ACCESS_MULTI_WRITER = {**ACCESS, "ReadWriteOnce": 7, "ReadWriteOncePod": 6}  # for drivers that tell writers of one node apart
DATA = "vol_data.json"
STATS_S = 2.0                                                                # a driver that is slow to tell is not waited for
TELL_S = 10.0                                                                # for the node's status to be written
FOLDERS = ("volumes/kubernetes.io~csi", "volumeDevices/kubernetes.io~csi")   # of a pod: mounted ones, block devices
PERSISTENT, EPHEMERAL = "Persistent", "Ephemeral"

class Room(NamedTuple):
    total: int = 0
    available: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """A volume of a pod as it was published; `pv` {} for an inline one."""

    pod: Object
    source: Mapping[str, Any]
    pv: Mapping[str, Any]
    name: str                        # in the pod
    driver: str
    handle: str
    target: str
    staging: str

    @property
    def block(self) -> bool:
        return bool(self.pv) and self.pv["spec"].get("volumeMode") == "Block"


def attachment_name(handle: str, driver: str, node: str) -> str:
    return "csi-" + hashlib.sha256(f"{handle}{driver}{node}".encode()).hexdigest()


def unique_name(driver: str, handle: str) -> str:
    return f"kubernetes.io/csi/{driver}^{handle}"


def capability(v: Published, driver: Driver, group: int | None = None) -> Any:
    spec = v.pv.get("spec") or {}
    modes = spec.get("accessModes") or ["ReadWriteOnce"]
    mode = (ACCESS_MULTI_WRITER if MULTI_WRITER in driver.can else ACCESS).get(modes[0], 1)
    out = classes()["VolumeCapability"](access_mode={"mode": mode})
    if v.block:
        out.block.SetInParent()
    else:
        out.mount.fs_type = v.source.get("fsType") or ""
        out.mount.mount_flags.extend(spec.get("mountOptions") or ())
        if group is not None:
            out.mount.volume_mount_group = str(group)
    return out


def kubelet_owns(source: Mapping[str, Any], pv: Mapping[str, Any], policy: str) -> bool:
    """Whether fsGroup is the kubelet's to apply: by the driver's fsGroupPolicy."""
    if policy == "None" or source.get("readOnly"):
        return False
    if policy == "File":
        return True
    modes = (pv.get("spec") or {}).get("accessModes") or () if pv else ("ReadWriteOnce",)
    return bool(source.get("fsType")) and bool({"ReadWriteOnce", "ReadWriteOncePod"} & set(modes))


class Drivers:
    """The CSI drivers of this node. `publish` and `unpublish` are what volumes.py needs."""

    def __init__(self, client: Client | None, node: str, root: str) -> None:
        self.client, self.node, self.root = client, node, root
        self.known: dict[str, Driver] = {}
        self.published: dict[str, Published] = {}                     # by target
        self.changed = asyncio.Event()                                # something was published
        self.nudge: Callable[[], None] | None = None                  # has the node's status written soon; None: nobody writes it
        self._wanted: defaultdict[str, set[str]] = defaultdict(set)   # unique names of volumes -> uids of pods that have them or wait for them
        self._told: set[str] = set()                                  # what the node's status says is in use
        self._telling = asyncio.Event()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    # --- registration ---

    async def register(self, name: str, socket: str, versions: list[str]) -> None:
        driver = await ask(name, socket)
        await self.tell_api(name, driver)
        self.known[name] = driver

    async def unregister(self, name: str, socket: str) -> None:
        if self.known.pop(name, None) is not None:
            await self.tell_api(name, None)

    async def tell_api(self, name: str, driver: Driver | None) -> None:
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
        """Names of the volumes that are published here or soon will be, for node.status.volumesInUse: they are not detached meanwhile."""
        return sorted({unique_name(d["driverName"], d["volumeHandle"]) for d in self._records() if d.get("attachmentID")} | set(self._wanted))

    def told(self, in_use: Iterable[str]) -> None:
        """The node's status says so now."""
        self._told = set(in_use)
        self._telling.set()

    async def _claim_use(self, name: str, uid: str) -> None:
        """Nothing is staged before the attach-detach controller can know of it. Raises Missing."""
        self._wanted[name].add(uid)
        if self.nudge is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                while name not in self._told:
                    self._telling.clear()
                    self.nudge()
                    await self._telling.wait()
                return
        raise Missing("the node's status does not say yet that the volume is in use")

    def _records(self) -> list[dict[str, Any]]:
        out = []
        pods = f"{self.root}/pods"
        for uid in os.listdir(pods) if os.path.isdir(pods) else ():
            out += read_records(f"{pods}/{uid}")
        return out

    @asynccontextmanager
    async def _alone(self, driver: str, handle: str) -> AsyncIterator[None]:
        """One call about a volume at a time."""
        key = f"{driver}^{handle}"
        lock = self._locks[key]
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def publish(self, pod: Object, source: Mapping[str, Any], pv: Mapping[str, Any], name: str) -> str:
        """Stages and publishes one volume of a pod (`pv` is empty for an inline one); the path it is at. Raises Missing, StatusError, OSError."""
        import grpc.aio

        driver = self._driver(source["driver"], "mounter.SetUpAt failed to get CSI client")
        spec = await self.driver_spec(driver.name)
        mode = PERSISTENT if pv else EPHEMERAL
        if spec is None and not pv:
            raise Missing(_log(f"mounter.SetupAt failed to check volume lifecycle mode: volume mode {quote(mode)} not supported by driver {driver.name} "
                               "(no CSIDriver object)"))
        modes = (spec or {}).get("volumeLifecycleModes") or [PERSISTENT]
        if mode not in modes:
            raise Missing(_log(f"mounter.SetupAt failed to check volume lifecycle mode: volume mode {quote(mode)} not supported by driver {driver.name} "
                               f"(only supports [{' '.join(map(quote, modes))}])"))
        spec = spec or {}
        v = self._placed(pod, source, pv, name, driver)
        attached, attachment = {}, ""
        if pv and spec.get("attachRequired", True):
            attachment = attachment_name(v.handle, driver.name, self.node)
            await self._claim_use(unique_name(driver.name, v.handle), pod["metadata"]["uid"])
            attached = await self._attached(attachment)
        record = {"driverName": driver.name, "volumeHandle": v.handle, "specVolID": pv["metadata"]["name"] if pv else name, "attachmentID": attachment,
                  "nodeName": self.node, "staging": v.staging, "target": v.target, "volumeLifecycleMode": mode}
        async with self._alone(driver.name, v.handle):
            try:
                if v.staging:
                    await self._stage(v, driver, attached)
                await asyncio.to_thread(write_whole, f"{self._record_folder(v)}/{DATA}", orjson.dumps(record))
                await self.publish_again(v, driver, spec, attached)
            except grpc.aio.AioRpcError as e:
                raise Missing(proto.go_error(e)) from None
        group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
        if group is not None and not v.block and MOUNT_GROUP not in driver.can and kubelet_owns(source, pv, spec.get("fsGroupPolicy") or ""):
            await asyncio.to_thread(own, v.target, int(group), (pod["spec"].get("securityContext") or {}).get("fsGroupChangePolicy") or "Always")
        self.published[v.target] = v
        self.changed.set()
        return v.target

    def _placed(self, pod: Object, source: Mapping[str, Any], pv: Mapping[str, Any], name: str, driver: Driver) -> Published:
        """Where a volume is to be, and by which handle."""
        uid, base = pod["metadata"]["uid"], f"{self.root}/plugins/kubernetes.io/csi"
        if not pv:
            handle = "csi-" + hashlib.sha256(f"{uid}{name}".encode()).hexdigest()
            return Published(pod, source, pv, name, driver.name, handle, f"{self.root}/pods/{uid}/{FOLDERS[0]}/{name}/mount", "")
        handle, pv_name = source["volumeHandle"], pv["metadata"]["name"]
        if pv["spec"].get("volumeMode") == "Block":
            staging, target = f"{base}/volumeDevices/staging/{pv_name}", f"{base}/volumeDevices/publish/{pv_name}/{uid}"
        else:
            staging = f"{base}/{driver.name}/{hashlib.sha256(handle.encode()).hexdigest()}/globalmount"
            target = f"{self.root}/pods/{uid}/{FOLDERS[0]}/{pv_name}/mount"
        return Published(pod, source, pv, name, driver.name, handle, target, staging if driver.stages else "")

    def _record_folder(self, v: Published) -> str:
        folder = FOLDERS[1] if v.block else FOLDERS[0]
        return f"{self.root}/pods/{v.pod['metadata']['uid']}/{folder}/{v.pv['metadata']['name'] if v.pv else v.name}"

    async def _stage(self, v: Published, driver: Driver, attached: Mapping[str, str]) -> None:
        c = classes()
        os.makedirs(v.staging, 0o750, exist_ok=True)
        group = (v.pod["spec"].get("securityContext") or {}).get("fsGroup") if MOUNT_GROUP in driver.can else None
        await call(driver.socket, "/csi.v1.Node/NodeStageVolume", c["NodeStageVolumeRequest"](
            volume_id=v.handle, publish_context=attached, staging_target_path=v.staging, volume_capability=capability(v, driver, group),
            secrets=await self.secret(v.source.get("nodeStageSecretRef")), volume_context=_texts(v.source.get("volumeAttributes"))), "Empty")

    async def publish_again(self, v: Published, driver: Driver, spec: Mapping[str, Any], attached: Mapping[str, str] | None = None) -> None:
        """NodePublishVolume, also of what is published already. Raises grpc.aio.AioRpcError, Missing, StatusError."""
        c, m = classes(), v.pod["metadata"]
        if attached is None:
            attached = await self._attached(attachment_name(v.handle, driver.name, self.node)) if v.pv and spec.get("attachRequired", True) else {}
        context = _texts(v.source.get("volumeAttributes"))
        account = v.pod["spec"].get("serviceAccountName") or "default"
        if spec.get("podInfoOnMount"):
            context |= {"csi.storage.k8s.io/pod.name": m["name"], "csi.storage.k8s.io/pod.namespace": m["namespace"], "csi.storage.k8s.io/pod.uid": m["uid"],
                        "csi.storage.k8s.io/serviceAccount.name": account, "csi.storage.k8s.io/ephemeral": "false" if v.pv else "true"}
        secret = v.source.get("nodePublishSecretRef")
        secrets = await self.secret({"namespace": m["namespace"], **secret} if secret else None)
        if spec.get("tokenRequests") and not v.block:
            tokens = {"csi.storage.k8s.io/serviceAccount.tokens": await self._tokens(v.pod, account, spec["tokenRequests"])}
            (secrets if spec.get("serviceAccountTokenInSecrets") else context).update(tokens)
        group = (v.pod["spec"].get("securityContext") or {}).get("fsGroup") if MOUNT_GROUP in driver.can else None
        os.makedirs(os.path.dirname(v.target), 0o750, exist_ok=True)
        await call(driver.socket, "/csi.v1.Node/NodePublishVolume", c["NodePublishVolumeRequest"](
            volume_id=v.handle, publish_context=attached, staging_target_path=v.staging, target_path=v.target,
            volume_capability=capability(v, driver, group), readonly=bool(v.source.get("readOnly")), secrets=secrets, volume_context=context), "Empty")

    async def unpublish(self, pod_dir: str) -> None:
        """Undoes all CSI volumes of a pod. Raises Missing when a driver refuses."""
        import grpc.aio

        c = classes()
        for record in await asyncio.to_thread(read_records, pod_dir):
            driver = self._driver(record["driverName"], "Unmounter.TearDownAt failed to get CSI client")
            folder, handle = record["folder"], record["volumeHandle"]
            target = record.get("target") or f"{folder}/mount"
            async with self._alone(driver.name, handle):
                try:
                    await call(driver.socket, "/csi.v1.Node/NodeUnpublishVolume",
                               c["NodeUnpublishVolumeRequest"](volume_id=handle, target_path=target), "Empty")
                    self.published.pop(target, None)
                    _clear(target)
                    os.unlink(f"{folder}/{DATA}")
                    others = [r for r in await asyncio.to_thread(self._records) if (r["driverName"], r["volumeHandle"]) == (driver.name, handle)]
                    if record.get("staging") and not others:
                        await call(driver.socket, "/csi.v1.Node/NodeUnstageVolume",
                                   c["NodeUnstageVolumeRequest"](volume_id=handle, staging_target_path=record["staging"]), "Empty")
                        _clear(record["staging"])
                        _clear(os.path.dirname(record["staging"]))
                except grpc.aio.AioRpcError as e:
                    raise Missing(_log(f"Unmounter.TearDownAt failed: {proto.go_error(e)}")) from None
        for name in [n for n, uids in self._wanted.items() if os.path.basename(pod_dir) in uids]:
            self._wanted[name].discard(os.path.basename(pod_dir))
            if not self._wanted[name]:
                del self._wanted[name]
                if self.nudge is not None:
                    self.nudge()

    def owns(self, path: str) -> bool:
        """Whether a volume is published there."""
        return path in self.published

    async def usage(self, path: str) -> tuple[Room, Room] | None:
        """What the driver says of the volume published at a path: bytes and inodes; None if it says nothing."""
        import grpc.aio

        v = self.published.get(path)
        driver = self.known.get(v.driver) if v else None
        if v is None or driver is None or STATS not in driver.can:
            return None
        try:
            told = await call(driver.socket, "/csi.v1.Node/NodeGetVolumeStats",
                              classes()["NodeGetVolumeStatsRequest"](volume_id=v.handle, volume_path=v.target), "NodeGetVolumeStatsResponse", STATS_S)
        except grpc.aio.AioRpcError as e:
            log.info("csi: NodeGetVolumeStats of %s: %s", v.handle, proto.go_error(e))
            return None
        rows = {u.unit: Room(u.total, u.available, u.used) for u in told.usage}
        return (rows.get(BYTES, Room()), rows.get(INODES, Room())) if rows else None

    # --- what a call needs ---

    def _driver(self, name: str, where: str) -> Driver:
        driver = self.known.get(name)
        if driver is None:
            raise Missing(_log(f"{where}: driver name {name} not found in the list of registered CSI drivers"))
        return driver

    async def driver_spec(self, name: str) -> dict[str, Any] | None:
        """The spec of its CSIDriver, None if there is none."""
        if self.client is None:
            return None
        try:
            return (await self.client.get(CSI_DRIVERS, "", name)).get("spec") or {}
        except StatusError as e:
            if e.code == 404:
                return None
            raise

    async def _tokens(self, pod: Object, account: str, wanted: list[dict[str, Any]]) -> str:
        """Audience -> token and its end, as JSON."""
        if self.client is None:
            raise Missing("no service account tokens without an API server")
        m, out = pod["metadata"], {}
        for w in wanted:
            audience = w.get("audience") or ""
            spec: dict[str, Any] = {"audiences": [audience] if audience else [],
                                    "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": m["name"], "uid": m["uid"]}}
            if w.get("expirationSeconds"):
                spec["expirationSeconds"] = w["expirationSeconds"]
            made = await self.client.create_in(ACCOUNTS, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
                                               namespace=m["namespace"], name=account, subresource="token")
            out[audience] = {k: made["status"][k] for k in ("token", "expirationTimestamp")}
        return orjson.dumps(out).decode()

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

    async def secret(self, ref: Mapping[str, Any] | None) -> dict[str, str]:
        if not ref or self.client is None:
            return {}
        data = (await self.client.get(SECRETS, ref["namespace"], ref["name"])).get("data") or {}
        return {k: base64.b64decode(v).decode(errors="replace") for k, v in data.items()}


def _log(text: str) -> str:
    return f"kubernetes.io/csi: {text}"


def _texts(values: Mapping[str, Any] | None) -> dict[str, str]:
    return {k: str(v) for k, v in (values or {}).items()}


def _clear(path: str) -> None:
    """What a driver left of a path that is empty."""
    with contextlib.suppress(OSError):
        (os.rmdir if os.path.isdir(path) else os.unlink)(path)


def read_records(pod_dir: str) -> list[dict[str, Any]]:
    """What was published for a pod, each with the folder it lies in."""
    out = []
    for base in (f"{pod_dir}/{f}" for f in FOLDERS):
        try:
            names = os.listdir(base)
        except OSError:
            continue
        for name in names:
            try:
                with open(f"{base}/{name}/{DATA}", "rb") as f:
                    out.append({**orjson.loads(f.read()), "folder": f"{base}/{name}"})
            except (OSError, ValueError):
                continue
    return out
