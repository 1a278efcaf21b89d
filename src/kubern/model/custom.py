"""Custom values: whether data fits the schema of a CustomResourceDefinition, and the defaults it asks for.

In: JSON data and the schema as its CRD gives it. Out: field errors in kube-openapi's words and, after an update, only of what changed:
a value that was there before is let be, wrong as it may be (ratcheting). CEL rules of the schema are for model/cel/schemas.py.
Upstream: kube-openapi pkg/validation/validate, apiextensions-apiserver pkg/apiserver/{validation,schema/{defaulting,listtype,objectmeta}};
KEP-4008 (ratcheting).
"""

from __future__ import annotations

import binascii
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kubern.model import invalid as field
from kubern.model import names
from kubern.model.addresses import parse_ip
from kubern.model.invalid import FieldError, quote
from kubern.model.object import Object, clone

NOWHERE = "<nil>"                     # how upstream prints the path of what stands nowhere
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
_BLOCKING = ("FieldValueNotSupported", "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid")
_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_INT64, _INT32, _WHOLE_MAX = 1 << 63, 1 << 31, (1 << 53) - 1


class _Error(NamedTuple):
    """One finding. `make(path)` words it; text is what duplicates are told apart by."""

    name: str | None                  # the path, None: it has none
    text: str
    make: Callable[[str], FieldError]


class _Result:
    """Errors, and how many checks went well: of several alternatives the one that came farthest explains itself."""

    __slots__ = ("errors", "matches")

    def __init__(self) -> None:
        self.errors: list[_Error] = []
        self.matches = 0

    def add(self, e: _Error) -> None:
        if not any(e.text == other.text for other in self.errors):
            self.errors.append(e)

    def merge(self, other: _Result) -> None:
        for e in other.errors:
            self.add(e)
        self.matches += other.matches


# --- errors -----------------------------------------------------------------------------------------------------------------------------

def _type(path: str, wanted: str, got: Any) -> _Error:
    text = f"{path} in body must be of type {wanted}: {quote(got)}"
    return _Error(path, text, lambda p: field.type_invalid(p, got, text))


def _plain(path: str, text: str, value: Any) -> _Error:
    text = f"{path} in body {text}"
    return _Error(path, text, lambda p: field.invalid(p, value, text))


def _message(text: str) -> _Error:
    return _Error(None, text, lambda p: field.invalid(p, "", text))


