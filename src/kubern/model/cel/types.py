"""CEL's types, and when one may stand for another.

A type is a string ("int", "dyn", "kubernetes.Quantity"), a tuple ("list", T), ("map", K, V), ("optional_type", T), ("type", T), ("param", "A"), or
an Object with fields. `text` prints them as upstream does. Upstream: cel-go checker/types.go, common/types/types.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

Type = Any
TIMESTAMP, DURATION, DYN, NULL = "google.protobuf.Timestamp", "google.protobuf.Duration", "dyn", "null_type"
_SHOWN = {TIMESTAMP: "timestamp", DURATION: "duration", NULL: "null"}


class Object:
    """A type with fields; they may be made late, since schemas refer to each other."""

    __slots__ = ("_fields", "make", "name", "open")

    def __init__(self, name: str, fields: Mapping[str, Type] | Callable[[], Mapping[str, Type]], *, make: bool = False, open: bool = False) -> None:
        self.name, self._fields, self.make, self.open = name, fields, make, open   # open: any field; make: Name{…} builds one

    @property
    def fields(self) -> Mapping[str, Type]:
        if callable(self._fields):
            self._fields = self._fields()
        return self._fields

    def field(self, name: str) -> Type | None:
        found = self.fields.get(name)
        return DYN if found is None and self.open else found


class KeyedList(tuple[Type, ...]):
    """("list", T) of a schema whose items are told apart by `keys`, or by themselves where there are none."""

    keys: tuple[str, ...] = ()


def text(t: Type) -> str:
    """As in "found no matching overload … applied to '(int, list(string))'"."""
    if isinstance(t, Object):
        return t.name
    if isinstance(t, str):
        return _SHOWN.get(t, t)
    if t[0] == "param":
        return str(t[1])
    return f"{t[0]}({', '.join(text(p) for p in t[1:])})"


def name(t: Type) -> str:
    """As in "must evaluate to bool but got null_type"."""
    if isinstance(t, Object):
        return t.name
    if isinstance(t, str):
        return t
    return f"{t[0]}({', '.join(name(p) for p in t[1:])})" if t[0] != "param" else str(t[1])


def is_dyn(t: Type) -> bool:
    return t == DYN or t == "error"


def same(a: Type, b: Type) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and a[0] == b[0] and all(same(x, y) for x, y in zip(a[1:], b[1:], strict=True))
    if isinstance(a, Object) and isinstance(b, Object):
        return a.name == b.name
    return bool(a == b)


def _less_specific(a: Type, b: Type) -> bool:
    """Whether a is b or says less."""
    if is_dyn(a) or (isinstance(a, tuple) and a[0] == "param"):
        return True
    if is_dyn(b) or (isinstance(b, tuple) and b[0] == "param"):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return a[0] == b[0] and len(a) == len(b) and all(_less_specific(x, y) for x, y in zip(a[1:], b[1:], strict=True))
    return same(a, b)


def assignable(to: Type, given: Type, bound: dict[str, Type]) -> bool:
    """Whether a value of type `given` may stand where `to` is wanted; parameters of `to` are bound on the way."""
    if isinstance(to, tuple) and to[0] == "param":
        have = bound.get(to[1])
        if have is None:
            bound[to[1]] = given
            return True
        if not assignable(have, given, bound):
            return False
        if _less_specific(given, have):
            bound[to[1]] = given
        return True
    if is_dyn(to) or is_dyn(given):
        return True
    if given == NULL and (isinstance(to, Object) or to in (TIMESTAMP, DURATION) or (isinstance(to, str) and "." in to)
                          or (isinstance(to, tuple) and to[0] == "optional_type")):
        return True
    if to == NULL and given != NULL:
        return isinstance(given, Object) or given in (TIMESTAMP, DURATION) or (isinstance(given, str) and "." in given)
    if isinstance(to, tuple) and isinstance(given, tuple):
        if to[0] == given[0] == "type":
            return True
        return to[0] == given[0] and len(to) == len(given) and all(assignable(x, y, bound) for x, y in zip(to[1:], given[1:], strict=True))
    return same(to, given)


def substitute(t: Type, bound: Mapping[str, Type]) -> Type:
    """The type with parameters replaced; a free one is dyn."""
    if isinstance(t, tuple):
        if t[0] == "param":
            found = bound.get(t[1])
            return DYN if found is None else found
        return (t[0], *(substitute(p, bound) for p in t[1:]))
    return t


def joined(a: Type, b: Type) -> Type:
    """The type of a list's or map's members, given two of them."""
    if assignable(a, b, {}):
        return b if _less_specific(b, a) else a
    return DYN


_NAMES = {"timestamp": TIMESTAMP, "duration": DURATION, "null": NULL, "quantity": "kubernetes.Quantity", "url": "kubernetes.URL",
          "ip": "net.IP", "cidr": "net.CIDR", "semver": "kubernetes.Semver", "format": "kubernetes.NamedFormat",
          "authorizer": "kubernetes.authorization.Authorizer", "pathcheck": "kubernetes.authorization.PathCheck",
          "groupcheck": "kubernetes.authorization.GroupCheck", "resourcecheck": "kubernetes.authorization.ResourceCheck",
          "decision": "kubernetes.authorization.Decision"}


@cache
def read(written: str) -> Type:
    """A type from its short form: "list(A)", "map(string, dyn)", "quantity"; a capital letter is a parameter."""
    written = written.strip()
    head, paren, rest = written.partition("(")
    if paren:
        return (head, *(read(p) for p in split(rest[:-1])))
    if len(written) == 1 and written.isupper():
        return ("param", written)
    return _NAMES.get(written, written)


def split(written: str) -> list[str]:
    """Parts between commas that stand in no parentheses."""
    out, depth, at = [], 0, 0
    for i, c in enumerate(written):
        depth += (c == "(") - (c == ")")
        if c == "," and not depth:
            out.append(written[at:i])
            at = i + 1
    last = written[at:].strip()
    return [p.strip() for p in out] + ([last] if last else [])


_PROPERTY = re.compile(r"[a-zA-Z_./-][a-zA-Z0-9_./-]*")
_RESERVED = frozenset(("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop",
                       "package", "namespace", "return", "var", "void", "while"))


def escape(name: str) -> str | None:
    """A property's name as expressions write it, None where they cannot."""
    if name in _RESERVED:
        return f"__{name}__"
    if not _PROPERTY.fullmatch(name):
        return None
    return name.replace("__", "__underscores__").replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
