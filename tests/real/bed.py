"""Two node units with real containers and no API server: what tests of the network alone start, and feed from a file (net_agent.py)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kubern.dns import run as dns_run
from kubern.images import build, recipes
from kubern.images.library import Library
from kubern.images.registry import Registry
from kubern.kubelet import fabric, node

CLUSTER = f"t{os.getpid() % 10000:04d}"
NODES = ("na", "nb")
BUSYBOX, PYTHON = "docker.io/library/busybox:latest", "docker.io/library/python:3.11"


class Pod:
    def __init__(self, name: str, node_: str, ip: str, sandbox: str, container: str) -> None:
        self.name, self.node, self.ip, self.sandbox, self.container = name, node_, ip, sandbox, container


class Bed:
    """The units, a registry and the state the agents read."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state: dict[str, list[dict[str, Any]]] = {k: [] for k in (
            "nodes", "services", "endpointslices.discovery.k8s.io", "namespaces", "pods", "networkpolicies.networking.k8s.io")}
        self.cri: dict[str, Any] = {}
        self.units: dict[str, node.Unit] = {}
        self.pods: dict[str, Pod] = {}

    def write(self) -> None:
        tmp = self.home / "state.tmp"
        tmp.write_text(json.dumps(self.state))
        tmp.rename(self.home / "state.json")

    async def start(self) -> None:
        from kubern.kubelet.cri import Cri

        f = await asyncio.to_thread(fabric.ensure, CLUSTER, self.home / "fabric.json")
        net = f.pod_cidr.rpartition(".0.0")[0]
        library = Library(self.home / "images")
        await asyncio.to_thread(build.ensure, library, recipes.DEMO + recipes.EXTRA)
        self.registry = Registry(library)
        port = (await self.registry.serve(f.gateway, 0)).sockets[0].getsockname()[1]
        self.relay = await dns_run.relay(f.gateway, 53)
        agent = (sys.executable, str(Path(__file__).with_name("net_agent.py")))
        for i, name in enumerate(NODES):
            settings = node.UnitSettings(home=self.home, name=name, server="", kubeconfig="", cluster=CLUSTER,
                                         registry=f"http://{f.gateway}:{port}", agent=agent, pod_cidr=f.pod_cidr)
            u = self.units[name] = await asyncio.to_thread(node.create_unit, settings)
            self.state["nodes"].append({
                "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"topology.kubernetes.io/zone": f"z{i}"}},
                "spec": {"podCIDR": f"{net}.{i + 1}.0/24", "podCIDRs": [f"{net}.{i + 1}.0/24"]},
                "status": {"addresses": [{"type": "InternalIP", "address": u.config.address}]}})
        self.state["services"].append({**dns_run.service("10.96.0.10"), "metadata": {"name": "kube-dns", "namespace": "kube-system"}})
        for n in self.state["nodes"]:
            self.state["endpointslices.discovery.k8s.io"].append(dns_run.slice_of(n, self.units[n["metadata"]["name"]].config.address))
        self.state["namespaces"] = [{"metadata": {"name": n, "labels": {"kubernetes.io/metadata.name": n}}} for n in ("default", "other")]
        self.write()
        await asyncio.to_thread(fabric.sync_routes, fabric.node_routes(self.state["nodes"], ""), f.subnets)
        for name, u in self.units.items():
            self.cri[name] = Cri(u.config.socket)
            for _ in range(500):
                if (await self.cri[name].conditions())["NetworkReady"][0]:
                    break
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for c in self.cri.values():
            await c.close()
        await self.registry.close()
        self.relay.close()
        await asyncio.sleep(0.05)

    async def pod(self, name: str, on: str, image: str = BUSYBOX, command: tuple[str, ...] = ("sleep", "100000"),
                  labels: dict[str, str] | None = None, namespace: str = "default") -> Pod:
        cri, uid = self.cri[on], str(uuid.uuid4())
        config = self.units[on].config
        sandbox_config = {
            "metadata": {"name": name, "uid": uid, "namespace": namespace, "attempt": 0}, "hostname": name,
            "log_directory": f"{config.data_dir}/logs/{uid}",
            "dns_config": {"servers": ["10.96.0.10"], "searches": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                           "options": ["ndots:5"]},
            "linux": {"cgroup_parent": f"{config.cgroup_root}/kubepods/pod{uid}", "security_context": {"namespace_options": {"pid": 1}}}}
        os.makedirs(sandbox_config["log_directory"], exist_ok=True)
        sandbox = await cri.run_sandbox(sandbox_config)
        if await cri.image(image) is None:
            await cri.pull(image, None, sandbox_config)
        container = await cri.create(sandbox, {
            "metadata": {"name": "c", "attempt": 0}, "image": {"image": image}, "command": list(command), "log_path": "c.log",
            "linux": {"security_context": {"namespace_options": {"pid": 1}}}}, sandbox_config)
        await cri.start(container)
        ip = (await cri.sandbox(sandbox)).ips[0]
        self.pods[name] = Pod(name, on, ip, sandbox, container)
        self.state["pods"].append({"metadata": {"name": name, "namespace": namespace, "labels": labels or {"app": name}},
                                   "spec": {"nodeName": on, "containers": []}, "status": {"phase": "Running", "podIPs": [{"ip": ip}]}})
        return self.pods[name]

    async def run(self, pod: str, command: str, timeout_s: float = 20) -> tuple[int, str]:
        p = self.pods[pod]
        r = await self.cri[p.node].exec_sync(p.container, ["sh", "-c", command], timeout_s)
        return r.exit_code, (r.stdout + r.stderr).decode()

    async def get(self, pod: str, url: str) -> str:
        """The body, or "" if there is no answer within a second."""
        code, out = await self.run(pod, f"timeout 1 wget -qO- {url}")
        return out.strip() if code == 0 else ""

    def service(self, name: str, ip: str, pods: list[str], port: int = 80, target: int = 8080, protocol: str = "TCP",
                endpoints: dict[str, dict[str, Any]] | None = None, **spec: Any) -> None:
        """A service and its slice; replaces what had the name. `endpoints`: further fields of endpoints, by pod."""
        node_port = spec.pop("nodePort", None)
        p = {"name": "p", "port": port, "protocol": protocol, **({"nodePort": node_port} if node_port else {})}
        self._put("services", {"metadata": {"name": name, "namespace": "default"},
                               "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [p], **spec}})
        self._put("endpointslices.discovery.k8s.io", {
            "metadata": {"name": f"{name}-1", "namespace": "default", "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"name": "p", "port": target, "protocol": protocol}],
            "endpoints": [{"addresses": [self.pods[x].ip], "conditions": {"ready": True}, "nodeName": self.pods[x].node, "hostname": x,
                           **(endpoints or {}).get(x, {})} for x in pods]})
        self.write()

    def _put(self, resource: str, obj: dict[str, Any]) -> None:
        rows = self.state[resource]
        rows[:] = [o for o in rows if (o["metadata"].get("namespace"), o["metadata"]["name"]) != (
            obj["metadata"].get("namespace"), obj["metadata"]["name"])] + [obj]


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < end, "did not come true"
        await asyncio.sleep(0.1)


def web(name: str) -> tuple[str, ...]:
    """A web server that says its name: busybox httpd."""
    return ("sh", "-c", f"mkdir -p /w && echo {name} > /w/index.html && httpd -f -p 8080 -h /w")


def udp_echo(name: str) -> tuple[str, ...]:
    """A UDP server that says its name."""
    return ("python3", "-c", f"import socket; s=socket.socket(2,2); s.bind(('',9000))\nwhile 1: s.sendto(b'{name}', s.recvfrom(99)[1])")
