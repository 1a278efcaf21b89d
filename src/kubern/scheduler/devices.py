"""Devices: which of a node's devices serve a pod's claims. Pure; a search with backtracking that takes the first full solution.

Pools and slices are gone through in the order of their names, pools with binding conditions last, so that drivers can say what is preferred.
KEP-4381 (structured parameters), 4815 (partitionable devices), 5055 (taints), 4816 (prioritized lists), 5018 (admin access), 5075 (consumable
capacity), 5007 (binding conditions). Upstream: dynamic-resource-allocation/structured.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from kubern.model.object import Object, meta, name
from kubern.model.quantity import parse, render

RESULTS_MAX = 32                                      # of a claim
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


def _amounts(counters: Mapping[str, Any] | None) -> Amounts:
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
                pool.counters[counter_set["name"]] = _amounts(counter_set.get("counters"))
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

@dataclass(slots=True, eq=False)
class Wish:
    """A request, or one of the alternatives of a request."""

    base: str                                         # the request's name
    sub: str                                          # the alternative's, "" if there are none
    spec: Mapping[str, Any]
    device_class: Object
    fitting: list[Candidate]                          # what selectors and taints leave, in order

    @property
    def label(self) -> str:
        return f"{self.base}/{self.sub}" if self.sub else self.base

    @property
    def all(self) -> bool:
        return self.spec.get("allocationMode") == "All"

    @property
    def admin(self) -> bool:
        return bool(self.spec.get("adminAccess"))

    @property
    def count(self) -> int:
        return len(self.fitting) if self.all else int(self.spec.get("count") or 1)


def tolerates(t: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if t.get("effect") and t["effect"] != taint.get("effect"):
        return False
    if t.get("key") and t["key"] != taint.get("key"):
        return False
    return t.get("operator") == "Exists" or (t.get("value") or "") == (taint.get("value") or "")


def _tainted(c: Candidate, wish: Mapping[str, Any]) -> bool:
    return any(taint.get("effect") in ("NoSchedule", "NoExecute") and not any(tolerates(t, taint) for t in wish.get("tolerations") or ())
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


def _takes(c: Candidate, wish: Mapping[str, Any], used: Used) -> dict[str, tuple[Fraction, str]] | None:
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


def _attribute(c: Candidate, full: str) -> tuple[str, Any] | None:
    attributes = c.spec.get("attributes") or {}
    domain, _, short = full.partition("/")
    value = attributes.get(full)
    if value is None and domain == c.id[0]:
        value = attributes.get(short)
    return None if value is None else next(iter(value.items()))


# --- the search ----------------------------------------------------------------------------------------------------------

@dataclass(slots=True, eq=False)
class Given:
    """A device given to a request."""

    wish: Wish
    device: Candidate
    part: dict[str, tuple[Fraction, str]]


class _Search:
    """One attempt for one node. `given[i]` is what claim i has so far."""

    def __init__(self, claims: Sequence[Object], pools: list[Pool], used: Used, class_of: ClassOf) -> None:
        self.claims, self.pools = claims, pools
        self.used = Used(set(used.whole), {k: dict(v) for k, v in used.parts.items()})
        self.counted = used                                       # counters of what was there before are worked out from this
        self.available: dict[tuple[str, str], dict[str, Amounts]] = {}
        self.wishes = [[self._wishes(claim, r, class_of) for r in requests(claim)] for claim in claims]
        self.given: list[list[Given]] = [[] for _ in claims]

    def _wishes(self, claim: Object, request: Mapping[str, Any], class_of: ClassOf) -> list[Wish]:
        out = []
        for sub in alternatives(request):
            class_name = sub.get("deviceClassName") or ""
            device_class = class_of(class_name)
            if device_class is None:
                raise BadClaim(f"claim {_key(claim)}, request {request.get('name')}: could not retrieve device class {class_name}: "
                               f'deviceclass.resource.k8s.io "{class_name}" not found')
            wish = Wish(request.get("name") or "", sub.get("name") or "" if request.get("firstAvailable") else "", sub, device_class, [])
            for pool in self.pools:
                if not (pool.complete and pool.valid):
                    if wish.all:
                        state = "being updated" if not pool.complete else "invalid"
                        raise BadClaim(f"claim {_key(claim)}, request {sub.get('name') or request.get('name')}: asks for all devices, but resource pool "
                                       f"{'/'.join(pool.id)} is currently {state}")
                    continue
                wish.fitting += [c for c in pool.devices if self._selected(c, wish, claim) and _takes(c, sub, self.used) is not None]
            out.append(wish)
        return out

    def _selected(self, c: Candidate, wish: Wish, claim: Object) -> bool:
        for where, selectors in ((f"class {name(wish.device_class)}", (wish.device_class.get("spec") or {}).get("selectors")),
                                 (f"claim {_key(claim)}", wish.spec.get("selectors"))):
            for i, s in enumerate(selectors or ()):
                if not selects((s.get("cel") or {}).get("expression") or "", c, f"{where}: selector #{i}"):
                    return False
        return True

    def run(self) -> bool:
        return self._claim(0)

    def _claim(self, i: int) -> bool:
        return i == len(self.claims) or self._request(i, 0)

    def _request(self, i: int, r: int) -> bool:
        if r == len(self.wishes[i]):
            return self._claim(i + 1)
        return any(self._fill(i, r, wish, wish.count, 0) for wish in self.wishes[i][r] if not (wish.all and not wish.fitting))

    def _fill(self, i: int, r: int, wish: Wish, count: int, start: int) -> bool:
        """Give `count` more devices, of those from `start` on: combinations, not orders."""
        if not count:
            return self._request(i, r + 1)
        if len(self.given[i]) + count > RESULTS_MAX:
            return False
        for n in range(start, start + 1 if wish.all else len(wish.fitting)):
            c = wish.fitting[n]
            given = self._take(i, wish, c)
            if given is None:
                continue
            if self._fill(i, r, wish, count - 1, n + 1):
                return True
            self._give_back(i, given)
        return False

    def _take(self, i: int, wish: Wish, c: Candidate) -> Given | None:
        if wish.admin:
            if not c.shared and any(g.device.id == c.id for g in self.given[i]):
                return None
        elif c.id in self.used.whole:
            return None
        part = _takes(c, wish.spec, self.used)
        if part is None or _tainted(c, wish.spec) or not self._allowed(i, wish, c):
            return None
        if not (c.shared and c.id in self.used.parts) and not self._draw(c):
            return None
        given = Given(wish, c, part if c.shared else {})
        if c.shared:
            self.used.share(c.id, {k: v for k, (v, _) in part.items()}, 1)
        elif not wish.admin:
            self.used.whole.add(c.id)
        self.given[i].append(given)
        return given

    def _give_back(self, i: int, given: Given) -> None:
        self.given[i].pop()
        c = given.device
        last = not any(g.device.id == c.id for gs in self.given for g in gs)
        if c.shared:
            self.used.share(c.id, {k: v for k, (v, _) in given.part.items()}, -1)
            if last and c.id not in self.counted.parts:
                del self.used.parts[c.id]
                self._draw(c, -1)
        else:
            if last and c.id not in self.counted.whole:
                self.used.whole.discard(c.id)
            self._draw(c, -1)

    def _draw(self, c: Candidate, sign: int = 1) -> bool:
        """Take what the device consumes from its pool's counters; False if they do not hold so much."""
        uses = c.spec.get("consumesCounters") or ()
        if not uses:
            return True
        available = self.available.get(c.pool.id)
        if available is None:
            available = self.available[c.pool.id] = {k: dict(v) for k, v in c.pool.counters.items()}
            for other in c.pool.everything:
                if other.id in self.counted.whole or other.id in self.counted.parts:
                    for u in other.spec.get("consumesCounters") or ():
                        _subtract(available[u["counterSet"]], _amounts(u.get("counters")), 1)
        for u in uses:
            _subtract(available[u["counterSet"]], _amounts(u.get("counters")), sign)
        if sign > 0 and any(v < 0 for counters in available.values() for v in counters.values()):
            self._draw(c, -1)
            return False
        return True

    def _allowed(self, i: int, wish: Wish, c: Candidate) -> bool:
        """matchAttribute and distinctAttribute of the claim over what it has so far."""
        for k in ((self.claims[i].get("spec") or {}).get("devices") or {}).get("constraints") or ():
            names = k.get("requests") or ()

            def concerned(w: Wish, names: Sequence[str] = names) -> bool:
                return not names or w.base in names or (bool(w.sub) and w.label in names)
            if not concerned(wish):
                continue
            mine = _attribute(c, k.get("matchAttribute") or k.get("distinctAttribute") or "")
            others = [_attribute(g.device, k.get("matchAttribute") or k.get("distinctAttribute") or "") for g in self.given[i] if concerned(g.wish)]
            if mine is None or (any(o != mine for o in others) if k.get("matchAttribute") else mine in others):
                return False
        return True


