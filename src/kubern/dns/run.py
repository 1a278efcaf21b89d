"""The DNS role: node-local. Mirrors of services, endpoint slices and namespaces in, answers out on the node's own address.

Clients ask the Service kube-dns (10.96.0.10); its internalTrafficPolicy is Local and every node contributes one EndpointSlice
with itself as the endpoint, so a query never leaves its node. The role writes both when it starts. Also `relay`: a forwarder
on the fabric's address, through which units reach the machine's resolvers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from kubern.client.client import Client
from kubern.client.mirror import Mirrors
from kubern.dns import configure
from kubern.dns.answer import Answerer
from kubern.dns.configure import Choice, within_reach
from kubern.dns.forward import Forwarder, servers_of
from kubern.dns.forward import Server as Upstream
from kubern.dns.serve import Server
from kubern.model.object import Object
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

SERVICES, SLICES, NAMESPACES, NODES = "services", "endpointslices.discovery.k8s.io", "namespaces", "nodes"
NAMESPACE, SERVICE = "kube-system", "kube-dns"
LABELS = {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}
RETRY_S = 1.0
PORT = 53


def service(cluster_ip: str) -> Object:
    """The kube-dns Service as kubeadm makes it, but without a selector and with the Local policy."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": LABELS},
            "spec": {"clusterIP": cluster_ip, "internalTrafficPolicy": "Local", "ports": [
                {"name": "dns", "port": PORT, "protocol": "UDP", "targetPort": PORT},
                {"name": "dns-tcp", "port": PORT, "protocol": "TCP", "targetPort": PORT}]}}


def slice_of(node: Object, address: str) -> Object:
    """This node's EndpointSlice; it goes when the Node goes."""
    name = node["metadata"]["name"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6" if ":" in address else "IPv4",
            "metadata": {"name": f"{SERVICE}-{name}", "namespace": NAMESPACE, "ownerReferences": [owner], "labels": {
                "kubernetes.io/service-name": SERVICE, "endpointslice.kubernetes.io/managed-by": "dns.kubern.io", **LABELS}},
            "ports": [{"name": "dns", "port": PORT, "protocol": "UDP"}, {"name": "dns-tcp", "port": PORT, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True, "serving": True, "terminating": False}, "nodeName": name}]}


async def publish(client: Client, mirrors: Mirrors, node: str, address: str, cluster_ip: str) -> None:
    """Service and slice, made or brought up to date; tries until it is done."""
    while True:
        try:
            me = mirrors.get(NODES, "", node)
            if me is not None:
                if mirrors.get(SERVICES, NAMESPACE, SERVICE) is None:
                    await _make(client, service(cluster_ip))
                want = slice_of(me, address)
                have = mirrors.get(SLICES, NAMESPACE, want["metadata"]["name"])
                if have is None:
                    await _make(client, want)
                elif (have.get("endpoints"), have["metadata"].get("ownerReferences")) != (want["endpoints"], want["metadata"]["ownerReferences"]):
                    want["metadata"]["resourceVersion"] = have["metadata"]["resourceVersion"]
                    await client.update(want)
                return
        except (StatusError, OSError, EOFError) as e:
            log.info("publishing the DNS service: %s", e)
        await asyncio.sleep(RETRY_S)


async def _make(client: Client, obj: Object) -> None:
    try:
        await client.create(obj)
    except StatusError as e:
        if e.code != 409:
            raise


def own_servers(fallback: str = "") -> list[Upstream]:
    """Whom to ask about the world: `fallback` if given (the relay), else the machine's resolv.conf."""
    if fallback:
        return [(fallback, PORT)]
    try:
        return servers_of(Path("/etc/resolv.conf").read_text())
    except OSError:
        return []


async def run(mirrors: Mirrors, node: str, address: str, cluster_ip: str, domain: str = "cluster.local", upstream: str = "",
              near: Sequence[str] = (), port: int = PORT, ready: Callable[[], None] = lambda: None) -> None:
    """The role. `address`: the node's, where it listens; `upstream`: a server for names outside, "" = the machine's own, which leaves only
    servers in the networks `near` to be asked by ourselves."""
    answerer = Answerer(domain)
    for name, handler in ((SERVICES, answerer.records.service_changed), (SLICES, answerer.records.slice_changed),
                          (NAMESPACES, answerer.records.namespace_changed)):
        mirrors.mirror(name).handlers.append(handler)
        for obj in mirrors.mirror(name).list():
            handler(None, obj)
    await mirrors.synced((SERVICES, SLICES, NAMESPACES, NODES))
    forwarder = Forwarder(own_servers(upstream))

    def chosen(choice: Choice) -> None:
        mine = within_reach(choice, near) if upstream else choice
        forwarder.choose(mine.servers or own_servers(upstream), mine.stubs)
    server = Server(answerer, forwarder)
    await server.listen(address, port)
    try:
        await publish(mirrors.client, mirrors, node, address, cluster_ip)
        ready()
        if mirrors.client is None:                         # fed from elsewhere: there is nobody to be configured by
            await asyncio.Event().wait()
        await configure.follow(mirrors.client, chosen)
    finally:
        server.close()


async def relay(address: str, port: int = PORT) -> Server:
    """A forwarder to the machine's resolvers, for the units of a fabric; close it when done."""
    server = Server(None, Forwarder(own_servers()))
    await server.listen(address, port)
    return server


async def configure_relay(client: Client, server: Server) -> None:
    """Has a relay ask whom the ConfigMap chooses; until cancelled."""
    await configure.follow(client, lambda choice: server.forwarder.choose(choice.servers or own_servers(), choice.stubs))
