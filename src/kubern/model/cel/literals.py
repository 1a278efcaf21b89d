"""Literals: what can be said of an expression's constants before it is ever run, once its types are known to be right.

`problems` finds texts that are no durations, timestamps, regular expressions or formats, and lists and maps of mixed types. `broken` finds
conversions of constants that fail, which upstream computes when it makes a program.
Upstream: cel-go cel/validator.go, ext/formatting.go, interpreter/decorators.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubern.model.cel.parse import Node
from kubern.model.cel.types import DURATION, DYN, NULL, TIMESTAMP, Type, is_dyn, name, same, text
from kubern.model.cel.values import CelError

Problem = tuple[int, str]
_HEX = ("int", "uint", "string", "bytes")
FOLDED = frozenset(("bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint"))
CLAUSES: dict[str, tuple[tuple[str, ...], str]] = {      # of string.format: the types it takes, what is said of others
    "s": (("bool", "bytes", "double", DURATION, "int", NULL, "string", TIMESTAMP, "uint", "list", "map", "type"),
          "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"),
    "d": (("int", "uint"), "decimal clause can only be used on integers"),
    "f": (("double", "string"), "fixed-point clause can only be used on doubles"),
    "e": (("double", "string"), "scientific clause can only be used on doubles"),
    "b": (("int", "uint", "bool"), "only integers and bools can be formatted as binary"),
    "x": (_HEX, "only integers, byte buffers, and strings can be formatted as hex"),
    "X": (_HEX, "only integers, byte buffers, and strings can be formatted as hex"),
    "o": (("int", "uint"), "octal clause can only be used on integers")}


def children(node: Node) -> Iterator[Node]:
    for a in node.args:
        if isinstance(a, Node):
            yield a
        else:                                  # an entry of a map, a field of a message
            yield from (part for part in a if isinstance(part, Node))


def _arguments(node: Node) -> tuple[Any, ...]:
    return node.args[1:] if node.op == "method" else node.args


def problems(tree: Node) -> list[Problem]:
    out: list[Problem] = []
    _walk(tree, False, out)
    return out


def _walk(node: Node, formatted: bool, out: list[Problem]) -> None:
    if node.op in ("call", "method"):
        _call(node, out)
        formatted = formatted or node.name == "format"
    elif node.op == "list" and not formatted:
        _same_types([(item, _of_item(item, optional)) for item, optional in zip(node.args, node.value, strict=True)], out, True)
    elif node.op == "map" and not formatted:
        _same_types([(key, key.type) for key, _, _ in node.args], out, False)
        _same_types([(value, _of_item(value, optional)) for _, value, optional in node.args], out, False)
    for child in children(node):
        _walk(child, formatted, out)


def _of_item(node: Node, optional: bool) -> Type:
    if node.op in ("list", "map") and not node.args:
        return "empty"
    return node.type[1] if optional and isinstance(node.type, tuple) and node.type[0] == "optional_type" else node.type


def _same_types(items: list[tuple[Node, Type]], out: list[Problem], once: bool) -> None:
    """Every member is of the first one's type; of a list only the first that is not is told."""
    for node, t in items[1:]:
        first = items[0][1]
        if not _equivalent(first, t) and "error" not in (first, t):
            out.append((node.pos, f"expected type '{text(first)}' but found '{text(t)}'"))
            if once:
                return


def _equivalent(a: Type, b: Type) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and a[0] == b[0] and len(a) == len(b):
        if a[0] == "optional_type" and DYN in (a[1], b[1]):           # optional.none() is of any
            return True
        return all(_equivalent(x, y) for x, y in zip(a[1:], b[1:], strict=True))
    return same(a, b) or a == "empty" or b == "empty"


def _call(node: Node, out: list[Problem]) -> None:
    args = _arguments(node)
    if not args:
        return
    first = args[0]
    if node.name == "format" and node.op == "method":
        _format(node, out)
    elif first.op == "const":
        if node.name in ("duration", "timestamp") and node.op == "call":
            why = _run(node)
        elif node.name == "matches" and isinstance(first.value, str):
            why = _regex(first.value)
        else:
            return
        if why:
            out.append((first.pos, f"invalid {node.name} argument"))


def _run(node: Node) -> str:
    from kubern.model.cel.run import program
    try:
        program(node)({})
    except CelError as e:
        return str(e)
    return ""


def _regex(pattern: str) -> str:
    from kubern.model.cel.library import regex
    try:
        regex(pattern)
    except CelError as e:
        return str(e)
    return ""


class BadFormat(Exception):
    """A format that cannot be read; str() is upstream's text."""


def clauses(template: str) -> Iterator[tuple[str, str, int | None]]:
    """(text before it, clause, its precision) of every %; the clause is "" for what stands at the end. Raises BadFormat."""
    before: list[str] = []
    i = 0
    while i < len(template):
        if template[i] != "%":
            before.append(template[i])
            i += 1
            continue
        i += 1
        if i >= len(template):
            raise BadFormat("unexpected end of string")
        if template[i] == "%":
            before.append("%")
            i += 1
            continue
        precision: int | None = None
        if template[i] == ".":
            start = i = i + 1
            while i < len(template) and template[i] in "0123456789":
                i += 1
            if i >= len(template):
                raise BadFormat("could not parse formatting clause: error while parsing precision: could not find end of precision specifier")
            digits = template[start:i]
            if not digits or len(digits) > 18:
                why = "value out of range" if digits else "invalid syntax"
                raise BadFormat("could not parse formatting clause: error while parsing precision: error while converting precision to integer: "
                                f'strconv.Atoi: parsing "{digits}": {why}')
            precision = int(digits)
        clause = template[i]
        i += 1
        if clause not in CLAUSES:
            raise BadFormat(f'could not parse formatting clause: unrecognized formatting clause "{clause}"')
        yield "".join(before), clause, precision
        before = []
    yield "".join(before), "", None


def _format(node: Node, out: list[Problem]) -> None:
    """A literal format needs an argument for every clause, of a type that the clause takes."""
    target, *args = node.args
    if target.op != "const" or not isinstance(target.value, str) or len(args) != 1 or args[0].op != "list":
        return
    given = args[0].args
    used = 0
    try:
        for _, clause, _ in clauses(target.value):
            if not clause:
                break
            if used >= len(given):
                out.append((node.pos, f"index {used} out of range"))
                return
            types, why = CLAUSES[clause]
            t = given[used].type
            kind = t[0] if isinstance(t, tuple) else t
            if not is_dyn(t) and kind != "param" and kind not in types:
                out.append((given[used].pos, f"error during formatting: {why}, was given {name(t).partition('(')[0]}"))
                return
            used += 1
    except BadFormat as e:
        out.append((node.pos, str(e)))
        return
    if used < len(given):
        out.append((node.pos, f"too many arguments supplied to string.format (expected {used}, got {len(given)})"))


def broken(tree: Node) -> str:
    """Why no program can be made of an expression, "" if one can."""
    for child in children(tree):
        why = broken(child)
        if why:
            return why
    if tree.op == "call" and tree.name in FOLDED and len(tree.args) == 1 and tree.args[0].op == "const":
        return _run(tree)
    if tree.op == "method" and tree.name in ("matches", "find", "findAll") and tree.args[1].op == "const" and isinstance(tree.args[1].value, str):
        return _regex(tree.args[1].value)
    return ""
