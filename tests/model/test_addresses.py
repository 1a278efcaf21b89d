"""addresses.py: spellings of addresses, and what is said of them."""

import pytest

from kubern.model import addresses


@pytest.mark.parametrize(("text", "want"), [
    ("10.9.8.7", ""), ("2001:db8::ffff", ""), ("FE80::1", ""), ("0:0:0:0:0:0:0:1", ""),
    ("010.9.8.7", "must not have leading 0s"), ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
    ("1.2.3", addresses.NOT_AN_IP), ("", addresses.NOT_AN_IP), ("fe80::1%eth0", addresses.NOT_AN_IP), ("1.2.3.256", addresses.NOT_AN_IP),
])
def test_legacy_ip(text, want):
    assert [e.detail for e in addresses.validate_legacy_ip("p", text)] == ([want] if want else [])
    assert addresses.validate_legacy_ip("p", text, old=[text]) == []


@pytest.mark.parametrize(("text", "want"), [
    ("10.0.0.0/8", ""), ("2001:db8::/64", ""), ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
    ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"), ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
    ("::ffff:1.2.3.0/120", "must not have an IPv4-mapped IPv6 address"), ("10.0.0.0", addresses.NOT_A_CIDR), ("10.0.0.0/33", addresses.NOT_A_CIDR),
])
def test_legacy_cidr(text, want):
    assert [e.detail for e in addresses.validate_legacy_cidr("p", text)] == ([want] if want else [])


def test_new_fields_take_the_canonical_form_only():
    assert [e.detail for e in addresses.validate_ip("p", "FE80::1")] == ['must be in canonical form ("fe80::1")']
    assert [e.detail for e in addresses.validate_cidr("p", "FE80::/64")] == ['must be in canonical form ("fe80::/64")']


@pytest.mark.parametrize(("text", "want"), [
    ("1.2.3.4", []), ("01.2.3.4", ['p: non-standard IP address "01.2.3.4" is invalid: use "1.2.3.4"']),
    ("0:0::1", ['p: IPv6 address "0:0::1" should be in RFC 5952 canonical format ("::1")']),
])
def test_ip_warnings(text, want):
    assert addresses.ip_warnings("p", text) == want


def test_cidr_warnings():
    assert addresses.cidr_warnings("p", "10.1.0.1/16") == [
        'p: CIDR value "10.1.0.1/16" is ambiguous in this context (should be "10.1.0.0/16" or "10.1.0.1/32"?)']


@pytest.mark.parametrize("text", ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::", "::1", "fe80::1", "ff02::1", "x"])
def test_endpoint_ip_refused(text):
    assert len(addresses.validate_endpoint_ip("p", text)) == 1


def test_dual_stack():
    assert addresses.is_dual_stack(["1.2.3.4", "::1"])
    assert not addresses.is_dual_stack(["1.2.3.4", "1.2.3.5"])
