"""JSON as upstream reads it, for the rare body that the fast parser cannot judge: syntax errors in Go's words, duplicate keys, number texts.

In: bytes. Out: an error text, or a tree of Pairs (objects with their keys in order, duplicates kept), lists and scalars in which
numbers keep their text. The ordinary path (model/decode.py) uses orjson and comes here only when something is odd.
Behaviour: Go encoding/json (scanner.go), sigs.k8s.io/json.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH_MAX = 10000
_SPACE = b" \t\r\n"
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\(u[dD][89a-fA-F]..)|\\.", re.DOTALL)
END = "unexpected end of JSON input"


class Pairs(list[tuple[str, Any]]):
    """An object: its members in the order of the text, duplicates included."""


class Int(int):
    """An integer that remembers its text."""

    text: str

    def __new__(cls, text: str) -> Int:
        n = super().__new__(cls, int(text) if len(text) < 4000 else 1 << 70)
        n.text = text
        return n


class Float(float):
    """A float that remembers its text."""

    text: str

    def __new__(cls, text: str) -> Float:
        n = super().__new__(cls, text)
        n.text = text
        return n


class SyntaxFault(ValueError):
    """The text is not JSON; str() is Go's message."""


def parse(body: bytes) -> Any:
    """The tree of a body; raises SyntaxFault."""
    try:
        return json.loads(_whole_characters(body.decode("utf-8", "replace")), object_pairs_hook=Pairs, parse_int=Int, parse_float=Float,
                          parse_constant=_no_constant)
    except RecursionError:
        raise SyntaxFault("exceeded max depth") from None
    except ValueError:
        raise SyntaxFault(fault(body) or "invalid character") from None


def _whole_characters(text: str) -> str:
    """Escapes of half a surrogate pair become U+FFFD, as in Go: they stand for no character and could not be written again."""
    return text if "\\u" not in text else _ESCAPE.sub(lambda m: "\\ufffd" if m[1] else m[0], text)


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def plain(tree: Any) -> Any:
    """A tree as ordinary JSON data; the last of duplicate keys wins."""
    if isinstance(tree, Pairs):
        return {k: plain(v) for k, v in tree}
    if isinstance(tree, list):
        return [plain(v) for v in tree]
    if isinstance(tree, Int):
        return int(tree)
    if isinstance(tree, Float):
        return float(tree)
    return tree


def _char(c: int) -> str:
    if c == 0x27:
        return "'\\''"
    if c == 0x22:
        return "'\"'"
    text = {0x07: "\\a", 0x08: "\\b", 0x0C: "\\f", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x0B: "\\v", 0x5C: "\\\\"}.get(c)
    if text is None:
        text = chr(c) if 0x20 <= c < 0x7F else f"\\x{c:02x}" if c < 0x80 else chr(c)
    return f"'{text}'"


def _bad(c: int, where: str) -> SyntaxFault:
    return SyntaxFault(f"invalid character {_char(c)} {where}")


def fault(body: bytes) -> str | None:
    """Go's message for a text that is not JSON; None where it is."""
    try:
        at = _value(body, _skip(body, 0), 0)
        at = _skip(body, at)
        if at < len(body):
            raise _bad(body[at], "after top-level value")
    except SyntaxFault as e:
        return str(e)
    except RecursionError:
        return "exceeded max depth"
    return None


def _skip(b: bytes, i: int) -> int:
    while i < len(b) and b[i] in _SPACE:
        i += 1
    return i


def _at(b: bytes, i: int) -> int:
    if i >= len(b):
        raise SyntaxFault(END)
    return b[i]


def _value(b: bytes, i: int, depth: int) -> int:
    """The index after the value that begins at i."""
    c = _at(b, i)
    if depth > DEPTH_MAX:
        raise SyntaxFault("exceeded max depth")
    if c == 0x7B:
        return _object(b, i, depth)
    if c == 0x5B:
        return _array(b, i, depth)
    if c == 0x22:
        return _string(b, i + 1)
    if c == 0x2D or 0x30 <= c <= 0x39:
        return _number(b, i)
    for word in (b"true", b"false", b"null"):
        if c == word[0]:
            for k in range(1, len(word)):
                if _at(b, i + k) != word[k]:
                    raise _bad(b[i + k], f"in literal {word.decode()} (expecting {_char(word[k])})")
            return i + len(word)
    raise _bad(c, "looking for beginning of value")


def _object(b: bytes, i: int, depth: int) -> int:
    i = _skip(b, i + 1)
    if _at(b, i) == 0x7D:
        return i + 1
    while True:
        if _at(b, i) != 0x22:
            raise _bad(b[i], "looking for beginning of object key string")
        i = _skip(b, _string(b, i + 1))
        if _at(b, i) != 0x3A:
            raise _bad(b[i], "after object key")
        i = _skip(b, _value(b, _skip(b, i + 1), depth + 1))
        if _at(b, i) == 0x7D:
            return i + 1
        if b[i] != 0x2C:
            raise _bad(b[i], "after object key:value pair")
        i = _skip(b, i + 1)


def _array(b: bytes, i: int, depth: int) -> int:
    i = _skip(b, i + 1)
    if _at(b, i) == 0x5D:
        return i + 1
    while True:
        i = _skip(b, _value(b, i, depth + 1))
        if _at(b, i) == 0x5D:
            return i + 1
        if b[i] != 0x2C:
            raise _bad(b[i], "after array element")
        i = _skip(b, i + 1)


def _string(b: bytes, i: int) -> int:
    while True:
        m = _PLAIN.match(b, i)
        assert m
        i = m.end()
        c = _at(b, i)
        if c == 0x22:
            return i + 1
        if c != 0x5C:
            raise _bad(c, "in string literal")
        e = _at(b, i + 1)
        if e == 0x75:
            for k in range(2, 6):
                if _at(b, i + k) not in b"0123456789abcdefABCDEF":
                    raise _bad(b[i + k], "in \\u hexadecimal character escape")
            i += 6
        elif e in b'bfnrt\\/"':
            i += 2
        else:
            raise _bad(e, "in string escape code")


def _number(b: bytes, i: int) -> int:
    m = _NUMBER.match(b, i)
    if m is None:
        raise _bad(_at(b, i + 1), "in numeric literal")
    end = m.end()
    if end < len(b) and b[end] == 0x2E:
        raise _bad(_at(b, end + 1), "after decimal point in numeric literal")
    if end < len(b) and b[end] in b"eE":
        sign = end + 1 < len(b) and b[end + 1] in b"+-"
        raise _bad(_at(b, end + 1 + sign), "in exponent of numeric literal")
    if end == len(b) - 1 and b[end] == 0x2E:
        raise SyntaxFault(END)
    return end


def kind_of(value: Any) -> str:
    """What Go calls a JSON value in a type error."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, (Pairs, dict)):
        return "object"
    return "array" if isinstance(value, list) else "null"
