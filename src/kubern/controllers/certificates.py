"""CertificateSigningRequests: kubelets' are approved, approved ones are signed by the built-in signers, old ones are removed.

Upstream: pkg/controller/certificates/{approver,signer,cleaner}.
"""

from __future__ import annotations

import base64
from typing import Any

from kubern.controllers.context import Context
from kubern.model import csr as request
from kubern.model.controller import Controller, Steps
from kubern.model.intent import Again, Delete, Failed, Fetch, Requeue, Update
from kubern.model.object import Object, condition, meta, name
from kubern.model.time import rfc3339, seconds_of
from kubern.model.view import View

CSRS = "certificatesigningrequests.certificates.k8s.io"
SETTLED_S, PENDING_S = 3600.0, 24 * 3600.0
SHORTEST_S = 600


def _has(csr: Object, type_: str) -> bool:
    return condition(csr, type_) is not None


def _pem(csr: Object) -> bytes:
    return base64.b64decode(csr["spec"].get("request") or "")


def _parse(csr: Object) -> request.Request | None:
    try:
        return request.parse(_pem(csr))
    except ValueError:
        return None


def _approve(csr: Object, view: View, now: float) -> Steps:
    if (csr.get("status") or {}).get("certificate") or _has(csr, "Approved") or _has(csr, "Denied"):
        return
    spec = csr["spec"]
    r = _parse(csr)
    if r is None or spec.get("signerName") != request.KUBELET_CLIENT_SIGNER or request.kubelet_client_error(r, spec.get("usages") or ()):
        return
    tried = []
    for subresource, words in (("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
                               ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")):
        if subresource == "selfnodeclient" and spec.get("username") != r.common_name:
            continue
        tried.append(subresource)
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": spec.get("username"), "uid": spec.get("uid") or "", "groups": spec.get("groups") or [], "extra": spec.get("extra") or {},
            "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
                                   "subresource": subresource, "version": "*"}}}
        answer = yield Fetch("/apis/authorization.k8s.io/v1/subjectaccessreviews", method="POST", body=review)
        if isinstance(answer, Failed):
            yield Again(answer.message)
            return
        if (answer.get("status") or {}).get("allowed"):
            yield from _condition(csr, "Approved", "AutoApproved", words, now, "approval")
            return


def _condition(csr: Object, type_: str, reason: str, message: str, now: float, subresource: str) -> Steps:
    status: dict[str, Any] = csr.get("status") or {}
    c = {"type": type_, "status": "True", "reason": reason, "message": message}
    if subresource == "status":
        c["lastUpdateTime"] = rfc3339(now)
    yield Update({**csr, "status": {**status, "conditions": [*(status.get("conditions") or ()), c]}}, subresource)


APPROVER = Controller("certificate-controller", CSRS, _approve, backoff_first_s=0.2)


def signer(context: Context) -> Controller:
    def reconcile(csr: Object, view: View, now: float) -> Steps:
        status = csr.get("status") or {}
        if status.get("certificate") or not _has(csr, "Approved") or _has(csr, "Denied") or _has(csr, "Failed") or context.sign is None:
            return
        spec = csr["spec"]
        usages = spec.get("usages") or []
        r = _parse(csr)
        if r is None:
            return
        error = request.error_for(spec.get("signerName") or "", r, usages)
        if error is None:
            return
        if error:
            yield from _condition(csr, "Failed", "SignerValidationFailure", error, now, "status")
            return
        asked = spec.get("expirationSeconds")
        seconds = context.signing_duration_s if asked is None else max(SHORTEST_S, min(asked, context.signing_duration_s))
        try:
            certificate = context.sign(spec["signerName"], _pem(csr), usages, seconds)
        except ValueError as e:
            yield Again(f"error auto signing csr: {e}")
            return
        yield Update({**csr, "status": {**status, "certificate": base64.b64encode(certificate).decode()}}, "status")

    return Controller("certificate-controller", CSRS, reconcile, backoff_first_s=0.2)


def _not_after(csr: Object) -> float | None:
    text = (csr.get("status") or {}).get("certificate")
    if not text:
        return None
    from cryptography import x509
    try:
        return x509.load_pem_x509_certificate(base64.b64decode(text)).not_valid_after_utc.timestamp()
    except ValueError:
        return None


def _clean(csr: Object, view: View, now: float) -> Steps:
    status = csr.get("status") or {}
    conditions = status.get("conditions") or ()
    due: list[float] = []
    if not conditions:
        due.append(seconds_of(meta(csr).get("creationTimestamp")) + PENDING_S)
    for c in conditions:
        at = seconds_of(c.get("lastUpdateTime"))
        if c.get("type") in ("Denied", "Failed"):
            due.append(at + SETTLED_S)
        elif c.get("type") == "Approved":
            due.append(at + (SETTLED_S if status.get("certificate") else PENDING_S))
            if (end := _not_after(csr)) is not None:
                due.append(end)
    if due and min(due) < now:
        yield Delete(csr["apiVersion"], csr["kind"], "", name(csr))
    elif due:
        yield Requeue(min(due) - now + 1)


CLEANER = Controller("certificate-controller", CSRS, _clean)
