"""Admission webhooks: mutating ones asked one after the other, validating ones at once.

Kept prepared until a configuration changes; a request no webhook is for pays for the rules only. Upstream: apiserver admission/plugin/webhook.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from functools import partial
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import orjson

from kubern.api.admission import match
from kubern.api.admission.attributes import CONNECT, CREATE, DELETE, UPDATE, Attributes, Plugin, Reader
from kubern.api.admission.expressions import Conditions, Failed, variables
from kubern.api.admission.webhook_call import TIMEOUT_S, CallFailed, post
from kubern.api.authz.unanswered import settled
from kubern.api.metrics import WEBHOOKS
from kubern.model import gojson
from kubern.model.invalid import quote
from kubern.model.jsonpatch import json_patch
from kubern.model.object import Object, clone
from kubern.model.resource import Resource
from kubern.model.status import StatusError, bad_request, forbidden, internal

REVIEWS = ("v1", "v1beta1")


class _CallingFailed(Exception):
    """A webhook that could not be asked, or answered nonsense; failurePolicy decides."""


class Webhook:
    def __init__(self, configuration: str, index: int, spec: Object) -> None:
        self.configuration, self.spec = configuration, spec
        self.name: str = spec.get("name") or ""
        self.key = f"{configuration}/{self.name}/{index}"
        self.criteria = match.Criteria({"rules": [], **spec})
        self.any_rule = bool(spec.get("rules"))
        self.conditions = Conditions(spec.get("matchConditions"))
        self.ignore = spec.get("failurePolicy") == "Ignore"
        self.timeout_s: int = spec.get("timeoutSeconds") or TIMEOUT_S

    def asked_about(self, a: Attributes) -> Resource | None:
        """The row the webhook is asked about, None if it is not asked. Raises StatusError."""
        row = self.criteria.match(a) if self.any_rule else None
        if row is None or not self.conditions:
            return row
        try:
            met = self.conditions.met(variables(a, row, match.shown(a, a.obj, row), match.shown(a, a.old, row), None))
        except Failed as e:
            if self.ignore:
                return None
            raise forbidden(a.resource.group, a.resource.plural, a.shown_name(), str(e)) from None
        return row if met else None


class _Source:
    def __init__(self, plural: str) -> None:
        self._resource = f"{plural}.{match.EXEMPT_GROUP}"
        self._kept: WeakKeyDictionary[Reader, tuple[int, list[Webhook]]] = WeakKeyDictionary()

    def webhooks(self, reader: Reader) -> list[Webhook]:
        changed = reader.changed(self._resource)
        if not changed:
            return []
        kept = self._kept.get(reader)
        if kept is not None and kept[0] == changed:
            return kept[1]
        out = [Webhook(c["metadata"]["name"], i, w) for c in reader.list(self._resource) for i, w in enumerate(c.get("webhooks") or ())]
        self._kept[reader] = (changed, out)
        return out


MUTATING_SOURCE, VALIDATING_SOURCE = _Source("mutatingwebhookconfigurations"), _Source("validatingwebhookconfigurations")


# --- one call ---

async def _ask(a: Attributes, hook: Webhook, row: Resource, mutating: bool) -> Object:
    """The webhook's response, if it lets the request through. Raises _CallingFailed, or StatusError where it does not."""
    if a.dry_run and hook.spec.get("sideEffects") not in ("None", "NoneOnDryRun"):
        raise bad_request(f"admission webhook {quote(hook.name)} does not support dry run")
    version = next((v for v in hook.spec.get("admissionReviewVersions") or () if v in REVIEWS), None)
    if version is None:
        raise _CallingFailed("could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)")
    uid = str(uuid4())
    request = {"uid": uid, **match.request_of(a, row), "object": match.shown(a, a.obj, row), "oldObject": match.shown(a, a.old, row)}
    review = {"kind": "AdmissionReview", "apiVersion": f"admission.k8s.io/{version}", "request": request}
    began, rejected = time.perf_counter(), "true"
    try:
        answer = await post(hook.spec.get("clientConfig") or {}, review, a.reader, hook.timeout_s)
        response = _verified(answer, uid, version, mutating)
        rejected = "false" if response.get("allowed") is True else "true"
    except CallFailed as e:
        raise _CallingFailed(f"failed to call webhook: {e}") from None
    finally:
        WEBHOOKS.observe((hook.name, a.operation, rejected, "admit" if mutating else "validating"), time.perf_counter() - began)
    patch = response.get("patch")
    if isinstance(patch, str) and (at := _not_base64(patch)) >= 0:
        raise _CallingFailed(f"failed to call webhook: illegal base64 data at input byte {at}")
    for key, value in (response.get("auditAnnotations") or {}).items():
        a.audit[f"{hook.name}/{key}"] = str(value)
    for warning in response.get("warnings") or ():
        a.warn(str(warning))
    if response.get("allowed") is not True:
        raise _refusal(hook.name, response.get("status"))
    return response


def _not_base64(text: str) -> int:
    """The first byte at which a text is no base64, -1 where it is."""
    m = _BASE64.match(text)
    good = m.end() if m else 0
    return -1 if good == len(text) else good


