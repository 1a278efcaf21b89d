"""What every command does: say a line, and ask the running cluster."""

from __future__ import annotations

from typing import Any

from kubern.config import Settings


def say(text: str) -> None:
    print(text, flush=True)


def admin(s: Settings) -> Any:
    """(client, close) of the running cluster as its admin; None if there is none."""
    from kubern.client.client import Client
    from kubern.client.kubeconfig import sender_of

    path = s.home / "admin.kubeconfig"
    if not path.exists():
        return None
    sender = sender_of(path)
    return Client(sender.send, agent="kubern"), sender.close


def ask(s: Settings, question: Any) -> Any:
    """`await question(client)` against the running cluster; None if nothing answers."""
    import asyncio

    async def run() -> Any:
        made = admin(s)
        if made is None:
            return None
        client, close = made
        try:
            return await question(client)
        finally:
            await close()
    from kubern.model.status import StatusError

    try:
        return asyncio.run(run())
    except (StatusError, OSError):
        return None
