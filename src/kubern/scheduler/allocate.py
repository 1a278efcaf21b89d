"""allocate: which of a node's devices serve a pod's claims. Pure; a search with backtracking that takes the first full solution.

Combinations of devices are tried within a request, orders across requests. KEP-4381 (structured parameters), 4816 (prioritized lists), 5018
(admin access), 5007 (binding conditions). Upstream: dynamic-resource-allocation/structured.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kubern.model.object import Object, meta, name
from kubern.scheduler.devices import (
    Amounts,
    BadClaim,
    Candidate,
    ClassOf,
    Inventory,
    OnNode,
    Pool,
    Used,
    alternatives,
    amounts,
    attribute,
    requests,
    selects,
    tainted,
    takes,
)

RESULTS_MAX = 32                                      # of a claim


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
                wish.fitting += [c for c in pool.devices if self._selected(c, wish, claim) and takes(c, sub, self.used) is not None]
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
        part = takes(c, wish.spec, self.used)
        if part is None or tainted(c, wish.spec) or not self._allowed(i, wish, c):
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
                        _subtract(available[u["counterSet"]], amounts(u.get("counters")), 1)
        for u in uses:
            _subtract(available[u["counterSet"]], amounts(u.get("counters")), sign)
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
            mine = attribute(c, k.get("matchAttribute") or k.get("distinctAttribute") or "")
            others = [attribute(g.device, k.get("matchAttribute") or k.get("distinctAttribute") or "") for g in self.given[i] if concerned(g.wish)]
            if mine is None or (any(o != mine for o in others) if k.get("matchAttribute") else mine in others):
                return False
        return True


def _subtract(a: Amounts, b: Amounts, sign: int) -> None:
    for k, v in b.items():
        a[k] = a.get(k, Fraction(0)) - sign * v


def _key(obj: Object) -> str:
    return f"{meta(obj).get('namespace')}/{meta(obj).get('name')}"


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
