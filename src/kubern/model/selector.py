"""Selectors: which objects a label or field selector means.

In: the text of ?labelSelector= / ?fieldSelector=, or a LabelSelector object. Out: a frozen value with `.matches`.
Which field labels a resource supports is not decided here (model/resources.py does: field_path).
Upstream: apimachinery pkg/labels/selector.go, pkg/fields/selector.go; API conventions, "Label selectors".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kubern.model.invalid import aggregate, quote, render
from kubern.model.names import is_label_value, is_qualified_name
from kubern.model.object import Object
from kubern.model.status import StatusError, bad_request

Labels = Mapping[str, str]
_INTEGER = re.compile(r"[+-]?[0-9]+\Z", re.ASCII)


def _int64(text: str) -> int | None:
    if not _INTEGER.match(text) or len(text) > 20:
        return None
    n = int(text)
    return n if -(1 << 63) <= n < 1 << 63 else None


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term; op is "in", "notin", "exists", "!", "gt", "lt", "=", "==" or "!="."""

    key: str
    op: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Labels) -> bool:
        op = self.op
        if op in ("=", "==", "in"):
            value = labels.get(self.key)
            return value is not None and value in self.values
        if op in ("!=", "notin"):
            return self.key not in labels or labels[self.key] not in self.values
        if op == "exists":
            return self.key in labels
        if op == "!":
            return self.key not in labels
        have, want = _int64(labels.get(self.key, "")), _int64(self.values[0])
        if have is None or want is None:
            return False
        return have > want if op == "gt" else have < want

    def __str__(self) -> str:
        if self.op == "exists":
            return self.key
        if self.op == "!":
            return "!" + self.key
        values = ",".join(sorted(self.values))
        if self.op in ("in", "notin"):
            return f"{self.key} {self.op} ({values})"
        return self.key + {"gt": ">", "lt": "<"}.get(self.op, self.op) + values


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements together; without any it selects everything, unless `nothing`."""

    requirements: tuple[Requirement, ...] = ()
    nothing: bool = False

    def matches(self, labels: Labels | None) -> bool:
        if self.nothing:
            return False
        have = labels or {}
        return all(r.matches(have) for r in self.requirements)

    @property
    def empty(self) -> bool:
        return not self.requirements and not self.nothing

    def __str__(self) -> str:
        return ",".join(str(r) for r in self.requirements)


EVERYTHING = Selector()
NOTHING = Selector(nothing=True)
BINARY_OPERATORS = "in, notin, =, ==, !=, gt, lt"
_TOKENS = {")", ",", "!", "==", "=", ">", "in", "<", "!=", "notin", "("}
_SPACE = " \t\r\n"
_SPECIAL = "=!(),><"


def requirement(key: str, op: str, values: tuple[str, ...]) -> Requirement:
    """A checked requirement; raises ValueError with upstream's text."""
    errors = []
    if why := is_qualified_name(key):
        errors.append(f"key: Invalid value: {quote(key)}: {'; '.join(why)}")
    if op in ("in", "notin") and not values:
        errors.append("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty")
    elif op in ("=", "==", "!=") and len(values) != 1:
        errors.append(f"values: Invalid value: {render(list(values))}: exact-match compatibility requires one single value")
    elif op in ("exists", "!") and values:
        errors.append(f"values: Invalid value: {render(list(values))}: values set must be empty for exists and does not exist")
    elif op in ("gt", "lt"):
        if len(values) != 1:
            errors.append(f"values: Invalid value: {render(list(values))}: for 'Gt', 'Lt' operators, exactly one value is required")
        for i, v in enumerate(values):
            if _int64(v) is None:
                errors.append(f"values[{i}]: Invalid value: {quote(v)}: for 'Gt', 'Lt' operators, the value must be an integer")
    for i, v in enumerate(values):
        if why := is_label_value(v):
            errors.append(f"values[{i}][{key}]: Invalid value: {quote(v)}: {'; '.join(why)}")
    if errors:
        raise ValueError(aggregate(errors))
    return Requirement(key, op, values)


