"""Token secrets of service accounts: filled in, removed with their account; the unused ones marked and removed after a year.

Upstream: pkg/controller/serviceaccount/{tokens_controller.go,legacy_serviceaccount_token_cleaner.go}. Only Secrets of type
kubernetes.io/service-account-token: tokens that pods use come from the TokenRequest API.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime

from kubern.controllers.context import Context
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Again, Delete, Failed, Fetch, Patch, Update
from kubern.model.object import Key, Object, deleting, key, labels, meta, name, namespace, notes, uid
from kubern.model.time import seconds_of
from kubern.model.view import View

TYPE = "kubernetes.io/service-account-token"
ACCOUNT_NAME, ACCOUNT_UID = "kubernetes.io/service-account.name", "kubernetes.io/service-account.uid"


def _is_token(secret: Object | None) -> bool:
    return secret is not None and secret.get("type") == TYPE


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def controller(context: Context) -> Controller:
    def reconcile(secret: Object, view: View, now: float) -> Steps:
        if not _is_token(secret):
            return
        account_name, account_uid = notes(secret).get(ACCOUNT_NAME) or "", notes(secret).get(ACCOUNT_UID) or ""
        if not account_name:
            return
        account = view.get("serviceaccounts", namespace(secret), account_name)
        if account is None or (account_uid and uid(account) != account_uid):
            live = yield Fetch(f"/api/v1/namespaces/{namespace(secret)}/serviceaccounts/{account_name}")
            if isinstance(live, Failed) and live.code != 404:
                yield Again(live.message)
                return
            if isinstance(live, Failed) or (account_uid and uid(live) != account_uid):
                yield Delete("v1", "Secret", namespace(secret), name(secret), uid=uid(secret))
                return
            account = live
        data = dict(secret.get("data") or {})
        if context.root_ca and data.get("ca.crt") != _encode(context.root_ca):
            data["ca.crt"] = _encode(context.root_ca)
        if not data.get("namespace"):
            data["namespace"] = _encode(namespace(secret))
        if not data.get("token") and context.token is not None:
            data["token"] = _encode(context.token(account, secret))
        if data == (secret.get("data") or {}):
            return
        wanted = {**notes(secret), ACCOUNT_NAME: account_name, ACCOUNT_UID: uid(account)}
        yield Update({**secret, "data": data, "metadata": {**meta(secret), "annotations": wanted}})

    def account_changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        """Only coming and going matters."""
        account = new or old
        if account is None or (old is not None and new is not None and uid(old) == uid(new)):
            return ()
        return [key(s) for s in view.by("secrets", "type", TYPE)
                if namespace(s) == namespace(account) and notes(s).get(ACCOUNT_NAME) == name(account)]

    return Controller("tokens-controller", "secrets", reconcile, user="system:kube-controller-manager", triggers=(Trigger("serviceaccounts", account_changed),),
                      changed=lambda old, new: _is_token(new))


# ---- tokens that were made for a service account automatically, by servers before 1.24, and that nobody uses

TRACKING, TRACKING_DATA = "kube-apiserver-legacy-service-account-token-tracking", "since"
LAST_USED, INVALID_SINCE = "kubernetes.io/legacy-token-last-used", "kubernetes.io/legacy-token-invalid-since"
UNUSED_S, DAY_S = 365 * 86400.0, 86400.0


def _day(text: object) -> float | None:
    """A date as Unix seconds; None if it is none."""
    try:
        return datetime.strptime(str(text), "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _mounted(secret: Object, view: View) -> bool:
    return any(v.get("secret", {}).get("secretName") == name(secret) or any(
        (s.get("secret") or {}).get("name") == name(secret) for s in (v.get("projected") or {}).get("sources") or ())
        for p in view.list("pods", namespace(secret)) for v in (p.get("spec") or {}).get("volumes") or ())


def _unused(secret: Object, view: View, before_s: float) -> bool:
    """An automatic token that nobody has used or mounted since."""
    if not _is_token(secret) or deleting(secret) or seconds_of(meta(secret).get("creationTimestamp")) >= before_s:
        return False
    last = labels(secret).get(LAST_USED)
    if last is not None and ((used := _day(last)) is None or used >= before_s - before_s % DAY_S):
        return False
    account = view.get("serviceaccounts", namespace(secret), notes(secret).get(ACCOUNT_NAME) or "")
    wanted = notes(secret).get(ACCOUNT_UID)
    if account is None or (wanted and wanted != uid(account)) or not any(s.get("name") == name(secret) for s in account.get("secrets") or ()):
        return False
    return not _mounted(secret, view)


def _legacy(key_object: Object, view: View, now: float) -> Steps:
    tracking = yield Fetch(f"/api/v1/namespaces/kube-system/configmaps/{TRACKING}")
    since = None if isinstance(tracking, Failed) else _day((tracking.get("data") or {}).get(TRACKING_DATA))
    if since is None or now < since + DAY_S + UNUSED_S:
        return
    before_s = now - UNUSED_S
    for secret in list(view.by("secrets", "type", TYPE)):
        if not _unused(secret, view, before_s):
            continue
        invalid = _day(labels(secret).get(INVALID_SINCE))
        if invalid is None:
            today = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")
            yield Patch("v1", "Secret", namespace(secret), name(secret), {"metadata": {"uid": uid(secret), "labels": {INVALID_SINCE: today}}})
        elif invalid < before_s - before_s % DAY_S:
            yield Delete("v1", "Secret", namespace(secret), name(secret), revision=meta(secret).get("resourceVersion") or "")


LEGACY = Controller("legacy-service-account-token-cleaner", "", _legacy, reads=("secrets", "serviceaccounts", "pods"), resync_s=DAY_S)
