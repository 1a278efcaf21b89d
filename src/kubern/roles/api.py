"""The API server: its store, what it writes down, who may ask; listening with TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kubern import KUBERNETES_VERSION, pki
from kubern.config import Settings
from kubern.roles.context import Context, running

if TYPE_CHECKING:
    from kubern.api.audit import Audit

DRAIN_S = 4.0                          # for requests that are being answered when the end comes


@asynccontextmanager
async def run(ctx: Context) -> AsyncIterator[None]:
    """Store and API server, listening with TLS."""
    from kubern.api import access, http
    from kubern.api.handle import Server
    from kubern.api.settings import ApiSettings

    s, p = ctx.settings, ctx.pki
    low, _, high = s.node_ports.partition("-")
    kubelet = p.clients["apiserver-kubelet-client"]
    async with AsyncExitStack() as stack:                    # left in reverse: first nobody is listened to any more, last the audit is closed
        audit = await stack.enter_async_context(audited(s))
        allowed = access.read(access.Files(own_issuers=(issuer(s),), **{name: getattr(s, name) for name in access.SETTINGS}))
        store = await open_store(s)
        stack.push_async_callback(store.close)
        if s.encryption_config and s.encryption_config_automatic_reload == "true":
            await stack.enter_async_context(running(ctx.spawn(follow_encryption(s.encryption_config, store), "encryption")))
        server = Server(store, settings=ApiSettings(
            service_cidr=s.service_cidr, node_ports=(int(low), int(high)), advertise_address=ctx.advertised, advertise_port=s.port,
            cluster_domain=s.cluster_domain, client_ca=p.ca.cert, front_proxy_ca=p.front_proxy_ca.cert,
            service_account_issuer=issuer(s), service_account_public_keys=(p.service_account_public,),
            service_account_signing_key=p.service_account_key, kubelet_client_cert=str(kubelet.cert_path), kubelet_client_key=str(kubelet.key_path),
            proxy_client_cert=str(p.front_proxy_client.cert_path), proxy_client_key=str(p.front_proxy_client.key_path)))
        server.audit = audit
        server.flags = {name.replace("_", "-"): str(value) for name, value in asdict(s).items()}
        stack.push_async_callback(server.stop)
        await server.start()
        ctx.server = server
        await stack.enter_async_context(access.applied(allowed, server))
        context = http.ssl_context(str(p.apiserver.cert_path), str(p.apiserver.key_path), p.ca.cert + p.front_proxy_ca.cert)
        listening = await http.serve(server.handle, ctx.listens, s.port, context, fast=server.fast)
        stack.push_async_callback(listening.close, DRAIN_S)
        write_kubeconfigs(ctx)
        ctx.tell(f"API server {KUBERNETES_VERSION} on https://{'127.0.0.1' if s.bind == '0.0.0.0' else s.bind}:{s.port}")
        yield


def issuer(s: Settings) -> str:
    """Who signs service-account tokens: a name every pod resolves by its search path, and the serving certificate carries."""
    return "https://kubernetes.default"


async def open_store(s: Settings) -> Any:
    """The store of the settings, with encryption where it is asked for."""
    if not s.encryption_config:
        return await open_driver(s)
    from kubern.store.encrypted import EncryptedStore
    from kubern.store.encryption import read

    encryption = read(s.encryption_config)                   # before anything is opened
    return EncryptedStore(await open_driver(s), encryption)


async def open_driver(s: Settings) -> Any:
    if s.store == "memory":
        from kubern.store.memory import MemoryStore

        return MemoryStore()
    if s.store.startswith("etcd://"):
        from kubern.store.etcd import EtcdStore

        return await EtcdStore.open(s.store)
    from kubern.store.sqlite import SqliteStore

    return await SqliteStore.open(s.home / "kubern.db")


async def follow_encryption(path: str, store: Any) -> None:
    """Takes up what the file says when it changes, if its keys open all that is there."""
    from kubern.api.configfile import BadFile, follow
    from kubern.store.encryption import BadConfiguration, CannotOpen, read
    from kubern.store.protocol import Unavailable

    async def changed() -> None:
        try:
            await store.configure(read(path))
        except (BadConfiguration, CannotOpen, Unavailable) as e:
            raise BadFile(str(e)) from None
    await follow(path, changed, "encryption")


@asynccontextmanager
async def audited(s: Settings) -> AsyncIterator[Audit | None]:
    """The audit of the settings: a policy, and where its events go. Raises BadPolicy, BadFile."""
    if not s.audit_policy_file:
        yield None
        return
    from kubern.api import audit
    from kubern.api.audit.log import FORMATS
    from kubern.api.audit.truncate import Truncated
    from kubern.api.audit.webhook import Batching, WebhookSink
    from kubern.api.configfile import BadFile
    from kubern.api.remote import Remote
    from kubern.model.time import duration_s

    policy = audit.read(s.audit_policy_file)
    if s.audit_log_format not in FORMATS:
        raise BadFile(f"audit-log-format must be one of {', '.join(FORMATS)}, not {s.audit_log_format!r}")
    try:
        wait_s, pause_s = duration_s(s.audit_webhook_batch_max_wait), duration_s(s.audit_webhook_initial_backoff)
    except ValueError as e:
        raise BadFile(f"audit-webhook: {e}") from None
    log = webhook = None
    if s.audit_log_path or not s.audit_webhook_config_file:
        log = audit.Log(s.audit_log_path or str(s.home / "audit.log"), s.audit_log_maxsize << 20, s.audit_log_maxbackup, s.audit_log_maxage,
                        s.audit_log_compress == "true", s.audit_log_format)
    if s.audit_webhook_config_file:
        batching = Batching(s.audit_webhook_batch_buffer_size, s.audit_webhook_batch_max_size, wait_s,
                            s.audit_webhook_batch_throttle_qps, s.audit_webhook_batch_throttle_burst)
        webhook = WebhookSink(Remote(s.audit_webhook_config_file, pause_s=pause_s), batching)
    sinks: list[audit.Sink] = []
    for sink, cut, max_bytes in ((log, s.audit_log_truncate_enabled, s.audit_log_truncate_max_event_size),
                                 (webhook, s.audit_webhook_truncate_enabled, s.audit_webhook_truncate_max_event_size)):
        if sink is not None:
            sinks.append(Truncated(sink, max_bytes) if cut == "true" else sink)
    try:
        yield audit.Audit(policy, sinks)
    finally:
        if webhook is not None:
            await webhook.close()
        if log is not None:
            log.close()


def write_kubeconfigs(ctx: Context) -> None:
    """D/admin.kubeconfig for people on this machine."""
    s, p = ctx.settings, ctx.pki
    name = "kubern" if s.port == 6443 else f"kubern-{s.port}"
    host = "127.0.0.1" if s.bind in ("0.0.0.0", "::") else s.bind
    pki.write_kubeconfig(s.home / "admin.kubeconfig", pki.kubeconfig(name, f"https://{host}:{s.port}", p.ca.cert, p.clients["admin"]))
