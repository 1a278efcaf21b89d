"""The evaluator: a checked tree becomes nested Python functions, `f(variables) -> value`.

Nothing is copied or converted: objects are the JSON dicts themselves, only fields that a schema declares as times, durations,
bytes or doubles are read as such where they are touched. What it costs is counted on the way (meter.py). Upstream: cel-go interpreter.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from functools import cmp_to_key
from typing import Any

from kubern.model.cel.check import Overload
from kubern.model.cel.literals import FOLDED
from kubern.model.cel.meter import BY_OVERLOAD, CALL_MAX, CHARGES, LIST, MAP, METER, STRUCT, Meter, self_compared, spend
from kubern.model.cel.parse import Node
from kubern.model.cel.types import DURATION, NULL, TIMESTAMP, KeyedList, Object, Type, text
from kubern.model.cel.values import (
    NOTHING,
    PLAIN,
    Cancelled,
    CelError,
    Duration,
    Keyed,
    Message,
    Optional,
    Timestamp,
    TypeValue,
    UInt,
    compare,
    duration,
    equal,
    is_kind,
    kind_of,
    timestamp,
)

Run = Callable[[dict[Any, Any]], Any]
Charge = Callable[[tuple[Any, ...], Any], int]
_MISSING = object()


class Lazy:
    """A variable computed when first asked for."""

    __slots__ = ("_make", "_value")

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._value = make, _MISSING

    def get(self) -> Any:
        if self._value is _MISSING:
            self._value = self._make()
        return self._value


def compile_(node: Node) -> Run:
    """The evaluator of an expression, a part of another one: `program` makes one of a whole."""
    run: Run = _COMPILERS[node.op](node)
    return run


def program(tree: Node) -> Run:
    """The evaluator of a whole expression, with its costs metered: those of `variables`' meter go up by what it came to."""
    run = compile_(tree)
    cost = tree.cost

    def metered(v: dict[Any, Any]) -> Any:
        meter = v.get(METER)
        if meter is None:
            meter = v[METER] = Meter()
        outer, meter.call = meter.call, cost
        try:
            return run(v)
        finally:
            meter.total += meter.call
            meter.call = outer
    return metered


def _branch(node: Node) -> Run:
    """The evaluator of what may or may not run: it counts its cost when it does."""
    run, cost = compile_(node), node.cost
    if not cost:
        return run

    def counted(v: dict[Any, Any]) -> Any:
        meter = v[METER]
        meter.call += cost
        if meter.call > CALL_MAX:
            raise Cancelled
        return run(v)
    return counted


def _const(node: Node) -> Run:
    value = UInt(node.value) if node.name == "uint" else node.value
    return lambda v: value


def _ident(node: Node) -> Run:
    node.cost = 1
    name = node.name

    def run(v: dict[Any, Any]) -> Any:
        try:
            value = v[name]
        except KeyError:
            raise CelError(f"no such attribute(s): {name}") from None
        return value.get() if type(value) is Lazy else value
    return run


def _typename(node: Node) -> Run:
    node.cost = 1
    t = node.value
    value = TypeValue(t[0] if isinstance(t, tuple) else t)
    return lambda v: value


# -- fields

def _converter(t: Type) -> Callable[[Any], Any] | None:
    """How to read JSON declared as `t`, None where it is read as it is."""
    if t == TIMESTAMP:
        return lambda x: timestamp(x) if isinstance(x, str) else x
    if t == DURATION:
        return lambda x: duration(x) if isinstance(x, str) else x
    if t == "bytes":
        return lambda x: base64.b64decode(x) if isinstance(x, str) else x
    if t == "double":
        return lambda x: float(x) if type(x) is int else x
    if isinstance(t, KeyedList):
        each, keys = _each(_converter(t[-1])) or (lambda x: x), t.keys
        return lambda x: Keyed(each(x), keys) if isinstance(x, list) else x
    if isinstance(t, tuple) and t[0] in ("list", "map"):
        return _each(_converter(t[-1]))
    return None


