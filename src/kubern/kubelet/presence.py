"""Presence: the node in the API. Registration, its status at once when it changes and every five minutes anyway, the lease as heartbeat.

In: the kubelet it belongs to. Out: the Node as last seen, whether runtime and network are ready, the node's podCIDRs when they come.
What a status says is worked out in registration.py. Upstream: pkg/kubelet/kubelet_node_status.go, component-helpers/apimachinery/lease; KEP-589.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kubern.client.watch import follow
from kubern.kubelet import evict, registration, shutdown
from kubern.kubelet.cgroups import Cgroups
from kubern.kubelet.container import shares
from kubern.kubelet.runtime import RuntimeFailure
from kubern.model import quantity
from kubern.model.object import Object
from kubern.model.resources import by_path
from kubern.model.status import StatusError
from kubern.model.time import micro

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)

NODES, LEASES = by_path["", "v1", "nodes"], by_path["coordination.k8s.io", "v1", "leases"]
RENEWALS_A_LEASE = 4                   # upstream: 40 s, renewed every 10
LEASE_RETRY_S = 1.0
NOT_READY_CHECK_S = 0.3
RUNTIME_CHECK_S, RUNTIME_RETRY_S = 5.0, 0.2
OBSERVER_SILENCE_S = 180.0


class Presence:
    def __init__(self, kubelet: Kubelet) -> None:
        s = kubelet.settings
        self.kubelet = kubelet
        self.machine = registration.facts_of_machine(s.root if os.path.isdir(s.root) else "/")
        self.node_settings = registration.NodeSettings(s.name, s.addresses, s.port, s.labels, (*s.taints, *s.configuration.taints), s.version,
                                                       "", s.capacity, s.configuration)
        self.allocatable = registration.allocatable(registration.capacity(self.machine, self.node_settings), self.node_settings)
        self.node_object: Object | None = None
        self.network_ready, self.network_problem = False, "not checked yet"
        self.runtime_problem = ""
        self.registered = asyncio.Event()
        self.pods_memory = 0                            # what all pods together may use, bytes; 0 = no limit
        self._nudged = asyncio.Event()
        self._away = asyncio.Event()                    # the API server went: whoever comes wants to hear of us at once
        self._lease: Object | None = None
        self._cidrs: list[str] = []

    def runtime_is(self, name: str, version: str) -> None:
        self.node_settings = replace(self.node_settings, runtime_version=f"{name}://{version}")

    async def watch_runtime(self) -> None:
        """The runtime's own health."""
        while True:
            try:
                c = await self.kubelet.runtime.conditions()
                ok, reason, message = c.get("RuntimeReady", (True, "", ""))
                self.runtime_problem = "" if ok else f"container runtime not ready: RuntimeReady=false reason:{reason} message:{message}"
                ok, reason, message = c.get("NetworkReady", (True, "", ""))
                self.network_problem = "" if ok else f"container runtime network not ready: NetworkReady=false reason:{reason} message:{message}"
                was, self.network_ready = self.network_ready, ok
                if ok and not was:
                    for w in self.kubelet.workers.values():
                        w.notify()
            except RuntimeFailure as e:
                self.runtime_problem = f"container runtime status check may not have completed yet: {e}"
            await asyncio.sleep(RUNTIME_CHECK_S if self.network_ready and not self.runtime_problem else RUNTIME_RETRY_S)

    def health(self) -> registration.Health:
        problem = self.runtime_problem or self.network_problem
        relisted = self.kubelet.observer.healthy_at
        if not problem and relisted and asyncio.get_running_loop().time() - relisted > OBSERVER_SILENCE_S:
            problem = "PLEG is not healthy"
        if self.kubelet.shutting_down:
            problem = shutdown.NOT_READY
        held = self.kubelet.room.conditions
        return registration.Health(not problem, problem, evict.MEMORY in held, evict.DISK in held, evict.PID in held)

    def nudge(self) -> None:
        """The status is to be looked at now."""
        self._nudged.set()

    def enforce(self, cgroups: Cgroups) -> None:
        """Sets up the pods' cgroups, and limits those the configuration says. Raises RuntimeError where a cgroup is missing."""
        c = self.kubelet.configuration
        room = registration.capacity(self.machine, self.node_settings)
        left = {k: quantity.sub(v, c.reserved[k]) if k in c.reserved else v for k, v in room.items()}
        limits = {}
        if "pods" in c.enforced:
            self.pods_memory = max(0, quantity.value(left["memory"]))
            limits = {"cpu_shares": shares(max(0, quantity.milli(left["cpu"]))), "memory": self.pods_memory}
        pids = c.reserved.get("pid")
        cgroups.setup(limits, _pids_max() - quantity.value(pids) if pids and limits else -1)
        for name, path, reserved in (("system", c.system_reserved_cgroup, c.system_reserved), ("kube", c.kube_reserved_cgroup, c.kube_reserved)):
            which = next((e for e in c.enforced if e.startswith(f"{name}-reserved")), "")
            if which:
                if not cgroups.pod_exists(path):
                    raise RuntimeError(f"failed to enforce {name.capitalize()} Reserved Cgroup Limits on {path!r}: cgroup does not exist")
                own: dict[str, int] = {"cpu_shares": shares(quantity.milli(reserved["cpu"]))} if "cpu" in reserved else {}
                if "memory" in reserved and not which.endswith("compressible"):
                    own["memory"] = quantity.value(reserved["memory"])
                cgroups.apply(path, own)

    async def keep(self) -> None:
        """Registers the node, then keeps its status: at once when it changes, every five minutes anyway."""
        client = self.kubelet.client
        assert client is not None
        s = self.kubelet.settings
        posted = 0.0
        first = True
        while True:
            try:
                if self.node_object is None:
                    self.node_object = await self._register()
                    self._took_cidrs(self.node_object)
                now = self.kubelet.clock()
                found = await self.kubelet.runtime.images()
                before = self.node_object.get("status") or {}
                status = registration.node_status(self.machine, self.node_settings, self.health(), found, before, now, self.kubelet.devices.capacity())
                self.allocatable = status["allocatable"]
                in_use = await asyncio.to_thread(self.kubelet.csi.in_use)
                if in_use or before.get("volumesInUse"):
                    status["volumesInUse"] = in_use
                patch = registration.status_patch(before, status, abs(now - posted) > self.kubelet.configuration.report_s)
                if patch:
                    was_ready = _ready(before)
                    self._node_took(await client.patch(NODES, "", s.name, {"status": patch}, "strategic", subresource="status"))
                    posted = now
                    if _ready(status) != was_ready:
                        word = "NodeReady" if _ready(status) else "NodeNotReady"
                        self.kubelet.tell_node("Normal", word, f"Node {s.name} status is now: {word}")
                self.kubelet.csi.told(in_use)
                if first:
                    first = False
                    self.kubelet.tell_node("Normal", "Starting", "Starting kubelet.")
                self.registered.set()
                ready = _ready(status)
            except StatusError as e:
                log.info("node status: %s", e.message)
                ready = False
                if e.code == 404:
                    self.node_object = None
            except RuntimeFailure as e:
                log.info("node status: %s", e)
                ready = False
            patience = self.kubelet.configuration.status_s if ready or self.kubelet.shutting_down else NOT_READY_CHECK_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._nudged.wait()
            self._nudged.clear()

    def _node_took(self, node: Object) -> None:
        if self.node_object is None or int(node["metadata"]["resourceVersion"]) >= int(self.node_object["metadata"].get("resourceVersion") or 0):
            self.node_object = node

    async def _register(self) -> Object:
        client = self.kubelet.client
        assert client is not None
        wanted = registration.node_object(self.machine, self.node_settings)
        try:
            status = registration.node_status(self.machine, self.node_settings, self.health(), [], {}, self.kubelet.clock())
            return await client.create({**wanted, "status": status})
        except StatusError as e:
            if e.code != 409:
                raise
        have = await client.get(NODES, "", self.kubelet.settings.name)
        labels = have["metadata"].get("labels") or {}
        missing = {k: v for k, v in wanted["metadata"]["labels"].items() if labels.get(k) != v}
        if missing:
            have = await client.patch(NODES, "", self.kubelet.settings.name, {"metadata": {"labels": missing}}, "merge")
        return have

    async def follow(self) -> None:
        """Sees what others change of the Node: its podCIDRs, labels, allocatable."""
        client = self.kubelet.client
        assert client is not None

        def replaced(items: list[Object], _revision: int) -> None:
            for n in items:
                self._node_took(n)
                self._took_cidrs(n)

        def event(type_: str, node: Object) -> None:
            if type_ in ("ADDED", "MODIFIED"):
                self._node_took(node)
                self._took_cidrs(node)

        await follow(client, NODES, replaced, event, fields=f"metadata.name={self.kubelet.settings.name}", broken=self._away.set)

    def _took_cidrs(self, node: Object) -> None:
        spec = node.get("spec") or {}
        cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        if cidrs and cidrs != self._cidrs:
            self._cidrs = list(cidrs)
            if self.kubelet.on_pod_cidrs is not None:
                self.kubelet.on_pod_cidrs(self._cidrs)

    async def beat(self) -> None:
        """Renews the lease for ever."""
        client = self.kubelet.client
        assert client is not None
        await self.registered.wait()
        while True:
            began = asyncio.get_running_loop().time()
            try:
                self._lease = await self._renew()
                wait = self.kubelet.settings.lease_s / RENEWALS_A_LEASE
            except StatusError as e:
                log.info("lease: %s", e.message)
                self._lease = None
                wait = 0.5 if e.code == 409 else LEASE_RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.1, wait - (asyncio.get_running_loop().time() - began))):
                    await self._away.wait()
                    await asyncio.sleep(NOT_READY_CHECK_S)
            self._away.clear()

    async def _renew(self) -> Object:
        client = self.kubelet.client
        assert client is not None and self.node_object is not None
        s = self.kubelet.settings
        spec = {"holderIdentity": s.name, "leaseDurationSeconds": max(1, round(s.lease_s)), "renewTime": micro(self.kubelet.clock())}
        if self._lease is None:
            owner = {"apiVersion": "v1", "kind": "Node", "name": s.name, "uid": self.node_object["metadata"]["uid"]}
            try:
                self._lease = await client.get(LEASES, "kube-node-lease", s.name)
            except StatusError as e:
                if e.code != 404:
                    raise
                return await client.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {
                    "name": s.name, "namespace": "kube-node-lease", "ownerReferences": [owner]}, "spec": spec})
        return await client.update({**self._lease, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec})


def _ready(status: Mapping[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())


def _pids_max() -> int:
    with open("/proc/sys/kernel/pid_max") as f:
        return int(f.read())
