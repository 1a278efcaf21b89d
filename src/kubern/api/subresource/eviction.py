"""eviction: a delete that asks the disruption budgets first.

Upstream: pkg/registry/core/pod/storage/eviction.go; KEP-3017 (unhealthy pod eviction policy).
"""

from __future__ import annotations

from typing import Any

from kubern.api import delete, write
from kubern.api.cache import Item
from kubern.api.call import Call, answer
from kubern.api.negotiate import JSON, NO_TABLE
from kubern.api.options import DeleteOptions, WriteOptions, parse_delete_options, write_options
from kubern.api.read import find
from kubern.api.subresource.binding import SUCCESS, set_condition
from kubern.model.object import Object, condition
from kubern.model.request import Response
from kubern.model.schema import schema_for
from kubern.model.selector import from_label_selector
from kubern.model.status import StatusError, bad_request, conflict, forbidden
from kubern.model.time import rfc3339

ATTEMPTS = 20
DISRUPTED_PODS_MAX = 2000
MANY_BUDGETS = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."


async def handle(call: Call) -> Response:
    accept = call.accept(conversions=NO_TABLE)
    options = write_options(call.request, "CreateOptions")
    version = b'"policy/v1beta1"' in call.request.body
    if version:
        call.request.body = call.request.body.replace(b'"policy/v1beta1"', b'"policy/v1"')
    obj = await write.decode_object(call, options, "policy/v1", "Eviction", schema_for("policy/v1", "Eviction"))
    name = call.attributes.name
    write.match_namespace(obj["metadata"], call)
    if (obj["metadata"].get("name") or "") != name:
        raise bad_request("name in URL does not match name in Eviction object")
    asked = parse_delete_options(obj.get("deleteOptions") or {})
    if options.dry_run:
        asked.dry_run = True
    await call.server.admission_for(call, "CREATE", name, obj, None, options.dry_run, options.raw).run()
    for attempt in range(ATTEMPTS):
        item = find(call)
        pod = call.served.stored(item)
        if _ignores_budgets(pod):
            guard = asked
            if not _finished(pod) and asked.version is None:
                guard = _at(asked, str(item.revision))
            try:
                await _delete(call, item, guard)
            except StatusError as e:
                if e.reason == "Conflict" and asked.version is None and asked.uid is None and attempt + 1 < ATTEMPTS:
                    continue
                raise
            return answer(SUCCESS, accept, 201)
        break
    budgets = [b for b in call.server.cache.list("poddisruptionbudgets.policy", call.attributes.namespace) if _covers(b, pod)]
    if len(budgets) > 1:
        raise StatusError(500, "", MANY_BUDGETS)
    guard = asked
    if budgets:
        budget = budgets[0]
        if _unguarded(budget, pod):
            guard = _at(asked, str(item.revision))
        else:
            await _take_one(call, budget["metadata"]["name"], name, asked.dry_run)
            item = find(call)
    try:
        await _delete(call, item, guard)
    except StatusError as e:
        if e.reason == "Conflict" and guard is not asked and budgets:
            raise _busy(budgets[0]["metadata"]["name"]) from None
        raise
    return answer(SUCCESS, accept, 201)


def _at(asked: DeleteOptions, version: str) -> DeleteOptions:
    return DeleteOptions(asked.grace_s, asked.uid, version, asked.orphan, asked.propagation, asked.dry_run, asked.raw)


def _finished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") or bool(pod["metadata"].get("deletionTimestamp"))


def _ignores_budgets(pod: Object) -> bool:
    return _finished(pod) or (pod.get("status") or {}).get("phase") == "Pending"


def _covers(budget: Object, pod: Object) -> bool:
    try:
        return from_label_selector((budget.get("spec") or {}).get("selector")).matches(pod["metadata"].get("labels"))
    except (ValueError, StatusError):
        return False


def _unguarded(budget: Object, pod: Object) -> bool:
    """An unready pod may go where the budget says so, or where the application has enough healthy ones."""
    ready = condition(pod, "Ready")
    if ready is not None and ready.get("status") == "True":
        return False
    if (budget.get("spec") or {}).get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    status = budget.get("status") or {}
    healthy, wanted = status.get("currentHealthy") or 0, status.get("desiredHealthy") or 0
    return healthy >= wanted > 0


def _refuse(message: str, seconds: int) -> StatusError:
    text = "Cannot evict pod as it would violate the pod's disruption budget."
    details: dict[str, Any] = {"causes": [{"reason": "DisruptionBudget", "message": message}]}
    headers = []
    if seconds:
        details["retryAfterSeconds"] = seconds
        headers.append(("Retry-After", str(seconds)))
    return StatusError(429, "TooManyRequests", text, details, headers)


