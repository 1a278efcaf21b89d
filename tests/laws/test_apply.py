"""Server-side apply against its definition (KEP-555), told plainly: an object is a set of leaves, every manager owns some.

An apply sets its leaves, takes away those its manager applied before and nobody else owns, and is refused where it would change what
another owns, unless forced. The reference knows nothing of schemas beyond the one shape below; the implementation gets it as OpenAPI.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kubern.model import fields
from kubern.model.object import clone
from kubern.model.schema import from_openapi
from kubern.model.status import StatusError

NOW, VERSION = "2024-01-01T00:00:00Z", "laws.example.com/v1"
TEXT = {"type": "string"}
PART = {"type": "object", "properties": {"a": TEXT, "b": TEXT, "inner": {"type": "object", "properties": {"c": TEXT}}}}
SCHEMA = from_openapi({"type": "object", "properties": {"spec": {"type": "object", "properties": {
    "text": TEXT, "number": {"type": "integer"}, "part": PART,
    "words": {"type": "object", "additionalProperties": TEXT},
    "sealed": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": TEXT},
    "row": {"type": "array", "items": TEXT},
    "bag": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT},
    "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
        "type": "object", "required": ["name"], "properties": {"name": TEXT, "value": {"type": "integer"}, "part": PART,
                                                              "bag": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT}}}},
}}}})

letters = st.sampled_from("xyz")
numbers = st.integers(0, 2)


def some(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def filled(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return strategy.filter(bool)


part = filled(some(a=letters, b=letters, inner=st.fixed_dictionaries({"c": letters})))
words = st.dictionaries(letters, letters, min_size=1, max_size=3)
bag = st.lists(letters, unique=True, min_size=1, max_size=3)
item = st.builds(lambda name, rest: {"name": name, **rest}, letters, some(value=numbers, part=part, bag=bag))
items = st.lists(item, min_size=1, max_size=3, unique_by=lambda i: i["name"])
specs = filled(some(text=letters, number=numbers, part=part, words=words, sealed=words, row=st.lists(letters, min_size=1, max_size=2), bag=bag, items=items))
managers = st.sampled_from(["one", "two", "three"])

Leaves = dict[tuple[str, ...], Any]


def leaves(value: Any, path: tuple[str, ...] = ()) -> Leaves:
    """The reference's view of a spec: what can be owned, and what stands there."""
    name = path[-1] if path else ""
    if name in ("f:sealed", "f:row") or not isinstance(value, (dict, list)):
        return {path: value}
    out: Leaves = {}
    if name == "f:items":
        for i in value:
            at = (*path, f'k:{{"name":"{i["name"]}"}}')
            out |= {at: "an item"} | leaves(i, at)
    elif name == "f:bag":
        out |= {(*path, f'v:"{v}"'): v for v in value}
    else:
        for k, v in value.items():
            out |= leaves(v, (*path, f"f:{k}"))
    return out


