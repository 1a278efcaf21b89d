"""OpenID Connect: tokens of outside issuers become users, as an AuthenticationConfiguration says.

A Provider finds its issuer's keys by discovery and keeps them; a token whose key it does not know, or whose signature does not hold, makes it
look for new ones, so that keys can be rotated at any time. Signatures are PyJWT's affair (loaded with the first token); which claims must hold, and
what of them makes a user, is here and is pure: `mapped`. Service-account tokens go their own, shorter way (tokens.py): they are verified
three times as fast without the library, and a cluster starts 50 ms sooner.
Upstream: apiserver plugin/pkg/authenticator/token/oidc, coreos/go-oidc; OpenID Connect Core 1.0 and Discovery 1.0; KEP-3331.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import orjson

from kubern.api.authn.configuration import Authentication, Issuer, Mapped, Rule
from kubern.api.authn.tokens import TokenError, Verified, parse
from kubern.client.http import HttpSender
from kubern.model.cel import CelError, Program
from kubern.model.invalid import quote
from kubern.model.request import Request, User

log = logging.getLogger(__name__)

ALGORITHMS = ("ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
WELL_KNOWN = "/.well-known/openid-configuration"
RETRY_S = 10.0                         # after a discovery that failed
FETCHES_MAX = 10                       # looks for new keys in a row …
FETCH_EVERY_S = 1.0                    # … and then one in so long, whatever tokens come
TIMEOUT_S = 30.0
ANSWER_MAX_BYTES = 1 << 20
NOT_BEFORE_LEEWAY_S = 300
KEPT_S = 10.0                          # how long a token that held is believed without another look
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
GOOGLE = "accounts.google.com"

_ESCAPES = (("__dot__", "."), ("__dash__", "-"), ("__slash__", "/"), ("__underscores__", "__"))


class Claims(dict[str, Any]):
    """A JSON object as expressions see it: names that are no identifiers may be written escaped, `a__dot__b`."""

    def __missing__(self, name: str) -> Any:
        return self[self._plain(name)]

    def __contains__(self, name: object) -> bool:
        if dict.__contains__(self, name):
            return True
        plain = self._plain(name) if isinstance(name, str) and "__" in name else name
        return plain != name and dict.__contains__(self, plain)

    @staticmethod
    def _plain(name: str) -> str:
        plain = name
        for escaped, meant in _ESCAPES:
            plain = plain.replace(escaped, meant)
        if plain == name:
            raise KeyError(name)
        return plain


def shown(value: Any) -> Any:
    """Claims as expressions see them: objects under both spellings of their names, numbers as doubles, as JSON has them."""
    if isinstance(value, dict):
        return Claims((k, shown(v)) for k, v in value.items())
    if isinstance(value, list):
        return [shown(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# --- claims to a user ----------------------------------------------------------------------------------------------------------------

def mapped(issuer: Issuer, claims: Mapping[str, Any]) -> User:
    """The user that a token's claims make. Raises TokenError."""
    seen = shown(dict(claims))
    variables = {"claims": seen}
    user = User(_username(issuer.username, claims, variables), _groups(issuer.groups, claims, variables), _uid(issuer.uid, claims, variables),
                _extra(issuer, claims, variables))
    for name, wanted in issuer.required:
        if name not in claims:
            raise TokenError(f"oidc: required claim {name} not present in ID token")
        value = _text(claims, name, f"oidc: parse claim {name}")
        if value != wanted:
            raise TokenError(f"oidc: required claim {name} value does not match. Got = {value}, want = {wanted}")
    _hold(issuer.claim_rules, variables, "oidc: error evaluating claim validation expression")
    about = {"username": user.name, "uid": user.uid, "groups": list(user.groups), "extra": {k: list(v) for k, v in user.extra.items()}}
    _hold(issuer.user_rules, {"user": shown(about)}, "oidc: error evaluating user info validation rule")
    return user


def _run(program: Program, variables: Mapping[str, Any], what: str) -> Any:
    try:
        return program.run(dict(variables))
    except CelError as e:
        raise TokenError(f"{what}expression '{program.source}' resulted in error: {e}") from None


def _hold(rules: Sequence[Rule], variables: Mapping[str, Any], what: str) -> None:
    results = [_run(r.expression, variables, f"{what}: ") for r in rules]
    for rule, result in zip(rules, results, strict=True):
        if result is not True:
            raise TokenError(f"{what}: validation expression '{rule.expression.source}' failed: {rule.message}")