def _number(value: float) -> str:
    """A bound as Go's %v prints a float64."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


# --- the walk ---------------------------------------------------------------------------------------------------------------------------

def _validate(v: Any, s: Object, path: str, old: Any) -> _Result:
    """One value against one schema; `old` is what stood there before, MISSING where nothing can be compared."""
    r = _validate_new(v, s, path, old)
    if r.errors and old is not MISSING and _equal(v, old):
        r.errors.clear()
    return r


def _validate_new(v: Any, s: Object, path: str, old: Any) -> _Result:
    r = _Result()
    wanted = ("integer", "string") if s.get("x-kubernetes-int-or-string") else (s["type"],) if s.get("type") else ()
    if v is None:
        if wanted and not s.get("nullable"):
            r.add(_type(path, ",".join(wanted), "null"))
        else:
            r.matches += 1
        if s.get("enum"):
            r.add(_not_listed(path, v, s["enum"]))
        return r
    kind = _TYPES.get(v.__class__, "object")
    format_ = s.get("format") or ""
    if format_ and not _known(format_):
        format_ = ""
    if wanted or format_:
        wrong = _wrong_type(v, kind, wanted, format_, path)
        if wrong is not None:
            r.add(wrong)
        else:
            r.matches += 1
        r.matches += 1
    _junctors(r, v, s, path, old)
    r.matches += 1
    if kind == "string":
        error = _string(v, s, path)
        if error is not None:
            r.add(error)
        r.matches += 1
        if format_ and not _fits(format_, v):
            r.add(_type(path, format_, v))
    elif kind in ("integer", "number"):
        _numeric(r, v, s, wanted, format_, path)
        r.matches += 2
    elif kind == "array":
        _array(r, v, s, path, old)
        r.matches += 2
    if s.get("enum") and not any(_equal(v, e) for e in s["enum"]):
        r.add(_not_listed(path, v, s["enum"]))
    r.matches += 1
    if kind == "object":
        _object(r, v, s, path, old)
        r.matches += 1
    r.matches += 1
    return r


def _not_listed(path: str, v: Any, enum: list[Any]) -> _Error:
    allowed = [e if isinstance(e, str) else field.render(e) for e in enum]
    return _Error(path, f"{path} in body should be one of {enum}", lambda p: field.not_supported(p, v, allowed))


def _wrong_type(v: Any, kind: str, wanted: tuple[str, ...], format_: str, path: str) -> _Error | None:
    whole = kind == "number" and v.is_integer() and abs(v) <= _WHOLE_MAX and "integer" in wanted
    widened = kind == "integer" and "number" in wanted
    if kind not in ("string", "array") and format_ and not (kind in wanted or whole or widened):
        return _type(path, format_, {"integer": "int64", "number": "float64"}.get(kind, ""))
    if "number" not in wanted and "integer" not in wanted and format_ and kind in ("string", "array"):
        return None
    if not (kind in wanted or whole or widened):
        return _type(path, ",".join(wanted), kind)
    return None


def _junctors(r: _Result, v: Any, s: Object, path: str, old: Any) -> None:
    if s.get("anyOf"):
        best: _Result | None = None
        for alternative in s["anyOf"]:
            one = _validate_new(v, alternative, path, old)
            if not one.errors:
                best = one
                break
            if best is None or one.matches > best.matches:
                best = one
        assert best is not None
        if best.errors:
            r.add(_message(f"{quote(path)} must validate at least one schema (anyOf)"))
        r.merge(best)
    if s.get("oneOf"):
        results = [_validate_new(v, alternative, path, old) for alternative in s["oneOf"]]
        good = [one for one in results if not one.errors]
        if len(good) == 1:
            r.merge(good[0])
        else:
            found = f"Found {len(good)} valid alternatives" if good else "Found none valid"
            r.add(_message(f"{quote(path)} must validate one and only one schema (oneOf). {found}"))
            if not good:
                r.merge(max(results, key=lambda one: one.matches))
    if s.get("allOf"):
        results = [_validate_new(v, part, path, old) for part in s["allOf"]]
        for one in results:
            r.merge(one)
        good_count = sum(not one.errors for one in results)
        if good_count != len(results):
            r.add(_message(f"{quote(path)} must validate all the schemas (allOf){'' if good_count else '. None validated'}"))
    if isinstance(s.get("not"), dict) and not _validate_new(v, s["not"], path, old).errors:
        r.add(_message(f"{quote(path)} must not validate the schema (not)"))
    r.matches += 1


def _string(v: str, s: Object, path: str) -> _Error | None:
    longest, shortest, pattern = s.get("maxLength"), s.get("minLength"), s.get("pattern")
    if longest is not None and len(v) > longest:
        return _Error(path, f"{path} in body should be at most {longest} chars long", lambda p: field.too_long(p, longest))
    if shortest is not None and len(v) < shortest:
        return _plain(path, f"should be at least {shortest} chars long", v)
    if pattern and not matches(pattern, v):
        return _plain(path, f"should match '{pattern}'", v)
    return None


@lru_cache(maxsize=2048)
def _compiled(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


def matches(pattern: str, text: str) -> bool:
    """Whether Go's regular expression is found in a text."""
    expression = _compiled(pattern)
    return expression is not None and expression.search(text) is not None


