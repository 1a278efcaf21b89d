"""approval: the conditions Approved and Denied of a certificate signing request; and who asked for one, when it is made.

Upstream: pkg/registry/certificates (ApprovalREST, csrStrategy).
"""

from __future__ import annotations

from collections.abc import Callable

from kubern.api import read, write
from kubern.api.call import Call
from kubern.model.kinds import certificates
from kubern.model.object import Object
from kubern.model.request import Response
from kubern.model.time import rfc3339

Prepare = Callable[[Object, Object], None]


def asked(call: Call, obj: Object, dry_run: bool) -> None:
    """Server.begin_create: a request says who makes it."""
    user = call.user
    certificates.asked_by(obj, user.name, user.uid, user.groups, user.extra)


def stamped(call: Call, prepare: Prepare) -> Prepare:
    """A preparation after which conditions have their times."""

    def run(new: Object, old: Object) -> None:
        prepare(new, old)
        certificates.stamp(new, old, rfc3339(call.now_s))

    return run


async def handle(call: Call) -> Response:
    method = call.request.method
    if method == "GET":
        return await read.get(call)
    prepare = stamped(call, certificates.prepare_approval)
    return await (write.update if method == "PUT" else write.patch)(call, prepare=prepare, check=certificates.validate_approval)


async def status(call: Call) -> Response:
    """The status of a request, whose conditions get times as well."""
    method = call.request.method
    if method == "GET":
        return await read.get(call)
    return await (write.update if method == "PUT" else write.patch)(call, prepare=stamped(call, certificates.prepare_status))
