"""Certificate requests: what is asked for, as data, and whether the built-in signers may sign it.

Upstream: pkg/apis/certificates helpers.go (the rules of the kubelet signers). Not signing: pki.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NODE_PREFIX = "system:node:"
NODES = "system:nodes"
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING_SIGNER = "kubernetes.io/kubelet-serving"
LEGACY_SIGNER = "kubernetes.io/legacy-unknown"
_CLIENT_USAGES = ({"key encipherment", "digital signature", "client auth"}, {"digital signature", "client auth"})
_SERVING_USAGES = ({"key encipherment", "digital signature", "server auth"}, {"digital signature", "server auth"})


@dataclass(frozen=True, slots=True)
class Request:
    common_name: str
    organizations: tuple[str, ...]
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


def parse(pem: bytes) -> Request:
    """Raises ValueError for what is no request in PEM."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID
    if b"-----BEGIN CERTIFICATE REQUEST-----" not in pem:
        raise ValueError("PEM block type must be CERTIFICATE REQUEST")
    csr = x509.load_pem_x509_csr(pem)
    names: list[str] = [str(a.value) for a in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    organizations = tuple(str(a.value) for a in csr.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
    try:
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return Request(names[-1] if names else "", organizations)
    return Request(names[-1] if names else "", organizations, tuple(san.get_values_for_type(x509.DNSName)),
                   tuple(str(i) for i in san.get_values_for_type(x509.IPAddress)), tuple(san.get_values_for_type(x509.RFC822Name)),
                   tuple(san.get_values_for_type(x509.UniformResourceIdentifier)))


def kubelet_client_error(r: Request, usages: Sequence[str]) -> str:
    if r.organizations != (NODES,):
        return "subject organization is not system:nodes"
    if r.dns:
        return "DNS subjectAltNames are not allowed"
    if r.emails:
        return "Email subjectAltNames are not allowed"
    if r.ips:
        return "IP subjectAltNames are not allowed"
    if r.uris:
        return "URI subjectAltNames are not allowed"
    if not r.common_name.startswith(NODE_PREFIX):
        return "subject common name does not begin with system:node:"
    if set(usages) not in _CLIENT_USAGES:
        return "usages did not match [client auth digital signature key encipherment]"
    return ""


def kubelet_serving_error(r: Request, usages: Sequence[str]) -> str:
    if r.organizations != (NODES,):
        return "subject organization is not system:nodes"
    if not r.dns and not r.ips:
        return "DNS or IP subjectAltName is required"
    if r.emails:
        return "Email subjectAltNames are not allowed"
    if r.uris:
        return "URI subjectAltNames are not allowed"
    if set(usages) not in _SERVING_USAGES:
        return "usages did not match [digital signature key encipherment server auth]"
    if not r.common_name.startswith(NODE_PREFIX):
        return "subject common name does not begin with system:node:"
    return ""


def client_error(usages: Sequence[str]) -> str:
    for u in usages:
        if u not in ("digital signature", "key encipherment", "client auth"):
            return f"invalid usage for client certificate: {u}"
    return "" if "client auth" in usages else "missing required usage for client certificate: client auth"


def error_for(signer: str, r: Request, usages: Sequence[str]) -> str | None:
    """Why this signer refuses, "" if it does not, None if it is no built-in signer."""
    if signer == KUBELET_CLIENT_SIGNER:
        return kubelet_client_error(r, usages)
    if signer == KUBELET_SERVING_SIGNER:
        return kubelet_serving_error(r, usages)
    if signer == CLIENT_SIGNER:
        return client_error(usages)
    return "" if signer == LEGACY_SIGNER else None
