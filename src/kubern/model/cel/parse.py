"""CEL text to a tree. Macros become nodes of their own (`comp`, `optmap`, …) instead of being unfolded.

In: the text. Out: a Node, or CelSyntaxError. The grammar is that of cel-spec doc/langdef.md with optional syntax (`?.`, `[?]`);
what ANTLR says of a broken text comes from cel-cpp's parser, so that it is worded as upstream words it.
"""

from __future__ import annotations

import re
from typing import Any

NESTING_MAX = 250
TEXT_MAX = 100_000


class CelSyntaxError(Exception):
    def __init__(self, message: str, pos: int = 0) -> None:
        super().__init__(message)
        self.message, self.pos = message, pos


class Node:
    """One expression. `op` says which; `pos` is where upstream points when something is wrong with it."""

    __slots__ = ("args", "cost", "fn", "name", "op", "pos", "type", "value")

    def __init__(self, op: str, pos: int, name: str = "", args: tuple[Any, ...] = (), value: Any = None) -> None:
        self.op, self.pos, self.name, self.args, self.value = op, pos, name, args, value
        self.type: Any = None        # filled by check.py
        self.cost = 0                # filled by run.py: units that evaluating it surely costs
        self.fn: Any = None          # overloads of a call, or the variable an identifier means


_TOKEN = re.compile(r"""
    (?P<space>[ \t\r\n\f]+|//[^\n]*)
  | (?P<float>\d+\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+|\.\d+(?:[eE][+-]?\d+)?)
  | (?P<uint>(?:0[xX][0-9a-fA-F]+|\d+)[uU])
  | (?P<int>0[xX][0-9a-fA-F]+|\d+)
  | (?P<string>(?:[bB][rR]?|[rR][bB]?)?(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^\\"\n\r])*"|'(?:\\.|[^\\'\n\r])*'))
  | (?P<raw>(?:[rR][bB]?|[bB][rR])(?:\"\"\".*?\"\"\"|'''.*?'''|"[^"\n\r]*"|'[^'\n\r]*'))
  | (?P<ident>[_a-zA-Z][_a-zA-Z0-9]*)
  | (?P<op>==|!=|<=|>=|&&|\|\||[-+*/%<>!?:.,()\[\]{}])
""", re.VERBOSE | re.DOTALL)

RESERVED = frozenset(("as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace",
                      "return", "var", "void", "while"))
_RELATIONS = {"<": "_<_", "<=": "_<=_", ">": "_>_", ">=": "_>=_", "==": "_==_", "!=": "_!=_", "in": "@in"}
_SUMS = {"+": "_+_", "-": "_-_"}
_PRODUCTS = {"*": "_*_", "/": "_/_", "%": "_%_"}
# macro on a target -> how many arguments it may have; the first one or two name variables
_ONE_VARIABLE = {"all": (2,), "exists": (2,), "exists_one": (2,), "existsOne": (2,), "map": (2, 3), "filter": (2,)}
_TWO_VARIABLES = {"all": (3,), "exists": (3,), "existsOne": (3,), "transformList": (3, 4), "transformMap": (3, 4), "transformMapEntry": (3, 4)}


def tokens(text: str) -> list[tuple[str, str, int]]:
    out, at = [], 0
    while at < len(text):
        m = _TOKEN.match(text, at)
        if m is None:
            raise CelSyntaxError(f"Syntax error: token recognition error at: '{text[at]}'", at)
        kind = m.lastgroup or ""
        if kind != "space":
            out.append((kind, m.group(), at))
        at = m.end()
    out.append(("end", "<EOF>", len(text)))
    return out


_ESCAPE = re.compile(r"\\(?:[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))", re.DOTALL)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", "'": "'", '"': '"', "`": "`", "?": "?"}


