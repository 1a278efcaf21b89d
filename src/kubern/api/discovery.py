"""Discovery: which groups, versions and resources this server serves. Documents made from rows; kept until a row changes.

Two forms: the legacy documents (/api, /apis, /apis/G, /apis/G/V) and the aggregated one (/api and /apis asked for as APIGroupDiscoveryList v2,
with an ETag). Groups of APIServices that stand for other servers are listed; what lies below them is that server's to tell (api/aggregate.py).
Upstream: apiserver endpoints/discovery, kube-aggregator handler_apis.go, apiextensions customresource_discovery.go; KEP-3352.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from kubern.api.call import answer
from kubern.api.negotiate import JSON, MEDIA, Accept, _clauses, not_acceptable, parse_accept, router_not_acceptable
from kubern.model.object import Object
from kubern.model.request import Request, Response
from kubern.model.resource import Resource
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.api.handle import Server

AGGREGATED = f"{JSON};g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
# what upstream's hash says of kinds that it still stores in an older version
STORED_VERSIONS = {("apiextensions.k8s.io", "CustomResourceDefinition"): "v1beta1", ("admissionregistration.k8s.io", "MutatingAdmissionPolicy"):
                   "v1beta1", ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding"): "v1beta1"}
CRD_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_VERSION = re.compile(r"v([1-9][0-9]*)(?:(alpha|beta)([1-9][0-9]*))?\Z", re.ASCII)


@lru_cache(maxsize=4096)
def storage_version_hash(group: str, version: str, kind: str) -> str:
    """Eight bytes that tell clients when the stored version of a kind changes."""
    return base64.b64encode(hashlib.sha256(f"{group}/{version}/{kind}".encode()).digest()[:8]).decode()


def version_rank(version: str) -> tuple[Any, ...]:
    """Sort key of Kubernetes-like versions, best first: v2, v1, v1beta1, v1alpha1, then the others by name."""
    m = _VERSION.match(version)
    if m is None:
        return 1, version
    stage = {None: 0, "beta": 1, "alpha": 2}[m[2]]
    return 0, stage, -int(m[1]), -int(m[3] or 0)


def singular(row: Resource) -> str:
    return row.singular or row.kind.lower()


def verbs_of(row: Resource) -> list[str]:
    return list(CRD_VERBS) if row.custom else list(row.verbs)


# ---------------------------------------------------------------- legacy documents

def legacy_resources(rows: list[Resource]) -> list[Object]:
    """The entries of an APIResourceList: each resource, then its subresources."""
    out: list[Object] = []
    for row in rows:
        entry: Object = {"name": row.plural, "singularName": singular(row), "namespaced": row.namespaced, "kind": row.kind, "verbs": verbs_of(row)}
        if row.short_names:
            entry["shortNames"] = list(row.short_names)
        if row.categories:
            entry["categories"] = list(row.categories)
        if "list" in row.verbs and "create" in row.verbs:
            stored = STORED_VERSIONS.get((row.group, row.kind)) or row.storage_version or row.version
            entry["storageVersionHash"] = storage_version_hash(row.storage[0], stored, row.kind)
        out.append(entry)
        for s in row.subresources:
            sub: Object = {"name": f"{row.plural}/{s.name}", "singularName": "", "namespaced": row.namespaced}
            if s.kind and s.version:
                if s.group:
                    sub["group"] = s.group
                sub["version"] = s.version
            sub["kind"] = s.kind or row.kind
            sub["verbs"] = list(s.verbs)
            out.append(sub)
    return out


def group_entry(group: str, versions: list[str]) -> Object:
    listed = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
    return {"name": group, "versions": listed, "preferredVersion": listed[0]}


# ---------------------------------------------------------------- aggregated documents

def aggregated_resources(rows: list[Resource]) -> list[Object]:
    out: list[Object] = []
    for row in rows:
        own = {"group": row.group, "version": row.version, "kind": row.kind} if row.custom else {"group": "", "version": "", "kind": row.kind}
        entry: Object = {"resource": row.plural, "responseKind": own, "scope": "Namespaced" if row.namespaced else "Cluster",
                         "singularResource": singular(row), "verbs": verbs_of(row)}
        if row.short_names:
            entry["shortNames"] = list(row.short_names)
        if row.categories:
            entry["categories"] = list(row.categories)
        if row.subresources:
            entry["subresources"] = [
                {"subresource": s.name, "verbs": list(s.verbs),
                 "responseKind": {"group": s.group, "kind": s.kind or row.kind, "version": s.version} if s.version else
                 {**own, "kind": s.kind or row.kind}}
                for s in row.subresources]
        out.append(entry)
    return out


# ---------------------------------------------------------------- what there is to tell

class Catalog:
    """Groups, versions and rows in order, as of one version of the rows; documents are made once and kept as bytes."""

    def __init__(self, rows: list[Resource], remote: list[Object], known: Mapping[tuple[str, str], list[Resource]]) -> None:
        built_in: dict[str, dict[str, list[Resource]]] = {}
        custom: dict[str, dict[str, list[Resource]]] = {}
        for row in rows:
            table = custom if row.custom and row.group not in built_in else built_in
            table.setdefault(row.group, {}).setdefault(row.version, []).append(row)
        self.groups: dict[str, dict[str, list[Resource]]] = dict(built_in)
        self.core = self.groups.pop("", {})
        self.remote: set[tuple[str, str]] = set()
        late: list[tuple[int, str]] = [(-1000, g) for g in custom]
        for group, versions in custom.items():
            self.groups[group] = {v: versions[v] for v in sorted(versions, key=version_rank)}
        for service in remote:
            spec = service.get("spec") or {}
            group, version = spec.get("group") or "", spec.get("version") or ""
            if not group or group in built_in:
                continue
            if group not in self.groups:
                late.append((-int(spec.get("groupPriorityMinimum") or 0), group))
            self.groups.setdefault(group, {}).setdefault(version, list(known.get((group, version), ())))
            if (group, version) not in known:
                self.remote.add((group, version))
        order = [g for g in self.groups if g in built_in] + [g for _, g in sorted(late)]
        self.groups = {g: self.groups[g] for g in order}
        self.documents: dict[Any, Any] = {}

    def list_of(self, group: str, version: str) -> list[Resource]:
        rows = (self.core if not group else self.groups.get(group, {})).get(version, [])
        return sorted(rows, key=lambda r: r.plural) if rows and rows[0].custom else rows

    def aggregated(self, core: bool) -> tuple[bytes, str]:
        """(document, ETag)."""
        found = self.documents.get(core)
        if found is None:
            groups = {"": self.core} if core else self.groups
            items = [
                {"metadata": {"name": g} if g else {}, "versions": [self._version(g, v) for v in versions]}
                for g, versions in groups.items()]
            doc = {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}
            body = orjson.dumps(doc, option=orjson.OPT_APPEND_NEWLINE)
            found = self.documents[core] = body, f'"{hashlib.sha512(body).hexdigest().upper()}"'
        return found

    def _version(self, group: str, version: str) -> Object:
        if (group, version) in self.remote:
            return {"version": version, "freshness": "Stale"}
        return {"version": version, "resources": aggregated_resources(self.list_of(group, version)), "freshness": "Current"}


def catalog(server: Server) -> Catalog:
    """The server's catalog, made anew when rows or APIServices have changed."""
    services = server.cache.collection("apiregistration.k8s.io", "apiservices").items
    remote = [i.peek() for i in services.values() if i.peek().get("spec", {}).get("service")]
    key = server.rows.version, tuple(server.remote_rows), tuple(
        (o["spec"].get("group"), o["spec"].get("version"), o["spec"].get("groupPriorityMinimum")) for o in remote)
    kept = _kept.get(id(server))
    if kept is None or kept[0] is not server or kept[1] != key:
        if len(_kept) > 64:
            _kept.clear()
        kept = _kept[id(server)] = (server, key, Catalog(server.rows.resources(), remote, server.remote_rows))
    return kept[2]


