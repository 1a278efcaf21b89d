"""Watchdog: reads the store itself, so it misses no revision and believes nobody's copy.

What must hold at every revision is checked in `_take` and below; what must hold once everything has come to rest, by the functions of SETTLED.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import orjson

from kubern.model.object import Object
from kubern.model.quantity import parse
from kubern.model.usage import counts
from kubern.store.memory import MemoryStore

QUOTA = {"pods": 6, "count/configmaps": 5}
KEPT, KEPT_MIN = 4, 3                 # replicas behind the disruption budget, and its minAvailable
SCALED_MIN, SCALED_MAX = 1, 4         # the autoscaler's bounds


def ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in (pod.get("status") or {}).get("conditions") or ())


def over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def deleting(obj: Object) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def at(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"


def _asks(pod: Object, what: str) -> Fraction:
    return sum((parse(str(((c.get("resources") or {}).get("requests") or {}).get(what, "0"))).amount
                for c in pod["spec"]["containers"]), Fraction(0))


def _owner(obj: Object, kind: str) -> str:
    return next((r["uid"] for r in obj["metadata"].get("ownerReferences") or () if r["kind"] == kind and r.get("controller")), "")


class Watchdog:
    def __init__(self, store: MemoryStore, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.objects: dict[str, Object] = {}
        self.broken: list[str] = []
        self._usage: dict[str, Counter[str]] = {}
        self._most: dict[str, int] = {}                        # uid of a ReplicaSet -> the most replicas it was ever asked for
        store.subscribe(self._take)

    # --- at every revision

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
                new["kind"] = event.key.split("/")[3]                       # it is not stored
            resource = "/".join(event.key.split("/")[2:4])
            check = {"core/pods": self._pod, "batch/jobs": self._job, "apps/replicasets": self._replicas, "core/configmaps": self._config_map,
                     "core/persistentvolumeclaims": self._claim}.get(resource)
            if check is not None:
                check(event.key, old, new)

    def _job(self, key: str, old: Object | None, new: Object | None) -> None:
        if new is not None and (new.get("status") or {}).get("succeeded", 0) > (new["spec"].get("completions") or 0):
            self.broken.append(f"{key}: more successes than completions")

    def _replicas(self, key: str, old: Object | None, new: Object | None) -> None:
        if new is not None:
            uid = new["metadata"]["uid"]
            self._most[uid] = max(self._most.get(uid, 0), new["spec"].get("replicas", 1))

    def _config_map(self, key: str, old: Object | None, new: Object | None) -> None:
        if old is None and len(found := self.under("core/configmaps", "quota")) > QUOTA["count/configmaps"] and "/quota/" in key:
            self.broken.append(f"{key}: {len(found)} config maps where {QUOTA['count/configmaps']} are allowed")

    def _claim(self, key: str, old: Object | None, new: Object | None) -> None:
        if new is None or not (volume := new["spec"].get("volumeName")):
            return
        was = (old or {}).get("spec", {}).get("volumeName")
        if was and was != volume and old is not None and old["metadata"]["uid"] == new["metadata"]["uid"]:
            self.broken.append(f"{key}: bound to {was}, then to {volume}")
        twice = [at(c) for c in self.under("core/persistentvolumeclaims") if c["spec"].get("volumeName") == volume]
        if len(twice) > 1:
            self.broken.append(f"{volume}: given to {twice}")

    def _charge(self, pod: Object | None, sign: int) -> None:
        if pod is None or over(pod) or not (node := pod["spec"].get("nodeName")):
            return
        used = self._usage.setdefault(node, Counter())
        used["pods"] += sign
        for what in ("cpu", "memory"):
            used[what] += sign * _asks(pod, what)                # type: ignore[assignment]

    def _pod(self, key: str, old: Object | None, new: Object | None) -> None:
        self._charge(old, -1)
        self._charge(new, 1)
        space = key.split("/")[4]
        same = old is not None and new is not None and old["metadata"]["uid"] == new["metadata"]["uid"]
        if old is not None and new is not None and same:
            was, now = old["spec"].get("nodeName"), new["spec"].get("nodeName")
            if was and was != now:
                self.broken.append(f"{key}: bound to {was}, then to {now}")
            if over(old) and not over(new):
                self.broken.append(f"{key}: {old['status']['phase']} and alive again")
        if new is not None and (node := new["spec"].get("nodeName")) and not over(new):
            room = ((self.objects.get(f"/registry/core/nodes/{node}") or {}).get("status") or {}).get("allocatable") or {}
            for what in ("cpu", "memory", "pods"):
                if what in room and self._usage[node][what] > parse(str(room[what])).amount:
                    self.broken.append(f"{key}: {node} holds {self._usage[node][what]} of {what}, has {room[what]}")
        if space == "quota":
            at_s = self.clock()
            count = sum(counts(p, at_s) for p in self.under("core/pods", "quota"))
            if count > QUOTA["pods"]:
                self.broken.append(f"{key}: {count} pods where {QUOTA['pods']} are allowed")
        if space == "kept" and same and old is not None and new is not None and ready(old) and not deleting(old) and deleting(new):
            healthy = sum(ready(p) and not deleting(p) for p in self.under("core/pods", "kept"))
            if healthy < KEPT_MIN:
                self.broken.append(f"{key}: evicted, {healthy} healthy pods left where {KEPT_MIN} must stay")
        if new is not None and old is None and (uid := _owner(new, "ReplicaSet")) in self._most:
            mates = [p for p in self.under("core/pods", space) if _owner(p, "ReplicaSet") == uid and not over(p) and not deleting(p)]
            if len(mates) > self._most[uid]:
                self.broken.append(f"{key}: pod {len(mates)} of a replica set that was asked for {self._most[uid]} at most")

    # --- what there is

    def under(self, resource: str, namespace: str = "") -> list[Object]:
        prefix = f"/registry/{resource}/" + (f"{namespace}/" if namespace else "")
        return [o for k, o in self.objects.items() if k.startswith(prefix)]

    def owned(self, resource: str, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [o for o in self.under(resource, owner["metadata"]["namespace"])
                if any(r["uid"] == uid for r in o["metadata"].get("ownerReferences") or ())]

    # --- once all is at rest

    def settled(self, wanted: dict[str, int]) -> Iterator[str]:
        """What is not yet, or no longer, as it must be. `wanted`: replicas an autoscaler must come to, by its name."""
        for resource, check in SETTLED.items():
            for obj in self.under(resource):
                yield from check(self, obj)
        for hpa in self.under("autoscaling/horizontalpodautoscalers"):
            want, status = wanted[hpa["metadata"]["name"]], hpa.get("status") or {}
            if status.get("currentReplicas") != want or status.get("desiredReplicas") != want:
                yield f"{at(hpa)}: status {status}, {want} replicas are right"
        yield from self._nothing_left_over()

    def _nothing_left_over(self) -> Iterator[str]:
        uids = {o["metadata"].get("uid") for o in self.objects.values()}
        spaces = {o["metadata"]["name"] for o in self.under("core/namespaces")}
        for key, obj in self.objects.items():
            meta = obj["metadata"]
            if deleting(obj):
                yield f"{key}: stuck terminating, finalizers {meta.get('finalizers')} {(obj.get('spec') or {}).get('finalizers')}"
            if meta.get("namespace") and meta["namespace"] not in spaces:
                yield f"{key}: its namespace is gone"
            lost = [r for r in meta.get("ownerReferences") or () if r["uid"] not in uids]
            if lost:
                yield f"{key}: an orphan of {[r['kind'] + '/' + r['name'] for r in lost]}"


def _deployment(dog: Watchdog, d: Object) -> Iterator[str]:
    want, status = d["spec"]["replicas"], d.get("status") or {}
    sets = dog.owned("apps/replicasets", d)
    pods = [p for s in sets for p in dog.owned("core/pods", s)]
    if d["metadata"]["namespace"] == "quota":
        if len(pods) != min(want, QUOTA["pods"]) or status.get("readyReplicas", 0) != len(pods):
            yield f"{at(d)}: {want} replicas, {len(pods)} pods, status {status}"
        return
    if len(pods) != want or any(over(p) for p in pods):
        yield f"{at(d)}: {want} replicas, {len(pods)} pods"
    if sum(s["spec"]["replicas"] > 0 for s in sets) > 1:
        yield f"{at(d)}: several replica sets have pods"
    if status.get("observedGeneration") != d["metadata"]["generation"] or any(
            status.get(k, 0) != want for k in ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")):
        yield f"{at(d)}: {want} replicas, status {status}"


def _stateful_set(dog: Watchdog, s: Object) -> Iterator[str]:
    want, status, name = s["spec"]["replicas"], s.get("status") or {}, s["metadata"]["name"]
    pods = dog.owned("core/pods", s)
    names = {p["metadata"]["name"] for p in pods}
    if names != {f"{name}-{i}" for i in range(want)}:
        yield f"{at(s)}: {want} replicas, pods {sorted(names)}"
    if status.get("observedGeneration") != s["metadata"]["generation"] or any(
            status.get(k, 0) != want for k in ("replicas", "readyReplicas", "updatedReplicas", "currentReplicas", "availableReplicas")):
        yield f"{at(s)}: {want} replicas, status {status}"
    claims = {c["metadata"]["name"]: c for c in dog.under("core/persistentvolumeclaims", s["metadata"]["namespace"])}
    for template in s["spec"].get("volumeClaimTemplates") or ():
        for i in range(want):
            claim = claims.get(f"{template['metadata']['name']}-{name}-{i}")
            if claim is None or (claim.get("status") or {}).get("phase") != "Bound":
                yield f"{at(s)}: claim of pod {i} is {claim and claim.get('status')}"


def _daemon_set(dog: Watchdog, d: Object) -> Iterator[str]:
    status, nodes = d.get("status") or {}, sorted(n["metadata"]["name"] for n in dog.under("core/nodes"))
    on = sorted(p["spec"].get("nodeName", "") for p in dog.owned("core/pods", d))
    if on != nodes:
        yield f"{at(d)}: pods on {on}, nodes {nodes}"
    if status.get("observedGeneration") != d["metadata"]["generation"] or any(status.get(k, 0) != len(nodes) for k in (
            "currentNumberScheduled", "desiredNumberScheduled", "numberReady", "numberAvailable", "updatedNumberScheduled")):
        yield f"{at(d)}: {len(nodes)} nodes, status {status}"


def _job(dog: Watchdog, j: Object) -> Iterator[str]:
    status = j.get("status") or {}
    true = {c["type"] for c in status.get("conditions") or () if c["status"] == "True"}
    fails = "exit:1" in j["spec"]["template"]["spec"]["containers"][0]["args"]
    if not true & {"Failed", "Complete"} or (not fails and status.get("succeeded") != j["spec"]["completions"] and "Complete" in true):
        yield f"{at(j)}: status {status}"
    if fails and "Complete" in true:
        yield f"{at(j)}: complete, though every pod fails"
    if any((status.get("uncountedTerminatedPods") or {}).values()) or status.get("active"):
        yield f"{at(j)}: uncounted {status}"
    if j["spec"].get("ttlSecondsAfterFinished") is not None:
        yield f"{at(j)}: outlived its time"
    for p in dog.owned("core/pods", j):
        if p["metadata"].get("finalizers") or not over(p):
            yield f"{at(j)}: pod {p['metadata']['name']} {p['metadata'].get('finalizers')} {p['status'].get('phase')}"


def _cron_job(dog: Watchdog, c: Object) -> Iterator[str]:
    jobs = dog.owned("batch/jobs", c)
    if (c.get("status") or {}).get("active"):
        yield f"{at(c)}: active {c['status']['active']}"
    if len(jobs) > c["spec"]["successfulJobsHistoryLimit"] + c["spec"]["failedJobsHistoryLimit"]:
        yield f"{at(c)}: {len(jobs)} jobs are kept"


def _service(dog: Watchdog, s: Object) -> Iterator[str]:
    if not (selector := s["spec"].get("selector")):
        return
    want = [p["status"].get("podIP") for p in dog.under("core/pods", s["metadata"]["namespace"])
            if ready(p) and selector.items() <= (p["metadata"].get("labels") or {}).items()]
    if len(want) != len(set(want)):
        yield f"{at(s)}: pods share addresses {want}"
    ips = [a for e in dog.owned("discovery.k8s.io/endpointslices", s) for x in e.get("endpoints") or () for a in x["addresses"]
           if (x.get("conditions") or {}).get("ready")]
    if sorted(ips) != sorted(want):
        yield f"{at(s)}: endpoints {sorted(ips)}, ready pods {sorted(want)}"


def _quota(dog: Watchdog, q: Object) -> Iterator[str]:
    space, used = q["metadata"]["namespace"], (q.get("status") or {}).get("used") or {}
    have = {"pods": sum(not over(p) for p in dog.under("core/pods", space)), "count/configmaps": len(dog.under("core/configmaps", space))}
    if used != {k: str(v) for k, v in have.items()}:
        yield f"{at(q)}: used {used}, there are {have}"


def _budget(dog: Watchdog, b: Object) -> Iterator[str]:
    healthy, status = sum(ready(p) for p in dog.under("core/pods", b["metadata"]["namespace"])), b.get("status") or {}
    if status.get("currentHealthy") != healthy or status.get("disruptionsAllowed") != healthy - KEPT_MIN or status.get("disruptedPods"):
        yield f"{at(b)}: status {status}, healthy {healthy}"


def _volume(dog: Watchdog, v: Object) -> Iterator[str]:
    ref, phase = v["spec"].get("claimRef") or {}, (v.get("status") or {}).get("phase")
    claim = dog.objects.get(f"/registry/core/persistentvolumeclaims/{ref.get('namespace')}/{ref.get('name')}")
    held = claim is not None and claim["metadata"]["uid"] == ref.get("uid") and claim["spec"].get("volumeName") == v["metadata"]["name"]
    if phase != ("Bound" if held else "Released" if ref.get("uid") else "Available"):
        yield f"{at(v)}: {phase}, claim {ref} {claim and claim.get('status')}"


def _node(dog: Watchdog, n: Object) -> Iterator[str]:
    if n["spec"].get("taints") or not ready(n):
        yield f"{at(n)}: taints {n['spec'].get('taints')}, though it is back"


SETTLED: dict[str, Callable[[Watchdog, Object], Iterator[str]]] = {
    "apps/deployments": _deployment, "apps/statefulsets": _stateful_set, "apps/daemonsets": _daemon_set, "batch/jobs": _job,
    "batch/cronjobs": _cron_job, "core/services": _service, "core/resourcequotas": _quota, "policy/poddisruptionbudgets": _budget,
    "core/persistentvolumes": _volume, "core/nodes": _node,
}
