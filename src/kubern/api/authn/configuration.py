"""AuthenticationConfiguration: which issuers of JSON Web Tokens are believed, what of their claims makes a user, who may be anonymous.

`parse(document, own issuers)` gives an Authentication with every expression compiled, or raises BadFile in upstream's words.
Upstream: apiserver pkg/apis/apiserver/{v1,validation}, pkg/authentication/cel; KEP-3331, KEP-4633.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kubern.api.configfile import decode, refuse
from kubern.model import invalid as field
from kubern.model.cel import CelProblem, Program, compile_
from kubern.model.cel.parse import Node
from kubern.model.cel.types import DYN, Type, same
from kubern.model.cel.types import Object as ObjectType
from kubern.model.invalid import FieldError, quote
from kubern.model.names import is_domain_prefixed_path

VERSIONS = ("v1", "v1beta1", "v1alpha1")
ISSUERS_MAX = 64

_CLAIM = {"claim": str, "expression": str}
SHAPE = {
    "jwt": [{
        "issuer": {"url": str, "discoveryURL": str, "certificateAuthority": str, "audiences": [str], "audienceMatchPolicy": str, "egressSelectorType": str},
        "claimValidationRules": [{"claim": str, "requiredValue": str, "expression": str, "message": str}],
        "claimMappings": {"username": {**_CLAIM, "prefix": str}, "groups": {**_CLAIM, "prefix": str}, "uid": _CLAIM,
                          "extra": [{"key": str, "valueExpression": str}]},
        "userValidationRules": [{"expression": str, "message": str}]}],
    "anonymous": {"enabled": bool, "conditions": [{"path": str}]}}

CLAIMS: dict[str, Type] = {"claims": ("map", "string", DYN)}
_USER_INFO = ObjectType("kubernetes.UserInfo", {"username": "string", "uid": "string", "groups": ("list", "string"),
                                                "extra": ("map", "string", ("list", "string"))})
USER: dict[str, Type] = {"user": _USER_INFO}


@dataclass(frozen=True, slots=True)
class Mapped:
    """Where an attribute comes from: a claim with a prefix, or an expression, or neither."""

    claim: str = ""
    prefix: str = ""
    expression: Program | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    expression: Program
    message: str


@dataclass(frozen=True, slots=True)
class Issuer:
    """One issuer, and how its tokens become users."""

    url: str
    audiences: tuple[str, ...]
    discovery_url: str
    certificate_authority: str
    username: Mapped
    groups: Mapped
    uid: Mapped
    extra: tuple[tuple[str, Program], ...]
    required: tuple[tuple[str, str], ...]
    claim_rules: tuple[Rule, ...]
    user_rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Authentication:
    issuers: tuple[Issuer, ...] = ()
    anonymous: bool | None = None                     # None: the file does not say
    anonymous_paths: tuple[str, ...] = ()             # empty: everywhere


def parse(doc: Any, own_issuers: Sequence[str] = ()) -> Authentication:
    """`own_issuers`: of service-account tokens, which nobody else may claim to be. Raises BadFile."""
    given = decode(doc, "AuthenticationConfiguration", VERSIONS, SHAPE)
    errors: list[FieldError] = []
    issuers = _issuers(given.get("jwt") or [], own_issuers, errors)
    anonymous = given.get("anonymous")
    paths = tuple(c.get("path") or "" for c in (anonymous or {}).get("conditions") or ())
    if anonymous is not None and not anonymous.get("enabled") and paths:
        errors.append(field.invalid("anonymous.conditions", [{"Path": p} for p in paths], "enabled should be set to true when conditions are defined"))
    refuse("invalid authentication configuration: ", errors)
    return Authentication(tuple(issuers), None if anonymous is None else bool(anonymous.get("enabled")), paths)


def _issuers(given: list[Any], own: Sequence[str], errors: list[FieldError]) -> list[Issuer]:
    if len(given) > ISSUERS_MAX:
        errors.append(field.too_many("jwt", len(given), ISSUERS_MAX))
        return []
    out: list[Issuer] = []
    urls: set[str] = set()
    discovered: set[str] = set()
    for i, authenticator in enumerate(given):
        at = f"jwt[{i}]"
        out.append(_Checked(authenticator, at, own, errors).issuer())
        issuer = authenticator.get("issuer") or {}
        for name, seen in (("url", urls), ("discoveryURL", discovered)):
            value = issuer.get(name) or ""
            if value in seen:
                errors.append(field.duplicate(f"{at}.issuer.{name}", value))
            if value or name == "url":
                seen.add(value)
    return out


class _Checked:
    """One entry of `jwt`: what is wrong goes to `errors`, in upstream's order."""

    def __init__(self, given: Mapping[str, Any], at: str, own: Sequence[str], errors: list[FieldError]) -> None:
        self._given, self._at, self._own, self._errors = given, at, own, errors

    def issuer(self) -> Issuer:
        given = self._given.get("issuer") or {}
        self._errors.extend(_check_issuer(given, f"{self._at}.issuer", self._own))
        required, claim_rules = self._claim_rules()
        at, m = f"{self._at}.claimMappings", self._given.get("claimMappings") or {}
        username = self._prefixed(m.get("username") or {}, f"{at}.username", True)
        groups = self._prefixed(m.get("groups") or {}, f"{at}.groups", False)
        uid = self._uid(m.get("uid") or {}, f"{at}.uid")
        extra = self._extra(m.get("extra") or (), f"{at}.extra")
        if username.expression is not None and selects(username.expression.tree, "email") and not any(
                selects(p.tree, "email_verified") for p in (username.expression, *(r.expression for r in claim_rules), *(e for _, e in extra))):
            self._errors.append(field.invalid(
                f"{at}.username.expression", username.expression.source,
                "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or "
                "claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression"))
        return Issuer(given.get("url") or "", tuple(given.get("audiences") or ()), given.get("discoveryURL") or "", given.get("certificateAuthority") or "",
                      username, groups, uid, extra, required, claim_rules, self._user_rules())

    def _compile(self, source: str, at: str, variables: Mapping[str, Type], wanted: Type | None = None) -> Program | None:
        try:
            program = compile_(source, variables)
        except CelProblem as e:
            self._errors.append(field.invalid(at, source, f"compilation failed: {e}"))
            return None
        if wanted is not None and not same(program.type, wanted):
            self._errors.append(field.invalid(at, source, f"must evaluate to {wanted}"))
            return None
        return program

    def _claim_rules(self) -> tuple[tuple[tuple[str, str], ...], tuple[Rule, ...]]:
        required: dict[str, str] = {}
        rules: dict[str, Rule] = {}
        seen: set[str] = set()
        for i, rule in enumerate(self._given.get("claimValidationRules") or ()):
            at = f"{self._at}.claimValidationRules[{i}]"
            claim, expression, message = rule.get("claim") or "", rule.get("expression") or "", rule.get("message") or ""
            value = rule.get("requiredValue") or ""
            if claim and expression:
                self._errors.append(field.invalid(at, claim, "claim and expression can't both be set"))
            elif claim:
                if message:
                    self._errors.append(field.invalid(f"{at}.message", message, "may not be specified when claim is set"))
                if claim in required:
                    self._errors.append(field.duplicate(f"{at}.claim", claim))
                required[claim] = value
            elif expression:
                if value:
                    self._errors.append(field.invalid(f"{at}.requiredValue", value, "may not be specified when expression is set"))
                if expression in seen:
                    self._errors.append(field.duplicate(f"{at}.expression", expression))
                    continue
                seen.add(expression)
                program = self._compile(expression, f"{at}.expression", CLAIMS, "bool")
                if program is not None:
                    rules[expression] = Rule(program, message)
            else:
                self._errors.append(field.required(at, "claim or expression is required"))
        return tuple(required.items()), tuple(rules.values())

    def _prefixed(self, given: Mapping[str, Any], at: str, needed: bool) -> Mapped:
        claim, expression, prefix = given.get("claim") or "", given.get("expression") or "", given.get("prefix")
        if claim and expression:
            self._errors.append(field.invalid(at, "", "claim and expression can't both be set"))
        elif expression:
            if prefix is not None:
                self._errors.append(field.invalid(f"{at}.prefix", prefix, "may not be specified when expression is set"))
            return Mapped(expression=self._compile(expression, f"{at}.expression", CLAIMS))
        elif claim:
            if prefix is None:
                self._errors.append(field.required(f"{at}.prefix", "prefix is required when claim is set. It can be set to an empty string to "
                                                                   "disable prefixing"))
        elif needed:
            self._errors.append(field.required(at, "claim or expression is required"))
        return Mapped(claim, prefix or "")

    def _uid(self, given: Mapping[str, Any], at: str) -> Mapped:
        claim, expression = given.get("claim") or "", given.get("expression") or ""
        if claim and expression:
            self._errors.append(field.invalid(at, "", "claim and expression can't both be set"))
        elif expression:
            return Mapped(expression=self._compile(expression, f"{at}.expression", CLAIMS))
        return Mapped(claim)

    def _extra(self, given: Sequence[Mapping[str, Any]], path: str) -> tuple[tuple[str, Program], ...]:
        out: dict[str, Program | None] = {}
        for i, mapping in enumerate(given):
            at, key, expression = f"{path}[{i}]", mapping.get("key") or "", mapping.get("valueExpression") or ""
            self._errors.extend(is_domain_prefixed_path(f"{at}.key", key))
            if key != key.lower():
                self._errors.append(field.invalid(f"{at}.key", key, "must be lowercase"))
            domain = key.partition("/")[0] if "/" in key else ""
            if any(domain == d or domain.endswith(f".{d}") for d in ("kubernetes.io", "k8s.io")):
                self._errors.append(field.invalid(f"{at}.key", key, "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"))
            if key in out:
                self._errors.append(field.duplicate(f"{at}.key", key))
                continue
            out[key] = None
            if not expression:
                self._errors.append(field.required(f"{at}.valueExpression"))
                continue
            out[key] = self._compile(expression, f"{at}.valueExpression", CLAIMS)
        return tuple((k, p) for k, p in out.items() if p is not None)

    def _user_rules(self) -> tuple[Rule, ...]:
        out: dict[str, Rule | None] = {}
        for i, rule in enumerate(self._given.get("userValidationRules") or ()):
            at, expression = f"{self._at}.userValidationRules[{i}].expression", rule.get("expression") or ""
            if not expression:
                self._errors.append(field.required(at))
            elif expression in out:
                self._errors.append(field.duplicate(at, expression))
            else:
                program = self._compile(expression, at, USER, "bool")
                out[expression] = Rule(program, rule.get("message") or "") if program is not None else None
        return tuple(r for r in out.values() if r is not None)


