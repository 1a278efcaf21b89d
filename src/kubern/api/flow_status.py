"""The Dangling condition of FlowSchemas: does the priority level exist that a schema names?

Upstream: apiserver pkg/util/flowcontrol (apf_controller.go), which is part of the API server as this is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kubern.api.cache import Change
from kubern.model.object import Object
from kubern.model.status import StatusError
from kubern.model.time import rfc3339

if TYPE_CHECKING:
    from kubern.api.handle import Server

log = logging.getLogger(__name__)
GROUP = "flowcontrol.apiserver.k8s.io"
MANAGER = "api-priority-and-fairness-config-consumer-v1"


def dangling(schema: Object, exists: bool, now: str) -> Object | None:
    """The condition to write; None where it stands already."""
    level = ((schema.get("spec") or {}).get("priorityLevelConfiguration") or {}).get("name") or ""
    wanted = {
        "type": "Dangling", "status": "False" if exists else "True", "lastTransitionTime": now, "reason": "Found" if exists else "NotFound",
        "message": f'This FlowSchema references the PriorityLevelConfiguration object named "{level}" '
                   + ("and it exists" if exists else "but there is no such object")}
    for c in (schema.get("status") or {}).get("conditions") or ():
        if c.get("type") == "Dangling":
            return None if all(c.get(f) == wanted[f] for f in ("status", "reason", "message")) else wanted
    return wanted


async def run(server: Server) -> None:
    """Keeps the conditions true for as long as the server runs."""
    schemas, levels = (server.cache.collection(GROUP, p) for p in ("flowschemas", "prioritylevelconfigurations"))
    changed = asyncio.Event()

    def listen(changes: list[Change]) -> None:
        changed.set()

    for c in (schemas, levels):
        c.listeners.append(listen)
    changed.set()
    while True:
        await changed.wait()
        changed.clear()
        now = rfc3339(server.clock())
        for key, item in list(schemas.items.items()):
            schema = item.peek()
            level = ((schema.get("spec") or {}).get("priorityLevelConfiguration") or {}).get("name") or ""
            condition = dangling(schema, levels.get(level) is not None, now)
            if condition is not None:
                await _write(server, key, condition)


async def _write(server: Server, name: str, condition: Object) -> None:
    served = server.rows.of_kind(f"{GROUP}/v1", "FlowSchema")
    if served is None:
        return
    body = {"apiVersion": f"{GROUP}/v1", "kind": "FlowSchema", "metadata": {"name": name}, "status": {"conditions": [condition]}}
    try:
        await server.client.patch(served.row, "", name, body, "apply", subresource="status", field_manager=MANAGER, force=True)
    except StatusError as e:
        log.log(logging.DEBUG if e.reason == "NotFound" else logging.WARNING, "flow schema %s: %s", name, e.message)
