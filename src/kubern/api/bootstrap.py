"""Bootstrap: what every cluster starts with, what runs beside requests, and how the parts of the server are joined.

Objects are created through the server's own front door, so they are defaulted and validated like anybody's. Upstream:
pkg/controlplane (kubernetesservice, systemnamespaces), pkg/registry/rbac/rest, pkg/registry/scheduling/rest, pkg/registry/flowcontrol/rest.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import socket
from typing import TYPE_CHECKING, Any

from kubern.api import aggregate, allocate, flow_status
from kubern.api.allocate import Allocator
from kubern.api.authn import Authenticator, Keys
from kubern.api.authn.legacy import Tracking
from kubern.model.addresses import networks
from kubern.model.intent import Create, Delete, Update
from kubern.model.metadata import parse_timestamp
from kubern.model.object import Object
from kubern.model.request import User
from kubern.model.status import StatusError
from kubern.model.time import micro

if TYPE_CHECKING:
    from kubern.api.handle import Server

log = logging.getLogger(__name__)

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
EVENTS_SWEEP_S = 30.0
HISTORY_SWEEP_S = 30.0
IDENTITY_LEASE_S = 3600
IDENTITY_RENEW_S = 600.0


def wire(server: Server) -> Allocator:
    """Joins the parts: keys to authentication, allocators to writes."""
    s = server.settings
    keys = None
    if s.service_account_signing_key:
        keys = Keys(s.service_account_signing_key, s.service_account_public_keys, s.service_account_issuer)
    server.authenticator = Authenticator(
        server.authorizer, keys, server.cache.get, s.api_audiences,
        {token: User(name, (*groups, "system:authenticated")) for token, name, groups in s.static_tokens},
        s.client_ca, s.front_proxy_ca, anonymous=s.anonymous, now=server.clock)
    return allocate.wire(server)


def _namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _priority_class(name: str, value: int, description: str) -> Object:
    return {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value, "description": description}


def _objects(server: Server) -> list[Object]:
    s = server.settings
    out = [_namespace(n) for n in NAMESPACES]
    out += [
        _priority_class("system-node-critical", 2000001000,
                        "Used for system critical pods that must not be moved from their current node."),
        _priority_class("system-cluster-critical", 2000000000,
                        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
    ]
    ranges = networks(s.service_cidr)
    out.append({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [str(n) for n in ranges]}})
    out.append({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"provider": "kubernetes", "component": "apiserver"}},
        "spec": {"ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": s.advertise_port}], "clusterIP": str(ranges[0][1]),
                 "sessionAffinity": "None", "type": "ClusterIP"}})
    return out


def _endpoints(server: Server) -> list[Object]:
    s = server.settings
    import ipaddress

    if ipaddress.ip_address(s.advertise_address).is_loopback:
        return []         # no endpoint others could reach, and none that validation would take
    family = "IPv6" if ":" in s.advertise_address else "IPv4"
    return [
        {"apiVersion": "v1", "kind": "Endpoints",
         "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
         "subsets": [{"addresses": [{"ip": s.advertise_address}], "ports": [{"name": "https", "port": s.advertise_port, "protocol": "TCP"}]}]},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
         "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
         "addressType": family, "endpoints": [{"addresses": [s.advertise_address], "conditions": {"ready": True}}],
         "ports": [{"name": "https", "port": s.advertise_port, "protocol": "TCP"}]},
    ]


async def _ensure(server: Server, obj: Object, replace: bool = False) -> None:
    served = server.rows.of_kind(obj["apiVersion"], obj["kind"])
    if served is None:
        return
    meta = obj["metadata"]
    key = f"{meta['namespace']}/{meta['name']}" if served.row.namespaced else meta["name"]
    have = served.collection.get(key)
    try:
        if have is None:
            await server.client.create(obj)
        elif replace:
            live = have.peek()
            if any(live.get(k) != v for k, v in obj.items() if k not in ("apiVersion", "kind", "metadata")):
                await server.client.update({**obj, "metadata": {**live["metadata"], **meta}})
    except StatusError as e:
        if e.reason != "AlreadyExists":
            log.error("creating %s %s: %s", obj["kind"], key, e.message)


async def create_all(server: Server) -> None:
    """Creates what is missing. A failure is logged; the server starts all the same."""
    for obj in _objects(server):
        await _ensure(server, obj)
    for obj in _endpoints(server):
        await _ensure(server, obj, replace=True)
    if server.settings.client_ca:
        await _ensure(server, aggregate.authentication_config(server.settings.client_ca, server.settings.front_proxy_ca), replace=True)
    await _roles(server)
    await _more(server)


async def _more(server: Server) -> None:
    """Flow control defaults and the APIService of every group version."""
    from kubern.model.kinds.flow_defaults import DEFAULTS

    for obj in (*DEFAULTS, *api_services(server)):
        await _ensure(server, obj)


async def _roles(server: Server) -> None:
    from kubern.api.authz import bootstrap

    plurals = {"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings", "Role": "roles", "RoleBinding": "rolebindings"}

    def get(kind: str, namespace: str, name: str) -> Object | None:
        return server.cache.get(f"{plurals[kind]}.rbac.authorization.k8s.io", namespace, name)

    for intent in bootstrap.reconcile(get):
        try:
            if isinstance(intent, Create):
                await server.client.create(intent.obj)
            elif isinstance(intent, Update):
                await server.client.update(intent.obj)
            elif isinstance(intent, Delete):
                served = server.rows.of_kind(intent.api_version, intent.kind)
                if served is not None:
                    await server.client.delete(served.row, intent.namespace, intent.name)
        except StatusError as e:
            if e.reason != "AlreadyExists":
                log.error("default roles: %s", e.message)


_GROUP_PRIORITY = {"": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600,
                   "autoscaling": 17500, "batch": 17400, "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100,
                   "rbac.authorization.k8s.io": 17000, "storage.k8s.io": 16800, "apiextensions.k8s.io": 16700,
                   "admissionregistration.k8s.io": 16700, "scheduling.k8s.io": 16600, "coordination.k8s.io": 16500, "node.k8s.io": 16300,
                   "discovery.k8s.io": 16200, "flowcontrol.apiserver.k8s.io": 16100, "internal.apiserver.k8s.io": 16000,
                   "resource.k8s.io": 16200}
_VERSION_PRIORITY = {("", "v1"): 1, ("autoscaling", "v2"): 30, ("flowcontrol.apiserver.k8s.io", "v1"): 21, ("resource.k8s.io", "v1"): 21}


def api_services(server: Server) -> list[Object]:
    """The local APIService of every built-in group version, as the aggregator registers them."""
    out = []
    for group, version in dict.fromkeys((g, v) for (g, v, _), s in server.rows.by_path.items() if not s.custom):
        if group == "apiregistration.k8s.io":
            continue
        spec: dict[str, Any] = {"version": version, "groupPriorityMinimum": _GROUP_PRIORITY.get(group, 1000),
                                "versionPriority": _VERSION_PRIORITY.get((group, version), 15)}
        if group:
            spec["group"] = group
        out.append({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                    "metadata": {"name": f"{version}.{group}", "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}}, "spec": spec})
    return out


def background(server: Server) -> list[asyncio.Task[None]]:
    """Starts what runs beside requests: events die of age, history is forgotten."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_expire_events(server), name="event expiry"), loop.create_task(_identity(server), name="identity lease"),
             loop.create_task(flow_status.run(server), name="flow schemas")]
    if server.authenticator.keys is not None and server.settings.bootstrap:
        tokens = Tracking(server)
        server.authenticator.used = tokens.used
        tasks.append(loop.create_task(tokens.run(), name="legacy tokens"))
    aggregator = aggregate.Aggregator(server)
    server.extra_paths["aggregate"] = aggregator.serve
    tasks.append(loop.create_task(aggregator.run(), name="aggregated APIs"))
    if server.definitions is not None:
        tasks.append(loop.create_task(server.definitions.run(), name="custom resource definitions"))
    keep = getattr(server.store, "keep", None)
    if keep is not None:
        tasks.append(loop.create_task(_keep(server), name="history"))
    return tasks


