"""OpenAPI paths: the operations of a group version, made from its rows in the v3 form. openapi.py serves them and makes the v2 form of them.

In: rows. Out: {path: {method: operation, "parameters": […]}}. Parameters that all operations of a path share stand at the path. What upstream says of
them stands in openapi_query.json: name -> (type, description), with "patch.NAME" or "KIND.SUBRESOURCE.NAME" where that is said of those alone.
Upstream: apiserver endpoints/installer.go, kube-openapi builder3; kubectl finds fieldValidation and x-kubernetes-group-version-kind here.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from kubern.model.resource import Resource, Subresource

Doc = dict[str, Any]
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
MEDIA = ("application/json", "application/vnd.kubernetes.protobuf", "application/yaml")
STREAMS = ("application/json", "application/json;stream=watch", "application/vnd.kubernetes.protobuf",
           "application/vnd.kubernetes.protobuf;stream=watch", "application/yaml")
PATCHES = ("application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json")

LIST = ("allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch",
        "sendInitialEvents", "shardSelector", "timeoutSeconds", "watch")
WRITE = ("dryRun", "fieldManager", "fieldValidation")
DELETE = ("dryRun", "gracePeriodSeconds", "ignoreStoreReadErrorWithClusterBreakingPotential", "orphanDependents", "propagationPolicy")
DELETE_MANY = tuple(sorted({*DELETE, *LIST} - {"allowWatchBookmarks", "watch"}))
CONNECT = {  # subresource -> (kind of its options, methods, query parameters)
    "attach": ("PodAttachOptions", ("get", "post"), ("container", "stderr", "stdin", "stdout", "tty")),
    "exec": ("PodExecOptions", ("get", "post"), ("command", "container", "stderr", "stdin", "stdout", "tty")),
    "portforward": ("PodPortForwardOptions", ("get", "post"), ("ports",)),
    "proxy": ("{}ProxyOptions", ("delete", "get", "head", "options", "patch", "post", "put"), ("path",)),
}
LOG = ("container", "follow", "insecureSkipTLSVerifyBackend", "limitBytes", "previous", "sinceSeconds", "stream", "tailLines", "timestamps")


def camel(group: str) -> str:
    """"rbac.authorization.k8s.io" -> "RbacAuthorization"; "" -> "Core"."""
    return "".join(p[:1].upper() + p[1:] for p in re.split(r"[.\-]", group.removesuffix(".k8s.io") or "core"))


def tag(group: str, version: str = "") -> str:
    name = camel(group)
    name = name[:1].lower() + name[1:]
    return f"{name}_{version}" if version else name


def ref(name: str) -> Doc:
    return {"$ref": f"#/components/schemas/{name}"}


@cache
def _query() -> dict[str, tuple[str, str]]:
    table: dict[str, tuple[str, str]] = orjson.loads(files("kubern.api").joinpath("openapi_query.json").read_bytes())
    return table


def parameter(name: str, of: str = "") -> Doc:
    """A parameter of the query; `of`: "patch" or "Pod.exec", which may say their own of it."""
    table = _query()
    type_, text = table.get(f"{of}.{name}") or table[name]
    return {"name": name, "in": "query", "description": text, "schema": {"type": type_, "uniqueItems": True}}


def place(name: str, description: str) -> Doc:
    """A parameter of the path."""
    return {"name": name, "in": "path", "description": description, "schema": {"type": "string", "uniqueItems": True}, "required": True}


def _article(kind: str) -> str:
    if kind.endswith("s") and not kind.endswith("ss"):
        return kind
    return ("an " if kind[0] in "AEIOU" else "a ") + kind


def _content(schema: Doc, media: tuple[str, ...]) -> Doc:
    return {m: {"schema": schema} for m in media}


def _responses(schema: Doc, media: tuple[str, ...], codes: tuple[str, ...]) -> Doc:
    words = {"200": "OK", "201": "Created", "202": "Accepted"}
    return {**{c: {"description": words[c], "content": _content(schema, media)} for c in codes}, "401": {"description": "Unauthorized"}}


class Paths:
    """Collects the operations of one group version; `used` are the definitions they name."""

    def __init__(self, group: str, version: str, definition: Any) -> None:
        self.group, self.version, self._definition = group, version, definition
        self.prefix = camel(group) + version[:1].upper() + version[1:]
        self.tags = [tag(group, version)]
        self.paths: dict[str, dict[str, Doc]] = {}
        self.own: dict[str, list[Doc]] = {}            # path -> parameters of the path itself
        self.used: set[str] = set()

    def ref(self, name: str) -> Doc:
        self.used.add(name)
        return ref(name)

    def kind_ref(self, kind: str, group: str = "", version: str = "") -> Doc:
        return self.ref(self._definition(group if version else self.group, version or self.version, kind))

    def add(self, path: str, method: str, op_id: str, action: str, description: str, *, query: tuple[str, ...] = (), of: str = "", body: Doc | None = None,
            responses: Doc | None = None, gvk: tuple[str, str, str] | None = None) -> None:
        op: Doc = {"description": description, "operationId": op_id, "parameters": [parameter(q, of or action) for q in query]}
        if body is not None:
            op["requestBody"] = body
        op["responses"] = responses or {"401": {"description": "Unauthorized"}}
        op["tags"] = self.tags
        if action:
            op["x-kubernetes-action"] = action
        if gvk is not None:
            op["x-kubernetes-group-version-kind"] = {"group": gvk[0], "kind": gvk[2], "version": gvk[1]}
        self.paths.setdefault(path, {})[method] = op

    def finish(self) -> Doc:
        """Moves what all operations of a path share to the path."""
        out: Doc = {}
        for path, ops in sorted(self.paths.items()):
            shared: list[Doc] = []
            lists = [op["parameters"] for op in ops.values()]
            for p in lists[0]:
                if all(any(q["name"] == p["name"] for q in other) for other in lists):
                    shared.append(p)
            names = {p["name"] for p in shared}
            for op in ops.values():
                op["parameters"] = sorted((p for p in op["parameters"] if p["name"] not in names), key=lambda p: p["name"])
                if not op["parameters"]:
                    del op["parameters"]
            item: Doc = dict(sorted(ops.items()))
            params = sorted([*shared, *self.own.get(path, [])], key=lambda p: (p["name"], p["in"]))
            if params:
                item["parameters"] = params
            out[path] = item
        return out


def build(group: str, version: str, rows: list[Resource], definition: Any) -> tuple[Doc, set[str]]:
    """(paths, names of the definitions they use) of a group version. definition(group, version, kind) names a kind's definition."""
    p = Paths(group, version, definition)
    root = f"/apis/{group}/{version}" if group else f"/api/{version}"
    p.add(root + "/", "get", f"get{p.prefix}APIResources", "", "get available resources",
          responses=_responses(p.ref(META + "APIResourceList"), MEDIA, ("200",)))
    for row in rows:
        _resource(p, root, row)
    return p.finish(), p.used


