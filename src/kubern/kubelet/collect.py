"""Room on the node: shortages of memory, disk, inodes and processes, the pods that must go for them, images and dead containers nobody needs.

The shell of evict.py: it measures, one pass at a time, and keeps the node's pressure conditions. Upstream: pkg/kubelet/eviction,
pkg/kubelet/images/image_gc_manager.go, pkg/kubelet/kuberuntime/kuberuntime_gc.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kubern.kubelet import container as config
from kubern.kubelet import evict
from kubern.kubelet.cgroups import node_memory
from kubern.kubelet.configuration import Threshold
from kubern.kubelet.evict import Amount, Shortages
from kubern.kubelet.runtime import EXITED, RuntimeFailure
from kubern.kubelet.stats import Sampler

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet
    from kubern.kubelet.worker import Worker

log = logging.getLogger(__name__)

PASS_S = 10.0
IMAGES_EVERY_S = 300.0
CLEANUP_S, CLEANUP_LOOK_S = 30.0, 0.25          # how long a pass waits for a victim to be gone
HARD_GRACE_S = 1


class Room:
    """One for a kubelet; `conditions` are the pressures the node is under."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet, self.sampler = kubelet, Sampler(kubelet)
        self.shortages = Shortages()
        self.evicted: dict[str, int] = {}                            # signal -> pods
        self._unused_since: dict[str, float] = {}                    # image -> when it was first seen without a container

    @property
    def conditions(self) -> frozenset[str]:
        return self.shortages.conditions

    async def run(self) -> None:
        """Until cancelled."""
        k = self.kubelet
        await k.sourced.wait()
        looked = k.clock()
        while True:
            try:
                victim = await self._storage() or await self._relieve()
                if victim is not None:
                    await self._gone(victim)
                    continue
                if abs(k.clock() - looked) > IMAGES_EVERY_S:
                    looked = k.clock()
                    await self._images()
            except (RuntimeFailure, OSError) as e:
                log.info("making room: %s", e)
            await asyncio.sleep(PASS_S)

    async def _gone(self, w: Worker) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEANUP_S):
                while not w.terminated:  # noqa: ASYNC110
                    await asyncio.sleep(CLEANUP_LOOK_S)

    def _end(self, w: Worker, message: str, grace_s: int) -> None:
        self.kubelet.tell(w.pod, "", "Warning", evict.REASON, message)
        w.fail((evict.REASON, message), grace_s, message)

    # --- what there is ---

    async def observe(self) -> dict[str, Amount]:
        k = self.kubelet
        memory = node_memory()
        out = {"memory.available": Amount(memory["available"], memory["total"])}
        if k.cgroups is not None and k.settings.cgroup_root:
            limit = k.presence.pods_memory
            if limit:
                used = await asyncio.to_thread(k.cgroups.usage, f"{k.settings.cgroup_root}/kubepods")
                out["allocatableMemory.available"] = Amount(limit - used["working_set"], limit)
        mount, _, _ = await k.runtime.image_fs()
        for name, path in (("nodefs", k.settings.root), ("imagefs", mount), ("containerfs", mount)):
            with contextlib.suppress(OSError):
                st = await asyncio.to_thread(os.statvfs, path)
                out[f"{name}.available"] = Amount(st.f_bavail * st.f_frsize, st.f_blocks * st.f_frsize)
                if st.f_files:
                    out[f"{name}.inodesFree"] = Amount(st.f_favail, st.f_files)
        with contextlib.suppress(OSError, ValueError, IndexError):
            out["pid.available"] = await asyncio.to_thread(_processes)
        return out

    # --- shortages ---

    async def _relieve(self) -> Worker | None:
        """One pass; the pod that was ended, if one was."""
        k = self.kubelet
        c = k.configuration
        seen = await self.observe()
        before = self.shortages.conditions
        self.shortages, due = evict.judge(self.shortages, c.thresholds, seen, k.clock(), c.transition_s)
        if before != self.shortages.conditions:
            k.presence.nudge()
        if not due:
            return None
        worst = due[0]
        resource = evict.RESOURCE[worst.signal]
        k.tell_node("Warning", "EvictionThresholdMet", f"Attempting to reclaim {resource}")
        if evict.CONDITION[worst.signal] == evict.DISK and await self._reclaim(worst):
            return None
        victim = await self._victim(worst, resource, seen[worst.signal])
        if victim is None:
            log.info("%s is short, and there is no pod to evict", worst.signal)
        return victim

    async def _reclaim(self, worst: Threshold) -> bool:
        """Removes dead containers and unused images; whether that was enough."""
        await self._dead_containers()
        await self._remove_images(await self._unused(), None)
        return not evict.crossed((worst,), await self.observe())

    async def _victim(self, worst: Threshold, resource: str, have: Amount) -> Worker | None:
        k = self.kubelet
        alive = [w for w in k.workers.values() if w.admitted and not w.terminated and not w.failed]
        used: dict[str, int] = {}
        containers: dict[str, dict[str, int]] = {}
        if resource == "memory":
            for p in (await self.sampler.sample()).pods:
                used[p.uid] = p.whole.working_set
                containers[p.uid] = {n: f.working_set for n, f in p.containers.items()}
        elif resource == "pids":
            for w in alive:
                used[w.uid] = await asyncio.to_thread(k.cgroups.processes, config.cgroup_parent(k.actor.node, w.pod)) if k.cgroups else 0
        else:
            layers = await self._layers()
            for w in alive:
                containers[w.uid], volumes = await self._disk_of(w, layers)
                used[w.uid] = sum(containers[w.uid].values()) + sum(volumes.values())
        order = evict.rank(resource, [(w.pod, used.get(w.uid, 0)) for w in alive])
        if not order:
            return None
        pod = order[0][0]
        w = k.workers[pod["metadata"]["uid"]]
        grace = HARD_GRACE_S if not worst.grace_s else min(k.configuration.eviction_grace_max_s, pod["spec"].get("terminationGracePeriodSeconds") or 30)
        self.evicted[worst.signal] = self.evicted.get(worst.signal, 0) + 1
        self._end(w, evict.low_message(resource, pod, containers.get(w.uid, {}), worst.limit(have.capacity), have.available), grace)
        return w

    # --- pods beyond their own limits ---

    async def _layers(self) -> dict[str, int]:
        """Container -> bytes of its layer: of all at once, so asked once for all pods that are measured."""
        return {u.id: u.fs_used for u in await self.kubelet.runtime.usage()}

    async def _disk_of(self, w: Worker, layers: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes by container (its layer and logs) and by emptyDir volume on disk."""
        k = self.kubelet
        logs = config.log_directory(k.actor.node, w.pod)
        containers: dict[str, int] = {}
        for c in k.observer.seen(w.uid).containers:
            if c.name not in containers:
                containers[c.name] = layers.get(c.id, 0) + await asyncio.to_thread(size, f"{logs}/{c.name}")
        volumes: dict[str, int] = {}
        for v in k.volumes.ready.get(w.uid, {}).values():
            if v.source == "emptyDir" and not _in_memory(w.pod, v.name):
                volumes[v.name] = await asyncio.to_thread(size, v.path)
        return containers, volumes

    async def _storage(self) -> Worker | None:
        """Pods beyond their own limits of local storage; only those that have such limits are measured."""
        layers: dict[str, int] | None = None
        for w in list(self.kubelet.workers.values()):
            spec = w.pod["spec"]
            sized = any((v.get("emptyDir") or {}).get("sizeLimit") for v in spec.get("volumes") or ())
            limited = any("ephemeral-storage" in ((c.get("resources") or {}).get("limits") or {}) for c in spec.get("containers") or ())
            if w.terminated or w.failed or not (sized or limited):
                continue
            layers = await self._layers() if layers is None else layers
            containers, volumes = await self._disk_of(w, layers)
            message = evict.over_limit(w.pod, volumes, containers if limited else {})
            if message:
                self._end(w, message, HARD_GRACE_S)
                return w
        return None

    # --- images and dead containers ---

    async def _dead_containers(self) -> None:
        """Ended containers of pods that are over, and older ends of containers that run again."""
        k = self.kubelet
        for uid in k.observer.pods():
            w = k.workers.get(uid)
            seen = k.observer.seen(uid)
            for c in seen.containers:
                if c.state == EXITED and (w is None or w.terminated or seen.latest(c.name) is not c):
                    with contextlib.suppress(RuntimeFailure):
                        await k.runtime.remove(c.id)

    async def _unused(self) -> list[Any]:
        """Images no container uses."""
        k = self.kubelet
        in_use = {c.image_id for uid in k.observer.pods() for c in k.observer.seen(uid).containers}
        return [i for i in await k.runtime.images()
                if not (i.pinned or i.id in in_use or in_use & {*i.digests, *i.tags})]

    async def _images(self) -> None:
        """Above the high mark unused images go, those out of use for longest first, until the low mark is reached; and those that are too old."""
        k = self.kubelet
        c = k.configuration
        now = k.clock()
        unused = await self._unused()
        self._unused_since = {i.id: self._unused_since.get(i.id, now) for i in unused}
        if c.image_age_max_s:
            await self._remove_images([i for i in unused if now - self._unused_since[i.id] > c.image_age_max_s], None, "age")
        mount, _, _ = await k.runtime.image_fs()
        total, used = await asyncio.to_thread(_disk, mount)
        if not total or used < total * c.image_high:
            return
        old = [i for i in unused if now - self._unused_since[i.id] >= c.image_age_min_s]
        wanted = used - int(total * c.image_low)
        freed = await self._remove_images(sorted(old, key=lambda i: (self._unused_since[i.id], -i.size)), wanted)
        if freed < wanted:
            k.tell_node("Warning", "FreeDiskSpaceFailed", f"Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, "
                                                          f"but only found {freed} bytes eligible to free.")

    async def _remove_images(self, doomed: list[Any], wanted: int | None, why: str = "space") -> int:
        freed = 0
        for image in doomed:
            if wanted is not None and freed >= wanted:
                break
            with contextlib.suppress(RuntimeFailure):
                await self.kubelet.runtime.remove_image(image.id)
                log.info("removed image %s", image.tags or image.id)
                self.kubelet.measures.count("image_garbage_collected_total", why)
                freed += image.size
        return freed


def _in_memory(pod: Any, volume: str) -> bool:
    return any(v["name"] == volume and (v.get("emptyDir") or {}).get("medium") == "Memory" for v in pod["spec"].get("volumes") or ())


def _processes() -> Amount:
    """Processes the machine still has room for."""
    with open("/proc/sys/kernel/pid_max") as f, open("/proc/sys/kernel/threads-max") as g, open("/proc/loadavg") as h:
        most = min(int(f.read()), int(g.read()))
        return Amount(most - int(h.read().split()[3].partition("/")[2]), most)


def _disk(mount: str) -> tuple[int, int]:
    """(bytes, bytes used)."""
    st = os.statvfs(mount if os.path.isdir(mount) else "/")
    return st.f_blocks * st.f_frsize, (st.f_blocks - st.f_bavail) * st.f_frsize


def size(path: str) -> int:
    """Bytes allocated below a directory."""
    total = 0
    for d, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(d, name)).st_blocks * 512
            except OSError:
                continue
    return total
