"""why: the scheduler's verdict on one pod, for people. Per node and plugin what is wrong, and what smallest change would help. Pure.

The answer comes from the same filters that decide (pick.feasible); the counterfactuals are the same filters over a changed pod, which the
arrays make cheap. Behind `kubern why pod/NAME` and GET /api/v1/namespaces/NS/pods/NAME/why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kubern.model.object import Object, clone
from kubern.scheduler.pick import Extra, feasible
from kubern.scheduler.plugins.node import tolerates
from kubern.scheduler.pod import PodInfo, pod_info
from kubern.scheduler.table import NodeTable

NODES_NAMED_MAX = 5
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
    """What the bare reason leaves out: by how much it is short, which taints."""
    if reason.startswith("Insufficient "):
        resource = reason.removeprefix("Insufficient ")
        row = t.resource_row(resource)
        free = (t.allocatable[row, :t.size] - t.used[row, :t.size])[mask]
        return f"short by {amount(resource, int(p.requests.get(resource, 0) - free.max()))} at least"
    if reason == "node(s) had untolerated taint(s)":
        return ", ".join(sorted(_untolerated(p, t, mask)))
    return ""


def _untolerated(p: PodInfo, t: NodeTable, mask: np.ndarray) -> set[str]:
    by_number = {number: taints for taints, number in t.taint_sets.items()}
    out = set()
    for number in np.unique(t.taints[:t.size][mask]):
        for key, value, effect in by_number[int(number)]:
            if effect in ("NoSchedule", "NoExecute") and not tolerates(p.spec.get("tolerations") or [], (key, value, effect)):
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
