"""Names and other short strings: what Kubernetes accepts as a label, a subdomain, a port name, an environment variable …

Every `is_*` takes the string and gives a list of messages, empty where it is fine; the words are those that apimachinery's
util/validation and api/validate/content use. `name_is_*` are the checks of metadata.name: `(name, prefix) -> messages`, where prefix
says that a generated suffix will follow (Kind.name_check). Not here: IP addresses and CIDRs (model/addresses.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kubern.model.invalid import FieldError, invalid, required

LABEL_MAX = 63
SUBDOMAIN_MAX = 253

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = _LABEL + "(\\." + _LABEL + ")*"
_LABEL_UNDERSCORE = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_SUBDOMAIN_UNDERSCORE = _LABEL_UNDERSCORE + "(\\." + _LABEL_UNDERSCORE + ")*"
_SUBDOMAIN_CASELESS = "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\\.[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = "(" + _QUALIFIED + ")?"
_C_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"
_ENV_NAME = "[-._a-zA-Z][-._a-zA-Z0-9]*"
_CONFIG_KEY = "[-._a-zA-Z0-9]+"
_PERCENT = "[0-9]+%"
_HTTP_HEADER = "[-A-Za-z0-9]+"
_HTTP_PATH = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+"
_WILDCARD = "\\*\\." + _SUBDOMAIN


def _matcher(pattern: str) -> Callable[[str], object]:
    return re.compile(pattern).fullmatch


_match_label = _matcher(_LABEL)
_match_subdomain = _matcher(_SUBDOMAIN)
_match_subdomain_underscore = _matcher(_SUBDOMAIN_UNDERSCORE)
_match_subdomain_caseless = _matcher(_SUBDOMAIN_CASELESS)
_match_1035 = _matcher(_LABEL_1035)
_match_qualified = _matcher(_QUALIFIED)
_match_label_value = _matcher(_LABEL_VALUE)
_match_c_identifier = _matcher(_C_IDENTIFIER)
_match_env_name = _matcher(_ENV_NAME)
_match_config_key = _matcher(_CONFIG_KEY)
_match_percent = _matcher(_PERCENT)
_match_http_header = _matcher(_HTTP_HEADER)
_match_http_path = _matcher(_HTTP_PATH)
_match_wildcard = _matcher(_WILDCARD)
_match_port_chars = _matcher("[-a-z0-9]+")
_letter = re.compile("[a-z]").search
_match_decimal = _matcher("0|-?[1-9][0-9]*")


def regex_error(message: str, pattern: str, *examples: str) -> str:
    """A message followed by examples and the pattern."""
    if not examples:
        return f"{message} (regex used for validation is '{pattern}')"
    quoted = [f"'{e}', " for e in examples]
    return f"{message} (e.g. {' or '.join(quoted)}regex used for validation is '{pattern}')"


def size(value: str) -> int:
    """Length in bytes, which is what upstream's limits count."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


def between(low: int, high: int) -> str:
    return f"must be between {low} and {high}, inclusive"


NEGATIVE = "must be greater than or equal to 0"

_LABEL_1123_TEXT = regex_error(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric "
    "character", _LABEL, "my-name", "123-abc")
_SUBDOMAIN_TEXT = regex_error(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an "
    "alphanumeric character", _SUBDOMAIN, "example.com")
_SUBDOMAIN_CASELESS_TEXT = regex_error(
    "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
    _SUBDOMAIN, "Example.com")
_SUBDOMAIN_UNDERSCORE_TEXT = regex_error(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an "
    "alphanumeric character", _SUBDOMAIN_UNDERSCORE, "example.com")
_LABEL_1035_TEXT = regex_error(
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an "
    "alphanumeric character", _LABEL_1035, "my-name", "abc-123")
