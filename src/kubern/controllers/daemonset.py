"""DaemonSet: one pod on every node that wants it.

Upstream: pkg/controller/daemon (daemon_controller.go, update.go, util/daemonset_util.go).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from kubern.controllers import history
from kubern.controllers.affinity import pod_matches
from kubern.controllers.amount import scaled, whole
from kubern.controllers.claim import children, claim
from kubern.controllers.context import Context
from kubern.controllers.pods import (
    BURST_MAX,
    available,
    create_pods,
    delete_pods,
    finished,
    from_template,
    next_available_s,
    node_of,
    phase,
    ready,
    template_hash,
)
from kubern.controllers.wake import owner, spec_selector
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Create, Delete, Emit, Failed, Fetch, Patch, Requeue, Update
from kubern.model.object import Key, Object, clone, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.taint import tolerated
from kubern.model.view import View

GENERATION = "deprecated.daemonset.template.generation"
GENERATION_LABEL = "pod-template-generation"
BACKOFF_FIRST_S, BACKOFF_LAST_S = 1.0, 15 * 60.0
TOLERATIONS = (
    ("node.kubernetes.io/not-ready", "NoExecute"), ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"), ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"), ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
NETWORK = ("node.kubernetes.io/network-unavailable", "NoSchedule")


def daemon_template(ds: Object, hash_: str) -> Object:
    """The template with what every daemon pod gets."""
    template = clone(ds["spec"].get("template") or {})
    spec = template.setdefault("spec", {})
    tolerations: list[dict[str, Any]] = list(spec.get("tolerations") or ())
    for k, effect in (*TOLERATIONS, *((NETWORK,) if spec.get("hostNetwork") else ())):
        new = {"key": k, "operator": "Exists", "effect": effect}
        same = next((i for i, t in enumerate(tolerations)
                     if t.get("key") == k and t.get("effect") == effect and t.get("operator") == "Exists" and not t.get("value")), None)
        if same is None:
            tolerations.append(new)
        else:
            tolerations[same] = new
    spec["tolerations"] = tolerations
    m = dict(meta(template))
    m["labels"] = {**(m.get("labels") or {}), history.POD_HASH: hash_}
    if notes(ds).get(GENERATION):
        m["labels"][GENERATION_LABEL] = notes(ds)[GENERATION]
    template["metadata"] = m
    return template


def _for_node(template: Object, node_name: str) -> Object:
    spec = dict(template["spec"])
    affinity = dict(spec.get("affinity") or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    field = {"key": "metadata.name", "operator": "In", "values": [node_name]}
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    affinity["nodeAffinity"] = node_affinity
    spec["affinity"] = affinity
    return {**template, "spec": spec}


def should_run(ds_template: Object, node: Object) -> tuple[bool, bool]:
    """(should a pod run on the node, may one that runs stay). `ds_template` has the daemon tolerations already."""
    spec = ds_template["spec"]
    if (spec.get("nodeName") or name(node)) != name(node) or not pod_matches(spec, node):
        return False, False
    tolerations = spec.get("tolerations") or ()
    bad = [t.get("effect") for t in (node.get("spec") or {}).get("taints") or ()
           if t.get("effect") in ("NoSchedule", "NoExecute") and not tolerated(t, tolerations)]
    return not bad, "NoExecute" not in bad


def target_node(pod: Object) -> str:
    """The node a daemon pod runs on or is meant for."""
    if n := node_of(pod):
        return n
    required = (((pod.get("spec") or {}).get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for f in term.get("matchFields") or ():
            if f.get("key") == "metadata.name" and f.get("operator") == "In" and len(f.get("values") or ()) == 1:
                return str(f["values"][0])
    return ""


def _age(pod: Object) -> tuple[bool, str, str]:
    return not node_of(pod), meta(pod).get("creationTimestamp") or "", name(pod)


class _Daemons:
    """One pass."""

    def __init__(self, ds: Object, view: View, now: float, pods: list[Object], hash_: str, failures: dict[tuple[str, int, str], tuple[float, float]]
                 ) -> None:
        self.ds, self.view, self.now, self.hash, self.failures = ds, view, now, hash_, failures
        self.template = daemon_template(ds, hash_)
        self.min_ready: int = ds["spec"].get("minReadySeconds") or 0
        self.nodes = sorted(view.list("nodes"), key=name)
        self.fits = {name(n): should_run(self.template, n) for n in self.nodes}
        self.by_node: dict[str, list[Object]] = {}
        for p in pods:
            if not (finished(p) and deleting(p)) and (n := target_node(p)):
                self.by_node.setdefault(n, []).append(p)
        rolling = (ds["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
        self.is_rolling = (ds["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
        self.max_surge, self.max_unavailable = rolling.get("maxSurge"), rolling.get("maxUnavailable", 1)
        self.again_s: list[float] = []

    @property
    def surges(self) -> bool:
        return self.is_rolling and scaled(self.max_surge, 1, True) > 0

    def is_available(self, pod: Object) -> bool:
        return available(pod, self.min_ready, self.now)

    def updated(self, pod: Object) -> bool:
        generation = notes(self.ds).get(GENERATION)
        return labels(pod).get(history.POD_HASH) == self.hash or bool(generation and labels(pod).get(GENERATION_LABEL) == generation)

    def _on_node(self, node: Object) -> Generator[Any, Any, tuple[bool, list[Object]]]:
        """(does the node need a pod, pods to delete)."""
        run, stay = self.fits[name(node)]
        pods = self.by_node.get(name(node))
        if run and pods is None:
            return True, []
        if not stay:
            return False, [p for p in pods or () if not deleting(p)]
        running, gone = [], []
        for p in pods or ():
            if deleting(p):
                continue
            where = f"daemon pod {namespace(p)}/{name(p)} on node {name(node)}"
            if phase(p) == "Failed":
                k = (uid(self.ds), (self.ds.get("status") or {}).get("observedGeneration") or 0, name(node))
                at, delay = self.failures.get(k, (0.0, 0.0))
                if self.now - at > 2 * BACKOFF_LAST_S:
                    delay = 0.0
                if delay and self.now < at + delay:
                    self.again_s.append(at + delay - self.now)
                    continue
                self.failures[k] = (self.now, min(max(delay * 2, BACKOFF_FIRST_S), BACKOFF_LAST_S))
                yield Emit(self.ds, "Warning", "FailedDaemonPod", f"Found failed {where}, will try to kill it")
                gone.append(p)
            elif phase(p) == "Succeeded":
                yield Emit(self.ds, "Normal", "SucceededDaemonPod", f"Found succeeded {where}, will try to delete it")
                gone.append(p)
            else:
                running.append(p)
        running.sort(key=_age)
        if not self.surges:
            return False, gone + running[1:]
        if len(running) <= 1:
            return not running and run, gone
        new = old = None
        for p in running:
            if labels(p).get(history.POD_HASH) == self.hash and new is None:
                new = p
            elif labels(p).get(history.POD_HASH) != self.hash and old is None:
                old = p
            else:
                gone.append(p)
        if new is not None and old is not None and (not ready(old) or self.is_available(new)):
            gone.append(old)
        return False, gone

    def sync(self, node_names: list[str], gone: list[Object]) -> Generator[Any, Any, Failed | None]:
        bodies = [from_template(_for_node(self.template, n), self.ds) for n in node_names[:BURST_MAX]]
        _, failure = yield from create_pods(self.ds, bodies)
        deleted = yield from delete_pods(self.ds, gone[:BURST_MAX])
        return failure or deleted

    def manage(self) -> Generator[Any, Any, bool]:
        """True if it wrote nothing: only then a rolling update may go on."""
        needing, gone = [], []
        for node in self.nodes:
            need, extra = yield from self._on_node(node)
            if need:
                needing.append(name(node))
            gone += extra
        known = {name(n) for n in self.nodes}
        gone += [p for n, pods in self.by_node.items() if n not in known for p in pods if not node_of(p) and not deleting(p)]
        yield from self.sync(needing, gone)
        return not needing and not gone

    def roll(self) -> Generator[Any, Any, None]:
        wanted = [n for n, (run, _) in self.fits.items() if run]
        surge, unavailable = scaled(self.max_surge, len(wanted), True), scaled(self.max_unavailable, len(wanted), True)
        if wanted and not surge and not unavailable:
            unavailable = 1
        by_node = {**{n: [] for n in wanted}, **self.by_node}
        if surge:
            yield from self._roll_with_surge(by_node, surge, len(wanted))
            return
        down, replaced, candidates = 0, [], []
        for pods in by_node.values():
            new, old, ok = self._pair(pods)
            if not ok or (new is None) == (old is None):
                down += 1
            elif new is not None:
                down += not self.is_available(new)
            elif old is not None and not self.is_available(old):
                replaced.append(old)
                down += 1
            elif old is not None:
                candidates.append(old)
        yield from self.sync([], replaced + candidates[:max(0, unavailable - down)])

    def _pair(self, pods: list[Object]) -> tuple[Object | None, Object | None, bool]:
        alive = [p for p in pods if not deleting(p)]
        new, old = [p for p in alive if self.updated(p)], [p for p in alive if not self.updated(p)]
        if len(new) > 1 or len(old) > 1:
            return None, None, False
        return new[0] if new else None, old[0] if old else None, True

    def _roll_with_surge(self, by_node: dict[str, list[Object]], surge: int, wanted: int) -> Generator[Any, Any, None]:
        gone, unfit, allowed, candidates = [], [], [], []
        surging = up = 0
        for n, pods in by_node.items():
            new, old, ok = self._pair(pods)
            if not ok:
                surging += 1
                continue
            shown = old or new
            up += shown is not None and self.is_available(shown)
            if old is None:
                continue
            fits = self.fits.get(n, (False, False))[0]
            if new is not None:
                if self.is_available(new):
                    gone.append(old)
                else:
                    surging += 1
            elif not self.is_available(old):
                if fits:
                    allowed.append(n)
                else:
                    gone.append(old)
            elif not fits:
                unfit.append(old)
            elif surging < surge:
                candidates.append(n)
        gone += unfit[:max(0, up - wanted)]
        yield from self.sync(allowed + candidates[:max(0, surge - surging)], gone)

    def status(self) -> dict[str, Any]:
        c = dict.fromkeys(("desired", "current", "mis", "ready", "updated", "available"), 0)
        for node in self.nodes:
            pods = sorted(self.by_node.get(name(node)) or (), key=_age)
            if not self.fits[name(node)][0]:
                c["mis"] += bool(pods)
                continue
            c["desired"] += 1
            if not pods:
                continue
            c["current"] += 1
            if ready(pods[0]):
                c["ready"] += 1
                c["available"] += self.is_available(pods[0])
            c["updated"] += self.updated(pods[0])
        old = self.ds.get("status") or {}
        out = {"currentNumberScheduled": c["current"], "numberMisscheduled": c["mis"], "desiredNumberScheduled": c["desired"],
               "numberReady": c["ready"], **whole({
                   "observedGeneration": meta(self.ds).get("generation"), "updatedNumberScheduled": c["updated"],
                   "numberAvailable": c["available"], "numberUnavailable": c["desired"] - c["available"], "conditions": old.get("conditions")})}
        if old.get("collisionCount") is not None:
            out["collisionCount"] = old["collisionCount"]
        return out


def _history(ds: Object, view: View, path: str, pods: list[Object]) -> Generator[Any, Any, tuple[Object, list[Object]] | None]:
    """(the current revision, the old ones)."""
    revisions = yield from claim(view, history.RESOURCE, ds, spec_selector(ds), path, children(view, history.RESOURCE, ds))
    data = history.snapshot(ds)
    current = sorted((r for r in revisions if history.same(r, data)), key=history.order)
    old = sorted((r for r in revisions if not history.same(r, data)), key=history.order)
    number = max((r.get("revision") or 0 for r in old), default=0) + 1
    if not current:
        collisions = (ds.get("status") or {}).get("collisionCount")
        body = history.new(ds, number, history.POD_HASH, collisions)
        hash_ = template_hash(ds["spec"].get("template") or {}, collisions)
        body["metadata"] |= {"name": f"{name(ds)}-{hash_}", "labels": {**labels(ds["spec"].get("template") or {}), history.POD_HASH: hash_}}
        made = yield Create(body, ignore_exists=True)
        if made is None:
            made = yield Fetch(f"/apis/apps/v1/namespaces/{namespace(ds)}/controllerrevisions/{name(body)}")
            if isinstance(made, Failed):
                yield Again(made.message)
            elif not history.same(made, data):
                yield Update({**ds, "status": {**(ds.get("status") or {}), "collisionCount": (collisions or 0) + 1}}, "status")
                return None
        return None if isinstance(made, Failed) else (made, old)
    keep = current[-1]
    for r in current[:-1]:
        for p in pods:
            if labels(p).get(history.POD_HASH) != labels(keep).get(history.POD_HASH):
                yield Patch("v1", "Pod", namespace(p), name(p), {"metadata": {"labels": {history.POD_HASH: labels(keep).get(history.POD_HASH)}}},
                            ignore_missing=True)
        yield Delete("apps/v1", "ControllerRevision", namespace(r), name(r))
    if (keep.get("revision") or 0) < number:
        raised = yield Update({**keep, "revision": number})
        if isinstance(raised, Failed):
            return None
        keep = raised
    return keep, old


def controller(context: Context | None = None) -> Controller:
    failures: dict[tuple[str, int, str], tuple[float, float]] = {}      # (uid, generation, node) -> (when, delay) of failed pods

    def reconcile(ds: Object, view: View, now: float) -> Steps:
        if not ds["spec"].get("selector"):
            yield Emit(ds, "Warning", "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
            return
        if deleting(ds):
            return
        path = f"/apis/apps/v1/namespaces/{namespace(ds)}/daemonsets/{name(ds)}"
        pods = yield from claim(view, "pods", ds, spec_selector(ds), path)
        found = yield from _history(ds, view, path, pods)
        if found is None:
            return
        current, old = found
        d = _Daemons(ds, view, now, pods, labels(current).get(history.POD_HASH) or "", failures)
        settled = yield from d.manage()
        if settled and d.is_rolling:
            yield from d.roll()
        limit = ds["spec"].get("revisionHistoryLimit")
        surplus = len(old) - (10 if limit is None else limit)
        live = {labels(p).get(history.POD_HASH) for p in pods}
        for r in old:
            if surplus <= 0:
                break
            if labels(r).get(history.POD_HASH) not in live:
                yield Delete("apps/v1", "ControllerRevision", namespace(r), name(r))
                surplus -= 1
        status = d.status()
        if status != (ds.get("status") or {}):
            yield Update({**ds, "status": status}, "status")
        if d.min_ready and status.get("numberReady") != status.get("numberAvailable"):
            wait = next_available_s(pods, d.min_ready, now)
            yield Requeue(d.min_ready if wait is None else wait)
        if d.again_s:
            yield Requeue(min(d.again_s))

    def gone(k: Key, view: View, now: float) -> Steps:
        for f in [f for f, (at, delay) in failures.items() if now > at + 2 * BACKOFF_LAST_S]:
            del failures[f]
        yield from ()

    return Controller(
        "daemon-set-controller", "daemonsets.apps", reconcile, reads=("pods", "nodes", history.RESOURCE), gone=gone,
        component="daemonset-controller",
        triggers=(Trigger("pods", owner("apps", "DaemonSet", "daemonsets.apps")), Trigger("nodes", _node_changed)))


def _node_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """Every set for which the node changes what should run there."""
    if old is not None and new is not None:
        if labels(old) == labels(new) and (old.get("spec") or {}).get("taints") == (new.get("spec") or {}).get("taints"):
            return
    for ds in view.list("daemonsets.apps"):
        template = daemon_template(ds, "")
        before, after = ((should_run(template, n) if n is not None else (False, False)) for n in (old, new))
        if before != after:
            yield key(ds)
