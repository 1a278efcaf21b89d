"""The kubelet's HTTPS endpoint: logs, exec, attach, port forward, figures. Clients are the API server and scrapers; who may ask is guard.py's.

Toward clients exec and attach speak WebSocket (v5, v4 and older) and SPDY/3.1, port forward also SPDY tunnelled in WebSocket; toward the
runtime always SPDY/3.1. Upstream: pkg/kubelet/server; KEP-4006.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from kubern.kubelet import container as config
from kubern.kubelet import localvolumes, logs, scrape, stats
from kubern.kubelet.configuration import interpret
from kubern.kubelet.guard import Guard, Refused
from kubern.kubelet.pods import find_container
from kubern.kubelet.runtime import EXITED, RUNNING, Container, RuntimeFailure
from kubern.kubelet.status import stamp
from kubern.model.request import Request, Response, Stream
from kubern.wire import channels, h1, websocket
from kubern.wire.spdy import Session
from kubern.wire.stream import Prefixed, SocketStream, UpgradeRefused, dial, splice, upgrade

if TYPE_CHECKING:
    from kubern.kubelet.run import Kubelet

log = logging.getLogger(__name__)
NODE_LOG_BYTES_MAX = 16 << 20
LONG_RUNNING = ("exec", "attach", "portForward", "containerLogs")
KNOWN = (*LONG_RUNNING, "run", "pods", "runningpods", "stats", "metrics", "logs", "healthz", "configz", "checkpoint", "statusz", "flagz")
def text(status: int, body: str, kind: str = "text/plain; charset=utf-8") -> Response:
    return Response(status, [("Content-Type", kind)], body.encode())


def json(doc: Any) -> Response:
    return Response(200, [("Content-Type", "application/json")], orjson.dumps(doc))


class Endpoint:
    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet, self.guard, self.sampler = kubelet, Guard(kubelet), stats.Sampler(kubelet)

    async def handle(self, request: Request) -> Response:
        first = request.path.strip("/").partition("/")[0]
        m, long = self.kubelet.measures, first in LONG_RUNNING
        m.count("http_requests_total", request.method, first if first in KNOWN else "other", "readwrite", "true" if long else "false")
        try:
            await self.guard.check(request)
            if long:
                return await self._route(request)
            with m.requests.timed(first if first in KNOWN else "other"):
                return await self._route(request)
        except Refused as e:
            return text(e.status, e.text)
        except RuntimeFailure as e:
            return text(404 if e.code == "NOT_FOUND" else 500, str(e))
        except UpgradeRefused as e:
            return text(e.status if e.status >= 400 else 502, e.body.decode(errors="replace") or str(e))
        except OSError as e:
            return text(500, str(e))

    async def _route(self, r: Request) -> Response:
        k = self.kubelet
        parts = r.path.strip("/").split("/")
        first = parts[0]
        if first in ("healthz", "readyz", "livez"):
            return text(200, "ok")
        if first == "pods":
            return json({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [{**w.pod, "status": w.status} for w in k.workers.values()]})
        if first == "runningpods":
            return json({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
                {"metadata": {x: w.pod["metadata"].get(x) for x in ("name", "namespace", "uid")},
                 "spec": {"containers": [{"name": c.name, "image": c.image, "resources": {}} for c in k.observer.seen(w.uid).containers
                                         if c.state == RUNNING]}, "status": {}}
                for w in k.workers.values() if k.observer.seen(w.uid).running]})
        if first == "stats":
            if r.path.rstrip("/") in ("/stats", "/stats/summary"):
                only = r.param("only_cpu_and_memory") in ("true", "1")
                return json(stats.summary(await self.sampler.sample(), k.settings.name, only))
            raise Refused(404, "404 page not found\n")
        if first == "metrics":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            which = parts[1] if len(parts) > 1 else ""
            if which == "":
                return text(200, scrape.kubelet_metrics(k) + scrape.volume_metrics(await self.sampler.sample()), kind)
            if which == "resource":
                return text(200, scrape.resource_metrics(await self.sampler.sample()), kind)
            if which == "cadvisor":
                sample = await self.sampler.sample()
                return text(200, scrape.cadvisor_metrics(sample, await asyncio.to_thread(scrape.details, sample, k.cgroups)), kind)
            if which == "probes":
                return text(200, scrape.probe_metrics(k), kind)
        if first == "configz":
            return json({"kubeletconfig": in_force(k)})
        if first == "containerLogs" and len(parts) == 4:
            return await self._logs(r, parts[1], parts[2], parts[3])
        if first == "localvolumes" and len(parts) == 2 and r.method in ("POST", "DELETE"):
            try:
                return json(await asyncio.to_thread(localvolumes.make if r.method == "POST" else localvolumes.remove, k.settings.root, parts[1]))
            except ValueError as e:
                raise Refused(400, str(e)) from None
        if first == "checkpoint" and len(parts) == 4 and r.method == "POST":
            return await self._checkpoint(r, parts[1], parts[2], parts[3])
        if first == "logs":
            return await self._node_logs("/".join(parts[1:]))
        if first in ("exec", "attach", "run") and len(parts) in (4, 5):
            namespace, pod, name = parts[1], parts[2], parts[-1]
            c = self._container(namespace, pod, parts[3] if len(parts) == 5 else "", name)
            if first == "run":
                return await self._run(r, c)
            return await self._command(r, c, first == "attach", namespace, pod, name)
        if first == "portForward" and len(parts) in (3, 4):
            return await self._forward(r, parts[1], parts[2], parts[3] if len(parts) == 4 else "")
        raise Refused(404, "404 page not found\n")

    # --- finding ---

    def _pod(self, namespace: str, name: str, uid: str = "") -> str:
        w = self.kubelet.worker_of(namespace, name)
        if w is None or (uid and w.uid != uid):
            raise Refused(404, "pod does not exist")
        return w.uid

    def _container(self, namespace: str, pod: str, uid: str, name: str) -> Container:
        c = self.kubelet.observer.seen(self._pod(namespace, pod, uid)).latest(name)
        if c is None:
            raise Refused(500, f'container not found ("{name}")')
        return c

    # --- logs ---

    async def _logs(self, r: Request, namespace: str, pod: str, name: str) -> Response:
        k = self.kubelet
        o = log_options(r, k.clock())
        w = k.worker_of(namespace, pod)
        if w is None:
            raise Refused(404, f'pod "{pod}" does not exist')
        if not any(c["name"] == name for group in ("containers", "initContainers", "ephemeralContainers") for c in w.pod["spec"].get(group) or ()):
            raise Refused(404, f'container "{name}" not found in pod "{pod}"')
        previous = r.param("previous") in ("true", "1")
        every = k.observer.seen(w.uid).all_of(name)
        ended = [c for c in every if c.state == EXITED]
        if previous:
            if len(every) > 1:
                c = every[1]
            elif ended and every and every[0].state == EXITED and self._restarting(w.status, name):
                c = every[0]
            else:
                raise Refused(400, f'previous terminated container "{name}" in pod "{pod}" not found')
        elif not every:
            raise Refused(400, self._waiting_text(w.status, name, pod))
        else:
            c = every[0]
        path = c.log_path or f"{config.log_directory(k.actor.node, w.pod)}/{name}/{c.restart_count}.log"
        if not await asyncio.to_thread(os.path.exists, path):
            raise Refused(404, f"failed to try resolving symlinks in path \"{path}\": lstat {path}: no such file or directory")

        def alive() -> bool:
            now = k.observer.seen(w.uid).latest(name)
            return now is not None and now.id == c.id and now.state == RUNNING

        source = logs.read(path, o, alive)
        if o.follow:
            return Response(200, [("Content-Type", "text/plain")], source)
        return Response(200, [("Content-Type", "text/plain")], _guarded(source))

    @staticmethod
    def _restarting(status: dict[str, Any], name: str) -> bool:
        return any(s["name"] == name and "waiting" in s["state"] for s in status.get("containerStatuses") or ())

    @staticmethod
    def _waiting_text(status: dict[str, Any], name: str, pod: str) -> str:
        for key in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
            for s in status.get(key) or ():
                if s["name"] == name and "waiting" in s["state"]:
                    reason = s["state"]["waiting"].get("reason") or ""
                    words = {"ErrImagePull": "image can't be pulled", "ImagePullBackOff": "trying and failing to pull image"}.get(reason, reason)
                    return f'container "{name}" in pod "{pod}" is waiting to start: {words}'
        return f'container "{name}" in pod "{pod}" is not available'

    async def _node_logs(self, path: str) -> Response:
        return await asyncio.to_thread(node_log, path)

    async def _checkpoint(self, r: Request, namespace: str, pod: str, name: str) -> Response:
        """KEP-2008. Whether it can be done is the runtime's answer."""
        k = self.kubelet
        w = k.worker_of(namespace, pod)
        if w is None:
            raise Refused(404, "pod does not exist")
        if find_container(w.pod["spec"], name) is None:
            raise Refused(404, f"container {name} does not exist")
        timeout = r.param("timeout") or "0"
        if not timeout.isdigit():
            raise Refused(404, "cannot parse value of timeout parameter")
        c = self._container(namespace, pod, "", name)
        path = f"{k.settings.root}/checkpoints/checkpoint-{pod}_{namespace}-{name}-{stamp(k.clock())}.tar"
        await asyncio.to_thread(os.makedirs, os.path.dirname(path), 0o700, True)
        try:
            await k.runtime.checkpoint(c.id, path, int(timeout))
        except RuntimeFailure as e:
            raise Refused(500, f"checkpointing of {namespace}/{pod}/{name} failed ({e})") from None
        return json({"items": [path]})

    # --- commands ---

    async def _run(self, r: Request, c: Container) -> Response:
        result = await self.kubelet.runtime.exec_sync(c.id, r.param("cmd").split(" "), 0)
        return Response(200, [("Content-Type", "text/plain")], result.stdout + result.stderr)

    async def _command(self, r: Request, c: Container, attach: bool, namespace: str, pod: str, name: str) -> Response:
        wanted = channels.Wanted(_yes(r, "stdin", "input"), _yes(r, "stdout", "output"), _yes(r, "stderr", "error"), _yes(r, "tty"))
        if not (wanted.stdin or wanted.stdout or wanted.stderr):
            raise Refused(400, "you must specify at least 1 of stdin, stdout, stderr")
        if c.state != RUNNING:
            raise Refused(500, f'container not found ("{name}")')
        runtime = self.kubelet.runtime
        command = r.query.get("command") or []
        stderr = wanted.stderr and not wanted.tty
        if websocket.is_upgrade(r):
            protocol = websocket.choose(r, channels.COMMAND_PROTOCOLS)
            if protocol is None:
                raise Refused(403, f"unable to upgrade: unable to negotiate protocol: client supports {websocket.offered(r)}, "
                                   f"server accepts {list(channels.COMMAND_PROTOCOLS)}")
        elif r.headers.get("upgrade", "").lower() != "spdy/3.1":
            raise Refused(400, "Upgrade request required")
        url = await (runtime.attach_url(c.id, wanted.tty, wanted.stdin, wanted.stdout, stderr) if attach
                     else runtime.exec_url(c.id, command, wanted.tty, wanted.stdin, wanted.stdout, stderr))
        if not websocket.is_upgrade(r):
            return await self._pass_spdy(r, url)
        _, stream = await open_spdy(url, channels.SPDY_COMMAND_PROTOCOLS)

        async def carry(raw: Stream) -> None:
            socket = websocket.WebSocket(raw)
            session = Session(stream, server=False)
            try:
                await channels.command(channels.Channels(socket, protocol or "channel.k8s.io"), session, wanted)
            finally:
                await stream.close()
                await raw.close()
        return Response(101, websocket.answer_headers(r, protocol or ""), b"", carry)

    async def _pass_spdy(self, r: Request, url: str) -> Response:
        """A client that speaks SPDY talks to the runtime itself, through us."""
        offered = r.repeated.get("x-stream-protocol-version") or \
            [p.strip() for p in r.headers.get("x-stream-protocol-version", "").split(",") if p.strip()]
        answer, stream = await open_spdy(url, offered)
        keep = [(k.title(), v) for k, v in answer if k in ("x-stream-protocol-version", "x-accepted-stream-protocol-versions")]

        async def carry(raw: Stream) -> None:
            await splice(raw, stream)
        return Response(101, [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), *keep], b"", carry)

    async def _forward(self, r: Request, namespace: str, pod: str, uid: str) -> Response:
        seen = self.kubelet.observer.seen(self._pod(namespace, pod, uid))
        sandbox = next((s for s in seen.sandboxes if s.ready), None)
        if sandbox is None:
            raise Refused(500, f"pod not found (\"{pod}_{namespace}\")")
        runtime = self.kubelet.runtime
        if not websocket.is_upgrade(r):
            if r.headers.get("upgrade", "").lower() != "spdy/3.1":
                raise Refused(400, "Upgrade request required")
            return await self._pass_spdy(r, await runtime.port_forward_url(sandbox.id))
        protocol = websocket.choose(r, (channels.TUNNEL, *channels.FORWARD_PROTOCOLS))
        if protocol is None:
            raise Refused(403, "unable to upgrade: no protocol in common")
        if protocol == channels.TUNNEL:
            _, stream = await open_spdy(await runtime.port_forward_url(sandbox.id), ("portforward.k8s.io",))

            async def tunnel(raw: Stream) -> None:
                await splice(channels.as_bytes(websocket.WebSocket(raw)), stream)
                await raw.close()
            return Response(101, websocket.answer_headers(r, protocol), b"", tunnel)
        ports = [int(p) for v in r.query.get("port") or r.query.get("ports") or () for p in v.split(",") if p.isdigit() and 0 < int(p) < 65536]
        if not ports:
            raise Refused(400, "query parameter \"port\" is required")
        _, stream = await open_spdy(await runtime.port_forward_url(sandbox.id, ports), ("portforward.k8s.io",))

        async def carry(raw: Stream) -> None:
            try:
                await channels.forward(channels.Channels(websocket.WebSocket(raw), protocol), Session(stream, server=False), ports)
            finally:
                await stream.close()
                await raw.close()
        return Response(101, websocket.answer_headers(r, protocol), b"", carry)


