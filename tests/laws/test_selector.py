"""Label and field selectors against what they say, evaluated naively; what a selector prints means the same when it is read again."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kubern.model.selector import from_label_selector, from_set, parse_fields, parse_labels

keys = st.sampled_from(["a", "b", "app.example.com/name", "in", "notin", "x-1"])
values = st.sampled_from(["", "v", "w", "1", "2", "10", "in", "v_w.x"])
label_sets = st.dictionaries(keys, values, max_size=5)
spaces = st.sampled_from(["", " ", "  ", "\t"])
Term = tuple[str, str, list[str]]


@st.composite
def terms(draw: st.DrawFn) -> Term:
    op = draw(st.sampled_from(["=", "==", "!=", "in", "notin", "exists", "!", ">", "<"]))
    if op in ("exists", "!"):
        return draw(keys), op, []
    if op in (">", "<"):
        return draw(keys), op, [str(draw(st.integers(0, 12)))]
    return draw(keys), op, draw(st.lists(values, min_size=1, max_size=1 if op in ("=", "==", "!=") else 3))


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[Term]]:
    """A selector's text, with spaces where they may be, and its terms."""
    out, all_ = [], draw(st.lists(terms(), max_size=4))
    for key, op, vs in all_:
        gap = draw(spaces)
        if op == "exists":
            text = key
        elif op == "!":
            text = f"!{gap}{key}"
        elif op in ("in", "notin"):
            text = f"{key} {gap}{op} {gap}(" + f"{gap},{gap}".join(vs) + f"{gap})"
        else:
            text = f"{key}{gap}{op}{gap}{vs[0]}"
        out.append(draw(spaces) + text + draw(spaces))
    return ",".join(out), all_


def holds(term: Term, labels: dict[str, str]) -> bool:
    key, op, vs = term
    if op in ("=", "==", "in"):
        return key in labels and labels[key] in vs
    if op in ("!=", "notin"):
        return labels.get(key) not in vs if key in labels else True
    if op == "exists":
        return key in labels
    if op == "!":
        return key not in labels
    try:
        have = int(labels[key])
    except (KeyError, ValueError):
        return False
    return have > int(vs[0]) if op == ">" else have < int(vs[0])


@given(written(), st.lists(label_sets, max_size=5))
def test_labels(selector: tuple[str, list[Term]], sets: list[dict[str, str]]) -> None:
    text, all_ = selector
    parsed = parse_labels(text)
    again = parse_labels(str(parsed))
    for labels in sets:
        want = all(holds(t, labels) for t in all_)
        assert parsed.matches(labels) is want
        assert again.matches(labels) is want
    assert str(again) == str(parsed)


@given(label_sets, label_sets)
def test_a_set_selects_its_supersets(wanted: dict[str, str], labels: dict[str, str]) -> None:
    assert from_set(wanted).matches(labels) is (wanted.items() <= labels.items())
    assert from_set(wanted).matches({**labels, **wanted})


OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


@given(label_sets, st.lists(st.tuples(keys, st.sampled_from(list(OPERATORS)), st.lists(values, min_size=1, max_size=3)), max_size=3), label_sets)
def test_label_selector_objects(match: dict[str, str], expressions: list[tuple[str, str, list[str]]], labels: dict[str, str]) -> None:
    selector: dict[str, Any] = {"matchLabels": match, "matchExpressions": [
        {"key": k, "operator": op, **({"values": vs} if op.endswith("In") else {})} for k, op, vs in expressions]}
    want = match.items() <= labels.items() and all(holds((k, OPERATORS[op], vs), labels) for k, op, vs in expressions)
    parsed = from_label_selector(selector)
    assert parsed.matches(labels) is want
    assert parse_labels(str(parsed)).matches(labels) is want


paths = st.sampled_from(["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"])
field_values = st.sampled_from(["", "a", "b", "a,b", "a=b", "a\\b", "x!=y"])


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")


@given(st.lists(st.tuples(paths, st.sampled_from(["=", "==", "!="]), field_values), max_size=3), st.dictionaries(paths, field_values))
def test_fields(all_: list[tuple[str, str, str]], have: dict[str, str]) -> None:
    parsed = parse_fields(",".join(f"{p}{op}{escaped(v)}" for p, op, v in all_))
    obj: dict[str, Any] = {}
    for p, v in have.items():
        part, _, name = p.partition(".")
        obj.setdefault(part, {})[name] = v
    want = all((have.get(p, "") == v) is (op != "!=") for p, op, v in all_)
    assert parsed.matches_object(obj) is want
    assert parse_fields(str(parsed)).matches_object(obj) is want