def _unescape(body: str, raw: bool, is_bytes: bool, pos: int) -> str | bytes:
    if raw:
        return body.encode() if is_bytes else body
    out: list[Any] = []
    at = 0
    for m in _ESCAPE.finditer(body):
        out.append(body[at:m.start()].encode() if is_bytes else body[at:m.start()])
        at = m.end()
        x, u, big, octal, simple = m.groups()
        if simple is not None:
            if simple not in _SIMPLE:
                raise CelSyntaxError("Syntax error: invalid escape sequence", pos)
            out.append(_SIMPLE[simple].encode() if is_bytes else _SIMPLE[simple])
        else:
            code = int(x or u or big, 16) if octal is None else int(octal, 8)
            if is_bytes and (x or octal):
                out.append(bytes([code & 255]))
            elif code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise CelSyntaxError("Syntax error: invalid unicode code point", pos)
            else:
                out.append(chr(code).encode() if is_bytes else chr(code))
    out.append(body[at:].encode() if is_bytes else body[at:])
    return b"".join(out) if is_bytes else "".join(out)


def _string(text: str, pos: int) -> str | bytes:
    m = re.match("[bBrR]*", text)
    prefix = m.group().lower() if m else ""
    body = text[len(prefix):]
    quotes = 3 if body[:3] in ('"""', "'''") else 1
    return _unescape(body[quotes:-quotes], "r" in prefix, "b" in prefix, pos)


