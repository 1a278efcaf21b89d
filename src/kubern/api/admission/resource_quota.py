"""ResourceQuota: what a namespace may use, checked and charged before the object is stored.

Quotas of a namespace are charged one request at a time (a lock per namespace), by writing the new usage into their status; a lost
race is decided again on the newest state. Dry runs are checked and not charged. A request that fails afterwards leaves its charge
until the controller recounts. Who counts for what: model/usage.py. Upstream: apiserver admission/plugin/resourcequota.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin
from kubern.model.object import Object
from kubern.model.quantity import add, compare, parse, sub
from kubern.model.status import StatusError
from kubern.model.usage import NONE, Usage, in_scope, matches, matching, missing, selectors, usage

RETRIES = 3
UNTRACKED = frozenset((("", "events"), ("events.k8s.io", "events"), ("", "bindings"), ("authorization.k8s.io", "localsubjectaccessreviews"),
                       ("authorization.k8s.io", "subjectaccessreviews"), ("authorization.k8s.io", "selfsubjectaccessreviews"),
                       ("authorization.k8s.io", "selfsubjectrulesreviews"), ("authentication.k8s.io", "tokenreviews")))
_locks: dict[str, tuple[asyncio.Lock, int]] = {}


def _handles(a: Attributes) -> bool:
    """Whether this operation can change what the object counts for."""
    group, plural = a.resource.group, a.resource.plural
    if (group, plural) in UNTRACKED or (plural == "namespaces" and not group):
        return False
    if (group, plural) == ("", "pods"):
        if a.subresource == "resize":
            return a.operation == UPDATE
        if a.subresource:
            return False
        return a.operation == CREATE or _terminating(a.obj) != _terminating(a.old)
    if (group, plural) == ("", "persistentvolumeclaims") and a.subresource == "status":
        before, after = (a.old or {}).get("status") or {}, (a.obj or {}).get("status") or {}
        return any(before.get(k) != after.get(k) for k in ("allocatedResources", "currentVolumeAttributesClassName", "modifyVolumeStatus"))
    if a.subresource:
        return False
    if (group, plural) in (("", "services"), ("", "persistentvolumeclaims"), ("resource.k8s.io", "resourceclaims")):
        return True
    return a.operation == CREATE


def _terminating(pod: Object | None) -> bool:
    deadline = ((pod or {}).get("spec") or {}).get("activeDeadlineSeconds")
    return deadline is not None and deadline >= 0


async def validate(a: Attributes) -> None:
    if not a.namespace or a.obj is None:
        return
    quotas = list(a.reader.list("resourcequotas", a.namespace))
    if not quotas or not _handles(a):
        return
    if a.dry_run or a.writer is None:
        _check(a, quotas)
        return
    lock, waiting = _locks.get(a.namespace) or (asyncio.Lock(), 0)
    _locks[a.namespace] = (lock, waiting + 1)
    try:
        async with lock:
            await _charge(a)
    finally:
        lock, waiting = _locks[a.namespace]
        if waiting == 1:
            del _locks[a.namespace]
        else:
            _locks[a.namespace] = (lock, waiting - 1)


async def _charge(a: Attributes) -> None:
    assert a.writer is not None
    done: set[str] = set()
    for attempt in range(RETRIES + 1):
        quotas = [q for q in a.reader.list("resourcequotas", a.namespace) if q["metadata"]["name"] not in done]
        failed: StatusError | None = None
        for quota, used in _check(a, quotas):
            status = {**(quota.get("status") or {}), "used": used}
            try:
                await a.writer.update({"kind": "ResourceQuota", "apiVersion": "v1", **quota, "status": status}, "status")
            except StatusError as e:
                if e.code not in (404, 409):
                    raise
                failed = e
            else:
                done.add(quota["metadata"]["name"])
        if failed is None:
            return
        if attempt == RETRIES:
            raise failed


def _check(a: Attributes, quotas: Iterable[Object]) -> list[tuple[Object, dict[str, str]]]:
    """Every quota to charge with its new usage. Raises the 403."""
    assert a.obj is not None
    group, plural = a.resource.group, a.resource.plural
    obj = a.obj
    interesting: list[tuple[Object, Mapping[str, Any]]] = []
    for quota in quotas:
        hard = (quota.get("status") or {}).get("hard") or {}
        if not matches(group, plural, quota, hard, obj):
            continue
        names, name = matching(group, plural, hard), quota["metadata"]["name"]
        if (group, plural) == ("", "pods"):
            lacking = missing(obj, names)
            if lacking:
                raise a.refuse(f"failed quota: {name}: must specify {lacking}")
        used = (quota.get("status") or {}).get("used") or {}
        if any(n not in used for n in names):
            raise a.refuse(f"status unknown for quota: {name}, resources: {','.join(sorted(names))}")
        interesting.append((quota, hard))
    if not interesting:
        return []
    now = time.time()
    wanted = usage(group, plural, obj, now)
    negative = sorted(n for n, v in wanted.items() if compare(v, NONE) < 0)
    if negative:
        raise a.refuse(f"quota usage is negative for resource(s): {','.join(negative)}")
    change = wanted
    if a.operation == UPDATE and a.old is not None and a.old["metadata"].get("resourceVersion"):
        before = usage(group, plural, a.old, now)
        change = {n: sub(v, before.get(n, NONE)) for n, v in wanted.items() if compare(v, before.get(n, NONE)) > 0}
    out: list[tuple[Object, dict[str, str]]] = []
    for quota, hard in interesting:
        delta = change
        if change is not wanted and a.old is not None and not all(in_scope(group, plural, s, a.old) for s in selectors(quota)):
            delta = wanted                       # it comes under this quota only now
        asked = {n: v for n, v in delta.items() if n in hard and compare(v, NONE)}
        if asked:
            out.append((quota, _charged(a, quota, hard, asked)))
    return out


def _charged(a: Attributes, quota: Object, hard: Mapping[str, Any], asked: Usage) -> dict[str, str]:
    used = (quota.get("status") or {}).get("used") or {}
    after = {n: add(used.get(n, NONE), v) for n, v in asked.items()}
    over = sorted(n for n in after if compare(after[n], hard[n]) > 0)
    if over and a.subresource != "status":
        requested, current, limited = (",".join(f"{n}={parse(str(what.get(n, NONE))).text}" for n in over) for what in (asked, used, hard))
        raise a.refuse(f"exceeded quota: {quota['metadata']['name']}, requested: {requested}, used: {current}, limited: {limited}")
    return {**used, **after}


PLUGIN = Plugin("ResourceQuota", (CREATE, UPDATE), ("*",), validate=validate)
