"""Conversion webhooks: custom resources of one version as another, by whoever their definition names.

`shape` turns objects of a request into another version. `ready` does so for items of the cache or of the store's history, in few calls, and leaves the
result with each item: an item never changes, so nothing needs to be asked twice, and those who show items need not wait. Whoever shows an
item of a row that has a webhook awaits `ready` before.
Upstream: apiextensions-apiserver pkg/apiserver/conversion/{webhook_converter,metrics}.go. It asks for every object of a list alone; here one review
holds many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import orjson

from kubern.api.admission.webhook_call import CallFailed, Services, post
from kubern.api.cache import Item
from kubern.api.metrics import CONVERSION_CALLS, CONVERSIONS
from kubern.model.invalid import aggregate, quote
from kubern.model.metadata import validate_annotations, validate_labels
from kubern.model.object import Object, clone
from kubern.model.status import StatusError

TIMEOUT_S = 30
CALLS_MAX = 32                 # at the same time, of one definition
REVIEW_ITEMS_MAX = 500         # objects in one review
REVIEWS = ("v1", "v1beta1")


class Failed(Exception):
    """No usable answer; str() says why, `kind` is what metrics call it."""

    def __init__(self, why: str, kind: str = "invalid_converted_object") -> None:
        super().__init__(why)
        self.kind = f"conversion_webhook_{kind}_failure"


class Webhook:
    """The conversion webhook of one definition."""

    def __init__(self, services: Services, conversion: Object, crd: str, kind: str) -> None:
        webhook = conversion.get("webhook") or {}
        self._services, self._client, self._crd, self._kind = services, webhook.get("clientConfig") or {}, crd, kind
        self._review = next((v for v in webhook.get("conversionReviewVersions") or () if v in REVIEWS), "")
        self._room = asyncio.Semaphore(CALLS_MAX)
        self._group = crd.partition(".")[2]

    # --- items ---

    def known(self, item: Item, to: str) -> bytes | None:
        """An item as the version `to`, in the form of the store, if `ready` has been asked for it."""
        shapes = item.shapes
        return shapes[1].get(to) if shapes is not None and shapes[0] is self else None

    async def ready(self, items: Iterable[Item], stored: str, to: str) -> None:
        """Has these items converted to the version `to`, as far as they are of another one; `stored`: of those that say none. Raises StatusError."""
        due: dict[str, list[Item]] = {}
        for item in items:
            by = f"{self._group}/{item.version}" if item.version else stored
            if by != to and self.known(item, to) is None:
                due.setdefault(by, []).append(item)
        for by, some in due.items():
            for at in range(0, len(some), REVIEW_ITEMS_MAX):
                part = some[at:at + REVIEW_ITEMS_MAX]
                shapes = await self._convert([{"kind": self._kind, "apiVersion": by, **i.parse()} for i in part], to)
                for item, shape in zip(part, shapes, strict=True):
                    if item.shapes is None or item.shapes[0] is not self:
                        item.shapes = (self, {})
                    item.shapes[1][to] = orjson.dumps(shape)

    # --- objects ---

    async def shape(self, obj: Object, to: str) -> Object:
        """A fresh object of the version `to`. Raises StatusError."""
        return obj if obj["apiVersion"] == to else (await self._convert([obj], to))[0]

    async def _convert(self, objects: list[Object], to: str) -> list[Object]:
        """Objects of one version as another, in one call."""
        by = objects[0]["apiVersion"]
        began = time.perf_counter()
        failure = ""
        try:
            async with self._room:
                answers = await self._ask(objects, to)
            return [_checked(o, a, to, i, len(objects) > 1) for i, (o, a) in enumerate(zip(objects, answers, strict=True))]
        except Failed as e:
            failure = e.kind
            raise StatusError(500, "", f"conversion webhook for {by}, Kind={self._kind} {e}" if self._review else str(e)) from None
        finally:
            took = time.perf_counter() - began
            CONVERSIONS.observe((self._crd, by.partition("/")[2], to.partition("/")[2], "false" if failure else "true"), took)
            CONVERSION_CALLS.observe((failure, "failure" if failure else "success"), took)

    async def _ask(self, objects: list[Object], to: str) -> list[Any]:
        if not self._review:
            raise Failed("no supported conversion review versions", "call")
        uid = str(uuid4())
        review = {"kind": "ConversionReview", "apiVersion": f"apiextensions.k8s.io/{self._review}",
                  "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects}}
        try:
            answer = await post(self._client, review, self._services, TIMEOUT_S)
        except CallFailed as e:
            raise Failed(f"failed: {e}", "call") from None
        converted = self._verified(answer, uid)
        if len(converted) != len(objects):
            raise Failed(f"returned {len(converted)} objects, expected {len(objects)}", "partial_response")
        return converted

    def _verified(self, answer: Object, uid: str) -> list[Any]:
        def bad(why: str) -> Failed:
            return Failed(f"failed: {why}", "malformed_response")

        response = answer.get("response")
        if self._review == "v1":
            kind = f"{answer.get('apiVersion') or ''}, Kind={answer.get('kind') or ''}"
            if kind != "apiextensions.k8s.io/v1, Kind=ConversionReview":
                raise bad(f"expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {kind}")
        if not isinstance(response, dict):
            raise bad("no response provided")
        if self._review == "v1" and response.get("uid", "") != uid:
            raise bad(f"expected response.uid={quote(uid)}, got {quote(str(response.get('uid', '')))}")
        result = response.get("result")
        result = result if isinstance(result, dict) else {}
        if result.get("status") != "Success":
            raise bad(str(result.get("message") or "") or f"response.result.status was '{result.get('status') or ''}', not 'Success'")
        converted = response.get("convertedObjects") or []
        return converted if isinstance(converted, list) else []


def _checked(original: Object, converted: Any, to: str, index: int, of_many: bool) -> Object:
    """The converted object, whose metadata is the original's save for labels and annotations. Raises Failed."""
    bad = f"returned invalid converted object at index {index}: " if of_many else "returned invalid object"
    if not isinstance(converted, dict):
        raise Failed(f"{bad if of_many else bad + ' at index 0: '}not an object")
    for what, want, got in (("groupVersion", to, converted.get("apiVersion") or ""), ("kind", original["kind"], converted.get("kind") or "")):
        if want != got:
            raise Failed(f"{bad if of_many else bad + ' at index 0: '}invalid {what} (expected {want}, received {got})")
    meta, theirs = original["metadata"], converted.get("metadata")
    given = theirs if isinstance(theirs, dict) else {}
    for field, name in (("name", "name"), ("namespace", "namespace"), ("uid", "UID")):
        if (given.get(field) or "") != (meta.get(field) or ""):
            raise Failed(f"{bad if of_many else bad + ': '}must have the same {name}: {meta.get(field) or ''} != {given.get(field) or ''}")
    out: Object = clone({**converted, "metadata": {k: v for k, v in meta.items() if k not in ("labels", "annotations")}})
    try:
        out["metadata"].update(_texts(meta, theirs))
    except Failed as e:
        raise Failed(f"returned invalid metadata{f' in object at index {index}' if of_many else ''}: {e}") from None
    return out


