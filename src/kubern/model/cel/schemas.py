"""Rules of schemas: x-kubernetes-validations of CustomResourceDefinitions, compiled against types made from the schema and run over objects.

In: a CRD's schema as JSON. Out: `schema_errors` (what does not compile), and `rules(schema)`, whose `errors(new, old)` are the broken ones.
A rule that names oldSelf is a transition rule: it runs where an old value can be compared. A rule broken before and not touched since is let be.
Upstream: apiextensions-apiserver pkg/apiserver/schema/cel, apiserver pkg/cel/common; KEP-2876, KEP-4008.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubern.model import invalid as field
from kubern.model.cel import CelError, CelProblem, Program, compile_
from kubern.model.cel.cost import MAX as MAX_COST
from kubern.model.cel.cost import estimate
from kubern.model.cel.extent import extent_of, members_max
from kubern.model.cel.meter import METER, TOTAL_MAX, Meter
from kubern.model.cel.run import _converter
from kubern.model.cel.types import DYN, TIMESTAMP, KeyedList, Object, Type, escape, read
from kubern.model.cel.values import Cancelled, Optional
from kubern.model.custom import MISSING, NOWHERE, _equal, _old_items
from kubern.model.invalid import FieldError, Struct

MESSAGE_MAX_BYTES = 5 * 1024
OUT_OF_BUDGET = "validation failed due to running out of cost budget, no further validation rules will be run"
_ERRORS: dict[str, Callable[[str, Any, str], FieldError]] = {
    "FieldValueForbidden": lambda p, v, d: field.forbidden(p, d), "FieldValueRequired": lambda p, v, d: field.required(p, d),
    "FieldValueDuplicate": lambda p, v, d: field.duplicate(p, v)}
_META = Object("object.metadata", {"name": "string", "generateName": "string"})


class SchemaObject(Object):
    """The type of an object with properties; expressions name those by their escaped names."""

    __slots__ = ("json_names",)

    def __init__(self, name: str, fields: Mapping[str, Type], json_names: Mapping[str, str]) -> None:
        super().__init__(name, fields)
        self.json_names = json_names


def _list_of(item: Type, s: Mapping[str, Any]) -> Type:
    if s.get("x-kubernetes-list-type") not in ("set", "map"):
        return ("list", item)
    keyed = KeyedList(("list", item))
    keyed.keys = tuple(s.get("x-kubernetes-list-map-keys") or ()) if s["x-kubernetes-list-type"] == "map" else ()
    return keyed


def type_of(s: Mapping[str, Any], root: bool = False, name: str = "object") -> Type:
    """The type of what a schema describes, None where expressions cannot see it. `root`: has apiVersion, kind and metadata."""
    if s.get("x-kubernetes-int-or-string"):
        return DYN
    kind = s.get("type")
    if kind == "array":
        items = s.get("items")
        item = type_of(items, bool(items.get("x-kubernetes-embedded-resource")), f"{name}.@idx") if isinstance(items, dict) else None
        return None if item is None else _list_of(item, s)
    if kind == "object":
        more = s.get("additionalProperties")
        if isinstance(more, dict):
            value = type_of(more, bool(more.get("x-kubernetes-embedded-resource")), f"{name}.@elem")
            return None if value is None else ("map", "string", value)
        fields: dict[str, Type] = {}
        json_names: dict[str, str] = {}
        for key, part in (s.get("properties") or {}).items():
            t = type_of(part, bool(part.get("x-kubernetes-embedded-resource")), f"{name}.{key}")
            escaped = escape(key)
            if t is not None and escaped is not None:
                fields[escaped] = t
                if escaped != key:
                    json_names[escaped] = key
        if root or s.get("x-kubernetes-embedded-resource"):
            fields.update({"apiVersion": "string", "kind": "string", "metadata": _META})
        return SchemaObject(name, fields, json_names)
    if kind == "string":
        return {"byte": "bytes", "duration": read("duration"), "date": TIMESTAMP, "date-time": TIMESTAMP}.get(s.get("format") or "", "string")
    return {"boolean": "bool", "number": "double", "integer": "int"}.get(kind or "")


@dataclass(frozen=True, slots=True)
class _Rule:
    spec: Mapping[str, Any]
    program: Program
    message: Program | None
    transition: bool              # names oldSelf
    optional_old: bool


def _uses_old(program: Program) -> bool:
    return re.search(r"\boldSelf\b", program.source) is not None


def _compile(spec: Mapping[str, Any], t: Type) -> tuple[_Rule | None, str, str]:
    """(the rule, what is wrong with it, what is wrong with its message expression)."""
    optional = bool(spec.get("optionalOldSelf"))
    variables: dict[str, Type] = {"self": t, "oldSelf": ("optional_type", t) if optional else t}
    source = spec.get("rule") or ""
    try:
        program = compile_(source, variables)
    except CelProblem as e:
        return None, f"compilation failed: {e}", ""
    if program.type != "bool":
        return None, "cel expression must evaluate to a bool", ""
    if program.broken:
        return None, f"program instantiation failed: {program.broken}", ""
    message = None
    if spec.get("messageExpression"):
        try:
            message = compile_(spec["messageExpression"], variables)
        except CelProblem as e:
            return None, "", f"messageExpression compilation failed: {e}"
        if message.type != "string":
            return None, "", "messageExpression must evaluate to a string"
        if message.broken:
            return None, "", f"messageExpression instantiation failed: {message.broken}"
    return _Rule(spec, program, message, _uses_old(program), optional), "", ""


# --- validation of schemas ---

RULE_COST_MAX, SCHEMA_COST_MAX = 10_000_000, 100_000_000
_NAMED_MAX = 4                         # of the rules that make a schema too expensive


def schema_errors(schema: Mapping[str, Any], path: str, each: bool = True) -> Iterator[FieldError]:
    """What does not compile or costs too much in the rules of a CRD's schema. `each`: what every single rule may cost counts, not only all together."""
    total: list[tuple[int, str]] = []
    yield from _schema_errors(schema, path, True, None, 1, total, each)
    whole = sum(cost for cost, _ in total)
    if whole > SCHEMA_COST_MAX:
        expensive = [t for t in total if t[0] >= SCHEMA_COST_MAX // 100]
        for _, where in sorted(expensive, key=lambda t: -t[0])[:_NAMED_MAX]:
            yield field.forbidden(where, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema")
        yield field.forbidden(path, _too_expensive("x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
                                                   min(whole, MAX_COST), SCHEMA_COST_MAX))


def _too_expensive(what: str, cost: int, limit: int) -> str:
    factor = cost / limit
    shown = "more than 100x" if factor > 100 else f"{factor:f}x" if factor < 1.5 else f"{factor:.1f}x"
    return (f"{what} exceeds budget by factor of {shown} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, "
            "maps, and strings are declared)")


def _schema_errors(s: Mapping[str, Any], path: str, root: bool, uncorrelated: str | None, count: int | None, total: list[tuple[int, str]],
                   each: bool) -> Iterator[FieldError]:
    """`uncorrelated`: the path above which old values cannot be found again; `count`: how often the node may stand in an object, None: unbounded."""
    more, items = s.get("additionalProperties"), s.get("items")
    most = members_max(s)
    below = None if count is None or most is None else min(count * most, MAX_COST)
    embedded = "x-kubernetes-embedded-resource"
    if isinstance(more, dict):
        yield from _schema_errors(more, f"{path}.additionalProperties", bool(more.get(embedded)), uncorrelated, below, total, each)
    inside = uncorrelated or (path if s.get("x-kubernetes-map-type") == "atomic" else None)
    for name in sorted(s.get("properties") or {}):
        part = s["properties"][name]
        yield from _schema_errors(part, f"{path}.properties[{name}]", bool(part.get(embedded)), inside, below, total, each)
    if isinstance(items, dict):
        inside = uncorrelated or (path if s.get("x-kubernetes-list-type") != "map" else None)
        yield from _schema_errors(items, f"{path}.items", bool(items.get(embedded)), inside, below, total, each)
    if s.get("x-kubernetes-validations"):
        yield from _rule_errors(s, path, root, uncorrelated, count, total, each)


def _rule_errors(s: Mapping[str, Any], path: str, root: bool, uncorrelated: str | None, count: int | None, total: list[tuple[int, str]],
                 each: bool) -> Iterator[FieldError]:
    t, extent = type_of(s, root), extent_of(s, root)
    times = count if count is not None else extent.cardinality if extent is not None else 1

    def cost(program: Program) -> int:
        return estimate(program.tree, lambda p: extent.at(p[1:]) if extent is not None else None)

    for i, spec in enumerate(s["x-kubernetes-validations"]):
        if not (spec.get("rule") or "").strip():
            continue
        where = f"{path}.x-kubernetes-validations[{i}]"
        rule, why, message_why = _compile(spec, t)
        shown = Struct(Rule=spec.get("rule") or "", Message=spec.get("message") or "", MessageExpression=spec.get("messageExpression") or "",
                       Reason=spec.get("reason"), FieldPath=spec.get("fieldPath") or "", OptionalOldSelf=spec.get("optionalOldSelf"))
        if why:
            yield field.invalid(f"{where}.rule", shown, why)
            continue
        if rule is not None:
            total.append((min(cost(rule.program) * times, MAX_COST), f"{where}.rule"))
            if each and total[-1][0] > RULE_COST_MAX:
                yield field.forbidden(f"{where}.rule", _too_expensive("estimated rule cost", total[-1][0], RULE_COST_MAX))
            if rule.message is not None:
                total.append((cost(rule.message), f"{where}.messageExpression"))
                if each and total[-1][0] > RULE_COST_MAX:
                    yield field.forbidden(f"{where}.messageExpression",
                                          _too_expensive("estimated messageExpression cost", total[-1][0], RULE_COST_MAX))
        if message_why:
            yield field.invalid(f"{where}.messageExpression", shown, message_why)
        elif rule is not None and rule.transition and uncorrelated is not None:
            yield field.invalid(f"{where}.rule", spec["rule"],
                                f"oldSelf cannot be used on the uncorrelatable portion of the schema within {uncorrelated}")
        elif rule is not None and spec.get("optionalOldSelf") is not None and not rule.transition:
            yield field.invalid(f"{where}.optionalOldSelf", spec["optionalOldSelf"], "may not be set if oldSelf is not used in rule")


# --- running ---

class Rules:
    """The rules of one node of a schema and of what is below it. None stands for a node without any."""

    __slots__ = ("_all_of", "_convert", "_items", "_more", "_own", "_properties", "_schema", "_type")

    def __init__(self, schema: Mapping[str, Any], own: list[tuple[Mapping[str, Any], _Rule | None, str]], properties: dict[str, Rules],
                 items: Rules | None, more: Rules | None, all_of: list[Rules], t: Type) -> None:
        self._schema, self._own, self._properties, self._items, self._more, self._all_of = schema, own, properties, items, more, all_of
        self._type = schema.get("type") or ""
        self._convert = _converter(t)

    def errors(self, value: Any, old: Any = MISSING, warn: Callable[[str], None] | None = None) -> list[FieldError]:
        """What is broken. `old`: the object before an update; `warn` hears of what is let be."""
        out: list[FieldError] = []
        try:
            self._run(value, old, old, "", out, {METER: Meter()}, warn or _silent)
        except _Exhausted:
            pass
        return out

    def _run(self, value: Any, old: Any, nearest: Any, path: str, out: list[FieldError], shared: dict[Any, Any], warn: Callable[[str], None],
             same: bool | None = None) -> None:
        """`old` is MISSING where nothing can be compared; then `same` says whether the nearest ancestor that can be is unchanged."""
        if value is None:
            return
        if self._own:
            unchanged = same if old is MISSING else _equal(value, old)
            self._check(value, old, bool(unchanged), path, out, shared, warn)
        for part in self._all_of:
            part._run(value, old, nearest, path, out, shared, warn, False)
        if isinstance(value, dict):
            before = old if isinstance(old, dict) else {}
            below = same if old is MISSING else None
            for k, x in value.items():
                node = self._properties.get(k)
                where = f"{path}.{k}" if path else k
                if node is None and k not in (self._schema.get("properties") or {}):
                    node, where = self._more, f"{path}[{k}]"
                if node is not None:
                    was = before.get(k, MISSING)
                    node._run(x, was, old, where, out, shared, warn, (below if old is MISSING else _equal(value, old)) if was is MISSING else None)
        elif isinstance(value, list) and self._items is not None:
            find = _old_items(dict(self._schema), old)
            whole = same if old is MISSING else _equal(value, old)
            for i, x in enumerate(value):
                was = find(x)
                self._items._run(x, was, old, f"{path}[{i}]", out, shared, warn, whole if was is MISSING else None)

    def _check(self, value: Any, old: Any, unchanged: bool, path: str, out: list[FieldError], shared: dict[Any, Any],
               warn: Callable[[str], None]) -> None:
        where = path or NOWHERE
        convert = self._convert or _same
        has_old = old is not MISSING and old is not None
        v: dict[Any, Any] = {**shared, "self": convert(value)}
        meter = shared[METER]
        if meter.total >= TOTAL_MAX:
            out.append(field.invalid(where, self._type, OUT_OF_BUDGET))
            raise _Exhausted
        for spec, rule, problem in self._own:
            if rule is None:
                if problem:
                    out.append(field.invalid(where, self._type, f"rule compile error: {problem}"))
                continue
            if rule.transition and not has_old and not rule.optional_old:
                continue
            if has_old or rule.optional_old:
                was = convert(old) if has_old else None
                v["oldSelf"] = (Optional(was, has_old) if rule.optional_old else was)
            problem, cancelled, met = "", False, False
            try:
                met = rule.program.run(v) is True
            except (CelError, ArithmeticError, ValueError) as e:
                problem, cancelled = _failed(str(e), spec), isinstance(e, Cancelled)
            if meter.total > TOTAL_MAX:
                problem, cancelled = OUT_OF_BUDGET, True
            if problem:
                out.append(field.invalid(where, self._type, problem))
                if cancelled:
                    raise _Exhausted
                continue
            if met:
                continue
            at = where + (_below(spec["fieldPath"], path) if spec.get("fieldPath") else "")
            shown = field._OMIT if self._type in ("object", "array") else value
            make = _ERRORS.get(spec.get("reason") or "", field.invalid)
            at, exhausted = at.removeprefix(NOWHERE + "."), ""
            try:
                error = make(at, shown, _message(rule, v))
            except _Exhausted as e:
                exhausted = str(e)
                error = field.invalid(at, self._type, exhausted)
            if not rule.transition and unchanged:
                warn(error.text())
            else:
                out.append(error)
            if exhausted:
                raise _Exhausted


class _Exhausted(Exception):
    """The budget of an object is used up, or an expression's."""


def _same(value: Any) -> Any:
    return value


def _silent(text: str) -> None:
    return None


def _below(field_path: str, path: str) -> str:
    return field_path if field_path.startswith((".", "[")) else f".{field_path}"


def _failed(why: str, spec: Mapping[str, Any]) -> str:
    rule = (spec.get("message") or spec.get("rule") or "").strip()
    if why.startswith("no such overload"):
        return f"'{why}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
    if why.startswith("operation cancelled"):
        return f"'{why}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}"
    return f"{why} evaluating rule: {rule}"


def _message(rule: _Rule, v: dict[Any, Any]) -> str:
    if rule.message is not None:
        try:
            text = rule.message.run(v)
        except Cancelled:
            raise _Exhausted("no further validation rules will be run due to call cost exceeds limit for messageExpression: "
                             + field.quote(rule.spec["messageExpression"])) from None
        except (CelError, ArithmeticError, ValueError):
            text = ""
        if v[METER].total > TOTAL_MAX:
            raise _Exhausted(f"messageExpression evaluation {OUT_OF_BUDGET.removeprefix('validation ')}")
        text = text.strip() if isinstance(text, str) else ""
        if text and "\n" not in text and len(text.encode()) <= MESSAGE_MAX_BYTES:
            return text
    return (rule.spec.get("message") or "").strip() or f"failed rule: {(rule.spec.get('rule') or '').strip()}"


def rules(schema: Mapping[str, Any], root: bool = True, typed_by: Mapping[str, Any] | None = None) -> Rules | None:
    """The rules of a schema, None where there are none. `typed_by`: the schema that says the types, where this one is part of a junctor."""
    types = typed_by or schema
    t = type_of(types, root)
    own: list[tuple[Mapping[str, Any], _Rule | None, str]] = []
    for spec in schema.get("x-kubernetes-validations") or ():
        if (spec.get("rule") or "").strip():
            rule, why, message_why = _compile(spec, t)
            own.append((spec, rule, why or message_why))
    properties = {}
    for name, part in (schema.get("properties") or {}).items():
        by = (types.get("properties") or {}).get(name)
        if by is not None:
            node = rules(part, bool(by.get("x-kubernetes-embedded-resource")), by)
            if node is not None:
                properties[name] = node
    items, more = _child(schema, types, "items"), _child(schema, types, "additionalProperties")
    all_of = [node for part in schema.get("allOf") or () if (node := rules(part, root, types)) is not None]
    if own or properties or items is not None or more is not None or all_of:
        return Rules(types, own, properties, items, more, all_of, t)
    return None


def _child(schema: Mapping[str, Any], types: Mapping[str, Any], name: str) -> Rules | None:
    part, by = schema.get(name), types.get(name)
    if isinstance(part, dict) and isinstance(by, dict):
        return rules(part, bool(by.get("x-kubernetes-embedded-resource")), by)
    return None
