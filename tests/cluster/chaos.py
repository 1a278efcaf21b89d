"""A whole control plane in virtual time under seeded faults, and what must hold of it.

One process holds the API server over the memory store, every controller, the scheduler and simulated nodes. Between them and the server lie
the faults of faults.py; Chaos ends controllers, scheduler, nodes and the server itself in the middle of what they do and starts them again, while
a random workload goes on; the watchdog (watchdog.py) looks on. Compare FoundationDB's simulation and Jepsen.

    python -m tests.cluster.chaos 118          # one seed, exactly as it failed
    python -m tests.cluster.chaos 100-599      # many
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import os
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson

from kubern.api import write
from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client, path_of
from kubern.client.loop import run_controllers
from kubern.client.mirror import Mirrors
from kubern.controllers import controllers
from kubern.controllers.context import Context
from kubern.kubelet.hollow import Hollow, Shape, shapes
from kubern.model.object import Object
from kubern.model.request import Request, Response, User
from kubern.model.rows import BUILT_IN
from kubern.model.status import StatusError
from kubern.scheduler.run import Scheduler
from kubern.store.memory import MemoryStore
from tests.cluster.faults import Faults
from tests.cluster.virtual import Broken, VirtualLoop
from tests.cluster.watchdog import KEPT, KEPT_MIN, QUOTA, SCALED_MAX, SCALED_MIN, Watchdog

MASTERS = ("system:masters", "system:authenticated")
ADMIN = User("admin", MASTERS)
ADDR_NO_RANDOMIZE = 0x0040000
EPOCH_S = 1893456000.0                # the first of January 2030
NODES, VOLUMES = 4, 24                # the last node is the one that is lost at times
NODE_GRACE_S = 25.0
CHAOS_S = 60.0                        # virtual, as all times here
SETTLE_MAX_S = 2400.0                 # backoff goes up to 1000 s
SCHEDULE_LINES_MAX = 400
PARTS = {"kube-scheduler": "scheduler", "nodes": "nodes"}      # whose requests come from which process; the others: controllers
LOAD = {"low": 10, "high": 400}       # milli CPU a pod of the autoscaled Deployment uses; it asks for 100


def pod_spec(cpu: str, *args: str, **spec: Any) -> Object:
    tolerations = [{"key": f"node.kubernetes.io/{x}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
                   for x in ("not-ready", "unreachable")]
    return {"terminationGracePeriodSeconds": 1, "tolerations": tolerations, **spec,
            "containers": [{"name": "c", "image": "x", "args": list(args), "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}}]}


def workload(kind: str, namespace: str, name: str, replicas: int | None, pod: Object, **spec: Any) -> Object:
    count = {} if replicas is None else {"replicas": replicas}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace},
            "spec": {**count, "selector": {"matchLabels": {"app": name}}, **spec,
                     "template": {"metadata": {"labels": {"app": name}}, "spec": pod}}}


def job(namespace: str, name: str, completions: int, code: int, **spec: Any) -> Object:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
            "spec": {"completions": completions, "parallelism": 2, "backoffLimit": 1 if code else 6, **spec,
                     "template": {"spec": pod_spec("100m", f"exit:{code}", restartPolicy="Never")}}}


def cron_job(namespace: str, name: str, policy: str) -> Object:
    spec = job(namespace, name, 1, 0)["spec"]
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name, "namespace": namespace},
            "spec": {"schedule": "@every 10s", "concurrencyPolicy": policy, "jobTemplate": {"spec": spec}}}


class Alarm(logging.Handler):
    """A traceback in any part's log is a fault of its own."""

    def __init__(self, broken: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.broken = broken

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.broken.append(logging.Formatter().format(record))


class Chaos:
    """One seed's run."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.schedule: list[str] = []
        self.store = MemoryStore()
        self.server: Server | None = None
        self.flying: set[asyncio.Task[Response]] = set()
        self.faults = Faults(self.send, random.Random(seed + 1), self.log, lambda who: self.end(PARTS.get(who, "controllers")))
        self.admin = Client(self.send, ADMIN, "chaos")
        self.dog = Watchdog(self.store, self.clock)
        self.ends: dict[str, asyncio.Event] = {}
        self.nodes: list[Shape] = shapes(NODES)
        self.load = "low"
        self.settled_s = 0.0
        self._made = 0

    def clock(self) -> float:
        return EPOCH_S + asyncio.get_running_loop().time()

    def log(self, text: str) -> None:
        self.schedule.append(f"{asyncio.get_running_loop().time():8.3f} {text}")

    # --- the server, which may be gone

    async def send(self, request: Request) -> Response:
        if request.path.startswith("/apis/metrics.k8s.io/"):
            return self._metrics()
        if self.server is None:
            raise ConnectionResetError("nobody listens")
        task = asyncio.ensure_future(self.server.handle(request))
        self.flying.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise ConnectionResetError("the server went away") from None
        finally:
            self.flying.discard(task)

    def _metrics(self) -> Response:
        """metrics.k8s.io: what the autoscaled pods use."""
        pods = [p for p in self.dog.under("core/pods", "work") if (p["metadata"].get("labels") or {}).get("app") == "scaled"]
        now = "2030-01-01T00:00:00Z"
        items = [{"metadata": {"name": p["metadata"]["name"], "namespace": "work"}, "timestamp": now, "window": "15s",
                  "containers": [{"name": "c", "usage": {"cpu": f"{LOAD[self.load]}m", "memory": "1Mi"}}]} for p in pods]
        body = {"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items}
        return Response(200, [("Content-Type", "application/json")], orjson.dumps(body))

    async def _serve(self) -> None:
        server = Server(self.store, settings=ApiSettings(), clock=self.clock)
        await server.start()
        self.server = server
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.server = None
            for task in list(self.flying):
                task.cancel()
            with contextlib.suppress(Exception):
                await server.stop()

    # --- the parts that are stopped and started

    def client(self, user: User, agent: str = "") -> Client:
        return Client(self.faults.send_of(user.name.rpartition(":")[2]), user, agent or "chaos")

    async def _controllers(self) -> None:
        context = Context(root_ca="PEM", node_grace_s=NODE_GRACE_S, started_s=self.clock())
        await run_controllers(controllers(context), self.client, clock=self.clock)

    async def _scheduler(self) -> None:
        client = self.client(User("system:kube-scheduler", ("system:authenticated",)))
        mirrors = Mirrors(client)
        try:
            await Scheduler(client, mirrors, self.clock, random.Random(self.seed + 2).randrange).run()
        finally:
            await mirrors.close()

    async def _nodes(self) -> None:
        await Hollow(self.client(User("system:nodes", MASTERS)), self.nodes, clock=self.clock).run()

    def end(self, part: str) -> None:
        if part in self.ends:
            self.ends[part].set()

    async def _part(self, name: str, run: Callable[[], Coroutine[Any, Any, None]], mean_s: float, away_s: float = 3.0) -> None:
        """Runs it, and while there are faults ends it at random moments and begins anew."""
        rng = random.Random(f"{self.seed} {name}")
        while True:
            task, end = asyncio.create_task(run(), name=name), asyncio.Event()
            self.ends[name] = end
            ended = asyncio.create_task(end.wait())
            try:
                life_s = rng.expovariate(1 / mean_s)
                await asyncio.wait((task, ended), timeout=life_s if self.faults.on else None, return_when=asyncio.FIRST_COMPLETED)
                if task.done() and not task.cancelled():
                    self.dog.broken.append(f"{name} died: {task.exception()!r}")
                    return
            finally:
                ended.cancel()
                task.cancel()
                await asyncio.gather(task, ended, return_exceptions=True)
            self.log(f"{name} stopped")
            await asyncio.sleep(rng.random() * away_s if self.faults.on else 0)
            self.log(f"{name} started")

    # --- what people do meanwhile

    async def act(self, what: str, work: Awaitable[Any]) -> Any:
        self.log(what)
        try:
            return await work
        except StatusError as e:
            self.log(f"  {e.code} {e.reason}: {e.message}")
            return None

    async def create(self, obj: Object, *, surely: bool = False) -> Any:
        what = f"create {obj['kind']} {obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
        while surely:
            try:
                return await self.admin.create(obj)
            except StatusError as e:
                if e.reason == "AlreadyExists":
                    return None
                await asyncio.sleep(0.2)
        return await self.act(what, self.admin.create(obj))

    async def patch(self, resource: str, namespace: str, name: str, change: Object, words: str = "") -> Any:
        return await self.act(words or f"change {resource} {namespace}/{name} {change}", self.admin.patch(BUILT_IN[resource], namespace, name, change))

    async def delete(self, resource: str, namespace: str, name: str, policy: str = "", grace_s: int | None = None) -> None:
        await self.act(f"delete {resource} {namespace}/{name} {policy} {'' if grace_s is None else grace_s}",
                       self.admin.delete(BUILT_IN[resource], namespace, name, propagation=policy, grace_s=grace_s))

    def names(self, resource: str, namespace: str) -> list[str]:
        return sorted(o["metadata"]["name"] for o in self.dog.under(resource, namespace))

    async def space(self, name: str, *, surely: bool = False) -> None:
        await self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, surely=surely)
        await self.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}, surely=surely)

    async def prepare(self) -> None:
        for name in ("work", "quota", "kept"):
            await self.space(name, surely=True)
        steady = {"nodeSelector": {"kubernetes.io/os": "linux"}, "priorityClassName": "high", "tolerations": [{"operator": "Exists"}], "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [self.nodes[-1].name]}]}]}}}}
        objects: list[Object] = [
            {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": n}, "value": v} for n, v in (("high", 1000), ("low", -10))]
        objects += [{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": n}, "provisioner": "kubernetes.io/no-provisioner",
                     "volumeBindingMode": mode} for n, mode in (("plain", "Immediate"), ("local", "WaitForFirstConsumer"))]
        for i in range(VOLUMES):
            local = {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.nodes[i // 2 % (NODES - 1)].name]}]}]}}} if i % 2 else {}
            objects.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"v{i}"}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local" if i % 2 else "plain",
                "hostPath": {"path": f"/v{i}"}, **local}})
        objects += [
            {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "quota"},
             "spec": {"hard": {k: str(v) for k, v in QUOTA.items()}}},
            {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "kept", "namespace": "kept"},
             "spec": {"minAvailable": KEPT_MIN, "selector": {"matchLabels": {"app": "kept"}}}},
            workload("Deployment", "kept", "kept", KEPT, pod_spec("100m", **steady)),
            workload("Deployment", "work", "scaled", None, pod_spec("100m")),
            {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "scaled", "namespace": "work"}, "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled"}, "minReplicas": SCALED_MIN, "maxReplicas": SCALED_MAX,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "d0", "namespace": "work"},
             "spec": {"selector": {"app": "d0"}, "ports": [{"port": 80}]}},
        ]
        for obj in objects:
            await self.create(obj, surely=True)
        while not any((q.get("status") or {}).get("used") for q in self.dog.under("core/resourcequotas")):  # noqa: ASYNC110
            await asyncio.sleep(0.1)                          # until then it limits nothing
        await self.create(workload("Deployment", "quota", "limited", 4, pod_spec("100m")), surely=True)

    async def step(self) -> None:
        """One random act of a user."""
        acts = self._acts()
        await self.rng.choices(list(acts), list(acts.values()))[0]()

    def _acts(self) -> dict[Callable[[], Awaitable[None]], int]:
        return {self.make: 6, self.scale: 6, self.update: 4, self.remove: 3, self.kill: 4, self.job: 4, self.end_job: 2, self.limited: 5, self.config_map: 2,
                self.evict_some: 6, self.temporary: 2, self.cron: 3, self.daemons: 3, self.lose_node: 2, self.recycle: 3, self.weigh: 2}

    def _some(self) -> tuple[str, str, str]:
        rng = self.rng
        return rng.choice((("Deployment", "deployments.apps", f"d{rng.randrange(3)}"), ("StatefulSet", "statefulsets.apps", f"s{rng.randrange(2)}")))

    def _priority(self) -> Object:
        return self.rng.choice(({}, {}, {"priorityClassName": "high"}, {"priorityClassName": "low"}))

    async def make(self) -> None:
        rng = self.rng
        kind, _, name = self._some()
        if kind == "StatefulSet":
            claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": rng.choice(("plain", "local")),
                                                            "resources": {"requests": {"storage": "1Gi"}}}}
            retention = {"whenDeleted": rng.choice(("Delete", "Retain")), "whenScaled": rng.choice(("Delete", "Retain"))}
            spec: Object = {"podManagementPolicy": rng.choice(("Parallel", "OrderedReady")), "serviceName": name,
                            **({"volumeClaimTemplates": [claim], "persistentVolumeClaimRetentionPolicy": retention} if rng.random() < 0.6 else {})}
        else:
            spec = {"strategy": {"type": rng.choice(("RollingUpdate", "RollingUpdate", "Recreate"))}}
        await self.create(workload(kind, "work", name, rng.randrange(1, 8), pod_spec(rng.choice(("300m", "700m", "1100m")), **self._priority()), **spec))

    async def scale(self) -> None:
        _, resource, name = self._some()
        await self.patch(resource, "work", name, {"spec": {"replicas": self.rng.choice((0, 1, 2, 3, 5, 8))}})

    async def update(self) -> None:
        _, resource, name = self._some()
        await self.patch(resource, "work", name, {"spec": {"template": {"metadata": {"annotations": {"turn": str(self.rng.randrange(4))}}}}})

    async def remove(self) -> None:
        _, resource, name = self._some()
        await self.delete(resource, "work", name, self.rng.choice(("Background", "Foreground")))

    async def kill(self) -> None:
        if pods := self.names("core/pods", "work"):
            await self.delete("pods", "work", self.rng.choice(pods), grace_s=self.rng.choice((None, None, 0)))

    async def job(self) -> None:
        rng = self.rng
        self._made += 1
        spec: Object = {"completionMode": "Indexed"} if rng.random() < 0.4 else {}
        if rng.random() < 0.3:
            spec["ttlSecondsAfterFinished"] = rng.randrange(20)
        await self.create(job("work", f"j{self._made}", rng.randrange(1, 5), int(rng.random() < 0.2), **spec))

    async def end_job(self) -> None:
        if jobs := self.names("batch/jobs", "work"):
            await self.delete("jobs.batch", "work", self.rng.choice(jobs), self.rng.choice(("Background", "Foreground")))

    async def cron(self) -> None:
        name = f"c{self.rng.randrange(2)}"
        if name not in self.names("batch/cronjobs", "work"):
            await self.create(cron_job("work", name, self.rng.choice(("Allow", "Forbid", "Replace"))))
        elif self.rng.random() < 0.3:
            await self.delete("cronjobs.batch", "work", name, "Background")
        else:
            await self.patch("cronjobs.batch", "work", name, {"spec": {"suspend": self.rng.random() < 0.5}})

    async def daemons(self) -> None:
        if "ds" not in self.names("apps/daemonsets", "work"):
            rolling = self.rng.choice(({"maxUnavailable": 1}, {"maxSurge": 1, "maxUnavailable": 0}))
            await self.create(workload("DaemonSet", "work", "ds", None, pod_spec("50m", priorityClassName="high"),
                                       updateStrategy={"type": "RollingUpdate", "rollingUpdate": rolling}))
        elif self.rng.random() < 0.3:
            await self.delete("daemonsets.apps", "work", "ds", self.rng.choice(("Background", "Foreground")))
        else:
            change = {"spec": {"template": {"metadata": {"annotations": {"turn": str(self.rng.randrange(4))}}}}}
            await self.patch("daemonsets.apps", "work", "ds", change)

    async def limited(self) -> None:
        await self.patch("deployments.apps", "quota", "limited", {"spec": {"replicas": self.rng.randrange(1, 10)}})

    async def config_map(self) -> None:
        name = f"m{self.rng.randrange(6)}"
        if name in self.names("core/configmaps", "quota"):
            await self.delete("configmaps", "quota", name)
        else:
            await self.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "quota"}})

    async def evict_some(self) -> None:
        pods = self.names("core/pods", "kept")
        await asyncio.gather(*(self.evict(x) for x in self.rng.sample(pods, min(2, len(pods)))))

    async def evict(self, name: str) -> None:
        await self.act(f"evict {name}", self.admin.call("POST", path_of(BUILT_IN["pods"], "kept", name, "eviction"), None, {
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "kept"}}))

    async def temporary(self) -> None:
        """A namespace with things in it that goes while they come to life."""
        self._made += 1
        name = f"t{self._made}"
        await self.space(name)
        await self.create(workload("Deployment", name, "d", 2, pod_spec("50m")))
        await self.create(workload("StatefulSet", name, "s", 2, pod_spec("50m"), serviceName="s"))
        await self.create(workload("DaemonSet", name, "ds", None, pod_spec("10m")))
        await self.create(job(name, "j", 2, 0))
        await self.create(cron_job(name, "c", "Allow"))
        await asyncio.sleep(self.rng.random() * 3)
        await self.delete("namespaces", "", name)

    async def lose_node(self) -> None:
        """The last node falls silent, at times for good as far as anybody knows, or comes back."""
        lost = len(self.nodes) < NODES
        self.nodes = shapes(NODES if lost else NODES - 1)
        self.log("the lost node is back" if lost else "a node is lost")
        self.end("nodes")
        if lost and self.rng.random() < 0.3:
            await self.delete("nodes", "", shapes(NODES)[-1].name)

    async def spare(self) -> None:
        """Claims that nobody wants any more make room for those who do. Not while their pods are there: a set that scales down waits for two pods
        that cannot start, here and upstream."""
        pods = set(self.names("core/pods", "work"))
        for name in self.names("core/persistentvolumeclaims", "work"):
            if not name.endswith("-0") and name.removeprefix("data-") not in pods:
                await self.delete("persistentvolumeclaims", "work", name)

    async def recycle(self) -> None:
        """Volumes whose claim is gone are wiped and offered again."""
        for v in self.dog.under("core/persistentvolumes"):
            if (v.get("status") or {}).get("phase") == "Released":
                await self.patch("persistentvolumes", "", v["metadata"]["name"], {"metadata": {"resourceVersion": v["metadata"].get("resourceVersion")},
                                 "spec": {"claimRef": None}}, f"recycle {v['metadata']['name']}")

    async def weigh(self) -> None:
        self.load = self.rng.choice(list(LOAD))
        self.log(f"load {self.load}")

    async def calm(self) -> None:
        """So little that it must fit, and every node is there."""
        self.nodes = shapes(NODES)
        self.end("nodes")
        for resource, few in (("deployments.apps", 2), ("statefulsets.apps", 1)):
            for name in self.names(f"apps/{BUILT_IN[resource].plural}", "work"):
                if name != "scaled":
                    await self.patch(resource, "work", name, {"spec": {"replicas": few}})
        for name in self.names("batch/cronjobs", "work"):
            await self.patch("cronjobs.batch", "work", name, {"spec": {"suspend": True}})

    # --- the run

    async def run(self) -> None:
        """Raises Broken."""
        loop = asyncio.get_running_loop()
        parts = [asyncio.create_task(self._part(name, run, *times)) for name, run, *times in (
            ("server", self._serve, 40.0, 1.0), ("controllers", self._controllers, 9.0), ("scheduler", self._scheduler, 9.0), ("nodes", self._nodes, 15.0))]
        try:
            await self.prepare()
            until = loop.time() + CHAOS_S
            while loop.time() < until and not self.dog.broken:
                await self.step()
                await asyncio.sleep(self.rng.expovariate(1 / 0.8))
            self.faults.on = False
            self.log("faults end")
            while self.server is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await self.calm()
            await self._settle(loop.time())
        finally:
            for part in reversed(parts):
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await self.store.close()

    async def _settle(self, since_s: float) -> None:
        loop = asyncio.get_running_loop()
        calm_s, want = 0.0, {"scaled": {"low": SCALED_MIN, "high": SCALED_MAX}[self.load]}
        while True:
            if self.dog.broken:
                raise Broken("\n".join(self.dog.broken[:10]))
            wrong = list(self.dog.settled(want))
            calm_s = calm_s + 1 if not wrong else 0
            if calm_s >= 5:                                       # and stays so
                self.settled_s = loop.time() - since_s
                return
            if loop.time() - since_s > SETTLE_MAX_S:
                raise Broken("\n".join(wrong[:20]))
            await self.spare()
            await self.recycle()
            await asyncio.sleep(1 if loop.time() - since_s < 60 else 10)


def run(seed: int) -> Chaos:
    """Runs a seed. The failure's text holds what is needed to see it again."""
    chaos = Chaos(seed)
    random.seed(seed)                                              # jitter of followers, names
    write._random.seed(seed)                                       # uids
    logger, alarm = logging.getLogger("kubern"), Alarm(chaos.dog.broken)
    logger.addHandler(alarm)
    logger.propagate = False
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(chaos.run())
    except Broken as e:
        lines = "\n".join(chaos.schedule[-SCHEDULE_LINES_MAX:])
        raise Broken(f"seed {seed}:\n{e}\nschedule:\n{lines}\nagain: python -m tests.cluster.chaos {seed}") from None
    finally:
        logger.removeHandler(alarm)
        logger.propagate = True
    return chaos


def _one(seed: int) -> int:
    """Runs a seed and tells of it; 1 if something broke."""
    try:
        done = run(seed)
    except Broken as e:
        print(e, flush=True)
        return 1
    told = hashlib.sha256("\n".join(done.schedule).encode()).hexdigest()[:8]
    print(f"{seed}: at rest after {done.settled_s:.0f} s, schedule {told}; {dict(done.faults.count)}", flush=True)
    return 0


def main(words: list[str]) -> int:
    """Each seed in a process of its own: none inherits what another left behind."""
    if os.environ.get("PYTHONHASHSEED") != "0":                    # the order of sets is part of the schedule, by hash and by address
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)
        os.execve(sys.executable, [sys.executable, "-m", "tests.cluster.chaos", *words], {**os.environ, "PYTHONHASHSEED": "0"})
    failed = []
    for word in words:
        first, _, last = word.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            child = os.fork()
            if not child:
                os._exit(_one(seed))
            if os.waitpid(child, 0)[1]:
                failed.append(seed)
    if failed:
        print(f"failed: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
