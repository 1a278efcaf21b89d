"""ConfigMap, Secret and ServiceAccount.

Upstream: pkg/registry/core/{configmap,secret,serviceaccount}/strategy.go, pkg/apis/core/validation, KEP-1412 (immutable).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator

from kubern.model import names
from kubern.model.gojson import fault, kind_of
from kubern.model.invalid import FieldError, forbidden, invalid, required, too_long
from kubern.model.kinds.kind import Kind, KindTable
from kubern.model.kinds.labels import IMMUTABLE, annotations_of, messages
from kubern.model.object import Object

Errors = Iterator[FieldError]
DATA_BYTES_MAX = 1024 * 1024
FROZEN = "field is immutable when `immutable` is set"


def _bytes(text: str | None) -> int:
    """How many bytes a base64 text stands for."""
    return len(text) * 3 // 4 - text[-2:].count("=") if text else 0


def _frozen(new: Object, old: Object, *fields: str) -> Errors:
    if old.get("immutable"):
        if not new.get("immutable"):
            yield forbidden("immutable", FROZEN)
        for field in fields:
            if (new.get(field) or {}) != (old.get(field) or {}):
                yield forbidden(field, FROZEN)


# ConfigMap ---------------------------------------------------------------------------------------------------------------------

def _config_map(obj: Object) -> Errors:
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    total = 0
    for key, value in data.items():
        yield from messages(f"data[{key}]", key, names.is_config_map_key(key))
        if key in binary:
            yield invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
        total += names.size(value)
    for key, value in binary.items():
        yield from messages(f"binaryData[{key}]", key, names.is_config_map_key(key))
        total += _bytes(value)
    if total > DATA_BYTES_MAX:
        yield too_long("[]", DATA_BYTES_MAX)            # how Go prints a path that has no name


# Secret ------------------------------------------------------------------------------------------------------------------------

def default_secret(obj: Object) -> None:
    if not obj.get("type"):
        obj["type"] = "Opaque"
    if texts := obj.pop("stringData", None):
        obj["data"] = {**(obj.get("data") or {}), **{k: b64encode(v.encode()).decode() for k, v in texts.items()}}


# type -> keys of which data must have all; types with other rules are handled in _secret
_NEEDS = {"kubernetes.io/tls": ("tls.crt", "tls.key")}
_DOCKER = {"kubernetes.io/dockercfg": ".dockercfg", "kubernetes.io/dockerconfigjson": ".dockerconfigjson"}
ACCOUNT_NAME = "kubernetes.io/service-account.name"


def _secret(obj: Object) -> Errors:
    data, kind = obj.get("data") or {}, obj.get("type", "")
    total = 0
    for key, value in data.items():
        yield from messages(f"data[{key}]", key, names.is_config_map_key(key))
        total += _bytes(value)
    if total > DATA_BYTES_MAX:
        yield too_long("data", DATA_BYTES_MAX)
    if kind == "kubernetes.io/service-account-token":
        if not annotations_of(obj).get(ACCOUNT_NAME):
            yield required(f"metadata.annotations[{ACCOUNT_NAME}]")
    elif kind in _DOCKER:
        key = _DOCKER[kind]
        if key not in data:
            yield required(f"data[{key}]")
        elif why := _json_object_fault(b64decode(data[key] or "")):
            yield invalid(f"data[{key}]", "<secret contents redacted>", why)
    elif kind == "kubernetes.io/basic-auth":
        if not data.keys() & {"username", "password"}:
            yield required("data[username]")
            yield required("data[password]")
    elif kind == "kubernetes.io/ssh-auth":
        if not data.get("ssh-privatekey"):
            yield required("data[ssh-privatekey]")
    else:
        for key in _NEEDS.get(kind, ()):
            if key not in data:
                yield required(f"data[{key}]")


def _json_object_fault(body: bytes) -> str:
    """Why a text is no JSON object, in Go's words; "" where it is one (or null)."""
    if why := fault(body):
        return why
    import orjson

    kind = kind_of(orjson.loads(body))
    return "" if kind in ("object", "null") else f"json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"


def _secret_changes(new: Object, old: Object) -> Errors:
    if new.get("type", "") != old.get("type", ""):
        yield invalid("type", new.get("type", ""), IMMUTABLE)
    yield from _frozen(new, old, "data")
    yield from _secret(new)


def _keep_type(new: Object, old: Object) -> None:
    if not new.get("type"):
        new["type"] = old.get("type", "Opaque")


_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)


def secret_warnings(obj: Object, old: Object | None) -> list[str]:
    """A TLS secret whose key does not open its certificate."""
    if obj.get("type") != "kubernetes.io/tls":
        return []
    data = obj.get("data") or {}
    return [why] if (why := _pair_fault(b64decode(data.get("tls.crt") or ""), b64decode(data.get("tls.key") or ""))) else []


def _pair_fault(certificate: bytes, key: bytes) -> str:
    """Go's tls.X509KeyPair in its order."""
    blocks = [m[1].decode() for m in _PEM.finditer(certificate)]
    if "CERTIFICATE" not in blocks:
        if not blocks:
            return "tls: failed to find any PEM data in certificate input"
        if len(blocks) == 1 and blocks[0].endswith("PRIVATE KEY"):
            return ("tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been "
                    "switched")
        return ('tls: failed to find "CERTIFICATE" PEM block in certificate input after skipping PEM blocks of the following types: '
                f"[{' '.join(blocks)}]")
    keys = [m[1].decode() for m in _PEM.finditer(key)]
    mine = next((k for k in keys if k == "PRIVATE KEY" or k.endswith(" PRIVATE KEY")), None)
    if mine is None:
        if not keys:
            return "tls: failed to find any PEM data in key input"
        if len(keys) == 1 and keys[0] == "CERTIFICATE":
            return "tls: found a certificate rather than a key in the PEM for the private key"
        return ('tls: failed to find PEM block with type ending in "PRIVATE KEY" in key input after skipping PEM blocks of the following '
                f"types: [{' '.join(keys)}]")
    return _match_fault(certificate, key)


def _match_fault(certificate: bytes, key: bytes) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
    except ValueError:
        return "x509: malformed certificate"
    try:
        private = load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError):
        return "tls: failed to parse private key"
    if type(public) is not type(private):
        return "tls: private key type does not match public key type"
    a, b = (k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for k in (public, private))
    return "" if a == b else "tls: private key does not match public key"


# ServiceAccount ----------------------------------------------------------------------------------------------------------------

MOUNTABLE = "kubernetes.io/enforce-mountable-secrets"


def _bare_secrets(obj: Object) -> None:
    for ref in obj.get("secrets") or ():
        for field in ref.keys() - {"name"}:
            del ref[field]


def account_warnings(obj: Object, old: Object | None) -> list[str]:
    if MOUNTABLE in annotations_of(obj) and (old is None or MOUNTABLE not in annotations_of(old)):
        return [f"metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"]
    return []


KINDS: KindTable = {
    ("", "ConfigMap"): Kind(meta_again=1, validate=lambda obj: list(_config_map(obj)),
                            validate_update=lambda new, old: [*_frozen(new, old, "data", "binaryData"), *_config_map(new)]),
    ("", "Secret"): Kind(meta_again=1, defaults=default_secret, prepare_update=_keep_type, validate=lambda obj: list(_secret(obj)),
                         validate_update=lambda new, old: list(_secret_changes(new, old)), warnings=secret_warnings),
    ("", "ServiceAccount"): Kind(meta_again=1, prepare_create=_bare_secrets, prepare_update=lambda new, old: _bare_secrets(new), warnings=account_warnings,
                                 delete_returns_object=True),
}