_kept: dict[int, tuple[Any, Any, Catalog]] = {}


# ---------------------------------------------------------------- requests

def method_not_allowed() -> StatusError:
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def no_such_version() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


async def respond(server: Server, request: Request) -> Response | None:
    """The answer to /api…, /apis…, /openapi…; None where there is nothing (a plain 404)."""
    parts = [p for p in request.path.split("/") if p]
    if parts[0] == "openapi":
        from kubern.api import openapi

        return await openapi.respond(server, request, parts)
    have = catalog(server)
    reads = request.method in ("GET", "HEAD")
    if parts[0] == "api":
        if len(parts) == 1:
            if not reads:
                raise method_not_allowed()
            if _wants_aggregated(request, True):
                return _with_etag(request, *have.aggregated(True))
            return answer({"kind": "APIVersions", "versions": list(have.core),
                           "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": _address(server)}]}, _accept(request, True))
        if len(parts) == 2:
            if parts[1] not in have.core:
                raise no_such_version()
            return _resource_list(have, request, "", parts[1], reads)
        return None
    if len(parts) == 1:
        if _wants_aggregated(request, False):
            return _with_etag(request, *have.aggregated(False))
        groups = [group_entry(g, list(versions)) for g, versions in have.groups.items()]
        return answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}, _accept(request, False))
    versions = have.groups.get(parts[1])
    if versions is None:
        return None
    if len(parts) == 2:
        return answer({"kind": "APIGroup", "apiVersion": "v1", **group_entry(parts[1], list(versions))}, _accept(request, False))
    if len(parts) == 3:
        if parts[2] not in versions:
            raise no_such_version()
        if (parts[1], parts[2]) in have.remote or request.path in server.extra_paths:
            return None
        return _resource_list(have, request, parts[1], parts[2], reads)
    return None