_QUALIFIED_TEXT = regex_error(
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    _QUALIFIED, "MyName", "my.name", "123-abc")
_LABEL_VALUE_TEXT = regex_error(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character", _LABEL_VALUE, "MyValue", "my_value", "12345")
_WILDCARD_TEXT = regex_error(
    "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric "
    "characters, '-' or '.' and end with an alphanumeric character", _WILDCARD, "*.example.com")


def is_dns1123_label(value: str) -> list[str]:
    """Lower-case label of at most 63 characters, e.g. a namespace or container name."""
    if len(value) <= LABEL_MAX and _match_label(value):
        return []
    out = [f"must be no more than {LABEL_MAX} characters"] if size(value) > LABEL_MAX else []
    if not _match_label(value):
        out.append("must not contain dots" if _match_subdomain(value) else _LABEL_1123_TEXT)
    return out


def is_dns1123_subdomain(value: str) -> list[str]:
    """Labels joined by dots, at most 253 characters: the ordinary object name."""
    if len(value) <= SUBDOMAIN_MAX and _match_subdomain(value):
        return []
    out = [f"must be no more than {SUBDOMAIN_MAX} characters"] if size(value) > SUBDOMAIN_MAX else []
    if not _match_subdomain(value):
        out.append(_SUBDOMAIN_TEXT)
    return out


def is_dns1123_subdomain_caseless(value: str) -> list[str]:
    """A subdomain in which capitals are allowed too (driver names)."""
    out = [f"must be no more than {SUBDOMAIN_MAX} bytes"] if size(value) > SUBDOMAIN_MAX else []
    if not _match_subdomain_caseless(value):
        out.append(_SUBDOMAIN_CASELESS_TEXT)
    return out


def is_dns1123_subdomain_with_underscore(value: str) -> list[str]:
    """A subdomain whose labels may hold underscores (DNS search paths)."""
    out = [f"must be no more than {SUBDOMAIN_MAX} characters"] if size(value) > SUBDOMAIN_MAX else []
    if not _match_subdomain_underscore(value):
        out.append(_SUBDOMAIN_UNDERSCORE_TEXT)
    return out


def is_dns1035_label(value: str) -> list[str]:
    """A label that starts with a letter, e.g. a hostname that must also be an identifier."""
    out = [f"must be no more than {LABEL_MAX} characters"] if size(value) > LABEL_MAX else []
    if not _match_1035(value):
        out.append(_LABEL_1035_TEXT)
    return out


def is_wildcard_dns1123_subdomain(value: str) -> list[str]:
    """"*." and a subdomain (Ingress hosts)."""
    out = [f"must be no more than {SUBDOMAIN_MAX} characters"] if size(value) > SUBDOMAIN_MAX else []
    if not _match_wildcard(value):
        out.append(_WILDCARD_TEXT)
    return out


def is_qualified_name(value: str) -> list[str]:
    """A label or annotation key: [subdomain/]name."""
    parts = value.split("/")
    out: list[str] = []
    if len(parts) > 2:
        return [f"a valid label key {_QUALIFIED_TEXT} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"]
    if len(parts) == 2:
        prefix = parts[0]
        if not prefix:
            out.append("prefix part must be non-empty")
        else:
            if size(prefix) > SUBDOMAIN_MAX:
                out.append(f"prefix part must be no more than {SUBDOMAIN_MAX} bytes")
            if not _match_subdomain(prefix):
                out.append("prefix part " + _SUBDOMAIN_TEXT)
    name = parts[-1]
    if not name:
        out.append("name part must be non-empty")
    elif size(name) > LABEL_MAX:
        out.append(f"name part must be no more than {LABEL_MAX} bytes")
    if not _match_qualified(name):
        out.append("name part " + _QUALIFIED_TEXT)
    return out


def is_label_value(value: str) -> list[str]:
    """A label's value: empty or at most 63 bytes of letters, digits, "-", "_", "."."""
    out = [f"must be no more than {LABEL_MAX} bytes"] if size(value) > LABEL_MAX else []
    if not _match_label_value(value):
        out.append(_LABEL_VALUE_TEXT)
    return out


def is_c_identifier(value: str) -> list[str]:
    if _match_c_identifier(value):
        return []
    return [regex_error("a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters "
                        "or '_'", _C_IDENTIFIER, "my_name", "MY_NAME", "MyName")]


def is_env_var_name(value: str) -> list[str]:
    """The strict form of an environment variable's name (prefixes of envFrom, container resize …); see is_relaxed_env_var_name."""
    out = []
    if not _match_env_name(value):
        out.append(regex_error("a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and "
                               "must not start with a digit", _ENV_NAME, "my.env-name", "MY_ENV.NAME", "MyEnvName1"))
    return out + _dots(value)


def is_relaxed_env_var_name(value: str) -> list[str]:
    """Printable ASCII without "=" (KEP-4369)."""
    out = [] if value else ["environment variable name must be non-empty"]
    if any(not " " <= c <= "~" or c == "=" for c in value):
        out.append("a valid environment variable name must consist only of printable ASCII characters other than '='")
    return out


def is_config_map_key(value: str) -> list[str]:
    """A key of ConfigMap.data or Secret.data."""
    if len(value) <= SUBDOMAIN_MAX and _match_config_key(value) and value[0] != ".":
        return []
    out = [f"must be no more than {SUBDOMAIN_MAX} characters"] if size(value) > SUBDOMAIN_MAX else []
    if not _match_config_key(value):
        out.append(regex_error("a valid config key must consist of alphanumeric characters, '-', '_' or '.'", _CONFIG_KEY,
                               "key.name", "KEY_NAME", "key-name"))
    return out + _dots(value)


def _dots(value: str) -> list[str]:
    if value == ".":
        return ["must not be '.'"]
    if value == "..":
        return ["must not be '..'"]
    return ["must not start with '..'"] if value.startswith("..") else []


def is_port_name(value: str) -> list[str]:
    """An IANA service name (RFC 6335), the name of a port."""
    out = ["must be no more than 15 characters"] if size(value) > 15 else []
    if not _match_port_chars(value):
        out.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not _letter(value):
        out.append("must contain at least one letter (a-z)")
    if "--" in value:
        out.append("must not contain consecutive hyphens")
    if value and (value[0] == "-" or value[-1] == "-"):
        out.append("must not begin or end with a hyphen")
    return out


def is_port_number(value: int) -> list[str]:
    return [] if 1 <= value <= 65535 else [between(1, 65535)]


def is_user_id(value: int) -> list[str]:
    """A uid or gid."""
    return [] if 0 <= value <= 2147483647 else [between(0, 2147483647)]


def is_percent(value: str) -> list[str]:
    if _match_percent(value):
        return []
    return [regex_error("a valid percent string must be a numeric string followed by an ending '%'", _PERCENT, "1%", "93%")]


def is_http_header_name(value: str) -> list[str]:
    if _match_http_header(value):
        return []
    return [regex_error("a valid HTTP header must consist of alphanumeric characters or '-'", _HTTP_HEADER, "X-Header-Name")]


def is_decimal_integer(value: str) -> list[str]:
    if not value:
        return ["must be non-empty"]
    return [] if _match_decimal(value) else ["must be a valid decimal integer in canonical form"]


def is_path_segment_name(value: str) -> list[str]:
    """A name that may be a segment of a URL path: RBAC names, and every name at least."""
    if value in (".", ".."):
        return [f"may not be '{value}'"]
    return is_path_segment_prefix(value)


def is_path_segment_prefix(value: str) -> list[str]:
    return [f"may not contain '{c}'" for c in "/%" if c in value]


# With a field path -------------------------------------------------------------------------------------------------------------

def is_fully_qualified_name(path: str, name: str) -> list[FieldError]:
    """A domain of at least three segments (API service, signer names)."""
    if not name:
        return [required(path)]
    if errors := is_dns1123_subdomain(name):
        return [invalid(path, name, ",".join(errors))]
    if name.count(".") < 2:
        return [invalid(path, name, "should be a domain with at least three segments separated by dots")]
    return []


def is_fully_qualified_domain_name(path: str, name: str) -> list[FieldError]:
    """A domain of at least two labels; one trailing dot is allowed."""
    if not name:
        return [required(path)]
    name = name[:-1] if name.endswith(".") else name
    if errors := is_dns1123_subdomain(name):
        return [invalid(path, name, ",".join(errors))]
    labels = name.split(".")
    if len(labels) < 2:
        return [invalid(path, name, "should be a domain with at least two segments separated by dots")]
    for label in labels:
        if errors := is_dns1123_label(label):
            return [invalid(path, label, ",".join(errors))]
    return []


def is_domain_prefixed_path(path: str, value: str) -> list[FieldError]:
    """domain/path: finalizers of namespaces, job's managedBy …"""
    if not value:
        return [required(path)]
    host, _, rest = value.partition("/")
    if not host or not rest:
        return [invalid(path, value, 'must be a domain-prefixed path (such as "acme.io/foo")')]
    out = [invalid(path, host, e) for e in is_dns1123_subdomain(host)]
    if not _match_http_path(rest):
        out.append(invalid(path, rest, regex_error("Invalid path", _HTTP_PATH)))
    return out


def is_domain_prefixed_key(path: str, value: str) -> list[FieldError]:
    """domain/name, a qualified name that must have its prefix."""
    if not value:
        return [required(path)]
    if errors := is_qualified_name(value):
        return [invalid(path, value, e) for e in errors]
    if value.count("/") != 1:
        return [invalid(path, value, 'must be a domain-prefixed key (such as "acme.io/foo")')]
    return []


# Checks of metadata.name -------------------------------------------------------------------------------------------------------

def _masked(name: str, prefix: bool) -> str:
    """A generateName may end in "-"; the check sees a harmless letter in its place (upstream drops the character before it as well)."""
    return name[:-2] + "a" if prefix and len(name) > 1 and name.endswith("-") else name


def name_is_dns_subdomain(name: str, prefix: bool = False) -> list[str]:
    return is_dns1123_subdomain(_masked(name, prefix))


def name_is_dns_label(name: str, prefix: bool = False) -> list[str]:
    return is_dns1123_label(_masked(name, prefix))


def name_is_declared_subdomain(name: str, prefix: bool = False) -> list[str]:
    """Of kinds whose types declare the rule: the prefix is free, and length is counted in bytes."""
    return is_path_segment_prefix(name) if prefix else [e.replace("characters", "bytes") if e.startswith("must be no more") else e
                                                        for e in is_dns1123_subdomain(name)]


def name_is_path_segment(name: str, prefix: bool = False) -> list[str]:
    return is_path_segment_prefix(name) if prefix else is_path_segment_name(name)