def _numeric(r: _Result, v: Any, s: Object, wanted: tuple[str, ...], format_: str, path: str) -> None:
    if wanted == ("integer",):
        bits = _INT32 if format_ == "int32" else _INT64
        if (isinstance(v, float) and not v.is_integer()) or not -bits <= v < bits:
            shown = f"with format {format_}" if format_ in ("int32", "int64") else "(default format)"
            r.add(_message(f"Checked value must be of type integer {shown} in {path}"))
    elif wanted == ("number",) and format_ == "float" and abs(v) > 3.4028234663852886e38:
        r.add(_message(f"Checked value must be of type number with format float in {path}"))
    by, low, high = s.get("multipleOf"), s.get("minimum"), s.get("maximum")
    if by is not None and by > 0 and not _is_multiple(v, by):
        r.add(_plain(path, f"should be a multiple of {_number(by)}", v))
    if low is not None:
        if s.get("exclusiveMinimum"):
            if v <= low:
                r.add(_plain(path, f"should be greater than {_number(low)}", v))
        elif v < low:
            r.add(_plain(path, f"should be greater than or equal to {_number(low)}", v))
    if high is not None:
        if s.get("exclusiveMaximum"):
            if v >= high:
                r.add(_plain(path, f"should be less than {_number(high)}", v))
        elif v > high:
            r.add(_plain(path, f"should be less than or equal to {_number(high)}", v))


def _is_multiple(v: Any, by: Any) -> bool:
    """As upstream reckons: by the reciprocal below 1, and near enough is whole."""
    if not isinstance(v, float) and not isinstance(by, float):
        return bool(v % by == 0)
    times = 1 / by * v if by < 1 else v / by
    nearest = float(round(times))
    gap = abs(times - nearest)
    return gap == 0 or gap < 1e-9 * max(abs(times), abs(nearest))


def _array(r: _Result, v: list[Any], s: Object, path: str, old: Any) -> None:
    items = s.get("items")
    if isinstance(items, dict):
        find = _old_items(s, old)
        for i, x in enumerate(v):
            r.merge(_validate(x, items, f"{path}[{i}]", find(x)))
    least, most = s.get("minItems"), s.get("maxItems")
    if least is not None and len(v) < least:
        r.add(_plain(path, f"should have at least {least} items", len(v)))
    if most is not None and len(v) > most:
        r.add(_Error(path, f"{path} in body should have at most {most} items", lambda p: field.too_many(p, len(v), most)))
    if s.get("uniqueItems") and _twice(v) is not None:
        r.add(_plain(path, "shouldn't contain duplicates", ""))


def _old_items(s: Object, old: Any) -> Callable[[Any], Any]:
    """Finds what an item of a list was before: only lists of type map can be compared."""
    keys = s.get("x-kubernetes-list-map-keys") if s.get("x-kubernetes-list-type") == "map" else None
    if not keys or not isinstance(old, list):
        return lambda x: MISSING
    by: dict[str, Any] = {}
    for x in old:
        if isinstance(x, dict):
            by[_key(x, keys)] = x
    return lambda x: by.get(_key(x, keys), MISSING) if isinstance(x, dict) else MISSING


def _key(item: Mapping[str, Any], keys: Iterable[str]) -> str:
    return field.render([item.get(k) for k in keys])


def _object(r: _Result, v: dict[str, Any], s: Object, path: str, old: Any) -> None:
    properties, more = s.get("properties") or {}, s.get("additionalProperties")
    least, most = s.get("minProperties"), s.get("maxProperties")
    if least is not None and len(v) < least:
        r.add(_plain(path, f"should have at least {least} properties", len(v)))
    if most is not None and len(v) > most:
        r.add(_Error(path, f"{path} in body should have at most {most} properties", lambda p: field.too_many(p, len(v), most)))
    before = old if isinstance(old, dict) else {}
    if more is False:
        for k in v:
            if k not in properties:
                text = f"{path}.{k} in body is a forbidden property"
                r.add(_Error(path, text, lambda p, k=k, text=text: field.invalid(p, k, text)))    # type: ignore[misc]
    elif isinstance(more, dict):
        for k, x in v.items():
            if k not in properties:
                r.merge(_validate(x, more, f"{path}.{k}", before.get(k, MISSING)))
    for name, part in properties.items():
        if name in v:
            seen = MISSING if not path and name in ("kind", "apiVersion") else before.get(name, MISSING)
            r.merge(_validate(v[name], part, f"{path}.{name}" if path else name, seen))
    for name in s.get("required") or ():
        if name not in v:
            where = f"{path}.{name}"
            r.add(_Error(where, f"{where} in body is required", field.required))