class _Parser:
    def __init__(self, text: str, binds: bool) -> None:
        self.tokens, self.at, self.depth, self.binds = tokens(text), 0, 0, binds

    def peek(self) -> str:
        kind, text, _ = self.tokens[self.at]
        return text if kind in ("op", "ident") else kind

    def take(self, what: str = "") -> tuple[str, str, int]:
        token = self.tokens[self.at]
        if what and (token[1] != what or token[0] not in ("op", "ident")):
            raise CelSyntaxError(f"Syntax error: mismatched input '{token[1]}' expecting '{what}'", token[2])
        self.at += 1
        return token

    def expr(self) -> Node:
        self.depth += 1
        if self.depth > NESTING_MAX:
            raise CelSyntaxError(f"expression recursion limit exceeded: {NESTING_MAX}", 0)
        node = self.binary_logic("||", lambda: self.binary_logic("&&", self.relation))
        if self.peek() == "?":
            pos = self.take()[2]
            then = self.binary_logic("||", lambda: self.binary_logic("&&", self.relation))
            self.take(":")
            node = Node("cond", pos, "_?_:_", (node, then, self.expr()))
        self.depth -= 1
        return node

    def binary_logic(self, op: str, below: Any) -> Node:
        node = below()
        while self.peek() == op:
            pos = self.take()[2]
            node = Node("or" if op == "||" else "and", pos, f"_{op}_", (node, below()))
        return node

    def _left(self, table: dict[str, str], below: Any) -> Node:
        node = below()
        while self.peek() in table and self.tokens[self.at][0] in ("op", "ident"):
            _, op, pos = self.take()
            node = Node("call", pos, table[op], (node, below()))
        return node

    def relation(self) -> Node:
        return self._left(_RELATIONS, lambda: self._left(_SUMS, lambda: self._left(_PRODUCTS, self.unary)))

    def unary(self) -> Node:
        op = self.peek()
        if op not in ("!", "-"):
            return self.member(self.primary())
        pos, count = self.tokens[self.at][2], 0
        while self.peek() == op:
            self.take()
            count += 1
        if op == "-" and count == 1 and self.peek() in ("int", "float"):
            return self.member(self.number("-", pos))
        node = self.member(self.primary())
        return Node("call", pos, "!_" if op == "!" else "-_", (node,)) if count % 2 else node

    def number(self, sign: str, pos: int) -> Node:
        kind, text, _ = self.take()
        if kind == "float":
            return Node("const", pos, "double", value=float(sign + text))
        if kind == "uint":
            value = int(text[:-1], 0 if text[:2].lower() == "0x" else 10)
            if value >= 1 << 64:
                raise CelSyntaxError("invalid uint literal", pos)
            return Node("const", pos, "uint", value=value)
        value = int(text, 0 if text[:2].lower() == "0x" else 10)
        value = -value if sign else value
        if not -(1 << 63) <= value < 1 << 63:
            raise CelSyntaxError("invalid int literal", pos)
        return Node("const", pos, "int", value=value)

    def arguments(self, close: str) -> list[Node]:
        out = []
        if self.peek() != close:
            out.append(self.expr())
            while self.peek() == ",":
                self.take()
                out.append(self.expr())
        self.take(close)
        return out

    def name(self) -> tuple[str, int]:
        kind, text, pos = self.take()
        if kind != "ident" or text in ("true", "false", "null", "in"):
            raise CelSyntaxError(f"Syntax error: no viable alternative at input '{text}'", pos)
        return text, pos

    def primary(self) -> Node:
        kind, text, pos = self.tokens[self.at]
        if kind in ("int", "uint", "float"):
            return self.number("", pos)
        if kind in ("string", "raw"):
            self.take()
            value = _string(text, pos)
            return Node("const", pos, "bytes" if isinstance(value, bytes) else "string", value=value)
        if kind == "ident":
            self.take()
            if text in ("true", "false"):
                return Node("const", pos, "bool", value=text == "true")
            if text == "null":
                return Node("const", pos, "null_type")
            if text in RESERVED:
                raise CelSyntaxError(f"reserved identifier: {text}", pos)
            if self.peek() == "(":
                opened = self.take()[2]
                return _global(text, pos, opened, self.arguments(")"))
            return Node("ident", pos, text)
        if text == "(":
            self.take()
            node = self.expr()
            self.take(")")
            return node
        if text == "[":
            self.take()
            return self.list_(pos)
        if text == "{":
            self.take()
            return self.map_(pos)
        if text == ".":
            self.take()
            name, at = self.name()
            if self.peek() == "(":
                opened = self.take()[2]
                return _global(name, at, opened, self.arguments(")"))
            return Node("ident", at, name)
        raise CelSyntaxError(f"Syntax error: mismatched input '{text}' expecting an expression", pos)

    def _optional_mark(self) -> bool:
        if self.peek() == "?":
            self.take()
            return True
        return False

    def list_(self, pos: int) -> Node:
        items, optional = [], []
        while self.peek() != "]":
            optional.append(self._optional_mark())
            items.append(self.expr())
            if self.peek() != ",":
                break
            self.take()
        self.take("]")
        return Node("list", pos, args=tuple(items), value=tuple(optional))

    def map_(self, pos: int) -> Node:
        entries = []
        while self.peek() != "}":
            optional = self._optional_mark()
            key = self.expr()
            self.take(":")
            entries.append((key, self.expr(), optional))
            if self.peek() != ",":
                break
            self.take()
        self.take("}")
        return Node("map", pos, args=tuple(entries))

    def struct(self, node: Node) -> Node:
        names: list[str] = []
        at: Node = node
        while at.op == "select":
            names.append(at.name)
            at = at.args[0]
        names.append(at.name)
        pos = self.take("{")[2]
        fields = []
        while self.peek() != "}":
            optional = self._optional_mark()
            name, where = self.name()
            self.take(":")
            fields.append((name, self.expr(), optional, where))
            if self.peek() != ",":
                break
            self.take()
        self.take("}")
        return Node("struct", pos, ".".join(reversed(names)), tuple(fields))

    def member(self, node: Node) -> Node:
        while True:
            op = self.peek()
            if self.tokens[self.at][0] != "op":
                return node
            if op == "{" and _names(node):
                node = self.struct(node)
            elif op == ".":
                pos = self.take()[2]
                if self._optional_mark():
                    name, _ = self.name()
                    node = Node("optselect", pos, name, (node,))
                    continue
                name, _ = self.name()
                if self.peek() == "(":
                    opened = self.take()[2]
                    args = self.arguments(")")
                    node = _bind(opened, args) if self.binds and name == "bind" and _is_cel(node) and len(args) == 3 else \
                        _method(node, name, opened, args)
                else:
                    node = Node("select", pos, name, (node,))
            elif op == "[":
                pos = self.take()[2]
                optional = self._optional_mark()
                index = self.expr()
                self.take("]")
                node = Node("optindex" if optional else "index", pos, "_[?_]" if optional else "_[_]", (node, index))
            else:
                return node


