"""IP addresses and CIDRs as API fields take them: strict for new values, lenient for old ones, with upstream's words.

A "legacy" field predates strict parsing (KEP-4858): it takes any spelling of an address but leading zeros and IPv4-mapped IPv6,
and a value that the stored object has already is never refused. Upstream: apimachinery util/validation/ip.go, k8s.io/utils/net.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from kubern.model.invalid import FieldError, invalid, quote

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NOT_AN_IP = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
NOT_A_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
_QUAD = re.compile(r"(.*?)(\d{1,20})\.(\d{1,20})\.(\d{1,20})\.(\d{1,20})", re.ASCII)


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Address | None:
    """The address, with leading zeros read as decimal and IPv4-mapped IPv6 as IPv4; None where it is none."""
    address = _parse(text)
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=4096)
def _parse(text: str) -> Address | None:
    if "%" in text or not text.isascii():
        return None
    try:
        return ip_address(text)
    except ValueError:
        pass
    m = _QUAD.fullmatch(text)
    if m is None:
        return None
    try:
        return ip_address(m[1] + ".".join(str(int(m[i])) for i in (2, 3, 4, 5)))
    except ValueError:
        return None


def parse_cidr(text: str) -> tuple[Address, Network] | None:
    """(the address as written, its network), read leniently; None where it is no CIDR."""
    head, slash, tail = text.partition("/")
    address = _parse(head)
    if address is None or not slash or not re.fullmatch("[0-9]{1,9}", tail) or int(tail) > address.max_prefixlen:
        return None
    length = int(tail)
    network: Network = (IPv6Network if isinstance(address, IPv6Address) else IPv4Network)((int(address), length), strict=False)
    return address, network


@lru_cache(maxsize=64)
def networks(text: str) -> tuple[Network, ...]:
    """The ranges of a cluster's setting: one, or one of each family, the first of which comes first everywhere. Raises ValueError."""
    found = tuple(ip_network(part.strip()) for part in text.split(","))
    if len({n.version for n in found}) != len(found):
        raise ValueError(f"{text} has two ranges of one family")
    return found


def _mapped(text: str) -> bool:
    address = _parse(text)
    return isinstance(address, IPv6Address) and address.ipv4_mapped is not None


@lru_cache(maxsize=4096)
def _has_leading_zeros(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return True
    return False


def is_ipv6(text: str) -> bool:
    return isinstance(parse_ip(text), IPv6Address)


def is_dual_stack(texts: Iterable[str]) -> bool:
    """At least one address (or CIDR) of either family."""
    return {isinstance(parse_ip(t.split("/")[0]), IPv6Address) for t in texts} == {True, False}


def unreadable(texts: Iterable[str]) -> str:
    """Why a list cannot even be looked at for both families: the first text in it that is no address; "" where all are."""
    return next((f"invalid IP[{i}]: {t}" for i, t in enumerate(texts) if parse_ip(t) is None), "")


def validate_legacy_ip(path: str, value: str, old: Sequence[str] = ()) -> list[FieldError]:
    """A field that has always taken addresses; `old` are the values the stored object holds in it."""
    if value in old:
        return []
    if parse_ip(value) is None:
        return [invalid(path, value, NOT_AN_IP)]
    out = [invalid(path, value, "must not have leading 0s")] if _has_leading_zeros(value) else []
    if not out and _mapped(value):
        out.append(invalid(path, value, "must not be an IPv4-mapped IPv6 address"))
    return out


def validate_ip(path: str, value: str) -> list[FieldError]:
    """A new field: the canonical spelling only."""
    if errors := validate_legacy_ip(path, value):
        return errors
    text = str(parse_ip(value))
    return [] if text == value else [invalid(path, value, f"must be in canonical form ({quote(text)})")]


def validate_legacy_cidr(path: str, value: str, old: Sequence[str] = ()) -> list[FieldError]:
    if value in old:
        return []
    parsed = parse_cidr(value)
    if parsed is None:
        return [invalid(path, value, NOT_A_CIDR)]
    address, network = parsed
    head, _, tail = value.partition("/")
    if _has_leading_zeros(head) or (len(tail) > 1 and tail[0] == "0"):
        return [invalid(path, value, "must not have leading 0s in IP or prefix length")]
    if _mapped(head):
        return [invalid(path, value, "must not have an IPv4-mapped IPv6 address")]
    if address != network.network_address:
        return [invalid(path, value, "must not have bits set beyond the prefix length")]
    return []


def validate_cidr(path: str, value: str) -> list[FieldError]:
    """A new field: the canonical spelling only."""
    if errors := validate_legacy_cidr(path, value):
        return errors
    parsed = parse_cidr(value)
    text = str(parsed[1]) if parsed else ""
    return [] if text == value else [invalid(path, value, f"must be in canonical form ({quote(text)})")]


def ip_warnings(path: str, value: str) -> list[str]:
    """What to tell the writer of a legacy field about an odd spelling."""
    address = parse_ip(value)
    if address is None:
        return []
    if _has_leading_zeros(value) or _mapped(value):
        return [f"{path}: non-standard IP address {quote(value)} is invalid: use {quote(str(address))}"]
    if isinstance(address, IPv6Address) and str(address) != value:
        return [f"{path}: IPv6 address {quote(value)} should be in RFC 5952 canonical format ({quote(str(address))})"]
    return []


def cidr_warnings(path: str, value: str) -> list[str]:
    parsed = parse_cidr(value)
    if parsed is None:
        return []
    address, network = parsed
    head, _, tail = value.partition("/")
    out = []
    if address != network.network_address:
        out.append(f"{path}: CIDR value {quote(value)} is ambiguous in this context (should be {quote(str(network))} or "
                   f"{quote(f'{address}/{address.max_prefixlen}')}?)")
    if _has_leading_zeros(head) or (len(tail) > 1 and tail[0] == "0") or _mapped(head):
        out.append(f"{path}: non-standard CIDR value {quote(value)} is invalid: use {quote(str(network))}")
    if not out and isinstance(address, IPv6Address) and str(network) != value:
        out.append(f"{path}: IPv6 CIDR value {quote(value)} should be in RFC 5952 canonical format ({quote(str(network))})")
    return out


def validate_endpoint_ip(path: str, value: str) -> list[FieldError]:
    """An address that traffic may be sent to: not unspecified, loopback, link-local."""
    address = parse_ip(value)
    if address is None:
        return [invalid(path, value, "must be a valid IP address")]
    out = []
    if address.is_unspecified:
        out.append(invalid(path, value, f"may not be unspecified ({value})"))
    if address.is_loopback:
        out.append(invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)"))
    if address.is_link_local:
        out.append(invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"))
    if address in (_MULTICAST_4 if address.version == 4 else _MULTICAST_6):
        out.append(invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"))
    return out


_MULTICAST_4 = IPv4Network("224.0.0.0/24")
_MULTICAST_6 = IPv6Network("ff02::/16")