def owned(fields_v1: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The members of a fieldsV1."""
    out = {path} if path and (not fields_v1 or "." in fields_v1) else set()
    for k, v in fields_v1.items():
        if k != ".":
            out |= owned(v, (*path, k))
    return out


def obj(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": VERSION, "kind": "Law", "metadata": {"name": "l"}, "spec": clone(spec)}


def apply(live: Any, spec: dict[str, Any], manager: str, force: bool = False) -> dict[str, Any]:
    before = json.dumps(live)
    out = fields.apply(live, obj(spec), manager, force, VERSION, NOW, schema=SCHEMA, kind="Law", has_status=False)
    assert json.dumps(live) == before, "the live object was changed"
    return out


def create(spec: dict[str, Any]) -> dict[str, Any]:
    new = obj(spec)
    new["metadata"]["managedFields"] = fields.update(None, new, "creator", VERSION, NOW, schema=SCHEMA, has_status=False)
    return new


def owners(o: dict[str, Any]) -> dict[str, set[tuple[str, ...]]]:
    """manager -> the leaves of the spec it owns."""
    return {e["manager"]: owned(e["fieldsV1"].get("f:spec", {})) for e in o["metadata"].get("managedFields") or ()}


class Reference:
    def __init__(self) -> None:
        self.state: Leaves = {}
        self.owners: dict[str, set[tuple[str, ...]]] = {}

    def conflicts(self, wanted: Leaves, manager: str) -> set[tuple[str, ...]]:
        return {p for p, v in wanted.items() for m, theirs in self.owners.items() if m != manager and p in theirs and self.state.get(p) != v}

    def apply(self, wanted: Leaves, manager: str) -> None:
        lost = self.conflicts(wanted, manager)
        others = {p for m, theirs in self.owners.items() if m != manager for p in theirs} - lost
        given_up = self.owners.get(manager, set()) - set(wanted) - others
        gone = given_up | {p for p in self.state for q in given_up if q[-1].startswith("k:") and p[:len(q)] == q}    # an item goes with all in it
        self.state = {p: v for p, v in {**self.state, **wanted}.items() if p not in gone}
        self.owners = {m: theirs - lost - gone for m, theirs in self.owners.items() if m != manager} | {manager: set(wanted)}

    def update(self, wanted: Leaves, manager: str) -> None:
        changed = {p for p, v in wanted.items() if p not in self.state or self.state[p] != v}
        gone = set(self.state) - set(wanted)
        self.owners = {m: theirs - changed - gone for m, theirs in self.owners.items() if m != manager} | {
            manager: self.owners.get(manager, set()) - gone | changed}
        self.state = wanted


@given(specs, st.lists(st.tuples(managers, specs, st.booleans(), st.booleans()), max_size=6))
def test_the_reference_agrees(first: dict[str, Any], steps: list[tuple[str, dict[str, Any], bool, bool]]) -> None:
    """Whatever several managers apply and update, one after the other: the same object, the same owners, the same conflicts."""
    live, reference = create(first), Reference()
    reference.update(leaves(first), "creator")
    for manager, spec, force, plainly in steps:
        wanted = leaves(spec)
        if plainly:
            new = {**obj(spec), "metadata": {**live["metadata"]}}
            new["metadata"]["managedFields"] = fields.update(live, new, "creator", VERSION, NOW, schema=SCHEMA, has_status=False)
            live = new
            reference.update(wanted, "creator")
        else:
            conflicts = reference.conflicts(wanted, manager)
            if conflicts and not force:
                with pytest.raises(StatusError) as e:
                    apply(live, spec, manager)
                assert e.value.code == 409 and len({c["field"] for c in e.value.details["causes"]}) == len(conflicts)
                continue
            live = apply(live, spec, manager, force)
            reference.apply(wanted, manager)
        assert leaves(live.get("spec") or {}) == reference.state
        now = owners(live)
        for m, mine in reference.owners.items():
            assert now.get(m, set()) & set(reference.state) == mine, m


@given(specs, managers, st.booleans(), specs)
def test_idempotent(spec: dict[str, Any], manager: str, force: bool, first: dict[str, Any]) -> None:
    """Applying the same again changes nothing, managedFields included."""
    once = apply(create(first), spec, manager, True)
    assert apply(once, spec, manager, force) == once


@given(specs, specs)
def test_applied_then_removed_is_gone(before: dict[str, Any], mine: dict[str, Any]) -> None:
    """What one adds with an apply goes when the next apply leaves it out; what stood there stays."""
    assume(not set(leaves(before)) & set(leaves(mine)))
    live = create(before)
    after = apply(apply(live, mine, "one"), {"text": "t"}, "one", True)
    assert leaves(after["spec"]) == {**leaves(before), ("f:text",): "t"}


@given(specs, specs, specs)
def test_disjoint_managers_commute(base: dict[str, Any], a: dict[str, Any], b: dict[str, Any]) -> None:
    values = (*leaves(a).items(), *leaves(b).items(), *leaves(base).items())
    assume(all(v == w for p, v in values for q, w in values if p == q))
    live = create(base)
    ab, ba = apply(apply(live, a, "one"), b, "two"), apply(apply(live, b, "two"), a, "one")
    assert leaves(ab["spec"]) == leaves(ba["spec"]) and owners(ab) == owners(ba)


@given(specs, specs)
def test_force_takes_ownership(a: dict[str, Any], b: dict[str, Any]) -> None:
    live = apply(apply(None, a, "one"), b, "two", True)
    mine, theirs = leaves(b), leaves(a)
    assert owners(live)["two"] == set(mine)
    lost = {p for p in mine if p in theirs and mine[p] != theirs[p]}
    assert owners(live).get("one", set()) == set(theirs) - lost


@given(specs, managers)
def test_managed_fields_cover_what_was_set(spec: dict[str, Any], manager: str) -> None:
    live = apply(None, spec, manager)
    assert owners(live) == {manager: set(leaves(spec))}
    entry, = live["metadata"]["managedFields"]
    assert (entry["operation"], entry["apiVersion"], entry["fieldsType"], entry["time"]) == ("Apply", VERSION, "FieldsV1", NOW)


@given(specs, specs)
def test_order_of_the_applied(before: dict[str, Any], applied: dict[str, Any]) -> None:
    """Lists keep the order their manager wrote."""
    live = apply(create(before), applied, "one", True)["spec"]
    for name, of in (("bag", lambda v: v), ("items", lambda v: v["name"])):
        wanted = [of(v) for v in applied.get(name, ())]
        assert [of(v) for v in live.get(name, ()) if of(v) in wanted] == wanted
