"""The scheduler, and the answer to `kubern why`, which only it can give."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kubern import KUBERNETES_VERSION
from kubern.client.mirror import Mirrors
from kubern.model.request import User
from kubern.roles.context import Context, alone, running


@asynccontextmanager
async def run(ctx: Context) -> AsyncIterator[None]:
    from kubern.api.call import Call
    from kubern.model.request import Response
    from kubern.model.status import not_found
    from kubern.scheduler.run import Scheduler

    ready = asyncio.Event()
    client = ctx.client(User("system:kube-scheduler", ("system:authenticated",)), f"kube-scheduler/{KUBERNETES_VERSION}")
    at_work: Scheduler | None = None

    async def work() -> None:
        nonlocal at_work
        mirrors = Mirrors(client)
        at_work = Scheduler(client, mirrors, ctx.clock, configuration=scheduler_configuration(ctx.settings.scheduler_config))
        try:
            await at_work.run(ready.set)
        finally:
            at_work = None
            await mirrors.close()
    async with running(ctx.spawn(alone(ctx, "kube-scheduler", work, ready), "scheduler")):
        await ready.wait()

        async def why(call: Call) -> Response:
            found = at_work.why(call.attributes.namespace, call.attributes.name) if at_work is not None else None
            if found is None:
                raise not_found("", "pods", call.attributes.name)
            return Response(200, [("Content-Type", "application/json")], json.dumps(found).encode())
        assert ctx.server is not None
        ctx.server.unlisted["", "pods", "why"] = why
        ctx.tell("scheduler")
        yield


def scheduler_configuration(path: str) -> Any:
    """The scheduler's Configuration from a file; the standard one without. Raises OSError or BadConfiguration."""
    if not path:
        from kubern.scheduler.profile import STANDARD
        return STANDARD
    import yaml

    from kubern.scheduler.configuration import BadConfiguration, parse

    try:
        return parse(yaml.safe_load(Path(path).read_text()))
    except (yaml.YAMLError, BadConfiguration) as e:
        raise OSError(f"{path}: {e}") from None
