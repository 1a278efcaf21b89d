"""Whether a pod may run on this node at all, and what has failed for reasons of the node's. Pure.

In: the pod, the node, the pods that are here. Out: None or (reason, message): the pod is Failed with it.
Upstream: pkg/kubelet/lifecycle/predicate.go, active_deadline.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from kubern.kubelet import pods
from kubern.model import quantity
from kubern.model.object import Object
from kubern.model.taint import tolerated

REJECTED = "Pod was rejected: "
SAFE_SYSCTLS = {           # name -> the namespace that isolates it
    "kernel.shm_rmid_forced": "ipc", "net.ipv4.ip_local_port_range": "net", "net.ipv4.tcp_syncookies": "net", "net.ipv4.ping_group_range": "net",
    "net.ipv4.ip_unprivileged_port_start": "net", "net.ipv4.ip_local_reserved_ports": "net", "net.ipv4.tcp_keepalive_time": "net",
    "net.ipv4.tcp_fin_timeout": "net", "net.ipv4.tcp_keepalive_intvl": "net", "net.ipv4.tcp_keepalive_probes": "net",
    "net.ipv4.tcp_rmem": "net", "net.ipv4.tcp_wmem": "net",
}


def admit(pod: Object, node: Object | None, others: Iterable[Object], unsafe: Sequence[str] = ()) -> tuple[str, str] | None:
    """`unsafe`: sysctls beyond the safe ones that this node allows, by name or prefix*."""
    spec = pod["spec"]
    if spec.get("hostUsers") is False:
        return "UserNamespacesNotSupported", REJECTED + "this node's runtime has no user namespaces for pods (spec.hostUsers: false)"
    if any((sc.get("appArmorProfile") or {}).get("type") in ("RuntimeDefault", "Localhost") for sc in _contexts(spec)):
        return "AppArmor", REJECTED + "Cannot enforce AppArmor: AppArmor is not enabled on the host"
    if (spec.get("securityContext") or {}).get("supplementalGroupsPolicy") == "Strict":
        return "SupplementalGroupsPolicyNotSupported", REJECTED + "SupplementalGroupsPolicy=Strict is not supported in this node"
    os_name = (spec.get("os") or {}).get("name")
    if os_name not in (None, "", "linux"):
        return "PodOSNotSupported", REJECTED + "Failed to admit pod as the OS field doesn't match node OS"
    problem = forbidden_sysctl(spec, unsafe)
    if problem:
        return "SysctlForbidden", f"{REJECTED}forbidden sysctl: {problem}"
    if node is None:
        return None
    labels = node["metadata"].get("labels") or {}
    if not selected(spec, labels, node["metadata"]["name"]):
        return "NodeAffinity", REJECTED + "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
    room = (node.get("status") or {}).get("allocatable") or {}
    there = [p for p in others if p["metadata"].get("uid") != pod["metadata"].get("uid")]
    if room.get("pods") and len(there) + 1 > quantity.value(str(room["pods"])):
        n = quantity.value(str(room["pods"]))
        return "OutOfpods", f"{REJECTED}Node didn't have enough resource: pods, requested: 1, used: {len(there)}, capacity: {n}"
    asked = pods.resources(spec, "requests")
    for resource in sorted(asked):
        if resource not in room:
            if "/" in resource:
                continue                                    # extended resources nobody here offers any more
            continue
        measure = quantity.milli if resource == "cpu" else quantity.value
        want, have = measure(asked[resource]), measure(str(room[resource]))
        used = sum(measure(r[resource]) for p in there if resource in (r := pods.resources(p["spec"], "requests")))
        if want and want + used > have:
            return f"OutOf{resource}", \
                f"{REJECTED}Node didn't have enough resource: {resource}, requested: {want}, used: {used}, capacity: {have}"
    mine = set(host_ports(spec))
    if mine and any(clash(a, b) for p in there for b in host_ports(p["spec"]) for a in mine):
        return "NodePorts", REJECTED + "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    return None


def _contexts(spec: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield spec.get("securityContext") or {}
    for _, c in pods.every_container(spec):
        yield c.get("securityContext") or {}


def forbidden_sysctl(spec: Mapping[str, Any], unsafe: Sequence[str] = ()) -> str:
    """What is wrong with the pod's sysctls, "" if nothing."""
    for s in (spec.get("securityContext") or {}).get("sysctls") or ():
        name = s["name"].replace("/", ".")
        space = SAFE_SYSCTLS.get(name)
        if space is None and any(fnmatchcase(name, p.replace("/", ".")) for p in unsafe):
            space = "net" if name.startswith("net.") else "ipc"
        if space is None:
            return f'"{name}" not allowlisted'
        if spec.get("hostNetwork" if space == "net" else "hostIPC"):
            return f'"{name}" not allowed with host {space} enabled'
    return ""


def tolerates(pod: Object, key: str) -> bool:
    """A NoSchedule taint of this key, without value."""
    return tolerated({"key": key, "effect": "NoSchedule"}, pod["spec"].get("tolerations"))


def host_ports(spec: Mapping[str, Any]) -> Iterable[tuple[str, str, int]]:
    for kind, c in pods.every_container(spec):
        if kind == "container" or (kind == "init" and pods.is_sidecar(c)):
            for p in c.get("ports") or ():
                if p.get("hostPort"):
                    yield p.get("hostIP") or "0.0.0.0", p.get("protocol") or "TCP", int(p["hostPort"])


def clash(a: tuple[str, str, int], b: tuple[str, str, int]) -> bool:
    return a[1:] == b[1:] and (a[0] == b[0] or "0.0.0.0" in (a[0], b[0]))


def selected(spec: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    """nodeSelector and required node affinity."""
    if any(labels.get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    return any(_term(t, labels, name) for t in required.get("nodeSelectorTerms") or ())


def _term(term: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    rules = [(labels.get(e["key"]), e) for e in term.get("matchExpressions") or ()]
    rules += [(name if e["key"] == "metadata.name" else None, e) for e in term.get("matchFields") or ()]
    return bool(rules) and all(_matches(have, e) for have, e in rules)


def _matches(have: str | None, rule: Mapping[str, Any]) -> bool:
    op, values = rule.get("operator"), list(rule.get("values") or ())
    if op == "In":
        return have in values
    if op == "NotIn":
        return have not in values
    if op == "Exists":
        return have is not None
    if op == "DoesNotExist":
        return have is None
    try:
        number, bound = int(have or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return number > bound if op == "Gt" else number < bound


def deadline(pod: Object, status: Mapping[str, Any], now: float) -> tuple[float, tuple[str, str] | None]:
    """(seconds until activeDeadlineSeconds are over or 0, what the pod failed of once they are)."""
    limit = pod["spec"].get("activeDeadlineSeconds")
    began = status.get("startTime")
    if limit is None or not began:
        return 0.0, None
    left = datetime.fromisoformat(began.replace("Z", "+00:00")).timestamp() + int(limit) - now
    if left > 0:
        return left, None
    return 0.0, ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
