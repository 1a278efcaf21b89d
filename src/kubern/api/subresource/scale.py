"""scale: the replica count of a workload as an object of its own, autoscaling/v1 Scale.

Reads and writes spec.replicas of the parent (of custom resources: the paths their CRD names). Upstream: pkg/registry/apps/*/storage
(ScaleREST), apiextensions registry/customresource/etcd.go, pkg/apis/autoscaling/validation ValidateScale.
"""

from __future__ import annotations

from typing import Any

from kubern.api import write
from kubern.api.bodies import decoded, looks_like_yaml
from kubern.api.call import Call, answer
from kubern.api.negotiate import router_unsupported_media_type
from kubern.api.options import write_options
from kubern.api.read import find
from kubern.model import fields, invalid, table
from kubern.model.kinds import kind_of
from kubern.model.object import Object
from kubern.model.request import Response
from kubern.model.schema import schema_for
from kubern.model.selector import from_label_selector, from_set
from kubern.model.status import MODIFIED, bad_request, conflict
from kubern.model.status import invalid as invalid_status
from kubern.model.time import rfc3339

API_VERSION, KIND = "autoscaling/v1", "Scale"
UNSET = -(1 << 31)                     # replicas that a custom resource does not have, while they are changed


def _paths(call: Call) -> tuple[str, str, str]:
    """Where the parent keeps replicas, observed replicas and the selector text ("" = built in rules)."""
    custom = call.served.custom
    scale = getattr(custom, "scale", None) if custom is not None else None
    if scale:
        return scale["specReplicasPath"], scale["statusReplicasPath"], scale.get("labelSelectorPath") or ""
    return ".spec.replicas", ".status.replicas", ""


def _at(obj: Any, path: str) -> Any:
    for part in path.lstrip(".").split("."):
        obj = obj.get(part) if isinstance(obj, dict) else None
    return obj


def _with(obj: Object, path: str, value: Any) -> Object:
    """A copy with one value changed; the rest shared."""
    head, _, rest = path.lstrip(".").partition(".")
    below = obj.get(head)
    return {**obj, head: _with(below if isinstance(below, dict) else {}, rest, value) if rest else value}


def scale_of(call: Call, obj: Object, unset: int | None = None) -> Object:
    """The Scale of a workload. A custom resource without replicas has none, unless `unset` is to stand for them."""
    spec_path, status_path, selector_path = _paths(call)
    meta = obj["metadata"]
    out_meta = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp") if meta.get(k)}
    replicas = _at(obj, spec_path)
    if replicas is None and call.served.custom is not None:
        if unset is None:
            raise bad_request(f'the spec replicas field "{spec_path}" does not exist')
        replicas = unset
    status: Object = {"replicas": _at(obj, status_path) or 0}
    text = ""
    if call.served.custom is not None:
        text = (_at(obj, selector_path) or "") if selector_path else ""
    else:
        selector = (obj.get("spec") or {}).get("selector")
        if call.served.row.kind == "ReplicationController":
            text = str(from_set(selector))
        elif selector is not None:
            text = str(from_label_selector(selector))
    if text:
        status["selector"] = text
    return {"kind": KIND, "apiVersion": API_VERSION, "metadata": out_meta, "spec": {"replicas": replicas} if replicas else {}, "status": status}


