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
from dataclasses import dataclass, field, replace
from typing import Any

from kubern.client.client import Client
from kubern.client.events import Recorder
from kubern.client.lease import micro_time
from kubern.client.mirror import Mirror
from kubern.client.watch import follow
from kubern.kubelet import collect, identity, pods, registration
from kubern.kubelet import container as config
from kubern.kubelet.act import Actor
from kubern.kubelet.cgroups import Cgroups
from kubern.kubelet.logs import ROTATE_CHECK_S, rotate
from kubern.kubelet.objects import Objects
from kubern.kubelet.observe import Observer
from kubern.kubelet.probes import Prober
from kubern.kubelet.pull import Puller
from kubern.kubelet.runtime import RUNNING, Runtime, RuntimeFailure
from kubern.kubelet.status import changed
from kubern.kubelet.volumes import Needs, Volumes
from kubern.kubelet.worker import Worker
from kubern.model.intent import Emit
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

PODS, NODES, LEASES = by_path["", "v1", "pods"], by_path["", "v1", "nodes"], by_path["coordination.k8s.io", "v1", "leases"]
RUNTIME_CLASSES, SERVICES = by_path["node.k8s.io", "v1", "runtimeclasses"], by_path["", "v1", "services"]
LEASE_S, RENEW_S = 40, 10.0
STATUS_CHECK_S, STATUS_EVERY_S = 10.0, 300.0
STATUS_WRITERS = 4
HOUSEKEEPING_S = 2.0
RETRY_S = 1.0
VOLUME_REFRESH_S = 60.0
ORPHAN_GRACE_S = 10
SHUTDOWN_S = 3.0


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """One node. Paths are of its own mount namespace."""

    name: str
    addresses: tuple[str, ...]
    socket: str = "/run/containerd/containerd.sock"
    root: str = "/var/lib/kubelet"
    log_root: str = "/var/log/pods"
    cgroup_root: str = ""                          # "" = no pod cgroups
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    pods_max: int = 110
    capacity: Mapping[str, str] = field(default_factory=dict)
    reserved: Mapping[str, str] = field(default_factory=dict)
    version: str = "v1.36.0"
    resolv_conf: str = "/etc/resolv.conf"
    static_pods: str = ""                          # directory with manifests
    listen: str = "0.0.0.0"
    port: int = 10250                              # 0 = no server
    client_ca: str = ""                            # file: who may speak to the server
    tls_cert: str = ""                             # files; made on the spot when missing
    tls_key: str = ""
    pod_pids_max: int = -1
    anonymous: bool = False