def _subtract(a: Amounts, b: Amounts, sign: int) -> None:
    for k, v in b.items():
        a[k] = a.get(k, Fraction(0)) - sign * v


def _key(obj: Object) -> str:
    return f"{meta(obj).get('namespace')}/{meta(obj).get('name')}"


def requests(claim: Object) -> list[Mapping[str, Any]]:
    return ((claim.get("spec") or {}).get("devices") or {}).get("requests") or []


def alternatives(request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What would satisfy a request, the preferred first."""
    return request.get("firstAvailable") or (request.get("exactly") or {},)


def allocate(claims: Sequence[Object], inventory: Inventory, used: Used, class_of: ClassOf, node: str, on_node: OnNode,
             share_id: Callable[[], str] = lambda: str(uuid.uuid4())) -> list[dict[str, Any]] | str:
    """An allocation for each claim on this node, or why there is none. Raises BadClaim."""
    pools = inventory.pools(node, on_node)
    if not pools and any(requests(c) for c in claims):
        for claim in claims:
            _Search([claim], [], used, class_of)                  # a class that is missing is told before devices that are
        return "cannot allocate all claims"
    search = _Search(claims, pools, used, class_of)
    if not search.run():
        return "cannot allocate all claims" if all(p.valid for p in pools) else "invalid resource pools were encountered"
    return [_result(claim, search.given[i], node, share_id) for i, claim in enumerate(claims)]


# --- the answer ----------------------------------------------------------------------------------------------------------

def _result(claim: Object, given: list[Given], node: str, share_id: Callable[[], str]) -> dict[str, Any]:
    """status.allocation, without its time."""
    results = []
    for g in given:
        driver, pool, device = g.device.id
        r: dict[str, Any] = {"request": g.wish.label, "driver": driver, "pool": pool, "device": device}
        if g.wish.admin:
            r["adminAccess"] = True
        for k, v in (("tolerations", g.wish.spec.get("tolerations")), ("bindingConditions", g.device.spec.get("bindingConditions")),
                     ("bindingFailureConditions", g.device.spec.get("bindingFailureConditions"))):
            if v:
                r[k] = v
        if g.device.shared:
            r["shareID"] = share_id()
            if g.part:
                r["consumedCapacity"] = {k: text for k, (_, text) in g.part.items()}
        results.append(r)
    out: dict[str, Any] = {"devices": {"results": results}}
    config = _config(claim, {g.wish.label: g.wish for g in given})
    if config:
        out["devices"]["config"] = config
    selector = _node_selector(given, node)
    if selector:
        out["nodeSelector"] = selector
    return out


def _config(claim: Object, wishes: Mapping[str, Wish]) -> list[dict[str, Any]]:
    """What classes and the claim want drivers to know; a class speaks once for all its requests."""
    by_class: dict[str, list[str]] = {}
    classes = {name(w.device_class): w.device_class for w in wishes.values()}
    for label, w in wishes.items():
        by_class.setdefault(name(w.device_class), []).append(label)
    out = [{"source": "FromClass", "requests": by_class[n], **x} for n, c in classes.items() for x in (c.get("spec") or {}).get("config") or ()]
    chosen = wishes.keys() | {w.base for w in wishes.values()} | {r.get("name") for r in requests(claim)}
    for x in ((claim.get("spec") or {}).get("devices") or {}).get("config") or ():
        if not x.get("requests") or chosen & set(x["requests"]):
            out.append({"source": "FromClaim", **x})
    return out


def _node_selector(given: list[Given], node: str) -> dict[str, Any] | None:
    """Where the allocation can be used; None: everywhere."""
    fields: list[Any] = []
    expressions: list[Any] = []
    for g in given:
        place = g.device.place
        if place.get("nodeName") or g.device.spec.get("bindsToNode"):
            return {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}
        for term in ((place.get("nodeSelector") or {}).get("nodeSelectorTerms") or ())[:1]:
            fields += [x for x in term.get("matchFields") or () if x not in fields]
            expressions += [x for x in term.get("matchExpressions") or () if x not in expressions]
    term = {**({"matchExpressions": expressions} if expressions else {}), **({"matchFields": fields} if fields else {})}
    return {"nodeSelectorTerms": [term]} if term else None


def preference(claims: Iterable[Object], allocations: Iterable[Mapping[str, Any]]) -> int:
    """How good the alternatives of prioritized lists are that were chosen: the higher the better."""
    total = 0
    for claim, allocation in zip(claims, allocations, strict=True):
        labels = {r["request"] for r in (allocation.get("devices") or {}).get("results") or ()}
        for request in requests(claim):
            total += sum(8 - i for i, sub in enumerate(request.get("firstAvailable") or ()) if f"{request['name']}/{sub['name']}" in labels)
    return total


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
