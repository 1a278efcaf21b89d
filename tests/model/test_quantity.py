"""Quantities: exact amounts, canonical texts, kept texts, refusals."""

import pytest

from kubern.model import quantity


@pytest.mark.parametrize(("text", "stored"), [
    ("0", "0"), ("1", "1"), ("+1", "+1"), ("1e3", "1e3"), ("1.5Gi", "1536Mi"), ("1000k", "1M"), ("0.5", "500m"), ("100m", "100m"),
    ("1000m", "1"), ("1024Mi", "1Gi"), ("4096Ki", "4Mi"), ("1.500", "1.500"), ("0.0005", "500u"), ("12e6", "12e6"), ("010", "010"),
    ("1Ki", "1Ki"), ("8Ki", "8Ki"), ("0.5Gi", "512Mi"), ("1.1Ki", "1126400m"), ("-5", "-5"), ("-0", "0"), ("00", "0"), ("1E", "1E"),
    ("0.1n", "1n"), ("123456789012345678901", "123456789012345678901"), ("1000", "1k"), ("1.", "1."), (".5", "500m"), ("100Mi", "100Mi"),
    ("512Mi", "512Mi"), ("0Mi", "0"), ("1e-3", "1e-3"),
])
def test_canonical(text, stored):
    assert quantity.canonical(text) == stored


@pytest.mark.parametrize(("text", "message"), [
    ("", quantity.FORMAT_WRONG), ("abc", quantity.SUFFIX_WRONG), ("1.5.5", quantity.FORMAT_WRONG), ("1 Gi", quantity.FORMAT_WRONG),
    ("1Xi", quantity.FORMAT_WRONG), ("1mm", quantity.SUFFIX_WRONG), ("1i", quantity.SUFFIX_WRONG), ("1e", quantity.SUFFIX_WRONG),
])
def test_refused(text, message):
    with pytest.raises(quantity.QuantityError) as e:
        quantity.parse(text)
    assert str(e.value) in (message, quantity.FORMAT_WRONG)


def test_numbers():
    assert quantity.value("1.5Gi") == 3 << 29
    assert quantity.value("100m") == 1
    assert quantity.value("-100m") == -1
    assert quantity.milli("0.0005") == 1
    assert quantity.milli("2") == 2000
    assert quantity.add("1Gi", "512Mi") == "1536Mi"
    assert quantity.sub("1", "100m") == "900m"
    assert quantity.compare("1k", "1000") == 0
    assert quantity.round_up_milli("0.0005") == "1m"
    assert quantity.render(quantity.parse("1e99999").amount) != ""