def _resource(p: Paths, root: str, row: Resource) -> None:
    kind, verbs = row.kind, row.verbs
    gvk = row.group, row.version, kind
    scope = "Namespaced" if row.namespaced else ""
    base = f"{root}/namespaces/{{namespace}}/{row.plural}" if row.namespaced else f"{root}/{row.plural}"
    one = base + "/{name}"
    pretty = [parameter("pretty")]
    space = [place("namespace", "object name and auth scope, such as for teams and projects")] if row.namespaced else []
    name = [place("name", f"name of the {kind}")]
    me = p.kind_ref(kind)
    watchable = "watch" in verbs
    if "list" in verbs:
        listing = "list or watch objects of kind " if watchable else "list objects of kind "
        listed = p.kind_ref(kind + "List")
        p.add(base, "get", f"list{p.prefix}{scope}{kind}", "list", listing + kind, query=LIST, responses=_responses(listed, STREAMS, ("200",)), gvk=gvk)
        if row.namespaced:
            everywhere = f"{root}/{row.plural}"
            p.add(everywhere, "get", f"list{p.prefix}{kind}ForAllNamespaces", "list", listing + kind, query=LIST,
                  responses=_responses(listed, STREAMS, ("200",)), gvk=gvk)
            p.own[everywhere] = pretty
    if "create" in verbs:
        p.add(base, "post", f"create{p.prefix}{scope}{kind}", "post", f"create {_article(kind)}", query=WRITE,
              body={"content": {"*/*": {"schema": me}}, "required": True}, responses=_responses(me, MEDIA, ("200", "201", "202")), gvk=gvk)
    status = p.ref(META + "Status") if "delete" in verbs or "deletecollection" in verbs else {}
    options = {"content": {"*/*": {"schema": p.ref(META + "DeleteOptions")}}} if status else None
    if "deletecollection" in verbs:
        p.add(base, "delete", f"delete{p.prefix}Collection{scope}{kind}", "deletecollection", f"delete collection of {kind}", query=DELETE_MANY,
              body=options, responses=_responses(status, MEDIA, ("200",)), gvk=gvk)
    if base in p.paths:
        p.own[base] = [*space, *pretty]
    if "get" in verbs:
        p.add(one, "get", f"read{p.prefix}{scope}{kind}", "get", f"read the specified {kind}", responses=_responses(me, MEDIA, ("200",)), gvk=gvk)
    if "update" in verbs:
        p.add(one, "put", f"replace{p.prefix}{scope}{kind}", "put", f"replace the specified {kind}", query=WRITE,
              body={"content": {"*/*": {"schema": me}}, "required": True}, responses=_responses(me, MEDIA, ("200", "201")), gvk=gvk)
    if "patch" in verbs:
        p.add(one, "patch", f"patch{p.prefix}{scope}{kind}", "patch", f"partially update the specified {kind}", query=(*WRITE, "force"),
              body=_patch_body(p, row), responses=_responses(me, MEDIA, ("200", "201")), gvk=gvk)
    if "delete" in verbs:
        answer = me if (row.group, row.plural) in _RETURNED else status
        p.add(one, "delete", f"delete{p.prefix}{scope}{kind}", "delete", f"delete {_article(kind)}", query=DELETE, body=options,
              responses=_responses(answer, MEDIA, ("200", "202")), gvk=gvk)
    if one in p.paths:
        p.own[one] = [*name, *space, *pretty]
    for s in row.subresources:
        _subresource(p, row, s, one, scope, space, pretty)
    if watchable and not row.custom:
        _watches(p, root, row, scope, gvk, name, space, pretty)


