"""Tokens by which other machines join: create, list, delete. Sources: KEP-1, kubeadm token."""

from __future__ import annotations

import secrets as random
import time
from collections.abc import Iterable

from kubern.client.client import Client
from kubern.commands.terminal import ask, say
from kubern.config import Settings
from kubern.model import bootstrap
from kubern.model.object import Object
from kubern.model.resources import by_kind
from kubern.model.status import StatusError
from kubern.model.time import rfc3339

CONFIG_MAP, SECRET = by_kind["v1", "ConfigMap"], by_kind["v1", "Secret"]


def new_token() -> str:
    return "".join(random.choice(bootstrap.LETTERS) for _ in range(6)) + "." + "".join(random.choice(bootstrap.LETTERS) for _ in range(16))


def token_create(s: Settings, text: str, ttl: str, description: str, print_join_command: bool, usages: Iterable[str] = bootstrap.USAGES,
                 groups: Iterable[str] = (bootstrap.DEFAULT_GROUP,)) -> int:
    """Make a token and print it, or the command that joins with it."""
    try:
        id_, secret = bootstrap.parse(text or new_token())
        seconds = bootstrap.ttl_seconds(ttl)
    except ValueError as e:
        say(f"kubern: {e}")
        return 1
    token = bootstrap.Token(id_, secret, time.time() + seconds if seconds else 0.0, tuple(usages), tuple(groups), description)
    failure: list[str] = []

    async def make(client: Client) -> Object | None:
        try:
            await client.create(bootstrap.secret_of(token))
        except StatusError as e:
            failure.append(f"a token with id {id_} already exists" if e.code == 409 else e.message)
            return None
        return await client.get(CONFIG_MAP, bootstrap.PUBLIC, bootstrap.CLUSTER_INFO)
    info = ask(s, make)
    if failure or (info is None and ask(s, lambda c: c.get(SECRET, bootstrap.SYSTEM, bootstrap.SECRET_PREFIX + id_)) is None):
        say(f"kubern: {failure[0] if failure else f'no cluster is running in {s.data_dir}; start one with: kubern up'}")
        return 1
    if not print_join_command:
        say(token.text)
        return 0
    if info is None:
        say("kubern: this cluster takes no other machines: it has simulated nodes; start one with: kubern up --runtime none")
        return 1
    server, ca = bootstrap.cluster_of(info["data"][bootstrap.KUBECONFIG])
    say(f"kubern join {server.removeprefix('https://')} --token {token.text} --discovery-token-ca-cert-hash {bootstrap.ca_hash(ca)}")
    return 0


def token_list(s: Settings) -> int:
    """Print the tokens, as `kubeadm token list` does."""
    found = ask(s, lambda client: client.list(SECRET, bootstrap.SYSTEM, fields=f"type={bootstrap.SECRET_TYPE}"))
    if found is None:
        say(f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up")
        return 1
    tokens = sorted((t for t in map(bootstrap.token_of, found[0]) if t), key=lambda t: t.id)
    rows = [("TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS")]
    for t in tokens:
        rows.append((t.text, _left(t.expires_s, time.time()), rfc3339(t.expires_s) if t.expires_s else "<never>", ",".join(t.usages) or "<none>",
                     t.description or "<none>", ",".join(t.groups) or "<none>"))
    widths = [max(len(r[i]) for r in rows) for i in range(6)]
    for r in rows:
        say("   ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip())
    return 0


def _left(expires_s: float, now: float) -> str:
    left = int(expires_s - now)
    if not expires_s:
        return "<forever>"
    if left <= 0:
        return "<invalid>"
    return f"{left // 3600}h" if left >= 3600 else f"{left // 60}m" if left >= 60 else f"{left}s"


def token_delete(s: Settings, text: str) -> int:
    """Delete a token by its id or the whole of it."""
    id_ = text.partition(".")[0]
    done: list[int] = []

    async def drop(client: Client) -> bool:
        try:
            await client.delete(SECRET, bootstrap.SYSTEM, bootstrap.SECRET_PREFIX + id_)
        except StatusError as e:
            done.append(e.code)
            return False
        return True
    if ask(s, drop):
        say(f'bootstrap token "{id_}" deleted')
        return 0
    say(f"kubern: there is no bootstrap token {id_}" if done else f"kubern: no cluster is running in {s.data_dir}; start one with: kubern up")
    return 1
