"""OpenAPI: /openapi/v3 (an index with hashes, one document a group version) and /openapi/v2 (one document), for kubectl, helm and their like.

Made from the definitions (openapi_definitions.py), the rows (openapi_paths.py) and CRDs' schemas when first asked for, and kept as bytes until a row changes.
The hash of a document is that of what it is made from, so that the index costs nothing.
Upstream: kube-openapi handler3, builder3; KEP-2896.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import orjson

from kubern import KUBERNETES_VERSION
from kubern.api import openapi_paths as paths
from kubern.api.discovery import Catalog, catalog
from kubern.api.openapi_definitions import INT_OR_STRING, QUANTITY, closure, custom_definitions, model_name, render
from kubern.model.request import Request, Response
from kubern.model.status import StatusError

if TYPE_CHECKING:
    from kubern.api.handle import Server

Doc = dict[str, Any]
V3_PROTOBUF = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_INFO = {"title": "Kubernetes", "version": ".".join(KUBERNETES_VERSION.removeprefix("v").split(".")[:2])}
_SECURITY = {"BearerToken": {"description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey"}}
_BUILD = hashlib.sha512(f"kubern {KUBERNETES_VERSION} 1".encode()).hexdigest()


# ---------------------------------------------------------------- v3 documents

def document(server: Server, have: Catalog, key: str) -> Doc:
    """The document of an index key: "api/v1", "apis/apps", "version" …"""
    parts = key.split("/")
    made: dict[str, Doc] = {}
    group = version = ""
    if parts[0] in ("api", "apis") and (len(parts) == 3 or (parts[0] == "api" and len(parts) == 2)):
        group, version = (parts[1], parts[2]) if len(parts) == 3 else ("", parts[1])
        rows = have.list_of(group, version)
        for row in rows:
            if row.custom:
                made |= custom_definitions(row, _schema(server, row))
        table, used = paths.build(group, version, rows, model_name)
    else:
        table, used = _single(key, parts)
    out: Doc = {"openapi": "3.0.0", "info": _INFO, "paths": table, "components": {}}
    if used:
        out["components"]["schemas"] = closure(used, made, group, version)
    out["components"]["securitySchemes"] = _SECURITY
    return out


def _single(key: str, parts: list[str]) -> tuple[Doc, set[str]]:
    """Documents of one path."""
    yaml_too = ("application/json", "application/vnd.kubernetes.protobuf", "application/yaml")
    texts = {
        "api": ("get available API versions", "getCoreAPIVersions", paths.META + "APIVersions", "core"),
        "apis": ("get available API versions", "getAPIVersions", paths.META + "APIGroupList", "apis"),
        "version": ("get the version information for this server", "getCodeVersion", "io.k8s.apimachinery.pkg.version.Info", "version"),
        ".well-known/openid-configuration": (
            "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'", "getServiceAccountIssuerOpenIDConfiguration",
            "", "WellKnown"),
        "openid/v1/jwks": ("get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
                           "getServiceAccountIssuerOpenIDKeyset", "", "openid"),
    }
    if len(parts) == 2 and parts[0] == "apis":
        description, op_id, name, tag = ("get information of a group", f"get{paths.camel(parts[1])}APIGroup", paths.META + "APIGroup",
                                         paths.tag(parts[1]))
    else:
        description, op_id, name, tag = texts[key]
    media: tuple[str, ...] = yaml_too if key != "version" else ("application/json",)
    schema: Doc = paths.ref(name) if name else {"type": "string"}
    if not name:
        media = ("application/jwk-set+json",) if key.startswith("openid") else ("application/json",)
    op = {"description": description, "operationId": op_id, "tags": [tag], "responses": {
        "200": {"description": "OK", "content": {m: {"schema": schema} for m in media}}, "401": {"description": "Unauthorized"}}}
    return {f"/{key}/": {"get": op}}, {name} if name else set()


def index_keys(have: Catalog) -> list[str]:
    keys = [".well-known/openid-configuration", "api", *(f"api/{v}" for v in have.core), "apis", "openid/v1/jwks", "version"]
    for group, versions in have.groups.items():
        local = [v for v in versions if (group, v) not in have.remote]
        rows = [r for v in local for r in versions[v]]
        if rows and not all(r.custom for r in rows):
            keys.append(f"apis/{group}")
        keys += [f"apis/{group}/{v}" for v in local if versions[v]]
    return sorted(keys)


def _schema(server: Any, row: Any) -> Any:
    """The schema of a custom row; None for one that is answered elsewhere (an aggregated API)."""
    served = server.rows.by_path.get((row.group, row.version, row.plural))
    return served.schema if served is not None else None


def _remote(server: Server, key: str) -> bytes:
    """The document of a group version that another server answers for, as that server gave it; b"" where there is none."""
    parts = key.split("/")
    found = server.remote_openapi.get((parts[1], parts[2])) if len(parts) == 3 and parts[0] == "apis" and server.remote_openapi else None
    return found.v3 if found is not None else b""


def _hash(server: Server, have: Catalog, key: str) -> str:
    """Of what the document is made from."""
    remote = _remote(server, key)
    if remote:
        return hashlib.sha512(remote).hexdigest().upper()
    found = have.documents.get(("hash", key))
    if found is None:
        h = hashlib.sha512(f"{_BUILD} {key}".encode())
        parts = key.split("/")
        if len(parts) == 3 and parts[0] == "apis":
            for row in have.list_of(parts[1], parts[2]):
                if row.custom:
                    schema = _schema(server, row)
                    h.update(repr(row).encode())
                    h.update(orjson.dumps(schema.raw if schema is not None else None, option=orjson.OPT_SORT_KEYS))
        found = have.documents["hash", key] = h.hexdigest().upper()
    return found


# ---------------------------------------------------------------- v2

def swagger(server: Server, have: Catalog, told: Collection[tuple[str, str]] = ()) -> Doc:
    """The whole API in the v2 form, without the group versions of which others tell."""
    table: Doc = {}
    used: set[str] = set()
    made: dict[str, Doc] = {}
    for group, versions in {"": have.core, **have.groups}.items():
        for version in versions:
            if (group, version) in have.remote or (group, version) in told:
                continue
            rows = have.list_of(group, version)
            for row in rows:
                if row.custom:
                    made |= custom_definitions(row, _schema(server, row))
            some, names = paths.build(group, version, rows, model_name)
            table |= some
            used |= names
        if group:
            some, names = _single(f"apis/{group}", ["apis", group])
            table |= some
            used |= names
    for key in ("api", "apis", "version", ".well-known/openid-configuration", "openid/v1/jwks"):
        some, names = _single(key, [key])
        table |= some
        used |= names
    schemas = closure(used, made, "", "")
    shared = _Shared()
    return {"swagger": "2.0", "info": _INFO,
            "paths": {p: _path_v2(item, shared, p.endswith("/")) for p, item in sorted(table.items())},
            "definitions": {n: _schema_v2(n, s, n in made) for n, s in schemas.items()},
            "parameters": dict(sorted(shared.parameters.items())),
            "securityDefinitions": _SECURITY, "security": [{"BearerToken": []}]}


_MEDIA_ORDER = ("text/plain", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/json;stream=watch",
                "application/vnd.kubernetes.protobuf;stream=watch", "application/json-patch+json", "application/merge-patch+json",
                "application/strategic-merge-patch+json", "application/apply-patch+yaml")


def _media(names: Iterable[str]) -> list[str]:
    """In upstream's order, what it does not know last."""
    order = {m: i for i, m in enumerate(_MEDIA_ORDER)}
    return sorted(names, key=lambda m: (order.get(m, len(order)), m))


