"""Audit: who asked what and what came of it, one JSON line an event, as much of it as a policy says.

Deciding and building an event is done in the loop and costs microseconds; encoding and writing is a thread's work behind a bounded queue. A disk
that cannot keep up costs events (counted, and told in the log once a minute), never requests. The file is rotated by size as upstream's is.
Not a webhook: a log shipper reads the file. Upstream: "Auditing"; apiserver pkg/audit (policy/checker.go, request.go), plugin/pkg/audit/log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from kubern.api.authz.attributes import Attributes
from kubern.api.watch import Watch
from kubern.model.object import Object
from kubern.model.request import Request, Response, Stream, User

log = logging.getLogger(__name__)

LEVELS = ("None", "Metadata", "Request", "RequestResponse")
RECEIVED, STARTED, COMPLETE, PANIC = STAGES = ("RequestReceived", "ResponseStarted", "ResponseComplete", "Panic")
QUEUE_EVENTS_MAX = 20_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
BATCH_EVENTS_MAX = 500
COMPLAIN_EVERY_S = 60.0
AGENT_MAX = 1024                       # upstream cuts user agents there
JSON_TYPES = ("application/json", "application/merge-patch+json", "application/json-patch+json", "application/strategic-merge-patch+json")
YAML_TYPES = ("application/yaml", "application/apply-patch+yaml")


class BadPolicy(ValueError):
    """An audit policy that cannot be used; the message says where and why."""


# --- the policy ----------------------------------------------------------------------------------------------------------------------

class Rule(NamedTuple):
    level: int
    users: frozenset[str]
    groups: frozenset[str]
    verbs: frozenset[str]
    namespaces: frozenset[str]
    resources: tuple[tuple[str, tuple[str, ...], frozenset[str]], ...]      # (group, resources, names)
    paths: tuple[str, ...]
    omit_stages: frozenset[str]
    omit_managed_fields: bool


class Decided(NamedTuple):
    level: int
    omit_stages: frozenset[str]
    omit_managed_fields: bool


NOTHING = Decided(0, frozenset(), False)


class Policy(NamedTuple):
    rules: tuple[Rule, ...]

    def decide(self, user: User | None, a: Attributes) -> Decided:
        """The first rule that matches decides."""
        for rule in self.rules:
            if _matches(rule, user, a):
                return Decided(rule.level, rule.omit_stages, rule.omit_managed_fields)
        return NOTHING


def _matches(rule: Rule, user: User | None, a: Attributes) -> bool:
    if rule.users and (user is None or user.name not in rule.users):
        return False
    if rule.groups and (user is None or rule.groups.isdisjoint(user.groups)):
        return False
    if rule.verbs and a.verb not in rule.verbs:
        return False
    if rule.namespaces or rule.resources:
        if not a.is_resource or (rule.namespaces and a.namespace not in rule.namespaces):
            return False
        return not rule.resources or any(
            g in ("*", a.group) and (not names or a.name in names) and (not wanted or any(_covers(w, a.resource, a.subresource) for w in wanted))
            for g, wanted, names in rule.resources)
    if rule.paths:
        return not a.is_resource and any(p == "*" or p == a.path or (p.endswith("*") and a.path.startswith(p.rstrip("*"))) for p in rule.paths)
    return True


def _covers(wanted: str, resource: str, subresource: str) -> bool:
    """ "pods", "pods/log", "pods/*" (itself and all below), "*/status", "*" (everything)."""
    if wanted in ("*", f"{resource}/{subresource}" if subresource else resource):
        return True
    name, _, sub = wanted.partition("/")
    return (name == "*" and bool(subresource) and sub == subresource) or (name == resource and sub == "*")


def parse(doc: Any) -> Policy:
    """A Policy of audit.k8s.io/v1 as read from YAML. Raises BadPolicy."""
    if not isinstance(doc, dict) or doc.get("kind") != "Policy" or doc.get("apiVersion") != "audit.k8s.io/v1":
        raise BadPolicy("a Policy of apiVersion audit.k8s.io/v1 is wanted")
    rules = doc.get("rules")
    if not isinstance(rules, list) or not rules:
        raise BadPolicy("loaded illegal policy with 0 rules")
    everywhere = _stages(doc.get("omitStages"), "omitStages")
    return Policy(tuple(_rule(r, f"rules[{i}]", everywhere, bool(doc.get("omitManagedFields"))) for i, r in enumerate(rules)))


def _stages(value: Any, at: str) -> frozenset[str]:
    for s in value or ():
        if s not in STAGES:
            raise BadPolicy(f'{at}: Unsupported value: "{s}": supported values: {", ".join(STAGES)}')
    return frozenset(value or ())


def _names(rule: dict[str, Any], field: str, at: str) -> tuple[str, ...]:
    value = rule.get(field) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise BadPolicy(f"{at}.{field}: must be a list of names")
    return tuple(value)


def _rule(rule: Any, at: str, everywhere: frozenset[str], omit_fields: bool) -> Rule:
    if not isinstance(rule, dict):
        raise BadPolicy(f"{at}: must be a rule")
    level = rule.get("level")
    if not level:
        raise BadPolicy(f"{at}.level: Required value")
    if level not in LEVELS:
        raise BadPolicy(f'{at}.level: Unsupported value: "{level}": supported values: {", ".join(LEVELS)}')
    paths = _names(rule, "nonResourceURLs", at)
    if paths and (rule.get("resources") or rule.get("namespaces")):
        raise BadPolicy(f"{at}.nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs")
    for p in paths:
        if p != "*" and not p.startswith("/"):
            raise BadPolicy(f"{at}.nonResourceURLs: Invalid value: {p!r}: non-resource URL rules must begin with a '/' character")
        if "*" in p[:-1]:
            raise BadPolicy(f"{at}.nonResourceURLs: Invalid value: {p!r}: non-resource URL wildcards '*' must be the final character of the rule")
    resources = []
    for j, r in enumerate(rule.get("resources") or ()):
        where = f"{at}.resources[{j}]"
        if not isinstance(r, dict):
            raise BadPolicy(f"{where}: must name a group and resources")
        if r.get("resourceNames") and not r.get("resources"):
            raise BadPolicy(f"{where}.resourceNames: Invalid value: using resourceNames requires at least one resource")
        resources.append((str(r.get("group") or ""), _names(r, "resources", where), frozenset(_names(r, "resourceNames", where))))
    own = rule.get("omitManagedFields")
    return Rule(LEVELS.index(level), frozenset(_names(rule, "users", at)), frozenset(_names(rule, "userGroups", at)), frozenset(_names(rule, "verbs", at)),
                frozenset(_names(rule, "namespaces", at)), tuple(resources), paths, everywhere | _stages(rule.get("omitStages"), f"{at}.omitStages"),
                omit_fields if own is None else bool(own))


def read(path: str | Path) -> Policy:
    """The policy in a file. Raises BadPolicy."""
    import yaml

    try:
        return parse(yaml.safe_load(Path(path).read_bytes()))
    except (OSError, yaml.YAMLError, BadPolicy) as e:
        raise BadPolicy(f"{path}: {e}") from None


# --- the file ------------------------------------------------------------------------------------------------------------------------

class Log:
    """Where events go: a file that is rotated, or standard output ("-"). `put` never waits."""

    def __init__(self, path: str, max_bytes: int = 100 << 20, backups: int = 10) -> None:
        self.path, self.max_bytes, self.backups = path, max_bytes, backups
        self.written = self.lost = 0
        self._queue: deque[tuple[Object, int]] = deque()
        self._bytes = 0
        self._wake = threading.Event()
        self._stop = False
        self._complained = 0.0
        self._file: Any = None
        self._size = 0
        self._open()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def put(self, event: Object, weight: int = 1024) -> None:
        """`weight`: about how many bytes it holds on to."""
        if len(self._queue) >= QUEUE_EVENTS_MAX or self._bytes > QUEUE_BYTES_MAX or self._stop:
            self._lose(1, "the disk does not keep up")
            return
        self._bytes += weight
        self._queue.append((event, weight))
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Writes what is there, then closes."""
        self._stop = True
        self._wake.set()
        self._thread.join(10)

    def _lose(self, n: int, why: str) -> None:
        self.lost += n
        now = time.monotonic()
        if now - self._complained > COMPLAIN_EVERY_S:
            self._complained = now
            log.error("audit events are lost, %d so far: %s", self.lost, why)

    def _open(self) -> None:
        if self.path == "-":
            self._file = sys.stdout.buffer
            return
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
        self._size = self._file.tell()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                lines = []
                for _ in range(min(len(self._queue), BATCH_EVENTS_MAX)):
                    event, weight = self._queue.popleft()
                    self._bytes -= weight
                    try:
                        lines.append(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))
                    except TypeError as e:
                        self._lose(1, str(e))
                self._write(lines)
            if self._stop:
                if self.path != "-" and self._file is not None:
                    with contextlib.suppress(OSError):
                        self._file.close()
                return

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        try:
            if self.path != "-" and self._size and self._size + len(data) > self.max_bytes:
                self._rotate()
            self._file.write(data)
            self._file.flush()
            self._size += len(data)
            self.written += len(lines)
        except (OSError, ValueError) as e:
            self._lose(len(lines), str(e))
            if self.path != "-":
                with contextlib.suppress(OSError, ValueError):
                    self._file.close()
                with contextlib.suppress(OSError):
                    self._open()

    def _rotate(self) -> None:
        """audit.log -> audit-2026-01-02T03-04-05.678.log; the oldest go."""
        self._file.close()
        path = Path(self.path)
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3]
        target = path.with_name(f"{path.stem}-{stamp}{path.suffix}")
        n = 0
        while target.exists():
            n += 1
            target = path.with_name(f"{path.stem}-{stamp}-{n}{path.suffix}")
        path.rename(target)
        self._open()
        if self.backups > 0:
            old = sorted(p for p in path.parent.glob(f"{path.stem}-*{path.suffix}") if p != path)
            for p in old[:-self.backups]:
                p.unlink(missing_ok=True)