def _text(claims: Mapping[str, Any], name: str, what: str) -> str:
    if name not in claims:
        raise TokenError(f"{what}: claim not present")
    value = claims[name]
    if not isinstance(value, str):
        raise TokenError(f"{what}: json: cannot unmarshal {_kind(value)} into Go value of type string")
    return value


def _kind(value: Any) -> str:
    return {bool: "bool", dict: "object", list: "array", type(None): "null"}.get(type(value), "number")


def _username(how: Mapped, claims: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    what = "oidc: error evaluating username claim expression: "
    if how.expression is not None:
        value = _run(how.expression, variables, what)
        if not isinstance(value, str):
            raise TokenError(f"{what}username claim expression must return a string")
        if not value:
            raise TokenError("oidc: empty username via CEL expression is not allowed")
        return value
    name = _text(claims, how.claim, f"oidc: parse username claims {quote(how.claim)}")
    if how.claim == "email" and "email_verified" in claims:
        verified = claims["email_verified"]
        if not isinstance(verified, bool):
            raise TokenError("oidc: parse 'email_verified' claim: json: cannot unmarshal into Go value of type bool")
        if not verified:
            raise TokenError("oidc: email not verified")
    return how.prefix + name


def _groups(how: Mapped, claims: Mapping[str, Any], variables: Mapping[str, Any]) -> tuple[str, ...]:
    if how.claim and how.claim in claims:
        value = claims[how.claim]
        groups = [value] if isinstance(value, str) else value
        if not isinstance(groups, list) or not all(isinstance(g, str) for g in groups):
            raise TokenError(f"oidc: parse groups claim {quote(how.claim)}: json: cannot unmarshal {_kind(value)} into Go value of type string")
        return tuple(how.prefix + g for g in groups)
    if how.expression is None:
        return ()
    what = "oidc: error evaluating group claim expression: "
    return _strings(_run(how.expression, variables, what), what)


def _strings(value: Any, what: str) -> tuple[str, ...]:
    """A string, a list of them or null; empty ones are left out."""
    if value is None or isinstance(value, str):
        return (value,) if value else ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise TokenError(f"{what}expression must return a string or a list of strings")
    return tuple(v for v in value if v)


def _uid(how: Mapped, claims: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    if how.claim:
        return _text(claims, how.claim, f"oidc: parse uid claim {quote(how.claim)}")
    if how.expression is None:
        return ""
    what = "oidc: error evaluating uid claim expression: "
    value = _run(how.expression, variables, what)
    if not isinstance(value, str):
        raise TokenError(f"{what}uid claim expression must return a string")
    return value


def _extra(issuer: Issuer, claims: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    if isinstance(claims.get("jti"), str) and claims["jti"]:
        out[CREDENTIAL_ID] = (f"JTI={claims['jti']}",)
    for key, program in issuer.extra:
        values = _strings(_run(program, variables, ""), f"oidc: error evaluating extra claim expression: {program.source}: ")
        if values:
            out[key] = values
    return out


# --- keys ----------------------------------------------------------------------------------------------------------------------------

class Provider:
    """One issuer on the network: its keys, and whether a token is its own and holds."""

    def __init__(self, issuer: Issuer, now: Callable[[], float] = time.time) -> None:
        self.issuer, self._now = issuer, now
        self._ca = issuer.certificate_authority.encode() or None
        self._senders: dict[str, HttpSender] = {}
        self._jwks_url = ""
        self._keys: list[tuple[str, Any]] = []                    # (kid, PyJWT's key)
        self._fetching: asyncio.Task[None] | None = None
        self._fetches, self._fetched_s = float(FETCHES_MAX), 0.0
        self.problem = f'oidc: authenticator for issuer "{issuer.url}" is not initialized'
        self._started = asyncio.get_running_loop().create_task(self._discover(), name=f"issuer {issuer.url}")

    async def close(self) -> None:
        tasks = [t for t in (self._started, self._fetching) if t is not None]
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sender in self._senders.values():
            await sender.close()

    async def _get(self, url: str, token: str = "") -> bytes:
        """The body at a URL. Raises OSError."""
        u = urlsplit(url)
        origin = f"{u.scheme}://{u.netloc}"
        if u.scheme != "https":
            raise OSError(f"Get {quote(url)}: only https is spoken")
        sender = self._senders.get(origin)
        if sender is None:
            if len(self._senders) >= 16:                          # distributed claims may name any server
                self._senders.clear()
            sender = self._senders[origin] = HttpSender(origin, self._ca)
        headers = {"accept": "application/json", "user-agent": "kube-apiserver", **({"authorization": f"Bearer {token}"} if token else {})}
        query = {k: [v] for k, _, v in (p.partition("=") for p in u.query.split("&")) if k}
        async with asyncio.timeout(TIMEOUT_S):
            answer = await sender.send(Request("GET", u.path or "/", query, headers))
            out = answer.body if isinstance(answer.body, bytes) else b""
            if not isinstance(answer.body, (bytes, list)):
                async for piece in answer.body:
                    out += piece
                    if len(out) > ANSWER_MAX_BYTES:
                        break
        if answer.status != 200 or len(out) > ANSWER_MAX_BYTES:
            raise OSError(f"{answer.status}: {out[:200].decode('utf-8', 'replace')}")
        return out

    async def _discover(self) -> None:
        """Until the issuer has said where its keys are; servers may come up after us."""
        issuer = self.issuer
        url = issuer.discovery_url or issuer.url.removesuffix("/") + WELL_KNOWN
        while True:
            try:
                said = orjson.loads(await self._get(url))
                if said.get("issuer") != issuer.url:
                    raise ValueError(f"oidc: issuer did not match the issuer returned by provider, expected {quote(issuer.url)} "
                                     f"got {quote(str(said.get('issuer') or ''))}")
                if not said.get("jwks_uri"):
                    raise ValueError("provider did not return JWKS URL")
                self._jwks_url = str(said["jwks_uri"])
                self.problem = ""
                return
            except (OSError, ValueError, AttributeError) as e:
                self.problem = str(e) or type(e).__name__
                log.warning("oidc authenticator: initializing issuer %s: %s", issuer.url, self.problem)
            await asyncio.sleep(RETRY_S)

    async def _fetch(self) -> None:
        import jwt

        found: list[tuple[str, Any]] = []
        for key in orjson.loads(await self._get(self._jwks_url)).get("keys") or ():
            try:
                found.append((str(key.get("kid") or ""), jwt.PyJWK(key)))
            except (jwt.exceptions.PyJWTError, AttributeError):   # of a kind nobody signs with here
                continue
        self._keys = found

    async def _renew(self) -> bool:
        """Asks for the keys again, one request for all who wait; not when that was done too often."""
        if self._fetching is None or self._fetching.done():
            now = time.monotonic()
            self._fetches = min(float(FETCHES_MAX), self._fetches + (now - self._fetched_s) / FETCH_EVERY_S)
            self._fetched_s = now
            if self._fetches < 1:
                return False
            self._fetches -= 1
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(), name="issuer keys")
        try:
            await asyncio.shield(self._fetching)
        except (OSError, ValueError, AttributeError) as e:
            raise TokenError(f"oidc: verify token: failed to verify signature: fetching keys oidc: get keys failed: {e}") from None
        return True

    def _signed(self, token: str, kid: str, algorithm: str) -> bool:
        import jwt

        for name, key in self._keys:
            if kid and name != kid:
                continue
            try:
                jwt.PyJWS(algorithms=list(ALGORITHMS)).decode_complete(token, key.key, algorithms=[algorithm])
                return True
            except (jwt.exceptions.PyJWTError, ValueError, TypeError):
                continue
        return False

    async def claims(self, token: str) -> dict[str, Any] | None:
        """The verified claims of a token of this issuer; None for somebody else's. Raises TokenError."""
        parsed = parse(token)
        if parsed is None:
            return None
        header, claims = parsed
        said = claims.get("iss")
        if (f"https://{GOOGLE}" if said == GOOGLE else said) != self.issuer.url:
            return None
        if not self._jwks_url:
            raise TokenError("oidc: authenticator not initialized")
        algorithm = str(header.get("alg") or "")
        why = unfit(claims, self.issuer.audiences, self._now())
        if not why and algorithm not in ALGORITHMS:
            why = f"oidc: id token signed with unsupported algorithm, expected {_list(ALGORITHMS)} got {quote(algorithm)}"
        if why:
            raise TokenError(f"oidc: verify token: {why}")
        kid = str(header.get("kid") or "")
        if not self._signed(token, kid, algorithm) and not (await self._renew() and self._signed(token, kid, algorithm)):
            raise TokenError("oidc: verify token: failed to verify signature: failed to verify id token signature")
        return claims

    async def user(self, token: str) -> tuple[User, dict[str, Any]] | None:
        claims = await self.claims(token)
        if claims is None:
            return None
        await self._expand(claims)
        return mapped(self.issuer, claims), claims

    async def _expand(self, claims: dict[str, Any]) -> None:
        """A groups claim that is kept elsewhere (distributed claims) is fetched."""
        name = self.issuer.groups.claim
        names = claims.get("_claim_names")
        if not name or name in claims or not isinstance(names, dict) or name not in names:
            return
        what = "oidc: could not expand distributed claims: "
        sources = claims.get("_claim_sources")
        if not isinstance(sources, dict):
            raise TokenError(f"{what}oidc: no claim sources")
        source = sources.get(names[name])
        if not isinstance(source, dict):
            raise TokenError(f"{what}id token _claim_names contained a source {names[name]} missing in _claims_sources")
        if not source.get("endpoint"):
            return
        try:
            text = (await self._get(str(source["endpoint"]), str(source.get("access_token") or ""))).decode()
        except (OSError, ValueError) as e:
            raise TokenError(f"{what}while getting distributed claim {quote(name)}: {e}") from None
        try:
            found = await self.claims(text.strip())
        except TokenError as e:
            raise TokenError(f"{what}verify distributed claim token: {e}") from None
        if found is None or name not in found:
            raise TokenError(f"{what}jwt returned by distributed claim endpoint {quote(str(source['endpoint']))} did not contain claim: {name}")
        claims[name] = found[name]


def unfit(claims: Mapping[str, Any], audiences: Sequence[str], now_s: float) -> str:
    """Why a token with these claims does not hold now, "" if it does."""
    for name in ("sub", "nonce", "at_hash"):
        if not isinstance(claims.get(name) or "", str):
            return f"oidc: failed to unmarshal claims: json: cannot unmarshal {_kind(claims[name])} into Go struct field idToken.{name} of type string"
    given = claims.get("aud")
    held = [given] if isinstance(given, str) else [str(a) for a in given] if isinstance(given, list) else []
    if not set(held) & set(audiences):
        wanted = quote(audiences[0]) if len(audiences) == 1 else f"in {_list(sorted(audiences))}"
        return f"oidc: expected audience {wanted} got {_list(held)}"
    expires, begins = claims.get("exp"), claims.get("nbf")
    if not isinstance(expires, (int, float)) or expires <= now_s:
        return f"oidc: token is expired (Token Expiry: {_time(expires)})"
    if isinstance(begins, (int, float)) and now_s + NOT_BEFORE_LEEWAY_S < begins:
        return f"oidc: current time {_time(now_s)} before the nbf (not before) time: {_time(begins)}"
    return ""


def _list(values: Sequence[str]) -> str:
    return "[" + " ".join(quote(v) for v in values) + "]"


def _time(seconds: Any) -> str:
    try:
        return datetime.fromtimestamp(float(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return "0001-01-01 00:00:00 +0000 UTC"


class Providers:
    """The issuers of the configuration as it is now: a check among those the Authenticator asks."""

    def __init__(self, own_audiences: Sequence[str], now: Callable[[], float] = time.time) -> None:
        self._own, self._now = tuple(own_audiences), now
        self._all: dict[str, Provider] = {}

    async def configure(self, what: Authentication) -> None:
        """Takes up a configuration; issuers it says the same of as before keep their keys."""
        before = self._all
        self._all = {}
        for issuer in what.issuers:
            old = before.get(issuer.url)
            if old is not None and _same(old.issuer, issuer):
                old.issuer = issuer
                self._all[issuer.url] = before.pop(issuer.url)
            else:
                self._all[issuer.url] = Provider(issuer, self._now)
        await asyncio.gather(*(p.close() for p in before.values()))

    async def close(self) -> None:
        await self.configure(Authentication())

    def problems(self) -> list[str]:
        """Issuers that cannot be asked yet."""
        return [f'oidc: authenticator for issuer "{url}" is not healthy: {p.problem}' for url, p in self._all.items() if p.problem]

    async def check(self, token: str, audiences: Sequence[str]) -> Verified | None:
        if not self._all or token.count(".") != 2:
            return None
        held = tuple(a for a in self._own if a in audiences)      # such a token names no audience of ours: it is good for all of them
        if not held:
            return None
        for provider in self._all.values():
            found = await provider.user(token)
            if found is not None:
                user, claims = found
                until = min(float(claims["exp"]), self._now() + KEPT_S)
                return Verified(User(user.name, (*user.groups, "system:authenticated"), user.uid, user.extra), held, until)
        return None


def _same(a: Issuer, b: Issuer) -> bool:
    """Whether both lie at the same place and are trusted the same."""
    return (a.url, a.discovery_url, a.certificate_authority) == (b.url, b.discovery_url, b.certificate_authority)
