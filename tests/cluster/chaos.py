"""A whole control plane in virtual time under seeded faults, and what must hold of it.

One process holds the API server over the memory store, every controller, the scheduler and simulated nodes. Between them and the server lies
Faults: requests that fail before or after they took effect, answers that come late, watches that are delayed, cut or told to list again.
Chaos stops controllers, scheduler and nodes in the middle of what they do and starts them again, while a random workload goes on. Watchdog
reads the store itself, so it misses no revision and believes nobody's copy. Compare FoundationDB's simulation and Jepsen.

The loop's clock jumps to the next timer as soon as nothing is left to do: minutes pass in the time of the work alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from fractions import Fraction
from typing import Any

import orjson

from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client, path_of
from kubern.client.loop import run_controllers
from kubern.client.mirror import Mirrors
from kubern.controllers import controllers
from kubern.controllers.context import Context
from kubern.kubelet.hollow import Hollow, shapes
from kubern.model.object import Object
from kubern.model.quantity import parse
from kubern.model.request import Request, Response, Send, User
from kubern.model.rows import BUILT_IN
from kubern.model.status import StatusError
from kubern.model.usage import counts
from kubern.scheduler.run import Scheduler
from kubern.store.memory import MemoryStore

MASTERS = ("system:masters", "system:authenticated")
ADMIN = User("admin", MASTERS)
NODES = 3
CHAOS_S = 40.0                        # virtual, as all times here
SETTLE_MAX_S = 2400.0                 # backoff goes up to 1000 s
SCHEDULE_LINES_MAX = 400
STILL_TURNS_MAX = 20_000              # turns of the loop in one moment
QUOTA_PODS = 6
KEPT, KEPT_MIN = 4, 3                 # replicas behind the disruption budget, and its minAvailable


class Broken(AssertionError):
    """An invariant does not hold."""


class VirtualTime(selectors.DefaultSelector):        # type: ignore[misc, valid-type]
    """A selector that does not wait: it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._still = 0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise Broken("nothing will ever happen again")
            self._still = 0 if timeout > 0 else self._still + 1
            if self._still > STILL_TURNS_MAX:
                raise Broken("somebody works without a pause: the clock stands still")
            self.now_s += max(timeout, 0.0)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = VirtualTime()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s


class Faults:
    """The seeded fault layer. `send_of(name)` is the server as this component sees it."""

    def __init__(self, send: Send, rng: random.Random, log: Callable[[str], None]) -> None:
        self.send, self.rng, self.log = send, rng, log
        self.on = True
        self.count: Counter[str] = Counter()

    def send_of(self, who: str) -> Send:
        async def send(request: Request) -> Response:
            return await self._send(who, request)
        return send

    def _hit(self, what: str, who: str, request: Request) -> None:
        self.count[what] += 1
        if request.method != "GET":
            self.log(f"{what}: {who} {request.method} {request.path}")

    async def _send(self, who: str, request: Request) -> Response:
        if not self.on:
            return await self._watched(request, await self.send(request))
        rng, write = self.rng, request.method != "GET"
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.5)
        roll = rng.random()
        if roll < 0.05:
            self._hit("lost request", who, request)
            raise ConnectionResetError("the request was lost")
        if roll < 0.08:
            code, reason = rng.choice(((500, "InternalError"), (429, "TooManyRequests"), (503, "ServiceUnavailable"), (504, "Timeout")))
            self._hit(f"answered {code}", who, request)
            body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "chaos"}
            return Response(code, [("Content-Type", "application/json")], orjson.dumps(body))
        response = await self.send(request)
        if write and roll < 0.14:
            self._hit("lost answer", who, request)
            raise ConnectionResetError("the answer was lost")
        if rng.random() < 0.1:
            await asyncio.sleep(rng.random() * 0.5)
        return await self._watched(request, response)

    async def _watched(self, request: Request, response: Response) -> Response:
        if "watch" in request.query and getattr(response.body, "objects", False):
            response.body = _Stream(self, response.body)         # type: ignore[assignment]
        return response


