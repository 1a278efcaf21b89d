"""certificates.k8s.io/v1: CertificateSigningRequest; its approval is a subresource (api/subresource/approval.py).

Who asks (spec.username …) and the times of conditions need the request and the clock, so they come as arguments: `asked_by`, `stamp`.
Upstream: pkg/apis/certificates/validation, pkg/registry/certificates.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence

from kubern.model import names
from kubern.model.invalid import duplicate, forbidden, invalid, not_supported, quote, required
from kubern.model.kinds.checks import Errors, keep, listed, same
from kubern.model.kinds.internal_form import difference, structs
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.references import signer_name
from kubern.model.object import Object

LEGACY_SIGNER = "kubernetes.io/legacy-unknown"
EXPIRATION_S_MIN = 600
ONLY_TRUE = ("Approved", "Denied", "Failed")
USAGES = tuple(sorted((
    "signing", "digital signature", "content commitment", "key encipherment", "key agreement", "data encipherment", "cert sign", "crl sign",
    "encipher only", "decipher only", "any", "server auth", "client auth", "code signing", "email protection", "s/mime",
    "ipsec end system", "ipsec tunnel", "ipsec user", "timestamping", "ocsp signing", "microsoft sgc", "netscape sgc")))
_PEM = re.compile(rb"-----BEGIN ([^\n-]*)-----[ \t]*\r?\n(.*?)-----END \1-----", re.DOTALL)


# --- strategy ---------------------------------------------------------------------------------------------------------------------------

def asked_by(obj: Object, name: str, uid: str, groups: Sequence[str], extra: Mapping[str, Sequence[str]]) -> None:
    """Writes who asks into a new request, whatever it says itself."""
    spec = obj.setdefault("spec", {})
    for field in ("username", "uid", "groups", "extra"):
        spec.pop(field, None)
    spec.update({k: v for k, v in (("username", name), ("uid", uid), ("groups", list(groups)),
                                   ("extra", {k: list(v) for k, v in extra.items()})) if v})


def _create(obj: Object) -> None:
    obj["status"] = {}


def _update(new: Object, old: Object) -> None:
    keep(new, old, "spec", "status")


def prepare_status(new: Object, old: Object) -> None:
    """Approved and Denied stay as they were where as many of them are given."""
    keep(new, old, "spec")
    conditions = (new.get("status") or {}).get("conditions") or []
    before = (old.get("status") or {}).get("conditions") or []
    for type_ in ("Approved", "Denied"):
        kept = [c for c in before if c.get("type") == type_]
        at = [i for i, c in enumerate(conditions) if c.get("type") == type_]
        if len(kept) == len(at):
            for i, c in zip(at, kept, strict=True):
                conditions[i] = c


def prepare_approval(new: Object, old: Object) -> None:
    """Only conditions come from the client."""
    conditions = (new.get("status") or {}).get("conditions")
    keep(new, old, "spec")
    status = dict(old.get("status") or {})
    status.pop("conditions", None)
    new["status"] = {**status, "conditions": conditions} if conditions else status


def stamp(new: Object, old: Object, now: str) -> None:
    """Times that conditions lack."""
    before = (old.get("status") or {}).get("conditions") or ()
    conditions: list[Object] = (new.get("status") or {}).get("conditions") or []
    for i, c in enumerate(conditions):
        changed = dict(c)
        if not c.get("lastUpdateTime"):
            changed["lastUpdateTime"] = now
        if not c.get("lastTransitionTime"):
            changed["lastTransitionTime"] = next((o["lastTransitionTime"] for o in before if o.get("type") == c.get("type")
                                                  and o.get("status") == c.get("status") and o.get("lastTransitionTime")), now)
        conditions[i] = changed


# --- validation -------------------------------------------------------------------------------------------------------------------------

def _blocks(pem: bytes) -> list[tuple[str, bytes, bool]]:
    """(type, DER, has headers) of every PEM block."""
    out = []
    for m in _PEM.finditer(pem):
        body = m[2]
        try:
            out.append((m[1].decode("latin-1"), base64.b64decode(re.sub(rb"\s", b"", re.sub(rb"^[^\n:]+:[^\n]*\n", b"", body, flags=re.M)),
                                                                 validate=True), b":" in body))
        except (binascii.Error, ValueError):
            continue
    return out


def request_error(text: str) -> str:
    """What is wrong with spec.request, "" where it is a properly signed request."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    blocks = _blocks(_decoded(text))
    if not blocks or blocks[0][0] != "CERTIFICATE REQUEST":
        return "PEM block type must be CERTIFICATE REQUEST"
    try:
        if not x509.load_der_x509_csr(blocks[0][1]).is_signature_valid:
            return "x509: signature verification failed"
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as e:
        return f"asn1: structure error: {e}"
    return ""


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def certificate_error(text: str) -> str:
    """What is wrong with status.certificate."""
    from cryptography import x509

    pem = _decoded(text)
    if not pem:
        return ""
    blocks = _blocks(pem)
    for type_, der, headers in blocks:
        if type_ != "CERTIFICATE":
            return f"only CERTIFICATE PEM blocks are allowed, found {quote(type_)}"
        if headers:
            return "no PEM block headers are permitted"
        if not der:
            return "found CERTIFICATE PEM block containing 0 certificates"
        try:
            x509.load_der_x509_certificate(der)
        except ValueError:
            return "x509: malformed certificate"
    return "" if blocks else "must contain at least one CERTIFICATE PEM block"


