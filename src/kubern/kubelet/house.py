"""What a kubelet does beside its pods: things that belong to nobody go, volumes follow the clock, logs are rotated, cpus are shared anew.

Each function runs until cancelled. Upstream: pkg/kubelet kubelet_pods.go HandlePodCleanups, kuberuntime_gc.go, pkg/kubelet/logs, cpumanager reconcile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from kubern.kubelet import container as config
from kubern.kubelet import pods
from kubern.kubelet.cpus import Cpus
from kubern.kubelet.logs import rotate
from kubern.kubelet.runtime import RUNNING, RuntimeFailure
from kubern.model import quantity
from kubern.model.object import Object

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)

HOUSEKEEPING_S = 2.0
CPUS_EVERY_S = 10.0
VOLUME_REFRESH_S = 60.0
ORPHAN_GRACE_S = 10


async def housekeeping(k: Kubelet) -> None:
    """Pods of the runtime, cgroups and directories that belong to nobody; volumes that follow the clock (tokens)."""
    await k.sourced.wait()
    refreshed = k.clock()
    doomed: set[str] = set()
    burstable = 0
    while True:
        try:
            if k.cgroups is not None and (now := burstable_milli(k)) != burstable:
                burstable = now
                await asyncio.to_thread(k.cgroups.apply, f"{k.settings.cgroup_root}/kubepods/burstable", {"cpu_shares": config.shares(now)})
            for uid in k.observer.pods():
                if uid and uid not in k.workers and uid not in doomed:
                    doomed.add(uid)
                    k.measures.count("orphaned_runtime_pods_total")
                    k.spawn(end_orphan(k, uid, doomed))
            known = set(k.workers) | set(k.observer.pods())
            for uid in k.volumes.left_over():
                if uid not in known:
                    await k.volumes.tear_down(uid)
            if k.cgroups is not None:
                for uid, path in (await asyncio.to_thread(k.cgroups.pods)).items():
                    if uid not in known:
                        await asyncio.to_thread(k.cgroups.remove, path)
        except (OSError, RuntimeFailure) as e:
            log.info("housekeeping: %s", e)
        if abs(k.clock() - refreshed) > VOLUME_REFRESH_S:             # abs, here and elsewhere: clocks are set back, too
            refreshed = k.clock()
            await asyncio.to_thread(_drop_dead_links, k.settings.container_logs)
            for w in list(k.workers.values()):
                if not w.terminated:
                    await k.refresh_volumes(w)
        await asyncio.sleep(HOUSEKEEPING_S)


def burstable_milli(k: Kubelet) -> int:
    """Millicores that the burstable pods of this node asked for together: their class's share of the cpu."""
    return sum(quantity.milli(pods.resources(p["spec"], "requests").get("cpu", "0")) for p in k.active_pods() if pods.qos_class(p) == "Burstable")


async def end_orphan(k: Kubelet, uid: str, doomed: set[str]) -> None:
    """A pod that was deleted while nobody was looking."""
    seen = k.observer.seen(uid)
    s = seen.sandboxes[0] if seen.sandboxes else None
    pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": s.name if s else "", "namespace": s.namespace if s else "", "uid": uid,
                                                                   "annotations": {pods.STATIC_SOURCE: "orphan"}},
                   "spec": {"containers": [{"name": c.name} for c in seen.containers]}, "status": {"qosClass": "BestEffort"}}
    try:
        if seen.running:
            await k.actor.stop_pod(pod, seen, ORPHAN_GRACE_S)
        await k.actor.remove_pod(await k.observer.look(uid))
        if s:
            await k.actor.remove_logs(pod)
        await k.volumes.tear_down(uid)
        await k.observer.look(uid)
    except RuntimeFailure as e:
        log.info("orphaned pod %s: %s", uid, e)
    finally:
        doomed.discard(uid)


async def rotate_logs(k: Kubelet) -> None:
    while True:
        await asyncio.sleep(k.configuration.log_check_s)
        running = [(c.id, c.log_path) for uid in k.observer.pods() for c in k.observer.seen(uid).containers
                   if c.state == RUNNING and c.log_path]
        try:
            await rotate(running, k.runtime.reopen_log, k.configuration.log_bytes, k.configuration.log_files)
        except (OSError, RuntimeFailure) as e:
            log.info("rotating logs: %s", e)


async def reconcile_cpus(k: Kubelet, cpus: Cpus) -> None:
    """Containers that share cpus follow as others take or leave some."""
    told: dict[str, str] = {}
    while True:
        alive = {}
        for w in list(k.workers.values()):
            for c in k.observer.seen(w.uid).containers:
                if c.state == RUNNING:
                    alive[c.id] = cpus.of(w.uid, c.name)
        for id_, wanted in alive.items():
            if told.get(id_) != wanted:
                try:
                    await k.runtime.update(id_, {"cpuset_cpus": wanted})
                except RuntimeFailure as e:
                    log.info("cpus of %s: %s", id_, e)
                    alive[id_] = ""
        told = alive
        k.cpus_changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CPUS_EVERY_S):
                await k.cpus_changed.wait()


def _drop_dead_links(folder: str) -> None:
    """Links to logs that are not there any more."""
    for name in os.listdir(folder) if folder and os.path.isdir(folder) else ():
        if not os.path.exists(f"{folder}/{name}"):
            with contextlib.suppress(OSError):
                os.unlink(f"{folder}/{name}")
