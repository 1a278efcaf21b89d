"""Every active namespace has a ServiceAccount "default" and a ConfigMap with the cluster's root CA.

Upstream: pkg/controller/serviceaccount/serviceaccounts_controller.go, pkg/controller/certificates/rootcacertpublisher.
"""

from __future__ import annotations

from collections.abc import Iterable

from kubern.controllers.context import Context
from kubern.model.controller import Controller, Steps, Trigger
from kubern.model.intent import Create, Update
from kubern.model.object import Key, Object, deleting, meta, name, namespace, notes
from kubern.model.view import View

ROOT_CA = "kube-root-ca.crt"
DESCRIPTION = "kubernetes.io/description"
DESCRIPTION_TEXT = ("Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal "
                    "service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.")


def _active(ns: Object) -> bool:
    return (ns.get("status") or {}).get("phase", "Active") == "Active" and not deleting(ns)


def _default_account(ns: Object, view: View, now: float) -> Steps:
    if _active(ns) and view.get("serviceaccounts", name(ns), "default") is None:
        yield Create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name(ns)}}, ignore_exists=True)


def _account_gone(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
    return [("", namespace(old))] if new is None and old is not None and name(old) == "default" else ()


ACCOUNTS = Controller("service-account-controller", "namespaces", _default_account, triggers=(Trigger("serviceaccounts", _account_gone),))


def root_ca(context: Context) -> Controller:
    data = {"ca.crt": context.root_ca}

    def reconcile(ns: Object, view: View, now: float) -> Steps:
        if not _active(ns):
            return
        have = view.get("configmaps", name(ns), ROOT_CA)
        if have is None:
            yield Create({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                          "metadata": {"name": ROOT_CA, "namespace": name(ns), "annotations": {DESCRIPTION: DESCRIPTION_TEXT}}},
                         ignore_exists=True)
        elif have.get("data") != data or not notes(have).get(DESCRIPTION):
            yield Update({**have, "data": data,
                          "metadata": {**meta(have), "annotations": {**notes(have), DESCRIPTION: DESCRIPTION_TEXT}}})

    def changed(old: Object | None, new: Object | None, view: View) -> Iterable[Key]:
        obj = new or old
        return [("", namespace(obj))] if obj is not None and old is not None and name(obj) == ROOT_CA else ()

    return Controller("root-ca-cert-publisher", "namespaces", reconcile, triggers=(Trigger("configmaps", changed),))
