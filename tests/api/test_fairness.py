"""Priority and fairness: who gets a seat, who waits, who is sent away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from kubern.api import fairness_report
from kubern.api.authz.attributes import Attributes
from kubern.api.cache import Cache, value_of
from kubern.api.fairness import Fairness, Level, deal
from kubern.api.handle import MASTERS, Server
from kubern.api.refusals import Refusals
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, Response, User
from kubern.store.memory import MemoryStore
from kubern.store.protocol import Entry

BOB, EVE = (User(n, ("system:authenticated",)) for n in ("bob", "eve"))
QUEUING = {"type": "Queue", "queuing": {"queues": 16, "handSize": 4, "queueLengthLimit": 3}}


def fairness(seats: int, *levels: tuple[str, dict[str, Any]], schemas: tuple[dict[str, Any], ...] = ()) -> Fairness:
    cache = Cache()
    objects = [("prioritylevelconfigurations", name, {"type": "Exempt"} if "shares" not in spec else {"type": "Limited", "limited": {
        "nominalConcurrencyShares": spec["shares"], "limitResponse": spec.get("response", QUEUING),
        **{k: v for k, v in spec.items() if k.endswith("Percent")}}}) for name, spec in levels]
    objects += [("flowschemas", s["name"], s) for s in schemas]
    prefix = "/registry/flowcontrol.apiserver.k8s.io"
    cache.load([Entry(f"{prefix}/{plural}/{name}", value_of({"metadata": {"name": name, "uid": f"{name}-uid"}, "spec": spec}), i, i)
                for i, (plural, name, spec) in enumerate(objects, 1)], len(objects))
    out = Fairness(cache, seats)
    out.flow(BOB, Attributes(BOB, "get", path="/x", is_resource=False))     # reads the configuration
    return out


def schema(name: str, level: str, precedence: int, *subjects: dict[str, Any], by: str = "") -> dict[str, Any]:
    rules = [{"subjects": list(subjects) or [{"kind": "Group", "group": {"name": "*"}}],
              "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": True, "namespaces": ["*"]}]}]
    return {"name": name, "matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": level}, "rules": rules,
            **({"distinguisherMethod": {"type": by}} if by else {})}


def test_seats_are_shares() -> None:
    f = fairness(100, ("exempt", {}), ("a", {"shares": 30}), ("b", {"shares": 10, "lendablePercent": 50, "borrowingLimitPercent": 20}))
    a, b = f.levels["a"], f.levels["b"]
    assert (a.nominal, b.nominal, b.lendable, b.borrow_max, f.levels["exempt"].exempt) == (75, 25, 12, 5, True)


def test_the_first_schema_by_precedence_decides() -> None:
    f = fairness(100, ("a", {"shares": 1}), ("b", {"shares": 1}), schemas=(
        schema("late", "a", 900, by="ByUser"), schema("bobs", "b", 100, {"kind": "User", "user": {"name": "bob"}}), schema("gone", "missing", 1)))
    bob, eve = (f.flow(u, Attributes(u, "get", "", "v1", "pods", namespace="x")) for u in (BOB, EVE))
    assert (bob.schema, bob.level, bob.key) == ("bobs", f.levels["b"], "bobs/") and (eve.schema, eve.key) == ("late", "late/eve")
    assert dict(eve.headers) == {"X-Kubernetes-Pf-Flowschema-Uid": "late-uid", "X-Kubernetes-Pf-Prioritylevel-Uid": "a-uid"}
    assert f.flow(BOB, Attributes(BOB, "get", path="/version", is_resource=False)).level is None


def test_hands_are_different_and_stay() -> None:
    hands = [deal(f"flow {i}", 64, 6) for i in range(200)]
    assert all(len(set(h)) == 6 and max(h) < 64 for h in hands) and deal("flow 1", 64, 6) == hands[1]
    assert len({tuple(sorted(h)) for h in hands}) == 200 and len(Counter(c for h in hands for c in h)) == 64
    assert sorted(deal("x", 3, 8)) == [0, 1, 2]


async def take(level: Level, flow: str, order: list[str], width: int = 1) -> str:
    if not level.take(width):
        why = await level.wait("schema", flow, width)
        if why:
            return why
    order.append(flow)
    await asyncio.sleep(0.001)
    level.release(width)
    return ""


async def test_a_quiet_flow_does_not_wait_behind_a_loud_one() -> None:
    level = fairness(1, ("a", {"shares": 1, "response": {"type": "Queue", "queuing": {"queues": 64, "handSize": 4, "queueLengthLimit": 100}}})).levels["a"]
    order: list[str] = []
    loud = [asyncio.create_task(take(level, "loud", order)) for _ in range(100)]
    await asyncio.sleep(0)
    quiet = [asyncio.create_task(take(level, "quiet", order)) for _ in range(3)]
    await asyncio.gather(*loud, *quiet)
    assert order.index("quiet") < 15 and max(i for i, f in enumerate(order) if f == "quiet") < 40
    assert (level.executing, level.waiting, level.running, level.active, level.dispatched) == (0, 0, 0, {}, 103)


async def test_full_queues_refuse_and_other_flows_have_room() -> None:
    f = fairness(2, ("a", {"shares": 1}), ("b", {"shares": 1, "response": {"type": "Reject"}}))
    level, order = f.levels["a"], []
    assert level.take(1)
    tasks = [asyncio.create_task(take(level, "loud", order)) for _ in range(30)]
    await asyncio.sleep(0)
    other = asyncio.create_task(take(level, "other", order))
    await asyncio.sleep(0)
    level.release(1)
    done = Counter(await asyncio.gather(*tasks))
    assert done == {"": 12, "queue-full": 18} and await other == "" and level.rejected == {("schema", "queue-full"): 18}
    b = f.levels["b"]
    assert b.take(1) and not b.take(1) and await b.wait("schema", "x", 1) == "concurrency-limit"


async def test_waiting_too_long_and_going_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.api.fairness.WAIT_MAX_S", 0.02)
    f = fairness(1, ("a", {"shares": 1}))
    level = f.levels["a"]
    assert level.take(1) and await level.wait("schema", "x", 1) == "time-out"
    gone = asyncio.create_task(level.wait("schema", "x", 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    late = asyncio.create_task(level.wait("schema", "x", 1))
    await asyncio.sleep(0)
    level.release(1)                    # gives the seat to one who leaves at that moment
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert (level.waiting, level.executing, f.waiting, level.active) == (0, 0, 0, {}) and (level.timed_out, level.cancelled) == (1, 2)


async def test_seats_are_lent_and_come_back() -> None:
    f = fairness(20, ("a", {"shares": 1}), ("b", {"shares": 1, "lendablePercent": 50}), ("c", {"shares": 0, "borrowingLimitPercent": 100}))
    a, b = f.levels["a"], f.levels["b"]
    assert sum(a.take(1) for _ in range(30)) == 15          # its 10, and 5 of b's
    assert sum(b.take(1) for _ in range(30)) == 10          # what is its own it always gets
    waiting = asyncio.create_task(a.wait("schema", "x", 1))
    await asyncio.sleep(0)
    a.release(1)
    await asyncio.sleep(0)
    assert not waiting.done()                               # b uses what it would lend
    for _ in range(5):
        b.release(1)
    assert await asyncio.wait_for(waiting, 1) == ""
    assert (a.executing, a.running, a.dispatched) == (15, 15, 16)


async def test_what_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    f = fairness(4, ("a", {"shares": 1}), ("exempt", {}), schemas=(schema("all", "a", 100, by="ByUser"),))
    flow = f.flow(BOB, Attributes(BOB, "get", "", "v1", "pods", namespace="x"))
    assert await flow.enter(3)
    waiting = asyncio.create_task(flow.enter(2))
    await asyncio.sleep(0)
    page = fairness_report.metrics(f)
    labels = 'flow_schema="all",priority_level="a"'
    for line in (f"current_executing_seats{{{labels}}} 3", f"current_executing_requests{{{labels}}} 1", f"current_inqueue_requests{{{labels}}} 1",
                 f"dispatched_requests_total{{{labels}}} 1", 'nominal_limit_seats{priority_level="a"} 4'):
        assert f"apiserver_flowcontrol_{line}\n" in page
    levels, queues, requests = (fairness_report.dump(f, fairness_report.PREFIX + f"dump_{t}") for t in ("priority_levels", "queues", "requests"))
    assert levels is not None and levels.splitlines() == [
        b"PriorityLevelName, ActiveQueues, IsIdle, IsQuiescing, WaitingRequests, ExecutingRequests, DispatchedRequests, RejectedRequests, TimedoutRequests, "
        b"CancelledRequests",
        b"a,                 1,            false,  false,       1,               1,                 1,                  0,                0,                0",
        b"exempt,            0,            true,   false,       0,               0,                 0,                  0,                0,                0"]
    assert queues is not None and len(queues.splitlines()) == 17 and sum(b" 1,               0,                 0," in q for q in queues.splitlines()) == 1
    assert requests is not None and b" bob," in requests.splitlines()[1] and fairness_report.dump(f, fairness_report.PREFIX + "dump_nothing") is None
    flow.leave(3)
    assert await waiting
    flow.leave(2)
    assert (flow.counts.running, flow.counts.executing, flow.counts.waiting, flow.counts.dispatched) == (0, 0, 0, 2)


def test_the_more_are_refused_the_later_they_come_again() -> None:
    r = Refusals()
    assert [r.add(100 + i / 10) for i in range(9)] == [1] * 9
    told = [max(r.add(s + i / 10) for i in range(9)) for s in range(101, 140)]
    assert told[:3] == [2, 2, 4] and told[-1] == 32 and sorted(told) == told      # nine refusals a second
    assert [r.add(10_000 + 100 * i) for i in range(40)][-1] == 1                  # one now and then


def test_wide_reads_take_several_seats() -> None:
    f = fairness(100, ("a", {"shares": 1}), ("small", {"shares": 0}))
    a = f.levels["a"]

    def width(verb: str, items: int, **query: str) -> int:
        return f.width(a, Attributes(BOB, verb, "", "v1", "pods", name=query.pop("name", "")), Request("GET", "/", {k: [v] for k, v in query.items()}), items)
    assert [width("list", n) for n in (10, 999, 1000, 5500, 10**6)] == [1, 1, 2, 6, 10]
    assert width("list", 50_000, limit="500") == 1 and width("list", 50_000, limit="0") == 10 and width("list", 50_000, name="x") == 1
    assert width("watch", 5000, resourceVersion="77") == 1
    assert width("watch", 5000, sendInitialEvents="true", resourceVersion="77") == width("watch", 5000) == width("watch", 5000, resourceVersion="0") == 6
    assert width("get", 5000) == 1 and f.width(f.levels["small"], Attributes(BOB, "list", "", "v1", "pods"), Request("GET", "/"), 10**6) == 1


def test_a_wide_request_runs_alone() -> None:
    level = fairness(3, ("a", {"shares": 1})).levels["a"]
    assert level.take(10) and not level.take(1)
    level.release(10)
    assert level.take(2) and not level.take(2) and level.take(1)


class Slow(MemoryStore):
    """A store whose disk stands still for as long as somebody says."""

    def __init__(self) -> None:
        super().__init__()
        self.moving = asyncio.Event()
        self.moving.set()

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        if "configmaps" in key:
            await self.moving.wait()
        return await super().put(key, value, expect=expect)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    out = Server(Slow(), settings=ApiSettings(max_in_flight=40, authorization=False))
    await out.start()
    yield out
    await out.stop()


async def create(server: Server, name: str, user: User) -> Response:
    return await server.handle(Request("POST", "/api/v1/namespaces/default/configmaps", {}, {"content-type": "application/json", "accept": "application/json"},
                                       orjson.dumps({"metadata": {"name": name}}), user=user))


async def test_a_server_whose_disk_stands_still_sheds_load(server: Server) -> None:
    store: Any = server.store
    store.moving.clear()
    loud = [asyncio.create_task(create(server, f"loud-{i}", EVE)) for i in range(600)]
    await asyncio.sleep(0.1)
    refused = [t for t in loud if t.done()]
    assert refused and all(t.result().status == 429 and t.result().header("Retry-After") in ("1", "2") for t in refused)
    assert refused[0].result().body == b"Too many requests, please try again later.\n"
    quiet = asyncio.create_task(create(server, "quiet", BOB))
    await asyncio.sleep(0.01)
    assert not quiet.done() and (await server.handle(Request("GET", "/api/v1/namespaces", user=MASTERS))).status == 200     # exempt
    master = asyncio.create_task(create(server, "master", MASTERS))
    await asyncio.sleep(0.01)
    store.moving.set()
    assert (await quiet).status == 201 and (await master).status == 201
    await asyncio.gather(*loud)
    counted = Counter(t.result().status for t in loud)
    assert counted[201] + counted[429] == 600 and counted[201] > 50
    level = server.fairness.levels["global-default"]
    assert (level.executing, level.waiting, server.in_flight) == (0, 0, 0) and sum(level.rejected.values()) == counted[429]
