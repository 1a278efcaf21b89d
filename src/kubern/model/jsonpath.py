"""JSONPath as kubectl and printer columns write it: .spec.a, .items[*].name, [?(@.type=="Ready")], ['a.b'], [1:3], ..x

In: the text of a path, then JSON values. Out: the values it finds, in order; a step that does not apply finds nothing.
No functions, no arithmetic, no templates around the path. Bounded in length, steps and results.
Behaviour: client-go util/jsonpath.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import orjson

PATH_MAX = 4096
RESULTS_MAX = 10_000


class JSONPathError(ValueError):
    """The text is not a path."""


class Step(NamedTuple):
    kind: str                     # "name", "wild", "index", "slice", "filter", "deep", "union"
    value: Any = None


_NAME = re.compile(r"(?:[^\s.\[\]'\"|{}()\\@=<>!]|\\.)+")
_NUMBER = re.compile(r"-?\d+\Z", re.ASCII)
_OPERATOR = re.compile(r"(==|!=|<=|>=|<|>)")


@lru_cache(maxsize=2048)
def parse(text: str) -> tuple[Step, ...]:
    """The steps of a path; raises JSONPathError. Braces around it and a leading $ or @ are allowed."""
    if len(text) > PATH_MAX:
        raise JSONPathError("path is too long")
    path = text.strip()
    if path.startswith("{") and path.endswith("}"):
        path = path[1:-1].strip()
    if path[:1] in ("$", "@"):
        path = path[1:]
    steps: list[Step] = []
    i = 0
    while i < len(path):
        c = path[i]
        if c == ".":
            if path.startswith("..", i):
                steps.append(Step("deep"))
                i += 1
            i += 1
            if i >= len(path):
                break
            if path[i] == "[":
                continue
            if path[i] == "*":
                steps.append(Step("wild"))
                i += 1
                continue
            m = _NAME.match(path, i)
            if m is None:
                raise JSONPathError(f"unrecognized character in path: {path[i:i + 1]!r}")
            steps.append(Step("name", re.sub(r"\\(.)", r"\1", m.group())))
            i = m.end()
        elif c == "[":
            end = _close(path, i)
            steps.append(_bracket(path[i + 1 : end].strip()))
            i = end + 1
        elif not steps and _NAME.match(path, i):
            m = _NAME.match(path, i)
            assert m
            steps.append(Step("name", re.sub(r"\\(.)", r"\1", m.group())))
            i = m.end()
        else:
            raise JSONPathError(f"unrecognized character in path: {c!r}")
    return tuple(steps)


def _close(path: str, start: int) -> int:
    """The index of the bracket that closes the one at start."""
    depth, quote = 0, ""
    for i in range(start, len(path)):
        c = path[i]
        if quote:
            if c == quote and path[i - 1] != "\\":
                quote = ""
        elif c in "'\"":
            quote = c
        elif c == "[":
            depth += 1
        elif c == "]":
            depth -= 1
            if not depth:
                return i
    raise JSONPathError("unterminated array")


def _bracket(inner: str) -> Step:
    if inner == "*":
        return Step("wild")
    if inner.startswith("?(") and inner.endswith(")"):
        return Step("filter", _filter(inner[2:-1].strip()))
    if inner[:1] in "'\"" and inner[-1:] == inner[:1] and len(inner) >= 2 and inner[:1] not in inner[1:-1].replace("\\" + inner[:1], ""):
        return Step("name", inner[1:-1].replace("\\" + inner[0], inner[0]))
    if "," in inner:
        return Step("union", tuple(_bracket(p.strip()) for p in inner.split(",")))
    if _NUMBER.match(inner):
        return Step("index", int(inner))
    if ":" in inner:
        parts = inner.split(":")
        if len(parts) > 3 or not all(not p.strip() or _NUMBER.match(p.strip()) for p in parts):
            raise JSONPathError(f"invalid array index {inner}")
        numbers = [int(p) if p.strip() else None for p in parts]
        return Step("slice", tuple(([*numbers, None, None])[:3]))
    raise JSONPathError(f"invalid array index {inner}")


def _filter(text: str) -> tuple[tuple[Step, ...], str, Any]:
    """(left path, operator, right side: a literal or ("path", steps)); operator "exists" without a right side."""
    m = _OPERATOR.search(_masked(text))
    if m is None:
        return parse(text), "exists", None
    left, op, right = text[: m.start()].strip(), m.group(), text[m.end() :].strip()
    return parse(left), op, _literal(right)


def _masked(text: str) -> str:
    """The text with what stands in quotes blanked, same length."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", lambda m: " " * len(m.group()), text)


def _literal(text: str) -> Any:
    if text[:1] in "'\"" and text[-1:] == text[:1] and len(text) >= 2:
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.match(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return "path", parse(text)


def find(path: str) -> Callable[[Any], list[Any]]:
    """The finder of a path: value -> what it finds. Raises JSONPathError."""
    return partial(values, parse(path))


def text(value: Any) -> str:
    """A found value as a printer writes it: strings bare, objects and lists as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list)):
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    return f"{value:g}" if isinstance(value, float) and value == int(value) and abs(value) < 1e21 else str(value)


def values(path: str | tuple[Step, ...], value: Any) -> list[Any]:
    """The values a path finds."""
    steps = parse(path) if isinstance(path, str) else path
    found = [value]
    for step in steps:
        new: list[Any] = []
        for v in found:
            _step(step, v, new)
            if len(new) > RESULTS_MAX:
                del new[RESULTS_MAX:]
                break
        found = new
        if not found:
            break
    return found


def _step(step: Step, v: Any, out: list[Any]) -> None:
    kind = step.kind
    if kind == "name":
        if isinstance(v, dict) and step.value in v:
            out.append(v[step.value])
    elif kind == "wild":
        out.extend(v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())
    elif kind == "index":
        if isinstance(v, list) and -len(v) <= step.value < len(v):
            out.append(v[step.value])
    elif kind == "slice":
        if isinstance(v, list) and step.value[2] != 0:
            out.extend(v[slice(*step.value)])
    elif kind == "union":
        for s in step.value:
            _step(s, v, out)
    elif kind == "deep":
        todo = [v]
        while todo and len(out) <= RESULTS_MAX:
            x = todo.pop(0)
            out.append(x)
            if isinstance(x, (dict, list)):
                todo += [y for y in (x.values() if isinstance(x, dict) else x) if isinstance(y, (dict, list))]
    elif kind == "filter":
        left, op, right = step.value
        for x in v if isinstance(v, list) else v.values() if isinstance(v, dict) else ():
            if _holds(values(left, x), op, right, x):
                out.append(x)


def _holds(left: list[Any], op: str, right: Any, item: Any) -> bool:
    if op == "exists":
        return bool(left)
    if isinstance(right, tuple):
        others = values(right[1], item)
        if not others:
            return False
        right = others[0]
    if not left:
        return False
    a = left[0]
    if isinstance(a, bool) != isinstance(right, bool):
        return op == "!="
    try:
        return {"==": a == right, "!=": a != right}[op] if op in ("==", "!=") else bool(
            {"<": a < right, "<=": a <= right, ">": a > right, ">=": a >= right}[op])
    except TypeError:
        return False
