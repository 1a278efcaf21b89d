"""Which container has which devices, cpus and claims: the gRPC service monitoring agents ask at ROOT/pod-resources/kubelet.sock.

Spec: KEP-606, KEP-2403, KEP-3695; podresources v1 (List, Get, GetAllocatableResources). Upstream: pkg/kubelet/apis/podresources.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Any

from kubern.kubelet import pods, proto
from kubern.kubelet.claims import NotPrepared, wanted_requests
from kubern.kubelet.configuration import cpu_list
from kubern.kubelet.memory import Block
from kubern.model.object import Object

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

MESSAGES: proto.Messages = {
    "Empty": (), "NumaNode": (("ID", 1, "int64"),), "Topology": (("nodes", 1, "NumaNode*"),),
    "Devices": (("resource_name", 1, "string"), ("device_ids", 2, "string*"), ("topology", 3, "Topology")),
    "Memory": (("memory_type", 1, "string"), ("size", 2, "uint64"), ("topology", 3, "Topology")), "Cdi": (("name", 1, "string"),),
    "ClaimResource": (("cdi_devices", 1, "Cdi*"), ("driver_name", 2, "string"), ("pool_name", 3, "string"), ("device_name", 4, "string"),
                      ("share_id", 5, "string")),
    "Dynamic": (("claim_name", 2, "string"), ("claim_namespace", 3, "string"), ("claim_resources", 4, "ClaimResource*")),
    "Container": (("name", 1, "string"), ("devices", 2, "Devices*"), ("cpu_ids", 3, "int64*"), ("memory", 4, "Memory*"), ("dynamic_resources", 5, "Dynamic*")),
    "Pod": (("name", 1, "string"), ("namespace", 2, "string"), ("containers", 3, "Container*")),
    "ListResponse": (("pod_resources", 1, "Pod*"),), "GetRequest": (("pod_name", 1, "string"), ("pod_namespace", 2, "string")),
    "GetResponse": (("pod_resources", 1, "Pod"),),
    "AllocatableResponse": (("devices", 1, "Devices*"), ("cpu_ids", 2, "int64*"), ("memory", 3, "Memory*")),
}


@cache
def classes() -> proto.Classes:
    return proto.define("kubern.podresources", MESSAGES)


def _container(k: Kubelet, pod: Object, c: dict[str, Any]) -> dict[str, Any]:
    m = pod["metadata"]
    out: dict[str, Any] = {"name": c["name"]}
    out["devices"] = [{"resource_name": r, "device_ids": [i]} for r, g in k.devices.grants.get(m["uid"], {}).get(c["name"], {}).items() for i in g.ids]
    if k.cpus is not None:
        own = k.cpus.taken.get(m["uid"], {}).get(c["name"])
        out["cpu_ids"] = sorted(own) if own else []
    dynamic = []
    try:
        wanted = list(wanted_requests(pod, c))
    except NotPrepared:
        wanted = []
    for name, _ in wanted:
        claim = k.claims.claims.get((m["namespace"], name))
        if claim is not None:
            dynamic.append({"claim_name": name, "claim_namespace": m["namespace"], "claim_resources": [
                {"cdi_devices": [{"name": x} for x in d.cdi], "driver_name": driver, "pool_name": d.pool, "device_name": d.name, "share_id": d.share}
                for driver, devices in claim.drivers.items() for d in devices]})
    out["dynamic_resources"] = dynamic
    if k.memory is not None:
        out["memory"] = [_memory(b) for b in k.memory.taken.get(m["uid"], {}).get(c["name"], ())]
    return out


def _memory(b: Block) -> dict[str, Any]:
    return {"memory_type": b.resource, "size": b.size, "topology": {"nodes": [{"ID": n} for n in b.nodes]}}


def _pod(k: Kubelet, pod: Object) -> dict[str, Any]:
    m = pod["metadata"]
    return {"name": m["name"], "namespace": m.get("namespace") or "", "containers": [
        _container(k, pod, c) for kind, c in pods.every_container(pod["spec"]) if kind == "container" or (kind == "init" and pods.is_sidecar(c))]}


async def serve(k: Kubelet) -> None:
    """Answers until cancelled."""
    c = classes()

    def asked(method: str) -> None:
        k.measures.count("pod_resources_endpoint_requests_total", "v1")
        k.measures.count(f"pod_resources_endpoint_requests_{method}", "v1")

    async def every(_: Any) -> Any:
        asked("list")
        return c["ListResponse"](pod_resources=[_pod(k, p) for p in k.active_pods()])

    async def one(request: Any) -> Any:
        asked("get")
        w = k.worker_of(request.pod_namespace, request.pod_name)
        if w is None:
            k.measures.count("pod_resources_endpoint_errors_get", "v1")
            raise LookupError(f"pod {request.pod_name} in namespace {request.pod_namespace} not found")
        return c["GetResponse"](pod_resources=_pod(k, w.pod))

    async def allocatable(_: Any) -> Any:
        asked("get_allocatable")
        devices = [{"resource_name": n, "device_ids": [i], "topology": {"nodes": [{"ID": x} for x in p.numa.get(i, ())]}}
                   for n, p in k.devices.plugins.items() for i, healthy in sorted(p.health.items()) if healthy]
        cpus = sorted(set(k.cpus.layout.cpus) - k.cpus.reserved) if k.cpus is not None else cpu_list("")
        return c["AllocatableResponse"](devices=devices, cpu_ids=cpus, memory=[_memory(b) for b in k.memory.allocatable()] if k.memory is not None else [])

    server = await proto.serve(f"{k.settings.root}/pod-resources/kubelet.sock", {"v1.PodResourcesLister": {
        "List": (c["Empty"], every), "Get": (c["GetRequest"], one), "GetAllocatableResources": (c["Empty"], allocatable)}})
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop(0.2)
