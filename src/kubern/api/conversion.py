"""Conversion webhooks: custom resources of one version as another, by whoever their definition names.

Asked synchronously, in the middle of a read or write: everything else waits for the answer, so it has few seconds, a converted object is
remembered for as long as it is unchanged, a list is converted in one call, and a webhook that failed is not asked again for a moment.
Upstream: apiextensions-apiserver pkg/apiserver/conversion/webhook_converter.go.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from kubern.api.admission.webhook_call import CallFailed, Services, post_now
from kubern.model.invalid import quote
from kubern.model.object import Object, clone
from kubern.model.status import StatusError

TIMEOUT_S = 5
FAILED_FOR_S = 3.0
KEPT_MAX = 4096
REVIEWS = ("v1", "v1beta1")


class Failed(Exception):
    """No usable answer; str() says why."""


class Webhook:
    """The conversion webhook of one definition."""

    def __init__(self, services: Services, conversion: Object, kind: str) -> None:
        webhook = conversion.get("webhook") or {}
        self._services, self._client, self._kind = services, webhook.get("clientConfig") or {}, kind
        self._review = next((v for v in webhook.get("conversionReviewVersions") or () if v in REVIEWS), "")
        self._kept: OrderedDict[tuple[str, str, str], Object] = OrderedDict()
        self._failed = (0.0, "")

    def convert(self, obj: Object, to: str) -> Object:
        """A fresh object of the version `to`. Raises StatusError."""
        if obj["apiVersion"] == to:
            return obj
        (converted,) = self.convert_all([obj], to)
        return converted

    def convert_all(self, objects: Iterable[Object], to: str) -> list[Object]:
        """Fresh objects of the version `to`, those not seen before in one call. Raises StatusError."""
        out: list[Object | None] = []
        asked: list[tuple[int, Object]] = []
        for obj in objects:
            if obj["apiVersion"] == to:
                out.append(obj)
                continue
            known = self._kept.get(_key(obj, to))
            if known is None:
                asked.append((len(out), obj))
            out.append(clone(known) if known is not None else None)
        if asked:
            by = asked[0][1]["apiVersion"]
            try:
                answers = self._ask([o for _, o in asked], to)
                for (i, original), converted in zip(asked, answers, strict=True):
                    out[i] = _checked(original, converted, to)
                    self._keep(_key(original, to), out[i])
            except Failed as e:
                raise StatusError(500, "", f"conversion webhook for {by}, Kind={self._kind} {e}") from None
        return [o for o in out if o is not None]

    def _keep(self, key: tuple[str, str, str], obj: Object | None) -> None:
        if key[1] and obj is not None:                 # what is only being written has no revision to be known by
            self._kept[key] = clone(obj)
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)

    def _ask(self, objects: list[Object], to: str) -> list[Object]:
        if time.monotonic() - self._failed[0] < FAILED_FOR_S:
            raise Failed(self._failed[1])
        if not self._review:
            raise Failed("failed: no supported conversion review versions")
        uid = str(uuid4())
        review = {"kind": "ConversionReview", "apiVersion": f"apiextensions.k8s.io/{self._review}",
                  "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects}}
        try:
            answer = post_now(self._client, review, self._services, TIMEOUT_S)
        except CallFailed as e:
            self._failed = (time.monotonic(), f"failed: {e}")
            raise Failed(f"failed: {e}") from None
        return self._verified(answer, uid, len(objects))

    def _verified(self, answer: Object, uid: str, count: int) -> list[Object]:
        response = answer.get("response")
        if not isinstance(response, dict):
            raise Failed("failed: no response provided")
        if self._review == "v1":
            kind = f"{answer.get('apiVersion') or ''}, Kind={answer.get('kind') or ''}"
            if kind != "apiextensions.k8s.io/v1, Kind=ConversionReview":
                raise Failed(f"failed: expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {kind}")
            if response.get("uid", "") != uid:
                raise Failed(f"failed: expected response.uid={quote(uid)}, got {quote(str(response.get('uid', '')))}")
        result = response.get("result") or {}
        if result.get("status") != "Success":
            raise Failed(f"failed: {result.get('message') or ''}" if result.get("message") else
                         f"failed: response.result.status was '{result.get('status') or ''}', not 'Success'")
        converted = response.get("convertedObjects") or []
        if len(converted) != count:
            raise Failed(f"returned {len(converted)} objects, expected {count}")
        return converted if isinstance(converted, list) else []


def _key(obj: Object, to: str) -> tuple[str, str, str]:
    m = obj["metadata"]
    return m.get("uid") or "", m.get("resourceVersion") or "", to


def _checked(original: Object, converted: Any, to: str) -> Object:
    """The converted object, whose metadata is the original's save for labels and annotations. Raises Failed."""
    where = "returned invalid converted object at index 0"
    if not isinstance(converted, dict):
        raise Failed(f"{where}: not an object")
    if converted.get("apiVersion") != to:
        raise Failed(f"{where}: invalid groupVersion (expected {to}, received {converted.get('apiVersion') or ''})")
    if converted.get("kind") != original["kind"]:
        raise Failed(f"{where}: invalid kind (expected {original['kind']}, received {converted.get('kind') or ''})")
    meta, theirs = original["metadata"], converted.get("metadata")
    if not isinstance(theirs, dict):
        raise Failed("returned invalid metadata in object at index 0: missing metadata in converted object")
    for field, name in (("name", "name"), ("namespace", "namespace"), ("uid", "UID")):
        if (theirs.get(field) or "") != (meta.get(field) or ""):
            raise Failed(f"{where}: must have the same {name}: {meta.get(field) or ''} != {theirs.get(field) or ''}")
    kept = {k: v for k, v in meta.items() if k not in ("labels", "annotations")}
    for field in ("labels", "annotations"):
        texts = theirs.get(field)
        if texts:
            if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
                raise Failed(f"returned invalid metadata in object at index 0: metadata.{field} must hold strings")
            kept[field] = texts
    out: Object = clone({**converted, "metadata": kept})
    return out
