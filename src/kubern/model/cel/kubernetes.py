"""Kubernetes' own CEL functions: quantities, URLs, IP addresses, versions, regular expressions, named formats, the authorizer.

Upstream: apiserver pkg/cel/library.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from kubern.model import names
from kubern.model.cel.library import Row, regex
from kubern.model.cel.types import read
from kubern.model.cel.values import INT_MAX, NOTHING, CelError, Optional
from kubern.model.invalid import quote as go_quote
from kubern.model.netip import fault
from kubern.model.quantity import QuantityError, parse, render


class Quantity:
    """`places`: by which power of ten upstream's 64-bit form is scaled; None where that is too small and a big decimal holds the amount."""

    __slots__ = ("amount", "format", "places")
    kind = read("quantity")

    def __init__(self, amount: Fraction, format_: str, places: int | None) -> None:
        self.amount, self.format, self.places = amount, format_, places

    @property
    def whole(self) -> bool:
        """Whether upstream can say it as an integer: it looks at the form, not at the amount."""
        return self.places is not None and self.places >= 0 and abs(self.amount) <= INT_MAX

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.amount == other.amount

    def __hash__(self) -> int:
        return hash(self.amount)

    def __str__(self) -> str:
        return render(self.amount, self.format)


def _quantity(text: str) -> Quantity:
    try:
        q = parse(text)
    except QuantityError as e:
        raise CelError(str(e)) from None
    return Quantity(q.amount, q.format, _places(text))


_PIECES = re.compile(r"[+-]?0*(\d*)(?:\.(\d*))?([a-zA-Z]*)([+-]?\d*)")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def _places(text: str) -> int | None:
    m = _PIECES.fullmatch(text)
    if m is None:
        return None
    number, fraction, suffix, exponent = m[1], m[2] or "", m[3], m[4]
    digits = len(number or "0") + len(fraction)
    if suffix.endswith("i"):
        power = 10 * ("KMGTPE".index(suffix[0]) + 1)
        return 0 if not fraction and 14 - digits - power * 3 // 10 >= 0 else None
    places = (int(exponent or "0") if suffix in ("e", "E") and exponent else _DECIMAL.get(suffix, 0)) - len(fraction)
    return places if digits <= 18 and places >= -9 else None


def _is(make: Callable[[str], Any]) -> Callable[[str], bool]:
    def run(text: str) -> bool:
        try:
            make(text)
        except CelError:
            return False
        return True
    return run


def _order(a: Any, b: Any) -> int:
    return (a > b) - (a < b)


def _as_integer(q: Quantity) -> int:
    if not q.whole:
        raise CelError("cannot convert value to integer")
    return q.amount.numerator


def _sum(sign: int) -> Callable[[Quantity, Any], Quantity]:
    def run(q: Quantity, other: Any) -> Quantity:
        more, places = (other.amount, other.places) if isinstance(other, Quantity) else (Fraction(other), 0)
        total = q.amount + sign * more
        if not more or not q.amount:
            places = places if more else q.places
        else:
            places = None if q.places is None or places is None else min(q.places, places)
            if places is not None and abs(total) * Fraction(10) ** -places > INT_MAX:
                places = None
        return Quantity(total, q.format, places)
    return run


_QUANTITY: list[Row] = [
    ("quantity(string) -> quantity", _quantity), ("isQuantity(string) -> bool", _is(_quantity)),
    ("sign(quantity) -> int", lambda q: _order(q.amount, 0)),
    ("quantity.isGreaterThan(quantity) -> bool", lambda a, b: a.amount > b.amount),
    ("quantity.isLessThan(quantity) -> bool", lambda a, b: a.amount < b.amount),
    ("quantity.compareTo(quantity) -> int", lambda a, b: _order(a.amount, b.amount)),
    ("quantity.asApproximateFloat() -> double", lambda q: float(q.amount)),
    ("quantity.asInteger() -> int", _as_integer), ("quantity.isInteger() -> bool", lambda q: q.whole),
    ("quantity.add(quantity) -> quantity", _sum(1)), ("quantity.add(int) -> quantity", _sum(1)),
    ("quantity.sub(quantity) -> quantity", _sum(-1)), ("quantity.sub(int) -> quantity", _sum(-1)),
]


# -- URLs

@dataclass(frozen=True, slots=True)
class Url:
    text: str
    kind = read("url")

    @property
    def parts(self) -> Any:
        return urlsplit(self.text)


