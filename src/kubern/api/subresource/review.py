"""review: POST of a resource that is only answered, never stored. The answers are in reviews.py."""

from __future__ import annotations

from kubern.api.call import Call, answer
from kubern.api.negotiate import NO_TABLE
from kubern.api.options import write_options
from kubern.api.subresource.reviews import VIRTUAL
from kubern.api.write import decode_object, match_namespace
from kubern.model.request import Response


async def handle(call: Call) -> Response:
    accept = call.accept(conversions=NO_TABLE)
    options = write_options(call.request, "CreateOptions")
    obj = await decode_object(call, options)
    match_namespace(obj["metadata"], call)
    row = call.served.row
    await call.server.admission_for(call, "CREATE", "", obj, None, options.dry_run, options.raw).run()
    return answer(await VIRTUAL[row.group, row.plural](call.server, call, obj), accept, 201)
