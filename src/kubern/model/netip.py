"""netip: why a text is no IP address, in the words of Go's net/netip.

`fault(text)` is "" for an address. An IPv4 address is four numbers; an IPv6 address is up to eight groups of hex digits, one run of zeros being "::",
whose last two groups may be written as an IPv4 address. Upstream: Go net/netip ParseAddr; RFC 4291 section 2.2.
"""

from __future__ import annotations

import re
from itertools import takewhile

from kubern.model.invalid import quote

_HEX = re.compile(r"[0-9a-fA-F]*")


def fault(text: str) -> str:
    """What is wrong with an address; "" if nothing."""
    first = next((c for c in text if c in ".:%"), "")
    if first == ".":
        why, at = _ipv4(text)
    elif first == ":":
        why, at = _ipv6(text)
    else:
        why, at = ("missing IPv6 address" if first else "unable to parse IP"), ""
    if not why:
        return ""
    return f"ParseAddr({quote(text)}): {why}" + (f" (at {quote(at)})" if at else "")


_Fault = tuple[str, str]               # what, and the text from where on
_FINE: _Fault = ("", "")


def _ipv4(text: str) -> _Fault:
    """Faults are told in the order a reader from left to right meets them."""
    at = 0
    fields = text.split(".")
    for i, field in enumerate(fields):
        digits = "".join(takewhile(lambda c: c in "0123456789", field))
        for n in range(1, len(digits) + 1):
            if n == 2 and digits[0] == "0":
                return "IPv4 field has octet with leading zero", ""
            if int(digits[:n]) > 255:
                return "IPv4 field has value >255", ""
        if len(digits) < len(field):
            return "unexpected character", text[at + len(digits):]
        dot = at + len(field)                # the dot behind this field
        if dot < len(text):
            if not field or dot == len(text) - 1:
                return "IPv4 field must have at least one digit", text[dot:]
            if i == 3:
                return "IPv4 address too long", ""
        at = dot + 1
    return _FINE if len(fields) == 4 else ("IPv4 address too short", "")


def _ipv6(text: str) -> _Fault:
    rest, percent, zone = text.partition("%")
    if percent and not zone:
        return "zone must be a non-empty string", ""
    zeros, count = False, 0                   # "::" was seen; groups of two bytes so far
    if rest.startswith("::"):
        zeros, rest = True, rest[2:]
    while rest and count < 8:
        group = _HEX.match(rest)
        digits = group.group() if group else ""
        if len(digits) > 4:
            return "each group must have 4 or fewer digits", rest
        if not digits:
            return "each colon-separated field must have at least one digit", rest
        behind = rest[len(digits):]
        if behind.startswith("."):
            if not zeros and count != 6:
                return "embedded IPv4 address must replace the final 2 fields of the address", rest
            if count > 6:
                return "too many hex fields to fit an embedded IPv4 at the end of the address", rest
            why = _ipv4(rest)
            if why != _FINE:
                return why
            count, rest = count + 2, ""
            break
        count += 1
        rest = behind
        if not rest:
            break
        if rest[0] != ":":
            return "unexpected character, want colon", rest
        if rest == ":":
            return "colon must be followed by more characters", rest
        rest = rest[1:]
        if rest[0] == ":":
            if zeros:
                return "multiple :: in address", rest
            zeros, rest = True, rest[1:]
    if rest:
        return "trailing garbage after address", rest
    if count < 8:
        return _FINE if zeros else ("address string too short", "")
    return ("the :: must expand to at least one field of zeros", "") if zeros else _FINE
