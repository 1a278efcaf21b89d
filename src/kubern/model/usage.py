"""What an object counts for against a ResourceQuota, and which quotas it falls under. Shared by admission, which charges, and the
controller, which recounts.

In: the stored object of a (group, plural). Out: quantities by resource name. Counted are `count/RESOURCE.GROUP` for
everything, and for pods, services, claims and resource claims what they ask for.
Upstream: pkg/quota/v1/evaluator/core, apiserver/pkg/quota/v1/generic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubern.model.kinds.pod_resources import is_pod_level, qos_class, sum_containers
from kubern.model.object import Object
from kubern.model.quantity import add, compare, parse, render

Usage = dict[str, str]
ONE, NONE = "1", "0"

LEGACY_COUNTS = {("", "configmaps"): "configmaps", ("", "resourcequotas"): "resourcequotas",
                 ("", "replicationcontrollers"): "replicationcontrollers", ("", "secrets"): "secrets"}
POD_RESOURCES = frozenset(("count/pods", "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage",
                           "limits.cpu", "limits.memory", "limits.ephemeral-storage", "pods"))
MUST_BE_SET = frozenset(("cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"))
SERVICE_RESOURCES = frozenset(("count/services", "services", "services.nodeports", "services.loadbalancers"))
CLAIM_RESOURCES = ("persistentvolumeclaims", "requests.storage")
BY_CLASS = ".storageclass.storage.k8s.io/"
BY_DEVICE_CLASS = ".deviceclass.resource.k8s.io/devices"
DEVICE_CLASS_REQUESTS = "requests.deviceclass.resource.kubernetes.io/"
ALL_DEVICES = 32              # what a claim for "all" devices may get


def count_name(group: str, plural: str) -> str:
    return f"count/{plural}.{group}" if group else f"count/{plural}"


# -- which of a quota's resources an object is about

def matching(group: str, plural: str, names: Iterable[str]) -> list[str]:
    """Those of a quota's resource names that objects of this kind count for."""
    if (group, plural) == ("", "pods"):
        return [n for n in names if n in POD_RESOURCES or n.startswith(("hugepages-", "requests.hugepages-")) or _extended(n)]
    if (group, plural) == ("", "services"):
        return [n for n in names if n in SERVICE_RESOURCES]
    if (group, plural) == ("", "persistentvolumeclaims"):
        return [n for n in names if n in ("count/persistentvolumeclaims", *CLAIM_RESOURCES) or n.endswith(tuple(f"{BY_CLASS}{r}"
                                                                                                            for r in CLAIM_RESOURCES))]
    counted = {count_name(group, plural), LEGACY_COUNTS.get((group, plural), "")}
    if (group, plural) == ("resource.k8s.io", "resourceclaims"):
        return [n for n in names if n in counted or n.endswith(BY_DEVICE_CLASS) or _extended(n)]
    return [n for n in names if n in counted]


def _extended(name: str) -> bool:
    if not name.startswith("requests."):
        return False
    return ("/" in name and "kubernetes.io/" not in name) or name.startswith(DEVICE_CLASS_REQUESTS)


# -- scopes

def selectors(quota: Object) -> list[dict[str, Any]]:
    """A quota's scopes as one list of requirements."""
    spec = quota.get("spec") or {}
    out = [{"scopeName": s, "operator": "Exists"} for s in spec.get("scopes") or ()]
    out += (spec.get("scopeSelector") or {}).get("matchExpressions") or ()
    return out


def in_scope(group: str, plural: str, requirement: Mapping[str, Any], obj: Object) -> bool:
    name = requirement.get("scopeName")
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if (group, plural) == ("", "pods"):
        deadline = spec.get("activeDeadlineSeconds")
        if name in ("Terminating", "NotTerminating"):
            return (deadline is not None and deadline >= 0) == (name == "Terminating")
        if name in ("BestEffort", "NotBestEffort"):
            qos = status.get("qosClass") or qos_class(spec)
            return (qos == "BestEffort") == (name == "BestEffort")
        if name == "PriorityClass":
            return _selected(requirement, [spec["priorityClassName"]] if spec.get("priorityClassName") else [])
        if name == "CrossNamespacePodAffinity":
            return _across_namespaces(spec)
    elif (group, plural) == ("", "persistentvolumeclaims") and name == "VolumeAttributesClass":
        names = (spec.get("volumeAttributesClassName"), status.get("currentVolumeAttributesClassName"),
                 (status.get("modifyVolumeStatus") or {}).get("targetVolumeAttributesClassName"))
        return _selected(requirement, [n for n in names if n])
    return False


def _selected(requirement: Mapping[str, Any], have: list[str]) -> bool:
    operator, values = requirement.get("operator"), requirement.get("values") or ()
    if operator == "Exists":
        return bool(have)
    if operator == "DoesNotExist":
        return not have
    if operator == "In":
        return any(h in values for h in have)
    return any(h not in values for h in have) or not have       # NotIn


def _across_namespaces(spec: Object) -> bool:
    affinity = spec.get("affinity") or {}
    for kind in ("podAffinity", "podAntiAffinity"):
        part = affinity.get(kind) or {}
        terms = list(part.get("requiredDuringSchedulingIgnoredDuringExecution") or ())
        terms += [w.get("podAffinityTerm") or {} for w in part.get("preferredDuringSchedulingIgnoredDuringExecution") or ()]
        if any(t.get("namespaces") or t.get("namespaceSelector") is not None for t in terms):
            return True
    return False


