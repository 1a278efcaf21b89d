"""review: POST of a resource that is only answered, never stored. The answers are in reviews.py."""

from __future__ import annotations

from kubern.api.call import Call, answer
from kubern.api.negotiate import NO_TABLE
from kubern.api.options import write_options
from kubern.api.subresource.reviews import VIRTUAL
from kubern.api.write import decode_object, match_namespace
from kubern.model.fields import update
from kubern.model.request import Response
from kubern.model.time import rfc3339


async def handle(call: Call) -> Response:
    accept = call.accept(conversions=NO_TABLE)
    options = write_options(call.request, "CreateOptions")
    obj = await decode_object(call, options)
    match_namespace(obj["metadata"], call)
    row = call.served.row
    meta = obj["metadata"]
    if entries := update(None, obj, options.manager, row.api_version, rfc3339(call.now_s), schema=call.served.schema):
        meta["managedFields"] = entries
    else:
        meta.pop("managedFields", None)
    await call.server.admission_for(call, "CREATE", "", obj, None, options.dry_run, options.raw).run()
    answered = await VIRTUAL[row.group, row.plural](call.server, call, obj)
    return answer({k: answered[k] for k in ("kind", "apiVersion", "metadata", "spec", "status") if k in answered}, accept, 201)
