"""Deployment: one ReplicaSet per pod template; rolls from the old ones to the new one.

Upstream: pkg/controller/deployment (sync.go, rolling.go, recreate.go, progress.go). The extensions/v1beta1 rollback is left out:
nothing can ask for it any more but a deprecated annotation.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from kubern.controllers import conditions, rollout
from kubern.controllers.claim import children, claim, controlled_by, controller_ref
from kubern.controllers.pods import finished, template_hash
from kubern.controllers.wake import owner, spec_selector
from kubern.model.controller import Controller, Keys, Steps, Trigger
from kubern.model.intent import Again, Create, Delete, Emit, Failed, Requeue, Update
from kubern.model.object import Key, Object, controller_of, deleting, labels, meta, name, namespace, notes, uid
from kubern.model.time import seconds_of
from kubern.model.view import View

Sets = list[Object]


class _Rollout:
    """One pass: the deployment and its sets as they are now, writes of this pass included."""

    def __init__(self, d: Object, sets: Sets, now: float) -> None:
        self.d, self.sets, self.now = d, sets, now
        self.failed = False

    def _write_status(self) -> Generator[Any, Any, bool]:
        answer = yield Update(self.d, "status")
        if isinstance(answer, Failed):
            self.failed = True
            return False
        self.d = answer
        return True

    def check_paused(self) -> Generator[Any, Any, None]:
        if rollout.deadline(self.d) is None:
            return
        c = rollout.progressing(self.d)
        reason = (c or {}).get("reason")
        if reason == "ProgressDeadlineExceeded":
            return
        paused = bool(self.d["spec"].get("paused"))
        if paused and reason != "DeploymentPaused":
            new = rollout.condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", self.now)
        elif not paused and reason == "DeploymentPaused":
            new = rollout.condition("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", self.now)
        else:
            return
        self.d = rollout.with_conditions(self.d, conditions.put((self.d.get("status") or {}).get("conditions"), new))
        yield from self._write_status()

    def split(self, create: bool) -> Generator[Any, Any, tuple[Object | None, Sets]]:
        """(new set or None, old sets), with revisions brought up to date."""
        d = self.d
        new = rollout.find_new(d, self.sets)
        old = [s for s in sorted(self.sets, key=rollout.age) if new is None or uid(s) != uid(new)]
        revision = max((rollout.revision_of(s) for s in old), default=0) + 1
        if new is not None:
            wanted = rollout.annotated(d, new, revision, True)
            min_ready = d["spec"].get("minReadySeconds") or 0
            if wanted != notes(new) or (new["spec"].get("minReadySeconds") or 0) != min_ready:
                changed = {**new, "metadata": {**meta(new), "annotations": wanted},
                           "spec": {**new["spec"], "minReadySeconds": min_ready}}
                answer = yield Update(changed)
                if isinstance(answer, Failed):
                    self.failed = True
                    return None, old
                self._replace(new, answer)
                return answer, old
            message = f'Found new replica set "{name(new)}"'
            yield from self._note(notes(new).get(rollout.REVISION) or "", "FoundNewReplicaSet", message, only_if_missing=True)
            return new, old
        if not create:
            return None, old
        return (yield from self._create(old, revision)), old

    def _replace(self, old: Object, new: Object) -> None:
        self.sets = [new if uid(s) == uid(old) else s for s in self.sets]

    def _note(self, revision: str, reason: str, message: str, only_if_missing: bool) -> Generator[Any, Any, None]:
        """Writes the revision and the Progressing condition to the deployment, if they are news."""
        d, changed = self.d, False
        if notes(d).get(rollout.REVISION) != revision:
            d = {**d, "metadata": {**meta(d), "annotations": {**notes(d), rollout.REVISION: revision}}}
            changed = True
        if rollout.deadline(d) is not None and (not only_if_missing or rollout.progressing(d) is None):
            found = (d.get("status") or {}).get("conditions")
            d = rollout.with_conditions(d, conditions.put(found, rollout.condition("Progressing", "True", reason, message, self.now)))
            changed = True
        if changed:
            self.d = d
            yield from self._write_status()

    def _create(self, old: Sets, revision: int) -> Generator[Any, Any, Object | None]:
        d = self.d
        template = d["spec"].get("template") or {}
        collisions = (d.get("status") or {}).get("collisionCount")
        hash_ = template_hash(template, collisions)
        pod_labels = {**labels(template), rollout.HASH: hash_}
        selector = d["spec"].get("selector") or {}
        rs: Object = {
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": f"{name(d)[:rollout.NAME_MAX - 1 - len(hash_)]}-{hash_}", "namespace": namespace(d), "labels": pod_labels,
                         "ownerReferences": [controller_ref(d)]},
            "spec": {"replicas": 0, "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), rollout.HASH: hash_}},
                     "template": {**template, "metadata": {**meta(template), "labels": pod_labels}}}}
        if d["spec"].get("minReadySeconds"):
            rs["spec"]["minReadySeconds"] = d["spec"]["minReadySeconds"]
        size = rs["spec"]["replicas"] = rollout.new_size(d, [*old, rs], rs)
        rs["metadata"]["annotations"] = rollout.annotated(d, rs, revision, False)
        answer = yield Create(rs)
        if isinstance(answer, Failed):
            if answer.reason == "AlreadyExists":      # a name taken by another template (or by one not seen yet): next time another name
                self.d = {**d, "status": {**(d.get("status") or {}), "collisionCount": (collisions or 0) + 1}}
                yield from self._write_status()
            elif not any(c.get("reason") == "NamespaceTerminating" for c in answer.details.get("causes") or ()):
                message = f'Failed to create new replica set "{name(rs)}": {answer.message}'
                if rollout.deadline(d) is not None:
                    found = (d.get("status") or {}).get("conditions")
                    self.d = rollout.with_conditions(d, conditions.put(found, rollout.condition("Progressing", "False", "ReplicaSetCreateError", message,
                                                                                  self.now)))
                    yield from self._write_status()
                yield Emit(d, "Warning", "ReplicaSetCreateError", message)
            self.failed = True
            return None
        self.sets.append(answer)
        if size > 0:
            yield Emit(d, "Normal", "ScalingReplicaSet", f"Scaled up replica set {name(answer)} from 0 to {size}")
        yield from self._note(str(revision), "NewReplicaSetCreated", f'Created new replica set "{name(answer)}"', only_if_missing=False)
        return answer

    # ---- scaling

    def scale(self, rs: Object, size: int, force: bool = False) -> Generator[Any, Any, tuple[bool, Object]]:
        """(did it scale, the set afterwards)."""
        d, have = self.d, rollout.replicas(rs)
        wanted = {rollout.DESIRED: str(rollout.replicas(d)), rollout.MAXIMUM: str(rollout.replicas(d) + rollout.max_surge(d))}
        if have == size and (not force or wanted.items() <= notes(rs).items()):
            return False, rs
        answer = yield Update({**rs, "metadata": {**meta(rs), "annotations": {**notes(rs), **wanted}},
                               "spec": {**rs["spec"], "replicas": size}})
        if isinstance(answer, Failed):
            self.failed = True
            return False, rs
        self._replace(rs, answer)
        if have != size:
            way = "up" if size > have else "down"
            yield Emit(d, "Normal", "ScalingReplicaSet", f"Scaled {way} replica set {name(rs)} from {have} to {size}")
        return have != size, answer

    def spread(self, new: Object | None, old: Sets) -> Generator[Any, Any, None]:
        """Brings a changed `replicas` to the sets: all to the only active one, else in proportion."""
        d = self.d
        active = rollout.active([*old, new])
        if len(active) <= 1:
            only = active[0] if active else new or (max(old, key=rollout.age) if old else None)
            if only is not None:
                yield from self.scale(only, rollout.replicas(d))
            return
        if new is not None and rollout.replicas(new) == rollout.replicas(d) and notes(new).get(rollout.DESIRED) == str(rollout.replicas(d)) and \
                rollout.count([new], "availableReplicas") == rollout.replicas(d):
            for rs in rollout.active(old):
                yield from self.scale(rs, 0)
                if self.failed:
                    return
            return
        if rollout.rolling_update(d) is None:
            return
        allowed = rollout.replicas(d) + rollout.max_surge(d) if rollout.replicas(d) > 0 else 0
        to_add = allowed - rollout.wanted(active)
        active.sort(key=rollout.age, reverse=to_add > 0)
        active.sort(key=rollout.replicas, reverse=True)
        sizes: list[int] = []
        added = 0
        for rs in active:
            part = rollout.proportion(rs, d, to_add, added) if to_add else 0
            sizes.append(rollout.replicas(rs) + part)
            added += part
        if to_add:
            sizes[0] = max(0, sizes[0] + to_add - added)
        for rs, size in zip(active, sizes, strict=True):
            yield from self.scale(rs, size, force=True)
            if self.failed:
                return

    def clean_up(self, old: Sets) -> Generator[Any, Any, None]:
        limit = self.d["spec"].get("revisionHistoryLimit")
        if limit is None or limit == rollout.FOREVER:
            return
        alive = sorted((s for s in old if not deleting(s)), key=lambda s: (rollout.revision_of(s), rollout.age(s)))
        for rs in alive[:max(0, len(alive) - limit)]:
            status = rs.get("status") or {}
            if status.get("replicas") or rollout.replicas(rs) or (meta(rs).get("generation") or 0) > (status.get("observedGeneration") or 0):
                continue
            yield Delete("apps/v1", "ReplicaSet", namespace(rs), name(rs))

    # ---- the ways

    def sync(self) -> Generator[Any, Any, None]:
        """Paused or scaled: sizes follow, nothing rolls."""
        new, old = yield from self.split(False)
        if self.failed:
            return
        yield from self.spread(new, old)
        if self.failed:
            return
        if self.d["spec"].get("paused"):
            yield from self.clean_up(old)
        yield from self.write(self.status_of(new))

    def scaling(self) -> Generator[Any, Any, bool]:
        """Is a changed `replicas` not yet with the sets?"""
        yield from self.split(False)
        for rs in rollout.active(self.sets):
            text = notes(rs).get(rollout.DESIRED)
            if text is not None and text.isdecimal() and int(text) != rollout.replicas(self.d):
                return True
        return False

    def roll(self) -> Generator[Any, Any, None]:
        new, old = yield from self.split(True)
        if self.failed or new is None:
            return
        size = rollout.replicas(self.d) if rollout.replicas(new) > rollout.replicas(self.d) else rollout.new_size(self.d, self.sets, new)
        if rollout.replicas(new) != rollout.replicas(self.d):
            did, new = yield from self.scale(new, size)
            if did or self.failed:
                yield from self.progress(new)
                return
        if not (yield from self._shrink(new, old)) and rollout.complete(self.d, self.d.get("status") or {}):
            yield from self.clean_up(old)
        yield from self.progress(rollout.find_new(self.d, self.sets) or new)

    def _shrink(self, new: Object, old: Sets) -> Generator[Any, Any, bool]:
        """Takes pods from old sets: unhealthy ones first, then as many as availability allows."""
        d = self.d
        active = rollout.active(old)
        if not active:
            return False
        minimum = rollout.replicas(d) - rollout.max_unavailable(d)
        spare = rollout.wanted(self.sets) - minimum - (rollout.replicas(new) - rollout.count([new], "availableReplicas"))
        if spare <= 0:
            return False
        removed = 0
        for i, rs in enumerate(sorted(active, key=rollout.age)):
            sick = rollout.replicas(rs) - rollout.count([rs], "availableReplicas")
            part = min(spare - removed, sick)
            if part > 0:
                _, active[i] = yield from self.scale(rs, rollout.replicas(rs) - part)
                if self.failed:
                    return False
                removed += part
            else:
                active[i] = rs
        healthy = rollout.count([*active, new], "availableReplicas") - minimum
        for rs in active:
            part = min(rollout.replicas(rs), healthy)
            if part > 0:
                yield from self.scale(rs, rollout.replicas(rs) - part)
                if self.failed:
                    return False
                healthy -= part
                removed += part
        return removed > 0

    def recreate(self, view: View) -> Generator[Any, Any, None]:
        new, old = yield from self.split(False)
        if self.failed:
            return
        scaled_down = False
        for rs in rollout.active(old):
            did, _ = yield from self.scale(rs, 0)
            scaled_down |= did
            if self.failed:
                return
        if scaled_down or self._old_pods_run(new, old, view):
            yield from self.progress(new)
            return
        if new is None:
            new, old = yield from self.split(True)
            if self.failed or new is None:
                return
        _, new = yield from self.scale(new, rollout.replicas(self.d))
        if self.failed:
            return
        if rollout.complete(self.d, self.d.get("status") or {}):
            yield from self.clean_up(old)
        yield from self.progress(new)

    def _old_pods_run(self, new: Object | None, old: Sets, view: View) -> bool:
        if rollout.count(old, "replicas"):
            return True
        return any(controlled_by(p, uid(rs)) and not finished(p)
                   for rs in self.sets if new is None or uid(rs) != uid(new) for p in view.owned("pods", uid(rs)))

    # ---- status

    def status_of(self, new: Object | None) -> Object:
        return rollout.status(self.d, list(self.sets), new, self.now)

    def write(self, status: Object) -> Generator[Any, Any, bool]:
        """Writes the status if it is news."""
        if status == (self.d.get("status") or {}):
            return False
        self.d = {**self.d, "status": status}
        yield from self._write_status()
        return True

    def progress(self, new: Object | None) -> Generator[Any, Any, None]:
        """Status with how the rollout goes; looks again when its deadline is due."""
        if self.failed:
            return
        d, now = self.d, self.now
        status, old = self.status_of(new), d.get("status") or {}
        found: list[dict[str, Any]] = status["conditions"]
        deadline = rollout.deadline(d)
        if deadline is None:
            found = conditions.without(found, "Progressing")
        current = rollout.progressing(d)
        settled = (status.get("replicas", 0) == status.get("updatedReplicas", 0) and current is not None
                   and current.get("reason") == "NewReplicaSetAvailable")
        what = f'ReplicaSet "{name(new)}"' if new is not None else f'Deployment "{name(d)}"'
        if deadline is not None and not settled:
            if rollout.complete(d, status):
                found = conditions.put(found, rollout.condition("Progressing", "True", "NewReplicaSetAvailable",
                                                         f"{what} has successfully progressed.", now))
            elif rollout.moved(old, status):
                c = rollout.condition("Progressing", "True", "ReplicaSetUpdated", f"{what} is progressing.", now)
                if current is not None and current.get("status") == "True":
                    c["lastTransitionTime"] = current.get("lastTransitionTime")
                found = [*conditions.without(found, "Progressing"), c]
            elif rollout.timed_out(found, deadline, now):
                found = conditions.put(found, rollout.condition("Progressing", "False", "ProgressDeadlineExceeded",
                                                         f"{what} has timed out progressing.", now))
        failures: list[dict[str, Any]] = [c for s in ([new] if new else []) + self.sets for c in (s.get("status") or {}).get("conditions") or ()
                    if c.get("type") == "ReplicaFailure"]
        if failures:
            at = failures[0].get("lastTransitionTime")
            found = conditions.put(found, {**failures[0], "lastUpdateTime": at, "lastTransitionTime": at})
        else:
            found = conditions.without(found, "ReplicaFailure")
        status["conditions"] = found
        if not (yield from self.write(status)):
            p = rollout.progressing(self.d)
            if deadline is not None and p is not None and not rollout.complete(d, status) and p.get("reason") != "ProgressDeadlineExceeded":
                after = seconds_of(p.get("lastUpdateTime")) + deadline - now
                if after < 1:
                    yield Again("the progress deadline is due")
                else:
                    yield Requeue(after + 1)


def reconcile(d: Object, view: View, now: float) -> Steps:
    spec = d["spec"]
    if not spec.get("selector"):
        yield Emit(d, "Warning", "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
        if ((d.get("status") or {}).get("observedGeneration") or 0) < (meta(d).get("generation") or 0):
            yield Update({**d, "status": {**(d.get("status") or {}), "observedGeneration": meta(d).get("generation")}}, "status")
        return
    path = f"/apis/apps/v1/namespaces/{namespace(d)}/deployments/{name(d)}"
    sets = yield from claim(view, "replicasets.apps", d, spec_selector(d), path, children(view, "replicasets.apps", d))
    turn = _Rollout(d, sets, now)
    if deleting(d):
        new, _ = yield from turn.split(False)
        if not turn.failed:
            yield from turn.write(turn.status_of(new))
        return
    yield from turn.check_paused()
    if turn.failed:
        return
    if spec.get("paused"):
        yield from turn.sync()
        return
    is_scaling = yield from turn.scaling()
    if turn.failed:
        return
    torn = rollout.rolling_update(d) is None and sum((rs["spec"].get("replicas") or 0) > 0 for rs in sets) > 1     # scaling would wait for ever
    if is_scaling and not torn:
        yield from turn.sync()
    elif rollout.rolling_update(d) is None:
        yield from turn.recreate(view)
    else:
        yield from turn.roll()


def _pod_gone(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    """A Recreate deployment goes on when the last pod of an old set is gone."""
    if new is not None or old is None:
        return ()
    ref = controller_of(old)
    if ref is None or ref.get("kind") != "ReplicaSet":
        return ()
    rs = view.get("replicasets.apps", namespace(old), ref.get("name") or "")
    parent = controller_of(rs) if rs is not None else None
    if parent is None or parent.get("kind") != "Deployment":
        return ()
    d = view.get("deployments.apps", namespace(old), parent.get("name") or "")
    return [(namespace(old), name(d))] if d is not None and rollout.rolling_update(d) is None else ()


_POD_GONE: Keys = _pod_gone

CONTROLLER = Controller(
    "deployment-controller", "deployments.apps", reconcile, reads=("replicasets.apps", "pods"),
    triggers=(Trigger("replicasets.apps", owner("apps", "Deployment", "deployments.apps")), Trigger("pods", _POD_GONE)))
