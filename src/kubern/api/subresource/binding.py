"""binding: a pod gets its node, once. pods/NAME/binding, and the bindings collection which means the same.

Upstream: pkg/registry/core/pod/storage/storage.go (BindingREST), pkg/apis/core/validation ValidatePodBinding.
"""

from __future__ import annotations

from kubern.api import write
from kubern.api.call import Call, answer
from kubern.api.negotiate import NO_TABLE
from kubern.api.options import write_options
from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.request import Response
from kubern.model.schema import schema_for
from kubern.model.status import StatusError, bad_request, conflict
from kubern.model.time import rfc3339

SUCCESS: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def pods_of(call: Call) -> Call:
    """The same call on the pods row."""
    served = call.server.rows.by_path["", "v1", "pods"]
    out = Call(call.server, call.request, call.user, call.attributes, served)
    out.warnings = call.warnings
    return out


async def collection(call: Call) -> Response:
    return await _bind(call, "")


async def handle(call: Call) -> Response:
    return await _bind(call, call.attributes.name)


def set_condition(pod: Object, condition: Object) -> None:
    """The condition of this type in the pod's status, changed or added; its time moves only with its status."""
    status = pod["status"] = {**(pod.get("status") or {})}
    conditions = list(status.get("conditions") or ())
    for i, have in enumerate(conditions):
        if have.get("type") == condition["type"]:
            if have.get("status") == condition["status"]:
                condition = {**condition, "lastTransitionTime": have.get("lastTransitionTime")}
            conditions[i] = condition
            break
    else:
        conditions.append(condition)
    status["conditions"] = conditions


async def _bind(call: Call, name: str) -> Response:
    accept = call.accept(conversions=NO_TABLE)
    options = write_options(call.request, "CreateOptions")
    obj = await write.decode_object(call, options, "v1", "Binding", schema_for("v1", "Binding"))
    meta = obj["metadata"]
    pods = pods_of(call)
    write.match_namespace(meta, pods)
    bound = meta.get("name") or ""
    if name and bound != name:
        raise bad_request("name in URL does not match name in Binding object")
    admission = call.server.admission_for(call, "CREATE", bound, obj, None, options.dry_run, options.raw)
    await admission.mutate()
    target = obj.get("target") or {}
    kind = target.get("kind") or ""
    errors = []
    if kind not in ("", "Node"):
        errors.append(f'target.kind: Unsupported value: {quote(kind)}: supported values: "Node", "<empty>"')
    if not target.get("name"):
        errors.append("target.name: Required value")
    if errors:
        raise bad_request(errors[0] if len(errors) == 1 else f"[{', '.join(errors)}]")
    await admission.validate()
    if not bound:
        raise bad_request("Name parameter required.")
    pods.attributes = pods.attributes._replace(name=bound)

    def refuse(why: str) -> StatusError:
        return conflict("", "pods/binding", bound, why)

    def build(pod: Object | None) -> Object:
        assert pod is not None
        m, spec = pod["metadata"], pod.get("spec") or {}
        if meta.get("uid") and meta["uid"] != m.get("uid"):
            raise refuse(f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {m.get('uid')}")
        if meta.get("resourceVersion") and meta["resourceVersion"] != m.get("resourceVersion"):
            raise refuse(f"Precondition failed: ResourceVersion in precondition: {meta['resourceVersion']}, "
                         f"ResourceVersion in object meta: {m.get('resourceVersion')}")
        if m.get("deletionTimestamp"):
            raise refuse(f"pod {bound} is being deleted, cannot be assigned to a host")
        if spec.get("nodeName"):
            raise refuse(f"pod {bound} is already assigned to node {quote(spec['nodeName'])}")
        if spec.get("schedulingGates"):
            raise refuse(f"pod {bound} has non-empty .spec.schedulingGates")
        new = {**pod, "metadata": dict(m), "spec": {**spec, "nodeName": target["name"]}}
        for field in ("annotations", "labels"):
            if meta.get(field):
                new["metadata"][field] = {**(m.get(field) or {}), **meta[field]}
        set_condition(new, {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": rfc3339(call.now_s)})
        if new["status"].get("nominatedNodeName"):
            del new["status"]["nominatedNodeName"]
        return new

    await write.change(pods, build, options)
    return answer(SUCCESS, accept, 201)
