"""finalize: a namespace's spec.finalizers, the list its deletion waits for. Upstream: pkg/registry/core/namespace (FinalizeREST)."""

from __future__ import annotations

from kubern.api import write
from kubern.api.call import Call
from kubern.api.options import write_options
from kubern.model.invalid import FieldError
from kubern.model.metadata import validate_finalizer_name
from kubern.model.object import Object
from kubern.model.request import Response


async def handle(call: Call) -> Response:
    accept = call.accept()
    options = write_options(call.request, "UpdateOptions")
    obj = await write.decode_object(call, options)
    write.same_identity(call, obj)
    wanted = (obj.get("spec") or {}).get("finalizers") or []

    def build(live: Object | None) -> Object:
        assert live is not None
        meta = {**live["metadata"], "resourceVersion": obj["metadata"].get("resourceVersion") or ""}
        return {**live, "metadata": meta, "spec": {**(live.get("spec") or {}), "finalizers": list(wanted)}}

    def prepare(new: Object, old: Object) -> None:
        new["status"] = old.get("status") or {}
        if not new["spec"]["finalizers"]:
            del new["spec"]["finalizers"]

    def check(new: Object, old: Object) -> list[FieldError]:
        return [e for i, f in enumerate(wanted) for e in validate_finalizer_name(f, f"spec.finalizers[{i}]")]

    value, revision, _ = await write.modify(call, build, options, prepare=prepare, check=check)
    return await write.respond(call, accept, value, revision, 200)
