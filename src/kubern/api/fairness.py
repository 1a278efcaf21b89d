"""Fairness: API Priority and Fairness. Which flow schema and priority level a request belongs to, and when it may run.

A level has a number of seats, its share of max_in_flight. While there is a free one a request just takes it: nothing else happens. Then it may
borrow from levels that lend and do not use theirs; then it waits in one of the level's queues, chosen by shuffle sharding of its flow, so that a
flow that asks too much fills few queues and leaves the others free; a freed seat goes to the queue that has been served least. What finds its
queues full, or waits too long, is a 429. A watch has its seat until it is set up; connections that last (exec, logs, proxies) take none.
Simpler than upstream: all requests count as equally long, only large lists take several seats, and seats are lent at the moment
they are asked for. Upstream: apiserver util/flowcontrol; KEP-1040.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import deque
from typing import Any, NamedTuple

from kubern.api.authz.attributes import Attributes, path_matches
from kubern.api.cache import Cache, Change
from kubern.api.metrics import Histogram
from kubern.api.refusals import Refusals
from kubern.model.object import Object
from kubern.model.request import Request, Response, User

MEMO_MAX = 20_000
WAIT_MAX_S = 15.0                     # a quarter of the time a request may take
WIDTH_MAX = 10                        # seats a list may take …
WIDTH_SHARE_MAX = 0.15                # … and this share of its level's at most
LIST_ITEMS_A_SEAT = 1_000
Header = tuple[str, str]


WAITS = Histogram("apiserver_flowcontrol_request_wait_duration_seconds", "[BETA] Length of time a request spent waiting in its queue",
                  ("execute", "flow_schema", "priority_level"), (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30))


class _Waiting(NamedTuple):
    done: asyncio.Future[None]
    width: int
    flow: str
    schema: str
    since_s: float


class _Queue:
    __slots__ = ("served", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self.served = 0.0             # seats given so far, on the level's common scale


class Level:
    """One priority level: its seats, and who waits for one. It outlives changes of its configuration."""

    def __init__(self, name: str, fairness: Fairness) -> None:
        self.name, self._fairness = name, fairness
        self.exempt = False
        self.nominal = self.lendable = 0
        self.borrow_max = math.inf
        self.queues = self.hand = self.queue_length = 0       # 0 queues: refuse at once
        self.executing = self.running = self.waiting = 0      # seats, requests, requests
        self.dispatched = self.timed_out = self.cancelled = 0
        self.rejected: dict[tuple[str, str], int] = {}        # (flow schema, reason)
        self.refusals = Refusals()
        self.active: dict[int, _Queue] = {}                  # queues in which somebody waits
        self._served = 0.0

    def configure(self, spec: Object, seats: int, shares: int) -> None:
        limited = spec.get("limited") or {}
        own = spec.get("exempt") if spec.get("type") == "Exempt" else limited
        own = own or {}
        self.exempt = spec.get("type") == "Exempt"
        self.nominal = math.ceil(seats * (own.get("nominalConcurrencyShares") or 0) / shares) if shares else seats
        self.lendable = round(self.nominal * (own.get("lendablePercent") or 0) / 100)
        borrowing = own.get("borrowingLimitPercent")
        self.borrow_max = math.inf if borrowing is None else round(self.nominal * borrowing / 100)
        response = limited.get("limitResponse") or {}
        queuing = response.get("queuing") or {}
        queues = response.get("type") == "Queue"
        self.queues = int(queuing.get("queues") or 64) if queues else 0
        self.hand = min(int(queuing.get("handSize") or 8), self.queues)
        self.queue_length = int(queuing.get("queueLengthLimit") or 50) if queues else 0
        self.pump()

    def take(self, width: int) -> bool:
        """A seat without waiting, if one may be had."""
        if not self.exempt and (self.waiting or not self._room(width)):
            return False
        self.executing += width
        self.running += 1
        self.dispatched += 1
        return True

    def _room(self, width: int) -> bool:
        after = self.executing + width
        if after <= self.nominal or not self.executing:       # a request wider than its level runs alone
            return True
        return after - self.nominal <= self.borrow_max and self._fairness.lends(self, after)

    def release(self, width: int) -> None:
        self.executing -= width
        self.running -= 1
        if self._fairness.waiting:
            self._fairness.pump(self)

    async def wait(self, schema: str, flow: str, width: int) -> str:
        """Waits for a seat in a queue; "" once it is had, else why not."""
        if not self.queues:
            return self._reject(schema, "concurrency-limit")
        queue = self._choose(flow)
        if len(queue.waiting) >= self.queue_length:
            return self._reject(schema, "queue-full")
        mine = _Waiting(asyncio.get_running_loop().create_future(), width, flow, schema, time.time())
        queue.waiting.append(mine)
        self.waiting += 1
        self._fairness.waiting += 1
        try:
            async with asyncio.timeout(WAIT_MAX_S):
                await mine.done
        except BaseException as e:
            if mine.done.done() and not mine.done.cancelled():
                self.release(width)                            # it was given the seat as it went
            else:
                self._leave(mine)
            if isinstance(e, TimeoutError):
                self.timed_out += 1
                return self._reject(schema, "time-out")
            self.cancelled += 1
            raise
        return ""

    def _reject(self, schema: str, reason: str) -> str:
        key = schema, reason
        self.rejected[key] = self.rejected.get(key, 0) + 1
        return reason

    def _choose(self, flow: str) -> _Queue:
        """The shortest queue of the flow's hand."""
        best, least = 0, math.inf
        for i in deal(f"{self.name}/{flow}", self.queues, self.hand):
            q = self.active.get(i)
            n = len(q.waiting) if q is not None else 0
            if n < least:
                best, least = i, n
        found = self.active.get(best)
        if found is None:
            found = self.active[best] = _Queue()
            found.served = self._served                        # who did not ask has saved nothing up
        return found

    def _leave(self, mine: _Waiting) -> None:
        for i, q in self.active.items():
            if mine in q.waiting:
                q.waiting.remove(mine)
                if not q.waiting:
                    del self.active[i]
                self.waiting -= 1
                self._fairness.waiting -= 1
                return

    def pump(self) -> None:
        """Gives free seats to those who wait, always to the queue served least."""
        while self.waiting:
            i, queue = min(self.active.items(), key=lambda e: e[1].served)
            first = queue.waiting[0]
            if not first.done.done() and not self.exempt and not self._room(first.width):
                return
            queue.waiting.popleft()
            self._served = queue.served
            queue.served += first.width
            self.waiting -= 1
            self._fairness.waiting -= 1
            if not queue.waiting:
                del self.active[i]
            if not first.done.done():
                self.executing += first.width
                self.running += 1
                self.dispatched += 1
                first.done.set_result(None)


