"""why: the scheduler's verdict on one pod, for people. Per node and plugin what is wrong, and what smallest change would help. Pure.

The answer comes from the same filters that decide (pick.feasible); the counterfactuals are the same filters over a changed pod, which the
arrays make cheap. Behind `kubern why pod/NAME` and GET /api/v1/namespaces/NS/pods/NAME/why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kubern.model.object import Object, clone
from kubern.model.taint import tolerated
from kubern.scheduler.pick import Extra, feasible
from kubern.scheduler.plugins.node import needed_features, ports_conflict
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.table import NodeTable

NODES_NAMED_MAX = 5
HINTS = (                               # what to do about a pre-filter's refusal
    ("unbound immediate PersistentVolumeClaims", "its claims are not bound: is there a storage class with a provisioner that runs, or a volume that fits?"),
    ("persistentvolumeclaim", "create the claim, or look at it with: kubectl describe pvc"),
    ("device class", "create the DeviceClass, or name another one in the claim"),
    ("resource claim", "another pod's allocation of the same claim is on its way; it will be tried again"),
    ("resourceclaim", "look at the claim with: kubectl describe resourceclaim"),
)
UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


def amount(resource: str, value: int) -> str:
    """An amount of a resource in the unit people use: "1.5Gi", "250m", "2"."""
    if resource == "cpu":
        return f"{value}m" if value % 1000 else str(value // 1000)
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages-"):
        for unit, size in UNITS:
            if value >= size:
                return f"{value / size:.2f}".rstrip("0").rstrip(".") + unit
    return str(value)


def why(p: PodInfo, t: NodeTable, extra_for: Callable[[PodInfo], Extra]) -> dict[str, Any]:
    """{"nodes": N, "fits": [names], "reasons": [{plugin, reason, detail, nodes}], "fixes": [{change, nodes}], "text": one readable answer}."""
    ok, rejection = feasible(p, t, extra_for(p), explain=True)
    fits = [t.names[s] for s in np.nonzero(ok)[0]]
    reasons = [{"plugin": plugin, "reason": reason, "detail": _detail(p, t, reason, mask), "nodes": [t.names[s] for s in np.nonzero(mask)[0]]}
               for plugin, reason, mask in rejection.per_node]
    fixes = [] if fits else [{"change": change, "nodes": n} for change, n in _fixes(p, t, extra_for) if n]
    out: dict[str, Any] = {"nodes": rejection.total, "fits": fits, "reasons": reasons, "fixes": fixes}
    if rejection.message:
        out["message"] = rejection.message
    out["text"] = _text(p, out)
    return out


def _detail(p: PodInfo, t: NodeTable, reason: str, mask: np.ndarray) -> str:
    """What the bare reason leaves out: by how much it is short, which taints, whose port, which domains are full, whom it must not meet."""
    if reason.startswith("Insufficient "):
        resource = reason.removeprefix("Insufficient ")
        row = t.resource_row(resource)
        free = (t.allocatable[row, :t.size] - t.used[row, :t.size])[mask]
        return f"short by {amount(resource, int(p.requests.get(resource, 0) - free.max()))} at least"
    found = DETAILS.get(reason)
    return found(p, t, mask) if found is not None else ""


def _ports(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    holders = [q for q in _pods_on(t, mask) if ports_conflict(p.ports, set(q.ports))]
    wanted = ", ".join(f"{port}/{protocol}" for protocol, _, port in p.ports)
    return f"{wanted} held by {_pod_names(holders)}"


def _spread(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    out = []
    for c in p.spreads:
        if c.hard:
            d = t.domains(c.key)
            per = d.sums(t.counts(c.pods))
            names = {int(d.codes[s]): t.value_names[int(t.column(c.key)[s])] for s in np.nonzero(d.have & t.all())[0]}
            counts = ", ".join(f"{name} {int(per[code])}" for code, name in sorted(names.items(), key=lambda x: x[1])[:NODES_NAMED_MAX])
            out.append(f"{c.key}: {counts or 'no node has it'}; maxSkew {c.max_skew}")
    return "; ".join(out)


def _affinity(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    there = sum(int(t.counts(x.pods).sum()) for x in p.affinity)
    keys = ", ".join(dict.fromkeys(x.topology_key for x in p.affinity))
    return f"{there} pods match, by {keys}" if there else f"no pod that it wants to be near is placed, by {keys}"


def _anti_affinity(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    return _pod_names([q for q in _pods_on(t, mask) if any(t.in_set(x.pods, q) for x in p.anti_affinity)])


def _minded(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    return _pod_names([q for q in _pods_on(t, mask) if any(t.in_set(x.pods, p) for x in q.anti_affinity)])


def _selector(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    pairs = [f"{k}={v}" for k, v in (p.spec.get("nodeSelector") or {}).items()]
    required = ((p.spec.get("affinity") or {}).get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    for term in (required or {}).get("nodeSelectorTerms") or ():
        pairs += [f"{r.get('key')} {r.get('operator')} {','.join(r.get('values') or ())}".strip()
                  for r in (*(term.get("matchExpressions") or ()), *(term.get("matchFields") or ()))]
    return "; ".join(pairs)


def _volumes(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    return f"claims {', '.join(p.volumes)}"


def _devices(p: PodInfo, t: NodeTable, mask: np.ndarray) -> str:
    wanted = [*(r.get("resourceClaimName") or f"one from {r.get('resourceClaimTemplateName')}" for r in p.spec.get("resourceClaims") or ()), *sorted(p.backed)]
    return f"claims {', '.join(wanted)}: no free device there suits"


DETAILS: dict[str, Callable[[PodInfo, NodeTable, np.ndarray], str]] = {
    "node(s) had untolerated taint(s)": lambda p, t, mask: ", ".join(sorted(_untolerated(p, t, mask))),
    "node(s) didn't have free ports for the requested pod ports": _ports,
    "node(s) didn't match pod topology spread constraints": _spread,
    "node(s) didn't match pod affinity rules": _affinity,
    "node(s) didn't match pod anti-affinity rules": _anti_affinity,
    "node(s) didn't satisfy existing pods anti-affinity rules": _minded,
    "node(s) didn't match Pod's node affinity/selector": _selector,
    "node(s) didn't match PersistentVolume's node affinity": _volumes,
    "node(s) didn't find available persistent volumes to bind": _volumes,
    "node(s) did not have enough free storage": _volumes,
    "node(s) had no available volume zone": _volumes,
    "node(s) exceed max volume count": _volumes,
    "cannot allocate all claims": _devices,
    "resourceclaim not available on the node": _devices,
    "node(s) didn't match Pod's required features": lambda p, t, mask: ", ".join(sorted(needed_features(p))),
}


def _pods_on(t: NodeTable, mask: np.ndarray) -> list[PodInfo]:
    return [q for s in np.nonzero(mask)[0] for q in t.pods[s].values()]


def _pod_names(pods: list[PodInfo]) -> str:
    return _names([f"{q.namespace}/{q.name}" for q in pods]) if pods else ""


def _untolerated(p: PodInfo, t: NodeTable, mask: np.ndarray) -> set[str]:
    by_number = {number: taints for taints, number in t.taint_sets.items()}
    out = set()
    for number in np.unique(t.taints[:t.size][mask]):
        for key, value, effect in by_number[int(number)]:
            if effect in ("NoSchedule", "NoExecute") and not tolerated({"key": key, "value": value, "effect": effect}, p.spec.get("tolerations")):
                out.add(f"{key}={value}:{effect}" if value else f"{key}:{effect}")
    return out


def _fixes(p: PodInfo, t: NodeTable, extra_for: Callable[[PodInfo], Extra]) -> Iterator[tuple[str, int]]:
    """Single changes of the pod, and how many nodes each would open."""
    def try_(change: Callable[[Object], None]) -> int:
        pod = clone(p.pod)
        change(pod["spec"])
        other = pod_info(pod)
        return int(np.count_nonzero(feasible(other, t, extra_for(other))[0]))
    spec = p.spec
    for k, v in (spec.get("nodeSelector") or {}).items():
        yield f"remove nodeSelector {k}={v}", try_(_drop(k, "nodeSelector"))
    affinity = spec.get("affinity") or {}
    for kind, words in (("nodeAffinity", "node affinity"), ("podAffinity", "pod affinity"), ("podAntiAffinity", "pod anti-affinity")):
        if (affinity.get(kind) or {}).get("requiredDuringSchedulingIgnoredDuringExecution"):
            yield f"remove the required {words}", try_(_drop(kind, "affinity"))
    for taint in sorted(_untolerated(p, t, t.all())):
        key, effect = taint.rpartition(":")[0].partition("=")[0], taint.rpartition(":")[2]
        yield f"tolerate {taint}", try_(_tolerate(key, effect))
    for c in spec.get("topologySpreadConstraints") or ():
        if c.get("whenUnsatisfiable") != "ScheduleAnyway":
            yield f"let the spread over {c.get('topologyKey')} be ScheduleAnyway", try_(_drop(c, "topologySpreadConstraints"))
    for resource, want in p.requests.items():
        row = t.resource_row(resource)
        free = int((t.allocatable[row, :t.size] - t.used[row, :t.size])[t.all()].max(initial=0))
        if 0 < free < want:
            yield f"ask for at most {amount(resource, free)} {resource}", try_(_without(resource))
    if p.ports:
        yield "ask for no host port", try_(_no_ports)
    for field, words in (("volumes", "use no volume claims"), ("resourceClaims", "ask for no devices")):
        if (p.volumes if field == "volumes" else spec.get(field)):
            yield words, try_(_without_field(field))


Change = Callable[[dict[str, Any]], None]         # of a pod's spec


def _drop(what: Any, where: str) -> Change:
    def change(spec: dict[str, Any]) -> None:
        if isinstance(spec[where], dict):
            del spec[where][what]
        else:
            spec[where].remove(what)
    return change


def _tolerate(key: str, effect: str) -> Change:
    def change(spec: dict[str, Any]) -> None:
        spec.setdefault("tolerations", []).append({"key": key, "operator": "Exists", "effect": effect})
    return change


def _without(resource: str) -> Change:
    def change(spec: dict[str, Any]) -> None:
        for c in [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]:
            ((c.get("resources") or {}).get("requests") or {}).pop(resource, None)
        ((spec.get("resources") or {}).get("requests") or {}).pop(resource, None)
    return change


def _without_field(field: str) -> Change:
    def change(spec: dict[str, Any]) -> None:
        spec.pop(field, None)
    return change


def _no_ports(spec: dict[str, Any]) -> None:
    for c in spec["containers"]:
        c.pop("ports", None)


def _text(p: PodInfo, found: dict[str, Any]) -> str:
    """The answer in a few lines."""
    if p.slot >= 0:
        return f"{p.namespace}/{p.name} is placed"
    total = found["nodes"]
    if not total:
        return "there are no nodes; add one with: kubern node add"
    lines = []
    if found.get("message"):
        lines.append(f"none of {total} nodes was looked at: {found['message']}")
        lines += [f"  {hint}" for words, hint in HINTS if words in found["message"]][:1]
    elif found["fits"]:
        lines.append(f"{len(found['fits'])} of {total} nodes would do: {_names(found['fits'])}")
    else:
        lines.append(f"none of {total} nodes will do")
    for r in found["reasons"]:
        detail = f" ({r['detail']})" if r["detail"] else ""
        lines.append(f"  {len(r['nodes'])} {r['reason']}{detail}: {_names(r['nodes'])}   [{r['plugin']}]")
    if found["fixes"]:
        best = sorted(found["fixes"], key=lambda f: -f["nodes"])
        lines.append("nearest fix: " + "; or ".join(f"{f['change']} (→ {f['nodes']} node{'s' * (f['nodes'] > 1)})" for f in best[:3]))
    elif not found["fits"] and not found.get("message"):
        lines.append("no single change of the pod would help; add a node that fits it")
    return "\n".join(lines)


def _names(names: list[str]) -> str:
    more = len(names) - NODES_NAMED_MAX
    return ", ".join(names[:NODES_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
