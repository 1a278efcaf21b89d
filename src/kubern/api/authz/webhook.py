"""The webhook authorizer: an outside service decides, by a SubjectAccessReview; its answers are kept for a while.

A link of the chain like the others: it answers from memory, and raises Unanswered for what must be asked. Match conditions say in CEL for which
requests the service is asked at all. Where it cannot be asked, the failure policy decides: no opinion, or a denial; either way the error is told.
Upstream: apiserver plugin/pkg/authorizer/webhook, pkg/authorization/cel; "Webhook Mode"; KEP-3221.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from kubern.api.admission.webhook_call import CallFailed
from kubern.api.authz.attributes import NO_OPINION, Attributes, Decision
from kubern.api.authz.unanswered import Unanswered, answered
from kubern.api.remote import Remote, status_of
from kubern.model.cel import CelError, CelProblem, Program, compile_
from kubern.model.cel.types import Object as ObjectType
from kubern.model.cel.types import name as type_name
from kubern.model.invalid import aggregate
from kubern.model.object import Object
from kubern.model.selector import parse_fields, parse_labels
from kubern.model.status import StatusError

log = logging.getLogger(__name__)

KEPT_MAX = 8192
KEPT_BYTES_MAX = 10_000                # a request that says more than this is asked about every time
GROUP = "authorization.k8s.io"

_STRINGS = ("list", "string")
_REQUIREMENT = ObjectType("kubernetes.SelectorRequirement", {"key": "string", "operator": "string", "values": _STRINGS})


def _selector(kind: str) -> ObjectType:
    return ObjectType(f"kubernetes.{kind}SelectorAttributes", {"rawSelector": "string", "requirements": ("list", _REQUIREMENT)})


_RESOURCE = ObjectType("kubernetes.ResourceAttributes", {
    **dict.fromkeys(("namespace", "verb", "group", "version", "resource", "subresource", "name"), "string"),
    "fieldSelector": _selector("Field"), "labelSelector": _selector("Label")})
_PATH = ObjectType("kubernetes.NonResourceAttributes", {"path": "string", "verb": "string"})
REQUEST = ObjectType("kubernetes.SubjectAccessReviewSpec", {
    "resourceAttributes": _RESOURCE, "nonResourceAttributes": _PATH, "user": "string", "groups": _STRINGS, "uid": "string",
    "extra": ("map", "string", _STRINGS)})


def condition(source: str) -> Program:
    """A match condition over `request`. Raises CelProblem in the words of validation."""
    try:
        program = compile_(source, {"request": REQUEST})
    except CelProblem as e:
        raise CelProblem(f"compilation failed: {e}") from None
    if program.type != "bool":
        raise CelProblem(f"must evaluate to bool but got {type_name(program.type)}")
    return program


@dataclass(frozen=True, slots=True)
class Policy:
    """What a configuration says of one webhook."""

    name: str
    version: str = "v1"
    allowed_s: float = 300.0           # how long an allowing answer is kept; 0: not at all
    refused_s: float = 30.0
    deny_on_error: bool = False
    conditions: tuple[Program, ...] = ()


class Webhook:
    """`authorize` is a link of the chain."""

    def __init__(self, remote: Remote, policy: Policy, now: Callable[[], float] = time.time) -> None:
        self.remote, self.policy, self._now = remote, policy, now
        self._kept: dict[bytes, tuple[float, Decision]] = {}
        self._asking: dict[bytes, asyncio.Task[Decision]] = {}

    async def close(self) -> None:
        await self.remote.close()

    def authorize(self, a: Attributes) -> Decision:
        spec = spec_of(a)
        if self.policy.conditions:
            try:
                if not _meets(self.policy.conditions, spec):
                    return NO_OPINION
            except CelError as e:
                return self._failed(str(e))
        key = orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)
        kept = self._kept.get(key)
        if kept is not None and kept[0] > self._now():
            return kept[1]
        question = (id(self), key)
        answer = answered(question)
        if answer is not None:
            return answer

        async def ask() -> Decision:
            asking = self._asking.get(key)
            if asking is None:                                        # one question for all who wait for the same answer
                asking = self._asking[key] = asyncio.get_running_loop().create_task(self._ask(key, spec))
                asking.add_done_callback(lambda t: self._asking.pop(key, None))
            return await asyncio.shield(asking)
        raise Unanswered(question, ask)

    def _failed(self, why: str) -> Decision:
        return Decision(False, denied=self.policy.deny_on_error, error=why)

    async def _ask(self, key: bytes, spec: Object) -> Decision:
        asked = {**spec, "group": spec["groups"]} if self.policy.version == "v1beta1" and "groups" in spec else spec
        if asked is not spec:
            asked.pop("groups")                                       # what v1beta1 calls them
        review = {"kind": "SubjectAccessReview", "apiVersion": f"{GROUP}/{self.policy.version}", "metadata": {}, "spec": asked,
                  "status": {"allowed": False}}
        try:
            status = status_of(await self.remote.post(review), "SubjectAccessReview")
        except CallFailed as e:
            log.error("Failed to make webhook authorizer request: %s", e)
            return self._failed(str(e))
        allowed, denied, reason = status.get("allowed") is True, status.get("denied") is True, str(status.get("reason") or "")
        error = "webhook subject access review returned both allow and deny response" if allowed and denied else ""
        decision = Decision(allowed and not denied, reason, denied, error)
        kept_s = self.policy.allowed_s if allowed else self.policy.refused_s
        if kept_s > 0 and len(key) < KEPT_BYTES_MAX:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            self._kept[key] = self._now() + kept_s, decision
        return decision


def spec_of(a: Attributes) -> Object:
    """The spec of the review that asks for these attributes."""
    out: Object = {}
    if a.is_resource:
        resource = {"namespace": a.namespace, "verb": a.verb, "group": a.group, "version": a.version, "resource": a.resource,
                    "subresource": a.subresource, "name": a.name}
        out["resourceAttributes"] = {k: v for k, v in resource.items() if v}
        for field, text in (("fieldSelector", a.field_selector), ("labelSelector", a.label_selector)):
            requirements = _requirements(text, field == "labelSelector") if text else []
            if requirements:
                out["resourceAttributes"][field] = {"requirements": requirements}
    else:
        out["nonResourceAttributes"] = {k: v for k, v in (("path", a.path), ("verb", a.verb)) if v}
    if a.user.name:
        out["user"] = a.user.name
    if a.user.groups:
        out["groups"] = list(a.user.groups)
    if a.user.extra:
        out["extra"] = {k: list(v) for k, v in a.user.extra.items()}
    if a.user.uid:
        out["uid"] = a.user.uid
    return out


def _requirements(text: str, labels: bool) -> list[Object]:
    """A selector's terms; what cannot be read only makes the question wider."""
    try:
        if not labels:
            return [{"key": key, "operator": "In" if equal else "NotIn", "values": [value]} for key, equal, value in parse_fields(text).terms]
        terms = parse_labels(text).requirements
    except StatusError:
        return []
    return [{"key": r.key, "operator": _OPERATORS[r.op], **({"values": list(r.values)} if r.values else {})} for r in terms if r.op in _OPERATORS]