_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def _verified(answer: Object, uid: str, version: str, mutating: bool) -> Object:
    response = answer.get("response")
    why = ""
    if not isinstance(response, dict):
        why = "webhook response was absent"
    elif version == "v1":
        kind = f"{answer.get('apiVersion') or '/'}, Kind={answer.get('kind') or ''}"
        patch, patch_type = response.get("patch"), response.get("patchType")
        if response.get("uid", "") != uid:
            why = f"expected response.uid={quote(uid)}, got {quote(str(response.get('uid', '')))}"
        elif kind != "admission.k8s.io/v1, Kind=AdmissionReview":
            why = f"expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {kind}"
        elif not mutating and patch:
            why = "validating webhook may not return response.patch"
        elif not mutating and patch_type is not None:
            why = "validating webhook may not return response.patchType"
        elif patch and patch_type is None:
            why = "webhook returned response.patch but not response.patchType"
        elif not patch and patch_type is not None:
            why = "webhook returned response.patchType but not response.patch"
        elif patch_type == "":
            why = 'webhook returned invalid response.patchType of ""'
    if why:
        raise _CallingFailed(f"received invalid webhook response: {why}")
    assert isinstance(response, dict)
    return response


def _refusal(name: str, status: Any) -> StatusError:
    given = status if isinstance(status, dict) else {}
    by = f"admission webhook {quote(name)} denied the request"
    message, reason = given.get("message") or "", given.get("reason") or ""
    text = f"{by}: {message or reason}" if message or reason else f"{by} without explanation"
    code = given.get("code")
    return StatusError(code if isinstance(code, int) and code >= 400 else 400, reason, text, given.get("details"))


def _failed(hook: Webhook, why: str) -> StatusError:
    return internal(f"failed calling webhook {quote(hook.name)}: {why}")


# --- mutating ---

async def mutate(a: Attributes) -> None:
    hooks = MUTATING_SOURCE.webhooks(a.reader)
    if not hooks or match.exempt(a):
        return
    rounds = None
    for index, hook in enumerate(hooks):
        row = await settled(partial(hook.asked_about, a))
        if row is None:
            continue
        if rounds is None:
            rounds = a.rounds.of("MutatingAdmissionWebhook", a.obj)
        if not rounds.due(hook.key):
            continue
        changed = False
        try:
            changed = _applied(a, hook, row, await _ask(a, hook, row, True))
        except _CallingFailed as e:
            if not hook.ignore:
                raise _failed(hook, str(e)) from None
            a.audit[f"failed-open.mutation.webhook.admission.k8s.io/round_{int(rounds.again)}_index_{index}"] = hook.name
        a.audit[f"mutation.webhook.admission.k8s.io/round_{int(rounds.again)}_index_{index}"] = orjson.dumps(
            {"configuration": hook.configuration, "webhook": hook.name, "mutated": changed}).decode()
        if changed:
            rounds.require()
            a.rounds.wanted = True
        if hook.spec.get("reinvocationPolicy") == "IfNeeded":
            rounds.invoked(hook.key)
    if rounds is not None:
        rounds.end(a.obj)


def _applied(a: Attributes, hook: Webhook, row: Resource, response: Object) -> bool:
    """Whether the response changed the object."""
    if not response.get("patch"):
        return False
    try:
        operations = gojson.plain(gojson.parse(base64.b64decode(response["patch"])))
        if not isinstance(operations, list):
            raise ValueError(f"json: cannot unmarshal {gojson.kind_of(operations)} into Go value of type jsonpatch.Patch")
        wrong = next((o for o in operations if not isinstance(o, dict)), None)
        if wrong is not None:
            raise ValueError(f"json: cannot unmarshal {gojson.kind_of(wrong)} into Go value of type jsonpatch.Operation")
    except (ValueError, TypeError, binascii.Error, gojson.SyntaxFault) as e:
        raise _CallingFailed(f"received undecodable patch in webhook response: {e}") from None
    if not operations:
        return False
    obj = match.shown(a, a.obj, row)
    if obj is None:
        raise internal(f"admission webhook {quote(hook.name)} attempted to modify the object, which is not supported for this operation")
    if response.get("patchType", "JSONPatch") != "JSONPatch":
        raise _CallingFailed(f"unsupported patch type {quote(str(response['patchType']))}")
    before = clone(a.obj)
    patched, why = json_patch(clone(obj), operations)
    if why:
        raise internal(f"testing value {_failing(obj, operations)} failed: test failed" if why == "test" else why)
    if not isinstance(patched, dict):
        raise internal("json: cannot unmarshal into Go value")
    match.taken_back(a, patched, row, strict=False)
    return bool(a.obj != before)


def _failing(obj: Object, operations: list[Any]) -> str:
    """The path of the first test of a patch that fails."""
    return next((str(o.get("path") or "") for i, o in enumerate(operations) if json_patch(clone(obj), operations[:i + 1])[1] == "test"), "")


# --- validating ---

async def validate(a: Attributes) -> None:
    hooks = VALIDATING_SOURCE.webhooks(a.reader)
    if not hooks or match.exempt(a):
        return
    asked = [(hook, row) for hook in hooks if (row := await settled(partial(hook.asked_about, a))) is not None]
    if not asked:
        return
    results = await asyncio.gather(*(_ask(a, hook, row, False) for hook, row in asked), return_exceptions=True)
    for index, ((hook, _), result) in enumerate(zip(asked, results, strict=True)):
        if isinstance(result, _CallingFailed):
            if not hook.ignore:
                raise _failed(hook, str(result))
            a.audit[f"failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}"] = hook.name
        elif isinstance(result, BaseException):
            raise result


_ALL = (CREATE, UPDATE, DELETE, CONNECT)
MUTATING = Plugin("MutatingAdmissionWebhook", _ALL, ("*",), mutate=mutate)
VALIDATING = Plugin("ValidatingAdmissionWebhook", _ALL, ("*",), validate=validate)
