"""OpenID Connect against an issuer of the tests' own: configuration, claims, signatures, rotation of keys, reload of the file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubern.api.access import Files, applied, read
from kubern.api.authn import TokenError
from kubern.api.authn.configuration import parse
from kubern.api.authn.oidc import KEPT_S, Providers, mapped, unfit
from kubern.api.configfile import BadFile
from kubern.api.handle import Server
from kubern.api.settings import ApiSettings
from kubern.model.request import Request
from kubern.model.status import StatusError
from kubern.store.memory import MemoryStore
from tests.api.outside import Outside, outside, until

PLAIN = {"username": {"claim": "sub", "prefix": "oidc:"}}


def configuration(*issuers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": list(issuers), **more}


def issuer(url: str = "https://issuer.example", mappings: Any = None, **more: Any) -> dict[str, Any]:
    more.setdefault("issuer", {"url": url, "audiences": ["me"]})
    return {"claimMappings": mappings or PLAIN, **more}


class Issuer:
    """Signs tokens and serves its keys."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.url, self.said = "", {}                         # type: ignore[var-annotated]
        self.add("one", rsa.generate_private_key(public_exponent=65537, key_size=2048))

    def add(self, kid: str, key: Any) -> None:
        self.keys = {kid: key}

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path.endswith("openid-configuration"):
            return 200, {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.said}
        if path == "/keys":
            return 200, {"keys": [self.jwk(kid, key) for kid, key in self.keys.items()] + [{"kty": "oct", "k": "AAAA"}, "x"]}
        return 404, {}

    @staticmethod
    def jwk(kid: str, key: Any) -> dict[str, Any]:
        algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}

    def token(self, algorithm: str = "RS256", kid: str = "", key: Any = None, **claims: Any) -> str:
        kid = kid or next(iter(self.keys))
        said = {"iss": self.url, "aud": "me", "sub": "jane", "exp": time.time() + 600, **claims}
        return jwt.encode({k: v for k, v in said.items() if v is not None}, key or self.keys[kid], algorithm, {"kid": kid})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[Issuer, Outside]]:
    made = Issuer()
    async with outside(tmp_path, made.answer) as served:
        made.url = served.url
        yield made, served


async def providers(served: Outside, **more: Any) -> Providers:
    found = Providers(["api"])
    more.setdefault("mappings", PLAIN)
    given = issuer(**more)
    given["issuer"] = {"url": served.url, "audiences": ["me"], "certificateAuthority": served.ca, **more.get("issuer", {})}
    await found.configure(parse(configuration(given)))
    await until(lambda: not found.problems())
    return found


async def test_a_token_becomes_a_user(world: tuple[Issuer, Outside]) -> None:
    made, served = world
    found = await providers(served, mappings={**PLAIN, "groups": {"claim": "roles", "prefix": "r:"}, "uid": {"claim": "sub"}})
    verified = await found.check(made.token(roles=["a", "b"], jti="77"), ["api", "other"])
    assert verified is not None and verified.audiences == ("api",)
    user = verified.user
    assert (user.name, user.groups, user.uid) == ("oidc:jane", ("r:a", "r:b", "system:authenticated"), "jane")
    assert user.extra == {"authentication.kubernetes.io/credential-id": ("JTI=77",)}
    assert verified.expires_s <= time.time() + KEPT_S
    single = await found.check(made.token(roles="a"), ["api"])
    assert single is not None and single.user.groups == ("r:a", "system:authenticated")
    assert await found.check(made.token(), ["other"]) is None           # it is meant for this API server alone
    assert await found.check(made.token(iss="https://else.example"), ["api"]) is None
    assert await found.check("no.token", ["api"]) is None
    await found.close()


@pytest.mark.parametrize(("claims", "why"), [
    ({"exp": 1_700_000_000}, r"oidc: verify token: oidc: token is expired \(Token Expiry: 2023-11-14 22:13:20 \+0000 UTC\)"),
    ({"exp": None}, "token is expired"),
    ({"aud": "you"}, r'oidc: verify token: oidc: expected audience "me" got \["you"\]'),
    ({"nbf": time.time() + 3600}, "before the nbf"),
    ({"sub": None}, 'oidc: parse username claims "sub": claim not present'),
    ({"sub": 5}, "oidc: verify token: oidc: failed to unmarshal claims: json: cannot unmarshal number into Go struct field idToken.sub of type string"),
])
async def test_tokens_that_do_not_hold(world: tuple[Issuer, Outside], claims: Any, why: str) -> None:
    made, served = world
    found = await providers(served)
    with pytest.raises(TokenError, match=why):
        await found.check(made.token(**claims), ["api"])
    await found.close()


