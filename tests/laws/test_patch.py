"""Patches against references: JSON patch and merge patch against published libraries, strategic merge against its definition.

Where upstream is more lenient than RFC 6902 (a missing member may be replaced and copied, indexes may be negative) the reference refuses and
we may not; what the reference takes we take, with the same result.
"""

from __future__ import annotations

from typing import Any

import json_merge_patch
import jsonpatch
import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kubern.model.object import clone
from kubern.model.patch import apply_patch
from kubern.model.schema import schema_for
from kubern.model.status import StatusError

FREE = schema_for("x/v1", "Nope")           # no built-in kind: anything goes
keys = st.sampled_from(["a", "b", "c", "d/e", "f~g", ""])
scalars = st.one_of(st.integers(2, 9), st.sampled_from(["", "s", "t", "é"]), st.just(2.5))
values = st.recursive(scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)), max_leaves=12)
documents = st.dictionaries(keys.filter(bool), values, max_size=4)


def patched(type_: str, doc: Any, patch: Any) -> Any:
    before = orjson.dumps(doc)
    out = apply_patch(type_, doc, orjson.dumps(patch), FREE)
    assert orjson.dumps(doc) == before, "the original was changed"
    return out


@given(documents, documents)
def test_json_patch_makes_one_of_the_other(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert patched("json", a, jsonpatch.make_patch(a, b).patch) == b


pointers = st.lists(st.one_of(keys.map(lambda k: k.replace("~", "~0").replace("/", "~1")), st.sampled_from(["0", "1", "2", "-"])), min_size=1, max_size=4)
paths = pointers.map(lambda p: "/" + "/".join(p))
operations = st.one_of(
    st.fixed_dictionaries({"op": st.sampled_from(["add", "replace", "test"]), "path": paths, "value": values}),
    st.fixed_dictionaries({"op": st.just("remove"), "path": paths}),
    st.fixed_dictionaries({"op": st.sampled_from(["move", "copy"]), "path": paths, "from": paths}),
)


@given(documents, st.lists(operations, min_size=1, max_size=4))
def test_json_patch_as_the_reference(doc: dict[str, Any], patch: list[dict[str, Any]]) -> None:
    assume(not any(op["op"] == "move" and (op["path"] + "/").startswith(op["from"] + "/") for op in patch))
    try:
        want = jsonpatch.apply_patch(doc, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError):
        try:
            patched("json", doc, patch)
        except StatusError as e:
            assert e.code == 422
        return
    assert patched("json", doc, patch) == want


nullable = st.recursive(st.one_of(scalars, st.none()), lambda inner: st.one_of(
    st.lists(scalars, max_size=3), st.dictionaries(keys.filter(bool), inner, max_size=3)), max_leaves=12)


@given(documents, st.dictionaries(keys.filter(bool), nullable, max_size=4))
def test_merge_patch_as_the_reference(doc: dict[str, Any], patch: dict[str, Any]) -> None:
    want = json_merge_patch.merge(clone(doc), clone(patch))
    assert patched("merge", doc, patch) == want
    assert patched("merge", want, patch) == want, "a merge patch is idempotent"


@given(documents, documents)
def test_merge_patch_makes_one_of_the_other(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert patched("merge", a, json_merge_patch.create_patch(clone(a), clone(b))) == b


# --- strategic merge patch ---

TEMPLATE = schema_for("v1", "PodTemplate")
MERGED = {"containers": "name", "env": "name", "ports": "containerPort", "volumes": "name"}      # the lists below and their merge keys
names = st.sampled_from(["x", "y", "z"])


def listed(item: st.SearchStrategy[dict[str, Any]], key: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(item, max_size=3, unique_by=lambda i: i[key])


env = listed(st.fixed_dictionaries({"name": names, "value": names}), "name")
ports = listed(st.fixed_dictionaries({"containerPort": st.integers(1, 3), "protocol": st.just("TCP")}, optional={"name": names}), "containerPort")
container = st.fixed_dictionaries({"name": names}, optional={
    "image": names, "env": env, "ports": ports, "command": st.lists(names, min_size=1, max_size=2),
    "resources": st.fixed_dictionaries({"limits": st.dictionaries(st.sampled_from(["cpu", "memory"]), st.sampled_from(["1", "2"]), min_size=1)})})
spec = st.fixed_dictionaries({}, optional={
    "containers": listed(container, "name"), "hostname": names, "nodeSelector": st.dictionaries(names, names, max_size=2),
    "volumes": listed(st.fixed_dictionaries({"name": names}, optional={"hostPath": st.fixed_dictionaries({"path": names})}), "name")})


def strategic(old: Any, patch: Any, name: str = "") -> Any:
    """The definition: maps merge, lists with a merge key merge by it, all else is replaced."""
    if isinstance(old, dict) and isinstance(patch, dict):
        out = dict(old)
        for k, v in patch.items():
            if v is None:
                out.pop(k, None)
            else:
                out[k] = strategic(out[k], v, k) if k in out else v
        return out
    key = MERGED.get(name)
    if key and isinstance(old, list):
        by_key = {i[key]: i for i in patch}
        kept = [strategic(i, by_key[i[key]]) if i[key] in by_key else i for i in old]
        return [i for i in patch if i[key] not in {o[key] for o in old}] + kept
    return patch


def pod(s: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "t"}, "template": {"metadata": {}, "spec": {"containers": [], **clone(s)}}}


def merged(old: Any, patch: Any) -> Any:
    live = pod(old)
    out = apply_patch("strategic", live, orjson.dumps({"template": {"spec": patch}}), TEMPLATE)
    assert live == pod(old), "the original was changed"
    return tidy(out["template"]["spec"])


def tidy(value: Any) -> Any:
    """Without what is empty, which a typed object does not show."""
    if isinstance(value, dict):
        return {k: t for k, v in value.items() if (t := tidy(v)) not in ({}, [])}
    return [tidy(v) for v in value] if isinstance(value, list) else value


def by_key(value: Any, name: str = "") -> Any:
    """Merged lists as maps: their order is a law of its own."""
    if isinstance(value, dict):
        return {k: by_key(v, k) for k, v in value.items()}
    if name in MERGED and isinstance(value, list):
        return {i[MERGED[name]]: by_key(i) for i in value}
    return value


@given(spec, spec)
def test_strategic_as_defined(old: dict[str, Any], patch: dict[str, Any]) -> None:
    assert by_key(merged(old, patch)) == by_key(tidy(strategic({"containers": [], **old}, patch)))


@given(spec, spec)
def test_strategic_order(old: dict[str, Any], patch: dict[str, Any]) -> None:
    """Items of the patch come in its order, the others keep theirs."""
    got, had, wanted = ([c["name"] for c in s.get("containers", ())] for s in (merged(old, patch), old, patch))
    assert [n for n in got if n in wanted] == wanted
    assert [n for n in got if n not in wanted] == [n for n in had if n not in wanted]


@given(spec, spec)
def test_strategic_is_idempotent(old: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merged(old, patch)
    assert merged(once, patch) == once and merged(once, {}) == once


@given(spec, names)
def test_strategic_delete(old: dict[str, Any], name: str) -> None:
    want = [c for c in tidy(old).get("containers", ()) if c["name"] != name]
    assert merged(old, {"containers": [{"name": name, "$patch": "delete"}]}).get("containers", []) == want


@given(spec, spec)
def test_strategic_replace(old: dict[str, Any], patch: dict[str, Any]) -> None:
    wanted = patch.get("containers", [])
    assert merged(old, {"containers": [*wanted, {"$patch": "replace"}]}).get("containers", []) == tidy(wanted)
    assert merged(old, {"$patch": "replace", **patch}) == tidy(patch)


@given(spec, st.permutations(["x", "y", "z"]))
def test_strategic_order_on_demand(old: dict[str, Any], order: list[str]) -> None:
    assume(old.get("containers"))
    got = [c["name"] for c in merged(old, {"$setElementOrder/containers": [{"name": n} for n in order]}).get("containers", ())]
    assert got == sorted(got, key=order.index)


@given(st.lists(names, unique=True), st.lists(names, unique=True), st.lists(names, unique=True))
def test_strategic_primitive_lists(old: list[str], more: list[str], fewer: list[str]) -> None:
    assume(not set(more) & set(fewer))
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "finalizers": old}}
    patch = {"metadata": {"finalizers": more, "$deleteFromPrimitiveList/finalizers": fewer}}
    got = apply_patch("strategic", obj, orjson.dumps(patch), schema_for("v1", "ConfigMap"))["metadata"].get("finalizers", [])
    assert set(got) == (set(old) - set(fewer)) | set(more)


def test_what_the_rfc_refuses_and_upstream_takes() -> None:
    assert patched("json", {"a": 1}, [{"op": "replace", "path": "/b", "value": 2}]) == {"a": 1, "b": 2}
    assert patched("json", {"a": [1, 2]}, [{"op": "replace", "path": "/a/-1", "value": 3}]) == {"a": [1, 3]}
    with pytest.raises(StatusError):
        patched("json", {"a": 1}, [{"op": "remove", "path": "/b"}])