def _names(node: Node) -> bool:
    """Whether a node is a (dotted) name: what may stand before the fields of a message."""
    while node.op == "select":
        node = node.args[0]
    return node.op == "ident"


def _global(name: str, pos: int, opened: int, args: list[Node]) -> Node:
    if name == "has" and len(args) == 1:
        if args[0].op != "select":
            raise CelSyntaxError("invalid argument to has() macro", args[0].pos)
        return Node("has", opened, args[0].name, args[0].args)
    return Node("call", opened, name, tuple(args), pos)


def _is_cel(node: Node) -> bool:
    return node.op == "ident" and node.name == "cel"


def _bind(pos: int, args: list[Node]) -> Node:
    return Node("bind", pos, "bind", (args[1], args[2]), _variable(args[0], "cel.bind() variable names must be simple identifiers"))


def _method(target: Node, name: str, pos: int, args: list[Node]) -> Node:
    count = len(args)
    if name in ("optMap", "optFlatMap") and count == 2:
        variable = _variable(args[0], f"{name}() variable name must be a simple identifier")
        return Node("optmap", pos, name, (target, args[1]), variable)
    if count in _ONE_VARIABLE.get(name, ()) and (count != 3 or name == "map") and not (count == 3 and name in ("all", "exists")):
        variable = _variable(args[0], "argument is not an identifier" if name == "map" else "argument must be a simple name")
        return Node("comp", pos, name, (target, *args[1:]), (variable,))
    if name == "sortBy" and count == 2:
        return Node("comp", pos, name, (target, args[1]), (_variable(args[0], "argument must be a simple name"),))
    if count in _TWO_VARIABLES.get(name, ()):
        variables = tuple(_variable(a, "argument must be a simple name") for a in args[:2])
        return Node("comp", pos, name, (target, *args[2:]), variables)
    return Node("method", pos, name, (target, *args))


def _variable(node: Node, otherwise: str) -> str:
    if node.op != "ident":
        raise CelSyntaxError(otherwise, node.pos)
    return node.name


def parse(text: str, binds: bool = False) -> Node:
    """The tree of an expression. `binds`: cel.bind() is a macro. Raises CelSyntaxError with `message` and `pos`."""
    if len(text) > TEXT_MAX:
        raise CelSyntaxError(f"expression code point size exceeds limit: size: {len(text)}, limit {TEXT_MAX}")
    try:
        p = _Parser(text, binds)
        node = p.expr()
        p.take() if p.peek() == "end" else p.take("<EOF>")
    except RecursionError:
        raise CelSyntaxError(f"expression recursion limit exceeded: {NESTING_MAX}") from None
    return node


def position(text: str, pos: int) -> tuple[int, int]:
    """(line from 1, column from 0) of an offset."""
    before = text[:pos]
    return before.count("\n") + 1, pos - (before.rfind("\n") + 1)


def show(text: str, pos: int, message: str) -> str:
    """One problem as upstream prints it, with the line and a pointer."""
    line, column = position(text, pos)
    source = text.split("\n")[line - 1]
    dots = "".join("．" if len(c.encode()) > 1 else "." for c in source[:column])
    hat = "＾" if len(source[column:column + 1].encode()) > 1 else "^"
    return f"ERROR: <input>:{line}:{column + 1}: {message}\n | {source}\n | {dots}{hat}"


def syntax_error(text: str, error: CelSyntaxError) -> str:
    """What is wrong with a broken text, in ANTLR's words where they can be had."""
    if error.message.startswith("Syntax error"):
        try:
            from cel_expr_python import cel
        except ImportError:
            return show(text, error.pos, error.message)
        try:
            _bare(cel).compile(text)
        except Exception as e:     # whatever it raises carries the message
            said = str(e).removeprefix("INVALID_ARGUMENT: ").removesuffix(" [INVALID_ARGUMENT]")
            if "Syntax error" in said:
                return said if text else said.replace("<input>:1:1:", "<input>:1:0:", 1)     # nothing has no first column
    return show(text, error.pos, error.message)


_env: list[Any] = []


def _bare(cel: Any) -> Any:
    if not _env:
        _env.append(cel.NewEnv())
    return _env[0]
