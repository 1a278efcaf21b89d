"""StatefulSet: pods with names and volumes that stay, started in order, updated from the top.

Upstream: pkg/controller/statefulset. `maxUnavailable` stands behind a feature gate that is off in 1.36 and is not read.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import Any

from kubern.controllers import history
from kubern.controllers.amount import whole
from kubern.controllers.claim import children, claim, controller_ref
from kubern.controllers.pods import available, from_template, next_available_s, phase, ready
from kubern.controllers.wake import owner, spec_selector
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Create, Delete, Emit, Failed, Fetch, Requeue, Update
from kubern.model.object import Key, Object, clone, deleting, labels, meta, name, namespace, uid
from kubern.model.view import View

POD_NAME, POD_INDEX, REVISION = "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", history.POD_HASH
CLAIMS = "persistentvolumeclaims"
BURST_MAX = 500
_NAME = re.compile(r"(.*)-([0-9]+)\Z", re.S)

Pod = Object
Result = Generator[Any, Any, bool]        # True: stop here


def ordinal_of(pod: Pod) -> int:
    m = _NAME.match(name(pod))
    return int(m[2]) if m and len(m[2]) < 10 else -1


def parent_name(pod: Pod) -> str:
    m = _NAME.match(name(pod))
    return m[1] if m else ""


class _Set:
    """One pass over a set."""

    def __init__(self, obj: Object, view: View, now: float) -> None:
        self.obj, self.view, self.now = obj, view, now
        spec = obj["spec"]
        self.spec = spec
        self.replicas: int = spec.get("replicas") or 0
        self.start: int = (spec.get("ordinals") or {}).get("start") or 0
        self.min_ready: int = spec.get("minReadySeconds") or 0
        self.ordered = spec.get("podManagementPolicy", "OrderedReady") != "Parallel"
        self.strategy = (spec.get("updateStrategy") or {}).get("type", "RollingUpdate")
        self.rolling: dict[str, Any] | None = (spec.get("updateStrategy") or {}).get("rollingUpdate")
        self.partition: int = (self.rolling or {}).get("partition") or 0
        policy = spec.get("persistentVolumeClaimRetentionPolicy") or {}
        self.delete_with_set = policy.get("whenDeleted") == "Delete"
        self.delete_scaled = policy.get("whenScaled") == "Delete"

    def in_range(self, pod: Pod) -> bool:
        return self.start <= ordinal_of(pod) < self.start + self.replicas

    def is_available(self, pod: Pod) -> bool:
        return available(pod, self.min_ready, self.now)

    # ---- making pods

    def claim_name(self, template: Object, ordinal: int) -> str:
        return f"{name(template)}-{name(self.obj)}-{ordinal}"

    def claims(self, ordinal: int) -> list[Object]:
        out = []
        for t in self.spec.get("volumeClaimTemplates") or ():
            m = {k: v for k, v in meta(t).items() if k != "creationTimestamp" and v is not None}
            m |= {"name": self.claim_name(t, ordinal), "namespace": namespace(self.obj),
                  "labels": {**labels(t), **((self.spec.get("selector") or {}).get("matchLabels") or {})}}
            out.append({**t, "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": m})
        return out

    def _volumes(self, pod_spec: Object, ordinal: int) -> list[Object]:
        names = {name(t): self.claim_name(t, ordinal) for t in self.spec.get("volumeClaimTemplates") or ()}
        own = [{"name": n, "persistentVolumeClaim": {"claimName": c}} for n, c in names.items()]
        return own + [v for v in pod_spec.get("volumes") or () if v["name"] not in names]

    def pod(self, template: Object, revision: str, ordinal: int) -> Pod:
        pod = from_template(template, self.obj)
        pod_name = f"{name(self.obj)}-{ordinal}"
        m = pod["metadata"]
        m["name"] = pod_name
        m["labels"] = {**(m.get("labels") or {}), POD_NAME: pod_name, POD_INDEX: str(ordinal), REVISION: revision}
        spec = pod["spec"]
        spec["hostname"] = pod_name
        if self.spec.get("serviceName"):
            spec["subdomain"] = self.spec["serviceName"]
        if volumes := self._volumes(spec, ordinal):
            spec["volumes"] = volumes
        return pod

    def _event(self, verb: str, pod: Pod, error: str = "") -> Emit:
        if error:
            return Emit(self.obj, "Warning", f"Failed{verb}", f"{verb} Pod {name(pod)} in StatefulSet {name(self.obj)} failed error: {error}")
        return Emit(self.obj, "Normal", f"Successful{verb}", f"{verb} Pod {name(pod)} in StatefulSet {name(self.obj)} successful")

    def create_claims(self, pod: Pod) -> Generator[Any, Any, str]:
        """Creates missing claims; the error, "" if there is none."""
        errors = []
        for c in self.claims(ordinal_of(pod)):
            have = self.view.get(CLAIMS, namespace(c), name(c))
            if have is not None:
                if deleting(have):
                    errors.append(f"pvc {name(c)} is being deleted")
                continue
            answer = yield Create(c)
            where = f"Claim {name(c)} Pod {name(pod)} in StatefulSet {name(self.obj)}"
            if not isinstance(answer, Failed):
                yield Emit(self.obj, "Normal", "SuccessfulCreate", f"Create {where} success")
            else:
                errors.append(f"failed to create PVC {name(c)}: {answer.message}")
                if answer.reason != "AlreadyExists":
                    yield Emit(self.obj, "Warning", "FailedCreate", f"Create Claim {name(c)} for Pod {name(pod)} in StatefulSet "
                                                                    f"{name(self.obj)} failed error: {answer.message}")
        return errors[0] if len(errors) == 1 else f"[{', '.join(errors)}]" if errors else ""

    # ---- who owns the claims

    def _is_ref(self, ref: dict[str, Any], obj: Object) -> bool:
        return bool(ref.get("apiVersion") == obj["apiVersion"] and ref.get("kind") == obj["kind"] and ref.get("name") == name(obj))

    def claim_refs(self, c: Object, pod: Pod) -> list[dict[str, Any]] | None:
        """The ownerReferences a claim should have, None if they are right."""
        refs: list[dict[str, Any]] = meta(c).get("ownerReferences") or []
        mine = [(r, o) for r in refs for o in (self.obj, pod) if self._is_ref(r, o)]
        if any(r.get("uid") != uid(o) for r, o in mine):
            return None                                            # stale: the collector takes the claim
        uids = {uid(self.obj), uid(pod)}
        others = [r for r in refs if not any(r is m for m, _ in mine)]
        foreign = (self.delete_with_set or self.delete_scaled) and any(r.get("controller") for r in others)
        wanted = list(others)
        if foreign:
            return wanted if any(r.get("uid") in uids for r in refs) else None
        scaled_down = not self.in_range(pod)
        holder = None
        if self.delete_scaled and scaled_down:
            holder = pod
        elif self.delete_with_set and not (self.delete_scaled and scaled_down):
            holder = self.obj
        if holder is not None:
            wanted.append(controller_ref(holder))
        have = {r.get("uid") for r in refs if r.get("uid") in uids}
        right = have == ({uid(holder)} if holder is not None else set()) and all(r.get("controller") for r in refs if r.get("uid") in uids)
        return None if right else wanted

    def fix_claims(self, pod: Pod) -> Generator[Any, Any, str]:
        for t in self.spec.get("volumeClaimTemplates") or ():
            c = self.view.get(CLAIMS, namespace(self.obj), self.claim_name(t, ordinal_of(pod)))
            if c is None:
                continue
            refs = meta(c).get("ownerReferences") or []
            if (self.delete_with_set or self.delete_scaled) and any(
                    r.get("controller") and r.get("uid") not in (uid(self.obj), uid(pod)) for r in refs):
                yield Emit(self.obj, "Warning", "ConflictingController",
                           f"PersistentVolumeClaim {name(c)} has a conflicting OwnerReference that acts as a manging controller, "
                           "the retention policy is ignored for this claim")
            wanted = self.claim_refs(c, pod)
            if wanted is not None:
                m = {**meta(c), "ownerReferences": wanted}
                if not wanted:
                    del m["ownerReferences"]
                answer = yield Update({**c, "metadata": m})
                if isinstance(answer, Failed):
                    return f"could not update claim {name(c)} for delete policy ownerRefs: {answer.message}"
        return ""

    def _claims_right(self, pod: Pod) -> bool:
        for t in self.spec.get("volumeClaimTemplates") or ():
            c = self.view.get(CLAIMS, namespace(self.obj), self.claim_name(t, ordinal_of(pod)))
            if c is not None and self.claim_refs(c, pod) is not None:
                return False
        return True

    def _stale_claim(self, pod: Pod) -> bool:
        if not self.delete_scaled:
            return False
        return any((c := self.view.get(CLAIMS, namespace(self.obj), self.claim_name(t, ordinal_of(pod)))) is not None
                   and any(r.get("kind") == "Pod" and r.get("name") == name(pod) for r in meta(c).get("ownerReferences") or ())
                   for t in self.spec.get("volumeClaimTemplates") or ())

    # ---- one pod

    def delete(self, pod: Pod) -> Generator[Any, Any, bool]:
        answer = yield Delete("v1", "Pod", namespace(pod), name(pod))
        if isinstance(answer, Failed):
            yield self._event("Delete", pod, answer.message)
            return False
        yield self._event("Delete", pod)
        return True

    def _create(self, pod: Pod) -> Generator[Any, Any, Pod | None]:
        error = yield from self.create_claims(pod)
        if error:
            yield self._event("Create", pod, error)
            yield Again(error)
            return None
        answer = yield Create(pod)
        if isinstance(answer, Failed):
            if answer.reason != "AlreadyExists" and not any(c.get("reason") == "NamespaceTerminating" for c in answer.details.get("causes") or ()):
                yield self._event("Create", pod, answer.message)
            return None
        error = yield from self.fix_claims(answer)
        if error:
            yield self._event("Update", pod, error)
            return None
        yield self._event("Create", pod)
        created: Pod = answer
        return created

    def replica(self, pods: list[Pod], i: int) -> Result:
        pod = pods[i]
        if phase(pod) in ("Failed", "Succeeded"):
            if not deleting(pod):
                yield from self.delete(pod)
            return True
        if not phase(pod):
            if self._stale_claim(pod):
                return True
            created = yield from self._create(pod)
            if created is None:
                return True
            pods[i] = pod = created
            if self.ordered:
                return True
        if phase(pod) == "Pending":
            error = yield from self.create_claims(pod)
            error = error or (yield from self.fix_claims(pod))
            if error:
                yield Again(error)
                return True
        if self.ordered and (deleting(pod) or not (phase(pod) == "Running" and ready(pod)) or not self.is_available(pod)):
            return True
        if labels(pod).get(POD_NAME) == name(pod) and self._storage_right(pod) and self._claims_right(pod):
            return False
        yield from self._repair(pod)
        return False

    def _storage_right(self, pod: Pod) -> bool:
        have = {v["name"]: (v.get("persistentVolumeClaim") or {}).get("claimName") for v in (pod.get("spec") or {}).get("volumes") or ()}
        return all(have.get(name(t)) == self.claim_name(t, ordinal_of(pod)) for t in self.spec.get("volumeClaimTemplates") or ())

    def _repair(self, pod: Pod) -> Generator[Any, Any, None]:
        wanted = {**pod, "metadata": {**meta(pod), "labels": {**labels(pod), POD_NAME: name(pod), POD_INDEX: str(ordinal_of(pod))}}}
        if not self._storage_right(pod):
            wanted["spec"] = {**pod["spec"], "volumes": self._volumes(pod["spec"], ordinal_of(pod))}
            error = yield from self.create_claims(pod)
            if error:
                yield self._event("Update", pod, error)
                return
        error = yield from self.fix_claims(pod)
        if error:
            yield self._event("Update", pod, error)
            return
        if wanted == pod:
            return
        answer = yield Update(wanted)
        yield self._event("Update", pod, answer.message if isinstance(answer, Failed) else "")

    def condemned(self, pod: Pod, first_bad: Pod | None) -> Result:
        if deleting(pod):
            return self.ordered
        if self.ordered and pod is not first_bad and (not (phase(pod) == "Running" and ready(pod)) or not self.is_available(pod)):
            return True
        yield from self.delete(pod)
        return True


def _revisions(s: _Set) -> Generator[Any, Any, tuple[Object, Object, list[Object], int] | None]:
    """(current, update, all, collisions)."""
    obj = s.obj
    selector = spec_selector(obj)
    found = [r for r in children(s.view, history.RESOURCE, obj) if selector.matches(meta(r).get("labels"))]
    revisions = sorted(found, key=history.order)
    if any(not meta(r).get("ownerReferences") for r in revisions):
        path = f"/apis/apps/v1/namespaces/{namespace(obj)}/statefulsets/{name(obj)}"
        revisions = sorted((yield from claim(s.view, history.RESOURCE, obj, selector, path, revisions)), key=history.order)
    collisions: int = (obj.get("status") or {}).get("collisionCount") or 0
    number = (revisions[-1].get("revision") or 0) + 1 if revisions else 1
    data = history.snapshot(obj)
    equal = [r for r in revisions if history.same(r, data)]
    if equal and equal[-1] is revisions[-1]:
        update = equal[-1]
    elif equal:
        update = yield Update({**equal[-1], "revision": number})
        if isinstance(update, Failed):
            return None
    else:
        while True:
            candidate = history.new(obj, number, history.HASH, collisions)
            update = yield Create(candidate, ignore_exists=True)
            if isinstance(update, Failed):
                return None
            if update is not None:
                break
            live = yield Fetch(f"/apis/apps/v1/namespaces/{namespace(obj)}/controllerrevisions/{name(candidate)}")
            if isinstance(live, Failed):
                yield Again(live.message)
                return None
            if history.same(live, data):
                update = live
                break
            collisions += 1
        revisions.append(update)
    wanted = (obj.get("status") or {}).get("currentRevision")
    current = next((r for r in revisions if name(r) == wanted), update)
    return current, update, revisions, collisions


def _counts(s: _Set, pods: list[Pod], current: Object, update: Object) -> dict[str, int]:
    out = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas"), 0)
    for p in pods:
        if not phase(p):
            continue
        out["replicas"] += 1
        if phase(p) == "Running" and ready(p):
            out["readyReplicas"] += 1
            out["availableReplicas"] += s.is_available(p)
        if not deleting(p):
            revision = labels(p).get(REVISION)
            out["currentReplicas"] += revision == name(current)
            out["updatedReplicas"] += revision == name(update)
    return out


def _manage(s: _Set, pods: list[Pod], current: Object, update: Object) -> Generator[Any, Any, dict[str, int]]:
    """Does what one pass may do; the counts afterwards."""
    current_template, update_template = history.template_of(current, s.obj), history.template_of(update, s.obj)
    by_ordinal = {ordinal_of(p): p for p in pods if s.in_range(p)}
    condemned = sorted((p for p in pods if not s.in_range(p) and ordinal_of(p) >= 0), key=ordinal_of, reverse=True)
    first_updated = s.start + (s.partition if s.rolling is not None else (s.obj.get("status") or {}).get("currentReplicas") or 0)
    replicas: list[Pod] = []
    for i in range(s.start, s.start + s.replicas):
        if i in by_ordinal:
            replicas.append(by_ordinal[i])
        elif s.strategy == "RollingUpdate" and i < first_updated:
            replicas.append(s.pod(clone(current_template), name(current), i))
        else:
            replicas.append(s.pod(clone(update_template), name(update), i))

    def bad(p: Pod) -> bool:
        return not s.is_available(p) or deleting(p)
    first_bad = next((p for p in [*replicas, *reversed(condemned)] if bad(p)), None)
    if deleting(s.obj):
        return _counts(s, pods, current, update)
    stop = False
    for i in range(len(replicas)):
        stop = (yield from s.replica(replicas, i)) and s.ordered
        if stop:
            break
    if not stop:
        for p in condemned:
            if not s._claims_right(p):
                error = yield from s.fix_claims(p)
                if error:
                    yield Again(error)
        for p in condemned:
            stop = (yield from s.condemned(p, first_bad)) and s.ordered
            if stop:
                break
    counts = _counts(s, [*replicas, *condemned], current, update)
    if stop or s.strategy == "OnDelete":
        return counts
    for i in range(len(replicas) - 1, s.partition - 1, -1):
        p = replicas[i]
        if labels(p).get(REVISION) != name(update) and not deleting(p):
            if (yield from s.delete(p)):
                counts["currentReplicas"] -= 1
            return counts
        if bad(p):
            return counts
    return counts


def reconcile(obj: Object, view: View, now: float) -> Steps:
    s = _Set(obj, view, now)
    selector = spec_selector(obj)
    found = yield from _revisions(s)
    if found is None:
        return
    current, update, revisions, collisions = found
    path = f"/apis/apps/v1/namespaces/{namespace(obj)}/statefulsets/{name(obj)}"
    pods = yield from claim(view, "pods", obj, selector, path, match=lambda p: parent_name(p) == name(obj))
    counts = yield from _manage(s, pods, current, update)
    current_name = name(current)
    if s.strategy == "RollingUpdate" and all(counts[f] == s.replicas for f in ("updatedReplicas", "readyReplicas", "replicas")):
        counts["currentReplicas"], current_name = counts["updatedReplicas"], name(update)
    old = obj.get("status") or {}
    status = {"replicas": counts["replicas"], "availableReplicas": counts["availableReplicas"], "collisionCount": collisions, **whole({
        "observedGeneration": meta(obj).get("generation"), "readyReplicas": counts["readyReplicas"], "updatedReplicas": counts["updatedReplicas"],
        "currentReplicas": counts["currentReplicas"], "currentRevision": current_name, "updateRevision": name(update),
        "conditions": old.get("conditions")})}
    if any((status.get(f) or 0) != (old.get(f) or 0) for f in status if f not in ("conditions", "collisionCount")) or \
            any(f in old and f not in status for f in ("readyReplicas", "currentReplicas", "updatedReplicas")):
        yield Update({**obj, "status": status}, "status")
    live = {name(current), name(update)} | {labels(p).get(REVISION) for p in pods}
    past = [r for r in revisions if name(r) not in live]
    limit = obj["spec"].get("revisionHistoryLimit")
    limit = 10 if limit is None else limit
    for r in past[:max(0, len(past) - limit)]:
        yield Delete("apps/v1", "ControllerRevision", namespace(r), name(r))
    if s.min_ready and counts["readyReplicas"] != counts["availableReplicas"]:
        wait = next_available_s(pods, s.min_ready, now)
        yield Requeue(s.min_ready if wait is None else wait)


def _claim_gone(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """The claim of a pod that is no more has gone with it: its successor may be made."""
    if new is None and old is not None:
        for r in meta(old).get("ownerReferences") or ():
            if r.get("kind") == "Pod":
                yield namespace(old), (r.get("name") or "").rpartition("-")[0]


CONTROLLER = Controller(
    "statefulset-controller", "statefulsets.apps", reconcile, reads=("pods", CLAIMS, history.RESOURCE),
    triggers=(Trigger("pods", owner("apps", "StatefulSet", "statefulsets.apps")), Trigger(CLAIMS, _claim_gone)))