class Kubelet:
    def __init__(self, s: KubeletSettings, client: Client | None, runtime: Runtime, clock: Callable[[], float] = time.time,
                 on_pod_cidrs: Callable[[list[str]], None] | None = None) -> None:
        self.settings, self.client, self.runtime, self.clock, self.on_pod_cidrs = s, client, runtime, clock, on_pod_cidrs
        self.began_s = clock()
        self.workers: dict[str, Worker] = {}
        self.host_ips = s.addresses
        self.machine = registration.facts_of_machine(s.root if os.path.isdir(s.root) else "/")
        self.node_settings = registration.NodeSettings(s.name, s.addresses, s.port, s.pods_max, s.labels, s.taints, s.reserved, s.version,
                                                       "", s.capacity)
        self.allocatable = registration.allocatable(registration.capacity(self.machine, self.node_settings), self.node_settings)
        self.node_object: Object | None = None
        self.network_ready, self.network_problem = False, "not checked yet"
        self.runtime_problem = ""
        self.cgroups = Cgroups(s.cgroup_root) if s.cgroup_root else None
        self.recorder = Recorder(client, clock, s.name) if client else None
        self.observer = Observer(runtime, self.wake)
        self.prober = Prober(runtime, self._probed_status, self.tell, self.wake, clock)
        self.objects = Objects(client, self._refresh, clock)
        self.volumes = Volumes(s.root, Needs(self.objects.lookup, self.objects.token, self.objects.claim))
        self.puller = Puller(runtime, clock)
        self.services = Mirror(client, SERVICES) if client else None
        node = config.Node(s.name, s.cgroup_root, s.log_root, s.cluster_domain, s.cluster_dns, _resolver(s.resolv_conf),
                           self.machine.memory_bytes, f"{s.root}/seccomp", s.pod_pids_max)
        self.actor = Actor(runtime, node, s.root, self.volumes, self.objects, self.puller, self.tell, clock, self._services_of, self.cgroups,
                           _node_hosts, self._handler)
        self.sourced = asyncio.Event()                  # the API's (or the directory's) pods were read once
        self.registered = asyncio.Event()
        self.ready = asyncio.Event()
        self._dirty: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._writing: set[str] = set()
        self._sent: dict[str, Any] = {}                 # uid -> status last sent
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lease: Object | None = None
        self._cidrs: list[str] = []
        self.started_pods = 0

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
            self._spawn(self._refresh_volumes(w))

    async def _refresh_volumes(self, w: Worker) -> None:
        try:
            await self.volumes.refresh(w.pod, w.values(self.observer.seen(w.uid)))
        except (StatusError, OSError) as e:
            log.info("volumes of %s: %s", pods.describe(w.pod), e)
        w.notify()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- life ---

    async def run(self) -> None:
        s = self.settings
        os.makedirs(f"{s.root}/pods", exist_ok=True)
        os.makedirs(s.log_root, exist_ok=True)
        name, version = await self._until_answered(self.runtime.version)
        self.node_settings = replace(self.node_settings, runtime_version=f"{name}://{version}")
        if self.cgroups is not None:
            await asyncio.to_thread(self.cgroups.setup)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.observer.run(), name="observer")
                group.create_task(self._conditions(), name="conditions")
                if self.client is not None:
                    assert self.recorder is not None and self.services is not None
                    group.create_task(self.recorder.run(), name="events")
                    group.create_task(self.services.run(), name="services")
                    group.create_task(self._node(), name="node")
                    group.create_task(self._heartbeat(), name="lease")
                    for i in range(STATUS_WRITERS):
                        group.create_task(self._write(), name=f"status-{i}")
                    await self.services.synced.wait()
                await self.observer.relisted.wait()
                if s.port:
                    from kubern.kubelet.serve import serve

                    group.create_task(serve(self), name="server")
                if self.client is not None:
                    group.create_task(follow(self.client, PODS, self._pods_listed, self._pod_event, fields=f"spec.nodeName={s.name}"), name="pods")
                    group.create_task(self._watch_node(), name="node watch")
                if s.static_pods:
                    group.create_task(self._static_pods(), name="static pods")
                elif self.client is None:
                    self.sourced.set()
                group.create_task(self._housekeeping(), name="housekeeping")
                group.create_task(self._rotate_logs(), name="logs")
                group.create_task(collect.run(self), name="room")
                self.ready.set()
        finally:
            await self._close()

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
                self._lost(w)
        self.sourced.set()

    def _pod_event(self, type_: str, pod: Object) -> None:
        if type_ == "BOOKMARK":
            return
        notes = pod["metadata"].get("annotations") or {}
        if pods.MIRROR in notes:
            self._mirror_event(type_, pod)
            return
        pod.setdefault("apiVersion", "v1")
        pod.setdefault("kind", "Pod")
        uid = pod["metadata"]["uid"]
        w = self.workers.get(uid)
        if type_ == "DELETED":
            if w is not None:
                w.pod = pod
                self._lost(w)
            return
        if w is None:
            self._begin(pod)
        else:
            before = w.pod
            w.changed_pod(pod)
            if _shown(before) != _shown(pod):
                self._refresh(uid)

    def _begin(self, pod: Object) -> Worker:
        uid = pod["metadata"]["uid"]
        w = self.workers[uid] = Worker(self, pod)
        w.admitted = bool(self.observer.seen(uid).containers)
        w.task = asyncio.create_task(self._work(w), name=f"pod-{pod['metadata']['name']}")
        self.started_pods += 1
        return w

    def _lost(self, w: Worker) -> None:
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
                await self.actor.remove_pod(uid, seen)
                await self.observer.look(uid)
                break
            except RuntimeFailure as e:
                log.info("removing %s: %s", pods.describe(w.pod), e)
                await asyncio.sleep(RETRY_S)
        await self.actor.remove_logs(w.pod)
        if w.mirror is not None:
            m = w.mirror["metadata"]
            await self._delete_mirror(m["namespace"], m["name"], m["uid"])
        self.puller.forget(uid)
        self.workers.pop(uid, None)
        self._sent.pop(uid, None)

    async def _housekeeping(self) -> None:
        """Pods of the runtime, cgroups and directories that belong to nobody; volumes that follow the clock (tokens)."""
        await self.sourced.wait()
        refreshed = self.clock()
        doomed: set[str] = set()
        while True:
            try:
                for uid in self.observer.pods():
                    if uid and uid not in self.workers and uid not in doomed:
                        doomed.add(uid)
                        self._spawn(self._end_orphan(uid, doomed))
                known = set(self.workers) | set(self.observer.pods())
                for uid in self.volumes.left_over():
                    if uid not in known:
                        await self.volumes.tear_down(uid)
                if self.cgroups is not None:
                    for uid, path in (await asyncio.to_thread(self.cgroups.pods)).items():
                        if uid not in known:
                            await asyncio.to_thread(self.cgroups.remove, path)
            except (OSError, RuntimeFailure) as e:
                log.info("housekeeping: %s", e)
            if self.clock() - refreshed > VOLUME_REFRESH_S:
                refreshed = self.clock()
                for w in list(self.workers.values()):
                    if not w.terminated:
                        await self._refresh_volumes_quietly(w)
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _refresh_volumes_quietly(self, w: Worker) -> None:
        try:
            await self.volumes.refresh(w.pod, w.values(self.observer.seen(w.uid)))
        except (StatusError, OSError) as e:
            log.info("volumes of %s: %s", pods.describe(w.pod), e)

    async def _end_orphan(self, uid: str, doomed: set[str]) -> None:
        """A pod that was deleted while nobody was looking."""
        seen = self.observer.seen(uid)
        s = seen.sandboxes[0] if seen.sandboxes else None
        pod: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": s.name if s else "", "namespace": s.namespace if s else "", "uid": uid,
                                                                       "annotations": {pods.STATIC_SOURCE: "orphan"}},
                       "spec": {"containers": [{"name": c.name} for c in seen.containers]}, "status": {"qosClass": "BestEffort"}}
        try:
            if seen.running:
                await self.actor.stop_pod(pod, seen, ORPHAN_GRACE_S)
            await self.actor.remove_pod(uid, await self.observer.look(uid))
            if s:
                await self.actor.remove_logs(pod)
            await self.volumes.tear_down(uid)
            await self.observer.look(uid)
        except RuntimeFailure as e:
            log.info("orphaned pod %s: %s", uid, e)
        finally:
            doomed.discard(uid)

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_CHECK_S)
            running = [(c.id, c.log_path) for uid in self.observer.pods() for c in self.observer.seen(uid).containers
                       if c.state == RUNNING and c.log_path]
            try:
                await rotate(running, self.runtime.reopen_log)
            except (OSError, RuntimeFailure) as e:
                log.info("rotating logs: %s", e)

    # --- statuses ---

    def report(self, w: Worker) -> None:
        """The worker's status is to be written, if it says something new."""
        if self.client is None or w.uid in self._queued:
            return
        self._queued.add(w.uid)
        self._dirty.put_nowait(w.uid)

    async def _write(self) -> None:
        while True:
            uid = await self._dirty.get()
            if uid in self._writing:                       # another writer has it: come back when it is done
                await asyncio.sleep(0.01)
                self._dirty.put_nowait(uid)
                continue
            self._queued.discard(uid)
            w = self.workers.get(uid)
            if w is None:
                continue
            self._writing.add(uid)
            try:
                await self._write_one(w)
            except StatusError as e:
                if e.code == 404:
                    if not pods.is_static(w.pod):
                        self._lost(w)
                elif e.code == 409 and "uid" in e.message.lower():
                    self._lost(w)
                else:
                    log.info("status of %s: %s", pods.describe(w.pod), e.message)
                    asyncio.get_running_loop().call_later(RETRY_S, self.report, w)
            except Exception:
                log.exception("status of %s", pods.describe(w.pod))
                asyncio.get_running_loop().call_later(RETRY_S, self.report, w)
            finally:
                self._writing.discard(uid)

    async def _write_one(self, w: Worker) -> None:
        assert self.client is not None
        target = w.mirror if pods.is_static(w.pod) else w.pod
        if target is None:
            return
        api = target.get("status") or {}
        status = w.status
        done = ("Succeeded", "Failed")
        if not status or w.gone:
            return
        if status.get("phase") in done and api.get("phase") not in done and not w.terminated:
            # what could still run is not over
            status = {**status, "phase": api.get("phase") or "Pending"}
            for key in ("reason", "message"):
                if key in api:
                    status[key] = api[key]
                else:
                    status.pop(key, None)
        diff = changed(api, status)
        m = target["metadata"]
        if diff:
            made = await self.client.patch(PODS, m["namespace"], m["name"], {"metadata": {"uid": m["uid"]}, "status": diff}, "strategic",
                                           subresource="status")
            if made.get("metadata", {}).get("uid") == m["uid"]:
                made.setdefault("apiVersion", "v1")
                made.setdefault("kind", "Pod")
                made["metadata"].pop("managedFields", None)
                if pods.is_static(w.pod):
                    w.mirror = made
                elif int(made["metadata"]["resourceVersion"]) > int(w.pod["metadata"].get("resourceVersion") or 0):
                    w.pod = made
                api = made.get("status") or {}
        if w.terminated and w.pod["metadata"].get("deletionTimestamp") and api.get("phase") in done and not pods.is_static(w.pod) \
                and self._sent.get(w.uid) != "deleted":
            self._sent[w.uid] = "deleted"
            try:
                await self.client.delete(PODS, m["namespace"], m["name"], uid=m["uid"], grace_s=0)
            except StatusError as e:
                if e.code != 404:
                    self._sent.pop(w.uid, None)
                raise

    # --- the node ---

    async def _conditions(self) -> None:
        """The runtime's own health."""
        while True:
            try:
                c = await self.runtime.conditions()
                ok, reason, message = c.get("RuntimeReady", (True, "", ""))
                self.runtime_problem = "" if ok else f"container runtime not ready: RuntimeReady=false reason:{reason} message:{message}"
                ok, reason, message = c.get("NetworkReady", (True, "", ""))
                self.network_problem = "" if ok else f"container runtime network not ready: NetworkReady=false reason:{reason} message:{message}"
                was, self.network_ready = self.network_ready, ok
                if ok and not was:
                    for w in self.workers.values():
                        w.notify()
            except RuntimeFailure as e:
                self.runtime_problem = f"container runtime status check may not have completed yet: {e}"
            await asyncio.sleep(5.0 if self.network_ready and not self.runtime_problem else 0.2)

    def health(self) -> registration.Health:
        problem = self.runtime_problem or self.network_problem
        if not problem and self.observer.healthy_at and asyncio.get_running_loop().time() - self.observer.healthy_at > 180:
            problem = "PLEG is not healthy"
        pressure = pressures(self.settings.root)
        return registration.Health(not problem, problem, *pressure)

    async def _node(self) -> None:
        """Registers the node, then keeps its status: at once when it changes, every five minutes anyway."""
        assert self.client is not None
        s = self.settings
        posted = 0.0
        first = True
        while True:
            try:
                if self.node_object is None:
                    self.node_object = await self._register()
                    self._took_cidrs(self.node_object)
                now = self.clock()
                found = await self.runtime.images()
                before = self.node_object.get("status") or {}
                status = registration.node_status(self.machine, self.node_settings, self.health(), found, before, now)
                self.allocatable = status["allocatable"]
                patch = registration.status_patch(before, status, now - posted > STATUS_EVERY_S)
                if patch:
                    was_ready = _ready(before)
                    self._node_took(await self.client.patch(NODES, "", s.name, {"status": patch}, "strategic", subresource="status"))
                    posted = now
                    if _ready(status) != was_ready:
                        self.tell_node("Normal", "NodeReady" if _ready(status) else "NodeNotReady",
                                       f"Node {s.name} status is now: {'NodeReady' if _ready(status) else 'NodeNotReady'}")
                if first:
                    first = False
                    self.tell_node("Normal", "Starting", "Starting kubelet.")
                self.registered.set()
                ready = _ready(status)
            except StatusError as e:
                log.info("node status: %s", e.message)
                ready = False
                if e.code == 404:
                    self.node_object = None
            except RuntimeFailure as e:
                log.info("node status: %s", e)
                ready = False
            await asyncio.sleep(STATUS_CHECK_S if ready else 0.3)

    def _node_took(self, node: Object) -> None:
        if self.node_object is None or int(node["metadata"]["resourceVersion"]) >= int(self.node_object["metadata"].get("resourceVersion") or 0):
            self.node_object = node

    async def _register(self) -> Object:
        assert self.client is not None
        wanted = registration.node_object(self.machine, self.node_settings)
        try:
            status = registration.node_status(self.machine, self.node_settings, self.health(), [], {}, self.clock())
            return await self.client.create({**wanted, "status": status})
        except StatusError as e:
            if e.code != 409:
                raise
        have = await self.client.get(NODES, "", self.settings.name)
        labels = have["metadata"].get("labels") or {}
        missing = {k: v for k, v in wanted["metadata"]["labels"].items() if labels.get(k) != v}
        if missing:
            have = await self.client.patch(NODES, "", self.settings.name, {"metadata": {"labels": missing}}, "merge")
        return have

    async def _watch_node(self) -> None:
        assert self.client is not None

        def replaced(items: list[Object], _revision: int) -> None:
            for n in items:
                self._node_took(n)
                self._took_cidrs(n)

        def event(type_: str, node: Object) -> None:
            if type_ in ("ADDED", "MODIFIED"):
                self._node_took(node)
                self._took_cidrs(node)

        await follow(self.client, NODES, replaced, event, fields=f"metadata.name={self.settings.name}")

    def _took_cidrs(self, node: Object) -> None:
        spec = node.get("spec") or {}
        cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        if cidrs and cidrs != self._cidrs:
            self._cidrs = list(cidrs)
            if self.on_pod_cidrs is not None:
                self.on_pod_cidrs(self._cidrs)

    async def _heartbeat(self) -> None:
        assert self.client is not None
        await self.registered.wait()
        while True:
            began = asyncio.get_running_loop().time()
            try:
                self._lease = await self._renew()
                wait = RENEW_S
            except StatusError as e:
                log.info("lease: %s", e.message)
                self._lease = None
                wait = 0.5 if e.code == 409 else 2.0
            await asyncio.sleep(max(0.1, wait - (asyncio.get_running_loop().time() - began)))

    async def _renew(self) -> Object:
        assert self.client is not None and self.node_object is not None
        s = self.settings
        spec = {"holderIdentity": s.name, "leaseDurationSeconds": LEASE_S, "renewTime": micro_time(self.clock())}
        if self._lease is None:
            owner = {"apiVersion": "v1", "kind": "Node", "name": s.name, "uid": self.node_object["metadata"]["uid"]}
            try:
                self._lease = await self.client.get(LEASES, "kube-node-lease", s.name)
            except StatusError as e:
                if e.code != 404:
                    raise
                return await self.client.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {
                    "name": s.name, "namespace": "kube-node-lease", "ownerReferences": [owner]}, "spec": spec})
        return await self.client.update({**self._lease, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec})

    # --- static pods ---

    async def _static_pods(self) -> None:
        from kubern.kubelet.static import read_manifests

        last: dict[str, Object] = {}
        while True:
            now = await asyncio.to_thread(read_manifests, self.settings.static_pods, self.settings.name)
            for uid, pod in now.items():
                if uid not in self.workers:
                    self._begin(pod)
            for uid in last.keys() - now.keys():
                w = self.workers.get(uid)
                if w is not None:
                    self._lost(w)
            last = now
            if self.client is None:
                self.sourced.set()
            else:
                await self._make_mirrors()
            await asyncio.sleep(STATUS_CHECK_S / 2)

    async def _make_mirrors(self) -> None:
        from kubern.kubelet.static import mirror_of

        assert self.client is not None
        if self.node_object is None or not self.sourced.is_set():
            return
        for w in list(self.workers.values()):
            if pods.is_static(w.pod) and w.mirror is None and not w.gone:
                try:
                    w.mirror = await self.client.create(mirror_of(w.pod, self.node_object))
                    self.report(w)
                except StatusError as e:
                    log.info("mirror of %s: %s", pods.describe(w.pod), e.message)

    def _mirror_event(self, type_: str, mirror: Object) -> None:
        notes = mirror["metadata"].get("annotations") or {}
        static = next((w for w in self.workers.values() if pods.is_static(w.pod)
                       and (w.pod["metadata"].get("annotations") or {}).get("kubernetes.io/config.hash") == notes.get(pods.MIRROR)
                       and w.pod["metadata"]["name"] == mirror["metadata"]["name"]), None)
        if type_ == "DELETED":
            if static is not None:
                static.mirror = None
            return
        if static is not None and not mirror["metadata"].get("deletionTimestamp"):
            static.mirror = mirror
        elif self.client is not None:
            m = mirror["metadata"]
            self._spawn(self._delete_mirror(m["namespace"], m["name"], m["uid"]))

    async def _delete_mirror(self, namespace: str, name: str, uid: str) -> None:
        assert self.client is not None
        with contextlib.suppress(StatusError):
            await self.client.delete(PODS, namespace, name, uid=uid, grace_s=0)


