"""Audit: who asked what and what came of it, as much of it as a policy says.

Deciding and building an event is done in the loop and costs microseconds. Policies are in policy.py; where events go in log.py (a file) and
webhook.py (a service). Upstream: "Auditing"; apiserver pkg/audit (request.go), endpoints/filters/audit.go.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import orjson

from kubern.api.audit.log import Log
from kubern.api.audit.policy import COMPLETE, LEVELS, RECEIVED, STARTED, BadPolicy, Decided, Policy, parse, read
from kubern.api.authz.attributes import Attributes
from kubern.api.watch import Watch
from kubern.model.object import Object
from kubern.model.request import Request, Response, Stream, User, user_info
from kubern.model.time import micro

__all__ = ["LEVELS", "Audit", "BadPolicy", "Log", "Policy", "parse", "read"]

AGENT_MAX = 1024                       # upstream cuts user agents there
JSON_TYPES = ("application/json", "application/merge-patch+json", "application/json-patch+json", "application/strategic-merge-patch+json")
PROTOBUF = "application/vnd.kubernetes.protobuf"
YAML_TYPES = ("application/yaml", "application/apply-patch+yaml")


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
        elif kind == PROTOBUF:
            from kubern.model.protobuf import to_json

            obj = to_json(data)
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
            self._audit.put({**self._event, "stage": name, **(more or {}), "stageTimestamp": micro(now_s)}, weight)

    def impersonates(self, user: User, mode: str) -> None:
        """Who it is asked as, from here on; `mode`: the right by which, where it is a constrained one."""
        self._event = {**self._event, "impersonatedUser": user_info(user)}
        if mode:
            self._event["authenticationMetadata"] = {"impersonationConstraint": f"impersonate:{mode}"}

    def finish(self, response: Response, annotations: Object) -> None:
        """The last stage; for what goes on, a stream or another protocol, the last but one: the last comes at its end."""
        if annotations:
            self._event = {**self._event, "annotations": annotations}
        clock, body, run = self._audit.clock, response.body, response.upgrade
        if run is not None:
            more, weight = {"responseStatus": {"metadata": {}, "code": 101}}, 1024
        else:
            more, weight = self._told(response)
            if isinstance(body, (bytes, list)):
                self.stage(COMPLETE, clock(), more, weight)
                return
        self.stage(STARTED, clock(), more, weight)

        def complete() -> None:
            self.stage(COMPLETE, clock(), more, weight)
        if run is not None:
            response.upgrade = _upgraded(run, complete)
        elif isinstance(body, Watch):
            ended = body.on_end

            def end(watch: Watch) -> None:
                if ended is not None:
                    ended(watch)
                complete()
            body.on_end = end
        else:
            response.body = _then(body, complete)

    def _told(self, response: Response) -> tuple[Object, int]:
        """What the level lets be told of the request's object and the answer, and about how many bytes that is."""
        request, level, without = self._request, self._decided.level, self._decided.omit_managed_fields
        more: Object = {"responseStatus": {"metadata": {}, "code": response.status}}
        weight = 1024
        if request.body and (level >= 2 or request.method in ("POST", "PUT")):
            content = _body(request.body, request.headers.get("content-type", ""), without)
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
            if b'"Status"' in raw[:60]:
                with contextlib.suppress(orjson.JSONDecodeError):
                    shown = orjson.loads(raw)
                    more["responseStatus"] = {k: v for k, v in shown.items() if k not in ("kind", "apiVersion")}
            if level >= 3 and raw:
                obj = shown or _body(raw, response.header("Content-Type"), without)
                if isinstance(obj, dict) and "kind" in obj:
                    more["responseObject"] = obj
                    weight += len(raw)
        return more, weight

    def refused(self, response: Response) -> None:
        """The only stage of a request whose credentials are none."""
        header = self._request.headers.get("authorization", "").partition(" ")[0].lower()
        sent = (("basic", header == "basic"), ("bearer", header == "bearer"), ("x509", self._request.certificate is not None))
        tried = [name for name, there in sent if there]
        why = f"Authentication failed, attempted: {', '.join(tried)}" if tried else "Authentication failed, no credentials provided"
        self.stage(STARTED, self._audit.clock(), {"responseStatus": {"metadata": {}, "message": why, "code": response.status}})


def _upgraded(run: Callable[[Stream], Awaitable[None]], done: Callable[[], None]) -> Callable[[Stream], Awaitable[None]]:
    async def and_done(stream: Stream) -> None:
        try:
            await run(stream)
        finally:
            done()
    return and_done


async def _then(chunks: Any, done: Callable[[], None]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        done()
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


class Sink(Protocol):
    """Where events go. `put` never waits; what finds no room is lost and counted."""

    plugin: str

    @property
    def lost(self) -> int: ...

    def put(self, event: Object, weight: int = 1024) -> None:
        """`weight`: about how many bytes the event holds on to."""
        ...


class Audit:
    """A policy and the sinks it fills."""

    def __init__(self, policy: Policy, sinks: Sequence[Sink], clock: Callable[[], float] = time.time) -> None:
        self.policy, self.sinks, self.clock = policy, tuple(sinks), clock
        self.events = 0

    def put(self, event: Object, weight: int) -> None:
        self.events += 1
        for sink in self.sinks:
            sink.put(event, weight)

    def begin(self, request: Request, user: User | None, a: Attributes, audit_id: str) -> Record | None:
        """The record of a request that is to be logged; `user` None: nobody could be made out. It is who really asks that a policy is about,
        not whom they ask as."""
        who = request.impersonator or user
        decided = self.policy.decide(who, a)
        if not decided.level:
            return None
        now_s = self.clock()
        uri = request.path
        if request.query:
            from urllib.parse import urlencode

            uri += "?" + urlencode([(k, v) for k, values in request.query.items() for v in values])
        event: Object = {"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": LEVELS[decided.level], "auditID": audit_id, "requestURI": uri,
                         "verb": a.verb, "requestReceivedTimestamp": micro(now_s)}
        event["user"] = user_info(who) if who is not None else {}
        event["sourceIPs"] = _addresses(request)
        agent = request.headers.get("user-agent", "")
        if agent:
            event["userAgent"] = agent[:AGENT_MAX] + ("...TRUNCATED" if len(agent) > AGENT_MAX else "")
        if a.is_resource:
            event["objectRef"] = {k: v for k, v in (("resource", a.resource), ("namespace", a.namespace), ("name", a.name), ("apiGroup", a.group),
                                                    ("apiVersion", a.version), ("subresource", a.subresource)) if v}
        record = Record(self, decided, event, request)
        if who is not None:
            record.stage(RECEIVED, now_s)
        if request.impersonator is not None and user is not None:
            record.impersonates(user, request.impersonation)
        return record


def _addresses(request: Request) -> list[str]:
    said = [p.strip() for p in request.headers.get("x-forwarded-for", "").split(",") if p.strip()][:16]
    return [*said, request.peer or "127.0.0.1"]