async def test_signatures(world: tuple[Issuer, Outside]) -> None:
    made, served = world
    found = await providers(served)
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for bad in (made.token(key=stranger), made.token(key=stranger, kid="none"), made.token()[:-6] + "AAAAAA"):
        with pytest.raises(TokenError, match="failed to verify signature"):
            await found.check(bad, ["api"])
    public = made.keys["one"].public_key()
    with pytest.raises(TokenError, match="unsupported algorithm"):
        await found.check(jwt.encode({"iss": made.url, "aud": "me", "exp": time.time() + 9}, str(public.public_numbers().n).encode() * 2, "HS256"), ["api"])
    with pytest.raises(TokenError, match="unsupported algorithm"):
        await found.check(jwt.encode({"iss": made.url, "aud": "me", "exp": time.time() + 9}, None, "none"), ["api"])
    for algorithm in ("RS512", "PS256"):
        assert await found.check(made.token(algorithm), ["api"])
    await found.close()


async def test_keys_are_rotated_and_asked_for_only_so_often(world: tuple[Issuer, Outside]) -> None:
    made, served = world
    found = await providers(served)
    old = made.token()
    assert await found.check(old, ["api"]) and await found.check(old, ["api"])
    assert sum(path == "/keys" for _, path, _ in served.asked) == 1
    made.add("two", ec.generate_private_key(ec.SECP256R1()))
    new = made.token("ES256")
    assert await found.check(new, ["api"])
    with pytest.raises(TokenError):
        await found.check(old, ["api"])
    stranger = ec.generate_private_key(ec.SECP256R1())
    for _ in range(40):
        with pytest.raises(TokenError):
            await found.check(made.token("ES256", key=stranger), ["api"])
    assert sum(path == "/keys" for _, path, _ in served.asked) < 16
    assert await found.check(new, ["api"])
    await found.close()


