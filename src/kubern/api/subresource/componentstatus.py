"""componentstatuses: deprecated, never stored; we say of ourselves that we are well. Upstream: pkg/registry/core/componentstatus."""

from __future__ import annotations

from kubern.api.call import Call, answer
from kubern.api.forms import Item, form_of
from kubern.api.options import list_options
from kubern.api.read import watch
from kubern.model.object import Object
from kubern.model.request import Response
from kubern.model.status import not_found

NAMES = {"controller-manager": "ok", "etcd-0": "ok", "scheduler": "ok"}


def _object(name: str) -> Object:
    return {"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": "True", "message": NAMES[name]}]}


def _item(name: str) -> Item:
    import orjson

    obj = _object(name)
    body = orjson.dumps({"metadata": obj["metadata"], "conditions": obj["conditions"]})[1:]
    return Item(name, body, 0, 0)


async def handle(call: Call) -> Response:
    name = call.attributes.name
    listing = call.attributes.verb != "get"
    accept = call.accept(listing)
    if listing:
        o = list_options(call.request, call.served.row)
        if o.watch:
            return watch(call, o)
        from kubern.api.call import answer_bytes

        form = form_of(call.served, accept, call.request.param("includeObject"), listing=True)
        return answer_bytes(form.list([i for i in map(_item, sorted(NAMES)) if o.everything or o.matches(i.parse())], b'"}'), accept)
    if name not in NAMES:
        raise not_found("", "componentstatus", name)
    if accept.convert:
        from kubern.api.call import answer_bytes

        return answer_bytes(form_of(call.served, accept, call.request.param("includeObject"), listing=False).one(_item(name)), accept)
    return answer(_object(name), accept)
