"""Cost: the most an expression may cost, estimated before it ever runs, in the units of CEL.

In: a checked tree, and a function from the path of a value ("self", "spec", "@items") to how large it may be. Out: a number.
The unit is about one small operation; strings cost a tenth of their length where they are looked through, loops their range times what is done in them.
Upstream: cel-go checker/cost.go, apiserver pkg/cel/library/cost.go. Rules are let in or kept out by it, so its oddities count: integers declared by
a schema are of size 0, and the members of what a function made have the size of the root.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from kubern.model.cel.parse import Node
from kubern.model.cel.types import DURATION, TIMESTAMP, Object, Type, is_dyn

MAX = (1 << 64) - 1
TRAVERSAL, REGEX = 0.1, 0.25
LIST, MAP, STRUCT = 10, 30, 40                        # what making one costs
CHECK = 350_000                                       # a question to the authorizer
FORMAT_MAX, FORMAT_REGEX_MAX = 64, 128
CIDR_BYTES = 16

Path = tuple[str, ...]


class Size(NamedTuple):
    low: int
    high: int

    def union(self, other: Size) -> Size:
        return Size(min(self.low, other.low), max(self.high, other.high))

    def __add__(self, other: Size) -> Size:           # type: ignore[override]
        return Size(_cap(self.low + other.low), _cap(self.high + other.high))

    def __mul__(self, other: Size) -> Size:           # type: ignore[override]
        return Size(_cap(self.low * other.low), _cap(self.high * other.high))


UNKNOWN, ONE = Size(0, MAX), Size(1, 1)
_Found = tuple[int, "Size | None"]                    # of a call: cost without its arguments, size of the result


class _Local(NamedTuple):
    """A variable of a macro."""

    path: Path
    size: Size | None
    entry: Size | None                                # of the members, where it is a list or map


def _cap(n: int) -> int:
    return min(n, MAX)


def _times(size: int, factor: float) -> int:
    """A size as a cost, rounded up."""
    product = float(size) * factor
    return MAX if product >= 2.0**64 else math.ceil(product)


def _is_scalar(t: Type) -> bool:
    if isinstance(t, tuple) and t[0] == "optional_type":
        return _is_scalar(t[1])
    return t in ("bool", "double", "int", "uint", TIMESTAMP, DURATION)


def estimate(tree: Node, size_at: Callable[[Path], int | None]) -> int:
    """The most that an expression may cost. `size_at`: elements of the value at a path, the variable's name first; None where nothing is known."""
    return _Estimate(size_at).cost(tree)


