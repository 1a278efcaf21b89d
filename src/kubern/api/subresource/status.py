"""status: the same object, of which only the status is read from the client."""

from __future__ import annotations

from kubern.api import read, write
from kubern.api.call import Call
from kubern.api.negotiate import NO_TABLE
from kubern.model.request import Response

WITHOUT_COLUMNS = {("resource.k8s.io", "resourceclaims"), ("apiregistration.k8s.io", "apiservices")}      # upstream's statuses have none of their own


async def handle(call: Call) -> Response:
    method = call.request.method
    if call.served.row.storage in WITHOUT_COLUMNS:
        call.conversions = NO_TABLE
    if method == "GET":
        return await read.get(call)
    return await (write.update if method == "PUT" else write.patch)(call)
