"""names.py: what is accepted, and how many messages what is not gets."""

import pytest

from kubern.model import names

GOOD = {
    names.is_dns1123_label: ["a", "1", "a-b", "a" * 63],
    names.is_dns1123_subdomain: ["a", "a.b", "a-1.b-2", "a" * 253],
    names.is_dns1123_subdomain_with_underscore: ["_a.b", "a_b"],
    names.is_dns1123_subdomain_caseless: ["A.b", "a"],
    names.is_dns1035_label: ["a", "a1-b"],
    names.is_wildcard_dns1123_subdomain: ["*.a.b"],
    names.is_qualified_name: ["a", "A_b.c", "example.com/A", "a" * 63, "a" * 253 + "/b"],
    names.is_label_value: ["", "a", "A_b.c", "1" * 63],
    names.is_c_identifier: ["a", "_A1"],
    names.is_env_var_name: ["A", "a.b-c", "_x"],
    names.is_relaxed_env_var_name: ["1 2", "a+b", "x" * 300],
    names.is_config_map_key: ["a", "a.b", "_", "...a"[3:]],
    names.is_port_name: ["http", "a1", "1-a"],
    names.is_percent: ["0%", "100%"],
    names.is_http_header_name: ["X-A"],
    names.is_decimal_integer: ["0", "-1", "10"],
}
BAD = [
    (names.is_dns1123_label, "a.b", ["must not contain dots"]),
    (names.is_dns1123_label, "A" * 64, 2),
    (names.is_dns1123_label, "a\n", 1),
    (names.is_dns1123_subdomain, "a..b", 1),
    (names.is_dns1123_subdomain, "a" * 254, ["must be no more than 253 characters"]),
    (names.is_dns1035_label, "1a", 1),
    (names.is_wildcard_dns1123_subdomain, "*", 1),
    (names.is_qualified_name, "a/b/c", 1),
    (names.is_qualified_name, "/a", ["prefix part must be non-empty"]),
    (names.is_qualified_name, "a/", 2),
    (names.is_qualified_name, "a" * 64, ["name part must be no more than 63 bytes"]),
    (names.is_label_value, "-a", 1),
    (names.is_label_value, "a" * 64, ["must be no more than 63 bytes"]),
    (names.is_env_var_name, "1A", 1),
    (names.is_env_var_name, "..", ["must not be '..'"]),
    (names.is_relaxed_env_var_name, "a=b", 1),
    (names.is_relaxed_env_var_name, "", ["environment variable name must be non-empty"]),
    (names.is_config_map_key, "..a", ["must not start with '..'"]),
    (names.is_config_map_key, "a/b", 1),
    (names.is_port_name, "-1--", 4 - 1),
    (names.is_port_name, "x" * 16, ["must be no more than 15 characters"]),
    (names.is_percent, "1", 1),
    (names.is_decimal_integer, "01", 1),
    (names.is_path_segment_name, "a/b%", ["may not contain '/'", "may not contain '%'"]),
    (names.is_path_segment_name, "..", ["may not be '..'"]),
]


@pytest.mark.parametrize("check", GOOD, ids=lambda c: c.__name__)
def test_good(check):
    assert {v: check(v) for v in GOOD[check] if check(v)} == {}


@pytest.mark.parametrize(("check", "value", "want"), BAD)
def test_bad(check, value, want):
    got = check(value)
    assert got == want if isinstance(want, list) else len(got) == want


def test_words_of_the_label_message():
    assert names.is_dns1123_label("A") == [
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric "
        "character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]


def test_a_generated_name_may_end_in_a_dash():
    assert names.name_is_dns_subdomain("web-", prefix=True) == []
    assert names.name_is_dns_subdomain("web-") != []


@pytest.mark.parametrize(("check", "value", "want"), [
    (names.is_fully_qualified_name, "a.b.c", 0), (names.is_fully_qualified_name, "a.b", 1), (names.is_fully_qualified_name, "", 1),
    (names.is_fully_qualified_domain_name, "a.b.", 0), (names.is_fully_qualified_domain_name, "a", 1),
    (names.is_domain_prefixed_path, "a.b/c/d", 0), (names.is_domain_prefixed_path, "a.b", 1), (names.is_domain_prefixed_path, "A/ ", 2),
    (names.is_domain_prefixed_key, "a.b/c", 0), (names.is_domain_prefixed_key, "c", 1),
])
def test_with_path(check, value, want):
    assert len(check("spec.x", value)) == want
