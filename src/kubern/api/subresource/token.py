"""token: a token for a service account, on request. What it says is in reviews.py."""

from __future__ import annotations

from kubern.api.call import Call, answer
from kubern.api.negotiate import NO_TABLE
from kubern.api.options import write_options
from kubern.api.subresource.reviews import token
from kubern.api.write import decode_object
from kubern.model.request import Response
from kubern.model.schema import schema_for


async def handle(call: Call) -> Response:
    accept = call.accept(conversions=NO_TABLE)
    options = write_options(call.request, "CreateOptions")
    api_version, kind = "authentication.k8s.io/v1", "TokenRequest"
    obj = await decode_object(call, options, api_version, kind, schema_for(api_version, kind))
    await call.server.admission_for(call, "CREATE", call.attributes.name, obj, None, options.dry_run, options.raw).run()
    return answer(await token(call.server, call, obj), accept, 201)
