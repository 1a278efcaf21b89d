"""Devices: what ResourceSlices offer to a node, what allocations have taken of it, and whether a device suits a request. Pure.

Pools and slices are gone through in the order of their names, pools with binding conditions last, so that drivers can say what is preferred.
KEP-4381 (structured parameters), 4815 (partitionable devices), 5055 (taints), 5075 (consumable capacity). Who gets what: allocate.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from kubern.model.object import Object, name
from kubern.model.quantity import parse, render
from kubern.model.taint import tolerated

Device = tuple[str, str, str]                         # (driver, pool, name)
Amounts = dict[str, Fraction]
OnNode = Callable[[Mapping[str, Any]], bool]          # whether a node selector holds for the node in question
ClassOf = Callable[[str], Object | None]


class BadClaim(ValueError):
    """A claim or class that no device can serve as it is written; str() says why."""


@dataclass(slots=True)
class Used:
    """What allocations have taken: whole devices, and parts of those that may be shared."""

    whole: set[Device] = field(default_factory=set)
    parts: dict[Device, Amounts] = field(default_factory=dict)

    def add(self, allocation: Mapping[str, Any] | None) -> None:
        for r in ((allocation or {}).get("devices") or {}).get("results") or ():
            device = (r.get("driver") or "", r.get("pool") or "", r.get("device") or "")
            if r.get("shareID"):
                self.share(device, {k: parse(v).amount for k, v in (r.get("consumedCapacity") or {}).items()}, 1)
            elif not r.get("adminAccess"):
                self.whole.add(device)

    def share(self, device: Device, amounts: Amounts, sign: int) -> None:
        part = self.parts.setdefault(device, {})
        for k, v in amounts.items():
            part[k] = part.get(k, Fraction(0)) + sign * v


@dataclass(slots=True, eq=False)
class Candidate:
    """A device that is offered, and the slice that offers it."""

    id: Device
    spec: Mapping[str, Any]
    slice: Mapping[str, Any]                          # the slice's spec
    pool: Pool

    @property
    def shared(self) -> bool:
        return bool(self.spec.get("allowMultipleAllocations"))

    @property
    def place(self) -> Mapping[str, Any]:
        """What says where it is: itself or its slice."""
        return self.spec if self.slice.get("perDeviceNodeSelection") else self.slice


@dataclass(slots=True, eq=False)
class Pool:
    id: tuple[str, str]                               # (driver, name)
    complete: bool = True
    valid: bool = True
    devices: list[Candidate] = field(default_factory=list)      # those a pod on the node can use
    everything: list[Candidate] = field(default_factory=list)   # those that draw on its counters, wherever they are
    counters: dict[str, Amounts] = field(default_factory=dict)  # shared counters by set


def amounts(counters: Mapping[str, Any] | None) -> Amounts:
    return {k: parse(c.get("value") or "0").amount for k, c in (counters or {}).items()}


def _here(place: Mapping[str, Any], node: str, on_node: OnNode) -> bool:
    if place.get("nodeName"):
        return bool(place["nodeName"] == node)
    return bool(place.get("allNodes")) or (bool(place.get("nodeSelector")) and on_node(place["nodeSelector"]))


class Inventory:
    """All slices, sorted once; `pools` gives what a node can use."""

    def __init__(self, slices: Iterable[Object]) -> None:
        newest: dict[tuple[str, str], int] = {}
        self._slices: dict[tuple[str, str], list[Object]] = {}
        for s in sorted(slices, key=name):
            pool = s["spec"].get("pool") or {}
            key, generation = (s["spec"].get("driver") or "", pool.get("name") or ""), int(pool.get("generation") or 0)
            if generation > newest.get(key, -1):
                newest[key], self._slices[key] = generation, []
            if generation == newest[key]:
                self._slices[key].append(s)
        self._of_node: dict[str, set[tuple[str, str]]] = {}
        self._anywhere: set[tuple[str, str]] = set()
        for key, members in self._slices.items():
            for s in members:
                if s["spec"].get("nodeName"):
                    self._of_node.setdefault(s["spec"]["nodeName"], set()).add(key)
                elif not s["spec"].get("sharedCounters"):
                    self._anywhere.add(key)

    def pools(self, node: str, on_node: OnNode) -> list[Pool]:
        """In the order they are tried."""
        found = [self._pool(key, node, on_node) for key in sorted(self._anywhere | self._of_node.get(node, set()))]
        return sorted((p for p in found if p.devices or not p.valid or not p.complete),
                      key=lambda p: any("bindingConditions" in c.spec for c in p.devices))

    def _pool(self, key: tuple[str, str], node: str, on_node: OnNode) -> Pool:
        members, pool = self._slices[key], Pool(key)
        for s in members:
            spec = s["spec"]
            for counter_set in spec.get("sharedCounters") or ():
                pool.valid &= counter_set["name"] not in pool.counters
                pool.counters[counter_set["name"]] = amounts(counter_set.get("counters"))
            for d in spec.get("devices") or ():
                c = Candidate((*key, d.get("name") or ""), d, spec, pool)
                pool.everything.append(c)
                if _here(c.place, node, on_node):
                    pool.devices.append(c)
        names = Counter(c.id for c in pool.devices)
        pool.valid &= all(n == 1 for n in names.values())
        pool.valid &= all(u.get("counters", {}).keys() <= pool.counters.get(u.get("counterSet") or "", {"": Fraction(0)}).keys()
                          for c in pool.everything for u in c.spec.get("consumesCounters") or ())
        if pool.devices:
            pool.complete = len(members) == int((members[0]["spec"].get("pool") or {}).get("resourceSliceCount") or 1)
        return pool


# --- one request ---------------------------------------------------------------------------------------------------------

def tainted(c: Candidate, wish: Mapping[str, Any]) -> bool:
    return any(taint.get("effect") in ("NoSchedule", "NoExecute") and not tolerated(taint, wish.get("tolerations"))
               for taint in c.spec.get("taints") or ())


def consumed(capacity: Mapping[str, Any], asked: str | None) -> tuple[Fraction, str]:
    """What a request takes of one capacity of a shared device, after rounding by its policy: (amount, text)."""
    policy = capacity.get("requestPolicy") or {}
    if asked is None:
        asked = policy.get("default") or capacity.get("value") or "0"
        return parse(asked).amount, asked
    amount = parse(asked).amount
    if (span := policy.get("validRange")) and span.get("min"):
        low = parse(span["min"]).amount
        if amount < low:
            return low, span["min"]
        if span.get("step"):
            step = parse(span["step"]).amount
            up = low + step * -((low - amount) // step)
            return up, render(up, "BinarySI")
        return amount, asked
    for v in policy.get("validValues") or ():
        if amount <= parse(v).amount:
            return parse(v).amount, v
    return amount, asked


def _refused(amount: Fraction, policy: Mapping[str, Any]) -> bool:
    """Whether a capacity's policy forbids this amount."""
    if policy.get("default") and amount == parse(policy["default"]).amount:
        return False
    if span := policy.get("validRange"):
        if span.get("max") and amount > parse(span["max"]).amount:
            return True
        return bool(span.get("step")) and (amount - parse(span.get("min") or "0").amount) % parse(span["step"]).amount != 0
    values = policy.get("validValues") or ()
    return bool(values) and all(amount != parse(v).amount for v in values)


