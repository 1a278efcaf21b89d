"""Simulated nodes: one shell that runs thousands of them over the simulated runtime, with the same plan and status as real nodes.

One watch for all pods, one wheel for all heartbeats, a few writers. Every pod goes through plan(), pod_status() and the deletion protocol; what
falls away is volumes, images, probes and events. Compare kwok and kubemark's hollow kubelets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kubern.client.client import Client
from kubern.client.watch import follow
from kubern.kubelet import pods
from kubern.kubelet.backoff import Backoff
from kubern.kubelet.plan import Action, CreateSandbox, Kill, Memory, Remove, Start, StopPod, Wait, plan
from kubern.kubelet.runtime import RUNNING
from kubern.kubelet.simulated import EXIT_AFTER_S, SimulatedRuntime, behaviour
from kubern.kubelet.status import Facts, changed, ended_status, pod_status, stamp
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

PODS, NODES, LEASES = by_path["", "v1", "pods"], by_path["", "v1", "nodes"], by_path["coordination.k8s.io", "v1", "leases"]
HEARTBEAT_S, HEARTBEAT_LARGE_S, LEASE_S, WHEEL_SLOTS = 10.0, 20.0, 40, 100
LARGE_NODES = 1000                    # with more than these, leases are renewed at half their time instead of a quarter
STATUS_EVERY_S = 300.0
WRITERS = 32
RETRY_S = 1.0
AT_ONCE_S = 1.0                       # a pod deleted without grace should be gone by then
ROUNDS_MAX = 64                       # init containers take a round each
ZONES = ("zone-0", "zone-1")


@dataclass(frozen=True, slots=True)
class Shape:
    """What one simulated node is."""

    name: str
    cpu: str = "4"
    memory: str = "8Gi"
    pods: str = "110"
    zone: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    address: str = ""


def shapes(count: int, prefix: str = "fake-") -> list[Shape]:
    """count nodes in two zones, alternating: fake-0 zone-0, fake-1 zone-1, fake-2 zone-0."""
    return [Shape(f"{prefix}{i}", zone=ZONES[i % len(ZONES)], address=f"10.{192 + (i >> 16)}.{i >> 8 & 255}.{i & 255}")
            for i in range(count)]


def node_object(shape: Shape, now: float, version: str) -> Object:
    labels = {
        "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": shape.name, **({"topology.kubernetes.io/zone": shape.zone} if shape.zone else {}), **shape.labels,
    }
    spec: dict[str, Any] = {"taints": [dict(t) for t in shape.taints]} if shape.taints else {}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": shape.name, "labels": labels}, "spec": spec,
            "status": node_status(shape, now, version)}


def node_status(shape: Shape, now: float, version: str) -> dict[str, Any]:
    t = stamp(now)
    conditions = [
        {"type": type_, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": t, "lastTransitionTime": t}
        for type_, status, reason, message in (
            ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        )]
    room = {"cpu": shape.cpu, "memory": shape.memory, "pods": shape.pods, "ephemeral-storage": "100Gi"}
    return {
        "capacity": room, "allocatable": room, "conditions": conditions,
        "addresses": [*([{"type": "InternalIP", "address": shape.address}] if shape.address else []),
                      {"type": "Hostname", "address": shape.name}],
        "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "simulated", "osImage": "simulated",
                     "containerRuntimeVersion": "simulated://1", "kubeletVersion": version, "kubeProxyVersion": "", "machineID": shape.name,
                     "systemUUID": shape.name, "bootID": shape.name},
    }


@dataclass(slots=True)
class _Pod:
    """One pod of a simulated node as the shell remembers it."""

    pod: Object
    memory: Memory
    reported: dict[str, Any]
    timer: asyncio.TimerHandle | None = None
    ended: bool = False                     # the runtime part is over for good
    written: str = ""                       # resourceVersion of the last status written, when nothing was left to do with it
    deleted: str = ""                       # resourceVersion the final delete was sent at


class Hollow:
    """Runs all simulated nodes of this process. `run()` until cancelled; `ready` is set when all nodes are registered."""

    def __init__(self, client: Client, nodes: Iterable[Shape], *, version: str = "v1.36.0", clock: Callable[[], float] = time.time,
                 heartbeat_s: float = 0.0) -> None:
        self.client, self.version, self.clock = client, version, clock
        self.nodes = {n.name: n for n in nodes}
        self.heartbeat_s = heartbeat_s or (HEARTBEAT_LARGE_S if len(self.nodes) > LARGE_NODES else HEARTBEAT_S)
        self.uids: dict[str, str] = {}                         # node name -> uid
        self._leases: dict[str, str] = {}                      # node name -> resourceVersion of its lease
        self.runtime = SimulatedRuntime(clock)
        self.pods: dict[str, _Pod] = {}
        self.ready = asyncio.Event()
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._busy: set[str] = set()
        self._again: dict[str, str] = {}                       # busy pods to look at once more: the resourceVersion that asks for it, or ""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._register_all())
            group.create_task(follow(self.client, PODS, self._replace, self._apply, fields="spec.nodeName!="))
            for _ in range(WRITERS):
                group.create_task(self._work())
            group.create_task(self._beat())

    async def add(self, shape: Shape) -> None:
        """One more node; returns when it is registered."""
        self.nodes[shape.name] = shape
        await self._register(shape)

    def remove(self, name: str) -> None:
        """The node stops, and with it its pods. Its Node object is the caller's."""
        self.nodes.pop(name, None)
        self.uids.pop(name, None)
        self._leases.pop(name, None)
        for uid in [u for u, p in self.pods.items() if p.pod["spec"].get("nodeName") == name]:
            self._drop(uid)

    # --- nodes ---

    async def _register_all(self) -> None:
        todo = iter(list(self.nodes.values()))

        async def some() -> None:
            for shape in todo:
                await self._register(shape)
        await asyncio.gather(*(some() for _ in range(WRITERS)))
        self.ready.set()

    async def _register(self, shape: Shape) -> None:
        node = node_object(shape, self.clock(), self.version)
        while True:
            try:
                try:
                    made = await self.client.create(node)
                except StatusError as e:
                    if e.code != 409:
                        raise
                    made = await self.client.patch(NODES, "", shape.name, {"status": node["status"]}, "merge", subresource="status")
                self.uids[shape.name] = made["metadata"]["uid"]
                await self._renew(shape.name)
                return
            except StatusError as e:
                log.info("registering %s: %s", shape.name, e.message)
                await asyncio.sleep(RETRY_S)

    async def _renew(self, name: str) -> None:
        if name not in self.uids:
            return
        now = self.clock()
        micros = int(now * 1e6) % 1_000_000
        lease: Object = {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease", "resourceVersion": self._leases.get(name, ""),
                         "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": self.uids[name]}]},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": LEASE_S, "renewTime": stamp(now)[:-1] + f".{micros:06d}Z"},
        }
        try:
            if name not in self._leases:
                del lease["metadata"]["resourceVersion"]
                try:
                    made = await self.client.create(lease)
                except StatusError as e:
                    if e.code != 409:
                        raise
                    have = await self.client.get(LEASES, "kube-node-lease", name)
                    lease["metadata"]["resourceVersion"] = have["metadata"]["resourceVersion"]
                    made = await self.client.update(lease)
            else:
                made = await self.client.update(lease)
            self._leases[name] = made["metadata"]["resourceVersion"]
        except StatusError as e:
            self._leases.pop(name, None)
            log.info("lease of %s: %s", name, e.message)

    async def _beat(self) -> None:
        """One wheel: every node's lease once a turn, spread evenly; its status every STATUS_EVERY_S."""
        await self.ready.wait()
        turn = 0
        turns_per_status = max(1, round(STATUS_EVERY_S / self.heartbeat_s))
        while True:
            began = asyncio.get_running_loop().time()
            names = list(self.nodes)
            slots = min(WHEEL_SLOTS, max(1, len(names)))
            turn += 1
            for slot in range(slots):
                await asyncio.sleep(max(0.0, began + self.heartbeat_s * (slot + 1) / slots - asyncio.get_running_loop().time()))
                await asyncio.gather(*(self._renew(n) for n in names[slot::slots] if n in self.uids))
                if turn % turns_per_status == 0:
                    for n in names[slot::slots]:
                        await self._post_status(n)

    async def _post_status(self, name: str) -> None:
        if name not in self.nodes:
            return
        t = stamp(self.clock())
        conditions = [{"type": c["type"], "lastHeartbeatTime": t} for c in node_status(self.nodes[name], 0, self.version)["conditions"]]
        try:
            await self.client.patch(NODES, "", name, {"status": {"conditions": conditions}}, "strategic", subresource="status")
        except StatusError as e:
            log.info("status of %s: %s", name, e.message)

    # --- pods ---

    def _replace(self, items: list[Object], _revision: int) -> None:
        uids = set()
        for pod in items:
            uids.add(pod["metadata"]["uid"])
            self._apply("MODIFIED", pod)
        for uid in self.pods.keys() - uids:
            self._drop(uid)

    def _apply(self, type_: str, pod: Object) -> None:
        if type_ == "BOOKMARK":
            return
        if pod.get("spec", {}).get("nodeName") not in self.nodes:
            return
        uid = pod["metadata"]["uid"]
        if type_ == "DELETED":
            self._drop(uid)
            return
        one = self.pods.get(uid)
        if one is None:
            status = pod.get("status") or {}
            self.pods[uid] = one = _Pod(pod, Memory(backoff=Backoff()), status)
            self._adopt(one)
        one.pod = pod
        if pod["metadata"]["resourceVersion"] != one.written:
            self._wake(uid, pod["metadata"]["resourceVersion"])

    def _adopt(self, one: _Pod) -> None:
        """After a restart of this process: what a pod's status says runs, runs."""
        status = one.pod.get("status") or {}
        uid = one.pod["metadata"]["uid"]
        if status.get("phase") != "Running":
            return
        self.runtime.add_sandbox(uid, "", "", 0, pods.host_network(one.pod))
        ip = status.get("podIP")
        if ip:
            self.runtime.taken.add(ip)
            seen = self.runtime.by_pod[uid]
            self.runtime.by_pod[uid] = replace(seen, sandboxes=(replace(seen.sandboxes[0], ips=(ip,)),))
        for s in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
            spec = pods.find_container(one.pod["spec"], s["name"])
            if spec is not None and (s.get("state") or {}).get("running"):
                self._started(uid, self.runtime.add_container(uid, spec, s.get("restartCount", 0)))

    def _drop(self, uid: str) -> None:
        one = self.pods.pop(uid, None)
        if one is not None and one.timer is not None:
            one.timer.cancel()
        self.runtime.forget(uid)

    def _wake(self, uid: str, revision: str = "") -> None:
        if uid in self._busy:
            self._again[uid] = revision if self._again.get(uid, revision) else ""
        elif uid not in self._queued:
            self._queued.add(uid)
            self._queue.put_nowait(uid)

    async def _work(self) -> None:
        while True:
            uid = await self._queue.get()
            self._queued.discard(uid)
            self._busy.add(uid)
            try:
                await self._sync(uid)
            except StatusError as e:
                if e.code != 404:
                    log.info("pod %s: %s", uid, e.message)
                    if uid in self.pods:
                        self.pods[uid].deleted = ""
                    asyncio.get_running_loop().call_later(RETRY_S, self._wake, uid)
            finally:
                self._busy.discard(uid)
                asked = self._again.pop(uid, None)
                if asked is not None and not (asked and uid in self.pods and asked == self.pods[uid].written):
                    self._wake(uid)

    async def _sync(self, uid: str) -> None:
        one = self.pods.get(uid)
        if one is None:
            return
        pod = one.pod
        api = pod.get("status") or {}
        meta = pod["metadata"]
        finished = api.get("phase") in ("Succeeded", "Failed")
        if meta.get("deletionTimestamp") and not meta.get("deletionGracePeriodSeconds") and not one.ended and one.timer is None:
            self._later(one, uid, AT_ONCE_S)          # who marked it is about to remove it; only when that did not happen it is ours to do
            return
        if meta.get("deletionTimestamp") or finished or one.ended:
            if not one.ended:
                self.runtime.stop_all(uid, 143)
                one.ended = True
            if not finished:
                await self._report(one, terminal=True)
            if meta.get("deletionTimestamp") and not one.deleted:
                one.deleted = meta["resourceVersion"]
                await self.client.delete(PODS, meta["namespace"], meta["name"], uid=uid, grace_s=0)
            return
        for _ in range(ROUNDS_MAX):
            actions = plan(pod, self.runtime.seen(uid), one.memory, self.clock())
            if not self._perform(one, uid, actions):
                break
        await self._report(one)

    def _perform(self, one: _Pod, uid: str, actions: list[Action]) -> bool:
        """Acts at once; whether anything changed that may call for another round."""
        did = False
        now = self.clock()
        meta = one.pod["metadata"]
        for a in actions:
            if isinstance(a, CreateSandbox):
                self.runtime.add_sandbox(uid, meta["namespace"], meta["name"], a.attempt, pods.host_network(one.pod))
                did = True
            elif isinstance(a, Start):
                spec = pods.find_container(one.pod["spec"], a.name)
                assert spec is not None
                if a.backoff_key:
                    one.memory.backoff.next(a.backoff_key, a.finished_s, now)
                id_ = self.runtime.add_container(uid, spec, a.attempt)
                if a.kind == "init" and not pods.is_sidecar(spec):
                    self.runtime.end_container(id_, self.runtime.exits.get(id_, 0))
                else:
                    self._started(uid, id_)
                did = True
            elif isinstance(a, Wait):
                self._later(one, uid, max(0.01, a.until_s - now))
            elif isinstance(a, Kill):
                self.runtime.end_container(a.id, 143)
                did = True
            elif isinstance(a, Remove):
                self.runtime.drop_container(a.id)
                did = True
            elif isinstance(a, StopPod):
                self.runtime.stop_all(uid, 143)
                did = a.recreate
                one.ended = one.ended or not a.recreate
        return did

    def _started(self, uid: str, id_: str) -> None:
        code = self.runtime.exits.get(id_)
        if code is not None:
            asyncio.get_running_loop().call_later(EXIT_AFTER_S, self._end, uid, id_, code)

    def _end(self, uid: str, id_: str, code: int) -> None:
        self.runtime.end_container(id_, code)
        self._wake(uid)

    async def _write(self, pod: Object, uid: str, status: dict[str, Any], diff: dict[str, Any]) -> Object:
        """A whole update costs the server half of a patch; when somebody else has written meanwhile it is a patch after all."""
        meta = pod["metadata"]
        try:
            return await self.client.update({**pod, "apiVersion": "v1", "kind": "Pod", "status": status}, "status")
        except StatusError as e:
            if e.code != 409:
                raise
        return await self.client.patch(PODS, meta["namespace"], meta["name"], {"metadata": {"uid": uid}, "status": diff}, "strategic",
                                       subresource="status")

    def _later(self, one: _Pod, uid: str, seconds: float) -> None:
        if one.timer is not None:
            one.timer.cancel()
        one.timer = asyncio.get_running_loop().call_later(seconds, self._wake, uid)

    async def _report(self, one: _Pod, terminal: bool = False) -> None:
        pod = one.pod
        uid = pod["metadata"]["uid"]
        seen = self.runtime.seen(uid)
        readiness, startup = {}, {}
        for c in seen.containers:
            spec = pods.find_container(pod["spec"], c.name)
            readiness[c.id] = c.state == RUNNING and spec is not None and behaviour(spec)[1]
            startup[c.id] = c.state == RUNNING
        waiting = {}
        if not terminal:
            now = self.clock()
            for a in plan(pod, seen, one.memory, now):
                if isinstance(a, Wait):
                    waiting[a.name] = ("CrashLoopBackOff", a.message)
        shape = self.nodes[pod["spec"]["nodeName"]]
        facts = Facts(waiting, startup, readiness, (shape.address,) if shape.address else (), "simulated")
        status = pod_status(pod, seen, one.reported, facts, self.clock(), terminal or one.ended)
        if terminal:
            status = ended_status(pod, status)
        diff = changed(pod.get("status") or {}, status)
        if not diff or status == one.reported:
            return
        made = await self._write(pod, uid, status, diff)
        one.reported = status
        if status["phase"] == "Running" and not terminal and all(c["ready"] for c in status.get("containerStatuses") or ()):
            one.written = made["metadata"]["resourceVersion"]
        if status["phase"] in ("Succeeded", "Failed") and not one.ended:
            one.ended = True
            self.runtime.stop_all(uid, 143)
        if made.get("metadata", {}).get("uid") == uid:
            made["apiVersion"], made["kind"] = "v1", "Pod"
            current = self.pods.get(uid)
            if current is one and int(made["metadata"]["resourceVersion"]) >= int(one.pod["metadata"].get("resourceVersion") or 0):
                one.pod = made