def _check_issuer(given: Mapping[str, Any], at: str, own: Sequence[str]) -> Iterator[FieldError]:
    url, discovery, audiences = given.get("url") or "", given.get("discoveryURL") or "", given.get("audiences") or []
    if not url:
        yield field.required(f"{at}.url")
    else:
        yield from _check_url(url, f"{at}.url", own)
    if discovery:
        if url and url.rstrip("/") == discovery.rstrip("/"):
            yield field.invalid(f"{at}.discoveryURL", discovery, "discoveryURL must be different from URL")
        yield from _check_url(discovery, f"{at}.discoveryURL", ())
    yield from _check_audiences(audiences, given.get("audienceMatchPolicy") or "", at)
    if given.get("certificateAuthority"):
        why = _pem_problem(given["certificateAuthority"])
        if why:
            yield field.invalid(f"{at}.certificateAuthority", "<omitted>", why)
    egress = given.get("egressSelectorType")
    if egress and egress not in ("controlplane", "cluster"):
        yield field.invalid(f"{at}.egressSelectorType", egress, "egress selector must be either controlplane or cluster")


def _check_url(url: str, at: str, disallowed: Sequence[str]) -> Iterator[FieldError]:
    if url in disallowed:
        yield field.invalid(at, url, f"URL must not overlap with disallowed issuers: [{' '.join(sorted(disallowed))}]")
    try:
        u = urlsplit(url)
        _ = u.port
    except ValueError as e:
        yield field.invalid(at, url, f"parse {quote(url)}: {e}")
        return
    if u.scheme != "https":
        yield field.invalid(at, url, "URL scheme must be https")
    if u.username is not None or u.password is not None:
        yield field.invalid(at, url, "URL must not contain a username or password")
    if u.query:
        yield field.invalid(at, url, "URL must not contain a query")
    if u.fragment:
        yield field.invalid(at, url, "URL must not contain a fragment")