def _each(convert: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """A reader of members, for a list or a map of them."""
    if convert is None:
        return None

    def read(many: Any) -> Any:
        if isinstance(many, list):
            return [convert(x) for x in many]
        return {k: convert(x) for k, x in many.items()} if isinstance(many, dict) else many
    return read


def _unescaped(node: Node) -> tuple[str, Callable[[Any], Any] | None]:
    """The JSON name of a selected field and how to read it. A schema's Object may give both (`json_name`)."""
    t = node.args[0].type
    if isinstance(t, Object):
        names = getattr(t, "json_names", None)
        return (names.get(node.name, node.name) if names else node.name), _converter(t.field(node.name))
    return node.name, None


def _get(obj: Any, name: str) -> Any:
    if isinstance(obj, dict):
        try:
            return obj[name]
        except KeyError:
            pass
    elif isinstance(obj, list):
        raise CelError("unsupported index type 'string' in list")
    elif isinstance(obj, Optional):
        return _optional_field(obj, name)
    raise CelError(f"no such key: {name}")


def _optional_field(obj: Any, name: Any) -> Optional:
    if isinstance(obj, Optional):
        if not obj.has:
            return NOTHING
        obj = obj.value
    if isinstance(obj, dict):
        return Optional(obj[name]) if name in obj else NOTHING
    if isinstance(obj, list) and isinstance(name, int):
        return Optional(obj[name]) if 0 <= name < len(obj) else NOTHING
    raise CelError(f"no such key: {name}")


def _reached(operand: Node) -> int:
    """What it costs to come to where a field or member is taken from: upstream begins a new chain behind anything that is no name."""
    return operand.cost + (operand.op not in ("ident", "select", "index", "optselect", "optindex"))


def _select(node: Node) -> Run:
    operand = compile_(node.args[0])
    node.cost = _reached(node.args[0]) + 1
    name, convert = _unescaped(node)
    if node.value == "optional":
        return lambda v: _optional_field(operand(v), name)
    if convert is None:
        def run(v: dict[Any, Any]) -> Any:
            obj = operand(v)
            if type(obj) is dict:
                try:
                    return obj[name]
                except KeyError:
                    raise CelError(f"no such key: {name}") from None
            return _get(obj, name)
        return run
    return lambda v: convert(_get(operand(v), name))


def _has(node: Node) -> Run:
    operand = compile_(node.args[0])
    node.cost = node.args[0].cost
    name, _ = _unescaped(node)

    def run(v: dict[Any, Any]) -> bool:
        obj = operand(v)
        if isinstance(obj, dict):
            return name in obj
        if isinstance(obj, Optional):
            return _optional_field(obj, name).has
        if isinstance(obj, (str, bytes, int, float)):
            return False
        raise CelError(f"no such key: {name}")
    return run


def _optselect(node: Node) -> Run:
    operand, name = compile_(node.args[0]), node.name
    node.cost = node.args[0].cost + 1

    def run(v: dict[Any, Any]) -> Optional:
        obj = operand(v)
        if isinstance(obj, Optional) and not obj.has:
            return NOTHING
        return _optional_field(obj, name)
    return run


def at(obj: Any, key: Any) -> Any:
    """obj[key]."""
    if isinstance(obj, list):
        if type(key) is float and key.is_integer():
            key = int(key)
        if type(key) is bool or not isinstance(key, int):
            raise CelError(f"unsupported index type '{kind_of(key)}' in list")
        if 0 <= key < len(obj):
            return obj[key]
        raise CelError(f"index out of bounds: {key}")
    if isinstance(obj, dict):
        found = _key(obj, key)
        if found is not _MISSING:
            return found
    raise CelError(f"no such key: {key if not isinstance(key, bool) else str(key).lower()}")


def _key(obj: dict[Any, Any], key: Any) -> Any:
    try:
        found = obj.get(key, _MISSING)
    except TypeError:
        raise CelError("no such overload") from None
    if found is not _MISSING and type(key) is bool:          # True is 1 to Python
        return next((v for k, v in obj.items() if type(k) is bool and k == key), _MISSING)
    return found


def _index(node: Node) -> Run:
    operand, index = compile_(node.args[0]), compile_(node.args[1])
    node.cost = _reached(node.args[0]) + node.args[1].cost + 1
    if node.value == "optional":
        return lambda v: _optional_field(operand(v), index(v))
    return lambda v: at(operand(v), index(v))


def _optindex(node: Node) -> Run:
    operand, index = compile_(node.args[0]), compile_(node.args[1])
    node.cost = _reached(node.args[0]) + node.args[1].cost + 1
    return lambda v: _optional_field(operand(v), index(v))


# -- calls

def _certain(t: Type) -> bool:
    """Whether a static type says what the value will be."""
    return not (t in ("dyn", "error") or (isinstance(t, tuple) and t[0] == "param"))


def _call(node: Node) -> Run:
    args = [compile_(a) for a in node.args]
    node.cost = sum(a.cost for a in node.args)
    charge = _charge(node)
    if charge is not None:
        return _charged(_chosen(node, args), args, charge)
    node.cost += 1
    return _plain(node, args)


def _charge(node: Node) -> Charge | None:
    """How to reckon what a call costs; None where it is always one."""
    if node.op == "call" and len(node.args) == 1 and node.name in FOLDED and node.args[0].op == "const":
        return _nothing
    if node.name == "@in" and _is_constant(node.args[1]):
        return _nothing
    charge = CHARGES.get(node.name)
    if charge is None or (node.name in BY_OVERLOAD and len(node.fn) > 1) or (node.name in _OF_MANY_KINDS and any(a.type in _SCALARS for a in node.args)):
        return None
    if node.name in ("_==_", "_!=_") and any(a.op == "const" and isinstance(a.value, (str, bytes)) and 0 < len(a.value) <= 10 for a in node.args):
        return None                      # a tenth of so short a text, rounded up
    return charge


def _nothing(args: tuple[Any, ...], result: Any) -> int:
    """Of what upstream computes when it makes the program."""
    return 0


def _is_constant(node: Node) -> bool:
    return node.op == "list" and not any(node.value) and all(a.op == "const" or _is_constant(a) for a in node.args)


def _charged(call: Callable[..., Any], args: list[Run], charge: Charge) -> Run:
    if len(args) == 2:
        one, two = args

        def run_two(v: dict[Any, Any]) -> Any:
            a, b = one(v), two(v)
            result = call(a, b)
            spend(v, charge((a, b), result))
            return result
        return run_two

    def run(v: dict[Any, Any]) -> Any:
        values = tuple([a(v) for a in args])
        result = call(*values)
        spend(v, charge(values, result))
        return result
    return run


def _chosen(node: Node, args: list[Run]) -> Callable[..., Any]:
    """The function of a call: the one overload, or whichever takes the values."""
    overloads: tuple[Overload, ...] = node.fn
    if len(overloads) == 1 and all(_certain(a.type) or not _certain(p) for a, p in zip(node.args, overloads[0].params, strict=True)):
        call: Callable[..., Any] = overloads[0].call
        return call
    known: dict[Any, Callable[..., Any]] = {}

    def choose(*values: Any) -> Any:
        key = tuple([type(x) for x in values])
        found = known.get(key)
        if found is None:
            found = next((o.call for o in overloads if all(is_kind(x, p) for x, p in zip(values, o.params, strict=True))), None)
            if found is None:
                raise CelError("no such overload")
            if all(type(x) in PLAIN for x in values):
                known[key] = found
        return found(*values)
    return choose


_SCALARS = ("bool", "int", "uint", "double", "null_type", TIMESTAMP, DURATION)
_OF_MANY_KINDS = ("_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_+_", "string", "bytes")


def _plain(node: Node, args: list[Run]) -> Run:
    overloads: tuple[Overload, ...] = node.fn
    if len(overloads) == 1 and all(_certain(a.type) or not _certain(p) for a, p in zip(node.args, overloads[0].params, strict=True)):
        call = overloads[0].call
        if len(args) == 1:
            one = args[0]
            return lambda v: call(one(v))
        if len(args) == 2:
            one, two = args
            return lambda v: call(one(v), two(v))
        return lambda v: call(*[a(v) for a in args])

    known: dict[Any, Callable[..., Any]] = {}            # what was chosen for plain JSON before, by the arguments' types

    def choose(values: list[Any], key: Any) -> Callable[..., Any]:
        for o in overloads:
            if all(is_kind(x, p) for x, p in zip(values, o.params, strict=True)):
                if all(type(x) in PLAIN for x in values):
                    known[key] = o.call
                return o.call
        raise CelError("no such overload")

    if len(args) == 2:
        first, second = args

        def run_two(v: dict[Any, Any]) -> Any:
            a, b = first(v), second(v)
            key = (type(a), type(b))
            return (known.get(key) or choose([a, b], key))(a, b)
        return run_two

    def run(v: dict[Any, Any]) -> Any:
        values = [a(v) for a in args]
        key = tuple([type(x) for x in values])
        return (known.get(key) or choose(values, key))(*values)
    return run


def _bool(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise CelError("no such overload")


def _shortcut(node: Node) -> Run:
    """&& and ||: either side may settle it, an error on the other side then does not count."""
    left, right = compile_(node.args[0]), _branch(node.args[1])
    node.cost = node.args[0].cost
    settles = node.op == "or"

    def run(v: dict[Any, Any]) -> bool:
        try:
            one = _bool(left(v))
        except Cancelled:
            raise
        except CelError as e:
            error = e
        else:
            return settles if one is settles else _bool(right(v))
        if _bool(right(v)) is settles:
            return settles
        raise error
    return run


def _cond(node: Node) -> Run:
    test, then, other = compile_(node.args[0]), _branch(node.args[1]), _branch(node.args[2])
    node.cost = node.args[0].cost
    return lambda v: then(v) if _bool(test(v)) else other(v)


# -- literals

def _list(node: Node) -> Run:
    items = [compile_(a) for a in node.args]
    node.cost = 0 if _is_constant(node) else sum(a.cost for a in node.args) + LIST
    if not any(node.value):
        return lambda v: [i(v) for i in items]
    optional = node.value

    def run(v: dict[Any, Any]) -> list[Any]:
        out = []
        for item, may_miss in zip(items, optional, strict=True):
            value = item(v)
            if may_miss:
                if value.has:
                    out.append(value.value)
            else:
                out.append(value)
        return out
    return run


def _map(node: Node) -> Run:
    entries = [(compile_(k), compile_(x), optional) for k, x, optional in node.args]
    node.cost = sum(k.cost + x.cost for k, x, _ in node.args) + MAP
    if all(k.op == x.op == "const" and not optional for k, x, optional in node.args):
        node.cost = 0

    def run(v: dict[Any, Any]) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        for key, value, optional in entries:
            k, x = key(v), value(v)
            if optional:
                if not x.has:
                    continue
                x = x.value
            out[k] = x
        return out
    return run


def _struct(node: Node) -> Run:
    fields = [(name, compile_(value), optional) for name, value, optional, _ in node.args]
    node.cost = sum(value.cost for _, value, _, _ in node.args) + STRUCT
    kind = node.fn.name

    def run(v: dict[Any, Any]) -> Message:
        out: dict[str, Any] = {}
        for name, value, optional in fields:
            x = value(v)
            if optional:
                if not x.has:
                    continue
                x = x.value
            out[name] = x
        return Message(kind, out)
    return run


# -- macros

def _pairs(value: Any) -> Any:
    if isinstance(value, list):
        return enumerate(value)
    if isinstance(value, dict):
        return value.items()
    raise CelError("no such overload")


# macro -> units of: the whole, every round, a round whose test was met (the body's own come on top)
_UNITS = {"all": (1, 3, 0), "exists": (1, 4, 0), "exists_one": (2, 1, 1), "existsOne": (2, 1, 1), "filter": (1, 1, 12),
          "map": (1, 1, 11), "transformList": (1, 1, 11), "transformMap": (1, 1, 2), "transformMapEntry": (1, 1, 1),
          "sortBy": (4, 12, 0)}


def _comp(node: Node) -> Run:
    source = compile_(node.args[0])
    whole, each, met = _UNITS[node.name]
    bodies = [compile_(node.args[1])]
    each += node.args[1].cost
    if len(node.args) == 3:
        bodies.append(compile_(node.args[2]))
        met += node.args[2].cost
    elif node.name in ("map", "transformList", "transformMap", "transformMapEntry"):
        each += met
    node.cost = node.args[0].cost + whole
    fold = _FOLDS[node.name]
    if node.name == "sortBy":
        met = node.args[1].type in ("string", "bytes", "int", "uint", "double", "bool", TIMESTAMP, DURATION)      # else no overload is known
    names = node.value

    def run(v: dict[Any, Any]) -> Any:
        value = source(v)
        pairs = _metered(v[METER], _pairs(value), each)
        kept = [v.get(n, _MISSING) for n in names]
        try:
            return fold(v, names, pairs, bodies, isinstance(value, dict), met)
        finally:
            for n, k in zip(names, kept, strict=True):
                if k is _MISSING:
                    v.pop(n, None)
                else:
                    v[n] = k
    return run


def _metered(meter: Meter, pairs: Iterable[Any], each: int) -> Iterator[Any]:
    """The rounds of a loop, each counted as it begins."""
    for pair in pairs:
        meter.call += each
        if meter.call > CALL_MAX:
            raise Cancelled
        yield pair


def _set(v: dict[Any, Any], names: tuple[str, ...], key: Any, value: Any, is_map: bool) -> Any:
    if len(names) == 2:
        v[names[0]], v[names[1]] = key, value
        return value
    item = v[names[0]] = key if is_map else value
    return item


def _all(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int, settles: bool = False) -> bool:
    error: CelError | None = None
    test = bodies[0]
    for key, value in pairs:
        _set(v, names, key, value, is_map)
        try:
            if _bool(test(v)) is settles:
                return settles
        except Cancelled:
            raise
        except CelError as e:
            error = error or e
    if error is not None:
        raise error
    return not settles


def _exists(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int) -> bool:
    return _all(v, names, pairs, bodies, is_map, met, True)


def _exists_one(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int) -> bool:
    count = 0
    for key, value in pairs:
        _set(v, names, key, value, is_map)
        if _bool(bodies[0](v)):
            count += 1
            spend(v, met)
    return count == 1


def _filter(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int) -> list[Any]:
    out = []
    for key, value in pairs:
        item = _set(v, names, key, value, is_map)
        if _bool(bodies[0](v)):
            spend(v, met)
            out.append(item)
    return out


def _taken(v: Any, test: Run | None, met: int) -> bool:
    if test is None:
        return True
    if not _bool(test(v)):
        return False
    spend(v, met)
    return True


def _map_macro(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int) -> list[Any]:
    out = []
    test, make = (bodies[0], bodies[1]) if len(bodies) == 2 else (None, bodies[0])
    for key, value in pairs:
        _set(v, names, key, value, is_map)
        if _taken(v, test, met):
            out.append(make(v))
    return out


def _transform_map(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    test, make = (bodies[0], bodies[1]) if len(bodies) == 2 else (None, bodies[0])
    for key, value in pairs:
        _set(v, names, key, value, is_map)
        if _taken(v, test, met):
            out[key] = make(v)
    return out


def _transform_entry(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    test, make = (bodies[0], bodies[1]) if len(bodies) == 2 else (None, bodies[0])
    for key, value in pairs:
        _set(v, names, key, value, is_map)
        if _taken(v, test, met):
            for k, x in make(v).items():
                if k in out:
                    raise CelError(f"insert failed: key {k} already exists")
                out[k] = x
    return out


def _by_key(a: tuple[Any, Any], b: tuple[Any, Any]) -> int:
    return compare(a[1], b[1])


def _sort_by(v: Any, names: Any, pairs: Any, bodies: Any, is_map: bool, met: int) -> list[Any]:
    items = [(_set(v, names, key, value, is_map), bodies[0](v)) for key, value in pairs]
    for _, key in items:
        if not isinstance(key, (bool, int, float, str, bytes, Timestamp, Duration)):
            raise CelError("list elements must be comparable")
        if kind_of(key) != kind_of(items[0][1]):
            raise CelError("list elements must have the same type")
    spend(v, self_compared([key for _, key in items]) if met else 1)
    return [item for item, _ in sorted(items, key=cmp_to_key(_by_key))]


_FOLDS: dict[str, Callable[..., Any]] = {"sortBy": _sort_by, "all": _all, "exists": _exists, "exists_one": _exists_one, "existsOne": _exists_one,
          "filter": _filter, "map": _map_macro,
          "transformList": _map_macro, "transformMap": _transform_map, "transformMapEntry": _transform_entry}


def _scoped(v: dict[Any, Any], name: str, value: Any, body: Run) -> Any:
    kept = v.get(name, _MISSING)
    v[name] = value
    try:
        return body(v)
    finally:
        if kept is _MISSING:
            v.pop(name, None)
        else:
            v[name] = kept


def _bind(node: Node) -> Run:
    value, body, name = compile_(node.args[0]), compile_(node.args[1]), node.value
    node.cost = node.args[0].cost + node.args[1].cost
    return lambda v: _scoped(v, name, value(v), body)


def _optmap(node: Node) -> Run:
    target, body, name, flat = compile_(node.args[0]), _branch(node.args[1]), node.value, node.name == "optFlatMap"
    node.cost = node.args[0].cost + 1
    again = node.cost + (not flat)               # upstream asks for the value once more, and binds it

    def run(v: dict[Any, Any]) -> Any:
        value = target(v)
        if not isinstance(value, Optional):
            raise CelError("no such overload")
        if not value.has:
            return NOTHING
        spend(v, again)
        made = _scoped(v, name, value.value, body)
        return made if flat else Optional(made)
    return run


_COMPILERS: dict[str, Callable[[Node], Run]] = {
    "const": _const, "ident": _ident, "typename": _typename, "select": _select, "has": _has, "optselect": _optselect, "index": _index,
    "optindex": _optindex, "call": _call, "method": _call, "and": _shortcut, "or": _shortcut, "cond": _cond, "list": _list, "map": _map,
    "struct": _struct, "comp": _comp, "optmap": _optmap, "bind": _bind,
}

__all__ = ["NULL", "Lazy", "Run", "compile_", "equal", "program", "text"]