_OPERATORS = {"=": "In", "==": "In", "in": "In", "!=": "NotIn", "notin": "NotIn", "exists": "Exists", "!": "DoesNotExist"}


def _seen(spec: Object) -> Object:
    """The spec as conditions see it: every text is there, be it empty."""
    out: Object = {"user": spec.get("user", ""), "groups": spec.get("groups", []), "uid": spec.get("uid", ""), "extra": spec.get("extra", {})}
    if "resourceAttributes" in spec:
        out["resourceAttributes"] = {**dict.fromkeys(("namespace", "verb", "group", "version", "resource", "subresource", "name"), ""),
                                     **spec["resourceAttributes"]}
    if "nonResourceAttributes" in spec:
        out["nonResourceAttributes"] = {"path": "", "verb": "", **spec["nonResourceAttributes"]}
    return out


def _meets(conditions: Sequence[Program], spec: Object) -> bool:
    """All are true. A false one decides, even beside others that fail. Raises CelError."""
    variables: dict[Any, Any] = {"request": _seen(spec)}
    errors = []
    for program in conditions:
        try:
            if program.run(variables) is not True:
                return False
        except CelError as e:
            errors.append(f"cel evaluation error: expression '{program.source}' resulted in error: {e}")
    if errors:
        raise CelError(aggregate(errors))
    return True