def _equal(a: Any, b: Any) -> bool:
    """JSON equality: true is not 1, but 1 is 1.0."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _twice(items: list[Any]) -> int | None:
    """The index of the first item that stood there already."""
    seen: set[str] = set()
    for i, x in enumerate(items):
        key = field.render(x)
        if key in seen:
            return i
        seen.add(key)
    return None


# --- formats ----------------------------------------------------------------------------------------------------------------------------

_NAMED = {"datetime": "date-time"}
_ADDRESS = r"(?:[^@\s\x00-\x20()<>\[\]:;,\\\"]+|\"[^\"\\]*\")@[^@\s<>]+"
_EMAIL = re.compile(rf"{_ADDRESS}|[^@<>,;:\"]*<{_ADDRESS}>")
_HEX = re.compile(r"#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_RGB = re.compile(r"rgb\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)")
_DATETIME = re.compile(r"(\d{4})-(\d{2})-(\d{2})[Tt](\d{2}):(\d{2}):(\d{2})([.,]\d+)?([Zz]|[+-]\d{2}:?\d{2})")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_GO_DURATION = re.compile(r"[-+]?(?:0|(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_AMOUNT = re.compile(r"\d+\s*([A-Za-zµ]+)")
_UNIT = re.compile(r"ns|us|µs|ms|s|m|h|hr|d|w|wk|(?:nano|micro|milli|sec|min|hour|day|week).*", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}")
_HOST = (r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)"
         r"|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$")
_CARD = re.compile(r"4\d{12}(?:\d{3})?|5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}|6(?:011|5\d\d)\d{12}|3[47]\d{13}"
                   r"|3(?:0[0-5]|[68]\d)\d{11}|(?:2131|1800|35\d{3})\d{11}|6[27]\d{14}")
_MAC = re.compile("|".join(f"[0-9a-fA-F]{{{size}}}(?:{between}[0-9a-fA-F]{{{size}}}){{{octets * 2 // size - 1}}}" for octets in (6, 8, 20)
                           for size, between in ((2, ":"), (2, "-"), (4, "[.]"), (4, "")) if between or octets < 20))


def _date(text: str) -> bool:
    import datetime

    m = _DATE.fullmatch(text)
    try:
        return m is not None and bool(datetime.date(int(m[1]), int(m[2]), int(m[3])))
    except ValueError:
        return False


def _datetime(text: str) -> bool:
    m = _DATETIME.fullmatch(text)
    return m is not None and _date(text[:10]) and int(m[4]) < 24 and int(m[5]) < 60 and int(m[6]) < 60


def _address(kind: Callable[[str], Any]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            kind(text)
        except ValueError:
            return False
        return True
    return check


def _cidr(text: str) -> bool:
    return "/" in text and _address(lambda t: ipaddress.ip_network(t, strict=False))(text)


def _duration(text: str) -> bool:
    """A duration of Go's, or any text in which an amount of time stands."""
    return _GO_DURATION.fullmatch(text) is not None or any(_UNIT.fullmatch(unit) for unit in _AMOUNT.findall(text))


def _hostname(text: str) -> bool:
    return len(text.encode()) <= 255 and matches(_HOST, text) and all(len(part.encode()) <= 63 for part in text.split("."))


def _credit_card(text: str) -> bool:
    """A number of a known length and beginning whose digits add up (Luhn)."""
    digits = re.sub(r"\D+", "", text)
    total = sum(sum(divmod(int(d) * 2, 10)) if i % 2 else int(d) for i, d in enumerate(reversed(digits)))
    return _CARD.fullmatch(digits) is not None and total % 10 == 0


def _byte(text: str) -> bool:
    if not text:
        return False
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, binascii.Error):
        return False
    return True


_BROKEN_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


def _uri(text: str) -> bool:
    try:
        u = urlsplit(text)
    except ValueError:
        return False
    if " " in u.netloc or _BROKEN_ESCAPE.search(u.path):
        return False
    return bool(u.scheme) or text.startswith("/")


