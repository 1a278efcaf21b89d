"""Admission policies and webhooks, on a small cluster of dicts; webhooks are called over real TLS."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from kubern import pki
from kubern.api.admission import CREATE, DELETE, UPDATE, Attributes, mutate, validate
from kubern.api.cache import Collection
from kubern.api.forms import Served
from kubern.model.kinds import kind_of
from kubern.model.object import Object, clone
from kubern.model.request import User
from kubern.model.resources import RESOURCES
from kubern.model.schema import schema_for
from kubern.model.status import StatusError

ADMIN = User("admin", ("system:masters", "system:authenticated"))
ROWS = {(f"{r.plural}.{r.group}" if r.group else r.plural): r for r in RESOURCES}
CONFIG = "admissionregistration.k8s.io"
RULES = [{"apiGroups": ["", "apps"], "apiVersions": ["*"], "operations": ["*"], "resources": ["configmaps", "pods", "deployments"]}]


class Cluster:
    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.changes = 0
        self.audit: dict[str, str] = {}
        self.add("namespaces", "", "n", {"labels": {"env": "test"}}, status={"phase": "Active"})
        self.add("serviceaccounts", "n", "default")

    def add(self, resource: str, ns: str, name: str, meta: Object | None = None, **more: Any) -> None:
        self.changes += 1
        self.objects[resource, ns, name] = {"metadata": {"name": name, "resourceVersion": str(self.changes), **(meta or {})}, **more}

    def policy(self, kind: str, name: str, spec: Object, **binding: Any) -> None:
        self.add(f"{kind}admissionpolicies.{CONFIG}", "", name, spec={"matchConstraints": {"resourceRules": RULES}, **spec})
        actions = {"validationActions": ["Deny"]} if kind == "validating" else {}
        self.add(f"{kind}admissionpolicybindings.{CONFIG}", "", name, spec={"policyName": name, **actions, **binding})

    def changed(self, resource: str) -> int:
        return self.changes if any(r == resource for r, _, _ in self.objects) else 0

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        return self.objects.get((resource, namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> Iterable[Object]:
        return [o for (r, ns, _), o in sorted(self.objects.items(), key=lambda i: i[0]) if r == resource and namespace in (None, "", ns)]

    async def run(self, obj: Object | None, old: Object | None = None, resource: str = "configmaps", dry_run: bool = False) -> Any:
        """What comes out, or (code, reason, message); warnings in `self.warnings`."""
        row = ROWS[resource]
        served = Served(row, kind_of(row.group, row.kind), Collection(row.group, row.plural), schema=partial(schema_for, row.api_version, row.kind))
        operation = DELETE if obj is None else UPDATE if old is not None else CREATE
        shown = {"kind": row.kind, "apiVersion": row.api_version, **clone(obj)} if obj is not None else None
        self.warnings: list[str] = []
        a = Attributes(operation, row, "", "n", ((obj or old or {})["metadata"]).get("name", ""), shown, old, ADMIN, self, dry_run, {},
                       self.warnings.append, served=served)
        try:
            await mutate(a)
            await validate(a)
        except StatusError as e:
            return e.code, e.reason, e.message
        self.audit = a.audit
        return a.obj


def config(name: str = "a", **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": "n"}, "data": data}


def refused(name: str, message: str, code: int = 422, reason: str = "Invalid") -> tuple[int, str, str]:
    return code, reason, f'configmaps "{name}" is forbidden: ValidatingAdmissionPolicy \'p\' with binding \'p\' denied request: {message}'


async def test_validating_policy() -> None:
    c = Cluster()
    c.policy("validating", "p", {
        "matchConditions": [{"name": "c", "expression": "object == null || object.metadata.name != 'skipped'"}],
        "variables": [{"name": "n", "expression": "int(object.data.n)"}],
        "validations": [{"expression": "object == null || variables.n < 5", "messageExpression": "'n is ' + string(variables.n)", "reason": "Forbidden"}],
        "auditAnnotations": [{"key": "n", "valueExpression": "object == null ? '' : 'n=' + object.data.n"}]})
    assert (await c.run(config(n="3")))["data"] == {"n": "3"}
    assert c.audit == {"p/n": "n=3"}
    assert await c.run(config(n="7")) == refused("a", "n is 7", 403, "Forbidden")
    assert (await c.run(config("skipped", n="7")))["data"] == {"n": "7"}
    assert await c.run(None, config(n="7")) is None
    assert await c.run(config(n="x")) == refused("a", "expression 'object == null || variables.n < 5' resulted in error: composited variable \"n\" "
                                                 "fails to evaluate: type conversion error from 'string' to 'int'")


async def test_params_of_a_binding() -> None:
    c = Cluster()
    c.add("configmaps", "n", "limit", {"labels": {"a": "b"}}, data={"max": "5"})
    c.policy("validating", "p", {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                                 "validations": [{"expression": "int(object.data.n) <= int(params.data.max)", "message": "too much"}]},
             paramRef={"selector": {"matchLabels": {"a": "b"}}, "parameterNotFoundAction": "Deny"})
    assert (await c.run(config(n="5")))["data"] == {"n": "5"}
    assert await c.run(config(n="6")) == refused("a", "too much")
    del c.objects["configmaps", "n", "limit"]
    assert await c.run(config(n="5")) == refused(
        "a", "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction")


async def test_a_binding_that_warns_and_a_selector() -> None:
    c = Cluster()
    c.policy("validating", "p", {"validations": [{"expression": "false", "message": "never"}]}, validationActions=["Warn", "Audit"],
             matchResources={"namespaceSelector": {"matchLabels": {"env": "test"}}})
    assert (await c.run(config()))["metadata"]["name"] == "a"
    assert c.warnings == ["Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': never"]
    assert "validation.policy.admission.k8s.io/validation_failure" in c.audit
    c.objects["namespaces", "", "n"]["metadata"]["labels"] = {"env": "other"}
    await c.run(config())
    assert c.warnings == []


async def test_mutating_policy_applies_a_configuration() -> None:
    c = Cluster()
    c.policy("mutating", "p", {"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": """
        Object{metadata: Object.metadata{labels: {"made": "by-" + request.userInfo.username}},
               spec: Object.spec{initContainers: [Object.spec.initContainers{name: "mesh", image: "proxy", restartPolicy: "Always"}]}}"""}}]},
             matchResources={"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]})
    got = await c.run({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}, resource="pods")
    assert got["metadata"]["labels"] == {"made": "by-admin"}
    (mesh,) = got["spec"]["initContainers"]
    assert (mesh["name"], mesh["imagePullPolicy"]) == ("mesh", "Always")         # defaults follow
    assert next(m["name"] for m in mesh["volumeMounts"]).startswith("kube-api-access-")    # and so do the plugins before it, once more
    assert got["spec"]["containers"][0]["name"] == "c"


async def test_mutating_policy_may_not_replace_what_is_atomic() -> None:
    c = Cluster()
    c.policy("mutating", "p", {"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {
        "expression": 'Object{spec: Object.spec{containers: [Object.spec.containers{name: "c", args: ["x"]}]}}'}}]})
    code, reason, message = await c.run({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
                                        resource="pods")
    assert (code, reason) == (403, "Invalid")
    assert message.startswith("policy 'p' with binding 'p' denied request: error applying patch: invalid ApplyConfiguration: "
                              "may not mutate atomic arrays, maps or structs: .spec.containers")


async def test_mutating_policies_are_asked_again() -> None:
    c = Cluster()
    append = '[JSONPatch{op: "add", path: "/data/seen", value: (has(object.data.b) ? "b" : "-")}]'
    c.policy("mutating", "a", {"reinvocationPolicy": "IfNeeded", "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": append}}]})
    c.policy("mutating", "b", {"mutations": [{"patchType": "JSONPatch", "jsonPatch": {
        "expression": '[JSONPatch{op: "add", path: "/data/b", value: has(object.data.b) ? "twice" : "once"}]'}}]})
    assert (await c.run(config(k="v")))["data"] == {"k": "v", "seen": "b", "b": "once"}


# --- webhooks ---

Answer = Callable[[Object], Object]


class Hook:
    """An HTTPS server that answers reviews."""

    def __init__(self, directory: Path, answer: Answer) -> None:
        self.asked: list[Object] = []
        self._directory, self._answer = directory, answer

    async def __aenter__(self) -> Hook:
        d = self._directory
        ca = pki.authority(d, "ca", "hooks")
        pki.serving(d, "hook", "hook", ["hook.n.svc"], ["127.0.0.1"], ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(d / "hook.crt", d / "hook.key")
        self.bundle = base64.b64encode(ca.cert).decode()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(next(line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")))
        review = orjson.loads(await reader.readexactly(length))
        self.asked.append(review["request"])
        response = {"uid": review["request"]["uid"], **self._answer(review["request"])}
        body = orjson.dumps({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    def configure(self, c: Cluster, kind: str, name: str = "h", **more: Any) -> None:
        hook = {"name": f"{name}.example.com", "clientConfig": {"url": f"https://127.0.0.1:{self.port}/ask", "caBundle": self.bundle},
                "rules": RULES, "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5, **more}
        c.add(f"{kind}webhookconfigurations.{CONFIG}", "", name, webhooks=[hook])


def patch(*operations: Object) -> Object:
    return {"allowed": True, "patchType": "JSONPatch", "patch": base64.b64encode(orjson.dumps(operations)).decode()}


async def test_validating_webhook(tmp_path: Path) -> None:
    def answer(request: Object) -> Object:
        if request["object"]["data"].get("k") == "bad":
            return {"allowed": False, "status": {"message": "bad k", "code": 403, "reason": "Forbidden"}, "warnings": ["careful"]}
        return {"allowed": True, "auditAnnotations": {"seen": "yes"}}
    async with Hook(tmp_path, answer) as hook:
        c = Cluster()
        hook.configure(c, "validating", matchConditions=[{"name": "n", "expression": "object.metadata.name != 'skip'"}])
        assert (await c.run(config(k="v")))["data"] == {"k": "v"}
        assert c.audit == {"h.example.com/seen": "yes"}
        (asked,) = hook.asked
        assert (asked["operation"], asked["resource"], asked["kind"]["kind"], asked["name"], asked["namespace"], asked["dryRun"]) == (
            "CREATE", {"group": "", "version": "v1", "resource": "configmaps"}, "ConfigMap", "a", "n", False)
        assert asked["object"]["apiVersion"] == "v1"
        assert asked["oldObject"] is None
        assert await c.run(config(k="bad")) == (403, "Forbidden", 'admission webhook "h.example.com" denied the request: bad k')
        assert c.warnings == ["careful"]
        await c.run(config("skip", k="bad"))
        assert len(hook.asked) == 2


async def test_mutating_webhook_and_the_second_pass(tmp_path: Path) -> None:
    def answer(request: Object) -> Object:
        return patch({"op": "add", "path": "/data/seen", "value": "late" if "late" in request["object"]["data"] else "early"},
                     {"op": "add", "path": "/unknown", "value": 1})
    async with Hook(tmp_path, answer) as hook:
        c = Cluster()
        hook.configure(c, "mutating", "a", reinvocationPolicy="IfNeeded")

        def late(request: Object) -> Object:
            return patch({"op": "add", "path": "/data/late", "value": "1"})
        async with Hook(tmp_path, late) as second:
            second.configure(c, "mutating", "b")
            got = await c.run(config(k="v"))
            assert got["data"] == {"k": "v", "late": "1", "seen": "late"}
            assert "unknown" not in got
            assert (len(hook.asked), len(second.asked)) == (2, 1)


async def test_a_webhook_that_cannot_be_asked(tmp_path: Path) -> None:
    async with Hook(tmp_path, lambda _: {"allowed": True}) as hook:
        c = Cluster()
        hook.configure(c, "validating", sideEffects="Some")
        assert await c.run(config(), dry_run=True) == (400, "BadRequest", 'admission webhook "h.example.com" does not support dry run')
    code, reason, message = await c.run(config())
    assert (code, reason) == (500, "InternalError")
    assert message == (f'Internal error occurred: failed calling webhook "h.example.com": failed to call webhook: Post '
                       f'"https://127.0.0.1:{hook.port}/ask?timeout=5s": dial tcp 127.0.0.1:{hook.port}: connect: connection refused')
    hook.configure(c, "validating", failurePolicy="Ignore")
    assert (await c.run(config()))["metadata"]["name"] == "a"
    assert c.audit == {"failed-open.validating.webhook.admission.k8s.io/round_0_index_0": "h.example.com"}


async def test_a_webhook_of_an_unknown_authority(tmp_path: Path) -> None:
    async with Hook(tmp_path, lambda _: {"allowed": True}) as hook:
        c = Cluster()
        hook.configure(c, "validating", clientConfig={"url": f"https://127.0.0.1:{hook.port}/ask"})
        _, _, message = await c.run(config())
        assert message.endswith("tls: failed to verify certificate: x509: certificate signed by unknown authority")


async def test_a_webhook_behind_a_service(tmp_path: Path) -> None:
    async with Hook(tmp_path, lambda _: {"allowed": False}) as hook:
        c = Cluster()
        service = {"name": "hook", "namespace": "n", "path": "/x", "port": 443}
        hook.configure(c, "validating", clientConfig={"service": service, "caBundle": hook.bundle})
        _, _, message = await c.run(config())
        assert message.endswith('Post "https://hook.n.svc:443/x?timeout=5s": service "hook" not found')
        c.add("services", "n", "hook", spec={"ports": [{"port": 443}]})
        _, _, message = await c.run(config())
        assert message.endswith('no endpoints available for service "hook"')
        c.add("endpointslices.discovery.k8s.io", "n", "hook", {"labels": {"kubernetes.io/service-name": "hook"}},
              ports=[{"name": "", "port": hook.port}], endpoints=[{"addresses": ["127.0.0.1"]}])
        assert await c.run(config()) == (400, "", 'admission webhook "h.example.com" denied the request without explanation')
