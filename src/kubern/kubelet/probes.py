"""Probes: one attempt of each kind, the thresholds between attempts and results, and the tasks that keep probing.

`Track` is pure: attempts in, a changed result or None out. Results by container id: True passed, False failed; absent: not known yet
(which readiness takes for no, liveness for yes). Words of failures are upstream's: they end in events.
Upstream: pkg/kubelet/prober, pkg/probe/{http,tcp,grpc,exec}.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httptools

from kubern.kubelet import pods
from kubern.kubelet.env import expand
from kubern.kubelet.runtime import Runtime, RuntimeFailure
from kubern.model.object import Object

log = logging.getLogger(__name__)

KINDS = {"startup": "startupProbe", "liveness": "livenessProbe", "readiness": "readinessProbe"}
BODY_BYTES_MAX = 10 * 1024
HEAD_BYTES_MAX = 64 * 1024
REDIRECTS_MAX = 10
RETRIES = 3
EXEC_AT_ONCE_PER_CONTAINER = 4
AGENT = "1.36"

SUCCESS, WARNING, FAILURE, UNKNOWN = "success", "warning", "failure", "unknown"


@dataclass(slots=True)
class Track:
    """Consecutive attempts of one probe on one container."""

    failure_threshold: int = 3
    success_threshold: int = 1
    last: bool | None = None
    run: int = 0

    def attempt(self, passed: bool) -> bool | None:
        """The result once its threshold is reached, None below it."""
        if self.last is passed:
            self.run += 1
        else:
            self.last, self.run = passed, 1
        return passed if self.run >= (self.success_threshold if passed else self.failure_threshold) else None


# --- one attempt ---

def find_port(port: Any, container: Mapping[str, Any]) -> int:
    """A port by number or by name among the container's. Raises ValueError."""
    if isinstance(port, int) or str(port).isdigit():
        number = int(port)
    else:
        number = next((p["containerPort"] for p in container.get("ports") or () if p.get("name") == port), 0)
        if not number:
            raise ValueError(f"couldn't find port: {port}")
    if 0 < number < 65536:
        return number
    raise ValueError(f"invalid port number: {number}")


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def go_error(e: BaseException, host: str, port: int) -> str:
    """A failed connection in Go's words."""
    if isinstance(e, ConnectionRefusedError):
        return f"dial tcp {address(host, port)}: connect: connection refused"
    if isinstance(e, TimeoutError):
        return f"dial tcp {address(host, port)}: i/o timeout"
    if isinstance(e, ConnectionResetError):
        return f"read tcp {address(host, port)}: read: connection reset by peer"
    text = getattr(e, "strerror", None) or str(e) or type(e).__name__
    return f"dial tcp {address(host, port)}: connect: {text.lower()}"


async def probe_tcp(host: str, port: int, timeout_s: float) -> tuple[str, str]:
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except (OSError, TimeoutError) as e:
        return FAILURE, go_error(e, host, port)
    return SUCCESS, ""