def _url(text: str) -> Url:
    fail = "URL parse error during conversion from string: parse {}: {}"
    if not text:
        raise CelError(fail.format('""', "empty url"))
    if any(ord(c) < 0x20 or c == "\x7f" for c in text):
        raise CelError(fail.format(go_quote(text), "net/url: invalid control character in URL"))
    if text.startswith(":"):
        raise CelError(fail.format(go_quote(text), "missing protocol scheme"))
    if not text.startswith("/") and not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", text):
        raise CelError(fail.format(go_quote(text), "invalid URI for request"))
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as e:
        raise CelError(fail.format(go_quote(text), e)) from None
    if " " in parts.netloc:
        raise CelError(fail.format(go_quote(text), 'invalid character " " in host name'))
    return Url(text)


def _query(text: str) -> dict[str, list[str]]:
    """As Go's url.ParseQuery: a part with a semicolon or a broken escape is left out."""
    parts = [p for p in text.split("&") if p and ";" not in p and not _BROKEN.search(p)]
    return parse_qs("&".join(parts), keep_blank_values=True)


_BROKEN = re.compile(r"%(?![0-9a-fA-F]{2})")
_URL: list[Row] = [
    ("url(string) -> url", _url), ("isURL(string) -> bool", _is(_url)),
    ("url.getScheme() -> string", lambda u: u.parts.scheme),
    ("url.getHost() -> string", lambda u: u.parts.netloc.rpartition("@")[2]),
    ("url.getHostname() -> string", lambda u: u.parts.netloc.rpartition("@")[2].rpartition("]")[0].lstrip("[")
     if "[" in u.parts.netloc else u.parts.netloc.rpartition("@")[2].partition(":")[0]),
    ("url.getPort() -> string", lambda u: str(u.parts.port) if u.parts.port is not None else ""),
    ("url.getEscapedPath() -> string", lambda u: quote(u.parts.path, safe="/%:@!$&'()*+,;=~-._")),
    ("url.getQuery() -> map(string, list(string))", lambda u: _query(u.parts.query)),
]


# -- addresses

class Ip:
    __slots__ = ("ip",)
    kind = read("ip")

    def __init__(self, ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        self.ip = ip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ip) and self.ip == other.ip

    def __hash__(self) -> int:
        return hash(self.ip)

    def __str__(self) -> str:
        return str(self.ip)


class Cidr:
    __slots__ = ("ip", "length")
    kind = read("cidr")

    def __init__(self, ip: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int) -> None:
        self.ip, self.length = ip, length

    @property
    def network(self) -> Any:
        return ipaddress.ip_network(f"{self.ip}/{self.length}", strict=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cidr) and (self.ip, self.length) == (other.ip, other.length)

    def __hash__(self) -> int:
        return hash((self.ip, self.length))

    def __str__(self) -> str:
        return f"{self.ip}/{self.length}"


def _ip(text: str) -> Ip:
    try:
        if "%" in text and not fault(text):
            raise CelError(f'IP address {go_quote(text)} with zone value is not allowed')
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise CelError(f"IP Address {go_quote(text)} parse error during conversion from string: {fault(text)}") from None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        raise CelError(f"IPv4-mapped IPv6 address {go_quote(text)} is not allowed")
    return Ip(ip)


def _cidr(text: str) -> Cidr:
    address, slash, bits = text.rpartition("/")
    why, ip = "", None
    if not slash:
        why = "no '/'"
    else:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            why = fault(address)
    if ip is not None:
        if "%" in address:
            why = "IPv6 zones cannot be present in a prefix"
        elif not (bits.isascii() and bits.isdigit()) or (len(bits) > 1 and bits[0] == "0"):
            why = f"bad bits after slash: {go_quote(bits)}"
        elif int(bits[:4]) > ip.max_prefixlen:
            why = "prefix length out of range"
    if ip is None or why:
        raise CelError("network address parse error during conversion from string: network address parse error during conversion from string: "
                       f"netip.ParsePrefix({go_quote(text)}): {why}")
    return Cidr(ip, int(bits))


def _contains_ip(c: Cidr, text: str) -> bool:
    try:
        return _contains(c, _ip(text))
    except CelError:
        raise CelError("no such overload") from None


def _contains(c: Cidr, other: Any) -> bool:
    if isinstance(other, Cidr):
        return other.ip.version == c.ip.version and other.length >= c.length and other.network.network_address in c.network
    return other.ip.version == c.ip.version and other.ip in c.network


def _global_unicast(i: Ip) -> bool:
    ip = i.ip
    return not (ip.is_multicast or ip.is_loopback or ip.is_link_local or ip.is_unspecified or str(ip) == "255.255.255.255")


def _canonical(text: str) -> bool:
    return str(_ip(text)) == text