# --- events --------------------------------------------------------------------------------------------------------------------------

def _stamp(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _user(user: User) -> Object:
    out: Object = {"username": user.name}
    if user.uid:
        out["uid"] = user.uid
    if user.groups:
        out["groups"] = list(user.groups)
    if user.extra:
        out["extra"] = {k: list(v) for k, v in user.extra.items()}
    return out


def _without_managed_fields(obj: Any) -> Any:
    if not isinstance(obj, dict):
        return obj
    if isinstance(obj.get("metadata"), dict) and "managedFields" in obj["metadata"]:
        obj = {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "managedFields"}}
    if isinstance(obj.get("items"), list):
        obj = {**obj, "items": [_without_managed_fields(i) for i in obj["items"]]}
    return obj


def _body(data: bytes, content_type: str, omit_managed_fields: bool) -> Any:
    """A body as an event shows it; None where there is none, or none that is text."""
    kind = content_type.partition(";")[0].strip() or "application/json"
    try:
        if kind in YAML_TYPES and not data.startswith(b"{"):
            import yaml

            obj = yaml.safe_load(data)
        elif kind in JSON_TYPES or kind in YAML_TYPES:
            obj = orjson.loads(data)
        else:
            return None
        orjson.dumps(obj)
    except Exception:                          # what is no JSON was refused anyway
        return None
    return _without_managed_fields(obj) if omit_managed_fields else obj