def _uuid(version: str) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        digits = text.replace("-", "")
        return _UUID.fullmatch(text) is not None and digits[12] == version and (version == "3" or digits[16] in "89abAB")
    return check


def _isbn(*lengths: int) -> Callable[[str], bool]:
    """A book's number of 10 or 13 digits, the last of which checks the others."""
    def check(text: str) -> bool:
        bare = re.sub(r"[\s-]", "", text)
        if len(bare) not in lengths or re.fullmatch(r"[0-9]{9}X|[0-9]{10}|[0-9]{13}", bare) is None:
            return False
        if len(bare) == 10:
            return sum((i + 1) * (10 if c == "X" else int(c)) for i, c in enumerate(bare)) % 11 == 0
        return sum(int(c) * (3 if i % 2 else 1) for i, c in enumerate(bare)) % 10 == 0
    return check


def _rgb(text: str) -> bool:
    m = _RGB.fullmatch(text)
    return m is not None and all(int(x) < 256 for x in m.groups())


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": _datetime, "date": _date, "duration": _duration,
    "uri": _uri, "email": lambda t: _EMAIL.fullmatch(t) is not None, "hostname": _hostname,
    "ipv4": lambda t: "." in t and parse_ip(t) is not None, "ipv6": lambda t: "%" not in t and _address(ipaddress.IPv6Address)(t), "cidr": _cidr,
    "mac": lambda t: _MAC.fullmatch(t) is not None,
    "uuid": lambda t: _UUID.fullmatch(t) is not None, "uuid3": _uuid("3"), "uuid4": _uuid("4"), "uuid5": _uuid("5"),
    "isbn": _isbn(10, 13), "isbn10": _isbn(10), "isbn13": _isbn(13), "creditcard": _credit_card,
    "ssn": lambda t: re.fullmatch(r"\d{3}[- ]\d{2}[- ]\d{4}", t) is not None, "hexcolor": lambda t: _HEX.fullmatch(t) is not None,
    "rgbcolor": _rgb, "byte": _byte, "password": lambda t: True,
    "bsonobjectid": lambda t: re.fullmatch(r"[0-9a-fA-F]{24}", t) is not None,
    "k8s-short-name": lambda t: not names.is_dns1123_label(t), "k8s-long-name": lambda t: not names.is_dns1123_subdomain(t),
}
_NUMERIC_FORMATS = ("int32", "int64", "float", "double")


def _known(name: str) -> bool:
    return name in _FORMATS or name in _NAMED or name in _NUMERIC_FORMATS


def _fits(name: str, text: str) -> bool:
    check = _FORMATS.get(_NAMED.get(name, name))
    return check is None or check(text)


# --- what the outside asks --------------------------------------------------------------------------------------------------------------

def value_errors(value: Any, schema: Object, path: str = "", old: Any = MISSING) -> list[FieldError]:
    """What is wrong with a value. Paths are below `path`; `old`: what was there before an update."""
    out = []
    for e in _validate(value, schema, "", old).errors:
        name = (e.name or "").lstrip(".")
        if path and name:
            name = f"{path}.{name}"
        out.append(e.make(name or path or NOWHERE))
    return out


def validate(obj: Object, schema: Object, old: Object | None) -> list[FieldError]:
    """What is wrong with a custom resource. Its metadata is everybody's and not looked at; `old`: the object before an update."""
    errors = value_errors(obj, schema, "", MISSING if old is None else old)
    errors += embedded(obj, schema)
    if old is None or not any(True for _ in duplicates(old, schema)):
        errors += duplicates(obj, schema)
    return errors


def blocking(errors: Iterable[FieldError]) -> list[FieldError]:
    """[why rules are not run], where errors are of a kind that keeps them from running; else []."""
    if any(e.type in _BLOCKING for e in errors):
        return [field.invalid(NOWHERE, None, "some validation rules were not checked because the object was invalid; "
                              "correct the existing errors to complete validation")]
    return []


