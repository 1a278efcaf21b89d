"""Quantities are numbers: every text means one fraction, and reading, writing, comparing, adding and rounding agree with it."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

from hypothesis import assume, given
from hypothesis import strategies as st

from kubern.model import quantity

DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
NANO = 10**9

signs = st.sampled_from(["", "+", "-"])
digits = st.text("0123456789", min_size=1, max_size=8)
suffixes = st.one_of(st.sampled_from([*DECIMAL, "Ki", "Mi", "Gi"]), st.builds(lambda e, n: f"{e}{n}", st.sampled_from("eE"), st.integers(-12, 12)))


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A quantity and what it means: exactly, but for what lies below a nano, which is rounded away from zero."""
    sign, whole, suffix = draw(signs), draw(digits), draw(suffixes)
    fraction = draw(st.one_of(st.just(""), st.just("."), digits.map(lambda d: "." + d)))
    number = Fraction(f"{whole}{fraction if len(fraction) > 1 else ''}")
    if suffix in DECIMAL:
        number *= Fraction(10) ** DECIMAL[suffix]
    elif suffix in BINARY:
        number *= 1024 ** BINARY[suffix]
    else:
        number *= Fraction(10) ** int(suffix[1:])
    number = Fraction(ceil(number * NANO), NANO)
    return f"{sign}{whole}{fraction}{suffix}", -number if sign == "-" else number


def away(f: Fraction) -> int:
    return ceil(f) if f >= 0 else floor(f)


@given(texts())
def test_a_text_means_a_number(t: tuple[str, Fraction]) -> None:
    assert quantity.parse(t[0]).amount == t[1]


@given(texts())
def test_the_canonical_text_means_the_same_and_stays(t: tuple[str, Fraction]) -> None:
    stored = quantity.canonical(t[0])
    assert quantity.parse(stored).amount == t[1]
    assert quantity.canonical(stored) == stored


@given(texts())
def test_rewritten_texts_are_short(t: tuple[str, Fraction]) -> None:
    """What is not kept as it was given has no point, no sign but minus, and the largest suffix that leaves a whole number."""
    text, number = t
    stored = quantity.canonical(text)
    if stored == text or not number:
        return
    assert "." not in stored and "+" not in stored
    mantissa = abs(int(stored.rstrip("numkKMGTPEi").partition("e")[0]))
    if stored.endswith("i"):
        assert mantissa % 1024 or stored.endswith("Ei")
    else:
        assert mantissa % 1000 or stored.endswith("E")


@given(texts(), texts())
def test_order(a: tuple[str, Fraction], b: tuple[str, Fraction]) -> None:
    assert quantity.compare(a[0], b[0]) == (a[1] > b[1]) - (a[1] < b[1]) == -quantity.compare(b[0], a[0])


@given(texts(), texts())
def test_sums(a: tuple[str, Fraction], b: tuple[str, Fraction]) -> None:
    assume(abs(a[1]) + abs(b[1]) < 1 << 62)               # above, binary amounts end at the largest integer, as upstream's
    assert quantity.parse(quantity.add(a[0], b[0])).amount == a[1] + b[1]
    assert quantity.parse(quantity.sub(a[0], b[0])).amount == a[1] - b[1]
    assert quantity.compare(quantity.sub(quantity.add(a[0], b[0]), b[0]), a[0]) == 0


@given(texts())
def test_rounding_is_away_from_zero(t: tuple[str, Fraction]) -> None:
    text, number = t
    assert quantity.value(text) == away(number)
    assert quantity.milli(text) == away(number * 1000)
    assert quantity.parse(quantity.round_up_milli(text)).amount == Fraction(away(number * 1000), 1000)


@given(st.integers(-(1 << 62), 1 << 62), st.sampled_from(["DecimalSI", "BinarySI", "DecimalExponent"]))
def test_numbers_are_written_so_that_they_are_read(n: int, format_: str) -> None:
    assert quantity.value(quantity.of_value(n, format_)) == n
    assert quantity.milli(quantity.of_milli(n, format_)) == n
