"""External: node groups of a cloud, sized through upstream's externalgrpc protocol (cluster-autoscaler, cloudprovider/externalgrpc).

The service knows the groups and which node belongs to which; nodes are asked for by number, not by name, so a request keeps a stand-in name until
its instance registers as a Node. Configured by the file upstream calls cloud config: address, cacert, cert, key, grpc_timeout.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from kubern.autoscaler.options import BadGroup, Options, seconds
from kubern.model.object import Object, meta
from kubern.model.protobuf import definition_for, read
from kubern.scheduler.grow import Group

log = logging.getLogger(__name__)

PACKAGE = "clusterautoscaler.cloudprovider.v1.externalgrpc"
SERVICE = f"/{PACKAGE}.CloudProvider/"
TIMEOUT_S = 5.0
DELETING = 3                                          # of InstanceStatus.instanceState
MESSAGES = {
    "NodeGroup": (("id", 1, "string"), ("minSize", 2, "int32"), ("maxSize", 3, "int32"), ("debug", 4, "string")),
    "ExternalGrpcNode": (("providerID", 1, "string"), ("name", 2, "string"), ("labels", 3, "map"), ("annotations", 4, "map")),
    "NodeGroupsRequest": (),
    "NodeGroupsResponse": (("nodeGroups", 1, "NodeGroup*"),),
    "NodeGroupForNodeRequest": (("node", 1, "ExternalGrpcNode"),),
    "NodeGroupForNodeResponse": (("nodeGroup", 1, "NodeGroup"),),
    "CleanupRequest": (),
    "CleanupResponse": (),
    "RefreshRequest": (),
    "RefreshResponse": (),
    "NodeGroupTargetSizeRequest": (("id", 1, "string"),),
    "NodeGroupTargetSizeResponse": (("targetSize", 1, "int32"),),
    "NodeGroupIncreaseSizeRequest": (("delta", 1, "int32"), ("id", 2, "string")),
    "NodeGroupIncreaseSizeResponse": (),
    "NodeGroupDeleteNodesRequest": (("nodes", 1, "ExternalGrpcNode*"), ("id", 2, "string")),
    "NodeGroupDeleteNodesResponse": (),
    "NodeGroupDecreaseTargetSizeRequest": (("delta", 1, "int32"), ("id", 2, "string")),
    "NodeGroupDecreaseTargetSizeResponse": (),
    "NodeGroupNodesRequest": (("id", 1, "string"),),
    "NodeGroupNodesResponse": (("instances", 1, "Instance*"),),
    "InstanceErrorInfo": (("errorCode", 1, "string"), ("errorMessage", 2, "string"), ("instanceErrorClass", 3, "int32")),
    "InstanceStatus": (("instanceState", 1, "int32"), ("errorInfo", 2, "InstanceErrorInfo")),
    "Instance": (("id", 1, "string"), ("status", 2, "InstanceStatus")),
    "NodeGroupTemplateNodeInfoRequest": (("id", 1, "string"),),
    "NodeGroupTemplateNodeInfoResponse": (("nodeBytes", 2, "bytes"), ("resourceSliceBytes", 3, "bytes*")),
    "Duration": (("seconds", 1, "int64"), ("nanos", 2, "int32")),          # google.protobuf.Duration: the same on the wire
    "NodeGroupAutoscalingOptions": (
        ("scaleDownUtilizationThreshold", 1, "double"), ("scaleDownGpuUtilizationThreshold", 2, "double"), ("zeroOrMaxNodeScaling", 6, "bool"),
        ("ignoreDaemonSetsUtilization", 7, "bool"), ("scaleDownUnneededDuration", 8, "Duration"), ("scaleDownUnreadyDuration", 9, "Duration"),
        ("MaxNodeProvisionDuration", 10, "Duration")),
    "NodeGroupAutoscalingOptionsRequest": (("id", 1, "string"), ("defaults", 2, "NodeGroupAutoscalingOptions")),
    "NodeGroupAutoscalingOptionsResponse": (("nodeGroupAutoscalingOptions", 1, "NodeGroupAutoscalingOptions"),),
}
DURATIONS = {"scaleDownUnneededDuration": "scale_down_unneeded_time_s", "scaleDownUnreadyDuration": "scale_down_unready_time_s",
             "MaxNodeProvisionDuration": "max_node_provision_time_s"}


@cache
def messages() -> Mapping[str, Any]:
    from kubern.kubelet.proto import define

    return define(PACKAGE, MESSAGES)


@dataclass(frozen=True, slots=True)
class Config:
    address: str
    cacert: str = ""
    cert: str = ""
    key: str = ""
    timeout_s: float = TIMEOUT_S


def parse_config(text: str) -> Config:
    """Upstream's cloud config, YAML. Raises BadGroup."""
    import yaml

    try:
        doc = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise BadGroup(f"externalgrpc: {e}") from None
    if not isinstance(doc, Mapping) or not doc.get("address"):
        raise BadGroup("externalgrpc: the configuration must have an address, HOST:PORT")
    if unknown := set(doc) - {"address", "cacert", "cert", "key", "grpc_timeout"}:
        raise BadGroup(f"externalgrpc: there is no {min(unknown)!r}; known are address, cacert, cert, key, grpc_timeout")
    if bool(doc.get("cert")) != bool(doc.get("key")):
        raise BadGroup("externalgrpc: cert and key go together")
    files = {k: str(doc.get(k) or "") for k in ("cacert", "cert", "key")}
    return Config(str(doc["address"]), files["cacert"], files["cert"], files["key"], seconds(str(doc.get("grpc_timeout") or f"{TIMEOUT_S}s")))