class _Stream:
    """A watch that comes late and breaks."""

    objects = True

    def __init__(self, faults: Faults, body: Any) -> None:
        self.faults, self.body = faults, body

    async def events(self) -> AsyncIterator[list[tuple[str, Object]]]:
        faults, rng, loop = self.faults, self.faults.rng, asyncio.get_running_loop()
        inner = self.body.events()
        ends = loop.time() + rng.expovariate(1 / 10.0)
        try:
            while True:
                try:
                    if faults.on:
                        async with asyncio.timeout_at(ends):
                            batch = await anext(inner)
                    else:
                        batch = await anext(inner)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    roll = rng.random()
                    faults.count["watch cut"] += 1
                    if roll < 0.4:
                        faults.count["watch gone"] += 1
                        yield [("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})]
                    elif roll < 0.7:
                        raise ConnectionResetError("the watch was cut") from None
                    return
                if faults.on and rng.random() < 0.3:
                    await asyncio.sleep(rng.random() * rng.choice((0.05, 1.0, 4.0)))
                if faults.on and len(batch) > 1 and rng.random() < 0.05:
                    yield batch[:rng.randrange(1, len(batch))]
                    raise ConnectionResetError("the watch was cut within a batch")
                yield batch
        finally:
            await inner.aclose()


def _ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in (pod.get("status") or {}).get("conditions") or ())


def _over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _asks(pod: Object, what: str) -> Fraction:
    return sum((parse(str(((c.get("resources") or {}).get("requests") or {}).get(what, "0"))).amount
                for c in pod["spec"]["containers"]), Fraction(0))


class Watchdog:
    """The store's own truth: every revision is checked by `always`, the settled state by `finally_`."""

    def __init__(self, store: MemoryStore, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.objects: dict[str, Object] = {}
        self.broken: list[str] = []
        self.kept_whole = False
        self._usage: dict[str, Counter[str]] = {}
        store.subscribe(self._take)

    def _take(self, batch: Any) -> None:
        for event in batch:
            if "/events/" in event.key:
                continue
            old = self.objects.get(event.key)
            if event.value is None:
                new = None
                self.objects.pop(event.key, None)
            else:
                new = self.objects[event.key] = orjson.loads(b'{"metadata":{' + event.value)
            if event.key.startswith("/registry/core/pods/"):
                self._pod(event.key, old, new)
            elif event.key.startswith("/registry/batch/jobs/") and new is not None:
                if (new.get("status") or {}).get("succeeded", 0) > (new["spec"].get("completions") or 0):
                    self.broken.append(f"{event.key}: more successes than completions")

    def _charge(self, pod: Object | None, sign: int) -> None:
        if pod is None or _over(pod) or not (node := pod["spec"].get("nodeName")):
            return
        used = self._usage.setdefault(node, Counter())
        used["pods"] += sign
        for what in ("cpu", "memory"):
            used[what] += sign * _asks(pod, what)                # type: ignore[assignment]

    def _pod(self, key: str, old: Object | None, new: Object | None) -> None:
        self._charge(old, -1)
        self._charge(new, 1)
        space = key.split("/")[4]
        if old is not None and new is not None and old["metadata"]["uid"] == new["metadata"]["uid"]:
            was, now = old["spec"].get("nodeName"), new["spec"].get("nodeName")
            if was and was != now:
                self.broken.append(f"{key}: bound to {was}, then to {now}")
            if _over(old) and not _over(new):
                self.broken.append(f"{key}: {old['status']['phase']} and alive again")
        if new is not None and (node := new["spec"].get("nodeName")) and not _over(new):
            room = ((self.objects.get(f"/registry/core/nodes/{node}") or {}).get("status") or {}).get("allocatable") or {}
            for what in ("cpu", "memory", "pods"):
                if what in room and self._usage[node][what] > parse(str(room[what])).amount:
                    self.broken.append(f"{key}: {node} holds {self._usage[node][what]} of {what}, has {room[what]}")
        if space == "quota":
            now = self.clock()
            count = sum(counts(p, now) for p in self.under("core/pods", "quota"))
            if count > QUOTA_PODS:
                self.broken.append(f"{key}: {count} pods where {QUOTA_PODS} are allowed")
        if space == "kept":
            healthy = sum(_ready(p) and not p["metadata"].get("deletionTimestamp") for p in self.under("core/pods", "kept"))
            self.kept_whole = self.kept_whole or healthy >= KEPT
            if self.kept_whole and healthy < KEPT_MIN:
                self.broken.append(f"{key}: {healthy} healthy pods where {KEPT_MIN} must stay")

    def under(self, resource: str, namespace: str = "") -> list[Object]:
        prefix = f"/registry/{resource}/" + (f"{namespace}/" if namespace else "")
        return [o for k, o in self.objects.items() if k.startswith(prefix)]

    def owned(self, resource: str, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [o for o in self.under(resource, owner["metadata"]["namespace"])
                if any(r["uid"] == uid for r in o["metadata"].get("ownerReferences") or ())]

    def settled(self) -> Iterator[str]:
        """What is not yet, or no longer, as it must be once everything has come to rest."""
        uids = {o["metadata"].get("uid") for o in self.objects.values()}
        spaces = {o["metadata"]["name"] for o in self.under("core/namespaces")}
        for key, obj in self.objects.items():
            meta = obj["metadata"]
            if meta.get("deletionTimestamp"):
                yield f"{key}: stuck terminating, finalizers {meta.get('finalizers')} {(obj.get('spec') or {}).get('finalizers')}"
            if meta.get("namespace") and meta["namespace"] not in spaces:
                yield f"{key}: its namespace is gone"
            lost = [r for r in meta.get("ownerReferences") or () if r["uid"] not in uids]
            if lost:
                yield f"{key}: an orphan of {[r['kind'] + '/' + r['name'] for r in lost]}"
        for d in self.under("apps/deployments"):
            yield from self._deployment(d)
        for s in self.under("apps/statefulsets"):
            want, status, at = s["spec"]["replicas"], s.get("status") or {}, f"statefulset {s['metadata']['namespace']}/{s['metadata']['name']}"
            names = {p["metadata"]["name"] for p in self.owned("core/pods", s)}
            if names != {f"{s['metadata']['name']}-{i}" for i in range(want)}:
                yield f"{at}: {want} replicas, pods {sorted(names)}"
            if status.get("observedGeneration") != s["metadata"]["generation"] or any(
                    status.get(k, 0) != want for k in ("replicas", "readyReplicas", "updatedReplicas", "currentReplicas", "availableReplicas")):
                yield f"{at}: {want} replicas, status {status}"
        for j in self.under("batch/jobs"):
            yield from self._job(j)
        for s in self.under("core/services"):
            if selector := s["spec"].get("selector"):
                want_ips = [p["status"].get("podIP") for p in self.under("core/pods", s["metadata"]["namespace"])
                            if _ready(p) and selector.items() <= (p["metadata"].get("labels") or {}).items()]
                if len(want_ips) != len(set(want_ips)):
                    yield f"service {s['metadata']['name']}: pods share addresses {want_ips}"
                ips = [a for e in self.owned("discovery.k8s.io/endpointslices", s) for x in e.get("endpoints") or () for a in x["addresses"]
                       if (x.get("conditions") or {}).get("ready")]
                if sorted(ips) != sorted(want_ips):
                    yield f"service {s['metadata']['name']}: endpoints {sorted(ips)}, ready pods {sorted(want_ips)}"
        for q in self.under("core/resourcequotas"):
            count = str(sum(not _over(p) for p in self.under("core/pods", q["metadata"]["namespace"])))
            if ((q.get("status") or {}).get("used") or {}).get("pods") != count:
                yield f"quota: used {(q.get('status') or {}).get('used')}, pods {count}"
        for b in self.under("policy/poddisruptionbudgets"):
            healthy = sum(_ready(p) for p in self.under("core/pods", b["metadata"]["namespace"]))
            status = b.get("status") or {}
            if status.get("currentHealthy") != healthy or status.get("disruptionsAllowed") != healthy - KEPT_MIN or status.get("disruptedPods"):
                yield f"budget: status {status}, healthy {healthy}"

    def _deployment(self, d: Object) -> Iterator[str]:
        want, status, at = d["spec"]["replicas"], d.get("status") or {}, f"deployment {d['metadata']['namespace']}/{d['metadata']['name']}"
        sets = self.owned("apps/replicasets", d)
        pods = [p for s in sets for p in self.owned("core/pods", s)]
        if d["metadata"]["namespace"] == "quota":
            if len(pods) != min(want, QUOTA_PODS) or status.get("readyReplicas", 0) != len(pods):
                yield f"{at}: {want} replicas, {len(pods)} pods, status {status}"
            return
        if len(pods) != want or any(_over(p) for p in pods):
            yield f"{at}: {want} replicas, {len(pods)} pods"
        if sum(s["spec"]["replicas"] > 0 for s in sets) > 1:
            yield f"{at}: several replica sets have pods"
        if status.get("observedGeneration") != d["metadata"]["generation"] or any(
                status.get(k, 0) != want for k in ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")):
            yield f"{at}: {want} replicas, status {status}"

    def _job(self, j: Object) -> Iterator[str]:
        status, at = j.get("status") or {}, f"job {j['metadata']['name']}"
        true = {c["type"] for c in status.get("conditions") or () if c["status"] == "True"}
        fails = "exit:1" in j["spec"]["template"]["spec"]["containers"][0]["args"]
        if ("Failed" if fails else "Complete") not in true:
            yield f"{at}: status {status}"
        if not fails and status.get("succeeded") != j["spec"]["completions"]:
            yield f"{at}: {status.get('succeeded')} successes"
        if any((status.get("uncountedTerminatedPods") or {}).values()) or status.get("active"):
            yield f"{at}: uncounted {status}"
        for p in self.owned("core/pods", j):
            if p["metadata"].get("finalizers") or not _over(p):
                yield f"{at}: pod {p['metadata']['name']} {p['metadata'].get('finalizers')} {p['status'].get('phase')}"


def pod_spec(cpu: str, *args: str, **spec: Any) -> Object:
    return {"terminationGracePeriodSeconds": 1, **spec,
            "containers": [{"name": "c", "image": "x", "args": list(args), "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}}]}


def workload(kind: str, namespace: str, name: str, replicas: int, cpu: str, **spec: Any) -> Object:
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, **spec,
                     "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec(cpu)}}}


def job(namespace: str, name: str, completions: int, code: int) -> Object:
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
            "spec": {"completions": completions, "parallelism": 2, "backoffLimit": 1 if code else 6,
                     "template": {"spec": pod_spec("100m", f"exit:{code}", restartPolicy="Never")}}}


class Chaos:
    """One seed's run."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.schedule: list[str] = []
        self.epoch_s = float(int(time.time()))
        self.store = MemoryStore()
        self.server = Server(self.store, settings=ApiSettings(), clock=self.clock)
        self.faults = Faults(self.server.handle, random.Random(seed + 1), self.log)
        self.admin = Client(self.server.handle, ADMIN, "chaos")
        self.dog = Watchdog(self.store, self.clock)
        self.settled_s = 0.0
        self._made = 0

    def clock(self) -> float:
        return self.epoch_s + asyncio.get_running_loop().time()

    def log(self, text: str) -> None:
        self.schedule.append(f"{asyncio.get_running_loop().time():8.3f} {text}")

    # --- the parts that are stopped and started

    def client(self, user: User, agent: str = "") -> Client:
        return Client(self.faults.send_of(user.name.rpartition(":")[2]), user, agent or "chaos")

    async def _controllers(self) -> None:
        await run_controllers(controllers(Context(root_ca="PEM", node_grace_s=600, started_s=self.clock())), self.client, clock=self.clock)

    async def _scheduler(self) -> None:
        client = self.client(User("system:kube-scheduler", ("system:authenticated",)))
        mirrors = Mirrors(client)
        try:
            await Scheduler(client, mirrors, self.clock, random.Random(self.seed + 2).randrange).run()
        finally:
            await mirrors.close()

    async def _nodes(self) -> None:
        await Hollow(self.client(User("system:nodes", MASTERS)), shapes(NODES), clock=self.clock).run()

    async def _part(self, name: str, run: Callable[[], Coroutine[Any, Any, None]], mean_s: float) -> None:
        """Runs it, and while there are faults ends it at random moments and begins anew."""
        rng = random.Random(f"{self.seed} {name}")
        while True:
            task = asyncio.create_task(run(), name=name)
            try:
                life_s = rng.expovariate(1 / mean_s)
                await asyncio.wait((task,), timeout=life_s if self.faults.on else None)
                if task.done() and not task.cancelled():
                    self.dog.broken.append(f"{name} died: {task.exception()!r}")
                    return
                if not self.faults.on:
                    await task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            self.log(f"{name} stopped")
            await asyncio.sleep(rng.random() * 3)
            self.log(f"{name} started")

    # --- what people do meanwhile

    async def act(self, what: str, work: Awaitable[Any]) -> Any:
        self.log(what)
        try:
            return await work
        except StatusError as e:
            self.log(f"  {e.code} {e.reason}: {e.message}")
            return None

    async def create(self, obj: Object) -> Any:
        return await self.act(f"create {obj['kind']} {obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}", self.admin.create(obj))

    async def space(self, name: str) -> None:
        await self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        await self.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}})

    async def prepare(self) -> None:
        for name in ("work", "quota", "kept"):
            await self.space(name)
        await self.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": "quota"},
                           "spec": {"hard": {"pods": str(QUOTA_PODS)}}})
        while not any((q.get("status") or {}).get("used") for q in self.dog.under("core/resourcequotas")):  # noqa: ASYNC110  # noqa: ASYNC110
            await asyncio.sleep(0.1)                          # until then it limits nothing
        await self.create({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "kept", "namespace": "kept"},
                           "spec": {"minAvailable": KEPT_MIN, "selector": {"matchLabels": {"app": "kept"}}}})
        await self.create(workload("Deployment", "kept", "kept", KEPT, "100m"))
        await self.create(workload("Deployment", "quota", "limited", 4, "100m"))
        await self.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "d0", "namespace": "work"},
                           "spec": {"selector": {"app": "d0"}, "ports": [{"port": 80}]}})

    async def step(self) -> None:
        """One random act of a user."""
        rng, admin = self.rng, self.admin
        kind, resource, name = rng.choice((("Deployment", "deployments.apps", f"d{rng.randrange(3)}"),
                                           ("StatefulSet", "statefulsets.apps", f"s{rng.randrange(2)}")))
        row, at = BUILT_IN[resource], f"{resource}/{name}"
        what = rng.choices(("create", "scale", "update", "delete", "kill", "job", "end job", "limited", "evict", "space"),
                           (6, 6, 4, 2, 4, 3, 2, 5, 6, 2))[0]
        if what == "create":
            spec = {"podManagementPolicy": rng.choice(("Parallel", "OrderedReady")), "serviceName": name} if kind == "StatefulSet" else \
                {"strategy": {"type": rng.choice(("RollingUpdate", "RollingUpdate", "Recreate"))}}
            await self.create(workload(kind, "work", name, rng.randrange(1, 8), rng.choice(("300m", "700m")), **spec))
        elif what == "scale":
            count = rng.choice((0, 1, 2, 3, 5, 8))
            await self.act(f"scale {at} to {count}", admin.patch(row, "work", name, {"spec": {"replicas": count}}))
        elif what == "update":
            change = {"spec": {"template": {"metadata": {"annotations": {"turn": str(rng.randrange(4))}}}}}
            await self.act(f"update {at}", admin.patch(row, "work", name, change))
        elif what == "delete":
            policy = rng.choice(("Background", "Foreground"))
            await self.act(f"delete {at} {policy}", admin.delete(row, "work", name, propagation=policy))
        elif what == "kill":
            pods = sorted(p["metadata"]["name"] for p in self.dog.under("core/pods", "work"))
            if pods:
                victim, grace_s = rng.choice(pods), rng.choice((None, None, 0))
                await self.act(f"delete pod {victim} grace {grace_s}", admin.delete(BUILT_IN["pods"], "work", victim, grace_s=grace_s))
        elif what == "job":
            self._made += 1
            await self.create(job("work", f"j{self._made}", rng.randrange(1, 5), int(rng.random() < 0.2)))
        elif what == "end job":
            if self._made:
                one = f"j{rng.randrange(self._made) + 1}"
                policy = rng.choice(("Background", "Foreground"))
                await self.act(f"delete job {one} {policy}", admin.delete(BUILT_IN["jobs.batch"], "work", one, propagation=policy))
        elif what == "limited":
            count = rng.randrange(1, 10)
            await self.act(f"scale limited to {count}", admin.patch(BUILT_IN["deployments.apps"], "quota", "limited", {"spec": {"replicas": count}}))
        elif what == "evict":
            pods = sorted(p["metadata"]["name"] for p in self.dog.under("core/pods", "kept"))
            await asyncio.gather(*(self.evict(x) for x in rng.sample(pods, min(2, len(pods)))))
        else:
            await self.temporary()

    async def evict(self, name: str) -> None:
        await self.act(f"evict {name}", self.admin.call("POST", path_of(BUILT_IN["pods"], "kept", name, "eviction"), None, {
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "kept"}}))

    async def temporary(self) -> None:
        """A namespace with things in it that goes while they come to life."""
        rng = self.rng
        self._made += 1
        name = f"t{self._made}"
        await self.space(name)
        await self.create(workload("Deployment", name, "d", 2, "50m"))
        await self.create(workload("StatefulSet", name, "s", 2, "50m", serviceName="s"))
        await self.create(job(name, "j", 2, 0))
        await asyncio.sleep(rng.random() * 3)
        await self.act(f"delete namespace {name}", self.admin.delete(BUILT_IN["namespaces"], "", name))

    async def calm(self) -> None:
        """So little that it must fit."""
        for resource in ("deployments.apps", "statefulsets.apps"):
            row = BUILT_IN[resource]
            for obj in self.dog.under(f"apps/{row.plural}", "work"):
                await self.act(f"calm {obj['metadata']['name']}", self.admin.patch(row, "work", obj["metadata"]["name"], {"spec": {"replicas": 2}}))

    # --- the run

    async def run(self) -> None:
        """Raises Broken."""
        loop = asyncio.get_running_loop()
        await self.server.start()
        parts = [asyncio.create_task(self._part(name, run, mean_s)) for name, run, mean_s in (
            ("controllers", self._controllers, 9.0), ("scheduler", self._scheduler, 9.0), ("nodes", self._nodes, 15.0))]
        try:
            await self.prepare()
            until = loop.time() + CHAOS_S
            while loop.time() < until and not self.dog.broken:
                await self.step()
                await asyncio.sleep(self.rng.expovariate(1 / 0.8))
            self.faults.on = False
            self.log("faults end")
            await self.calm()
            await self._settle(loop.time())
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            with contextlib.suppress(Exception):
                await self.server.stop()
            await self.store.close()

    async def _settle(self, since_s: float) -> None:
        loop = asyncio.get_running_loop()
        calm_s = 0.0
        while True:
            if self.dog.broken:
                raise Broken("\n".join(self.dog.broken[:10]))
            wrong = list(self.dog.settled())
            calm_s = calm_s + 1 if not wrong else 0
            if calm_s >= 5:                                       # and stays so
                self.settled_s = loop.time() - since_s
                return
            if loop.time() - since_s > SETTLE_MAX_S:
                raise Broken("\n".join(wrong[:20]))
            await asyncio.sleep(1 if loop.time() - since_s < 60 else 10)


def run(seed: int) -> Chaos:
    """Runs a seed. The failure's text holds what is needed to see it again."""
    chaos = Chaos(seed)
    random.seed(seed)                                              # jitter of followers
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        try:
            runner.run(chaos.run())
        except Broken as e:
            lines = "\n".join(chaos.schedule[-SCHEDULE_LINES_MAX:])
            raise Broken(f"seed {seed}:\n{e}\nschedule:\n{lines}") from None
    return chaos