def _ready(status: Mapping[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())


def _shown(pod: Object) -> tuple[Any, Any]:
    """What the downward API shows and can change."""
    return pod["metadata"].get("labels"), pod["metadata"].get("annotations")


def _resolver(path: str) -> identity.Resolver:
    try:
        with open(path) as f:
            return identity.parse_resolver(f.read())
    except OSError:
        return identity.NO_RESOLVER


def _node_hosts() -> str:
    try:
        with open("/etc/hosts") as f:
            return f.read()
    except OSError:
        return ""


def pressures(root: str) -> tuple[bool, bool, bool]:
    """(memory, disk, processes) are short, by the default hard thresholds."""
    from kubern.kubelet.cgroups import node_memory

    memory = node_memory()["available"] < registration.MEMORY_EVICTION
    try:
        st = os.statvfs(root)
        disk = st.f_bavail < st.f_blocks * registration.DISK_EVICTION or (st.f_files > 0 and st.f_favail < st.f_files * 0.05)
    except OSError:
        disk = False
    return memory, disk, False


async def run(settings: KubeletSettings, client: Client | None, *, runtime: Runtime | None = None, clock: Callable[[], float] = time.time,
              on_pod_cidrs: Callable[[list[str]], None] | None = None, ready: Callable[[], None] | None = None) -> None:
    """A kubelet until cancelled; its containers go on. `ready` is called when it looks after pods."""
    if runtime is None:
        from kubern.kubelet.cri import Cri

        runtime = Cri(settings.socket)
    kubelet = Kubelet(settings, client, runtime, clock, on_pod_cidrs)
    async with asyncio.TaskGroup() as group:
        group.create_task(kubelet.run())
        await kubelet.ready.wait()
        if ready is not None:
            ready()
