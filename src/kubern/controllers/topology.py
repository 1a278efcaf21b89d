"""Hints for Services that ask for `topology-mode: Auto`: endpoints are shared out among zones in proportion to the zones' CPUs.

Every zone gets so many endpoints that none is loaded more than a fifth above its share; where that is impossible, nobody gets hints.
Upstream: staging endpointslice/topologycache. Left out: the event when the annotation is taken away (its hints go all the same).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kubern.model.object import Object, condition, labels, notes
from kubern.model.quantity import milli

ANNOTATIONS = ("service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode")
NOT_COUNTED = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
ZONE = "topology.kubernetes.io/zone"
OVERLOAD_MAX = 0.2

NO_NODES = "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
NO_ZONE = "One or more endpoints do not have a zone specified"
FEW_ENDPOINTS = "Insufficient number of endpoints"
OVERLOADED = "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold"

Slices = list[Object]


def enabled(service: Object) -> bool:
    have = notes(service)
    return next((have[a] for a in ANNOTATIONS if a in have), "") in ("Auto", "auto")


def weight(node: Object) -> tuple[str, int] | None:
    """Zone and CPU (milli) a node counts with; None: it does not count."""
    have = labels(node)
    if any(k in have for k in NOT_COUNTED) or (condition(node, "Ready") or {}).get("status") != "True":
        return None
    cpu = ((node.get("status") or {}).get("allocatable") or {}).get("cpu")
    return have.get(ZONE) or "", milli(str(cpu)) if cpu else 0


def shares(nodes: Iterable[Object]) -> dict[str, float]:
    """Each zone's part of the CPUs; {} if there are not two zones or a node does not tell."""
    cpus: dict[str, int] = {}
    for node in nodes:
        if (found := weight(node)) is None:
            continue
        zone, cpu = found
        if not zone or not cpu:
            return {}
        cpus[zone] = cpus.get(zone, 0) + cpu
    total = sum(cpus.values())
    return {z: c / total for z, c in sorted(cpus.items())} if len(cpus) > 1 else {}


@dataclass(frozen=True, slots=True)
class _Range:
    least: int
    wanted: float
    most: int


def _ranges(parts: dict[str, float], total: int) -> dict[str, _Range] | str:
    """How many endpoints each zone may have, or why that cannot be."""
    if not parts:
        return NO_NODES
    numbers = f"({total} endpoints, {len(parts)} zones)"
    if len(parts) > total:
        return f"{FEW_ENDPOINTS} {numbers}"
    least = {z: math.ceil(part * total * (1 / (1 + OVERLOAD_MAX))) for z, part in parts.items()}
    spare = total - sum(least.values())
    if spare < 0:
        return f"{OVERLOADED} {numbers}"
    return {z: _Range(least[z], max(part * total, float(least[z])), least[z] + spare) for z, part in parts.items()}


def _ready(s: Object) -> list[dict[str, Any]]:
    return [e for e in s.get("endpoints") or () if e["conditions"].get("ready")]


def _fine(s: Object, have: Counter[str], ranges: dict[str, _Range]) -> Counter[str] | None:
    """Endpoints by the zones a slice gives them to now; None if that has to change."""
    out: Counter[str] = Counter()
    for e in _ready(s):
        zones = [z["name"] for z in (e.get("hints") or {}).get("forZones") or ()]
        if not zones or any(z not in ranges for z in zones):
            return None
        out.update(zones)
    return None if any(n + have[z] > ranges[z].most for z, n in out.items()) else out


def _moves(ranges: dict[str, _Range], have: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """How many endpoints zones give away and take."""
    gives = {z: have[z] - r.wanted for z, r in ranges.items() if have[z] > r.wanted}
    takes = {z: r.wanted - have[z] for z, r in ranges.items() if have[z] < r.wanted}
    giving: Counter[str] = Counter()
    taking: Counter[str] = Counter()
    while gives and takes:
        g, t = max(gives, key=lambda z: gives[z]), max(takes, key=lambda z: takes[z])
        if (gives[g] < 1 and takes[t] < 1) or gives[g] < 0.5 or takes[t] < 0.5:
            break
        giving[g] += 1
        taking[t] += 1
        gives[g] -= 1
        takes[t] -= 1
    return giving, taking


def without(s: Object) -> Object:
    return {**s, "endpoints": [{k: v for k, v in e.items() if k != "hints"} for e in s.get("endpoints") or ()] or None}


def hint(create: Slices, update: Slices, unchanged: Slices, parts: dict[str, float]) -> tuple[Slices, Slices, str]:
    """(slices to create, slices to update, "" or why there are no hints)."""
    def none(why: str) -> tuple[Slices, Slices, str]:
        had = [s for s in unchanged if any("hints" in e for e in s.get("endpoints") or ())]
        return [without(s) for s in create], [without(s) for s in (*update, *had)], why
    ranges = _ranges(parts, sum(len(_ready(s)) for s in (*create, *update, *unchanged)))
    if isinstance(ranges, str):
        return none(ranges)
    have: Counter[str] = Counter()
    wrong = []
    for s in unchanged:
        fine = _fine(s, have, ranges)
        if fine is None:
            wrong.append(s)
        else:
            have += fine
    if not all(e.get("zone") for s in (*create, *update, *wrong) for e in _ready(s)):
        return none(NO_ZONE)
    update = [*update, *wrong]
    for s in (*create, *update):
        have.update(e["zone"] for e in _ready(s))
    giving, taking = _moves(ranges, have)

    def hinted(s: Object) -> Object:
        endpoints = []
        for e in without(s)["endpoints"] or ():
            if e["conditions"].get("ready"):
                zone = e["zone"]
                if giving[zone] > 0 and (to := next((z for z in taking if taking[z] > 0), None)) is not None:
                    giving[zone] -= 1
                    taking[to] -= 1
                    zone = to
                e["hints"] = {"forZones": [{"name": zone}]}
            endpoints.append(e)
        return {**s, "endpoints": endpoints or None}
    return [hinted(s) for s in create], [hinted(s) for s in update], ""