async def handle(call: Call) -> Response:
    accept = call.accept()
    method = call.request.method
    if method == "GET":
        item = find(call)
        await call.served.ready((item,))
        scale = scale_of(call, call.served.shown(item))
        if accept.convert == "Table":
            include = table.check_include(call.request.param("includeObject"))
            list_meta = {"resourceVersion": scale["metadata"].get("resourceVersion", "")}
            kind = kind_of("autoscaling", KIND) if call.served.custom is None else call.served.kind
            scale = table.table(kind, [scale], list_meta, include, call.now_s, meta_version=f"meta.k8s.io/{accept.version}")
        elif accept.convert == "PartialObjectMetadata":
            scale = {"kind": accept.convert, "apiVersion": f"meta.k8s.io/{accept.version}", "metadata": scale["metadata"]}
        return answer(scale, accept)
    patching = method == "PATCH"
    schema = schema_for(API_VERSION, KIND)
    type_ = ""
    if patching:
        header = call.request.headers.get("content-type", "").partition(";")[0].strip()
        type_ = write.PATCH_TYPES.get(header, "")
        if not type_:
            raise router_unsupported_media_type()
    options = write_options(call.request, "PatchOptions" if patching else "UpdateOptions", type_)
    given: Object | None = None
    if not patching:
        given = await write.decode_object(call, options, API_VERSION, KIND, schema)
        write.same_identity(call, given)
    row = call.served.row
    spec_path = _paths(call)[0]
    where = tuple(spec_path.lstrip(".").split("."))

    body = call.request.body
    parsed: tuple[Object, list[str]] = ({}, [])
    if type_ == "apply":
        parsed = await decoded(body, looks_like_yaml(body), lambda: fields.parse_applied(body, row, schema, options.validation))

    def build(live: Object | None) -> Object:
        assert live is not None
        before = scale_of(call, live, UNSET)
        owned = fields.to_scale(live["metadata"].get("managedFields"), where, row.api_version)
        tracked = {**before, "metadata": {**before["metadata"], "managedFields": owned}}
        after: Object
        if type_ == "apply":
            applied, warnings = parsed
            for w in warnings:
                call.warn(w)
            after = fields.apply(tracked, applied, options.manager, options.force, API_VERSION, rfc3339(call.now_s), "scale", schema,
                                 reset={}, kind=KIND)
            given_meta = applied.get("metadata") or {}
            if call.served.custom is not None and after["spec"] != before["spec"]:       # upstream has no way back from a Scale to it
                raise bad_request(f"failed to convert new object ({given_meta.get('namespace') or ''}/{given_meta.get('name') or ''}; {API_VERSION}, "
                                  f"Kind={KIND}) to proper version: request to convert CR to an invalid group/version: {API_VERSION}")
            if not given_meta.get("resourceVersion"):
                after["metadata"].pop("resourceVersion", None)
        elif patching:
            from kubern.model.patch import patched

            after, warnings = patched(type_, tracked if owned else before, call.request.body, schema, kind=KIND, api_version=API_VERSION,
                                      validation=options.validation)
            for w in warnings:
                call.warn(w)
        else:
            assert given is not None
            after = given
        meta = after.get("metadata") or {}
        version, have = meta.get("resourceVersion") or "", live["metadata"]["resourceVersion"]
        if version and version != have:
            raise conflict(row.group, row.plural, call.attributes.name, MODIFIED)
        if meta.get("uid") and meta["uid"] != live["metadata"].get("uid"):
            raise conflict(row.group, row.plural, call.attributes.name,
                           f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {live['metadata'].get('uid')}")
        replicas = (after.get("spec") or {}).get("replicas") or 0
        if replicas == UNSET and call.served.custom is not None:
            raise bad_request(f'the spec replicas field "{spec_path}" cannot be empty')
        if replicas < 0 and call.served.custom is None:
            raise invalid_status("autoscaling", KIND, call.attributes.name,
                                 [invalid.invalid("spec.replicas", replicas, "must be greater than or equal to 0")])
        entries = after["metadata"].get("managedFields") if type_ == "apply" else fields.update(
            tracked, {**before, "spec": {"replicas": replicas} if replicas else {}}, options.manager, API_VERSION, rfc3339(call.now_s), "scale",
            schema=schema, reset={})
        entries = fields.from_scale(live["metadata"].get("managedFields"), entries, where, row.api_version)
        meta = {k: v for k, v in live["metadata"].items() if k != "managedFields"}
        if entries:
            meta["managedFields"] = entries
        return {**_with(live, spec_path, replicas), "metadata": meta}

    kind = call.served.kind
    value, revision, _ = await write.modify(call, build, options, subresource="scale", tracked=True, prepare=write.as_main(kind), check=kind.validate_update)
    item = write.item_of(call, value, revision)
    await call.served.ready((item,))
    return answer(scale_of(call, call.served.shown(item), 0), accept)
