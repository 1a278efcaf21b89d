"""Who may write which part of a ResourceClaim's status."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from kubern.api.admission.claim_status import allocated_node, changed_drivers
from kubern.api.handle import MASTERS, Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request, User
from kubern.store.memory import MemoryStore

CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ON_NODE = {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}
ALLOCATION = {"devices": {"results": [{"request": "r", "driver": "a.example.com", "pool": "p", "device": "d"}]}, "nodeSelector": ON_NODE}
DEVICE = {"driver": "a.example.com", "pool": "p", "device": "d"}


def account(name: str, node: str = "") -> User:
    extra = {"authentication.kubernetes.io/node-name": (node,)} if node else {}
    return User(f"system:serviceaccount:default:{name}", ("system:serviceaccounts", "system:authenticated"), extra=extra)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    out = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await out.start()
    await ask(out, "POST", "/api/v1/namespaces", {"metadata": {"name": "default"}})
    claim = {"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "k"}}]}}}
    assert (await ask(out, "POST", CLAIMS, claim))[0] == 201
    yield out
    await out.stop()


async def ask(server: Server, method: str, path: str, body: Any, user: User = MASTERS) -> tuple[int, Any]:
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    response = await server.handle(Request(method, path, {}, {"content-type": kind}, orjson.dumps(body), user=user))
    return response.status, orjson.loads(response.body if isinstance(response.body, bytes) else b"".join(response.body))  # type: ignore[arg-type]


async def allow(server: Server, name: str, *rules: tuple[list[str], list[str], list[str]]) -> None:
    role = {"metadata": {"name": name}, "rules": [{"verbs": v, "apiGroups": ["resource.k8s.io"], "resources": r, **({"resourceNames": n} if n else {})}
                                                  for v, r, n in rules]}
    assert (await ask(server, "POST", f"{RBAC}/clusterroles", role))[0] == 201
    binding = {"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
               "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": name}]}
    assert (await ask(server, "POST", f"{RBAC}/clusterrolebindings", binding))[0] == 201


async def write(server: Server, status: Any, user: User) -> tuple[int, Any]:
    return await ask(server, "PATCH", f"{CLAIMS}/c/status", {"status": status}, user)


async def test_allocation_needs_binding(server: Server) -> None:
    await allow(server, "plain", (["patch"], ["resourceclaims/status"], []))
    code, said = await write(server, {"allocation": ALLOCATION}, account("plain"))
    assert code == 422 and said["details"]["causes"][0]["field"] == "status.allocation"
    assert 'requires resource="resourceclaims/binding", verb="patch" permission: resourceclaims.resource.k8s.io is forbidden' in said["message"]
    await allow(server, "scheduler", (["patch"], ["resourceclaims/status", "resourceclaims/binding"], []))
    assert (await write(server, {"allocation": ALLOCATION}, account("scheduler")))[0] == 200
    assert (await write(server, {"allocation": ALLOCATION}, account("plain")))[0] == 200      # nothing changes


async def test_each_driver_writes_its_own(server: Server) -> None:
    assert (await write(server, {"allocation": ALLOCATION}, MASTERS))[0] == 200
    status = (["patch"], ["resourceclaims/status"], [])
    await allow(server, "plain", status)
    await allow(server, "near", status, (["associated-node:patch"], ["resourceclaims/driver"], ["a.example.com"]))
    await allow(server, "far", status, (["arbitrary-node:patch"], ["resourceclaims/driver"], ["a.example.com"]))
    await allow(server, "other", status, (["arbitrary-node:patch"], ["resourceclaims/driver"], ["b.example.com"]))

    async def report(user: User, ready: str) -> tuple[int, Any]:
        condition = {"type": "Ready", "status": ready, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        return await write(server, {"devices": [{**DEVICE, "conditions": [condition]}]}, user)
    for user in (account("plain"), account("near"), account("near", "n2"), account("other")):
        code, said = await report(user, "True")
        assert code == 422 and said["details"]["causes"][0]["field"] == "status.devices", user
    assert 'verb="[arbitrary-node:patch]"' in said["message"]
    assert (await report(account("near", "n1"), "True"))[0] == 200
    assert (await report(account("far"), "False"))[0] == 200


def test_what_changed() -> None:
    other = {"driver": "b", "pool": "p", "device": "d"}
    assert changed_drivers({"devices": [DEVICE, other]}, {"devices": [{**DEVICE, "data": {}}, other]}) == ["a.example.com"]
    assert changed_drivers({}, {"devices": [other, DEVICE]}) == ["a.example.com", "b"] and changed_drivers({"devices": [other]}, {"devices": [other]}) == []
    assert allocated_node({"nodeSelector": ON_NODE}) == "n1" and allocated_node({}) == ""
    assert allocated_node({"nodeSelector": {"nodeSelectorTerms": ON_NODE["nodeSelectorTerms"] * 2}}) == ""
