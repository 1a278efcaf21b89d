"""Service-account tokens: signing keys, claims, and whether a token still holds.

A token is a JWT (RS256, or ES256 for elliptic keys) bound to the uid of its ServiceAccount and, optionally, of a Pod, Secret or
Node: it dies with them. `Keys` signs and verifies; `claims` writes what upstream writes; `validate` checks claims against the
objects as they are. Legacy tokens live in Secrets and have no audience.
Upstream: pkg/serviceaccount/{claims,legacy,jwt,openidmetadata}.go; KEP-1205, KEP-4193; RFC 7515, 7517, 7519.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from kubern.model.invalid import quote
from kubern.model.object import Object
from kubern.model.request import User

ISSUER = "https://kubernetes.default"
LEGACY_ISSUER = "kubernetes/serviceaccount"
LEEWAY_S = 60
WARN_ONLY_S = 3607                      # the lifetime admission asks for; such tokens live a year and only warn
EXTENDED_S = 365 * 24 * 3600
TOKEN_BYTES_MAX = 64 * 1024
INVALID_SINCE = "kubernetes.io/legacy-token-invalid-since"

Get = Callable[[str, str, str], Object | None]   # (plural, namespace, name)
Used = Callable[[Object], None]                  # (Secret) whose token was used


class TokenError(Exception):
    """The token is one of ours and does not hold; the text is what a TokenReview shows."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that holds."""

    user: User
    audiences: tuple[str, ...] = ()
    expires_s: float = 0.0                                 # 0: never
    uids: tuple[str, ...] = field(default=())              # objects it dies with


def unrecorded(secret: Object) -> None:
    """Nobody asks when it was used."""


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Keys:
    """The signing key and every key that verifies (the first of `publics` belongs to the signer)."""

    def __init__(self, private_pem: bytes, public_pems: Sequence[bytes] = (), issuer: str = ISSUER) -> None:
        key = serialization.load_pem_private_key(private_pem, None)
        assert isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)), "service-account keys are RSA or EC"
        self._private = key
        self.issuer = issuer
        publics: list[Any] = [key.public_key(), *(serialization.load_pem_public_key(p) for p in public_pems)]
        self.publics: dict[str, Any] = {key_id(p): p for p in publics}
        self._kid = key_id(publics[0])
        self._alg = _algorithm(publics[0])

    def sign(self, payload: dict[str, Any], issuer: str = "") -> str:
        """The compact JWT with these claims; `iss` is set here."""
        header = b64(orjson.dumps({"alg": self._alg, "kid": self._kid}))
        body = b64(orjson.dumps({**payload, "iss": issuer or self.issuer}, option=orjson.OPT_SORT_KEYS))
        data = f"{header}.{body}".encode()
        if isinstance(self._private, rsa.RSAPrivateKey):
            signature = self._private.sign(data, padding.PKCS1v15(), hashes.SHA256())
        else:
            r, s = decode_dss_signature(self._private.sign(data, ec.ECDSA(hashes.SHA256())))
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return f"{header}.{body}.{b64(signature)}"

    def verify(self, token: str, kid: str) -> bool:
        """Whether one of the keys made the signature. Raises TokenError where no key has the token's id."""
        candidates = [self.publics[kid]] if kid in self.publics else [] if kid else list(self.publics.values())
        if not candidates:
            raise TokenError("invalid signature, no keys found")
        data, _, signature = token.rpartition(".")
        return any(_verifies(key, data.encode(), signature) for key in candidates)

    def jwks(self) -> dict[str, Any]:
        """The key set as /openid/v1/jwks serves it."""
        return {"keys": [_jwk(kid, key) for kid, key in self.publics.items()]}

    def discovery(self, jwks_uri: str) -> dict[str, Any]:
        """The document of /.well-known/openid-configuration."""
        return {"issuer": self.issuer, "jwks_uri": jwks_uri, "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": sorted({_algorithm(k) for k in self.publics.values()})}


def key_id(public: Any) -> str:
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b64(hashlib.sha256(der).digest())


def _algorithm(public: Any) -> str:
    return "RS256" if isinstance(public, rsa.RSAPublicKey) else "ES256"


