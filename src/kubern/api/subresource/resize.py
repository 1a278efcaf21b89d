"""resize: a pod's resources, changed in place (KEP-1287). The rules are in model/kinds/pod_resize.py."""

from __future__ import annotations

from kubern.api import read, write
from kubern.api.call import Call
from kubern.api.negotiate import NO_TABLE
from kubern.model.kinds import pod_resize
from kubern.model.object import Object
from kubern.model.request import Response


def prepare(new: Object, old: Object) -> None:
    pod_resize.prepare_resize(new, old)
    write.bump_generation(new, old)


async def handle(call: Call) -> Response:
    method = call.request.method
    call.conversions = NO_TABLE
    if method == "GET":
        return await read.get(call)
    return await (write.update if method == "PUT" else write.patch)(call, prepare=prepare, check=pod_resize.validate_resize)
