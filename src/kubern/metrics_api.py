"""metrics.k8s.io/v1beta1: what `kubectl top` and the horizontal autoscaler read, gathered from the kubelets' /stats/summary.

`MetricsApi.handle` answers requests below /apis/metrics.k8s.io in process; authorization is its caller's. Samples are at most FRESH_S old; a node
that does not answer is left out, as its metrics would be elsewhere. It holds no history. Upstream: k8s.io/metrics v1beta1, metrics-server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from kubern.client.client import Client, read_body
from kubern.client.http import HttpSender
from kubern.model.object import Object
from kubern.model.request import Request, Response, User
from kubern.model.resource import Resource
from kubern.model.resources import by_path
from kubern.model.selector import parse_labels
from kubern.model.status import StatusError, not_found

log = logging.getLogger(__name__)

GROUP, VERSION = "metrics.k8s.io", "v1beta1"
GROUP_VERSION = f"{GROUP}/{VERSION}"
PREFIX = f"/apis/{GROUP}"
FRESH_S, ASK_TIMEOUT_S, ASK_AT_ONCE = 10.0, 5.0, 16
WINDOW = "10s"
NODES, PODS = by_path["", "v1", "nodes"], by_path["", "v1", "pods"]
API_SERVICES = by_path["apiregistration.k8s.io", "v1", "apiservices"]
RESOURCES = [
    {"name": "nodes", "singularName": "", "namespaced": False, "kind": "NodeMetrics", "verbs": ["get", "list"]},
    {"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]},
]
API_SERVICE: Object = {
    "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"{VERSION}.{GROUP}"},
    "spec": {"group": GROUP, "version": VERSION, "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": True,
             "service": {"namespace": "kube-system", "name": "metrics-server", "port": 443}},
}
ROWS = [Resource(GROUP, VERSION, "nodes", "NodeMetrics", namespaced=False, verbs=("get", "list"), custom=True),
        Resource(GROUP, VERSION, "pods", "PodMetrics", verbs=("get", "list"), custom=True)]
AVAILABLE = {"type": "Available", "status": "True", "reason": "Passed", "message": "all checks passed"}

Path = Callable[[Request, User], Awaitable[Response]]


class MetricsApi:
    """`client` lists nodes and pods; `cert` and `key` (PEM) are what kubelets accept."""

    def __init__(self, client: Client, cert: bytes, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self.client, self.clock = client, clock
        self._cert, self._key = cert, key
        self._senders: dict[tuple[str, int], HttpSender] = {}
        self._summaries: dict[str, dict[str, Any]] = {}          # node -> Summary
        self._taken = 0.0
        self._lock = asyncio.Lock()

    async def handle(self, request: Request) -> Response:
        try:
            return _json(await self._answer(request))
        except StatusError as e:
            return _json(e.status(), e.code)

    async def mount(self, paths: dict[str, Path], rows: dict[tuple[str, str], list[Resource]]) -> None:
        """Takes its place in an API server's tables of further paths and rows, and makes its APIService, so that discovery lists the group."""
        others = paths.get("aggregate")
        rows[GROUP, VERSION] = ROWS

        async def serve(request: Request, user: User) -> Response:
            if request.path == PREFIX or request.path.startswith(PREFIX + "/"):
                return await self.handle(request)
            if others is None:
                return Response(404, [("Content-Type", "text/plain; charset=utf-8")], b"404 page not found\n")
            return await others(request, user)

        paths["aggregate"] = paths[PREFIX] = paths[f"{PREFIX}/{VERSION}"] = serve
        try:
            await self.client.create(API_SERVICE)
        except StatusError as e:
            if e.code != 409:
                log.warning("registering %s: %s", GROUP, e.message)
                return
        t = stamp(self.clock())
        await self.client.patch(API_SERVICES, "", f"{VERSION}.{GROUP}", {"status": {"conditions": [{**AVAILABLE, "lastTransitionTime": t}]}},
                                "merge", subresource="status")

    async def _answer(self, r: Request) -> Object:
        if r.method not in ("GET", "HEAD"):
            raise StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        parts = r.path[len(PREFIX):].strip("/").split("/")
        if parts == [""]:
            version = {"groupVersion": GROUP_VERSION, "version": VERSION}
            return {"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version}
        if parts == [VERSION]:
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION, "resources": RESOURCES}
        if parts[0] == VERSION:
            if parts[1] == "nodes" and len(parts) <= 3:
                return await self._nodes(r, parts[2] if len(parts) == 3 else "")
            if parts[1] == "pods" and len(parts) == 2:
                return await self._pods(r, "", "")
            if parts[1] == "namespaces" and len(parts) in (4, 5) and parts[3] == "pods":
                return await self._pods(r, parts[2], parts[4] if len(parts) == 5 else "")
        raise StatusError(404, "NotFound", "the server could not find the requested resource")

    async def _nodes(self, r: Request, name: str) -> Object:
        nodes = await self._fresh()
        wanted = parse_labels(r.param("labelSelector"))
        items = []
        for n in nodes:
            summary = self._summaries.get(n["metadata"]["name"])
            if summary is None or (name and n["metadata"]["name"] != name) or not wanted.matches(n["metadata"].get("labels") or {}):
                continue
            node = summary["node"]
            items.append({"metadata": _meta(n), "timestamp": node["cpu"]["time"], "window": WINDOW, "usage": _usage(node)})
        return self._shape("NodeMetrics", items, name, "nodes")

    async def _pods(self, r: Request, namespace: str, name: str) -> Object:
        await self._fresh()
        wanted = parse_labels(r.param("labelSelector"))
        pods, _ = await self.client.list(PODS, namespace, revision="0", limit=0, metadata_only=True)
        labels = {p["metadata"]["uid"]: p for p in pods}
        items = []
        for summary in self._summaries.values():
            for p in summary.get("pods") or ():
                ref = p["podRef"]
                pod = labels.get(ref["uid"])
                if pod is None or (name and ref["name"] != name) or not wanted.matches(pod["metadata"].get("labels") or {}):
                    continue
                containers = [{"name": c["name"], "usage": _usage(c)} for c in p.get("containers") or ()]
                items.append({"metadata": _meta(pod), "timestamp": p["cpu"]["time"], "window": WINDOW, "containers": containers})
        items.sort(key=lambda i: (i["metadata"].get("namespace") or "", i["metadata"]["name"]))
        return self._shape("PodMetrics", items, name, "pods")

    @staticmethod
    def _shape(kind: str, items: list[Object], name: str, plural: str) -> Object:
        if name:
            if not items:
                raise not_found(GROUP, plural, name)
            return {"kind": kind, "apiVersion": GROUP_VERSION, **items[0]}
        return {"kind": f"{kind}List", "apiVersion": GROUP_VERSION, "metadata": {}, "items": items}

    async def _fresh(self) -> list[Object]:
        """The nodes; their summaries are asked for again when the last ones are old."""
        nodes, _ = await self.client.list(NODES, revision="0", limit=0)
        async with self._lock:
            now = self.clock()
            if now - self._taken >= FRESH_S:
                slots = asyncio.Semaphore(ASK_AT_ONCE)
                found = await asyncio.gather(*(self._ask(n, slots) for n in nodes))
                self._summaries = {n["metadata"]["name"]: s for n, s in zip(nodes, found, strict=True) if s is not None}
                self._taken = now
                places = {p for n in nodes if (p := _place(n))}
                for gone in self._senders.keys() - places:
                    await self._senders.pop(gone).close()
        return nodes

    async def _ask(self, node: Object, slots: asyncio.Semaphore) -> dict[str, Any] | None:
        place = _place(node)
        if place is None:
            return None
        sender = self._senders.get(place)
        if sender is None:
            host = f"[{place[0]}]" if ":" in place[0] else place[0]
            sender = self._senders[place] = HttpSender(f"https://{host}:{place[1]}", cert=self._cert, key=self._key, insecure=True)
        try:
            async with slots, asyncio.timeout(ASK_TIMEOUT_S):
                answer = await sender.send(Request("GET", "/stats/summary", {"only_cpu_and_memory": ["true"]}))
                body = await read_body(answer)
            if answer.status != 200:
                log.info("metrics of %s: %s", node["metadata"]["name"], body[:200].decode(errors="replace"))
                return None
            doc = orjson.loads(body)
            return doc if isinstance(doc, dict) else None
        except (OSError, EOFError, TimeoutError, ValueError) as e:
            log.info("metrics of %s: %s", node["metadata"]["name"], e or type(e).__name__)
            return None

    async def close(self) -> None:
        for s in self._senders.values():
            await s.close()


def _place(node: Object) -> tuple[str, int] | None:
    """Where a node's kubelet listens; None for nodes that say nothing of it."""
    status = node.get("status") or {}
    port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port")
    address = next((a["address"] for a in status.get("addresses") or () if a["type"] == "InternalIP"), None)
    return (address, int(port)) if address and port else None


def _meta(obj: Object) -> dict[str, Any]:
    m = obj["metadata"]
    out = {k: m[k] for k in ("name", "namespace", "labels") if m.get(k)}
    return {**out, "creationTimestamp": m.get("creationTimestamp")}


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _usage(figures: dict[str, Any]) -> dict[str, str]:
    return {"cpu": f"{figures['cpu']['usageNanoCores']}n", "memory": f"{figures['memory']['workingSetBytes'] // 1024}Ki"}


def _json(doc: Object, code: int = 200) -> Response:
    return Response(code, [("Content-Type", "application/json")], orjson.dumps(doc))