class _Estimate:
    def __init__(self, size_at: Callable[[Path], int | None]) -> None:
        self._size_at = size_at
        self._paths: dict[int, Path] = {}             # id(node) -> where its value stands
        self._sizes: dict[int, Size] = {}
        self._entries: dict[int, Size] = {}           # id(node) -> size of its members' values
        self._locals: dict[str, list[_Local]] = {}

    # -- sizes

    def _local(self, node: Node) -> _Local | None:
        stack = self._locals.get(node.name) if node.op == "ident" else None
        return stack[-1] if stack else None

    def path(self, node: Node) -> Path:
        local = self._local(node)
        return local.path if local is not None else self._paths.get(id(node), ())

    def _known(self, path: Path) -> Size | None:
        elements = self._size_at(path) if path else None
        return None if elements is None else Size(0, elements)

    def size(self, node: Node) -> Size | None:
        found = self._sizes.get(id(node))
        if found is not None:
            return found
        if node.op == "const":
            return Size(len(node.value), len(node.value)) if isinstance(node.value, (str, bytes)) else ONE
        if node.op in ("list", "map"):
            return Size(len(node.args), len(node.args))
        found = self._known(self.path(node))
        if found is not None:
            self._sizes[id(node)] = found
            return found
        if _is_scalar(node.type):
            return ONE
        local = self._local(node)
        return local.size if local is not None else None

    def _size(self, node: Node) -> Size:
        return self.size(node) or UNKNOWN

    def _entry(self, node: Node) -> Size | None:
        found = self._entries.get(id(node))
        local = self._local(node)
        return found if found is not None or local is None else local.entry

    # -- the walk

    def cost(self, node: Node) -> int:
        made: int = getattr(self, f"_{node.op}")(node)
        return _cap(made)

    def _sum(self, nodes: tuple[Node, ...]) -> int:
        return sum(self.cost(n) for n in nodes)

    def _const(self, node: Node) -> int:
        return 0

    def _ident(self, node: Node) -> int:
        local = self._local(node)
        self._paths[id(node)] = (node.name,) if local is None else local.path
        return 1

    def _typename(self, node: Node) -> int:
        self._paths[id(node)] = (node.name,)
        return 1

    def _select(self, node: Node) -> int:
        operand = node.args[0]
        cost, t = self.cost(operand), operand.type
        self._paths[id(node)] = (*self.path(operand), node.name)
        return cost + (isinstance(t, Object) or (isinstance(t, tuple) and t[0] in ("map", "param")))

    def _has(self, node: Node) -> int:
        return self.cost(node.args[0])

    def _optselect(self, node: Node) -> int:
        return self.cost(node.args[0]) + 1

    def _index(self, node: Node) -> int:
        held, t = node.args[0], node.args[0].type
        cost = self._sum(node.args) + 1
        if isinstance(t, tuple) and t[0] in ("list", "map"):
            entry = self._entry(held)
            self._paths[id(node)] = (*self.path(held), "@items" if t[0] == "list" else "@values")
            if entry is not None:
                self._sizes[id(node)] = entry
        return cost

    def _optindex(self, node: Node) -> int:
        return self._sum(node.args) + 1

    def _and(self, node: Node) -> int:
        return self._sum(node.args)

    _or = _and

    def _cond(self, node: Node) -> int:
        test, then, other = node.args
        cost = self.cost(test) + max(self.cost(then), self.cost(other))
        self._sizes[id(node)] = self._size(then).union(self._size(other))
        one, two = self._entry(then), self._entry(other)
        if one is not None and two is not None:
            self._entries[id(node)] = one.union(two)
        return cost

    def _list(self, node: Node) -> int:
        cost = self._sum(node.args) + LIST
        self._entries[id(node)] = self._union(node.args)
        return cost

    def _map(self, node: Node) -> int:
        cost = sum(self.cost(k) + self.cost(v) for k, v, _ in node.args) + MAP
        self._entries[id(node)] = self._union([v for _, v, _ in node.args])
        return cost

    def _union(self, nodes: tuple[Node, ...] | list[Node]) -> Size:
        sizes = [self._size(n) for n in nodes]
        return Size(min(s.low for s in sizes), max(s.high for s in sizes)) if sizes else Size(0, 0)

    def _struct(self, node: Node) -> int:
        return sum(self.cost(value) for _, value, _, _ in node.args) + STRUCT

    # -- macros: what each costs beside its range is that of the loop upstream unfolds it to

    def _comp(self, node: Node) -> int:
        ranged, *bodies = node.args
        cost, t = self.cost(ranged), ranged.type
        is_list = isinstance(t, tuple) and t[0] == "list"
        for name, local in self._variables(node, ranged, is_list):
            self._locals.setdefault(name, []).append(local)
        test = self.cost(bodies[0]) if len(bodies) == 2 else 0
        body = self.cost(bodies[-1])
        made = self._size(bodies[-1])
        for name in node.value:
            self._locals[name].pop()
        count = self._size(ranged)
        init, step, result = _LOOPS[node.name]
        if node.name == "filter":
            step, made = step + 1, self._member(node, ranged, is_list)
        if node.name == "sortBy":                     # bound once, keys made by a map, sorted
            cost += _made(count * count, 2 + (TRAVERSAL if bodies[0].type in _TEXTS else 0))[0]
            made = self._member(node, ranged, is_list)
        if node.name in ("filter", "map", "sortBy", "transformList", "transformMap", "transformMapEntry"):
            self._sizes[id(node)] = count
            if not node.name.startswith("transformMap"):
                self._entries[id(node)] = Size(0, 0).union(made)
        else:
            self._sizes[id(node)] = ONE
        return cost + init + result + _cap(count.high * _cap(step + test + body))

    def _variables(self, node: Node, ranged: Node, is_list: bool) -> list[tuple[str, _Local]]:
        path, entry = self.path(ranged), self._entry(ranged)
        value = _Local((*path, "@items" if is_list else "@values"), entry, None)
        key = _Local((*path, "@indices" if is_list and len(node.value) == 2 else "@keys"), ONE if is_list and entry is not None else None, None)
        if len(node.value) == 2:
            return [(node.value[0], key), (node.value[1], value)]
        return [(node.value[0], value if is_list else key)]

    def _member(self, node: Node, ranged: Node, is_list: bool) -> Size:
        (_, local), *_ = self._variables(node, ranged, is_list)
        return self._known(local.path) or local.size or UNKNOWN

    def _bind(self, node: Node) -> int:
        value, body = node.args
        cost = self.cost(value) + LIST
        self._locals.setdefault(node.value, []).append(_Local(self.path(value), self.size(value), self._entry(value)))
        cost += self.cost(body)
        self._locals[node.value].pop()
        return cost

    def _optmap(self, node: Node) -> int:
        """target.hasValue() ? optional.of(bind(v, target.value(), body)) : optional.none(); a bind makes an empty list."""
        target, body = node.args
        asked = self.cost(target) + 1
        self._locals.setdefault(node.value, []).append(_Local((), None, None))
        cost = asked + LIST + asked + self.cost(body)
        self._locals[node.value].pop()
        return cost + (0 if node.name == "optFlatMap" else 1)

    # -- calls

    def _call(self, node: Node) -> int:
        if node.name == "dyn":
            arg = node.args[0]
            cost = self.cost(arg) + 1
            size, entry = self.size(arg), self._entry(arg)
            if size is not None:
                self._sizes[id(node)] = size
            if entry is not None:
                self._entries[id(node)] = entry
            return cost
        cost = self._sum(node.args)
        member = node.op == "method"
        found = [self._function(node, o.params, member) for o in node.fn or ()]
        largest: Size | None = None
        for _, one in found:
            if one is not None:
                largest = one if largest is None else largest.union(one)
        if largest is not None:
            self._sizes[id(node)] = largest
        return cost + max((c for c, _ in found), default=0)

    _method = _call

    def _function(self, node: Node, params: tuple[Type, ...], member: bool) -> _Found:
        """(cost beside the arguments, size of the result) of one overload."""
        target = node.args[0] if member else None
        args = node.args[1:] if member else node.args
        known = _kubernetes(self, node.name, params, target, args) or _lists(self, node.name, params, target, args)
        return known or _standard(self, node, params, target, args)