class Record:
    """One request under way. `finish` is called once, with its answer."""

    __slots__ = ("_audit", "_decided", "_event", "_request")

    def __init__(self, audit: Audit, decided: Decided, event: Object, request: Request) -> None:
        self._audit, self._decided, self._event, self._request = audit, decided, event, request

    def stage(self, name: str, now_s: float, more: Object | None = None, weight: int = 1024) -> None:
        if name not in self._decided.omit_stages:
            self._audit.log.put({**self._event, "stage": name, **(more or {}), "stageTimestamp": _stamp(now_s)}, weight)
            self._audit.events += 1

    def finish(self, response: Response, annotations: Object) -> None:
        """The last stage; for a stream the last but one: the last comes at its end."""
        audit, request = self._audit, self._request
        if annotations:
            self._event = {**self._event, "annotations": annotations}
        more: Object = {"responseStatus": {"metadata": {}, "code": response.status}}
        weight = 1024
        level = self._decided.level
        if request.body and (level >= 2 or request.method in ("POST", "PUT")):
            content = _body(request.body, request.headers.get("content-type", ""), self._decided.omit_managed_fields)
            if "objectRef" in self._event and isinstance(content, dict) and request.method in ("POST", "PUT"):
                meta = content.get("metadata")
                said = meta if isinstance(meta, dict) else {}
                more["objectRef"] = {**{k: said[k] for k in ("namespace", "name", "uid", "resourceVersion") if isinstance(said.get(k), str)},
                                     **self._event["objectRef"]}
            if content is not None and level >= 2:
                more["requestObject"] = content
                weight += len(request.body)
        body = response.body
        if isinstance(body, (bytes, list)):
            raw = body if isinstance(body, bytes) else b"".join(body)
            shown = None
            if response.status >= 400 and b'"Status"' in raw[:60]:
                with contextlib.suppress(orjson.JSONDecodeError):
                    shown = orjson.loads(raw)
                    more["responseStatus"] = {k: v for k, v in shown.items() if k not in ("kind", "apiVersion")}
            if level >= 3 and raw and response.header("Content-Type").startswith("application/json"):
                obj = shown or _body(raw, "application/json", self._decided.omit_managed_fields)
                if obj is not None:
                    more["responseObject"] = obj
                    weight += len(raw)
            self.stage(COMPLETE, audit.clock(), more, weight)
            return
        self.stage(STARTED, audit.clock(), more, weight)

        def complete() -> None:
            self.stage(COMPLETE, audit.clock(), more, weight)
        if isinstance(body, Watch):
            ended = body.on_end

            def end(watch: Watch) -> None:
                if ended is not None:
                    ended(watch)
                complete()
            body.on_end = end
        else:
            response.body = _then(body, complete)

    def upgraded(self, response: Response, annotations: Object) -> None:
        """The same for a connection that goes on as another protocol."""
        if annotations:
            self._event = {**self._event, "annotations": annotations}
        more: Object = {"responseStatus": {"metadata": {}, "code": 101}}
        self.stage(STARTED, self._audit.clock(), more)
        run = response.upgrade
        assert run is not None

        async def and_complete(stream: Stream) -> None:
            try:
                await run(stream)
            finally:
                self.stage(COMPLETE, self._audit.clock(), more)
        response.upgrade = and_complete