def deal(flow: str, queues: int, hand: int) -> list[int]:
    """`hand` different queues out of so many, the same for the same flow: shuffle sharding."""
    value = int.from_bytes(hashlib.blake2b(flow.encode(), digest_size=16).digest(), "big")
    out: list[int] = []
    for i in range(min(hand, queues)):
        value, card = divmod(value, queues - i)
        for taken in sorted(out):
            card += card >= taken
        out.append(card)
    return out


class Schema:
    """What requests of one flow schema do on its level."""

    __slots__ = ("dispatched", "executing", "level", "name", "running", "waiting")

    def __init__(self, name: str, level: str) -> None:
        self.name, self.level = name, level
        self.dispatched = self.running = self.executing = self.waiting = 0      # requests, requests, seats, requests


class Flow:
    """What is known of requests of one kind: their schema's headers, their level, and what tells its flows apart."""

    __slots__ = ("counts", "headers", "key", "level", "schema")

    def __init__(self, headers: tuple[Header, ...], schema: str, level: Level | None, key: str, counts: Schema) -> None:
        self.headers, self.schema, self.level, self.key, self.counts = headers, schema, level, key, counts

    async def enter(self, width: int) -> bool:
        """A seat, now or after waiting for it; False where there is none to be had."""
        level, counts = self.level, self.counts
        assert level is not None
        if not level.take(width):
            counts.waiting += 1
            started = time.perf_counter()
            why = "cancel"
            try:
                why = await level.wait(self.schema, self.key, width)
            finally:
                counts.waiting -= 1
                WAITS.observe((str(not why).lower(), self.schema, level.name), time.perf_counter() - started)
            if why:
                return False
        counts.dispatched += 1
        counts.running += 1
        counts.executing += width
        return True

    def leave(self, width: int) -> None:
        assert self.level is not None
        self.counts.running -= 1
        self.counts.executing -= width
        self.level.release(width)


NO_FLOW = Flow((), "", None, "", Schema("", ""))