def _yes(r: Request, *names: str) -> bool:
    return any(r.param(n).lower() in ("true", "1", "t") for n in names)


async def _guarded(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A log that ends when its file goes away."""
    with contextlib.suppress(OSError):
        async for chunk in source:
            yield chunk


async def open_spdy(url: str, protocols: Any) -> tuple[list[tuple[str, str]], Stream]:
    """Upgrades to SPDY at a streaming address of the runtime. Raises UpgradeRefused, OSError."""
    u = urlsplit(url)
    stream: SocketStream = await dial(u.hostname or "127.0.0.1", u.port or 80)
    headers = [("Host", u.netloc), ("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("Content-Length", "0"),
               *(("X-Stream-Protocol-Version", p) for p in protocols)]
    try:
        answer, rest = await upgrade(stream, "POST", u.path + (f"?{u.query}" if u.query else ""), headers)
    except BaseException:
        await stream.close()
        raise
    return answer, Prefixed(rest, stream)


def node_log(path: str) -> Response:
    """A file or listing of /var/log, and nothing outside of it."""
    base = os.path.realpath("/var/log")
    at = os.path.realpath(os.path.join(base, path))
    if at != base and not at.startswith(base + "/"):
        raise Refused(404, "404 page not found\n")
    try:
        if os.path.isdir(at):
            names = "".join(f'<a href="{n}">{n}</a>\n' for n in sorted(os.listdir(at)))
            return text(200, f"<pre>\n{names}</pre>\n", "text/html; charset=utf-8")
        with open(at, "rb") as f:
            return Response(200, [("Content-Type", "text/plain; charset=utf-8")], f.read(NODE_LOG_BYTES_MAX))
    except OSError:
        raise Refused(404, "404 page not found\n") from None


def in_force(k: Kubelet) -> dict[str, Any]:
    """The KubeletConfiguration with what the node was given otherwise."""
    s = k.settings
    doc = dict(s.document or interpret({})[1])
    doc |= {"clusterDomain": s.cluster_domain, "clusterDNS": list(s.cluster_dns), "cgroupRoot": s.cgroup_root, "port": s.port,
            "resolvConf": s.resolv_conf, "podLogsDir": s.log_root, "containerRuntimeEndpoint": f"unix://{s.socket}",
            "nodeLeaseDurationSeconds": max(1, round(s.lease_s)), "authentication": {**doc["authentication"], "x509": {"clientCAFile": s.client_ca}}}
    return {**doc, "staticPodPath": s.static_pods} if s.static_pods else doc


def log_options(r: Request, now: float) -> logs.Options:
    """Raises Refused."""
    def number(name: str) -> int | None:
        value = r.param(name)
        if not value:
            return None
        try:
            return int(value)
        except ValueError:
            raise Refused(400, f'{{"message": "Unable to decode query: {name} must be a number"}}') from None

    tail, limit, since = number("tailLines"), number("limitBytes"), number("sinceSeconds")
    if tail is not None and tail < 0:
        tail = None
    since_s = now - since if since is not None else None
    if r.param("sinceTime"):
        since_s = logs.moment(r.param("sinceTime").encode()) or None
    stream = {"stdout": "stdout", "stderr": "stderr"}.get(r.param("stream").lower(), "")
    return logs.Options(_yes(r, "follow"), tail, since_s, _yes(r, "timestamps"), limit, stream)


def own_certificate(folder: str, name: str, addresses: tuple[str, ...]) -> tuple[str, str]:
    """Files of a self-signed serving certificate, made once."""
    import ipaddress
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    cert, key = f"{folder}/kubelet.crt", f"{folder}/kubelet.key"
    if os.path.exists(cert) and os.path.exists(key):
        return cert, key
    os.makedirs(folder, mode=0o700, exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name}@kubelet")])
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    names += [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    now = datetime.now(UTC)
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(private.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(private, hashes.SHA256()))
    fd = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    with open(cert, "wb") as f:
        f.write(made.public_bytes(serialization.Encoding.PEM))
    return cert, key


def tls(k: Kubelet) -> ssl.SSLContext:
    s = k.settings
    cert, key = (s.tls_cert, s.tls_key) if s.tls_cert and s.tls_key else own_certificate(f"{s.root}/pki", s.name, s.addresses)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    if s.client_ca:
        context.load_verify_locations(s.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def serve(kubelet: Kubelet) -> None:
    """Listens until cancelled."""
    s = kubelet.settings
    context = await asyncio.to_thread(tls, kubelet)
    listening = await h1.serve(Endpoint(kubelet).handle, s.listen, s.port, context)
    try:
        if s.serving_csr and kubelet.client is not None:
            from kubern.kubelet.certificates import keep_serving

            await keep_serving(kubelet.client, s.name, s.addresses, f"{s.root}/pki", context, kubelet.registered)
        await asyncio.Event().wait()
    finally:
        await listening.close()