async def _then(chunks: Any, done: Callable[[], None]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        done()
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


class Audit:
    """A policy and the log it fills."""

    def __init__(self, policy: Policy, log: Log, clock: Callable[[], float] = time.time) -> None:
        self.policy, self.log, self.clock = policy, log, clock
        self.events = 0

    def begin(self, request: Request, user: User | None, a: Attributes, audit_id: str) -> Record | None:
        """The record of a request that is to be logged."""
        decided = self.policy.decide(user, a)
        if not decided.level:
            return None
        now_s = self.clock()
        uri = request.path
        if request.query:
            from urllib.parse import urlencode

            uri += "?" + urlencode([(k, v) for k, values in request.query.items() for v in values])
        event: Object = {"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": LEVELS[decided.level], "auditID": audit_id, "requestURI": uri,
                         "verb": a.verb, "requestReceivedTimestamp": _stamp(now_s)}
        if request.impersonator is not None and user is not None:
            event["user"], event["impersonatedUser"] = _user(request.impersonator), _user(user)
        elif user is not None:
            event["user"] = _user(user)
        else:
            event["user"] = {}
        event["sourceIPs"] = _addresses(request)
        agent = request.headers.get("user-agent", "")
        if agent:
            event["userAgent"] = agent[:AGENT_MAX] + ("...TRUNCATED" if len(agent) > AGENT_MAX else "")
        if a.is_resource:
            event["objectRef"] = {k: v for k, v in (("resource", a.resource), ("namespace", a.namespace), ("name", a.name), ("apiGroup", a.group),
                                                    ("apiVersion", a.version), ("subresource", a.subresource)) if v}
        record = Record(self, decided, event, request)
        record.stage(RECEIVED, now_s)
        return record


def _addresses(request: Request) -> list[str]:
    said = [p.strip() for p in request.headers.get("x-forwarded-for", "").split(",") if p.strip()][:16]
    return [*said, request.peer or "127.0.0.1"]