class _Answer:
    """httptools callbacks."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = b""
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if len(self.body) < BODY_BYTES_MAX:
            self.body += body[:BODY_BYTES_MAX - len(self.body)]

    def on_message_complete(self) -> None:
        self.done = True


async def http_get(scheme: str, host: str, port: int, path: str, headers: list[tuple[str, str]]) -> tuple[int, dict[str, str], bytes]:
    """GET without verification of certificates; raises OSError, EOFError, ssl.SSLError, HttpParserError."""
    context = None
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        lines = "".join(f"{k}: {v}\r\n" for k, v in headers)
        writer.write(f"GET {path or '/'} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode("latin-1", "replace"))
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        size = 0
        while not answer.done and len(answer.body) < BODY_BYTES_MAX:
            data = await reader.read(16384)
            if not data:
                break
            size += len(data)
            if size > HEAD_BYTES_MAX + BODY_BYTES_MAX:
                break
            parser.feed_data(data)
        status = parser.get_status_code()
        if not status:
            raise EOFError
        return status, answer.headers, answer.body
    finally:
        writer.close()


def request_headers(action: Mapping[str, Any], host: str, port: int, agent: str) -> list[tuple[str, str]]:
    given = [(h["name"], h.get("value") or "") for h in action.get("httpHeaders") or ()]
    names = {k.lower(): v for k, v in given}
    out = [("Host", names.get("host") or address(host, port))]
    if "user-agent" not in names:
        out.append(("User-Agent", f"kube-{agent}/{AGENT}"))
    if "accept" not in names:
        out.append(("Accept", "*/*"))
    return out + [(k, v) for k, v in given if k.lower() != "host" and not (k.lower() == "accept" and not v)]


async def probe_http(action: Mapping[str, Any], container: Mapping[str, Any], ip: str, timeout_s: float, agent: str = "probe") -> tuple[str, str]:
    """Redirects are followed on the same host only; one that leads elsewhere passes with a warning."""
    from urllib.parse import urljoin, urlsplit

    scheme = (action.get("scheme") or "http").lower()
    host = action.get("host") or ip
    port = find_port(action["port"], container)
    path = action.get("path") or "/"
    if not path.startswith("/"):
        path = "/" + path
    url = f"{scheme}://{address(host, port)}{path}"
    headers = request_headers(action, host, port, agent)
    try:
        async with asyncio.timeout(timeout_s):
            for _ in range(REDIRECTS_MAX):
                status, answer, body = await http_get(scheme, host, port, path, headers)
                if not 300 <= status < 400 or "location" not in answer:
                    break
                target = urlsplit(urljoin(url, answer["location"]))
                if target.hostname != host:
                    return WARNING, f"Probe terminated redirects, Response body: {body.decode(errors='replace')}"
                scheme, port = target.scheme, target.port or (443 if target.scheme == "https" else 80)
                path = target.path + (f"?{target.query}" if target.query else "")
                url = target.geturl()
            else:
                return FAILURE, f'Get "{url}": stopped after 10 redirects'
    except TimeoutError:
        return FAILURE, f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
    except ssl.SSLError as e:
        return FAILURE, f'Get "{url}": tls: {e.reason or e}'
    except EOFError:
        return FAILURE, f'Get "{url}": EOF'
    except OSError as e:
        return FAILURE, f'Get "{url}": {go_error(e, host, port)}'
    except httptools.HttpParserError:
        text = "http: server gave HTTP response to HTTPS client" if scheme == "https" else "malformed HTTP response"
        return FAILURE, f'Get "{url}": {text}'
    if 200 <= status < 300:
        return SUCCESS, ""
    if 300 <= status < 400:
        return WARNING, f"Probe terminated redirects, Response body: {body.decode(errors='replace')}"
    return FAILURE, f"HTTP probe failed with statuscode: {status}"


async def probe_grpc(host: str, service: str, port: int, timeout_s: float) -> tuple[str, str]:
    """grpc.health.v1.Health/Check, its two messages read and written by hand."""
    import grpc.aio

    where = address(host, port)
    name = service.encode()
    body = b"\n" + bytes([len(name)]) + name if name else b""
    seconds = f"{timeout_s:g}s"
    async with grpc.aio.insecure_channel(where, options=[("grpc.primary_user_agent", f"kube-probe/{AGENT}"),
                                                        ("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            answer = await channel.unary_unary("/grpc.health.v1.Health/Check")(body, timeout=timeout_s)
        except grpc.aio.AioRpcError as e:
            code = e.code()
            if code == grpc.StatusCode.UNIMPLEMENTED:
                return FAILURE, ("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): "
                                 f"{e.details()}")
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                return FAILURE, f"timeout: health rpc did not complete within {seconds}"
            if code == grpc.StatusCode.UNAVAILABLE:
                return FAILURE, f'timeout: failed to connect service "{where}" within {seconds}: context deadline exceeded'
            go_code = "".join(w.capitalize() for w in code.name.split("_"))
            return FAILURE, f"error: health rpc probe failed: rpc error: code = {go_code} desc = {e.details()}"
    status = answer[1] if len(answer) >= 2 and answer[0] == 8 else 0
    if status == 1:
        return SUCCESS, "service healthy"
    text = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")[status] if status < 4 else str(status)
    return FAILURE, f'service unhealthy (responded with "{text}")'


async def attempt(probe: Mapping[str, Any], container: Mapping[str, Any], ip: str, container_id: str, runtime: Runtime) -> tuple[str, str]:
    """(SUCCESS | WARNING | FAILURE | UNKNOWN, output). Raises RuntimeFailure, ValueError when it could not be tried."""
    timeout_s = float(probe.get("timeoutSeconds") or 1)
    if probe.get("exec"):
        static = {e["name"]: e.get("value") or "" for e in container.get("env") or () if not e.get("valueFrom")}
        command = [expand(x, static) for x in probe["exec"].get("command") or ()]
        try:
            r = await runtime.exec_sync(container_id, command, timeout_s)
        except RuntimeFailure as e:
            if e.code == "DEADLINE_EXCEEDED":
                return FAILURE, f"command timed out: {' '.join(command)!r} timed out after {timeout_s:g}s".replace("'", '"')
            raise
        output = (r.stdout + r.stderr)[:BODY_BYTES_MAX].decode(errors="replace")
        return (SUCCESS if r.exit_code == 0 else FAILURE), output
    if probe.get("httpGet"):
        return await probe_http(probe["httpGet"], container, ip, timeout_s)
    if probe.get("tcpSocket"):
        action = probe["tcpSocket"]
        return await probe_tcp(action.get("host") or ip, find_port(action["port"], container), timeout_s)
    if probe.get("grpc"):
        return await probe_grpc(ip, probe["grpc"].get("service") or "", int(probe["grpc"]["port"]), timeout_s)
    raise ValueError("missing probe handler")


# --- keeping at it ---

@dataclass(slots=True)
class Results:
    """By container id."""

    startup: dict[str, bool] = field(default_factory=dict)
    liveness: dict[str, bool] = field(default_factory=dict)
    readiness: dict[str, bool] = field(default_factory=dict)

    def of(self, kind: str) -> dict[str, bool]:
        return getattr(self, kind)  # type: ignore[no-any-return]

    def forget(self, container_id: str) -> None:
        for kind in KINDS:
            self.of(kind).pop(container_id, None)


Status = Callable[[str, str], tuple[str, Mapping[str, Any] | None]]       # (pod uid, container) -> (pod ip, its reported status)
Tell = Callable[[Object, str, str, str, str], None]                       # (pod, container, type, reason, message)


class Prober:
    """Probes every container of the pods it was given. `changed(uid)` is called when a result changes."""

    def __init__(self, runtime: Runtime, status: Status, tell: Tell, changed: Callable[[str], None],
                 clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self.runtime, self.status, self.tell, self.changed, self.clock, self.jitter = runtime, status, tell, changed, clock, jitter
        self.results = Results()
        self.began = clock()
        self._tasks: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._pods: dict[str, Object] = {}
        self._wake: dict[tuple[str, str, str], asyncio.Event] = {}
        self._execs: dict[str, asyncio.Semaphore] = {}
        self.attempts: dict[tuple[str, str, str, str, str], int] = {}     # (kind, result, namespace, pod, container) -> count

    def add(self, pod: Object) -> None:
        """Begins, or goes on with the newer form of the pod."""
        uid = pod["metadata"]["uid"]
        self._pods[uid] = pod
        for group, c in pods.every_container(pod["spec"]):
            if group == "ephemeral" or (group == "init" and not pods.is_sidecar(c)):
                continue
            for kind, field_name in KINDS.items():
                key = (uid, c["name"], kind)
                if c.get(field_name) and (key not in self._tasks or self._tasks[key].done()):
                    self._wake[key] = asyncio.Event()
                    self._tasks[key] = asyncio.create_task(self._run(key), name=f"probe-{c['name']}-{kind}")

    def stop(self, uid: str, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
        for key in [k for k in self._tasks if k[0] == uid and k[2] in kinds]:
            self._tasks.pop(key).cancel()
            self._wake.pop(key, None)

    def remove(self, uid: str) -> None:
        self.stop(uid)
        pod = self._pods.pop(uid, None)
        if pod is not None:
            m = pod["metadata"]
            for count in [c for c in self.attempts if (c[2], c[3]) == (m.get("namespace") or "", m["name"])]:
                del self.attempts[count]

    def nudge(self, uid: str, container: str) -> None:
        """Look at readiness now rather than at the next tick."""
        event = self._wake.get((uid, container, "readiness"))
        if event is not None:
            event.set()

    async def _run(self, key: tuple[str, str, str]) -> None:
        uid, name, kind = key
        spec = self._spec(uid, name, kind)
        if spec is None:
            return
        period = float(spec.get("periodSeconds") or 10)
        if period > self.clock() - self.began:
            await asyncio.sleep(self.jitter() * period)
        wake = self._wake[key]
        track, container_id, held = Track(), "", False
        try:
            while (spec := self._spec(uid, name, kind)) is not None:
                pod = self._pods[uid]
                c = pods.find_container(pod["spec"], name)
                ip, status = self.status(uid, name)
                id_ = (status or {}).get("containerID", "").partition("://")[2]
                if c is not None and status is not None and id_:
                    if id_ != container_id:
                        self._forget(kind, container_id)
                        container_id, held = id_, False
                        track = Track(int(spec.get("failureThreshold") or 3), int(spec.get("successThreshold") or 1))
                    if "running" not in (status.get("state") or {}):
                        if kind == "readiness":
                            self.results.readiness.pop(id_, None)
                    elif not held and self._due(kind, spec, status):
                        held = await self._attempt(kind, spec, pod, c, ip, id_, track)
                wake.clear()
                try:
                    async with asyncio.timeout(period):
                        await wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._forget(kind, container_id)

    def _forget(self, kind: str, container_id: str) -> None:
        self.results.of(kind).pop(container_id, None)
        self._execs.pop(container_id, None)

    def _spec(self, uid: str, name: str, kind: str) -> Mapping[str, Any] | None:
        pod = self._pods.get(uid)
        c = pods.find_container(pod["spec"], name) if pod else None
        return (c or {}).get(KINDS[kind])

    def _due(self, kind: str, spec: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
        from datetime import datetime

        started = datetime.fromisoformat(status["state"]["running"]["startedAt"].replace("Z", "+00:00")).timestamp()
        if int(self.clock() - started) < int(spec.get("initialDelaySeconds") or 0):
            return False
        return bool(status.get("started")) != (kind == "startup")

    async def _attempt(self, kind: str, spec: Mapping[str, Any], pod: Object, c: Mapping[str, Any], ip: str, id_: str, track: Track) -> bool:
        """Tries, counts, tells. Whether to hold until there is a new container."""
        uid = pod["metadata"]["uid"]
        title = kind.capitalize()
        outcome, output = UNKNOWN, ""
        error: Exception | None = None
        for _ in range(RETRIES):
            try:
                if spec.get("exec"):
                    async with self._execs.setdefault(id_, asyncio.Semaphore(EXEC_AT_ONCE_PER_CONTAINER)):
                        outcome, output = await attempt(spec, c, ip, id_, self.runtime)
                else:
                    outcome, output = await attempt(spec, c, ip, id_, self.runtime)
                error = None
                break
            except (RuntimeFailure, ValueError, OSError) as e:
                error = e
        meta = pod["metadata"]
        label = "failed" if outcome == FAILURE else "unknown" if error or outcome == UNKNOWN else "successful"
        count = (title, label, meta.get("namespace") or "", meta["name"], c["name"])
        self.attempts[count] = self.attempts.get(count, 0) + 1
        if error is not None:
            self.tell(pod, c["name"], "Warning", "Unhealthy", f"{title} probe errored and resulted in unknown state: {error}")
            return False
        if outcome == WARNING:
            self.tell(pod, c["name"], "Warning", "ProbeWarning", f"{title} probe warning: {output}")
        elif outcome == FAILURE:
            self.tell(pod, c["name"], "Warning", "Unhealthy", f"{title} probe failed: {output}")
        result = track.attempt(outcome in (SUCCESS, WARNING))
        if result is None:
            return False
        results = self.results.of(kind)
        if results.get(id_) is not result:
            results[id_] = result
            self.changed(uid)
        if kind == "startup" or (kind == "liveness" and not result):
            track.run = 0
            return True
        return False

    async def close(self) -> None:
        for t in self._tasks.values():
            t.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
