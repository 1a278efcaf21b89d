"""Quantity: "100m", "1.5Gi", "1e3" as exact numbers, and the canonical text upstream stores and prints.

In: the text of a quantity. Out: an exact amount (a whole number of 10^-n, without floats) and its format.
Upstream: apimachinery pkg/api/resource (ParseQuantity, CanonicalizeBytes), including when a text is kept as it was given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

FORMAT_WRONG = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
NUMERIC_WRONG = "unable to parse numeric part of quantity"
SUFFIX_WRONG = "unable to parse quantity's suffix"

DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
DECIMAL_SUFFIX = {v: k for k, v in DECIMAL.items()}
BINARY_SUFFIX = {v: k for k, v in BINARY.items()}
_PARTS = re.compile(r"([+-]?)0*([0-9]*)(?:(\.)([0-9]*))?([eEinumkKMGTP]*[-+]?[0-9]*)\Z", re.ASCII)
_INT64_MAX = (1 << 63) - 1
_NANO = 10**9


class QuantityError(ValueError):
    """The text is not a quantity; str() is upstream's message."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """amount is exact; format is "DecimalSI", "BinarySI" or "DecimalExponent"; text is what is stored."""

    amount: Fraction
    format: str
    text: str

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=4096)
def parse(text: str) -> Quantity:
    """Quantity of a text; raises QuantityError. Bounded to nano below; the text is kept where upstream keeps it."""
    if not text:
        raise QuantityError(FORMAT_WRONG)
    if text == "0":
        return Quantity(Fraction(0), "DecimalSI", "0")
    if len(text) > 512:
        raise QuantityError(FORMAT_WRONG)
    m = _PARTS.match(text)
    if m is None:
        raise QuantityError(FORMAT_WRONG)
    sign, num, _, denom, suffix = m.group(1), m.group(2) or "0", m.group(3), m.group(4) or "", m.group(5)
    format_, exponent = _suffix(suffix)
    amount, kept = _fast(num, denom, format_, exponent)
    if amount is None:
        if not (m.group(2) or denom or text.lstrip("+-").startswith("0")):
            raise QuantityError(NUMERIC_WRONG)
        amount = _exact(num, denom, format_, exponent)
        if format_ == "BinarySI":
            if amount > _INT64_MAX:
                amount = Fraction(_INT64_MAX)
            if 0 < amount < 1:
                format_ = "DecimalSI"
    if sign == "-":
        amount = -amount
    return Quantity(amount, format_, text if kept else render(amount, format_))


def _suffix(suffix: str) -> tuple[str, int]:
    if suffix in DECIMAL:
        return "DecimalSI", DECIMAL[suffix]
    if suffix in BINARY:
        return "BinarySI", BINARY[suffix]
    if len(suffix) > 1 and suffix[0] in "eE" and re.fullmatch(r"[+-]?[0-9]+", suffix[1:]):
        exponent = int(suffix[1:]) if len(suffix) < 21 else 1 << 63
        if -(1 << 63) <= exponent < 1 << 63:
            return "DecimalExponent", (exponent + (1 << 31)) % (1 << 32) - (1 << 31)
    raise QuantityError(SUFFIX_WRONG)


def _fast(num: str, denom: str, format_: str, exponent: int) -> tuple[Fraction | None, bool]:
    """Upstream's int64 path, and whether the text counts as canonical already; (None, False) where the path is not taken."""
    scale, mantissa = exponent, 1
    if format_ == "BinarySI":
        scale, mantissa = 0, 1 << exponent
        precision = 15 - len(num) - int(exponent * 3 / 10) - 1 if not denom else -1
    else:
        precision = 18 - len(num) - len(denom)
    scale -= len(denom)
    if precision < 0 or scale < -9:
        return None, False
    shifted = num + denom
    value = int(shifted)
    if value * mantissa > _INT64_MAX:
        return None, False
    if format_ == "BinarySI":
        kept = exponent % 10 == 0 and value & 7 != 0
    else:
        kept = scale % 3 == 0 and not shifted.endswith("000") and shifted[0] != "0"
    return _power(value * mantissa, scale), kept


def _power(value: int, scale: int) -> Fraction:
    if scale > 4096:                       # bounded: nothing real is larger, and 10**scale must not eat the machine
        scale = 4096
    return Fraction(value * 10**scale) if scale >= 0 else Fraction(value, 10**-scale)


def _exact(num: str, denom: str, format_: str, exponent: int) -> Fraction:
    """Any length of digits, rounded up to nano."""
    if format_ == "BinarySI":
        amount = Fraction(int(num + denom) << exponent, 10 ** len(denom))
    else:
        scale = exponent - len(denom)
        if scale < -8192:
            return Fraction(1, _NANO) if int(num + denom) else Fraction(0)
        amount = _power(int(num + denom), scale)
    return Fraction(_ceil(amount * _NANO), _NANO)


def _ceil(f: Fraction) -> int:
    return -((-f.numerator) // f.denominator)


def _away(f: Fraction) -> int:
    """Rounded away from zero, as upstream rounds."""
    return _ceil(f) if f >= 0 else -_ceil(-f)


def render(amount: Fraction, format_: str = "DecimalSI") -> str:
    """The canonical text of an amount in a format."""
    if amount == 0:
        return "0"
    if format_ == "BinarySI" and (-1024 < amount < 1024 or amount.denominator != 1):
        format_ = "DecimalSI"
    if format_ == "BinarySI":
        value, exponent = amount.numerator, 0
        while value % 1024 == 0:
            value //= 1024
            exponent += 10
        return f"{value}{BINARY_SUFFIX.get(exponent, '')}"
    exponent = 0
    value = amount.numerator
    if amount.denominator != 1:
        exponent = -9
        value = _away(amount * _NANO)
    while value % 10 == 0:
        value //= 10
        exponent += 1
    while exponent % 3:
        value *= 10
        exponent -= 1
    if format_ == "DecimalExponent":
        return f"{value}e{exponent}" if exponent else str(value)
    return f"{value}{DECIMAL_SUFFIX.get(exponent, '')}"


def canonical(text: str) -> str:
    """What upstream stores for this text."""
    return parse(text).text


@lru_cache(maxsize=4096)
def value(text: str) -> int:
    """The amount as a whole number, rounded away from zero."""
    return _away(parse(str(text)).amount)


@lru_cache(maxsize=4096)
def milli(text: str) -> int:
    """The amount in thousandths, rounded away from zero."""
    return _away(parse(str(text)).amount * 1000)


def add(a: str, b: str) -> str:
    """Sum of two quantities in the format of the first that is not zero."""
    x, y = parse(a), parse(b)
    return render(x.amount + y.amount, x.format if x.amount else y.format)


def sub(a: str, b: str) -> str:
    """Difference of two quantities in the format of the first that is not zero."""
    x, y = parse(a), parse(b)
    return render(x.amount - y.amount, x.format if x.amount else y.format)


def compare(a: str, b: str) -> int:
    """-1, 0 or 1."""
    x, y = parse(str(a)).amount, parse(str(b)).amount
    return (x > y) - (x < y)


def round_up_milli(text: str) -> str:
    """The text rounded up to thousandths, as defaulting does with resource lists; unchanged where it is exact."""
    q = parse(text)
    if (q.amount * 1000).denominator == 1:
        return q.text
    return render(Fraction(_away(q.amount * 1000), 1000), q.format)


def of_value(amount: int, format_: str = "DecimalSI") -> str:
    return render(Fraction(amount), format_)


def of_milli(amount: int, format_: str = "DecimalSI") -> str:
    return render(Fraction(amount, 1000), format_)
