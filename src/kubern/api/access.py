"""Access: the configuration files of authentication and authorization, read before the server starts, applied to it, and followed.

The composition root reads them (`read`, which raises BadFile before anything is opened) and applies them between the server's start and its first
request (`applied`). A file that changes is taken up within seconds; what anonymous users may do is settled at start, as upstream has it.
Upstream: pkg/kubeapiserver/options/{authentication,authorization}.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

from kubern.api import configfile
from kubern.api.authn import configuration as authn
from kubern.api.authz import configuration as authz
from kubern.api.configfile import BadFile
from kubern.model.time import duration_s

if TYPE_CHECKING:
    from kubern.api.handle import Server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Files:
    """Settings by upstream's names of the flags; all may be left empty."""

    authentication_config: str = ""
    authentication_token_webhook_config_file: str = ""
    authentication_token_webhook_version: str = "v1"
    authentication_token_webhook_cache_ttl: str = "2m"
    authorization_config: str = ""
    own_issuers: tuple[str, ...] = ()


SETTINGS = tuple(f.name for f in fields(Files) if f.name != "own_issuers")


@dataclass(frozen=True, slots=True)
class Access:
    files: Files
    authentication: authn.Authentication
    authorizers: tuple[authz.Configured, ...]
    webhook_kept_s: float


def read(files: Files) -> Access:
    """Raises BadFile."""
    try:
        kept_s = duration_s(files.authentication_token_webhook_cache_ttl)
    except ValueError as e:
        raise BadFile(f"authentication-token-webhook-cache-ttl: {e}") from None
    authorizers = _read(files.authorization_config, authz.parse) if files.authorization_config else authz.DEFAULT
    return Access(files, _authentication(files), authorizers, kept_s)


def _authentication(files: Files) -> authn.Authentication:
    if not files.authentication_config:
        return authn.Authentication()
    return _read(files.authentication_config, lambda doc: authn.parse(doc, files.own_issuers))


def _read(path: str, parse: Callable[[object], T]) -> T:
    try:
        return parse(configfile.read(path))
    except BadFile as e:
        raise BadFile(f"{path}: {e}") from None


@asynccontextmanager
async def applied(access: Access, server: Server) -> AsyncIterator[None]:
    """The server decides by these files, and by what they will say, until this is left. Raises BadFile."""
    files, authenticator = access.files, server.authenticator
    tasks: list[asyncio.Task[None]] = []
    closing: list[Callable[[], Awaitable[None]]] = []

    def keep(path: str, changed: Callable[[], Awaitable[None]], what: str) -> None:
        tasks.append(asyncio.get_running_loop().create_task(configfile.follow(path, changed, what), name=f"file {path}"))
    if files.authorization_config:
        links = authz.Links(server.authorizer, server.clock)

        async def authorization() -> None:
            await links.configure(_read(files.authorization_config, authz.parse))
        await links.configure(access.authorizers)
        closing.append(links.close)
        keep(files.authorization_config, authorization, "authorization")
    if files.authentication_config:
        from kubern.api.authn.oidc import Providers

        providers = Providers(authenticator.audiences, server.clock)

        async def authentication() -> None:
            await providers.configure(_authentication(files))
            authenticator.forget()
        await providers.configure(access.authentication)
        authenticator.others.append(providers.check)
        if access.authentication.anonymous is not None:
            authenticator.anonymous = access.authentication.anonymous
            authenticator.anonymous_paths = frozenset(access.authentication.anonymous_paths)
        closing.append(providers.close)
        keep(files.authentication_config, authentication, "authentication")
    if files.authentication_token_webhook_config_file:
        from kubern.api.authn.webhook import TokenWebhook
        from kubern.api.remote import Remote

        remote = Remote(files.authentication_token_webhook_config_file)
        webhook = TokenWebhook(remote, authenticator.audiences, files.authentication_token_webhook_version, access.webhook_kept_s, server.clock)
        authenticator.others.append(webhook.check)
        closing.append(remote.close)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for close in closing:
            await close()