def read_config(path: str) -> Config:
    """Raises OSError or BadGroup."""
    return parse_config(Path(path).read_text())


class External:
    """The provider over the service. `refresh` asks it everything once a scan; the rest answers from that. `defaults`: options of groups without own."""

    def __init__(self, config: Config, defaults: Options | None = None) -> None:
        self.config, self.defaults = config, defaults or Options()
        self._channel: Any = None
        self._groups: dict[str, Group] = {}
        self._instances: dict[str, str] = {}          # providerID -> group, of those that are not being deleted
        self._names: dict[str, str] = {}              # providerID -> name of its Node
        self._of_node: dict[str, str] = {}            # node -> group, "" for none
        self._nodes: dict[str, Object] = {}
        self._own: dict[str, dict[str, Any]] = {}     # group -> options that are its own
        self._templates: dict[str, tuple[Object, list[Object]]] = {}
        self._waiting: dict[str, tuple[str, str]] = {}     # stand-in -> (group, providerID once there is one)
        self._named: dict[str, str] = {}              # stand-in -> node, since the last look

    # --- the service ---------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        import grpc
        import grpc.aio

        c = self.config
        if not (c.cacert or c.cert):
            return grpc.aio.insecure_channel(c.address)
        parts = [Path(f).read_bytes() if f else None for f in (c.cacert, c.key, c.cert)]
        return grpc.aio.secure_channel(c.address, grpc.ssl_channel_credentials(*parts))

    async def _call(self, method: str, *, message: str = "", **fields: Any) -> Any:
        """`message`: the stem of the messages' names where it is not the method's."""
        if self._channel is None:
            self._channel = self._open()
        m = messages()
        call = self._channel.unary_unary(SERVICE + method, request_serializer=lambda x: x.SerializeToString(),
                                         response_deserializer=m[f"{message or method}Response"].FromString)
        from grpc import RpcError

        try:
            return await call(m[f"{message or method}Request"](**fields), timeout=self.config.timeout_s)
        except RpcError as e:
            raise OSError(f"{method}: {e.code().name}: {e.details()}") from None

    async def close(self) -> None:
        channel = self._channel
        if channel is not None:
            try:
                await self._call("Cleanup")
            except Exception as e:
                log.debug("cleanup: %s", e)
            finally:
                self._channel = None
                await channel.close()

    async def refresh(self, nodes: Iterable[Object]) -> Sequence[Group]:
        """Look at groups, instances and who is who. Raises OSError."""
        await self._call("Refresh")
        self._nodes = {meta(n)["name"]: n for n in nodes}
        self._groups = {g.id: Group(g.id, g.minSize, g.maxSize) for g in (await self._call("NodeGroups")).nodeGroups}
        self._of_node = {n: g for n, g in self._of_node.items() if n in self._nodes}
        for name, node in self._nodes.items():
            if name not in self._of_node:
                self._of_node[name] = (await self._call("NodeGroupForNode", node=_node(node))).nodeGroup.id
        instances: dict[str, str] = {}
        for g in self._groups:
            for i in (await self._call("NodeGroupNodes", id=g)).instances:
                if i.status.instanceState != DELETING:
                    instances[i.id] = g
        self._names = {(n.get("spec") or {}).get("providerID") or "": name for name, n in self._nodes.items()}
        self._match(instances)
        self._instances = instances
        self._own = {g: await self._own_options(g) for g in self._groups}
        for g in self._groups:
            if g not in self._templates:
                self._templates[g] = await self._template(g)
        return list(self._groups.values())

    def _match(self, instances: Mapping[str, str]) -> None:
        """Give instances that are new to the requests that wait for them, and name those that have registered."""
        held = {i for _, i in self._waiting.values()}
        fresh = [i for i in instances if i not in self._instances and i not in held]
        for stand_in, (group, instance) in list(self._waiting.items()):
            if not instance:
                found = next((i for i in fresh if instances[i] == group), "")
                if found:
                    fresh.remove(found)
                    self._waiting[stand_in] = (group, found)
                    instance = found
            if instance and instance in self._names:
                self._named[stand_in] = self._names[instance]
                del self._waiting[stand_in]

    async def _template(self, group: str) -> tuple[Object, list[Object]]:
        """(the Node a new one would be, its ResourceSlices); empty where the service does not say."""
        try:
            found = await self._call("NodeGroupTemplateNodeInfo", id=group)
        except Exception as e:
            log.debug("template of %s: %s", group, e)
            return {}, []
        slices = [read(b, definition_for("resource.k8s.io/v1", "ResourceSlice")) for b in found.resourceSliceBytes]
        return (read(found.nodeBytes, definition_for("v1", "Node")) if found.nodeBytes else {}), slices

    async def _own_options(self, group: str) -> dict[str, Any]:
        """What the service would have otherwise than the defaults it is told."""
        d, m = self.defaults, messages()
        told = m["NodeGroupAutoscalingOptions"](
            scaleDownUtilizationThreshold=d.scale_down_utilization_threshold, scaleDownGpuUtilizationThreshold=d.scale_down_utilization_threshold,
            ignoreDaemonSetsUtilization=d.ignore_daemonsets_utilization,
            **{field: m["Duration"](seconds=int(getattr(d, name)), nanos=round(getattr(d, name) % 1 * 1e9)) for field, name in DURATIONS.items()})
        try:
            found = await self._call("NodeGroupGetOptions", message="NodeGroupAutoscalingOptions", id=group, defaults=told)
        except OSError as e:
            log.debug("options of %s: %s", group, e)
            return self._own.get(group, {})
        if not found.HasField("nodeGroupAutoscalingOptions"):
            return {}
        o = found.nodeGroupAutoscalingOptions
        times = {name: getattr(o, field).seconds + getattr(o, field).nanos / 1e9 for field, name in DURATIONS.items() if o.HasField(field)}
        return {"scale_down_utilization_threshold": o.scaleDownUtilizationThreshold, "ignore_daemonsets_utilization": o.ignoreDaemonSetsUtilization, **times}

    # --- the provider ---------------------------------------------------------------------------------------------------

    def instances(self) -> set[str]:
        """Nodes by name; an instance that no request waits for by its id until it registers."""
        held = {i for _, i in self._waiting.values()}
        return {self._names.get(i, i) for i in self._instances if i not in held} | set(self._waiting)

    def group_of(self, name: str) -> str:
        if name in self._waiting:
            return self._waiting[name][0]
        return self._of_node.get(name) or self._instances.get(name, "")

    def renamed(self) -> dict[str, str]:
        out, self._named = self._named, {}
        return out

    def options(self, group: Group, defaults: Options) -> Options:
        return replace(defaults, **self._own.get(group.name, {}))

    def room(self, group: Group) -> Mapping[str, str]:
        return {}

    def template(self, group: Group) -> tuple[Object, list[Object]]:
        return self._templates.get(group.name, ({}, []))

    async def create(self, group: Group, names: Sequence[str]) -> dict[str, str]:
        await self._call("NodeGroupIncreaseSize", id=group.name, delta=len(names))
        self._waiting |= dict.fromkeys(names, (group.name, ""))
        return {}

    async def delete(self, name: str) -> None:
        group, instance = self._waiting.pop(name, (self.group_of(name), ""))
        if name not in self._nodes and not instance and name not in self._instances:
            await self._call("NodeGroupDecreaseTargetSize", id=group, delta=-1)          # nothing was made yet
            return
        node = self._nodes.get(name) or {"metadata": {"name": instance or name}, "spec": {"providerID": instance or name}}
        await self._call("NodeGroupDeleteNodes", id=group, nodes=[_node(node)])
        self._instances.pop((node.get("spec") or {}).get("providerID") or "", None)

    async def adopt(self, group: Group, name: str) -> None:
        await asyncio.sleep(0)                                # the service knows its own


def _node(node: Object) -> Any:
    m = meta(node)
    return messages()["ExternalGrpcNode"](providerID=(node.get("spec") or {}).get("providerID") or "", name=m.get("name") or "",
                                          labels=m.get("labels") or {}, annotations=m.get("annotations") or {})
