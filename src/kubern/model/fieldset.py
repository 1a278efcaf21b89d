"""FieldSet: a set of field paths, held as what FieldsV1 is on the wire, so that stored sets need no decoding.

A set is a dict from path elements ('f:name', 'k:{"name":"a"}', 'v:"x"', 'i:0') to the set below that element. The path that ends at an
element is a member if the set below it is empty or holds ".". Sets are shared and never changed after they are made; a node
that is neither member nor has members below is left out.
Behaviour: structured-merge-diff fieldpath (Set, PathElement, serialize).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import orjson

from kubern.model.invalid import quote

Set = dict[str, Any]
LEAF: Set = {}
Path = tuple[str, ...]


def is_member(node: Set) -> bool:
    return not node or "." in node


def _node(member: bool, children: Set) -> Set | None:
    """A node of these parts; None where it would be nothing."""
    if not children:
        return LEAF if member else None
    return {".": LEAF, **children} if member else children


def make(paths: Iterator[Path] | tuple[Path, ...] | list[Path]) -> Set:
    """The set of some paths."""
    root: Set = {}
    for path in paths:
        node = root
        for i, element in enumerate(path):
            below = node.get(element)
            last = i == len(path) - 1
            if below is None:
                below = node[element] = {}
                if not last:
                    below["\0"] = LEAF                  # a mark that tells a mere way-point from a member while building
            elif (not last and not below) or (last and below):
                below["."] = LEAF
            node = below
    return _unmark(root)


def _unmark(node: Set) -> Set:
    return {k: _unmark(v) for k, v in node.items() if k != "\0"}


def union(a: Set, b: Set) -> Set:
    """Paths in either. Roots are not members of themselves."""
    if not a:
        return b
    if not b:
        return a
    out = dict(a)
    for k, below in b.items():
        have = out.get(k)
        out[k] = below if have is None else _join(have, below)
    return out


def _join(a: Set, b: Set) -> Set:
    if a is b:
        return a
    if not a:
        return {".": LEAF, **b} if b else LEAF
    if not b:
        return {".": LEAF, **a}
    return union(a, b)


def difference(a: Set, b: Set) -> Set:
    """Paths of a that are not in b; removing a path leaves those below it."""
    if not b:
        return a
    out: Set = {}
    for k, below in a.items():
        other = b.get(k)
        if other is None:
            out[k] = below
        elif k != ".":
            node = _node(is_member(below) and not is_member(other), _children(difference(below, other)))
            if node is not None:
                out[k] = node
    return out


def without(a: Set, b: Set) -> Set:
    """Paths of a that are neither in b nor below a path of b."""
    if not b:
        return a
    out: Set = {}
    for k, below in a.items():
        other = b.get(k)
        if other is None:
            out[k] = below
        elif k != "." and not is_member(other):
            node = _node(is_member(below), _children(without(below, other)))
            if node is not None:
                out[k] = node
    return out


def intersection(a: Set, b: Set) -> Set:
    """Paths in both."""
    out: Set = {}
    for k, below in a.items():
        other = b.get(k)
        if other is None or k == ".":
            continue
        node = _node(is_member(below) and is_member(other), _children(intersection(below, other)))
        if node is not None:
            out[k] = node
    return out


def _children(node: Set) -> Set:
    if "." in node:
        return {k: v for k, v in node.items() if k != "."}
    return node


def only(a: Set, keep: Callable[[Path], bool], prefix: Path = ()) -> Set:
    """Members for whose path keep() holds."""
    out: Set = {}
    for k, below in a.items():
        if k == ".":
            continue
        path = (*prefix, k)
        node = _node(is_member(below) and keep(path), only(below, keep, path))
        if node is not None:
            out[k] = node
    return out


def has(a: Set, element: str) -> bool:
    """Whether the path of this one element is a member."""
    node = a.get(element)
    return node is not None and is_member(node)


def contains(a: Set, path: Path) -> bool:
    node: Set | None = a
    for element in path:
        node = node.get(element) if node is not None else None
        if node is None:
            return False
    return node is not None and is_member(node)


def paths(a: Set, prefix: Path = ()) -> Iterator[Path]:
    """All member paths: those of a level first, then level by level below, each sorted as upstream sorts."""
    keys = sorted((k for k in a if k != "."), key=order)
    for k in keys:
        if is_member(a[k]):
            yield (*prefix, k)
    for k in keys:
        if a[k]:
            yield from paths(a[k], (*prefix, k))


_ORDER = {"f": 0, "k": 1, "v": 2, "i": 3}


@lru_cache(maxsize=8192)
def order(element: str) -> tuple[int, Any]:
    """Sort key of elements: fields by name, then keys, values, indexes."""
    kind = _ORDER.get(element[:1], 4)
    if kind == 0:
        return 0, element
    if kind == 3:
        return 3, int(element[2:]) if element[2:].isdigit() else 0
    if kind in (1, 2):
        try:
            value = orjson.loads(element[2:])
        except ValueError:
            return 4, element
        items = sorted(value.items()) if isinstance(value, dict) else [("", value)]
        return kind, [(name, _rank(v)) for name, v in items]
    return kind, element


def _rank(value: Any) -> tuple[int, Any]:
    if isinstance(value, bool):
        return 2, value
    if isinstance(value, (int, float)):
        return 0, value
    if isinstance(value, str):
        return 1, value
    return 3, str(value)


def sort(a: Set) -> Set:
    """The same set with its elements in upstream's order."""
    if len(a) == 1:
        return {k: sort(below) if below else LEAF for k, below in a.items()}
    return {k: sort(a[k]) if a[k] else LEAF for k in sorted(a, key=_order)}


def _order(element: str) -> tuple[int, Any]:
    return (-1, "") if element == "." else order(element)


def text(path: Path) -> str:
    """A path as upstream prints it: .spec.containers[name="a"].image"""
    return "".join(element_text(e) for e in path)


def element_text(element: str) -> str:
    kind, rest = element[:2], element[2:]
    if kind == "f:":
        return "." + rest
    if kind == "i:":
        return f"[{rest}]"
    try:
        value = orjson.loads(rest)
    except ValueError:
        return f"[{rest}]"
    if kind == "v:":
        return f"[={_scalar_text(value)}]"
    return "[" + ",".join(f"{k}={_scalar_text(v)}" for k, v in sorted(value.items())) + "]"


def _scalar_text(value: Any) -> str:
    if isinstance(value, str):
        return quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, dict)):
        return orjson.dumps(value).decode()
    return str(value)


def valid(a: Any, depth: int = 0) -> bool:
    """Whether JSON from a client is a set."""
    if not isinstance(a, dict) or depth > 64:
        return False
    for k, v in a.items():                  # noqa: SIM110  (twice as fast as all())
        if k != "." and (k[1:2] != ":" or (v != {} and not valid(v, depth + 1))):
            return False
    return True
