"""Audit: what a policy lets through, and what events hold."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from kubern.api.audit import LEVELS, Audit, BadPolicy, Log, Policy, parse
from kubern.api.audit.truncate import Truncated
from kubern.api.audit.webhook import Batching, WebhookSink
from kubern.api.authz.attributes import Attributes
from kubern.api.handle import MASTERS, Server
from kubern.api.remote import Remote
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, Response, Stream, User
from kubern.store.memory import MemoryStore
from tests.api.outside import outside, until

NS = "/api/v1/namespaces/default"
BOB = User("bob", ("devs", "system:authenticated"))


def policy(*rules: dict[str, Any], **more: Any) -> Policy:
    return parse({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": list(rules), **more})


def asked(verb: str = "get", group: str = "", resource: str = "pods", sub: str = "", namespace: str = "default", name: str = "a") -> Attributes:
    return Attributes(BOB, verb, group, "v1", resource, sub, namespace, name, f"/api/v1/namespaces/{namespace}/{resource}/{name}")


@pytest.mark.parametrize("rule, a, expected", (
    ({}, asked(), True),
    ({"users": ["bob"]}, asked(), True), ({"users": ["eve"]}, asked(), False), ({"userGroups": ["x", "devs"]}, asked(), True),
    ({"userGroups": ["x"]}, asked(), False),
    ({"verbs": ["get"]}, asked(), True), ({"verbs": ["list"]}, asked(), False), ({"namespaces": ["default"]}, asked(), True),
    ({"namespaces": [""]}, asked(), False), ({"resources": [{"group": "*", "resources": ["pods"]}]}, asked(), True),
    ({"namespaces": [""]}, asked(namespace=""), True), ({"resources": [{"group": ""}]}, asked(), True), ({"resources": [{"group": "apps"}]}, asked(), False),
    ({"resources": [{"resources": ["pods"]}]}, asked(), True), ({"resources": [{"resources": ["pods"]}]}, asked(sub="log"), False),
    ({"resources": [{"resources": ["pods/log"]}]}, asked(sub="log"), True), ({"resources": [{"resources": ["pods/*"]}]}, asked(sub="log"), True),
    ({"resources": [{"resources": ["pods/*"]}]}, asked(), True), ({"resources": [{"resources": ["*/log"]}]}, asked(sub="log"), True),
    ({"resources": [{"resources": ["*"]}]}, asked(sub="log"), True), ({"resources": [{"resources": ["pods"], "resourceNames": ["b"]}]}, asked(), False),
    ({"nonResourceURLs": ["/healthz*"]}, asked(), False),
    ({"nonResourceURLs": ["/healthz*"]}, Attributes(BOB, "get", path="/healthz/x", is_resource=False), True),
    ({"nonResourceURLs": ["/healthz"]}, Attributes(BOB, "get", path="/healthz/x", is_resource=False), False),
    ({"resources": [{"group": ""}]}, Attributes(BOB, "get", path="/healthz", is_resource=False), False)))
def test_rules(rule: dict[str, Any], a: Attributes, expected: bool) -> None:
    assert bool(policy({"level": "Metadata", **rule}).decide(BOB, a).level) == expected


def test_the_first_rule_decides() -> None:
    p = policy({"level": "None", "users": ["bob"], "verbs": ["watch"]}, {"level": "Request", "omitStages": ["Panic"]}, omitStages=["RequestReceived"])
    assert LEVELS[p.decide(BOB, asked("watch")).level] == "None"
    decided = p.decide(BOB, asked())
    assert LEVELS[decided.level] == "Request" and decided.omit_stages == {"RequestReceived", "Panic"}


@pytest.mark.parametrize("doc, why", (
    ({}, "audit.k8s.io/v1"), ({"rules": []}, "0 rules"), ({"rules": [{}]}, "level: Required"), ({"rules": [{"level": "All"}]}, "Unsupported value"),
    ({"rules": [{"level": "None", "omitStages": ["Never"]}]}, "omitStages"), ({"rules": [{"level": "None", "nonResourceURLs": ["x"]}]}, "begin with"),
    ({"rules": [{"level": "None", "nonResourceURLs": ["/*/x"]}]}, "final character"), ({"rules": [{"level": "None", "users": "bob"}]}, "list of names"),
    ({"rules": [{"level": "None", "nonResourceURLs": ["/x"], "namespaces": ["a"]}]}, "both regular")))
def test_a_bad_policy_says_why(doc: dict[str, Any], why: str) -> None:
    with pytest.raises(BadPolicy, match=why):
        parse({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", **doc} if doc else doc)


class Audited:
    def __init__(self, server: Server, path: Path) -> None:
        self.server, self.path = server, path

    def use(self, *rules: dict[str, Any], **more: Any) -> None:
        self.server.audit = Audit(policy(*rules, **more), [Log(str(self.path))])

    async def ask(self, method: str, path: str, body: Any = None, type: str = "application/json", user: User | None = MASTERS, **headers: str) -> Any:
        path, _, q = path.partition("?")
        query = {k: [v] for k, _, v in (p.partition("=") for p in q.split("&"))} if q else {}
        return await self.server.handle(Request(method, path, query, {"content-type": type, "accept": "application/json", "user-agent": "test/1", **headers},
                                                orjson.dumps(body) if body is not None else b"", peer="192.0.2.7", user=user))

    def events(self) -> list[dict[str, Any]]:
        assert self.server.audit is not None
        self.server.audit.sinks[0].close()
        return [orjson.loads(line) for line in self.path.read_bytes().splitlines()]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Audited]:
    server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await server.start()
    out = Audited(server, tmp_path / "audit.log")
    await out.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "default"}})
    yield out
    await server.stop()


async def test_levels(api: Audited) -> None:
    api.use({"level": "Metadata", "resources": [{"resources": ["secrets"]}]}, {"level": "None", "verbs": ["get"]}, {"level": "RequestResponse"},
            omitStages=["RequestReceived"])
    await api.ask("POST", f"{NS}/secrets", {"metadata": {"name": "s"}, "stringData": {"p": "canary-in-the-mine"}})
    await api.ask("POST", f"{NS}/configmaps", {"metadata": {"name": "m"}, "data": {"a": "b"}})
    await api.ask("GET", f"{NS}/configmaps/m")
    assert api.server.fast(Request("GET", f"{NS}/configmaps/m", user=MASTERS)) is None
    response = await api.ask("PATCH", f"{NS}/configmaps/m", {"data": {"a": "c"}}, "application/merge-patch+json", **{"audit-id": "mine"})
    assert response.header("Audit-Id") == "mine"
    secret, create, change = api.events()
    assert b"canary" not in api.path.read_bytes() and b"Y2FuYXJ5" not in api.path.read_bytes() and api.path.stat().st_mode & 0o77 == 0
    assert secret["level"] == "Metadata" and "requestObject" not in secret and secret["objectRef"] == {
        "resource": "secrets", "namespace": "default", "name": "s", "apiVersion": "v1"}
    assert create["kind"] == "Event" and create["stage"] == "ResponseComplete" and create["verb"] == "create" and create["sourceIPs"] == ["192.0.2.7"]
    assert create["requestObject"]["data"] == {"a": "b"} and create["responseObject"]["metadata"]["uid"] and create["responseStatus"]["code"] == 201
    assert create["user"]["username"] == "system:apiserver" and create["annotations"]["authorization.k8s.io/decision"] == "allow"
    assert change["auditID"] == "mine" and change["requestObject"] == {"data": {"a": "c"}} and change["objectRef"]["name"] == "m"
    assert change["requestReceivedTimestamp"] <= change["stageTimestamp"] and change["requestURI"] == f"{NS}/configmaps/m"


async def test_refusals_and_failed_authentication(api: Audited) -> None:
    api.use({"level": "Metadata", "omitStages": ["RequestReceived"]})
    assert (await api.ask("GET", f"{NS}/pods/x?pretty=true", user=BOB)).status == 403
    assert (await api.ask("GET", f"{NS}/pods/x")).status == 404
    assert (await api.ask("GET", f"{NS}/pods", user=None, authorization="Bearer nonsense")).status == 401
    refused, missing, unknown = api.events()
    assert refused["responseStatus"]["reason"] == "Forbidden" and refused["annotations"]["authorization.k8s.io/decision"] == "forbid"
    assert refused["requestURI"].endswith("?pretty=true") and refused["user"] == {"username": "bob", "groups": ["devs", "system:authenticated"]}
    assert missing["responseStatus"]["code"] == 404 and unknown["responseStatus"]["code"] == 401 and unknown["user"] == {}


async def test_stages_of_a_watch(api: Audited) -> None:
    api.use({"level": "RequestResponse", "verbs": ["watch"]})
    response = await api.ask("GET", f"{NS}/configmaps?watch=1")
    response.body.end()
    await asyncio.sleep(0)
    assert [e["stage"] for e in api.events()] == ["RequestReceived", "ResponseStarted", "ResponseComplete"]


async def test_stages_of_another_protocol(api: Audited) -> None:
    async def spoken(stream: Stream) -> None:
        raise ConnectionResetError

    async def switched(request: Request, user: User) -> Response:
        return Response(101, upgrade=spoken)
    api.server.extra_paths["/switched"] = switched
    api.use({"level": "RequestResponse"}, omitStages=["RequestReceived"])
    response = await api.ask("GET", "/switched")
    with pytest.raises(ConnectionResetError):
        await response.upgrade(None)
    assert [(e["stage"], e["responseStatus"]["code"]) for e in api.events()] == [("ResponseStarted", 101), ("ResponseComplete", 101)]


async def test_managed_fields_are_left_out(api: Audited) -> None:
    api.use({"level": "RequestResponse"}, omitManagedFields=True, omitStages=["RequestReceived"])
    await api.ask("POST", f"{NS}/configmaps", {"metadata": {"name": "m"}, "data": {"a": "b"}})
    await api.ask("GET", f"{NS}/configmaps")
    assert b"managedFields" in (await api.ask("GET", f"{NS}/configmaps/m")).body
    assert all(e["responseObject"] for e in api.events()) and b"managedFields" not in api.path.read_bytes()


def filled(log: Log, count: int, size: int) -> None:
    """So many events of this size, each written before the next, so that files end where they would."""
    for i in range(count):
        log.put({"n": i, "x": "y" * size})
        while log.written <= i:
            time.sleep(0)
    log.close()


def test_rotation_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    filled(Log(str(path), max_bytes=2000, backups=2), 40, 400)
    rotated = sorted(tmp_path.glob("audit-*.log"))
    assert len(rotated) == 2 and path.exists() and all(p.stat().st_size <= 2000 for p in [*rotated, path])
    numbers = [orjson.loads(line)["n"] for p in [*rotated, path] for line in p.read_bytes().splitlines()]
    assert numbers == list(range(numbers[0], 40))
    monkeypatch.setattr("kubern.api.audit.log.QUEUE_EVENTS_MAX", 0)
    full = Log(str(path))
    full.put({})
    full.close()
    assert full.lost == 1


def test_what_is_put_aside_is_compressed_and_goes_with_age(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    old = tmp_path / "audit-2020-01-01T00-00-00.000.log.gz"
    old.write_bytes(b"x")
    os.utime(old, (1_577_836_800, 1_577_836_800))
    filled(Log(str(path), max_bytes=2000, backups=0, age_days=30, compress=True), 10, 900)
    aside = sorted(tmp_path.glob("audit-*"))
    assert not old.exists() and len(aside) == 4 and all(p.name.endswith(".log.gz") and p.stat().st_mode & 0o777 == 0o600 for p in aside)
    numbers = [orjson.loads(line)["n"] for p in aside for line in gzip.decompress(p.read_bytes()).splitlines()]
    assert numbers == list(range(8))


def test_the_old_format(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "a"), format="legacy")
    log.put({"requestReceivedTimestamp": "T", "auditID": "7", "stage": "ResponseComplete", "verb": "get", "requestURI": "/api?x=1", "sourceIPs": ["192.0.2.1"],
             "user": {"username": "bob", "groups": ["a", "b"]}, "userAgent": "k", "objectRef": {"namespace": "n"}, "responseStatus": {"code": 200}})
    log.close()
    assert (tmp_path / "a").read_text() == (
        'T AUDIT: id="7" stage="ResponseComplete" ip="192.0.2.1" method="get" user="bob" groups="a","b" as="<self>" asgroups="<lookup>" user-agent="k" '
        'namespace="n" uri="/api?x=1" response="200"\n')


async def test_events_go_out_in_batches(tmp_path: Path) -> None:
    async with outside(tmp_path, lambda m, p, b: (200, b"")) as service:
        sink = WebhookSink(Remote(service.kubeconfig(tmp_path / "k")), Batching(buffer_size=25, max_size=10, max_wait_s=0.05))
        for i in range(30):
            sink.put({"n": i})
        assert sink.lost == 5                                        # what finds the buffer full, rather than a request that waits
        await until(lambda: sink.sent == 25)
        lists = [orjson.loads(body) for _, _, body in service.asked]
        assert [len(x["items"]) for x in lists] == [10, 10, 5] and {x["kind"] for x in lists} == {"EventList"}
        assert [e["n"] for x in lists for e in x["items"]] == list(range(25))
        sink.put({"n": 99})
        await sink.close()                                           # what is left goes before the end
        assert orjson.loads(service.asked[-1][2])["items"] == [{"n": 99}]


async def test_a_service_that_is_away_costs_events_only(tmp_path: Path) -> None:
    codes = [500, 500, 200, 404]
    async with outside(tmp_path, lambda m, p, b: (codes.pop(0), b"")) as service:
        sink = WebhookSink(Remote(service.kubeconfig(tmp_path / "k"), pause_s=0.01), Batching(max_size=1, max_wait_s=0.01))
        sink.put({"n": 1})
        await until(lambda: sink.sent == 1)
        sink.put({"n": 2})
        await until(lambda: sink.lost == 1)
        await sink.close()


async def test_bodies_in_protobuf_are_shown_as_json(api: Audited) -> None:
    from kubern.model.protobuf import from_json

    api.use({"level": "Request"}, omitStages=["RequestReceived"])
    body = from_json({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "p"}, "data": {"k": "v"}})
    answer = await api.server.handle(Request("POST", f"{NS}/configmaps", {}, {"content-type": "application/vnd.kubernetes.protobuf"}, body, user=MASTERS))
    assert answer.status == 201
    event = api.events()[0]
    assert event["requestObject"]["data"] == {"k": "v"} and event["objectRef"]["name"] == "p"


async def test_a_policy_is_about_who_really_asks(api: Audited) -> None:
    api.use({"level": "Metadata", "users": ["bob"]})
    api.server.authenticator._static[hashlib.sha256(b"t").digest()] = BOB
    await api.ask("GET", f"{NS}/pods", user=None, authorization="Bearer t", **{"impersonate-user": "jane"})
    received, complete = api.events()
    assert received["user"]["username"] == complete["user"]["username"] == "bob" and "impersonatedUser" not in received
    assert complete["responseStatus"]["code"] == 403 and "impersonatedUser" not in complete        # he may not
    role = {"metadata": {"name": "i"}, "rules": [{"verbs": ["impersonate:user-info"], "apiGroups": ["authentication.k8s.io"], "resources": ["users"]},
                                                 {"verbs": ["impersonate-on:user-info:list"], "apiGroups": [""], "resources": ["pods"]}]}
    binding = {"metadata": {"name": "i"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "i"},
               "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "bob"}]}
    for plural, obj in (("clusterroles", role), ("clusterrolebindings", binding)):
        assert (await api.ask("POST", f"/apis/rbac.authorization.k8s.io/v1/{plural}", obj)).status == 201
    api.use({"level": "Metadata", "users": ["bob"]})
    await api.ask("GET", f"{NS}/pods", user=None, authorization="Bearer t", **{"impersonate-user": "jane"})
    event = api.events()[-1]
    assert event["impersonatedUser"] == {"username": "jane", "groups": ["system:authenticated"]}
    assert event["authenticationMetadata"] == {"impersonationConstraint": "impersonate:user-info"}


async def test_refused_credentials_and_answers_that_are_a_status(api: Audited) -> None:
    api.use({"level": "RequestResponse"}, omitStages=["RequestReceived"])
    await api.ask("GET", f"{NS}/pods", user=None, authorization="Bearer wrong")
    await api.ask("DELETE", f"{NS}/configmaps/none")
    await api.ask("POST", f"{NS}/configmaps", {"metadata": {"name": "m"}})
    await api.ask("DELETE", f"{NS}/configmaps/m")
    await api.ask("GET", "/version")
    refused, missing, _, gone, version = api.events()
    assert (refused["stage"], refused["user"]) == ("ResponseStarted", {})
    assert refused["responseStatus"] == {"metadata": {}, "message": "Authentication failed, attempted: bearer", "code": 401}
    assert missing["responseStatus"]["reason"] == "NotFound" and gone["responseStatus"]["status"] == "Success"
    assert gone["responseStatus"]["details"]["name"] == "m" and "responseObject" not in version


def test_what_is_too_large_loses_its_objects_or_goes_nowhere() -> None:
    class Kept:
        plugin, lost = "log", 0

        def __init__(self) -> None:
            self.events: list[Any] = []

        def put(self, event: Any, weight: int = 1024) -> None:
            self.events.append(event)
    kept = Kept()
    sink = Truncated(kept, 2000)
    small = {"auditID": "1", "requestObject": {"a": "b"}}
    sink.put(small, 1024)
    sink.put({"auditID": "2", "requestObject": {"a": "b" * 3000}, "responseObject": {}, "annotations": {"x": "y"}}, 4000)
    sink.put({"auditID": "3", "requestURI": "/" * 3000, "requestObject": {}}, 4000)
    assert kept.events == [small, {"auditID": "2", "annotations": {"x": "y", "audit.k8s.io/truncated": "true"}}] and sink.lost == 1