def _check_audiences(audiences: Sequence[str], policy: str, at: str) -> Iterator[FieldError]:
    if not audiences:
        yield field.required(f"{at}.audiences", f"at least one {at}.audiences is required")
        return
    for i, audience in enumerate(audiences):
        if not audience:
            yield field.required(f"{at}.audiences[{i}]")
        if audience in audiences[:i]:
            yield field.duplicate(f"{at}.audiences[{i}]", audience)
    if len(audiences) > 1 and policy != "MatchAny":
        yield field.invalid(f"{at}.audienceMatchPolicy", policy, "audienceMatchPolicy must be MatchAny for multiple audiences")
    if len(audiences) == 1 and policy not in ("", "MatchAny"):
        yield field.invalid(f"{at}.audienceMatchPolicy", policy, "audienceMatchPolicy must be empty or MatchAny for single audience")


def _pem_problem(text: str) -> str:
    from cryptography import x509

    if "-----BEGIN CERTIFICATE-----" not in text:
        return "data does not contain any valid RSA or ECDSA certificates"
    try:
        x509.load_pem_x509_certificates(text.encode())
    except ValueError as e:
        return str(e).split("\n", 1)[0]
    return ""


def selects(tree: Node, claim: str) -> bool:
    """Whether an expression reads claims.CLAIM, or claims.?CLAIM."""
    def here(n: Node) -> bool:
        return n.op in ("select", "has", "optselect") and n.name == claim and n.args[0].op == "ident" and n.args[0].name == "claims"
    return _any(tree, here)


def _any(node: Any, found: Callable[[Node], bool]) -> bool:
    if isinstance(node, Node):
        return found(node) or any(_any(a, found) for a in node.args) or (isinstance(node.value, (Node, tuple, list)) and _any(node.value, found))
    return isinstance(node, (tuple, list)) and any(_any(n, found) for n in node)