def _lex(text: str) -> list[tuple[str, str]]:
    """(token, literal) pairs; token is the literal of a fixed token, "id", "error" or "" at the end."""
    out: list[tuple[str, str]] = []
    i, n = 0, len(text)
    while True:
        while i < n and text[i] in _SPACE:
            i += 1
        if i >= n or text[i] == "\0":
            return [*out, ("", "")]
        start = i
        if text[i] in _SPECIAL:
            best = 0
            while i < n and text[i] in _SPECIAL:
                if text[start : i + 1] in _TOKENS:
                    best = i + 1
                elif best:
                    break
                i += 1
            if best:
                out.append((text[start:best], text[start:best]))
                i = best
            else:
                out.append(("error", f"error expected: keyword found '{text[start:i]}'"))
        else:
            while i < n and text[i] not in _SPACE and text[i] not in _SPECIAL:
                i += 1
            word = text[start:i]
            out.append((word if word in _TOKENS else "id", word))


class _Parser:
    def __init__(self, text: str) -> None:
        self.items, self.at = _lex(text), 0

    def peek(self) -> tuple[str, str]:
        token, literal = self.items[min(self.at, len(self.items) - 1)]
        return ("id" if token in ("in", "notin") else token), literal

    def take(self, operator: bool = False) -> tuple[str, str]:
        token, literal = self.items[min(self.at, len(self.items) - 1)]
        self.at += 1
        return ("id" if token in ("in", "notin") and not operator else token), literal

    def selector(self) -> list[Requirement]:
        out: list[Requirement] = []
        while True:
            token, literal = self.peek()
            if token == "":
                return out
            if token not in ("id", "!"):
                raise ValueError(f"found '{literal}', expected: !, identifier, or 'end of string'")
            try:
                out.append(self.requirement())
            except ValueError as e:
                raise ValueError(f"unable to parse requirement: {e}") from None
            token, literal = self.take()
            if token == "":
                return out
            if token != ",":
                raise ValueError(f"found '{literal}', expected: ',' or 'end of string'")
            token, literal = self.peek()
            if token not in ("id", "!"):
                raise ValueError(f"found '{literal}', expected: identifier after ','")

    def requirement(self) -> Requirement:
        token, key = self.take()
        absent = token == "!"
        if absent:
            token, key = self.take()
        if token != "id":
            raise ValueError(f"found '{key}', expected: identifier")
        if why := is_qualified_name(key):
            raise ValueError(f"<nil>: Invalid value: {quote(key)}: {'; '.join(why)}")
        if absent:
            return requirement(key, "!", ())
        if self.peek()[0] in ("", ","):
            return requirement(key, "exists", ())
        token, literal = self.take(operator=True)
        if token in ("in", "notin"):
            return requirement(key, token, self.values())
        op = {"=": "=", "==": "==", "!=": "!=", ">": "gt", "<": "lt"}.get(token)
        if op is None:
            raise ValueError(f"found '{literal}', expected: {BINARY_OPERATORS}")
        if self.peek()[0] in ("", ","):
            return requirement(key, op, ("",))
        token, literal = self.take()
        if token != "id":
            raise ValueError(f"found '{literal}', expected: identifier")
        return requirement(key, op, (literal,))

    def values(self) -> tuple[str, ...]:
        token, literal = self.take()
        if token != "(":
            raise ValueError(f"found '{literal}' expected: '('")
        token, literal = self.peek()
        if token == ")":
            self.take()
            return ("",)
        if token not in ("id", ","):
            raise ValueError(f"found '{literal}', expected: ',', ')' or identifier")
        found: set[str] = set()
        while True:
            token, literal = self.take()
            if token == "id":
                found.add(literal)
                after, text = self.peek()
                if after == ")":
                    break
                if after != ",":
                    raise ValueError(f"found '{text}', expected: ',' or ')'")
            elif token == ",":
                if not found:
                    found.add("")
                after = self.peek()[0]
                if after in (")", ","):
                    found.add("")
                if after == ")":
                    break
            else:
                raise ValueError(f"found '{literal}', expected: ',', or identifier")
        self.take()
        return tuple(sorted(found))