def duplicates(value: Any, s: Object, path: str = "") -> Iterator[FieldError]:
    """Items that stand twice in lists of type set or map."""
    if isinstance(value, list):
        kind = s.get("x-kubernetes-list-type")
        if kind == "set":
            seen: set[str] = set()
            for i, x in enumerate(value):
                key = field.render(x)
                if key in seen:
                    yield field.duplicate(f"{path}[{i}]", x)
                seen.add(key)
        elif kind == "map":
            keys = s.get("x-kubernetes-list-map-keys") or []
            seen = set()
            for i, x in enumerate(value):
                if isinstance(x, dict):
                    own = {k: x[k] for k in keys if k in x}
                    key = field.render(own)
                    if key in seen:
                        yield field.duplicate(f"{path}[{i}]", own)
                    seen.add(key)
        if isinstance(s.get("items"), dict):
            for i, x in enumerate(value):
                yield from duplicates(x, s["items"], f"{path}[{i}]")
    elif isinstance(value, dict):
        properties, more = s.get("properties") or {}, s.get("additionalProperties")
        for k, x in value.items():
            if k in properties:
                yield from duplicates(x, properties[k], f"{path}.{k}" if path else k)
            elif isinstance(more, dict):
                yield from duplicates(x, more, f"{path}[{k}]")


def embedded(value: Any, s: Object, path: str = "") -> Iterator[FieldError]:
    """What is wrong with the apiVersion, kind and metadata of embedded objects."""
    if isinstance(value, dict):
        if s.get("x-kubernetes-embedded-resource"):
            yield from _embedded(value, path)
        properties, more = s.get("properties") or {}, s.get("additionalProperties")
        for k, x in value.items():
            if k in properties:
                yield from embedded(x, properties[k], f"{path}.{k}" if path else k)
            elif isinstance(more, dict):
                yield from embedded(x, more, f"{path}[{k}]")
    elif isinstance(value, list) and isinstance(s.get("items"), dict):
        for i, x in enumerate(value):
            yield from embedded(x, s["items"], f"{path}[{i}]")


def _embedded(value: Object, path: str) -> Iterator[FieldError]:
    from kubern.model.metadata import validate_meta
    from kubern.model.names import name_is_path_segment

    for name in ("apiVersion", "kind"):
        if not value.get(name):
            yield field.required(f"{path}.{name}")
        elif not isinstance(value[name], str):
            yield field.type_invalid(f"{path}.{name}", value[name], "must be a string")
    meta = value.get("metadata")
    if isinstance(meta, dict):
        for e in validate_meta({**meta, "name": meta.get("name") or "fakename"}, bool(meta.get("namespace")), name_is_path_segment):
            yield FieldError(e.type, f"{path}.{e.field}", e.value, e.detail)


def apply_defaults(value: Any, s: Object) -> None:
    """Fills in what the schema gives by default; a null that may not be one is dropped for the default, or for good."""
    if isinstance(value, dict):
        properties, more = s.get("properties") or {}, s.get("additionalProperties")
        for name, part in properties.items():
            default = part.get("default")
            if name in value:
                if value[name] is None and not part.get("nullable"):
                    if default is not None:
                        value[name] = clone(default)
                    else:
                        del value[name]
                        continue
            elif default is not None:
                value[name] = clone(default)
            if name in value:
                apply_defaults(value[name], part)
        if isinstance(more, dict):
            for k in list(value):
                if k not in properties:
                    if value[k] is None and not more.get("nullable"):
                        if more.get("default") is None:
                            del value[k]
                            continue
                        value[k] = clone(more["default"])
                    apply_defaults(value[k], more)
    elif isinstance(value, list) and isinstance(s.get("items"), dict):
        items = s["items"]
        for i, x in enumerate(value):
            if x is None and not items.get("nullable") and items.get("default") is not None:
                value[i] = clone(items["default"])
            apply_defaults(value[i], items)


def has_defaults(s: Any) -> bool:
    """Whether a default stands anywhere in a schema."""
    if isinstance(s, dict):
        return "default" in s or any(has_defaults(v) for k, v in s.items() if isinstance(v, (dict, list)) and k not in ("enum", "example"))
    return isinstance(s, list) and any(has_defaults(v) for v in s)