def takes(c: Candidate, wish: Mapping[str, Any], used: Used) -> dict[str, tuple[Fraction, str]] | None:
    """What the request takes of each capacity; None if the device has not that much left, or not that kind."""
    asked, capacity = (wish.get("capacity") or {}).get("requests") or {}, c.spec.get("capacity") or {}
    if not asked.keys() <= capacity.keys():
        return None
    out, gone = {}, used.parts.get(c.id, {})
    for k, v in capacity.items():
        amount, text = consumed(v, asked.get(k))
        if _refused(amount, v.get("requestPolicy") or {}) or gone.get(k, 0) + amount > parse(v.get("value") or "0").amount:
            return None
        out[k] = amount, text
    return out


def attribute(c: Candidate, full: str) -> tuple[str, Any] | None:
    attributes = c.spec.get("attributes") or {}
    domain, _, short = full.partition("/")
    value = attributes.get(full)
    if value is None and domain == c.id[0]:
        value = attributes.get(short)
    return None if value is None else next(iter(value.items()))


def requests(claim: Object) -> list[Mapping[str, Any]]:
    return ((claim.get("spec") or {}).get("devices") or {}).get("requests") or []


def alternatives(request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What would satisfy a request, the preferred first."""
    return request.get("firstAvailable") or (request.get("exactly") or {},)


# --- selectors -----------------------------------------------------------------------------------------------------------

class _Domains(dict[str, dict[str, Any]]):
    """Attributes or capacities by domain; one that is not there is empty."""

    def __missing__(self, key: str) -> dict[str, Any]:
        return {}

    def __contains__(self, key: object) -> bool:
        return True

    def get(self, key: str, default: Any = None) -> Any:
        return self[key]


def selects(expression: str, c: Candidate, where: str = "") -> bool:
    """A device selector over one device. Raises BadClaim when it cannot be told."""
    from kubern.model.cel import CelError, CelProblem
    from kubern.model.cel.devices import compile_selector

    try:
        return compile_selector(expression).run({"device": _variable(c)}) is True
    except CelProblem as e:
        raise BadClaim(f"{where}: CEL compile error: {e}") from None
    except CelError as e:
        raise BadClaim(f"{where}: CEL runtime error: {e}") from None


def _by_domain(c: Candidate, values: Mapping[str, Any], read: Callable[[Any], Any]) -> _Domains:
    out = _Domains()
    for full, value in values.items():
        domain, _, short = full.rpartition("/")
        dict.setdefault(out, domain or c.id[0], {})[short] = read(value)
    return out


def _variable(c: Candidate) -> dict[str, Any]:
    from kubern.model.cel.kubernetes import _quantity, _semver

    def attribute(value: Mapping[str, Any]) -> Any:
        kind, one = next(iter(value.items()))
        return _semver(one) if kind == "version" else one
    return {"driver": c.id[0], "allowMultipleAllocations": c.shared, "attributes": _by_domain(c, c.spec.get("attributes") or {}, attribute),
            "capacity": _by_domain(c, c.spec.get("capacity") or {}, lambda v: _quantity(v.get("value") or "0"))}


def conditions_of(claim: Object) -> Iterator[tuple[Mapping[str, Any], Mapping[str, str]]]:
    """(result, {condition type: status}) of allocated devices that must be made ready before a pod is bound."""
    status = claim.get("status") or {}
    for r in ((status.get("allocation") or {}).get("devices") or {}).get("results") or ():
        if not r.get("bindingConditions"):
            continue
        device: Mapping[str, Any] = next((d for d in status.get("devices") or ()
                                          if all(d.get(k) == r.get(k) for k in ("driver", "pool", "device", "shareID"))), {})
        yield r, {c["type"]: c["status"] for c in device.get("conditions") or ()}