def _verifies(key: Any, data: bytes, signature: str) -> bool:
    try:
        raw = unb64(signature)
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(raw, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            if len(raw) != 64:
                return False
            der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
            key.verify(der, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def _jwk(kid: str, key: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"use": "sig", "kty": "RSA", "kid": kid, "alg": _algorithm(key)}
    if isinstance(key, rsa.RSAPublicKey):
        n = key.public_numbers()
        out |= {"n": b64(n.n.to_bytes((n.n.bit_length() + 7) // 8, "big")), "e": b64(n.e.to_bytes((n.e.bit_length() + 7) // 8, "big"))}
    else:
        c = key.public_numbers()
        out |= {"kty": "EC", "crv": "P-256", "x": b64(c.x.to_bytes(32, "big")), "y": b64(c.y.to_bytes(32, "big"))}
    return out


# -- claims

def _ref(obj: Object) -> dict[str, str]:
    m = obj.get("metadata") or {}
    return {k: m[k] for k in ("name", "uid") if m.get(k)}


def claims(account: Object, audiences: Sequence[str], seconds: int, now_s: float, pod: Object | None = None, secret: Object | None = None,
           node: Object | None = None, warn_after_s: int = 0) -> dict[str, Any]:
    """What a token says. With a pod, the node is only where it runs; alone, the token is bound to the node."""
    m, now = account["metadata"], int(now_s)
    private: dict[str, Any] = {"namespace": m["namespace"], "serviceaccount": _ref(account)}
    for name, obj in (("pod", pod), ("secret", secret), ("node", node)):
        if obj is not None:
            private[name] = _ref(obj)
    if warn_after_s:
        private["warnafter"] = now + warn_after_s
    return {"aud": list(audiences), "exp": now + seconds, "iat": now, "nbf": now, "jti": str(uuid.uuid4()),
            "sub": f"system:serviceaccount:{m['namespace']}:{m['name']}", "kubernetes.io": private}


def legacy_token(keys: Keys, account: Object, secret: Object) -> str:
    """The token a Secret of type kubernetes.io/service-account-token holds: it names no audience and never expires."""
    m, prefix = account["metadata"], "kubernetes.io/serviceaccount/"
    payload = {"sub": f"system:serviceaccount:{m['namespace']}:{m['name']}", f"{prefix}namespace": m["namespace"],
               f"{prefix}secret.name": secret["metadata"]["name"], f"{prefix}service-account.name": m["name"],
               f"{prefix}service-account.uid": m["uid"]}
    return keys.sign(payload, LEGACY_ISSUER)


# -- does it hold?

def parse(token: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(header, claims) of a compact JWT, unverified; None if it is none."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > TOKEN_BYTES_MAX:
        return None
    try:
        header, payload = orjson.loads(unb64(parts[0])), orjson.loads(unb64(parts[1]))
    except ValueError:
        return None
    return (header, payload) if isinstance(header, dict) and isinstance(payload, dict) else None


def _strings(values: Sequence[str]) -> str:
    return "[" + " ".join(quote(v) for v in values) + "]"


def check(token: str, keys: Keys, get: Get, wanted: Sequence[str], ours: Sequence[str], now_s: float, used: Used = unrecorded) -> Verified | None:
    """A service-account token for one of the `wanted` audiences; `ours` are the API server's own; `used` is told the Secret of one that lives in it.
    None: not one of ours. Raises TokenError for one of ours that does not hold."""
    parsed = parse(token)
    if parsed is None:
        return None
    header, payload = parsed
    issuer = payload.get("iss")
    if issuer not in (keys.issuer, LEGACY_ISSUER):
        return None
    if header.get("alg") not in ("RS256", "ES256") or not keys.verify(token, str(header.get("kid") or "")):
        raise TokenError("square/go-jose: error in cryptographic primitive")
    audience = payload.get("aud") or []
    held = [audience] if isinstance(audience, str) else [str(a) for a in audience]
    held = held or list(ours)
    both = tuple(a for a in held if a in wanted)
    if not both:
        raise TokenError(f"token audiences {_strings(held)} is invalid for the target audiences {_strings(wanted)}")
    user, uids = _legacy(token, payload, get, used) if issuer == LEGACY_ISSUER else _bound(token, payload, get, now_s)
    return Verified(user, both, float(payload.get("exp") or 0), uids)


def _deleted(obj: Object, now_s: float) -> bool:
    """Deleted for longer than the leeway (finalizers may keep it)."""
    stamp = obj["metadata"].get("deletionTimestamp")
    if not stamp:
        return False
    import datetime as dt
    return dt.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() < now_s - LEEWAY_S


def _number(payload: dict[str, Any], name: str) -> float:
    value = payload.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _bound(token: str, payload: dict[str, Any], get: Get, now_s: float) -> tuple[User, tuple[str, ...]]:
    if _number(payload, "nbf") > now_s + LEEWAY_S:
        raise TokenError("service account token is not valid yet")
    if payload.get("exp") is not None and _number(payload, "exp") < now_s - LEEWAY_S:
        raise TokenError("service account token has expired")
    if _number(payload, "iat") > now_s + LEEWAY_S:
        raise TokenError("service account token is issued in the future")
    private = payload.get("kubernetes.io") or {}
    ns = private.get("namespace") or ""
    ref = private.get("serviceaccount") or {}
    name = ref.get("name") or ""
    account = get("serviceaccounts", ns, name)
    if account is None:
        raise TokenError(f"serviceaccounts {quote(name)} not found")
    account_uid = account["metadata"].get("uid") or ""
    if account_uid != ref.get("uid"):
        raise TokenError(f"service account UID ({account_uid}) does not match claim ({ref.get('uid') or ''})")
    if _deleted(account, now_s):
        raise TokenError(f"service account {ns}/{name} has been deleted")
    uids = [account_uid]
    extra: dict[str, tuple[str, ...]] = {}
    if payload.get("jti"):
        extra["authentication.kubernetes.io/credential-id"] = (f"JTI={payload['jti']}",)
    pod, secret, node = private.get("pod"), private.get("secret"), private.get("node")
    if secret:
        uids.append(_alive(get, "secrets", "secret", ns, secret, now_s))
    if pod:
        uids.append(_alive(get, "pods", "pod", ns, pod, now_s))
        extra["authentication.kubernetes.io/pod-name"] = (pod.get("name") or "",)
        extra["authentication.kubernetes.io/pod-uid"] = (pod.get("uid") or "",)
    if node:
        if not pod:
            uids.append(_alive(get, "nodes", "node", "", node, now_s))
        extra["authentication.kubernetes.io/node-name"] = (node.get("name") or "",)
        if node.get("uid"):
            extra["authentication.kubernetes.io/node-uid"] = (node["uid"],)
    return account_user(ns, name, account_uid, extra), tuple(uids)


def _alive(get: Get, plural: str, word: str, ns: str, ref: dict[str, Any], now_s: float) -> str:
    """The uid of the object a token is bound to, if it is still the same one."""
    obj = get(plural, ns, ref.get("name") or "")
    if obj is None:
        raise TokenError("service account token has been invalidated")
    uid = obj["metadata"].get("uid") or ""
    if uid != ref.get("uid"):
        raise TokenError(f"{word} UID ({uid}) does not match service account {word} ref claim ({ref.get('uid') or ''})")
    if _deleted(obj, now_s):
        raise TokenError("service account token has been invalidated")
    return uid


def _legacy(token: str, payload: dict[str, Any], get: Get, used: Used) -> tuple[User, tuple[str, ...]]:
    prefix = "kubernetes.io/serviceaccount/"
    if not payload.get("sub"):
        raise TokenError("sub claim is missing")
    values = []
    for claim, word in (("namespace", "namespace"), ("secret.name", "secretName"), ("service-account.name", "serviceAccountName"),
                        ("service-account.uid", "serviceAccountUID")):
        if not payload.get(prefix + claim):
            raise TokenError(f"{word} claim is missing")
        values.append(str(payload[prefix + claim]))
    ns, secret_name, name, uid = values
    if payload["sub"] != f"system:serviceaccount:{ns}:{name}":
        raise TokenError("sub claim is invalid")
    secret = get("secrets", ns, secret_name)
    if secret is None or secret["metadata"].get("deletionTimestamp"):
        raise TokenError("Token has been invalidated")
    stored = base64.b64decode((secret.get("data") or {}).get("token") or "")
    if not hmac.compare_digest(stored, token.encode()):
        raise TokenError("Token does not match server's copy")
    account = get("serviceaccounts", ns, name)
    if account is None:
        raise TokenError(f"serviceaccounts {quote(name)} not found")
    if account["metadata"].get("deletionTimestamp"):
        raise TokenError(f"ServiceAccount {ns}/{name} has been deleted")
    if account["metadata"].get("uid") != uid:
        raise TokenError(f"ServiceAccount UID ({account['metadata'].get('uid')}) does not match claim ({uid})")
    used(secret)
    if (secret["metadata"].get("labels") or {}).get(INVALID_SINCE):
        raise TokenError(f"the token in secret {ns}/{secret_name} for service account {ns}/{name} has been marked invalid. "
                         "Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the "
                         f"'{INVALID_SINCE}' label from the secret to temporarily allow use of this token")
    return account_user(ns, name, uid, {}), (uid, secret["metadata"].get("uid") or "")


def account_user(namespace: str, name: str, uid: str, extra: dict[str, tuple[str, ...]]) -> User:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups, uid, extra)


# -- bootstrap tokens

def check_bootstrap(token: str, get: Get, now_s: float) -> Verified | None:
    """A token `id.secret` kept in a Secret kube-system/bootstrap-token-ID that allows authentication by it. KEP: bootstrap tokens."""
    import re
    match = re.fullmatch(r"([a-z0-9]{6})\.([a-z0-9]{16})", token)
    if not match:
        return None
    secret = get("secrets", "kube-system", f"bootstrap-token-{match[1]}")
    if secret is None or secret["metadata"].get("deletionTimestamp") or secret.get("type") != "bootstrap.kubernetes.io/token":
        return None

    def data(key: str) -> str:
        try:
            return base64.b64decode((secret.get("data") or {}).get(key) or "").decode()
        except ValueError:
            return ""

    if not hmac.compare_digest(data("token-secret"), match[2]) or data("token-id") != match[1]:
        return None
    expires = 0.0
    if data("expiration"):
        import datetime as dt
        try:
            expires = dt.datetime.fromisoformat(data("expiration").replace("Z", "+00:00")).timestamp()
        except (ValueError, TypeError):
            return None
        if expires <= now_s:
            return None
    if data("usage-bootstrap-authentication") != "true":
        return None
    groups = {"system:bootstrappers"}
    for group in filter(None, data("auth-extra-groups").split(",")):
        if not re.fullmatch(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]", group):
            return None
        groups.add(group)
    user = User(f"system:bootstrap:{match[1]}", (*sorted(groups), "system:authenticated"))
    return Verified(user, (), expires, (secret["metadata"].get("uid") or "",))
