"""What is checked between a decision and its binding."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.model.request import User
from kubern.model.status import StatusError
from kubern.scheduler.bind import Binder
from kubern.scheduler.events import Speaker
from kubern.scheduler.pod import pod_info
from kubern.scheduler.profile import STANDARD
from kubern.scheduler.state import STORAGE, State
from kubern.store.memory import MemoryStore

CLAIM: dict[str, Any] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "default"}, "spec": {
    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeName": "v"}}
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {
    "containers": [{"name": "c", "image": "x"}], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    server = Server(MemoryStore(), settings=ApiSettings(authorization=False, bootstrap=False))
    await server.start()
    c = Client(server.handle, User("admin", ("system:masters", "system:authenticated")))
    await c.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    await c.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    yield c
    await server.stop()


async def test_a_claim_that_was_made_anew(client: Client) -> None:
    """The copy of the claims is behind: what the pod means is not what the decision saw."""
    bound = {**CLAIM, "metadata": {**CLAIM["metadata"], "annotations": {"pv.kubernetes.io/bind-completed": "yes"}}}
    first: Any = await client.create(bound)
    mirrors = Mirrors(client)
    for name in STORAGE:
        mirrors.mirror(name)
    claims = mirrors.mirror("persistentvolumeclaims")
    claims._replace([first], int(first["metadata"]["resourceVersion"]))
    binder = Binder(State(mirrors, time.time, STANDARD), client, Speaker(client, time.time, "here"), [])
    early = pod_info(await client.create(POD))
    await binder._same_claims(early)                               # newer than the copy, but the claim is the same
    await client.patch(claims.resource, "default", "data", {"metadata": {"finalizers": None}})
    await client.delete(claims.resource, "default", "data")
    late = pod_info({**early.pod, "metadata": {**early.pod["metadata"], "resourceVersion": "1000"}})
    for again in (False, True):
        if again:
            await client.create(CLAIM)
        with pytest.raises(StatusError, match="another than the pod was placed by") as e:
            await binder._same_claims(late)
        assert e.value.code == 409
