"""Client certificates: the user a verified certificate names, and the front proxy that speaks for others.

TLS has only shown that the client holds the key; here it is settled which CA stands behind the certificate, directly or by intermediates
that the client sent along, for what use, and until when. A certificate of the front-proxy CA is no identity of its own: it lets X-Remote-*
headers speak. Answers are kept per certificate.
Upstream: apiserver authentication/request/{x509,headerrequest}.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from kubern.model.request import Request, User

CERTIFICATES_MAX = 10_000
UID_OID = ObjectIdentifier("1.3.6.1.4.1.57683.2")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a certificate says: a user of its own, or the right to speak for others; until when."""

    user: User | None
    proxy: bool
    expires_s: float


class Certificates:
    def __init__(self, client_cas: bytes = b"", proxy_cas: bytes = b"", proxy_names: Sequence[str] = ("front-proxy-client",)) -> None:
        self._client_cas = x509.load_pem_x509_certificates(client_cas) if client_cas else []
        self._proxy_cas = x509.load_pem_x509_certificates(proxy_cas) if proxy_cas else []
        self._proxy_names = frozenset(proxy_names)
        self._seen: dict[bytes | tuple[bytes, ...], Seen] = {}

    def look(self, der: bytes, intermediates: tuple[bytes, ...] = ()) -> Seen:
        key = (der, *intermediates) if intermediates else der
        seen = self._seen.get(key)
        if seen is None:
            seen = self._read(der, intermediates)
            if len(self._seen) >= CERTIFICATES_MAX:
                self._seen.clear()
            self._seen[key] = seen
        return seen

    def _read(self, der: bytes, intermediates: tuple[bytes, ...]) -> Seen:
        cert = x509.load_der_x509_certificate(der)
        expires = cert.not_valid_after_utc.timestamp()
        names = [str(a.value) for a in cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        common_name = names[-1] if names else ""
        if not _for_clients(cert):
            return Seen(None, False, expires)
        proxy_s = _trusted_until(cert, intermediates, self._proxy_cas)
        if proxy_s:
            return Seen(None, not self._proxy_names or common_name in self._proxy_names, proxy_s)
        expires = _trusted_until(cert, intermediates, self._client_cas)
        if not common_name or not expires:
            return Seen(None, False, expires)
        groups = tuple(str(a.value) for a in cert.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
        uids = [str(a.value) for a in cert.subject.get_attributes_for_oid(UID_OID)]
        extra = {"authentication.kubernetes.io/credential-id": (f"X509SHA256={hashlib.sha256(der).hexdigest()}",)}
        return Seen(User(common_name, (*groups, "system:authenticated"), uids[0] if len(uids) == 1 else "", extra), False, expires)


def _for_clients(cert: x509.Certificate) -> bool:
    try:
        usages = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages


def _trusted_until(cert: x509.Certificate, intermediates: Sequence[bytes], authorities: Sequence[x509.Certificate]) -> float:
    """When the trust in a certificate ends, by one of these authorities; 0 without any."""
    for ca in authorities:
        try:
            cert.verify_directly_issued_by(ca)
        except Exception:   # a wrong issuer, a wrong signature, an unknown algorithm: not this one
            continue
        return cert.not_valid_after_utc.timestamp()
    if not intermediates or not authorities:
        return 0.0
    from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

    policy = PolicyBuilder().store(Store(list(authorities))).extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(),
                                                                          ee_policy=ExtensionPolicy.permit_all())      # clients need no alternative name
    try:
        found = policy.build_client_verifier().verify(cert, [x509.load_der_x509_certificate(der) for der in intermediates])
    except (VerificationError, ValueError):
        return 0.0
    return min(c.not_valid_after_utc.timestamp() for c in found.chain)


def values(request: Request, name: str) -> list[str]:
    """All values of a header that may be repeated."""
    found = request.repeated.get(name)
    if found is not None:
        return found
    value = request.headers.get(name)
    return [] if value is None else [value]


def extra_of(request: Request, prefix: str) -> dict[str, tuple[str, ...]]:
    """Headers `prefix`KEY as a user's extra: keys in lower case, percent-decoded."""
    out: dict[str, tuple[str, ...]] = {}
    for name in request.headers:
        if name.startswith(prefix):
            key = _unescape(name[len(prefix):])
            out[key] = (*out.get(key, ()), *values(request, name))
    return out


def _unescape(text: str) -> str:
    """Percent-decoding; malformed text stays as it is."""
    return text if re.search(r"%(?![0-9a-fA-F]{2})", text) else unquote(text)


def proxied(request: Request) -> User | None:
    """The user a front proxy speaks for, None if it names none."""
    name = request.headers.get("x-remote-user") or ""
    if not name:
        return None
    groups = tuple(g for g in values(request, "x-remote-group") if g)
    if "system:authenticated" not in groups and "system:unauthenticated" not in groups and name != "system:anonymous":
        groups = (*groups, "system:authenticated")
    return User(name, groups, request.headers.get("x-remote-uid") or "", extra_of(request, "x-remote-extra-"))