_ADDRESSES: list[Row] = [
    ("ip(string) -> ip", _ip), ("isIP(string) -> bool", _is(_ip)), (":ip.isCanonical(string) -> bool", _canonical),
    ("string(ip) -> string", str), ("ip.family() -> int", lambda i: i.ip.version),
    ("ip.isUnspecified() -> bool", lambda i: i.ip.is_unspecified), ("ip.isLoopback() -> bool", lambda i: i.ip.is_loopback),
    ("ip.isLinkLocalMulticast() -> bool", lambda i: i.ip in ipaddress.ip_network("224.0.0.0/24") if i.ip.version == 4
     else i.ip.is_multicast and int(i.ip) >> 112 & 0xF == 2),
    ("ip.isLinkLocalUnicast() -> bool", lambda i: i.ip.is_link_local), ("ip.isGlobalUnicast() -> bool", _global_unicast),
    ("cidr(string) -> cidr", _cidr), ("isCIDR(string) -> bool", _is(_cidr)), ("string(cidr) -> string", str),
    ("cidr.containsIP(string) -> bool", _contains_ip), ("cidr.containsIP(ip) -> bool", _contains),
    ("cidr.containsCIDR(string) -> bool", lambda c, text: _contains(c, _cidr(text))), ("cidr.containsCIDR(cidr) -> bool", _contains),
    ("cidr.ip() -> ip", lambda c: Ip(c.ip)), ("cidr.prefixLength() -> int", lambda c: c.length),
    ("cidr.masked() -> cidr", lambda c: Cidr(c.network.network_address, c.length)),
]


# -- versions

_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?")


class Semver:
    __slots__ = ("core", "pre")
    kind = read("semver")

    def __init__(self, core: tuple[int, int, int], pre: tuple[str, ...]) -> None:
        self.core, self.pre = core, pre

    def key(self) -> tuple[Any, ...]:
        """Orders by semver.org: a release after its pre-releases, numbers before words."""
        return self.core, not self.pre, tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in self.pre)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Semver) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())


def _semver(text: str, normalize: bool = False) -> Semver:
    if normalize:
        text = text.removeprefix("v")
        core, sep, rest = text, "", ""
        m = re.match(r"[0-9.]*", text)
        if m:
            core, rest = m.group(), text[m.end():]
        parts = [p.lstrip("0") or "0" for p in core.split(".")] if core else []
        while 0 < len(parts) < 3:
            parts.append("0")
        text = ".".join(parts) + sep + rest
    m = _SEMVER.fullmatch(text)
    if m is None:
        raise CelError("No Major.Minor.Patch elements found" if text.count(".") < 2 else f"Invalid character(s) found in version number {go_quote(text)}")
    return Semver((int(m[1]), int(m[2]), int(m[3])), tuple((m[4] or "").split(".")) if m[4] else ())


_SEMVERS: list[Row] = [
    ("semver(string) -> semver", _semver), ("semver(string, bool) -> semver", _semver),
    ("isSemver(string) -> bool", _is(_semver)), ("isSemver(string, bool) -> bool", lambda s, n: _is(lambda t: _semver(t, n))(s)),
    ("semver.isGreaterThan(semver) -> bool", lambda a, b: a.key() > b.key()), ("semver.isLessThan(semver) -> bool", lambda a, b: a.key() < b.key()),
    ("semver.compareTo(semver) -> int", lambda a, b: _order(a.key(), b.key())),
    ("semver.major() -> int", lambda s: s.core[0]), ("semver.minor() -> int", lambda s: s.core[1]), ("semver.patch() -> int", lambda s: s.core[2]),
]


# -- regular expressions, formats

def _find(text: str, pattern: str) -> str:
    try:
        m = regex(pattern).search(text)
    except CelError as e:
        raise CelError(f"Illegal regex: {e}") from None
    return m.group() if m else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    try:
        found = [m.group() for m in regex(pattern).finditer(text)]
    except CelError as e:
        raise CelError(f"Illegal regex: {e}") from None
    return found if limit < 0 else found[:limit]


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    check: Callable[[str], list[str]]
    kind = read("format")


def _uuid(text: str) -> list[str]:
    return [] if re.fullmatch(r"(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", text) else \
        ["does not match the UUID format"]