async def _identity(server: Server) -> None:
    """The Lease by which this server shows that it is one of those in use (KEP-1965)."""
    host = socket.gethostname()
    name = "apiserver-" + base64.b32encode(hashlib.sha256(host.encode()).digest())[:26].decode().lower()
    while True:
        now = micro(server.clock())
        item = server.cache.collection("coordination.k8s.io", "leases").get(f"kube-system/{name}")
        holder = f"{name}_{server.identity}"
        lease: Object = {
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-system", "labels": {
                "apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": host}},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": IDENTITY_LEASE_S, "renewTime": now}}
        if item is not None:
            lease["metadata"] = item.parse()["metadata"]
        try:
            await (server.client.create(lease) if item is None else server.client.update(lease))
        except StatusError as e:
            log.warning("identity lease: %s", e.message)
        await asyncio.sleep(IDENTITY_RENEW_S)


async def _keep(server: Server) -> None:
    try:
        await server.store.keep(server.settings.history_s, HISTORY_SWEEP_S)
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("forgetting history")


async def _expire_events(server: Server) -> None:
    """Deletes events an hour after they were last written. The order of revisions is the order of ages, so only the oldest are looked at."""
    collection = server.cache.collection("", "events")
    written: dict[str, tuple[int, float]] = {}      # key -> (revision, when first seen)
    while True:
        now = server.clock()
        due = []
        for key, item in collection.items.items():
            seen = written.get(key)
            if seen is None or seen[0] != item.revision:
                written[key] = (item.revision, now if seen is not None else _age_start(item.parse(), now))
            elif now - seen[1] > server.settings.events_ttl_s:
                due.append((key, item.revision))
        for key, revision in due:
            written.pop(key, None)
            try:
                await server.store.delete(collection.prefix + key, expect=revision)
            except Exception as e:
                log.debug("event %s: %s", key, e)
        if len(written) > len(collection.items) * 2 + 1000:
            written = {k: v for k, v in written.items() if k in collection.items}
        await asyncio.sleep(EVENTS_SWEEP_S)


def _age_start(event: Object, now: float) -> float:
    """When an event that was there before us was written, as well as it says."""
    for field in ("lastTimestamp", "eventTime"):
        text = event.get(field)
        if text:
            try:
                return min(parse_timestamp(text), now)
            except ValueError:
                pass
    text = (event.get("metadata") or {}).get("creationTimestamp")
    return min(parse_timestamp(text), now) if text else now
