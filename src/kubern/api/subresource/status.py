"""status: the same object, of which only the status is read from the client."""

from __future__ import annotations

from kubern.api import read, write
from kubern.api.call import Call
from kubern.model.request import Response


async def handle(call: Call) -> Response:
    method = call.request.method
    if method == "GET":
        return await read.get(call)
    return await (write.update if method == "PUT" else write.patch)(call)
