"""Certificates: who may approve, sign and attest for a signer, and which subject nobody gets.

CertificateApproval asks for `approve`, CertificateSigning for `sign`, ClusterTrustBundleAttest for `attest` on the signer (by its
name, or its domain with "/*"). CertificateSubjectRestriction refuses requests for client certificates of system:masters.
Upstream: plugin/pkg/admission/certificates, pkg/apis/certificates; "Certificate Signing Requests, Authorization".
"""

from __future__ import annotations

import base64

from kubern.api.admission.attributes import CREATE, UPDATE, Attributes, Plugin
from kubern.api.authz.unanswered import settled
from kubern.model.invalid import quote

GROUP = "certificates.k8s.io"
REQUESTS = f"certificatesigningrequests.{GROUP}"
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"


async def _may(a: Attributes, verb: str, signer: str) -> bool:
    authorizer, domain = a.authorizer, signer.partition("/")[0]
    if authorizer is None:
        return True
    return await settled(lambda: any(authorizer.allowed(a.user, verb, GROUP, "signers", name=name) for name in (signer, f"{domain}/*")))


def _signer(obj: object) -> str:
    spec = obj.get("spec") if isinstance(obj, dict) else None
    return (spec or {}).get("signerName") or ""


async def approval(a: Attributes) -> None:
    signer = _signer(a.old)
    if not await _may(a, "approve", signer):
        raise a.refuse(f"user not permitted to approve requests with signerName {quote(signer)}")


async def signing(a: Attributes) -> None:
    before, after = (a.old or {}).get("status") or {}, (a.obj or {}).get("status") or {}
    if before.get("certificate") == after.get("certificate") and (before.get("conditions") or []) == (after.get("conditions") or []):
        return
    signer = _signer(a.old)
    if not await _may(a, "sign", signer):
        raise a.refuse(f"user not permitted to sign requests with signerName {quote(signer)}")


async def subject(a: Attributes) -> None:
    if _signer(a.obj) != CLIENT_SIGNER:
        return
    from cryptography import x509
    from cryptography.x509.oid import NameOID
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(((a.obj or {}).get("spec") or {}).get("request") or ""))
    except ValueError as e:
        raise a.refuse("failed to parse CSR: PEM block type must be CERTIFICATE REQUEST") from e
    if any(o.value == "system:masters" for o in request.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)):
        raise a.refuse(f"use of {CLIENT_SIGNER} signer with system:masters group is not allowed")


async def attest(a: Attributes) -> None:
    signer = _signer(a.obj)
    if not signer or (a.operation == UPDATE and (a.obj or {}).get("spec") == (a.old or {}).get("spec")):
        return
    if not await _may(a, "attest", signer):
        raise a.refuse(f"user not permitted to attest for signerName {quote(signer)}")


APPROVAL = Plugin("CertificateApproval", (UPDATE,), (f"{REQUESTS}/approval",), validate=approval)
SIGNING = Plugin("CertificateSigning", (UPDATE,), (f"{REQUESTS}/status",), validate=signing)
SUBJECT = Plugin("CertificateSubjectRestriction", (CREATE,), (REQUESTS,), validate=subject)
ATTEST = Plugin("ClusterTrustBundleAttest", (CREATE, UPDATE), (f"clustertrustbundles.{GROUP}",), validate=attest)
