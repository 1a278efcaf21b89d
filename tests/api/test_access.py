"""Webhooks that authenticate and authorize, and the configuration of the chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from kubern.api.access import Files, applied, read
from kubern.api.authn import TokenError
from kubern.api.authn.webhook import TokenWebhook
from kubern.api.authz.configuration import parse
from kubern.api.configfile import BadFile
from kubern.api.handle import MASTERS, Server
from kubern.api.remote import Remote
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, Response, User
from kubern.store.memory import MemoryStore
from tests.api.outside import Outside, outside, until

JANE = User("jane", ("devs", "system:authenticated"), extra={"k": ("v",)})


def configuration(*authorizers: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": list(authorizers)}


def webhook(kubeconfig: str, name: str = "w", **more: Any) -> dict[str, Any]:
    return {"type": "Webhook", "name": name, "webhook": {
        "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "NoOpinion", "matchConditionSubjectAccessReviewVersion": "v1",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig}, **more}}


RBAC = {"type": "RBAC", "name": "rbac"}


def decided(allowed: bool = False, denied: bool = False, reason: str = "") -> dict[str, Any]:
    return {"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "status": {"allowed": allowed, "denied": denied, "reason": reason}}


class World:
    """A server whose authorization is asked of `service`, by turns of `configure`."""

    def __init__(self, directory: Path, service: Outside) -> None:
        self.directory, self.service = directory, service
        self.kubeconfig = service.kubeconfig(directory / "authz.kubeconfig")
        self.server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))

    def write(self, text: str) -> str:
        path = self.directory / "authz.yaml"
        path.write_text(text)
        return str(path)

    def file(self, *authorizers: dict[str, Any]) -> str:
        return self.write(yaml.safe_dump(configuration(*authorizers)))

    async def ask(self, method: str, path: str, body: Any = None, user: User = JANE) -> tuple[int, Any]:
        response: Response = await self.server.handle(Request(method, path, {}, {"content-type": "application/json"},
                                                              orjson.dumps(body) if body is not None else b"", user=user))
        raw = response.body if isinstance(response.body, bytes) else b"".join(response.body)  # type: ignore[arg-type]
        return response.status, orjson.loads(raw) if raw.startswith(b"{") else raw.decode()

    def specs(self) -> list[Any]:
        return [orjson.loads(body)["spec"] for _, _, body in self.service.asked]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with outside(tmp_path, lambda m, p, b: (200, decided())) as service:
        made = World(tmp_path, service)
        await made.server.start()
        assert (await made.ask("POST", "/api/v1/namespaces", {"metadata": {"name": "default"}}, MASTERS))[0] == 201
        yield made
        await made.server.stop()


NS = "/api/v1/namespaces/default"


async def test_a_webhook_decides_and_is_remembered(world: World) -> None:
    async with applied(read(Files(authorization_config=world.file(webhook(world.kubeconfig), RBAC))), world.server):
        status, said = await world.ask("GET", f"{NS}/pods")
        assert status == 403 and said["message"].startswith('pods is forbidden: User "jane" cannot list resource "pods"')
        spec = {"resourceAttributes": {"namespace": "default", "verb": "list", "version": "v1", "resource": "pods"}, "user": "jane",
                "groups": ["devs", "system:authenticated"], "extra": {"k": ["v"]}}
        assert world.specs() == [spec]
        world.service.answer = lambda m, p, b: (200, decided(allowed=True))
        assert (await world.ask("GET", f"{NS}/pods"))[0] == 403                        # kept
        assert (await world.ask("GET", f"{NS}/services"))[0] == 200
        assert (await world.ask("GET", f"{NS}/services"))[0] == 200
        assert len(world.specs()) == 2
        await asyncio.gather(*(world.ask("GET", f"{NS}/secrets") for _ in range(5)))    # one question for all who wait
        assert len(world.specs()) == 3
        assert (await world.ask("GET", "/openapi/v2"))[0] == 200
        assert world.specs()[-1]["nonResourceAttributes"] == {"path": "/openapi/v2", "verb": "get"}
        assert {m for m, _, _ in world.service.asked} == {"POST"} and {p for _, p, _ in world.service.asked} == {"/ask"}


async def test_masters_are_not_asked_about_and_a_denial_is_final(world: World) -> None:
    world.service.answer = lambda m, p, b: (200, decided(denied=True, reason="not you"))
    async with applied(read(Files(authorization_config=world.file(webhook(world.kubeconfig), {"type": "AlwaysAllow", "name": "all"}))), world.server):
        assert (await world.ask("GET", f"{NS}/pods", user=MASTERS))[0] == 200
        status, said = await world.ask("GET", f"{NS}/pods")
        assert status == 403 and said["message"].endswith("not you")
        world.service.answer = lambda m, p, b: (200, decided())
        assert (await world.ask("GET", f"{NS}/services"))[0] == 200                     # no opinion: the next one allows


async def test_several_in_order_with_conditions(world: World) -> None:
    conditions = [{"expression": "has(request.resourceAttributes)"}, {"expression": "request.resourceAttributes.verb != 'get'"},
                  {"expression": "!('devs' in request.groups && request.resourceAttributes.namespace == '')"}]
    first = webhook(world.kubeconfig, matchConditions=conditions)
    second = webhook(world.service.kubeconfig(world.directory / "second.kubeconfig", "/second"), "second", subjectAccessReviewVersion="v1beta1")
    async with applied(read(Files(authorization_config=world.file(first, second))), world.server):
        await world.ask("GET", f"{NS}/pods/x")
        await world.ask("GET", "/openapi/v2")
        await world.ask("GET", "/api/v1/nodes")
        await world.ask("GET", f"{NS}/pods")
        assert [p for _, p, _ in world.service.asked] == ["/second", "/second", "/second", "/ask", "/second"]
        review = orjson.loads(world.service.asked[0][2])
        assert review["apiVersion"] == "authorization.k8s.io/v1beta1" and review["spec"]["group"] == list(JANE.groups)


async def test_selectors_are_told(world: World) -> None:
    async with applied(read(Files(authorization_config=world.file(webhook(world.kubeconfig)))), world.server):
        await world.server.handle(Request("GET", f"{NS}/pods", {"fieldSelector": ["spec.nodeName=n,metadata.name!=x"], "labelSelector": ["a in (b,c),!d"]},
                                          user=JANE))
    r = world.specs()[0]["resourceAttributes"]
    assert r["fieldSelector"]["requirements"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["x"]},
                                                  {"key": "spec.nodeName", "operator": "In", "values": ["n"]}]
    assert [q["operator"] for q in r["labelSelector"]["requirements"]] == ["In", "DoesNotExist"]


@pytest.mark.parametrize(("policy", "allowed"), [("NoOpinion", 200), ("Deny", 500)])
async def test_a_webhook_that_is_away(world: World, policy: str, allowed: int) -> None:
    world.service.answer = lambda m, p, b: (404, {})
    rows = (webhook(world.kubeconfig, failurePolicy=policy), {"type": "AlwaysAllow", "name": "all"})
    async with applied(read(Files(authorization_config=world.file(*rows))), world.server):
        assert (await world.ask("GET", f"{NS}/pods"))[0] == allowed
        world.service.answer = lambda m, p, b: (200, decided(allowed=True))
        assert (await world.ask("GET", f"{NS}/pods"))[0] == 200                         # failures are not kept
    async with applied(read(Files(authorization_config=world.file(webhook(world.kubeconfig), RBAC))), world.server):
        world.service.answer = lambda m, p, b: (200, b"nonsense")
        status, said = await world.ask("GET", f"{NS}/services")
        assert status == 500 and said.startswith(f'Internal Server Error: "{NS}/services": ')


async def test_inner_questions_are_asked_too(world: World) -> None:
    """Impersonation, access reviews, escalation and CEL ask the same chain, and wait for its answer."""
    def answer(method: str, path: str, body: bytes) -> tuple[int, Any]:
        spec = orjson.loads(body)["spec"]
        verb = spec.get("resourceAttributes", {}).get("verb")
        return 200, decided(allowed=spec["user"] == "jane" and verb in ("create", "impersonate", "escalate", "check"))
    world.service.answer = answer
    async with applied(read(Files(authorization_config=world.file(webhook(world.kubeconfig), RBAC))), world.server):
        review = {"spec": {"user": "jane", "resourceAttributes": {"verb": "escalate", "resource": "x"}}}
        status, said = await world.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        assert status == 201 and said["status"]["allowed"] is True
        status, said = await world.ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {"spec": {"namespace": "default"}})
        assert said["status"]["incomplete"] and said["status"]["evaluationError"] == "webhook authorizer does not support user rule resolution"
        role = {"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}
        assert (await world.ask("POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", role))[0] == 201
        static = world.server.authenticator
        static._static[__import__("hashlib").sha256(b"t").digest()] = JANE
        response = await world.server.handle(Request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, {
            "authorization": "Bearer t", "impersonate-user": "joe", "content-type": "application/json"}, b"{}"))
        assert response.status == 403 and b"joe" in bytes(response.body)  # type: ignore[arg-type]
        policy = {"metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}]},
            "validations": [{"expression": "authorizer.group('x').resource('y').check(object.metadata.name).allowed()"}]}}
        binding = {"metadata": {"name": "p"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}}
        root = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
        assert (await world.ask("POST", f"{root}ies", policy, MASTERS))[0] == 201
        assert (await world.ask("POST", f"{root}ybindings", binding, MASTERS))[0] == 201
        assert (await world.ask("POST", f"{NS}/configmaps", {"metadata": {"name": "check"}}))[0] == 201
        assert (await world.ask("POST", f"{NS}/configmaps", {"metadata": {"name": "other"}}))[0] == 422


async def test_the_file_is_followed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.api.configfile.LOOK_EVERY_S", 0.02)
    path = world.file(RBAC)
    async with applied(read(Files(authorization_config=path)), world.server):
        assert (await world.ask("GET", f"{NS}/pods"))[0] == 403
        world.write("authorizers: []")
        await asyncio.sleep(0.1)
        assert (await world.ask("GET", f"{NS}/pods"))[0] == 403
        world.file({"type": "AlwaysAllow", "name": "all"})

        async def allowed() -> bool:
            return (await world.ask("GET", f"{NS}/pods"))[0] == 200
        await until(allowed)


@pytest.mark.parametrize(("rows", "why"), [
    ([], "authorizers: Required value: at least one authorization mode must be defined"),
    ([{"type": "ABAC", "name": "a"}],
     'authorizers[0].type: Unsupported value: "ABAC": supported values: "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"'),
    ([RBAC, {"type": "RBAC", "name": "b"}], 'authorizers[1].type: Duplicate value: "RBAC"'),
    ([{"type": "Webhook", "name": "w"}], "authorizers[0].webhook: Required value: required when type=Webhook"),
    ([{**RBAC, "webhook": {}}], 'authorizers[0].webhook: Invalid value: "non-null": may only be specified when type=Webhook'),
    ([webhook("/none")], 'authorizers[0].connectionInfo.kubeConfigFile: Invalid value: "/none": error loading file: stat /none: no such file or directory'),
    ([webhook("rel")], 'kubeConfigFile: Invalid value: "rel": must be an absolute path'),
    ([webhook("/etc/hosts", timeout="40s")], 'authorizers[0].timeout: Invalid value: "40s": must be > 0s and <= 30s'),
    ([webhook("/etc/hosts", failurePolicy="x")], 'authorizers[0].failurePolicy: Unsupported value: "x": supported values: "NoOpinion", "Deny"'),
    ([webhook("/etc/hosts", matchConditions=[{"expression": "request.user"}])],
     'authorizers[0].matchConditions[0].expression: Invalid value: "request.user": must evaluate to bool but got string'),
    ([webhook("/etc/hosts", matchConditions=[{"expression": "object.x"}])], "compilation failed: ERROR: <input>:1:1: undeclared reference to 'object'"),
    ([webhook("/etc/hosts", authorizedTTL="soon")], 'authorizers[0].webhook.authorizedTTL: time: invalid duration "soon"'),
])
def test_configurations_that_are_wrong(rows: Any, why: str) -> None:
    with pytest.raises(BadFile) as e:
        parse(configuration(*rows))
    assert why in str(e.value)


# --- tokens ---------------------------------------------------------------------------------------------------------------------------

def reviewed(authenticated: bool = True, **status: Any) -> dict[str, Any]:
    return {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": {"authenticated": authenticated, "user": {
        "username": "jane", "uid": "7", "groups": ["devs"], "extra": {"k": ["v"]}}, **status}}


async def test_a_webhook_knows_tokens(tmp_path: Path) -> None:
    now = [1000.0]
    async with outside(tmp_path, lambda m, p, b: (200, reviewed())) as service:
        known = TokenWebhook(Remote(service.kubeconfig(tmp_path / "k")), ["api"], now=lambda: now[0])
        verified = await known.check("abc", ["api"])
        assert verified is not None and verified.user == User("jane", ("devs", "system:authenticated"), "7", {"k": ("v",)})
        assert verified.audiences == ("api",)
        assert orjson.loads(service.asked[0][2])["spec"] == {"token": "abc", "audiences": ["api"]}
        await known.check("abc", ["api"])
        assert len(service.asked) == 1
        now[0] += 121
        service.answer = lambda m, p, b: (200, reviewed(False, error="gone"))
        for _ in range(2):
            with pytest.raises(TokenError, match="gone"):
                await known.check("abc", ["api"])
        assert len(service.asked) == 2
        assert await known.check("abc", ["other"]) is None                              # the service does not say that it is for them
        service.answer = lambda m, p, b: (200, reviewed(audiences=["other"]))
        assert (await known.check("x", ["other"])).audiences == ("other",)  # type: ignore[union-attr]
        service.answer = lambda m, p, b: (503, {})
        with pytest.raises(TokenError, match="currently unable"):
            await known.check("y", ["api"])


async def test_answers_that_may_get_better_are_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.api.remote.FIRST_PAUSE_S", 0.01)
    codes = [500, 429, 200]
    async with outside(tmp_path, lambda m, p, b: (codes.pop(0), reviewed())) as service:
        remote = Remote(service.kubeconfig(tmp_path / "k"))
        assert (await remote.post({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1"}))["status"]["authenticated"]
        assert {code: count[0] for code, count in remote.counts.items()} == {"500": 1, "429": 1, "200": 1}


async def test_tokens_and_the_server(tmp_path: Path) -> None:
    async with outside(tmp_path, lambda m, p, b: (200, reviewed())) as service:
        server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
        await server.start()
        files = Files(authentication_token_webhook_config_file=service.kubeconfig(tmp_path / "k"))
        async with applied(read(files), server):
            who = await server.authenticator.authenticate(Request("GET", "/api", headers={"authorization": "Bearer opaque"}))
            assert who.name == "jane"
        await server.stop()