async def test_an_issuer_that_comes_up_late_or_lies(world: tuple[Issuer, Outside], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.api.authn.oidc.RETRY_S", 0.05)
    made, served = world
    made.said = {"issuer": "https://else.example"}
    found = Providers(["api"])
    await found.configure(parse(configuration({**issuer(), "issuer": {"url": served.url, "audiences": ["me"], "certificateAuthority": served.ca}})))
    await until(lambda: "did not match" in "".join(found.problems()))
    with pytest.raises(TokenError, match="authenticator not initialized"):
        await found.check(made.token(), ["api"])
    made.said = {}
    await until(lambda: not found.problems())
    assert await found.check(made.token(), ["api"])
    await found.close()


async def test_discovery_elsewhere_and_groups_elsewhere(world: tuple[Issuer, Outside], tmp_path: Path) -> None:
    """discoveryURL names where to look for an issuer of another name; a groups claim may be fetched from where the token says."""
    made, served = world
    keys = served.url
    made.said = {"jwks_uri": f"{keys}/keys"}
    made.url = "https://issuer.example"
    found = await providers(served, mappings={**PLAIN, "groups": {"claim": "groups", "prefix": ""}},
                            issuer={"url": made.url, "discoveryURL": f"{keys}/here/openid-configuration"})
    elsewhere = made.token(groups=["far"])
    plain = served.answer
    served.answer = lambda m, p, b: (200, elsewhere.encode()) if p == "/groups" else plain(m, p, b)
    token = made.token(_claim_names={"groups": "s"}, _claim_sources={"s": {"endpoint": f"{keys}/groups", "access_token": "x"}})
    verified = await found.check(token, ["api"])
    assert verified and verified.user.groups == ("far", "system:authenticated")
    await found.close()


# --- claims, without a network -------------------------------------------------------------------------------------------------------

def user_of(claims: dict[str, Any], **more: Any) -> Any:
    return mapped(parse(configuration(issuer(**more))).issuers[0], claims)


def test_expressions_map_claims() -> None:
    mappings = {
        "username": {"expression": "claims.email.split('@')[0] + (claims.email_verified ? '' : '?')"},
        "groups": {"expression": "claims.roles.filter(r, r.startsWith('k8s:')).map(r, r.substring(4))"},
        "uid": {"expression": "string(int(claims.number))"},
        "extra": [{"key": "example.org/tier", "valueExpression": "claims.org__dot__tier"},
                  {"key": "example.org/deep", "valueExpression": "claims.nested.a__dash__b"},
                  {"key": "example.org/none", "valueExpression": "''"}]}
    user = user_of({"email": "jane@x", "email_verified": True, "roles": ["k8s:a", "other", "k8s:"], "number": 42, "org.tier": ["gold", ""],
                    "nested": {"a-b": "c"}}, mappings=mappings)
    assert (user.name, user.groups, user.uid) == ("jane", ("a",), "42")
    assert user.extra == {"example.org/tier": ("gold",), "example.org/deep": ("c",)}
    with pytest.raises(TokenError, match=r"oidc: error evaluating username claim expression: expression '.*' resulted in error: no such key: email"):
        user_of({}, mappings=mappings)
    with pytest.raises(TokenError, match="username claim expression must return a string"):
        user_of({"n": 1}, mappings={"username": {"expression": "claims.n"}})
    with pytest.raises(TokenError, match="empty username"):
        user_of({}, mappings={"username": {"expression": "''"}})
    with pytest.raises(TokenError, match="expression must return a string or a list of strings"):
        user_of({"sub": "a"}, mappings={**PLAIN, "groups": {"expression": "[1, 2]"}})


def test_rules_of_claims_and_users() -> None:
    rules = [{"claim": "hd", "requiredValue": "example.com"}, {"expression": "claims.exp - claims.nbf <= 86400", "message": "too long"}]
    good = {"sub": "jane", "hd": "example.com", "exp": 100, "nbf": 50}
    assert user_of(good, claimValidationRules=rules).name == "oidc:jane"
    with pytest.raises(TokenError, match="oidc: required claim hd not present in ID token"):
        user_of({k: v for k, v in good.items() if k != "hd"}, claimValidationRules=rules)
    with pytest.raises(TokenError, match=r"oidc: required claim hd value does not match. Got = a, want = example.com"):
        user_of({**good, "hd": "a"}, claimValidationRules=rules)
    with pytest.raises(TokenError, match=r"oidc: error evaluating claim validation expression: validation expression 'claims.exp.*' failed: too long"):
        user_of({**good, "exp": 10**9}, claimValidationRules=rules)
    users = [{"expression": "!user.username.startsWith('oidc:system:')", "message": "reserved"}, {"expression": "user.groups.size() == 0"}]
    assert user_of(good, userValidationRules=users).name == "oidc:jane"
    with pytest.raises(TokenError, match=r"oidc: error evaluating user info validation rule: .* failed: reserved"):
        user_of({**good, "sub": "system:a"}, userValidationRules=users)


def test_unverified_addresses() -> None:
    mappings = {"username": {"claim": "email", "prefix": ""}}
    assert user_of({"email": "a@b"}, mappings=mappings).name == "a@b"
    with pytest.raises(TokenError, match="oidc: email not verified"):
        user_of({"email": "a@b", "email_verified": False}, mappings=mappings)


@pytest.mark.parametrize(("given", "why"), [
    ({"issuer": {"url": "http://a#b", "audiences": ["x"]}}, 'jwt[0].issuer.url: Invalid value: "http://a#b": URL scheme must be https, '
     'jwt[0].issuer.url: Invalid value: "http://a#b": URL must not contain a fragment'),
    ({"issuer": {}}, "jwt[0].issuer.url: Required value, "
     "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required"),
    ({"issuer": {"url": "https://kubernetes.default", "audiences": ["x"]}}, "URL must not overlap with disallowed issuers: [https://kubernetes.default]"),
    ({"issuer": {"url": "https://a", "audiences": ["x", "y"]}}, 'Invalid value: "": audienceMatchPolicy must be MatchAny for multiple audiences'),
    ({"issuer": {"url": "https://a", "audiences": ["x"], "certificateAuthority": "x"}},
     'jwt[0].issuer.certificateAuthority: Invalid value: "<omitted>": data does not contain any valid RSA or ECDSA certificates'),
    ({"mappings": {"username": {"claim": "sub"}}}, "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set "
     "to an empty string to disable prefixing"),
    ({"mappings": {"username": {}}}, "jwt[0].claimMappings.username: Required value: claim or expression is required"),
    ({"mappings": {"username": {"expression": "claims.email"}}}, "claims.email_verified must be used in claimMappings.username.expression"),
    ({"mappings": {**PLAIN, "extra": [{"key": "a", "valueExpression": "''"}]}}, 'must be a domain-prefixed path (such as "acme.io/foo")'),
    ({"mappings": {**PLAIN, "extra": [{"key": "x.k8s.io/A", "valueExpression": "''"}]}}, "must be lowercase"),
    ({"claimValidationRules": [{"expression": "claims.sub"}]}, 'jwt[0].claimValidationRules[0].expression: Invalid value: "claims.sub": must evaluate to bool'),
    ({"claimValidationRules": [{"expression": "foo"}]}, "compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo'"),
    ({"userValidationRules": [{"expression": "user.nope == ''"}]}, "undefined field 'nope'"),
    ({"claimValidationRules": [{"claim": "a", "expression": "b"}]}, "claim and expression can't both be set"),
])
def test_configurations_that_are_wrong(given: Any, why: str) -> None:
    with pytest.raises(BadFile) as e:
        parse(configuration(issuer(**given)), ["https://kubernetes.default"])
    assert why in str(e.value)


def test_whole_files_that_are_wrong() -> None:
    with pytest.raises(BadFile, match=r'jwt\[1\].issuer.url: Duplicate value: "https://issuer.example"'):
        parse(configuration(issuer(), issuer()))
    with pytest.raises(BadFile, match=r'strict decoding error: unknown field "jwt\[0\].foo"'):
        parse(configuration(issuer(foo=1)))
    with pytest.raises(BadFile, match="enabled should be set to true when conditions are defined"):
        parse(configuration(anonymous={"enabled": False, "conditions": [{"path": "/livez"}]}))
    with pytest.raises(BadFile, match='no kind "Nope" is registered'):
        parse({"kind": "Nope", "apiVersion": "v1"})


# --- with a server -------------------------------------------------------------------------------------------------------------------

async def test_the_file_is_followed(world: tuple[Issuer, Outside], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubern.api.configfile.LOOK_EVERY_S", 0.02)
    made, served = world
    file = tmp_path / "authn.yaml"

    def write(prefix: str, **more: Any) -> None:
        given = issuer(mappings={"username": {"claim": "sub", "prefix": prefix}})
        given["issuer"] = {"url": served.url, "audiences": ["me"], "certificateAuthority": served.ca}
        file.write_text(yaml.safe_dump(configuration(given, **more)))
    write("a:", anonymous={"enabled": True, "conditions": [{"path": "/livez"}]})
    access = read(Files(authentication_config=str(file)))
    server = Server(MemoryStore(), settings=ApiSettings(bootstrap=False))
    await server.start()

    async def name() -> str:
        try:
            who = await server.authenticator.authenticate(Request("GET", "/api", headers={"authorization": f"Bearer {made.token()}"}))
        except StatusError as e:
            return e.reason
        return who.name

    async def called(wanted: str) -> bool:
        return await name() == wanted
    async with applied(access, server):
        await until(lambda: called("a:jane"))
        assert (await server.handle(Request("GET", "/livez"))).status in (200, 403)
        assert (await server.handle(Request("GET", "/readyz"))).status == 401
        file.write_text("kind: Nope")
        await asyncio.sleep(0.1)
        assert await name() == "a:jane"                              # what cannot be used changes nothing
        write("b:")
        await until(lambda: called("b:jane"))
    await server.stop()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "iss", "jti", "groups", "email", "email_verified", "_claim_names", "a"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6)))
def test_any_claims_are_a_user_or_a_refusal(claims: dict[str, Any]) -> None:
    assert isinstance(unfit(claims, ["me"], 0.0), str)
    for mappings in ({**PLAIN, "groups": {"claim": "groups", "prefix": ""}}, {"username": {"expression": "claims.a.b"}, "uid": {"claim": "jti"}},
                     {"username": {"expression": "claims.sub + 'x'"}, "groups": {"expression": "claims.groups"}},
                     {"username": {"claim": "email", "prefix": "x"}}):
        try:
            assert isinstance(user_of(claims, mappings=mappings).name, str)
        except TokenError as e:
            assert str(e)
