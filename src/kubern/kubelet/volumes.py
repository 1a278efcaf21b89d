"""Volumes of pods on this node: set up below ROOT/pods/UID/volumes, mounted into containers, kept up to date, taken down.

emptyDir (Memory too), configMap, secret, downwardAPI, projected, hostPath, NFS, images, and claims bound to hostPath, local or CSI volumes.
Blocking parts (mounts.py, paths.py) run in threads. VolumeFailure's text goes into a FailedMount event. Upstream: pkg/kubelet/volumemanager,
pkg/volume/*.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubern.kubelet import mounts, paths, pods
from kubern.kubelet.container import PROPAGATION, CannotCreate, effective_security
from kubern.kubelet.env import Lookup, Values, expand
from kubern.kubelet.projection import SOURCES, Missing, Payload, payload, write
from kubern.kubelet.runtime import MountPoint, RuntimeFailure
from kubern.model import quantity
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.status import StatusError

PLUGIN = {"emptyDir": "kubernetes.io~empty-dir", "configMap": "kubernetes.io~configmap", "secret": "kubernetes.io~secret",
          "downwardAPI": "kubernetes.io~downward-api", "projected": "kubernetes.io~projected", "csi": "kubernetes.io~csi", "nfs": "kubernetes.io~nfs",
          "image": "kubernetes.io~image", "local": "kubernetes.io~local-volume"}
_VARIABLE = re.compile(r"\$\(([^)]*)\)")


class VolumeFailure(Exception):
    """One volume could not be set up (yet)."""

    def __init__(self, volume: str, message: str) -> None:
        super().__init__(f"MountVolume.SetUp failed for volume {quote(volume)} : {message}")
        self.volume, self.message = volume, message


@dataclass(frozen=True, slots=True)
class Mounted:
    """A volume that is ready: where it is, and as what."""

    name: str
    source: str                  # key of the volume source: "emptyDir", "configMap", "hostPath", "persistentVolumeClaim" …
    path: str
    read_only: bool = False
    block: bool = False
    image: str = ""              # mounted by the runtime itself; there is no path


@dataclass(slots=True)
class Needs:
    """What setting up may ask of the API; each raises StatusError or answers None."""

    lookup: Lookup
    token: Callable[[Object, Mapping[str, Any]], Awaitable[str]] | None = None
    claim: Callable[[str, str], Awaitable[tuple[Object, Object] | None]] | None = None       # (namespace, claim) -> (claim, volume)
    csi: Callable[[Object, Mapping[str, Any], Mapping[str, Any], str], Awaitable[str]] | None = None      # (pod, source, volume or {}, name in the pod)
    csi_unmount: Callable[[str], Awaitable[None]] | None = None
    image_mounts: Callable[[str, str], Awaitable[Sequence[MountPoint] | None]] | None = None          # (image, key) -> its files
    image_release: Callable[[str], Awaitable[None]] | None = None


def used_volumes(spec: Mapping[str, Any]) -> set[str]:
    """Names of the volumes that a container mounts, has as a device or reads its environment from."""
    out = set()
    for _, c in pods.every_container(spec):
        out |= {m["name"] for m in (*(c.get("volumeMounts") or ()), *(c.get("volumeDevices") or ()))}
        out |= {ref["volumeName"] for e in c.get("env") or () if (ref := (e.get("valueFrom") or {}).get("fileKeyRef"))}
    return out


@dataclass(slots=True)
class Volumes:
    root: str                                                      # "/var/lib/kubelet"
    needs: Needs
    ready: dict[str, dict[str, Mounted]] = field(default_factory=dict)      # pod uid -> volume -> where
    _disks: threading.Lock = field(default_factory=threading.Lock)          # a disk is not unmounted while another pod takes it

    def pod_dir(self, uid: str) -> str:
        return f"{self.root}/pods/{uid}"

    async def set_up(self, pod: Object, values: Values) -> dict[str, Mounted]:
        """All volumes of a pod; those that are ready already are only brought up to date. Raises VolumeFailure."""
        uid = pod["metadata"]["uid"]
        have = self.ready.setdefault(uid, {})
        failure: VolumeFailure | None = None
        used = used_volumes(pod["spec"])
        for v in pod["spec"].get("volumes") or ():
            name = v["name"]
            if name not in used:
                continue                                           # nobody mounts it: that it cannot be set up hinders nobody
            source = next((k for k in v if k != "name"), "emptyDir")
            if source == "image" or (name in have and source not in SOURCES):
                continue                                           # images are pulled when a container that mounts them starts
            try:
                have[name] = await self._one(pod, name, source, v.get(source) or {}, values)
            except Missing as e:
                failure = failure or VolumeFailure(name, str(e))
            except StatusError as e:
                failure = failure or VolumeFailure(name, e.message)
            except OSError as e:
                failure = failure or VolumeFailure(name, f"{e.strerror or e}: {e.filename or ''}".rstrip(": "))
            if failure is not None and name in have and failure.volume == name:
                failure = None                                     # it was ready before: what it holds stays until it can be renewed
        if failure is not None:
            raise failure
        return have

    async def refresh(self, pod: Object, values: Values) -> None:
        """Brings the volumes made of API objects up to date; what fails stays as it is."""
        uid = pod["metadata"]["uid"]
        for v in pod["spec"].get("volumes") or ():
            source = next((k for k in v if k != "name"), "")
            if source in SOURCES and v["name"] in self.ready.get(uid, {}):
                try:
                    await self._projected(pod, v["name"], source, v.get(source) or {}, values)
                except (Missing, OSError):
                    continue

    async def _one(self, pod: Object, name: str, source: str, spec: Mapping[str, Any], values: Values) -> Mounted:
        if source in SOURCES:
            return Mounted(name, source, await self._projected(pod, name, source, spec, values), read_only=True)
        if source == "emptyDir":
            return Mounted(name, source, await asyncio.to_thread(self._empty_dir, pod, name, spec, values))
        if source == "hostPath":
            await asyncio.to_thread(paths.check_host_path, spec["path"], spec.get("type") or "")
            return Mounted(name, source, spec["path"])
        if source in ("persistentVolumeClaim", "ephemeral"):
            claim = spec.get("claimName") or f"{pod['metadata']['name']}-{name}"
            return await self._claim(pod, name, claim, bool(spec.get("readOnly")))
        if source == "csi" and self.needs.csi is not None:
            return Mounted(name, source, await self.needs.csi(pod, spec, {}, name), bool(spec.get("readOnly")))
        if source == "nfs":
            return Mounted(name, source, await asyncio.to_thread(mounts.mount_nfs, spec, self._path(pod, source, name)), bool(spec.get("readOnly")))
        raise Missing(f"no volume plugin matched: {source}")

    async def set_up_image(self, pod: Object, name: str, image: str) -> None:
        """The files of an image that is on the node, as a volume. Raises RuntimeFailure, OSError."""
        uid = pod["metadata"]["uid"]
        assert self.needs.image_mounts is not None
        points = await self.needs.image_mounts(image, image_key(uid, name))
        path = self._path(pod, "image", name)
        if points is not None:
            await asyncio.to_thread(mounts.mount_image, points, path)
        self.ready.setdefault(uid, {})[name] = Mounted(name, "image", path, read_only=True, image="" if points is not None else image)

    def _path(self, pod: Object, source: str, name: str) -> str:
        return f"{self.pod_dir(pod['metadata']['uid'])}/volumes/{PLUGIN[source]}/{name}"

    def _empty_dir(self, pod: Object, name: str, spec: Mapping[str, Any], values: Values) -> str:
        path = self._path(pod, "emptyDir", name)
        fresh = not os.path.isdir(path)
        os.makedirs(path, exist_ok=True)
        if spec.get("medium") == "Memory" and not os.path.ismount(path):
            size = memory_size(pod, spec, values)
            mounts.mount("tmpfs", path, "tmpfs", 0, f"size={size}" if size else "")
            fresh = True
        elif (spec.get("medium") or "").startswith("HugePages") and not os.path.ismount(path):
            page = spec["medium"].partition("-")[2] or "2Mi"
            mounts.mount("nodev", path, "hugetlbfs", 0, f"pagesize={quantity.value(page) // 1024}K")
            fresh = True
        if fresh:
            if stat.S_IMODE(os.stat(path).st_mode) & 0o777 != 0o777:
                os.chmod(path, 0o777)
            self._own(pod, path)
        return path

    def _own(self, pod: Object, path: str) -> None:
        group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
        if group is not None:
            paths.own(path, int(group), (pod["spec"].get("securityContext") or {}).get("fsGroupChangePolicy") or "Always")

    async def _projected(self, pod: Object, name: str, source: str, spec: Mapping[str, Any], values: Values) -> str:
        path = self._path(pod, source, name)
        tokens: dict[int, str] = {}
        parts = [p["serviceAccountToken"] for p in spec.get("sources") or () if p.get("serviceAccountToken")]
        for part in parts:
            if self.needs.token is None:
                raise Missing("no service account tokens without an API server")
            tokens[id(part)] = await self.needs.token(pod, part)
        security = pod["spec"].get("securityContext") or {}
        group, user = security.get("fsGroup"), common_user(pod)
        private = 0o600 if parts and (group is not None or user is not None) else None
        files = payload(pod, source, spec, self.needs.lookup, values, lambda part: tokens[id(part)], private)
        owned = {part["path"]: user for part in parts if user is not None}
        await asyncio.to_thread(self._write, path, files, group, user, owned)
        return path

    @staticmethod
    def _write(path: str, files: Payload, group: int | None, user: int | None, owned: dict[str, int]) -> None:
        os.makedirs(path, exist_ok=True)
        if not os.path.ismount(path):
            mounts.mount("tmpfs", path, "tmpfs", mounts.NOSUID | mounts.NODEV)
            if group is not None:
                os.chown(path, -1, int(group))
                os.chmod(path, 0o3777)
        write(Path(path), files, None if group is None else int(group), user, owned)

    async def _claim(self, pod: Object, name: str, claim: str, read_only: bool) -> Mounted:
        namespace = pod["metadata"].get("namespace") or ""
        if self.needs.claim is None:
            raise Missing("no claims without an API server")
        found = await self.needs.claim(namespace, claim)
        if found is None:
            raise Missing(f"persistentvolumeclaim {quote(claim)} not found")
        pvc, pv = found
        spec = pv["spec"]
        block = spec.get("volumeMode") == "Block"
        if spec.get("hostPath"):
            await asyncio.to_thread(paths.check_host_path, spec["hostPath"]["path"], spec["hostPath"].get("type") or "")
            return Mounted(name, "persistentVolumeClaim", spec["hostPath"]["path"], read_only, block)
        if spec.get("local"):
            path = spec["local"]["path"]
            if not await asyncio.to_thread(os.path.exists, path):
                raise Missing(f"path {quote(path)} does not exist")
            if not block:
                path = await asyncio.to_thread(self._local, pod, pv, read_only)
            return Mounted(name, "persistentVolumeClaim", path, read_only, block)
        if spec.get("csi") and self.needs.csi is not None:
            source = {**spec["csi"], "readOnly": read_only or bool(spec["csi"].get("readOnly"))}
            return Mounted(name, "persistentVolumeClaim", await self.needs.csi(pod, source, pv, name), source["readOnly"], block)
        if spec.get("nfs"):
            only = read_only or bool(spec["nfs"].get("readOnly"))
            path = await asyncio.to_thread(mounts.mount_nfs, spec["nfs"], self._path(pod, "nfs", pv["metadata"]["name"]), spec.get("mountOptions") or ())
            return Mounted(name, "persistentVolumeClaim", path, only)
        kind = next((k for k in spec if k in ("iscsi", "csi", "fc", "cephfs", "rbd", "glusterfs")), "unknown")
        raise Missing(f"volumes of kind {kind} are not supported by this node (claim {pvc['metadata']['name']})")

    def _disk_path(self, pv: str) -> str:
        return f"{self.root}/plugins/kubernetes.io/local-volume/mounts/{pv}"

    def _local(self, pod: Object, pv: Object, read_only: bool) -> str:
        """A directory of the machine as it is, or the file system of a disk, which all its pods here share. Raises Missing, OSError."""
        spec, name = pv["spec"], pv["metadata"]["name"]
        source, target = spec["local"]["path"], self._path(pod, "local", name)
        with self._disks:
            if stat.S_ISBLK(os.stat(source).st_mode):
                options = [*(["ro"] if read_only else []), *(spec.get("mountOptions") or ())]
                mounts.mount_disk(source, self._disk_path(name), spec["local"].get("fsType") or "", options)
                source = self._disk_path(name)
            elif not os.path.isdir(source):
                raise Missing("only directory and block device are supported")
            mounts.bind(source, target)
        if not read_only:
            self._own(pod, target)
        return target

    # --- into a container ---

    def mounts(self, pod: Object, c: Mapping[str, Any], env: Mapping[str, str]) -> list[dict[str, Any]]:
        """CRI Mounts of a container's volumeMounts, in their order. Raises CannotCreate."""
        uid = pod["metadata"]["uid"]
        have = self.ready.get(uid, {})
        out: list[dict[str, Any]] = []
        for i, m in enumerate(c.get("volumeMounts") or ()):
            v = have.get(m["name"])
            if v is None:
                raise CannotCreate(f"cannot find volume {quote(m['name'])} to mount into container {quote(c['name'])}")
            path = v.path
            sub = m.get("subPath") or ""
            if m.get("subPathExpr"):
                missing = [n for n in _VARIABLE.findall(m["subPathExpr"].replace("$$", "")) if n not in env]
                if missing:
                    raise CannotCreate(f"missing value for {quote(missing[0])}")
                sub = expand(m["subPathExpr"], env)
            if v.image:
                out.append({"container_path": "/" + m["mountPath"].lstrip("/"), "image": {"image": v.image, "user_specified_image": v.image},
                            "image_sub_path": sub, "readonly": True, "propagation": PROPAGATION[m.get("mountPropagation") or "None"]})
                continue
            if sub:
                if os.path.isabs(sub):
                    raise CannotCreate(f"subPath {quote(sub)} must not be an absolute path")
                if ".." in sub.split("/"):
                    raise CannotCreate(f"subPath {quote(sub)} must not contain \"..\"")
                try:
                    path = self._sub_path(uid, v, c["name"], i, sub)
                except OSError as e:
                    raise CannotCreate(f"failed to prepare subPath for volumeMount {quote(m['name'])} of container {quote(c['name'])}: "
                                       f"{e.strerror}") from None
            read_only = bool(m.get("readOnly")) or v.read_only
            target = m["mountPath"]
            if not target.startswith("/"):
                target = "/" + target
            out.append({"container_path": target, "host_path": path, "readonly": read_only,
                        "propagation": PROPAGATION.get(m.get("mountPropagation") or "None", 0)})
        return out

    def devices(self, pod: Object, c: Mapping[str, Any]) -> list[dict[str, str]]:
        have = self.ready.get(pod["metadata"]["uid"], {})
        out = []
        for d in c.get("volumeDevices") or ():
            v = have.get(d["name"])
            if v is None:
                raise CannotCreate(f"cannot find volume {quote(d['name'])} to pass into container {quote(c['name'])}")
            out.append({"container_path": d["devicePath"], "host_path": os.path.realpath(v.path), "permissions": "r" if v.read_only else "mrw"})
        return out

    def _sub_path(self, uid: str, v: Mounted, container: str, index: int, sub: str) -> str:
        """A bind mount of the file or directory inside the volume, found without following a symlink out of it."""
        base = os.path.realpath(v.path)
        wanted = os.path.join(base, sub)
        if not os.path.lexists(wanted) or not os.path.exists(wanted):
            paths.safe_make(base, sub)
        inside = os.path.realpath(wanted)
        if inside != base and not inside.startswith(base + "/"):
            raise OSError(1, f"subpath {sub} leads out of the volume")
        fd = paths.safe_open(base, os.path.relpath(inside, base))
        try:
            target = f"{self.pod_dir(uid)}/volume-subpaths/{v.name}/{container}/{index}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.ismount(target):
                mounts.unmount(target)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.makedirs(target, exist_ok=True)
            elif not os.path.exists(target):
                with open(target, "w"):
                    pass
            mounts.mount(f"/proc/{os.getpid()}/fd/{fd}", target, "", mounts.BIND | mounts.REC)
        finally:
            os.close(fd)
        return target

    # --- the end ---

    async def tear_down(self, uid: str) -> None:
        """Unmounts and removes all of a pod. What was in hostPath or a claim stays."""
        if self.needs.csi_unmount is not None:
            try:
                await self.needs.csi_unmount(self.pod_dir(uid))
            except Missing as e:
                raise OSError(str(e)) from None
        images = await asyncio.to_thread(_names, f"{self.pod_dir(uid)}/volumes/{PLUGIN['image']}")
        await asyncio.to_thread(self._tear_down, uid)
        if self.needs.image_release is not None:
            for name in images:
                try:
                    await self.needs.image_release(image_key(uid, name))
                except RuntimeFailure as e:
                    raise OSError(str(e)) from None
        self.ready.pop(uid, None)

    def _tear_down(self, uid: str) -> None:
        folder = self.pod_dir(uid)
        if not os.path.isdir(folder):
            return
        local = _names(f"{folder}/volumes/{PLUGIN['local']}")
        for point in mounts.mounts_below(folder):
            mounts.unmount(point)
        for name in local:
            with self._disks:
                self._release_disk(name)
        if not mounts.mounts_below(folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _release_disk(self, pv: str) -> None:
        """Unmounts a local volume's disk unless some pod still has it."""
        disk = self._disk_path(pv)
        if os.path.ismount(disk) and not any(os.path.ismount(f"{self.pod_dir(uid)}/volumes/{PLUGIN['local']}/{pv}") for uid in self.left_over()):
            mounts.unmount(disk)
            os.rmdir(disk)

    def left_over(self) -> list[str]:
        """uids of pods that have a directory."""
        return _names(f"{self.root}/pods")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def image_key(uid: str, volume: str) -> str:
    """By which the runtime keeps an image's files for a volume."""
    return f"kubern-{uid}-{volume}"


def memory_size(pod: Object, spec: Mapping[str, Any], values: Values) -> int:
    """Bytes of a memory volume: the smallest of its sizeLimit, the pod's memory limit, the node's allocatable."""
    sizes = []
    if spec.get("sizeLimit") and quantity.value(str(spec["sizeLimit"])):
        sizes.append(quantity.value(str(spec["sizeLimit"])))
    limits = [((c.get("resources") or {}).get("limits") or {}).get("memory") for kind, c in pods.every_container(pod["spec"]) if kind != "ephemeral"]
    if limits and all(limits):
        sizes.append(sum(quantity.value(str(x)) for x in limits))
    if values.allocatable and values.allocatable.get("memory"):
        sizes.append(quantity.value(values.allocatable["memory"]))
    return min(sizes, default=0)


def common_user(pod: Object) -> int | None:
    """The user all containers run as, if the pod says so: tokens belong to it."""
    users = {effective_security(pod, c).get("runAsUser") for kind, c in pods.every_container(pod["spec"]) if kind != "ephemeral"}
    only = users.pop() if len(users) == 1 else None
    return None if only is None else int(only)
