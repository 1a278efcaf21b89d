"""What is checked between a decision and its binding."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.model.request import Response, User
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.scheduler.bind import Binder
from kubern.scheduler.events import Speaker
from kubern.scheduler.pick import Decision
from kubern.scheduler.pod import pod_info
from kubern.scheduler.profile import STANDARD
from kubern.scheduler.refuse import Refusals
from kubern.scheduler.state import READS, STORAGE, State
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
    state, speaker = State(mirrors, time.time, STANDARD), Speaker(client, time.time, "here")
    binder = Binder(state, client, speaker, [], Refusals(state, client, speaker, [], lambda n: 0).failed)
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


async def test_a_binding_that_fails_is_told_and_tried_again(client: Client) -> None:
    async def send(request: Any) -> Any:
        if request.path.endswith("/binding"):
            raise OSError("broken pipe")
        if request.path.endswith("/pods/p") and request.method == "GET":       # was it bound after all?
            return Response(200, [], orjson.dumps(made))
        return await client.send(request)
    row = by_kind["v1", "Pod"]
    made = await client.create({**POD, "spec": {"containers": POD["spec"]["containers"]}})
    await client.patch(row, "default", "p", {"status": {"nominatedNodeName": "n"}}, subresource="status")
    made = await client.get(row, "default", "p")
    broken, mirrors = Client(send, client.user), Mirrors(client)
    for name in READS:
        mirrors.mirror(name)
    state, speaker = State(mirrors, time.time, STANDARD), Speaker(client, time.time, "here")
    state.table.set_node({"metadata": {"name": "n"}, "status": {"allocatable": {"pods": "1"}}})
    state.on_pod(None, made)
    queued = state.queue.pop(time.time())
    assert queued is not None and state.nominated.node_of(("default", "p")) == "n"
    binder = Binder(state, broken, speaker, [], Refusals(state, client, speaker, [], lambda n: 0).failed)
    await binder.assume(queued, Decision("n", 0))
    status = (await client.get(row, "default", "p"))["status"]
    told = next(c for c in status["conditions"] if c["type"] == "PodScheduled")
    assert (told["status"], told["reason"]) == ("False", "SchedulerError")
    assert told["message"].startswith('running Bind plugin "DefaultBinder": ') and told["message"].endswith("broken pipe")
    assert "nominatedNodeName" not in status and not state.table.placed and state.queue.next_s() is not None
