"""Room on the node: pods that must go, images nobody uses. The shell of evict.py; one pass at a time, driven by run.py.

Upstream: pkg/kubelet/eviction, pkg/kubelet/images/image_gc_manager.go (high 85 %, low 80 %).
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from kubern.kubelet import evict, registration
from kubern.kubelet.cgroups import node_memory
from kubern.kubelet.runtime import RuntimeFailure
from kubern.kubelet.stats import Sampler

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet
    from kubern.kubelet.worker import Worker

log = logging.getLogger(__name__)

PASS_S = 10.0
IMAGES_EVERY_S = 300.0
DISK_HIGH, DISK_LOW = 0.85, 0.80
MAY_BE_KILLED_S = 0


async def run(kubelet: Kubelet) -> None:
    """Until cancelled."""
    sampler = Sampler(kubelet)
    looked = kubelet.clock()
    while True:
        await asyncio.sleep(PASS_S)
        try:
            await _storage(kubelet)
            await _memory(kubelet, sampler)
            if kubelet.clock() - looked > IMAGES_EVERY_S:
                looked = kubelet.clock()
                await _images(kubelet)
        except (RuntimeFailure, OSError) as e:
            log.info("making room: %s", e)


def _end(kubelet: Kubelet, w: Worker, message: str) -> None:
    kubelet.tell(w.pod, "", "Warning", evict.REASON, message)
    w.failed = (evict.REASON, message)
    w.grace_s = MAY_BE_KILLED_S
    w.notify()


async def _storage(k: Kubelet) -> None:
    """Pods beyond their own limits of local storage; only those that have such limits are measured."""
    for w in list(k.workers.values()):
        spec = w.pod["spec"]
        sized = {v["name"] for v in spec.get("volumes") or () if (v.get("emptyDir") or {}).get("sizeLimit") and v["emptyDir"].get("medium") != "Memory"}
        limited = any("ephemeral-storage" in ((c.get("resources") or {}).get("limits") or {}) for c in spec.get("containers") or ())
        if w.terminated or w.failed or not (sized or limited):
            continue
        ready = k.volumes.ready.get(w.uid, {})
        used = {v.name: await asyncio.to_thread(_size, v.path) for v in ready.values() if v.source == "emptyDir" and (limited or v.name in sized)}
        layers: dict[str, int] = {}
        if limited:
            by_id = {u.id: u.fs_used for u in await k.runtime.usage()}
            layers = {c.name: by_id.get(c.id, 0) for c in k.observer.seen(w.uid).containers}
        message = evict.over_limit(w.pod, used, layers)
        if message:
            _end(k, w, message)


async def _memory(k: Kubelet, sampler: Sampler) -> None:
    available = node_memory()["available"]
    if available >= registration.MEMORY_EVICTION:
        return
    sample = await sampler.sample()
    used = {p.uid: p for p in sample.pods}
    order = evict.rank("memory", [(w.pod, used[w.uid].whole.working_set) for w in k.workers.values()
                                  if w.uid in used and not w.terminated and not w.failed])
    if order:
        pod = order[0][0]
        uid = pod["metadata"]["uid"]
        containers = {n: f.working_set for n, f in used[uid].containers.items()}
        _end(k, k.workers[uid], evict.low_message("memory", pod, containers, registration.MEMORY_EVICTION, available))


async def _images(k: Kubelet) -> None:
    """Above the high mark the biggest unused images go until the low mark is reached."""
    mount, _, _ = await k.runtime.image_fs()
    total, used = await asyncio.to_thread(_disk, mount)
    if not total or used < total * DISK_HIGH:
        return
    wanted = used - int(total * DISK_LOW)
    in_use = {c.image_id for uid in k.observer.pods() for c in k.observer.seen(uid).containers}
    for image in sorted(await k.runtime.images(), key=lambda i: -i.size):
        if wanted <= 0:
            return
        if image.pinned or image.id in in_use or in_use & {*image.digests, *image.tags}:
            continue
        await k.runtime.remove_image(image.id)
        log.info("removed image %s", image.tags or image.id)
        wanted -= image.size


def _disk(mount: str) -> tuple[int, int]:
    """(bytes, bytes used)."""
    st = os.statvfs(mount if os.path.isdir(mount) else "/")
    return st.f_blocks * st.f_frsize, (st.f_blocks - st.f_bavail) * st.f_frsize


def _size(path: str) -> int:
    """Bytes allocated below a directory."""
    total = 0
    for d, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(d, name)).st_blocks * 512
            except OSError:
                continue
    return total
