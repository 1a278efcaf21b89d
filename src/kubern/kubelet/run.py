"""Kubelet: a node's agent. Registers the node, follows its pods, keeps a worker a pod, writes statuses back.

`run(settings, client)` until cancelled. Without a client it runs the static pods of a directory alone. The decisions are in plan.py,
status.py, admit.py; the hands are act.py, volumes.py, probes.py; this file joins them and holds what they share.
Upstream: pkg/kubelet/kubelet.go, status/status_manager.go, pod_workers.go, config.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubern.client.client import Client
from kubern.client.events import Recorder
from kubern.client.mirror import Mirror
from kubern.client.watch import follow
from kubern.kubelet import cdi, house, identity, numa, plugins, podresources, pods, report
from kubern.kubelet import container as config
from kubern.kubelet.act import Actor
from kubern.kubelet.backoff import INITIAL_S, Backoff
from kubern.kubelet.cgroups import Cgroups
from kubern.kubelet.claims import Claims
from kubern.kubelet.collect import Room
from kubern.kubelet.configuration import Configuration
from kubern.kubelet.cpus import Cpus
from kubern.kubelet.csi import Drivers
from kubern.kubelet.csi_upkeep import Upkeep
from kubern.kubelet.devices import Devices
from kubern.kubelet.grants import Grants, check
from kubern.kubelet.measure import Measures
from kubern.kubelet.memory import Memory
from kubern.kubelet.objects import Objects
from kubern.kubelet.observe import Observer
from kubern.kubelet.plan import Memory as Remembered
from kubern.kubelet.presence import Presence
from kubern.kubelet.probes import Prober
from kubern.kubelet.pull import Puller
from kubern.kubelet.report import Reporter
from kubern.kubelet.runtime import Runtime, RuntimeFailure
from kubern.kubelet.shutdown import shut_down
from kubern.kubelet.static import StaticPods
from kubern.kubelet.volumes import Needs, Volumes
from kubern.kubelet.worker import Worker
from kubern.model import quantity
from kubern.model.intent import Emit
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

PODS = by_path["", "v1", "pods"]
RUNTIME_CLASSES, SERVICES = by_path["node.k8s.io", "v1", "runtimeclasses"], by_path["", "v1", "services"]
RETRY_S = 1.0
SHUTDOWN_S = 3.0


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """One node. Paths are of its own mount namespace."""

    name: str
    addresses: tuple[str, ...]
    socket: str = "/run/containerd/containerd.sock"
    root: str = "/var/lib/kubelet"
    log_root: str = "/var/log/pods"
    container_logs: str = ""                       # directory of links to the logs of containers, for collectors; "" = none
    cgroup_root: str = ""                          # "" = no pod cgroups
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    capacity: Mapping[str, str] = field(default_factory=dict)
    version: str = "v1.36.0"
    resolv_conf: str = "/etc/resolv.conf"
    static_pods: str = ""                          # directory with manifests
    listen: str = "0.0.0.0"
    port: int = 10250                              # 0 = no server
    client_ca: str = ""                            # file: who may speak to the server
    tls_cert: str = ""                             # files; made on the spot when missing
    tls_key: str = ""
    lease_s: float = 40.0                          # how long the node's lease holds; renewed four times in that
    serving_csr: bool = False                      # have the server's certificate signed by the cluster
    configuration: Configuration = field(default_factory=Configuration)
    document: Mapping[str, Any] = field(default_factory=dict)      # the KubeletConfiguration that became it, for /configz


class Kubelet:
    def __init__(self, s: KubeletSettings, client: Client | None, runtime: Runtime, clock: Callable[[], float] = time.time,
                 on_pod_cidrs: Callable[[list[str]], None] | None = None) -> None:
        self.settings, self.client, self.runtime, self.clock, self.on_pod_cidrs = s, client, runtime, clock, on_pod_cidrs
        self.began_s = clock()
        self.configuration = s.configuration
        self.shutting_down = False
        self.measures = Measures()
        if hasattr(runtime, "operations"):
            runtime.operations = self.measures.operations
        self.workers: dict[str, Worker] = {}
        self.host_ips = s.addresses
        self.presence = Presence(self)
        self.reporter = Reporter(self)
        self.statics = StaticPods(self)
        self.cgroups = Cgroups(s.cgroup_root) if s.cgroup_root else None
        self.room = Room(self)
        self.recorder = Recorder(client, clock, s.name) if client else None
        self.observer = Observer(runtime, self.wake, self.measures)
        self.prober = Prober(runtime, self._probed_status, self.tell, self.wake, clock)
        self.objects = Objects(client, self._refresh, clock)
        self.csi = Drivers(client, s.name, s.root)
        if client is not None:
            self.csi.nudge = self.presence.nudge
        self.claims = Claims(client, s.name, s.root)
        self.devices = Devices(s.root, clock, self.presence.nudge, self.measures)
        self.layout = numa.read()
        self.cpus, self.memory = self._cpus(), self._memory()
        self.grants = Grants(self.layout, [g for g in (self.devices, self.cpus, self.memory) if g is not None], self.configuration.alignment)
        self.volumes = Volumes(s.root, Needs(self.objects.lookup, self.objects.token, self.objects.claim, self.csi.publish, self.csi.unpublish,
                                            runtime.image_mounts, runtime.release))
        self.puller = Puller(runtime, clock, self.configuration.pulls_max, self.measures)
        self.services = Mirror(client, SERVICES) if client else None
        node = config.Node(s.name, s.cgroup_root, s.log_root, s.cluster_domain, s.cluster_dns, _resolver(s.resolv_conf),
                           self.presence.machine.memory_bytes, f"{s.root}/seccomp", self.configuration.pids_max,
                           self.configuration.seccomp_default, self.configuration.cpu_quota, swap_bytes(),
                           self.configuration.limited_swap, bool(self.cgroups and self.cgroups.h.v2))
        self.actor = Actor(runtime, node, s.root, self.volumes, self.objects, self.puller, self.tell, clock, self._services_of, self.cgroups,
                           _node_hosts, self._handler, self.claims, self.devices, self.cpus, self.memory,
                           container_logs=s.container_logs, measures=self.measures)
        self.sourced = asyncio.Event()                  # the API's (or the directory's) pods were read once
        self.ready = asyncio.Event()
        self.cpus_changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def _cpus(self) -> Cpus | None:
        c = self.configuration
        if c.cpu_policy != "static":
            return None
        return Cpus(self.settings.root, self.layout, quantity.milli(c.reserved.get("cpu", "0")), c.reserved_cpus, c.cpu_options)

    def _memory(self) -> Memory | None:
        c = self.configuration
        withheld = {r: quantity.value(v) for r, v in c.reserved.items() if r == "memory" or r.startswith("hugepages-")}
        hard = next((t for t in c.thresholds if t.signal == "memory.available" and not t.grace_s), None)
        withheld["memory"] = withheld.get("memory", 0) + (hard.limit(self.presence.machine.memory_bytes) if hard else 0)
        check(self.layout, c.alignment, c.cpu_options.align_by_socket, c.memory_reserved, withheld)
        return Memory(self.settings.root, self.layout, c.memory_reserved) if c.memory_policy == "Static" else None

    # --- shared by workers ---

    def tell(self, pod: Object, container: str, type_: str, reason: str, message: str) -> None:
        """An event about a pod (or one of its containers)."""
        log.info("%s %s: %s %s", pods.describe(pod), container, reason, message)
        if self.recorder is None or pods.is_static(pod):
            return
        regarding: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": pod["metadata"]}
        if container:
            for group, key in (("init", "initContainers"), ("container", "containers"), ("ephemeral", "ephemeralContainers")):
                if any(k == group and c["name"] == container for k, c in pods.every_container(pod["spec"])):
                    regarding["fieldPath"] = f"spec.{key}{{{container}}}"
                    break
        self.recorder.emit("kubelet", Emit(regarding, type_, reason, message))

    def tell_node(self, type_: str, reason: str, message: str) -> None:
        if self.recorder is not None:
            s = self.settings
            self.recorder.emit("kubelet", Emit({"kind": "Node", "metadata": {"name": s.name, "uid": s.name}}, type_, reason, message))

    def wake(self, uid: str) -> None:
        w = self.workers.get(uid)
        if w is not None:
            w.notify()

    def report(self, w: Worker) -> None:
        """The worker's status is to be written, if it says something new."""
        self.reporter.report(w)

    @property
    def allocatable(self) -> Mapping[str, str]:
        return self.presence.allocatable

    @property
    def registered(self) -> asyncio.Event:
        """The Node exists."""
        return self.presence.registered

    def active_pods(self) -> list[Object]:
        """Those that hold resources of this node."""
        return [w.pod for w in self.workers.values()
                if w.admitted and not w.terminated and w.status.get("phase") not in ("Succeeded", "Failed")]

    def worker_of(self, namespace: str, name: str) -> Worker | None:
        return next((w for w in self.workers.values()
                     if w.pod["metadata"]["name"] == name and (w.pod["metadata"].get("namespace") or "") == namespace), None)

    def _services_of(self, namespace: str) -> Sequence[Object]:
        if self.services is None:
            return ()
        found = list(self.services.list(namespace))
        master = self.services.get("default", "kubernetes")
        return [*found, master] if master and namespace != "default" else found

    def _probed_status(self, uid: str, container: str) -> tuple[str, Mapping[str, Any] | None]:
        w = self.workers.get(uid)
        if w is None:
            return "", None
        for key in ("containerStatuses", "initContainerStatuses"):
            for s in w.status.get(key) or ():
                if s["name"] == container:
                    return w.status.get("podIP") or "", s
        return "", None

    async def _handler(self, name: str) -> str:
        """The runtime's handler of a RuntimeClass."""
        if self.client is None:
            return name
        try:
            return str((await self.client.get(RUNTIME_CLASSES, "", name)).get("handler") or "")
        except StatusError as e:
            raise RuntimeFailure("NOT_FOUND", f'failed to get sandbox runtime: RuntimeClass "{name}" not found' if e.code == 404 else e.message) from None

    def _refresh(self, uid: str) -> None:
        """A config map or secret of this pod changed."""
        w = self.workers.get(uid)
        if w is not None and not w.terminated:
            w.retry_at.clear()
            self.spawn(self._refresh_volumes(w))

    async def _refresh_volumes(self, w: Worker) -> None:
        await self.refresh_volumes(w)
        w.notify()

    async def refresh_volumes(self, w: Worker) -> None:
        try:
            await self.volumes.refresh(w.pod, w.values(self.observer.seen(w.uid)))
        except (StatusError, OSError) as e:
            log.info("volumes of %s: %s", pods.describe(w.pod), e)

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- life ---

    async def run(self) -> None:
        s = self.settings
        os.makedirs(f"{s.root}/pods", exist_ok=True)
        os.makedirs(s.log_root, exist_ok=True)
        if self.configuration.limited_swap and self.cgroups is not None and not self.cgroups.h.v2:
            raise RuntimeError("memorySwap.swapBehavior: LimitedSwap needs cgroup v2")
        if self.configuration.fail_swap_on and swap_bytes():
            raise RuntimeError("running with swap on is not supported, please disable swap or set failSwapOn to false in the kubelet's configuration")
        name, version = await self._until_answered(self.runtime.version)
        self.presence.runtime_is(name, version)
        self.actor.native_cdi = cdi.native(name, version)
        if self.cgroups is not None:
            await asyncio.to_thread(self.presence.enforce, self.cgroups)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.observer.run(), name="observer")
                group.create_task(self.presence.watch_runtime(), name="conditions")
                if self.client is not None:
                    assert self.recorder is not None and self.services is not None
                    group.create_task(self.recorder.run(), name="events")
                    group.create_task(self.services.run(), name="services")
                    group.create_task(self.presence.keep(), name="node")
                    group.create_task(self.presence.beat(), name="lease")
                    for i in range(report.WRITERS):
                        group.create_task(self.reporter.write(), name=f"status-{i}")
                    await self.services.synced.wait()
                await self.observer.relisted.wait()
                if s.port:
                    from kubern.kubelet.serve import serve

                    group.create_task(serve(self), name="server")
                if self.client is not None:
                    group.create_task(follow(self.client, PODS, self._pods_listed, self._pod_event, fields=f"spec.nodeName={s.name}"), name="pods")
                    group.create_task(self.presence.follow(), name="node watch")
                    group.create_task(self._plugins(), name="plugins")
                    group.create_task(self.claims.run(lambda: [w.uid for w in self.workers.values() if not w.terminated], self.sourced), name="claims")
                if s.static_pods:
                    group.create_task(self.statics.run(), name="static pods")
                elif self.client is None:
                    self.sourced.set()
                group.create_task(house.housekeeping(self), name="housekeeping")
                if self.recorder is not None:
                    recorder = self.recorder
                    group.create_task(Upkeep(self.csi, lambda told: recorder.emit("kubelet", told), self.clock).run(), name="csi")
                group.create_task(house.rotate_logs(self), name="logs")
                group.create_task(self.room.run(), name="room")
                group.create_task(self.devices.run(), name="device plugins")
                group.create_task(podresources.serve(self), name="pod resources")
                if self.cpus is not None:
                    group.create_task(house.reconcile_cpus(self, self.cpus), name="cpus")
                self.ready.set()
        finally:
            await self._close()

    async def _plugins(self) -> None:
        await self.presence.registered.wait()
        await plugins.watch(self.settings.root, {"CSIPlugin": self.csi, "DRAPlugin": self.claims, "DevicePlugin": self.devices})

    async def _until_answered(self, ask: Callable[[], Awaitable[tuple[str, str]]]) -> tuple[str, str]:
        while True:
            try:
                return await ask()
            except RuntimeFailure as e:
                log.info("the runtime does not answer yet: %s", e)
                await asyncio.sleep(RETRY_S)

    async def _close(self) -> None:
        """Leaves the containers running."""
        tasks = [w.task for w in self.workers.values() if w.task] + list(self._tasks)
        for t in tasks:
            t.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.prober.close()
                await self.objects.close()
        await self.runtime.close()

    # --- pods come and go ---

    def _pods_listed(self, items: list[Object], _revision: int) -> None:
        uids = {p["metadata"]["uid"] for p in items}
        for p in items:
            self._pod_event("MODIFIED", p)
        for uid, w in list(self.workers.items()):
            if uid not in uids and not pods.is_static(w.pod):
                self.lost(w)
        self.sourced.set()

    def _pod_event(self, type_: str, pod: Object) -> None:
        if type_ == "BOOKMARK":
            return
        notes = pod["metadata"].get("annotations") or {}
        if pods.MIRROR in notes:
            self.statics.mirror_event(type_, pod)
            return
        pod.setdefault("apiVersion", "v1")
        pod.setdefault("kind", "Pod")
        uid = pod["metadata"]["uid"]
        w = self.workers.get(uid)
        if type_ == "DELETED":
            if w is not None:
                w.pod = pod
                self.lost(w)
            return
        if w is None:
            self.begin(pod)
        else:
            before = w.pod
            w.changed_pod(pod)
            if _shown(before) != _shown(pod):
                self._refresh(uid)

    def begin(self, pod: Object) -> Worker:
        uid = pod["metadata"]["uid"]
        longest = self.configuration.crash_backoff_max_s
        w = self.workers[uid] = Worker(self, pod, memory=Remembered(backoff=Backoff(min(INITIAL_S, longest), longest)))
        w.admitted = w.adopted = bool(self.observer.seen(uid).containers)
        w.seen_s = self.clock()
        w.task = asyncio.create_task(self._work(w), name=f"pod-{pod['metadata']['name']}")
        self.measures.count("started_pods_total")
        self.measures.containers.observe(len(pod["spec"].get("containers") or ()))
        return w

    def lost(self, w: Worker) -> None:
        """Its API object is gone: end what is left of it."""
        w.gone = True
        w.notify()

    async def _work(self, w: Worker) -> None:
        await w.run()
        while not w.gone:
            w.wake.clear()
            await w.wake.wait()
        await self._forget(w)

    async def _forget(self, w: Worker) -> None:
        """The last traces: containers, logs."""
        uid = w.uid
        while True:
            try:
                seen = await self.observer.look(uid)
                await self.actor.remove_pod(seen)
                await self.observer.look(uid)
                break
            except RuntimeFailure as e:
                log.info("removing %s: %s", pods.describe(w.pod), e)
                await asyncio.sleep(RETRY_S)
        await self.actor.remove_logs(w.pod)
        if w.mirror is not None:
            m = w.mirror["metadata"]
            await self.statics.delete_mirror(m["namespace"], m["name"], m["uid"])
        self.puller.forget(uid)
        self.workers.pop(uid, None)
        self.reporter.forget(uid)