def _byte(text: str) -> list[str]:
    return [] if re.fullmatch(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", text) else ["invalid base64"]


def _date(text: str) -> list[str]:
    import datetime as dt
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return ["invalid date"]
    return [] if len(text) == 10 else ["invalid date"]


def _datetime(text: str) -> list[str]:
    from kubern.model.cel.values import timestamp
    try:
        timestamp(text.replace(" ", "T", 1))
    except CelError:
        return ["invalid datetime"]
    return []


def _uri(text: str) -> list[str]:
    try:
        _url(text)
    except CelError as e:
        return [str(e).removeprefix("URL parse error during conversion from string: ")]
    return []


FORMATS = {f.name: f for f in (
    Format("dns1123Label", lambda s: names.is_dns1123_label(s)), Format("dns1123Subdomain", lambda s: names.is_dns1123_subdomain(s)),
    Format("dns1035Label", lambda s: names.is_dns1035_label(s)), Format("qualifiedName", lambda s: names.is_qualified_name(s)),
    Format("dns1123LabelPrefix", lambda s: names.is_dns1123_label(s.removesuffix("-"))),
    Format("dns1123SubdomainPrefix", lambda s: names.is_dns1123_subdomain(s.removesuffix("-"))),
    Format("dns1035LabelPrefix", lambda s: names.is_dns1035_label(s.removesuffix("-"))),
    Format("labelValue", lambda s: names.is_label_value(s)), Format("uri", _uri), Format("uuid", _uuid), Format("byte", _byte),
    Format("date", _date), Format("datetime", _datetime))}


def _validate(f: Format, text: str) -> Optional:
    found = f.check(text)
    return Optional(found) if found else NOTHING


_TEXTS: list[Row] = [
    ("string.find(string) -> string", _find), ("string.findAll(string) -> list(string)", _find_all),
    ("string.findAll(string, int) -> list(string)", _find_all),
    (":format.named(string) -> optional_type(format)", lambda n: Optional(FORMATS[n]) if n in FORMATS else NOTHING),
    *((f":format.{name}() -> format", lambda f=f: f) for name, f in FORMATS.items()),
    ("format.validate(string) -> optional_type(list(string))", _validate),
]


# -- authorizer

Ask = Callable[["Check"], tuple[bool, str, str]]        # -> allowed, reason, error


@dataclass(frozen=True, slots=True)
class Check:
    """What is being asked, piece by piece. `user`: another service account than the one who asks."""

    ask: Ask
    kind: str = read("authorizer")
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    verb: str = ""
    user: tuple[str, str] | None = None
    field_selector: str = ""
    label_selector: str = ""


@dataclass(frozen=True, slots=True)
class Decided:
    allowed: bool
    reason: str
    error: str
    kind = read("decision")


def _account(c: Check, namespace: str, name: str) -> Check:
    if names.is_dns1123_subdomain(name):
        raise CelError("Invalid service account name")
    if names.is_dns1123_label(namespace):
        raise CelError("Invalid service account namespace")
    return replace(c, user=(namespace, name))


def _path(c: Check, path: str) -> Check:
    if not path:
        raise CelError("path must not be empty")
    return replace(c, path=path, kind=read("pathcheck"))


def _resource(c: Check, resource: str) -> Check:
    if not resource:
        raise CelError("resource must not be empty")
    return replace(c, resource=resource, kind=read("resourcecheck"))


def _check(c: Check, verb: str) -> Decided:
    return Decided(*c.ask(replace(c, verb=verb)))


_AUTHORIZER: list[Row] = [
    ("authorizer.path(string) -> pathcheck", _path),
    ("authorizer.group(string) -> groupcheck", lambda c, g: replace(c, group=g, kind=read("groupcheck"))),
    ("authorizer.serviceAccount(string, string) -> authorizer", _account),
    ("groupcheck.resource(string) -> resourcecheck", _resource),
    ("resourcecheck.subresource(string) -> resourcecheck", lambda c, s: replace(c, subresource=s)),
    ("resourcecheck.namespace(string) -> resourcecheck", lambda c, n: replace(c, namespace=n)),
    ("resourcecheck.name(string) -> resourcecheck", lambda c, n: replace(c, name=n)),
    ("resourcecheck.fieldSelector(string) -> resourcecheck", lambda c, s: replace(c, field_selector=s)),
    ("resourcecheck.labelSelector(string) -> resourcecheck", lambda c, s: replace(c, label_selector=s)),
    ("pathcheck.check(string) -> decision", _check), ("resourcecheck.check(string) -> decision", _check),
    ("decision.allowed() -> bool", lambda d: d.allowed), ("decision.reason() -> string", lambda d: d.reason),
    ("decision.errored() -> bool", lambda d: bool(d.error)), ("decision.error() -> string", lambda d: d.error),
]

# only where patches are made
PATCHES: tuple[Row, ...] = (("jsonpatch.escapeKey(string) -> string", lambda s: s.replace("~", "~0").replace("/", "~1")),)

KUBERNETES: tuple[Row, ...] = (*_QUANTITY, *_URL, *_ADDRESSES, *_SEMVERS, *_TEXTS, *_AUTHORIZER)