def _busy(name: str) -> StatusError:
    return _refuse(f"The disruption budget {name} is still being processed by the server.", 10)


def _check(budget: Object) -> None:
    meta, status = budget["metadata"], budget.get("status") or {}
    name = meta["name"]
    if (status.get("observedGeneration") or 0) < (meta.get("generation") or 0):
        raise _busy(name)
    allowed = status.get("disruptionsAllowed") or 0
    if allowed < 0:
        raise forbidden("policy", "poddisruptionbudget", name, "pdb disruptions allowed is negative")
    if len(status.get("disruptedPods") or ()) > DISRUPTED_PODS_MAX:
        raise forbidden("policy", "poddisruptionbudget", name,
                        "DisruptedPods map too big - too many evictions not confirmed by PDB controller")
    if allowed:
        return
    c = condition(budget, "DisruptionAllowed") or {}
    stuck = c.get("status") == "False" and c.get("message")
    healthy, wanted = status.get("currentHealthy") or 0, status.get("desiredHealthy") or 0
    if stuck and c.get("reason") == "SyncFailed":
        raise _refuse(f"The disruption budget {name} does not allow evicting pods currently because it failed sync: {c['message']}", 0)
    if healthy <= wanted:
        raise _refuse(f"The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently", 0)
    if stuck:
        raise _refuse(f"The disruption budget {name} does not allow evicting pods currently ({c.get('reason')}): {c['message']}", 0)
    raise _refuse(f"The disruption budget {name} does not allow evicting pods currently", 0)


async def _take_one(call: Call, budget_name: str, pod_name: str, dry_run: bool) -> None:
    """Takes one disruption off the budget; raises 429 where there is none."""
    served = call.server.rows.by_path["policy", "v1", "poddisruptionbudgets"]
    one = Call(call.server, call.request, call.user, call.attributes._replace(
        name=budget_name, group="policy", resource="poddisruptionbudgets", subresource="status"), served)

    def build(budget: Object | None) -> Object:
        assert budget is not None
        _check(budget)
        status = {**budget["status"]}
        status["disruptionsAllowed"] -= 1
        status["disruptedPods"] = {**(status.get("disruptedPods") or {}), pod_name: rfc3339(call.now_s)}
        if not status["disruptionsAllowed"]:
            changed = {"type": "DisruptionAllowed", "reason": "InsufficientPods", "status": "False",
                       "observedGeneration": status.get("observedGeneration")}
            out = []
            for c in status.get("conditions") or ():
                if c.get("type") == "DisruptionAllowed":
                    c = {**c, **changed, "lastTransitionTime": rfc3339(call.now_s) if c.get("status") != "False" else c["lastTransitionTime"]}
                out.append(c)
            status["conditions"] = out
        return {**budget, "metadata": dict(budget["metadata"]), "status": status}

    await write.change(one, build, WriteOptions(dry_run=dry_run))


async def _delete(call: Call, item: Item, options: DeleteOptions) -> None:
    """Marks the pod as disrupted and deletes it."""
    pods = Call(call.server, call.request, call.user, call.attributes._replace(subresource=""), call.served)
    if not options.dry_run:
        def build(pod: Object | None) -> Object:
            assert pod is not None
            m = pod["metadata"]
            if options.uid and options.uid != m.get("uid"):
                raise conflict("", "Pod", m["name"], f"the UID in the precondition ({options.uid}) does not match the UID in record "
                               f"({m.get('uid')}). The object might have been deleted and then recreated")
            if options.version and options.version != m.get("resourceVersion"):
                raise conflict("", "Pod", m["name"], f"the ResourceVersion in the precondition ({options.version}) does not match the "
                               f"ResourceVersion in record ({m.get('resourceVersion')}). The object might have been modified")
            new = {**pod, "metadata": dict(m)}
            set_condition(new, {"type": "DisruptionTarget", "status": "True", "lastProbeTime": None, "reason": "EvictionByEvictionAPI",
                                "message": "Eviction API: evicting", "lastTransitionTime": rfc3339(call.now_s)})
            return new

        revision = await write.change(pods, build, WriteOptions())
        if options.version is not None:
            options = _at(options, str(revision))
        found = call.served.collection.get(item.key)
        if found is None:
            return
        item = found
    await delete.remove(pods, item, options)


__all__ = ["JSON", "handle"]