class Fairness:
    """Flow schemas in order, levels with their seats, and what was found for whom."""

    def __init__(self, cache: Cache, seats: int = 600) -> None:
        self.seats = seats
        self.waiting = 0                                       # requests in queues, of all levels
        self._schemas = cache.collection("flowcontrol.apiserver.k8s.io", "flowschemas")
        self._configurations = cache.collection("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations")
        self._order: list[Object] | None = None
        self.levels: dict[str, Level] = {}
        self.counts: dict[tuple[str, str], Schema] = {}         # by (schema, level)
        self._memo: dict[Any, Flow] = {}
        for collection in (self._schemas, self._configurations):
            collection.listeners.insert(0, self._changed)

    def _changed(self, changes: list[Change]) -> None:
        self._order = None
        self._memo.clear()
        if self.waiting:
            self._configure()

    def flow(self, user: User, a: Attributes) -> Flow:
        """The flow of a request; one without a level while there are no flow schemas."""
        key = (user.name, user.groups, a.verb, a.group, a.resource, a.subresource, a.namespace) if a.is_resource else (
            user.name, user.groups, a.verb, a.path)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= MEMO_MAX:
                self._memo.clear()
            found = self._memo[key] = self._find(user, a)
        return found

    def headers(self, user: User, a: Attributes) -> tuple[Header, ...]:
        """The two headers, none while there are no flow schemas."""
        return self.flow(user, a).headers

    def _find(self, user: User, a: Attributes) -> Flow:
        if self._order is None:
            self._configure()
            schemas = [i.peek() for i in self._schemas.range()]
            self._order = sorted(schemas, key=lambda s: ((s.get("spec") or {}).get("matchingPrecedence") or 1000, s["metadata"]["name"]))
        for schema in self._order:
            spec = schema.get("spec") or {}
            item = self._configurations.get((spec.get("priorityLevelConfiguration") or {}).get("name") or "")
            if item is not None and any(_matches(rule, user, a) for rule in spec.get("rules") or ()):
                uid = item.peek()["metadata"]["uid"]
                name = schema["metadata"]["name"]
                method = (spec.get("distinguisherMethod") or {}).get("type")
                which = user.name if method == "ByUser" else a.namespace if method == "ByNamespace" else ""
                return Flow((("X-Kubernetes-Pf-Flowschema-Uid", schema["metadata"]["uid"]), ("X-Kubernetes-Pf-Prioritylevel-Uid", uid)), name,
                            self.levels[item.name], f"{name}/{which}", self.counts.setdefault((name, item.name), Schema(name, item.name)))
        return NO_FLOW

    def _configure(self) -> None:
        """Levels as their objects have them now; one that is gone goes when its last request has."""
        specs = {i.name: i.peek().get("spec") or {} for i in self._configurations.range()}
        shares = sum(((s.get("limited") or s.get("exempt") or {}).get("nominalConcurrencyShares") or 0) for s in specs.values())
        for name in [n for n, level in self.levels.items() if n not in specs and not level.running and not level.waiting]:
            del self.levels[name]
        for name, spec in specs.items():
            level = self.levels.get(name)
            if level is None:
                level = self.levels[name] = Level(name, self)
            level.configure(spec, self.seats, shares)

    def lends(self, borrower: Level, after: int) -> bool:
        """Whether others leave enough of what they lend for all that is borrowed, if this one had so many seats."""
        free, borrowed = 0, after - borrower.nominal
        for level in self.levels.values():
            if level is not borrower and not level.exempt:
                free += min(level.lendable, max(level.nominal - level.executing, 0))
                borrowed += max(level.executing - level.nominal, 0)
        return borrowed <= free

    def pump(self, first: Level) -> None:
        """A seat of `first` is free: for its own first, then for those who would borrow it."""
        first.pump()
        if self.waiting:
            for level in self.levels.values():
                if level.waiting:
                    level.pump()

    def width(self, level: Level, a: Attributes, request: Request, items: int) -> int:
        """Seats that a request takes: several where it reads many objects at once, never a big share of its level."""
        if a.verb not in ("list", "watch") or a.name or items < LIST_ITEMS_A_SEAT:
            return 1
        if a.verb == "watch" and request.param("sendInitialEvents") != "true" and request.param("resourceVersion") not in ("", "0"):
            return 1
        limit = request.param("limit")
        read = min(items, int(limit)) if a.verb == "list" and limit.isascii() and limit.isdigit() and limit != "0" else items
        return min(1 + read // LIST_ITEMS_A_SEAT, WIDTH_MAX, max(1, math.ceil(level.nominal * WIDTH_SHARE_MAX)))


def too_many(level: Level | None = None) -> Response:
    """What upstream answers: text, and when to come again."""
    after_s = level.refusals.add(time.time()) if level is not None else 1
    return Response(429, [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff"), ("Retry-After", str(after_s))],
                    b"Too many requests, please try again later.\n")


def _matches(rule: Object, user: User, a: Attributes) -> bool:
    if not any(_subject(s, user) for s in rule.get("subjects") or ()):
        return False
    if a.is_resource:
        return any(_resource(r, a) for r in rule.get("resourceRules") or ())
    return any(_path(r, a) for r in rule.get("nonResourceRules") or ())


def _subject(subject: Object, user: User) -> bool:
    kind = subject.get("kind")
    if kind == "User":
        name = (subject.get("user") or {}).get("name")
        return name == "*" or name == user.name
    if kind == "Group":
        name = (subject.get("group") or {}).get("name")
        return name == "*" or name in user.groups
    account = subject.get("serviceAccount") or {}
    prefix = f"system:serviceaccount:{account.get('namespace')}:"
    if account.get("name") == "*":
        return user.name.startswith(prefix)
    return user.name == prefix + (account.get("name") or "")


def _in(value: str, allowed: list[str] | None) -> bool:
    return allowed is not None and ("*" in allowed or value in allowed)


def _resource(rule: Object, a: Attributes) -> bool:
    resource = f"{a.resource}/{a.subresource}" if a.subresource else a.resource
    if not (_in(a.verb, rule.get("verbs")) and _in(a.group, rule.get("apiGroups")) and _in(resource, rule.get("resources"))):
        return False
    return _in(a.namespace, rule.get("namespaces")) if a.namespace else bool(rule.get("clusterScope"))


def _path(rule: Object, a: Attributes) -> bool:
    return _in(a.verb, rule.get("verbs")) and any(path_matches(p, a.path) for p in rule.get("nonResourceURLs") or ())