_DECLARED = ("uniqueItems", "type", "description", "name", "in", "required", "schema")
_GO_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


class _Shared:
    """Parameters that stand once in the document and are named elsewhere: all but those that tell of one kind, or that old clients look for."""

    def __init__(self) -> None:
        self.parameters: dict[str, Doc] = {}

    def __call__(self, p: Doc) -> Doc:
        if p["name"] in ("name", "fieldValidation", "dryRun") and p["in"] != "body":
            return p
        if p["in"] == "body" and not p["schema"].get("$ref", "").startswith("#/definitions/io.k8s.apimachinery"):
            return p
        name = f"{p['name']}-{_short_hash(orjson.dumps({k: p[k] for k in _DECLARED if k in p}).decode().translate(_GO_ESCAPES))}"
        self.parameters[name] = p
        return {"$ref": f"#/parameters/{name}"}


def _short_hash(text: str) -> str:
    """48 bits of FNV-1 (64), in base64."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF) ^ byte
    return base64.urlsafe_b64encode(h.to_bytes(8, "big")[:6]).decode()


def _path_v2(item: Doc, shared: _Shared, roots: bool) -> Doc:
    """`roots`: it tells what there is, and is said to take what it gives."""
    out: Doc = {}
    for method, op in item.items():
        if method == "parameters":
            out[method] = [shared(_parameter_v2(p)) for p in op]
            continue
        new: Doc = {"description": op.get("description", ""), "operationId": op["operationId"], "schemes": ["https"], "tags": op["tags"]}
        params = [_parameter_v2(p) for p in op.get("parameters", ())]
        body = op.get("requestBody")
        if body is not None:
            content = body["content"]
            new["consumes"] = _media(content)
            schema = next(iter(content.values()))["schema"]
            params.insert(0, {"name": "body", "in": "body", "schema": _flat(schema), **({"required": True} if body.get("required") else {})})
        else:
            new["consumes"] = ["*/*"]
        if params:
            new["parameters"] = [shared(p) for p in params]
        new["produces"] = _media({m for r in op["responses"].values() for m in r.get("content", {})}) or ["*/*"]
        new["responses"] = {
            code: {"description": r["description"], **({"schema": _flat(next(iter(r["content"].values()))["schema"])} if r.get("content") else {})}
            for code, r in op["responses"].items()}
        if roots:
            new["consumes"] = new["produces"]
            if len(new["consumes"]) == 1 and "version" not in op["tags"]:
                del new["consumes"]
        new |= {k: v for k, v in op.items() if k.startswith("x-")}
        out[method] = new
    return out


def _parameter_v2(p: Doc) -> Doc:
    return {"name": p["name"], "in": p["in"], "description": p["description"], "type": p["schema"]["type"], "uniqueItems": True,
            **({"required": True} if p.get("required") else {})}


_V3_ONLY = {"oneOf", "anyOf", "not", "nullable"}


def _flat(node: Any) -> Any:
    """A v3 schema in the v2 form."""
    if isinstance(node, list):
        return [_flat(v) for v in node]
    if not isinstance(node, dict):
        return node
    out: Doc = {}
    for k, v in node.items():
        if k == "$ref":
            out[k] = v.replace("#/components/schemas/", "#/definitions/")
        elif k == "allOf" and len(v) == 1 and "$ref" in v[0]:
            out |= _flat(v[0])
        elif k == "properties":
            out[k] = {name: _flat(p) for name, p in v.items()}
        elif k in ("items", "additionalProperties"):
            out[k] = _flat(v)
        elif k in _V3_ONLY or k in ("allOf", "default"):
            continue
        else:
            out[k] = v
    return out


def _schema_v2(name: str, schema: Doc, custom: bool) -> Doc:
    if name == QUANTITY:
        return {"description": schema.get("description", ""), "type": "string"}
    if name == INT_OR_STRING:
        return {"description": schema.get("description", ""), "format": "int-or-string", "type": "string"}
    if not custom:
        return _flat(schema)
    if schema.get("x-kubernetes-preserve-unknown-fields") is True:     # kubectl takes what is said of such an object for all there may be
        return {"type": "object", **{k: schema[k] for k in ("x-kubernetes-group-version-kind",) if k in schema}}
    return _loose(_flat(schema))


def _loose(node: Any) -> Any:
    """What v2 clients would misread of a CRD is left open: int-or-string and objects that keep unknown fields lose their types."""
    if isinstance(node, list):
        return [_loose(v) for v in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-preserve-unknown-fields") is True:
        return {k: v for k, v in node.items() if k == "description" or k.startswith("x-") or k == "type"}
    out = {k: {n: _loose(p) for n, p in v.items()} if k == "properties" else _loose(v) if k in ("items", "additionalProperties") else v
           for k, v in node.items()}
    if node.get("x-kubernetes-int-or-string") is True:
        out.pop("type", None)
    return out


# ---------------------------------------------------------------- requests

def _kept(have: Catalog, key: Any, make: Any) -> bytes:
    """A document, gzipped: it is large, asked for seldom, and mostly sent compressed."""
    found: bytes | None = have.documents.get(key)
    if found is None:
        found = have.documents[key] = gzip.compress(orjson.dumps(make()), 6, mtime=0)
    return found


def _answer(request: Request, packed: bytes, tag: str, extra: list[tuple[str, str]], media: str = "application/json") -> Response:
    headers = [("Content-Type", media), ("ETag", f'"{tag}"'), ("Vary", "Accept"), *extra]
    if request.headers.get("if-none-match", "") == f'"{tag}"':
        return Response(304, headers, b"")
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(200, [*headers, ("Content-Encoding", "gzip")], packed)
    return Response(200, headers, gzip.decompress(packed))


def _binary_wanted(request: Request, protobuf: str) -> bool:
    """Whether protobuf comes first; its old name has an @ where the new one has a dot. Raises 406 where neither it nor JSON is accepted."""
    media = [part.partition(";")[0].strip().lower().replace("@", ".") for part in request.headers.get("accept", "").split(",")]
    if media[0] == protobuf:
        return True
    if media != [""] and not any(m in ("application/json", "*/*", "application/*", "*") for m in media):
        if protobuf in media:
            return True
        raise StatusError(406, "NotAcceptable", f"only the following media types are accepted: application/json, {protobuf}")
    return False


def _made_of(have: Catalog, key: Any, tag: str, packed: bytes, make: Callable[[Doc], bytes]) -> bytes:
    """Another form of a gzipped document, gzipped itself; made when first asked for, again when the tag is another."""
    found: tuple[str, bytes] | None = have.documents.get(key)
    if found is None or found[0] != tag:
        found = have.documents[key] = tag, gzip.compress(make(orjson.loads(gzip.decompress(packed))), 6, mtime=0)
    return found[1]


def _binary(have: Catalog, key: Any, tag: str, packed: bytes, encode: Callable[[Doc], bytes]) -> bytes:
    """A document in protobuf."""
    return _made_of(have, ("binary", key), tag, packed, encode)


def _merged(have: Catalog, tag: str, packed: bytes, others: list[bytes]) -> bytes:
    """Our v2 document with those of aggregated servers."""
    from kubern.api.openapi_remote import merged

    return _made_of(have, "merged", tag, packed, lambda doc: orjson.dumps(merged(doc, map(orjson.loads, others))))


async def respond(server: Server, request: Request, parts: list[str]) -> Response | None:
    """/openapi/v2, /openapi/v3, /openapi/v3/KEY?hash=…"""
    have = catalog(server)
    if parts[1:] == ["v2"]:
        others = {key: r for key, r in sorted(server.remote_openapi.items()) if r.v2}
        tag = hashlib.sha512("".join([*(_hash(server, have, k) for k in index_keys(have)), *(r.hash for r in others.values())]).encode()).hexdigest().upper()
        packed = _kept(have, ("v2", *others), lambda: swagger(server, have, others))
        if others:
            packed = _merged(have, tag, packed, [r.v2 for r in others.values()])
        if _binary_wanted(request, V2_PROTOBUF):
            from kubern.api.openapi_binary import encode

            return _answer(request, _binary(have, "v2", tag, packed, encode), tag, [], V2_PROTOBUF)
        return _answer(request, packed, tag, [])
    if parts[1:2] != ["v3"]:
        return None
    if len(parts) == 2:
        table = {k: {"serverRelativeURL": f"/openapi/v3/{k}?hash={_hash(server, have, k)}"} for k in index_keys(have)}
        body = orjson.dumps({"paths": table})
        return Response(200, [("Content-Type", "application/json"), ("ETag", f'"{hashlib.sha512(body).hexdigest().upper()}"'), ("Vary", "Accept")], body)
    key = "/".join(parts[2:])
    if key not in index_keys(have):
        return None
    binary = _binary_wanted(request, V3_PROTOBUF)
    tag = _hash(server, have, key)
    asked = request.param("hash")
    extra: list[tuple[str, str]] = []
    if asked:
        if asked != tag:
            return Response(301, [("Location", f"/openapi/v3/{key}?hash={tag}"), ("Content-Type", "text/html; charset=utf-8")], b"")
        extra = [("Cache-Control", "public, immutable"), ("Expires", "Fri, 31 Dec 2100 00:00:00 GMT")]
    remote = _remote(server, key)
    packed = gzip.compress(remote, 1) if remote else _kept(have, ("v3", key), lambda: document(server, have, key))
    if binary:
        from kubern.api.openapi_binary import encode_v3

        return _answer(request, _binary(have, ("v3", key), tag, packed, encode_v3), tag, extra, V3_PROTOBUF)
    return _answer(request, packed, tag, extra)


__all__ = ["document", "index_keys", "model_name", "render", "respond", "swagger"]