def _conditions_of(obj: Object | None) -> list[Object]:
    return ((obj or {}).get("status") or {}).get("conditions") or []


def _types(obj: Object | None) -> list[str]:
    return [c.get("type") or "" for c in _conditions_of(obj)]


def _validate(obj: Object, old: Object | None) -> Errors:
    spec, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
    if old is None or spec.get("request") != before.get("request"):
        if why := request_error(spec.get("request") or ""):
            yield invalid("spec.request", spec.get("request") or None, why)
    usages, known = spec.get("usages") or [], before.get("usages") or []
    if not usages:
        yield required("spec.usages")
    if old is None or all(u in USAGES for u in known):
        for i, usage in enumerate(usages):
            if usage not in USAGES:
                yield not_supported(f"spec.usages[{i}]", usage, USAGES)
    if old is None or len(set(known)) == len(known):
        for i, usage in enumerate(usages):
            if usage in usages[:i]:
                yield duplicate(f"spec.usages[{i}]", usage)
    signer = spec.get("signerName") or ""
    if signer == LEGACY_SIGNER and before.get("signerName") != LEGACY_SIGNER:
        yield invalid("spec.signerName", signer, "the legacy signerName is not allowed via this API version")
    else:
        yield from signer_name(signer, "spec.signerName")
    lifetime = spec.get("expirationSeconds")
    if lifetime is not None and lifetime < EXPIRATION_S_MIN:
        yield invalid("spec.expirationSeconds", lifetime, f"may not specify a duration less than {EXPIRATION_S_MIN} seconds (10 minutes)")
    yield from _conditions(obj, old)
    certificate = (obj.get("status") or {}).get("certificate") or ""
    stored = ((old or {}).get("status") or {}).get("certificate") or ""
    if not (old is not None and (certificate == stored or certificate_error(stored))) and (why := certificate_error(certificate)):
        yield invalid("status.certificate", "<certificate data>", why)


def _conditions(obj: Object, old: Object | None) -> Errors:
    stored = _types(old)
    any_empty, any_twice = "" in stored, len(set(stored)) != len(stored)
    both = "Approved" in stored and "Denied" in stored
    seen: set[str] = set()
    for i, c in enumerate(_conditions_of(obj)):
        path, type_, status = f"status.conditions[{i}]", c.get("type") or "", c.get("status") or ""
        if not type_ and not any_empty:
            yield required(f"{path}.type")
        allowed = ("True",) if type_ in ONLY_TRUE else ("False", "True", "Unknown")
        if not status:
            yield required(f"{path}.status")
        elif status not in allowed:
            yield not_supported(f"{path}.status", status, allowed)
        if not both and {"Approved": "Denied", "Denied": "Approved"}.get(type_) in seen:
            yield invalid("status.conditions", type_, "Approved and Denied conditions are mutually exclusive")
        if type_ in seen and not any_twice:
            yield duplicate(f"{path}.type", type_)
        seen.add(type_)


def _validate_change(new: Object, old: Object, may_approve: bool, may_issue: bool) -> Errors:
    yield from _validate(new, old)
    ours, theirs = _conditions_of(new), _conditions_of(old)

    def of(conditions: list[Object], type_: str) -> list[Object]:
        return [c for c in conditions if c.get("type") == type_]

    for type_ in ONLY_TRUE:
        if len(of(ours, type_)) < len(of(theirs, type_)):
            yield forbidden("status.conditions", f"updates may not remove a condition of type {quote(type_)}")
    if not may_approve:
        for type_ in ("Approved", "Denied"):
            a, b = of(theirs, type_), of(ours, type_)
            if len(b) > len(a):
                yield forbidden("status.conditions", f"updates may not add a condition of type {quote(type_)}")
            elif len(b) == len(a) and not same(a, b):
                kind = "certificates.CertificateSigningRequestCondition"
                yield forbidden("status.conditions", f"updates may not modify a condition of type {quote(type_)}\n"
                                                     f"{difference(structs(kind, a), structs(kind, b))}")
    certificate, stored = ((o.get("status") or {}).get("certificate") or "" for o in (new, old))
    if certificate != stored:
        if not may_issue:
            yield forbidden("status.certificate", "updates may not set certificate content")
        elif stored:
            yield forbidden("status.certificate", "updates may not modify existing certificate content")


def _validate_create(obj: Object) -> Errors:
    return _validate(obj, None)


def _validate_update(new: Object, old: Object) -> Errors:
    return _validate_change(new, old, False, False)


def _validate_status(new: Object, old: Object) -> Errors:
    return _validate_change(new, old, False, True)


def _validate_approval(new: Object, old: Object) -> Errors:
    return _validate_change(new, old, True, False)


validate_approval = listed(_validate_approval)


KINDS: KindTable = {
    ("certificates.k8s.io", "CertificateSigningRequest"): Kind(
        prepare_create=_create, prepare_update=_update, prepare_status=prepare_status,
        validate=listed(_validate_create), validate_update=listed(_validate_update), validate_status=listed(_validate_status),
        name_check=names.name_is_path_segment, meta_again=1),
}