@lru_cache(maxsize=1024)
def parse_labels(text: str) -> Selector:
    """The selector of a ?labelSelector= text; raises 400 with upstream's words."""
    if not text:
        return EVERYTHING
    try:
        return Selector(tuple(sorted(_Parser(text).selector(), key=lambda r: r.key)))
    except ValueError as e:
        raise bad_request(str(e)) from None


_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


def from_label_selector(selector: Object | None) -> Selector:
    """The selector of a LabelSelector object: None selects nothing, {} everything. Raises 400 where it is malformed."""
    if selector is None:
        return NOTHING
    terms = [Requirement(k, "=", (v,)) for k, v in (selector.get("matchLabels") or {}).items()]
    for e in selector.get("matchExpressions") or ():
        op = _OPERATORS.get(e.get("operator", ""))
        if op is None:
            raise bad_request(f"{quote(e.get('operator', ''))} is not a valid label selector operator")
        try:
            terms.append(requirement(e.get("key", ""), op, tuple(e.get("values") or ())))
        except ValueError as why:
            raise bad_request(str(why)) from None
    return Selector(tuple(sorted(terms, key=lambda r: r.key)))


def from_set(labels: Labels | None) -> Selector:
    """The selector of a plain map of labels, as Services and ReplicationControllers hold it."""
    return Selector(tuple(Requirement(k, "=", (v,)) for k, v in sorted((labels or {}).items())))


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """Terms of (path, equal, value), all of which must hold."""

    terms: tuple[tuple[str, bool, str], ...] = ()

    def matches(self, fields: Mapping[str, str]) -> bool:
        """fields: path -> text; a path that is missing counts as empty."""
        return all((fields.get(path, "") == value) is equal for path, equal, value in self.terms)

    def matches_object(self, obj: Object) -> bool:
        return all((field_text(obj, path) == value) is equal for path, equal, value in self.terms)

    def exact(self, path: str) -> str | None:
        """The one value this path must have, or None."""
        for p, equal, value in self.terms:
            if p == path and equal:
                return value
        return None

    @property
    def empty(self) -> bool:
        return not self.terms

    def __str__(self) -> str:
        return ",".join(f"{p}{'=' if equal else '!='}{_escape(v)}" for p, equal, v in self.terms)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")


def field_text(obj: Object, path: str) -> str:
    """The text of a dotted path in an object: "" where absent, Go's formatting for numbers and booleans."""
    value: Any = obj
    for part in path.split("."):
        if not isinstance(value, dict):
            return ""
        value = value.get(part)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _split_terms(text: str) -> list[str]:
    out, start, escaped = [], 0, False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif c == ",":
            out.append(text[start:i])
            start = i + 1
    return [*out, text[start:]]


def _unescape(value: str) -> str:
    if not re.search(r"[\\,=]", value):
        return value
    out, escaped = [], False
    for c in value:
        if escaped:
            if c not in "\\,=":
                raise bad_request(f"invalid field selector: invalid escape sequence: \\{c}")
            out.append(c)
            escaped = False
        elif c == "\\":
            escaped = True
        elif c in ",=":
            raise bad_request(f"invalid field selector: unescaped character in value: {ord(c)}")
        else:
            out.append(c)
    if escaped:
        raise bad_request("invalid field selector: invalid escape sequence: \\")
    return "".join(out)


_TERM = re.compile(r"(.*?)(!=|==|=)(.*)\Z", re.DOTALL)


@lru_cache(maxsize=1024)
def parse_fields(text: str) -> FieldSelector:
    """The selector of a ?fieldSelector= text; raises 400 with upstream's words."""
    terms = []
    for part in sorted(_split_terms(text)):
        if not part:
            continue
        m = _TERM.match(part)
        if m is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path, op, value = m.group(1), m.group(2), _unescape(m.group(3))
        if path or value:
            terms.append((path, op != "!=", value))
    return FieldSelector(tuple(terms))


__all__ = ["EVERYTHING", "NOTHING", "FieldSelector", "Requirement", "Selector", "StatusError", "field_text", "from_label_selector",
           "from_set", "parse_fields", "parse_labels", "requirement"]
