"""The type checker: which variable a name means, which overload a call, and of what type everything is.

It fills `type` and `fn` of the nodes and gives every problem with its place. Upstream: cel-go checker/checker.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kubern.model.cel.parse import Node, show
from kubern.model.cel.types import DURATION, DYN, NULL, TIMESTAMP, Object, Type, assignable, is_dyn, joined, same, substitute, text


class Overload:
    """One signature of a function. `target`: the first parameter stands before the dot."""

    __slots__ = ("call", "params", "result", "target")

    def __init__(self, params: tuple[Type, ...], result: Type, call: Any, target: bool) -> None:
        self.params, self.result, self.call, self.target = params, result, call, target


class Env:
    """What an expression may use. `types`: message types by name."""

    def __init__(self, variables: Mapping[str, Type], functions: Mapping[str, Sequence[Overload]], types: Mapping[str, Object] | None = None) -> None:
        self.variables, self.functions, self.types = variables, functions, types or {}


_ORDERED = ("int", "uint", "double", "bool", DURATION, TIMESTAMP, "string", "bytes")
_TYPE_NAMES = {"bool": "bool", "int": "int", "uint": "uint", "double": "double", "string": "string", "bytes": "bytes", "null_type": NULL,
               "type": ("type", DYN), "list": ("list", DYN), "map": ("map", DYN, DYN), "dyn": DYN, "optional_type": ("optional_type", DYN)}


def dotted(node: Node) -> str:
    """a.b.c as text, "" if the node is no chain of names."""
    parts: list[str] = []
    while node.op == "select":
        parts.append(node.name)
        node = node.args[0]
    return ".".join([node.name, *reversed(parts)]) if node.op == "ident" else ""


class Checker:
    def __init__(self, env: Env, source: str) -> None:
        self.env, self.source = env, source
        self.problems: list[tuple[int, str]] = []
        self.scopes: list[dict[str, Type]] = []

    def error(self, pos: int, message: str) -> Type:
        self.problems.append((pos, message))
        return "error"

    def report(self) -> str:
        return "\n".join(show(self.source, pos, message) for pos, message in sorted(self.problems, key=lambda p: p[0]))

    def lookup(self, name: str) -> Type | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return self.env.variables.get(name)

    def check(self, node: Node) -> Type:
        node.type = getattr(self, f"_{node.op}")(node)
        return node.type

    # -- names and fields

    def _const(self, node: Node) -> Type:
        return node.name

    def _ident(self, node: Node) -> Type:
        found = self.lookup(node.name)
        if found is not None:
            return found
        if node.name in _TYPE_NAMES:
            node.op, node.value = "typename", _TYPE_NAMES[node.name]
            return ("type", node.value)
        return self.error(node.pos, f"undeclared reference to '{node.name}' (in container '')")

    def _qualified(self, node: Node) -> Type | None:
        """A variable whose name has dots, "authorizer.requestResource"; scoped names hide it."""
        name = dotted(node)
        if not name or "." not in name or any(name.partition(".")[0] in s for s in self.scopes):
            return None
        found = self.env.variables.get(name)
        if found is not None:
            node.op, node.name, node.args = "ident", name, ()
        return found

    def _select(self, node: Node) -> Type:
        found = self._qualified(node)
        if found is not None:
            return found
        return self._field(node, self.check(node.args[0]))

    def _field(self, node: Node, t: Type) -> Type:
        if isinstance(t, tuple) and t[0] == "optional_type":
            inner = self._field(node, t[1])
            node.value = "optional"
            return ("optional_type", DYN if inner == "error" else inner)
        if isinstance(t, tuple) and t[0] == "map":
            return t[2]
        if isinstance(t, Object):
            found = t.field(node.name)
            if found is None:
                return self.error(node.pos, f"undefined field '{node.name}'")
            return found
        if is_dyn(t) or (isinstance(t, tuple) and t[0] == "param"):
            return DYN
        if isinstance(t, str) and t.startswith("kubernetes."):
            return self.error(node.pos, f"unexpected failed resolution of '{t}'")
        return self.error(node.pos, f"type '{text(t)}' does not support field selection")

    def _has(self, node: Node) -> Type:
        before = len(self.problems)
        self._field(node, self.check(node.args[0]))
        return "bool" if len(self.problems) == before else "error"

    def _optselect(self, node: Node) -> Type:
        t = self.check(node.args[0])
        found = self._field(node, t)
        return found if isinstance(found, tuple) and found[0] == "optional_type" and node.value == "optional" else ("optional_type", found)

    # -- calls

    def resolve(self, node: Node, overloads: Sequence[Overload], args: Sequence[Type], target: bool) -> Type:
        fitting: list[Overload] = []
        result: Type = None
        for o in overloads:
            if o.target != target or len(o.params) != len(args):
                continue
            bound: dict[str, Type] = {}
            if all(assignable(p, a, bound) for p, a in zip(o.params, args, strict=True)):
                fitting.append(o)
                mine = substitute(o.result, bound)
                result = mine if result is None or same(result, mine) else DYN
        if not fitting:
            if any(a == "error" for a in args):
                return "error"
            shown = [text(a) for a in args]
            where = f"{shown[0]}.({', '.join(shown[1:])})" if target else f"({', '.join(shown)})"
            return self.error(node.pos, f"found no matching overload for '{node.name}' applied to '{where}'")
        node.fn = tuple(fitting)
        return result

    def _call(self, node: Node) -> Type:
        overloads = self.env.functions.get(node.name)
        if overloads is None:
            for a in node.args:
                self.check(a)
            return self.error(node.pos, f"undeclared reference to '{node.name}' (in container '')")
        args = [self.check(a) for a in node.args]
        if len(args) == 2:
            args = [_filled(node.args[0], args[0], args[1]), _filled(node.args[1], args[1], args[0])]
        return self.resolve(node, overloads, args, False)

    def _method(self, node: Node) -> Type:
        head = dotted(node.args[0])
        if head and self.lookup(head.partition(".")[0]) is None:
            overloads = self.env.functions.get(f"{head}.{node.name}")
            if overloads is not None:                                   # a function whose name has dots
                node.op, node.name, node.args = "call", f"{head}.{node.name}", node.args[1:]
                return self.resolve(node, overloads, [self.check(a) for a in node.args], False)
        target = self.check(node.args[0])
        args = [self.check(a) for a in node.args[1:]]
        overloads = self.env.functions.get(node.name)
        if overloads is None:
            return self.error(node.pos, f"undeclared reference to '{node.name}' (in container '')")
        return self.resolve(node, overloads, [target, *args], True)

    def _logic(self, node: Node) -> Type:
        for a in node.args:
            self._is_bool(a, self.check(a))
        return "bool"

    def _is_bool(self, node: Node, t: Type) -> None:
        if t != "error" and not assignable("bool", t, {}):
            self.error(node.pos, f"expected type 'bool' but found '{text(t)}'")

    _and = _or = _logic

    def _cond(self, node: Node) -> Type:
        test, then, other = (self.check(a) for a in node.args)
        then, other = _filled(node.args[1], then, other), _filled(node.args[2], other, then)
        if assignable("bool", test, {}):
            bound: dict[str, Type] = {}
            if assignable(("param", "A"), then, bound) and assignable(("param", "A"), other, bound):
                return substitute(("param", "A"), bound)
        if "error" in (test, then, other):
            return "error"
        return self.error(node.pos, f"found no matching overload for '_?_:_' applied to '({text(test)}, {text(then)}, {text(other)})'")

    def _index(self, node: Node) -> Type:
        t, key = (self.check(a) for a in node.args)
        return self._indexed(node, t, key)

    def _indexed(self, node: Node, t: Type, key: Type) -> Type:
        if is_dyn(t):
            return DYN if t == DYN else "error"
        if isinstance(t, tuple) and t[0] == "optional_type":
            node.value = "optional"
            return ("optional_type", self._indexed(node, t[1], key))
        if isinstance(t, tuple) and t[0] == "list" and assignable("int", key, {}):
            return t[1]
        if isinstance(t, tuple) and t[0] == "map" and assignable(t[1], key, {}):
            return t[2]
        if key == "error":
            return "error"
        return self.error(node.pos, f"found no matching overload for '{node.name}' applied to '({text(t)}, {text(key)})'")

    def _optindex(self, node: Node) -> Type:
        t, key = (self.check(a) for a in node.args)
        found = self._indexed(node, t, key)
        return found if node.value == "optional" else ("optional_type", found)

    # -- literals

    def _member(self, node: Node, item: Node, t: Type, optional: bool) -> Type:
        if optional:
            if isinstance(t, tuple) and t[0] == "optional_type":
                return t[1]
            if not is_dyn(t):
                self.error(item.pos, f"expected type 'optional_type({text(t)})' but found '{text(t)}'")
        return t

    def _list(self, node: Node) -> Type:
        t: Type = None
        for item, optional in zip(node.args, node.value, strict=True):
            mine = self._member(node, item, self.check(item), optional)
            t = mine if t is None else joined(t, mine)
        return ("list", DYN if t is None else t)

    def _map(self, node: Node) -> Type:
        k: Type = None
        v: Type = None
        for key, value, optional in node.args:
            mine = self.check(key)
            k = mine if k is None else joined(k, mine)
            mine = self._member(node, value, self.check(value), optional)
            v = mine if v is None else joined(v, mine)
        return ("map", DYN if k is None else k, DYN if v is None else v)

    def _struct(self, node: Node) -> Type:
        t = self.env.types.get(node.name)
        if t is None:
            for _, value, _, _ in node.args:
                self.check(value)
            return self.error(node.pos, f"undeclared reference to '{node.name}' (in container '')")
        if not t.make:
            return self.error(node.pos, f"'{node.name}' is not a message type")
        for name, value, optional, where in node.args:
            mine = self._member(node, value, self.check(value), optional)
            wanted = t.field(name)
            if wanted is None:
                self.error(where, f"undefined field '{name}'")
            elif not assignable(wanted, mine, {}):
                self.error(where, f"expected type of field '{name}' is '{text(wanted)}' but provided type is '{text(mine)}'")
        node.fn = t
        return t

    # -- macros

    def _inside(self, node: Node, names: Mapping[str, Type]) -> Type:
        self.scopes.append(dict(names))
        try:
            return self.check(node)
        finally:
            self.scopes.pop()

    def _chooses(self, node: Node, test: Type, made: Type) -> None:
        """A macro that takes a step or does not is a `test ? made : made` to upstream, and refused as one."""
        if test != "error" and not assignable("bool", test, {}):
            self.error(node.pos, f"found no matching overload for '_?_:_' applied to '({text(test)}, {text(made)}, {text(made)})'")

    def _comp(self, node: Node) -> Type:
        target, *rest = node.args
        t = self.check(target)
        key: Type
        value: Type
        if isinstance(t, tuple) and t[0] == "list":
            key, value = "int", t[1]
        elif isinstance(t, tuple) and t[0] == "map":
            key, value = t[1], t[2]
        elif is_dyn(t):
            key, value = DYN, DYN
        else:
            return self.error(target.pos, f"expression of type '{text(t)}' cannot be range of a comprehension (must be list, map, or dynamic)")
        if len(node.value) == 2:
            names = {node.value[0]: key, node.value[1]: value}
        else:
            names = {node.value[0]: key if isinstance(t, tuple) and t[0] == "map" else value}
        test = self._inside(rest[0], names)
        if node.name in ("all", "exists"):
            self._is_bool(rest[0], test)
            return "bool"
        if node.name in ("exists_one", "existsOne"):
            self._chooses(node, test, "int")
            return "bool"
        if node.name == "filter":
            found = ("list", names[node.value[0]])
            self._chooses(node, test, found)
            return found
        made = test
        if len(rest) == 2:
            made = self._inside(rest[-1], names)
            self._chooses(node, test, ("list", made) if node.name in ("map", "transformList") else ("map", key, made))
        if node.name == "sortBy":
            if not is_dyn(made) and made not in _ORDERED:
                return self.error(node.pos, "found no matching overload for '@sortByAssociatedKeys' applied to "
                                  f"'{text(t)}.(list({text(made)}))'")
            return t if isinstance(t, tuple) and t[0] == "list" else ("list", DYN)
        if node.name in ("map", "transformList"):
            return ("list", made)
        if node.name == "transformMap":
            return ("map", key, made)
        return made if isinstance(made, tuple) and made[0] == "map" else DYN          # transformMapEntry

    def _bind(self, node: Node) -> Type:
        t = self.check(node.args[0])
        return self._inside(node.args[1], {node.value: t})

    def _optmap(self, node: Node) -> Type:
        t = self.check(node.args[0])
        inner = t[1] if isinstance(t, tuple) and t[0] == "optional_type" else DYN
        if not is_dyn(t) and not (isinstance(t, tuple) and t[0] == "optional_type"):
            return self.error(node.pos, f"found no matching overload for 'hasValue' applied to '{text(t)}.()'")
        made = self._inside(node.args[1], {node.value: inner})
        return made if node.name == "optFlatMap" else ("optional_type", made)


def _filled(node: Node, t: Type, other: Type) -> Type:
    """The type of one of two alternatives: an empty list or map is of whatever type the other one is."""
    if node.op in ("list", "map") and not node.args and isinstance(t, tuple) and isinstance(other, tuple) and t[0] == other[0]:
        return other
    return t
