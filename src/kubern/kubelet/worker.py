"""Worker: one pod's life on this node, from the first look to the last delete. One task a pod.

    syncing      status -> admission -> volumes -> plan -> act, again whenever something changed
    terminating  after a deletion, a terminal phase, or a failure of the node's: stop everything within the grace period
    terminated   volumes and cgroups are gone, the last status is reported, then the API object (if it is being deleted)

Upstream: pkg/kubelet/pod_workers.go, kubelet.go SyncPod/SyncTerminatingPod/SyncTerminatedPod, status_manager.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kubern.kubelet import admit, evict, pods, resize, shutdown
from kubern.kubelet import container as config
from kubern.kubelet.backoff import Backoff
from kubern.kubelet.cgroups import pod_limits
from kubern.kubelet.claims import NotPrepared
from kubern.kubelet.env import Values
from kubern.kubelet.plan import Action, Memory, Start, plan
from kubern.kubelet.runtime import RUNNING, Observed, RuntimeFailure
from kubern.kubelet.status import Facts, ended_status, pod_status
from kubern.kubelet.volumes import VolumeFailure, used_volumes
from kubern.model.object import Object
from kubern.model.status import StatusError
from kubern.model.time import seconds_of

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)

RESYNC_S = 60.0
RETRY_FIRST_S, RETRY_LAST_S = 0.5, 122.0
VOLUMES_PATIENCE_S = 123.0
CLEAN_RETRY_S = 1.0
PATIENCE_S = 0.5                # what a deletion grants a round that is under way


@dataclass(slots=True)
class Worker:
    kubelet: Kubelet
    pod: Object
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)   # it is being deleted, or is gone
    memory: Memory = field(default_factory=lambda: Memory(backoff=Backoff()))
    waiting: dict[str, tuple[str, str]] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)          # as last generated
    failed: tuple[str, str] | None = None                         # (reason, message): evicted, rejected, past its deadline
    disruption: str = ""                                          # why the node ended it, where that was the node's need
    admitted: bool = False
    rejected: bool = False                                        # it never began here
    gone: bool = False                                            # the API object is not there any more
    terminated: bool = False
    delay: float = 0.0
    task: asyncio.Task[None] | None = None
    grace_s: int | None = None                                    # overrides the pod's
    actuated: dict[str, Any] = field(default_factory=dict)        # container -> resources it was started or resized with
    volumes_since: float = 0.0
    pending: tuple[str, str] | None = None                        # (reason, message) of a resize the node does not grant
    retry_at: dict[str, float] = field(default_factory=dict)      # container -> when (by the loop) a start that failed is tried again
    mirror: Object | None = None                                  # of a static pod: its image in the API
    stopping: asyncio.Task[None] | None = None
    seen_s: float = 0.0                                           # when this kubelet first saw it
    adopted: bool = False                                         # it ran before this kubelet did
    synced: bool = False
    started: bool = False

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    def notify(self) -> None:
        self.wake.set()
        if self.gone or self.pod["metadata"].get("deletionTimestamp"):
            self.ended.set()

    # --- the task ---

    async def run(self) -> None:
        self.kubelet.measures.worker_start.observe(max(0.0, self.kubelet.clock() - self.seen_s))
        self.status = dict(self.pod.get("status") or {})
        again = 0.0
        while True:
            self.wake.clear()
            try:
                if self.ending():
                    await self._terminate()
                    return
                again = await self._sync_unless_ending()
                self.delay = 0.0
            except (RuntimeFailure, StatusError, VolumeFailure, OSError) as e:
                again = self.delay = min(max(self.delay * 2, RETRY_FIRST_S), RETRY_LAST_S)
                log.info("pod %s: %s", pods.describe(self.pod), e)
            except Exception:
                again = self.delay = min(max(self.delay * 2, RETRY_FIRST_S), RETRY_LAST_S)
                log.exception("pod %s", pods.describe(self.pod))
            limit = again or RESYNC_S * (1 + random.random() / 2)
            try:
                async with asyncio.timeout(limit):
                    await self.wake.wait()
            except TimeoutError:
                pass

    async def _sync_unless_ending(self) -> float:
        """A round may take long (an image, a hook); a deletion does not wait for it."""
        task = asyncio.create_task(self._measured_sync())
        try:
            while not task.done():
                waiter = asyncio.create_task(self.ended.wait())
                await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if self.ended.is_set() and not task.done():
                    await asyncio.wait([task], timeout=PATIENCE_S)
                    if not task.done():
                        task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
                        return 0.001
            return task.result()
        finally:
            task.cancel()

    async def _measured_sync(self) -> float:
        m = self.kubelet.measures
        with m.worker.timed("sync" if self.synced else "create"):
            again = await self._sync()
        self.synced = True
        if not self.started and self.status.get("phase") == "Running":
            self.started = True
            if not self.adopted:
                now = self.kubelet.clock()
                m.start.observe(now - self.seen_s)
                since = max(0.0, now - seconds_of(self.pod["metadata"].get("creationTimestamp")))
                m.start_total.observe(since)
                m.start_sli.observe(max(0.0, since - self.kubelet.puller.pulled_s.get(self.uid, 0.0)))
        return again

    def ending(self) -> bool:
        finished = (self.pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") and not pods.is_static(self.pod)
        return bool(self.gone or self.pod["metadata"].get("deletionTimestamp") or self.failed or finished)

    def values(self, seen: Observed) -> Values:
        k = self.kubelet
        ips = seen.ips or tuple(e["ip"] for e in self.status.get("podIPs") or ())
        if pods.host_network(self.pod):
            ips = k.host_ips
        return Values(ips, k.host_ips, k.allocatable)

    def facts(self) -> Facts:
        k = self.kubelet
        r = k.prober.results
        resize = (("PodResizePending", *self.pending),) if self.pending else ()
        return Facts(self.waiting, r.startup, r.readiness, k.host_ips, k.runtime.name, self.failed, resize, self.actuated, k.began_s,
                     self.pending is not None, self.disruption)

    def generate(self, seen: Observed, terminal: bool = False) -> dict[str, Any]:
        base = self.mirror or self.pod
        pod = {**self.pod, "status": base.get("status") or {}} if self.mirror else self.pod
        self.status = pod_status(pod, seen, self.status, self.facts(), self.kubelet.clock(), terminal)
        return self.status

    # --- syncing ---

    async def _sync(self) -> float:
        """One round; seconds until the next is due (0: the resync)."""
        k = self.kubelet
        seen = k.observer.seen(self.uid)
        if not self.admitted:
            self.failed = await self._refusal() if not seen.containers else None
            if self.failed:
                self.rejected = True
                k.measures.count("admission_rejections_total", self.failed[0])
                k.tell(self.pod, "", "Warning", self.failed[0], self.failed[1].removeprefix(admit.REJECTED))
                return 0.001
            self.admitted = True
        self._forget_started(seen)
        status = self.generate(seen)
        until, over = admit.deadline(self.pod, status, k.clock())
        if over:
            self.failed = over
            k.tell(self.pod, "", "Normal", *over)
            return 0.001
        if status["phase"] in ("Succeeded", "Failed") and not pods.is_static(self.pod):
            await self._terminate_finished(seen)
            return 0.0
        k.report(self)
        if not k.presence.network_ready and not pods.host_network(self.pod) and not seen.sandboxes:
            k.tell(self.pod, "", "Warning", "NetworkNotReady", f"network is not ready: {k.presence.network_problem}")
            return 1.0
        await k.objects.ensure(self.pod)
        await self._cgroups()
        await self._volumes(seen)
        await self._claims()
        k.prober.add(self.pod)
        for s in (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())):
            if s.get("started") and s.get("containerID", "").partition("://")[2] not in k.prober.results.readiness:
                k.prober.nudge(self.uid, s["name"])         # do not let it wait for its next tick to become ready
        values = self.values(seen)
        self._fill_memory(seen)
        actions, pause = self._due(plan(self.pod, seen, self.memory, k.clock()))
        again = min((x for x in (until, pause) if x), default=0.0)
        if actions:
            out = await k.actor.perform(self.pod, seen, actions, self.memory, values, self._look)
            for name, why in out.waiting.items():
                if why is None:
                    self.waiting.pop(name, None)
                    self.retry_at.pop(name, None)
                    self._remember(name)
                else:
                    self.waiting[name] = why
                    if why[0] != "CrashLoopBackOff":
                        self.retry_at[name] = asyncio.get_running_loop().time() + (out.again_s or 1.0)
            if out.resized:
                k.tell(self.pod, "", "Normal", "ResizeCompleted", f"Pod resize completed: {resize.told(self.pod)}")
            for name in out.resized:
                self._remember(name)
                last = seen.latest(name)
                if last is not None:
                    k.observer.forget(last.id)
            again = min((x for x in (again, out.again_s) if x), default=0.0)
            if out.acted:
                await k.observer.look(self.uid)
                self.wake.set()
            self.generate(k.observer.seen(self.uid))
            k.report(self)
            if out.error:
                raise RuntimeFailure("UNKNOWN", out.error)
        return again

    async def _refusal(self) -> tuple[str, str] | None:
        """Why the node does not take this pod; the devices and cpus it needs are its own from here on."""
        k = self.kubelet
        if k.shutting_down:
            return shutdown.REFUSED[0], admit.REJECTED + shutdown.REFUSED[1]
        pressed = evict.refused(self.pod, k.room.conditions, admit.tolerates(self.pod, "node.kubernetes.io/memory-pressure"))
        if pressed:
            return evict.REASON, admit.REJECTED + pressed
        why = admit.admit(self.pod, k.presence.node_object, k.active_pods(), k.configuration.unsafe_sysctls)
        if why:
            return why
        refused = await k.grants.admit(self.pod)
        self._count_grants(refused)
        k.cpus_changed.set()
        return (refused[0], admit.REJECTED + refused[1]) if refused else None

    def _count_grants(self, refused: tuple[str, str] | None) -> None:
        k = self.kubelet
        if k.configuration.alignment.policy != "none":
            k.measures.count("topology_manager_admission_requests_total")
            if refused:
                k.measures.count("topology_manager_admission_errors_total")
        for name, giver in (("cpu", k.cpus), ("memory", k.memory)):
            if giver is not None and giver.hints(self.pod, None):
                k.measures.count(f"{name}_manager_pinning_requests_total")
                if refused and self.uid not in giver.taken:
                    k.measures.count(f"{name}_manager_pinning_errors_total")

    def fail(self, failed: tuple[str, str], grace_s: int, disruption: str = "") -> None:
        """The node ends this pod for a reason of its own."""
        self.failed, self.grace_s, self.disruption = failed, grace_s, disruption
        self.ended.set()
        self.notify()

    def _due(self, actions: list[Action]) -> tuple[list[Action], float]:
        """The actions without starts that failed a moment ago, and seconds until the first of those."""
        now = asyncio.get_running_loop().time()
        out: list[Action] = []
        pause = 0.0
        for a in actions:
            later = self.retry_at.get(a.name, 0.0) - now if isinstance(a, Start) else 0.0
            if later <= 0:
                out.append(a)
                continue
            pause = min(x for x in (pause, later) if x)
            if isinstance(a, Start) and a.kind == "init":
                spec = pods.find_container(self.pod["spec"], a.name)
                if spec is not None and not pods.is_sidecar(spec):
                    break
        return out, pause

    async def _look(self) -> Observed:
        """A fresh look in the middle of a round: the sandbox is there, so the status can say so before images are pulled."""
        seen = await self.kubelet.observer.look(self.uid)
        self.generate(seen)
        self.kubelet.report(self)
        return seen

    def _remember(self, name: str) -> None:
        spec = pods.find_container(self.pod["spec"], name)
        if spec is not None:
            self.actuated[name] = spec.get("resources") or {}

    def _forget_started(self, seen: Observed) -> None:
        """A container that runs does not wait, whatever it was that kept it."""
        for name in [n for n in self.waiting if (c := seen.latest(n)) is not None and c.state == RUNNING]:
            del self.waiting[name]

    def _fill_memory(self, seen: Observed) -> None:
        r = self.kubelet.prober.results
        m = self.memory
        m.liveness, m.startup = r.liveness, dict(r.startup)
        for c in seen.containers:
            # after a restart of the kubelet a sidecar that had started counts as started before its probe has run again
            if c.id not in m.startup and c.state == RUNNING and any(
                    s.get("started") and s.get("containerID", "").endswith(c.id) for s in self.status.get("initContainerStatuses") or ()):
                m.startup[c.id] = True  # type: ignore[index]
        m.restart_all = any(c["type"] == "AllContainersRestarting" and c["status"] == "True" for c in self.status.get("conditions") or ())
        resized = set()
        for _, spec in pods.every_container(self.pod["spec"]):
            name = spec["name"]
            last = seen.latest(name)
            if last is None or last.state != RUNNING:
                continue
            if name not in self.actuated:
                self.actuated[name] = resize.reported(self.status, name) or spec.get("resources") or {}
            if self.actuated[name] != (spec.get("resources") or {}):
                resized.add(name)
        self._weigh(bool(resized))
        m.resized, m.actuated = frozenset(() if self.pending else resized), self.actuated

    def _weigh(self, wanted: bool) -> None:
        """Whether the node can grant other resources; tells when the answer changes."""
        k = self.kubelet
        answer = None
        if wanted:
            c = k.configuration
            answer = resize.pinned(self.pod, self.actuated, c.cpu_policy, c.memory_policy) or resize.refused(self.pod, k.presence.node_object, k.active_pods())
        if answer == self.pending:
            return
        self.pending = answer
        if answer:
            if answer[0] == "Infeasible":
                why = "guaranteed_pod_static_policy" if "Guaranteed" in answer[1] else "insufficient_node_allocatable"
                k.measures.count("pod_infeasible_resizes_total", why)
            k.tell(self.pod, "", "Warning", f"Resize{answer[0]}", f"Pod resize {answer[0]}: {resize.told(self.pod, answer[1])}")
        self.wake.set()

    async def _cgroups(self) -> None:
        k = self.kubelet
        if k.cgroups is None:
            return
        path = config.cgroup_parent(k.actor.node, self.pod)
        if not await asyncio.to_thread(k.cgroups.pod_exists, path):
            with k.measures.cgroup.timed("create"):
                await asyncio.to_thread(k.cgroups.ensure, path)
                limits = pod_limits(self.pod)
                if k.cpus is not None and self.uid in k.cpus.taken:
                    limits.pop("cpu_quota", None)
                await asyncio.to_thread(k.cgroups.apply, path, limits, k.actor.node.pids_max)

    async def _volumes(self, seen: Observed) -> None:
        k = self.kubelet
        now = k.clock()
        self.volumes_since = self.volumes_since or now
        try:
            await k.volumes.set_up(self.pod, self.values(seen))
            self.volumes_since = 0.0
        except (VolumeFailure, StatusError) as e:
            text = str(e) if isinstance(e, VolumeFailure) else f"MountVolume.SetUp failed : {e.message}"
            k.tell(self.pod, "", "Warning", "FailedMount", text)
            if now - self.volumes_since > VOLUMES_PATIENCE_S:
                self.volumes_since = now
                missing = sorted(used_volumes(self.pod["spec"]) - set(k.volumes.ready.get(self.uid, {})))
                k.tell(self.pod, "", "Warning", "FailedMount",
                       f"Unable to attach or mount volumes: unmounted volumes=[{' '.join(missing)}], unattached volumes=[], "
                       "failed to process volumes=[]: context deadline exceeded")
            raise

    async def _claims(self) -> None:
        """Its resource claims are prepared."""
        try:
            await self.kubelet.claims.prepare(self.pod)
        except NotPrepared as e:
            self.kubelet.tell(self.pod, "", "Warning", "FailedPrepareDynamicResources", f"Failed to prepare dynamic resources: prepare dynamic resources: {e}")
            raise RuntimeFailure("UNKNOWN", str(e)) from None

    # --- the end ---

    async def _terminate_finished(self, seen: Observed) -> None:
        """All containers ended for good: stop the sandbox, clean up, report. The task goes on until the object is deleted."""
        await self._stop(seen)
        await self._clean()
        while not (self.gone or self.pod["metadata"].get("deletionTimestamp")):
            self.wake.clear()
            self.kubelet.report(self)
            await self.wake.wait()
        self.kubelet.report(self)

    async def _terminate(self) -> None:
        """Deletion or failure: from here on there is no way back."""
        k = self.kubelet
        while not self.terminated:
            try:
                if (self.pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and not self.rejected:
                    self.generate(k.observer.seen(self.uid))
                    k.report(self)
                await self._stop(k.observer.seen(self.uid))
                await self._clean()
            except (RuntimeFailure, OSError) as e:
                k.tell(self.pod, "", "Warning", "FailedKillPod", f"error killing pod: {e}")
                await asyncio.sleep(CLEAN_RETRY_S)
        while not (self.gone or self.pod["metadata"].get("deletionTimestamp")):
            self.wake.clear()
            k.report(self)
            await self.wake.wait()
        k.report(self)

    async def _stop(self, seen: Observed) -> None:
        """Stops what runs. A shorter grace period that arrives meanwhile starts the stopping over."""
        k = self.kubelet
        k.prober.stop(self.uid, ("liveness", "startup"))
        seen = await k.observer.look(self.uid)
        while seen.running:
            grace = self._grace()
            self.stopping = asyncio.create_task(k.actor.stop_pod(self.pod, seen, grace))
            try:
                while not self.stopping.done():
                    self.wake.clear()
                    waiter = asyncio.create_task(self.wake.wait())
                    await asyncio.wait([self.stopping, waiter], return_when=asyncio.FIRST_COMPLETED)
                    waiter.cancel()
                    if not self.stopping.done():                    # readiness goes on, containers end one by one: say so
                        self.generate(k.observer.seen(self.uid))
                        k.report(self)
                    shorter = self._grace()
                    if not self.stopping.done() and shorter is not None and (grace is None or shorter < grace):
                        self.stopping.cancel()
                        await asyncio.gather(self.stopping, return_exceptions=True)
                        break
                if not self.stopping.cancelled():
                    self.stopping.result()
            finally:
                self.stopping.cancel()
            seen = await k.observer.look(self.uid)
            self.generate(seen)
            k.report(self)
        k.prober.remove(self.uid)

    def _grace(self) -> int | None:
        asked = self.pod["metadata"].get("deletionGracePeriodSeconds")
        if self.gone:
            return 1 if asked is None else min(int(asked), self.pod["spec"].get("terminationGracePeriodSeconds") or 30)
        if asked is not None:
            return max(1, int(asked))
        return self.grace_s

    async def _clean(self) -> None:
        """Volumes and cgroups go, the status is the last one."""
        k = self.kubelet
        seen = k.observer.seen(self.uid)
        api = self.pod.get("status") or {}
        settled = api.get("phase") in ("Succeeded", "Failed") and not seen.containers        # nothing is left to be said
        if settled:
            self.status = dict(api)
        else:
            self.generate(seen, terminal=True)
        try:
            await k.claims.unprepare(self.uid)
        except NotPrepared as e:
            raise RuntimeFailure("UNKNOWN", f"unprepare dynamic resources: {e}") from None
        await k.volumes.tear_down(self.uid)
        if await k.grants.release(self.uid):
            k.cpus_changed.set()
        k.objects.release(self.uid)
        if k.cgroups is not None:
            path = config.cgroup_parent(k.actor.node, self.pod)
            for _ in range(20):
                if await asyncio.to_thread(k.cgroups.remove, path):
                    break
                await asyncio.sleep(0.05)
        if settled:
            pass
        elif self.rejected and self.failed:
            self.status = {k: v for k, v in self.status.items() if k in ("observedGeneration", "startTime", "qosClass")}
            self.status |= {"phase": "Failed", "reason": self.failed[0], "message": self.failed[1]}
        else:
            self.status = ended_status(self.pod, self.status)
        self.terminated = True
        k.report(self)

    def changed_pod(self, pod: Object) -> None:
        """A newer form of the object."""
        self.pod = pod
        self.notify()