# init, each turn beside test and body, result; accumulators are identifiers of cost 1, @not_strictly_false a call
_LOOPS = {"sortBy": (2 * LIST + 3, 12, 1), "all": (0, 3, 1), "exists": (0, 4, 1), "exists_one": (0, 2, 2), "existsOne": (0, 2, 2), "filter": (LIST, 12, 1),
          "map": (LIST, 12, 1),
          "transformList": (LIST, 12, 1), "transformMap": (MAP, 3, 1), "transformMapEntry": (MAP, 2, 1)}
_TEXTS = ("string", "bytes")
_ORDERS = ("_<_", "_<=_", "_>_", "_>=_")


def _standard(e: _Estimate, node: Node, params: tuple[Type, ...], target: Node | None, args: tuple[Node, ...]) -> _Found:
    name, sizes = node.name, [e._size(a) for a in args]
    text = bool(params) and params[0] in _TEXTS
    if name == "format" and target is not None:
        return _times(e._size(target).high, TRAVERSAL), None
    if name == "bytes" and params == ("string",):
        return _times(sizes[0].high, TRAVERSAL), Size(sizes[0].low, _cap(sizes[0].high * 4))
    if name == "string" and params == ("bytes",):
        return _times(sizes[0].high, TRAVERSAL), Size(sizes[0].low // 4, sizes[0].high)
    if name == "strings.quote":
        return _times(sizes[0].high, TRAVERSAL), Size(sizes[0].low + 2, _cap(sizes[0].high * 2 + 2))
    if name in ("startsWith", "endsWith"):
        return _times(sizes[0].high, TRAVERSAL), None
    if name == "@in" and isinstance(params[1], tuple) and params[1][0] == "list":
        return sizes[1].high, None
    if name == "matches" and target is not None:
        return _pattern(e._size(target).high, sizes[0].high), None
    if name == "contains" and target is not None and text:
        return _cap(_times(e._size(target).high, TRAVERSAL) * _times(sizes[0].high, TRAVERSAL)), None
    if name == "_+_" and (text or isinstance(params[0], tuple)):
        whole = sizes[0] + sizes[1]
        one, two = e._entry(args[0]), e._entry(args[1])
        if one is not None and two is not None:
            e._entries[id(node)] = one.union(two)
        return _times(whole.high, TRAVERSAL) if text else 1, whole
    if name in ("_==_", "_!=_") or (name in _ORDERS and text):
        return _times(min(s.high for s in sizes), TRAVERSAL), None
    return 1, None


def _pattern(length: int, pattern: int) -> int:
    return _cap(_times(_cap(length + 1), TRAVERSAL) * _times(pattern, REGEX))


_ACCESSORS = frozenset((
    "serviceAccount", "path", "group", "resource", "subresource", "namespace", "name", "allowed", "reason", "error", "errored", "masked",
    "prefixLength", "family", "isUnspecified", "isLoopback", "isLinkLocalMulticast", "isLinkLocalUnicast", "isGlobalUnicast", "format.named", "sign",
    "asInteger", "isInteger", "asApproximateFloat", "isGreaterThan", "isLessThan", "compareTo", "add", "sub", "major", "minor", "patch", "getScheme",
    "getHostname", "getHost", "getPort", "getEscapedPath", "getQuery"))
_LISTS = ("isSorted", "sum", "max", "min", "indexOf", "lastIndexOf")
_PARSED = ("cidr", "isIP", "isCIDR", "ip", "quantity", "isQuantity", "semver", "isSemver")
_SIMPLE = ("kubernetes.Quantity", "kubernetes.Semver", "net.IP", "net.CIDR", "kubernetes.authorization.Authorizer",
           "kubernetes.authorization.PathCheck", "kubernetes.authorization.GroupCheck", "kubernetes.authorization.ResourceCheck",
           "kubernetes.authorization.Decision")


def _kubernetes(e: _Estimate, name: str, params: tuple[Type, ...], target: Node | None, args: tuple[Node, ...]) -> _Found | None:
    """Functions of Kubernetes' libraries; None for those of CEL itself."""
    if name == "check":
        return CHECK, None
    if name in _ACCESSORS:
        return 1, None
    if name in ("fieldSelector", "labelSelector"):
        length = e._size(args[0]).high
        return LIST + _times(length, TRAVERSAL) + _times(_times(length, 0.5), LIST + STRUCT), None
    if name in _LISTS and target is not None:
        return _traversed(e, target), None
    if name in ("url", "jsonpatch.escapeKey"):
        return _times(e._size(args[0]).high, TRAVERSAL), e._size(args[0])
    if name in ("lowerAscii", "upperAscii", "substring", "trim") and target is not None:
        return _times(e._size(target).high, TRAVERSAL), e._size(target)
    if name == "replace" and target is not None:
        return _times(e._size(target).high, 2 * TRAVERSAL), _replaced(e._size(target), e._size(args[0]), e._size(args[1]))
    if name == "split" and target is not None:
        most = e._size(target).high
        parts = args[1].value if len(args) > 1 and args[1].op == "const" and isinstance(args[1].value, int) else most
        return _times(most, 2 * TRAVERSAL), Size(0, _cap(parts) if parts >= 0 else MAX)
    if name == "join" and target is not None:
        whole = _joined(e, target, args)
        return _times(whole.high, TRAVERSAL), whole
    if name in ("find", "findAll") and target is not None:
        length = e._size(target).high
        return _pattern(length, e._size(args[0]).high), Size(0, length)
    if name == "ip" and target is not None:
        return 1, None
    if name in _PARSED and args:
        return _times(e._size(args[0]).high, TRAVERSAL), None
    if name == "ip.isCanonical":
        return _times(e._size(args[0]).high, 2 * TRAVERSAL), None
    if name in ("containsIP", "containsCIDR"):
        cost = _times(2 * CIDR_BYTES, TRAVERSAL) + (_times(CIDR_BYTES, TRAVERSAL) + 1 if name == "containsCIDR" else 0)
        return cost + (_times(e._size(args[0]).high, TRAVERSAL) if params[-1] == "string" else 0), None
    if name == "validate":
        return _times(_times(e._size(args[0]).high, TRAVERSAL), FORMAT_REGEX_MAX * REGEX), None
    if name == "_==_":
        left, right = args[0].type, args[1].type
        if left == right and not is_dyn(left):
            if left in _SIMPLE:
                return 1, None
            if left == "kubernetes.NamedFormat":
                return _times(FORMAT_MAX, TRAVERSAL), None
            if left == "kubernetes.URL":
                return _times((e.size(args[1]) or ONE).high, TRAVERSAL), None
    return None


def _lists(e: _Estimate, name: str, params: tuple[Type, ...], target: Node | None, args: tuple[Node, ...]) -> _Found | None:
    """Functions of cel-go's lists and sets; None for others. They compare every item with every other one where they compare."""
    if name in ("sets.contains", "sets.intersects", "sets.equivalent"):
        both = e._size(args[0]) * e._size(args[1])
        return _times(both.high, 2 if name == "sets.equivalent" else 1) + 1, None
    if name == "lists.range":
        return _made(Size(_literal(args[0], MAX), _literal(args[0], MAX)), 1)
    if target is None or not (isinstance(params[0], tuple) and params[0][0] == "list"):
        return None
    size = e._size(target)
    if name == "slice":
        count = (_literal(args[1], size.high) - _literal(args[0], 0)) & MAX
        return _made(Size(count, count), 1)
    if name == "reverse":
        return _made(size, 1)
    if name == "flatten":
        return _made(size, _literal(args[0], MAX) if args else 1)
    if name == "distinct":
        return _made(size * size, 2)
    if name == "sort":
        return _made(size * size, 2 + (TRAVERSAL if params[0][1] in _TEXTS else 0))
    return None


def _made(size: Size, factor: float) -> _Found:
    return _times(size.high, factor) + 1 + LIST, size


def _literal(node: Node, otherwise: int) -> int:
    return node.value if node.op == "const" and type(node.value) is int else otherwise


def _item(e: _Estimate, held: Node) -> tuple[Type, Size] | None:
    """(type, size) of a list's items."""
    if not isinstance(held.type, tuple):
        return None
    path = e.path(held)
    return held.type[1], (e._known((*path, "@items")) if path else None) or UNKNOWN


def _traversed(e: _Estimate, target: Node) -> int:
    item, count = _item(e, target), e._size(target).high
    if item is None:
        return _times(count, TRAVERSAL)
    return _cap(count * _cap(1 + (_times(item[1].high, TRAVERSAL) if item[0] in _TEXTS else 0)))


def _joined(e: _Estimate, target: Node, args: tuple[Node, ...]) -> Size:
    count, item = e._size(target), _item(e, target)
    whole = count * item[1] if item is not None else Size(0, 0)
    if args:
        whole += e._size(args[0]) * Size(max(count.low - 1, 0), max(count.high - 1, 0))
    return whole


def _replaced(size: Size, what: Size, by: Size) -> Size:
    """The size of a string after a replacement: the longest where the shortest pieces become the longest ones, and the other way round."""
    def turned(length: int, piece: int, longer: bool) -> tuple[int, int]:
        if piece == 0:
            return _cap(length + 1), length
        return (math.ceil(length / piece), 0) if longer else (0, length)

    most, kept_most = turned(size.high, what.low, by.high > what.low)
    least, kept_least = turned(size.low, what.high, by.low < what.high)
    return Size(least, most) * by + Size(kept_least, kept_most)