_RETURNED = {("", "pods"), ("", "podtemplates"), ("", "persistentvolumes"), ("", "persistentvolumeclaims"),
             ("", "resourcequotas"), ("", "serviceaccounts"), ("", "services"), ("storage.k8s.io", "csidrivers"),
             ("storage.k8s.io", "csinodes"), ("storage.k8s.io", "storageclasses"), ("storage.k8s.io", "volumeattachments"),
             ("storage.k8s.io", "volumeattributesclasses"), ("resource.k8s.io", "deviceclasses"), ("resource.k8s.io", "resourceclaims"),
             ("resource.k8s.io", "resourceclaimtemplates"), ("resource.k8s.io", "resourceslices"), ("resource.k8s.io", "devicetaintrules")}


def _patch_body(p: Paths, row: Resource) -> Doc:
    media = tuple(m for m in PATCHES if not (row.custom and "strategic" in m))
    return {"content": _content(p.ref(META + "Patch"), media), "required": True}


def _subresource(p: Paths, row: Resource, s: Subresource, one: str, scope: str, space: list[Doc], pretty: list[Doc]) -> None:
    title = s.name[:1].upper() + s.name[1:]
    path = f"{one}/{s.name}"
    connect = CONNECT.get(s.name) if not row.group else None
    inside = [place("name", f"name of the {s.kind or row.kind}"), *space]
    if connect is not None:
        kind, methods, query = connect[0].format(row.kind), connect[1], connect[2]
        inside = [place("name", f"name of the {kind}"), *space]
        gvk = row.group, row.version, kind
        answers = {"200": {"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}, "401": {"description": "Unauthorized"}}
        for suffix, where, more in (("", path, []), ("WithPath", path + "/{path}", [place("path", "path to the resource")])):
            if suffix and s.name != "proxy":
                break
            for method in methods:
                p.add(where, method, f"connect{p.prefix}{method.capitalize()}{scope}{row.kind}{title}{suffix}", "connect",
                      f"connect {method.upper()} requests to {s.name} of {row.kind}", query=query, of=f"{row.kind}.{s.name}", responses=answers, gvk=gvk)
            p.own[where] = [*inside, *more]
        return
    group, version, kind = (s.group, s.version, s.kind) if s.version else (row.group, row.version, s.kind or row.kind)
    gvk = group, version, kind
    if s.name == "log":
        p.add(path, "get", f"read{p.prefix}{scope}{row.kind}Log", "get", f"read log of the specified {row.kind}", query=LOG, of=f"{row.kind}.log", gvk=(
            row.group, row.version, row.kind), responses=_responses({"type": "string"}, (*MEDIA, "text/plain"), ("200",)))
        p.own[path] = [*inside, *pretty]
        return
    me = p.kind_ref(kind, group, version)
    if "get" in s.verbs:
        p.add(path, "get", f"read{p.prefix}{scope}{row.kind}{title}", "get", f"read {s.name} of the specified {row.kind}",
              responses=_responses(me, MEDIA, ("200",)), gvk=gvk)
    if "update" in s.verbs:
        p.add(path, "put", f"replace{p.prefix}{scope}{row.kind}{title}", "put", f"replace {s.name} of the specified {row.kind}", query=WRITE,
              body={"content": {"*/*": {"schema": me}}, "required": True}, responses=_responses(me, MEDIA, ("200", "201")), gvk=gvk)
    if "patch" in s.verbs:
        p.add(path, "patch", f"patch{p.prefix}{scope}{row.kind}{title}", "patch", f"partially update {s.name} of the specified {row.kind}",
              query=(*WRITE, "force"), body=_patch_body(p, row), responses=_responses(me, MEDIA, ("200", "201")), gvk=gvk)
    if "create" in s.verbs:
        p.add(path, "post", f"create{p.prefix}{scope}{row.kind}{title}", "post", f"create {s.name} of {_article(row.kind)}", query=WRITE,
              body={"content": {"*/*": {"schema": me}}, "required": True}, responses=_responses(me, MEDIA, ("200", "201", "202")), gvk=gvk)
    if path in p.paths:
        p.own[path] = [*inside, *pretty]


def _watches(p: Paths, root: str, row: Resource, scope: str, gvk: tuple[str, str, str], name: list[Doc], space: list[Doc], pretty: list[Doc]) -> None:
    """The deprecated /watch/ paths."""
    kind = row.kind
    event = _responses(p.ref(META + "WatchEvent"), STREAMS, ("200",))
    many = f"watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
    single = (f"watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a "
              "single item with the 'fieldSelector' parameter.")
    base = f"{root}/watch/namespaces/{{namespace}}/{row.plural}" if row.namespaced else f"{root}/watch/{row.plural}"
    p.add(base, "get", f"watch{p.prefix}{scope}{kind}List", "watchlist", many, query=LIST, responses=event, gvk=gvk)
    p.own[base] = [*space, *pretty]
    p.add(base + "/{name}", "get", f"watch{p.prefix}{scope}{kind}", "watch", single, query=LIST, responses=event, gvk=gvk)
    p.own[base + "/{name}"] = [*name, *space, *pretty]
    if row.namespaced:
        everywhere = f"{root}/watch/{row.plural}"
        p.add(everywhere, "get", f"watch{p.prefix}{kind}ListForAllNamespaces", "watchlist", many, query=LIST, responses=event, gvk=gvk)
        p.own[everywhere] = pretty