def _resource_list(have: Catalog, request: Request, group: str, version: str, reads: bool) -> Response:
    if not reads:
        raise method_not_allowed()
    accept = _accept(request, True)
    doc: Object = {"kind": "APIResourceList"}
    if group:
        doc["apiVersion"] = "v1"
    doc["groupVersion"] = f"{group}/{version}" if group else version
    key = group, version
    entries = have.documents.get(key)
    if entries is None:
        entries = have.documents[key] = legacy_resources(have.list_of(group, version))
    doc["resources"] = entries
    return answer(doc, accept)


def _accept(request: Request, routed: bool) -> Accept:
    """The representation of a legacy document; the router and the plain handlers refuse in different words."""
    header = request.headers.get("accept", "")
    try:
        return parse_accept(header if routed else header.replace("application/*", "*/*"), MEDIA, frozenset())
    except StatusError as e:
        if not routed and e.details is not None:
            raise not_acceptable(MEDIA) from None
        raise


def _wants_aggregated(request: Request, routed: bool) -> bool:
    header = request.headers.get("accept", "")
    if "APIGroupDiscoveryList" not in header:
        return False
    for media, params in _clauses(header):
        if media in (JSON, "*/*", "application/*") and params.get("as") == "APIGroupDiscoveryList" and params.get("g") == "apidiscovery.k8s.io":
            if params.get("v") == "v2":
                return True
        elif media in (JSON, "*/*", "application/*") and not params.get("as"):
            return False
    if routed and not any(media.startswith(("application/", "*")) for media, _ in _clauses(header)):
        raise router_not_acceptable(MEDIA)
    return False


def _with_etag(request: Request, body: bytes, tag: str) -> Response:
    headers = [("Content-Type", AGGREGATED), ("ETag", tag), ("Vary", "Accept"), ("Cache-Control", "public")]
    if request.headers.get("if-none-match") == tag:
        return Response(304, headers[1:], b"")
    return Response(200, headers, body)


def _address(server: Server) -> str:
    host, port = server.settings.advertise_address, server.settings.advertise_port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
