"""Autoscaling by every kind of metric, read through aggregated APIs from a TLS server behind an APIService."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from kubern import pki
from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.client.client import Client
from kubern.client.loop import run_controllers
from kubern.controllers import autoscaler
from kubern.model.rows import BUILT_IN
from kubern.store.memory import MemoryStore
from tests.controllers.conftest import ADMIN, pod

GROUPS = {"metrics.k8s.io": "v1beta1", "custom.metrics.k8s.io": "v1beta2", "external.metrics.k8s.io": "v1beta1"}
NOW = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def answer(target: str) -> Any:
    """What a metrics adapter says."""
    path, _, query = target.partition("?")
    parts = path.strip("/").split("/")
    whose = parse_qs(query).get("labelSelector", ["app=a"])[0].removeprefix("app=")
    pods = (f"{whose}-0", f"{whose}-1")
    if len(parts) == 3:
        return {"kind": "APIResourceList", "groupVersion": f"{parts[1]}/{parts[2]}", "resources": []}
    if parts[1] == "metrics.k8s.io":
        def usage(cpu: str) -> Any:
            return {"cpu": cpu, "memory": "10Mi"}
        return {"items": [{"metadata": {"name": n, "namespace": "default"}, "timestamp": NOW, "window": "15s", "containers": [
            {"name": "c", "usage": usage("200m")}, {"name": "sidecar", "usage": usage("0")}]} for n in pods]}
    if parts[1] == "external.metrics.k8s.io":
        assert parts[-1] == "queue" and "labelSelector=topic%3Djobs" in query
        return {"items": [{"metricName": "queue", "timestamp": NOW, "value": v} for v in ("100", "50")]}
    what = ({"kind": "Pod", "namespace": "default"}, pods) if "pods" in parts else ({"kind": "Service", "namespace": "default"}, ("web",))
    return {"items": [{"describedObject": {**what[0], "name": n}, "metric": {"name": parts[-1]}, "timestamp": NOW, "value": "30"} for n in what[1]]}


async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    out = json.dumps(answer(head.split(" ")[1])).encode()
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(out)}\r\n\r\n".encode() + out)
    await writer.drain()
    writer.close()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    front, ca = pki.authority(tmp_path, "front", "front"), pki.authority(tmp_path, "other", "other")
    proxy = pki.client(tmp_path, "front-proxy-client", "front-proxy-client", (), front)
    serving = pki.serving(tmp_path, "serving", "s", ["s.default.svc"], [], ca)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=front.cert.decode())
    context.load_cert_chain(serving.cert_path, serving.key_path)
    listening = await asyncio.start_server(backend, "127.0.0.1", 0, ssl=context)
    server = Server(MemoryStore(), settings=ApiSettings(authorization=False, bootstrap=False, proxy_client_cert=str(proxy.cert_path),
                                                        proxy_client_key=str(proxy.key_path)))
    await server.start()
    c = Client(server.handle, ADMIN)
    await c.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    await c.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}})
    await c.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "default"},
                    "spec": {"type": "ExternalName", "externalName": "localhost"}})
    for group, version in GROUPS.items():
        await c.create({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"{version}.{group}"}, "spec": {
            "group": group, "version": version, "groupPriorityMinimum": 10, "versionPriority": 10, "caBundle": base64.b64encode(ca.cert).decode(),
            "service": {"name": "s", "namespace": "default", "port": listening.sockets[0].getsockname()[1]}}})
    await _until(c, "apiservices.apiregistration.k8s.io", lambda o: all(
        any(x["type"] == "Available" and x["status"] == "True" for x in (a.get("status") or {}).get("conditions") or ()) for a in o))
    yield c
    await server.stop()
    listening.close()


async def _until(c: Client, resource: str, check: Any) -> list[Any]:
    async with asyncio.timeout(15):
        while True:
            found: list[Any] = (await c.list(BUILT_IN[resource]))[0]
            if check(found):
                return found
            await asyncio.sleep(0.02)


KINDS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {     # name -> metric, replicas it leads to from 2, what status says
    "resource": ({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}, 4,
                 {"name": "cpu", "current": {"averageUtilization": 100, "averageValue": "200m"}}),
    "container": ({"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c",
                                                                      "target": {"type": "AverageValue", "averageValue": "50m"}}}, 8,
                  {"name": "cpu", "container": "c", "current": {"averageValue": "200m"}}),
    "pods": ({"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}}, 6,
             {"metric": {"name": "rps"}, "current": {"averageValue": "30"}}),
    "object": ({"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
                                             "target": {"type": "Value", "value": "12"}}}, 5,
               {"metric": {"name": "hits"}, "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"}, "current": {"value": "30"}}),
    "external": ({"type": "External", "external": {"metric": {"name": "queue", "selector": {"matchLabels": {"topic": "jobs"}}},
                                                   "target": {"type": "AverageValue", "averageValue": "50"}}}, 3,
                 {"metric": {"name": "queue", "selector": {"matchLabels": {"topic": "jobs"}}}, "current": {"averageValue": "75"}}),
}


async def target(c: Client, name: str, labels: dict[str, str]) -> None:
    """A Deployment of two pods that are there and ready."""
    for pod_name in (f"{name}-0", f"{name}-1"):
        p = pod(pod_name, labels=labels)
        p["spec"]["containers"] = [{"name": n, "image": "x", "resources": {"requests": {"cpu": "100m"}}} for n in ("c", "sidecar")]
        made = await c.create({k: v for k, v in p.items() if k != "status"} | {"metadata": {"name": pod_name, "namespace": "default", "labels": labels}})
        status = {**p["status"], "startTime": "2020-01-01T00:00:00Z"}
        status["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]
        await c.update({**made, "status": status}, "status")
    await c.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}})
    await c.patch(BUILT_IN["deployments.apps"], "default", name, {"status": {"replicas": 2}}, subresource="status")


def hpa(name: str, metric: dict[str, Any], version: str = "apps/v1") -> dict[str, Any]:
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name, "namespace": "default"}, "spec": {
        "scaleTargetRef": {"apiVersion": version, "kind": "Deployment", "name": name}, "minReplicas": 1, "maxReplicas": 9, "metrics": [metric],
        "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 9, "periodSeconds": 15}]}}}}


async def test_every_kind_of_metric(client: Client) -> None:
    for name, (metric, _, _) in KINDS.items():
        await target(client, name, {"app": name})
        await client.create(hpa(name, metric, "apps/v1beta1" if name == "pods" else "apps/v1"))       # any version of the kind will do
    task = asyncio.create_task(run_controllers((replace(autoscaler.controller(), after_s=0.0),), lambda user, agent: client, clock=time.time))
    try:
        found = await _until(client, "horizontalpodautoscalers.autoscaling", lambda o: all((h.get("status") or {}).get("desiredReplicas") for h in o))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    for h in found:
        metric, wanted, told = KINDS[h["metadata"]["name"]]
        field = next(k for k in metric if k != "type")
        assert (h["status"]["desiredReplicas"], h["status"]["currentMetrics"]) == (wanted, [{"type": metric["type"], field: told}]), h["metadata"]["name"]
        conditions = {c["type"]: c["reason"] for c in h["status"]["conditions"]}
        assert conditions == {"AbleToScale": "SucceededRescale", "ScalingActive": "ValidMetricFound", "ScalingLimited": "DesiredWithinRange"}
    sizes = {d["metadata"]["name"]: d["spec"]["replicas"] for d in (await client.list(BUILT_IN["deployments.apps"]))[0]}
    assert sizes == {name: wanted for name, (_, wanted, _) in KINDS.items()}


async def test_two_autoscalers_of_the_same_pods(client: Client) -> None:
    """Neither knows what the other does: the second to look gives up."""
    for name in ("one", "two"):
        await target(client, name, {"app": "shared"})
        await client.create(hpa(name, KINDS["external"][0]))
    task = asyncio.create_task(run_controllers((replace(autoscaler.controller(), after_s=0.0),), lambda user, agent: client, clock=time.time))
    try:
        found = await _until(client, "horizontalpodautoscalers.autoscaling", lambda o: all((h.get("status") or {}).get("conditions") for h in o))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    told = [c["message"] for h in found for c in h["status"]["conditions"] if c["reason"] == "AmbiguousSelector"]
    assert told == ["pods by selector app=shared are controlled by multiple HPAs: [default/one default/two]"]