_GO_TYPES: dict[type, str] = {bool: "bool", int: "int64", float: "float64", str: "string", list: "[]interface {}", dict: "map[string]interface {}"}


def _go(value: Any) -> str:
    return _GO_TYPES.get(type(value), "<nil>")


def _texts(meta: Object, theirs: Any) -> dict[str, dict[str, str]]:
    """The labels and annotations of a converted object's metadata. Raises Failed."""
    if theirs is None:
        raise Failed("missing metadata in converted object")
    if not isinstance(theirs, dict):
        raise Failed(f"invalid metadata of type {_go(theirs)} in converted object")
    out: dict[str, dict[str, str]] = {}
    for field in ("labels", "annotations"):
        texts = theirs.get(field)
        if texts is None:
            continue
        if not isinstance(texts, dict):
            raise Failed(f"invalid metadata.{field} of type {_go(texts)} in converted object")
        for k, v in texts.items():
            if not isinstance(v, str):
                raise Failed(f"metadata.{field}[{k}] must be a string, but is {_go(v)} in converted object")
        if texts != (meta.get(field) or {}):
            errors = validate_labels(texts, "metadata.labels") if field == "labels" else validate_annotations(texts, "metadata.annotation")
            if errors:
                raise Failed(aggregate([e.text() for e in errors]))
        out[field] = clone(texts)
    return out
