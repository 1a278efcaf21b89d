"""Token secrets of service accounts: filled in, removed with their account; the unused ones marked and removed after a year.

Upstream: pkg/controller/serviceaccount/{tokens_controller.go,legacy_serviceaccount_token_cleaner.go}. Only Secrets of type
kubernetes.io/service-account-token: tokens that pods use come from the TokenRequest API.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

from kubern.controllers.context import Context
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Delete, Failed, Fetch, Update
from kubern.model.object import Key, Object, key, meta, name, namespace, notes, uid
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