def _shown(pod: Object) -> tuple[Any, Any]:
    """What the downward API shows and can change."""
    return pod["metadata"].get("labels"), pod["metadata"].get("annotations")


def _resolver(path: str) -> identity.Resolver:
    try:
        with open(path) as f:
            return identity.parse_resolver(f.read())
    except OSError:
        return identity.NO_RESOLVER


def swap_bytes(path: str = "/proc/swaps") -> int:
    """Swap the machine has in use."""
    try:
        with open(path) as f:
            return sum(int(line.split()[2]) << 10 for line in f.read().splitlines()[1:])
    except (OSError, ValueError, IndexError):
        return 0


def _node_hosts() -> str:
    try:
        with open("/etc/hosts") as f:
            return f.read()
    except OSError:
        return ""


async def run(settings: KubeletSettings, client: Client | None, *, runtime: Runtime | None = None, clock: Callable[[], float] = time.time,
              on_pod_cidrs: Callable[[list[str]], None] | None = None, ready: Callable[[], None] | None = None,
              leaving: asyncio.Event | None = None) -> None:
    """A kubelet until cancelled; its containers go on. `ready` is called when it looks after pods. `leaving`: once it is set the pods are
    ended as the configuration says, and this returns."""
    if runtime is None:
        from kubern.kubelet.cri import Cri

        runtime = Cri(settings.socket)
    kubelet = Kubelet(settings, client, runtime, clock, on_pod_cidrs)
    async with asyncio.TaskGroup() as group:
        work = group.create_task(kubelet.run())
        await kubelet.ready.wait()
        if ready is not None:
            ready()
        if leaving is not None:
            await leaving.wait()
            await shut_down(kubelet)
            work.cancel()
