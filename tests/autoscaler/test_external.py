"""The externalgrpc protocol against a small service of the test's own, and what surrounds it: expanders, devices of nodes that are not there yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kubern.autoscaler.external import SERVICE, Config, External, messages, parse_config
from kubern.autoscaler.groups import external, parse_group, parse_groups
from kubern.autoscaler.options import BadGroup, parse_options
from kubern.autoscaler.run import Autoscaler
from kubern.client.client import Client
from kubern.model.protobuf import definition_for, message
from kubern.scheduler.grow import Option, Size, expander
from tests.autoscaler.test_run import FAST, NODE, POD, api, names, pod, reasons, scaling, until


class Cloud:
    """A cloud with one group, "pool": its machines become Nodes with names of their own."""

    def __init__(self, low: int = 0, high: int = 3) -> None:
        self.client: Client | None = None
        self.low, self.high, self.target, self.made = low, high, 0, 0
        self.running: dict[str, str] = {}              # providerID -> node
        self.calls: list[str] = []
        self.unneeded_s: int | None = None             # the group's own, where it has one
        self.told: Any = None
        self.node = {"metadata": {"name": "any", "labels": {"kubernetes.io/os": "linux", "pool": "yes"}},
                     "status": {"capacity": {"cpu": "2", "memory": "4Gi", "pods": "10"}, "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}}
        self.slices: list[dict[str, Any]] = []

    async def answer(self, method: str, request: Any) -> Any:
        m, self.calls = messages(), [*self.calls, method]
        fields: dict[str, Any] = {}
        if method == "NodeGroups":
            fields = {"nodeGroups": [m["NodeGroup"](id="pool", minSize=self.low, maxSize=self.high)]}
        elif method == "NodeGroupForNode":
            fields = {"nodeGroup": m["NodeGroup"](id="pool" if request.node.providerID in self.running else "")}
        elif method == "NodeGroupNodes":
            fields = {"instances": [m["Instance"](id=i) for i in self.running]}
        elif method == "NodeGroupTemplateNodeInfo":
            fields = {"nodeBytes": bytes(message(self.node, definition_for("v1", "Node"))),
                      "resourceSliceBytes": [bytes(message(s, definition_for("resource.k8s.io/v1", "ResourceSlice"))) for s in self.slices]}
        elif method == "NodeGroupGetOptions" and self.unneeded_s is not None:
            self.told = request.defaults
            o = m["NodeGroupAutoscalingOptions"](scaleDownUtilizationThreshold=0.9, scaleDownUnneededDuration=m["Duration"](seconds=self.unneeded_s))
            return m["NodeGroupAutoscalingOptionsResponse"](nodeGroupAutoscalingOptions=o)
        elif method == "NodeGroupGetOptions":
            return m["NodeGroupAutoscalingOptionsResponse"]()
        elif method == "NodeGroupIncreaseSize":
            self.target += request.delta
            for _ in range(request.delta):
                self.made += 1
                await self.boot(f"cloud://{self.made}", f"machine-{self.made}")
        elif method == "NodeGroupDeleteNodes":
            for n in request.nodes:
                self.running.pop(n.providerID)
                self.target -= 1
        elif method == "NodeGroupDecreaseTargetSize":
            self.target += request.delta
        return m[f"{method}Response"](**fields)

    async def boot(self, instance: str, name: str) -> None:
        self.running[instance] = name
        assert self.client is not None
        await self.client.create({"apiVersion": "v1", "kind": "Node", "metadata": {**self.node["metadata"], "name": name}, "spec": {"providerID": instance},
                                  "status": {**self.node["status"], "conditions": [{"type": "Ready", "status": "True"}]}})
        await self.client.patch(NODE, "", name, {"spec": {"taints": None}})


@asynccontextmanager
async def served(cloud: Cloud) -> AsyncIterator[str]:
    import grpc
    import grpc.aio

    def handler(method: str) -> Any:
        async def run(request: Any, context: Any) -> Any:
            return await cloud.answer(method, request)
        stem = "NodeGroupAutoscalingOptions" if method == "NodeGroupGetOptions" else method
        return grpc.unary_unary_rpc_method_handler(run, messages()[f"{stem}Request"].FromString, lambda x: x.SerializeToString())
    methods = [n.removesuffix("Request").replace("AutoscalingOptions", "GetOptions") for n in messages() if n.endswith("Request")]
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.strip("/"), {n: handler(n) for n in methods}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def cluster(cloud: Cloud, timings: str = FAST) -> AsyncIterator[tuple[Client, Autoscaler]]:
    async with api() as cloud.client, served(cloud) as address:
        provider = External(Config(address), parse_options(timings))
        async with scaling(cloud.client, provider, [], timings) as scaler:
            yield cloud.client, scaler
        assert provider._channel is None                # closed with the autoscaler, and ready to be opened again
        assert cloud.calls[-1] == "Cleanup"


async def test_a_cloud_grows_and_shrinks() -> None:
    cloud = Cloud()
    async with cluster(cloud) as (client, scaler):
        for i in range(2):
            await client.create(pod(f"p{i}", "1500m"))

        async def placed() -> bool:
            return all(p["spec"].get("nodeName") for p in (await client.list(POD))[0])
        await until(placed, "all pods have a node")
        assert await names(client) == ["machine-1", "machine-2"] and cloud.calls.count("NodeGroupIncreaseSize") == 1
        await until(lambda: _no(scaler.requested), "the requests came true under other names")
        for i in range(2):
            await client.delete(POD, "work", f"p{i}", grace_s=0)
        await until(lambda: _no(cloud.running), "the cloud is empty")
        assert cloud.target == 0 and cloud.calls.count("NodeGroupDeleteNodes") == 2
        await until(lambda: _none(client), "the nodes are gone")
        assert {"TriggeredScaleUp", "ScaleDown", "ScaledUpGroup"} <= await reasons(client)


async def _no(things: Any) -> bool:
    return not things


async def _none(client: Client) -> bool:
    return not await names(client)


async def test_devices_come_with_the_nodes_that_have_them() -> None:
    cloud = Cloud()
    pool = {"name": "gpus", "generation": 1, "resourceSliceCount": 1}
    cloud.slices = [{"metadata": {"name": "gpus"}, "spec": {"driver": "d", "nodeName": "any", "pool": pool,
                                                            "devices": [{"name": "gpu-0"}, {"name": "gpu-1"}]}}]
    async with cluster(cloud) as (client, _):
        await client.create({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu"}, "spec": {}})
        for i in range(3):
            await client.create({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": f"c{i}", "namespace": "work"}, "spec": {
                "devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}}})
            p = pod(f"p{i}", "100m")
            p["spec"]["resourceClaims"] = [{"name": "g", "resourceClaimName": f"c{i}"}]
            await client.create(p)

        async def grown() -> bool:
            return cloud.target >= 2
        await until(grown, "two machines for three devices, two on each")
        assert cloud.target == 2


async def test_a_group_has_options_of_its_own() -> None:
    cloud = Cloud()
    cloud.unneeded_s = 7
    async with cluster(cloud, FAST + ",max-node-provision-time=90s") as (_, scaler):
        await until(lambda: _seen(cloud, "NodeGroupGetOptions"), "the service is asked")
        await until(lambda: _no(not scaler.groups), "groups are known")
        own = scaler._options("pool")
        assert (own.scale_down_utilization_threshold, own.scale_down_unneeded_time_s, own.max_node_provision_time_s) == (0.9, 7.0, 90.0)
        assert (cloud.told.MaxNodeProvisionDuration.seconds, cloud.told.scaleDownUnneededDuration.nanos) == (90, 200_000_000)
        assert scaler._options("another").scale_down_utilization_threshold == 0.5


class Slow(Cloud):
    """Promises machines that never come."""

    async def boot(self, instance: str, name: str) -> None:
        return None


async def test_what_never_comes_is_taken_back() -> None:
    cloud = Slow()
    async with cluster(cloud, FAST + ",max-node-provision-time=300ms") as (client, scaler):
        await client.create(pod("p", "1"))
        await until(lambda: _seen(cloud, "NodeGroupDecreaseTargetSize"), "the target is lowered again")
        assert cloud.target == 0 and "pool" in scaler.backoff


async def _seen(cloud: Cloud, method: str) -> bool:
    return method in cloud.calls


@pytest.mark.parametrize(("text", "words"), [
    ("{}", "must have an address"), ("[", "externalgrpc: "), ("{address: x, port: 1}", "there is no 'port'"),
    ("{address: x, cert: y}", "cert and key go together"),
    ("{address: x, grpc_timeout: soon}", "a duration is"),
])
def test_cloud_config_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(BadGroup) as e:
        parse_config(text)
    assert words in str(e.value)


def test_the_setting() -> None:
    assert external("externalgrpc=/etc/cloud") == "/etc/cloud" == external('["externalgrpc=/etc/cloud"]')
    assert parse_groups("externalgrpc=/etc/cloud") == () and external("name=a") == ""
    with pytest.raises(BadGroup):
        external('["externalgrpc=/etc/cloud", "name=a"]')
    assert parse_config("{address: 'h:1', grpc_timeout: 3s}") == Config("h:1", timeout_s=3.0)


def test_expanders_choose() -> None:
    def option(name: str, nodes: int, pods: int, waste: float) -> Option:
        return Option(Size(parse_group(f"name={name}"), 0), nodes, (None,) * pods, waste)        # type: ignore[arg-type]
    options = [option("big", 1, 2, 0.9), option("small", 3, 3, 0.2), option("mid", 2, 3, 0.5)]
    for names_, wanted in (("least-waste", "small"), ("least-nodes", "big"), ("most-pods", "small"), ("most-pods+least-nodes", "mid"), ("random", "mid")):
        assert expander(names_, random=lambda n: n - 1)(options).size.group.name == wanted
    priorities = {10: ["^mid$"], 20: ["big"], 1: [".*"]}
    assert expander("priority", priorities)(options).size.group.name == "big"
    assert parse_options("expander=priority+least-waste").expander == "priority+least-waste"
    with pytest.raises(BadGroup):
        parse_options("expander=price")