def matches(group: str, plural: str, quota: Object, hard: Iterable[str], obj: Object) -> bool:
    """Whether a quota with these hard limits is about the object."""
    return bool(matching(group, plural, hard)) and all(in_scope(group, plural, s, obj) for s in selectors(quota))


# -- amounts

def usage(group: str, plural: str, obj: Object, now_s: float = 0.0) -> Usage:
    """What the object counts for."""
    out: Usage = {count_name(group, plural): ONE}
    legacy = LEGACY_COUNTS.get((group, plural))
    if legacy:
        out[legacy] = ONE
    special = _SPECIAL.get((group, plural))
    if special:
        special(obj, now_s, out)
    return out


def counts(pod: Object, now_s: float) -> bool:
    """Whether a pod still counts for what it asks: not when it has ended, nor when it should long be gone."""
    if (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
        return False
    m = pod.get("metadata") or {}
    stamp, grace = m.get("deletionTimestamp"), m.get("deletionGracePeriodSeconds")
    if stamp and grace is not None and now_s:
        import datetime as dt
        return now_s <= dt.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() + grace
    return True


def compute(requests: Mapping[str, Any], limits: Mapping[str, Any]) -> Usage:
    """Requests and limits by the names quotas have for them."""
    out: Usage = {"pods": ONE}
    for name in ("cpu", "memory", "ephemeral-storage"):
        if name in requests:
            out[name] = out[f"requests.{name}"] = requests[name]
        if name in limits:
            out[f"limits.{name}"] = limits[name]
    for name, text in requests.items():
        if name.startswith("hugepages-"):
            out[name] = out[f"requests.{name}"] = text
        elif "/" in name and "kubernetes.io/" not in name:
            out[f"requests.{name}"] = text
    return out


def _pod(pod: Object, now_s: float, out: Usage) -> None:
    if not counts(pod, now_s):
        return
    spec = pod.get("spec") or {}
    sides = []
    for side in ("requests", "limits"):
        total: dict[str, Any] = sum_containers(spec, side)
        total |= {k: v for k, v in ((spec.get("resources") or {}).get(side) or {}).items() if is_pod_level(k)}
        overhead = spec.get("overhead") or {}
        for k, v in overhead.items():
            if side == "requests" or k in total:
                total[k] = add(total.get(k, NONE), v)
        sides.append(total)
    out |= compute(sides[0], sides[1])


def _service(service: Object, now_s: float, out: Usage) -> None:
    spec = service.get("spec") or {}
    ports, kind = spec.get("ports") or [], spec.get("type")
    out |= {"services": ONE, "services.loadbalancers": NONE, "services.nodeports": NONE}
    if kind in ("NodePort", "LoadBalancer"):
        explicit = kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is False
        out["services.nodeports"] = str(sum(1 for p in ports if p.get("nodePort")) if explicit else len(ports))
    if kind == "LoadBalancer":
        out["services.loadbalancers"] = ONE


def _claim(claim: Object, now_s: float, out: Usage) -> None:
    spec, status = claim.get("spec") or {}, claim.get("status") or {}
    cls = ((claim.get("metadata") or {}).get("annotations") or {}).get("volume.beta.kubernetes.io/storage-class") or spec.get("storageClassName")
    names = ["persistentvolumeclaims"] + ([f"{cls}{BY_CLASS}persistentvolumeclaims"] if cls else [])
    out |= dict.fromkeys(names, ONE)
    asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if asked is None:
        return
    allocated = (status.get("allocatedResources") or {}).get("storage")
    size = parse(str(allocated if allocated is not None and compare(allocated, asked) > 0 else asked))
    text = size.text
    if size.amount.denominator != 1:
        text = render(size.amount + (-size.amount) % 1, size.format)       # whole bytes
    out |= dict.fromkeys(["requests.storage"] + ([f"{cls}{BY_CLASS}requests.storage"] if cls else []), text)


def _devices(request: Mapping[str, Any]) -> int:
    mode = request.get("allocationMode") or "ExactCount"
    if mode == "All":
        return ALL_DEVICES
    return int(request.get("count") or 1) if mode == "ExactCount" else 0


def _resource_claim(claim: Object, now_s: float, out: Usage) -> None:
    for request in ((claim.get("spec") or {}).get("devices") or {}).get("requests") or ():
        worst: dict[str, int] = {}
        for one in request.get("firstAvailable") or ([request["exactly"]] if request.get("exactly") else []):
            name = f"{one.get('deviceClassName')}{BY_DEVICE_CLASS}"
            worst[name] = max(worst.get(name, 0), _devices(one))
        for name, number in worst.items():
            out[name] = add(out.get(name, NONE), str(number))


_SPECIAL = {("", "pods"): _pod, ("", "services"): _service, ("", "persistentvolumeclaims"): _claim,
            ("resource.k8s.io", "resourceclaims"): _resource_claim}


def missing(pod: Object, names: Iterable[str]) -> str:
    """What containers do not say although a quota over cpu or memory wants it: "limits.memory for: c; requests.cpu for: a,b"."""
    spec = pod.get("spec") or {}
    own = spec.get("resources") or {}
    if any(is_pod_level(k) for side in ("requests", "limits") for k in own.get(side) or {}):
        return ""
    wanted = MUST_BE_SET.intersection(names)
    lacking: dict[str, set[str]] = {}
    for c in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        resources = c.get("resources") or {}
        for name in wanted - compute(resources.get("requests") or {}, resources.get("limits") or {}).keys():
            lacking.setdefault(name, set()).add(c.get("name") or "")
    return "; ".join(f"{name} for: {','.join(sorted(lacking[name]))}" for name in sorted(lacking))
